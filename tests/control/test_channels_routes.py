"""/v1/channels and /v1/hub over a real hub: lists, history, publishing, and the stream of a channel."""

from __future__ import annotations

import json
from base64 import b64decode
from contextlib import aclosing

import pytest
import trio
import trio.testing

from netd.control import tail
from netd.control.routes.messages import shown
from netd.errors import TooBusy
from netd.hub.config import HubConfig, Namespace
from netd.net.http import HttpLimits
from tests.control.conftest import ROOT, USER
from tests.control.test_events import Stream
from tests.support.host import FakeSession
from tests.support.http import conversation, front_door, request

READER = 2000
"""An account that may see content."""


@pytest.fixture
async def reader(control, host):
    host.control_config = host.control_config.model_copy(update={"content_users": [str(READER)]})
    async with control.client(READER) as client:
        yield client


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"].startswith("cannot ")
    return error


def names(response):
    assert response.status_code == 200, response.text
    return [one["name"] or b64decode(one["name64"]) for one in response.json()["channels"]]


def say(host, channel: bytes, *texts) -> None:
    for text in texts:
        host.hub.publish(channel, text)


# --- totals -----------------------------------------------------------------------------------------------------------


async def test_totals_of_the_hub_and_its_reactor(user, host):
    session = FakeSession(host.hub)
    host.hub.subscribe(session.session, b"chat:a", checked=False)
    say(host, b"chat:a", "x")
    answer = (await user.get("/v1/hub")).json()
    hub = answer["hub"]
    assert (hub["sessions"], hub["channels"], hub["subscriptions"], hub["published"], hub["delivered"]) == (1,) * 5
    assert {one["name"]: one["published"] for one in hub["namespaces"]}["chat"] == 1
    assert answer["reactor"]["streams"] == 0


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_channels_that_are_heard_or_have_a_history_by_name(user, host):
    session = FakeSession(host.hub)
    host.hub.subscribe(session.session, b"news:b", checked=False)
    say(host, b"chat:a", "x", "y")
    say(host, b"news:nobody hears", "z")
    answer = (await user.get("/v1/channels")).json()
    [chat, news] = answer["channels"]
    assert (chat["name"], chat["subscribers"], chat["offset"], chat["history"]) == ("chat:a", 0, 2, 2)
    assert news == {
        "name": "news:b",
        "name64": None,
        "subscribers": 1,
        "epoch": None,
        "offset": None,
        "history": 0,
        "pattern": False,
    }
    assert answer["next"] is None


async def test_pages_and_prefixes(user, host):
    all_of_them = [b"chat:%d" % n for n in range(10)] + [b"chat:\xff\xfe", b"chat:\xff\xff"]
    for name in all_of_them:
        say(host, name, "x")
    seen, after = [], ""
    while after is not None:
        response = await user.get(f"/v1/channels?limit=5&prefix=chat:{after and f'&after={after}'}")
        seen += names(response)
        after = response.json()["next"]
    assert [one if isinstance(one, bytes) else one.encode() for one in seen] == all_of_them
    assert names(await user.get("/v1/channels?prefix=chat:3")) == ["chat:3"]
    assert names(await user.get("/v1/channels?prefix=news")) == []


@pytest.mark.parametrize("query", ["limit=0", "limit=9999", "after=%20", "after=abc", "order=x"])
async def test_what_is_no_question(user, query):
    assert (await user.get(f"/v1/channels?{query}")).status_code in (400, 422)


async def test_one_channel_and_who_hears_it(user, host):
    alice = FakeSession(host.hub, id="a", name="alice", tags={"device": "alpha"})
    own = FakeSession(host.hub, internal=True)
    for session in (alice, own):
        host.hub.subscribe(session.session, b"chat:a", checked=False)
    answer = (await user.get("/v1/channels/chat:a")).json()
    assert answer["presence"] == [{"session": "a", "name": "alice", "transport": "framed", "tags": {"device": "alpha"}}]
    error = error_of(await user.get("/v1/channels/chat:b"), 404)
    assert (error["path"], "'chat:b'" in error["message"]) == ("name", True)


