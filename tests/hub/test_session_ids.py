"""Ids of sessions: random UUIDs, none twice, and none that another process gives."""

from __future__ import annotations

import subprocess
import sys
import uuid

from netd.hub import session

_FORK = """
import os
from netd.hub import session
next(session._uuids)
reading, writing = os.pipe()
if not os.fork():
    os.write(writing, " ".join(next(session._uuids) for _ in range(300)).encode())
    os._exit(0)
os.wait()
mine = {next(session._uuids) for _ in range(300)}
print(len(mine.union(os.read(reading, 65536).decode().split())))
"""


def test_ids_are_random_uuids_and_none_comes_twice() -> None:
    ids = [next(session._uuids) for _ in range(1000)]
    assert len(set(ids)) == 1000
    for each in ids:
        parsed = uuid.UUID(each)
        assert str(parsed) == each
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)


def test_a_child_process_gives_ids_of_its_own() -> None:
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "600"
