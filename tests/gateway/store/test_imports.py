"""Imports on a real database: whole or not at all, once, attributed, dated, posted; and what nobody may."""

import asyncio
import io
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from gateway.clock import SystemClock
from gateway.errors import FileRefused, InvalidRequest, NotFound, NotPermitted, Unavailable
from gateway.rules.ids import new_id
from gateway.rules.settlement import LineKind, SettlementLine
from gateway.rules.staff import Role, Staff
from gateway.services import imports as module
from gateway.services.imports import Imported, Imports
from gateway.services.reach import Reach
from gateway.store.approvals import ApprovalStore
from gateway.store.database import Database
from gateway.store.imports import ImportStore
from keys.audit import AuditPen
from keys.primitives import new_key
from tests.gateway.formats.files import SETTLED, bai2, line, native, stripe
from tests.gateway.store.charged import Charged, charged
from tests.gateway.store.postgres import PARKS, UTILITIES, Cut, Postgres, Wire
from tests.gateway.store.till import EMPTY_RUN

pytestmark = pytest.mark.server

CITY_TIME = ZoneInfo("America/Los_Angeles")
TABLES = ("imports", "settlement_lines", "deposit_lines", "postings", "chargebacks")
CHARGEBACK = LineKind.CHARGEBACK


@dataclass
class Desk:
    """The admin process, and the owner who sees what it wrote."""

    imports: Imports
    owner: asyncpg.Connection

    async def take(self, raw: bytes, kind: Any = "settlement", name: str = "native", **who: Any) -> Imported:
        """One file, brought by somebody of finance."""
        return await self.imports.take(staff(**who), kind, name, io.BytesIO(raw), "req_1", lambda _lines: None)

    async def rows(self, table: str, imported: Imported) -> list[dict[str, Any]]:
        """What an import wrote into a table, in order."""
        of, order = {"postings": ("source_id", "posting_id, line"), "imports": ("import_id", "kind")}.get(
            table, ("import_id", "department_id, line")
        )
        found = await self.owner.fetch(f"SELECT * FROM gateway.{table} WHERE {of} = $1 ORDER BY {order}", imported.id)
        return [dict(row) for row in found]

    async def counts(self) -> list[int]:
        """How much there is of everything."""
        return [await self.owner.fetchval(f"SELECT count(*) FROM gateway.{table}") for table in TABLES]

    async def told(self, subject: str) -> list[tuple[str, str, str]]:
        """The audit rows of an import."""
        rows = await self.owner.fetch("SELECT event, outcome, actor FROM audit.events WHERE subject = $1", subject)
        return [tuple(row) for row in rows]


def desk_on(database: Database, owner: asyncpg.Connection) -> Desk:
    """The services on a pool."""
    pen = AuditPen("admin", {1: new_key()})
    reach = Reach(ApprovalStore(database).departments)
    return Desk(Imports(ImportStore(database), reach, pen, SystemClock(), CITY_TIME), owner)


@pytest.fixture(scope="module")
async def desk(postgres: Postgres, owner: asyncpg.Connection) -> AsyncIterator[Desk]:
    database = await Database.open(postgres.arguments("admin"), 6)
    yield desk_on(database, owner)
    await database.close()


@pytest.fixture
async def frail(postgres: Postgres, wire: Wire, owner: asyncpg.Connection) -> AsyncIterator[Desk]:
    """The admin process behind a wire that can be cut."""
    database = await Database.open(postgres.arguments("admin", port=wire.port), 2)
    yield desk_on(database, owner)
    await database.close()


def staff(*departments: str, role: Role = Role.FINANCE) -> Staff:
    """Somebody who is signed in, of all departments unless some are named."""
    return Staff("st_finance", "f.okoro", frozenset({role}), frozenset(departments or {"*"}))


def of(charge: Charged | str, number: int, kind: LineKind = LineKind.CHARGE, gross: int = 2_000, fee: int = 88,
       **change: Any) -> SettlementLine:  # fmt: skip
    """A line about a charge, or about a reference; of a batch of this run's, so that no two files are the same."""
    reference = charge if isinstance(charge, str) else charge.reference
    return line(number, kind, gross, fee)._replace(reference=reference, **change)


def entry(amount: int, code: str = "142", batch: str = "B20261124", reference: str | None = None) -> str:
    """A 16 record."""
    return f"16,{code},{amount},0,{reference or secrets.token_hex(6)},{batch},/"


# --- what becomes of a file ---------------------------------------------------------------------------------------


