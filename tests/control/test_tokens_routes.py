"""/v1/tokens/revoked over a real hub."""

from __future__ import annotations

import pytest

from netd.hub.config import HubConfig, Key
from netd.hub.tokens import Tokens
from tests.support.host import FakeSession
from tests.support.signed import SECRET, issue


@pytest.fixture
def alice(host):
    tokens = Tokens(HubConfig(key=[Key(name="hs", algorithm="HS256", secret=SECRET)]))
    session = FakeSession(host.hub, id="a" * 8)
    host.hub.tag(session.session, grants=tokens.resolve(issue(SECRET, "HS256", exp=1e10, jti="7"), host.hub.clock()))
    return session


async def test_revoking_ends_sessions_and_is_listed(root, host, alice):
    answer = (await root.post("/v1/tokens/revoked", json={"jti": "7", "seconds": 60})).json()
    assert (answer["kind"], answer["value"], answer["ended"]) == ("jti", "7", 1)
    assert answer["until"] == answer["since"] + 60
    assert host.asked == [("keep_revoked", 1)]
    assert alice.closed == (4010, "its token was revoked")
    again = (await root.post("/v1/tokens/revoked", json={"sub": "bob"})).json()
    assert (again["ended"], again["until"] - again["since"]) == (0, pytest.approx(30 * 86_400))
    listed = (await root.get("/v1/tokens/revoked?limit=1")).json()
    assert ([each["value"] for each in listed["revoked"]], listed["total"]) == (["7"], 2)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"sub": "a", "jti": "b"},
        {"sub": ""},
        {"jti": "x" * 129},
        {"sub": "a", "seconds": 0},
        {"sub": "a", "seconds": 1e12},
        {"sub": "a", "more": 1},
    ],
)
async def test_what_is_no_revocation(root, host, body):
    answer = await root.post("/v1/tokens/revoked", json=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["message"].startswith("cannot ")
    assert len(host.hub.revocations) == 0


async def test_no_more_than_there_may_be(root, host):
    host.hub.revocations.limit = 1
    assert (await root.post("/v1/tokens/revoked", json={"sub": "a"})).status_code == 200
    answer = await root.post("/v1/tokens/revoked", json={"sub": "b"})
    assert answer.status_code in (429, 503)
    assert "hub.max_revocations" in answer.text


async def test_it_takes_write_access(user, host):
    assert (await user.post("/v1/tokens/revoked", json={"sub": "a"})).status_code == 403
    assert (await user.get("/v1/tokens/revoked")).status_code == 200
