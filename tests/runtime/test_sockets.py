"""Listening sockets: made where chown(2) is refused, as netd.service's SystemCallFilter= does; recognised again."""

from __future__ import annotations

import grp
import os
import socket

from structlog.testing import capture_logs

from netd.runtime.sockets import NO_INODE, Inode, inode_of, listen_unix, listens_at


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


def test_a_stored_unix_socket_is_only_taken_for_its_own_path(tmp_path):
    path = tmp_path / "a.sock"
    sock, inode = listen_unix(path, 0o660, None)
    with sock, socket.socket(socket.AF_UNIX) as other:
        assert inode == Inode(path.stat().st_ino, path.stat().st_dev)
        assert listens_at(sock, path, None, inode)
        assert not listens_at(sock, path, None, NO_INODE)
        assert not listens_at(sock, path, None, Inode(inode.number, inode.device + 1)), "of another file system"

        (tmp_path / "alias").symlink_to(tmp_path)
        assert listens_at(sock, tmp_path / "alias" / "a.sock", None, inode), "the same path by another name"

        other.bind(str(tmp_path / "other.sock"))
        assert not listens_at(sock, tmp_path / "other.sock", None, inode_of(tmp_path / "other.sock"))

        path.unlink()
        path.write_text("theirs")
        assert inode_of(path) == NO_INODE
        assert not listens_at(sock, path, None, Inode(path.stat().st_ino, path.stat().st_dev)), "no socket"
