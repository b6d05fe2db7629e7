"""The daemon's settings: the root model, and loading it from files, environment, credentials and overrides.

    load(paths) -> Loaded(settings, origins, sources)     or ConfigError with every problem there is

Rules:
- the root only composes: each room owns the section it is configured by (its config.py, or the class itself where the
  room is one file). A new service is one line in `Settings`, marked `_service`; nothing else here names one;
- importing this module imports sections and nothing that runs: no FastAPI, no service;
- later sources win: files in the order given, each followed by its drop-ins; NETD_SECTION__KEY; credentials; and last
  override.toml in the state directory, which `netctl config set` writes;
- `Settings(...)` itself reads neither files nor environment; only `load` does;
- TOML has no null: "" stands for "none" wherever a key may have none;
- a relative path is relative to the directory netd is started in.

Left out: which change takes effect how (section.py, runtime/reload.py); what the sources are (settings/sources.py).
"""

from __future__ import annotations

import os
import types
import typing
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from netd.backplane.config import BackplaneConfig
from netd.control.config import ControlConfig, MetricsConfig
from netd.errors import ConfigError, ConfigProblem
from netd.hub.config import HubConfig
from netd.logs import LogConfig
from netd.runtime.config import RestartPolicy
from netd.section import OVERRIDE_FILE, Section, fixed
from netd.services.anomaly.config import AnomalyConfig
from netd.services.broker.config import BrokerConfig
from netd.services.framed.config import FramedConfig
from netd.services.trace.config import TraceConfig
from netd.services.worker.config import WorkerConfig
from netd.settings.overrides import stage_override
from netd.settings.overrides import text_with as override_with
from netd.settings.problems import ENV_PREFIX, by_place, explain, section_of
from netd.settings.sources import (
    Owners,
    Source,
    credentials_source,
    environment_source,
    exists,
    file_source,
    files_of,
    toml_source,
)
from netd.wire.tomlkeys import join_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CREDENTIALS",
    "DEFAULT_FILE",
    "FOREIGN_VARIABLES",
    "LOADED_CREDENTIALS",
    "Loaded",
    "Settings",
    "load",
    "schema",
    "stage_override",
]

DEFAULT_FILE = Path("/etc/netd/netd.toml")
DEFAULT_STATE_DIRECTORY = Path("/var/lib/netd")
CREDENTIALS = DEFAULT_FILE.parent / "credentials"
"""What systemd reads when it starts the daemon (LoadCredential= of netd.service)."""
LOADED_CREDENTIALS = Path("/run/credentials/netd.service")
"""Where systemd shows them to the daemon, with DIRECTORY_PREFIX before their names; root sees them there too."""

FOREIGN_VARIABLES = frozenset(
    {
        "NETD_NATIVE",  # which implementation of the native functions to use; read before any settings are
    }
)
"""NETD_ variables that are no settings and yet no mistake."""

# What the settings being made are made of, weakest first. pydantic-settings asks for it through a class method, which
# has no other way to learn it; empty outside `_validated`.
_sources: ContextVar[tuple[Source, ...]] = ContextVar("_sources", default=())


def _section(section: type[Section]) -> Any:
    return Field(default_factory=section)


def _service(section: type[Section]) -> Any:
    return Field(default_factory=section, json_schema_extra={"x-service": True})


def _from_here(path: Path | None) -> Path | None:
    if path is not None and "\0" in str(path):
        raise ValueError(f"cannot use {str(path)!r} as the state directory: no path holds a NUL")
    return path and path.absolute()


StatePath = typing.Annotated[Path | None, AfterValidator(_from_here)]


