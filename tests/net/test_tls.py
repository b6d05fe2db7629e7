"""TLS as bytes in and bytes out, and its handshake over a Trio stream."""

from __future__ import annotations

import datetime
import os
import ssl
from contextlib import suppress

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import PrepareFailed, ProtocolError
from netd.net.certificates import Certificate, load
from netd.net.tls import TlsLayer, handshake, reason_of
from netd.section import Tls
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY, SECOND_CERTIFICATE, SECOND_KEY


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    for name, text in {
        "cert": FIRST_CERTIFICATE,
        "key": FIRST_KEY,
        "cert2": SECOND_CERTIFICATE,
        "key2": SECOND_KEY,
        **authority(),
    }.items():
        (directory / name).write_text(text)
    return directory


def authority() -> dict[str, str]:
    """An authority, and a client's certificate by it."""
    now = datetime.datetime.now(datetime.UTC)
    made = {}
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "clients")])
    for name, key, subject in (
        ("ca", ca_key, ca_name),
        (
            "client",
            ec.generate_private_key(ec.SECP256R1()),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "alpha")]),
        ),
    ):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        made[name] = certificate.public_bytes(serialization.Encoding.PEM).decode()
        made[f"{name}.key"] = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    return made


def server_context(files, **more) -> ssl.SSLContext:
    return load(Tls(certificate=files / "cert", key=files / "key", **more), service="framed")


def trusting(certificate: str = FIRST_CERTIFICATE) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=certificate)


def transfer(client: TlsLayer, server: TlsLayer) -> tuple[bytes, bytes]:
    """Carry ciphertext to and fro until there is none; the plaintexts: what the client had, what the server had."""
    heard = [b"", b""]
    heard[0] += client.receive(b"")
    while client.pending or server.pending:
        heard[1] += server.receive(client.outgoing())
        heard[0] += client.receive(server.outgoing())
    return heard[0], heard[1]


def shaken(files) -> tuple[TlsLayer, TlsLayer]:
    client = TlsLayer(trusting(), server_side=False, server_hostname="127.0.0.1")
    server = TlsLayer(server_context(files))
    transfer(client, server)
    return client, server


def test_a_handshake_then_data_then_goodbye(files):
    client, server = shaken(files)
    assert client.handshaken
    assert server.handshaken
    assert server._object.version() == "TLSv1.3"
    client.encrypt([b"hello ", b"server"])
    server.encrypt([b"hello client"])
    assert transfer(client, server) == (b"hello client", b"hello server")
    client.goodbye()
    transfer(client, server)
    assert server.closed
    assert not client.closed
    server.goodbye()
    transfer(client, server)
    assert client.closed
    assert client.receive(b"anything") == b""
    assert client._incoming.pending == 0, "nothing piles up either"
    client.goodbye()
    assert client.peer_certificate() == ssl.PEM_cert_to_DER_cert(FIRST_CERTIFICATE)
    assert server.peer_certificate() is None


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=40_000), max_size=4), max_size=6), st.lists(st.integers(1, 20_000), min_size=1)
)
def test_whatever_is_said_arrives_however_it_is_torn(files, messages, cuts):
    client, server = shaken(files)
    heard, at = b"", 0
    for chunks in messages:
        client.encrypt(chunks) if any(chunks) else None
        data = client.outgoing()
        assert client.pending == 0
        while data:
            cut = cuts[at % len(cuts)]
            heard += server.receive(data[:cut])
            data, at = data[cut:], at + 1
    assert heard == b"".join(b"".join(chunks) for chunks in messages)


def test_small_chunks_share_records(files):
    client, _ = shaken(files)
    client.encrypt([b"x"] * 1000)
    assert len(client.outgoing()) < 1100


def test_large_data_leaves_no_large_buffer(files):
    client, server = shaken(files)
    data = os.urandom(1 << 20)
    client.encrypt([data])
    assert client.pending > 1 << 20
    assert server.receive(client.outgoing()) == data


def test_alpn(files):
    context = load(Tls(certificate=files / "cert", key=files / "key"), service="framed", alpn=["netd/1"])
    trust = trusting()
    trust.set_alpn_protocols(["h2", "netd/1"])
    client, server = TlsLayer(trust, server_side=False, server_hostname="127.0.0.1"), TlsLayer(context)
    transfer(client, server)
    assert client._object.selected_alpn_protocol() == server._object.selected_alpn_protocol() == "netd/1"


# --- what goes wrong ---


def failure(client: TlsLayer, server: TlsLayer) -> str:
    with pytest.raises(ssl.SSLError) as caught:
        transfer(client, server)
    return reason_of(caught.value)


def client_of(context: ssl.SSLContext) -> TlsLayer:
    return TlsLayer(context, server_side=False, server_hostname="127.0.0.1")


