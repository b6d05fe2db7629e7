"""The [hub] section: namespaces with their rules, tokens and what they permit, and what no session may exceed. Pure.

Rules:
- everything but `backplane` is `live`: a reload disturbs nobody, and holds from the next message on;
- what is not allowed here is not possible for a client: without namespaces there are no channels for clients, and an
  operation of no channel (direct, broadcast, clients) takes a token unless it says otherwise;
- the namespace of a channel is what stands before the first ":" of its name; "" is that of names without one;
- a token's secret stands here or in a file of its own; files are read by whoever builds the hub (tokens.py);
- signed tokens (JWT) are issued elsewhere; here stand the keys that they are verified with. Several at once, so that
  one can take the place of another: add the new key, reload, issue with it, and remove the old one when what it signed
  has expired (signed.py);
- A NAME AND TAGS BELONG TO NOBODY. What a client says of itself in its hello, or in a handshake that is not signed, is
  a claim that nobody checks: two sessions may have one name, and what is sent to "name:x" or "tag:k=v" reaches all who
  claim it. On a session that shows a token or a signed handshake, the tags of these can be relied on: they win over
  its own claims. Others may still claim the same tags. Who must reach one session alone sends to its id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from netd.section import Section, fixed, live
from netd.wire.messages import MAX_CHANNEL, MAX_NAME, MAX_TAGS

MIN_SECRET = 16
"""Characters. A shorter one could be guessed through the daemon itself."""

Who: TypeAlias = Literal["anyone", "token", "nobody"]
"""anyone: every session; token: sessions whose token permits it; nobody: the server side alone."""


def check_pattern(text: str) -> str:
    """The pattern as it is. Raises ValueError for one that cannot be."""
    if "*" in text[:-1]:
        raise ValueError(f'cannot use the pattern {text!r}: "*" may only stand at its end ("chat:*")')
    if not text or len(text.encode()) > MAX_CHANNEL + 1:
        raise ValueError(f"cannot use the pattern {text!r}: a channel's name has 1 to {MAX_CHANNEL} bytes")
    return text


Pattern = Annotated[str, AfterValidator(check_pattern)]
"""A channel's name ("chat:lobby"), the beginning of names ("chat:*"), or every name ("*")."""
MAX_PATTERNS = 256
Patterns = Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)]
Short = Annotated[str, Field(max_length=MAX_NAME)]


def check_tag_key(key: str) -> str:
    """The key as it is. Raises ValueError for one that cannot be."""
    if "=" in key:
        raise ValueError(f'cannot use the tag {key!r}: there may be no "=" in its key')
    return key


TagKey = Annotated[Short, AfterValidator(check_tag_key)]


class Namespace(Section):
    """One `[[hub.namespace]]` entry: the rules of every channel whose name begins with `name` and ":"."""

    name: str = live(max_length=64, pattern=r"^[^:\s\x00-\x1f\x7f]*$")
    """What stands before the first ":" of a channel's name; "" for names without one."""
    subscribe: Who = live("token")
    """Who may hear its channels."""
    publish: Who = live("token")
    """Who may speak in them."""
    presence: Who = live("token")
    """Who may ask who is there, and is told who comes and goes (join_leave)."""
    history: Who = live("token")
    """Who may ask what was said."""
    recover: Who | None = live(None)
    """Who is sent what it missed when it subscribes again; unset: as `history`. token: one whose `history` has the
    channel. Others may subscribe, and are told that they may have missed something."""
    history_size: int = live(0, ge=0, le=100_000)
    """Messages kept of each channel, for history and recovery; 0: none, and its messages have no offsets. With offsets
    messages come in the order of these, whatever their priority: priorities order direct messages, broadcasts, and the
    messages of channels without history."""
    history_seconds: float = live(0.0, ge=0, le=31_536_000)
    """Messages kept are forgotten at this age; 0: at no age."""
    join_leave: bool = live(False)
    """Tell a channel's subscribers who comes and goes: those that may ask who is there (`presence`, where
    `track_presence` is true). It is a hint, which a subscriber with much waiting is not given; to know, ask."""
    join_leave_rate: float = live(10.0, gt=0, le=1_000_000)
    """Comings and goings told a second in each channel, and a second's worth at once. What is more is not told, or one
    client that comes and goes could keep all the others busy."""
    track_presence: bool = live(True)
    """Answer who is there at all."""
    max_message: int = live(65_536, ge=1, le=16_777_216)
    """Bytes of one message's data (UTF-8 for text, JSON for values); a larger one is refused."""
    rate: float = live(0.0, ge=0, le=1_000_000)
    """Messages a second that one session may publish in all its channels; 0: no limit. What is more is refused."""
    burst: int = live(0, ge=0, le=1_000_000)
    """Messages that may come at once; 0: a second's worth."""
    ephemeral: bool = live(False)
    """Every message may be dropped for a slow consumer, and none is kept."""
    wildcards: bool = live(False)
    """Let subscriptions name many channels: in "chat:a.*.c" the "*" stands for one token of the name, divided by ".",
    in "chat:a.>" the ">" for one or more. It takes the right to subscribe to everything that it could match (of tokens:
    the beginning of names), and who has it hears messages without being seen in the channels. Such names are no
    channels then: nobody may publish to them. Where this is false they are names like any."""
    max_patterns: int = live(1000, ge=1, le=100_000)
    """Such subscriptions, counting the same one of many sessions once; further ones are refused."""
    max_subscribers: int = live(100_000, ge=1, le=10_000_000)
    """Sessions in one channel, or with one and the same subscription with wildcards; further ones are refused."""


