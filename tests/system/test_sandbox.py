"""The sandbox, tried from inside it: what netd.service takes away is gone, what the daemon needs is there.

Attempts (attempts.py) are made by a twin of the unit (twin.py), which has the daemon's confinement and another
program; that it has is a test of its own. Each is compared with others, or a refusal would prove nothing:

    free      a unit with no confinement, as root: what the machine itself refuses
    marked    the twin, whose system call filter says EUCLEAN: what is refused by the filter, not for want of a right
    as root   the twin as root, with rights that override permissions: what is refused by mounts

Left out, because the machine is a container, in which nobody may: writing to sysfs, /dev/kmsg, families of sockets
that this kernel does not have, TasksMax= and OOMScoreAdjust=.

Why one file of this length: each module boots and installs a machine of its own, and the drop-ins and the credentials
are tried on the sandbox that the tests above have proved, against the same attempts and on the same traced path.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.mmdb import mmdb
from tests.system.attempts import ATTEMPTS, FAMILIES, NAMESPACES
from tests.system.rootfs import ROOT
from tests.system.twin import PYTHON, Twin, confinement

NET_BIND_SERVICE, NET_RAW, DAC_READ_SEARCH, SYS_PTRACE = 1 << 10, 1 << 13, 1 << 2, 1 << 19
SETTINGS = "/etc/netd/netd.toml.d/50-sandbox.toml"
CREDENTIALS = "/etc/netd/credentials"
DROP_INS = "/etc/systemd/system/netd.service.d"
RIGHTS = "CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER CAP_MKNOD CAP_SYS_ADMIN CAP_NET_RAW"

# what there is to be found by who looks for it
PREPARE = """
mkdir -p /home/lab /srv/lab /mnt/lab /boot/lab
touch /tmp/of-another
cp /usr/bin/id /usr/local/bin/lab-suid
chmod 4755 /usr/local/bin/lab-suid
mknod -m 666 /dev/lab-device c 10 200
"""


@pytest.fixture(scope="module")
def prepared(machine):
    machine.sh(PREPARE)
    return machine


@pytest.fixture(scope="module")
def netd(prepared):
    """What came of each attempt, made as the daemon."""
    return Twin(prepared).run("attempts.py")


@pytest.fixture(scope="module")
def free(prepared):
    prepared.write("/etc/systemd/system/free.service", "[Service]\nType=oneshot\n")
    prepared.run("systemctl", "daemon-reload")
    return Twin(prepared, "free.service").run("attempts.py")


@pytest.fixture(scope="module")
def marked(prepared):
    return Twin(prepared).run("attempts.py", extra=("SystemCallErrorNumber=EUCLEAN",))


@pytest.fixture(scope="module")
def as_root(prepared):
    # not the directory of the sockets: systemd would give it to root with all that is in it
    extra = ("User=root", "Group=root", f"CapabilityBoundingSet={RIGHTS}", "RuntimeDirectory=")
    return Twin(prepared).run("attempts.py", extra=extra)


# --- the same confinement --------------------------------------------------------------------------------------------


def test_systemd_rates_the_installed_unit(machine, figure):
    # systemd's own rating, 0 (best) to 10, times ten
    result = machine.run("systemd-analyze", "security", "--no-pager", "--threshold=18", "netd.service", check=False)
    score = re.search(r"exposure level for netd.service: ([0-9.]+)", result.stdout)[1]
    figure("systemd-analyze security", float(score))
    assert result.returncode == 0, result.stdout[-300:]


def test_systemd_understands_the_installed_units(machine):
    # a key that this release of systemd does not know is only logged as the unit is loaded
    said = machine.run("systemd-analyze", "verify", "--man=no", "netd.service", "netd.socket", check=False)
    assert [line for line in said.stderr.splitlines() if "netd" in line] == []


def test_a_twin_is_confined_as_the_daemon_is(machine):
    assert Twin(machine).difference() == {}


def test_a_twin_of_another_confinement_is_found_out(machine):
    twin = Twin(machine)
    twin.text = lambda program, *extra: Twin.text(twin, program, *extra, "ProtectHome=no", "UMask=022")
    assert {"Umask", "mount /home", "mount /root"} <= twin.difference().keys()


def test_the_daemon_has_one_right_and_no_way_to_others(machine):
    assert rights(machine) == {
        "CapInh": NET_RAW,
        "CapPrm": NET_RAW,
        "CapEff": NET_RAW,
        "CapBnd": NET_RAW,
        "CapAmb": NET_RAW,
    }
    status = status_of(machine)
    assert (status["NoNewPrivs"], status["Seccomp"], status["Umask"]) == ("1", "2", "0077")
    account = machine.run("id", "-u", "netd").stdout.strip()
    assert status["Uid"].split() == [account] * 4
    assert account != "0"


def test_the_daemon_has_the_limits_of_the_unit(machine):
    init, netd = (limits_of(machine, pid) for pid in (1, machine.main_pid))
    files = str(min(65536, int(init["Max open files"][1])))  # what the machine itself may have is this host's matter
    assert netd["Max open files"] == (files, files)
    assert netd["Max core file size"] == ("0", "0")
    directory, *files = machine.sh("stat -c '%a %U' /var/lib/netd /var/lib/netd/*").stdout.splitlines()
    assert (directory, set(files)) == ("700 netd", {"600 netd"})


def limits_of(machine, pid: int) -> dict[str, tuple[str, str]]:
    """Soft and hard limits by name."""
    return {
        line[:26].strip(): tuple(line[26:].split()[:2]) for line in machine.read(f"/proc/{pid}/limits").splitlines()[1:]
    }


def test_shared_memory_goes_with_the_daemon(machine):
    machine.run("setpriv", "--reuid=netd", "--clear-groups", "touch", "/dev/shm/of-netd")
    machine.run("systemctl", "stop", "netd.service", "netd.socket")
    assert not machine.exists("/dev/shm/of-netd")
    machine.run("systemctl", "start", "netd")


def status_of(machine) -> dict[str, str]:
    lines = machine.read(f"/proc/{machine.main_pid}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def rights(machine) -> dict[str, int]:
    return {key: int(value, 16) for key, value in status_of(machine).items() if key.startswith("Cap")}


# --- refused ---------------------------------------------------------------------------------------------------------

FILTERED = """
    trace a child; read memory of a process; write memory of a process; compare with a process;
    take a descriptor of a process; lock memory; lock all memory; handle page faults; shared memory; semaphores;
    become root; become root's group; join groups; run in real time; choose processors; go before others; keep a key;
    use keys; io_uring; asynchronous I/O; load a BPF program; watch performance; move pages into a pipe;
    name a file by handle; open a file by handle; watch a file system; mount; unmount; change the root; swap the root;
    load a module; unload a module; boot another kernel; reboot; set the clock; set the time of day; adjust the clock;
    set the host's name; set the domain's name; read the kernel's log; account for processes; swap; stop swapping;
    set quotas; hang up a terminal
