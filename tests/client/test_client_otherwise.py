"""Clients at listeners of a real daemon that speak something else, TLS or none, HTTP or frames: told at once."""

from __future__ import annotations

import pytest
import trio

import netd
from netd.client import BrokerClient, ClientTls, FramedClient
from netd.errors import DaemonUnreachable
from tests.support.authority import Authority

LONG = 600.0
"""Seconds that a client would wait if nobody told it anything."""
PATIENCE = 30.0
ANY = ClientTls(verify=False)


@pytest.fixture
async def addresses(tmp_path):
    """Those of "broker", "broker with TLS", "framed", "framed with TLS"."""
    authority = Authority(tmp_path)
    chain, key = authority.issue("127.0.0.1")
    listen = [
        {"address": "127.0.0.1:0"},
        {"address": "127.0.0.1:0", "tls": {"certificate": str(chain), "key": str(key)}},
    ]
    settings = {"broker": {"listen": listen}, "framed": {"listen": listen}, "trace": {"enabled": False}}
    async with netd.open(settings) as daemon:
        found = [*daemon.addresses("broker"), *daemon.addresses("framed")]
        yield dict(zip(("broker", "broker with TLS", "framed", "framed with TLS"), found, strict=True))


@pytest.mark.parametrize(
    ("scheme", "listener", "why"),
    [
        ("ws", "broker with TLS", r"connect to .*ended the connection instead.*does it want TLS \(wss://\)\?"),
        (
            "ws",
            "framed",
            "connect to .*the peer does not speak WebSocket as it should; is this the address of a broker",
        ),
        ("wss", "broker", "use TLS with .*the peer does not speak TLS; write ws://"),
        ("framed+tls", "broker", r"use TLS with .*the peer does not speak TLS; leave it out \(tls, --tls\)"),
        ("framed", "broker", "use operations with .*it speaks HTTP: is this the address of a framed listener"),
        ("wss", "framed", "use TLS with .*the peer does not speak TLS; write ws://"),
        ("framed", "framed with TLS", r"use operations with .*does it want TLS \(tls=True, --tls\)"),
        ("framed+tls", "framed", r"use TLS with .*the peer does not speak TLS; leave it out \(tls, --tls\)"),
    ],
)
async def test_the_wrong_listener_is_told_at_once(addresses, scheme, listener, why):
    where = addresses[listener]
    patience = {"connect_timeout": LONG, "answer_timeout": LONG}
    if scheme.startswith("framed"):
        client = FramedClient(where, tls=ANY if scheme == "framed+tls" else None, **patience)
    else:
        client = BrokerClient(f"{scheme}://{where}", tls=ANY if scheme == "wss" else None, **patience)
    with trio.fail_after(PATIENCE), pytest.raises(DaemonUnreachable, match=f"^cannot {why}"):
        async with client:
            await client.hello()


async def test_a_certificate_that_nobody_vouches_for_says_what_to_give(addresses):
    url = f"wss://{addresses['broker with TLS']}"
    with pytest.raises(
        DaemonUnreachable, match=r"cannot be verified: .*; name who signed it \(ClientTls\(ca=\.\.\.\), --ca\)"
    ):
        async with BrokerClient(url):
            pass


async def test_a_certificate_of_another_name_says_so(addresses, tmp_path):
    tls = ClientTls(ca=tmp_path / "ca.pem", server_name="other.example")
    with pytest.raises(DaemonUnreachable, match=r"'other.example'; give the name that it has \(server_name"):
        async with BrokerClient(f"wss://{addresses['broker with TLS']}", tls=tls):
            pass
