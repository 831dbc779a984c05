"""Rewrapping on a real PostgreSQL: every wrap moves once, whatever happens beside it, and wraps what it did."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import asyncpg
import pytest
from rich.progress import Progress

from keys import rewrap
from keys.cli import pace
from keys.deks import DekTable, Wrap
from keys.envelope import Place
from keys.errors import BrokenSeal, KeyRefused, KeysExhausted
from keys.manifest import Act
from keys.rewrap import Rewrap, Tally
from keys.ring import WRAPS_MAX, Ring, WrappedDek
from keys.secret import Secret
from keys.states import State
from tests.keys.database import DEPARTMENTS, City

pytestmark = pytest.mark.server

ROWS = 5_000
PAGE = 200

Moved = Callable[[int], Awaitable[None]]


@pytest.fixture
def now() -> datetime:
    """The real time: the database dates some things by its own clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class CountedRing(Ring):
    """A ring that counts how often each of its generations wraps."""

    wraps: Counter[int] = field(default_factory=Counter)

    def wrap(self, place: Place, dek: Secret[bytes], now: datetime) -> WrappedDek:
        """See `Ring.wrap`."""
        self.wraps[self.active.number] += 1
        return Ring.wrap(self, place, dek, now)


async def no_more(_rows: int) -> None:
    """Nothing to do after a page."""


@dataclass
class Filled:
    """A city with wraps under two retired generations, and its data keys."""

    city: City
    deks: dict[str, bytes]
    wraps: Counter[int] = field(default_factory=Counter)

    def ring(self) -> Ring:
        ring = self.city.ring
        return CountedRing(**{f.name: getattr(ring, f.name) for f in fields(Ring)}, wraps=self.wraps)

    async def rewrap(self, *, moved: Moved = no_more, streams: int = 1, page: int = PAGE) -> Tally:
        """One run, on connections of its own."""
        async with AsyncExitStack() as stack:
            tables = [await stack.enter_async_context(self.city.table()) for _ in range(streams)]
            return await Rewrap(self.ring, lambda: self.city.now, moved, page).run(tables)

    async def rotate(self) -> None:
        """A rotation, beside whatever runs."""
        async with self.city.changing() as rotation:
            await rotation.rotate(self.city.now)

    async def under(self) -> dict[int, int]:
        """How many wraps each generation has."""
        rows = await self.city.owner.fetch("SELECT generation, count(*) AS rows FROM gateway.deks GROUP BY 1")
        return {row["generation"]: row["rows"] for row in rows}

    async def reserved(self) -> dict[int, int]:
        """The database's count of wraps, made ahead."""
        rows = await self.city.owner.fetch("SELECT generation, wraps_reserved FROM gateway.key_generations")
        return {row["generation"]: row["wraps_reserved"] for row in rows}


