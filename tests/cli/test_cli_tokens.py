"""`netctl tokens`: list, revoke."""

from __future__ import annotations

import json

import pytest

REVOKED = {"kind": "sub", "value": "alice", "since": 1_000_000.0, "until": 2_000_000.0}


def test_list(api, netctl):
    api.answer("GET", "/v1/tokens/revoked", {"revoked": [REVOKED], "total": 3})
    said = netctl("tokens")
    assert "alice" in said.stdout
    assert "and 2 more (--limit)" in said.stdout
    assert dict(api.requests[-1].query) == {"limit": "100"}
    assert json.loads(netctl("tokens", "list", "-n", "5", "--json").stdout)["revoked"] == [REVOKED]
    assert dict(api.requests[-1].query) == {"limit": "5"}


def test_an_empty_list(api, netctl):
    api.answer("GET", "/v1/tokens/revoked", {"revoked": [], "total": 0})
    assert netctl("tokens", "list").stdout == "no tokens are revoked\n"


def test_revoke(api, netctl):
    api.answer("POST", "/v1/tokens/revoked", {**REVOKED, "ended": 2})
    said = netctl("tokens", "revoke", "--sub", "alice", "--days", "2")
    assert said.stdout.startswith("revoked sub 'alice' until 1970-01-2")
    assert said.stdout.endswith("ended 2 sessions\n")
    assert api.requests[-1].body == {"sub": "alice", "seconds": 172_800.0}
    assert json.loads(netctl("tokens", "revoke", "--jti", "7", "--json").stdout)["ended"] == 2


@pytest.mark.parametrize("options", [(), ("--sub", "a", "--jti", "b"), ("--sub", "a", "--days", "0")])
def test_what_is_no_revocation(api, netctl, options):
    assert netctl("tokens", "revoke", *options).exit_code == 2
