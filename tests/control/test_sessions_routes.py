"""/v1/sessions over a real hub: lists, one session, its TCP, its path, messages and ends."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from netd.control.routes.sessions import LONGEST_TRACE
from netd.hub.config import HubConfig, Token
from netd.net.paths.path import Hop, Path
from tests.support.host import FakeSession
from tests.support.http import front_door, request


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"].startswith("cannot ")
    return error


def ids(response):
    assert response.status_code == 200, response.text
    return [one["id"] for one in response.json()["sessions"]]


@pytest.fixture
def alice(host):
    return FakeSession(host.hub, id="a" * 8, name="alice", tags={"device": "alpha"}, opened=1000.0)


@pytest.fixture
def bob(host):
    return FakeSession(host.hub, id="b" * 8, name="bob", transport="quic", tags={"device": "beta"}, opened=1001.5)


@pytest.fixture
def own(host):
    """The daemon's own: a tail of the control API."""
    return FakeSession(host.hub, id="own", name="alice", tags={"device": "alpha"}, internal=True)


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_all_sessions_but_the_daemons_own(user, alice, bob, own):
    answer = (await user.get("/v1/sessions")).json()
    assert [one["id"] for one in answer["sessions"]] == ["aaaaaaaa", "bbbbbbbb"]
    assert (answer["next"], answer["total"]) == (None, 2)
    assert answer["sessions"][0] == {
        "id": "aaaaaaaa",
        "name": "alice",
        "transport": "framed",
        "listener": "127.0.0.1:9000",
        "address": "192.0.2.7:5000",
        "tls": False,
        "tags": {"device": "alpha"},
        "token": None,
        "opened": 1000.0,
        "channels": 0,
        "messages_in": 0,
        "messages_out": 0,
        "bytes_in": 100,
        "bytes_out": 200,
        "outbox": 0,
        "pressed": False,
        "dropped": 0,
        "refused": 0,
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("transport=quic", ["bbbbbbbb"]),
        ("transport=x", []),
        ("tag=device=alpha", ["aaaaaaaa"]),
        ("tag=device=", []),
        ("tag=nothing=x", []),
        ("name=bob", ["bbbbbbbb"]),
        ("id=aaa", ["aaaaaaaa"]),
        ("id=own", []),
        ("name=bob&transport=framed", []),
        ("limit=1", ["aaaaaaaa"]),
    ],
)
async def test_some_of_them(user, alice, bob, own, query, found):
    assert ids(await user.get(f"/v1/sessions?{query}")) == found


