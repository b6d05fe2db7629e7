from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.net.sockdiag import TcpInfo, connections, cookie_of, parse_tcp_info, tcp_info


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def pair(request):
    with socket.socket(request.param) as listener:
        listener.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
        listener.listen(1)
        with socket.create_connection(listener.getsockname()[:2]) as client:
            server, _ = listener.accept()
            with server:
                yield server, client


def test_one_socket(pair):
    server, client = pair
    client.sendall(b"x" * 1000)
    received = 0
    while received < 1000:
        received += len(server.recv(1000))
    info = tcp_info(server)
    assert (info.state, info.bytes_received, info.total_retrans, info.sack) == (1, 1000, 0, True)
    assert info.segs_in >= 2
    server.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        tcp_info(server)


async def test_all_of_them(pair):
    server, client = pair
    client.sendall(b"unread")
    found = {connection.cookie: connection for connection in await connections()}
    ours, theirs = found[cookie_of(server)], found[cookie_of(client)]
    assert ours.local == theirs.remote == server.getsockname()[:2]
    assert ours.remote == theirs.local == client.getsockname()[:2]
    assert (ours.state, ours.receive_queue) == (1, 6)
    assert ours.info.bytes_received == 6
    assert theirs.info.bytes_sent == 6


async def test_more_than_one_read_can_hold():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(300)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(250)]
        cookies = {cookie_of(client) for client in clients}
        found = [connection for connection in await connections() if connection.cookie in cookies]
        assert len(found) == 250
        for client in clients:
            client.close()


async def test_only_the_states_asked_for():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        cookie = cookie_of(listener)
        assert cookie not in {connection.cookie for connection in await connections()}
        listening = await connections(states=1 << 10)
        assert {connection.state for connection in listening} == {10}
        assert cookie in {connection.cookie for connection in listening}


@given(st.binary(max_size=600))
def test_what_a_shorter_struct_lacks_is_none(data):
    info = parse_tcp_info(data)
    assert (info.state is None) == (len(data) < 1)
    assert (info.rtt_us is None) == (len(data) < 72)
    assert (info.segs_in is None) == (len(data) < 144)
    if len(data) >= 144:
        assert info.segs_in == struct.unpack_from("=I", data, 140)[0]


def test_an_older_kernels_struct():
    """Linux 4.1: 136 bytes and no more, up to bytes_received."""
    data = bytearray(136)
    data[0], data[5] = 1, 2
    struct.pack_into("=I", data, 68, 1234)
    struct.pack_into("=QQ", data, 120, 10, 20)
    assert parse_tcp_info(bytes(data)).bytes_received == 20
    assert parse_tcp_info(bytes(data)).segs_in is None
    assert parse_tcp_info(bytes(data)).sack
    assert parse_tcp_info(b"") == TcpInfo()
