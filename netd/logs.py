"""Logs: structlog, readable on a terminal, fields in the journal, levels that change while the daemon runs.

    structlog.get_logger("netd.trace").info("client connected", address=...)
        -> threshold of "netd.trace" -> text | JSON | journald

Rules:
- a line that is filtered out costs a comparison; it is neither formatted nor stamped;
- what comes from outside cannot forge a line or steer a terminal: control characters are escaped, long values cut;
- a line that cannot be written raises nothing, and the journal never makes anyone wait: lost lines are counted, and the
  next one that gets through tells how many;
- a field that is None says nothing and is left out;
- a level set by hand (REST, netctl) outlives reloads until it is taken back; below it the command line's, and below
  that the configuration's.

A logger's level is the one of the longest configured prefix of its name: "netd.control" covers "netd.control.access";
"" is everybody's. The standard library's loggers end here too.

Left out: rotation and files (the journal's work), and a terminal that is stopped (its writer waits, as usual).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import structlog
from pydantic import StringConstraints

from netd.errors import ControlError
from netd.journal import SOCKET, Journal, field_name, is_stream
from netd.section import Section, live

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import FrameType

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

MAX_LEVELS = 64  # loggers with a level of their own
MAX_VALUE = 2048  # characters of one value in a line of text
MAX_TRACEBACK = 65_536  # characters

_LOGGER_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$"
LoggerName = Annotated[str, StringConstraints(pattern=_LOGGER_NAME)]


class LogConfig(Section):
    """[log]: how much is logged, and in which form."""

    level: Level = live("info")
    """What is logged: this and everything more severe."""
    format: Literal["auto", "console", "json", "journal"] = live("auto")
    """console: text, coloured on a terminal. json: one object a line. journal: fields, to journald. auto: the journal
    if standard error leads there, else text."""
    loggers: dict[LoggerName, Level] = live({}, max_length=MAX_LEVELS)
    """Levels of single loggers and all below them: "netd.trace" = "debug"."""


def configure(
    config: LogConfig,
    *,
    level: str | None = None,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    journal: Path = SOCKET,
) -> None:
    """Send all logging of this process where `config` says. Once, at start; then `reconfigure`.

    `level` is the command line's, for everybody; None: it says nothing. `stream` is standard error unless a test says
    otherwise.
    """
    _logs.stream = stream or sys.stderr
    _logs.environ = environ
    _logs.journal_path = journal
    _logs.command_line = {} if level is None else {"": _number(level)}
    _logs.by_hand = {}
    structlog.configure(
        processors=[structlog.processors.add_log_level],
        wrapper_class=_Logger,
        logger_factory=_logs.channel,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    if _bridge not in root.handlers:
        root.addHandler(_bridge)
    reconfigure(config)


def reconfigure(config: LogConfig) -> None:
    """Take over another configuration; the command line's level and those set by hand stay."""
    _logs.configured = {"": LEVELS[config.level], **{name: LEVELS[level] for name, level in config.loggers.items()}}
    _logs.open_output(config.format)
    _logs.apply_levels()


def shutdown() -> None:
    """Undo `configure`: levels, outputs and the journal's socket."""
    logging.getLogger().removeHandler(_bridge)
    structlog.reset_defaults()
    _logs.reset()


def embed() -> None:
    """Log as a library does, in somebody's program: through structlog as the program configured it; and if it did not,
    to the standard library's loggers ("netd.trace"), where the program's own configuration finds it.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[structlog.stdlib.filter_by_level, _as_record],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )


def _as_record(logger: object, method: str, fields: structlog.typing.EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """The arguments of a logging.Logger's method."""
    event, exc_info = fields.pop("event", ""), fields.pop("exc_info", None)
    pairs = [f"{key}={_value(value)}" for key, value in fields.items() if value is not None]
    # what the record does with % is done here: no arguments, so a "%" in a value stays one
    return (" ".join([_escaped(str(event)), *pairs]),), {"exc_info": exc_info}


def set_level(level: str | None, logger: str = "") -> None:
    """Set the level of `logger` and all below it ("": of everything) by hand; None takes that back.

    Raises ControlError for a level or logger name that cannot be, or when too many loggers have levels.
    """
    if logger and not re.match(_LOGGER_NAME, logger):
        raise ControlError(f"cannot set the level of {logger[:100]!r}: that is no name of a logger", "logger")
    if level is None:
        _logs.by_hand.pop(logger, None)
    else:
        number = _number(level)
        if logger not in _logs.by_hand and len(_logs.by_hand) >= MAX_LEVELS:
            raise ControlError(f"cannot set levels of more than {MAX_LEVELS} loggers: take some back", "logger")
        _logs.by_hand[logger] = number
    _logs.apply_levels()


