#!/usr/bin/env python3
"""Write the manual pages, netd(8), netctl(1) and netd.toml(5), into a directory: `packaging/generate/man.py DIR`.

What there is comes from the code: options from argparse and click, keys from the settings' models, exit codes from
the errors. Only what no code can say (what the daemon is for, what a signal does) is written in the pages' files.

Needs netd and what it depends on, no network, and nothing else. SOURCE_DATE_EPOCH dates the pages.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

import client_page
import daemon_page
import settings_page
from document import Page, roff


def pages() -> list[Page]:
    return [daemon_page.page(), client_page.page(), settings_page.page()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write netd's manual pages into a directory.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for page in pages():
        (directory / page.file).write_text(roff(page), encoding="ascii")


if __name__ == "__main__":
    main()
