"""The systemd units: systemd understands them, they stay as tight as they are, and each line says why it is there.

What they do to a process is tried in tests/system/test_sandbox.py. Here is only what the files say: fast, and without a
systemd that runs.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from netd.control.config import ControlConfig
from netd.errors import ConfigError
from netd.runtime.config import RestartPolicy
from netd.services.worker.config import WorkerConfig
from netd.settings.problems import DIRECTORY_PREFIX
from netd.settings.sources import CREDENTIAL_PREFIX
from netd.systemd import STORE_MAX
from netd.worker.running import DEFAULT_SOCKET, DRAIN

UNITS = Path(__file__).parents[2] / "systemd"
NAMES = ["netd.service", "netd.socket", "netd-worker@.service"]
DROP_INS = sorted(path.name for path in (UNITS / "drop-ins").iterdir())
FILES = [*NAMES, *(f"drop-ins/{name}" for name in DROP_INS)]

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def directives(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if re.match(r"\w+=", line):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def root(tmp_path):
    """A root directory in which the units and the programs they name are installed."""
    units = tmp_path / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(UNITS / name, units)
    for program in ("usr/sbin/netd", "usr/bin/netctl", "usr/lib/netd/bin/python3"):
        file = tmp_path / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    return tmp_path


def verify(root: Path, name: str) -> tuple[int, str]:
    instance = name.replace("@.", "@chat.")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", instance]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def dropped_in(root: Path, *names: str) -> None:
    """Install drop-ins, as an admin would, so that they are read in the order given."""
    directory = root / "etc/systemd/system/netd.service.d"
    directory.mkdir(parents=True)
    for number, name in enumerate(names):
        shutil.copy(UNITS / "drop-ins" / name, directory / f"{number}-{name}")


def exposure(root: Path, name: str = "netd.service") -> float:
    """systemd's own rating of the service with its drop-ins, 0 (best) to 10."""
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--root={root}", name]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(re.search(rf"exposure level for {name}: ([0-9.]+)", result.stdout)[1])


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_against_a_unit(root, name):
    assert verify(root, name) == (0, "")


@needs_systemd
def test_systemd_would_say_something_against_a_wrong_unit(root):
    unit = root / "usr/lib/systemd/system/netd.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHouse=yes"))
    assert "ProtectHouse" in verify(root, "netd.service")[1]


@needs_systemd
@pytest.mark.parametrize(
    "names", [*((name,) for name in DROP_INS), tuple(DROP_INS), tuple(reversed(DROP_INS))], ids=str
)
def test_systemd_has_nothing_to_say_against_drop_ins(root, names):
    dropped_in(root, *names)
    assert verify(root, "netd.service") == (0, "")


@needs_systemd
def test_the_service_stays_confined(root):
    assert exposure(root) <= 1.8


@needs_systemd
def test_a_worker_is_confined_more_than_the_daemon(root):
    assert exposure(root, "netd-worker@chat.service") < exposure(root)


@needs_systemd
def test_drop_ins_take_away_and_open(root):
    plain = exposure(root)
    dropped_in(root, "no-raw-sockets.conf")
    assert exposure(root) < plain
    shutil.rmtree(root / "etc")
    dropped_in(root, "process-names.conf")
    assert plain < exposure(root) < 2.5


@pytest.mark.parametrize("name", FILES)
def test_every_directive_says_why(name):
    lines = (UNITS / name).read_text().splitlines()
    bare = [
        line for before, line in itertools.pairwise(lines) if "=" in line and line[0] not in "#;" and before[:2] != "# "
    ]
    assert bare == []
    assert any("=" in line and line[0] not in "#;" for line in lines if line)


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_longer_than_a_line(name):
    assert [line for line in (UNITS / name).read_text().splitlines() if len(line) > 120] == []


def test_the_units_and_the_defaults_agree():
    service, socket = directives("netd.service"), directives("netd.socket")
    assert socket["ListenStream"] == [str(ControlConfig().socket)]
    assert socket["SocketGroup"] == [ControlConfig().group]
    assert int(socket["SocketMode"][0], 8) == ControlConfig().mode
    assert service["Sockets"] == service["Requires"] == service["Also"] == ["netd.socket"]
    assert service["StateDirectory"] == ["netd"]
    assert service["FileDescriptorStoreMax"] == [str(STORE_MAX)]
    assert str(ConfigError.exit_code) in service["RestartPreventExitStatus"][0].split()
    drain, start = RestartPolicy().drain, RestartPolicy().start_timeout
    assert drain < int(service["TimeoutStopSec"][0].removesuffix("s"))
    assert start < int(service["TimeoutStartSec"][0].removesuffix("s"))


def test_reload_waits_for_its_outcome_as_root():
    service = directives("netd.service")
    assert service["Type"] == ["notify"]  # notify-reload is unknown to systemd 252
    assert service["ExecReload"] == ["+/usr/bin/netctl reload"]


