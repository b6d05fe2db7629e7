"""The OpenAPI document: a promise that only grows, and one that the API keeps (schemathesis)."""

from __future__ import annotations

import json
import threading

import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from netd.control.access import AccessPolicy
from netd.control.app import create_app
from netd.net.http import HttpLimits, Peer, serve
from tests.control.openapi import SNAPSHOT, document, surface
from tests.support.host import FakeHost
from tests.support.http import SocketListener

DOCUMENT = document()
OPERATIONS = [(method, path) for path, item in DOCUMENT["paths"].items() for method in item]
# their answers have no end to wait for; test_events.py and test_channels_routes.py read them
ENDLESS = {"/v1/events", "/v1/channels/{name}/events"}


def test_the_snapshot_is_the_api():
    """Where it is not: look whether clients can live with the change, then `python -m tests.control.openapi`."""
    assert surface(DOCUMENT) == json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_operation_is_described_and_its_errors_have_the_one_shape(method, path):
    operation = DOCUMENT["paths"][path][method]
    assert operation["description"]
    for status in ("4XX", "5XX"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_operation_ids_are_unique():
    ids = [DOCUMENT["paths"][path][method]["operationId"] for method, path in OPERATIONS]
    assert len(set(ids)) == len(ids)


@pytest.fixture(scope="module")
def address():
    """The API behind the real front door, on loopback, in a thread with an event loop of its own."""
    ready, told = threading.Event(), {}

    async def main():
        host = FakeHost()
        with trio.socket.socket() as listening:
            await listening.bind(("127.0.0.1", 0))
            listening.listen()
            draining = trio.Event()
            async with trio.open_nursery() as nursery:
                app = create_app(host, nursery, policy=AccessPolicy(lambda: host.control_config, own_uid=None))

                async def as_root(scope, receive, send):
                    scope["extensions"]["netd.peer"] = Peer(1, 0, 0)
                    await app(scope, receive, send)

                await nursery.start(serve, SocketListener(listening), as_root, HttpLimits(drain=1), draining)
                told.update(
                    url="http://{}:{}".format(*listening.getsockname()),
                    stop=draining.set,
                    token=trio.lowlevel.current_trio_token(),
                )
                ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(30)
    yield told["url"]
    trio.from_thread.run_sync(told["stop"], trio_token=told["token"])
    thread.join(30)
    assert not thread.is_alive()


def takes_something(method, path):
    """Whether there is anything that could be wrong: any text will do for a name in a path."""
    operation = DOCUMENT["paths"][path][method]
    bounds = {"maxLength", "minLength", "pattern"}
    return "requestBody" in operation or any(
        parameter["in"] != "path" or parameter["schema"].keys() & bounds
        for parameter in operation.get("parameters", ())
    )


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        pytest.param(method, path, mode, id=f"{method} {path} {mode.value}")
        for method, path in OPERATIONS
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        if path not in ENDLESS and (mode is GenerationMode.POSITIVE or takes_something(method, path))
    ],
)
def test_the_api_keeps_its_promise(method, path, mode, address):
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method]

    @settings(
        max_examples=25,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(mode))
    def check(case):
        case.call_and_validate(base_url=address, timeout=30)

    check()
