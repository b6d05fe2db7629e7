"""Each library that the package brings, imported and used for something real. A script: run as a unit.

Prints as JSON what came of each, by its name in packaging/requirements.txt: "used", or the traceback. Compiled ones do
what they are compiled for. A library that is added to the lock file and not here fails the test that runs this.

`uses.py MMDB`: a database for maxminddb.
"""

import asyncio
import contextlib
import datetime
import io
import json
import os
import socket
import sqlite3
import ssl
import sys
import traceback
import zlib
from functools import partial

USES = {}


def use(name):
    def register(function):
        USES[name] = function
        return function

    return register


@use("annotated-doc")
def annotated_doc():
    from annotated_doc import Doc

    assert Doc("told").documentation == "told"


@use("annotated-types")
def annotated_types():
    from annotated_types import Interval

    assert Interval(ge=1, le=3).le == 3


@use("anyio")
def anyio():
    import anyio

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 0)
        return await anyio.to_thread.run_sync(lambda: 3)

    assert anyio.run(main, backend="trio") == anyio.run(main, backend="asyncio") == 3


@use("attrs")
def attrs():
    import attrs

    point = attrs.make_class("Point", ["x", "y"])
    assert attrs.asdict(point(1, 2)) == {"x": 1, "y": 2}


@use("beartype")
def beartype():
    from beartype import beartype
    from beartype.roar import BeartypeCallHintParamViolation

    @beartype
    def double(number: int) -> int:
        return number * 2

    assert double(2) == 4
    with contextlib.suppress(BeartypeCallHintParamViolation):
        double("2")
        raise AssertionError("a str was taken for an int")


@use("cbor2")
def cbor2():
    import cbor2

    value = {"a": [1, -2.5, b"\x00", "ä", None], "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)}
    assert cbor2.loads(cbor2.dumps(value)) == value


@use("certifi")
def certifi():
    import certifi

    assert ssl.create_default_context(cafile=certifi.where()).cert_store_stats()["x509_ca"] > 50


@use("cffi")
def cffi():
    import cffi

    ffi = cffi.FFI()
    ffi.cdef("int snprintf(char *, size_t, const char *, ...); typedef int (*compare)(int, int);")
    buffer = ffi.new("char[]", 32)
    assert ffi.dlopen(None).snprintf(buffer, 32, b"%d", ffi.cast("int", 42)) == 2
    assert ffi.string(buffer) == b"42"


@use("click")
def click():
    import click
    from click.testing import CliRunner

    @click.command()
    @click.option("--n", type=int)
    def command(n):
        click.echo(n + 1)

    assert CliRunner().invoke(command, ["--n", "2"]).output == "3\n"


@use("coredis")
def coredis():
    import coredis
    import trio

    hello = b"%3\r\n+proto\r\n:3\r\n+version\r\n+7.0.0\r\n+id\r\n:1\r\n"
    answers = {b"HELLO": hello, b"PING": b"+PONG\r\n"}

    async def serve(stream):
        waiting = b""
        while data := await stream.receive_some(4096):
            waiting += data
            while waiting:  # commands are arrays of bulk strings
                lines = waiting.split(b"\r\n")
                taken = 1 + 2 * int(lines[0][1:])
                if len(lines) <= taken:
                    break
                waiting = b"\r\n".join(lines[taken:])
                await stream.send_all(answers.get(lines[2], b"+OK\r\n"))

    async def main():
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            client = coredis.Redis(host="127.0.0.1", port=listeners[0].socket.getsockname()[1])
            async with client:
                assert await client.ping() in (b"PONG", True)
            nursery.cancel_scope.cancel()

    trio.run(main)


@use("cryptography")
def cryptography():
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    signer = ed25519.Ed25519PrivateKey.generate()
    signer.public_key().verify(signer.sign(b"text"), b"text")
    assert AESGCM(bytes(16)).decrypt(bytes(12), AESGCM(bytes(16)).encrypt(bytes(12), b"text", b""), b"") == b"text"

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lab")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("lab")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    # a handshake of Python's own TLS with it, in memory
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    path = f"/tmp/uses-{os.getpid()}.pem"
    with open(path, "wb") as file:
        file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none) + certificate.public_bytes(pem))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(path)
    asking = ssl.create_default_context(cafile=path)
    os.unlink(path)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up, server_hostname="lab")
    server = serving.wrap_bio(up, down, server_side=True)
    for _ in range(3):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    client.write(b"text")
    assert server.read() == b"text"


@use("deprecated")
def deprecated():
    import warnings

    from deprecated import deprecated

    @deprecated(reason="told")
    def old():
        return 3

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert old() == 3
    assert "told" in str(caught[0].message)


@use("exceptiongroup")
def exceptiongroup():
    from exceptiongroup import ExceptionGroup, catch

    found = []
    with catch({ValueError: found.append}):
        raise ExceptionGroup("several", [ValueError("one")])
    assert found


