"""Ids of sessions: random UUIDs, none twice, and none that another process gives."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from typing import TYPE_CHECKING

from netd.hub import session

if TYPE_CHECKING:
    import pytest

_FORK = """
import os
from netd.hub import session
session._random_uuid()
reading, writing = os.pipe()
if not os.fork():
    os.write(writing, " ".join(session._random_uuid() for _ in range(300)).encode())
    os._exit(0)
os.wait()
mine = {session._random_uuid() for _ in range(300)}
print(len(mine.union(os.read(reading, 65536).decode().split())))
"""


def test_ids_are_random_uuids_and_none_comes_twice() -> None:
    ids = [session._random_uuid() for _ in range(1000)]
    assert len(set(ids)) == 1000
    for each in ids:
        parsed = uuid.UUID(each)
        assert str(parsed) == each
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_a_child_process_gives_ids_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "600"


def test_threads_may_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers of the library in one process, each in a thread of its own: one asks while the other has the kernel
    asked, for which Python lets threads go on."""
    asking, other, ids = threading.Event(), threading.Event(), list[str]()
    urandom = session.os.urandom

    def slow(size: int) -> bytes:
        if not asking.is_set():
            asking.set()
            assert other.wait(20)
        return urandom(size)

    monkeypatch.setattr(session.os, "urandom", slow)
    session._random.clear()
    thread = threading.Thread(target=lambda: ids.append(session._random_uuid()))
    thread.start()
    assert asking.wait(20)
    try:
        ids += [session._random_uuid() for _ in range(300)]
    finally:
        other.set()
        thread.join()
    assert len(set(ids)) == 301
