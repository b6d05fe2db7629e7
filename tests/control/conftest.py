"""A control API over a pretended daemon, and clients of any account."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import trio

from netd.control.access import AccessPolicy
from netd.control.app import create_app
from netd.net.http import App, Peer
from tests.support.host import FakeHost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT, USER, NOBODY = 0, 1000, 65534


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


@pytest.fixture
async def control() -> AsyncGenerator[Control, None]:
    host = FakeHost()
    async with trio.open_nursery() as nursery:
        policy = AccessPolicy(lambda: host.control_config, own_uid=None)
        yield Control(host, create_app(host, nursery, policy=policy, boot="b007"))
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
