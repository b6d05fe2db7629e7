"""Listeners: real sockets on loopback and in a temporary directory, and a service manager that keeps copies.

Over 600 lines, and one file all the same: the cases differ by what the manager holds, and are read against each other.
"""

from __future__ import annotations

import errno
import grp
import os
import resource
import socket
import stat
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
import trio.testing

from netd.errors import PrepareFailed
from netd.runtime.bus import Bus
from netd.runtime.config import RestartPolicy
from netd.runtime.generation import Shared
from netd.runtime.health import Health, WarningCleared, WarningRaised
from netd.runtime.listeners import Listener, Listeners
from netd.runtime.metrics import Metrics
from netd.runtime.supervisor import Supervisor
from netd.section import Listen
from netd.systemd import Notifier
from tests.support.scripted import Behaviour, Script, ScriptConfig
from tests.support.systemd import FakeSystemd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from trio.testing import MockClock

    from netd.runtime.store import Store

ANY = Listen(address="127.0.0.1:0")


@pytest.fixture
def health() -> Health:
    return Health(Bus())


@pytest.fixture
async def listeners(health: Health) -> AsyncIterator[Listeners]:
    listeners = Listeners(health=health)
    yield listeners
    listeners.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[FakeSystemd]:
    systemd = FakeSystemd(tmp_path)
    yield systemd
    systemd.close()


@pytest.fixture
def notifier(systemd: FakeSystemd) -> Iterator[Notifier]:
    notifier = Notifier(systemd.address)
    yield notifier
    notifier.close()


async def connect(address: str) -> trio.SocketStream:
    if address.startswith("unix:"):
        return await trio.open_unix_socket(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await trio.open_tcp_stream(host.strip("[]"), int(port))


async def until_raised(health: Health) -> None:
    """Until there is a warning."""
    with health._bus.subscribe(WarningRaised) as notices, trio.fail_after(10):
        if not health.warnings():
            await anext(notices)


async def refused(address: str) -> bool:
    try:
        stream = await connect(address)
    except OSError:
        return True
    await stream.aclose()
    return False


async def served(listener: Listener, address: str | None = None) -> None:
    """A client that connects is accepted here, and bytes go through."""
    async with await connect(address or listener.address) as client, await listener.accept() as server:
        await client.send_all(b"hello")
        assert await server.receive_some(16) == b"hello"


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_listens_where_it_was_told(listeners: Listeners, host: str) -> None:
    leases = listeners.lease("alpha")
    listener = await leases.open(Listen(address=f"{host}:0"))
    assert listener.address.startswith(f"{host}:")
    assert not listener.address.endswith(":0")
    assert leases.addresses == [listener.address]
    await served(listener)
    leases.release()
    assert await refused(listener.address)


async def test_accepted_streams_send_small_packets_at_once(listeners: Listeners) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    async with await connect(listener.address), await listener.accept() as server:
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_options_are_set_on_the_listening_socket(listeners: Listeners) -> None:
    saved_syn = getattr(socket, "TCP_SAVE_SYN", 27)
    listener = await listeners.lease("alpha").open(ANY, options=[(socket.IPPROTO_TCP, saved_syn, 1)])
    assert listener.socket.getsockopt(socket.IPPROTO_TCP, saved_syn) == 1


async def test_ipv6_listeners_leave_ipv4_alone(listeners: Listeners) -> None:
    six = await listeners.lease("alpha").open(Listen(address="[::]:0"))
    four = await listeners.lease("beta").open(Listen(address=f"0.0.0.0:{six.address.rpartition(':')[2]}"))
    await served(four, four.address.replace("0.0.0.0", "127.0.0.1"))


async def test_the_same_address_twice_in_one_generation_is_refused(listeners: Listeners) -> None:
    leases = listeners.lease("alpha")
    listener = await leases.open(ANY)
    fixed = Listen(address=listener.address.replace("127.0.0.1", "127.0.0.2"))
    await leases.open(fixed)
    with pytest.raises(PrepareFailed, match=r"cannot listen on 127.0.0.2:\d+ twice"):
        await leases.open(fixed)


async def test_any_free_port_twice_is_two_ports_that_stay(listeners: Listeners) -> None:
    first = listeners.lease("alpha")
    ports = [(await first.open(ANY)).address, (await first.open(ANY)).address]
    assert ports[0] != ports[1]
    second = listeners.lease("alpha")
    assert [(await second.open(ANY)).address, (await second.open(ANY)).address] == ports


@pytest.mark.parametrize(
    ("address", "interface", "says"),
    [
        ("192.0.2.1:8080", None, "no interface has this address"),
        ("127.0.0.1:0", "nosuchif0", "there is no such interface|permission denied"),
        ("unix:/no/such/directory/x.sock", None, "its directory does not exist"),
        ("unix:/tmp/" + "x" * 120, None, "longer than"),
    ],
)
async def test_what_cannot_be_had_is_said(listeners: Listeners, address: str, interface: str | None, says: str) -> None:
    with pytest.raises(PrepareFailed, match=says) as caught:
        await listeners.lease("alpha").open(Listen(address=address, interface=interface))
    assert str(caught.value).startswith(f"cannot listen on {address}: ")
    assert caught.value.service == "alpha"


async def test_a_port_that_somebody_has_is_refused(listeners: Listeners) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(PrepareFailed, match="another program listens there already"),
    ):
        await listeners.lease("alpha").open(Listen(address=f"127.0.0.1:{other.getsockname()[1]}"))


