"""What `netctl reload`, `config check` and `config diff` show of changes: lists by member, values cut to fit."""

from __future__ import annotations

import json

import pytest

from netd.cli.config_view import differences
from netd.daemon import _shown
from netd.runtime.diff import changes
from netd.settings import Settings


def framed(*listen: dict, **more) -> Settings:
    return Settings.embedded({"framed": {"listen": [{"mode": "echo", **entry} for entry in listen]}, **more})


def at(port: int, **more) -> dict:
    return {"address": f"127.0.0.1:{port}", **more}


def as_json(old: Settings, new: Settings) -> list[dict]:
    return [
        {"path": one.path, "running": one.running, "configured": one.configured, "effect": one.effect}
        for one in _shown(changes(old, new))
    ]


def said(old: Settings, new: Settings) -> list[str]:
    return [
        f"{one.key}: {one.said or f'{one.before} -> {one.after}'}, {one.effect}"
        for one in differences(as_json(old, new))
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([at(1)], [at(1), at(2)], ["framed.listen.1: added (127.0.0.1:2), replace"]),
        ([at(1), at(2)], [at(2)], ["framed.listen.0: removed (127.0.0.1:1), replace"]),
        (
            [at(1), at(2), at(3)],
            [at(3, codec="raw", idle=None), at(1)],
            [
                "framed.listen.1: removed (127.0.0.1:2), replace",
                'framed.listen.0: changed: codec "auto" -> "raw", replace',
            ],
        ),
        (  # one of two alike: whichever, one is gone
            [at(0), at(0)],
            [at(0)],
            ["framed.listen.1: removed (127.0.0.1:0), replace"],
        ),
        (
            [at(1)],
            [at(1), at(1, interface="lo")],
            ["framed.listen.1: added (127.0.0.1:1 on lo), replace"],
        ),
        (
            [at(1), at(2)],
            [at(1, tls={"certificate": "/c", "key": "/k"}, proxy_protocol=["10.0.0.0/8"])],
            [
                "framed.listen.1: removed (127.0.0.1:2), replace",
                'framed.listen.0: changed: tls (not set) -> {certificate = "/c", key = "/k"}, '
                'proxy_protocol [] -> ["10.0.0.0/8"], replace',
            ],
        ),
    ],
)
def test_a_list_of_sections_is_shown_member_by_member(old, new, expected):
    old, new = ([{k: v for k, v in one.items() if v is not None} for one in side] for side in (old, new))
    assert said(framed(*old), framed(*new)) == expected


def test_members_with_names_are_told_by_them():
    tokens = [{"name": name, "secret": f"the secret of {name}, long"} for name in ("a", "b", "c")]
    old, new = framed(at(1), hub={"token": tokens}), framed(at(1), hub={"token": [tokens[0] | {"direct": True}]})
    assert said(old, new) == [
        "hub.token.1: removed (b), live",
        "hub.token.2: removed (c), live",
        "hub.token.0: changed: direct false -> true, live",
    ]


def test_a_list_of_the_same_members_in_another_order_is_still_a_change():
    """None of its members says so."""
    change = {"path": "x.list", "running": [at(1), at(2)], "configured": [at(2), at(1)], "effect": "replace"}
    [one] = differences([change])
    assert (one.key, one.said) == ("x.list", "")
    assert one.before != one.after


@pytest.mark.parametrize("key", [0, 30, 59, 60, 61, 500])
def test_long_values_are_cut_to_where_they_differ(key):
    before = "a" * key + "b" + "c" * 5000
    after = "a" * key + "d" + "c" * 5000
    [one] = differences([{"path": "x.y", "running": before, "configured": after, "effect": "live"}])
    assert one.before != one.after
    assert "b" in one.before
    assert "d" in one.after
    assert max(len(one.before), len(one.after)) <= 60


def test_short_values_stay_whole():
    [one] = differences([{"path": "x.mode", "running": 0o660, "configured": None, "effect": "fixed"}])
    assert (one.before, one.after) == ("0o660", "(not set)")


def test_piped_a_reload_of_many_listeners_is_short_lines_and_whole_as_json(api, netctl):
    many = [at(9000 + number, channel="x" * 200, mode="channel") for number in range(60)]
    listed = as_json(framed(*many), framed(*many[2:], at(1, codec="raw"), log={"level": "debug"}))
    listed.append({"path": "control.users", "running": [], "configured": ["somebody"] * 500, "effect": "live"})
    change = {
        "id": "b-1",
        "kind": "reload",
        "target": None,
        "status": "done",
        "since": 1.0,
        "ended": 2.0,
        "error": None,
        "result": {"changes": listed, "services": []},
    }
    api.answer("POST", "/v1/reload", change, change)
    api.answer("POST", "/v1/config/check", {"ok": True, "problems": [], "changes": listed})
    api.answer("GET", "/v1/config/diff", {"changes": listed})

    reloaded = netctl("reload").stdout
    assert reloaded.startswith("reloaded: 5 changes running\n")
    for shown in (reloaded, netctl("config", "check").stdout, netctl("config", "diff").stdout):
        lines = shown.splitlines()
        assert max(map(len, lines)) < 160
        assert "framed.listen.0: removed (127.0.0.1:9000), new generation" in lines
        assert "framed.listen.58: added (127.0.0.1:1), new generation" in lines
    assert json.loads(netctl("reload", "--json").stdout) == change


def test_a_member_with_a_strangers_name_cannot_drive_the_terminal(api, netctl):
    listed = [{"path": "x", "running": [], "configured": [{"name": "\x1b[2J\n"}], "effect": "live"}]
    api.answer("GET", "/v1/config/diff", {"changes": listed})
    assert netctl("config", "diff").stdout == "x.0: added (\\x1b[2J\\n), at once\n"


@pytest.mark.parametrize("odd", [[1], [{}], [{"address": 5}], [{"name": None}, {"name": None}], [[]], {"a": {}}])
def test_any_shape_is_shown(odd):
    assert differences([{"path": "x", "running": odd, "configured": [{}, {}, {}], "effect": "other"}])
