"""Messages published in a row: the same as one after another, whatever is in their way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.hub.config import Namespace
from netd.hub.outbox import Outbox, OutboxRules
from netd.services.framed.modes import ENCODERS
from netd.sessions.payloads import Others
from netd.wire.messages import Message, Ok, Position, Publish, channel_fields, data_fields, data_of
from netd.wire.rows import Row
from tests.hub.room import Person, Ready, Room, Speaks, config, public

if TYPE_CHECKING:
    from netd.hub.batch import Batch
    from netd.wire.messages import Event

CHANNEL = b"public:a.b"


class Lines:
    """An encoder of the data alone."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, event: Any) -> bytes | None:
        if not isinstance(event, Message):
            return None
        data = data_of(event)
        return (data.encode() if isinstance(data, str) else data) + b"\n"

    def encode_many(self, batch: Batch) -> bytes:
        self.calls += 1
        return b"".join(payload + b"\n" for payload in batch.payloads)


class Alone(Outbox):
    """An outbox in which each message waits by itself."""

    joins = False


def listener(room: Room, *channels: bytes, **more: Any) -> Person:
    person = room.person(**more)
    for channel in channels:
        room.hub.subscribe(person.session, channel, checked=False)
    return person


def waiting(person: Person) -> list[bytes]:
    sent = getattr(person.room, "sent", {}).pop(person.outbox, b"")
    return [*([sent] if sent else []), *person.outbox.take(2**40, person.room.now)]


def one_by_one(person: Person, channel: bytes, payloads: list[bytes], text: bool) -> None:
    for payload in payloads:
        data = data_fields(payload.decode() if text else payload)
        person.room.hub.handle(person.session, Publish(**channel_fields(channel), **data), len(payload))


def in_a_row(person: Person, channel: bytes, payloads: list[bytes], text: bool) -> None:
    person.room.hub.publish_many(person.session, channel, payloads, text=text)


def at_once(person: Person, channel: bytes, payloads: list[bytes], text: bool) -> None:
    person.room.hub.publish_many(person.session, channel, payloads, text=text, last=True)


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "messages_per_second": st.sampled_from([1.0, 3.0, 100.0]),
        "burst": st.sampled_from([2, 5]),
        "bytes_per_second": st.sampled_from([4.0, 20.0]),
    },
)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "rate": st.sampled_from([1.0, 4.0]),
        "max_message": st.sampled_from([3, 8]),
        "history_size": st.sampled_from([2, 100]),
        "ephemeral": st.just(True),
        "publish": st.just("token"),
        "wildcards": st.just(True),
    },
)
OUTBOX = st.builds(
    OutboxRules,
    st.sampled_from([8, 30, 5000]),
    st.sampled_from(["disconnect", "drop-oldest", "drop-ephemeral"]),
    st.sampled_from([0.0, 10.0]),
)
BATCHES = st.lists(
    st.tuples(st.sampled_from([CHANNEL, b"public:*", b"none:a", b""]), st.lists(st.text(max_size=9), min_size=1)),
    min_size=1,
    max_size=4,
)


@given(LIMITS, RULES, st.lists(OUTBOX, min_size=3, max_size=3), BATCHES, st.booleans(), st.booleans())
def test_in_a_row_is_one_after_another(limits, rules, outboxes, batches, text, deaf):
    seen = []
    for publish in (one_by_one, in_a_row, at_once):
        lines, shared = Lines(), OutboxRules()
        room = (Ready if publish is at_once else Room)(config(public(**rules), **limits))
        author = listener(room, CHANNEL, encoder=lines)
        author.session.deaf = deaf
        people = [
            author,
            listener(room, CHANNEL, encoder=lines, rules=OutboxRules(*_spelled(outboxes[0]))),
            listener(room, CHANNEL, rules=OutboxRules(*_spelled(outboxes[1]))),
            listener(room, b"public:a.*", encoder=lines, rules=OutboxRules(*_spelled(outboxes[2]))),
            listener(room, CHANNEL, encoder=lines, rules=shared),
            listener(room, CHANNEL, encoder=lines, rules=shared),
        ]
        for channel, payloads in batches:
            publish(author, channel, [payload.encode() for payload in payloads], text)
        realm = room.hub.permissions.realm(CHANNEL)
        taken = [b"".join(waiting(person)) for person in people]
        ids = [person.session.id.encode() for person in people]
        for position, each in enumerate(ids):
            taken = [data.replace(each, b"<%d>" % position) for data in taken]
        history = room.hub.histories.get(CHANNEL)
        epoch = b"" if history is None else history.epoch.encode()
        seen.append(
            (
                [data.replace(epoch, b"epoch") if epoch else data for data in taken],
                [(p.session.messages_in, p.session.messages_out, p.session.refused, p.closed) for p in people],
                [person.session.dropped for person in people],
                (realm.published, realm.delivered, realm.refused),
                (room.hub.published, room.hub.delivered),
                history and [(entry.offset, entry.data) for entry in history.entries or ()],
            )
        )
    assert seen[0] == seen[1] == seen[2]


