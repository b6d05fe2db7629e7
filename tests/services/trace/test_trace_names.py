"""Reverse DNS that nobody waits for, and autonomous systems from a file."""

from __future__ import annotations

import builtins
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from netd.errors import PrepareFailed
from netd.services.trace import names as names_module
from netd.services.trace.names import KEEP_FAILURE, KEEP_NAME, WORKERS, Names, open_systems
from tests.services.trace.lab import PATIENCE, eventually
from tests.support.mmdb import mmdb


class Resolver:
    """Answers from a table; `gate` holds it back."""

    def __init__(self, table: dict[str, str | None]) -> None:
        self.table = table
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_once = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, addr: str) -> str | None:
        with self._lock:
            self.asked.append(addr)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.gate.wait(PATIENCE)
        with self._lock:
            self.at_once -= 1
        return self.table.get(addr)


class Told:
    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self._event = trio.Event()

    def __call__(self, addr: str, name: str) -> None:
        self.names.append((addr, name))
        self._event.set()

    async def once(self) -> None:
        with trio.fail_after(PATIENCE):
            await self._event.wait()


async def test_a_name_comes_later_and_is_known_from_then_on(nursery: trio.Nursery) -> None:
    resolver, told = Resolver({"192.0.2.1": "r1.example"}), Told()
    names = Names(resolver)
    nursery.start_soon(names.run)
    assert names.ask("192.0.2.1", trio.current_time(), told) is None
    await told.once()
    assert told.names == [("192.0.2.1", "r1.example")]
    assert names.ask("192.0.2.1", trio.current_time(), told) == "r1.example"
    assert names.known("192.0.2.1", trio.current_time()) == "r1.example"
    assert names.known("192.0.2.1", trio.current_time() + KEEP_NAME + 1) is None
    assert resolver.asked == ["192.0.2.1"]


async def test_many_who_ask_for_one_address_cost_one_look_up(nursery: trio.Nursery) -> None:
    resolver, everyone = Resolver({"192.0.2.1": "r1.example"}), [Told() for _ in range(10)]
    resolver.gate.clear()
    names = Names(resolver)
    nursery.start_soon(names.run)
    for told in everyone:
        assert names.ask("192.0.2.1", trio.current_time(), told) is None
    resolver.gate.set()
    for told in everyone:
        await told.once()
    assert resolver.asked == ["192.0.2.1"]


@pytest.mark.parametrize(
    "name",
    [
        None,
        "192.0.2.1",
        "",
        "a b",
        "x\x1b[31m",
        "<script>",
        "-",
        "a..b",
        "a" * 300,
        "r1.example\n",
        "caf\u00e9.example",
    ],
)
async def test_what_is_no_host_name_is_dropped_and_not_asked_again_soon(
    nursery: trio.Nursery, name: str | None
) -> None:
    resolver, told, other = Resolver({"192.0.2.1": name, "192.0.2.2": "r2.example"}), Told(), Told()
    names = Names(resolver)
    nursery.start_soon(names.run)
    names.ask("192.0.2.1", trio.current_time(), told)
    await eventually(lambda: "192.0.2.1" in names._cache)
    names.ask("192.0.2.1", trio.current_time(), told)
    names.ask("192.0.2.2", trio.current_time(), other)
    await other.once()
    assert told.names == []
    assert resolver.asked.count("192.0.2.1") == 1
    assert names.ask("192.0.2.1", trio.current_time() + KEEP_FAILURE + 1, told) is None
    await eventually(lambda: resolver.asked.count("192.0.2.1") == 2)


async def test_threads_queue_and_cache_are_bounded(nursery: trio.Nursery) -> None:
    resolver, told = Resolver({f"192.0.2.{n}": f"r{n}.example" for n in range(100)}), Told()
    resolver.gate.clear()
    names = Names(resolver, cache=5, queue=20)
    nursery.start_soon(names.run)
    for number in range(20):
        names.ask(f"192.0.2.{number}", trio.current_time(), told)
    await eventually(lambda: len(resolver.asked) == WORKERS)
    for number in range(20, 100):
        names.ask(f"192.0.2.{number}", trio.current_time(), told)
    resolver.gate.set()
    await eventually(lambda: not names._wanting)
    assert resolver.most <= WORKERS
    assert len(resolver.asked) == 20 + WORKERS
    assert len(names._cache) == 5


