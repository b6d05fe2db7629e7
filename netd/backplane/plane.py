"""The hub's backplane over Redis, but for the connection: what is asked of Redis, and what its answers do. Pure.

    hub -> publish, send, kick, history, position, elsewhere... -> `next_call`, taken by the connection (redis.py)
    connection -> connected, arrived, answers of calls, cut     -> hub.deliver, deliver_letter, kick_here...

Rules:
- nothing waits. While Redis is away messages of channels are delivered here at once and wait for the others
  (ledger.py); letters, kicks and questions are about this machine alone;
- whatever comes from Redis is checked. What cannot be used is counted and dropped.

Left out: messages of channels (channels.py), which there are (catalogue.py), nodes and sessions (company.py), bytes and
sockets (redis.py), when to try again and what to say of it (service.py).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from netd.backplane import envelopes
from netd.backplane.channels import Channels
from netd.backplane.company import PRESENCE, Company, read_revocation
from netd.backplane.desk import Call, NodeInfo, ignore, seed
from netd.backplane.envelopes import Alive, Began, Count, Gone, Revoked, Said
from netd.backplane.nodes import MAX_NODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netd.hub.hub import Hub


_LATE = 6
"""Timeouts after which a message that Redis took and nobody has seen since is delivered here all the same."""


class RedisBackplane(Channels, Company):
    """One per daemon. `monotonic` is a clock in seconds that is never set."""

    def attach(self, hub: Hub) -> None:
        self._hub = hub

    def next_call(self) -> Call | None:
        """What is to be sent next; None: nothing now. Messages and questions take turns."""
        self._turn = not self._turn
        if self.online and self.outgoing.unsent and (self._turn or not self._calls):
            return self._publishing()
        return self._pop() if self._calls else None

    def joining(self) -> Call:
        """What a connection begins with, after `clearing` and before `connected`."""
        everything, lost = self.outgoing.take_lost()
        self._all_lost = self._all_lost or everything
        self._lost |= lost
        keys = [self._prefix + key for key in (b"nodes", b"nodes:info")]
        keys += [self._key(b"q:", self.node), self._prefix + b"era", self._prefix + b"revoked"]
        arguments = [
            self.node,
            self._words(),
            round(self.config.expiry * 1000),
            self.outgoing.acknowledged,
            int(self._all_lost),
            seed(),
            self._hub.config.max_revocations,
        ]
        return Call("join", keys, arguments, ignore)

    def connected(self, result: Any, others: Iterable[tuple[str, NodeInfo]]) -> None:
        """Redis is there, both lanes are heard, and it has answered `joining`."""
        self.online = True
        self.flooded = False
        self._meet(others)
        known = set()
        for each in result[2:] if isinstance(result, list) else ():
            try:
                made = read_revocation(each)
            except (ValueError, TypeError, RecursionError):
                self.figures.unreadable += 1
                continue
            known.add(made)
            self._take_revocation(made)
        for made in self._hub.revocations.all():
            if made not in known:  # it was made while Redis was away, or made anew
                self._store_revocation(made)
                self._say(Revoked(self.node, made.kind, made.value, made.since, made.until))
        behind = isinstance(result, list) and result[0]
        if behind or self._all_lost:
            self._say(Began(self.node, None))
        lost, self._lost, self._all_lost = self._lost, set(), False
        self._renew(lost)
        self._say(Alive(self.node))
        self.write_presence()
        if self._been and isinstance(result, list) and result[1]:
            self._tell_back()
        self._been = True
        self.tracks.joining()
        self.resync()
        self.on_call()

    def cut(self) -> None:
        """Redis is away. What was asked is answered as far as this machine can."""
        self.online = False
        self.nodes.clear()
        self.tracks.cut()
        for entry in self.outgoing.cut():
            entry.body = self._body(entry.content, entry.sequence, True)
            self._deliver_here(entry.content, entry.kept, entry.sequence)
        calls, self._calls = self._calls, deque()
        self.waiting = 0
        for call in calls:
            call.answer(None)
        self.questions.finish_all()

    def arrived(self, payload: bytes) -> None:
        """Something came on a lane."""
        self.figures.received += 1
        try:
            epoch, offset, body = envelopes.parse(payload)
            envelope = envelopes.decode(body)
        except (ValueError, TypeError):
            self.figures.unreadable += 1
            return
        if isinstance(envelope, Said):
            self._heard(envelope, epoch, offset)
        elif envelope.node != self.node or isinstance(envelope, Count):  # that one it has told itself
            self._take(envelope)

    def beat(self, answer: Callable[[Any], None]) -> None:
        """A sign of life, and a look at the others'. `answer` is for whoever beats; None: Redis did not answer."""
        keys = [self._prefix + b"nodes", self._prefix + b"nodes:info"]
        begun = self._monotonic()

        def answered(result: Any) -> None:
            if result is not None:
                self.lag = self._monotonic() - begun
                self._look(result)
            answer(result)

        arguments = [self.node, self._words(), round(self.config.expiry * 1000), MAX_NODES, PRESENCE]
        self._fresh = set()
        # before a crowd's presence, or this node would be taken for dead over it
        self._push(Call("beat", keys, arguments, answered), first=True)
        if begun >= self._lasting:
            self._lasting = begun + PRESENCE / 4
            self._last(b"0")
            self._last_quiet()
        if not self.online:
            return
        if self._tracking != self._tracks_who():
            self._write_anew()
        everything, lost = self.outgoing.take_lost()
        if everything:
            self._all_lost = self.flooded = True  # joining again does that
        self._renew(lost)
        for entry in self.outgoing.strayed(begun - 2 * self.config.timeout):
            track = self.tracks.get(entry.channel)
            late = entry.at < begun - _LATE * self.config.timeout  # not even the history has it
            if track is not None and track.epoch is not None and not late:
                if not track.fetching:
                    track.fetching = True
                    self._fetch(entry.channel)
            else:
                self.outgoing.release(entry)
                self._deliver_here(entry.content, entry.kept, entry.sequence)
                self._level.add(entry.channel)  # its place is behind us, if it has one

    def clearing(self, cursor: bytes) -> Call:
        """What comes before `joining`, page after page: nobody is here, as far as Redis knows."""
        return self._reaping(self.node, 0, "back", cursor, ignore)

    def leave(self, cursor: bytes | None = None) -> Call:
        """What a node says last, and with the cursor that this gave again."""
        self._been = False
        return self._reaping(self.node, 0, "leave" if cursor is None else "on", cursor or b"0", ignore)

    def goodbye(self) -> bytes:
        """The payload that tells the others."""
        return b"\n" + envelopes.encode(Gone(self.node, self.node))
