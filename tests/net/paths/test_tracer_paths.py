"""The path a trace finds, in each situation the lab can make. Real kernels, real routers; needs root."""

from __future__ import annotations

import socket

import pytest
import trio

from netd.net.paths.path import TraceOptions
from tests.support.carriers import MuteCarrier, PlainCarrier
from tests.support.lab import Lab, why_no_rules, why_not
from tests.support.tracing import addresses, tracer_in

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
needs_nft = pytest.mark.skipif(why_no_rules() is not None, reason=str(why_no_rules()))

BOTH = pytest.mark.parametrize("version", [4, 6])


async def trace(lab, version=4, *, options=TraceOptions(), syn=True, on_hop=None, **connect):  # noqa: B008
    server, client, saved = lab.connect(version, **connect)
    with server, client:
        async with tracer_in(lab) as tracer:
            return await tracer.trace(PlainCarrier(server, saved if syn else b""), options, on_hop)


@pytest.fixture(scope="module")
def plain():
    with Lab(7) as lab:
        yield lab


@BOTH
async def test_a_plain_chain(plain, version):
    heard = []
    path = await trace(plain, version, on_hop=heard.append)
    assert (path.reason, path.method, path.dest_ttl, path.est_ttl) == ("destination", "tcp", 8, 8)
    assert addresses(path) == plain.hops(version)
    assert sorted(heard, key=lambda hop: hop.ttl) == list(path.hops)
    assert path.probes == 8
    assert all(hop.kind == "ttl" and not hop.nat and hop.attempts == 1 for hop in path.hops)
    assert [hop.reply_ttl for hop in path.hops] == [64 - distance for distance in range(7)]
    assert path.dest_rtt_ms is not None
    assert path.tcp_rtt_ms is not None


async def test_one_router_only():
    with Lab(1) as lab:
        path = await trace(lab)
    assert (path.dest_ttl, addresses(path)) == (2, lab.hops())


@pytest.mark.parametrize("version", [4, 6])
async def test_no_router_at_all(plain, version):
    """Client and server on one machine: the peer is one hop away."""
    family, host = (socket.AF_INET, "127.0.0.1") if version == 4 else (socket.AF_INET6, "::1")
    with plain.server.socket(family) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, 27, 1)
        listener.bind((host, 0))
        listener.listen(1)
        client = plain.server.socket(family)
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
    with server, client:
        async with tracer_in(plain) as tracer:
            path = await tracer.trace(PlainCarrier(server, server.getsockopt(socket.IPPROTO_TCP, 28, 128)))
    assert (path.reason, path.dest_ttl, path.hops) == ("destination", 1, ())


async def test_an_ipv4_client_of_a_dual_stack_listener(plain):
    with plain.server.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.IPPROTO_TCP, 27, 1)
        listener.bind(("::", 0))
        listener.listen(1)
        client = plain.client.socket(socket.AF_INET)
        client.connect((plain.server_address(4), listener.getsockname()[1]))
        server, peer = listener.accept()
    assert peer[0].startswith("::ffff:")
    with server, client:
        async with tracer_in(plain) as tracer:
            path = await tracer.trace(PlainCarrier(server, server.getsockopt(socket.IPPROTO_TCP, 28, 128)))
    assert (path.reason, addresses(path), path.est_ttl) == ("destination", plain.hops(4), 8)


@BOTH
async def test_without_timestamps_the_options_are_shorter(plain, version):
    plain.client.sysctl({"net.ipv4.tcp_timestamps": 0})
    try:
        path = await trace(plain, version)
    finally:
        plain.client.sysctl({"net.ipv4.tcp_timestamps": 1})
    assert (path.reason, addresses(path)) == ("destination", plain.hops(version))


@BOTH
async def test_the_distance_unknown_beforehand(plain, version):
    path = await trace(plain, version, syn=False)
    assert (path.reason, addresses(path), path.est_ttl) == ("destination", plain.hops(version), 8)


