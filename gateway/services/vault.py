"""Sealing and opening with the ring in force: the one place where the gateway's records meet its keys.

What is sealed is one JSON object of everything that a person typed, padded to whole blocks so that its length
does not tell a name's. It opens in two places: the charge path and, one day, `reseal`.
"""

from typing import Any

import msgspec

from gateway.errors import Unavailable
from gateway.rules.card import UNKNOWN_BRAND, Brands, Card
from gateway.services.keyring import Keyring
from gateway.services.ports import CardIndex, Clock, GenerationNotActive, KeyStore, SealedRecord
from keys import envelope, fingerprint
from keys.errors import UnknownKey
from keys.ring import Ring
from keys.secret import Secret
from keys.states import Use

CARD = "card"
DETAILS = "details"
BLOCK_BYTES = 64
WRAPS_AHEAD = 4096
"""Wraps counted in the database at once, so that a crash can only overcount."""


class Unsealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the seal of a token holds. Never shown: it lives from `open_card` to the processor call."""

    number: str
    exp_month: int
    exp_year: int
    name: str
    details: dict[str, Any] | None = None
    consent: Any = None

    def __repr__(self) -> str:
        return "Unsealed(…)"


class Vault:
    """Seals and opens records of any department."""

    def __init__(self, keyring: Keyring, store: KeyStore, clock: Clock, brands: Brands) -> None:
        self._keyring = keyring
        self._store = store
        self._clock = clock
        self._brands = brands
        self._generation = 0
        self._wraps_left = 0

    async def seal_card(
        self, department: str, token_id: str, card: Card, name: Secret[str], details: Any, consent: Any
    ) -> "Sealing":
        """Seal a card and all that came with it."""
        content = Unsealed(
            card.number.reveal(), card.exp_month, card.exp_year, name.reveal(), details=details, consent=consent
        )
        return await self._seal(department, token_id, CARD, content)

    async def seal_details(self, department: str, charge_id: str, details: Any) -> "Sealing":
        """Seal the ordering information of a charge."""
        return await self._seal(department, charge_id, DETAILS, details)

    async def open_card(self, department: str, record: SealedRecord) -> tuple[Card, Secret[str]]:
        """The card and name behind a token, for the processor; raises `keys.errors.KeysError`."""
        ring = await self._keyring.ring()
        place = ring.place(department, record.record_id)
        dek = ring.unwrap(place, record.dek, self._clock.now())
        content = envelope.unseal(dek, place, CARD, record.sealed)
        unsealed = msgspec.json.decode(content.reveal(), type=Unsealed)
        # Not checked again: what was accepted then is charged now, whatever today's table of brands says.
        brand = self._brands.of(unsealed.number) or UNKNOWN_BRAND
        number = Secret(unsealed.number)
        card = Card(number, unsealed.exp_month, unsealed.exp_year, brand, unsealed.number[-4:])
        return card, Secret(unsealed.name)

    async def card_index(self, department: str, card: Card) -> CardIndex:
        """How the department finds the same card again."""
        ring = await self._keyring.ring()
        key = ring.fingerprint
        secret = key.require(Use.ORIGINATE, self._clock.now())
        return CardIndex(key.number, fingerprint.card_index(secret, ring.environment, department, card.number))

    async def card_part(self, department: str, card: Card, version: int | None = None) -> CardIndex:
        """The card's part in comparing requests, under a given version of the fingerprint key or the current."""
        ring = await self._keyring.ring()
        key = ring.fingerprint if version is None else ring.fingerprints.get(version)
        if key is None:
            raise UnknownKey(f"fingerprint key {version} is not in manifest {ring.version}")
        secret = key.require(Use.ORIGINATE if version is None else Use.PROCESS, self._clock.now())
        part = fingerprint.card_part(secret, ring.environment, department, card.number, card.expiry)
        return CardIndex(key.number, part)

    async def rewrap(self, place: envelope.Place, dek: Secret[bytes], record: SealedRecord) -> SealedRecord:
        """The same record with its data key under the generation that is active now."""
        ring = await self._ring_to_seal_with(await self._keyring.look())
        return SealedRecord(record.record_id, record.sealed, ring.wrap(place, dek, self._clock.now()))

    async def _seal(self, department: str, record_id: str, field_set: str, content: object) -> "Sealing":
        ring = await self._ring_to_seal_with(await self._keyring.ring())
        place = ring.place(department, record_id)
        dek, wrapped = ring.new_dek(place, self._clock.now())
        plain = msgspec.json.encode(content)
        padded = Secret(plain.ljust(-(-len(plain) // BLOCK_BYTES) * BLOCK_BYTES))
        record = SealedRecord(record_id, envelope.seal(dek, place, field_set, padded), wrapped)
        return Sealing(self, place, dek, record)

    async def _ring_to_seal_with(self, ring: Ring) -> Ring:
        # Two tasks that find nothing left both reserve; one block is then lost, which only counts too much.
        if ring.active.number != self._generation or self._wraps_left == 0:
            try:
                await self._store.reserve_wraps(ring.active.number, WRAPS_AHEAD)
            except GenerationNotActive:
                ring = await self._keyring.look()
                await self._reserve_again(ring)
            self._generation, self._wraps_left = ring.active.number, WRAPS_AHEAD
        self._wraps_left -= 1
        return ring

    async def _reserve_again(self, ring: Ring) -> None:
        try:
            await self._store.reserve_wraps(ring.active.number, WRAPS_AHEAD)
        except GenerationNotActive:
            # A rotation is between its two writes: the key store is ahead of the database, for a moment.
            raise Unavailable("Keys are being rotated. Nothing was done; try again.") from None


class Sealing:
    """A record just sealed. Until it is stored its data key is kept, so that a rotation can be followed."""

    def __init__(self, vault: Vault, place: envelope.Place, dek: Secret[bytes], record: SealedRecord) -> None:
        self._vault = vault
        self._place = place
        self._dek = dek
        self.record = record

    async def follow_rotation(self) -> None:
        """Wrap the data key again; the sealed record stays as it is."""
        self.record = await self._vault.rewrap(self._place, self._dek, self.record)
