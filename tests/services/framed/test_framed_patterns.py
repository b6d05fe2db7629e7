"""Subscriptions with wildcards from end to end: FramedClient, the framed service, a hub; reconnect and reload."""

from __future__ import annotations

import pytest
import trio

from netd.client import FramedClient, Gap, Reconnect
from netd.errors import RequestFailed
from netd.wire.messages import CloseCode
from tests.services.framed.lab import OPEN, PATIENCE, PUBLIC, House, eventually, serving

WILD = PUBLIC.model_copy(update={"wildcards": True, "history_size": 10})
HUB = OPEN.model_copy(update={"namespace": [WILD, PUBLIC.model_copy(update={"name": "plain"})]})
SOON = Reconnect(first=0.01, longest=0.05)


def client_of(house: House, codec: str) -> FramedClient:
    return FramedClient(("127.0.0.1", house.port()), codec=codec, reconnect=SOON)


async def take(subscription, count: int) -> list:
    with trio.fail_after(PATIENCE):
        return [await anext(subscription) for _ in range(count)]


@pytest.mark.parametrize("codec", ["json", "messagepack"])
async def test_a_pattern_yields_messages_of_many_channels(codec: str):
    async with serving(hub=HUB) as house, client_of(house, codec) as reader, client_of(house, codec) as writer:
        every = await reader.subscribe("public:a.*", pattern=True)
        own = await reader.subscribe("public:a.b")
        literal = await reader.subscribe("plain:a.*")
        assert (every.pattern, own.pattern, literal.pattern) == (True, False, False)
        with pytest.raises(RequestFailed, match=r"allows no wildcards \(hub.namespace.1.wildcards\)"):
            await reader.subscribe("plain:>", pattern=True)
        with pytest.raises(RequestFailed, match="pattern and no channel"):
            await writer.publish("public:a.*", "x")
        assert await writer.publish("public:a.b", "one") == 1  # the daemon says it once, and both yield it
        assert await writer.publish("public:a.\xe9", "two") == 1
        assert await writer.publish(b"public:a.\xff", b"\xff") == 1
        assert await writer.publish("public:a", "none") == 0
        assert await writer.publish("plain:a.*", "ordinary") == 1
        one, two, three = await take(every, 3)
        assert (one.channel, one.data, one.offset) == ("public:a.b", "one", 1)
        assert (two.channel, two.data) == ("public:a.\xe9", "two")
        assert (three.channel64, three.data) == (b"public:a.\xff", b"\xff")
        assert [each.data for each in await take(own, 1) + await take(literal, 1)] == ["one", "ordinary"]
        assert every.position is None
        assert own.position is not None
        assert [each.session for each in await writer.presence("public:a.*")] == [reader.session_id]

        # the connection breaks: what was missed is a Gap to the pattern, and the channel's own subscription has it
        (session,) = house.hub.find(reader.session_id or "")
        house.hub.end(session, CloseCode.TRY_LATER, "try again", resumable=True)
        await writer.publish("public:a.b", "missed")
        await eventually(lambda: reader.telemetry().counters.recovered == 1)
        await writer.publish("public:a.c", "later")
        assert [each.data for each in await take(own, 1)] == ["missed"]
        gap, *rest = await take(every, 2)
        assert gap == Gap("public:a.*", None)
        if rest[0].data == "missed":  # fetched for the other one, after this one was there again
            rest = await take(every, 1)
        assert [(each.channel, each.data) for each in rest] == [("public:a.c", "later")]

        # the rule is withdrawn
        off = HUB.model_copy(update={"namespace": [WILD.model_copy(update={"wildcards": False}), HUB.namespace[1]]})
        house.hub.reconfigure(off)
        with pytest.raises(RequestFailed, match=r"allows no wildcards \(hub.namespace.0.wildcards\)"):
            await take(every, 1)
        await writer.publish("public:a.b", "still here")
        assert [each.data for each in await take(own, 1)] == ["still here"]
