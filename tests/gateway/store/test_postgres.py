"""The store's promises when many come at once, when one dies, and when a commit is lost: on a real server."""

import asyncio
import secrets
from collections import Counter
from dataclasses import replace

import asyncpg
import pytest

from gateway.errors import ServiceUnknown, TokenInUse, TokenUnusable
from gateway.rules.lifecycle import Event
from gateway.services.ports import Begun, Claimed, Intent, KeysMoved, Token
from gateway.store.ledger import Ledger
from keys.errors import KeysExhausted
from keys.ring import WRAPS_MAX
from tests.gateway.store.charges import begun, move, stored
from tests.gateway.store.postgres import (
    GENERATION,
    PARKS,
    RETIRED,
    UTILITIES,
    Postgres,
    audit,
    claim,
    indexed,
    intent,
    new_token,
    sealed,
    shown,
)

pytestmark = pytest.mark.server

AT_ONCE = 50
ROUNDS = 60


async def erase(store: Ledger, token_id: str) -> Token:
    """Destroy the card behind a token."""
    return await store.erase_token(PARKS, token_id, shown, audit(event="token.erased"))


# --- one winner -------------------------------------------------------------------------------------------------


async def test_one_key_has_one_winner(store: Ledger) -> None:
    """Of fifty that claim one key at once one holds it; the others are shown what the winner put there."""
    claims = [claim(f"subject-{index}", "one-key") for index in range(AT_ONCE)]
    found = await asyncio.gather(*(store.claim(PARKS, each, audit()) for each in claims))
    (winner,) = (each for each, earlier in zip(claims, found, strict=True) if earlier is None)
    losers = [earlier for earlier in found if earlier is not None]
    held = Claimed(winner.request_digest, winner.card_part, winner.subject_id, None, None, running=True)
    assert losers == [held] * (AT_ONCE - 1)


async def test_a_key_belongs_to_its_department_and_route(store: Ledger) -> None:
    """The same key elsewhere is another key."""
    assert await store.claim(PARKS, claim("a", "shared"), audit()) is None
    assert await store.claim(PARKS, claim("b", "shared", "POST /v1/tokens"), audit()) is None
    assert await store.claim(UTILITIES, claim("c", "shared"), audit(UTILITIES)) is None
    assert await store.claim(PARKS, claim("d", "shared"), audit()) is not None


async def test_a_token_for_one_use_is_spent_once(store: Ledger, owner: asyncpg.Connection) -> None:
    """Of twenty charges of one single-use token, one is begun, and the others leave not even their keys."""
    token_id = (await stored(store, "single")).token.token_id
    intents = [intent(token_id) for _ in range(20)]
    ends = await asyncio.gather(*(store.begin_charge(each, audit()) for each in intents), return_exceptions=True)
    assert Counter(type(end) for end in ends) == {Begun: 1, TokenUnusable: 19}
    keys = [each.claim.key for each in intents]
    rows = await owner.fetchval("SELECT count(*) FROM gateway.idempotency WHERE idempotency_key = ANY($1)", keys)
    assert rows == 1
    assert (await store.token(PARKS, token_id)).status == "spent"


async def test_one_key_begins_one_charge(store: Ledger) -> None:
    """Of twenty requests with one key one is begun; the others find it, not the token that it spent."""
    token_id = (await stored(store, "single")).token.token_id
    ends = await asyncio.gather(*(store.begin_charge(intent(token_id, "same"), audit()) for _ in range(20)))
    assert Counter(type(end) for end in ends) == {Begun: 1, Claimed: 19}
    (winner,) = (end.charge.charge_id for end in ends if isinstance(end, Begun))
    assert {end.subject_id for end in ends if isinstance(end, Claimed)} == {winner}


async def test_a_refused_charge_leaves_its_key_free(store: Ledger) -> None:
    """A charge that is refused in its transaction holds no key and spends no token."""
    token_id = (await stored(store, "single")).token.token_id
    with pytest.raises(ServiceUnknown):
        await store.begin_charge(intent(token_id, "retried", service="GOLF"), audit())
    assert isinstance(await store.begin_charge(intent(token_id, "retried"), audit()), Begun)


# --- erasure ----------------------------------------------------------------------------------------------------


async def fingerprints(owner: asyncpg.Connection, card_index: bytes) -> tuple[set[str], set[str]]:
    """The ids under which a card is known, and those that living tokens carry."""
    known = await owner.fetch("SELECT fingerprint_id FROM gateway.fingerprints WHERE card_index = $1", card_index)
    ids = [row["fingerprint_id"] for row in known]
    carried = await owner.fetch("SELECT fingerprint_id FROM gateway.tokens WHERE fingerprint_id = ANY($1)", ids)
    return set(ids), {row["fingerprint_id"] for row in carried}


