"""GET and PATCH /v1/config, POST /v1/config/check, GET /v1/config/diff and /schema, POST /v1/reload."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from pydantic import AfterValidator, BaseModel, Field, JsonValue, WithJsonSchema

from netd.control.changes import Changes, ChangeView
from netd.control.host import ConfigChange, ConfigView, Host, ReloadResult
from netd.control.routes.changes import CHANGE, answer
from netd.errors import ConfigError, ConfigProblem
from netd.net.rest import Read, Wait, Write
from netd.section import OVERRIDE_FILE
from netd.wire.tomlkeys import join_key, split_key

_PART = r'([A-Za-z0-9_-]+|"[A-Za-z0-9_.-]+")'
_KEY = rf"^{_PART}(\.{_PART})*$"
_MOST = 200  # characters of a key


def _as_key(key: str) -> str:
    """The key in its one spelling. ValueError for what is none."""
    if len(key) > _MOST or not re.fullmatch(_KEY, key):
        raise ValueError(f"cannot read {key[:_MOST]!r} as a key: write section.name, a part with dots in it in quotes")
    return join_key(split_key(key))


Key = Annotated[
    str,
    AfterValidator(_as_key),
    WithJsonSchema({"type": "string", "pattern": _KEY, "maxLength": _MOST}),
]

Values = Annotated[
    dict[Key, JsonValue],
    Body(
        min_length=1,
        max_length=256,
        json_schema_extra={"additionalProperties": False},
        description="Keys as in TOML, and their new values; null: back to what the files say.",
        examples=[{"trace.max_hops": 20, "trace.rounds": None, 'log.loggers."netd.trace"': "debug"}],
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
    changes: list[ConfigChange] = Field(description="What a reload would change.")


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
        operation = partial(_patch, host, values, _etag(if_match))
        change = changes.begin("config.patch", ", ".join(values)[:200], operation, caller)
        return await answer(change, wait, request, response)

    @routes.post("/config/check")
    async def check_config(caller: Read) -> ConfigCheckView:
        """Load and validate what is on disk now, and compare it with what runs; changes nothing."""
        check = await host.config_check()
        return ConfigCheckView(not check.problems, check.problems, check.changes)

    @routes.get("/config/diff")
    async def diff_config(caller: Read) -> ConfigDiff:
        """What differs between the files and what runs. 422 if the files cannot be used: then nobody can tell."""
        check = await host.config_check()
        if check.problems:
            raise ConfigError(check.problems)
        return ConfigDiff(changes=check.changes)

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


async def _patch(host: Host, values: dict[str, Any], etag: str | None) -> ReloadResult:
    try:
        return await host.config_patch(values, etag)
    except ConfigError as error:
        keys = [split_key(key) for key in values]
        raise ConfigError([_as_asked(problem, keys) for problem in error.problems]) from error


def _as_asked(problem: ConfigProblem, keys: list[tuple[str, ...]]) -> ConfigProblem:
    """A problem in the words of who set these keys. The override file was only to be written: what was asked for stands
    on none of its lines, and what it holds already may stand on others."""
    file, _, line = problem.source.rpartition(":")
    staged = line.isdecimal() and PurePath(file).name == OVERRIDE_FILE
    if problem.source and not staged:
        return problem
    if any(_overlap(problem.path, key) for key in keys):
        return ConfigProblem(problem.path, problem.message, "config set")
    return ConfigProblem(problem.path, problem.message, file if staged else "")


def _overlap(path: str, key: tuple[str, ...]) -> bool:
    """Whether a problem's path is a key, or in it, or around it."""
    try:
        parts = split_key(path)
    except ValueError:  # "": the configuration as a whole
        return False
    shared = min(len(parts), len(key))
    return parts[:shared] == key[:shared]


def _etag(header: str | None) -> str | None:
    """The tag inside an If-Match of one; None for any (RFC 9110 13.1.1). A list of tags matches no tag of ours."""
    if header is None or header.strip() == "*":
        return None
    return header.strip().removeprefix('"').removesuffix('"')
