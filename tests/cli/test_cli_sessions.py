"""`netctl sessions`: who is connected, what is asked of them, and what people read."""

from __future__ import annotations

import json
import time

import pytest

from netd.cli.tcp_view import lines
from tests.cli.conversation import completed, words
from tests.cli.test_cli_trace import RECORD

NOW = time.time()
ALICE = {
    "id": "3f0c8e52-9a41-4d8e-8a53-1f4c1d9c7a01",
    "name": "alice",
    "transport": "framed",
    "listener": "127.0.0.1:9000",
    "address": "192.0.2.7:50312",
    "tls": True,
    "tags": {"device": "alpha"},
    "token": "meters",
    "opened": NOW - 50 * 3600,
    "channels": 2,
    "messages_in": 12,
    "messages_out": 40,
    "bytes_in": 2048,
    "bytes_out": 5_000_000,
    "outbox": 700_000,
    "pressed": True,
    "dropped": 3,
    "refused": 0,
}
BOB = ALICE | {
    "id": "3f777777-0000-4000-8000-000000000002",
    "name": "evil\x1b[2J",
    "tls": False,
    "token": None,
    "tags": {},
    "outbox": 0,
    "pressed": False,
    "address": "[2001:db8::7]:50312",
}
VIEW = ALICE | {
    "subscriptions": [{"name": "chat:a", "name64": None}, {"name": None, "name64": "/wA="}],
    "traceable": True,
}
ID = ALICE["id"]
PATH = RECORD | {"session": ID, "address": ALICE["address"]}
TCP = {
    "state": 1,
    "ca_state": 0,
    "retransmits": 0,
    "options": 7,
    "rto_us": 204_000,
    "snd_mss": 1448,
    "unacked": 2,
    "lost": 0,
    "pmtu": 1500,
    "rtt_us": 12_340,
    "rttvar_us": 500,
    "snd_cwnd": 10,
    "total_retrans": 1,
    "bytes_acked": 1000,
    "bytes_received": 2048,
    "segs_out": 5,
    "segs_in": 6,
    "notsent_bytes": 0,
    "min_rtt_us": None,
    "delivery_rate": 12_500_000,
    "bytes_sent": 1000,
    "bytes_retrans": 1448,
    "dsack_dups": 0,
    "last_data_sent_ms": 40,
    "last_data_recv_ms": 1200,
    "of_a_later_kernel": 7,
}


def page(*sessions, next=None, total=None):
    return {"sessions": list(sessions), "next": next, "total": len(sessions) if total is None else total}


def test_a_list_fits_the_terminal_and_cuts_no_id(api, netctl):
    api.answer("GET", "/v1/sessions", page(ALICE, BOB))
    said = netctl("sessions", COLUMNS="80").stdout
    listed = said.splitlines()
    assert max(map(len, listed)) <= 80
    assert ID in listed[1]
    assert "192.0.2.7:50312" in listed[1]
    assert "evil\\" in said
    assert "\x1b" not in said


def test_a_narrow_list_keeps_names_rather_than_addresses_and_ids_that_still_find_their_session(api, netctl):
    alike = ALICE | {"id": f"{ID[:10]}0-0000", "name": "alike"}
    api.answer("GET", "/v1/sessions", page(ALICE, BOB, alike), page(ALICE))
    said = netctl("sessions", "list", COLUMNS="36").stdout
    assert max(map(len, said.splitlines())) <= 36
    listed = words(said)
    assert [line.split()[0] for line in listed[1:]] == [ID[:11], BOB["id"][:11], alike["id"][:11]]
    assert listed[0] == "ID NAME"
    roomy = words(netctl("sessions", "list", COLUMNS="60").stdout)
    assert roomy[0].startswith("ID NAME TRANSPORT")
    assert roomy[1].startswith(f"{ID[:8]} alice framed, TLS")