async def test_a_fingerprint_lives_as_long_as_a_token(store: Ledger, owner: asyncpg.Connection) -> None:
    """While tokens of a card are stored and erased at once, its fingerprint is there iff a living token has it."""
    for round_ in range(ROUNDS):
        card_index = secrets.token_bytes(32)
        old = [(await stored(store, card_index=card_index)).token.token_id for _ in range(2)]
        made, _, _ = await asyncio.gather(
            stored(store, card_index=card_index), erase(store, old[0]), erase(store, old[1])
        )
        known, carried = await fingerprints(owner, card_index)
        assert known == carried, f"round {round_}"
        assert known == {(await store.token(PARKS, made.token.token_id)).fingerprint_id}
        await erase(store, made.token.token_id)
        assert await fingerprints(owner, card_index) == (set(), set())


@pytest.mark.parametrize("ahead", [0, 2])
async def test_a_fingerprint_of_two_versions_lives_as_long_as_a_token(
    store: Ledger, owner: asyncpg.Connection, ahead: int
) -> None:
    """The same with two versions of the index, some writers knowing the new one only: no deadlock, and one id.

    Where some write the new row only the old version is destroyed already, and may hold strays.
    """
    for round_ in range(ROUNDS):
        v4, v5 = secrets.token_bytes(32), secrets.token_bytes(32)
        old = [(await stored_as(store, v4=v4, v5=v5)).token_id for _ in range(3)]
        ends = await asyncio.gather(
            *(stored_as(store, v4=v4, v5=v5) for _ in range(2)),
            *(stored_as(store, v5=v5) for _ in range(ahead)),
            *(erase(store, token_id) for token_id in old),
        )
        made = [token for token in ends if token.status != "erased"]
        ids = {(await store.token(PARKS, token.token_id)).fingerprint_id for token in made}
        for index in (v5,) if ahead else (v4, v5):
            assert await fingerprints(owner, index) == (ids, ids), f"round {round_}"
        for token in made:
            await erase(store, token.token_id)
        assert await fingerprints(owner, v5) == (set(), set())


async def test_a_token_being_stored_keeps_its_fingerprint(
    postgres: Postgres, store: Ledger, owner: asyncpg.Connection
) -> None:
    """An erasure that meets a token of the same card half stored waits for it, and leaves it its fingerprint."""
    old = await stored(store)
    storing = await postgres.connect("owner")
    try:
        transaction = storing.transaction()
        await transaction.start()
        await storing.execute(
            "UPDATE gateway.fingerprints SET seen_at = now() WHERE card_index = $1", old.card_indexes[0].value
        )
        erasing = asyncio.create_task(erase(store, old.token.token_id))
        while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        await storing.execute(
            "INSERT INTO gateway.tokens SELECT department_id, 'tok_second', application_id, kind, usage, 'active',"
            " 'visa', '4242', $1, cvc_check, created_at, expires_at, '' FROM gateway.tokens"
            " WHERE department_id = 'parks' LIMIT 1",
            old.token.fingerprint_id,
        )
        await transaction.commit()
    finally:
        await storing.close()
    assert (await erasing).status == "erased"
    assert await fingerprints(owner, old.card_indexes[0].value) == (
        {old.token.fingerprint_id},
        {old.token.fingerprint_id},
    )


async def test_nothing_of_a_card_outlives_its_erasure(store: Ledger, owner: asyncpg.Connection) -> None:
    """Data key, seal, brand, last four, fingerprint and card part go; the answer under the key is rewritten."""
    new = new_token("single")
    token_id = new.token.token_id
    own = claim(token_id, "erased-token", "POST /v1/tokens")
    await store.create_token(new, own, held=False, render=shown, audit=audit())
    erased = await erase(store, token_id)
    assert (erased.status, erased.brand, erased.last4, erased.fingerprint_id) == ("erased", None, None, None)
    assert await erase(store, token_id) == erased
    assert await owner.fetchval("SELECT sealed FROM gateway.tokens WHERE token_id = $1", token_id) is None
    assert await owner.fetchval("SELECT count(*) FROM gateway.deks WHERE record_id = $1", token_id) == 0
    again = await store.claimed(PARKS, own.route, own.key)
    assert again is not None
    assert (again.card_part, again.status, again.body) == (None, 201, b"parks erased")
    with pytest.raises(TokenUnusable):
        await store.begin_charge(intent(token_id), audit())
    events = await owner.fetchval("SELECT count(*) FROM audit.events WHERE event = 'token.erased'")
    assert events >= 1


async def test_an_unresolved_charge_keeps_its_card(store: Ledger) -> None:
    """While a charge is sending, unknown or in review its token cannot be erased; once it is decided it can."""
    started = await begun(store)
    token_id = started.charge.token_id
    for event in (Event.LOST, Event.PARK, Event.REFUSE):
        with pytest.raises(TokenInUse):
            await erase(store, token_id)
        await move(store, started.movement, event)
    assert (await erase(store, token_id)).status == "erased"


async def test_charging_and_erasing_at_once(store: Ledger) -> None:
    """Either the charge is begun and the token stays, or the token is gone and the charge is refused: never both."""
    for _ in range(20):
        token_id = (await stored(store)).token.token_id
        charged, erased = await asyncio.gather(
            store.begin_charge(intent(token_id), audit()), erase(store, token_id), return_exceptions=True
        )
        kinds = (type(charged), type(erased))
        assert kinds in {(Begun, TokenInUse), (TokenUnusable, Token)}


