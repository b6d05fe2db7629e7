"""What `netctl trace watch` knows: the clients, their paths, and what has happened. Pure.

    event (kind, fields) --> Watch.see --> clients(), finished, ...

         connected --hop--> tracing --clientDone--> done --hop of a new trace--> tracing
              \\--------------------clientGone, from any----------------> gone

Bounded: the last MAX_CLIENTS clients; the longest quiet one gives way, one that is gone first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from netd.cli.trace_path import Fields, Route, Row, snake, whole

MAX_CLIENTS = 256

ClientState = Literal["connected", "tracing", "done", "gone", "recorded"]
"""recorded: from the history, before the watch began."""


@dataclass
class Client:
    """One client and its latest trace. `done` holds the fields of its clientDone (snake_case), {} before."""

    id: str
    address: str = ""
    state: ClientState = "connected"
    trace_id: str = ""
    route: Route = field(default_factory=Route)
    done: dict[str, Any] = field(default_factory=dict)
    touched: int = 0
    """Rises with every event: the client that was heard of last has the highest."""


class Watch:
    """The screen's state."""

    def __init__(self) -> None:
        self._clients: dict[str, Client] = {}
        self._events = 0
        self.finished = 0
        """Traces that ended since the watch began."""
        self.missed = 0
        self.error = ""
        """The latest complaint, "" for none."""
        self.ended = False
        """The daemon is stopping, or away."""

    def clients(self) -> list[Client]:
        """In the order in which they were first heard of."""
        return list(self._clients.values())

    def recall(self, record: Fields) -> None:
        """A finished trace from the history, as if it had been seen. One that is seen already is not overwritten."""
        done = snake(record)
        client_id = str(done.get("client_id") or done.get("id") or "")
        if not client_id or client_id in self._clients:
            return
        client = self._client(client_id)
        client.state, client.trace_id = "recorded", str(done.get("id") or "")
        client.address = str(done.get("address") or "")
        client.done = done
        client.route.end(done)

    def greet(self, view: Fields) -> None:
        """A client that was connected before the watch began."""
        data = snake(view)
        client = self._client(str(data.get("client_id") or "?"))
        client.address = str(data.get("address") or client.address)
        if client.state == "recorded":
            client.state = "done"

    def see(self, kind: str, fields: Fields) -> tuple[Client | None, Row | None]:
        """Take in an event. Returns the client and the row it is about."""
        data = snake(fields)
        self._events += 1
        if kind != "ended":
            self.ended = False
        match kind:
            case "missed":
                self.missed += whole(data.get("count")) or 0
            case "ended":
                self.ended = True
            case "error" if not data.get("client_id"):
                self.error = str(data.get("message") or "")
            case "clientConnected" | "hop" | "name" | "clientDone" | "clientGone" | "error":
                client = self._client(str(data.get("client_id") or "?"))
                return client, self._see_client(client, kind, data)
            case _:  # of a later version of the daemon, or of another service
                pass
        return None, None

    def _see_client(self, client: Client, kind: str, data: dict[str, Any]) -> Row | None:
        client.address = str(data.get("address") or client.address)
        if kind in ("hop", "clientDone"):
            self._same_trace(client, str(data.get("trace_id") or client.trace_id))
        match kind:
            case "clientConnected":
                client.state, client.route, client.done = "connected", Route(), {}
            case "hop":
                client.state = "tracing"
                return client.route.see_hop(data)
            case "name":
                client.route.see_name(data.get("router"), data.get("name"))
            case "clientDone":
                client.state, client.done = "done", data
                client.route.end(data)
                self.finished += 1
            case "clientGone":
                client.state = "gone"
            case "error":
                self.error = f"{client.address or client.id}: {data.get('message') or ''}"
        return None

    def _same_trace(self, client: Client, trace_id: str) -> None:
        """A hop of another trace than the last one begins the path anew."""
        if trace_id != client.trace_id or (not trace_id and client.state in ("done", "recorded")):
            client.trace_id, client.route, client.done = trace_id, Route(), {}

    def _client(self, client_id: str) -> Client:
        client = self._clients.get(client_id)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS:
                quiet = min(
                    self._clients.values(), key=lambda one: (one.state not in ("gone", "recorded"), one.touched)
                )
                del self._clients[quiet.id]
            client = self._clients[client_id] = Client(client_id)
        client.touched = self._events
        return client
