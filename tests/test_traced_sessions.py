"""Any framed session's path and TCP state, asked for while it talks: TLS or not, and nothing of it is disturbed.

The clients are programs of their own at the far end of a lab's routers, and check every byte that comes back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.lab import Lab, why_not
from tests.support.process import PATIENCE, ROOT, NetdProcess

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CONFIG = """
[trace]
enabled = false
[[framed.listen]]
address = "0.0.0.0:9000"
[[framed.listen]]
address = "0.0.0.0:9001"
tls = {{ certificate = "{directory}/cert.pem", key = "{directory}/key.pem" }}
[[framed.listen]]
address = "0.0.0.0:9002"
mode = "echo"
[[framed.listen]]
address = "0.0.0.0:9003"
mode = "echo"
tls = {{ certificate = "{directory}/cert.pem", key = "{directory}/key.pem" }}
"""

TALKER = """
import random, ssl, sys, trio
from netd.client.framed import FramedClient

async def main(address, mode, secure):
    context = None
    if secure == "tls":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    words = random.Random(7)
    async with FramedClient(address, name="talker", tls=context) as client:
        print("ready", flush=True)
        wanted = None
        async def hear():
            nonlocal wanted
            for _ in range(10_000):
                text = words.randbytes(words.randrange(64, 700))
                if mode == "echo":
                    await client.send(text)
                    back = await client.receive()
                else:
                    await client.binary(text)
                    back = (await client.receive()).data
                assert back == text, (text, back)
                await trio.sleep(0.002)
        async with trio.open_nursery() as nursery:
            if mode != "echo":
                await client.hello()
            nursery.start_soon(hear)
            await trio.to_thread.run_sync(sys.stdin.readline)
            nursery.cancel_scope.cancel()
        counters = client.telemetry().counters
        print(counters.connections, counters.messages_in, flush=True)

trio.run(main, *sys.argv[1:])
"""
"""Sends bytes and wants the same back, again and again, until it is told to stop; says how often it had to connect."""


@pytest.fixture
def certificate(tmp_path: Path) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("port", "mode", "secure"),
    [(9000, "operations", "plain"), (9001, "operations", "tls"), (9002, "echo", "plain"), (9003, "echo", "tls")],
)
async def test_a_talking_session_is_traced_and_no_byte_of_it_is_lost(tmp_path, certificate, port, mode, secure):
    with Lab(routers=4) as lab:
        async with NetdProcess(tmp_path, CONFIG.format(directory=tmp_path), inside=lab.server) as netd:
            command = [sys.executable, "-c", TALKER, f"{lab.server_address()}:{port}", mode, secure]
            talker = lab.client.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
            try:
                assert await trio.to_thread.run_sync(talker.stdout.readline) == b"ready\n"
                before = await polls(netd)
                session = await the_session(netd)
                shown = [json.loads(await netctl(netd, "--json", "sessions", "show", session, "--path", "--tcp"))]
                shown.append(json.loads(await netctl(netd, "--json", "sessions", "show", session[:8], "--path")))
                told, _ = await trio.to_thread.run_sync(talker.communicate, b"\n")
                rounds = await polls(netd) - before
            finally:
                talker.kill()
                talker.wait()

    for one in shown:
        assert [hop["router"] for hop in one["path"]["hops"]] == lab.hops()
        assert one["path"]["reason"] == "destination"
        assert one["path"]["dest_ttl"] == 5
    tcp = shown[0]["tcp"]
    assert tcp["rtt_us"] > 0
    assert tcp["bytes_acked"] > 0
    connections, answers = map(int, told.split())
    assert connections == 1
    assert answers > 20
    # a message each way is a round or two; an error queue that nobody empties would be thousands in a moment
    assert rounds < 20 * answers + 2000


async def polls(netd: NetdProcess) -> float:
    async with netd.client() as control:
        text = await control.metrics()
    lines = dict(line.split(" ") for line in text.splitlines() if line.startswith("netd_reactor"))
    return float(lines["netd_reactor_batches_total"]) + float(lines["netd_reactor_waits_total"])


async def the_session(netd: NetdProcess) -> str:
    with trio.fail_after(PATIENCE):
        async with netd.client() as control:
            while True:
                if found := (await control.sessions())["sessions"]:
                    return str(found[0]["id"])
                await trio.sleep(0.02)


async def netctl(netd: NetdProcess, *arguments: str) -> str:
    command = [sys.executable, "-m", "netd.cli.main", "--socket", str(netd.socket), *arguments]
    with trio.fail_after(PATIENCE):
        return (await trio.run_process(command, capture_stdout=True, cwd=ROOT)).stdout.decode()
