"""netd.js in a page, against a broker that follows a script: requests, subscriptions, and what a lost connection does.

Over 600 lines, and one file all the same: everything is asked of the same scripted broker.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

ORIGIN = "http://127.0.0.1:8000"


@pytest.fixture
def begun(page, peer):
    """A page with a client that has been greeted, and the peer's side of it."""
    return greeted(page, peer, resume="secret-1")


def greeted(page, peer, options="{}", **welcome):
    page.visit(ORIGIN)
    page.run(f"begin(it, {options})", peer.url)
    link = peer.accept()
    link.welcome(**welcome)
    page.until("client.session")
    return link


def lose(peer, link, **welcome):
    """The connection breaks and is made again; the next one is greeted."""
    link.abort()
    link = peer.accept()
    hello = link.welcome(**welcome)
    return link, hello


def subscribed(page, link, **confirmed):
    page.run("globalThis.sub = client.subscribe('public:a', (message) => seen.push(['got', message.data]))")
    request = link.confirm("public:a", **({"epoch": "e1", "offset": 4} | confirmed))
    page.run("await sub.ready")
    return request


# --- requests ---------------------------------------------------------------------------------------------------------


def test_every_operation_has_its_request_and_its_answer(page, peer):
    page.visit(ORIGIN)
    page.run("begin(it, { name: 'alpha', token: 't', tags: { site: 'lab' } })", peer.url)
    link = peer.accept()
    assert link.connection.subprotocol == "netd.json"
    hello = link.welcome(session="s-9")
    assert {key: hello[key] for key in ("version", "name", "token", "tags")} == {
        "version": 1,
        "name": "alpha",
        "token": "t",
        "tags": {"site": "lab"},
    }
    assert "resume" not in hello
    cases = [
        ("client.publish('public:a', { n: 1 }, { priority: 3, ephemeral: true })", {"type": "ok", "delivered": 3}, 3),
        ("client.publish(new Uint8Array([255, 0]), null)", {"type": "ok"}, None),
        ("client.direct('name:beta', new Uint16Array([0x6968]))", {"type": "ok", "delivered": 1}, 1),
        ("client.broadcast('all')", {"type": "ok", "delivered": 2}, 2),
        ("client.text('to it', { confirm: true })", {"type": "ok"}, None),
        ("client.binary(new Uint8Array([0, 1, 255]).buffer, { confirm: true })", {"type": "ok"}, None),
        ("client.list()", {"type": "clients", "clients": [{"session": "s-2"}]}, [{"session": "s-2"}]),
        (
            "client.presence('public:a')",
            {"type": "presence", "channel": "public:a", "clients": []},
            [],
        ),
        (
            "client.history('public:a', { since: { epoch: 'e1', offset: 2 }, limit: 5 })",
            {
                "type": "history",
                "channel": "public:a",
                "epoch": "e1",
                "offset": 3,
                "messages": [{"type": "message", "channel64": "/w==", "data64": "aGk=", "offset": 3, "epoch": "e1"}],
            },
            {
                "epoch": "e1",
                "offset": 3,
                "messages": [
                    {
                        "type": "message",
                        "channel": {"bytes": [255]},
                        "data": {"bytes": [104, 105]},
                        "offset": 3,
                        "epoch": "e1",
                    }
                ],
            },
        ),
        ("client.refresh('t2')", {"type": "ok", "expires": 60.0}, 60),
    ]
    requests = []
    for call, answer, value in cases:
        page.run(f"globalThis.answer = outcome({call})")
        request = link.receive()
        link.say(answer | {"ref": request.pop("ref")})
        assert page.run("return (await answer)") == ({"value": value} if value is not None else {"value": None}), call
        requests.append(request)
    assert requests == [
        {"type": "publish", "channel": "public:a", "data": {"n": 1}, "priority": 3, "ephemeral": True},
        {"type": "publish", "channel64": "/wA=", "data": None},
        {"type": "direct", "to": "name:beta", "data64": "aGk="},
        {"type": "broadcast", "data": "all"},
        {"type": "text", "text": "to it"},
        {"type": "binary", "data64": "AAH/"},
        {"type": "list"},
        {"type": "presence", "channel": "public:a"},
        {"type": "history", "channel": "public:a", "since": {"epoch": "e1", "offset": 2}, "limit": 5},
        {"type": "refresh", "token": "t2"},
    ]
    page.run("globalThis.answer = outcome(client.ping())")
    request = link.request("ping")
    link.say(type="pong", ts=request["ts"], ref=request["ref"])
    assert page.run("return (await answer).value") >= 0


def test_a_refusal_and_silence_are_errors_with_a_kind(page, peer):
    page.later(0)
    link = greeted(page, peer)
    page.run("globalThis.answer = outcome(client.publish('public:a', 1))")
    link.say(type="error", code="denied", message="cannot publish: no", ref=link.request("publish")["ref"])
    assert page.run("return answer") == {"error": {"kind": "denied", "message": "cannot publish: no"}}
    page.run("globalThis.answer = outcome(client.publish('public:a', 1))")
    page.later(10)
    assert page.run("return answer") == {
        "error": {"kind": "unreachable", "message": "cannot publish to public:a: no answer within 10 s"}
    }
    assert page.run("return outcome(client.publish('public:a', undefined))")["error"]["kind"] == "invalid"
    assert page.run("return outcome(client.binary('text'))")["error"]["kind"] == "invalid"
    page.run("globalThis.round = {}; round.round = round")
    for value in ("1n", "round", "{ toJSON() { throw Error('mine') } }"):
        assert page.run(f"return outcome(client.publish('public:a', {value}))")["error"]["kind"] == "invalid"
    page.run("client.publish('public:b', 1, { confirm: false })")
    assert "ref" not in [link.request("publish"), link.request("publish")][-1]
    link.say(type="error", code="denied", message="cannot publish: no")
    assert page.until("seen.find(([name]) => name == 'error')")[1]["kind"] == "denied"


