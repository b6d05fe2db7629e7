"""The machines themselves: a Debian that boots, takes commands, and is gone without a trace, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.lab import Machine
from tests.system.rootfs import RELEASES, ROOT


def left_behind(name: str = "netd-lab") -> list[str]:
    """What machines have on this host: mounts, processes, control groups."""
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}*")]
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text().split("\0")
            except OSError:
                continue
            if any(word.startswith(f"--machine={name}") for word in command):
                processes.append(" ".join(command))
    return mounts + groups + processes


def test_a_machine_boots_the_suite(bare, suite, figure):
    figure("boot", bare.boot_seconds, "s")
    assert bare.run("systemctl", "is-system-running").stdout == "running\n"
    assert bare.run("ps", "-o", "comm=", "1").stdout == "systemd\n"
    assert f'VERSION_ID="{RELEASES[suite]}"' in bare.read("/etc/os-release")


def test_commands_files_and_processes_of_a_machine(bare):
    result = bare.sh("echo $0; echo told >&2; exit 3", check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "sh\n", "told\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        bare.sh("echo why; exit 3")
    assert "why" in caught.value.__notes__[0]
    with pytest.raises(subprocess.TimeoutExpired):
        bare.run("sleep", "30", timeout=0.2)
    bare.write("/var/run/some/file", "text", mode=0o640)
    assert bare.read("/run/some/file") == "text"
    assert bare.sh("stat -c %a /run/some/file").stdout == "640\n"
    assert bare.exists("/run/some")
    assert not bare.exists("/run/none")
    assert not Path("/run/some").exists()
    bare.run("systemd-run", "--unit=napper", "sleep", "300")
    inside = int(bare.show("napper", "MainPID")["MainPID"])
    assert "sleep" in Path(f"/proc/{bare.host_pid(inside)}/cmdline").read_text()


def test_a_machine_has_a_network_of_its_own(bare):
    bare.write("/root/serve.py", "import socket; s = socket.create_server(('127.0.0.1', 7)); s.accept()[0].send(b'x')")
    bare.run("systemd-run", "--unit=seven", "python3", "/root/serve.py")
    bare.wait_until(lambda: bare.sh("ss -Hltn sport = :7").stdout, "the port that is listened on")
    code = "import socket; print(socket.create_connection(('127.0.0.1', 7)).recv(1))"
    assert bare.in_network(sys.executable, "-c", code).stdout == "b'x'\n"
    links = bare.run("ip", "-brief", "link").stdout.split()
    assert links[0] == "lo"
    process = bare.popen_in_network("sleep", "300")
    bare.close()
    assert process.poll() == -signal.SIGKILL


def test_a_machine_reboots_with_its_files(bare):
    bare.write("/etc/kept", "kept")
    bare.write("/run/lost", "lost")
    before = bare.leader
    bare.reboot()
    assert bare.leader != before
    assert (bare.read("/etc/kept"), bare.exists("/run/lost")) == ("kept", False)


def test_a_closed_machine_leaves_nothing_but_its_root_file_system(rootfs):
    machine = Machine.boot(rootfs)
    try:
        machine.write("/etc/written", "here")
        assert left_behind(machine.name) != []
    finally:
        machine.close()
    machine.close()
    assert left_behind(machine.name) == []
    assert not (rootfs / "etc/written").exists()


def test_a_boot_that_fails_says_why_and_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=rf"cannot boot netd-lab-{os.getpid()}-\d+: it ended with 1\n.*os-release"):
        Machine.boot(tmp_path / "empty")
    assert left_behind(f"netd-lab-{os.getpid()}-") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_test_run_that_is_ended_leaves_nothing(rootfs, number):
    code = "from tests.system.lab import *; import sys, time\n"
    code += "with Machine.boot(Path(sys.argv[1])) as machine: print(machine.name, flush=True); time.sleep(300)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code, rootfs], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        name = run.stdout.readline().strip()
        assert name
        run.send_signal(number)
        run.wait(20)
    if number == signal.SIGKILL:
        Machine.boot(rootfs).close()  # the next one takes away what could not be taken away
    assert left_behind(name) == []
