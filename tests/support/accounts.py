"""Whether a test may act as another account."""

from __future__ import annotations

import os
from pathlib import Path

NOBODY = 65534


def why_not_nobody() -> str | None:
    """Why this process cannot become NOBODY, as a sentence for a skipped test; None if it can.

    Root of a user namespace with one account mapped is root, and cannot.
    """
    accounts = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
    return (
        None if os.geteuid() == 0 and accounts > NOBODY else "needs root of the whole host, to become another account"
    )


def open_to_all(directory: Path) -> None:
    """Let any account enter a directory of pytest's: it and the two or three above it (xdist) are its user's alone."""
    for each in (directory, *list(directory.parents)[:3]):
        each.chmod(each.stat().st_mode | 0o055)
