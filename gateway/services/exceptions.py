"""Exceptions: what a reconciliation found to differ, until it was said why; above a limit a colleague agrees, too.

    open      resolve -> settled (within the limit) or proposed (above it) · a later run finds it no more -> cleared
    proposed  approve -> settled · reject -> open; whoever does it is not who proposed
    settled   reopen -> open, while its business date is not closed

Nothing is ever changed: each act is a row of its own, numbered, so that of two who act at once one is told that
somebody was faster. What a resolution takes off the books is posted in the same transaction:

    written_off, recorded_elsewhere   the money will never come, or go, by itself: it moves to over_short
    all others                        a later line of processor or bank will say it, and nothing is posted now
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from gateway.errors import AlreadyDecided, InvalidRequest, NotFound, NotPermitted, Unavailable
from gateway.rules.card import Brands
from gateway.rules.chargebacks import Stage
from gateway.rules.journal import Account, Entry
from gateway.rules.match import DEPOSIT, State
from gateway.rules.postings import correction, forgiven
from gateway.rules.settlement import LineKind
from gateway.rules.staff import Permission, Staff
from gateway.services.ports import Clock, CommitUnknown
from gateway.services.reach import Reach
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome

NOTE_MAX = 500
Status = Literal["open", "proposed", "settled", "cleared"]
What = Literal["taken", "proposed", "resolved", "approved", "rejected", "cleared", "reopened"]

STATUSES: Mapping[str, Status] = {
    "": "open",
    "taken": "open",
    "rejected": "open",
    "reopened": "open",
    "proposed": "proposed",
    "resolved": "settled",
    "approved": "settled",
    "cleared": "cleared",
}
"""Where an exception stands, by its last act; the first is without one."""


class Resolution(StrEnum):
    """Why an exception needs nothing more: a closed list."""

    WRITTEN_OFF = "written_off"
    PROCESSOR_ERROR = "processor_error"
    CORRECTED_AT_PROCESSOR = "corrected_at_processor"
    BANK_ERROR = "bank_error"
    DUPLICATE_CONFIRMED = "duplicate_confirmed"
    CHARGEBACK_ACCEPTED = "chargeback_accepted"
    TIMING = "timing"
    RECORDED_ELSEWHERE = "recorded_elsewhere"
    OTHER = "other"


WRITES_OFF = frozenset({Resolution.WRITTEN_OFF, Resolution.RECORDED_ELSEWHERE})
"""What ends an amount for good: it is posted."""

STAYS_IN: Mapping[str, Account] = {
    LineKind.CHARGE: Account.PROCESSOR_DUE,
    LineKind.REFUND: Account.PROCESSOR_DUE,
    LineKind.CHARGEBACK: Account.CHARGEBACKS,
    DEPOSIT: Account.CLEARING,
}
"""In which account a difference stays until it is written off, by its kind. An adjustment is over_short already."""


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did about an exception. `by` is their username, where there is an account of that id."""

    number: int
    what: What
    resolution: str
    note: str
    staff_id: str
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """An exception, with its acts in order. `difference_minor` is what processor or bank has more than the ledger."""

    department: str
    exception_id: str
    reconciliation_id: str
    state: str
    reason: str
    kind: str
    charge_id: str | None
    reference: str
    difference_minor: int
    currency: str
    business_date: date
    found_at: datetime
    acts: tuple[Act, ...] = ()

    @property
    def status(self) -> Status:
        """Where it stands."""
        return STATUSES[self.acts[-1].what if self.acts else ""]

    @property
    def owner(self) -> Act | None:
        """The act by which somebody made it theirs: took it, or said what it is."""
        return self._last("taken", "proposed", "resolved")

    @property
    def settlement(self) -> Act | None:
        """The act that says what it is, while that holds or waits for an approver."""
        return self._last("proposed", "resolved") if self.status in {"proposed", "settled"} else None

    def _last(self, *what: What) -> Act | None:
        return next((act for act in reversed(self.acts) if act.what in what), None)


@dataclass(frozen=True, slots=True)
class FoundItem:
    """What one run said of it. Amounts are minor units, None where that side knows nothing.

    `made_at` is None of a run that covers departments that one does not see.
    """

    reconciliation_id: str
    made_at: datetime | None
    state: str
    reason: str
    reference: str
    kind: str
    ledger_minor: int | None
    settled_minor: int | None
    deposited_minor: int | None
    fee_minor: int | None
    expected_fee_minor: int | None
    currency: str
    batch: str


@dataclass(frozen=True, slots=True)
class Sought:
    """Which exceptions are asked for. `owner` is a username.

    `to_settle`: those that hinder a close, so no matter of time where no `state` is asked for.
    """

    status: Status | None = None
    state: str | None = None
    department: str | None = None
    owner: str | None = None
    first: date | None = None
    last: date | None = None
    to_settle: bool = False