def test_what_was_on_its_way_is_asked_again_only_where_that_does_no_harm(page, peer, begun):
    page.run("globalThis.answers = [outcome(client.list()), outcome(client.publish('public:a', 1))]")
    begun.request("list")
    begun.request("publish")
    link, _ = lose(peer, begun)
    link.say(type="clients", clients=[], ref=link.request("list")["ref"])
    listed, published = page.run("return Promise.all(answers)")
    assert listed == {"value": []}
    assert published["error"]["kind"] == "lost"
    assert published["error"]["message"].startswith("cannot tell whether the daemon did it (publish to public:a)")


def test_what_is_asked_for_before_the_connection_stands_waits_for_it_subscriptions_first(page, peer):
    page.visit(ORIGIN)
    page.run(
        """begin(it);
        globalThis.answer = outcome(client.publish('public:a', 'early'));
        client.subscribe('public:a', (message) => seen.push(['got', message.data]));""",
        peer.url,
    )
    link = peer.accept()
    link.welcome()
    link.confirm("public:a")
    link.say(type="ok", delivered=1, ref=link.request("publish")["ref"])
    assert page.run("return answer") == {"value": 1}


def test_the_queue_is_bounded_and_empties_itself(page, peer):
    page.visit(ORIGIN)
    page.run(
        """begin(it, { queueBytes: 300, timeout: 0.5 });
        globalThis.answers = [1, 2].map((n) => outcome(client.publish('public:a', 'x'.repeat(150))));""",
        peer.url,
    )
    peer.accept()  # and is never greeted
    first, second = page.run("return Promise.all(answers)")
    assert (first["error"]["kind"], second["error"]["kind"]) == ("unreachable", "full")
    assert "it could not be sent within 0.5 s, the state is" in first["error"]["message"]
    assert page.run("return client.buffered") == 0


# --- subscriptions ----------------------------------------------------------------------------------------------------


def test_a_subscription_has_every_message_once_over_a_loss(page, peer, begun):
    assert "recover" not in subscribed(page, begun)
    begun.publish(5, 6)
    page.until("seen.filter(([name]) => name == 'got').length == 2")
    begun.abort()
    link = peer.accept()
    assert link.welcome()["resume"] == "secret-1"
    request = link.confirm("public:a", epoch="e1", offset=6, recovered=True)
    assert request["recover"] == {"epoch": "e1", "offset": 6}
    link.publish(6, 7, 8, 8, 9)  # what a daemon should not say twice
    page.until("seen.some(([name, data]) => name == 'got' && data == 9)")
    assert page.seen("got") == [5, 6, 7, 8, 9]
    assert page.seen("gap") == []
    assert page.run("return sub.position") == {"epoch": "e1", "offset": 9}


def test_one_gap_where_the_daemon_says_that_something_is_gone(page, peer, begun):
    subscribed(page, begun)
    begun.publish(5)
    page.until("seen.some(([name]) => name == 'got')")
    link, _ = lose(peer, begun)
    link.confirm("public:a", epoch="e2", offset=40, recovered=False)
    link.publish(41, 42, epoch="e2")
    page.until("seen.some(([name, data]) => name == 'got' && data == 42)")
    assert page.seen("gap") == [{"channel": "public:a", "epoch": "e2", "missed": None}]
    assert page.seen("got") == [5, 41, 42]
    link.publish(45, epoch="e2")  # a hole
    page.until("seen.some(([name, data]) => name == 'got' && data == 45)")
    assert page.seen("gap")[1:] == [{"channel": "public:a", "epoch": "e2", "missed": 2}]


def test_after_messages_without_offsets_it_is_level_again_and_nothing_is_missing(page, peer, begun):
    """As the daemon says after an outage of what its machines share."""
    subscribed(page, begun)
    begun.publish(5)
    begun.say(type="message", channel="public:a", data="local")
    begun.say(type="ok", channel="public:a", epoch="e1", offset=9)
    begun.publish(10)
    page.until("seen.some(([name, data]) => name == 'got' && data == 10)")
    assert page.seen("got", "gap") == [5, "local", 10]
    begun.say(type="ok", channel="public:a", epoch="e2", offset=12)  # its history was lost meanwhile
    begun.publish(12, 13, epoch="e2")
    page.until("seen.some(([name, data]) => name == 'got' && data == 13)")
    assert page.seen("got", "gap")[3:] == [{"channel": "public:a", "epoch": "e2", "missed": None}, 13]