"""
FILTERED = [name.strip() for name in FILTERED.replace("\n", " ").split(";")]
"""System calls that the filter refuses, whoever asks."""

REFUSED = {
    "write to /": "EROFS",
    "write to /usr": "EROFS",
    "write to /usr/lib/netd": "EROFS",
    "write to /etc": "EROFS",
    "write to /etc/netd": "EROFS",
    "write to /var": "EROFS",
    "write to /run": "EROFS",
    "write to a sysctl": "ENOENT",  # it is not there: ProcSubset=
    "read a sysctl": "ENOENT",
    "read the kernel's symbols": "ENOENT",
    "write to a control group": "EACCES",
    "read a home": "EACCES",
    "read root's home": "EACCES",
    "look into /srv": "EACCES",
    "look into /mnt": "EACCES",
    "look into /boot": "EACCES",
    "reach D-Bus": "EACCES",
    "read the admin's credentials": "EACCES",
    "read /etc/shadow": "EACCES",
    "run a program from the state directory": "EACCES",
    "run a program from /tmp": "EACCES",
    "run a program from /dev/shm": "EACCES",
    "map a file of the state directory as code": "EPERM",
    "make a set-user-ID program": "EPERM",
    "give a file away": "EPERM",
    "give a file to a strange group": "EPERM",
    "make a device": "EPERM",
    "open a device that a drop-in shows": "ENOENT",
    "see processes of others": "none",
    "name of process 1": "ENOENT",
    "files of process 1": "ENOENT",
    "memory of process 1": "ENOENT",
    # by a filter (systemd 252), or by the kernel itself (prctl PR_SET_MDWE, 257)
    "memory to write and execute": "EPERM EACCES",
    "memory written, then executed": "EPERM EACCES",
    "another personality": "EPERM",
    "join a namespace": "EPERM",
    "port 443": "EACCES",
    **{f"{name} namespace": "EPERM" for name in NAMESPACES},
    **dict.fromkeys(FILTERED, "EPERM"),
}


@pytest.mark.parametrize("attempt", REFUSED)
def test_refused(netd, free, marked, attempt):
    assert netd[attempt] in REFUSED[attempt].split()
    # not by the machine, nor for another reason
    assert free[attempt] != netd[attempt] or marked[attempt] == "EUCLEAN", f"a free unit has {free[attempt]}"


@pytest.mark.parametrize("attempt", FILTERED)
def test_refused_by_the_filter(marked, attempt):
    assert marked[attempt] == "EUCLEAN"


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        *((attempt, "EROFS") for attempt in REFUSED if REFUSED[attempt] == "EROFS"),
        ("write to a control group", "EROFS"),
        ("run a program from the state directory", "EACCES"),
        ("run a program from /tmp", "EACCES"),
        ("map a file of the state directory as code", "EPERM"),
        ("make a set-user-ID program", "EPERM"),
        ("make a device", "EPERM"),
        ("memory to write and execute", "EPERM EACCES"),
        ("write to a sysctl", "ENOENT"),
        ("read root's home", "nothing"),  # an empty directory of systemd's lies over it
        ("look into /srv", "nothing"),
        ("reach D-Bus", "nothing"),
    ],
)
def test_refused_to_root_as_well(as_root, attempt, outcome):
    assert as_root[attempt] in outcome.split()


def test_32_bit_programs_end_at_their_first_system_call(netd, free):
    if free["run a 32-bit program"] != "allowed":
        pytest.skip(f"32-bit programs are {free['run a 32-bit program']} here")
    assert netd["run a 32-bit program"] == "killed by SIGSYS"


def test_a_set_user_id_program_gives_nothing(machine, netd, free):
    assert free["identity a set-user-ID program gives"] == "0"
    assert netd["identity a set-user-ID program gives"] == machine.run("id", "-u", "netd").stdout.strip()


def test_families_of_sockets_that_are_not_needed(netd, free):
    names = [f"socket of family {name}" for name in FAMILIES]
    assert {netd[name] for name in names} == {"EAFNOSUPPORT"}
    known = [name for name in names if free[name] != "EAFNOSUPPORT"]
    if not known:
        pytest.skip("this kernel has none of these families")


def test_files_of_others_in_tmp_are_not_seen(netd, free):
    assert "of-another" in free["see files in /tmp"].split()
    assert "of-another" not in netd["see files in /tmp"].split()


HARMLESS = """
    char core fd full hugepages log mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero
