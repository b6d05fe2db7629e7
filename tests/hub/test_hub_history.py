"""Histories: offsets and epochs, pages, what is forgotten and when."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.hub.config import Namespace
from netd.hub.history import OVERHEAD, Histories, Publication
from netd.wire.messages import Position, data_of, encode

DAY = 86_400.0


class Shelf:
    """Histories with one set of rules for each first letter of a name."""

    def __init__(self, limit: int = 2**30, max_channels: int = 1000, grace: float = 60.0, **rules: Namespace) -> None:
        self.rules = rules or {"a": Namespace(name="a", history_size=3)}
        self.used: set[bytes] = set()
        self.now = 1000.0
        self.histories = Histories(lambda name: self.rules[name[:1].decode()], lambda name: name in self.used)
        self.bounds = {"limit": limit, "max_channels": max_channels, "grace": grace}
        self.configure()

    def configure(self, **bounds) -> None:
        self.bounds |= bounds
        self.histories.configure(now=self.now, **self.bounds)

    def say(self, data: object = "x", name: bytes = b"a", **more) -> Publication:
        publication = Publication(name, data, time=self.now, **more)
        self.histories.append(publication, self.now)
        return publication

    def page(self, since: Position | None = None, limit: int = 100, name: bytes = b"a"):
        return self.histories.page(name, since, limit, self.now)

    def offsets(self, since: Position | None = None, limit: int = 100, name: bytes = b"a") -> list[int | None]:
        page = self.page(since, limit, name)
        assert page is not None
        return [each.offset for each in page.messages]

    def check(self) -> None:
        """What is counted is what is there."""
        there = list(self.histories.all())
        entries = [entry for history in there for entry in history.entries or ()]
        assert self.histories.size == sum(entry.weight for entry in entries) == sum(each.size for each in there)
        assert self.histories.messages == len(entries)
        filed = [history for members in self.histories._by_size for history in members.values()]
        assert sorted(each.name for each in filed) == sorted(each.name for each in there)
        for history in there:
            offsets = [entry.offset for entry in history.entries or ()]
            assert offsets == list(range(history.offset - len(offsets) + 1, history.offset + 1))


def test_messages_are_numbered_from_one_within_an_epoch():
    shelf = Shelf()
    first, second = shelf.say(), shelf.say()
    assert (first.offset, second.offset) == (1, 2)
    assert first.epoch == second.epoch
    assert first.epoch
    assert shelf.say(name=b"another").epoch != first.epoch
    shelf.check()


def test_no_history_no_offset():
    shelf = Shelf(a=Namespace(name="a"), b=Namespace(name="b", history_size=5))
    assert shelf.say().offset is None
    assert shelf.say(name=b"b", ephemeral=True).offset is None
    assert shelf.page() is None
    assert shelf.histories.position(b"a", shelf.now) is None
    assert len(shelf.histories) == 0


def test_pages():
    shelf = Shelf()
    for _ in range(5):
        epoch = shelf.say().epoch
    assert shelf.offsets() == [3, 4, 5]
    assert shelf.offsets(limit=2) == [4, 5]
    assert shelf.offsets(limit=0) == []
    assert shelf.offsets(Position(epoch, 3)) == [4, 5]
    assert shelf.offsets(Position(epoch, 0), 2) == [3, 4]
    assert shelf.offsets(Position("other", 4)) == [3, 4, 5]
    assert shelf.offsets(Position(epoch, 9)) == [3, 4, 5]  # of a future that this history has not had

    def complete(offset: int, epoch: str = epoch, limit: int = 100) -> bool:
        page = shelf.page(Position(epoch, offset), limit)
        assert page is not None
        assert (page.epoch, page.offset) == (shelf.histories.get(b"a").epoch, 5)
        return page.complete

    assert complete(2)
    assert complete(5)
    assert not complete(1)  # message 2 is gone
    assert not complete(6)  # it has not been said yet
    assert not complete(4, "other")
    assert not complete(2, limit=2)


def test_old_messages_are_not_shown_before_they_are_swept():
    shelf = Shelf(a=Namespace(name="a", history_size=10, history_seconds=10))
    epoch = shelf.say().epoch
    shelf.now += 6
    shelf.say()
    shelf.now += 4
    assert shelf.offsets() == [2]
    assert not shelf.page(Position(epoch, 0)).complete
    assert shelf.page(Position(epoch, 1)).complete
    shelf.check()


def test_a_quiet_channel_is_remembered_for_a_while():
    shelf = Shelf(grace=60, a=Namespace(name="a", history_size=10, history_seconds=10))
    epoch = shelf.say().epoch
    shelf.now += 10
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.messages == 0
    assert shelf.page(Position(epoch, 1)).complete  # nothing was missed
    shelf.now += 59
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.get(b"a").epoch == epoch
    shelf.now += 1
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.get(b"a") is None
    assert shelf.say().epoch != epoch
    shelf.check()


def test_a_channel_in_use_is_kept_without_messages():
    shelf = Shelf(grace=5)
    shelf.used.add(b"a")
    epoch = shelf.histories.position(b"a", shelf.now).epoch
    shelf.now += 1000
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.position(b"a", shelf.now).epoch == epoch
    shelf.used.clear()
    shelf.histories.left(b"a", shelf.now)
    shelf.now += 4
    shelf.used.add(b"a")  # came back in time
    shelf.now += 1
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.position(b"a", shelf.now).epoch == epoch
    shelf.used.clear()
    shelf.histories.left(b"a", shelf.now)
    shelf.now += 5
    shelf.histories.sweep(shelf.now)
    assert len(shelf.histories) == 0


def test_asking_for_a_channel_that_nobody_uses_leaves_nothing_behind_for_long():
    shelf = Shelf(grace=5)
    assert shelf.offsets() == []
    shelf.now += 5
    shelf.histories.sweep(shelf.now)
    assert len(shelf.histories) == 0


def test_past_its_bytes_the_largest_channel_loses_its_oldest():
    weight = sys.getsizeof("x" * 1000) + OVERHEAD
    shelf = Shelf(limit=20 * weight, a=Namespace(name="a", history_size=100))
    small = shelf.say("x" * 1000, b"a-small")
    for _ in range(40):
        shelf.say("x" * 1000, b"a-large")
        shelf.check()
        assert shelf.histories.size <= shelf.bounds["limit"]
    assert shelf.offsets(name=b"a-small") == [small.offset]
    assert shelf.offsets(name=b"a-large") == list(range(22, 41))
    assert shelf.histories.evicted == 21


def test_what_is_larger_than_all_there_may_be_is_not_kept():
    shelf = Shelf(limit=100)
    said = shelf.say("x" * 1000)
    assert said.offset == 1
    assert shelf.offsets() == []
    assert not shelf.page(Position(said.epoch, 0)).complete
    shelf.check()


def test_past_max_channels_empty_ones_go_first_then_the_quietest():
    shelf = Shelf(max_channels=3)
    for name in (b"a1", b"a2"):
        shelf.say(name=name)
    shelf.histories.position(b"a-empty", shelf.now)
    shelf.say(name=b"a3")
    assert {each.name for each in shelf.histories.all()} == {b"a1", b"a2", b"a3"}
    shelf.say(name=b"a1")
    shelf.say(name=b"a4")
    assert {each.name for each in shelf.histories.all()} == {b"a1", b"a3", b"a4"}
    assert shelf.histories.evicted == 1
    shelf.check()


def test_many_channels_that_come_and_go_leave_no_agenda_behind():
    shelf = Shelf(max_channels=10, a=Namespace(name="a", history_size=2, history_seconds=DAY))
    for number in range(2000):
        shelf.say(name=b"a%d" % number)
    assert len(shelf.histories._dues) <= 2 * 10 + 65
    shelf.now += DAY
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.messages == 0


def test_new_rules_hold_at_once():
    shelf = Shelf(a=Namespace(name="a", history_size=10), b=Namespace(name="b", history_size=10))
    for number in range(6):
        shelf.now = 1000.0 + number
        epoch = shelf.say().epoch
        shelf.say(name=b"b")
    shelf.rules = {"a": Namespace(name="a", history_size=4, history_seconds=3), "b": Namespace(name="b")}
    shelf.configure()
    assert shelf.offsets() == [4, 5, 6]
    assert shelf.page(Position(epoch, 3)).complete
    assert shelf.histories.get(b"b") is None
    shelf.check()
    shelf.configure(limit=0)
    assert shelf.histories.messages == 0
    shelf.check()
    shelf.configure(max_channels=1, limit=2**20)
    shelf.rules["b"] = Namespace(name="b", history_size=1)
    shelf.say(name=b"b")
    assert len(shelf.histories) == 1
    shelf.check()


def test_a_value_is_kept_in_the_bytes_it_took():
    """65536 bytes of JSON can be 20000 lists: they must not be kept as lists."""
    shelf = Shelf()
    value = [[] for _ in range(20_000)]
    said = shelf.say(value)
    assert said.data is value
    assert shelf.histories.size < 30_000
    (kept,) = shelf.page().messages
    assert len(kept.data) < 30_000
    assert kept.taken().data == kept.event().data == value


@pytest.mark.parametrize("data", ["text", b"binary \xff", {"a": [1, None, 2.5, "x"]}, None, 0, "", b""])
def test_data_comes_back_as_it_was(data: object):
    shelf = Shelf()
    shelf.say(data)
    (kept,) = shelf.page().messages
    assert data_of(kept.event()) == kept.taken().data == data
    assert type(kept.taken().data) is type(data)


@pytest.mark.parametrize(
    "data", ["text", "é\x00", "", b"\xff", {"a": [0.0, 1e300, -1]}, None, [0.0] * 1000, [[]] * 1000]
)
def test_what_a_message_takes_at_least_is_no_more_than_it_takes(data: object):
    shelf = Shelf()
    shelf.say(data)
    (kept,) = shelf.page().messages
    bare = [len(encode(kept.event(), format)) for format in ("json", "messagepack")]
    assert kept.least <= min(bare) - 40
    assert kept.least >= len(kept.data) // 3


def test_a_quiet_channel_is_remembered_from_when_it_was_last_left():
    """And not from when somebody had asked for it before."""
    shelf = Shelf()
    epoch = shelf.page().epoch  # asked for while nobody hears it: due in 60 seconds
    shelf.now += 50
    shelf.used.add(b"a")
    shelf.now += 5
    shelf.used.clear()
    shelf.histories.left(b"a", shelf.now)
    for seconds, there in ((6, True), (53, True), (1, False)):
        shelf.now += seconds
        shelf.histories.sweep(shelf.now)
        assert (shelf.histories.get(b"a") is not None) is there
    assert shelf.page().epoch != epoch


def test_a_channel_whose_messages_went_while_it_was_read_is_remembered_too():
    shelf = Shelf(a=Namespace(name="a", history_size=3, history_seconds=10))
    shelf.say()
    shelf.histories.left(b"a", shelf.now)
    shelf.now += 30
    assert shelf.page().messages == []
    shelf.histories.sweep(shelf.now)
    shelf.now += 59
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.get(b"a") is not None
    shelf.now += 1
    shelf.histories.sweep(shelf.now)
    assert shelf.histories.get(b"a") is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.sampled_from([b"a1", b"a2", b"b1", b"b2", b"c1"]), st.integers(0, 2000)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 7.0, 30.0])),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("look"), st.sampled_from([b"a1", b"a3", b"b2", b"c1"])),
        st.tuples(st.just("use"), st.sampled_from([b"a1", b"b1"])),
        st.tuples(st.just("left"), st.sampled_from([b"a1", b"b1"])),
        st.tuples(st.just("limit"), st.sampled_from([0, 2000, 10_000])),
        st.tuples(st.just("channels"), st.sampled_from([1, 3, 5])),
    ),
    max_size=60,
)


@given(steps)
@settings(max_examples=200, deadline=None)
def test_whatever_happens_the_bounds_hold_and_the_books_are_right(todo):
    shelf = Shelf(
        limit=20_000,
        grace=10,
        a=Namespace(name="a", history_size=4),
        b=Namespace(name="b", history_size=50, history_seconds=20),
        c=Namespace(name="c"),
    )
    newest: dict[tuple[bytes, str], int] = {}
    for what, *how in todo:
        if what == "say":
            name, size = how
            said = shelf.say("x" * size, name)
            if said.epoch is not None:
                key = (name, said.epoch)
                assert said.offset == newest.get(key, 0) + 1
                newest[key] = said.offset
        elif what == "wait":
            shelf.now += how[0]
        elif what == "sweep":
            shelf.histories.sweep(shelf.now)
        elif what == "look":
            shelf.page(name=how[0])
        elif what == "use":
            shelf.used.add(how[0])
            shelf.histories.position(how[0], shelf.now)
        elif what == "left":
            shelf.used.discard(how[0])
            shelf.histories.left(how[0], shelf.now)
        elif what == "limit":
            shelf.configure(limit=how[0])
        else:
            shelf.configure(max_channels=how[0])
        shelf.check()
        assert shelf.histories.size <= shelf.bounds["limit"]
        assert len(shelf.histories) <= shelf.bounds["max_channels"]
    shelf.used.clear()
    for name in (b"a1", b"a2", b"b1", b"b2"):
        shelf.histories.left(name, shelf.now)
    for _ in range(3):
        shelf.now += 1000
        shelf.histories.sweep(shelf.now)
    assert all(each.entries and each.name[:1] == b"a" for each in shelf.histories.all())
