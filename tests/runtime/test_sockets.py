"""Listening sockets where chown(2) is refused, as systemd's SystemCallFilter= does for netd.service."""

from __future__ import annotations

import grp
import os

from structlog.testing import capture_logs

from netd.runtime.sockets import listen_unix


def refuse(*_args):
    raise PermissionError(1, "Operation not permitted")


def test_a_socket_for_our_own_group_needs_no_chown(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chown", refuse)
    path = tmp_path / "a.sock"
    with capture_logs() as logs:
        sock, _ = listen_unix(path, 0o660, grp.getgrgid(os.getegid()).gr_name)
    with sock:
        assert logs == []
        assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (os.getegid(), 0o660)


def test_a_socket_that_cannot_be_given_away_serves_our_own_group(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chown", refuse)
    other = next(group for group in grp.getgrall() if group.gr_gid != os.getegid())
    with capture_logs() as logs:
        sock, _ = listen_unix(tmp_path / "a.sock", 0o660, other.gr_name)
    with sock:
        assert [(entry["log_level"], entry["group"]) for entry in logs] == [("warning", other.gr_name)]
        assert "our unit refuses chown(2)" in logs[0]["why"]
