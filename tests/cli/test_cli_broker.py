"""`netctl broker`: the service from a fake daemon's answers, the client commands with a broker that a test scripts.

Over 600 lines, and one file all the same: all its commands talk to the same scripted broker.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from itertools import cycle

import pytest
import trio

from netd.cli.broker_dial import url_of
from netd.client import BrokerClient
from netd.client.session import RECENT
from netd.wire.messages import (
    AskHistory,
    Broadcast,
    Close,
    CloseCode,
    Direct,
    Error,
    Hello,
    History,
    Message,
    Ok,
    Publish,
    Subscribe,
    channel_of,
)
from tests.cli.conversation import CONNECTION, STATUS, Terminal, hub, lines_of, words
from tests.support.authority import Authority, serving
from tests.support.brokerpeer import BrokerLink, BrokerPeer
from tests.support.framedpeer import PATIENCE
from tests.support.process import NetdProcess
from tests.support.served import served

BROKER = STATUS | {
    "listeners": [
        {"address": "unix:/run/netd/broker.sock", "tls": False, "connections": 0},
        {"address": "0.0.0.0:3000", "tls": False, "connections": 3},
    ],
    "requests": 2,
}


# --- the service ------------------------------------------------------------------------------------------------------


def test_info_says_what_listens_and_where_clients_connect(api, netctl):
    api.answer("GET", "/v1/broker", BROKER)
    said = words(netctl("broker", "info").stdout)
    assert said[:3] == ["LISTENING TLS CONNECTIONS", "unix:/run/netd/broker.sock no 0", "0.0.0.0:3000 no 3"]
    assert said[-3:] == ["not let in: 4 tls", "2 connections of HTTP beside them", "clients here: ws://127.0.0.1:3000"]
    assert json.loads(netctl("broker", "info", "--json").stdout) == BROKER


def test_a_broker_that_does_not_run_says_so(api, netctl):
    api.answer("GET", "/v1/broker", {"running": False})
    assert netctl("broker", "info").stdout == "the broker service is not running\n"
    gone = netctl("broker", "publish", "public:a", "x")
    assert gone.exit_code == 75
    assert "cannot find the daemon's broker: it does not run" in gone.stderr


def test_connections_and_channels(api, netctl):
    api.answer("GET", "/v1/broker/connections", {"connections": [CONNECTION], "total": 1})
    assert CONNECTION["id"] in netctl("broker", "connections").stdout
    api.answer("GET", f"/v1/broker/connections/{CONNECTION['id']}", CONNECTION)
    assert words(netctl("broker", "connections", CONNECTION["id"]).stdout)[0] == CONNECTION["id"]
    row = {"name": "public:a", "name64": None, "subscribers": 2, "epoch": "e", "offset": 3, "history": 3}
    api.answer("GET", "/v1/channels", {"channels": [row], "next": None})
    assert "public:a" in netctl("broker", "channels").stdout


@pytest.mark.parametrize(
    ("address", "tls", "url"),
    [
        ("127.0.0.1:3000", False, "ws://127.0.0.1:3000"),
        ("0.0.0.0:1", False, "ws://127.0.0.1:1"),
        ("[::]:1", True, "wss://[::1]:1"),
        ("[2001:db8::1]:1", False, "ws://[2001:db8::1]:1"),
        ("unix:/run/x:1", False, None),
        ("/run/x.sock", False, None),
    ],
)
def test_where_clients_of_this_machine_connect(address, tls, url):
    assert url_of({"running": True, "listeners": [{"address": address, "tls": tls, "connections": 0}]}) == url


# --- misuse and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "a", "x", "--url", "ftp://x"],
        ["publish", "a", "x", "--url", "ws://h:1", "--ca", __file__],
        ["publish", "a", "x", "--url", "ws://h:1", "--header", "nonsense"],
        ["publish", "a", "x", "--url", "ws://h:1", "--header", "Host:x"],
        ["publish", "a", "x", "--url", "ws://h:1", "--token", "a", "--token-file", __file__],
        ["publish", "a", "x", "--url", "ws://h:1", "--tag", "x"],
        ["subscribe", "--recover", "start"],
        ["subscribe", "--pattern"],
        ["subscribe", "a.*", "--pattern", "--recover", "start"],
        ["subscribe", "a.*", "--pattern", "--presence"],
        ["subscribe", "a", "b", "--recover", "e:1"],
        ["subscribe", "a", "--recover", "x"],
        ["subscribe", "a", "--recover", "e:²"],
        ["subscribe", "a", "--recover", "e:" + 5000 * "9"],
        ["publish", "a", "x", "--url", "ws://h:1", "--bind", "127.0.0.1:²"],
        ["publish", "a", "x", "--url", "ws://h:1", "--bind", "127.0.0.1:" + 5000 * "9"],
        ["bench", "--format", "json"],
        ["connect", "--echo"],
        ["bench", "--size", "1"],
        ["publish", "a", "x", "--url", ""],
        ["connect", "--url", "wss://h:1", "--ca", __file__],
        ["connect", "--plain", "a", "--url", "wss://h:1", "--ca", __file__],
    ],
)
def test_misuse_ends_with_2(netctl, arguments):
    said = netctl("broker", *arguments)
    assert said.exit_code == 2, said.output
    assert "Traceback" not in said.output


def test_a_refused_upgrade_is_one_sentence_with_the_rule(netctl):
    async def refuse(peer):
        request, _ = await peer.offer()
        body = b'{"error": {"kind": "denied", "message": "no such token (hub.token)"}}'
        await request.reject(401, extra_headers=[(b"content-type", b"application/json")], body=body)

    with served(BrokerPeer(), refuse) as url:
        said = netctl("broker", "publish", "a", "x", "--url", url, "--token", "t", "--token-in", "header")
    assert said.exit_code == 77
    assert said.stderr == f"netctl: cannot connect to {url}/ws: it answers 401: no such token (hub.token)\n"


def test_a_refused_channel_is_one_sentence_with_the_rule(netctl):
    async def refuse(peer):
        request, _ = await peer.offer()
        body = b'{"error": {"kind": "denied", "message": "cannot subscribe (hub.namespace.1.subscribe)"}}'
        await request.reject(403, extra_headers=[(b"content-type", b"application/json")], body=body)

    with served(BrokerPeer(), refuse) as url:
        said = netctl("broker", "connect", "--plain", "staff:a", "--url", url)
    assert said.exit_code == 77
    assert said.stderr == (
        f"netctl: cannot connect to {url}/ws/staff:a: it answers 403: cannot subscribe (hub.namespace.1.subscribe)\n"
    )


def test_nobody_there(netctl):
    said = netctl("broker", "publish", "a", "x", "--url", "ws://127.0.0.1:1")
    assert (said.exit_code, said.stderr) == (69, "netctl: cannot connect to 127.0.0.1:1: connection refused\n")


# --- publish ----------------------------------------------------------------------------------------------------------


def test_publish_finds_the_daemons_own_broker_and_says_what_became_of_it(api, netctl, tmp_path):
    seen = []

    async def script(peer):
        link = await peer.accept()
        seen.append(await link.welcome())
        for number in range(3):
            request = await link.request(Publish)
            seen.append(request.data)
            if number == 2:
                await link.say(Ok(ref=request.ref, delivered=7))
        await link.ended()

    (tmp_path / "token").write_text("from-a-file\n")
    with served(BrokerPeer(), script) as url:
        listener = {"address": url.removeprefix("ws://"), "tls": False, "connections": 0}
        api.answer("GET", "/v1/broker", BROKER | {"listeners": [listener]})
        options = ["--token-file", str(tmp_path / "token"), "--name", "me", "--tag", "a=b", "--lines"]
        said = netctl("broker", "publish", "public:a", "one\ntwo\nthree", *options)
    assert said.exit_code == 0, said.output
    assert re.match(r"sent 3 messages, to 7, .* in ", said.stdout)
    assert seen[0] == Hello(1, "me", "from-a-file", {"a": "b"}, ref=seen[0].ref)
    assert seen[1:] == ["one", "two", "three"]


def test_publish_tells_of_refusals(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.request(Publish)
        await link.say(Error(code="denied", message="cannot publish to 'a': hub.namespace.0"))
        request = await link.request(Publish)
        await link.say(Ok(ref=request.ref, delivered=0))
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "publish", "a", "x", "--count", "2", "--url", url, "--json")
    assert said.exit_code == 1
    assert json.loads(said.stdout)["refused"] == 1
    assert "1 of 2 were refused: cannot publish to 'a'" in said.stderr


def test_however_many_are_refused_are_counted(netctl):
    """More than a client keeps of what nobody reads."""
    many = RECENT + 500

    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        for _ in range(many):
            await link.request(Publish)
        for _ in range(0, many, 100):
            await link.say(*100 * [Error(code="denied", message="cannot publish")])
        request = await link.request(Publish)
        await link.say(Ok(ref=request.ref, delivered=0))
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "publish", "a", "x", "--count", str(many + 1), "--url", url, "--json")
    assert json.loads(said.stdout)["refused"] == -(-many // 100) * 100


def test_an_empty_name_is_not_everybody(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        with pytest.raises(trio.EndOfChannel):
            raise AssertionError(await link.request(Publish))

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "publish", "", "x", "--url", url)
    assert said.exit_code != 0
    assert "cannot publish to" in said.stderr


def test_publish_in_messagepack_and_as_json_value(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(Publish)
        assert request.data == {"n": 1}
        await link.say(Ok(ref=request.ref, delivered=1))
        await link.ended()

    with served(BrokerPeer(format="messagepack"), script) as url:
        said = netctl("broker", "publish", "a", '{"n": 1}', "--as", "json", "--url", url, "--format", "msgpack")
    assert said.exit_code == 0, said.output


# --- subscribe --------------------------------------------------------------------------------------------------------


def test_subscribe_goes_on_over_a_lost_connection(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(AskHistory)
        kept = [Message("public:a", data="old", offset=3, epoch="e")]
        await link.say(History(ref=request.ref, channel="public:a", epoch="e", offset=3, messages=kept))
        asked = await link.confirm("public:a", epoch="e", offset=3, recovered=True)
        assert asked.recover.offset == 2
        await link.say(*kept)
        await link.abort()
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=4, recovered=True)
        await link.say(Message("public:a", from_="s-7", data="new", offset=4, epoch="e"))
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "public:a", "--since", "start", "--count", "2", "--json", "--url", url)
    assert said.exit_code == 0, said.output
    first, second = (json.loads(line) for line in said.stdout.splitlines())
    assert first == {"event": "message", "channel": "public:a", "data": "old", "offset": 3, "epoch": "e"}
    assert (second["data"], second["from"]) == ("new", "s-7")
    assert "connection lost" in said.stderr
    assert "connected again" in said.stderr


def test_a_pattern_is_asked_for_as_one_and_shows_the_channels_that_match(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        asked = await link.request(Subscribe)
        seen.append((asked.channel, asked.pattern))
        await link.say(Ok(ref=asked.ref, channel="public:a.*", pattern=True))
        await link.say(Message("public:a.b", data="x", offset=4, epoch="e"), Message("public:a.c", data="y"))
        await link.ended()

    seen = []
    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "--pattern", "public:a.*", "--count", "2", "--url", url)
    assert seen == [("public:a.*", True)]
    assert lines_of(said.stdout) == ["public:a.b 4  daemon  x", "public:a.c  daemon  y"]
    assert (said.exit_code, said.stderr) == (0, "")


@pytest.mark.parametrize(
    ("channel", "hint"), [("tame:a.>", True), ("*", True), ("tame:a*b", False), ("tame:>.a", False)]
)
def test_what_only_looks_like_a_pattern_is_said_to_be_a_channel(netctl, channel, hint):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        asked = await link.confirm(channel)
        assert not asked.pattern
        await link.say(Message(channel, data="x"))
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", channel, "--count", "1", "--url", url)
    told = f"netctl: {channel!r} is a single channel of this name: its namespace has no wildcards; --pattern refuses it"
    assert said.stderr == (f"{told} then\n" if hint else "")
    assert said.exit_code == 0


def test_a_pattern_that_is_refused_is_one_sentence(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        asked = await link.request(Subscribe)
        await link.say(
            Error(code="unsupported", message="cannot: no wildcards (hub.namespace.0.wildcards)", ref=asked.ref)
        )
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "--pattern", "tame:a.*", "--url", url)
    assert said.stderr == "netctl: cannot: no wildcards (hub.namespace.0.wildcards)\n"
    assert said.exit_code != 0


def test_subscribe_without_a_channel_shows_what_is_sent_to_this_session(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.say(Direct("s-2", data="psst"), Broadcast("s-2", data="all"))
        await link.close(1000)

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "--url", url)
    assert lines_of(said.stdout) == ["direct  s-2  psst", "broadcast  s-2  all"]


def test_count_is_of_whatever_is_said(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.say(Error(code="rate", message="cannot"), Broadcast("s-2", data="1"), Direct("s-2", data="2"))
        await link.ended()

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "--count", "2", "--url", url)
    assert lines_of(said.stdout)[1:] == ["broadcast  s-2  1", "direct  s-2  2"]


def test_a_channel_that_is_no_text(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(Subscribe)
        seen.append(channel_of(request))
        await link.say(Ok(ref=request.ref), Message(channel64=b"a\xff", data="hi"))
        await link.ended()

    seen = []
    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "a\udcff", "--count", "1", "--url", url)
    assert seen == [b"a\xff"]
    assert said.exit_code == 0, said.output


def test_wss_with_an_authority_of_ones_own(netctl, tmp_path):
    authority = Authority(tmp_path)

    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.say(Direct("s-2", data="psst"))
        await link.close(1000)

    with served(BrokerPeer(tls=serving(authority.issue("127.0.0.1"))), script) as url:
        said = netctl("broker", "subscribe", "--url", url, "--ca", str(authority.file))
    assert lines_of(said.stdout) == ["direct  s-2  psst"], said.output


# --- connect ----------------------------------------------------------------------------------------------------------


def connect(url: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "broker", "connect", "--url", url, *options]
    return subprocess.run(command, input=script, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_connect_from_a_pipe():
    script = "hello app\n/sub public:a\n/pub public:a hi there\n/direct nobody hi\n/history public:a\n/quit\n"
    with served(BrokerPeer(), hub) as url:
        said = connect(url, script)
    lines = lines_of(said.stdout)
    for line in (
        "application  hello app",
        "-- subscribed to public:a, at e:4",
        "-- published to 1",
        "public:a 5  s-1  hi there",
        "-- cannot find nobody",
        "-- 1 kept, at e:4",
    ):
        assert line in lines
    assert (said.returncode, said.stderr) == (1, "")  # something was refused
    assert "\x1b" not in said.stdout
    assert "> " not in said.stdout


def test_connect_plain_is_a_channel_and_nothing_else():
    seen = []

    async def script(peer):
        request, _ = await peer.offer()
        seen.append(request.path)
        ws = await request.accept()
        for _ in range(2):
            seen.append(await ws.get_message())
            await ws.send_message(f"heard {seen[-1]}")
        await ws.send_message(b"\xff")
        await ws.aclose()

    with served(BrokerPeer(), script) as url:
        said = connect(url, "/one\ntwo\n", "--plain", "public:a b", "--echo", "--json")
    assert seen == ["/ws/public:a%20b?echo=1", "/one", "two"]
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert rows == [
        {"event": "payload", "data": "heard /one"},
        {"event": "payload", "data": "heard two"},
        {"event": "payload", "data64": "/w=="},
    ]


def test_connect_as_json_shows_who_is_there():
    with served(BrokerPeer(), hub) as url:
        said = connect(url, "/list\n/pub\n", "--json")
    clients, error = (json.loads(line) for line in said.stdout.splitlines())
    assert clients["clients"][0] == {
        "session": "s-2",
        "name": "beta",
        "transport": "framed",
        "tags": {"site": "lab"},
    }
    assert error == {"event": "error", "message": "cannot do that: write /pub CHANNEL TEXT"}


def test_connect_without_standard_input():
    with served(BrokerPeer(), hub) as url:
        command = f"exec {sys.executable} -W error -m netd.cli.main broker connect --linger 0 --url {url} <&-"
        said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_a_terminal_that_is_gone_is_the_end_of_input():
    with served(BrokerPeer(), hub) as url:
        screen, inner = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "broker", "connect", "--url", url]
        process = subprocess.Popen(
            command, stdin=inner, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        os.close(inner)
        assert process.stdout is not None
        assert b"/help lists commands" in process.stdout.readline()
        os.close(screen)
        said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (0, b"")


def test_connect_on_a_terminal_prompts_and_leaves_at_ctrl_c():
    with served(BrokerPeer(), hub) as url:
        terminal = Terminal("broker", "connect", "--url", url)
        terminal.read_until("/help lists commands\r\n> ")
        terminal.type("/use public:a\n")
        terminal.read_until("public:a> ")
        terminal.type("/use\n")
        terminal.type("hello app\n")
        terminal.read_until("application  hello app\r\n> ")
        assert "> > " not in terminal.written
        terminal.type("half a li")
        terminal.read_until("half a li$")
        terminal.type("\x12")  # Ctrl-R, as --help says
        terminal.read_until("\\^R\r\nhalf a li$")
        assert "\x1b[32mapplication" in terminal.written
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_help_imports_no_websocket():
    look = "import sys; from netd.cli import broker; assert not {'trio', 'trio_websocket', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True, timeout=PATIENCE)


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench_says_what_to_do_where_it_does_not_keep_up(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.say(Close(CloseCode.SLOW, "did not read"))
        await link.close(CloseCode.SLOW, "did not read")

    with served(BrokerPeer(format="messagepack"), script) as url:
        said = netctl("broker", "bench", "--subscribers", "1", "--url", url)
    assert said.exit_code == 69
    assert "(4008: did not read); this client does not keep up: try a smaller --window" in said.stderr


@pytest.mark.parametrize("when", ["before the upgrade", "after it", "after the welcome"])
def test_bench_tells_of_a_broker_that_is_gone(netctl, when):
    async def script(peer):
        if when == "before the upgrade":
            stream = await peer.stream()
            await stream.receive_some(1)
            await trio.aclose_forcefully(stream)
            return
        link = await peer.accept()
        if when == "after the welcome":
            await link.welcome()
        await link.abort()

    with served(BrokerPeer(format="messagepack"), script) as url:
        said = netctl("broker", "bench", "--subscribers", "1", "--url", url)
    assert said.exit_code == 69, said.output
    assert said.stderr.startswith("netctl: cannot ")


def test_bench_shows_its_token_once(netctl):
    seen = []

    async def script(peer):
        request, stream = await peer.offer()
        ws = await request.accept(subprotocol="netd.msgpack")
        link = BrokerLink(ws, stream, "messagepack")
        seen.append((dict(request.headers)[b"authorization"], (await link.welcome()).token))
        await link.close(1000)

    with served(BrokerPeer(format="messagepack"), script) as url:
        netctl("broker", "bench", "--subscribers", "1", "--url", url, "--token", "t", "--token-in", "header")
    assert seen == [(b"Bearer t", None)]


TOML = """
[trace]
enabled = false

