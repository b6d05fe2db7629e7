"""`netctl framed`: words that cannot be meant, peers of another kind, and what a shell offers instead."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
import trio

from netd.cli.data import plain_value
from netd.cli.dial import place_of, tags_of
from netd.cli.options import run_loop
from netd.errors import DaemonUnreachable
from tests.cli.conversation import completed, served
from tests.support.framedpeer import PATIENCE


@pytest.mark.parametrize(
    "misused",
    [
        ["send"],
        ["send", "h:1", "x", "--channel", "a", "--to", "b"],
        ["send", "h:1", "x", "--channel", "a", "--answer"],
        ["send", "h:1", "x", "--priority", "256"],
        ["send", "h:1", "x", "--tag", "novalue"],
        ["send", "h:1", "x", "--as", "hex"],
        ["listen", "h:1", "--recover", "start"],
        ["listen", "h:1", "a", "b", "--recover", "e:1"],
        ["bench", "h:1", "--window", "0"],
    ],
    ids=" ".join,
)
def test_misuse(netctl, misused):
    assert netctl("framed", *misused).exit_code == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["nonsense"], "cannot connect to 'nonsense': write \"host:9000\""),
        (["h:1", "--codec", "nosuch"], "cannot find codec 'nosuch': there are raw, text"),
        (["h:1", "--codec", "no.such:codec"], "cannot find codec 'no.such:codec'"),
        (["h:1", "--sign", "nosuch.pem"], "'nosuch.pem' does not exist"),
        (["h:1", "--ca", "nosuch.pem"], "'nosuch.pem' does not exist"),
        (["h:1", "--sign", __file__], "cannot read a private key"),
        (["h:1", "--ca", __file__], "cannot use the TLS files"),
        (["h:1", "--recover", "foo"], "cannot recover from 'foo': write EPOCH:OFFSET"),
    ],
    ids=["address", "codec", "codec's module", "key", "authorities", "no key", "no authorities", "position"],
)
def test_misuse_is_said_before_anything_is_connected(netctl, options, why):
    address, *more = options
    said = netctl("framed", "listen", address, "public:a", *more)
    assert (said.exit_code, said.stdout) == (2, "")
    assert why in " ".join(said.stderr.split())


@pytest.mark.parametrize("verb", [["listen", "public:a"], ["connect"], ["send", "x", "--channel", "public:a"]])
@pytest.mark.parametrize("more", [[], ["--codec", "json"]], ids=str)
def test_a_peer_that_does_not_speak_operations_is_told_at_once(verb, more):
    async def echo(peer):
        link = await peer.accept()
        await link.send(await link.receive())
        await link.ended()
        await peer.stop()  # whoever came back would be refused

    with served(echo) as address:
        command = [sys.executable, "-W", "error", "-m", "netd.cli.main", "framed", verb[0], address, *verb[1:], *more]
        said = subprocess.run(command, input="", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (said.returncode, said.stdout) == (69, "")
    assert said.stderr.startswith(f"netctl: cannot use operations with {address}: the peer does not speak them")
    assert said.stderr.endswith("is its mode operations?\n")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "wrong", [click.UsageError("write it so"), DaemonUnreachable("cannot")], ids=["misuse", "ours"]
)
def test_an_error_out_of_a_nursery_is_itself(wrong):
    async def fail() -> None:
        raise wrong

    async def main() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(fail)

    with pytest.raises(type(wrong)) as raised:
        run_loop(main)
    assert raised.value is wrong


def test_codecs_and_interfaces_are_completed(api):
    assert completed(api, "framed", "send", "h:1", "--codec", "") == ["raw", "text", "json", "cbor", "messagepack"]
    assert completed(api, "framed", "listen", "h:1", "--codec", "m") == ["messagepack"]
    assert completed(api, "framed", "bench", "--framing", "n") == ["none"]
    assert "lo" in completed(api, "framed", "connect", "--interface", "l")


def test_places_and_tags():
    assert place_of("192.0.2.1") == ("192.0.2.1", 0)
    assert place_of("192.0.2.1:99") == ("192.0.2.1", 99)
    assert place_of("2001:db8::1") == ("2001:db8::1", 0)
    assert place_of("[2001:db8::1]:99") == ("2001:db8::1", 99)
    assert place_of("[2001:db8::1]") == ("2001:db8::1", 0)
    assert place_of(":99") == (None, 99)
    assert tags_of(("a=b", "c=d=e")) == {"a": "b", "c": "d=e"}
    assert plain_value(b"ff", "cbor", "hex") == b"\xff"