async def test_a_name_server_that_hangs_blocks_nobody_for_ever(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "TIMEOUT", 0.05)
    resolver, told = Resolver({"192.0.2.9": "r9.example"}), Told()
    resolver.gate.clear()
    names = Names(resolver)
    nursery.start_soon(names.run)
    names.ask("192.0.2.1", trio.current_time(), told)
    await eventually(lambda: "192.0.2.1" in names._cache)
    assert names.known("192.0.2.1", trio.current_time()) is None
    resolver.gate.set()
    names.ask("192.0.2.9", trio.current_time(), told)
    await told.once()


async def test_a_look_up_for_which_no_thread_was_free_is_no_failure(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names_module, "TIMEOUT", 0.05)
    resolver, told = Resolver({"192.0.2.9": "r9.example"}), Told()
    resolver.gate.clear()
    names = Names(resolver)
    nursery.start_soon(names.run)
    stuck = [f"192.0.2.{n}" for n in range(WORKERS)]
    for addr in stuck:
        names.ask(addr, trio.current_time(), told)
    await eventually(lambda: names._cache.keys() == set(stuck))
    names.ask("192.0.2.9", trio.current_time(), told)
    await eventually(lambda: not names._wanting)
    assert "192.0.2.9" not in names._cache
    resolver.gate.set()
    await eventually(lambda: resolver.at_once == 0)
    assert names.ask("192.0.2.9", trio.current_time(), told) is None
    await told.once()
    assert told.names == [("192.0.2.9", "r9.example")]


def test_reverse_survives_what_the_resolver_throws(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(addr: str) -> Any:
        raise OSError("no name")

    monkeypatch.setattr(names_module.socket, "gethostbyaddr", fail)
    assert names_module.reverse("192.0.2.1") is None


# --- autonomous systems ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"autonomous_system_number": 64500, "autonomous_system_organization": "EXAMPLE"}, (64500, "EXAMPLE")),
        ({"asn": "AS64501", "as_name": "Example Ltd"}, (64501, "Example Ltd")),
        ({"asn": "AS64502"}, (64502, None)),
        ({"asn": "nonsense"}, None),
        ({"country": "XX"}, None),
    ],
)
def test_systems_are_read_from_the_usual_layouts(
    tmp_path: Path, entry: dict[str, Any], found: tuple[int, str | None] | None
) -> None:
    file = tmp_path / "asn.mmdb"
    file.write_bytes(mmdb(entry))
    systems = open_systems(file)
    assert systems is not None
    try:
        assert systems.find("8.8.8.8") == found
        assert systems.find("192.0.2.1") is None
        assert systems.find("2001:db8::1") is None
    finally:
        systems.close()


def test_a_file_that_shrinks_in_place_cannot_hurt(tmp_path: Path) -> None:
    file = tmp_path / "asn.mmdb"
    file.write_bytes(mmdb({"asn": "AS64500"}))
    systems = open_systems(file)
    assert systems is not None
    file.write_bytes(b"")  # a mapping of it would be SIGBUS from here on
    assert str(file) not in Path("/proc/self/maps").read_text()
    assert systems.find("8.8.8.8") == (64500, None)
    systems.close()


def test_a_missing_file_is_said_in_words(tmp_path: Path) -> None:
    file = tmp_path / "asn.mmdb"
    with pytest.raises(PrepareFailed) as caught:
        open_systems(file)
    assert str(caught.value).endswith(f"cannot open the AS database {file}: no such file or directory")


@pytest.mark.parametrize("content", [b"", b"not a database" * 10])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "asn.mmdb"
    file.write_bytes(content)
    with pytest.raises(PrepareFailed, match=r"cannot use trace.asn .*asn.mmdb"):
        open_systems(file)


def test_a_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "maxminddb":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PrepareFailed, match='install netd with its "asn" extra'):
        open_systems(tmp_path / "asn.mmdb")


def test_no_file_is_no_systems() -> None:
    assert open_systems(None) is None
