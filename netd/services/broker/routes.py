"""The broker's site: what its port answers over HTTP, and who gets a WebSocket or an event stream. Plain ASGI.

    client? --> Host? --> Origin? --> path, method --> budget --> token --> permission --> answer
                                                                                       '--> handover, gateway.enter

Rules:
- nothing of a request is looked at before it is known whose it is and that its Host and Origin are welcome; but for
  /healthz, which load balancers ask by whatever name, and which tells nothing;
- no body is read before it is known that it may be sent, and how large it may be;
- every refusal names the rule or the key behind it, in the one error shape, readable by pages that may be here at all;
- an upgrade is refused in HTTP as long as it can be: what a session may not do afterwards, the hub says.

Left out: what each path means (protocol.py), the workers' part (application.py), what sessions do (modes.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from netd.errors import ApplicationError, ControlError, Denied, NotFound
from netd.hub.permissions import Refusal, shown
from netd.hub.seams import Letter, MemoryBackplane
from netd.services.broker import assets, modes, protocol
from netd.services.broker.answers import JSON, Answered, Awaited, say, say_json, say_why, unauthorized, verdict
from netd.services.broker.application import Requests
from netd.services.broker.caller import Budgets, Caller
from netd.services.broker.forwarded import client_of
from netd.services.broker.origins import Hosts, Origins, cors_headers, parse_host, preflight, site_of, written
from netd.services.broker.request import GONE, Request
from netd.wire import messages
from netd.wire.upgrade import Upgrade, upgrade, wants_upgrade

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from netd.hub.history import Page, Publication
    from netd.net.asgi import Handed, Receive, Scope, Send
    from netd.services.broker.answers import Headers
    from netd.services.broker.config import BrokerConfig
    from netd.services.broker.gateway import Gateway
    from netd.wire.messages import Client, Format

SUBPROTOCOLS = ("netd.json", "netd.msgpack")
"""Of operations; each fixes the format at once."""
PLAIN_SUBPROTOCOL = "netd.plain"
"""Of plain WebSockets and the application's, for browsers, which take no connection without one once they asked."""
MAX_HISTORY = 2**20
"""Bytes of messages, about, in one answer; a single message may be longer."""
_FORMATS: Mapping[str | None, Format] = {"netd.json": "json", "netd.msgpack": "messagepack"}
_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events until they fill its buffer
]


def site(gateway: Gateway) -> Broker:
    """What answers the connections of a gateway."""
    return Broker(gateway)


