"""`netctl framed connect`: a conversation from a pipe, from a file and by hand."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

from tests.cli.conversation import Terminal, hub, lines_of, served, words
from tests.support.framedpeer import PATIENCE


def talk(address: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "framed", "connect", address, *options]
    return subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_connect_does_all_operations_from_a_pipe():
    script = """hello app
/sub public:a
/pub public:a hi there
/use public:a
said here
/use
/list
/presence public:a
/history public:a
/broadcast all of you
/ping
/unsub public:a
/help
"""
    with served(hub) as address:
        said = talk(address, script)
    assert (said.returncode, said.stderr) == (0, "")
    lines = lines_of(said.stdout)
    for line in (
        "-- session 59a20bbf-e8f1-45dd-a4f2-80b80da8b546 at netd 0.1.0; /help lists commands",
        "application  hello app",
        "-- subscribed to public:a, at e:4",
        "-- published to 1",
        "public:a 5  s-1  hi there",
        "-- lines go to the application",
        "public:a 4  daemon  old",
        "-- 1 kept, at e:4",
        "-- sent to 0",
        "broadcast  s-2  all",
        "-- unsubscribed from public:a",
        "-- /pub CHANNEL TEXT",
    ):
        assert line in lines
    assert words(said.stdout).count("s-2 beta framed site=lab") == 2
    assert any(re.fullmatch(r"-- [\d.e-]+ ms", line) for line in lines)


def test_connect_says_what_a_name_with_wildcards_is_taken_for():
    with served(hub) as address:
        said = talk(address, "/sub wild:a.*\n/sub tame:a.*\n")
    with served(hub) as address:
        rows = [json.loads(line) for line in talk(address, "/sub wild:a.*\n", "--json").stdout.splitlines()]
    assert lines_of(said.stdout)[1:] == [
        "-- subscribed to all channels that match wild:a.*",
        "-- subscribed to tame:a.*, at e:4",
    ]
    told = "netctl: 'tame:a.*' is a single channel of this name: its namespace has no wildcards\n"
    assert (said.returncode, said.stderr) == (0, told)
    assert rows == [{"event": "ok", "channel": "wild:a.*", "pattern": True}]


def test_connect_goes_on_after_what_is_refused_and_tells_scripts():
    with served(hub) as address:
        said = talk(address, "/direct nobody hi\n/pub public:a\n/bogus\n/unsub x\nstill here\n/quit\nnever sent\n")
    assert said.returncode == 1
    lines = lines_of(said.stdout)
    assert lines[1:5] == [
        "-- cannot find nobody",
        "-- cannot do that: write /pub CHANNEL TEXT",
        "-- cannot do '/bogus': /help lists the commands",
        "-- cannot unsubscribe from 'x': there is no subscription",
    ]
    assert "never sent" not in said.stdout


def test_connect_as_json():
    with served(hub) as address:
        said = talk(address, "/sub public:a\n/pub public:a x\n/direct nobody hi\n/list\n", "--json")
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert {"event": "ok", "channel": "public:a"} in rows
    assert {"event": "ok", "delivered": 1} in rows
    assert {"event": "error", "message": "cannot find nobody"} in rows
    assert [row["event"] for row in rows if row["event"] in ("clients", "message")] != []


def test_connect_with_plain_lines_shows_what_comes_until_it_is_quiet():
    async def echo(peer):
        link = await peer.accept()
        for _ in range(3):
            await link.send((await link.receive()).upper())
        await link.ended()
        await link.close()

    with served(echo) as address:
        said = talk(address, "one\r\ntwo\n/three", "--plain", "--linger", "0.3")
    assert (said.returncode, lines_of(said.stdout)) == (0, ["ONE", "TWO", "/THREE"])


def test_connect_reads_a_file_as_it_reads_a_pipe(tmp_path):
    (tmp_path / "script").write_text("/sub public:a\n/quit\n")
    with served(hub) as address, (tmp_path / "script").open() as script:
        command = [sys.executable, "-m", "netd.cli.main", "framed", "connect", address]
        said = subprocess.run(command, stdin=script, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.returncode == 0
    assert "-- subscribed to public:a" in said.stdout


def test_connect_on_a_terminal_answers_at_once_and_ctrl_c_leaves():
    with served(hub) as address:
        terminal = Terminal("framed", "connect", address)
        terminal.read_until("/help lists commands\r\n> ")
        terminal.type("/sub public:a\n")
        terminal.read_until("subscribed to public:a")
        terminal.type("hello app\n")
        terminal.read_until("application  hello app\r\n> ")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("> \r\n$")
        assert terminal.end() == 130


def test_a_line_that_the_terminal_has_cut_is_not_sent():
    with served(hub) as address:
        terminal = Terminal("framed", "connect", address)
        terminal.read_until("/help lists commands\r\n> ")
        terminal.type("L" * 4095 + "\n")
        terminal.read_until("cannot send this line: a terminal keeps 4095 bytes and throws the rest away")
        terminal.type("M" * 4094 + "\n")
        terminal.read_until("application  M+")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "application  L" not in terminal.written


def test_a_long_line_of_a_pipe_is_sent_whole():
    with served(hub) as address:
        said = talk(address, "L" * 4095 + "\n")
    assert (said.returncode, lines_of(said.stdout)[-1]) == (0, f"application  {'L' * 4095}")


def test_the_last_line_may_have_no_end_and_what_comes_is_not_on_it():
    with served(hub) as address:
        terminal = Terminal("framed", "connect", address)
        terminal.read_until("/help lists commands\r\n> ")
        terminal.type("no end")
        terminal.read_until("no end")
        terminal.type("\x04\x04")
        terminal.read_until(r"> no end\r\n\d\d:\d\d:\d\d\.\d{3}  application  no end\r\n$")
        assert terminal.end() == 0


def test_a_dumb_terminal_gets_no_prompt_that_would_have_to_be_rewritten():
    with served(hub) as address:
        terminal = Terminal("framed", "connect", address, term="dumb")
        terminal.read_until("/help lists commands\r\n")
        terminal.type("hello app\n")
        terminal.read_until("application  hello app\r\n")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert "\x1b" not in terminal.written
    assert "> " not in terminal.written


def test_what_is_kept_is_shown_without_the_time_at_which_it_is_shown():
    with served(hub) as address:
        said = talk(address, "/history public:a\n")
    assert "public:a 4  daemon  old" in said.stdout.splitlines()