class Settings(Section, BaseSettings):
    """Everything that can be configured. Frozen; `Settings()` is the defaults, whatever the environment says."""

    model_config = SettingsConfigDict(title="netd.toml", env_prefix=ENV_PREFIX, env_nested_delimiter="__")

    state_directory: StatePath = fixed(DEFAULT_STATE_DIRECTORY)
    """Where the daemon keeps its files (history, override.toml). Under systemd, the unit's StateDirectory= is the
    default. None: nothing is kept."""

    log: LogConfig = _section(LogConfig)
    control: ControlConfig = _section(ControlConfig)
    supervisor: RestartPolicy = _section(RestartPolicy)
    hub: HubConfig = _section(HubConfig)

    # services, in the order they start
    metrics: MetricsConfig = _service(MetricsConfig)
    backplane: BackplaneConfig = _service(BackplaneConfig)
    trace: TraceConfig = _service(TraceConfig)
    worker: WorkerConfig = _service(WorkerConfig)
    framed: FramedConfig = _service(FramedConfig)
    broker: BrokerConfig = _service(BrokerConfig)
    anomaly: AnomalyConfig = _service(AnomalyConfig)

    def services(self) -> dict[str, Section]:
        """Each service's name and section, in the order services start."""
        found: dict[str, Section] = {name: getattr(self, name) for name in type(self).model_fields if _is_service(name)}
        if self.hub.backplane == "memory":  # a hub of one machine has nothing to talk to
            found["backplane"] = self.backplane.model_copy(update={"enabled": False})
        return found

    @classmethod
    def embedded(cls, values: Mapping[str, Any] | None = None) -> Self:
        """Settings for a daemon inside someone's program: nothing is read, and nothing of the host is taken.

        `values` is nested as in TOML (sections may be given as objects). Unless it says otherwise there is neither a
        control socket nor a state directory, and a service that it does not name is not run. ConfigError with all
        problems.
        """
        given = dict(values or {})
        for name in filter(_is_service, cls.model_fields):
            given.setdefault(name, {"enabled": False})
        given.setdefault("state_directory", None)
        control = given.get("control", {})
        if isinstance(control, dict):
            given["control"] = {"socket": None, **control}
        sources = [Source(cls, "", given)]
        problems: list[ConfigProblem] = []
        settings = _validated(cls, sources, Owners(sources), problems)
        if settings is None:
            raise ConfigError(problems)
        return settings

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, values: Any) -> Any:
        return _without_empty(values, cls) if isinstance(values, dict) else values

    @field_validator("control", "worker", mode="before")
    @classmethod
    def _socket_from_here(cls, section: Any) -> Any:
        # the section wants an absolute path; what "here" is, only the one who reads the configuration knows
        if isinstance(section, dict) and isinstance(section.get("socket"), str | Path):
            return {**section, "socket": os.path.abspath(section["socket"])}
        return section

    @model_validator(mode="after")
    def _workers_beside_control(self) -> Self:
        control = self.control.socket
        if self.worker.socket is None and control is not None:
            name = "worker.sock" if control.name == "control.sock" else f"{control.stem}.worker.sock"
            self.__dict__["worker"] = self.worker.model_copy(update={"socket": control.with_name(name)})
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, *reversed(_sources.get()))


def _is_service(name: str) -> bool:
    extra = Settings.model_fields[name].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("x-service"))