def _spelled(rules: OutboxRules) -> tuple[Any, ...]:
    return rules.bound, rules.policy, rules.rate


def test_a_row_is_encoded_once_and_waits_as_one_chunk():
    room, lines = Room(), Lines()
    author = room.person()
    people = [listener(room, CHANNEL, encoder=lines) for _ in range(3)]
    in_a_row(author, CHANNEL, [b"one", b"two"], text=True)
    assert [waiting(person) for person in people] == [[b"one\ntwo\n"]] * 3
    assert [person.session.messages_out for person in people] == [2] * 3
    assert (lines.calls, room.hub.delivered) == (1, 6)
    in_a_row(author, CHANNEL, [b"three"], text=True)  # behind something that waits
    in_a_row(author, CHANNEL, [b"four", b"five"], text=True)
    assert [waiting(person) for person in people] == [[b"three\n", b"four\nfive\n"]] * 3
    assert [person.session.messages_out for person in people] == [5] * 3


@pytest.mark.parametrize(("text", "data"), [(True, "\xe9"), (False, b"\xff")])
def test_others_hear_each_with_its_offset(text: bool, data: str | bytes):
    room = Room(config(public(history_size=2)))
    author, other = room.person(), room.person(CHANNEL)
    payload = data.encode() if isinstance(data, str) else data
    room.hub.publish_many(author.session, CHANNEL, [payload, payload], text=text)
    assert b"".join(waiting(other)).count(b'"offset"') == 2
    page = room.hub.history(CHANNEL)
    assert page is not None
    assert [(each.data, each.offset, each.sender) for each in page.messages] == [
        (data, 1, author.session.id),
        (data, 2, author.session.id),
    ]


def test_what_may_go_out_at_once_does_and_the_rest_waits():
    room, lines, rules = Ready(), Lines(), OutboxRules()
    author = room.person()
    people = [listener(room, CHANNEL, encoder=lines, rules=rules) for _ in range(3)]
    slow = people[1]
    slow.outbox.push(b"earlier\n")
    at_once(author, CHANNEL, [b"one", b"two"], text=True)
    assert list(room.sent) == [people[0].outbox, people[2].outbox]
    assert waiting(slow) == [b"earlier\n", b"one\ntwo\n"]
    assert [person.session.messages_out for person in people] == [2, 3, 2]
    assert (lines.calls, room.hub.delivered) == (1, 6)


def test_an_outbox_that_joins_nothing_gets_them_one_by_one():
    room, lines = Room(), Lines()
    author, other = room.person(), room.person(encoder=lines)
    other.session.outbox = other.outbox = Alone(OutboxRules(), room, other)
    other.outbox.encoder = lines
    room.hub.subscribe(other.session, CHANNEL)
    in_a_row(author, CHANNEL, [b"one", b"two"], text=True)
    assert waiting(other) == [b"one\n", b"two\n"]


def test_what_a_policy_drops_is_counted_by_message():
    room, lines = Room(), Lines()
    author = room.person()
    other = listener(room, CHANNEL, encoder=lines, rules=OutboxRules(40, "drop-oldest"))
    in_a_row(author, CHANNEL, [b"x" * 4] * 3, text=False)
    in_a_row(author, CHANNEL, [b"y" * 4] * 6, text=False)
    assert waiting(other) == [b"x" * 4 + b"\n"] * 2 + [b"y" * 4 + b"\n"] * 6
    assert (other.session.dropped, other.session.messages_out) == (1, 9)


