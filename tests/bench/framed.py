"""`make bench-framed`: a message's cost in netd's framed service, against C, node, uvloop, naive Trio in one run.

    python -m tests.bench.framed [--seconds S] [--repeat N] [--only NAME ...] [--json] [--check] [--peer NAME=COMMAND]

The server under test is the daemon as it is (`python -m netd` with a configuration of this bench's own), its framed
service in echo mode with everything on, or in operations mode where the hub is meant. Servers are pinned to one core,
the load generator, in C, to the other. Everything is on loopback and every process is a child of this one.

The figure that counts is the server's CPU time per message: what its process used, user and system, divided by the
messages echoed meanwhile, both read by the load generator at the same two moments, after a warm-up. Unlike messages a
second it does not depend on how fast the generator is. Latency is from the generator's send() to its recv().

Servers take turns, `--repeat` times over, so that whatever else the machine does meets all of them alike. The table
shows medians; a goal is judged on the median of the ratios of each turn, which a machine that is slower for a while
does not move.

    64B, 1KiB, 64KiB   50 connections with 64 messages (64KiB: one) in flight on each; 64KiB-w4: four
    ping-pong          one connection, one message of 64 bytes in flight
    fan-out            one publishes to 1,000 sessions of the hub, one message of 128 bytes at a time; fan-out-w64: 64.
                       CPU per delivery, against a C loop that writes the same bytes to as many sockets. The
                       subscribers never sleep here: waking a reader is paid by the writer, and says nothing of it
    idle               what each of 5,000 silent sessions adds to the idle daemon, in resident memory of its own, and
                       the CPU that the daemon uses while nobody says anything
    abandoned          10,000 connections that leave in the middle of a frame, three times: bytes that each lot leaves
                       behind for each. Shown and not judged: the allocator's own store grows by steps for some lots
                       (0 to 250 B); sessions that were kept would show as what an idle one takes, in every lot

Before anything is measured every echo server proves itself: frames of mixed sizes, cut at odd places, come back byte
for byte (`--check`: only that). `--peer` adds an echo server of yours (the original qwormhole, say): a command that
listens on 127.0.0.1 and prints its port on its first line. Peers that the machine lacks are named with their package.

Exit status 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

import trio

from netd.wire import messages
from netd.wire.framing import frame
from tests.bench.figures import Figures, Goal, Run, judge, progress, table
from tests.bench.framed_lab import (
    CannotMeasure,
    Peer,
    Server,
    Workshop,
    abandon,
    cpu_seconds,
    crowd,
    daemon,
    descriptors,
    peers,
    resident,
    started,
)

WARM = 0.2
SUBSCRIBERS = 1000
IDLE = 5000
ABANDONED, LOTS = 10_000, 3
_QUIET = 3.0
"""Seconds for which the daemon's CPU is watched while nobody says anything."""


@dataclass(frozen=True)
class Echo:
    """One way to load an echo server."""

    size: int
    connections: int
    window: int

    def __str__(self) -> str:
        size = f"{self.size} B" if self.size < 1024 else f"{self.size // 1024} KiB"
        return f"{size}, {self.connections} connection{'s'[: self.connections > 1]}, window {self.window}"


ECHOES = {
    "64B": Echo(64, 50, 64),
    "1KiB": Echo(1024, 50, 64),
    "64KiB": Echo(65536, 50, 1),
    "64KiB-w4": Echo(65536, 50, 4),
    "ping-pong": Echo(64, 1, 1),
}
FANOUTS = {"fan-out": 1, "fan-out-w64": 64}
"""Publishes in flight."""
_FANOUT_TIMES = {"fan-out": 3, "fan-out-w64": 1}
"""Measurements in each turn: single ones of the first spread over a fifth of the ratio, which is close to its goal."""
SCENARIOS = [*ECHOES, *FANOUTS, "idle", "abandoned"]


