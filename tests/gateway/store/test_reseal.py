"""Resealing on a real server, with real keys: what is done, what is left alone, and who may come in between."""

import asyncio
from collections import Counter
from collections.abc import Iterable

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.errors import IdempotencyKeyReused, TokenUnusable, Unavailable
from gateway.services import reseal as module
from gateway.services.vault import CARD, DETAILS
from keys.envelope import Place, unseal
from keys.errors import KeysError
from keys.ring import Ring, WrappedDek
from tests.cards import canary
from tests.gateway.store.city import City, all_of
from tests.gateway.store.far import DECLINED_CARD
from tests.gateway.store.postgres import PARKS, UTILITIES

pytestmark = pytest.mark.server

CARDS = range(66_000, 66_012)


async def opens(city: City, tokens: Iterable[str]) -> None:
    """Every one of these tokens can be charged."""
    page = city.page()
    for token in tokens:
        assert (await page.charge(f"opens-{token}", token=token))["status"] == "succeeded"


def thief_opens(ring: Ring, wraps: dict[str, asyncpg.Record], sealed: dict[str, asyncpg.Record]) -> set[str]:
    """What somebody opens who has all keys of a ring, these wraps and these records."""
    found = set()
    for record_id, row in sealed.items():
        place, dek = Place("demo", row["department_id"], record_id), wraps.get(record_id)
        for field_set in (CARD, DETAILS):
            try:
                assert dek is not None
                key = ring.unwrap(place, WrappedDek(dek["generation"], dek["wrapped"]), row["created_at"])
                unseal(key, place, field_set, row["sealed"])
                found.add(record_id)
            except (KeysError, AssertionError):
                continue
    return found


async def sealed_records(city: City) -> dict[str, asyncpg.Record]:
    """Tokens and charges that seal something."""
    rows = await city.rows("tokens") | await city.rows("charges")
    return {record_id: row for record_id, row in rows.items() if row["sealed"] is not None}


# --- a compromised generation -----------------------------------------------------------------------------------


async def test_old_data_keys_open_nothing_new(city: City) -> None:
    """After compromise and reseal who has every old key, wrap and seal opens nothing of what is there now."""
    page = city.page()
    tokens = [(await page.token(card))["id"] for card in CARDS]
    tokens += [(await page.token(card, department=UTILITIES))["id"] for card in CARDS]
    charges = [(await page.charge(f"d-{card}", card=card, details={"gate": card}))["id"] for card in CARDS[:3]]
    stolen, wraps, before = city.ring(), await city.rows("deks"), await sealed_records(city)
    assert thief_opens(stolen, wraps, before) == set(before) == set(wraps)
    await city.compromise(1)
    later = (await page.token(CARDS[0]))["id"]
    born_safe = (await city.rows("tokens"))[later]

    tally = await city.reseal(page_rows=5)

    assert (tally.tokens, tally.charges, tally.cards, tally.broken) == (len(before) - 3, 3, 0, set())
    after = await sealed_records(city)
    assert set(after) == {*before, later}
    assert thief_opens(stolen, wraps, after) == set()
    assert thief_opens(stolen, await city.rows("deks"), after) == set()
    assert thief_opens(city.ring(), await city.rows("deks"), after) == set(after)
    assert after[later] == born_safe
    assert await city.exposed() == 0
    assert {(row["first_generation"], row["generation"]) for row in (await city.rows("deks")).values()} == {(2, 2)}
    told = [row["subject"] for row in await city.events("card.resealed")]
    assert sorted(told) == sorted(set(before) - set(charges))
    assert {row["subject"] for row in await city.events("details.resealed")} == set(charges)
    (end,) = await city.events("records.resealed")
    assert (end["department_id"], end["outcome"], end["actor"]) == ("city", "done", "reseal")
    await opens(city, [token for token in tokens if after[token]["department_id"] == PARKS])