async def test_patterns_are_shown_with_who_subscribed_to_them_and_are_no_channels(root, reader, host):
    host.hub.reconfigure(HubConfig(namespace=[Namespace(name="chat", history_size=5, wildcards=True)]))
    alice = FakeSession(host.hub, id="a")
    host.hub.subscribe(alice.session, b"chat:*.b", checked=False)
    say(host, b"chat:a.b", "x")
    listed = (await root.get("/v1/channels")).json()["channels"]
    assert [(one["name"], one["subscribers"], one["pattern"]) for one in listed] == [
        ("chat:*.b", 1, True),
        ("chat:a.b", 0, False),
    ]
    shown = (await root.get("/v1/channels/chat:*.b")).json()
    assert (shown["pattern"], [one["session"] for one in shown["presence"]]) == (True, ["a"])
    error_of(await root.get("/v1/channels/chat:*.c"), 404)
    assert (await root.get("/v1/hub")).json()["hub"]["patterns"] == 1
    assert "pattern" in error_of(await reader.get("/v1/channels/chat:*.b/history"), 400)["message"]
    assert "pattern" in error_of(await root.post("/v1/channels/chat:*.b/messages", json={"data": "x"}), 400)["message"]
    session = (await root.get("/v1/sessions/a")).json()
    assert session["subscriptions"] == [{"name": "chat:*.b", "name64": None}]


async def test_following_a_pattern_shows_each_channel(control, host):
    host.hub.reconfigure(HubConfig(namespace=[Namespace(name="chat", wildcards=True)]))
    reader = tail.Tail(host.hub, b"chat:>", None, set())
    async with aclosing(reader.events()) as events:
        seen = []
        async for kind, fields in events:
            seen.append((kind, fields))
            if kind == "subscribed":
                say(host, b"chat:a", "x")
                say(host, b"chat:b.c", "y")
            if len(seen) == 3:
                break
    assert seen[0] == ("subscribed", {"channel": "chat:>", "pattern": True})
    assert [(fields["channel"], fields["data"]) for _, fields in seen[1:]] == [("chat:a", "x"), ("chat:b.c", "y")]
    assert host.hub.patterns() == []


NAMES = {"chat:a%2Fb%2Fhistory": b"chat:a/b/history", "%ff%00": b"\xff\x00", "chat:%25ff": b"chat:%ff", "%2e%2e": b".."}


@pytest.mark.parametrize("encoded", NAMES)
async def test_a_name_in_a_path_is_its_bytes(root, reader, host, encoded):
    session = FakeSession(host.hub)
    host.hub.subscribe(session.session, NAMES[encoded], checked=False)
    assert (await root.post(f"/v1/channels/{encoded}/messages", json={"data": "x"})).json()["delivered"] == 1
    answer = (await root.get(f"/v1/channels/{encoded}")).json()
    assert (answer["name"].encode() if answer["name"] else b64decode(answer["name64"])) == NAMES[encoded]
    history = await reader.get(f"/v1/channels/{encoded}/history")
    assert history.status_code == (200 if NAMES[encoded].startswith(b"chat:") else 409)


async def test_a_name_of_any_bytes_passes_the_front_door(control, host):
    async with conversation(control.seen_by(ROOT)) as peer:
        json_body = ["Content-Type: application/json"]
        await peer.send(request("POST", "/v1/channels/chat:%ff%2F%00/messages", b'{"data": 1}', json_body))
        assert (await peer.response("POST")).status == 200
    assert [one.name for one in host.hub.channels()] == [b"chat:\xff/\x00"]


async def test_a_name_has_1_to_255_bytes(root):
    assert (await root.post(f"/v1/channels/{'%ff' * 255}/messages", json={"data": 1})).status_code == 200
    assert error_of(await root.post(f"/v1/channels/{'a' * 256}/messages", json={"data": 1}), 404)["path"] == "name"
    assert (await root.get("/v1/channels//history")).status_code == 404


# --- publishing and history -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channel", "namespace"), [("secret:x", "secret"), ("plain", "")])
async def test_a_channel_of_no_namespace_is_said_to_be_one(root, reader, channel, namespace):
    answer = (await root.post(f"/v1/channels/{channel}/messages", json={"data": "x"})).json()
    remark = f"no namespace '{namespace}' is configured: clients cannot hear it"
    assert answer == {"delivered": 0, "remark": remark}
    error = error_of(await reader.get(f"/v1/channels/{channel}/history"), 409)
    assert error["message"].endswith(f": there is no namespace '{namespace}' (hub.namespace)")


