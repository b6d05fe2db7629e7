"""What the pool keeps: of a session its seat, of a request its ticket, of a worker what it has in hand. Pure.

Rules:
- idle seats are many: what is empty is None, and what is a session's is asked of the session;
- a seat's session may have ended while events of it wait, or are being handled: the seat stays until its worker has
  heard of the end.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from netd.wire.workers import SessionState

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping

    from netd.errors import ApplicationError
    from netd.hub.grants import Grant
    from netd.hub.session import Session
    from netd.wire.workers import Handler, HttpRequest, HttpResponse, ToWorker

Stage = Literal["serving", "leaving"]
"""serving: it gets work. leaving: only what it has in hand is still its own."""
State: TypeAlias = "tuple[str | None, Mapping[str, str], Grant, bytes | None]"
"""Of a session: name, tags, grants, application token."""


class Link(Protocol):
    """A worker's connection, as much of it as the pool needs."""

    @property
    def room(self) -> bool:
        """Whether as much as that may be handed over: not more waits to be written than should."""

    def tell(self, message: ToWorker) -> bool:
        """Write it, in order. False: it is too long for a frame, and is not written."""

    def finished(self) -> None:
        """The worker is leaving, and has nothing in hand any more."""


class Ended(NamedTuple):
    """In a seat's queue, behind its messages: the session is over."""

    code: int
    reason: str
    token: bytes | None


class Seat:
    """One session's place in the pool: what waits for its worker, and what that one has in hand."""

    __slots__ = (
        "after",
        "before",
        "bytes",
        "cancelled",
        "ended",
        "id",
        "open",
        "paused",
        "queue",
        "seen",
        "session",
        "since",
        "told",
        "worker",
    )

    def __init__(self, session: Session) -> None:
        self.session = session
        self.id = session.id
        """The session's, when the seat was made: one that resumes another gets another seat."""
        self.worker: Worker | None = None
        self.queue: deque[str | bytes | Ended] | None = None
        self.bytes = 0
        """Of the messages in the queue; a character counts as one."""
        self.open: list[int] | None = None
        """The numbers of what its worker has in hand, in order."""
        self.since = 0.0
        """When its worker began with the first of them, at the latest."""
        self.cancelled: float | None = None
        """When its worker was told to cancel that."""
        self.paused = False
        """Nothing is read from its client."""
        self.ended = False
        """The session is over."""
        self.seen = False
        """A worker was told that it opened."""
        self.told: State | None = None
        """What its worker was told of the session last; None: nothing."""
        self.after: Seat | None = None
        """The seat of an earlier session with this id, whose end a worker has yet to hear of."""
        self.before: Seat | None = None
        """The one that waits for this one."""

    def __repr__(self) -> str:
        return f"<Seat {self.id}>"

    @property
    def waiting(self) -> int:
        """Events that wait to be handed over."""
        return len(self.queue or ()) + (not self.seen)

    @property
    def token_told(self) -> bytes | None:
        """What its worker was told last of what the application has set."""
        return None if self.told is None else self.told[-1]

    def state(self) -> State:
        """What a worker is told of the session, to be compared."""
        session = self.session
        return session.name, session.tags, session.grants, session.application_token

    def describe(self) -> SessionState:
        return describe(self.session, self.id)


def describe(session: Session, id: str | None = None) -> SessionState:
    """A session as workers are told of it."""
    grants = session.grants
    return SessionState(
        id=id or session.id,
        transport=session.transport,
        address=session.address,
        listener=session.listener,
        name=session.name,
        tags=dict(session.tags),
        opened=session.opened,
        subject=grants.subject,
        grant=grants.token,
        token=session.application_token,
    )


class Ticket:
    """One HTTP request. `answer` is called once, with what came of it."""

    __slots__ = ("answer", "cancelled", "n", "over", "request", "since", "worker")

    def __init__(self, request: HttpRequest, answer: Callable[[HttpResponse | ApplicationError], None]) -> None:
        self.request = request
        self.answer = answer
        self.worker: Worker | None = None
        """None: it waits for one."""
        self.n = 0
        self.since = 0.0
        self.cancelled: float | None = None
        self.over = False

    def settle(self, outcome: HttpResponse | ApplicationError) -> None:
        if not self.over:
            self.over = True
            self.answer(outcome)


class Worker:
    """One connected worker as the pool sees it."""

    __slots__ = (
        "busy",
        "cancelled",
        "handled",
        "handlers",
        "id",
        "line",
        "link",
        "lost",
        "next",
        "open",
        "refused",
        "requests",
        "requests_at_once",
        "seats",
        "sessions_at_once",
        "state",
        "stuck",
        "window",
    )

    def __init__(
        self,
        id: int,
        link: Link,
        handlers: frozenset[Handler],
        *,
        sessions_at_once: int,
        requests_at_once: int,
        window: int,
    ) -> None:
        self.id = id
        self.link = link
        self.handlers = handlers
        self.sessions_at_once = sessions_at_once
        self.requests_at_once = requests_at_once
        self.window = window
        self.state: Stage = "serving"
        self.seats: dict[Seat, None] = {}
        """Sessions that are its own."""
        self.busy: dict[Seat, None] = {}
        """Those of which it has something in hand."""
        self.line: OrderedDict[Seat, None] = OrderedDict()
        """Those of which something waits for it to have a hand free, in order."""
        self.open: dict[int, Seat | Ticket] = {}
        """What it has in hand, by number."""
        self.requests = 0
        self.next = 1
        self.handled = self.cancelled = self.lost = self.refused = 0
        self.stuck = 0
        """How much of what it was told to cancel has yet to end."""

    def __repr__(self) -> str:
        return f"<Worker {self.id} {self.state}>"

    @property
    def takes_sessions(self) -> bool:
        return bool(self.handlers - {"http_request"})

    @property
    def takes_requests(self) -> bool:
        return "http_request" in self.handlers
