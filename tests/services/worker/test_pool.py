"""The pool under whatever order of events: every session is one worker's, and hears of everything once and in order."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from netd.errors import ApplicationError
from netd.services.worker.config import WorkerConfig
from netd.services.worker.pool import Pool
from netd.services.worker.seats import Worker
from netd.wire.workers import (
    Cancel,
    HttpRequest,
    HttpResponse,
    Message,
    Request,
    SessionClosed,
    SessionKnown,
    SessionOpened,
)

REQUEST = HttpRequest("GET", "/", [])
HANDLERS = ("message", "http_request")


class Link:
    """A worker's end: what it was told, and what of that it has in hand."""

    def __init__(self, heard: list[tuple[str, Any]], handlers: tuple[str, ...] = HANDLERS) -> None:
        self.heard = heard
        self.handlers = handlers
        self.told: list[Any] = []
        self.open: dict[int, Any] = {}
        self.known: set[str] = set()
        self.room = True
        self.over = False
        self.longest = 100

    def tell(self, message: Any) -> bool:
        assert not self.over
        if isinstance(message, Message) and len(message.data) > self.longest:
            return False
        self.told.append(message)
        if isinstance(message, Message):
            assert "message" in self.handlers
            self.heard.append((message.session, message.data))
        if isinstance(message, (SessionOpened, SessionKnown)):
            self.known.add(message.session.id)
        if isinstance(message, (Message, SessionClosed)):
            assert message.session in self.known
        if not isinstance(message, (SessionKnown, Cancel)):
            self.open[message.n] = message
        return True

    def finished(self) -> None:
        assert not self.open
        self.over = True


