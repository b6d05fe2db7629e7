"""The ledger alone: a made-up Redis that loses connections, answers and itself, and two nodes that keep level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netd.backplane import ledger
from netd.backplane.ledger import Entry, Kept, Outgoing, Tracks

CHANNEL = b"kept:room"


def entry(outgoing: Outgoing, content: Any, *, kept: bool = True, delivered: bool = False, size: int = 10) -> Entry:
    return Entry(outgoing.number(), CHANNEL, b"x" * size, kept, content, delivered)


# --- Outgoing ---------------------------------------------------------------------------------------------------------


def test_what_comes_back_is_delivered_once():
    outgoing = Outgoing(10, 1000)
    first = entry(outgoing, 1)
    assert outgoing.add(first) == []
    assert outgoing.batch(10, 1000) == [first]
    outgoing.confirm(1)
    assert outgoing.returned(1) is first
    assert outgoing.returned(1) is None
    assert len(outgoing) == outgoing.size == 0


def test_what_was_delivered_while_redis_was_away_is_sent_again_and_not_delivered_again():
    outgoing = Outgoing(10, 1000)
    for number in (1, 2):
        outgoing.add(entry(outgoing, number))
    outgoing.batch(1, 1000)
    assert [each.content for each in outgoing.cut()] == [1, 2]
    assert [each.content for each in outgoing.batch(10, 1000)] == [1, 2]
    assert outgoing.returned(1) is None
    assert outgoing.returned(2) is None
    assert outgoing.was_loose(1)
    assert outgoing.was_loose(2)
    assert not outgoing.was_loose(3)


def test_what_redis_took_but_did_not_give_back_is_not_sent_again():
    outgoing = Outgoing(10, 1000)
    outgoing.add(entry(outgoing, 1))
    outgoing.batch(1, 1000)
    outgoing.confirm(1)
    assert [each.content for each in outgoing.cut()] == [1]
    assert outgoing.batch(10, 1000) == []


def test_past_its_bounds_the_oldest_is_given_up_and_its_channel_is_lost():
    outgoing = Outgoing(2, 1000)
    found = [outgoing.add(entry(outgoing, number)) for number in (1, 2, 3)]
    assert [[each.content for each in undelivered] for undelivered in found] == [[], [], [1]]
    assert outgoing.take_lost() == (False, {CHANNEL})
    assert outgoing.take_lost() == (False, set())
    assert outgoing.given_up == 1
    outgoing.add(entry(outgoing, 4, size=999))
    assert len(outgoing) == 1
    outgoing.add(entry(outgoing, 5, size=2000))
    assert len(outgoing) == outgoing.size == 0


def test_a_channel_without_history_is_not_lost():
    outgoing = Outgoing(1, 1000)
    for number in (1, 2):
        outgoing.add(entry(outgoing, number, kept=False, delivered=True))
    assert outgoing.take_lost() == (False, set())


def test_a_time_without_redis_is_one_range_whatever_is_said_in_it():
    outgoing = Outgoing(1000, 10**6)
    loose = []
    for number in range(300):
        each = entry(outgoing, number, kept=number % 2 == 0, delivered=True)
        outgoing.loosen(each)
        outgoing.add(each)
        loose.append(each.sequence)
    assert all(map(outgoing.was_loose, loose))
    assert not any(map(outgoing.was_carried, loose))
    outgoing.carry()
    assert all(map(outgoing.was_carried, loose))
    outgoing.loosen(entry(outgoing, "later", delivered=True))
    assert not outgoing.was_carried(outgoing.sequence)
    outgoing.carry()
    assert outgoing.was_carried(outgoing.sequence)
    assert not outgoing.was_carried(outgoing.sequence + 1)


# --- Tracks -----------------------------------------------------------------------------------------------------------


def tracks_at(epoch: str, offset: int) -> Tracks:
    tracks = Tracks()
    tracks.begin(CHANNEL)
    tracks.settle(CHANNEL, epoch, offset)
    return tracks


def kept(*offsets: int, node: str = "other") -> list[Kept]:
    return [Kept(offset, node, offset, offset) for offset in offsets]


def test_a_hole_is_fetched_and_what_comes_meanwhile_too():
    tracks = tracks_at("e", 3)
    assert tracks.admit(CHANNEL, "e", 4) == "new"
    assert tracks.admit(CHANNEL, "e", 4) == "old"
    assert tracks.admit(CHANNEL, "e", 6) == "gap"
    assert tracks.admit(CHANNEL, "e", 7) == "held"
    fetched = tracks.page(CHANNEL, "e", 6, kept(5, 6))
    assert ([each.offset for each in fetched.new], fetched.again, fetched.lost) == ([5, 6], True, 0)
    fetched = tracks.page(CHANNEL, "e", 7, kept(7))
    assert ([each.offset for each in fetched.new], fetched.again) == ([7], False)
    assert tracks.admit(CHANNEL, "e", 8) == "new"


def test_what_no_history_has_any_more_is_counted():
    tracks = tracks_at("e", 3)
    tracks.admit(CHANNEL, "e", 9)
    fetched = tracks.page(CHANNEL, "e", 9, kept(8, 9))
    assert ([each.offset for each in fetched.new], fetched.lost, fetched.again) == ([8, 9], 4, False)
    tracks.admit(CHANNEL, "e", 20)
    fetched = tracks.page(CHANNEL, "e", 20, [])
    assert (fetched.new, fetched.lost, fetched.again) == ([], 11, False)


def test_of_another_epoch_that_is_new_which_was_said_later():
    tracks = tracks_at("e", 3)
    assert tracks.admit(CHANNEL, "e", 4, "other", 4) == "new"
    assert tracks.admit(CHANNEL, "e", 5, "other", 5) == "new"
    assert tracks.missed() == [CHANNEL]
    assert tracks.admit(CHANNEL, "f~", 9, "other", 9) == "held"
    fetched = tracks.page(CHANNEL, "f~", 9, [*kept(2, node="old"), *kept(5, 6, 9), *kept(3, node="old")])
    assert ([each.offset for each in fetched.new], fetched.again) == ([6, 9], True)  # as something came meanwhile
    assert not tracks.page(CHANNEL, "f~", 9, []).again
    assert tracks.admit(CHANNEL, "f~", 9, "other", 9) == "old"
    # another one still, while all is well: what is in it may be more than what came
    assert tracks.admit(CHANNEL, "g", 2, "other", 10) == "gap"
    assert tracks.admit(CHANNEL, "g", 3, "other", 11) == "held"
    again = [Kept(1, "other", 9, "said again"), Kept(2, "other", 10, 10), Kept(3, "other", 11, 11)]
    fetched = tracks.page(CHANNEL, "g", 3, again)
    assert ([each.offset for each in fetched.new], fetched.again) == ([2, 3], True)
    assert not tracks.page(CHANNEL, "g", 3, []).again
    assert tracks.admit(CHANNEL, "g", 4, "other", 11) == "old"
    assert tracks.admit(CHANNEL, "g", 5, "other", 12) == "new"


def test_a_history_behind_what_was_delivered_has_lost_something():
    tracks = tracks_at("e", 9)
    tracks.missed()
    fetched = tracks.page(CHANNEL, "e", 5, kept(4, 5))
    assert fetched.regressed


def test_of_channels_that_may_have_lost_something_those_are_asked_for_that_are_heard():
    tracks = tracks_at("e", 9)
    assert tracks.missed([b"another", CHANNEL]) == [CHANNEL]
    assert tracks.missed([b"another"]) == []


def test_what_came_while_a_page_was_on_its_way_and_is_in_it_is_not_asked_for_again():
    tracks = tracks_at("e", 3)
    assert tracks.admit(CHANNEL, "e", 5) == "gap"
    assert tracks.admit(CHANNEL, "e", 6) == "held"
    assert not tracks.page(CHANNEL, "e", 6, kept(4, 5, 6)).again
    assert tracks.admit(CHANNEL, "e", 7) == "new"


def test_an_offset_that_somebody_made_up_is_asked_for_once():
    tracks = tracks_at("e", 3)
    assert tracks.admit(CHANNEL, "e", 5) == "gap"
    assert tracks.admit(CHANNEL, "e", 10**9) == "held"
    assert tracks.page(CHANNEL, "e", 5, kept(4, 5)).again
    assert not tracks.page(CHANNEL, "e", 5, []).again
    assert tracks.admit(CHANNEL, "e", 6) == "new"


def test_another_epoch_of_the_same_line_goes_on_where_it_was():
    tracks = Tracks()
    track = tracks.begin(CHANNEL)
    tracks.settle(CHANNEL, "e", 3, "line")
    assert tracks.admit(CHANNEL, "f~", 5) == "gap"
    fetched = tracks.page(CHANNEL, "f~", 5, kept(4, 5), line="line")
    assert ([each.offset for each in fetched.new], fetched.again, track.renewed) == ([4, 5], False, True)
    # of another line: what was delivered is told by who said it
    assert tracks.admit(CHANNEL, "g~", 6) == "gap"
    fetched = tracks.page(CHANNEL, "g~", 6, kept(2, 3, 4, 5, 6), line="other")
    assert [each.offset for each in fetched.new] == [6]
    # of the same line, but behind: it is not what it says
    assert tracks.admit(CHANNEL, "h~", 3) == "gap"
    fetched = tracks.page(CHANNEL, "h~", 3, [*kept(2, 3), *[]], line="other")
    assert (fetched.new, track.offset) == ([], 3)


def test_who_began_to_hear_while_redis_was_away_has_what_was_said_since():
    tracks = Tracks()
    tracks.first("known", 5)
    track = tracks.begin(CHANNEL, now=100.0)
    tracks.joining()
    assert tracks.missed() == [CHANNEL]
    assert tracks.settle(CHANNEL, "e", 4).offset == 4  # somebody else asked meanwhile: it counts for them alone
    tracks.first("known", 6)
    tracks.cut()  # and again
    tracks.joining()
    assert tracks.missed() == [CHANNEL]
    page = [Kept(1, "known", 5, 1, 99.0), Kept(2, "known", 6, 2, 99.5)]
    page += [Kept(3, "old", 7, 3, 50.0), Kept(4, "new", 1, 4, 101.0)]
    fetched = tracks.page(CHANNEL, "e", 4, page)
    assert ([each.content for each in fetched.new], fetched.placed, fetched.lost) == ([2, 4], True, 0)
    assert (track.epoch, track.offset, track.began) == ("e", 4, 4)
    assert tracks.admit(CHANNEL, "e", 5, "new", 2) == "new"


def test_a_page_that_nobody_waits_for_changes_nothing():
    tracks = tracks_at("e", 3)
    assert tracks.page(CHANNEL, "e", 9, kept(4, 9)).new == []
    tracks.end(CHANNEL)
    assert tracks.page(CHANNEL, "e", 9, kept(4, 9)).new == []
    assert tracks.admit(CHANNEL, "e", 77) == "new"


# --- both, against a model --------------------------------------------------------------------------------------------


@dataclass
class Server:
    """What Redis keeps: it takes each node's sequences in order and none twice."""

    epoch: str = "e1"
    stream: list[Kept] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)

    def take(self, node: str, sequence: int, content: Any) -> int | None:
        if sequence <= self.last.get(node, 0):
            return None
        self.last[node] = sequence
        self.stream.append(Kept(len(self.stream) + 1, node, sequence, content))
        return len(self.stream)

    def page(self, epoch: str, offset: int, most: int) -> tuple[str, int, list[Kept]]:
        start = offset if epoch == self.epoch and offset <= len(self.stream) else 0
        return self.epoch, len(self.stream), self.stream[start : start + most]