@pytest.mark.parametrize("policy", ["disconnect", "drop-oldest"])
def test_what_many_stand_on_is_encoded_once_though_none_of_them_takes_one_chunk(policy: Any):
    room, shared = Room(), Speaks()
    people = [listener(room, CHANNEL, rules=OutboxRules(10_000, policy, 1e9)) for _ in range(4)]
    for person in people:
        person.session.encoder = Others(shared, person.session)
    author = people[0]
    in_a_row(author, CHANNEL, [b"one", b"two", b"three"], text=True)
    assert shared.encoded == 3
    assert [len(waiting(person)) for person in people] == [0, 3, 3, 3]


# --- who does not hear what it said itself ----------------------------------------------------------------------------


def test_the_deaf_hear_the_others_only():
    room = Room(config(public(history_size=5)))
    deaf, other = room.person("public:a"), room.person("public:a")
    deaf.session.deaf = True
    deaf.ask(Publish(channel="public:a", data="own"))
    other.ask(Publish(channel="public:a", data="other"))
    in_a_row(deaf, b"public:a", [b"one", b"two"], text=True)
    assert deaf.said() == ["other"]
    assert [each.data for each in other.heard()] == ["one", "two"]
    assert room.hub.delivered == 1 + 2 + 2


def test_the_deaf_hear_nothing_of_their_own_through_patterns_or_later():
    room = Room(config(Namespace(**{**public(history_size=5).model_dump(), "wildcards": True})))
    deaf, other = room.person("public:a.*"), room.person("public:a.b")
    deaf.session.deaf = True
    in_a_row(deaf, CHANNEL, [b"own"], text=True)
    room.hub.publish(CHANNEL, "server")
    assert (deaf.said(), other.said()) == (["server"], ["own", "server"])
    room.hub.unsubscribe(deaf.session, b"public:a.*")
    history = room.hub.histories.get(CHANNEL)
    assert history is not None
    ok = deaf.hear(CHANNEL, recover=Position(history.epoch, 0))
    assert ok.recovered
    assert [data_of(each) for each in deaf.missed] == ["server"]


def test_who_has_room_for_a_row_gets_it_at_once_and_who_has_none_ends_at_once():
    pushes = []

    def counted(joins: bool) -> type[Outbox]:
        class Counting(Outbox):
            def push(self, *arguments: Any, **more: Any) -> bool:
                pushes.append(arguments)
                return super().push(*arguments, **more)

        Counting.joins = joins
        return Counting

    row = [b"%04d" % number for number in range(5000)]
    for joins in (True, False):
        room = Room(config(public()))
        for waits, policy, closed, most in (
            (60_000, "disconnect", None, 1),
            (60_000, "drop-oldest", None, 1),
            (99_990, "disconnect", 4008, 5),
        ):
            person = room.person(rules=OutboxRules(100_000, policy))
            person.session.outbox = person.outbox = counted(joins)(person.rules, room, person)
            person.session.encoder = Lines()
            room.hub.subscribe(person.session, CHANNEL)
            person.outbox.push(b"x" * waits)
            pushes.clear()
            in_a_row(room.person(), CHANNEL, row, True)
            assert len(pushes) <= most
            assert [code for code, _ in person.closed] == ([closed] if closed else [])
            if closed is None:
                assert person.session.messages_out == 5001
                assert b"".join(waiting(person))[waits:] == b"".join(each + b"\n" for each in row)
            room.hub.unsubscribe(person.session, CHANNEL)


# --- rows of operations -----------------------------------------------------------------------------------------------


def asked(person: Person, row: Row, *, one_by_one: bool) -> list[Event]:
    """What the answers are."""
    if one_by_one:
        for request, size in row.requests():
            person.room.hub.handle(person.session, request, size)
    else:
        person.room.hub.publish_row(person.session, row)
    return person.heard()


def row_of(data: list[Any], refs: list[Any] | None = None, *, ephemeral: bool = False) -> Row:
    return Row(CHANNEL, str, data, [b""] * len(data), refs, ephemeral=ephemeral)


