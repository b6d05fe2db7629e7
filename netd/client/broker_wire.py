"""A WebSocket as a client's transport, over trio-websocket: what BrokerClient connects with.

    payloads --send_message--> [out] --flusher--> Link (TCP, TLS)
                                 ^ pongs, close
    payloads <--[ready]-- pump <-- trio-websocket's reader <-- Link

What trio-websocket leaves to its user is done here:
- its writes only ever add to `out`, and one task of ours empties that: a send that is cancelled cannot tear a frame, a
  ping is answered while a large message is on its way, and a peer that takes nothing for `write_timeout` is lost (where
  the kernel does not say what it has taken: that takes less than PIECE);
- the pump takes every message at once, so that its reader never waits for us and sees what lies behind (pings, close);
- nothing is read from the socket while messages wait in `ready`: a user who does not read is felt by the peer, and
  `ready` holds what one read brought at most. Nor while the peer leaves ANSWERS bytes of pongs untaken;
- what the network raises is kept as the reason of the loss, and its reader only sees an end;
- of an answer that is no upgrade, no more than HEAD bytes are read.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import h11
import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, HandshakeError, wrap_client_stream
from wsproto.utilities import ProtocolError as WebSocketError

from netd.client.broker_options import bearer
from netd.client.connection import LAST_WORDS, why
from netd.client.link import CHUNK, dial
from netd.client.options import Unix
from netd.client.refusals import refused_upgrade
from netd.client.seams import Ended, Loss
from netd.client.session import loss_of
from netd.errors import DaemonUnreachable, NetdError, ProtocolError
from netd.wire import websocket
from netd.wire.messages import Close

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_websocket import WebSocketConnection

    from netd.client.broker_options import Options, Url
    from netd.client.link import Link
    from netd.client.seams import Face, Wire
    from netd.client.state import Counters

PIECE = 16 * 1024
"""Bytes of one write."""
LOOKS = 4
"""Looks at what the peer has taken, within `write_timeout`."""
ANSWERS = 256 * 1024
"""Bytes that may wait for a peer before nothing more is read from it."""
HEAD = 64 * 1024
"""Bytes of the answer to the upgrade, its body included."""
_CLOSE = 0x80 | websocket.CLOSE
_CONTROL = 0x08
"""Set in the first byte of what is no message of ours (RFC 6455 section 5.5)."""
_STRANGE = "the peer does not speak WebSocket as it should"
_NO_HTTP = f"{_STRANGE}; is this the address of a broker?"
_HTTP = b"HTTP/"
"""How an answer begins (RFC 9112 section 4)."""
_ABNORMAL = 1006
_NO_STATUS = 1005
_TOO_LARGE = "Exceeded maximum message size"  # trio-websocket, closing of its own accord
_SILENT = "it ended the connection instead of answering"
_WANTS_TLS = "does it want TLS (wss://)?"
_TLS_ALERT = b"\x15\x03"
"""How a TLS server may begin its answer to what is no TLS (RFC 8446 section 5.1)."""


class BrokerTransport:
    """Connections to one broker."""

    prepares = True
    otherwise = "is this the URL of a netd broker's operations (/ws)?"
    unanswered = otherwise
    pushes = False

    def __init__(self, url: Url, options: Options, *, plain: bool = False) -> None:
        """`plain`: no operations; a payload that is UTF-8 goes as text, another as binary."""
        self.address = url
        self.plain = plain
        self.token: Callable[[], str | None] = _none
        """What is to be shown in the header."""
        self._options = options

    def frame(self, payload: bytes) -> bytes:
        """The payload as it is. ProtocolError if it is longer than a message may be."""
        if len(payload) > self._options.max_message:
            raise ProtocolError(
                f"cannot send {len(payload)} bytes: max_message is {self._options.max_message}",
                origin="local",
                close=1009,
            )
        return payload

    async def dial(self, nursery: trio.Nursery, counters: Counters, face: Face) -> Wire:
        try:
            await face.prepare()
        except DaemonUnreachable:
            raise
        except NetdError as error:  # the user's way to a token is one to the daemon too: it may be there later
            raise DaemonUnreachable(str(error)) from error
        headers = dict(self._options.headers)
        if (token := self.token()) is not None:
            headers["Authorization"] = bearer(token)
        patience = self._options.connect_timeout
        deadline = trio.current_time() + patience
        link = await dial(self.address.peer, self._options, plain="write ws://")
        wire = BrokerWire(link, self, self._options, counters)
        try:
            with trio.fail_at(deadline):
                await nursery.start(wire.serve, headers)
        except BaseException as error:
            link.close()
            if isinstance(error, trio.TooSlowError):
                raise DaemonUnreachable(
                    f"cannot connect to {self.address}: no answer to the upgrade within {patience:g} s"
                ) from None
            raise
        return wire

    def opening(self) -> list[bytes]:
        return []

    def missing(self, wire: Wire) -> None:
        return None


class BrokerWire:
    """One WebSocket."""

    def __init__(self, link: Link, transport: BrokerTransport, options: Options, counters: Counters) -> None:
        self.opened = link.opened
        self.wake: Callable[[], None] = _nothing
        self.discarding = False
        self.unsent = False  # pongs and the like, which no user of the client waits for
        self._link = link
        self._url = transport.address
        self._plain = transport.plain
        self._options = options
        self._counters = counters
        self._scope = trio.CancelScope()
        self._ws: WebSocketConnection
        # out
        self._out = bytearray()
        self._stirred = trio.Event()
        self._drained = trio.Event()
        self._drained.set()
        self._closed = False
        """Whether a close is among what was written, which is there in answer to the peer's, or is our own."""
        self._own = 0
        """Bytes of messages, with their headers, among those that wait; the rest are answers."""
        self._unwritten: BaseException | None = None
        """What writing met."""
        self._writing = trio.CancelScope()
        """Of the latest write."""
        self._parted: trio.Event | None = None
        """Once we say goodbye: set when it is said."""
        # in
        self._ready: list[bytes] = []
        self._arrived = trio.Event()
        self._taken = trio.Event()
        self._head = 0
        self._upgraded = False
        self._loss: Loss | None = None
        """Why nothing more comes."""
        self._broken: Loss | None = None
        """What the network, or the reader, ended with, if anything."""
        self._refused: NetdError | None = None
        self._opening = trio.CancelScope()
        link.wake = self._stir

    @property
    def heard(self) -> float:
        return self._link.heard

    @heard.setter
    def heard(self, at: float) -> None:
        self._link.heard = at

    # --- the connection's side ----------------------------------------------------------------------------------------

    async def send(self, framed: list[bytes]) -> None:
        """Until the kernel has all of it, or trio.BrokenResourceError."""
        shape = _text_or_binary if self._plain else bytes.decode if self._options.format == "json" else bytes
        try:
            for payload in framed:
                await self._ws.send_message(shape(payload))
        except (ConnectionClosed, WebSocketError) as error:
            raise trio.BrokenResourceError("the WebSocket is closed") from error
        while not self._drained.is_set() and self._unwritten is None:
            await self._drained.wait()
        if self._unwritten is not None:
            raise trio.BrokenResourceError("cannot send: the connection broke") from self._unwritten

    def send_nowait(self, framed: list[bytes]) -> None:
        raise NotImplementedError  # `pushes` is False

    async def receive(self) -> list[bytes]:
        while True:
            while not self._ready:
                if self._loss is not None:
                    raise Ended(self._loss)
                self._arrived = trio.Event()
                await self._arrived.wait()
            taken, self._ready = self._ready, []
            self._taken.set()
            if not self.discarding:
                return taken

    async def say_goodbye(self) -> None:
        """The closing handshake (RFC 6455 section 7.1.2), then nothing more."""
        self._parted = trio.Event()
        try:
            await self._ws.aclose()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
                await self._link.say_goodbye()
        finally:
            self._parted.set()

    def close(self) -> None:
        self._scope.cancel()
        self._link.close()

    # --- the tasks of one connection ----------------------------------------------------------------------------------

    async def serve(
        self, headers: dict[str, str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Upgrade, then carry until the end. Raises NetdError before it has started, nothing after."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush)
                nursery.start_soon(self._look)
                with self._opening:
                    self._ws = await self._upgrade(nursery, headers)
                    self._upgraded = True
                if self._upgraded:
                    task_status.started()
                    await self._pump()
                nursery.cancel_scope.cancel()
        if not self._upgraded:
            raise self._refused or DaemonUnreachable(f"cannot connect to {self._url}: {self._unanswered()}")

    def _unanswered(self) -> str:
        """Why there is no answer to the upgrade."""
        reason = _SILENT if self._broken is None else self._broken.reason
        if not self._head and not self._url.secure and not isinstance(self._url.peer, Unix):
            return f"{reason}; {_WANTS_TLS}"  # a server of TLS may hang up on what is none without a word
        return reason if self._broken is not None else f"{reason}; does it speak WebSocket there?"

    async def _upgrade(self, nursery: trio.Nursery, headers: dict[str, str]) -> WebSocketConnection:
        format = "netd.json" if self._options.format == "json" else "netd.msgpack"
        return await wrap_client_stream(
            cast("trio.Nursery", _Reading(nursery, self)),
            cast("trio.SocketStream", _Stream(self)),
            self._url.host,
            self._url.target,
            subprotocols=[] if self._plain else [format],
            extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            max_message_size=self._options.max_message,
            receive_buffer_size=CHUNK,
        )

    async def read(self, task: Callable[[], Awaitable[object]]) -> None:
        """trio-websocket's reader, with its end noticed and its errors kept."""
        try:
            await task()
        except ConnectionRejected as answer:
            self._refused = refused_upgrade(self._url, answer.status_code, answer.headers, answer.body)
        except h11.LocalProtocolError:  # its own answer to what is no HTTP is one that only a server can give
            self._broken = self._broken or Loss(_NO_HTTP)
        except (HandshakeError, WebSocketError, ConnectionClosed, h11.ProtocolError) as error:
            self._broken = self._broken or Loss(f"{_STRANGE} ({error})")
        finally:
            if not self._upgraded:
                self._opening.cancel()

    async def _pump(self) -> None:
        most = self._options.max_message
        try:
            while True:
                message = await self._ws.get_message()
                payload = message.encode() if isinstance(message, str) else message
                if len(payload) > most:  # trio-websocket counts a text's characters
                    self._broken = Loss(f"the peer sent a message of {len(payload)} bytes: max_message is {most}")
                    break
                self._ready.append(payload)
                self._arrived.set()
        except ConnectionClosed:
            if self._parted is not None:
                await self._parted.wait()
        loss = self._end()
        with trio.move_on_after(LAST_WORDS):  # for our half of the closing handshake to leave
            await self._drained.wait()
        self._loss = self._loss or loss
        self._arrived.set()

    def _end(self) -> Loss:
        """How it ended, as far as anybody said."""
        said = self._ws.closed
        if said is not None and said.code != _ABNORMAL and (self._closed or self._parted is not None):
            if said.code == _NO_STATUS or self._parted is not None:
                return Loss("the peer closed the WebSocket", clean=True)
            if (said.reason or "").startswith(_TOO_LARGE):
                return Loss(f"the peer sent too large a message: max_message is {self._options.max_message}")
            return loss_of(Close(said.code, said.reason or ""))
        if self._broken is not None:
            return self._broken
        if said is None:
            return Loss("the peer broke the rules of WebSocket")
        if said.code == _ABNORMAL:
            torn = "without TLS saying so" if self._link.torn else "without a goodbye"
            return Loss(f"the connection ended {torn}")
        # a verdict of our own, which trio-websocket tells nobody
        with suppress(trio.BrokenResourceError):
            self.put(websocket.close(said.code, said.reason or "", key=os.urandom(4)))
        return Loss(f"the peer broke the rules of WebSocket: {said.reason or said.code}")

    async def _flush(self) -> None:
        """Everything that is to be written, as the kernel takes it."""
        try:
            while True:
                await self._stirred.wait()
                self._stirred = trio.Event()
                while self._out or self._link.unsent:
                    piece = bytes(self._out[:PIECE])
                    del self._out[:PIECE]
                    with trio.move_on_after(self._options.write_timeout) as self._writing:
                        await self._link.send(piece)
                    if self._writing.cancelled_caught:
                        raise trio.TooSlowError
                    self._counters.bytes_out += len(piece)
                self._own = 0
                self._drained.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
            self._unwritten = error
        except trio.TooSlowError as error:
            self._unwritten = error
            self._loss = Loss(f"the peer took nothing for {self._options.write_timeout:g} s")
            self._arrived.set()
        self._out.clear()
        self._drained.set()

    async def _look(self) -> None:
        """Whoever takes a little, however little, is not lost."""
        timeout = self._options.write_timeout
        before: int | None = None
        while True:
            await trio.sleep(timeout / LOOKS)
            left = self._link.untaken
            if left is not None and left != before:
                self._writing.deadline = trio.current_time() + timeout
            before = left

    # --- what trio-websocket takes for its stream ---------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        if self._unwritten is not None:
            raise trio.BrokenResourceError from self._unwritten
        self._closed = self._closed or data[0] == _CLOSE
        if not data[0] & _CONTROL:
            self._own += len(data)
        self._out += data
        self._drained = trio.Event() if self._drained.is_set() else self._drained
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()

    async def take(self) -> bytes:
        """What has arrived; b"" at the end, whatever that was."""
        while self._ready and self._upgraded:
            self._taken = trio.Event()
            await self._taken.wait()
        while len(self._out) - self._own > ANSWERS and self._unwritten is None:
            await self._drained.wait()
        try:
            data = await self._link.receive()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError) as error:
            self._broken = self._broken or Loss(why(error))
            return b""
        except NetdError as error:
            self._broken = self._broken or Loss(str(error))
            return b""
        self._counters.bytes_in += len(data)
        if not self._upgraded:
            begins, self._head = not self._head, self._head + len(data)
            if begins and data.startswith(_TLS_ALERT) and not self._link.tls:
                self._broken = Loss("the peer speaks TLS; write wss://")
                return b""
            if begins and not data.startswith(_HTTP[: len(data)]):  # h11 would wait for the end of a head
                self._broken = Loss(_NO_HTTP)
                return b""
            if self._head > HEAD:
                self._broken = Loss(f"its answer to the upgrade has more than {HEAD} bytes")
                return b""
        return data


class _Stream(trio.abc.Stream):
    """A BrokerWire's bytes, as trio-websocket wants them."""

    def __init__(self, wire: BrokerWire) -> None:
        self._wire = wire
        self._closed = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        self._wire.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._closed.is_set():
            await trio.lowlevel.checkpoint()
            return b""
        return await self._wire.take()

    async def aclose(self) -> None:
        self._closed.set()  # the socket is the connection's
        await trio.lowlevel.checkpoint()


class _Reading:
    """The nursery that trio-websocket starts its reader in."""

    def __init__(self, nursery: trio.Nursery, wire: BrokerWire) -> None:
        self._nursery = nursery
        self._wire = wire

    def start_soon(self, task: Callable[[], Awaitable[Any]]) -> None:
        self._nursery.start_soon(self._wire.read, task)


def _text_or_binary(payload: bytes) -> str | bytes:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload


def _nothing() -> None:
    pass


def _none() -> None:
    pass