async def test_what_was_rewrapped_since_is_resealed_too(city: City) -> None:
    """A data key that the compromised generation once wrapped is replaced wherever it went; others are not."""
    page = city.page()
    old = [(await page.token(card))["id"] for card in CARDS[:4]]
    await city.rotate()
    new = [(await page.token(card))["id"] for card in CARDS[4:]]
    await city.rewrap()
    await city.rotate()
    await city.rewrap()
    assert {row["generation"] for row in (await city.rows("deks")).values()} == {3}
    before = await sealed_records(city)
    await city.compromise(1)
    tally = await city.reseal()
    after = await sealed_records(city)
    assert {token for token in before if after[token]["sealed"] != before[token]["sealed"]} == set(old)
    assert tally.tokens == len(old)
    await opens(city, [*old, *new])


async def test_a_second_run_does_nothing(city: City) -> None:
    """What was done is done: another run opens nothing and changes nothing."""
    page = city.page()
    for card in CARDS:
        await page.token(card, key=f"k-{card}")
    await city.compromise(1)
    await city.rotate_fingerprint()
    assert (await city.work().left()).total == 3 * len(CARDS)
    assert (await city.reseal()).moved == 3 * len(CARDS)
    assert (await city.work().left()).total == 0
    before, opened = await sealed_records(city), len(await city.events("card.resealed"))
    assert (await city.reseal()).moved == 0
    assert await sealed_records(city) == before
    assert len(await city.events("card.resealed")) == opened


async def test_counting_opens_nothing(city: City) -> None:
    """What a dry run asks changes nothing, writes no audit row, and estimates more time for more rows."""
    page = city.page()
    for card in CARDS:
        await page.token(card)
    await city.compromise(1)
    before, events = await city.rows("deks"), await city.owner.fetchval("SELECT count(*) FROM audit.events")
    work = city.work()
    assert (await work.left()).tokens == len(CARDS)
    assert work.estimated_s(100_000) > work.estimated_s(10) > 0
    assert await city.rows("deks") == before
    assert await city.owner.fetchval("SELECT count(*) FROM audit.events") == events


# --- records that do not open -----------------------------------------------------------------------------------


async def test_what_does_not_open_is_told_and_left(city: City) -> None:
    """A swapped record and a lost data key are counted once each and left; the others are done, and the run ends."""
    page = city.page()
    tokens = [(await page.token(card))["id"] for card in CARDS]
    swapped, lost, *good = tokens
    await city.owner.execute(
        "UPDATE gateway.tokens SET sealed = (SELECT sealed FROM gateway.tokens WHERE token_id = $1)"
        " WHERE token_id = $2",
        good[0],
        swapped,
    )
    await city.owner.execute("DELETE FROM gateway.deks WHERE record_id = $1", lost)
    before = (await city.rows("tokens"))[swapped]
    await city.compromise(1)
    await city.rotate_fingerprint()

    tally = await city.reseal(page_rows=4)

    assert tally.broken == {(PARKS, swapped), (PARKS, lost)}
    assert (tally.tokens, tally.cards) == (len(good), len(good))
    assert (await city.rows("tokens"))[swapped] == before
    failed = Counter(row["subject"] for row in await city.events("decrypt.failed"))
    assert failed == {swapped: 1, lost: 1}
    (end,) = await city.events("records.resealed")
    assert end["outcome"] == "failed"
    await opens(city, good)


async def test_another_token_of_the_card_will_do(city: City) -> None:
    """Where one token of a card does not open its index is made from another one."""
    page = city.page()
    one, other = [await page.token(CARDS[0]) for _ in "12"]
    await city.owner.execute("DELETE FROM gateway.deks WHERE record_id = least($1, $2)", one["id"], other["id"])
    await city.rotate_fingerprint()
    tally = await city.reseal()
    assert tally.cards == 1
    assert (await page.token(CARDS[0]))["card"]["fingerprint"] == one["card"]["fingerprint"]


async def test_an_index_of_another_card_is_not_believed(city: City) -> None:
    """A card whose old index is not its own gets no new one: somebody has changed rows by hand."""
    page = city.page()
    token, other = [(await page.token(card)) for card in CARDS[:2]]
    await city.owner.execute(
        "UPDATE gateway.fingerprints SET card_index = sha256(card_index) WHERE fingerprint_id = $1",
        token["card"]["fingerprint"],
    )
    await city.rotate_fingerprint()
    tally = await city.reseal()
    assert (tally.cards, tally.broken) == (1, {(PARKS, token["id"])})
    indexed = await city.owner.fetch("SELECT fingerprint_id FROM gateway.fingerprints WHERE key_version = 2")
    assert [row["fingerprint_id"] for row in indexed] == [other["card"]["fingerprint"]]


