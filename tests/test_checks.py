"""What a start or a reload would refuse, told beforehand: by key, with file and line, and without binding anything."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

import netd
from netd.cli.root import root
from netd.client.framed import FramedClient
from netd.daemon import check
from netd.errors import ConfigError, PrepareFailed, RequestFailed
from netd.runtime.bus import Bus
from netd.runtime.health import Health
from netd.runtime.listeners import Listeners
from netd.section import Listen
from netd.settings import Loaded, Settings, load
from tests.services.trace.pems import FIRST_CERTIFICATE, FIRST_KEY
from tests.support.process import NetdProcess

ECHO = '[[framed.listen]]\naddress = "127.0.0.1:0"\nmode = "echo"\n'
"""Three lines."""
NOT_FRAMED = "[framed]\nenabled = false\n"


@pytest.fixture
def found(tmp_path):
    """What is found in a configuration: "LINE: key: message" for each problem."""

    def find(toml: str, **environ: str) -> list[str]:
        file = tmp_path / "netd.toml"
        file.write_text(toml)
        environ = {"NETD_STATE_DIRECTORY": str(tmp_path / "state"), **environ}
        return [str(problem).removeprefix(f"{file}:") for problem in check(load([file], environ=environ))]

    return find


@pytest.fixture
def pem(tmp_path):
    """A certificate and its key, as the keys of a [tls] table on one line."""
    (tmp_path / "a.crt").write_text(FIRST_CERTIFICATE)
    (tmp_path / "a.key").write_text(FIRST_KEY)
    return f'tls = {{ certificate = "{tmp_path}/a.crt", key = "{tmp_path}/a.key" }}\n'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# --- one by one -------------------------------------------------------------------------------------------------------


def test_the_defaults_are_fine():
    assert check(Loaded(Settings(), {}, [])) == []


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('codec = "klingon"\n', "8: framed.listen.1.codec: cannot use codec 'klingon': cannot find codec"),
        ('codec = "nomod:x"\n', "8: framed.listen.1.codec: cannot use codec 'nomod:x': No module named 'nomod'"),
        (
            'handshake = "required"\nverifier = "nomod:nofun"\n',
            "9: framed.listen.1.verifier: cannot use verifier 'nomod:nofun': No module named 'nomod'",
        ),
        (
            'handshake = "required"\nverifier = "netd.section:OVERRIDE_FILE"\n',
            "9: framed.listen.1.verifier: cannot use verifier 'netd.section:OVERRIDE_FILE': it is no function",
        ),
        (
            'handshake = "required"\nkeys = [\n"/nowhere/1",\n"/nowhere/2"]\n',
            "10: framed.listen.1.keys.0: cannot use the keys in '/nowhere/1': no such file or directory\n"
            "11: framed.listen.1.keys.1: cannot use the keys in '/nowhere/2': no such file or directory",
        ),
        (
            '[framed.listen.tls]\ncertificate = "/nowhere"\nkey = "/k"\n',
            "8: framed.listen.1.tls: cannot use certificate '/nowhere' with key '/k': no such file or directory",
        ),
        (
            'interface = "netd-none"\n',
            "8: framed.listen.1.interface: cannot listen on 127.0.0.1:0: there is no interface 'netd-none' (there are:",
        ),
        (
            '[trace]\nasn = "/nowhere"\n',
            "9: trace.asn: cannot open the AS database /nowhere: no such file or directory",
        ),
        (
            '[[hub.token]]\nname = "a"\nfile = "/nowhere"\n',
            "10: hub.token.0.file: cannot read the secret of token 'a' from '/nowhere': no such file or directory",
        ),
        (
            '[[hub.key]]\nname = "a"\nalgorithm = "RS256"\nfile = "/nowhere"\n',
            "11: hub.key.0.file: cannot read the key 'a' from '/nowhere': no such file or directory",
        ),
        (
            f'[[hub.key]]\nname = "a"\nalgorithm = "EdDSA"\nsecret = "{"x" * 40}"\n',
            "8: hub.key.0: cannot use the key 'a': it was not read or is no public key in PEM, which EdDSA takes",
        ),
        (
            '[anomaly]\nenabled = true\nadapter.use = "command"\nadapter.command = ["/nowhere"]\n',
            "11: anomaly.adapter.command: cannot start '/nowhere' for scores: it is not there; change",
        ),
        (
            '[anomaly]\nenabled = true\nadapter = { use = "python", target = "nomod:f" }\n',
            "10: anomaly.adapter.target: cannot import 'nomod:f'",
        ),
    ],
)
def test_what_cannot_be_had_is_told_with_its_line_and_key(found, toml, says):
    said = found("\n" + ECHO + ECHO + toml)
    assert len(said) == len(says.splitlines())
    for line, beginning in zip(said, says.splitlines(), strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize("service", ["framed", "trace"])
@pytest.mark.parametrize(
    ("broken", "says"),
    [("a.crt", "cannot use certificate"), ("a.key", "cannot use certificate"), ("a.ca", "cannot check clients")],
)
def test_a_broken_certificate_key_or_client_ca_is_told(found, pem, tmp_path, service, broken, says):
    pem = pem.replace(" }", f', client_ca = "{tmp_path}/a.ca" }}')
    (tmp_path / "a.ca").write_text(FIRST_CERTIFICATE)
    toml = f'{NOT_FRAMED if service == "trace" else ""}[[{service}.listen]]\naddress = "127.0.0.1:0"\n{pem}'
    assert found(toml) == []

    (tmp_path / broken).write_text("nothing of the kind")
    [said] = found(toml)
    line = len(toml.splitlines())
    assert said.startswith(f"{line}: {service}.listen.0.tls: {says}")


@pytest.mark.parametrize(
    ("secret", "says"), [("short\n", "fewer than"), ("", "it is empty"), ("x" * 100_000, "it is longer than")]
)
def test_a_token_file_that_cannot_be_used_is_told(found, tmp_path, secret, says):
    (tmp_path / "secret").write_text(secret)
    [said] = found(f'{NOT_FRAMED}[[hub.token]]\nname = "a"\nfile = "{tmp_path}/secret"\n')
    assert "hub.token.0" in said
    assert says in said


@pytest.mark.parametrize("kind", ["codec", "verifier"])
def test_code_of_the_users_that_breaks_is_a_problem_and_no_crash(found, tmp_path, monkeypatch, kind):
    (tmp_path / f"netd_broken_{kind}.py").write_text("raise ZeroDivisionError('of mine')")
    monkeypatch.syspath_prepend(tmp_path)
    [said] = found(f'{ECHO}handshake = "required"\n{kind} = "netd_broken_{kind}:it"\n')
    assert said.startswith(f"5: framed.listen.0.{kind}: cannot use {kind} 'netd_broken_{kind}:it': it raised Zero")


def test_everything_is_told_at_once_in_the_order_of_the_file(found):
    said = found(
        ECHO
        + 'codec = "klingon"\ninterface = "netd-none"\ntls = { certificate = "/c", key = "/k" }\n[trace]\nasn = "/a"\n'
    )
    assert [line.split(": ")[:2] for line in said] == [
        ["4", "framed.listen.0.codec"],
        ["5", "framed.listen.0.interface"],
        ["6", "framed.listen.0.tls"],
        ["8", "trace.asn"],
    ]


def test_what_is_not_enabled_is_not_looked_at(found):
    assert (
        found('[framed]\nenabled = false\n[[framed.listen]]\naddress = "127.0.0.1:0"\nmode = "echo"\ncodec = "k"') == []
    )


def test_a_problem_has_the_variable_it_was_set_in(found):
    listen = '[{"address": "127.0.0.1:0", "mode": "echo", "codec": "klingon"}]'
    [said] = found("", NETD_FRAMED__LISTEN=listen)
    assert said.startswith("NETD_FRAMED__LISTEN: framed.listen.0.codec: ")


def test_a_file_that_has_gone_since_it_was_read_costs_the_line_and_no_more(tmp_path):
    file = tmp_path / "netd.toml"
    file.write_text(ECHO + ECHO + 'codec = "klingon"\n')
    loaded = load([file], environ={"NETD_STATE_DIRECTORY": str(tmp_path)})
    file.unlink()
    [problem] = check(loaded)
    assert (problem.source, problem.path) == (f"{file}:1", "framed.listen.1.codec")  # where the list begins


# --- addresses wanted twice -------------------------------------------------------------------------------------------


def listeners(*services: str) -> str:
    return "".join(
        f'[[{service}]]\naddress = "{address}"\n' + 'mode = "echo"\n' * service.startswith("framed")
        for service, address in (one.split(" ") for one in services)
    )


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("framed.listen 127.0.0.1:9", "framed.listen 127.0.0.1:9", "5: framed.listen.1.address: cannot listen on 127."),
        (
            "framed.listen [::1]:9",
            "framed.listen [0:0::1]:9",
            "5: framed.listen.1.address: cannot listen on [0:0::1]:9",
        ),
        ("trace.listen 127.0.0.1:9", "framed.listen 127.0.0.1:9", "4: framed.listen.0.address: cannot listen on 127."),
        ("metrics.listen 127.0.0.1:9", "trace.listen 127.0.0.1:9", "4: trace.listen.0.address: cannot listen on 127."),
        (
            "framed.listen unix:/run/a",
            "framed.listen unix:/run//a",
            "5: framed.listen.1.address: cannot listen on unix",
        ),
    ],
)
def test_an_address_wanted_twice_is_told_by_the_later_listener(found, tmp_path, first, second, says):
    [said] = found(listeners(first, second), NETD_CONTROL__SOCKET="")
    assert said.startswith(says)
    assert " has it already (" in said
    assert f"netd.toml:{2})" in said


def test_the_control_socket_is_a_listener_too(found, tmp_path):
    [said] = found(listeners(f"framed.listen unix:{tmp_path}/c"), NETD_CONTROL__SOCKET=f"{tmp_path}/c")
    assert said.startswith("2: framed.listen.0.address: ")
    assert "control.socket has it already (NETD_CONTROL__SOCKET)" in said


def test_any_free_port_may_be_wanted_twice(found):
    assert found(listeners("framed.listen 127.0.0.1:0", "framed.listen 127.0.0.1:0", "trace.listen 127.0.0.1:0")) == []


def test_what_another_program_has_is_not_looked_at(found):
    """Nothing is bound: whoever checks may be the program that has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert found(listeners(f"framed.listen 127.0.0.1:{taken.getsockname()[1]}")) == []