"""


def test_only_devices_that_are_none_are_there(netd, free):
    harmless = set(HARMLESS.split())
    assert set(netd["see devices"].split()) <= harmless
    assert "lab-device" in free["see devices"].split()


def test_a_device_cannot_be_opened_even_where_it_is_seen(prepared, free):
    # DevicePolicy=, which is a BPF program on the control group
    assert free["open a device that a drop-in shows"] not in (
        "EPERM",
        "ENOENT",
    )  # a network tunnel, with nothing to read
    assert (
        Twin(prepared).run("attempts.py", extra=("PrivateDevices=no",))["open a device that a drop-in shows"] == "EPERM"
    )


# --- allowed ---------------------------------------------------------------------------------------------------------

ALLOWED = """
    write to the state directory; change a file's group; write to /run/netd; write to /tmp; run an installed program;
    sealed memory; open /dev/null; Unix socket; IPv4 socket; IPv6 socket; netlink socket; raw IPv4 socket;
    raw ICMPv6 socket; packet socket; port 8443
"""
ALLOWED = [name.strip() for name in ALLOWED.replace("\n", " ").split(";")]


@pytest.mark.parametrize("attempt", ALLOWED)
def test_allowed(netd, attempt):
    assert netd[attempt] == "allowed"


def test_every_attempt_is_judged():
    others = {
        "write to sysfs",
        "open /dev/kmsg",
        "run a 32-bit program",
        "identity a set-user-ID program gives",
        "see files in /tmp",
        "see devices",
        *(f"socket of family {name}" for name in FAMILIES),
    }
    assert REFUSED.keys() | set(ALLOWED) | others == ATTEMPTS.keys()


def test_every_library_works(machine):
    locked = re.findall(r"^([a-z0-9._-]+)==", (ROOT / "packaging" / "requirements.txt").read_text(), re.MULTILINE)
    machine.sh("grep -qs localhost /etc/hosts || echo 127.0.0.1 localhost >> /etc/hosts")  # nothing else here resolves
    database = mmdb({"autonomous_system_number": 64496})
    machine.python(f"import os; open('/usr/local/lib/lab.mmdb', 'wb').write(bytes.fromhex('{database.hex()}'))")
    found = Twin(machine).run("uses.py", "/usr/local/lib/lab.mmdb")
    failed = "\n".join(f"{name}: {said}" for name, said in found.items() if said != "used")
    assert not failed, failed
    assert set(locked) <= found.keys(), "uses.py knows nothing to do with what is missing"


def test_long_entries_reach_the_journal(machine):
    # as a sealed memory file: a datagram would not hold it
    machine.write("/usr/local/lib/lab/log.py", LOG)
    twin = Twin(machine)
    machine.write("/run/systemd/system/log.service", twin.text(f"{PYTHON} -IB /usr/local/lib/lab/log.py"))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "log.service")
    entries = machine.journal_fields(None, "LAB=long")
    assert [len(entry["MESSAGE"]) for entry in entries] == [1_000_000]


LOG = """
from netd.journal import Journal
assert Journal().send({"MESSAGE": "x" * 1_000_000, "LAB": "long"})
"""

SCORES = """#!/usr/bin/python3
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"scores": dict.fromkeys(asked["sessions"], 0.5)}), flush=True)
"""


def test_a_program_that_settings_name_runs(machine):
    machine.write("/usr/local/bin/lab-scores", SCORES, mode=0o755)
    adapter = 'use = "command"\ncommand = ["/usr/local/bin/lab-scores"]\nfallback = "none"'
    with configured(machine, f"[anomaly]\nenabled = true\ninterval = 0.2\n[anomaly.adapter]\n{adapter}\n"):
        machine.wait_until(
            lambda: machine.netctl("anomaly")["scoring"] == "command", "the program that scores", timeout=20
        )


# --- tracing ---------------------------------------------------------------------------------------------------------

ROUTERS = ["10.90.0.2", "10.91.0.2"]
HERE, THERE = "10.90.0.1", "10.92.0.2"

# this machine - r2 - r1 - client
PATH = """
for name in r2 r1 client; do ip netns add $name; done
join() { # name and namespace (or 1) of the left end, of the right end, and the network
    ip link add $1-$2 type veth peer name $2-$1
    [ $1 = here ] || ip link set $1-$2 netns $1
    ip link set $2-$1 netns $2
    in_ $1 ip address add $3.1/24 dev $1-$2
    in_ $2 ip address add $3.2/24 dev $2-$1
    in_ $1 ip link set $1-$2 up
    in_ $2 ip link set $2-$1 up
}
in_() { if [ $1 = here ]; then shift; "$@"; else ip netns exec "$@"; fi; }
join here r2 10.90.0
join r2 r1 10.91.0
join r1 client 10.92.0
for name in r2 r1; do ip netns exec $name sysctl -qw net.ipv4.ip_forward=1; done
ip route add 10.91.0.0/24 via 10.90.0.2
ip route add 10.92.0.0/24 via 10.90.0.2
ip -n r2 route add 10.92.0.0/24 via 10.91.0.2
ip -n r1 route add 10.90.0.0/24 via 10.91.0.1
ip -n client route add default via 10.92.0.1
"""

CLIENT = f"""
import json, trio
from trio_websocket import open_websocket_url