def levels() -> dict[str, str]:
    """Each logger that has a level of its own, "" for everybody's, and that level."""
    return {name: _NAMES[number] for name, number in sorted(_logs.levels().items())}


def _number(level: str) -> int:
    try:
        return LEVELS[level]
    except KeyError:
        known = ", ".join(LEVELS)
        raise ControlError(f"cannot log at level {level[:100]!r}: the levels are {known}", "level") from None


_NAMES = {number: name for name, number in LEVELS.items()}


# --- loggers ---------------------------------------------------------------------------------------------------------


class _Channel:
    """What is behind each logger of one name: its threshold, which changes while loggers hold on to it."""

    def __init__(self, name: str, threshold: int) -> None:
        self.name = name
        self.threshold = threshold

    def write(self, event: object = "", level: str = "info", exc_info: Any = None, **fields: Any) -> None:
        said = {name: value for name, value in fields.items() if value is not None}
        _logs.write(Line(time.time(), level, self.name, str(event), said, _traceback(exc_info)))

    # structlog calls the method named as the level
    debug = info = warning = error = critical = write


_Filtering: Any = structlog.make_filtering_bound_logger(logging.NOTSET)


class _Logger(_Filtering):  # type: ignore[misc]  # structlog makes its base at run time
    """structlog's filtering logger with the level asked of the channel, where it can change."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> Any:
        if LEVELS[method_name] < self._logger.threshold:
            return None
        return super()._proxy_to_logger(method_name, event, **fields)

    def is_enabled_for(self, level: int) -> bool:
        return bool(level >= self._logger.threshold)

    def get_effective_level(self) -> int:
        return int(self._logger.threshold)


class _Bridge(logging.Handler):
    """Standard library records, into the same channels."""

    def emit(self, record: logging.LogRecord) -> None:
        number = max((number for number in _NAMES if number <= record.levelno), default=LEVELS["debug"])
        channel = _logs.channel(record.name)
        if number >= channel.threshold:
            try:
                event = record.getMessage()
            except (
                TypeError,
                ValueError,
                KeyError,
            ):  # arguments that do not fit: someone else's mistake, shown as it is
                event = f"{record.msg} {record.args}"
            channel.write(event, _NAMES[number], record.exc_info)


_bridge = _Bridge()


def _traceback(exc_info: Any) -> str | None:
    if not exc_info:
        return None
    if isinstance(exc_info, BaseException):
        error: BaseException | None = exc_info
    else:
        error = exc_info[1] if isinstance(exc_info, tuple) else sys.exc_info()[1]
    if error is None:
        return None
    text = "".join(traceback.format_exception(error)).rstrip()
    # the end says what happened and where
    return text if len(text) <= MAX_TRACEBACK else "[...]\n" + text[-MAX_TRACEBACK:]


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One thing to be logged. `time` in seconds since the epoch."""

    time: float
    level: str
    logger: str
    event: str
    fields: dict[str, Any]
    traceback: str | None = None


def as_text(line: Line, *, colours: bool, date: bool) -> str:
    """One line for people (and its traceback, indented). Local time."""
    clock = time.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S", time.localtime(line.time))
    stamp = f"{clock}.{int(line.time % 1 * 1000):03d}"
    level, event = f"{line.level:<8}", _escaped(line.event)
    fields = [(_escaped(key), _value(value)) for key, value in (*line.fields.items(), ("logger", line.logger))]
    if colours:
        level = f"{_COLOURS[line.level]}{level}\x1b[0m"
        stamp, event = f"\x1b[2m{stamp}\x1b[0m", f"\x1b[1m{event}\x1b[0m"
        pairs = [f"\x1b[36m{key}\x1b[0m={value}" for key, value in fields]
    else:
        pairs = [f"{key}={value}" for key, value in fields]
    text = " ".join([stamp, level, event, *pairs])
    if line.traceback:
        text += "".join(f"\n    {_escaped(row, cut=False)}" for row in line.traceback.splitlines())
    return text


