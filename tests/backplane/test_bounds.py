"""What is kept in Redis has an end, what is done in it at once has one too, and so has what the log is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from structlog.testing import capture_logs

from netd.backplane import channels, ledger, scripts
from netd.hub.revocations import Revocation
from netd.wire.messages import AskHistory, History, Left, Message, Position
from tests.backplane.followers import Follower, level
from tests.backplane.lab import FREE, Redis, needs_redis, node, nodes, numbers

if TYPE_CHECKING:
    from pathlib import Path

    from netd.backplane.desk import Call

pytestmark = needs_redis

AGED = [
    {"name": "aged", **FREE, "history_size": 100, "history_seconds": 100},
    {"name": "kept", **FREE, "history_size": 1000, "join_leave": True, "join_leave_rate": 1_000_000},
]


def lasts(redis: Redis, key: str) -> int:
    """Seconds."""
    return int(redis.say("TTL", key))


async def test_messages_leave_redis_at_their_age_though_nobody_looks_at_their_channel_again(redis):
    async with nodes(redis, "a", "b", hub={"namespace": AGED}, remember=1000) as (a, b):
        there = await Follower(b.person(), "aged:x").begin()
        a.hub.publish(b"aged:x", 0)
        a.hub.publish(b"kept:x", 0)
        await there.has(1)
        await level(a, b)
        assert 90 < lasts(redis, "netd:h:aged:x") <= 101
        assert lasts(redis, "netd:h:kept:x") > 900
        assert lasts(redis, "netd:c:aged:x") > 900
        redis.say("DEL", "netd:h:aged:x")  # as its time will do
        late = await Follower(a.person(), "aged:x").begin()
        assert late.place == there.place
        history = await a.person().answer(AskHistory(channel="aged:x", ref=7), History)
        assert (history.messages, history.offset) == ([], 1)
        a.hub.publish(b"aged:x", 1)
        for one in (there, late):
            await one.has(len(one.told) + 1)
            assert one.place == Position(there.place.epoch, 2)
            assert not one.holes
        assert (await b.person().hear("aged:x", Position(there.place.epoch, 0))).recovered is False


async def test_an_age_longer_than_a_place_is_remembered_is_no_longer_than_that(redis):
    async with node(redis, "a", hub={"namespace": AGED}, remember=60) as a:
        a.hub.publish(b"aged:x", 0)
        await a.rest()
        assert 50 < lasts(redis, "netd:h:aged:x") <= 60


async def test_a_channel_in_which_nothing_was_said_is_remembered_while_somebody_listens(redis, monkeypatch):
    """Anybody may make one by listening, or by asking for its history."""
    monkeypatch.setattr(channels, "EMPTY", 100)
    monkeypatch.setattr(channels, "QUIET", 7)  # in pages
    async with node(redis, "a") as a:
        one = a.person()
        for number in range(50):
            await one.hear(f"kept:{number}")
        heard = [f"netd:c:kept:{number}" for number in range(50)]
        assert (await a.person().answer(AskHistory(channel="kept:asked", ref=7), History)).offset == 0
        one.say("kept:0", "said")
        await one.until(Message)
        await a.becomes(lambda: lasts(redis, "netd:c:kept:0") > 100)
        for key in (*heard, "netd:c:kept:asked"):
            redis.say("EXPIRE", key, "50")
        a.plane._lasting = 0.0  # the next heartbeat renews them
        await a.becomes(lambda: all(lasts(redis, key) > 50 for key in heard[1:]))
        assert lasts(redis, "netd:c:kept:asked") <= 50
        assert lasts(redis, "netd:c:kept:0") <= 50  # what was said counts from when it was said
        one.say("kept:asked", "said")
        await a.becomes(lambda: lasts(redis, "netd:c:kept:asked") > 100)


async def test_in_a_new_era_channels_in_which_nothing_was_said_are_not_remembered_for_longer(redis, monkeypatch):
    monkeypatch.setattr(channels, "EMPTY", 100)
    async with node(redis, "a") as a:
        one = a.person()
        before = await one.hear("kept:quiet")
        redis.say("SET", "netd:era", "another")
        after = await a.person().hear("kept:quiet", Position("none", 3))
        assert (after.recovered, before.offset) == (False, 0)
        await a.person().answer(AskHistory(channel="kept:quiet", ref=7), History)
        assert lasts(redis, "netd:c:kept:quiet") <= 100


async def test_the_presence_of_a_large_dead_machine_is_removed_in_pages(redis):
    async with node(redis, "a", hub={"namespace": AGED, "max_subscriptions": 2000}) as a:
        one = a.person()
        pages: list[Call] = []
        push = a.plane._push

        def see(call: Call, **more: bool) -> None:
            if call.script == "reap":
                pages.append(call)
            push(call, **more)

        a.plane._push = see
        async with node(redis, "b", hub={"namespace": AGED}, expiry=600) as b:
            await a.online(1)
            for number in range(1500):
                await one.hear(f"kept:{number}")
                b.hub.subscribe(b.person().session, b"kept:%d" % number)
            await b.becomes(lambda: redis.say("SCARD", f"netd:i:{b.plane.node}") == "1501")
            await b.rest()
            one.heard()
            b.plane.online = False  # it dies: nothing it does reaches Redis any more
            b.plane.next_call = lambda: None
            redis.say("ZADD", "netd:nodes", "1", b.plane.node)
            for _ in range(1500):
                await one.until(Left)
            await a.becomes(lambda: not redis.say("--scan", "--pattern", "netd:[pi]:b.*"))
            assert len(pages) >= 3
            assert [call.arguments[3] for call in pages] == ["due", *["on"] * (len(pages) - 1)]
            del b.plane.next_call
        del a.plane._push


async def test_a_large_machine_comes_back_and_goes_in_pages_too(redis):
    async with node(redis, "a", hub={"namespace": AGED}) as a:
        async with node(redis, "b", hub={"namespace": AGED}, timeout=20) as b:  # it has so long to leave
            await a.online(1)
            people = [b.person() for _ in range(1500)]
            for number, person in enumerate(people):
                b.hub.subscribe(person.session, b"kept:%d" % number)
            await b.becomes(lambda: redis.say("SCARD", f"netd:i:{b.plane.node}") == "1501")
            redis.say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await b.offline()
            for person in people[200:]:
                person.leave()
            await level(a, b)
            await b.becomes(lambda: redis.say("SCARD", f"netd:i:{b.plane.node}") == "201")
            assert len(redis.say("--scan", "--pattern", "netd:p:b.*").split()) == 201
            for number, person in enumerate(people[:200]):
                for more in range(6):
                    b.hub.subscribe(person.session, b"kept:%d.%d" % (number, more))
            await b.becomes(lambda: redis.say("SCARD", f"netd:i:{b.plane.node}") == "1401")
        assert not redis.say("--scan", "--pattern", "netd:[pi]:b.*")
        assert a.plane.online


async def test_no_sign_of_life_comes_after_a_goodbye(redis, monkeypatch):
    """It would bring the machine back, and what has not been removed of its presence would stay."""
    pages = scripts.REAP.replace("'COUNT', 500", "'COUNT', 1")
    assert pages != scripts.REAP
    monkeypatch.setitem(scripts.ALL, "reap", pages)  # so many that they take longer than a heartbeat
    async with node(redis, "b", timeout=20) as b:
        for number in range(1500):
            b.hub.subscribe(b.person().session, b"kept:%d" % number)
        await b.becomes(lambda: redis.say("SCARD", f"netd:i:{b.plane.node}") == "1501")
    assert redis.say("ZCARD", "netd:nodes") == "0"
    assert not redis.say("--scan", "--pattern", "netd:[pi]:b.*")


async def test_who_comes_back_while_its_presence_is_being_removed_keeps_what_is_new(redis):
    """The next page of a dead node finds that it lives."""
    async with nodes(redis, "a", "b") as (a, b):
        await b.person(name="two").hear("kept:x")
        await level(a, b)
        answers: list[object] = []
        a.plane._push(a.plane._reaping(b.plane.node, 10, "on", b"0", answers.append))
        await a.rest()
        assert answers == [[]]
        assert redis.say("HLEN", f"netd:p:{b.plane.node}:kept:x") == "1"


async def test_a_revocation_that_is_stored_again_does_not_have_all_of_them_read(redis):
    async with nodes(redis, "a", "b") as (a, _):
        for number in range(256):
            a.plane._store_revocation(Revocation("jti", str(number), 1.0, 2e9))
        await a.rest()

        def read() -> str:
            return redis.say("INFO", "commandstats").partition("cmdstat_hgetall:calls=")[2].partition(",")[0]

        before = read()
        assert before
        for number in range(256):
            a.plane._store_revocation(Revocation("jti", str(number), 1.0, 2e9))
        await a.rest()
        assert read() == before
        assert redis.say("HLEN", "netd:revoked") == "256"


async def test_of_a_redis_that_lets_everybody_in_and_then_refuses_the_log_hears_once(tmp_path: Path):
    redis = Redis(tmp_path)
    redis.start()
    try:
        await redis.ready()
        with capture_logs() as entries:
            async with node(redis, "a", max_retry=0.5) as a:
                redis.say("ACL", "SETUSER", "default", "-xadd")
                one = a.person()
                await one.hear("kept:x")
                said = 0

                def refused_often() -> bool:
                    nonlocal said
                    a.hub.publish(b"kept:x", said)
                    said += 1
                    return a.daemon.service("backplane").snapshot().lives > 8

                await a.becomes(refused_often)
                assert "backplane.redis" in a.warnings
                redis.say("ACL", "SETUSER", "default", "+xadd")
                await a.becomes(lambda: "backplane.redis" not in a.warnings)
                await a.becomes(lambda: not len(a.plane.outgoing))
                assert (
                    numbers((await one.answer(AskHistory(channel="kept:x", ref=7), History)).messages)[-1] == said - 1
                )
        told = [each["event"] for each in entries]
        assert told.count("Redis is away") <= 4
        assert told.count("joined the other nodes through Redis") <= 5
    finally:
        redis.kill()


async def test_a_file_that_cannot_be_read_anew_is_told_once_and_the_right_password_opens_it_later(tmp_path: Path):
    redis = Redis(tmp_path, "--requirepass", "right")
    redis.start()
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    try:
        await trio.to_thread.run_sync(lambda: redis.say("PING", quiet=True))
        with capture_logs() as entries:
            async with node(redis, "a", password_file=secret) as a:
                await a.becomes(lambda: "password" in a.warnings.get("backplane.redis", ""))
                secret.unlink()
                await a.becomes(lambda: any("read anew" in each["event"] for each in entries))
                before = len(entries)
                for _ in range(5):
                    await trio.sleep(0.05)  # attempts, of which nothing tells
                assert len([each for each in entries[before:] if "read anew" in each["event"]]) == 0
                secret.write_text("right\n")
                await a.online()
                await a.becomes(lambda: "backplane.redis" not in a.warnings)
    finally:
        redis.kill()


async def test_a_sign_of_life_does_not_wait_behind_a_crowd(redis):
    """Or a node to which many come at once would be taken for dead."""
    async with node(redis, "a", timeout=30) as a, node(redis, "b") as b:
        await a.online(1)
        redis.freeze()
        people = [a.person() for _ in range(500)]
        asked = [call.script for call in a.plane._calls]
        a.plane.beat(lambda result: None)
        assert asked.count("here") > 400
        assert a.plane.next_call().script == "beat"
        redis.thaw()
        await a.becomes(lambda: redis.say("HLEN", f"netd:p:{a.plane.node}:") == str(len(people)))
        assert b.plane.online


async def test_after_messages_that_came_back_too_late_a_channel_has_a_place_again(redis):
    """They were told without offsets; who comes later goes on from a position, as ever."""
    async with node(redis, "a", timeout=0.2) as a:
        here = await Follower(a.person(), "short:x").begin()
        own, a.plane.arrived = a.plane.arrived, lambda payload: None  # an inbound flood: nothing comes
        for number in range(20):
            a.hub.publish(b"short:x", number)
        await a.becomes(lambda: a.plane.outgoing.acknowledged == 20)
        a.plane.arrived = own
        await here.has(20)  # the history had the last five of them
        assert sorted(here.told) == list(range(20))
        await a.rest()
        here.look()
        late = await a.person().hear("short:x")
        assert Position(late.epoch, late.offset) == here.place
        assert here.place.offset == 20
        assert not here.loose


async def test_who_loses_messages_of_more_channels_than_it_knows_by_name_joins_again_and_all_of_them_begin_anew(
    redis, monkeypatch
):
    monkeypatch.setattr(ledger, "MAX_LOST", 2)
    async with node(redis, "b") as b, node(redis, "a", queue_messages=3) as a:
        await a.online(1)
        await b.online(1)
        names = [f"kept:{number}" for number in range(10)]
        people = [await Follower(b.person(), name).begin() for name in names]
        for name in names[:9]:  # at once, while Redis is there: six are given up, of which it remembers two
            a.hub.publish(name.encode(), "first")
        lives = a.daemon.service("backplane").snapshot().lives
        assert (a.plane.outgoing.given_up, a.plane.outgoing.all_lost) == (6, True)
        await a.becomes(lambda: a.daemon.service("backplane").snapshot().lives > lives)
        await level(a, b)
        for one in people:
            await b.becomes(lambda one=one: one.look() or bool(one.breaks))
        for name in names:
            a.hub.publish(name.encode(), "second")
            await level(a, b)
        for number, one in enumerate(people):
            one.look()
            assert one.told == (["first", "second"] if 6 <= number < 9 else ["second"])
            assert len(one.breaks) == 1
        # that was once: now it knows again which
        beaten = trio.Event()
        a.plane.beat(lambda result: beaten.set())
        await beaten.wait()
        for number in range(5):
            a.hub.publish(b"kept:0", number)
        await b.becomes(lambda: people[0].look() or len(people[0].breaks) == 2)
        await people[0].has(4)
        await level(a, b)
        assert a.daemon.service("backplane").snapshot().lives == lives + 1
        people[1].look()
        assert len(people[1].breaks) == 1