async def main():
    with trio.fail_after(30):
        async with open_websocket_url("ws://{HERE}:8080/") as ws:
            told = []
            while not told or told[-1]["type"] != "clientDone":
                told.append(json.loads(await ws.get_message()))
    print(json.dumps(told[-1]))

trio.run(main)
"""

TRACING = '[trace]\nreveal_private = true\n[[trace.listen]]\naddress = "0.0.0.0:8080"\n'


@pytest.fixture(scope="module")
def path(machine):
    """Two routers between this machine and a client."""
    machine.sh(PATH)
    return machine


def trace(machine) -> dict:
    """Connect as the client; the end of what it was told."""
    command = ["ip", "netns", "exec", "client", PYTHON, "-IB", "-"]
    return json.loads(machine.run(*command, input=CLIENT).stdout)


def test_a_client_is_traced_inside_its_own_connection(path):
    with configured(path, TRACING):
        done = trace(path)
        codes = [warning["code"] for warning in path.netctl("health")["warnings"]]
        opened = {
            kind: path.sh(f"ss -Hanp --{kind}").stdout.count(f"pid={path.main_pid},") for kind in ("raw", "packet")
        }
        assert rights(path)["CapEff"] == NET_RAW
    assert (done["method"], done["reason"], done["dest_ttl"]) == ("tcp", "destination", 3)
    assert [hop["ip"] for hop in done["hops"]] == ROUTERS
    assert codes == []
    # to send, for what routers say, and for copies of what clients say; of each IP version
    assert opened == {"raw": 4, "packet": 2}


# --- drop-ins --------------------------------------------------------------------------------------------------------


@contextmanager
def configured(machine, toml: str, verb: str = "reload"):
    """The daemon with these settings; as it was before, afterwards."""
    machine.write(SETTINGS, toml)
    try:
        machine.run("systemctl", verb, "netd")
        yield
    finally:
        machine.run("rm", SETTINGS)
        machine.run("systemctl", "reload", "netd")


@contextmanager
def linked(machine, *names: str):
    """Drop-ins of the package in force for what starts next, in the order given."""
    machine.run("mkdir", "-p", DROP_INS)
    for number, name in enumerate(names):
        machine.run("ln", "-s", f"/usr/share/netd/drop-ins/{name}.conf", f"{DROP_INS}/{number}-{name}.conf")
    try:
        machine.run("systemctl", "daemon-reload")
        yield
    finally:
        machine.run("rm", "-r", DROP_INS)
        machine.run("systemctl", "daemon-reload")


@contextmanager
def dropped_in(machine, name: str):
    """The daemon with a drop-in."""
    with linked(machine, name):
        machine.run("systemctl", "restart", "netd")
        assert Twin(machine).difference() == {}
        yield
    machine.run("systemctl", "restart", "netd")


def test_no_raw_sockets(path):
    with dropped_in(path, "no-raw-sockets"):
        assert set(rights(path).values()) == {0}
        tried = Twin(path).run("attempts.py")
        with configured(path, TRACING):
            done = trace(path)
            status = path.netctl("status")
    assert tried["raw IPv4 socket"] == tried["raw ICMPv6 socket"] == "EPERM"
    assert tried["packet socket"] == "EAFNOSUPPORT"
    assert tried["netlink socket"] == tried["IPv4 socket"] == "allowed"
    # what it says of itself: traced without privileges, in a flow of its own
    assert done["method"] in ("udp", "syn")
    assert [hop["ip"] for hop in done["hops"]] == ROUTERS
    assert [warning["code"] for warning in status["warnings"]] == ["trace.unprivileged"]
    assert status["ready"]


def test_low_ports(machine):
    with dropped_in(machine, "low-ports"):
        assert set(rights(machine).values()) == {NET_RAW | NET_BIND_SERVICE}
        assert Twin(machine).run("attempts.py")["port 443"] == "allowed"
        with configured(machine, '[[framed.listen]]\naddress = "127.0.0.1:443"\n'):
            assert "127.0.0.1:443" in machine.run("ss", "-Hltn").stdout


HIDDEN = ["read a home", "read root's home", "look into /srv", "look into /mnt", "look into /boot", "reach D-Bus"]
HIDDEN += ["read the admin's credentials"]


def test_process_names(prepared, netd):
    with dropped_in(prepared, "process-names"):
        assert set(rights(prepared).values()) == {NET_RAW | SYS_PTRACE | DAC_READ_SEARCH}
        tried = Twin(prepared).run("attempts.py")
    assert {tried[name] for name in HIDDEN} == {"nothing", "ENOENT"}
    assert (tried["see processes of others"], tried["name of process 1"]) == ("some", "systemd")
    assert tried["files of process 1"] == "some"
    # what it says to think twice about
    assert (tried["read /etc/shadow"], tried["memory of process 1"]) == ("allowed", "EIO")
    # and nothing else: EIO is what reading at the address 0 gives, and what is hidden is empty now
    changed = {name for name in tried if tried[name] != netd[name] and name not in HIDDEN}
    assert changed == {
        "see processes of others",
        "name of process 1",
        "files of process 1",
        "read /etc/shadow",
        "memory of process 1",
    }


def test_process_names_without_the_second_part(prepared):
    text = prepared.read("/usr/share/netd/drop-ins/process-names.conf").split("# --- ")[0]
    tried = Twin(prepared).run("attempts.py", extra=tuple(text.splitlines()))
    assert (tried["name of process 1"], tried["files of process 1"]) == ("systemd", "EACCES")
    assert tried["read /etc/shadow"] == "EACCES"


ORDERS = list(itertools.permutations(["no-raw-sockets", "low-ports", "process-names"]))


@pytest.mark.parametrize("names", ORDERS, ids=" ".join)
def test_drop_ins_go_together_in_any_order_even_twice(machine, names):
    with linked(machine, *names, *names):
        twin = Twin(machine)
        found = confinement(twin.run("attempts.py", "confinement"))
        tried = twin.run("attempts.py") if names[0] == "no-raw-sockets" else None
    wanted = NET_BIND_SERVICE | SYS_PTRACE | DAC_READ_SEARCH
    assert {int(found[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {wanted}
    assert "hidepid" not in found["mount /proc"]
    if tried:
        assert (tried["port 443"], tried["packet socket"]) == ("allowed", "EAFNOSUPPORT")
        assert (tried["raw IPv4 socket"], tried["name of process 1"]) == ("EPERM", "systemd")


# --- credentials -----------------------------------------------------------------------------------------------------

SECRET = "a token of sixteen characters and more"
SECURED = """
[[framed.listen]]
address = "127.0.0.1:9443"
tls = {certificate = "/run/credentials/netd.service/netd_tls.crt", key = "/run/credentials/netd.service/netd_tls.key"}

