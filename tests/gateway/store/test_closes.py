"""Closes on a real database: what may be closed, by whom, what is locked then, and whether the pack proves it."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from gateway.errors import (
    AlreadyDecided,
    CardNumberInText,
    ExceptionsOpen,
    InvalidRequest,
    NotFound,
    NotPermitted,
    PackDiffers,
    PeriodClosed,
    PeriodRefused,
    Unavailable,
)
from gateway.rules.pack import Seal, public_keys, sha256
from gateway.rules.staff import Role
from gateway.services.closes import Close
from gateway.services.exceptions import Resolution, Sought
from gateway.store.database import Database, StatementRefused
from keys.primitives import new_key
from tests.gateway.store.office import ALONE, DAY, Office, office_of
from tests.gateway.store.postgres import Cut, Postgres, Wire
from tests.gateway.store.till import line, net

pytestmark = pytest.mark.server

YEAR = 2012
REASON = "a late file"


async def pack_of(office: Office, close: Close) -> tuple[bytes, Seal]:
    """What is downloaded."""
    return await office.closes.pack(office.finance, close.close_id, "req_1")


# --- the way of a close -----------------------------------------------------------------------------------------


async def test_two_people_close(office: Office) -> None:
    """Proposed by finance, approved by somebody else, of the department and of the city; the log of both tells it."""
    await office.agreeing()
    proposed = await office.propose()
    assert (proposed.status, proposed.departments, proposed.whole) == (
        "proposed",
        tuple(sorted([office.till.department, "city"])),
        True,
    )
    assert (proposed.counts["matched"], proposed.totals["ledger"]) == (1, 4_321)
    closed = await office.closes.approve(office.approver, proposed.close_id, "req_1")

    assert closed.status == "closed"
    assert [(act.what, act.by) for act in closed.acts] == [
        ("proposed", office.finance.username),
        ("approved", office.approver.username),
    ]
    assert [event for event, _, _ in await office.audited(closed.close_id)] == ["close.proposed", "close.approved"]
    rows = await office.owner.fetch("SELECT department_id FROM audit.events WHERE subject = $1", closed.close_id)
    assert sorted(row[0] for row in rows) == sorted([*proposed.departments] * 2)


async def test_it_is_opened_again_by_two(office: Office) -> None:
    """Asked with a reason, kept closed, asked again, granted; then the dates can be closed anew."""
    close_id = (await office.closed()).close_id
    service = office.closes
    with pytest.raises(InvalidRequest):
        await service.ask_to_reopen(office.finance, close_id, " ", "req_1")
    assert (await service.ask_to_reopen(office.finance, close_id, REASON, "req_1")).status == "reopening"
    assert await is_closed(office)
    assert (await service.keep(office.approver, close_id, "no", "req_1")).status == "closed"
    other = await office.hire(Role.APPROVER)
    await service.ask_to_reopen(other, close_id, REASON, "req_1")
    with pytest.raises(NotPermitted, match="yourself"):
        await service.reopen(other, close_id, "req_1")
    assert (await service.reopen(office.approver, close_id, "req_1")).status == "reopened"
    assert not await is_closed(office)
    assert (await office.closed()).status == "closed"
    assert [event.removeprefix("close.") for event, _, _ in await office.audited(close_id)] == [
        *("proposed", "approved", "reopening", "kept", "reopening", "reopened")
    ]


async def is_closed(office: Office) -> bool:
    """Whether the till's day is."""
    return bool(
        await office.owner.fetchval("SELECT gateway.is_closed($1, $2)", office.till.department, office.till.day)
    )


async def test_a_rejected_one_leaves_nothing_closed(office: Office) -> None:
    """The dates can be proposed again; a proposal is decided about once."""
    proposed = await office.propose()
    rejected = await office.closes.reject(office.approver, proposed.close_id, "not yet", "req_1")
    assert (rejected.status, rejected.acts[-1].reason) == ("rejected", "not yet")
    assert not await is_closed(office)
    with pytest.raises(AlreadyDecided):
        await office.closes.approve(office.approver, proposed.close_id, "req_1")
    assert (await office.closed()).status == "closed"


