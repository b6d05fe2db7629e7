"""ControlClient: the control API of a netd daemon on this machine, over its Unix socket, for Trio programs.

    async with ControlClient() as control:
        change = await control.service_stop("trace", wait=30)

Rules:
- every failure is a NetdError: DaemonUnreachable (nobody there, not permitted, no answer), VersionMismatch (no common
  version of the API), RequestFailed (the daemon's own refusal, with its `kind`), ProtocolError (not an answer);
- every wait has a bound (`timeout`, plus what the caller asked the daemon to wait), every answer a largest size;
- the shapes of what comes back are in shapes.py; what the daemon adds later passes through untouched.

Calls about sessions, channels and anomaly scores are in control_messaging.py, about workers in control_workers.py.

Left out: presentation (netd/cli) and the services' own transports.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

import httpx
import trio

from netd import __version__
from netd.client.control_messaging import MessagingCalls
from netd.client.control_workers import WorkerCalls
from netd.client.failures import unreachable
from netd.client.stream import EventStream, ServerEvent, read_bounded
from netd.errors import DaemonUnreachable, NetdError, ProtocolError, RequestFailed, VersionMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netd.client import shapes

API = "1"
"""The version of the API this client speaks, as the header Netd-Api carries it."""

DEFAULT_SOCKET = Path("/run/netd/control.sock")
SOCKET_VARIABLE = "NETD_CONTROL__SOCKET"

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer; the largest (a metrics page, a full history) stay far below."""
LONGEST_WAIT = 60.0
"""Seconds that one request may ask the daemon to wait for a change."""
STREAM_SILENCE = 60.0
"""Seconds without a byte after which a stream counts as lost; the daemon's heartbeat comes several times in that."""


def default_socket() -> Path:
    """Where the daemon listens unless the caller knows better: NETD_CONTROL__SOCKET, else /run/netd/control.sock."""
    return Path(os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET)


