"""What clients and admins see of a netd that is restarted, killed, hung, or cannot start: counted under load.

Clients (tests/system/load.py) keep connecting to every listener while the daemon goes and comes back. No connection may
be refused as long as systemd keeps the listeners; what a restart cuts is counted and printed, since a daemon that dies
takes its connections with it. Times are printed, never asserted.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

LOAD = Path(__file__).with_name("load.py")
CONFIG = "/etc/netd/netd.toml.d/load.toml"
DROP_IN = "/etc/systemd/system/netd.service.d/test.conf"
PATIENCE = 60

TOML = """\
[control.limits]
max_connections = 1024

[metrics]
listen = [{address = "127.0.0.1:9100"}, {address = "[::1]:9100"}, {address = "127.0.0.1:9101"}]
limits = {max_connections = 1024}

[trace]
listen = [{address = "127.0.0.1:8080"}, {address = "[::1]:8080"}]
clients_per_address = 1000
address_burst = 100000
max_traces = 1000
probes_per_second = 100000

[broker]
listen = [{address = "127.0.0.1:3000"}, {address = "[::1]:3000"}]

[framed]
listen = [
    {address = "127.0.0.1:9000"},
    {address = "[::1]:9000"},
    {address = "127.0.0.1:9001", tls = {certificate = "/etc/netd/tls.crt", key = "/etc/netd/tls.key"}},
    {address = "unix:/run/netd/framed.sock"},
]

[[hub.namespace]]
name = "public"
subscribe = "anyone"
publish = "anyone"
history = "anyone"
history_size = 1000
"""
LISTENERS = 12
"""How many netd binds, the one for workers among them; the control socket is systemd's own."""


def targets(machine) -> dict[str, str]:
    """Every listener there is, for load.py. Unix sockets are reached from outside by the machine's root directory."""
    root = f"/proc/{machine.leader}/root"
    return {
        "framed": "framed:127.0.0.1:9000",
        "framed-ipv6": "framed:[::1]:9000",
        "framed-tls": "framed-tls:127.0.0.1:9001",
        "framed-unix": f"framed:{root}/run/netd/framed.sock",
        "broker": "broker:127.0.0.1:3000",
        "broker-http": "http:[::1]:3000/healthz",
        "trace": "websocket:127.0.0.1:8080",
        "trace-ipv6": "websocket:[::1]:8080",
        "metrics": "http:127.0.0.1:9100/metrics",
        "metrics-ipv6": "http:[::1]:9100/metrics",
        "metrics-second": "http:127.0.0.1:9101/metrics",
        "control": f"http:{root}/run/netd/control.sock:/v1/status",
    }


class Load:
    """load.py as it runs: `end` has it finish and gives its report."""

    def __init__(self, process, note):
        self._process = process
        self._note = note
        self.report = {}

    def end(self):
        output, errors = self._process.communicate("", timeout=PATIENCE)
        assert self._process.returncode == 0, errors
        self.report = json.loads(output)
        for name, counts in self.report.items():
            always = ("ok", "refused", "reset", "connections", "gaps", "lost")
            words = (
                f"{value:g} {key}" for key, value in counts.items() if key in always or (value and key != "errors")
            )
            self._note(name, ", ".join(words))

    def listeners(self):
        return {name: counts for name, counts in self.report.items() if "refused" in counts}

    def sum(self, outcome):
        return sum(counts[outcome] for counts in self.listeners().values())


