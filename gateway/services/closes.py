"""Closes: a range of business dates that is settled, locked, and proven by a signed pack.

    finance   proposes   the range has ended, a reconciliation of it is made, nothing of it is open     -> proposed
    approver  approves   somebody else; all is looked at again, the dates lock, the pack is signed      -> closed
              rejects                                                                                   -> rejected
    either    asks, with a reason, to open it again                                                     -> reopening
    approver  grants it, or keeps it closed; somebody else than who asked                 -> reopened, or closed again

What comes later for a closed date belongs to the next open one, and a difference that shows there later hinders the
next close. `timing` is no hindrance: it is carried forward, and the pack names it. The pack is not kept, only its
hash and signature: it is made again from what is stored, and where that gives another hash, somebody has changed what
was closed, and the answer says so.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar
from zoneinfo import ZoneInfo

from gateway.errors import (
    AlreadyDecided,
    InvalidRequest,
    NotFound,
    NotPermitted,
    PackDiffers,
    PeriodRefused,
    Unavailable,
)
from gateway.rules.calendar import Calendar, Cutoffs, require_period
from gateway.rules.card import Brands
from gateway.rules.ids import new_id
from gateway.rules.pack import FORMAT, Seal, canonical, public_keys, told
from gateway.rules.staff import PERMISSIONS, Permission, Staff
from gateway.services.exceptions import require_note
from gateway.services.ports import Clock, CommitUnknown
from gateway.services.reach import Reach
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import BrokenSeal
from keys.secret import Secret

T = TypeVar("T")

SETTLES = timedelta(minutes=15)
"""So long after the end of a date the last charge of it is certainly in the ledger."""

Status = Literal["proposed", "closed", "rejected", "reopening", "reopened"]
What = Literal["proposed", "approved", "rejected", "reopening", "reopened", "kept"]

STATUSES: Mapping[What, Status] = {
    "proposed": "proposed",
    "approved": "closed",
    "rejected": "rejected",
    "reopening": "reopening",
    "reopened": "reopened",
    "kept": "closed",
}
"""Where a close stands, by its last act. While it is `reopening` its dates are closed still."""

ASKS_TO_REOPEN = frozenset({Permission.CLOSES_PROPOSE, Permission.CLOSES_APPROVE})
"""One of them is enough to ask."""
ANSWERS: Mapping[What, Status] = {
    "approved": "proposed",
    "rejected": "proposed",
    "reopened": "reopening",
    "kept": "reopening",
}
"""What an approver may say, and of a close that stands how."""


@dataclass(frozen=True, slots=True)
class CloseAct:
    """What somebody did about a close. `seal` is of an approval's pack."""

    number: int
    what: What
    reason: str
    staff_id: str
    by: str
    at: datetime
    seal: Seal | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """A close as somebody of these departments sees it; `whole` who sees all that it covers, and what it came to."""

    close_id: str
    departments: tuple[str, ...]
    first: date
    last: date
    reconciliation_id: str
    whole: bool
    counts: Mapping[str, int]
    totals: Mapping[str, int | str]
    acts: tuple[CloseAct, ...]

    @property
    def status(self) -> Status:
        """Where it stands."""
        return STATUSES[self.acts[-1].what]

    @property
    def approval(self) -> CloseAct | None:
        """The act that closed it, with the seal of the pack."""
        return next((act for act in self.acts if act.what == "approved"), None)


@dataclass(frozen=True, slots=True)
class Proposed:
    """A close as it is to be written."""

    close_id: str
    departments: Collection[str]
    first: date
    last: date
    reconciliation_id: str
    staff_id: str


@dataclass(frozen=True, slots=True)
class Acted:
    """An act as it is to be written. `number` is one more than the last act that was seen."""

    number: int
    what: What
    reason: str
    staff_id: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the database holds of a close at a moment, ready for JSON; see `store/closes.sql`."""

    at: datetime
    content: Mapping[str, Any]


Intervals = Mapping[str, tuple[datetime, datetime]]
"""By department: from when, until when the dates of a close are."""


class CloseStore(Protocol):
    """What the admin process keeps of closes."""

    async def cutoffs(self, departments: Collection[str]) -> Cutoffs:
        """When the dates of these departments end."""

    async def page(self, departments: Collection[str], limit: int, after: str | None) -> Sequence[Close]:
        """Those of these departments, latest dates first, from the one after `after` on."""

    async def one(self, departments: Collection[str], close_id: str) -> Close | None:
        """One of these departments'."""

    async def require_free(self, departments: Collection[str], first: date, last: date) -> None:
        """Raises `PeriodClosed` where a close that stands, or is proposed, has one of these dates."""

    async def propose(self, proposed: Proposed, audit: Sequence[AuditRow]) -> None:
        """Commit a proposal and its audit rows. Raises `PeriodClosed` or `ExceptionsOpen`, with nothing written."""

    async def approve(
        self,
        close: Close,
        acted: Acted,
        intervals: Intervals,
        seal: Callable[[Evidence], Seal],
        audit: Sequence[AuditRow],
    ) -> bool:
        """Look at all of it again, seal it and commit; False, and nothing, where somebody was faster.

        Raises `ExceptionsOpen` where something is open again, or files came that the reconciliation has not seen.
        """

    async def act(self, close: Close, acted: Acted, audit: Sequence[AuditRow]) -> bool:
        """Commit any other act; False, and nothing, where somebody was faster."""

    async def evidence(self, close: Close, at: datetime, intervals: Intervals) -> Evidence:
        """What was stored of it at that moment."""

    async def record(self, audit: Sequence[AuditRow]) -> None:
        """Commit audit rows alone."""


