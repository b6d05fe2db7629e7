"""What listening and talking by hand do, for every client: lines for people, or objects for programs.

Each returns the exit code. What happens to the connection is said on stderr, what was received on stdout.
"""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click
import trio

from netd.cli.data import operation_data
from netd.cli.dial import warn
from netd.cli.lines import TYPED, lines_of_stdin
from netd.cli.message_view import client_json, client_rows, writer
from netd.cli.output import Column, console, is_dumb, print_json_line, printable, table
from netd.cli.targets import channel_bytes
from netd.client.subscription import Gap
from netd.errors import ClientError, NetdError, RequestFailed
from netd.wire import messages
from netd.wire.messages import Position
from netd.wire.wildcards import is_wild

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netd.client.operations import OperationsClient
    from netd.client.subscription import Subscription


# --- listen -----------------------------------------------------------------------------------------------------------


async def listen(
    made: OperationsClient,
    *,
    channels: tuple[str, ...],
    pattern: bool,
    count: int | None,
    presence: bool,
    recover: Position | Literal["start"] | None,
    as_json: bool,
) -> int:
    """Print what comes, until `count` messages have."""
    write = writer(as_json)
    left = count

    async def follow(source: Any, counts: bool) -> None:
        nonlocal left
        async for item in source:
            if left is not None and left <= 0:
                return  # what came with the last of them
            write(item)
            if counts and left is not None and _counts(item):
                left -= 1
                if left <= 0:
                    nursery.cancel_scope.cancel()
                    return
        if counts:
            nursery.cancel_scope.cancel()  # the peer said that no more comes

    async with made as client, trio.open_nursery() as nursery:
        nursery.start_soon(say_states, client)
        if not channels:
            nursery.start_soon(follow, client, True)
        else:
            heard = [await _subscribe(client, channel, pattern, presence, recover) for channel in channels]
            for subscription in heard:
                nursery.start_soon(follow, subscription, True)
            nursery.start_soon(follow, client, False)
    return 0


def taken_from(how: dict[str, Any]) -> dict[str, Any]:
    """What of a command's options is for `listen`; taken out of them."""
    names = ("channels", "pattern", "count", "presence", "recover", "as_json")
    return {name: how.pop(name) for name in names}


_SAID = messages.Message | messages.Direct | messages.Broadcast | messages.TextEvent | messages.BinaryEvent


def _counts(item: Any) -> bool:
    """Something that somebody said: no gap, and no event about something else."""
    return isinstance(item, _SAID) or not (isinstance(item, Gap) or hasattr(item, "__struct_fields__"))


async def _subscribe(
    client: OperationsClient,
    channel: str,
    pattern: bool,
    presence: bool,
    recover: Position | Literal["start"] | None,
) -> Subscription:
    name = channel_bytes(channel)
    if recover == "start":
        kept = await client.history(name)
        first = kept.messages[0].offset if kept.messages else None
        recover = Position(kept.epoch, first - 1 if first else kept.offset)
    subscription = await client.subscribe(name, recover=recover, presence=presence, pattern=pattern)
    if (why := _taken_for_a_name(subscription)) is not None:
        warn(f"{why}; --pattern refuses it then")
    return subscription


def _taken_for_a_name(subscription: Subscription) -> str | None:
    """What to tell whoever meant a pattern, and has one channel of such a name."""
    tokens = subscription.name.partition(b":")[2] or subscription.name
    if subscription.pattern or not is_wild(tokens):
        return None
    return f"{subscription.channel!r} is a single channel of this name: its namespace has no wildcards"


async def say_states(client: OperationsClient, say: Callable[[str], None] = warn) -> None:
    """What becomes of the connection, for the person who watches."""
    was_lost = False
    async for state in client.states():
        if state.name == "backoff":
            was_lost = True
            say(f"connection lost: {state.reason}; again in {state.seconds:.1f} s")
        elif state.name == "connected" and was_lost:
            was_lost = False
            say("connected again")


# --- connect ----------------------------------------------------------------------------------------------------------


async def connect(
    made: OperationsClient,
    *,
    linger: float,
    as_json: bool,
    plain: Callable[[bytes], Awaitable[None]] | None = None,
) -> int:
    """Lines from standard input out, what comes to standard output. 1 if something was refused.

    `plain`: what sends a line that is no operation. Where a person sits at a terminal, lines are asked for.
    """
    async with made as client, trio.open_nursery() as nursery:
        by_hand = sys.stdin is not None and sys.stdin.isatty()
        talk = _Talk(client, plain, as_json, by_hand)
        nursery.start_soon(say_states, client, talk.warn)
        nursery.start_soon(talk.show)
        try:
            if plain is None:
                welcome = await client.hello()
                talk.remark(f"session {welcome.session} at {welcome.server} {welcome.version}; /help lists commands")
            talk.ask()
            async for line in (lines := lines_of_stdin()):
                if not await talk.line(line, ended=not lines.over):
                    break
                if not lines.waiting:  # typed ahead
                    talk.ask()
            else:
                talk.leave()
                await client.flush()
                await talk.quiet(linger)
        finally:
            talk.leave()
        nursery.cancel_scope.cancel()
    return 1 if talk.refused and not by_hand else 0


