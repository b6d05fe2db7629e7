"""A database of autonomous systems as small as can be: the MaxMind DB file format, written."""

from __future__ import annotations

import struct
from typing import Any


def encode(value: Any) -> bytes:
    """The MaxMind DB data format, as far as needed: maps, strings, arrays, uint32; other widths as (bytes, value)."""
    if isinstance(value, dict):
        return bytes([7 << 5 | len(value)]) + b"".join(encode(key) + encode(item) for key, item in value.items())
    if isinstance(value, str):
        raw = value.encode()
        return bytes([2 << 5 | len(raw)]) + raw if len(raw) < 29 else bytes([2 << 5 | 29, len(raw) - 29]) + raw
    if isinstance(value, list):
        return bytes([len(value), 11 - 7]) + b"".join(encode(item) for item in value)
    width, value = value if isinstance(value, tuple) else (4, value)
    raw = value.to_bytes(width, "big").lstrip(b"\0")
    return {2: bytes([5 << 5 | len(raw)]), 4: bytes([6 << 5 | len(raw)]), 8: bytes([len(raw), 9 - 7])}[width] + raw


def mmdb(entry: dict[str, Any]) -> bytes:
    """A file of one node: every IPv4 address below 128.0.0.0 has `entry`, the others have none."""
    node_count = 1
    node = struct.pack("!I", node_count + 16)[1:] + struct.pack("!I", node_count)[1:]
    metadata = {
        "node_count": node_count,
        "record_size": (2, 24),
        "ip_version": (2, 4),
        "database_type": "Test-ASN",
        "languages": ["en"],
        "binary_format_major_version": (2, 2),
        "binary_format_minor_version": (2, 0),
        "build_epoch": (8, 1_700_000_000),
        "description": {"en": "test"},
    }
    return node + bytes(16) + encode(entry) + b"\xab\xcd\xefMaxMind.com" + encode(metadata)
