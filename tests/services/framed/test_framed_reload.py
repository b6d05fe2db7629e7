"""Reload with live sessions, stop, crash: who stays, who is told, who is cut off."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio

from netd.hub.config import HubConfig, Token
from netd.runtime.config import RestartPolicy
from netd.services.framed.config import FramedConfig
from netd.services.framed.notices import Closed
from tests.services.framed.lab import OPEN, PATIENCE, Client, echoes, eventually, listening, serving, trusting
from tests.services.trace.pems import FIRST_CERTIFICATE, SECOND_CERTIFICATE, SECOND_KEY

if TYPE_CHECKING:
    from netd.section import Tls

ECHO = listening(mode="echo")


def last_of(payloads: list[bytes]) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(payloads[-1])
    return message


async def test_a_replacement_takes_over_the_sessions_with_its_own_limits() -> None:
    async with serving(ECHO, listening()) as house:
        echo, full = await house.client(0), await (await house.client(1)).hello(name="anna")
        await full.ask("subscribe", channel="public:room")
        generation, ports = house.unit.snapshot().generation, (house.port(0), house.port(1))
        config = FramedConfig(listen=[ECHO, listening(), listening(mode="echo")], max_frame=1000)
        assert await house.settle(config) == "running"
        assert house.unit.snapshot().generation == generation + 1
        assert (house.port(0), house.port(1)) == ports
        assert await echoes(echo)
        house.hub.publish(b"public:room", "still here")
        assert (await full.hear("message"))["data"] == "still here"
        assert {view.id for view in house.service.connections()} >= {full.id}
        assert await echoes(await house.client(2))
        # the new limits are in force for who was there
        await echo.send(b"x" * 1001)
        assert await echo.rest() == []
        await eventually(lambda: [notice.code for notice in house.notices(Closed)] == [1009])


async def test_the_removal_of_a_listener_ends_its_sessions_and_no_others() -> None:
    async with serving(ECHO, listening()) as house:
        echo, full = await house.client(0), await (await house.client(1)).hello()
        assert await house.settle(FramedConfig(listen=[ECHO])) == "running"
        last = last_of(await full.rest())
        assert (last["type"], last["code"]) == ("close", 1001)
        assert 0 <= last["retry_after"] <= 10
        assert await echoes(echo)
        await eventually(lambda: len(house.exchange.connections) == 1)
        assert house.exchange.places.total == 1


async def test_sessions_keep_the_mode_they_came_with() -> None:
    async with serving(ECHO) as house:
        old = await house.client()
        plain = listening(mode="channel", channel="public:room", handshake="none", codec="text")
        assert await house.settle(FramedConfig(listen=[plain])) == "running"
        new, other = await house.client(), await house.client()
        await new.send(b"hi")
        assert await other.next() == b"hi"
        assert await echoes(old, b"echo")


async def test_a_replacement_that_cannot_start_changes_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with serving(ECHO) as house:
            client = await house.client()
            bad = FramedConfig(listen=[ECHO, listening(address=f"127.0.0.1:{port}")], max_frame=100)
            assert await house.settle(bad) == "kept"
            assert await echoes(client, b"x" * 1000)
            assert await echoes(await house.client())


async def test_an_arrival_that_a_replacement_overtakes_is_let_in_all_the_same() -> None:
    required = listening(mode="echo", handshake="required")
    async with serving(required) as house:
        client = await house.client(settled=False)
        await client.raw(b"\0\0\0\x15")
        await eventually(lambda: house.service.snapshot().arriving == 1)
        assert await house.settle(FramedConfig(listen=[required, ECHO], max_frame=1000)) == "running"
        await client.raw(b'{"type": "handshake"}')
        assert await echoes(client)
        await client.send(b"x" * 1001)
        assert await client.rest() == []


@pytest.mark.parametrize("stricter", [{"handshake": "required"}, {"handshake": "none", "mode": "echo"}])
async def test_an_arrival_is_not_let_in_under_rules_that_are_gone(tls: Tls, stricter: dict[str, Any]) -> None:
    before = listening(handshake="none", tls=tls)
    async with serving(before) as house:
        client = await house.client(settled=False)
        await eventually(lambda: house.service.snapshot().arriving == 1)
        after = before.model_copy(update=stricter)
        assert await house.settle(FramedConfig(listen=[after])) == "running"
        secured = trio.SSLStream(client.stream, trusting(FIRST_CERTIFICATE), server_hostname="127.0.0.1")
        with trio.fail_after(PATIENCE):
            await secured.do_handshake()
        client.stream = secured
        # in the words of the listener that it came to
        last = last_of(await client.rest())
        assert (last["type"], last["code"]) == ("close", 1013)
        assert 0 < last["retry_after"] < 1
        await eventually(lambda: house.exchange.places.total == 0)
        assert (house.hub.opened, house.exchange.rejections["changed"]) == (0, 1)


async def test_an_arrival_is_let_in_if_only_limits_have_changed(tls: Tls) -> None:
    before = listening(mode="echo", handshake="none", tls=tls)
    async with serving(before) as house:
        client = await house.client(settled=False)
        await eventually(lambda: house.service.snapshot().arriving == 1)
        await house.live(listen=[before.model_copy(update={"proxy_protocol": []})], max_frame=1000)
        assert await house.settle(FramedConfig(listen=[before, ECHO], max_frame=1000)) == "running"
        client.stream = trio.SSLStream(client.stream, trusting(FIRST_CERTIFICATE), server_hostname="127.0.0.1")
        assert await echoes(client)


async def test_an_arrival_whose_listener_was_removed_is_sent_away() -> None:
    required = listening(handshake="required")
    async with serving(ECHO, required) as house:
        client = await house.client(1, settled=False)
        await client.raw(b"\0\0\0\x15")
        await eventually(lambda: house.service.snapshot().arriving == 1)
        assert await house.settle(FramedConfig(listen=[ECHO])) == "running"
        await client.raw(b'{"type": "handshake"}')
        last = last_of(await client.rest())
        assert (last["code"], last["reason"]) == (1001, "netd is going away")
        await eventually(lambda: house.exchange.places.total == 0)


async def test_a_stop_tells_everybody_and_ends_unfinished_arrivals() -> None:
    async with serving(listening(), ECHO, listening(mode="echo", handshake="required")) as house:
        exchange = house.exchange
        full, echo, arriving = await house.client(0), await house.client(1), await house.client(2, settled=False)
        await full.hello()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.settle, None)
            last = last_of(await full.rest())
            assert (last["code"], last["reason"]) == (1001, "netd is going away")
            assert await echo.over() == b""
            assert await arriving.over() == b""
        assert (exchange.places.total, len(exchange.connections), house.hub.sessions) == (0, 0, {})
        assert await house.settle(FramedConfig(listen=[ECHO])) == "running"
        assert await echoes(await house.client())


@pytest.mark.parametrize("mode", ["operations", "echo"])
async def test_one_that_does_not_read_does_not_delay_a_stop(mode: str) -> None:
    policy = RestartPolicy(drain=2.0)
    async with serving(listening(mode=mode), policy=policy, limits={"send_buffer": 4096}) as house:
        deaf = await house.client(buffer=2048)
        if mode == "operations":
            await deaf.hello()
            house.hub.direct(deaf.id, "x" * 2_000_000)
        else:
            with trio.move_on_after(0.2):
                await deaf.send(b"x" * 3_000_000)
        begun = trio.current_time()
        assert await house.settle(None) == "stopped"
        assert trio.current_time() - begun < 2.0


async def test_if_the_generation_that_owns_them_crashes_sessions_end() -> None:
    async with serving(listening(), policy=RestartPolicy(backoff_initial=0.05)) as house:
        client = await (await house.client()).hello()

        def broken() -> None:
            del exchange.look
            raise RuntimeError("a bug of ours")

        exchange = house.exchange
        exchange.look = broken
        await eventually(lambda: house.unit.snapshot().restarts > 0)
        assert last_of(await client.rest())["code"] == 1001
        await eventually(lambda: house.unit.snapshot().state == "running" and house.unit.service is not None)
        await (await house.client()).hello()


# --- many at once ---

MANY = int(os.environ.get("NETD_TEST_SESSIONS", "300"))
"""5000 was run by hand: NETD_TEST_SESSIONS=5000 (needs that many descriptors twice)."""


async def test_many_sessions_a_reload_of_limits_tokens_and_certificate_and_none_is_disconnected(tls: Tls) -> None:
    secured = listening(tls=tls)
    first = Token(name="app", secret="a-secret-of-sixteen", publish=["private:*"])
    hub = HubConfig(**{**dict(OPEN), "token": [first], "namespace": [*OPEN.namespace, {"name": "private"}]})
    limits = {"max_connections": 2 * MANY, "connections_per_address": 2 * MANY, "arriving": MANY}
    async with serving(listening(), secured, hub=hub, limits=limits) as house:
        inside = [await (await house.client(1, tls=trusting(FIRST_CERTIFICATE))).hello() for _ in range(5)]
        plain: list[Client] = []

        async def come(count: int) -> None:
            for _ in range(count):
                client = await house.client(0, settled=False)
                await client.hello(token="a-secret-of-sixteen")
                plain.append(client)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(come, MANY // 10)
        clients = [*plain, *inside]
        assert (await plain[0].ask("publish", channel="private:a", data=1))["type"] == "ok"

        tls.certificate.write_text(SECOND_CERTIFICATE)
        tls.key.write_text(SECOND_KEY)
        house.hub.reconfigure(hub.model_copy(update={"token": [first.model_copy(update={"publish": []})]}))
        config = house.service.config
        generation = house.unit.snapshot().generation
        assert await house.settle(config.model_copy(update={"max_frame": 200})) == "running"
        assert house.unit.snapshot().generation == generation
        # and once more with a new generation
        grown = FramedConfig(listen=[*config.listen, ECHO]).model_copy(update={**limits, "max_frame": 100})
        assert await house.settle(grown) == "running"
        assert house.unit.snapshot().generation == generation + 1

        assert len(house.exchange.connections) == len(clients)
        assert house.notices(Closed) == []
        refused = 0

        async def try_it(some: list[Client]) -> None:
            nonlocal refused
            for client in some:
                assert (await client.ask("ping", ts=1))["type"] == "pong"
                if client in inside:
                    continue
                assert (await client.ask("publish", channel="private:a", data=1))["code"] == "denied"
                await client.raw((101).to_bytes(4, "big"))
                last = last_of(await client.rest())
                refused += last["code"] == 1009

        async with trio.open_nursery() as nursery:
            for at in range(10):
                nursery.start_soon(try_it, clients[at::10])
        assert refused == len(plain)
        new = await house.client(1, tls=trusting(SECOND_CERTIFICATE))
        assert (await new.hello()).id


async def test_many_are_told_within_the_time_there_is() -> None:
    policy = RestartPolicy(drain=5.0)
    async with serving(listening(), policy=policy) as house:
        clients = [await house.client(settled=False) for _ in range(200)]
        await eventually(lambda: len(house.exchange.connections) == 200)
        codes: list[int] = []

        async def wait(client: Client) -> None:
            codes.append(last_of(await client.rest())["code"])

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(wait, client)
            with trio.fail_after(PATIENCE):
                assert await house.settle(None) == "stopped"
        assert codes == [1001] * 200