async def test_what_is_published_reaches_subscribers_and_the_history(root, reader, host):
    sessions = [FakeSession(host.hub) for _ in range(3)]
    for one in sessions:
        host.hub.subscribe(one.session, b"chat:a", checked=False)
    assert (await root.post("/v1/channels/chat:a/messages", json={"data": {"n": 1}})).json() == {"delivered": 3}
    assert (await root.post("/v1/channels/chat:a/messages", json={"data64": "AP8="})).json()["delivered"] == 3
    said = [one for one in sessions[0].said if one["type"] == "message"]
    assert [(one["offset"], one.get("data", one.get("data64"))) for one in said] == [(1, {"n": 1}), (2, "AP8=")]
    answer = (await reader.get("/v1/channels/chat:a/history")).json()
    assert (answer["offset"], answer["complete"], answer["epoch"]) == (2, True, said[0]["epoch"])
    first, second = answer["messages"]
    assert (first["data"], first["data64"], first["offset"], first["from"]) == ({"n": 1}, None, 1, None)
    assert (second["data"], second["data64"]) == (None, "AP8=")
    assert abs(first["time"] - second["time"]) < 60


async def test_history_from_a_position_and_its_newest(reader, host):
    say(host, b"chat:a", *map(str, range(1, 11)))
    epoch = host.hub.channel(b"chat:a").epoch

    async def history(query):
        answer = (await reader.get(f"/v1/channels/chat:a/history?{query}")).json()
        return [int(one["data"]) for one in answer["messages"]], answer["complete"]

    assert await history("limit=3") == ([8, 9, 10], False)
    assert await history(f"since={epoch}-7") == ([8, 9, 10], True)
    assert await history(f"since={epoch}-2&limit=3") == ([3, 4, 5], False)
    assert (await history("since=another-7"))[1] is False


async def test_no_history_is_a_conflict_that_names_the_key(reader, host):
    error = error_of(await reader.get("/v1/channels/news:a/history"), 409)
    assert "history_size" in error["message"]


@pytest.mark.parametrize("since", ["x", "-1", "e-", "e-99999999999999999999", f"e-{2**53}", "%C3%A9-1", "a%0A-1"])
async def test_what_is_no_position(reader, since):
    assert (await reader.get(f"/v1/channels/chat:a/history?since={since}")).status_code == 422
    assert (await reader.get(f"/v1/channels/chat:a/events?since={since}")).status_code == 422


async def test_what_messagepack_can_say_and_json_cannot_is_shown_all_the_same(reader, host):
    say(host, b"chat:a", {"raw": b"\xff"}, [b""])
    answer = (await reader.get("/v1/channels/chat:a/history")).json()
    assert [one["data"] for one in answer["messages"]] == [{"raw": "/w=="}, [""]]
    assert shown({None: object()})["data"].startswith("{None: <object"), "of a backplane's making, say"


async def test_a_message_that_the_channel_does_not_take(root, host):
    error = error_of(await root.post("/v1/channels/chat:a/messages", json={"data": "x" * 70_000}), 400)
    assert "max_message" in error["message"]


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["history", "events"])
async def test_content_is_not_for_everybody(user, host, path):
    say(host, b"chat:a", "secret")
    response = await user.get(f"/v1/channels/chat:a/{path}")
    assert error_of(response, 403)["kind"] == "denied"
    assert "secret" not in response.text


async def test_publishing_takes_write_access(reader, user, host):
    for client in (reader, user):
        error_of(await client.post("/v1/channels/chat:a/messages", json={"data": 1}), 403)
    assert host.hub.channel(b"chat:a").epoch is None


# --- the stream -------------------------------------------------------------------------------------------------------


class Tailing:
    def __init__(self, control, listener) -> None:
        self.control, self.listener = control, listener

    async def open(self, target="/v1/channels/chat:a/events", *, headers=(), lockstep=False) -> Stream:
        """A reader that has been told it is subscribed."""
        stream = await Stream(self.listener.connect(lockstep=lockstep)).open(target, headers)
        assert b"HTTP/1.1 200 " in stream.head, stream.head
        return stream


