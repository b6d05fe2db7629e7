"""Loading: which source wins, where each value came from, and every mistake told at once with its place.

Over 600 lines, and one file all the same: each source is tried against each other, with the same few helpers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from netd.control.config import ControlConfig
from netd.errors import ConfigError
from netd.services.trace.config import TraceConfig
from netd.settings import Settings, load, schema, stage_override
from netd.settings.problems import did_you_mean, keys_of, section_of, variable_of
from netd.settings.sources import MAX_BYTES, MAX_FILES

ROOT = Path(__file__).parents[2]


class Host:
    """A directory with configuration files, an environment, credentials and a state directory of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.state.mkdir()
        self.environ = {"NETD_STATE_DIRECTORY": str(self.state), "PATH": "/bin", "HOME": "/root"}

    def file(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(dedent(text))
        return path

    def credential(self, name: str, text: str) -> None:
        directory = self.root / "credentials"
        directory.mkdir(exist_ok=True)
        (directory / name).write_text(text)
        self.environ["CREDENTIALS_DIRECTORY"] = str(directory)

    def load(self, *paths: Path, **options):
        # a path is always given, so that no test depends on the /etc/netd of the machine it runs on
        return load(paths or (self.file("empty.toml", ""),), environ=self.environ, **options)

    def problems(self, *paths: Path, **options) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.load(*paths, **options)
        return str(caught.value).replace(f"{self.root}/", "").splitlines()


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# --- which source wins -----------------------------------------------------------------------------------------------


def test_each_source_wins_over_the_ones_before_it(host):
    main = host.file("netd.toml", "[trace]\nmax_hops = 1\nrounds = 1\nattempts = 1\ninterval = 1\nmax_traces = 1")
    host.file("netd.toml.d/20.toml", "[trace]\nmax_hops = 3\nrounds = 3\nattempts = 3\ninterval = 3")
    host.file("netd.toml.d/10.toml", "[trace]\nmax_hops = 2\nmax_clients = 2")
    host.file("netd.toml.d/30.toml.disabled", "[trace]\nmax_hops = 9")
    host.environ |= {"NETD_TRACE__MAX_HOPS": "4", "NETD_TRACE__ROUNDS": "4", "NETD_TRACE__ATTEMPTS": "2"}
    host.credential("netd.trace.max_hops", "5\n")
    host.credential("netd.trace.rounds", " 5")
    host.file("state/override.toml", "[trace]\nmax_hops = 6")

    loaded = host.load(main)

    trace = loaded.settings.trace
    assert (trace.max_hops, trace.rounds, trace.attempts, trace.interval) == (6, 5, 2, 3)
    assert (trace.max_clients, trace.max_traces) == (2, 1)
    assert {key: place.replace(f"{host.root}/", "") for key, place in loaded.origins.items()} == {
        "state_directory": "NETD_STATE_DIRECTORY",
        "trace.max_hops": "state/override.toml:2",
        "trace.rounds": "credential netd.trace.rounds",
        "trace.attempts": "NETD_TRACE__ATTEMPTS",
        "trace.interval": "netd.toml.d/20.toml:5",
        "trace.max_clients": "netd.toml.d/10.toml:3",
        "trace.max_traces": "netd.toml:6",
    }
    assert loaded.sources == [
        str(host.root / name)
        for name in ("netd.toml", "netd.toml.d/10.toml", "netd.toml.d/20.toml", "state/override.toml")
    ]


def test_files_and_directories_in_the_order_given(host):
    first = host.file("first.toml", "log.level = 'debug'")
    host.file("some/b.toml", "log.level = 'error'")
    host.file("some/a.toml", "log.level = 'warning'")

    assert host.load(first, host.root / "some").settings.log.level == "error"
    assert host.load(host.root / "some", first).settings.log.level == "debug"
    assert host.load(first, host.root / "some", first).settings.log.level == "debug"


def test_tables_merge_and_lists_replace(host):
    one = host.file("one.toml", "[trace.history]\nmax_rows = 7\n[[trace.listen]]\naddress = '127.0.0.1:1'\npath = '/x'")
    two = host.file("two.toml", "[trace.history]\nmax_age_days = 2\n[[trace.listen]]\naddress = '127.0.0.1:2'")

    loaded = host.load(one, two)

    trace = loaded.settings.trace
    assert (trace.history.max_rows, trace.history.max_age_days) == (7, 2)
    assert [(listen.address, listen.path) for listen in trace.listen] == [("127.0.0.1:2", "/")]
    assert loaded.origins["trace.listen"] == f"{two}:3"
    assert loaded.origins["trace.history.max_rows"] == f"{one}:2"


def test_lists_and_tables_in_the_environment_are_json(host):
    host.environ["NETD_TRACE__LISTEN"] = '[{"address": "127.0.0.1:5"}, {"address": "[::1]:5"}]'
    host.environ["NETD_LOG"] = '{"loggers": {"netd.trace": "debug"}}'
    host.environ["NETD_LOG__LEVEL"] = "error"

    loaded = host.load()

    assert [listen.address for listen in loaded.settings.trace.listen] == ["127.0.0.1:5", "[::1]:5"]
    assert (loaded.settings.log.level, loaded.settings.log.loggers) == ("error", {"netd.trace": "debug"})
    assert loaded.origins["trace.listen"] == "NETD_TRACE__LISTEN"
    assert loaded.origins['log.loggers."netd.trace"'] == "NETD_LOG"


def test_an_empty_string_means_none_where_there_may_be_none(host):
    file = host.file("x.toml", "[control]\nsocket = ''\ngroup = ''\n[[trace.listen]]\naddress='[::1]:1'\ninterface=''")
    host.environ["NETD_STATE_DIRECTORY"] = ""

    config = host.load(file).settings

    assert config.control.socket is config.control.group is config.state_directory is None
    assert config.trace.listen[0].interface is None


def test_relative_paths_start_where_netd_does(host, monkeypatch):
    monkeypatch.chdir(host.root)
    host.environ["NETD_STATE_DIRECTORY"] = "state"
    file = host.file("x.toml", "control.socket = 'var/c.sock'")
    host.file("state/override.toml", "log.level = 'error'")

    config = host.load(file).settings

    assert config.state_directory == host.state
    assert config.control.socket == host.root / "var/c.sock"
    assert config.log.level == "error"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "/var/lib/netd"),
        ({"STATE_DIRECTORY": "/unit/a:/unit/b"}, "/unit/a"),
        ({"STATE_DIRECTORY": "/unit/chat:/unit/netd:/unit/others"}, "/unit/netd"),  # as systemd sorts a drop-in's
        ({"STATE_DIRECTORY": "/unit/a", "NETD_STATE_DIRECTORY": "/mine"}, "/mine"),
    ],
)
def test_the_state_directory_is_the_units_unless_it_is_configured(host, environ, expected, monkeypatch):
    # where override.toml is looked for: this machine may have a netd of its own, whose file is not ours to read
    monkeypatch.setattr("netd.settings.DEFAULT_STATE_DIRECTORY", host.root / "absent")
    assert load([host.file("x.toml", "")], environ=environ).settings.state_directory == Path(expected)


