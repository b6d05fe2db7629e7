"""netctl's door: the help page and what it costs, unknown nouns, the two places for options, how netctl ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from netd import __version__
from netd.cli import main
from netd.cli.root import root
from tests.support.fakeapi import FakeApi, sse

HEAVY = ("httpx", "trio", "rich", "pydantic", "fastapi", "structlog", "tomlkit", "prometheus_client")


def netctl(*arguments: str, **how):
    """A run of netctl as a process."""
    command = [sys.executable, "-W", "error", "-m", "netd.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **how)


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