async def test_a_card_of_two_ids_is_told(city: City) -> None:
    """A card that the new index knows by another id than the old one is told once, and the run ends."""
    page = city.page()
    token = await page.token(CARDS[0])
    await city.rotate_fingerprint()
    await city.reseal()
    await city.owner.execute("UPDATE gateway.fingerprints SET fingerprint_id = 'fp_other' WHERE key_version = 2")
    tally = await city.reseal()
    assert (tally.cards, tally.broken) == (0, {(PARKS, token["card"]["fingerprint"])})
    (told,) = await city.events("index.refused")
    assert (told["subject"], told["outcome"]) == (token["card"]["fingerprint"], "failed")


async def test_a_data_key_without_record_is_told(city: City) -> None:
    """A compromised data key that somebody put back after its record was erased makes the run fail."""
    page = city.page()
    token = (await page.token(CARDS[0]))["id"]
    kept = await city.owner.fetchrow("SELECT * FROM gateway.deks WHERE record_id = $1", token)
    assert kept is not None
    await page.erase(token)
    await city.owner.execute("INSERT INTO gateway.deks VALUES ($1, $2, $3, $4, $5)", *kept)
    await city.compromise(1)
    tally = await city.reseal()
    assert (tally.tokens, tally.keys_without_record) == (0, 1)


async def test_no_audit_row_no_open(city: City) -> None:
    """While audit rows cannot be written nothing is resealed."""
    page = city.page()
    for card in CARDS:
        await page.token(card)
    await city.compromise(1)
    before, wraps = await sealed_records(city), await city.rows("deks")
    await city.owner.execute("REVOKE INSERT ON audit.events FROM gateway_reseal")
    with capture_logs(), pytest.raises(Unavailable):
        await city.reseal()
    assert (await sealed_records(city), await city.rows("deks")) == (before, wraps)


# --- the card index ---------------------------------------------------------------------------------------------


async def test_a_card_keeps_its_fingerprint(city: City) -> None:
    """Before, between, during and after: the same card has the same id, and other cards have others."""
    old, new = city.page(), city.page()
    await old.keyring.look()
    first = {card: (await old.token(card))["card"]["fingerprint"] for card in CARDS}
    await city.rotate_fingerprint()
    await new.keyring.look()

    async def same(page_rows: int) -> None:
        for page in (old, new):
            for card in CARDS[::5]:
                assert (await page.token(card))["card"]["fingerprint"] == first[card], page_rows

    await same(0)
    tally = await city.reseal(page_rows=2, moved=same)
    assert 0 < tally.cards <= len(CARDS)
    await same(0)
    await city.destroy_fingerprint(1)
    await same(0)
    tally = await city.reseal(page_rows=5)
    assert tally.rows_deleted == len(CARDS)
    await same(0)
    versions = await city.owner.fetch("SELECT key_version, count(*) FROM gateway.fingerprints GROUP BY 1")
    assert [tuple(row) for row in versions] == [(2, len(CARDS))]
    assert len(set(first.values())) == len(CARDS)


async def test_an_index_still_needed_is_not_destroyed(city: City) -> None:
    """Until `reseal` has been there the old version cannot be destroyed, nor another one begun."""
    page = city.page()
    await page.token(CARDS[0])
    await city.rotate_fingerprint()
    with pytest.raises(KeysError, match="gateway reseal"):
        await city.destroy_fingerprint(1)
    with pytest.raises(KeysError, match="gateway reseal"):
        await city.rotate_fingerprint()
    await city.reseal()
    await city.destroy_fingerprint(1)


async def test_strays_go(city: City) -> None:
    """A row of the old index whose card has no token any more is deleted, so that it holds up nobody."""
    page = city.page()
    token = (await page.token(CARDS[0]))["id"]
    kept = await city.owner.fetchrow("SELECT * FROM gateway.fingerprints")
    assert kept is not None
    await page.erase(token)
    await city.owner.execute("INSERT INTO gateway.fingerprints VALUES ($1, $2, $3, $4, $5)", *kept)
    await city.rotate_fingerprint()
    assert (await city.reseal()).rows_deleted == 1
    await city.destroy_fingerprint(1)


