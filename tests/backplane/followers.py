"""Who follows a channel over outages and from machine to machine, and when machines have told each other everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.client.state import Place
from netd.wire.messages import Message, Ok, Position

if TYPE_CHECKING:
    from tests.backplane.lab import Node, Person


class Follower:
    """A client as they should be: it keeps its place, drops what it has, and notes what it was not given."""

    def __init__(self, person: Person, channel: str = "kept:room") -> None:
        self.person = person
        self.channel = channel
        self.place: Position | None = None
        self.told: list[Any] = []
        self.holes: list[Any] = []
        self.twice: list[Any] = []
        self.breaks: list[Message | Ok] = []
        """By which it saw that the channel has another epoch, so that it may have missed something."""
        self.loose = False
        """It has heard messages of which it does not know where they are."""
        self.fresh = 0
        """Times it was told that it may have missed something."""

    async def begin(self) -> Follower:
        ok = await self.person.hear(self.channel, self.place)
        self._subscribed(ok)
        return self

    async def again(self, person: Person) -> Follower:
        """On another connection, maybe to another machine."""
        self.look()
        self.person.leave()
        self.person = person
        return await self.begin()

    def _subscribed(self, ok: Ok) -> None:
        if self.place is not None and not ok.recovered:
            self.fresh += 1
        if not ok.recovered:
            self.place = None if ok.epoch is None else Position(ok.epoch, ok.offset or 0)

    def look(self) -> None:
        for event in self.person.heard():
            if isinstance(event, Ok) and event.ref is None:
                assert event.epoch is not None
                assert event.offset is not None
                if self.place is not None and self.place.epoch != event.epoch:
                    self.breaks.append(event)
                self.place, self.loose = Position(event.epoch, event.offset), False
            elif isinstance(event, Message):
                self._take(event)

    def _take(self, message: Message) -> None:
        if message.data in self.told:
            self.twice.append(message.data)
        self.told.append(message.data)
        if message.offset is None:
            self.loose = True
            return
        if self.place is not None and self.place.epoch == message.epoch and message.offset != self.place.offset + 1:
            self.holes.append((self.place, message))
        if self.place is not None and self.place.epoch != message.epoch:
            self.breaks.append(message)
        self.place = Position(message.epoch or "", message.offset)

    async def has(self, count: int) -> None:
        def there() -> bool:
            self.look()
            return len(self.told) >= count

        await self.person.node.becomes(there)


class Traveller(Follower):
    """One that goes from machine to machine whenever it likes, and knows its place as netd.client does."""

    def __init__(self, person: Person, channel: str = "kept:room") -> None:
        super().__init__(person, channel)
        self.known = Place()
        self.missed = 0
        """Times it saw that it had missed something."""

    def _subscribed(self, ok: Ok) -> None:
        self.missed += self.known.known and not ok.recovered
        if not ok.recovered and ok.epoch is not None:
            self.known.move(ok.epoch, ok.offset)
        self._note()

    def look(self) -> None:
        for event in self.person.heard():
            if isinstance(event, Ok) and event.ref is None:
                self.missed += self.known.epoch != event.epoch
                self.known.reach(event.epoch, event.offset)
            elif isinstance(event, Message):
                missed = self.known.admit(event.epoch, event.offset)
                self.missed += bool(missed)
                repeated = event.origin is not None and self.known.repeats(event.origin, event.offset)
                if missed is not None and not repeated:
                    self.told.append(event.data)
        self._note()

    def _note(self) -> None:
        self.place = None if self.known.epoch is None else Position(self.known.epoch, self.known.offset)


async def level(*all_of_them: Node) -> None:
    for one in all_of_them:
        await one.online(len(all_of_them) - 1)
        await one.becomes(lambda one=one: not len(one.plane.outgoing))
    for one in all_of_them:
        await one.rest()