@dataclass(frozen=True, slots=True)
class Acted:
    """An act as it is to be written, with what it posts. `number` is one more than the last act that was seen."""

    number: int
    what: What
    resolution: str
    note: str
    staff_id: str
    entries: Sequence[Entry]
    only_open_date: bool
    """Refuse it where the exception's date is closed."""


@dataclass(frozen=True, slots=True)
class Charged:
    """What a charge came to that a chargeback is about."""

    captured_minor: int
    convenience_fee_minor: int


class ExceptionStore(Protocol):
    """What the admin process keeps of exceptions."""

    async def page(
        self, departments: Collection[str], sought: Sought, limit: int, after: str | None
    ) -> Sequence[Difference]:
        """Those of these departments, oldest business date first, from the one after `after` on."""

    async def one(self, departments: Collection[str], exception_id: str) -> Difference | None:
        """One of these departments'."""

    async def items(self, departments: Collection[str], exception: Difference) -> Sequence[FoundItem]:
        """What the latest runs said of it, newest first, as somebody of these departments sees it."""

    async def disputed(self, exception: Difference) -> Charged | None:
        """The charge, if the line of the exception made a stage of its chargeback."""

    async def act(self, exception: Difference, acted: Acted, audit: AuditRow) -> bool:
        """Commit an act, what it posts and its audit row; False, and none of it, where somebody was faster.

        Entries go to the exception's date, or where that is closed to the next open one. Raises `PeriodClosed`.
        """


class Exceptions:
    """Shows staff what differs, and takes their word on it."""

    def __init__(
        self,
        store: ExceptionStore,
        reach: Reach,
        pen: AuditPen,
        clock: Clock,
        *,
        brands: Brands,
        city: ZoneInfo,
        alone_minor_max: int,
    ) -> None:
        """`alone_minor_max` is the largest difference that one person may settle alone, either way."""
        self._store = store
        self._reach = reach
        self._pen = pen
        self._clock = clock
        self._brands = brands
        self._city = city
        self._alone_minor_max = alone_minor_max

    async def departments(self, staff: Staff) -> Collection[str]:
        """Those whose exceptions the grant reaches."""
        return await self._reach.of(staff)

    def age_days(self, exception: Difference) -> int:
        """How long ago its business date was, in the city's days."""
        return (self._clock.now().astimezone(self._city).date() - exception.business_date).days

    def settles_alone(self, exception: Difference) -> bool:
        """Whether one person may settle it."""
        return abs(exception.difference_minor) <= self._alone_minor_max

    async def page(
        self, staff: Staff, sought: Sought, limit: int, after: str | None = None
    ) -> tuple[Sequence[Difference], bool]:
        """At most `limit`, and whether there are more. Raises `NotPermitted`, or `NotFound` for a department."""
        staff.require(Permission.LEDGER_READ)
        departments = await self._departments(staff, sought.department)
        found = await self._store.page(departments, sought, limit + 1, after)
        return found[:limit], len(found) > limit

    async def get(self, staff: Staff, exception_id: str) -> Difference:
        """One of the departments of a grant; raises `NotFound`."""
        staff.require(Permission.LEDGER_READ)
        found = await self._store.one(await self._reach.of(staff), exception_id)
        if found is None:
            raise NotFound
        return found

    async def items(self, staff: Staff, exception_id: str) -> Sequence[FoundItem]:
        """What the runs said of it, newest first; raises `NotFound`."""
        exception = await self.get(staff, exception_id)
        return await self._store.items(await self._reach.of(staff), exception)

    async def take(self, staff: Staff, exception_id: str, request_id: str) -> Difference:
        """Make an open one one's own, whosever it was. Raises as `resolve` does."""
        staff.require(Permission.EXCEPTIONS_RESOLVE)
        exception = await self.get(staff, exception_id)
        _require(exception, "open")
        if (owner := exception.owner) and owner.what == "taken" and owner.staff_id == staff.staff_id:
            raise AlreadyDecided("It is yours already.")
        return await self._act(staff, exception, "taken", request_id)

    async def resolve(
        self, staff: Staff, exception_id: str, resolution: Resolution, note: str, request_id: str
    ) -> Difference:
        """Say why nothing more is needed; above the limit that waits for an approver.

        Raises:
            NotPermitted: this is nothing for the roles of the account.
            NotFound: no such exception, or one of a department that the grant does not reach.
            InvalidRequest: `other` without a note, or a note that cannot be printed.
            CardNumberInText: the note holds one.
            AlreadyDecided: somebody was faster.
            Unavailable: also where the commit was lost, and nobody knows.
        """
        staff.require(Permission.EXCEPTIONS_RESOLVE)
        self._require_note(note)
        if resolution is Resolution.OTHER and not note.strip():
            raise InvalidRequest("`other` takes a note that says what it is.", ["/note"])
        exception = await self.get(staff, exception_id)
        _require(exception, "open")
        what: What = "resolved" if self.settles_alone(exception) else "proposed"
        return await self._act(staff, exception, what, request_id, resolution, note)

    async def approve(self, staff: Staff, exception_id: str, note: str, request_id: str) -> Difference:
        """Agree with what a colleague has proposed. Raises as `resolve` does; one's own is `NotPermitted`."""
        return await self._answer(staff, exception_id, "approved", note, request_id)

    async def reject(self, staff: Staff, exception_id: str, note: str, request_id: str) -> Difference:
        """Do not agree: it is open again. Raises as `approve` does."""
        return await self._answer(staff, exception_id, "rejected", note, request_id)

    async def reopen(self, staff: Staff, exception_id: str, note: str, request_id: str) -> Difference:
        """Take a settlement back, with a note that says why, and what it posted; raises `PeriodClosed`, too."""
        staff.require(Permission.EXCEPTIONS_RESOLVE)
        self._require_note(note)
        if not note.strip():
            raise InvalidRequest("Say in a note why it is opened again.", ["/note"])
        exception = await self.get(staff, exception_id)
        _require(exception, "settled")
        return await self._act(staff, exception, "reopened", request_id, note=note)

    async def _answer(
        self, staff: Staff, exception_id: str, what: Literal["approved", "rejected"], note: str, request_id: str
    ) -> Difference:
        staff.require(Permission.EXCEPTIONS_APPROVE)
        self._require_note(note)
        exception = await self.get(staff, exception_id)
        _require(exception, "proposed")
        if exception.acts[-1].staff_id == staff.staff_id:
            raise NotPermitted("You have proposed this yourself: somebody else decides about it.")
        return await self._act(staff, exception, what, request_id, exception.acts[-1].resolution, note)

    async def _act(
        self, staff: Staff, exception: Difference, what: What, request_id: str, resolution: str = "", note: str = ""
    ) -> Difference:
        stood = await self._store.disputed(exception) if exception.kind == LineKind.CHARGEBACK else None
        entries = _entries(exception, stood, what, resolution)
        acted = Acted(
            len(exception.acts) + 1,
            what,
            resolution,
            note,
            staff.staff_id,
            entries,
            only_open_date=what == "reopened",
        )
        told = AuditEvent(
            *(exception.department, f"exception.{what}", Outcome.DONE, staff.staff_id, exception.exception_id),
            *(resolution, request_id),
        )
        try:
            done = await self._store.act(exception, acted, self._pen.row(told, self._clock.now()))
        except CommitUnknown:
            raise Unavailable("It is not known whether this was written down: look where it stands.") from None
        if not done:
            raise AlreadyDecided("Somebody was faster: look where it stands now.")
        return await self.get(staff, exception.exception_id)

    def _require_note(self, note: str) -> None:
        require_note(self._brands, note, "/note")

    async def _departments(self, staff: Staff, department: str | None) -> frozenset[str]:
        reached = await self._reach.of(staff)
        if department is None:
            return reached
        if department not in reached:
            raise NotFound
        return frozenset({department})


