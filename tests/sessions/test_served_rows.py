"""Operations that came in one read: the same as one after another, to their sender, to whoever hears, and in counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.hub import history
from netd.hub.outbox import OutboxRules
from netd.services.broker.encoders import FRAMES, LINES, SPOKEN, Several
from netd.services.broker.packing import Least, Packed, Packing, Singly
from netd.services.framed.modes import ENCODERS, Plain, ToChannel
from netd.services.framed.templates import Template
from netd.sessions.modes import serve_requests
from netd.sessions.payloads import Others
from netd.wire import messages
from netd.wire.codecs import JSON, TEXT
from netd.wire.deflate import Compressor
from netd.wire.framing import FrameLimits, frames
from netd.wire.messages import Message
from tests.hub.room import Person, Ready, Room, config, public

if TYPE_CHECKING:
    from collections.abc import Callable

    from netd.wire.messages import Format

CHANNEL = b"public:a.b"
NAMES = ["public:a.b", "public:c", "public:*", "none:a", "x" * 256]


class Prompt(Ready):
    least = 100_000


class Client:
    """A connection, as much of it as is served."""

    def __init__(self, person: Person) -> None:
        self.session = person.session
        self._person = person

    @property
    def closing(self) -> bool:
        return bool(self._person.closed)


def one_by_one(person: Person, payloads: list[bytes], format: Format) -> None:
    hub, session, client = person.room.hub, person.session, Client(person)
    for payload in payloads:
        try:
            request = messages.decode_request(payload, format)
        except ProtocolError as error:
            hub.refuse(session, error, messages.ref_of(payload, format), size=len(payload))
            continue
        hub.handle(session, request, len(payload))
        if client.closing:
            return


def together(person: Person, payloads: list[bytes], format: Format) -> None:
    serve_requests(Client(person), person.room.hub, payloads, format)


def at_once(person: Person, payloads: list[bytes], format: Format) -> None:
    serve_requests(Client(person), person.room.hub, payloads, format, last=True)


VALUES: Any = st.one_of(
    st.text(max_size=8),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.integers(0, 300),
    st.lists(st.none(), max_size=3),
)
RUNS = st.fixed_dictionaries(
    {
        "channel": st.sampled_from([*NAMES[:1] * 5, *NAMES]),
        "data": st.lists(VALUES, min_size=1, max_size=5),
    },
    optional={
        "ref": st.sampled_from([0, 70_000, '"']),
        "priority": st.sampled_from([0, 128]),
        "ephemeral": st.booleans(),
    },
)
OTHERS = st.sampled_from(
    [
        {"type": "ping", "ts": 1},
        {"type": "unsubscribe", "channel": "public:a.b", "ref": 1},
        {"type": "subscribe", "channel": "public:a.b", "ref": 2},
        {"type": "broadcast", "data": "all"},
        {"type": "history", "channel": "public:a.b", "ref": 3},
        {"type": "close"},
        {"type": "publish", "ref": 9},
        {},
    ]
)
READS = st.lists(st.lists(RUNS | RUNS | RUNS | OTHERS, min_size=1, max_size=5), min_size=1, max_size=3)
LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "messages_per_second": st.sampled_from([3.0, 20.0, 100.0]),
        "burst": st.sampled_from([2, 5]),
        "bytes_per_second": st.sampled_from([100.0, 500.0]),
    },
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "rate": st.sampled_from([1.0, 4.0, 10.0]),
        "max_message": st.sampled_from([3, 8]),
        "history_size": st.sampled_from([2, 100]),
        "ephemeral": st.just(True),
        "publish": st.just("nobody"),
        "wildcards": st.just(True),
    },
)
OUTBOX = st.tuples(
    st.sampled_from([400, 1500, 5000, 10**6]),
    st.sampled_from(["disconnect", "drop-oldest", "drop-ephemeral"]),
    st.sampled_from([0.0, 0.0, 200.0]),
)


def said(read: list[dict[str, Any]], format: Format) -> list[bytes]:
    found: list[bytes] = []
    for each in read:
        if isinstance(each.get("data"), list) and "type" not in each:
            for number, data in enumerate(each["data"]):
                ref = (
                    {"ref": each["ref"] + number if isinstance(each["ref"], int) else each["ref"]}
                    if "ref" in each
                    else {}
                )
                carried = {"data64" if isinstance(data, bytes) and format == "json" else "data": data}
                about = {key: value for key, value in each.items() if key not in ("data", "ref")}
                found.append(packed({"type": "publish", **about, **carried, **ref}, format))
        else:
            found.append(packed(each, format))
    return found


def packed(value: Any, format: Format) -> bytes:
    return messages.encode(value, format)


def seen_by(
    serve: Callable[[Person, list[bytes], Format], None],
    format: Format,
    reads: Any,
    limits: Any,
    rules: Any,
    outboxes: Any,
) -> Any:
    """Everything that there is to see of it."""
    room = (Prompt if serve is at_once else Room)(config(public(**rules), **limits))
    pack = Packed(SPOKEN["json"], Compressor(takeover=False), Least())
    shared, plain = OutboxRules(10**6), Plain(JSON, "length")
    people = [room.person(encoder=SPOKEN[format], rules=OutboxRules(*outboxes[0]), id="author")]
    listeners: list[tuple[Any, OutboxRules]] = [
        (SPOKEN["json"], OutboxRules(*outboxes[1])),
        (SPOKEN["messagepack"], OutboxRules(*outboxes[2])),
        (SPOKEN["json"], shared),
        (SPOKEN["json"], shared),
        (FRAMES, shared),
        (LINES, shared),
        (Several([CHANNEL, b"public:c"]), shared),
        (ENCODERS["json"], OutboxRules(*outboxes[1])),
        (ENCODERS["messagepack"], shared),
        (plain, shared),
        (plain, OutboxRules(*outboxes[2])),
        (Plain(TEXT, "none"), shared),
        (Several([CHANNEL, b"public:c"]), OutboxRules(*outboxes[2])),
        (LINES, OutboxRules(*outboxes[1])),
        (pack, shared),
    ]
    people += [room.person(encoder=encoder, rules=its, id=f"{at}") for at, (encoder, its) in enumerate(listeners)]
    author = people[0]
    people[8].session.encoder = Others(FRAMES, author.session)
    for person in people[11:13]:
        person.session.encoder = Others(plain, person.session)
    taking = people[-1]
    taking.session.outbox = taking.outbox = Packing(shared, Singly(room), taking, Compressor(takeover=False), Least())  # type: ignore[arg-type]
    taking.outbox.encoder = SPOKEN["json"]
    for number, person in enumerate(people[1:]):
        room.hub.subscribe(person.session, b"public:a.*" if number in (1, 3, 9) else CHANNEL, checked=False)
    sent = getattr(room, "sent", {})
    taken = [b""] * len(people)

    def flush(least: int) -> None:
        for at, person in enumerate(people):
            if person.rules.bound >= least:
                taken[at] += sent.pop(person.outbox, b"") + b"".join(person.outbox.take(2**40, room.now))

    for read in reads:
        if author.closed:
            break
        serve(author, said(read, format), format)
        # nothing of a later read overtakes what went out at once, whatever its priority; nor may it elsewhere
        flush(Prompt.least)
    flush(0)
    realm = room.hub.permissions.realm(CHANNEL)
    counts = ("messages_in", "messages_out", "refused", "dropped")
    return (
        taken,
        [[getattr(person.session, count) for count in counts] for person in people],
        [(person.closed, person.pressed) for person in people],
        (realm.published, realm.delivered, realm.refused, room.hub.published, room.hub.delivered),
        [
            (
                each.name,
                each.offset,
                [(entry.offset, entry.data, entry.ephemeral) for entry in each.entries or ()],
            )
            for each in room.hub.histories.all()
        ],
        _spent(author, {"": limits.get("burst"), **limits}, rules),
    )


def _spent(author: Person, limits: dict[str, Any], rules: dict[str, Any]) -> dict[str, float]:
    """What is missing in each bucket; one that is full may as well not be there."""
    full = {"": limits[""] or limits.get("messages_per_second"), "bytes": limits.get("bytes_per_second")}
    full[":public"] = rules.get("rate")
    found = {key: full[key] - bucket.tokens for key, bucket in (author.session.buckets or {}).items() if full.get(key)}
    return {key: round(missing, 6) for key, missing in found.items() if missing}


@pytest.fixture(autouse=True, scope="module")
def _one_epoch():
    """Every history has the same one: it is random, and in what is compared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history.secrets, "token_urlsafe", lambda size: "epoch")
        yield


