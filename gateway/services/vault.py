"""Sealing and opening with the ring in force: the one place where the gateway's records meet its keys.

What is sealed is one JSON object of everything that a person typed, padded to whole blocks so that its length
does not tell a name's. It opens in two places: the charge path, on the way to the processor, and in the three
`…_anew` methods that `reseal` works with, which give out nothing that they have opened.
"""

import asyncio
from typing import Any

import msgspec

from gateway.errors import Unavailable
from gateway.rules.card import UNKNOWN_BRAND, Brands, Card
from gateway.services.keyring import Keyring
from gateway.services.ports import CardIndex, Clock, KeysMoved, KeyStore, SealedRecord
from keys import envelope, fingerprint
from keys.errors import BrokenSeal, UnknownKey
from keys.primitives import require_equal
from keys.ring import Key, Ring
from keys.secret import Secret
from keys.states import Use

CARD = "card"
DETAILS = "details"
BLOCK_BYTES = 64
WRAPS_AHEAD = 4096
"""Wraps counted in the database at once, so that a crash can only overcount."""

UNREADABLE = (BrokenSeal, UnknownKey, msgspec.MsgspecError)
"""What a record raises that does not open, or is not what it must be; other errors are not the record's."""

OTHER_CARD = "the record is not of the card that stands beside it"


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
        self._reserving = asyncio.Lock()

    async def look(self) -> None:
        """See the keys as they are now; comes before all that is made anew after `KeysMoved`."""
        await self._keyring.look()

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
        content = await self._open(department, record, CARD)
        unsealed = msgspec.json.decode(content.reveal(), type=Unsealed)
        # Not checked again: what was accepted then is charged now, whatever today's table of brands says.
        brand = self._brands.of(unsealed.number) or UNKNOWN_BRAND
        number = Secret(unsealed.number)
        card = Card(number, unsealed.exp_month, unsealed.exp_year, brand, unsealed.number[-4:])
        return card, Secret(unsealed.name)

    async def card_indexes(self, department: str, card: Card) -> tuple[CardIndex, ...]:
        """How the department finds the same card again, under each version of the fingerprint key, oldest first."""
        ring = await self._keyring.ring()
        *older, newest = ring.indexing
        found = [self._index(ring, key, Use.PROCESS, department, card.number) for key in older]
        return (*found, self._index(ring, newest, Use.ORIGINATE, department, card.number))

    async def card_part(self, department: str, card: Card) -> CardIndex:
        """The card's part in comparing requests, under the fingerprint key that is active."""
        ring = await self._keyring.ring()
        return self._part(ring, ring.fingerprint, Use.ORIGINATE, department, card)

    async def card_part_again(self, department: str, card: Card, version: int) -> CardIndex | None:
        """The card's part under the key of an earlier request's; None when that key is destroyed.

        Raises `keys.errors.UnknownKey` for a version that is newer than all that the key store shows.
        """
        ring = await self._keyring.ring()
        if version not in ring.fingerprints:  # another process may have followed a rotation before this one
            ring = await self._keyring.look()
        key = ring.fingerprints.get(version)
        if key is not None:
            return self._part(ring, key, Use.PROCESS, department, card)
        if version < ring.fingerprint.number:
            return None
        raise UnknownKey(f"fingerprint key {version} is not in manifest {ring.version}")

    async def rewrap(self, department: str, dek: Secret[bytes], record: SealedRecord) -> SealedRecord:
        """The same record with its data key under the active generation."""
        ring = await self._ring_to_seal_with(await self._keyring.ring())
        wrapped = ring.wrap(ring.place(department, record.record_id), dek, self._clock.now())
        return SealedRecord(record.record_id, record.sealed, wrapped)

    async def seal_anew(self, department: str, record: SealedRecord, field_set: str) -> SealedRecord:
        """The same content under a new data key; raises one of `UNREADABLE`."""
        content = await self._open(department, record, field_set)
        _, sealed = await self._seal_bytes(department, record.record_id, field_set, content)
        return sealed

    async def index_anew(self, department: str, record: SealedRecord, known: CardIndex) -> CardIndex:
        """The index of a token's card under the active key, if `known` is its index; else one of `UNREADABLE`."""
        card, _ = await self.open_card(department, record)
        ring = await self._ring_with(known)
        expected = self._index(ring, ring.fingerprints[known.key_version], Use.PROCESS, department, card.number)
        require_equal(expected.value, known.value, BrokenSeal(OTHER_CARD))
        return self._index(ring, ring.fingerprint, Use.ORIGINATE, department, card.number)

    async def part_anew(self, department: str, record: SealedRecord, known: CardIndex) -> CardIndex:
        """The part of a token's card under the active key, if `known` is its part; else one of `UNREADABLE`."""
        card, _ = await self.open_card(department, record)
        ring = await self._ring_with(known)
        expected = self._part(ring, ring.fingerprints[known.key_version], Use.PROCESS, department, card)
        require_equal(expected.value, known.value, BrokenSeal(OTHER_CARD))
        return self._part(ring, ring.fingerprint, Use.ORIGINATE, department, card)

    async def _ring_with(self, known: CardIndex) -> Ring:
        ring = await self._keyring.ring()
        if known.key_version not in ring.fingerprints:
            raise UnknownKey(f"fingerprint key {known.key_version} is not in manifest {ring.version}")
        return ring

    async def _open(self, department: str, record: SealedRecord, field_set: str) -> Secret[bytes]:
        """What a record seals; raises `keys.errors.BrokenSeal` or `UnknownKey` when it does not open here."""
        ring = await self._keyring.ring()
        if record.dek.generation not in ring.generations:
            # A rewrap may be ahead of this process: it starts as soon as a rotation is complete.
            ring = await self._keyring.look()
        place = ring.place(department, record.record_id)
        dek = ring.unwrap(place, record.dek, self._clock.now())
        return envelope.unseal(dek, place, field_set, record.sealed)

    def _index(self, ring: Ring, key: Key, use: Use, department: str, number: Secret[str]) -> CardIndex:
        secret = key.require(use, self._clock.now())
        return CardIndex(key.number, fingerprint.card_index(secret, ring.environment, department, number))

    def _part(self, ring: Ring, key: Key, use: Use, department: str, card: Card) -> CardIndex:
        secret = key.require(use, self._clock.now())
        part = fingerprint.card_part(secret, ring.environment, department, card.number, card.expiry)
        return CardIndex(key.number, part)

    async def _seal(self, department: str, record_id: str, field_set: str, content: object) -> "Sealing":
        plain = msgspec.json.encode(content)
        padded = Secret(plain.ljust(-(-len(plain) // BLOCK_BYTES) * BLOCK_BYTES))
        return Sealing(self, department, *await self._seal_bytes(department, record_id, field_set, padded))

    async def _seal_bytes(
        self, department: str, record_id: str, field_set: str, content: Secret[bytes]
    ) -> tuple[Secret[bytes], SealedRecord]:
        ring = await self._ring_to_seal_with(await self._keyring.ring())
        place = ring.place(department, record_id)
        dek, wrapped = ring.new_dek(place, self._clock.now())
        return dek, SealedRecord(record_id, envelope.seal(dek, place, field_set, content), wrapped)

    async def _ring_to_seal_with(self, ring: Ring) -> Ring:
        while self._is_spent(ring):
            async with self._reserving:
                ring = await self._keyring.ring()  # somebody may have followed a rotation while this one waited
                if self._is_spent(ring):
                    ring = await self._reserve(ring)
        self._wraps_left -= 1
        return ring

    def _is_spent(self, ring: Ring) -> bool:
        return self._wraps_left == 0 or ring.active.number != self._generation

    async def _reserve(self, ring: Ring) -> Ring:
        try:
            await self._store.reserve_wraps(ring.active.number, WRAPS_AHEAD)
        except KeysMoved:
            ring = await self._keyring.look()
            await self._reserve_again(ring)
        self._generation, self._wraps_left = ring.active.number, WRAPS_AHEAD
        return ring

    async def _reserve_again(self, ring: Ring) -> None:
        try:
            await self._store.reserve_wraps(ring.active.number, WRAPS_AHEAD)
        except KeysMoved:
            # A rotation is between its two writes: the key store is ahead of the database, for a moment.
            raise Unavailable("Keys are being rotated. Nothing was done; try again.") from None


class Sealing:
    """A record just sealed. Until it is stored its data key is kept, so that a rotation can be followed."""

    def __init__(self, vault: Vault, department: str, dek: Secret[bytes], record: SealedRecord) -> None:
        self._vault = vault
        self._department = department
        self._dek = dek
        self.record = record

    async def follow_rotation(self) -> None:
        """Wrap the data key again, after `Vault.look`; the sealed record stays as it is."""
        self.record = await self._vault.rewrap(self._department, self._dek, self.record)
