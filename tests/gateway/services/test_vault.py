"""Sealing: lengths that tell nothing, wraps that are counted before they are made, rotations that are followed."""

import asyncio
from collections import Counter

import pytest

from gateway.errors import Unavailable
from gateway.rules.card import Brands, Card, read_card
from gateway.services import vault as module
from gateway.services.ports import SealedRecord
from gateway.services.vault import BLOCK_BYTES, CARD, DETAILS, Sealing, Vault
from keys.envelope import SEALED_BYTES_MIN
from keys.errors import BrokenSeal, UnknownKey, WrongKey
from keys.ring import WrappedDek
from keys.secret import Secret
from tests.cards import canary
from tests.gateway.services.conftest import Clock, Keys, KnownKeys

DEPARTMENT = "parks"
NUMBER = canary(64_001)
BLOCK_WRAPS = 3


@pytest.fixture
def card(brands: Brands) -> Card:
    """A card that is nowhere else."""
    return read_card(brands, Secret(NUMBER), 12, 2031)


async def seal(vault: Vault, card: Card, name: str = "Ramona", record_id: str = "tok_1") -> Sealing:
    """The card under a name."""
    return await vault.seal_card(DEPARTMENT, record_id, card, Secret(name), None, None)


async def test_what_is_sealed_opens_at_its_place(vault: Vault, card: Card) -> None:
    """Card and name come out as they went in, for the same department and record only."""
    record = (await seal(vault, card, "Ramona Ñandú")).record
    opened, name = await vault.open_card(DEPARTMENT, record)
    assert (opened.number.reveal(), opened.expiry, name.reveal()) == (NUMBER, "2031-12", "Ramona Ñandú")
    with pytest.raises(BrokenSeal):
        await vault.open_card("utilities", record)
    other = (await seal(vault, card, record_id="tok_2")).record
    swapped = type(record)(record.record_id, other.sealed, record.dek)
    with pytest.raises(WrongKey):
        await vault.open_card(DEPARTMENT, swapped)


async def test_lengths_tell_no_name(vault: Vault, card: Card) -> None:
    """Names of up to 24 letters seal to one length, and every length is a whole number of blocks."""
    lengths = [len((await seal(vault, card, "N" * size)).record.sealed) for size in range(1, 101)]
    assert len(set(lengths[:24])) == 1
    assert {(length - SEALED_BYTES_MIN) % BLOCK_BYTES for length in lengths} == {0}
    details = [
        len((await vault.seal_details(DEPARTMENT, "ch_1", {"n": "x" * size})).record.sealed) for size in (1, 50)
    ]
    assert len(set(details)) == 1


async def test_the_same_card_seals_differently(vault: Vault, card: Card) -> None:
    """Two seals of one card have nothing in common, and neither holds its digits."""
    one, other = (await seal(vault, card)).record, (await seal(vault, card)).record
    assert one.sealed[1:33] != other.sealed[1:33]
    assert one.dek.wrapped != other.dek.wrapped
    assert NUMBER.encode() not in one.sealed + one.dek.wrapped
    assert NUMBER not in repr(one) + repr(await seal(vault, card))


async def test_a_card_is_found_again_in_its_department_only(vault: Vault, card: Card, brands: Brands) -> None:
    """A card's index is its own in each department, and another card's is another's."""
    index = await vault.card_indexes(DEPARTMENT, card)
    assert await vault.card_indexes(DEPARTMENT, card) == index
    assert await vault.card_indexes("utilities", card) != index
    other = read_card(brands, Secret(canary(64_002)), 12, 2031)
    assert await vault.card_indexes(DEPARTMENT, other) != index
    assert await vault.card_part(DEPARTMENT, card) not in index
    renewed = read_card(brands, Secret(NUMBER), 1, 2036)
    assert await vault.card_indexes(DEPARTMENT, renewed) == index
    assert await vault.card_part(DEPARTMENT, renewed) != await vault.card_part(DEPARTMENT, card)


