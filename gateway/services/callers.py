"""Who may call now: the register of applications, in memory, at most two seconds old."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from gateway.errors import Unavailable
from gateway.rules.access import Credential, Register
from gateway.services.ports import Clock
from keys.secret import Secret

FRESH_S = 2.0
LOOK_TIMEOUT_S = 2.0


class CredentialStore(Protocol):
    """Where API keys are kept."""

    async def credentials(self) -> Mapping[str, Credential]:
        """Every valid key by its id."""


class Callers:
    """The current register of one process."""

    def __init__(self, store: CredentialStore, digest_keys: Mapping[int, Secret[bytes]], clock: Clock) -> None:
        self._store = store
        self._digest_keys = digest_keys
        self._clock = clock
        self._register = Register({}, digest_keys)
        self._seen_at_s = float("-inf")
        self._looking = asyncio.Lock()

    def renew(self, digest_keys: Mapping[int, Secret[bytes]]) -> None:
        """Go on with these digest keys: they were rotated."""
        self._digest_keys = digest_keys

    async def register(self) -> Register:
        """The register as of at most two seconds ago; raises `Unavailable` when it cannot be read."""
        if self._clock.monotonic() - self._seen_at_s >= FRESH_S:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S):
                    await self.look()
            except TimeoutError:
                raise Unavailable from None
        return self._register

    async def look(self) -> None:
        """Read the register now."""
        async with self._looking:
            started_s = self._clock.monotonic()
            self._register = Register(await self._store.credentials(), self._digest_keys)
            self._seen_at_s = started_s
