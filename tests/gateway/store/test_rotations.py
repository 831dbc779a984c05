"""Requests that meet a rotation: a process whose ring is a moment old is refused, looks, and goes on."""

import asyncio

import pytest

from gateway.errors import IdempotencyKeyReused
from keys.errors import KeysExhausted
from keys.states import State
from tests.gateway.store.city import City, Page, given
from tests.gateway.store.far import DECLINED_CARD

pytestmark = pytest.mark.server

CARD, OTHER_CARD = 67_001, 67_002


async def rotate_all(city: City) -> None:
    """New versions of both kinds of key, and the old generation compromised."""
    await city.rotate_fingerprint()
    await city.compromise(city.ring().active.number)


async def behind(city: City) -> Page:
    """An api process whose ring is fresh, and out of date."""
    page = city.page()
    await page.keyring.look()
    await rotate_all(city)
    assert (await page.keyring.ring()).version < city.ring().version
    return page


async def numbers(city: City, query: str) -> list[tuple[int, ...]]:
    """Numbers of keys, by a query."""
    return [tuple(row) for row in await city.owner.fetch(query)]


async def test_a_token_follows(city: City) -> None:
    """A token that is sealed with yesterday's ring is stored under today's keys: wrap, both indexes, card part."""
    page = await behind(city)
    await page.token(CARD, "key")
    assert await numbers(city, "SELECT first_generation, generation FROM gateway.deks") == [(2, 2)]
    assert await numbers(city, "SELECT key_version FROM gateway.fingerprints ORDER BY 1") == [(1,), (2,)]
    assert await numbers(city, "SELECT card_key_version FROM gateway.idempotency") == [(2,)]


async def test_a_card_that_is_already_sealed_is_indexed_anew(city: City) -> None:
    """When only the index is refused, a token and a charge that are sealed already are stored with both indexes."""
    for turn in (1, 2):
        page = city.page()
        await page.token(CARD)  # so that it has wraps in hand, and no reason to look
        await city.rotate_fingerprint()
        if turn == 1:
            await page.token(OTHER_CARD)
        else:
            await page.charge("key", card=OTHER_CARD)
        found = "SELECT count(*) FROM gateway.fingerprints WHERE key_version = $1"
        assert [await city.owner.fetchval(found, version) for version in (turn, turn + 1)] == [2, 1]
        await city.reseal()
        await city.destroy_fingerprint(turn)


async def test_a_verification_follows(city: City) -> None:
    """So does the claim that is committed before the processor is asked, and the answer that makes no token."""
    page = await behind(city)
    assert (await page.token(DECLINED_CARD, "key", cvc=True))["status"] == 402
    assert await numbers(city, "SELECT card_key_version FROM gateway.idempotency") == [(2,)]


async def test_a_charge_follows(city: City) -> None:
    """A charge that brings its card and details is committed under today's keys, whole."""
    page = await behind(city)
    assert (await page.charge("key", card=CARD, details={"gate": "north"}))["status"] == "succeeded"
    assert set(await numbers(city, "SELECT first_generation, generation FROM gateway.deks")) == {(2, 2)}
    assert await numbers(city, "SELECT key_version FROM gateway.fingerprints ORDER BY 1") == [(1,), (2,)]
    assert await numbers(city, "SELECT card_key_version FROM gateway.idempotency") == [(2,)]


async def test_a_charge_of_what_was_rewrapped_ahead(city: City) -> None:
    """A token whose data key moved to a generation that this process has not seen is charged."""
    page = city.page()
    token = (await page.token(CARD))["id"]
    await page.keyring.look()
    await city.rotate()
    await city.rewrap()
    assert (await page.keyring.ring()).active.number == 1
    assert (await page.charge("key", token=token))["status"] == "succeeded"


async def test_two_rings_at_once_give_one_id(city: City) -> None:
    """While processes with the old ring and the new one index the same new cards at once, each card gets one id."""
    rotation, now = await city.rotation(), city.clock.now()
    old, new = city.page(), city.page()
    await old.keyring.look()
    # The beginning of a rotation: the mirror allows both versions, the new manifest is there, the old ring is fresh.
    made = rotation.keys.make_key("fingerprint", State.ACTIVE, now)
    following = rotation.manifest.with_key(made)
    following = following.moved(rotation.manifest.active("fingerprint"), State.RETIRED, now)
    await city.table.announce(following)
    rotation.keys.publish(following, rotation.manifest.act, now)
    await new.keyring.look()
    for turn in range(20):
        card = CARD + turn
        tokens = await asyncio.gather(*(page.token(card) for page in (old, new, old, new)))
        assert len({token["card"]["fingerprint"] for token in tokens}) == 1, turn
    ids = (
        "SELECT key_version, count(DISTINCT fingerprint_id), count(*) FROM gateway.fingerprints GROUP BY 1 ORDER BY 1"
    )
    assert await numbers(city, ids) == [(1, 20, 20), (2, 20, 20)]


async def test_a_key_of_yesterday_is_compared_with_its_own_key(city: City) -> None:
    """Under an Idempotency-Key of before the rotation another card is refused, and the same card gets its answer."""
    page = city.page()
    first = await page.token(CARD, "key")
    await rotate_all(city)
    for later in (page, city.page()):
        assert await later.token(CARD, "key") == first
        with pytest.raises(IdempotencyKeyReused):
            await later.token(OTHER_CARD, "key")


async def test_a_process_behind_compares_what_one_ahead_has_claimed(city: City) -> None:
    """A key claimed under a version that this process has not seen makes it look, and compare."""
    page = await behind(city)
    first = await city.page().token(CARD, "key")
    assert await page.token(CARD, "key") == first
    with pytest.raises(IdempotencyKeyReused):
        await page.token(OTHER_CARD, "key")


async def test_what_was_answered_is_answered_again_when_nothing_can_be_sealed(city: City) -> None:
    """A repeat by a process that may wrap no more is told what happened, not that nothing was done."""
    page = city.page()
    charged, token = await page.ask("k-1", card=given(1)), await page.token(1, "k-2")
    await city.owner.execute("UPDATE gateway.key_generations SET wraps_reserved = 2147483648 WHERE state = 'active'")
    again = city.page(page.far)
    assert await again.ask("k-1", card=given(1)) == charged
    assert await again.token(1, "k-2") == token
    for new in (again.ask("k-3", card=given(1)), again.token(1, "k-4")):
        with pytest.raises(KeysExhausted):
            await new
