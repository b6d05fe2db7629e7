"""Signed tokens in the whole daemon: keys in files, expiry by the real clock, refresh, rotation, and what revokes."""

from __future__ import annotations

import os
import signal
import stat
import time

import pytest
import trio

from netd.client.framed import FramedClient
from netd.errors import ConfigError, RequestFailed
from netd.hub.config import HubConfig, Key
from netd.hub.tokens import Tokens
from netd.messaging import REVOKED_FILE, Messaging, read_tokens
from netd.runtime.metrics import Metrics
from netd.wire.messages import Error
from tests.support.process import PATIENCE, NetdProcess, Systemd
from tests.support.signed import ED, NOW, OTHER_ED, RSA, SECRET, issue, public

FRAMED = """
[trace]
enabled = false
[[framed.listen]]
address = "127.0.0.1:0"
[[hub.namespace]]
name = "chat"
"""
NETD = {"subscribe": ["chat:*"], "publish": ["chat:*"]}


def key(name, algorithm, file, more=""):
    return f'[[hub.key]]\nname = "{name}"\nalgorithm = "{algorithm}"\nfile = "{file}"\n{more}'


def lasting(seconds=600.0, key=ED, algorithm="EdDSA", **claims):
    now = time.time()
    return issue(key, algorithm, **{"exp": now + seconds, "iat": now - 1, "netd": NETD, **claims})


async def framed_address(netd):
    async with netd.client() as control:
        return next(unit["addresses"][0] for unit in await control.services() if unit["name"] == "framed")


@pytest.fixture
def files(tmp_path):
    for name, text in (
        ("ed.pem", public(ED)),
        ("rs.pem", public(RSA)),
        ("hs.secret", SECRET),
        ("new", public(OTHER_ED)),
    ):
        (tmp_path / name).write_text(text + "\n")
    return tmp_path


@pytest.fixture
async def life(tmp_path):
    """A service manager that outlives the daemon."""
    systemd = Systemd(tmp_path)
    yield lambda toml: NetdProcess(tmp_path, toml, systemd=systemd)
    systemd.close()


# --- the whole daemon -------------------------------------------------------------------------------------------------


async def test_a_session_is_told_when_its_token_expires_and_refreshes_it(files):
    async with NetdProcess(files, FRAMED + key("ed", "EdDSA", files / "ed.pem")) as netd:
        address = await framed_address(netd)
        async with FramedClient(address, token=lasting(1.0)) as client:
            events = aiter(client)
            welcome = await client.hello()
            assert 0 < welcome.expires <= 1
            heard = await client.subscribe("chat:a")
            with trio.fail_after(PATIENCE):
                event = await anext(events)
                assert isinstance(event, Error)
                assert "token 'ed:alice': it has expired" in event.message
                with pytest.raises(RequestFailed, match="token 'ed:alice': it has expired"):
                    await anext(heard)
                with pytest.raises(RequestFailed, match="token 'ed:alice': it has expired"):
                    await client.publish("chat:a", "no")
                assert await client.refresh(lasting()) == pytest.approx(600, abs=5)
                async with await client.subscribe("chat:a") as messages:
                    await client.publish("chat:a", "yes")
                    assert (await anext(messages)).data == "yes"
                assert client.session_id == welcome.session
            assert client.telemetry().counters.reconnects == 0


async def test_keys_rotate_and_nobody_is_disconnected(files):
    three = [key("ed", "EdDSA", files / "ed.pem"), key("rs", "RS256", files / "rs.pem")]
    hs = key("hs", "HS256", files / "hs.secret")
    async with NetdProcess(files, FRAMED + "".join(three) + hs) as netd, netd.client() as control:
        address = await framed_address(netd)
        async with (
            FramedClient(address, token=lasting(sub="e")) as ed,
            FramedClient(address, token=lasting(key=RSA, algorithm="RS256", sub="r")) as rs,
            FramedClient(address, token=lasting(key=SECRET, algorithm="HS256", sub="h")) as hs_client,
        ):
            for client in (ed, rs, hs_client):
                await client.publish("chat:a", 1)
            fresh = key("new", "EdDSA", files / "new")
            netd.config.write_text(FRAMED + fresh + "".join(three))
            await control.reload(wait=10)
            for client in (ed, rs):
                await client.publish("chat:a", 2)
            with pytest.raises(RequestFailed, match="token 'hs:h': this configuration takes it no more"):
                await hs_client.publish("chat:a", 2)
            tokens = {row["name"]: row["token"] for row in (await control.sessions())["sessions"]}
            assert tokens == {"e": "ed:e", "r": "rs:r", "h": None}
            async with FramedClient(address, token=lambda: lasting(key=OTHER_ED)) as another:
                await another.publish("chat:a", 3)
            (files / "ed.pem").write_text("nothing of the kind")
            with pytest.raises(RequestFailed, match=r"hub\.key\.1: cannot use the key 'ed'"):
                await control.reload(wait=10)
            await ed.publish("chat:a", 4)
            assert all(client.telemetry().counters.reconnects == 0 for client in (ed, rs, hs_client))


async def test_what_is_revoked_is_ended_and_stays_revoked_after_a_crash(files, life):
    toml = FRAMED + key("ed", "EdDSA", files / "ed.pem")
    first, other = lasting(jti="7"), lasting(sub="bob")
    async with life(toml) as netd, netd.client() as control:
        address = await framed_address(netd)
        async with FramedClient(address, token=first) as alice, FramedClient(address, token=other) as bob:
            await alice.hello()
            await bob.hello()
            assert (await control.token_revoke(jti="7", seconds=600))["ended"] == 1
            with trio.fail_after(PATIENCE), pytest.raises(RequestFailed, match="its token was revoked"):
                async for _ in alice:
                    pass
            await bob.publish("chat:a", 1)
        kept = netd.state / REVOKED_FILE
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        netd.signal(signal.SIGKILL)
        await netd.exited()
        assert first not in netd.log()
        assert first.rpartition(".")[2] not in netd.log()
    async with life(toml) as netd, netd.client() as control:
        assert [each["value"] for each in (await control.tokens_revoked())["revoked"]] == ["7"]
        async with FramedClient(await framed_address(netd), token=first) as alice:
            with pytest.raises(RequestFailed, match=r"it was revoked \(jti\)"):
                await alice.hello()


# --- files ------------------------------------------------------------------------------------------------------------


def test_keys_are_read_from_their_files(files):
    config = HubConfig(key=[Key(name="ed", algorithm="EdDSA", file=files / "ed.pem")])
    assert read_tokens(config).resolve(issue(), NOW).token == "ed:alice"
    (files / "ed.pem").write_text("x" * 5000)
    with pytest.raises(ConfigError, match=r"hub\.key\.0\.file: cannot read the key 'ed' from .* longer than"):
        read_tokens(config)


async def test_revocations_that_cannot_be_read_are_kept_aside(tmp_path):
    (tmp_path / REVOKED_FILE).write_bytes(b"{")
    config = HubConfig()
    room = Messaging(config, Tokens(config), version="1", metrics=Metrics(), directory=tmp_path)
    await room.restore()
    assert os.listdir(tmp_path) == [REVOKED_FILE + ".bad"]
    room.hub.revoke("sub", "alice", 60)
    await room.keep_revoked()
    again = Messaging(config, Tokens(config), version="1", metrics=Metrics(), directory=tmp_path)
    await again.restore()
    assert [each.value for each in again.hub.revocations.all()] == ["alice"]
