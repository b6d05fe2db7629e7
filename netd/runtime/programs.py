"""Programs of the user's that the daemon starts: without its privileges, each with a process group of its own.

    process = await launch(["/usr/bin/program", "--option"], stdin=subprocess.PIPE)
    signal_group(process.pid, signal.SIGTERM)       how(process.returncode) -> "killed by SIGTERM"

Rules:
- a program has no capabilities and may not gain any, none of our descriptors, and an environment of PATH, HOME, LANG,
  TZ and what its caller adds; no shell reads its command;
- it has a session and a process group of its own, so that it is signalled with all that it has started;
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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from netd.errors import PrepareFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

DEATH = 2.0
"""Seconds that a process may take to be gone once it was killed."""
_REAPING = 0.2
"""The same where nothing else happens meanwhile."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "TZ")

# Runs in the child, before the program: Python's preexec_fn is not safe in a process with threads. prctl(2),
# capabilities(7): without ambient ones, and with no new privileges, execve(2) leaves none to an account that is not
# root; to root it gives the bounding and the inheritable set, which are therefore emptied (and have to be). Whoever is
# not root may keep them, where CAP_SETPCAP is missing or the unit's filter refuses capset(2): with no new privileges,
# nothing comes of either.
_LAUNCHER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
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
identity, directory, *command = sys.argv[1:]
try:
    if identity:
        uid, gid, *groups = map(int, identity.split(","))
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.chdir(directory)
    os.execvp(command[0], command)
except OSError as error:
    sys.exit(f"cannot start {command[0]}: {error.strerror.lower()}")
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


async def launch(
    command: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    variables: Mapping[str, str] | None = None,
    directory: str = "/",
    account: Account | None = None,
) -> trio.Process:
    """Start a program. Raises OSError where not even the launcher can be; a program that cannot is a process that ends
    with status 1 and a sentence on its stderr."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    identity = ""
    if account is not None and os.geteuid() == 0:
        # by the launcher: that account need not be able to run the interpreter which launches
        identity = ",".join(map(str, (account.uid, account.gid, *account.groups)))
        environment |= {"HOME": account.home, "USER": account.name, "LOGNAME": account.name}
    return await trio.lowlevel.open_process(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, identity, directory, *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        env=environment | dict(variables or {}),
        cwd="/",
    )


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
