"""`netctl anomaly`: the scores of sessions as people and programs read them."""

from __future__ import annotations

import json

from tests.cli.conversation import words
from tests.cli.test_cli_sessions import ALICE, page

ODD = {
    "session": ALICE["id"],
    "name": "met\x1ber",
    "transport": "framed",
    "anomaly": 0.9712,
    "coherence": 0.61,
    "entropy": 0.4,
    "z": 20.1,
    "figure": "bytes_in_s",
    "samples": 32,
    "source": "builtin",
}
CALM = ODD | {"session": "b" * 36, "name": None, "anomaly": 0.0, "figure": "", "source": "command"}
STATUS = {
    "running": True,
    "use": "command",
    "scoring": "command",
    "adapter_error": None,
    "interval": 5.0,
    "threshold": 0.9,
    "window": 32,
    "tracked": 12,
    "untracked": 3,
    "learning": 2,
    "over": 1,
    "samples": 40,
    "sample_ms": 0.7,
    "sessions": [ODD, CALM],
}


def test_the_most_unusual_are_shown_and_marked(api, netctl):
    api.answer("GET", "/v1/anomaly", STATUS)
    said = words(netctl("anomaly", "-n", "7").stdout)
    assert said == [
        "12 sessions watched, 2 learning, 3 too many to watch, 1 past 0.9; every 5 s, scored by command",
        "",
        "ID ANOMALY BY COHERENCE ENTROPY NAME TRANSPORT SAMPLES",
        rf"{ALICE['id']} ! 0.97 bytes_in_s 0.61 0.40 met\x1ber framed 32",
        f"{'b' * 36} 0.00 command 0.61 0.40 framed 32",
    ]
    assert api.requests[-1].query == [("limit", "7")]


def test_it_fits_the_terminal(api, netctl):
    api.answer("GET", "/v1/anomaly", STATUS)
    said = netctl("anomaly", COLUMNS="80").stdout
    assert max(map(len, said.splitlines())) <= 80
    assert ALICE["id"] in said
    assert "bytes_in_s" in said


def test_a_failing_adapter_is_told(api, netctl):
    failing = STATUS | {"scoring": "builtin", "adapter_error": "cannot ask it: it ended", "sessions": [], "over": 0}
    api.answer("GET", "/v1/anomaly", failing)
    said = netctl("anomaly").stdout
    assert "scored by builtin" in said
    assert "✗ command: cannot ask it: it ended" in said


def test_a_stopped_service_says_how_to_start_it(api, netctl):
    stopped = dict.fromkeys(STATUS) | {"running": False, "sessions": []}
    api.answer("GET", "/v1/anomaly", stopped)
    assert netctl("anomaly").stdout == "the anomaly service is not running (anomaly.enabled)\n"
    assert json.loads(netctl("anomaly", "--json").stdout) == stopped


def test_one_session(api, netctl):
    api.answer("GET", "/v1/sessions", page(ALICE)).answer("GET", f"/v1/anomaly/{ALICE['id']}", ODD)
    assert words(netctl("anomaly", "3f0c").stdout)[1].startswith(f"{ALICE['id']} 0.97 bytes_in_s")
    assert json.loads(netctl("anomaly", "name:alice", "--json").stdout) == ODD
