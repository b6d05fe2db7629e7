"""The hub: who is connected, and who hears what. Pure: no sockets, and the clock is given.

    transport -> open, handle, close          control -> publish, direct, broadcast, kick, find, presence, history
    backplane -> deliver, deliver_letter       daemon  -> reconfigure, sweep, dump, load, info

Rules:
- everything happens within the call, in order: what was published before a direct message is in the outbox before it;
- clients are checked (`handle`, `allowed`); the server side is not, but a channel's rules of size and history hold;
- a session that has to go while messages are being handed out (its outbox is full) goes when they have been: its end
  may tell others, and that must neither change what is iterated nor recurse through a crowd of slow clients;
- an unknown id is no error for the server side, which may be late to learn that someone left; a client is told;
- who is to hear a message through a pattern (patterns.py) hears it with the channel's own subscribers, once.

Left out: what each request of a client does (requests.py; publishing.py in rows), how a subscription begins and ends
(subscriptions.py), and what becomes of who may do less than before (rights.py).
Above 600 lines, as every verb of the hub stands here once, with its promise, and handing messages out with them: there
a call more would cost something for each message.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from netd.errors import TooBusy
from netd.hub import presence as seen
from netd.hub import publishing, requests, rights, saved, subscriptions
from netd.hub.config import Namespace
from netd.hub.expiry import Expiries
from netd.hub.grants import NEVER
from netd.hub.history import Histories, Page, Publication, measure
from netd.hub.info import described, gather, listed
from netd.hub.outbox import NORMAL_PRIORITY
from netd.hub.permissions import Permissions, Refusal, shown, valid
from netd.hub.revocations import Revocations
from netd.hub.seams import Echo, Letter, MemoryBackplane, application_event
from netd.hub.session import Session, spread
from netd.hub.stays import Stays
from netd.hub.tokens import Tokens
from netd.wire.messages import (
    Broadcast,
    Client,
    CloseCode,
    Direct,
    Event,
    Ok,
    Position,
    Request,
    data_fields,
)
from netd.wire.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from netd.errors import ProtocolError
    from netd.hub.batch import Batch
    from netd.hub.channels import Channel, ChannelInfo
    from netd.hub.config import HubConfig
    from netd.hub.info import HubInfo
    from netd.hub.outbox import Outbox
    from netd.hub.patterns import Pattern
    from netd.hub.permissions import Realm
    from netd.hub.revocations import Kind, Revocation
    from netd.hub.seams import Application, Backplane
    from netd.hub.tokens import Grant
    from netd.wire.messages import Joined, Left

_FORGETFUL = Namespace(name="")
"""The rules by which what was a channel, and is a pattern now, keeps its history: not at all."""
NO_SECRETS: Mapping[str, str] = MappingProxyType({})


class Hub:
    """One daemon's hub. `clock` gives seconds since the epoch; `server` and `version` are for the welcome.

    `secrets` has the text of the files that `tokens.secret_files` names; raises ConfigError for tokens that cannot be.
    `tokens` are finished ones of this configuration, in their place.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        clock: Callable[[], float],
        server: str = "netd",
        version: str = "",
        backplane: Backplane | None = None,
        application: Application | None = None,
        secrets: Mapping[str, str] = NO_SECRETS,
        tokens: Tokens | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.server = server
        self.version = version
        self.tokens = tokens or Tokens(config, secrets)
        self.permissions = Permissions(config)
        self.sessions: dict[str, Session] = {}
        self.stays = Stays(config.max_sessions)
        self.revocations = Revocations(config.max_revocations)
        self.expiries = Expiries(self.sessions)
        self.on_sooner: Callable[[], None] = _nothing
        """Called when `expire` has to be called sooner than it said."""
        self.on_opened: list[Callable[[Session], None]] = []
        self.on_closed: list[Callable[[Session, int, str], None]] = []
        self.on_resumed: list[Callable[[Session, str], None]] = []
        """Called with a session that has its former id again, and the id it had for a moment."""
        self.on_lost: list[Callable[[Session, bytes | None, str], None]] = []
        """Called with a session that may not hear a channel any more (None: whose token counts no more), and why. It
        was told with an Error, as far as its transport has a word for one."""
        self.histories = Histories(rules=self.history_rules, in_use=lambda name: name in self.heard)
        self.heard: dict[bytes, Channel] = {}
        """Channels that someone hears, or is about to."""
        self._targets: dict[str, dict[Session, None]] = {}
        """Sessions by "name:NAME" and "tag:KEY=VALUE"."""
        self._internal = 0
        self.subscriptions = 0
        self._iterating = 0
        self._departing = False
        self._leaving: deque[tuple[Session, int, str]] = deque()
        self.opened = self.published = self.delivered = 0
        self.past = {"messages_in": 0, "messages_out": 0, "refused": 0, "dropped": 0}
        """What sessions that have ended had counted."""
        self.application: Application = application or Echo()
        self.backplane: Backplane = backplane or MemoryBackplane()
        self.backplane.attach(self)
        self._configure()

    # --- configuration -----------------------------------------------------------------------------------------------

    def reconfigure(
        self, config: HubConfig, secrets: Mapping[str, str] = NO_SECRETS, *, tokens: Tokens | None = None
    ) -> None:
        """Take a new configuration: from the next message on, nobody is disconnected.

        Every session's token is resolved anew and brings the tags that it has now; one whose secret is gone is
        anonymous from now on, has lost its token's tags, and is told. Subscriptions that a client made and may not have
        any more end, and it is told with an Error without `ref`; so do those whose name is a pattern now and was none,
        and those where it was one. With the finished `tokens` of this configuration it cannot fail; without, it raises
        ConfigError for tokens that cannot be, and then nothing has changed.
        """
        tokens = Tokens(config, secrets) if tokens is None else tokens
        patterns = self.patterns()
        self.tokens = tokens
        self.permissions = Permissions(config, self.permissions)
        self.config = config
        for channel in self.heard.values():
            channel.realm = self.permissions.realm(channel.name)
        for pattern in patterns:
            pattern.realm = self.permissions.realm(pattern.name)
            pattern.realm.put(pattern)
        self._configure()
        rights.renew(self, patterns)

    def _configure(self) -> None:
        config = self.config
        self.stays.limit = config.max_sessions
        self.revocations.limit = config.max_revocations
        self.histories.configure(
            limit=config.history_bytes,
            max_channels=config.max_channels,
            grace=config.resume_seconds,
            now=self.clock(),
        )

    def history_rules(self, name: bytes) -> Namespace:
        """The rules by which a channel keeps its history."""
        realm = self.permissions.realm(name)
        return _FORGETFUL if realm.rules.wildcards and realm.wild(name) else realm.rules

    # --- sessions ----------------------------------------------------------------------------------------------------

    def open(self, session: Session) -> None:
        """A client's stay begins, with what its token permits now. Raises TooBusy when there are as many as there may
        be."""
        limit = self.config.max_sessions
        if session.internal:
            self._internal += 1
        elif self.visible >= limit:
            raise TooBusy(f"cannot open a session: there are {limit} already (hub.max_sessions)")
        if not session.opened:
            session.opened = self.clock()
        rights.begin(self, session)  # the answer to its handshake may have waited for it, while its token was revoked
        self.sessions[session.id] = session
        if session.tags or session.name is not None:
            self.index(session)
        self.watch(session)
        self.opened += 1
        if not session.internal:  # the daemon's own are nobody's clients
            self.backplane.joined(None, session)
            self.application.opened(session)
            for hook in self.on_opened:
                hook(session)

    def close(self, session: Session, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """A client's stay has ended, whoever ended it; the connection is its transport's. Safe to call again.

        While messages are being handed out this only notes it, and the rest follows when they have been.
        """
        if session.closing or self.sessions.get(session.id) is not session:
            return
        session.closing = True
        self._leaving.append((session, code, reason))
        self._depart()

    def _depart(self) -> None:
        """Finish the stays that have ended; telling others of one may end more, and those wait for their turn here."""
        if self._iterating or self._departing:
            return
        self._departing = True
        try:
            while self._leaving:
                self._end_stay(*self._leaving.popleft())
        finally:
            self._departing = False

    def _end_stay(self, session: Session, code: int, reason: str) -> None:
        for channel in sorted(session.channels or ()):
            subscriptions.unsubscribe(self, session, channel)
        if session.tags or session.name is not None:
            self.unindex(session)
        del self.sessions[session.id]
        self._internal -= session.internal
        past, outbox = self.past, session.outbox
        past["messages_in"] += session.messages_in
        past["messages_out"] += outbox.messages
        past["refused"] += session.refused
        past["dropped"] += outbox.dropped
        session.buckets = None
        if session.resume is not None:
            self.stays.keep(session, self.clock(), self.config.resume_seconds)
        if not session.internal:
            self.backplane.left(None, session, last=False)
            self.application.closed(session, code, reason)
            for hook in self.on_closed:
                hook(session, code, reason)

    def find(self, target: str) -> list[Session]:
        """The sessions that "ID", "name:NAME" or "tag:KEY=VALUE" stands for; the daemon's own are nobody's to find."""
        if target.startswith(("name:", "tag:")):
            return [each for each in self._targets.get(target, ()) if not each.closing]
        session = self.sessions.get(target)
        return [] if session is None or session.internal or session.closing else [session]

    def present(self) -> list[Session]:
        """Every session but the daemon's own."""
        return [each for each in self.sessions.values() if not each.internal and not each.closing]

    @property
    def visible(self) -> int:
        """How many sessions there are besides the daemon's own."""
        return len(self.sessions) - self._internal

    def kick(
        self,
        target: str,
        code: int = CloseCode.KICKED,
        reason: str = "",
        answer: Callable[[int], None] | None = None,
    ) -> int:
        """End the sessions of a target; they cannot be resumed. Returns how many there were on this machine; `answer`
        is called with how many there were on all of them."""
        return self.backplane.kick(target, code, reason, answer or _ignore)

    def kick_here(self, target: str, code: int, reason: str) -> int:
        """`kick` on this machine, for the backplane."""
        found = self.find(target)
        for session in found:
            self.end(session, code, reason)
        return len(found)

    def end(self, session: Session, code: int, reason: str, *, resumable: bool = False) -> None:
        """End a session and its connection."""
        if not resumable:
            session.resume = None
        session.link.close(code, reason)
        self.close(session, code, reason)

    def index(self, session: Session) -> None:
        """Have `find` know its name and tags."""
        if not session.internal and (session.tags or session.name is not None):
            for target in _targets(session):
                self._targets.setdefault(target, {})[session] = None

    def unindex(self, session: Session) -> None:
        """Have `find` forget its name and tags."""
        if session.tags or session.name is not None:
            self._unindex(session, _targets(session))

    def _unindex(self, session: Session, targets: Iterable[str]) -> None:
        for target in targets:
            members = self._targets.get(target)
            if members is not None and session in members:
                del members[session]
                if not members:
                    del self._targets[target]

    def tag(
        self,
        session: Session,
        own: Mapping[str, str] | None = None,
        fixed: Mapping[str, str] | None = None,
        grants: Grant | None = None,
    ) -> None:
        """`Session.tag` for one that is open."""
        before = _targets(session)
        session.tag(own, fixed, grants)
        if (after := _targets(session)) != before:
            self._unindex(session, (target for target in before if target not in after))
            self.index(session)
            self.backplane.changed(session)
        if grants is not None:
            self.watch(session)

    def rename(self, session: Session, id: str) -> None:
        """Give a session that resumes another the other's id, which nobody has now."""
        former = session.id
        del self.sessions[former]
        session.id = id
        self.sessions[id] = session
        self.backplane.changed(session, former)
        self.application.resumed(session, former)
        for hook in self.on_resumed:
            hook(session, former)

    # --- tokens ------------------------------------------------------------------------------------------------------

    def resolve(self, token: str) -> Grant:
        """What a token permits now. Raises Denied for one that is unknown, expired, revoked or not as it should be."""
        now = self.clock()
        grants = self.tokens.resolve(token, now)
        self.revocations.check(grants, now)
        return grants

    def watch(self, session: Session) -> None:
        """The session may have another token now: have `expire` know when that ends."""
        if session.grants.expires != NEVER and self.expiries.watch(session):
            self.on_sooner()

    def expire(self, most: int = 256) -> float | None:
        """Have sessions whose tokens have expired go on without, at most so many: they are told, with an Error without
        `ref`, and lose what the token gave. Returns in how many seconds to call it again; None: not until `on_sooner`.
        """
        return rights.expire(self, most)

    def lose_token(self, session: Session, why: str) -> bool:
        """A session goes on without its token, and is told. False: it ends over that, which was too much for it to take
        in, or left nothing that it was there for."""
        return rights.lose_token(self, session, why)

    def revoke_subscriptions(self, session: Session) -> None:
        """End those of a session's subscriptions that it may not have any more."""
        rights.revoke_subscriptions(self, session)

    def revoke(self, kind: Kind, value: str, seconds: float) -> tuple[Revocation, int]:
        """Take no signed token with this `jti`, or issued until now for this `sub`, for so long, and end the sessions
        that have one; they cannot be resumed. Returns how many. TooBusy: there are too many revocations.
        """
        made = self.revocations.add(kind, value, self.clock(), seconds)
        self.backplane.revoke(made)
        return made, rights.end_revoked(self, made)

    def revoked(self, made: Revocation) -> bool:
        """Another machine has revoked this, for the backplane: it holds here too. False: that is known already, or
        there are too many (hub.max_revocations)."""
        if not self.revocations.take(made):
            return False
        rights.end_revoked(self, made)
        return True

    # --- requests of clients -----------------------------------------------------------------------------------------

    def handle(self, session: Session, request: Request, size: int = 0) -> None:
        """Do what a client asks, and answer it. Never raises for a client's fault.

        `size` is what the request took on the wire, for `bytes_per_second`.
        """
        requests.handle(self, session, request, size)

    def refuse(self, session: Session, error: ProtocolError, ref: int | str | None = None, *, size: int = 0) -> None:
        """Answer what could not be read. It costs what a request of `size` bytes does; past the limits that is told
        once a second, and the rest is not answered."""
        requests.refuse(self, session, error, ref, size)

    def allowed(self, session: Session, operation: str, channel: bytes | None) -> None:
        """Raise Denied, naming the rule that refuses, when the session may not do this.

        Operations: subscribe, publish, presence, history (of a channel); direct, broadcast, clients, application.
        """
        self.permissions.check(session, operation, channel)

    # --- channels ----------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        session: Session,
        channel: bytes,
        *,
        recover: Position | None = None,
        checked: bool = True,
        answer: Callable[[Ok], None] | None = None,
        pattern: bool = False,
    ) -> None:
        """Have a session hear a channel, and first what it missed since `recover`, if that is all there.

        Where the namespace has wildcards, a name that has some is a pattern: all channels that match, now and later.
        Nothing is recovered then. `pattern`: it has to be one.

        Hearing it already changes nothing. `answer` is called with the position to go on from, before anything of the
        channel is sent; `recovered` is False when something was missed for good. Raises Denied (when `checked`) and
        Refusal.
        """
        subscriptions.subscribe(self, session, channel, recover, checked, answer, pattern)

    def unsubscribe(self, session: Session, channel: bytes) -> bool:
        """Have a session hear a channel no more; False if it did not."""
        return subscriptions.unsubscribe(self, session, channel)

    def copy_subscriptions(self, source_id: str, target_id: str) -> int:
        """Have the target hear what the source hears, besides what it does already. Returns how many that added.

        Unknown ids add none. Raises Refusal where a bound is in the way, and then adds none either.
        """
        source, target = self.sessions.get(source_id), self.sessions.get(target_id)
        return 0 if source is None or target is None else subscriptions.copy(self, source, target)

    # --- messages ----------------------------------------------------------------------------------------------------

    def publish(
        self,
        channel: bytes,
        data: Any,
        *,
        sender: Session | None = None,
        priority: int = NORMAL_PRIORITY,
        ephemeral: bool = False,
    ) -> int | None:
        """Say something in a channel: no permission is checked. Raises Refusal for what its rules of size forbid.

        Returns how many sessions it has reached so far, on this machine; None: it is under way through the backplane.
        """
        realm = self.permissions.realm(valid(channel))
        rules = realm.rules
        if rules.wildcards and realm.wild(channel):
            realm.refused += 1
            raise Refusal("invalid", f"cannot publish to {shown(channel)}: {_no_channel(realm)}")
        size = measure(data)
        if size > rules.max_message:
            realm.refused += 1
            why = f"at most {rules.max_message} {realm.key('max_message')}"
            raise Refusal("too-large", f"cannot publish {size} bytes to {shown(channel)}: {why}")
        realm.published += 1
        self.published += 1
        publication = Publication(
            channel,
            data,
            None if sender is None else sender.id,
            priority,
            ephemeral or rules.ephemeral,
            self.clock(),
        )
        self.backplane.publish(publication)
        return None if publication.under_way else publication.delivered

    def deliver(self, publication: Publication) -> int:
        """Hand a channel's message to its subscribers here; for the backplane. Returns how many it reached."""
        channel = publication.channel
        place = self.heard.get(channel)
        realm = self.permissions.realm(channel) if place is None else place.realm
        crowd: dict[Session, Outbox] | None = None
        if realm.patterns is not None:
            crowd = realm.patterns.audience(channel, place)
        if place is not None and place.waiting is not None:
            place.hold(publication)
        if crowd is None and place is None:
            return 0
        # what is numbered comes in the order of its numbers, or a client would take what comes late for a repetition
        priority = publication.priority if publication.offset is None else NORMAL_PRIORITY
        reached = self._hand(place, crowd, publication.sender, publication.event(), priority, publication.ephemeral)
        realm.delivered += reached
        self.delivered += reached
        publication.delivered += reached
        return reached

    def publish_many(
        self, session: Session, channel: bytes, payloads: list[bytes], *, text: bool, last: bool = False
    ) -> None:
        """A client publishes these payloads to a channel, one after another: text (which has to be UTF-8) or bytes.

        Each is what a `Publish` of its own without `ref` would be, and is checked, counted and refused like that; it is
        only cheaper. `last`: it has said nothing after them yet (Batch.last).
        """
        row = Row(channel, str if text else bytes, None, payloads)
        publishing.publish_row(self, session, row, last)

    def publish_row(self, session: Session, row: Row, *, last: bool = False) -> None:
        """A client publishes what stands in a row of operations: the same as `handle` of each, only cheaper. `last`: it
        has said nothing after them yet."""
        publishing.publish_row(self, session, row, last)

    def deliver_many(self, batch: Batch) -> None:
        """`deliver` each message of a batch, all at once."""
        batch.reached = 0
        channel = batch.channel
        place = self.heard.get(channel)
        realm = self.permissions.realm(channel) if place is None else place.realm
        crowd: dict[Session, Outbox] | None = None
        if realm.patterns is not None:
            crowd = realm.patterns.audience(channel, place)
        if place is not None and place.waiting is not None:
            for publication in batch.publications():
                place.hold(publication)
        if crowd is None and place is None:
            return
        batch.reached = self._hand(place, crowd, batch.sender, batch, ephemeral=batch.ephemeral)
        realm.delivered += batch.reached
        self.delivered += batch.reached

    def _hand(
        self,
        place: Channel | None,
        crowd: dict[Session, Outbox] | None,
        sender: str | None,
        event: Event | Batch,
        priority: int = NORMAL_PRIORITY,
        ephemeral: bool = False,
    ) -> int:
        """To those who hear a channel: `crowd`, where some do through patterns. Nobody changes that one."""
        heard = crowd if crowd is not None else place.subscribers if place is not None else {}
        author = None if sender is None else self.sessions.get(sender)
        if author is not None and author.deaf and author in heard:
            heard = {session: outbox for session, outbox in heard.items() if session is not author}
        elif crowd is None and place is not None:
            return self.hand_out(place, event, priority, ephemeral)
        return self._hand_around(heard, event, priority, ephemeral)

    def direct(
        self,
        to: str,
        data: Any,
        *,
        sender: Session | None = None,
        priority: int = NORMAL_PRIORITY,
        ephemeral: bool = False,
        answer: Callable[[int], None] | None = None,
    ) -> int:
        """Say something to the sessions of a target (see `find`). Returns how many it reached on this machine; none is
        no error. `answer` is called with how many it reached on all machines, maybe later."""
        measure(data)
        letter = Letter(to, data, None if sender is None else sender.id, priority, ephemeral)
        return self.backplane.send(letter, answer or _ignore)

    def broadcast(
        self,
        data: Any,
        *,
        sender: Session | None = None,
        priority: int = NORMAL_PRIORITY,
        ephemeral: bool = False,
        answer: Callable[[int], None] | None = None,
    ) -> int:
        """Say something to every session but the sender. Returns how many it reached on this machine; `answer` is
        called with how many it reached on all machines, maybe later."""
        measure(data)
        letter = Letter(None, data, None if sender is None else sender.id, priority, ephemeral)
        return self.backplane.send(letter, answer or _ignore)

    def deliver_letter(self, letter: Letter) -> int:
        """Hand a direct message or a broadcast to those it is for here; for the backplane."""
        event: Event
        if letter.application and letter.to is not None and isinstance(letter.data, str | bytes):
            event = application_event(letter.data)
            sessions = self.find(letter.to)
        elif letter.to is not None:
            event = Direct(from_=letter.sender, **data_fields(letter.data))
            sessions = self.find(letter.to)
        else:
            event = Broadcast(from_=letter.sender, **data_fields(letter.data))
            sessions = [each for each in self.present() if each.id != letter.sender]
        self._iterating += 1
        try:
            return spread((each.outbox for each in sessions), event, letter.priority, letter.ephemeral)
        finally:
            self._iterating -= 1
            if self._leaving:
                self._depart()

    def hand_out(
        self,
        place: Channel,
        event: Event | Batch,
        priority: int = NORMAL_PRIORITY,
        ephemeral: bool = False,
    ) -> int:
        """An event for every subscriber of a channel."""
        earlier, place.shared = place.shared, place.subscribers
        self._iterating += 1
        try:
            return spread(place.subscribers.values(), event, priority, ephemeral)
        finally:
            place.shared = earlier
            self._iterating -= 1
            if self._leaving:
                self._depart()

    def _hand_around(self, crowd: dict[Session, Outbox], event: Event | Batch, priority: int, ephemeral: bool) -> int:
        """An event for a crowd that nobody changes."""
        self._iterating += 1
        try:
            return spread(crowd.values(), event, priority, ephemeral)
        finally:
            self._iterating -= 1
            if self._leaving:
                self._depart()

    def news(self, channel: bytes, event: Joined | Left) -> None:
        """Somebody came to a channel on another machine, or left it; for the backplane."""
        place = self.heard.get(channel)
        if place is not None and place.realm.rules.join_leave:
            subscriptions.tell(self, place, event)

    def level(self, channel: bytes, ok: Ok) -> None:
        """Tell those who hear a channel where it is, after messages without offsets; for the backplane."""
        place = self.heard.get(channel)
        realm = self.permissions.realm(channel) if place is None else place.realm
        crowd = None if realm.patterns is None else realm.patterns.audience(channel, place)
        if crowd is not None:
            self._hand_around(crowd, ok, NORMAL_PRIORITY, ephemeral=False)
        elif place is not None:
            self.hand_out(place, ok)

    # --- questions ---------------------------------------------------------------------------------------------------

    def channels(self, prefix: bytes = b"", after: bytes | None = None, limit: int | None = None) -> list[ChannelInfo]:
        """Channels that are heard or have a history, and patterns, by name: those that begin with `prefix` and come
        after `after`, and of these the first `limit`.

        Every name is looked at, but only what is asked for is sorted and told of.
        """
        return listed(self, prefix, after, limit)

    def channel(self, name: bytes) -> ChannelInfo:
        """One channel, whether anyone hears it or not, or pattern."""
        return described(self, name)

    def presence(self, channel: bytes) -> list[Client]:
        """Who is subscribed to a channel, or to a pattern, on this machine (`backplane.elsewhere`: on the others); who
        hears it through a pattern is not there."""
        place = self.place(channel)
        return [] if place is None else seen.clients(place.subscribers)

    def place(self, name: bytes) -> Channel | Pattern | None:
        """The channel or the pattern of this name, if anyone is subscribed to it."""
        return self.heard.get(name) or self.permissions.realm(name).pattern(name)

    def patterns(self) -> list[Pattern]:
        """Every pattern that someone is subscribed to."""
        return [each for realm in self.permissions.realms() if realm.patterns for each in realm.patterns.all()]

    def history(self, channel: bytes, since: Position | None = None, limit: int = 100) -> Page | None:
        """A part of a channel's history; None where its namespace keeps none, or a backplane has not answered yet: who
        can wait takes `ask_history`.

        Raises Refusal for a pattern.
        """
        pages: list[Page | None] = []
        self.ask_history(channel, since, limit, pages.append)
        return pages[0] if pages else None

    def ask_history(
        self, channel: bytes, since: Position | None, limit: int, answer: Callable[[Page | None], None]
    ) -> None:
        """`answer` is called with a part of a channel's history, maybe later; None where its namespace keeps none, or
        when it cannot be read now. Raises Refusal for a pattern."""
        self.one_channel(channel, "read the history of")

        def taken(page: Page | None) -> None:
            answer(page and replace(page, messages=[publication.taken() for publication in page.messages]))

        self.backplane.history(valid(channel), since, limit, taken)

    def one_channel(self, name: bytes, what: str) -> None:
        """Raise Refusal where the name is a pattern."""
        realm = self.permissions.realm(valid(name))
        if realm.wild(name):
            raise Refusal("unsupported", f"cannot {what} {shown(name)}: {_no_channel(realm)}")

    def info(self) -> HubInfo:
        """Figures for metrics."""
        return gather(self)

    # --- what outlives a stop ----------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Forget what has become too old. To be called every few seconds; whatever asks meanwhile is not served it."""
        now = self.clock()
        self.histories.sweep(now)
        self.stays.sweep(now)
        self.revocations.sweep(now)

    def dump(self) -> bytes:
        """Histories with their epochs and offsets, for `load`."""
        return saved.dump(self.histories.all(), self.clock())

    def load(self, data: bytes) -> None:
        """Take up what `dump` gave, in place of what history there is; today's limits hold.

        Raises NetdError for anything else, and then nothing has changed.
        """
        now = self.clock()
        loaded = saved.load(data, now)
        self.histories.replace(loaded)
        self._configure()


def _nothing() -> None:
    pass


def _ignore(count: int) -> None:
    pass


def _no_channel(realm: Realm) -> str:
    return f"it is a pattern and no channel {realm.key('wildcards')}"


def _targets(session: Session) -> list[str]:
    found = [f"tag:{key}={value}" for key, value in session.tags.items()]
    if session.name is not None:
        found.append(f"name:{session.name}")
    return found
