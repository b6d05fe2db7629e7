"""The lock files: what the package is built from is what pyproject.toml asks for, by hash, and names no index."""

from __future__ import annotations

import re
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