def test_what_was_heard_without_offsets_on_one_machine_is_not_heard_again_on_another(page, peer, begun):
    subscribed(page, begun)
    begun.publish(5)
    for number in (1, 2):
        begun.say(type="message", channel="public:a", data=f"local {number}", origin=f"a:{number}")
    page.until("seen.some(([name, data]) => name == 'got' && data == 'local 2')")
    begun.say(type="ok", channel="public:a", epoch="e1", offset=5)  # none of them are in the history yet
    begun.abort()
    link = peer.accept()
    link.welcome()
    link.confirm("public:a", epoch="e1", offset=5, recovered=True)
    link.say(type="ok", channel="public:a", epoch="e1", offset=5)  # that machine knows nothing of them
    for offset, number in ((6, 1), (7, 2), (8, 3)):
        place = {"epoch": "e1", "offset": offset, "origin": f"a:{number}"}
        link.say(type="message", channel="public:a", data=f"local {number}", **place)
    page.until("seen.some(([name, data]) => name == 'got' && data == 'local 3')")
    assert page.seen("got", "gap") == [5, "local 1", "local 2", "local 3"]


def test_going_on_from_a_position_of_before(page, peer, begun):
    page.run(
        """globalThis.gaps = [];
        const options = { recover: { epoch: 'e0', offset: 7 }, gap: (gap) => gaps.push(gap) };
        globalThis.sub = client.subscribe('public:a', (message) => {}, options)"""
    )
    assert begun.confirm("public:a", epoch="e1", offset=1, recovered=False)["recover"] == {"epoch": "e0", "offset": 7}
    assert page.until("gaps.length") == 1
    assert page.run("return sub.position") == {"epoch": "e1", "offset": 1}


def test_an_iterator_ends_with_its_subscription_and_says_what_it_could_not_keep(page, peer):
    link = greeted(page, peer, "{ inboxItems: 3 }")
    page.run("globalThis.sub = client.subscribe('public:a')")
    link.confirm("public:a", epoch="e1", offset=0)
    link.publish(1, 2, 3, 4, 5)
    link.say(type="text", text="behind them")
    page.until("seen.some(([name]) => name == 'text')")
    assert page.run(
        """const found = [];
        for await (const message of sub) if (found.push(message.data) == 3) break;
        return found"""
    ) == [3, 4, 5]
    assert page.seen("gap") == [{"channel": "public:a", "epoch": "e1", "missed": None}]
    page.run("globalThis.next = sub[Symbol.asyncIterator]().next(); globalThis.left = outcome(sub.unsubscribe())")
    link.say(type="ok", channel="public:a", ref=link.request("unsubscribe")["ref"])
    assert page.run("return (await next).done") is True
    assert page.run("return left") == {"value": None}
    page.run("globalThis.sub = client.subscribe('public:a')")
    link.confirm("public:a")
    link.say(type="error", code="denied", message="cannot stay", channel="public:a")
    taken = page.run("return outcome(sub[Symbol.asyncIterator]().next())")
    assert taken["error"] == {"kind": "denied", "message": "cannot stay", "channel": "public:a"}
    assert page.seen("error")[-1] == taken["error"]


def test_who_leaves_the_loop_ends_the_subscription(page, peer, begun):
    page.run(
        """globalThis.sub = client.subscribe('public:a');
        globalThis.first = (async () => { for await (const message of sub) return message.data; })()"""
    )
    begun.confirm("public:a", epoch="e1", offset=0)
    begun.publish(1, 2)
    assert page.run("return (await first)") == 1
    begun.say(type="ok", channel="public:a", ref=begun.request("unsubscribe")["ref"])
    assert page.run("return [sub.live, (await sub[Symbol.asyncIterator]().next()).done]") == [False, True]
    page.run("client.subscribe('public:a')")
    begun.confirm("public:a")


def test_a_handler_that_unsubscribes_is_called_no_more(page, peer, begun):
    page.run(
        """const once = (name) => (message) => {
          seen.push([name, message.data]);
          wide.unsubscribe();
          own.unsubscribe();
        };
        globalThis.wide = client.subscribe('public:>', once('got'));
        globalThis.own = client.subscribe('public:a', once('got'), { gap: () => own.unsubscribe() });"""
    )
    begun.confirm("public:>", pattern=True)
    begun.confirm("public:a", epoch="e1", offset=0)
    begun.publish(5)  # which is a gap in its own channel
    begun.request("unsubscribe")
    begun.request("unsubscribe")
    begun.say(type="text", text="behind it")
    page.until("seen.some(([name]) => name == 'text')")
    assert page.run("return seen.filter(([name]) => name == 'got')") == [["got", 5]]


def test_who_was_at_a_node_without_history_knows_still_what_it_has(page, peer, begun):
    subscribed(page, begun)
    begun.publish(5)
    link, _ = lose(peer, begun)
    assert link.confirm("public:a")["recover"] == {"epoch": "e1", "offset": 5}  # it cannot see the history just now
    link.publish(4, 5, 6)
    page.until("seen.some(([name, data]) => name == 'got' && data == 6)")
    assert page.run("return seen.filter(([name]) => name == 'got')") == [["got", 5], ["got", 6]]
    assert page.seen("gap") == [{"channel": "public:a", "epoch": None, "missed": None}]
    link, _ = lose(peer, link)
    assert link.confirm("public:a", recovered=True)["recover"] == {"epoch": "e1", "offset": 6}


def test_who_only_wants_the_next_one_stays_subscribed(page, peer, begun):
    page.run("globalThis.sub = client.subscribe('public:a'); globalThis.steps = sub[Symbol.asyncIterator]()")
    begun.confirm("public:a", epoch="e1", offset=0)
    begun.publish(1, 2)
    assert page.run("return [(await steps.next()).value.data, sub.live]") == [1, True]
    assert page.run("return (await steps.next()).value.data") == 2