@use("fastapi")
def fastapi():
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/{number}")
    async def number(number: int) -> dict[str, int]:
        return {"next": number + 1}

    assert "/{number}" in app.openapi()["paths"]
    assert asked(app, "/4") == b'{"next":5}'


def asked(app, path):
    """What an ASGI application answers, without a server."""
    body = bytearray()

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        body.extend(message.get("body", b""))

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": []}
    import trio

    trio.run(app, scope, receive, send)
    return bytes(body)


@use("h11")
def h11():
    import h11

    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET /path HTTP/1.1\r\nHost: lab\r\n\r\n")
    assert server.next_event().target == b"/path"


@use("httpcore")
def httpcore():
    import httpcore

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    backend = httpcore.MockBackend([head, b"text"])
    with httpcore.ConnectionPool(network_backend=backend) as pool:
        assert pool.request("GET", "http://lab/").content == b"text"


@use("httpx")
def httpx():
    import httpx
    import trio

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"text"})

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app)) as client:
            return (await client.get("http://lab/")).text

    assert trio.run(main) == "text"


@use("idna")
def idna():
    import idna

    assert idna.encode("bücher.example") == b"xn--bcher-kva.example"


@use("markdown-it-py")
def markdown_it():
    from markdown_it import MarkdownIt

    assert MarkdownIt().render("*a*") == "<p><em>a</em></p>\n"


@use("maxminddb")
def maxminddb():
    import maxminddb
    import maxminddb.extension

    for mode in (maxminddb.MODE_MMAP_EXT, maxminddb.MODE_MMAP, maxminddb.MODE_FILE):
        with maxminddb.open_database(sys.argv[1], mode) as reader:
            assert reader.get("10.0.0.1")["autonomous_system_number"] == 64496, mode


@use("mdurl")
def mdurl():
    import mdurl

    assert mdurl.parse("http://lab/a?b").hostname == "lab"


@use("msgspec")
def msgspec():
    import msgspec

    class Point(msgspec.Struct):
        x: int
        y: float

    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(Point(1, 2.5)), type=Point) == Point(1, 2.5)


@use("opentelemetry-api")
def opentelemetry_api():
    from opentelemetry import trace

    with trace.get_tracer("lab").start_as_current_span("span") as span:
        assert not span.is_recording()


@use("outcome")
def outcome():
    import outcome

    assert outcome.capture(int, "3").unwrap() == 3


@use("packaging")
def packaging():
    from packaging.version import Version

    assert Version("7.0.10") > Version("7.0.9")


@use("prometheus-client")
def prometheus_client():
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("asked", "How often.", registry=registry).inc()
    assert b"asked_total 1.0" in prometheus_client.generate_latest(registry)


@use("pycparser")
def pycparser():
    from pycparser import c_parser

    assert c_parser.CParser().parse("int f(int a);").ext[0].name == "f"


@use("pydantic")
def pydantic():
    import pydantic

    class Model(pydantic.BaseModel):
        number: int = pydantic.Field(ge=1)
        words: dict[str, list[str]] = {}

    assert Model.model_validate_json('{"number": "3", "words": {"a": ["b"]}}').words == {"a": ["b"]}
    problems = 0
    try:
        Model(number=0)
    except pydantic.ValidationError as error:
        problems = error.error_count()
    assert problems == 1


@use("pydantic-core")
def pydantic_core():
    import pydantic_core

    schema = pydantic_core.core_schema.str_schema(pattern="^a+$")
    assert pydantic_core.SchemaValidator(schema).validate_python("aaa") == "aaa"
    assert pydantic_core.from_json(pydantic_core.to_json({"a": 1})) == {"a": 1}


@use("pydantic-settings")
def pydantic_settings():
    import pydantic_settings

    class Settings(pydantic_settings.BaseSettings):
        number: int = 3

    assert Settings().number == 3


@use("pygments")
def pygments():
    import pygments
    from pygments.formatters import NullFormatter
    from pygments.lexers import JsonLexer

    assert pygments.highlight('{"a": 1}', JsonLexer(), NullFormatter()).strip() == '{"a": 1}'


@use("pyjwt")
def pyjwt():
    import jwt
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    secret, signer = "s" * 32, ed25519.Ed25519PrivateKey.generate()
    rsa_key = rsa.generate_private_key(65537, 2048)
    for algorithm, private, public in (
        ("HS256", secret, secret),
        ("EdDSA", signer, signer.public_key()),
        ("RS256", rsa_key, rsa_key.public_key()),
    ):
        token = jwt.encode({"sub": "alice"}, private, algorithm=algorithm)
        assert jwt.decode(token, public, algorithms=[algorithm]) == {"sub": "alice"}


@use("python-dotenv")
def python_dotenv():
    import dotenv

    assert dotenv.dotenv_values(stream=io.StringIO("A=1")) == {"A": "1"}