# --- keys -------------------------------------------------------------------------------------------------------


async def test_retired_generations_wrap_nothing_new(store: Ledger, owner: asyncpg.Connection) -> None:
    """A record under a generation that is retired, or that nobody mirrored, is not stored, nor anything with it."""
    for generation in (RETIRED, 77):
        new = new_token(generation=generation)
        own = claim(new.token.token_id)
        with pytest.raises(KeysMoved):
            await store.create_token(new, own, held=False, render=shown, audit=audit())
        assert await store.claimed(PARKS, own.route, own.key) is None
        good = await stored(store, "single")
        with_details = intent(good.token.token_id)
        stale = replace(with_details, details=sealed(with_details.charge.charge_id, generation))
        with pytest.raises(KeysMoved):
            await store.begin_charge(stale, audit())
        assert (await store.token(PARKS, good.token.token_id)).status == "active"
        with pytest.raises(KeysMoved):
            await store.reserve_wraps(generation, 1)


async def test_wraps_are_counted_to_the_last(store: Ledger, owner: asyncpg.Connection) -> None:
    """Blocks are given while they fit into 2^31 wraps, to one of two who ask for the last, and then no more."""
    set_to = "UPDATE gateway.key_generations SET wraps_reserved = $2 WHERE generation = $1"
    await owner.execute(set_to, GENERATION, WRAPS_MAX - 4096 - 1)
    try:
        asked = (store.reserve_wraps(GENERATION, 4096) for _ in range(2))
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert Counter(type(end) for end in ends) == {type(None): 1, KeysExhausted: 1}
        await store.reserve_wraps(GENERATION, 1)
        with pytest.raises(KeysExhausted, match="keys rotate"):
            await store.reserve_wraps(GENERATION, 1)
        counted = "SELECT wraps_reserved FROM gateway.key_generations WHERE generation = $1"
        assert await owner.fetchval(counted, GENERATION) == WRAPS_MAX
    finally:
        await owner.execute(set_to, GENERATION, 0)


@pytest.mark.parametrize(
    ("versions", "fits"),
    [
        ((1,), True),
        ((4, 5), True),
        ((3, 5), True),
        ((3, 4, 5), True),
        ((4,), False),
        ((5, 4), False),
        ((2, 5), False),
        ((3,), False),
        ((77,), False),
        ((77, 5), False),
    ],
)
async def test_only_what_the_mirror_allows_indexes(
    store: Ledger, owner: asyncpg.Connection, versions: tuple[int, ...], fits: bool
) -> None:
    """The last index is of an active version, those before it of one that still stands; else nothing is stored."""
    new = indexed(new_token(), **{f"v{version}": secrets.token_bytes(32) for version in versions})
    own = claim(new.token.token_id)
    storing = store.create_token(new, own, held=False, render=shown, audit=audit())
    if fits:
        await storing
    else:
        with pytest.raises(KeysMoved):
            await storing
    ids = [new.token.fingerprint_id]
    rows = await owner.fetch("SELECT key_version FROM gateway.fingerprints WHERE fingerprint_id = ANY($1)", ids)
    assert sorted(row["key_version"] for row in rows) == (sorted(versions) if fits else [])
    assert (await store.claimed(PARKS, own.route, own.key) is not None) is fits


async def test_the_oldest_index_decides(store: Ledger, owner: asyncpg.Connection) -> None:
    """A card that the old index knows keeps its id in the new one; when both know it the new one's id holds."""
    old, new = secrets.token_bytes(32), secrets.token_bytes(32)
    first = await stored_as(store, v4=old, v5=secrets.token_bytes(32))
    assert (await stored_as(store, v4=old, v5=new)).fingerprint_id == first.fingerprint_id
    assert (await stored_as(store, v5=new)).fingerprint_id == first.fingerprint_id
    assert (await stored_as(store, v4=secrets.token_bytes(32), v5=new)).fingerprint_id == first.fingerprint_id


async def test_a_claim_needs_an_active_key(store: Ledger) -> None:
    """A claim whose card part is under a key that is not active is not made, but is shown what stands there."""
    for version in (2, 3, 4, 77):
        late = claim("subject", version=version)
        with pytest.raises(KeysMoved):
            await store.claim(PARKS, late, audit())
        assert await store.claimed(PARKS, late.route, late.key) is None
        assert await store.claim(PARKS, replace(late, card_part=None), audit()) is None
        taken = await store.claim(PARKS, late, audit())
        assert taken is not None
        assert taken.subject_id == "subject"
        with pytest.raises(KeysMoved):
            await store.begin_charge(late_intent((await stored(store)).token.token_id, version), audit())


def late_intent(token_id: str, version: int) -> Intent:
    """A charge whose claim was made with this version."""
    asked = intent(token_id)
    return replace(asked, claim=claim(asked.charge.charge_id, asked.claim.key, version=version))


async def stored_as(store: Ledger, **versions: bytes) -> Token:
    """A token of the card that has these indexes."""
    new = indexed(new_token(), **versions)
    token = await store.create_token(new, None, held=False, render=shown, audit=audit())
    assert isinstance(token, Token)
    return token
