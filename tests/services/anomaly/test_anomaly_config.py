"""The [anomaly] section: off by default, and what an adapter needs is there or refused by name."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from netd.services.anomaly.config import AdapterConfig, AnomalyConfig


def test_it_is_off_and_nobody_else_scores():
    config = AnomalyConfig()
    assert (config.enabled, config.adapter.use) == (False, "builtin")


@pytest.mark.parametrize(
    "adapter",
    [
        {"use": "command", "command": ["/usr/bin/scores", "--fast"]},
        {"use": "http", "url": "https://scores.example:8443/netd?x=1"},
        {"use": "http", "url": "http://[::1]:9100/"},
        {"use": "python", "target": "my.module:Class.method"},
        {"use": "python", "target": "my-entry-point"},
    ],
)
def test_what_an_adapter_may_be(adapter):
    assert AdapterConfig(**adapter).use == adapter["use"]


@pytest.mark.parametrize(
    ("adapter", "word"),
    [
        ({"use": "command"}, "without command"),
        ({"use": "http"}, "without url"),
        ({"use": "python"}, "without target"),
        ({"use": "command", "command": []}, "the program"),
        ({"use": "command", "command": [""]}, "the program"),
        ({"use": "command", "command": ["a\0b"]}, "the program"),
        ({"use": "http", "url": "ftp://x/"}, "ftp://x/"),
        ({"use": "http", "url": "http:///x"}, "http:///x"),
        ({"use": "http", "url": "http://x:99999/"}, "http://x:99999/"),
        ({"use": "http", "url": "http://[::1/"}, "http://"),
        ({"use": "http", "url": "http://x/\n"}, "http://x/"),
        ({"use": "http", "url": "http://user:secret@x/"}, "token"),
        ({"use": "python", "target": "os.system('x'):y"}, "module:function"),
        ({"use": "python", "target": ":y"}, "module:function"),
    ],
)
def test_what_it_may_not_be(adapter, word):
    with pytest.raises(ValidationError, match="cannot") as refused:
        AdapterConfig(**adapter)
    assert word in str(refused.value)


def test_a_password_in_a_url_is_not_repeated_and_a_token_is_not_shown():
    with pytest.raises(ValidationError) as refused:
        AdapterConfig(use="http", url="http://user:hunter2@x/")
    assert "hunter2" not in refused.value.errors()[0]["msg"]
    assert "hunter2" not in repr(AdapterConfig(use="http", url="http://x/", token="hunter2"))
