"""The hub against a naive model of it: lists, no indexes, no shortcuts.

The model says exactly what waits for everyone, in which order, and who is where. Two things it does not foresee and
only checks to have been allowed: which history gives way when there is too much of it, and when exactly a quiet channel
is forgotten.

Those who are slow never ask anything: the sizes of what they are sent have to be known (an error's text is not).

Over 600 lines, and one file all the same: the model and the rules that drive it and the hub side by side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netd.hub.config import HubConfig, Namespace, Token
from netd.hub.outbox import OutboxRules
from netd.hub.permissions import Refusal
from netd.wire import messages
from netd.wire.messages import (
    Broadcast,
    Close,
    CloseCode,
    Direct,
    Error,
    Hello,
    Joined,
    Left,
    Message,
    Ok,
    Publish,
    SendDirect,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from tests.hub.room import Person, Position, Room, config, fields, public

SECRET = "a secret of enough characters"
TOKEN = Token(name="t", secret=SECRET, subscribe=["team:*"], publish=["team:*"], presence=["team:*"])
CHANNELS = (b"open:1", b"open:2", b"aged:1", b"aged:2", b"team:1", b"nowhere:1", b"open:\xff", b"open:1.b", b"team:1.b")
PATTERNS = {
    b"open:>": rb"open:.+",
    b"open:*": rb"open:[^.]*",
    b"open:*.b": rb"open:[^.]*\.b",
    b"team:*.>": rb"team:[^.]*\..*",
    b"aged:>": rb"aged:.+",
}
"""Names with wildcards, which are channels where the namespace has none; as regular expressions."""
NAMES = (*CHANNELS, *PATTERNS)
CONFIGS = (
    config(
        public("open", history_size=4, join_leave=True, join_leave_rate=1e6, wildcards=True),
        public("aged", history_size=3, history_seconds=10),
        Namespace(name="team", join_leave=True, join_leave_rate=1e6, wildcards=True),
        tokens=[TOKEN],
    ),
    config(
        public("open", history_size=2, join_leave=True, join_leave_rate=1e6),
        public("aged", history_size=30),
        Namespace(name="team", history_size=2, history="anyone"),
        max_channels=4,
        max_subscriptions=3,
    ),
    config(
        public("open", history_size=50, max_subscribers=2, wildcards=True, max_patterns=2),
        Namespace(name="team", ephemeral=True),
        tokens=[TOKEN],
    ),
    config(
        public("open", history_size=50, join_leave=True, join_leave_rate=1e6, recover="nobody", wildcards=True),
        public("aged", history_size=50, history_seconds=5, wildcards=True),
        history_bytes=3000,
        max_patterns=1,
    ),
)


@dataclass(eq=False)
class Record:
    """A channel's history as it should be."""

    epoch: str
    offset: int = 0
    entries: list[tuple[int, float, Message]] = field(default_factory=list)
    quiet: float | None = None
    """Since when it has neither messages nor subscribers."""


TOKEN_GONE = "cannot go on with the token 't': this configuration takes it no more; refresh it"


@dataclass(eq=False)
class Peer:
    """A session as it should be."""

    person: Person
    slow: bool
    id: str
    name: str | None = None
    token: bool = False
    secret: str | None = None
    hears: dict[bytes, bool] = field(default_factory=dict)
    """Channel -> whether the server side put it there."""
    inbox: list[tuple[int, bool, Any, int]] = field(default_factory=list)
    """priority, ephemeral, what, bytes"""
    dropped: int = 0
    ended: bool = False
    since: int = 0
    """When it got its name, in steps."""

    @property
    def size(self) -> int:
        return sum(size for *_, size in self.inbox)