# --- card parts -------------------------------------------------------------------------------------------------


async def test_card_parts_follow_where_the_card_lives(city: City) -> None:
    """A repeated request is still compared by its card after the old key is gone; where no card is, the part goes."""
    page = city.page()
    made = await page.token(CARDS[0], "token-key")
    charge = await page.charge("charge-key", card=CARDS[1])
    assert (await page.token(DECLINED_CARD, "declined-key", cvc=True))["status"] == 402
    await city.rotate_fingerprint()

    tally = await city.reseal(page_rows=2)

    assert (tally.claims, tally.claims_cleared) == (2, 1)
    parts = await city.owner.fetch("SELECT idempotency_key, card_key_version FROM gateway.idempotency")
    assert {tuple(row) for row in parts} == {("token-key", 2), ("charge-key", 2), ("declined-key", None)}
    await city.destroy_fingerprint(1)
    later = city.page()
    assert await later.token(CARDS[0], "token-key") == made
    assert await later.charge("charge-key", card=CARDS[1]) == charge
    with pytest.raises(IdempotencyKeyReused):
        await later.token(CARDS[2], "token-key")
    with pytest.raises(IdempotencyKeyReused):
        await later.charge("charge-key", card=CARDS[2])


async def test_a_part_of_another_card_is_not_renewed(city: City) -> None:
    """A card part that is not its card's stays as it is, and is told."""
    page = city.page()
    token = await page.token(CARDS[0], "token-key")
    await city.owner.execute("UPDATE gateway.idempotency SET card_part = sha256(card_part)")
    await city.rotate_fingerprint()
    tally = await city.reseal()
    assert (tally.claims, tally.broken) == (0, {(PARKS, token["id"])})
    assert await city.owner.fetchval("SELECT card_key_version FROM gateway.idempotency") == 1


# --- others come in between -------------------------------------------------------------------------------------


async def test_two_runs_at_once(city: City) -> None:
    """Two share the work: every record is sealed anew once, every card indexed once, and both end."""
    page = city.page()
    tokens = [(await page.token(card))["id"] for card in CARDS for _ in range(3)]
    await city.compromise(1)
    await city.rotate_fingerprint()
    tallies = await all_of(*(city.reseal(page_rows=2) for _ in range(3)))
    assert sum(tally.tokens for tally in tallies) == len(tokens)
    assert not any(tally.broken for tally in tallies)
    told = Counter(row["subject"] for row in await city.events("card.resealed"))
    assert told == dict.fromkeys(tokens, 1)
    indexed = await city.owner.fetchval("SELECT count(*) FROM gateway.fingerprints WHERE key_version = 2")
    assert indexed == len(CARDS)
    await opens(city, tokens)


async def test_beside_a_rewrap(city: City) -> None:
    """While a rewrap moves the same data keys none is lost, none broken, and in the end none is exposed."""
    page = city.page()
    for _ in range(4):
        tokens = [(await page.token(card))["id"] for card in CARDS for _ in range(2)]
        first = city.ring().active.number
        await city.rotate()
        await city.rewrap()
        await city.rotate()
        await city.compromise(first)
        tally, *_ = await all_of(city.reseal(page_rows=3), city.rewrap())
        assert (tally.broken, await city.exposed()) == (set(), 0)
        await opens(city, tokens)
    assert (await city.table.verify(city.ring(), city.clock.now())).failed == 0


async def test_beside_a_rotation(city: City) -> None:
    """When the generation that a run seals under is retired between two pages, it goes on under the next."""
    page = city.page()
    tokens = [(await page.token(card))["id"] for card in CARDS]
    await city.compromise(1)
    turned = 0

    async def turn(_rows: int) -> None:
        nonlocal turned
        if turned < 3:
            turned += 1
            await city.rotate()

    tally = await city.reseal(page_rows=2, moved=turn)
    assert (tally.tokens, tally.broken) == (len(CARDS), set())
    assert sorted({row["generation"] for row in (await city.rows("deks")).values()}) == [2, 3, 4, 5]
    assert await city.exposed() == 0
    await opens(city, tokens)


