"""`netctl nodes`."""

from __future__ import annotations

import json

NODE = {
    "node": "alpha.1f", "name": "alpha", "address": "10.0.0.1", "version": "1.2.3", "sessions": 12, "channels": 3,
    "queue": 0, "lag_ms": 0.25, "seen": 1_000_000.0, "here": True,
}  # fmt: skip
REDIS = {
    "url": "redis://10.0.0.9:6379", "online": True, "why": None, "node": "alpha.1f", "nodes": 2, "queue": 0,
    "queue_bytes": 0, "given_up": 0, "lives": 1, "published": 5, "received": 9, "fetched": 0, "missed": 0, "dropped": 0,
    "loose": 0, "unreadable": 0,
}  # fmt: skip
TWO = {"backplane": "redis", "nodes": [NODE, {**NODE, "name": "beta", "here": False, "address": None}], "redis": REDIS}


def test_the_table(api, netctl):
    api.answer("GET", "/v1/nodes", TWO)
    first, heads, alpha, beta = netctl("nodes").stdout.splitlines()
    assert first == "Redis at redis://10.0.0.9:6379: there"
    assert heads.split() == ["NODE", "ADDRESS", "VERSION", "SESSIONS", "CHANNELS", "QUEUE", "LAG", "SEEN"]
    assert alpha.split()[:6] == ["alpha", "(here)", "10.0.0.1", "1.2.3", "12", "3"]
    assert beta.split()[0] == "beta"
    assert max(map(len, netctl("nodes", COLUMNS="40").stdout.splitlines())) <= 40
    assert json.loads(netctl("nodes", "--json").stdout) == TWO


def test_two_of_one_name_are_told_apart(api, netctl):
    same = [NODE, {**NODE, "node": "alpha.2e", "address": "10.0.0.1:3001", "here": False}, {**NODE, "name": "beta"}]
    api.answer("GET", "/v1/nodes", {**TWO, "nodes": same})
    shown = [line.split()[0] for line in netctl("nodes").stdout.splitlines()[2:]]
    assert shown == ["alpha.1f", "alpha.2e", "beta"]


def test_away(api, netctl):
    why = "cannot use Redis at redis://10.0.0.9:6379: connection refused"
    api.answer("GET", "/v1/nodes", {**TWO, "redis": {**REDIS, "online": False, "why": why, "given_up": 1}})
    said = netctl("nodes").stdout
    assert "away (see netctl health)" in said
    assert "connection refused" in said
    assert "1 message lost to the others" in said


def test_one_machine(api, netctl):
    api.answer("GET", "/v1/nodes", {"backplane": "memory", "nodes": [], "redis": None})
    assert netctl("nodes").stdout == 'one machine: hub.backplane is "memory"\n'


def test_a_stopped_service(api, netctl):
    api.answer("GET", "/v1/nodes", {"backplane": "redis", "nodes": [], "redis": None})
    assert netctl("nodes").stdout.startswith("alone: the backplane service does not run")
