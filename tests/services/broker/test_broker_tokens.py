"""Signed tokens shown over HTTP: what is accepted, what is challenged, and what a session has from it."""

from __future__ import annotations

import base64
import json

import jwt
import pytest

from netd.hub.config import HubConfig, Key, Namespace
from tests.services.broker.site import error_of, eventually, head, serving
from tests.support.signed import ED, NOW, OTHER_ED, issue, public

HUB = HubConfig(
    namespace=[
        Namespace(name="chat", subscribe="token", publish="token", history="token", history_size=10, wildcards=True),
    ],
    key=[Key(name="ed", algorithm="EdDSA", secret=public(ED))],
)
CHAT = {"subscribe": ["chat:*"], "publish": ["chat:*"], "history": ["chat:*"]}


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def unsigned(**claims) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, {"sub": "alice", "exp": NOW + 60, "netd": CHAT, **claims})
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, ""])


def confused() -> str:
    """The public key taken for a secret: HS256 with what anybody can read."""
    signer = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    first, second, _ = unsigned().split(".")
    first = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    signature = signer.sign(f"{first}.{second}".encode(), public(ED).encode())
    return f"{first}.{second}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


@pytest.mark.parametrize(
    "token",
    [
        issue(netd=CHAT, exp=NOW - 1),
        issue(netd=CHAT, nbf=NOW + 30),
        issue(OTHER_ED, netd=CHAT),
        issue(netd=CHAT)[:-4] + "AAAA",
        issue(netd=CHAT, aud="somebody else"),
        unsigned(),
        unsigned() + "AAAA",
        confused(),
        "a.b.c",
        "....",
    ],
)
async def test_a_token_that_is_forged_or_expired_is_challenged_everywhere(token):
    async with serving(hub=HUB, clock=Clock()) as house:
        for answer in (
            await house.ask("POST", "/channels/chat:a", bearer(token), body=b"x"),
            await house.ask("GET", f"/channels/chat:a/history?token={token}"),
            await house.ask("GET", "/channels/chat:a/events", bearer(token)),
            await house.upgrade("/ws", f"Sec-WebSocket-Protocol: netd.json, netd.token.{token}"),
            await house.upgrade(f"/ws/chat:a?token={token}"),
        ):
            assert (answer.status, error_of(answer)[0]) == (401, "denied")
            assert answer.headers["www-authenticate"].startswith("Bearer ")
            assert token not in answer.body.decode(), "nobody is shown a token"
        assert house.hub.opened == house.hub.published == 0


async def test_what_a_token_permits_its_session_has():
    async with serving(hub=HUB, clock=Clock()) as house:
        token = issue(netd={**CHAT, "tags": {"team": "a"}})
        answer, peer = await house.socket("/ws/chat:a", f"Sec-WebSocket-Protocol: netd.plain, netd.token.{token}")
        assert answer.status == 101
        await eventually(lambda: house.hub.visible)
        [session] = house.hub.find("name:alice")
        assert (session.token, dict(session.tags)) == ("ed:alice", {"team": "a"})
        assert (await house.ask("POST", "/channels/chat:a", bearer(token), body=b"x")).status == 201
        assert (await house.ask("POST", "/channels/other:a", bearer(token), body=b"x")).status == 403
        assert b"\x82\x01x" in await peer.stream.receive_some(100)


async def test_a_token_that_expires_or_is_revoked_is_worth_nothing_from_then_on():
    clock = Clock()
    async with serving(hub=HUB, clock=clock) as house:
        token, other = issue(netd=CHAT, jti="one"), issue(netd=CHAT, jti="two")
        for each in (token, other):
            assert (await house.ask("GET", "/channels/chat:a/history", bearer(each))).status == 200
        house.hub.revoke("jti", "one", 3600.0)
        assert (await house.ask("GET", "/channels/chat:a/history", bearer(token))).status == 401
        assert (await house.ask("GET", "/channels/chat:a/history", bearer(other))).status == 200
        clock.now += 61
        answer = await house.ask("GET", "/channels/chat:a/history", bearer(other))
        assert answer.status == 401
        assert "expired" in error_of(answer)[1]


async def test_an_event_stream_of_a_pattern():
    async with serving(hub=HUB, clock=Clock()) as house:
        peer = await house.client()
        await peer.send(head("GET", "/channels/chat:*.news/events", [bearer(issue(netd=CHAT))]))
        data = b""
        while b"event: subscribed" not in data:
            data += await peer.stream.receive_some(65536)
        house.hub.publish(b"chat:a.news", "hi")
        while b'"data":"hi"' not in data:
            data += await peer.stream.receive_some(65536)
        assert b'"channel":"chat:a.news"' in data
        answer = await house.ask("POST", "/channels/chat:*.news", bearer(issue(netd=CHAT)), body=b"x")
        assert (answer.status, error_of(answer)[0]) == (400, "invalid"), "a pattern is no channel"
        answer = await house.ask("GET", "/channels/chat:*.news/history", bearer(issue(netd=CHAT)))
        assert (answer.status, error_of(answer)[0]) == (409, "unsupported"), "and has no history"


async def test_a_websocket_that_could_only_publish_to_a_pattern_is_refused():
    async with serving(hub=HUB, clock=Clock()) as house:
        answer = await house.upgrade("/ws/chat:a.%3E?role=pub", bearer(issue(netd=CHAT)))
        assert (answer.status, error_of(answer)[0]) == (409, "unsupported")
        assert "(hub.namespace.0.wildcards)" in error_of(answer)[1]
        for role in ("sub", "both"):  # these hear what it stands for
            answer = await house.upgrade(f"/ws/chat:a.%3E?role={role}", bearer(issue(netd=CHAT)))
            assert answer.status == 101