class Session:
    """As much of a hub's session as the pool looks at."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = None
        self.tags: dict[str, str] = {}
        self.transport = self.address = self.listener = ""
        self.opened = 0.0
        self.application_token = None
        self.grants = Grants
        self.link = self
        self.paused = False

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class Grants:
    subject = token = None


class House:
    def __init__(self, **config: Any) -> None:
        self.now = 0.0
        self.config = WorkerConfig(**{"wait": 5.0, "window": 2, "session_queue": 4, **config})
        self.sessions: dict[Session, None] = {}
        self.heard: list[tuple[str, Any]] = []
        """What anyone heard: by the echo, or a worker."""
        self.echoed: list[tuple[str, Any]] = []
        self.pool = Pool(
            self.config,
            clock=lambda: self.now,
            echo=lambda session, data: self.echo(session.id, data),
            sessions=lambda: list(self.sessions),
        )
        self.links: dict[Worker, Link] = {}

    def join(self, *, sessions: int = 2, requests: int = 1, handlers: tuple[str, ...] = HANDLERS):
        link = Link(self.heard, handlers)
        worker = Worker(
            self.pool.next_id,
            link,
            frozenset(handlers),
            sessions_at_once=sessions,
            requests_at_once=requests,
            window=self.config.window,
        )
        self.pool.next_id += 1
        self.links[worker] = link
        self.pool.join(worker)
        return worker

    def leave(self, worker: Worker) -> None:
        self.links[worker].over = True
        self.pool.leave(worker)

    def open(self, id: str) -> Session:
        session = Session(id)
        self.sessions[session] = None
        self.pool.opened(session)
        return session

    def close(self, session: Session) -> None:
        del self.sessions[session]
        self.pool.closed(session, 1000, "")

    def say(self, session: Session, data: str) -> None:
        if not self.pool.message(session, data):
            self.echo(session.id, data)

    def echo(self, id: str, data: Any) -> None:
        self.echoed.append((id, data))
        self.heard.append((id, data))

    def done(self, worker: Worker, n: int) -> None:
        message = self.links[worker].open.pop(n)
        if isinstance(message, Request):
            assert self.pool.answered(worker, n, HttpResponse())
        else:
            assert self.pool.done(worker, n)


class Pools(RuleBasedStateMachine):
    """Against a model: what each session said, and what of it was heard by anyone (worker or echo)."""

    sessions = Bundle("sessions")
    workers = Bundle("workers")

    @initialize()
    def begin(self) -> None:
        self.house = House(max_ended=3)
        self.count = 0
        self.said: dict[str, list[str]] = defaultdict(list)
        self.asked: list[Any] = []

    @rule(
        target=workers,
        sessions=st.integers(1, 3),
        requests=st.integers(1, 2),
        handlers=st.sampled_from([HANDLERS, HANDLERS, ("session_opened", "http_request")]),
    )
    def join(self, sessions: int, requests: int, handlers: tuple[str, ...]) -> Any:
        if len(self.house.pool.workers) >= 4:
            return multiple()
        return self.house.join(sessions=sessions, requests=requests, handlers=handlers)

    @rule(worker=workers)
    def crash(self, worker: Worker) -> None:
        self.house.leave(worker)

    @rule(worker=workers)
    def retire(self, worker: Worker) -> None:
        if worker.id in self.house.pool.workers and not self.house.links[worker].over:
            self.house.pool.retire(worker)
            self.finish(worker)

    @rule(target=sessions)
    def open(self) -> Session:
        self.count += 1
        return self.house.open(f"s{self.count}")

    @rule(target=sessions, session=sessions)
    def resume(self, session: Session) -> Any:
        """A client takes up the stay of one that is over, under its id."""
        if any(each.id == session.id for each in self.house.sessions):
            return multiple()
        return self.house.open(session.id)

    @rule(session=sessions)
    def close(self, session: Session) -> None:
        if session in self.house.sessions:
            self.house.close(session)

    @rule(session=sessions)
    def say(self, session: Session) -> None:
        if session in self.house.sessions:
            data = f"{session.id}.{len(self.said[session.id])}"
            self.said[session.id].append(data)
            self.house.say(session, data)

    @rule(worker=workers, pick=st.integers(0, 10))
    def done(self, worker: Worker, pick: int) -> None:
        link = self.house.links[worker]
        if link.open and not link.over:
            self.house.done(worker, sorted(link.open)[pick % len(link.open)])
            self.finish(worker)

    @rule(worker=workers, room=st.booleans())
    def read(self, worker: Worker, room: bool) -> None:
        link = self.house.links[worker]
        link.room = room
        if room and worker.id in self.house.pool.workers:
            self.house.pool.relieved(worker)

    @rule()
    def ask(self) -> None:
        outcome: list[Any] = []
        with suppress(ApplicationError):
            self.asked.append((self.house.pool.ask(REQUEST, outcome.append), outcome))

    @rule(pick=st.integers(0, 10))
    def abandon(self, pick: int) -> None:
        if self.asked:
            self.house.pool.abandon(self.asked[pick % len(self.asked)][0], timeout=True)

    @rule(workers=st.integers(1, 3))
    def start(self, workers: int) -> None:
        """The daemon starts workers."""
        self.house.pool.wait(2.0, workers)

    @rule(seconds=st.sampled_from([0.5, 6.0]))
    def look(self, seconds: float) -> None:
        self.house.now += seconds
        self.house.pool.look()

    def finish(self, worker: Worker) -> None:
        """What the service does with a worker that has finished."""
        if self.house.links[worker].over:
            self.house.pool.leave(worker)

    @invariant()
    def every_session_is_one_live_workers(self) -> None:
        if not hasattr(self, "house"):
            return
        pool = self.house.pool
        owners = defaultdict(list)
        for worker in pool.workers.values():
            for seat in worker.seats:
                assert seat.worker is worker
                owners[seat].append(worker)
            assert len(worker.busy) <= worker.sessions_at_once
            assert worker.requests <= worker.requests_at_once
            assert all(len(seat.open or ()) <= worker.window + 1 for seat in worker.seats)
            assert set(worker.open) == set(self.house.links[worker].open)
        assert all(len(found) == 1 for found in owners.values())
        for session, seat in pool.seats.items():
            assert seat.session is session
            assert (seat in owners) != (seat in pool._alone)
        assert all(seat.worker is None for seat in pool._alone)
        if any(worker.state == "serving" for worker in pool.workers.values()) and not pool._awaiting:
            assert not any(seat.waiting for seat in pool._alone)

    @invariant()
    def nothing_is_heard_twice_or_out_of_order(self) -> None:
        if not hasattr(self, "house"):
            return
        last: dict[str, int] = {}
        for id, data in self.house.heard:
            number = int(data.split(".")[1])
            assert number > last.get(id, -1)
            last[id] = number

    @invariant()
    def what_waits_is_counted(self) -> None:
        if not hasattr(self, "house"):
            return
        pool = self.house.pool
        seats = {*pool.seats.values(), *pool._ended, *pool._alone}
        for worker in pool.workers.values():
            seats |= set(worker.seats)
        waiting = [data for seat in seats for data in seat.queue or () if isinstance(data, str)]
        assert pool.bytes == sum(map(len, waiting)) == sum(seat.bytes for seat in seats)
        paused = {session for session in self.house.sessions if session.paused}
        assert paused == {seat.session for seat in pool.seats.values() if seat.paused}

    def teardown(self) -> None:
        """A worker that does all there is to do hears the rest, and nothing is left."""
        if not hasattr(self, "house"):
            return
        house = self.house
        for worker in list(house.pool.workers.values()):
            house.leave(worker)
        last = house.join(sessions=3, requests=2)
        link = house.links[last]
        if house.pool._awaiting:
            house.now += 2
            house.pool.look()
        for _ in range(10_000):
            if not link.open:
                break
            house.done(last, min(link.open))
        assert not link.open
        assert not any(seat.waiting for seat in house.pool.seats.values())
        assert not house.pool._ended
        assert not house.pool.bytes
        assert not house.pool.waiting_requests
        assert not any(session.paused for session in house.sessions)
        assert all(ticket.over for ticket, _ in self.asked)
        assert set(house.pool.seats) == set(house.sessions)


Pools.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestPools = Pools.TestCase


def test_messages_go_on_where_they_were_after_a_worker_went():
    house = House()
    worker, alice = house.join(), house.open("alice")
    for number in range(5):
        house.say(alice, f"alice.{number}")
    house.leave(worker)
    other = house.links[house.join()]
    assert [message.data for message in other.told if isinstance(message, Message)] == ["alice.1", "alice.2"]
    assert house.pool.lost == 2  # that she is there, and the first


def test_sessions_spread_over_all_workers_that_come_back():
    house = House()
    worker = house.join(sessions=100)
    people = [house.open(f"s{number}") for number in range(9)]
    for n in sorted(house.links[worker].open):
        house.done(worker, n)
    house.leave(worker)
    house.say(people[0], "s0.0")
    workers = [house.join(sessions=100) for _ in range(3)]
    assert [len(each.seats) for each in workers] == [1, 0, 0]  # whoever waited
    assert house.pool.unassigned == 8
    for person in people[1:]:
        house.say(person, f"{person.id}.0")
    assert [len(each.seats) for each in workers] == [3, 3, 3]
    for each in workers:
        told = house.links[each].told
        assert [type(message) for message in told] == 3 * [SessionKnown, Message]
    assert not house.echoed
    assert house.pool.moved == 9


def test_sessions_that_are_there_before_the_daemons_own_workers_are_shared_out():
    house = House()
    house.pool.wait(5, 3)
    people = [house.open(f"s{number}") for number in range(9)]
    house.say(people[0], "s0.0")
    outcomes: list[Any] = []
    workers = [house.join(sessions=100), house.join(sessions=100)]
    house.pool.ask(REQUEST, outcomes.append)  # which waits for nobody else
    assert [type(message) for message in house.links[workers[0]].told] == [Request]
    assert house.pool.unassigned == 9
    workers.append(house.join(sessions=100))
    assert [len(each.seats) for each in workers] == [3, 3, 3]
    assert ("s0", "s0.0") in house.heard
    assert not house.echoed


def test_one_that_comes_twice_is_not_taken_for_two():
    house = House()
    house.pool.wait(5, 2)
    people = [house.open(f"s{number}") for number in range(4)]
    house.leave(house.join())
    again = house.join(sessions=100)
    assert house.pool.unassigned == len(people)
    other = house.join(sessions=100)
    assert [len(each.seats) for each in (again, other)] == [2, 2]
    house.leave(other)  # now all were there once, and nobody is waited for
    assert len(again.seats) == 4


def test_sessions_do_not_wait_for_ever_for_a_worker_that_does_not_come():
    house = House()
    house.pool.wait(5, 2)
    house.open("alice")
    worker = house.join()
    house.now += 4.9
    house.pool.look()
    assert not worker.seats
    house.now += 0.2
    house.pool.look()
    assert [type(message) for message in house.links[worker].told] == [SessionOpened]
    assert not house.echoed


def test_the_end_of_a_session_that_has_no_worker_yet_is_told_to_one():
    house = House()
    first, alice = house.join(), house.open("alice")
    house.done(first, 1)
    house.leave(first)
    second = house.join()
    house.now += 60  # nothing waits for a worker any more
    house.pool.look()
    house.close(alice)
    assert [type(message) for message in house.links[second].told] == [SessionKnown, SessionClosed]
    house.done(second, 1)
    assert not house.pool._ended
    assert not second.seats


def test_who_is_over_before_anyone_heard_of_it_is_forgotten():
    house = House()
    house.join(sessions=1)
    house.open("first")
    ghost = house.open("ghost")
    house.close(ghost)
    assert len(house.pool.seats) == 1
    assert not house.pool._ended


def test_ends_that_nobody_hears_of_are_bounded():
    house = House(max_ended=3)
    house.join(sessions=1)
    house.open("busy")
    for number in range(10):
        session = house.open(f"s{number}")
        house.say(session, f"s{number}.0")
        house.close(session)
    assert len(house.pool._ended) == 3
    assert house.pool.dropped == 7
    assert house.pool.bytes == 3 * len("s9.0")


def test_all_sessions_together_are_bounded():
    house = House(max_bytes=1024 * 1024, session_bytes=256 * 1024 * 1024, session_queue=1000)
    worker = house.join(sessions=1)
    house.open("busy")
    people = [house.open(f"s{number}") for number in range(3)]
    house.links[worker].longest = 1 << 30
    for person in people:
        house.say(person, "x" * 500_000)
    assert [person.paused for person in people] == [False, False, True]
    house.say(people[0], "x")
    assert people[0].paused
    for _ in range(10):
        for n in sorted(house.links[worker].open):
            house.done(worker, n)
    assert not any(person.paused for person in people)


def test_a_worker_without_a_message_handler_gives_its_sessions_to_one_that_has():
    house = House()
    first = house.join(handlers=("session_opened",))
    alice = house.open("alice")
    house.done(first, 1)
    house.say(alice, "alice.0")
    assert house.echoed == [("alice", "alice.0")]
    second = house.join(handlers=("message",))
    house.say(alice, "alice.1")
    assert [type(message) for message in house.links[second].told] == [SessionKnown, Message]


def test_a_state_that_changed_is_told_before_what_comes_next():
    house = House(window=8)
    worker, alice = house.join(), house.open("alice")
    house.say(alice, "alice.0")
    alice.name = "Alice"
    alice.application_token = b"t"
    house.pool.state_changed(alice)
    house.say(alice, "alice.1")
    told = house.links[worker].told
    assert [type(message) for message in told] == [SessionOpened, Message, SessionKnown, Message]
    assert (told[2].session.name, told[2].session.token) == ("Alice", b"t")


def test_the_end_of_workers_leaves_nothing_waiting():
    house = House()
    worker, alice = house.join(sessions=1), house.open("alice")
    outcomes: list[Any] = []
    for _ in range(2):
        house.pool.ask(REQUEST, outcomes.append)
    for number in range(4):
        house.say(alice, f"alice.{number}")
    house.links[worker].over = True
    house.pool.end()
    assert [error.status for error in outcomes] == [502, 503]
    assert [data for _, data in house.echoed] == ["alice.1", "alice.2", "alice.3"]
    house.say(alice, "alice.4")
    assert house.echoed[-1] == ("alice", "alice.4")
    with pytest.raises(ApplicationError):
        house.pool.ask(REQUEST, outcomes.append)


def test_what_waits_behind_the_end_of_an_earlier_stay_is_not_lost_with_the_worker():
    house = House()
    worker, alice = house.join(), house.open("alice")
    house.done(worker, 1)
    house.close(alice)  # which the worker has in hand
    again = house.open("alice")
    house.say(again, "alice.0")
    house.leave(worker)
    other = house.links[house.join()]
    assert [type(message) for message in other.told] == [SessionOpened, Message]
    assert house.pool.lost == 1


def test_what_waits_of_a_session_that_ends_as_the_wait_is_over_is_counted_no_more():
    house = House()
    house.leave(house.join())
    alice = house.open("alice")
    house.say(alice, "alice.0")
    house.now += 6
    house.close(alice)  # before the look that gives it up
    assert house.pool.bytes == 0
    assert house.pool.dropped == 1


def test_a_session_in_the_hands_of_a_worker_without_a_message_handler_goes_to_one_that_has():
    house = House()
    first, alice = house.join(handlers=("session_opened",)), house.open("alice")
    second = house.join(handlers=("message",))
    house.say(alice, "alice.0")
    assert house.echoed == []
    house.done(first, 1)
    assert [type(message) for message in house.links[second].told] == [SessionKnown, Message]


def test_what_waits_is_echoed_where_the_only_worker_left_has_no_message_handler():
    house = House(window=1)
    worker, alice = house.join(), house.open("alice")
    house.say(alice, "alice.0")
    house.join(handlers=("session_opened",))
    house.leave(worker)
    assert house.echoed == [("alice", "alice.0")]


def test_what_is_echoed_stands_behind_what_waits():
    house = House(window=1)
    worker, alice = house.join(), house.open("alice")
    house.say(alice, "alice.0")
    other = house.join(handlers=("session_opened",))
    house.links[other].room = False
    house.leave(worker)
    house.say(alice, "alice.1")
    assert house.echoed == []
    house.links[other].room = True
    house.pool.relieved(other)
    assert house.echoed == [("alice", "alice.0"), ("alice", "alice.1")]


def test_a_client_that_goes_has_nobody_hung_before_the_time_of_its_request_is_up():
    house = House(request_timeout=30, hang=10)
    worker = house.join()
    ticket = house.pool.ask(REQUEST, lambda outcome: None)
    house.now = 1
    house.pool.abandon(ticket)
    assert isinstance(house.links[worker].told[-1], Cancel)
    house.now = 39
    assert house.pool.look() == []
    house.now = 41
    assert house.pool.look() == [worker]


def test_a_client_that_comes_and_goes_under_one_id_leaves_no_more_than_others_may():
    house = House(max_ended=3)
    worker = house.join(sessions=1)
    house.open("busy")
    for number in range(10):
        session = house.open("alice")
        house.say(session, f"alice.{number}")
        house.close(session)
    assert sum(seat.ended for seat in worker.seats) == 3
    assert len(worker.line) == 1  # the others stand behind it
    assert house.pool.waiting_events == 3 * len(["opened", "message", "closed"])
