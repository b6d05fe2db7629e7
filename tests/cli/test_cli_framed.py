"""`netctl framed`: what the service says, and the client commands against a server of the test's own.

Over 600 lines, and one file all the same: all its commands talk to the same small servers (`served`).
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from functools import partial

import click
import pytest
import trio
import trio.testing

from netd.cli.bench import Times
from netd.cli.data import plain_value
from netd.cli.dial import place_of, tags_of
from netd.cli.message_view import item_json, item_line, shown
from netd.cli.options import run_loop
from netd.cli.output import size
from netd.cli.talk import listen
from netd.client import FramedClient
from netd.client.subscription import Gap
from netd.errors import DaemonUnreachable
from netd.wire import handshake, messages
from netd.wire.messages import (
    AskHistory,
    Binary,
    BinaryEvent,
    Broadcast,
    Client,
    Clients,
    Direct,
    Error,
    History,
    Joined,
    ListClients,
    Message,
    Ok,
    Ping,
    Pong,
    Position,
    Publish,
    SendDirect,
    Subscribe,
    Text,
    TextEvent,
    Unsubscribe,
)
from tests.cli.test_cli_sessions import completed
from tests.support.framedpeer import PATIENCE, FramedPeer
from tests.support.served import served as peer_served

NOW = time.time()
STATUS = {
    "running": True,
    "listeners": [
        {
            "address": "127.0.0.1:9000",
            "mode": "operations",
            "codec": "auto",
            "tls": False,
            "handshake": "optional",
            "connections": 3,
        },
        {
            "address": "[2001:db8:1234:5678:9abc:def0:1234:5678]:9001",
            "mode": "channel",
            "codec": "json",
            "tls": True,
            "handshake": "required",
            "connections": 0,
        },
    ],
    "connections": 4,
    "sessions": 3,
    "arriving": 1,
    "total": 12,
    "bytes_in": 2048,
    "bytes_out": 3 * 1024 * 1024,
    "messages_in": 1,
    "messages_out": 70,
    "dropped": 5,
    "backpressure": 2,
    "drains": 1,
    "rejected": {"tls": 4, "busy": 0},
    "limits": {},
}
CONNECTION = {
    "id": "59a20bbf-e8f1-45dd-a4f2-80b80da8b546",
    "address": "192.0.2.7:50312",
    "listener": "127.0.0.1:9000",
    "mode": "operations",
    "tls": True,
    "opened": NOW - 100,
    "idle": 3.0,
    "name": "al\x1b[2Jpha",
    "tags": {"site": "lab"},
    "version": "1.0",
    "signed": True,
    "channel": None,
    "bytes_in": 72,
    "bytes_out": 461,
    "messages_in": 2,
    "messages_out": 6,
    "unfinished": 0,
    "queued": 4096,
    "dropped": 0,
    "paused": ["rate"],
    "pid": None,
    "uid": None,
}


def served(script, **how):
    return peer_served(FramedPeer(**how), script)


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def lines_of(text: str) -> list[str]:
    """Lines without the time at their beginning."""
    return [re.sub(r"^\d\d:\d\d:\d\d\.\d{3}  ", "", line) for line in text.splitlines()]


# --- the service ------------------------------------------------------------------------------------------------------


def test_info_says_what_listens_who_is_here_and_what_went_wrong(api, netctl):
    api.answer("GET", "/v1/framed", STATUS)
    said = words(netctl("framed", "info").stdout)
    assert said[0] == "LISTENING MODE CODEC TLS HANDSHAKE CONNECTIONS"
    assert said[1] == "127.0.0.1:9000 operations auto no optional 3"
    assert said[4:] == [
        "3 sessions, 1 arriving, 12 so far",
        "received 1 message, 2.0 KiB",
        "sent 70 messages, 3.0 MiB",
        "backpressure 2 times, drained 1 time; 5 messages dropped",
        "not let in: 4 tls",
    ]
    assert json.loads(netctl("framed", "info", "--json").stdout) == STATUS


def test_a_service_that_does_not_run_says_so(api, netctl):
    api.answer("GET", "/v1/framed", {"running": False})
    assert netctl("framed", "info").stdout == "the framed service is not running\n"


def test_connections_fit_a_narrow_terminal_and_keep_their_ids(api, netctl):
    answer = {"connections": [CONNECTION, CONNECTION | {"name": None, "tls": False}], "total": 7}
    api.answer("GET", "/v1/framed/connections", answer)
    wide = netctl("framed", "connections", "--limit", "2").stdout
    assert "operations, TLS" in wide
    assert "\x1b" not in wide
    assert wide.endswith("and 5 more (--limit)\n")
    assert dict(api.requests[-1].query) == {"limit": "2"}
    narrow = netctl("framed", "connections", COLUMNS="80").stdout
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert CONNECTION["id"] in narrow
    assert CONNECTION["address"] in narrow
    assert json.loads(netctl("framed", "connections", "--json").stdout) == answer
    api.answer("GET", "/v1/framed/connections", {"connections": [], "total": 0})


def test_one_connection_with_all_there_is_about_it(api, netctl):
    path = f"/v1/framed/connections/{CONNECTION['id']}"
    api.answer("GET", path, CONNECTION | {"later": "field"})
    said = words(netctl("framed", "connections", CONNECTION["id"]).stdout)
    assert said[0] == CONNECTION["id"]
    for fact in ("from 192.0.2.7:50312", "TLS yes", "tags site=lab", "queued 4.0 KiB", "paused by rate", "later field"):
        assert fact in said
    assert not any(line.startswith(("channel", "unfinished", "dropped", "process")) for line in said)


def test_a_connection_that_is_not_there(api, netctl):
    message = "cannot accept id: string should match pattern"
    api.refuse("GET", "/v1/framed/connections/zzz", 422, "invalid", message, "id")
    said = netctl("framed", "connections", "zzz")
    assert said.exit_code == 66
    assert "cannot find connection 'zzz'" in said.stderr


# --- send -------------------------------------------------------------------------------------------------------------


def test_send_plain_payloads_and_print_the_answers(netctl):
    async def echo(peer):
        link = await peer.accept()
        assert await link.receive() == b"hello"
        await link.send(b"HELLO \x1b[2J")
        await link.close()

    with served(echo) as address:
        said = netctl("framed", "send", address, "hello", "--answer")
    assert said.exit_code == 0
    assert lines_of(said.stdout) == [r"HELLO \x1b[2J"]


@pytest.mark.parametrize(
    ("options", "payload"),
    [
        (["--codec", "json", '{"a": 1}'], b'{"a":1}'),
        (["--codec", "json", "no JSON"], b'"no JSON"'),
        (["--codec", "json", "--as", "text", "1"], b'"1"'),
        (["--codec", "cbor", "[1]"], b"\x81\x01"),
        (["--as", "hex", "00ff"], b"\x00\xff"),
        (["--codec", "text", "héllo"], "héllo".encode()),
    ],
)
def test_data_becomes_a_payload_as_codec_and_form_say(netctl, options, payload):
    async def serve(peer):
        link = await peer.accept()
        assert await link.receive() == payload
        await link.ended()

    with served(serve) as address:
        assert netctl("framed", "send", address, *options).exit_code == 0


def test_send_lines_of_a_pipe_several_times_by_priority_and_with_a_handshake(tmp_path):
    async def serve(peer):
        link = await peer.accept()
        shaken = handshake.parse(await link.receive())
        assert (shaken.version, shaken.tags) == ("1.0", {"device": "alpha"})
        assert [await link.receive() for _ in range(4)] == [b"one", b"two", b"one", b"two"]
        await link.ended()

    with served(serve) as address:
        command = [sys.executable, "-m", "netd.cli.main", "framed", "send", address, "-", "--lines", "--count", "2"]
        command += ["--tag", "device=alpha", "--handshake-version", "1.0", "--json"]
        said = subprocess.run(command, input=b"one\n\ntwo\n", capture_output=True, timeout=PATIENCE, check=False)
    assert said.returncode == 0
    report = json.loads(said.stdout)
    assert report["sent"] == 4
    assert report["bytes"] > 4 * (4 + 3)  # and the handshake


def test_send_as_an_operation_says_whom_it_reached(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(Publish)
        assert (request.channel, request.data, request.priority, request.ephemeral) == ("public:a", {"n": 1}, 3, True)
        await link.say(Ok(ref=request.ref, delivered=2))
        await link.close()

    with served(serve) as address:
        options = ["--channel", "public:a", "--as", "json", '{"n": 1}', "--priority", "3", "--ephemeral"]
        said = netctl("framed", "send", address, *options)
    assert said.exit_code == 0
    assert re.match(r"sent 1 message, to 2, \d+ B in [0-9.e-]+ s\n$", said.stdout)


@pytest.mark.parametrize("option", ["--channel", "--to"])
def test_an_empty_name_is_no_plain_payload(netctl, option):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()  # whose request would not be answered
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "send", address, option, "", "psst")
    assert said.exit_code != 0
    assert re.match(r"netctl: cannot (publish|send) to ''?", said.stderr)


def test_of_many_only_the_last_is_confirmed_and_refusals_are_counted(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        requests = [await link.request(SendDirect) for _ in range(5)]
        assert [request.ref is None for request in requests] == [True] * 4 + [False]
        await link.say(*[Error(code="rate", message="cannot send so fast")] * 3, Ok(ref=requests[-1].ref, delivered=1))
        await link.close()

    with served(serve) as address:
        said = netctl("framed", "send", address, "--to", "name:beta", "psst", "--count", "5", "--json")
    assert said.exit_code == 1
    assert "3 of 5 were refused: cannot send so fast" in said.stderr
    assert json.loads(said.stdout) | {"bytes": 0, "seconds": 0} == {
        "sent": 5,
        "delivered": 1,
        "refused": 3,
        "bytes": 0,
        "seconds": 0,
    }


def test_a_refusal_ends_with_its_exit_code_and_nobody_there_with_another(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(Publish)
        await link.say(Error(ref=request.ref, code="denied", message="cannot publish to 'x': no"))
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "send", address, "--channel", "x", "data", "--json")
    assert said.exit_code == 77
    assert json.loads(said.stderr) == {"error": {"kind": "denied", "message": "cannot publish to 'x': no"}}
    gone = netctl("framed", "send", address, "data")
    assert (gone.exit_code, gone.stderr) == (69, f"netctl: cannot connect to {address}: connection refused\n")


@pytest.mark.parametrize(
    "misused",
    [
        ["send"],
        ["send", "h:1", "x", "--channel", "a", "--to", "b"],
        ["send", "h:1", "x", "--channel", "a", "--answer"],
        ["send", "h:1", "x", "--priority", "256"],
        ["send", "h:1", "x", "--tag", "novalue"],
        ["send", "h:1", "x", "--as", "hex"],
        ["listen", "h:1", "--recover", "start"],
        ["listen", "h:1", "a", "b", "--recover", "e:1"],
        ["bench", "h:1", "--window", "0"],
    ],
    ids=" ".join,
)
def test_misuse(netctl, misused):
    assert netctl("framed", *misused).exit_code == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["nonsense"], "cannot connect to 'nonsense': write \"host:9000\""),
        (["h:1", "--codec", "nosuch"], "cannot find codec 'nosuch': there are raw, text"),
        (["h:1", "--codec", "no.such:codec"], "cannot find codec 'no.such:codec'"),
        (["h:1", "--sign", "nosuch.pem"], "'nosuch.pem' does not exist"),
        (["h:1", "--ca", "nosuch.pem"], "'nosuch.pem' does not exist"),
        (["h:1", "--sign", __file__], "cannot read a private key"),
        (["h:1", "--ca", __file__], "cannot use the TLS files"),
        (["h:1", "--recover", "foo"], "cannot recover from 'foo': write EPOCH:OFFSET"),
    ],
    ids=["address", "codec", "codec's module", "key", "authorities", "no key", "no authorities", "position"],
)
def test_misuse_is_said_before_anything_is_connected(netctl, options, why):
    address, *more = options
    said = netctl("framed", "listen", address, "public:a", *more)
    assert (said.exit_code, said.stdout) == (2, "")
    assert why in " ".join(said.stderr.split())


@pytest.mark.parametrize(
    "wrong", [click.UsageError("write it so"), DaemonUnreachable("cannot")], ids=["misuse", "ours"]
)
def test_an_error_out_of_a_nursery_is_itself(wrong):
    async def fail() -> None:
        raise wrong

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(type(wrong)) as raised:
        run_loop(main)
    assert raised.value is wrong


def test_codecs_and_interfaces_are_completed(api):
    assert completed(api, "framed", "send", "h:1", "--codec", "") == ["raw", "text", "json", "cbor", "messagepack"]
    assert completed(api, "framed", "listen", "h:1", "--codec", "m") == ["messagepack"]
    assert completed(api, "framed", "bench", "--framing", "n") == ["none"]
    assert "lo" in completed(api, "framed", "connect", "--interface", "l")


# --- plain payloads that nobody takes ---------------------------------------------------------------------------------


def refusing(*events, format="json"):
    """A peer that takes one payload, answers so and hangs up if the last word is a close."""

    async def serve(peer):
        link = await peer.accept()
        await link.receive()
        await link.send(*(messages.encode(event, format) for event in events))
        if not isinstance(events[-1], messages.Close):
            await link.ended()
        await link.close()

    return serve


@pytest.mark.parametrize(
    "more", [[], ["--answer"], ["--codec", "json"], ["--codec", "cbor"], ["--count", "3"]], ids=str
)
@pytest.mark.parametrize(
    ("events", "format", "code", "why"),
    [
        (
            [messages.Close(1002, "not my version")],
            "json",
            76,
            r"closed it, protocol \(1002\): not my version",
        ),
        ([messages.Close(4321)], "json", 1, r"closed it, closed \(4321\)"),
        ([Error(code="invalid", message="cannot read the request")], "messagepack", 64, "refused it: .*--channel"),
        ([Ping(1), Error(code="denied", message="cannot")], "json", 77, "refused it: cannot; "),
    ],
    ids=["version", "a code of its own", "operations", "denied"],
)
def test_a_plain_payload_that_is_refused_says_so(netctl, events, format, code, why, more):
    if "--answer" in more and isinstance(events[0], Ping):
        events = events[1:]
    with served(refusing(*events, format=format)) as address:
        said = netctl("framed", "send", address, '"hello"', "--handshake-version", "9", *more)
    assert (said.exit_code, said.stdout) == (code, "")
    assert re.search(f"cannot send a plain payload to {address}: the peer {why}", said.stderr)


@pytest.mark.parametrize(("more", "wanted"), [([], "a handshake"), (["--tag", "a=b"], "another handshake")])
def test_a_peer_that_hangs_up_without_a_word_may_have_taken_it_or_not(netctl, more, wanted):
    async def serve(peer):
        link = await peer.accept()
        await link.receive()
        await link.close()

    with served(serve) as address:
        said = netctl("framed", "send", address, "hello", *more)
    assert said.exit_code == 69
    assert said.stderr == (
        f"netctl: cannot tell whether {address} took it: "
        f"the peer ended the connection before it said anything; does it want TLS (tls=True, --tls), or {wanted}?\n"
    )


def test_a_tls_server_is_recognised_by_its_alert(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.stream.receive_some(65536)
        await link.send_raw(bytes.fromhex("15030300020246"))
        await link.close()

    with served(serve) as address:
        said = netctl("framed", "send", address, "hello")
    assert said.exit_code == 69
    assert said.stderr.endswith("does it want TLS (tls=True, --tls)?\n")


def test_what_comes_back_is_no_refusal(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.send(await link.receive())
        await link.send(b'{"type": "message", "channel": "public:a", "data": 1}', b"\x81")
        await link.close()

    with served(serve) as address:
        said = netctl("framed", "send", address, '{"type": "error", "code": "x", "message": "y"}')
    assert (said.exit_code, said.stderr) == (0, "")


def test_answers_that_do_not_come_say_why(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.send(await link.receive())
        await link.close()

    with served(serve) as address:
        said = netctl("framed", "send", address, "hello", "--count", "3", "--answer")
    assert said.exit_code == 1
    assert said.stderr == "netctl: cannot get all answers: 2 had not come: the peer ended the connection\n"


@pytest.mark.parametrize("verb", [["listen", "public:a"], ["connect"], ["send", "x", "--channel", "public:a"]])
@pytest.mark.parametrize("more", [[], ["--codec", "json"]], ids=str)
def test_a_peer_that_does_not_speak_operations_is_told_at_once(verb, more):
    async def echo(peer):
        link = await peer.accept()
        await link.send(await link.receive())
        await link.ended()
        await peer.stop()  # whoever came back would be refused

    with served(echo) as address:
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "framed", verb[0], address, *verb[1:], *more]
        said = subprocess.run(command, input="", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (said.returncode, said.stdout) == (69, "")
    assert said.stderr.startswith(f"netctl: cannot use operations with {address}: the peer does not speak them")
    assert said.stderr.endswith("is its mode operations?\n")
    assert said.stderr.count("\n") == 1


# --- listen -----------------------------------------------------------------------------------------------------------


def test_listen_prints_messages_as_they_come_and_ends_after_the_count(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=0)
        await link.say(
            Message("public:a", from_="59a20bbf-e8f1", data="hi \x1b[2J", offset=1, epoch="e"),
            Joined("s-3", "beta", channel="public:a"),
            Message("public:a", data64=b"\xff\x00", offset=4, epoch="e"),
        )
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "listen", address, "public:a", "--count", "2", "--presence")
    assert said.exit_code == 0
    assert lines_of(said.stdout) == [
        r"public:a 1  59a20bbf  hi \x1b[2J",
        "public:a  beta joined",
        "public:a  -- 2 messages missing here --",
        "public:a 4  daemon  0xff00",
    ]


async def test_listen_ends_after_the_count_whatever_else_came_with_it(capsys):
    channels = ("public:a", "public:b", "public:c")
    how = {"pattern": False, "presence": False, "recover": None, "as_json": False}
    async with FramedPeer() as peer, trio.open_nursery() as nursery:
        client = FramedClient(peer.address, linger=0.01)
        nursery.start_soon(partial(listen, client, channels=channels, count=1, **how))
        link = await peer.accept()
        await link.welcome()
        for channel in channels:
            await link.confirm(channel, epoch="e", offset=0)
        await link.say(Ping(1, ref=1))
        await link.request(Pong)
        await trio.testing.wait_all_tasks_blocked()  # it has the answers, and waits for each of them
        await link.say(*(Message(channel, data="hi") for channel in channels), Direct("s-2", data="you"))
        await link.ended()
    said = lines_of(capsys.readouterr().out)  # what does not count may have been first
    assert len([line for line in said if line.endswith("  hi")]) == 1


def test_listen_as_json_from_all_that_is_kept(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        request = await link.request(AskHistory)
        kept = [Message("public:a", data=number, offset=number, epoch="e") for number in (7, 8)]
        await link.say(History(ref=request.ref, channel="public:a", epoch="e", offset=8, messages=kept))
        asked = await link.confirm("public:a", epoch="e", offset=6, recovered=True)
        assert asked.recover == Position("e", 6)
        await link.say(*kept, Message("public:a", data={"n": 9}, offset=9, epoch="e"))
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "listen", address, "public:a", "--count", "3", "--recover", "start", "--json")
    assert said.exit_code == 0
    rows = [json.loads(line) for line in said.stdout.splitlines()]
    assert rows[0] == {"event": "message", "channel": "public:a", "data": 7, "offset": 7, "epoch": "e"}
    assert [row["data"] for row in rows] == [7, 8, {"n": 9}]


def test_listen_from_a_position_and_across_a_lost_connection(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        asked = await link.confirm("a", epoch="new", offset=3, recovered=False)
        assert asked.recover == Position("old:epoch", 5)
        await link.close()
        link = await peer.accept()
        await link.welcome("s-2")
        await link.confirm("a", epoch="new", offset=3, recovered=True)
        await link.say(Message("a", data="after", offset=4, epoch="new"))
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "listen", address, "a", "--count", "1", "--recover", "old:epoch:5")
    assert said.exit_code == 0
    assert lines_of(said.stdout) == ["a  -- messages may be missing here --", "a 4  daemon  after"]
    assert re.match(r"netctl: connection lost: .*; again in 0\.\d s\nnetctl: connected again\n$", said.stderr)


def test_listen_to_plain_payloads_until_the_peer_takes_leave(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.send(b"one", b"\xff")
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "listen", address, "--count", "2", "--json")
    assert [json.loads(line) for line in said.stdout.splitlines()] == [
        {"event": "payload", "data64": "b25l"},
        {"event": "payload", "data64": "/w=="},
    ]


def test_being_kicked_ends_listening_with_the_reason(netctl):
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        await link.confirm("a")
        await link.say(messages.Close(messages.CloseCode.KICKED, "out"))
        await link.ended()

    with served(serve) as address:
        said = netctl("framed", "listen", address, "a")
    assert said.exit_code == 1
    assert said.stderr == "netctl: cannot go on: the daemon closed the session: kicked (4010): out\n"


def test_ctrl_c_ends_listening_quietly():
    async def serve(peer):
        link = await peer.accept()
        await link.send(b"one")
        await link.ended()

    with served(serve) as address:
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "framed", "listen", address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as listening:
            assert listening.stdout is not None
            assert listening.stdout.readline().endswith("  one\n")
            listening.send_signal(signal.SIGINT)
            _, errors = listening.communicate(timeout=PATIENCE)
    assert (listening.returncode, errors) == (130, "")


# --- connect ----------------------------------------------------------------------------------------------------------


async def hub(peer) -> None:
    """Answers whatever `connect` can ask, until the client leaves."""
    link = await peer.accept()
    await link.welcome("59a20bbf-e8f1-45dd-a4f2-80b80da8b546")
    while True:
        try:
            request = messages.decode_request(await link.receive(), link.format)
        except trio.EndOfChannel:
            await link.close()
            return
        match request:
            case Subscribe() if request.channel.startswith("wild:"):
                await link.say(Ok(ref=request.ref, channel=request.channel, pattern=True))
            case Subscribe():
                await link.say(Ok(ref=request.ref, channel=request.channel, epoch="e", offset=4))
            case Publish():
                await link.say(Ok(ref=request.ref, delivered=1))
                await link.say(Message(request.channel, from_="s-1", data=request.data, offset=5, epoch="e"))
            case Text():
                await link.say(Ok(ref=request.ref), TextEvent(request.text))
            case Binary():
                await link.say(Ok(ref=request.ref), BinaryEvent(data64=request.data64))
            case SendDirect():
                await link.say(Error(ref=request.ref, code="not-found", message="cannot find nobody"))
            case messages.SendBroadcast():
                await link.say(Ok(ref=request.ref, delivered=0), Broadcast("s-2", "all"))
            case ListClients() | messages.AskPresence():
                someone = Client("s-2", "beta", "framed", {"site": "lab"})
                kind = Clients if isinstance(request, ListClients) else messages.Presence
                more = {} if isinstance(request, ListClients) else {"channel": request.channel}
                await link.say(kind(ref=request.ref, clients=[someone], **more))
            case AskHistory():
                kept = [Message("public:a", data="old", offset=4, epoch="e")]
                await link.say(History(ref=request.ref, channel="public:a", epoch="e", offset=4, messages=kept))
            case Ping():
                await link.say(Pong(request.ts, ref=request.ref))
            case Unsubscribe():
                await link.say(Ok(ref=request.ref))
            case _:
                pass


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
        screen, inner = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "framed", "connect", address]
        process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner)
        os.close(inner)
        written = ""

        def read_until(pattern: str) -> None:
            nonlocal written
            while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)):  # colours aside
                written += os.read(screen, 65536).decode()

        read_until("/help lists commands\r\n> ")
        os.write(screen, b"/sub public:a\n")
        read_until("subscribed to public:a")
        os.write(screen, b"hello app\n")
        read_until("application  hello app\r\n> ")
        process.send_signal(signal.SIGINT)
        read_until("> \r\n$")
        assert process.wait(PATIENCE) == 130
        os.close(screen)
    assert "Traceback" not in written


# --- bench ------------------------------------------------------------------------------------------------------------


async def echo_all(peer) -> None:
    """Echo on every connection, until nobody is there any more."""
    async with trio.open_nursery() as nursery:

        async def echo(link) -> None:
            try:
                while data := await link.stream.receive_some(65536):
                    await link.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                nursery.cancel_scope.deadline = trio.current_time() + 0.2

        while True:
            nursery.start_soon(echo, await peer.accept())


@pytest.mark.parametrize(
    "options", [["--size", "0", "--window", "1"], ["--size", "100000", "--connections", "2"]], ids=str
)
def test_bench_counts_what_comes_back(netctl, options):
    with served(echo_all) as address:
        said = netctl("framed", "bench", address, "--seconds", "0.1", "--json", *options)
    assert said.exit_code == 0, said.stderr
    report = json.loads(said.stdout)
    assert report["messages"] > 0
    assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["max_ms"]
    assert report["messages_per_second"] == pytest.approx(report["messages"] / report["seconds"], rel=0.1)


def test_bench_prints_a_table_that_fits(netctl):
    with served(echo_all) as address:
        said = netctl("framed", "bench", address, "--seconds", "0.1", "--connections", "2", COLUMNS="80")
    heading, row = said.stdout.splitlines()
    assert words(heading) == ["SIZE CONNECTIONS WINDOW MSG/S MB/S p50 ms p99 ms max ms"]
    assert words(row)[0].startswith("64 B 2 64 ")
    assert len(heading) <= 80


def test_bench_recognises_a_server_that_is_no_echo(netctl):
    async def other(peer):
        link = await peer.accept()
        await link.receive()
        await link.send(b"something else")
        await link.ended()

    async def silent(peer):
        link = await peer.accept()
        await link.ended()

    nothing = r"nothing came back within 0\.5 s"
    for server, why, timeout in ((other, "something else comes back", "20"), (silent, nothing, "0.5")):
        with served(server) as address:
            said = netctl("framed", "bench", address, "--connections", "1", "--timeout", timeout)
        assert said.exit_code == 69
        assert re.search(rf"cannot measure {address}: {why}; is its mode echo\?", said.stderr)


@pytest.mark.parametrize("options", [[], ["--operations"], ["--size", "100000"]], ids=str)
def test_bench_says_that_it_may_have_reached_a_limit(netctl, options):
    async def full(peer):
        first = await peer.accept()
        second = await peer.accept()
        await second.stream.receive_some(1)
        await second.abort()
        await first.ended()

    async def full_of_sessions(peer):
        link = await peer.accept()
        await link.receive()
        await link.abort()

    with served(full_of_sessions if "--operations" in options else full) as address:
        said = netctl("framed", "bench", address, "--connections", "2", "--timeout", "9", *options)
    assert said.exit_code == 69
    assert f"cannot go on: {address} ended one of 2 before it said anything; it may have reached a limit" in said.stderr
    assert "netctl framed info" in said.stderr


def test_bench_through_the_message_path(netctl):
    async def application(peer):
        link = await peer.accept()
        await link.welcome()
        while True:
            try:
                request = await link.request(Binary)
                await link.say(BinaryEvent(data64=request.data64))
            except (trio.EndOfChannel, trio.BrokenResourceError):
                return

    with served(application) as address:
        options = ["--operations", "--connections", "1", "--seconds", "0.1", "--json"]
        said = netctl("framed", "bench", address, *options)
    assert json.loads(said.stdout)["messages"] > 0


def test_quantiles_are_right_to_a_percent():
    times = Times()
    for milliseconds in range(1, 1001):
        times.add(milliseconds / 1000, 1)
    assert times.quantile(0.5) == pytest.approx(0.5, rel=0.01)
    assert times.quantile(0.99) == pytest.approx(0.99, rel=0.01)
    assert (times.quantile(1.0), times.longest) == (1.0, 1.0)
    assert Times().quantile(0.5) is None


# --- how things look --------------------------------------------------------------------------------------------------


def test_data_on_a_line():
    assert shown("a\nb\x1b") == r"a\nb\x1b"
    assert shown(b"text") == "text"
    assert shown(b"\xff") == "0xff"
    assert shown({"a": [1, "é"]}) == '{"a": [1, "é"]}'
    assert shown("x" * 5000).endswith("x... (5000 characters)")
    assert shown(b"\xff" * 5000).endswith("ff... (5000 bytes)")
    assert shown({"bytes": b"\xff"}) == '{"bytes": "/w=="}'


def test_items_as_json_and_as_lines():
    assert item_json(Gap(b"\xff", "e", 3)) == {"event": "gap", "channel": r"\xff", "epoch": "e", "missed": 3}
    assert item_json(Direct("s-1", None)) == {"event": "direct", "from": "s-1", "data": None}
    assert item_json(Message(channel64=b"\xff", data64=b"\x00")) == {
        "event": "message",
        "channel": r"\xff",
        "data64": "AA==",
    }
    assert item_json({"plain": b"\xff"}) == {"event": "payload", "data": {"plain": "/w=="}}
    assert lines_of(item_line(Error(code="rate", message="cannot: slow\x1b"))) == [r"refused (rate): cannot: slow\x1b"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(count, text):
    assert size(count) == text


def test_places_and_tags():
    assert place_of("192.0.2.1") == ("192.0.2.1", 0)
    assert place_of("192.0.2.1:99") == ("192.0.2.1", 99)
    assert place_of("2001:db8::1") == ("2001:db8::1", 0)
    assert place_of("[2001:db8::1]:99") == ("2001:db8::1", 99)
    assert place_of("[2001:db8::1]") == ("2001:db8::1", 0)
    assert place_of(":99") == (None, 99)
    assert tags_of(("a=b", "c=d=e")) == {"a": "b", "c": "d=e"}
    assert plain_value(b"ff", "cbor", "hex") == b"\xff"
