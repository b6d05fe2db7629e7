"""The control API as it is met in the field: behind its front door on a real Unix socket, among hostile neighbours."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fastapi import APIRouter
from structlog.testing import capture_logs

from netd.control.access import AccessPolicy
from netd.control.app import create_app
from netd.control.config import ControlConfig
from netd.errors import Conflict, PrepareFailed
from netd.net.http import HttpLimits, serve
from netd.net.rest import Content, RequestBody, Write
from netd.runtime.listeners import Listeners
from netd.section import Listen
from tests.control.conftest import NOBODY
from tests.support.accounts import open_to_all, why_not_nobody
from tests.support.host import FakeHost
from tests.support.http import Peer, SocketListener, request


@asynccontextmanager
async def daemon(path, host=None, limits=None, *, own_uid=None):
    """The API at `path`; yields the host and the event that drains the front door. Ends by itself when drained."""
    host = host or FakeHost()
    draining = trio.Event()
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen(100)
        with trio.fail_after(60):
            async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
                policy = AccessPolicy(lambda: host.control_config, own_uid=own_uid)
                app = create_app(host, outer, policy=policy)
                await nursery.start(serve, SocketListener(listening), app, limits or HttpLimits(drain=0.5), draining)
                yield host, draining
                draining.set()


def client(path):
    return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://any-host-at-all")


async def test_an_ordinary_client_over_the_socket(tmp_path):
    async with daemon(tmp_path / "s", own_uid=os.geteuid()), client(tmp_path / "s") as http:
        status = (await http.get("/v1/status")).json()
        assert status["pid"] == os.getpid()
        stopped = await http.post("/v1/services/trace/stop?wait=60")
        assert (stopped.status_code, stopped.json()["status"]) == (200, "done")


_AS_NOBODY = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for line in ("GET /v1/status", "POST /v1/reload"):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(sys.argv[1])
        s.sendall(line.encode() + b" HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        data = b""
        while more := s.recv(65536):
            data += more
        print(data.split()[1].decode())
"""


async def test_a_socket_that_is_taken_comes_with_the_command_that_shows_by_whom(tmp_path):
    address = f"unix:{tmp_path / 's'}"
    listeners = Listeners(health=FakeHost().health)
    try:
        await listeners.lease("control").open(Listen(address=address))
        with pytest.raises(PrepareFailed, match=r"another program listens there already \(ss -lxp shows which\)"):
            await listeners.lease("other").open(Listen(address=address))
        taken = await listeners.lease("trace").open(Listen(address="127.0.0.1:0"))
        with pytest.raises(PrepareFailed, match=r"\(ss -ltnp shows which\)"):
            await listeners.lease("other").open(Listen(address=taken.address))
    finally:
        listeners.close()


@pytest.mark.skipif(why_not_nobody() is not None, reason=str(why_not_nobody()))
async def test_another_account_is_seen_as_what_it_is(tmp_path_factory):
    directory = tmp_path_factory.mktemp("open")
    open_to_all(directory)
    path = directory / "s"
    async with daemon(path) as (host, _):
        path.chmod(0o777)
        command = [sys.executable, "-c", _AS_NOBODY, str(path)]
        with capture_logs() as logs:
            done = await trio.run_process(command, capture_stdout=True)
        assert done.stdout.split() == [b"200", b"403"]
        assert host.asked == []
        assert [line["uid"] for line in logs if line["event"] == "request denied"] == [NOBODY]

        host.control_config = ControlConfig(users=[str(NOBODY)])
        done = await trio.run_process(command, capture_stdout=True)
        assert done.stdout.split() == [b"200", b"202"]


async def test_hostile_neighbours_cost_nobody_else_and_do_not_delay_shutdown(tmp_path):
    """Garbage, half a request, half a body, streams never read: all attached while others work and the door closes."""
    host = FakeHost()
    async with trio.open_nursery() as nursery:
        streams = []
        async with daemon(tmp_path / "s", host) as (_, _draining):
            for opening in (
                b"\x00\xff garbage \r\n\r\n",
                b"POST /v1/reload HTTP/1.1\r\nHost",
                request("PUT", "/v1/log", headers=["Content-Type: application/json", "Content-Length: 500"]) + b"{",
                request("GET", "/v1/events"),
                request("GET", "/v1/status") * 500,  # and never reads an answer
                request("POST", "/v1/services/trace/stop?wait=60"),
            ):
                stream = await trio.open_unix_socket(str(tmp_path / "s"))
                streams.append(stream)
                nursery.start_soon(_insist, stream, opening)
            async with client(tmp_path / "s") as http:
                for _ in range(20):
                    assert (await http.get("/v1/health")).status_code == 200
        # `daemon` has ended by itself, within its drain time and the test's patience, with all of them attached
        for stream in streams:
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def _insist(stream, data):
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # refused, which is fine


async def test_a_broken_router_of_a_service_breaks_itself_only(tmp_path):
    host = FakeHost()
    router = APIRouter()

    class Options(RequestBody):
        count: int

    async def secret(caller: Content) -> str:
        return "content"

    async def crash() -> None:
        raise ZeroDivisionError

    async def run(options: Options, caller: Write) -> dict[str, int]:
        raise Conflict(f"cannot run {options.count} times: it runs already", path="count")

    for function in (secret, run):  # what FastAPI would find in a module of its own
        function.__annotations__ = {
            name: {"Content": Content, "Write": Write, "Options": Options, "str": str}.get(kind, dict[str, int])
            for name, kind in function.__annotations__.items()
        }
    router.get("/secret")(secret)
    router.get("/crash")(crash)
    router.post("/run")(run)
    host.extra = [("/trace", router)]
    async with daemon(tmp_path / "s", host, own_uid=os.geteuid()), client(tmp_path / "s") as http:
        with capture_logs() as logs:
            assert (await http.get("/v1/trace/crash")).json()["error"]["kind"] == "internal"
        assert [line["request"] for line in logs if line["log_level"] == "error"] == ["GET /v1/trace/crash"]
        assert (await http.get("/v1/trace/secret")).json() == "content"
        response = await http.post("/v1/trace/run", json={"count": 3})
        assert (response.status_code, response.json()["error"]["path"]) == (409, "count")
        assert (await http.post("/v1/trace/run", json={"count": 3, "x": 1})).status_code == 422
        assert (await http.get("/v1/trace/secret?x=1")).status_code == 400
        assert response.headers["netd-version"] == "1.2.3"


async def test_a_pipelined_write_by_hand_is_answered(tmp_path):
    """As in `printf ... | socat - UNIX:/run/netd/control.sock`."""
    async with daemon(tmp_path / "s", own_uid=os.geteuid()):
        peer = Peer(await trio.open_unix_socket(str(tmp_path / "s")))
        await peer.send(request("POST", "/v1/services/trace/restart?wait=5") + request("GET", "/v1/ready"))
        await peer.half_close()
        assert (await peer.response("POST")).status == 200
        assert (await peer.response()).status == 200
        await peer.stream.aclose()


@pytest.mark.parametrize(
    "half",
    [
        b"Content-Length: 50\r\n\r\n{",
        b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
    ],
)
async def test_half_a_request_is_not_carried_out(tmp_path, half):
    async with daemon(tmp_path / "s", own_uid=os.geteuid()) as (host, _):
        async with await trio.open_unix_socket(str(tmp_path / "s")) as peer:
            await peer.send_all(b"POST /v1/services/trace/stop HTTP/1.1\r\nHost: x\r\n" + half)
            await peer.send_eof()
            answer = b"".join([chunk async for chunk in peer])
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert host.asked == []