async def test_a_card_is_found_under_every_version_that_stands(vault: Vault, card: Card, keys: Keys) -> None:
    """After a rotation of the fingerprint key there are two indexes, oldest first; a destroyed key makes none."""
    (before,) = await vault.card_indexes(DEPARTMENT, card)
    keys.rotate_fingerprint()
    await vault.look()
    old, new = await vault.card_indexes(DEPARTMENT, card)
    assert old == before
    assert (old.key_version, new.key_version) == (1, 2)
    assert old.value != new.value
    assert (await vault.card_part(DEPARTMENT, card)).key_version == 2
    keys.destroy_fingerprint()
    await vault.look()
    assert await vault.card_indexes(DEPARTMENT, card) == (new,)


async def test_a_part_is_made_again_while_its_key_is_there(vault: Vault, card: Card, keys: Keys) -> None:
    """A part under an older key is the same again; under a destroyed one there is none; a newer one is an error."""
    first = await vault.card_part(DEPARTMENT, card)
    keys.rotate_fingerprint()
    assert await vault.card_part_again(DEPARTMENT, card, 1) == first
    second = await vault.card_part_again(DEPARTMENT, card, 2)  # the ring is fresh, and must be looked at again
    assert second is not None
    assert (second.key_version, second.value != first.value) == (2, True)
    keys.destroy_fingerprint()
    await vault.look()
    assert await vault.card_part_again(DEPARTMENT, card, 1) is None
    with pytest.raises(UnknownKey):
        await vault.card_part_again(DEPARTMENT, card, 3)


async def test_what_was_rewrapped_ahead_opens(vault: Vault, card: Card, keys: Keys, clock: Clock) -> None:
    """A data key under a generation that this process has not seen yet makes it look, and opens."""
    record = (await seal(vault, card)).record
    keys.rotate()
    ring = keys.ring()
    place = ring.place(DEPARTMENT, record.record_id)
    dek = ring.unwrap(place, record.dek, clock.now())
    ahead = SealedRecord(record.record_id, record.sealed, ring.wrap(place, dek, clock.now()))
    assert (await vault.open_card(DEPARTMENT, ahead))[0].number.reveal() == NUMBER
    nowhere = SealedRecord(record.record_id, record.sealed, WrappedDek(7, ahead.dek.wrapped))
    with pytest.raises(UnknownKey):
        await vault.open_card(DEPARTMENT, nowhere)


async def test_sealed_anew_is_the_same_under_another_key(vault: Vault, card: Card, keys: Keys) -> None:
    """New data key, new ciphertext, same content, at the same place only."""
    record = (await seal(vault, card, "Ramona Ñandú")).record
    keys.compromise()
    await vault.look()
    anew = await vault.seal_anew(DEPARTMENT, record, CARD)
    assert (record.dek.generation, anew.dek.generation) == (1, 2)
    assert anew.sealed != record.sealed
    opened, name = await vault.open_card(DEPARTMENT, anew)
    assert (opened.number.reveal(), name.reveal()) == (NUMBER, "Ramona Ñandú")
    for mixed in (
        SealedRecord(record.record_id, anew.sealed, record.dek),
        SealedRecord(record.record_id, record.sealed, anew.dek),
    ):
        with pytest.raises(WrongKey):
            await vault.open_card(DEPARTMENT, mixed)
    with pytest.raises(WrongKey):
        await vault.seal_anew(DEPARTMENT, record, DETAILS)