@pytest.fixture
async def tailing(control, host):
    async with front_door(control.seen_by(ROOT), limits=HttpLimits(write_timeout=600)) as (
        listener,
        draining,
        returned,
    ):
        yield Tailing(control, listener)
        draining.set()
        await returned.wait()
    internal = [one for one in host.hub.sessions.values() if one.internal]
    assert internal == [], "a tail is gone when its reader is"


async def test_messages_arrive_as_they_are_published(tailing, host, autojump_clock):
    stream = await tailing.open()
    subscribed = await stream.next()
    assert subscribed["event"] == "subscribed"
    epoch = json.loads(subscribed["data"])["epoch"]
    assert json.loads(subscribed["data"]) == {"channel": "chat:a", "epoch": epoch, "offset": 0}
    assert subscribed["id"] == f"{epoch}-0"
    alice = FakeSession(host.hub, id="a", name="alice")
    host.hub.subscribe(alice.session, b"chat:a", checked=False)
    host.hub.publish(b"chat:a", "hello", sender=alice.session)
    host.hub.publish(b"chat:a", b"\xff")
    host.hub.unsubscribe(alice.session, b"chat:a")
    events = [await stream.next() for _ in range(4)]
    assert [one["event"] for one in events] == ["joined", "message", "message", "left"]
    assert json.loads(events[0]["data"]) == {"session": "a", "name": "alice", "channel": "chat:a"}
    assert events[1]["id"] == f"{epoch}-1"
    message = {"channel": "chat:a", "from": "a", "data": "hello", "offset": 1, "epoch": epoch}
    assert json.loads(events[1]["data"]) == message
    assert json.loads(events[2]["data"])["data64"] == "/w=="


async def test_a_tail_is_seen_by_nobody(tailing, user, host, autojump_clock):
    alice = FakeSession(host.hub)
    host.hub.subscribe(alice.session, b"chat:a", checked=False)
    stream = await tailing.open()
    await stream.next()
    assert (await user.get("/v1/sessions")).json()["total"] == 1
    assert len((await user.get("/v1/channels/chat:a")).json()["presence"]) == 1
    assert host.hub.broadcast("x") == 1
    assert [one["type"] for one in alice.said] == ["broadcast"], "nor told of"


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_reader_that_comes_back_goes_on_where_it_was(by_header, tailing, host, autojump_clock):
    say(host, b"chat:a", "1", "2", "3")
    position = f"{host.hub.channel(b'chat:a').epoch}-1"
    if by_header:
        stream = await tailing.open(headers=[f"Last-Event-ID: {position}"])
    else:
        stream = await tailing.open(f"/v1/channels/chat:a/events?since={position}")
    assert json.loads((await stream.next())["data"])["recovered"] is True
    say(host, b"chat:a", "4")
    assert [json.loads((await stream.next())["data"])["data"] for _ in range(3)] == ["2", "3", "4"]


async def test_a_reader_from_another_epoch_is_told_that_something_is_lost(tailing, host, autojump_clock):
    say(host, b"chat:a", "1")
    stream = await tailing.open("/v1/channels/chat:a/events?since=another-1")
    assert json.loads((await stream.next())["data"])["recovered"] is False


async def test_a_channel_without_a_history_has_no_positions(tailing, host, autojump_clock):
    stream = await tailing.open("/v1/channels/news:a/events")
    assert "id" not in await stream.next()
    say(host, b"news:a", "x")
    event = await stream.next()
    assert ("id" in event, json.loads(event["data"])) == (False, {"channel": "news:a", "data": "x"})


async def test_priorities_do_not_disturb_the_order_that_positions_need(tailing, host, autojump_clock):
    stream = await tailing.open()
    await stream.next()
    for priority in (200, 0, 128):
        host.hub.publish(b"chat:a", "x", priority=priority)
    offsets = [json.loads((await stream.next())["data"])["offset"] for _ in range(3)]
    assert offsets == [1, 2, 3]


