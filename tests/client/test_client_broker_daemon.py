"""BrokerClient and a real daemon: operations, recovery after resets, silence, restart and crash, tokens, verdicts."""

from __future__ import annotations

import signal
import time

import pytest
import trio

from netd.client import BrokerClient, FramedClient, Gap, Reconnect, SyncBrokerClient, session
from netd.client.broker_plain import PlainSocket
from netd.client.session import loss_of
from netd.errors import NetdError, RequestFailed
from netd.wire.messages import Broadcast, CloseCode, Direct, Joined, Left, TextEvent
from tests.support.namespaces import HUB
from tests.support.process import NetdProcess, Systemd
from tests.support.relay import Relay
from tests.support.signed import SECRET, issue

PATIENCE = 10.0
TOML = """
[trace]
enabled = false

[[framed.listen]]
address = "unix:{directory}/operations.sock"

[[broker.listen]]
address = "127.0.0.1:{port}"

[broker]
ping_interval = {ping}
ping_timeout = 1.0

{hub}
[hub]
direct = "anyone"
clients = "anyone"
broadcast = "anyone"
{more}
"""
SOON = Reconnect(first=0.05, longest=0.2)


def toml(tmp_path, *, port=0, ping=25.0, more="") -> str:
    return TOML.format(directory=tmp_path, port=port, ping=ping, more=more, hub=HUB)


async def port_of(netd) -> int:
    async with netd.client() as control:
        status = await control.broker()
    return int(status["listeners"][0]["address"].rpartition(":")[2])


def client_of(port, **options) -> BrokerClient:
    return BrokerClient(f"ws://127.0.0.1:{port}", **({"reconnect": SOON, "answer_timeout": 30.0} | options))


async def take(subscription, count: int) -> list:
    with trio.fail_after(PATIENCE):
        return [await anext(subscription) for _ in range(count)]


async def test_one_daemon_for_everything_that_harms_nobody(tmp_path, monkeypatch):
    async with NetdProcess(tmp_path, toml(tmp_path)) as netd:
        port = await port_of(netd)
        for format in ("json", "messagepack"):
            await all_operations(port, format)
        await framed_and_broker(tmp_path, port)
        await a_reset_loses_nothing(port)
        await refusals(port)
        await refused_channels(port)
        await a_reload_disturbs_nobody(netd, tmp_path, port)
        await a_service_that_was_stopped_is_come_back_to(netd, port, monkeypatch)
        await verdicts(netd, port)
        await trio.to_thread.run_sync(without_trio, port)


async def all_operations(port, format):
    async with (
        client_of(port, name="alpha", format=format) as alpha,
        client_of(port, name="beta", tags={"site": "lab"}, format=format) as beta,
    ):
        assert (await alpha.hello()).server == "netd"
        channel = f"public:{format}"
        subscription = await alpha.subscribe(channel, presence=True)
        async with await beta.subscribe(channel):
            assert await take(subscription, 1) == [Joined(session=beta.session_id, name="beta", channel=channel)]
            assert {each.name for each in await alpha.presence(channel)} == {"alpha", "beta"}
            for data in ("text", b"\x00\xff", {"json": [1, None, True]}, "ü" * 20_000):
                assert await beta.publish(channel, data) == 2
                (heard,) = await take(subscription, 1)
                assert (heard.data, heard.from_) == (data, beta.session_id)
        assert isinstance((await take(subscription, 1))[0], Left)
        assert len((await beta.history(channel)).messages) == 4
        assert {each.transport for each in await alpha.clients()} == {"websocket"}
        assert await beta.direct("name:alpha", "psst") == 1
        assert await beta.direct("tag:site=lab", "me") == 1
        assert await beta.broadcast("all") >= 1
        await alpha.text("echo?")
        with trio.fail_after(PATIENCE):
            seen = [await alpha.receive() for _ in range(3)]
        assert [type(each) for each in seen] == [Direct, Broadcast, TextEvent]
        assert seen[2].text == "echo?"
        assert 0 < await alpha.ping() < PATIENCE
        with pytest.raises(RequestFailed, match=r"hub\.namespace\.1\.publish"):
            await alpha.publish("staff:a", "no")


