"""A Redis that is not as it should be: garbled, refusing, silent; and somebody else who can write to it."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from netd.backplane import envelopes, scripts
from netd.backplane.desk import Call
from netd.backplane.envelopes import Post, Said
from netd.wire.messages import AskHistory, AskPresence, Direct, History, Message, Ok, Presence, SendDirect
from tests.backplane.lab import Redis, needs_redis, node, nodes, numbers

pytestmark = needs_redis


@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_a_value_error(body):
    with suppress(ValueError):
        envelopes.decode(body)


@given(st.binary(max_size=200))
def test_any_payload_is_one_or_a_value_error(payload):
    try:
        epoch, offset, _ = envelopes.parse(payload)
    except ValueError:
        return
    assert epoch is None or offset >= 0


@pytest.mark.parametrize("data", ["text", b"\xff\x00", {"a": [1, None, 2.5, {"b": True}]}, 2**64 - 1])
def test_what_is_said_comes_back_as_it_was(data):
    said = Said("n.1", 3, b"\xff:x", data, "id", 7, ephemeral=True, time=1.5)
    assert envelopes.decode(envelopes.encode(said)) == said


def test_values_that_no_client_may_send_are_refused():
    for data in (float("nan"), {1: 2}, msgspec.msgpack.Ext(1, b"x"), [[]] * 20_000):
        with pytest.raises(ValueError, match=r"NaN|Ext|more than|key"):
            envelopes.decode(envelopes.encode(Post("n.1", 0, None, data)))


async def test_what_is_of_the_wrong_type_under_our_keys_is_removed(redis):
    redis.say("SET", "netd:c:kept:room", "x")
    redis.say("SET", "netd:h:kept:room", "x")
    redis.say("SET", "netd:nodes", "x")
    redis.say("LPUSH", "netd:era", "x")
    redis.say("SET", "netd:revoked", "x")
    async with nodes(redis, "a", "b") as (a, b):
        one = b.person()
        await one.hear("kept:room")
        a.hub.publish(b"kept:room", 1)
        assert (await one.until(Message)).offset == 1
        redis.say("DEL", "netd:h:kept:room")
        redis.say("LPUSH", "netd:h:kept:room", "x")
        a.hub.publish(b"kept:room", 2)
        assert (await one.until(Message)).data == 2
        redis.say("HSET", "netd:c:kept:room", "o", "many")
        a.hub.publish(b"kept:room", 3)
        assert (await one.until(Message)).data == 3
        redis.say("DEL", f"netd:p:{a.plane.node}:kept:room")
        redis.say("SET", f"netd:p:{a.plane.node}:kept:room", "x")
        assert len((await one.answer(AskPresence(channel="kept:room", ref=7), Presence)).clients) == 1


async def test_entries_that_make_no_sense_are_left_out(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        await one.hear("kept:room")
        one.say("kept:room", 1)
        await one.messages(1)
        redis.say("XADD", "netd:h:kept:room", "2-0", "d", "garbage", "t", "soon")
        redis.say("XADD", "netd:h:kept:room", "3-0", "x", "y")
        redis.say("HSET", "netd:c:kept:room", "o", "3")
        history = await b.person().answer(AskHistory(channel="kept:room", ref=7), History)
        assert (numbers(history.messages), history.offset) == ([1], 3)
        assert b.plane.figures.unreadable


async def test_garbage_on_the_lane_is_counted_and_the_next_is_heard(redis):
    async with node(redis, "a") as a:
        one = a.person()
        await one.hear("brief:room")
        before = a.plane.figures.unreadable
        for payload in ("", "x", "\n", "\nx", "e\t\nx", "e\t99999999999999999999\nx", "e\t-1\nx", "a" * 100_000):
            redis.say("PUBLISH", "netd:lane", payload)
        await a.rest()
        await a.becomes(lambda: a.plane.figures.unreadable == before + 8)
        a.hub.publish(b"brief:room", 1)
        assert (await one.until(Message)).data == 1
        assert a.plane.online


async def test_offsets_that_somebody_made_up_do_not_silence_a_channel(redis):
    async with nodes(redis, "a", "b") as (a, b):
        one = a.person()
        await one.hear("kept:room")
        forged = envelopes.encode(Said("forger.1", 1, b"kept:room", "forged"))
        epoch = redis.say("HGET", "netd:c:kept:room", "e")
        lane = b"%s\t%d\n" % (epoch.encode(), 1000) + forged
        b.plane._push(Call("", [], [b"PUBLISH", b"netd:lane", lane], lambda result: None))
        b.hub.publish(b"kept:room", "true")
        assert (await one.until(Message)).data == "true"


@pytest.mark.parametrize(
    ("options", "words", "advice"),
    [
        (("--requirepass", "secret"), "auth", "backplane.username and .password"),
        (("--replicaof", "127.0.0.1 1"), "read only replica", "primary"),
        (("--maxmemory", "1"), "maxmemory", "more memory"),
        (("", "ACL", "SETUSER", "default", "-publish"), "permission", "scripts.py"),
        (("", "ACL", "SETUSER", "default", "-subscribe"), "permission", "scripts.py"),
        (("", "ACL", "SETUSER", "default", "-xadd"), "can't run", "scripts.py"),
        (("", "ACL", "SETUSER", "default", "-evalsha"), "permission", "scripts.py"),
    ],
)
async def test_what_it_refuses_is_told_with_advice(tmp_path, options, words, advice):
    """Options of the server; after "" what is said to it once it runs."""
    redis = Redis(tmp_path, *(options if options[0] else ()))
    redis.start()
    try:
        if not options[0]:
            await redis.ready()
            redis.say(*options[1:])
        async with node(redis, "a") as a:
            one = a.person()
            await one.hear("kept:room")

            def told() -> bool:
                a.hub.publish(b"kept:room", 1)
                return words in a.warnings.get("backplane.redis", "").lower()

            await a.becomes(told)
            [warning] = [each for each in a.daemon.health.warnings() if each.code == "backplane.redis"]
            assert advice in (warning.advice or "")
            assert (await one.until(Message)).data == 1
    finally:
        redis.kill()


async def test_the_rights_that_are_documented_are_enough(tmp_path):
    said = " ".join(scripts.__doc__.split())
    rights = said.partition("least privilege for the user: `")[2].partition("`")[0].replace("PREFIX", "netd:").split()
    redis = Redis(tmp_path)
    redis.start()
    try:
        await redis.ready()
        assert redis.say("ACL", "SETUSER", "netd", "on", ">open sesame", *rights) == "OK"
        login = {"username": "netd", "password": "open sesame"}
        async with node(redis, "a", **login) as a:
            one = a.person()
            await one.hear("kept:room")
            async with node(redis, "b", **login) as b:
                await a.online(1)
                two = b.person()
                await two.hear("kept:room")
                a.hub.publish(b"kept:room", 1)
                assert (await one.until(Message)).data == (await two.until(Message)).data == 1
                assert len((await one.answer(AskPresence(channel="kept:room", ref=7), Presence)).clients) == 2
                a.hub.revoke("jti", "x", 60)
                await a.rest()
                assert len(b.hub.revocations) == 1
                redis.freeze()
                await a.offline()
                a.hub.publish(b"kept:room", 2)
                redis.thaw()
                assert (await two.until(Message)).data == 2
                assert "denied" not in redis.say("ACL", "LOG")
            await a.becomes(lambda: not a.plane.nodes)
        assert redis.say("ACL", "LOG") == ""
    finally:
        redis.kill()


async def test_a_password_opens_it_and_is_not_shown(tmp_path):
    redis = Redis(tmp_path, "--requirepass", "open sesame")
    redis.start()
    try:
        secret = tmp_path / "password"
        secret.write_text("open sesame\n")
        async with node(redis, "a", password_file=secret) as a, node(redis, "b", password="open sesame") as b:
            await a.online(1)
            await b.online(1)
            assert "sesame" not in str(b.daemon.config_view().values)
    finally:
        redis.kill()


class Stranger:
    """Something else at the other end."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer

    async def __call__(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for _ in stream:
                    if self.answer is None:
                        await trio.sleep_forever()
                    await stream.send_all(self.answer)
            except trio.BrokenResourceError:
                pass


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"+OK\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"$-7\r\n",
        b"*1000000000\r\n",
        b"%3\r\n$7\r\nversion\r\n$5\r\n5.0.0\r\n$5\r\nproto\r\n:3\r\n$2\r\nid\r\n:1\r\n",
        b"\x00" * 1000,
        b"x" * 70_000,
    ],
)
async def test_whatever_is_there_instead_the_daemon_serves_and_says_what_is_wrong(answer):
    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, Stranger(answer), [listener])
        port = listener.socket.getsockname()[1]
        async with node(f"redis://127.0.0.1:{port}", "a", timeout=0.2) as a:
            await a.becomes(lambda: "backplane.redis" in a.warnings)
            assert a.warnings["backplane.redis"].startswith("cannot use Redis")
            one = a.person()
            await one.hear("kept:room")
            a.hub.publish(b"kept:room", 1)
            assert (await one.until(Message)).data == 1
        nursery.cancel_scope.cancel()


async def test_a_message_too_large_for_the_queue_is_delivered_here(redis):
    async with node(redis, "a", queue_bytes=2048) as a, node(redis, "b") as b:
        await a.online(1)
        one = a.person()
        ok = await one.hear("kept:room")
        a.hub.publish(b"kept:room", "x" * 5000)
        assert (await one.until(Message)).data == "x" * 5000
        a.hub.publish(b"kept:room", "small")
        assert (await one.until(Message)).data == "small"
        assert ok.epoch
        assert b.plane.online


async def test_a_node_that_does_not_answer_is_not_waited_for_long(redis):
    async with node(redis, "a", answers=0.2) as a, node(redis, "b") as b:
        await a.online(1)
        one, here = a.person(name="one"), a.person(name="two")
        b.plane._take = lambda envelope: None
        assert (await one.answer(SendDirect(to="name:two", data="x", ref=7), Ok)).delivered == 1
        assert (await here.until(Direct)).data == "x"
