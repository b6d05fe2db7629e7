"""Programs of the user's that the daemon starts: without its privileges, each with a process group of its own.

    obstacle(["/usr/bin/program"], account=account) -> None, or "it may not enter /root"
    process = await launch(["/usr/bin/program", "--option"], stdin=subprocess.PIPE)
    signal_group(process.pid, signal.SIGTERM)       how(process.returncode) -> "killed by SIGTERM"

Rules:
- a program has no capabilities and may not gain any, none of our descriptors but the end of a pipe (below), and an
  environment of PATH, HOME, LANG, TZ and what its caller adds; no shell reads its command;
- it runs as the daemon's account unless root says otherwise, and is kept from the directories that its caller names;
- it has a session and a process group of its own, so that it is signalled with all that it has started;
- it ends with us, as does its group, however we end: the kernel kills them when that pipe's other end is closed. If it
  is we who are killed, one that has closed the descriptor, though it did not open it, or has left its group stays;
- what the daemon has raised for itself is not its own, as far as that can be: it has the usual soft limit of 1024
  descriptors, which it may raise, and where memory is short the kernel does not spare it;
- root can have it run as somebody else; nobody else can.

Left out: what it says (services), and when it is started again (services).
"""

from __future__ import annotations

import grp
import os
import pwd
import select
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import trio

from netd.errors import PrepareFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

DEATH = 2.0
"""Seconds that a process may take to be gone once it was killed."""
_REAPING = 0.2
"""The same where nothing else happens meanwhile."""
_SCOUTING = 20.0
"""Seconds that it may take to find out whether a program could be started: file systems may be far away."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")
_PYTHON = (sys.executable, "-I", "-S", "-c")

# Both of what follows begin so.
_BECOME = """
import os, sys

def become(identity):
    if identity:
        uid, gid, *groups = map(int, identity.split(","))
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
"""
# Runs in the child, before the program: Python's preexec_fn is not safe in a process with threads. prctl(2),
# capabilities(7): without ambient ones, and with no new privileges, execve(2) leaves none to an account that is not
# root; to root it gives the bounding and the inheritable set, which are therefore emptied (and have to be). Whoever is
# not root may keep them, where CAP_SETPCAP is missing or the unit's filter refuses capset(2): with no new privileges,
# nothing comes of either.
_LAUNCHER = """
import ctypes, errno, fcntl, resource, select
libc = ctypes.CDLL(None, use_errno=True)
prctl = libc.prctl
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, CLEAR_ALL = 23, 24, 38, 47, 4
if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(PR_CAP_AMBIENT, CLEAR_ALL, 0, 0, 0):
    sys.exit("cannot give up privileges")
header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and again, of the higher capabilities
if libc.capget(header, sets):
    sys.exit("cannot read its capabilities")
sets[2] = sets[5] = 0
if libc.capset(header, sets) and 0 in os.getresuid():
    sys.exit("cannot give up inheritable capabilities")
for capability in range(64):
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if 0 in os.getresuid() and prctl(PR_CAPBSET_READ, capability, 0, 0, 0) > 0:
        sys.exit("cannot give up root's capabilities")
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
try:
    if hard == resource.RLIM_INFINITY or hard > 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    with open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < 0:
            file.seek(0)
            file.write("0")
except (OSError, ValueError):
    pass  # the unit's filter refuses the one, or there is no /proc for the other: it has what the daemon has
def keep_from(hidden):
    CREATE, ADD, RESTRICT, VERSION, PATH_BENEATH = 444, 445, 446, 1, 1
    call = lambda number, *arguments: libc.syscall(ctypes.c_long(number), *arguments)
    version = call(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION))
    if version < 1:
        why = {
            errno.ENOSYS: "this kernel has no Landlock",
            errno.EOPNOTSUPP: "Landlock is off: have the kernel's command line name it in lsm=",
            errno.EPERM: "a filter of system calls refuses Landlock: let it allow landlock_create_ruleset and its kin",
        }
        return why.get(ctypes.get_errno()) or os.strerror(ctypes.get_errno()).lower()
    # to write, to read, to truncate: the latter from Linux 6.2 on, so that before, who owns a file can empty it
    of_files = 1 << 1 | 1 << 2 | (1 << 14 if version >= 3 else 0)
    # to make, move and remove. Without version 2 (Linux 5.19) nothing moves from one directory to another: EXDEV
    all_of_it = of_files | sum(1 << bit for bit in range(4, 14 if version >= 2 else 13))
    rules = call(CREATE, (ctypes.c_uint64 * 1)(all_of_it), ctypes.c_size_t(8), ctypes.c_uint32(0))
    if rules < 0:
        return f"Landlock takes no rules: {os.strerror(ctypes.get_errno()).lower()}"

    def allow(path, is_directory):
        # what is not hidden, nor on the way to it; without stat(2), which a file system that does not answer holds up
        if path in hidden:
            return
        try:
            if any(each.startswith(path.rstrip("/") + "/") for each in hidden):
                for entry in list(os.scandir(path)):
                    if not entry.is_symlink():
                        allow(entry.path, entry.is_dir(follow_symlinks=False))
                return
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return  # it has gone, or is out of reach anyway
        allowed = all_of_it if is_directory else of_files
        rule = allowed.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder)
        call(ADD, ctypes.c_int(rules), ctypes.c_int(PATH_BENEATH), rule, ctypes.c_uint32(0))
        os.close(fd)

    allow("/", True)
    if call(RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0)):
        return f"Landlock's rules do not hold: {os.strerror(ctypes.get_errno()).lower()}"
    os.close(rules)

