"""Refusals are written down, by ids and codes of ours only."""

import pytest

from gateway.errors import Unavailable
from gateway.rules.access import Application, Scope
from gateway.rules.staff import Permission, Role, Staff
from gateway.services.refusals import MINUTE_S, ROWS_A_MINUTE, Refusals
from keys.audit import AuditPen, AuditRow, Outcome
from keys.primitives import new_key
from tests.gateway.services.conftest import Clock

PEN = AuditPen("api", {1: new_key()})
CALLER = Application("parks", "app_1", 50_000, None)


class Rows:
    """Implements `refusals.AuditStore` in memory."""

    def __init__(self) -> None:
        self.written: list[AuditRow] = []
        self.away = False

    async def record(self, audit: AuditRow) -> None:
        if self.away:
            raise Unavailable
        self.written.append(audit)


@pytest.fixture
def rows() -> Rows:
    """No rows, yet."""
    return Rows()


@pytest.fixture
def refusals(rows: Rows, clock: Clock) -> Refusals:
    """What writes them."""
    return Refusals(rows, PEN, clock)


async def test_a_refused_identity_is_the_city_s(refusals: Refusals, rows: Rows, clock: Clock) -> None:
    """Credentials that are nobody's belong to no department, and the row names nobody."""
    await refusals.identity("wrong-certificate", "req_1")
    (row,) = rows.written
    told = row.event
    assert (told.department, told.event, told.outcome) == ("city", "identity.refused", Outcome.REFUSED)
    assert (told.actor, told.subject, told.reason, told.request_id) == ("unknown", "", "wrong-certificate", "req_1")
    assert (row.process, row.occurred_at) == ("api", clock.now())
    PEN.verify(row)


async def test_an_unknown_id_is_its_caller_s(refusals: Refusals, rows: Rows) -> None:
    """Who asked is written, in the own department; which id it was is not, for it may be another's."""
    await refusals.unknown_id(CALLER, "req_2")
    told = rows.written[0].event
    assert (told.department, told.event, told.outcome) == ("parks", "id.refused", Outcome.REFUSED)
    assert (told.actor, told.subject, told.reason, told.request_id) == ("app_1", "", "", "req_2")


async def test_a_refusal_that_cannot_be_written_is_not_answered(refusals: Refusals, rows: Rows) -> None:
    """Without its row a refusal becomes 503."""
    rows.away = True
    with pytest.raises(Unavailable):
        await refusals.identity("not-identified", "req_3")


async def test_a_missing_scope_is_its_caller_s(refusals: Refusals, rows: Rows) -> None:
    """Who asked for what, in the own department."""
    await refusals.permission(CALLER, Scope.CHARGES_REFUND, "req_4")
    told = rows.written[0].event
    assert (told.department, told.event, told.outcome) == ("parks", "permission.refused", Outcome.REFUSED)
    assert (told.actor, told.subject, told.reason, told.request_id) == ("app_1", "", "charges:refund", "req_4")


async def test_a_flood_of_refusals_fills_no_disk(refusals: Refusals, rows: Rows, clock: Clock) -> None:
    """A minute has so many rows; the next minute's first says how many were left out, and its second none."""
    for _ in range(ROWS_A_MINUTE + 40):
        await refusals.identity("NotIdentified", "req_5")
    assert len(rows.written) == ROWS_A_MINUTE
    assert {row.event.subject for row in rows.written} == {""}
    clock.seconds += MINUTE_S - 0.001
    await refusals.identity("NotIdentified", "req_6")
    assert len(rows.written) == ROWS_A_MINUTE
    clock.seconds += 0.001
    for _ in range(2):
        await refusals.identity("NotIdentified", "req_7")
    assert [row.event.subject for row in rows.written[ROWS_A_MINUTE:]] == ["suppressed:41", ""]


async def test_a_flood_of_one_reason_hides_no_other(refusals: Refusals, rows: Rows) -> None:
    """Nobody in particular may be many: each reason has rows of its own."""
    for _ in range(ROWS_A_MINUTE + 1):
        await refusals.identity("NotIdentified", "req_8")
    await refusals.identity("WrongCertificate", "req_8")
    assert rows.written[-1].event.reason == "WrongCertificate"


@pytest.mark.parametrize("permission", [Permission.REFUNDS_DECIDE, None])
async def test_a_refusal_at_the_admin_site_says_what_was_not_granted(
    refusals: Refusals, rows: Rows, permission: Permission | None
) -> None:
    """Who, and which permission where there is one; in the city's own part, for staff are of no department."""
    staff = Staff("st_1", "a.chen", frozenset({Role.FINANCE}), frozenset({"parks"}))
    await refusals.staff("permission", staff, "req_9", permission)
    told = rows.written[0].event
    assert (told.department, told.event, told.actor) == ("city", "permission.refused", "st_1")
    assert told.reason == (permission or "")


async def test_one_s_flood_hides_nobody_else(refusals: Refusals, rows: Rows) -> None:
    """Each application and each kind of refusal has rows of its own."""
    for _ in range(ROWS_A_MINUTE + 1):
        await refusals.unknown_id(CALLER, "req_8")
    rows.written.clear()
    await refusals.permission(CALLER, Scope.TOKENS_READ, "req_9")
    await refusals.identity("NotIdentified", "req_9")
    for other in (Application("parks", "app_2", 1, None), Application("utilities", "app_1", 1, None)):
        await refusals.unknown_id(other, "req_9")
    assert len(rows.written) == 4


async def test_what_was_left_out_is_not_forgotten(refusals: Refusals, rows: Rows, clock: Clock) -> None:
    """When the row that would have told it cannot be written, the next one tells it."""
    for _ in range(ROWS_A_MINUTE + 3):
        await refusals.unknown_id(CALLER, "req_10")
    clock.seconds += MINUTE_S
    rows.away = True
    with pytest.raises(Unavailable):
        await refusals.unknown_id(CALLER, "req_10")
    rows.away = False
    await refusals.unknown_id(CALLER, "req_10")
    assert rows.written[-1].event.subject == "suppressed:3"
