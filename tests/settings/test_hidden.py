"""What came from a credential, the control API shows as asterisks: in the configuration and in what changes."""

from __future__ import annotations

import json

from netd.daemon import Daemon
from netd.settings import load
from tests.support.process import NetdProcess

STARS = "**********"


def credentials(directory, **values: str) -> dict[str, str]:
    found = directory / "credentials"
    found.mkdir(exist_ok=True)
    for name, text in values.items():
        (found / f"netd_{name.replace('__', '.')}").write_text(text)
    return {"CREDENTIALS_DIRECTORY": str(found), "NETD_STATE_DIRECTORY": ""}


def test_the_configuration_is_shown_without_what_credentials_set(tmp_path):
    environ = credentials(
        tmp_path,
        anomaly__adapter__url="http://127.0.0.1:1/?key=hunter2",
        trace__max_hops="7",
        trace__origins='["https://hunter2.example"]',
        log__loggers='{"netd.trace": "debug"}',
        control__group="",
        hub="{}",
    )
    file = tmp_path / "x.toml"
    file.write_text("[trace]\nrounds = 3\n[anomaly.adapter]\nuse = 'http'")

    view = Daemon(load([file], environ=environ)).config_view()

    assert "hunter2" not in json.dumps(view.values)
    assert (view.values["anomaly"]["adapter"]["url"], view.values["anomaly"]["adapter"]["use"]) == (STARS, "http")
    trace = view.values["trace"]
    assert (trace["max_hops"], trace["origins"], trace["rounds"]) == (STARS, STARS, 3)
    assert view.values["log"]["loggers"] == {"netd.trace": STARS}
    assert view.values["control"]["group"] == STARS
    assert isinstance(view.values["hub"], dict), "an empty table says nothing"
    assert view.origins["trace.max_hops"] == "credential netd_trace.max_hops"

    # whoever may read the ETag does not learn by trying what the value is
    credentials(tmp_path, trace__max_hops="8")
    assert Daemon(load([file], environ=environ)).config_view().etag == view.etag


async def test_what_changes_is_shown_without_what_credentials_set(tmp_path):
    environ = credentials(tmp_path, trace__max_hops="7", trace__origins='["https://a.example"]')
    toml = '[[trace.listen]]\naddress = "127.0.0.1:0"\n'
    del environ["NETD_STATE_DIRECTORY"]
    async with NetdProcess(tmp_path, toml, environ=environ) as netd, netd.client() as control:
        credentials(tmp_path, trace__max_hops="8", trace__origins='["https://hunter2.example"]', trace__rounds="2")
        netd.config.write_text(toml.replace("[[", "trace.max_clients = 9\n[["))

        found = {change["path"]: change for change in await control.config_diff()}
        result = await control.reload(wait=10)

    assert {path: (change["running"], change["configured"]) for path, change in found.items()} == {
        "trace.max_hops": (STARS, STARS),
        "trace.origins": (STARS, STARS),
        "trace.rounds": (found["trace.rounds"]["running"], STARS),
        "trace.max_clients": (found["trace.max_clients"]["running"], 9),
    }
    assert "hunter2" not in json.dumps(result)
    assert STARS in json.dumps(result)
