"""SyncFramedClient: the same without Trio, from ordinary threads, and what Ctrl-C does to it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading

import pytest
import trio

from netd.client import Gap, Reconnect, SyncFramedClient
from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed
from netd.wire.messages import Direct, Error, Message, Ok, Ping, Pong, Position, Publish, Unsubscribe
from tests.support.framedpeer import PATIENCE, FramedPeer
from tests.support.served import served as peer_served

SOON = Reconnect(first=0.01, longest=0.02, steady=0.0)


def served(script):
    """Run `script(peer)` on a Trio loop in a thread; yields the address."""
    return peer_served(FramedPeer(), script)


def test_plain_payloads():
    async def echo(peer):
        link = await peer.accept()
        for _ in range(3):
            await link.send(await link.receive())
        await link.close()

    with served(echo) as address, SyncFramedClient(address, codec="json", reconnect=False) as client:
        for number in range(3):
            client.send({"n": number})
        client.flush()
        assert client.receive(timeout=PATIENCE) == {"n": 0}
        assert list(client) == [{"n": 1}, {"n": 2}]
        with pytest.raises(EOFError):
            client.receive()


def test_operations_and_a_loop_over_a_subscription():
    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=0)
        await link.say(*(Message("public:a", data=number, offset=number, epoch="e") for number in range(1, 4)))
        request = await link.request(Publish)
        await link.say(Ok(ref=request.ref, delivered=1), Direct("s-2", "psst"))
        request = await link.request(Ping)
        await link.say(Pong(request.ts, ref=request.ref))
        request = await link.request(Unsubscribe)
        await link.say(Ok(ref=request.ref))
        request = await link.request(Publish)
        await link.say(Error(ref=request.ref, code="denied", message="cannot publish: no"))
        await link.ended()

    with served(serve) as address, SyncFramedClient(address, linger=0.01) as client:
        with client.subscribe("public:a") as subscription:
            seen = []
            for message in subscription:
                seen.append((message.data, subscription.position.offset))
                if len(seen) == 3:
                    break
            assert seen == [(1, 1), (2, 2), (3, 3)]
            assert client.publish("public:a", "hi") == 1
            assert client.receive(timeout=PATIENCE).data == "psst"
            assert client.ping() >= 0
            with pytest.raises(TimeoutError, match=r"nothing came within 0\.01 s"):
                subscription.receive(timeout=0.01)
        assert list(subscription) == []
        with pytest.raises(RequestFailed, match="cannot publish: no"):
            client.publish("public:a", "hi")
        assert client.telemetry().counters.messages_in >= 8
        assert (client.session_id, client.state.name) == ("s-1", "connected")


def test_it_comes_back_and_recovers_while_the_script_is_busy():
    came_back = threading.Event()

    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=1)
        await link.close()
        link = await peer.accept()
        await link.welcome("s-2")
        asked = await link.confirm("public:a", epoch="f", offset=0, recovered=False)
        assert asked.recover == Position("e", 1)
        await link.say(Message("public:a", data="later", offset=1, epoch="f"))
        came_back.set()
        await link.ended()

    with served(serve) as address, SyncFramedClient(address, reconnect=SOON, linger=0.01) as client:
        subscription = client.subscribe("public:a")
        assert came_back.wait(PATIENCE)
        assert subscription.receive(PATIENCE) == Gap("public:a", "f")
        assert subscription.position is None
        assert subscription.receive(PATIENCE).data == "later"
        assert subscription.position == Position("f", 1)


def test_a_server_that_is_not_there_and_wrong_use():
    async def nothing(peer):
        await trio.lowlevel.checkpoint()

    with served(nothing) as address:
        pass
    client = SyncFramedClient(address)
    with pytest.raises(DaemonUnreachable, match="connection refused"), client:
        pass
    with pytest.raises(ProtocolError, match="cannot enter a client twice"), client:
        pass
    with pytest.raises(DaemonUnreachable, match="cannot use this client"):
        SyncFramedClient(address).send(b"x")
    assert not [thread for thread in threading.enumerate() if thread.name == "netd-client"]


def test_on_state_that_calls_the_client_is_told_so_rather_than_waiting_for_itself():
    refusals, names = [], []

    def on_state(state):
        names.append((state.name, client.state.name))
        for call in (lambda: client.send(b"x"), client.telemetry, lambda: client.__exit__(None)):
            with pytest.raises(ProtocolError, match="from within on_state") as caught:
                call()
            refusals.append(caught.value.origin)

    async def serve(peer):
        link = await peer.accept()
        assert await link.receive() == b"after"
        await link.close()

    with served(serve) as address:
        client = SyncFramedClient(address, reconnect=False, on_state=on_state)
        with client:
            client.send(b"after")
            assert list(client) == []
    assert names[1:] == [("connected", "connected"), ("closed", "closed")]
    assert set(refusals) == {"local"}


def test_calls_from_other_threads_end_when_the_client_does():
    async def serve(peer):
        link = await peer.accept()
        await link.ended()

    outcomes: queue.Queue[BaseException | None] = queue.Queue()
    with served(serve) as address:
        with SyncFramedClient(address, linger=0.01) as client:

            def receive() -> None:
                try:
                    client.receive()
                except (EOFError, DaemonUnreachable) as error:
                    outcomes.put(error)

            threads = [threading.Thread(target=receive) for _ in range(3)]
            for thread in threads:
                thread.start()
        assert all(outcomes.get(timeout=PATIENCE) is not None for _ in threads)
        for thread in threads:
            thread.join(PATIENCE)


class Interrupt(Exception):
    pass


def test_an_interrupt_ends_the_wait_and_loses_nothing():
    subscribed, go_on = threading.Event(), threading.Event()

    async def serve(peer):
        link = await peer.accept()
        await link.welcome()
        await link.confirm("public:a", epoch="e", offset=0)
        await trio.to_thread.run_sync(subscribed.wait)
        os.kill(os.getpid(), signal.SIGUSR1)  # whether it waits by now or is about to: the wait must end
        await trio.to_thread.run_sync(go_on.wait)
        await link.say(Message("public:a", data="after", offset=1, epoch="e"))
        await link.ended()

    def interrupt(number, frame):
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with served(serve) as address, SyncFramedClient(address, linger=0.01) as client:
            subscription = client.subscribe("public:a")

            def wait() -> None:
                subscribed.set()
                subscription.receive()

            with pytest.raises(Interrupt):
                wait()
            go_on.set()
            assert subscription.receive(PATIENCE).data == "after"
    finally:
        signal.signal(signal.SIGUSR1, before)


SCRIPT = """
import sys, threading
from netd.client import SyncFramedClient
with SyncFramedClient(sys.argv[1], linger=0.01) as client:
    print("waiting", flush=True)
    for value in client:
        print(value, flush=True)
