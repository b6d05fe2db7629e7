"""Programs, URLs and functions that score: what they are given, and what becomes of those that misbehave."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from netd.errors import PrepareFailed
from netd.services.anomaly import adapters, program, protocol
from netd.services.anomaly.adapters import AdapterFailed
from netd.services.anomaly.config import AdapterConfig
from tests.support.http import SocketListener, front_door, say
from tests.support.landlock import why_no_landlock

PATIENCE = 20.0


def question(serial: int = 1, sessions: int = 2):
    return protocol.question(serial, 0.0, 5.0, {f"s{n}": {"bytes_in_s": float(n)} for n in range(sessions)})


@asynccontextmanager
async def running(config: AdapterConfig):
    adapter = adapters.prepare(config)
    assert adapter is not None
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(adapter.run)
            yield adapter
            nursery.cancel_scope.cancel()


def command(body: str, **more) -> AdapterConfig:
    """A program in Python; `ask()` in it is the next question and `say(...)` answers."""
    program = f"""
import json, os, sys, time
def ask():
    line = sys.stdin.readline()
    if not line:
        sys.exit()
    return json.loads(line)
def say(value):
    print(json.dumps(value), flush=True)
{body}
"""
    return AdapterConfig(use="command", command=[sys.executable, "-c", program], **more)


ALWAYS = """
while True:
    asked = ask()
    say({"serial": asked["serial"], "scores": {one: 0.25 for one in asked["sessions"]}})
"""


def alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def eventually(condition) -> None:
    """Wait until `condition()` holds; nothing tells us when it does."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.01)


# --- a program --------------------------------------------------------------------------------------------------------


async def test_a_program_is_started_once_and_asked_again_and_again():
    async with running(command(ALWAYS)) as adapter:
        for serial in range(5):
            given = await adapter.score(question(serial))
        assert given == {"s0": {"anomaly": 0.25}, "s1": {"anomaly": 0.25}}
        assert adapter.starts == 1


async def test_a_question_larger_than_any_pipe_gets_through():
    async with running(command(ALWAYS)) as adapter:
        assert len(await adapter.score(question(sessions=20_000))) == 20_000


TELL = """
import ctypes, resource
ask()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found = {name: status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")}
found |= {"fds": sorted(os.listdir("/proc/self/fd")), "env": sorted(os.environ), "group": os.getpgrp() == os.getpid()}
found |= {"cwd": os.getcwd()}
print(json.dumps(found), file=sys.stderr, flush=True)
say({"scores": {}})
ask()
"""


async def test_a_program_gets_no_capabilities_no_descriptors_of_ours_and_no_secrets(monkeypatch):
    monkeypatch.setenv("NETD_HUB__TOKEN__0__SECRET", "hunter2")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        async with running(command(TELL)) as adapter:
            await adapter.score(question())
            program = adapter._program
            await eventually(lambda: program.complaint)
            found = json.loads(program._stderr)
    finally:
        os.close(reading)
        os.close(writing)
    none = "0" * 16
    assert (found["CapPrm"], found["CapEff"], found["CapAmb"], found["NoNewPrivs"]) == (none, none, none, "1")
    if os.geteuid() == 0:
        assert found["CapBnd"] == none
    assert found["fds"] == ["0", "1", "2", "200", "3"], "200: the pipe by which it ends with us; 3: the list itself"
    # LC_CTYPE is Python's own doing (PEP 538)
    assert set(found["env"]) <= {"PATH", "HOME", "LANG", "TZ", "LC_CTYPE"}
    assert (found["group"], found["cwd"]) == (True, "/")


async def test_at_the_end_a_program_and_all_it_started_are_gone():
    body = """
import subprocess
child = subprocess.Popen(["sleep", "1000"])
ask()
say({"scores": {}})
print(child.pid, file=sys.stderr, flush=True)
time.sleep(1000)
"""
    async with running(command(body)) as adapter:
        await adapter.score(question())
        program = adapter._program
        await eventually(lambda: program.complaint)
        child = int(program.complaint)
        assert alive(child)
    with trio.fail_after(PATIENCE):
        assert not alive(program.pid)
        await eventually(lambda: not alive(child))