class ControlClient(MessagingCalls, WorkerCalls):
    """One daemon. Use it as `async with`; methods may run concurrently. `timeout` is seconds for an answer."""

    def __init__(self, socket: Path | str | None = None, *, timeout: float = 10.0) -> None:
        self.socket = Path(socket) if socket is not None else default_socket()
        self.timeout = timeout
        self.daemon_version: str | None = None
        """The daemon's netd version as of the last answer. Another one than ours is fine: the API's version decides."""
        self._http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        # no TLS on a Unix socket, so no CA bundle to load; and nothing of the environment (proxies, netrc) applies
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False, trust_env=False)
        self._http = httpx.AsyncClient(
            transport=transport,
            base_url="http://localhost",
            trust_env=False,
            timeout=self.timeout,
            headers={"user-agent": f"netd-client/{__version__}", "accept-encoding": "identity"},
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    # --- the daemon --------------------------------------------------------------------------------------------------

    async def status(self) -> shapes.Status:
        return cast("shapes.Status", await self._get("/v1/status"))

    async def health(self) -> shapes.HealthReport:
        return cast("shapes.HealthReport", await self._get("/v1/health"))

    async def ready(self) -> shapes.Readiness:
        """Whether every enabled service is serving. Not being ready is an answer here, not an error."""
        return cast("shapes.Readiness", await self._call("GET", "/v1/ready", fine=(503,), expect="ready"))

    async def metrics(self) -> str:
        """The Prometheus text."""
        return (await self._raw("GET", "/v1/metrics")).decode(errors="replace")

    async def openapi(self) -> dict[str, Any]:
        return await self._get("/v1/openapi.json")

    # --- services and changes ----------------------------------------------------------------------------------------

    async def services(self) -> list[shapes.Unit]:
        return _list(await self._get("/v1/services"), "services")

    async def service(self, name: str) -> shapes.Unit:
        return cast("shapes.Unit", await self._get(f"/v1/services/{_part(name)}"))

    async def service_start(self, name: str, *, wait: float = 0.0) -> shapes.Change:
        """Begin the change and wait up to `wait` seconds (0 to 60) for its end; RequestFailed if it failed by then."""
        return await self._change("POST", f"/v1/services/{_part(name)}/start", wait)

    async def service_stop(self, name: str, *, wait: float = 0.0) -> shapes.Change:
        return await self._change("POST", f"/v1/services/{_part(name)}/stop", wait)

    async def service_restart(self, name: str, *, wait: float = 0.0) -> shapes.Change:
        return await self._change("POST", f"/v1/services/{_part(name)}/restart", wait)

    async def reload(self, *, wait: float = 0.0) -> shapes.Change:
        return await self._change("POST", "/v1/reload", wait)

    async def changes(self) -> list[shapes.Change]:
        return _list(await self._get("/v1/changes"), "changes")

    async def change(self, change_id: str, *, wait: float = 0.0) -> shapes.Change:
        """The change as it stands, or as it stands once it ended or `wait` seconds passed. A failed one is returned."""
        answer = await self._call("GET", f"/v1/changes/{_part(change_id)}", params=_wait(wait), wait=wait)
        return cast("shapes.Change", answer)

    async def settled(self, change: shapes.Change, *, within: float) -> shapes.Change:
        """The change once it ended, or as it stands after `within` seconds. RequestFailed if it failed."""
        deadline = trio.current_time() + within
        while change["status"] == "doing" and (left := deadline - trio.current_time()) > 0:
            asked = trio.current_time()
            change = await self.change(change["id"], wait=min(left, LONGEST_WAIT))
            if change["status"] == "doing" and trio.current_time() - asked < 0.1:
                await trio.sleep(min(left, 0.1))  # a daemon that does not wait must not be asked in a tight loop
        error = change.get("error")
        if change["status"] == "failed":
            kind, message = (error["kind"], error["message"]) if error else ("internal", f"cannot {change['kind']}")
            raise RequestFailed(kind, message, status=409, path=error.get("path") if error else None)
        return change

    # --- configuration -----------------------------------------------------------------------------------------------

    async def config(self) -> shapes.ConfigView:
        return cast("shapes.ConfigView", await self._get("/v1/config"))

    async def config_check(self) -> shapes.ConfigCheck:
        return cast("shapes.ConfigCheck", await self._call("POST", "/v1/config/check"))

    async def config_diff(self) -> list[shapes.ConfigChange]:
        return _list(await self._get("/v1/config/diff"), "changes")

    async def config_schema(self) -> dict[str, Any]:
        return await self._get("/v1/config/schema")

    async def config_patch(
        self, values: Mapping[str, Any], *, etag: str | None = None, wait: float = 0.0
    ) -> shapes.Change:
        """Set dotted keys in the override file and reload; None sets a key back to what the files say.

        With `etag`, Conflict's kind if the configuration is no longer the one that was read.
        """
        headers = {"if-match": etag} if etag else {}
        return await self._change("PATCH", "/v1/config", wait, body=dict(values), headers=headers)

    # --- logs --------------------------------------------------------------------------------------------------------

    async def log_levels(self) -> shapes.LogLevels:
        return cast("shapes.LogLevels", await self._get("/v1/log"))

    async def set_log_level(self, level: str | None, *, logger: str = "") -> shapes.LogLevels:
        """`level` None: back to the inherited one. `logger` "": the root."""
        answer = await self._call("PUT", "/v1/log", body={"level": level, "logger": logger})
        return cast("shapes.LogLevels", answer)

    # --- events ------------------------------------------------------------------------------------------------------

    def events(
        self, *, kinds: Iterable[str] = (), service: str | None = None, since: str = "", patience: float = 0.0
    ) -> EventStream:
        """Notices from now on, or from after the event id `since` as far as the daemon keeps them.

        With `patience`, a lost connection is made again for that many seconds, resuming where it broke.
        """
        params: list[tuple[str, str]] = [("kind", kind) for kind in kinds]
        if service is not None:
            params.append(("service", service))

        async def request(last_id: str) -> httpx.Response:
            headers = {"last-event-id": last_id} if last_id else {}
            return await self._open("GET", "/v1/events", params=params, headers=headers)

        return EventStream(request, self._explain, since=since, patience=patience)

    async def recent_events(self, *, limit: int = 1000) -> list[ServerEvent]:
        """The notices the daemon still keeps, oldest first, at most the last `limit`.

        The id 0-0 makes the daemon say `missed` under its own newest id; all up to that one is then asked for.
        """
        newest = await self._newest_id()
        boot, _, serial = newest.rpartition("-")
        if not boot or not serial.isdigit() or int(serial) == 0:
            return []
        kept: list[ServerEvent] = []
        with trio.move_on_after(self.timeout):
            async with self.events(since=f"{boot}-{max(0, int(serial) - limit)}") as events:
                async for event in events:
                    if event.kind == "ended":
                        break
                    kept.append(event)
                    del kept[:-limit]
                    if _serial(event.id) >= int(serial):
                        break
        return kept

    async def _newest_id(self) -> str:
        with trio.move_on_after(self.timeout):
            async with self.events(since="0-0") as events:
                async for event in events:
                    return event.id
        return ""

    # --- trace -------------------------------------------------------------------------------------------------------

    async def trace(self) -> dict[str, Any]:
        """The trace service's snapshot: clients, traces running, method, limits, totals."""
        return await self._get("/v1/trace")

    async def trace_clients(self) -> list[dict[str, Any]]:
        return _list(await self._get("/v1/trace/clients"), "clients")

    async def trace_client(self, client_id: str) -> dict[str, Any]:
        """Trace this connected client once more."""
        answer: dict[str, Any] = await self._call("POST", f"/v1/trace/clients/{_part(client_id)}/trace")
        return answer

    async def traces(
        self, *, limit: int = 50, before: str | None = None, client: str | None = None
    ) -> list[shapes.TraceRecord]:
        """Finished traces from the history, newest first. `before` is the id of a trace, to read on from."""
        params = [("limit", str(limit))]
        params += [(name, value) for name, value in (("before", before), ("client", client)) if value]
        return _list(await self._call("GET", "/v1/trace/traces", params=params), "traces")

    async def trace_record(self, trace_id: str) -> shapes.TraceRecord:
        """One trace whole, with its hops."""
        return await self._get(f"/v1/trace/traces/{_part(trace_id)}")

    def trace_run(
        self, target: str, *, rounds: int = 1, interval: float = 1.0, max_hops: int | None = None, send: str = "auto"
    ) -> EventStream:
        """The daemon connects to `target` ("host" or "host:port") and traces inside that connection.

        Events: hop (each as it is known), round, done. Leaving the `async with` ends the trace.
        """
        body: dict[str, Any] = {"target": target, "rounds": rounds, "interval": interval, "send": send}
        if max_hops is not None:
            body["max_hops"] = max_hops

        async def request(last_id: str) -> httpx.Response:
            return await self._open("POST", "/v1/trace/run", body=body)

        return EventStream(request, self._explain, last=frozenset({"done", "ended"}))

    # --- framed ------------------------------------------------------------------------------------------------------

    async def framed(self) -> dict[str, Any]:
        """The framed service's snapshot: listeners, connections, sums, limits. `running` says whether there is one."""
        return await self._get("/v1/framed")

    async def framed_connections(self, *, limit: int = 1000) -> dict[str, Any]:
        """`connections` that are here, the oldest first, at most `limit`; and how many there are in `total`."""
        return await self._call("GET", "/v1/framed/connections", params=[("limit", str(limit))], expect="connections")

    async def framed_connection(self, session_id: str) -> dict[str, Any]:
        """One connection, by its session's id."""
        return await self._get(f"/v1/framed/connections/{_part(session_id)}")

    # --- broker ------------------------------------------------------------------------------------------------------

    async def broker(self) -> shapes.BrokerStatus:
        """The broker's snapshot: listeners, connections, sums, limits. `running` says whether there is one."""
        return cast("shapes.BrokerStatus", await self._get("/v1/broker"))

    async def broker_connections(self, *, limit: int = 1000) -> dict[str, Any]:
        """`connections` that are here, the oldest first, at most `limit`; and how many there are in `total`."""
        return await self._call("GET", "/v1/broker/connections", params=[("limit", str(limit))], expect="connections")

    async def broker_connection(self, session_id: str) -> dict[str, Any]:
        """One connection, by its session's id."""
        return await self._get(f"/v1/broker/connections/{_part(session_id)}")

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self._call("GET", path)
        return answer

    async def _change(
        self, method: str, path: str, wait: float, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> shapes.Change:
        answer = await self._call(method, path, params=_wait(wait), body=body, headers=headers, wait=wait)
        return cast("shapes.Change", answer)

    async def _call(self, method: str, path: str, *, expect: str | None = None, **request: Any) -> dict[str, Any]:
        """The answer as a JSON object; with `expect`, one that has this key (else it is the error it looks like)."""
        content = await self._raw(method, path, **request)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or (expect and expect not in answer and "error" not in answer):
            raise ProtocolError(f"cannot read the daemon's answer to {method} {path}: {content[:80]!r}")
        if expect and expect not in answer:
            raise _failed(503, content, method, path)
        return answer

    async def _raw(
        self, method: str, path: str, *, wait: float = 0.0, fine: tuple[int, ...] = (), **request: Any
    ) -> bytes:
        longest = self.timeout + wait
        try:
            with trio.move_on_after(longest) as patience:
                response = await self._send(method, path, httpx.Timeout(longest), **request)
                content = await read_bounded(response, MAX_ANSWER)
            if patience.cancelled_caught:
                raise httpx.ReadTimeout("the answer did not end")
        except httpx.TransportError as error:
            raise unreachable(error, self.socket, timeout=longest) from error
        self._check_version(response)
        if response.is_success or response.status_code in fine:
            return content
        raise _failed(response.status_code, content, method, path)

    async def _open(self, method: str, path: str, **request: Any) -> httpx.Response:
        """A response whose body is still to be read. Raises httpx's own errors too: the stream knows what to do."""
        limits = httpx.Timeout(self.timeout, read=STREAM_SILENCE)
        with trio.move_on_after(self.timeout) as patience:
            response = await self._send(method, path, limits, **request)
        if patience.cancelled_caught:
            raise httpx.ReadTimeout("no answer")
        try:
            if not response.is_success:
                content = await read_bounded(response, MAX_ANSWER)
                self._check_version(response)
                raise _failed(response.status_code, content, method, path)
            self._check_version(response)
        except NetdError:
            await response.aclose()
            raise
        return response

    async def _send(
        self,
        method: str,
        path: str,
        limits: httpx.Timeout,
        *,
        params: list[tuple[str, str | int | float | bool | None]] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        if self._http is None:
            raise RuntimeError("ControlClient is used outside its `async with`")
        request = self._http.build_request(
            method, path, params=params, json=body, headers=headers or None, timeout=limits
        )
        return await self._http.send(request, stream=True)

    def _check_version(self, response: httpx.Response) -> None:
        """Raise VersionMismatch unless the answer comes from a daemon of our API."""
        version, api = response.headers.get("netd-version"), response.headers.get("netd-api")
        if version is not None:
            self.daemon_version = version
        if api == API or (api is None and response.is_error):
            return  # the front door's own refusals (too many connections, a bad head) come before any header of the API
        if api is None:
            raise VersionMismatch(
                f"cannot talk to what listens at {self.socket}: it does not say which version of netd's API it speaks "
                f"(this client speaks {API}); another program may have taken the socket"
            )
        raise VersionMismatch(
            f"cannot talk to the daemon at {self.socket}: netd {version or '(unknown)'} speaks version {api} of the "
            f"API, this client (netd {__version__}) version {API}; use the netctl installed with the daemon, "
            "or restart the daemon if it was upgraded"
        )

    def _explain(self, error: BaseException) -> DaemonUnreachable:
        return unreachable(error, self.socket, timeout=self.timeout)


def _failed(status: int, content: bytes, method: str, path: str) -> RequestFailed:
    """The daemon's refusal as an exception; a body that is not in the error shape still tells its status."""
    try:
        error = json.loads(content)["error"]
        return RequestFailed(str(error["kind"]), str(error["message"]), status=status, path=error.get("path"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return RequestFailed(
            "internal", f"cannot {method} {path}: the daemon answered with status {status}", status=status
        )


def _list(answer: dict[str, Any], key: str) -> list[Any]:
    value = answer.get(key)
    if not isinstance(value, list):
        raise ProtocolError(f"cannot read the daemon's answer: {key!r} is not a list in it")
    return value


def _wait(wait: float) -> list[tuple[str, str]]:
    return [("wait", f"{min(wait, LONGEST_WAIT):g}")] if wait > 0 else []


def _part(name: str) -> str:
    """One segment of a path, whatever is in the name. "." and ".." would be folded away by the HTTP library."""
    if name in ("", ".", ".."):
        raise RequestFailed("not-found", f"cannot find anything named {name!r}", status=404)
    return quote(name, safe="")


def _serial(event_id: str) -> int:
    serial = event_id.rpartition("-")[2]
    return int(serial) if serial.isdigit() else 0
