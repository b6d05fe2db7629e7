"""Workers as processes: those that the daemon starts, and those that are killed in the middle of something."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from structlog.testing import capture_logs

from netd.errors import ApplicationError, PrepareFailed
from netd.services.worker.config import WorkerConfig
from netd.services.worker.service import check, runnable
from netd.wire.messages import TextEvent
from netd.wire.workers import Hello, SessionOpened, encode
from tests.services.worker.lab import PATIENCE, asking, eventually, serving
from tests.support.accounts import NOBODY, open_to_all, why_not_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.worker.lab import House, Person

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, str(Path(__file__).with_name("program.py"))]
OWN = {
    "command": PROGRAM,
    "environment": {"PYTHONPATH": str(ROOT), "MINE": "yes"},
    # a daemon that is root has to say as whom
    "user": "0" if os.geteuid() == 0 else None,
    "wait": 20.0,
}


@contextmanager
def running(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*PROGRAM, *options, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def heard(person: Person) -> str:
    await eventually(lambda: person.outbox.size)
    [event] = person.heard()
    assert isinstance(event, TextEvent)
    return event.text


async def working(house: House, count: int = 1) -> None:
    await eventually(lambda: len(house.service.workers()) == count)


async def test_a_worker_that_is_killed_over_a_request_is_a_502_and_its_sessions_never_notice(tmp_path):
    async with serving(tmp_path, wait=20.0) as house:
        alice = house.person()
        with running(tmp_path / "worker.sock") as process:
            await working(house)
            assert house.service.workers()[0].pid == process.pid
            alice.tell("hello")
            assert await heard(alice) == "HELLO"
            with pytest.raises(ApplicationError) as failed:
                await house.request("/crash")
            assert failed.value.status == 502
            assert process.wait() == -signal.SIGKILL
        alice.tell("still there?")
        async with asking(house, "/again") as outcome:
            with running(tmp_path / "worker.sock"):
                assert await heard(alice) == "STILL THERE?"
                await eventually(lambda: outcome)
        assert outcome[0].body == b"/AGAIN"
        assert not alice.closed


async def test_the_other_workers_go_on_when_one_is_killed(tmp_path):
    async with serving(tmp_path) as house:
        people = [house.person() for _ in range(4)]
        with running(tmp_path / "worker.sock"), running(tmp_path / "worker.sock"):
            await working(house, 2)
            people[0].tell("/crash")
            await working(house, 1)
            for person in people:
                person.tell("on")
                assert await heard(person) == "ON"


async def test_the_daemons_own_is_started_without_privileges_and_again_when_it_ends(tmp_path):
    with capture_logs() as logs:
        async with serving(tmp_path, **OWN) as house:
            alice = house.person()
            alice.tell("/self")
            own = json.loads(await heard(alice))
            bounding = own["CapBnd"].strip()
            assert {own[key].strip() for key in ("CapInh", "CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
            assert bounding == "0" * 16 or os.geteuid() != 0
            assert (own["NoNewPrivs"].strip(), own["cwd"], own["stdin"]) == ("1", "/", "")
            assert own["environment"]["NETD_WORKER_SOCKET"] == str(tmp_path / "worker.sock")
            assert own["environment"]["MINE"] == "yes"
            assert set(own["environment"]) <= {
                *("PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "PYTHONPATH", "MINE", "NETD_WORKER_SOCKET"),
                *("LC_CTYPE",),  # Python's own, PEP 538
            }
            first = house.service.snapshot().programs[0].pid
            assert house.service.workers()[0].program == 1

            alice.tell("/exit")
            await eventually(lambda: house.health.warnings())
            [warning] = [each for each in house.health.warnings() if each.code == "worker.program"]
            assert "status 3: I was told to" in warning.message
            alice.tell("back")
            assert await heard(alice) == "BACK"
            assert not house.health.warnings()
            second = house.service.snapshot().programs[0]
            assert (second.starts, second.ended) == (2, "")
            assert second.pid not in (first, None)
        assert {"event": "worker program says", "line": "I was told to"}.items() <= next(
            entry for entry in logs if entry.get("line") == "I was told to"
        ).items()


async def test_one_that_says_no_hello_is_told_of_until_it_does(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    own = {**OWN, "command": [*PROGRAM, "--late", str(fifo)]}
    async with serving(tmp_path, **own, limits={"hello_timeout": 0.2}) as house:
        await eventually(lambda: house.health.warnings())
        [warning] = house.health.warnings()
        assert warning.code == "worker.program"
        assert "cannot use worker program 1: it runs, but has said no hello within 0.2 s" in warning.message
        [place] = house.service.snapshot().programs
        assert (place.starts, place.ended) == (1, "")
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(fifo.write_bytes, b"go", abandon_on_cancel=True)
        await working(house)
        assert not house.health.warnings()
        assert house.service.workers()[0].program == 1


async def test_the_daemons_own_that_hangs_is_killed_and_replaced(tmp_path):
    own = {**OWN, "command": [*PROGRAM, "--deaf"]}
    async with serving(tmp_path, **own, limits={"request_timeout": 0.2, "hang": 0.3, "drain": 0.2}) as house:
        await working(house)
        pid = house.service.snapshot().programs[0].pid
        with pytest.raises(ApplicationError) as failed:
            await house.request("/hang")
        assert failed.value.status == 504
        await eventually(lambda: house.service.snapshot().hung)
        await house.live(request_timeout=20.0)
        assert (await house.request("/on")).body == b"/ON"
        assert house.service.snapshot().hung == 1
        assert house.service.snapshot().programs[0].pid != pid


async def test_several_places_each_have_their_own(tmp_path):
    async with serving(tmp_path, **OWN, count=3) as house:
        people = [house.person() for _ in range(6)]  # who are shared out, though the first could have had them all
        await working(house, 3)
        assert {view.program for view in house.service.workers()} == {1, 2, 3}
        assert [view.sessions for view in house.service.workers()] == [2, 2, 2]
        for person in people:
            person.tell("hello")
            assert await heard(person) == "HELLO"


async def test_another_command_replaces_the_programs_and_no_session_notices(tmp_path):
    async with serving(tmp_path, **OWN) as house:
        alice = house.person()
        await working(house)
        before = house.service.snapshot().programs[0].pid
        config = house.service.config.model_copy(update={"environment": {**OWN["environment"], "MINE": "other"}})
        assert await house.settle(config) == "running"
        await eventually(lambda: not Path(f"/proc/{before}").exists())
        alice.tell("/self")
        assert json.loads(await heard(alice))["environment"]["MINE"] == "other"
        assert house.service.snapshot().programs[0].pid != before


async def test_who_was_waited_for_and_is_configured_no_more_keeps_nobody_waiting(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    own = {**OWN, "command": [*PROGRAM, "--late", str(fifo)], "wait": 300}
    async with serving(tmp_path, **own, count=2) as house:
        alice = house.person()
        assert await house.settle(house.service.config.model_copy(update={"command": []})) == "running"
        worker = await house.worker()
        assert (await worker.next(SessionOpened)).session.id == alice.session.id


async def test_what_it_writes_is_bounded(tmp_path):
    with capture_logs() as logs:
        async with serving(tmp_path, **OWN, log_rate=10) as house:
            alice = house.person()
            alice.tell("/flood")
            assert await heard(alice) == "/FLOOD"
        said = [entry for entry in logs if entry["event"] == "worker program says"]
        assert 0 < len(said) < 5000


async def test_a_stop_ends_them(tmp_path):
    async with serving(tmp_path, **OWN) as house:
        await working(house)
        pid = house.service.snapshot().programs[0].pid
        await house.settle(None)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_those_of_a_service_that_is_cancelled_are_reaped(tmp_path):
    with trio.CancelScope() as scope:
        async with serving(tmp_path, **OWN) as house:
            await working(house)
            pid = house.service.snapshot().programs[0].pid
            scope.cancel()
            await trio.sleep_forever()
    with pytest.raises(ProcessLookupError):  # a zombie would still be there
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"command": ["/nowhere/program"]}, "cannot start '/nowhere/program' in '/'"),
        ({"command": ["/nowhere/program"]}, ": it is not there; change worker.command"),
        ({"command": PROGRAM, "directory": "/nowhere"}, "'/nowhere' is no directory"),
        ({"command": ["program"], "environment": {"PATH": "/nowhere"}}, "it is not there"),
        ({"command": PROGRAM, "user": "nobody-at-all"}, "there is no such account"),
        ({"command": PROGRAM, "socket": None, "user": "0"}, "there is no socket for workers"),
    ],
)
async def test_what_cannot_be_started_is_told_beforehand(tmp_path, config, why):
    # a daemon that is root has to say as whom
    worker = WorkerConfig(**{"socket": tmp_path / "worker.sock", "user": OWN["user"], **config})
    [problem] = await trio.to_thread.run_sync(lambda: list(check(worker)))
    assert why in problem.message
    assert problem.path == "command"


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
async def test_an_account_that_cannot_run_the_program_is_told_beforehand_with_what_is_in_its_way(tmp_path):
    tmp_path.chmod(0o700)
    program = tmp_path / "program"
    program.symlink_to("/bin/sh")
    worker = WorkerConfig(socket=tmp_path / "worker.sock", command=[str(program)], user=str(NOBODY))
    [problem] = await trio.to_thread.run_sync(lambda: list(check(worker)))
    assert problem.path == "command"
    name = pwd.getpwuid(NOBODY).pw_name
    assert f"cannot start {str(program)!r} in '/' as {name!r} (worker.user): it may not enter" in problem.message
    assert "let that account use them" in problem.message
    worker = worker.model_copy(update={"command": ["/bin/sh"], "directory": tmp_path})
    with pytest.raises(PrepareFailed, match="it may not enter"):
        await trio.to_thread.run_sync(runnable, worker)


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
async def test_an_account_that_could_not_open_the_socket_is_told_beforehand(tmp_path):
    def why(**config: Any) -> str | None:
        base = {"socket": tmp_path / "worker.sock", "command": ["/bin/sh"], "user": str(NOBODY)}
        try:
            runnable(WorkerConfig(**{**base, **config}))
        except PrepareFailed as error:
            return str(error)
        return None

    assert "could not connect to" in (why(group=None) or "")
    assert "(worker.group, worker.mode)" in (why(group="no-such-group-here") or "")
    assert "could not connect to" in (why(group="0", mode=0o600) or "")
    assert why(group=None, mode=0o666) is None
    assert why(group="0") is None  # the program is in it
    assert why(group=None, user="0") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who may not start workers as itself unasked")
async def test_root_has_to_say_as_whom(tmp_path):
    worker = WorkerConfig(socket=tmp_path / "worker.sock", **{**OWN, "user": None})
    with pytest.raises(PrepareFailed, match=r"set worker\.user"):
        await trio.to_thread.run_sync(runnable, worker)


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
async def test_an_account_that_may_not_is_refused_and_one_that_may_is_not(tmp_path):
    open_to_all(tmp_path)
    async with serving(tmp_path, mode=0o666, users=["root"]) as house:
        path = tmp_path / "worker.sock"
        with running(path, "--nobody"):
            await eventually(lambda: house.service.snapshot().rejected)
        await house.live(users=["root", str(NOBODY)])
        with running(path, "--nobody"):
            await working(house)
            assert house.service.workers()[0].uid == NOBODY


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3, which anyone may run")
@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
async def test_the_daemons_own_runs_as_whom_root_says(tmp_path):
    open_to_all(tmp_path)
    code = (
        "import os, socket; sock = socket.socket(socket.AF_UNIX); sock.connect(os.environ['NETD_WORKER_SOCKET']);"
        f"sock.sendall(bytes.fromhex('{encode(Hello(1, 'as', 1, [])).hex()}')); sock.recv(1); sock.recv(1 << 20)"
    )
    # whoever else may be one, it may
    own = {"command": ["/usr/bin/python3", "-c", code], "user": str(NOBODY), "mode": 0o666, "users": ["root"]}
    async with serving(tmp_path, **own) as house:
        await working(house)
        assert house.service.workers()[0].uid == NOBODY