def test_the_environment_is_read_only_by_load(monkeypatch):
    monkeypatch.setenv("NETD_LOG__LEVEL", "error")
    assert Settings().log.level == "info"
    assert Settings.embedded({}).log.level == "info"


def test_a_default_file_that_is_not_there_means_defaults(host, monkeypatch):
    monkeypatch.setattr("netd.settings.DEFAULT_FILE", host.root / "etc/netd.toml")
    loaded = load(environ=host.environ)
    assert loaded.sources == []
    assert loaded.settings.trace == TraceConfig()

    drop_in = host.file("etc/netd.toml.d/a.toml", "log.level = 'error'")
    assert load(environ=host.environ).sources == [str(drop_in)]

    main = host.file("etc/netd.toml", "log.level = 'debug'")
    assert load(environ=host.environ).sources == [str(main), str(drop_in)]


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_every_mistake_of_every_source_at_once(host):
    host.environ |= {
        "NETD_TRACE_MAX_HOPS": "3",
        "NETD_TRACE__ROUNDS": "few",
        "NETD_TRACE__ATTEMPS": "1",
        "NETD_METRICS__LISTEN": "127.0.0.1:1",
        "netd_log__level": "info",
        "NETD_NATIVE": "off",
    }
    host.credential("netd.trace.interval", "hunter2")
    host.credential("netd.trase.names", "true")
    host.credential("tls.key", "not a setting")
    host.file("state/override.toml", "[trace]\nshare = 'perhaps'\n")
    main = host.file(
        "netd.toml",
        """\
        [trace]
        max_hops = "many"
        max_hps = 3
        [[trace.listen]]
        address = "127.0.0.1:1"
        [[trace.listen]]
        adress = "127.0.0.1:2"
        [trcae]
        x = 1
        [log.loggers]
        "netd.x" = "loud"
        [control]
        limits.max_head = 3
        max_clients = 2
        """,
    )
    broken = host.file("broken.toml", "[log]\nlevel = 'info'\nlevel = 'debug'\n")

    assert host.problems(main, broken, host.root / "absent.toml") == [
        "absent.toml: cannot read it: no such file or directory",
        "broken.toml:3: cannot read this as TOML: cannot overwrite a value",
        "netd.toml:2: trace.max_hops: cannot be 'many': "
        "input should be a valid integer, unable to parse string as an integer",
        "netd.toml:3: trace.max_hps: unknown key (did you mean max_hops?)",
        "netd.toml:6: trace.listen.1.address: required, but not set",
        "netd.toml:7: trace.listen.1.adress: unknown key (did you mean address?)",
        "netd.toml:8: trcae: unknown key (did you mean trace?)",
        "netd.toml:11: log.loggers.\"netd.x\": cannot be 'loud': "
        "input should be 'debug', 'info', 'warning', 'error' or 'critical'",
        "netd.toml:13: control.limits.max_head: cannot be 3: input should be greater than or equal to 512",
        "netd.toml:14: control.max_clients: unknown key (did you mean trace.max_clients?)",
        "state/override.toml:2: trace.share: cannot be 'perhaps': "
        "input should be a valid boolean, unable to interpret input",
        "NETD_METRICS__LISTEN: metrics.listen: cannot be '127.0.0.1:1': input should be a valid list (as JSON)",
        "NETD_TRACE_MAX_HOPS: unknown variable (did you mean NETD_TRACE__MAX_HOPS?)",
        "NETD_TRACE__ATTEMPS: trace.attemps: unknown key (did you mean NETD_TRACE__ATTEMPTS?)",
        "NETD_TRACE__ROUNDS: trace.rounds: cannot be 'few': "
        "input should be a valid integer, unable to parse string as an integer",
        "credential netd.trace.interval: trace.interval: cannot use this value (not shown: it is secret): "
        "input should be a valid number, unable to parse string as a number",
        "credential netd.trase.names: unknown key (did you mean netd.trace.names?)",
        "netd_log__level: unknown variable (did you mean NETD_LOG__LEVEL?)",
    ]


