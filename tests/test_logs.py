"""Logging: what a line looks like in each form, which lines are let through, and what cannot be forged."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import socket
import subprocess
import sys

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from netd import logs
from netd.errors import ControlError
from netd.logs import LogConfig, configure, levels, reconfigure, set_level
from tests.support.journal import decode


@pytest.fixture(autouse=True)
def _as_it_was():
    """Logging is one for the whole process: other tests get it back untouched."""
    level = logging.getLogger().level
    yield
    logs.shutdown()
    logging.getLogger().setLevel(level)


@pytest.fixture
def out():
    return io.StringIO()


def lines(out) -> list[str]:
    return out.getvalue().splitlines()


def start(out, **config):
    options = {name: config.pop(name) for name in ("command_line", "environ", "journal") if name in config}
    options["level"] = options.pop("command_line", None)
    configure(LogConfig(**config), stream=out, **{"environ": {}, **options})
    return structlog.get_logger("netd.test")


# --- levels ----------------------------------------------------------------------------------------------------------


def test_levels_go_by_the_longest_prefix_of_a_loggers_name(out):
    start(out, level="warning", loggers={"netd.control": "debug", "netd.control.access": "error"})

    for name in ("netd", "netd.control", "netd.control.app", "netd.control.access", "netd.controller"):
        for level in ("debug", "warning", "error"):
            getattr(structlog.get_logger(name), level)(f"{name} {level}")

    assert [line.split("  ", 1)[1].split(" logger=")[0].strip() for line in lines(out)] == [
        "netd warning",
        "netd error",
        "netd.control debug",
        "netd.control warning",
        "netd.control error",
        "netd.control.app debug",
        "netd.control.app warning",
        "netd.control.app error",
        "netd.control.access error",
        "netd.controller warning",
        "netd.controller error",
    ]


def test_levels_change_under_loggers_that_exist_and_are_bound(out):
    log = start(out).bind(client=1)
    log.debug("hidden")
    set_level("debug", "netd.test")
    log.debug("shown")
    assert log.is_enabled_for(logging.DEBUG)
    set_level(None, "netd.test")
    log.debug("hidden again")
    assert not log.is_enabled_for(logging.DEBUG)
    assert log.get_effective_level() == logging.INFO

    (line,) = lines(out)
    assert " shown client=1 " in line


def test_a_level_set_by_hand_outlives_reloads_until_it_is_taken_back(out):
    log = start(out, level="error")
    set_level("debug")
    assert levels() == {"": "debug"}

    reconfigure(LogConfig(level="critical", loggers={"netd.x": "info"}))
    set_level("warning", "netd.y")
    log.debug("shown")
    assert levels() == {"": "debug", "netd.x": "info", "netd.y": "warning"}

    set_level(None)
    set_level(None, "netd.y")
    set_level(None, "never.set")
    log.error("hidden")
    assert levels() == {"": "critical", "netd.x": "info"}
    assert len(lines(out)) == 1


def test_the_command_lines_level_stands_between_the_configurations_and_those_set_by_hand(out):
    start(out, level="error", command_line="debug")
    set_level("critical")
    assert levels() == {"": "critical"}
    set_level(None)
    assert levels() == {"": "debug"}, "taking a level back by hand does not take back the command line's"
    reconfigure(LogConfig(level="warning"))
    assert levels() == {"": "debug"}
    logs.shutdown()
    assert levels() == {"": "info"}


def test_impossible_levels_are_refused_and_change_nothing(out):
    start(out)
    with pytest.raises(ControlError, match="cannot log at level 'loud': the levels are debug, info"):
        set_level("loud")
    with pytest.raises(ControlError, match="no name of a logger"):
        set_level("debug", "a b\n")
    for index in range(logs.MAX_LEVELS):
        set_level("debug", f"l{index}")
    with pytest.raises(ControlError, match="more than 64 loggers"):
        set_level("debug", "one.more")
    set_level("error", "l1")  # one that has a level already may change it
    assert levels()["l1"] == "error"
    assert levels()[""] == "info"


def test_a_line_filtered_out_is_never_formatted(out):
    class Costly:
        def __str__(self):
            raise AssertionError("formatted")

    start(out).debug("hidden", value=Costly())

    assert lines(out) == []


def test_the_standard_librarys_loggers_end_here_too(out):
    start(out, level="info", loggers={"library.noisy": "error"})
    logging.getLogger("library").warning("%s of %d", "one", 3)
    logging.getLogger("library").debug("hidden")
    logging.getLogger("library.noisy").warning("hidden")
    logging.getLogger("library").log(35, "between")
    # past the logger, whose other handlers (pytest's) would refuse it
    logs._bridge.handle(
        logging.makeLogRecord({"name": "library", "msg": "wrong %d", "args": ("arguments",), "levelno": 20})
    )

    assert [line[24:] for line in lines(out)] == [
        "warning  one of 3 logger=library",
        "warning  between logger=library",
        "info     wrong %d ('arguments',) logger=library",
    ]


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_line_of_text(out):
    log = start(out)
    log.warning("client gone", address="192.0.2.1:5", reason="took too long", empty="", n=3, none=None)

    (line,) = lines(out)
    assert line[:4].isdigit()
    assert line[24:] == (
        'warning  client gone address=192.0.2.1:5 reason="took too long" empty="" n=3 logger=netd.test'
    )


def test_a_traceback_follows_indented(out):
    log = start(out)
    try:
        raise ValueError("bad\x1b[31m\nsecond line")
    except ValueError:
        log.exception("it failed", what="x")

    first, *rest = lines(out)
    assert first.endswith("error    it failed what=x logger=netd.test")
    assert all(line.startswith("    ") for line in rest)
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: bad\\u001b[31m", "    second line"]


def test_an_exception_may_be_given_as_an_object_and_need_not_be_there(out):
    log = start(out)
    log.error("given", exc_info=KeyError("k"))
    log.error("none", exc_info=True)
    assert lines(out)[1] == "    KeyError: 'k'"
    assert lines(out)[2].endswith("none logger=netd.test")


def test_an_endless_traceback_is_cut_at_its_start(out):
    start(out).error("long", exc_info=ValueError("x" * 200_000 + "the end"))
    assert len(out.getvalue()) < logs.MAX_TRACEBACK + 1000
    assert "the end" in out.getvalue()


@settings(deadline=None)
@given(st.text(), st.text(), st.text(min_size=1))
def test_nothing_that_is_logged_can_forge_a_line_or_steer_a_terminal(event, value, key):
    line = logs.Line(0.0, "info", "netd", event, {key: value}, None)
    text = logs.as_text(line, colours=False, date=True)
    assert text.isprintable()
    assert "\n" not in text
    assert text.endswith(" logger=netd")


def test_a_long_value_is_cut(out):
    start(out).info("x" * 10_000, value="y" * 10_000)
    assert len(lines(out)[0]) < 2 * logs.MAX_VALUE + 100


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_are_for_terminals_that_want_them(environ, coloured):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        start(terminal, environ=environ).info("hello", a=1)
        written = os.read(master, 4096)
    os.close(master)
    assert (b"\x1b[" in written) == coloured
    assert b"hello" in written


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_a_line_of_json(out):
    log = start(out, format="json")
    log.info("two\nlines", n=1, path=io.UnsupportedOperation, event_time=2, time="mine")
    log.error("failed", exc_info=KeyError("k"))

    first, second = map(json.loads, lines(out))
    time = first.pop("time")
    assert time.endswith("Z")
    assert len(time) == len("2000-01-01T00:00:00.000000Z")
    assert first == {
        "level": "info",
        "logger": "netd.test",
        "event": "two\nlines",
        "n": 1,
        "path": "<class 'io.UnsupportedOperation'>",
        "event_time": 2,
        "field_time": "mine",
    }
    assert second["traceback"] == "KeyError: 'k'"


# --- the journal -----------------------------------------------------------------------------------------------------


@pytest.fixture
def journald(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "socket"))
        server.setblocking(False)
        yield server


def test_fields_go_to_the_journal_when_standard_error_leads_there(journald, tmp_path):
    with (tmp_path / "stderr").open("w+") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        log = start(stream, environ=environ, journal=tmp_path / "socket")

        log.warning("client gone", address="192.0.2.1:5", error_code=7, message="a\nb")
        logging.getLogger("library").error("from elsewhere")

        assert stream.seek(0, os.SEEK_END) == 0, "nothing is said twice"
    entry = decode(journald.recv(65536))
    code = {key: entry.pop(key) for key in ("CODE_FILE", "CODE_LINE", "CODE_FUNC")}
    assert entry == {
        "MESSAGE": 'client gone address=192.0.2.1:5 error_code=7 message="a\\nb"',
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "netd",
        "NETD_LOGGER": "netd.test",
        "NETD_ADDRESS": "192.0.2.1:5",
        "NETD_ERROR_CODE": "7",
        "NETD_MESSAGE": "a\nb",
    }
    assert code["CODE_FILE"] == __file__
    assert code["CODE_FUNC"] == test_fields_go_to_the_journal_when_standard_error_leads_there.__name__
    other = decode(journald.recv(65536))
    assert other["CODE_FILE"] == __file__
    assert other["PRIORITY"] == "3"


def test_without_a_journal_standard_error_has_to_do(out, tmp_path):
    start(out, format="journal", journal=tmp_path / "absent").info("said anyway")
    assert "said anyway" in lines(out)[0]


def test_lost_lines_are_counted_and_told(out, journald, tmp_path):
    log = start(out, format="journal", journal=tmp_path / "socket")
    for index in range(100_000):
        log.info("line", index=index)
        if logs._logs._lost == 3:
            break
    arrived = index - 2
    for expected in range(arrived):
        assert decode(journald.recv(65536))["NETD_INDEX"] == str(expected)

    log.info("again")
    log.info("and again")

    assert decode(journald.recv(65536))["NETD_LOST_LINES"] == "3"
    assert "NETD_LOST_LINES" not in decode(journald.recv(65536))
    assert lines(out) == [], "a full journal is no reason to say it elsewhere"


def test_a_stream_that_is_closed_or_full_harms_nobody(out):
    log = start(out)
    out.close()
    log.info("lost")

    with io.TextIOWrapper(open("/dev/full", "wb", buffering=0), write_through=True) as full:
        log = start(full)
        log.info("lost too")
        start(again := io.StringIO())
        log.info("found")
    assert "lost_lines=2" in again.getvalue()


def test_the_form_changes_with_a_reload(out):
    log = start(out)
    log.info("text")
    reconfigure(LogConfig(format="json"))
    log.info("object")
    assert lines(out)[0].endswith("text logger=netd.test")
    assert json.loads(lines(out)[1])["event"] == "object"


def test_structlogs_own_capture_still_works_for_tests(out):
    log = start(out)
    with structlog.testing.capture_logs() as captured:
        log.info("seen", a=1)
        log.debug("filtered")
    assert captured == [{"event": "seen", "a": 1, "log_level": "info"}]
    assert lines(out) == []


def test_embedded_it_logs_to_the_standard_library_unless_the_program_configured_structlog():
    program = """
import logging, structlog
from netd import logs
logs.embed()
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", level=logging.INFO)
log = structlog.get_logger("netd.trace")
log.debug("too quiet")
log.warning("100 % odd", address="a b", nothing=None, list=[1, 2])
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.PrintLoggerFactory())
logs.embed()
structlog.get_logger("netd.trace").warning("its own")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.startswith(
        'netd.trace WARNING 100 % odd address="a b" list=1,2\nnetd.trace ERROR broken\nTraceback'
    )
    assert result.stdout == '{"event": "its own"}\n'
