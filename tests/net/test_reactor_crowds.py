"""One message to many: what the reactor takes out of their outboxes by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from netd.hub.outbox import Outbox, OutboxRules, Shared
from netd.net.timers import SLICE
from tests.net.reactor_lab import PATIENCE, End, connect, exactly, running, until

if TYPE_CHECKING:
    from netd.net.reactor import Reactor

MESSAGE = b"news for all" * 5
RULES = OutboxRules()


class Member(End):
    """An endpoint with the hub's outbox."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.outbox = Outbox(RULES, reactor, self)

    def pressure(self, over: bool) -> None: ...
    def overflow(self) -> None: ...


class Publisher(End):
    """What it receives is sent at once, as three messages, to `to`; `others` is who was left out, each time."""

    def __init__(self, reactor: Reactor, to: list[Outbox], times: int = 1) -> None:
        super().__init__(reactor)
        self.others: list[list[Outbox]] = []
        self._to = to
        self._times = times
        self.first: list[tuple[Outbox, bytes]] = []
        """What is said to some before that."""

    def receive(self, data: bytes) -> None:
        super().receive(data)
        for outbox, other in self.first:
            outbox.push(other)
        for _ in range(self._times):
            self.others.append(self.outbox.reactor.send_at_once(list(self._to), data, 3))


def members(reactor: Reactor, count: int, **how) -> list[tuple[trio.socket.SocketType, Member]]:
    return [connect(reactor, end=Member(reactor), **how) for _ in range(count)]


def tell(reactor: Reactor, ends: list[Member], message: bytes = MESSAGE) -> None:
    alone = Shared((message,))
    for end in ends:
        assert not end.outbox.size
        end.outbox.chunks, end.outbox.size = alone, len(message)
    reactor.mark_crowd([end.outbox for end in ends], alone)


async def test_everybody_is_sent_it_and_it_is_counted():
    async with running() as reactor:
        made = members(reactor, 40)
        await until(lambda: reactor._parked)
        tell(reactor, [end for _, end in made])
        assert reactor.snapshot().dirty == 40
        for peer, end in made:
            assert await exactly(peer, len(MESSAGE)) == MESSAGE
            assert (end.outbox.size, end.outbox.messages, end.stream.bytes_out) == (0, 1, len(MESSAGE))
        assert reactor.snapshot().dirty == 0
        for peer, _ in made:
            peer.close()


async def test_who_has_more_waiting_who_is_gone_and_who_has_left_meanwhile():
    async with running() as reactor:
        made = members(reactor, 5)
        (more, first), (urgent, second), (gone, third), (left, fourth), (usual, fifth) = made
        tell(reactor, [end for _, end in made])
        first.outbox.push(b", and more")
        second.outbox.push(b"urgent, ", priority=1)
        third.stream.abort("kicked")
        left.close()
        assert await exactly(more, len(MESSAGE) + 10) == MESSAGE + b", and more"
        assert await exactly(urgent, len(MESSAGE) + 8) == b"urgent, " + MESSAGE
        assert await exactly(usual, len(MESSAGE)) == MESSAGE
        assert await gone.recv(100) == b""
        assert await third.gone() == "kicked"
        await fourth.gone()
        assert fifth.outbox.messages == 1
        for peer in (more, urgent, gone, usual):
            peer.close()


async def test_a_socket_that_is_full_keeps_the_rest_and_loses_nothing():
    async with running() as reactor:
        [(peer, end), (other, _)] = made = members(reactor, 2, unix=True, buffers=4096)
        large = bytes(range(256)) * 4000
        tell(reactor, [end for _, end in made], large)
        assert await exactly(other, len(large)) == large
        assert end.outbox.size == 0
        end.outbox.push(b"after")
        assert await exactly(peer, len(large) + 5) == large + b"after"
        tell(reactor, [end])
        assert await exactly(peer, len(MESSAGE)) == MESSAGE, "and it is sent to as before"
        for peer, _ in made:
            peer.close()


async def test_messages_keep_their_order_from_one_crowd_to_the_next():
    async with running() as reactor:
        made = members(reactor, 30)
        ends = [end for _, end in made]
        for number in range(50):
            tell(reactor, ends, b"%4d" % number)
            for end in ends[::3]:
                end.outbox.push(b"more")
            await until(lambda: not any(end.outbox.size for end in ends))
        for number, (peer, end) in enumerate(made):
            expected = b"".join(b"%4d%s" % (turn, b"" if number % 3 else b"more") for turn in range(50))
            assert await exactly(peer, len(expected)) == expected
            assert end.outbox.messages == 50 + (0 if number % 3 else 50)
            peer.close()


