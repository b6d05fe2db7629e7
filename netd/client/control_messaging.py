"""ControlClient's part for sessions, tokens, channels and anomaly scores; what is common to all parts is in control.py.

A target is a session's id, "name:NAME" or "tag:KEY=VALUE". A channel's name is text or bytes. Data of a message: str is
text, bytes are bytes, anything else is a JSON value.
"""

from __future__ import annotations

import base64
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from netd.client.stream import EventStream
from netd.errors import ProtocolError, RequestFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import httpx

    from netd.client import shapes
    from netd.errors import DaemonUnreachable

PAGE = 1000
"""Sessions or channels of one answer, when all of them are asked for."""
TRACE_SECONDS = 60.0
"""The daemon's own bound of one trace."""


class MessagingCalls:
    """To be mixed into ControlClient."""

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def sessions(
        self,
        *,
        transport: str | None = None,
        tag: str | None = None,
        name: str | None = None,
        prefix: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> shapes.SessionList:
        """One page of the sessions of every transport, in the order of their coming.

        `tag` is "KEY=VALUE", `prefix` what an id begins with; `after` is `next` of an earlier page.
        """
        given = {"transport": transport, "tag": tag, "name": name, "id": prefix, "after": after}
        params = [("limit", str(limit)), *((key, value) for key, value in given.items() if value is not None)]
        return cast("shapes.SessionList", await self._call("GET", "/v1/sessions", params=params, expect="sessions"))

    async def every_session(self, *, most: int, **chosen: str | None) -> AsyncIterator[shapes.SessionRow]:
        """Page after page, at most `most` sessions."""
        after: str | None = None
        while most > 0:
            page = await self.sessions(limit=min(most, PAGE), after=after, **chosen)
            for row in page["sessions"]:
                yield row
            most -= len(page["sessions"])
            after = page["next"]
            if after is None:
                return

    async def session(self, session_id: str) -> shapes.SessionView:
        """One session whole."""
        return cast("shapes.SessionView", await self._get(f"/v1/sessions/{part(session_id)}"))

    async def session_tcp(self, session_id: str) -> dict[str, int | None]:
        """The kernel's tcp_info of its socket. RequestFailed of kind "conflict" where it has no TCP."""
        return await self._get(f"/v1/sessions/{part(session_id)}/tcp")

    async def session_trace(
        self, session_id: str, *, max_hops: int | None = None, hop_timeout: float | None = None
    ) -> shapes.TraceRecord:
        """Trace the path to it inside its own connection, and return that path; a matter of seconds at most."""
        given = {"max_hops": max_hops, "hop_timeout": hop_timeout}
        params = [(key, f"{value:g}") for key, value in given.items() if value is not None]
        path = f"/v1/sessions/{part(session_id)}/trace"
        answer: dict[str, Any] = await self._call("POST", path, params=params, wait=TRACE_SECONDS)
        return answer

    async def session_kick(self, target: str, *, code: int | None = None, reason: str = "") -> int:
        """End sessions and their connections. Returns how many that was."""
        params = [("code", str(code))] if code is not None else []
        params += [("reason", reason)] if reason else []
        return number(await self._call("DELETE", f"/v1/sessions/{part(target)}", params=params), "kicked")

    async def session_send(self, target: str, data: Any, *, priority: int = 128, ephemeral: bool = False) -> int:
        """Send a direct message to sessions. Returns how many outboxes took it in."""
        body = message(data, priority, ephemeral)
        return number(await self._call("POST", f"/v1/sessions/{part(target)}/messages", body=body), "delivered")

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def tokens_revoked(self, *, limit: int = 100) -> shapes.RevokedTokens:
        """The signed tokens that are revoked; those that are forgotten first come first."""
        params = [("limit", str(limit))]
        answer = await self._call("GET", "/v1/tokens/revoked", params=params, expect="revoked")
        return cast("shapes.RevokedTokens", answer)

    async def token_revoke(
        self, *, sub: str | None = None, jti: str | None = None, seconds: float | None = None
    ) -> shapes.Revoked:
        """Take the tokens for a subject, or the one with an id, no more, and end the sessions that have them.

        `seconds`: how long to remember it, which should be until the last of them will have expired.
        """
        given = {"sub": sub, "jti": jti, "seconds": seconds}
        body = {key: value for key, value in given.items() if value is not None}
        return cast("shapes.Revoked", await self._call("POST", "/v1/tokens/revoked", body=body))

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def nodes(self) -> shapes.NodeList:
        """The machines that are one hub, this one first, and how Redis is doing."""
        return cast("shapes.NodeList", await self._call("GET", "/v1/nodes", expect="nodes"))

    # --- channels ----------------------------------------------------------------------------------------------------

    async def hub(self) -> dict[str, Any]:
        """Totals of the hub and of the reactor."""
        return await self._get("/v1/hub")

    async def channels(self, *, prefix: str = "", limit: int = 100, after: str | None = None) -> shapes.ChannelList:
        """One page of the channels that are heard or have a history (over Redis: that are heard), by name. `after` is
        `next` of an earlier page."""
        params = [("limit", str(limit))]
        params += [(key, value) for key, value in (("prefix", prefix), ("after", after)) if value]
        return cast("shapes.ChannelList", await self._call("GET", "/v1/channels", params=params, expect="channels"))

    async def every_channel(self, *, most: int, prefix: str = "") -> AsyncIterator[shapes.ChannelRow]:
        """Page after page, at most `most` channels."""
        async with aclosing(self.channel_pages(most=most, prefix=prefix)) as pages:
            async for page in pages:
                for row in page["channels"]:
                    yield row

    async def channel_pages(self, *, most: int, prefix: str = "") -> AsyncGenerator[shapes.ChannelList, None]:
        """Pages of at most `most` channels in all."""
        after: str | None = None
        while most > 0:
            page = await self.channels(prefix=prefix, limit=min(most, PAGE), after=after)
            yield page
            most -= len(page["channels"])
            after = page["next"]
            if after is None:
                return

    async def channel(self, name: str | bytes) -> shapes.ChannelView:
        """One channel and who hears it."""
        return cast("shapes.ChannelView", await self._get(f"/v1/channels/{part(name)}"))

    async def channel_history(
        self, name: str | bytes, *, since: str | None = None, limit: int = 100
    ) -> shapes.ChannelHistory:
        """Its newest messages, or the first after the position `since` ("EPOCH-OFFSET")."""
        params = [("limit", str(limit)), *([("since", since)] if since else [])]
        path = f"/v1/channels/{part(name)}/history"
        return cast("shapes.ChannelHistory", await self._call("GET", path, params=params, expect="messages"))

    async def channel_publish(
        self, name: str | bytes, data: Any, *, priority: int = 128, ephemeral: bool = False
    ) -> int | None:
        """Publish a message. Returns how many sessions it has reached so far; None: it is on its way."""
        return (await self.channel_published(name, data, priority=priority, ephemeral=ephemeral)).get("delivered")

    async def channel_published(
        self, name: str | bytes, data: Any, *, priority: int = 128, ephemeral: bool = False
    ) -> shapes.Published:
        """The same with all that the daemon says of it."""
        body = message(data, priority, ephemeral)
        answer = await self._call("POST", f"/v1/channels/{part(name)}/messages", body=body)
        if answer.get("delivered") is not None:
            number(answer, "delivered")
        return cast("shapes.Published", answer)

    def channel_events(self, name: str | bytes, *, since: str = "", patience: float = 0.0) -> EventStream:
        """What is said in a channel, from now on, or from after the position `since` as far as it is kept.

        Events: subscribed, then message, joined, left, missed. With `patience`, a lost connection is made again for
        that many seconds; nothing is lost where the channel has a history.
        """

        async def request(last_id: str) -> httpx.Response:
            headers = {"last-event-id": last_id} if last_id else {}
            return await self._open("GET", f"/v1/channels/{part(name)}/events", headers=headers)

        return EventStream(request, self._explain, since=since, patience=patience, last=frozenset({"ended", "closed"}))

    # --- anomaly -----------------------------------------------------------------------------------------------------

    async def anomaly(self, *, limit: int = 20) -> shapes.AnomalyStatus:
        """How scoring stands, and the sessions with the largest scores."""
        answer = await self._call("GET", "/v1/anomaly", params=[("limit", str(limit))], expect="sessions")
        return cast("shapes.AnomalyStatus", answer)

    async def anomaly_of(self, session_id: str) -> shapes.SessionScores:
        """One session's scores."""
        return cast("shapes.SessionScores", await self._get(f"/v1/anomaly/{part(session_id)}"))

    # --- what ControlClient gives ------------------------------------------------------------------------------------

    async def _get(self, path: str) -> dict[str, Any]:
        raise NotImplementedError

    async def _call(self, method: str, path: str, *, expect: str | None = None, **request: Any) -> dict[str, Any]:
        raise NotImplementedError

    async def _open(self, method: str, path: str, **request: Any) -> httpx.Response:
        raise NotImplementedError

    def _explain(self, error: BaseException) -> DaemonUnreachable:
        raise NotImplementedError


def part(name: str | bytes) -> str:
    """One segment of a path, whatever is in the name: here "." and ".." are names too, and would be folded away."""
    if not name:
        raise RequestFailed("not-found", "cannot find anything without a name", status=404)
    if isinstance(name, str):
        name = name.encode("utf-8", "surrogateescape")
    return quote(name, safe=":=") if name not in (b".", b"..") else "%2E" * len(name)


def message(data: Any, priority: int, ephemeral: bool) -> dict[str, Any]:
    """The body of a request that sends a message."""
    body: dict[str, Any] = {"data64": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"data": data}
    if priority != 128:
        body["priority"] = priority
    if ephemeral:
        body["ephemeral"] = True
    return body


def number(answer: dict[str, Any], key: str) -> int:
    """A count in an answer."""
    value = answer.get(key)
    if not isinstance(value, int):
        raise ProtocolError(f"cannot read the daemon's answer: {key!r} is no number in it")
    return value
