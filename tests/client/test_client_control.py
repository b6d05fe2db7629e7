"""ControlClient against the real front door with canned answers: what it asks, what it makes of what comes back."""

from __future__ import annotations

import os
import socket
import stat

import pytest

from netd.client import ControlClient, default_socket
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed, VersionMismatch
from tests.support.fakeapi import Answer, FakeApi, sse

DOING = {"id": "b-1", "kind": "reload", "target": None, "status": "doing", "since": 1.0, "ended": None, "error": None}
DONE = DOING | {"status": "done", "ended": 2.0, "result": {}}


async def test_the_plain_questions(tmp_path):
    api = FakeApi(tmp_path, version="9.9.9")
    api.answer("GET", "/v1/status", {"state": "running"})
    api.answer("GET", "/v1/services", {"services": [{"name": "trace"}]})
    api.answer("GET", "/v1/metrics", Answer(b"netd_up 1\n"))
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert (await control.status())["state"] == "running"
            assert await control.services() == [{"name": "trace"}]
            assert await control.metrics() == "netd_up 1\n"
            assert control.daemon_version == "9.9.9"  # another netd of the same API is no obstacle


async def test_not_being_ready_is_an_answer(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/ready", {"ready": False, "waiting": ["trace"]}, status=503)
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert await control.ready() == {"ready": False, "waiting": ["trace"]}


async def test_a_full_house_is_not_mistaken_for_readiness(tmp_path):
    api = FakeApi(tmp_path).refuse("GET", "/v1/ready", 503, "too-busy", "cannot serve more than 64 connections")
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(RequestFailed, match="64 connections") as failed:
                await control.ready()
    assert failed.value.kind == "too-busy"


async def test_a_refusal_carries_the_daemons_kind_path_and_exit_code(tmp_path):
    api = FakeApi(tmp_path).refuse("PATCH", "/v1/config", 422, "config", "cannot be 0", "trace.max_hops")
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(RequestFailed, match="cannot be 0") as failed:
                await control.config_patch({"trace.max_hops": 0, "trace.rounds": None}, etag='"e1"', wait=5)
    error = failed.value
    assert (error.kind, error.path, error.status, error.exit_code) == ("config", "trace.max_hops", 422, 78)
    request = api.requests[-1]
    assert request.body == {"trace.max_hops": 0, "trace.rounds": None}
    assert request.query == [("wait", "5")]
    assert request.headers["if-match"] == '"e1"'


async def test_an_error_outside_the_error_shape_still_tells_its_status(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/health", Answer(b"<html>", 502))
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(RequestFailed, match="status 502"):
                await control.health()


@pytest.mark.parametrize("body", [b"", b"[1]", b"not json", b'{"services": 3}'])
async def test_an_answer_that_is_none_is_a_protocol_error(tmp_path, body):
    api = FakeApi(tmp_path).answer("GET", "/v1/services", Answer(body))
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(ProtocolError, match="cannot read the daemon's answer"):
                await control.services()


async def test_an_endless_answer_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("netd.client.control.MAX_ANSWER", 1000)
    api = FakeApi(tmp_path).answer("GET", "/v1/metrics", Answer(b"x" * 5000, hold=True))
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(ProtocolError, match="longer than 1000 bytes"):
                await control.metrics()


async def test_names_stay_one_segment_of_the_path(tmp_path):
    with FakeApi(tmp_path).serving() as api:
        async with ControlClient(api.socket) as control:
            for name in ("a/b?c", "..", ""):
                with pytest.raises(RequestFailed) as failed:
                    await control.service_stop(name)
                assert failed.value.kind == "not-found"
    assert [request.path for request in api.requests] == ["/v1/services/a%2Fb%3Fc/stop"]


# --- changes --------------------------------------------------------------------------------------------------------


async def test_a_change_is_followed_to_its_end(tmp_path):
    api = FakeApi(tmp_path).answer("POST", "/v1/reload", Answer(DOING, 202))
    api.answer("GET", "/v1/changes/b-1", DOING, DOING, DONE)
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert await control.settled(await control.reload(), within=30) == DONE
    assert api.requests[0].query == []
    assert float(dict(api.requests[1].query)["wait"]) <= 30


async def test_a_change_that_fails_later_raises_its_own_error(tmp_path):
    error = {"kind": "reload-refused", "message": "cannot change control.socket", "path": "control.socket"}
    api = FakeApi(tmp_path).answer("GET", "/v1/changes/b-1", DOING | {"status": "failed", "error": error})
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(RequestFailed, match="cannot change control") as failed:
                await control.settled(DOING, within=30)
    assert (failed.value.kind, failed.value.exit_code) == ("reload-refused", 78)


async def test_a_change_that_does_not_end_comes_back_as_it_stands(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/changes/b-1", DOING)
    with api.serving():
        async with ControlClient(api.socket) as control:
            assert await control.settled(DOING, within=0.05) == DOING


# --- who is there ---------------------------------------------------------------------------------------------------


async def status_fails(path) -> DaemonUnreachable:
    async with ControlClient(path, timeout=0.2) as control:
        with pytest.raises(DaemonUnreachable) as failed:
            await control.status()
    assert str(failed.value).startswith("cannot ")
    assert str(path) in str(failed.value)
    return failed.value


async def test_no_socket(tmp_path):
    sentence = str(await status_fails(tmp_path / "nobody.sock"))
    assert "there is no socket" in sentence
    assert "systemctl start netd" in sentence
    assert "--socket" in sentence


async def test_a_socket_whose_daemon_is_gone(tmp_path):
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    sentence = str(await status_fails(path))
    assert "nobody listens" in sentence
    assert "journalctl -u netd" in sentence


async def test_a_file_that_is_no_socket(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    assert "is not a socket" in str(await status_fails(path))


async def test_a_path_that_no_socket_can_have(tmp_path):
    assert "107 bytes" in str(await status_fails(tmp_path / ("x" * 120)))


async def test_a_daemon_that_does_not_answer(tmp_path):
    path = tmp_path / "hung.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert "within 0.2 s" in str(await status_fails(path))


async def test_permission_denied_says_which_group_to_join(tmp_path, monkeypatch):
    from netd.client import failures

    path = tmp_path / "control.sock"
    path.touch()
    denied = PermissionError(13, "Permission denied")
    monkeypatch.setattr(failures, "_user", lambda: "ann")
    path.chmod(0o660)
    if os.geteuid() == 0:
        os.chown(path, 0, 4)  # adm, on any Debian
        assert "usermod -aG adm ann" in failures._connect_failed(denied, path)
        os.chown(path, 0, 0)
        assert "usermod" not in failures._connect_failed(denied, path)  # nobody is sent into the group root
    path.chmod(stat.S_IRUSR)
    sentence = failures._connect_failed(denied, path)
    assert sentence.endswith("permission denied for user ann; use sudo")
    assert "usermod -aG netd ann" in failures._connect_failed(denied, tmp_path / "hidden" / "control.sock")


async def test_another_program_at_the_socket(tmp_path):
    api = FakeApi(tmp_path, api=None).answer("GET", "/v1/status", {"state": "running"})
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(VersionMismatch, match="another program"):
                await control.status()


async def test_a_daemon_of_another_api_names_both_versions(tmp_path):
    api = FakeApi(tmp_path, version="7.0.0", api="2").answer("GET", "/v1/status", {}).answer("GET", "/v1/events", sse())
    with api.serving():
        async with ControlClient(api.socket) as control:
            with pytest.raises(VersionMismatch, match=r"netd 7\.0\.0 speaks version 2 .* version 1") as failed:
                await control.status()
            assert failed.value.exit_code == 76
            with pytest.raises(VersionMismatch):
                async with control.events():
                    pass


def test_the_default_socket_is_the_daemons_own_variable(monkeypatch):
    monkeypatch.setenv("NETD_CONTROL__SOCKET", "/run/other.sock")
    assert str(default_socket()) == "/run/other.sock"
    monkeypatch.setenv("NETD_CONTROL__SOCKET", "")
    assert str(default_socket()) == "/run/netd/control.sock"
