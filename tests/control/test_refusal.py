"""Whoever waits at the control socket of a daemon that cannot start is told why, and waits no more."""

from __future__ import annotations

import socket

import pytest
import trio

from netd.client import ControlClient
from netd.control import refusal
from netd.control.refusal import refuse_waiting
from netd.errors import ConfigError, ConfigProblem, RequestFailed

WHY = ConfigError([ConfigProblem("trace.max_traces", "cannot be 0", "/etc/netd/netd.toml:2")])


@pytest.fixture
def listening(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "control.sock"))
        sock.listen()
        yield sock


async def test_who_waits_is_told_why_in_the_words_of_the_api(listening):
    async def refuse():
        await trio.lowlevel.wait_readable(listening)
        assert await trio.to_thread.run_sync(refuse_waiting, [listening], WHY) == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse)
        with pytest.raises(RequestFailed) as failed:
            async with ControlClient(listening.getsockname()) as control:
                await control.status()
    assert failed.value.kind == "config"
    assert "cannot start netd: /etc/netd/netd.toml:2: trace.max_traces: cannot be 0" in str(failed.value)


def test_nobody_there_and_nothing_to_hear(listening, monkeypatch):
    monkeypatch.setattr(refusal, "SECONDS", 0.05)
    assert refuse_waiting([listening], WHY) == 0
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in clients:
        client.connect(listening.getsockname())
    clients[0].close()
    assert refuse_waiting([listening], WHY) == 3, "one is gone, two never ask"
    for client in clients:
        client.close()


class Clock:
    """Time that passes only while somebody waits."""

    now = 0.0

    def monotonic(self):
        return self.now


class FakeClient:
    """Sends its request at a time, or never."""

    def __init__(self, clock, speaks_at=float("inf")):
        self.answered = False
        self._clock = clock
        self._speaks_at = speaks_at

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        pass

    def settimeout(self, seconds):
        self._timeout = seconds

    def recv(self, _most):
        if self._speaks_at > self._clock.now + self._timeout:
            self._clock.now += self._timeout
            raise TimeoutError if self._timeout else BlockingIOError
        self._clock.now = max(self._clock.now, self._speaks_at)
        return b"GET / HTTP/1.1"

    def sendall(self, _data):
        assert self._timeout <= max(0.0, refusal.SECONDS - self._clock.now), "counted from now"
        self.answered = True


class FakeListening:
    def __init__(self, clients):
        self._clients = iter(clients)

    def setblocking(self, _on):
        pass

    def accept(self):
        for client in self._clients:
            return client, ""
        raise BlockingIOError


def test_a_silent_client_does_not_use_up_the_time_of_the_others(monkeypatch):
    monkeypatch.setattr(refusal, "time", clock := Clock())
    silent, slow = FakeClient(clock), FakeClient(clock, 0.9 * refusal.SHARE + refusal.SHARE)
    assert refuse_waiting([FakeListening([silent, slow])], WHY) == 2
    assert slow.answered
    assert not silent.answered
    assert clock.now < refusal.SECONDS / 2


def test_it_takes_no_longer_than_was_said_however_many_are_silent(monkeypatch):
    monkeypatch.setattr(refusal, "time", clock := Clock())
    clients = [*(FakeClient(clock) for _ in range(1000)), FakeClient(clock, 0)]
    assert refuse_waiting([FakeListening(clients)], WHY) == 1001
    assert clock.now == pytest.approx(refusal.SECONDS)
    assert clients[-1].answered, "its request is there: that takes no waiting"
