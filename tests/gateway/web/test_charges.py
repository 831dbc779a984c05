"""Charges over the wire: each filter, pages without gaps, one's own departments only, the story of one charge."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from gateway.rules.ids import new_id
from tests.cards import CANARY
from tests.gateway.store.postgres import SERVICE
from tests.gateway.web.office import NOON, Office, day, office_of
from tests.gateway.web.site import Site

pytestmark = pytest.mark.server

PATH = "/admin/v1/charges"
OBJECT = {
    *("object", "id", "department", "amount", "currency", "status", "captured", "refunded", "convenience_fee"),
    *("reference", "processor_reference", "service", "gl_codes", "brand", "last4", "chargeback", "date", "created"),
}


@pytest.fixture(scope="module")
async def office(site: Site) -> Office:
    """Of finance."""
    return await office_of(site, "finance")


async def found(office: Office, **asked: str) -> list[str]:
    """The ids that a question finds."""
    reply = await office.get(PATH, **asked)
    assert reply.status == 200, reply.body
    return [row["id"] for row in reply.json["data"]]


async def test_every_filter_finds_what_is_so_and_nothing_else(site: Site) -> None:
    """Two charges that differ in everything: each filter tells them apart, and so does its opposite."""
    office = await office_of(site, "auditor")
    plain = await office.paid(2_000)
    other = await office.paid(
        3_150, days=1, service=SERVICE, reference="INV-7", progress="refused", captured_minor=0, decline_code="no"
    )
    await office.card_of(other, "1881")

    assert await found(office) == [other.charge_id, plain.charge_id]
    assert await found(office, department=office.department) == [other.charge_id, plain.charge_id]
    for asked in (
        {"from_": day(NOON + timedelta(1))},
        {"service": SERVICE},
        {"gl_code": "1"},
        {"status": "declined"},
        {"amount": "3150"},
        {"last4": "1881"},
        {"reference": "INV-7"},
        {"reference": other.reference},
    ):
        assert await found(office, **asked) == [other.charge_id], asked
    for asked in ({"to": day(NOON)}, {"gl_code": "unmapped"}, {"status": "succeeded"}, {"last4": "4242"}):
        assert await found(office, **asked) == [plain.charge_id], asked
    assert await found(office, last4="1881", status="succeeded") == []


async def test_an_object_is_what_the_contract_says(office: Office) -> None:
    """Amounts are minor units, the date is the business date, codes those of that date."""
    made = await office.paid(2_000, refunded=500)
    (row,) = (row for row in (await office.get(PATH)).json["data"] if row["id"] == made.charge_id)

    assert set(row) == OBJECT
    assert (row["amount"], row["captured"], row["refunded"], row["currency"]) == (2_000, 2_000, 500, "USD")
    assert (row["date"], row["created"]) == ("2026-10-05", "2026-10-05T19:00:00+00:00")
    assert (row["brand"], row["last4"], row["gl_codes"], row["chargeback"]) == ("visa", "4242", ["unmapped"], None)


async def test_pages_hold_every_charge_once(site: Site) -> None:
    """Seven charges, four of them of one moment, in pages of three."""
    office = await office_of(site, "finance")
    made = [(await office.paid(100 + n, days=n // 4)).charge_id for n in range(7)]

    seen: list[str] = []
    while True:
        asked = {"limit": "3"} | ({"starting_after": seen[-1]} if seen else {})
        page = (await office.get(PATH, **asked)).json
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
    assert (sorted(seen), len(seen)) == (sorted(made), 7)
    assert (await office.get(PATH, starting_after="ch_none")).status == 404


async def test_nobody_sees_another_department(site: Site, office: Office) -> None:
    """Foreign charges are neither listed nor told, and a foreign department is none; who sees all sees both."""
    neighbour = await office_of(site, "finance")
    theirs, ours = await neighbour.paid(), await office.paid()
    everybody = await site.token(await site.person("finance"))

    assert theirs.charge_id not in await found(office, limit="200")
    assert await found(office, reference=theirs.reference) == []
    assert (await office.get(PATH, department=neighbour.department)).status == 404
    assert (await office.get(f"{PATH}/{theirs.charge_id}")).status == 404
    assert (await office.get(f"{PATH}/ch_none")).status == 404
    assert (await office.get(PATH, starting_after=theirs.charge_id)).status == 404
    for made in (theirs, ours):
        assert (await office.get(f"{PATH}/{made.charge_id}", everybody)).status == 200


@pytest.mark.parametrize(
    "asked",
    [
        *(
            {"from_": text}
            for text in (
                "10000-01-01",
                "2026-1-1",
                "2026-02-30",
                "2026-10-05T00:00:00+14:00",
                "\u0662\u0660\u0662\u0666-10-05",
            )
        ),
        *({"amount": text} for text in ("12.50", "-1", "1e3", "9" * 16)),
        *({"last4": text} for text in ("12345", "12a4", "\uff11\uff12\uff13\uff14")),
        *({"limit": text} for text in ("0", "201", "x")),
        *({"status": "paid"}, {"reference": "a\nb"}, {"colour": "red"}),
    ],
)
async def test_104_a_question_that_is_none_is_refused(office: Office, asked: dict[str, str]) -> None:
    """Years and offsets that there are not, amounts that are none: 400, and nothing of it comes back."""
    reply = await office.get(PATH, **asked)

    assert reply.status == 400
    assert reply.json["type"].endswith("/invalid-request")
    (typed,) = asked.values()
    assert len(typed) < 4 or typed.encode() not in reply.body


async def test_a_card_number_is_no_way_to_look(office: Office) -> None:
    """Refused, in whatever field and dress, for scripts and people; it stands in no answer."""
    printed = " ".join((CANARY[:4], CANARY[4:8], CANARY[8:12], CANARY[12:]))
    replies = [
        await ask(path, **{field: text})
        for ask, path in ((office.get, PATH), (office.page, "/charges"))
        for field in ("reference", "service", "gl_code", "department", "starting_after")
        for text in (CANARY, printed)
    ]

    assert {reply.status for reply in replies} == {422}
    assert CANARY[4:12].encode() not in b"".join(reply.body for reply in replies).replace(b" ", b"")


async def test_a_story_has_everything_in_order(site: Site) -> None:
    """From the charge to its chargeback, whoever may read the audit log with it."""
    office = await office_of(site, "finance")
    made = await office.paid(2_000, refunded=500)
    await _settled(office, made.charge_id, made.reference)
    auditor = await site.token(await site.person("auditor"))
    await site.owner.execute(
        "INSERT INTO audit.events VALUES ($1, $2, now(), 'api', 'charge.captured', 'done', 'x', $3, '', '', $4, 1)",
        *(office.department, new_id("ev"), made.charge_id, bytes(32)),
    )

    own = (await office.get(f"{PATH}/{made.charge_id}")).json
    full = (await office.get(f"{PATH}/{made.charge_id}", auditor)).json

    whats = [(step["what"], step["name"]) for step in own["story"]]
    assert whats == [
        *(("charge", "made"), ("movement", "sale"), ("movement", "refund")),
        *(("journal", "processor_due"), ("journal", "refunds")),
        *(("settlement", "charge"), ("chargeback", "opened"), ("exception", "fee_differs"), ("exception", "taken")),
    ]
    assert own["chargeback"] == "opened"
    assert [step["at"] for step in own["story"]] == sorted(step["at"] for step in own["story"])
    assert own["story"][-1]["by"] == office.person.username
    steps = {(step["what"], step["name"]): step for step in full["story"]}
    assert set(steps) - set(whats) == {("deposit", "175"), ("audit", "charge.captured")}
    assert steps["deposit", "175"]["amount"] == 1_900


async def _settled(office: Office, charge_id: str, reference: str) -> None:
    """The charge was settled, deposited with its batch, charged back, and somebody looks into its fee."""
    run, write = await office.reconciled("x"), office.site.owner.execute
    settlement, deposit, exception = new_id("im"), new_id("im"), new_id("ex")
    for import_id, kind, month_day in ((settlement, "settlement", 6), (deposit, "deposit", 7)):
        await write(
            "INSERT INTO gateway.imports VALUES ($1, $2, 'native', $3, 1, 2000, 100, 1900, 'USD', '{}', $4, $5)",
            *(import_id, kind, sha256(import_id.encode()).digest(), office.person.staff_id),
            datetime(2026, 10, month_day, tzinfo=UTC),
        )
    await write(
        "INSERT INTO gateway.settlement_lines VALUES ($1, $2, 2, 'charge', $3, $4, 2000, 100, 1900, 'USD',"
        " '2026-10-05', '2026-10-06', $2, '2026-10-05')",
        *(office.department, settlement, charge_id, reference),
    )
    await write(
        "INSERT INTO gateway.deposit_lines VALUES ('city', $1, 3, '175', 1900, 'USD', '2026-10-07', $2, 'BR1')",
        *(deposit, settlement),
    )
    await write(
        "INSERT INTO gateway.chargebacks VALUES ($1, $2, 1, 'opened', 2000, 'USD', $3, 4, '2026-10-08')",
        *(office.department, charge_id, settlement),
    )
    await write(
        "INSERT INTO gateway.exceptions VALUES ($1, $2, $3, 'fee_differs', 'fee_differs', $4, $5, 42, 'USD',"
        " '2026-10-05', '2026-10-09')",
        *(office.department, exception, run, charge_id, reference),
    )
    await write(
        "INSERT INTO gateway.exception_acts VALUES ($1, $2, 1, 'taken', '', '', $3, '2026-10-10')",
        *(office.department, exception, office.person.staff_id),
    )


async def test_97_pages_show_the_same_as_text(office: Office) -> None:
    """A reference that is markup is text in the list and in the story; filters stay filled, pages lead on."""
    made = await office.paid(1_234, reference="<script>alert(1)</script>")
    listed = (await office.page("/charges", amount="12.34")).body.decode()
    story = (await office.page(f"/charges/{made.charge_id}")).body.decode()

    assert f'href="/charges/{made.charge_id}"' in listed
    assert 'value="12.34"' in listed
    for page in (listed, story):
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page
    for _ in range(2):
        await office.paid(77)
    first = (await office.page("/charges", amount="0.77", limit="1")).body.decode()
    assert 'rel="next"' in first
    assert "amount=0.77" in first.partition('rel="next"')[0].rpartition("href=")[2]


async def test_a_form_that_is_refused_comes_back_empty(office: Office) -> None:
    """With a sentence, and without what was typed."""
    assert (await office.page("/charges", amount="1,234.50")).status == 200
    reply = await office.page("/charges", amount="12,50")

    assert reply.status == 400
    assert b"Write an amount like 12.50." in reply.body
    assert b"12,50" not in reply.body
