"""The other end of a framed client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.framedpeer import FramedPeer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def peer() -> AsyncIterator[FramedPeer]:
    async with FramedPeer() as peer:
        yield peer