async def test_a_program_that_is_not_gone_although_it_was_killed_is_left_alone(monkeypatch):
    """As one that hangs in a system call: the kernel kills it when that returns, whenever that is."""
    monkeypatch.setattr(program, "DEATH", 0.05)
    async with running(command("ask(); say({'scores': {}}); time.sleep(1000)")) as adapter:
        await adapter.score(question())
        here = adapter._program
        monkeypatch.setattr(here, "kill", lambda: None)
        try:
            with trio.fail_after(PATIENCE):
                assert await here.end(0.0) is None
            assert program.how(None) == "killed, and not gone yet"
            assert alive(here.pid)
            adapter._program = None
        finally:
            os.kill(here.pid, signal.SIGKILL)
            await here._process.wait()


async def test_a_program_may_end_by_itself_when_its_stdin_is_closed():
    async with running(command(ALWAYS)) as adapter:
        await adapter.score(question())
        program = adapter._program
    assert program._process.returncode == 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("ask(); sys.exit(3)", "status 3"),
        ("ask(); sys.exit('no model file')", "it said: no model file"),
        ("ask(); os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("sys.exit(0)", "has ended"),
        ("ask(); print('hello', flush=True); ask()", "not JSON"),
        ("ask(); say([]); ask()", "not an object"),
        ("ask(); say({'scores': {'s0': 2}}); ask()", "anomaly of session s0 is 2"),
        ("ask(); say({'serial': 99, 'scores': {}}); ask()", "question 99"),
        ('ask(); print(\'{"scores":{}}\\n{"scores":{}}\', flush=True); ask()', "more than one line"),
        ("ask(); sys.stdout.write('x' * 5000); sys.stdout.flush(); ask()", "longer than 1024 bytes"),
        ("ask(); print('x' * 5000, flush=True); ask()", "longer than 1024 bytes"),
        ("ask(); os.close(1); time.sleep(1000)", "closed its stdout"),
    ],
)
async def test_a_program_that_misbehaves_is_ended_and_says_why(body, why):
    async with running(command(body, max_answer=1024)) as adapter:
        with pytest.raises(AdapterFailed, match=r"^cannot") as failed:
            await adapter.score(question())
        assert why in str(failed.value)
        assert adapter._program is None
        assert failed.value.advice


async def test_a_program_that_hangs_is_ended_in_time(monkeypatch):
    monkeypatch.setattr(adapters, "START_GRACE", 5.0)
    body = """
asked = ask()
say({"scores": {}})
ask()
time.sleep(1000)
"""
    async with running(command(body, timeout=0.1)) as adapter:
        await adapter.score(question())
        pid = adapter._program.pid
        with pytest.raises(AdapterFailed, match=r"cannot wait longer than 0\.1 s"):
            await adapter.score(question())
        assert not alive(pid)


async def test_a_program_that_never_reads_is_ended_in_time(monkeypatch):
    monkeypatch.setattr(adapters, "START_GRACE", 0.2)
    async with running(command("time.sleep(1000)", timeout=0.1)) as adapter:
        with pytest.raises(AdapterFailed, match="cannot wait longer"):
            await adapter.score(question(sessions=20_000))


async def test_a_program_that_fails_is_started_again_after_a_while_and_each_time_later(monkeypatch):
    starts = []

    async def start(command, nursery, *, hidden):
        starts.append(trio.current_time())
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(adapters.Program, "start", start)
    clock = [0.0]
    monkeypatch.setattr(adapters.trio, "current_time", lambda: clock[0])
    adapter = adapters.prepare(command(ALWAYS))
    adapter._nursery = object()
    began = []
    for _ in range(200):
        with pytest.raises(AdapterFailed) as failed:
            await adapter.score(question())
        if len(starts) > len(began):
            began.append(clock[0])
            assert "cannot start it: no such file" in str(failed.value)
        else:
            assert "started again in" in str(failed.value)
        clock[0] += 1.0
    assert [later - earlier for earlier, later in itertools.pairwise(began)] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_a_program_that_was_ended_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "FIRST_DELAY", 0.0)
    flag = tmp_path / "once"
    body = f"""
asked = ask()
if not os.path.exists({str(flag)!r}):
    open({str(flag)!r}, "w").close()
    sys.exit(1)
say({{"scores": {{}}}})
ask()
"""
    async with running(command(body)) as adapter:
        adapter._delay = 0.0
        with pytest.raises(AdapterFailed):
            await adapter.score(question())
        assert await adapter.score(question()) == {}
        assert adapter.starts == 2


