"""Upgrades as machines do them, at night and with nobody there: what was configured, said and connected goes on.

The older release is the one under test with a lower version (tests/system/repack.py); the upgrade is to the real one.

About conffiles. Without a terminal dpkg cannot ask, so a conffile that an administrator edited and that a release
changed stops an upgrade half-way, in every Debian package: the last test shows it. netd's answer is a conffile that no
release changes: nothing is in it but where settings go. unattended-upgrades looks beforehand and leaves such a package
alone; scripts pass --force-confold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.repack import CONFFILE, content, repacked
from tests.system.rootfs import ROOT

if TYPE_CHECKING:
    from tests.system.lab import Machine

LOAD = Path(__file__).with_name("load.py")
OLD = "0.0.9"
DROP_IN = "/etc/netd/netd.toml.d/50-test.toml"
TOML = """
[trace]
max_hops = 17

[[trace.listen]]
address = "127.0.0.1:8080"

[[framed.listen]]
address = "127.0.0.1:9000"

[[framed.listen]]
address = "[::1]:9000"

[[framed.listen]]
address = "unix:/run/netd/framed.sock"

[[metrics.listen]]
address = "127.0.0.1:9101"

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
history = "anyone"
history_size = 100
"""

EDITED = '# mine\n[log]\nlevel = "debug"\n'
"""The conffile after an administrator was there."""


@pytest.fixture(scope="module")
def previous(deb, tmp_path_factory):
    """The release before: the same files but for its version."""
    return repacked(deb, tmp_path_factory.mktemp("previous"), OLD)


@pytest.fixture(scope="module")
def previous_conffile(deb, tmp_path_factory):
    """A release before whose conffile was another one, which no release of netd was."""
    older = "# netd's configuration, as it was.\n"
    return repacked(deb, tmp_path_factory.mktemp("previous-conffile"), OLD, conffile=older)


def version(machine: Machine) -> str:
    """What the daemon that answers says it is."""
    return machine.netctl("status")["version"]


def state(machine: Machine) -> str:
    """The package's state, as dpkg calls it."""
    return machine.run("dpkg-query", "--showformat=${db:Status-Status}", "--show", "netd").stdout


@contextmanager
def clients(machine: Machine, report: dict[str, Any], **targets: str):
    """Clients that keep connecting (tests/system/load.py) within the context; then `report` says what came of it."""
    command = [sys.executable, LOAD, *(f"{name}={target}" for name, target in targets.items())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = machine.popen_in_network(*command, **pipes, text=True)
    assert process.stdout.readline() == "loading\n", process.communicate()
    yield
    output, errors = process.communicate("", timeout=60)
    assert process.returncode == 0, errors
    report.update(json.loads(output))


def refused(report: dict[str, Any]) -> int:
    return sum(counts.get("refused", 0) + counts.get("failed", 0) for counts in report.values())


# --- what a release may not change -----------------------------------------------------------------------------------


def test_the_only_conffile_is_the_one_of_every_release(deb):
    """Which tests/packaging/test_conffile.py keeps as it is."""
    listed = subprocess.run(["dpkg-deb", "--info", deb, "conffiles"], check=True, capture_output=True, text=True).stdout
    assert listed.split() == [f"/{CONFFILE}"]
    assert content(deb, CONFFILE) == (ROOT / "config" / "netd.toml").read_bytes()


# --- an upgrade ------------------------------------------------------------------------------------------------------


def test_an_upgrade_is_noticed_by_nobody(bare, previous, deb, figure):
    bare.install(previous)
    bare.write(DROP_IN, TOML)
    bare.write(f"/{CONFFILE}", EDITED)
    bare.write("/etc/systemd/system/netd.service.d/limits.conf", "[Service]\nLimitNOFILE=4096\n")
    bare.run("systemctl", "daemon-reload")
    bare.run("systemctl", "restart", "netd")
    bare.run("netctl", "config", "set", "framed.max_connections", "99")
    bare.run("netctl", "channels", "publish", "public:room", "before")
    assert version(bare) == OLD
    before = bare.netctl("config", "show")["values"]
    epoch = bare.netctl("channels", "history", "public:room")["epoch"]
    listener = bare.popen_in_network(
        *(sys.executable, "-m", "netd.cli.main", "--json", "framed", "listen", "127.0.0.1:9000", "public:room"),
        *("--recover", "start", "--count", "2"),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    first = listener.stdout.readline()
    root = f"/proc/{bare.leader}/root"
    targets = {
        "framed": "framed:127.0.0.1:9000",
        "framed-ipv6": "framed:[::1]:9000",
        "framed-unix": f"framed:{root}/run/netd/framed.sock",
        "trace": "websocket:127.0.0.1:8080",
        "metrics": "http:127.0.0.1:9101/metrics",
        "control": f"http:{root}/run/netd/control.sock:/v1/status",
    }

    report: dict[str, Any] = {}
    start = time.monotonic()
    with clients(bare, report, session="session:127.0.0.1:9000", **targets):
        upgrade = bare.install(deb)
    figure("upgrade, with clients connecting", time.monotonic() - start, "s")

    assert "Configuration file" not in upgrade.stdout
    assert state(bare) == "installed"
    assert version(bare) != OLD
    assert refused(report) == 0, report
    assert all(report[name]["ok"] > 0 for name in targets), report
    exchanges = sum(report[name]["ok"] for name in targets)
    cut = sum(report[name][how] for name in targets for how in ("told", "reset", "timed_out"))
    figure("connections during the upgrade", f"{exchanges} served, {cut} ended by it, 0 refused")
    session = report["session"]
    assert (session["lost"], session["twice"], session["gaps"]) == (0, 0, 0), session

    assert bare.netctl("config", "show")["values"] == before
    assert bare.read(f"/{CONFFILE}") == EDITED
    assert "4096" in bare.read(f"/proc/{bare.main_pid}/limits")
    # a clean stop: the hub remembers, and the connected client missed nothing
    history = bare.netctl("channels", "history", "public:room")
    assert (history["epoch"], [one["data"] for one in history["messages"]]) == (epoch, ["before"])
    bare.run("netctl", "channels", "publish", "public:room", "after")
    rest, _ = listener.communicate(timeout=30)
    assert [json.loads(line)["data"] for line in [first, *rest.splitlines()]] == ["before", "after"]
    assert bare.show("netd", "NRestarts", "Result") == {"NRestarts": "0", "Result": "success"}
    assert bare.run("systemctl", "is-system-running").stdout == "running\n"


def test_an_upgrade_does_not_start_what_is_disabled_but_what_is_only_stopped(bare, previous, deb):
    def states() -> list[str]:
        return bare.run("systemctl", "is-enabled", "netd.service", "netd.socket", check=False).stdout.split()

    bare.install(previous)
    bare.run("systemctl", "disable", "--now", "netd.service", "netd.socket")
    bare.install(deb)
    assert (state(bare), states()) == ("installed", ["disabled"] * 2)
    assert not bare.is_active("netd.service")
    assert not bare.is_active("netd.socket")

    # as with any Debian service: whoever wants it off disables it
    bare.run("systemctl", "enable", "netd.service", "netd.socket")
    bare.install(deb, "--reinstall")
    assert states() == ["enabled"] * 2
    assert bare.is_active("netd.service")
    assert bare.is_active("netd.socket")


def test_an_upgrade_to_what_cannot_start_is_told_and_can_be_put_right(bare, previous_conffile, deb):
    """A configuration that netd does not take any more: the package is installed, and netd says what is wrong."""
    bare.install(previous_conffile)
    assert "as it was" in bare.read(f"/{CONFFILE}")
    bare.write(DROP_IN, "[trace]\nno_longer_known = 1\n")
    bare.install(deb)
    assert state(bare) == "installed"
    assert not bare.is_active("netd")
    assert f"{DROP_IN}:2: trace.no_longer_known: unknown key" in bare.journal()
    bare.run("rm", DROP_IN)
    bare.run("systemctl", "start", "netd")
    assert (bare.netctl("status")["ready"], version(bare) != OLD) == (True, True)
    # a conffile that is another one and that nobody had edited
    assert bare.read(f"/{CONFFILE}").encode() == content(deb, CONFFILE)


# --- conffiles, were they to change ----------------------------------------------------------------------------------


def test_a_changed_and_edited_conffile_is_kept_by_an_upgrade_that_says_so(bare, previous_conffile, deb):
    bare.install(previous_conffile)
    bare.write(f"/{CONFFILE}", EDITED)
    bare.install(deb, "--option=Dpkg::Options::=--force-confdef", "--option=Dpkg::Options::=--force-confold")
    assert state(bare) == "installed"
    assert bare.read(f"/{CONFFILE}") == EDITED
    assert bare.netctl("config", "show")["values"]["log"]["level"] == "debug"
    assert bare.read(f"/{CONFFILE}.dpkg-dist").encode() == content(deb, CONFFILE)
    assert version(bare) != OLD
    # the copy that dpkg leaves is not taken for configuration, and goes with the package
    assert bare.netctl("status")["config"]["sources"] == [f"/{CONFFILE}"]
    bare.apt("purge", "netd")
    assert not bare.exists("/etc/netd")


def test_a_changed_and_edited_conffile_stops_an_upgrade_without_a_terminal_but_not_the_daemon(
    bare, previous_conffile, deb
):
    bare.install(previous_conffile)
    bare.write(f"/{CONFFILE}", EDITED)
    bare.run("systemctl", "reload", "netd")
    report: dict[str, Any] = {}
    with clients(bare, report, framed="framed:127.0.0.1:9000", trace="websocket:127.0.0.1:8080"):
        upgrade = bare.install(deb, check=False)
        assert upgrade.returncode == 100
        assert "end of file on stdin at conffile prompt" in upgrade.stderr
        assert state(bare) == "unpacked"
        # the old daemon goes on, and what the administrator wrote is untouched
        assert version(bare) == OLD
        assert bare.read(f"/{CONFFILE}") == EDITED
        bare.run("dpkg", "--force-confold", "--configure", "netd")
    assert refused(report) == 0, report
    assert state(bare) == "installed"
    assert bare.read(f"/{CONFFILE}") == EDITED
    assert version(bare) != OLD
