"""`netctl channels`: lists, one channel, publishing, what was said and what is said."""

from __future__ import annotations

import json
import time

import pytest

from tests.cli.conversation import completed, words
from tests.support.fakeapi import Answer

NOW = time.time()
CHAT = {"name": "chat:a", "name64": None, "subscribers": 2, "epoch": "e-1", "offset": 7, "history": 5}
RAW = {"name": None, "name64": "/wA=", "subscribers": 0, "epoch": None, "offset": None, "history": 0}
ALICE = {
    "session": "3f0c8e52-9a41-4d8e-8a53-1f4c1d9c7a01",
    "name": "al\x1bice",
    "transport": "framed",
    "tags": {"a": "b"},
}
MESSAGE = {"from": "3f0c8e52-9a41-4d8e-8a53-1f4c1d9c7a01", "data": "hel\x1b[2Jlo", "data64": None}
MESSAGE |= {"offset": 6, "epoch": "e-1", "time": NOW}
BYTES = {"from": None, "data": None, "data64": "AP8=", "offset": 7, "epoch": "e-1", "time": NOW}


PATTERN = CHAT | {"name": "chat:*", "epoch": None, "offset": None, "history": 0, "pattern": True}


def stream(*events, **more):
    """Server-sent events with the ids that the daemon gives them."""
    lines = [
        f"{f'id: {id}' + chr(10) if id else ''}event: {kind}\ndata: {json.dumps(data)}\n\n" for id, kind, data in events
    ]
    return Answer((": \n\n" + "".join(lines)).encode(), headers={"content-type": "text/event-stream"}, **more)


def test_a_list_fits_the_terminal(api, netctl):
    api.answer("GET", "/v1/channels", {"channels": [CHAT, RAW], "next": None})
    said = netctl("channels", COLUMNS="80").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert words(said) == ["CHANNEL SUBSCRIBERS HISTORY OFFSET EPOCH", "chat:a 2 5 7 e-1", r"\xff\x00 0"]


def test_on_a_narrow_terminal_a_long_name_is_broken_and_none_of_it_lost(api, netctl):
    name = "public:" + ".".join(f"room-{number}" for number in range(12))
    api.answer("GET", "/v1/channels", {"channels": [CHAT | {"name": name}], "next": None})
    said = netctl("channels", COLUMNS="40").stdout.splitlines()
    assert max(map(len, said)) <= 40
    assert "".join(line[:27].strip() for line in said[1:]) == name


def test_some_of_them(api, netctl):
    api.answer("GET", "/v1/channels", {"channels": [CHAT, RAW], "next": "x"}, {"channels": [], "next": None})
    said = netctl("channels", "list", "chat:", "-n", "1")
    assert said.stdout.endswith("and more (--limit)\n")
    assert dict(api.requests[0].query) == {"limit": "2", "prefix": "chat:"}
    assert netctl("channels", "list", "x").stdout == "no channels that begin with 'x'\n"


def test_machines_that_did_not_answer_are_told_of(api, netctl):
    page = {"channels": [CHAT], "next": None, "silent": 2}
    api.answer("GET", "/v1/channels", page, page)
    said = netctl("channels", "list")
    assert said.stderr == "2 machines did not say in time what is heard there: not counted\n"
    assert words(said.stdout)[1] == "chat:a 2 5 7 e-1"
    assert json.loads(netctl("channels", "list", "--json").stdout)["silent"] == 2


HUB = {
    "sessions": 1,
    "channels": 2,
    "subscriptions": 3,
    "resumable": 1,
    "histories": 1,
    "history_messages": 1,
    "history_bytes": 2048,
    "history_evicted": 4,
    "opened": 12,
    "messages_in": 1,
    "messages_out": 5,
    "published": 2,
    "delivered": 6,
    "refused": 1,
    "dropped": 0,
    "namespaces": [
        {"name": "", "channels": 0, "published": 0, "delivered": 0, "refused": 1},
        {"name": "chat", "channels": 2, "published": 2, "delivered": 6, "refused": 0},
    ],
}


def test_info_has_the_totals_of_the_hub(api, netctl):
    answer = {"hub": HUB, "reactor": {"streams": 1}}
    api.answer("GET", "/v1/hub", answer)
    assert words(netctl("channels", "info").stdout) == [
        "1 session, 1 that may come back, 12 so far",
        "2 channels heard, 3 subscriptions",
        "published 2 messages, delivered 6",
        "received 1 request, sent 5 messages; 1 request refused",
        "1 history: 1 message kept, 2.0 KiB, 4 given up for others",
        "",
        "NAMESPACE CHANNELS PUBLISHED DELIVERED REFUSED",
        '"" 0 0 0 1',
        "chat 2 2 6 0",
    ]
    assert json.loads(netctl("channels", "info", "--json").stdout) == answer


