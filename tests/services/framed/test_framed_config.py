"""The [framed] section: safe by default, strict about what fits together, and clear about what a reload disturbs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from netd.section import Effect, effect_of, parse_address
from netd.services.framed.config import FramedConfig, FramedListen

REQUIRED = {"address": "127.0.0.1:1", "handshake": "required"}


def test_the_defaults_are_safe_and_those_of_the_wire() -> None:
    config = FramedConfig()
    (listen,) = config.listen
    assert parse_address(listen.address) == ("127.0.0.1", 9000)
    assert (listen.mode, listen.codec, listen.framing, listen.handshake) == ("operations", "auto", "length", "optional")
    assert (config.max_frame, config.backpressure, config.keepalive) == (4 << 20, 5 << 20, 30)
    assert (config.idle_timeout, config.rate, config.input_rate, config.slow_consumer) == (0, 0, 0, "disconnect")


def test_every_limit_is_live() -> None:
    effects = {key: effect_of(FramedConfig, key) for key in FramedConfig.model_fields}
    assert [key for key, effect in effects.items() if effect is not Effect.LIVE] == ["listen"]
    assert effect_of(FramedListen, "proxy_protocol") is Effect.LIVE
    assert {effect_of(FramedListen, key) for key in ("address", "mode", "codec", "keys")} == {Effect.REPLACE}


def test_every_field_says_what_it_is() -> None:
    fields = {**FramedConfig.model_fields, **FramedListen.model_fields}
    assert [key for key, field in fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("listen", "says"),
    [
        ({"mode": "worker", "codec": "json"}, "applications take text and bytes"),
        ({"mode": "operations", "codec": "cbor"}, "cannot use codec 'cbor' with mode 'operations'"),
        ({"framing": "none", "handshake": "none"}, "nothing says where a message ends"),
        ({"mode": "echo", "framing": "none"}, 'write handshake = "none"'),
        ({"mode": "channel"}, "without a channel"),
        ({"mode": "echo", "channel": "a"}, "write mode 'channel'"),
        ({"mode": "channel", "channel": "{tags.x}", "handshake": "none"}, "without a handshake"),
        ({"mode": "channel", "channel": "{tag.x}"}, r"\{tag.x\} is none of"),
        ({"mode": "channel", "channel": "{tags.}"}, "is none of"),
        ({"mode": "channel", "channel": "{name!r}"}, "is none of"),
        ({"mode": "channel", "channel": "{name"}, "cannot use channel"),
        ({"mode": "echo", "token": "app"}, "its clients do nothing with it"),
        ({"mode": "channel", "channel": "{tags.room}:x"}, r"in front of \{tags.room\}"),
        ({"mode": "channel", "channel": "room-{name}:{tags.x}"}, r"in front of \{name\}"),
        ({"mode": "channel", "channel": "{listener}"}, "ports:{listener}"),
        ({"mode": "channel", "channel": "{session}-{listener}"}, "ports:{listener}"),
        ({"mode": "channel", "channel": "a", "codec": "not a name"}, "cannot use codec"),
        ({"keys": ["k.pem"]}, 'write handshake = "required"'),
        ({"verifier": "app:check"}, 'write handshake = "required"'),
        ({**REQUIRED, "verifier": "app.check"}, 'write "module:function"'),
        ({"version": "1", "handshake": "none"}, "without a handshake"),
        ({"address": "unix:/run/x.sock", "interface": "lo"}, "it is a Unix socket"),
        ({"handshake_window": 0}, "greater than or equal to 1"),
        ({"proxy_protocol": ["10.0.0.1/8"]}, "10.0.0.0/8"),
        ({"modus": "echo"}, "extra"),
    ],
)
def test_listeners_that_cannot_work_are_refused(listen: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        FramedListen(**{"address": "127.0.0.1:1", **listen})


@pytest.mark.parametrize(
    "values",
    [
        {"listen": []},
        {"max_frame": 10},
        {"backpressure": 1},
        {"slow_consumer": "wait"},
        {"max_framed": 1},
        {"max_frame": 5 << 20},
        {"max_frame": 1 << 20, "backpressure": (1 << 20) + 65_535},
    ],
)
def test_limits_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FramedConfig(**values)


def test_a_frame_has_to_fit_into_what_may_wait() -> None:
    assert FramedConfig(max_frame=1 << 20, backpressure=(1 << 20) + 65_536)
    with pytest.raises(ValidationError, match=r"\(backpressure\).*\(max_frame\): write at least 1114112"):
        FramedConfig(max_frame=1 << 20, backpressure=1 << 20)


@pytest.mark.parametrize("codec", ["raw", "text", "json", "cbor", "messagepack", "my-codec", "my.package:CODEC"])
def test_codecs_are_named_or_referred_to(codec: str) -> None:
    assert FramedListen(address="127.0.0.1:1", mode="echo", codec=codec).codec == codec
