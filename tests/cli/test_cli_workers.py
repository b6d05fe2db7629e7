"""`netctl workers`: who is connected, as people and programs read it, and how one is made to go."""

from __future__ import annotations

import json

from tests.cli.conversation import words

CHAT = {
    "id": 3,
    "name": "chat\x1b",
    "state": "serving",
    "pid": 4711,
    "uid": 990,
    "library": "netd.worker 0.1.0",
    "handlers": ["http_request", "message"],
    "program": 1,
    "connected": 1_732_190_000.0,
    "age": 75.0,
    "sessions": 12,
    "in_flight": 2,
    "requests": 1,
    "waiting": 4,
    "queued_bytes": 2048,
    "handled": 900,
    "cancelled": 1,
    "refused": 0,
}
STATUS = {
    "running": True,
    "socket": "/run/netd/worker.sock",
    "workers": [CHAT, CHAT | {"id": 12, "name": "api", "state": "leaving", "program": None}],
    "programs": [{"place": 2, "pid": None, "starts": 4, "ended": "status 3: no such module"}],
    "sessions": 12,
    "waiting_events": 5,
    "waiting_bytes": 1024,
    "waiting_requests": 1,
    "crashed": 2,
    "lost": 7,
    "requests": {"answered": 10, "failed": 1, "refused": 0, "timeout": 0},
}


def test_the_list_says_who_is_there_and_what_is_wrong(api, netctl):
    api.answer("GET", "/v1/worker", STATUS)
    for arguments in ([], ["list"]):
        assert words(netctl("workers", *arguments, COLUMNS="100").stdout) == [
            "ID NAME STATE PID UP SESSIONS IN HAND HANDLED LIBRARY",
            r"3 chat\x1b serving 4711 1 min 15 s 12 2 900 netd.worker 0.1.0",
            "12 api leaving 4711 1 min 15 s 12 2 900 netd.worker 0.1.0",
            "program 2 (worker.command) ended, and is started again:",
            "status 3: no such module",
            "waiting for a free hand: 5 events (1.0 KiB), 1 HTTP request",
            "since the daemon began: 2 gone without a word, 7 events lost with a worker, 1 request failed",
        ]
    assert json.loads(netctl("workers", "--json").stdout) == STATUS


def test_it_fits_the_terminal(api, netctl):
    api.answer("GET", "/v1/worker", STATUS)
    lines = netctl("workers", COLUMNS="60").stdout.splitlines()
    assert max(map(len, lines[:3])) <= 60
    assert "serving" in lines[1]


def test_without_workers_it_says_what_happens(api, netctl):
    api.answer("GET", "/v1/worker", {"running": True, "workers": []})
    assert netctl("workers").stdout.startswith("no worker is connected: messages are echoed")


def test_a_stopped_service_says_so(api, netctl):
    api.answer("GET", "/v1/worker", {"running": False})
    assert netctl("workers").stdout == "the worker service is not running (worker.enabled)\n"


def test_one_worker_is_shown(api, netctl):
    api.answer("GET", "/v1/worker/3", CHAT)
    said = words(netctl("workers", "show", "3").stdout)
    assert r"name chat\x1b" in said
    assert "process 4711, account 990, program 1 of worker.command" in said
    assert "in hand 2, 1 of them HTTP requests" in said
    assert json.loads(netctl("workers", "show", "3", "--json").stdout) == CHAT
    assert netctl("workers", "show", "zero").exit_code == 2


def test_a_worker_is_drained_or_cut_off(api, netctl):
    api.answer("POST", "/v1/worker/3/drain", CHAT).answer("DELETE", "/v1/worker/3", CHAT)
    said = netctl("workers", "drain", "3").stdout
    assert said == "worker 3 (chat\\x1b) is leaving, with 2 things in hand\n"
    assert (api.requests[-1].method, api.requests[-1].path) == ("POST", "/v1/worker/3/drain")
    assert netctl("workers", "drain", "3", "--now").stdout == "worker 3 (chat\\x1b) is disconnected\n"
    assert api.requests[-1].method == "DELETE"
