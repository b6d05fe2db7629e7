"""Sessions with signed tokens: hello, refresh, expiry, revocation, and reloads with other keys."""

from __future__ import annotations

import pytest

from netd.errors import Denied, NetdError, TooBusy
from netd.hub.config import HubConfig, Key, Namespace, Token
from netd.hub.expiry import Expiries
from netd.hub.grants import ANONYMOUS
from netd.hub.outbox import OutboxRules
from netd.hub.revocations import Revocations
from netd.hub.tokens import Tokens
from netd.wire.messages import AskHistory, Error, Hello, Ok, Publish, Refresh, Subscribe
from tests.hub.room import Room, config
from tests.support.signed import ED, NOW, OTHER_ED, RSA, SECRET, issue, public

ED_KEY = Key(name="ed", algorithm="EdDSA", secret=public(ED))
HS_KEY = Key(name="hs", algorithm="HS256", secret=SECRET)
RS_KEY = Key(name="rs", algorithm="RS256", secret=public(RSA))
STATIC = "a static token's secret"
CHAT = Namespace(name="chat")
NETD = {"subscribe": ["chat:*"], "publish": ["chat:*"], "tags": {"team": "a"}}


def settings(*keys, **more):
    tokens = [Token(name="static", secret=STATIC, subscribe=["chat:*"])]
    return config(CHAT, tokens=tokens, key=list(keys) or [ED_KEY], **more)


@pytest.fixture
def room():
    return Room(settings())


def denied(events):
    return [event.message for event in events if isinstance(event, Error) and event.code == "denied"]


# --- hello ------------------------------------------------------------------------------------------------------------


def test_hello_gives_permissions_tags_and_a_name(room):
    alice = room.person()
    assert alice.hello(token=issue(netd=NETD)).expires == 60
    assert (alice.session.token, alice.session.name, dict(alice.session.tags)) == ("ed:alice", "alice", {"team": "a"})
    alice.hear("chat:a")
    assert room.hub.find("name:alice") == [alice.session]
    bob = room.person()
    bob.hello(token=issue(netd=NETD), name="bob")
    assert bob.session.name == "bob"
    assert room.person().hello(token=STATIC).expires is None


def test_a_refusal_names_the_claim(room):
    alice = room.person()
    alice.hello(token=issue(netd={"subscribe": ["chat:a"]}))
    (said,) = denied(alice.ask(Publish(channel="chat:a", data="x", ref=1)))
    assert "token 'ed:alice' does not permit it (its claim netd or hub.key.0.publish)" in said


def test_a_bad_token_leaves_the_session_as_it_was(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD))
    for bad in (issue(OTHER_ED), issue(exp=NOW), "a.b.c"):
        assert len(denied(alice.ask(Hello(version=1, token=bad, ref=1)))) == 1
        assert len(denied(alice.ask(Refresh(token=bad, ref=2)))) == 1
    assert alice.session.token == "ed:alice"


@pytest.mark.parametrize("request_", [Hello(version=1, token="x", ref=1), Refresh(token="x", ref=1)])
def test_tokens_are_looked_at_ten_times_a_second(room, request_):
    alice = room.person()
    codes = [alice.ask(request_)[0].code for _ in range(12)]
    assert codes == ["denied"] * 10 + ["rate"] * 2
    (still,) = alice.ask(Hello(version=1, ref=1))[:1]
    assert still.session == alice.session.id
    room.now += 0.1
    assert [alice.ask(request_)[0].code for _ in range(2)] == ["denied", "rate"]
    assert denied(room.person().ask(request_))


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_a_session_whose_token_expires_goes_on_without(room):
    alice, bob = room.person(), room.person()
    alice.hello(token=issue(netd=NETD))
    bob.hello(token=issue(exp=NOW + 90, netd=NETD))
    alice.hear("chat:a")
    assert room.hub.expire() == 60
    room.now += 59.9
    assert room.hub.expire() == pytest.approx(0.1)
    assert alice.heard() == []
    room.now += 0.1
    assert room.hub.expire() == pytest.approx(30)
    first, second = denied(alice.heard())
    assert "token 'ed:alice': it has expired" in first
    assert second == "cannot subscribe to 'chat:a': token 'ed:alice': it has expired (hub.namespace.0.subscribe)"
    (said,) = denied(alice.ask(AskHistory(channel="chat:a", ref=1)))
    assert said.endswith("token 'ed:alice': it has expired (hub.namespace.0.history)")
    assert (alice.closed, alice.session.token, dict(alice.session.tags), alice.session.channels) == ([], None, {}, None)
    assert room.hub.publish(b"chat:a", "x") == 0
    assert bob.session.token == "ed:alice"
    room.now += 30
    assert room.hub.expire() is None
    assert bob.session.token is None