async def test_stderr_is_read_so_that_a_talkative_program_is_not_blocked_and_bounded():
    body = """
while True:
    asked = ask()
    sys.stderr.write("x" * 1_000_000)
    say({"scores": {}})
"""
    async with running(command(body)) as adapter:
        for serial in range(3):
            assert await adapter.score(question(serial)) == {}
        assert len(adapter._program._stderr) <= 500


async def test_a_question_that_is_cancelled_ends_the_program():
    async with running(command("ask(); time.sleep(1000)", timeout=30)) as adapter:
        with trio.move_on_after(0.5):
            await adapter.score(question())
        with trio.fail_after(PATIENCE):
            program = adapter._program
            if program is not None:
                await program._process.wait()
                assert program._process.returncode == -9


def test_a_program_that_is_not_there_is_refused_when_it_is_configured():
    with pytest.raises(PrepareFailed, match=r"it is not there; change anomaly\.adapter\.command"):
        adapters.prepare(AdapterConfig(use="command", command=["/nonexistent/program"]))


def test_so_is_one_that_could_not_be_started(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/nowhere/python3\n")
    with pytest.raises(PrepareFailed, match="it may not be executed"):
        adapters.prepare(AdapterConfig(use="command", command=[str(script)]))
    script.chmod(0o755)
    with pytest.raises(PrepareFailed, match="its interpreter is /nowhere/python3, and it is not there"):
        adapters.prepare(AdapterConfig(use="command", command=[str(script)]))


@pytest.mark.skipif(why_no_landlock() is not None, reason=why_no_landlock() or "")
async def test_a_program_is_kept_from_the_daemons_state(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    (tmp_path / "secret").write_text("secret")
    body = f"""
try:
    open({str(tmp_path / "secret")!r}).read()
except PermissionError:
    {ALWAYS.strip().replace(chr(10), chr(10) + "    ")}
"""
    async with running(command(body)) as adapter:
        assert await adapter.score(question()) is not None


# --- a URL ------------------------------------------------------------------------------------------------------------


class Server:
    """Answers POSTs with what a test says."""

    def __init__(self) -> None:
        self.answer = b'{"scores": {}}'
        self.status = 200
        self.headers = [(b"content-type", b"application/json")]
        self.hang = False
        self.asked: list[dict] = []
        self.seen: dict[str, str] = {}
        self.config = AdapterConfig()

    async def __call__(self, scope, receive, send) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        self.asked.append(json.loads(body))
        self.seen = {name.decode(): value.decode() for name, value in scope["headers"]}
        if self.hang:
            await trio.sleep_forever()
        await say(send, self.answer, self.status, self.headers)


@asynccontextmanager
async def served(**more):
    server = Server()
    with trio.socket.socket() as listening:
        await listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = "http://{}:{}/scores".format(*listening.getsockname())
        config = AdapterConfig(use="http", url=url, **more)
        async with front_door(server, SocketListener(listening)), running(config) as adapter:
            yield server, adapter


async def test_a_url_is_posted_the_question():
    async with served(token="hunter2") as (server, adapter):
        server.answer = b'{"scores": {"s1": 0.75}}'
        assert await adapter.score(question()) == {"s1": {"anomaly": 0.75}}
        assert server.asked == [question()]
        assert server.seen["authorization"] == "Bearer hunter2"
        assert server.seen["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (500, b'{"scores": {}}', "status 500"),
        (204, b"", "status 204"),
        (302, b"", "status 302"),
        (200, b"", "not JSON"),
        (200, b"[]", "not an object"),
        (200, b'{"scores": {"s0": -1}}', "session s0"),
        (200, b"x" * 300_000, "longer than 1024 bytes"),
    ],
)
async def test_a_url_that_answers_otherwise(status, answer, why):
    async with served(max_answer=1024) as (server, adapter):
        server.status, server.answer = status, answer
        with pytest.raises(AdapterFailed, match=r"^cannot") as failed:
            await adapter.score(question())
        assert why in str(failed.value)
        server.status, server.answer = 200, b'{"scores": {}}'
        assert await adapter.score(question()) == {}, "and it is asked again"


async def test_a_url_that_hangs_is_left_in_time():
    async with served(timeout=0.1) as (server, adapter):
        server.hang = True
        with pytest.raises(AdapterFailed, match=r"cannot wait longer than 0\.1 s"):
            await adapter.score(question())


async def test_a_url_that_nobody_serves():
    with trio.socket.socket() as unheard:
        await unheard.bind(("127.0.0.1", 0))
        url = "http://{}:{}/".format(*unheard.getsockname())
        async with running(AdapterConfig(use="http", url=url)) as adapter:
            with pytest.raises(AdapterFailed, match="cannot ask it"):
                await adapter.score(question())


# --- a function -------------------------------------------------------------------------------------------------------

released = threading.Event()


def plain(asked):
    assert threading.current_thread() is not threading.main_thread()
    asked["sessions"].clear()
    return {"scores": {"s0": 0.5}}


async def asynchronous(asked):
    await trio.lowlevel.checkpoint()
    return {"scores": {one: {"anomaly": 0.5, "entropy": 1} for one in asked["sessions"]}}


class Model:
    async def __call__(self, asked):
        return {"scores": {"s0": 1}}

    def bound(self, asked):
        return {"scores": {"s0": 0}}


model = Model()


def broken(asked):
    raise ValueError("no model")


def leaves(asked):
    sys.exit(1)


def nonsense(asked):
    return {"scores": {"s0": "high"}}


def hangs(asked):
    released.wait(PATIENCE)
    return {"scores": {}}


async def sleeps(asked):
    await trio.sleep_forever()


def function(name: str, **more) -> AdapterConfig:
    return AdapterConfig(use="python", target=f"{__name__}:{name}", **more)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("plain", {"s0": {"anomaly": 0.5}}),
        ("asynchronous", {one: {"anomaly": 0.5, "entropy": 1.0} for one in ("s0", "s1")}),
        ("model", {"s0": {"anomaly": 1.0}}),
        ("model.bound", {"s0": {"anomaly": 0.0}}),
    ],
)
async def test_a_function_in_a_thread_or_on_trio(name, given):
    async with running(function(name)) as adapter:
        assert await adapter.score(question()) == given