async def test_of_two_approvers_one_was_faster(office: Office) -> None:
    """One pack, one approval; the other is told."""
    proposed = await office.propose()
    done = await asyncio.gather(
        *(office.closes.approve(office.approver, proposed.close_id, "req_1") for _ in range(3)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in done) == ["AlreadyDecided", "AlreadyDecided", "Close"]
    assert len(await office.audited(proposed.close_id)) == 2


async def test_of_two_proposals_one_comes_through(office: Office) -> None:
    """However close to each other they are made, dates are not closed twice."""
    done = await asyncio.gather(*(office.propose(days=n) for n in range(3)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["Close", "PeriodClosed", "PeriodClosed"]


# --- what cannot be closed --------------------------------------------------------------------------------------


async def test_not_while_something_is_unsettled(office: Office) -> None:
    """Open or proposed, it stands in the way of proposal and approval; what is a matter of time does not."""
    small, large = await office.differing(1, ALONE + 1)
    await office.till.capture(days=1)
    with pytest.raises(ExceptionsOpen, match="2 exceptions"):
        await office.propose(days=1)
    for one in (small, large):
        await office.exceptions.resolve(office.finance, one.exception_id, Resolution.PROCESSOR_ERROR, "", "req_1")
    with pytest.raises(ExceptionsOpen, match="One exception"):
        await office.propose(days=1)
    await office.exceptions.approve(office.approver, large.exception_id, "", "req_1")
    proposed = await office.propose(days=1)
    await office.exceptions.reopen(office.finance, small.exception_id, "why", "req_1")
    with pytest.raises(ExceptionsOpen):
        await office.closes.approve(office.approver, proposed.close_id, "req_1")
    await office.exceptions.resolve(office.finance, small.exception_id, Resolution.BANK_ERROR, "", "req_1")
    closed = await office.closes.approve(office.approver, proposed.close_id, "req_1")
    pack, _ = await pack_of(office, closed)
    assert [item["department_id"] for item in json.loads(pack)["carried_forward"]] == [office.till.department]


async def test_what_a_late_file_says_of_closed_dates_waits_for_the_next_close(office: Office) -> None:
    """It was a matter of time at the close; then its line differs: nobody closes more before that is settled."""
    day, charge = office.till.day, await office.till.capture(5_000)
    closed = await office.closed()
    pack, _ = await pack_of(office, closed)
    await office.till.settle(line(charge, 1), dated=day + DAY)
    await office.matching.make(office.finance, day, day + DAY, None, "req_1")
    office.till.day = day + DAY
    with pytest.raises(ExceptionsOpen, match="One exception of dates that are closed"):
        await office.propose()
    sought = Sought(state="amount_differs", department=office.till.department)
    (late,), _ = await office.exceptions.page(office.finance, sought, 9)
    assert (late.business_date, late.difference_minor) == (day, 1)
    await office.exceptions.resolve(office.finance, late.exception_id, Resolution.WRITTEN_OFF, "", "req_1")
    following = await office.closed()

    told = json.loads((await pack_of(office, following))[0])["exceptions"]
    assert [(one["exception_id"], [act["what"] for act in one["acts"]]) for one in told] == [
        (late.exception_id, ["resolved"])
    ]
    assert (await pack_of(office, closed))[0] == pack
    office.till.day = day + 2 * DAY
    third = await office.closed()
    assert json.loads((await pack_of(office, third))[0])["exceptions"] == []


async def test_not_with_files_that_nobody_has_seen(office: Office) -> None:
    """What came between proposal and approval was not matched: it must be proposed anew."""
    await office.agreeing()
    proposed = await office.propose()
    await office.agreeing(100)
    with pytest.raises(ExceptionsOpen, match="came after"):
        await office.closes.approve(office.approver, proposed.close_id, "req_1")
    await office.closes.reject(office.approver, proposed.close_id, "", "req_1")
    assert (await office.closed()).status == "closed"


async def test_a_deposit_of_the_day_before_is_seen(office: Office) -> None:
    """What the bank has for an earlier batch, and a line whose charge is of an earlier date, hinder no close."""
    early, late = await office.till.capture(1_000), await office.till.capture(2_000)
    await office.till.settle(line(early))
    await office.till.settle(line(late), dated=office.till.day + DAY)
    await office.till.deposit(net(early) + net(late))
    office.till.day += DAY
    assert (await office.closed()).status == "closed"


async def test_not_before_it_has_ended(office: Office) -> None:
    """A quarter of an hour after the end in Los Angeles, of each department by its own cut-off."""
    end = datetime(2026, 3, 9, 7, 0, tzinfo=UTC)  # of 2026-03-08, which has 23 hours
    office.till.day = date(2026, 3, 8)

    class Stopped:
        now_is = end

        def now(self) -> datetime:
            return self.now_is

        def monotonic(self) -> float:
            return 0.0

    office.closes._clock = clock = Stopped()
    with pytest.raises(PeriodRefused, match="not ended"):
        await office.propose()
    clock.now_is = end + timedelta(minutes=15, microseconds=-1)
    with pytest.raises(PeriodRefused):
        await office.propose()
    clock.now_is = end + timedelta(minutes=15)
    assert (await office.propose()).status == "proposed"
    with pytest.raises(PeriodRefused, match="first date"):
        await office.closes.propose(office.finance, date(2026, 3, 2), date(2026, 3, 1), None, "req_1")


async def test_not_twice(office: Office) -> None:
    """A date that is closed, or proposed, is not proposed again, not alone and not within a longer range."""
    await office.propose()
    for days, department in ((0, None), (1, None), (0, office.till.department)):
        with pytest.raises(PeriodClosed):
            await office.propose(days=days, department=department)
    office.till.day += DAY
    assert (await office.propose()).status == "proposed"


# --- who --------------------------------------------------------------------------------------------------------


async def test_whose_each_act_is(office: Office) -> None:
    """By hand: finance proposes, approvers decide, both may ask for a reopening; others and strangers none of it."""
    department = office.till.department
    closed = await office.closed()
    service, close_id = office.closes, closed.close_id

    async def tried(role: Role, *departments: str) -> list[str]:
        who = await office.hire(role, *departments)
        acts: list[Any] = [
            service.propose(who, office.till.day - DAY, office.till.day - DAY, None, "req_1"),
            service.approve(who, close_id, "req_1"),
            service.reject(who, close_id, "", "req_1"),
            service.reopen(who, close_id, "req_1"),
            service.keep(who, close_id, "", "req_1"),
        ]
        return [type(each).__name__ for each in await asyncio.gather(*acts, return_exceptions=True)]

    none = ["NotPermitted"] * 5
    assert await tried(Role.FINANCE) == ["Close", *none[1:]]
    assert await tried(Role.APPROVER) == ["NotPermitted", *["AlreadyDecided"] * 4]
    assert await tried(Role.AUDITOR) == await tried(Role.RECORDS) == none
    assert await tried(Role.APPROVER, "elsewhere") == ["NotPermitted", *["NotFound"] * 4]
    # Of the department, but not of the city: the close is seen, and is not theirs to decide about.
    assert await tried(Role.APPROVER, department) == none
    part = await office.hire(Role.FINANCE, department)
    seen = await service.get(part, close_id)
    assert (seen.departments, seen.whole, seen.counts) == ((department,), False, {})
    with pytest.raises(NotPermitted, match="not in your grant"):
        await service.pack(part, close_id, "req_1")
    for role in (Role.AUDITOR, Role.RECORDS):
        with pytest.raises(NotPermitted):
            await service.ask_to_reopen(await office.hire(role), close_id, REASON, "req_1")


async def test_nobody_decides_about_their_own(office: Office) -> None:
    """Not even with both roles; and the database says so by itself."""
    both = replace(office.approver, roles=frozenset({Role.FINANCE, Role.APPROVER}))
    proposed = await office.propose(both)
    for decide in (
        office.closes.approve(both, proposed.close_id, "req_1"),
        office.closes.reject(both, proposed.close_id, "", "req_1"),
    ):
        with pytest.raises(NotPermitted, match="yourself"):
            await decide


@pytest.mark.parametrize("what", ["rejected", "reopened", "kept"])
@pytest.mark.parametrize("who", ["finance", "oneself", "nobody"])
async def test_the_database_takes_an_approvers_word_only(
    office: Office, admin: Database, what: str, who: str
) -> None:
    """Whatever the code does: another role, who proposed, or no account at all."""
    asks = replace(office.approver, roles=frozenset({Role.FINANCE}))
    one = await office.propose(asks) if what == "rejected" else await office.closed()
    if what != "rejected":
        one = await office.closes.ask_to_reopen(asks, one.close_id, "a late line", "req_1")
    names = {"finance": office.finance.staff_id, "oneself": office.approver.staff_id, "nobody": "st_nobody"}
    insert = "INSERT INTO gateway.close_acts VALUES ($1, $2, $3, $4, '', NULL, NULL, NULL, $5, now())"
    for name, good in ((names[who], False), ((await office.hire(Role.APPROVER)).staff_id, True)):
        values = office.till.department, one.close_id, len(one.acts) + 1, what, name
        if good:
            async with admin.writing_departments([office.till.department]) as connection:
                await connection.execute(insert, *values)
        else:
            with pytest.raises(Unavailable):
                async with admin.writing_departments([office.till.department]) as connection:
                    await connection.execute(insert, *values)


@pytest.mark.parametrize(
    ("number", "what"),
    [(3, "proposed"), (3, "rejected"), (3, "reopened"), (3, "kept"), (4, "reopening"), (7, "reopened")],
)
async def test_the_database_takes_no_answer_that_nobody_asked_for(
    office: Office, admin: Database, number: int, what: str
) -> None:
    """What is closed stays so until somebody asks and another one grants it; and no act is left out before one."""
    closed = await office.closed()
    with pytest.raises((Unavailable, StatementRefused)):
        async with admin.writing_departments([office.till.department]) as connection:
            await connection.execute(
                "INSERT INTO gateway.close_acts VALUES ($1, $2, $3, $4, '', NULL, NULL, NULL, $5, now())",
                *(office.till.department, closed.close_id, number, what, (await office.hire(Role.APPROVER)).staff_id),
            )
    assert (await office.closes.get(office.finance, closed.close_id)).status == "closed"


async def test_reasons_hold_no_card_number(office: Office) -> None:
    """Nor a novel, nor what cannot be printed."""
    closed = await office.closed()
    with pytest.raises(CardNumberInText):
        await office.closes.ask_to_reopen(office.finance, closed.close_id, "4111-1111-1111-1111", "req_1")
    for reason in ("x" * 501, "\x07"):
        with pytest.raises(InvalidRequest):
            await office.closes.ask_to_reopen(office.finance, closed.close_id, reason, "req_1")
    assert (await office.closes.get(office.finance, closed.close_id)).status == "closed"


# --- what a close locks -----------------------------------------------------------------------------------------


async def test_nothing_is_posted_into_a_closed_date(office: Office, admin: Database) -> None:
    """Whatever the code does, and until the dates are open again."""
    closed = await office.closed()
    insert = (
        "INSERT INTO gateway.postings VALUES ($1, $2, 1, 'bank', 'clearing', 1, 'USD', $3, 'deposit', 'im_1', now())"
    )

    async def post(day: date) -> None:
        async with admin.writing_departments([office.till.department]) as connection:
            await connection.execute(insert, office.till.department, f"po_{day}", day)

    with pytest.raises(Unavailable):
        await post(office.till.day)
    await post(office.till.day + DAY)
    await office.closes.ask_to_reopen(office.finance, closed.close_id, REASON, "req_1")
    with pytest.raises(Unavailable):
        await post(office.till.day)
    await office.closes.reopen(office.approver, closed.close_id, "req_1")
    await post(office.till.day)


async def test_no_act_slips_in_beside_an_approval(office: Office) -> None:
    """Opened again while it is being closed: one of the two is refused, whichever comes second."""
    (one,) = await office.differing(1)
    await office.exceptions.resolve(office.finance, one.exception_id, Resolution.OTHER, "x", "req_1")
    proposed = await office.propose()
    done = await asyncio.gather(
        office.closes.approve(office.approver, proposed.close_id, "req_1"),
        office.exceptions.reopen(office.finance, one.exception_id, "why", "req_1"),
        return_exceptions=True,
    )
    assert {type(each) for each in done} & {ExceptionsOpen, PeriodClosed}
    assert len([each for each in done if isinstance(each, BaseException)]) == 1


# --- the pack ---------------------------------------------------------------------------------------------------


async def settled_month(office: Office) -> Close:
    """Two days with files, a settled exception, a posting and something carried forward; closed."""
    less, more = await office.differing(-5, ALONE + 1)
    await office.till.deposit(4_000)
    await office.till.capture(days=1)
    await office.exceptions.resolve(office.finance, less.exception_id, Resolution.WRITTEN_OFF, "small", "req_1")
    await office.exceptions.resolve(office.finance, more.exception_id, Resolution.PROCESSOR_ERROR, "", "req_1")
    await office.exceptions.approve(office.approver, more.exception_id, "seen", "req_1")
    await office.reconcile()
    await settle_the_city(office)
    return await office.closed(days=1)


async def settle_the_city(office: Office) -> None:
    """What the deposit that no batch explains made."""
    await office.matching.make(office.finance, office.till.day, office.till.day + DAY, None, "req_1")
    sought = Sought(status="open", department="city", first=office.till.day, last=office.till.day + DAY)
    for one in (await office.exceptions.page(office.finance, sought, 200))[0]:
        said = await office.exceptions.resolve(office.finance, one.exception_id, Resolution.BANK_ERROR, "", "req_1")
        if said.status == "proposed":
            await office.exceptions.approve(office.approver, one.exception_id, "", "req_1")


async def test_the_pack_says_all_of_it(office: Office) -> None:
    """Files, match, books, exceptions with their acts, who and when; signed; the same bytes each time."""
    closed = await settled_month(office)
    pack, seal = await pack_of(office, closed)
    told = json.loads(pack)

    assert (pack, seal) == await pack_of(office, closed)
    seal.require(pack, public_keys(office.keys)[1])
    assert pack.endswith(b"}\n")
    assert (told["format"], told["close"]) == ("gateway/close-pack/v1", closed.close_id)
    assert told["departments"] == sorted([office.till.department, "city"])
    assert (told["proposed"]["by"], told["approved"]["by"]) == (office.finance.staff_id, office.approver.staff_id)
    assert told["reconciliation"]["counts"] == dict(closed.counts)
    assert {file["kind"] for file in told["files"]} == {"settlement", "deposit"}
    assert {file["sha256"] for file in told["files"]} <= set(told["reconciliation"]["inputs"])
    books = told["books"][office.till.department]
    assert (books["lines"]["lines"], books["items"]["items"]) == (2, 3)
    assert books["journal"]["accounts"] == [
        {"account": "processor_due", "credit_minor": 0, "currency": "USD", "debit_minor": 3 * 4_321},
        {"account": "receivable", "credit_minor": 3 * 4_321, "currency": "USD", "debit_minor": 0},
    ]
    assert books["postings"]["entries"] == 1
    acts = [[act["what"] for act in one["acts"]] for one in told["exceptions"] if one["department_id"] != "city"]
    assert sorted(acts) == [["proposed", "approved"], ["resolved"]]
    assert len(told["carried_forward"]) == 1
    assert told["deposits"]["amount_minor"] == 4_000
    assert [event for event, _, _ in await office.audited(closed.close_id)][-2:] == ["close.pack_read"] * 2


TAMPERED = {
    "a line": "UPDATE gateway.settlement_lines SET reference = reference || 'x' WHERE department_id = $1",
    "a deposit": "UPDATE gateway.deposit_lines SET bank_reference = 'x' WHERE department_id = 'city'"
    " AND batch LIKE $1 || '%'",
    "a file": "UPDATE gateway.imports SET lines = lines + 1 WHERE import_id IN"
    " (SELECT import_id FROM gateway.settlement_lines WHERE department_id = $1)",
    "an item": "UPDATE gateway.reconciliation_items SET expected_fee_minor = 1 WHERE department_id = $1"
    " AND state <> 'matched'",
    "an item that is gone": "DELETE FROM gateway.reconciliation_items WHERE department_id = $1 AND state = 'timing'",
    "a count": "UPDATE gateway.reconciliations SET counts = counts || '{\"matched\": 99}'"
    " WHERE $1 = ANY (departments)",
    "an exception": "UPDATE gateway.exceptions SET difference_minor = 0 WHERE department_id = $1",
    "an act": "UPDATE gateway.exception_acts SET note = 'nothing' WHERE department_id = $1 AND note <> ''",
    "an approval": "UPDATE gateway.exception_acts SET staff_id = 'st_else' WHERE department_id = $1"
    " AND what = 'approved'",
    "the journal": "UPDATE gateway.journal SET amount_minor = amount_minor + 1 WHERE department_id = $1",
    "when it was": "UPDATE gateway.journal SET recorded_at = recorded_at + interval '1 microsecond'"
    " WHERE department_id = $1",
    "a posting": "UPDATE gateway.postings SET credit = 'bank' WHERE department_id = $1",
    "a cut-off": "INSERT INTO gateway.cutoffs VALUES ($1, '2000-01-01', '10:00')",
}


TAMPERED_EVERYWHERE = {
    "who proposed": "UPDATE gateway.close_acts SET staff_id = 'st_else' WHERE department_id = $1 AND act = 1",
    "who approved": "UPDATE gateway.close_acts SET staff_id = 'st_else' WHERE department_id = $1 AND act = 2",
    "its dates": "UPDATE gateway.closes SET to_date = to_date - 1 WHERE department_id = $1 AND to_date > from_date",
    "the hash": "UPDATE gateway.close_acts SET pack_sha256 = sha256('x')"
    " WHERE department_id = $1 AND what = 'approved'",
    "the signature": "UPDATE gateway.close_acts SET pack_signature = sha256('x') || sha256('y')"
    " WHERE department_id = $1 AND what = 'approved'",
}
"""All departments of a close have the same rows."""


class Within:
    """A database whose every transaction is a part of the owner's, which is never committed."""

    def __init__(self, owner: asyncpg.Connection) -> None:
        self._owner = owner

    @asynccontextmanager
    async def reading_departments(self, _departments: Collection[str]) -> AsyncIterator[asyncpg.Connection]:
        """See `Database`."""
        yield self._owner

    writing_departments = reading_departments


@pytest.mark.parametrize("whole", [False, True], ids=["one department's", "of all departments"])
async def test_whatever_is_changed_shows(office: Office, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """As the owner of the database, row by row: each change makes another pack; taken back, it is the same again."""
    closed = await settled_month(office)
    monkeypatch.setattr(office.closes._store, "_database", Within(office.owner))
    unseen = []
    for name, statement in (TAMPERED_EVERYWHERE if whole else TAMPERED).items():
        change = office.owner.transaction()
        await change.start()
        try:
            for department in closed.departments if whole else [office.till.department]:
                assert not (await office.owner.execute(statement, department)).endswith(" 0"), name
            await pack_of(office, closed)
            unseen.append(name)
        except PackDiffers:
            assert (await office.audited(closed.close_id))[-1][0] == "close.pack_differs"
        finally:
            await change.rollback()
    assert unseen == []
    await pack_of(office, closed)


async def test_a_change_is_in_the_log(office: Office) -> None:
    """Whoever asks for the pack is told that it is not the one that was signed, and so is the auditor."""
    closed = await settled_month(office)
    await office.owner.execute(TAMPERED["an act"], office.till.department)
    with pytest.raises(PackDiffers, match="was changed"):
        await pack_of(office, closed)
    assert (await office.audited(closed.close_id))[-1] == ("close.pack_differs", office.finance.staff_id, "")


async def test_what_comes_later_changes_no_pack(office: Office) -> None:
    """Later files, acts on what was carried forward, and even new postings once the dates are open again."""
    closed = await settled_month(office)
    pack, _ = await pack_of(office, closed)
    sought = Sought(state="timing", department=office.till.department)
    ((late,), _) = await office.exceptions.page(office.finance, sought, 9)
    await office.exceptions.take(office.finance, late.exception_id, "req_1")
    await office.till.settle(dated=office.till.day + 2 * DAY)
    await office.matching.make(office.finance, office.till.day, office.till.day + 3 * DAY, None, "req_1")
    assert (await pack_of(office, closed))[0] == pack
    await office.closes.ask_to_reopen(office.finance, closed.close_id, REASON, "req_1")
    await office.closes.reopen(office.approver, closed.close_id, "req_1")
    (one,), _ = await office.exceptions.page(
        office.finance, Sought(owner=office.finance.username, status="settled", department=office.till.department), 1
    )
    await office.exceptions.reopen(office.finance, one.exception_id, "why", "req_1")
    await office.till.settle(line(await office.till.capture(days=3)))
    assert (await pack_of(office, closed))[0] == pack


async def test_after_a_rotation_of_its_key(office: Office) -> None:
    """Older packs are checked with the older key; without it they cannot be, and that is told."""
    old = await office.closed()
    office.keys[2] = new_key()
    office.till.day += DAY
    new = await office.closed()

    assert [(await pack_of(office, close))[1].key for close in (old, new)] == [1, 2]
    assert list(office.closes.keys(office.finance)) == [1, 2]
    del office.keys[1]
    with pytest.raises(PackDiffers):
        await pack_of(office, old)


async def test_only_what_was_approved_has_a_pack(office: Office) -> None:
    """A proposal has none; the hash is that of the bytes."""
    proposed = await office.propose()
    with pytest.raises(NotFound):
        await pack_of(office, proposed)
    closed = await office.closes.approve(office.approver, proposed.close_id, "req_1")
    pack, seal = await pack_of(office, closed)
    assert seal.sha256 == sha256(pack)


@pytest.mark.parametrize(("cut", "written"), [(Cut.BEFORE_COMMIT, False), (Cut.BEFORE_ANSWER, True)])
async def test_an_approval_whose_commit_was_lost(
    office: Office, postgres: Postgres, wire: Wire, cut: Cut, written: bool
) -> None:
    """Nobody can tell, and that is said; it is closed with a pack, or not at all."""
    proposed = await office.propose()
    database = await Database.open(postgres.arguments("admin", port=wire.port), 1)
    far = await office_of(office.owner, database, office.till.department, office.till.day)
    wire.cut_at(cut)
    with pytest.raises(Unavailable, match="not known"):
        await far.closes.approve(office.approver, proposed.close_id, "req_1")
    await database.close()
    stands = await office.closes.get(office.finance, proposed.close_id)
    assert (stands.status, stands.approval is not None) == (("closed", True) if written else ("proposed", False))
