"""Options that sockets inherit from the one that accepts them: who has them, whatever was changed when."""

from __future__ import annotations

import socket

import pytest
import trio

from netd.sessions import sockets
from netd.sessions.config import SessionLimits
from netd.sessions.sockets import bequeath, tune
from tests.services.broker.lab import House, eventually, listening, proxied, serving

NAMES = {
    "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "probes": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "unsent": (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
    "buffer": (socket.SOL_SOCKET, socket.SO_SNDBUF),
}
OPTIONS = ["nodelay", "keepalive", "idle", "interval", "probes", "unsent"]
SO_BUF_LOCK = socket.SOL_SOCKET, 72


def options(sock: socket.socket, names: list[str] = OPTIONS) -> list[int]:
    return [sock.getsockopt(*NAMES[name]) for name in names]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("keepalive", [0.0, 7.5, 90.0])
def test_the_kernel_hands_on_what_tune_would_set(family: socket.AddressFamily, keepalive: float) -> None:
    config = SessionLimits(keepalive=keepalive, send_buffer=0)
    with socket.create_server(("", 0), family=family) as listening:
        bequeath(listening, config)
        with socket.create_connection(("localhost" if family == socket.AF_INET else "::1", listening.getsockname()[1])):
            server, _ = listening.accept()
        with server:
            inherited = options(server)
            tune(server, config)
            assert inherited == options(server)


def test_the_send_buffer_is_handed_on_and_given_back_to_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        try:
            listening.getsockopt(*SO_BUF_LOCK)
        except OSError:
            pytest.skip("this kernel has no SO_BUF_LOCK: it came with 5.14")

        def accepted() -> socket.socket:
            with socket.create_connection(listening.getsockname()):
                return listening.accept()[0]

        with accepted() as before:
            assert bequeath(listening, SessionLimits(send_buffer=65_536))
            for _ in range(2):
                with accepted() as sock:
                    assert sock.getsockopt(*NAMES["buffer"]) == 131_072
                    assert sock.getsockopt(*SO_BUF_LOCK) == 1
            assert bequeath(listening, SessionLimits(send_buffer=0))
            with accepted() as sock:
                assert sock.getsockopt(*NAMES["buffer"]) == before.getsockopt(*NAMES["buffer"])
                assert sock.getsockopt(*SO_BUF_LOCK) == 0


def test_what_a_listener_receives_into_stays_as_somebody_chose_it() -> None:
    """A socket of systemd's with ReceiveBuffer= (systemd.socket(5)): the kernel is not to tune that again."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        try:
            assert listening.getsockopt(*SO_BUF_LOCK) == 2
        except OSError:
            pytest.skip("this kernel has no SO_BUF_LOCK: it came with 5.14")
        for send_buffer, locks in ((65_536, 3), (0, 2), (0, 2)):
            bequeath(listening, SessionLimits(send_buffer=send_buffer))
            assert listening.getsockopt(*SO_BUF_LOCK) == locks
            assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 100_000


def test_without_such_a_lock_everybody_is_told_the_send_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As kernels before 5.14 answer."""
    monkeypatch.setattr(sockets, "SO_BUF_LOCK", 12_345)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        before = listening.getsockopt(*NAMES["buffer"])
        assert not bequeath(listening, SessionLimits(send_buffer=65_536))
        assert bequeath(listening, SessionLimits(send_buffer=0)), "there is nothing to tell"
        assert listening.getsockopt(*NAMES["buffer"]) == before


async def test_who_comes_where_it_is_not_handed_on_has_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SO_BUF_LOCK", 12_345)
    async with serving(send_buffer=65_536) as house:
        assert options(await came(house), ["buffer"]) == [131_072]
        await house.live(send_buffer=100_000)
        assert options(await came(house), ["buffer"]) == [200_000]


async def came(house: House) -> socket.socket:
    """The server's socket of one who has just come."""
    before = set(house.exchange.doorsteps)
    await house.connect()
    await eventually(lambda: house.exchange.doorsteps.keys() - before)
    [doorstep] = house.exchange.doorsteps.keys() - before
    return doorstep.stream.socket


async def test_whoever_comes_has_the_options_of_the_configuration() -> None:
    async with serving(keepalive=30.0, send_buffer=65_536) as house:
        for _ in range(3):
            assert options(await came(house), [*OPTIONS, "buffer"]) == [1, 1, 30, 10, 3, 0, 131_072]


async def test_a_reload_holds_for_those_at_the_doorstep_and_those_who_come() -> None:
    async with serving(keepalive=30.0, send_buffer=65_536) as house:
        early = await came(house)
        await house.live(keepalive=90.0, send_buffer=100_000)
        for sock in (early, await came(house), await came(house)):
            assert options(sock, [*OPTIONS, "buffer"]) == [1, 1, 90, 30, 3, 0, 200_000]
        await house.live(keepalive=0.0)
        for sock in (early, await came(house), await came(house)):
            assert options(sock, ["nodelay", "keepalive"]) == [1, 0]


async def test_another_generation_leaves_its_own_to_those_who_come() -> None:
    async with serving(keepalive=30.0) as house:
        config = house.service.config
        await came(house)
        grown = config.model_copy(update={"keepalive": 60.0, "listen": [*config.listen] * 2})
        assert await house.settle(grown) == "running"
        for sock in (await came(house), await came(house)):
            assert options(sock) == [1, 1, 60, 20, 3, 0]


async def test_a_generation_whose_clients_are_told_one_by_one_leaves_nothing_of_an_earlier_ones_to_them() -> None:
    """It waits for something of each; and 0 is nothing that could be told."""
    async with serving(send_buffer=65_536) as house:
        try:
            assert (await came(house)).getsockopt(*SO_BUF_LOCK) == 1
        except OSError:
            pytest.skip("this kernel has no SO_BUF_LOCK: it came with 5.14")
        listen = [listening(proxy_protocol=["127.0.0.0/8"])]
        config = house.service.config.model_copy(update={"send_buffer": 0, "listen": listen})
        assert await house.settle(config) == "running"
        await (await house.client(before=proxied())).hello()
        [connection] = house.exchange.connections
        assert connection.socket.getsockopt(*SO_BUF_LOCK) == 0


async def test_who_queued_before_the_change_has_it_too() -> None:
    """What waits in the backlog was made as the listening socket was then."""
    async with serving(keepalive=30.0) as house:
        await came(house)
        clients = [socket.socket() for _ in range(5)]
        for client in clients:
            client.connect(("127.0.0.1", house.port()))  # and no task has its turn before the change
        house.service.reconfigure(house.service.config.model_copy(update={"keepalive": 90.0}))
        await eventually(lambda: len(house.exchange.doorsteps) == 6)
        found = [options(doorstep.stream.socket) for doorstep in house.exchange.doorsteps]
        assert found == [[1, 1, 90, 30, 3, 0]] * 6
        await trio.lowlevel.checkpoint()
        for client in clients:
            client.close()
