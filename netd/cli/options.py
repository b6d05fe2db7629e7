"""What all commands share: --socket and --json (before or after the noun), and the way to the daemon.

    @click.command()
    @common_options
    def health() -> None:
        report = call(ControlClient.health)

Imported by every noun, so it imports click and nothing else until a command runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.client.control import ControlClient
    from netd.errors import NetdError

T = TypeVar("T")
C = TypeVar("C", bound="Callable[..., Any]")


@dataclass
class Invocation:
    """One run of netctl."""

    socket: str | None = None
    """As given; None: NETD_CONTROL__SOCKET or the default, which the client knows."""
    json: bool = False
    daemon_version: str | None = None
    """The daemon's, once it answered."""


def invocation() -> Invocation:
    """The one that runs."""
    found: Invocation = click.get_current_context().ensure_object(Invocation)
    return found


def common_options(command: C) -> C:
    """Give a command --socket and --json. They add up: what an outer command was given holds for the inner one."""
    socket = click.option(
        "--socket",
        metavar="PATH",
        type=click.Path(readable=False),  # whether it may be used, connecting tells, and why not
        expose_value=False,
        callback=_note_socket,
        help="The daemon's control socket.",
    )
    return socket(json_option(command))


def json_option(command: C) -> C:
    """Give a command --json alone: it does not talk to the control API."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=_note_json,
        help="Print JSON: one object, or one a line when following.",
    )(command)


def limit_option(most: int, default: int = 100) -> Callable[[C], C]:
    """Give a command --limit: how much of a list is shown."""
    return click.option(
        "--limit",
        "-n",
        type=click.IntRange(1, most),
        default=default,
        show_default=True,
        metavar="N",
        help="Show at most N.",
    )


def _note_json(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Invocation).json = True


def _note_socket(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value == "":  # a variable that is not set: another daemon than the default is meant
        raise click.UsageError("cannot use '' as a socket: give its path, or leave --socket out", ctx)
    if value is not None:
        ctx.ensure_object(Invocation).socket = value


def call(function: Callable[[ControlClient], Awaitable[T]]) -> T:
    """Run `function` with a client of the chosen daemon, as `run_loop` does."""
    from netd.client.control import ControlClient

    chosen = invocation()

    async def run() -> T:
        async with ControlClient(chosen.socket) as client:
            try:
                return await function(client)
            finally:
                chosen.daemon_version = client.daemon_version

    return run_loop(run)


def run_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` in a Trio loop of its own.

    Raises what it raises; of an exception group, the one error that a person wants to read.
    """
    import trio

    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise _plain(group) from None


def _plain(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a group comes down to: an interrupt, a broken pipe, misuse, the first of our own errors; else the group.

    A nursery wraps even a single error.
    """
    from netd.errors import NetdError

    for wanted in (KeyboardInterrupt, BrokenPipeError, click.ClickException, NetdError):
        matching = group.subgroup(wanted)
        if matching is not None and (wanted is KeyboardInterrupt or group.split(wanted)[1] is None):
            return _first(matching)
    return group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def not_found(message: str) -> NetdError:
    """An error for something that is not in what the daemon answered, ending netctl as the daemon's own 404 does."""
    from netd.errors import RequestFailed

    return RequestFailed("not-found", message, status=404)


async def by_id(answer: Awaitable[T], **ids: tuple[str, str | None, str]) -> T:
    """An answer about things with ids: field of the request -> (what it is, its id, what lists them).

    The daemon refuses an id of the wrong form with the form; for people, there is just no such thing.
    """
    from netd.errors import RequestFailed

    try:
        return await answer
    except RequestFailed as error:
        what, id, where = ids.get(error.path or "", ("", None, ""))
        if error.status not in (400, 422) or id is None:
            raise
        raise not_found(f"cannot find {what} {id!r}: no such {what} id ({where} lists them)") from error
