"""Whether programs can be kept from directories here: landlock(7)."""

from __future__ import annotations

import ctypes
import os

_CREATE_RULESET, _VERSION = 444, 1


def why_no_landlock(wanted: int = 1) -> str | None:
    """Why not by this version of it, as a sentence for a skipped test; None if they can."""
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    version = libc.syscall(*arguments)
    if version < 0:
        return f"needs Landlock: {os.strerror(ctypes.get_errno()).lower()}"
    return None if version >= wanted else f"needs Landlock {wanted}, and this kernel has {version}"
