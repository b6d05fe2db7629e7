"""What `pip install` gets: an sdist that builds, a wheel of netd alone, and a daemon that serves from an environment.

Rules:
- one sdist, one wheel and one environment for each set of extras, made once for all tests here;
- what is installed runs outside the tree, with nothing of the tree on its path;
- without a package index nothing can be installed: those tests skip, with what pip said.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

import netd
from tests.support.mmdb import mmdb

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EPOCH = 1_700_000_000
PATIENCE = 30.0
"""Seconds after which a test that waits for the daemon gives up."""

pytestmark = pytest.mark.timeout(300)  # pip may have forty wheels to fetch

NEEDED = ["netd", "tests", "packaging", "systemd", "config", ".ci", ".devcontainer"]
"""What building, testing and packaging take; the sdist has all of each that there is."""

FILES = ["Makefile", "pyproject.toml", "LICENSE", "README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"]

IN_USE = {
    "asn": ("maxminddb", "trace.asn", "as.mmdb"),
}
"""Extra -> the module it brings, the key of the configuration that needs it, and the file that key points at."""


def run(*argv: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NETD_", "PYTHON", "NOTIFY_"))}
    return subprocess.run(argv, cwd=cwd, env=clean | environ, text=True, capture_output=True, timeout=240, check=False)


def build(tree: Path, output: Path, *targets: str, epoch: int = EPOCH) -> None:
    chosen = [word for target in targets for word in ("-t", target)]
    done = run(
        sys.executable, "-m", "hatchling", "build", "-d", output, *chosen, cwd=tree, SOURCE_DATE_EPOCH=str(epoch)
    )
    assert done.returncode == 0, done.stderr


def wheel_of(directory: Path) -> Path:
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A directory with the sdist and the wheel of this tree."""
    output = tmp_path_factory.mktemp("dist")
    build(ROOT, output, "sdist", "wheel")
    return output


@pytest.fixture(scope="session")
def unpacked(built, tmp_path_factory):
    """The sdist, unpacked by somebody with another umask, now."""
    directory = tmp_path_factory.mktemp("sdist")
    (archive,) = built.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", archive], cwd=directory, check=True)
    (tree,) = directory.iterdir()
    for path in tree.rglob("*"):
        os.utime(path)
        if path.is_file():
            path.chmod(0o700 if path.stat().st_mode & stat.S_IXUSR else 0o600)
    return tree


# --- what is in them --------------------------------------------------------------------------------------------------


def test_the_sdist_is_what_git_keeps_of_what_is_needed(unpacked):
    kept = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    if kept.returncode:
        pytest.skip(f"this tree is no git checkout: {kept.stderr.strip()}")
    wanted = {
        name
        for name in kept.stdout.splitlines()
        if (name in FILES or name.split("/")[0] in NEEDED) and (ROOT / name).exists()
    }
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert found - {"PKG-INFO", ".gitignore"} == wanted
    assert wanted >= set(FILES)


def test_programs_of_the_sdist_can_be_run(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        modes = {member.name.partition("/")[2]: member.mode for member in tar}
    assert modes["packaging/dev-setup"] & 0o111
    assert modes["packaging/release"] & 0o111


def test_the_wheel_is_netd_and_nothing_else(built):
    with zipfile.ZipFile(wheel_of(built)) as wheel:
        names = set(wheel.namelist())
        about = f"netd-{netd.__version__}.dist-info"
        assert {name.split("/")[0] for name in names} == {"netd", about}
        assert "netd/py.typed" in names
        kinds = {Path(name).suffix for name in names if name.startswith("netd/") and name != "netd/py.typed"}
        assert kinds == {".py", ".js", ".ts"}
        assert {name for name in names if not name.endswith(".py") and name.startswith("netd/")} == {
            "netd/py.typed",
            "netd/client/browser/netd.js",
            "netd/client/browser/netd.d.ts",
        }
        entry_points = wheel.read(f"{about}/entry_points.txt").decode()
        assert "netd = netd.__main__:main" in entry_points
        assert "netctl = netd.cli.main:main" in entry_points
        assert f"{about}/licenses/LICENSE" in names
        metadata = wheel.read(f"{about}/METADATA").decode()
    for extra in PROJECT["optional-dependencies"]:
        assert f"Provides-Extra: {extra}\n" in metadata


def test_an_sdist_builds_what_the_tree_builds(built, unpacked, tmp_path):
    """Bit for bit, whatever the directory, the times and the modes of the files are."""
    build(unpacked, tmp_path, "sdist", "wheel")
    for theirs in built.iterdir():
        ours = tmp_path / theirs.name
        if theirs.suffix == ".whl":
            assert contents(ours) == contents(theirs)
        assert ours.read_bytes() == theirs.read_bytes()


def contents(wheel: Path) -> dict[str, tuple[bytes, int, tuple[int, ...]]]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            info.filename: (archive.read(info), info.external_attr, info.date_time[:5]) for info in archive.infolist()
        }


def test_times_in_a_wheel_are_the_releases(built, unpacked, tmp_path):
    build(unpacked, tmp_path, "wheel", epoch=EPOCH + 86_400)
    for wheel, epoch in ((wheel_of(built), EPOCH), (wheel_of(tmp_path), EPOCH + 86_400)):
        assert {when for _, _, when in contents(wheel).values()} == {time.gmtime(epoch)[:5]}