async def test_lines_are_attributed_and_summed(desk: Desk) -> None:
    """By the charge's reference or the refund's own; what nobody here knows stands under the city."""
    parks = await charged(desk.owner, refunded=500)
    water = await charged(desk.owner, UTILITIES)
    stranger = new_id("x")
    file = [
        of(parks, 2),
        of(water, 3, gross=3_000, fee=117),
        of(parks.refund_reference, 4, LineKind.REFUND, -500, 0),
        of(parks, 5, LineKind.REFUND, -500, 0),
        of(stranger, 6, gross=100, fee=33),
    ]
    imported = await desk.take(native(file))
    assert replace(imported, id="") == Imported("", "settlement", "native", 5, 4_100, 238, 3_862, "USD")
    lines = {row["line"]: row for row in await desk.rows("settlement_lines", imported)}
    assert [(lines[n]["department_id"], lines[n]["subject"]) for n in range(2, 7)] == [
        (PARKS, parks.charge_id),
        (UTILITIES, water.charge_id),
        (PARKS, parks.charge_id),
        (PARKS, parks.charge_id),
        ("city", stranger),
    ]
    assert (lines[3]["gross_minor"], lines[3]["fee_minor"], lines[3]["net_minor"]) == (3_000, 117, 2_883)
    assert (lines[3]["settled_on"], lines[3]["batch"], lines[3]["kind"]) == (SETTLED, "B20261124", "charge")
    assert await desk.told(imported.id) == [("settlement.imported", "done", "st_finance")]
    (header,) = await desk.rows("imports", imported)
    assert (header["settled_on"], header["staff_id"]) == ([SETTLED], "st_finance")


async def test_postings_sum_up_by_department_and_batch(desk: Desk) -> None:
    """Debits and credits of each part, on the date of its settlement."""
    parks, water = await charged(desk.owner), await charged(desk.owner, UTILITIES)
    file = [
        of(parks, 2),
        of(parks, 3, LineKind.REFUND, -500, 0),
        of(water, 4),
        of(water, 5, LineKind.ADJUSTMENT, -7, 0, batch="B2"),
    ]
    imported = await desk.take(native(file))
    posted = await desk.rows("postings", imported)
    assert [
        (row["department_id"], row["debit"], row["credit"], row["amount_minor"], row["business_date"])
        for row in sorted(posted, key=lambda row: (row["department_id"], row["posting_id"], row["line"]))
        if row["department_id"] == PARKS
    ] == [
        (PARKS, "clearing", "processor_due", 2_000, SETTLED),
        (PARKS, "processor_due", "clearing", 500, SETTLED),
        (PARKS, "fees", "clearing", 88, SETTLED),
    ]
    assert len({row["posting_id"] for row in posted if row["department_id"] == UTILITIES}) == 2
    assert {row["source"] for row in posted} == {"settlement"}
    into = sum(row["amount_minor"] for row in posted if row["debit"] == "clearing")
    out = sum(row["amount_minor"] for row in posted if row["credit"] == "clearing")
    assert into - out == imported.net_minor


async def test_a_statement_is_the_citys(desk: Desk) -> None:
    """Credits and debits, each posted to the bank."""
    imported = await desk.take(bai2([[entry(3_862), entry(862, "451")]]), "deposit", "bai2")
    assert (imported.lines, imported.gross_minor, imported.fee_minor, imported.net_minor) == (2, 3_000, 0, 3_000)
    lines = await desk.rows("deposit_lines", imported)
    assert [(row["department_id"], row["amount_minor"], row["deposited_on"], row["batch"]) for row in lines] == [
        ("city", 3_862, SETTLED, "B20261124"),
        ("city", -862, SETTLED, "B20261124"),
    ]
    posted = await desk.rows("postings", imported)
    assert sorted((row["debit"], row["credit"], row["amount_minor"]) for row in posted) == [
        ("bank", "clearing", 3_862),
        ("clearing", "bank", 862),
    ]
    assert await desk.told(imported.id) == [("deposit.imported", "done", "st_finance")]


async def test_stripes_form_is_taken_too(desk: Desk) -> None:
    """The other format of a settlement, found by its name."""
    charge = await charged(desk.owner)
    imported = await desk.take(stripe([of(charge, 2)]), name="stripe")
    assert (imported.format, imported.net_minor) == ("stripe", 1_912)
    assert (await desk.rows("settlement_lines", imported))[0]["subject"] == charge.charge_id