[[broker.listen]]
address = "127.0.0.1:0"

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"

[[hub.namespace]]
name = "staff"
"""


async def test_bench_measures_a_daemon(tmp_path):
    async with NetdProcess(tmp_path, TOML) as netd:

        async def bench(*options: str) -> subprocess.CompletedProcess[bytes]:
            command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "--socket", str(netd.socket)]
            command += ["broker", "bench", "--seconds", "0.2", *options]
            with trio.fail_after(PATIENCE):
                return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)

        async with netd.client() as control:
            port = (await control.broker())["listeners"][0]["address"].rpartition(":")[2]
        said = await bench("--subscribers", "3", "--window", "4", "--size", "16", "--json")
        report = json.loads(said.stdout)
        assert report["published"] > 0
        assert report["delivered"] > report["published"]
        assert report["measured"] == "delivery"
        assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]
        async with BrokerClient(f"ws://127.0.0.1:{port}") as stranger, trio.open_nursery() as nursery:

            async def talk() -> None:
                for data in cycle(("text", b"short", bytes(16))):
                    await stranger.publish("public:bench", data)

            nursery.start_soon(talk)
            said = await bench("--subscribers", "1", "--size", "16", "--json")
            nursery.cancel_scope.cancel()
        assert json.loads(said.stdout)["max_ms"] < PATIENCE * 1000
        said = await bench("--size", "60000", "--subscribers", "0", "--json")
        assert json.loads(said.stdout)["published"] > 0
        said = await bench("--subscribers", "0", "--rate", "50")
        heading, row = words(said.stdout.decode())
        assert heading == "SIZE PUBLISHERS SUBSCRIBERS PUBLISHED/S DELIVERED/S p50 ms p99 ms max ms"
        assert row.startswith("128 B 1 0 ")
        said = await bench("--channel", "staff:x")
        assert said.returncode == 77, said.stderr
        assert b"hub.namespace.1" in said.stderr
