"""/v1/channels and /v1/hub: what is heard and what was said; publishing; following a channel.

A channel's name in a path is its bytes, percent-encoded ("chat:room%2F1"); in JSON it is `name`, or `name64` where it
is no text.

The events of a channel (server-sent):

    id: EPOCH-OFFSET     where the channel has a history: what a reader that comes back goes on after
    event: subscribed    {"channel", "epoch"?, "offset"?, "recovered"?}   first; "recovered": false, something is lost
           message       {"channel", "from"?, "data" or "data64", "epoch"?, "offset"?}
           joined, left  {"channel", "session", "name"?}, where the namespace tells them
           missed        {"count"}   the reader is too slow: so many messages are lost to it
           ended         the daemon stops, or "closed": the hub ended the subscription
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import BaseModel

from netd.control.answers import answered
from netd.control.connections import named
from netd.control.host import Host
from netd.control.routes.messages import Delivered, MessageBody, MessageView, message_view
from netd.control.tail import Tail
from netd.errors import Conflict, NotFound, TooBusy
from netd.hub.channels import ChannelInfo
from netd.hub.info import HubInfo
from netd.hub.permissions import shown
from netd.net.reactor import ReactorSnapshot
from netd.net.rest import EVENTS, Content, EventStream, Read, ServerEvent, Write
from netd.wire.messages import MAX_CHANNEL, Position

MAX_LIST = 1000
"""Channels, members or messages of one answer."""

Name = Annotated[str, Path(description="The channel's name: 1 to 255 bytes, percent-encoded.")]
_POSITION = r"^[!-~]{1,128}-[0-9]{1,15}$"

Since = Annotated[
    str | None, Query(pattern=_POSITION, description='Go on after this position, "EPOCH-OFFSET", as far as it is kept.')
]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", pattern=_POSITION, description="As since.")]


class ChannelView(BaseModel):
    """A channel now. `name64` is its name in base64 where it is no text. `history` counts the messages that are kept;
    `epoch` and `offset` are of the newest message, null where the namespace keeps none. `pattern`: it is no channel but
    a subscription with wildcards; who hears a channel through one is not among the channel's subscribers."""

    name: str | None
    name64: str | None
    subscribers: int
    epoch: str | None
    offset: int | None
    history: int
    pattern: bool


class ChannelList(BaseModel):
    """By name. `next` is what `after` takes to go on; null: there are no more. `silent`: other machines that have not
    said in time which channels are heard there; they are not counted."""

    channels: list[ChannelView]
    next: str | None
    silent: int


class Member(BaseModel):
    """A session that hears a channel."""

    session: str
    name: str | None
    transport: str
    tags: dict[str, str]


class WholeChannel(ChannelView):
    """A channel with who hears it, on all machines: at most the first 1000. The daemon's own readers are not shown."""

    presence: list[Member]


class ChannelHistory(BaseModel):
    """Messages of a channel, oldest first. `epoch` and `offset` are the channel's own, now. `complete`: these are all
    the messages after `since`, or all there ever were."""

    epoch: str
    offset: int
    complete: bool
    messages: list[MessageView]


class HubView(BaseModel):
    """The hub and the reactor now; counts are since the daemon began."""

    hub: HubInfo
    reactor: ReactorSnapshot


