"""A broker that takes what we say slowly is not one that takes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from netd.client.broker_options import Options, agreed
from netd.client.broker_wire import ANSWERS, BrokerTransport, BrokerWire
from netd.client.link import Link
from netd.client.state import Counters

TIMEOUT = 20.0
LONG = 50 * TIMEOUT


class SlowLink:
    """One whose send takes LONG; `taken` is how much of it the peer has by then in the kernel's eyes, if it says."""

    opened = heard = 0.0
    unsent = torn = tls = False
    wake: Any = None

    def __init__(self, *, tells: bool, takes: bool) -> None:
        self._tells, self._takes = tells, takes
        self.sent: list[bytes] = []

    @property
    def untaken(self) -> int | None:
        if not self._tells:
            return None
        return 100_000 - int(trio.current_time()) if self._takes else 100_000

    async def send(self, data: bytes) -> None:
        await trio.sleep(LONG)
        self.sent.append(data)

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"heard"


async def written(link: SlowLink) -> float:
    """Seconds until what is to be written was, or until the wire gave up."""
    where, options = agreed("ws://127.0.0.1:1", Options(write_timeout=TIMEOUT))
    wire = BrokerWire(link, BrokerTransport(where, options), options, Counters())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire._flush)
        nursery.start_soon(wire._look)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        wire.put(b"\x81hello")
        await wire._drained.wait()
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


async def test_who_takes_a_little_is_waited_for(autojump_clock):
    link = SlowLink(tells=True, takes=True)
    assert await written(link) == pytest.approx(LONG)
    assert link.sent == [b"\x81hello"]


@pytest.mark.parametrize("tells", [True, False], ids=["it takes nothing", "nobody can tell"])
async def test_who_takes_nothing_is_lost(autojump_clock, tells):
    link = SlowLink(tells=tells, takes=False)
    assert TIMEOUT <= await written(link) <= 2 * TIMEOUT
    assert not link.sent


@pytest.mark.parametrize(("first", "reads"), [(0x81, True), (0x8A, False)], ids=["messages", "pongs"])
async def test_a_peer_is_read_behind_our_own_messages_however_small_and_not_behind_too_many_answers(
    autojump_clock, first, reads
):
    """It may wait for us to read before it takes more."""
    where, options = agreed("ws://127.0.0.1:1", Options(write_timeout=LONG))
    wire = BrokerWire(SlowLink(tells=True, takes=True), BrokerTransport(where, options), options, Counters())  # type: ignore[arg-type]
    frame = bytes((first, 0x81)) + b"mask" + b"x"

    class Socket:
        async def send_message(self, message: object) -> None:
            wire.put(frame)

    wire._ws = Socket()  # type: ignore[assignment]
    wire._upgraded = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire._flush)
        if reads:
            nursery.start_soon(wire.send, [b"x"] * (ANSWERS // 5))
        else:
            for _ in range(ANSWERS // 5):
                wire.put(frame)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1) as waited:
            assert await wire.take() == b"heard"
        assert waited.cancelled_caught is not reads
        nursery.cancel_scope.cancel()


async def test_the_kernel_tells_what_the_peer_has_not_taken():
    listener, *_ = await trio.open_tcp_listeners(0, host="127.0.0.1")
    stream = await trio.open_tcp_stream(*listener.socket.getsockname())
    peer = await listener.accept()
    async with listener, stream, peer, trio.open_nursery() as nursery:
        link = Link(stream)
        nursery.start_soon(link.send, bytes(64 << 20))  # more than buffers hold
        await trio.testing.wait_all_tasks_blocked()
        before = link.untaken
        if before is None:
            nursery.cancel_scope.cancel()
            pytest.skip("this kernel does not tell what waits in a socket (SIOCOUTQ)")
        assert before > 0
        taken = 0
        while link.untaken == before:  # window updates come in larger steps than reads
            taken += len(await peer.receive_some(65536))
        assert taken > 0
        nursery.cancel_scope.cancel()
    assert link.untaken is None  # it is closed