@use("rich")
def rich():
    from rich.console import Console
    from rich.table import Table

    table = Table("a")
    table.add_row("[bold]b[/]")
    output = io.StringIO()
    Console(file=output, width=40).print(table)
    assert "b" in output.getvalue()


@use("sdnotify")
def sdnotify():
    import sdnotify

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind("")
        os.environ["NOTIFY_SOCKET"] = "@" + ours.getsockname()[1:].decode()
        notifier = sdnotify.SystemdNotifier()
        notifier.notify("STATUS=used")
        notifier.socket.close()
        assert ours.recv(64) == b"STATUS=used"


@use("sniffio")
def sniffio():
    import sniffio
    import trio

    async def main():
        return sniffio.current_async_library()

    assert (trio.run(main), asyncio.run(main())) == ("trio", "asyncio")


@use("sortedcontainers")
def sortedcontainers():
    from sortedcontainers import SortedDict

    assert list(SortedDict(b=1, a=2)) == ["a", "b"]


@use("starlette")
def starlette():
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def text(request):
        return PlainTextResponse("text")

    assert asked(Starlette(routes=[Route("/", text)]), "/") == b"text"


@use("structlog")
def structlog():
    import structlog

    output = io.StringIO()
    structlog.wrap_logger(structlog.PrintLogger(output), processors=[structlog.processors.JSONRenderer()]).info(
        "a", b=1
    )
    assert json.loads(output.getvalue()) == {"event": "a", "b": 1}


@use("tomlkit")
def tomlkit():
    import tomlkit

    document = tomlkit.parse("a = 1 # why\n")
    document["a"] = 2
    assert tomlkit.dumps(document) == "a = 2 # why\n"


@use("trio")
def trio():
    import trio

    async def main():
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, echo, listeners)
            port = listeners[0].socket.getsockname()[1]
            async with await trio.open_tcp_stream("localhost", port) as stream:
                await stream.send_all(b"text")
                said = await stream.receive_some()
            done = await trio.run_process(["/usr/bin/cat"], stdin=b"text", capture_stdout=True)
            in_thread = await trio.to_thread.run_sync(lambda: b"text")
            nursery.cancel_scope.cancel()
        return {said, done.stdout, in_thread}

    async def echo(stream):
        async with stream:
            await stream.send_all(await stream.receive_some())

    assert trio.run(main) == {b"text"}


@use("trio-websocket")
def trio_websocket():
    import trio
    from trio_websocket import open_websocket_url, serve_websocket

    async def echo(request):
        ws = await request.accept()
        await ws.send_message(await ws.get_message())

    async def main():
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, echo, "127.0.0.1", 0, None)
            async with open_websocket_url(f"ws://127.0.0.1:{server.port}/") as ws:
                await ws.send_message("text")
                said = await ws.get_message()
            nursery.cancel_scope.cancel()
        return said

    assert trio.run(main) == "text"


@use("typing-extensions")
def typing_extensions():
    from typing_extensions import TypedDict, is_typeddict

    assert is_typeddict(TypedDict("Words", {"a": str}))


@use("typing-inspection")
def typing_inspection():
    from typing_inspection.introspection import AnnotationSource, inspect_annotation

    assert inspect_annotation(int, annotation_source=AnnotationSource.ANY).type is int


@use("wrapt")
def wrapt():
    import wrapt

    @wrapt.decorator
    def doubled(wrapped, instance, args, kwargs):
        return 2 * wrapped(*args, **kwargs)

    assert doubled(lambda: 3)() == 6


@use("wsproto")
def wsproto():
    import wsproto
    from wsproto.events import Request

    client, server = (
        wsproto.WSConnection(kind) for kind in (wsproto.ConnectionType.CLIENT, wsproto.ConnectionType.SERVER)
    )
    server.receive_data(client.send(Request(host="lab", target="/")))
    assert next(server.events()).target == "/"


# --- what Python itself brings and netd uses ------------------------------------------------------------------------


@use("python: sqlite")
def sqlite():
    path = f"/var/lib/netd/uses-{os.getpid()}.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (?)", ("text",))
        db.commit()
        assert db.execute("SELECT a FROM t").fetchall() == [("text",)]
    os.unlink(path)


@use("python: zlib")
def compression():
    assert zlib.decompress(zlib.compress(b"text" * 99)) == b"text" * 99


@use("python: ctypes callbacks")
def ctypes_callbacks():
    import ctypes

    numbers = (ctypes.c_int * 3)(3, 1, 2)
    compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
    ctypes.CDLL(None).qsort(numbers, 3, 4, compare(lambda a, b: a[0] - b[0]))
    assert list(numbers) == [1, 2, 3]


def main():
    found = {}
    for name, function in USES.items():
        try:
            function()
            found[name] = "used"
        except Exception:  # noqa: BLE001  # whatever it is, it is what is asked for
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
