"""BrokerClient and plain WebSockets over a Unix socket of a real broker."""

from __future__ import annotations

import pytest
import trio

import netd
from netd.client import BrokerClient
from netd.client.broker_options import Url
from netd.client.broker_plain import PlainSocket
from netd.client.options import Unix
from netd.errors import DaemonUnreachable, ProtocolError

PATIENCE = 20.0
FREE = {"name": "public", "subscribe": "anyone", "publish": "anyone"}


async def test_what_is_said_over_one_is_heard_over_it(tmp_path):
    path = tmp_path / "a broker:1.sock"
    settings = {"broker": {"listen": [{"address": f"unix:{path}"}]}, "hub": {"namespace": [FREE]}}
    async with (
        netd.open(settings),
        BrokerClient(f"unix:{path}") as client,
        PlainSocket(Url(False, Unix(path), "/ws/public:a")) as plain,
    ):
        assert client.telemetry().address == f"unix:{path}"
        heard = await client.subscribe("public:a")
        await plain.send(b"plain")
        with trio.fail_after(PATIENCE):
            assert (await anext(heard)).data == "plain"
            await client.publish("public:a", "operations")
            assert await plain.receive() == "operations"


async def test_what_cannot_be_of_one_is_said(tmp_path):
    with pytest.raises(DaemonUnreachable, match=r"^cannot connect to unix:.*gone.sock: no such file or directory$"):
        async with BrokerClient(f"unix:{tmp_path}/gone.sock"):
            pass
    with pytest.raises(ProtocolError, match=r"cannot connect to unix:.* with interface: that is for TCP"):
        async with BrokerClient(f"unix:{tmp_path}/gone.sock", interface="lo"):
            pass
    with pytest.raises(ProtocolError, match="cannot use TLS with 'unix:"):
        BrokerClient(f"unix:{tmp_path}/gone.sock", tls=True)
