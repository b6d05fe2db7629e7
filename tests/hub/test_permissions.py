"""Who may do what, and the words of a refusal."""

from __future__ import annotations

import pytest

from netd.errors import Denied
from netd.hub.config import Namespace, Token
from netd.hub.permissions import Permissions, Refusal, shown, valid
from tests.hub.room import Room, config, public

SECRET = "a secret of enough characters"
CHAT = Token(name="ci", secret=SECRET, publish=["chat:*", "exact"], subscribe=["chat:lobby"], direct=True)


def refusal(room: Room, person, operation: str, channel: bytes | None = None) -> str:
    with pytest.raises(Denied) as caught:
        room.hub.allowed(person.session, operation, channel)
    return str(caught.value)


@pytest.fixture
def room() -> Room:
    return Room(
        config(
            Namespace(name="public", publish="token", subscribe="anyone"),
            Namespace(name="chat", history="nobody"),
            Namespace(name="", publish="anyone"),
            tokens=[CHAT],
            direct="token",
            broadcast="nobody",
            clients="token",
        )
    )


def test_a_refusal_names_the_rule(room: Room):
    anyone = room.person()
    assert refusal(room, anyone, "publish", b"public:a") == (
        "cannot publish to 'public:a': namespace 'public' allows publish to tokens only (hub.namespace.0.publish)"
    )
    assert refusal(room, anyone, "history", b"chat:a") == (
        "cannot read the history of 'chat:a': namespace 'chat' allows history to nobody (hub.namespace.1.history)"
    )
    assert refusal(room, anyone, "subscribe", b"secret:a") == (
        "cannot subscribe to 'secret:a': there is no namespace 'secret' (hub.namespace)"
    )
    assert refusal(room, anyone, "subscribe", b"plain") == (
        "cannot subscribe to 'plain': namespace '' allows subscribe to tokens only (hub.namespace.2.subscribe)"
    )
    assert refusal(room, anyone, "direct") == (
        "cannot send to other sessions: it is allowed to tokens only (hub.direct)"
    )
    assert refusal(room, anyone, "broadcast") == "cannot broadcast: it is allowed to nobody (hub.broadcast)"


def test_a_token_permits_what_it_lists_and_no_more(room: Room):
    person = room.person()
    person.hello(token=SECRET)
    allowed = room.hub.allowed
    allowed(person.session, "publish", b"chat:any")
    allowed(person.session, "subscribe", b"chat:lobby")
    allowed(person.session, "subscribe", b"public:a")
    allowed(person.session, "direct", None)
    allowed(person.session, "application", None)
    assert refusal(room, person, "subscribe", b"chat:lobby2") == (
        "cannot subscribe to 'chat:lobby2': token 'ci' does not permit it (hub.token.0.subscribe)"
    )
    assert refusal(room, person, "clients") == (
        "cannot list the sessions: token 'ci' does not permit it (hub.token.0.clients)"
    )
    assert "nobody" in refusal(room, person, "history", b"chat:lobby")
    assert "nobody" in refusal(room, person, "broadcast")


def test_a_token_opens_no_namespace_that_is_not_there():
    room = Room(config(public("x"), tokens=[Token(name="all", secret=SECRET, subscribe=["*"])]))
    person = room.person()
    person.hello(token=SECRET)
    assert "no namespace 'chat'" in refusal(room, person, "subscribe", b"chat:a")
    assert "no namespace ''" in refusal(room, person, "subscribe", b"plain")


def test_without_namespaces_clients_have_no_channels():
    room = Room(config(public("public")))
    room.hub.reconfigure(room.hub.config.model_copy(update={"namespace": []}))
    assert "no namespace" in refusal(room, room.person(), "subscribe", b"public:a")


def test_names_of_bytes_belong_to_a_namespace_by_their_bytes():
    permissions = Permissions(config(public("é"), public("")))
    assert permissions.realm("é:x".encode()).path == "hub.namespace.0"
    assert permissions.realm(b"\xff\x00").path == "hub.namespace.1"
    assert permissions.realm(b":x").path == "hub.namespace.1"
    assert permissions.realm(b"\xff:x").path == "hub.namespace"
    assert shown(b"a\xff'") == repr("a\\xff'")


def test_what_is_known_of_channels_is_bounded_and_right():
    permissions = Permissions(config(public("a"), public("b")))
    for number in range(10_000):
        assert permissions.realm(b"ab"[number % 2 :][:1] + b":%d" % number).name == "ab"[number % 2]
    assert len(permissions._known) <= 4096


@pytest.mark.parametrize("name", [b"", b"x" * 256])
def test_names_that_cannot_be(name: bytes):
    with pytest.raises(Refusal, match="cannot use") as caught:
        valid(name)
    assert caught.value.code == "invalid"
    assert len(str(caught.value)) < 150


def test_a_recovery_is_as_history_unless_told_otherwise():
    room = Room(
        config(
            Namespace(name="a", history="anyone"),
            Namespace(name="b", history="anyone", recover="nobody"),
            Namespace(name="c", history="nobody", recover="token"),
            tokens=[Token(name="t", secret=SECRET, history=["c:*"])],
        )
    )
    person = room.person()
    permits = room.hub.permissions.permits
    names = (b"a:x", b"b:x", b"c:x", b"d:x")
    assert [permits(person.session, "recover", name) for name in names] == [True, False, False, False]
    person.hello(token=SECRET)
    assert [permits(person.session, "recover", name) for name in names] == [True, False, True, False]
    assert all(realm.refused == 0 for realm in room.hub.permissions.realms())