async def test_an_index_is_made_anew_of_its_own_card_only(
    vault: Vault, card: Card, keys: Keys, brands: Brands
) -> None:
    """Index and part of a token's card come out as of the card itself, if those that are known are that card's."""
    record = (await seal(vault, card)).record
    other = read_card(brands, Secret(canary(64_002)), 12, 2031)
    (index,), part = await vault.card_indexes(DEPARTMENT, card), await vault.card_part(DEPARTMENT, card)
    (other_index,), other_part = await vault.card_indexes(DEPARTMENT, other), await vault.card_part(DEPARTMENT, other)
    keys.rotate_fingerprint()
    await vault.look()
    assert await vault.index_anew(DEPARTMENT, record, index) == (await vault.card_indexes(DEPARTMENT, card))[1]
    assert await vault.part_anew(DEPARTMENT, record, part) == await vault.card_part(DEPARTMENT, card)
    with pytest.raises(BrokenSeal):
        await vault.index_anew(DEPARTMENT, record, other_index)
    with pytest.raises(BrokenSeal):
        await vault.part_anew(DEPARTMENT, record, other_part)
    keys.destroy_fingerprint()
    await vault.look()
    with pytest.raises(UnknownKey):
        await vault.index_anew(DEPARTMENT, record, index)


async def test_a_sealing_follows_a_rotation(vault: Vault, card: Card, keys: Keys, known: KnownKeys) -> None:
    """After a rotation the same sealed bytes get a wrap under the new generation, counted there, and open."""
    sealing = await seal(vault, card)
    before = sealing.record
    keys.rotate()
    await vault.look()
    await sealing.follow_rotation()
    after = sealing.record
    assert (before.dek.generation, after.dek.generation) == (1, 2)
    assert after.sealed == before.sealed
    assert set(known.reserved) == {1, 2}
    for record in (before, after):
        assert (await vault.open_card(DEPARTMENT, record))[0].number.reveal() == NUMBER


async def test_sealing_meets_a_rotation(vault: Vault, card: Card, keys: Keys, known: KnownKeys) -> None:
    """A reservation refused because the ring is two seconds old makes the vault look, and seal under the new one."""
    await vault.card_indexes(DEPARTMENT, card)
    keys.rotate()
    assert (await seal(vault, card)).record.dek.generation == 2
    assert set(known.reserved) == {2}


async def test_a_mirror_that_lags_refuses(vault: Vault, card: Card, known: KnownKeys) -> None:
    """While the database holds no generation of the ring for active nothing is sealed."""
    known.active = 7
    with pytest.raises(Unavailable):
        await seal(vault, card)


async def test_wraps_are_counted_before_they_are_made(
    vault: Vault, card: Card, keys: Keys, known: KnownKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever seals at once at the ends of blocks, and through a rotation, wraps no more than was counted.

    Nor is more counted than the blocks that are needed, however many find the last one used up.
    """
    monkeypatch.setattr(module, "WRAPS_AHEAD", BLOCK_WRAPS)
    reserve = known.reserve_wraps

    async def reserve_slowly(generation: int, count: int) -> None:
        await asyncio.sleep(0)
        await reserve(generation, count)
        await asyncio.sleep(0)

    monkeypatch.setattr(known, "reserve_wraps", reserve_slowly)
    wrapped: Counter[int] = Counter()

    async def sealing(index: int) -> None:
        made = await seal(vault, card, record_id=f"tok_{index}")
        wrapped[made.record.dek.generation] += 1
        assert wrapped[made.record.dek.generation] <= known.reserved[made.record.dek.generation]

    for index in range(10):
        await asyncio.gather(*(sealing(index) for _ in range(2 + index % 4)))
    keys.rotate()
    await asyncio.gather(*(sealing(index) for index in range(8)))
    assert set(wrapped) == {1, 2}
    for generation, count in wrapped.items():
        assert known.reserved[generation] < count + BLOCK_WRAPS


async def test_nothing_is_wrapped_when_nothing_was_counted(vault: Vault, card: Card, known: KnownKeys) -> None:
    """Without the database there is no seal; the next one after it is back is counted."""
    await vault.card_indexes(DEPARTMENT, card)
    known.away = True
    with pytest.raises(Unavailable):
        await seal(vault, card)
    known.away = False
    await seal(vault, card)
    assert known.reserved == {1: module.WRAPS_AHEAD}
