"""What a client publishes in a row: whether that may be done for all of it together, and how it is answered. Pure.

Rules:
- what is checked, spent, counted, kept and told is what `requests.handle` would have for each by itself, and so is the
  order in which its own session is told;
- where something is in the way of one of them, they are handled one after another: errors are made in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netd.hub.batch import Batch
from netd.hub.grants import NEVER
from netd.hub.outbox import Chunk
from netd.hub.requests import bucket, handle, room
from netd.wire.messages import MAX_CHANNEL, Ok

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netd.hub.hub import Hub
    from netd.hub.permissions import Realm
    from netd.hub.session import Session
    from netd.wire.messages import Ref
    from netd.wire.rows import Row

_AROUND_MESSAGE, _ANSWER = 512, 1024
"""Bytes that stand around the data of a message, besides the channel's name, and of an answer to a publish, at most."""


def publish_row(hub: Hub, session: Session, row: Row, last: bool) -> None:
    """`Hub.publish_row`. What cannot be done for all of them together is done for one after another."""
    if session.closing:
        return
    realm = hub.permissions.realm(row.channel)
    if not _all_may(hub, session, row, realm):
        for request, size in row.requests():
            handle(hub, session, request, size)
        return
    count = len(row)
    session.messages_in += count
    realm.published += count
    hub.published += count
    batch = Batch(row, session.id, hub.clock(), last, ephemeral=row.ephemeral or realm.rules.ephemeral)
    hub.backplane.publish_many(batch)
    if row.refs is not None:
        _acknowledge(session, row.refs, batch.delivered())


def _all_may(hub: Hub, session: Session, row: Row, realm: Realm) -> bool:
    """Whether nothing is in the way of publishing all of them; what their rates allow is spent then."""
    rules, config, channel, payloads = realm.rules, hub.config, row.channel, row.payloads
    if (
        (session.grants.expires != NEVER and session.grants.expires <= hub.clock())
        or not ("publish" in realm.open or hub.permissions.permits(session, "publish", channel))
        or (len(payloads[0]) if len(payloads) == 1 else max(map(len, payloads))) > rules.max_message
        or not 0 < len(channel) <= MAX_CHANNEL
        or (rules.wildcards and realm.wild(channel))
        or not (len(payloads) == 1 or _fits(hub, session, row, realm))
    ):
        return False
    if not (config.messages_per_second or config.bytes_per_second or rules.rate):
        return True
    count = float(len(row))
    limits = [
        ("", count, config.messages_per_second, config.burst),
        ("bytes", float(sum(map(len, row.wire))), config.bytes_per_second, 0.0),
        (f":{realm.name}", count, rules.rate, rules.burst),
    ]
    found = [
        (bucket(hub, session, limit, rate, max(burst or rate, 1.0)), amount, rate)
        for limit, amount, rate, burst in limits
        if rate
    ]
    if any(each.tokens < amount for each, amount, _ in found):
        return False
    for each, amount, rate in found:
        each.draw(rate, amount)
    return True


def _fits(hub: Hub, session: Session, row: Row, realm: Realm) -> bool:
    """Whether whatever its own session is told of a row, answers or the messages themselves, has room in its outbox:
    if it has to go in the middle of a row, the rest is not published. Where it is told both, they take turns."""
    count = len(row)
    place = hub.heard.get(row.channel)
    hears = place is not None and session in place.subscribers
    if not hears and realm.patterns is not None and session.patterns:
        hears = realm.patterns.reach(session, row.channel)
    most = 0
    if hears and not session.deaf:
        if row.refs is not None:
            return False
        # a byte of text may be six in JSON, and of a name too
        most = count * (_AROUND_MESSAGE + 6 * len(row.channel)) + 6 * sum(map(len, row.payloads))
    elif row.refs is not None:
        most = count * _ANSWER
    return most <= room(session)


def _acknowledge(session: Session, refs: list[Ref], delivered: Sequence[int | None]) -> None:
    """Answer each operation of a row; all in one chunk, if nothing would part them."""
    outbox = session.outbox
    speaks: Any = session.encoder
    if len(refs) > 1 and hasattr(speaks, "answers"):
        joined = outbox.joins and outbox.rules.policy == "disconnect" and not outbox.rules.rate
        chunks = speaks.answers(refs, delivered, joined=joined)
        if joined:  # what is dropped is counted by message
            chunks = [Chunk.of(chunk, ephemeral=False, messages=len(refs)) for chunk in chunks]
        outbox.push_many(chunks, len(refs))
        return
    for ref, count in zip(refs, delivered, strict=True):
        session.send(Ok(ref=ref, delivered=count))
