"""What an answer says of a hop. No socket: the receivers are a list."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from netd.net.paths.inflight import Flight
from netd.net.paths.looped import Endpoints
from netd.net.paths.round import Probe
from netd.wire.dsack import Duplicate
from netd.wire.icmp import IcmpError, MplsLabel
from netd.wire.ip import pack_address
from netd.wire.probes import Segment
from tests.support import packets

if TYPE_CHECKING:
    from netd.net.paths.path import Hop

US, PEER, ROUTER = (pack_address(text) for text in ("192.0.2.1", "198.51.100.7", "203.0.113.9"))
FIRST = 5000


class Recorder:
    """Stands for the receivers and the round."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.hops: list[Hop] = []
        self.reached_at: list[tuple[int, int | None]] = []

    def send(self, packet: bytes, to: object) -> None:
        self.packets.append(packet)

    def replied(self, ttl: int, answer: Hop, now: float) -> None:
        self.hops.append(answer)

    def reached(self, ttl: int, rtt_ms: float, away: int | None, now: float) -> None:
        self.reached_at.append((ttl, away))


@pytest.fixture
async def recorder():
    return Recorder()


@pytest.fixture
async def flight(recorder):
    segment = Segment(US, PEER, 0x10, 0, packets.tcp(8080, 50000), FIRST, bytes(96))
    flight = Flight(None, Endpoints(US, 8080, PEER, 50000, 0), segment, recorder)
    flight.round = recorder
    for ttl in range(1, 6):
        flight.send(Probe(ttl, 0))
    return flight


def error(ttl: int, **changes) -> IcmpError:
    whole = IcmpError(True, 0, ROUTER, 60, US, PEER, 0x10, 8080, 50000, FIRST + ttl - 1)
    return dataclasses.replace(whole, **changes)


def duplicate(left: int, right: int, **changes) -> Duplicate:
    return dataclasses.replace(Duplicate(PEER, 50000, 8080, 52, left, right), **changes)


async def test_a_plain_answer(flight, recorder):
    assert flight.on_error(error(3), 1 << 62)
    hop = recorder.hops[0]
    assert (hop.ttl, hop.addr, hop.kind, hop.reply_ttl) == (3, "203.0.113.9", "ttl", 60)
    assert (hop.nat, hop.mpls, hop.unreach_code, hop.quoted_tos, hop.next_mtu) == (False, (), None, None, None)
    assert hop.rtt_ms > 0


async def test_an_arrival_before_the_send_is_taken_as_none_at_all_passing(flight, recorder):
    """The wall clock was set back in between."""
    assert flight.on_error(error(3), 0)
    assert recorder.hops[0].rtt_ms == 0.0


@pytest.mark.parametrize(
    "changes",
    [
        {"source": PEER},
        {"quoted_destination": pack_address("10.0.0.5")},
        {"quoted_source": pack_address("10.0.0.6")},
        {"destination_port": 40000},
    ],
)
async def test_a_nat_shows_in_the_quote_or_in_the_source(flight, recorder, changes):
    assert flight.on_error(error(2, **changes), 1)
    assert recorder.hops[0].nat


async def test_what_else_an_answer_tells(flight, recorder):
    labels = (MplsLabel(16001, 0, True, 1),)
    flight.on_error(error(1, mpls=labels, quoted_tos=0), 1)
    flight.on_error(error(2, expired=False, code=13, next_mtu=1400), 1)
    first, second = recorder.hops
    assert (first.mpls, first.quoted_tos) == (labels, 0)
    assert (second.kind, second.unreach_code, second.next_mtu) == ("unreach", 13, 1400)


@pytest.mark.parametrize("seq", [FIRST - 1, FIRST + 5, FIRST + 96, 0])
async def test_only_what_was_sent_is_answered(flight, recorder, seq):
    """Forged, or of another round: the sequence number is of no probe, or of one not sent."""
    assert not flight.on_error(error(1, seq=seq), 1)
    assert not flight.on_duplicate(duplicate(seq, seq + 1), 1)
    assert recorder.hops == recorder.reached_at == []


async def test_the_peer_names_one_byte_or_several(flight, recorder):
    assert flight.on_duplicate(duplicate(FIRST + 4, FIRST + 5), 1)
    assert recorder.reached_at == [(5, 13)]
    recorder.reached_at.clear()
    assert flight.on_duplicate(duplicate(FIRST + 2, FIRST + 5), 1)
    assert [ttl for ttl, _ in recorder.reached_at] == [3, 4, 5]


async def test_a_block_without_end_costs_no_time(flight, recorder):
    assert flight.on_duplicate(duplicate(FIRST, FIRST - 1), 1)
    assert [ttl for ttl, _ in recorder.reached_at] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("changes", [{"source": ROUTER}, {"source_port": 50001}])
async def test_another_peers_duplicate_is_not_ours(flight, recorder, changes):
    assert not flight.on_duplicate(duplicate(FIRST, FIRST + 1, **changes), 1)
