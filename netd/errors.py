"""The whole error hierarchy of netd.

Rules:
- a new class only where a caller acts differently on it;
- a message begins "cannot ...", lower case, names the offending value and says what to do;
- `kind` is the stable word that REST, netctl and logs carry; `exit_code` is what a process that ends on it returns
  (sysexits.h numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


class NetdError(Exception):
    """Base of every error netd raises on purpose."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70  # EX_SOFTWARE


def sole(error: BaseException) -> BaseException:
    """What stands alone in a group, however deep (nurseries wrap what they raise); otherwise `error` as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# --- configuration -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong with the configuration.

    `source` is "FILE:LINE", "NETD_VARIABLE", "credential NAME" or "" where there is no better place to point at;
    `path` is the dotted key ("trace.listen.0.address"); `message` says why and, where it can, what was meant.
    """

    path: str
    message: str
    source: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.path, self.message) if part)


class ConfigError(NetdError):
    """The configuration as a whole cannot be used: all its problems at once, one a line in `str()`."""

    kind = "config"
    exit_code = 78  # EX_CONFIG

    def __init__(self, problems: list[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))


class ReloadRefused(NetdError):
    """A reload changed nothing: the running generations stay. `path` names the field or service that refused."""

    kind = "reload-refused"
    exit_code = 78

    def __init__(self, message: str, path: str = "") -> None:
        self.path = path
        super().__init__(message)


# --- services ------------------------------------------------------------------------------------------------------


class ServiceError(NetdError):
    """A service could not do its work. `service` is its name."""

    kind = "service"
    exit_code = 69  # EX_UNAVAILABLE

    def __init__(self, service: str, message: str) -> None:
        self.service = service
        super().__init__(message)


class PrepareFailed(ServiceError):
    """What a service needs (a socket, a certificate) could not be acquired; nothing live was touched."""

    kind = "prepare-failed"


class StartFailed(ServiceError):
    """A service ended, or ran out of time, before it was serving."""

    kind = "start-failed"


class ReturnedEarly(ServiceError):
    """A service's `run` returned although nobody asked it to stop."""

    kind = "returned-early"


# --- protocols -----------------------------------------------------------------------------------------------------


class ProtocolError(NetdError):
    """Bytes that break a protocol's rules.

    `origin` is "remote" when the peer sent them and "local" when our own caller asked for something the protocol does
    not allow; `close` is the close code the connection should end with, None where the protocol has none.
    """

    kind = "protocol"
    exit_code = 76  # EX_PROTOCOL

    def __init__(
        self, message: str, *, origin: Literal["local", "remote"] = "remote", close: int | None = None
    ) -> None:
        self.origin = origin
        self.close = close
        super().__init__(message)


# --- the control API -----------------------------------------------------------------------------------------------


class ControlError(NetdError):
    """A request of the control API that cannot be met. `status` is its HTTP status, `path` the offending field."""

    kind = "invalid"
    status: ClassVar[int] = 400

    def __init__(self, message: str, path: str | None = None) -> None:
        self.path = path
        super().__init__(message)


class NotFound(ControlError):
    kind = "not-found"
    status = 404


class Denied(ControlError):
    kind = "denied"
    status = 403


class Conflict(ControlError):
    """The state the caller assumed is not the state there is: superseded, an ETag that no longer matches."""

    kind = "conflict"
    status = 409


class TooBusy(ControlError):
    """A bound was reached; the same request may succeed later."""

    kind = "too-busy"
    status = 503


# --- applications --------------------------------------------------------------------------------------------------


class ApplicationError(NetdError):
    """A request that the application did not answer. `status` is what the client gets: 502 (it went down over it), 503
    (there is none, or it has too much to do) or 504 (it took too long)."""

    kind = "application"

    def __init__(self, status: Literal[502, 503, 504], message: str) -> None:
        self.status: int = status
        super().__init__(message)


# --- clients -------------------------------------------------------------------------------------------------------


class ClientError(NetdError):
    """A client library call that failed."""

    kind = "client"
    exit_code = 1


class DaemonUnreachable(ClientError):
    """No daemon answers at the socket, or the socket may not be used."""

    kind = "unreachable"
    exit_code = 69  # EX_UNAVAILABLE
    retry_after: float | None = None
    """Seconds that it asked to be left alone, if it said."""


class VersionMismatch(ClientError):
    """Client and daemon do not speak the same version of the API."""

    kind = "version-mismatch"
    exit_code = 76  # EX_PROTOCOL


class RequestFailed(ClientError):
    """The daemon answered with an error. `kind` is the daemon's own word, `status` the HTTP status."""

    def __init__(self, kind: str, message: str, *, status: int, path: str | None = None) -> None:
        self.kind = kind  # type: ignore[misc]  # the daemon's word, per instance
        self.status = status
        self.path = path
        self.exit_code = _EXIT_CODES.get(kind, 1)  # type: ignore[misc]
        super().__init__(message)


_EXIT_CODES = {
    error.kind: error.exit_code
    for error in (ConfigError, ReloadRefused, ServiceError, PrepareFailed, StartFailed, ReturnedEarly, ProtocolError)
} | {Denied.kind: 77, NotFound.kind: 66, Conflict.kind: 75, TooBusy.kind: 75, ControlError.kind: 64}
