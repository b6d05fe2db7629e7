"""A manual page as data, and its two forms: man(7) macros and HTML.

A page is a list of blocks. Text is one string in which `backticks` mark what is typed as it stands (bold) and
name(5) is a reference to another page; a tag (what stands at the left of an entry) is a list of spans.

Rules:
- text may be hostile: a description may begin with a dot, hold backslashes or quotes, and still says what it says;
- the same page gives the same bytes, on any machine and at any time;
- man(7) macros only as groff and mandoc both know them; nothing is preprocessed.

Left out: what stands in the pages (man.py, settings_page.py); the pages around the HTML (docs.py).
"""

from __future__ import annotations

import html
import os
import re
import time
import typing
import unicodedata
from dataclasses import dataclass, field

_WIDTH = 78  # columns of a source line
_REFERENCE = r"(?<![\w.])([A-Za-z][\w.@-]*)\((\d)\)"


class Span(typing.NamedTuple):
    """A piece of a tag."""

    text: str
    style: typing.Literal["roman", "bold", "italic"] = "roman"


def bold(text: str) -> Span:
    return Span(text, "bold")


def italic(text: str) -> Span:
    return Span(text, "italic")


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they stand."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Synopsis:
    """Lines of what is typed (bold) and what it stands for (italic, in capitals)."""

    lines: tuple[str, ...]

    def spans(self) -> list[list[Span]]:
        return [
            [
                italic(piece) if piece.isupper() else bold(piece) if re.match(r"[\w/-]", piece) else Span(piece)
                for piece in re.findall(r"[A-Z]+(?![\w/])|[\w/-][\w/.*-]*|.", line)
            ]
            for line in self.lines
        ]


@dataclass(frozen=True)
class Entry:
    """A tag, what is to be known about it on one line (or nothing), and what follows."""

    tag: tuple[Span, ...]
    blocks: tuple[Block, ...]
    facts: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Entries:
    """Entries one below the other. `dense`: without empty lines between them."""

    entries: tuple[Entry, ...]
    dense: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading below a section's."""

    tag: tuple[Span, ...]
    anchor: str = ""


Block = Paragraph | Code | Synopsis | Entries | Heading


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """`name` and `volume` as in name(volume); `brief` is what apropos shows."""

    name: str
    volume: int
    brief: str
    sections: tuple[Section, ...]
    version: str
    see_also: tuple[str, ...] = field(default=())

    @property
    def file(self) -> str:
        return f"{self.name}.{self.volume}"


def date() -> str:
    """SOURCE_DATE_EPOCH's day (reproducible-builds.org), or today."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def plain(text: str) -> str:
    """`text` without control characters and on one line."""
    flat = " ".join(text.split())
    return "".join(char for char in flat if unicodedata.category(char)[0] != "C" or char in "\u00ad\u200d")


def parts(text: str) -> list[Span]:
    """Text as spans: `typed` in bold, name(5) as a reference, the rest roman."""
    found: list[Span] = []
    for index, piece in enumerate(re.split(r"`([^`]+)`", plain(text))):
        if index % 2:
            found.append(bold(piece))
            continue
        end = 0
        for match in re.finditer(_REFERENCE, piece):
            found += [Span(piece[end : match.start()]), bold(match[1]), Span(f"({match[2]})")]
            end = match.end()
        found.append(Span(piece[end:]))
    return [span for span in found if span.text]


# --- man(7) -----------------------------------------------------------------------------------------------------------

_ESCAPES = {
    "\\": r"\e",
    "-": r"\-",
    "'": r"\(aq",
    "`": r"\(ga",
    "^": r"\(ha",
    "~": r"\(ti",
    "\u00a0": r"\~",
}
_FONT = {"bold": r"\fB", "italic": r"\fI"}
_UNBROKEN = 32  # characters of a typed piece that is kept on one line


def escaped(text: str) -> str:
    """Any text as roff shows it unchanged, wherever on a line it stands."""
    shown = "".join(_ESCAPES.get(char) or (char if " " <= char <= "~" else f"\\[u{ord(char):04X}]") for char in text)
    return shown if not shown.startswith((".", "'")) else r"\&" + shown


def _roff(spans: typing.Iterable[Span]) -> str:
    out = []
    for text, style in spans:
        shown = escaped(text)
        if style == "roman":
            out.append(shown)
            continue
        if len(text) <= _UNBROKEN:
            shown = shown.replace(" ", r"\~")
        # a font that spans lines is legal and reads badly: each word is set by itself
        out.append(" ".join(f"{_FONT[style]}{word}\\fR" if word else "" for word in shown.split(" ")))
    return "".join(out)


def _argument(spans: typing.Iterable[Span]) -> str:
    """Spans as one argument of a macro."""
    return '"' + _roff(spans).replace('"', r"\(dq") + '"'


def _filled(text: str) -> list[str]:
    """Source lines of a paragraph: each sentence begins one, and none is longer than _WIDTH where it can be helped."""
    words = _roff(parts(text)).split(" ")
    lines: list[str] = []
    line = ""
    for index, word in enumerate(words):
        last = index == len(words) - 1
        ends = bool(re.search(r"[.?!][)\"]*(\\fR)?$", word))
        starts_anew = not last and bool(re.match(r"(\\f.|[\"(])*[A-Z/]", words[index + 1]))
        if ends and not last and not starts_anew:
            word += r"\&"  # a dot that ends no sentence
        if line and len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
        if ends and (starts_anew or last):
            lines.append(line)
            line = ""
    if line:
        lines.append(line)
    return [r"\&" + line if line.startswith((".", "'")) else line for line in lines]


def _block(block: Block, *, inside: bool, first: bool) -> list[str]:
    """Source lines of a block; `inside` an entry, `first` right after its tag or after a heading."""
    match block:
        case Paragraph(text):
            start = [] if first else [".IP" if inside else ".PP"]
            return [*start, *_filled(text)]
        case Code(lines):
            shown = [escaped(line) for line in lines]
            body = [".EX", *shown, ".EE"]
            if inside:
                return body if first else [".RS", ".PP", *body, ".RE"]
            return [*([] if first else [".PP"]), ".RS 4", *body, ".RE"]
        case Synopsis():
            return [".nf", *map(_roff, block.spans()), ".fi"]
        case Heading(tag):
            return [".SS " + _argument(tag)]
        case Entries(entries, dense):
            out = [".RS"] if inside else []
            for index, entry in enumerate(entries):
                if dense and index == 1:
                    out.append(".PD 0")
                out += _entry(entry)
            out += [".PD"] if dense and len(entries) > 1 else []
            return [*out, *([".RE"] if inside else [])]


def _entry(entry: Entry) -> list[str]:
    out = [".TP", _roff(entry.tag)]
    if entry.facts:
        out += _filled(entry.facts)
        if entry.blocks and isinstance(entry.blocks[0], Paragraph):
            out.append(".br")
    for index, block in enumerate(entry.blocks):
        out += _block(block, inside=True, first=index == 0)
    return out


def roff(page: Page) -> str:
    """The page's source."""
    manual = {1: "User Commands", 5: "File Formats", 8: "System Administration"}[page.volume]
    quoted = [_argument([Span(text)]) for text in (page.name.upper(), f"netd {page.version}", manual)]
    title = f"{quoted[0]} {page.volume} {date()} {quoted[1]} {quoted[2]}"  # a date with escapes is none to mandoc
    # left-aligned and never hyphenated: most of the words here are to be typed or searched for
    lines = [
        f".TH {title}",
        ".nr HY 0",
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{escaped(page.name)} \\- {_roff(parts(page.brief))}",
    ]
    for section in page.sections:
        lines.append(".SH " + _argument([Span(section.title)]))
        first = True
        for block in section.blocks:
            lines += _block(block, inside=False, first=first)
            first = isinstance(block, Heading)
    lines.append('.SH "SEE ALSO"')
    for index, reference in enumerate(page.see_also):
        comma = "," if index < len(page.see_also) - 1 else ""
        lines.append(_roff(parts(reference + comma)))
    return "\n".join(lines) + "\n"