async def test_beside_erasures(city: City) -> None:
    """Tokens erased while a run is at them leave nothing: no key, no seal, no index, no card part; no deadlock."""
    page = city.page()
    for turn in range(5):
        tokens = [(await page.token(card, f"{turn}-{card}"))["id"] for card in CARDS for _ in "1"]
        await city.compromise(city.ring().active.number)
        if turn % 2 == 0:
            await city.rotate_fingerprint()
        tally, *_ = await all_of(
            city.reseal(page_rows=2), city.reseal(page_rows=3), *(page.erase(token) for token in tokens[::2])
        )
        assert tally.broken == set()
        for token in tokens[::2]:
            row = (await city.rows("tokens"))[token]
            assert (row["status"], row["sealed"], row["fingerprint_id"]) == ("erased", None, None)
            assert token not in await city.rows("deks")
            with pytest.raises(TokenUnusable):
                await page.charge(f"after-{token}", token=token)
        await opens(city, tokens[1::2])
        known = await city.owner.fetch("SELECT DISTINCT fingerprint_id FROM gateway.fingerprints")
        carried = await city.owner.fetch(
            "SELECT DISTINCT fingerprint_id FROM gateway.tokens WHERE sealed IS NOT NULL"
        )
        assert {row[0] for row in known} == {row[0] for row in carried}
        if turn % 2 == 0:
            await city.destroy_fingerprint(city.ring().fingerprint.number - 1)


async def test_a_run_that_broke_off_is_finished_by_the_next(city: City) -> None:
    """Whatever page a run ended at, the next one does the rest and nothing twice."""
    page = city.page()
    tokens = [(await page.token(card, f"k-{card}"))["id"] for card in CARDS]
    await city.compromise(1)
    await city.rotate_fingerprint()
    runs = 0

    async def break_off(rows: int) -> None:
        if rows:
            raise asyncio.CancelledError

    while True:
        runs += 1
        try:
            await city.reseal(page_rows=5, moved=break_off)
            break
        except asyncio.CancelledError:
            continue
    assert runs == 3 * 3 + 1
    told = Counter(row["subject"] for row in await city.events("card.resealed"))
    assert told == dict.fromkeys(tokens, 1)
    await opens(city, tokens)


async def test_rows_that_never_come_free_end_the_run(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that holds a record for too long is named as the reason; once it is gone a run is complete."""
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    page = city.page()
    tokens = [(await page.token(card))["id"] for card in CARDS]
    await city.compromise(1)
    holding = await city.postgres.connect("owner", database=city.database)
    async with holding.transaction():
        await holding.execute("SELECT FROM gateway.tokens WHERE token_id = $1 FOR UPDATE", tokens[0])
        with pytest.raises(Unavailable, match="end what they do"):
            await city.reseal()
        assert await city.exposed() == 1
    await holding.close()
    assert (await city.reseal()).tokens == 1


async def test_a_barrier_that_is_not_reached_ends_the_run(city: City, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a writer does not end nothing is begun, and the line says why."""
    monkeypatch.setattr("gateway.store.reseal.LOCK_TRIES_MAX", 1)
    monkeypatch.setattr("gateway.store.reseal.LOCK_PAUSE_S", 0.0)
    page = city.page()
    await page.token(CARDS[0])
    await city.compromise(1)
    writing = await city.postgres.connect("owner", database=city.database)
    async with writing.transaction():
        await writing.execute("UPDATE gateway.deks SET wrapped = wrapped")
        with pytest.raises(Unavailable, match="writing for a minute"):
            await city.reseal()
    await writing.close()
    assert await city.exposed() == 1


async def test_no_number_leaves_the_vault(city: City, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that a run writes or logs holds a card number."""
    page = city.page()
    for card in CARDS:
        await page.token(card, f"k-{card}")
    await city.compromise(1)
    await city.rotate_fingerprint()
    with capture_logs() as logged:
        await city.reseal()
    dumped = [str(dict(row)) for row in await city.owner.fetch("SELECT * FROM audit.events")]
    dumped += [str(row) for table in ("deks", "tokens") for row in (await city.rows(table)).values()]
    dumped += [str(logged), caplog.text]
    assert not [card for card in CARDS for text in dumped if canary(card) in text]