PLACES = [("127.0.0.1", None), ("0.0.0.0", None), ("127.0.0.1", "lo"), ("0.0.0.0", "lo"), ("127.0.0.2", None)]


@pytest.mark.parametrize(("one", "other"), list(itertools.product(PLACES, PLACES)))
@pytest.mark.parametrize("services", [("trace", "framed"), ("framed", "framed")])
async def test_it_is_told_just_when_the_kernel_would_refuse(one, other, services):
    port = free_port()
    entries = [Listen(address=f"{host}:{port}", interface=interface) for host, interface in (one, other)]
    sections: dict[str, dict] = {service: {"listen": []} for service in services}
    for service, entry in zip(services, entries, strict=True):
        sections[service]["listen"].append(
            {"address": entry.address, "interface": entry.interface} | ({"mode": "echo"} if service == "framed" else {})
        )
    problems = check(Loaded(Settings.embedded(sections), {}, []))

    bound = Listeners(health=Health(Bus()))
    leases = {service: bound.lease(service) for service in services}
    refused = False
    try:
        for service, entry in zip(services, entries, strict=True):
            await leases[service].open(entry)
    except PrepareFailed:
        refused = True
    finally:
        bound.close()
    assert bool(problems) == refused


async def test_an_embedded_daemon_refuses_it_too():
    listen = [{"address": f"127.0.0.1:{free_port()}"}]
    with pytest.raises(ConfigError, match=r"^framed\.listen\.0\.address: cannot listen on .* twice: trace\.listen\.0"):
        async with netd.open({"trace": {"listen": listen}, "framed": {"listen": [{"mode": "echo", **listen[0]}]}}):
            pass


