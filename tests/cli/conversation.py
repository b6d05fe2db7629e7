"""What tests of netctl's clients share: what services say of themselves, a framed peer that does as a script says, the
conversation that `connect` can have with a hub, a terminal to have it on, and output as tests compare it.
"""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import subprocess
import sys
import time

import trio

from netd.wire import messages
from netd.wire.messages import (
    AskHistory,
    Binary,
    BinaryEvent,
    Broadcast,
    Client,
    Clients,
    Error,
    History,
    ListClients,
    Message,
    Ok,
    Ping,
    Pong,
    Publish,
    SendDirect,
    Subscribe,
    Text,
    TextEvent,
    Unsubscribe,
)
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
    """Lines without what lines them up."""
    return [" ".join(line.split()) for line in text.splitlines()]


def completed(api, *typed: str) -> list[str]:
    """What a shell is offered for the last word of a line."""
    from click.shell_completion import ShellComplete

    from netd.cli.root import root

    arguments = ["--socket", str(api.socket), *typed[:-1]]
    found = ShellComplete(root, {}, "netctl", "_NETCTL_COMPLETE").get_completions(arguments, typed[-1])
    return [one.value for one in found]


def lines_of(text: str) -> list[str]:
    """Lines without the time at their beginning."""
    return [re.sub(r"^\d\d:\d\d:\d\d\.\d{3}  ", "", line) for line in text.splitlines()]


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


class Terminal:
    """netctl on a terminal of its own: what is typed, and what can be read there."""

    def __init__(self, *arguments: str, term: str = "xterm") -> None:
        self.written = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._screen, inner = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": term}
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def read_until(self, pattern: str) -> None:
        """Until what is written, colours aside, has the pattern."""
        while not re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.written)):
            assert select.select([self._screen], [], [], PATIENCE)[0], f"no {pattern!r} in {self.written!r}"
            self.written += self._decoder.decode(os.read(self._screen, 65536))

    def end(self) -> int:
        """Its exit code, once it has ended. Nothing of ours went wrong."""
        code = self.process.wait(PATIENCE)
        os.close(self._screen)
        assert "Traceback" not in self.written
        return code
