"""The [hub] section: what is refused, and that everything takes effect at once."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from netd.hub.config import HubConfig, Key, Namespace, Permitted, Token
from netd.runtime.diff import changes, strictest
from netd.section import Effect

SECRET = "0123456789abcdef"


def test_the_defaults_allow_clients_nothing_but_the_application():
    config = HubConfig()
    assert config.namespace == []
    assert config.token == []
    assert (config.direct, config.broadcast, config.clients, config.application) == (*["token"] * 3, "anyone")


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"namespace": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "'a' twice (entries 0 and 2)"),
        ({"token": [{"name": "t", "secret": SECRET}, {"name": "t", "file": "/x"}]}, "'t' twice"),
        ({"namespace": [{"name": "a:b"}]}, "pattern"),
        ({"namespace": [{"name": "a b"}]}, "pattern"),
        ({"namespace": [{"name": "a", "max_patterns": 0}]}, "greater than or equal to 1"),
        ({"namespace": [{"name": "a", "subscribe": "some"}]}, "anyone"),
        ({"token": [{"name": "t"}]}, "either a secret or a file"),
        ({"token": [{"name": "t", "secret": SECRET, "file": "/x"}]}, "either a secret or a file"),
        ({"token": [{"name": "t", "secret": "short"}]}, "shorter than 16"),
        ({"token": [{"name": "t", "secret": SECRET, "publish": ["a*b"]}]}, "may only stand at its end"),
        ({"token": [{"name": "t", "secret": SECRET, "publish": [""]}]}, "1 to 255 bytes"),
        ({"token": [{"name": "t", "secret": SECRET, "publish": ["é" * 128 + "*"]}]}, "1 to 255 bytes"),
        ({"token": [{"name": "t", "secret": SECRET, "tags": {"a=b": "c"}}]}, 'no "=" in its key'),
        ({"namespace": [{"name": "a", "recover": "some"}]}, "anyone"),
        ({"outbox": {"bound": 65536}}, "Extra inputs"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(section: dict, why: str):
    with pytest.raises(ValidationError) as caught:
        HubConfig.model_validate(section)
    assert why in str(caught.value)


def test_a_secret_is_never_shown():
    token = Token(name="t", secret=SECRET)
    assert SECRET not in repr(token) + str(token.model_dump()) + token.model_dump_json()
    with pytest.raises(ValidationError) as caught:
        HubConfig.model_validate({"token": [{"name": "t", "secret": "too-short"}]})
    assert all("too-short" not in error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize(("entry", "first"), [(Token, ["name", "secret"]), (Key, ["name", "algorithm", "secret"])])
def test_in_the_manual_what_a_token_permits_comes_last(entry: type[Permitted], first: list[str]):
    fields, permitted = list(entry.model_fields), list(Permitted.model_fields)
    assert fields[: len(first)] == first
    assert fields[-len(permitted) :] == permitted


def test_any_change_is_live():
    old = HubConfig(namespace=[Namespace(name="a")], token=[Token(name="t", secret=SECRET)])
    new = HubConfig(
        namespace=[Namespace(name="b", history_size=4), Namespace(name="")],
        token=[Token(name="t", secret=SECRET + "x", subscribe=["*"])],
        direct="anyone",
        max_sessions=3,
    )
    assert strictest(changes(old, new)) is Effect.LIVE