async def fill(city: City, rows: int) -> Filled:
    """Half of the rows under generation 1, half under 2; 3 is active."""
    filled = Filled(city, await city.add_records(rows // 2, prefix="one"))
    await filled.rotate()
    filled.deks |= await city.add_records(rows - rows // 2, prefix="two")
    await filled.rotate()
    return filled


@pytest.fixture
async def full(city: City) -> Filled:
    """Enough for many pages in each of three departments."""
    return await fill(city, ROWS)


@pytest.fixture
async def few(city: City) -> Filled:
    """Two wraps in each department, under either generation."""
    return await fill(city, 12)


@asynccontextmanager
async def counting_moves(owner: asyncpg.Connection) -> AsyncIterator[Callable[[], Awaitable[Counter[str]]]]:
    """While inside, the server notes every update of a wrap; the call gives how often each was."""
    await owner.execute("""
        CREATE TABLE gateway.moves (record_id text);
        CREATE FUNCTION gateway.note_move() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN INSERT INTO gateway.moves VALUES (NEW.record_id); RETURN NULL; END $$;
        CREATE TRIGGER note_move AFTER UPDATE ON gateway.deks FOR EACH ROW EXECUTE FUNCTION gateway.note_move();
    """)

    async def noted() -> Counter[str]:
        return Counter(row["record_id"] for row in await owner.fetch("SELECT record_id FROM gateway.moves"))

    try:
        yield noted
    finally:
        await owner.execute("DROP FUNCTION gateway.note_move CASCADE; DROP TABLE gateway.moves")


# --- all of it ---


async def test_everything_moves(full: Filled) -> None:
    """Every wrap stands under the active generation, opens in its place to the same data key, and is new bytes."""
    before, told = await full.city.wraps(), []

    async def moved(rows: int) -> None:
        told.append(rows)

    tally = await full.rewrap(moved=moved)
    after = await full.city.wraps()
    assert (tally.rows, tally.broken) == (ROWS, set())
    assert await full.under() == {3: ROWS}
    assert await full.city.opened() == full.deks
    assert not {wrapped.wrapped for _, wrapped in before.values()} & {w.wrapped for _, w in after.values()}
    assert sum(told) == ROWS
    assert max(told) == PAGE
    assert len(told) >= ROWS / PAGE


async def test_a_second_run_does_nothing(few: Filled) -> None:
    """Where nothing is left nothing is written."""
    await few.rewrap()
    before = await few.city.wraps()

    assert (await few.rewrap()).rows == 0
    assert await few.city.wraps() == before


async def test_nothing_else_changes(few: Filled) -> None:
    """Neither a record, nor which generation wrapped a data key first: that is what a compromise asks for."""
    records = await few.city.owner.fetch("SELECT * FROM gateway.tokens ORDER BY token_id")
    firsts = "SELECT record_id, first_generation FROM gateway.deks ORDER BY record_id"
    before = await few.city.owner.fetch(firsts)
    await few.rewrap()
    await few.rotate()
    await few.rewrap()

    assert await few.city.owner.fetch("SELECT * FROM gateway.tokens ORDER BY token_id") == records
    assert await few.city.owner.fetch(firsts) == before
    assert Counter(row["first_generation"] for row in before) == {1: 6, 2: 6}
    async with few.city.table() as table:
        assert [await table.exposed([generation]) for generation in (1, 2, 3, 4, 5)] == [6, 12, 12, 12, 0]


async def test_a_compromised_generation_is_not_rewrapped(few: Filled) -> None:
    """Its data keys may be known: they are not carried on, but replaced by `gateway reseal`."""
    async with few.city.changing() as rotation:
        manifest = rotation.manifest.moved(rotation.manifest.key("kek", 1), State.COMPROMISED, few.city.now)
        await rotation.change(manifest, Act("compromise", "kek-1"), few.city.now)
    await few.rewrap()

    assert await few.under() == {1: 6, 3: 6}


# --- interrupted ---


async def test_cancelled_at_random_pages(full: Filled) -> None:
    """However often it is cut off, each page is whole or not there, and the last run ends with everything moved."""
    async with counting_moves(full.city.owner) as moves:
        for _ in range(12):
            run = asyncio.create_task(full.rewrap(page=60, streams=2))
            await asyncio.sleep(random.uniform(0, 0.1))  # noqa: S311 - a moment, not a secret
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
            assert await full.city.opened() == full.deks
        await full.rewrap()
        assert await full.under() == {3: ROWS}
        assert await full.city.opened() == full.deks
        assert set((await moves()).values()) == {1}


async def test_cut_off_before_the_commit(few: Filled) -> None:
    """A page whose transaction does not end is a page that was not moved."""
    before = await few.city.wraps()
    async with few.city.table() as table:
        page = table.page()
        await page.start()
        taken = await table.take_page("parks", 1, "", 10)
        assert await table.move_page("parks", 1, 3, [Wrap(record, was, b"new") for record, was in taken]) == 2

    assert await few.city.wraps() == before


# --- several at once ---


async def test_three_at_once(full: Filled) -> None:
    """Three runs of two streams each share the rows: each is moved exactly once, and the counts add up."""
    async with counting_moves(full.city.owner) as moves:
        tallies = await asyncio.gather(*(full.rewrap(page=50, streams=2) for _ in range(3)))

        assert await moves() == dict.fromkeys(full.deks, 1)
    assert sum(tally.rows for tally in tallies) == ROWS
    assert [tally.broken for tally in tallies] == [set()] * 3
    assert await full.city.opened() == full.deks


async def test_who_holds_a_row_is_not_waited_for(few: Filled) -> None:
    """A row that somebody else works on is passed by, the others move, and it is found again when it is free."""
    async with counting_moves(few.city.owner) as moves:
        holder = await few.city.postgres.connect("owner")
        try:
            await holder.execute("BEGIN; SELECT FROM gateway.deks WHERE record_id = 'one_000000' FOR UPDATE")
            run = asyncio.create_task(few.rewrap())
            async with asyncio.timeout(5):
                while len(await moves()) < len(few.deks) - 1:
                    await asyncio.sleep(0.01)
            assert not run.done()
            await holder.execute("COMMIT")
            assert (await run).rows == len(few.deks)
        finally:
            holder.terminate()


# --- beside changes ---


async def test_compare_and_set(few: Filled) -> None:
    """A wrap is replaced only if it is still the one that was read, under the generation that was read."""
    wraps = await few.city.wraps()
    async with few.city.table() as table:
        (first, was), (second, other) = await table.take_page("parks", 1, "", 10)
        assert await table.move_page("parks", 1, 3, [Wrap(first, other, b"x")]) == 0
        assert await table.move_page("parks", 2, 3, [Wrap(first, was, b"x")]) == 0
        assert await table.move_page("streets", 1, 3, [Wrap(first, was, b"x")]) == 0
        assert await table.move_page("parks", 1, 2, [Wrap(first, was, b"x")]) == 0
        assert await table.move_page("parks", 1, 9, [Wrap(first, was, b"x")]) == 0
        assert await few.city.wraps() == wraps
        assert await table.move_page("parks", 1, 3, [Wrap(first, was, b"x"), Wrap(second, b"gone", b"y")]) == 1
    assert (await few.city.wraps())[first][1] == WrappedDek(3, b"x")


async def test_erased_meanwhile(full: Filled) -> None:
    """What is erased during the run stays erased; the rest moves."""
    erased = set(random.sample(sorted(full.deks), 500))

    async def erase(_rows: int) -> None:
        for record in [erased_one for erased_one in sorted(erased)[:40] if erased_one in full.deks]:
            await full.city.owner.execute("DELETE FROM gateway.deks WHERE record_id = $1", record)
            full.deks.pop(record)
            erased.discard(record)

    await full.rewrap(moved=erase)
    assert await full.city.opened() == full.deks
    assert await full.under() == {3: len(full.deks)}
    assert len(full.deks) < ROWS


@pytest.mark.parametrize("streams", [1, 2])
async def test_a_rotation_in_the_middle(full: Filled, streams: int) -> None:
    """The run goes on with the new generation; what it had moved already is left for the next run."""
    pages = 0

    async def moved(_rows: int) -> None:
        nonlocal pages
        pages += 1
        if pages in {5, 20}:
            await full.rotate()

    await full.rewrap(moved=moved, streams=streams, page=100)
    under = await full.under()
    assert set(under) <= {3, 4, 5}
    assert under[5] > 0
    await full.rewrap()
    assert await full.under() == {5: ROWS}
    assert await full.city.opened() == full.deks


async def test_a_rotation_between_taking_and_moving(few: Filled) -> None:
    """Wraps that were made under a generation retired this moment are not written; the page is taken once more."""
    rotated: list[int] = []

    class Late(DekTable):
        """Comes to `move_page` just after a rotation, once."""

        async def take_page(self, department: str, generation: int, after: str, rows: int) -> list[tuple[str, bytes]]:
            page = await super().take_page(department, generation, after, rows)
            if not rotated:
                rotated.append(4)
                # By hand: a real rotation would wait for this page.
                keys = few.city.keys
                made = keys.make_key("kek", State.ACTIVE, few.city.now)
                following = keys.manifest.with_key(made).moved(
                    keys.manifest.active("kek"), State.RETIRED, few.city.now
                )
                keys.publish(following, Act("rotate", made.id), few.city.now)
                await few.city.owner.execute("""
                    INSERT INTO gateway.key_generations VALUES (4, 'active');
                    UPDATE gateway.key_generations SET state = 'retired' WHERE generation = 3""")
            return page

    connection = await few.city.postgres.connect("keys")
    try:
        await Rewrap(few.ring, lambda: few.city.now, no_more, PAGE).run([Late(connection)])
    finally:
        await connection.close()
    assert rotated == [4]
    assert await few.under() == {4: len(few.deks)}
    assert await few.city.opened() == few.deks


# --- what does not open ---


async def test_broken_wraps_are_reported_and_left(full: Filled) -> None:
    """Altered wraps and swapped rows are named and stay as they are; all others move; the run ends."""
    owner = full.city.owner
    altered = ["one_000000", "one_000001", "two_000005"]
    await owner.execute("UPDATE gateway.deks SET wrapped = wrapped || '\\x00' WHERE record_id = ANY($1)", altered)
    swapped = ["one_000003", "one_000006"]
    await swap_rows(owner, *swapped)
    before = await full.city.wraps()

    tally = await full.rewrap(streams=2)
    broken = {(before[record][0], record) for record in (*altered, *swapped)}
    assert (tally.rows, tally.broken) == (ROWS - 5, broken)
    after = await full.city.wraps()
    assert {record: after[record] for record in (*altered, *swapped)} == {
        record: before[record] for record in (*altered, *swapped)
    }
    assert await full.under() == {1: 4, 2: 1, 3: ROWS - 5}
    async with full.city.table() as table:
        found = await table.verify(full.city.ring, full.city.now)
    assert (found.records, found.opened, found.failed) == (ROWS, ROWS - 5, 5)


async def swap_rows(owner: asyncpg.Connection, one: str, other: str) -> None:
    """Each row under the other's name."""
    await owner.execute(
        """UPDATE gateway.deks SET wrapped = other.wrapped FROM gateway.deks AS other
           WHERE (deks.record_id = $1 AND other.record_id = $2) OR (deks.record_id = $2 AND other.record_id = $1)""",
        one,
        other,
    )


async def test_rows_swapped_after_a_rewrap_are_found_as_before(few: Filled) -> None:
    """The new wraps are bound to environment, department, record and generation, exactly as the old ones were."""
    await few.rewrap()
    ring, now = few.city.ring, few.city.now
    department, wrapped = (await few.city.wraps())["one_000000"]
    place = ring.place(department, "one_000000")
    assert ring.unwrap(place, wrapped, now).reveal() == few.deks["one_000000"]
    elsewhere = [
        (replace(place, record="one_000003"), wrapped),
        (replace(place, department=DEPARTMENTS[1]), wrapped),
        (replace(place, environment="live"), wrapped),
        (place, replace(wrapped, generation=2)),
    ]
    for at, given in elsewhere:
        with pytest.raises(BrokenSeal):
            ring.unwrap(at, given, now)

    await swap_rows(few.city.owner, "one_000000", "one_000003")
    async with few.city.table() as table:
        found = await table.verify(ring, now)
    assert (found.records, found.opened, found.failed) == (12, 10, 2)


async def test_a_broken_wrap_that_is_erased_counts_no_more(few: Filled) -> None:
    """A run does not end early because of it: what others held is still moved."""
    owner = few.city.owner
    await owner.execute("UPDATE gateway.deks SET wrapped = 'x' WHERE record_id = 'one_000001'")
    holder = await few.city.postgres.connect("owner")
    try:
        await holder.execute("BEGIN; SELECT FROM gateway.deks WHERE record_id = 'one_000000' FOR UPDATE")
        run = asyncio.create_task(few.rewrap())
        async with asyncio.timeout(5):
            while (await few.under()).get(3) != len(few.deks) - 2:
                await asyncio.sleep(0.01)
        await owner.execute("DELETE FROM gateway.deks WHERE record_id = 'one_000001'")
        await asyncio.sleep(2 * rewrap.ROUND_PAUSE_S)
        assert not run.done()
        await holder.execute("COMMIT")
        assert await run == Tally(rows=len(few.deks) - 1)
    finally:
        holder.terminate()


async def test_what_verify_counts(few: Filled) -> None:
    """Records without a wrap, wraps without a record, and the wraps of each generation, all of one moment."""
    owner = few.city.owner
    await owner.execute("DELETE FROM gateway.deks WHERE record_id = 'one_000000'")
    await owner.execute("DELETE FROM gateway.tokens WHERE token_id IN ('one_000001', 'two_000001')")
    async with few.city.table() as table:
        found = await table.verify(few.city.ring, few.city.now)

    assert (found.records, found.opened, found.failed) == (12, 11, 3)
    assert (found.without_wrap, found.without_record) == (1, 2)
    assert found.generations == {1: 5, 2: 6}


# --- limits ---


async def test_every_wrap_is_counted_before_it_is_made(full: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rotations and several streams beside it, no generation ever wraps more often than the database counted."""
    monkeypatch.setattr(rewrap, "WRAPS_AHEAD", 130)
    pages, alone = 0, asyncio.Lock()

    async def moved(_rows: int) -> None:
        nonlocal pages
        pages += 1
        async with alone:
            if pages % 9 == 0 and pages < 60:
                await full.rotate()
            made = dict(full.wraps)  # before the look: other streams go on meanwhile
            reserved = await full.reserved()
        assert all(count <= reserved[generation] for generation, count in made.items())

    await full.rewrap(moved=moved, streams=3, page=50)
    assert len(full.wraps) > 3
    assert sum(full.wraps.values()) >= ROWS


async def test_what_was_counted_stays_counted(few: Filled) -> None:
    """Each run counts ahead, and what it did not use is not given back: a killed run can only overcount."""
    before = await few.city.wraps()
    put_back = "UPDATE gateway.deks SET generation = $2, wrapped = $3 WHERE record_id = $1"
    for runs in (1, 2, 3):
        await few.rewrap()
        assert (await few.reserved())[3] == runs * rewrap.WRAPS_AHEAD
        for record, (_, wrapped) in before.items():
            await few.city.owner.execute(put_back, record, wrapped.generation, wrapped.wrapped)


async def test_a_generation_that_may_wrap_no_more(few: Filled) -> None:
    """At its limit a generation refuses, and says how to go on; nothing was moved."""
    await few.city.owner.execute(
        "UPDATE gateway.key_generations SET wraps_reserved = $1 WHERE generation = 3",
        WRAPS_MAX - rewrap.WRAPS_AHEAD + 1,
    )
    before = await few.city.wraps()

    with pytest.raises(KeysExhausted, match=r"^generation 3 may wrap no more: rotate with `keys rotate`$"):
        await few.rewrap()
    assert await few.city.wraps() == before
    await few.rotate()
    assert (await few.rewrap()).rows == 12


async def test_the_last_wraps_before_the_limit(few: Filled) -> None:
    """Exactly up to the limit may be counted."""
    await few.city.owner.execute(
        "UPDATE gateway.key_generations SET wraps_reserved = $1 WHERE generation = 3", WRAPS_MAX - rewrap.WRAPS_AHEAD
    )

    assert (await few.rewrap()).rows == 12
    assert (await few.reserved())[3] == WRAPS_MAX


async def test_past_its_date_a_generation_wraps_nothing(few: Filled) -> None:
    """The active generation's date holds for rewrapping, too."""
    few.city.now += timedelta(days=366)
    before = await few.city.wraps()

    with pytest.raises(KeyRefused, match=r"^key 3 may not originate since .*: rotate with `keys rotate`$"):
        await few.rewrap()
    assert await few.city.wraps() == before


async def test_a_store_that_the_database_does_not_follow(few: Filled) -> None:
    """Where an act was interrupted nothing is moved to a generation that is not in force; nobody loops for ever."""
    await few.city.owner.execute("UPDATE gateway.key_generations SET state = 'retired'")

    with pytest.raises(KeyRefused, match="an act was interrupted; run `keys rotate`"):
        await few.rewrap(streams=2)
    assert await few.under() == {1: 6, 2: 6}


# --- how fast ---


@pytest.mark.parametrize("rows_per_s", [50, 1_000_000, 0])
async def test_a_rate_is_kept(full: Filled, monkeypatch: pytest.MonkeyPatch, rows_per_s: float) -> None:
    """On a clock that only waiting moves, the run takes as long as its rate demands; without one it never waits."""
    clock_s = 1_000.0

    async def sleep(seconds: float) -> None:
        nonlocal clock_s
        assert seconds >= 0
        clock_s += seconds

    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: clock_s))
    monkeypatch.setattr(pace, "asyncio", SimpleNamespace(sleep=sleep))
    keeping = pace.Pace(Progress(disable=True), "Rewrapping", ROWS, rows_per_s)
    progress: list[tuple[float, int]] = []

    async def moved(rows: int) -> None:
        await keeping.moved(rows)
        progress.append((keeping.seconds, rows))

    await full.rewrap(moved=moved)
    assert keeping.seconds == pytest.approx(ROWS / rows_per_s if rows_per_s else 0)
    done = 0
    for seconds, rows in progress:
        done += rows
        assert not rows_per_s or seconds == pytest.approx(done / rows_per_s)
