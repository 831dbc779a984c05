"""Exports: charges, a reconciliation or the journal as a file for a spreadsheet, of the departments of a grant.

The file is written whole into a private place first, so that it goes out with its length and its hash, and its audit
row is there before its first byte leaves. It is gone when it was sent, or could not be. What it holds is read at one
moment. It has no card number, no sealed column and nothing else that a resident typed.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar
from zoneinfo import ZoneInfo

from gateway.errors import InvalidRequest, NotFound, PeriodRefused, Unavailable
from gateway.rules.calendar import require_period
from gateway.rules.gl import split
from gateway.rules.ids import new_id
from gateway.rules.staff import Permission, Staff
from gateway.services.books import Books, BookStore, Span, books_of
from gateway.services.charge_search import Row
from gateway.services.looks import Looks
from gateway.services.reach import Reach
from gateway.services.scratch import scratch
from gateway.services.sheets import SHEETS, Cell, Column, SheetFormat, Sums

ROWS_MAX = 1_000_000
AT_ONCE_MAX = 2
"""Each has a file of its own on the disk while it is made and sent."""

ExportKind = Literal["charges", "reconciliation", "journal"]

T = TypeVar("T")
Rows = AsyncGenerator[Iterable[Sequence[Cell]], None]
"""Rows of a sheet, some thousand at a time."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be exported: charges and journal by business dates, a reconciliation by its id."""

    kind: ExportKind
    format: SheetFormat
    first: date | None
    last: date | None
    department: str | None
    reconciliation_id: str | None


@dataclass(frozen=True, slots=True)
class Export:
    """A file that is whole, until the context is left that it came from."""

    path: Path
    name: str
    """Under which it is offered: letters, digits, `_`, `-` and a full stop."""
    format: SheetFormat
    size_bytes: int
    sha256: bytes
    rows: int


class Entry(NamedTuple):
    """A line of the journal, or a posting, which has a business date of its own and no charge."""

    department: str
    recorded_at: datetime
    day: date | None
    source: str
    entry_id: str
    charge_id: str
    reference: str
    debit: str
    credit: str
    amount_minor: int
    currency: str
    service: str | None


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Of which departments and dates a reconciliation is."""

    departments: Sequence[str]
    first: date
    last: date


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a reconciliation; amounts are signed minor units."""

    department: str
    state: str
    reason: str
    charge_id: str | None
    reference: str
    kind: str
    ledger_minor: int | None
    settled_minor: int | None
    deposited_minor: int | None
    difference_minor: int
    fee_minor: int | None
    expected_fee_minor: int | None
    currency: str
    batch: str
    business_date: date
    exception_id: str | None


class ExportStore(Protocol):
    """What is read, each at one moment, some thousand rows at a time."""

    def charges(self, departments: Collection[str], spans: Sequence[Span]) -> AsyncGenerator[list[Row], None]:
        """The charges that were made in these spans."""

    def journal(
        self, departments: Collection[str], spans: Sequence[Span], first: date, last: date
    ) -> AsyncGenerator[list[Entry], None]:
        """What was recorded of movements in these spans, and posted to these business dates."""

    async def reconciled(self, departments: Collection[str], reconciliation_id: str) -> Reconciled | None:
        """A reconciliation whose departments are all among these."""

    def items(self, departments: Collection[str], reconciliation_id: str) -> AsyncGenerator[list[Item], None]:
        """The items of a reconciliation."""


def _columns(names: str) -> tuple[Column, ...]:
    """A name that ends with `$` is a column of amounts."""
    return tuple(Column(name.rstrip("$"), is_amount=name.endswith("$")) for name in names.split())


COLUMNS = {
    "charges": _columns(
        "date created charge department service gl_codes reference processor_reference status currency"
        " amount$ convenience_fee$ captured$ refunded$ brand last4 chargeback"
    ),
    "reconciliation": _columns(
        "date department state reason kind charge reference batch currency"
        " ledger$ settled$ deposited$ difference$ fee$ expected_fee$ exception"
    ),
    "journal": _columns(
        "date recorded department source entry charge reference debit credit gl_code currency amount$"
    ),
}
"""In this order for ever; a new one comes last."""


