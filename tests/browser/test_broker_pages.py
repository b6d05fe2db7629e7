"""A page and a broker: what is published anywhere shows in it, over the WebSocket and as an event stream.

The broker runs in a thread of this process; its pages are blank ones at its own address, which import /netd.js from it.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jwt
import pytest

from netd.hub.config import HubConfig
from tests.browser.peer import PATIENCE
from tests.services.broker.raw import broker
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAMED = {"listen": [{"address": "127.0.0.1:0", "mode": "operations"}]}
STRANGER = "http://stranger.test"
SECRET = "a secret of thirty-two bytes, or more"
NETCTL = [sys.executable, "-c", "from netd.cli.main import main; main()"]


def netctl(*words: str) -> None:
    done = subprocess.run([*NETCTL, *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr


def eventually(condition, page) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        page.run("")  # what the page calls of ours is called while we wait for it


@pytest.fixture
def redis(tmp_path) -> Iterator[str]:
    """A Redis server on a Unix socket, as a url."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not on this machine")
    path = tmp_path / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"unix:{path}"
    finally:
        process.terminate()
        process.wait()


class Curl:
    """An event stream as curl shows it."""

    def __init__(self, url: str, *headers: str) -> None:
        given = [word for header in headers for word in ("-H", header)]
        command = ["curl", "-sSN", "--max-time", str(PATIENCE), *given, url]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def event(self) -> tuple[str, str, dict]:
        """The next one: its id, its name, its data."""
        fields = {"id": "", "event": "message", "data": ""}
        assert self.process.stdout is not None
        for line in self.process.stdout:
            name, _, value = line.rstrip("\n").partition(": ")
            if not line.strip() and fields["data"]:
                return fields["id"], fields["event"], json.loads(fields["data"])
            fields[name] = value
        raise AssertionError("the stream ended")

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def streaming(url: str, *headers: str) -> Iterator[Curl]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not on this machine")
    curl = Curl(url, *headers)
    try:
        yield curl
    finally:
        curl.close()


def hub_of(**more) -> dict:
    from tests.services.broker.raw import OPEN

    return OPEN | more


@contextmanager
def houses(which: str, request) -> Iterator[tuple]:
    """The daemon that is published to over framed TCP, and the one that the page is of."""
    if which == "one daemon":
        with broker(framed=FRAMED) as house:
            yield house, house
    else:
        url = request.getfixturevalue("redis")
        shared = {"framed": FRAMED, "hub": hub_of(backplane="redis"), "backplane": {"url": url}}
        with broker(**shared) as one, broker(**shared) as other:
            yield one, other


@pytest.mark.parametrize("which", ["one daemon", "two daemons over Redis"])
def test_what_netctl_sends_over_framed_tcp_shows_in_a_page_and_in_event_streams(page, request, which):
    with houses(which, request) as (one, other):
        origin = f"http://{other.address}"
        with streaming(f"{origin}/channels/public:news/events") as curl:
            assert curl.event()[1] == "subscribed"
            page.visit(origin, served=True)
            page.run(
                """begin('/ws');
                const sub = client.subscribe('public:news', (message) => seen.push(['socket', message.data]));
                const events = new EventSource('/channels/public:news/events');
                events.addEventListener('message', (event) => seen.push(['stream', JSON.parse(event.data).data]));
                await Promise.all([sub.ready, new Promise((done) => events.addEventListener('subscribed', done))]);"""
            )
            framed = one.do(one.daemon.addresses, "framed")[0]
            netctl("framed", "send", framed, "--channel", "public:news", "hello, page")
            page.until("seen.filter(([name]) => name == 'socket' || name == 'stream').length == 2")
            assert page.seen("socket") == page.seen("stream") == ["hello, page"]
            place, name, data = curl.event()
            assert (name, data["data"], data["channel"]) == ("message", "hello, page", "public:news")
            assert place == f"{data['epoch']}:{data['offset']}"
        page.run("await client.close()")