def test_a_list_into_a_pipe_has_everything(api, netctl):
    api.answer("GET", "/v1/sessions", page(ALICE, total=5))
    said = words(netctl("sessions", "list").stdout)
    assert said[0] == "ID NAME TRANSPORT ADDRESS OPENED CHANNELS IN OUT WAITING"
    assert said[1] == f"{ID} alice framed, TLS 192.0.2.7:50312 2 d 2 h ago 2 2.0 KiB 4.8 MiB 684 KiB"
    assert said[2] == "and 4 more (--limit)"


def test_some_of_them(api, netctl):
    api.answer("GET", "/v1/sessions", page())
    said = netctl("sessions", "list", "--transport", "quic", "--tag", "a=b", "--name", "x", "-n", "7")
    assert said.stdout == "no sessions of that kind\n"
    assert dict(api.requests[0].query) == {"limit": "7", "transport": "quic", "tag": "a=b", "name": "x"}
    assert netctl("sessions", "list", "--tag", "a").exit_code == 2
    for arguments in (["show", "tag:a"], ["kick", "tag:a"], ["send", "tag:a", "x"]):
        said = netctl("sessions", *arguments)
        assert (said.exit_code, "cannot find session 'tag:a': write tag:KEY=VALUE" in said.stderr) == (2, True)


def test_pages_are_asked_for_until_there_are_enough(api, netctl):
    api.answer("GET", "/v1/sessions", page(ALICE, next="c1"), page(BOB, next="c2"), page(total=9))
    said = netctl("sessions", "list", "-n", "1500", "--json")
    assert [one["id"] for one in json.loads(said.stdout)["sessions"]] == [ID, BOB["id"]]
    assert [dict(request.query).get("after") for request in api.requests[:3]] == [None, "c1", "c2"]
    assert [dict(request.query)["limit"] for request in api.requests[:3]] == ["1000", "1000", "1000"]


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_tells_all_and_leaves_out_what_is_not(api, netctl):
    api.answer("GET", f"/v1/sessions/{ID}", VIEW)
    said = words(netctl("sessions", "show", ID).stdout)
    assert said == [
        f"{ID} alice",
        "from 192.0.2.7:50312",
        "transport framed, TLS",
        "listener 127.0.0.1:9000",
        "opened 2 d 2 h ago",
        "token meters",
        "tags device=alpha",
        "received 12 messages, 2.0 KiB",
        "sent 40 messages, 4.8 MiB",
        "waiting 684 KiB (above its mark: the client does not read)",
        "dropped 3 messages",
        "channels chat:a, \\xff\\x00",
    ]


@pytest.mark.parametrize("given", ["3f0c", "name:alice", "tag:device=alpha"])
def test_a_session_is_found_by_as_much_as_is_its_own(api, netctl, given):
    api.answer("GET", "/v1/sessions", page(ALICE)).answer("GET", f"/v1/sessions/{ID}", VIEW)
    said = netctl("sessions", "show", given, "--json")
    assert json.loads(said.stdout) == {"session": VIEW}
    asked = dict(api.requests[0].query)
    assert asked.pop("limit") == "2"
    assert asked in ({"id": "3f0c"}, {"name": "alice"}, {"tag": "device=alpha"})


def test_one_that_is_several_or_nobody_is_not_guessed(api, netctl):
    api.answer("GET", "/v1/sessions", page(ALICE, BOB), page())
    several = netctl("sessions", "show", "3f")
    assert several.exit_code == 64
    assert "several" in several.stderr
    nobody = netctl("sessions", "show", "ff")
    assert (nobody.exit_code, nobody.stdout) == (66, "")
    assert "netctl sessions lists them" in nobody.stderr
    assert len(api.requests) == 2


