"""The filters, run by a small machine written from the kernel's description, and by the kernel itself."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.net.linux import attach_filter
from netd.wire import cbpf
from netd.wire.dsack import parse_duplicate
from netd.wire.icmp import parse_error4, parse_error6
from tests.support import packets

US, PEER, ROUTER = "192.0.2.1", "198.51.100.7", "203.0.113.9"
US6, PEER6 = "2001:db8::1", "2001:db8:ffff::7"
VERSIONS = pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])


def run(program: list[cbpf.Instruction], packet: bytes) -> int:
    """linux/bpf_common.h as far as our programs go; a load past the end drops the packet, as in the kernel."""
    a = x = at = 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        match code & 7, code & 0x18, code & 0xE0:
            case 0, size, mode:  # ld
                offset = k + (x if mode == 0x40 else 0)
                width = {0x00: 4, 0x08: 2, 0x10: 1}[size]
                if offset + width > len(packet):
                    return 0
                a = int.from_bytes(packet[offset : offset + width], "big")
            case 1, _, 0xA0:  # ldx msh
                if k >= len(packet):
                    return 0
                x = (packet[k] & 15) * 4
            case 1, _, 0:  # ldx imm
                x = k
            case 4, _, _:
                a = a & k if code & 0xF0 == 0x50 else a >> k
            case 5, _, _:
                holds = {0x10: a == k, 0x30: a >= k, 0x40: bool(a & k)}[code & 0xF0]
                at += if_true if holds else if_false
            case 6, _, _:
                return k
            case unknown:
                raise AssertionError(f"unknown instruction {unknown}")


def error(v6: bool, port: int, *, protocol: int = 6, options: bytes = b"") -> bytes:
    segment = packets.tcp(port, 50000)
    if v6:
        return packets.icmp6(packets.ip(US6, PEER6, segment, protocol=protocol))
    quote = packets.ip(US, PEER, segment, protocol=protocol, options=options)
    return packets.icmp4(ROUTER, US, quote)


def duplicate(v6: bool, port: int, options: bytes, *, protocol: int = 6, fragment: int = 0) -> bytes:
    segment = packets.tcp(50000, port, options=options)
    if v6:
        return packets.ip(PEER6, US6, segment, protocol=protocol)
    return packets.ip(PEER, US, segment, protocol=protocol, fragment=fragment)


@VERSIONS
@pytest.mark.parametrize("ports", [{8080}, {8080, 3000, 9000}, set(range(1, 1000)) | {8080}], ids=len)
def test_errors_about_our_ports_pass(v6, ports):
    program = cbpf.icmp_errors(ports, v6=v6)
    assert run(program, error(v6, 8080)) == 0xFFFF
    assert run(program, error(v6, 8081)) == 0
    assert run(program, error(v6, 8080, protocol=17)) == 0
    assert run(program, error(v6, 8080)[:20]) == 0


def test_a_quote_with_options_is_left_to_the_receiver():
    assert run(cbpf.icmp_errors({8080}, v6=False), error(False, 9999, options=b"\x01" * 4)) == 0xFFFF


@VERSIONS
@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (packets.sack((1, 2)), True),
        (packets.sack((1, 2), (5, 9)), True),
        (packets.timestamps(1, 2) + packets.sack((1, 2)), True),
        (packets.timestamps(1, 2) + packets.sack((1, 2), (5, 9)), True),
        (packets.timestamps(1, 2), False),
        (b"", False),
        (b"\x02\x04\x05\xb4\x04\x02" + packets.timestamps(1, 2)[2:], False),  # as of a SYN
    ],
)
def test_segments_with_a_sack_option_pass(v6, options, passes):
    program = cbpf.duplicates({8080}, v6=v6)
    assert bool(run(program, duplicate(v6, 8080, options))) == passes
    assert run(program, duplicate(v6, 8081, options)) == 0
    assert run(program, duplicate(v6, 8080, options, protocol=17)) == 0


def test_a_later_fragment_has_no_ports():
    options = packets.sack((1, 2))
    assert run(cbpf.duplicates({8080}, v6=False), duplicate(False, 8080, options, fragment=0x2001)) == 0
    assert run(cbpf.duplicates({8080}, v6=False), duplicate(False, 8080, options, fragment=0x4000)) == 256


@VERSIONS
def test_without_a_port_nothing_passes_and_with_too_many_every_port_does(v6):
    for build, packet in (
        (cbpf.icmp_errors, error(v6, 8080)),
        (cbpf.duplicates, duplicate(v6, 8080, packets.sack((1, 2)))),
    ):
        assert run(build((), v6=v6), packet) == 0
        assert run(build(range(20000, 20000 + cbpf.MOST_PORTS + 1), v6=v6), packet) > 0


@VERSIONS
@given(ports=st.sets(st.integers(0, 65535), max_size=40), port=st.integers(0, 65535), data=st.data())
def test_what_a_receiver_would_take_is_never_dropped(v6, ports, port, data):
    """Random packets, and true ones with random bytes: the filter may let through too much, never too little."""
    seeds = [error(v6, port), duplicate(v6, port, packets.timestamps(1, 2) + packets.sack((1, 2)))]
    packet = bytearray(data.draw(st.sampled_from([*seeds, data.draw(st.binary(max_size=100))])))
    for _ in range(data.draw(st.integers(0, 3))):
        if packet:
            packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    ports |= {port}
    parsed = parse_error6(bytes(packet), bytes(16), 1) if v6 else parse_error4(bytes(packet))
    if parsed is not None and parsed.source_port in ports:
        assert run(cbpf.icmp_errors(ports, v6=v6), bytes(packet)) > 0


@VERSIONS
@given(
    stamped=st.booleans(),
    blocks=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=3),
    port=st.integers(0, 65535),
    payload=st.binary(max_size=20),
)
def test_every_duplicate_as_stacks_write_it_passes(v6, stamped, blocks, port, payload):
    options = (packets.timestamps(1, 2) if stamped else b"") + packets.sack(*blocks)
    segment = packets.tcp(50000, port, options=options, payload=payload)
    packet = packets.ip(PEER6, US6, segment) if v6 else packets.ip(PEER, US, segment)
    assert parse_duplicate(packet) is not None
    assert run(cbpf.duplicates({port}, v6=v6), packet) == 256


@VERSIONS
@pytest.mark.parametrize("count", [0, 1, 300, cbpf.MOST_PORTS, cbpf.MOST_PORTS + 1])
def test_the_kernel_accepts_them(v6, count):
    """Any socket may have a filter; the kernel checks the program as it is attached."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for build in (cbpf.icmp_errors, cbpf.duplicates):
            program = cbpf.assemble(build(range(count), v6=v6))
            assert len(program) % struct.calcsize("=HBBI") == 0
            attach_filter(sock, program)


def test_the_kernels_machine_agrees_with_ours():
    """A datagram socket sees its packets from the UDP header on: 8 bytes, which the programs take for anything."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        program = [(0x28, 0, 0, 8), *cbpf.icmp_errors({8080, 9090}, v6=True)[-5:]]  # A = first two bytes, then ports
        attach_filter(receiver, cbpf.assemble(program))
        for port in (8080, 1, 9090, 2):
            sender.sendto(struct.pack("!H", port), receiver.getsockname())
        seen = [struct.unpack("!H", receiver.recv(16))[0] for _ in range(2)]
        with pytest.raises(BlockingIOError):
            receiver.recv(16)
        assert seen == [8080, 9090]