GOALS = [
    Goal("64B", "CPU of node / CPU of netd", lambda f: f.ratio("64B", "node net", "netd"), 0.9, at_least=True),
    Goal("64B", "CPU of naive Trio / netd", lambda f: f.ratio("64B", "naive Trio", "netd"), 20, at_least=True),
    Goal("1KiB", "CPU of node / CPU of netd", lambda f: f.ratio("1KiB", "node net", "netd"), 1, at_least=True),
    Goal("64KiB", "CPU of netd / C", lambda f: f.ratio("64KiB", "netd", "C epoll"), 1.6),
    Goal("64KiB-w4", "CPU of netd / C", lambda f: f.ratio("64KiB-w4", "netd", "C epoll"), 1.6),
    Goal("ping-pong", "p50 of netd / C", lambda f: f.ratio("ping-pong", "netd", "C epoll", "p50"), 1.2),
    Goal("fan-out", "CPU of netd / C", lambda f: f.ratio("fan-out", "netd", "C epoll"), 1.3),
    Goal("idle", "bytes a session, operations", lambda f: f.values.get("idle operations"), 2048, unit="B"),
    Goal("idle", "bytes a session, echo", lambda f: f.values.get("idle echo"), 2048, unit="B"),
]


# --- measuring -------------------------------------------------------------------------------------------------------


async def measure(shop: Workshop, options: argparse.Namespace, known: dict[str, Peer]) -> Figures:
    figures = Figures()
    async with AsyncExitStack() as stack:
        servers = {"netd": await stack.enter_async_context(daemon(shop))}
        for name, peer in known.items():
            if peer.absent is None:
                servers[name] = await stack.enter_async_context(started(shop, peer.command))
        echoes = {name: echo for name, echo in ECHOES.items() if name in options.only}
        if echoes or options.check:
            for name, server in servers.items():
                await prove(shop, name, server, options)
        if options.check:
            return figures
        for turn in range(options.repeat):
            for scenario, echo in echoes.items():
                for name, server in servers.items():
                    progress(f"{turn + 1}/{options.repeat} {scenario} {name}", options)
                    found = await shop.load(
                        "echo_load",
                        port=server.port,
                        pid=server.pid,
                        warm=WARM,
                        seconds=options.seconds,
                        **asdict(echo),
                    )
                    figures.add(scenario, name, Run.of(found))
            for scenario, window in FANOUTS.items():
                for _ in range(_FANOUT_TIMES[scenario] if scenario in options.only else 0):
                    progress(f"{turn + 1}/{options.repeat} {scenario}", options)
                    await fan_out(shop, servers["netd"], scenario, window, options.seconds, figures)
    if "idle" in options.only:
        for mode in ("operations", "echo"):
            progress(f"idle {mode}", options)
            await idle(shop, mode, figures)
    if "abandoned" in options.only:
        progress("abandoned", options)
        await abandoned(shop, figures)
    progress("", options)
    return figures


async def prove(shop: Workshop, name: str, server: Server, options: argparse.Namespace) -> None:
    progress(f"proving {name}", options)
    try:
        found = await shop.load("echo_load", port=server.port, check=4_000_000, connections=8)
    except CannotMeasure as error:
        raise CannotMeasure(f"{name} is no echo server: {error}") from None
    if options.check:
        progress("", options)
        print(f"{name}: {found['frames']:,.0f} frames, {found['bytes']:,.0f} bytes came back as they were sent")


async def fan_out(shop: Workshop, netd: Server, scenario: str, window: int, seconds: float, figures: Figures) -> None:
    """netd first; the C loop is then given the very frame that netd delivered."""
    channel = messages.channel_fields(b"public:bench")
    publish = messages.Publish(**channel, **messages.data_fields("x" * 128))
    delivered = shop.directory / "delivered"
    found = await shop.load(
        "fanout_load",
        port=netd.operations,
        pid=netd.pid,
        subscribers=SUBSCRIBERS,
        window=window,
        warm=WARM,
        seconds=seconds,
        open=shop.keep("subscriber", hello() + packed(messages.Subscribe(**channel, ref=1))),
        replies=2,
        publisher_open=shop.keep("publisher", hello()),
        publisher_replies=1,
        publish=shop.keep("publish", packed(publish)),
        save=delivered,
    )
    figures.add(scenario, "netd", Run.of(found))
    async with started(shop, [shop.program("fanout_server")]) as server:
        same = await shop.load(
            "fanout_load",
            port=server.port,
            pid=server.pid,
            subscribers=SUBSCRIBERS,
            window=window,
            warm=WARM,
            seconds=seconds,
            open=shop.keep("subscriber", frame(b"")),
            replies=1,
            publisher_open=shop.keep("publisher", b""),
            publish=delivered,
        )
    if abs(same["bytes"] - found["bytes"]) > 4:  # an offset may have grown by some bytes meanwhile
        raise CannotMeasure(f"C wrote {same['bytes']:g} bytes a delivery, netd {found['bytes']:g}")
    figures.add(scenario, "C epoll", Run.of(same))


