"""Programs that are started without privileges, and how they are got rid of."""

from __future__ import annotations

import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from netd.runtime import programs
from netd.runtime.programs import account_of, how, launch, obstacle, own_directories, reap
from tests.support.accounts import NOBODY, open_to_all, why_not_nobody
from tests.support.landlock import why_no_landlock

STATUS = ["/bin/cat", "/proc/self/status"]

# in a process of its own, which makes all that it may do inheritable, and then starts a program
HEIR = f"""
import ctypes, sys, trio
from netd.runtime.programs import launch
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert not libc.capget(header, sets)
sets[2], sets[5] = sets[1], sets[4]
assert not libc.capset(header, sets)

async def main():
    process = await launch({STATUS!r})
    async for data in process.stdout:
        sys.stdout.write(data.decode())
    sys.stderr.write((await process.stderr.receive_some()).decode())
    sys.exit(await process.wait())

trio.run(main)
"""


async def output(command: list[str]) -> str:
    process = await launch(command)
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        said = b"".join([data async for data in process.stdout])
    await process.wait()
    return said.decode()


def sets(status: str) -> dict[str, int]:
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if line.startswith("Cap"))
    return {name: int(value, 16) for name, value in lines.items()}


async def test_a_program_has_no_capabilities():
    found = sets(await output(STATUS))
    assert {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert found["CapBnd"] == 0 or os.geteuid() != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to leave to others")
def test_what_the_daemon_could_leave_to_root_is_left_to_nobody():
    ran = subprocess.run([sys.executable, "-c", HEIR], capture_output=True, text=True, check=True)
    assert set(sets(ran.stdout).values()) == {0}


async def test_what_the_daemon_has_raised_for_itself_is_not_the_programs():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        found = await output(["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [int(each) for each in found.split()] == [min(1024, hard), hard]


NEEDS_LANDLOCK = pytest.mark.skipif(why_no_landlock() is not None, reason=why_no_landlock() or "")
KEPT_FROM = """
import os, sys
kept, free = sys.argv[1:]
def attempt(what, act):
    try:
        act()
    except OSError as error:
        print(what, error.strerror, sep="\\t")
    else:
        print(what, "done", sep="\\t")
attempt("read", lambda: open(f"{kept}/secret").read())
attempt("write", lambda: open(f"{kept}/secret", "r+"))
attempt("make", lambda: open(f"{kept}/new", "w"))
attempt("replace", lambda: os.replace(f"{free}/file", f"{kept}/secret"))
attempt("remove", lambda: os.remove(f"{kept}/secret"))
attempt("link", lambda: os.link(f"{kept}/secret", f"{free}/linked"))
attempt("read through a link", lambda: open(f"{free}/symlink").read())
attempt("look into the parent", lambda: open(f"/proc/{os.getppid()}/environ").read())
attempt("use the rest", lambda: (open(f"{free}/file").read(), open(f"{free}/more", "w"),
                                 os.replace(f"{free}/more", f"{free}/below/more"), open("/etc/hostname").read()))
"""


@NEEDS_LANDLOCK
async def test_a_program_is_kept_from_directories_though_its_account_may_use_them(tmp_path):
    kept, free = tmp_path / "kept", tmp_path / "free"
    kept.mkdir()
    (free / "below").mkdir(parents=True)
    (kept / "secret").write_text("secret")
    (free / "file").write_text("")
    (free / "symlink").symlink_to(kept / "secret")
    process = await launch(
        [sys.executable, "-I", "-c", KEPT_FROM, str(kept), str(free)], hidden=[str(kept), "/nowhere/at/all"]
    )
    assert process.stdout is not None
    assert process.stderr is not None
    async with process.stdout, process.stderr:
        said = b"".join([data async for data in process.stdout]).decode()
        complaints = b"".join([data async for data in process.stderr]).decode()
    assert await process.wait() == 0, complaints
    assert not complaints
    found = dict(line.split("\t") for line in said.splitlines())
    assert {what for what, outcome in found.items() if outcome == "done"} == {"use the rest"}, said
    assert len(found) == 9, said
    assert (kept / "secret").read_text() == "secret"
    assert [path.name for path in kept.iterdir()] == ["secret"]


AS_OF_OLD = """
import os, sys
kept, free = sys.argv[1:]
def attempt(what, act):
    try:
        act()
    except OSError:
        pass
    else:
        print(what)
attempt("read", lambda: open(f"{kept}/secret").read())
attempt("write", lambda: open(f"{kept}/secret", "r+"))
attempt("make", lambda: open(f"{kept}/new", "w"))
attempt("remove", lambda: os.remove(f"{kept}/secret"))
attempt("truncate", lambda: os.truncate(f"{kept}/secret", 0))
attempt("make elsewhere", lambda: open(f"{free}/more", "w"))
attempt("rename elsewhere", lambda: os.replace(f"{free}/more", f"{free}/other"))
attempt("move elsewhere", lambda: os.replace(f"{free}/other", f"{free}/below/other"))
"""


@NEEDS_LANDLOCK
@pytest.mark.parametrize(
    ("version", "more"),
    [(1, {"truncate"}), (2, {"truncate", "move elsewhere"}), (3, {"move elsewhere"})],
    ids=["Linux 5.13", "Linux 5.19", "Linux 6.2"],
)
async def test_what_older_kernels_can_refuse_is_refused(tmp_path, monkeypatch, version, more):
    if reason := why_no_landlock(version):
        pytest.skip(reason)
    asked = "    if version < 1:\n"
    assert programs._LAUNCHER.count(asked) == 1
    older = programs._LAUNCHER.replace(asked, f"    version = min(version, {version})\n{asked}")
    monkeypatch.setattr(programs, "_LAUNCHER", older)
    kept, free = tmp_path / "kept", tmp_path / "free"
    kept.mkdir()
    (free / "below").mkdir(parents=True)
    (kept / "secret").write_text("secret")
    process = await launch(
        [sys.executable, "-I", "-c", AS_OF_OLD, str(kept), str(free)], hidden=[str(kept)], stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    async with process.stdout:
        said = b"".join([data async for data in process.stdout]).decode()
    assert await process.wait() == 0, said
    assert set(said.splitlines()) == {"make elsewhere", "rename elsewhere", *more}


SILENT = """
import ctypes, os, subprocess, sys, trio
from netd.runtime.programs import launch
silent, kept = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, MS_REC_PRIVATE, MNT_DETACH = 0x20000, 0x44000, 2
try:
    fuse = os.open("/dev/fuse", os.O_RDWR)  # nobody reads it, so that whoever asks that file system waits
except OSError:
    sys.exit(77)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
if (libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC_PRIVATE, None)
        or libc.mount(b"silent", silent.encode(), b"fuse", 0, options)):
    sys.exit(77)

async def main():
    process = await launch(["/bin/echo", "started"], hidden=[kept], stderr=subprocess.STDOUT)
    with trio.move_on_after(20):
        print((await process.stdout.receive_some()).decode(), end="")
    process.kill()

trio.run(main)
libc.umount2(silent.encode(), MNT_DETACH)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@NEEDS_LANDLOCK
def test_a_file_system_that_does_not_answer_keeps_no_program_from_starting(tmp_path):
    silent, kept = tmp_path / "silent", tmp_path / "kept"
    silent.mkdir()
    kept.mkdir()
    argv = [sys.executable, "-W", "ignore", "-c", SILENT, str(silent), str(kept)]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        pytest.skip("needs FUSE and a mount namespace")
    assert (ran.returncode, ran.stdout) == (0, "started\n"), ran.stderr


def test_what_systemd_has_given_to_the_daemon_is_its_own(monkeypatch):
    for name in ("CREDENTIALS_DIRECTORY", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    assert own_directories() == []
    assert own_directories(Path("/var/lib/netd")) == []  # by hand, programs may do what you may
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/netd:/var/lib/more")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/netd.service")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/netd")
    own = ["/var/lib/netd", "/var/lib/more", "/run/credentials/netd.service", "/run/netd"]
    assert own_directories() == own
    assert own_directories(Path("/var/lib/netd")) == own
    assert own_directories(Path("/srv/netd")) == [*own, "/srv/netd"]  # as a setting says


@NEEDS_LANDLOCK
async def test_a_program_may_connect_where_it_may_replace_nothing(tmp_path):
    code = """
import os, socket, sys
path = sys.argv[1]
socket.socket(socket.AF_UNIX).connect(path)
for attempt in (lambda: os.remove(path), lambda: os.rename(path, path + "2"),
                lambda: socket.socket(socket.AF_UNIX).bind(path + "3")):
    try:
        attempt()
    except PermissionError:
        print("refused")
"""
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = await launch(
            [sys.executable, "-I", "-c", code, str(path)], hidden=[str(tmp_path)], stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        async with process.stdout:
            said = b"".join([data async for data in process.stdout]).decode()
        await process.wait()
    assert said == 3 * "refused\n"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("ENOSYS", "this kernel has no Landlock"),
        ("EOPNOTSUPP", "Landlock is off: have the kernel's command line name it in lsm="),
        ("EPERM", "a filter of system calls refuses Landlock"),
        ("EIO", "input/output error"),
    ],
)
async def test_where_landlock_is_not_to_be_had_the_program_starts_and_says_so(monkeypatch, number, why):
    # as that kernel would have it: the first call for rules fails
    fails = f"def call(*_): ctypes.set_errno(errno.{number}); return -1"
    real = "call = lambda number, *arguments: libc.syscall(ctypes.c_long(number), *arguments)"
    assert real in programs._LAUNCHER
    monkeypatch.setattr(programs, "_LAUNCHER", programs._LAUNCHER.replace(real, fails))
    process = await launch(["/bin/echo", "started"], hidden=["/one", "/two"], stderr=subprocess.STDOUT)
    assert process.stdout is not None
    async with process.stdout:
        said = b"".join([data async for data in process.stdout]).decode()
    assert await process.wait() == 0
    complaint, started = said.splitlines()
    assert complaint.startswith(f"netd cannot keep /bin/echo from /one and /two: {why}")
    assert started == "started"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have itself spared where memory is short")
@pytest.mark.parametrize(("own", "expected"), [("-200", "0"), ("300", "300")])
def test_a_program_is_not_spared_where_memory_is_short(own, expected):
    code = """
import sys, trio
from netd.runtime.programs import launch

async def main():
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(sys.argv[1])
    except PermissionError:
        sys.exit(77)
    process = await launch(["/bin/cat", "/proc/self/oom_score_adj"])
    async for data in process.stdout:
        sys.stdout.write(data.decode())
    await process.wait()

trio.run(main)
"""
    ran = subprocess.run([sys.executable, "-c", code, own], capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        pytest.skip("root of this container may not have itself spared")
    assert (ran.returncode, ran.stdout.strip()) == (0, expected), ran.stderr


async def test_one_that_is_killed_where_nobody_may_wait_is_gone_all_the_same():
    # what it has started goes with it
    process = await launch(["/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"])
    assert process.stdout is not None
    assert process.stderr is not None
    child = int(await process.stdout.receive_some())
    assert reap(process)
    assert how(process.returncode) == f"killed by {signal.SIGKILL.name}"
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    assert reap(process)  # again, and nothing happens
    assert await process.stdout.receive_some() == b""  # which the child had open too
    assert child != process.pid
    await trio.aclose_forcefully(process.stdout)
    await trio.aclose_forcefully(process.stderr)


# --- what is known beforehand ----------------------------------------------------------------------------------------


def script(path: Path, first: str = "#!/bin/sh", mode: int = 0o755) -> Path:
    path.write_text(f"{first}\nexit 0\n")
    path.chmod(mode)
    return path


def test_nothing_is_in_the_way_of_a_program_that_starts(tmp_path):
    here = {"directory": str(tmp_path)}
    script(tmp_path / "run")
    assert obstacle(["/bin/sh"]) is None
    assert obstacle(["sh"]) is None  # which PATH has
    assert obstacle(["./run"], **here) is None  # relative to where it is started
    assert obstacle(["run"], variables={"PATH": str(tmp_path)}) is None  # and the PATH that it is given counts
    assert obstacle([str(script(tmp_path / "by-env", "#! /usr/bin/env sh"))]) is None
    assert obstacle(["/bin/sh"], variables={"LD_PRELOAD": "/nowhere.so"}) is None  # the loader complains, and goes on


def test_what_is_in_the_way_is_said(tmp_path):
    file = script(tmp_path / "run", mode=0o644)
    assert obstacle(["/nowhere/program"]) == "it is not there"
    assert obstacle(["no-such-program-anywhere"]) == "it is not there"
    assert obstacle(["./no-such-program"]) == "it is not there"
    assert obstacle([str(file)]) == "it may not be executed"
    assert obstacle([str(tmp_path)]) == "it is no program"
    assert obstacle(["run"], variables={"PATH": f"/nowhere:{tmp_path}"}) == "it may not be executed"
    assert obstacle(["/bin/sh"], directory="/nowhere") == "'/nowhere' is no directory"
    assert obstacle(["/bin/sh"], directory=str(file)) == f"{str(file)!r} is no directory"
    gone = script(tmp_path / "gone", "#!/nowhere/python3 -u")
    assert obstacle([str(gone)]) == "its interpreter is /nowhere/python3, and it is not there"
    from_elsewhere = script(tmp_path / "from-elsewhere", "#!/bin/sh\r")
    assert obstacle([str(from_elsewhere)]) == "its first line ends with CR LF, and the kernel takes LF only"
    assert obstacle([str(script(tmp_path / "with-option", "#!/bin/sh -e\r"))]) is None  # that is the shell's to refuse
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert obstacle([str(tmp_path / "loop")]) == "it is not there"


@NEEDS_LANDLOCK
def test_what_it_is_kept_from_is_in_its_way(tmp_path):
    kept = tmp_path / "kept"
    (kept / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(kept / "below")
    hidden = ["/nowhere/at/all", str(kept)]
    why = f"it is kept from {kept}, which is the daemon's own"
    assert obstacle(["/bin/sh"], hidden=hidden) is None
    assert obstacle(["/bin/sh"], directory=str(tmp_path), hidden=hidden) is None
    assert obstacle(["/bin/sh"], directory=str(kept), hidden=hidden) == why
    assert obstacle(["/bin/sh"], directory=str(tmp_path / "link"), hidden=hidden) == why
    assert obstacle([str(script(kept / "run"))], hidden=hidden) == why
    assert obstacle([str(script(tmp_path / "kept-not"))], hidden=hidden) is None


def test_what_cannot_even_be_killed_is_not_waited_for(monkeypatch):
    # as where it hangs in a system call on a disk that does not answer
    started = []

    class Unkillable(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self)

        def kill(self):
            pass

    monkeypatch.setattr(programs, "_SCOUT", "import time; time.sleep(1000)")
    monkeypatch.setattr(programs, "_SCOUTING", 0.1)
    monkeypatch.setattr(programs, "DEATH", 0.1)
    monkeypatch.setattr(subprocess, "Popen", Unkillable)
    assert "nothing is known of it after 0.1 s" in (obstacle(["/bin/sh"]) or "")
    [process] = started
    assert process.poll() is None
    super(Unkillable, process).kill()
    process.wait()


@pytest.mark.skipif(why_not_nobody() is not None, reason=why_not_nobody() or "")
def test_it_is_asked_as_whom_the_program_would_run(tmp_path):
    open_to_all(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    mine = script(closed / "run")
    link = tmp_path / "link"
    link.symlink_to(mine)
    nobody = account_of(str(NOBODY), "test")
    assert obstacle([str(mine)]) is None
    assert obstacle(["/bin/sh"], account=nobody) is None
    assert obstacle([str(mine)], account=nobody) == f"it may not enter {closed}"
    assert obstacle([str(link)], account=nobody) == f"it may not enter {closed}"
    assert obstacle(["/bin/sh"], directory=str(closed), account=nobody) == f"it may not enter {closed}"
    assert obstacle([str(script(tmp_path / "own", mode=0o700))], account=nobody) == "it may not be executed"
    of_closed = script(tmp_path / "of-closed", f"#!{mine}")
    why = obstacle([str(of_closed)], account=nobody)
    assert why == f"its interpreter is {mine}, and it may not enter {closed}"


def test_whoever_is_not_root_is_told_that_it_cannot_become_another(monkeypatch):
    from netd.errors import PrepareFailed

    other = next(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid != 4242)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(PrepareFailed, match="only root could"):
        account_of(other, "test")
