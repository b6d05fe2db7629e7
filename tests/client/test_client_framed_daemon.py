"""FramedClient and a real daemon: channels, recovery across a reload, a restart and a crash, a token, an echo."""

from __future__ import annotations

import signal

import pytest
import trio

from netd.client import FramedClient, Gap, Reconnect
from netd.errors import RequestFailed
from tests.support.namespaces import HUB
from tests.support.process import NetdProcess, Systemd

PATIENCE = 20.0
TOML = """
[trace]
enabled = false

[[framed.listen]]
address = "unix:{directory}/operations.sock"

[[framed.listen]]
address = "unix:{directory}/echo.sock"
mode = "echo"

{hub}
[hub]
direct = "anyone"
clients = "anyone"
"""
SOON = Reconnect(first=0.05, longest=0.2)


@pytest.fixture
def toml(tmp_path):
    return TOML.format(directory=tmp_path, hub=HUB)


@pytest.fixture
async def systemd(tmp_path):
    stand_in = Systemd(tmp_path)
    yield stand_in
    stand_in.close()


def client_of(tmp_path, **options) -> FramedClient:
    return FramedClient(f"unix:{tmp_path}/operations.sock", **({"reconnect": SOON, "answer_timeout": 30.0} | options))


async def take(subscription, count: int) -> list:
    with trio.fail_after(PATIENCE):
        return [await anext(subscription) for _ in range(count)]


@pytest.mark.parametrize("codec", ["json", "messagepack"])
async def test_all_operations(tmp_path, toml, codec):
    async with NetdProcess(tmp_path, toml):
        alpha = client_of(tmp_path, name="alpha", codec=codec)
        async with alpha, client_of(tmp_path, name="beta", tags={"site": "lab"}) as beta:
            await alpha.hello()
            welcome = await beta.hello()
            subscription = await alpha.subscribe("public:a", presence=True)
            async with await beta.subscribe("public:a"):
                assert (await take(subscription, 1))[0].session == welcome.session
            assert (await take(subscription, 1))[0].name == "beta"
            assert await beta.publish("public:a", {"n": 1}) == 1
            await beta.publish("public:a", b"\xff")
            first, second = await take(subscription, 2)
            assert (first.data, first.from_, first.offset) == ({"n": 1}, welcome.session, 1)
            assert second.data == b"\xff"
            for whom in (welcome.session, "name:beta", "tag:site=lab"):
                assert await alpha.direct(whom, "psst") == 1
                assert (await beta.receive()).data == "psst"
            with pytest.raises(RequestFailed) as refused:
                await beta.broadcast("all")
            assert refused.value.kind == "denied"
            assert {client.name for client in await alpha.clients()} == {"alpha", "beta"}
            assert [client.name for client in await beta.presence("public:a")] == ["alpha"]
            kept = await beta.history("public:a")
            assert [message.offset for message in kept.messages] == [1, 2]
            await beta.text("echo this", confirm=True)
            assert (await beta.receive()).text == "echo this"
            assert await beta.ping() >= 0
            async with client_of(tmp_path) as late:
                recovered = await late.subscribe("public:a", recover=first_position(kept))
                assert [message.offset for message in await take(recovered, 1)] == [2]


def first_position(kept):
    from netd.wire.messages import Position

    return Position(kept.epoch, kept.messages[0].offset)


async def test_a_token_permits_what_it_says(tmp_path, toml):
    async with NetdProcess(tmp_path, toml):
        async with client_of(tmp_path) as stranger:
            with pytest.raises(RequestFailed) as refused:
                await stranger.subscribe("staff:a")
            assert refused.value.kind == "denied"
        async with client_of(tmp_path, token="of-the-boss-alone") as boss:
            subscription = await boss.subscribe("staff:a")
            await boss.publish("staff:a", "to work")
            assert (await take(subscription, 1))[0].data == "to work"
        async with client_of(tmp_path, token="wrong") as thief:
            with pytest.raises(RequestFailed):
                await thief.hello()


async def test_a_reload_disturbs_nobody_and_a_restart_loses_nothing_but_a_crash_is_told(tmp_path, toml, systemd):
    async with NetdProcess(tmp_path, toml, systemd=systemd) as netd:
        reader, writer = client_of(tmp_path), client_of(tmp_path)
        async with reader, writer:
            subscription = await reader.subscribe("public:a")
            await writer.publish("public:a", "one")
            async with netd.client() as control:
                netd.config.write_text(toml.replace("history_size = 100", "history_size = 50"))
                await control.reload(wait=20)
            await writer.publish("public:a", "two")
            assert [message.data for message in await take(subscription, 2)] == ["one", "two"]
            assert reader.telemetry().counters.reconnects == 0

            netd.signal(signal.SIGTERM)
            assert await netd.exited() == 0
            async with NetdProcess(tmp_path, toml, systemd=systemd) as again:
                with trio.fail_after(PATIENCE):
                    await writer.publish("public:a", "three")
                [message] = await take(subscription, 1)
                assert (message.data, message.offset) == ("three", 3)
                assert reader.telemetry().counters.recovered == 1
                assert reader.telemetry().counters.gaps == 0

                again.signal(signal.SIGKILL)
                await again.exited()
                async with NetdProcess(tmp_path, toml, systemd=systemd):
                    [gap] = await take(subscription, 1)
                    assert isinstance(gap, Gap)
                    with trio.fail_after(PATIENCE):
                        await writer.publish("public:a", "four")
                    [message] = await take(subscription, 1)
                    assert (message.data, message.offset, message.epoch) == ("four", 1, gap.epoch)


async def test_an_echo_with_more_under_way_than_anybody_keeps(tmp_path, toml):
    async with NetdProcess(tmp_path, toml):
        client = FramedClient(f"unix:{tmp_path}/echo.sock", codec="cbor", inbox_messages=50)

        async def send() -> None:
            for number in range(2000):
                await client.send({"n": number, "pad": b"x" * 1000})

        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(PATIENCE):
                assert [(await client.receive())["n"] for _ in range(2000)] == list(range(2000))
