"""override.toml: what is set is what is read back, and a write leaves the old file or the new one."""

from __future__ import annotations

import os
import stat
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.errors import ConfigError
from netd.section import OVERRIDE_FILE
from netd.settings.overrides import stage_override, text_with
from netd.wire.tomlkeys import join_key


def written(directory):
    return tomllib.loads((directory / OVERRIDE_FILE).read_text())


def test_keys_are_set_changed_and_taken_back(tmp_path):
    stage_override(tmp_path, {"trace.max_hops": 20, "trace.history.max_rows": 5, "log.level": "debug"}).commit()
    stage_override(tmp_path, {"trace.max_hops": 25, 'log.loggers."netd.trace"': "error"}).commit()
    assert written(tmp_path) == {
        "trace": {"max_hops": 25, "history": {"max_rows": 5}},
        "log": {"level": "debug", "loggers": {"netd.trace": "error"}},
    }

    stage_override(tmp_path, {"trace.history.max_rows": None, "log": None, "never.was": None}).commit()
    assert written(tmp_path) == {"trace": {"max_hops": 25}}, "a table left empty goes with its last key"


def test_the_file_says_how_a_setting_is_taken_back(tmp_path):
    assert "netctl config set --unset KEY" in stage_override(tmp_path, {"trace.max_hops": 20}).commit().read_text()


def test_only_the_owner_reads_it_and_no_temporary_file_stays(tmp_path):
    file = stage_override(tmp_path, {"trace.max_hops": 20}).commit()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [OVERRIDE_FILE]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    stage_override(tmp_path, {"trace.max_hops": 20}).commit()

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"override\.toml: cannot write it: no space left"):
        stage_override(tmp_path, {"trace.max_hops": 21}).commit()

    assert written(tmp_path) == {"trace": {"max_hops": 20}}
    assert [entry.name for entry in tmp_path.iterdir()] == [OVERRIDE_FILE]


def test_a_directory_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot write it: no such file or directory"):
        stage_override(tmp_path / "absent", {"trace.max_hops": 20}).commit()


def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path):
    (tmp_path / OVERRIDE_FILE).write_text("half a lin")
    with pytest.raises(ConfigError, match="cannot change a file that cannot be read"):
        stage_override(tmp_path, {"trace.max_hops": 20}).commit()
    assert (tmp_path / OVERRIDE_FILE).read_text() == "half a lin"


def test_everything_toml_cannot_say_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        text_with(tmp_path, {"a.b": [1, None], "c": {"d": None}, "no key": 1, "e": "\ud800", "f": object()})

    assert [problem.path for problem in caught.value.problems] == ["a.b.1", "c.d", "no key", "e", "f"]


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
leaves = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.booleans(),
)
values = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3))
)


@settings(deadline=None)
@given(st.dictionaries(names, values, max_size=4), names)
def test_any_json_value_is_read_back_as_it_was(tmp_path_factory, tables, name):
    directory = tmp_path_factory.getbasetemp()  # nothing is written there
    changes = {join_key((name, key)): value for key, value in tables.items()}

    text = text_with(directory, changes)

    assert tomllib.loads(text) == ({name: tables} if tables else {})
