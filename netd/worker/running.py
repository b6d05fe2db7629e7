"""A worker at work: connected, connected again, stopped in order.

    await nursery.start(serve, worker, path)      # started() means welcomed; program.py makes a program of it
    worker.stop()

Rules:
- whatever is wrong with the connection (no daemon yet, a daemon that is restarted, one that is full) is said once and
  tried again, after 0.1 s and up to 5 s. What would be wrong again is not: a daemon of another version, one that does
  not speak this protocol, one that says it does not want this worker back. That ends the worker, with an error;
- `worker.stop()` leaves: the daemon hands over nothing more, what runs ends, its sessions go to other workers; what has
  not ended after `drain` seconds is cut off. So is it where there is no connection, or none any more. The daemon may
  want the same of a worker.

Left out: what is said on the connection (link.py), what is done then (desk.py), signals and systemd (program.py).
"""

from __future__ import annotations

import logging
import math
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from netd.errors import DaemonUnreachable, ProtocolError, RequestFailed, VersionMismatch, sole
from netd.worker.desk import Desk
from netd.worker.link import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from netd.wire import workers as wire
    from netd.worker.worker import Worker

DEFAULT_SOCKET = Path("/run/netd/worker.sock")
"""[worker] socket of an installed netd."""
DRAIN = 10.0
"""Seconds that handlers have to end when the worker stops."""
_FIRST, _LONGEST = 0.1, 5.0
"""Seconds before the second attempt to connect, and between later ones."""

log = logging.getLogger("netd.worker")


async def serve(
    worker: Worker,
    socket: str | Path | None = None,
    *,
    drain: float = DRAIN,
    status: Callable[[str, bool], object] | None = None,
    task_status: trio.TaskStatus[wire.Welcome] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Work for the daemon at `socket` until `worker.stop()`, or until the daemon says that it wants no more.

    `socket` unless given: NETD_WORKER_SOCKET, or an installed netd's. `started()` gives the first welcome. `status` is
    told in a line how it goes, and whether there is a connection. Raises ProtocolError, VersionMismatch or
    RequestFailed for what connecting again would not change.
    """
    if worker.running is not None:
        raise ProtocolError("cannot serve a worker twice at once: make another", origin="local")
    path = Path(socket) if socket is not None else default_socket()
    try:
        async with trio.open_nursery() as nursery:
            stay = _Stay(worker, path, nursery, drain, status or (lambda text, connected: None))
            worker.running = stay
            nursery.start_soon(stay.leave_when_told)
            await stay.connect_again_and_again(task_status)
            await stay.let_end()
            nursery.cancel_scope.cancel()  # what has not ended, and what waits to be told
    except BaseExceptionGroup as group:
        raise sole(group) from None
    finally:
        worker.running = None


class _Stay:
    """A worker's time with the daemon, over all of its connections."""

    def __init__(
        self, worker: Worker, path: Path, nursery: trio.Nursery, drain: float, status: Callable[[str, bool], object]
    ) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self._path = path
        self._desk = Desk(worker, nursery)
        self._drain = drain
        self._status = status
        self._stopping = trio.Event()
        self._by = math.inf
        """When what still runs is cut off."""
        self._connecting = trio.CancelScope()
        self._link: Link | None = None

    # --- for the worker ----------------------------------------------------------------------------------------------

    async def carry_out(self, verb: wire.Verb, confirm: bool, shape: Callable[[Any], Any]) -> Any:
        link = self._link
        if link is None:
            raise _apart()
        if not confirm:
            await link.tell(verb)
            return None
        return shape(await link.ask(verb))

    def post(self, verb: wire.Verb) -> bool:
        link = self._link
        if link is None:
            raise _apart()
        return link.post(verb, self.token)

    def stop(self) -> None:
        self.token.run_sync_soon(self._stopping.set)

    async def leave_when_told(self) -> None:
        await self._stopping.wait()
        self._by = trio.current_time() + self._drain
        if self._link is not None:
            self._link.leave()
            self._connecting.deadline = self._by
        else:
            self._connecting.cancel()

    async def let_end(self) -> None:
        """What has begun may end, though there is nobody any more to be told of it, where it was we who stopped."""
        if not self._stopping.is_set():
            return
        with trio.move_on_at(min(self._by, trio.current_time() + self._drain)):
            await self._desk.idle()
        if self._desk.busy:
            log.warning("cannot wait any longer than %g s for what still runs: it is cut off", self._drain)

    # --- connections -------------------------------------------------------------------------------------------------

    async def connect_again_and_again(self, task_status: trio.TaskStatus[wire.Welcome]) -> None:
        """Returns when the worker is to stop."""
        pause, said, first = _FIRST, "", True
        with self._connecting:
            while not self._stopping.is_set():
                try:
                    link = await Link.open(self._path, self._desk.hello())
                    goodbye, why = link.conversation.goodbye, ""
                except DaemonUnreachable as error:
                    goodbye, why = None, str(error)
                else:
                    if goodbye is None:
                        if first:
                            first = False
                            task_status.started(link.welcome)
                        began = trio.current_time()
                        goodbye = await self._work(link)
                        if trio.current_time() - began > _LONGEST:
                            pause = _FIRST
                        why = "the connection to the daemon has ended"
                    if goodbye is not None:
                        if not goodbye.retry:
                            self._farewell(goodbye)
                            return
                        why = f"the daemon said goodbye ({goodbye.code}): {goodbye.reason}"
                if self._stopping.is_set():
                    return
                log.log(logging.WARNING if why != said else logging.DEBUG, "%s; trying again", why)
                said = why
                self._status(why, False)
                await trio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST)

    async def _work(self, link: Link) -> wire.Goodbye | None:
        welcome = link.welcome
        text = f"connected to {welcome.server} {welcome.release} at {self._path} as worker {welcome.worker}"
        log.info("%s", text)
        self._status(text, True)
        self._desk.serve(link)
        self._link = link
        if self._stopping.is_set():
            link.leave()
        try:
            goodbye = await link.run(self._desk.receive)
        except BaseExceptionGroup as group:
            raise sole(group) from None
        self._link = None
        return goodbye

    def _farewell(self, goodbye: wire.Goodbye) -> None:
        text = f"the daemon said goodbye ({goodbye.code}): {goodbye.reason}"
        log.info("%s", text)
        self._status(text, False)
        if goodbye.code in ("drained", "stopping"):
            return
        if goodbye.code == "version":
            raise VersionMismatch(f"cannot work for the daemon at {self._path}: {goodbye.reason}")
        if goodbye.code in ("invalid", "too-large"):
            raise ProtocolError(f"cannot go on: the daemon cannot take what was said: {goodbye.reason}", origin="local")
        raise RequestFailed(goodbye.code, f"cannot work for the daemon at {self._path}: {goodbye.reason}", status=403)


def _apart() -> DaemonUnreachable:
    return DaemonUnreachable("cannot ask anything of the daemon: there is no connection to it at the moment")


def default_socket(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the daemon is looked for."""
    return Path(environ.get("NETD_WORKER_SOCKET") or DEFAULT_SOCKET)
