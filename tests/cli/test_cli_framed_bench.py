"""`netctl framed bench`: what an echo gives back, and servers that are none."""

from __future__ import annotations

import json
import re

import pytest
import trio

from netd.cli.bench import Times
from netd.wire.messages import Binary, BinaryEvent
from tests.cli.conversation import served, words


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


def test_on_a_narrow_terminal_what_was_measured_stays_and_what_was_asked_for_goes(netctl):
    with served(echo_all) as address:
        said = netctl("framed", "bench", address, "--seconds", "0.1", "--connections", "2", COLUMNS="40")
    heading, row = said.stdout.splitlines()
    assert "SIZE" not in heading
    assert {"MSG/S", "p50", "p99"} <= set(heading.split())
    assert max(len(heading), len(row)) <= 40


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