class Peer:
    """A node: what of the plane there is about one channel."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.server = server
        self.online = True
        self.outgoing = Outgoing(10_000, 10**9)
        self.tracks = tracks_at(server.epoch, 0)
        self.lane: list[Kept] = []
        self.replies: list[int] = []
        self.asked: list[tuple[str, int]] = []
        self.delivered: list[Any] = []

    def say(self, content: Any) -> None:
        each = entry(self.outgoing, content, delivered=not self.online)
        if not self.online:
            self.delivered.append(content)
            self.outgoing.loosen(each)
        self.outgoing.add(each)

    def hear(self, kept: Kept) -> None:
        who = ("", 0) if kept.node == self.name else (kept.node, kept.sequence)
        verdict = self.tracks.admit(CHANNEL, self.server.epoch, kept.offset, *who)
        if verdict == "gap":
            self.ask()
        elif verdict == "new":
            self._deliver(kept)
        elif verdict == "old" and kept.node == self.name:
            self.outgoing.returned(kept.sequence)

    def ask(self) -> None:
        track = self.tracks.get(CHANNEL)
        assert track is not None
        assert track.epoch is not None
        self.asked.append((track.epoch, track.offset))

    def fetch(self, most: int) -> None:
        found = self.tracks.page(CHANNEL, *self.server.page(*self.asked.pop(0), most), self.name)
        for each in found.new:
            self._deliver(each)
        if found.again:
            self.ask()

    def _deliver(self, kept: Kept) -> None:
        if kept.node != self.name:
            self.delivered.append(kept.content)
        elif (each := self.outgoing.returned(kept.sequence)) is not None:
            self.delivered.append(each.content)

    def cut(self) -> None:
        self.online = False
        self.tracks.cut()
        self.delivered += [each.content for each in self.outgoing.cut()]
        self.lane, self.replies, self.asked = [], [], []

    def join(self) -> None:
        self.online = True
        for _ in self.tracks.missed():
            self.ask()


class Nodes(RuleBasedStateMachine):
    """Whatever is said, cut and lost: when all is level, everybody has everything once, each speaker in order."""

    @initialize()
    def begin(self) -> None:
        self.server = Server()
        self.peers = [Peer("a", self.server), Peer("b", self.server)]
        self.said: list[tuple[str, int]] = []

    which = st.integers(0, 1)

    @rule(which=which)
    def say(self, which: int) -> None:
        peer = self.peers[which]
        self.said.append((peer.name, len(self.said)))
        peer.say(self.said[-1])

    @rule(which=which, count=st.integers(1, 4), arrives=st.booleans())
    def send(self, which: int, count: int, arrives: bool) -> None:
        """To Redis; or it goes away before."""
        peer = self.peers[which]
        if not peer.online:
            return
        for each in peer.outgoing.batch(count, 10**6):
            if not arrives:
                continue
            self._take(peer, each)
        if not arrives:
            peer.cut()

    def _take(self, peer: Peer, each: Entry) -> None:
        offset = self.server.take(peer.name, each.sequence, each.content)
        if offset is not None:
            for other in self.peers:
                if other.online:
                    other.lane.append(self.server.stream[-1])
        peer.replies.append(each.sequence)

    @rule(which=which, drops=st.booleans())
    def hear(self, which: int, drops: bool) -> None:
        """The lane brings the next one; or it is dropped, and found out."""
        peer = self.peers[which]
        if not peer.lane:
            return
        if drops:
            peer.lane.clear()
            for _ in peer.tracks.missed():
                peer.ask()
        else:
            peer.hear(peer.lane.pop(0))

    @rule(which=which)
    def reply(self, which: int) -> None:
        peer = self.peers[which]
        if peer.replies:
            peer.outgoing.confirm(peer.replies.pop(0))

    @rule(which=which, most=st.integers(1, 5))
    def fetch(self, which: int, most: int) -> None:
        peer = self.peers[which]
        if peer.asked:
            peer.fetch(most)

    @rule(which=which)
    def cut(self, which: int) -> None:
        self.peers[which].cut()

    @rule(which=which)
    def join(self, which: int) -> None:
        if not self.peers[which].online:
            self.peers[which].join()

    @rule(fraction=st.floats(0, 1))
    def emptied(self, fraction: float) -> None:
        """It dies, and what comes back knows nothing. What it had taken, everybody has to have heard for that."""
        if any(set(self._taken()) - set(peer.delivered) for peer in self.peers):
            return
        for peer in self.peers:
            peer.cut()
        self.server.stream, self.server.last = [], {}
        self.server.epoch = f"e{int(self.server.epoch[1:]) + 1}"

    def _taken(self) -> list[Any]:
        return [each.content for each in self.server.stream]

    @invariant()
    def nothing_came_twice(self) -> None:
        for peer in self.peers:
            assert len(peer.delivered) == len(set(peer.delivered))

    def teardown(self) -> None:
        if not hasattr(self, "peers"):
            return
        for peer in self.peers:
            if not peer.online:
                peer.join()
        for _ in range(3):
            for peer in self.peers:
                for each in peer.outgoing.batch(10**6, 10**9):
                    self._take(peer, each)
            for peer in self.peers:
                while peer.lane or peer.asked:
                    while peer.lane:
                        peer.hear(peer.lane.pop(0))
                    while peer.asked:
                        peer.fetch(3)
                while peer.replies:
                    peer.outgoing.confirm(peer.replies.pop(0))
        for peer in self.peers:
            assert sorted(peer.delivered) == sorted(self.said)
            for name in ("a", "b"):
                assert [each for each in peer.delivered if each[0] == name] == [
                    each for each in self.said if each[0] == name
                ]
            assert len(peer.outgoing) == 0


Nodes.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestNodes = Nodes.TestCase


def test_what_was_fetched_while_a_channel_was_heard_is_old_to_who_hears_it_through_a_pattern():
    tracks = Tracks()
    tracks.begin(b"x")
    tracks.settle(b"x", "e", 3)
    assert tracks.admit(b"x", "e", 6, "b", 3) == "gap"
    tracks.page(b"x", "e", 6, [Kept(number, "b", number - 3, None) for number in (4, 5, 6)])
    tracks.delivered(b"x", "e", 6)
    tracks.end(b"x", passed=True)
    assert tracks.admit(b"x", "e", 6, "b", 3) == "old"
    assert tracks.follows(b"x", "e", 7)
    tracks.begin(b"x")
    assert tracks.admit(b"x", "e", 5, "b", 2) == "old"
    assert tracks.admit(b"x", "e", 7, "b", 4) == "new"


def test_a_track_that_begins_behind_what_patterns_heard_is_not_told_to_them():
    tracks = Tracks()
    tracks.delivered(b"x", "e", 3)
    tracks.begin(b"x")
    tracks.settle(b"x", "e", 5)
    assert tracks.missing(b"x")  # 4 and 5
    assert tracks.admit(b"x", "e", 6, "b", 1) == "new"
    tracks.delivered(b"x", "e", 6)
    assert not tracks.missing(b"x")  # its number told
    tracks.end(b"x", passed=True)
    tracks.begin(b"x")
    tracks.settle(b"x", "e", 6)
    assert not tracks.missing(b"x")


def test_how_far_patterns_came_is_remembered_of_so_many_channels(monkeypatch):
    monkeypatch.setattr(ledger, "MAX_PASSED", 2)
    tracks = Tracks()
    for name in (b"x", b"y", b"x", b"z"):
        tracks.delivered(name, "e", 1)
    assert [tracks.follows(name, "e", 2) for name in (b"x", b"y", b"z")] == [True, False, True]
