"""Classic BPF programs that keep a raw socket asleep until something for us arrives. Pure.

A receiver of every ICMP error, or of every TCP segment, of a busy host would wake the daemon for traffic that is not
its own. Two programs let through only what can answer a probe sent from one of our ports:

    icmp_errors(ports)   for a raw ICMP socket:  an error that quotes a TCP segment whose source port is ours
    duplicates(ports)    for a packet socket:    a TCP segment to one of our ports that carries a SACK option

Rules:
- a program may let through too much, never too little: whoever receives parses again and matches by sequence number;
- with no port in use nothing passes, with more ports than a program can name every port does.

Left out: UDP quotes, IPv6 extension headers before TCP (neither is sent here).

Sources: Linux Documentation/networking/filter.rst and linux/bpf_common.h for the machine, RFC 2018 and RFC 2883 for
SACK.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

Instruction = tuple[int, int, int, int]
"""(code, jump if true, jump if false, k), jumps counted from the next instruction."""

MOST_PORTS = 1024
"""Ports one program compares at most: two instructions each, and the kernel takes 4096 (BPF_MAXINSNS)."""

_LOAD_BYTE, _LOAD_HALF, _LOAD_WORD = 0x30, 0x28, 0x20  # A = packet[k]
_LOAD_BYTE_X, _LOAD_HALF_X, _LOAD_WORD_X = 0x50, 0x48, 0x40  # A = packet[X + k]
_LOAD_HEADER_LENGTH = 0xB1  # X = 4 * (packet[k] & 15), made for the IPv4 header
_LOAD_X = 0x01  # X = k
_AND, _SHIFT_RIGHT = 0x54, 0x74
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06

_DROP = 0
_WHOLE = 0xFFFF
_HEADERS = 256
"""Bytes kept of a segment: IP and TCP header with every option fit."""

_TCP = 6
_SACK_AFTER_TIMESTAMP = 44
"""TCP header of 20, timestamp with padding 12, one SACK block with padding 12: the shortest that has both options."""
_SACK_ALONE = 32
_NOP_NOP_SACK = 0x01010500
"""How every stack pads a SACK option that stands first (RFC 2018 3); the length byte is masked out."""


class _Program:
    """Instructions as they are appended; `require` keeps every jump short, so no program outgrows an 8-bit offset."""

    def __init__(self) -> None:
        self.code: list[Instruction] = []

    def do(self, code: int, k: int) -> None:
        self.code.append((code, 0, 0, k))

    def require(self, test: int, k: int) -> None:
        """Drop the packet unless the test holds."""
        self.code += [(test, 1, 0, k), (_RETURN, 0, 0, _DROP)]

    def refuse(self, test: int, k: int) -> None:
        """Drop the packet if the test holds."""
        self.code += [(test, 0, 1, k), (_RETURN, 0, 0, _DROP)]

    def unless(self, test: int, k: int, body: _Program) -> None:
        """Do the body only if the test does not hold."""
        self.code.append((test, len(body.code), 0, k))
        self.code += body.code

    def one_of(self, ports: Collection[int], keep: int) -> None:
        """End: keep the packet if A is one of the ports."""
        if len(ports) > MOST_PORTS:
            self.do(_RETURN, keep)
            return
        for port in sorted(ports):
            self.code += [(_EQUAL, 0, 1, port), (_RETURN, 0, 0, keep)]
        self.do(_RETURN, _DROP)


def icmp_errors(ports: Collection[int], *, v6: bool) -> list[Instruction]:
    """For a raw ICMP socket: an IPv4 one sees its packets from the IP header, an IPv6 one from the ICMPv6 header."""
    program = _Program()
    if v6:
        program.do(_LOAD_BYTE, 8 + 6)
        program.require(_EQUAL, _TCP)
        program.do(_LOAD_HALF, 8 + 40)
    else:
        program.do(_LOAD_HEADER_LENGTH, 0)
        program.do(_LOAD_BYTE_X, 8 + 9)
        program.require(_EQUAL, _TCP)
        # a quote with IP options is rare and its ports cannot be found without a second X: let the receiver decide
        quote_has_options = _Program()
        quote_has_options.do(_RETURN, _WHOLE)
        program.do(_LOAD_BYTE_X, 8)
        program.unless(_EQUAL, 0x45, quote_has_options)
        program.do(_LOAD_HALF_X, 8 + 20)
    program.one_of(ports, _WHOLE)
    return program.code


def duplicates(ports: Collection[int], *, v6: bool) -> list[Instruction]:
    """For a packet socket of type SOCK_DGRAM, whose packets start at the IP header."""
    program = _Program()
    if v6:
        program.do(_LOAD_BYTE, 6)
        program.require(_EQUAL, _TCP)
        program.do(_LOAD_X, 40)
    else:
        program.do(_LOAD_BYTE, 9)
        program.require(_EQUAL, _TCP)
        program.do(_LOAD_HALF, 6)
        program.refuse(_ANY_BIT, 0x1FFF)  # a later fragment has no TCP header
        program.do(_LOAD_HEADER_LENGTH, 0)
    program.do(_LOAD_BYTE_X, 12)
    program.do(_AND, 0xF0)
    program.do(_SHIFT_RIGHT, 2)  # A = length of the TCP header
    sack_stands_first = _Program()
    sack_stands_first.require(_AT_LEAST, _SACK_ALONE)
    sack_stands_first.do(_LOAD_WORD_X, 20)
    sack_stands_first.do(_AND, 0xFFFFFF00)
    sack_stands_first.require(_EQUAL, _NOP_NOP_SACK)
    program.unless(_AT_LEAST, _SACK_AFTER_TIMESTAMP, sack_stands_first)
    program.do(_LOAD_HALF_X, 2)
    program.one_of(ports, _HEADERS)
    return program.code


def assemble(program: list[Instruction]) -> bytes:
    """The program as an array of `struct sock_filter` (linux/filter.h), in this machine's byte order."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
