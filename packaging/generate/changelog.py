#!/usr/bin/env python3
"""Debian's changelog from CHANGELOG.md, on standard output.

    changelog.py VERSION SUITE SECONDS

VERSION is the package's (0.1.0~deb12), SECONDS its date since the epoch. Older entries bear the date of their heading,
`## 0.1.0 (2026-11-21)`. A version that CHANGELOG.md does not have (a build for a test) is an entry that says so.
"""

from __future__ import annotations

import re
import sys
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADING = re.compile(r"## (?P<version>\S+)(?: \((?P<date>[\d-]+|unreleased)\))?")


def main() -> int:
    version, suite, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    base, _, release = version.partition("~")
    who = re.search(r"^Maintainer: (.+)$", (ROOT / "packaging/debian/control").read_text(), re.MULTILINE)
    if who is None:
        sys.exit("cannot write the changelog: packaging/debian/control has no Maintainer")
    now = datetime.fromtimestamp(seconds, UTC)
    entries = _entries((ROOT / "CHANGELOG.md").read_text())
    if not entries or entries[0][0] != base:
        entries.insert(0, (base, "", ["A build of a version that CHANGELOG.md does not know."]))
    for number, (entry, date, lines) in enumerate(entries):
        # only the first can be without a date: the others were released
        when = now if number == 0 or date in {"", "unreleased"} else datetime.fromisoformat(date).replace(tzinfo=UTC)
        print(f"netd ({entry}~{release}) {suite}; urgency=medium\n")
        for line in lines:
            print(textwrap.fill(line, 76, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False))
        print(f"\n -- {who[1]}  {format_datetime(when)}\n")
    return 0


def _entries(text: str) -> list[tuple[str, str, list[str]]]:
    """Version, date and lines of each heading, as they stand."""
    entries: list[tuple[str, str, list[str]]] = []
    for line in text.splitlines():
        if heading := HEADING.fullmatch(line):
            entries.append((heading["version"], heading["date"] or "", []))
        elif entries and line.startswith("- "):
            entries[-1][2].append(line[2:])
        elif entries and line.strip() and entries[-1][2]:
            entries[-1][2][-1] += " " + line.strip()
    return [entry for entry in entries if entry[2]]


if __name__ == "__main__":
    sys.exit(main())
