"""Why a connection is gone, for whoever used it: what the peer did, and what it may have wanted."""

from __future__ import annotations

import re

import pytest
import trio

from netd.client import FramedClient, Reconnect
from netd.errors import DaemonUnreachable
from tests.support.framedpeer import FramedPeer

SOON = Reconnect(first=0.001, longest=0.001)


async def closed(client: FramedClient) -> str:
    """The reason of the client's end."""
    async for state in client.states():
        if state.final:
            return state.reason
    raise AssertionError


async def test_a_peer_that_hangs_up_without_a_word_is_asked_about_tls_and_handshake():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        await link.abort()
        why = (
            "the peer ended the connection before it said anything; does it want TLS (tls=True, --tls), or a handshake"
        )
        assert why in await closed(client)
        with pytest.raises(DaemonUnreachable, match=f"cannot send to .*: this client is closed: {re.escape(why)}"):
            await client.send(b"x")


async def test_one_that_has_spoken_wants_nothing():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        await link.send(b"hi")
        assert await client.receive() == b"hi"
        await link.abort()
        assert await closed(client) == "the peer ended the connection"


async def test_a_client_that_closed_itself_gives_no_reason():
    async with FramedPeer() as peer:
        async with FramedClient(peer.address, linger=0.01) as client:
            await peer.accept()
        with pytest.raises(DaemonUnreachable, match=r"this client is closed$"):
            await client.send(b"x")


async def test_who_does_not_speak_operations_is_not_tried_again():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=SOON) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, b"no event")
            with pytest.raises(DaemonUnreachable, match=r"does not speak them.*is its mode operations"):
                await client.hello()
        assert client.telemetry().counters.reconnects == 0


async def test_who_has_spoken_them_is():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.hello)
            await link.welcome()
        await link.abort()
        other = await peer.accept()  # something else listens there, for a while
        await other.send(b"no event")
        again = await peer.accept()
        await again.welcome("s-2")
        await client.hello()
        assert client.session_id == "s-2"


async def test_a_peer_that_hangs_up_on_the_first_hello_is_not_tried_again():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=SOON) as client:
        link = await peer.accept()

        async def hang_up() -> None:
            await link.receive()
            await link.abort()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up)
            with pytest.raises(DaemonUnreachable, match=r"^cannot use operations with .*before it said.*want TLS"):
                await client.hello()
        assert client.state.final
        assert client.telemetry().counters.reconnects == 0


async def test_a_patient_client_tries_it_again():
    patient = Reconnect(first=0.001, longest=0.001, patient=True)
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=patient) as client:

        async def refuse_once() -> None:
            link = await peer.accept()
            await link.receive()
            await link.abort()
            await (await peer.accept()).welcome("s-2")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_once)
            assert (await client.hello()).session == "s-2"


async def test_who_answers_in_http_is_no_framed_listener():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        await link.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        assert "it speaks HTTP: is this the address of a framed listener?" in await closed(client)


async def test_who_answers_a_hello_in_http_is_not_tried_again():
    async with FramedPeer() as peer, FramedClient(peer.address, reconnect=SOON) as client:

        async def answer() -> None:
            link = await peer.accept()
            await link.receive()
            await link.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(DaemonUnreachable, match=r"^cannot use operations with .*it speaks HTTP: is this"):
                await client.hello()
        assert client.telemetry().counters.reconnects == 0
