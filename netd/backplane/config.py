"""The [backplane] section: where Redis is, and what may wait for it. Pure. Used where `[hub] backplane` is "redis"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from netd.section import Section, fixed, live, replace


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    path = unquote(parts.path)
    if parts.password is not None or parts.username is not None:
        raise ValueError("cannot take a user or password in the url, which everybody sees: use backplane.password")
    if parts.scheme == "unix":
        fine = path.startswith("/") and not parts.netloc and "\0" not in path
    else:
        fine = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and port != 0
        fine = fine and (path in ("", "/") or path[1:].isdecimal())
    if not fine or parts.query or parts.fragment or not text.isascii() or not text.isprintable():
        example = '"redis://127.0.0.1:6379", "rediss://cache.example:6380/2" or "unix:/run/redis/redis.sock"'
        raise ValueError(f"cannot use {text!r} as Redis: write {example}")
    return text


Url = Annotated[str, Field(max_length=2048), AfterValidator(_url)]


class BackplaneConfig(Section):
    """The `[backplane]` section: the Redis (6.2 or newer, or Valkey; no cluster) that joins the hubs of several
    machines where `hub.backplane` is "redis". Times are in seconds, sizes in bytes.

    While Redis is away messages are delivered on the machine they come from, and wait for the others, within bounds.
    """

    enabled: bool = live(True)
    """Talk to Redis, where `hub.backplane` is "redis"; without, it is as if Redis were away."""
    url: Url = replace("redis://127.0.0.1:6379")
    """Where Redis is: "redis://HOST:PORT/DB", "rediss://..." (TLS), or "unix:/path/of/the.sock"
    (netd's account has to be in the socket's group)."""
    username: str | None = replace(None, min_length=1, max_length=128)
    """Whom to log in as; unset: Redis' default user."""
    password: SecretStr | None = replace(None)
    """What to log in with. Best as a credential (backplane.password), or in `password_file`."""
    password_file: Path | None = replace(None)
    """A file that holds the password, white space around it left out."""
    ca: Path | None = replace(None)
    """With rediss://: PEM file with the authorities to trust; unset: those of the system."""
    prefix: str = fixed("netd:", min_length=1, max_length=64, pattern=r"^[!-)+->@-Z^-~]+$")
    """What all keys and channels in Redis begin with; daemons with the same one are one hub. No "*", "?", "[", "\\"."""
    node: str | None = fixed(None, min_length=1, max_length=64, pattern=r"^[!-~]+$")
    """What this machine is called in `netctl nodes`; unset: its host name. It need not be unique: each start adds an id
    of its own, which is shown where two have one name."""
    address: str | None = live(None, max_length=128)
    """Where others find this machine, for people who read `netctl nodes`; nothing is done with it. Unset: the first
    port of its broker, else of framed or trace; one on all addresses (0.0.0.0) with the host's name."""

    timeout: float = replace(2.0, ge=0.1, le=60)
    """What Redis has for an answer. Past that it counts as away: what waits is delivered here, and it is tried anew."""
    retry: float = replace(0.2, ge=0.01, le=60)
    """Before the first new attempt; it doubles, with jitter, up to `max_retry`."""
    max_retry: float = replace(5.0, ge=0.05, le=300)
    """The longest wait between two attempts."""
    heartbeat: float = replace(2.0, ge=0.1, le=60)
    """Between two signs of life to the others."""
    expiry: float = replace(10.0, ge=0.5, le=600)
    """A machine that gives no sign of life for so long is gone: its clients have left. At least 3 heartbeats."""
    answers: float = live(1.0, ge=0.05, le=30)
    """How long to wait for other machines: how many sessions a direct message reached, or were kicked. Where more than
    `queue_bytes` of these, or `queue_messages`, wait for Redis, they are about this machine alone."""
    remember: float = replace(604_800.0, ge=60, le=31_536_000)
    """How long Redis remembers a channel's place after its last message; then it begins a new epoch."""

    queue_messages: int = replace(10_000, ge=1, le=10_000_000)
    """Messages that may wait for Redis. Past that the oldest is lost to the other machines, and its channel begins a
    new epoch: who recovers is told."""
    queue_bytes: int = replace(32 * 2**20, ge=1024, le=2**40)
    """What these may take."""
    inbound_messages: int = replace(50_000, ge=16, le=10_000_000)
    """Messages from Redis that may wait to be delivered. Past that they are dropped and counted, and what has a history
    is fetched from it."""
    inbound_bytes: int = replace(64 * 2**20, ge=1024, le=2**40)
    """What these may take."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("cannot use two passwords: give either backplane.password or backplane.password_file")
        if self.expiry < 3 * self.heartbeat:
            raise ValueError(f"cannot use expiry = {self.expiry:g}: it has to be at least three times the heartbeat")
        if self.max_retry < self.retry:
            raise ValueError(f"cannot use max_retry = {self.max_retry:g}: it is less than retry")
        return self
