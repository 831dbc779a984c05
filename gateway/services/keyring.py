"""The ring that is in force now: follows the key store without a restart and without a failed request.

A look is one `stat` and one tiny query. It happens every second beside the requests; a request that finds the
last look older than two seconds looks for itself, and only when that look fails, or lasts longer than two seconds,
is it answered 503. A look that finds what may be an attack is audited, once for as long as it lasts.
"""

import asyncio
from dataclasses import dataclass

import structlog

from gateway.errors import Unavailable
from gateway.services.ports import Clock, KeyStore
from keys.audit import CITY, AuditEvent, AuditPen, Outcome
from keys.errors import KeysError
from keys.keystore import Keystore
from keys.manifest import require_current
from keys.ring import Ring
from keys.root import RootKey

FRESH_S = 2.0
LOOK_TIMEOUT_S = 2.0
"""How long a request waits for a look, so that requests do not queue behind one that hangs."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, and when."""

    ring: Ring
    stamp: tuple[int, int, int]
    seen_at_s: float


class Keyring:
    """The current ring of one process, which its audit rows name."""

    def __init__(
        self, keystore: Keystore, root: RootKey, store: KeyStore, clock: Clock, pen: AuditPen, process: str
    ) -> None:
        self._keystore = keystore
        self._root = root
        self._store = store
        self._clock = clock
        self._pen = pen
        self._process = process
        self._last: Look | None = None
        self._told: set[str] = set()
        self._looking = asyncio.Lock()

    async def ring(self) -> Ring:
        """The ring as of at most two seconds ago; raises `Unavailable` when it cannot be known."""
        last = self._last
        if last is not None and self._clock.monotonic() - last.seen_at_s < FRESH_S:
            return last.ring
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await self.look()
        except (KeysError, TimeoutError):
            raise Unavailable("The key store cannot be read now. Nothing was done; try again.") from None

    async def look(self) -> Ring:
        """Look now; raises `keys.errors.KeysError`."""
        async with self._looking:
            try:
                self._last = await self._look()
            except KeysError as error:
                await self._tell(error)
                raise
            self._told.clear()
            return self._last.ring

    async def _look(self) -> Look:
        started_s = self._clock.monotonic()
        stamp = self._keystore.stamp()
        before = self._last.ring if self._last else None
        seen = await self._store.manifest_seen()
        ring = before if self._last and self._last.stamp == stamp else None
        if ring is None:
            ring = await asyncio.to_thread(self._read, before)
        for newest in (seen, before.stands) if before else (seen,):
            require_current(ring.stands, ring.written, newest, self._clock.now())
        return Look(ring, stamp, started_s)

    async def _tell(self, error: KeysError) -> None:
        """One audit row an incident, which ends with the next good look. Best effort: the refusal stands anyway."""
        if error.event is None or error.event in self._told:
            return
        event = AuditEvent(CITY, error.event, Outcome.REFUSED, self._process)
        try:
            await self._store.record(self._pen.row(event, self._clock.now()))
            self._told.add(error.event)
        except Exception as failed:  # noqa: BLE001 - whatever it is, the next look tries again
            log.warning("incident.not_audited", error=type(failed).__name__)

    def _read(self, before: Ring | None) -> Ring:
        return self._keystore.open(self._root).ring(before)
