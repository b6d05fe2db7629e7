"""Workers on a machine with the package: by hand, by netd-worker@.service, by [worker] command; and what they may not.

worker_app.py is the application. Sessions are framed ones, held by talk.py: one that is cut off would say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.rootfs import ROOT

PYTHON = "/usr/lib/netd/bin/python3"
CODE = "/usr/local/lib/lab"
DROP_IN = "/etc/netd/netd.toml.d/50-workers.toml"
ENV = f"NETD_WORKER_APP=worker_app:worker\nNETD_WORKER_DIRECTORY={CODE}\n"
UNIT = "netd-worker@lab.service"
NOTHING = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def prepared(machine):
    machine.copy(HERE / "worker_app.py", f"{CODE}/worker_app.py")
    machine.sh(f"chmod -R a+rX {CODE}; useradd hand; usermod --append --groups netd-worker hand; useradd stranger")
    return machine


@pytest.fixture
def unit(prepared):
    """netd-worker@lab, at work."""
    prepared.write("/etc/netd/workers/lab.env", ENV, mode=0o600)
    prepared.run("systemctl", "start", UNIT)
    yield prepared
    prepared.run("systemctl", "stop", UNIT)


class Talk:
    """A session of the framed service."""

    def __init__(self, machine) -> None:
        self._process = machine.popen_in_network(
            sys.executable,
            HERE / "talk.py",
            "127.0.0.1:9000",
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.session = json.loads(self._process.stdout.readline())["session"]

    def say(self, text: str) -> str:
        """What the application answers."""
        self.send(text)
        return json.loads(self._process.stdout.readline())

    def send(self, text: str) -> None:
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(30) == 0
        self._process.stdout.close()


@contextmanager
def talking(machine):
    talk = Talk(machine)
    yield talk
    talk.close()


def workers(machine) -> list[dict]:
    return machine.netctl("workers")["workers"]


def names(machine) -> list[str]:
    return sorted(one["name"] for one in workers(machine))


def asked(machine, path: str, *, timeout: float = 30):
    """What the application answers over HTTP: status and body."""
    code = (
        "import sys, urllib.request, urllib.error\n"
        f"try: answer = urllib.request.urlopen('http://127.0.0.1:3000{path}', timeout={timeout})\n"
        "except urllib.error.HTTPError as error: answer = error\n"
        "print(answer.status); print(answer.read().decode())"
    )
    status, _, body = machine.in_network(sys.executable, "-I", "-c", code, timeout=timeout + 10).stdout.partition("\n")
    return int(status), body


def who(machine) -> dict:
    status, body = asked(machine, "/who")
    assert status == 200, body
    found = json.loads(body)
    found["rights"] = {key: int(found["status"][key], 16) for key in NOTHING}
    return found


def account(machine, name: str) -> int:
    return int(machine.run("id", "-u", name).stdout)


# --- the socket ------------------------------------------------------------------------------------------------------


def test_the_socket_is_for_the_group(prepared):
    assert prepared.run("stat", "-c", "%a %U %G", "/run/netd/worker.sock").stdout == "660 netd netd-worker\n"
    assert prepared.run("stat", "-c", "%a", "/run/netd").stdout == "755\n"
    assert prepared.netctl("status")["warnings"] == []
    assert "netd-worker" in prepared.run("id", "-Gn", "netd").stdout.split()


def test_whoever_is_not_in_the_group_is_told(prepared):
    command = [PYTHON, "-m", "netd.worker", "worker_app", "--directory", CODE]
    said = prepared.run("runuser", "-u", "stranger", "--", "timeout", "3", *command, check=False).stderr
    assert "cannot use /run/netd/worker.sock: permission denied" in said
    assert "join group netd-worker" in said
    assert workers(prepared) == []


def test_without_a_worker_there_is_an_echo_and_503(prepared):
    with talking(prepared) as talk:
        assert talk.say("hello") == "hello"
    assert asked(prepared, "/who")[0] == 503


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_worker_by_hand(prepared):
    command = f"runuser -u hand -- {PYTHON} -m netd.worker worker_app --directory {CODE} --name by-hand"
    prepared.run("systemd-run", "--unit=by-hand", *command.split())
    prepared.wait_until(lambda: names(prepared) == ["by-hand"], "the worker")
    assert who(prepared)["uid"] == account(prepared, "hand")
    with talking(prepared) as talk:
        assert talk.say("hello") == f"{who(prepared)['pid']}: hello"
        prepared.run("systemctl", "stop", "by-hand")
        prepared.wait_until(lambda: names(prepared) == [], "its end")
        assert talk.say("alone") == "alone"
    assert "finishing what runs" in prepared.journal("by-hand")


# --- netd-worker@.service --------------------------------------------------------------------------------------------


def test_a_worker_as_a_service(unit):
    assert unit.show(UNIT, "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": f"connected to netd {unit.netctl('status')['version']} at /run/netd/worker.sock as worker "
        f"{workers(unit)[0]['id']}",
    }
    assert names(unit) == ["lab"]
    assert "lab" in unit.run("netctl", "workers").stdout
    assert "connected to netd" in unit.journal(UNIT)


def test_it_is_somebody_of_its_own_with_no_rights(unit):
    found = who(unit)
    assert found["uid"] not in (0, account(unit, "netd"))
    assert found["uid"] == workers(unit)[0]["uid"]
    group = int(unit.run("getent", "group", "netd-worker").stdout.split(":")[2])
    assert set(found["groups"]) - {found["gid"]} == {group}
    assert found["rights"] == NOTHING
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == ("1", "2")


def test_what_it_reaches_and_what_not(unit):
    status, body = asked(unit, "/reach")
    assert status == 200, body
    assert json.loads(body) == {
        "the control socket": "EACCES",
        "the workers' socket": "allowed",
        "a setting through the control socket": "EACCES",
        "the daemon's state": "EACCES",
        "a file in the daemon's state": "EACCES",
        "the daemon's credentials": "EACCES",
        "the daemon's secrets": "EACCES",
        "the variables of other workers": "EACCES",
        "a home": "EACCES",
        "write to /etc": "EROFS",
        "write to /run/netd": "EROFS",
        "write beside the code": "EROFS",
        "write to /tmp": "allowed",
        "write to its state": "allowed",
        "a raw socket": "EPERM",
        "a packet socket": "EAFNOSUPPORT",
        "a TCP socket": "allowed",
        "become root": "EPERM",
        "signal the daemon": "EPERM",
    }


def test_one_that_dies_is_replaced_and_its_sessions_stay(unit):
    with talking(unit) as talk, talking(unit) as other:
        before = who(unit)["pid"]
        assert talk.say("one") == f"{before}: one"
        assert other.say("one") == f"{before}: one"
        talk.send("!die")
        unit.wait_until(lambda: [one["pid"] for one in workers(unit)] not in ([], [before]), "another worker")
        after = workers(unit)[0]["pid"]
        assert other.say("two") == f"{after}: two"
        assert talk.say("three") == f"{after}: three"
    assert int(unit.show(UNIT, "NRestarts")["NRestarts"]) == 1


def test_a_request_that_its_worker_takes_along_is_502(unit):
    slow = unit.popen_in_network(
        sys.executable, "-I", "-c", FETCH, "http://127.0.0.1:3000/slow", stdout=subprocess.PIPE, text=True
    )
    unit.wait_until(lambda: workers(unit)[0]["requests"] == 1, "the request in its hands")
    unit.run("systemctl", "kill", "--signal=KILL", UNIT)
    assert slow.communicate(timeout=60)[0] == "502\n"
    unit.wait_until(lambda: names(unit) == ["lab"], "another worker")


FETCH = """
import sys, urllib.error, urllib.request
try: print(urllib.request.urlopen(sys.argv[1], timeout=50).status)
except urllib.error.HTTPError as error: print(error.code)
"""


def test_two_share_the_work_and_one_takes_over(unit):
    unit.write("/etc/netd/workers/second.env", ENV)
    unit.run("systemctl", "start", "netd-worker@second")
    assert names(unit) == ["lab", "second"]
    assert len({one["uid"] for one in workers(unit)}) == 2
    with talking(unit) as one, talking(unit) as two:
        before = {one.say("x"), two.say("x")}
        assert len(before) == 2
        unit.run("systemctl", "stop", "netd-worker@second")
        left = workers(unit)[0]["pid"]
        assert {one.say("y"), two.say("y")} == {f"{left}: y"}


def test_it_goes_and_comes_with_the_daemon(unit):
    unit.run("systemctl", "enable", UNIT)
    before = who(unit)["pid"]
    unit.run("systemctl", "restart", "netd")
    unit.wait_until(lambda: names(unit) == ["lab"], "the worker")
    assert who(unit)["pid"] != before
    unit.run("systemctl", "stop", "netd.service", "netd.socket")
    assert not unit.is_active(UNIT)
    unit.run("systemctl", "start", "netd")
    unit.wait_until(lambda: unit.is_active(UNIT), "the worker")
    unit.wait_until(lambda: names(unit) == ["lab"], "the worker")
    unit.run("systemctl", "disable", UNIT)


@pytest.mark.parametrize(
    ("env", "status", "why"),
    [
        ("NETD_WORKER_APP=no_such_module\n", "78", "cannot find the module 'no_such_module'"),
        ("NETD_WORKER_THREADS=2\n", "64", "cannot run nothing: name a module"),
        (f"{ENV}NETD_WORKER_APP=worker_app:nobody\n", "78", "cannot find a Worker named nobody in 'worker_app'"),
    ],
)
def test_what_cannot_run_is_not_tried_again(prepared, env, status, why):
    prepared.write("/etc/netd/workers/broken.env", env)
    assert prepared.run("systemctl", "start", "netd-worker@broken", check=False).returncode == 1
    assert prepared.show("netd-worker@broken", "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "ExecMainStatus": status,
        "NRestarts": "0",
    }
    assert why in prepared.journal("netd-worker@broken")
    prepared.run("systemctl", "reset-failed", "netd-worker@broken")


def test_without_its_file_it_does_not_start(prepared):
    assert prepared.run("systemctl", "start", "netd-worker@nobody", check=False).returncode == 1
    assert "Failed to load environment files: No such file" in prepared.journal("netd-worker@nobody")
    prepared.run("systemctl", "reset-failed", "netd-worker@nobody")


# --- [worker] command ------------------------------------------------------------------------------------------------


@pytest.fixture
def commanded(prepared):
    command = json.dumps([PYTHON, "-m", "netd.worker", "worker_app"])
    prepared.write(DROP_IN, f'[worker]\ncommand = {command}\ndirectory = "{CODE}"\n')
    prepared.run("systemctl", "reload", "netd")
    prepared.wait_until(lambda: len(workers(prepared)) == 1, "the daemon's own worker")
    yield prepared
    prepared.run("rm", DROP_IN)
    prepared.run("systemctl", "reload", "netd")
    prepared.wait_until(lambda: workers(prepared) == [], "its end")


def test_a_worker_of_the_daemons_own(commanded):
    (found,) = workers(commanded)
    assert (found["name"], found["program"], found["uid"]) == ("worker_app", 1, account(commanded, "netd"))
    application = who(commanded)
    assert application["pid"] == found["pid"]
    # what it could inherit it gets from no program, as none of its files has rights to give, and none gains any
    assert {application["rights"][one] for one in ("CapPrm", "CapEff", "CapAmb")} == {0}
    assert application["status"]["NoNewPrivs"] == "1"
    # the daemon is spared where memory is short, and a program of the user's is not
    assert commanded.sh(f"cat /proc/{found['pid']}/oom_score_adj").stdout.strip() == "0"
    assert commanded.sh(f"cat /proc/{found['pid']}/limits").stdout.count("Max open files            1024 ") == 1
    # the unit's filter lets it arrange for its end
    assert "end with it where it is killed" not in commanded.journal("netd")


def test_it_cannot_change_the_daemon_nor_what_the_daemon_may(commanded):
    found = json.loads(asked(commanded, "/reach")[1])
    assert found["a setting through the control socket"] != "allowed"
    # though it has the daemon's account: a file there would be the daemon's setting after the next reload
    assert found["a file in the daemon's state"] == "EACCES"
    assert found["the daemon's credentials"] == "EACCES"
    # else it could put another control socket in the place of the daemon's
    assert found["write to /run/netd"] == "EACCES"
    assert found["the workers' socket"] == "allowed"
    assert found["write to /tmp"] == "allowed"
    assert found["a raw socket"] == "EPERM"
    assert found["a packet socket"] == "EPERM"
    assert found["write to /etc"] == "EROFS"
    assert found["become root"] == "EPERM"
    assert {unit["name"]: unit["state"] for unit in commanded.netctl("services")["services"]}["trace"] == "running"


def test_a_place_that_programs_are_kept_from_is_told_when_one_is_to_start_there(prepared):
    prepared.sh("install -d -o netd /var/lib/netd/app")
    try:
        prepared.write(DROP_IN, '[worker]\ncommand = ["/bin/sh"]\ndirectory = "/var/lib/netd/app"\n')
        refused = prepared.run("systemctl", "reload", "netd", check=False)
        assert refused.returncode != 0
        assert "it is kept from /var/lib/netd, which is the daemon's own" in prepared.journal("netd")
    finally:
        prepared.run("rm", DROP_IN)
    prepared.run("systemctl", "reload", "netd")


def test_one_of_the_daemons_own_that_dies_is_replaced_and_its_sessions_stay(commanded):
    with talking(commanded) as talk:
        before = who(commanded)["pid"]
        assert talk.say("one") == f"{before}: one"
        talk.send("!die")
        commanded.wait_until(lambda: [one["pid"] for one in workers(commanded)] not in ([], [before]), "another")
        after = workers(commanded)[0]["pid"]
        assert talk.say("two") == f"{after}: two"


# --- it goes ---------------------------------------------------------------------------------------------------------


def test_purged_nothing_of_workers_is_left(bare, deb):
    bare.install(deb)
    bare.copy(HERE / "worker_app.py", f"{CODE}/worker_app.py")
    bare.write("/etc/netd/workers/lab.env", ENV)
    bare.run("systemctl", "enable", "--now", UNIT)
    bare.sh("echo kept > /var/lib/netd-worker/lab/file")
    bare.apt("purge", "netd")
    assert not bare.is_active(UNIT)
    left = bare.sh("find /etc /var/lib /run -path /run/log -prune -o -name '*netd*' -print").stdout.split()
    # what an admin has enabled is the admin's, as is a drop-in
    enabled = "/etc/systemd/system/netd.service.wants"
    assert sorted(path for path in left if "/dpkg/" not in path) == [enabled, f"{enabled}/{UNIT}"]