class Broker:
    """The ASGI application. Its scopes have the extension `netd.visit` (visit.py)."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._hub = gateway.hub
        self._budgets = Budgets()
        self._files = assets.load()
        self.requests = Requests(gateway.hub)
        self._config: BrokerConfig | None = None
        self._hosts = Hosts(())
        self._origins = Origins(())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        config = self._gateway.config
        if config is not self._config:
            self._config = config
            self._hosts, self._origins = Hosts(config.hosts), Origins(config.origins)
        request = Request(scope, receive, send)
        try:
            await self._serve(request, config)
        except Answered as answered:
            await say_why(request.send, answered, request.cors)
        except (ControlError, ApplicationError) as error:
            await say_why(request.send, verdict(error), request.cors)
        finally:
            if request.status:
                self._gateway.answers[request.route, request.status] += 1

    async def _serve(self, request: Request, config: BrokerConfig) -> None:
        if request.path == protocol.HEALTH:
            request.route = protocol.Health.word
            await self._health(request)
            return
        visit, method = request.visit, request.method
        self._welcome(request)
        self._look_at_origin(request)
        place = protocol.place(request.path, config.application)
        request.route = place.word
        if method == "OPTIONS" and await self._options(request, place, config):
            return
        if place.methods and method not in place.methods:
            raise _no_method(method, place.methods)
        if config.http_rate:
            self._budgets.request(
                f"address {visit.key}", self._gateway.reactor.now, config.http_rate, config.http_burst
            )
        caller = Caller(visit.address, visit.key)
        if place.application:
            if wants_upgrade(request.headers):
                there = f"/ws, /ws/{{channel}} and {config.application}"
                raise NotFound(f"cannot find a WebSocket at {request.scope['path'][:80]!r}: there are {there}")
            await self.requests.answer(request.scope, request.receive, request.send, caller, config, request.cors)
            return
        route, token = place.route(request.query, request.headers)
        token = protocol.token_of(token, request.headers)
        if token is not None:
            request.scope["extensions"].pop("netd.recurs", None)
            try:
                caller.grants = self._hub.resolve(token)
            except Denied as error:
                raise unauthorized(error) from None
            if config.http_rate:
                self._budgets.request(caller.owner, self._gateway.reactor.now, config.http_rate, config.http_burst)
        await _ANSWERS[type(route)](self, request, route, caller)

    # --- who asks, and whom ---

    def _welcome(self, request: Request) -> None:
        """Find out who the client is, and whether the Host is one of ours."""
        visit, scope = request.visit, request.scope
        networks = visit.door.listen.forwarded
        if networks:
            address, host = visit.came
            client = client_of(host, request.headers, networks)
            if client.scheme is not None:
                scope["scheme"] = client.scheme
            if client.host != visit.host and (
                why := visit.claim(address if client.host == host else client.host, client.host)
            ):
                if why == "address":
                    what = "cannot serve more connections of this address (broker.connections_per_address)"
                    raise Answered(429, "rate", what, [(b"retry-after", b"1")])
                what = "cannot serve more connections (broker.max_connections)"
                raise Answered(503, "too-busy", what, [(b"retry-after", b"1")])
        named = request.header(b"host")
        if named is None:
            return  # HTTP/1.0, which no browser speaks
        parsed = parse_host(named.decode("latin-1"))
        if parsed is None:
            raise ControlError(f"cannot read the Host {named[:80].decode('latin-1')!r}", path="host")
        own = scope["server"][0] if scope["server"] else None
        site = site_of(scope["scheme"], *parsed)
        if not self._hosts.allows(site.host, site.port, own):
            why = "it is no address of this listener, and not in broker.hosts"
            raise Answered(421, "denied", f"cannot answer for the host {parsed[0]!r}: {why}")
        request.site = site

    def _look_at_origin(self, request: Request) -> None:
        origin = request.header(b"origin")
        if origin is not None and not self._origins.allows(origin.decode("latin-1"), request.site):
            what = origin[:200].decode("latin-1")
            request.cors = cors_headers(self._origins, None)
            why = "it is of another origin"
            if (site := request.site) is not None:
                # which tells who has a proxy with TLS in front what is missing
                why += f" than {written(site)}"
            keys = "broker.origins; behind a proxy, forwarded of its listener"
            raise Answered(403, "denied", f"cannot serve a page of {what!r}: {why} ({keys})")
        request.cors = cors_headers(self._origins, origin)

    def _own(self, request: Request) -> str | None:
        """The address that the client connected to, if its Host is welcome for that alone."""
        site, server = request.site, request.scope["server"]
        return None if site is None or self._hosts.allows(site.host, site.port, None) else server[0]

    async def _options(self, request: Request, place: protocol.Place, config: BrokerConfig) -> bool:
        """Whether it was for us: the workers' own paths are theirs, but for what a browser asks before it asks them."""
        said = preflight(request.headers, place.methods, config.cors_max_age)
        if said is None:
            if place.application:
                return False
            said = [(b"allow", ", ".join(place.methods).encode("ascii"))]
        await say(request.send, 204, [*said, *request.cors])
        return True

    # --- WebSockets and event streams ---

    async def _socket(self, request: Request, route: protocol.Socket, caller: Caller) -> None:
        operations = isinstance(route, protocol.Operations)
        answer = upgrade(
            b"GET",
            request.scope["http_version"].encode("ascii"),
            request.headers,
            subprotocols=SUBPROTOCOLS if operations else (PLAIN_SUBPROTOCOL,),
            deflate=self._gateway.deflate_settings(),
        )
        if not isinstance(answer, Upgrade):
            headers = [(name.lower(), value) for name, value in answer.headers]
            raise Answered(answer.status, "invalid", answer.reason, headers)
        mode: Any
        if isinstance(route, protocol.Plain):
            mode = modes.Plain(route.channel, route.role, route.echo)
            self._may_have(mode, caller)
        elif isinstance(route, protocol.App):
            mode = modes.App()
            self._allowed(caller, "application", None)
        else:
            mode = modes.Operations(_FORMATS.get(answer.subprotocol))
        self._stays_open(request)
        handed: Any = await request.handover(101, answer.headers)
        self._enter(request, handed, mode, caller, answer)
        recurs = request.scope["extensions"].get("netd.recurs")
        if recurs is not None and (answer.deflate is None or not self._gateway.takeover):
            recurs(handed.head, mode, deflate=answer.deflate, own=self._own(request))

    async def _events(self, request: Request, route: protocol.Events, caller: Caller) -> None:
        mode = modes.Events(route.channels, route.recover)
        self._may_have(mode, caller)
        if request.method == "HEAD":
            await say(request.send, 200, [*_STREAM, *request.cors])
            return
        self._stays_open(request)
        if request.has_body:
            raise ControlError("cannot take a body here: events are only sent")
        self._enter(request, await request.handover(200, [*_STREAM, *request.cors]), mode, caller)

    def _enter(
        self, request: Request, handed: Handed, mode: Any, caller: Caller, answer: Upgrade | None = None
    ) -> None:
        visit = request.visit
        self._gateway.enter(
            visit.door,
            handed,
            address=visit.address,
            key=visit.key,
            mode=mode,
            grants=caller.grants,
            deflate=None if answer is None else answer.deflate,
            name=caller.grants.subject,
        )

    def _stays_open(self, request: Request) -> None:
        if request.scope["extensions"]["netd.draining"].is_set():
            raise Answered(503, "too-busy", "cannot begin a session: the broker stops", [(b"retry-after", b"1")])

    def _may_have(self, mode: Any, caller: Caller) -> None:
        if (denied := self._gateway.refusal(mode, caller.grants)) is not None:
            raise denied
        if isinstance(mode, modes.Plain) and mode.role == "pub":
            self._hub.one_channel(mode.channel, "publish to")  # it would be let in to be heard by nobody

    def _allowed(self, caller: Any, operation: str, channel: bytes | None) -> None:
        self._hub.allowed(caller, operation, channel)

    # --- channels ---

    async def _publish(self, request: Request, route: protocol.Publish, caller: Caller) -> None:
        hub, channel = self._hub, route.channel
        self._allowed(caller, "publish", channel)
        realm = hub.permissions.realm(channel)
        self._budgets.publish(caller, realm, self._gateway.reactor.now)
        data = await request.data(realm.rules.max_message, realm.key("max_message"))
        if data is GONE:
            return
        delivered = hub.publish(channel, data, priority=route.priority, ephemeral=route.ephemeral)
        body: dict[str, Any] = {} if delivered is None else {"delivered": delivered}
        if isinstance(hub.backplane, MemoryBackplane) and not (route.ephemeral or realm.rules.ephemeral):
            history = hub.histories.get(channel)
            if history is not None:
                body |= {"epoch": history.epoch, "offset": history.offset}
        await say_json(request.send, 201, body, request.cors)

    async def _history(self, request: Request, route: protocol.History, caller: Caller) -> None:
        hub, channel = self._hub, route.channel
        self._allowed(caller, "history", channel)
        hub.one_channel(channel, "read the history of")
        limit = min(100 if route.limit is None else route.limit, hub.config.max_listed)
        waits: Awaited[Page | None] = Awaited()
        hub.backplane.history(channel, route.since, limit, waits.take)
        page = await waits.get(self._gateway.config.answer_timeout, f"read the history of {shown(channel)}")
        if page is None:
            realm = hub.permissions.realm(channel)
            what = f"cannot read the history of {shown(channel)}"
            if realm.rules.history_size:
                raise Answered(503, "unavailable", f"{what}: it is not to be had now", [(b"retry-after", b"1")])
            raise Refusal("unsupported", f"{what}: namespace {realm.name!r} keeps none {realm.key('history_size')}")
        found = _fitting(page.messages, newest=route.since is None)
        parts = b",".join([messages.encode(publication.event(), "json") for publication in found])
        about = msgspec.json.encode({"epoch": page.epoch, "offset": page.offset, "complete": _complete(page, found)})
        body = about[:-1] + b',"messages":[' + parts + b"]}"
        await say(request.send, 200, [*JSON, *request.cors], body)

    async def _presence(self, request: Request, route: protocol.Presence, caller: Caller) -> None:
        hub, channel = self._hub, route.channel
        self._allowed(caller, "presence", channel)
        realm = hub.permissions.realm(channel)
        what = f"cannot see who is in {shown(channel)}"
        if not realm.rules.track_presence:
            raise Refusal(
                "unsupported", f"{what}: namespace {realm.name!r} does not track it {realm.key('track_presence')}"
            )
        most = hub.config.max_listed
        here = hub.presence(channel)
        waits: Awaited[tuple[int, list[Client]]] = Awaited()
        hub.backplane.elsewhere(channel, most, lambda count, who: waits.take((count, who)))
        count, there = await waits.get(self._gateway.config.answer_timeout, what.removeprefix("cannot "))
        if len(here) + count > most:
            raise Refusal("too-many", f"{what}: {len(here) + count} sessions are, at most {most} (hub.max_listed)")
        clients: list[Client] = [*here, *there]
        body = b'{"clients":' + msgspec.json.encode(clients) + b"}"
        await say(request.send, 200, [*JSON, *request.cors], body)

    async def _direct(self, request: Request, route: protocol.Direct, caller: Caller) -> None:
        hub = self._hub
        self._allowed(caller, "direct", None)
        data = await request.data(self._gateway.config.http.max_body, "(broker.http.max_body)")
        if data is GONE:
            return
        letter = Letter(route.target, data, None, route.priority, route.ephemeral)
        waits: Awaited[int] = Awaited()
        hub.backplane.send(letter, waits.take)
        reached = await waits.get(self._gateway.config.answer_timeout, f"tell whether {route.target!r} is there")
        if not reached:
            raise NotFound(f"cannot send to {route.target!r}: no such session is here")
        await say_json(request.send, 202, {"delivered": reached}, request.cors)

    # --- the rest ---

    async def _health(self, request: Request) -> None:
        if request.method not in protocol.Health.methods:
            raise _no_method(request.method, protocol.Health.methods)
        if request.scope["extensions"]["netd.draining"].is_set():
            await say_json(request.send, 503, {"status": "draining"}, [(b"retry-after", b"1")])
        else:
            await say_json(request.send, 200, {"status": "ok"})

    async def _asset(self, request: Request, route: protocol.Asset, caller: Caller) -> None:
        file = self._files.get(route.name) if self._gateway.config.client else None
        if file is None:
            raise NotFound(f"cannot find /{route.name}: the client for browsers is not served (broker.client)")
        known = request.header(b"if-none-match")
        headers = [*file.headers, *request.cors]
        if known is not None and assets.is_known(file.tag, known):
            await say(request.send, 304, headers)
        else:
            await say(request.send, 200, headers, file.body)


_ANSWERS: Mapping[type, Callable[[Broker, Request, Any, Caller], Awaitable[None]]] = {
    protocol.Operations: Broker._socket,
    protocol.Plain: Broker._socket,
    protocol.App: Broker._socket,
    protocol.Events: Broker._events,
    protocol.Publish: Broker._publish,
    protocol.History: Broker._history,
    protocol.Presence: Broker._presence,
    protocol.Direct: Broker._direct,
    protocol.Asset: Broker._asset,
}


def _no_method(method: str, methods: Sequence[str]) -> Answered:
    allowed = ", ".join(methods)
    return Answered(
        405, "invalid", f"cannot {method[:32]} here: there are {allowed}", [(b"allow", allowed.encode("ascii"))]
    )


def _fitting(publications: list[Publication], *, newest: bool) -> list[Publication]:
    """As many of these as an answer has room for: the newest, or the oldest. At least one, if there is any."""
    room, count = MAX_HISTORY, 0
    for publication in reversed(publications) if newest else publications:
        room -= publication.weight
        if count and room < 0:
            break
        count += 1
    return publications[len(publications) - count :] if newest else publications[:count]


def _complete(page: Page, found: list[Publication]) -> bool:
    return page.complete and len(found) == len(page.messages)