def test_no_request_is_done_with_a_token_that_has_expired(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD))
    room.now += 60
    said = denied(alice.ask(Publish(channel="chat:a", data="x", ref=1)))
    assert len(said) == 2
    assert "expired" in said[0]
    assert room.hub.expire() is None
    assert alice.heard() == []


def test_what_ended_or_was_refreshed_does_not_expire(room):
    called = []
    room.hub.on_sooner = lambda: called.append(1)
    alice, bob = room.person(), room.person()
    alice.hello(token=issue(netd=NETD))
    bob.hello(token=issue(netd=NETD))
    assert called == [1]
    bob.leave()
    (ok,) = alice.ask(Refresh(token=issue(exp=NOW + 600, netd=NETD), ref=1))
    assert ok == Ok(ref=1, expires=600)
    room.now += 60
    assert room.hub.expire() == 540
    assert alice.session.token == "ed:alice"


def test_many_expire_a_few_at_a_time_and_the_heap_is_bounded(room):
    people = [room.person() for _ in range(20)]
    for number, person in enumerate(people * 20):
        person.hello(token=issue(exp=NOW + 60 + number))
        room.now += 0.01
    assert len(room.hub.expiries) <= 2 * 20 + 64
    room.now += 1000
    assert room.hub.expire(most=8) == 0
    assert sum(person.session.token is None for person in people) <= 8
    for _ in range(30):
        room.hub.expire(most=8)
    assert not any(person.session.token for person in people)
    assert len(room.hub.expiries) == 0


def test_one_who_cannot_be_told_that_it_expired_ends_and_its_request_is_not_done(room):
    alice = room.person(rules=OutboxRules(bound=600))
    alice.hello(token=issue(netd=NETD))
    alice.hear("chat:a")
    lost = []
    room.hub.on_lost.append(lambda session, channel, why: lost.append(channel))
    alice.outbox.push(b"x" * 550)  # it reads nothing
    room.now += 60
    room.hub.handle(alice.session, Hello(version=1, name="ghost", tags={"team": "b"}))
    assert [code for code, _ in alice.closed] == [4008]
    assert lost == [None]
    assert (room.hub.sessions, room.hub.heard, room.hub._targets) == ({}, {}, {})


def test_one_who_cannot_be_told_what_it_lost_is_not_told_the_rest(room):
    alice = room.person(rules=OutboxRules(bound=600))
    alice.hello(token=issue(netd=NETD))
    lost = []
    room.hub.on_lost.append(lambda session, channel, why: lost.append(channel))
    for channel in ("chat:a", "chat:b", "chat:c"):
        alice.hear(channel)
    alice.outbox.push(b"x" * 580)
    room.hub.revoke_subscriptions(alice.session)
    assert lost == []  # nothing is lost yet
    alice.session.tag(grants=ANONYMOUS)
    room.hub.revoke_subscriptions(alice.session)
    assert [code for code, _ in alice.closed] == [4008]
    assert lost == [b"chat:a"]
    assert room.hub.permissions.realm(b"chat:a").refused == 1


def test_no_sessions_no_moments():
    assert Expiries({}).next() == float("inf")


# --- refresh ----------------------------------------------------------------------------------------------------------


