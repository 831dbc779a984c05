"""Who may call now: the register of applications, in memory, at most two seconds old.

With it goes what speaks against certificates, and the bucket of requests of each application. Every request is judged
by the register of its moment: a connection that stays open keeps no rights.
"""

import asyncio
from collections.abc import Collection, Mapping
from typing import Protocol

from gateway.errors import Unavailable
from gateway.rules.access import Application, Credential, Register, bearer, key_id_of
from gateway.rules.certificates import ClientCertificate, Revocations, Trust
from gateway.rules.quota import Quota
from gateway.services.ports import Clock
from keys.secret import Secret

FRESH_S = 2.0
LOOK_TIMEOUT_S = 2.0
NOTE_EVERY_S = 60.0


class CredentialStore(Protocol):
    """Where API keys are kept."""

    async def credentials(self) -> Mapping[str, Credential]:
        """Every valid key by its id."""

    async def denied_certificates(self) -> Collection[bytes]:
        """The fingerprints of certificates that are refused whatever else is known of them."""

    async def note_use(self, key_ids: Mapping[str, Collection[str]]) -> None:
        """Write down that these keys were used just now, by department."""


class RevocationSource(Protocol):
    """Where authorities say what they have revoked."""

    async def look(self) -> Revocations:
        """The lists as they are now; without one that can be used, none: nobody is vouched for then."""


class Callers:
    """The current register of one process. Without `revocations`, nobody keeps lists."""

    def __init__(
        self,
        store: CredentialStore,
        digest_keys: Mapping[int, Secret[bytes]],
        clock: Clock,
        revocations: RevocationSource | None = None,
        *,
        certificate_required: bool = False,
    ) -> None:
        self._store = store
        self._digest_keys = digest_keys
        self._clock = clock
        self._revocations = revocations
        self._certificate_required = certificate_required
        self._register = Register({}, digest_keys)
        self._seen_at_s = float("-inf")
        self._looking = asyncio.Lock()
        self._quota = Quota()
        self._used: set[tuple[str, str]] = set()
        self._noted_at_s = clock.monotonic()

    def renew(self, digest_keys: Mapping[int, Secret[bytes]]) -> None:
        """Go on with these digest keys: they were rotated."""
        self._digest_keys = digest_keys

    async def identify(self, authorization: str | None, certificate: ClientCertificate | None) -> Application:
        """Who sent this request, if it may be served at all.

        Raises:
            NotIdentified, CertificateRefused, WrongCertificate: see `Register.identify`.
            TooManyRequests: it is one more than the application may send.
            Unavailable: the register cannot be read.
        """
        caller = await self.recognize(authorization, certificate)
        self._quota.take(caller, self._clock.monotonic())
        return caller

    async def recognize(self, authorization: str | None, certificate: ClientCertificate | None) -> Application:
        """The same of a request that was let in and goes on for long: it costs nothing of the quota again."""
        register = await self.register()
        caller = register.identify(authorization, certificate, self._clock.now())
        if (key := bearer(authorization)) is not None:
            self._used.add((caller.department, key_id_of(key)))
        return caller

    async def register(self) -> Register:
        """The register as of at most two seconds ago; raises `Unavailable` when it cannot be read."""
        if not self._is_fresh():
            try:
                async with asyncio.timeout(LOOK_TIMEOUT_S), self._looking:
                    if not self._is_fresh():  # nobody has looked while this one waited
                        await self._look()
            except TimeoutError:
                raise Unavailable from None
        return self._register

    async def look(self) -> None:
        """Read the register now."""
        async with self._looking:
            await self._look()

    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._seen_at_s < FRESH_S

    async def _look(self) -> None:
        started_s = self._clock.monotonic()
        lists = None if self._revocations is None else await self._revocations.look()
        trust = Trust(self._certificate_required, lists, await self._store.denied_certificates())
        self._register = Register(await self._store.credentials(), self._digest_keys, trust)
        self._seen_at_s = started_s

    async def note_use(self) -> None:
        """Write down, once a minute, which keys were used; what cannot be written now waits for the next time."""
        if not self._used or self._clock.monotonic() - self._noted_at_s < NOTE_EVERY_S:
            return
        self._noted_at_s = self._clock.monotonic()
        used, self._used = self._used, set()
        departments = {department for department, _ in used}
        try:
            await self._store.note_use({own: sorted(key for name, key in used if name == own) for own in departments})
        except BaseException:
            self._used |= used
            raise
