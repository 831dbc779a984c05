"""Refusals are written down, by ids and codes of ours only."""

import pytest

from gateway.errors import Unavailable
from gateway.rules.access import Application
from gateway.services.refusals import Refusals
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