@contextmanager
def load(machine, figure, what, wanted, *options):
    command = [sys.executable, LOAD, *options, *(f"{name}={target}" for name, target in wanted.items())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = machine.popen_in_network(*command, **pipes, text=True)
    try:
        if "--once" not in options:
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            assert ready, "cannot see every target answer"
            assert process.stdout.readline() == "loading\n", process.communicate()
        yield Load(process, lambda name, words: figure(f"{what}: {name}", words))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def once(machine, wanted):
    """One connection to each target, now."""
    command = [sys.executable, LOAD, "--once", *(f"{name}={target}" for name, target in wanted.items())]
    return json.loads(machine.in_network(*command).stdout)


def drop_in(machine, *lines, section="Service"):
    machine.write(DROP_IN, "\n".join([f"[{section}]", *lines, ""]))
    machine.run("systemctl", "daemon-reload")


def restarts(machine):
    return int(machine.show("netd", "NRestarts")["NRestarts"])


def stored(machine):
    return int(machine.show("netd", "NFileDescriptorStore")["NFileDescriptorStore"])


def is_ready_again(machine, before):
    """Whether another process than `before` serves."""
    state = machine.show("netd", "MainPID", "ActiveState")
    return state["ActiveState"] == "active" and int(state["MainPID"]) not in (0, before)


def kill(machine, signal="KILL"):
    machine.run("systemctl", "kill", "--kill-who=main", f"--signal={signal}", "netd")


def kill_and_wait(machine):
    before = machine.main_pid
    kill(machine)
    machine.wait_until(lambda: is_ready_again(machine, before), "netd serving again", timeout=PATIENCE)


@pytest.fixture(scope="module")
def loaded(machine, tmp_path_factory):
    """The machine with a configuration that has every kind of listener."""
    files = tmp_path_factory.mktemp("tls")
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"]
    where = ["-keyout", files / "tls.key", "-out", files / "tls.crt", "-days", "30"]
    subprocess.run(["openssl", "req", *kind, *where], check=True, capture_output=True)
    for name in ("tls.crt", "tls.key"):
        machine.copy(files / name, f"/etc/netd/{name}")
        machine.run("chown", "root:netd", f"/etc/netd/{name}")
        machine.run("chmod", "640", f"/etc/netd/{name}")
    return machine


@pytest.fixture
def netd(loaded):
    """netd as it is installed, serving that configuration, whatever the test before did to it."""
    as_it_should_be = loaded.exists(CONFIG) and loaded.read(CONFIG) == TOML and not loaded.exists(DROP_IN)
    if loaded.exists(DROP_IN):
        loaded.sh(f"rm {DROP_IN}; systemctl daemon-reload")
    # systemd counts restarts and starts of the tests before
    loaded.run("systemctl", "reset-failed", "netd.service", "netd.socket", check=False)
    loaded.write(CONFIG, TOML)
    if not (as_it_should_be and loaded.is_active() and stored(loaded) == LISTENERS):
        loaded.run("systemctl", "restart", "netd")
    assert restarts(loaded) == 0
    return loaded


def nobody_was_refused(load):
    """No listener refused, kept waiting for ever, or did what nobody has thought of; each one served."""
    for name, counts in load.listeners().items():
        assert counts["ok"] > 0, (name, counts)
        assert (counts["refused"], counts["timed_out"], counts["failed"]) == (0, 0, 0), (name, counts)


# --- under load ------------------------------------------------------------------------------------------------------


def test_a_restart_refuses_nobody(netd, figure):
    wanted = targets(netd) | {"session": "session:127.0.0.1:9000"}
    with load(netd, figure, "restart", wanted) as clients:
        before = netd.main_pid
        netd.run("systemctl", "restart", "netd")
        assert is_ready_again(netd, before)
        netd.netctl("status")
        clients.end()
    nobody_was_refused(clients)
    session = clients.report["session"]
    assert session["connections"] > 1
    assert (session["lost"], session["twice"], session["gaps"]) == (0, 0, 0), session
    assert session["in_order"]
    assert session["ended"]
    assert stored(netd) == LISTENERS


def test_restarts_that_overtake_each_other_refuse_nobody(netd, figure):
    """Each comes while the daemon before it still starts, or has just begun to serve."""
    with load(netd, figure, "five restarts", targets(netd)) as clients:
        before = netd.main_pid
        for pause in ("0.2", "0.4", "0.6", "0.8", "1"):
            netd.run("systemctl", "restart", "--no-block", "netd")
            netd.run("sleep", pause)
        netd.run("systemctl", "restart", "netd")
        assert is_ready_again(netd, before)
        clients.end()
    nobody_was_refused(clients)
    assert stored(netd) == LISTENERS


def test_a_killed_daemon_refuses_nobody(netd, figure):
    wanted = targets(netd) | {"session": "session:127.0.0.1:9000"}
    with load(netd, figure, "SIGKILL", wanted) as clients:
        kill_and_wait(netd)
        netd.netctl("status")
        clients.end()
    nobody_was_refused(clients)
    assert restarts(netd) == 1
    session = clients.report["session"]
    assert session["connections"] > 1
    # what the hub remembered died with it: the subscriber is told of it, and loses nothing silently
    assert session["gaps"] == 1
    assert session["twice"] == 0
    assert session["in_order"]
    assert session["ended"]
    assert stored(netd) == LISTENERS


def test_a_reload_disturbs_nobody(netd, figure):
    wanted = targets(netd) | {"session": "session:127.0.0.1:9000"}
    with load(netd, figure, "reload", wanted) as clients:
        before = netd.main_pid
        more = '{address = "127.0.0.1:9100"}, {address = "127.0.0.1:9102"}, '
        netd.write(CONFIG, TOML.replace('{address = "127.0.0.1:9100"}, ', more))
        netd.run("systemctl", "reload", "netd")
        netd.write(CONFIG, TOML.replace("history_size = 1000", "history_size = wrong"))
        assert netd.run("systemctl", "reload", "netd", check=False).returncode != 0
        netd.write(CONFIG, TOML)
        netd.run("systemctl", "reload", "netd")
        clients.end()
    nobody_was_refused(clients)
    assert (clients.sum("told"), clients.sum("reset")) == (0, 0), clients.report
    assert netd.main_pid == before
    session = clients.report["session"]
    assert session["connections"] == 1
    assert (session["lost"], session["twice"], session["gaps"]) == (0, 0, 0)
    assert stored(netd) == LISTENERS


def test_whoever_queues_is_served_by_the_next_life(netd, figure):
    drop_in(netd, "WatchdogSec=0")
    netd.run("systemctl", "restart", "netd")
    before = netd.main_pid
    kill(netd, "STOP")
    wanted = targets(netd)
    with load(netd, figure, "queued", wanted, "--once") as clients:

        def waiting():
            queues = netd.run("ss", "-Hnltx").stdout.splitlines()
            ours = (":9", ":8080", ":3000", "/run/netd")
            return sum(int(line.split()[2]) for line in queues if any(place in line for place in ours))

        netd.wait_until(lambda: waiting() >= len(wanted), "everybody in a queue")
        kill(netd)
        netd.wait_until(lambda: is_ready_again(netd, before), "netd serving again", timeout=PATIENCE)
        clients.end()
    assert clients.sum("ok") == len(wanted), clients.report


def test_a_stop_tells_everybody_and_a_start_serves_at_once(netd, figure):
    """A stop, unlike a restart, closes the listeners: who connects then is refused."""
    crowd = {"told-framed": "staying-framed:127.0.0.1:9000", "told-trace": "staying-websocket:127.0.0.1:8080"}
    # without its clients on the control socket, the first of which would start netd again
    wanted = {name: target for name, target in targets(netd).items() if name != "control"}
    with load(netd, figure, "stop and start", wanted | crowd) as clients:
        netd.run("systemctl", "stop", "netd")
        state = netd.show("netd", "Result", "ExecMainStatus", "ActiveState")
        assert state == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
        assert 'Status: "stopped"' in netd.run("systemctl", "status", "netd", check=False).stdout
        assert netd.run("systemctl", "is-active", "netd.socket").stdout == "active\n"
        # READY=1 is said when all of it serves: nobody is refused from then on
        ports = [("127.0.0.1", 9000), ("::1", 9000), ("127.0.0.1", 9001), ("127.0.0.1", 8080), ("::1", 9100)]
        netd.python(f"""
import socket, subprocess
try:
    socket.create_connection(("127.0.0.1", 9000))
except ConnectionRefusedError:
    pass
else:
    raise SystemExit("netd is stopped, and its port is open")
subprocess.run(["systemctl", "start", "netd"], check=True)
for address in {ports}:
    socket.create_connection(address).close()
with socket.socket(socket.AF_UNIX) as client:
    client.connect("/run/netd/framed.sock")
""")
        clients.end()
    for name in crowd:
        counts = clients.report[name]
        assert counts["errors"] == {"close 1001": counts["told"]}, counts
        assert counts["told"] == 50
    assert stored(netd) == LISTENERS


def test_a_command_starts_a_stopped_daemon(netd, figure):
    netd.run("systemctl", "stop", "netd")
    took = netd.python("""
import subprocess, time
start = time.monotonic()
subprocess.run(["netctl", "status"], check=True, stdout=subprocess.DEVNULL)
print(time.monotonic() - start)
""").stdout
    figure("netctl status of a stopped netd", float(took), "s")
    netd.wait_until(netd.is_active, "netd active")
    assert netd.netctl("status")["ready"]


def test_how_long_it_takes_to_serve(netd, figure):
    netd.reboot()
    netd.wait_until(netd.is_active, "netd active", timeout=PATIENCE)
    times = netd.show("netd", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    started, ready = (int(times[key]) / 1e6 for key in times if key.startswith(("ExecMain", "Active")))
    figure("boot: netd from its start to READY", ready - started, "s")
    figure("boot: the machine, as systemd-analyze says", netd.run("systemd-analyze", "time").stdout.splitlines()[0])
    assert netd.netctl("status")["ready"]


# --- the fd store ----------------------------------------------------------------------------------------------------


def test_what_was_taken_out_of_the_configuration_is_closed(netd):
    netd.write(CONFIG, TOML.replace(', {address = "127.0.0.1:9101"}', "").replace('{address = "[::1]:8080"}', ""))
    kill_and_wait(netd)
    assert stored(netd) == LISTENERS - 2
    wanted = {name: targets(netd)[name] for name in ("metrics", "metrics-second", "trace", "trace-ipv6")}
    report = once(netd, wanted)
    assert {name: counts["ok"] for name, counts in report.items()} == {
        "metrics": 1,
        "metrics-second": 0,
        "trace": 1,
        "trace-ipv6": 0,
    }
    assert report["metrics-second"]["refused"] == report["trace-ipv6"]["refused"] == 1


def test_an_address_that_changed_or_moved_is_no_obstacle(netd):
    """systemd still has the sockets of the life before: another service takes one over, a wider one replaces one."""
    moved = TOML.replace('{address = "127.0.0.1:9101"}', '{address = "127.0.0.1:8080"}')
    moved = moved.replace('listen = [{address = "127.0.0.1:8080"}, ', 'listen = [{address = "127.0.0.1:9101"}, ')
    moved = moved.replace('{address = "127.0.0.1:9000"}', '{address = "0.0.0.0:9000"}')
    netd.write(CONFIG, moved)
    kill_and_wait(netd)
    wanted = {
        "framed": "framed:127.0.0.1:9000",
        "trace": "websocket:127.0.0.1:9101",
        "metrics": "http:127.0.0.1:8080/metrics",
    }
    assert {name: counts["ok"] for name, counts in once(netd, wanted).items()} == dict.fromkeys(wanted, 1)
    assert restarts(netd) == 1
    assert stored(netd) == LISTENERS
    # and back, by a restart in order
    netd.write(CONFIG, TOML)
    netd.run("systemctl", "restart", "netd")
    wanted = targets(netd)
    assert {name: counts["ok"] for name, counts in once(netd, wanted).items()} == dict.fromkeys(wanted, 1)
    assert stored(netd) == LISTENERS


def test_more_listeners_than_systemd_keeps_are_said(netd):
    drop_in(netd, "FileDescriptorStoreMax=3")
    netd.run("systemctl", "stop", "netd")
    netd.run("systemctl", "start", "netd")
    assert stored(netd) == 3
    version = int(netd.run("systemctl", "--version").stdout.split()[1])
    if version >= 254:
        warning = next(one for one in netd.netctl("health")["warnings"] if one["code"] == "listeners.store")
        assert f"cannot keep {LISTENERS - 3} of {LISTENERS} listeners open over a restart" in warning["message"]
        assert "1 warning" in netd.run("systemctl", "status", "netd").stdout
    else:  # systemd tells services nothing of the limit yet; it complains itself
        assert "Cannot store more fds than FileDescriptorStoreMax=3" in netd.journal()


# --- hung ------------------------------------------------------------------------------------------------------------

HUNG = """
import time

async def verify(handshake):
    open("/run/netd/hung", "w").close()
    time.sleep(3600)  # a user's mistake: nothing else runs meanwhile
"""
HANG = '\n    {address = "127.0.0.1:9002", handshake = "required", verifier = "hung:verify"},\n]\n\n[[hub'
SAY_HELLO = """
import json, socket
payload = json.dumps({"type": "handshake", "version": "1", "tags": {}}).encode()
client = socket.create_connection(("127.0.0.1", 9002))
client.sendall(len(payload).to_bytes(4, "big") + payload)
"""


def with_a_verifier_that_hangs(machine, *lines):
    """netd with a verifier of a user's own, which blocks the event loop in the middle of Python code."""
    drop_in(machine, *lines)
    site = machine.sh("ls -d /usr/lib/netd/lib/python3.*/site-packages").stdout.strip()
    machine.write(f"{site}/hung.py", HUNG, mode=0o644)
    machine.run("rm", "-f", "/run/netd/hung")
    machine.write(CONFIG, TOML.replace("\n]\n\n[[hub", HANG))
    machine.run("systemctl", "restart", "netd")


def test_a_blocked_event_loop_is_aborted_and_the_journal_says_where(netd, figure):
    with_a_verifier_that_hangs(netd, "WatchdogSec=2s")
    before = netd.main_pid
    wanted = {"framed": "framed:127.0.0.1:9000", "control": targets(netd)["control"]}
    with load(netd, figure, "watchdog", wanted, "--rate", "5") as clients:
        netd.python(SAY_HELLO)
        netd.wait_until(lambda: is_ready_again(netd, before), "netd serving again", timeout=PATIENCE)
        clients.end()
    nobody_was_refused(clients)
    assert restarts(netd) == 1
    journal = netd.journal()
    assert "Watchdog timeout (limit 2s)!" in journal
    assert "Killing process" in journal
    assert "with signal SIGABRT" in journal
    assert "Failed with result 'watchdog'" in journal
    stacks = journal.partition("Fatal Python error: Aborted")[2]
    assert 'site-packages/hung.py", line 6 in verify' in stacks


def test_a_stopped_process_is_aborted_and_the_status_says_why(netd):
    drop_in(netd, "WatchdogSec=2s", "Restart=no")
    netd.run("systemctl", "restart", "netd")
    kill(netd, "STOP")
    netd.wait_until(
        lambda: netd.show("netd", "ActiveState")["ActiveState"] == "failed", "it given up", timeout=PATIENCE
    )
    status = netd.run("systemctl", "status", "netd", check=False).stdout
    assert "failed (Result: watchdog)" in status
    assert netd.show("netd", "ExecMainStatus") == {"ExecMainStatus": "6"}, "SIGABRT"
    netd.run("systemctl", "start", "netd")
    assert netd.netctl("status")["ready"]


def test_a_daemon_that_does_not_end_is_aborted_too(netd):
    with_a_verifier_that_hangs(netd, "WatchdogSec=0", "TimeoutStopSec=1s", "Restart=no")
    netd.python(SAY_HELLO)
    netd.wait_until(lambda: netd.exists("/run/netd/hung"), "the loop hanging")
    netd.run("systemctl", "stop", "netd")
    assert 'hung.py", line 6 in verify' in netd.journal().partition("Fatal Python error: Aborted")[2]
    assert netd.show("netd", "Result") == {"Result": "timeout"}


# --- cannot start ----------------------------------------------------------------------------------------------------


def given_up(machine):
    state = machine.show("netd", "ActiveState", "SubState")
    return state == {"ActiveState": "failed", "SubState": "failed"}


def test_a_configuration_that_cannot_be_used_is_not_tried_again(netd):
    broken = TOML.replace("max_traces = 1000", "max_traces = 0\nmax_trace = 1")
    netd.write(CONFIG, broken)
    line = broken.splitlines().index("max_traces = 0") + 1
    assert netd.run("systemctl", "restart", "netd", check=False).returncode != 0
    assert given_up(netd)
    state = netd.show("netd", "NRestarts", "ExecMainStatus", "Result", "StatusText")
    why = f"{CONFIG}:{line}: trace.max_traces: "
    assert state.pop("StatusText").startswith(why)
    assert state == {"NRestarts": "0", "ExecMainStatus": "78", "Result": "exit-code"}
    status = netd.run("systemctl", "status", "--full", "netd", check=False).stdout
    for seen in (status, netd.journal()):
        assert f"netd: {why}" in seen
        assert f"netd: {CONFIG}:{line + 1}: trace.max_trace: " in seen
    # whoever asks by the control socket starts it again, once, and is told
    asked = netd.run("netctl", "status", check=False, timeout=PATIENCE)
    assert asked.returncode != 0
    assert f"cannot start netd: {why}" in asked.stderr
    netd.wait_until(lambda: given_up(netd), "it given up", timeout=PATIENCE)
    assert netd.journal().count(f"netd: {why}") == 2
    assert netd.is_active("netd.socket")
    netd.write(CONFIG, TOML)
    netd.run("systemctl", "start", "netd")
    assert netd.netctl("status")["ready"]


def test_a_daemon_that_dies_at_once_is_given_up_and_says_why(netd):
    limit = netd.show("netd", "StartLimitBurst", "StartLimitIntervalUSec", "RestartUSec")
    assert limit == {"StartLimitBurst": "10", "StartLimitIntervalUSec": "1min", "RestartUSec": "500ms"}
    drop_in(netd, "StartLimitBurst=4", section="Unit")  # the same, sooner
    netd.run("systemctl", "stop", "netd")
    rival = 'import socket, time\ns = socket.create_server(("127.0.0.1", 9101))\ntime.sleep(600)\n'
    netd.run("systemd-run", "--unit=rival", "/usr/bin/python3", "-c", rival)
    netd.wait_until(lambda: ":9101" in netd.run("ss", "-ltn").stdout, "the rival listening")
    assert netd.run("systemctl", "start", "netd", check=False).returncode != 0
    netd.wait_until(lambda: given_up(netd), "it given up", timeout=PATIENCE)
    assert restarts(netd) > 1
    status = netd.run("systemctl", "status", "--full", "netd", check=False).stdout
    why = "cannot listen on 127.0.0.1:9101: another program listens there already (ss -ltnp shows which)"
    assert f'Status: "{why}"' in status
    journal = netd.journal()
    assert journal.count(f"netd: {why}") > 1
    assert "Start request repeated too quickly" in journal
    netd.run("systemctl", "stop", "rival")
    netd.run("systemctl", "reset-failed", "netd")
    netd.run("systemctl", "start", "netd")
    assert netd.netctl("status")["ready"]