def end_with(lifeline):
    # O_ASYNC of open(2), F_SETSIG of fcntl(2): a signal for the group when the pipe's last writer closes it. Not
    # PR_SET_PDEATHSIG of prctl(2), which tells of the end of the thread that started us, and the program alone. Opened
    # anew, as whom to signal belongs to what was opened; and out of the way of a shell's `exec 3>file`
    try:
        fd = fcntl.fcntl(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_CLOEXEC), fcntl.F_DUPFD, 200)
        os.close(lifeline)
        fcntl.fcntl(fd, fcntl.F_SETSIG, 9)
        fcntl.fcntl(fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError as error:
        return os.strerror(error.errno).lower()
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # it was closed before
        sys.exit("cannot start anything: the daemon is gone")

lifeline, identity, hidden, directory, *command = sys.argv[1:]
if why := end_with(int(lifeline)):
    print(f"netd cannot have {command[0]} end with it where it is killed: {why}", file=sys.stderr)
if hidden and (why := keep_from([os.path.realpath(each) for each in hidden.split(":")])):
    print(f"netd cannot keep {command[0]} from {hidden.replace(':', ' and ')}: {why}", file=sys.stderr)
try:
    become(identity)
    os.chdir(directory)
    os.execvp(command[0], command)
except OSError as error:
    sys.exit(f"cannot start {command[0]}: {error.strerror.lower()}")
"""
# Runs where the launcher would, as whom it would, and says on stdout what is in the way; nothing, if nothing is.
_SCOUT = """
def barred(path):
    # the first directory on the way that may not be entered
    for way in (os.path.abspath(path), os.path.realpath(path)):
        while way != "/":
            way = os.path.dirname(way)
            if os.path.isdir(way) and not os.access(way, os.X_OK):
                return way

def no_program(path):
    way = barred(path)
    if way:
        return f"it may not enter {way}"
    if not os.path.exists(path):
        return "it is not there"
    if not os.path.isfile(path):
        return "it is no program"
    if not os.access(path, os.X_OK):
        return "it may not be executed"

def kept(path):
    # the directory that it is to be kept from and this is in, where that can be
    path = os.path.realpath(path)
    for each in map(os.path.realpath, filter(None, hidden.split(":"))):
        if os.path.commonpath([each, path]) == each:
            import ctypes
            if ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint32(1)) > 0:
                return f"it is kept from {each}, which is the daemon's own"

def no_start(program, directory):
    try:
        os.chdir(directory)
    except OSError as error:
        way = barred(os.path.join(directory, "_"))
        if way:
            return f"it may not enter {way}"
        what = "no directory" if isinstance(error, (FileNotFoundError, NotADirectoryError)) else error.strerror.lower()
        return f"{directory!r} is {what}"
    if reason := kept(directory):
        return reason
    paths = [program] if "/" in program else [os.path.join(each, program) for each in os.get_exec_path()]
    reasons = [no_program(path) for path in paths]
    if None not in reasons:
        return next((reason for reason in reasons if reason != "it is not there"), "it is not there")
    path = paths[reasons.index(None)]
    try:
        with open(path, "rb") as file:
            first = file.readline(256)
    except OSError:
        return None  # a binary need not be read; of a script its interpreter will say it
    if not first.startswith(b"#!"):
        return None
    if reason := kept(path):
        return reason  # a binary is not read, but executed
    # up to a blank, as the kernel has it: binfmt_script
    interpreter = os.fsdecode(first[2:].rstrip(b"\\n").strip(b" \\t").replace(b"\\t", b" ").split(b" ")[0])
    reason = no_program(interpreter) if interpreter else None
    if reason and interpreter.endswith("\\r"):
        return "its first line ends with CR LF, and the kernel takes LF only"
    return reason and f"its interpreter is {interpreter}, and {reason}"

identity, hidden, directory, program = sys.argv[1:]
try:
    become(identity)
    print(no_start(program, directory) or "", end="")
except OSError as error:
    print(error.strerror.lower(), end="")
"""


@dataclass(frozen=True)
class Account:
    """Whom a program runs as, and where it is at home."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    name: str


