"""What the broker bench measures: netd with its broker, and the brokers it is compared with, each told how to speak.

    with BrokerWorkshop() as shop:
        async with netd(shop) as servers:                         # "netd" (plain) and "netd operations": one daemon
        async with relay(shop, brokers(shop)["C epoll"]) as server:
            figures = await shop.load("broker_load", **server.fan_out(128), pid=server.pid, subscribers=100, window=64)

The peers that are libraries (`ws`, `bun`, `websockets`, `trio-websocket`) are put into build/bench by their package
managers when they are not there; those that cannot be had are named with the reason, and the rest is measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from netd.wire import messages
from tests.bench.framed_lab import CannotMeasure, Server, Workshop, free_ports, spawn, started
from tests.support.process import ROOT, NetdProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SOURCES = Path(__file__).parent / "broker_peers"
_STORE = ROOT / "build" / "bench"
_FETCH = 180.0
"""Seconds after which a package manager is given up."""
_PATIENCE = 20.0
"""Seconds for a server to listen."""
CHANNEL = b"public:bench"
PLAIN = "/ws/public%3Abench"

_DAEMON = """
[log]
level = "warning"

[trace]
enabled = false

[broker]
max_connections = 20_000
connections_per_address = 20_000

[[broker.listen]]
address = "127.0.0.1:{port}"

[hub]
max_sessions = 20_000
resume_seconds = {resume}
{hub}

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
{more}
"""
"""Limits of number wide enough for the crowd that a bench is; everything else as it is by default, and on."""


class BrokerWorkshop(Workshop):
    """The compiled programs of broker_peers."""

    def __init__(self) -> None:
        super().__init__(_SOURCES)


@dataclass(frozen=True)
class Speech:
    """How a broker is spoken to: by a subscriber, by a publisher, and around the payload of a message.

    `subscriber` and `publisher` are what each says first and how many answers it then waits for. `around` gives what
    stands before and after a payload of so many bytes.
    """

    name: str = "websocket"
    paths: tuple[str, str] = ("/sub", "/pub")
    subscriber: tuple[bytes, int] = (b"", 0)
    publisher: tuple[bytes, int] = (b"", 0)
    around: Callable[[int], tuple[bytes, bytes]] = lambda size: (b"", b"")
    opcode: int = 2


@dataclass(frozen=True)
class Broker:
    """A server to compare with: the command that starts it, and why it cannot be had here (None: it can).

    A `{port}` in the command is a port of our choice; without one the server says its own on its first line.
    """

    command: list[str]
    speech: Speech = Speech()
    absent: str | None = None

    @property
    def upgrades(self) -> bool:
        return self.speech.name == "websocket"


@dataclass(frozen=True)
class Running:
    """A broker that listens."""

    server: Server
    speech: Speech
    shop: Workshop

    def arguments(self, size: int, **more: Any) -> dict[str, Any]:
        """What the load generator has to know to speak to it, for messages of `size` bytes."""
        speech, shop = self.speech, self.shop
        before, after = speech.around(size)
        return {
            "speaks": speech.name,
            "port": self.server.port,
            "pid": self.server.pid,
            "size": size,
            "opcode": speech.opcode,
            "subscriber": shop.keep("subscriber", speech.subscriber[0]),
            "subscriber_replies": speech.subscriber[1],
            "subscriber_path": speech.paths[0],
            "publisher": shop.keep("publisher", speech.publisher[0]),
            "publisher_replies": speech.publisher[1],
            "publisher_path": speech.paths[1],
            "before": shop.keep("before", before),
            "after": shop.keep("after", after),
            **more,
        }


# --- how each is spoken to -------------------------------------------------------------------------------------------


def _operations() -> Speech:
    fields = messages.channel_fields(CHANNEL)
    before, _, after = messages.encode(messages.Publish(**fields, data="@"), "json").partition(b"@")
    return Speech(
        paths=("/ws", "/ws"),
        subscriber=(messages.encode(messages.Subscribe(**fields, ref=1), "json"), 1),
        around=lambda size: (before, after),
        opcode=1,
    )


PLAINLY = Speech(paths=(f"{PLAIN}?role=sub", f"{PLAIN}?role=pub"))
OPERATIONS = _operations()
_CONNECT = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
NATS = Speech(
    "nats",
    subscriber=(_CONNECT + b"SUB bench 1\r\nPING\r\n", 2),  # INFO, PONG
    publisher=(_CONNECT + b"PING\r\n", 2),
    around=lambda size: (b"PUB bench %d\r\n" % size, b"\r\n"),
)
_MQTT_CONNECT = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00"
"""MQTT 3.1.1: a clean session, no keepalive, an identifier of the server's choice."""
MQTT = Speech(
    "mqtt",
    subscriber=(_MQTT_CONNECT + b"\x82\x0a\x00\x01\x00\x05bench\x00", 2),  # CONNACK, SUBACK; QoS 0
    publisher=(_MQTT_CONNECT, 1),
    around=lambda size: (b"\x30" + _varint(7 + size) + b"\x00\x05bench", b""),
)


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


# --- what there is ---------------------------------------------------------------------------------------------------


