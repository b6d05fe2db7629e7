"""What the pages of both programs share: exit statuses, entries of text, sentences."""

from __future__ import annotations

import os
import re
import typing

from document import Entries, Entry, Paragraph, Span, bold

if typing.TYPE_CHECKING:
    from netd import errors

MEANINGS = {
    os.EX_OK: "Done.",
    1: "A failure of another kind.",
    2: "The command line was misused; the usage is on standard error.",
    os.EX_USAGE: "Wrong usage: an option, argument or request that is none.",
    os.EX_NOINPUT: "There is no such thing.",
    os.EX_UNAVAILABLE: "Something that is needed is not to be had.",
    os.EX_SOFTWARE: "A failure inside netd.",
    os.EX_TEMPFAIL: "Not now: try again, or wait for the change that goes on.",
    os.EX_PROTOCOL: "The other side does not keep to the protocol, or speaks another version of it.",
    os.EX_NOPERM: "Not permitted.",
    os.EX_CONFIG: "The configuration cannot be used; every problem is named.",
    130: "Interrupted by Ctrl-C.",
    141: "Whoever read the output is gone.",
    143: "SIGTERM while following.",
}


def _sysexits() -> dict[int, str]:
    """Code -> its name in sysexits.h."""
    return {getattr(os, name): name for name in dir(os) if name.startswith("EX_")}


def every_error(of: type[errors.NetdError]) -> list[type[errors.NetdError]]:
    """A class of errors and all below it."""
    return [of, *(inner for child in of.__subclasses__() for inner in every_error(child))]


def statuses(
    kinds: dict[int, list[str]], more: tuple[int, ...], meanings: typing.Mapping[int, str] = MEANINGS
) -> Entries:
    """Exit codes with what they mean, and the kinds of errors that end with each."""
    names = _sysexits()
    entries = []
    for code in sorted({*kinds, *more}):
        name = f" ({names[code]})" if code in names and code else ""
        words = f" Kinds: {', '.join(sorted(set(kinds[code])))}." if kinds.get(code) else ""
        text = meanings.get(code, "") + words
        entries.append(Entry((bold(str(code)), Span(name)), (Paragraph(text.strip()),)))
    return Entries(tuple(entries))


def rows_of(rows: typing.Iterable[tuple[str, str]], *, dense: bool = False) -> Entries:
    """Entries of a typed tag and a text each."""
    return Entries(tuple(Entry((bold(tag),), (Paragraph(text),)) for tag, text in rows), dense)


def sentence(text: str, choices: typing.Iterable[str] = ()) -> str:
    """Beginning with a capital, unless with a word that is to be typed so; and with a full stop."""
    text = text.strip()
    if not re.match(rf"(?:{'|'.join(map(re.escape, choices)) or 'none'})\b|\w+:", text):
        text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "!", "?")) else text + "."
