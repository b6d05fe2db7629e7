"""What one read blows up to when it is decompressed: handed over in parts, each of which may leave before the next.

Otherwise 25 KiB of whoever may publish are 19 MiB at once for everybody who hears it, who would be cut off (4008) for
reading no faster than that.
"""

from __future__ import annotations

from collections import Counter

import pytest

from netd.net.stream import READ
from netd.wire.websocket import BINARY, frame
from tests.services.broker.lab import eventually, listening, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE

COUNT, SIZE = 300, 60_000
OFFER = "permessage-deflate"
MOST = 2 * READ + SIZE
"""Bytes of one turn: the rest of one piece of a read, the next until that is too much, and a whole message."""


class Turns:
    """How many bytes are published in each round of the reactor, and in which order."""

    def __init__(self, house) -> None:
        self.sizes: Counter[int] = Counter()
        self.payloads: list[bytes] = []
        publish = house.hub.publish_many

        def counting(session, channel, payloads, **more):
            self.sizes[house.reactor.snapshot().batches] += sum(map(len, payloads))
            self.payloads += payloads
            publish(session, channel, payloads, **more)

        house.hub.publish_many = counting


def burst(client) -> tuple[bytes, list[bytes]]:
    """Messages that are hardly longer than their headers when they are compressed, and some that are not compressed."""
    payloads = [bytes([i % 251]) * (10 if i % 7 == 0 else SIZE) for i in range(COUNT)]
    frames = [
        frame(BINARY, payload, key=b"abcd")
        if i % 7 == 0
        else frame(BINARY, client.packer.message(payload), key=b"abcd", compressed=True)
        for i, payload in enumerate(payloads)
    ]
    stream = b"".join(frames)
    assert len(stream) < 40_000
    return stream, payloads


@pytest.mark.parametrize("rate", [0, 1_000_000])
@pytest.mark.parametrize("takeover", [True, False])
async def test_a_row_of_small_bombs_is_little_more_at_once_than_a_read(takeover, rate):
    async with serving(deflate=True, client_takeover=takeover, input_rate=rate, input_burst=rate) as house:
        speaker = await house.client("/ws/public:room?role=pub", offer=OFFER)
        turns = Turns(house)
        stream, payloads = burst(speaker)
        await speaker.raw(stream)
        await speaker.ping(b"done")
        assert await speaker.pong() == b"done"  # what stands behind is served behind
        assert turns.payloads == payloads
        assert max(turns.sizes.values()) < MOST
        [connection] = house.exchange.connections
        assert not connection.held
        # paid for once, however often they were put back
        assert connection._bucket is None or connection._bucket.tokens > rate - 2 * len(stream)


@pytest.mark.parametrize("number", [0, 1])
async def test_what_is_left_is_served_though_its_sender_has_gone(number, tls):
    async with serving(listening(), listening(tls=tls), deflate=True, client_takeover=True) as house:
        context = trusting(FIRST_CERTIFICATE) if number else None
        speaker = await house.client("/ws/public:room?role=pub", number, tls=context, offer=OFFER)
        turns = Turns(house)
        stream, payloads = burst(speaker)
        await speaker.raw(stream)
        await speaker.stream.aclose()
        await eventually(lambda: not house.exchange.connections)
        assert turns.payloads == payloads
        assert max(turns.sizes.values()) < MOST


async def test_who_ends_before_its_turn_comes_again_is_not_served_any_more():
    async with serving(deflate=True, client_takeover=True) as house:
        speaker = await house.client("/ws/public:room?role=pub", offer=OFFER)
        turns = Turns(house)
        [connection] = house.exchange.connections

        def ends(session, channel, payloads, **more):
            turns.payloads += payloads
            connection.end(1000, "enough")

        house.hub.publish_many = ends
        stream, _ = burst(speaker)
        await speaker.raw(stream)
        assert (await speaker.ended()).reason == "enough"
        assert 0 < len(turns.payloads) < COUNT
