"""The backplane's other nodes: who they are, letters to their sessions, and who is there. Pure.

Rules:
- a letter is not behind a message of a channel that has a history;
- presence in Redis is for the others: what is here is asked of the hub. It is written when somebody comes, goes or
  changes, and whole after every time without Redis and when a reload changes what is tracked; what is left of a dead
  node is removed by the first that sees it;
- while Redis is away, letters, kicks and questions are about this machine alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import structs

from netd.backplane.catalogue import Catalogue
from netd.backplane.desk import Call, NodeInfo, ignore
from netd.backplane.envelopes import Alive, Began, Count, Do, Gone, Kick, News, Post, Revoked, Seek, Sought
from netd.backplane.nodes import MAX_NODES, found_at
from netd.hub import orders
from netd.hub import presence as seen
from netd.hub.history import measure
from netd.hub.permissions import Refusal
from netd.hub.revocations import Revocation
from netd.hub.seams import Letter, Order
from netd.wire.messages import Client, Joined, Left, channel_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netd.backplane import envelopes
    from netd.hub.channels import Channel
    from netd.hub.patterns import Pattern
    from netd.hub.session import Session

HERE = 200
"""Sessions of one call that writes who is here."""
UNSURE = 300.0
"""Seconds after which whoever was told where it is has heard it, or has another connection."""
MAX_TOLD = 2000
"""Sessions of a dead node whose leaving is told."""
PRESENCE = 3600
"""Seconds that presence in Redis lasts if its node does not renew it, and no other one is there to remove it."""
_ALL = b""
"""In the place of a channel: all sessions of a node."""
_client = msgspec.msgpack.Encoder().encode
_read_client = msgspec.msgpack.Decoder(Client).decode
_revocation = msgspec.msgpack.Encoder().encode
read_revocation = msgspec.msgpack.Decoder(Revocation).decode
_info = msgspec.msgpack.Encoder().encode
_read_info = msgspec.msgpack.Decoder(NodeInfo).decode


class Company(Catalogue):
    """To be mixed into the backplane."""

    # --- the hub's side ---

    at_once = False

    @property
    def others(self) -> bool:
        return bool(self.nodes)

    def send(self, letter: Letter, answer: Callable[[int], None]) -> int:
        here = self._hub.deliver_letter(letter)
        if letter.to is not None and _is_id(letter.to) and self._hub.find(letter.to):
            answer(here)
            return here

        def post(ask: int) -> Post:
            how = letter.priority, letter.ephemeral, letter.application
            return Post(self.node, ask, letter.to, letter.data, letter.sender, *how)

        self._ask_all(here, post, answer)
        return here

    def kick(self, target: str, code: int, reason: str, answer: Callable[[int], None]) -> int:
        single = _is_id(target) and bool(self._hub.find(target))
        here = self._hub.kick_here(target, code, reason)
        if single:
            answer(here)
        else:
            self._ask_all(here, lambda ask: Kick(self.node, ask, target, code, reason), answer)
        return here

    def carry(self, order: Order, answer: Callable[[int], None]) -> None:
        def do(ask: int) -> Do:
            return Do(self.node, ask, order.what, order.session, order.value, order.target)

        self._ask_all(0, do, answer)

    def elsewhere(self, channel: bytes | None, limit: int, answer: Callable[[int, list[Client]], None]) -> None:
        if not self.online or not self.nodes:
            answer(0, [])
            return

        def arrived(result: Any) -> None:
            try:
                total = 0 if result is None else int(result[0])
                clients = [] if result is None else [_read_client(each) for each in result[1:]]
            except (ValueError, TypeError, IndexError, RecursionError):  # msgspec's errors are ValueErrors
                self.figures.unreadable += 1
                total, clients = 0, []
            answer(total, clients)

        keys = [self._present(node, _ALL if channel is None else channel) for node in self.nodes]
        self._question(Call("there", keys, [limit], arrived))

    def tell(self, channel: bytes, event: Joined | Left) -> None:
        if self.online and self.nodes:
            self._say(News(self.node, channel, isinstance(event, Joined), event.session, event.name))

    def joined(self, channel: bytes | None, session: Session) -> None:
        if self.online and not session.internal:
            self._write_here(_ALL if channel is None else channel, [session])

    def left(self, channel: bytes | None, session: Session, *, last: bool) -> None:
        track = None if channel is None else self.tracks.get(channel)
        if track is not None and (track.loose or self._monotonic() - track.levelled < UNSURE):
            self.outgoing.carry()
        if channel is not None and last:
            self.tracks.end(channel, passed=self._wild(channel))
            self._level.discard(channel)
        if self.online and not session.internal:
            name = _ALL if channel is None else channel
            if channel is None or self._tracked(name):
                self._write_gone(name, session.id)

    def changed(self, session: Session, former: str | None = None) -> None:
        """Its name, tags or id are others."""
        if not self.online or session.internal:
            return
        for channel in (_ALL, *(session.channels or ())):
            if former is not None:
                self._write_gone(channel, former)
            self._write_here(channel, [session])

    def revoke(self, made: Revocation) -> None:
        if self.online:
            self._store_revocation(made)
            self._say(Revoked(self.node, made.kind, made.value, made.since, made.until))

    def words(self) -> NodeInfo:
        """What this node says of itself."""
        hub = self._hub
        return NodeInfo(
            self.node,
            self.node.rpartition(".")[0],
            self.version,
            self.config.address or found_at(self._listening(), self._host),
            0.0,
            hub.visible,
            len(hub.heard),
            len(self.outgoing),
            None if self.lag is None else round(self.lag * 1000, 2),
            hub.clock(),
        )

    def write_presence(self) -> None:
        """All who are here, for the others; what Redis had of this node is gone."""
        self._tracking = self._tracks_who()
        sessions = self._hub.present()
        for start in range(0, len(sessions), HERE):
            self._write_here(_ALL, sessions[start : start + HERE])
        places: list[Channel | Pattern] = [*self._hub.heard.values(), *self._hub.patterns()]
        for place in places:
            there = [each for each in place.subscribers if not each.internal]
            for start in range(0, len(there), HERE):
                self._write_here(place.name, there[start : start + HERE])

    def _tell_back(self) -> None:
        """Others were told that the clients of this node had left: they are back. Of no more than MAX_TOLD."""
        left = MAX_TOLD
        for channel, place in self._hub.heard.items():
            if place.realm.rules.join_leave:
                for session in place.subscribers:
                    if not session.internal and left:
                        left -= 1
                        self._say(News(self.node, channel, True, session.id, session.name))

    # --- what comes, and what Redis answers ---

    def _take(self, envelope: envelopes.Envelope) -> None:
        hub = self._hub
        match envelope:
            case Post():
                try:
                    measure(envelope.data)
                except Refusal:
                    self.figures.unreadable += 1
                    return
                letter = Letter(
                    envelope.to,
                    envelope.data,
                    envelope.sender,
                    envelope.priority,
                    ephemeral=envelope.ephemeral,
                    application=envelope.application,
                )
                self._count(envelope.node, envelope.ask, hub.deliver_letter(letter))
            case Kick():
                count = hub.kick_here(envelope.target, envelope.code, envelope.reason)
                self._count(envelope.node, envelope.ask, count)
            case Do():
                order = Order(envelope.what, envelope.session, envelope.value, envelope.target)
                self._count(envelope.node, envelope.ask, orders.carry_out(hub, order))
            case Count():
                self.questions.answered(envelope.ask, envelope.node, envelope.count)
            case Seek():
                self._seek(envelope)
            case Sought():
                self._take_sought(envelope)
            case News():
                session = hub.sessions.get(envelope.session)
                if not envelope.joined and session is not None:  # somebody took this node for dead
                    if envelope.channel in (session.channels or ()):
                        self._say(News(self.node, envelope.channel, True, session.id, session.name))
                    return
                kind = Joined if envelope.joined else Left
                hub.news(envelope.channel, kind(envelope.session, envelope.name, **channel_fields(envelope.channel)))
            case Began():
                self.resync(envelope.channels)
            case Revoked():
                self._take_revocation(Revocation(envelope.kind, envelope.value, envelope.since, envelope.until))
            case Alive():
                if envelope.node in self.nodes or len(self.nodes) < MAX_NODES:
                    self._fresh.add(envelope.node)
                    self.nodes.setdefault(envelope.node, NodeInfo(envelope.node, envelope.node.rpartition(".")[0]))
            case Gone():
                self._forget(envelope.who)

    def _count(self, node: str, ask: int, count: int) -> None:
        if ask:
            self._say(Count(self.node, ask, count), self._prefix + b"to:" + node.encode())

    def _ask_all(self, here: int, envelope: Callable[[int], envelopes.Envelope], answer: Callable[[int], None]) -> None:
        if not self.online or not self.nodes:
            answer(here)
            return
        if self.waiting > self.config.queue_bytes or len(self._calls) > self.config.queue_messages:
            self.figures.refused += 1
            answer(here)
            return
        until = self._monotonic() + self.config.answers
        self._say(envelope(self.questions.ask(self.nodes, here, until, answer)))

    def _meet(self, others: Iterable[tuple[str, NodeInfo]]) -> None:
        self.nodes = {node: info for node, info in others if node != self.node}

    def _forget(self, node: str) -> None:
        if node != self.node:
            self._fresh.discard(node)
            self.nodes.pop(node, None)
            self.questions.gone(node)
            self.tracks.forget([node])

    def _look(self, result: Any) -> None:
        """What a heartbeat has brought."""
        try:
            known, many = int(result[0]), int(result[1])
            dead = [each.decode() for each in result[2 : 2 + many]]
            rest = result[2 + many :]
            others = list(read_nodes(rest))
        except (ValueError, TypeError, IndexError, AttributeError):
            self.figures.unreadable += 1
            return
        fresh = [(node, info) for node, info in self.nodes.items() if node in self._fresh]
        for node in set(self.nodes) - {node for node, _ in (*fresh, *others)}:
            self._forget(node)
        self._meet((*fresh, *others))
        if not known:  # it was taken for dead, or Redis was emptied
            self._say(Alive(self.node))
            self.write_presence()
            for made in self._hub.revocations.all():
                self._store_revocation(made)
            self.resync()
        for node in dead:
            if node != self.node:
                self._reap(node)

    def _reap(self, node: str, left: int = MAX_TOLD, cursor: bytes | None = None) -> None:
        """It is dead: tell that its clients have left, unless another node does; page after page."""

        def arrived(result: Any) -> None:
            if not isinstance(result, list) or not result:
                return
            if cursor is None:
                self._forget(node)
                self._say(Gone(self.node, node))
            for channel, client in zip(result[1::2], result[2::2], strict=False):
                try:
                    one = _read_client(client)
                    event = Left(one.session, one.name, **channel_fields(channel))
                except (ValueError, TypeError, RecursionError):
                    self.figures.unreadable += 1
                    continue
                if self._rules(channel).join_leave:
                    self._say(News(self.node, channel, False, one.session, one.name))
                    self._hub.news(channel, event)
            if result[0] != b"0":
                self._reap(node, left - (len(result) - 1) // 2, result[0])

        self._push(self._reaping(node, left, "due" if cursor is None else "on", cursor or b"0", arrived))

    def _reaping(self, node: str, tell: int, how: str, cursor: bytes, answer: Callable[[Any], None]) -> Call:
        keys = [self._prefix + b"nodes", self._prefix + b"nodes:info", self._key(b"i:", node)]
        return Call("reap", keys, [node, self._key(b"p:", node) + b":", tell, how, cursor], answer)

    def _tracks_who(self) -> frozenset[str]:
        """The namespaces of which it is to be known who hears what."""
        return frozenset(realm.name for realm in self._hub.permissions.realms() if realm.rules.track_presence)

    def _write_anew(self, cursor: bytes = b"0") -> None:
        """A reload has changed of which channels it is to be known who is there: what Redis has goes, page after page,
        and is written whole."""
        self._tracking = self._tracks_who()

        def answered(result: Any) -> None:
            if isinstance(result, list) and result and self.online:
                if result[0] != b"0":
                    self._write_anew(result[0])
                else:
                    self.write_presence()

        self._push(self._reaping(self.node, 0, "back", cursor, answered))

    def _tracked(self, name: bytes) -> bool:
        """Whether it is to be known who hears this channel, or pattern."""
        return self._hub.permissions.realm(name).rules.track_presence

    def _write_here(self, channel: bytes, sessions: list[Session]) -> None:
        if channel != _ALL and not self._tracked(channel):
            return
        arguments: list[Any] = [PRESENCE, channel]
        for session in sessions:
            arguments += [session.id, _client(seen.client(session))]
        keys = [self._present(self.node, channel), self._key(b"i:", self.node)]
        self._push(Call("here", keys, arguments, ignore))

    def _write_gone(self, channel: bytes, session: str) -> None:
        keys = [self._present(self.node, channel), self._key(b"i:", self.node)]
        self._push(Call("here", keys, [PRESENCE, channel, session, b""], ignore))

    def _last(self, cursor: bytes) -> None:
        """Have what Redis knows of who is here last, page after page."""

        def answered(result: Any) -> None:
            if isinstance(result, bytes) and result != b"0":
                self._last(result)

        keys = [self._key(b"i:", self.node)]
        self._push(Call("last", keys, [PRESENCE, self._key(b"p:", self.node) + b":", cursor], answered))

    def _take_revocation(self, made: Revocation) -> None:
        if self._hub.revoked(made):
            self.on_revoked()

    def _store_revocation(self, made: Revocation) -> None:
        field = f"{made.kind}:{made.value}".encode()
        self._push(Call("revoke", [self._prefix + b"revoked"], [field, _revocation(made)], ignore))

    def _words(self) -> bytes:
        return _info(self.words())


def read_nodes(rest: list[Any]) -> Iterable[tuple[str, NodeInfo]]:
    """Names and words of nodes, as the script gives them."""
    for name, words in zip(rest[::2], rest[1::2], strict=False):
        node = name.decode()
        try:
            info = _read_info(words)
        except (ValueError, RecursionError):
            info = NodeInfo(node, node.rpartition(".")[0])
        yield node, info if info.node == node else structs.replace(info, node=node)


def _is_id(target: str) -> bool:
    return not target.startswith(("name:", "tag:"))