[[hub.namespace]]
name = "room"

[[hub.token]]
name = "lab"
file = "/run/credentials/netd.service/netd_token"
publish = ["room:*"]
"""
CERTIFICATE = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab \
    -addext subjectAltName=IP:127.0.0.1 -keyout tls.key -out tls.crt 2>/dev/null
"""
PUBLISH = f"""
import trio
from netd.client import FramedClient

async def main():
    with trio.fail_after(20):
        async with FramedClient("127.0.0.1:9443", tls="{CREDENTIALS}/tls.crt", token="{SECRET}") as client:
            await client.publish("room:a", "hi")

trio.run(main)
"""


@pytest.fixture
def credentials(machine):
    """`credentials(name, text)` puts a file into the directory, as an admin does; gone afterwards."""

    def put(name: str, text: str) -> None:
        machine.write(f"{CREDENTIALS}/{name}", text, mode=0o600)

    yield put
    machine.sh(f"rm -rf {CREDENTIALS}; install -d -m 700 {CREDENTIALS}; systemctl reset-failed netd netd.socket")
    machine.run("systemctl", "restart", "netd")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_a_key_a_token_and_a_setting_by_file(machine, credentials, tmp_path):
    subprocess.run(["sh", "-ec", CERTIFICATE], cwd=tmp_path, check=True)
    for name in ("tls.crt", "tls.key"):
        credentials(name, (tmp_path / name).read_text())
    credentials("token", SECRET + "\n")
    credentials("log.level", "warning\n")
    with configured(machine, SECURED, "restart"):
        machine.python(PUBLISH)
        assert level_of(machine) == "warning"
        shown = machine.netctl("config", "show")
        assert shown["origins"]["log.level"] == "credential netd_log.level"
        assert shown["values"]["log"]["level"] == "**********", (
            "who may read the configuration may not read credentials"
        )
        files = "/run/credentials/netd.service"
        assert machine.run("ls", files).stdout.split() == [
            "netd",
            "netd_log.level",
            "netd_tls.crt",
            "netd_tls.key",
            "netd_token",
        ]
        for account, path in (
            ("nobody", f"{files}/netd_tls.key"),
            ("nobody", files),
            ("netd", f"{CREDENTIALS}/tls.key"),
        ):
            refused = machine.run("setpriv", f"--reuid={account}", "--clear-groups", "ls", "-l", path, check=False)
            assert "Permission denied" in refused.stderr, (account, path)


