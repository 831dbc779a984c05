"""Readiness: can this process serve now, and if not, why. Asked at most once a second, however often it is shown."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.services.ports import Clock

FRESH_S = 1.0

Check = Callable[[], Awaitable[object]]


class Health:
    """Runs the checks. `needed` ones make the service unavailable, `wished` ones degrade it."""

    def __init__(self, needed: Mapping[str, Check], wished: Mapping[str, Check], clock: Clock) -> None:
        self._needed = needed
        self._wished = wished
        self._clock = clock
        self._report: dict[str, Any] = {}
        self._asked_at_s = float("-inf")
        self._asking = asyncio.Lock()

    async def report(self) -> dict[str, Any]:
        """`{"status": "ok" | "degraded" | "unavailable", "reasons": [...]}`."""
        async with self._asking:
            if self._clock.monotonic() - self._asked_at_s >= FRESH_S:
                self._report = await self._ask()
                self._asked_at_s = self._clock.monotonic()
            return self._report

    async def _ask(self) -> dict[str, Any]:
        failing = [name for name, check in self._needed.items() if not await _passes(check)]
        missing = [name for name, check in self._wished.items() if not await _passes(check)]
        status = "unavailable" if failing else "degraded" if missing else "ok"
        return {"status": status, "reasons": failing + missing}


async def _passes(check: Check) -> bool:
    try:
        await check()
    except Exception:  # noqa: BLE001 - whatever it is, the check has not passed
        return False
    return True
