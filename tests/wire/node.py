"""handshake_peer.js: JavaScript's own answers. One process of node for all the questions of a test."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node, the other implementation, is not on this machine")
_SCRIPT = Path(__file__).with_name("handshake_peer.js")


def ask(questions: list[dict[str, Any]]) -> list[Any]:
    assert NODE is not None
    done = subprocess.run(
        [NODE, str(_SCRIPT)], input=json.dumps(questions).encode(), capture_output=True, check=True, timeout=60
    )
    return json.loads(done.stdout)
