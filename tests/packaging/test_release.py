"""`packaging/release`: what it refuses, what a dry run says, and a release made in a repository of its own."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EPOCH = 1_700_000_000
DATE = "2023-11-14"
NO_DEB = "--skip-deb"


def git(tree: Path, *words: str) -> str:
    """git as somebody who has a name, whatever this machine's git knows of its user."""
    identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=tree, text=True, capture_output=True, check=True)
    return done.stdout


def release(tree: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, tree / "packaging/release", *arguments]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)} | environ
    return subprocess.run(
        command, cwd=tree.parent, env=environment, text=True, capture_output=True, timeout=100, check=False
    )


def state(tree: Path) -> dict[str, tuple[bytes, int]]:
    """Every file there is, git's own included, with its time: what a run that writes nothing leaves as it is."""
    files = (path for path in tree.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """This tree, committed: the version is 1.2.3, which was released, and there are two entries since."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, text=True, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this tree is no git checkout: {done.stderr.strip()}")
    tree = tmp_path_factory.mktemp("template") / "netd"
    for name in done.stdout.split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / name)
    rewrite(tree / "netd/__init__.py", r'__version__ = ".*"', '__version__ = "1.2.3"')
    headings = (
        "## 1.2.4 (unreleased)\n\n- One thing.\n- Another,\n  on two lines.\n\n## 1.2.3 (2023-01-01)\n\n- It is.\n"
    )
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\nNewest first.\n\n{headings}")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "all of it")
    git(tree, "tag", "v1.2.3")
    return tree


@pytest.fixture
def tree(template, tmp_path):
    """A repository to release from, which nobody else uses."""
    return Path(shutil.copytree(template, tmp_path / "netd", symlinks=True))


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, pattern
    path.write_text(text)


def commit(tree: Path) -> None:
    git(tree, "commit", "--quiet", "--all", "-m", "a change")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.2.3rc1", "v1.3.0", "01.2.3", "1.2.3.4", ""])
def test_a_version_is_three_numbers(tree, version):
    done = release(tree, "--dry-run", "--", version)
    assert done.returncode == 1
    assert f"cannot release {version!r}: a version is three numbers" in done.stderr


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("1.2.3", "1.2.3 is not newer than 1.2.3, which was released"),
        ("1.1.9", "1.1.9 is older than 1.2.3, which stands in netd/__init__.py"),
    ],
)
def test_a_version_is_newer_than_what_was_released(tree, version, why):
    done = release(tree, version, NO_DEB)
    assert done.returncode == 1
    assert why in done.stderr


def test_a_tag_counts_even_if_the_changelog_forgot_it(tree):
    git(tree, "tag", "v2.0.0")
    done = release(tree, "1.10.0", NO_DEB)
    assert done.returncode == 1
    assert "1.10.0 is not newer than 2.0.0" in done.stderr


def test_numbers_are_compared_and_not_letters(tree):
    assert release(tree, "1.10.0", NO_DEB, "--dry-run").returncode == 0


@pytest.mark.parametrize("name", ["netd/stray.py", "README.md"])
def test_a_tree_with_changes_is_refused(tree, name):
    with (tree / name).open("a") as file:
        file.write("\n")
    done = release(tree, "1.3.0", NO_DEB)
    assert done.returncode == 1
    assert f"the tree has changes that are not committed ({name})" in done.stderr


@pytest.mark.parametrize(
    ("pattern", "replacement", "why"),
    [
        (r"- One thing.\n- Another,\n  on two lines.\n\n", "", 'says nothing under "## 1.2.4 (unreleased)"'),
        (r"## 1.2.4 \(unreleased\)", "## 1.2.4", 'has no heading "## x.y.z (unreleased)"'),
    ],
)
def test_a_release_says_what_is_new(tree, pattern, replacement, why):
    rewrite(tree / "CHANGELOG.md", pattern, replacement)
    commit(tree)
    done = release(tree, "1.3.0", NO_DEB)
    assert done.returncode == 1
    assert f"cannot release: CHANGELOG.md {why}" in done.stderr


def test_everything_that_is_wrong_is_said_at_once(tree):
    (tree / "CHANGELOG.md").write_text("# Changelog\n")
    (tree / "packaging/build-deb").unlink()
    before = state(tree)
    done = release(tree, "1.0.0")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert len(said) == 5
    assert all(line.startswith("cannot release: ") for line in said)
    assert state(tree) == before


# --- a dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_every_step_and_writes_nothing(tree):
    before = state(tree)
    done = release(tree, "1.3.0", "--dry-run", NO_DEB)
    assert done.returncode == 0, done.stderr
    assert state(tree) == before
    said = done.stdout
    assert said.startswith("dry run: nothing is written\n")
    steps = [line for line in said.splitlines() if line.startswith("==> ")]
    for what in (
        "netd/__init__.py says 1.3.0 (it said 1.2.3)",
        f'2 entries under "## 1.3.0 ({DATE})", and above it opens "## 1.3.1 (unreleased)"',
        "netd-1.3.0.tar.gz, netd-1.3.0-py3-none-any.whl",
        "no Debian packages, as --skip-deb says",
        "SHA256SUMS",
        "build/release/",
    ):
        assert sum(what in step for step in steps) == 1, what
    assert "git tag -a v1.3.0" in said


def test_a_dry_run_names_the_packages(tree):
    for options, suites in (([], ["bookworm", "trixie"]), (["--suite", "trixie"], ["trixie"])):
        done = release(tree, "1.3.0", "--dry-run", *options)
        assert re.findall(r"^==> build the package for Debian (\w+)", done.stdout, re.MULTILINE) == suites


def test_a_dry_run_of_what_cannot_be_released_fails(tree):
    done = release(tree, "1.2.3", "--dry-run", NO_DEB)
    assert done.returncode == 1
    assert "==> write SHA256SUMS" in done.stdout


# --- a release --------------------------------------------------------------------------------------------------------


def test_a_release_is_built_and_then_typed_by_a_person(tree):
    done = release(tree, "1.3.0", NO_DEB)
    assert done.returncode == 0, done.stderr
    made = tree / "build/release"
    names = {path.name for path in made.iterdir()}
    assert names == {"netd-1.3.0.tar.gz", "netd-1.3.0-py3-none-any.whl", "SHA256SUMS"}

    sums = dict(line.split("  ")[::-1] for line in (made / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == names - {"SHA256SUMS"}
    for name, value in sums.items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == value

    with zipfile.ZipFile(made / "netd-1.3.0-py3-none-any.whl") as wheel:
        assert b'__version__ = "1.3.0"' in wheel.read("netd/__init__.py")
    with tarfile.open(made / "netd-1.3.0.tar.gz") as sdist:
        assert {member.mtime for member in sdist} == {EPOCH}

    # the tree has the two changes, and nobody has committed them
    assert git(tree, "status", "--porcelain") == " M CHANGELOG.md\n M netd/__init__.py\n"
    assert '__version__ = "1.3.0"' in (tree / "netd/__init__.py").read_text()
    headings = re.findall(r"^## .*", (tree / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings == ["## 1.3.1 (unreleased)", f"## 1.3.0 ({DATE})", "## 1.2.3 (2023-01-01)"]

    # what it says is typed, but for the push: the tag then builds the same bytes
    typed = [line.strip() for line in done.stdout.splitlines() if re.match(r" +(GIT_COMMITTER_DATE\S+ .*)?git ", line)]
    assert [re.sub(r"^GIT_\S+ \S+ ", "", line).split()[1] for line in typed] == ["commit", "tag", "push"]
    for line in typed[:2]:
        identity = "-c user.name=A -c user.email=a@example.org -c commit.gpgsign=false -c tag.gpgsign=false"
        subprocess.run(line.replace("git ", f"git {identity} ", 1), shell=True, cwd=tree, check=True, timeout=30)
    assert git(tree, "status", "--porcelain") == ""
    assert git(tree, "log", "-1", "--format=%ct %at", "v1.3.0").split() == [str(EPOCH)] * 2
    again = tree.parent / "again"
    git(tree, "clone", "--quiet", "--branch", "v1.3.0", str(tree), str(again))
    build = [sys.executable, "-m", "hatchling", "build", "-d", "dist"]
    subprocess.run(
        build,
        cwd=again,
        env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)},
        check=True,
        capture_output=True,
        timeout=60,
    )
    for name in ("netd-1.3.0.tar.gz", "netd-1.3.0-py3-none-any.whl"):
        assert (again / "dist" / name).read_bytes() == (made / name).read_bytes()


STAND_IN = """\
#!/bin/sh
# build-deb --suite SUITE --output DIR: a package whose SBOM notes which tree it was built from
set -e
version=$(sed -n 's/__version__ = "\\(.*\\)"/\\1/p' netd/__init__.py)
mkdir -p build/x/DEBIAN build/x/usr/share/doc/netd
control=build/x/DEBIAN/control
printf '%s\\n' 'Package: netd' "Version: $version" 'Architecture: all' 'Maintainer: x' 'Description: x' >$control
echo "$version $(git status --porcelain) $(git log -1 --format=%ct)" >build/x/usr/share/doc/netd/netd.cdx.json
dpkg-deb --root-owner-group --build build/x "$4/netd_$version~$2_all.deb"
"""


def test_packages_are_built_from_the_released_tree(tree):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed")
    replace_builder(tree, STAND_IN)
    (tree / "build/release").mkdir(parents=True)
    (tree / "build/release/netd-1.2.3.tar.gz").touch()
    done = release(tree, "1.3.0", "--suite", "bookworm")
    assert done.returncode == 0, done.stderr
    made = tree / "build/release"
    assert {path.name for path in made.iterdir()} == {
        "netd-1.3.0.tar.gz",
        "netd-1.3.0-py3-none-any.whl",
        "netd_1.3.0~bookworm_all.deb",
        "netd_1.3.0~bookworm_all.cdx.json",
        "SHA256SUMS",
    }
    assert (made / "netd_1.3.0~bookworm_all.cdx.json").read_text() == f"1.3.0  {EPOCH}\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=made, check=True)


def replace_builder(tree: Path, script: str) -> None:
    (tree / "packaging/build-deb").write_text(script)
    (tree / "packaging/build-deb").chmod(0o755)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "a stand-in")


def test_a_build_that_fails_changes_nothing(tree):
    replace_builder(tree, "#!/bin/sh\necho 'no space left' >&2\nexit 3\n")
    done = release(tree, "1.3.0")
    assert done.returncode == 1
    assert "no space left" in done.stderr
    assert "cannot release: build-deb --suite exits 3; nothing has changed" in done.stderr
    assert git(tree, "status", "--porcelain") == ""
    assert not (tree / "build/release").exists()


@pytest.mark.parametrize("obstacle", ["build/release.part", "build/release.old"])
def test_the_last_release_outlives_one_that_cannot_be_put_in_its_place(tree, obstacle):
    (tree / "build/release").mkdir(parents=True)
    (tree / "build/release/netd-1.2.3.tar.gz").write_text("the last one")
    (tree / obstacle).touch()  # a file, where a directory has to be
    done = release(tree, "1.3.0", NO_DEB)
    assert done.returncode == 1
    assert "build/release and `git status` show whether anything has changed" in done.stderr
    assert [path.read_text() for path in (tree / "build/release").iterdir()] == ["the last one"]
    assert git(tree, "status", "--porcelain") == ""


def test_packages_are_chosen_or_skipped(tree):
    done = release(tree, "1.3.0", "--dry-run", NO_DEB, "--suite", "trixie")
    assert done.returncode == 2
    assert "not allowed with argument" in done.stderr


def test_the_makefile_says_it_the_same_way(tree):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # as nobody's sub-make, also under `make test`
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GNUMAKEFLAGS"}
    printed = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.ready", "release", "VERSION=1.3.0", "DRY_RUN=1"],
        cwd=tree,
        env={name: value for name, value in os.environ.items() if name not in outer},
        text=True,
        capture_output=True,
        check=True,
    )
    assert shlex.split(printed.stdout.splitlines()[-1])[1:] == ["packaging/release", "1.3.0", "--dry-run"]
