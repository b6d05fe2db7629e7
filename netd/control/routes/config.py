"""GET and PATCH /v1/config, POST /v1/config/check, GET /v1/config/diff and /schema, POST /v1/reload."""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from pydantic import BaseModel, Field, JsonValue, StringConstraints

from netd.control.changes import Changes, ChangeView
from netd.control.host import ConfigChange, ConfigView, Host
from netd.control.routes.changes import CHANGE, answer
from netd.errors import ConfigProblem
from netd.net.rest import Read, Wait, Write

Key = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$", max_length=200)]

Values = Annotated[
    dict[Key, JsonValue],
    Body(
        min_length=1,
        max_length=256,
        json_schema_extra={"additionalProperties": False},
        description="Dotted keys and their new values; null: back to what the files say.",
        examples=[{"trace.max_hops": 20, "trace.rounds": None}],
    ),
]

IfMatch = Annotated[
    str | None, Header(max_length=200, description="The ETag the caller has seen: 409 if it is another by now.")
]


@dataclass(frozen=True)
class ConfigCheckView:
    """What a reload would find. `ok`: it would be accepted as a configuration; `changes` says what it would do."""

    ok: bool
    problems: list[ConfigProblem]
    changes: list[ConfigChange]


class ConfigDiff(BaseModel):
    changes: list[ConfigChange] = Field(description="What a reload would change, if the files have no problems.")


def router(host: Host, changes: Changes) -> APIRouter:
    routes = APIRouter(tags=["config"])

    @routes.get("/config")
    async def get_config(caller: Read, response: Response) -> ConfigView:
        """The running configuration, secrets redacted. Its ETag is what PATCH takes as If-Match."""
        view = host.config_view()
        response.headers["etag"] = f'"{view.etag}"'
        return view

    @routes.patch("/config", responses=CHANGE)
    async def patch_config(
        values: Values,
        caller: Write,
        request: Request,
        response: Response,
        wait: Wait = 0.0,
        if_match: IfMatch = None,
    ) -> ChangeView:
        """Set keys in override.toml and reload; nothing stays of it if the reload is refused."""
        operation = partial(host.config_patch, dict(values), _etag(if_match))
        change = changes.begin("config.patch", ", ".join(values)[:200], operation, caller)
        return await answer(change, wait, request, response)

    @routes.post("/config/check")
    async def check_config(caller: Read) -> ConfigCheckView:
        """Load and validate what is on disk now, and compare it with what runs; changes nothing."""
        check = await host.config_check()
        return ConfigCheckView(not check.problems, check.problems, check.changes)

    @routes.get("/config/diff")
    async def diff_config(caller: Read) -> ConfigDiff:
        """What differs between the files and what runs."""
        return ConfigDiff(changes=(await host.config_check()).changes)

    @routes.get("/config/schema")
    async def config_schema(caller: Read) -> dict[str, Any]:
        """The JSON schema of netd.toml."""
        return host.config_schema()

    @routes.post("/reload", responses=CHANGE)
    async def reload(caller: Write, request: Request, response: Response, wait: Wait = 0.0) -> ChangeView:
        """Take over the configuration on disk. Done once it runs; refused as a whole otherwise."""
        change = changes.begin("reload", None, host.reload, caller)
        return await answer(change, wait, request, response)

    return routes


def _etag(header: str | None) -> str | None:
    """The tag inside an If-Match of one; None for any (RFC 9110 13.1.1). A list of tags matches no tag of ours."""
    if header is None or header.strip() == "*":
        return None
    return header.strip().removeprefix('"').removesuffix('"')
