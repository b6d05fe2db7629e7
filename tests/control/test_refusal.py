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
