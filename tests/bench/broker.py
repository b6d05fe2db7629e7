"""`make bench-broker`: what a delivery costs in netd's broker, against C, nats, mosquitto, node, bun and Python.

    python -m tests.bench.broker [--only NAME ...] [--peers NAME ...] [--seconds S] [--repeat N] [--json]

The server under test is the daemon as it is (`python -m netd` with a configuration of this bench's own), with every
check on, spoken to in both ways: plain ("netd": /ws/{channel}) and in operations as JSON ("netd operations": /ws).
Servers are pinned to one core, the load generator, in C, to the other. Everything is on loopback and every process is a
child of this one. nats-server and mosquitto are spoken to in their own protocols, all others by WebSocket.

The figure that counts is the server's CPU time per delivery: what its process used, user and system, divided by the
messages that subscribers got meanwhile, both read by the load generator at the same two moments, after a warm-up. The
generator numbers every message and checks each delivery: at the end every subscriber has had every message, once, in
order and whole, or there is no figure.

Servers take turns, `--repeat` times over, so that whatever else the machine does meets all of them alike. The table
shows medians; a goal is judged on the median of the ratios of each turn.

    1-w1 ... 100-w64       one publisher, 1, 10 or 100 subscribers, 128 bytes, 1 or 64 messages in flight
    ingest-32B, -1KiB      50 publishers and nobody who listens, 64 messages and a ping in flight on each
    latency                200 publishes a second to 100 subscribers, whatever comes back: p99 of all deliveries
    accepts                connect, upgrade, close, 16 at a time: CPU for each
    idle                   what each of 5,000 silent sessions adds to the idle daemon, in resident memory of its own;
                           the peers' beside it
    two-nodes              two daemons over Redis: 500 publishes a second on one of them to 200 subscribers on both

Limit of all of them is "C epoll": a relay in C that does what the wire demands and no more. Exit status 1 if a goal was
missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from tests.bench.broker_lab import Broker, BrokerWorkshop, Running, brokers, daemon, redis, relay
from tests.bench.figures import Figures, Goal, Run, judge, progress, table
from tests.bench.framed_lab import CannotMeasure, cpu_seconds, resident, spawned

if TYPE_CHECKING:
    from collections.abc import Callable

WARM = 0.2
FANOUTS = {"1-w1": (1, 1), "1-w64": (1, 64), "10-w64": (10, 64), "100-w1": (100, 1), "100-w64": (100, 64)}
"""Subscribers, and publishes in flight."""
INGESTS = {"ingest-32B": 32, "ingest-1KiB": 1024}
PUBLISHERS = 50
PACE, PACED = 200, 100
"""Publishes a second, and subscribers, of the scenario for latency."""
IDLE = 5000
_QUIET = 3.0
"""Seconds for which the daemon's CPU is watched while nobody says anything."""
NODES_PACE, NODES_SUBSCRIBERS, NODES_SECONDS = 500, 200, 5.0
SCENARIOS = [*FANOUTS, *INGESTS, "latency", "accepts", "idle", "two-nodes"]
OURS = ["netd", "netd operations"]
PEERS = ["C epoll", "nats-server", "mosquitto", "node ws", "bun", "websockets", "trio-websocket"]


def cheaper(scenario: str, peer: str, least: float, server: str = "netd") -> Goal:
    """A goal: the peer's CPU is at least so many times netd's."""
    text = f"CPU of {peer} / {server}"
    return Goal(scenario, text, lambda f: f.ratio(scenario, peer, server), least, at_least=True)


