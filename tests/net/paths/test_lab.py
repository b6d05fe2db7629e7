"""The lab itself: what other tests rely on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import Lab, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ROOT = Path(__file__).parents[2]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def echo(lab, version, **options) -> int:
    """Send a byte and return its TTL as the SYN had it."""
    server, client, syn = lab.connect(version, **options)
    with server, client:
        client.send(b"x")
        server.settimeout(5)
        assert server.recv(1) == b"x"
    return syn[8] if version == 4 else syn[7]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("delay", [0.0, 0.001])
def test_a_packet_passes_every_router(version, delay):
    with Lab(20, delay=delay) as lab:
        assert echo(lab, version) == 64 - 20
        assert len(lab.hops(version)) == len(set(lab.hops(version))) == 20


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("one_prefix", [True, False])
def test_the_client_speaks_for_many(version, one_prefix):
    with Lab(2) as lab:
        for number in (0, 199):
            assert echo(lab, version, bind=lab.crowd_address(number, version=version, one_prefix=one_prefix)) == 62


def test_delay_is_what_was_asked_for():
    with Lab(3, delay=0.005) as lab:
        server, client, _ = lab.connect()
        with server, client:
            from netd.net.sockdiag import tcp_info

            assert tcp_info(client).rtt_us >= 2 * 4 * 5000


def test_nothing_stays_behind_even_when_the_test_fails():
    before, processes = descriptors(), children()

    def fail() -> None:
        with Lab(3, delay=0.001, silent={2}) as lab:
            lab.server.popen(["sleep", "600"])
            assert len(children()) > len(processes)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert descriptors() == before
    assert children() == processes


def test_nothing_stays_behind_when_building_fails(monkeypatch):
    before, processes = descriptors(), children()
    monkeypatch.setattr("tests.support.lab._NAT", "not a table {")
    with pytest.raises(subprocess.CalledProcessError):
        Lab(3, delay=0.001, nat={2})
    assert descriptors() == before
    assert children() == processes


def test_a_process_runs_inside():
    with Lab(1) as lab:
        shown = lab.server.run([sys.executable, "-c", "print(open('/proc/net/fib_trie').read())"]).stdout
    assert "10.77.1.2" in shown


def test_it_works_in_an_unprivileged_user_namespace():
    """As the demo runs for whoever is not root."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.support.lab import Lab\n"
        "with Lab(3) as lab:\n"
        "    for version in (4, 6):\n"
        "        for sock in lab.connect(version)[:2]: sock.close()\n"
        "    print('reached')\n"
    )
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and "unshare failed" in done.stderr:
        pytest.skip(f"user namespaces are not permitted here: {done.stderr.strip()}")
    assert done.stdout == "reached\n", done.stderr


@pytest.mark.parametrize("wrong", [{"routers": 0}, {"loss": {1: 0.5}}])
def test_what_cannot_be_built_is_refused(wrong):
    with pytest.raises(ValueError, match="cannot"):
        Lab(**wrong)
