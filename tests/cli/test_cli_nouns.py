"""The nouns of daily use: what they ask the daemon, what people read, what programs get, how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import pytest

import netd
from netd.cli.config import brief_toml, parse_value
from netd.cli.log import LOGGERS, level, log
from netd.cli.main import NOUNS
from netd.settings import Settings
from tests.support.fakeapi import Answer, sse

UNIT = {
    "name": "trace",
    "state": "running",
    "since": time.time() - 4000,
    "generation": 1,
    "restarts": 0,
    "error": None,
    "retry_at": None,
    "addresses": ["127.0.0.1:8080"],
    "enabled": True,
}
BROKEN = UNIT | {
    "name": "broker",
    "state": "backoff",
    "restarts": 4,
    "addresses": [],
    "error": "cannot listen on 127.0.0.1:3000: the address is in use",
    "retry_at": time.time() + 100,
}
WARNING = {
    "code": "trace.unprivileged",
    "severity": "warning",
    "message": "tracing with UDP of its own: CAP_NET_RAW is missing",
    "advice": "give the unit AmbientCapabilities=CAP_NET_RAW",
    "service": "trace",
    "since": time.time() - 50,
}
STATUS = {
    "version": "0.1.0",
    "state": "running",
    "ready": False,
    "pid": 12,
    "started": 1.0,
    "uptime_s": 5000.0,
    "services": [UNIT, BROKEN],
    "warnings": [WARNING],
    "config": {"sources": ["/etc/netd/netd.toml"], "etag": "x"},
}
CHANGES = [
    {"path": "trace.max_hops", "running": 30, "configured": 20, "effect": "live"},
    {"path": "control.socket", "running": "/a", "configured": None, "effect": "fixed"},
]
CHANGE = {
    "id": "b-1",
    "kind": "service.stop",
    "target": "trace",
    "status": "done",
    "since": time.time() - 9,
    "ended": time.time() - 8.5,
    "error": None,
    "result": UNIT | {"state": "stopped", "addresses": []},
}
DOING = CHANGE | {"status": "doing", "ended": None, "result": None}


# --- status, services, health -----------------------------------------------------------------------------------------


def test_status_tells_the_daemon_its_services_and_what_to_do(api, netctl):
    api.answer("GET", "/v1/status", STATUS)
    said = netctl("status")
    assert said.exit_code == 0
    for words in (
        "netd 0.1.0 is running, not ready; up 1 h 23 min, pid 12",
        "/etc/netd/netd.toml",
        "● running",
        "127.0.0.1:8080",
        "● backoff",
        "the address is in use (next attempt in ",
        "▲ trace.unprivileged",
        "→ give the unit AmbientCapabilities=CAP_NET_RAW",
    ):
        assert words in said.stdout
    assert "\x1b" not in said.stdout


def test_status_as_json_is_what_the_daemon_said(api, netctl):
    api.answer("GET", "/v1/status", STATUS | {"later": "field"})
    assert json.loads(netctl("status", "--json").stdout) == STATUS | {"later": "field"}


def test_status_hints_at_another_version(api, netctl):
    api.answer("GET", "/v1/status", STATUS | {"version": "3.0.0"})
    assert "this is netctl 0.1.0: if netd was upgraded, restart the daemon" in netctl("status").stdout


def test_tables_fit_a_narrow_terminal(api, netctl):
    long = UNIT | {"addresses": [f"[2001:db8::{number}]:8080" for number in range(6)]}
    api.answer("GET", "/v1/status", STATUS | {"services": [long, BROKEN]})
    said = netctl("status", COLUMNS="60").stdout
    assert max(len(line) for line in said.splitlines()) <= 60
    assert "trace" in said
    assert "2001:db8::5" in said.replace("\n", "")


@pytest.mark.parametrize("columns", [60, 52])
def test_on_a_narrow_terminal_addresses_stay_whole_and_restarts_go_first(api, netctl, columns):
    addresses = ["[2001:db8:1234:5678::9abc]:8080", "192.0.2.117:50312"]
    api.answer("GET", "/v1/services", {"services": [UNIT | {"addresses": addresses}]})
    said = netctl("services", COLUMNS=str(columns)).stdout
    assert max(len(line) for line in said.splitlines()) <= columns
    assert all(address in said for address in addresses)
    assert "● running" in said
    assert "RESTARTS" not in said
    assert "RESTARTS" in netctl("services", COLUMNS="90").stdout
    narrowest = netctl("services", COLUMNS="40").stdout
    assert max(len(line) for line in narrowest.splitlines()) <= 40
    heading, *rows = narrowest.splitlines()
    listening = "".join(row[heading.index("LISTENING") :] for row in rows)
    assert "".join(listening.split()) == ",".join(addresses), "broken, but not cut"


def test_a_disabled_service_is_not_one_that_somebody_stopped(api, netctl):
    stopped = UNIT | {"state": "stopped", "addresses": []}
    units = [stopped, stopped | {"enabled": False}, UNIT | {"enabled": False}]
    api.answer("GET", "/v1/services", {"services": units})
    shown = netctl("services").stdout
    assert re.findall(r"[○●] \w+(?: \(\w+\))?", shown) == ["○ stopped", "○ disabled", "● running (disabled)"]


def test_on_a_narrow_terminal_ids_of_changes_stay_whole(api, netctl):
    error = {"kind": "conflict", "message": "cannot do this, and that takes a good many words to say"}
    failed = CHANGE | {"id": "0123abcd-1234", "status": "failed", "error": error, "kind": "config.patch"}
    api.answer("GET", "/v1/changes", {"changes": [failed | {"target": "trace.max_hops, trace.rounds, log.level"}]})
    said = netctl("changes", COLUMNS="60").stdout
    assert max(len(line) for line in said.splitlines()) <= 60
    assert "0123abcd-1234" in said
    assert "failed" in said
    assert " ".join(said.split()).endswith("to say")


def test_a_pipe_gets_whole_rows(api, netctl):
    addresses = [f"[2001:db8::{number}]:8080" for number in range(20)]
    api.answer("GET", "/v1/services", {"services": [UNIT | {"addresses": addresses}]})
    assert ", ".join(addresses) in netctl("services", "list").stdout


def test_colour_only_where_it_is_wanted(api, netctl):
    api.answer("GET", "/v1/status", STATUS)
    assert "\x1b[32m" in netctl("status", FORCE_COLOR="1").stdout
    assert "\x1b[3" not in netctl("status", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_strangers_words_cannot_drive_the_terminal(api, netctl):
    evil = "\x1b[2J\x9b31m[bold]x[/bold]\r\u202e."
    api.answer("GET", "/v1/services", {"services": [UNIT | {"name": evil, "error": evil, "addresses": [evil]}]})
    said = netctl("services").stdout
    assert said.count(r"\x1b[2J\x9b31m[bold]x[/bold]\r\u202e.") == 4  # in the table twice, and twice below it
    assert not set("\x1b\x9b\u202e\r") & set(said)
    assert json.loads(netctl("services", "--json").stdout)["services"][0]["name"] == evil
    assert not set("\x1b\x9b\u202e\r") & set(netctl("services", "--json").stdout)


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
def test_a_verb_is_waited_for_and_told(api, netctl, verb):
    api.answer("POST", f"/v1/services/trace/{verb}", CHANGE | {"kind": f"service.{verb}"})
    said = netctl("services", verb, "trace")
    assert (said.exit_code, said.stdout) == (0, "trace is stopped\n")
    assert api.requests[-1].query == [("wait", "30")]


def test_a_verb_need_not_be_waited_for(api, netctl):
    api.answer("POST", "/v1/services/trace/stop", DOING, status=202)
    said = netctl("services", "stop", "trace", "--no-wait")
    assert said.exit_code == 0
    assert said.stdout == "stop trace: still doing; follow it with: netctl changes show b-1\n"
    assert len(api.requests) == 1
    assert api.requests[-1].query == []


def test_a_verb_that_takes_longer_than_waited_for_ends_with_a_temporary_failure(api, netctl):
    api.answer("POST", "/v1/services/trace/stop", DOING, status=202).answer("GET", "/v1/changes/b-1", DOING)
    said = netctl("services", "stop", "trace", "--wait", "0.05")
    assert said.exit_code == 75
    assert "still doing after 0.05 s" in said.stdout
    as_json = netctl("services", "stop", "trace", "--wait", "0.05", "--json")
    assert as_json.exit_code == 75
    assert json.loads(as_json.stdout)["id"] == "b-1"


def test_an_unknown_service_is_the_daemons_refusal(api, netctl):
    api.refuse("POST", "/v1/services/trase/stop", 404, "not-found", "cannot find service 'trase': there are trace")
    said = netctl("services", "stop", "trase")
    assert (said.exit_code, said.stderr) == (66, "netctl: cannot find service 'trase': there are trace\n")


@pytest.mark.parametrize(
    ("status", "strict", "code"),
    [("ok", True, 0), ("degraded", False, 0), ("degraded", True, 69), ("failing", False, 69)],
)
def test_health_has_an_exit_code_for_scripts(api, netctl, status, strict, code):
    api.answer("GET", "/v1/health", {"status": status, "warnings": [] if status == "ok" else [WARNING]})
    said = netctl("health", *(["--strict"] if strict else []))
    assert said.exit_code == code
    assert said.stdout.startswith(f"health: {status}\n")


def test_readiness_is_waited_for(api, netctl):
    waiting, ready = Answer({"ready": False, "waiting": ["trace"]}, 503), {"ready": True, "waiting": []}
    api.answer("GET", "/v1/ready", waiting, waiting, ready)
    assert (netctl("health", "--ready").exit_code, len(api.requests)) == (69, 1)
    said = netctl("health", "--ready", "--wait", "20")
    assert (said.exit_code, said.stdout) == (0, "ready\n")


def test_what_is_not_ready_is_named(api, netctl):
    api.answer("GET", "/v1/ready", {"ready": False, "waiting": ["trace", "broker"]}, status=503)
    assert netctl("health", "--ready").stdout == "not ready: waiting for trace, broker\n"


# --- reload, changes --------------------------------------------------------------------------------------------------


def test_a_reload_says_what_it_changed(api, netctl):
    api.answer("POST", "/v1/reload", CHANGE | {"result": {"changes": CHANGES, "services": []}})
    said = netctl("reload").stdout
    assert said.startswith("reloaded: 2 changes running\n")
    assert "at once" in said
    assert "(not set)" in said


def test_a_refused_reload_says_why(api, netctl):
    api.refuse(
        "POST", "/v1/reload", 409, "reload-refused", "cannot change control.socket while running", "control.socket"
    )
    said = netctl("reload")
    assert (said.exit_code, said.stdout) == (78, "")
    assert said.stderr == "netctl: cannot change control.socket while running\n"


def test_changes_are_listed_and_shown(api, netctl):
    error = {"kind": "conflict", "message": "superseded"}
    failed = CHANGE | {"id": "b-2", "status": "failed", "error": error, "result": None}
    api.answer("GET", "/v1/changes", {"changes": [CHANGE, failed]}, {"changes": []})
    api.answer("GET", "/v1/changes/b-1", CHANGE).answer("GET", "/v1/changes/b-2", failed)
    listed = netctl("changes").stdout
    assert "service.stop" in listed
    assert "superseded" in listed
    assert netctl("changes", "list").stdout == "no changes yet\n"
    assert "service.stop trace: done" in netctl("changes", "show", "b-1").stdout
    shown = netctl("changes", "show", "b-2")
    assert (shown.exit_code, shown.stderr) == (75, "netctl: superseded\n")


def test_a_reload_is_shown_by_what_it_changed_and_not_by_whole_lists(api, netctl):
    listen = [{"address": f"127.0.0.1:{port}", "mode": "echo", "tls": None} for port in (9001, 9002, 9003)]
    now = [*listen[:2], listen[2] | {"mode": "channel"}]
    differs = {"path": "framed.listen", "running": listen, "configured": now, "effect": "replace"}
    reload = CHANGE | {"kind": "reload", "target": None, "result": {"changes": [differs], "services": [UNIT] * 3}}
    api.answer("GET", "/v1/changes/b-1", reload)
    shown = netctl("changes", "show", "b-1").stdout.splitlines()
    assert shown[0] == "reload: done"
    assert shown[2:] == [
        "reloaded: 1 change running",
        'framed.listen.2: changed: mode "echo" -> "channel", new generation',
    ]
    assert json.loads(netctl("changes", "show", "b-1", "--json").stdout) == reload


def test_a_reload_under_way_has_nothing_to_show_yet(api, netctl):
    api.answer("GET", "/v1/changes/b-1", CHANGE | {"kind": "reload", "status": "doing", "ended": None, "result": None})
    assert len(netctl("changes", "show", "b-1").stdout.splitlines()) == 2


# --- config -----------------------------------------------------------------------------------------------------------

VIEW = {
    "values": {
        "state_directory": "/var/lib/netd",
        "log": {"level": "info", "colour": None},
        "trace": {"max_hops": 20, "listen": [{"address": "127.0.0.1:8080", "tls": None}], "ratio": 0.5, "on": True},
    },
    "origins": {"trace.max_hops": "/etc/netd/netd.toml:12", "trace.listen": "NETD_TRACE__LISTEN"},
    "sources": ["/etc/netd/netd.toml"],
    "etag": "x",
}


def test_config_show_is_toml_with_origins(api, netctl):
    api.answer("GET", "/v1/config", VIEW)
    said = netctl("config", "show").stdout
    parsed = tomllib.loads(said)
    assert parsed["trace"] == {"max_hops": 20, "listen": [{"address": "127.0.0.1:8080"}], "ratio": 0.5, "on": True}
    assert parsed["state_directory"] == "/var/lib/netd"
    lines = {line.split(" =")[0]: line for line in said.splitlines()}
    assert lines["max_hops"].endswith("# /etc/netd/netd.toml:12")
    assert lines["address"].endswith("# NETD_TRACE__LISTEN")
    assert "#" not in lines["ratio"]
    assert "# colour is not set" in said


def test_config_shows_permissions_in_octal(api, netctl):
    changed = [{"path": "control.mode", "running": 432, "configured": 384, "effect": "fixed"}]
    api.answer("GET", "/v1/config", VIEW | {"values": {"control": {"mode": 432, "max": 432}}})
    api.answer("GET", "/v1/config/diff", {"changes": changed})
    assert tomllib.loads(netctl("config", "show").stdout)["control"] == {"mode": 0o660, "max": 432}
    assert "mode = 0o660" in netctl("config", "show").stdout
    assert netctl("config", "get", "control.mode").stdout == "0o660\n"
    assert netctl("config", "get", "control.max").stdout == "432\n"
    assert "0o660" in netctl("config", "diff").stdout
    assert "0o600" in netctl("config", "diff").stdout


def test_a_key_with_dots_in_it_is_shown_and_found(api, netctl):
    view = VIEW | {
        "values": {"log": {"loggers": {"netd.trace": "debug"}}},
        "origins": {'log.loggers."netd.trace"': "/etc/netd/netd.toml:3"},
    }
    api.answer("GET", "/v1/config", view)
    assert '"netd.trace" = "debug"  # /etc/netd/netd.toml:3' in netctl("config", "show").stdout
    assert netctl("config", "get", 'log.loggers."netd.trace"').stdout == "debug\n"
    assert netctl("config", "get", 'log.loggers."netd.trace').exit_code == 66


def test_config_show_of_one_section(api, netctl):
    api.answer("GET", "/v1/config", VIEW)
    assert netctl("config", "show", "log").stdout.startswith('level = "info"')
    assert netctl("config", "show", "trace.max_hops").stdout == "trace.max_hops = 20  # /etc/netd/netd.toml:12\n"
    assert json.loads(netctl("config", "show", "log", "--json").stdout)["values"] == {"log": VIEW["values"]["log"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trace.max_hops", "20"),
        ("state_directory", "/var/lib/netd"),
        ("trace.listen.0.address", "127.0.0.1:8080"),
        ("trace.listen", '[{address = "127.0.0.1:8080"}]'),
        ("trace.on", "true"),
        ("log.colour", ""),
    ],
)
def test_config_get_is_bare(api, netctl, key, value):
    api.answer("GET", "/v1/config", VIEW)
    assert netctl("config", "get", key).stdout == value + "\n"


def test_config_get_as_json_has_the_origin(api, netctl):
    api.answer("GET", "/v1/config", VIEW)
    said = json.loads(netctl("config", "get", "trace.listen.0.address", "--json").stdout)
    assert said == {"key": "trace.listen.0.address", "value": "127.0.0.1:8080", "origin": "NETD_TRACE__LISTEN"}


@pytest.mark.parametrize("key", ["trace.max_hop", "trace.listen.7", "trace.max_hops.x", "", "trace..on"])
def test_config_get_of_nothing(api, netctl, key):
    api.answer("GET", "/v1/config", VIEW)
    said = netctl("config", "get", key)
    assert said.exit_code == 66
    assert ("did you mean trace.max_hops?" in said.stderr) == (key == "trace.max_hop")


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["trace.max_hops", "20"], {"trace.max_hops": 20}),
        (["log.level", "debug"], {"log.level": "debug"}),
        (["log.level", "--text", "20"], {"log.level": "20"}),
        (["trace.max_hops", "--unset"], {"trace.max_hops": None}),
    ],
)
def test_config_set_patches_and_reloads(api, netctl, arguments, body):
    api.answer("PATCH", "/v1/config", CHANGE | {"result": {"changes": CHANGES[:1]}})
    said = netctl("config", "set", *arguments)
    assert said.exit_code == 0
    assert said.stdout.startswith("reloaded: 1 change running\n")
    assert api.requests[-1].body == body


@pytest.mark.parametrize("arguments", [["trace.max_hops"], ["trace.max_hops", "20", "--unset"]])
def test_config_set_wants_a_value_or_unset(api, netctl, arguments):
    assert netctl("config", "set", *arguments).exit_code == 2
    assert api.requests == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20", 20),
        ("-0.5", -0.5),
        ("true", True),
        ('"20"', "20"),
        ('["a", 1]', ["a", 1]),
        ('[{address = "127.0.0.1:0"}]', [{"address": "127.0.0.1:0"}]),
        ("plain text", "plain text"),
        ("", ""),
        ("1\nother = 2", "1\nother = 2"),
        ("2024-01-01", "2024-01-01"),
        ("[2024-01-01]", "[2024-01-01]"),
        ("nan", "nan"),
    ],
)
def test_values_are_toml_or_the_text_they_are(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("value", ["", 'a"b\\c\n\t\x7f\x00é', 1, 1.5, True, [], ["a", [1]], {"a b": {"c": 1}, "d": []}])
def test_brief_toml_is_toml(value):
    assert tomllib.loads(f"value = {brief_toml(value)}")["value"] == value


def test_config_check_tells_all_problems(api, netctl):
    problems = [
        {"path": "trace.max_hosp", "message": "unknown (did you mean max_hops?)", "source": "/etc/netd/netd.toml:4"},
        {"path": "log.level", "message": "must be a level", "source": ""},
    ]
    api.answer("POST", "/v1/config/check", {"ok": False, "problems": problems, "changes": []})
    said = netctl("config", "check")
    assert (said.exit_code, said.stdout) == (78, "")
    assert said.stderr.splitlines() == [
        "/etc/netd/netd.toml:4: trace.max_hosp: unknown (did you mean max_hops?)",
        "log.level: must be a level",
    ]
    assert netctl("config", "check", "--json").exit_code == 78


def test_config_check_and_diff_tell_what_a_reload_would_do(api, netctl):
    api.answer("POST", "/v1/config/check", {"ok": True, "problems": [], "changes": CHANGES})
    api.answer("GET", "/v1/config/diff", {"changes": CHANGES}, {"changes": []})
    said = netctl("config", "check")
    assert said.exit_code == 0
    assert "needs a restart" in said.stdout
    assert "a reload would be refused: only a restart changes control.socket\n" in said.stdout
    assert "a reload would change" not in said.stdout
    assert "needs a restart" in netctl("config", "diff").stdout
    assert netctl("config", "diff").stdout == "no difference: what is on disk is running\n"


def test_config_check_tells_what_a_reload_would_change(api, netctl):
    api.answer("POST", "/v1/config/check", {"ok": True, "problems": [], "changes": CHANGES[:1]})
    said = netctl("config", "check").stdout
    assert "a reload would change:\n" in said
    assert "refused" not in said


def test_config_diff_of_broken_files_is_the_daemons_refusal(api, netctl):
    api.refuse("GET", "/v1/config/diff", 422, "config", "netd.toml:7: trace.x: unknown\nnetd.toml:9: y: unknown")
    said = netctl("config", "diff")
    assert (said.exit_code, said.stdout) == (78, "")
    assert said.stderr == "netctl: netd.toml:7: trace.x: unknown\n  netd.toml:9: y: unknown\n"


def test_config_schema_is_json(api, netctl):
    api.answer("GET", "/v1/config/schema", {"title": "netd"})
    assert json.loads(netctl("config", "schema").stdout) == {"title": "netd"}


# --- events, metrics, log ---------------------------------------------------------------------------------------------

NOTICES = [
    ("hop", {"service": "trace", "time": 1e9, "ttl": 3, "router": "10.0.0.1", "note": 'two "words"'}),
    ("unitChanged", {"service": "netd", "time": 1e9, "state": "running"}),
    ("hop", {"service": "trace", "time": 1e9, "ttl": 4}),
]


def past(api):
    newest = Answer(b'id: b0-3\nevent: missed\ndata: {"count": 3}\n\n', hold=True)
    return api.answer("GET", "/v1/events", newest, sse(*NOTICES, hold=True))


def test_events_are_the_past_unless_followed(api, netctl):
    past(api)
    said = netctl("events", "--kind", "hop", "-n", "1")
    assert said.exit_code == 0
    assert said.stdout.endswith(" ttl=4\n")
    assert said.stdout.count("\n") == 1


def test_events_quote_what_needs_it(api, netctl):
    past(api)
    first = netctl("events", "--service", "trace").stdout.splitlines()[0]
    assert first.endswith(r' ttl=3 router=10.0.0.1 note="two \"words\""')


def test_events_followed_go_on_where_the_past_ended(api, netctl):
    newest = Answer(b'id: b0-3\nevent: missed\ndata: {"count": 3}\n\n', hold=True)
    wrong = Answer({"error": {"kind": "invalid", "message": "cannot go on"}}, 400)
    api.answer("GET", "/v1/events", newest, sse(*NOTICES), sse(("hop", {"ttl": 5}), first=4), wrong)
    said = netctl("events", "--follow", "-n", "2", "--kind", "hop", "--json")
    events = [json.loads(line) for line in said.stdout.splitlines()]
    assert [(event["id"], event["ttl"]) for event in events] == [("b0-1", 3), ("b0-3", 4), ("b0-4", 5)]
    assert api.requests[2].headers["last-event-id"] == "b0-3"
    assert api.requests[2].query == [("kind", "hop")]
    assert said.stderr == '{"error": {"kind": "invalid", "message": "cannot go on"}}\n'  # ended by the canned refusal


METRICS = (
    b"# HELP netd_trace_clients Clients connected.\n# TYPE netd_trace_clients gauge\n"
    b'netd_trace_clients{listener="a b"} 3.0\n# HELP other_up Up.\n# TYPE other_up gauge\nother_up NaN\n'
)


def test_metrics_are_prometheus_text(api, netctl):
    api.answer("GET", "/v1/metrics", Answer(METRICS))
    assert netctl("metrics").stdout.encode() == METRICS
    assert netctl("metrics", "netd_").stdout.encode() == METRICS.partition(b"# HELP other")[0]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_metrics_of_no_such_name(api, netctl, options):
    api.answer("GET", "/v1/metrics", Answer(METRICS))
    said = netctl("metrics", "nosuch", *options)
    assert (said.exit_code, said.stdout) == (66, "")
    assert "cannot find a metric whose name begins with 'nosuch'" in said.stderr


def test_metrics_as_json(api, netctl):
    api.answer("GET", "/v1/metrics", Answer(METRICS), Answer(b"} garbage {"))
    families = json.loads(netctl("metrics", "--json").stdout)["metrics"]
    assert families[0]["samples"] == [{"name": "netd_trace_clients", "labels": {"listener": "a b"}, "value": 3.0}]
    assert families[1]["samples"][0]["value"] == "nan"
    assert netctl("metrics", "--json").exit_code == 76


def test_log_levels_are_shown_and_set(api, netctl):
    levels = {"level": "info", "loggers": {"netd.trace": "debug"}}
    api.answer("GET", "/v1/log", levels).answer("PUT", "/v1/log", levels)
    assert "netd.trace    debug" in netctl("log", "level").stdout
    netctl("log", "level", "DEBUG", "--logger", "netd.trace")
    assert api.requests[-1].body == {"level": "debug", "logger": "netd.trace"}
    assert json.loads(netctl("log", "level", "--reset", "--json").stdout) == levels
    assert api.requests[-1].body == {"level": None, "logger": ""}


@pytest.mark.parametrize(
    ("logger", "hint"),
    [
        ("netd", None),
        ("netd.trace", None),
        ("netd.services.trace", "(did you mean netd.trace?)"),
        ("netd.trcae", "(did you mean netd.trace?)"),
        ("zzz", "no logger zzz;"),
    ],
)
def test_a_level_for_a_logger_that_is_not_there_is_set_with_a_hint(api, netctl, logger, hint):
    api.answer("PUT", "/v1/log", {"level": "info", "loggers": {logger: "debug"}})
    said = netctl("log", "level", "debug", "--logger", logger)
    assert said.exit_code == 0
    assert (hint in said.stderr) if hint else (said.stderr == "")
    assert netctl("log", "level", "debug", "--logger", logger, "--json").stderr == ""


def test_the_loggers_that_netctl_knows_are_those_of_the_daemon():
    sources = Path(netd.__file__).parent.rglob("*.py")
    named = {name for file in sources for name in re.findall(r'^log = .*get_logger\("(.+)"\)', file.read_text(), re.M)}
    assert set(LOGGERS) == named | {f"netd.{service}" for service in Settings().services()}
    with click.Context(log) as ctx:
        assert all(f"netd.{service}" in level.get_help(ctx) for service in Settings().services())


@pytest.mark.parametrize("arguments", [["loud"], ["debug", "--reset"], ["--logger", "netd"]])
def test_log_level_misused(api, netctl, arguments):
    assert netctl("log", "level", *arguments).exit_code == 2
    assert api.requests == []


# --- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_know_words_and_ask_for_the_rest(netctl, shell):
    said = netctl("completion", shell)
    assert said.exit_code == 0
    assert all(noun in said.stdout for noun in NOUNS)
    assert "_NETCTL_COMPLETE=bash_complete" in said.stdout  # one protocol, whatever the shell


def completed(words: str, socket) -> list[str]:
    environment = {
        "_NETCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "NETD_CONTROL__SOCKET": str(socket),
    }
    command = [sys.executable, "-m", "netd.cli.main"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    return [line.partition(",")[2] for line in ended.stdout.splitlines() if line]


def test_words_are_completed_with_and_without_a_daemon(api, tmp_path):
    api.answer("GET", "/v1/services", {"services": [UNIT, BROKEN]})
    assert completed("netctl ", api.socket) == list(NOUNS)
    assert completed("netctl s", api.socket) == ["status", "services", "sessions"]
    assert completed("netctl services stop ", api.socket) == ["trace", "broker"]
    assert completed("netctl services stop b", api.socket) == ["broker"]
    assert completed("netctl services stop ", tmp_path / "nobody.sock") == []
