#!/usr/bin/env python3
"""Debian's copyright file (DEP-5), on standard output: netd's own licence and those of all that is bundled.

    copyright.py SITE

SITE is the package's site-packages. Each distribution is a paragraph with the holders and the text that its own licence
files have. Licences that Debian has in /usr/share/common-licenses are named, not repeated (Debian policy, 12.5).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -I leaves it out

from bundled import PACKAGING, Bundled, bundled

FORMAT = "https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"
_COMMON = ("Apache-2.0", "MPL-2.0")
"""Licences whose text Debian has, by their SPDX names."""

# "Copyright (c) 2014 Pallets", "© 2019 Encode", "(c) 2015 Somebody"; not the item (c) of a list
_HOLDER = re.compile(r"^\W*(?:copyright[:\s]+(?:\(c\)|©)?|(?:\(c\)|©)(?=\s*\d))\s*(.+)$", re.IGNORECASE)
_NOT_A_HOLDER = re.compile(r"\[yyyy\]|notice|licen[cs]e|^(holders?|owners?|of|to|and|the)\b", re.IGNORECASE)
_LINK = re.compile(r"\[([^]]+)\]\([^)]*\)")  # Markdown's


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit("usage: copyright.py SITE")
    site = Path(sys.argv[1])
    own = (PACKAGING.parent / "LICENSE").read_text(encoding="utf-8")
    paragraphs = [
        [("Format", FORMAT), ("Upstream-Name", "netd"), ("Comment", _ABOUT)],
        [("Files", "*"), ("Copyright", "\n".join(holders(own))), ("License", f"Expat\n{own}")],
    ]
    try:
        paragraphs += [_paragraph(part) for part in bundled(site)]
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join("".join(_field(*field) for field in paragraph) for paragraph in paragraphs), end="")
    return 0


_ABOUT = """
The Python libraries in /usr/lib/netd/lib are bundled: the files below are theirs,
under site-packages, and each paragraph is taken from the library's own licence files,
which are in its .dist-info directory too."""


def _paragraph(part: Bundled) -> list[tuple[str, str]]:
    texts, notes = [], []
    for path in part.licence_files:
        text = path.read_text(encoding="utf-8").strip("\n")
        if "author" in path.name.lower():
            continue  # a list of names, which lies beside it
        if "notice" in path.name.lower():
            notes.append(f"{path.name}:\n{text}")
        elif not _is_apache(text):
            texts.append(text)
    texts += [
        f"The text of {name} is in /usr/share/common-licenses/{name} on a Debian system."
        for name in _COMMON
        if name in part.licence
    ]
    if not part.licence_files:
        raise ValueError(f"cannot write the copyright of {part.name}: it has no licence file")
    everything = "\n".join(path.read_text(encoding="utf-8") for path in part.licence_files)
    fields = [
        ("Files", "\n".join(_files(part))),
        ("Copyright", "\n".join(holders(everything) or [_authors(part)])),
        ("License", f"{_name(part.licence)}\n" + "\n\n".join(dict.fromkeys(texts))),
    ]
    if part.compiled_in:
        notes.append("Compiled into its extension modules:\n" + "\n".join(_compiled_in(part)))
    return [*fields, ("Comment", "\n" + "\n\n".join(notes))] if notes else fields


def holders(text: str) -> list[str]:
    """Who a licence text says holds the copyright: "2014 Pallets", each once, in order."""
    found = (_HOLDER.match(_LINK.sub(r"\1", line)) for line in text.splitlines())
    names = [match[1].strip(" \t.,*") for match in found if match]
    return list(dict.fromkeys(name for name in names if not _NOT_A_HOLDER.search(name)))


def _authors(part: Bundled) -> str:
    told = part.field("Author") or part.field("Author-email") or part.field("Maintainer-email")
    return f"the authors of {part.name}" + (f": {told}" if told else "")


def _is_apache(text: str) -> bool:
    """The whole of it, not words that refer to it."""
    return "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text


def _files(part: Bundled) -> list[str]:
    """Its modules and packages; of the names with a dot, only a .dist-info is a directory."""
    files = []
    for top in part.top_levels:
        directory = "." not in top or top.endswith(".dist-info")
        files.append(f"usr/lib/netd/lib/*/{top}" + ("/*" if directory else ""))
    return files


def _name(expression: str) -> str:
    """DEP-5's short names: MIT is called Expat there, and operators are small."""
    words = {"MIT": "Expat", "OR": "or", "AND": "and", "PSF-2.0": "Python-2.0"}
    return " ".join(words.get(word, word) for word in expression.split())


def _compiled_in(part: Bundled) -> list[str]:
    lines = []
    for component in part.compiled_in:
        told = [each.get("expression") or each["license"].get("id", "") for each in component.get("licenses", [])]
        lines.append(f"{component['name']} {component['version']}" + (f" ({', '.join(told)})" if told else ""))
    return lines


def _field(name: str, value: str) -> str:
    first, *rest = value.rstrip().splitlines()
    lines = [f"{name}: {first}".rstrip(), *(f" {line.rstrip()}" if line.strip() else " ." for line in rest)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
