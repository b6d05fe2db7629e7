"""What becomes of sessions that have no word for an error, when they may not do any more what they are there for."""

from __future__ import annotations

import json

import pytest
import trio
from pydantic import SecretStr

from netd.hub.config import HubConfig, Namespace, Token
from netd.services.broker.notices import Closed
from netd.wire.websocket import Close
from tests.services.broker.lab import PUBLIC, Client, serving

SECRET = "a-secret-of-some-length"
SOME = Namespace(name="some", subscribe="token", publish="token")
WIDE = Token(name="alpha", secret=SecretStr(SECRET), subscribe=["some:*"], publish=["some:*"])
GUARDED = HubConfig(namespace=[PUBLIC, SOME], token=[WIDE], application="token")
TOKENLESS = GUARDED.model_copy(update={"token": []})
CASES = [f"/ws/some:room?role=sub&token={SECRET}", f"/ws/some:room?token={SECRET}"]


async def told(client: Client) -> tuple[int, str]:
    close = await client.ended()
    return close.code, close.reason


@pytest.mark.parametrize("path", CASES)
async def test_a_plain_listener_whose_token_is_gone_is_closed_and_told_which_rule_it_was(path: str) -> None:
    async with serving(hub=GUARDED) as house:
        client = await house.client(path)
        stays = await house.client(f"/ws/public:room?token={SECRET}")
        house.hub.reconfigure(TOKENLESS)
        code, reason = await told(client)
        assert code == 1008
        assert "some" in reason
        house.hub.publish(b"public:room", "still")
        assert await stays.message() == "still"


async def test_one_that_may_still_speak_but_hears_nothing_any_more_is_told_so_too() -> None:
    loose = GUARDED.model_copy(update={"namespace": [PUBLIC, SOME.model_copy(update={"publish": "anyone"})]})
    async with serving(hub=loose) as house:
        client = await house.client(f"/ws/some:room?token={SECRET}")
        speaker = await house.client("/ws/some:room")  # which never heard anything
        house.hub.reconfigure(loose.model_copy(update={"token": []}))
        assert (await told(client))[0] == 1008
        await speaker.text("still")
        assert await speaker.close() == Close(1000, "")


async def test_those_whose_token_is_gone_are_closed_as_far_as_there_is_nothing_left_for_them() -> None:
    async with serving(hub=GUARDED) as house:
        speaker = await house.client(f"/ws/some:room?role=pub&token={SECRET}")
        app = await house.client(f"/app?token={SECRET}")
        stays = await house.client(f"/ws/public:room?role=pub&token={SECRET}")
        house.hub.reconfigure(TOKENLESS)
        for each in (speaker, app):
            assert (await told(each))[0] == 1008
        await stays.text("still")
        assert await stays.close() == Close(1000, "")


async def test_one_whose_token_expires_is_closed() -> None:
    async with serving(hub=GUARDED) as house:
        client = await house.client(CASES[0])
        speaker = await house.client(f"/ws/some:room?role=pub&token={SECRET}")
        app = await house.client(f"/app?token={SECRET}")
        stream = await house.events(f"/channels/some:room/events?token={SECRET}")
        await stream.event()
        for session in house.hub.present():
            house.hub.lose_token(session, "it has expired")
        for each in (client, speaker, app):
            assert (await told(each))[0] == 1008
        assert (await stream.event())["event"] == "problem"
        event = await stream.event()
        while event["event"] != "close":
            event = await stream.event()
        assert json.loads(event["data"])["code"] == 1008
        with pytest.raises(trio.EndOfChannel):
            await stream.event()


async def test_a_plain_speaker_that_may_speak_no_more_is_told_at_its_next_word() -> None:
    async with serving(hub=GUARDED) as house:
        speaker = await house.client(f"/ws/some:room?role=pub&token={SECRET}")
        app = await house.client(f"/app?token={SECRET}")
        mute = SOME.model_copy(update={"publish": "nobody"})
        house.hub.reconfigure(GUARDED.model_copy(update={"namespace": [PUBLIC, mute], "application": "nobody"}))
        assert not house.notices(Closed)
        for each in (speaker, app):
            await each.text("anybody?")
            code, reason = await told(each)
            assert code == 1008
            assert reason.startswith("cannot ")


async def test_a_plain_client_that_still_hears_something_stays_and_so_does_an_event_stream() -> None:
    async with serving(hub=GUARDED) as house:
        both = await house.client(f"/ws/public:room?token={SECRET}")
        stream = await house.events(f"/channels/public:room/events?channel=some:room&token={SECRET}")
        assert [(await stream.event())["event"] for _ in range(2)] == ["subscribed"] * 2
        house.hub.reconfigure(TOKENLESS)
        problem = await stream.event()
        while "channel" not in json.loads(problem["data"]):
            problem = await stream.event()
        assert problem["event"] == "problem"
        assert json.loads(problem["data"])["channel"] == "some:room"
        house.hub.publish(b"public:room", "still")
        assert await both.message() == "still"
        assert (await stream.event())["event"] == "message"
        assert not house.notices(Closed)