async def test_pages_go_on_where_the_last_one_ended_even_if_its_last_session_has_left(user, host):
    sessions = [FakeSession(host.hub, opened=1000.0 + n // 3) for n in range(10)]
    seen, after = [], ""
    while after is not None:
        answer = (await user.get(f"/v1/sessions?limit=3{after and f'&after={after}'}")).json()
        seen += [one["id"] for one in answer["sessions"]]
        after = answer["next"]
        if len(seen) > 3:
            host.hub.close(host.hub.sessions[seen[-1]])
    assert sorted(seen) == sorted(one.session.id for one in sessions)
    assert len(seen) == 10


@pytest.mark.parametrize("query", ["limit=0", "limit=100000", "tag=device", "after=x", "after=1.5-x", "page=1"])
async def test_what_is_no_question(user, query):
    assert (await user.get(f"/v1/sessions?{query}")).status_code in (400, 422)


# --- one --------------------------------------------------------------------------------------------------------------


async def test_one_session_whole(user, host, alice):
    for channel in (b"chat:b", b"chat:a", b"\xff\x00"):
        host.hub.subscribe(alice.session, channel, checked=False)
    answer = (await user.get("/v1/sessions/aaaaaaaa")).json()
    assert answer["channels"] == 3
    assert answer["subscriptions"] == [
        {"name": "chat:a", "name64": None},
        {"name": "chat:b", "name64": None},
        {"name": None, "name64": "/wA="},
    ]
    assert answer["traceable"] is False


async def test_a_token_is_shown_by_its_name(user, host, alice):
    secret = "0123456789abcdef"
    host.hub.reconfigure(HubConfig(token=[Token(name="meters", secret=secret)]))
    alice.session.grants = host.hub.tokens.resolve(secret)
    response = await user.get("/v1/sessions/aaaaaaaa")
    assert response.json()["token"] == "meters"
    assert secret not in response.text


@pytest.mark.parametrize("path", ["own", "cccccccc", "name:alice", "%ff", "a/b", "aaaaaaaa%00", "%2e%2e"])
async def test_nobody(user, alice, own, path):
    assert (await user.get(f"/v1/sessions/{path}")).status_code == 404


# --- TCP --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()) as here:
        there, _ = listening.accept()
        with there:
            yield here, there


async def test_tcp_is_what_the_kernel_says(user, alice, pair):
    alice.socket = pair[0]
    answer = (await user.get("/v1/sessions/aaaaaaaa/tcp")).json()
    assert answer["state"] == 1, "ESTABLISHED"
    assert answer["snd_mss"] > 0


async def test_tcp_of_what_has_none_is_a_conflict_that_says_why(user, alice):
    assert "no socket of its own" in error_of(await user.get("/v1/sessions/aaaaaaaa/tcp"), 409)["message"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        alice.socket = ours
        assert "not TCP" in error_of(await user.get("/v1/sessions/aaaaaaaa/tcp"), 409)["message"]
    with socket.socket() as gone:
        alice.socket = gone
        gone.close()
        assert "gone" in error_of(await user.get("/v1/sessions/aaaaaaaa/tcp"), 409)["message"]


# --- its path ---------------------------------------------------------------------------------------------------------

PATH = Path(
    hops=(Hop(1, "192.0.2.1", 0.5, "ttl"), Hop(2, None, None, "silent")),
    method="tcp",
    reason="destination",
    dest_ttl=3,
    est_ttl=3,
    dest_rtt_ms=2.5,
    tcp_rtt_ms=2.25,
    probes=4,
    elapsed_ms=3.0,
)


class Tracer:
    """Finds PATH, or waits for ever."""

    def __init__(self, path: Path | None = PATH) -> None:
        self.path = path
        self.asked: list[tuple] = []
        self.begun = trio.Event()
        self.cancelled = False

    async def trace(self, carrier, options):
        self.asked.append((carrier, options))
        self.begun.set()
        try:
            await trio.lowlevel.checkpoint()
            if self.path is None:
                await trio.sleep_forever()
        except trio.Cancelled:
            self.cancelled = True
            raise
        return self.path


@pytest.fixture
def traceable(alice, pair):
    alice.socket, alice.carrier = pair[0], SimpleNamespace()
    return alice


async def test_a_trace_goes_through_the_sessions_own_carrier(root, host, traceable):
    host.tracer = Tracer()
    assert (await root.get("/v1/sessions/aaaaaaaa")).json()["traceable"] is True
    answer = (await root.post("/v1/sessions/aaaaaaaa/trace?max_hops=7&hop_timeout=0.5")).json()
    [(carrier, options)] = host.tracer.asked
    assert carrier is traceable.carrier
    assert (options.max_hops, options.timeout, options.share) == (7, 0.5, False)
    assert (answer["session"], answer["address"], answer["reason"]) == ("aaaaaaaa", "192.0.2.7:5000", "destination")
    assert (answer["dest_ttl"], answer["path_rtt_ms"], answer["tcp_rtt_ms"], answer["method"]) == (3, 2.5, 2.25, "tcp")
    assert [(hop["ttl"], hop["router"]) for hop in answer["hops"]] == [(1, "192.0.2.1"), (2, None)]


async def test_a_session_with_nothing_to_trace_with_ends_no_carrier(root, host, alice, pair):
    host.tracer = Tracer()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock, carrier in ((None, None), (pair[0], None), (ours, SimpleNamespace()), (None, SimpleNamespace())):
            alice.socket, alice.carrier = sock, carrier
            answer = (await root.post("/v1/sessions/aaaaaaaa/trace")).json()
            assert (answer["reason"], answer["hops"], answer["probes"]) == ("no-carrier", [], 0)
    assert host.tracer.asked == []


async def test_a_trace_has_an_end(root, host, traceable, autojump_clock):
    host.tracer = Tracer(None)
    began = trio.current_time()
    assert error_of(await root.post("/v1/sessions/aaaaaaaa/trace"), 503)["kind"] == "too-busy"
    assert trio.current_time() - began == LONGEST_TRACE
    assert host.tracer.cancelled


async def test_a_trace_ends_when_who_asked_for_it_is_gone(control, host, traceable, autojump_clock):
    host.tracer = Tracer(None)
    async with front_door(control.seen_by(0)) as (listener, _, _):
        peer = listener.connect()
        await peer.send(request("POST", "/v1/sessions/aaaaaaaa/trace", body=b""))
        await host.tracer.begun.wait()
        began = trio.current_time()
        await peer.vanish()
        await trio.testing.wait_all_tasks_blocked()
        assert host.tracer.cancelled
        assert trio.current_time() == began


@pytest.mark.parametrize("query", ["max_hops=0", "max_hops=64", "hop_timeout=nan", "hop_timeout=60", "rounds=3"])
async def test_what_is_no_trace(root, host, traceable, query):
    host.tracer = Tracer()
    assert (await root.post(f"/v1/sessions/aaaaaaaa/trace?{query}")).status_code in (400, 422)
    assert host.tracer.asked == []


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["aaaaaaaa", "name:alice", "tag:device=alpha", "name%3Aalice", "tag%3Adevice%3Dalpha"]
)
async def test_a_message_for_one(root, alice, bob, target):
    answer = await root.post(f"/v1/sessions/{target}/messages", json={"data": "hello"})
    assert (answer.status_code, answer.json()) == (200, {"delivered": 1})
    assert alice.said == [{"type": "direct", "data": "hello"}]
    assert bob.said == []


async def test_a_message_for_all_of_a_tag(root, host, alice):
    others = [FakeSession(host.hub, tags={"device": "alpha"}) for _ in range(3)]
    answer = (await root.post("/v1/sessions/tag:device=alpha/messages", json={"data": {"on": True}})).json()
    assert answer == {"delivered": 4}
    assert all(one.said == [{"type": "direct", "data": {"on": True}}] for one in (alice, *others))


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"data": None}, {"data": None}),
        ({"data": ""}, {"data": ""}),
        ({"data": [1, {"a": 2.5}]}, {"data": [1, {"a": 2.5}]}),
        ({"data": 2**64}, {"data": float(2**64)}),
        ({"data": [-(2**63), 2**64 - 1]}, {"data": [-(2**63), 2**64 - 1]}),
        ({"data": "x", "priority": 3.0}, {"data": "x"}),
        ({"data64": "AP8="}, {"data64": "AP8="}),
        ({"data64": ""}, {"data64": ""}),
    ],
)
async def test_whatever_the_message_is(root, alice, body, sent):
    assert (await root.post("/v1/sessions/aaaaaaaa/messages", json=body)).status_code == 200
    assert alice.said == [{"type": "direct", **sent}]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": 1, "data64": ""},
        {"data64": "=="},
        {"data64": "a b"},
        {"data64": None},
        {"data64": 5},
        {"data": 10**400},
        {"data": 1, "priority": 256},
        {"data": 1, "priority": 3.5},
        {"data": 1, "priority": "1"},
        {"data": 1, "ephemeral": 1},
        {"data": 1, "to": "x"},
        [],
    ],
)
async def test_what_is_no_message(root, alice, body):
    assert (await root.post("/v1/sessions/aaaaaaaa/messages", json=body)).status_code in (400, 422)
    assert alice.said == []


