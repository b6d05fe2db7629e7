"""What fails while somebody is let in: whichever step it is, and by whichever way it came, nothing of it stays."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from netd.services.broker import gateway as gateways
from netd.services.broker import service as services
from netd.services.broker.config import BrokerHttp
from tests.services.broker.lab import KEY, PATIENCE, House, eventually, listening, proxied, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD = (
    b"GET /ws/public:room HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n" % KEY
)

STEPS: dict[str, Callable[[House], tuple[Any, str]]] = {
    "known heads": lambda house: (type(house.exchange.recurring), "find"),
    "permissions": lambda house: (house.exchange, "open_to_all"),
    "connection": lambda house: (gateways, "Connection"),
    "compression": lambda house: (house.exchange, "_compress"),
    "reactor": lambda house: (house.reactor, "adopt"),
    "head": lambda house: (house.exchange, "_send_head"),
    "hub": lambda house: (house.hub, "open"),
    "subscription": lambda house: (house.hub, "subscribe"),
    "observer": lambda house: (house.exchange.observer, "opened"),
    "door": lambda house: (house.exchange, "leads_in"),
}


async def heard(stream: trio.abc.Stream) -> bytes:
    """Everything until the end, however that comes."""
    data = b""
    with trio.fail_after(PATIENCE), suppress(trio.BrokenResourceError):
        while more := bytes(await stream.receive_some(65536)):
            data += more
    await trio.aclose_forcefully(stream)
    return data


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("broken")])
@pytest.mark.parametrize("way", ["at once", "in pieces", "first of its kind"])
@pytest.mark.parametrize("step", STEPS)
async def test_nothing_stays_of_one_that_could_not_be_let_in(
    step: str, way: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(deflate=True) as house:
        gateway, reactor = house.exchange, house.reactor
        if way != "first of its kind":
            stream, _ = await house.connect()
            await stream.send_all(HEAD)  # which has it known
            await eventually(lambda: gateway.connections)
            await trio.aclose_forcefully(stream)
            await eventually(lambda: not reactor.streams())
        failed = []

        def fails(*args: Any, **more: Any) -> Any:
            failed.append(step)
            raise error

        stream, _ = await house.connect()
        if way == "in pieces":
            await stream.send_all(HEAD[:50])
            await eventually(lambda: any(doorstep.received for doorstep in gateway.doorsteps))
        elif way == "first of its kind":
            await eventually(lambda: gateway.doorsteps)
        else:
            await trio.aclose_forcefully(stream)
            stream = trio.SocketStream(trio.socket.socket())
            await eventually(lambda: not reactor.streams())
        with monkeypatch.context() as patch, capture_logs():
            patch.setattr(*STEPS[step](house), fails)
            if way == "at once":
                await stream.socket.connect(("127.0.0.1", house.port()))
                await stream.send_all(HEAD)
            else:
                await stream.send_all(HEAD[50:] if way == "in pieces" else HEAD)
            if (step, way) in {
                ("reactor", "in pieces"),  # it is there
                ("reactor", "first of its kind"),
                ("known heads", "in pieces"),  # only a whole head is looked for
                ("permissions", "in pieces"),  # of heads that are known
                ("permissions", "first of its kind"),
            }:
                await eventually(lambda: gateway.connections)
                await trio.aclose_forcefully(stream)
            else:
                await heard(stream)
                assert failed
        await eventually(lambda: not reactor.streams())
        assert gateway.places.total == 0
        assert not gateway.places._by_key
        assert not gateway.doorsteps
        assert not gateway.connections
        assert not gateway._unwelcome
        assert not gateway._mindful
        assert not house.hub.sessions
        assert sum(door.connections for door in gateway.doors.values()) == 0
        assert not any(gateway.by_mode.values())
        assert reactor.paused == 0
        assert not reactor._lingering


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_nothing_stays_of_one_that_was_not_let_past_the_door(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **more: Any) -> Any:
        raise ValueError("broken")

    address = "127.0.0.1:0" if family == "tcp" else f"unix:{tmp_path}/broker"
    async with serving(listening(address=address)) as house:
        with monkeypatch.context() as patch, capture_logs() as logs:
            if family == "tcp":
                patch.setattr(house.exchange, "greet", fails)
            else:
                patch.setattr(services, "Arrived", fails)
            stream, _ = await house.connect()
            assert await heard(stream) == b""
        assert house.exchange.places.total == 0
        assert house.exchange.rejections["broken"] == 1
        assert [line["event"] for line in logs] == ["arrival broke"]


def reset(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("meanwhile", ["late", "reload", "stop", "too many"])
async def test_one_at_the_doorstep_that_is_gone_is_in_nobodys_way(meanwhile: str) -> None:
    """Its endpoint hears of that at the end of a round, and if that is over, after others have had their turn."""
    async with serving(http=BrokerHttp(max_connections=1)) as house:
        gateway = house.exchange
        await house.connect()
        await eventually(lambda: gateway.doorsteps)
        [doorstep] = gateway.doorsteps
        house.reactor.bury(doorstep.stream, "connection reset by peer")
        assert doorstep in gateway.doorsteps
        if meanwhile == "late":
            gateway.clear_doorsteps(house.reactor.now)
        elif meanwhile == "reload":
            house.service.reconfigure(house.service.config.model_copy(update={"keepalive": 77.0}))
        elif meanwhile == "stop":
            house.service._abandon()
        else:
            gateway.clear_oldest()
        await eventually(lambda: gateway.places.total == 0)
        assert not gateway.doorsteps


async def test_of_those_who_came_at_once_one_has_to_go_for_one() -> None:
    async with serving(http=BrokerHttp(max_connections=3)) as house:
        gateway, at_once = house.exchange, 3
        clients = [socket.socket() for _ in range(at_once)]
        for client in clients:
            client.connect(("127.0.0.1", house.port()))  # and no task has its turn meanwhile
        await eventually(lambda: len(gateway.doorsteps) == at_once)
        before = list(gateway.doorsteps)
        assert len({doorstep.since for doorstep in before}) == 1
        await house.connect()
        await eventually(lambda: gateway.doorsteps.keys() - before)
        assert list(gateway.doorsteps)[:2] == before[1:]
        for client in clients:
            client.close()


async def test_what_comes_from_elsewhere_after_its_goodbye_is_neither_kept_nor_counted() -> None:
    """A look at history that the backplane answers later, say."""
    async with serving() as house:
        client = await house.client("/ws/public:room?role=sub")
        [connection] = house.exchange.connections
        await client.raw(b"\x88\x80" + bytes(4))
        await eventually(lambda: connection.closing)
        outbox = connection.outbox
        assert (outbox.messages, outbox.size) == (1, 0)
        assert not outbox.push(b"\x81\x04late")
        assert (outbox.messages, outbox.size) == (1, 0)
        assert [type(event).__name__ for event in await client.rest()] == ["Close"]


async def test_a_reload_has_those_who_come_begin_with_a_proxy_header_or_not() -> None:
    """In the generation that is there, whose way to accept is another then."""
    async with serving() as house:
        for _ in range(2):
            await house.client()
            await house.live(listen=[listening(proxy_protocol=["127.0.0.0/8"])])
            await house.client(before=proxied())
            assert house.service.connections()[-1].address == "203.0.113.9:4711"
            await house.live(listen=[listening()])
            await house.connect()
            await eventually(lambda: house.exchange.doorsteps)  # without a task
            [doorstep] = house.exchange.doorsteps
            assert doorstep.address.startswith("127.0.0.1:")
            doorstep.abort("enough")
            await eventually(lambda: not house.exchange.doorsteps)
        assert house.exchange.places.total == 4
