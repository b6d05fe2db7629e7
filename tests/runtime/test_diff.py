"""diff: every kind of field, and what a reload has to do about it."""

from __future__ import annotations

import pytest

from netd.runtime.diff import FieldChange, changes, strictest
from netd.section import Effect, Listen, Section, Tls, live, replace


class Leaf(Section):
    soft: int = live(1)
    hard: int = replace(1)
    silent: int = 1  # declared without saying how a reload treats it


class Root(Section):
    leaf: Leaf = Leaf()
    names: list[str] = live([])
    listen: list[Listen] = replace([])
    by_name: dict[str, Leaf] = live({})
    tls: Tls | None = replace(None)
    number: int | float = live(1)


def listen(*addresses: str, interface: str | None = None) -> list[Listen]:
    return [Listen(address=address, interface=interface) for address in addresses]


TLS = Tls(certificate="/a.pem", key="/a.key")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (Root(), Root(), []),
        (Root(), Root(leaf=Leaf(soft=2)), [("leaf.soft", Effect.LIVE)]),
        (Root(), Root(leaf=Leaf(soft=2, hard=2)), [("leaf.soft", Effect.LIVE), ("leaf.hard", Effect.REPLACE)]),
        (Root(), Root(leaf=Leaf(silent=2)), [("leaf.silent", Effect.FIXED)]),
        (Root(), Root(names=["a"]), [("names", Effect.LIVE)]),
        (Root(), Root(listen=listen("127.0.0.1:1")), [("listen", Effect.REPLACE)]),
        (
            Root(listen=listen("127.0.0.1:1", "127.0.0.1:2")),
            Root(listen=listen("127.0.0.1:1", "127.0.0.1:3")),
            [("listen.1.address", Effect.REPLACE)],
        ),
        (
            Root(listen=listen("127.0.0.1:1", "127.0.0.1:2")),
            Root(listen=listen("127.0.0.1:2", "127.0.0.1:1", interface="lo")),
            [
                ("listen.0.address", Effect.REPLACE),
                ("listen.0.interface", Effect.REPLACE),
                ("listen.1.address", Effect.REPLACE),
                ("listen.1.interface", Effect.REPLACE),
            ],
        ),
        (Root(tls=None), Root(tls=TLS), [("tls", Effect.REPLACE)]),
        (Root(tls=TLS), Root(tls=None), [("tls", Effect.REPLACE)]),
        (
            Root(tls=TLS),
            Root(tls=TLS.model_copy(update={"key": "/b.key"})),
            [("tls.key", Effect.REPLACE)],
        ),
        (
            Root(by_name={"a": Leaf(), "b": Leaf()}),
            Root(by_name={"a": Leaf(), "b": Leaf(hard=2)}),
            [("by_name.b.hard", Effect.REPLACE)],
        ),
        (Root(by_name={"a": Leaf()}), Root(by_name={"b": Leaf()}), [("by_name", Effect.LIVE)]),
        (Root(number=1), Root(number=2.0), [("number", Effect.LIVE)]),
    ],
)
def test_what_differs(old: Root, new: Root, expected: list[tuple[str, Effect]]) -> None:
    assert [(change.path, change.effect) for change in changes(old, new)] == expected


def test_a_change_carries_both_values_below_a_prefix() -> None:
    assert changes(Leaf(), Leaf(soft=3), "trace.") == [FieldChange("trace.soft", 1, 3, Effect.LIVE)]


def test_different_sections_are_not_compared() -> None:
    with pytest.raises(TypeError, match="cannot compare a Root with a Leaf"):
        changes(Root(), Leaf())


def test_the_strictest_decides() -> None:
    found = changes(Leaf(), Leaf(soft=2, hard=2))
    assert strictest(found) is Effect.REPLACE
    assert strictest(found[:1]) is Effect.LIVE
    assert strictest([]) is None
    assert strictest(changes(Leaf(), Leaf(soft=2, silent=2))) is Effect.FIXED