class Permitted(Section):
    """What a token may do where a rule says "token".

    Fields stand in the order of their bases, the last base first, and so does the manual: what tells tokens from each
    other comes from a base behind this one.
    """

    subscribe: Patterns = live(default_factory=list)
    """Channels that the token may hear: names, or beginnings of names ("chat:*")."""
    publish: Patterns = live(default_factory=list)
    """Channels it may speak in."""
    presence: Patterns = live(default_factory=list)
    """Channels of which it may ask who is there."""
    history: Patterns = live(default_factory=list)
    """Channels of which it may ask what was said, and be sent what it missed."""
    direct: bool = live(False)
    """It may send to other sessions."""
    broadcast: bool = live(False)
    """It may send to all sessions."""
    clients: bool = live(False)
    """It may ask which sessions there are."""
    tags: dict[TagKey, Short] = live(default_factory=dict, max_length=MAX_TAGS)
    """Tags that its sessions have, whatever they say themselves, for as long as they have the token."""


class _Secret(Section):
    """How a `[[hub.token]]` is known."""

    name: str = live(min_length=1, max_length=64, pattern=r"^[^\s\x00-\x1f\x7f]+$")
    """What it is called in lists and refusals."""
    secret: SecretStr | None = live(None)
    """What the client shows in its hello: at least 16 characters. Either this or `file`."""
    file: Path | None = live(None)
    """A file that holds the secret, white space around it left out."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.secret is None) == (self.file is None):
            raise ValueError(f"cannot use the token {self.name!r}: give it either a secret or a file")
        if self.secret is not None and len(self.secret.get_secret_value()) < MIN_SECRET:
            raise ValueError(f"cannot use the token {self.name!r}: its secret is shorter than {MIN_SECRET} characters")
        return self


class Token(Permitted, _Secret):
    """One `[[hub.token]]` entry: a secret that a client shows, and what it permits where a rule says "token"."""


class _Signature(Section):
    """How a `[[hub.key]]` verifies tokens."""

    name: str = live(min_length=1, max_length=64, pattern=r"^[^:\s\x00-\x1f\x7f]+$")
    """What it is called in lists and problems."""
    algorithm: Literal["HS256", "RS256", "EdDSA"] = live()
    """What its tokens are signed with, and nothing else. HS256: a secret of at least 32 bytes; RS256: an RSA key of at
    least 2048 bits; EdDSA: an Ed25519 key."""
    secret: SecretStr | None = live(None)
    """HS256: the secret; else the public key in PEM. Either this or `file`."""
    file: Path | None = live(None)
    """A file that holds it, white space around it left out."""
    kid: str | None = live(None, min_length=1, max_length=256)
    """The key's id: tokens that name another one are not for this key. Unset: whatever they name is tried with it."""
    audience: str | None = live(None, min_length=1, max_length=1024)
    """What a token's `aud` has to be, or to have; unset: it has to have none."""
    issuer: str | None = live(None, min_length=1, max_length=1024)
    """What a token's `iss` has to be; unset: anything."""
    leeway: float = live(0.0, ge=0, le=300)
    """How far the clocks of netd and of the issuer may differ."""
    max_age: float = live(0.0, ge=0, le=315_360_000)
    """A token counts for so long after it was issued (`iat`), whatever its `exp` says; 0: as long as that says."""
    require_exp: bool = live(True)
    """Refuse tokens that do not say when they expire."""
    claims: bool = live(True)
    """A token's claim `netd` is believed, and its tags win over those that stand here. False: the token permits what
    stands here and no more."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.secret is None) == (self.file is None):
            raise ValueError(f"cannot use the key {self.name!r}: give it either a secret or a file")
        return self


class Key(Permitted, _Signature):
    """One `[[hub.key]]` entry: a key that signed tokens (JWT) are verified with, and what these need to have.

    A token permits what its claim `netd` says, in the words of `[[hub.token]]`, and what stands here. Its `sub` says
    for whom it is: "NAME:SUB" is what lists and refusals call it, and SUB the name of a session that gives itself none.
    """


class HubConfig(Section):
    """The `[hub]` section: who may say and hear what, over any transport, and what it may cost. Times are in seconds,
    sizes in bytes.

    In its rules "anyone" stands for every session, "token" for those whose token permits it, and "nobody" for the
    server side alone.
    """

    namespace: list[Namespace] = live(default_factory=list, max_length=256)
    """`[[hub.namespace]]`: kinds of channels. Without any, clients may use no channel."""
    token: list[Token] = live(default_factory=list, max_length=256)
    """`[[hub.token]]`: what clients may show to be permitted more."""
    key: list[Key] = live(default_factory=list, max_length=16)
    """`[[hub.key]]`: keys of signed tokens (JWT), which clients may show as well. A session may show ten tokens a
    second, of either kind."""

    backplane: Literal["memory", "redis"] = fixed("memory")
    """memory: this machine is the whole hub. redis: machines that share a Redis are one hub (`[backplane]`); history is
    kept there, by the rules of its namespaces (but `history_bytes`: Redis has its own maxmemory). Lists of channels are
    of those that this machine's clients hear, and a session is resumed on the machine that it was on."""

    # operations of no channel
    direct: Who = live("token")
    """Who may send to other sessions."""
    broadcast: Who = live("token")
    """Who may send to all sessions."""
    clients: Who = live("token")
    """Who may ask which sessions there are."""
    application: Who = live("anyone")
    """Who may send text and binary to the application (an echo, where there is no worker)."""

    # what one session may cost
    messages_per_second: float = live(0.0, ge=0, le=10_000_000)
    """Operations a second, also those that cannot be read; 0: no limit. What is more is refused, and the connection
    stays."""
    burst: int = live(0, ge=0, le=10_000_000)
    """Operations that may come at once; 0: a second's worth."""
    bytes_per_second: float = live(0.0, ge=0, le=10_000_000_000)
    """Bytes a second of its operations (one second's worth at once); 0: no limit. What is more is refused."""
    max_subscriptions: int = live(1000, ge=1, le=1_000_000)
    """Channels that one session may hear, counting a subscription with wildcards as one."""
    max_patterns: int = live(100, ge=0, le=100_000)
    """Of these, subscriptions with wildcards."""

    # what all of them may cost
    max_sessions: int = live(100_000, ge=1, le=10_000_000)
    """Sessions of all transports; further ones are turned away. Of sessions that ended as many are remembered, to be
    resumed: the one that ended first is forgotten first."""
    max_channels: int = live(100_000, ge=1, le=10_000_000)
    """Channels with subscribers, and as many with history. Further subscriptions are refused; history makes room by
    forgetting the channel that was quiet longest."""
    max_listed: int = live(1000, ge=1, le=100_000)
    """Sessions or messages in one answer (list, presence, history). Of a history about 1 MiB is answered at once."""
    history_bytes: int = live(64 * 2**20, ge=0, le=2**40)
    """What the history of all channels may take; past that the channels with the largest lose their oldest messages."""
    max_revocations: int = live(10_000, ge=0, le=1_000_000)
    """Signed tokens that are revoked at a time; further ones are refused, as none is forgotten before its time."""
    resume_seconds: float = live(60.0, ge=0, le=86_400)
    """How long a session that ended may be resumed, and a quiet channel keeps its place in history; 0: neither."""

    @field_validator("namespace", "token", "key")
    @classmethod
    def _names_once(cls, entries: list[Any]) -> list[Any]:
        names = [entry.name for entry in entries]
        for index, name in enumerate(names):
            if (first := names.index(name)) != index:
                raise ValueError(f"cannot have {name!r} twice (entries {first} and {index})")
        return entries
