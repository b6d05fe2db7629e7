"""systemd: messages and descriptors against a fake service manager, sockets by name, and what feeds the watchdog."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netd.systemd import STORE_MAX, Notifier, listen_fds, watchdog, watchdog_interval
from tests.support.systemd import FakeSystemd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


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


# --- notify -----------------------------------------------------------------------------------------------------------


def test_the_life_of_a_daemon(systemd: FakeSystemd, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.ready("serving")
    notifier.status("two clients → fine")
    notifier.reloading()
    notifier.extend_timeout(1.5)
    notifier.watchdog()
    notifier.stopping()
    messages = systemd.read()
    monotonic = int(messages[2].pop("MONOTONIC_USEC"))
    assert before <= monotonic <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert messages == [
        {"READY": "1", "STATUS": "serving"},
        {"STATUS": "two clients → fine"},
        {"RELOADING": "1"},
        {"EXTEND_TIMEOUT_USEC": "1500000"},
        {"WATCHDOG": "1"},
        {"STOPPING": "1"},
    ]


def test_a_status_stays_one_assignment(systemd: FakeSystemd, notifier: Notifier) -> None:
    notifier.status("fine\nSTOPPING=1\n" + "x" * 10_000)
    (message,) = systemd.read()
    assert list(message) == ["STATUS"]
    assert message["STATUS"].startswith("fine STOPPING=1 xxx")
    assert len(message["STATUS"]) == 512


def test_without_a_service_manager_nothing_happens() -> None:
    environ: dict[str, str] = {}
    notifier = Notifier.from_environ(environ)
    assert not notifier.active
    notifier.ready()
    with socket.socket() as sock:
        notifier.store("alpha.1", sock)
    notifier.close()


def test_the_environment_is_read_once(systemd: FakeSystemd) -> None:
    environ = {"NOTIFY_SOCKET": systemd.address}
    notifier = Notifier.from_environ(environ)
    assert notifier.active
    assert environ == {}
    assert "NOTIFY_SOCKET" not in os.environ
    assert notifier.store_max == STORE_MAX
    notifier.close()
    assert not notifier.active


@pytest.mark.parametrize(("told", "expected"), [("7", 7), ("", STORE_MAX), ("many", STORE_MAX)])
def test_how_many_descriptors_systemd_keeps(systemd: FakeSystemd, told: str, expected: int) -> None:
    environ = {"NOTIFY_SOCKET": systemd.address, "FDSTORE": told}
    notifier = Notifier.from_environ(environ)
    assert notifier.store_max == expected
    assert environ == {}
    notifier.close()


def test_what_the_unit_keeps_is_what_is_taken_for_granted() -> None:
    unit = (Path(__file__).parents[1] / "systemd" / "netd.service").read_text()
    assert f"\nFileDescriptorStoreMax={STORE_MAX}\n" in unit


def test_an_abstract_address(tmp_path: Path) -> None:
    name = f"netd-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        notifier = Notifier(f"@{name}")
        notifier.ready()
        assert manager.recv(100) == b"READY=1"
        notifier.close()


def test_a_service_manager_that_went_away_is_no_reason_to_fail(systemd: FakeSystemd, notifier: Notifier) -> None:
    systemd.close()
    notifier.ready()
    with socket.socket() as sock:
        notifier.store("alpha.1", sock)
    nobody = Notifier("/no/such/socket")
    assert not nobody.active


def test_a_service_manager_that_does_not_read_blocks_neither_status_nor_watchdog(
    systemd: FakeSystemd, notifier: Notifier
) -> None:
    for number in range(1000):
        notifier.status(str(number))
        notifier.watchdog()
    assert systemd.read()[0] == {"STATUS": "0"}
    notifier.status("now there is room")
    assert systemd.read() == [{"STATUS": "now there is room"}]


def test_a_descriptor_is_stored_and_is_the_same_socket(systemd: FakeSystemd, notifier: Notifier) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        notifier.store("alpha.1", sock)
        assert systemd.read() == [{"FDSTORE": "1", "FDNAME": "alpha.1"}]
        (copy,) = systemd.stored["alpha.1"]
        assert os.fstat(copy.fileno()).st_ino == os.fstat(sock.fileno()).st_ino
    notifier.unstore("alpha.1")
    assert systemd.read() == [{"FDSTOREREMOVE": "1", "FDNAME": "alpha.1"}]
    assert systemd.stored == {}


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "é", "x" * 256])
def test_names_that_systemd_would_not_take(notifier: Notifier, name: str) -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="cannot store a descriptor as"):
        notifier.store(name, sock)
    with pytest.raises(ValueError, match="cannot store"):
        notifier.unstore(name)


# --- LISTEN_FDS -------------------------------------------------------------------------------------------------------


def passed(*socks: socket.socket, names: str | None) -> dict[str, list[socket.socket]]:
    """What `listen_fds` makes of these, passed as consecutive descriptors from 200 on."""
    for index, sock in enumerate(socks):
        os.dup2(sock.fileno(), 200 + index, inheritable=True)
    environ = {"LISTEN_FDS": str(len(socks)), "LISTEN_PID": str(os.getpid())}
    if names is not None:
        environ["LISTEN_FDNAMES"] = names
    found = listen_fds(environ, first=200)
    assert environ == {}
    return found


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("control:trace", {"control": 1, "trace": 1}),
        ("trace:trace", {"trace": 2}),
        ("control", {"control": 1, "unknown": 1}),
        (None, {"unknown": 2}),
    ],
)
def test_sockets_by_name(tmp_path: Path, names: str | None, expected: dict[str, int]) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.create_server(("127.0.0.1", 0)) as two:
        one.bind(str(tmp_path / "x"))
        found = passed(one, two, names=names)
        assert {name: len(socks) for name, socks in found.items()} == expected
        everything = [sock for socks in found.values() for sock in socks]
        assert {sock.family for sock in everything} == {socket.AF_UNIX, socket.AF_INET}
        for sock in everything:
            assert not os.get_inheritable(sock.fileno())
            assert not sock.getblocking()
            sock.close()


def test_what_is_no_socket_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        os.dup2(file.fileno(), 200)
    environ = {"LISTEN_FDS": "2", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "a:b"}
    assert listen_fds(environ, first=200) == {}  # 201 is not even open
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(200)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "many", "LISTEN_PID": "PID"},
        {"LISTEN_FDS": "-1", "LISTEN_PID": "PID"},
        {"LISTEN_FDS": "99999999", "LISTEN_PID": "PID"},
        {"LISTEN_FDS": "0", "LISTEN_PID": "PID", "LISTEN_PIDFDID": "7"},
    ],
)
def test_what_is_not_meant_for_us_or_makes_no_sense(environ: dict[str, str]) -> None:
    environ = {key: value.replace("PID", str(os.getpid())) for key, value in environ.items()}
    assert listen_fds(environ) == {}
    assert environ == {}


def test_a_process_that_is_really_handed_a_socket() -> None:
    """Exec'ed with the socket as descriptor 3, as systemd does it."""
    child = textwrap.dedent("""
        import os, sys
        from netd.systemd import listen_fds
        os.environ["LISTEN_PID"] = str(os.getpid())
        found = listen_fds()
        print(list(found), found["trace"][0].getsockname()[1], sorted(k for k in os.environ if k.startswith("LISTEN")))
    """)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fd = sock.fileno()
        python = sys.executable
        as_three = f"import os; os.dup2({fd}, 3); os.execv({python!r}, [{python!r}, '-c', {child!r}])"
        done = subprocess.run(
            [python, "-c", as_three],
            pass_fds=[fd],
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "trace"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == f"['trace'] {sock.getsockname()[1]} []\n", done.stderr


# --- the watchdog -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "PID"}, 10.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_how_often_systemd_wants_to_hear(environ: dict[str, str], expected: float | None) -> None:
    environ = {key: value.replace("PID", str(os.getpid())) for key, value in environ.items()}
    assert watchdog_interval(environ) == expected
    assert environ == {}


class Wall:
    """Real time as the watchdog sees it: trio's clock, plus what blocked the loop."""

    def __init__(self) -> None:
        self.blocked = 0.0

    def __call__(self) -> float:
        return trio.current_time() + self.blocked


async def always() -> None:
    await trio.lowlevel.checkpoint()


async def test_a_healthy_loop_is_fed_four_times_an_interval(
    autojump_clock: MockClock, systemd: FakeSystemd, notifier: Notifier, nursery: trio.Nursery
) -> None:
    nursery.start_soon(partial(watchdog, notifier, 1, always, clock=Wall()))
    for _ in range(10):
        await trio.sleep(0.999)
        assert systemd.read() == [{"WATCHDOG": "1"}] * 4
    nursery.cancel_scope.cancel()


async def test_units_that_do_not_answer_starve_it(
    autojump_clock: MockClock, systemd: FakeSystemd, notifier: Notifier, nursery: trio.Nursery
) -> None:
    answering = trio.Event()
    nursery.start_soon(partial(watchdog, notifier, 1, answering.wait, clock=Wall()))
    await trio.sleep(10)
    assert systemd.read() == []
    answering.set()
    await trio.sleep(1)
    assert systemd.read()[0] == {"WATCHDOG": "1"}
    nursery.cancel_scope.cancel()


async def test_a_loop_that_others_keep_busy_starves_it_until_they_stop(
    autojump_clock: MockClock, systemd: FakeSystemd, notifier: Notifier, nursery: trio.Nursery
) -> None:
    wall = Wall()
    computing = 0.3

    async def pulse() -> None:
        await trio.lowlevel.checkpoint()
        wall.blocked += computing  # somebody computed for this long before we had our turn

    nursery.start_soon(partial(watchdog, notifier, 1, pulse, clock=wall))
    for _ in range(50):
        await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(0.25)
    assert wall.blocked > 3
    assert systemd.read() == [], "every beat was later than its bound of a quarter of a second"
    computing = 0.0
    await trio.sleep(1)
    assert len(systemd.read()) >= 3
    nursery.cancel_scope.cancel()


async def test_a_loop_that_is_really_blocked_misses_its_beat(
    systemd: FakeSystemd, notifier: Notifier, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real clock: after the loop stood still, the beat that was due meanwhile is withheld."""
    beats = 0
    fed_at = []
    fed = trio.Event()

    async def pulse() -> None:
        nonlocal beats
        await trio.lowlevel.checkpoint()
        beats += 1
        if beats == 1:
            time.sleep(0.2)  # noqa: ASYNC251  # the very thing that the watchdog is there to find

    def feed() -> None:
        fed_at.append(beats)
        fed.set()

    monkeypatch.setattr(notifier, "watchdog", feed)
    nursery.start_soon(watchdog, notifier, 0.4, pulse)
    with trio.fail_after(30):
        await fed.wait()
    assert fed_at[0] >= 2, "the first beat took longer than its bound of 0.1 s"
    nursery.cancel_scope.cancel()