def test_an_iterator_has_a_bound_of_bytes_too_and_keeps_the_newest(page, peer):
    link = greeted(page, peer, "{ inboxBytes: 1000 }")
    page.run("globalThis.sub = client.subscribe('public:a')")
    link.confirm("public:a", epoch="e1", offset=0)
    for offset, size in enumerate((400, 400, 400, 5000), 1):
        link.say(type="message", channel="public:a", data="x" * size, offset=offset, epoch="e1")
    link.say(type="text", text="behind them")
    page.until("seen.some(([name]) => name == 'text')")
    assert page.seen("gap") == [{"channel": "public:a", "epoch": "e1", "missed": None}]
    assert page.run("return (await sub[Symbol.asyncIterator]().next()).value.data.length") == 5000


def test_what_a_handler_takes_cannot_be_iterated_over_too(page, peer, begun):
    subscribed(page, begun)
    taken = page.run("return outcome((async () => { for await (const message of sub) return message; })())")
    assert taken["error"]["kind"] == "invalid"
    assert "its messages go to a handler" in taken["error"]["message"]
    begun.publish(5)
    page.until("seen.some(([name]) => name == 'got')")


def test_a_refused_subscription_says_so_and_one_that_came_too_fast_is_asked_for_again(page, peer):
    page.later(0)
    begun = greeted(page, peer)
    page.run("globalThis.sub = client.subscribe('public:a', () => {}); globalThis.ready = outcome(sub.ready)")
    ref = begun.request("subscribe")["ref"]
    begun.say(type="error", code="rate", message="cannot do more", ref=ref)
    begun.say(type="text", text="behind it")
    page.until("seen.some(([name]) => name == 'text')")
    page.later(1.5)
    ref = begun.request("subscribe")["ref"]
    begun.say(type="error", code="denied", message="cannot subscribe: no", ref=ref)
    assert page.run("return (await ready).error.kind") == "denied"
    assert page.until("seen.find(([name]) => name == 'error')")[1]["channel"] == "public:a"
    link, _ = lose(peer, begun)
    page.run("client.subscribe('public:b', () => {})")
    link.confirm("public:b")  # and the refused one was not asked for again
    refused = page.run("try { client.subscribe('public:b') } catch (error) { return plain(error) }")
    assert refused["message"] == "cannot subscribe to public:b twice: this client is subscribed"


def test_what_is_subscribed_to_again_stays_whatever_became_of_the_unsubscribe(page, peer, begun):
    """A session that comes back has no subscriptions: what ended one before must not be asked of the new one."""
    subscribed(page, begun)
    page.run("globalThis.left = outcome(sub.unsubscribe())")
    begun.request("unsubscribe")  # and is not answered
    begun.abort()
    page.until("client.state.name != 'connected'")
    page.run("globalThis.sub = client.subscribe('public:a', (message) => seen.push(['again', message.data]))")
    link = peer.accept()
    link.welcome()
    assert "recover" not in link.confirm("public:a", epoch="e1", offset=4)
    assert page.run("return left") == {"value": None}
    page.run("client.publish('public:a', 'next', { confirm: false })")
    assert link.receive()["type"] == "publish"


def test_what_was_on_the_way_from_a_channel_that_was_left_is_for_nobody(page, peer, begun):
    subscribed(page, begun)
    page.run("globalThis.left = outcome(sub.unsubscribe())")
    request = begun.request("unsubscribe")
    begun.publish(5)
    begun.say(type="joined", session="s-2", channel="public:a")
    begun.say(type="error", code="denied", message="no more", channel="public:a")
    begun.say(type="ok", ref=request["ref"], channel="public:a")
    begun.publish(6)  # the application subscribed this session
    page.until("seen.some(([name]) => name == 'message')")
    assert page.run("return left") == {"value": None}
    assert [event["data"] for event in page.seen("message")] == [6]
    assert page.seen("joined", "error", "got") == []


def test_a_pattern_that_was_left_brings_nothing_either_nor_to_the_next_subscription(page, peer, begun):
    page.run("globalThis.all = client.subscribe('public:*', () => {})")
    begun.confirm("public:*", pattern=True)
    page.run("await all.ready")
    page.run("globalThis.left = outcome(all.unsubscribe())")
    page.run("""globalThis.sub = client.subscribe('public:a', (message) => seen.push(['got', message.data]),
                                                 { recover: { epoch: 'e1', offset: 5 } })""")
    left, asked = begun.request("unsubscribe"), begun.request("subscribe")
    begun.publish(7)
    begun.publish(7, channel="public:b")
    begun.say(type="ok", ref=left["ref"])
    begun.say(type="ok", ref=asked["ref"], channel="public:a", epoch="e1", offset=5, recovered=True)
    begun.publish(6, 7)
    page.until("seen.filter(([name]) => name == 'got').length == 2")
    assert page.seen("got") == [6, 7]
    assert page.seen("message", "gap") == []


