"""`make demo`: five routers in network namespaces, netd at one end, a WebSocket client at the other, its path live.

    client --- r1 --- r2 --- r3 --- r4 --- r5 --- netd
       a real WebSocket connection ------------->
       <--- one-byte copies with TTL 1, 2, 3 ...

Everything happens in namespaces that this process makes; nothing of the host is touched. Run as root, or as anybody
where unprivileged user namespaces are allowed. Every link has 2 ms of delay where /dev/net/tun can be opened, so that
hops are seen to be farther and farther away.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUTERS = 5
DELAY = 0.002
CONFIG = """\
[trace]
rounds = 5
interval = 0.5
reveal_private = true

[[trace.listen]]
address = "0.0.0.0:8080"

[[trace.listen]]
address = "[::]:8080"
"""
BIN = Path(sys.executable).parent


def main() -> int:
    if "--inside" not in sys.argv and os.geteuid() != 0:
        return in_user_namespace()

    from tests.support.lab import Lab
    from tests.support.netns import why_not

    if reason := why_not():
        print(f"demo: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="netd-demo-") as name, laboratory(Lab) as lab:
        return show(lab, Path(name))


def in_user_namespace() -> int:
    """Start over as root of a user namespace of our own."""
    if shutil.which("unshare") is None:
        print("demo: run it as root (sudo make demo)", file=sys.stderr)
        return 1
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-m", "tests.demo", "--inside"]
    code = subprocess.run(command, check=False).returncode
    if code:
        print("demo: if user namespaces are not allowed here, run it as root (sudo make demo)", file=sys.stderr)
    return code


def laboratory(lab):
    """The lab with delay where that is possible."""
    from tests.support.lab import why_no_tun

    if reason := why_no_tun():
        print(f"demo: links without delay ({reason})\n")
        return lab(routers=ROUTERS)
    return lab(routers=ROUTERS, delay=DELAY)


def show(lab, directory: Path) -> int:
    (directory / "netd.toml").write_text(CONFIG)
    environ = {
        **os.environ,
        "NETD_CONTROL__SOCKET": str(directory / "control.sock"),
        "NETD_CONTROL__GROUP": "",
        "NETD_STATE_DIRECTORY": str(directory / "state"),
    }
    server = lab.server_address()
    say("a path of five routers: " + " - ".join(["client", *(f"r{n}" for n in range(1, ROUTERS + 1)), "netd"]))
    say(f"netd listens on {server}:8080; a WebSocket client connects from {lab.client_address()}")

    log = directory / "log"
    with log.open("wb") as sink:
        command = [str(BIN / "netd"), "--config", str(directory / "netd.toml")]
        netd = lab.server.popen(command, env=environ, stdout=sink, stderr=sink)
    try:
        netctl(environ, "health", "--ready", "--wait", "20", quiet=True)
        watch = subprocess.Popen([str(BIN / "netctl"), "trace", "watch", "--count", "1"], env=environ)
        time.sleep(1)  # let the watch be there first, as a person would
        with tempfile.TemporaryFile("w+") as said:
            client = [sys.executable, "-m", "tests.demo_client", f"ws://{server}:8080/"]
            lab.client.popen(client, stdout=said)
            code = watch.wait(timeout=60)
            if code:
                return code
            said.seek(0)
            messages = [json.loads(line) for line in said]
        say("what the client was told, as JSON text over its own WebSocket:")
        for message in [messages[0], *(m for m in messages if m["type"] == "hop")][: ROUTERS + 1]:
            print(shortened("  " + json.dumps(message)))
        say("the same trace in the history (netctl trace list; netctl trace show ID):")
        netctl(environ, "trace", "list")
        say("next: make run, then netctl trace watch, and open a WebSocket to 127.0.0.1:8080")
        return 0
    except (subprocess.SubprocessError, json.JSONDecodeError, IndexError):
        print(log.read_text(), file=sys.stderr)
        raise
    finally:
        netd.terminate()
        netd.wait(timeout=20)


def netctl(environ: dict[str, str], *arguments: str, quiet: bool = False) -> None:
    subprocess.run(
        [str(BIN / "netctl"), *arguments], env=environ, check=True, stdout=subprocess.DEVNULL if quiet else None
    )


def shortened(line: str) -> str:
    width = shutil.get_terminal_size((150, 24)).columns
    return line if len(line) <= width else line[: width - 1] + "…"


def say(text: str) -> None:
    print(
        f"\n\033[1m{text}\033[0m\n" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else f"\n{text}\n",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
