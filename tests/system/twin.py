"""A twin of a unit: its file and its drop-ins, copied, with a program of ours in place of its own.

    twin = Twin(machine, "netd.service")
    twin.run("attempts.py")["mount"]       # what the daemon would have got for it

Why not nsenter: entering the daemon's namespaces brings along neither its system call filters nor its bounding set,
its control group or its no_new_privs. Systemd makes all of this for the twin by the very lines it makes it for the
daemon. What is left out is how a unit lives (what starts it, when it counts as started): `LIFE`. That the result is the
same confinement is not believed but compared: `Twin.difference`.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.system.lab import Machine

PYTHON = "/usr/lib/netd/bin/python3"
_LIFE = """
    After Also Description Documentation ExecReload ExecStart FileDescriptorStoreMax NotifyAccess Requires Restart
    RestartPreventExitStatus RestartSec Sockets StartLimitBurst StartLimitIntervalSec TimeoutAbortSec TimeoutStartSec
    TimeoutStopSec Type WantedBy WatchdogSec
"""
LIFE = _LIFE.split()
"""Directives that say how a unit lives, not what it may do."""

_HERE = Path(__file__).parent
_NUMBERS = itertools.count(1)


class Twin:
    def __init__(self, machine: Machine, unit: str = "netd.service") -> None:
        self.machine = machine
        self.unit = unit

    def text(self, program: str, *extra: str) -> str:
        """The unit as it is in force, as one file that runs `program` once; `extra` lines have the last word."""
        found = self.machine.show(self.unit, "FragmentPath", "DropInPaths")
        paths = [found["FragmentPath"], *found["DropInPaths"].split()]
        lines = [line for path in paths for line in self.machine.read(path).splitlines()]
        kept = [line for line in lines if line.split("=")[0] not in LIFE]
        return "\n".join([*kept, "[Service]", "Type=oneshot", f"ExecStart={program}", *extra]) + "\n"

    def run(self, script: str, *arguments: str, extra: tuple[str, ...] = ()) -> Any:
        """Run a script of this directory as the unit would; what it printed, as JSON."""
        name = f"twin-{next(_NUMBERS)}"
        # below /usr/local: neither hidden from the unit, nor a place that it may write to
        target = f"/usr/local/lib/lab/{name}.py"
        self.machine.write(target, (_HERE / script).read_text())
        output = f"StandardOutput=file:/run/{name}.json"
        program = " ".join([f"{PYTHON} -IB {target}", *arguments])
        self.machine.write(f"/run/systemd/system/{name}.service", self.text(program, output, *extra))
        try:
            self.machine.run("systemctl", "daemon-reload")
            done = self.machine.run("systemctl", "start", f"{name}.service", check=False, timeout=120)
            assert done.returncode == 0, f"{done.stderr}\n{self.machine.journal(name)}"
            return json.loads(self.machine.read(f"/run/{name}.json"))
        finally:
            self.machine.run("rm", "-f", f"/run/systemd/system/{name}.service")

    def difference(self) -> dict[str, tuple[str, str]]:
        """Where the kernel confines a twin otherwise than the unit's own main process; empty if nowhere."""
        pid = self.machine.show(self.unit, "MainPID")["MainPID"]
        files = {name: self.machine.read(f"/proc/{pid}/{name}") for name in ("status", "limits", "mountinfo")}
        return differences(confinement(files), confinement(self.run("attempts.py", "confinement")))


_RIGHTS = "Uid Gid Groups Umask CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters"
_STATUS = _RIGHTS.split()


def confinement(files: dict[str, str]) -> dict[str, str]:
    """What /proc/PID/{status,limits,mountinfo} say of what a process may do, without what is never the same twice."""
    found = {}
    for line in files["status"].splitlines():
        key, _, value = line.partition(":")
        if key in _STATUS:
            found[key] = value.strip()
    for line in files["limits"].splitlines()[1:]:
        name, *values = re.split(r"\s{2,}", line.strip())
        found[name] = " ".join(values)
    mounts: dict[str, str] = {}
    for line in files["mountinfo"].splitlines():
        fields = line.split()
        where, flags, (kind, *_, options) = fields[4], fields[5], fields[fields.index("-") + 1 :]
        where = re.sub(r"(?<=^/sys/fs/cgroup/).*(?=/memory\.pressure$)", "UNIT", where)  # its own group's, since 254
        if not re.match(r"/run/(credentials/|systemd/(incoming|unit-root))", where):
            # the last one on a mount point is the one that is seen
            mounts[where] = f"{kind} {flags} {options}" if kind == "proc" else f"{kind} {flags}"
    return found | {f"mount {where}": what for where, what in mounts.items()}


def differences(one: dict[str, str], other: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {
        key: (one.get(key, "absent"), other.get(key, "absent"))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }
