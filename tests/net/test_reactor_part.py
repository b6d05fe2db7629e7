"""`Stream.part`: the short way out, for a peer that has said goodbye."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from netd.net.stream import LINGERING
from tests.net.reactor_lab import End, connect, exactly, rest, running, until

if TYPE_CHECKING:
    import select

_SEGS_IN = 140
"""tcpi_segs_in of struct tcp_info (linux/tcp.h)."""


def part(end: End, data: bytes) -> None:
    end.stream.part(b"farewell", "they said goodbye")


@pytest.mark.parametrize("unix", [False, True])
async def test_the_last_words_come_whole_and_then_the_end(unix: bool) -> None:
    async with running() as reactor:
        peer, end = connect(reactor, part, unix=unix)
        with peer:
            await peer.send(b"goodbye")
            assert await rest(peer) == b"farewell"
            assert (end.stream.bytes_in, end.stream.bytes_out) == (7, 8)
            peer.close()
            await end.gone()
        assert reactor.snapshot().streams == 0
        assert not reactor._lingering


async def test_the_last_words_and_the_fin_are_one_segment() -> None:
    def close(end: End, data: bytes) -> None:
        end.outbox.push(b"farewell")
        end.stream.close("they said goodbye")

    async with running() as reactor:
        counts = []
        for act in (part, close):
            peer, end = connect(reactor, act)
            with peer:
                await peer.send(b"goodbye")
                assert await rest(peer) == b"farewell"
                info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                counts.append(struct.unpack_from("=I", info, _SEGS_IN)[0])
                peer.close()
                await end.gone()
        assert counts[0] == counts[1] - 1


async def test_who_says_more_after_its_goodbye_has_our_last_words_all_the_same() -> None:
    """A socket that is closed with something unread resets the connection (RFC 1122 section 4.2.2.13)."""
    async with running() as reactor:
        peer, end = connect(reactor, part)
        with peer:
            await peer.send(b"goodbye")
            await until(lambda: end.stream.state == LINGERING)
            await peer.send(b"and another thing" * 100)
            assert await rest(peer) == b"farewell"
            assert end.received == b"goodbye"
            peer.close()
            await end.gone()


async def test_who_never_goes_is_cut_off() -> None:
    async with running() as reactor:
        peer, end = connect(reactor, part)
        with peer:
            await peer.send(b"goodbye")
            assert await exactly(peer, 8) == b"farewell"
            assert reactor.snapshot().timers == 1
            await end.gone()
            assert not reactor._lingering


async def test_who_is_gone_already_is_gone() -> None:
    async with running() as reactor:
        peer, end = connect(reactor)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        end.stream.part(b"farewell", "they said goodbye")
        assert await end.gone() in ("broken pipe", "connection reset by peer")
        end.stream.part(b"farewell", "twice")
        await trio.lowlevel.checkpoint()
        assert len(end.whys) == 1


async def test_one_whose_socket_is_full_is_closed_as_others_are() -> None:
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            sock, sent = end.stream.socket, 0
            while True:
                try:
                    sent += sock.send(b"x" * 4096)
                except BlockingIOError:
                    break
            end.stream.part(b"farewell", "they said goodbye")
            assert end.stream.unsent == 8
            assert await rest(peer) == b"x" * sent + b"farewell"
            peer.close()
            assert await end.gone() == "they said goodbye"


async def test_one_that_was_paused_is_counted_no_more() -> None:
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.stream.pause()
            assert reactor.paused == 1
            end.stream.part(b"farewell", "enough")
            assert reactor.paused == 0
            assert await rest(peer) == b"farewell"
            peer.close()
            await end.gone()


class Refusing:
    """An epoll that takes no more: no memory, or no more watches (epoll_ctl(2), ENOMEM, ENOSPC)."""

    def __init__(self, real: select.epoll) -> None:
        self._real = real

    def modify(self, fd: int, wanted: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_one_that_epoll_does_not_have_is_not_waited_for() -> None:
    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.stream.pause()
            real, reactor._epoll = reactor._epoll, cast("Any", Refusing(cast("Any", reactor._epoll)))
            end.stream.part(b"farewell", "they said goodbye")
            reactor._epoll = real
            assert await end.gone() == "cannot allocate memory"
            assert not reactor._lingering
            assert reactor.snapshot().timers == 0
            assert (reactor.snapshot().streams, reactor.paused) == (0, 0)


async def test_one_that_is_full_and_that_epoll_does_not_have_ends_once() -> None:
    async with running() as reactor:
        peer, end = connect(reactor, buffers=4096)
        with peer:
            with suppress(BlockingIOError):
                while True:
                    end.stream.socket.send(b"x" * 4096)
            real, reactor._epoll = reactor._epoll, cast("Any", Refusing(cast("Any", reactor._epoll)))
            end.stream.part(b"farewell", "they said goodbye")
            reactor._epoll = real
            assert end.stream.gone
            end.stream.abort("again")
            assert await end.gone() == "cannot allocate memory"
            assert reactor.snapshot().streams == 0


async def test_what_was_put_back_does_not_stand_before_the_peers_fin() -> None:
    def put_back_and_part(end: End, data: bytes) -> None:
        end.stream.put_back(b"for later")
        part(end, data)

    async with running() as reactor:
        peer, end = connect(reactor, put_back_and_part)
        with peer:
            await peer.send(b"goodbye")
            assert await rest(peer) == b"farewell"
            before = reactor.snapshot().batches
            peer.close()
            await until(lambda: end.over.is_set())
            assert reactor.snapshot().batches - before < 100, "it was reported again and again"
            assert end.received == b"goodbye"


async def test_what_was_sent_is_counted_though_the_end_fails() -> None:
    """The peer's reset may come between the two calls."""

    class Reset:
        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def shutdown(self, how: int) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sock, name)

    async with running() as reactor:
        peer, end = connect(reactor)
        with peer:
            end.stream.socket = cast("Any", Reset(end.stream.socket))
            end.stream.part(b"farewell", "they said goodbye")
            assert await end.gone() == "transport endpoint is not connected"
            assert end.stream.bytes_out == 8
            assert not reactor._lingering