def as_json(line: Line) -> str:
    """One JSON object: time (RFC 3339, UTC), level, logger, event, the fields, traceback."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(line.time))
    own: dict[str, Any] = {
        "time": f"{whole}.{int(line.time % 1 * 1e6):06d}Z",
        "level": line.level,
        "logger": line.logger,
        "event": line.event,
    }
    if line.traceback:
        own["traceback"] = line.traceback
    own |= {f"field_{key}" if key in own else key: value for key, value in line.fields.items()}
    return json.dumps(own, default=str)


def as_entry(line: Line, caller: FrameType | None) -> dict[str, str]:
    """A journal entry: the message as text, and every field by itself as NETD_FIELD."""
    pairs = [f"{_escaped(key)}={_value(value)}" for key, value in line.fields.items()]
    message = " ".join([_escaped(line.event), *pairs])
    if line.traceback:
        message += "\n" + line.traceback
    entry = {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES[line.level]),
        "SYSLOG_IDENTIFIER": "netd",
        "NETD_LOGGER": line.logger,
    }
    if caller is not None:
        code = caller.f_code
        entry |= {"CODE_FILE": code.co_filename, "CODE_LINE": str(caller.f_lineno), "CODE_FUNC": code.co_name}
    for key, value in line.fields.items():
        entry.setdefault(field_name(f"NETD_{key}"), str(value)[:MAX_VALUE])
    return entry


_COLOURS = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # syslog(3)


def _escaped(text: str, *, cut: bool = True) -> str:
    text = _cut(text) if cut else text
    return text if text.isprintable() else json.dumps(text.replace("\t", "    "))[1:-1]


def _value(value: Any) -> str:
    text = _cut(",".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
    if text and text.isprintable() and not _NEEDS_QUOTES.search(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _cut(text: str) -> str:
    return text if len(text) <= MAX_VALUE else text[: MAX_VALUE - 3] + "..."


_NEEDS_QUOTES = re.compile(r"[\s\"'=]")


# --- where lines go --------------------------------------------------------------------------------------------------


class _Logs:
    """The state of logging in this process: levels, channels, and the way out."""

    def __init__(self) -> None:
        self._channels: dict[str, _Channel] = {}
        self._lock = threading.Lock()  # lines also come from threads
        self._journal: Journal | None = None
        self.reset()

    def reset(self) -> None:
        self.close()
        self.stream: TextIO = sys.stderr
        self.environ: Mapping[str, str] = os.environ
        self.journal_path = SOCKET
        self.configured: dict[str, int] = {"": LEVELS["info"]}
        self.command_line: dict[str, int] = {}
        self.by_hand: dict[str, int] = {}
        self._format = "console"
        self._colours = False
        self._terminal = False
        self._lost = 0

    def channel(self, name: str = "netd", *_: Any) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel(name, self._threshold(name))
        return channel

    def levels(self) -> dict[str, int]:
        """The level in force of each logger that has one; the strongest source comes last."""
        return {**self.configured, **self.command_line, **self.by_hand}

    def _threshold(self, name: str) -> int:
        levels = self.levels()
        while name and name not in levels:
            name = name.rpartition(".")[0]
        return levels[name]

    def apply_levels(self) -> None:
        for channel in self._channels.values():
            channel.threshold = self._threshold(channel.name)
        # records below what anybody wants are not even made
        logging.getLogger().setLevel(min(self.levels().values()))

    def open_output(self, chosen: str) -> None:
        try:
            descriptor = self.stream.fileno()
            self._terminal = self.stream.isatty()
        except (OSError, ValueError):  # a stream without a file, or closed
            descriptor, self._terminal = -1, False
        if chosen == "auto":
            chosen = "journal" if is_stream(descriptor, self.environ.get("JOURNAL_STREAM")) else "console"
        plain = self.environ.get("NO_COLOR") or self.environ.get("TERM") == "dumb"  # https://no-color.org
        with self._lock:
            self._colours = self._terminal and not plain
            self._format = chosen
            self.close()
            self._journal = Journal(self.journal_path) if chosen == "journal" else None

    def close(self) -> None:
        if self._journal:
            self._journal.close()
            self._journal = None

    def write(self, line: Line) -> None:
        with self._lock:
            if self._lost:
                line.fields["lost_lines"] = self._lost
            if self._put(line):
                self._lost = 0
            else:
                self._lost += 1

    def _put(self, line: Line) -> bool:
        try:
            if self._journal and (sent := self._to_journal(self._journal, line)) is not None:
                return sent
            text = as_json(line) if self._format == "json" else None
            text = text or as_text(line, colours=self._colours, date=not self._terminal)
            self.stream.write(text + "\n")
            self.stream.flush()
        except (OSError, ValueError):  # closed, full, gone: `write` counts it
            return False
        return True

    def _to_journal(self, journal: Journal, line: Line) -> bool | None:
        try:
            return journal.send(as_entry(line, _caller()))
        except OSError:
            return None  # there is no journald after all: standard error has to do


def _caller() -> FrameType | None:
    """The frame that logged: the first outside structlog, logging and this module."""
    frame: FrameType | None = sys._getframe(1)
    while frame and _PLUMBING.match(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    return frame


_PLUMBING = re.compile(r"(structlog|logging|netd\.logs)(\.|$)")

_logs = _Logs()
