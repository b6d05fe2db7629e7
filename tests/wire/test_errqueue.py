from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.wire.errqueue import QueuedError, parse_extended_error


def queued(origin: int, kind: int, code: int, offender: str) -> bytes:
    address = ipaddress.ip_address(offender).packed
    if len(address) == 4:
        name = struct.pack("@HH", 2, 0) + address + bytes(8)
    else:
        name = struct.pack("@HHI", 10, 0, 0) + address + bytes(4)
    return struct.pack("@IBBBxII", 113, origin, kind, code, 0, 0) + name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (queued(2, 11, 0, "10.0.0.1"), (True, 0, "10.0.0.1", False)),
        (queued(2, 3, 3, "10.0.0.1"), (False, 3, "10.0.0.1", True)),
        (queued(2, 3, 13, "10.0.0.1"), (False, 13, "10.0.0.1", False)),
        (queued(3, 3, 0, "2001:db8::1"), (True, 0, "2001:db8::1", False)),
        (queued(3, 1, 4, "2001:db8::1"), (False, 4, "2001:db8::1", True)),
        (queued(3, 1, 3, "2001:db8::1"), (False, 3, "2001:db8::1", False)),
    ],
)
def test_errors_of_both_versions(data, expected):
    expired, code, offender, refused = expected
    assert parse_extended_error(data) == QueuedError(expired, code, ipaddress.ip_address(offender).packed, refused)


@pytest.mark.parametrize("origin", [0, 1, 4, 5])
def test_other_origins_are_not_the_networks(origin):
    assert parse_extended_error(queued(origin, 11, 0, "10.0.0.1")) is None
    assert parse_extended_error(queued(3, 11, 0, "10.0.0.1")) is None


@given(st.binary(max_size=60))
def test_any_bytes_give_an_error_or_none(data):
    for candidate in (data, queued(2, 11, 0, "10.0.0.1")[: len(data)] + data):
        error = parse_extended_error(candidate)
        assert error is None or len(error.offender) in (4, 16)
