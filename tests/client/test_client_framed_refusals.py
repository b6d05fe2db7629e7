"""What a daemon refuses reaches whoever asked: at once, with the reason, and in the place where it is waited for."""

from __future__ import annotations

import pytest
import trio

from netd.client import FramedClient, Reconnect
from netd.errors import ProtocolError, RequestFailed
from netd.wire import messages
from netd.wire.framing import FrameDecoder, FrameLimits, frame
from tests.support.framedpeer import FramedPeer
from tests.support.process import NetdProcess

PATIENCE = 20.0
TOML = """
[trace]
enabled = false
[[framed.listen]]
address = "unix:{directory}/operations.sock"
[[framed.listen]]
address = "unix:{directory}/strict.sock"
handshake = "required"
version = "7"
[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
"""


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda client: client.publish("", 1), "cannot publish to '': .*length >= 1"),
        (lambda client: client.publish("public:a", {1: 2}), "a key that is not text"),
        (lambda client: client.publish("public:a", float("nan")), "NaN"),
        (lambda client: client.publish("public:a", "x", priority=999), "<= 255"),
        (lambda client: client.publish("public:a", "x", priority=999, confirm=False), "<= 255"),
        (lambda client: client.direct(None, "x"), "cannot send to None: Expected `str`"),
        (lambda client: client.history("public:a", limit=-1), ">= 0"),
        (lambda client: client.subscribe("x" * 300), "length <= 255"),
    ],
)
async def test_what_the_daemon_could_not_read_is_not_sent(ask, why):
    async with FramedPeer() as peer, FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.hello)
            await link.welcome()
        with pytest.raises(ProtocolError, match=why) as refused:
            await ask(client)
        assert refused.value.origin == "local"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.ping)
            ping = await link.request(messages.Ping)  # nothing came before it
            await link.say(messages.Pong(ping.ts, ref=ping.ref))


async def test_a_request_that_cannot_be_read_is_answered_with_its_reference(tmp_path):
    async with NetdProcess(tmp_path, TOML.format(directory=tmp_path)):
        stream = await trio.open_unix_socket(str(tmp_path / "operations.sock"))
        async with stream:
            await stream.send_all(frame(b'{"type":"publish","channel":"public:q","ref":3}') + frame(b'{"ref":[]}'))
            decoder, events = FrameDecoder(FrameLimits()), []
            with trio.fail_after(PATIENCE):
                while len(events) < 2:
                    for payload in decoder.receive(await stream.receive_some()):
                        events.append(messages.decode_event(payload, "json"))
    assert [(type(event), event.code, event.ref) for event in events] == [
        (messages.Error, "invalid", 3),
        (messages.Error, "invalid", None),
    ]


async def test_a_close_before_the_first_message_says_why(tmp_path):
    client = FramedClient(f"unix:{tmp_path}/strict.sock", reconnect=Reconnect(first=0.05))
    async with NetdProcess(tmp_path, TOML.format(directory=tmp_path)), client:
        with trio.fail_after(PATIENCE), pytest.raises(RequestFailed, match=r"policy \(1008\): .*handshake"):
            await client.hello()


async def test_a_subscription_that_is_taken_away_ends_with_the_reason(tmp_path):
    toml = TOML.format(directory=tmp_path)
    client = FramedClient(f"unix:{tmp_path}/operations.sock")
    async with NetdProcess(tmp_path, toml) as netd, netd.client() as control, client:
        subscription = await client.subscribe("public:a")
        await client.publish("public:a", "still heard")
        netd.config.write_text(toml.replace('subscribe = "anyone"', 'subscribe = "nobody"'))
        await control.reload(wait=10)
        with trio.fail_after(PATIENCE):
            assert (await anext(subscription)).data == "still heard"
            with pytest.raises(RequestFailed, match="subscribe to nobody") as refused:
                await anext(subscription)
        assert refused.value.kind == "denied"

        # and once it may again, it can
        netd.config.write_text(toml)
        await control.reload(wait=10)
        subscription = await client.subscribe("public:a")
        await client.publish("public:a", "heard again")
        with trio.fail_after(PATIENCE):
            assert (await anext(subscription)).data == "heard again"
