"""A certificate for the tests of this room."""

from __future__ import annotations

from tests.services.framed.conftest import tls

__all__ = ["tls"]
