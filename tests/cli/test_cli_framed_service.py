"""`netctl framed info` and `connections`: what the service says, for people and programs."""

from __future__ import annotations

import json

from tests.cli.conversation import CONNECTION, STATUS, words


def test_info_says_what_listens_who_is_here_and_what_went_wrong(api, netctl):
    api.answer("GET", "/v1/framed", STATUS)
    said = words(netctl("framed", "info").stdout)
    assert said[0] == "LISTENING MODE CODEC TLS HANDSHAKE CONNECTIONS"
    assert said[1] == "127.0.0.1:9000 operations auto no optional 3"
    assert said[4:] == [
        "3 sessions, 1 arriving, 12 so far",
        "received 1 message, 2.0 KiB",
        "sent 70 messages, 3.0 MiB",
        "backpressure 2 times, drained 1 time; 5 messages dropped",
        "not let in: 4 tls",
    ]
    assert json.loads(netctl("framed", "info", "--json").stdout) == STATUS


def test_a_service_that_does_not_run_says_so(api, netctl):
    api.answer("GET", "/v1/framed", {"running": False})
    assert netctl("framed", "info").stdout == "the framed service is not running\n"


def test_connections_fit_a_narrow_terminal_and_keep_their_ids(api, netctl):
    answer = {"connections": [CONNECTION, CONNECTION | {"name": None, "tls": False}], "total": 7}
    api.answer("GET", "/v1/framed/connections", answer)
    wide = netctl("framed", "connections", "--limit", "2").stdout
    assert "operations, TLS" in wide
    assert "\x1b" not in wide
    assert wide.endswith("and 5 more (--limit)\n")
    assert dict(api.requests[-1].query) == {"limit": "2"}
    narrow = netctl("framed", "connections", COLUMNS="80").stdout
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert CONNECTION["id"] in narrow
    assert CONNECTION["address"] in narrow
    assert json.loads(netctl("framed", "connections", "--json").stdout) == answer
    api.answer("GET", "/v1/framed/connections", {"connections": [], "total": 0})


def test_one_connection_with_all_there_is_about_it(api, netctl):
    path = f"/v1/framed/connections/{CONNECTION['id']}"
    api.answer("GET", path, CONNECTION | {"later": "field"})
    said = words(netctl("framed", "connections", CONNECTION["id"]).stdout)
    assert said[0] == CONNECTION["id"]
    for fact in ("from 192.0.2.7:50312", "TLS yes", "tags site=lab", "queued 4.0 KiB", "paused by rate", "later field"):
        assert fact in said
    assert not any(line.startswith(("channel", "unfinished", "dropped", "process")) for line in said)


def test_a_connection_that_is_not_there(api, netctl):
    message = "cannot accept id: string should match pattern"
    api.refuse("GET", "/v1/framed/connections/zzz", 422, "invalid", message, "id")
    said = netctl("framed", "connections", "zzz")
    assert said.exit_code == 66
    assert "cannot find connection 'zzz'" in said.stderr
