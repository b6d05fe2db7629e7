"""One connection to the daemon, without the connection: bytes in and messages out, and the other way round. Sans-IO.

    conversation = Conversation(hello)
    for message in conversation.receive(data): ...     # the first is the welcome
    conversation.finish(n)                             # an event is over
    stream.send_all(conversation.take())               # everything that is to be written, in order

Rules (netd/wire/workers.py is the protocol):
- what the daemon may not say is a ProtocolError: this is where it is noticed, and nobody goes on after it;
- what a handler said stands before its `done`: both go into one queue, and `done` is written behind all of it;
- numbers of events that are over are gathered, and written as one `done`.

Left out: sockets, waiting, and what is done with an event (link.py, desk.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from netd.errors import NetdError, ProtocolError, RequestFailed, VersionMismatch
from netd.wire import workers as wire
from netd.wire.framing import FrameDecoder, FrameLimits

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS = {"denied": 403, "not-found": 404, "too-large": 413, "rate": 429, "too-many": 503, "unavailable": 503}
"""What HTTP calls the daemon's words, for whoever passes an error on."""


class Conversation:
    """What both sides have said so far, as far as it still matters."""

    def __init__(self, hello: wire.Hello) -> None:
        self.hello = hello
        self.welcome: wire.Welcome | None = None
        self.goodbye: wire.Goodbye | None = None
        self.waiting = 0
        """Bytes in the queue to be written, less those of `done`, `response` and `pong`, which must never wait."""
        self.open: set[int] = set()
        """Numbers of what was handed over and is not over."""
        self._limits = FrameLimits(wire.MAX_FRAME)
        self._decoder = FrameDecoder(self._limits)
        self._queue: list[bytes] = [wire.encode(hello)]
        self._done: list[int] = []
        self._last = 0
        self._refs = 0
        self._answers: dict[int, Callable[[Any, NetdError | None], object]] = {}

    # --- what the daemon says ----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[wire.ToWorker]:
        """The messages that these bytes complete, but for pings and answers, which are dealt with in here.

        Raises ProtocolError (VersionMismatch for another version of the protocol) when the daemon breaks the protocol.
        """
        messages = []
        for payload in self._decoder.receive(data):
            message = self._read(payload)
            self._check(message)
            if type(message) is wire.Ping:
                self._queue.append(wire.encode(wire.Pong(n=message.n)))
            elif type(message) is wire.Answer:
                self._answered(message.ref, message.value, None)
            elif type(message) is wire.Error and message.ref is not None:
                self._answered(message.ref, None, failure(message.code, message.message))
            else:
                messages.append(message)
        if self._decoder.error is not None:
            raise self._decoder.error
        return messages

    def _read(self, payload: bytes) -> wire.ToWorker:
        try:
            return wire.decode_to_worker(payload)
        except ProtocolError:
            if self.welcome is None and (version := wire.version_of(payload)) != wire.VERSION:
                raise _other_version(version) from None
            raise

    def _check(self, message: wire.ToWorker) -> None:
        if self.goodbye is not None:
            raise ProtocolError(f"cannot go on: the daemon said {_name(message)} after its goodbye")
        if type(message) is wire.Goodbye:
            self.goodbye = message
        elif type(message) is wire.Welcome:
            self._welcomed(message)
        elif self.welcome is None:
            raise ProtocolError(f"cannot go on: the daemon said {_name(message)} before its welcome")
        elif isinstance(message, wire.SessionOpened | wire.Message | wire.SessionClosed | wire.Request):
            self._handed_over(message.n)

    def _welcomed(self, welcome: wire.Welcome) -> None:
        if self.welcome is not None:
            raise ProtocolError("cannot go on: the daemon said welcome twice")
        if welcome.version != wire.VERSION:
            raise _other_version(welcome.version, welcome.release)
        self.welcome = welcome
        self._limits.max_frame = welcome.max_frame

    def _handed_over(self, n: int) -> None:
        if n != self._last + 1:
            raise ProtocolError(f"cannot go on: the daemon handed over number {n} after {self._last}")
        self._last = n
        assert self.welcome is not None
        most = self.hello.sessions * self.welcome.window + self.hello.requests
        if len(self.open) >= most:
            raise ProtocolError(f"cannot take more than {most} events at once: the daemon hands over too many")
        self.open.add(n)

    def _answered(self, ref: int, value: Any, error: NetdError | None) -> None:
        answer = self._answers.pop(ref, None)
        if answer is None:
            raise ProtocolError(f"cannot go on: the daemon answered {ref}, which nobody asked")
        answer(value, error)

    # --- what the worker says ----------------------------------------------------------------------------------------

    def say(self, verb: wire.Verb, answer: Callable[[Any, NetdError | None], object] | None = None) -> int | None:
        """Queue a verb; with `answer` it is asked for one, and the number is what `forget` takes.

        Raises ProtocolError (origin "local") for data that has no form on the wire, RequestFailed ("too-large") for
        more than the daemon takes.
        """
        if answer is None:
            self.put(self.written(verb))
            return None
        ref = self._refs + 1
        data = self.written(msgspec.structs.replace(verb, ref=ref))
        self._refs = ref
        self._answers[ref] = answer
        self.put(data)
        return ref

    def written(self, verb: wire.Verb) -> bytes:
        """A verb as it goes on the wire; changes nothing, and may be called in any thread. Raises what `say` does."""
        data = self._framed(verb)
        try:
            wire.decode_from_worker(data[4:])  # what the daemon could not read, it would end the connection for
        except ProtocolError as error:
            why = str(error).removeprefix("cannot read the message: ")
            raise ProtocolError(f"cannot {_name(verb)} with these arguments: {why}", origin="local") from None
        return data

    def put(self, data: bytes) -> None:
        """Queue what was written."""
        self._queue.append(data)
        self.waiting += len(data)

    def forget(self, ref: int) -> None:
        """Nobody waits for this answer any more; it is passed over when it comes."""
        if ref in self._answers:
            self._answers[ref] = _nobody

    def finish(self, n: int) -> None:
        """An event is over."""
        self.open.discard(n)
        self._done.append(n)

    def respond(self, n: int, response: wire.HttpResponse) -> None:
        """A request is over. Raises RequestFailed for a response that is longer than the daemon takes."""
        data = self._framed(wire.Response(n=n, response=response))
        self.open.discard(n)
        self._queue.append(data)

    def leave(self) -> None:
        """Ask the daemon for no more work, and for its goodbye."""
        self._queue.append(wire.encode(wire.Leave()))

    def take(self) -> bytes:
        """Everything that is to be written, which the caller does now; empty when there is nothing."""
        if not self._queue and not self._done:
            return b""
        queue, self._queue = self._queue, []
        done, self._done = self._done, []
        queue += [wire.encode(wire.Done(n=done[at : at + wire.MAX_DONE])) for at in range(0, len(done), wire.MAX_DONE)]
        self.waiting = 0
        return b"".join(queue)

    def end(self, error: NetdError) -> None:
        """The connection is gone: whoever waits for an answer gets this error."""
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer(None, error)

    def _framed(self, message: wire.FromWorker) -> bytes:
        data = wire.encode(message)
        if len(data) - 4 > self._limits.max_frame:
            raise failure(
                "too-large",
                f"cannot send a {_name(message)} of {len(data) - 4} bytes: the daemon takes {self._limits.max_frame} "
                "([worker] max_frame)",
            )
        return data


def _other_version(version: int, release: str = "") -> VersionMismatch:
    return VersionMismatch(
        f"cannot work for netd{release and f' {release}'}: it speaks version {version} of the worker protocol, "
        f"and this library {wire.VERSION}; use the netd.worker that came with it"
    )


def failure(code: str, message: str) -> RequestFailed:
    """The daemon's error as an exception."""
    return RequestFailed(code, message, status=_STATUS.get(code, 400))


def _name(message: object) -> str:
    return str(type(message).__struct_config__.tag)  # type: ignore[attr-defined]  # all of them are structs


def _nobody(value: Any, error: NetdError | None) -> None:
    pass
