"""`make bench-trace`: time to the full path, netd against the tools Debian has, over the same chain in one run.

For each depth a chain of routers is built (2 ms a link each way unless said otherwise), and from its server end every
tool traces the client end, several times. netd traces inside a fresh TCP connection to its one port each time, sharing
nothing, with the daemon's own tracer; the others are started as a user would start them, so their times include the
start of a process.

Prints a table of medians and their ratio to the path's RTT. Exit status 1 if netd missed its goal (1.1 x the path's RTT
plus 5 ms, and ahead of every other) or any tool that is installed did not find the whole path.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from netd.net.paths.path import TraceOptions
from netd.net.sockdiag import tcp_info
from tests.support.carriers import PlainCarrier
from tests.support.lab import Lab, why_not
from tests.support.tracing import addresses, tracer_in

if TYPE_CHECKING:
    from netd.net.paths.tracer import Tracer

TOOLS = {
    "traceroute -q1": ["traceroute", "-n", "-q", "1", "{target}"],
    "traceroute -T -q1": ["traceroute", "-n", "-T", "-q", "1", "{target}"],
    "mtr -c1 -i.1 -G.2": ["mtr", "-n", "-c", "1", "-i", "0.1", "-G", "0.2", "--report", "{target}"],
    "tcptraceroute -q1": ["tcptraceroute", "-n", "-q", "1", "{target}"],
    "scamper paris-udp": ["scamper", "-O", "text", "-c", "trace -P udp-paris -q 1", "-i", "{target}"],
}
_PORT = 8080
_REUSE = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
_NEVER = 60.0
"""Seconds after which a tool is given up."""


@dataclass
class Depth:
    """What was measured on one chain; times in milliseconds."""

    routers: int
    rtt: float = 0.0
    netd: list[float] = field(default_factory=list)
    tools: dict[str, list[float]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)

    @property
    def goal(self) -> float:
        return 1.1 * self.rtt + 5.0

    def problems(self) -> list[str]:
        netd = statistics.median(self.netd)
        found = [f"{name} did not find the whole path of {self.routers} routers" for name in sorted(self.incomplete)]
        if netd > self.goal:
            found.append(f"netd took {netd:.1f} ms for {self.routers} routers: the goal is {self.goal:.1f} ms")
        for name, times in self.tools.items():
            if statistics.median(times) <= netd:
                found.append(f"{name} was ahead of netd over {self.routers} routers")
        return found


async def measure(lab: Lab, depth: Depth, times: int, version: int) -> None:
    """Every tool in turn, again and again, so that whatever else the machine does meets all of them alike."""
    rtts = []
    async with tracer_in(lab) as tracer:
        for _ in range(times):
            rtts.append(await measure_netd(lab, depth, tracer, version))
            for name in TOOLS:
                await trio.to_thread.run_sync(measure_tool, lab, depth, name, version)
    depth.rtt = min(rtts)


async def measure_netd(lab: Lab, depth: Depth, tracer: Tracer, version: int) -> float:
    """One trace of a new connection; returns the connection's own RTT."""
    server, client, syn = lab.connect(version, port=_PORT, server_options=[_REUSE])
    with server, client:
        start = time.perf_counter()
        path = await tracer.trace(PlainCarrier(server, syn), TraceOptions(share=False))
        depth.netd.append((time.perf_counter() - start) * 1000)
        rtt = tcp_info(server).min_rtt_us / 1000
    if path.reason != "destination" or addresses(path) != lab.hops(version):
        depth.incomplete.add("netd")
    return rtt


def measure_tool(lab: Lab, depth: Depth, name: str, version: int) -> None:
    target = lab.client_address(version)
    command = [word.format(target=target) for word in TOOLS[name]]
    if shutil.which(command[0]) is None or (version == 6 and command[0] == "tcptraceroute"):
        return  # not installed; or speaks IPv4 only
    if version == 6 and command[0] in ("traceroute", "mtr"):
        command.insert(1, "-6")
    start = time.perf_counter()
    try:
        done = lab.server.run(command, check=False, timeout=_NEVER)
    except subprocess.TimeoutExpired:
        depth.incomplete.add(name)
        return
    depth.tools.setdefault(name, []).append((time.perf_counter() - start) * 1000)
    if not {*lab.hops(version), target} <= set(done.stdout.split()):
        depth.incomplete.add(name)


def table(depths: list[Depth]) -> str:
    """Plain text: a line per tool, a pair of columns (median ms, ratio to the RTT) per depth."""
    rows = [["", *(f"{depth.routers} routers" for depth in depths)]]
    rows.append(["path RTT", *(f"{depth.rtt:8.1f} ms       " for depth in depths)])
    rows.append(["goal", *(f"{depth.goal:8.1f} ms {depth.goal / depth.rtt:6.2f}" for depth in depths)])
    for name in ["netd", *TOOLS]:
        cells = []
        for depth in depths:
            times = depth.netd if name == "netd" else depth.tools.get(name)
            if not times:
                cells.append("absent" if name != "netd" else "failed")
                continue
            median = statistics.median(times)
            mark = "!" if name in depth.incomplete else " "
            cells.append(f"{median:8.1f} ms {median / depth.rtt:6.2f}{mark}")
        rows.append([name, *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Time to the full path: netd against the tools Debian has.")
    parser.add_argument("--routers", type=int, nargs="+", default=[5, 10, 20], metavar="N")
    parser.add_argument("--delay", type=float, default=2.0, metavar="MS", help="one way on each link")
    parser.add_argument("--times", type=int, default=7, metavar="N", help="runs of each tool at each depth")
    parser.add_argument("-6", dest="version", action="store_const", const=6, default=4, help="trace over IPv6")
    arguments = parser.parse_args()
    reason = why_not()
    if reason is not None:
        print(f"cannot measure: {reason}", file=sys.stderr)
        return 1
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))

    depths = []
    for routers in arguments.routers:
        with Lab(routers, delay=arguments.delay / 1000) as lab:
            depth = Depth(routers)
            trio.run(measure, lab, depth, arguments.times, arguments.version)
            depths.append(depth)
    print(f"time to the full path, median of {arguments.times}, and its ratio to the path's RTT")
    print(f"(IPv{arguments.version}, {arguments.delay:g} ms a link; tools other than netd include their start)\n")
    print(table(depths))
    absent = sorted({words[0] for words in TOOLS.values() if shutil.which(words[0]) is None})
    if absent:
        print(f"\nabsent: {', '.join(absent)} (apt: traceroute, mtr-tiny, tcptraceroute, scamper)")
    problems = [problem for depth in depths for problem in depth.problems()]
    for problem in problems:
        print(f"\n{problem}", end="")
    print("\ngoal met" if not problems else "\ngoal missed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