def _without_empty(values: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """`values` with None for each "" whose key may be None."""
    changed = dict(values)
    for key, value in values.items():
        field = section.model_fields.get(key)
        inner = section_of(field.annotation) if field else None
        if field and value == "" and types.NoneType in typing.get_args(field.annotation):
            changed[key] = None
        elif inner and isinstance(value, dict):
            changed[key] = _without_empty(value, inner)
        elif inner and isinstance(value, list):
            changed[key] = [_without_empty(item, inner) if isinstance(item, dict) else item for item in value]
    return changed


# --- loading ---------------------------------------------------------------------------------------------------------


SettingsT = typing.TypeVar("SettingsT", bound=Settings)


@dataclass(frozen=True)
class Loaded:
    """Settings as loaded."""

    settings: Settings
    origins: dict[str, str]
    """dotted key -> "FILE:LINE", "NETD_VARIABLE" or "credential NAME"; what is not set is absent, a list is one key."""
    sources: list[str]
    """The files read, in order. Empty: there is none, and defaults apply."""
    hidden: frozenset[tuple[str, ...]] = frozenset()
    """The keys whose values came from credentials: nobody is to be shown them. A list is one key."""


def load(
    paths: Sequence[Path] = (),
    *,
    environ: Mapping[str, str] = os.environ,
    override: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read and validate everything.

    `paths` are files or directories of *.toml, each of which has to exist; with none, /etc/netd/netd.toml, which need
    not. `override` is what `stage_override` would be given: the result is what it would be after that, and
    nothing is written.

    Raises ConfigError with every problem of every source at once.
    """
    problems: list[ConfigProblem] = []
    files = [file for path in paths or _default_paths(problems) for file in files_of(path, problems)]
    # a file named twice, or that also stands in a directory that was named, counts where it stands last
    files = list(reversed(dict.fromkeys(reversed(files))))
    sources = [source for file in files if (source := file_source(Settings, file, problems))]
    sources.append(environment_source(Settings, environ, FOREIGN_VARIABLES, problems))
    directory = environ.get("CREDENTIALS_DIRECTORY")
    sources.append(credentials_source(Settings, Path(directory) if directory else None, problems))
    if unit_state := environ.get("STATE_DIRECTORY"):
        # systemd.exec(5): several are separated by colons and sorted, as where a drop-in adds StateDirectory=chat; ours
        # is that of netd.service
        given = unit_state.split(":")
        ours = (path for path in given if Path(path).name == "netd")
        unit_values = {"state_directory": next(ours, given[0])}
        sources.insert(0, Source(Settings, "STATE_DIRECTORY", unit_values))
    overridden = _override_source(_state_directory(sources), override, problems)
    if overridden:
        sources.append(overridden)

    owners = Owners(sources)
    settings = _validated(Settings, sources, owners, problems)
    if settings is None or problems:
        raise ConfigError(sorted(problems, key=by_place))
    origins = {join_key(path): source.where(path) for source, path in owners.leaves()}
    read = [*map(str, files), *([overridden.label] if overridden else [])]
    hidden = frozenset(tuple(map(str, path)) for _, path in owners.secret())
    return Loaded(settings, origins, read, hidden)


def _default_paths(problems: list[ConfigProblem]) -> list[Path]:
    """/etc/netd/netd.toml need not exist when nobody named it, and its drop-ins count without it."""
    drop_ins = DEFAULT_FILE.with_name(DEFAULT_FILE.name + ".d")
    return [path for path in (DEFAULT_FILE, drop_ins) if exists(path, problems)][:1]


def _validated(
    model: type[SettingsT], sources: list[Source], owners: Owners, problems: list[ConfigProblem]
) -> SettingsT | None:
    token = _sources.set(tuple(sources))
    try:
        return model()
    except ValidationError as error:
        problems.extend(explain(error, model, sources, owners))
        return None
    finally:
        _sources.reset(token)


def _state_directory(sources: list[Source]) -> Path | None:
    """Where override.toml is looked for, told before anything is validated: override.toml takes part in that."""
    values = [source.values["state_directory"] for source in sources if "state_directory" in source.values]
    value = values[-1] if values else str(DEFAULT_STATE_DIRECTORY)
    usable = isinstance(value, str) and value and "\0" not in value  # if not, validation says so
    return Path(value) if usable else None


def _override_source(
    directory: Path | None, changes: Mapping[str, Any] | None, problems: list[ConfigProblem]
) -> Source | None:
    if directory is None:
        if changes:
            problems.append(ConfigProblem("state_directory", "cannot keep settings without a state directory"))
        return None
    file = directory / OVERRIDE_FILE
    if changes:
        try:
            source = toml_source(Settings, override_with(directory, changes), str(file), problems)
        except ConfigError as error:
            problems.extend(error.problems)
            return None
    elif exists(file, problems):
        source = file_source(Settings, file, problems)
    else:
        return None
    if source and "state_directory" in source.values:
        message = "cannot be set in the file that it says where to find"
        problems.append(ConfigProblem("state_directory", message, source.where(("state_directory",))))
    return source


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration; "x-reload" on a key says how a reload treats a change of it."""
    document = Settings.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **document}