def test_a_pattern_that_was_left_twice_is_one_until_the_daemon_has_answered(page, peer, begun):
    """Whatever became of the second subscription."""
    page.run("globalThis.all = client.subscribe('public:*', () => {})")
    begun.confirm("public:*", pattern=True)
    page.run("await all.ready")
    page.run("globalThis.left = outcome(all.unsubscribe())")
    page.run("globalThis.twice = outcome(client.subscribe('public:*').unsubscribe())")
    first, _, second = (begun.request(kind) for kind in ("unsubscribe", "subscribe", "unsubscribe"))
    begun.publish(6)
    begun.say(type="ok", ref=first["ref"])
    begun.say(type="ok", ref=second["ref"])
    begun.publish(7)  # the application subscribed this session
    page.until("seen.some(([name]) => name == 'message')")
    assert page.run("return [await left, await twice]") == [{"value": None}] * 2
    assert [event["data"] for event in page.seen("message")] == [7]


def test_who_joined_what_was_left_is_not_told_to_the_next_subscription(page, peer, begun):
    subscribed(page, begun)
    page.run("globalThis.left = outcome(sub.unsubscribe())")
    page.run("client.subscribe('public:a', () => {}, { presence: (event) => seen.push(['came', event.session]) })")
    left, asked = begun.request("unsubscribe"), begun.request("subscribe")
    begun.say(type="joined", session="s-2", channel="public:a")
    begun.say(type="ok", ref=left["ref"])
    begun.say(type="ok", ref=asked["ref"], channel="public:a", epoch="e1", offset=4)
    begun.say(type="joined", session="s-3", channel="public:a")
    page.until("seen.some(([name]) => name == 'came')")
    assert page.seen("came") == ["s-3"]


def test_what_a_pattern_heard_without_offsets_does_not_come_again_elsewhere(page, peer, begun):
    page.run("globalThis.all = client.subscribe('public:*', (message) => seen.push(['got', message.data]))")
    begun.confirm("public:*", pattern=True)
    for number in (1, 2):
        begun.say(type="message", channel=f"public:{number}", data=f"local {number}", origin=f"a:{number}")
    begun.say(type="ok", channel="public:9", epoch="e1", offset=0)  # of the others, nothing is said
    page.until("seen.some(([name, data]) => name == 'got' && data == 'local 2')")
    begun.abort()
    link = peer.accept()
    link.welcome()
    link.confirm("public:*", pattern=True, recovered=False)
    for number in (1, 2, 3):
        place = {"epoch": "e1", "offset": 1, "origin": f"a:{number}"}
        link.say(type="message", channel=f"public:{number}", data=f"local {number}", **place)
    page.until("seen.some(([name, data]) => name == 'got' && data == 'local 3')")
    assert page.seen("got") == ["local 1", "local 2", "local 3"]


def test_a_daemon_that_was_too_busy_is_asked_once_more_to_leave(page, peer, begun):
    subscribed(page, begun)
    page.run("globalThis.left = outcome(sub.unsubscribe())")
    request = begun.request("unsubscribe")
    begun.say(type="error", code="rate", message="too much", ref=request["ref"])
    begun.publish(5)
    request = begun.request("unsubscribe")
    begun.publish(6)
    begun.say(type="ok", ref=request["ref"], channel="public:a")
    assert page.run("return left") == {"value": None}
    assert page.seen("message", "got", "error") == []


def test_a_full_queue_keeps_nobody_from_leaving(page, peer):
    link = greeted(page, peer, "{ queueBytes: 10 }")
    subscribed(page, link)
    page.run("globalThis.left = outcome(sub.unsubscribe())")
    link.say(type="ok", ref=link.request("unsubscribe")["ref"])
    assert page.run("return left") == {"value": None}


def test_a_pattern_has_the_messages_of_all_its_channels_and_a_gap_for_each_loss(page, peer, begun):
    subscribed(page, begun)
    page.run(
        """globalThis.wild = client.subscribe('public:>', (message) => seen.push(['wild', message.channel]),
                                             { pattern: true })"""
    )
    assert begun.confirm("public:>", pattern=True)["pattern"] is True
    page.run("await wild.ready")
    begun.publish(5)
    begun.publish(1, 3, channel="public:b.c")
    begun.publish(1, channel="other:b")
    page.until("seen.some(([name]) => name == 'message')")
    assert page.seen("got") == [5]
    assert page.seen("wild") == ["public:a", "public:b.c", "public:b.c"]
    assert page.seen("gap") == [{"channel": "public:b.c", "epoch": "e1", "missed": 1}]
    link, _ = lose(peer, begun)
    link.confirm("public:a", epoch="e1", offset=5, recovered=True)
    assert "recover" not in link.confirm("public:>", pattern=True)
    page.until("seen.filter(([name]) => name == 'gap').length == 2")
    assert page.seen("gap")[1:] == [{"channel": "public:>", "epoch": None, "missed": None}]
    assert page.run("return wild.position") is None


