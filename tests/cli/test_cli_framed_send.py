"""`netctl framed send`: plain payloads and operations, and what a peer says that takes neither."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from netd.wire import handshake, messages
from netd.wire.messages import Error, Ok, Ping, Publish, SendDirect
from tests.cli.conversation import lines_of, served
from tests.support.framedpeer import PATIENCE


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
