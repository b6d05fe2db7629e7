"""The command line: arguments in, exit code out, and what is printed where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from netd import __version__
from netd.__main__ import main
from netd.errors import ConfigError, ConfigProblem, StartFailed

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _nothing_of_this_host(monkeypatch, tmp_path):
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("netd.settings.LOADED_CREDENTIALS", tmp_path / "loaded")
    monkeypatch.setattr("netd.settings.CREDENTIALS", tmp_path / "credentials")
    monkeypatch.setenv("NETD_STATE_DIRECTORY", str(tmp_path / "state"))


@pytest.fixture
def daemon(monkeypatch):
    """A daemon that only notes what it is run with; `daemon.outcome` is what it does then."""
    fake = types.SimpleNamespace(calls=[], outcome=lambda: 0)

    def run(**options):
        fake.calls.append(options)
        return fake.outcome()

    fake.run = run
    fake.problems = []
    fake.check = lambda loaded: fake.problems
    monkeypatch.setitem(sys.modules, "netd.daemon", fake)
    monkeypatch.setattr("netd.daemon", fake, raising=False)
    return fake


def refuse(error):
    def outcome():
        raise error

    return outcome


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"paths": [], "log_level": None}),
        (["--config", "a", "--config=b"], {"paths": [Path("a"), Path("b")], "log_level": None}),
        (["-v"], {"paths": [], "log_level": "debug"}),
        (["--verbose"], {"paths": [], "log_level": "debug"}),
        (["--log-level", "error"], {"paths": [], "log_level": "error"}),
    ],
)
def test_the_daemon_is_run_with_what_was_asked(daemon, arguments, expected):
    assert main(arguments) == 0
    assert daemon.calls == [expected]


def test_the_daemons_exit_code_is_the_process_s(daemon):
    daemon.outcome = lambda: 3
    assert main([]) == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ConfigError([ConfigProblem("trace.x", "unknown key", "a.toml:1"), ConfigProblem("", "unknown", "NETD_X")]),
            78,
            "netd: a.toml:1: trace.x: unknown key\nnetd: NETD_X: unknown\n",
        ),
        (StartFailed("trace", "cannot listen"), 69, "netd: cannot listen\n"),
    ],
)
def test_errors_are_said_line_by_line_and_end_by_their_kind(daemon, capsys, error, code, said):
    daemon.outcome = refuse(error)
    assert main([]) == code
    captured = capsys.readouterr()
    assert captured.err == said
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--conf", "x"],  # no abbreviations: they break when options are added
        ["--config"],
        ["--log-level", "loud"],
        ["-v", "--log-level", "info"],
        ["--check", "--print-schema"],
        ["stray"],
    ],
)
def test_wrong_usage_is_64(daemon, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 64
    assert "usage: netd" in capsys.readouterr().err
    assert daemon.calls == []


def test_check_says_ok_and_what_it_read(daemon, capsys, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("log.level = 'error'")
    assert main(["--check", "--config", str(file)]) == 0
    assert capsys.readouterr().out == f"configuration ok: {file}\n"
    assert daemon.calls == []


def test_check_says_what_is_wrong(daemon, capsys, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("\nlog.levle = 'error'")
    absent = tmp_path / "absent.toml"
    assert main(["--check", "--config", str(file), "--config", str(absent)]) == 78
    assert capsys.readouterr().err == (
        f"netd: {absent}: cannot read it: no such file or directory\n"
        f"netd: {file}:2: log.levle: unknown key (did you mean level?)\n"
    )


def test_check_asks_what_the_daemon_would_refuse(daemon, capsys, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("log.level = 'error'")
    daemon.problems = [ConfigProblem("trace.asn", "cannot open it", f"{file}:1"), ConfigProblem("a.b", "cannot")]
    assert main(["--check", "--config", str(file)]) == 78
    captured = capsys.readouterr()
    assert captured.err == f"netd: {file}:1: trace.asn: cannot open it\nnetd: a.b: cannot\n"
    assert captured.out == ""


def check_in_a_shell(directory, capsys, toml):
    file = directory / "x.toml"
    file.write_text(toml)
    code = main(["--check", "--config", str(file)])
    return code, capsys.readouterr().err.replace(f"{directory}/", "")


def test_a_check_in_a_shell_has_the_credentials_of_the_service(daemon, capsys, tmp_path, monkeypatch):
    http = "[anomaly.adapter]\nuse = 'http'"
    (tmp_path / "loaded").mkdir()
    (tmp_path / "loaded" / "netd_anomaly.adapter.url").write_text("http://127.0.0.1:1/?key=hunter2")
    assert check_in_a_shell(tmp_path, capsys, http) == (0, "")

    (tmp_path / "loaded" / "netd_trace.max_hops").write_text("7x")
    code, said = check_in_a_shell(tmp_path, capsys, http)
    assert (code, said.split(": cannot")[0]) == (78, "netd: credential netd_trace.max_hops: trace.max_hops")

    (tmp_path / "other").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "other"))
    assert check_in_a_shell(tmp_path, capsys, "") == (0, ""), "the service's own variable wins"


@pytest.mark.parametrize("toml", ["", "[trace]\nmax_hops = 99"])
def test_a_check_says_when_it_did_not_look_at_credentials(daemon, capsys, tmp_path, monkeypatch, toml):
    code = 78 if toml else 0

    def said():
        ended, text = check_in_a_shell(tmp_path, capsys, toml)
        assert ended == code
        return [line for line in text.splitlines() if "credentials" in line]

    assert said() == []
    (tmp_path / "credentials").mkdir()
    assert said() == []
    (tmp_path / "credentials" / "tls.key").touch()
    assert said() == ["netd: credentials were not looked at (start netd.service, and run as root)"]

    listdir = os.listdir

    def for_root_alone(path):
        if Path(path) == tmp_path / "loaded":
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", for_root_alone)
    assert said() == ["netd: credentials were not looked at (run as root)"]


def test_the_smoke_test_asks_the_daemon_for_its_configuration(tmp_path):
    (tmp_path / "bin").mkdir()
    answers = {
        "netd": 'if [ "$1" = --check ]; then echo it lacks credentials >&2; exit 78; fi; echo netd 1.0',
        "netctl": """case "$*" in
            "--json status") echo '{"ready": true, "version": "1.0"}' ;;
            "--json services") echo '{"services": [{"name": "a", "state": "running", "enabled": true, "error": null,
                "addresses": []}]}' ;;
            "config check") test ! -e wrong ;;
            *) exit 64 ;;
        esac""",
        "systemctl": "exit 0",
    }
    for name, lines in answers.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    command = [sys.executable, "-I", ROOT / "packaging" / "smoke", "--wait", "0"]
    environ = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}

    def ended():
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ)

    result = ended()
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    (tmp_path / "wrong").touch()
    assert "not ok netctl config check: exit status 1" in ended().stdout


def test_the_schema_is_json(capsys):
    assert main(["--print-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "netd.toml"


def test_the_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"netd {__version__}\n"


def test_a_check_of_what_does_not_validate_does_without_the_daemon(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("trace.max_hops = 99")
    command = [sys.executable, "-X", "importtime", "-m", "netd", "--check", "--config", str(file)]

    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert result.returncode == 78
    said = [line for line in result.stderr.splitlines() if not line.startswith("import time:")]
    assert said == [f"netd: {file}:1: trace.max_hops: cannot be 99: input should be less than or equal to 32"]
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "netd.settings" in imported
    assert not imported & {"netd.daemon", "netd.control.app", "netd.services.trace.service", "fastapi", "h11"}
