"""GET and PUT /v1/log: log levels, changed while the daemon runs. They last until it ends, or are taken back."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, StringConstraints

from netd.control.host import Host
from netd.net.rest import Read, RequestBody, Write


class LogLevels(BaseModel):
    level: str = Field(description="Of every logger without a level of its own.")
    loggers: dict[str, str] = Field(description="Loggers with a level of their own.")


class SetLogLevel(RequestBody):
    level: Literal["debug", "info", "warning", "error", "critical"] | None = Field(
        description="null: what was set by hand is taken back."
    )
    logger: Annotated[str, StringConstraints(max_length=100, pattern=r"^[A-Za-z0-9_.]*$")] = Field(
        "", description='"netd.runtime", or "" for all.'
    )


def router(host: Host) -> APIRouter:
    routes = APIRouter(prefix="/log", tags=["log"])

    def levels() -> LogLevels:
        loggers = dict(host.log_levels())
        return LogLevels(level=loggers.pop("", "info"), loggers=loggers)

    @routes.get("")
    async def get_levels(caller: Read) -> LogLevels:
        """The levels in force."""
        return levels()

    @routes.put("")
    async def set_level(body: SetLogLevel, caller: Write) -> LogLevels:
        """Set the level of one logger, or of all."""
        host.set_log_level(body.level, body.logger)
        return levels()

    return routes
