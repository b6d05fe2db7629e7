"""Many clients at once, routers with the kernel's stock ICMP limits, and the tracer's own limits."""

from __future__ import annotations

import pytest
import trio

from netd.net.paths.budget import TracerLimits
from netd.net.paths.path import TraceOptions
from tests.support.carriers import PlainCarrier
from tests.support.lab import Lab, why_not
from tests.support.tracing import addresses, tracer_in

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


async def trace_all(tracer, connections, options=TraceOptions()):  # noqa: B008
    paths = [None] * len(connections)

    async def one(number: int) -> None:
        server, _, syn = connections[number]
        paths[number] = await tracer.trace(PlainCarrier(server, syn), options)

    async with trio.open_nursery() as nursery:
        for number in range(len(connections)):
            nursery.start_soon(one, number)
    return paths


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("one_prefix", [True, False], ids=["one-prefix", "200-prefixes"])
async def test_two_hundred_clients_through_ten_routers_with_stock_limits(version, one_prefix):
    with Lab(10, stock_limits="all") as lab, lab.crowd(200, version, one_prefix=one_prefix) as connections:
        async with tracer_in(lab) as tracer:
            paths = await trace_all(tracer, connections)
            assert tracer.snapshot().traces == 200
        assert {path.reason for path in paths} == {"destination"}
        assert {path.dest_ttl for path in paths} == {11}
        assert [path for path in paths if addresses(path) != lab.hops(version)] == []
    # each client costs its own answer and the proof that it is no nearer; all else is shared
    assert sum(path.probes for path in paths) < 200 * 10 / 2
    assert sum(hop.kind == "shared" for path in paths for hop in path.hops) > 1800


async def test_without_sharing_the_same_crowd_goes_short():
    """What sharing is for: the routers answer six each and no more."""
    with Lab(4, stock_limits="all") as lab, lab.crowd(40, one_prefix=True) as connections:
        async with tracer_in(lab) as tracer:
            paths = await trace_all(tracer, connections, TraceOptions(share=False, timeout=5.0))
        assert {path.dest_ttl for path in paths} == {5}
        assert sum(addresses(path) == lab.hops() for path in paths) < 20
    assert all(hop.limited for path in paths for hop in path.hops if hop.kind == "silent")


@pytest.fixture(scope="module")
def lab():
    with Lab(3, delay=0.002) as lab:
        yield lab


async def test_traces_at_once_are_bounded_and_the_rest_wait_their_turn(lab):
    with lab.crowd(12, one_prefix=True) as connections:
        async with tracer_in(lab, limits=TracerLimits(traces=2)) as tracer, trio.open_nursery() as nursery:
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, tracer.snapshot().running)
                    await trio.sleep(0.001)

            nursery.start_soon(watch)
            paths = await trace_all(tracer, connections)
            nursery.cancel_scope.cancel()
    assert most == 2
    assert {path.reason for path in paths} == {"destination"}


async def test_who_cannot_wait_is_told_so(lab):
    with lab.crowd(5, one_prefix=True) as connections:
        async with tracer_in(lab, limits=TracerLimits(traces=1, waiting=2)) as tracer:
            paths = await trace_all(tracer, connections)
            assert sorted(path.reason for path in paths) == ["destination"] * 3 + ["limited"] * 2
            assert tracer.snapshot().limited == 2
            tracer.limits = TracerLimits(traces=1, patience=0.0)
            paths = await trace_all(tracer, connections)
            assert sorted(path.reason for path in paths) == ["destination"] + ["limited"] * 4
            tracer.limits = TracerLimits()
            paths = await trace_all(tracer, connections)
            assert [path.reason for path in paths] == ["destination"] * 5


async def test_probes_a_second_are_bounded_for_the_whole_host(lab):
    limits = TracerLimits(probes_per_second=100.0, burst=10)
    with lab.crowd(6, one_prefix=False) as connections:
        async with tracer_in(lab, limits=limits) as tracer:
            start = trio.current_time()
            paths = await trace_all(tracer, connections, TraceOptions(share=False))
            elapsed = trio.current_time() - start
            probes = tracer.snapshot().probes
    assert probes == sum(path.probes for path in paths)
    assert probes <= 10 + 100.0 * elapsed + 1
    assert {path.reason for path in paths} <= {"destination", "limited"}


async def test_no_probe_allowed_ends_limited(lab):
    server, client, syn = lab.connect()
    limits = TracerLimits(probes_per_second=1.0, burst=1, patience=0.1)
    with server, client:
        async with tracer_in(lab, limits=limits) as tracer:
            path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(timeout=0.3))
            assert tracer.snapshot().limited == 1
    assert path.reason == "limited"
    assert path.probes <= 2


@pytest.mark.parametrize("method", ["tcp", "udp"])
async def test_a_low_limit_makes_a_round_slow_and_not_short(lab, method):
    server, client, syn = lab.connect()
    limits = TracerLimits(probes_per_second=5.0, burst=1)
    options = TraceOptions(timeout=0.2, method=method)  # the round would have ended after two probes or three
    with server, client:
        async with tracer_in(lab, limits=limits) as tracer:
            path = await tracer.trace(PlainCarrier(server, syn), options)
            assert tracer.snapshot().limited == 0
    assert (path.reason, addresses(path)) == ("destination", lab.hops(4))
    assert path.elapsed_ms >= (path.probes - 1) * 200 - 1


async def test_a_round_that_waits_for_a_probe_notices_that_its_connection_closed(lab):
    server, client, syn = lab.connect()
    limits = TracerLimits(probes_per_second=0.2, burst=1)
    with server, client:
        async with tracer_in(lab, limits=limits) as tracer:
            with trio.fail_after(2.0):  # the second probe would be due in five
                path = await tracer.trace(PlainCarrier(server, syn), on_hop=lambda hop: client.close())
    assert (path.reason, path.probes) == ("closed", 1)


async def test_two_traces_of_one_connection_do_not_mix(lab):
    server, client, syn = lab.connect()
    with server, client:
        async with tracer_in(lab) as tracer:
            paths = await trace_all(tracer, [(server, client, syn)] * 2)
    assert sorted(path.reason for path in paths) == ["destination", "limited"]
