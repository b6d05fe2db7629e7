"""The outbox: order, bounds, policies, rates, and what its owner is told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.hub.outbox import Outbox, OutboxRules


class Owner:
    """Records what it is told; says `last` when the outbox overflows."""

    def __init__(self, last: bytes = b"") -> None:
        self.told: list[bool | str] = []
        self.last = last
        self.marks = 0
        self.outbox: Outbox

    def pressure(self, over: bool) -> None:
        self.told.append(over)

    def overflow(self) -> None:
        self.told.append("overflow")
        self.outbox.push(self.last)

    def settle(self):
        """Nothing is ever owed."""

    def mark(self, outbox: Outbox) -> None:
        assert outbox is self.outbox
        assert outbox.size
        self.marks += 1


def outbox(bound: int = 1000, policy: str = "disconnect", last: bytes = b"", **rules) -> tuple[Outbox, Owner]:
    owner = Owner(last)
    owner.outbox = Outbox(OutboxRules(bound, policy, **rules), owner, owner)
    return owner.outbox, owner


def everything(box: Outbox) -> bytes:
    return b"".join(box.take(2**40, 0.0))


def test_what_is_pushed_is_taken_in_order_and_marked_once():
    box, owner = outbox()
    assert box.take(100, 0.0) == []
    for letter in (b"a", b"b", b"c"):
        assert box.push(letter)
    assert (box.size, box.messages, owner.marks) == (3, 3, 1)
    assert box.take(100, 0.0) == [b"a", b"b", b"c"]
    assert (box.size, box.messages, box.dropped) == (0, 3, 0)
    box.push(b"d")
    assert owner.marks == 2


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest", "drop-ephemeral"])
def test_what_is_offered_never_takes_more_than_half(policy: str):
    box, owner = outbox(100, policy)
    assert box.offer(b"a" * 30)
    assert box.push(b"b" * 15)
    assert not box.offer(b"c" * 6)
    assert box.offer(b"d" * 5)
    assert (box.size, box.messages, box.dropped, owner.told) == (50, 3, 1, [])
    assert everything(box) == b"a" * 30 + b"b" * 15 + b"d" * 5
    box.finish()
    assert not box.offer(b"e")
    assert box.dropped == 1


def test_a_lower_priority_number_goes_first_and_equals_keep_their_order():
    box, owner = outbox()
    for data, priority in ((b"n1", 128), (b"z1", 255), (b"u1", 0), (b"n2", 128), (b"z2", 255), (b"u2", 0)):
        box.push(data, priority)
    assert (box.messages, owner.marks) == (6, 1)
    assert box.take(100, 0.0) == [b"u1", b"u2", b"n1", b"n2", b"z1", b"z2"]
    assert box.take(100, 0.0) == []
    assert (box.size, box.messages) == (0, 6)


def test_take_keeps_to_its_limit_but_gives_at_least_one_chunk():
    box, _ = outbox()
    for chunk in (b"aaaa", b"bbbb", b"cccccccc", b"d"):
        box.push(chunk)
    assert box.take(9, 0.0) == [b"aaaa", b"bbbb"]
    box.push(b"u", 1)
    assert box.take(2, 0.0) == [b"u"]
    assert box.take(2, 0.0) == [b"cccccccc"]
    assert box.take(2, 0.0) == [b"d"]
    assert (box.size, box.messages) == (0, 5)


def test_a_large_chunk_does_not_let_less_urgent_ones_past():
    box, _ = outbox()
    box.push(b"large" * 10, 1)
    box.push(b"x", 2)
    box.push(b"first", 0)
    assert box.take(10, 0.0) == [b"first"]


def test_a_relay_keeps_its_order_and_counts_its_messages():
    box, owner = outbox()
    assert box.push_many([b"ab", b"c"], 5)
    assert box.push_many([b"de"], 2)
    assert box.push_many([], 0)
    assert (box.messages, box.size, owner.marks) == (7, 5, 1)
    assert everything(box) == b"abcde"
    assert box.messages == 7


def test_nothing_is_not_a_message():
    box, owner = outbox()
    assert box.push(b"")
    assert (box.messages, owner.marks, box.take(10, 0.0)) == (0, 0, [])


def test_the_owner_hears_of_pressure_once_each_way():
    box, owner = outbox(1000)
    box.push(b"x" * 500)
    assert owner.told == []
    box.push(b"x")
    box.push(b"x")
    assert (owner.told, box.pressed) == ([True], True)
    box.take(200, 0.0)
    assert owner.told == [True, False]
    assert not box.pressed
    assert box.size == 2


def test_disconnect_gives_the_memory_back_and_lets_the_owner_say_its_last_words():
    box, owner = outbox(1000, last=b"close")
    assert box.push(b"x" * 900)
    assert not box.push(b"y" * 101)
    assert owner.told == [True, "overflow"]
    assert box.dropped == 2
    assert not box.push(b"more")
    assert not box.push(b"more", 0)
    assert not box.push_many([b"more"], 1)
    assert everything(box) == b"close"
    assert owner.told == [True, "overflow"]  # once


def test_last_words_that_do_not_fit_end_nothing_twice():
    box, owner = outbox(10, last=b"far more than fits")
    box.push(b"x" * 5)
    assert not box.push(b"x" * 6)
    assert owner.told == ["overflow"]
    assert box.size == 0


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest", "drop-ephemeral"])
def test_what_does_not_fit_by_itself_is_dropped_and_nobody_pays_for_it(policy):
    for ephemeral in (True, False):
        box, owner = outbox(100, policy)
        box.push(b"waits")
        assert not box.push(b"x" * 101, ephemeral=ephemeral)
        assert (box.size, box.dropped, owner.told) == (5, 1, [])
        assert box.push(b"after")
        assert everything(box) == b"waitsafter"


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest", "drop-ephemeral"])
def test_the_last_message_goes_past_the_bound_and_behind_all_that_waits(policy):
    box, owner = outbox(10, policy)
    box.push(b"n" * 8)
    box.push(b"u", 0)
    box.push(b"z", 255)
    box.finish(b"goodbye")
    assert not box.push(b"more")
    box.finish(b"again")
    assert "overflow" not in owner.told
    assert (box.size, box.messages, box.dropped) == (17, 4, 0)
    assert everything(box) == b"u" + b"n" * 8 + b"zgoodbye"

    box, owner = outbox(10, policy)
    box.finish(b"goodbye")
    assert (owner.marks, everything(box)) == (1, b"goodbye")
    box.clear()
    box.finish(b"too late")
    assert box.size == 0


def test_drop_oldest_makes_room_from_what_is_no_more_urgent():
    box, owner = outbox(10, "drop-oldest")
    box.push(b"u1", 0)
    box.push(b"n1")
    box.push(b"n2")
    box.push(b"z1", 255)
    box.push(b"n3")
    assert box.push(b"n4")  # z1 goes, being the least urgent
    assert box.dropped == 1
    assert box.push(b"n5")  # then n1
    assert not box.push(b"z2", 255)  # nothing as unimportant as this is left
    assert box.dropped == 3
    assert everything(box) == b"u1n2n3n4n5"
    assert "overflow" not in owner.told


def test_drop_oldest_drops_nothing_in_vain():
    box, _ = outbox(10, "drop-oldest")
    box.push(b"u" * 8, 0)
    box.push(b"n1")
    assert not box.push(b"n" * 3)
    assert everything(box) == b"u" * 8 + b"n1"


def test_drop_ephemeral_first_then_disconnect():
    box, owner = outbox(10, "drop-ephemeral", last=b"bye")
    box.push(b"e1", ephemeral=True)
    box.push(b"k1")
    box.push(b"e2", 5, ephemeral=True)
    box.push(b"k2", 5)
    box.push(b"k3")
    assert box.push(b"k4")
    assert (box.dropped, box.size) == (2, 8)
    assert not box.push(b"e3e", ephemeral=True)  # itself the one to go
    assert "overflow" not in owner.told
    assert box.push(b"k5")
    assert not box.push(b"k6")
    assert owner.told[-1] == "overflow"
    assert everything(box) == b"bye"
    assert (box.dropped, box.messages) == (2 + 1 + 5 + 1, 8)


def test_what_is_ephemeral_is_looked_for_only_when_there_is_enough_of_it():
    """Or one that is as good as full would look through all that waits for each ephemeral message."""
    box, _ = outbox(1600, "drop-ephemeral")
    box.push(b"k" * 1400)
    box.push(b"e" * 99, ephemeral=True)
    assert not box.push(b"f" * 102, ephemeral=True)
    assert box.push(b"g", ephemeral=True)
    assert box.push(b"h" * 102, ephemeral=True)
    assert (box.dropped, everything(box)) == (3, b"k" * 1400 + b"h" * 102)
    box.push(b"k" * 1500)
    box.push(b"e", ephemeral=True)
    assert box.push(b"k" * 100)
    assert everything(box) == b"k" * 1600


def test_a_full_outbox_drops_without_looking_at_all_that_waits():
    class Counted(bytes):
        looked = 0

        def __len__(self) -> int:
            Counted.looked += 1
            return super().__len__()

    box, _ = outbox(10_000, "drop-oldest")
    for _ in range(10_000):
        box.push(Counted(b"x"))
    Counted.looked = 0
    for _ in range(100):
        assert box.push(b"yy")
    assert box.dropped == 200
    assert Counted.looked < 1000


def test_dropped_messages_of_one_chunk_are_all_counted():
    box, _ = outbox(10, "drop-oldest")
    box.push_many([b"aaaa", b"bb"], 3)
    box.push(b"cccccc")
    assert (box.dropped, box.messages, everything(box)) == (3, 4, b"cccccc")


def test_pressure_ends_when_dropping_empties_the_outbox():
    """Or whoever was paused for it would be paused for ever: nothing is left to be taken."""
    box, owner = outbox(10, "drop-ephemeral")
    box.push(b"k")
    box.push(b"e" * 9, ephemeral=True)
    assert not box.push(b"f" * 10, ephemeral=True)
    assert (box.size, owner.told) == (1, [True, False])


def test_rules_that_change_hold_from_the_next_message():
    box, _ = outbox(1000)
    box.push(b"x" * 400)
    box.rules.bound = 300
    box.rules.policy = "drop-oldest"
    assert box.push(b"y" * 10)
    assert everything(box) == b"y" * 10
    box.rules.bound = 10_000
    assert box.push(b"z" * 4000)
    assert box.dropped == 1


def test_rules_that_leave_more_room_end_the_pressure_at_once():
    box, owner = outbox(100)
    box.push(b"x" * 60)
    box.reconsider()
    assert owner.told == [True]
    box.rules.bound = 200
    box.reconsider()
    box.reconsider()
    assert owner.told == [True, False]
    assert not box.pressed


def test_clear_ends_it():
    box, owner = outbox()
    box.push(b"a", 3)
    box.push(b"b")
    box.clear()
    assert (box.size, box.take(10, 0.0), box.push(b"c"), box.messages, box.dropped) == (0, [], False, 2, 0)
    assert owner.marks == 1


def test_finish_lets_out_what_waits_at_its_rate():
    box, _ = outbox(1000, rate=10.0)
    box.push(b"x" * 10)
    box.push(b"y" * 10)
    box.finish()
    assert not box.push(b"z")
    assert box.take(100, 0.0) == [b"x" * 10]
    assert box.wait(0.0) == pytest.approx(1.0)
    assert box.take(100, 1.0) == [b"y" * 10]


def test_the_rate_is_never_above_burst_and_rate():
    box, _ = outbox(10_000, rate=100.0, burst=50.0)
    for _ in range(100):
        box.push(b"x" * 10)
    assert box.wait(0.0) is None
    assert len(box.take(1000, 0.0)) == 5
    assert box.take(1000, 0.0) == []
    assert box.wait(0.0) == pytest.approx(0.1)
    assert box.take(1000, 0.05) == []
    assert len(box.take(1000, 0.1)) == 1
    assert len(box.take(1000, 100.0)) == 5  # a pause earns the burst and no more
    assert box.wait(100.0) == pytest.approx(0.1)


def test_a_chunk_above_the_burst_waits_for_a_full_bucket_and_leaves_a_debt():
    box, _ = outbox(10_000, rate=100.0, burst=50.0)
    box.push(b"x" * 10)
    box.push(b"L" * 250)
    box.push(b"x")
    assert box.take(1000, 0.0) == [b"x" * 10]
    assert box.wait(0.0) == pytest.approx(0.1)
    assert box.take(1000, 0.1) == [b"L" * 250]
    assert box.wait(0.1) == pytest.approx(2.01)
    assert box.take(1000, 2.0) == []
    assert box.take(1000, 2.11) == [b"x"]


def test_priorities_hold_under_a_rate():
    box, _ = outbox(rate=2.0)
    box.push(b"n1")
    box.push(b"n2")
    assert box.take(100, 0.0) == [b"n1"]
    box.push(b"u1", 0)
    assert box.take(100, 1.0) == [b"u1"]
    assert box.take(100, 2.0) == [b"n2"]


chunks = st.tuples(
    st.binary(min_size=1, max_size=30), st.sampled_from([128, 128, 128, 0, 200]), st.booleans(), st.integers(1, 3)
)
actions = st.lists(st.one_of(chunks, st.integers(1, 40)), max_size=60)


@given(actions, st.sampled_from(["disconnect", "drop-oldest", "drop-ephemeral"]), st.integers(20, 120))
@settings(max_examples=200, deadline=None)
def test_against_a_plain_list(todo, policy: str, bound: int):
    """Whatever happens: the bound holds, sizes and counts add up, and what comes out is a subsequence in order."""
    box, owner = outbox(bound, policy)
    pushed: list[tuple[int, int, bytes]] = []
    accepted = refused = 0
    out: list[bytes] = []
    for number, what in enumerate(todo):
        if isinstance(what, int):
            taken = box.take(what, 0.0)
            assert len(taken) <= 1 or sum(map(len, taken)) <= what
            out += taken
            continue
        data, priority, ephemeral, count = what
        data = b"%d:" % number + data
        if box.push(data, priority, ephemeral, count):
            accepted += count
            pushed.append((priority, number, data))
        elif "overflow" not in owner.told:
            refused += count
        assert box.size <= bound
    rest = box.take(2**40, 0.0)
    assert box.size == 0
    assert box.messages == accepted
    order = sorted((priority, number) for priority, number, data in pushed if data in rest)
    assert [data for key in order for priority, number, data in pushed if (priority, number) == key] == rest
    assert len(set(out + rest)) == len(out + rest)
    assert set(out + rest) <= {data for _, _, data in pushed}
    if "overflow" not in owner.told:
        assert sum(next(c for n, (d, _, _, c) in _chunks(todo) if b"%d:" % n + d == x) for x in out + rest) == (
            accepted + refused - box.dropped
        )
    for priority in (0, 128, 200):
        numbers = [int(x.split(b":")[0]) for x in out + rest if (priority, int(x.split(b":")[0]), x) in pushed]
        assert numbers == sorted(numbers)


def _chunks(todo):
    return [(number, what) for number, what in enumerate(todo) if not isinstance(what, int)]


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 60)), max_size=40),
    st.integers(1, 200),
    st.integers(0, 100),
)
@settings(max_examples=200, deadline=None)
def test_no_stretch_of_time_has_more_than_burst_and_rate(todo, rate: int, burst: int):
    box, _ = outbox(2**30, rate=float(rate), burst=float(burst))
    limit = burst or rate
    now, sent = 0.0, []
    for pause, size in todo:
        if size:
            box.push(b"x" * min(size, limit))
        now += pause
        sent.append((now, sum(map(len, box.take(2**30, now)))))
        wait = box.wait(now)
        if wait is not None:
            now += wait
            taken = box.take(2**30, now)
            assert taken, "wait said that there would be more"
            sent.append((now, sum(map(len, taken))))
    for first in range(len(sent)):
        total = 0
        for when, size in sent[first:]:
            total += size
            assert total <= limit + rate * (when - sent[first][0]) + 0.1
