"""The root file systems that machines boot from: a minimal Debian with systemd and with what the package depends on.

    with held_rootfs("bookworm", say=print) as directory:
        Machine.boot(directory)

Built once for each suite by mmdebstrap (from its default mirror, about half a minute) and kept below build/lab, or
below NETD_LAB; machines see it through an overlay and never change it. The name of the directory holds a digest of what
it is made of: another list of packages is another directory, and the old one goes as soon as no test run holds it.

Machines have no network, so whatever `apt-get install ./netd.deb` wants must be here already. What that is, the package
itself says: packaging/debian/control.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("NETD_LAB") or ROOT / "build" / "lab").absolute()
CONTROL = ROOT / "packaging" / "debian" / "control"

RELEASES = {"bookworm": "12", "trixie": "13"}
"""Debian's releases by suite; the number is part of the package's version (0.1.0~deb12)."""

PACKAGES = [
    "ca-certificates",
    "dbus",
    "init-system-helpers",
    "iproute2",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
]
"""What a machine has besides Debian's essential and required packages."""

NAMESPACE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""What runs in here is gone, its processes and mounts too, when it ends or when the thread that started it does."""

_RECIPE = 1
"""Changed when the way of building changes, so that what was built the old way is built again."""

_HOOKS = [
    # a fresh identity for each machine; empty rather than "uninitialized", which would make systemd ask for a locale
    ': > "$1/etc/machine-id"',
    # what mmdebstrap copies from this host; a machine is called by its own name, and knows no name server
    'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
]


def why_not() -> str | None:
    """Why no root file system can be built here, as a sentence for a skipped test; None if one can."""
    if os.geteuid() != 0:
        return "needs root, to build and boot a Debian"
    if shutil.which("mmdebstrap") is None:
        return "needs mmdebstrap (apt: mmdebstrap), to build a Debian"
    return None


def packages() -> list[str]:
    """What the root file system is made of: PACKAGES and what the package depends on, without versions."""
    depends = re.search(r"^Depends:(.*(?:\n[ \t].*)*)", CONTROL.read_text(), re.MULTILINE) if CONTROL.exists() else None
    words = depends[1].split(",") if depends else []
    names = (word.split("|")[0].split("(")[0].strip() for word in words)
    return sorted({*PACKAGES, *(name for name in names if name and not name.startswith("$"))})


def architecture() -> str:
    """Debian's name for this machine's architecture."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def held_rootfs(suite: str, say: Callable[[str], object]) -> Iterator[Path]:
    """The suite's root file system, built if it is not there; nobody removes it within the context."""
    names = packages()
    digest = hashlib.sha256(repr((suite, architecture(), names, _HOOKS, _RECIPE)).encode()).hexdigest()[:12]
    directory = LAB / f"{suite}-{digest}"
    LAB.mkdir(parents=True, exist_ok=True)
    with _locked(directory, fcntl.LOCK_SH) as held:
        if not directory.exists():
            fcntl.flock(held, fcntl.LOCK_EX)  # two test runs: one builds, the other waits and finds it
            if not directory.exists():
                _remove_others(suite, directory)
                _build(suite, directory, names, say)
            fcntl.flock(held, fcntl.LOCK_SH)
        yield directory


def _build(suite: str, directory: Path, names: list[str], say: Callable[[str], object]) -> None:
    part = directory.with_suffix(".part")
    _remove(part)  # of a test run that was interrupted
    say(f"building a root file system of {suite} in {LAB} (once, about half a minute)")
    start = time.monotonic()
    command = [*NAMESPACE, "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={','.join(names)}"]
    command += [f"--customize-hook={hook}" for hook in _HOOKS]
    result = subprocess.run(
        [*command, suite, str(part)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise RuntimeError(f"cannot build a root file system of {suite}:\n{result.stderr[-4000:]}")
    part.rename(directory)
    say(f"built {directory.name} in {time.monotonic() - start:.0f} s")


def _remove_others(suite: str, wanted: Path) -> None:
    """Root file systems of the suite that are made of something else, unless a test run holds them."""
    for old in LAB.glob(f"{suite}-*"):
        if old.stem == wanted.name or old.suffix == ".lock":
            continue
        with _locked(old) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(old)


def _remove(directory: Path) -> None:
    # never into a file system that something left mounted in there
    subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], check=True)


@contextmanager
def _locked(directory: Path, operation: int = 0) -> Iterator[int]:
    lock = os.open(directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if operation:
            fcntl.flock(lock, operation)
        yield lock
    finally:
        os.close(lock)