def _value(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.values.get(name)


GOALS = [
    cheaper("100-w64", "C epoll", 0.75),
    cheaper("100-w64", "bun", 1),
    cheaper("100-w64", "nats-server", 1),
    cheaper("100-w64", "node ws", 25),
    cheaper("100-w64", "mosquitto", 25),
    cheaper("100-w1", "C epoll", 0.85),
    cheaper("100-w1", "nats-server", 1),
    cheaper("100-w1", "node ws", 1),
    cheaper("ingest-32B", "websockets", 4),
    cheaper("accepts", "node ws", 3),
    Goal("latency", "p99 of netd / node ws", lambda f: f.ratio("latency", "netd", "node ws", "p99"), 1),
    Goal("latency", "p99 of netd / C", lambda f: f.ratio("latency", "netd", "C epoll", "p99"), 2),
    Goal("idle", "bytes a session, plain", _value("idle netd"), 2500, unit="B"),
    Goal("idle", "bytes a session, operations", _value("idle netd operations"), 2500, unit="B"),
    Goal("two-nodes", "share delivered", _value("two nodes: delivered"), 1, at_least=True),
    Goal("two-nodes", "publishes/s", _value("two nodes: publishes/s"), 0.98 * NODES_PACE, at_least=True, unit="/s"),
]


# --- measuring -------------------------------------------------------------------------------------------------------


async def measure(shop: BrokerWorkshop, options: argparse.Namespace, known: dict[str, Broker]) -> Figures:
    figures = Figures()
    chosen = {name: broker for name, broker in known.items() if name in options.peers and broker.absent is None}
    ours = [name for name in OURS if name in options.peers]
    turns = [name for name in options.only if name not in ("idle", "two-nodes")]
    if turns:
        async with AsyncExitStack() as stack:
            servers: dict[str, Running] = {}
            if ours:
                found = await stack.enter_async_context(daemon(shop))
                servers = {name: found[name] for name in ours}
            for name, broker in chosen.items():
                servers[name] = await stack.enter_async_context(relay(shop, broker))
            for turn in range(options.repeat):
                for scenario in turns:
                    for name, server in servers.items():
                        progress(f"{turn + 1}/{options.repeat} {scenario} {name}", options)
                        await once(figures, scenario, name, server, options)
    if "idle" in options.only:
        for name in [*ours, *chosen]:
            progress(f"idle {name}", options)
            await idle(shop, name, chosen.get(name), figures)
    if "two-nodes" in options.only and ours:
        progress("two-nodes", options)
        await two_nodes(shop, figures)
    progress("", options)
    return figures


async def once(figures: Figures, scenario: str, name: str, server: Running, options: argparse.Namespace) -> None:
    """One server, loaded once in one way."""
    more: dict[str, object]
    if scenario == "accepts":
        if server.speech.name != "websocket":
            return
        path = server.speech.paths[0]
        where = {"port": server.server.port, "pid": server.server.pid, "path": path}
        found = await load(server, name, "accept_load", {**where, "count": int(2500 * options.seconds)})
        figures.add(scenario, name, Run.of(found))
        return
    size, seconds = 128, options.seconds
    if scenario in FANOUTS:
        subscribers, window = FANOUTS[scenario]
        more = {"what": "fan-out", "subscribers": subscribers, "window": window}
    elif scenario in INGESTS:
        size = INGESTS[scenario]
        more = {"what": "ingest", "publishers": PUBLISHERS, "window": 64}
    else:
        seconds = 3 * options.seconds
        more = {"what": "fan-out", "subscribers": PACED, "pace": PACE}
    arguments = server.arguments(size, warm=WARM, seconds=seconds, **more)
    figures.add(scenario, name, Run.of(await load(server, name, "broker_load", arguments)))


async def load(server: Running, name: str, program: str, arguments: dict[str, object]) -> dict[str, float]:
    try:
        return await server.shop.load(program, **arguments)
    except CannotMeasure as error:
        raise CannotMeasure(f"{name}: {error}") from None


async def idle(shop: BrokerWorkshop, name: str, broker: Broker | None, figures: Figures) -> None:
    """A fresh server, measured before anybody came and with everybody there."""
    async with AsyncExitStack() as stack:
        if broker is None:
            server = (await stack.enter_async_context(daemon(shop)))[name]
        else:
            server = await stack.enter_async_context(relay(shop, broker))
        pid = server.server.pid
        before = resident(pid)
        arguments = server.arguments(128, what="crowd", subscribers=IDLE, publishers=0)
        arguments["subscriber_path"] = server.speech.paths[0]
        _, line = await stack.enter_async_context(spawned(shop.loading("broker_load", **arguments)))
        if line != "ready":
            raise CannotMeasure(f"{IDLE} sessions of {name} could not be opened")
        start = cpu_seconds(pid)
        await trio.sleep(_QUIET if broker is None else 0.5)
        if broker is None:
            figures.values[f"idle {name} CPU %"] = (cpu_seconds(pid) - start) / _QUIET * 100
        figures.values[f"idle {name}"] = (resident(pid) - before) / IDLE


async def two_nodes(shop: BrokerWorkshop, figures: Figures) -> None:
    """Both daemons on one core; Redis beside the load."""
    async with redis(shop) as port, AsyncExitStack() as stack:
        hub = 'backplane = "redis"'
        more = f'[backplane]\nurl = "redis://127.0.0.1:{port}/0"\n'
        one = (await stack.enter_async_context(daemon(shop, hub=hub, more=more)))["netd"]
        other = (await stack.enter_async_context(daemon(shop, hub=hub, more=more)))["netd"]
        arguments = one.arguments(128, what="fan-out", other_port=other.server.port)
        arguments |= {"subscribers": NODES_SUBSCRIBERS, "pace": NODES_PACE, "warm": 1, "seconds": NODES_SECONDS}
        start = cpu_seconds(other.server.pid)
        found = await load(one, "two nodes", "broker_load", arguments)
        run = Run.of(found)
        # "messages" are deliveries on both nodes within the time; "delivered" and "published" are of the whole run
        figures.values["two nodes: delivered"] = found["delivered"] / (found["published"] * NODES_SUBSCRIBERS)
        figures.values["two nodes: publishes/s"] = run.rate / NODES_SUBSCRIBERS
        figures.values["two nodes: p50 us"] = run.p50
        figures.values["two nodes: p99 us"] = run.p99
        figures.values["two nodes: CPU % of the first"] = run.busy * 100
        spent = cpu_seconds(other.server.pid) - start
        figures.values["two nodes: CPU % of the other"] = spent / (NODES_SECONDS + 1) * 100


# --- showing ---------------------------------------------------------------------------------------------------------


def show(figures: Figures, known: dict[str, Broker], options: argparse.Namespace) -> None:
    for scenario, found in figures.runs.items():
        noun = "connection" if scenario == "accepts" else "message"
        rows = [[scenario, "CPU us", "C /", "spread", f"{noun}/s", "p50 us", "p99 us", "core busy"]]
        for name in found:
            ratio = figures.ratio(scenario, "C epoll", name)
            compared = f"{ratio:.2f}" if ratio else "", spread(figures, scenario, name)
            rows.append(figures.row(scenario, name, *compared))
        print(f"{table(rows)}\n")
    absent = [[name, broker.absent] for name, broker in known.items() if broker.absent and name in options.peers]
    for name, why in absent:
        print(f"{name} is absent: {why}")
    for name, value in figures.values.items():
        print(f"{name:<32}{value:12,.1f}")


def spread(figures: Figures, scenario: str, name: str) -> str:
    """The least and the greatest of C's CPU divided by this one's, over the turns."""
    found = figures.runs[scenario]
    ratios = [one.cpu / other.cpu for one, other in zip(found.get("C epoll", []), found[name], strict=False)]
    return f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="CPU per delivery, latency, memory and accepts of the broker.")
    parser.add_argument("--seconds", type=float, default=0.6, metavar="S", help="for which a server is measured")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns of every server")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="NAME", help="scenarios")
    parser.add_argument(
        "--peers", nargs="+", choices=[*OURS, *PEERS], default=[*OURS, *PEERS], metavar="NAME", help="servers"
    )
    parser.add_argument("--json", action="store_true", help="every single run, for another program")
    options = parser.parse_args()
    try:
        with BrokerWorkshop() as shop:
            if shop.shared:
                print("one core only: server and load share it, so latencies say little", file=sys.stderr)
            known = brokers(shop, options.peers)
            figures = trio.run(measure, shop, options, known)
    except CannotMeasure as error:
        print(f"\ncannot measure: {error}", file=sys.stderr)
        return 1
    if options.json:
        goals = {
            f"{goal.scenario}: {goal.text}": goal.figure(figures) for goal in GOALS if goal.scenario in options.only
        }
        print(json.dumps({**asdict(figures), "goals": goals}, indent=1))
        return 0
    load_average = os.getloadavg()[0]
    print(
        f"medians of {options.repeat} turns of {options.seconds:g} s; load average {load_average:.1f} (2 of it ours)\n"
    )
    show(figures, known, options)
    return 0 if judge(GOALS, figures, options.only) else 1


if __name__ == "__main__":
    sys.exit(main())
