"""The package on a fresh Debian: installed without a network, it serves; configured, it obeys; removed, it is gone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.system.rootfs import ROOT

LOAD = Path(__file__).with_name("load.py")
DROP_IN = "/etc/netd/netd.toml.d/50-test.toml"

TOLD_OF = re.compile(
    # logs and caches of the machine; dpkg's own records are checked by name
    r"/var/(log|cache)/|/run/(log|systemd)/|/var/lib/(dpkg|apt)/|/var/lib/systemd/catalog/"
    # backups that useradd and its kin keep of the accounts
    r"|/etc/(passwd|group|shadow|gshadow)-$|/etc/\.pwd\.lock$"
)
"""What differs on any machine after any package was there for a while."""


@pytest.fixture
def configured(machine):
    """`configured(toml)` writes a drop-in and reloads; the machine is as it was when the test ends."""

    def configure(toml: str, *, check: bool = True):
        machine.write(DROP_IN, toml)
        return machine.run("systemctl", "reload", "netd", check=check)

    yield configure
    machine.run("rm", "-f", DROP_IN)
    machine.run("systemctl", "reload", "netd")


def smoke(machine, *options: str):
    machine.copy(ROOT / "packaging" / "smoke", "/root/smoke")
    return machine.run("python3", "/root/smoke", *options, check=False)


def files(machine) -> set[str]:
    """Everything there is, but for what the kernel makes up."""
    found = machine.sh(r"find / -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -print").stdout
    return {path for path in found.splitlines() if not TOLD_OF.search(path)}


# --- it serves -------------------------------------------------------------------------------------------------------


def test_it_serves_when_its_installation_ends(machine, figure):
    assert machine.run("systemctl", "is-enabled", "netd.service", "netd.socket").stdout.split() == ["enabled"] * 2
    status = machine.netctl("status")
    assert (status["state"], status["ready"], status["warnings"]) == ("running", True, [])
    assert status["config"]["sources"] == ["/etc/netd/netd.toml"]
    assert machine.run("systemctl", "is-system-running").stdout == "running\n"

    machine.run("systemctl", "restart", "netd")
    times = machine.show("netd", "InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    started, ready = map(int, (times["InactiveExitTimestampMonotonic"], times["ActiveEnterTimestampMonotonic"]))
    figure("start to READY", (ready - started) / 1e6, "s")


def test_every_service_there_is_serves(machine, configured):
    names = [unit["name"] for unit in machine.netctl("services")["services"]]
    configured("".join(f"[{name}]\nenabled = true\n" for name in names))
    result = smoke(machine)
    assert result.returncode == 0, result.stdout
    names.remove("backplane")  # which only a hub of several machines has something to do for
    for name in names:
        assert f"ok     service {name} is running" in result.stdout
    assert "trace at 127.0.0.1:8080 accepts" in result.stdout
    assert "framed at 127.0.0.1:9000 accepts" in result.stdout


def test_the_smoke_test_says_what_does_not_serve(machine):
    machine.run("netctl", "services", "stop", "trace")
    result = smoke(machine, "--wait", "0")
    machine.run("netctl", "services", "start", "trace")
    assert result.returncode == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("not ok")]
    assert failed == ["not ok service trace is stopped"]

    machine.run("systemctl", "stop", "netd.service", "netd.socket")
    result = smoke(machine, "--wait", "0")
    machine.run("systemctl", "start", "netd.service")
    assert result.returncode == 1
    assert "not ok systemctl is-active netd.service netd.socket: exit status 3, inactive" in result.stdout
    assert "not ok ready within 0 s" in result.stdout
    assert smoke(machine).returncode == 0


def test_messages_pass_and_clients_are_greeted(machine, configured):
    configured('[[hub.namespace]]\nname = "public"\npublish = "anyone"\nhistory_size = 10\n')
    machine.run("netctl", "framed", "send", "127.0.0.1:9000", "--channel", "public:room", "hello")
    assert [one["data"] for one in machine.netctl("channels", "history", "public:room")["messages"]] == ["hello"]
    # by hand: a library that closes as the tracer's ping arrives fails in its own way
    once = machine.in_network(sys.executable, LOAD, "--once", "greeted=websocket:127.0.0.1:8080")
    assert json.loads(once.stdout)["greeted"]["ok"] == 1, once.stdout
    assert "netd_hub_published" in machine.run("netctl", "metrics").stdout


# --- it obeys --------------------------------------------------------------------------------------------------------


def test_a_good_reload_is_in_force_when_it_ends(machine, configured):
    before = machine.main_pid
    configured('[trace]\nmax_hops = 17\n[[trace.listen]]\naddress = "127.0.0.1:8081"\n')
    shown = machine.netctl("config", "show")
    assert (shown["values"]["trace"]["max_hops"], shown["origins"]["trace.max_hops"]) == (17, f"{DROP_IN}:2")
    assert machine.sh("ss -Hltn sport = :8081").stdout
    assert machine.main_pid == before


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("[trace]\nmax_hops = 0\nmax_hop = 1\n", f"{DROP_IN}:3: trace.max_hop: unknown key (did you mean max_hops?)"),
        ("[trace\n", f"{DROP_IN}:1: cannot read this as TOML"),
        ('[[framed.listen]]\naddress = "192.0.2.1:9000"\n', "192.0.2.1:9000"),
        ('state_directory = "/var/lib/other"\n', "cannot change state_directory while netd runs"),
    ],
)
def test_a_refused_reload_fails_says_why_and_changes_nothing(machine, configured, toml, why):
    before, services = machine.main_pid, machine.netctl("services")
    result = configured(toml, check=False)
    assert result.returncode == 1
    assert "Job for netd.service failed" in result.stderr
    invocation = machine.show("netd", "InvocationID")["InvocationID"]
    assert why in machine.journal("netd", f"_SYSTEMD_INVOCATION_ID={invocation}", "--identifier=netctl")
    assert machine.is_active("netd")
    assert (machine.main_pid, machine.netctl("services")) == (before, services)


def test_its_log_is_in_the_journal_with_fields(machine, configured):
    configured("[trace]\nmax_hops = 0\n", check=False)
    (entry, *_) = [one for one in machine.journal_fields() if one["MESSAGE"].startswith("reload refused")]
    assert entry["PRIORITY"] == "4"
    assert (entry["SYSLOG_IDENTIFIER"], entry["_SYSTEMD_UNIT"]) == ("netd", "netd.service")
    assert entry["NETD_KIND"] == "config"
    assert "trace.max_hops: cannot be 0" in entry["NETD_WHY"]
    assert entry["CODE_FILE"].startswith("/usr/lib/netd/")


def test_who_may_look_and_who_may_write(machine):
    machine.sh("useradd reader; useradd stranger; usermod --append --groups netd reader")
    stranger = machine.run("runuser", "-u", "stranger", "--", "netctl", "status", check=False)
    assert stranger.returncode == 69
    assert "join group netd" in stranger.stderr
    reader = machine.run("runuser", "-u", "reader", "--", "netctl", "status")
    assert "ready" in reader.stdout
    refused = machine.run("runuser", "-u", "reader", "--", "netctl", "services", "stop", "trace", check=False)
    assert refused.returncode == 77
    assert "has no write access" in refused.stderr


# --- what is there ---------------------------------------------------------------------------------------------------


def test_files_belong_to_root_and_what_netd_writes_to_netd(machine):
    def owner(path: str) -> str:
        return machine.run("stat", "-c", "%a %U %G", path).stdout.strip()

    assert owner("/etc/netd") == "755 root root"
    assert owner("/etc/netd/netd.toml") == "644 root root"
    assert owner("/etc/netd/netd.toml.d") == "755 root root"
    assert owner("/etc/netd/credentials") == "700 root root"
    assert owner("/var/lib/netd") == "700 netd netd"
    assert owner("/run/netd/control.sock") == "660 root netd"
    assert machine.run("getent", "passwd", "netd").stdout.split(":")[-2:] == ["/var/lib/netd", "/usr/sbin/nologin\n"]
    writable = "find /usr/lib/netd /usr/share/*/netd* /etc/netd ! -type l ! -user root -o ! -type l -perm /022"
    assert machine.sh(writable).stdout == ""


def test_what_runs_is_what_the_package_says(machine):
    assert machine.run("dpkg", "--verify", "netd").stdout == ""
    listed = set(machine.run("dpkg", "--listfiles", "netd").stdout.splitlines())
    there = set(machine.run("find", "/usr/lib/netd").stdout.splitlines())
    assert there - listed == set(), "running it left files among the package's"
    ours = "import sys; print(sys.flags.isolated, sys.dont_write_bytecode, [p for p in sys.path if 'netd' not in p])"
    flags, writes, path = machine.python(ours).stdout.split(maxsplit=2)
    assert (flags, writes) == ("1", "True")
    assert "site-packages" not in path
    assert "dist-packages" not in path


def test_manual_pages_and_completions_are_there(machine):
    for page, section in (("netd", 8), ("netctl", 1), ("netd.toml", 5)):
        text = machine.run("zcat", f"/usr/share/man/man{section}/{page}.{section}.gz").stdout
        assert ".TH" in text
    bash = machine.run("bash", "-c", ". /usr/share/bash-completion/completions/netctl; complete -p netctl")
    assert "netctl" in bash.stdout
    for path in ("/usr/share/zsh/vendor-completions/_netctl", "/usr/share/fish/vendor_completions.d/netctl.fish"):
        assert "netctl" in machine.read(path)
    for name in ("README.Debian", "copyright", "netd.cdx.json"):
        assert machine.sh(f"ls /usr/share/doc/netd/{name}*").stdout


# --- it goes ---------------------------------------------------------------------------------------------------------


def test_removed_it_keeps_its_configuration_and_state_and_purged_it_leaves_nothing(bare, deb):
    before = files(bare)
    bare.install(deb)
    bare.write(DROP_IN, '[trace]\nmax_hops = 17\n[[hub.namespace]]\nname = "public"\nhistory_size = 10\n')
    bare.write("/etc/netd/credentials/trace.max_clients", "77", mode=0o600)
    bare.run("systemctl", "restart", "netd")
    bare.run("netctl", "config", "set", "framed.max_connections", "99")
    bare.run("netctl", "channels", "publish", "public:room", "remembered")

    bare.apt("remove", "netd")
    assert not bare.is_active("netd.service")
    assert not bare.is_active("netd.socket")
    assert bare.run("sh", "-c", "command -v netd netctl", check=False).stdout == ""
    assert bare.exists("/etc/netd/netd.toml")
    assert bare.exists("/var/lib/netd/override.toml")
    assert not bare.exists("/usr/lib/netd")
    assert not bare.exists("/run/netd/control.sock")

    bare.install(deb)
    shown = bare.netctl("config", "show")
    assert shown["values"]["trace"]["max_hops"] == 17
    assert shown["values"]["framed"]["max_connections"] == 99
    # what a credential says is shown to nobody, but that it counts is
    assert shown["origins"]["trace.max_clients"] == "credential netd_trace.max_clients"
    assert bare.netctl("config", "get", "trace.max_clients")["value"] == "**********"
    assert [one["data"] for one in bare.netctl("channels", "history", "public:room")["messages"]] == ["remembered"]

    bare.apt("purge", "netd")
    assert sorted(files(bare) - before) == []
    assert sorted(before - files(bare)) == []
    assert bare.run("dpkg-query", "--list", "netd", check=False).returncode == 1
    assert bare.sh("systemctl list-units --all --no-legend 'netd*'").stdout == ""
    assert bare.run("systemctl", "list-unit-files", "--no-legend", "netd*", check=False).stdout == ""
    assert bare.sh("find /var/lib/dpkg /var/lib/systemd /run/systemd -name '*netd*'").stdout == ""
    # as Debian has it, an account that files may belong to is locked and stays
    assert bare.run("getent", "shadow", "netd").stdout.split(":")[1].startswith("!")
    assert bare.run("systemctl", "is-system-running").stdout == "running\n"

    bare.install(deb)
    assert bare.netctl("status")["ready"]
    assert bare.netctl("config", "show")["values"]["trace"]["max_hops"] != 17
    assert smoke(bare).returncode == 0


def test_disabled_it_stays_disabled_and_masked_it_stays_masked(bare, deb):
    def states() -> list[str]:
        asked = bare.run("systemctl", "is-enabled", "netd.service", "netd.socket", check=False)
        return asked.stdout.split()

    bare.install(deb)
    bare.run("systemctl", "disable", "--now", "netd.service", "netd.socket")
    for verb in ("--reinstall", "remove"):
        if verb == "remove":
            bare.apt("remove", "netd")
            bare.install(deb)
        else:
            bare.install(deb, verb)
        assert states() == ["disabled"] * 2, verb
        assert not bare.is_active("netd.service"), verb
        assert not bare.is_active("netd.socket"), verb

    bare.run("systemctl", "mask", "netd.service", "netd.socket")
    bare.install(deb, "--reinstall")
    assert states() == ["masked"] * 2
    assert not bare.is_active("netd.service")

    bare.run("systemctl", "unmask", "netd.service", "netd.socket")
    bare.run("systemctl", "enable", "--now", "netd.service")
    assert states() == ["enabled"] * 2
    assert bare.netctl("status")["ready"]


def test_a_machine_that_boots_with_it_serves_and_says_why_if_it_cannot(bare, deb, figure):
    bare.install(deb)
    # the package's file only says where settings go: who removes it has netd with its defaults
    bare.run("rm", "/etc/netd/netd.toml")
    bare.reboot()
    ready = bare.show("netd", "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"]
    booted = bare.run("systemctl", "show", "--property=UserspaceTimestampMonotonic", "--value").stdout
    figure("start of PID 1 to READY", (int(ready) - int(booted)) / 1e6, "s")
    assert bare.netctl("status")["ready"]
    assert smoke(bare).returncode == 0

    bare.write(DROP_IN, "[trace]\nmax_hops = 0\n")
    result = bare.run("systemctl", "restart", "netd", check=False)
    assert result.returncode == 1
    assert bare.show("netd", "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "ExecMainStatus": "78",
        "NRestarts": "0",
    }
    assert f"{DROP_IN}:2: trace.max_hops: cannot be 0" in bare.run("systemctl", "status", "netd", check=False).stdout
