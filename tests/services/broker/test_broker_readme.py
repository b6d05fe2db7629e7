"""What README shows: its worker serves a page to chat on, and its settings are settings.

Its other programs run in tests/test_messaging.py and tests/test_embedded.py, its pages in tests/browser.
"""

from __future__ import annotations

import re
import runpy
import textwrap
import tomllib
from pathlib import Path

import httpx
import pytest
import trio

import netd
from netd.settings import Settings
from netd.worker import serve
from tests.support.websocket import websocket

README = (Path(__file__).parents[3] / "README.md").read_text()
SETTINGS = [
    *re.findall(r"```toml\n(.*?)```", README, re.DOTALL),
    *map(textwrap.dedent, re.findall(r"<<END\n(.*?)    END\n", README, re.DOTALL)),
]


@pytest.mark.parametrize("text", SETTINGS)
def test_the_settings_of_the_readme_are_settings(text):
    settings = Settings.model_validate(tomllib.loads(text.replace("$USER", "alice")))  # as the shell does
    assert settings != Settings()


def test_all_of_them_are_looked_at():
    assert len(SETTINGS) == README.count("```toml") + README.count("<<END") > 3


async def test_the_worker_of_the_readme_serves_a_page_to_chat_on(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    [example] = [text for text in examples if "netd.worker" in text]
    program = tmp_path / "chat.py"
    program.write_text(example)
    worker = runpy.run_path(str(program))["worker"]
    settings = {
        "trace": {"enabled": False},
        "broker": {"listen": [{"address": "127.0.0.1:0"}]},
        "worker": {"socket": str(tmp_path / "worker.sock"), "group": None},
    }
    with trio.fail_after(30):
        async with netd.open(settings) as daemon, trio.open_nursery() as nursery:
            await nursery.start(serve, worker, tmp_path / "worker.sock")
            [address] = daemon.addresses("broker")
            async with httpx.AsyncClient(trust_env=False) as client:
                page = await client.get(f"http://{address}/")
            assert page.headers["content-type"] == "text/html"
            assert "`ws://${location.host}/app`" in page.text
            async with websocket(f"ws://{address}/app") as one, websocket(f"ws://{address}/app") as other:
                await one.send_message("hello")  # what a session says is handled after its opening
                assert (await one.get_message()).endswith(" says: hello")
                await other.send_message("hello you")
                assert (await one.get_message()).endswith(" says: hello you")
                while not (await other.get_message()).endswith(" says: hello you"):
                    pass  # it may have been there for what came before
            nursery.cancel_scope.cancel()