def brokers(shop: Workshop, wanted: list[str] | None = None) -> dict[str, Broker]:
    """Every broker this bench knows of, the limit first; what has to be fetched is, unless it is not `wanted`."""
    node = shutil.which("node") or shutil.which("nodejs")
    bun = _STORE / "node_modules" / ".bin" / "bun"
    ws = _STORE / "node_modules" / "ws"
    python = _STORE / "venv" / "bin" / "python"

    def missing(name: str, path: Path, fetch: Callable[[], str | None]) -> str | None:
        return None if path.exists() or (wanted is not None and name not in wanted) else fetch()

    def npm(package: str) -> str | None:
        return _fetched(["npm", "install", "--prefix", str(_STORE), "--no-audit", "--no-fund", package], "apt: npm")

    def pip() -> str | None:
        made = _fetched([sys.executable, "-m", "venv", str(python.parents[1])], "apt: python3-venv")
        return made or _fetched([str(python), "-m", "pip", "install", "-q", "websockets", "trio-websocket"], "pip")

    nats, mosquitto = _found("nats-server"), _found("mosquitto")
    # what it takes to listen on a port of ours, and to be open to anybody, as the others are
    rules = shop.keep("mosquitto.conf", b"allow_anonymous true\nset_tcp_nodelay true\nlog_type error\n")
    no_ws = missing("node ws", ws, lambda: npm("ws@8"))
    return {
        "C epoll": Broker([shop.program("broker_epoll")]),
        "nats-server": Broker(
            [nats or "", "-a", "127.0.0.1", "-p", "{port}", "-l", "/dev/null"],
            NATS,
            None if nats else "apt: nats-server",
        ),
        "mosquitto": Broker(
            [mosquitto or "", "-c", rules, "-p", "{port}"], MQTT, None if mosquitto else "apt: mosquitto"
        ),
        "node ws": Broker(
            [node or "", str(_SOURCES / "relay_node.js"), str(ws)], absent=no_ws if node else "apt: nodejs"
        ),
        "bun": Broker([str(bun), str(_SOURCES / "relay_bun.js")], absent=missing("bun", bun, lambda: npm("bun@1"))),
        "websockets": Broker(
            [str(python), str(_SOURCES / "relay_websockets.py")], absent=missing("websockets", python, pip)
        ),
        "trio-websocket": Broker(
            [str(python), str(_SOURCES / "relay_trio.py")], absent=missing("trio-websocket", python, pip)
        ),
    }


def _found(program: str) -> str | None:
    """Debian keeps servers where not everybody's PATH leads."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def _fetched(command: list[str], package: str) -> str | None:
    """Run a package manager; why that did not do, None if it did."""
    _STORE.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH)
    except FileNotFoundError:
        return package
    except subprocess.TimeoutExpired:
        return f"{Path(command[0]).name} had no end after {_FETCH:g} s"
    words = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"{Path(command[0]).name}: {words[-1] if words else 'failed'}"[:100] if done.returncode else None


# --- running it ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def relay(shop: Workshop, broker: Broker) -> AsyncIterator[Running]:
    """A broker on the server's core, listening; killed at the end."""
    if "{port}" not in broker.command:
        async with started(shop, broker.command) as server:
            yield Running(server, broker.speech, shop)
        return
    (port,) = free_ports(1)
    process = spawn([*shop.pinned(shop.server_core), *(word.replace("{port}", str(port)) for word in broker.command)])
    try:
        await listening(port, broker.command[0])
        yield Running(Server(process.pid, port), broker.speech, shop)
    finally:
        process.kill()
        process.communicate()


async def listening(port: int, what: str) -> None:
    """Wait until somebody listens there."""
    for _ in range(int(_PATIENCE * 50)):
        try:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
        except OSError:
            await trio.sleep(0.02)
        else:
            await stream.aclose()
            return
    raise CannotMeasure(f"{Path(what).name} does not listen")


@asynccontextmanager
async def daemon(
    shop: Workshop, *, resume: int = 60, hub: str = "", more: str = ""
) -> AsyncIterator[dict[str, Running]]:
    """netd itself, `python -m netd`, with a broker: what it is spoken to plainly, and in operations.

    `resume`: seconds for which a session that has ended is remembered; `hub`: more lines of its section; `more`:
    further sections.
    """
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(dir=shop.directory) as directory:
        toml = _DAEMON.format(port=port, resume=resume, hub=hub, more=more)
        netd = NetdProcess(Path(directory), toml, wrap=shop.pinned(shop.server_core))
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(netd)
            except trio.TooSlowError:
                raise CannotMeasure("the daemon did not get ready; above is what it said") from None
            server = Server(netd.pid, port)
            yield {"netd": Running(server, PLAINLY, shop), "netd operations": Running(server, OPERATIONS, shop)}
            print(netd.log(), end="", file=sys.stderr)  # at level warning: nothing, unless it matters


@asynccontextmanager
async def redis(shop: Workshop) -> AsyncIterator[int]:
    """A redis-server that keeps nothing; its port. Not on the servers' core, whose work is measured."""
    program = _found("redis-server")
    if program is None:
        raise CannotMeasure("there is no redis-server for two nodes (apt: redis-server)")
    (port,) = free_ports(1)
    rules = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(shop.directory)]
    process = spawn([*shop.pinned(shop.load_core), program, "--port", str(port), *rules, "--loglevel", "warning"])
    try:
        await listening(port, program)
        yield port
    finally:
        process.kill()
        process.communicate()
