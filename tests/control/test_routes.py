"""Every route of the control API itself, as a client of the right account sees it."""

from __future__ import annotations

import os

import pytest
import trio
from structlog.testing import capture_logs

from netd.errors import ConfigError, ConfigProblem, Conflict, ReloadRefused, StartFailed
from tests.support.host import unit


def error_of(response, status):
    """The error of a response, whose shape is the same everywhere."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert {"kind", "message"} <= set(error) <= {"kind", "message", "path"}
    assert error["message"].startswith("cannot ")
    return error


# --- status ---------------------------------------------------------------------------------------------------------


async def test_status_is_the_daemon_at_a_glance(user, host):
    host.health.warn("trace.unprivileged", "cannot open raw sockets", advice="grant CAP_NET_RAW", service="trace")
    answer = (await user.get("/v1/status")).json()
    assert answer["version"] == "1.2.3"
    assert (answer["state"], answer["ready"], answer["pid"]) == ("running", True, os.getpid())
    assert answer["uptime_s"] >= 60
    assert [one["name"] for one in answer["services"]] == ["trace", "broker"]
    assert answer["services"][0]["addresses"] == ["127.0.0.1:8080"]
    assert answer["warnings"][0]["advice"] == "grant CAP_NET_RAW"
    assert answer["config"] == {"sources": ["netd.toml"], "etag": "abc123"}


async def test_health_says_what_is_wrong_and_ready_whether_it_serves(user, host):
    assert (await user.get("/v1/health")).json() == {"status": "ok", "warnings": []}
    host.health.warn("netd.clock", "cannot trust the clock")
    health = (await user.get("/v1/health")).json()
    assert (health["status"], health["warnings"][0]["code"]) == ("degraded", "netd.clock")
    ready = await user.get("/v1/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "waiting": []}), "a warning is not unreadiness"


async def test_not_ready_names_whom_it_waits_for(user, host):
    host.units["broker"] = unit("broker", "starting")
    host.units["off"] = unit("off", "stopped", enabled=False)
    response = await user.get("/v1/ready")
    assert (response.status_code, response.json()) == (503, {"ready": False, "waiting": ["broker"]})


async def test_a_draining_daemon_is_not_ready_and_still_answers(user, host):
    host.state = "draining"
    assert (await user.get("/v1/ready")).status_code == 503
    assert (await user.get("/v1/status")).json()["state"] == "draining"


async def test_metrics_are_prometheus_text(user, host):
    host.metrics.counter("netd_test_total", "A test.").inc(3)
    response = await user.get("/v1/metrics")
    assert response.headers["content-type"] == host.metrics.content_type
    assert "netd_test_total 3.0" in response.text


# --- services and changes ---------------------------------------------------------------------------------------------


async def test_services_one_and_all(user):
    assert [one["name"] for one in (await user.get("/v1/services")).json()["services"]] == ["trace", "broker"]
    assert (await user.get("/v1/services/broker")).json()["state"] == "running"
    error = error_of(await user.get("/v1/services/brocker"), 404)
    assert error == {"kind": "not-found", "message": "cannot find service 'brocker': there are trace, broker"}


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
async def test_a_verb_is_a_change_that_can_be_followed(verb, root, host):
    host.gate = trio.Event()
    response = await root.post(f"/v1/services/trace/{verb}")
    change = response.json()
    assert response.status_code == 202
    assert (change["kind"], change["target"], change["status"]) == (f"service.{verb}", "trace", "doing")
    assert (change["ended"], change["result"], change["error"]) == (None, None, None)
    host.gate.set()
    followed = await root.get(f"/v1/changes/{change['id']}", params={"wait": 60})
    assert followed.status_code == 200
    assert followed.json()["status"] == "done"
    assert followed.json()["result"]["name"] == "trace"
    assert followed.json()["ended"] >= followed.json()["since"]
    assert host.asked == [(verb, "trace")]


async def test_a_change_waited_for_is_answered_done(root):
    response = await root.post("/v1/services/trace/stop", params={"wait": 60})
    assert (response.status_code, response.json()["status"]) == (200, "done")
    assert response.json()["result"]["state"] == "stopped"


async def test_waiting_has_an_end(root, host, autojump_clock):
    host.gate = trio.Event()
    began = trio.current_time()
    response = await root.post("/v1/services/trace/stop", params={"wait": 2.5})
    assert (response.status_code, response.json()["status"]) == (202, "doing")
    assert trio.current_time() - began == 2.5


async def test_a_change_that_fails_while_waited_for_is_its_own_error(root, host):
    host.fail = StartFailed("trace", "cannot start trace: the port is taken")
    error = error_of(await root.post("/v1/services/trace/start", params={"wait": 60}), 503)
    assert error == {"kind": "start-failed", "message": "cannot start trace: the port is taken"}


async def test_a_change_that_fails_later_is_found_failed(root, host):
    host.fail = StartFailed("trace", "cannot start trace: the port is taken")
    change = (await root.post("/v1/services/trace/start")).json()
    followed = (await root.get(f"/v1/changes/{change['id']}?wait=60")).json()
    assert followed["status"] == "failed"
    assert followed["error"]["kind"] == "start-failed"


async def test_an_unknown_service_is_no_change(root, host):
    assert error_of(await root.post("/v1/services/nobody/stop"), 404)["kind"] == "not-found"
    assert error_of(await root.post("/v1/services/trace/explode"), 404)["kind"] == "not-found"
    assert (await root.get("/v1/changes")).json() == {"changes": []}
    assert host.asked == []


async def test_changes_are_listed_newest_first(root):
    first = (await root.post("/v1/services/trace/stop?wait=60")).json()
    second = (await root.post("/v1/reload?wait=60")).json()
    assert [one["id"] for one in (await root.get("/v1/changes")).json()["changes"]] == [second["id"], first["id"]]


async def test_an_unknown_change_is_not_found(user):
    assert error_of(await user.get("/v1/changes/b007-99"), 404)["kind"] == "not-found"


# --- configuration ----------------------------------------------------------------------------------------------------


async def test_a_reload_says_what_it_changed(root):
    result = (await root.post("/v1/reload?wait=60")).json()["result"]
    assert result["changes"] == [{"path": "trace.max_hops", "running": 30, "configured": 20, "effect": "live"}]
    assert [one["name"] for one in result["services"]] == ["trace", "broker"]


async def test_a_refused_reload_is_a_conflict_that_names_the_field(root, host):
    host.fail = ReloadRefused("cannot change control.socket without a restart", path="control.socket")
    error = error_of(await root.post("/v1/reload?wait=60"), 409)
    assert (error["kind"], error["path"]) == ("reload-refused", "control.socket")


async def test_a_reload_of_a_broken_configuration_tells_every_problem(root, host):
    problems = [ConfigProblem("trace.max_hops", "cannot be 99", "netd.toml:3"), ConfigProblem("trace.x", "unknown")]
    host.fail = ConfigError(problems)
    response = await root.post("/v1/reload?wait=60")
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["kind"], error["path"]) == ("config", "trace.max_hops")
    assert error["message"] == "netd.toml:3: trace.max_hops: cannot be 99\ntrace.x: unknown"


async def test_the_configuration_has_origins_and_an_etag(user):
    response = await user.get("/v1/config")
    assert response.headers["etag"] == '"abc123"'
    assert response.json() == {
        "values": {"trace": {"max_hops": 30, "token": "**********"}},
        "origins": {"trace.max_hops": "netd.toml:3"},
        "sources": ["netd.toml"],
        "etag": "abc123",
    }


@pytest.mark.parametrize(
    ("header", "etag"), [(None, None), ("*", None), ('"abc123"', "abc123"), ("abc123", "abc123"), ('W/"a"', 'W/"a')]
)
async def test_patching_hands_on_values_and_the_etag(header, etag, root, host):
    headers = {} if header is None else {"if-match": header}
    body = {"trace.max_hops": 20, "trace.rounds": None, "trace.listen": [{"address": "127.0.0.1:1"}]}
    response = await root.patch("/v1/config?wait=60", json=body, headers=headers)
    assert response.json()["status"] == "done"
    assert host.asked == [("patch", body, etag)]


async def test_patching_what_changed_meanwhile_is_a_conflict(root, host):
    host.fail = Conflict("cannot patch: the configuration is another by now")
    assert error_of(await root.patch("/v1/config?wait=9", json={"a.b": 1}), 409)["kind"] == "conflict"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "x",
        {"": 1},
        {"a.": 1},
        {"a..b": 1},
        {"a.b\n": 1},
        {"../a.b": 1},
        {'a."b': 1},
        {'a."\x1b"': 1},
        {"a b": 1},
        {"a" * 201: 1},
    ],
)
async def test_patching_takes_keys_of_toml_only(body, root, host):
    assert error_of(await root.patch("/v1/config", json=body), 422)["kind"] == "invalid"
    assert host.asked == []


@pytest.mark.parametrize(
    ("key", "asked"),
    [
        ("state_directory", "state_directory"),
        ('log.loggers."netd.trace"', 'log.loggers."netd.trace"'),
        ('log."level"', "log.level"),
    ],
)
async def test_any_key_of_toml_may_be_patched(key, asked, root, host):
    assert (await root.patch("/v1/config?wait=60", json={key: "debug"})).json()["status"] == "done"
    assert host.asked == [("patch", {asked: "debug"}, None)]


async def test_what_cannot_be_set_is_told_in_the_words_of_who_set_it(root, host):
    file = "/var/lib/netd/override.toml"
    host.fail = ConfigError(
        [
            ConfigProblem("trace.max_hops", "cannot be 99", f"{file}:7"),
            ConfigProblem("trace.listen.0.address", "cannot be 1", f"{file}:8"),
            ConfigProblem("trace", "cannot be so", f"{file}:5"),
            ConfigProblem("trace.listen", "cannot write None in TOML"),
            ConfigProblem("log.levle", "unknown key", f"{file}:3"),
            ConfigProblem("", "cannot change a file that cannot be read", file),
            ConfigProblem("trace.max_hops", "cannot be 98", "netd.toml:4"),
        ]
    )
    response = await root.patch("/v1/config?wait=60", json={"trace.max_hops": 99, "trace.listen": [{"address": 1}]})
    assert response.status_code == 422
    assert response.json()["error"]["message"].splitlines() == [
        "config set: trace.max_hops: cannot be 99",
        "config set: trace.listen.0.address: cannot be 1",
        "config set: trace: cannot be so",
        "config set: trace.listen: cannot write None in TOML",
        f"{file}: log.levle: unknown key",
        f"{file}: cannot change a file that cannot be read",
        "netd.toml:4: trace.max_hops: cannot be 98",
    ]


async def test_a_check_tells_problems_or_changes(user, host):
    assert (await user.post("/v1/config/check")).json() == {
        "ok": True,
        "problems": [],
        "changes": [{"path": "trace.max_hops", "running": 30, "configured": 20, "effect": "live"}],
    }
    host.problems = [ConfigProblem("trace.x", "unknown", "netd.toml:7")]
    assert (await user.post("/v1/config/check")).json() == {
        "ok": False,
        "problems": [{"path": "trace.x", "message": "unknown", "source": "netd.toml:7"}],
        "changes": [],
    }


async def test_diff_and_schema(user):
    assert [one["path"] for one in (await user.get("/v1/config/diff")).json()["changes"]] == ["trace.max_hops"]
    assert (await user.get("/v1/config/schema")).json()["type"] == "object"


async def test_what_cannot_be_read_does_not_pass_for_no_difference(user, host):
    host.problems = [ConfigProblem("trace.x", "unknown", "netd.toml:7")]
    response = await user.get("/v1/config/diff")
    assert response.status_code == 422
    assert response.json()["error"] == {"kind": "config", "message": "netd.toml:7: trace.x: unknown", "path": "trace.x"}


# --- log levels -------------------------------------------------------------------------------------------------------


async def test_log_levels_change_live(root):
    assert (await root.get("/v1/log")).json() == {"level": "info", "loggers": {}}
    changed = await root.put("/v1/log", json={"level": "debug", "logger": "netd.trace"})
    assert changed.json() == {"level": "info", "loggers": {"netd.trace": "debug"}}
    assert (await root.put("/v1/log", json={"level": "error"})).json()["level"] == "error"


async def test_an_unknown_level_and_an_unknown_field_are_refused(root, host):
    assert error_of(await root.put("/v1/log", json={"level": "loud"}), 422)["path"] == "level"
    assert error_of(await root.put("/v1/log", json={"level": "debug", "loger": "x"}), 422)["path"] == "loger"
    assert error_of(await root.put("/v1/log", json={}), 422)["path"] == "level"
    assert error_of(await root.put("/v1/log", json={"level": 10}), 422)["path"] == "level"
    assert error_of(await root.put("/v1/log", json={"level": "debug", "logger": "a b"}), 422)["path"] == "logger"
    assert host.levels == {"": "info"}


# --- what every answer has --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/status"), ("GET", "/nowhere"), ("DELETE", "/v1/status"), ("GET", "/v1/openapi.json"),
     ("PUT", "/v1/log"), ("GET", "/v1/services/x")],
)  # fmt: skip
async def test_every_answer_says_whose_it_is(method, path, root):
    response = await root.request(method, path)
    assert (response.headers["netd-version"], response.headers["netd-api"]) == ("1.2.3", "1")


async def test_what_is_not_there_has_the_same_shape(root):
    assert error_of(await root.get("/v2/status"), 404)["message"] == "cannot GET /v2/status: not found"
    assert error_of(await root.get("/v1/status/"), 404)["kind"] == "not-found"
    response = await root.delete("/v1/status")
    assert error_of(response, 405)["kind"] == "invalid"
    assert response.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/health", 200), ("/v1/services/trace", 200), ("/v1/openapi.json", 200), ("/v1/services/x", 404),
     ("/v1/reload", 405), ("/v1/health?x=1", 400), ("/nowhere", 404)],
)  # fmt: skip
async def test_head_is_answered_as_get_without_the_body(path, status, root, host):
    """RFC 9110 9.3.2."""
    head, get = await root.head(path), await root.get(path)
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers == get.headers
    assert head.headers["content-length"] == str(len(get.content))
    assert host.asked == []


async def test_head_needs_the_access_that_get_needs(control):
    async with control.client(None) as stranger:
        assert (await stranger.head("/v1/status")).status_code == 403


async def test_head_of_what_fails_inside_is_told_and_logged_as_get_is(root, host):
    def broken():
        raise ValueError("the secret reason")

    host.services = broken
    with capture_logs():
        assert (await root.head("/v1/services")).status_code == 500


async def test_an_unknown_query_parameter_is_refused(root, host):
    error = error_of(await root.post("/v1/services/trace/stop?wiat=5"), 400)
    assert (error["path"], error["message"]) == (
        "wiat",
        "cannot use query parameter 'wiat' on /v1/services/trace/stop: it takes wait",
    )
    assert error_of(await root.get("/v1/status?verbose=1"), 400)["message"].endswith("it takes none")
    assert host.asked == []


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", ""])
async def test_waiting_is_bounded(wait, root, host):
    assert error_of(await root.post("/v1/reload", params={"wait": wait}), 422)["path"] == "wait"
    assert host.asked == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 5000, b'{"level": "debug"', b"null", b"", b'"' + b"x" * 10000])
async def test_a_body_that_is_not_json_is_refused(body, root, host):
    response = await root.put("/v1/log", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert error_of(response, response.status_code)["kind"] == "invalid"
    assert host.levels == {"": "info"}


async def test_what_fails_inside_is_told_without_its_inside(root, host):
    def broken():
        raise ValueError("the secret reason")

    host.services = broken
    with capture_logs():
        response = await root.get("/v1/services")
    assert error_of(response, 500)["kind"] == "internal"
    assert "secret" not in response.text
    assert response.headers["netd-api"] == "1"
