"""journald's native protocol, against a socket that stands in for journald."""

from __future__ import annotations

import array
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.journal import Journal, encode, field_name, is_stream
from tests.support.journal import decode


@pytest.fixture
def journald(tmp_path):
    """A bound datagram socket, and a way to it."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.setblocking(False)
        journal = Journal(path)
        yield server, journal
        journal.close()


def received(server) -> dict[str, str]:
    """One entry, from the datagram or from the file that travels with it."""
    data, control, _, _ = server.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    if not control:
        return decode(data)
    (file,) = array.array("i", control[0][2])
    try:
        assert data == b""
        with pytest.raises(PermissionError):  # sealed: nobody changes it any more
            os.write(file, b"x")
        return decode(os.pread(file, os.fstat(file).st_size, 0))
    finally:
        os.close(file)


def test_an_entry_arrives_as_it_is(journald):
    server, journal = journald
    fields = {"MESSAGE": "two\nlines = done", "PRIORITY": "6", "NETD_EMPTY": ""}

    assert journal.send(fields)

    assert received(server) == fields


def test_an_entry_too_large_for_a_datagram_travels_as_a_file(journald):
    server, journal = journald
    fields = {"MESSAGE": "x" * (32 << 20)}

    assert journal.send(fields)

    assert received(server) == fields


def test_a_journal_without_room_is_told_at_once(journald):
    server, journal = journald
    sent = 0
    while journal.send({"MESSAGE": "x"}):
        sent += 1
        assert sent < 100_000, "never full"

    for _ in range(sent):
        received(server)
    assert journal.send({"MESSAGE": "room again"})


def test_a_journal_that_is_not_there_is_an_error(tmp_path):
    journal = Journal(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        journal.send({"MESSAGE": "x"})
    journal.close()


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text(), max_size=5))
def test_any_field_survives(fields):
    entry = {field_name(key): value for key, value in fields.items()}
    expected = {key: value.encode("utf-8", "backslashreplace").decode() for key, value in entry.items()}
    assert decode(encode(entry)) == expected


@settings(deadline=None)
@given(st.text())
def test_field_names_are_ones_that_journald_takes(key):
    name = field_name(key)
    assert 1 <= len(name) <= 64
    assert name.isascii()
    assert name.replace("_", "A").isalnum()
    assert name == name.upper()
    assert name[0].isalpha()


def test_the_stream_to_the_journal_is_recognised(tmp_path):
    with (tmp_path / "a").open("w") as one, (tmp_path / "b").open("w") as other:
        status = os.fstat(one.fileno())
        variable = f"{status.st_dev}:{status.st_ino}"
        assert is_stream(one.fileno(), variable)
        assert not is_stream(other.fileno(), variable)
        assert not is_stream(-1, variable)
        for wrong in (None, "", "1", "a:b", "1:2:3"):
            assert not is_stream(one.fileno(), wrong)
