"""What workers may ask about sessions of another machine: its messages and its end go there, the rest does not."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from netd.services.worker.verbs import Verbs
from netd.wire.messages import BinaryEvent, TextEvent
from netd.wire.workers import (
    Answer,
    AskInfo,
    CloseSession,
    CopySession,
    Send,
    SetToken,
    Subscribe,
    Unsubscribe,
)
from tests.backplane.lab import PATIENCE, Node, Redis, needs_redis, nodes

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


async def ask(node: Node, verb: Any) -> Any:
    """What a worker of this machine is answered."""
    answered, found = trio.Event(), []

    def tell(message: Any) -> bool:
        found.append(message)
        answered.set()
        return True

    Verbs(node.hub, cast("Any", None)).perform(verb, tell)
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


async def test_what_is_changed_of_a_session_its_own_machine_changes(redis):
    async with nodes(redis, "a", "b") as (a, b):
        here, there = a.person(), b.person()
        id = there.session.id
        for verb in (
            Subscribe(session=id, channel=b"brief:room", ref=1),
            Unsubscribe(session=id, channel=b"brief:room", ref=1),
            SetToken(session=id, token=b"t", ref=1),
        ):
            assert await ask(a, verb) is False
        assert await ask(a, AskInfo(session=id, ref=1)) is None
        assert await ask(a, CopySession(source=id, target=here.session.id, ref=1)) == 0
        assert not there.session.channels
        assert there.session.application_token is None
