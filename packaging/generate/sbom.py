#!/usr/bin/env python3
"""Write what netd is made of, as a CycloneDX 1.6 document.

    packaging/generate/sbom.py FILE [--site DIR] [--wheels DIR]

    --site DIR     the site-packages to describe; this Python's own unless said
    --wheels DIR   the files that was installed from: their hashes then stand in the document

One component for each locked distribution, with its licence; inside it what its wheel says is compiled in (PEP 770).
SOURCE_DATE_EPOCH dates it. The same input gives the same bytes: its serial number is derived from its content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

from bundled import PACKAGING, Bundled, bundled, normal

_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
_NAMESPACE = uuid.UUID("8d0b3a52-6c0f-5d0e-9f5e-2f4d3b6f1c11")
"""Of the serial numbers; any constant does."""


def document(site: Path | None = None, wheels: Path | None = None) -> dict[str, Any]:
    parts = bundled(site)
    hashes = _hashes(wheels) if wheels else {}
    names = {part.name for part in parts}
    me = f"pkg:pypi/netd@{_version()}"
    refs = {part.name: f"pkg:pypi/{part.name}@{part.version}" for part in parts}
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": _when().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": me,
                "name": "netd",
                "version": _version(),
                "licenses": [{"license": {"id": "MIT"}}],
                "purl": me,
            },
        },
        "components": [_component(part, refs[part.name], hashes.get((part.name, part.version))) for part in parts],
        "dependencies": [
            {"ref": me, "dependsOn": sorted(refs.values())},
            *({"ref": refs[part.name], "dependsOn": [refs[name] for name in _requires(part, names)]} for part in parts),
        ],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))
    return {"$schema": _SCHEMA, "serialNumber": f"urn:uuid:{serial}", **content}


def _component(part: Bundled, ref: str, sha256: str | None) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "bom-ref": ref, "name": part.name, "version": part.version}
    if summary := part.field("Summary"):
        component["description"] = summary
    component["scope"] = "required"
    if sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    expression = part.licence
    component["licenses"] = [{"expression": expression} if " " in expression else {"license": {"id": expression}}]
    component["purl"] = ref
    if part.compiled_in:
        component["components"] = part.compiled_in
    return component


def _requires(part: Bundled, names: set[str]) -> list[str]:
    """What it may ask for and is bundled: markers are not evaluated, so that the document is the same everywhere."""
    told = (re.match(r"[A-Za-z0-9._-]+", line) for line in part.dist.requires or [] if "extra ==" not in line)
    return sorted({normal(match[0]) for match in told if match} & names)


def _hashes(wheels: Path) -> dict[tuple[str, str], str]:
    found = {}
    for path in sorted(wheels.glob("*.whl")) + sorted(wheels.glob("*.tar.gz")):
        name, version = path.name.removesuffix(".tar.gz").split("-")[:2]
        found[normal(name), version] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _version() -> str:
    text = (PACKAGING.parent / "netd/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError("cannot tell netd's version: netd/__init__.py has no __version__")
    return match[1]


def _when() -> datetime:
    return datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())), UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write what netd is made of, as a CycloneDX document.")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--site", metavar="DIR", type=Path)
    parser.add_argument("--wheels", metavar="DIR", type=Path)
    arguments = parser.parse_args()
    try:
        made = document(arguments.site, arguments.wheels)
    except ValueError as error:
        sys.exit(str(error))
    arguments.file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