@pytest.mark.parametrize("format", ["json", "messagepack"])
@given(READS, LIMITS, RULES, st.lists(OUTBOX, min_size=3, max_size=3))
@example(
    [[{"channel": "public:a.b", "data": ["a"]}], [{"channel": "public:a.b", "data": ["b"], "priority": 0}]],
    {},
    {},
    [(400, "disconnect", 0.0), (10**6, "disconnect", 0.0), (400, "disconnect", 0.0)],
)
def test_rows_are_served_as_one_after_another(format: Format, reads: Any, limits: Any, rules: Any, outboxes: Any):
    expected = seen_by(one_by_one, format, reads, limits, rules, outboxes)
    for serve in (together, at_once):
        found = seen_by(serve, format, reads, limits, rules, outboxes)
        for this, that in zip(found, expected, strict=True):
            assert this == that


def test_what_is_said_last_of_all_may_go_out_at_once():
    room = Prompt()
    author = room.person(encoder=SPOKEN["json"])
    other = room.person(encoder=SPOKEN["json"])
    room.hub.subscribe(other.session, CHANNEL)
    publish = {"type": "publish", "channel": "public:a.b", "data": "a"}
    for read, at_once_is in (
        ([publish], 1),
        ([publish] * 3, 3),
        ([publish, publish, {"type": "ping", "ts": 1}], 0),
        ([publish, publish, {**publish, "ref": 1}], 0),
        ([{}, publish, publish], 2),
    ):
        room.sent.clear()
        at_once(author, [packed(each, "json") for each in read], "json")
        message = SPOKEN["json"].encode(Message(channel="public:a.b", from_=author.session.id, data="a"))
        assert room.sent.get(other.outbox, b"") == message * at_once_is
        assert b"".join(other.outbox.take(2**40, room.now)) == message * (
            read.count(publish) - at_once_is + ("ref" in read[-1])
        )