def test_what_belongs_to_no_subscription_is_an_event(page, peer, begun):
    page.run("client.subscribe('public:a', () => {}, { presence: (event) => seen.push(['witness', event.session]) })")
    begun.confirm("public:a")
    begun.say(
        {"type": "message", "channel": "public:z", "data": "placed", "from": "s-2"},
        {"type": "direct", "from": "s-2", "data64": "aGk="},
        {"type": "broadcast", "data": {"n": 1}},
        {"type": "binary", "data64": "AA=="},
        {"type": "joined", "session": "s-3", "channel": "public:a"},
        {"type": "left", "session": "s-3", "name": "x", "channel": "public:a"},
        {"type": "text", "text": "last"},
    )
    page.until("seen.some(([name]) => name == 'text')")
    assert page.seen("message", "direct", "broadcast", "binary", "joined", "left", "witness", "text") == [
        {"type": "message", "channel": "public:z", "data": "placed", "from": "s-2"},
        {"type": "direct", "from": "s-2", "data": {"bytes": [104, 105]}},
        {"type": "broadcast", "data": {"n": 1}},
        {"type": "binary", "data": {"bytes": [0]}},
        "s-3",
        {"type": "joined", "session": "s-3", "channel": "public:a"},
        "s-3",
        {"type": "left", "session": "s-3", "name": "x", "channel": "public:a"},
        {"type": "text", "text": "last"},
    ]


def test_what_a_handler_throws_is_the_page_s_and_stops_nothing(page, peer, begun):
    page.run(
        "globalThis.sub = client.subscribe('public:a', ({ data }) => { seen.push(['got', data]); throw Error('mine') })"
    )
    begun.confirm("public:a", epoch="e1", offset=0)
    begun.publish(1, 2)
    page.until("seen.filter(([name]) => name == 'got').length == 2")
    page.run("await new Promise((done) => setTimeout(done))")
    assert page.errors == ["mine", "mine"]
    page.errors.clear()


# --- the connection ---------------------------------------------------------------------------------------------------


def test_the_session_is_resumed_and_a_stranger_where_its_secret_is_too_old(page, peer, begun):
    link, hello = lose(peer, begun, resume="secret-2")
    assert hello["resume"] == "secret-1"
    page.until("seen.filter(([name]) => name == 'open').length == 2")
    link.abort()
    link = peer.accept()
    hello = link.request("hello")
    assert hello["resume"] == "secret-2"
    link.say(type="error", code="invalid", message="cannot resume", ref=hello["ref"])
    assert "resume" not in link.welcome(session="s-2")
    page.until("client.session == 's-2'")
    assert [event["resumed"] for event in page.seen("open")] == [False, True, False]
    backoffs = [state["attempt"] for state in page.seen("state") if state["name"] == "backoff"]
    assert backoffs == [1, 1], "each was a good connection before"


def test_it_stays_away_for_as_long_as_the_daemon_says(page, peer):
    page.later(0)
    begun = greeted(page, peer)
    begun.say(type="close", code=1001, reason="the daemon stops", retry_after=1e6)
    begun.close(1001)
    state = page.until("seen.find(([name, state]) => name == 'state' && state.name == 'backoff')")[1]
    assert 3600 <= state["seconds"] < 3610  # the most that a daemon can ask for
    assert state["reason"] == "the daemon closed the session (1001): the daemon stops"
    page.run("dispatchEvent(new Event('online'))")  # no reason to come earlier than that
    page.later(3500)
    page.run("dispatchEvent(new Event('online'))")
    assert page.run("return client.state.name") == "backoff"
    page.later(101)
    peer.accept().welcome()


def test_each_delay_is_longer_than_the_one_before_and_jittered(page, peer):
    page.visit(ORIGIN)
    page.run(
        "begin(it, { reconnect: { first: 0.02, longest: 0.1, jitter: 0.5, maxAttempts: 6 } })", "ws://127.0.0.1:9/ws"
    )
    closed = page.until("seen.find(([name]) => name == 'close')")[1]
    assert closed["error"]["kind"] == "unreachable"
    states = [state for state in page.seen("state") if state["name"] == "backoff"]
    assert [state["attempt"] for state in states] == [1, 2, 3, 4, 5, 6]
    connecting = [state["attempt"] for state in page.seen("state") if state["name"] == "connecting"]
    assert connecting == [1, 2, 3, 4, 5, 6]  # and one before anybody could listen
    for state, whole in zip(states, [0.02, 0.04, 0.08, 0.1, 0.1, 0.1], strict=True):
        assert whole / 2 <= state["seconds"] <= whole


@pytest.mark.parametrize(
    "sign", ["document.dispatchEvent(new Event('visibilitychange'))", "dispatchEvent(new Event('online'))"]
)
def test_a_page_that_is_looked_at_again_and_a_network_that_is_back_need_not_wait(page, peer, sign):
    link = greeted(page, peer, "{ reconnect: { first: 3600, longest: 3600 } }", heartbeat=3600.0)
    page.run(sign)
    link.request("ping")  # is it still there?
    link.abort()
    page.until("client.state.name == 'backoff'")
    page.run(sign)
    peer.accept().welcome()


def test_a_daemon_that_says_nothing_is_asked_and_then_lost(page, peer):
    page.later(0)
    link = greeted(page, peer, heartbeat=100.0)
    page.later(101)
    link.request("ping")
    link.say(type="ping", ts=5)
    assert link.request("pong")["ts"] == 5
    page.later(299)
    assert page.run("return client.state.name") == "connected"
    page.later(2)
    again = peer.accept()
    again.welcome()
    page.until("seen.filter(([name]) => name == 'open').length == 2")
    assert any("nothing was heard for 300 s" in (state.get("reason") or "") for state in page.seen("state"))


def test_a_daemon_that_does_not_greet_is_tried_again(page, peer):
    page.visit(ORIGIN)
    page.run("begin(it, { timeout: 0.2 })", peer.url)
    peer.accept().request("hello")
    peer.accept()
    assert page.seen("state")[0]["reason"] == "no welcome within 0.2 s"


