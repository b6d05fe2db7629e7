"""Who may do what: every route against every account."""

from __future__ import annotations

import os
import pwd
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest
import trio
from structlog.testing import capture_logs

from netd.control.access import AccessPolicy, by_hand, own_account
from netd.control.config import ControlConfig
from netd.net.http import Peer
from netd.net.rest import Access
from netd.runtime.bus import Bus, Missed, Notice
from netd.runtime.health import Health, WarningCleared, WarningRaised
from tests.control.conftest import NOBODY, ROOT, USER

READS = [
    ("GET", "/v1/status"),
    ("GET", "/v1/health"),
    ("GET", "/v1/ready"),
    ("GET", "/v1/metrics"),
    ("GET", "/v1/services"),
    ("GET", "/v1/services/trace"),
    ("GET", "/v1/changes"),
    ("GET", "/v1/config"),
    ("POST", "/v1/config/check"),
    ("GET", "/v1/config/diff"),
    ("GET", "/v1/config/schema"),
    ("GET", "/v1/log"),
    ("GET", "/v1/sessions"),
    ("GET", "/v1/channels"),
    ("GET", "/v1/hub"),
    ("GET", "/v1/tokens/revoked"),
]
# of one session or channel; test_sessions_routes.py, test_channels_routes.py and test_tokens_routes.py say who else may
MESSAGING = [
    ("GET", "/v1/sessions/{id}"),
    ("GET", "/v1/sessions/{id}/tcp"),
    ("POST", "/v1/sessions/{id}/trace"),
    ("DELETE", "/v1/sessions/{target}"),
    ("POST", "/v1/sessions/{target}/messages"),
    ("GET", "/v1/channels/trace"),
    ("GET", "/v1/channels/trace/history"),
    ("GET", "/v1/channels/trace/events"),
    ("POST", "/v1/channels/trace/messages"),
    ("POST", "/v1/tokens/revoked"),
]
WRITES = [
    ("POST", "/v1/services/trace/start"),
    ("POST", "/v1/services/trace/stop"),
    ("POST", "/v1/services/trace/restart"),
    ("POST", "/v1/reload"),
    ("PATCH", "/v1/config"),
    ("PUT", "/v1/log"),
]
BODIES = {"PATCH": {"trace.max_hops": 20}, "PUT": {"level": "debug"}}


def policy(config=None, own_uid=None):
    config = config or ControlConfig()
    return AccessPolicy(lambda: config, own_uid=own_uid)


async def level(policy, uid):
    return (await policy.caller(Peer(1, uid, uid))).access


async def test_the_lists_above_are_all_routes_there_are(control):
    routes = {
        (method.upper(), path.replace("{name}", "trace"))
        for path, item in control.app.openapi()["paths"].items()
        for method in item
    }
    elsewhere = {("GET", "/v1/events"), ("GET", "/v1/changes/{id}")}  # tests/control/test_events.py, test_routes.py
    assert routes - elsewhere == {*READS, *WRITES, *MESSAGING}


@pytest.mark.parametrize(("method", "path"), READS)
async def test_whoever_may_open_the_socket_may_read(method, path, user):
    assert (await user.request(method, path)).status_code == 200


@pytest.mark.parametrize(("method", "path"), WRITES)
async def test_only_some_may_write(method, path, control, host):
    with capture_logs() as logs:
        async with control.client(USER) as client:
            response = await client.request(method, path, json=BODIES.get(method))
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["kind"] == "denied"
    assert f"cannot {method} {path}: uid {USER} (pid 4321) has no write access" in error["message"]
    assert host.asked == []
    assert [(line["log_level"], line["uid"]) for line in logs if line["event"] == "request denied"] == [
        ("warning", USER)
    ]

    async with control.client(ROOT) as client:
        assert (await client.request(method, path, json=BODIES.get(method))).status_code in (200, 202)


@pytest.mark.parametrize(
    ("method", "path"), [*READS, *WRITES, *MESSAGING, ("GET", "/v1/events"), ("GET", "/v1/changes/x")]
)
async def test_a_peer_without_credentials_may_do_nothing(method, path, control, host):
    async with control.client(None) as client:
        assert (await client.request(method, path, json=BODIES.get(method))).status_code == 403
    assert host.asked == []


async def test_every_write_is_logged_with_who_asked(root):
    with capture_logs() as logs:
        await root.post("/v1/services/trace/stop")
    [line] = [line for line in logs if line["event"] == "write request"]
    assert (line["pid"], line["uid"], line["method"], line["path"]) == (4321, 0, "POST", "/v1/services/trace/stop")


async def test_access_follows_a_reload_on_open_connections(control, host):
    async with control.client(USER) as client:
        assert (await client.post("/v1/reload")).status_code == 403
        host.control_config = ControlConfig(users=[str(USER)])
        assert (await client.post("/v1/reload")).status_code == 202
        host.control_config = ControlConfig()
        assert (await client.post("/v1/reload")).status_code == 403