def test_info_without_namespaces_says_what_that_means(api, netctl):
    api.answer("GET", "/v1/hub", {"hub": HUB | {"namespaces": []}, "reactor": {}})
    assert "clients can use no channel" in netctl("channels", "info").stdout


def test_one_is_no_plural(api, netctl):
    api.answer("GET", "/v1/channels/chat:a", CHAT | {"subscribers": 1, "history": 1, "presence": [ALICE]})
    assert words(netctl("channels", "show", "chat:a").stdout)[0] == "chat:a 1 subscriber, 1 message kept, at e-1:7"
    api.answer("GET", "/v1/channels/chat:a/events", stream((None, "missed", {"count": 1}), ("e-1-8", "message", LIVE)))
    assert (
        "-- 1 message is missing here: this reader is too slow --"
        in netctl("channels", "tail", "chat:a", "--count", "1").stdout
    )


def test_show_tells_who_hears_it(api, netctl):
    api.answer("GET", "/v1/channels/chat:a", CHAT | {"presence": [ALICE]})
    said = netctl("channels", "show", "chat:a").stdout
    assert words(said) == [
        "chat:a 2 subscribers, 5 messages kept, at e-1:7",
        "SESSION NAME TRANSPORT TAGS",
        r"3f0c8e52-9a41-4d8e-8a53-1f4c1d9c7a01 al\x1bice framed a=b",
        "and 1 more",
    ]
    assert json.loads(netctl("channels", "show", "chat:a", "--json").stdout)["presence"] == [ALICE]


def test_patterns(api, netctl):
    api.answer("GET", "/v1/channels", {"channels": [PATTERN, CHAT | {"pattern": False}], "next": None})
    assert words(netctl("channels").stdout)[1:] == ["chat:* (pattern) 2", "chat:a 2 5 7 e-1"]
    api.answer("GET", "/v1/channels/chat:%2A", PATTERN | {"presence": []})
    said = netctl("channels", "show", "chat:*")
    assert words(said.stdout)[0] == "chat:* 2 subscribers to all channels that match", said.output
    api.answer("GET", "/v1/hub", {"hub": HUB | {"patterns": 1}, "reactor": {}})
    assert "2 channels heard, 1 pattern, 3 subscriptions\n" in netctl("channels", "info").stdout
    live = stream((None, "subscribed", {"pattern": True}), ("e-1-8", "message", LIVE | {"channel": "chat:\x1bb"}))
    api.answer("GET", "/v1/channels/chat:%2A/events", live)
    assert netctl("channels", "tail", "chat:*", "--count", "1").stdout.startswith(r"chat:\x1bb  ")


@pytest.mark.parametrize(
    ("typed", "path"),
    [("devices/a b", "devices%2Fa%20b"), ("é", "%C3%A9"), ("\udcff", "%FF"), ("..", "%2E%2E"), ("50%", "50%25")],
)
def test_a_name_reaches_the_daemon_as_its_bytes(api, netctl, typed, path):
    api.answer("POST", f"/v1/channels/{path}/messages", {"delivered": 0})
    said = netctl("channels", "publish", typed, "x")
    assert said.stdout == "delivered to 0 sessions\n", said.output
    assert [request.path for request in api.requests] == [f"/v1/channels/{path}/messages"]


def test_publish(api, netctl):
    api.answer("POST", "/v1/channels/chat:a/messages", {"delivered": 2})
    said = netctl("channels", "publish", "chat:a", "--as", "json", "[1]", "--priority", "0", "--json")
    assert json.loads(said.stdout) == {"delivered": 2}
    assert api.requests[-1].body == {"data": [1], "priority": 0}


def test_publish_says_what_the_daemon_remarks(api, netctl):
    remark = "no namespace 'secret' is configured: clients cannot hear it"
    api.answer("POST", "/v1/channels/secret:x/messages", {"delivered": 0, "remark": remark})
    assert netctl("channels", "publish", "secret:x", "x").stdout == f"delivered to 0 sessions ({remark})\n"
    said = json.loads(netctl("channels", "publish", "secret:x", "x", "--json").stdout)
    assert said == {"delivered": 0, "remark": remark}


def test_publish_without_access_is_the_daemons_refusal(api, netctl):
    api.refuse("POST", "/v1/channels/chat:a/messages", 403, "denied", "cannot POST: run as root")
    assert netctl("channels", "publish", "chat:a", "x").exit_code == 77


