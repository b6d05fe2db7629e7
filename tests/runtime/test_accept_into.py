"""Connections accepted many at a time, in the reactor: what `accept` promises holds for them, too."""

from __future__ import annotations

import errno
import os
import resource
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.runtime.bus import Bus
from netd.runtime.health import Health, WarningCleared
from netd.runtime.listeners import _AT_ONCE, Listener, Listeners
from netd.section import Listen
from tests.net.reactor_lab import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from netd.net.reactor import Reactor

ANY = Listen(address="127.0.0.1:0")
PATIENCE = 10.0


class Taken:
    """What was accepted."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.peers: list[Any] = []
        self._lot = trio.lowlevel.ParkingLot()

    def __call__(self, sock: socket.socket, peer: Any) -> None:
        self.sockets.append(sock)
        self.peers.append(peer)
        self._lot.unpark_all()

    async def until(self, count: int) -> None:
        with trio.fail_after(PATIENCE):
            while len(self.sockets) < count:
                await self._lot.park()

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def health() -> Health:
    return Health(Bus())


@pytest.fixture
async def listeners(health: Health) -> AsyncIterator[Listeners]:
    listeners = Listeners(health=health)
    yield listeners
    listeners.close()


@asynccontextmanager
async def accepting(listener: Listener) -> AsyncIterator[tuple[Taken, Reactor, trio.Nursery]]:
    """Within a reactor that runs."""
    taken = Taken()
    async with running() as reactor, trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept_into, reactor.watch, taken)
        await trio.testing.wait_all_tasks_blocked()
        yield taken, reactor, nursery
        nursery.cancel_scope.cancel()
    taken.close()


def connect(listener: Listener) -> socket.socket:
    if listener.address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(listener.address.removeprefix("unix:"))
        return sock
    host, _, port = listener.address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)))


async def raised(health: Health) -> None:
    with trio.fail_after(PATIENCE):
        while not health.warnings():  # noqa: ASYNC110  # the warning is another's event
            await trio.sleep(0.002)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix"])
async def test_everyone_is_taken_and_bytes_go_through(listeners: Listeners, tmp_path: Path, address: str) -> None:
    where = f"unix:{tmp_path}/x.sock" if address == "unix" else address
    listener = await listeners.lease("alpha").open(Listen(address=where))
    async with accepting(listener) as (taken, _, _):
        clients = [connect(listener) for _ in range(2 * _AT_ONCE + 3)]
        await taken.until(len(clients))
        if address != "unix":
            assert [peer[:2] for peer in taken.peers] == [client.getsockname()[:2] for client in clients]
        assert not any(sock.get_inheritable() for sock in taken.sockets)
        for client, server in zip(clients, taken.sockets, strict=True):
            client.sendall(b"hello")
            assert server.recv(16) == b"hello"
            client.close()


async def test_a_released_listener_takes_nobody_and_the_next_generation_does(listeners: Listeners) -> None:
    old_leases, new_leases = listeners.lease("alpha"), listeners.lease("alpha")
    old, new = await old_leases.open(ANY), await new_leases.open(ANY)
    async with accepting(old) as (of_old, reactor, nursery):
        of_new = Taken()
        nursery.start_soon(new.accept_into, reactor.watch, of_new)
        await trio.testing.wait_all_tasks_blocked()
        old_leases.release()
        clients = [connect(new) for _ in range(20)]
        await of_new.until(20)
        assert of_old.sockets == []
        assert reactor._watched.keys() == {new.socket.fileno()}
        for one in [*clients, *of_new.sockets]:
            one.close()
        nursery.cancel_scope.cancel()
    assert reactor._watched == {}


async def test_one_that_is_cancelled_can_be_begun_again(listeners: Listeners) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    async with accepting(listener):
        pass
    with connect(listener):  # queues meanwhile
        async with accepting(listener) as (taken, _, _):
            await taken.until(1)


async def test_out_of_descriptors_pauses_and_recovers(listeners: Listeners, health: Health) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    async with accepting(listener) as (taken, reactor, _):
        client = connect(listener)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            await raised(health)
            [warning] = health.warnings()
            assert (warning.code, warning.severity) == ("alpha.accept", "error")
            assert "too many open files" in warning.message
            assert taken.sockets == []
            assert reactor._watched == {}, "it would be called without an end"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await taken.until(1)
        client.close()
    assert health.warnings() == ()


async def test_the_last_descriptors_are_not_for_clients(listeners: Listeners, health: Health) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    async with accepting(listener) as (taken, _, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [connect(listener) for _ in range(3)]
        spare = os.dup(0)
        os.close(spare)
        room = spare + min(32, spare // 7)  # what is left when an eighth, or 32, is not for clients: none
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
        try:
            await raised(health)
            assert len(taken.sockets) == 1, "the first one told that there are no more"
            with health._bus.subscribe(WarningCleared) as notices, trio.fail_after(PATIENCE):
                for one in [*clients, *taken.sockets]:
                    one.close()
                await anext(notices)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EINVAL])
async def test_what_goes_wrong_with_an_accept_is_survived(
    listeners: Listeners, health: Health, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    errors = [OSError(number, os.strerror(number))] * 3

    class Unlucky(socket.socket):
        def _accept(self) -> Any:
            if errors:
                raise errors.pop()
            return super()._accept()  # type: ignore[misc]

    listener = await listeners.lease("alpha").open(ANY)
    monkeypatch.setattr("netd.runtime.listeners.socket.socket", Unlucky)
    async with accepting(listener) as (taken, _, _):
        with connect(listener):
            await taken.until(1)
    assert errors == []
    assert health.warnings() == ()
