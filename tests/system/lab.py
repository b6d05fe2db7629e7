"""A machine for the system tests: a Debian with systemd as PID 1, booted in a container and thrown away.

    with Machine.boot(rootfs) as machine:
        machine.install(deb)
        machine.run("systemctl", "is-active", "netd")
        machine.netctl("status")["ready"]

How it is made, and why it leaves nothing behind:

    setpriv --pdeathsig    the machine dies with the test run (the thread that booted it), whatever ends that
      unshare              a mount and a PID namespace: all mounts, and all processes, go when its first process goes
        sh (_BOOT)         an overlay over the root file system, its upper layer in memory; a pure cgroup2 hierarchy
          systemd-nspawn   a network of its own with nothing but loopback
            systemd        PID 1, `Machine.leader` to this host

What is left then is an empty control group, which `close` removes (and a later machine, if `close` never ran).

A machine has no network. It can neither be limited in memory nor in tasks here, so MemoryMax= and TasksMax= cannot be
tested. Commands that `run` starts have root's full capabilities, unlike the machine's own services.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.system import rootfs
from tests.system.rootfs import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BOOT_TIMEOUT = 60.0
"""Seconds within which a machine has to be up, on a host that is busy."""

_GROUP = "netd-lab-"
_PURE_CGROUP2 = """
if [ "$(stat -fc %T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount -l /sys/fs/cgroup 2>/dev/null || :
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
"""
"""Hosts with version 1, or both: within this mount namespace there is only version 2, which systemd 257 insists on."""

_BOOT = (
    f"""
set -e
mount -t tmpfs -o mode=755 netd-lab /run
mkdir -p /run/lab/upper /run/lab/work /run/lab/root
mount -t overlay -o "lowerdir=$BASE,upperdir=/run/lab/upper,workdir=/run/lab/work" netd-lab /run/lab/root
mount -t tmpfs netd-lab /tmp
{_PURE_CGROUP2}
mkdir "/sys/fs/cgroup/$GROUP"
"""
    """
# of open files as many as systemd gives a machine; without the option they are as many as PID 1 of this host may have
files=524288
if ( ulimit -n $files ) 2>/dev/null; then files=--rlimit=NOFILE=$files; else files=; fi
while :; do
    status=0
    # IPAddressDeny= and DevicePolicy= are BPF programs: without the call and the capability systemd leaves them out.
    # What a real machine does not refuse either: keys, and landlock(7), by which netd keeps programs from its files
    calls="bpf @keyring landlock_create_ruleset landlock_add_rule landlock_restrict_self"
    ( echo 0 > "/sys/fs/cgroup/$GROUP/cgroup.procs"
      exec systemd-nspawn --quiet --register=no --keep-unit --private-network --resolv-conf=off --machine="$NAME" \
        --capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF,CAP_PERFMON --system-call-filter="$calls" \
        --console=pipe $files --directory=/run/lab/root --boot systemd.journald.forward_to_console=0 ) || status=$?
    [ "$status" = 133 ] || exit "$status" # 133: the machine asks to be started again
done
"""
)
_SWEEP = f"""
{_PURE_CGROUP2}
for group in $GROUPS; do
    find "/sys/fs/cgroup/$group" -depth -type d -exec rmdir {{}} + 2>/dev/null || :
    [ ! -d "/sys/fs/cgroup/$group" ] || echo "$group"
done
"""
_LIST_GROUPS = f"""
{_PURE_CGROUP2}
ls /sys/fs/cgroup
"""
_ENVIRONMENT = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "HOME=/root",
    "TERM=dumb",
    "DEBIAN_FRONTEND=noninteractive",
]
_numbers = itertools.count(1)


def why_not() -> str | None:
    """Why no machine can be booted here, as a sentence for a skipped test; None if one can."""
    if reason := rootfs.why_not():
        return reason
    for tool, package in (
        ("systemd-nspawn", "systemd-container"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(tool) is None:
            return f"needs {tool} (apt: {package}), to boot a Debian"
    probe = f"{_PURE_CGROUP2}\ngroup=/sys/fs/cgroup/{_GROUP}probe-$$-{os.getpid()}\nmkdir $group && rmdir $group"
    result = subprocess.run(
        [*NAMESPACE, "sh", "-ec", probe], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        return f"needs namespaces and a cgroup2 hierarchy that can be written: {result.stderr.strip()[-200:]}"
    return None


class Machine:
    """A booted machine. Paths and process ids are the machine's own, unless it says otherwise."""

    def __init__(self, base: Path) -> None:
        """Only `boot` makes one."""
        self.name = f"{_GROUP}{os.getpid()}-{next(_numbers)}"
        self.base = base
        self.leader = 0
        """The machine's PID 1, as this host numbers it."""
        self.boot_seconds = 0.0
        """From nothing to "running", with the host's share of it."""
        self._started: list[subprocess.Popen[Any]] = []
        self._debs = itertools.count(1)
        self._console = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()

    @classmethod
    def boot(cls, base: Path) -> Self:
        """Boot from a root file system, which is not changed. RuntimeError, with what the console said, if it fails."""
        machine = cls(base)
        try:
            machine._boot()
        except BaseException:
            machine.close()
            raise
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def run(
        self, *argv: str | Path, check: bool = True, input: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as root with a clean environment; stdin is empty unless given.

        With `check`, CalledProcessError shows what it printed. TimeoutExpired after `timeout` seconds.
        """
        result = self._run(argv, None if input is None else input.encode(), timeout)
        done = subprocess.CompletedProcess(
            list(map(str, argv)), result.returncode, _text(result.stdout), _text(result.stderr)
        )
        if check and done.returncode != 0:
            error = subprocess.CalledProcessError(done.returncode, done.args, done.stdout, done.stderr)
            error.add_note(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
            raise error
        return done

    def sh(self, text: str, *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run shell text; the first command that fails ends it."""
        return self.run("sh", "-ec", text, check=check, timeout=timeout)

    def python(self, code: str, *, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run Python text as netd's own interpreter does: with its modules, and with what it bundles."""
        return self.run("/usr/lib/netd/bin/python3", "-IB", "-", input=code, check=check, timeout=timeout)

    def netctl(self, *argv: str, timeout: float = 60) -> Any:
        """What `netctl --json ...` answers."""
        return json.loads(self.run("netctl", "--json", *argv, timeout=timeout).stdout)

    def write(self, path: str | Path, text: str, *, mode: int | None = None) -> None:
        """Write a file, as root; directories are made as needed."""
        self._put(path, text.encode())
        if mode is not None:
            self.run("chmod", f"{mode:o}", path)

    def read(self, path: str | Path) -> str:
        return self.run("cat", path).stdout

    def exists(self, path: str | Path) -> bool:
        """Whether there is anything at `path`, a dangling link included."""
        return self.sh(f'[ -e "{path}" ] || [ -L "{path}" ]', check=False).returncode == 0

    # --- systemd -----------------------------------------------------------------------------------------------------

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit, all of them when none is named."""
        wanted = [f"--property={','.join(properties)}"] if properties else []
        lines = self.run("systemctl", "show", unit, *wanted).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def is_active(self, unit: str = "netd") -> bool:
        return self.run("systemctl", "is-active", "--quiet", unit, check=False).returncode == 0

    @property
    def main_pid(self) -> int:
        """netd's process id in the machine; 0 when it does not run."""
        return int(self.show("netd.service", "MainPID")["MainPID"])

    def host_pid(self, pid: int) -> int:
        """The process id, as this host numbers it, of one of the machine's processes: for /proc and signals."""
        inside = Path(f"/proc/{self.leader}/ns/pid").stat()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):  # it ended as we looked
                numbers = _namespace_pids(int(entry.name))
                if numbers[-1:] == [pid] and os.path.samestat((entry / "ns/pid").stat(), inside):
                    return int(entry.name)
        raise ProcessLookupError(f"cannot find process {pid} in {self.name}")

    def journal(self, unit: str | None = "netd", *options: str) -> str:
        """What a unit logged, and what systemd says about it, one line a message; the whole journal for None."""
        which = [] if unit is None else [f"--unit={unit}"]
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "--quiet", "--output=short-precise", *which, *options).stdout

    def journal_fields(self, unit: str | None = "netd", *options: str) -> list[dict[str, Any]]:
        """Like `journal`, each message with all of its fields."""
        which = [] if unit is None else [f"--unit={unit}"]
        self.run("journalctl", "--sync")
        text = self.run("journalctl", "--no-pager", "--quiet", "--all", "--output=json", *which, *options).stdout
        return [json.loads(line) for line in text.splitlines()]

    def wait_until(self, condition: Callable[[], Any], what: str, *, timeout: float = 30) -> Any:
        """Ask again and again until `condition` holds, and return what it gave; TimeoutError names `what`."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"cannot see {what} within {timeout:g} s")
            time.sleep(0.05)
        return value

    # --- packages ----------------------------------------------------------------------------------------------------

    def copy(self, source: Path, target: str | Path) -> None:
        """Copy a file of this host into the machine."""
        self._put(target, source.read_bytes())

    def apt(self, *argv: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """apt-get as a script runs it: no terminal, no questions, no network."""
        options = ["--yes", "--quiet", "--option=Dpkg::Use-Pty=0"]
        return self.run("apt-get", *options, *argv, check=check, timeout=timeout)

    def install(
        self, deb: Path, *apt_options: str, check: bool = True, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """`apt-get install ./netd.deb` of a package on this host; also upgrades, and installs again."""
        target = f"/var/cache/lab-{next(self._debs)}/{deb.name}"
        self.copy(deb, target)
        try:
            return self.apt("install", *apt_options, target, check=check, timeout=timeout)
        finally:
            self.run("rm", "-r", str(Path(target).parent))

    # --- its network -------------------------------------------------------------------------------------------------

    def in_network(
        self, *argv: str | Path, check: bool = True, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this host to its end with the machine's network, and nothing else of the machine's."""
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | options
        try:
            return subprocess.run(self._in_network(argv), check=check, timeout=timeout, **options)
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout}\n{error.stderr}")
            raise

    def popen_in_network(self, *argv: str | Path, **options: Any) -> subprocess.Popen[Any]:
        """Start a program of this host with the machine's network; it is killed, if it still runs, with the machine."""
        process = subprocess.Popen(self._in_network(argv), **options)
        self._started.append(process)
        return process

    # --- its life ----------------------------------------------------------------------------------------------------

    def reboot(self) -> None:
        """Shut down in order and boot again; files stay, but for those in /run and /tmp."""
        before = self.leader
        self.run("systemctl", "reboot")
        deadline = time.monotonic() + BOOT_TIMEOUT
        while Path(f"/proc/{before}").exists():
            self._check_alive(deadline)
            time.sleep(0.02)
        self._wait_for_boot()

    def close(self) -> None:
        """Throw the machine away. May be called twice, and when booting failed."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._started.clear()
        self._console.close()
        _remove_groups([self.name])

    def _boot(self) -> None:
        _remove_groups(_abandoned_groups())
        start = time.monotonic()
        command = [*NAMESPACE, "sh", "-c", _BOOT]
        environment = {
            **os.environ,
            "BASE": str(self.base),
            "GROUP": self.name,
            "NAME": self.name,
            # of PID 1's log and boot messages nothing goes to a terminal
            "SYSTEMD_LOG_TARGET": "console",
        }
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console
        )
        self._started.append(process)
        self._process = process
        self._wait_for_boot()
        self.boot_seconds = time.monotonic() - start

    def _wait_for_boot(self) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT
        while not (leader := self._find_leader()):
            self._check_alive(deadline)
            time.sleep(0.02)
        self.leader = leader
        state = ""
        while state not in ("running", "degraded"):
            self._check_alive(deadline, state)
            time.sleep(0.02)
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state == "degraded":
            failed = self.run("systemctl", "--failed", "--no-legend", "--plain").stdout
            raise RuntimeError(f"cannot boot {self.name} in order: units failed\n{failed}")

    def _check_alive(self, deadline: float, state: str = "") -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"cannot boot {self.name}: it ended with {self._process.returncode}\n{self.console()}")
        if time.monotonic() > deadline:
            late = f"cannot boot {self.name} within {BOOT_TIMEOUT:g} s"
            raise RuntimeError(f"{late}: it is {state or 'not there yet'}\n{self.console()}")

    def console(self) -> str:
        """What was printed as it booted: mostly errors."""
        self._console.seek(0)
        return self._console.read().decode(errors="replace")[-4000:]

    def _find_leader(self) -> int:
        """The process below ours that is PID 1 one namespace further in, once it is systemd; 0 before that."""
        with suppress(OSError):
            depth = len(_namespace_pids(self._process.pid))
            for pid in _descendants(self._process.pid):
                numbers = _namespace_pids(pid)
                # until systemd is executed the process sees this host's files, and no command may run there
                if (
                    numbers[-1] == 1
                    and len(numbers) == depth + 2
                    and os.readlink(f"/proc/{pid}/exe").endswith("/systemd")
                ):
                    return pid
        return 0

    def _run(
        self, argv: Sequence[str | Path], input: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        enter = ["nsenter", f"--target={self.leader}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        # timeout(1) inside: killing nsenter would leave the command running, with our pipes
        inside = ["--root", "--wd", "env", "-i", *_ENVIRONMENT, "timeout", "--kill-after=2", f"{timeout:g}", *argv]
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        start = time.monotonic()
        result = subprocess.run([*enter, *inside], capture_output=True, check=False, timeout=timeout + 10, **stdin)
        if result.returncode in (124, 137) and time.monotonic() - start >= timeout:
            raise subprocess.TimeoutExpired(list(map(str, argv)), timeout, result.stdout, result.stderr)
        return result

    def _put(self, path: str | Path, content: bytes) -> None:
        # by a process inside, for which the links of the machine lead to the machine
        argv = ["sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat > "$1"', "sh", path]
        result = self._run(argv, content, 60)
        if result.returncode != 0:
            raise OSError(f"cannot write {path} in {self.name}: {result.stderr.decode().strip()}")

    def _in_network(self, argv: Sequence[str | Path]) -> list[str | Path]:
        return ["nsenter", f"--target={self.leader}", "--net", "setpriv", "--pdeathsig", "KILL", *argv]


def _text(output: bytes) -> str:
    return output.decode(errors="replace")


def _namespace_pids(pid: int) -> list[int]:
    """A process's ids in this PID namespace and in each one further in, down to its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(word) for line in status.splitlines() if line.startswith("NSpid:") for word in line.split()[1:]]


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:  # grows as it is walked
        with suppress(OSError):
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return found[1:]


# --- control groups --------------------------------------------------------------------------------------------------


def _abandoned_groups() -> list[str]:
    """Groups of machines whose test run was killed: its process id, which is in the name, is nobody's any more."""
    listed = subprocess.run([*NAMESPACE, "sh", "-ec", _LIST_GROUPS], check=True, capture_output=True, text=True).stdout
    ours = [name for name in listed.split() if name.startswith(_GROUP) and name.split("-")[2].isdigit()]
    return [name for name in ours if not Path(f"/proc/{name.split('-')[2]}").exists()]


def _remove_groups(names: Sequence[str]) -> None:
    """Remove groups that are empty, or are about to be: killed processes leave one at a time."""
    deadline = time.monotonic() + 10
    while names:
        command = [*NAMESPACE, "sh", "-ec", _SWEEP]
        environment = {**os.environ, "GROUPS": " ".join(names)}
        swept = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        names = swept.stdout.split()
        if names and time.monotonic() > deadline:
            raise RuntimeError(f"cannot remove the control groups {names}: something runs in them")
        if names:
            time.sleep(0.05)
