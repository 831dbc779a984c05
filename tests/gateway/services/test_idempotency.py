"""The same key with the same request: what is compared, under which key, and what cannot be compared any more."""

import pytest

from gateway.errors import IdempotencyKeyReused
from gateway.rules.card import Brands, Card, read_card
from gateway.services.idempotency import require_same_card, require_same_request, stored_answer
from gateway.services.ports import CardIndex, Claim, Claimed
from gateway.services.vault import Vault
from keys.errors import UnknownKey
from keys.secret import Secret
from tests.cards import canary
from tests.gateway.services.conftest import Keys

PARKS = "parks"
DIGEST = bytes(32)


@pytest.fixture
def card(brands: Brands) -> Card:
    """The card of the first request."""
    return read_card(brands, Secret(canary(68_001)), 12, 2031)


@pytest.fixture
def other(brands: Brands) -> Card:
    """Another card."""
    return read_card(brands, Secret(canary(68_002)), 12, 2031)


def standing(part: CardIndex | None) -> Claimed:
    """What the first request has left under the key."""
    return Claimed(DIGEST, part, "tok_1", 201, b"first", running=False)


async def asked(vault: Vault, part: CardIndex | None, card: Card | None, digest: bytes = DIGEST) -> bytes | None:
    """What a repeated request is answered."""
    earlier = standing(part)
    require_same_request(Claim("POST /v1/tokens", "key", digest, None, "tok_2"), earlier)
    if card is not None:
        await require_same_card(vault, PARKS, card, earlier)
    answer = stored_answer(earlier)
    return answer.body if answer else None


async def test_the_card_is_compared_under_the_key_of_then(vault: Vault, card: Card, other: Card, keys: Keys) -> None:
    """Across a rotation the same card gets the first answer, and another card is refused."""
    part = await vault.card_part(PARKS, card)
    for _ in range(2):
        assert await asked(vault, part, card) == b"first"
        with pytest.raises(IdempotencyKeyReused):
            await asked(vault, part, other)
        keys.rotate_fingerprint()
        await vault.look()


async def test_a_part_whose_key_is_destroyed_counts_as_cleared(
    vault: Vault, card: Card, other: Card, keys: Keys
) -> None:
    """Nobody can compare it; who repeats honestly gets the answer, and other business fields are still refused."""
    part = await vault.card_part(PARKS, card)
    keys.rotate_fingerprint()
    keys.destroy_fingerprint()
    await vault.look()
    assert await asked(vault, part, card) == await asked(vault, part, other) == b"first"
    assert await asked(vault, None, other) == b"first"
    with pytest.raises(IdempotencyKeyReused):
        await asked(vault, part, card, digest=b"x" * 32)


async def test_a_part_of_a_key_to_come_is_not_waved_through(vault: Vault, card: Card) -> None:
    """A version that the key store does not show yet is no destroyed one: come back."""
    with pytest.raises(UnknownKey):
        await asked(vault, CardIndex(2, bytes(32)), card)


def test_what_has_not_ended_has_no_answer() -> None:
    """While the first request runs, and after it died, nothing is stored under its key."""
    for running in (True, False):
        assert stored_answer(Claimed(DIGEST, None, "tok_1", None, None, running)) is None
