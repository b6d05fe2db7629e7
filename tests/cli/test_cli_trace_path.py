"""A path from its hops, and the watch's clients from their events: pure, fed by hand and by hypothesis."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from netd.cli.trace_path import MAX_ADDRESSES, MAX_TTL, Route, notes, snake
from netd.cli.trace_view import event_line, heading, hop_line, screen
from netd.cli.trace_watch import MAX_CLIENTS, Watch


def hop(ttl: int, router: str | None = None, rtt_ms: float | None = None, **more):
    return {"ttl": ttl, "router": router, "rttMs": rtt_ms, "kind": "ttl" if router else "silent", "round": 1, **more}


def route_of(*hops) -> Route:
    route = Route()
    for fields in hops:
        route.see_hop(fields)
    return route


def rows(route: Route):
    return {row.ttl: row for row in route.rows()}


def test_hops_in_any_order_become_rows_in_order():
    route = route_of(hop(3, "10.0.3.1", 3.0), hop(1, "10.0.1.1", 1.0), hop(2))
    assert [(row.ttl, row.router, row.last_ms) for row in route.rows()] == [
        (1, "10.0.1.1", 1.0),
        (2, None, None),
        (3, "10.0.3.1", 3.0),
    ]


def test_figures_over_rounds():
    route = route_of(*(hop(1, "10.0.1.1", ms, round=n) for n, ms in enumerate((4.0, 2.0, 6.0), 1)), hop(1, round=4))
    row = rows(route)[1]
    assert (row.best_ms, row.mean_ms, row.worst_ms, row.last_ms, row.rounds) == (2.0, 4.0, 6.0, 6.0, 4)
    assert route.round == 4


def test_a_time_of_zero_counts():
    row = rows(route_of(hop(1, "10.0.1.1", 0.0), hop(1, "10.0.1.1", 2.0, round=2)))[1]
    assert (row.best_ms, row.mean_ms) == (0.0, 1.0)


def test_silence_is_loss_only_when_nothing_farther_answered():
    route = route_of(
        *(hop(1, "10.0.1.1", 1.0), hop(2, "10.0.2.1", 2.0), hop(3, "10.0.3.1", 3.0), hop(4, "10.0.4.1", 3.0)),
        *(hop(1, "10.0.1.1", 1.0, round=2), hop(3, "10.0.3.1", 3.0, round=2), hop(2, round=2), hop(4, round=2)),
    )
    route.end({"destTtl": None, "reason": "timeout"})
    assert {ttl: row.loss_percent for ttl, row in rows(route).items()} == {1: 0, 2: 0, 3: 0, 4: 50}


def test_silence_before_a_destination_that_answered_is_no_loss():
    route = route_of(hop(1, "10.0.1.1", 1.0), hop(2))
    assert rows(route)[2].loss_percent is None
    route.end({"destTtl": 3})
    assert rows(route)[2].loss_percent is None
    unreached = route_of(hop(1, "10.0.1.1", 1.0), hop(2))
    unreached.end({"reason": "timeout"})
    assert rows(unreached)[2].loss_percent == 100


def test_rate_limiting_is_no_loss():
    route = route_of(hop(1, "10.0.1.1", 1.0), hop(1, round=2, limited=True))
    route.end({})
    row = rows(route)[1]
    assert (row.loss_percent, row.notes) == (0, ["rate limited"])


def test_a_router_that_never_answered_is_not_called_rate_limited_in_the_end():
    route = route_of(hop(1, limited=True))
    route.see_rows({"hops": [{"ttl": 1, "router": None, "answered": 0, "silent": 1, "loss_percent": None}]})
    assert rows(route)[1].notes == []


def test_a_shared_answer_is_marked_until_the_router_answers_itself():
    route = route_of(hop(1, "10.0.1.1", 1.0, kind="shared", nat=True))
    assert rows(route)[1].remarks == ["NAT", "shared"]
    assert hop_line(rows(route)[1], {"router": "10.0.1.1", "rtt_ms": 1.0}).endswith("(NAT, shared)")
    route.see_hop(hop(1, "10.0.1.1", 1.0, round=2))
    assert rows(route)[1].remarks == ["NAT"]


def test_a_shared_answer_proves_nothing_about_this_round():
    route = route_of(hop(2, "10.0.2.1", 1.0, kind="shared"), hop(1))
    route.end({})
    assert rows(route)[1].loss_percent == 100


def test_the_daemons_own_figures_win():
    route = route_of(hop(1, "10.0.1.1", 1.0))
    given_row = {"ttl": 1, "router": "10.0.1.1", "rounds": 9, "loss_percent": 25.0, "jitter_ms": 0.2, "last_ms": 5.0}
    addresses = [{"ip": "10.0.1.1", "count": 5}, {"ip": "10.0.1.2", "count": 3}, {"ip": None, "count": 1}]
    route.see_rows({"hops": [given_row | {"addresses": addresses}]})
    route.see_hop(hop(1, "10.0.1.1", 2.0, round=10))
    row = rows(route)[1]
    assert (row.loss_percent, row.jitter_ms, row.rounds, row.last_ms) == (25.0, 0.2, 10, 2.0)
    assert row.addresses == {"10.0.1.1": 6, "10.0.1.2": 3}


def test_rows_end_before_the_destination():
    route = route_of(hop(1, "10.0.1.1", 1.0), hop(2, "10.0.2.1", 1.0), hop(3), hop(4))
    route.end({"dest_ttl": 3})
    assert [row.ttl for row in route.rows()] == [1, 2]


def test_names_come_later_and_only_to_their_router():
    route = route_of(hop(1, "10.0.1.1", 1.0, asn=64500, asName="EXAMPLE"), hop(2, "10.0.2.1", 1.0))
    route.see_name("10.0.1.1", "a.example")
    assert [(row.name, row.asn, row.as_name) for row in route.rows()] == [
        ("a.example", 64500, "EXAMPLE"),
        (None, None, None),
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, []),
        ({"nat": True}, ["NAT"]),
        ({"nat": False, "limited": False}, []),
        ({"kind": "unreach", "unreach_code": 13}, ["unreachable, code 13"]),
        ({"kind": "unreach"}, ["unreachable"]),
        ({"mpls": [{"label": 16}, {"label": 300}]}, ["MPLS 16/300"]),
        ({"limited": 0, "answered": 3}, []),
        ({"limited": 2, "answered": 1}, ["rate limited"]),
        ({"limited": 4, "answered": 0}, []),
        ({"limited": True}, ["rate limited"]),
        ({"quoted_tos": 0, "next_mtu": 1400}, ["TOS 0", "MTU 1400"]),
    ],
)
def test_what_is_remarkable_about_a_hop(fields, words):
    assert notes(fields) == words


def test_a_path_stays_bounded():
    route = route_of(*(hop(ttl, "10.0.0.1", 1.0) for ttl in range(-3, 300)))
    assert [row.ttl for row in route.rows()] == list(range(1, MAX_TTL + 1))
    many = route_of(*(hop(1, f"10.0.0.{n}", 1.0, round=n) for n in range(1, 200)))
    assert len(rows(many)[1].addresses) == MAX_ADDRESSES


OUT = Console(width=90, height=24)

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["label", "ip", "ttl"]), inner),
    max_leaves=5,
)
# fmt: off
KEYS = [
    "ttl", "router", "addr", "ip", "rttMs", "rtt_ms", "kind", "round", "name", "asn", "asName", "nat", "mpls",
    "limited", "unreachCode", "quotedTos", "nextMtu", "hops", "rows", "destTtl", "addresses", "rounds",
    "loss_percent", "clientId", "traceId", "address", "message", "count", "reason", "time", "pathRttMs",
    "method", "probes", "proxy",
]
# fmt: on
KINDS = ["clientConnected", "hop", "name", "clientDone", "clientGone", "error", "missed", "ended", "later"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(KEYS), anything)), max_size=8))
def test_whatever_fields_come_the_watch_lives(events):
    watch = Watch()
    for kind, fields in events:
        client, row = watch.see(kind, fields)
        assert event_line(kind, snake(fields), client, row).isprintable()
    for client in watch.clients():
        assert all(1 <= row.ttl <= MAX_TTL for row in client.route.rows())
    assert "netd trace" in shown(screen(watch, 24))


def shown(what) -> str:
    with OUT.capture() as captured:
        OUT.print(what)
    return captured.get()


# --- the watch --------------------------------------------------------------------------------------------------------


def connected(client_id: str):
    return "clientConnected", {"clientId": client_id, "address": f"192.0.2.1:{client_id[1:]}"}


def seen(*events) -> Watch:
    watch = Watch()
    for kind, fields in events:
        watch.see(kind, fields)
    return watch


def test_a_clients_stay():
    watch = seen(connected("c1"))
    (client,) = watch.clients()
    assert (client.state, client.address) == ("connected", "192.0.2.1:1")
    watch.see("hop", hop(1, "10.0.1.1", 1.0, clientId="c1", traceId="t1"))
    assert client.state == "tracing"
    watch.see("clientDone", {"clientId": "c1", "traceId": "t1", "destTtl": 2, "pathRttMs": 3.5})
    assert (client.state, client.done["path_rtt_ms"], watch.finished) == ("done", 3.5, 1)
    watch.see("hop", hop(1, "10.0.9.1", 1.0, clientId="c1", traceId="t2"))
    assert (client.state, client.done, [row.router for row in client.route.rows()]) == ("tracing", {}, ["10.0.9.1"])
    watch.see("clientGone", {"clientId": "c1", "reason": "closed"})
    assert client.state == "gone"
    assert heading(client).plain.startswith("○ 192.0.2.1:1 c1  "), "leaving is no failure"


def test_a_hop_of_a_client_that_was_there_before_the_watch():
    watch = seen(("hop", hop(1, "10.0.1.1", 1.0, clientId="c9", traceId="t1")))
    assert [(client.id, client.state) for client in watch.clients()] == [("c9", "tracing")]


def test_a_daemon_that_names_no_traces_begins_anew_after_done():
    watch = seen(("hop", hop(1, "a", 1.0, clientId="c1")), ("clientDone", {"clientId": "c1"}))
    watch.see("hop", hop(2, "b", 1.0, clientId="c1"))
    assert [row.ttl for row in watch.clients()[0].route.rows()] == [2]


def test_the_past_never_overwrites_the_present():
    watch = seen(connected("c1"))
    record = {"id": "t0", "address": "198.51.100.1:9", "dest_ttl": 2, "hops": [hop(1, "10.0.1.1", 1.0)]}
    watch.recall(record | {"client_id": "c1"})
    watch.recall(record | {"client_id": "c0"})
    watch.recall(record | {"client_id": None})  # a run of an operator: known by its own id
    assert [(client.id, client.state) for client in watch.clients()] == [
        ("c1", "connected"),
        ("c0", "recorded"),
        ("t0", "recorded"),
    ]
    assert [row.router for row in watch.clients()[1].route.rows()] == ["10.0.1.1"]
    assert watch.finished == 0


def test_complaints_losses_and_restarts_are_kept():
    watch = seen(connected("c1"), ("missed", {"count": 4}), ("missed", {"count": 3}), ("ended", {}))
    assert (watch.missed, watch.ended) == (7, True)
    watch.see("error", {"message": "cannot trace", "clientId": "c1"})
    assert (watch.error, watch.ended) == ("192.0.2.1:1: cannot trace", False)
    watch.see("error", {"message": "no loopback"})
    assert watch.error == "no loopback"


def test_the_watch_forgets_who_is_gone_first():
    watch = seen(*(connected(f"c{n}") for n in range(MAX_CLIENTS)), ("clientGone", {"clientId": "c7"}))
    watch.see(*connected("c9999"))
    ids = {client.id for client in watch.clients()}
    assert len(ids) == MAX_CLIENTS
    assert "c7" not in ids
    watch.see(*connected("c9998"))
    assert "c0" not in {client.id for client in watch.clients()}


def test_snake():
    assert snake({"pathRttMs": 1, "dest_ttl": 2, "kind": 3}) == {"path_rtt_ms": 1, "dest_ttl": 2, "kind": 3}


def test_a_client_that_was_there_before_the_watch_is_known_by_its_address():
    watch = Watch()
    watch.greet({"client_id": "c1", "address": "192.0.2.1:5", "state": "tracing"})

    client, _ = watch.see("hop", {"clientId": "c1", "traceId": "t1", "ttl": 1, "router": "192.0.2.254", "rttMs": 1.0})

    assert client is not None
    assert (client.address, client.state) == ("192.0.2.1:5", "tracing")