@pytest.mark.parametrize("policy", ["drop-ephemeral", "drop-oldest", "disconnect"])
@pytest.mark.parametrize("namespace", [True, False])
def test_an_ephemeral_row_is_dropped_message_by_message(policy: Any, namespace: bool):
    found = []
    for alone in (True, False):
        room = Room(config(public(**({"ephemeral": True} if namespace else {}), history_size=9)))
        author, other = room.person(), listener(room, CHANNEL, encoder=Lines(), rules=OutboxRules(30, policy))
        asked(author, row_of(["a" * 9] * 2, ephemeral=not namespace), one_by_one=alone)
        other.outbox.push(b"kept here\n")  # now it is full
        answers = asked(author, row_of(["b" * 9, "c" * 9], [1, 2], ephemeral=not namespace), one_by_one=alone)
        other.outbox.push(b"kept too!\n")
        answers += asked(author, row_of(["d" * 9, "e" * 4, "f"], [3, 4, 5], ephemeral=not namespace), one_by_one=alone)
        assert room.hub.histories.get(CHANNEL) is None or not room.hub.histories.messages
        counts = (other.session.dropped, other.session.messages_out, room.hub.delivered)
        found.append((answers, b"".join(waiting(other)), counts, other.closed, other.outbox.size))
    assert found[0] == found[1]
    if policy == "drop-ephemeral":
        assert b"kept here\nkept too!\n" in found[1][1]


def test_each_answer_to_a_row_counts_those_who_got_that_message():
    for alone in (True, False):
        room = Room()
        author = room.person()
        listener(room, CHANNEL)
        tight = listener(room, CHANNEL, encoder=Lines(), rules=OutboxRules(12, "drop-oldest"))
        mute = listener(room, CHANNEL, encoder=Speaks(mute=(Message,)))
        answers = asked(author, row_of(["a", "b" * 20, "c", "d" * 30], [1, "2", 3, 4]), one_by_one=alone)
        assert answers == [
            Ok(ref=1, delivered=2),
            Ok(ref="2", delivered=1),
            Ok(ref=3, delivered=2),
            Ok(ref=4, delivered=1),
        ]
        assert waiting(tight) == [b"a\n", b"c\n"]
        assert waiting(mute) == []
        assert asked(author, Row(b"public:empty", str, ["a", "b"], [b""] * 2, [5, 6]), one_by_one=alone) == [
            Ok(ref=5, delivered=0),
            Ok(ref=6, delivered=0),
        ]


def test_who_hears_its_own_row_and_asks_for_answers_gets_each_behind_its_message():
    room = Room()
    author = room.person(CHANNEL)
    told = asked(author, row_of(["a", "b"], [1, 2]), one_by_one=False)
    assert [getattr(each, "ref", None) for each in told] == [None, 1, None, 2]


def test_whose_own_row_fills_its_outbox_publishes_no_more():
    for hears in (True, False):
        room = Room(config(public(history_size=9)))
        author = room.person(*([CHANNEL] if hears else []), rules=OutboxRules(200))
        asked_for = None if hears else [f"{number}" * 99 for number in range(3)]
        author.room.hub.publish_row(author.session, row_of(["a", "b", "c"], asked_for))
        assert [code for code, _ in author.closed] == [4008]
        assert room.hub.published == room.hub.histories.messages == 2


def test_answers_that_a_policy_drops_are_counted_each():
    for alone in (True, False):
        room = Room()
        author = room.person(encoder=ENCODERS["json"], rules=OutboxRules(5000))
        row = row_of(["a", "b", "c"], [1, 2, 3])
        if alone:
            for request, size in row.requests():
                room.hub.handle(author.session, request, size)
        else:
            room.hub.publish_row(author.session, row)
            assert len(author.outbox.chunks or ()) == 1
        author.outbox.push(b"x" * 4990)
        assert [code for code, _ in author.closed] == [4008]
        assert (author.session.dropped, author.session.messages_out) == (4, 4)


def test_a_row_is_answered_in_one_chunk_unless_something_may_part_them():
    for policy, rate, chunks in (("disconnect", 0.0, 1), ("drop-oldest", 0.0, 2), ("disconnect", 1e9, 2)):
        room = Room()
        author = room.person(encoder=ENCODERS["json"], rules=OutboxRules(10_000, policy, rate))
        room.hub.publish_row(author.session, row_of(["a", "b"], [1, 2]))
        assert author.session.messages_out == 2
        told = waiting(author)
        assert len(told) == chunks
        assert b"".join(told) == b"".join(ENCODERS["json"].encode(Ok(ref=ref, delivered=0)) for ref in (1, 2))