class Exports:
    """Makes files for staff."""

    def __init__(self, store: ExportStore, books: BookStore, reach: Reach, looks: Looks, zone: ZoneInfo) -> None:
        self._store = store
        self._books = books
        self._reach = reach
        self._looks = looks
        self._zone = zone
        self._being_made = 0

    @asynccontextmanager
    async def make(self, staff: Staff, order: Order, request_id: str) -> AsyncIterator[Export]:
        """The file, for as long as the context lasts.

        Raises:
            NotPermitted: this is nothing for the roles of the account.
            NotFound: a department, or a reconciliation, that the grant does not reach whole.
            PeriodRefused: no dates, or too many.
            InvalidRequest: a reconciliation without its id.
            ExportTooLarge: more than `ROWS_MAX` rows.
            Unavailable: others are being made, or it could not be written down that this one is.
        """
        staff.require(Permission.EXPORTS_MAKE)
        departments = await self._reach.of(staff, order.department)
        first, last, pages = await self._ordered(order, departments)
        with self._place(), scratch() as folder:
            path = folder / f"export.{order.format}"
            rows = await _write(order, path, pages)
            digest = await asyncio.to_thread(_sha256, path)
            told = f"{order.kind}.{order.format}.{rows}"
            await self._looks.note(staff, departments, "export.made", told, request_id, new_id("exp"))
            name = f"{order.kind}_{first}_{last}.{order.format}"
            yield Export(path, name, order.format, path.stat().st_size, digest, rows)

    async def _ordered(self, order: Order, departments: Collection[str]) -> tuple[date, date, Rows]:
        """From which date to which, and the rows."""
        if order.kind == "reconciliation":
            if order.reconciliation_id is None:
                raise InvalidRequest("Name the reconciliation: `id`.", ["/id"])
            made = await self._store.reconciled(departments, order.reconciliation_id)
            if made is None:
                raise NotFound
            found = self._store.items(made.departments, order.reconciliation_id)
            return made.first, made.last, _rows(found, _item)
        first, last = order.first, order.last
        if first is None or last is None:
            raise PeriodRefused("Say from which business date to which.", ["/from", "/to"])
        require_period(first, last)
        books = await books_of(self._books, departments, self._zone)
        spans = books.spans(departments, first, last, None, None)
        if order.kind == "charges":
            charges = self._store.charges(departments, spans)
            return first, last, _rows(charges, lambda row: _charge(row, books))
        entries = self._store.journal(departments, spans, first, last)
        return first, last, _rows(entries, lambda entry: _entry(entry, books))

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._being_made >= AT_ONCE_MAX:
            raise Unavailable(f"{AT_ONCE_MAX} exports are being made at this moment. Wait until one of them is done.")
        self._being_made += 1
        try:
            yield
        finally:
            self._being_made -= 1


async def _write(order: Order, path: Path, pages: Rows) -> int:
    """All rows, in a thread of their own, while others are served; gives how many. Raises `ExportTooLarge`."""
    columns = COLUMNS[order.kind]
    sums = Sums(columns, ROWS_MAX)
    sheet = SHEETS[order.format](path, columns, sums)
    try:
        async with aclosing(pages):
            async for page in pages:
                await asyncio.to_thread(sheet.add, page)
        await asyncio.to_thread(sheet.end)
    except BaseException:
        sheet.abandon()
        raise
    return sums.rows


async def _rows(pages: AsyncGenerator[list[T], None], rows_of: Callable[[T], list[list[Cell]]]) -> Rows:
    """The rows of each page; they are made where they are written."""
    async with aclosing(pages):
        async for page in pages:
            yield (row for one in page for row in rows_of(one))


def _charge(row: Row, books: Books) -> list[list[Cell]]:
    day = books.calendar.business_date(row.department, row.created_at)
    codes = " + ".join(books.codes(row.department, row.service, day))
    texts: list[Cell] = [day.isoformat(), _utc(row.created_at), row.charge_id, row.department, row.service, codes]
    texts += [row.reference, row.processor_reference, row.status, row.currency]
    amounts = [row.amount_minor, row.convenience_fee_minor, row.captured_minor, row.refunded_minor]
    return [[*texts, *amounts, row.brand, row.last4, row.chargeback]]


def _entry(entry: Entry, books: Books) -> list[list[Cell]]:
    """A row for each general-ledger code that has a part of it; a service's codes are those of its own date."""
    day = entry.day or books.calendar.business_date(entry.department, entry.recorded_at)
    texts = [day.isoformat(), _utc(entry.recorded_at), entry.department, entry.source, entry.entry_id]
    texts += [entry.charge_id, entry.reference, entry.debit, entry.credit]
    parts = split(entry.amount_minor, books.chart.shares(entry.department, entry.service, day))
    return [[*texts, gl_code, entry.currency, part] for gl_code, part in parts if part]


def _item(item: Item) -> list[list[Cell]]:
    texts = [item.business_date.isoformat(), item.department, item.state, item.reason, item.kind, item.charge_id]
    amounts = [item.ledger_minor, item.settled_minor, item.deposited_minor, item.difference_minor]
    amounts += [item.fee_minor, item.expected_fee_minor]
    return [[*texts, item.reference, item.batch, item.currency, *amounts, item.exception_id]]


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
