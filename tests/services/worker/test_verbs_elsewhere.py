"""What workers may ask about sessions of another machine: it is done there, and the answer comes back."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

import netd
from netd.services.worker.verbs import Verbs
from netd.wire import workers as worker_wire
from netd.wire.messages import BinaryEvent, Message, TextEvent
from netd.wire.workers import (
    Answer,
    AskInfo,
    CloseSession,
    CopySession,
    CopySubscriptions,
    Hello,
    Publish,
    Send,
    SessionKnown,
    SessionOpened,
    SetToken,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from tests.backplane.lab import HUB, PATIENCE, QUICK, Node, Redis, needs_redis, node, nodes
from tests.services.worker.lab import Scripted

pytestmark = needs_redis


@pytest.fixture
async def redis(tmp_path):
    server = Redis(tmp_path)
    server.start()
    try:
        await server.ready()
        yield server
    finally:
        server.kill()


async def ask(of: Node, verb: Any) -> Any:
    """What a worker of this machine is answered."""
    answered, found = trio.Event(), []

    def tell(message: Any) -> bool:
        found.append(message)
        answered.set()
        return True

    Verbs(of.hub, cast("Any", None)).perform(verb, tell)
    with trio.fail_after(PATIENCE):
        await answered.wait()
    [message] = found
    assert isinstance(message, Answer)
    return message.value


async def test_a_session_of_another_machine_can_be_spoken_to_and_ended(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here, there = a.person(), b.person()
        assert await ask(a, Send(session=there.session.id, data="text", ref=1)) is True
        assert await ask(a, Send(session=there.session.id, data=b"\xff", ref=1)) is True
        assert await there.until(TextEvent) == TextEvent("text")
        assert await there.until(BinaryEvent) == BinaryEvent(data64=b"\xff")
        assert await ask(a, Send(session="nobody", data="text", ref=1)) is False
        assert await ask(a, Send(session="name:somebody", data="text", ref=1)) is False
        assert not here.heard()
        assert await ask(a, CloseSession(session=there.session.id, code=4000, reason="enough", ref=1)) is True
        assert there.closed == (4000, "enough")
        assert await ask(a, CloseSession(session=there.session.id, ref=1)) is False


async def test_a_session_of_another_machine_hears_what_it_is_to_hear(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        there, other = b.person(), c.person()
        id = there.session.id
        assert await ask(a, Subscribe(session=id, channel=b"kept:room", ref=1)) is True
        assert there.session.channels == {b"kept:room"}
        assert await ask(a, Subscribe(session=id, channel=b"kept:room", ref=1)) is False  # it did before
        assert await ask(a, Publish(channel=b"kept:room", data="hello", ref=1)) is None  # it is under way
        assert (await there.until(Message)).data == "hello"
        assert await ask(a, Unsubscribe(session=id, channel=b"kept:room", ref=1)) is True
        assert await ask(a, Unsubscribe(session=id, channel=b"kept:room", ref=1)) is False
        assert not there.session.channels
        assert await ask(a, Subscribe(session="nobody", channel=b"kept:room", ref=1)) is False
        assert await ask(a, Subscribe(session="name:somebody", channel=b"kept:room", ref=1)) is False
        assert not other.session.channels


async def test_a_token_reaches_a_session_of_another_machine_and_gives_what_it_permits(redis):
    tokens = {"token": [{"name": "vip", "secret": "a-secret-of-vips-only", "subscribe": ["brief:*"]}]}
    async with nodes(redis, "a", "b", hub=tokens) as (a, b):
        there = b.person()
        id = there.session.id
        assert await ask(a, SetToken(session=id, token=b"of the application", ref=1)) is True
        assert (there.session.application_token, there.session.grants.token) == (b"of the application", None)
        assert await ask(a, SetToken(session=id, token=b"a-secret-of-vips-only", ref=1)) is True
        assert there.session.grants.token == "vip"
        assert await ask(a, SetToken(session=id, ref=1)) is True
        assert there.session.application_token is None
        assert await ask(a, SetToken(session="nobody", token=b"t", ref=1)) is False


async def test_the_worker_of_that_machine_knows_the_token_before_the_next_message(redis, tmp_path):
    path = tmp_path / "worker.sock"
    settings = {
        "hub": HUB,
        "backplane": {"url": redis.url, "node": "b", **QUICK},
        "worker": {"socket": str(path), "group": None},
    }
    async with node(redis, "a") as a, netd.open(settings) as daemon:
        b = Node(daemon)
        await a.online(1)
        await b.online(1)
        worker = Scripted(await trio.open_unix_socket(path))
        await worker.say(Hello(1, "b", 1, ["session_opened", "message"]))
        await worker.next(Welcome)
        there = b.person()
        await worker.done(await worker.next(SessionOpened))
        assert await ask(a, SetToken(session=there.session.id, token=b"t", ref=1)) is True
        there.node.hub.application.message(there.session, "hello")
        assert (await worker.next(SessionKnown)).session.token == b"t"
        assert (await worker.next(worker_wire.Message)).data == "hello"
        await worker.gone()


async def test_while_redis_is_away_a_session_of_another_machine_is_one_that_is_gone(redis):
    async with nodes(redis, "a", "b") as (a, b):
        there = b.person()
        redis.kill()
        await a.offline()
        assert await ask(a, Subscribe(session=there.session.id, channel=b"brief:room", ref=1)) is False
        assert await ask(a, SetToken(session=there.session.id, token=b"t", ref=1)) is False
        assert await ask(a, CopySubscriptions(source=b"brief:one", target=b"brief:two", ref=1)) == 0


async def test_copying_a_channel_reaches_the_hearers_on_every_machine(redis):
    async with nodes(redis, "a", "b", "c") as (a, b, c):
        people = [node.person() for node in (a, b, b, c)]
        for person in people[:3]:
            await person.hear("brief:one")
        await people[0].hear("brief:two")
        assert await ask(a, CopySubscriptions(source=b"brief:one", target=b"brief:two", ref=1)) == 2
        assert [b"brief:two" in (person.session.channels or ()) for person in people] == [True, True, True, False]
        assert await ask(c, CopySubscriptions(source=b"brief:one", target=b"brief:two", ref=1)) == 0


async def test_what_another_machine_refuses_has_changed_nothing(redis):
    async with nodes(redis, "a", "b", hub={"max_subscriptions": 1}) as (a, b):
        there = b.person()
        assert await ask(a, Subscribe(session=there.session.id, channel=b"brief:one", ref=1)) is True
        assert await ask(a, Subscribe(session=there.session.id, channel=b"brief:two", ref=1)) is False
        assert there.session.channels == {b"brief:one"}


async def test_what_needs_more_than_a_number_for_an_answer_is_about_this_machine(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here, there = a.person(), b.person()
        assert await ask(a, AskInfo(session=there.session.id, ref=1)) is None
        assert await ask(a, CopySession(source=there.session.id, target=here.session.id, ref=1)) == 0