async def framed_and_broker(tmp_path, port):
    """What one transport says, the other hears."""
    async with (
        client_of(port) as client,
        FramedClient(f"unix:{tmp_path}/operations.sock") as framed,
        await client.subscribe("public:both") as heard,
    ):
        await framed.publish("public:both", "from a frame")
        assert [each.data for each in await take(heard, 1)] == ["from a frame"]


async def a_reset_loses_nothing(port):
    async with Relay(port) as relay, client_of(relay.port) as client, client_of(port) as other:
        heard = await client.subscribe("public:reset")
        before = client.session_id
        for number in range(30):
            await other.publish("public:reset", number)
            if number % 10 == 5:
                relay.reset()
        assert [each.data for each in await take(heard, 30)] == list(range(30))
        assert client.session_id == before  # it was given back
        counters = client.telemetry().counters
        assert counters.gaps == 0
        assert counters.reconnects >= 1


async def refusals(port):
    async def entering(**options) -> NetdError:
        with pytest.raises(NetdError) as caught:
            async with client_of(port, **options):
                pass
        return caught.value

    for place in ("hello", "header"):
        error = await entering(token="of-nobody", token_in=place)
        assert error.kind == "denied"
        assert "token" in str(error)
        async with (
            client_of(port, token="of-the-boss-alone", token_in=place) as boss,
            await boss.subscribe("staff:x") as heard,
        ):
            await boss.publish("staff:x", "memo")
            assert [each.data for each in await take(heard, 1)] == ["memo"]
    with pytest.raises(RequestFailed):
        async with BrokerClient(f"ws://127.0.0.1:{port}/nowhere/at/all"):
            pass


async def refused_channels(port):
    """A plain channel is refused before the upgrade, by the rule."""
    with pytest.raises(RequestFailed, match=r"403: .*hub\.namespace\.1\.publish") as caught:
        async with PlainSocket(f"ws://127.0.0.1:{port}/ws/staff:a"):
            pass
    assert (caught.value.kind, caught.value.status) == ("denied", 403)
    async with PlainSocket(f"ws://127.0.0.1:{port}/ws/staff:a?echo=1", token="of-the-boss-alone") as plain:
        await plain.send(b"to work")
        with trio.fail_after(PATIENCE):
            assert await plain.receive() == "to work"


async def a_reload_disturbs_nobody(netd, tmp_path, port):
    text = toml(tmp_path, port=port, ping=24.0).replace("history_size = 100", "history_size = 90")
    async with client_of(port) as client, netd.client() as control:
        heard = await client.subscribe("public:reload")
        await client.publish("public:reload", 1)
        netd.config.write_text(text)
        await control.reload(wait=PATIENCE)
        await client.publish("public:reload", 2)
        assert [each.data for each in await take(heard, 2)] == [1, 2]
        counters = client.telemetry().counters
        assert (counters.connections, counters.gaps) == (1, 0)


async def a_service_that_was_stopped_is_come_back_to(netd, port, monkeypatch):
    """It drains: everybody is told when to come back, and finds what was said meanwhile."""
    states, said = [], []

    def noted(close):
        said.append(close)
        return loss_of(close)

    monkeypatch.setattr(session, "loss_of", noted)
    async with client_of(port, on_state=states.append) as client, netd.client() as control:
        heard = await client.subscribe("public:drain")
        await client.publish("public:drain", 1)
        before = client.session_id
        await control.service_stop("broker", wait=PATIENCE)
        await control.service_start("broker", wait=PATIENCE)
        await control.channel_publish("public:drain", 2)
        assert [each.data for each in await take(heard, 2)] == [1, 2]
        assert client.session_id == before
        counters = client.telemetry().counters
        assert (counters.recovered, counters.gaps) == (1, 0)
    (farewell,) = said
    assert farewell.code == CloseCode.GOING_AWAY
    assert farewell.retry_after is not None
    lost = next(state for state in states if state.name == "backoff")
    assert farewell.retry_after <= lost.seconds <= farewell.retry_after + SOON.first


