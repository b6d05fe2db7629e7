"""What a framed client remembers and queues, without a socket: options, backoff, places, the send queue, the inbox."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.client.framed_options import FramedOptions, Options, parse_address
from netd.client.inbox import EXTRA, Account, Inbox
from netd.client.options import Reconnect, Tcp, Unix
from netd.client.queue import NORMAL, SendQueue, Ticket
from netd.client.state import LOOSE, Backoff, Place, Way
from netd.errors import ProtocolError

# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("127.0.0.1:9000", Tcp("127.0.0.1", 9000)),
        ("router.example:80", Tcp("router.example", 80)),
        ("[::1]:9000", Tcp("::1", 9000)),
        (":9000", Tcp("127.0.0.1", 9000)),
        ("unix:/run/x.sock", Unix(Path("/run/x.sock"))),
        (("::1", 5), Tcp("::1", 5)),
        (Path("/run/x.sock"), Unix(Path("/run/x.sock"))),
    ],
)
def test_addresses(written, meant):
    assert parse_address(written) == meant
    assert parse_address(str(meant)) == meant


@pytest.mark.parametrize(
    "written", ["", "host", "host:", "host:0", "host:65536", "::1:9000", "unix:", "a b:9000", "h:x"]
)
def test_what_is_no_address_is_refused_with_its_form(written):
    with pytest.raises(ProtocolError, match="cannot connect to "):
        parse_address(written)


def test_options_and_what_type_checkers_know_of_them_are_the_same():
    assert set(FramedOptions.__annotations__) == {field.name for field in dataclasses.fields(Options)}
    assert get_type_hints(FramedOptions).keys() == get_type_hints(Options).keys()


@pytest.mark.parametrize(
    "wrong", [{"rate": 0}, {"connect_timeout": -1}, {"queue_bytes": 0}, {"framing": "lines"}, {"max_frame": 1 << 32}]
)
def test_an_option_that_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(ProtocolError, match=f"cannot use {next(iter(wrong))}="):
        Options(**wrong)


def test_a_handshake_is_sent_if_there_is_something_to_say():
    assert not Options().greets
    assert Options(version="1").greets
    assert Options(tags={"device": "a"}).greets


# --- backoff ----------------------------------------------------------------------------------------------------------


def test_delays_double_from_300_ms_to_10_s_and_begin_anew_after_a_good_connection():
    backoff = Backoff(Reconnect())
    assert [backoff.failed(0.0) for _ in range(8)] == [0.3, 0.6, 1.2, 2.4, 4.8, 9.6, 10.0, 10.0]
    backoff.steady()
    assert backoff.failed(0.0) == 0.3


def test_weeks_without_a_daemon_overflow_nothing():
    backoff = Backoff(Reconnect())
    backoff.attempt = 10_000_000
    assert backoff.failed(0.0) == 10.0


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
@settings(max_examples=50)
def test_jitter_only_shortens_and_never_by_more_than_its_share(attempts, random):
    plain, jittered = Backoff(Reconnect()), Backoff(Reconnect())
    for _ in range(attempts):
        whole, delay = plain.failed(0.0), jittered.failed(random)
        assert whole * 0.75 <= delay <= whole


def test_attempts_in_a_row_have_an_end_and_no_reconnect_has_none():
    backoff = Backoff(Reconnect(max_attempts=2))
    assert [backoff.failed(0.0) is None for _ in range(3)] == [False, False, True]
    assert Backoff(Reconnect(enabled=False)).failed(0.0) is None


def test_what_the_daemon_asks_for_is_kept_and_jittered_on_top():
    backoff = Backoff(Reconnect())
    assert backoff.failed(0.0, least=30.0) == 30.0
    assert 30.0 < backoff.failed(0.9, least=30.0) < 31.0


# --- places and the way back ------------------------------------------------------------------------------------------


def test_duplicates_are_known_and_holes_are_counted():
    place = Place("e", 4)
    assert [place.admit("e", offset) for offset in (4, 5, 5, 3, 8, None, 9)] == [None, 0, None, None, 2, 0, 0]
    assert place == Place("e", 9)


def test_another_epoch_is_a_loss_of_nobody_knows_how_many():
    place = Place("e", 4)
    assert place.admit("f", 1) == -1
    assert place.admit("f", 2) == 0


def test_a_channel_without_history_has_no_place():
    place = Place()
    assert [place.admit(None, None) for _ in range(3)] == [0, 0, 0]
    assert not place.known


def test_a_message_that_came_without_its_offset_repeats_once():
    place = Place("e", 4)
    assert [place.repeats("n:1", offset) for offset in (5, None, 6, 7)] == [False, False, True, False]


def test_of_messages_without_offsets_the_oldest_are_forgotten():
    place = Place("e", 4)
    for number in range(LOOSE + 2):
        assert not place.repeats(f"n:{number}", None)
    assert len(place.loose) == LOOSE
    assert [place.repeats(f"n:{number}", number) for number in (0, 1, 2, LOOSE + 1)] == [False, False, True, True]


def test_a_machine_that_is_behind_another_does_not_take_a_reader_back():
    place = Place("e", 4)
    place.reach("e", 3)
    assert place == Place("e", 4)
    place.reach("e", 6)
    assert place == Place("e", 6)
    place.reach("f", 2)
    assert place == Place("f", 2)


def test_a_resume_secret_is_good_for_its_time():
    way = Way()
    assert way.usable(0.0) is None
    way.given("s1")
    way.lost(100.0)
    way.lost(150.0)  # an attempt in between failed: the session ended at 100 all the same
    assert way.usable(160.0) == way.usable(160.0) == "s1"
    assert way.usable(160.1) is None
    way.given("s2")
    assert way.usable(1000.0) == "s2"


# --- the send queue ---------------------------------------------------------------------------------------------------


def drain(queue: SendQueue, now: float = 0.0, limit: int = 1 << 30) -> list[bytes]:
    return queue.take(limit, now)


def test_lower_numbers_first_and_each_priority_in_order():
    queue = SendQueue(1000)
    for number, priority in enumerate((128, 200, 0, 128, 0, 200)):
        queue.put(b"%d" % number, priority)
    assert drain(queue) == [b"2", b"4", b"0", b"3", b"1", b"5"]
    assert (queue.size, bool(queue)) == (0, False)


def test_the_bound_holds_and_one_that_is_longer_fits_alone():
    queue = SendQueue(10)
    assert queue.room(11)
    queue.put(b"x" * 6)
    assert queue.room(4)
    assert not queue.room(5)


def test_what_is_withdrawn_is_not_sent_and_what_is_taken_has_left():
    queue = SendQueue(100)
    kept, withdrawn = Ticket(), Ticket()
    queue.put(b"a", NORMAL, withdrawn)
    queue.put(b"b", NORMAL, kept)
    withdrawn.withdrawn = True
    assert queue, "one is still wanted"
    assert drain(queue) == [b"b"]
    assert (kept.left, withdrawn.left, queue.size) == (True, False, 0)
    queue.put(b"a", NORMAL, withdrawn)
    assert not queue, "nobody waits for it"


def test_a_batch_has_a_limit_and_a_long_frame_goes_alone():
    queue = SendQueue(100)
    for frame in (b"aa", b"bb", b"c" * 9, b"d"):
        queue.put(frame)
    assert [drain(queue, limit=4) for _ in range(4)] == [[b"aa", b"bb"], [b"c" * 9], [b"d"], []]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3)), min_size=1, max_size=40),
    st.floats(10, 1000),
    st.floats(10, 500),
    st.lists(st.floats(0.001, 3.0), min_size=1, max_size=60),
)
@settings(max_examples=150)
def test_no_stretch_of_time_sees_more_than_burst_and_rate(frames, rate, burst, steps):
    """The original let through twice its rate."""
    queue = SendQueue(1 << 20, rate=rate, burst=burst)
    for size, priority in frames:
        queue.put(b"x" * size, priority)
    now, sent, longest = 0.0, [], max(size for size, _ in frames)
    for step in steps:
        sent += [(now, len(frame)) for frame in drain(queue, now)]
        now += step
    for start in range(len(sent)):
        total = 0
        for at, size in sent[start:]:
            total += size
            # a frame longer than the burst is paid off after: at most one such debt is open at a time
            allowed = burst + rate * (at - sent[start][0]) + max(0.0, longest - burst)
            assert total <= allowed * (1 + 1e-6)


def test_the_wait_is_as_long_as_the_rate_says_and_then_it_goes():
    queue = SendQueue(1000, rate=100.0, burst=50.0)
    for _ in range(3):
        queue.put(b"x" * 50)
    assert drain(queue, 0.0) == [b"x" * 50]
    assert queue.wait(0.0) == pytest.approx(0.5)
    assert drain(queue, 0.25) == []
    assert queue.wait(0.25) == pytest.approx(0.25)
    assert len(drain(queue, 0.5)) == 1
    assert SendQueue(10).wait(0.0) is None


def test_a_frame_longer_than_the_burst_is_paid_off_after():
    queue = SendQueue(1000, rate=100.0, burst=50.0)
    queue.put(b"x" * 250)
    queue.put(b"y")
    assert len(drain(queue, 0.0)) == 1
    assert drain(queue, 2.0) == []
    assert queue.wait(2.0) == pytest.approx(0.01)
    assert drain(queue, 2.01 + 1e-9) == [b"y"]


def test_every_priority_once_leaves_nothing_behind():
    queue = SendQueue(1 << 20)
    for priority in range(256):
        queue.put(b"x", priority)
        drain(queue)
    assert not queue._lanes or len(queue._lanes) == 1


# --- the inbox --------------------------------------------------------------------------------------------------------


async def test_an_error_is_raised_in_its_place_and_the_queue_goes_on():
    inbox: Inbox[int] = Inbox(Account(10, 1000))
    inbox.put(1, 1)
    inbox.put(ProtocolError("cannot read it"), 1)
    inbox.put(2, 1)
    assert await inbox.take_all() == [1]
    with pytest.raises(ProtocolError):
        await inbox.take_all()
    assert await inbox.take() == 2
    inbox.end()
    with pytest.raises(StopAsyncIteration):
        await inbox.take()


async def test_what_is_here_is_read_before_the_end_is_told():
    inbox: Inbox[int] = Inbox(Account(10, 1000))
    inbox.put(1, 1)
    inbox.end(ProtocolError("cannot go on"))
    inbox.put(2, 1)
    assert await inbox.take() == 1
    for _ in range(2):
        with pytest.raises(ProtocolError):
            await inbox.take()


async def test_one_account_for_all_queues_and_more_while_an_answer_is_awaited():
    account = Account(2, 1000)
    one: Inbox[int] = Inbox(account)
    other: Inbox[int] = Inbox(account)
    one.put(1, 1)
    assert not account.full
    other.put(2, 1)
    assert account.full
    account.awaited += 1
    assert not account.full
    for number in range(2 * EXTRA - 2):
        one.put(number, 1)
    assert account.full
    account.awaited -= 1
    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            nursery.start_soon(account.room)
            await trio.testing.wait_all_tasks_blocked()
            one.end(discard=True)
    assert (account.messages, account.bytes) == (1, 1)


async def test_bytes_count_too():
    account = Account(100, 10)
    inbox: Inbox[bytes] = Inbox(account)
    inbox.put(b"x" * 10, 10)
    assert account.full
    await inbox.take()
    assert not account.full


async def test_whoever_is_not_interested_keeps_the_last_ones_only():
    inbox: Inbox[int] = Inbox(Account(100, 1000), recent=3)
    for number in range(5):
        inbox.put(number, 1)
    assert (await inbox.take_all(), inbox.missed) == ([2, 3, 4], 2)


async def test_cancelling_a_take_loses_nothing_and_several_may_wait():
    inbox: Inbox[int] = Inbox(Account(100, 1000))
    taken = []

    async def take() -> None:
        taken.append(await inbox.take())

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)
            with trio.move_on_after(0.01):
                await inbox.take()
            inbox.put(1, 1)
            inbox.put(2, 1)
    assert sorted(taken) == [1, 2]