async def test_a_line_counts_on_its_departments_date(desk: Desk, borough: str) -> None:
    """From the cut-off on it is the next business date's; under the city midnight ends a date."""
    await desk.owner.execute("INSERT INTO gateway.cutoffs VALUES ($1, '2026-01-01', $2)", borough, time(17))
    charge, stranger = await charged(desk.owner, borough), new_id("x")
    late = datetime(2026, 11, 24, 1, 0, tzinfo=UTC)  # 17:00 in Los Angeles, on the 23rd
    file = [of(charge, 2, created_at=late), of(charge, 3), of(stranger, 4, created_at=late)]
    lines = {row["line"]: row for row in await desk.rows("settlement_lines", await desk.take(native(file)))}
    assert [lines[n]["business_date"].day for n in (2, 3, 4)] == [24, 23, 23]


@pytest.mark.parametrize(("acts", "day"), [(("proposed", "approved"), 25), (("proposed",), 23),
                                           (("proposed", "approved", "reopening", "reopened"), 23)])  # fmt: skip
async def test_what_comes_late_goes_to_the_next_open_date(
    desk: Desk, borough: str, acts: Sequence[str], day: int
) -> None:
    """Its lines and its postings; with a range that is not closed, or not any more, nothing is moved."""
    await close(desk.owner, borough, acts)
    charge = await charged(desk.owner, borough)
    imported = await desk.take(native([of(charge, 2), of(charge, 3, CHARGEBACK, -2_000, 0)]))
    found = await desk.rows("settlement_lines", imported)
    assert [(row["business_date"].day, row["reference"]) for row in found] == [(day, charge.reference)] * 2
    posted = await desk.rows("postings", imported)
    assert {row["business_date"].day for row in posted} == {max(day, SETTLED.day)}
    told = "SELECT business_date FROM gateway.postings WHERE source_id = $1"
    assert {row[0].day for row in await desk.owner.fetch(told, charge.charge_id)} == {day}


async def close(owner: asyncpg.Connection, department: str, acts: Sequence[str]) -> None:
    """The 22nd to the 24th of November, as far as these acts go."""
    run, close_id = (secrets.token_hex(8) for _ in range(2))
    days = date(2026, 11, 22), date(2026, 11, 24)
    await owner.execute(
        "INSERT INTO gateway.reconciliations VALUES ($1, ARRAY[$2], $3, $4, $5, $6, '{}', 'st', now())",
        *(run, department, *days, *EMPTY_RUN),
    )
    await owner.execute("INSERT INTO gateway.closes VALUES ($1, $2, $3, $4, $5)", department, close_id, *days, run)
    for number, what in enumerate(acts, 1):
        pack = (bytes(32), b"signed", 1) if what == "approved" else (None, None, None)
        await owner.execute(
            "INSERT INTO gateway.close_acts VALUES ($1, $2, $3, $4, '', $5, $6, $7, 'st', now())",
            *(department, close_id, number, what, *pack),
        )


# --- chargebacks --------------------------------------------------------------------------------------------------


async def test_a_chargebacks_life(desk: Desk) -> None:
    """Opened, won, opened again, over files; the same told twice adds nothing, and what was owed is owed again."""
    charge = await charged(desk.owner, amount=2_000, fee=50)
    first = [of(charge, 2, CHARGEBACK, -2_000, 1_500), of(charge, 3, CHARGEBACK, -2_000, 0)]
    second = [of(charge, 2, CHARGEBACK, 2_000, 0), of(charge, 3, CHARGEBACK, -2_000, 0, batch="B2")]
    await desk.take(native(first))
    assert await stages(desk, charge) == ["opened"]
    owed = "SELECT debit, credit, amount_minor FROM gateway.postings WHERE source_id = $1 ORDER BY line"
    assert [tuple(row) for row in await desk.owner.fetch(owed, charge.charge_id)] == [
        ("receivable", "chargebacks", 1_950),
        ("convenience_fees", "chargebacks", 50),
    ]
    await desk.take(native(second))
    assert await stages(desk, charge) == ["opened", "won", "opened"]


async def test_who_won_nothing_wins_nothing(desk: Desk) -> None:
    """Money that comes back without a chargeback, and a chargeback of nobody's charge, are lines and no stages."""
    charge, before = await charged(desk.owner), await desk.counts()
    file = [of(charge, 2, CHARGEBACK, 2_000, 0), of(new_id("x"), 3, CHARGEBACK, -100, 0)]
    await desk.take(native(file))
    assert (await desk.counts())[4] == before[4]
    assert await stages(desk, charge) == []


async def stages(desk: Desk, charge: Charged) -> list[str]:
    rows = await desk.owner.fetch(
        "SELECT stage FROM gateway.chargebacks WHERE charge_id = $1 ORDER BY stage_number", charge.charge_id
    )
    return [row["stage"] for row in rows]


