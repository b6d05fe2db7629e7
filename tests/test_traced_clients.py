"""The whole daemon in a lab: WebSocket clients at the far end of a chain of routers, and what they and operators see.

netd runs as a process of its own inside the server's namespace; its control socket is a path, so this side reads it
without being there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.lab import Lab, why_no_rules, why_not
from tests.support.process import PATIENCE, ROOT, NetdProcess
from tests.support.websocket import websocket

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_nft = pytest.mark.skipif(why_no_rules() is not None, reason=str(why_no_rules()))

LISTEN = """
[[trace.listen]]
address = "0.0.0.0:8080"
[[trace.listen]]
address = "[::]:8080"
"""
OPEN = "[trace]\nreveal_private = true\n" + LISTEN

# 200 clients in a process of their own, each from an address of its own, all at once; prints what each was told
CROWD = """
import json, socket, sys, trio
from tests.support.websocket import websocket

async def one(source, told):
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    await sock.bind((source, 0))
    await sock.connect((server, 8080))
    async with websocket(f"ws://{server}:8080/", stream=trio.SocketStream(sock)) as ws:
        messages = []
        while not messages or messages[-1]["type"] != "clientDone":
            messages.append(json.loads(await ws.get_message()))
        told.append(messages[-1])

async def main(sources):
    told = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(one, source, told)
    print(json.dumps(told))

server, *sources = sys.argv[1:]
trio.run(main, sources)
"""


class LabDaemon:
    def __init__(self, lab: Lab, netd: NetdProcess) -> None:
        self.lab = lab
        self.netd = netd

    async def client(self, version: int = 4) -> list[dict]:
        """Connect a WebSocket client from the far end; what it was told until its trace was over."""
        sock: socket.socket = self.lab.client.socket(10 if version == 6 else 2)
        sock.setblocking(False)
        stream = trio.socket.from_stdlib_socket(sock)
        server = self.lab.server_address(version)
        with trio.fail_after(PATIENCE):
            await stream.connect((server, 8080))
            host = f"[{server}]" if version == 6 else server
            async with websocket(f"ws://{host}:8080/", stream=trio.SocketStream(stream)) as ws:
                messages: list[dict] = []
                while not messages or messages[-1]["type"] != "clientDone":
                    messages.append(json.loads(await ws.get_message()))
        return messages


@asynccontextmanager
async def daemon_in(lab: Lab, directory, toml: str, *, wrap=()) -> AsyncIterator[LabDaemon]:
    async with NetdProcess(directory, toml, inside=lab.server, wrap=wrap) as netd:
        yield LabDaemon(lab, netd)


def path_of(messages: list[dict]) -> list[str | None]:
    hops = sorted((message for message in messages if message["type"] == "hop"), key=lambda hop: hop["ttl"])
    return [hop["ip"] for hop in hops]


@pytest.mark.parametrize("version", [4, 6])
async def test_a_client_learns_its_path_and_so_do_the_operators(tmp_path, version):
    with Lab(routers=5) as lab:
        async with daemon_in(lab, tmp_path, OPEN) as house:
            messages = await house.client(version)
            async with house.netd.client() as control:
                [trace] = await control.traces()
                record = await control.trace_record(trace["id"])
                events = [event.data for event in await control.recent_events() if event.kind == "hop"]
                health = await control.health()

        assert messages[0]["type"] == "connected"
        assert path_of(messages) == lab.hops(version)
        done = messages[-1]
        assert (done["method"], done["reason"], done["dest_ttl"]) == ("tcp", "destination", 6)
        assert done["probes"] <= 8
        assert 0 < done["path_rtt_ms"] < 1000
        assert [hop["router"] for hop in record["hops"]] == lab.hops(version)
        events.sort(key=lambda event: event["ttl"])  # they come as they are known
        assert [event["router"] for event in events] == lab.hops(version)
        assert health["warnings"] == []


async def test_private_hops_are_for_operators_only_unless_revealed(tmp_path):
    with Lab(routers=3) as lab:
        async with daemon_in(lab, tmp_path, LISTEN) as house:
            messages = await house.client()
            async with house.netd.client() as control:
                [trace] = await control.traces()
                record = await control.trace_record(trace["id"])
        assert path_of(messages) == [None, None, None]
        assert "10.77." not in json.dumps([message for message in messages if message["type"] == "hop"])
        assert [hop["router"] for hop in record["hops"]] == lab.hops()


@needs_nft
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: nft in namespaces")
async def test_nat_silence_and_a_firewall_on_one_path(tmp_path):
    with Lab(routers=7, silent={3}, nat={2}, firewall={5}) as lab:
        async with daemon_in(lab, tmp_path, OPEN) as house:
            messages = await house.client()
        found = {hop["ttl"]: hop for hop in messages if hop["type"] == "hop"}
        assert messages[-1]["dest_ttl"] == 8
        assert found[5]["ip"] is None
        # behind the NAT (hops 6 and 7) routers answer from its outer address; in front of it from their own
        assert [found[ttl]["ip"] for ttl in (1, 2, 3, 4)] == lab.hops()[:4]
        assert found[7].get("nat") is True
        assert lab.invalid_drops(5) == 0


@pytest.mark.parametrize("one_prefix", [True, False], ids=["one prefix", "200 prefixes"])
async def test_200_clients_at_once_through_ten_routers_with_stock_icmp_limits(tmp_path, one_prefix):
    toml = "[trace]\nreveal_private = true\nclients_per_address = 200\n" + LISTEN
    with Lab(routers=10, stock_limits="all") as lab:
        async with daemon_in(lab, tmp_path, toml):
            sources = [lab.crowd_address(number, one_prefix=one_prefix) for number in range(200)]
            command = [sys.executable, "-c", CROWD, lab.server_address(), *sources]
            crowd = lab.client.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
            said, complaints = await trio.to_thread.run_sync(crowd.communicate)
            assert crowd.returncode == 0, complaints.decode()
        told = json.loads(said)

    assert len(told) == 200
    assert {done["reason"] for done in told} == {"destination"}
    assert {done["dest_ttl"] for done in told} == {11}
    complete = [done for done in told if [hop["ip"] for hop in done["hops"]] == lab.hops()]
    assert len(complete) == 200


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take a capability away from the daemon")
async def test_without_the_capability_it_traces_beside_and_says_what_to_grant(tmp_path):
    with Lab(routers=3) as lab:
        drop = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
        async with daemon_in(lab, tmp_path, OPEN, wrap=drop) as house:
            messages = await house.client()
            async with house.netd.client() as control:
                [warning] = (await control.health())["warnings"]
        assert messages[-1]["method"] in ("udp", "syn")
        assert path_of(messages) == lab.hops()
        assert warning["code"] == "trace.unprivileged"
        assert "CAP_NET_RAW" in warning["advice"]


async def test_netctl_trace_run_traces_a_connection_of_its_own(tmp_path):
    with Lab(routers=4) as lab:
        async with daemon_in(lab, tmp_path, OPEN) as house:
            with lab.client.socket() as target:
                target.bind((lab.client_address(), 80))
                target.listen(1)
                environ = {**os.environ, "NETD_CONTROL__SOCKET": str(house.netd.socket)}
                netctl = [sys.executable, "-m", "netd.cli.main"]
                command = [*netctl, "trace", "run", f"{lab.client_address()}:80", "--json"]
                result = await trio.run_process(command, env=environ, capture_stdout=True)
        events = [json.loads(line) for line in result.stdout.splitlines()]
        hops = sorted((event for event in events if event["event"] == "hop"), key=lambda event: event["ttl"])
        assert [hop["router"] for hop in hops] == lab.hops()
