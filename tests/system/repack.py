"""Packages of other releases, made from the one under test.

There is no older release to upgrade from yet, so the system tests make one: the same files, called by another version,
and where a test wants it with another conffile. netd itself says the other version too, which tells whether the daemon
that answers is the one that is installed.
"""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CONFFILE = "etc/netd/netd.toml"


def repacked(deb: Path, directory: Path, version: str, *, conffile: str | None = None) -> Path:
    """`deb` as it would be with upstream version `version`, and with this text as its conffile if one is given."""
    tree = directory / f"tree-{version}"
    _run("dpkg-deb", "--raw-extract", deb, tree)
    control = tree / "DEBIAN" / "control"
    fields = control.read_text()
    full = next(line for line in fields.splitlines() if line.startswith("Version: ")).removeprefix("Version: ")
    upstream, tilde, release = full.partition("~")
    control.write_text(fields.replace(f"Version: {full}", f"Version: {version}{tilde}{release}"))

    (module,) = tree.glob("usr/lib/netd/lib/python3.*/site-packages/netd/__init__.py")
    _edit(tree, module, module.read_text().replace(f'"{upstream}"', f'"{version}"'))
    for compiled in module.parent.glob("__pycache__/__init__.*.pyc"):
        compiled.unlink()  # nobody compares it with its source
    sums = tree / "DEBIAN" / "md5sums"
    sums.write_text(
        "".join(f"{line}\n" for line in sums.read_text().splitlines() if (tree / line.split("  ", 1)[1]).exists())
    )
    if conffile is not None:
        _edit(tree, tree / CONFFILE, conffile)

    made = directory / f"netd_{version}{tilde}{release}.deb"
    _run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made)
    _run("rm", "-r", tree)
    return made


def content(deb: Path, path: str) -> bytes:
    """One file of a package."""
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
    return subprocess.run(["tar", "-xO", f"./{path}"], input=archive, check=True, stdout=subprocess.PIPE).stdout


def _edit(tree: Path, file: Path, text: str) -> None:
    before = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    file.write_text(text)
    after = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    sums = tree / "DEBIAN" / "md5sums"
    name = file.relative_to(tree)
    sums.write_text(sums.read_text().replace(f"{before}  {name}\n", f"{after}  {name}\n"))


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
