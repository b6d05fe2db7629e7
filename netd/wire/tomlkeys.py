"""Where each key of a TOML document stands: its path and the line it begins on.

tomllib gives values without places, and an error that does not say where is an error someone has to search for.

Rules:
- only a document that tomllib has accepted is scanned: nothing here validates, and a wrong document gives wrong lines;
- a path is a tuple of keys and, inside arrays, indices: `[[trace.listen]]` then `address = ...` on its second table is
  ("trace", "listen", 1, "address"); a table has the line of its first mention, an array element the line it begins on;
- recursion goes as deep as values are nested; tomllib's own recursion runs out first.

Left out: values. Reference: TOML 1.0.0 (newlines and trailing commas in inline tables, from 1.1, are stepped over too).
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_VOID = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")  # what may stand between statements and between the elements of an array
_SCALAR = re.compile(r"[^,\]}#\r\n]*")  # numbers, booleans, dates: whatever ends before a separator
# One pattern for each kind of quoted text, the longer delimiters first. Up to two quotes may stand right before the
# closing three of a multi-line string, and the string ends at the last three.
_QUOTED = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:""|")?|'
    r"'''.*?'''(?:''|')?|"
    r'"(?:[^"\\\n]|\\.)*"|'
    r"'[^'\n]*'",
    re.DOTALL,
)


def scan(text: str) -> dict[Path, int]:
    """Every table, key and array element of a valid document, and the line (from 1) where it begins."""
    return _Scanner(text).document()


def split_key(dotted: str) -> tuple[str, ...]:
    """'log.loggers."netd.trace"' -> ("log", "loggers", "netd.trace"). ValueError where that is no TOML key."""
    scanner = _Scanner(dotted)
    try:
        key = scanner.key()
    except (IndexError, ValueError):
        key = ()
    if not key or scanner.at != len(dotted):
        raise ValueError(f"cannot read {dotted!r} as a key: write it as in TOML, section.name")
    return key


def join_key(path: Path) -> str:
    """The inverse of `split_key`; indices stand between dots like keys: "trace.listen.0.address"."""
    return ".".join(str(part) if isinstance(part, int) or _BARE.fullmatch(part) else _quote(part) for part in path)


def _quote(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in escaped) + '"'


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._line = 1
        self._counted_to = 0
        self._tables: dict[Path, int] = {}  # arrays of tables -> how many elements there are by now

    # --- statements ---

    def document(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_VOID)
        while self.at < len(self.text):
            line = self._here()
            if self._take("[["):
                table = self._array_table(line)
            elif self._take("["):
                self._skip(_SPACE)
                table = self._note((), self._through_arrays(self.key()), line)
                self._skip(_SPACE)
                self._take("]")
            else:
                self._pair(table, line)
            self._skip(_VOID)
        return self.lines

    def _array_table(self, line: int) -> Path:
        self._skip(_SPACE)
        *parents, last = self.key()
        array = (*self._through_arrays(tuple(parents)), last)
        index = self._tables.get(array, 0)
        self._tables[array] = index + 1
        self._skip(_SPACE)
        self._take("]]")
        return self._note((), (*array, index), line)

    def _through_arrays(self, key: tuple[str, ...]) -> Path:
        """A header's key names the *last* element of each array of tables it passes through."""
        path: Path = ()
        for part in key:
            path = (*path, part)
            if count := self._tables.get(path):
                path = (*path, count - 1)
        return path

    def _pair(self, table: Path, line: int) -> None:
        path = self._note(table, (*table, *self.key()), line)
        self._skip(_SPACE)
        self._take("=")
        self._skip(_SPACE)
        self._value(path)

    def _note(self, base: Path, path: Path, line: int) -> Path:
        for length in range(len(base) + 1, len(path) + 1):
            self.lines.setdefault(path[:length], line)
        return path

    # --- values ---

    def _value(self, path: Path) -> None:
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            self._inline_table(path)
        elif self.text[self.at] in "\"'":
            self._skip(_QUOTED)
        else:
            self._skip(_SCALAR)

    def _array(self, path: Path) -> None:
        index = 0
        self._skip(_VOID)
        while not self._take("]"):
            self._value(self._note(path, (*path, index), self._here()))
            index += 1
            self._skip(_VOID)
            self._take(",")
            self._skip(_VOID)

    def _inline_table(self, path: Path) -> None:
        self._skip(_VOID)
        while not self._take("}"):
            self._pair(path, self._here())
            self._skip(_VOID)
            self._take(",")
            self._skip(_VOID)

    # --- keys ---

    def key(self) -> tuple[str, ...]:
        parts = [self._part()]
        self._skip(_SPACE)
        while self._take("."):
            self._skip(_SPACE)
            parts.append(self._part())
            self._skip(_SPACE)
        return tuple(parts)

    def _part(self) -> str:
        if self.text[self.at] in "\"'":
            # escapes have their own rules, and tomllib knows them
            return str(tomllib.loads("key = " + self._skip(_QUOTED))["key"])
        part = self._skip(_BARE)
        if not part:
            raise ValueError("no key")
        return part

    # --- text ---

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def _take(self, token: str) -> bool:
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def _here(self) -> int:
        self._line += self.text.count("\n", self._counted_to, self.at)
        self._counted_to = self.at
        return self._line
