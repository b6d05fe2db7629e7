"""What README says of other systems: the client library and netctl import where Linux's own modules are not.

Rules:
- what is hidden here is what macOS and Windows lack between them, as far as importing can tell. Nothing connects.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HIDE = """
import importlib, os, socket, sys
import ctypes, httpx, ssl, trio  # they know by themselves where they are, and here that is Linux

modules = {"fcntl", "grp", "pwd", "resource", "syslog", "systemd", "termios", "tty"}

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            raise ModuleNotFoundError(f"no module named {name}", name=name)

for name in modules:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Hidden())
for module, names in {
    os: ["eventfd", "getegid", "geteuid", "getgid", "getuid", "memfd_create", "pidfd_open", "sched_setaffinity"],
    socket: ["AF_NETLINK", "AF_PACKET", "AF_UNIX", "CMSG_SPACE", "SCM_RIGHTS", "SO_BINDTODEVICE", "SO_PEERCRED",
             "TCP_INFO", "TCP_KEEPIDLE"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""


def elsewhere(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", HIDE + code]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False)


def test_the_client_library_imports():
    done = elsewhere("import netd.client\nfor name in netd.client.__all__: getattr(netd.client, name)")
    assert done.returncode == 0, done.stderr


def test_every_noun_of_netctl_imports():
    code = "from netd.cli.main import NOUNS\nfor noun in NOUNS: importlib.import_module(f'netd.cli.{noun}')"
    done = elsewhere(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["netd.daemon", "netd.framed"])
def test_the_daemon_and_servers_do_not(module):
    """The day they do, README is to say so."""
    done = elsewhere(f"import {module}")
    assert done.returncode == 1
    assert "ModuleNotFoundError: no module named" in done.stderr
