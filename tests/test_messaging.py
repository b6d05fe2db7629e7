"""The whole daemon as people use it: programs in processes of their own and netctl talk through one hub.

What stands between them is killed, stopped, started and reloaded while they do.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from netd.client.framed import FramedClient
from netd.errors import ReloadRefused, RequestFailed
from tests.support.process import PATIENCE, ROOT, NetdProcess, Systemd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from netd.client import ControlClient

FRAMED = """
[trace]
enabled = false
[[framed.listen]]
address = "127.0.0.1:0"
"""
BROKER = """
[[broker.listen]]
address = "127.0.0.1:0"
"""
PUBLIC = """
[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
presence = "anyone"
history = "anyone"
history_size = 100
[hub]
direct = "anyone"
"""

LISTENER = """
import json, sys, trio
from netd.client.framed import FramedClient, Gap

async def main(address):
    async with FramedClient(address, name="listener", tags={"site": "lab"}) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directs, client)
            async for item in await client.subscribe("public:room"):
                if isinstance(item, Gap):
                    print(json.dumps({"gap": item.channel}), flush=True)
                else:
                    print(json.dumps({"said": item.data, "offset": item.offset}), flush=True)

async def directs(client):
    async for event in client:
        print(json.dumps({"direct": event.data}), flush=True)

trio.run(main, sys.argv[1])
"""
"""Prints what it hears, one JSON object a line, until it is ended."""

SPEAKER = """
import sys, trio
from netd.client.framed import FramedClient