def written_off(exception: Difference, stood: Charged | None) -> Sequence[Entry]:
    """What it takes to leave a difference be: what stayed of it in some account goes to over_short.

    Nothing stayed of a fee that differs (`fees` has what was taken), nor between two currencies. A chargeback that
    made a stage of a charge (`stood`) is owed again by the resident: that is forgiven. Any other stayed where it was.
    """
    if stood is not None and exception.state != State.DUPLICATE:
        stage = Stage.OPENED if exception.difference_minor < 0 else Stage.WON
        return forgiven(stage, abs(exception.difference_minor), stood.captured_minor, stood.convenience_fee_minor)
    account = STAYS_IN.get(exception.kind)
    if account is None or exception.state == State.FEE_DIFFERS or exception.reason == "currency_differs":
        return ()
    return correction(account, exception.difference_minor)


def _entries(exception: Difference, stood: Charged | None, what: What, resolution: str) -> Sequence[Entry]:
    """What an act posts: a settlement that writes something off does, and taking it back is its mirror image."""
    if what in {"resolved", "approved"} and resolution in WRITES_OFF:
        return written_off(exception, stood)
    settled = exception.settlement
    if what == "reopened" and settled and settled.resolution in WRITES_OFF:
        return [replace(entry, debit=entry.credit, credit=entry.debit) for entry in written_off(exception, stood)]
    return ()


def require_note(brands: Brands, note: str, pointer: str) -> None:
    """What somebody types as a reason: raises `InvalidRequest`, or `CardNumberInText`."""
    if len(note) > NOTE_MAX or not all(each.isprintable() or each in "\r\n" for each in note):
        raise InvalidRequest(f"It has at most {NOTE_MAX} characters, all of which can be printed.", [pointer])
    brands.require_none(pointer, note)


def _require(exception: Difference, status: Status) -> None:
    if exception.status != status:
        raise AlreadyDecided(f"This can be done with an exception that is {status}; this one is {exception.status}.")
