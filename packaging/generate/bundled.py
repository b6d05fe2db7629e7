"""What is bundled with netd, for sbom.py and copyright.py: the installed distributions that the lock names.

A distribution tells of itself in its metadata (PEP 566, PEP 639) and of what is compiled into it in dist-info/sboms
(PEP 770). Everything is sorted, and nothing depends on the machine: the same wheels give the same list.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

PACKAGING = Path(__file__).resolve().parents[1]

_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
_LICENCE_FILE = re.compile(r"licen[cs]e|copying|notice|authors", re.IGNORECASE)

_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What older metadata calls a licence -> its SPDX name."""


def normal(name: str) -> str:
    """A project's name as PyPI compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: Path = PACKAGING / "requirements.txt") -> dict[str, str]:
    """Name -> version of everything in a lock file."""
    return {normal(name): version for name, version in _LOCKED.findall(lock.read_text(encoding="utf-8"))}


def bundled(site: Path | None = None) -> list[Bundled]:
    """The locked distributions in `site`, or of this Python; ValueError when one is missing or of another version."""
    installed = distributions() if site is None else distributions(path=[str(site)])
    found = {normal(each.name): Bundled(each) for each in installed}
    for name, version in locked().items():
        have = found[name].version if name in found else "missing"
        if have != version:
            raise ValueError(f"cannot list what is bundled: {name} is {have}, the lock says {version}")
    return [found[name] for name in sorted(locked())]


@dataclass(frozen=True)
class Bundled:
    """One distribution."""

    dist: Distribution

    @property
    def name(self) -> str:
        return normal(self.dist.name)

    @property
    def version(self) -> str:
        return self.dist.version

    def field(self, name: str) -> str:
        """The first field of that name in its metadata, or nothing."""
        found: list[str] = self.dist.metadata.get_all(name) or [""]
        return found[0].strip()

    @cached_property
    def info(self) -> Path:
        """Its dist-info directory."""
        return Path(str(self.dist._path))  # type: ignore[attr-defined]  # importlib.metadata has no public name for it

    @property
    def licence(self) -> str:
        """SPDX expression; ValueError when the metadata says nothing that is known here."""
        if expression := self.field("License-Expression"):
            return expression
        lines = self.dist.metadata.get_all("Classifier") or []
        classifiers = [line.rpartition(" :: ")[2] for line in lines if line.startswith("License ::")]
        told = self.field("License")
        for name in (told, *classifiers):
            if name in _SPDX:
                return _SPDX[name]
        if re.fullmatch(r"[A-Za-z0-9.+-]+( (OR|AND) [A-Za-z0-9.+-]+)*", told):
            return told
        raise ValueError(f"cannot tell the licence of {self.name}: License {told!r}, classifiers {classifiers}")

    @cached_property
    def licence_files(self) -> list[Path]:
        """Licences, notices and lists of authors, in the order of their names."""
        return sorted(path for path in self.info.rglob("*") if path.is_file() and _LICENCE_FILE.search(path.name))

    @cached_property
    def top_levels(self) -> list[str]:
        """What it installs into site-packages: `click`, `click-8.5.1.dist-info`."""
        tops = {str(file).partition("/")[0] for file in self.dist.files or []}
        return sorted(top for top in tops if top not in {"..", "__pycache__", "bin"})

    @cached_property
    def compiled_in(self) -> list[dict[str, Any]]:
        """CycloneDX components inside its extension modules (crates, OpenSSL), without where they were built."""
        found = {}
        for path in sorted(self.info.glob("sboms/*.json")):
            for component in json.loads(path.read_text(encoding="utf-8")).get("components", []):
                unnamed = f"pkg:generic/{component['name']}@{component['version']}"
                purl = component.get("purl", unnamed).partition("?")[0]
                kept = {key: component[key] for key in ("name", "version", "licenses", "hashes") if key in component}
                found[purl] = {"type": "library", **kept, "purl": purl}
        return [found[purl] for purl in sorted(found)]
