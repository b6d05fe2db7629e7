"""The strategy of one round, over simulated paths under a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.net.paths.path import TraceOptions
from netd.net.paths.round import Finished, Probe, Round
from tests.support.simpath import SimNet, routers


@pytest.mark.parametrize("length", [0, 1, 5, 20, 29])
def test_an_exact_distance_takes_one_probe_a_ttl_and_one_round_trip(length):
    net = SimNet()
    client = net.client("198.51.100.7", routers(length))
    start = net.now
    net.run()
    assert (client.reason, client.round.destination) == ("destination", length + 1)
    assert client.hops == client.truth
    assert client.round.probes == length + 1
    assert len(client.reached) == 1
    assert client.ended - start == pytest.approx(client.rtt)


def test_everything_goes_out_at_once_the_last_router_and_the_peer_first():
    net = SimNet()
    client = net.client("198.51.100.7", routers(4))
    net.run()
    assert [ttl for _, ttl, _ in client.sends] == [4, 5, 3, 2, 1]
    assert {at for at, _, _ in client.sends} == {100.0}


def test_every_hop_is_told_once_and_the_peer_never():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6, silent={3}))
    net.run()
    assert [hop.ttl for hop in client.news] == [1, 2, 4, 5, 6, 3]
    assert client.news[-1].kind == "silent"
    assert client.news[-1].attempts == 3


def test_only_what_is_unanswered_is_asked_again():
    net = SimNet()
    client = net.client("198.51.100.7", routers(8), lost={(2, 0), (5, 0), (5, 1)})
    net.run()
    assert client.hops == client.truth
    again = [(ttl, attempt) for _, ttl, attempt in client.sends if attempt]
    assert again == [(5, 1), (2, 1), (5, 2)]


def test_a_lost_probe_of_the_peer_is_repeated_before_anything_farther_is_tried():
    net = SimNet()
    client = net.client("198.51.100.7", routers(5), lost={(6, 0)})
    net.run()
    assert (client.reason, client.round.destination) == ("destination", 6)
    assert max(ttl for _, ttl, _ in client.sends) == 6


def test_too_small_a_distance_extends_by_two_then_by_six():
    net = SimNet()
    client = net.client("198.51.100.7", routers(9), est=4)
    net.run()
    assert (client.reason, client.round.destination, client.hops) == ("destination", 10, client.truth)
    first_tried = {}
    for at, ttl, _ in client.sends:
        first_tried.setdefault(ttl, at)
    waves = sorted(
        {at: [ttl for ttl, when in first_tried.items() if when == at] for at in first_tried.values()}.items()
    )
    assert [sorted(ttls) for _, ttls in waves] == [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12]]


def test_too_great_a_distance_ends_at_the_peer():
    net = SimNet()
    client = net.client("198.51.100.7", routers(5), est=8)
    net.run()
    assert (client.reason, client.round.destination, client.hops) == ("destination", 6, client.truth)
    assert client.round.distance == 8


@pytest.mark.parametrize("length", [3, 11, 24])
def test_an_unknown_distance_is_learnt_from_the_first_answer(length):
    net = SimNet()
    client = net.client("198.51.100.7", routers(length), est=None)
    start = net.now
    net.run()
    assert (client.reason, client.round.destination, client.hops) == ("destination", length + 1, client.truth)
    assert client.round.distance == length + 1
    assert client.ended - start == pytest.approx(2 * client.rtt if length > 7 else client.rtt)


def test_a_path_longer_than_allowed_ends_at_max_hops():
    net = SimNet()
    client = net.client("198.51.100.7", routers(20), options=TraceOptions(max_hops=12))
    net.run()
    assert (client.reason, client.round.destination) == ("max-hops", None)
    assert client.hops == client.truth[:12]


def test_a_peer_that_never_answers_ends_with_few_probes_beyond_it():
    net = SimNet()
    path = routers(5)
    client = net.client("198.51.100.7", path, lost={(ttl, n) for ttl in range(6, 33) for n in range(3)})
    net.run()
    assert client.reason == "timeout"
    assert client.hops[:5] == client.truth
    assert max(ttl for _, ttl, _ in client.sends) <= 6 + 2 + 6
    assert client.ended - 100.0 <= 2 * 1.2


def test_a_mute_ttl_is_asked_once():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6, silent={3, 4}), options=TraceOptions(mute=frozenset({3})))
    net.run()
    asked = [ttl for _, ttl, _ in client.sends]
    assert (asked.count(3), asked.count(4)) == (1, 3)


def test_a_closed_connection_ends_at_once_with_what_is_known():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6))
    net.at(100.0075, client.round.close)
    net.at(100.0076, client.poll)
    net.run()
    assert client.reason == "closed"
    assert client.hops == client.truth[:3]
    assert client.round.poll(200.0) == Finished("closed")


# --- peers that do not say which duplicate they saw ------------------------------------------------------------------


def test_without_sack_the_peer_is_found_by_one_lone_probe():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6), sack=False)
    net.run()
    assert (client.reason, client.round.destination, client.hops) == ("destination", 7, client.truth)
    assert client.round.probes == 7
    assert client.reached == [7]


def test_without_dsack_it_is_noticed_after_one_wait():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6), names=False)
    net.run()
    assert (client.reason, client.round.destination, client.hops) == ("destination", 7, client.truth)
    assert len(client.reached) == 2


@pytest.mark.parametrize("est", [3, 5, 7, 9, 12, None])
@pytest.mark.parametrize("silent", [(), {6}, {5, 6}, {2}])
def test_without_sack_a_wrong_distance_and_silent_routers_do_not_mislead(est, silent):
    net = SimNet()
    path = routers(6, silent=silent)
    client = net.client("198.51.100.7", path, sack=False, est=est, link=0.002)
    net.run()
    assert (client.reason, client.round.destination) == ("destination", 7)
    assert client.hops == [None if router.silent else router.addr for router in path]


def test_without_sack_a_busy_connection_is_not_mistaken_for_the_peer():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6), sack=False, chatter=0.005)
    net.run()
    assert (client.reason, client.round.destination) == ("timeout", None)
    assert client.hops[:6] == client.truth


def test_with_dsack_a_lost_probe_in_a_busy_connection_is_simply_repeated():
    net = SimNet()
    client = net.client("198.51.100.7", routers(6), lost={(7, 0)}, chatter=0.005)
    net.run()
    assert (client.reason, client.round.destination) == ("destination", 7)


# --- whatever happens ------------------------------------------------------------------------------------------------

_ttls = st.integers(1, 32)


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(0, 31),
    silent=st.sets(_ttls, max_size=6),
    limited=st.sets(_ttls, max_size=6),
    est=st.one_of(st.none(), st.integers(1, 255), st.just("exact")),
    lost=st.sets(st.tuples(_ttls, st.integers(0, 2)), max_size=40),
    names=st.booleans(),
    sack=st.booleans(),
    chatter=st.sampled_from([0.0, 0.0, 0.003, 0.4]),
    link=st.sampled_from([0.0, 0.0001, 0.005]),
    max_hops=st.integers(1, 32),
    attempts=st.integers(1, 3),
)
def test_a_round_always_ends_in_time_and_never_names_a_wrong_router(
    length, silent, limited, est, lost, names, sack, chatter, link, max_hops, attempts
):
    net = SimNet()
    path = routers(length, silent=silent, limited=limited)
    options = TraceOptions(max_hops=max_hops, attempts=attempts)
    client = net.client(
        "198.51.100.7",
        path,
        est=est,
        lost=lost,
        names=names,
        sack=sack,
        chatter=chatter,
        link=link,
        options=options,
    )
    net.run()
    assert client.ended - 100.0 <= 2 * options.timeout + 0.01
    assert len(client.sends) <= 2 * attempts * 32 + 1
    assert all(hop.addr in (None, path[hop.ttl - 1].addr) for hop in client.round.hops() if hop.ttl <= length)
    assert [hop.ttl for hop in client.round.hops()] == list(range(1, len(client.hops) + 1))
    assert sorted(hop.ttl for hop in client.news) == sorted({hop.ttl for hop in client.news})
    if client.reason == "destination":
        assert client.round.destination is not None
        assert client.round.destination <= max_hops or est is None
        assert len(client.hops) == client.round.destination - 1


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(0, 20),
    silent=st.sets(st.integers(1, 20), max_size=5),
    off=st.integers(-7, 9),
    answers=st.sampled_from(["dsack", "sack", "none"]),
    link=st.sampled_from([0.0001, 0.001, 0.003]),
)
def test_without_loss_the_path_is_exact_however_wrong_the_distance_and_silent_the_routers(
    length, silent, off, answers, link
):
    net = SimNet()
    path = routers(length, silent=silent)
    # two lone probes past the supposed distance are all that a peer without names is given
    off = max(off, -2) if answers != "dsack" else off
    client = net.client(
        "198.51.100.7",
        path,
        est=max(1, length + 1 + off),
        names=answers == "dsack",
        sack=answers != "none",
        link=link,
    )
    net.run()
    assert client.round.destination == length + 1, client.sends
    assert client.hops == [None if router.silent else router.addr for router in path]


def test_the_end_moves_with_what_a_limit_kept_back():
    def round_() -> Round:
        return Round(TraceOptions(timeout=1.0), now=0.0, distance=3, rtt=0.01)

    kept_back = round_()
    assert isinstance(kept_back.poll(1.9), Probe)
    assert kept_back.poll(2.0) == Finished("timeout")
    kept_back = round_()
    kept_back.postpone(5.0)
    assert isinstance(kept_back.poll(6.9), Probe)
    assert kept_back.poll(7.0) == Finished("timeout")
