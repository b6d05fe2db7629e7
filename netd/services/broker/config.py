"""The [broker] section: where WebSockets and HTTP are served, to whom, and what nobody may exceed. Pure.

Rules:
- every bound of the service stands here; what one *session* may do (messages a second, subscriptions) stands in [hub];
- limits are `live` and hold for sessions that are there already, from their next message on; what is agreed on in a
  handshake (compression, subprotocol) holds for as long as the connection does;
- combinations that cannot work are refused here, by name, before anything is opened.
"""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import AfterValidator, model_validator

from netd.net.http_limits import HttpLimits
from netd.section import Listen, Network, live, replace
from netd.services.broker.origins import check_host_pattern, check_origin_pattern
from netd.services.broker.protocol import check_application_path
from netd.sessions.config import SessionLimits
from netd.wire.deflate import DeflateSettings

HostPattern = Annotated[str, AfterValidator(check_host_pattern)]
OriginPattern = Annotated[str, AfterValidator(check_origin_pattern)]
ApplicationPath = Annotated[str, AfterValidator(check_application_path)]

_ROOM: Final = 64 * 1024
"""Bytes that have to fit into an outbox besides the longest message: what is around its data, and its Close."""


class BrokerListen(Listen):
    """One `[[broker.listen]]` entry."""

    forwarded: list[Network] = live([], max_length=64)
    """Proxies in front that speak HTTP: of a request from these networks, the client is the last address in Forwarded
    or X-Forwarded-For that is in none of them. Of anybody else's request these headers count for nothing."""


class BrokerHttp(HttpLimits):
    """The `[broker.http]` section: bounds of requests, and of connections that are no sessions (yet)."""

    max_connections: int = live(4096, ge=1, le=1_000_000)
    """Connections at once that are no sessions. One more closes the longest idle one; when none is idle it is answered
    503."""


class BrokerConfig(SessionLimits):
    """The `[broker]` section: WebSockets, event streams and HTTP on one port. Times are in seconds, sizes in bytes."""

    listen: list[BrokerListen] = replace(
        default_factory=lambda: [BrokerListen(address="127.0.0.1:3000")], min_length=1, max_length=64
    )
    """Where clients connect. A removed entry drains the sessions that came by it, and no others."""

    # what a connection may cost
    max_message: int = live(4 * 1024 * 1024, ge=125, le=256 * 1024 * 1024)
    """Bytes of one message of a WebSocket, inclusive, decompressed; one that announces more ends its connection with
    1009 before it is read."""
    max_fragments: int = live(64 * 1024, ge=1, le=16 * 1024 * 1024)
    """Frames of one message; one more ends its connection with 1009."""
    ping_interval: float = live(25.0, ge=0, le=3600)
    """A client silent for so long is sent a ping, an event stream a comment; 0: never."""
    ping_timeout: float = live(20.0, ge=0, le=3600)
    """A WebSocket from which nothing at all comes for so long after a ping is taken for dead, and closed (1011); so is
    an event stream of which nothing is taken for so long (TCP_USER_TIMEOUT). 0: never."""

    # compression
    deflate: bool = replace(False)
    """Offer permessage-deflate (RFC 7692) to WebSockets that ask for it. An idle one then takes some 40 KiB more with
    `client_takeover`, 300 KiB more with `server_takeover`, and nothing more without them."""
    server_takeover: bool = replace(False)
    """Compress each message with those before it in mind, for each client by itself: smaller, and dearer. Without it a
    message is compressed once for everybody who hears it."""
    client_takeover: bool = replace(False)
    """Let clients do so."""
    max_takeover: int = live(1024, ge=0, le=1_000_000)
    """WebSockets at once that may keep what came before in mind, either way. With one more it is agreed that neither
    side does."""
    deflate_window: int = replace(15, ge=9, le=15)
    """Bits of the window, of both sides."""
    deflate_level: int = replace(6, ge=1, le=9)
    """zlib's, from fast to small."""
    deflate_least: int = live(128, ge=0, le=1024 * 1024)
    """Messages below so many bytes are sent as they are."""

    # --- HTTP
    application: ApplicationPath = replace("/app", pattern=r"^/[A-Za-z0-9._~/-]*$", max_length=255)
    """The path at which a WebSocket's messages go to the application: none of the broker's own."""
    client: bool = live(True)
    """Serve the client for browsers at /netd.js and /netd.d.ts."""
    hosts: list[HostPattern] = live([], max_length=256)
    """Values of Host that are answered besides the listener's own addresses and localhost: "example.org",
    "*.example.org", with or without a port; "*": all. A page that a browser was tricked into (DNS rebinding) names
    another, and is refused (421)."""
    origins: list[OriginPattern] = live([], max_length=256)
    """Origins of web pages that may use this broker besides those of its own host: "https://example.org",
    "https://*.example.org", "null"; "*": all. Programs that are no browsers send none and are not asked."""
    cors_max_age: int = live(600, ge=0, le=86_400)
    """Seconds for which a browser may remember what a page of another origin may ask."""
    http_rate: float = live(0.0, ge=0, le=1_000_000)
    """Requests a second that one address, and one token, may send in the long run; 0: no bound."""
    http_burst: int = live(100, ge=1, le=1_000_000)
    """Requests that it may send at once."""
    answer_timeout: float = live(10.0, gt=0, le=600)
    """For the other nodes to answer a request for history, presence or a direct message; past it 504."""
    max_requests_waiting: int = live(1024, ge=1, le=100_000)
    """Requests at once that wait for a worker's answer; one more is answered 503."""
    requests_per_address: int = live(128, ge=1, le=100_000)
    """Of these, from one IPv4 address or one IPv6 /64; one more is answered 429."""
    http: BrokerHttp = live(default_factory=BrokerHttp)

    @model_validator(mode="after")
    def _has_room_for_a_message(self) -> Self:
        if self.backpressure < self.max_message + _ROOM:
            raise ValueError(
                f"cannot let {self.backpressure} bytes wait for a client (backpressure) where one message may have "
                f"{self.max_message} (max_message): write at least {self.max_message + _ROOM}, or a smaller max_message"
            )
        return self

    def deflate_settings(self) -> DeflateSettings | None:
        """What is offered to a WebSocket that asks for compression; None: nothing."""
        if not self.deflate:
            return None
        return DeflateSettings(
            server_no_context_takeover=not self.server_takeover,
            client_no_context_takeover=not self.client_takeover,
            server_max_window_bits=self.deflate_window,
            client_max_window_bits=self.deflate_window,
            level=self.deflate_level,
        )