@pytest.mark.parametrize("variable", ["NETD_FOO", "NETD_BOG", "NETD_LO__HOP"])
def test_a_variable_that_resembles_none_gets_no_guess(variable):
    assert "did you mean" not in did_you_mean(variable, [variable_of(key) for key in keys_of(Settings)])


def test_an_unknown_key_is_told_for_each_file_that_has_it(host):
    one = host.file("one.toml", "[trace]\nfoo = 1")
    two = host.file("two.toml", "\n\n[trace]\nfoo = 2")
    assert host.problems(one, two) == ["one.toml:2: trace.foo: unknown key", "two.toml:4: trace.foo: unknown key"]


def test_a_mistake_is_told_only_of_the_value_that_counts(host):
    one = host.file("one.toml", "trace.max_hops = 'many'")
    two = host.file("two.toml", "trace.max_hops = 8")
    assert host.load(one, two).settings.trace.max_hops == 8
    assert [line[:10] for line in host.problems(two, one)] == ["one.toml:1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trace = 5", "x.toml:1: trace: cannot be 5"),
        ("[[trace]]\nmax_hops = 3", "x.toml:1: trace: cannot be "),
        ("[trace]\nlisten = '127.0.0.1:1'", "x.toml:2: trace.listen: cannot be '127.0.0.1:1': input should be a valid"),
        ("trace.listen = [\n1]", "x.toml:2: trace.listen.0: cannot be 1"),
        (
            "[[trace.listen]]\naddress = 'localhost:1'",
            "x.toml:2: trace.listen.0.address: cannot listen on 'localhost:1'",
        ),
        ('control.users = ["a b"]', "x.toml:1: control.users.0: cannot use 'a b' as an account"),
        ("a = " + "9" * 4000, "x.toml:1: a: unknown key"),
        ("log.level = '" + "x" * 4000 + "'", "x.toml:1: log.level: cannot be 'xxxxxxxx"),
        ("\n\na", "x.toml:3: cannot read this as TOML: expected '='"),
        ("a = '''\n\n", "x.toml:2: cannot read this as TOML"),
        ("a = " + "[" * 20_000, "x.toml: cannot read this as TOML: values are nested too deeply"),
        ('"\\u0000" = 1', 'x.toml:1: "\\U00000000": unknown key'),
        ("#" * (MAX_BYTES + 1), f"x.toml: cannot read more than {MAX_BYTES} bytes"),
    ],
)
def test_one_line_for_one_mistake_however_strange(host, text, expected):
    (line,) = host.problems(host.file("x.toml", text))
    assert line.startswith(expected)
    assert len(line) < 400


