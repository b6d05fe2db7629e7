"""netctl's door: the help page and what it costs, unknown nouns, the two places for options, how netctl ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from netd import __version__
from netd.cli import main
from netd.cli.root import root
from tests.support.fakeapi import FakeApi, sse

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAVY = ("httpx", "trio", "rich", "pydantic", "fastapi", "structlog", "tomlkit", "prometheus_client")


def netctl(*arguments: str, **how):
    """A run of netctl as a process."""
    command = [sys.executable, "-W", "error", "-m", "netd.cli.main", *arguments]
    return subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 60, "check": False} | how)


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules that are loaded when netctl ends."""
    code = f"""
import sys
sys.argv = ["netctl", *{arguments!r}]
from netd.cli.main import main
try:
    main()
finally:
    print("\\n".join({{name.partition(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return set(ended.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=str)
def test_the_front_page_imports_nothing_heavy_not_even_click(arguments):
    assert loaded_by(*arguments).isdisjoint((*HEAVY, "click"))


@pytest.mark.parametrize("noun", main.NOUNS)
def test_a_nouns_help_imports_click_and_nothing_heavy(noun):
    loaded = loaded_by(noun, "--help")
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_page_lists_every_noun_fits_a_terminal_and_agrees_with_click():
    page = main.page()
    assert max(len(line) for line in page.splitlines()) <= 80
    with click.Context(root) as ctx:
        for noun in root.list_commands(ctx):
            command = root.get_command(ctx, noun)
            assert command is not None
            assert command.name == noun
            assert command.get_short_help_str(200) == main.NOUNS[noun]
            assert main.NOUNS[noun] in page
        options = {name for parameter in root.params for name in parameter.opts} | {"--help"}
    assert options == {option.split()[0] for option in main.OPTIONS}


@pytest.mark.parametrize("columns", [40, 57, 80, 200])
def test_the_page_fits_the_terminal_and_says_the_same_in_each(columns):
    page = main.page(columns)
    assert max(len(line) for line in page.splitlines()) <= min(columns, 80)
    assert page.split() == main.page().split()


def test_the_page_fits_the_terminal_that_it_is_printed_on():
    assert netctl("--help", env=os.environ | {"COLUMNS": "40"}).stdout == main.page(40)
    assert netctl("--json", "--help", env=os.environ | {"COLUMNS": "40"}).stdout == main.page(40)
    screen, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 40))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    misused = netctl(env=environment, stderr=inner, stdout=None, capture_output=False)
    assert misused.returncode == 2
    assert os.read(screen, 65536).decode().replace("\r", "") == main.page(40)
    os.close(inner)
    os.close(screen)


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_table_fits_the_terminal_that_it_is_printed_on(tmp_path, term):
    unit = {"name": "trace", "state": "running", "restarts": 0, "addresses": ["192.0.2.1:8080", "192.0.2.2:8080"]}
    api = FakeApi(tmp_path).answer("GET", "/v1/services", {"services": [unit]})
    screen, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 40))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": term}
    with api.serving():
        ended = netctl(
            "--socket", str(api.socket), "services", env=environment, stdout=inner, stderr=None, capture_output=False
        )
    assert ended.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", os.read(screen, 65536).decode()).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[1].split() == ["trace", "●", "running", "192.0.2.1:8080,"]
    os.close(inner)
    os.close(screen)


def every_command(command: click.Command = root, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        with click.Context(command) as ctx:
            for name in command.list_commands(ctx):
                yield from every_command(command.get_command(ctx, name), (*words, name))


@pytest.mark.parametrize("words", [*every_command()], ids=" ".join)
def test_a_commands_page_fits_the_terminal_and_leaves_nothing_out(words):
    pages = [CliRunner().invoke(root, [*words, "--help"], env={"COLUMNS": str(width)}).stdout for width in (40, 80)]
    for page, width in zip(pages, (40, 80), strict=True):
        shown = [line for line in page.splitlines() if " > " not in line]  # commands to copy stay whole
        assert max(len(line) for line in shown) <= width
    assert pages[0].split() == pages[1].split()


def test_help_is_the_same_page_whichever_way_it_is_asked_for(tmp_path):
    assert netctl("--help").stdout == main.page()
    assert netctl("--json", "--help").stdout == main.page()
    misused = netctl()
    assert (misused.returncode, misused.stdout, misused.stderr) == (2, "", main.page())


def test_version():
    assert netctl("--version").stdout == netctl("--json", "--version").stdout == f"netctl {__version__}\n"


def test_an_unknown_noun_is_misuse():
    ended = netctl("sttaus")
    assert ended.returncode == 2
    assert "sttaus" in ended.stderr


@pytest.mark.parametrize("order", [("{o}", "health"), ("health", "{o}")])
def test_options_stand_before_or_after_the_noun(tmp_path, order):
    api = FakeApi(tmp_path).answer("GET", "/v1/health", {"status": "ok", "warnings": []})
    with api.serving():
        arguments = [
            word for part in order for word in (["--json", "--socket", str(api.socket)] if part == "{o}" else [part])
        ]
        ended = CliRunner().invoke(root, arguments)
    assert ended.exit_code == 0
    assert json.loads(ended.stdout) == {"status": "ok", "warnings": []}


def test_the_socket_is_found_by_the_daemons_variable(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/health", {"status": "ok", "warnings": []})
    with api.serving():
        ended = CliRunner().invoke(root, ["health"], env={"NETD_CONTROL__SOCKET": str(api.socket)})
    assert ended.exit_code == 0
    assert ended.stdout == "health: ok\n✓ no warnings\n"


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_no_daemon_is_one_sentence_and_its_own_exit_code(tmp_path):
    ended = netctl("--socket", str(tmp_path / "none.sock"), "status")
    assert ended.returncode == 69
    assert ended.stdout == ""
    assert ended.stderr.startswith("netctl: cannot reach the daemon: there is no socket")
    assert ended.stderr.count("\n") == 1


def test_an_empty_socket_is_a_mistake_and_not_the_default(tmp_path):
    ended = netctl("--socket", "", "status")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Error: cannot use '' as a socket: give its path, or leave --socket out" in ended.stderr


@pytest.mark.parametrize(
    "misused",
    [
        ["broker", "connect", "--echo"],
        ["broker", "subscribe", "--recover", "start"],
        ["broker", "subscribe", "a", "b", "--recover", "e:1"],
        ["broker", "subscribe", "a.*", "--pattern", "--presence"],
        ["broker", "publish", "a", "x", "--token", "t", "--token-file", __file__],
        ["broker", "publish", "a", "x", "--url", "ws://h:1", "--cert-key", __file__],
        ["framed", "send", "h:1", "x", "--channel", "a", "--to", "b"],
        ["framed", "send", "h:1", "x", "--channel", "a", "--answer"],
        ["channels", "history", "a", "--since", "b"],
        ["config", "set", "a"],
        ["health", "--wait", "1"],
        ["log", "level", "--logger", "netd"],
        ["log", "level", "info", "--reset"],
        ["sessions", "list", "--tag", "a"],
        ["sessions", "show", "a", "--max-hops", "3"],
        ["tokens", "revoke"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_said_as_every_error_is(misused):
    said = CliRunner().invoke(root, misused)
    assert said.exit_code == 2
    assert "\nError: cannot " in said.stderr


def test_whether_the_socket_may_be_used_is_the_daemons_sentence_not_misuse(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may read everything
    ended = CliRunner().invoke(root, ["--socket", str(tmp_path / "file"), "health"])
    assert ended.exit_code == 69
    assert ended.stderr.startswith("netctl: cannot reach the daemon: ")


def test_with_json_an_error_is_json_too(tmp_path):
    api = FakeApi(tmp_path).refuse("PATCH", "/v1/config", 422, "config", "cannot be 0", "trace.max_hops")
    with api.serving():
        ended = CliRunner().invoke(
            root, ["--socket", str(api.socket), "--json", "config", "set", "trace.max_hops", "0"]
        )
    assert ended.exit_code == 78
    assert ended.stdout == ""
    error = {"kind": "config", "message": "cannot be 0", "path": "trace.max_hops"}
    assert json.loads(ended.stderr) == {"error": error}


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [(403, "denied", 77), (404, "not-found", 66), (409, "conflict", 75), (422, "config", 78), (500, "internal", 1)],
)
def test_exit_codes_follow_the_kind_of_the_error(tmp_path, status, kind, code):
    api = FakeApi(tmp_path).refuse("POST", "/v1/reload", status, kind, "cannot do that")
    with api.serving():
        ended = CliRunner().invoke(root, ["--socket", str(api.socket), "reload"])
    assert ended.exit_code == code
    assert ended.stderr == "netctl: cannot do that\n"


def test_an_error_of_another_version_hints_at_the_version(tmp_path):
    api = FakeApi(tmp_path, version="8.1.0").refuse("POST", "/v1/reload", 422, "invalid", "cannot accept wait")
    with api.serving():
        ended = CliRunner().invoke(root, ["--socket", str(api.socket), "reload"])
    assert f"hint: this is netctl {__version__}, the daemon is netd 8.1.0" in ended.stderr


def test_what_an_error_says_cannot_drive_the_terminal(tmp_path):
    api = FakeApi(tmp_path).refuse("POST", "/v1/reload", 409, "conflict", "cannot \x1b]0;title\x07\x9b2J\nsecond line")
    with api.serving():
        ended = CliRunner().invoke(root, ["--socket", str(api.socket), "reload"])
    assert ended.stderr == "netctl: cannot \\x1b]0;title\\x07\\x9b2J\n  second line\n"


def following(api: FakeApi, *, to) -> subprocess.Popen:
    command = [sys.executable, "-m", "netd.cli.main", "--socket", str(api.socket), "events", "--follow"]
    return subprocess.Popen(command, stdout=to, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_ends_quietly(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", sse(("hop", {"ttl": 1}), hold=True))
    with api.serving():
        process = following(api, to=subprocess.PIPE)
        assert "ttl=1" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=30)
    assert (process.returncode, rest, complaint) == (130, "", "")


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    many = sse(*(("hop", {"ttl": ttl, "filler": "x" * 1000}) for ttl in range(500)), hold=True)
    api = FakeApi(tmp_path).answer("GET", "/v1/events", many)
    reading, writing = os.pipe()
    with api.serving(), os.fdopen(reading) as pipe:
        process = following(api, to=writing)
        os.close(writing)
        pipe.readline()
        pipe.close()
        _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (141, "")


def test_the_help_page_into_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "netd.cli.main", "--help"]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")