class HubModel(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.room = Room(CONFIGS[0])
        self.config: HubConfig = CONFIGS[0]
        self.peers: list[Peer] = []
        self.order: dict[bytes, list[Peer]] = {}
        self.records: dict[bytes, Record] = {}
        self.retired: set[str] = set()
        self.positions: list[tuple[bytes, Position]] = [(b"open:1", Position("never", 0))]
        self.gone: list[tuple[Peer, float]] = []
        self.leaving: list[Peer] = []
        self.squeezed = False
        self.before: dict[bytes, bool] = {}
        """While a reload ends subscriptions: which names were patterns before it."""
        self.step = 0
        for policy in (None, "disconnect", None, "drop-oldest", "drop-ephemeral"):
            self.open(700, policy)

    # --- the model ---------------------------------------------------------------------------------------------------

    def rules_of(self, channel: bytes) -> Namespace | None:
        return next((each for each in self.config.namespace if each.name.encode() == channel.split(b":")[0]), None)

    def wild(self, channel: bytes) -> bool:
        rules = self.rules_of(channel)
        return rules is not None and rules.wildcards and channel in PATTERNS

    def keeps(self, channel: bytes) -> bool:
        rules = self.rules_of(channel)
        return rules is not None and rules.history_size > 0 and not self.wild(channel)

    def audience(self, channel: bytes) -> list[Peer]:
        """Who hears a channel: its own subscribers, then those of each pattern that matches, everyone once."""
        matching = [
            name for name in sorted(PATTERNS) if self.wild(name) and re.fullmatch(PATTERNS[name], channel, re.S)
        ]
        found: dict[Peer, None] = {}
        for name in (channel, *matching):
            found.update(dict.fromkeys(self.order.get(name, ())))
        return list(found)

    def visible(self, channel: bytes) -> list[tuple[int, float, Message]]:
        rules, record = self.rules_of(channel), self.records[channel]
        assert rules is not None
        age = rules.history_seconds or float("inf")
        return [entry for entry in record.entries if entry[1] + age > self.room.now]

    def may(self, peer: Peer, what: str, channel: bytes) -> bool:
        rules = self.rules_of(channel)
        if rules is None:
            return False
        who = getattr(rules, what)
        if what == "recover":
            who = who or rules.history
        return who == "anyone" or (who == "token" and peer.token and channel.startswith(b"team:"))

    def send(self, peer: Peer, what: Any, priority: int = 128, ephemeral: bool = False) -> bool:
        if peer.ended:
            return False
        size = len(messages.encode(what, "json")) if not isinstance(what, tuple) else 0
        if isinstance(what, Error):
            what = ("error", what.code, what.ref)
        rules = peer.person.rules
        if peer.size + size > rules.bound:
            if rules.policy == "drop-ephemeral":
                waiting = sum(entry[3] for entry in peer.inbox if entry[1])
                if not ephemeral or 16 * waiting >= rules.bound:
                    kept = [entry for entry in peer.inbox if not entry[1]]
                    peer.dropped += len(peer.inbox) - len(kept)
                    peer.inbox = kept
            if rules.policy == "drop-oldest":
                less = sorted((entry for entry in peer.inbox if entry[0] >= priority), key=lambda entry: -entry[0])
                if sum(entry[3] for entry in less) >= peer.size + size - rules.bound:
                    while peer.size + size > rules.bound:
                        peer.inbox.remove(less.pop(0))
                        peer.dropped += 1
            if peer.size + size > rules.bound:
                peer.dropped += 1
                if rules.policy == "disconnect" or (rules.policy == "drop-ephemeral" and not ephemeral):
                    peer.dropped += len(peer.inbox)
                    peer.inbox = [(128, False, Close(code=CloseCode.SLOW, reason="too slow"), 0)]
                    self.end(peer)
                return False
        peer.inbox.append((priority, ephemeral, what, size))
        return True

    def end(self, peer: Peer) -> None:
        peer.ended = True
        self.leaving.append(peer)

    def settle(self) -> None:
        while self.leaving:
            peer = self.leaving.pop(0)
            for channel in sorted(peer.hears):
                self.leave(peer, channel)
            self.peers.remove(peer)
            self.gone.append((peer, self.room.now))

    def leave(self, peer: Peer, channel: bytes) -> None:
        del peer.hears[channel]
        there = self.order[channel]
        there.remove(peer)
        if not there:
            del self.order[channel]
        elif self.tells(channel):
            self.news(channel, Left(session=peer.id, name=peer.name, **fields(channel)))

    def tells(self, channel: bytes) -> bool:
        rules = self.rules_of(channel)
        return rules is not None and rules.join_leave and not self.before.get(channel, self.wild(channel))

    def hand_out(self, channel: bytes, what: Any, priority: int = 128, ephemeral: bool = False) -> int:
        return sum(self.send(peer, what, priority, ephemeral) for peer in self.audience(channel))

    def news(self, channel: bytes, what: Any) -> None:
        """Of who comes and goes: for those who may ask, and have little waiting."""
        for peer in self.order.get(channel, ()):
            if peer.ended or not self.may(peer, "presence", channel):
                continue
            if peer.size + len(messages.encode(what, "json")) > peer.person.rules.bound // 2:
                peer.dropped += 1
            else:
                self.send(peer, what, 128, ephemeral=True)

    def record(self, channel: bytes) -> Record:
        """The record that has to be there now; its epoch is as the hub says, and never one that was there before."""
        if channel not in self.records:
            epoch = self.room.hub.channel(channel).epoch
            assert epoch is not None
            assert epoch not in self.retired
            self.records[channel] = Record(epoch)
        return self.records[channel]

    def publish(self, channel: bytes, sender: Peer | None, data: Any, priority: int, ephemeral: bool) -> int:
        rules = self.rules_of(channel)
        ephemeral = ephemeral or (rules is not None and rules.ephemeral)
        offset = epoch = None
        if self.keeps(channel) and not ephemeral:
            record = self.record(channel)
            record.offset += 1
            offset, epoch = record.offset, record.epoch
        message = Message(
            from_=None if sender is None else sender.id,
            data=data,
            offset=offset,
            epoch=epoch,
            **fields(channel),
        )
        if offset is not None:
            record.entries.append((offset, self.room.now, message))
            del record.entries[: -rules.history_size]
        reached = self.hand_out(channel, message, priority if offset is None else 128, ephemeral)
        self.settle()
        return reached

    def forget(self, channel: bytes) -> None:
        self.retired.add(self.records.pop(channel).epoch)

    def reconcile(self) -> None:
        """Take over which history gave way, having checked that some had to."""
        hub, now = self.room.hub, self.room.now
        full = len(hub.histories) >= self.config.max_channels
        tight = self.squeezed or hub.histories.size > self.config.history_bytes - 1500
        for channel, record in list(self.records.items()):
            info = hub.channel(channel)
            if not self.keeps(channel):
                assert info.epoch is None
                self.forget(channel)
                continue
            entries = self.visible(channel)
            if info.epoch != record.epoch:
                quiet = record.quiet is not None and not self.order.get(channel) and not entries
                assert full or (quiet and now - record.quiet >= self.config.resume_seconds)
                self.forget(channel)
                continue
            assert info.offset == record.offset
            assert info.history <= len(record.entries)
            assert info.history >= len(entries) or tight
            record.entries = record.entries[len(record.entries) - info.history :]
            unused = not record.entries and not self.order.get(channel)
            record.quiet = (now if record.quiet is None else record.quiet) if unused else None
        self.squeezed = False

    # --- what happens ------------------------------------------------------------------------------------------------

    def pick(self, number: int, slow: bool | None = None) -> Peer | None:
        found = [peer for peer in self.peers if slow is None or peer.slow is slow]
        return found[number % len(found)] if found else None

    @rule(bound=st.integers(400, 1500), policy=st.sampled_from(["disconnect", "drop-oldest", "drop-ephemeral", None]))
    def open(self, bound: int, policy: Any) -> None:
        if len(self.peers) < 8:
            person = self.room.person(rules=None if policy is None else OutboxRules(bound, policy))
            self.peers.append(Peer(person, policy is not None, person.session.id))

    @rule(number=st.integers(0, 7))
    def close(self, number: int) -> None:
        if (peer := self.pick(number)) is not None:
            peer.person.leave()
            self.end(peer)
            self.settle()

    @rule(number=st.integers(0, 7), name=st.sampled_from(["ann", "bob", None]), token=st.booleans())
    def hello(self, number: int, name: str | None, token: bool) -> None:
        if (peer := self.pick(number, slow=False)) is None:
            return
        known = bool(self.config.token)
        self.room.hub.handle(peer.person.session, Hello(version=1, name=name, token=SECRET if token else None))
        if token and not known:
            self.send(peer, ("error", "denied", None))
            return
        peer.token |= token
        peer.secret = None  # there will be another
        if name is not None:
            peer.name = name
        peer.since = self.step
        self.send(peer, ("welcome", peer.id))

    @rule(number=st.integers(0, 7), late=st.booleans())
    def resume(self, number: int, late: bool) -> None:
        """One who was welcomed comes back, before or after its connection has ended."""
        candidates = [(peer, None) for peer in self.peers if peer.secret and not peer.slow]
        candidates += [(peer, when) for peer, when in self.gone if peer.secret]
        if not candidates or len(self.peers) >= 8:
            return
        old, when = candidates[number % len(candidates)]
        if when is None and late:
            return
        secret, old.secret = old.secret, None
        person = self.room.person()
        peer = Peer(person, False, person.session.id, since=self.step)
        self.peers.append(peer)
        person.room.hub.handle(person.session, Hello(version=1, resume=secret))
        if when is None:
            old.inbox.append((128, False, Close(code=CloseCode.REPLACED, reason="resumed by another connection"), 0))
            self.end(old)
            self.settle()
        elif self.room.now - when >= self.config.resume_seconds:
            self.send(peer, ("welcome", peer.id))
            return
        peer.id, peer.name = old.id, old.name
        self.peers.remove(peer)
        self.peers.append(peer)
        self.send(peer, ("welcome", peer.id))

    def room_for(self, peer: Peer, names: list[bytes]) -> bool:
        """Whether one may have these subscriptions besides its own."""
        heard = sum(not self.wild(name) for name in self.order)
        patterns = sum(self.wild(name) for name in peer.hears)
        for more, name in enumerate(names):
            rules, there = self.rules_of(name), self.order.get(name)
            if len(peer.hears) + more >= self.config.max_subscriptions:
                return False
            if there is not None and rules is not None and len(there) >= rules.max_subscribers:
                return False
            if self.wild(name):
                assert rules is not None
                others = [each for each in self.order if self.wild(each) and self.rules_of(each) is rules]
                if patterns >= self.config.max_patterns or (there is None and len(others) >= rules.max_patterns):
                    return False
                patterns += 1
            elif there is None and heard >= self.config.max_channels:
                return False
        return True

    @rule(number=st.integers(0, 7), channel=st.sampled_from(NAMES), recover=st.integers(0, 30) | st.none())
    def subscribe(self, number: int, channel: bytes, recover: int | None) -> None:
        if (peer := self.pick(number)) is None:
            return
        since = None
        if recover is not None:
            channel, since = self.positions[recover % len(self.positions)]
        request = Subscribe(ref=1, recover=since, **fields(channel))
        hub, session = self.room.hub, peer.person.session
        room_there = channel in peer.hears or self.room_for(peer, [channel])
        if peer.slow:
            try:
                hub.subscribe(session, channel, checked=False)
            except Refusal:
                assert not room_there
                return
        else:
            hub.handle(session, request)
            if not self.may(peer, "subscribe", channel):
                self.send(peer, ("error", "denied", 1))
                return
            if not room_there:
                self.send(peer, ("error", "too-many", 1))
                return
        assert room_there
        already = channel in peer.hears
        missed: list[Message] = []
        start: Position | None = None
        recovered = None if since is None else False
        if self.keeps(channel) and not (already and peer.slow):  # who asks for no answer and is there changes nothing
            record = self.record(channel)
            self.reconcile()  # asking may have made room for this one
            record = self.record(channel)
            start = Position(record.epoch, record.offset)
            if since is not None and not already and since.epoch == record.epoch and since.offset <= record.offset:
                may = self.may(peer, "recover", channel) or since.offset == record.offset
                after = [message for offset, _, message in self.visible(channel) if offset > since.offset]
                if may and len(after) == record.offset - since.offset:
                    start, missed, recovered = since, after, True
            self.positions = [*self.positions[-30:], (channel, Position(record.epoch, record.offset))]
        if not peer.slow:
            place = {} if start is None else {"epoch": start.epoch, "offset": start.offset}
            self.send(peer, Ok(ref=1, recovered=recovered, pattern=self.wild(channel), **place, **fields(channel)))
            for message in missed:
                self.send(peer, message)
        if not already:
            peer.hears[channel] = peer.slow
            others = self.order.setdefault(channel, [])
            if self.tells(channel):
                self.news(channel, Joined(session=peer.id, name=peer.name, **fields(channel)))
            others.append(peer)
            self.settle()

    @rule(number=st.integers(0, 7), channel=st.sampled_from(NAMES))
    def unsubscribe(self, number: int, channel: bytes) -> None:
        if (peer := self.pick(number)) is None:
            return
        if peer.slow:
            assert self.room.hub.unsubscribe(peer.person.session, channel) is (channel in peer.hears)
        else:
            self.room.hub.handle(peer.person.session, Unsubscribe(ref=2, **fields(channel)))
        if channel in peer.hears:
            self.leave(peer, channel)
            self.settle()
        if not peer.slow:
            self.send(peer, Ok(ref=2, **fields(channel)))

    @rule(
        number=st.integers(0, 7) | st.none(),
        channel=st.sampled_from(NAMES),
        data=st.sampled_from(["x", "y" * 200, "é" * 40, {"a": [1, None]}, 7]),
        priority=st.sampled_from([128, 128, 128, 3, 200]),
        ephemeral=st.booleans(),
    )
    def say(self, number: int | None, channel: bytes, data: Any, priority: int, ephemeral: bool) -> None:
        hub = self.room.hub
        peer = None if number is None else self.pick(number, slow=False)
        if peer is None:
            try:
                reached = hub.publish(channel, data, priority=priority, ephemeral=ephemeral)
            except Refusal:
                assert self.wild(channel)
                return
            assert reached == self.publish(channel, None, data, priority, ephemeral)
            return
        request = Publish(ref=3, data=data, priority=priority, ephemeral=ephemeral, **fields(channel))
        hub.handle(peer.person.session, request)
        if self.wild(channel) and self.may(peer, "publish", channel):
            self.send(peer, ("error", "invalid", 3))
        elif self.may(peer, "publish", channel):
            delivered = self.publish(channel, peer, data, priority, ephemeral)
            self.send(peer, Ok(ref=3, delivered=delivered))
        else:
            self.send(peer, ("error", "denied", 3))

    @rule(channel=st.sampled_from(CHANNELS[:3]), count=st.integers(1, 6), ephemeral=st.booleans())
    def chatter(self, channel: bytes, count: int, ephemeral: bool) -> None:
        for number in range(count):
            self.say(None, channel, str(number) * 150, 128, ephemeral)

    @rule(
        number=st.integers(0, 7),
        channel=st.sampled_from(CHANNELS[:5]),
        count=st.integers(0, 6),
        seconds=st.sampled_from([0.0, 0.0, 6.0, 61.0]),
        before=st.integers(0, 3),
    )
    def come_back(self, number: int, channel: bytes, count: int, seconds: float, before: int) -> None:
        """One leaves a channel, misses something, and comes back for it (and maybe for what it already had)."""
        peer = self.pick(number, slow=False)
        if peer is None or not self.keeps(channel) or not self.may(peer, "subscribe", channel):
            return
        self.subscribe(self.peers.index(peer), channel, None)
        if channel not in peer.hears:
            return
        at = self.positions[-1][1]
        self.positions.append((channel, Position(at.epoch, max(0, at.offset - before))))
        self.unsubscribe(self.peers.index(peer), channel)
        for _ in range(count):
            self.say(None, channel, "z", 128, False)
        self.reconcile()  # someone slow may have gone, and a channel is quiet from now on
        self.wait(seconds, True)
        self.reconcile()
        self.subscribe(self.peers.index(peer), channel, len(self.positions) - 1)

    @rule(number=st.integers(0, 7), to=st.sampled_from(["name:ann", "name:bob", "nobody"]) | st.integers(0, 7))
    def direct(self, number: int, to: str | int) -> None:
        if (peer := self.pick(number, slow=False)) is None:
            return
        if isinstance(to, int):
            to = self.peers[to % len(self.peers)].id
        found = sorted((each for each in self.peers if f"name:{each.name}" == to), key=lambda each: each.since)
        found = found or [each for each in self.peers if each.id == to]
        self.room.hub.handle(peer.person.session, SendDirect(to=to, data="d" * 50, ref=4))
        reached = sum(self.send(each, Direct(data="d" * 50, from_=peer.id)) for each in found)
        self.settle()
        self.send(peer, Ok(ref=4, delivered=reached) if reached else ("error", "not-found", 4))

    @rule(number=st.integers(0, 7) | st.none())
    def broadcast(self, number: int | None) -> None:
        peer = None if number is None else self.pick(number)
        reached = self.room.hub.broadcast("b" * 50, sender=None if peer is None else peer.person.session)
        event = Broadcast(data="b" * 50, from_=None if peer is None else peer.id)
        assert reached == sum(self.send(each, event) for each in list(self.peers) if each is not peer)
        self.settle()

    @rule(one=st.integers(0, 7), other=st.integers(0, 7))
    def copy(self, one: int, other: int) -> None:
        source, target = self.pick(one), self.pick(other)
        if source is None or target is None:
            return
        new = sorted(set(source.hears) - set(target.hears))
        fits = self.room_for(target, new)
        try:
            assert self.room.hub.copy_subscriptions(source.id, target.id) == len(new)
        except Refusal:
            assert not fits
            return
        assert fits
        for channel in new:
            if target.ended:
                break
            if self.tells(channel):
                self.news(channel, Joined(session=target.id, name=target.name, **fields(channel)))
            target.hears[channel] = True
            self.order[channel].append(target)
            self.settle()
            if self.keeps(channel):
                self.record(channel)

    @rule(number=st.integers(0, 7))
    def kick(self, number: int) -> None:
        if (peer := self.pick(number)) is not None:
            assert self.room.hub.kick(peer.id, reason="out") == 1
            peer.secret = None
            self.send(peer, Close(code=CloseCode.KICKED, reason="out"))
            if not peer.ended:
                self.end(peer)
            self.settle()

    @rule(number=st.integers(0, 7))
    def read(self, number: int) -> None:
        if (peer := self.pick(number)) is not None:
            self.compare(peer)

    @rule(seconds=st.sampled_from([1.0, 4.0, 11.0, 61.0]), sweep=st.booleans())
    def wait(self, seconds: float, sweep: bool) -> None:
        self.room.now += seconds
        if sweep:
            self.room.hub.sweep()

    @rule(number=st.integers(0, len(CONFIGS) - 1))
    def reconfigure(self, number: int) -> None:
        self.squeezed = True
        self.room.hub.reconfigure(CONFIGS[number])
        wild = self.before = {name: self.wild(name) for name in PATTERNS}
        self.config = CONFIGS[number]
        for peer in list(self.peers):
            if peer.token and not self.config.token:
                peer.token = False
                self.send(peer, Error(code="denied", message=TOKEN_GONE, refresh=True))
                self.settle()
        for channel, record in list(self.records.items()):
            if not self.keeps(channel):
                self.forget(channel)
            else:
                del record.entries[: -self.rules_of(channel).history_size]
        for peer in list(self.peers):
            for channel, placed in sorted(peer.hears.items()):
                if peer.ended:
                    break
                changed = wild.get(channel, False) is not self.wild(channel)
                if changed or (not placed and not self.may(peer, "subscribe", channel)):
                    self.leave(peer, channel)
                    self.settle()
                    self.send(peer, self.end_of_meaning(channel) if changed else ("error", "denied", None))
                    self.settle()

        self.before = {}

    def end_of_meaning(self, channel: bytes) -> Error:
        """What one is told whose subscription became a pattern, or is none any more. The slow are told it too."""
        rules, name = self.rules_of(channel), channel.decode()
        if rules is None:
            why = "there is no such namespace any more (hub.namespace)"
        else:
            what = "takes names with wildcards for patterns now" if rules.wildcards else "allows no wildcards"
            why = f"namespace {rules.name!r} {what} (hub.namespace.{self.config.namespace.index(rules)}.wildcards)"
        return Error(code="denied", message=f"cannot stay subscribed to {name!r}: {why}", channel=name)

    @rule(restart=st.booleans())
    def save(self, restart: bool) -> None:
        """What was saved is as good as what was there, for who stays and for who comes after a restart."""
        saved = self.room.hub.dump()
        if restart:
            for peer in list(self.peers):
                peer.person.leave()
                self.end(peer)
            self.settle()
            now = self.room.now
            self.room = Room(self.config)
            self.room.now = now
            self.gone = []
        self.room.hub.load(saved)

    # --- what holds --------------------------------------------------------------------------------------------------

    def compare(self, peer: Peer) -> None:
        heard: list[Any] = []
        for event in peer.person.heard():
            if isinstance(event, Error):
                heard.append(("error", event.code, event.ref))
            elif isinstance(event, Welcome):
                peer.secret = event.resume
                heard.append(("welcome", event.session))
            else:
                heard.append(event)
        assert heard == [what for *_, what, _ in sorted(peer.inbox, key=lambda entry: entry[0])]
        assert peer.person.session.dropped == peer.dropped
        peer.inbox = []

    @invariant()
    def everyone_is_where_they_should_be(self) -> None:
        self.step += 1
        self.reconcile()
        hub = self.room.hub
        assert list(hub.sessions) == [peer.id for peer in self.peers]
        for peer in self.peers:
            assert (peer.person.session.channels or set()) == set(peer.hears)
            assert peer.person.session.name == peer.name
            assert (peer.person.session.token == "t") is peer.token
            assert peer.person.outbox.size <= peer.person.rules.bound
            if not peer.slow and peer.secret is None:
                self.compare(peer)
        for channel in NAMES:
            assert hub.channel(channel).pattern is self.wild(channel)
            assert [each.session for each in hub.presence(channel)] == [peer.id for peer in self.order.get(channel, ())]
        for peer, _ in self.gone[-3:]:
            self.compare(peer)
        info = hub.info()
        patterns = sum(self.wild(name) for name in self.order)
        assert (info.sessions, info.channels) == (len(self.peers), len(self.order) - patterns)
        assert info.patterns == patterns
        assert info.subscriptions == sum(len(peer.hears) for peer in self.peers)
        assert info.history_bytes <= self.config.history_bytes
        assert info.histories <= self.config.max_channels
        assert set(self.records) == {each.name for each in hub.histories.all()}

    def teardown(self) -> None:
        if hasattr(self, "peers"):
            for peer in self.peers:
                self.compare(peer)
            for peer in list(self.peers):
                peer.person.leave()
            assert self.room.hub.sessions == {}
            assert self.room.hub._targets == {}
            assert self.room.hub.info().subscriptions == 0


HubModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestHubModel = HubModel.TestCase
