"""Tracing without CAP_NET_RAW: other flows, the same routers."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from netd.net.paths.path import TraceOptions
from tests.support.accounts import why_not_nobody
from tests.support.carriers import PlainCarrier
from tests.support.lab import Lab, why_no_rules, why_not
from tests.support.tracing import addresses, tracer_in

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_nft = pytest.mark.skipif(why_no_rules() is not None, reason=str(why_no_rules()))

METHODS = pytest.mark.parametrize("method", ["udp", "syn"])
BOTH = pytest.mark.parametrize("version", [4, 6])
ROOT = Path(__file__).parents[2]


def unprivileged(lab):
    """Opens sockets as a process without CAP_NET_RAW would."""

    def open_socket(family: int, kind: int, protocol: int) -> socket.socket:
        if family == socket.AF_PACKET or kind & 0xF == socket.SOCK_RAW:
            raise PermissionError(1, "Operation not permitted")
        return lab.server.socket(family, kind, protocol)

    return open_socket


@pytest.fixture(scope="module")
def lab():
    with Lab(5) as lab:
        yield lab


async def trace(lab, version=4, **options):
    server, client, syn = lab.connect(version)
    with server, client:
        async with tracer_in(lab, open_socket=unprivileged(lab)) as tracer:
            assert tracer.methods == ("udp", "syn")
            assert "CAP_NET_RAW" in tracer.unprivileged_reason
            return await tracer.trace(PlainCarrier(server, syn), TraceOptions(**options))


@METHODS
@BOTH
async def test_the_whole_path(lab, version, method):
    path = await trace(lab, version, method=method)
    assert (path.method, path.reason, path.dest_ttl) == (method, "destination", 6)
    assert addresses(path) == lab.hops(version)
    assert [hop.reply_ttl for hop in path.hops] == [64 - distance for distance in range(5)]
    assert path.probes == 6


async def test_auto_falls_back_to_udp(lab):
    assert (await trace(lab, method="auto")).method == "udp"


async def test_tcp_asked_for_and_not_possible(lab):
    path = await trace(lab, method="tcp")
    assert (path.reason, path.hops) == ("unprivileged", ())


@METHODS
async def test_a_privileged_tracer_does_it_when_asked_to(lab, method):
    server, client, syn = lab.connect()
    with server, client:
        async with tracer_in(lab) as tracer:
            assert tracer.methods == ("tcp", "udp", "syn")
            assert tracer.unprivileged_reason is None
            path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(method=method))
    assert (path.method, addresses(path)) == (method, lab.hops())


@METHODS
@BOTH
@needs_nft
async def test_silence_and_delay(method, version):
    with Lab(4, silent={2}, delay=0.002) as lab:
        path = await trace(lab, version, method=method)
        expected = [lab.address(4, "right", version), lab.address(3, "right", version), None]
        assert addresses(path) == [*expected, lab.address(1, "right", version)]
    assert (path.reason, path.dest_ttl) == ("destination", 5)
    assert path.dest_rtt_ms >= 20


@METHODS
@needs_nft
async def test_a_firewall_that_refuses_is_no_destination(method):
    """An unreachable from a router on the way is its own answer, not the client's."""
    with Lab(4) as lab:
        lab.nodes[2].run(
            ["nft", "-f", "-"],
            input="""
            table inet f {
              chain c {
                type filter hook forward priority 0;
                iifname "right" ct state new reject with icmpx admin-prohibited
              }
            }
            """,
        )
        server, client, syn = lab.connect()
        with server, client:
            async with tracer_in(lab, open_socket=unprivileged(lab)) as tracer:
                options = TraceOptions(method=method, timeout=0.3)
                path = await tracer.trace(PlainCarrier(server, syn), options)
        assert path.dest_ttl is None
        assert addresses(path)[:3] == [*lab.hops()[:2], lab.address(2, "right")]
        assert path.hops[2].kind == "unreach" or path.hops[2].addr == lab.hops()[2]
        assert any(hop.kind == "unreach" and hop.unreach_code == 13 for hop in path.hops)


_CHILD = """
import ctypes, json, os, socket, sys
import trio
sys.path.insert(0, os.getcwd())
from netd.net.paths.path import TraceOptions
from netd.net.paths.tracer import Tracer
from tests.support.carriers import PlainCarrier

# every capability goes with the user
os.setgroups([]); os.setgid(65534); os.setuid(65534)

async def main():
    server = socket.socket(fileno=int(sys.argv[1]))
    tracer = Tracer()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: tracer.run(task_status=task_status))
        found = []
        for method in ("auto", "syn"):
            path = await tracer.trace(PlainCarrier(server), TraceOptions(method=method))
            found.append([path.method, path.reason, [hop.addr for hop in path.hops]])
        print(json.dumps([tracer.methods, tracer.unprivileged_reason, found]))
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.skipif(why_not_nobody() is not None, reason=str(why_not_nobody()))
async def test_a_process_that_really_has_no_capability(lab, tmp_path):
    server, client, _ = lab.connect()
    with server, client:
        script = tmp_path / "child.py"
        script.write_text(_CHILD)
        done = lab.server.run([sys.executable, str(script), str(server.fileno())], pass_fds=[server.fileno()], cwd=ROOT)
    methods, reason, found = json.loads(done.stdout.splitlines()[-1])
    assert methods == ["udp", "syn"]
    assert "CAP_NET_RAW" in reason
    assert found == [["udp", "destination", lab.hops()], ["syn", "destination", lab.hops()]]
