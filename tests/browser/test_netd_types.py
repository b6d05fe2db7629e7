"""netd.js under a strict type checker, and netd.d.ts against it: what is declared is there, and is what it says."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import CLIENT

if TYPE_CHECKING:
    from pathlib import Path

TSC = shutil.which("tsc")
STRICT = [
    "--noEmit",
    "--allowJs",
    "--checkJs",
    "--strict",
    "--target",
    "es2022",
    "--module",
    "esnext",
    "--lib",
    "es2022,dom,dom.iterable",
]

pytestmark = pytest.mark.skipif(TSC is None, reason="tsc, TypeScript's compiler, is not on this machine")

AGREE = """
import * as declared from "./netd.js";
import * as real from "./module.js";
const module: typeof declared = real;
const client: declared.Client = real.connect();
const subscription: declared.Subscription = real.connect().subscribe("a", () => {});
const back: Parameters<typeof real.connect> = [] as unknown as Parameters<typeof declared.connect>;
export { module, client, subscription, back };
"""
USED = """
import { connect, NetdError, type Message, type Position } from "./netd.js";
const client = connect("wss://example.org/ws", { token: async () => "t", name: "a", reconnect: { longest: 5 } });
client.on("gap", ({ channel, missed }) => console.log(channel, missed ?? "some"));
client.on("error", (error) => error instanceof NetdError && error.kind === "denied");
client.on("state", ({ name }) => name === "backoff");
const subscription = client.subscribe("a:b", (message: Message<string>) => message.data.length, { pattern: false });
const place: Position | null = subscription.position;
async function all() {
  for await (const message of client.subscribe("a:c", { recover: { epoch: "e", offset: 1 } })) message.channel;
  const delivered: number | null = await client.publish("a:b", new Uint8Array(2), { priority: 1 });
  const { messages } = await client.history("a:b", { since: place, limit: 3 });
  return [delivered, messages[0]?.offset, (await client.list())[0]?.session];
}
export { all };
"""
WRONG = """
import { connect } from "./netd.js";
connect("/ws", { tokens: "t" });
connect("/ws").on("opened", () => {});
connect("/ws").publish("a:b");
connect("/ws").subscribe("a:b", (message) => message.date);
"""


def check(directory: Path, *names: str) -> list[str]:
    """The compiler's complaints."""
    assert TSC is not None
    version = subprocess.run([TSC, "--version"], capture_output=True, text=True, check=True).stdout
    resolution = "node" if version.split()[1].startswith("4.") else "bundler"
    command = [TSC, *STRICT, "--moduleResolution", resolution, *names]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False).stdout.splitlines()


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of all of it at once, as the compiler takes seconds to begin.

    The declarations stand for netd.js; the module is there under another name, too, where they do not.
    """
    room = tmp_path_factory.mktemp("types")
    shutil.copy(CLIENT, room / "netd.js")
    shutil.copy(CLIENT.with_suffix(".d.ts"), room)
    shutil.copy(CLIENT, room / "module.js")
    for name, text in (("agree.ts", AGREE), ("used.ts", USED), ("wrong.ts", WRONG)):
        (room / name).write_text(text)
    return check(room, "module.js", "netd.d.ts", "agree.ts", "used.ts", "wrong.ts")


def test_the_module_is_sound_and_is_what_is_declared(complaints):
    assert [line for line in complaints if not line.startswith(("wrong.ts", " "))] == []


def test_what_is_used_otherwise_is_refused(complaints):
    errors = [line for line in complaints if line.startswith("wrong.ts")]
    assert [line.partition("(")[2].partition(",")[0] for line in errors] == [
        "3",
        "4",
        "5",
        "6",
    ]
