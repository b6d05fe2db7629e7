"""The built package, looked at without installing it: NETD_DEB, or the newest build/netd_*.deb (`make deb`).

Skipped where there is none: building takes a minute, and tests/system installs it anyway.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MEGABYTE = 1_000_000


def built():
    if "NETD_DEB" in os.environ:
        return Path(os.environ["NETD_DEB"])
    found = sorted((ROOT / "build").glob("netd_*.deb"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


@pytest.fixture(scope="module")
def deb():
    path = built()
    if path is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no package: make deb" if path is None else "no dpkg-deb")
    return path


def unpack(deb, part):
    """Path -> (member, content) of a part of the package, `--ctrl-tarfile` or `--fsys-tarfile`."""
    packed = subprocess.run(["dpkg-deb", part, deb], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {
            member.name.removeprefix("."): (member, tar.extractfile(member).read() if member.isreg() else b"")
            for member in tar
        }


@pytest.fixture(scope="module")
def control(deb):
    return {name.removeprefix("/"): content.decode() for name, (_, content) in unpack(deb, "--ctrl-tarfile").items()}


@pytest.fixture(scope="module")
def files(deb):
    return unpack(deb, "--fsys-tarfile")


@pytest.mark.timeout(400)
def test_lintian_has_nothing_to_say(deb):
    if shutil.which("lintian") is None:
        pytest.skip("no lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--pedantic", "--fail-on", "error,warning,pedantic", deb],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_for_one_python_and_no_larger_than_it_has_to_be(deb, control, files):
    site = next(name for name in files if name.endswith("/site-packages"))
    minor = int(re.fullmatch(r"/usr/lib/netd/lib/python3\.(\d+)/site-packages", site)[1])
    assert f"python3 (>= 3.{minor}), python3 (<< 3.{minor + 1})" in control["control"]
    assert re.search(r"^Version: \S+~deb\d+$", control["control"], re.MULTILINE)
    assert deb.stat().st_size < 18 * MEGABYTE


def test_the_one_conffile_is_the_tiny_one(control, files):
    assert control["conffiles"].split() == ["/etc/netd/netd.toml"]
    assert files["/etc/netd/netd.toml"][1] == (ROOT / "config/netd.toml").read_bytes()
    assert files["/etc/netd/netd.toml.d"][0].isdir()


def test_everything_is_roots_and_only_the_credentials_are_hidden(files):
    assert [name for name, (member, _) in files.items() if (member.uid, member.gid) != (0, 0)] == []
    hidden = [name for name, (member, _) in files.items() if not member.issym() and member.mode & 0o044 != 0o044]
    assert hidden == ["/etc/netd/credentials"]
    loose = [name for name, (member, _) in files.items() if not member.issym() and member.mode & 0o7022]
    assert loose == []


def test_everything_that_users_expect_is_there(files):
    names = {name.replace("/usr/lib/systemd", "/lib/systemd") for name in files}
    doc = "/usr/share/doc/netd/"
    man = "/usr/share/man/"
    expected = {
        *("/usr/sbin/netd", "/usr/bin/netctl", "/usr/lib/sysusers.d/netd.conf", "/usr/lib/tmpfiles.d/netd.conf"),
        *("/lib/systemd/system/netd.service", "/lib/systemd/system/netd.socket"),
        *("/lib/systemd/system/netd-worker@.service", "/etc/netd/workers"),
        *(f"{doc}{name}" for name in ("README.Debian", "copyright", "changelog.gz", "netd.cdx.json")),
        *(f"{man}{name}.gz" for name in ("man8/netd.8", "man1/netctl.1", "man5/netd.toml.5")),
        *(f"/usr/share/bash-completion/completions/{name}" for name in ("netd", "netctl")),
        *(f"/usr/share/zsh/vendor-completions/_{name}" for name in ("netd", "netctl")),
        *(f"/usr/share/fish/vendor_completions.d/{name}.fish" for name in ("netd", "netctl")),
        *(f"/usr/share/netd/drop-ins/{path.name}" for path in (ROOT / "systemd/drop-ins").glob("*.conf")),
    }
    assert expected - names == set()


def test_nothing_is_in_it_that_no_daemon_needs(files):
    assert [name for name in files if re.search(r"/(tests?|_tests|\.agents)(/|$)|\.(pyi|c|h)$|/pip/", name)] == []


def test_each_module_has_its_byte_code(files):
    modules = {name for name in files if name.endswith(".py") and name.startswith("/usr/lib/netd/lib/")}
    compiled = {
        re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$", r"\1.py", name) for name in files if "pyc" in name[-4:]
    }
    assert modules == compiled
    unchecked = (0b01).to_bytes(4, "little")  # PEP 552: by hash, not compared with the source
    assert {content[4:8] for name, (_, content) in files.items() if name.endswith(".pyc")} == {unchecked}


def test_the_launchers_are_shut_off_from_the_callers_python(files):
    for name in ("netd", "netctl"):
        assert files[f"/usr/lib/netd/bin/{name}"][1].startswith(b"#!/usr/lib/netd/bin/python3 -IuB\n")
    assert files["/usr/sbin/netd"][0].linkname == "../lib/netd/bin/netd"
    assert files["/usr/bin/netctl"][0].linkname == "../lib/netd/bin/netctl"


def test_an_upgrade_restarts_the_daemon_and_neither_stops_it_nor_touches_its_socket(control):
    started = re.findall(r"deb-systemd-invoke (\S+) (.*?) >", control["postinst"])
    assert started == [("$_dh_action", "'netd.service'"), ("start", "'netd.socket'")]
    assert "preinst" not in control
    # what is stopped is stopped when the package goes, and only then
    for block in re.findall(r"^if .*?^fi", control["prerm"], re.MULTILINE | re.DOTALL):
        assert '"$1" = remove' in block


def test_its_sbom_tells_the_hash_of_every_wheel(files):
    document = json.loads(files["/usr/share/doc/netd/netd.cdx.json"][1])
    lock = (ROOT / "packaging/requirements.txt").read_text()
    for component in document["components"]:
        (digest,) = component["hashes"]
        assert f"sha256:{digest['content']}" in lock, component["name"]


def test_its_copyright_names_every_library(files):
    text = files["/usr/share/doc/netd/copyright"][1].decode()
    document = json.loads(files["/usr/share/doc/netd/netd.cdx.json"][1])
    for component in document["components"]:
        info = f"/{component['name'].replace('-', '_')}-{component['version']}.dist-info/*"
        assert info in text or info.lower() in text.lower(), component["name"]


def test_no_path_of_the_build_is_in_it(files):
    assert [
        name for name, (_, content) in files.items() if b"/netd-build." in content or b"/build/netd/" in content
    ] == []