def test_show_with_its_path_is_the_table_of_hops(api, netctl):
    api.answer("GET", f"/v1/sessions/{ID}", VIEW).answer("POST", f"/v1/sessions/{ID}/trace", PATH)
    said = words(netctl("sessions", "show", ID, "--path", "--max-hops", "9").stdout)
    begin = said.index("Path: 2 routers in between, 3 hops, path 8.10 ms, by UDP beside it, 9 probes")
    assert said[begin + 1 :] == [
        "TTL ROUTER RTT ms BEST MEAN WORST JITTER LOSS",
        "1 10.0.1.1 1.20 1.00 1.20 1.50 0.250 25 %",
        "2 10.0.2.1 +1 1.20 1.00 1.20 1.50",
        "3 192.0.2.7:50312 7.90 7.50 8.10 9.20 0.500 ← destination",
    ]
    assert api.requests[-1].query == [("max_hops", "9")]


def test_a_destination_without_a_router_before_it_is_told_alike_in_table_and_json(api, netctl):
    here = PATH | {"dest_ttl": 1, "hops": [], "probes": 1, "address": "127.0.0.1:50312"}
    api.answer("GET", f"/v1/sessions/{ID}", VIEW).answer("POST", f"/v1/sessions/{ID}/trace", here)
    said = words(netctl("sessions", "show", ID, "--path").stdout)
    begin = said.index("Path: 0 routers in between, 1 hop, path 8.10 ms, by UDP beside it, 1 probe")
    assert said[begin + 2] == "1 127.0.0.1:50312 7.90 0.500 ← destination"
    found = json.loads(netctl("sessions", "show", ID, "--path", "--json").stdout)["path"]
    assert (found["hops"], found["dest_ttl"]) == ([], 1)


def test_one_is_no_plural(api, netctl):
    one = VIEW | {"messages_in": 1, "messages_out": 1, "dropped": 1, "refused": 1}
    api.answer("GET", f"/v1/sessions/{ID}", one)
    said = words(netctl("sessions", "show", ID).stdout)
    for line in ("received 1 message, 2.0 KiB", "sent 1 message, 4.8 MiB", "dropped 1 message", "refused 1 message"):
        assert line in said


def test_a_session_that_cannot_be_traced_says_why(api, netctl):
    nothing = {"session": ID, "address": "", "time": NOW, "reason": "no-carrier", "method": "tcp", "probes": 0}
    api.answer("GET", f"/v1/sessions/{ID}", VIEW)
    api.answer("POST", f"/v1/sessions/{ID}/trace", nothing | {"elapsed_ms": 0.0, "hops": [], "dest_ttl": None})
    said = netctl("sessions", "show", ID, "--path").stdout
    assert "Path: the session has nothing to carry probes" in said


def test_show_with_tcp_is_in_words(api, netctl):
    api.answer("GET", f"/v1/sessions/{ID}", VIEW).answer("GET", f"/v1/sessions/{ID}/tcp", TCP)
    narrow = netctl("sessions", "show", ID, "--tcp", COLUMNS="80").stdout
    assert max(map(len, narrow.splitlines())) <= 80
    said = words(netctl("sessions", "show", ID, "--tcp").stdout)
    assert said[said.index("TCP:") + 1 :] == [
        "state ESTABLISHED, open",
        "round trip 12.3 ms, ± 0.500 ms",
        "window 10 segments of 1.4 KiB",
        "in flight 2 segments, not sent yet: 0 B",
        "lost 0 segments now, 1 retransmission of 1.4 KiB, 0 of them for nothing",
        "timeout 204 ms, 0 in a row",
        "delivery 11.9 MiB/s",
        "sent 1000 B, 5 segments, last 0.0 s ago",
        "acknowledged 1000 B",
        "received 2.0 KiB, 6 segments, last 1.2 s ago",
        "path MTU 1500 bytes",
        "options timestamps, SACK, window scaling",
    ]


def test_tcp_of_an_old_kernel_or_of_a_later_one_is_what_can_be_told():
    assert all(value == "" for _, value in lines({}))
    assert all(value == "" for _, value in lines(dict.fromkeys(TCP)))
    odd = dict(lines({"state": 99, "ca_state": -1, "rtt_us": "soon", "options": 0}))
    assert (odd["state"], odd["round trip"], odd["options"]) == ("state 99, state -1", "", "")


