"""How messages and sizes look, to people and to programs."""

from __future__ import annotations

import pytest

from netd.cli.message_view import item_json, item_line, shown
from netd.cli.output import size
from netd.client.subscription import Gap
from netd.wire.messages import Direct, Error, Message
from tests.cli.conversation import lines_of


def test_data_on_a_line():
    assert shown("a\nb\x1b") == r"a\nb\x1b"
    assert shown(b"text") == "text"
    assert shown(b"\xff") == "0xff"
    assert shown({"a": [1, "é"]}) == '{"a": [1, "é"]}'
    assert shown("x" * 5000).endswith("x... (5000 characters)")
    assert shown(b"\xff" * 5000).endswith("ff... (5000 bytes)")
    assert shown({"bytes": b"\xff"}) == '{"bytes": "/w=="}'


def test_items_as_json_and_as_lines():
    assert item_json(Gap(b"\xff", "e", 3)) == {"event": "gap", "channel": r"\xff", "epoch": "e", "missed": 3}
    assert item_json(Direct("s-1", None)) == {"event": "direct", "from": "s-1", "data": None}
    assert item_json(Message(channel64=b"\xff", data64=b"\x00")) == {
        "event": "message",
        "channel": r"\xff",
        "data64": "AA==",
    }
    assert item_json({"plain": b"\xff"}) == {"event": "payload", "data": {"plain": "/w=="}}
    assert lines_of(item_line(Error(code="rate", message="cannot: slow\x1b"))) == [r"refused (rate): cannot: slow\x1b"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes(count, text):
    assert size(count) == text
