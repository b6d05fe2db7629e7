"""Mode worker: payloads go to the application and come back from it as payloads."""

from __future__ import annotations

import pytest

from netd.hub.seams import Echo, application_event
from netd.wire.framing import frame
from tests.services.framed.lab import listening, serving


class Shouts(Echo):
    """An application that answers in capitals."""

    def __init__(self) -> None:
        self.heard: list[str | bytes] = []

    def message(self, session, data):
        self.heard.append(data)
        session.send(application_event(data.upper()))


@pytest.mark.parametrize(("codec", "what"), [("auto", b"hello"), ("raw", b"hello"), ("text", "hello")])
async def test_payloads_are_the_applications_and_its_words_payloads(codec, what):
    async with serving(mode="worker", codec=codec) as house:
        house.hub.application = application = Shouts()
        client = await house.client()
        await client.send(b"hello", b"again")
        assert [await client.next() for _ in range(2)] == [b"HELLO", b"AGAIN"]
        assert application.heard[0] == what


async def test_without_an_application_they_come_back():
    async with serving(mode="worker") as house:
        client = await house.client()
        await client.send(b"\x00\xff", b"")
        assert [await client.next() for _ in range(2)] == [b"\x00\xff", b""]


async def test_operations_speak_to_the_same_application():
    async with serving(listening(mode="worker"), listening()) as house:
        house.hub.application = application = Shouts()
        client = await house.client(1)
        await client.say("text", text="hi")
        assert (await client.hear())["text"] == "HI"
        await client.say("binary", data64="aGk=")
        assert (await client.hear())["data64"] == "SEk="
        assert application.heard == ["hi", b"hi"]


async def test_what_is_no_text_ends_a_client_of_text():
    async with serving(mode="worker", codec="text") as house:
        client = await house.client()
        await client.send(b"good", b"\xff")
        assert await client.rest() == [b"good"]


async def test_without_framing_chunks_are_payloads():
    async with serving(mode="worker", framing="none", handshake="none") as house:
        house.hub.application = Shouts()
        client = await house.client()
        await client.raw(b"plain")
        assert await client.bytes(5) == b"PLAIN"
        assert frame(b"x") == b"\x00\x00\x00\x01x"
