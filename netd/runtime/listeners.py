"""Listening sockets, owned outside services so that clients queue during a restart instead of being refused.

    Listeners (one per daemon)   the bound sockets, by service, address and interface
      Leases (one per generation)  which of them a generation uses
        Listener                     a descriptor of its own on one of them, and `accept` (`accept_into`: many at once)

Rules:
- opening an address that an overlapping or earlier generation of the same service has open gives the same socket;
- a socket that nobody leases any more is closed, unless its service is held: a unit that is about to start again holds
  its sockets, and what the generation before had open goes on queueing clients in the backlog;
- a released Listener accepts nothing more: two generations never compete for one client;
- what systemd passed (netd.socket, or the fd store of the process before us) is taken instead of binding anew, by the
  name it was stored under, or because it is the very address: one that moved to another service keeps its queue. A
  socket of netd.socket stays open while nobody uses it, because systemd keeps it open anyway;
- what we bind ourselves is left in the fd store too, and is taken out again when it is closed for good. Once the daemon
  is ending (`leave_behind`) it stays there: the next process finds it, clients still queueing. The store has a limit:
  what is beyond it is not kept over a restart, which a health warning says;
- what is closed for good is shut down first: systemd's copy would go on taking clients, and keep the address, until
  systemd has read that it may go;
- the last descriptors of the process are not for clients: services stop accepting before there are none, so that the
  control API can still say what is wrong, and files can be opened;
- [::] means IPv6 only (IPV6_V6ONLY), so that "[::]:80" and "0.0.0.0:80" are two listeners wherever they are written.

Unix sockets are bound to a temporary name, given mode and group, and renamed: nobody ever sees one half made. A path
that is there already is replaced only if nobody listens behind it.

Over 600 lines: what a socket may be (bound, passed, stored, leased, released) is one story, told once. How one is made
stands in sockets.py. Left out: TLS and everything else that happens to a connection after accept.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import structlog
import trio

from netd.errors import PrepareFailed
from netd.runtime.sockets import (
    NO_INODE,
    Inode,
    address_of,
    inode_of,
    listen_inet,
    listen_unix,
    listens_at,
    path_of,
    port_of,
)
from netd.section import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from netd.runtime.health import Health
    from netd.section import Listen
    from netd.systemd import Notifier

RESERVE = 32
"""Descriptors that services leave to the rest of the daemon, or an eighth of all where those are few."""
_PAUSE = 0.1
"""Seconds before accept is tried again; at once would spin, as the connection stays in the backlog."""
_AT_ONCE = 16
"""Connections accepted before whoever is there already has its turn."""
_STORE_FULL = "listeners.store"

# accept(2): errors of the connection that was to be accepted, not of the listener.
_OF_THE_CLIENT = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)
_ADVICE = {
    errno.EADDRINUSE: "another program listens there already (ss -ltnp shows which)",
    errno.EACCES: "permission denied (ports below 1024 need CAP_NET_BIND_SERVICE)",
    errno.EPERM: "permission denied (an interface needs CAP_NET_RAW)",
    errno.EADDRNOTAVAIL: "no interface has this address",
    errno.ENODEV: "there is no such interface",
    errno.ENOENT: "its directory does not exist",
    errno.EAFNOSUPPORT: "this machine has no such kind of address (is IPv6 off?)",
}
_ADVICE_UNIX = {
    errno.EADDRINUSE: "another program listens there already (ss -lxp shows which)",
    errno.EACCES: "permission denied (the daemon's user must be able to write in its directory)",
}

log = structlog.get_logger("netd.listeners")


class _Key(NamedTuple):
    """What makes a listener the same one in another generation, and in another process."""

    service: str
    address: str
    interface: str | None
    number: int
    """Counts the entries of one generation that ask for any free port of the same host."""

    @property
    def stored_name(self) -> str:
        return f"{self.service}.{hashlib.sha256(repr(tuple(self)).encode()).hexdigest()[:16]}"


@dataclass(eq=False)
class _Bound:
    """A listening socket and who uses it."""

    key: _Key
    socket: socket.socket
    address: str
    origin: Literal["bound", "store", "unit"]
    stored: str | None = None
    """Its name in the fd store."""
    path: Path | None = None
    """The path of a Unix socket that is ours to unlink, with the inode it must still have."""
    inode: Inode = NO_INODE
    leases: set[Leases] = field(default_factory=set)


class Listeners:
    """Every listening socket of the daemon."""

    def __init__(
        self,
        *,
        health: Health,
        notifier: Notifier | None = None,
        inherited: Mapping[str, Sequence[socket.socket]] | None = None,
    ) -> None:
        """`inherited`: what `systemd.listen_fds()` gave; it belongs to this object from here on.

        FileDescriptorName= in netd.socket is the name of the service ("control"); names with a dot are the fd store's.
        """
        self._health = health
        self._notifier = notifier
        self._inherited = {name: list(socks) for name, socks in (inherited or {}).items()}
        self._bound: dict[_Key, _Bound] = {}
        self._held: set[str] = set()
        self._served: set[str] = set()
        self._paused: set[Listener] = set()
        self._leaving_behind = False
        self._started = False

    def lease(self, service: str, *, reserve: int = RESERVE) -> Leases:
        """A new generation's view, empty at first. It accepts nobody while only `reserve` descriptors are left."""
        return Leases(self, service, reserve)

    def hold(self, service: str) -> None:
        """Until `let_go`, the sockets of `service` stay open though nobody leases them."""
        self._held.add(service)

    def let_go(self, service: str) -> None:
        """End `hold`, and close what nobody leases."""
        self._held.discard(service)
        self._close_unused(service)

    def trim(self, service: str) -> None:
        """Close what nobody leases, held or not: the generation that serves now did not ask for it."""
        self._served.add(service)
        self._close_unused(service)

    def _close_unused(self, service: str) -> None:
        for bound in [bound for bound in self._bound.values() if bound.key.service == service and not bound.leases]:
            self._close(bound)
        if self._started and not self._leaving_behind:
            for name in [name for name in self._inherited if name.startswith(f"{service}.")]:
                self._give_up(name)

    def leave_behind(self) -> None:
        """From now on closing a socket leaves its copy in the fd store: the daemon ends and may be started again."""
        self._leaving_behind = True

    def drop_unclaimed(self) -> None:
        """Close what was inherited through the fd store and nobody opened: the configuration changed since.

        Call it once every service had its chance. Sockets of netd.socket stay, and those of services that are held and
        have yet to serve: `trim` or `let_go` gives them up.
        """
        self._started = True
        for name, socks in list(self._inherited.items()):
            if "." not in name:
                for sock in socks:
                    log.warning("a socket from systemd matches no listener", name=name, address=address_of(sock))
            elif name.split(".")[0] not in self._held - self._served or self._stores(name):
                self._give_up(name)
        self._store_rest()

    def close(self) -> None:
        """Close everything, leased or not."""
        for bound in list(self._bound.values()):
            for leases in list(bound.leases):
                leases.release()
            if bound.key in self._bound:
                self._close(bound)
        for socks in self._inherited.values():
            for sock in socks:
                sock.close()
        self._inherited.clear()

    # --- for Leases and Listener ---

    def _open(self, key: _Key, mode: int, group: str | None) -> _Bound:
        bound = self._bound.get(key) or self._adopt(key) or self._bind(key, mode, group)
        self._bound[key] = bound
        if self._started and bound.stored is None:
            self._store_rest()  # or says that it is one too many
        return bound

    def _adopt(self, key: _Key) -> _Bound | None:
        """What systemd passed for this listener, if it did."""
        target = parse_address(key.address)
        moved = isinstance(target, Path) or target[1] != 0
        # its own first: what another listener left is only taken if nothing was left for this one
        for name, socks in sorted(self._inherited.items(), key=lambda item: not self._is_for(key, item[0])):
            stored = "." in name
            if not self._is_for(key, name) and not (stored and moved):
                continue
            inode = _stored_inode(name) if stored else None
            for sock in socks:
                if not listens_at(sock, target, key.interface, inode):
                    continue
                socks.remove(sock)
                if not socks:
                    del self._inherited[name]
                address = key.address if isinstance(target, Path) else address_of(sock)
                bound = _Bound(key, sock, address, "store" if stored else "unit", name if stored else None)
                if stored and isinstance(target, Path):
                    bound.path, bound.inode = target, _stored_inode(name)
                log.info("took over a listener", service=key.service, address=address, origin=bound.origin)
                if stored and not self._is_for(key, name):
                    self._rename(bound)
                return bound
        return None

    def _is_for(self, key: _Key, name: str) -> bool:
        """Whether what was passed under `name` was meant for this listener."""
        return name == key.service or ".".join(name.split(".")[:2]) == key.stored_name

    def _stores(self, name: str) -> bool:
        return any(bound.stored == name for bound in self._bound.values())

    def _give_up(self, name: str) -> None:
        """Close what was left in the fd store under `name`; not what is in use, should the store have it twice."""
        in_use = self._stores(name)
        for sock in self._inherited.pop(name):
            path = path_of(sock)
            address = f"unix:{path}" if path else address_of(sock)
            log.info("closing a stored socket that nobody asked for", name=name, address=address)
            if in_use:
                sock.close()
                continue
            if path is not None and inode_of(path) == _stored_inode(name) != NO_INODE:
                _unlink(path)
            _close_for_good(sock)
        if not in_use and self._notifier is not None:
            self._notifier.unstore(name)

    def _store(self, bound: _Bound) -> None:
        """Leave a copy with systemd, if it has room for one more."""
        if self._notifier is None or not self._notifier.active:
            return
        kept = sum(one.stored is not None for one in self._bound.values()) + sum(
            len(socks) for name, socks in self._inherited.items() if "." in name
        )
        limit = self._notifier.store_max
        if kept >= limit:
            return
        inode = f".{bound.inode.number}.{bound.inode.device}" if bound.path else ""
        bound.stored = f"{bound.key.stored_name}{inode}"
        self._notifier.store(bound.stored, bound.socket)

    def _rename(self, bound: _Bound) -> None:
        """Have systemd keep a socket under the name of whose it is now."""
        if self._notifier is not None and bound.stored is not None:
            # in this order: systemd takes no socket that it has already, under whatever name
            self._notifier.unstore(bound.stored)
            bound.stored = None
            self._store(bound)

    def _store_rest(self) -> None:
        """Store what there was no room for so far, and say what there still is none for."""
        if self._notifier is None or not self._notifier.active or self._leaving_behind:
            return
        ours = [bound for bound in self._bound.values() if bound.origin != "unit"]
        for bound in ours:
            if bound.stored is None:
                self._store(bound)
        left_out = [bound for bound in ours if bound.stored is None]
        if not left_out:
            self._health.clear(_STORE_FULL)
            return
        self._health.warn(
            _STORE_FULL,
            f"cannot keep {len(left_out)} of {len(ours)} listeners open over a restart, {left_out[0].address} is one: "
            f"systemd keeps {self._notifier.store_max} sockets",
            advice="raise FileDescriptorStoreMax= (systemctl edit netd), then restart netd",
        )

    def _bind(self, key: _Key, mode: int, group: str | None) -> _Bound:
        target = parse_address(key.address)
        if isinstance(target, Path):
            sock, inode = listen_unix(target, mode, group)
            bound = _Bound(key, sock, key.address, "bound", path=target, inode=inode)
        else:
            sock = self._listen_inet(*target, key)
            bound = _Bound(key, sock, address_of(sock), "bound")
        self._store(bound)
        log.info("listening", service=key.service, address=bound.address)
        return bound

    def _listen_inet(self, host: str, port: int, key: _Key) -> socket.socket:
        try:
            return listen_inet(host, port, key.interface, shared=False)
        except OSError as error:
            own = [one.socket for one in self._bound.values() if one.key.service == key.service]
            left = [sock for name, socks in self._inherited.items() if "." in name for sock in socks]
            rivals = [sock for sock in (*own, *left) if port_of(sock) == port]
            if error.errno != errno.EADDRINUSE or not rivals:
                raise
        # "127.0.0.1:80" becomes "0.0.0.0:80" while the generation that has the former still serves, or while the store
        # has it from a process with another configuration: the kernel lets two listeners of one user overlap if both
        # have SO_REUSEPORT as the second is bound. Lent for that moment only.
        for rival in rivals:
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            return listen_inet(host, port, key.interface, shared=True)
        finally:
            for rival in rivals:
                rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)

    def _unlease(self, bound: _Bound, leases: Leases, *, abandon: bool) -> None:
        bound.leases.discard(leases)
        if not bound.leases and (abandon or bound.key.service not in self._held):
            self._close(bound)

    def _close(self, bound: _Bound) -> None:
        del self._bound[bound.key]
        if bound.origin == "unit":
            self._inherited.setdefault(bound.key.service, []).append(bound.socket)
            return
        left_behind = bound.stored is not None and self._leaving_behind
        if bound.stored is not None and self._notifier is not None and not self._leaving_behind:
            self._notifier.unstore(bound.stored)
        if bound.path is not None and not left_behind and inode_of(bound.path) == bound.inode:
            _unlink(bound.path)
        if left_behind:
            bound.socket.close()
        else:
            _close_for_good(bound.socket)
        log.info("listener closed", service=bound.key.service, address=bound.address, left_in_store=left_behind)
        self._store_rest()

    def _pause(self, listener: Listener, service: str, error: OSError) -> None:
        self._paused.add(listener)
        self._health.warn(
            f"{service}.accept",
            f"cannot accept connections on {listener.address}: {os.strerror(error.errno or 0).lower()}",
            advice="raise LimitNOFILE= (or memory), or lower the service's limit on connections",
            severity="error",
            service=service,
        )

    def _resume(self, listener: Listener, service: str) -> None:
        if listener in self._paused:
            self._paused.discard(listener)
            if not any(other._leases.service == service for other in self._paused):
                self._health.clear(f"{service}.accept")