# --- HTML -------------------------------------------------------------------------------------------------------------

_TAGS = {"bold": "b", "italic": "var"}


def anchor(text: str) -> str:
    """What stands after the "#" of a link to `text`."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-").lower()


def to_html(page: Page, pages: typing.Collection[str]) -> str:
    """The page's sections, without what is around them. `pages` are the names ("netd.8") that links may lead to."""

    def inline(spans: typing.Iterable[Span]) -> str:
        spans = list(spans)
        out = []
        for index, (text, style) in enumerate(spans):
            shown = html.escape(text)
            after = spans[index + 1].text if index + 1 < len(spans) else ""
            volume = re.match(r"\((\d)\)", after)
            target = f"{text}.{volume[1]}" if style == "bold" and volume else ""
            if target in pages and target != page.file:
                shown = f'<a href="{target}.html">{shown}</a>'
            elif style == "bold":
                shown = f"<code>{shown}</code>"
            elif style == "italic":
                shown = f"<var>{shown}</var>"
            out.append(shown)
        return "".join(out)

    def block_of(block: Block) -> str:
        match block:
            case Paragraph(text):
                return f"<p>{inline(parts(text))}</p>"
            case Code(lines):
                return "<pre>" + html.escape("\n".join(lines)) + "</pre>"
            case Synopsis():
                return "<pre>" + "\n".join(map(inline, block.spans())) + "</pre>"
            case Heading(tag, name):
                return f'<h3 id="{html.escape(name or anchor("".join(span.text for span in tag)))}">{inline(tag)}</h3>'
            case Entries(entries, dense):
                return f"<dl{' class=dense' if dense else ''}>\n{''.join(map(entry_of, entries))}</dl>"

    def entry_of(entry: Entry) -> str:
        name = f' id="{html.escape(entry.anchor)}"' if entry.anchor else ""
        facts = f"<p class=facts>{inline(parts(entry.facts))}</p>" if entry.facts else ""
        return f"<dt{name}>{inline(entry.tag)}</dt>\n<dd>{facts}{''.join(map(block_of, entry.blocks))}</dd>\n"

    out = [f"<h1>{html.escape(page.name)}({page.volume})</h1>", f"<p class=brief>{inline(parts(page.brief))}</p>"]
    for section in page.sections:
        out.append(f'<h2 id="{anchor(section.title)}">{html.escape(section.title.capitalize())}</h2>')
        out += map(block_of, section.blocks)
    out.append('<h2 id="see-also">See also</h2>')
    out.append(f"<p>{', '.join(inline(parts(reference)) for reference in page.see_also)}</p>")
    return "\n".join(out)