# --- once ---------------------------------------------------------------------------------------------------------


async def test_the_same_file_again_changes_nothing(desk: Desk) -> None:
    """Whoever brings it, by its bytes: the figures of the first time, and who reads is told so."""
    raw = native([of(await charged(desk.owner), 2)])
    first = await desk.take(raw)
    before = await desk.counts()
    again = await desk.take(raw)
    assert again == replace(first, already_imported=True)
    assert await desk.counts() == before
    other = await desk.take(raw + b"")
    assert other.id == first.id


async def test_ten_bring_it_at_once(desk: Desk) -> None:
    """One of them imports it, and the others learn what it came to."""
    raw = native([of(await charged(desk.owner), n) for n in range(2, 40)])
    before = await desk.counts()
    ends = await asyncio.gather(*(desk.take(raw) for _ in range(5)))
    assert sorted(end.already_imported for end in ends) == [False, True, True, True, True]
    assert len({end.id for end in ends}) == 1
    assert (await desk.counts())[:2] == [before[0] + 1, before[1] + 38]


async def test_a_line_that_stands_twice_is_kept_twice(desk: Desk) -> None:
    """Only a whole file is known again."""
    charge = await charged(desk.owner)
    imported = await desk.take(native([of(charge, 2), of(charge, 3)]))
    assert len(await desk.rows("settlement_lines", imported)) == 2


# --- nothing is left of what failed -------------------------------------------------------------------------------


async def test_a_bad_last_line_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though thousands before it were written: the file is refused, with its line, and the refusal audited."""
    monkeypatch.setattr(module, "CHUNK", 3)
    charge, before = await charged(desk.owner), await desk.counts()
    raw = native([of(charge, n) for n in range(2, 12)])
    refusals = "SELECT count(*) FROM audit.events WHERE event = 'import.refused' AND actor = 'st_finance'"
    told = await desk.owner.fetchval(refusals)
    with pytest.raises(FileRefused, match="Line 12") as caught:
        await desk.take(raw.replace(b"#total,10", b"#total,11"))
    assert caught.value.pointers == ("/lines/12",)
    assert await desk.counts() == before
    assert await desk.owner.fetchval(refusals) == told + 1
    assert (await desk.take(raw)).already_imported is False


@pytest.mark.parametrize("where", ["first", "last"])
async def test_a_lost_connection_leaves_nothing(
    frail: Desk, wire: Wire, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """In the middle of the lines, or with the COMMIT on its way: `Unavailable`, and the same file is taken later."""
    monkeypatch.setattr(module, "CHUNK", 3)
    raw, before = native([of(await charged(frail.owner), n) for n in range(2, 12)]), await frail.counts()

    def cut(_lines: int) -> None:
        if where == "first":
            for task in wire._tasks:
                task.cancel()

    if where == "last":
        wire.cut_at(Cut.BEFORE_COMMIT)
    with pytest.raises(Unavailable):
        await frail.imports.take(staff(), "settlement", "native", io.BytesIO(raw), "req_1", cut)
    assert await frail.counts() == before
    assert (await frail.take(raw)).already_imported is False


async def test_a_commit_that_nobody_saw_is_found_again(frail: Desk, wire: Wire) -> None:
    """Written, and its answer lost: who tries once more is told that it was imported."""
    raw = native([of(await charged(frail.owner), 2)])
    wire.cut_at(Cut.BEFORE_ANSWER)
    with pytest.raises(Unavailable, match="will not count twice"):
        await frail.take(raw)
    assert (await frail.take(raw)).already_imported is True


async def test_who_goes_away_leaves_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that is cancelled in the middle never was, and holds up nobody."""
    monkeypatch.setattr(module, "CHUNK", 3)
    raw, before = native([of(await charged(desk.owner), n) for n in range(2, 12)]), await desk.counts()
    begun = asyncio.Event()
    source = io.BytesIO(raw)
    taking = asyncio.create_task(
        desk.imports.take(staff(), "settlement", "native", source, "req_1", lambda _lines: begun.set())
    )
    await begun.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await desk.counts() == before
    assert (await desk.take(raw)).already_imported is False


