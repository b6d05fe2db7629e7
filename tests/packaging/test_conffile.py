"""The one conffile: it stays as it is, release for release, so that no upgrade ever has to ask about it."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

CONFFILE = Path(__file__).parents[2] / "config" / "netd.toml"


def test_the_conffile_is_the_one_of_every_release():
    """Where an administrator edited it, a changed one stops upgrades that nobody watches (dpkg cannot ask, and leaves
    the package half-configured): put what is new into the code's defaults and into netd.toml(5)."""
    digest = hashlib.sha256(CONFFILE.read_bytes()).hexdigest()
    assert digest == "ef4700b33a91073555af83465dbb771bb725be80d87e037b2d52291a27e2e9c4"


def test_it_sets_nothing():
    assert tomllib.loads(CONFFILE.read_text()) == {}
