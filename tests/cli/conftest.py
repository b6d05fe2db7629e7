"""`netctl(...)`: a run against the test's own fake daemon, as a function call."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from netd.cli.root import root
from tests.support.fakeapi import FakeApi


@pytest.fixture
def api(tmp_path):
    """A fake daemon that is served; answers may be added at any time."""
    with FakeApi(tmp_path).serving() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _patient_completion(monkeypatch):
    """A machine that is busy with other tests may be slower than a person with a finger on the Tab key is patient."""
    monkeypatch.setattr("netd.cli.targets.COMPLETION", 60.0)


@pytest.fixture
def netctl(api):
    def run(*arguments: str, **environment: str):
        # a pipe has no width; COLUMNS gives one to tests that want a narrow terminal
        environment = {"COLUMNS": "", "NO_COLOR": "", "FORCE_COLOR": ""} | environment
        return CliRunner().invoke(root, ["--socket", str(api.socket), *arguments], env=environment)

    return run
