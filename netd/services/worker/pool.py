"""The pool: which session is whose, which request goes where, and what follows when a worker goes. Pure.

    hub -----opened, message, closed--> Seat --up to `window` at once--> its Worker --done-->
    broker --ask----------------------> Ticket --to the least busy-----> a Worker   --answered-->
                                          join: sessions without a worker get one
                                          leave: its sessions get another; what it had in hand is lost, requests fail

Rules:
- a session has one worker until it ends or the worker goes: the one with the fewest sessions as it needed one. Where
  there was none left, one of which nothing waits needs one with its next event. None has one before the workers that
  the daemon starts are there, or `wait` is over: so they are spread over all of them;
- its events are handed over in order, the next session's before it has another turn;
- what was handed over and not done as its worker went is lost and counted: it may have happened, or be what brought
  the worker down. What was not handed over goes to the next worker, in order;
- a worker gets no more than it can begin at once (its `sessions` and `requests`), so that what takes too long is
  known to hang; the rest waits here, where it can still go elsewhere;
- past `session_queue` messages, `session_bytes` or `max_bytes` of all, nothing more is read from the client, until half
  of its own is handed over. What was read already is still taken in;
- a client that goes has its request cancelled, but nobody is hung for it sooner than if it had stayed;
- with no worker connected messages are echoed, and requests refused; but for `wait` seconds after the last has gone,
  both wait for the next. What waits after that is echoed, and refused;
- an end that nobody has heard of is kept for at most `max_ended` sessions; past that the oldest are forgotten.

Over 600 lines, since what hands over, what takes back and what is lost in between have to be read together.

Left out: connections and time (service.py), what workers ask for (verbs.py).
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from netd.errors import ApplicationError
from netd.services.worker.seats import Ended, Seat, Ticket, Worker
from netd.wire.workers import Cancel, HttpResponse, Message, Request, SessionClosed, SessionKnown, SessionOpened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    from netd.hub.session import Session
    from netd.services.worker.config import WorkerConfig
    from netd.wire.workers import HttpRequest, ToWorker


class Pool:
    """All workers, and all that is theirs. `clock` is monotonic; `echo` answers a message where there is no worker;
    `sessions` are those that are there."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        clock: Callable[[], float],
        echo: Callable[[Session, str | bytes], None],
        sessions: Callable[[], Iterable[Session]],
    ) -> None:
        self.config = config
        """May be replaced: it counts from the next event on."""
        self._clock = clock
        self._echo = echo
        self._sessions = sessions
        self.workers: dict[int, Worker] = {}
        self.seats: dict[Session, Seat] = {}
        """Of sessions that are there. Empty while no worker that takes sessions was ever connected."""
        self._ended: OrderedDict[Seat, None] = OrderedDict()
        """Of sessions that are over."""
        self._latest: dict[str, Seat] = {}
        """By id, the last of them: several stays may have had one id."""
        self._alone: dict[Seat, None] = {}
        """Seats without a worker."""
        self._line: dict[Ticket, None] = {}
        """Requests without a worker."""
        self._sessions_until = self._requests_until = -math.inf
        """Until when events and requests wait for a worker though there is none."""
        self._hoping = False
        """Something may wait in seats without a worker."""
        self._awaited, self._awaited_from, self._awaited_until = 0, 0, -math.inf
        """So many workers, of that id or later, have to be there before any has a session, until then."""
        self.bytes = 0
        self.next_id = 1
        self.joined = self.crashed = self.hung = 0
        self.handled = self.cancelled = self.lost = self.dropped = self.pauses = self.moved = 0
        self.requests = {"answered": 0, "failed": 0, "refused": 0, "timeout": 0}

    # --- workers -----------------------------------------------------------------------------------------------------

    def join(self, worker: Worker) -> None:
        """A worker is there: it gets what waits, and sessions that have none."""
        self.workers[worker.id] = worker
        self.joined += 1
        if sum(id >= self._awaited_from for id in self.workers) >= self._awaited:
            self._awaited = 0
        if worker.takes_sessions:
            for session in self._sessions():
                if session not in self.seats:
                    self._seat(session)
            if "message" in worker.handlers:
                for other in self.workers.values():
                    if "message" not in other.handlers:  # they had sessions for want of a better one
                        for seat in [each for each in other.seats if not each.open]:
                            self._move(seat)
        self._pin_who_waits()
        self._serve_line()

    def leave(self, worker: Worker, status: Literal[502, 504] = 502) -> None:
        """A worker has gone, with or without a word. Its requests fail with this status."""
        if self.workers.pop(worker.id, None) is None:
            return
        why = "cannot answer: the worker went down over it" if status == 502 else "cannot answer: the worker hangs"
        self._expect(worker)
        worker.state = "leaving"  # or what follows an end that it had in hand would be handed to it
        open, worker.open = worker.open, {}
        for item in open.values():
            worker.lost += 1
            if isinstance(item, Ticket):
                if not item.over:
                    self.requests["failed"] += 1
                    item.settle(ApplicationError(status, why))
            else:
                self.lost += 1
        worker.busy.clear()
        worker.line.clear()
        for seat in list(worker.seats):
            if seat.worker is not worker:
                continue  # it followed another, and went where that is said
            seat.open, seat.cancelled = None, None
            if seat.ended and not seat.queue:
                self._remove(seat)  # its end was what got lost
            else:
                self._move(seat)
        self._serve_line()

    def retire(self, worker: Worker) -> None:
        """The worker is to go: no new work. Sessions of which it has nothing in hand become others' at once, the rest
        as it is done. Calls `link.finished` when nothing is left."""
        if worker.state == "leaving" or worker.id not in self.workers:
            return
        worker.state = "leaving"
        self._expect(worker)
        worker.line.clear()
        for seat in list(worker.seats):
            if not seat.open and seat.worker is worker:
                self._move(seat)
        self._finish(worker)

    def relieved(self, worker: Worker) -> None:
        """Its connection has room again."""
        self._advance(worker)
        self._serve_line()

    def done(self, worker: Worker, n: int) -> bool:
        """An event was handled. False: the worker has no such event in hand."""
        seat = worker.open.get(n)
        if not isinstance(seat, Seat) or seat.open is None:
            return False
        del worker.open[n]
        worker.handled += 1
        self.handled += 1
        if seat.open[0] == n:
            worker.stuck -= seat.cancelled is not None
            seat.since, seat.cancelled = self._clock(), None
        seat.open.remove(n)
        if seat.open:
            self._hand_over(seat, more=not worker.line)
        else:
            seat.open = None
            worker.busy.pop(seat, None)
            if seat.ended and not seat.queue:
                self._remove(seat)
            elif self._passed_over(worker):
                self._move(seat)
            elif seat.waiting:
                self._queue_up(seat)
        self._advance(worker)
        self._finish(worker)
        return True

    def answered(self, worker: Worker, n: int, response: HttpResponse) -> bool:
        """A request was answered, in time or not. False: the worker has no such request in hand."""
        ticket = worker.open.get(n)
        if not isinstance(ticket, Ticket):
            return False
        del worker.open[n]
        worker.requests -= 1
        worker.stuck -= ticket.cancelled is not None
        worker.handled += 1
        if not ticket.over:
            self.requests["answered"] += 1
            ticket.settle(response)
        self._serve_line()
        self._finish(worker)
        return True

    def look(self) -> list[Worker]:
        """Once a second, or so: cancel what takes too long, end waits that were in vain. Returns who hangs."""
        now = self._clock()
        hung = []
        for worker in self.workers.values():
            tickets = [item for item in worker.open.values() if isinstance(item, Ticket)]
            ends = [each.cancelled for each in worker.busy] + [each.cancelled for each in tickets]
            if any(cancelled is not None and now - cancelled > self.config.hang for cancelled in ends):
                hung.append(worker)
                continue
            for seat in worker.busy:
                if seat.cancelled is None and seat.open and now - seat.since > self.config.message_timeout:
                    seat.cancelled = now
                    worker.cancelled += 1
                    worker.stuck += 1
                    self.cancelled += 1
                    worker.link.tell(Cancel(seat.open[0]))
        if self._awaited and not self._awaiting:
            self._awaited = 0
            self._pin_who_waits()
        if self._hoping and now >= self._sessions_until:
            self._give_up()
        if self._line and now >= self._requests_until and not self._answering():
            for ticket in list(self._line):
                self._refuse(ticket, "no worker is connected")
        return hung

    def wait(self, seconds: float, workers: int) -> None:
        """So many workers are about to come: requests wait for the first of them, and sessions for all, or the first
        would have every one. Those of an earlier call are waited for no more."""
        until = self._clock() + seconds
        self._awaited, self._awaited_from, self._awaited_until = workers, self.next_id, until
        self._sessions_until = max(self._sessions_until, until)
        self._requests_until = max(self._requests_until, until)
        self._hoping = True

    def end(self) -> None:
        """There will be no workers any more: whatever waits is echoed and refused."""
        for worker in list(self.workers.values()):
            self.leave(worker)
        self._give_up()
        for ticket in list(self._line):
            self._refuse(ticket, "workers are not served any more")
        self.seats.clear()
        self._alone.clear()
        self._sessions_until = self._requests_until = -math.inf
        self._awaited = 0

    # --- sessions ----------------------------------------------------------------------------------------------------

    def opened(self, session: Session) -> None:
        """A session is there."""
        if self._takes_sessions():
            self._pin(self._seat(session))

    def message(self, session: Session, data: str | bytes) -> bool:
        """A session says something. False: there is no worker for that."""
        seat = self.seats.get(session)
        if seat is None:
            if not self._takes_sessions():
                return False
            seat = self._seat(session)
            self._pin(seat)
        elif seat.worker is None:
            if not self._takes_sessions():
                if self._hoping:
                    self._give_up()
                return False
            self._pin(seat)
        worker = seat.worker
        if worker is not None and "message" not in worker.handlers and not self._passed_over(worker) and not seat.queue:
            return False  # behind what waits for an earlier worker, it waits too
        if seat.queue is None:
            seat.queue = deque()
        seat.queue.append(data)
        seat.bytes += len(data)
        self.bytes += len(data)
        if worker is not None:
            self._step(seat)
        config = self.config
        if not seat.paused and (
            len(seat.queue) >= config.session_queue
            or seat.bytes >= config.session_bytes
            or (self.bytes >= config.max_bytes and seat.queue)
        ):
            seat.paused = True
            self.pauses += 1
            session.link.pause()
        return True

    def closed(self, session: Session, code: int, reason: str) -> None:
        """A session is over."""
        seat = self.seats.pop(session, None)
        if seat is not None:
            self._end(seat, Ended(code, reason, session.application_token))

    def resumed(self, session: Session, former: str) -> None:
        """A session has another id: for workers that is the end of one and the beginning of another."""
        seat = self.seats.pop(session, None)
        if seat is None:
            return
        if not seat.seen and not seat.queue:
            self._remove(seat)  # nobody has heard of it
        else:
            self._unpause(seat)
            # its token is that of the resumed one by now
            self._end(seat, Ended(1000, f"resumed {session.id}", seat.token_told))
        self.opened(session)

    def state_changed(self, session: Session) -> None:
        """Tell its worker at once, if it has one that knows it."""
        seat = self.seats.get(session)
        if seat is not None and seat.worker is not None and seat.told is not None:
            self._introduce(seat, seat.worker)

    # --- requests ----------------------------------------------------------------------------------------------------

    def ask(self, request: HttpRequest, answer: Callable[[HttpResponse | ApplicationError], None]) -> Ticket:
        """Have the least busy worker answer. Raises ApplicationError where it cannot even wait for one."""
        ticket = Ticket(request, answer)
        ticket.since = self._clock()
        worker = self._least_busy()
        if worker is not None:
            self._hand_request(ticket, worker)
            return ticket
        if not self._answering() and self._clock() >= self._requests_until:
            self.requests["refused"] += 1
            raise ApplicationError(503, "cannot answer: no worker is connected")
        if len(self._line) >= self.config.max_waiting:
            self.requests["refused"] += 1
            raise ApplicationError(503, f"cannot answer: {len(self._line)} requests wait for a worker already")
        self._line[ticket] = None
        return ticket

    def abandon(self, ticket: Ticket, *, timeout: bool = False) -> None:
        """Nobody waits for it any more."""
        if ticket.over:
            return
        ticket.over = True
        self._line.pop(ticket, None)
        if timeout:
            self.requests["timeout"] += 1
        worker = ticket.worker
        if worker is not None and ticket.n in worker.open:
            # it has no less time to end than if its client had stayed: a client that goes shall bring no worker down
            ticket.cancelled = max(self._clock(), ticket.since + self.config.request_timeout)
            worker.cancelled += 1
            worker.stuck += 1
            worker.link.tell(Cancel(ticket.n))

    def late(self, ticket: Ticket, seconds: float) -> ApplicationError:
        """For a request that was abandoned because its time was up."""
        who = "no worker was free" if ticket.worker is None else "the worker did not"
        return ApplicationError(504, f"cannot answer: {who} within {seconds:g} s (worker.request_timeout)")

    # --- inside: whose ----------------------------------------------------------------------------------------------

    def _candidates(self) -> list[Worker]:
        """Who may have sessions: those with a `message` handler before those with only the others."""
        if self._awaiting:
            return []
        some = [each for each in self.workers.values() if each.state == "serving" and each.takes_sessions]
        return [each for each in some if "message" in each.handlers] or some

    @property
    def _awaiting(self) -> bool:
        return self._awaited > 0 and self._clock() < self._awaited_until

    def _passed_over(self, worker: Worker) -> bool:
        """Its sessions are to become others' as soon as it has nothing of them in hand."""
        if worker.state == "leaving" or "message" in worker.handlers:
            return worker.state == "leaving"
        return any(each.state == "serving" and "message" in each.handlers for each in self.workers.values())

    def _takes_sessions(self) -> bool:
        return bool(self._candidates()) or self._clock() < self._sessions_until

    def _answering(self) -> bool:
        return any(each.state == "serving" and each.takes_requests for each in self.workers.values())

    def _expect(self, worker: Worker) -> None:
        until = self._clock() + self.config.wait
        if worker.takes_sessions:
            self._sessions_until = max(self._sessions_until, until)
            self._hoping = True
        if worker.takes_requests:
            self._requests_until = max(self._requests_until, until)

    def _seat(self, session: Session) -> Seat:
        seat = self.seats[session] = Seat(session)
        earlier = self._latest.get(seat.id)
        if earlier is not None:
            seat.after, earlier.before = earlier, seat
        self._alone[seat] = None
        return seat

    def _pin(self, seat: Seat) -> None:
        """Give it a worker, if there is one."""
        candidates = self._candidates()
        if not candidates:
            return
        worker = min(candidates, key=lambda each: len(each.seats))
        self._alone.pop(seat, None)
        seat.worker = worker
        worker.seats[seat] = None
        if seat.seen:
            self.moved += 1
        self._step(seat)

    def _pin_who_waits(self) -> None:
        for seat in list(self._alone):
            if seat.waiting:  # the others as they need one: the first to come back would have them all
                self._pin(seat)

    def _move(self, seat: Seat) -> None:
        """From its worker to another."""
        self._take_from_its_worker(seat)
        seat.told = None
        if seat.seen and seat.ended and not seat.queue:
            self._remove(seat)
            return
        self._alone[seat] = None
        self._pin(seat)

    def _end(self, seat: Seat, end: Ended) -> None:
        seat.ended, seat.paused = True, False
        if not seat.seen and not seat.queue:
            self._remove(seat)  # no worker need ever know
            return
        if seat.worker is None and not self._takes_sessions():
            self._forget_queue(seat)
            self._remove(seat)
            return
        if seat.queue is None:
            seat.queue = deque()
        seat.queue.append(end)
        self._ended[seat] = None
        self._latest[seat.id] = seat
        if len(self._ended) > self.config.max_ended:
            oldest = next((each for each in self._ended if not each.open), None)
            if oldest is not None:
                self._forget_queue(oldest)
                self._remove(oldest)
                if oldest is seat:
                    return
        if seat.worker is None:
            self._pin(seat)
        else:
            self._step(seat)

    def _remove(self, seat: Seat) -> None:
        """Nothing of it is left to be told."""
        if self.seats.get(seat.session) is seat:
            del self.seats[seat.session]
        self._ended.pop(seat, None)
        if self._latest.get(seat.id) is seat:
            del self._latest[seat.id]
            if seat.after is not None:
                self._latest[seat.id] = seat.after
        self._alone.pop(seat, None)
        self._take_from_its_worker(seat)
        earlier, seat.after = seat.after, None
        following, seat.before = seat.before, None
        if earlier is not None:
            earlier.before = following
        if following is not None:
            following.after = earlier
            if following.worker is not None:
                self._step(following)

    def _take_from_its_worker(self, seat: Seat) -> None:
        worker, seat.worker = seat.worker, None
        if worker is not None:
            worker.seats.pop(seat, None)
            worker.line.pop(seat, None)

    def _forget_queue(self, seat: Seat) -> None:
        queue, seat.queue = seat.queue, None
        self.dropped += sum(not isinstance(each, Ended) for each in queue or ())
        self.bytes -= seat.bytes
        seat.bytes = 0

    def _give_up(self) -> None:
        """Nobody came: what waits is echoed."""
        self._hoping = False
        for seat in list(self._alone):
            queue, seat.queue = seat.queue, None
            self.bytes -= seat.bytes
            seat.bytes = 0
            for data in queue or ():
                if not isinstance(data, Ended):
                    self._say_back(seat, data)
            self._unpause(seat)
            if seat.ended or not seat.seen:
                self._remove(seat)

    # --- inside: handing over ----------------------------------------------------------------------------------------

    def _step(self, seat: Seat) -> None:
        """Something waits in a seat that has a worker."""
        worker = seat.worker
        assert worker is not None
        if seat.after is not None or seat in worker.line:
            return
        if seat.open:
            # its turn is not over; but while others wait for theirs it gets no more
            if not worker.line:
                self._hand_over(seat)
        elif worker.state == "leaving":
            self._move(seat)
        elif worker.line or len(worker.busy) >= worker.sessions_at_once or not worker.link.room:
            self._queue_up(seat)
        else:
            self._hand_over(seat)

    def _queue_up(self, seat: Seat) -> None:
        assert seat.worker is not None
        seat.worker.line[seat] = None

    def _advance(self, worker: Worker) -> None:
        """Give those in the line their turn, as far as the worker has hands."""
        line = worker.line
        while line and worker.link.room:
            seat = next(iter(line))
            if not seat.open and len(worker.busy) >= worker.sessions_at_once:
                break
            del line[seat]
            self._hand_over(seat)

    def _hand_over(self, seat: Seat, *, more: bool = True) -> None:
        """As much as its window takes. Not `more`: others are waiting, and what it has in hand is enough."""
        worker = seat.worker
        assert worker is not None
        if not more or self._passed_over(worker):
            return
        while seat.waiting and (seat.open is None or len(seat.open) < worker.window):
            if not worker.link.room:
                self._queue_up(seat)
                break
            self._hand_one(seat, worker)
        config = self.config
        if seat.paused and len(seat.queue or ()) * 2 <= config.session_queue and seat.bytes * 2 <= config.session_bytes:
            self._unpause(seat)
        if seat.open is None and seat.ended and not seat.queue:
            self._remove(seat)

    def _hand_one(self, seat: Seat, worker: Worker) -> None:
        if not seat.seen:
            seat.seen = True
            seat.told = seat.state()
            self._open(seat, worker, lambda n: SessionOpened(n, seat.describe()))
            return
        assert seat.queue is not None
        data = seat.queue.popleft()
        if not isinstance(data, Ended):
            seat.bytes -= len(data)
            self.bytes -= len(data)
            if "message" not in worker.handlers:  # the one that it waited for had a handler
                self._say_back(seat, data)
                return
        if seat.told is None or (seat.told != seat.state() and not isinstance(data, Ended)):
            self._introduce(seat, worker)
        if isinstance(data, Ended):
            self._open(seat, worker, lambda n: SessionClosed(n, seat.id, data.token, data.code, data.reason))
            return
        self._open(seat, worker, lambda n: Message(n, seat.id, data))

    def _say_back(self, seat: Seat, data: str | bytes) -> None:
        """There is no worker for it."""
        if seat.ended:
            self.dropped += 1
        else:
            self._echo(seat.session, data)

    def _introduce(self, seat: Seat, worker: Worker) -> None:
        seat.told = seat.state()
        worker.link.tell(SessionKnown(seat.describe()))

    def _open(self, seat: Seat, worker: Worker, made: Callable[[int], ToWorker]) -> None:
        n = worker.next
        if not worker.link.tell(made(n)):
            worker.refused += 1
            self.dropped += 1
            return
        worker.next = n + 1
        worker.open[n] = seat
        if seat.open is None:
            seat.open = []
            seat.since, seat.cancelled = self._clock(), None
            worker.busy[seat] = None
        seat.open.append(n)

    def _unpause(self, seat: Seat) -> None:
        if seat.paused:
            seat.paused = False
            seat.session.link.resume()

    def _finish(self, worker: Worker) -> None:
        if worker.state == "leaving" and not worker.open:
            worker.link.finished()

    # --- inside: requests --------------------------------------------------------------------------------------------

    def _least_busy(self) -> Worker | None:
        free = [
            each
            for each in self.workers.values()
            if each.state == "serving"
            and each.takes_requests
            and each.requests < each.requests_at_once
            and each.link.room
        ]
        # one that has yet to end what was cancelled may hang
        return min(free, key=lambda each: (each.stuck, each.requests, len(each.open))) if free else None

    def _hand_request(self, ticket: Ticket, worker: Worker) -> None:
        n = worker.next
        if not worker.link.tell(Request(n, ticket.request)):
            worker.refused += 1
            self.requests["refused"] += 1
            ticket.settle(HttpResponse(413, [(b"content-type", b"text/plain")], b"the request is too large\n"))
            return
        worker.next = n + 1
        worker.open[n] = ticket
        worker.requests += 1
        ticket.worker, ticket.n = worker, n

    def _serve_line(self) -> None:
        while self._line and (worker := self._least_busy()) is not None:
            ticket = next(iter(self._line))
            del self._line[ticket]
            self._hand_request(ticket, worker)

    def _refuse(self, ticket: Ticket, why: str) -> None:
        self._line.pop(ticket, None)
        self.requests["refused"] += 1
        ticket.settle(ApplicationError(503, f"cannot answer: {why}"))

    # --- figures -----------------------------------------------------------------------------------------------------

    @property
    def waiting_requests(self) -> int:
        return len(self._line)

    @property
    def waiting_events(self) -> int:
        return sum(seat.waiting for seat in (*self.seats.values(), *self._ended))

    @property
    def unassigned(self) -> int:
        return len(self._alone)