async def test_a_slow_reader_loses_the_oldest_and_is_told_how_many(tailing, host, autojump_clock, monkeypatch):
    monkeypatch.setattr(tail, "BOUND", 100_000)
    stream = await tailing.open("/v1/channels/news:a/events", lockstep=True)
    await stream.next()
    total = 3000
    for number in range(total):
        host.hub.publish(b"news:a", f"{number:>200}")
    [session] = [one for one in host.hub.sessions.values() if one.internal]
    assert session.outbox.size <= 4 * 2**20
    seen, lost = [], 0
    while not seen or seen[-1] < total - 1:
        event = await stream.next()
        if event["event"] == "missed":
            lost += json.loads(event["data"])["count"]
        else:
            seen.append(int(json.loads(event["data"])["data"]))
    assert lost > 0
    assert len(seen) + lost == total, "each is delivered or counted"
    assert seen == sorted(seen)


async def test_a_message_longer_than_may_wait_is_missed_and_the_reader_stays(tailing, host, autojump_clock):
    stream = await tailing.open("/v1/channels/news:a/events")
    await stream.next()
    say(host, b"news:a", "x" * (tail.BOUND + 1), "y")
    assert [(await stream.next())["event"] for _ in range(2)] == ["missed", "message"]


async def test_a_reader_that_hangs_up_is_forgotten(tailing, host, autojump_clock):
    stream = await tailing.open()
    await stream.next()
    assert len(host.hub.sessions) == 1
    await stream.peer.vanish()
    await trio.testing.wait_all_tasks_blocked()
    assert len(host.hub.sessions) == 0
    assert host.hub.channel(b"chat:a").subscribers == 0


async def test_there_are_only_so_many_readers(tailing, host, autojump_clock, monkeypatch):
    monkeypatch.setattr(tail, "MAX_TAILS", 2)
    first, second = [await tailing.open() for _ in range(2)]
    assert [(await one.next())["event"] for one in (first, second)] == ["subscribed"] * 2
    third = await tailing.open()
    refused = await third.next()
    assert (refused["event"], json.loads(refused["data"])["error"]["kind"]) == ("error", "too-busy")
    await first.peer.vanish()
    await trio.testing.wait_all_tasks_blocked()
    assert (await (await tailing.open()).next())["event"] == "subscribed"


async def test_a_reader_whom_the_hub_does_not_let_in_takes_no_place(tailing, host, autojump_clock, monkeypatch):
    monkeypatch.setattr(tail, "MAX_TAILS", 1)

    def full(session):
        raise TooBusy("cannot open a session: the hub is full")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(host.hub, "open", full)
        refused = await (await tailing.open()).next()
        assert (refused["event"], "hub is full" in refused["data"]) == ("error", True)
    assert (await (await tailing.open()).next())["event"] == "subscribed"


async def test_what_the_hub_refuses_is_an_error_event(tailing, host, autojump_clock):
    host.hub.reconfigure(host.hub.config.model_copy(update={"max_channels": 1}))
    other = FakeSession(host.hub)
    host.hub.subscribe(other.session, b"news:taken", checked=False)
    refused = await (await tailing.open()).next()
    assert (refused["event"], "max_channels" in refused["data"]) == ("error", True)


async def test_a_subscription_that_the_hub_ends_says_so(tailing, host, autojump_clock):
    stream = await tailing.open()
    await stream.next()
    [session] = [one for one in host.hub.sessions.values() if one.internal]
    session.link.close(1001, "going away")
    event = await stream.next()
    assert (event["event"], json.loads(event["data"])) == ("closed", {"reason": "going away"})
    with pytest.raises(EOFError):
        await stream.next()


async def test_drain_ends_the_stream_with_a_word(control, host, autojump_clock):
    async with front_door(control.seen_by(ROOT)) as (listener, draining, returned):
        stream = await Tailing(control, listener).open()
        await stream.next()
        draining.set()
        assert (await stream.next())["event"] == "ended"
        await returned.wait()
    assert host.hub.sessions == {}


async def test_who_may_not_read_content_may_not_follow(control, host, autojump_clock):
    async with front_door(control.seen_by(USER)) as (listener, _, _):
        stream = await Stream(listener.connect()).open("/v1/channels/chat:a/events")
        assert b" 403 " in stream.head
    assert host.hub.sessions == {}
