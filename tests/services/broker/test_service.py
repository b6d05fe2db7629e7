"""The broker's shell: who may come, reloads with live sessions, drains."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
import trio

from netd.hub.config import HubConfig, Token
from netd.runtime.config import RestartPolicy
from netd.section import Tls
from netd.services.broker.config import BrokerConfig
from netd.services.broker.notices import Opened, Rejected
from netd.services.broker.preparation import check
from tests.services.broker.lab import (
    OPEN,
    PATIENCE,
    PUBLIC,
    Client,
    House,
    eventually,
    listening,
    proxied,
    serving,
    trusting,
)
from tests.services.trace.pems import FIRST_CERTIFICATE, SECOND_CERTIFICATE, SECOND_KEY

if TYPE_CHECKING:
    from netd.wire.websocket import Close


async def refused(house: House, *, before: bytes = b"") -> bytes:
    """What somebody hears who is not let in."""
    stream, _ = await house.connect()
    heard = b""
    with trio.fail_after(PATIENCE):
        try:
            await stream.send_all(before + b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            while data := await stream.receive_some(65536):
                heard += data
        except trio.BrokenResourceError:
            pass
    return heard


# --- who may come ----------------------------------------------------------------------------------------------------


async def test_limits_on_connections() -> None:
    async with serving(max_connections=3, connections_per_address=2) as house:
        await house.client()
        await house.client("/ws/public:room")
        assert await refused(house) == b""
        assert [notice.why for notice in house.notices(Rejected)] == ["address"]
        await house.live(connections_per_address=10)
        await house.client()
        assert await refused(house) == b""
        assert house.counted("netd_broker_rejected_total", why="clients") == 1
        assert house.service.snapshot().rejected == {"address": 1, "clients": 1}


async def test_a_place_comes_back_when_a_request_is_over() -> None:
    async with serving(connections_per_address=1) as house:
        for _ in range(3):
            stream, _ = await house.connect()
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            with trio.fail_after(PATIENCE):
                heard = b""
                while data := await stream.receive_some(65536):
                    heard += data
            assert heard.startswith(b"HTTP/1.1 200")
            await stream.aclose()
            await eventually(lambda: house.exchange.places.total == 0)
        await house.client()


async def test_who_a_proxy_says_it_is_counts() -> None:
    async with serving(listen={"proxy_protocol": ["127.0.0.0/8"]}, connections_per_address=1) as house:
        one = await house.client(before=proxied("203.0.113.9"))
        await one.hello()
        await house.client(before=proxied("203.0.113.10"))
        assert await refused(house, before=proxied("203.0.113.9")) == b""
        assert [view.address for view in house.service.connections()] == ["203.0.113.9:4711", "203.0.113.10:4711"]
        assert await refused(house, before=b"no header ......") == b""
        await eventually(lambda: len(house.notices(Rejected)) == 2)
        assert [notice.why for notice in house.notices(Rejected)] == ["address", "proxy"]
        assert house.exchange.places.total == 2


async def test_one_that_says_nothing_is_let_go() -> None:
    from netd.services.broker.config import BrokerHttp

    async with serving(http=BrokerHttp(head_timeout=0.1)) as house:
        stream, _ = await house.connect()
        with trio.fail_after(PATIENCE):
            while await stream.receive_some(65536):
                pass
        await eventually(lambda: house.exchange.places.total == 0)


async def test_one_that_does_not_finish_its_tls_is_let_go(tls: Tls) -> None:
    async with serving(listen={"tls": tls}, handshake_timeout=0.1, arriving=1) as house:
        stream, _ = await house.connect()
        with trio.fail_after(PATIENCE):
            assert await stream.receive_some(65536) == b""
        assert [notice.why for notice in house.notices(Rejected)] == ["timeout"]
        plain, _ = await house.connect()
        await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
        await eventually(lambda: house.counted("netd_broker_rejected_total", why="tls") == 1)


async def test_opened_and_metrics_tell_of_sessions() -> None:
    async with serving() as house:
        await house.client("/ws/public:room")
        await house.events()
        await eventually(lambda: len(house.exchange.connections) == 2)
        assert {notice.mode for notice in house.notices(Opened)} == {"channel", "events"}
        assert house.counted("netd_broker_connections", mode="channel") == 1
        assert house.counted("netd_broker_connections", mode="events") == 1
        assert house.counted("netd_broker_accepted_total") == 2


# --- reload ----------------------------------------------------------------------------------------------------------


async def test_sessions_outlive_a_generation_and_a_change_of_its_listeners() -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        stream = await house.events()
        await stream.event()
        config = house.service.config
        number = house.unit.snapshot().generation
        assert await house.settle(config.model_copy(update={"listen": [*config.listen, listening()]})) == "running"
        assert house.unit.snapshot().generation > number
        other = await house.client("/ws/public:room", 1)
        await other.text("hello")
        assert await client.message() == "hello"
        assert (await stream.event())["event"] == "message"
        assert await house.settle(config) == "running"
        assert (await other.ended()).code == 1001
        house.hub.publish(b"public:room", "still here")
        assert await client.message() == "still here"
        assert (await stream.event())["event"] == "message"


async def test_a_certificate_and_a_namespace_and_a_token_change_under_thousands_of_sessions(tls: Tls) -> None:
    many = 600
    token = Token(name="one", secret="s" * 32, subscribe=["secret:*"])
    secret = PUBLIC.model_copy(update={"name": "secret", "subscribe": "token"})
    hub = OPEN.model_copy(update={"namespace": [PUBLIC, secret], "token": [token]})
    async with serving(
        listening(), listening(tls=tls), hub=hub, max_connections=10_000, connections_per_address=10_000
    ) as house:
        clients: list[Client] = []
        for number in range(many):
            if number % 20 == 0:
                clients.append(await house.client("/ws/public:room?role=sub", 1, tls=trusting(FIRST_CERTIFICATE)))
            else:
                path = "/ws/secret:room?role=sub" if number % 2 else "/ws/public:room?role=sub"
                clients.append(await house.client(path, headers=[f"Authorization: Bearer {'s' * 32}"]))
        tls.certificate.write_text(SECOND_CERTIFICATE)
        tls.key.write_text(SECOND_KEY)
        house.hub.reconfigure(
            HubConfig.model_validate(
                {**hub.model_dump(), "namespace": [{**PUBLIC.model_dump(), "rate": 100.0}, secret.model_dump()]}
            )
        )
        await house.live(ping_interval=60.0)
        config = house.service.config
        assert await house.settle(config.model_copy(update={"deflate": True})) == "running"
        assert len(house.exchange.connections) == many
        house.hub.publish(b"public:room", "public")
        house.hub.publish(b"secret:room", "secret")
        for number, client in enumerate(clients):
            assert await client.message() == ("secret" if number % 2 else "public")
        with pytest.raises((ssl.SSLError, trio.BrokenResourceError)):
            await house.client(number=1, tls=trusting(FIRST_CERTIFICATE))
        await house.client(number=1, tls=trusting(SECOND_CERTIFICATE))


async def test_a_replacement_that_cannot_be_prepared_disturbs_nobody(tls: Tls) -> None:
    async with serving() as house:
        client = await house.client("/ws/public:room")
        broken = Tls(certificate=tls.key, key=tls.key)
        config = BrokerConfig(listen=[listening(tls=broken)])
        assert [problem.path for problem in check(config)] == ["listen.0.tls"]
        assert await house.settle(config) == "kept"
        house.hub.publish(b"public:room", "still here")
        assert await client.message() == "still here"


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_stop_tells_everybody_when_to_come_back() -> None:
    policy = RestartPolicy(drain=5.0)
    async with serving(policy=policy) as house:
        gateway = house.exchange
        plain = [await house.client("/ws/public:room") for _ in range(50)]
        full = await (await house.client()).hello()
        stream = await house.events()
        await stream.event()
        waiting, _ = await house.connect()  # in HTTP, without a request
        ends: list[Close] = []

        async def end(client: Client) -> None:
            ends.append(await client.ended())

        async with trio.open_nursery() as nursery:
            for client in plain:
                nursery.start_soon(end, client)

            async def hear() -> None:
                last = await full.hear("close")
                assert last["code"] == 1001
                assert "retry_after" in last
                await full.ended()

            async def listen() -> None:
                event = await stream.event()
                assert event["event"] == "close"
                assert int(event["retry"]) >= 1000  # a browser tries so often, also while nobody listens
                with pytest.raises(trio.EndOfChannel):
                    await stream.event()

            nursery.start_soon(hear)
            nursery.start_soon(listen)
            assert await house.settle(None) == "stopped"
        assert {close.code for close in ends} == {1001}
        assert any("come back in" in close.reason for close in ends)
        assert await waiting.receive_some(1) == b""
        assert gateway.places.total == 0


async def test_one_that_does_not_read_does_not_hold_a_stop_up() -> None:
    policy = RestartPolicy(drain=1.0)
    async with serving(policy=policy, send_buffer=4096) as house:
        await house.client("/ws/public:room?role=sub", buffer=4096)
        for _ in range(100):
            house.hub.publish(b"public:room", bytes(20_000))
        assert await house.settle(None) == "stopped"


async def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"max_message"):
        BrokerConfig(max_message=5 * 1024 * 1024)
    with pytest.raises(ValueError, match="pattern"):
        BrokerConfig(application="app")
    for path in ("/ws", "/ws/a", "/channels/a", "/channels/a/b", "/sessions/a", "/healthz", "/netd.js"):
        with pytest.raises(ValueError, match="the broker's own"):
            BrokerConfig(application=path)
    assert BrokerConfig(application="/").application == "/"