async def verdicts(netd, port):
    async with client_of(port) as client, netd.client() as control:
        await control.session_kick(client.session_id, reason="go home")
        with trio.fail_after(PATIENCE), pytest.raises(RequestFailed, match=r"4010\): go home"):
            await client.receive()


def without_trio(port):
    with SyncBrokerClient(f"ws://127.0.0.1:{port}", name="script") as client:
        assert client.hello().server == "netd"
        with client.subscribe("public:sync") as heard:
            assert client.publish("public:sync", "hi") == 1
            assert heard.receive(timeout=PATIENCE).data == "hi"


async def test_a_half_open_connection_is_noticed_and_nothing_is_lost(tmp_path):
    async with NetdProcess(tmp_path, toml(tmp_path, ping=0.2)) as netd:
        port = await port_of(netd)
        async with Relay(port) as relay, client_of(relay.port) as client, client_of(port) as other:
            heard = await client.subscribe("public:a")
            await other.publish("public:a", 1)
            await take(heard, 1)
            relay.hold()
            await other.publish("public:a", 2)
            assert [each.data for each in await take(heard, 1)] == [2]
            counters = client.telemetry().counters
            assert (counters.reconnects, counters.gaps) == (1, 0)
            assert relay.taken == 2


@pytest.fixture
async def systemd(tmp_path):
    stand_in = Systemd(tmp_path)
    yield stand_in
    stand_in.close()


async def test_a_restart_loses_nothing_and_a_crash_is_exactly_one_gap(tmp_path, systemd):
    """What is in memory outlasts a restart, and no crash."""
    async with NetdProcess(tmp_path, toml(tmp_path), systemd=systemd) as netd:
        port = await port_of(netd)
        text = toml(tmp_path, port=port)
        async with client_of(port) as client:
            heard = await client.subscribe("public:a")
            states = client.states()
            await client.publish("public:a", 1)
            assert [each.data for each in await take(heard, 1)] == [1]
            netd.signal(signal.SIGTERM)
            with trio.fail_after(PATIENCE):
                while (state := await anext(states)).name != "backoff":
                    pass
            assert "going-away (1001)" in state.reason
            await netd.exited()
            async with NetdProcess(tmp_path, text, systemd=systemd) as again:
                await client.publish("public:a", 2)
                assert [each.data for each in await take(heard, 1)] == [2]
                assert client.telemetry().counters.gaps == 0
                again.signal(signal.SIGKILL)
                await again.exited()
            async with NetdProcess(tmp_path, text, systemd=systemd):
                assert isinstance((await take(heard, 1))[0], Gap)
                await client.publish("public:a", 3)
                assert [each.data for each in await take(heard, 1)] == [3]
                assert client.telemetry().counters.gaps == 1


async def test_a_signed_token_is_refreshed_before_it_expires_and_revoked_for_good(tmp_path):
    given: list[str] = []

    def fresh() -> str:
        rights = {"subscribe": ["staff:*"], "publish": ["staff:*"]}
        given.append(issue(SECRET, "HS256", sub="ann", exp=time.time() + 3, netd=rights))
        return given[-1]

    key = f'\n[[hub.key]]\nname = "shop"\nalgorithm = "HS256"\nsecret = "{SECRET}"\n'
    async with NetdProcess(tmp_path, toml(tmp_path, more=key)) as netd:
        port = await port_of(netd)
        async with client_of(port, token=fresh) as client, await client.subscribe("staff:a") as heard:
            with trio.fail_after(PATIENCE):
                while len(given) < 2:  # the one it came with has expired soon after
                    await client.ping()
                    await trio.sleep(0.05)
            await client.publish("staff:a", "still here")
            assert [each.data for each in await take(heard, 1)] == ["still here"]
            async with netd.client() as control:
                await control.token_revoke(sub="ann")
            with trio.fail_after(PATIENCE), pytest.raises(RequestFailed):
                await anext(heard)
            assert client.state.name == "closed"  # it does not come back
