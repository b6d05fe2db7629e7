"""The trace service on real sockets: what a client hears, what the host hears, and who is let in."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import pytest
import trio

from netd.errors import Conflict, NetdError, NotFound
from netd.services.trace.config import TraceListen
from netd.services.trace.ids import PATTERN
from netd.services.trace.notices import ClientConnected, ClientDone, ClientGone, HopNamed, HopSeen, TraceError
from tests.services.trace.lab import (
    PATIENCE,
    ROUTE,
    ScriptedTracer,
    eventually,
    frame,
    handshake,
    hop,
    path,
    read_all,
    serving,
)
from tests.support.descriptors import room_for


async def test_a_client_is_traced_at_once_and_hears_every_hop() -> None:
    async with serving(ScriptedTracer(ROUTE)) as house, house.client() as client:
        connected, *hops, done = await client.until("clientDone")
        assert connected["type"] == "connected"
        assert re.fullmatch(PATTERN, connected["client_id"])
        assert connected["address"].startswith("127.0.0.1:")
        assert [(one["type"], one["ttl"], one["router"]) for one in hops] == [
            ("hop", 1, None),
            ("hop", 2, "198.51.100.7"),
            ("hop", 3, None),
            ("hop", 4, "203.0.113.9"),
        ]
        assert [one.get("private", False) for one in hops] == [True, False, False, False]
        assert all(one["ip"] == one["router"] and one["round"] == 1 for one in hops)
        assert done["client_id"] == connected["client_id"]
        assert (done["reason"], done["dest_ttl"], done["method"], done["rounds"]) == ("destination", 5, "tcp", 1)
        assert done["pong_rtt_ms"] > 0


async def test_the_host_hears_all_of_it_private_hops_included() -> None:
    async with serving(ScriptedTracer(ROUTE)) as house:
        async with house.client() as client:
            client_id = (await client.until("clientDone"))[0]["client_id"]
        await eventually(lambda: bool(house.notices(ClientGone)))
        kinds = [notice.kind for notice in house.notices()]
        assert kinds == ["clientConnected", "hop", "hop", "hop", "hop", "clientDone", "clientGone"]
        connected, gone = house.notices(ClientConnected, ClientGone)
        assert connected.as_json().keys() == {"clientId", "address"}
        assert gone.as_json() == {"clientId": client_id, "reason": "left (1000)"}
        first = house.notices(HopSeen)[0].as_json()
        assert (first["clientId"], first["ttl"], first["router"], first["rttMs"]) == (client_id, 1, "192.168.1.1", 0.5)
        assert (first["kind"], first["round"]) == ("ttl", 1)
        done = house.notices(ClientDone)[0].as_json()
        assert (done["clientId"], done["destTtl"], done["pathRttMs"], done["probes"]) == (client_id, 5, 10.0, 5)


async def test_the_tracer_gets_the_clients_own_connection_and_its_syn() -> None:
    tracer = ScriptedTracer(ROUTE)
    async with serving(tracer) as house, house.client() as client:
        await client.until("clientDone")
        own = client.ws._stream.socket.getsockname()
        assert tracer.peers == [own]
        syn = tracer.saved_syns[0]
        assert syn[0] >> 4 == 4
        assert int.from_bytes(syn[20:22], "big") == own[1]  # the source port of the TCP header behind 20 bytes of IP


async def test_options_reach_the_tracer() -> None:
    tracer = ScriptedTracer()
    fields = {"max_hops": 9, "per_ttl_timeout_ms": 300, "attempts": 2, "share": False, "method": "udp"}
    async with serving(tracer, **fields, max_traces=7, probes_per_second=11.0) as house, house.client() as client:
        await client.until("clientDone")
        options = tracer.options[0]
        assert (options.max_hops, options.timeout, options.attempts) == (9, 0.3, 2)
        assert (options.share, options.method) == (False, "udp")
        assert (tracer.limits.traces, tracer.limits.probes_per_second) == (7, 11.0)


async def test_history_keeps_the_trace() -> None:
    async with serving() as house, house.client() as client:
        done = (await client.until("clientDone"))[-1]
        record = await house.service._history.show(done["trace_id"])
        assert record is not None
        assert record["client_id"] == done["client_id"]
        assert record["hops"][0]["router"] == "192.168.1.1"


# --- a WebSocket like any other --------------------------------------------------------------------------------------


async def test_ping_pong_and_nonsense_while_a_trace_hangs() -> None:
    async with serving(ScriptedTracer("hang")) as house, house.client() as client:
        assert (await client.next())["type"] == "connected"
        with trio.fail_after(PATIENCE):
            await client.ws.ping(b"are you there")
        await client.say({"type": "ping", "id": 5})
        assert await client.next() == {"type": "pong", "id": 5}
        await client.ws.send_message(b"\xff\x00")
        assert "binary" in (await client.next())["message"]
        await client.say({"type": "frobnicate"})
        assert "frobnicate" in (await client.next())["message"]
        await client.ws.send_message("{")
        assert (await client.next())["type"] == "error"
        await client.say({"type": "trace"})
        assert "one is running" in (await client.next())["message"]


async def test_another_trace_after_the_interval_and_not_before() -> None:
    async with serving(client_interval=0.3) as house, house.client() as client:
        first = (await client.until("clientDone"))[-1]
        await client.say({"type": "trace"})
        refused = await client.next()
        assert refused["type"] == "error"
        assert 0 < refused["retry_after_ms"] <= 300
        await trio.sleep(refused["retry_after_ms"] / 1000)
        await client.say({"type": "trace"})
        second = (await client.until("clientDone"))[-1]
        assert second["trace_id"] > first["trace_id"]
        assert house.counted("netd_trace_refused_total", why="interval") == 1


async def test_reconnecting_waits_for_the_turn_and_leaving_gives_it_back() -> None:
    async with serving(address_burst=1, client_interval=1000.0) as house:
        async with house.client() as first:
            await first.until("clientDone")
        async with house.client() as second:
            assert (await second.next())["type"] == "connected"
            waiting = await second.next()
            assert waiting["type"] == "waiting"
            assert 900_000 < waiting["retry_after_ms"] <= 1_000_000
            await second.say({"type": "trace"})
            assert "about to" in (await second.next())["message"]
        await eventually(lambda: not house.service.clients())
        async with house.client() as third:  # not behind the one that left
            assert (await third.until("waiting"))[-1]["retry_after_ms"] <= 1_000_000


async def test_a_turn_that_comes_is_used() -> None:
    async with serving(address_burst=1, client_interval=0.2) as house, house.client() as first:
        await first.until("clientDone")
        async with house.client() as second:
            kinds = [message["type"] for message in await second.until("clientDone")]
            assert kinds[:2] == ["connected", "waiting"]


# --- rounds ----------------------------------------------------------------------------------------------------------


async def test_rounds_add_up() -> None:
    silent = path(hop(1, None), hop(2, "192.0.2.2"))
    answers = path(hop(1, "192.0.2.1"), hop(2, "192.0.2.3"))
    tracer = ScriptedTracer(answers, silent, answers)
    async with serving(tracer, rounds=3, interval=0.01) as house, house.client() as client:
        messages = await client.until("clientDone")
        rounds = [message for message in messages if message["type"] == "round"]
        assert [one["rounds"] for one in rounds] == [1, 2, 3]
        assert [options.mute for options in tracer.options] == [frozenset(), frozenset(), frozenset({1})]
        first, second = messages[-1]["hops"]
        assert (first["answered"], first["limited"], first["loss_percent"]) == (2, 1, 0.0)
        assert second["addresses"] == [{"ip": "192.0.2.3", "count": 2}, {"ip": "192.0.2.2", "count": 1}]
        assert [one["round"] for one in messages if one["type"] == "hop"] == [1, 1, 2, 2, 3, 3]


async def test_without_an_end_rounds_go_on_until_the_client_leaves() -> None:
    async with serving(rounds=0, interval=0.01) as house:
        async with house.client() as client:
            for _ in range(5):
                await client.until("round")
        await eventually(lambda: bool(house.notices(ClientDone)))
        done = house.notices(ClientDone)[0].as_json()
        assert done["reason"] == "closed"
        assert done["rounds"] >= 5
        assert house.counted("netd_trace_traces_total", reason="closed") == 1


@pytest.mark.parametrize("reason", ["closed", "unprivileged", "limited"])
async def test_rounds_that_lead_nowhere_are_not_repeated(reason: str) -> None:
    tracer = ScriptedTracer(path(reason=reason, dest_ttl=None, dest_rtt_ms=None))
    async with serving(tracer, rounds=0, interval=0.01) as house, house.client() as client:
        assert (await client.until("clientDone"))[-1]["reason"] == reason
        assert len(tracer.options) == 1


async def test_a_tracer_that_fails_costs_the_trace_and_not_the_client() -> None:
    tracer = ScriptedTracer(OSError(105, "No buffer space available"), NetdError("cannot do it"), ROUTE)
    async with serving(tracer, client_interval=1e-9) as house, house.client() as client:
        messages = await client.until("clientDone")
        assert [message["type"] for message in messages] == ["connected", "error", "clientDone"]
        assert "buffer" not in messages[1]["message"]
        assert messages[2]["reason"] == "error"
        assert "No buffer space" in house.notices(TraceError)[0].as_json()["message"]
        await client.say({"type": "trace"})
        assert (await client.until("clientDone"))[-1]["reason"] == "error"
        await client.say({"type": "trace"})
        assert (await client.until("clientDone"))[-1]["reason"] == "destination"


async def test_only_so_many_rounds_run_at_once() -> None:
    hold = trio.Event()
    tracer = ScriptedTracer(ROUTE, hold=hold)
    async with serving(tracer, max_traces=2) as house, trio.open_nursery() as nursery:
        ended = 0

        async def one() -> None:
            nonlocal ended
            async with house.client() as client:
                await client.until("clientDone")
                ended += 1

        for _ in range(6):
            nursery.start_soon(one)
        await eventually(lambda: len(house.service.clients()) == 6 and tracer.running == 2)
        hold.set()
        await eventually(lambda: ended == 6)
        assert tracer.most_running == 2


async def test_a_method_of_its_own_flow_measures_the_pong_all_the_same() -> None:
    tracer = ScriptedTracer(path(hop(1, "192.0.2.1"), method="udp"), carries=False)
    async with serving(tracer) as house, house.client() as client:
        done = (await client.until("clientDone"))[-1]
        assert done["method"] == "udp"
        assert done["pong_rtt_ms"] > 0


# --- who hears what --------------------------------------------------------------------------------------------------


async def test_report_client_tells_the_operator_nothing_of_the_path() -> None:
    async with serving(report="client") as house:
        async with house.client() as client:
            messages = await client.until("clientDone")
            assert len([one for one in messages if one["type"] == "hop"]) == 4
            assert house.service.clients()[0].dest_ttl is None
        await eventually(lambda: bool(house.notices(ClientGone)))
        assert [notice.kind for notice in house.notices()] == ["clientConnected", "clientGone"]
        assert await house.service._history.list() == []


async def test_report_operator_tells_the_client_nothing_of_the_path() -> None:
    async with serving(report="operator", rounds=2, interval=0.01) as house, house.client() as client:
        connected, done = await client.until("clientDone")
        assert connected["type"] == "connected"
        assert done.keys() == {"type", "client_id", "trace_id", "reason"}
        assert len(house.notices(HopSeen)) == 8
        assert len(await house.service._history.list()) == 1


async def test_private_hops_are_shown_where_the_configuration_says_so() -> None:
    async with serving(reveal_private=True) as house, house.client() as client:
        hops = [one for one in await client.until("clientDone") if one["type"] == "hop"]
        assert hops[0]["ip"] == "192.168.1.1"


async def test_names_follow_and_never_tell_of_private_hops() -> None:
    table = {"192.168.1.1": "gateway.home.example", "198.51.100.7": "r2.example", "203.0.113.9": "r4.example"}
    async with serving(names=True, client_interval=1e-9) as house:
        house.service._shared.names._resolve = table.get
        async with house.client() as client:
            first = await client.until("clientDone")
            assert not [one for one in first if one["type"] == "hop" and "name" in one]
            await eventually(lambda: len(house.notices(HopNamed)) == 3)
            await client.say({"type": "trace"})
            later = await client.until("clientDone")
            names = {one["ip"]: one["name"] for one in [*first, *later] if one["type"] == "name"}
            assert names == {addr: table[addr] for addr in ("198.51.100.7", "203.0.113.9")}
            assert [one.get("name") for one in later if one["type"] == "hop"] == [
                None,
                "r2.example",
                None,
                "r4.example",
            ]
            record = await house.service._history.show(later[-1]["trace_id"])
            assert record is not None
            assert record["hops"][0]["name"] == "gateway.home.example"


# --- who is let in ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/nowhere", "//", "/trace", "*", "http://127.0.0.1/"])
async def test_there_is_one_path(target: str) -> None:
    async with serving() as house:
        answer = await house.refused(target)
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert answer.endswith(b"traces are at /\n")
        assert house.counted("netd_trace_refused_total", why="path") == 1


async def test_a_listener_may_have_another_path() -> None:
    listen = TraceListen(address="127.0.0.1:0", path="/trace")
    async with serving(listen=listen) as house, house.client("/trace?from=here") as client:
        await client.until("clientDone")


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://app.example", True),
        ("https://evil.example", False),
        ("http://127.0.0.1:{port}", True),
        ("http://127.0.0.1:1", False),
        ("null", False),
    ],
)
async def test_origins(origin: str, allowed: bool) -> None:
    async with serving(origins=["https://app.example"]) as house:
        origin = origin.replace("{port}", str(house.port))
        if allowed:
            async with house.client(headers=[(b"Origin", origin.encode())]) as client:
                await client.until("clientDone")
        else:
            assert (await house.refused("/", f"Origin: {origin}")).startswith(b"HTTP/1.1 403 ")
            assert house.counted("netd_trace_refused_total", why="origin") == 1


@pytest.mark.parametrize(("limits", "why"), [({"max_clients": 2}, "clients"), ({"clients_per_address": 2}, "address")])
async def test_one_too_many_is_refused_before_it_says_a_word(limits: dict[str, int], why: str) -> None:
    async with serving(**limits) as house:
        half_open = await house.raw()  # an unfinished handshake has a place too
        async with house.client() as client:
            await client.until("connected")
            refused = await house.raw()
            assert (await read_all(refused)).startswith(b"HTTP/1.1 503 ")
            assert house.counted("netd_trace_refused_total", why=why) == 1
            await half_open.aclose()
            await eventually(lambda: house.service.snapshot().connections == 1)
            async with house.client() as another:
                await another.until("connected")


async def test_five_hundred_clients_at_once() -> None:
    crowd = {"max_clients": 600, "clients_per_address": 600, "address_burst": 600}
    with room_for(2048):
        async with serving(**crowd) as house:
            done = 0

            async def one() -> None:
                nonlocal done
                stream = await house.raw()
                await stream.send_all(handshake())
                data = b""
                while b"clientDone" not in data:
                    data += await stream.receive_some(65536)
                done += 1
                await trio.sleep_forever()

            async with trio.open_nursery() as nursery:
                for _ in range(500):
                    nursery.start_soon(one)
                await eventually(lambda: done == 500)
                assert house.counted("netd_trace_clients") == 500
                nursery.cancel_scope.cancel()
            house.close_raw()
            await eventually(lambda: house.counted("netd_trace_clients") == 0)


# --- verbs and views -------------------------------------------------------------------------------------------------


async def test_an_operator_may_trace_a_client_whenever() -> None:
    hold = trio.Event()
    tracer = ScriptedTracer(ROUTE, hold=hold)
    async with serving(tracer, client_interval=1000.0) as house, house.client() as client:
        client_id = (await client.next())["client_id"]
        await eventually(lambda: tracer.running == 1)
        assert house.service.client(client_id).state == "tracing"
        with pytest.raises(Conflict, match="traced already"):
            house.service.trace_client(client_id)
        hold.set()
        await client.until("clientDone")
        await eventually(lambda: house.service.client(client_id).state == "idle")
        house.service.trace_client(client_id)
        with pytest.raises(Conflict):
            house.service.trace_client(client_id)
        await client.until("clientDone")
        view = house.service.client(client_id)
        assert (view.traces, view.reason, view.dest_ttl) == (2, "destination", 5)
        with pytest.raises(NotFound, match="not connected"):
            house.service.trace_client("000000000")


async def test_an_operator_may_hurry_a_client_that_waits_for_its_turn() -> None:
    limits = {"address_burst": 1, "client_interval": 1000.0}
    async with serving(**limits) as house, house.client() as first, house.client() as second:
        await first.until("clientDone")
        client_id = (await second.until("waiting"))[0]["client_id"]
        house.service.trace_client(client_id)
        assert (await second.until("clientDone"))[-1]["reason"] == "destination"


async def test_the_snapshot_counts() -> None:
    async with serving() as house:
        before = house.service.snapshot()
        assert (before.clients, before.traces, before.method) == (0, 0, "tcp")
        async with house.client() as client:
            await client.until("clientDone")
            now = house.service.snapshot()
            assert (now.clients, now.connections, now.traces, now.probes) == (1, 1, 1, 5)
            assert now.listeners == [f"127.0.0.1:{house.port}"]
        assert house.counted("netd_trace_probes_total") == 5
        assert house.counted("netd_trace_hops_total", kind="ttl") == 3
        assert house.counted("netd_trace_hops_total", kind="silent") == 1
        assert house.counted("netd_trace_traces_total", reason="destination") == 1


# --- health and live changes -----------------------------------------------------------------------------------------


async def test_probes_a_second_bring_their_burst_and_change_live() -> None:
    tracer = ScriptedTracer()
    async with serving(tracer, probes_per_second=1.0) as house:
        assert (tracer.limits.probes_per_second, tracer.limits.at_once) == (1.0, 1)
        house.service.reconfigure(house.service.config.model_copy(update={"probes_per_second": 400.0}))
        assert (tracer.limits.probes_per_second, tracer.limits.at_once) == (400.0, 100)
        assert house.service.snapshot().limits["probes_at_once"] == 100


async def test_a_larger_burst_reaches_addresses_that_used_theirs_up() -> None:
    async with serving(address_burst=1, client_interval=1000.0) as house:
        async with house.client() as first:
            await first.until("clientDone")
        house.service.reconfigure(house.service.config.model_copy(update={"address_burst": 2}))
        async with house.client() as second:
            assert [one["type"] for one in await second.until("clientDone")][1] == "hop"


async def test_missing_privilege_is_a_warning_that_says_what_to_grant() -> None:
    tracer = ScriptedTracer()
    tracer.unprivileged, tracer.methods = ("cannot open raw sockets", "grant CAP_NET_RAW"), ("udp", "syn")
    async with serving(tracer) as house:
        (warning,) = house.health.warnings()
        assert warning.code == "trace.unprivileged"
        assert warning.message == "cannot open raw sockets"
        assert warning.advice == "grant CAP_NET_RAW; until then traces use a flow of their own"
        assert house.service.snapshot().method == "udp"
        house.service.reconfigure(house.service._shared.config.model_copy(update={"method": "udp"}))
        assert house.health.warnings() == ()


async def test_a_kernel_that_keeps_packets_to_itself_is_a_warning_until_it_does_not() -> None:
    tracer = ScriptedTracer(path(reason="no-loopback", dest_ttl=None, dest_rtt_ms=None), ROUTE)
    async with serving(tracer, client_interval=1e-9) as house, house.client() as client:
        await client.until("clientDone")
        (warning,) = house.health.warnings()
        assert warning.code == "trace.tstamp"
        assert "net.core.tstamp_allow_data" in (warning.advice or "")
        await client.say({"type": "trace"})
        await client.until("clientDone")
        assert house.health.warnings() == ()


async def test_live_changes_hold_for_clients_that_are_there() -> None:
    async with serving(client_interval=1000.0) as house, house.client() as client:
        await client.until("clientDone")
        changed = {"reveal_private": True, "client_interval": 1e-9, "max_traces": 3}
        house.service.reconfigure(house.service._shared.config.model_copy(update=changed))
        house.service.trace_client(house.service.clients()[0].client_id)
        await client.until("clientDone")
        await client.say({"type": "trace"})
        hops = [one for one in await client.until("clientDone") if one["type"] == "hop"]
        assert hops[0]["ip"] == "192.168.1.1"


# --- clients that do not behave ---------------------------------------------------------------------------------------


async def test_a_client_that_does_not_answer_pings_is_closed() -> None:
    async with serving(ping_interval=0.05, pong_timeout=0.1) as house:
        stream = await house.raw()
        await stream.send_all(handshake())
        await eventually(lambda: bool(house.notices(ClientGone)))
        assert house.notices(ClientGone)[0].as_json()["reason"] == "did not answer a ping"


async def test_a_client_that_answers_pings_stays() -> None:
    async with serving(ping_interval=0.02, pong_timeout=5.0) as house, house.client() as client:
        await client.until("clientDone")
        session = next(iter(house.service._sessions.values()))
        pings = session._pings
        await eventually(lambda: session._pings >= pings + 5)
        assert house.notices(ClientGone) == []


async def test_an_idle_client_is_sent_away_and_a_traced_one_is_not() -> None:
    times = {"idle_timeout": 0.05, "ping_interval": 0.02}
    async with (
        serving(ScriptedTracer("hang"), idle_timeout=0.05, ping_interval=0.02) as house,
        house.client() as client,
    ):
        await client.next()
        session = next(iter(house.service._sessions.values()))
        await eventually(lambda: session._pings > 10)
        assert house.notices(ClientGone) == []
    async with serving(**times) as house, house.client() as client:
        assert await client.closed() == (1000, "idle")


async def test_a_client_that_never_reads_costs_only_itself() -> None:
    big = path(*(hop(ttl, f"198.51.100.{ttl}") for ttl in range(1, 33)))
    async with serving(ScriptedTracer(big), rounds=0, interval=0.0, write_timeout=0.2) as house:
        deaf = await house.raw()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await deaf.send_all(handshake())
        async with house.client() as client:
            await client.until("round")
            await eventually(lambda: bool(house.notices(ClientGone)))
            assert house.notices(ClientGone)[0].as_json()["reason"] == "did not read"
            await client.until("round")


async def test_too_large_a_message_is_1009() -> None:
    async with serving(max_message=1000) as house, house.client() as client:
        await client.until("clientDone")
        await client.ws.send_message("x" * 1001)
        assert (await client.closed())[0] == 1009


async def test_endless_fragments_end() -> None:
    async with serving(input_rate=10_000_000) as house:
        stream = await house.raw()
        await stream.send_all(handshake())
        assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101 ")
        await stream.send_all(frame(1, b"", final=False))

        async def fragments() -> None:
            while True:
                await stream.send_all(frame(0, b"", final=False) * 100)

        with trio.fail_after(PATIENCE), pytest.raises(trio.BrokenResourceError):
            await fragments()
        await eventually(lambda: bool(house.notices(ClientGone)))
        assert house.notices(ClientGone)[0].as_json()["reason"] == "sent too many fragments"


async def test_a_flood_of_pings_is_read_at_the_pace_that_is_allowed() -> None:
    async with serving(input_rate=1024) as house:
        flooder = await house.raw()
        await flooder.send_all(handshake())
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                while True:
                    await flooder.send_all(frame(9, b"x") * 1000)

            async def drink() -> None:
                while True:
                    await flooder.receive_some(65536)

            nursery.start_soon(flood)
            nursery.start_soon(drink)
            async with house.client() as client:
                await client.until("clientDone")
                session = next(iter(house.service._sessions.values()))
                await eventually(lambda: session._stream._pace._bucket.tokens < 0)
                for number in range(20):
                    await client.say({"type": "ping", "id": number})
                    assert (await client.next())["id"] == number
            nursery.cancel_scope.cancel()


async def test_file_descriptors_come_back() -> None:
    async with serving(address_burst=1000) as house:
        async with house.client() as client:
            await client.until("clientDone")
        await eventually(lambda: not house.service.snapshot().connections)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            async with house.client() as client:
                await client.until("clientDone")
            (await house.raw()).socket.close()
            await house.refused("/nowhere")
        await eventually(lambda: not house.service.snapshot().connections)
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_notice_leaves_out_what_is_not_known() -> None:
    notice: Any = HopSeen(client_id="c", trace_id="t", round=1, ttl=3, router=None, rtt_ms=None, hop_kind="silent")
    assert notice.as_json() == {"clientId": "c", "traceId": "t", "round": 1, "ttl": 3, "kind": "silent"}