async def test_levels():
    config = ControlConfig(users=["1000", "daemon"], content_users=["1001", "1000"])
    rules = policy(config)
    assert await level(rules, 0) is Access.WRITE
    assert await level(rules, 1000) is Access.WRITE, "the higher of two counts"
    assert await level(rules, pwd.getpwnam("daemon").pw_uid) is Access.WRITE
    assert await level(rules, 1001) is Access.CONTENT
    assert await level(rules, NOBODY) is Access.READ
    assert (await rules.caller(None)).access is Access.NONE


async def test_an_account_that_does_not_exist_gets_nothing_and_is_a_health_warning():
    class Again(Notice):
        kind: ClassVar[str] = "again"
        service: ClassVar[str] = "netd"

    bus = Bus()
    health = Health(bus)
    config = ControlConfig(users=["no-such-user", "0"], content_users=["daemon", "nor-such-a-one"])
    rules = AccessPolicy(lambda: config, own_uid=None)
    told = bus.subscribe(WarningRaised, WarningCleared)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rules.watch, health, bus.subscribe(Again))
            raised = (await anext(told)).notice
            assert raised.message == "cannot give access to no-such-user, nor-such-a-one: no such account"
            assert "control.users" in raised.advice
            assert await level(rules, 1000) is Access.READ

            config = ControlConfig(users=["no-such-user"])
            bus.publish(Again())
            assert (await anext(told)).notice.message == "cannot give access to no-such-user: no such account"
            config = ControlConfig()
            bus.publish(Again())
            assert (await anext(told)).notice.code == raised.code
            assert health.warnings() == ()
            bus.close()


async def test_accounts_are_looked_up_again_every_minute_without_anybody_asking(monkeypatch):
    monkeypatch.setattr("netd.control.access._KEEP", 0.01)
    bus, made = Bus(), threading.Event()

    def getpwnam(name):
        if not made.is_set():
            raise KeyError(name)
        return SimpleNamespace(pw_uid=1000)

    monkeypatch.setattr("netd.control.access.pwd.getpwnam", getpwnam)
    told = bus.subscribe(WarningRaised, WarningCleared)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            rules = policy(ControlConfig(users=["alice"]))
            nursery.start_soon(rules.watch, Health(bus), bus.subscribe(Missed))
            assert isinstance((await anext(told)).notice, WarningRaised)
            made.set()
            assert isinstance((await anext(told)).notice, WarningCleared)
            bus.close()


async def test_a_lookup_holds_up_nobody_and_is_repeated(monkeypatch):
    looked_up = []

    def slow(name):
        looked_up.append((name, threading.current_thread() is threading.main_thread()))
        return SimpleNamespace(pw_uid=1000 + len(looked_up))

    now = [0.0]
    monkeypatch.setattr("netd.control.access.pwd.getpwnam", slow)
    monkeypatch.setattr("netd.control.access.time.monotonic", lambda: now[0] + 1000)
    rules = policy(ControlConfig(users=["alice"]))
    assert await level(rules, 1001) is Access.WRITE
    assert await level(rules, 1001) is Access.WRITE
    now[0] = 61.0
    assert await level(rules, 1001) is Access.READ, "the name is another account by now"
    assert await level(rules, 1002) is Access.WRITE
    assert looked_up == [("alice", False)] * 2


async def test_who_runs_the_daemon_by_hand_may_write_and_a_packaged_service_may_not():
    assert await level(policy(own_uid=1234), 1234) is Access.WRITE
    assert await level(policy(own_uid=None), 1234) is Access.READ


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, True),
        ({"SYSTEMD_EXEC_PID": "100"}, False),
        ({"SYSTEMD_EXEC_PID": "99"}, False),  # a wrapper
        ({"SYSTEMD_EXEC_PID": "50"}, True),  # inherited, by way of a shell, from a terminal that is a service
        ({"INVOCATION_ID": "0123"}, True),  # likewise
        ({"SYSTEMD_EXEC_PID": "10"}, True),
    ],
)
def test_telling_a_service_from_a_person(environ, expected):
    assert by_hand(environ, 100, 99) is expected


def test_own_account():
    assert own_account({}) == os.geteuid()
    assert own_account({"SYSTEMD_EXEC_PID": str(os.getpid())}) is None


async def test_application_code_that_the_daemon_runs_has_no_access_unless_a_list_names_its_account():
    running = [None, USER]
    plain = AccessPolicy(lambda: ControlConfig(), own_uid=None, code_uid=lambda: running[-1])
    assert (await plain.caller(Peer(1, USER, USER))).access is Access.NONE
    assert (await plain.caller(Peer(1, NOBODY, NOBODY))).access is Access.READ
    named = AccessPolicy(lambda: ControlConfig(content_users=[str(USER)]), own_uid=None, code_uid=lambda: USER)
    assert (await named.caller(Peer(1, USER, USER))).access is Access.CONTENT
    running.pop()
    assert (await plain.caller(Peer(1, USER, USER))).access is Access.READ