async def test_priority_and_ephemeral_reach_the_outbox(root, host, alice):
    await root.post("/v1/sessions/aaaaaaaa/messages", json={"data": "late"})
    await root.post("/v1/sessions/aaaaaaaa/messages", json={"data": "first", "priority": 0})
    assert [one["data"] for one in alice.said] == ["first", "late"]


async def test_a_full_outbox_is_not_delivered_to_and_is_not_nobody(root, host):
    slow = FakeSession(host.hub, bound=100, name="slow")
    answer = await root.post("/v1/sessions/name:slow/messages", json={"data": "x" * 1000})
    assert (answer.status_code, answer.json()) == (200, {"delivered": 0})
    assert slow.session.dropped == 1


async def test_a_message_for_nobody(root, alice, own):
    for target in ("own", "name:carol", "tag:device=gamma", "tag:x", "%ff"):
        error = error_of(await root.post(f"/v1/sessions/{target}/messages", json={"data": 1}), 404)
        assert error["path"] == "target"


async def test_a_name_may_hold_anything(root, host):
    odd = FakeSession(host.hub, name="a/b ?#%é")
    answer = await root.post("/v1/sessions/name%3Aa%2Fb%20%3F%23%25%C3%A9/messages", json={"data": 1})
    assert (answer.status_code, len(odd.said)) == (200, 1)


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_kicked_sessions_are_told_why_and_gone(root, host, alice, bob):
    answer = await root.delete("/v1/sessions/tag:device=alpha?code=4000&reason=maintenance")
    assert (answer.status_code, answer.json()) == (200, {"kicked": 1})
    assert alice.closed == (4000, "maintenance")
    assert bob.closed is None
    assert ids(await root.get("/v1/sessions")) == ["bbbbbbbb"]
    assert (await root.delete("/v1/sessions/bbbbbbbb")).json() == {"kicked": 1}
    assert bob.closed == (4010, "")
    error_of(await root.delete("/v1/sessions/bbbbbbbb"), 404)


@pytest.mark.parametrize("query", ["code=999", "code=5000", f"reason={'x' * 124}", "force=1"])
async def test_what_is_no_kick(root, alice, query):
    assert (await root.delete(f"/v1/sessions/aaaaaaaa?{query}")).status_code in (400, 422)
    assert alice.closed is None


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "aaaaaaaa/trace"), ("DELETE", "aaaaaaaa"), ("POST", "aaaaaaaa/messages")],
)
async def test_what_takes_write_access(user, host, traceable, method, path):
    host.tracer = Tracer()
    error = error_of(await user.request(method, f"/v1/sessions/{path}", json={"data": 1}), 403)
    assert error["kind"] == "denied"
    assert (traceable.said, traceable.closed, host.tracer.asked) == ([], None, [])
