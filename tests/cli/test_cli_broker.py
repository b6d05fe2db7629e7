"""`netctl broker`: the service from a fake daemon's answers, the client commands with a broker that a test scripts."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
import trio

from netd.cli.broker_dial import url_of
from netd.wire.messages import AskHistory, Broadcast, Direct, Error, Hello, History, Message, Ok, Publish
from tests.cli.test_cli_framed import CONNECTION, STATUS, hub, lines_of, words
from tests.support.authority import Authority, serving
from tests.support.brokerpeer import BrokerPeer
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
        ["subscribe", "a", "b", "--recover", "e:1"],
        ["subscribe", "a", "--recover", "x"],
        ["connect", "--echo"],
        ["bench", "--size", "1"],
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


def test_subscribe_without_a_channel_shows_what_is_sent_to_this_session(netctl):
    async def script(peer):
        link = await peer.accept()
        await link.welcome()
        await link.say(Direct("s-2", data="psst"), Broadcast("s-2", data="all"))
        await link.close(1000)

    with served(BrokerPeer(), script) as url:
        said = netctl("broker", "subscribe", "--url", url)
    assert lines_of(said.stdout) == ["direct  s-2  psst", "broadcast  s-2  all"]


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


def test_connect_on_a_terminal_prompts_and_leaves_at_ctrl_c():
    with served(BrokerPeer(), hub) as url:
        screen, inner = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "broker", "connect", "--url", url]
        environment = {**os.environ, "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        written = ""

        def read_until(pattern: str) -> None:
            nonlocal written
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)):
                written += os.read(screen, 65536).decode()

        read_until("/help lists commands\r\n> ")
        os.write(screen, b"/use public:a\n")
        read_until("public:a> ")
        os.write(screen, b"/use\n")
        os.write(screen, b"hello app\n")
        read_until("application  hello app\r\n> ")
        assert "\x1b[32mapplication" in written
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        os.close(screen)
    assert "Traceback" not in written


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_help_imports_no_websocket():
    look = "import sys; from netd.cli import broker; assert not {'trio', 'trio_websocket', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True, timeout=PATIENCE)


# --- bench ------------------------------------------------------------------------------------------------------------

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

        said = await bench("--subscribers", "3", "--window", "4", "--size", "16", "--json")
        report = json.loads(said.stdout)
        assert report["published"] > 0
        assert report["delivered"] > report["published"]
        assert report["measured"] == "delivery"
        assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]
        said = await bench("--subscribers", "0", "--rate", "50")
        heading, row = words(said.stdout.decode())
        assert heading == "SIZE PUBLISHERS SUBSCRIBERS PUBLISHED/S DELIVERED/S p50 ms p99 ms max ms"
        assert row.startswith("128 B 1 0 ")
        said = await bench("--channel", "staff:x")
        assert said.returncode == 77, said.stderr
        assert b"hub.namespace.1" in said.stderr