class Leases:
    """The listeners of one generation of a service."""

    def __init__(self, owner: Listeners, service: str, reserve: int) -> None:
        self._owner = owner
        self.service = service
        self._reserve = reserve
        self._listeners: list[tuple[Listener, _Bound, bool]] = []
        self._asked: dict[tuple[str, str | None], int] = {}
        self._released = False

    @property
    def addresses(self) -> list[str]:
        """The actual addresses, in the order of opening; empty once released."""
        return [listener.address for listener, _, _ in self._listeners]

    async def open(
        self,
        listen: Listen,
        *,
        options: Sequence[tuple[int, int, int]] = (),
        mode: int = 0o660,
        group: str | None = None,
    ) -> Listener:
        """The listening socket for `listen`: bound now, or the one an earlier generation or systemd has.

        `options` are (level, option, value) for setsockopt on the listening socket. `mode` and `group` are for a Unix
        socket that is made anew; a group that does not exist or that we may not give leaves the socket to our own.
        Raises PrepareFailed when the address cannot be had, or stands twice among one generation's listeners (port 0
        may: two entries are two sockets, and each keeps its port over generations).
        """
        await trio.lowlevel.checkpoint()
        if self._released:
            raise RuntimeError("this generation's listeners were released")
        target = parse_address(listen.address)
        place = (listen.address, listen.interface)
        number = self._asked.get(place, 0)
        if number and (isinstance(target, Path) or target[1] != 0):
            raise PrepareFailed(self.service, f"cannot listen on {listen.address} twice: remove one of the entries")
        key = _Key(self.service, listen.address, listen.interface, number)
        fresh = key not in self._owner._bound
        try:
            bound = self._owner._open(key, mode, group)
            fresh = fresh and bound.origin == "bound"  # what systemd had was open before, and clients may queue there
            try:
                for level, option, value in options:
                    bound.socket.setsockopt(level, option, value)
                own = (
                    bound.socket.dup()
                )  # the kernel lets one task wait for one descriptor: each generation has its own
                own.setblocking(False)
            except OSError:
                if not bound.leases:
                    self._owner._unlease(bound, self, abandon=fresh)
                raise
        except OSError as error:
            advice = _ADVICE | (_ADVICE_UNIX if listen.address.startswith("unix:") else {})
            why = advice.get(error.errno or 0) or (error.strerror or str(error)).lower()
            raise PrepareFailed(self.service, f"cannot listen on {listen.address}: {why}") from error
        listener = Listener(self, trio.socket.from_stdlib_socket(own), bound.address, listen)
        bound.leases.add(self)
        self._asked[place] = number + 1
        self._listeners.append((listener, bound, fresh))
        return listener

    def _scarce(self, descriptor: int) -> bool:
        """Whether a new descriptor with this number says that those for clients are used up."""
        return descriptor >= self._first_scarce()

    def _first_scarce(self) -> float:
        """The first descriptor that is not for clients."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return float("inf") if limit == resource.RLIM_INFINITY else limit - min(self._reserve, limit // 8)

    def release(self, *, abandon: bool = False) -> None:
        """Accept nothing more through this view; may be called twice.

        `abandon`: the generation never served, so that what it opened first is closed even if the service is held.
        """
        self._released = True
        listeners, self._listeners = self._listeners, []
        for listener, bound, fresh in listeners:
            listener._release()
            self._owner._resume(listener, self.service)
            self._owner._unlease(bound, self, abandon=abandon and fresh)


class Watch(Protocol):
    """Reactor.watch: has `ready` called while a descriptor can be read, until what it returns is called."""

    def __call__(self, fd: int, ready: Callable[[], None], /) -> Callable[[], None]: ...


class Listener:
    """One listening socket as one generation sees it."""

    def __init__(self, leases: Leases, sock: trio.socket.SocketType, address: str, listen: Listen) -> None:
        self._leases = leases
        self._released = trio.Event()
        self._scarce = False
        self._stop_watching: Callable[[], None] = _nothing
        self.drained = 0
        """How many times `accept_into` has found nobody waiting."""
        self.socket = sock
        """Listening, non-blocking; a descriptor of this generation's own."""
        self.address = address
        """The actual address: "127.0.0.1:8080", "[::1]:8080", "unix:/run/x.sock"."""
        self.listen = listen

    async def accept(self) -> trio.SocketStream:
        """The next connection. One task at a time.

        Survives what goes wrong with a single connection. When it is not the connection's fault (no descriptors, no
        memory) it pauses, raises a health warning, and tries again until it works. Once the generation's leases are
        released it waits until it is cancelled: the service was told to drain at the same moment, and nothing more is
        there to be accepted.
        """
        owner = self._leases._owner
        while True:
            await self._until_there_is_room()
            try:
                sock, _ = await self.socket.accept()
            except trio.ClosedResourceError:
                if not self._released.is_set():
                    raise
                continue
            except OSError as error:
                if error.errno not in _OF_THE_CLIENT and not self._released.is_set():
                    # out of descriptors or memory, or something no manual knows: no reason to end a service
                    owner._pause(self, self._leases.service, error)
                    await trio.sleep(_PAUSE)
                continue
            owner._resume(self, self._leases.service)
            self._scarce = self._leases._scarce(sock.fileno())
            return trio.SocketStream(sock)

    async def accept_into(self, watch: Watch, take: Callable[[socket.socket, Any], None]) -> NoReturn:
        """Have `take(socket, peer)` called for every connection as it comes, until cancelled; the rest as `accept`.

        For services that take thousands a second: Trio's wait and its wrappers cost 70 us for each. `watch` is
        `Reactor.watch`; `take` must not block and raises nothing. The sockets are blocking ones, the kernel's address
        of the peer is as in socket(7): "" for a Unix socket.
        """
        family, kind, proto = int(self.socket.family), int(self.socket.type), self.socket.proto
        listening = self.socket.fileno()
        source = socket.socket(family, kind, proto, fileno=listening)  # Trio's has no such accept; never closed here
        accept, connected = source._accept, socket.socket  # type: ignore[attr-defined]  # socket.accept asks the enums
        owner, service = self._leases._owner, self._leases.service
        trouble: list[OSError] = []
        stopped = trio.Event()

        def ready() -> None:
            most = self._leases._first_scarce()
            fd = -1
            for _ in range(_AT_ONCE):
                try:
                    fd, peer = accept()
                except BlockingIOError:
                    self.drained += 1
                    break
                except OSError as error:
                    if error.errno in _OF_THE_CLIENT:
                        continue
                    trouble.append(error)
                    break
                take(connected(family, kind, proto, fileno=fd), peer)
                if self._released.is_set():
                    break
                if fd >= most:
                    self._scarce = True
                    break
            if fd >= 0:
                owner._resume(self, service)
            if trouble or self._scarce:
                self._stop_watching()
                stopped.set()

        try:
            while True:
                await self._until_there_is_room()
                stopped = trio.Event()
                trouble.clear()
                self._stop_watching = watch(listening, ready)
                await stopped.wait()
                if trouble and not self._released.is_set():
                    owner._pause(self, service, trouble[0])
                    await trio.sleep(_PAUSE)
        finally:
            self._stop_watching()
            source.detach()

    async def _until_there_is_room(self) -> None:
        """For one more descriptor; for ever, once it is released."""
        owner = self._leases._owner
        while self._scarce and not self._released.is_set():
            # the lowest that is free is the next one, and tells how many are in use
            self._scarce = self._leases._scarce(_lowest_free())
            if self._scarce:
                owner._pause(self, self._leases.service, OSError(errno.EMFILE, ""))
                await trio.sleep(_PAUSE)
            else:
                owner._resume(self, self._leases.service)
        if self._released.is_set():
            await trio.sleep_forever()

    def _release(self) -> None:
        self._released.set()
        self._stop_watching()
        self.socket.close()


def _nothing() -> None:
    pass


def _stored_inode(name: str) -> Inode:
    """Of a Unix socket's path, from the name it was stored under; NO_INODE for any other."""
    match name.split(".")[2:]:
        case [number, device] if number.isdecimal() and device.isdecimal():
            return Inode(int(number), int(device))
    return NO_INODE


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove a socket's path", path=str(path), why=error.strerror)


def _close_for_good(sock: socket.socket) -> None:
    """Listen no more on any descriptor of this socket, whoever has it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        log.debug("socket was not listening", error=str(error))
    sock.close()


def _lowest_free() -> int:
    """The number that the next descriptor would have; beyond any limit if there can be none."""
    try:
        descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return 1 << 31
    os.close(descriptor)
    return descriptor