"""


def test_ctrl_c_ends_a_script_quickly_with_its_traceback():
    async def serve(peer):
        link = await peer.accept()
        await link.send(b"one")
        await link.ended()

    with served(serve) as address:
        command = [sys.executable, "-W", "error", "-c", SCRIPT, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
            assert script.stdout is not None
            assert script.stdout.readline() == "waiting\n"
            assert script.stdout.readline() == "b'one'\n"
            script.send_signal(signal.SIGINT)
            _, errors = script.communicate(timeout=PATIENCE)
    assert script.returncode in (-signal.SIGINT, 130, 1)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in errors


def test_a_script_that_dies_without_leaving_is_not_held_up():
    code = SCRIPT.replace(
        "for value in client:", "client.__exit__ = None; import os; sys.exit(3)\n    for value in client:"
    )
    code = code.replace(
        "with SyncFramedClient(sys.argv[1], linger=0.01) as client:",
        "client = SyncFramedClient(sys.argv[1]).__enter__()\nif True:",
    )

    async def serve(peer):
        link = await peer.accept()
        await link.ended()

    with served(serve) as address:
        ended = subprocess.run(
            [sys.executable, "-c", code, address], timeout=PATIENCE, capture_output=True, check=False
        )
    assert ended.returncode == 3


def test_every_method_of_the_client_has_its_twin():
    from netd.client import FramedClient

    public = {name for name in dir(FramedClient) if not name.startswith("_")}
    twins = {name for name in dir(SyncFramedClient) if not name.startswith("_")}
    assert public - twins == {"send_nowait", "receive_nowait", "receive_all", "aclose", "states", "failure"}