def test_reasons_are_words(files):
    assert failure(client_of(trusting(SECOND_CERTIFICATE)), TlsLayer(server_context(files))) == (
        "the peer's certificate cannot be verified: self-signed certificate"
    )
    server = TlsLayer(server_context(files))
    with pytest.raises(ssl.SSLError) as caught:
        server.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert reason_of(caught.value) == "the client speaks HTTP without TLS"
    old = trusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new = server_context(files)
    new.minimum_version = ssl.TLSVersion.TLSv1_3
    assert failure(client_of(old), TlsLayer(new)) == "the peer offers no TLS version that is allowed here"
    assert failure(client_of(trusting()), TlsLayer(server_context(files, client_ca=files / "ca"))) == (
        "the client shows no certificate"
    )


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=400))
def test_noise_is_an_ssl_error_or_nothing(files, noise):
    for layer in (TlsLayer(server_context(files)), shaken(files)[1]):
        with suppress(ssl.SSLError):
            assert layer.receive(noise) == b""
        assert layer.pending < 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("kind", [b"\x14", b"\x15", b"\x16", b"\x17"])
def test_a_record_without_content_is_refused_at_once(files, version, kind):
    context = trusting()
    context.maximum_version = version
    client, server = client_of(context), TlsLayer(server_context(files))
    transfer(client, server)
    with pytest.raises(ssl.SSLError):
        server.receive(kind + b"\x03\x03\x00\x00")
    assert server.pending < 200


# --- mutual TLS ---


def test_mutual_tls(files):
    context = server_context(files, client_ca=files / "ca")
    trust = trusting()
    trust.load_cert_chain(files / "client", files / "client.key")
    client, server = client_of(trust), TlsLayer(context)
    transfer(client, server)
    shown = server.peer_certificate()
    assert shown is not None
    assert x509.load_der_x509_certificate(shown).subject.rfc4514_string() == "CN=alpha"
    stranger = trusting()
    stranger.load_cert_chain(files / "cert2", files / "key2")
    assert failure(client_of(stranger), TlsLayer(context)).startswith("the peer's certificate cannot be verified")


def test_authorities_that_cannot_be_read_are_named(files):
    for name in ("nothing-here", "key"):
        with pytest.raises(PrepareFailed, match=f"cannot check clients against .*{name}") as caught:
            server_context(files, client_ca=files / name)
        assert caught.value.service == "framed"


class Health:
    def __init__(self) -> None:
        self.raised: dict[str, str] = {}

    def warn(self, code: str, message: str, *, advice: str | None = None) -> None:
        self.raised[code] = message

    def clear(self, code: str) -> None:
        self.raised.pop(code, None)


async def test_other_authorities_are_taken_without_a_reload(files, tmp_path):
    ca = tmp_path / "ca"
    ca.write_text(SECOND_CERTIFICATE)
    tls = Tls(certificate=files / "cert", key=files / "key", client_ca=ca)
    certificate, health = Certificate(tls, 3, service="framed"), Health()
    trust = trusting()
    trust.load_cert_chain(files / "client", files / "client.key")
    assert "verified" in failure(client_of(trust), TlsLayer(await certificate.current(health)))
    ca.write_text("no authority")
    assert "verified" in failure(client_of(trust), TlsLayer(await certificate.current(health)))
    assert list(health.raised) == ["certificate.3"]
    ca.write_text((files / "ca").read_text())
    transfer(client_of(trust), TlsLayer(await certificate.current(health)))
    assert not health.raised


# --- over a stream ---


async def test_a_handshake_over_a_stream(files):
    one, other = trio.testing.memory_stream_pair()
    client, server = client_of(trusting()), TlsLayer(server_context(files))
    got: list[bytes] = []

    async def serve() -> None:
        got.append(await handshake(server, one))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        assert await handshake(client, other) == b""
        client.encrypt([b"early"])
        await other.send_all(client.outgoing())
    if got == [b""]:
        got[0] = server.receive(bytes(await one.receive_some()))
    assert got == [b"early"]


async def test_plaintext_that_comes_with_the_handshake_is_not_lost(files):
    client, server = client_of(trusting()), TlsLayer(server_context(files))
    one, other = trio.testing.memory_stream_pair()
    client.receive(b"")
    server.receive(client.outgoing())
    client.receive(server.outgoing())
    client.encrypt([b"at once"])
    await other.send_all(client.outgoing())
    assert await handshake(server, one) == b"at once"


@pytest.mark.parametrize("torn", [False, True])
async def test_a_peer_that_leaves_during_the_handshake(files, torn):
    one, other = trio.testing.memory_stream_pair()
    if torn:
        await other.send_all(b"\x16\x03\x01\x02\x00\x01")
    await other.aclose()
    with pytest.raises(ProtocolError, match="cannot shake hands: the peer closed the connection"):
        await handshake(TlsLayer(server_context(files)), one)


async def test_who_speaks_no_tls_gets_an_alert_and_the_log_a_reason(files):
    one, other = trio.testing.memory_stream_pair()
    with pytest.raises(ProtocolError, match="cannot shake hands: the client speaks HTTP without TLS"):
        await handshake(TlsLayer(server_context(files)), one, b"GET / HTTP/1.0\r\n\r\n")
    client, server = client_of(trusting(SECOND_CERTIFICATE)), TlsLayer(server_context(files))
    async with trio.open_nursery() as nursery:

        async def refuse() -> None:
            with pytest.raises(ProtocolError, match="the peer does not trust our certificate"):
                await handshake(server, one)

        nursery.start_soon(refuse)
        with pytest.raises(ProtocolError, match="cannot be verified"):
            await handshake(client, other)
