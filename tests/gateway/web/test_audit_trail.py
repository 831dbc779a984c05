"""The audit log over the wire: for auditors alone, of their departments alone, and that they looked is in it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from gateway.rules.ids import new_id
from tests.cards import CANARY
from tests.gateway.web.office import NOON, Office, day, office_of
from tests.gateway.web.site import Site

pytestmark = pytest.mark.server

PATH = "/admin/v1/audit"
OBJECT = {
    *("id", "department", "at", "process", "event", "outcome", "actor", "name", "subject", "reason", "request_id"),
}


@pytest.fixture
async def office(site: Site) -> Office:
    """Of an auditor."""
    return await office_of(site, "auditor")


async def happened(
    office: Office, event: str, *, days: int = 0, actor: str = "app_1", subject: str = "ch_1", department: str = ""
) -> str:
    """A row of the log; gives its id."""
    event_id = new_id("ev")
    await office.site.owner.execute(
        "INSERT INTO audit.events VALUES ($1, $2, $3, 'api', $4, 'done', $5, $6, '', '', $7, 1)",
        *(department or office.department, event_id, NOON + timedelta(days), event, actor, subject, bytes(32)),
    )
    return event_id


async def found(office: Office, token: str | None = None, **asked: str) -> list[str]:
    """The ids that a question finds, but for what the looks themselves left."""
    reply = await office.get(PATH, token, **asked)
    assert reply.status == 200, reply.body
    return [row["id"] for row in reply.json["data"] if row["event"] != "audit.read"]


async def test_every_filter_finds_what_is_so(office: Office) -> None:
    """By date, event, actor, whether by id or name, and subject; newest first."""
    old = await happened(office, "charge.captured")
    new = await happened(office, "refund.approved", days=2, actor=office.person.staff_id, subject="re_1")

    assert await found(office) == await found(office, department=office.department) == [new, old]
    questions: Sequence[dict[str, str]] = (
        {"from_": day(NOON + timedelta(1))},
        {"event": "refund.approved"},
        {"actor": office.person.staff_id, "to": day(NOON + timedelta(3))},
        {"actor": office.person.username, "to": day(NOON + timedelta(3))},
        {"subject": "re_1"},
    )
    for asked in questions:
        assert await found(office, **asked) == [new], asked
    assert await found(office, to=day(NOON + timedelta(1))) == [old]
    assert await found(office, subject="' OR true --") == []


async def test_an_object_names_who_it_was(office: Office) -> None:
    """Id and username of staff; an application has its id alone."""
    await happened(office, "refund.approved", actor=office.person.staff_id)
    await happened(office, "charge.captured")
    rows = [row for row in (await office.get(PATH)).json["data"] if row["event"] != "audit.read"]

    assert {frozenset(row) for row in rows} == {frozenset(OBJECT)}
    assert {(row["actor"], row["name"]) for row in rows} == {
        *((office.person.staff_id, office.person.username), ("app_1", None))
    }


async def test_pages_hold_every_row_once(office: Office) -> None:
    """Five rows, three of them of one moment, in pages of two."""
    made = [await happened(office, "charge.captured", days=n // 3) for n in range(5)]

    seen: list[str] = []
    while page := await found(
        office, event="charge.captured", limit="2", **({"starting_after": seen[-1]} if seen else {})
    ):
        seen += page
    assert (sorted(seen), len(seen)) == (sorted(made), 5)
    assert (await office.get(PATH, starting_after="ev_none")).status == 404


async def test_other_departments_and_the_citys_own_are_not_seen(site: Site, office: Office) -> None:
    """Whoever has a grant for all sees them, and may ask for the city's by name."""
    neighbour = await office_of(site, "auditor")
    theirs, citys = await happened(neighbour, "x.theirs"), await happened(office, "x.citys", department="city")
    everybody = await site.token(await site.person("auditor"))

    assert await found(office, event="x.theirs") == await found(office, event="x.citys") == []
    assert await found(office, everybody, event="x.theirs") == [theirs]
    assert await found(office, everybody, event="x.citys", department="city") == [citys]
    for department in (neighbour.department, "city", "nowhere"):
        assert (await office.get(PATH, department=department)).status == 404
    assert (await office.get(PATH, starting_after=theirs)).status == 404


async def test_a_look_is_written_down_once(site: Site, office: Office) -> None:
    """A row for a question, none for its further pages; of a look at everything it is in the city's log."""
    began = datetime.now(UTC)
    for n in range(3):
        await happened(office, "charge.captured", days=n)
    first = await found(office, limit="1")
    await found(office, limit="1", starting_after=first[-1])
    everybody = await site.person("auditor")
    await found(office, await site.token(everybody))

    rows = await site.owner.fetch(
        "SELECT department_id, actor FROM audit.events WHERE event = 'audit.read' AND actor = ANY($1)"
        " AND occurred_at > $2",
        *([office.person.staff_id, everybody.staff_id], began),
    )
    assert {tuple(row) for row in rows} == {
        *((office.department, office.person.staff_id), ("city", everybody.staff_id))
    }
    assert len(rows) == 2


async def test_without_its_row_nothing_is_shown(site: Site, office: Office) -> None:
    """The log takes no rows: nor does it show any."""
    event = await happened(office, "charge.captured")
    await site.owner.execute("REVOKE INSERT ON audit.events FROM gateway_admin")
    try:
        reply = await office.get(PATH)
    finally:
        await site.owner.execute("GRANT INSERT ON audit.events TO gateway_admin")
    assert reply.status == 503
    assert event.encode() not in reply.body


async def test_finance_reads_no_log(site: Site) -> None:
    """Nor do approvers and records officers."""
    for role in ("finance", "approver", "records"):
        office = await office_of(site, role)
        assert (await office.get(PATH)).status == 403
        assert (await office.page("/audit")).status == 403


async def test_a_question_with_a_card_number_is_refused(office: Office) -> None:
    """For scripts and people, and it is not in the answer."""
    for reply in (await office.get(PATH, subject=CANARY), await office.page("/audit", actor=CANARY)):
        assert reply.status == 422
        assert CANARY.encode() not in reply.body


async def test_the_page_shows_the_same(office: Office) -> None:
    """Rows with names, filters that stay filled, further pages; what is refused says why."""
    for n in range(2):
        await happened(office, "charge.captured", days=n, actor=office.person.staff_id)
    page = (await office.page("/audit", event="charge.captured", limit="1")).body.decode()

    assert office.person.staff_id in page
    assert 'value="charge.captured"' in page
    assert 'rel="next"' in page
    refused = await office.page("/audit", from_="10000-01-01")
    assert refused.status == 400
    assert b"Write a date as 2026-11-23" in refused.body
