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