def test_a_renewed_certificate_comes_by_a_restart(machine, credentials):
    credentials("log.level", "warning")
    machine.run("systemctl", "restart", "netd")
    credentials("log.level", "error")
    machine.run("systemctl", "reload", "netd")
    assert level_of(machine) == "warning"
    machine.run("systemctl", "restart", "netd")
    assert level_of(machine) == "error"


def level_of(machine) -> str:
    """A setting that is in force, asked of what it sets: what a credential says, `config show` shows to nobody."""
    return machine.netctl("log", "level")["level"]


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_no_credentials_at_all(machine, credentials, how):
    machine.sh(f"rm -r {CREDENTIALS}" + (f"; mkdir -m 700 {CREDENTIALS}" if how == "empty" else ""))
    machine.run("systemctl", "restart", "netd")
    assert machine.netctl("status")["ready"]


def test_a_wrong_credential_is_named(machine, credentials):
    credentials("trace.max_hops", "many")
    assert machine.run("systemctl", "restart", "netd", check=False).returncode != 0
    machine.wait_until(lambda: machine.show("netd", "ActiveState")["ActiveState"] == "failed", "the unit given up")
    assert machine.show("netd", "ExecMainStatus")["ExecMainStatus"] == "78"
    assert "credential netd_trace.max_hops: trace.max_hops: cannot use this value" in machine.journal()
    assert "many" not in machine.journal()