def test_an_event_stream_goes_on_from_the_last_event(page):
    with broker() as house:
        origin = f"http://{house.address}"
        page.visit(origin, served=True)
        page.run("begin('/ws'); for (const n of [1, 2, 3]) await client.publish('public:a', n)")
        with streaming(f"{origin}/channels/public:a/events") as curl:
            place, _, told = curl.event()
            assert told["offset"] == 3
        first = f"{told['epoch']}:1"
        for how in (
            [f"{origin}/channels/public:a/events", f"Last-Event-ID: {first}"],
            [f"{origin}/channels/public:a/events?last_event_id={first}"],
        ):
            with streaming(*how) as curl:
                assert curl.event()[2]["recovered"] is True
                assert [curl.event()[2]["data"] for _ in range(2)] == [2, 3]
        assert place


def test_a_page_has_every_message_over_a_stop_of_the_broker(page):
    """With its session and subscription as before, what was said meanwhile, and no gap."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with broker({"listen": [{"address": address}]}) as house:
        hub = house.daemon.hub
        page.visit(f"http://{address}", served=True)
        page.run(
            """begin('/ws');
            await client.subscribe('public:a', (message) => seen.push(['got', message.data])).ready;
            globalThis.id = client.session"""
        )
        house.do(hub.publish, b"public:a", 1)
        page.until("seen.some(([name]) => name == 'got')")
        house.do(house.daemon.service_stop, "broker")
        page.until("client.state.name != 'connected'")
        for number in (2, 3, 4):
            house.do(hub.publish, b"public:a", number)
        house.do(house.daemon.service_start, "broker")
        page.until("seen.filter(([name]) => name == 'open').length == 2")
        house.do(hub.publish, b"public:a", 5)
        page.until("seen.some(([name, data]) => name == 'got' && data == 5)")
        assert page.seen("got") == [1, 2, 3, 4, 5]
        assert page.seen("gap") == []
        assert page.seen("open")[1]["resumed"] is True
        assert page.run("return client.session == id")


ROOM = {
    "namespace": [{"name": "room", "subscribe": "token", "publish": "token", "history": "token"}],
    "key": [{"name": "hs", "algorithm": "HS256", "secret": SECRET}],
}


def test_a_page_shows_a_fresh_token_before_the_one_it_has_expires(page):
    issued = []

    def issue() -> str:
        issued.append(time.time() + 600 * (len(issued) + 1))
        allowed = {"subscribe": ["room:*"], "publish": ["room:*"]}
        return jwt.encode({"sub": "anna", "exp": issued[-1], "netd": allowed}, SECRET, "HS256")

    with broker(hub=ROOM) as house:
        page.later(0)
        page.offer("issue", issue)
        page.visit(f"http://{house.address}", served=True)
        page.run(
            """begin('/ws', { token: issue });
            await client.subscribe('room:a', (message) => seen.push(['got', message.data])).ready;"""
        )
        [session] = house.daemon.hub.present()
        page.page.clock.fast_forward(560_000)
        eventually(lambda: len(issued) == 2, page)
        eventually(lambda: session.grants.expires > issued[0] + 60, page)  # the daemon has it
        page.run("await client.publish('room:a', 'still allowed')")
        page.until("seen.some(([name]) => name == 'got')")
        assert (session.name, len(issued), page.seen("error")) == ("anna", 2, [])
        house.do(house.daemon.hub.kick, session.id)
        assert page.until("seen.find(([name]) => name == 'close')")[1]["error"]["kind"] == "kicked"


def test_a_page_whose_key_is_removed_by_a_reload_shows_another_token_and_goes_on(page):
    secrets = [SECRET]

    def issue() -> str:
        claims = {"sub": "anna", "exp": time.time() + 600, "netd": {"subscribe": ["room:*"], "publish": ["room:*"]}}
        return jwt.encode(claims, secrets[-1], "HS256")

    with broker(hub=ROOM) as house:
        page.offer("issue", issue)
        page.visit(f"http://{house.address}", served=True)
        page.run(
            """begin('/ws', { token: issue });
            await client.subscribe('room:a', (message) => seen.push(['got', message.data])).ready;"""
        )
        secrets.append(SECRET[::-1])
        rotated = ROOM | {"key": [{"name": "hs", "algorithm": "HS256", "secret": secrets[-1]}]}
        house.do(house.daemon.hub.reconfigure, HubConfig.model_validate(rotated))
        house.do(house.daemon.hub.publish, b"room:a", "to nobody")
        page.until("client.session && seen.some(([name]) => name == 'error')")
        [session] = house.daemon.hub.present()
        eventually(lambda: session.channels, page)
        house.do(house.daemon.hub.publish, b"room:a", "to her")
        page.until("seen.some(([name, data]) => name == 'got' && data == 'to her')")
        assert [error["message"].split(":")[0] for error in page.seen("error")] == ["cannot go on with the token 'hs"]
        assert len(page.seen("open")) == 1
        # it cannot have what it missed while it had no token: no history is kept here, and it is told
        assert (page.seen("got"), len(page.seen("gap"))) == (["to her"], 1)


def test_a_page_without_its_token_is_told_which_rule_refuses(page):
    with broker(hub=ROOM) as house:
        page.visit(f"http://{house.address}", served=True)
        page.run("begin('/ws', { token: 'no token of anybody' })")
        error = page.until("seen.find(([name]) => name == 'close')")[1]["error"]
        assert error["kind"] == "denied"
        page.run("seen.length = 0; begin('/ws')")
        refused = page.run("return outcome(client.subscribe('room:a', () => {}).ready)")["error"]
        assert refused["kind"] == "denied"
        assert "hub.namespace.0.subscribe" in refused["message"]


README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```html\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_pages_of_the_readme_do_what_they_say(page, example):
    """A click or a key in them is heard by everybody who has opened them."""
    with broker() as house:
        origin = f"http://{house.address}"
        page.visit(origin, served=True)
        page.page.route(f"{origin}/example", lambda route: route.fulfill(body=example, content_type="text/html"))
        page.page.goto(f"{origin}/example")
        eventually(lambda: house.daemon.hub.present() and house.daemon.hub.heard, page)
        page.until("typeof socket === 'undefined' || socket.readyState === WebSocket.OPEN")  # it hears of it later
        page.page.mouse.click(5, 5)
        page.page.keyboard.press("x")
        page.until("document.body.innerText.trim() != ''")


# --- origins ----------------------------------------------------------------------------------------------------------


def tried(page, house) -> dict:
    """What a page of this origin may do."""
    return page.run(
        """const url = `ws://${it}/ws`;
        const socket = await new Promise((done) => {
          const socket = new WebSocket(url, ['netd.json']);
          socket.onopen = () => { done(true); socket.close() };
          socket.onerror = () => done(false);
        });
        const post = await fetch(`http://${it}/channels/public:a`, {
          method: 'POST', body: JSON.stringify({ n: 1 }),
          headers: { 'content-type': 'application/json', authorization: 'Bearer none' },
        }).then((answer) => answer.status, () => 'failed');
        const plain = await fetch(`http://${it}/channels/public:a`, { method: 'POST', body: 'text' })
          .then((answer) => answer.status, () => 'failed');
        const stream = await new Promise((done) => {
          const events = new EventSource(`http://${it}/channels/public:a/events`);
          events.addEventListener('subscribed', () => { done(true); events.close() });
          events.onerror = () => { done(false); events.close() };
        });
        return { socket, post, plain, stream }""",
        house.address,
    )


def test_a_page_of_another_origin_is_refused_unless_it_is_allowed(page):
    with broker() as house:
        page.visit(STRANGER)
        assert tried(page, house) == {"socket": False, "post": "failed", "plain": "failed", "stream": False}
        page.visit(f"http://{house.address}", served=True)
        history = page.run("begin('/ws'); return (await client.history('public:a')).messages")
        assert history == []  # what could not be read was not done either
        page.run("await client.close()")


def test_a_page_of_an_origin_in_the_list_is_welcome(page):
    with broker({"origins": [STRANGER]}) as house:
        page.visit(STRANGER)
        # the token is not one: the page may read that too
        assert tried(page, house) == {"socket": True, "post": 401, "plain": 201, "stream": True}


def test_a_page_over_tls(page, tmp_path):
    (tmp_path / "cert").write_text(FIRST_CERTIFICATE)
    (tmp_path / "key").write_text(FIRST_KEY)
    tls = {"certificate": str(tmp_path / "cert"), "key": str(tmp_path / "key")}
    with broker({"listen": [{"address": "127.0.0.1:0", "tls": tls}]}) as house:
        page.visit(f"https://{house.address}", served=True)
        page.run(
            """begin('/ws');
            await client.subscribe('public:a', (message) => seen.push(['got', message.data])).ready;
            await fetch('/channels/public:a', { method: 'POST', body: 'x'.repeat(50_000) });"""
        )
        page.until("seen.some(([name]) => name == 'got')")
        assert page.seen("got") == ["x" * 50_000]
        [session] = house.daemon.hub.present()
        assert session.link.tls
        page.run("await client.close()")


def test_the_module_is_served_with_its_types(page):
    with broker() as house:
        status, text = house.get(f"GET /netd.js HTTP/1.1\r\nHost: {house.address}\r\n\r\n")
        assert status == 200
        assert "content-type: text/javascript" in text.lower()
        status, text = house.get(f"GET /netd.d.ts HTTP/1.1\r\nHost: {house.address}\r\n\r\n")
        assert (status, "export interface Client" in text) == (200, True)
    with broker({"client": False}) as house:
        assert house.get(f"GET /netd.js HTTP/1.1\r\nHost: {house.address}\r\n\r\n")[0] != 200


# --- elsewhere than in a page -----------------------------------------------------------------------------------------

_SCRIPT = """
const { connect } = await import(%s);
const client = connect(%s, { name: "elsewhere" });
const sub = client.subscribe("public:a");
await sub.ready;
await client.publish("public:a", new Uint8Array([1, 2, 255]));
for await (const message of sub) {
  %s([...message.data].join());
  break;
}
await client.close();
"""


def test_in_a_worker(page):
    with broker() as house:
        page.visit(f"http://{house.address}", served=True)
        url = json.dumps(f"http://{house.address}/netd.js")
        script = _SCRIPT % (url, json.dumps(f"ws://{house.address}/ws"), "postMessage")
        said = page.run(
            """const url = URL.createObjectURL(new Blob([it], { type: 'text/javascript' }));
            const worker = new Worker(url, { type: 'module' });
            return new Promise((done, failed) => {
              worker.onmessage = (event) => done(event.data);
              worker.onerror = failed;
            })""",
            script,
        )
        assert said == "1,2,255"


def test_in_node(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not on this machine")
    from tests.browser.conftest import CLIENT

    probe = "process.exit(typeof WebSocket === 'undefined' ? 1 : 0)"
    bare = subprocess.run([node, "-e", probe], check=False).returncode != 0
    flags = ["--experimental-websocket"] if bare else []
    if bare and subprocess.run([node, *flags, "-e", probe], capture_output=True, check=False).returncode != 0:
        pytest.skip("this node has no WebSocket")
    with broker() as house:
        script = tmp_path / "script.mjs"
        module = json.dumps(CLIENT.as_uri())
        script.write_text(_SCRIPT % (module, json.dumps(f"http://{house.address}/ws"), "console.log"))
        command = [node, "--no-warnings", *flags, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.stdout, done.stderr) == ("1,2,255\n", "")