# --- history ----------------------------------------------------------------------------------------------------------


def history(*messages, complete=True):
    return {"epoch": "e-1", "offset": 7, "complete": complete, "messages": list(messages)}


def test_history_is_a_line_each(api, netctl):
    api.answer("GET", "/v1/channels/chat:a/history", history(MESSAGE, BYTES), history())
    said = netctl("channels", "history", "chat:a", "-n", "2").stdout.splitlines()
    assert said[0].endswith(r"  e-1:6  3f0c8e52  hel\x1b[2Jlo")
    assert said[1].endswith("  e-1:7  daemon  0x00ff")
    assert netctl("channels", "history", "chat:a").stdout == "nothing was said\n"
    assert json.loads(netctl("channels", "history", "chat:a", "--json").stdout) == history()


@pytest.mark.parametrize(("since", "gap"), [("e-1:5", False), ("e-1-5", False), ("e-1:2", True), ("other:5", True)])
def test_history_since_a_position_says_what_is_lost(api, netctl, since, gap):
    api.answer("GET", "/v1/channels/chat:a/history", history(MESSAGE, complete=not gap))
    said = netctl("channels", "history", "chat:a", "--since", since)
    assert dict(api.requests[-1].query)["since"] == "-".join(since.replace(":", "-").rsplit("-", 1))
    assert ("missing here" in said.stderr) is gap


@pytest.mark.parametrize("since", ["7", "e-1:", "e:x", ":5"])
def test_what_is_no_position_is_misuse(api, netctl, since):
    for verb in ("history", "tail"):
        assert netctl("channels", verb, "chat:a", "--since", since).exit_code == 2
    assert api.requests == []


# --- tail -------------------------------------------------------------------------------------------------------------

LIVE = {"channel": "chat:a", "from": MESSAGE["from"], "data": {"n": 1}, "epoch": "e-1", "offset": 8}


def test_tail_prints_what_comes(api, netctl):
    events = [
        ("e-1-7", "subscribed", {"channel": "chat:a", "epoch": "e-1", "offset": 7}),
        (None, "joined", {"session": "s", "name": "bob", "channel": "chat:a"}),
        ("e-1-8", "message", LIVE),
        (None, "missed", {"count": 4}),
        ("e-1-13", "message", LIVE | {"offset": 13, "data": "last"}),
    ]
    api.answer("GET", "/v1/channels/chat:a/events", stream(*events, hold=True))
    said = netctl("channels", "tail", "chat:a", "--count", "2")
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [
        "-- bob joined --",
        'e-1:8  3f0c8e52  {"n": 1}',
        "-- 4 messages are missing here: this reader is too slow --",
        "e-1:13  3f0c8e52  last",
    ]


def test_tail_goes_on_where_it_was_when_the_connection_breaks(api, netctl):
    first = stream(("e-1-8", "message", LIVE))
    second = stream(
        ("e-1-8", "subscribed", {"channel": "chat:a", "epoch": "e-1", "offset": 8, "recovered": False}),
        ("e-1-9", "message", LIVE | {"offset": 9}),
    )
    api.answer("GET", "/v1/channels/chat:a/events", first, second)
    said = netctl("channels", "tail", "chat:a", "--count", "2", "--since", "e-1:7", "--json")
    events = [json.loads(line) for line in said.stdout.splitlines()]
    assert [event.get("offset") for event in events] == [8, 8, 9]
    assert [event["event"] for event in events] == ["message", "subscribed", "message"]
    assert [request.headers["last-event-id"] for request in api.requests] == ["e-1-7", "e-1-8"]


def test_tail_says_where_something_is_lost_and_why_it_ended(api, netctl):
    lost = ("e-2-0", "subscribed", {"channel": "chat:a", "epoch": "e-2", "offset": 0, "recovered": False})
    wrong = Answer({"error": {"kind": "denied", "message": "cannot GET"}}, 403)
    api.answer("GET", "/v1/channels/chat:a/events", stream(lost, (None, "closed", {"reason": "over"})), wrong)
    said = netctl("channels", "tail", "chat:a", "--since", "e-1:7")
    assert said.stdout.splitlines() == [
        "-- something is missing here: it is no longer kept --",
        "-- the daemon ended the subscription: over --",
    ]
    assert said.exit_code == 77


def test_channels_are_completed(api):
    api.answer("GET", "/v1/channels", {"channels": [CHAT, RAW], "next": None})
    assert completed(api, "channels", "tail", "ch") == ["chat:a"]
    assert dict(api.requests[-1].query) == {"limit": "50", "prefix": "ch"}
