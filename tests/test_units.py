"""The systemd units: systemd understands them, they stay as tight as they are, and each line says why it is there."""

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

UNITS = Path(__file__).parent.parent / "systemd"
NAMES = ["netd.service", "netd.socket"]

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
    shutil.copytree(UNITS, units)
    for program in ("usr/sbin/netd", "usr/bin/netctl"):
        file = tmp_path / program
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    return tmp_path


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_has_nothing_to_say_against_a_unit(root, name):
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_systemd_would_say_something_against_a_wrong_unit(root):
    unit = root / "usr/lib/systemd/system/netd.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHouse=yes"))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", "netd.service"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ProtectHouse" in result.stderr


@needs_systemd
def test_the_service_stays_confined():
    # systemd's own rating, 0 (best) to 10, times ten
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=18", "--no-pager"]
    result = subprocess.run([*command, UNITS / "netd.service"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-300:]


@pytest.mark.parametrize("name", NAMES)
def test_every_directive_says_why(name):
    lines = (UNITS / name).read_text().splitlines()
    bare = [
        line for before, line in itertools.pairwise(lines) if "=" in line and line[0] not in "#;" and before[:2] != "# "
    ]
    assert bare == []
    assert sum("=" in line and line[0] not in "#;" for line in lines if line) > 10


def test_the_units_and_the_defaults_agree():
    service, socket = directives("netd.service"), directives("netd.socket")
    assert socket["ListenStream"] == [str(ControlConfig().socket)]
    assert socket["SocketGroup"] == [ControlConfig().group]
    assert int(socket["SocketMode"][0], 8) == ControlConfig().mode
    assert service["Sockets"] == service["Requires"] == service["Also"] == ["netd.socket"]
    assert service["StateDirectory"] == ["netd"]
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
    assert service["AmbientCapabilities"] == service["CapabilityBoundingSet"] == ["CAP_NET_RAW CAP_NET_BIND_SERVICE"]