def test_refresh_keeps_what_is_still_allowed_and_ends_the_rest(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD))
    alice.hear("chat:a")
    alice.hear("chat:b")
    answers = alice.ask(
        Refresh(token=issue(exp=NOW + 99, netd={"subscribe": ["chat:a"], "tags": {"team": "b"}}), ref="r")
    )
    assert answers[0] == Ok(ref="r", expires=99)
    (said,) = denied(answers)
    assert "chat:b" in said
    assert alice.session.channels == {b"chat:a"}
    assert room.hub.find("tag:team=b") == [alice.session]
    assert room.hub.find("tag:team=a") == []


def test_a_subscription_with_wildcards_is_held_to_what_the_token_covers_now():
    room = Room(settings().model_copy(update={"namespace": [Namespace(name="chat", wildcards=True)]}))
    alice, bob = room.person(), room.person()
    alice.hello(token=issue(netd={"subscribe": ["chat:a.*"]}))
    bob.hello(token=issue(netd={"subscribe": ["chat:*"]}))
    for person in (alice, bob):
        person.hear("chat:a.>")
    (said,) = denied(alice.ask(Subscribe(channel="chat:*.b", ref=1)))
    assert "does not permit all that it could match (its claim netd or hub.key.0.subscribe)" in said
    (_, error) = bob.ask(Refresh(token=issue(exp=NOW + 90, netd={"subscribe": ["chat:b*"]}), ref=2))
    assert (error.channel, bob.session.channels) == ("chat:a.>", None)
    room.now += 60
    room.hub.expire()
    assert len(denied(alice.heard())) == 2
    assert (alice.session.channels, alice.session.patterns, room.hub.patterns()) == (None, 0, [])


def test_refresh_is_for_the_same_subject(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD))
    (said,) = denied(alice.ask(Refresh(token=issue(sub="bob"), ref=1)))
    assert "somebody else (sub)" in said
    (said,) = denied(alice.ask(Refresh(token=STATIC, ref=1)))
    assert "somebody else (sub)" in said
    nobody = room.person()
    assert nobody.ask(Refresh(token=issue(sub="bob"), ref=1)) == [Ok(ref=1, expires=60)]
    assert nobody.session.token == "ed:bob"


def test_an_expired_session_may_refresh(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD))
    room.now += 61
    room.hub.expire()
    alice.heard()
    assert alice.ask(Refresh(token=issue(exp=room.now + 5, netd=NETD), ref=1)) == [Ok(ref=1, expires=5)]
    alice.hear("chat:a")


def test_too_many_tags_are_refused(room):
    alice = room.person()
    alice.hello(tags={str(number): "x" for number in range(30)})
    tags = {f"t{number}": "x" for number in range(3)}
    (error,) = alice.ask(Refresh(token=issue(netd={"tags": tags}), ref=1))
    assert (error.code, alice.session.token) == ("invalid", None)


# --- revocation -------------------------------------------------------------------------------------------------------


def test_revoking_ends_sessions_and_is_remembered(room):
    one, two, other = room.person(), room.person(), room.person()
    one.hello(token=issue(jti="1", iat=NOW - 5))
    two.hello(token=issue(jti="2", iat=NOW - 5))
    other.hello(token=issue(jti="1", sub="x" * 128), name="other")
    static = room.person()
    static.hello(token=STATIC)
    assert room.hub.revoke("jti", "2", 100)[1] == 1
    assert two.closed == [(4010, "its token was revoked")]
    assert two.session.resume is None
    assert room.hub.revoke("sub", "alice", 100)[1] == 1
    assert (len(one.closed), other.closed, static.closed) == (1, [], [])
    late = room.person()
    assert "revoked (sub)" in denied(late.ask(Hello(version=1, token=issue(iat=NOW), ref=1)))[0]
    assert "revoked (sub)" in denied(late.ask(Hello(version=1, token=issue(), ref=1)))[0]
    room.now += 2
    late.hello(token=issue(iat=NOW + 1))
    assert "revoked (jti)" in denied(late.ask(Refresh(token=issue(iat=NOW + 1, jti="2"), ref=1)))[0]
    room.now += 100
    room.hub.sweep()
    assert len(room.hub.revocations) == 0