# --- as processes -----------------------------------------------------------------------------------------------------


def test_the_command_line_tells_it_and_starts_nothing(tmp_path):
    file = tmp_path / "netd.toml"
    file.write_text(
        f'state_directory = "{tmp_path}/state"\ncontrol.socket = "{tmp_path}/c"\n' + ECHO + 'codec = "klingon"\n'
    )
    command = [sys.executable, "-m", "netd", "--check", "--config", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr.startswith(f"netd: {file}:6: framed.listen.0.codec: cannot use codec 'klingon'")
    assert len(result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"netd.toml"}


async def test_a_start_refuses_an_address_wanted_twice_and_says_where(tmp_path):
    port = free_port()
    toml = listeners(f"trace.listen 127.0.0.1:{port}", f"framed.listen 127.0.0.1:{port}")
    netd = NetdProcess(tmp_path, toml)
    netd.start()
    assert await netd.exited() == 78
    netd.systemd.close()
    assert f"netd.toml:4: framed.listen.0.address: cannot listen on 127.0.0.1:{port} twice: trace." in netd.log()
    assert "another program" not in netd.log()


async def test_a_start_without_a_token_file_says_where_it_is_named(tmp_path):
    netd = NetdProcess(tmp_path, '[[hub.token]]\nname = "a"\nfile = "/nowhere"\n')
    netd.start()
    assert await netd.exited() == 78
    netd.systemd.close()
    assert "netd.toml:3: hub.token.0.file: cannot read the secret" in netd.log()


TRACE = '[[trace.listen]]\naddress = "127.0.0.1:0"\n'


async def test_a_reload_is_refused_with_all_of_it_at_once_and_nothing_changes(tmp_path):
    async with NetdProcess(tmp_path, TRACE + ECHO) as netd, netd.client() as control:
        before = await control.config()
        units = {unit["name"]: (unit["generation"], unit["addresses"]) for unit in await control.services()}
        address = units["framed"][1][0]
        async with FramedClient(address, codec="raw") as client:
            netd.config.write_text(
                TRACE
                + ECHO
                + 'codec = "klingon"\ninterface = "netd-none"\ntls = { certificate = "/c", key = "/k" }\n'
                + "[trace]\nmax_hops = 9\n"
                + '[[hub.token]]\nname = "a"\nfile = "/nowhere"\n'
            )
            with pytest.raises(RequestFailed) as refused:
                await control.reload(wait=20)
            assert (refused.value.kind, refused.value.path) == ("config", "framed.listen.0.codec")
            lines = str(refused.value).splitlines()
            assert [line.split(": ")[:2] for line in lines] == [
                [f"{netd.config}:6", "framed.listen.0.codec"],
                [f"{netd.config}:7", "framed.listen.0.interface"],
                [f"{netd.config}:8", "framed.listen.0.tls"],
                [f"{netd.config}:13", "hub.token.0.file"],
            ]
            # the check says word for word what the reload says
            answer = await control.config_check()
            assert not answer["ok"]
            assert [f"{one['source']}: {one['path']}: {one['message']}" for one in answer["problems"]] == lines

            with pytest.raises(RequestFailed, match="klingon"):  # by the one way to another configuration
                await control.config_patch({"trace.max_hops": 8}, wait=20)
            assert not (netd.state / "override.toml").exists()

            assert await control.config() == before
            assert {unit["name"]: (unit["generation"], unit["addresses"]) for unit in await control.services()} == units
            await client.send(b"still here")
            assert await client.receive() == b"still here"

        netd.signal(signal.SIGHUP)
        await netd.systemd.until(RELOADING="1")
        await netd.systemd.until(READY="1")
        assert "reload refused" in netd.log()
        assert "Traceback" not in netd.log()


async def test_a_reload_looks_at_certificates_though_no_setting_has_changed(tmp_path, pem):
    async with NetdProcess(tmp_path, NOT_FRAMED + TRACE + pem) as netd, netd.client() as control:
        assert (await control.reload(wait=20))["result"]["changes"] == []
        (tmp_path / "a.crt").write_text("nothing of the kind")
        with pytest.raises(RequestFailed, match=r"netd\.toml:5: trace\.listen\.0\.tls: cannot use certificate"):
            await control.reload(wait=20)
        assert not (await control.config_check())["ok"]
        (tmp_path / "a.crt").write_text(FIRST_CERTIFICATE)
        assert (await control.reload(wait=20))["result"]["changes"] == []


async def test_a_secret_that_was_rotated_is_in_force_and_what_netctl_says_is_true(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a secret of some length")
    token = f'[[hub.token]]\nname = "press"\nfile = "{secret}"\npublish = ["news:*"]\n'
    framed = '[[framed.listen]]\naddress = "127.0.0.1:0"\n[[hub.namespace]]\nname = "news"\npublish = "token"\n'
    async with NetdProcess(tmp_path, framed + token) as netd, netd.client() as control:
        [address] = next(unit["addresses"] for unit in await control.services() if unit["name"] == "framed")
        secret.write_text("another secret of some length")

        arguments = ["--socket", str(netd.socket), "reload"]
        said = await trio.to_thread.run_sync(lambda: CliRunner().invoke(root, arguments))

        assert (said.exit_code, said.stderr) == (0, "")
        assert said.stdout == "reloaded: no setting had changed; secrets, keys and certificates were read anew\n"
        async with FramedClient(address, token="another secret of some length") as client:
            assert await client.publish("news:a", "by the new secret") is not None


def test_an_interface_that_has_gone_refuses_only_what_touches_its_listener(tmp_path):
    def loaded(toml: str) -> Loaded:
        file = tmp_path / "netd.toml"
        file.write_text(toml)
        return load([file], environ={"NETD_STATE_DIRECTORY": str(tmp_path / "state")})

    there = '[[framed.listen]]\naddress = "127.0.0.1:9000"\ninterface = "netd-none"\n'
    running = loaded(there).settings
    assert check(loaded(there + "[framed]\nmax_connections = 7\n"), running) == []
    [problem] = check(loaded(there.replace("9000", "9001")), running)
    assert "there is no interface 'netd-none'" in problem.message
