"""`netctl trace`: lists, runs, and the watch, into a pipe and on a terminal of its own."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from netd.cli.trace_view import screen
from netd.cli.trace_watch import Watch
from tests.cli.conversation import words
from tests.support.fakeapi import Answer, FakeApi, sse

NOW = time.time()


def event(name: str, /, **fields):
    return name, {"service": "trace", "time": NOW, "clientId": "c1", **fields}


def hop(ttl: int, router: str | None, rtt_ms: float | None = None, **more):
    kind = "ttl" if router else "silent"
    return event("hop", traceId="t1", round=1, ttl=ttl, router=router, rttMs=rtt_ms, kind=kind, **more)


CLIENT = (
    event("clientConnected", address="192.0.2.7:50312"),
    hop(1, "10.0.1.1", 0.123),
    hop(3, "10.0.3.1", 12.34, nat=True, asn=64500, asName="EXAMPLE"),
    hop(2, None),
    event("name", traceId="t1", router="10.0.1.1", name="gw\x1b[2J.example"),
    event(
        "clientDone",
        traceId="t1",
        address="192.0.2.7:50312",
        reason="destination",
        rounds=1,
        probes=4,
        elapsedMs=15.0,
        method="tcp",
        destTtl=4,
        pathRttMs=13.1,
        tcpRttMs=13.0,
        pongRttMs=44.0,
        proxy=True,
    ),
)
ROW = {
    "kind": "ttl",
    "rounds": 4,
    "answered": 3,
    "lost": 1,
    "limited": 0,
    "best_ms": 1.0,
    "mean_ms": 1.2,
    "worst_ms": 1.5,
}
RECORD = {
    "id": "00trace00",
    "time": NOW - 50 * 3600,
    "client_id": "c0",
    "address": "198.51.100.3:4000",
    "reason": "destination",
    "method": "udp",
    "dest_ttl": 3,
    "path_rtt_ms": 8.1,
    "path_rtt": {"best_ms": 7.5, "mean_ms": 8.1, "worst_ms": 9.2, "last_ms": 7.9, "jitter_ms": 0.5},
    "rounds": 4,
    "probes": 9,
    "elapsed_ms": 3.0,
    "hops": [
        ROW | {"ttl": 1, "router": "10.0.1.1", "loss_percent": 25.0, "jitter_ms": 0.25},
        ROW
        | {
            "ttl": 2,
            "router": "10.0.2.1",
            "addresses": [{"ip": "10.0.2.1", "count": 2}, {"ip": "10.0.2.9", "count": 1}],
        },
    ],
}


# --- the history ------------------------------------------------------------------------------------------------------


def test_list(api, netctl):
    api.answer("GET", "/v1/trace/traces", {"traces": [RECORD, RECORD | {"client_id": None}]}, {"traces": []})
    said = netctl("trace", "list", "-n", "7", "--client", "c0", "--before", "00trace01").stdout
    assert words(said)[1] == "00trace00 2 d 2 h ago c0 198.51.100.3:4000 3 8.10 udp reached"
    assert "(run)" in said
    assert dict(api.requests[-1].query) == {"limit": "7", "client": "c0", "before": "00trace01"}
    assert netctl("trace", "list").stdout == "no traces in the history\n"


def test_show(api, netctl):
    api.answer("GET", "/v1/trace/traces/00trace00", RECORD)
    said = netctl("trace", "show", "00trace00")
    assert said.exit_code == 0
    lines = words(said.stdout)
    assert lines[1] == "3 hops, path 8.10 ms, by UDP beside it, 9 probes"
    assert lines[3:] == [
        "TTL ROUTER RTT ms BEST MEAN WORST JITTER LOSS",
        "1 10.0.1.1 1.20 1.00 1.20 1.50 0.250 25 %",
        "2 10.0.2.1 +1 1.20 1.00 1.20 1.50",
        "3 198.51.100.3:4000 7.90 7.50 8.10 9.20 0.500 ← destination",
    ]
    assert json.loads(netctl("trace", "show", "00trace00", "--json").stdout) == RECORD


def test_show_of_nothing(api, netctl):
    api.refuse("GET", "/v1/trace/traces/x", 404, "not-found", "cannot find trace x")
    assert netctl("trace", "show", "x").exit_code == 66


def test_an_id_of_no_form_is_one_that_nothing_has(api, netctl):
    message = "cannot accept id: string should match pattern '^[0-9a-hjkmnp-tv-z]{9}$'"
    api.refuse("GET", "/v1/trace/traces/zzz", 422, "invalid", message, "id")
    api.refuse("POST", "/v1/trace/clients/zzz/trace", 422, "invalid", message, "id")
    api.refuse("GET", "/v1/trace/traces", 422, "invalid", message, "before")
    api.refuse("GET", "/v1/trace/traces", 422, "invalid", message, "client")
    api.refuse("GET", "/v1/trace/traces", 422, "invalid", message, "limit")
    shown = netctl("trace", "show", "zzz")
    assert (shown.exit_code, shown.stdout) == (66, "")
    assert shown.stderr == "netctl: cannot find trace 'zzz': no such trace id (netctl trace list lists them)\n"
    assert "no such client id" in netctl("trace", "clients", "zzz").stderr
    given = ("trace", "list", "--before", "yyy", "--client", "zzz")
    assert "cannot find trace 'yyy'" in netctl(*given).stderr
    assert "cannot find client 'zzz'" in netctl(*given).stderr
    assert netctl(*given).stderr == f"netctl: {message}\n", "another field is none of this"


def test_the_id_of_trace_clients_is_optional(netctl):
    assert "[ID]" in netctl("trace", "clients", "--help").stdout


def test_on_a_narrow_terminal_lists_keep_ids_and_addresses_whole(api, netctl):
    address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:50312"
    client = {"client_id": "c12345678", "address": address, "connected": NOW - 60, "state": "idle", "traces": 2}
    api.answer("GET", "/v1/trace/traces", {"traces": [RECORD | {"client_id": "c12345678"}]}, {"traces": [RECORD]})
    api.answer("GET", "/v1/trace/clients", {"clients": [client]})
    said = netctl("trace", "list", COLUMNS="60").stdout
    assert max(len(line) for line in said.splitlines()) <= 60
    assert all(word in said for word in ("00trace00", "198.51.100.3:4000", "8.10", "reached"))
    assert not any(word in said for word in ("CLIENT", "METHOD"))
    clients = netctl("trace", "clients", COLUMNS="60").stdout
    assert f"c12345678  {address}" in clients
    assert max(len(line) for line in clients.splitlines()) <= 60


def test_a_silent_router_a_limiting_one_and_an_answer_of_another_trace(api, netctl):
    silent = ROW | {"kind": "silent", "router": None, "answered": 0, "lost": 0, "limited": 0, "loss_percent": None}
    hops = [
        silent | {"ttl": 1, "silent": 4},
        silent | {"ttl": 2, "limited": 4},  # an older record: it knew no silence
        ROW | {"ttl": 3, "router": "10.0.3.1", "lost": 0, "limited": 1},
        ROW | {"ttl": 4, "router": "10.0.4.1", "kind": "shared"},
    ]
    api.answer("GET", "/v1/trace/traces/t", RECORD | {"hops": hops, "dest_ttl": 5})
    lines = words(netctl("trace", "show", "t").stdout)
    assert ["rate limited" in line for line in lines[4:8]] == [False, False, True, False]
    assert all(line.startswith(f"{ttl} (silent)") for ttl, line in enumerate(lines[4:6], 1))
    assert lines[7].endswith(" shared")


def test_a_trace_that_ended_early_says_how_many_rounds_were_done(api, netctl):
    early = RECORD | {"rounds": 3, "rounds_wanted": 10, "reason": "closed"}
    api.answer("GET", "/v1/trace/traces/t", early, RECORD | {"rounds_wanted": 4})
    assert "3 hops, the connection ended, 3 of 10 rounds, path" in netctl("trace", "show", "t").stdout
    assert "of 4" not in netctl("trace", "show", "t").stdout


def test_clients_and_one_more_trace(api, netctl):
    client = {"client_id": "c1", "address": "192.0.2.7:50312", "connected": NOW - 60, "state": "idle", "traces": 2}
    api.answer("GET", "/v1/trace/clients", {"clients": [client]}, {"clients": []})
    api.answer("POST", "/v1/trace/clients/c1/trace", client, status=202)
    assert "c1  192.0.2.7:50312" in netctl("trace", "clients").stdout
    assert netctl("trace", "clients").stdout == "no clients connected\n"
    assert netctl("trace", "clients", "c1").stdout.startswith("tracing")


# --- the watch, into a pipe -------------------------------------------------------------------------------------------


def test_watch_into_a_pipe_is_a_line_an_event_and_ends_after_the_count(api, netctl):
    api.answer("GET", "/v1/events", sse(*CLIENT, event("clientGone", reason="never read"), hold=True))
    said = netctl("trace", "watch", "--once")
    assert said.exit_code == 0
    lines = [line.split("  ", 2) for line in said.stdout.splitlines()]
    assert {who for _, who, _ in lines} == {"192.0.2.7:50312"}
    assert [what for _, _, what in lines] == [
        "connected (c1)",
        "hop  1  10.0.1.1         0.123 ms",
        "hop  3  10.0.3.1         12.3 ms  AS64500 EXAMPLE  (NAT)",
        "hop  2  *                (no answer)",
        r"10.0.1.1 is gw\x1b[2J.example",
        "done: 4 hops, path 13.1 ms, TCP 13.0 ms, pong 44.0 ms, proxy or VPN between, in-connection, 4 probes",
    ]
    assert api.requests[0].query == [("service", "trace")]
    assert api.asked("GET", "/v1/trace/traces") == []  # the past is for the screen


def test_watch_as_json_is_an_object_a_line(api, netctl):
    api.answer("GET", "/v1/events", sse(*CLIENT, hold=True))
    said = netctl("trace", "watch", "--count", "1", "--json")
    events = [json.loads(line) for line in said.stdout.splitlines()]
    assert [event["event"] for event in events] == [kind for kind, _ in CLIENT]
    assert events[1]["kind"] == "ttl"
    assert events[1]["id"] == "b0-2"


def test_watch_counts_finished_traces(api, netctl):
    api.answer("GET", "/v1/events", sse(*CLIENT, *CLIENT, *CLIENT, hold=True))
    assert netctl("trace", "watch", "--count", "2").stdout.count("done:") == 2


def test_watch_misused(api, netctl):
    assert netctl("trace", "watch", "--once", "--count", "2").exit_code == 2
    assert netctl("trace", "watch", "--count", "0").exit_code == 2


# --- run --------------------------------------------------------------------------------------------------------------

DONE = {"reason": "destination", "dest_ttl": 3, "path_rtt_ms": 5.5, "method": "tcp", "probes": 3, "rounds": 1}


def test_run_into_a_pipe(api, netctl):
    hops = [("hop", {"ttl": 1, "router": "10.0.1.1", "rtt_ms": 0.5, "kind": "ttl", "round": 1, "trace_id": "t"})]
    hops += [("hop", {"ttl": 2, "router": None, "rtt_ms": None, "kind": "silent", "round": 1, "trace_id": "t"})]
    api.answer("POST", "/v1/trace/run", sse(*hops, ("done", DONE), hold=True))
    said = netctl(
        "trace", "run", "192.0.2.9:80", "--rounds", "1", "--interval", "0.5", "--max-hops", "9", "--send", "tls"
    )
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [
        " 1  10.0.1.1         0.500 ms",
        " 2  *                (no answer)",
        "192.0.2.9:80: 3 hops, path 5.50 ms, in-connection, 3 probes",
    ]
    wanted = {"target": "192.0.2.9:80", "rounds": 1, "interval": 0.5, "max_hops": 9, "send": "tls"}
    assert api.requests[0].body == wanted


def test_run_of_several_rounds_ends_with_the_figures(api, netctl):
    hops = [
        ("hop", {"ttl": 1, "router": "10.0.1.1", "rtt_ms": ms, "kind": "ttl", "round": n})
        for n, ms in enumerate((1.0, 3.0), 1)
    ]
    api.answer("POST", "/v1/trace/run", sse(*hops, ("done", DONE | {"dest_ttl": 2, "rounds": 2}), hold=True))
    lines = words(netctl("trace", "run", "192.0.2.9", "--rounds", "2").stdout)
    assert lines[2] == "TTL ROUTER RTT ms BEST MEAN WORST LOSS"
    assert lines[3] == "1 10.0.1.1 3.00 1.00 2.00 3.00 0 %"


def test_run_as_json(api, netctl):
    api.answer("POST", "/v1/trace/run", sse(("hop", {"ttl": 1}), ("done", DONE), hold=True))
    lines = [json.loads(line) for line in netctl("trace", "run", "192.0.2.9", "--json").stdout.splitlines()]
    assert [line["event"] for line in lines] == ["hop", "done"]


def test_run_as_json_has_no_ids_where_the_stream_has_none(api, netctl):
    stream = b'event: hop\ndata: {"ttl": 1}\n\nevent: done\ndata: {}\n\n'
    api.answer("POST", "/v1/trace/run", Answer(stream, headers={"content-type": "text/event-stream"}, hold=True))
    lines = [json.loads(line) for line in netctl("trace", "run", "192.0.2.9", "--json").stdout.splitlines()]
    assert lines == [{"event": "hop", "ttl": 1}, {"event": "done"}]


def test_run_refused_in_the_middle(api, netctl):
    failed = ("error", {"error": {"kind": "service", "message": "cannot connect to 192.0.2.9:443: refused"}})
    api.answer("POST", "/v1/trace/run", sse(failed))
    said = netctl("trace", "run", "192.0.2.9")
    assert (said.exit_code, said.stderr) == (69, "netctl: cannot connect to 192.0.2.9:443: refused\n")


def test_run_cut_short_is_an_error(api, netctl):
    api.answer("POST", "/v1/trace/run", sse(("hop", {"ttl": 1, "router": "10.0.1.1", "rtt_ms": 1.0})))
    said = netctl("trace", "run", "192.0.2.9")
    assert said.exit_code == 69
    assert "cannot get a whole answer" in said.stderr


CLOSED = DONE | {"reason": "closed", "dest_ttl": None, "path_rtt_ms": None, "rounds": 2, "rounds_wanted": 5}


def test_run_that_ended_before_all_its_rounds_is_an_error(api, netctl):
    api.answer("POST", "/v1/trace/run", sse(("done", CLOSED), hold=True))
    said = netctl("trace", "run", "192.0.2.9:80", "--rounds", "5")
    assert said.exit_code == 69
    assert said.stdout == "192.0.2.9:80: the connection ended, 2 of 5 rounds, in-connection, 3 probes\n"
    message = "cannot finish the trace to 192.0.2.9:80 after 2 of 5 rounds: the connection ended"
    assert said.stderr == f"netctl: {message}\n"
    said = netctl("trace", "run", "192.0.2.9:80", "--rounds", "5", "--json")
    assert (said.exit_code, json.loads(said.stdout)["rounds"]) == (69, 2)
    assert json.loads(said.stderr) == {"error": {"kind": "service", "message": message}}


def test_run_that_sent_no_probe_is_an_error(api, netctl):
    refused = DONE | {"reason": "limited", "dest_ttl": None, "path_rtt_ms": None, "probes": 0, "rounds_wanted": 1}
    api.answer("POST", "/v1/trace/run", sse(("done", refused), hold=True))
    said = netctl("trace", "run", "192.0.2.9:80")
    message = "cannot finish the trace to 192.0.2.9:80: a limit did not let it run"
    assert (said.exit_code, said.stderr) == (69, f"netctl: {message}\n")


def test_run_of_one_round_that_found_no_end_is_none(api, netctl):
    api.answer("POST", "/v1/trace/run", sse(("done", CLOSED | {"rounds": 1, "rounds_wanted": 1}), hold=True))
    assert netctl("trace", "run", "192.0.2.9:80").exit_code == 0


# --- on a terminal ----------------------------------------------------------------------------------------------------


class Terminal:
    """netctl on a pseudo terminal of 90 columns and 24 lines."""

    def __init__(self, api: FakeApi, *arguments: str) -> None:
        self.screen, inner = pty.openpty()
        os.set_blocking(self.screen, True)
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "90", "LINES": "24"}
        environment.pop("NO_COLOR", None)
        command = [sys.executable, "-m", "netd.cli.main", "--socket", str(api.socket), *arguments]
        self.process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
        os.close(inner)
        self.written = ""

    def read_until(self, pattern: str) -> None:
        while not re.search(pattern, self.written):
            self.written += self._read()

    def finish(self) -> int:
        while chunk := self._read():
            self.written += chunk
        os.close(self.screen)
        return self.process.wait(30)

    def _read(self) -> str:
        try:
            return os.read(self.screen, 65536).decode()
        except OSError:  # EIO: the other side is closed
            return ""

    def plain(self) -> str:
        return re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", self.written)


def recorded(tmp_path) -> FakeApi:
    api = FakeApi(tmp_path).answer("GET", "/v1/trace/traces", {"traces": [RECORD]})
    return api.answer("GET", "/v1/trace/traces/00trace00", RECORD)


def test_watch_on_a_terminal_shows_the_past_and_hops_as_they_come(tmp_path):
    api = recorded(tmp_path).answer("GET", "/v1/events", sse(*CLIENT, hold=True))
    with api.serving():
        terminal = Terminal(api, "trace", "watch", "--once")
        assert terminal.finish() == 0
    said = terminal.plain()
    assert "198.51.100.3:4000 c0  3 hops, path 8.10 ms" in said
    last = said[said.rindex("netd trace") :]
    assert "1 client, 0 being traced, 1 finished" in last
    assert "192.0.2.7:50312 c1  4 hops, path 13.1 ms" in last
    assert r"gw\x1b[2J.example" in last
    assert "(silent)" in last
    assert last.count("← destination") == 2
    assert terminal.written.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_watch_gives_the_terminal_back_when_it_is_ended(tmp_path, number, code):
    api = recorded(tmp_path).answer("GET", "/v1/events", sse(*CLIENT[:2], hold=True))
    with api.serving():
        terminal = Terminal(api, "trace", "watch")
        terminal.read_until("0.123")
        terminal.process.send_signal(number)
        assert terminal.finish() == code
    assert "Traceback" not in terminal.written
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")


def test_watch_without_a_history_still_watches(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", sse(*CLIENT, hold=True))
    with api.serving():
        terminal = Terminal(api, "trace", "watch", "--once")
        assert terminal.finish() == 0
    assert "4 hops" in terminal.plain()


def test_run_on_a_terminal(tmp_path):
    hops = [("hop", {"ttl": 1, "router": "10.0.1.1", "rtt_ms": 0.5, "kind": "ttl", "round": 1})]
    api = FakeApi(tmp_path).answer("POST", "/v1/trace/run", sse(*hops, ("done", DONE | {"dest_ttl": 2}), hold=True))
    with api.serving():
        terminal = Terminal(api, "trace", "run", "192.0.2.9")
        assert terminal.finish() == 0
    assert "● 192.0.2.9  2 hops" in terminal.plain(), "the address once"
    assert "10.0.1.1" in terminal.plain()


def test_run_on_a_terminal_that_ended_early_says_so_below_the_screen(tmp_path):
    api = FakeApi(tmp_path).answer("POST", "/v1/trace/run", sse(("done", CLOSED), hold=True))
    with api.serving():
        terminal = Terminal(api, "trace", "run", "192.0.2.9")
        assert terminal.finish() == 69
    assert "netctl: cannot finish the trace to 192.0.2.9 after 2 of 5 rounds" in terminal.plain().splitlines()[-1]


def test_a_refusal_on_a_terminal_leaves_no_half_screen(tmp_path):
    api = FakeApi(tmp_path).answer("GET", "/v1/events", Answer({"error": {"kind": "denied", "message": "cannot"}}, 403))
    with api.serving():
        terminal = Terminal(api, "trace", "watch")
        assert terminal.finish() == 77
    assert terminal.plain().strip() == "netctl: cannot"


@pytest.mark.parametrize("height", [8, 12, 24, 40])
def test_the_screen_fits_its_height_and_shows_who_was_heard_of_last(height):
    watch = Watch()
    for number in range(12):
        for kind, fields in CLIENT:
            watch.see(kind, fields | {"clientId": f"c{number}", "address": f"192.0.2.{number}:1"})
    watch.see("error", {"message": "cannot do everything"})
    out = Console(width=90, height=height)
    with out.capture() as captured:
        out.print(screen(watch, height))
    lines = captured.get().splitlines()
    assert len(lines) <= max(height, 13)  # one client is always shown whole
    assert max(len(line) for line in lines) <= 90
    assert any("192.0.2.11:1" in line for line in lines)
