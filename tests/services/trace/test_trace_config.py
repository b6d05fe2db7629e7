"""The [trace] section: safe by default, strict about what it takes, and clear about what a reload disturbs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from netd.section import Effect, effect_of, parse_address
from netd.services.trace.config import TraceConfig, TraceListen


def test_the_defaults_are_safe() -> None:
    config = TraceConfig()
    assert [parse_address(listen.address) for listen in config.listen] == [("127.0.0.1", 8080)]
    assert (config.max_hops, config.per_ttl_timeout_ms, config.rounds, config.attempts) == (30, 1200, 1, 3)
    assert (config.names, config.asn, config.reveal_private, config.origins) == (False, None, False, [])


def test_only_what_is_bound_or_opened_takes_a_new_generation() -> None:
    effects = {key: effect_of(TraceConfig, key) for key in TraceConfig.model_fields}
    assert {key for key, effect in effects.items() if effect is not Effect.LIVE} == {"listen", "asn"}
    assert Effect.FIXED not in effects.values()


def test_every_field_says_what_it_is() -> None:
    fields = {**TraceConfig.model_fields, **TraceListen.model_fields}
    assert [key for key, field in fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"listen": [{"address": "unix:/run/x.sock"}]}, "no route behind a Unix socket"),
        ({"listen": []}, "at least 1"),
        ({"listen": [{"address": "127.0.0.1:1", "path": "trace"}]}, "pattern"),
        ({"max_hops": 33}, "32"),
        ({"client_interval": 4.9}, "greater than or equal to 5"),
        ({"origins": ["https://app.example/"]}, "nothing after it"),
        ({"origins": ["app.example"]}, "cannot allow the origin"),
        ({"report": "nobody"}, "client"),
        ({"history": {"max_rows": 0}}, "greater than or equal to 1"),
        ({"max_hop": 3}, "extra"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TraceConfig(**values)


@pytest.mark.parametrize("origin", ["https://app.example", "http://[2001:db8::1]:8080", "HTTP://Localhost:3000", "*"])
def test_origins_are_kept_in_lower_case(origin: str) -> None:
    assert TraceConfig(origins=[origin]).origins == [origin.lower()]