@pytest.mark.parametrize(("code", "kind"), [(1008, "policy"), (4009, "replaced"), (4010, "kicked")])
def test_some_ends_are_final(page, peer, begun, code, kind):
    page.run(
        "globalThis.sub = client.subscribe('public:a'); globalThis.next = outcome(sub[Symbol.asyncIterator]().next())"
    )
    begun.confirm("public:a")
    begun.close(code, "because")
    closed = page.until("seen.find(([name]) => name == 'close')")[1]
    assert closed["error"]["kind"] == kind
    assert closed["reason"] == f"cannot go on: the daemon closed the session ({code}): because"
    assert page.run("return (await next).error.kind") == kind
    assert page.run("return outcome(client.publish('public:a', 1))")["error"]["kind"] == "closed"
    assert peer.nobody_came()


def test_a_daemon_may_end_it_in_peace(page, peer, begun):
    begun.close(1000)
    assert page.until("seen.find(([name]) => name == 'close')")[1]["error"] is None
    assert peer.nobody_came()


def test_who_leaves_and_closes_need_not_wait_for_either(page, peer, begun):
    subscribed(page, begun)
    page.run("sub.unsubscribe(); globalThis.ended = client.close().then(() => 'closed')")
    assert begun.request("unsubscribe")["channel"] == "public:a"
    assert begun.closed() == 1000
    begun.done.set()
    assert page.run("return ended") == "closed"
    page.run("await new Promise((done) => setTimeout(done))")
    assert page.errors == []  # no rejection that nobody handles


def test_a_clean_close_sends_what_is_queued_and_ends_what_waits(page, peer, begun):
    page.run(
        """globalThis.waits = outcome(client.list());
        client.publish('public:a', 'last words', { confirm: false });
        globalThis.ended = client.close().then(() => 'closed')"""
    )
    begun.request("list")
    assert begun.request("publish")["data"] == "last words"
    begun.request("close")
    assert begun.closed() == 1000
    begun.done.set()
    assert page.run("return ended") == "closed"
    assert page.run("return (await waits).error.kind") == "closed"
    assert page.run("return client.state") == {"name": "closed", "reason": ""}


def test_who_subscribes_and_publishes_as_soon_as_it_is_connected_does_so_once_and_in_order(page, peer):
    page.visit(ORIGIN)
    page.run(
        """begin(it);
        client.subscribe('public:a', () => {});
        client.publish('public:a', 'queued', { confirm: false });
        client.on('state', ({ name }) => {
          if (name != 'connected') return;
          client.subscribe('public:b', () => {});
          client.publish('public:b', 'at once', { confirm: false });
        });""",
        peer.url,
    )
    link = peer.accept()
    link.welcome()
    said = [link.receive() for _ in range(4)]
    assert [(each["type"], each["channel"]) for each in said] == [
        ("subscribe", "public:a"),
        ("publish", "public:a"),
        ("subscribe", "public:b"),
        ("publish", "public:b"),
    ]
    page.run("client.publish('public:b', 'last', { confirm: false })")
    assert link.receive()["data"] == "last"


@pytest.mark.parametrize("name", ["backoff", "connecting", "connected"])
def test_who_closes_in_any_state_has_closed(page, peer, name):
    page.later(0)
    link = greeted(page, peer, "{ token: () => 'token' }")
    page.run("client.on('state', ({ name }) => { if (name == it) client.close() })", name)
    link.abort()
    page.until("client.state.name != 'connected'")
    page.later(0.02)
    if name == "connected":
        with suppress(ConnectionClosed):  # it closes as soon as it is welcome, and may not wait for the second answer
            peer.accept().welcome(expires=50)
    assert page.until("seen.find(([name]) => name == 'close')")[1] == {"reason": "", "error": None}
    page.later(60)
    assert [state["name"] for state in page.seen("state")][-2:] == [name, "closed"]
    assert page.run("return seen.at(-1)[0]") == "close"
    assert page.run("return client.state.name") == "closed"
    assert peer.nobody_came()
    assert page.seen("error") == []


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"message","channel":5,"data":1}',
        '{"type":"joined","channel":{},"session":"s"}',
        '{"type":"message","channel64":"*","data":1}',
        '{"type":"ok","epoch":"e1","channel":7}',
        "null",
        "[",
    ],
)
def test_what_no_daemon_says_ends_the_connection_and_throws_nothing(page, peer, begun, text):
    subscribed(page, begun)
    begun.connection.send(text)
    peer.accept().welcome()
    page.until("client.state.name == 'connected'")
    (lost,) = [state for state in page.seen("state") if state["name"] == "backoff"]
    assert lost["reason"].startswith("the daemon said what cannot be read (")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_asked_for_with_every_connection_and_before_it_expires(page, peer):
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: async () => `token-${++n}` })", peer.url)
    link = peer.accept()
    assert link.welcome(expires=0.5)["token"] == "token-1"
    refresh = link.request("refresh")
    assert refresh["token"] == "token-2"
    link.say(type="ok", expires=0.5, ref=refresh["ref"])
    refresh = link.request("refresh")
    link.say(type="ok", expires=1e9, ref=refresh["ref"])
    _, hello = lose(peer, link)
    assert hello["token"] == "token-4"


