"""What a session asks of the daemon and waits for, across a loss.

    ask(ref) -> sent -> answered                    the answer, or RequestFailed
                  |
                 lost --repeatable--> sent again, on the next connection
                   \\--else--> DaemonUnreachable: nobody knows whether it was done

Rules:
- `patience` counts from the call on; what nobody waits for any more is not sent;
- while somebody waits for an answer, reading goes on past what is unread (inbox.py).

Left out: what is asked for ahead of the queue, hello and subscriptions (session.py).
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from netd.client.queue import NORMAL, Ticket
from netd.client.refusals import refused
from netd.errors import DaemonUnreachable, NetdError, ProtocolError
from netd.wire import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netd.client.connection import Connection
    from netd.client.inbox import Account
    from netd.client.seams import Loss

_UNREADABLE = "cannot read the request: "


class _Pending(Ticket):
    """A request whose answer somebody awaits."""

    __slots__ = ("answer", "arrived", "payload", "priority", "repeatable", "what")

    def __init__(self, what: str, payload: bytes, priority: int, repeatable: bool) -> None:
        super().__init__()
        self.what = what
        self.payload = payload
        self.priority = priority
        self.repeatable = repeatable
        self.answer: Any = None
        self.arrived = trio.Event()

    def resolve(self, answer: object) -> None:
        self.answer = answer
        self.arrived.set()


class Requests:
    """Of one session."""

    def __init__(self, connection: Connection, account: Account, patience: float, format: messages.Format) -> None:
        """`patience`: seconds for an answer."""
        self.patience = patience
        self._connection = connection
        self._account = account
        self._format: messages.Format = format
        self._refs = itertools.count(1)
        self._pending: dict[int, _Pending] = {}

    def number(self) -> int:
        """A `ref` that no request had before."""
        return next(self._refs)

    async def ask(
        self,
        what: str,
        build: Callable[[int], messages.Request],
        *,
        priority: int = NORMAL,
        repeatable: bool = False,
    ) -> Any:
        """Send it and return the answer. RequestFailed if that is an error, DaemonUnreachable if none comes."""
        ref = self.number()
        pending = _Pending(what, self.payload(what, build(ref)), priority, repeatable)
        self._pending[ref] = pending
        try:
            with self.awaited(), trio.move_on_after(self.patience):
                await self._connection.send(pending.payload, priority, pending)
                if len(self._pending) == 1:  # of many at once, the writer makes one system call
                    self._connection.push()
                await pending.arrived.wait()
        finally:
            del self._pending[ref]
            pending.withdrawn = True  # if it is still queued: what nobody waits for should not happen later
        match pending.answer:
            case None:
                raise self.unanswered(what, pending.left)
            case messages.Error() as error:
                raise refused(error)
            case NetdError() as error:
                raise error
            case answer:
                return answer

    async def tell(self, what: str, request: messages.Request, priority: int) -> None:
        """Send it without asking for an answer."""
        await self._connection.send(self.payload(what, request), priority)

    def payload(self, what: str, request: messages.Request) -> bytes:
        """The request as it goes out. ProtocolError for what the daemon could not read."""
        payload = messages.encode(request, self._format)
        try:
            messages.decode_request(payload, self._format)
        except ProtocolError as error:
            raise ProtocolError(f"cannot {what}: {str(error).removeprefix(_UNREADABLE)}", origin="local") from None
        return payload

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Somebody waits for an answer."""
        self._account.awaited += 1
        self._account.changed()
        try:
            yield
        finally:
            self._account.awaited -= 1
            self._account.changed()

    def unanswered(self, what: str, asked: bool) -> DaemonUnreachable:
        """The error for an answer that did not come, whether the daemon was `asked` or could not be."""
        within = f"within {self.patience:g} s"
        if asked:
            return DaemonUnreachable(f"cannot {what}: no answer {within}")
        state = self._connection.state
        why = f" ({state.reason})" if state.reason else ""
        return DaemonUnreachable(f"cannot {what}: it could not be sent {within}, the state is {state.name}{why}")

    # --- for the session ----------------------------------------------------------------------------------------------

    def answered(self, ref: int | str | None, event: object) -> bool:
        """Whether somebody waits for it."""
        pending = self._pending.get(ref) if isinstance(ref, int) else None
        if pending is not None:
            pending.resolve(event)
        return pending is not None

    def lost(self, loss: Loss) -> None:
        """The connection broke: what was on its way is asked again where that does no harm."""
        for pending in list(self._pending.values()):
            if pending.arrived.is_set() or not pending.left:
                continue
            if pending.repeatable:
                pending.left = False
                self._connection.put_again(pending.payload, pending.priority, pending)
            else:
                pending.resolve(
                    DaemonUnreachable(
                        f"cannot tell whether the daemon did it ({pending.what}): "
                        f"the connection was lost before its answer ({loss.reason})"
                    )
                )

    def closed(self, error: NetdError) -> None:
        for pending in self._pending.values():
            if not pending.arrived.is_set():
                pending.resolve(error)
