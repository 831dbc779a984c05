"""Imports: a file of the processor's or of the bank's becomes lines of the city's, all of it or nothing.

    digest      a file that was imported before changes nothing, however often it comes, and whoever brings it
    read        in a thread, some thousands of lines at a time, so that nobody waits for a long file
    attribute   each line to the department and charge whose movement has its reference (`intake`)
    commit      lines, postings, chargebacks, what the file comes to and the audit row, in one commit

One import is written at a time; the others wait for it. Whatever happens before the commit, a line that cannot be
right, a lost connection, a caller who is gone, leaves nothing behind but the audit row of a refusal.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import date, datetime
from itertools import islice
from typing import BinaryIO, Protocol
from zoneinfo import ZoneInfo

from gateway.errors import FileRefused, NotFound, NotPermitted, Unavailable
from gateway.formats import Kind, open_format
from gateway.rules.ids import new_id
from gateway.rules.settlement import DepositLine, SettlementLine
from gateway.rules.staff import EVERYWHERE, Permission, Staff
from gateway.services.intake import Book, DepositIntake, SettlementIntake, Sums, dates_of
from gateway.services.ports import Clock, CommitUnknown
from gateway.services.reach import Reach
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome

Progress = Callable[[int], None]
"""Told how many lines were read."""

Chunk = Sequence[SettlementLine | DepositLine]

CHUNK = 2_000
"""Lines that are read, and written, at once: some hundredths of a second, in which pages wait."""
BLOCK_BYTES = 1024 * 1024
SHOWN_MAX = 200
"""How many imports, or lines, a list holds at most."""

FOR_ALL_ONLY = (
    "A file holds lines of every department. Only somebody whose grant is for all departments can import it."
)
CALLED: Mapping[Kind, str] = {"settlement": "settlement file", "deposit": "bank statement"}
UNCERTAIN = "It is not known whether the file was imported. Import it again: it will not count twice."


@dataclass(frozen=True, slots=True)
class Imported:
    """What a file came to. Amounts are minor units; of a statement, net and gross are the sum of its lines."""

    id: str
    kind: Kind
    format: str
    lines: int
    gross_minor: int
    fee_minor: int
    net_minor: int
    currency: str
    already_imported: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """The row of an import."""

    imported: Imported
    sha256: bytes
    settled_on: Sequence[date]
    staff_id: str
    imported_at: datetime


@dataclass(frozen=True, slots=True)
class ImportShown:
    """An import as a list has it: of somebody's departments, lines and amounts of these only."""

    import_id: str
    kind: Kind
    format: str
    lines: int
    gross_minor: int
    fee_minor: int
    net_minor: int
    currency: str
    settled_on: Sequence[date]
    imported_by: str
    """A username, or `inbox`."""
    imported_at: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """What of a settlement is of one department and batch."""

    department: str
    batch: str
    lines: int
    gross_minor: int
    fee_minor: int
    net_minor: int


@dataclass(frozen=True, slots=True)
class LineShown:
    """A line of a settlement and where it belongs."""

    department: str
    charge_id: str | None
    line: SettlementLine
    business_date: date


class ImportBook(Book, Protocol):
    """One import's transaction."""

    async def earlier(self, sha256: bytes) -> Imported | None:
        """The import of these very bytes, if there is one; until the transaction ends, nobody else imports."""

    async def finish(self, header: Header, audit: AuditRow) -> None:
        """What the file came to, and the audit row; what was written must hold together now."""


class ImportStore(Protocol):
    """Where imports are kept."""

    def writing(self, departments: Collection[str]) -> AbstractAsyncContextManager[ImportBook]:
        """A transaction, committed on leaving. Raises `Unavailable` and `CommitUnknown`."""

    async def record(self, audit: AuditRow) -> None:
        """Write one audit row."""

    async def imports(
        self, departments: Collection[str], kind: Kind, limit: int, after: str | None
    ) -> Sequence[ImportShown]:
        """Those that hold lines of these departments, newest first."""

    async def one(self, departments: Collection[str], kind: Kind, import_id: str) -> ImportShown | None:
        """One of them."""

    async def parts(self, departments: Collection[str], import_id: str) -> Sequence[Part]:
        """Of a settlement, by department and batch."""

    async def settlement_lines(
        self, departments: Collection[str], import_id: str, limit: int, after: int
    ) -> Sequence[LineShown]:
        """Those behind a line of the file, in its order."""

    async def deposit_lines(
        self, departments: Collection[str], import_id: str, limit: int, after: int
    ) -> Sequence[DepositLine]:
        """The same of a statement."""


