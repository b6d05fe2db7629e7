"""GET /v1/events: the bus as server-sent events.

    id: BOOT-SERIAL      BOOT is a word for this run of the daemon, SERIAL the notice's
    event: KIND          or "missed": notices are lost to this reader; or "ended": the daemon stops
    data: {"service", "time", ...the notice's own fields}

A client that comes back with the last id it saw (Last-Event-ID, or ?since=) goes on where it was, as far as the bus
remembers; what it lost is counted by one "missed". With an id of another run of the daemon it is told of this run from
its start: how many notices of the other run it did not see, nobody knows any more.

The id 0-0, which no notice ever has, asks where the stream stands: the answer is "missed" under the newest id, with the
count of all notices so far, and then what happens from now on.
"""

import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from netd.control.host import Host
from netd.errors import ControlError
from netd.net.rest import EVENTS, EventStream, Read, ServerEvent
from netd.runtime.bus import Missed, Stamped

Kinds = Annotated[
    list[Annotated[str, Query(max_length=64)]],
    Query(max_length=32, description="Only notices of these kinds."),
]
ServiceName = Annotated[str | None, Query(max_length=64, description="Only notices of this service.")]
Since = Annotated[str | None, Query(max_length=64, description="As Last-Event-ID, which it overrules.")]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=64, description="Go on after this id.")]

_NOWHERE = "0-0"
_WAITING = 1024  # notices that may wait for a slow reader, beside those of the past that it asked for
_MOST_PAST = 8192  # of those: as many as the bus will ever keep

_ID = re.compile(r"^([0-9a-f]{1,32})-([0-9]{1,15})$")


def router(host: Host, *, boot: str) -> APIRouter:
    routes = APIRouter(tags=["events"])

    @routes.get("/events", response_class=Response, responses=EVENTS)
    async def events(
        caller: Read,
        kind: Kinds = [],  # noqa: B006  # FastAPI copies defaults
        service: ServiceName = None,
        since: Since = None,
        last_event_id: LastEventId = None,
    ) -> EventStream:
        """What happens, as it happens."""
        # "from now on" is from here: the stream subscribes only once it has begun to answer
        id = since or last_event_id
        position = _position(id, host.bus.serial, boot)
        return EventStream(_notices(host, position, id == _NOWHERE, boot, frozenset(kind), service))

    return routes


def _position(id: str | None, now: int, boot: str) -> int:
    """The serial to go on after."""
    if id is None or id == _NOWHERE:
        return now
    match = _ID.match(id)
    if match is None:
        raise ControlError(f'cannot go on after {id!r}: an event id reads "BOOT-SERIAL"', path="since")
    return min(int(match[2]), now) if match[1] == boot else 0


async def _notices(
    host: Host, position: int, lost: bool, boot: str, kinds: frozenset[str], service: str | None
) -> AsyncGenerator[ServerEvent, None]:
    past = min(host.bus.serial - position, _MOST_PAST)
    with host.bus.subscribe(since=position, buffer=_WAITING + past) as subscription:
        if lost:
            yield _event(Stamped(position, time.time(), Missed(count=position)), boot)
        async for stamped in subscription:
            notice = stamped.notice
            wanted = (not kinds or notice.kind in kinds) and (service is None or notice.service == service)
            if wanted or isinstance(notice, Missed):
                yield _event(stamped, boot)


def _event(stamped: Stamped, boot: str) -> ServerEvent:
    notice = stamped.notice
    data = {"service": notice.service, "time": stamped.time, **notice.as_json()}
    return ServerEvent(notice.kind, data, id=f"{boot}-{stamped.serial}")