# --- installed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    """Skips where pip cannot fetch anything."""
    probe = ["download", "--quiet", "--no-deps", "--no-cache-dir", "--retries=0", "--timeout=15", "click"]
    directory = tmp_path_factory.mktemp("probe")
    done = run(sys.executable, "-m", "pip", *probe, cwd=directory)
    if done.returncode:
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def install(built, index, tmp_path_factory):
    """install(extra...) -> the bin directory of a fresh environment with the wheel and these extras."""
    made: dict[tuple[str, ...], Path] = {}

    def make(*extras: str) -> Path:
        if extras not in made:
            directory = tmp_path_factory.mktemp("venv")
            venv = run(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
            assert venv.returncode == 0, venv.stderr
            what = str(wheel_of(built)) + (f"[{','.join(extras)}]" if extras else "")
            pip = [sys.executable, "-m", "pip", "--python", directory / "bin/python"]
            # the versions that CI tests with, so that a release of somebody else's is not what fails here
            limits = ["--constraint", ROOT / "packaging/constraints.txt", "--no-compile"]
            done = run(*pip, "install", "--quiet", *limits, what, cwd=directory)
            assert done.returncode == 0, done.stderr
            made[extras] = directory / "bin"
        return made[extras]

    yield make
    for bin_directory in made.values():
        shutil.rmtree(bin_directory.parent)


SETS = [(), *((extra,) for extra in PROJECT["optional-dependencies"])]


@pytest.fixture(params=SETS, ids=lambda extras: "+".join(extras) or "no extras")
def extras(request):
    return request.param


def test_every_extra_is_tried():
    assert set(PROJECT["optional-dependencies"]) == set(IN_USE)


def test_it_says_its_version(install, tmp_path):
    bin_directory = install()
    for program in ("netd", "netctl"):
        done = run(bin_directory / program, "--version", cwd=tmp_path)
        assert (done.returncode, done.stdout.strip()) == (0, f"{program} {netd.__version__}"), done.stderr
    imported = run(bin_directory / "python", "-c", "import netd; print(netd.__file__)", cwd=tmp_path)
    assert imported.stdout.startswith(str(bin_directory.parent))


def test_netctl_says_what_it_can_do(install, tmp_path):
    done = run(install() / "netctl", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout
    listed = run(install() / "netctl", "status", "--help", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize("extra", IN_USE)
def test_without_its_extra_a_key_says_what_to_install(install, tmp_path, extra):
    module, key, file = IN_USE[extra]
    assert run(install() / "python", "-c", f"import {module}", cwd=tmp_path).returncode == 1
    (tmp_path / file).write_bytes(mmdb({"asn": "AS64500"}))
    (tmp_path / "netd.toml").write_text(f'{key} = "{tmp_path / file}"\n')
    checked = run(install() / "netd", "--check", "--config", "netd.toml", cwd=tmp_path)
    assert checked.returncode == 78
    assert f'install netd with its "{extra}" extra' in checked.stderr


def test_the_daemon_checks_serves_and_ends(install, extras, tmp_path):
    lines = [
        f'state_directory = "{tmp_path / "state"}"',
        f'control = {{ socket = "{tmp_path / "control.sock"}", group = "" }}',
        'framed.listen = [{ address = "127.0.0.1:0" }]',
        'trace.listen = [{ address = "127.0.0.1:0" }]',
        'broker.listen = [{ address = "127.0.0.1:0" }]',
    ]
    for extra in extras:
        module, key, file = IN_USE[extra]
        (tmp_path / file).write_bytes(mmdb({"asn": "AS64500"}))
        lines.append(f'{key} = "{tmp_path / file}"')
        imported = run(install(*extras) / "python", "-c", f"import {module}", cwd=tmp_path)
        assert imported.returncode == 0, imported.stderr
    config = tmp_path / "netd.toml"
    config.write_text("\n".join(lines))

    checked = run(install(*extras) / "netd", "--check", "--config", config, cwd=tmp_path)
    assert checked.stdout == f"configuration ok: {config}\n", checked.stderr

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify.sock"))
        notify.settimeout(PATIENCE)
        environ = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": str(tmp_path / "notify.sock")}
        with (tmp_path / "log").open("wb") as log:
            daemon = subprocess.Popen(
                [install(*extras) / "netd", "--config", config], cwd=tmp_path, env=environ, stdout=log, stderr=log
            )
        try:
            while "READY=1" not in notify.recv(4096).decode().splitlines():
                pass
            status = run(
                install(*extras) / "netctl",
                *("--socket", tmp_path / "control.sock", "--json", "status"),
                cwd=tmp_path,
            )
            assert status.returncode == 0, status.stderr
            said = json.loads(status.stdout)
            assert said["version"] == netd.__version__
            assert {unit["name"]: unit["state"] for unit in said["services"]}.items() >= {
                ("trace", "running"),
                ("framed", "running"),
            }
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(PATIENCE) == 0
        finally:
            daemon.kill()
            daemon.wait()
            print((tmp_path / "log").read_text())