def hello() -> bytes:
    return packed(messages.Hello(version=messages.VERSION))


def packed(message: messages.Request) -> bytes:
    return frame(messages.encode(message, "messagepack"))


async def idle(shop: Workshop, mode: str, figures: Figures) -> None:
    """A fresh daemon, measured before anybody came and with everybody there."""
    async with daemon(shop) as server:
        before = resident(server.pid)
        port, opening = (server.operations, hello()) if mode == "operations" else (server.port, frame(b"x"))
        async with crowd(shop, port, IDLE, opening, replies=1):
            start = cpu_seconds(server.pid)
            await trio.sleep(_QUIET)
            figures.values[f"idle {mode} CPU %"] = (cpu_seconds(server.pid) - start) / _QUIET * 100
            figures.values[f"idle {mode}"] = (resident(server.pid) - before) / IDLE


async def abandoned(shop: Workshop, figures: Figures) -> None:
    """The first lots grow tables and the allocator's own store; later ones have to find room in them.

    What the hub remembers of a session for who comes back is off, or it would be measured for its minute.
    """
    async with daemon(shop, resume=0) as server:
        open_at_first = descriptors(server.pid)
        memory = [resident(server.pid)]
        for _ in range(LOTS):
            await abandon(shop, server.operations, ABANDONED, hello())
            for _ in range(300):
                if descriptors(server.pid) <= open_at_first:
                    break
                await trio.sleep(0.1)
            else:
                raise CannotMeasure(f"{descriptors(server.pid) - open_at_first} abandoned sockets are still open")
            memory.append(resident(server.pid))
    for number, (before, after) in enumerate(itertools.pairwise(memory), start=1):
        figures.values[f"abandoned, lot {number}"] = (after - before) / ABANDONED


# --- showing ---------------------------------------------------------------------------------------------------------


def show(figures: Figures, known: dict[str, Peer]) -> None:
    for scenario, found in figures.runs.items():
        what = str(ECHOES[scenario]) if scenario in ECHOES else f"1 to {SUBSCRIBERS}, window {FANOUTS[scenario]}"
        rows = [[scenario, "CPU us", "x C", "message/s", "p50 us", "p99 us", "core busy"]]
        for name in found:
            ratio = figures.ratio(scenario, name, "C epoll")
            rows.append(figures.row(scenario, name, f"{ratio:.2f}" if ratio else ""))
        rows += [[name, "absent", peer.absent] for name, peer in known.items() if peer.absent and scenario in ECHOES]
        print(f"{scenario}: {what}\n{table(rows)}\n")
    for name, value in figures.values.items():
        print(f"{name:<28}{value:12,.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU per message, latency, fan-out and memory of framed TCP.")
    parser.add_argument("--seconds", type=float, default=0.6, metavar="S", help="for which a server is measured")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="turns of every server")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="NAME", help="scenarios")
    parser.add_argument("--json", action="store_true", help="every single run, for another program")
    parser.add_argument("--check", action="store_true", help="prove that the servers echo, measure nothing")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="one more echo server")
    options = parser.parse_args()
    try:
        with Workshop() as shop:
            if shop.shared:
                print("one core only: server and load share it, so latencies say little", file=sys.stderr)
            known = peers(shop)
            for name, _, command in (text.partition("=") for text in options.peer):
                known[name] = Peer(shlex.split(command))
            figures = trio.run(measure, shop, options, known)
    except CannotMeasure as error:
        print(f"\ncannot measure: {error}", file=sys.stderr)
        return 1
    if options.check:
        return 0
    if options.json:
        goals = {
            f"{goal.scenario}: {goal.text}": goal.figure(figures) for goal in GOALS if goal.scenario in options.only
        }
        print(json.dumps({**asdict(figures), "goals": goals}, indent=1))
        return 0
    load = os.getloadavg()[0]
    print(f"medians of {options.repeat} turns of {options.seconds:g} s; load average {load:.1f} (2 of it ours)\n")
    show(figures, known)
    return 0 if judge(GOALS, figures, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