def router(host: Host) -> APIRouter:
    routes = APIRouter(tags=["channels"])
    tails: set[Tail] = set()

    @routes.get("/hub")
    async def get_hub(caller: Read) -> HubView:
        """Totals: sessions, channels, messages, history, and the reactor that carries them."""
        return HubView(hub=host.hub.info(), reactor=host.reactor.snapshot())

    @routes.get("/channels")
    async def list_channels(
        caller: Read,
        prefix: Annotated[str, Query(max_length=MAX_CHANNEL, description="Only names that begin so.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 100,
        after: Annotated[
            str | None, Query(pattern=r"^([0-9a-f]{2}){1,255}$", description="`next` of an earlier answer.")
        ] = None,
    ) -> ChannelList:
        """Every channel that is heard or has a history, and every pattern that is subscribed to, by name. With a
        backplane: that is heard on any machine; those that only have a history are not searched for."""
        behind = bytes.fromhex(after) if after is not None else None
        found, silent = await answered(
            lambda answer: host.hub.backplane.channels(prefix.encode(), behind, limit + 1, answer), "list the channels"
        )  # one more tells whether there are more
        more = found[limit - 1].name.hex() if len(found) > limit else None
        return ChannelList(channels=[_view(one) for one in found[:limit]], next=more, silent=silent)

    @routes.get("/channels/{name}")
    async def get_channel(name: Name, caller: Read) -> WholeChannel:
        """One channel, or pattern, and who hears it. 404 for one that nobody hears and that has no history."""
        channel, hub = _channel(name), host.hub
        what = f"see who is in {shown(channel)}"
        count, others = await answered(lambda answer: hub.backplane.elsewhere(channel, MAX_LIST, answer), what)
        info = await answered(lambda answer: hub.backplane.channel(channel, answer), what)
        if not info.subscribers and info.epoch is None and not count:
            raise NotFound(f"cannot find channel {shown(channel)}: nobody hears it, and it has no history", path="name")
        here = hub.presence(channel)
        members = [
            Member(session=one.session, name=one.name, transport=one.transport, tags=one.tags or {})
            for one in [*here, *others][:MAX_LIST]
        ]
        view = _view(info)
        view.subscribers = max(info.subscribers, len(here) + count)  # who is slow to say has told Redis who is there
        return WholeChannel(presence=members, **view.model_dump())

    @routes.get("/channels/{name}/history")
    async def get_history(
        name: Name,
        caller: Content,
        since: Since = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 100,
    ) -> ChannelHistory:
        """The newest messages, or the first after `since`. 409 where the namespace keeps none, or there is none; 503
        while the history is out of reach."""
        channel = _channel(name)
        what = f"read the history of {shown(channel)}"
        page = await answered(lambda answer: host.hub.ask_history(channel, _position(since), limit, answer), what)
        if page is None:
            if host.hub.history_rules(channel).history_size:
                raise TooBusy(f"cannot {what}: it is out of reach now (see netctl health)")
            why = "its namespace keeps none (hub.namespace, history_size)"
            if _nowhere(host, channel):
                why = f"there is no namespace {_namespace(channel)} (hub.namespace)"
            raise Conflict(f"cannot read the history of {shown(channel)}: {why}")
        messages = [message_view(one) for one in page.messages]
        return ChannelHistory(epoch=page.epoch, offset=page.offset, complete=page.complete, messages=messages)

    @routes.post("/channels/{name}/messages", response_model_exclude_none=True)
    async def publish(name: Name, body: MessageBody, caller: Write) -> Delivered:
        """Publish a message: no permission is asked for, and the channel's rules of size and history hold."""
        channel = _channel(name)
        delivered = host.hub.publish(channel, body.content(), priority=body.priority, ephemeral=body.ephemeral)
        if not _nowhere(host, channel):
            return Delivered(delivered)
        return Delivered(delivered, f"no namespace {_namespace(channel)} is configured: clients cannot hear it")

    @routes.get("/channels/{name}/events", response_class=Response, responses=EVENTS)
    async def follow(
        name: Name, caller: Content, since: Since = None, last_event_id: LastEventId = None
    ) -> EventStream:
        """What is said in the channel, as it is said."""
        return EventStream(_events(Tail(host.hub, _channel(name), _position(since or last_event_id), tails)))

    return routes


async def _events(tail: Tail) -> AsyncGenerator[ServerEvent, None]:
    async with aclosing(tail.events()) as events:
        async for kind, fields in events:
            epoch, offset = fields.get("epoch"), fields.get("offset")
            id = f"{epoch}-{offset}" if epoch is not None and offset is not None else None
            yield ServerEvent(kind, fields, id=id)


def _view(info: ChannelInfo) -> ChannelView:
    name = named(info.name)
    return ChannelView(
        name=name.name,
        name64=name.name64,
        subscribers=info.subscribers,
        epoch=info.epoch,
        offset=info.offset,
        history=info.history,
        pattern=info.pattern,
    )


def _channel(segment: str) -> bytes:
    """The name that a segment of the path stands for."""
    name = unquote_to_bytes(segment)
    if not 1 <= len(name) <= MAX_CHANNEL:
        raise NotFound(f"cannot use a channel of {len(name)} bytes: a name has 1 to {MAX_CHANNEL}", path="name")
    return name


def _nowhere(host: Host, channel: bytes) -> bool:
    """Whether the channel is in no namespace that is configured: it is closed to clients then."""
    realm = host.hub.permissions.realm(channel)
    return not any(one is realm for one in host.hub.permissions.realms())


def _namespace(channel: bytes) -> str:
    """The name of the namespace that it would be in, as people read it."""
    head, colon, _ = channel.partition(b":")
    return shown(head if colon else b"")


def _position(text: str | None) -> Position | None:
    if text is None:
        return None
    epoch, _, offset = text.rpartition("-")
    return Position(epoch, int(offset))
