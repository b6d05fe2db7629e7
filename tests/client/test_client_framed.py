"""FramedClient over sockets, plain payloads: sending, receiving, losing the connection, bounds, leaving.

Over 600 lines, and one file all the same: every case is played against the same scripted peer.
"""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing

from netd.client import FramedClient, Reconnect, connection
from netd.client.framed_wire import FramedWire
from netd.errors import DaemonUnreachable, ProtocolError
from netd.wire import handshake
from netd.wire.framing import frame
from tests.support.framedpeer import PATIENCE

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)


_AGAIN = ["backoff", "connecting", "connected"]


# --- payloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "value", "payload"),
    [
        ("raw", b"\x00\xff", b"\x00\xff"),
        ("text", "héllo", "héllo".encode()),
        ("json", {"a": [1, None]}, b'{"a":[1,null]}'),
        ("cbor", {"a": 1}, b"\xa1aa\x01"),
        ("messagepack", {"a": 1}, b"\x81\xa1a\x01"),
        ("raw", b"", b""),
    ],
)
async def test_values_go_out_and_come_in_as_the_codec_has_them(peer, codec, value, payload):
    async with FramedClient(peer.address, codec=codec) as client:
        link = await peer.accept()
        await client.send(value)
        assert await link.receive() == payload
        await link.send(payload)
        assert await client.receive() == value
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.close)
            await client.aclose()


async def test_a_codec_of_the_users_own(peer):
    class Shouting:
        name = "shouting"

        def encode(self, value: str) -> bytes:
            return value.upper().encode()

        def decode(self, payload: bytes) -> str:
            return payload.decode().lower()

    async with FramedClient(peer.address, codec=Shouting(), linger=0.01) as client:
        link = await peer.accept()
        await client.send("hi")
        await link.send(await link.receive())
        assert await client.receive() == "hi"


async def test_a_payload_that_does_not_decode_is_an_error_in_its_place(peer):
    async with FramedClient(peer.address, codec="json", linger=0.01) as client:
        link = await peer.accept()
        await link.send(b"1", b"{", b"2")
        assert await client.receive() == 1
        with pytest.raises(ProtocolError, match="cannot read json"):
            await client.receive()
        assert await client.receive() == 2
        assert client.telemetry().counters.undecodable == 1


