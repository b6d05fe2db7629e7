"""Workers on a real socket: who gets what, in which order, and what happens when one goes."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from netd.errors import ApplicationError
from netd.hub.config import HubConfig, Namespace
from netd.hub.seams import Echo
from netd.wire.messages import BinaryEvent, TextEvent
from netd.wire.workers import (
    Answer,
    AskHistory,
    Cancel,
    Done,
    Drain,
    Goodbye,
    Hello,
    Leave,
    Message,
    Ping,
    Request,
    Send,
    SessionClosed,
    SessionKnown,
    SessionOpened,
    SetToken,
)
from tests.services.worker.lab import asking, eventually, serving


async def test_a_worker_is_told_of_a_session_from_its_beginning_to_its_end(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker()
        alice = house.person(address="192.0.2.7:5000", name="alice", tags={"device": "a"})
        opened = await worker.next(SessionOpened)
        state = opened.session
        assert (state.id, state.transport, state.address) == (alice.session.id, "test", "192.0.2.7:5000")
        assert (state.name, state.tags, state.token) == ("alice", {"device": "a"}, None)
        alice.tell("hello")
        alice.tell(b"\x00\xff")
        text, binary = await worker.next(Message), await worker.next(Message)
        assert (text.data, binary.data, text.session) == ("hello", b"\x00\xff", alice.session.id)
        alice.session.application_token = b"last"
        house.hub.close(alice.session, 1001, "gone")
        closed = await worker.next(SessionClosed)
        assert (closed.session, closed.token, closed.code, closed.reason) == (alice.session.id, b"last", 1001, "gone")
        await worker.done(opened, text, binary, closed)
        await eventually(lambda: not house.service.workers()[0].in_flight)
        assert house.service.snapshot().handled == 4
        assert house.service.snapshot().sessions == 0


async def test_without_a_worker_messages_are_echoed_and_requests_refused(tmp_path):
    async with serving(tmp_path) as house:
        alice = house.person()
        alice.tell("text")
        alice.tell(b"bytes")
        assert alice.heard() == [TextEvent("text"), BinaryEvent(data64=b"bytes")]
        with pytest.raises(ApplicationError, match="no worker is connected") as refused:
            await house.request()
        assert refused.value.status == 503


async def test_a_worker_that_has_only_http_leaves_messages_to_the_echo(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker(handlers=["http_request"])
        alice = house.person()
        alice.tell("text")
        assert alice.heard() == [TextEvent("text")]
        async with asking(house, "/x?y=1", b"body") as outcome:
            request = await worker.next(Request)
            assert (request.request.target, request.request.body) == ("/x?y=1", b"body")
            await worker.reply(request, b"yes", 201)
        assert (outcome[0].status, outcome[0].body) == (201, b"yes")
        chat = await house.worker(handlers=["message"])
        await chat.next(SessionOpened)
        await worker.gone()
        await eventually(lambda: len(house.service.workers()) == 1)
        with pytest.raises(ApplicationError, match="no worker is connected"):
            await house.request()


async def test_a_worker_that_comes_late_gets_the_sessions_that_are_there(tmp_path):
    async with serving(tmp_path) as house:
        people = [house.person() for _ in range(3)]
        people[0].tell("echoed")
        worker = await house.worker()
        told = [(await worker.next(SessionOpened)).session.id for _ in people]
        assert told == [each.session.id for each in people]
        people[1].tell("for the worker")
        assert (await worker.next(Message)).data == "for the worker"


async def test_sessions_go_to_the_worker_with_the_fewest_and_stay_there(tmp_path):
    async with serving(tmp_path) as house:
        first, second = await house.worker("a"), await house.worker("b")
        people = [house.person() for _ in range(6)]
        for _ in range(3):
            await first.next(SessionOpened)
            await second.next(SessionOpened)
        for person in people:
            person.tell(person.session.id)
        for worker in (first, second):
            for _ in range(3):
                message = await worker.next(Message)
                assert message.session == message.data
        assert [view.sessions for view in house.service.workers()] == [3, 3]


async def test_requests_go_to_the_least_busy_and_wait_for_a_free_hand(tmp_path):
    async with serving(tmp_path, max_waiting=1) as house:
        first = await house.worker("a", requests=1)
        second = await house.worker("b", requests=1)
        async with asking(house, "/1") as one, asking(house, "/2") as two:
            requests = await first.next(Request), await second.next(Request)
            assert {each.request.target for each in requests} == {"/1", "/2"}
            async with asking(house, "/3") as three:
                await eventually(lambda: house.service.snapshot().waiting_requests == 1)
                with pytest.raises(ApplicationError, match="1 requests wait for a worker already"):
                    await house.request("/4")
                await first.reply(requests[0])
                third = await first.next(Request)
                await first.reply(third, b"three")
            await second.reply(requests[1])
        assert [each[0].body for each in (one, two, three)] == [b"OK", b"OK", b"three"]
        assert house.service.snapshot().requests["answered"] == 3


async def test_a_worker_that_crashes_costs_what_it_had_in_hand_and_nothing_else(tmp_path):
    async with serving(tmp_path, window=2, wait=5.0) as house:
        worker = await house.worker("a")
        alice = house.person()
        async with asking(house) as outcome:
            await worker.done(await worker.next(SessionOpened))
            await worker.next(Request)
            for number in range(5):
                alice.tell(str(number))
            assert [(await worker.next(Message)).data for _ in range(2)] == ["0", "1"]
            await worker.gone()
        assert outcome[0].status == 502
        assert "went down" in str(outcome[0])
        other = await house.worker("b")
        known = await other.next(SessionKnown)
        assert known.session.id == alice.session.id
        for number in "234":
            message = await other.next(Message)
            assert message.data == number
            await other.done(message)
        snapshot = house.service.snapshot()
        assert (snapshot.lost, snapshot.crashed, snapshot.moved) == (2, 1, 1)
        assert not alice.closed


async def test_what_waits_for_a_worker_that_never_comes_is_echoed(tmp_path):
    async with serving(tmp_path, wait=0.05, ping=0.02) as house:
        worker = await house.worker()
        alice = house.person()
        await worker.next(SessionOpened)
        await worker.gone()
        await eventually(lambda: house.service.workers() == [])
        alice.tell("anyone?")
        async with asking(house) as outcome:
            pass
        assert outcome[0].status == 503
        await eventually(lambda: alice.outbox.size)
        assert alice.heard() == [TextEvent("anyone?")]


async def test_a_worker_that_answers_no_ping_is_hung(tmp_path):
    async with serving(tmp_path, limits={"ping": 0.02, "hang": 0.1}) as house:
        worker = await house.worker()
        worker.mute = True
        async with asking(house) as outcome:
            await worker.next(Request)
        assert outcome[0].status == 504
        await worker.over()
        snapshot = house.service.snapshot()
        assert (snapshot.hung, snapshot.crashed, snapshot.workers) == (1, 0, [])


async def test_a_worker_that_pongs_lives(tmp_path):
    async with serving(tmp_path, limits={"ping": 0.02, "hang": 0.1}) as house:
        worker = await house.worker()
        for _ in range(10):
            ping = await worker.next(Ping)
            worker._seen.appendleft(ping)
            with trio.move_on_after(0.02):
                await worker.next()
        assert house.service.workers()[0].state == "serving"


async def test_a_request_that_takes_too_long_is_504_and_cancelled_and_its_late_answer_forgotten(tmp_path):
    async with serving(tmp_path, limits={"request_timeout": 0.05}) as house:
        worker = await house.worker()
        async with asking(house) as outcome:
            request = await worker.next(Request)
            assert (await worker.next(Cancel)).n == request.n
        assert outcome[0].status == 504
        assert "request_timeout" in str(outcome[0])
        await worker.reply(request, b"late")
        await worker.quiet()
        view = house.service.workers()[0]
        assert (view.in_flight, view.cancelled, view.state) == (0, 1, "serving")


async def test_a_request_that_does_not_end_when_cancelled_makes_its_worker_hung(tmp_path):
    async with serving(tmp_path, limits={"request_timeout": 0.05, "hang": 0.1}) as house:
        worker = await house.worker()
        async with asking(house):
            await worker.next(Request)
            await worker.next(Cancel)
        goodbye = await worker.over()
        assert goodbye is None or goodbye.code == "hung"
        assert house.service.snapshot().hung == 1


async def test_a_request_whose_client_goes_is_cancelled(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.request)
            request = await worker.next(Request)
            nursery.cancel_scope.cancel()
        assert (await worker.next(Cancel)).n == request.n


async def test_a_handler_that_takes_too_long_is_cancelled_and_then_its_worker_hung(tmp_path):
    async with serving(tmp_path, limits={"message_timeout": 0.05, "hang": 0.1}, wait=5.0) as house:
        worker = await house.worker()
        alice = house.person()
        opened = await worker.next(SessionOpened)
        alice.tell("slow")
        await worker.next(Message)
        assert (await worker.next(Cancel)).n == opened.n
        await worker.over()
        other = await house.worker()
        alice.tell("on")
        await other.next(SessionKnown)
        assert (await other.next(Message)).data == "on"
        assert house.service.snapshot().lost == 2


async def test_a_queue_that_is_full_stops_the_reading_and_half_of_it_resumes_that(tmp_path):
    async with serving(tmp_path, session_queue=4, window=1) as house:
        worker = await house.worker()
        alice, bob = house.person(), house.person()
        for _ in range(2):
            await worker.done(await worker.next(SessionOpened))
        await eventually(lambda: not house.service.workers()[0].in_flight)
        for number in range(5):
            alice.tell(str(number))
        assert alice.paused
        alice.tell("5")  # read before that
        bob.tell("mine")
        got = []
        while len(got) < 7:
            message = await worker.next(Message)
            if message.session == alice.session.id:
                got.append(message.data)
                assert alice.paused == (len(got) < 4) or len(got) == 4
            else:
                got.append("bob")
            await worker.done(message)
        assert [each for each in got if each != "bob"] == list("012345")
        assert not alice.paused
        assert (alice.pauses, bob.pauses, house.service.snapshot().pauses) == (1, 0, 1)


async def test_no_more_is_handed_over_than_a_worker_can_begin(tmp_path):
    async with serving(tmp_path, window=2) as house:
        worker = await house.worker(sessions=1)
        alice = house.person()
        opened = await worker.next(SessionOpened)
        for number in "123":
            alice.tell(number)
        message = await worker.next(Message)
        assert message.data == "1"
        bob = house.person()
        await worker.quiet()
        await worker.done(opened, message)
        # bob has waited longer than what alice says next
        opened = await worker.next(SessionOpened)
        assert opened.session.id == bob.session.id
        await worker.done(opened)
        assert [(await worker.next(Message)).data for _ in range(2)] == ["2", "3"]


async def test_a_worker_that_leaves_finishes_and_its_sessions_go_on_elsewhere_in_order(tmp_path):
    async with serving(tmp_path) as house:
        first = await house.worker("a")
        alice, bob = house.person(), house.person()
        for _ in range(2):
            await first.done(await first.next(SessionOpened))
        alice.tell("1")
        one = await first.next(Message)
        second = await house.worker("b")
        await first.say(Leave())
        # bob has nothing in hand: he moves at once
        await eventually(lambda: house.service.workers()[1].sessions == 1)
        bob.tell("bob")
        await second.next(SessionKnown)
        assert (await second.next(Message)).data == "bob"
        alice.tell("2")
        await second.quiet()
        await first.done(one)
        await second.next(SessionKnown)
        assert (await second.next(Message)).data == "2"
        goodbye = await first.over()
        assert (goodbye.code, goodbye.retry) == ("drained", False)
        assert house.service.snapshot().lost == 0


async def test_a_session_that_resumes_ends_under_one_id_and_begins_under_the_other(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker()
        alice = house.person()
        secret = alice.hello(name="alice").resume
        first = await worker.next(SessionOpened)
        alice.tell("hi")
        await worker.next(SessionKnown)  # she has a name now
        message = await worker.next(Message)
        assert await worker.ask(SetToken, session=alice.session.id, token=b"hers") is True
        await worker.next(SessionKnown)
        house.hub.close(alice.session)
        closed = await worker.next(SessionClosed)
        assert closed.token == b"hers"
        again = house.person()
        temporary = await worker.next(SessionOpened)
        again.hello(resume=secret)
        assert again.session.id == alice.session.id
        ended = await worker.next(SessionClosed)
        assert (ended.session, ended.token) == (temporary.session.id, None)
        # the worker has yet to say that the former has ended
        await worker.quiet()
        await worker.done(first, message, closed)
        resumed = await worker.next(SessionOpened)
        assert (resumed.session.id, resumed.session.name) == (alice.session.id, "alice")
        assert resumed.session.token == b"hers"


async def test_a_reload_of_what_takes_another_generation_keeps_sessions_and_brings_workers_back(tmp_path):
    async with serving(tmp_path, wait=5.0) as house:
        worker = await house.worker()
        alice = house.person()
        opened = await worker.next(SessionOpened)
        config = house.service.config.model_copy(update={"max_frame": 1 << 20})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.settle, config)
            assert (await worker.next(Drain)).seconds > 0
            alice.tell("meanwhile")
            await worker.done(opened)
            goodbye = await worker.over()
            assert (goodbye.code, goodbye.retry) == ("drained", True)
        again = await house.worker()
        assert (await again.next(SessionKnown)).session.id == alice.session.id
        assert (await again.next(Message)).data == "meanwhile"
        assert not alice.heard()


async def test_live_limits_count_at_once_and_nobody_is_disconnected(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker()
        await house.live(max_workers=1)
        assert (await (await house.stranger()).over()).code == "too-many"
        await worker.quiet()


async def test_a_stop_lets_workers_hear_of_what_was_and_gives_the_echo_back(tmp_path):
    async with serving(tmp_path) as house:
        worker = await house.worker(sessions=1)
        people = [house.person() for _ in range(3)]
        opened = await worker.next(SessionOpened)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.settle, None)
            await worker.done(opened)
            for _ in range(2):
                await worker.done(await worker.next(SessionOpened))
            await worker.next(Drain)
            assert (await worker.over()).code == "drained"
        assert isinstance(house.hub.application, Echo)
        people[0].tell("still here")
        assert people[0].heard() == [TextEvent("still here")]


async def test_a_worker_that_does_not_finish_in_time_is_cut_off(tmp_path):
    async with serving(tmp_path, limits={"drain": 0.1}) as house:
        worker = await house.worker()
        async with asking(house) as outcome:
            await worker.next(Request)
            await house.settle(None)
        assert outcome[0].status == 502
        assert (await worker.over()).code in ("drained", "stopping")


async def test_by_hand_a_worker_is_drained_or_cut_off(tmp_path):
    async with serving(tmp_path) as house:
        first, second = await house.worker("a"), await house.worker("b")
        one, two = (view.id for view in house.service.workers())
        assert house.service.drain(one).state == "leaving"
        await first.next(Drain)
        assert (await first.over()).code == "drained"
        house.service.disconnect(two)
        assert (await second.over()).code == "stopping"


async def test_what_is_too_long_for_a_frame_is_dropped_and_a_request_is_413(tmp_path):
    async with serving(tmp_path, max_frame=64 * 1024) as house:
        worker = await house.worker()
        alice = house.person()
        await worker.next(SessionOpened)
        alice.tell("x" * 70_000)
        alice.tell("short")
        assert (await worker.next(Message)).data == "short"
        assert (await house.request(body=b"x" * 70_000)).status == 413
        assert house.service.snapshot().dropped == 1


async def test_a_worker_that_does_not_read_gets_no_more_and_its_verbs_wait(tmp_path):
    async with serving(tmp_path, buffer=64 * 1024, window=1024, session_bytes=1 << 20) as house:
        worker = await house.worker()
        alice = house.person()
        sent = 0
        while not alice.paused:
            alice.tell(b"x" * 4096)
            sent += 1
            await trio.lowlevel.checkpoint()
        assert house.service.workers()[0].queued_bytes < 2 * 64 * 1024
        await worker.next(SessionOpened)
        for _ in range(sent):
            assert len((await worker.next(Message)).data) == 4096
            # sent as it may be, since the worker reads again
        assert not alice.paused


async def test_a_flood_of_verbs_holds_up_nobody_else(tmp_path):
    async with serving(tmp_path) as house:
        flood, other = await house.worker("flood", handlers=[]), await house.worker("other")
        alice = house.person()
        opened = await other.next(SessionOpened)
        async with trio.open_nursery() as nursery:

            async def pour() -> None:
                for _ in range(50):
                    await flood.say(*[Send(session="nobody", data=b"x" * 100) for _ in range(200)])

            nursery.start_soon(pour)
            for number in range(20):
                alice.tell(str(number))
                message = await other.next(Message)
                assert message.data == str(number)
                await other.done(opened if not number else message)
        await flood.quiet()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00\x00\x00\x01\xc1", "invalid"),
        (b"\xff\xff\xff\xff", "too-large"),
        (b"GET / HTTP/1.1\r\n\r\n", "too-large"),
        (b"\x00\x00\x00\x08\x81\xa4type\xa3foo"[:-1] + b"o", "invalid"),
    ],
)
async def test_whoever_speaks_something_else_is_told_and_closed(tmp_path, data, code):
    async with serving(tmp_path) as house:
        stranger = await house.stranger()
        await stranger.raw(data)
        assert (await stranger.over()).code == code
        worker = await house.worker()
        await worker.raw(b"\x00\x00\x00\x01\xc1")
        assert (await worker.over()).code == "invalid"
        assert house.service.snapshot().rejected == 1


async def test_whoever_breaks_the_rules_is_told_and_closed(tmp_path):
    async with serving(tmp_path) as house:
        stranger = await house.stranger()
        await stranger.say(Done([1]))
        assert "before the hello" in (await stranger.over()).reason
        stranger = await house.stranger()
        await stranger.say(Hello(2, "future", 1, []))
        assert (await stranger.over()).code == "version"
        worker = await house.worker()
        await worker.say(Done([7]))
        assert "7 is done" in (await worker.over()).reason
        worker = await house.worker()
        await worker.say(Hello(1, "again", 1, []))
        assert "second hello" in (await worker.over()).reason


async def test_who_does_not_say_hello_in_time_is_closed(tmp_path):
    async with serving(tmp_path, limits={"hello_timeout": 0.05, "ping": 0.02}) as house:
        stranger = await house.stranger()
        assert "hello" in (await stranger.over()).reason


async def test_the_peer_that_the_kernel_names_is_shown(tmp_path):
    async with serving(tmp_path) as house:
        await house.worker("chat", library="mine 1.0")
        view = house.service.workers()[0]
        assert (view.name, view.pid, view.uid, view.library) == ("chat", os.getpid(), os.geteuid(), "mine 1.0")
        assert Goodbye("x").retry is False


async def test_a_daemon_that_stops_wants_its_workers_back_and_one_that_was_told_by_hand_stays_away(tmp_path):
    async with serving(tmp_path) as house:
        first, second = await house.worker(), await house.worker()
        house.service.drain(first.welcome.worker)
        goodbye = await first.over()
        assert (goodbye.code, goodbye.retry) == ("drained", False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.settle, None)
            goodbye = await second.over()
            assert (goodbye.code, goodbye.retry) == ("drained", True)
            await second.gone()


async def test_short_questions_with_long_answers_wait_for_the_worker_to_read(tmp_path):
    rules = {"subscribe": "anyone", "publish": "anyone", "history": "anyone", "history_size": 10}
    hub = HubConfig(namespace=[Namespace(name="public", **rules)])
    async with serving(tmp_path, hub=hub, buffer=64 * 1024) as house:
        for _ in range(10):
            house.hub.publish(b"public:room", "x" * 1000)
        worker = await house.worker()
        await worker.say(*(AskHistory(channel=b"public:room", ref=n) for n in range(1, 1001)))
        await eventually(lambda: house.service.workers()[0].queued_bytes >= 64 * 1024)
        assert house.service.workers()[0].queued_bytes < 64 * 1024 + 2 * 11_000
        assert [(await worker.next(Answer)).ref for _ in range(1000)] == list(range(1, 1001))


async def test_questions_that_wait_for_another_machine_are_bounded(tmp_path, monkeypatch):
    async with serving(tmp_path) as house:
        held = []
        monkeypatch.setattr(house.hub.backplane, "history", lambda channel, since, limit, answer: held.append(answer))
        worker = await house.worker()
        await worker.say(*(AskHistory(channel=b"public:room", ref=n) for n in range(1, 1501)))
        await eventually(lambda: len(held) == 1024)
        await trio.testing.wait_all_tasks_blocked()
        assert len(held) == 1024
        for at in range(1500):
            await eventually(lambda at=at: len(held) > at)
            held[at](None)
        assert {(await worker.next(Answer)).ref for _ in range(1500)} == set(range(1, 1501))


async def test_a_wider_window_is_for_workers_that_were_told_of_it(tmp_path):
    async with serving(tmp_path, window=2) as house:
        worker = await house.worker()
        alice = house.person()
        await worker.done(await worker.next(SessionOpened))
        house.service.reconfigure(house.service.config.model_copy(update={"window": 3}))
        for number in range(4):
            alice.tell(str(number))
        assert [(await worker.next(Message)).data for _ in range(2)] == ["0", "1"]
        await worker.quiet()
        await worker.gone()
        other = await house.worker()
        assert other.welcome.window == 3
        await other.next(SessionKnown)
        assert [(await other.next(Message)).data for _ in range(2)] == ["2", "3"]
