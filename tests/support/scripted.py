"""A service that does what a test's script says, and writes down what became of it.

script = Script("alpha")
script.then(Behaviour(crash_after=1), Behaviour(start_takes=3))   # first generation, second; then well-behaved ones
unit = Unit(script.type, ScriptConfig(), shared, ...)
script.events == ["1 prepared", "1 serving", "1 crashed", ...]
"""

from __future__ import annotations

import math
from collections.abc import Callable  # dataclasses look at it
from dataclasses import dataclass

import trio

from netd.runtime.service import Context, ServiceType
from netd.section import Listen, Section, fixed, live, replace


class Inner(Section):
    depth: int = live(1)
    width: int = replace(1)


class ScriptConfig(Section):
    enabled: bool = live(True)
    rate: int = live(1)
    size: int = replace(1)
    root: str = fixed("/")
    inner: Inner = replace(Inner())
    listen: list[Listen] = replace([])


class Mishap(Exception):
    """What a scripted service raises: no error of netd's."""


@dataclass
class Behaviour:
    """Times in seconds. The default serves until it is drained and ends at once."""

    prepare_takes: float = 0
    prepare_fails: Exception | None = None
    build_fails: Exception | None = None
    start_takes: float = 0
    start_fails: Exception | None = None
    crash_after: float = math.inf
    crash: Callable[[], BaseException] = lambda: Mishap("broken")
    return_after: float = math.inf
    drain_takes: float = 0
    drain_fails: Exception | None = None
    reconfigure_fails: bool = False
    stuck: trio.Event | None = None
    """Ignores cancellation until this is set."""


class Script:
    def __init__(self, name: str = "alpha") -> None:
        self.events: list[str] = []
        self.services: list[ScriptedService] = []
        self.contexts: list[Context] = []
        self.serving = 0
        """Generations serving at this moment."""
        self._behaviours: list[Behaviour] = []
        self._count = 0
        self.type = ServiceType(name, ScriptConfig, self._prepare, self._build)

    def then(self, *behaviours: Behaviour) -> None:
        """What the next generations do, in turn; those after them behave well."""
        self._behaviours.extend(behaviours)

    async def _prepare(self, config: ScriptConfig, context: Context) -> ScriptedPrepared:
        self._count += 1
        number = self._count
        behaviour = self._behaviours.pop(0) if self._behaviours else Behaviour()
        self.contexts.append(context)
        await trio.sleep(behaviour.prepare_takes)
        for entry in config.listen:
            await context.listeners.open(entry)
        if behaviour.prepare_fails is not None:
            self.events.append(f"{number} unprepared")
            raise behaviour.prepare_fails
        self.events.append(f"{number} prepared")
        return ScriptedPrepared(self, number, behaviour)

    def _build(self, config: ScriptConfig, prepared: ScriptedPrepared, context: Context) -> ScriptedService:
        if prepared.behaviour.build_fails is not None:
            raise prepared.behaviour.build_fails
        service = ScriptedService(self, config, prepared, context)
        self.services.append(service)
        return service


@dataclass
class ScriptedPrepared:
    script: Script
    number: int
    behaviour: Behaviour

    def close(self) -> None:
        self.script.events.append(f"{self.number} closed")


class ScriptedService:
    def __init__(self, script: Script, config: ScriptConfig, prepared: ScriptedPrepared, context: Context) -> None:
        self.config = config
        self.number = prepared.number
        self._script = script
        self._context = context
        self._behaviour = prepared.behaviour

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        script, does = self._script, self._behaviour
        ending = "cancelled"
        try:
            await trio.sleep(does.start_takes)
            if does.start_fails is not None:
                ending = "unstarted"
                raise does.start_fails
            task_status.started()
            script.serving += 1
            script.events.append(f"{self.number} serving")
            try:
                with trio.move_on_after(min(does.crash_after, does.return_after)):
                    await self._context.draining.wait()
                if not self._context.draining.is_set():
                    ending = "crashed" if does.crash_after < does.return_after else "returned"
                    if ending == "crashed":
                        raise does.crash()
                    return
                script.events.append(f"{self.number} draining")
                await trio.sleep(does.drain_takes)
                if does.drain_fails is not None:
                    raise does.drain_fails
                ending = "drained"
            finally:
                script.serving -= 1
        finally:
            if does.stuck is not None:
                with trio.CancelScope(shield=True):
                    await does.stuck.wait()
            script.events.append(f"{self.number} {ending}")

    def reconfigure(self, config: ScriptConfig) -> None:
        if self._behaviour.reconfigure_fails:
            raise Mishap("cannot reconfigure")
        self._script.events.append(f"{self.number} reconfigured")
        self.config = config

    def snapshot(self) -> None:
        return None