async def test_an_option_that_fails_leaves_nothing_open(listeners: Listeners) -> None:
    with pytest.raises(PrepareFailed, match="cannot listen on"):
        await listeners.lease("alpha").open(ANY, options=[(socket.IPPROTO_TCP, 9999, 1)])
    assert listeners._bound == {}


async def test_opening_after_release_is_a_mistake(listeners: Listeners) -> None:
    leases = listeners.lease("alpha")
    leases.release()
    with pytest.raises(RuntimeError, match="released"):
        await leases.open(ANY)


# --- generations ------------------------------------------------------------------------------------------------------


async def test_overlapping_generations_share_a_socket_and_only_the_new_one_goes_on(listeners: Listeners) -> None:
    old_leases, new_leases = listeners.lease("alpha"), listeners.lease("alpha")
    old, new = await old_leases.open(ANY), await new_leases.open(ANY)
    assert old.address == new.address
    accepted: list[str] = []

    async def accept(name: str, listener: Listener) -> None:
        while True:
            async with await listener.accept():
                accepted.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, "old", old)
        nursery.start_soon(accept, "new", new)
        await trio.testing.wait_all_tasks_blocked()
        old_leases.release()
        for _ in range(20):
            async with await connect(new.address) as client:
                await client.receive_some(1)  # closed by whoever accepted it
        nursery.cancel_scope.cancel()
    assert accepted == ["new"] * 20


async def test_accept_on_a_released_listener_waits_to_be_cancelled(listeners: Listeners) -> None:
    leases = listeners.lease("alpha")
    listener = await leases.open(ANY)
    leases.release()
    with trio.move_on_after(0.05) as scope:
        await listener.accept()
    assert scope.cancelled_caught


async def test_clients_queue_while_a_held_service_starts_again(listeners: Listeners) -> None:
    listeners.hold("alpha")
    leases = listeners.lease("alpha")
    address = (await leases.open(ANY)).address
    leases.release()
    async with await connect(address) as client:  # nobody serves
        await client.send_all(b"waiting")
        listener = await listeners.lease("alpha").open(ANY)
        assert listener.address == address
        async with await listener.accept() as server:
            assert await server.receive_some(16) == b"waiting"


async def test_letting_go_closes_what_nobody_leases(listeners: Listeners) -> None:
    listeners.hold("alpha")
    used, unused = listeners.lease("alpha"), listeners.lease("alpha")
    kept = (await used.open(ANY)).address
    gone = (await unused.open(Listen(address="[::1]:0"))).address
    unused.release()
    assert not await refused(gone)
    listeners.let_go("alpha")
    assert await refused(gone)
    assert not await refused(kept)


async def test_abandoning_closes_only_what_was_opened_first(listeners: Listeners) -> None:
    listeners.hold("alpha")
    first = listeners.lease("alpha")
    kept = (await first.open(ANY)).address
    first.release()
    second = listeners.lease("alpha")
    await second.open(ANY)
    gone = (await second.open(Listen(address="[::1]:0"))).address
    second.release(abandon=True)
    second.release(abandon=True)
    assert not await refused(kept)
    assert await refused(gone)


async def test_services_do_not_share(listeners: Listeners) -> None:
    alpha = await listeners.lease("alpha").open(ANY)
    with pytest.raises(PrepareFailed, match="another program listens there already"):
        await listeners.lease("beta").open(Listen(address=alpha.address))


