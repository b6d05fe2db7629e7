"""The words between the service and its clients."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.errors import ProtocolError
from netd.net.paths.path import MplsLabel
from netd.services.trace import protocol
from netd.services.trace.protocol import PingAsked, TraceAsked, is_private, parse
from netd.services.trace.rounds import Rounds
from tests.services.trace.lab import hop, path

PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "169.254.9.9", "127.0.0.1", "fd00::1", "fe80::1%eth0"]
PUBLIC = ["192.0.2.1", "172.32.0.1", "100.128.0.1", "2001:db8::1", "8.8.8.8"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


# --- in --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ('{"type":"trace"}', TraceAsked()),
        ('{"type":"trace","more":[1]}', TraceAsked()),
        ('{"type":"ping"}', PingAsked()),
        ('{"type":"ping","id":7}', PingAsked(7)),
        ('{"type":"ping","id":"a"}', PingAsked("a")),
    ],
)
def test_what_a_client_may_say(text: str, meaning: object) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"\x00", "binary"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("NaN", "not JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", 'no "type"'),
        ('{"type":1}', 'no "type"'),
        ('{"type":"hop"}', "of type 'hop'"),
        ('{"type":"ping","id":true}', "id must be"),
        ('{"type":"ping","id":1e3}', "id must be"),
        ('{"type":"ping","id":' + "9" * 30 + "}", "id must be"),
        (json.dumps({"type": "ping", "id": "x" * 65}), "id must be"),
    ],
)
def test_anything_else_gets_a_sentence(message: str | bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says) as caught:
        parse(message)
    assert str(caught.value).startswith("cannot ")
    assert caught.value.origin == "remote"


@given(st.text() | st.binary() | json_values.map(json.dumps) | json_values.map(lambda v: json.dumps({"type": v})))
def test_nothing_a_client_says_gets_past_parse(message: str | bytes) -> None:
    try:
        meaning = parse(message)
    except ProtocolError as error:
        # and the answer can be sent, whatever was quoted in it
        sent = protocol.encode(protocol.error(str(error)))
        assert sent.isascii()
        assert len(sent) < 1000
    else:
        assert isinstance(meaning, TraceAsked | PingAsked)


def test_a_lone_surrogate_comes_back_as_it_came() -> None:
    asked = parse('{"type":"ping","id":"\\ud800"}')
    assert isinstance(asked, PingAsked)
    assert protocol.encode(protocol.pong(asked)) == '{"type":"pong","id":"\\ud800"}'


# --- out -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("addr", "private"), [*((a, True) for a in PRIVATE), *((a, False) for a in PUBLIC)])
def test_what_is_private(addr: str, private: bool) -> None:
    assert is_private(addr) is private


def test_an_ipv4_address_in_ipv6_dress_is_what_it_is_and_nonsense_is_private() -> None:
    assert is_private("::ffff:10.0.0.1")
    assert not is_private("::ffff:8.8.8.8")
    assert is_private("not an address")


def test_a_hop_as_the_client_reads_it() -> None:
    label = MplsLabel(label=16001, traffic_class=1, bottom=True, ttl=254)
    found = hop(2, "198.51.100.7", 4.25049, reply_ttl=62, nat=True, mpls=(label,))
    assert protocol.hop("t", 1, found, reveal_private=False, name="r2.example", system=(64500, "EXAMPLE")) == {
        "type": "hop",
        "trace_id": "t",
        "round": 1,
        "ttl": 2,
        "ip": "198.51.100.7",
        "router": "198.51.100.7",
        "rtt_ms": 4.25,
        "kind": "ttl",
        "reply_ttl": 62,
        "nat": True,
        "mpls": [{"label": 16001, "traffic_class": 1, "bottom": True, "ttl": 254}],
        "name": "r2.example",
        "asn": 64500,
        "as_name": "EXAMPLE",
    }


def test_a_silent_hop_has_no_address_and_is_not_called_private() -> None:
    message = protocol.hop("t", 3, hop(3, None, limited=True), reveal_private=False)
    assert (message["ip"], message["rtt_ms"], message["kind"], message["limited"]) == (None, None, "silent", True)
    assert "private" not in message


@pytest.mark.parametrize("addr", PRIVATE)
def test_nothing_of_a_private_hop_gets_out(addr: str) -> None:
    label = MplsLabel(label=16001, traffic_class=0, bottom=True, ttl=1)
    found = hop(1, addr, 0.5, mpls=(label,))
    message = protocol.hop("t", 1, found, reveal_private=False, name="gw.home.example", system=(1, "X"))
    assert (message["ip"], message["router"], message["private"], message["rtt_ms"]) == (None, None, True, 0.5)
    text = protocol.encode(message)
    assert all(secret not in text for secret in (addr.partition("%")[0], "gw.home", "asn", "16001"))
    assert protocol.hop("t", 1, found, reveal_private=True)["ip"] == addr


@given(st.lists(st.sampled_from([*PRIVATE, *PUBLIC]), min_size=1, max_size=6))
def test_statistics_withhold_private_addresses_too(addresses: list[str]) -> None:
    rounds = Rounds()
    for addr in addresses:
        rounds.add(path(hop(1, addr)))
    row = rounds.rows()[0]
    done = protocol.client_done("c", "t", "destination", rounds.summary(), [row], reveal_private=False)
    text = protocol.encode(done)
    for addr in set(addresses):
        assert (f'"{addr}"' in text) is not is_private(addr)
    assert sum(entry["count"] for entry in done["hops"][0]["addresses"]) == len(addresses)
    assert done["hops"][0].get("private", False) is any(is_private(addr) for addr in addresses)


def test_a_client_that_is_not_to_know_learns_only_that_it_is_over() -> None:
    done = protocol.client_done("c", "t", "destination", None, [], reveal_private=False)
    assert done == {"type": "clientDone", "client_id": "c", "trace_id": "t", "reason": "destination"}


def test_the_done_message_has_the_whole_summary() -> None:
    rounds = Rounds()
    rounds.add(path(hop(1, "192.0.2.1"), tcp_rtt_ms=9.0))
    rounds.add_pong(100.0)
    done: dict[str, Any] = protocol.client_done(
        "c", "t", "draining", rounds.summary(), rounds.rows(), reveal_private=False
    )
    assert (done["dest_ttl"], done["path_rtt_ms"], done["pong_rtt_ms"], done["proxy"]) == (2, 10.0, 100.0, True)
    assert (done["method"], done["reason"], done["probes"], done["rounds"]) == ("tcp", "draining", 2, 1)
    assert done["hops"][0]["loss_percent"] == 0.0


@pytest.mark.parametrize(("delay", "milliseconds"), [(0.0001, 1), (5.0, 5000), (4.9995, 5000)])
def test_who_comes_back_when_told_is_not_too_early(delay: float, milliseconds: int) -> None:
    assert protocol.waiting(delay)["retry_after_ms"] == milliseconds
    assert protocol.error("cannot", retry_after=delay)["retry_after_ms"] == milliseconds
