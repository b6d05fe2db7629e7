"""Which channels there are on all nodes, for people who look. Pure.

    channels -> Seek on the lane -> every node's first channels by name -> Sought on our own lane -> merged -> answered

Rules:
- each node tells its first channels by name, as many as are wanted: of the first of all of them none is missing then,
  and each has its subscribers of every node. No more than that is kept, whatever they tell, and nothing but what was
  asked for;
- one channel is asked for as the first that begins with its name, which is the channel itself;
- who has not answered in time is left out, and it is told how many did not. While Redis is away this machine answers
  alone;
- where a channel is, and how much of it is kept, Redis knows; while it is away, what this machine knows counts.

Left out: channels that nobody hears and that have a history. Redis has no list of them, and is not searched; each of
them can be asked for by its name.
"""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netd.backplane.desk import Call, Desk, Search
from netd.backplane.envelopes import MAX_SOUGHT, Seek, Sought
from netd.hub.channels import ChannelInfo
from netd.wire.messages import MAX_CHANNEL

if TYPE_CHECKING:
    from collections.abc import Callable


class Catalogue(Desk):
    """To be mixed into the backplane."""

    # --- the hub's side ---

    def channels(
        self, prefix: bytes, after: bytes | None, limit: int, answer: Callable[[list[ChannelInfo], int], None]
    ) -> None:
        limit = min(limit, MAX_SOUGHT)
        if len(prefix) > MAX_CHANNEL:  # nobody would take it for a question
            answer([], 0)
            return
        found = {each.name: each for each in self._hub.channels(prefix, after, limit)}
        self._search(Search(prefix, after, limit, found), answer)

    def channel(self, name: bytes, answer: Callable[[ChannelInfo], None]) -> None:
        search = Search(name, None, 1, {name: self._hub.channel(name)})
        self._search(search, lambda placed, silent: answer(placed[0]))

    def _search(self, search: Search, answer: Callable[[list[ChannelInfo], int], None]) -> None:
        """Have the others tell of theirs as well."""
        asked, number = len(self.nodes), 0

        def answered(count: int) -> None:
            self._sought.pop(number, None)
            first = [search.found[name] for name in sorted(search.found)]
            self._place(first, lambda placed: answer(placed, asked - count))

        if not self.online or not self.nodes or self.waiting > self.config.queue_bytes:
            answered(0)
            return
        until = self._monotonic() + self.config.answers
        number = self.questions.ask(self.nodes, 0, until, answered)
        if number:
            self._sought[number] = search
            self._say(Seek(self.node, number, search.prefix, search.after, search.limit))

    # --- what comes, and what Redis answers ---

    def _seek(self, seek: Seek) -> None:
        """Another node wants to know."""
        if self.waiting > self.config.queue_bytes:
            self.figures.refused += 1
            return
        found = self._hub.channels(seek.prefix, seek.after, seek.limit)
        rows = [(each.name, each.subscribers, each.pattern) for each in found]
        self._say(Sought(self.node, seek.ask, rows), self._prefix + b"to:" + seek.node.encode())

    def _take_sought(self, sought: Sought) -> None:
        search = self._sought.get(sought.ask)
        if search is None or not self.questions.waits(sought.ask, sought.node):
            return
        found = search.found
        for name, subscribers, pattern in {row[0]: row for row in sought.rows}.values():
            if name in found:
                found[name] = replace(found[name], subscribers=found[name].subscribers + subscribers)
            elif name.startswith(search.prefix) and (search.after is None or name > search.after):
                found[name] = ChannelInfo(name, subscribers, None, None, 0, pattern)
        if len(found) > search.limit:  # what is not among the first now will not be
            search.found = {name: found[name] for name in heapq.nsmallest(search.limit, found)}
        self.questions.answered(sought.ask, sought.node, 1)

    def _place(self, found: list[ChannelInfo], answer: Callable[[list[ChannelInfo]], None]) -> None:
        """Say where each of these channels is, and how much of it is kept."""
        kept = [each.name for each in found if not each.pattern and self._rules(each.name).history_size]

        def arrived(result: Any) -> None:
            places = dict(zip(kept, self._read_places(result), strict=False))
            answer([_at(each, places.get(each.name) or self._known(each.name)) for each in found])

        if not kept or not self.online:
            arrived(None)
            return
        keys = [self._prefix + b"era"]
        for name in kept:
            keys += [self._prefix + b"c:" + name, self._prefix + b"h:" + name]
        self._question(Call("places", keys, [], arrived))

    def _read_places(self, result: Any) -> list[tuple[str, int, int] | None]:
        if result is None:
            return []
        try:
            each = iter(result)
            return [
                (epoch.decode("ascii"), int(offset), int(kept)) if epoch else None
                for epoch, offset, kept in zip(each, each, each, strict=True)
            ]
        except (ValueError, TypeError, AttributeError):
            self.figures.unreadable += 1
            return []

    def _known(self, name: bytes) -> tuple[str, int, int] | None:
        """Where this machine is in it."""
        track = self.tracks.get(name)
        return None if self.online or track is None or track.epoch is None else (track.epoch, track.offset, 0)


def _at(info: ChannelInfo, place: tuple[str, int, int] | None) -> ChannelInfo:
    if place is None:
        return info
    epoch, offset, kept = place
    return replace(info, epoch=epoch, offset=offset, history=kept)