async def test_a_wider_address_takes_over_while_the_narrow_one_serves(listeners: Listeners) -> None:
    old_leases, new_leases = listeners.lease("alpha"), listeners.lease("alpha")
    old = await old_leases.open(ANY)
    port = old.address.rpartition(":")[2]
    new = await new_leases.open(Listen(address=f"0.0.0.0:{port}"))
    await served(old)
    old_leases.release()
    await served(new, f"127.0.0.1:{port}")
    assert new.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0, "it was lent for a moment"


# --- accepting --------------------------------------------------------------------------------------------------------


async def test_out_of_descriptors_pauses_and_recovers(
    listeners: Listeners, health: Health, nursery: trio.Nursery
) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    accepted = trio.Event()

    async def accept() -> None:
        async with await listener.accept():
            accepted.set()

    async with await connect(listener.address):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            nursery.start_soon(accept)
            await until_raised(health)
            (warning,) = health.warnings()
            assert warning.code == "alpha.accept"
            assert warning.severity == "error"
            assert "too many open files" in warning.message
            assert "LimitNOFILE" in (warning.advice or "")
            assert not accepted.is_set()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with trio.fail_after(10):
            await accepted.wait()
    assert health.warnings() == ()


async def test_the_last_descriptors_are_not_for_clients(
    listeners: Listeners, health: Health, nursery: trio.Nursery
) -> None:
    """The control API, which has no such reserve, is still there to say so."""
    service = await listeners.lease("alpha").open(ANY)
    control = await listeners.lease("control", reserve=0).open(ANY)
    accepted: list[trio.SocketStream] = []

    async def accept() -> None:
        while True:
            accepted.append(await service.accept())

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    clients = [await connect(service.address) for _ in range(3)]
    room = spare + 3 + min(32, (spare + 3) // 7)  # what is left when an eighth, or 32, is not for clients: none
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
    try:
        nursery.start_soon(accept)
        await until_raised(health)
        assert [warning.code for warning in health.warnings()] == ["alpha.accept"]
        assert len(accepted) == 1, "the first one told that there are no more"
        async with await connect(control.address):
            await (await control.accept()).aclose()
        with health._bus.subscribe(WarningCleared) as notices, trio.fail_after(10):
            for client in [*clients, *accepted]:
                await client.aclose()
            await anext(notices)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for stream in accepted:
            await stream.aclose()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EHOSTUNREACH, errno.EPERM])
