"""[control] and [metrics]: what they accept, and how a reload treats it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from netd.control.config import ControlConfig, MetricsConfig
from netd.net.http_limits import HttpLimits
from netd.section import Effect, effect_of


def test_defaults_are_safe():
    control, metrics = ControlConfig(), MetricsConfig()
    assert (str(control.socket), control.group, control.mode) == ("/run/netd/control.sock", "netd", 0o660)
    assert (control.users, control.content_users, metrics.listen) == ([], [], [])


@pytest.mark.parametrize(
    "values",
    [
        {"socket": "relative.sock"},
        {"socket": "/" + "x" * 90},
        {"mode": 0o1777},
        {"mode": -1},
        {"users": [""]},
        {"users": ["two words"]},
        {"users": ["-x"]},
        {"group": "a:b"},
        {"usres": []},
        {"limits": {"max_connections": 0}},
        {"limits": {"idle_timeout": float("inf")}},
        {"limits": {"write_timeout": float("nan")}},
        {"limits": {"max_heads": 1}},
    ],
)
def test_refuses(values):
    with pytest.raises(ValidationError):
        ControlConfig(**values)


def test_metrics_refuse_tls_rather_than_ignore_it():
    listen = {"address": "127.0.0.1:9100", "tls": {"certificate": "/c.pem", "key": "/k.pem"}}
    with pytest.raises(ValidationError, match="cannot serve metrics with TLS"):
        MetricsConfig(listen=[listen])


def test_where_it_listens_is_fixed_and_who_may_do_what_is_live():
    effects = {key: effect_of(ControlConfig, key) for key in ControlConfig.model_fields}
    assert {key for key, effect in effects.items() if effect is Effect.FIXED} == {"socket", "group", "mode"}
    assert {key for key, effect in effects.items() if effect is Effect.LIVE} == {"users", "content_users", "limits"}
    assert effect_of(MetricsConfig, "listen") is Effect.REPLACE
    assert {effect_of(HttpLimits, key) for key in HttpLimits.model_fields} == {Effect.LIVE}
