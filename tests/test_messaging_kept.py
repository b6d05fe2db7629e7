"""What the hub remembers over a stop, as files: read once, gone before anybody is served, never half there."""

from __future__ import annotations

import os
import stat

import pytest

from netd.errors import ConfigError
from netd.hub.config import HubConfig, Namespace, Token
from netd.hub.tokens import Tokens
from netd.messaging import HUB_FILE, Messaging, read_tokens
from netd.runtime.metrics import Metrics

CONFIG = HubConfig(namespace=[Namespace(name="public", history_size=10)])


def messaging(directory, config=CONFIG) -> Messaging:
    return Messaging(config, Tokens(config), version="1", metrics=Metrics(), directory=directory)


def said(room: Messaging) -> list[object]:
    page = room.hub.history(b"public:a")
    return [] if page is None else [publication.data for publication in page.messages]


async def test_a_clean_stop_is_remembered_and_a_crash_after_it_is_not(tmp_path):
    first = messaging(tmp_path)
    await first.restore()
    first.hub.publish(b"public:a", "one")
    first.save()
    file = tmp_path / HUB_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    second = messaging(tmp_path)
    await second.restore()
    assert said(second) == ["one"]
    assert not file.exists()
    assert os.listdir(tmp_path) == []

    third = messaging(tmp_path)  # the second one crashed
    await third.restore()
    assert said(third) == []


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 100, b"{}"])
async def test_a_broken_file_costs_the_history_and_is_kept_aside(tmp_path, data):
    (tmp_path / HUB_FILE).write_bytes(data)
    room = messaging(tmp_path)
    await room.restore()
    assert said(room) == []
    assert os.listdir(tmp_path) == [HUB_FILE + ".bad"]


async def test_a_link_in_its_place_is_not_followed(tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    other = messaging(tmp_path)
    other.hub.publish(b"public:a", "somebody else's")
    other.save()
    (state / HUB_FILE).symlink_to(tmp_path / HUB_FILE)
    room = messaging(state)
    await room.restore()
    assert said(room) == []
    assert (tmp_path / HUB_FILE).exists()

    # nor is one in the place of the new file written through
    (state / f"{HUB_FILE}.new").symlink_to(tmp_path / "victim")
    room.save()
    assert not (tmp_path / "victim").exists()


async def test_what_cannot_be_removed_is_not_used(tmp_path, monkeypatch):
    """Were it there after a crash, its offsets would be given twice."""
    first = messaging(tmp_path)
    first.hub.publish(b"public:a", "one")
    first.save()

    def refuse(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("netd.messaging._remove", refuse)
    second = messaging(tmp_path)
    await second.restore()
    assert said(second) == []


def test_secrets_of_tokens_come_from_files_and_every_problem_is_named(tmp_path):
    good, short = tmp_path / "good", tmp_path / "short"
    good.write_text("  a secret of some length\n")
    short.write_text("short\n")
    tokens = read_tokens(HubConfig(token=[Token(name="press", file=good)]))
    assert tokens.resolve("a secret of some length").token == "press"

    with pytest.raises(ConfigError) as missing:
        read_tokens(HubConfig(token=[Token(name=name, file=tmp_path / name) for name in ("one", "two")]))
    assert [problem.path for problem in missing.value.problems] == ["hub.token.0.file", "hub.token.1.file"]
    with pytest.raises(ConfigError, match="fewer than 16 characters"):
        read_tokens(HubConfig(token=[Token(name="short", file=short)]))
    with pytest.raises(ConfigError, match="has the secret of 'a'"):
        read_tokens(HubConfig(token=[Token(name=name, file=good) for name in "ab"]))
