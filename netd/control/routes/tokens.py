"""/v1/tokens/revoked: signed tokens that count no more before they expire."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from netd.control.host import Host
from netd.errors import ControlError
from netd.hub.revocations import Kind
from netd.net.rest import Read, RequestBody, Write
from netd.wire.messages import MAX_NAME

MAX_LIST = 1000
"""Revocations of one answer."""
MONTH = 30 * 86_400.0
TEN_YEARS = 315_360_000.0


class RevokedToken(BaseModel):
    """`kind` says which claim `value` is of: of "sub", all tokens for it that were issued until `since`. It is
    forgotten at `until`; seconds since the epoch."""

    kind: Kind
    value: str
    since: float
    until: float


class RevokedTokens(BaseModel):
    """Those that are forgotten first come first. `total`: how many there are, whatever was asked for."""

    revoked: list[RevokedToken]
    total: int


class Revoke(RequestBody):
    """What to revoke. Exactly one of `sub` and `jti` has to be there."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["sub"]}, {"required": ["jti"]}]})

    sub: Annotated[str, Field(min_length=1, max_length=MAX_NAME)] = ""
    """All tokens for this subject that were issued until now, or do not say when."""
    jti: Annotated[str, Field(min_length=1, max_length=MAX_NAME)] = ""
    """The token with this id."""
    seconds: Annotated[float, Field(gt=0, le=TEN_YEARS, allow_inf_nan=False)] = MONTH
    """How long to remember it: until the last of these tokens will have expired, or it would count again."""


class Revoked(RevokedToken):
    """`ended`: how many sessions had such a token and were ended."""

    ended: int


def router(host: Host) -> APIRouter:
    routes = APIRouter(prefix="/tokens", tags=["tokens"])

    @routes.get("/revoked")
    async def list_revoked(caller: Read, limit: Annotated[int, Query(ge=1, le=MAX_LIST)] = 100) -> RevokedTokens:
        """The signed tokens that are revoked."""
        revocations = host.hub.revocations
        found = [
            RevokedToken(kind=each.kind, value=each.value, since=each.since, until=each.until)
            for each in revocations.all()[:limit]
        ]
        return RevokedTokens(revoked=found, total=len(revocations))

    @routes.post("/revoked")
    async def revoke_tokens(body: Revoke, caller: Write) -> Revoked:
        """Take signed tokens no more, and end the sessions that have them. It outlives a restart."""
        kind: Kind
        if bool(body.sub) == bool(body.jti):
            raise ControlError("cannot revoke: give either sub or jti", path="sub")
        kind, value = ("sub", body.sub) if body.sub else ("jti", body.jti)
        made, ended = host.hub.revoke(kind, value, body.seconds)
        await host.keep_revoked()
        return Revoked(kind=made.kind, value=made.value, since=made.since, until=made.until, ended=ended)

    return routes
