"""The backplane's messages of channels, and their histories. Pure.

    publish -> here at once, or Outgoing -> Redis -> lane -> Tracks -> hub.deliver

Rules:
- a message of a channel without history is delivered here at once, always; one with a history when it comes back from
  Redis with its offset, so that all machines deliver in one order;
- who hears a channel is told where this machine is in it, which may be behind Redis: what is between follows. Where
  somebody hears it through a pattern already, that waits for the lane, which may have what they have not heard yet;
- who hears a channel only through a pattern has no place, and nothing is fetched for it: what it missed it sees by the
  offset of the next message, and before that it is not told where the channel is;
- after a time without Redis those that heard messages without offsets are told where they are (Ok without `ref`), and
  those that hear a channel which has another epoch now are, unless a message comes first: something may be lost, and
  they see that by the epoch. Who has it begin one tells the other nodes, which look (Began);
- if one that heard messages without offsets leaves before it was told, or shortly after as that may not have reached
  it, who comes back to this machine from a place before such messages is told that it may have missed something:
  nobody knows which of them it had. On another machine it knows them by their origin (traced.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.backplane import envelopes
from netd.backplane.desk import Call, Desk, ignore, seed
from netd.backplane.envelopes import MAX_BEGUN, Began, Count, Said
from netd.backplane.ledger import Entry, Kept
from netd.backplane.traced import publication_of, traced
from netd.hub.history import Page, measure
from netd.hub.permissions import Refusal
from netd.wire.messages import Ok, Position, channel_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from netd.backplane.ledger import Track
    from netd.hub.batch import Batch
    from netd.hub.history import Publication

BATCH = 128
"""Messages in one call of the script that publishes."""
BATCH_BYTES = 2**20
PAGE = 500
"""Messages of one page, when a channel is brought level."""
PAGE_BYTES = 8 * 2**20
"""Bytes of one page, about; a recovery that takes more fails."""
EMPTY = 3600
"""Seconds that Redis remembers a channel in which nothing was said, if nobody renews that."""
QUIET = 500
"""Channels of one call that renews it."""
_NOWHERE = "-"
"""The epoch of a place before everything: no channel has it."""


class Channels(Desk):
    """To be mixed into the backplane."""

    # --- the hub's side ---

    def publish(self, publication: Publication) -> None:
        rules = self._rules(publication.channel)
        kept = bool(rules.history_size) and not publication.ephemeral
        here = not kept or not self.online
        publication.under_way = not here
        if publication.ephemeral and not self.online:
            self._hub.deliver(publication)
            return
        sequence = self.outgoing.number()
        if here:
            self._deliver_here(publication, kept, sequence)
        body, now = self._body(publication, sequence, here), self._monotonic()
        entry = Entry(sequence, publication.channel, body, kept, publication, here, at=now)
        if not self.online:
            self.outgoing.loosen(entry)
        for each in self.outgoing.add(entry):
            self._deliver_here(each.content, each.kept, each.sequence)
            self.outgoing.loosen(each)
        self.figures.published += 1
        self.on_call()

    def publish_many(self, batch: Batch) -> None:
        for publication in batch.publications():
            self.publish(publication)

    def history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        if not self._rules(channel).history_size:
            answer(None)
            return
        track = self.tracks.begin(channel, self._hub.clock()) if channel in self._hub.heard else None
        if not self.online:
            answer(self._page_without(channel, since))
            return

        def arrived(result: Any) -> None:
            found = None if result is None else self._read_page(channel, result)
            if found is None:
                answer(self._page_without(channel, since))
                return
            epoch, newest, kept, line = found

            def placed(at: Track | None) -> None:
                if self.online:
                    answer(self._page(at, since, limit, epoch, newest, kept))
                else:
                    answer(self._page_without(channel, since))

            self._place_in(channel, track, (epoch, newest, line), placed)

        self._ask_history(channel, since, limit + 1 if since is not None else limit, arrived)

    def position(self, channel: bytes, answer: Callable[[Position | None], None]) -> None:
        if not self._rules(channel).history_size:
            answer(None)
            return
        track = self.tracks.begin(channel, self._hub.clock()) if channel in self._hub.heard else None
        if track is not None and track.epoch is not None:
            # when its messages had no offsets lately, nobody knows what comes after the last one
            answer(None if track.loose else Position(track.epoch, track.offset))
            return
        if not self.online:
            answer(None)
            return

        def arrived(result: Any) -> None:
            found = None if result is None else self._read_page(channel, result)
            if found is None:
                answer(None)
                return
            epoch, newest, _, line = found

            def placed(at: Track | None) -> None:
                answer(None if at is None or at.epoch is None or at.loose else Position(at.epoch, at.offset))

            self._place_in(channel, track, (epoch, newest, line), placed)

        self._ask_history(channel, None, 0, arrived)

    def _place_in(
        self,
        channel: bytes,
        track: Track | None,
        told: tuple[str, int, str],
        answer: Callable[[Track | None], None],
    ) -> None:
        """Answer where this machine is in it, now that Redis has told its epoch, newest offset and line: there, if
        nothing has come since it was asked. Who hears it through a pattern did so before: Redis may have taken what
        they have not heard yet, so the lane has to be there first. None: it was not heard, or is no more, or Redis is
        away."""

        def settle(count: int = 0) -> None:
            if track is None or self.tracks.get(channel) is not track or not self.online:
                answer(None)
            else:
                answer(self.tracks.settle(channel, *told))

        if track is None or track.epoch is not None or not self._wild(channel):
            settle()
            return
        until = self._monotonic() + self.config.answers
        if number := self.questions.ask([self.node], 0, until, settle):
            self._say(Count(self.node, number, 0), self.own_lane)

    def resync(self, channels: Iterable[bytes] | None = None) -> None:
        """Something of the lane may have been missed, of these channels or of any: ask the histories."""
        for channel in self.tracks.missed(channels):
            self._fetch(channel)

    @property
    def unsettled(self) -> bool:
        """There is something for `settle`."""
        return bool(self._level)

    def settle(self) -> None:
        """Nothing more has come for now: tell who heard messages without offsets where they are, and who hears a
        channel of which no message has told it yet that it has another epoch."""
        while self._level:
            channel = self._level.pop()
            track = self.tracks.get(channel)
            if track is not None and track.epoch is not None:
                track.loose, track.renewed, track.levelled = False, False, self._monotonic()
                self._tell_place(channel, track.epoch, track.offset)

    # --- what comes and goes ---

    def _body(self, publication: Publication, sequence: int, loose: bool) -> bytes:
        """What the others are told of it."""
        return envelopes.encode(
            Said(
                self.node,
                sequence,
                publication.channel,
                publication.data,
                publication.sender,
                publication.priority,
                publication.ephemeral,
                publication.time,
                loose,
            )
        )

    def _deliver_here(self, publication: Publication, kept: bool, sequence: int) -> None:
        """Without an offset."""
        publication.under_way = False
        if kept:
            self.figures.loose += 1
            track = self.tracks.get(publication.channel)
            if track is None and publication.channel in self._hub.heard:
                track = self.tracks.begin(publication.channel, self._hub.clock())
            if track is not None:
                track.loose = True
            publication.delivered += self._hub.deliver(traced(publication, self.node, sequence))
        else:
            self._hub.deliver(publication)

    def _publishing(self) -> Call:
        entries = self.outgoing.batch(BATCH, BATCH_BYTES)
        keys = [self._key(b"q:", self.node), self._prefix + b"era"]
        arguments: list[Any] = [self.lane, seed(), round(self.config.remember)]
        for entry in entries:
            rules = self._rules(entry.channel)
            keys += [self._prefix + b"c:" + entry.channel, self._prefix + b"h:" + entry.channel]
            size = rules.history_size if entry.kept else 0
            arguments += [entry.sequence, size, round(rules.history_seconds * 1000), entry.body]

        def answered(result: Any) -> None:
            if isinstance(result, list) and isinstance(result[0], int):
                for entry in entries[: result[0]]:
                    self.outgoing.confirm(entry.sequence)

        return Call("publish", keys, arguments, answered)

    def _heard(self, said: Said, epoch: str | None, offset: int) -> None:
        own = said.node == self.node
        first = own or self.tracks.first(said.node, said.sequence)
        if epoch is not None:
            if self.tracks.get(said.channel) is None and said.channel in self._hub.heard:
                self.tracks.begin(said.channel)  # its namespace keeps a history since a reload
            verdict = self.tracks.admit(said.channel, epoch, offset, "" if own else said.node, said.sequence)
            if verdict == "gap":
                self._fetch(said.channel)
            if verdict in ("gap", "held"):
                return
            if verdict == "old":
                track = self.tracks.get(said.channel)
                if own:
                    self.outgoing.returned(said.sequence)
                elif track is not None and track.offset == offset:
                    self._level.add(said.channel)  # it was delivered under another one
                return
        if own:
            self._own(said.channel, said.sequence, epoch, offset)
        elif first or epoch is not None:
            self._deliver(said, epoch, offset)

    def _own(self, channel: bytes, sequence: int, epoch: str | None, offset: int) -> None:
        entry = self.outgoing.returned(sequence)
        if entry is not None:
            publication = entry.content
            publication.epoch, publication.offset = epoch, offset if epoch is not None else None
            self._hand(publication, epoch, offset)
        elif epoch is not None and self.tracks.get(channel) is not None:
            self._level.add(channel)
        elif epoch is not None and self.outgoing.was_loose(sequence) and self.tracks.follows(channel, epoch, offset):
            self.tracks.delivered(channel, epoch, offset)
            self._tell_place(channel, epoch, offset)  # who hears it through a pattern

    def _deliver(self, said: Said, epoch: str | None, offset: int) -> None:
        try:
            if type(said.data) is not str and type(said.data) is not bytes:
                measure(said.data)
        except Refusal:
            self.figures.unreadable += 1
            return
        self._hand(publication_of(said, epoch, offset, again=said.loose), epoch, offset)

    def _hand(self, publication: Publication, epoch: str | None, offset: int, *, apart: bool = False) -> None:
        """To those who hear it here. `apart`: those who do through a pattern may still not have all before the next."""
        self._level_before(publication.channel, epoch, offset)
        if self._hub.deliver(publication) and epoch is not None and not apart:
            self.tracks.delivered(publication.channel, epoch, offset)

    def _level_before(self, channel: bytes, epoch: str | None, offset: int) -> None:
        """A message is about to be delivered: its offset follows, or its subscribers would think they missed some."""
        track = self.tracks.get(channel)
        if epoch is not None and channel in self._level:
            self._level.discard(channel)
            if track is not None:
                track.loose, track.levelled = False, self._monotonic()
            if track is None or not track.renewed:
                self._tell_place(channel, epoch, offset - 1)
        if epoch is not None and track is not None:
            track.renewed = False  # this message tells

    def _tell_place(self, channel: bytes, epoch: str, offset: int) -> None:
        ok = Ok(**channel_fields(channel), epoch=epoch, offset=offset)
        if not self.tracks.missing(channel):
            self._hub.level(channel, ok)
        elif (place := self._hub.heard.get(channel)) is not None:
            # those who hear it through a pattern see by its next message what they missed
            patterns = place.realm.patterns
            for session in [each for each in place.subscribers if not (patterns and patterns.reach(each, channel))]:
                session.send(ok)

    def _fetch(self, channel: bytes) -> None:
        track = self.tracks.get(channel)
        if track is None or (track.epoch is None and not track.unplaced):
            return
        since = Position(track.epoch or _NOWHERE, track.offset)
        track.asked += 1
        number = track.asked

        def arrived(result: Any) -> None:
            if self.tracks.get(channel) is not track or track.asked != number:
                return
            found = None if result is None else self._read_page(channel, result)
            if found is not None:
                self._took(channel, *found)
            elif self.online:
                track.fetching = False

        self._push(self._history_call(channel, since, PAGE, arrived, track.line))

    def _took(self, channel: bytes, epoch: str, newest: int, kept: list[Kept], line: str) -> None:
        fetched = self.tracks.page(channel, epoch, newest, kept, self.node, line)
        self.figures.missed += fetched.lost
        self.figures.fetched += len(fetched.new)
        for each in fetched.new:
            if each.offset in fetched.level:
                self._level.add(channel)
            if each.node == self.node:
                entry = self.outgoing.returned(each.sequence)
                if entry is None:
                    self._level.add(channel)
                    continue
            again = publication_of(each.content, epoch, each.offset, again=True)
            self._hand(again, epoch, each.offset, apart=fetched.skipped)
        track = self.tracks.get(channel)
        renewed = track is not None and track.renewed and not track.fetching
        if fetched.placed or renewed or (track is not None and track.offset + 1 in fetched.level):
            self._level.add(channel)
        if fetched.regressed:
            self._renew([channel])
        if fetched.again:
            self._fetch(channel)

    def _renew(self, channels: Iterable[bytes]) -> None:
        """Messages of these are lost: have them begin new epochs, and tell who hears them, wherever that is."""
        names = list(channels)
        for start in range(0, len(names), MAX_BEGUN):
            self._renew_some(names[start : start + MAX_BEGUN])

    def _renew_some(self, names: list[bytes]) -> None:
        def answered(result: Any) -> None:
            if result is None:
                self._lost.update(names)  # joining again does that
            else:
                self._say(Began(self.node, names))
                self.resync(names)

        self._push(Call("renew", [self._prefix + b"c:" + name for name in names], [seed()], answered))

    def _empty(self) -> int:
        """Seconds that Redis remembers a channel in which nothing was said: anybody may make one by listening."""
        return min(EMPTY, round(self.config.remember))

    def _last_quiet(self) -> None:
        """Have Redis remember the channels that are heard here and in which nothing was said."""
        quiet = [name for name, track in self.tracks.items() if track.epoch is not None and not track.offset]
        for start in range(0, len(quiet), QUIET):
            keys = [self._prefix + b"c:" + name for name in quiet[start : start + QUIET]]
            self._push(Call("quiet", keys, [self._empty()], ignore))

    # --- histories ---

    def _ask_history(self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Any], None]) -> None:
        self._question(self._history_call(channel, since, limit, answer))

    def _history_call(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Any], None], line: str = ""
    ) -> Call:
        rules = self._rules(channel)
        keys = [self._prefix + b"era", self._prefix + b"c:" + channel, self._prefix + b"h:" + channel]
        arguments: list[Any] = [
            seed(),
            rules.history_size,
            round(self.config.remember),
            round(rules.history_seconds * 1000),
            PAGE_BYTES,
            limit,
            self._empty(),
        ]
        if since is not None:
            arguments += [since.epoch, since.offset, line]
        return Call("history", keys, arguments, answer)

    def _read_page(self, channel: bytes, result: Any) -> tuple[str, int, list[Kept], str] | None:
        """(epoch, newest offset, messages, line), of which messages that make no sense are left out."""
        try:
            epoch, newest, line = result[0].decode("ascii"), int(result[1]), result[2].decode("ascii")
            pairs = list(zip(result[3::2], result[4::2], strict=True))
        except (ValueError, TypeError, IndexError, AttributeError):
            self.figures.unreadable += 1
            return None
        found = []
        for offset, body in pairs:
            try:
                said = envelopes.decode(body)
                if not isinstance(said, Said) or said.channel != channel:
                    raise ValueError("it is of another channel")
                measure(said.data)
                found.append(Kept(int(offset), said.node, said.sequence, said, said.time))
            except (ValueError, TypeError, Refusal):
                self.figures.unreadable += 1
        return epoch, newest, found, line

    def _page(
        self, track: Track | None, since: Position | None, limit: int, epoch: str, newest: int, kept: list[Kept]
    ) -> Page:
        known = since is not None and since.epoch == epoch and since.offset <= newest
        start = since.offset if since is not None and known else 0
        if track is not None and track.epoch is not None:
            # no further than this machine is: the rest follows by itself
            if track.epoch != epoch:
                return Page(track.epoch, track.offset, [], complete=False)
            newest = min(newest, track.offset)
            kept = [each for each in kept if each.offset <= newest]
        newest = max(newest, start)  # another machine was further: the client knows what follows from there
        complete = len(kept) == newest - start and len(kept) <= limit
        if since is not None:
            complete = complete and known
            complete = complete and not any(
                each.node == self.node and self.outgoing.was_carried(each.sequence) for each in kept
            )
        again = since is not None
        found = [publication_of(each.content, epoch, each.offset, again=again).kept() for each in kept[:limit]]
        return Page(epoch, newest, found, complete)

    def _page_without(self, channel: bytes, since: Position | None) -> Page | None:
        """Without Redis: who is where this machine is has missed nothing that this machine knows of."""
        track = self.tracks.get(channel)
        if track is None or track.epoch is None or track.loose or since is None:
            return None
        here = Position(track.epoch, track.offset)
        return Page(here.epoch, here.offset, [], complete=True) if since == here else None
