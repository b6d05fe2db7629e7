"""What is installed to build and to test.

The lock files are what pyproject.toml asks for, by hash, and name no index; fetching by them loses nothing that is
there; and apt installs in the devcontainer what it does in CI.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.txt", "requirements-build.txt")
SHIPPED_EXTRAS = ("asn",)


def entries(lock):
    """Name -> (version, hashes) of each entry, as pip reads them."""
    text = (ROOT / "packaging" / lock).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "--")):
            requirement, *options = re.split(r"\s+--", line)
            name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", requirement).groups()
            assert canonicalize_name(name) not in found, f"{name} stands twice: one lock for every Python"
            found[canonicalize_name(name)] = (version, [option.strip() for option in options])
    return found


def satisfied(requirement, locked):
    requirement = Requirement(requirement)
    version, _ = locked[canonicalize_name(requirement.name)]
    return requirement.specifier.contains(Version(version))


def test_every_runtime_dependency_is_locked_at_a_version_that_pyproject_allows():
    wanted = PROJECT["project"]["dependencies"]
    for extra in SHIPPED_EXTRAS:
        wanted = wanted + PROJECT["project"]["optional-dependencies"][extra]
    locked = entries("requirements.txt")
    assert {Requirement(line).name for line in wanted} - set(locked) == set()
    assert [line for line in wanted if not satisfied(line, locked)] == []


def test_what_builds_netd_is_locked_too():
    locked = entries("requirements-build.txt")
    assert [line for line in PROJECT["build-system"]["requires"] if not satisfied(line, locked)] == []
    assert "setuptools" in locked  # for those that are to be had as sdist only


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_has_hashes(lock):
    for name, (version, options) in entries(lock).items():
        assert options, f"{name} {version} has no hash"
        assert [option for option in options if not re.fullmatch(r"hash=sha256:[0-9a-f]{64}", option)] == [], name


@pytest.mark.parametrize("lock", LOCKS)
def test_no_index_is_named(lock):
    text = (ROOT / "packaging" / lock).read_text()
    assert "://" not in text
    assert re.findall(r"^\s*(?:-i|-f|--(?:extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE) == []


@pytest.mark.parametrize("lock", LOCKS)
def test_the_tests_run_with_the_same_versions(lock):
    tested = {}
    for line in (ROOT / "packaging/constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.partition(";")[0].strip().split("==")
            tested.setdefault(canonicalize_name(name), set()).add(version)
    others = {
        name: (version, tested[name])
        for name, (version, _) in entries(lock).items()
        if name in tested and version not in tested[name]
    }
    assert others == {}, "make lock"


def test_everything_that_is_shipped_is_tested_at_that_version():
    lines = (ROOT / "packaging/constraints.txt").read_text().splitlines()
    tested = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    assert set(entries("requirements.txt")) - tested == set()


# --- where from, and where to -----------------------------------------------------------------------------------------


LISTED = [
    ":env:.index-url='https://of-the-environment/'",
    "download.index-url='https://of-download/'",
    "download.timeout='20'",
    "global.cert='/etc/ssl/of-all.pem'",
    "global.index-url='https://of-all/'",
    "global.timeout='10'",
    "install.cert='/etc/ssl/of-install.pem'",
]


@pytest.mark.parametrize("listing", [LISTED, LISTED[::-1]], ids=["pip 23", "newer pip"])
def test_the_environment_wins_over_pips_files_in_whatever_order_pip_lists_them(listing):
    in_force = runpy.run_path(str(ROOT / "packaging/lock"))["_in_force"]
    assert in_force("\n".join(listing)) == {
        "index-url": "https://of-the-environment/",
        "timeout": "20",
        "cert": "/etc/ssl/of-all.pem",
    }


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_wheels_are_not_fetched_over_anything_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [ROOT / "packaging/fetch-wheels", tmp_path], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert f"cannot fetch wheels: {tmp_path} is there and holds something else" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg")
def test_wheels_that_are_there_outlive_an_index_that_is_not(tmp_path):
    if subprocess.run(["/usr/bin/python3", "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("needs Debian's python3-pip")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / ".complete").write_text("an older lock\n")
    (wheels / "a.whl").touch()
    nowhere = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(
        [ROOT / "packaging/fetch-wheels", f"{wheels}/"],
        env=nowhere,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode != 0
    assert {path.name for path in wheels.iterdir()} == {".complete", "a.whl"}
    assert list(tmp_path.iterdir()) == [wheels]


# --- apt --------------------------------------------------------------------------------------------------------------


def installed(path, end):
    """The packages of the one `apt-get install` in a file."""
    (words,) = re.findall(rf"apt-get install((?:[^&>\n]|\\\n)*?)\s*{end}", (ROOT / path).read_text())
    return {word for word in words.split() if word != "\\" and not word.startswith("-")}


def test_the_devcontainer_has_what_ci_installs_and_what_the_package_takes():
    ci = installed(".ci/run", ">/dev/null")
    assert {"make", "nftables", "systemd-container"} <= ci
    needs = re.findall(r'^(?:BUILD|FETCH|ROOTFS)="(.*?)"', (ROOT / "packaging/build-deb").read_text(), re.MULTILINE)
    assert len(needs) == 3
    assert ci | set(" ".join(needs).split()) <= installed(".devcontainer/Dockerfile", "&& rm")
