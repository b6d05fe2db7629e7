"""A certificate for the tests of this room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from netd.section import Tls
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    """For 127.0.0.1; `lab.trusting(FIRST_CERTIFICATE)` is its client's side."""
    files = Tls(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    files.certificate.write_text(FIRST_CERTIFICATE)
    files.key.write_text(FIRST_KEY)
    return files