@pytest.mark.parametrize("sysctl", ["tcp_sack", "tcp_dsack"])
@BOTH
async def test_a_client_that_does_not_say_what_it_saw_twice(plain, version, sysctl):
    plain.client.sysctl({f"net.ipv4.{sysctl}": 0})
    try:
        path = await trace(plain, version)
    finally:
        plain.client.sysctl({f"net.ipv4.{sysctl}": 1})
    assert (path.reason, path.dest_ttl, addresses(path)) == ("destination", 8, plain.hops(version))
    assert path.probes <= 8 + (2 if sysctl == "tcp_dsack" else 1)
    assert path.dest_rtt_ms is not None


async def test_a_session_without_a_message(plain):
    server, client, syn = plain.connect()
    with server, client:
        async with tracer_in(plain) as tracer:
            path = await tracer.trace(MuteCarrier(server, syn))
    assert (path.reason, path.hops, path.probes) == ("no-carrier", (), 0)


async def test_max_hops_ends_the_path(plain):
    path = await trace(plain, options=TraceOptions(max_hops=4))
    assert (path.reason, path.dest_ttl, addresses(path)) == ("max-hops", None, plain.hops()[:4])


@BOTH
@needs_nft
async def test_silent_routers(version):
    with Lab(6, silent={2, 5}) as lab:
        path = await trace(lab, version)
        expected = [None if number in (2, 5) else lab.address(number, "right", version) for number in range(6, 0, -1)]
    assert (path.reason, path.dest_ttl, addresses(path)) == ("destination", 7, expected)
    assert [(hop.ttl, hop.kind, hop.attempts, hop.limited) for hop in path.hops if hop.addr is None] == [
        (2, "silent", 3, False),
        (5, "silent", 3, False),
    ]


@BOTH
@needs_nft
async def test_a_masquerading_router(version):
    with Lab(6, nat={4}) as lab:
        path = await trace(lab, version)
        outside = lab.address(4, "right", version)
        assert (path.reason, path.dest_ttl) == ("destination", 7)
        # from the NAT on every router speaks with the NAT's address
        assert addresses(path) == [*lab.hops(version)[:2], *[outside] * 4]
    assert [hop.nat for hop in path.hops] == [False] * 2 + [True] * 4


@BOTH
@needs_nft
async def test_a_stateful_firewall(version):
    with Lab(6, firewall={3}) as lab:
        path = await trace(lab, version)
        assert (path.reason, addresses(path)) == ("destination", lab.hops(version))
        assert lab.invalid_drops(3) == 0


async def test_icmp_limits_at_their_stock_values():
    """IPv4: a burst of six, then one a second. What is not answered is not loss."""
    with Lab(4, stock_limits="all") as lab:
        server, client, syn = lab.connect()
        with server, client:
            async with tracer_in(lab) as tracer:
                paths = [await tracer.trace(PlainCarrier(server, syn)) for _ in range(8)]
        assert [addresses(path) for path in paths[:6]] == [lab.hops()] * 6
        for path in paths[6:]:
            assert path.dest_ttl == 5
            assert all(hop.addr is not None or hop.limited for hop in path.hops)
        assert any(hop.limited for path in paths[6:] for hop in path.hops)


@BOTH
async def test_twenty_routers_with_delay(version):
    with Lab(20, delay=0.001) as lab:
        path = await trace(lab, version)
        assert (path.reason, addresses(path), path.probes) == ("destination", lab.hops(version), 21)
    assert path.dest_rtt_ms >= 42
    assert [hop.rtt_ms >= 2 * hop.ttl for hop in path.hops] == [True] * 20


async def test_loss_costs_retries_and_nothing_else():
    """Whatever is lost: no wrong router, and sooner or later a round whose gaps the retries have closed."""
    with Lab(6, delay=0.001, loss={1: 0.05, 4: 0.05}) as lab:
        hops = lab.hops()
        server, client, syn = lab.connect()
        healed = False
        with server, client, trio.fail_after(30):
            async with tracer_in(lab) as tracer:
                while not healed:
                    path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(share=False))
                    assert all(hop.addr in (None, hops[hop.ttl - 1]) for hop in path.hops if hop.ttl <= 6)
                    assert all(hop.addr is None for hop in path.hops if hop.ttl > 6)
                    healed = addresses(path) == hops and any(hop.attempts > 1 for hop in path.hops)