def account_of(user: str, service: str, *, group: str | None = None) -> Account:
    """The account of this name or number, in its groups and in `group` if there is such a one. Blocks. PrepareFailed:
    there is no such account, or we may not become it."""
    try:
        entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        raise PrepareFailed(service, f"cannot run a program as {user!r}: there is no such account") from None
    if os.geteuid() != 0 and entry.pw_uid != os.geteuid():
        raise PrepareFailed(service, f"cannot run a program as {user!r}: only root could") from None
    groups = set(os.getgrouplist(entry.pw_name, entry.pw_gid))
    if group is not None:
        try:
            groups.add(int(group) if group.isdigit() else grp.getgrnam(group).gr_gid)
        except KeyError:
            groups.discard(-1)  # whoever owns the group's socket says that there is none
    return Account(entry.pw_uid, entry.pw_gid, tuple(sorted(groups)), entry.pw_dir, entry.pw_name)


def obstacle(
    command: Sequence[str],
    *,
    variables: Mapping[str, str] | None = None,
    directory: str = "/",
    account: Account | None = None,
    hidden: Sequence[str] = (),
) -> str | None:
    """What would keep `launch` from starting this: the program or the interpreter of a script is not there, or its
    account may not execute it or enter the directories; or they lie in what it is kept from (`hidden`). None: nothing
    that could be known beforehand. It is not run. Blocks, for 22 s at most."""
    identity, environment = _as_whom(account, variables)
    try:
        process = subprocess.Popen(
            [*_PYTHON, _BECOME + _SCOUT, identity, ":".join(hidden), directory, command[0]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd="/",
        )
    except OSError as error:
        return (error.strerror or str(error)).lower()
    try:
        told, complaint = process.communicate(timeout=_SCOUTING)
    except subprocess.TimeoutExpired:
        return f"nothing is known of it after {_SCOUTING:g} s, as where a file system does not answer"
    finally:
        if process.returncode is None:  # not `with`: it would wait for ever for what the kernel cannot kill yet
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(DEATH)
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
    # what else is on stderr is nobody's answer: ld.so(8) complains there of an LD_PRELOAD, and goes on
    answer = told if process.returncode == 0 else told or complaint
    said = answer.decode(errors="replace").strip().splitlines()
    if said:
        return said[-1]
    return None if process.returncode == 0 else how(process.returncode)


async def launch(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    variables: Mapping[str, str] | None = None,
    directory: str = "/",
    account: Account | None = None,
    hidden: Sequence[str] = (),
) -> trio.Process:
    """Start a program. Raises OSError where not even the launcher can be; a program that cannot is a process that ends
    with status 1 and a sentence on its stderr.

    `hidden`: directories in which it may neither read nor write, make nor remove anything, whoever it is (landlock(7)).
    What is put beside them later, or beside what they are in, it may not either. It may list them and connect to
    sockets there, and what it owns there give other permissions and, before Linux 6.2, truncate. A kernel that cannot
    do that is told of on stderr, and the program starts all the same.
    """
    identity, environment = _as_whom(account, variables)
    lifeline = _lifeline()
    return await trio.lowlevel.open_process(
        [*_PYTHON, _BECOME + _LAUNCHER, str(lifeline), identity, ":".join(hidden), directory, *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=(lifeline,),
        start_new_session=True,
        env=environment,
        cwd="/",
    )


@cache
def _lifeline() -> int:
    """The reading end of a pipe in which nobody writes: the other end is this process's alone, and goes with it.

    A process that is forked off this one without exec would have it too, and programs last until both are gone. netd
    has none; who embeds it may.
    """
    reading, _writing = os.pipe()
    return reading


def _as_whom(account: Account | None, variables: Mapping[str, str] | None) -> tuple[str, dict[str, str]]:
    """Whom the child is to become, as `become` reads it ("": nobody else), and its variables."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    identity = ""
    if account is not None and os.geteuid() == 0:
        # by the launcher: that account need not be able to run the interpreter which launches
        identity = ",".join(map(str, (account.uid, account.gid, *account.groups)))
        environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    return identity, environment | dict(variables or {})


def own_directories(state: Path | None = None) -> list[str]:
    """What systemd has given to the daemon alone: state, credentials, and where its sockets lie, which nobody else is
    to replace (systemd.exec(5)); and `state`, where it keeps that elsewhere. Nothing for one that systemd has not
    started."""
    names = ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY")
    own = [path for name in names for path in os.environ.get(name, "").split(":") if path]
    if own and state is not None:
        own.append(os.path.abspath(state))
    return list(dict.fromkeys(own))


def signal_group(pid: int, number: signal.Signals) -> None:
    """To a program and all of its group; before anybody has waited for it, as its number may be another's then."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def reap(process: trio.Process) -> bool:
    """Kill a program and its group, and wait for its end without Trio: for who is cancelled and may not wait otherwise.

    Blocks, for what killing takes and at most 0.2 s. False: it is not gone yet.
    """
    if process.returncode is None:
        signal_group(process.pid, signal.SIGKILL)
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:  # there are no descriptors left, say
            return process.returncode is not None
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(_REAPING * 1000)
        finally:
            os.close(fd)
    return process.returncode is not None


def how(status: int | None) -> str:
    """How a program ended, in words; None: it did not, though it was killed."""
    if status is None:
        return "killed, and not gone yet"
    if status >= 0:
        return f"status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