def test_tcp_of_a_session_without_it_is_the_daemons_refusal(api, netctl):
    api.answer("GET", f"/v1/sessions/{ID}", VIEW)
    api.refuse("GET", f"/v1/sessions/{ID}/tcp", 409, "conflict", "cannot tell what TCP does")
    said = netctl("sessions", "show", ID, "--tcp")
    assert (said.exit_code, said.stderr) == (75, "netctl: cannot tell what TCP does\n")


def test_show_as_json_has_what_was_asked_for(api, netctl):
    api.answer("GET", f"/v1/sessions/{ID}", VIEW).answer("GET", f"/v1/sessions/{ID}/tcp", TCP)
    api.answer("POST", f"/v1/sessions/{ID}/trace", PATH)
    found = json.loads(netctl("--json", "sessions", "show", ID, "--path", "--tcp").stdout)
    assert found == {"session": VIEW, "path": PATH, "tcp": TCP}


# --- kick and send ----------------------------------------------------------------------------------------------------


def test_kick(api, netctl):
    api.answer("DELETE", "/v1/sessions/tag:device=alpha", {"kicked": 3}).answer("GET", "/v1/sessions", page(ALICE))
    api.answer("DELETE", f"/v1/sessions/{ID}", {"kicked": 1})
    said = netctl("sessions", "kick", "tag:device=alpha", "--reason", "a & b", "--code", "4000")
    assert said.stdout == "ended 3 sessions\n"
    assert dict(api.requests[-1].query) == {"code": "4000", "reason": "a & b"}
    assert netctl("sessions", "kick", "3f0c").stdout == "ended 1 session\n"
    assert api.requests[-1].query == []
    assert json.loads(netctl("sessions", "kick", ID, "--json").stdout) == {"kicked": 1}


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["hello"], {"data": "hello"}),
        (["{}"], {"data": "{}"}),
        (["--as", "json", '{"a": 1}'], {"data": {"a": 1}}),
        (["--as", "hex", "00ff"], {"data64": "AP8="}),
        (["x", "--priority", "3", "--ephemeral"], {"data": "x", "priority": 3, "ephemeral": True}),
    ],
)
def test_send(api, netctl, arguments, body):
    api.answer("POST", "/v1/sessions/name:alice/messages", {"delivered": 1})
    said = netctl("sessions", "send", "name:alice", *arguments)
    assert (said.exit_code, said.stdout) == (0, "delivered to 1 session\n")
    assert api.requests[-1].body == body


def test_a_name_with_a_slash_stays_one_segment(api, netctl):
    api.answer("POST", "/v1/sessions/name:a%2Fb%20%3F/messages", {"delivered": 2})
    assert netctl("sessions", "send", "name:a/b ?", "x", "--json").stdout == '{\n  "delivered": 2\n}\n'


def test_what_cannot_be_sent_is_misuse(api, netctl):
    assert netctl("sessions", "send", ID, "--as", "json", "{").exit_code == 2
    assert netctl("sessions", "send", ID, "--as", "hex", "xx").exit_code == 2
    assert api.requests == []


# --- completion -------------------------------------------------------------------------------------------------------


def test_ids_names_and_tags_are_completed(api):
    api.answer("GET", "/v1/sessions", page(ALICE, BOB))
    assert completed(api, "sessions", "show", "3f") == [ID, BOB["id"]]
    assert dict(api.requests[-1].query) == {"limit": "50", "id": "3f"}
    assert completed(api, "sessions", "kick", "name:a") == ["name:alice"]
    assert completed(api, "sessions", "send", "tag:d") == ["tag:device=alpha"]


def test_transports_are_completed(api):
    api.answer("GET", "/v1/sessions", page(ALICE, BOB, BOB | {"transport": "websocket"}))
    assert completed(api, "sessions", "list", "--transport", "") == ["framed", "websocket"]
    assert completed(api, "sessions", "list", "--transport", "f") == ["framed"]


def test_completion_says_nothing_when_the_daemon_does_not(api):
    assert completed(api, "sessions", "show", "") == []