def test_only_the_capabilities_that_are_needed():
    service = directives("netd.service")
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == ["CAP_NET_RAW"]


# --- workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_unit_and_what_it_runs_agree():
    worker = directives("netd-worker@.service")
    (command,) = worker["ExecStart"]
    assert command.split()[-2:] == ["-m", "netd.worker"]
    assert worker["EnvironmentFile"] == ["/etc/netd/workers/%i.env"]
    text = (UNITS / "netd-worker@.service").read_text()
    understood = (UNITS.parent / "netd/worker/__main__.py").read_text()
    assert [name for name in re.findall(r"NETD_WORKER_[A-Z]+", text) if f'"{name}"' not in understood] == []
    assert str(ConfigError.exit_code) in worker["RestartPreventExitStatus"][0].split()
    assert int(worker["TimeoutStopSec"][0].removesuffix("s")) > DRAIN


def test_a_worker_gets_to_the_workers_socket_and_to_nothing_else_of_the_daemons():
    worker = directives("netd-worker@.service")
    group = WorkerConfig().group
    assert worker["SupplementaryGroups"] == [group]
    sysusers = (UNITS.parent / "packaging/debian/netd.sysusers").read_text().splitlines()
    assert {f"g {group} -", f"m netd {group}"} <= set(sysusers)
    assert worker["CapabilityBoundingSet"] == [""]
    assert "AmbientCapabilities" not in worker
    # of each instance its own, and none that is called as the group is: there is no dynamic account of that name then
    assert (worker["DynamicUser"], worker["User"]) == (["yes"], ["netd-worker-%i"])
    hidden = " ".join(worker["InaccessiblePaths"]).replace("-/", "/").split()
    assert {str(ControlConfig().socket), "/var/lib/netd", "/etc/netd/credentials"} <= set(hidden)
    assert WorkerConfig().socket is None, "which is beside the control socket, in a directory that all may enter"
    assert ControlConfig().socket.with_name("worker.sock") == DEFAULT_SOCKET
    # what gives the socket to its group
    assert directives("netd.service")["SystemCallFilter"][-1] == "@chown"


def test_workers_go_with_the_daemon():
    worker = directives("netd-worker@.service")
    assert worker["PartOf"] == worker["WantedBy"] == ["netd.service"]
    assert "netd.service" in worker["After"][0].split()


# --- drop-ins --------------------------------------------------------------------------------------------------------


def merged(*names: str) -> dict[str, set[str]]:
    """What systemd makes of the lists of the service and of drop-ins, in the order given (load-fragment.c)."""
    everything = {"AmbientCapabilities": set(), "CapabilityBoundingSet": {"all"}}
    initial = {key: set(value) for key, value in everything.items()}
    for name in ("netd.service", *(f"drop-ins/{name}" for name in names)):
        for key, values in directives(name).items():
            for value in values if key in everything else []:
                words = set(value.removeprefix("~").split())
                inverted = value.startswith("~")
                if everything[key] == initial[key]:  # nothing said yet, or everything taken away again
                    everything[key] = {"all but", *words} if inverted else words
                else:
                    everything[key] = everything[key] - words if inverted else everything[key] | words
    return everything


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("names", list(itertools.permutations(DROP_INS)), ids=" ".join)
def test_drop_ins_go_together_in_any_order(names, copies):
    found = merged(*names * copies)
    wanted = {"CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}
    assert found["AmbientCapabilities"] == found["CapabilityBoundingSet"] == wanted


def test_taking_away_from_nothing_would_give_everything():
    # why no-raw-sockets.conf begins by giving
    assert merged("no-raw-sockets.conf", "no-raw-sockets.conf")["AmbientCapabilities"] == set()
    lines = directives("drop-ins/no-raw-sockets.conf")["AmbientCapabilities"]
    assert lines[0] == "CAP_NET_RAW"
    assert lines[1].startswith("~CAP_NET_RAW")


@pytest.mark.parametrize("name", DROP_INS)
def test_a_drop_in_resets_no_list(name):
    # an empty value would also take away what other drop-ins gave
    assert [key for key, values in directives(f"drop-ins/{name}").items() if "" in values] == []


def test_the_units_speak_of_the_drop_ins_that_there_are():
    assert set(re.findall(r"drop-ins/([\w-]+\.conf)", (UNITS / "netd.service").read_text())) <= set(DROP_INS)
    assert DROP_INS == ["low-ports.conf", "no-raw-sockets.conf", "process-names.conf"]


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_come_from_one_directory_that_may_be_missing():
    service = directives("netd.service")
    assert service["LoadCredential"] == [f"{DIRECTORY_PREFIX.removesuffix('_')}:/etc/netd/credentials"]
    # an empty default would be no default (systemd 252 and 257), and a missing directory then fails the start
    (default,) = service["SetCredential"]
    name, _, value = default.partition(":")
    assert (name, bool(value)) == ("netd", True)
    assert not name.startswith((CREDENTIAL_PREFIX, DIRECTORY_PREFIX)), "netd would look at it"
