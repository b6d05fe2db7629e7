"""Sharing between rounds, over simulated paths under a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netd.net.paths import sharing
from netd.net.paths.path import Hop, TraceOptions
from netd.net.paths.sharing import FRESH, LIMIT_BURST, LIMIT_RATE, Ledger, prefix_of
from netd.wire.ip import pack_address
from tests.support.simpath import LOCAL, SimNet, routers


def near_and_far(net: SimNet, trunk, count: int, *, prefixes: bool, **options):
    return [
        net.client(f"198.51.{number}.7" if prefixes else f"198.51.100.{number + 1}", trunk, **options)
        for number in range(count)
    ]


def test_the_second_client_of_a_prefix_asks_only_what_is_its_own():
    net = SimNet()
    path = routers(8)
    first = net.client("198.51.100.7", path)
    net.run()
    second = net.client("198.51.100.200", path)
    net.run()
    assert second.hops == first.hops == second.truth
    assert [ttl for _, ttl, _ in second.sends] == [8, 9]  # proof that it is no nearer, and itself
    assert second.kinds == {"shared": 8} or second.kinds == {"shared": 7, "ttl": 1}


def test_probes_in_flight_are_shared():
    net = SimNet()
    path = routers(8)
    clients = near_and_far(net, path, 40, prefixes=False)
    net.run()
    assert all(client.hops == client.truth for client in clients)
    assert [router.asked for router in path[:7]] == [1] * 7
    assert max(client.ended for client in clients) - 100.0 == pytest.approx(clients[0].rtt)


def test_a_lost_leader_is_followed_by_somebody_else():
    net = SimNet()
    path = routers(6)
    lost = net.client("198.51.100.1", path, lost={(ttl, n) for ttl in range(1, 7) for n in range(3)})
    others = [net.client(f"198.51.100.{n}", path) for n in range(2, 30)]
    net.run()
    assert all(client.hops == client.truth for client in [lost, *others])
    assert max(router.asked for router in path[:5]) <= 2


def test_a_leader_that_goes_away_holds_nobody_up():
    net = SimNet()
    path = routers(6)
    leader = net.client("198.51.100.1", path, link=0.02)
    follower = net.client("198.51.100.2", path, link=0.02)
    net.at(100.001, leader.round.close)
    net.at(100.001, leader.poll)
    net.run()
    assert follower.hops == follower.truth
    assert follower.ended < 100.001 + 2 * follower.rtt


@pytest.mark.parametrize("prefixes", [False, True])
def test_two_hundred_clients_at_once_through_rate_limited_routers(prefixes):
    net = SimNet()
    path = routers(10, limited=range(1, 11))
    clients = near_and_far(net, path, 200, prefixes=prefixes)
    net.run()
    assert all(client.hops == client.truth and client.reason == "destination" for client in clients)
    assert max(client.ended for client in clients) - 100.0 < 0.5


def test_a_crowd_relies_on_those_who_saw_all_of_the_trunk():
    """However many have asked its far end since: what they say of the nearer routers is still vouched for."""
    net = SimNet()
    path = routers(10)
    clients = near_and_far(net, path, 200, prefixes=True)
    net.run()
    assert all(client.hops == client.truth for client in clients)
    assert [router.asked for router in path[7:9]] == [sharing.WITNESSES] * 2


def test_without_sharing_the_same_two_hundred_starve_each_other():
    net = SimNet()
    path = routers(10, limited=range(1, 11))
    clients = near_and_far(net, path, 200, prefixes=True, options=TraceOptions(share=False))
    net.run()
    assert sum(client.hops == client.truth for client in clients) < 20
    silent = [hop for client in clients for hop in client.round.hops() if hop.kind == "silent"]
    assert all(hop.limited for hop in silent)


def test_the_trunk_ends_where_paths_part():
    net = SimNet()
    trunk = routers(4, name="10.0.0")
    branches = [trunk + routers(4, name=f"10.0.{number}")[0:4] for number in (1, 2)]
    for number in range(6):
        net.client(f"198.51.{number}.7", branches[number % 2])
        net.run()
    late = net.client("198.51.99.7", branches[0])
    net.run()
    assert late.hops == late.truth
    kinds = {hop.ttl: hop.kind for hop in late.round.hops()}
    assert [kinds[ttl] for ttl in (1, 2, 3)] == ["shared"] * 3
    assert [kinds[ttl] for ttl in (5, 6, 7, 8)] == ["ttl"] * 4


def test_another_answer_at_the_trunks_end_and_it_is_not_believed():
    net = SimNet()
    known = routers(8, name="10.0.0")
    for number in range(4):
        net.client(f"198.51.{number}.7", known)
    net.run()
    elsewhere = net.client("198.51.99.7", known[:2] + routers(6, name="10.0.9")[0:6])
    net.run()
    assert elsewhere.hops == elsewhere.truth


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 6)), min_size=1, max_size=12),
    together=st.booleans(),
    silent=st.sets(st.integers(1, 6), max_size=2),
)
@example(shape=[(1, 0, 0)] * 3 + [(0, 1, 2)] * 3, together=True, silent=set())
def test_who_is_told_a_router_has_it_on_his_path(shape, together, silent):
    """Any tree of paths, no rate limits: sharing saves probes and never invents a path.

    But for one assumption, Doubletree's: in a crowd so large that a limited router could not answer everybody, silence
    in the trunk is taken for a limit, and what all others found there is shown, marked as shared.
    """
    net = SimNet()
    trunk = routers(6, name="10.0.0", silent=silent)
    clients = []
    for number, (common, branch, own) in enumerate(shape):
        # a name of its own: the same router must not be silent for one client and answer another
        own_part = routers(common + own, name=f"10.{branch + 1}.{common}")[common:]
        path = trunk[:common] + own_part
        clients.append(net.client(f"198.{number}.0.7", path, link=0.001))
        if not together:
            net.run()
    net.run()
    for client in clients:
        assert client.reason == "destination"
        crowd = len(shape) > LIMIT_BURST + LIMIT_RATE  # within a second, one after the other or not
        kinds = {hop.ttl: hop.kind for hop in client.round.hops()}
        for ttl, (router, hop) in enumerate(zip(client.path, client.hops, strict=True), start=1):
            if not (crowd and router.silent and kinds[ttl] == "shared"):
                assert hop == (None if router.silent else router.addr)


def test_a_shorter_path_in_the_same_prefix_is_found_out():
    net = SimNet()
    path = routers(8)
    net.client("198.51.100.1", path)
    net.run()
    nearer = net.client("198.51.100.2", path[:5], est=9)
    net.run()
    assert nearer.round.destination == 6
    assert nearer.hops == nearer.truth


def test_nothing_at_or_behind_a_nat_is_shared():
    net = SimNet()
    path = routers(6, nat={4})
    first = net.client("198.51.100.1", path)
    net.run()
    second = net.client("198.51.100.2", path)
    net.run()
    assert [hop.nat for hop in first.round.hops()] == [False] * 3 + [True] * 3
    assert [hop.kind for hop in second.round.hops()] == ["shared"] * 3 + ["ttl"] * 3
    assert second.hops == [*second.truth[:3], "198.51.100.2", "198.51.100.2", "198.51.100.2"]


def test_a_lone_client_measures_in_every_round():
    net = SimNet()
    path = routers(5)
    for _ in range(3):
        client = net.client("198.51.100.1", path, connection="the one")
        net.run()
        assert client.kinds == {"ttl": 5}
        net.now += 1.0


def test_of_two_continuous_clients_each_round_only_one_measures():
    net = SimNet()
    path = routers(5)
    rounds = []
    for _ in range(4):
        rounds.append([net.client(f"198.51.100.{number}", path, connection=("client", number)) for number in (1, 2)])
        net.run()
        net.now += 1.0
    assert [router.asked for router in path[:4]] == [4] * 4
    assert all(client.hops == client.truth for pair in rounds for client in pair)


def test_a_client_alone_again_does_not_live_on_old_answers():
    net = SimNet()
    path = routers(5)
    net.client("198.51.100.1", path)
    net.run()
    adopted = net.client("198.51.100.2", path, connection="stays")
    net.run()
    net.now += 1.0
    measured = net.client("198.51.100.2", path, connection="stays")
    net.run()
    assert adopted.kinds["shared"] >= 4
    assert measured.kinds == {"ttl": 5}


def test_a_rate_limited_router_is_told_from_a_silent_one():
    net = SimNet()
    path = routers(4, limited={2}, silent={3})
    for _ in range(7):
        client = net.client("198.51.100.1", path, connection="the one")
        net.run()
    flags = {hop.ttl: (hop.kind, hop.limited) for hop in client.round.hops()}
    assert flags[2] == ("silent", True)
    assert flags[3] == ("silent", False)


def test_a_router_silent_to_one_is_asked_once_by_the_next():
    net = SimNet()
    path = routers(5, silent={3})
    net.client("198.51.100.1", path)
    net.run()
    second = net.client("198.51.100.2", path)
    net.run()
    assert [ttl for _, ttl, _ in second.sends].count(3) == 1


def test_knowledge_grows_stale():
    net = SimNet()
    path = routers(5)
    net.client("198.51.100.1", path)
    net.run()
    net.now += FRESH + 1
    late = net.client("198.51.100.2", path)
    net.run()
    assert late.kinds == {"ttl": 5}


def test_every_table_is_bounded(monkeypatch):
    monkeypatch.setattr(sharing, "MOST_PREFIXES", 8)
    monkeypatch.setattr(sharing, "MOST_CONNECTIONS", 8)
    monkeypatch.setattr(sharing, "MOST_LOCALS", 2)
    ledger = Ledger()
    for number in range(100):
        local = bytes((192, 0, 2, number))
        share = ledger.join(local, bytes((10, 0, number, 1)), number, now=float(number), hold=0.1)
        for router in range(10):
            share.found(Hop(1, f"10.9.{number}.{router}", 1.0, "ttl"), float(number))
        share.leave()
        share.leave()
    assert len(ledger._prefixes) == 8
    assert len(ledger._rounds) == 8
    assert len(ledger._trunks) == 2
    assert all(len(trunk.witnesses[1]) <= 4 for trunk in ledger._trunks.values())
    assert not any(trunk.shares for trunk in ledger._trunks.values())


def test_a_prefix_is_a_24_or_a_48():
    assert prefix_of(pack_address("198.51.100.7")) == bytes((198, 51, 100))
    assert prefix_of(pack_address("2001:db8:7:8::1")) == bytes.fromhex("20010db80007")
    assert prefix_of(pack_address("::ffff:198.51.100.7")) == bytes((198, 51, 100))
    assert len(LOCAL) == 4