class Imports:
    """Takes files in, and shows what they held."""

    def __init__(self, store: ImportStore, reach: Reach, pen: AuditPen, clock: Clock, city: ZoneInfo) -> None:
        self._store = store
        self._reach = reach
        self._pen = pen
        self._clock = clock
        self._city = city

    def require(self, staff: Staff, kind: Kind, name: str) -> None:
        """Raises `NotPermitted` for who may not import, and `InvalidRequest` where there is no such format."""
        staff.require(Permission.IMPORTS_MAKE)
        if EVERYWHERE not in staff.departments:
            raise NotPermitted(FOR_ALL_ONLY)
        open_format(kind, name)

    async def take(
        self, staff: Staff, kind: Kind, name: str, source: BinaryIO, request_id: str, progress: Progress
    ) -> Imported:
        """Import a file that lies ready, read in the format of this name; `progress` hears of it now and then.

        Raises:
            NotPermitted: this needs the permission, and a grant for all departments.
            InvalidRequest: there is no such format.
            FileRefused: the file has a line, or a total, that cannot be right.
            Unavailable: also where the commit was lost; to try again does no harm.
        """
        self.require(staff, kind, name)
        sha256 = await asyncio.to_thread(_digest, source)
        try:
            return await self._import(staff, kind, name, source, sha256, request_id, progress)
        except FileRefused:
            await self._store.record(self._row("import.refused", Outcome.REFUSED, staff, "", kind, request_id))
            raise
        except CommitUnknown:
            raise Unavailable(UNCERTAIN) from None

    async def _import(
        self,
        staff: Staff,
        kind: Kind,
        name: str,
        source: BinaryIO,
        sha256: bytes,
        request_id: str,
        progress: Progress,
    ) -> Imported:
        departments = await self._reach.of(staff)
        import_id = new_id("im")
        async with self._store.writing(departments) as book:
            earlier = await book.earlier(sha256)
            if earlier is not None:
                return _the_same(earlier, kind)
            sums = await self._read(book, import_id, kind, name, source, departments, progress)
            imported = Imported(
                *(import_id, kind, name, sums.lines, sums.gross_minor, sums.fee_minor),
                *(sums.gross_minor - sums.fee_minor, sums.currency),
            )
            row = self._row(f"{kind}.imported", Outcome.DONE, staff, import_id, name, request_id)
            await book.finish(Header(imported, sha256, sorted(sums.days), staff.staff_id, row.occurred_at), row)
        return imported

    async def _read(
        self,
        book: ImportBook,
        import_id: str,
        kind: Kind,
        name: str,
        source: BinaryIO,
        departments: Collection[str],
        progress: Progress,
    ) -> Sums:
        """All lines of the file, written as they come."""
        dates = dates_of(self._city, await book.cutoffs(), await book.closed())
        intake: SettlementIntake | DepositIntake
        if kind == "settlement":
            intake = SettlementIntake(book, import_id, dates, departments)
        else:
            intake = DepositIntake(book, import_id, dates)
        source.seek(0)
        async with aclosing(_chunks(iter(open_format(kind, name).read(source)))) as chunks:
            async for chunk in chunks:
                await intake.add(chunk)
                progress(intake.sums.lines)
        await intake.end()
        return intake.sums

    async def imports(
        self, staff: Staff, kind: Kind, limit: int = SHOWN_MAX, after: str | None = None
    ) -> Sequence[ImportShown]:
        """Newest first, at most one more than `limit`; for who has some departments, those with lines of these."""
        staff.require(Permission.LEDGER_READ)
        return await self._store.imports(await self._reach.of(staff), kind, limit + 1, after)

    async def one(self, staff: Staff, kind: Kind, import_id: str) -> tuple[ImportShown, Sequence[Part]]:
        """An import, and of a settlement what is whose; raises `NotFound` where nothing is of the own departments."""
        staff.require(Permission.LEDGER_READ)
        departments = await self._reach.of(staff)
        shown = await self._store.one(departments, kind, import_id)
        if shown is None:
            raise NotFound
        return shown, await self._store.parts(departments, import_id) if kind == "settlement" else ()

    async def settlement_lines(
        self, staff: Staff, import_id: str, limit: int = SHOWN_MAX, after: int = 0
    ) -> Sequence[LineShown]:
        """Those of the own departments behind a line, at most one more than `limit`; raises `NotFound`."""
        await self.one(staff, "settlement", import_id)
        return await self._store.settlement_lines(await self._reach.of(staff), import_id, limit + 1, after)

    async def deposit_lines(
        self, staff: Staff, import_id: str, limit: int = SHOWN_MAX, after: int = 0
    ) -> Sequence[DepositLine]:
        """The same of a statement, which is the whole city's."""
        await self.one(staff, "deposit", import_id)
        return await self._store.deposit_lines(await self._reach.of(staff), import_id, limit + 1, after)

    def _row(
        self, event: str, outcome: Outcome, staff: Staff, subject: str, reason: str, request_id: str
    ) -> AuditRow:
        told = AuditEvent(CITY, event, outcome, staff.staff_id, subject, reason, request_id)
        return self._pen.row(told, self._clock.now())


def _the_same(earlier: Imported, kind: Kind) -> Imported:
    """What a file came to when it was brought before; raises `FileRefused` where it was brought as another thing."""
    if earlier.kind != kind:
        raise FileRefused(f"This very file was imported before, as a {CALLED[earlier.kind]}.")
    return earlier


def _digest(source: BinaryIO) -> bytes:
    source.seek(0)
    digest = hashlib.sha256()
    while block := source.read(BLOCK_BYTES):
        digest.update(block)
    return digest.digest()


async def _chunks(lines: Iterator[SettlementLine | DepositLine]) -> AsyncGenerator[Chunk, None]:
    """Of so many lines each; while one is written the next one is read."""
    reading = asyncio.ensure_future(asyncio.to_thread(_next, lines))
    try:
        while chunk := await asyncio.shield(reading):
            reading = asyncio.ensure_future(asyncio.to_thread(_next, lines))
            yield chunk
    finally:
        # Nobody may close the file under the thread that reads it; what it finds interests nobody any more.
        await asyncio.gather(reading, return_exceptions=True)


def _next(lines: Iterator[SettlementLine | DepositLine]) -> Chunk:
    return list(islice(lines, CHUNK))
