"""FramedClient's tokens: given, asked for anew at every connection, refreshed."""

from __future__ import annotations

import pytest
import trio

from netd.client import FramedClient, Reconnect
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire.messages import Error, Hello, Ok, Refresh, Welcome
from tests.support.framedpeer import PATIENCE

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)
WELCOME = Welcome("s-1", "netd", "1", expires=60.0)


def client_of(peer, **options):
    return FramedClient(peer.address, **({"reconnect": SOON, "linger": 0.01} | options))


class Source:
    """Gives "token 1", "token 2", ..."""

    def __init__(self):
        self.given = 0

    def __call__(self):
        self.given += 1
        return f"token {self.given}"

    async def slowly(self):
        await trio.lowlevel.checkpoint()
        return self()


@pytest.mark.parametrize("how", ["plain", "async"])
async def test_every_connection_shows_a_fresh_token(peer, how):
    source = Source()
    with trio.fail_after(PATIENCE):
        async with (
            client_of(peer, token=source if how == "plain" else source.slowly) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(client.hello)
            link = await peer.accept()
            assert (await link.request(Hello)).token == "token 1"
            await link.say(WELCOME)
            await link.abort()
            link = await peer.accept()
            assert (await link.request(Hello)).token == "token 2"
            await link.say(WELCOME)
            await client.aclose()
    assert "token 1" not in repr(client.options)


async def test_refresh_shows_what_it_is_given_and_keeps_it(peer):
    with trio.fail_after(PATIENCE):
        async with client_of(peer, token="old") as client, trio.open_nursery() as nursery:
            told = []

            async def refresh(token=None):
                try:
                    told.append(await client.refresh(token))
                except RequestFailed as error:
                    told.append(error.kind)

            async with trio.open_nursery() as first:
                first.start_soon(refresh, "new")
                link = await peer.accept()
                assert (await link.request(Hello)).token == "old"
                await link.say(WELCOME)
                request = await link.request(Refresh)
                assert request.token == "new"
                await link.say(Ok(ref=request.ref, expires=60.0))
            async with trio.open_nursery() as second:
                second.start_soon(refresh, "worse")
                request = await link.request(Refresh)
                await link.say(Error(ref=request.ref, code="denied", message="cannot accept the token: no"))
            assert told == [60.0, "denied"]
            await link.abort()
            link = await peer.accept()
            assert (await link.request(Hello)).token == "new"
            nursery.cancel_scope.cancel()


async def test_a_function_that_gave_none_is_not_asked_by_the_next_connection(peer):
    def broken() -> str:
        raise ZeroDivisionError

    with trio.fail_after(PATIENCE):
        async with client_of(peer, token="old") as client:
            link = await peer.accept()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.hello)
                await link.request(Hello)
                await link.say(WELCOME)
            with pytest.raises(ZeroDivisionError):
                await client.refresh(broken)
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.refresh(trio.sleep_forever)
            await link.abort()
            link = await peer.accept()
            assert (await link.request(Hello)).token == "old"


async def test_refresh_asks_the_function_again(peer):
    with trio.fail_after(PATIENCE):
        async with client_of(peer, token=Source()) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.refresh)
            link = await peer.accept()
            assert (await link.request(Hello)).token == "token 1"
            await link.say(WELCOME)
            request = await link.request(Refresh)
            assert request.token == "token 2"
            await link.say(Ok(ref=request.ref))


async def test_without_a_token_there_is_nothing_to_refresh(peer):
    with trio.fail_after(PATIENCE):
        async with client_of(peer) as client, trio.open_nursery() as nursery:

            async def refresh():
                with pytest.raises(ProtocolError, match="this client has none"):
                    await client.refresh()

            nursery.start_soon(refresh)
            link = await peer.accept()
            await link.request(Hello)
            await link.say(WELCOME)


async def test_a_function_that_gives_none_in_time_is_no_connection(peer):
    with trio.fail_after(PATIENCE):
        async with client_of(peer, token=trio.sleep_forever, answer_timeout=0.05) as client:
            with pytest.raises(DaemonUnreachable, match="cannot get a token: none within"):
                await client.hello()
