"""A connection to the daemon: connect, greet, read and write. What is said on it, conversation.py knows.

    link = await Link.open(Path("/run/netd/worker.sock"), hello)
    goodbye = await link.run(receive)       # until it ends; None: without a goodbye
    await link.ask(verb)                    # from other tasks, meanwhile

Rules:
- it always reads, whatever it has to write: a daemon and a worker that wait for each other would wait for ever;
- what waits to be written is bounded: a verb waits while there is more than QUEUE bytes of it;
- when it ends, whoever waits in a verb is told (DaemonUnreachable).

Left out: what is done with events (desk.py), and another connection after this one (running.py).
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Any, Self

import trio

from netd.errors import DaemonUnreachable, NetdError, ProtocolError
from netd.worker.conversation import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from netd.wire import workers as wire

QUEUE = 1024 * 1024
"""Bytes of verbs that may wait to be written."""
GREETING = 15.0
"""Seconds within which the daemon has to answer a hello."""
_CHUNK = 64 * 1024


class Link:
    """One connection that the daemon has welcomed, or said goodbye to at once."""

    def __init__(self, stream: trio.SocketStream, conversation: Conversation) -> None:
        self.conversation = conversation
        self.ended: NetdError | None = None
        """Why nothing can be said on it any more."""
        self._stream = stream
        self._early: list[wire.ToWorker] = []
        self._wanted = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._posted = 0
        """Bytes on their way from other threads."""
        self._lock = threading.Lock()

    @classmethod
    async def open(cls, path: Path, hello: wire.Hello) -> Self:
        """Connect and wait for the welcome; `conversation.goodbye` is there if that came in its place.

        DaemonUnreachable: there may be a daemon later. ProtocolError or VersionMismatch: what is there is no daemon of
        this version.
        """
        try:
            with trio.fail_after(GREETING):
                link = cls(await _connect(path), Conversation(hello))
                try:
                    await link._greet(path)
                except BaseException:
                    await trio.aclose_forcefully(link._stream)
                    raise
                if link.conversation.goodbye is not None:
                    await link._end()
        except trio.TooSlowError:
            why = f"nothing was answered within {GREETING:g} s"
            raise DaemonUnreachable(f"cannot get a welcome from the daemon at {path}: {why}") from None
        return link

    @property
    def welcome(self) -> wire.Welcome:
        assert self.conversation.welcome is not None
        return self.conversation.welcome

    async def _greet(self, path: Path) -> None:
        conversation = self.conversation
        try:
            await self._stream.send_all(conversation.take())
            while conversation.welcome is None and conversation.goodbye is None:
                data = await self._stream.receive_some(_CHUNK)
                if not data:
                    raise DaemonUnreachable(f"cannot get a welcome from the daemon at {path}: it closed the connection")
                self._early += conversation.receive(data)
        except (trio.BrokenResourceError, OSError) as error:
            raise DaemonUnreachable(f"cannot get a welcome from the daemon at {path}: {error}") from None
        except ProtocolError as error:
            if conversation.welcome is not None:
                raise
            what = "that is no netd, or not its socket for workers ([worker] socket)"
            raise ProtocolError(f"cannot work for what listens at {path}: {what}: {error}") from None

    async def run(self, receive: Callable[[wire.ToWorker], object]) -> wire.Goodbye | None:
        """Read and write until it ends; the daemon's goodbye, or None where it ended without one.

        `receive` is called with each message, and must not block. ProtocolError if the daemon breaks the protocol.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read(receive)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, OSError):
            pass  # it is gone, as it is after the end of what it sends
        finally:
            await self._end()
        return self.conversation.goodbye

    async def _read(self, receive: Callable[[wire.ToWorker], object]) -> None:
        conversation = self.conversation
        messages, self._early = self._early, []
        while True:
            for message in messages:
                receive(message)
            self._wake()
            if conversation.goodbye is not None:
                return
            data = await self._stream.receive_some(_CHUNK)
            if not data:
                return
            messages = conversation.receive(data)

    async def _write(self) -> None:
        while True:
            data = self.conversation.take()
            if data:
                self._room.unpark_all()
                try:
                    await self._stream.send_all(data)
                except trio.BrokenResourceError:
                    return  # whether the daemon has said goodbye before, only the end of what it sends tells
            else:
                self._wanted = trio.Event()
                await self._wanted.wait()

    async def _end(self) -> None:
        self.ended = DaemonUnreachable("cannot get an answer: the connection to the daemon has ended")
        self.conversation.end(self.ended)
        self._room.unpark_all()
        await trio.aclose_forcefully(self._stream)

    # --- for handlers ------------------------------------------------------------------------------------------------

    async def tell(self, verb: wire.Verb) -> None:
        """Queue a verb, once there is room; nothing is answered."""
        await self._wait_for_room()
        self.conversation.say(verb)
        self._wake()

    def post(self, verb: wire.Verb, token: trio.lowlevel.TrioToken) -> bool:
        """Queue a verb from another thread without waiting for the loop; False if there is no room, and nothing done.

        What a thread has posted stands before what it does on the loop afterwards, and before its handler's end.
        """
        if self.ended is not None:
            raise self.ended
        data = self.conversation.written(verb)
        with self._lock:
            if self.conversation.waiting + self._posted > QUEUE:
                return False
            self._posted += len(data)
        token.run_sync_soon(self._take_posted, data)
        return True

    def _take_posted(self, data: bytes) -> None:
        with self._lock:
            self._posted -= len(data)
        self.conversation.put(data)
        self._wake()

    async def ask(self, verb: wire.Verb) -> Any:
        """Queue a verb, and wait for its answer. RequestFailed if the daemon refuses."""
        await self._wait_for_room()
        answered = trio.Event()
        result: list[tuple[Any, NetdError | None]] = []

        def answer(value: Any, error: NetdError | None) -> None:
            result.append((value, error))
            answered.set()

        ref = self.conversation.say(verb, answer)
        assert ref is not None
        self._wake()
        try:
            await answered.wait()
        finally:
            if not result:
                self.conversation.forget(ref)
        value, error = result[0]
        if error is not None:
            raise error
        return value

    def finish(self, n: int) -> None:
        """An event is over."""
        self.conversation.finish(n)
        self._wake()

    def respond(self, n: int, response: wire.HttpResponse) -> None:
        """A request is over. RequestFailed for a response that is too large."""
        self.conversation.respond(n, response)
        self._wake()

    def leave(self) -> None:
        """Ask for no more work, and for the goodbye."""
        self.conversation.leave()
        self._wake()

    async def _wait_for_room(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.ended is None and self.conversation.waiting > QUEUE:
            await self._room.park()
        if self.ended is not None:
            raise self.ended

    def _wake(self) -> None:
        self._wanted.set()


async def _connect(path: Path) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except OSError as error:
        sock.close()
        raise DaemonUnreachable(_why(error, path)) from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


def _why(error: OSError, path: Path) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            start = "start netd with [worker] enabled, or name another socket with --socket or NETD_WORKER_SOCKET"
            return f"cannot reach the daemon: there is no socket {path}; {start}"
        case errno.ECONNREFUSED:
            return f"cannot reach the daemon: nobody listens at {path}; start netd, or look at journalctl -u netd"
        case errno.EACCES | errno.EPERM:
            return f"cannot use {path}: permission denied for user {os.geteuid()}; {_join(path)}"
        case None:  # Python's own check, before the kernel is asked: sun_path holds 107 bytes and a NUL
            raise ProtocolError(f"cannot use {path}: {error}; a socket's path has at most 107 bytes", origin="local")
        case _:
            return f"cannot reach the daemon at {path}: {os.strerror(error.errno)}"


def _join(path: Path) -> str:
    import grp

    try:
        gid = path.stat().st_gid
    except OSError:
        return f"it may not enter {path.parent}"
    if not gid:  # nobody is told to join that
        return "the socket belongs to group root: have [worker] group name another one"
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return f"join group {group} (usermod -aG {group} ACCOUNT, then log in again)"