@pytest.mark.parametrize(
    ("name", "why"), [("broken", "ValueError: no model"), ("leaves", "SystemExit"), ("nonsense", "session s0")]
)
async def test_a_function_that_fails_fails_alone(name, why):
    async with running(function(name)) as adapter:
        with pytest.raises(AdapterFailed, match=r"^cannot") as failed:
            await adapter.score(question())
        assert why in str(failed.value)


async def test_a_function_that_hangs_keeps_one_thread():
    released.clear()
    async with running(function("hangs", timeout=0.05)) as adapter:
        for _ in range(3):
            with pytest.raises(AdapterFailed, match="cannot wait longer"):
                await adapter.score(question())
        assert adapter._thread.borrowed_tokens == 1
        released.set()
        await eventually(lambda: not adapter._thread.borrowed_tokens)
        assert await adapter.score(question()) == {}


async def test_an_async_function_that_hangs_is_cancelled():
    async with running(function("sleeps", timeout=0.05)) as adapter:
        with pytest.raises(AdapterFailed, match="cannot wait longer"):
            await adapter.score(question())


async def test_a_function_may_come_from_an_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "scorer-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: scorer\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[netd.anomaly]\nmine = scorer_module:score\n")
    (tmp_path / "scorer_module.py").write_text("def score(asked):\n    return {'scores': {'s0': 0.125}}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    async with running(AdapterConfig(use="python", target="mine")) as adapter:
        assert await adapter.score(question()) == {"s0": {"anomaly": 0.125}}
    with pytest.raises(PrepareFailed, match=r"cannot find entry point 'other' .* there are mine"):
        adapters.prepare(AdapterConfig(use="python", target="other"))


@pytest.mark.parametrize(
    ("target", "why"),
    [("no.such.module:f", "ModuleNotFoundError"), (f"{__name__}:nobody", "nobody"), (f"{__name__}:PATIENCE", "float")],
)
def test_a_function_that_is_not_there_is_refused_when_it_is_configured(target, why):
    with pytest.raises(PrepareFailed, match="cannot") as failed:
        adapters.prepare(AdapterConfig(use="python", target=target))
    assert why in str(failed.value)


def test_the_built_in_scores_take_nobody():
    assert adapters.prepare(AdapterConfig()) is None