async def test_what_is_wrong_with_one_client_is_not_the_listeners(
    listeners: Listeners, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    listener = await listeners.lease("alpha").open(ANY)
    genuine = listener.socket.accept
    errors = [OSError(number, os.strerror(number))] * 3

    async def accept():
        if errors:
            await trio.lowlevel.checkpoint()
            raise errors.pop()
        return await genuine()

    monkeypatch.setattr(listener.socket, "accept", accept)
    await served(listener)
    assert errors == []


async def test_what_no_manual_knows_pauses_the_listener_and_is_said(
    listeners: Listeners, health: Health, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    listener = await listeners.lease("alpha").open(ANY)

    async def accept():
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EINVAL, "not listening")

    monkeypatch.setattr(listener.socket, "accept", accept)
    nursery.start_soon(listener.accept)
    await until_raised(health)
    [warning] = health.warnings()
    assert (warning.code, warning.severity) == ("alpha.accept", "error")
    assert "invalid argument" in warning.message
    nursery.cancel_scope.cancel()


async def test_releasing_ends_a_pause_and_its_warning(
    listeners: Listeners, health: Health, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    leases = listeners.lease("alpha")
    listener = await leases.open(ANY)

    async def accept():
        await trio.lowlevel.checkpoint()
        raise OSError(errno.ENFILE, "everybody's table is full")

    monkeypatch.setattr(listener.socket, "accept", accept)
    nursery.start_soon(listener.accept)
    await until_raised(health)
    leases.release()
    assert health.warnings() == ()
    nursery.cancel_scope.cancel()


# --- Unix sockets -----------------------------------------------------------------------------------------------------


def unix(path: Path) -> Listen:
    return Listen(address=f"unix:{path}")


async def test_unix_sockets_are_served_and_unlinked(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    leases = listeners.lease("alpha")
    listener = await leases.open(unix(path), mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert listener.address == f"unix:{path}"
    await served(listener)
    assert os.listdir(tmp_path) == ["x.sock"], "no temporary name is left"
    leases.release()
    assert not path.exists()


async def test_a_stale_path_is_replaced(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    await served(await listeners.lease("alpha").open(unix(path)))


@pytest.mark.parametrize("full", [False, True], ids=["idle", "full backlog"])
async def test_a_path_that_somebody_listens_behind_is_not(listeners: Listeners, tmp_path: Path, full: bool) -> None:
    path = tmp_path / "x.sock"
    clients: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        if full:
            for _ in range(2):
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                clients.append(client)
                try:
                    client.connect(str(path))
                except BlockingIOError:
                    break
        inode = path.stat().st_ino
        with pytest.raises(PrepareFailed, match="another program listens there already"):
            await listeners.lease("alpha").open(unix(path))
        assert path.stat().st_ino == inode
        for client in clients:
            client.close()


async def test_what_is_no_socket_is_not_replaced(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(PrepareFailed, match="something else than a socket is there"):
        await listeners.lease("alpha").open(unix(path))
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(PrepareFailed, match="something else than a socket is there"):
        await listeners.lease("alpha").open(unix(path))


async def test_a_path_that_became_somebody_elses_is_not_unlinked(listeners: Listeners, tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    leases = listeners.lease("alpha")
    await leases.open(unix(path))
    path.unlink()
    path.write_text("theirs")
    leases.release()
    assert path.read_text() == "theirs"


async def test_the_group_is_given_or_left(listeners: Listeners, tmp_path: Path) -> None:
    ours = grp.getgrgid(os.getgid()).gr_name
    await listeners.lease("alpha").open(unix(tmp_path / "a.sock"), group=ours)
    assert (tmp_path / "a.sock").stat().st_gid == os.getgid()
    listener = await listeners.lease("alpha").open(unix(tmp_path / "b.sock"), group="no-such-group")
    await served(listener)
    assert (tmp_path / "b.sock").stat().st_gid == os.getgid()


# --- systemd ----------------------------------------------------------------------------------------------------------


async def test_a_socket_of_the_socket_unit_is_taken_by_name_and_address(health: Health, tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(str(path))
    passed.listen()
    other = socket.create_server(("127.0.0.1", 0))
    listeners = Listeners(health=health, inherited={"control": [other, passed]})
    leases = listeners.lease("control")
    listener = await leases.open(unix(path))
    await served(listener)
    leases.release()
    assert path.exists(), "the path is systemd's"
    await served(await listeners.lease("control").open(unix(path)))
    listeners.drop_unclaimed()
    assert not await refused(f"127.0.0.1:{other.getsockname()[1]}"), "it is only complained about"
    listeners.close()


@pytest.mark.parametrize("name", ["beta", "unknown"])
async def test_a_socket_of_another_name_is_not_taken(health: Health, name: str) -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{passed.getsockname()[1]}"
    listeners = Listeners(health=health, inherited={name: [passed]})
    with pytest.raises(PrepareFailed, match="another program"):
        await listeners.lease("alpha").open(Listen(address=address))
    listeners.close()


async def test_what_does_not_fit_is_not_taken(health: Health) -> None:
    unfit = [
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        socket.socket(),  # does not listen
        socket.create_server(("127.0.0.1", 0)),  # another port
        socket.create_server(("::1", 0), family=socket.AF_INET6),
    ]
    unfit[1].bind(("127.0.0.1", 0))
    listeners = Listeners(health=health, inherited={"alpha": unfit})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = await listeners.lease("alpha").open(Listen(address=f"127.0.0.1:{port}"))
    assert listener.address == f"127.0.0.1:{port}"
    await served(listener)
    listeners.close()


async def test_listeners_survive_a_restart_through_the_fd_store(
    health: Health, systemd: FakeSystemd, notifier: Notifier, tmp_path: Path
) -> None:
    wanted = [ANY, Listen(address="[::1]:0"), unix(tmp_path / "x.sock"), ANY]
    before = Listeners(health=health, notifier=notifier)
    leases = before.lease("alpha")
    addresses = [(await leases.open(listen)).address for listen in wanted]
    before.leave_behind()
    before.close()
    queueing = [await connect(address) for address in addresses]

    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    leases = after.lease("alpha")
    for client, address, listen in zip(queueing, addresses, wanted, strict=True):
        listener = await leases.open(listen)
        assert listener.address == address
        async with client, await listener.accept() as server:
            await server.send_all(b"welcome back")
            assert await client.receive_some(64) == b"welcome back"
    after.drop_unclaimed()
    systemd.read()
    assert len(systemd.stored) == 4
    after.close()
    systemd.read()
    assert systemd.stored == {}, "closed for good, it is taken out of the store"
    assert not (tmp_path / "x.sock").exists()


async def test_a_stored_unix_socket_whose_path_is_gone_is_bound_anew(
    health: Health, systemd: FakeSystemd, notifier: Notifier, tmp_path: Path
) -> None:
    path = tmp_path / "x.sock"
    before = Listeners(health=health, notifier=notifier)
    await before.lease("alpha").open(unix(path))
    before.leave_behind()
    before.close()
    path.unlink()
    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    await served(await after.lease("alpha").open(unix(path)))
    after.drop_unclaimed()
    systemd.read()
    assert len(systemd.stored) == 1
    after.close()


async def test_stored_sockets_that_nobody_wants_any_more_are_given_up(
    health: Health, systemd: FakeSystemd, notifier: Notifier, tmp_path: Path
) -> None:
    before = Listeners(health=health, notifier=notifier)
    leases = before.lease("alpha")
    gone = (await leases.open(ANY)).address
    await leases.open(unix(tmp_path / "x.sock"))
    kept = (await before.lease("beta").open(ANY)).address
    before.leave_behind()
    before.close()
    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    after.hold("beta")  # still starting
    after.hold("alpha")  # serves, and was told to listen nowhere
    after.trim("alpha")
    assert not await refused(gone)
    after.drop_unclaimed()
    systemd.read()
    assert await refused(gone)
    assert not (tmp_path / "x.sock").exists()
    assert (await after.lease("beta").open(ANY)).address == kept
    after.close()


async def test_a_service_that_is_stopped_takes_its_socket_out_of_the_store(
    health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    listeners = Listeners(health=health, notifier=notifier)
    leases = listeners.lease("alpha")
    await leases.open(ANY)
    systemd.read()
    assert len(systemd.stored) == 1
    leases.release()
    systemd.read()
    assert systemd.stored == {}


async def test_a_listener_that_moved_to_another_service_keeps_its_queue(
    health: Health, systemd: FakeSystemd, notifier: Notifier, tmp_path: Path
) -> None:
    before = Listeners(health=health, notifier=notifier)
    leases = before.lease("alpha")
    wanted = [Listen(address=(await leases.open(ANY)).address), unix(tmp_path / "x.sock")]
    await leases.open(wanted[1])
    before.leave_behind()
    before.close()
    queueing = [await connect(listen.address) for listen in wanted]

    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    leases = after.lease("beta")
    for client, listen in zip(queueing, wanted, strict=True):
        listener = await leases.open(listen)
        async with client, await listener.accept() as server:
            await server.send_all(b"moved")
            assert await client.receive_some(64) == b"moved"
    after.drop_unclaimed()
    systemd.read()
    assert [name.split(".")[0] for name in systemd.stored] == ["beta", "beta"], "under the name of whose they are now"
    after.close()
    systemd.read()
    assert systemd.stored == {}
    assert not (tmp_path / "x.sock").exists()


async def test_an_address_that_became_wider_while_the_daemon_was_down(
    health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    before = Listeners(health=health, notifier=notifier)
    narrow = (await before.lease("alpha").open(ANY)).address
    before.leave_behind()
    before.close()
    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    wide = await after.lease("beta").open(Listen(address=narrow.replace("127.0.0.1", "0.0.0.0")))
    after.drop_unclaimed()
    await served(wide, narrow)
    systemd.read()
    assert [name.split(".")[0] for name in systemd.stored] == ["beta"]
    after.close()


async def test_what_is_closed_for_good_is_closed_though_systemd_has_a_copy(
    health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    listeners = Listeners(health=health, notifier=notifier)
    leases = listeners.lease("alpha")
    address = (await leases.open(ANY)).address
    systemd.read()
    copies = systemd.stored
    assert len(copies) == 1
    leases.release()
    # systemd has been told, and has not read it yet
    assert await refused(address)
    again = await listeners.lease("beta").open(Listen(address=address))
    await served(again)
    systemd.read()
    assert [name.split(".")[0] for name in systemd.stored] == ["beta"]
    listeners.close()


async def test_a_service_that_comes_up_late_gives_up_what_it_does_not_want(
    health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    before = Listeners(health=health, notifier=notifier)
    leases = before.lease("alpha")
    kept, gone = (await leases.open(ANY)).address, (await leases.open(ANY)).address
    before.leave_behind()
    before.close()
    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    after.hold("alpha")
    after.drop_unclaimed()
    assert not await refused(gone), "it has not come up yet"
    assert (await after.lease("alpha").open(ANY)).address == kept
    after.trim("alpha")
    assert await refused(gone)
    assert not await refused(kept)
    systemd.read()
    assert len(systemd.stored) == 1
    after.close()


async def test_a_unit_that_has_yet_to_serve_keeps_what_was_stored_for_it(
    autojump_clock: MockClock, nursery: trio.Nursery, health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    before = Listeners(health=health, notifier=notifier)
    leases = before.lease("alpha")
    kept, gone = (await leases.open(ANY)).address, (await leases.open(ANY)).address
    off = (await before.lease("beta").open(ANY)).address
    before.leave_behind()
    before.close()

    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    store = cast("Store", cast("Any", None))
    supervisor = Supervisor(
        Shared(Bus(), health, Metrics(), store, after), RestartPolicy(backoff_initial=100, jitter=0, start_timeout=10)
    )
    script = Script("alpha")
    script.then(Behaviour(prepare_takes=1000))
    unit = supervisor.add(script.type, ScriptConfig(listen=[ANY]))
    supervisor.add(Script("beta").type, ScriptConfig(enabled=False))
    await nursery.start(supervisor.run)
    outcomes = await supervisor.start_all()
    assert outcomes["alpha"].outcome == "backoff"
    after.drop_unclaimed()
    systemd.read()
    assert [name.split(".")[0] for name in systemd.stored] == ["alpha", "alpha"]
    assert await refused(off)
    assert not await refused(kept)
    assert not await refused(gone), "who knows what it is going to ask for"

    await trio.sleep(100)
    assert unit.state == "running"
    assert unit.snapshot().addresses == [kept]
    assert await refused(gone)
    await supervisor.stop("alpha")
    systemd.read()
    assert systemd.stored == {}
    nursery.cancel_scope.cancel()


async def test_a_unit_that_is_stopped_before_it_served_gives_up_what_was_stored_for_it(
    autojump_clock: MockClock, nursery: trio.Nursery, health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    before = Listeners(health=health, notifier=notifier)
    address = (await before.lease("alpha").open(ANY)).address
    before.leave_behind()
    before.close()

    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    supervisor = Supervisor(
        Shared(Bus(), health, Metrics(), cast("Store", cast("Any", None)), after), RestartPolicy(start_timeout=10)
    )
    script = Script("alpha")
    script.then(*[Behaviour(prepare_takes=1000)] * 10)
    supervisor.add(script.type, ScriptConfig(listen=[ANY]))
    await nursery.start(supervisor.run)
    await supervisor.start_all()
    after.drop_unclaimed()
    assert not await refused(address)
    await supervisor.stop("alpha")
    assert await refused(address)
    systemd.read()
    assert systemd.stored == {}
    nursery.cancel_scope.cancel()


async def test_what_the_store_has_no_room_for_is_said(
    health: Health, systemd: FakeSystemd, notifier: Notifier, tmp_path: Path
) -> None:
    notifier.store_max = 2
    listeners = Listeners(health=health, notifier=notifier)
    early, late = listeners.lease("alpha"), listeners.lease("beta")
    for _ in range(2):
        await early.open(ANY)
    listeners.drop_unclaimed()
    assert not health.warnings()
    last = await late.open(unix(tmp_path / "x.sock"))
    (warning,) = health.warnings()
    assert warning.code == "listeners.store"
    assert f"cannot keep 1 of 3 listeners open over a restart, {last.address} is one" in warning.message
    assert "FileDescriptorStoreMax=" in (warning.advice or "")
    systemd.read()
    assert len(systemd.stored) == 2
    early.release()
    assert not health.warnings(), "there is room again, and it is used"
    systemd.read()
    assert [name.split(".")[0] for name in systemd.stored] == ["beta"]
    listeners.close()


async def test_a_generation_that_never_served_does_not_cost_what_systemd_kept(
    health: Health, systemd: FakeSystemd, notifier: Notifier
) -> None:
    before = Listeners(health=health, notifier=notifier)
    address = (await before.lease("alpha").open(ANY)).address
    before.leave_behind()
    before.close()
    waiting = await connect(address)

    after = Listeners(health=health, notifier=notifier, inherited=systemd.hand_over())
    after.hold("alpha")
    leases = after.lease("alpha")
    await leases.open(ANY)
    new = (await leases.open(Listen(address="[::1]:0"))).address
    leases.release(abandon=True)
    assert await refused(new)
    async with waiting, await (await after.lease("alpha").open(ANY)).accept() as server:
        await server.send_all(b"late")
        assert await waiting.receive_some(64) == b"late"
    systemd.read()
    assert len(systemd.stored) == 1
    after.close()
