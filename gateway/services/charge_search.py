"""Charges as finance looks for them, and everything that is known of one of them.

They are found by business date, department, service, general-ledger code, status, amount, last four digits and
reference. A charge is of the business date on which it was made, for that is when the resident has paid. Nobody finds
one by a card number: a question that holds one is refused, and written down nowhere.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from typing import Literal, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from gateway.errors import InvalidRequest, NotFound
from gateway.rules.card import Brands
from gateway.rules.lifecycle import MEANINGS, Kind, Progress, RefundStatus, Status
from gateway.rules.staff import PERMISSIONS, Permission, Staff
from gateway.services.books import Books, Kept, Span
from gateway.services.reach import Reach

STATES: Mapping[str, Sequence[str]] = {
    status: [
        f"{kind} {progress}"
        for (kind, progress), meaning in MEANINGS.items()
        if kind is not Kind.REFUND and meaning.status == status
    ]
    for status in dict.fromkeys(meaning.status for (kind, _), meaning in MEANINGS.items() if kind is not Kind.REFUND)
}
"""Every public status of a charge, with the kinds and progress that it stands for, as `sale done`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for; what is None is not asked. Dates are business dates, both included.

    `limit` is how many are wanted at most; `starting_after` is the last charge of the page before.
    """

    limit: int
    first: date | None = None
    last: date | None = None
    department: str | None = None
    service: str | None = None
    gl_code: str | None = None
    status: str | None = None
    amount_minor: int | None = None
    last4: str | None = None
    reference: str | None = None
    """The application's, the processor's, or a movement's own."""
    starting_after: str | None = None

    @property
    def texts(self) -> list[str]:
        """All that somebody typed."""
        given = (self.department, self.service, self.gl_code, self.status, self.reference, self.starting_after)
        return [text for text in (*given, self.last4) if text is not None]


class Row(NamedTuple):
    """A charge as the store has it."""

    department: str
    charge_id: str
    amount_minor: int
    currency: str
    convenience_fee_minor: int
    service: str | None
    reference: str
    processor_reference: str
    kind: str
    progress: str
    captured_minor: int
    refunded_minor: int
    created_at: datetime
    brand: str | None
    last4: str | None
    """None, as the brand, once the card is erased."""
    chargeback: Literal["opened", "won"] | None
    """Its last stage."""

    @property
    def status(self) -> Status | RefundStatus:
        """The public one."""
        return MEANINGS[Kind(self.kind), Progress(self.progress)].status


class Found(NamedTuple):
    """A charge with the place that it has in the books."""

    charge: Row
    day: date
    """Its business date."""
    gl_codes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Step:
    """Something that became known of a charge.

    What `name` and `state` say depends on `what`:

    charge      made
    movement    its kind, and where it stands now
    approval    what an approver said of a refund
    journal     the account that is debited, and the one that is credited
    settlement  the kind of the processor's line; `note` is the batch, `day` when it was settled
    deposit     the bank's type code; `note` is the batch, `day` when the bank had it
    chargeback  its stage
    exception   what differs and why; or what somebody did about it, and how it is resolved
    audit       the event and its outcome; `note` is the reason
    """

    at: datetime
    what: str
    name: str
    state: str
    amount_minor: int | None
    fee_minor: int | None
    currency: str
    reference: str
    who: str
    note: str
    day: date | None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first."""

    found: Sequence[Found]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """A question as the store takes it."""

    spans: Sequence[Span]
    states: Sequence[str] | None
    question: Question = field(repr=False)


class Look(Protocol):
    """What is read of the ledger, all in one transaction."""

    async def kept(self, departments: Collection[str]) -> Kept:
        """The books of these departments."""

    async def search(self, departments: Collection[str], wanted: Filter, limit: int) -> Sequence[Row]:
        """Newest first; raises `NotFound` when `starting_after` is no charge of these departments."""

    async def charge(self, departments: Collection[str], charge_id: str) -> Row | None:
        """One of these departments'."""

    async def story(self, charge: Row, *, audit: bool) -> Sequence[Step]:
        """What became known of it, oldest first; what the audit log has of it only with `audit`."""


class ChargeStore(Protocol):
    """Where the ledger is."""

    def looking(self, departments: Collection[str]) -> AbstractAsyncContextManager[Look]:
        """A look at what these departments have."""


class ChargeSearch:
    """Finds charges for staff."""

    def __init__(self, store: ChargeStore, reach: Reach, zone: ZoneInfo) -> None:
        self._store = store
        self._reach = reach
        self._zone = zone
        self._brands = Brands.load()

    async def search(self, staff: Staff, question: Question) -> Page:
        """A page of what is asked for.

        Raises:
            NotPermitted: this is nothing for the roles of the account.
            CardNumberInText: a card number stands in the question.
            InvalidRequest: a status that no charge has.
            NotFound: a department that the grant does not reach, or `starting_after` is no charge that it does.
        """
        staff.require(Permission.LEDGER_READ)
        self._brands.require_none("/query", *question.texts)
        if question.status is not None and question.status not in STATES:
            raise InvalidRequest(f"`status` is one of {', '.join(STATES)}.", ["/status"])
        departments = await self._reach.of(staff, question.department)
        async with self._store.looking(departments) as look:
            books = Books(await look.kept(departments), self._zone)
            spans = books.spans(departments, question.first, question.last, question.service, question.gl_code)
            wanted = Filter(spans, None if question.status is None else STATES[question.status], question)
            rows = await look.search(departments, wanted, question.limit + 1)
        return Page(_found(rows[: question.limit], books), len(rows) > question.limit)

    async def story(self, staff: Staff, charge_id: str) -> tuple[Found, Sequence[Step]]:
        """A charge with all that became known of it; raises `NotPermitted` or `NotFound`."""
        staff.require(Permission.LEDGER_READ)
        departments = await self._reach.of(staff)
        audits = any(Permission.AUDIT_READ in PERMISSIONS[role] for role in staff.roles)
        async with self._store.looking(departments) as look:
            charge = await look.charge(departments, charge_id)
            if charge is None:
                raise NotFound
            (found,) = _found([charge], Books(await look.kept([charge.department]), self._zone))
            return found, await look.story(charge, audit=audits)


def _found(rows: Sequence[Row], books: Books) -> list[Found]:
    codes = cache(books.codes)  # a page has many charges of few services and days
    days = [books.calendar.business_date(row.department, row.created_at) for row in rows]
    return [Found(row, day, codes(row.department, row.service, day)) for row, day in zip(rows, days, strict=True)]