def test_tokens_that_are_good_for_nothing_are_not_asked_for_without_end(page, peer):
    page.later(0)
    page.visit(ORIGIN)
    page.run("globalThis.asked = 0; begin(it, { token: () => `token-${++asked}` })", peer.url)
    link = peer.accept()
    link.welcome(expires=0)
    page.until("client.session")
    page.later(0.5)  # of the second that it waits; the rest is for what the page's own clock adds
    assert page.run("return asked") == 1
    page.later(0.6)
    link.say(type="ok", expires=0, ref=link.request("refresh")["ref"])
    link.say(type="text", text="behind it")
    page.until("seen.some(([name]) => name == 'text')")
    page.later(0.5)
    assert page.run("return asked") == 2


def test_a_token_that_cannot_be_had_is_asked_for_again(page, peer):
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: () => { if (!n++) throw Error('no net'); return 'token' } })", peer.url)
    assert peer.accept().welcome()["token"] == "token"
    assert page.seen("error") == [{"kind": "unreachable", "message": "cannot get a token: no net"}]


def test_a_token_that_throws_at_once_is_an_error_once(page, peer):
    page.later(0)
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: () => { if (!n++) throw Error('no net'); return 'token' } })", peer.url)
    page.until("seen.some(([name]) => name == 'error')")
    page.later(60)
    assert page.errors == []  # nothing is left that rejects later
    assert page.seen("error") == [{"kind": "unreachable", "message": "cannot get a token: no net"}]


@pytest.mark.parametrize("good", [True, False])
def test_a_token_that_counts_no_more_is_replaced_and_what_it_gave_goes_on(page, peer, good):
    page.later(0)
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: async () => `token-${++n}` })", peer.url)
    link = peer.accept()
    link.welcome()
    subscribed(page, link)
    link.publish(5)
    link.say(
        {"type": "error", "code": "denied", "message": "cannot go on with the token", "refresh": True},
        {"type": "error", "code": "denied", "message": "cannot stay subscribed", "channel": "public:a"},
        {"type": "text", "text": "behind them"},
    )
    page.until("seen.some(([name]) => name == 'text')")
    assert page.seen("got") == [5]
    page.later(1)
    refresh = link.request("refresh")
    assert refresh["token"] == "token-2"
    if good:
        link.say(type="ok", ref=refresh["ref"])
        request = link.confirm("public:a", epoch="e1", offset=6, recovered=True)
        assert request["recover"] == {"epoch": "e1", "offset": 5}
        link.publish(6)
        page.until("seen.filter(([name]) => name == 'got').length == 2")
        assert page.seen("got", "gap") == [5, 6]
        assert [error["message"] for error in page.seen("error")] == ["cannot go on with the token"]
    else:
        link.say(type="error", code="denied", message="cannot accept the token", ref=refresh["ref"])
        page.until("seen.filter(([name]) => name == 'error').length == 3")
        assert [error["message"] for error in page.seen("error")] == [
            "cannot go on with the token",
            "cannot accept the token",
            "cannot stay subscribed",
        ]
        assert page.run("return sub.live") is False


def test_what_a_lost_token_ended_is_asked_for_by_the_next_connection(page, peer):
    page.later(0)
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: async () => `token-${++n}` })", peer.url)
    link = peer.accept()
    link.welcome()
    subscribed(page, link)
    link.say(
        {"type": "error", "code": "denied", "message": "cannot go on with the token", "refresh": True},
        {"type": "error", "code": "denied", "message": "cannot stay subscribed", "channel": "public:a"},
    )
    page.until("!sub.live")
    link, _ = lose(peer, link)
    link.confirm("public:a", epoch="e1", offset=4, recovered=True)
    page.until("sub.live")
    link.say(type="error", code="denied", message="cannot stay after all", channel="public:a")
    page.until("seen.some(([name, error]) => name == 'error' && error.message == 'cannot stay after all')")
    assert page.run("return sub.live") is False


def test_a_refresh_that_is_lost_with_its_connection_is_no_error(page, peer):
    """The next connection shows a fresh token anyway."""
    page.visit(ORIGIN)
    page.run("let n = 0; begin(it, { token: async () => `token-${++n}` })", peer.url)
    link = peer.accept()
    link.welcome(expires=0.1)
    link.request("refresh")
    link, hello = lose(peer, link)
    assert hello["token"] == "token-3"
    page.until("seen.filter(([name]) => name == 'open').length == 2")
    assert page.seen("error") == []


@pytest.mark.parametrize(("code", "final"), [("denied", True), ("too-many", False)])
def test_a_hello_that_is_refused(page, peer, code, final):
    page.visit(ORIGIN)
    page.run("begin(it, { token: 'wrong' })", peer.url)
    link = peer.accept()
    link.say(type="error", code=code, message=f"cannot: {code}", ref=link.request("hello")["ref"])
    if final:
        assert page.until("seen.find(([name]) => name == 'close')")[1]["error"]["kind"] == code
        assert peer.nobody_came()
    else:
        peer.accept().welcome()


def test_an_address_that_no_connection_can_be_made_to_ends_it(page):
    page.visit(ORIGIN)
    page.run("begin(it)", "ftp://127.0.0.1/ws?token=s3cret")
    why = page.until("seen.find(([name]) => name == 'close')")[1]["reason"]
    assert why.startswith("cannot connect to ftp://127.0.0.1/ws: ")
    assert page.run("return client.state.reason.indexOf('s3cret')") == -1
