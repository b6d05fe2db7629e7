"""A control API over a pretended daemon, and clients of any account.

The application is built once for all tests, which takes longer than most of them. The daemon behind it, who
may do what, the table of changes and the nursery begin anew with each: routes keep nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from netd.control import app
from netd.control.access import AccessPolicy
from netd.control.app import create_app
from netd.control.changes import Changes
from netd.net.http import App, Peer
from tests.support.host import FakeHost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


ROOT, USER, NOBODY = 0, 1000, 65534
BOOT = "b007"


class Control:
    """The API under test. `client(uid)` is a client of that account; None is one without credentials."""

    def __init__(self, host: FakeHost, app: Any) -> None:
        self.host = host
        self.app = app

    def seen_by(self, uid: int | None) -> App:
        """The application as the front door serves it to a peer of this account."""
        peer = None if uid is None else Peer(pid=4321, uid=uid, gid=uid)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})["netd.peer"] = peer
            await self.app(scope, receive, send)

        return app

    def client(self, uid: int | None = ROOT) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.seen_by(uid), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://netd")


class Stage:
    """The application, and all behind it that keeps anything: the same objects in every test, as routes hold them."""

    def __init__(self) -> None:
        nobody: Any = None
        self.host = FakeHost()
        self.policy = self._policy()
        self.changes = Changes(nobody, boot=BOOT)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "Changes", lambda nursery, boot: self.changes)
            self.app = create_app(self.host, nobody, policy=self.policy, boot=BOOT)

    def set(self, nursery: trio.Nursery) -> Control:
        """All of it as new."""
        for kept, new in (
            (self.host, FakeHost()),
            (self.policy, self._policy()),
            (self.changes, Changes(nursery, boot=BOOT)),
        ):
            vars(kept).clear()
            vars(kept).update(vars(new))
        return Control(self.host, self.app)

    def _policy(self) -> AccessPolicy:
        return AccessPolicy(lambda: self.host.control_config, own_uid=None)


@pytest.fixture(scope="session")
def stage() -> Stage:
    return Stage()


@pytest.fixture
async def control(stage: Stage) -> AsyncGenerator[Control, None]:
    async with trio.open_nursery() as nursery:
        yield stage.set(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def host(control: Control) -> FakeHost:
    return control.host


@pytest.fixture
async def root(control: Control) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with control.client(ROOT) as client:
        yield client


@pytest.fixture
async def user(control: Control) -> AsyncGenerator[httpx.AsyncClient, None]:
    """An account of the group that may open the socket, and no more."""
    async with control.client(USER) as client:
        yield client
