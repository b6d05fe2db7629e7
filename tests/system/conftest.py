"""Machines for the system tests, the package to put into them, and what is shown at the end and of what failed.

suite      SUITE, bookworm by default
rootfs     its root file system, built once (tests/system/rootfs.py)
deb        NETD_DEB, or the newest build/netd_*.deb of the suite; none is built here
bare       a machine without netd, for this test alone
machine    a machine with netd installed offline and running, for this module
figure     figure("time to READY", 0.41, "s"): printed at the end of the run, never asserted
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.lab import Machine, why_not
from tests.system.rootfs import RELEASES, ROOT, architecture, held_rootfs

HERE = Path(__file__).parent
PATIENCE = 300
"""Seconds for one test, the building of its root file system and the booting of its machine included."""

_FIGURES = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items):
    ours = [item for item in items if HERE in item.path.parents]
    reason = why_not() if ours else None
    for item in ours:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def suite() -> str:
    name = os.environ.get("SUITE") or "bookworm"
    if name not in RELEASES:
        pytest.fail(f"cannot test on SUITE={name}: known are {', '.join(RELEASES)}")
    return name


@pytest.fixture(scope="session")
def rootfs(suite, pytestconfig):
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def say(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", flush=True)

    with held_rootfs(suite, say) as directory:
        yield directory


@pytest.fixture(scope="session")
def deb(suite) -> Path:
    """The package under test."""
    if given := os.environ.get("NETD_DEB"):
        path = Path(given).absolute()
        assert path.is_file(), f"cannot find NETD_DEB={given}"
        return path
    built = list((ROOT / "build").glob(f"netd_*~deb{RELEASES[suite]}*_{architecture()}.deb"))
    if not built:
        pytest.skip(f"no package of {suite} in build/: make deb")
    return max(built, key=lambda path: path.stat().st_mtime)


@pytest.fixture
def bare(rootfs):
    with Machine.boot(rootfs) as machine:
        yield machine


@pytest.fixture(scope="module")
def machine(rootfs, deb, figure):
    with Machine.boot(rootfs) as machine:
        start = time.monotonic()
        machine.install(deb)
        figure("apt-get install", time.monotonic() - start, "s")
        assert machine.is_active("netd"), machine.journal()
        yield machine


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def figure(pytestconfig):
    """Note a measurement, to be printed when all tests have run."""
    lines = pytestconfig.stash.setdefault(_FIGURES, [])

    def note(what: str, value: float | str, unit: str = "") -> None:
        shown = f"{value:.2f}" if isinstance(value, float) else value
        lines.append(f"{what}: {shown} {unit}".rstrip())

    return note


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(_FIGURES, None):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Machine) and value.leader:
                try:
                    report.sections.append((f"{value.name}: netd's journal", value.journal()[-6000:]))
                except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                    report.sections.append((f"{value.name}: cannot read its journal", repr(error)))
    return report