_CUT = f"cannot send this line: a terminal keeps {TYPED} bytes and throws the rest away; give it from a file (< FILE)"


class _Talk:
    """One conversation by hand."""

    def __init__(
        self,
        client: OperationsClient,
        plain: Callable[[bytes], Awaitable[None]] | None,
        as_json: bool,
        by_hand: bool,
    ) -> None:
        self._client = client
        self._plain = plain
        self._as_json = as_json
        self._write = writer(as_json)
        self._write_kept = writer(as_json, clocked=False)
        self._by_hand = by_hand
        self._prompts = by_hand and sys.stdout.isatty() and not is_dumb() and not as_json
        self._asked = False
        """Whether the line on which the cursor stands is our prompt."""
        self._patience = math.inf
        self._silence = trio.CancelScope()
        self._subscriptions: dict[str, tuple[Subscription, trio.CancelScope]] = {}
        self._nursery: trio.Nursery | None = None
        self._used: str | None = None
        self.refused = 0

    async def show(self) -> None:
        """Print whatever comes that is no answer."""
        async with trio.open_nursery() as self._nursery:
            await self._follow(self._client)

    async def _follow(self, source: Any) -> None:
        async for item in source:
            self._silence.deadline = trio.current_time() + self._patience
            self._beside(partial(self._write, item))

    def ask(self) -> None:
        """Show that a line may be typed, and where it would go."""
        if self._prompts and not self._asked:
            self._asked = True  # first: Ctrl-C may come as soon as it is read
            sys.stdout.write(f"{printable(self._used or '')}> ")
            sys.stdout.flush()

    def leave(self) -> None:
        """Nothing is typed any more: what comes next on the terminal, a shell's prompt too, has a line of its own."""
        if self._asked:
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._asked = self._prompts = False

    def _beside(self, write: Callable[[], None]) -> None:
        """Have it written in place of the prompt, if that is there, and the prompt after it. What was typed stays with
        the terminal.
        """
        asked, self._asked = self._asked, False
        if asked:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
        write()
        if asked:
            self.ask()

    def warn(self, sentence: str) -> None:
        """A remark on stderr."""
        self._beside(lambda: warn(sentence))

    async def quiet(self, seconds: float) -> None:
        """Until nothing came for so long."""
        self._patience = seconds
        self._silence.deadline = trio.current_time() + seconds
        with self._silence:
            await trio.sleep_forever()

    def remark(self, sentence: str) -> None:
        if not self._as_json:
            click.echo(f"-- {printable(sentence)}")

    async def line(self, line: bytes, *, ended: bool) -> bool:
        """One line of input; False: the person wants to leave. `ended`: its end was read, and so is shown."""
        if not ended:
            self.leave()
        self._asked = False
        if self._by_hand and len(line) >= TYPED:
            self._complain(_CUT)
            return True
        if self._plain is not None:
            await self._plain(line)
            return True
        if not line.startswith(b"/"):
            if line:
                await self._try(lambda: self._say(line))
            return True
        word, _, rest = line.decode(errors="replace").partition(" ")
        if word in ("/quit", "/q", "/exit"):
            return False
        command = self._COMMANDS.get(word)
        if command is None:
            self._complain(f"cannot do {word!r}: /help lists the commands")
            return True
        await self._try(lambda: command(self, rest.strip()))
        return True

    async def _try(self, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except click.UsageError as error:
            self._complain(error.message)
        except (ClientError, NetdError) as error:
            if self._client.state.final:
                raise
            self._complain(str(error))

    def _complain(self, sentence: str) -> None:
        self.refused += 1
        if self._as_json:
            print_json_line({"event": "error", "message": sentence})
        else:
            click.echo(f"-- {printable(sentence)}")

    def _done(self, sentence: str, **fields: Any) -> None:
        if self._as_json:
            print_json_line({"event": "ok", **{key: value for key, value in fields.items() if value is not None}})
        else:
            self.remark(sentence)

    # --- commands -----------------------------------------------------------------------------------------------------

    async def _say(self, line: bytes) -> None:
        data = operation_data(line, None)
        if self._used is not None:
            await self._client.publish(self._used, data)
        elif isinstance(data, str):
            await self._client.text(data, confirm=True)
        else:
            await self._client.binary(data, confirm=True)

    async def _sub(self, rest: str) -> None:
        (channel,) = _words(rest, "/sub CHANNEL", 1)
        subscription = await self._client.subscribe(channel, presence=True)
        scope = trio.CancelScope()
        self._subscriptions[channel] = (subscription, scope)
        assert self._nursery is not None
        self._nursery.start_soon(self._hear, subscription, scope)
        position = subscription.position
        place = f", at {position.epoch}:{position.offset}" if position is not None else ""
        what = f"all channels that match {channel}" if subscription.pattern else f"{channel}{place}"
        self._done(f"subscribed to {what}", channel=channel, pattern=subscription.pattern or None)
        if (why := _taken_for_a_name(subscription)) is not None:
            self.warn(why)

    async def _hear(self, subscription: Subscription, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._follow(subscription)
            except RequestFailed as error:
                if self._client.state.final:
                    raise
                why = f"{subscription.channel!r} was taken away: {error}"
                self._beside(lambda: self._complain(why))

    async def _unsub(self, rest: str) -> None:
        (channel,) = _words(rest, "/unsub CHANNEL", 1)
        if channel not in self._subscriptions:
            raise click.UsageError(f"cannot unsubscribe from {channel!r}: there is no subscription")
        subscription, scope = self._subscriptions.pop(channel)
        scope.cancel()
        await subscription.unsubscribe()
        self._done(f"unsubscribed from {channel}", channel=channel)

    async def _pub(self, rest: str) -> None:
        channel, text = _words(rest, "/pub CHANNEL TEXT", 2)
        delivered = await self._client.publish(channel, text)
        self._done(f"published{_reached(delivered)}", delivered=delivered)

    async def _use(self, rest: str) -> None:
        await trio.lowlevel.checkpoint()
        self._used = rest or None
        self._done(f"lines are published to {rest}" if rest else "lines go to the application", channel=rest or None)

    async def _direct(self, rest: str) -> None:
        whom, text = _words(rest, "/direct WHOM TEXT", 2)
        delivered = await self._client.direct(whom, text)
        self._done(f"sent{_reached(delivered)}", delivered=delivered)

    async def _broadcast(self, rest: str) -> None:
        (text,) = _words(rest, "/broadcast TEXT", 1, whole=True)
        delivered = await self._client.broadcast(text)
        self._done(f"sent{_reached(delivered)}", delivered=delivered)

    async def _list(self, rest: str) -> None:
        self._print_clients(await self._client.clients(rest or None))

    async def _presence(self, rest: str) -> None:
        (channel,) = _words(rest, "/presence CHANNEL", 1)
        self._print_clients(await self._client.presence(channel))

    async def _history(self, rest: str) -> None:
        (channel,) = _words(rest, "/history CHANNEL", 1)
        kept = await self._client.history(channel)
        for message in kept.messages:
            self._write_kept(message)
        self._done(f"{len(kept.messages)} kept, at {kept.epoch}:{kept.offset}", epoch=kept.epoch, offset=kept.offset)

    async def _ping(self, rest: str) -> None:
        seconds = await self._client.ping()
        self._done(f"{seconds * 1000:.3g} ms", seconds=seconds)

    async def _help(self, rest: str) -> None:
        await trio.lowlevel.checkpoint()
        for word in self._COMMANDS:
            self.remark(f"{word} {_USAGE.get(word, '')}".rstrip())
        self.remark("/quit")

    def _print_clients(self, clients: list[messages.Client]) -> None:
        if self._as_json:
            print_json_line({"event": "clients", "clients": [client_json(each) for each in clients]})
            return
        rows = client_rows(clients)
        if not rows:
            self.remark("nobody")
            return
        out = console()
        columns = [Column("SESSION", style="bold"), Column("NAME", narrow="cut", spare=1), Column("TRANSPORT", spare=2)]
        out.print(table([*columns, Column("TAGS", narrow="wrap", spare=3)], rows, width=out.width), crop=False)
        sys.stdout.flush()

    _COMMANDS: dict[str, Callable[[_Talk, str], Awaitable[None]]] = {  # noqa: RUF012  # never changed
        "/sub": _sub,
        "/unsub": _unsub,
        "/pub": _pub,
        "/use": _use,
        "/direct": _direct,
        "/broadcast": _broadcast,
        "/list": _list,
        "/presence": _presence,
        "/history": _history,
        "/ping": _ping,
        "/help": _help,
    }


_USAGE = {
    "/sub": "CHANNEL (or all that match: a:b.*, a:>)",
    "/unsub": "CHANNEL",
    "/pub": "CHANNEL TEXT",
    "/use": "CHANNEL (lines are published there; without one: to the application)",
    "/direct": "WHOM TEXT (an id, name:NAME or tag:KEY=VALUE)",
    "/broadcast": "TEXT",
    "/list": "[CHANNEL]",
    "/presence": "CHANNEL",
    "/history": "CHANNEL",
}


def _words(rest: str, usage: str, count: int, *, whole: bool = False) -> list[str]:
    """The command's words, the last one the rest of the line."""
    words = [rest] if whole and rest else rest.split(maxsplit=count - 1)
    if len(words) != count or (count == 1 and not whole and " " in rest):
        raise click.UsageError(f"cannot do that: write {usage}")
    return words


def _reached(delivered: int | None) -> str:
    return f" to {delivered}" if delivered is not None else ""