def test_files_that_are_no_text_are_told(host):
    (host.root / "binary.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    assert host.problems(host.root / "binary.toml") == ["binary.toml:2: cannot read this as UTF-8 text"]
    assert host.problems(Path("nul\0byte")) == ["nul\0byte: cannot read it: embedded null byte"]


def test_a_directory_with_too_many_files_is_told(host):
    for index in range(MAX_FILES + 1):
        host.file(f"many/{index:04}.toml", "")
    assert host.problems(host.root / "many") == [f"many: cannot read more than {MAX_FILES} files: merge some"]


def test_what_cannot_be_read_is_told(host):
    host.file("x.toml.d/directory.toml/file", "")
    assert host.problems(host.file("x.toml", "")) == ["x.toml.d/directory.toml: cannot read it: is a directory"]


def test_files_without_permission_are_told(host):
    file = host.file("secret.toml", "")
    file.chmod(0)
    host.state.chmod(0)
    host.root.chmod(0o755)
    with unprivileged():
        assert host.problems(file) == [
            "secret.toml: cannot read it: permission denied",
            "state/override.toml: cannot read it: permission denied",
        ]


@contextmanager
def unprivileged():
    """Root may read every file: become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_credentials_directory_that_cannot_be_read_is_told(host):
    host.environ["CREDENTIALS_DIRECTORY"] = str(host.root / "gone")
    assert host.problems() == ["credentials in gone: cannot read it: no such file or directory"]


def test_a_file_of_the_credentials_directory_is_a_setting_if_it_is_named_like_one(host):
    # what LoadCredential=netd:/etc/netd/credentials makes of the files in it
    host.credential("netd_trace.max_hops", "5\n")
    host.credential("netd_anomaly.adapter.token", "a secret of mine\n")
    host.credential("netd_control.users", '["alice"]')
    host.credential("netd_metrics.enabled", "false")
    for name in ("netd", "key", "netd_tls.key", "netd_example.org.pem", "netd_trace", "netd_log_level", "netd_a_b"):
        host.credential(name, "a file that settings may point at")

    loaded = host.load()

    config = loaded.settings
    assert (config.trace.max_hops, config.metrics.enabled, config.control.users) == (5, False, ["alice"])
    assert config.anomaly.adapter.token.get_secret_value() == "a secret of mine"
    assert loaded.origins["trace.max_hops"] == "credential netd_trace.max_hops"
    assert loaded.origins["anomaly.adapter.token"] == "credential netd_anomaly.adapter.token"
    assert len(loaded.origins) == 5  # those four and state_directory


def test_of_both_names_for_one_key_the_directorys_wins(host):
    host.credential("netd_trace.max_hops", "6")
    host.credential("netd.trace.max_hops", "5")
    host.credential("netd.trace.rounds", "3")

    loaded = host.load()

    assert (loaded.settings.trace.max_hops, loaded.settings.trace.rounds) == (6, 3)
    assert loaded.origins["trace.max_hops"] == "credential netd_trace.max_hops"
    assert loaded.origins["trace.rounds"] == "credential netd.trace.rounds"


def test_mistakes_in_the_credentials_directory_name_the_file(host):
    host.credential("netd_trace.interval", "hunter2")
    host.credential("netd_trace.max_hps", "3")
    host.credential("netd_trase.max_hops", "3")
    host.credential("netd_Hub.broadcast", "nobody")
    host.credential("netd_framed.crt", "-----BEGIN CERTIFICATE-----")
    host.credential("netd_trace.listen", "127.0.0.1:1")
    (host.root / "credentials/netd_hub.direct").write_bytes(b"\xff")
    (host.root / "credentials/netd_log.level").mkdir()

    assert host.problems() == [
        "credential netd_Hub.broadcast: unknown key (did you mean netd_hub.broadcast?)",
        "credential netd_framed.crt: framed.crt: unknown key "
        '(is it a file that a setting points at? Then its name must not begin with "framed.")',
        "credential netd_hub.direct:1: cannot read this as UTF-8 text",
        "credential netd_log.level: cannot read it: is a directory",
        "credential netd_trace.interval: trace.interval: cannot use this value (not shown: it is secret): "
        "input should be a valid number, unable to parse string as a number",
        "credential netd_trace.listen: trace.listen: cannot use this value (not shown: it is secret): "
        "input should be a valid list (as JSON)",
        "credential netd_trace.max_hps: trace.max_hps: unknown key (did you mean max_hops?)",
        "credential netd_trase.max_hops: unknown key (did you mean netd_trace.max_hops?)",
    ]


@pytest.mark.parametrize("also", ["[framed]\nmax_frame = 4194304", "framed.max_frame = 4194304", ""])
def test_what_is_wrong_with_a_table_quotes_no_credential_that_is_in_it(host, also):
    host.credential("netd_framed.backpressure", "123456")

    (line,) = host.problems(host.file("n.toml", also))

    assert "123456" not in line
    assert "credential netd_framed.backpressure" in line
    assert line.endswith("(see also credential netd_framed.backpressure)") == bool(also)
    assert line.startswith("n.toml:1: framed: " if also else "credential netd_framed.backpressure: framed: ")

    # none of this one is secret
    host.credential("netd_trace.max_hops", "3")
    host.environ["NETD_FRAMED__MAX_FRAME"] = "256000000"
    host.environ["NETD_FRAMED__BACKPRESSURE"] = "7654321"
    (host.root / "credentials/netd_framed.backpressure").unlink()
    assert "cannot let 7654321 bytes wait" in host.problems(host.file("n.toml", also))[0]


def test_a_credential_whose_key_has_capitals_is_refused_whatever_else_there_is(host):
    for name in ("netd_Trace.Max_Hops", "netd_trace.Max_Hops", "netd.trace.MAX_HOPS", "netd.TRACE.rounds"):
        host.credential(name, "7x")
    host.credential("netd_TRACE.crt", "7x")
    host.credential("netd.trace.max_hops", "9")
    for name in ("netd_TLS.key", "netd_Example.org.PEM", "netd_Trace"):
        host.credential(name, "a file that settings may point at")

    assert host.problems() == [
        "credential netd.TRACE.rounds: unknown key (did you mean netd.trace.rounds?)",
        "credential netd.trace.MAX_HOPS: unknown key (did you mean netd.trace.max_hops?)",
        "credential netd_TRACE.crt: unknown key "
        '(is it a file that a setting points at? Then its name must not begin with "TRACE.")',
        "credential netd_Trace.Max_Hops: unknown key (did you mean netd_trace.max_hops?)",
        "credential netd_trace.Max_Hops: unknown key (did you mean netd_trace.max_hops?)",
    ]


def test_the_keys_that_came_from_credentials_are_told_apart(host):
    main = host.file("netd.toml", "[trace]\nmax_hops = 3\nrounds = 3\n[anomaly]\nenabled = false")
    host.file("state/override.toml", "trace.rounds = 4")
    host.credential("netd_trace.rounds", "5")
    host.credential("netd_trace.attempts", "2")
    host.credential("netd_control", '{"users": ["alice"]}')
    host.credential("netd.control", '{"users": ["alice"], "limits": {"max_head": 600}}')
    host.credential("netd.log.loggers", '{"netd.trace": "debug"}')
    host.credential("netd.supervisor", "{}")

    assert host.load(main).hidden == {
        ("trace", "attempts"),
        ("control", "users"),
        ("control", "limits", "max_head"),
        ("log", "loggers", "netd.trace"),
    }


def test_parts_of_a_list_cannot_be_set_from_the_environment(host):
    host.environ["NETD_TRACE__LISTEN__0__ADDRESS"] = "127.0.0.1:1"
    (line,) = host.problems()
    assert line.startswith("NETD_TRACE__LISTEN__0__ADDRESS: trace.listen: cannot be a table")


names = st.one_of(
    st.sampled_from(["NETD_", "NETD___", "NETD_TRACE", "NETD_TRACE__", "NETD_TRACE__LISTEN", "NETD_LOG__LOGGERS__a"]),
    st.sampled_from(["NETD_CONTROL__LIMITS", "NETD_CONTROL__LIMITS__MAX_HEAD__X", "NETD_STATE_DIRECTORY", "NETD_LOG"]),
    st.text("NETD_TRACELOGabc", max_size=20).map("NETD_".__add__),
)
texts = st.one_of(
    st.sampled_from(
        ["{", "[]", "{}", "[[[[", '{"max_hops": {}}', "null", "1e999", '{"a": [1, {"b": null}]}', "\udcff"]
    ),
    st.text(max_size=10),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, texts, max_size=4))
def test_no_environment_makes_loading_fail_in_any_other_way(host, environ):
    empty = host.file("empty.toml", "")
    problems = ()
    try:
        load([empty], environ={"NETD_STATE_DIRECTORY": "", **environ})
    except ConfigError as error:
        problems = error.problems
    assert all(problem.source in environ for problem in problems), "each names the variable at fault"


# --- overrides -------------------------------------------------------------------------------------------------------


def test_an_override_can_be_tried_before_it_is_written(host):
    main = host.file("netd.toml", "[trace]\nmax_hops = 3\nrounds = 3")
    host.file("state/override.toml", "trace.rounds = 4")
    changes = {"trace.max_hops": 9, "trace.rounds": None, 'log.loggers."netd.x"': "debug"}

    tried = host.load(main, override=changes)
    assert host.load(main).settings.trace.max_hops == 3, "trying changes nothing"
    stage_override(host.state, changes).commit()

    assert host.load(main) == tried
    assert (tried.settings.trace.max_hops, tried.settings.trace.rounds) == (9, 3)
    assert tried.origins["trace.max_hops"].startswith(f"{host.state}/override.toml:")


def test_an_override_that_cannot_be_is_told_like_any_other_mistake(host):
    main = host.file("netd.toml", "[trace]\nmax_hops = 'x'")
    lines = host.problems(main, override={"trace.rouns": 1, "trace.listen": [{"address": "x:1"}]})
    assert [line.split(": ")[1] for line in lines] == ["trace.max_hops", "trace.rouns", "trace.listen.0.address"]
    assert lines[1].endswith("unknown key (did you mean rounds?)")
    assert lines[2].startswith("state/override.toml:")

    assert host.problems(override={"log.level": object()})[0].startswith("log.level: cannot write <object")
    assert not (host.state / "override.toml").exists()


def test_override_cannot_say_where_it_is_itself(host):
    host.file("state/override.toml", "state_directory = '/elsewhere'")
    assert host.problems() == [
        "state/override.toml:1: state_directory: cannot be set in the file that it says where to find"
    ]


def test_nothing_can_be_overridden_without_a_state_directory(host):
    host.environ["NETD_STATE_DIRECTORY"] = ""
    assert host.problems(override={"log.level": "debug"}) == [
        "state_directory: cannot keep settings without a state directory"
    ]


# --- the model -------------------------------------------------------------------------------------------------------


def test_embedded_settings_take_nothing_of_the_host():
    config = Settings.embedded({"trace": {"max_hops": 5}, "control": {"users": ["me"]}})
    assert config.control == ControlConfig(socket=None, users=["me"])
    assert config.state_directory is None
    assert config.trace.max_hops == 5

    given_objects = Settings.embedded({"trace": TraceConfig(max_hops=6), "state_directory": "/s"})
    assert (given_objects.trace.max_hops, given_objects.state_directory) == (6, Path("/s"))


def test_embedded_settings_tell_all_mistakes():
    with pytest.raises(ConfigError) as caught:
        Settings.embedded({"trace": {"max_hps": 1, "rounds": "x"}, "what": 1, "_env_file": "x"})
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"trace.max_hps", "trace.rounds", "what", "_env_file"}


def test_services_are_the_sections_that_can_be_enabled():
    config = Settings()
    services = config.services()
    assert services["trace"] is config.trace
    sections = {name: getattr(config, name) for name in Settings.model_fields}
    # a hub of one machine has nothing to talk to
    sections["backplane"] = config.backplane.model_copy(update={"enabled": False})
    assert services == {name: section for name, section in sections.items() if hasattr(section, "enabled")}


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().log = None


def test_the_schema_describes_every_key():
    document = schema()
    json.dumps(document)
    level = document["$defs"]["LogConfig"]["properties"]["level"]
    assert level["x-reload"] == "live"
    assert level["enum"] == ["debug", "info", "warning", "error", "critical"]
    assert document["additionalProperties"] is False
    assert set(document["properties"]) == set(Settings.model_fields)
    bare = [f"{section.__name__}.{key}" for section, key in fields_of(Settings) if not description(section, key)]
    assert bare == [], "keys without a docstring"


def fields_of(section: type[BaseModel]):
    for key, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            yield from fields_of(inner)
        else:
            yield section, key


def description(section, key):
    return section.model_fields[key].description


@pytest.mark.parametrize("name", ["netd.toml", "dev.toml"])
def test_the_shipped_configuration_is_valid(host, name):
    assert host.load(ROOT / "config" / name).sources == [str(ROOT / "config" / name)]


def test_dev_configuration_stays_on_this_machine_and_below_var(host, monkeypatch):
    monkeypatch.chdir(host.root)
    del host.environ["NETD_STATE_DIRECTORY"]

    config = host.load(ROOT / "config/dev.toml").settings

    assert [listen.address for listen in config.trace.listen] == ["127.0.0.1:8080", "[::1]:8080"]
    assert config.trace.reveal_private
    assert config.control.socket == host.root / "var/control.sock"
    assert config.state_directory == host.root / "var"


def test_loading_imports_no_service_and_no_web_framework():
    program = "import sys; from netd.settings import load; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    imported = set(result.stdout.split())
    assert "netd.settings" in imported
    assert not imported & {"fastapi", "starlette", "h11", "httpx", "netd.daemon", "netd.control.app", "tomlkit"}
    assert not {name for name in imported if name.startswith("netd.services.") and name.endswith(".service")}