class Matched(Protocol):
    """A reconciliation, as far as a close needs one."""

    @property
    def reconciliation_id(self) -> str:
        """Its id."""


class Matching(Protocol):
    """Who makes reconciliations (`services.reconciliations`)."""

    async def make(self, staff: Staff, first: date, last: date, department: str | None, request_id: str) -> Matched:
        """Compare ledger, settlements and deposits of a range, and keep what came of it."""


SigningKeys = Callable[[], Mapping[int, Secret[bytes]]]
"""The admin process' `close-pack` keys, by number, as they are at this moment."""


class Closes:
    """Proposes, approves and opens again; rebuilds packs."""

    def __init__(
        self,
        store: CloseStore,
        reach: Reach,
        matching: Matching,
        pen: AuditPen,
        clock: Clock,
        *,
        brands: Brands,
        city: ZoneInfo,
        keys: SigningKeys,
    ) -> None:
        self._store = store
        self._reach = reach
        self._matching = matching
        self._pen = pen
        self._clock = clock
        self._brands = brands
        self._city = city
        self._keys = keys

    async def departments(self, staff: Staff) -> Collection[str]:
        """Those for which somebody may propose a close, one at a time or all at once."""
        return (await self._reach.of(staff)) - {CITY}

    async def page(self, staff: Staff, limit: int, after: str | None = None) -> tuple[Sequence[Close], bool]:
        """At most `limit`, latest dates first, and whether there are more."""
        staff.require(Permission.LEDGER_READ)
        found = await self._store.page(await self._reach.of(staff), limit + 1, after)
        return found[:limit], len(found) > limit

    async def get(self, staff: Staff, close_id: str) -> Close:
        """One that covers a department of the grant; raises `NotFound`."""
        staff.require(Permission.LEDGER_READ)
        found = await self._store.one(await self._reach.of(staff), close_id)
        if found is None:
            raise NotFound
        return found

    async def propose(self, staff: Staff, first: date, last: date, department: str | None, request_id: str) -> Close:
        """Propose to close these business dates of one department, or of all that the grant reaches.

        Raises:
            PeriodRefused: no range, or one that has not ended everywhere, a quarter of an hour ago.
            PeriodClosed: a part of it is closed, or proposed to be.
            ExceptionsOpen: something of it is not settled.
            NotPermitted, NotFound: not for this account.
            Unavailable: also where the commit was lost, and nobody knows.
        """
        staff.require(Permission.CLOSES_PROPOSE)
        departments = await self._reach.of(staff, department)
        await self._require_ended(departments, first, last)
        await self._store.require_free(departments, first, last)
        made = await self._matching.make(staff, first, last, department, request_id)
        proposed = Proposed(new_id("cl"), departments, first, last, made.reconciliation_id, staff.staff_id)
        audit = self._told("proposed", departments, proposed.close_id, staff, request_id)
        await _known(self._store.propose(proposed, audit))
        return await self.get(staff, proposed.close_id)

    async def approve(self, staff: Staff, close_id: str, request_id: str) -> Close:
        """Close what a colleague has proposed. Raises as `propose` does, and `AlreadyDecided`."""
        close = await self._answerable(staff, close_id, "approved")
        intervals = await self._intervals(close)
        acted, keys = Acted(len(close.acts) + 1, "approved", "", staff.staff_id), self._keys()

        def seal(evidence: Evidence) -> Seal:
            return Seal.of(pack_of(close, staff.staff_id, evidence), keys)

        audit = self._told("approved", close.departments, close_id, staff, request_id)
        return await self._done(
            staff, close_id, await _known(self._store.approve(close, acted, intervals, seal, audit))
        )

    async def reject(self, staff: Staff, close_id: str, reason: str, request_id: str) -> Close:
        """Do not close it. Raises as `approve` does."""
        return await self._answer(staff, close_id, "rejected", reason, request_id)

    async def ask_to_reopen(self, staff: Staff, close_id: str, reason: str, request_id: str) -> Close:
        """Ask, with a reason, that a close is opened again; finance may, and an approver."""
        if not any(ASKS_TO_REOPEN & PERMISSIONS[role] for role in staff.roles):
            raise NotPermitted
        if not reason.strip():
            raise InvalidRequest("Say why these dates are to be opened again.", ["/reason"])
        close = await self._whole(staff, close_id)
        _require(close, "closed")
        return await self._act(staff, close, "reopening", reason, request_id)

    async def reopen(self, staff: Staff, close_id: str, request_id: str) -> Close:
        """Grant it: the dates are open, and need a new close. Raises as `approve` does."""
        return await self._answer(staff, close_id, "reopened", "", request_id)

    async def keep(self, staff: Staff, close_id: str, reason: str, request_id: str) -> Close:
        """Do not grant it: the dates stay closed."""
        return await self._answer(staff, close_id, "kept", reason, request_id)

    async def pack(self, staff: Staff, close_id: str, request_id: str) -> tuple[bytes, Seal]:
        """The pack of a close that was approved once, made again, and its seal.

        Raises:
            NotFound: no such close, or none that was approved.
            PackDiffers: what is stored is not any more what was signed. The audit log says so, too.
        """
        close = await self._whole(staff, close_id)
        approval = close.approval
        if approval is None or approval.seal is None:
            raise NotFound
        evidence = await self._store.evidence(close, approval.at, await self._intervals(close))
        pack, public = pack_of(close, approval.staff_id, evidence), public_keys(self._keys())
        try:
            approval.seal.require(pack, public.get(approval.seal.key, b""))
        except BrokenSeal:
            await self._store.record(
                self._told("pack_differs", close.departments, close_id, staff, request_id, Outcome.FAILED)
            )
            raise PackDiffers from None
        await self._store.record(self._told("pack_read", close.departments, close_id, staff, request_id))
        return pack, approval.seal

    def keys(self, staff: Staff) -> Mapping[int, bytes]:
        """The public keys that packs are checked with, by number; give them to the auditor before they are needed."""
        staff.require(Permission.LEDGER_READ)
        return public_keys(self._keys())

    async def _answer(self, staff: Staff, close_id: str, what: What, reason: str, request_id: str) -> Close:
        return await self._act(staff, await self._answerable(staff, close_id, what), what, reason, request_id)

    async def _answerable(self, staff: Staff, close_id: str, what: What) -> Close:
        """A close of which an approver may say this, who is not who asked."""
        staff.require(Permission.CLOSES_APPROVE)
        close = await self._whole(staff, close_id)
        _require(close, ANSWERS[what])
        if close.acts[-1].staff_id == staff.staff_id:
            raise NotPermitted("You have asked for this yourself: somebody else decides about it.")
        return close

    async def _whole(self, staff: Staff, close_id: str) -> Close:
        close = await self.get(staff, close_id)
        if not close.whole:
            raise NotPermitted("It covers departments that are not in your grant, too.")
        return close

    async def _act(self, staff: Staff, close: Close, what: What, reason: str, request_id: str) -> Close:
        require_note(self._brands, reason, "/reason")
        acted = Acted(len(close.acts) + 1, what, reason, staff.staff_id)
        audit = self._told(what, close.departments, close.close_id, staff, request_id)
        return await self._done(staff, close.close_id, await _known(self._store.act(close, acted, audit)))

    async def _done(self, staff: Staff, close_id: str, done: bool) -> Close:
        if not done:
            raise AlreadyDecided("Somebody was faster: look where it stands now.")
        return await self.get(staff, close_id)

    def _told(
        self,
        what: str,
        departments: Collection[str],
        close_id: str,
        staff: Staff,
        request_id: str,
        outcome: Outcome = Outcome.DONE,
    ) -> Sequence[AuditRow]:
        """A row of each department, so that each finds it in its own log."""
        now = self._clock.now()
        return [
            self._pen.row(
                AuditEvent(each, f"close.{what}", outcome, staff.staff_id, close_id, request_id=request_id), now
            )
            for each in sorted(departments)
        ]

    async def _require_ended(self, departments: Collection[str], first: date, last: date) -> None:
        require_period(first, last)
        calendar = Calendar(self._city, await self._store.cutoffs(departments))
        now = self._clock.now()
        if any(calendar.end(each, last) + SETTLES > now for each in departments):
            raise PeriodRefused(
                "The last of these dates has not ended yet everywhere. A date can be closed from a quarter of an hour"
                " after its end on.",
                ["/to"],
            )

    async def _intervals(self, close: Close) -> Intervals:
        calendar = Calendar(self._city, await self._store.cutoffs(close.departments))
        return {each: calendar.interval(each, close.first, close.last) for each in close.departments}


def pack_of(close: Close, approver: str, evidence: Evidence) -> bytes:
    """The pack: what is stored of a close, with who proposed it and who approved it, in its one spelling."""
    proposal = close.acts[0]
    return canonical(
        {
            **evidence.content,
            "format": FORMAT,
            "close": close.close_id,
            "from": close.first.isoformat(),
            "to": close.last.isoformat(),
            "departments": sorted(close.departments),
            "proposed": {"by": proposal.staff_id, "at": told(proposal.at)},
            "approved": {"by": approver, "at": told(evidence.at)},
        }
    )


async def _known(committing: Awaitable[T]) -> T:
    try:
        return await committing
    except CommitUnknown:
        raise Unavailable("It is not known whether this was written down: look where it stands.") from None


def _require(close: Close, status: Status) -> None:
    if close.status != status:
        raise AlreadyDecided(f"This can be done with a close that is {status}; this one is {close.status}.")
