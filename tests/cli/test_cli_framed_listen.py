"""`netctl framed listen`: what comes, from where on, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from functools import partial

import trio
import trio.testing

from netd.cli.talk import listen
from netd.client import FramedClient
from netd.wire import messages
from netd.wire.messages import AskHistory, Direct, History, Joined, Message, Ping, Pong, Position
from tests.cli.conversation import lines_of, served
from tests.support.framedpeer import PATIENCE, FramedPeer


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
