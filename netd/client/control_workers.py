"""ControlClient's part for application workers; what is common to all parts is in control.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from netd.client import shapes


class WorkerCalls:
    """To be mixed into ControlClient."""

    async def workers(self) -> shapes.WorkerStatus:
        """The worker service: its `workers`, what waits for them, sums. `running` says whether there is one."""
        return cast("shapes.WorkerStatus", await self._get("/v1/worker"))

    async def worker(self, id: int) -> shapes.WorkerInfo:
        """One worker, by its number. Raises RequestFailed ("not-found")."""
        return cast("shapes.WorkerInfo", await self._get(f"/v1/worker/{int(id)}"))

    async def worker_drain(self, id: int, *, now: bool = False) -> shapes.WorkerInfo:
        """Have a worker finish what it has in hand, and go; `now`: cut it off, what it has in hand is lost.

        Returns it as it is at that moment. Needs write access.
        """
        answer = await (
            self._call("DELETE", f"/v1/worker/{int(id)}") if now else self._call("POST", f"/v1/worker/{int(id)}/drain")
        )
        return cast("shapes.WorkerInfo", answer)

    async def _get(self, path: str) -> dict[str, Any]:
        raise NotImplementedError

    async def _call(self, method: str, path: str, *, expect: str | None = None, **request: Any) -> dict[str, Any]:
        raise NotImplementedError