async def test_others_go_on_while_a_long_file_is_read(desk: Desk) -> None:
    """Reading happens beside: the loop that serves pages never reads of the file itself."""
    readers = set()

    class Source(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

        def readline(self, size: int | None = -1, /) -> bytes:
            readers.add(threading.get_ident())
            return super().readline(size)

    source = Source(native([of(new_id("x"), n) for n in range(2, 12_002)]))
    taken = await desk.imports.take(staff(), "settlement", "native", source, "req_1", lambda _lines: None)
    assert taken.lines == 12_000
    assert readers
    assert threading.get_ident() not in readers


# --- who may, and what they see -----------------------------------------------------------------------------------


async def test_only_finance_of_all_departments_imports(desk: Desk) -> None:
    """A file is the whole city's. Who may not is told before anything is read."""
    raw, before = native([of("x", 2)]), await desk.counts()
    for role in set(Role) - {Role.FINANCE}:
        with pytest.raises(NotPermitted):
            await take_as(desk, raw, staff(role=role))
    with pytest.raises(NotPermitted, match="all departments"):
        await take_as(desk, raw, staff(PARKS, UTILITIES))
    for kind, name, names in (("settlement", "bai2", "native, stripe"), ("deposit", "native", "bai2")):
        with pytest.raises(InvalidRequest, match=names):
            await desk.take(raw, kind, name)
    assert await desk.counts() == before


async def take_as(desk: Desk, raw: bytes, who: Staff) -> Imported:
    return await desk.imports.take(who, "settlement", "native", io.BytesIO(raw), "req_1", lambda _lines: None)


async def test_everybody_sees_their_own_lines_only(desk: Desk, borough: str) -> None:
    """Lists, sums, parts and lines are those of the grant; a file without any is no file, and a statement neither."""
    mine, theirs = await charged(desk.owner, borough), await charged(desk.owner, UTILITIES)
    stranger = new_id("x")
    both = await desk.take(native([of(mine, 2), of(theirs, 3, gross=700, fee=50), of(stranger, 4)]))
    other = await desk.take(native([of(theirs, 2)]))
    statement = await desk.take(bai2([[entry(100)]]), "deposit", "bai2")
    clerk, chief = staff(borough, role=Role.AUDITOR), staff(role=Role.AUDITOR)

    assert [each.import_id for each in await desk.imports.imports(clerk, "settlement")] == [both.id]
    assert await desk.imports.imports(clerk, "deposit") == []
    shown, parts = await desk.imports.one(clerk, "settlement", both.id)
    assert (shown.lines, shown.gross_minor, shown.fee_minor, shown.net_minor) == (1, 2_000, 88, 1_912)
    assert [(part.department, part.gross_minor) for part in parts] == [(borough, 2_000)]
    assert [each.line.line for each in await desk.imports.settlement_lines(clerk, both.id)] == [2]
    for kind, import_id in (("settlement", other.id), ("deposit", statement.id), ("settlement", "im_none")):
        with pytest.raises(NotFound):
            await desk.imports.one(clerk, kind, import_id)  # type: ignore[arg-type]

    listed = [each.import_id for each in await desk.imports.imports(chief, "settlement", 2)]
    assert listed[:2] == [other.id, both.id]
    assert next(iter(await desk.imports.imports(chief, "settlement", 1, other.id))).import_id == both.id
    shown, parts = await desk.imports.one(chief, "settlement", both.id)
    assert (shown.lines, {part.department for part in parts}) == (3, {borough, UTILITIES, "city"})
    lines = await desk.imports.settlement_lines(chief, both.id)
    assert [each.charge_id for each in lines] == [mine.charge_id, theirs.charge_id, None]
    assert [each.line.line for each in await desk.imports.settlement_lines(chief, both.id, 1, 2)] == [3, 4]
    assert [each.amount_minor for each in await desk.imports.deposit_lines(chief, statement.id)] == [100]
    with pytest.raises(NotPermitted):
        await desk.imports.imports(staff(role=Role.RECORDS), "settlement")


# --- walls in the database ----------------------------------------------------------------------------------------


async def test_lines_only_grow_and_only_where_they_may(desk: Desk, postgres: Postgres) -> None:
    """Whatever the code does: no line is changed, none written for who was not named, none without its import."""
    charge = await charged(desk.owner)
    await desk.take(native([of(charge, 2)]))
    admin = await postgres.connect("admin")
    await admin.execute(f"SET gateway.departments = '{PARKS}'")
    add = (
        "INSERT INTO gateway.settlement_lines VALUES ($1, 'im_none', 1, 'charge', 'x', 'x', 1, 0, 1, 'USD', now(),"
        " '2026-11-24', 'b', '2026-11-24')"
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
        await admin.execute(add, UTILITIES)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await admin.execute(add, PARKS)
    for table in TABLES:
        for statement in ("UPDATE gateway.{} SET currency = 'EUR'", "DELETE FROM gateway.{}"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await admin.execute(statement.format(table))
    await admin.close()
