"""Debian's Chromium without a window, driven by Playwright's synchronous interface: these tests are plain functions.

One browser for all of them, and one page, as a new one takes longer than most tests; whoever does to it what cannot be
undone (another clock, functions of ours) leaves the next test a new one. A page of ours is served by nobody: its
requests are answered here, at an address that the test chooses, so that it has the origin that it should have.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import netd.client
from tests.browser.peer import PATIENCE, Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page, Route

CLIENT = Path(netd.client.__file__).parent / "browser" / "netd.js"
CHROMIUM = shutil.which("chromium")
BLANK = "<!doctype html><title>netd</title>"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # a page that nobody served has no address, and may not talk to one on loopback unless this is off
            args=["--no-sandbox", "--disable-background-networking", "--disable-features=LocalNetworkAccessChecks"],
        )
        yield browser
        browser.close()


class Blank:
    """A page at any origin, without a server, and the events of the clients in it.

    page.visit("http://127.0.0.1:3000")     # a blank page there; /netd.js is the module, unless `served`
    page.run("...")                          # an async function's body, with `connect` and `NetdError`
    page.until("seen.length == 2")           # until an expression holds; its value
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.worn = False
        """Nobody else can use it."""
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", self._failed)

    def _failed(self, error: Exception) -> None:
        self.errors.append(str(error))

    def leave(self) -> None:
        """As if nobody had been here."""
        self.page.goto("about:blank")
        self.page.remove_listener("pageerror", self._failed)
        self.page.unroute_all()

    def offer(self, name: str, function: Callable[..., Any]) -> None:
        """Let the page call a function of ours."""
        self.worn = True
        self.page.expose_function(name, function)

    def visit(self, origin: str, *, served: bool = False) -> None:
        self.page.route(f"{origin}/blank", lambda route: route.fulfill(body=BLANK, content_type="text/html"))
        if not served:
            self.page.route(f"{origin}/netd.js", _module)
        self.page.goto(f"{origin}/blank")
        self.run("Object.assign(globalThis, await import('/netd.js'), { seen: [] })")
        self.run(_WATCH)

    def later(self, seconds: float) -> None:
        """All that a page does in so many seconds, at once. From the first call on, for tests that begin with 0."""
        if seconds:
            self.page.clock.run_for(round(seconds * 1000))
        else:
            self.worn = True
            self.page.clock.install()

    def run(self, body: str, argument: Any = None) -> Any:
        return self.page.evaluate(_RUN % (body, PATIENCE * 1000), argument)  # which would wait for ever

    def until(self, expression: str, argument: Any = None) -> Any:
        return self.page.wait_for_function(f"(it) => {expression}", arg=argument).json_value()

    def seen(self, *names: str) -> list[Any]:
        """The events of these names so far."""
        return [event for name, event in self.run("return seen") if name in names]


_RUN = """(it) => {
  let timer;
  const done = (async (it) => { %s })(it);
  const late = new Promise((_, failed) => { timer = setTimeout(() => failed(Error("it does not end")), %d) });
  return Promise.race([done, late]).finally(() => clearTimeout(timer));
}"""


def _module(route: Route) -> None:
    route.fulfill(body=CLIENT.read_text(), content_type="text/javascript")


_WATCH = """
globalThis.begin = (url, options = {}) => {
  const reconnect = { first: 0.01, longest: 0.02, jitter: 0, steady: 0 };
  globalThis.client = connect(url, { reconnect, ...options });
  for (const name of ["open", "close", "state", "message", "gap", "direct", "broadcast", "joined", "left", "text",
                      "binary", "error"]) {
    client.on(name, (event) => seen.push([name, plain(event)]));
  }
};
globalThis.plain = (value) => {
  if (value instanceof Error) {
    return { kind: value.kind, message: value.message, ...(value.channel && { channel: plain(value.channel) }) };
  }
  if (value instanceof Uint8Array) return { bytes: [...value] };
  if (value === undefined || value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return value.map(plain);
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, plain(each)]));
};
globalThis.outcome = (promise) =>
  promise.then((value) => ({ value: plain(value) }), (error) => ({ error: plain(error) }));
"""


@pytest.fixture(scope="session")
def tabs(browser: Browser) -> list[Page]:
    """The page that is free, if there is one."""
    return []


@pytest.fixture
def page(browser: Browser, tabs: list[Page]) -> Iterator[Blank]:
    # nobody knows who signed a test's certificate
    blank = Blank(tabs.pop() if tabs else browser.new_context(ignore_https_errors=True).new_page())
    yield blank
    if blank.worn or blank.errors:
        blank.page.context.close()
    else:
        blank.leave()
        tabs.append(blank.page)
    assert blank.errors == []


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer
