"""Exceptions on a real database: who may say what of which difference, what it posts, and what the log tells."""

import asyncio
from dataclasses import replace

import pytest

from gateway.errors import (
    AlreadyDecided,
    CardNumberInText,
    GatewayError,
    InvalidRequest,
    NotFound,
    NotPermitted,
    PeriodClosed,
    Unavailable,
)
from gateway.rules.staff import Role
from gateway.services.exceptions import Difference, Resolution, Sought
from gateway.store.database import Database
from tests.gateway.store.office import ALONE, DAY, Office, office_of
from tests.gateway.store.postgres import Cut, Postgres, Wire
from tests.gateway.store.till import Line, line

pytestmark = pytest.mark.server

YEAR = 2020
OFF = Resolution.WRITTEN_OFF
LATER = Resolution.PROCESSOR_ERROR
CARD = "4111111111111111"


async def resolved(office: Office, one: Difference, why: Resolution = LATER, note: str = "") -> Difference:
    """What finance says of it."""
    return await office.exceptions.resolve(office.finance, one.exception_id, why, note, "req_1")


async def approved(office: Office, one: Difference) -> Difference:
    """What the approver says."""
    return await office.exceptions.approve(office.approver, one.exception_id, "", "req_1")


# --- where it stands --------------------------------------------------------------------------------------------


async def test_a_small_one_is_settled_by_one_person(office: Office) -> None:
    """Up to the limit, either way, finance's word is enough; above it an approver's is needed."""
    found = await office.differing(-ALONE - 1, -ALONE, ALONE, ALONE + 1)
    assert [one.status for one in found] == ["open"] * 4
    said = [await resolved(office, one) for one in found]

    assert [one.status for one in said] == ["proposed", "settled", "settled", "proposed"]
    assert [(await approved(office, said[place])).status for place in (0, 3)] == ["settled", "settled"]
    assert await office.postings() == []


async def test_the_whole_story(office: Office) -> None:
    """Taken, proposed, rejected, proposed by a colleague, approved, opened again: each act, its log, its owner."""
    (one,) = await office.differing(ALONE + 1)
    other, service = await office.hire(Role.FINANCE), office.exceptions
    seen = [
        await service.take(office.finance, one.exception_id, "req_1"),
        await resolved(office, one, LATER, "asked them"),
        await service.reject(office.approver, one.exception_id, "no ticket", "req_1"),
        await service.resolve(other, one.exception_id, Resolution.OTHER, "ticket 12", "req_1"),
        await approved(office, one),
        await service.reopen(other, one.exception_id, "wrong one", "req_1"),
    ]

    assert [each.status for each in seen] == ["open", "proposed", "open", "proposed", "settled", "open"]
    assert [each.owner and each.owner.staff_id for each in seen] == [office.finance.staff_id] * 3 + [
        other.staff_id
    ] * 3
    assert [each.settlement and each.settlement.note for each in seen] == (
        [None, "asked them", None, "ticket 12", "ticket 12", None]
    )
    assert [(act.number, act.what) for act in seen[-1].acts] == list(
        enumerate(["taken", "proposed", "rejected", "proposed", "approved", "reopened"], 1)
    )
    assert seen[-1].acts[2].by == office.approver.username
    assert await office.audited(one.exception_id) == [
        ("exception.taken", office.finance.staff_id, ""),
        ("exception.proposed", office.finance.staff_id, "processor_error"),
        ("exception.rejected", office.approver.staff_id, "processor_error"),
        ("exception.proposed", other.staff_id, "other"),
        ("exception.approved", office.approver.staff_id, "other"),
        ("exception.reopened", other.staff_id, ""),
    ]


async def test_what_is_not_found_any_more_is_cleared(office: Office) -> None:
    """Once the file comes, what was missing is not an exception that anybody can settle."""
    charge = await office.till.capture()
    await office.till.settle()
    await office.reconcile()
    (one,), _ = await office.exceptions.page(office.finance, Sought(department=office.till.department), 9)
    await office.till.settle(line(charge))
    await office.reconcile()

    assert (await office.exceptions.get(office.finance, one.exception_id)).status == "cleared"
    with pytest.raises(AlreadyDecided, match="open; this one is cleared"):
        await resolved(office, one)


# --- who --------------------------------------------------------------------------------------------------------

MAY = {
    "take": {Role.FINANCE},
    "resolve": {Role.FINANCE},
    "approve": {Role.APPROVER},
    "reject": {Role.APPROVER},
    "reopen": {Role.FINANCE},
}
"""By hand: which act is whose."""


@pytest.mark.parametrize("act", MAY)
async def test_whose_each_act_is(office: Office, act: str) -> None:
    """Another role is refused before anything is looked up; a foreign one is none, to whoever may."""
    (one,) = await office.differing(ALONE + 1)
    if act not in {"take", "resolve"}:
        await resolved(office, one)
    if act == "reopen":
        await approved(office, one)
    arguments = {"take": (), "resolve": (LATER, "")}.get(act, ("why",))
    for role in Role:
        stranger = await office.hire(role, "elsewhere")
        with pytest.raises(NotFound if role in MAY[act] else NotPermitted):
            await getattr(office.exceptions, act)(stranger, one.exception_id, *arguments, "req_1")
        own = await office.hire(role, office.till.department)
        if role in MAY[act]:
            await getattr(office.exceptions, act)(own, one.exception_id, *arguments, "req_1")
        else:
            for exception_id in (one.exception_id, "ex_none"):
                with pytest.raises(NotPermitted):
                    await getattr(office.exceptions, act)(own, exception_id, *arguments, "req_1")


async def test_nobody_approves_their_own(office: Office) -> None:
    """Not even somebody to whom both roles were granted past all rules; and the database says so by itself."""
    (one,) = await office.differing(ALONE + 1)
    both = replace(office.approver, roles=frozenset({Role.FINANCE, Role.APPROVER}))
    await office.exceptions.resolve(both, one.exception_id, LATER, "", "req_1")
    for answer in (office.exceptions.approve, office.exceptions.reject):
        with pytest.raises(NotPermitted, match="yourself"):
            await answer(both, one.exception_id, "", "req_1")
    other = await office.hire(Role.APPROVER)
    assert (await office.exceptions.approve(other, one.exception_id, "", "req_1")).status == "settled"


@pytest.mark.parametrize("who", ["finance", "elsewhere", "oneself", "nobody"])
async def test_the_database_takes_an_approval_from_an_approver_only(
    office: Office, admin: Database, who: str
) -> None:
    """Whatever the code does: another role, another department, who proposed, or no account at all."""
    (one,) = await office.differing(ALONE + 1)
    proposer = office.approver if who == "oneself" else office.finance
    names = {
        "finance": (await office.hire(Role.FINANCE)).staff_id,
        "elsewhere": (await office.hire(Role.APPROVER, "elsewhere")).staff_id,
        "oneself": proposer.staff_id,
        "nobody": "st_nobody",
    }
    insert = "INSERT INTO gateway.exception_acts VALUES ($1, $2, $3, $4, 'other', '', $5, now())"
    where = office.till.department, one.exception_id
    async with admin.writing_departments([office.till.department]) as connection:
        await connection.execute(insert, *where, 1, "proposed", proposer.staff_id)
    with pytest.raises(Unavailable):
        async with admin.writing_departments([office.till.department]) as connection:
            await connection.execute(insert, *where, 2, "approved", names[who])
    async with admin.writing_departments([office.till.department]) as connection:
        good = await office.hire(Role.APPROVER, office.till.department)
        await connection.execute(insert, *where, 2, "approved", good.staff_id)


@pytest.mark.parametrize("acts", [[], ["taken"], ["proposed", "taken"], ["proposed", "cleared"]])
async def test_the_database_takes_an_approval_of_a_proposal_only(
    office: Office, admin: Database, acts: list[str]
) -> None:
    """Not of what nobody proposed, nor once something else was done since; and no act is left out before it."""
    (one,) = await office.differing(ALONE + 1)
    insert = "INSERT INTO gateway.exception_acts VALUES ($1, $2, $3, $4, 'other', '', $5, now())"
    where, good = (office.till.department, one.exception_id), await office.hire(Role.APPROVER)
    async with admin.writing_departments([office.till.department]) as connection:
        for number, what in enumerate(acts, 1):
            await connection.execute(insert, *where, number, what, office.finance.staff_id)
    for number in (len(acts) + 1, len(acts) + 2):
        with pytest.raises(Unavailable):
            async with admin.writing_departments([office.till.department]) as connection:
                await connection.execute(insert, *where, number, "approved", good.staff_id)


async def test_of_two_at_once_one_was_faster(office: Office) -> None:
    """Both saw it open; one settles it, the other is told."""
    (one,) = await office.differing(1)
    done = await asyncio.gather(*(resolved(office, one) for _ in range(4)), return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["AlreadyDecided"] * 3 + ["Difference"]
    assert len(await office.audited(one.exception_id)) == 1


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "note", "error"),
    [
        (LATER, f"card {CARD}", CardNumberInText),
        (LATER, "4111 1111 1111 1111", CardNumberInText),
        (LATER, "x" * 501, InvalidRequest),
        (LATER, "\x1b[2J", InvalidRequest),
        (Resolution.OTHER, "", InvalidRequest),
        (Resolution.OTHER, " \n", InvalidRequest),
    ],
)
async def test_notes_are_looked_at(office: Office, why: Resolution, note: str, error: type[GatewayError]) -> None:
    """A card number, a novel, what cannot be printed, or nothing where something is needed: nothing is written."""
    (one,) = await office.differing(1)
    with pytest.raises(error):
        await resolved(office, one, why, note)
    assert (await office.exceptions.get(office.finance, one.exception_id)).acts == ()
    assert (await resolved(office, one, Resolution.OTHER, "x" * 499 + "é")).status == "settled"


async def test_only_from_where_it_stands(office: Office) -> None:
    """What is settled is not settled again, what was not proposed is not approved, what is open is not opened."""
    (one,) = await office.differing(1)
    for answer in (office.exceptions.approve, office.exceptions.reject):
        with pytest.raises(AlreadyDecided):
            await answer(office.approver, one.exception_id, "", "req_1")
    with pytest.raises(AlreadyDecided):
        await office.exceptions.reopen(office.finance, one.exception_id, "why", "req_1")
    await office.exceptions.take(office.finance, one.exception_id, "req_1")
    with pytest.raises(AlreadyDecided, match="yours"):
        await office.exceptions.take(office.finance, one.exception_id, "req_1")
    await resolved(office, one)
    for act in (resolved(office, one), office.exceptions.take(office.finance, one.exception_id, "req_1")):
        with pytest.raises(AlreadyDecided):
            await act
    with pytest.raises(InvalidRequest, match="why"):
        await office.exceptions.reopen(office.finance, one.exception_id, "", "req_1")


@pytest.mark.parametrize(("cut", "written"), [(Cut.BEFORE_COMMIT, False), (Cut.BEFORE_ANSWER, True)])
async def test_an_act_whose_commit_was_lost(
    office: Office, postgres: Postgres, wire: Wire, cut: Cut, written: bool
) -> None:
    """Nobody can tell, and that is said; it was written whole, or not at all."""
    (one,) = await office.differing(1)
    database = await Database.open(postgres.arguments("admin", port=wire.port), 1)
    far = await office_of(office.owner, database, office.till.department, office.till.day)
    wire.cut_at(cut)
    with pytest.raises(Unavailable, match="not known"):
        await far.exceptions.resolve(office.finance, one.exception_id, OFF, "", "req_1")
    await database.close()
    wrote = len(await office.postings()), len(await office.audited(one.exception_id))
    assert wrote == ((1, 1) if written else (0, 0))


# --- what it posts ----------------------------------------------------------------------------------------------


async def test_what_is_written_off_moves_to_over_short(office: Office) -> None:
    """Too little and too much, alone and with an approver; opened again, it comes back. Nothing else posts."""
    less, more, much = await office.differing(-7, 9, ALONE + 1)
    await resolved(office, less, OFF)
    await resolved(office, more, Resolution.RECORDED_ELSEWHERE)
    await resolved(office, much, OFF)
    day = office.till.day
    assert await office.postings() == [
        ("over_short", "processor_due", 7, day, less.exception_id),
        ("processor_due", "over_short", 9, day, more.exception_id),
    ]
    await approved(office, much)
    assert (await office.postings())[2:] == [("processor_due", "over_short", ALONE + 1, day, much.exception_id)]
    await office.exceptions.reopen(office.finance, less.exception_id, "they paid", "req_1")
    assert (await office.postings())[3:] == [("processor_due", "over_short", 7, day, less.exception_id)]


@pytest.mark.parametrize("why", [each for each in Resolution if each not in {OFF, Resolution.RECORDED_ELSEWHERE}])
async def test_all_else_waits_for_a_line(office: Office, why: Resolution) -> None:
    """Processor or bank will say it: nothing is posted, now or when it is taken back."""
    (one,) = await office.differing(5)
    await resolved(office, one, why, "note")
    await office.exceptions.reopen(office.finance, one.exception_id, "why", "req_1")
    assert await office.postings() == []


async def test_by_kind_it_stays_in_another_account(office: Office) -> None:
    """A chargeback that is let go is forgiven, a fee and an adjustment are where they belong already."""
    paid, disputed = await office.till.capture(), await office.till.capture()
    await office.till.settle(
        line(paid, fee_off=3),
        line(disputed),
        Line("pr_cb", -disputed.amount, disputed, "chargeback"),
        Line("pr_adj", -250, paid, "adjustment"),
    )
    await office.staged(disputed, convenience_fee=21)
    await office.reconcile()
    found, _ = await office.exceptions.page(office.finance, Sought(department=office.till.department), 9)
    assert sorted(one.reason for one in found) == ["adjustment", "chargeback", "fee_differs"]
    for one in found:
        if (await resolved(office, one, OFF)).status == "proposed":
            await approved(office, one)
    assert [row[:3] for row in await office.postings()] == [
        ("over_short", "receivable", disputed.amount - 21),
        ("over_short", "convenience_fees", 21),
    ]


async def test_a_chargeback_that_made_no_stage_stays_in_chargebacks(office: Office) -> None:
    """The line once more, and one of another amount: what was owed again is forgiven once."""
    disputed = await office.till.capture()
    again = [Line(f"pr_cb{n}", -disputed.amount, disputed, "chargeback") for n in range(2)]
    await office.till.settle(line(disputed), *again, Line("pr_other", -100, disputed, "chargeback"))
    await office.staged(disputed)
    await office.reconcile()
    found, _ = await office.exceptions.page(office.finance, Sought(department=office.till.department), 9)
    for one in found:
        if (await resolved(office, one, OFF)).status == "proposed":
            await approved(office, one)
    posted = sorted(row[:3] for row in await office.postings())
    assert ("over_short", "chargebacks", 100) in posted
    assert len(posted) == len(found) == 3


async def test_into_a_closed_date_nothing_is_posted(office: Office) -> None:
    """What was carried forward is posted on the next open date; what was settled there is not opened again."""
    (one,) = await office.differing(1)
    await resolved(office, one)
    charge = await office.till.capture(days=1)
    first = office.till.day
    await office.closed(days=1)
    with pytest.raises(PeriodClosed):
        await office.exceptions.reopen(office.finance, one.exception_id, "why", "req_1")
    found, _ = await office.exceptions.page(
        office.finance, Sought(department=office.till.department, state="timing"), 9
    )
    (late,) = found
    assert (late.charge_id, late.business_date) == (charge.charge_id, first + DAY)
    await resolved(office, late, OFF)
    await approved(office, late)
    assert [row[3] for row in await office.postings()] == [first + 2 * DAY]


# --- lists ------------------------------------------------------------------------------------------------------


async def test_lists_are_filtered_and_paged(office: Office) -> None:
    """Oldest first, then by id, without gaps; each filter alone, and a department that is not one's own is none."""
    department, service = office.till.department, office.exceptions
    found = await office.differing(-3, 1, 2, ALONE + 1)
    await resolved(office, found[0])
    await resolved(office, found[3])
    await service.take(office.finance, found[1].exception_id, "req_1")
    own = Sought(department=department)

    async def ids(sought: Sought) -> set[str]:
        return {one.exception_id for one in (await service.page(office.finance, sought, 200))[0]}

    all_of_them, _ = await service.page(office.finance, own, 200)
    order = [(one.business_date, one.exception_id) for one in all_of_them]
    assert order == sorted(order)
    first, more = await service.page(office.finance, own, 3)
    rest, no_more = await service.page(office.finance, own, 3, first[-1].exception_id)
    assert [*first, *rest] == list(all_of_them)
    assert (more, no_more) == (True, False)
    assert await ids(replace(own, status="settled")) == {found[0].exception_id}
    assert await ids(replace(own, status="proposed")) == {found[3].exception_id}
    assert await ids(replace(own, status="open")) == {one.exception_id for one in found[1:3]}
    assert await ids(replace(own, status="cleared")) == set()
    assert await ids(replace(own, owner=office.finance.username)) == {found[n].exception_id for n in (0, 1, 3)}
    assert await ids(replace(own, owner=office.approver.username)) == set()
    assert await ids(replace(own, state="duplicate")) == set()
    assert await ids(replace(own, first=office.till.day, last=office.till.day)) == {one.exception_id for one in found}
    assert await ids(replace(own, first=office.till.day + DAY)) == await ids(replace(own, last=office.till.day - DAY))
    stranger = await office.hire(Role.AUDITOR, "elsewhere")
    assert await service.page(stranger, Sought(), 9) == ([], False)
    for who, which in ((stranger, department), (office.finance, "nowhere")):
        with pytest.raises(NotFound):
            await service.page(who, Sought(department=which), 9)
    records = await office.hire(Role.RECORDS)
    with pytest.raises(NotPermitted):
        await service.page(records, Sought(), 9)


async def test_its_items_are_told(office: Office) -> None:
    """What each run said of it, with every amount, the latest first."""
    (one,) = await office.differing(5)
    await office.reconcile()
    items = await office.exceptions.items(office.finance, one.exception_id)
    assert [(item.ledger_minor, item.settled_minor, item.state) for item in items] == [
        (4_321, 4_326, "amount_differs")
    ] * 2
    last, first = (item.made_at for item in items)
    assert last is not None
    assert first is not None
    assert last > first
    part = await office.hire(Role.FINANCE, office.till.department)
    assert [item.made_at for item in await office.exceptions.items(part, one.exception_id)] == [None, None]
    assert one.kind == "charge"
