"""A redis-server for each module, emptied for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.backplane.lab import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def redis(server: Redis) -> Redis:
    await server.ready()
    server.say("FLUSHALL")
    return server