async def test_frames_may_come_a_byte_at_a_time(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        for byte in frame(b"abc") + frame(b"") + frame(b"d" * 300):
            await link.send_raw(bytes([byte]))
        assert [await client.receive() for _ in range(3)] == [b"abc", b"", b"d" * 300]
        with pytest.raises(trio.WouldBlock):
            client.receive_nowait()


async def test_without_framing_chunks_are_payloads(peer):
    async with FramedClient(peer.address, framing="none", linger=0.01) as client:
        link = await peer.accept()
        await client.send(b"abc")
        with trio.fail_after(PATIENCE):
            assert await link.stream.receive_some(10) == b"abc"
        await link.send_raw(b"xyz")
        assert await client.receive() == b"xyz"
        with pytest.raises(ProtocolError, match="cannot use operations"):
            await client.publish("a", "b")


async def test_lower_priorities_go_first(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        # nothing is sent before the writer's turn, which comes when this task waits
        client.send_nowait(b"late", priority=200)
        client.send_nowait(b"usual")
        client.send_nowait(b"urgent", priority=0)
        assert [await link.receive() for _ in range(3)] == [b"urgent", b"usual", b"late"]


async def test_a_payload_that_is_too_long_is_refused_here(peer):
    async with FramedClient(peer.address, max_frame=10, linger=0.01) as client:
        link = await peer.accept()
        with pytest.raises(ProtocolError, match="cannot send 11 bytes: max_frame is 10"):
            await client.send(b"x" * 11)
        await client.send(b"x" * 10)
        assert await link.receive() == b"x" * 10


async def test_heartbeats_are_frames_and_those_of_the_peer_are_kept_from_the_user(peer):
    async with FramedClient(peer.address, heartbeat=0.01, linger=0.01) as client:
        link = await peer.accept()
        ping = json.loads(await link.receive())
        assert ping.keys() == {"type", "ts"}
        assert ping["type"] == "ping"
        await link.send(b'{"type":"ping","ts":1}', b'{"type":"pong","ts":1}', b'{"type":"ping","ts":1,"more":2}')
        assert await client.receive() == b'{"type":"ping","ts":1,"more":2}'


async def test_without_a_heartbeat_a_ping_is_a_payload_like_any(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        await link.send(b'{"type":"ping","ts":1}')
        assert await client.receive() == b'{"type":"ping","ts":1}'


# --- the handshake ----------------------------------------------------------------------------------------------------


async def test_a_plain_handshake_comes_first_on_every_connection(peer):
    async with FramedClient(
        peer.address, version="1.0", tags={"device": "alpha"}, reconnect=SOON, linger=0.01
    ) as client:
        await client.send(b"payload")
        for _ in range(2):
            link = await peer.accept()
            shaken = handshake.parse(await link.receive())
            assert (shaken.version, shaken.tags, shaken.signed) == ("1.0", {"device": "alpha"}, False)
            await link.close()


async def test_a_signed_one_is_new_for_every_connection(peer, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    nonces = handshake.Nonces()
    async with FramedClient(peer.address, version="1.0", signer=tmp_path / "key.pem", reconnect=SOON, linger=0.01):
        for _ in range(2):
            link = await peer.accept()
            payload = await link.receive()
            claimed = handshake.parse(payload)
            shaken = handshake.verify(payload, keys={handshake.spki(key)}, now=claimed.ts, window=60.0, nonces=nonces)
            assert shaken.signed
            await link.close()


async def test_a_key_that_is_none_is_refused_before_connecting(peer, tmp_path):
    (tmp_path / "key.pem").write_text("nonsense")
    for name in ("key.pem", "missing.pem"):
        with pytest.raises(ProtocolError, match="cannot "):
            async with FramedClient(peer.address, signer=tmp_path / name):
                pass


# --- losing the connection --------------------------------------------------------------------------------------------


async def test_the_first_connection_failing_raises(peer):
    await peer.stop()
    with pytest.raises(DaemonUnreachable, match=f"cannot connect to {peer.address}: connection refused"):
        async with FramedClient(peer.address):
            pass


async def test_unless_the_client_is_patient(peer):
    await peer.stop()
    states = []
    client = FramedClient(
        peer.address, reconnect=Reconnect(first=0.01, patient=True), on_state=states.append, linger=0.01
    )
    async with trio.open_nursery() as nursery:

        async def use() -> None:
            async with client:
                await client.send(b"hi")
                await client.flush()

        nursery.start_soon(use)
        while len(states) < 3:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await peer.open()
        link = await peer.accept()
        assert await link.receive() == b"hi"
        await link.abort()
    assert [state.name for state in states[:3]] == ["connecting", "backoff", "connecting"]
    assert states[-1].name == "closed"


async def test_patience_has_an_end_too(peer):
    await peer.stop()
    with pytest.raises(DaemonUnreachable, match="2 attempts failed, and at last: cannot connect"):
        async with FramedClient(peer.address, reconnect=Reconnect(first=0.001, patient=True, max_attempts=2)):
            pass


async def test_a_lost_connection_is_made_again_and_what_is_queued_goes_over_the_next(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        await client.send(b"one")
        assert await link.receive() == b"one"
        await peer.stop()
        states = client.states()
        await link.close()
        while (await anext(states)).name != "backoff":
            pass
        await client.send(b"two")
        await peer.open()
        link = await peer.accept()
        assert await link.receive() == b"two"
        await link.send(b"three")
        assert await client.receive() == b"three"
        counters = client.telemetry().counters
        assert (counters.connections, counters.reconnects) == (2, 1)


async def test_a_reset_in_the_middle_of_a_frame_is_a_loss_like_any(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        states = client.states()
        link = await peer.accept()
        await link.send_raw(frame(b"whole") + frame(b"half")[:6])
        assert await client.receive() == b"whole"
        link.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await link.abort()
        while (state := await anext(states)).name != "backoff":
            pass
        assert "reset" in state.reason
        link = await peer.accept()
        await link.send(b"after")
        assert await client.receive() == b"after"


async def test_a_frame_that_is_too_long_ends_the_connection_after_what_came_before(peer):
    async with FramedClient(peer.address, max_frame=10, reconnect=False) as client:
        link = await peer.accept()
        await link.send_raw(frame(b"fine") + frame(b"x" * 11))
        assert await client.receive() == b"fine"
        with pytest.raises(DaemonUnreachable, match="cannot take a frame of 11 bytes"):
            await client.receive()
        await link.ended()


async def test_silence_counts_as_a_loss_if_the_user_says_so(peer):
    # long enough for a busy machine to see the second connection before that counts as lost, too
    async with FramedClient(peer.address, idle_timeout=0.5, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        await link.ended()
        states = client.states()
        await peer.accept()
        while (await anext(states)).name != "connected":
            pass
        assert client.telemetry().counters.reconnects == 1


async def test_without_reconnect_the_peers_end_is_the_end(peer):
    async with FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        await link.send(b"1", b"2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.close)
            assert [value async for value in client] == [b"1", b"2"]
        assert client.state.final
        with pytest.raises(DaemonUnreachable, match="this client is closed"):
            await client.send(b"x")


async def test_without_reconnect_an_end_that_is_torn_is_an_error(peer):
    async with FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        await link.send_raw(frame(b"half")[:5])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.close)
            with pytest.raises(DaemonUnreachable, match="in the middle of a frame"):
                await client.receive()


async def test_attempts_in_a_row_have_an_end(peer):
    async with FramedClient(peer.address, reconnect=Reconnect(first=0.001, max_attempts=2)) as client:
        link = await peer.accept()
        await peer.stop()
        await link.abort()
        with pytest.raises(DaemonUnreachable, match="2 attempts failed"):
            await client.receive()
    await peer.open()


@pytest.mark.parametrize(("steady", "comes_back"), [(0.0, True), (1000.0, False)])
async def test_a_connection_that_stood_begins_the_series_anew(peer, steady, comes_back):
    policy = Reconnect(first=0.001, max_attempts=1, steady=steady)
    async with FramedClient(peer.address, reconnect=policy, linger=0.01) as client:
        await (await peer.accept()).abort()
        await (await peer.accept()).abort()
        if comes_back:
            await peer.accept()
        else:
            with pytest.raises(DaemonUnreachable, match="an attempt failed"):
                await client.receive()


async def test_last_words_that_lie_in_the_kernel_are_found_although_writing_fails_first(peer):
    """A daemon that closes says why; the client's own write may meet the reset before its reader is scheduled."""

    class Broken:
        """A connection that can be read and not written."""

        wake, torn, tls, unsent, heard, opened = None, False, False, False, 0.0, 0.0

        def __init__(self) -> None:
            self.written = trio.Event()
            self.said = [frame(b"last words"), b""]

        async def send(self, data: bytes) -> None:
            self.written.set()
            raise trio.BrokenResourceError

        def send_nowait(self, data: bytes) -> None:
            self.unsent = True  # left to `send`

        async def receive(self) -> bytes:
            await self.written.wait()
            await trio.testing.wait_all_tasks_blocked()  # the writer has met its end, and been left to think about it
            return self.said.pop(0)

        def close(self) -> None:
            pass

    client = FramedClient(peer.address, reconnect=False)
    client._connection = client._made()
    wire = FramedWire(Broken(), client.options, client._connection.counters)
    async with trio.open_nursery() as nursery:
        await nursery.start(client._connection.run, wire)
        client.send_nowait(b"x")
        assert [value async for value in client] == [b"last words"]


async def test_states_are_told_in_order(peer):
    async with FramedClient(peer.address, reconnect=SOON, linger=0.01) as client:
        seen = []
        states = client.states()
        link = await peer.accept()
        await link.close()
        await peer.accept()
        while len(seen) < 4:
            seen.append((await anext(states)).name)
    assert seen in (["connected", *_AGAIN], ["connecting", "connected", *_AGAIN][:4])
    assert [state.name async for state in states][-1] == "closed"


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_past_its_bound_a_send_waits_and_says_so(peer):
    async with FramedClient(peer.address, queue_bytes=100_000, linger=0.01) as client:
        link = await peer.accept()
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await client.send(b"x" * 50_000)
                sent += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.02)  # nobody reads: it is stuck by then
            telemetry = client.telemetry()
            assert telemetry.queued_bytes <= 100_000
            assert telemetry.counters.backpressure == telemetry.counters.drain + 1
            with pytest.raises(trio.WouldBlock):
                client.send_nowait(b"x")
            nursery.cancel_scope.cancel()
        with trio.fail_after(PATIENCE):
            for _ in range(sent):
                assert await link.receive() == b"x" * 50_000
            await client.flush()
        counters = client.telemetry().counters
        assert counters.backpressure == counters.drain


async def test_senders_that_are_cancelled_while_waiting_tear_nothing(peer):
    async with FramedClient(peer.address, queue_bytes=10_000, linger=0.01) as client:
        link = await peer.accept()
        sent = set()

        async def send(number: int) -> None:
            await client.send(b"%06d" % number * 1000)
            sent.add(number)

        async with trio.open_nursery() as nursery:
            for number in range(2000):
                nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked(0.02)
            nursery.cancel_scope.cancel()
        assert len(sent) < 2000
        received = set()
        with trio.fail_after(PATIENCE):
            while len(received) < len(sent):
                payload = await link.receive()
                assert payload == payload[:6] * 1000
                received.add(int(payload[:6]))
        assert received == sent


async def test_reading_pauses_while_nobody_reads_and_goes_on(peer):
    async with FramedClient(peer.address, inbox_messages=10, linger=0.01) as client:
        link = await peer.accept()
        writing = 500

        async def write() -> None:
            for _ in range(writing):
                await link.send(b"x" * 60_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked(0.02)
            telemetry = client.telemetry()
            assert 10 <= telemetry.unread_messages < 13
            assert telemetry.counters.pauses == 1
            with trio.fail_after(PATIENCE):
                for _ in range(writing):
                    assert len(await client.receive()) == 60_000


async def test_a_paused_connection_is_not_held_to_be_silent(peer):
    async with FramedClient(peer.address, inbox_messages=1, idle_timeout=0.4, reconnect=SOON, linger=0.01) as client:
        link = await peer.accept()
        await link.send(b"1", b"2")  # before it is held to be silent, on a busy machine as well
        while not client.telemetry().counters.pauses:
            await trio.testing.wait_all_tasks_blocked(0.001)
        with trio.move_on_after(0.6):
            await link.ended()
            raise AssertionError("the client hung up")
        assert client.telemetry().counters.connections == 1


async def test_whoever_only_sends_need_not_read(peer):
    async with FramedClient(peer.address, inbox_messages=1, discard=True, linger=0.01) as client:
        link = await peer.accept()
        with trio.fail_after(PATIENCE):
            for _ in range(50):
                await link.stream.send_all(frame(b"x" * 100_000))
        await client.send(b"done")
        assert await link.receive() == b"done"
        assert client.telemetry().unread_messages == 0


async def test_the_rate_holds_up_what_is_beyond_the_burst(peer):
    async with FramedClient(peer.address, rate=20_000, burst=1000, linger=0.01) as client:
        link = await peer.accept()
        started = trio.current_time()
        for _ in range(5):
            await client.send(b"x" * 996)
        for _ in range(5):
            await link.receive()
        # 5000 bytes, of which 1000 may go at once: no less than 0.2 s, whatever the machine does
        assert trio.current_time() - started >= 0.19


# --- leaving ----------------------------------------------------------------------------------------------------------


async def test_what_was_sent_arrives_although_the_peers_own_messages_were_never_read(peer):
    received = []

    async def serve() -> None:
        link = await peer.accept()
        await link.send(*[b"x" * 10_000] * 20)
        with suppress(trio.EndOfChannel):
            while True:
                received.append(await link.receive())
        await link.abort()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        async with FramedClient(peer.address, inbox_messages=1) as client:
            for _ in range(100):
                await client.send(b"y" * 10_000)
    assert received == [b"y" * 10_000] * 100


async def test_a_peer_that_does_not_read_holds_nobody_up_for_longer_than_linger(peer):
    with trio.fail_after(PATIENCE):
        async with FramedClient(peer.address, linger=0.05) as client:
            link = await peer.accept()
            for _ in range(5):
                await client.send(b"x" * 1_000_000)
    await link.abort()


async def test_what_the_user_raises_comes_out_as_it_is_and_at_once(peer):
    async def use() -> None:
        async with FramedClient(peer.address, linger=1000.0) as client:
            await peer.accept()
            await client.send(b"x")
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):  # in no group
        await use()


async def test_cancelling_ends_it_at_once(peer):
    with trio.fail_after(PATIENCE):
        with trio.CancelScope() as scope:
            async with FramedClient(peer.address, linger=1000.0) as client:
                link = await peer.accept()
                scope.cancel()
                await client.receive()
        assert scope.cancelled_caught
        await link.ended()


async def test_no_task_outlives_the_client(peer):
    before = trio.lowlevel.current_statistics().tasks_living
    async with FramedClient(peer.address, heartbeat=1.0, idle_timeout=5.0, linger=0.01):
        await peer.accept()
        assert trio.lowlevel.current_statistics().tasks_living > before
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_client_is_entered_once_and_used_inside_only(peer):
    client = FramedClient(peer.address, linger=0.01)
    with pytest.raises(ProtocolError, match="before `async with`"):
        await client.send(b"x")
    async with client:
        await peer.accept()
    with pytest.raises(ProtocolError, match="cannot enter a client twice"):
        async with client:
            pass


async def test_whoever_waits_for_an_answer_does_not_wait_for_the_writers_turn(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        client._connection.wire.link.send = None  # whoever calls it fails
        for wait in (client.receive, client.receive_all):
            for number in range(3):
                await client.send(b"%d" % number)
            with trio.CancelScope() as scope:
                scope.cancel()
                await wait()
            assert client.telemetry().queued_bytes == 0
            assert [await link.receive() for _ in range(3)] == [b"0", b"1", b"2"]
        await client.send(b"last")
        await client.flush()
        assert await link.receive() == b"last"
        del client._connection.wire.link.send


async def test_a_connection_that_breaks_as_it_is_pushed_is_a_loss_like_any(peer, monkeypatch):
    monkeypatch.setattr(connection, "LAST_WORDS", 0.0)
    async with FramedClient(peer.address, reconnect=False) as client:
        link = await peer.accept()
        client._connection.wire.link._stream.socket.shutdown(trio.socket.SHUT_WR)
        await client.send(b"x")
        with pytest.raises(DaemonUnreachable, match="broken pipe"):
            await client.receive()
        await link.close()


async def test_flush_waits_until_the_kernel_has_it(peer):
    async with FramedClient(peer.address, linger=0.01) as client:
        link = await peer.accept()
        for _ in range(10):
            await client.send(b"x" * 1000)
        await client.flush()
        assert client.telemetry().queued_bytes == 0
        assert client.telemetry().counters.bytes_out == 10_040
        assert len(await link.receive()) == 1000


async def test_one_that_stops_while_waiting_to_come_back_ends_after_linger(peer):
    with trio.fail_after(PATIENCE):
        async with FramedClient(peer.address, reconnect=Reconnect(first=1000.0), linger=0.02) as client:
            link = await peer.accept()
            states = client.states()
            await link.abort()
            while (await anext(states)).name != "backoff":
                pass
            await client.send(b"never sent")
