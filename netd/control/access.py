"""Who may do what at the control socket: SO_PEERCRED credentials -> access level.

    write     root; accounts of control.users; the daemon's own account, when a person runs it by hand
    content   accounts of control.content_users
    read      whoever may open the socket
    none      a peer without credentials (no Unix socket); the daemon's own account while it runs application code

The own account of a daemon that systemd started has no write access by itself: application code may share it. While the
daemon itself starts such code under it ([worker] command), it has no access at all, unless one of the lists names it.
Asked per request, so that a reload takes effect on connections that are open. Names are looked up in a thread (the
lookup may go to a directory server) and again after a minute: an account made later, or removed, counts from then on.
One that does not exist gets no access, which is a warning of the daemon's health (`AccessPolicy.watch`).
A peer whose account its user namespace does not map reads as the overflow uid 65534 and is treated as that one.
"""

from __future__ import annotations

import os
import pwd
import time
from typing import TYPE_CHECKING

import trio

from netd.net.rest import NOBODY, Access, Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from netd.control.config import ControlConfig
    from netd.net.http import Peer
    from netd.runtime.bus import Subscription
    from netd.runtime.health import Health

_KEEP = 60.0
"""Seconds that a looked-up account is taken for granted."""
_UNKNOWN = "control.accounts"
"""The health warning about accounts that do not exist."""


class AccessPolicy:
    """The access levels as the running configuration has them."""

    def __init__(
        self,
        config: Callable[[], ControlConfig],
        *,
        own_uid: int | None,
        code_uid: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`config()` is the running [control]; `own_uid` is the account that may write because it runs the daemon by
        hand, None for a daemon that systemd started; `code_uid()` is that of application code that the daemon runs."""
        self._config = config
        self._own_uid = own_uid
        self._code_uid = code_uid
        self._resolved: dict[tuple[str, ...], tuple[float, dict[str, int | None]]] = {}
        """Accounts as the configuration lists them -> until when that counts, and their uids; None: no such account."""

    async def caller(self, peer: Peer | None) -> Caller:
        if peer is None:
            return NOBODY
        config = self._config()
        if peer.uid in (0, self._own_uid) or peer.uid in await self._uids(config.users):
            return Caller(peer, Access.WRITE)
        if peer.uid in await self._uids(config.content_users):
            return Caller(peer, Access.CONTENT)
        if peer.uid == self._code_uid():
            return Caller(peer, Access.NONE)
        return Caller(peer, Access.READ)

    async def watch(self, health: Health, reloads: Subscription) -> None:
        """Keep the warning about accounts that do not exist true: now, with each of `reloads`, and every minute.

        Returns when `reloads` ends.
        """
        with reloads:
            while True:
                config = self._config()
                found = {**await self._look_up(config.users), **await self._look_up(config.content_users)}
                if unknown := [account for account, uid in found.items() if uid is None]:
                    health.warn(
                        _UNKNOWN,
                        f"cannot give access to {', '.join(unknown)}: no such account",
                        advice="make the account, or take it out of control.users and control.content_users",
                    )
                else:
                    health.clear(_UNKNOWN)
                with trio.move_on_after(_KEEP):
                    if await anext(reloads, None) is None:
                        return

    async def _uids(self, accounts: Sequence[str]) -> set[int]:
        return {uid for uid in (await self._look_up(accounts)).values() if uid is not None}

    async def _look_up(self, accounts: Sequence[str]) -> dict[str, int | None]:
        key = tuple(accounts)
        if not key:
            return {}
        until, uids = self._resolved.get(key, (0.0, {}))
        if time.monotonic() >= until:
            # abandoned rather than waited for: a directory server that is away must not hold up the end of the daemon
            uids = await trio.to_thread.run_sync(_uids_of, key, abandon_on_cancel=True)
            self._resolved.pop(key, None)
            while len(self._resolved) >= 2:  # `users` and `content_users` as they are now; older ones go
                del self._resolved[next(iter(self._resolved))]
            self._resolved[key] = (time.monotonic() + _KEEP, uids)
        return uids


def _uids_of(accounts: Sequence[str]) -> dict[str, int | None]:
    return {account: _uid(account) for account in accounts}


def _uid(account: str) -> int | None:
    if account.isascii() and account.isdigit():
        return int(account)
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def by_hand(environ: Mapping[str, str], *pids: int) -> bool:
    """Whether a person started this process, rather than a service unit (systemd.exec(5), "Environment variables").

    `pids` are this process and its parent: SYSTEMD_EXEC_PID names the unit's main process, which is the daemon or a
    wrapper that started it. INVOCATION_ID does not tell: a shell inside a desktop session inherits one.
    """
    return environ.get("SYSTEMD_EXEC_PID") not in {str(pid) for pid in pids}


def own_account(environ: Mapping[str, str] = os.environ) -> int | None:
    """The `own_uid` of an AccessPolicy for this process."""
    return os.geteuid() if by_hand(environ, os.getpid(), os.getppid()) else None