@pytest.mark.parametrize("size", [60, 5000])
async def test_a_crowd_leaves_other_tasks_their_turn(size: int, monkeypatch: pytest.MonkeyPatch):
    """Every look at the clock finds that the time is over: a step of the crowd at least, then others, then the rest."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 2 * SLICE
        return now

    async with running() as reactor:
        made = members(reactor, 100)
        await until(lambda: reactor._parked)
        monkeypatch.setattr("netd.net.reactor.monotonic", clock)
        tell(reactor, [end for _, end in made], b"x" * size)
        turns = 0
        with trio.fail_after(PATIENCE):
            while any(end.outbox.size for _, end in made):
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns > 5
        monkeypatch.undo()
        for peer, end in made:
            assert await exactly(peer, size) == b"x" * size
            assert end.outbox.messages == 1
            peer.close()


async def test_many_small_crowds_leave_other_tasks_their_turn_as_one_large_one_does(monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 2 * SLICE
        return now

    async with running() as reactor:
        made = members(reactor, 120)
        ends = [end for _, end in made]
        await until(lambda: reactor._parked)
        monkeypatch.setattr("netd.net.reactor.monotonic", clock)
        for at in range(0, 120, 4):
            tell(reactor, ends[at : at + 4])
        turns = 0
        with trio.fail_after(PATIENCE):
            while any(end.outbox.size for end in ends):
                turns += 1
                await trio.lowlevel.checkpoint()
        assert turns > 5
        monkeypatch.undo()
        for peer, end in made:
            assert await exactly(peer, len(MESSAGE)) == MESSAGE
            assert end.outbox.messages == 1
            peer.close()


async def test_a_crowd_that_was_marked_as_the_reactor_stops_is_told_so():
    async with running() as reactor:
        made = members(reactor, 3)
        await until(lambda: reactor._parked)
        tell(reactor, [end for _, end in made])
    assert all(end.whys == ["netd is stopping"] for _, end in made)
    assert reactor.snapshot().dirty == 0
    for peer, _ in made:
        peer.close()


# --- at once ----------------------------------------------------------------------------------------------------------


async def test_what_is_said_while_one_thing_is_served_goes_out_at_once():
    async with running() as reactor:
        made = members(reactor, 40)
        author, end = connect(reactor, end=Publisher(reactor, [each.outbox for _, each in made]))
        await author.send(MESSAGE)
        for peer, each in made:
            assert await exactly(peer, len(MESSAGE)) == MESSAGE
            assert (each.outbox.size, each.outbox.messages, each.stream.bytes_out) == (0, 3, len(MESSAGE))
            peer.close()
        assert end.others == [[]]
        assert reactor.send_at_once([each.outbox for _, each in made], MESSAGE, 1), "nothing is being served"
        author.close()


async def test_who_holds_something_or_is_another_kind_is_left_to_the_caller():
    async with running() as reactor:
        made = members(reactor, 6)
        _, (_, holds), (_, speaks), (_, ruled), (_, gone), (_, closing) = made
        boxes = [each.outbox for _, each in made]
        speaks.outbox.encoder = object()
        ruled.outbox.rules = OutboxRules()

        def receive(data: bytes) -> None:
            holds.outbox.push(b"earlier")
            gone.stream.abort("kicked")
            closing.stream.close("enough", within=1)
            end.others = [reactor.send_at_once(boxes, data, 1), reactor.send_at_once(boxes, data, 1)]

        author, end = connect(reactor, end=Publisher(reactor, boxes))
        end.receive = receive  # type: ignore[method-assign]
        await author.send(MESSAGE)
        assert await exactly(made[0][0], len(MESSAGE)) == MESSAGE
        assert await exactly(made[1][0], 7) == b"earlier"
        assert end.others == [boxes[1:], boxes], "the second time is not the only thing any more"
        for peer in (author, *(peer for peer, _ in made)):
            peer.close()


async def test_at_once_a_socket_that_is_full_keeps_the_rest():
    async with running() as reactor:
        [(peer, end)] = members(reactor, 1, unix=True, buffers=4096)
        author, publisher = connect(reactor, end=Publisher(reactor, [end.outbox], times=1))
        large = bytes(range(256)) * 4000
        publisher.receive = lambda data: publisher.others.append(  # type: ignore[method-assign]
            reactor.send_at_once([end.outbox], large, 1)
        )
        await author.send(b"now")
        await until(lambda: publisher.others == [[]])
        end.outbox.push(b"after")
        assert await exactly(peer, len(large) + 5) == large + b"after"
        author.close()
        peer.close()


async def test_what_is_sent_at_once_leaves_other_tasks_their_turn(monkeypatch: pytest.MonkeyPatch):
    """The clock says that the time is over: after a step of them the rest is left to the caller."""
    async with running() as reactor:
        made = members(reactor, 100)
        author, end = connect(reactor, end=Publisher(reactor, [each.outbox for _, each in made]))
        await until(lambda: reactor._parked)
        begun = reactor.now
        monkeypatch.setattr("netd.net.reactor.monotonic", lambda: begun + 1000 * end.feeds)
        await author.send(MESSAGE)
        await until(lambda: bool(end.others))
        monkeypatch.undo()
        [others] = end.others
        assert 0 < len(others) < 100
        assert others == [each.outbox for _, each in made][-len(others) :]
        for peer in (author, *(peer for peer, _ in made)):
            peer.close()


@pytest.mark.parametrize("looks", [1, 5, 100], ids=["asked every time", "asked at times", "asked at the end"])
async def test_what_went_at_once_is_counted_by_the_time_somebody_asks(looks: int) -> None:
    """Also of who has no room, who goes, and where the crowd is another one every time."""
    async with running() as reactor:
        made = members(reactor, 24, unix=True, buffers=4096)
        ends = [end for _, end in made]
        speaking = Publisher(reactor, [])
        peer, _ = connect(reactor, end=speaking)
        said, sent = dict.fromkeys(ends, 0), dict.fromkeys(ends, 0)
        heard = [bytearray() for _ in made]

        async def read() -> None:
            for (sock, end), data in zip(made, heard, strict=True):
                while not end.stream.closed and len(data) < end.stream.bytes_out:
                    data += await sock.recv(65536)

        for turn in range(100):
            crowd = ends[turn % 20 :] if turn % 7 else ends[:20]
            if turn == 50:
                gone = ends[3].stream
                gone.abort("kicked")
                assert gone.bytes_out == sent[ends[3]]
            if turn > 90:  # it holds something when the rest is sent
                speaking.first = [(ends[5].outbox, b"in its way")]
                said[ends[5]] += 1
            speaking._to[:] = [end.outbox for end in crowd]
            before = speaking.feeds
            await peer.send(b"." * 50)
            await until(lambda before=before: speaking.feeds > before)
            left_out = {id(box) for box in speaking.others[-1]}
            for end in crowd:
                if id(end.outbox) not in left_out:
                    said[end] += 3
                    sent[end] += 50
            if not turn % looks:
                assert {end: end.outbox.messages for end in ends} == said
                await read()
        assert {end: end.outbox.messages for end in ends} == said
        await read()
        for end, data in zip(ends, heard, strict=True):
            if not end.stream.gone:
                assert len(data) == end.stream.bytes_out >= sent[end]
        assert len(heard[5]) == sent[ends[5]] + 9 * len(b"in its way")
        assert len(reactor._owed) <= 16
        for sock, _ in made:
            sock.close()
        peer.close()


async def test_of_what_a_full_socket_took_in_part_that_part_is_counted() -> None:
    async with running() as reactor:
        [(slow, end), (quick, other)] = members(reactor, 2, unix=True, buffers=4096)
        speaking = Publisher(reactor, [end.outbox, other.outbox])
        peer, _ = connect(reactor, end=speaking, unix=True)
        for turn in range(1, 1000):
            await peer.send(b"x" * 3000)
            await until(lambda turn=turn: len(speaking.others) == turn)
            sent = turn * 3000
            if speaking.others[-1]:
                break
            assert await exactly(quick, 3000) == b"x" * 3000
        assert end.stream.unsent + end.stream.bytes_out == sent - 3000, "it was left out the last time"
        assert end.outbox.messages == sent // 1000 - 3
        assert other.stream.bytes_out == sent
        assert other.outbox.messages == sent // 1000
        for sock in (slow, quick, peer):
            sock.close()


async def test_who_is_another_flushers_is_counted_by_that_one_alone() -> None:
    """A reader of the control API, say: nobody here knows when it is asked for its counters."""

    class Other:
        def settle(self) -> None:
            """Nothing is ever owed."""

    async with running() as reactor:
        [(member, end)] = members(reactor, 1)
        reader = Member(reactor)
        reader.outbox.flusher = Other()
        speaking = Publisher(reactor, [end.outbox, reader.outbox])
        peer, _ = connect(reactor, end=speaking)
        await peer.send(MESSAGE)
        assert await exactly(member, len(MESSAGE)) == MESSAGE
        assert speaking.others == [[reader.outbox]]
        assert reader.outbox.messages == 0
        assert end.outbox.messages == 3
        assert reader.outbox.messages == 0
        for sock in (member, peer):
            sock.close()