def test_a_read_in_which_nothing_is_whole_asks_for_nothing():
    room = Room()
    author = room.person(encoder=SPOKEN["json"])
    together(author, [], "json")
    assert (author.session.messages_in, author.outbox.size) == (0, 0)


@pytest.mark.parametrize("echo", [True, False])
def test_a_framed_channel_is_published_to_in_rows_until_something_cannot_be_read(echo: bool):
    room = Room()
    author, others = room.person(encoder=FRAMES), [room.person(encoder=SPOKEN["json"]) for _ in range(2)]
    mode = ToChannel(room.hub, JSON, "length", Template("public:a.b"), echo_own=echo)
    for person in (author, *others):
        room.hub.subscribe(person.session, CHANNEL)
    author.session.encoder = mode.encoder if echo else Others(mode.encoder, author.session)
    others[1].session.encoder = Others(mode.encoder, others[1].session)
    client: Any = Client(author)
    client.channel, client.decoder = CHANNEL, mode.decoder(FrameLimits())
    said = [b'"a"', b'"b"', b"1", b"[null]", b'"c"', b"{", b'"d"']
    with pytest.raises(ProtocolError, match="cannot read json"):
        mode.received(client, frames(said))
    assert author.session.messages_in == 5
    heard = [b"".join(person.outbox.take(2**40, room.now)) for person in (author, *others)]
    assert heard[0] == (frames(said[:5]) if echo else b"")
    alone = [Message(channel="public:a.b", from_=author.session.id, data=data) for data in ("a", "b", 1, [None], "c")]
    assert heard[1] == b"".join(map(SPOKEN["json"].encode, alone))
    assert heard[2] == frames(said[:5])