def test_revocations_are_bounded_and_none_is_forgotten_for_another():
    known = Revocations(2)
    known.add("jti", "a", NOW, 10)
    known.add("jti", "b", NOW, 20)
    with pytest.raises(TooBusy, match=r"2 revocations already \(hub.max_revocations\)"):
        known.add("sub", "a", NOW, 10)
    assert known.add("jti", "b", NOW + 1, 1).until == NOW + 20
    assert known.add("sub", "a", NOW + 10, 5).until == NOW + 15
    assert [each.value for each in known.all()] == ["a", "b"]


def test_revocations_outlive_a_restart():
    known, again = Revocations(5), Revocations(1)
    known.add("jti", "a", NOW, 10)
    known.add("sub", "é", NOW, 10)
    again.load(known.dump())
    assert again.all() == known.all()
    for wrong in (b"", b"{}", b'[{"kind":"x","value":"a","since":1,"until":2}]', b"[" * 5000):
        with pytest.raises(NetdError, match="cannot read the revocations"):
            again.load(wrong)
    assert again.all() == known.all()


def test_a_stay_begins_with_what_its_token_permits_then_whatever_it_did_when_it_was_shown(room):
    hub = room.hub
    netd = {**NETD, "tags": {"team": "a"}}
    grants = hub.resolve(issue(jti="7", netd=netd))
    meant, late, kept = (room.person(open=False, grants=grants) for _ in range(3))
    hub.open(meant.session)
    assert hub.revoke("jti", "7", 60)[1] == 1
    hub.open(late.session)  # its handshake was on the way
    assert (late.session.token, dict(late.session.tags), hub.find("tag:team=a")) == (None, {}, [])
    (why,) = denied(late.ask(Subscribe(channel="chat:a", ref=1)))
    assert "token 'ed:alice': it is valid no more (hub.namespace.0.subscribe)" in why
    room.hub.revocations.sweep(NOW + 61)
    hub.reconfigure(settings(RS_KEY))
    hub.open(kept.session)
    assert kept.session.token is None


# --- reload -----------------------------------------------------------------------------------------------------------


def test_three_keys_and_a_rotation_disconnect_nobody():
    room = Room(settings(ED_KEY, HS_KEY, RS_KEY))
    people = {}
    for name, key, algorithm in (("ed", ED, "EdDSA"), ("hs", SECRET, "HS256"), ("rs", RSA, "RS256")):
        people[name] = room.person()
        people[name].hello(token=issue(key, algorithm, sub=name, netd=NETD))
        people[name].hear("chat:a")
    fresh = Key(name="fresh", algorithm="EdDSA", secret=public(OTHER_ED))
    renamed = RS_KEY.model_copy(update={"name": "rs2", "max_age": 0.0, "leeway": 10.0})
    room.hub.reconfigure(settings(fresh, ED_KEY, renamed))
    assert [person.session.token for person in people.values()] == ["ed:ed", None, "rs2:rs"]
    assert [person.closed for person in people.values()] == [[], [], []]
    assert [person.session.channels for person in people.values()] == [{b"chat:a"}, None, {b"chat:a"}]
    lost, ended = denied(people["hs"].heard())
    assert lost.startswith("cannot go on with the token 'hs:hs'")
    assert "'chat:a'" in ended
    assert people["ed"].heard() == people["rs"].heard() == []
    room.now += 60
    room.hub.expire()
    assert [person.session.token for person in people.values()] == [None, None, "rs2:rs"]
    room.now += 10
    room.hub.expire()
    assert people["rs"].session.token is None
    room.person().hello(token=issue(OTHER_ED, exp=room.now + 1))


def test_rules_that_a_token_no_longer_meets_take_it_away(room):
    alice = room.person()
    alice.hello(token=issue(netd=NETD, aud=None))
    room.hub.reconfigure(settings(ED_KEY.model_copy(update={"audience": "netd"})))
    assert alice.session.token is None
    with pytest.raises(Denied):
        room.hub.resolve(issue(netd=NETD))


def test_a_hub_without_keys_knows_no_signed_tokens():
    with pytest.raises(Denied, match=r"none of those configured"):
        Tokens(HubConfig()).resolve(issue(), NOW)
