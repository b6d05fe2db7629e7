"""`netctl SERVICE connections`, for every service whose connections are sessions. Imports click only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from netd.cli.options import by_id, call, common_options, invocation, limit_option

if TYPE_CHECKING:
    from netd.client.control import ControlClient


def connections_command(service: str) -> click.Command:
    """The command for one service: ControlClient has SERVICE_connections and SERVICE_connection."""

    @click.command("connections")
    @click.argument("session_id", metavar="[ID]", required=False)
    @limit_option(10_000)
    @common_options
    def connections(session_id: str | None, limit: int) -> None:
        """The connections that are here, the oldest first; with a session's ID, all about that one."""

        async def ask(client: ControlClient) -> dict[str, Any]:
            if session_id is None:
                found: dict[str, Any] = await getattr(client, f"{service}_connections")(limit=limit)
                return found
            where = f"netctl {service} connections"
            one = getattr(client, f"{service}_connection")(session_id)
            return await by_id(one, id=("connection", session_id, where))

        answer = call(ask)
        from netd.cli.output import print_json

        if invocation().json:
            print_json(answer)
            return
        from netd.cli.connections_view import print_connection, print_connections

        if session_id is None:
            print_connections(answer)
        else:
            print_connection(answer)

    return connections