async def main(address):
    async with FramedClient(address, name="speaker") as client:
        await client.hello()
        print("ready", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            to, _, text = line.strip().partition(" ")
            send = client.publish if to.startswith("public:") else client.direct
            try:
                print("reached", await send(to, text), flush=True)
            except Exception as error:
                print("failed", error, flush=True)

trio.run(main, sys.argv[1])
"""
"""Sends each line "TO TEXT" that it is given."""


class Program:
    """A Python program at the other end of two pipes."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._unread = b""

    async def say(self, line: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(line.encode() + b"\n")

    async def line(self) -> str:
        assert self.process.stdout is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in self._unread:
                data = await self.process.stdout.receive_some()
                assert data, "the program ended"
                self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    async def heard(self) -> dict[str, object]:
        return json.loads(await self.line())

    async def silent(self) -> bool:
        """Nothing was printed, as far as one can tell by asking twice with a round trip of the machine between."""
        with trio.move_on_after(0.2):
            await self.line()
            return False
        return True


@asynccontextmanager
async def program(text: str, *arguments: str) -> AsyncIterator[Program]:
    async with trio.open_nursery() as nursery:
        command = [sys.executable, "-u", "-c", text, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = await nursery.start(partial(trio.run_process, command, cwd=ROOT, check=False, **pipes))
        try:
            yield Program(process)
        finally:
            process.kill()


async def netctl(netd: NetdProcess, *arguments: str) -> str:
    """What `netctl` prints; it has to succeed."""
    command = [sys.executable, "-m", "netd.cli.main", "--socket", str(netd.socket), *arguments]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
    return done.stdout.decode()


async def address_of(netd: NetdProcess, service: str) -> str:
    async with netd.client() as control:
        units = {unit["name"]: unit for unit in await control.services()}
    return str(units[service]["addresses"][0])


async def framed_address(netd: NetdProcess) -> str:
    return await address_of(netd, "framed")


@pytest.fixture
async def life(tmp_path):
    """A service manager that outlives the daemon, and with it the listener's port."""
    systemd = Systemd(tmp_path)
    yield lambda toml=FRAMED + PUBLIC: NetdProcess(tmp_path, toml, systemd=systemd)
    systemd.close()


async def test_programs_and_netctl_talk_through_restarts_and_reloads(life):
    async with life() as netd:
        address = await framed_address(netd)
        async with program(LISTENER, address) as listener, program(SPEAKER, address) as speaker:
            assert await speaker.line() == "ready"
            await until_there(netd, "listener")

            await speaker.say("public:room one")
            assert await listener.heard() == {"said": "one", "offset": 1}
            assert (await speaker.line()).startswith("reached")
            await speaker.say("name:listener psst")
            assert await listener.heard() == {"direct": "psst"}
            assert await speaker.line() == "reached 1"

            await netctl(netd, "framed", "send", address, "--channel", "public:room", "two")
            assert await listener.heard() == {"said": "two", "offset": 2}
            await netctl(netd, "channels", "publish", "public:room", "three")
            assert await listener.heard() == {"said": "three", "offset": 3}
            await netctl(netd, "sessions", "send", "tag:site=lab", "to the lab")
            assert await listener.heard() == {"direct": "to the lab"}
            shown = json.loads(await netctl(netd, "--json", "channels", "history", "public:room"))
            assert [message["data"] for message in shown["messages"]] == ["one", "two", "three"]

            # a reload of limits and rules disturbs nobody
            before = await sessions(netd)
            netd.config.write_text(FRAMED + "[framed]\nmax_frame = 100_000\n" + PUBLIC + "max_subscriptions = 5\n")
            await netctl(netd, "reload")
            assert await sessions(netd) == before
            await speaker.say("public:room four")
            assert await listener.heard() == {"said": "four", "offset": 4}
            assert (await speaker.line()).startswith("reached")

            # a stop and a start: both come back, and the history goes on where it was
            netd.signal(signal.SIGTERM)
            assert await netd.exited() == 0
            async with life() as netd:
                await until_there(netd, "listener")
                await until_there(netd, "speaker")
                await netctl(netd, "channels", "publish", "public:room", "five")
                assert await listener.heard() == {"said": "five", "offset": 5}
                shown = json.loads(await netctl(netd, "--json", "channels", "history", "public:room"))
                assert [message["data"] for message in shown["messages"]] == ["one", "two", "three", "four", "five"]


async def test_the_program_of_the_readme(life):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [example] = [text for text in examples if "BrokerClient" in text]
    async with life(FRAMED + BROKER + PUBLIC) as netd:
        address = await framed_address(netd)
        example = example.replace("127.0.0.1:3000", await address_of(netd, "broker"))
        async with program(example) as alpha, FramedClient(address) as client:
            replies = await client.subscribe("public:replies")
            await until_there(netd, "alpha")
            await netctl(netd, "framed", "send", address, "--channel", "public:room", "hello")
            assert await alpha.line() == "hello"
            assert (await anext(replies)).data == "alpha heard 'hello'"


async def test_what_was_said_while_a_client_was_away_reaches_it_once(life):
    async with life() as netd:
        address = await framed_address(netd)
        async with program(LISTENER, address) as listener:
            await until_there(netd, "listener")
            async with FramedClient(address) as client:
                for number in range(3):
                    await client.publish("public:room", number)
                assert [await listener.heard() for _ in range(3)] == [
                    {"said": number, "offset": number + 1} for number in range(3)
                ]
                listener.process.send_signal(signal.SIGSTOP)
                await client.hello()
                async with netd.client() as control:
                    await control.session_kick("name:listener", code=1001)
                for number in range(3, 10):
                    await client.publish("public:room", number)
            listener.process.send_signal(signal.SIGCONT)
            assert [await listener.heard() for _ in range(7)] == [
                {"said": number, "offset": number + 1} for number in range(3, 10)
            ]


async def test_after_a_crash_a_client_is_told_that_it_may_have_missed_something(life):
    async with life() as netd:
        address = await framed_address(netd)
        async with program(LISTENER, address) as listener:
            await until_there(netd, "listener")
            await netctl(netd, "channels", "publish", "public:room", "before")
            assert await listener.heard() == {"said": "before", "offset": 1}
            netd.signal(signal.SIGKILL)
            await netd.exited()
            async with life() as netd:
                await until_there(netd, "listener")
                assert await listener.heard() == {"gap": "public:room"}
                await netctl(netd, "channels", "publish", "public:room", "after")
                assert await listener.heard() == {"said": "after", "offset": 1}


async def test_a_start_that_fails_costs_no_history(life):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = FRAMED + f'[[framed.listen]]\naddress = "127.0.0.1:{taken.getsockname()[1]}"\n' + PUBLIC
        async with life() as netd, netd.client() as control:
            await control.channel_publish("public:room", "kept")
            netd.signal(signal.SIGTERM)
            assert await netd.exited() == 0
        failing = life(busy)
        failing.start()
        assert await failing.exited() == 69
    async with life() as netd, netd.client() as control:
        assert [message["data"] for message in (await control.channel_history("public:room"))["messages"]] == ["kept"]


async def test_a_reload_with_a_token_file_that_is_not_there_is_refused(life, tmp_path):
    token = '[[hub.token]]\nname = "press"\nfile = "{}"\npublish = ["news:*"]\n'
    news = '[[hub.namespace]]\nname = "news"\n'
    secret = tmp_path / "secret"
    secret.write_text("a secret of some length\n")
    async with life(FRAMED + news + token.format(secret)) as netd, netd.client() as control:
        async with FramedClient(await framed_address(netd), token="a secret of some length") as client:
            assert await client.publish("news:today", "allowed") is not None
            netd.config.write_text(FRAMED + news + token.format(tmp_path / "nowhere"))
            with pytest.raises(RequestFailed, match=r"press.*nowhere.*no such file") as refused:
                await control.reload(wait=10)
            assert refused.value.kind in ("config", ReloadRefused.kind)
            assert await client.publish("news:today", "still allowed") is not None

            # a secret that is too short is found as late as it is read, and yet nothing else is in force either
            short = tmp_path / "short"
            short.write_text("short\n")
            netd.config.write_text(FRAMED + news + token.format(short) + "[hub]\nmax_sessions = 1\n")
            with pytest.raises(RequestFailed, match="fewer than 16 characters"):
                await control.reload(wait=10)
            assert (await control.config())["values"]["hub"]["max_sessions"] == 100_000
            async with FramedClient(await framed_address(netd)) as another:
                assert await another.ping() >= 0

            # the secret changes in place: whoever showed the old one is anonymous from now on, and still connected
            netd.config.write_text(FRAMED + news + token.format(secret))
            secret.write_text("another secret of some length\n")
            await control.reload(wait=10)
            with pytest.raises(RequestFailed, match="token 'press': this configuration takes it no more"):
                await client.publish("news:today", "no more")
        async with FramedClient(await framed_address(netd), token="another secret of some length") as client:
            assert await client.publish("news:today", "allowed again") is not None


async def test_without_descriptors_accepting_pauses_and_recovers(life):
    """Clients that are there go on; health says what is wrong while it is; those that wait are served afterwards."""
    limited = FRAMED + PUBLIC + "[framed]\nmax_connections = 1000\n"
    async with life(limited) as netd, netd.client() as control:
        address = await framed_address(netd)
        async with FramedClient(address) as client:
            await client.ping()
            in_use = len(os.listdir(f"/proc/{netd.pid}/fd"))
            resource.prlimit(netd.pid, resource.RLIMIT_NOFILE, (in_use + 8, in_use + 8))
            host, _, port = address.rpartition(":")
            crowd = [socket.create_connection((host, int(port))) for _ in range(30)]
            try:
                await until_warned(control, "framed.accept")
                assert await client.ping() >= 0
            finally:
                for sock in crowd:
                    sock.close()
            await until_warned(control, "framed.accept", gone=True)
            async with FramedClient(address) as late:
                assert await late.ping() >= 0


async def sessions(netd: NetdProcess) -> list[str]:
    return sorted(one["id"] for one in json.loads(await netctl(netd, "--json", "sessions", "list"))["sessions"])


async def until_there(netd: NetdProcess, name: str) -> None:
    """Until a session of that name hears its channel, or is at least greeted where it only speaks."""
    async with netd.client() as control:
        with trio.fail_after(PATIENCE):
            while True:
                found = (await control.sessions(name=name))["sessions"]
                if found and (name == "speaker" or found[0]["channels"]):
                    return
                await trio.sleep(0.02)


async def until_warned(control: ControlClient, code: str, *, gone: bool = False) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            warnings = (await control.health())["warnings"]
            if any(warning["code"] == code for warning in warnings) != gone:
                return
            await trio.sleep(0.05)
