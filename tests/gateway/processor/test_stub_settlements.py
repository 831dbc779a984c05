"""The files that the processor double gives finance: what they say, that they add up, and what is planted in them."""

import csv
import io
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.processor.stub.server import ProcessorStub
from gateway.processor.stub.settlement import fee_of
from gateway.rules.settlement import FeeSchedule
from tests.gateway.processor.caller import KEY, Caller, Clock

pytestmark = pytest.mark.server

DAY = "2027-01-15"
NOON = datetime(2027, 1, 15, 12, tzinfo=UTC).timestamp()
A_DAY_S = 86_400
EMPTY = "reference,type,gross,fee,net,currency,created,settled,batch\n#total,0,0.00,0.00,0.00\n"


async def fetch(caller: Caller, path: str) -> tuple[int, str]:
    """A file of the control listener."""
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{caller.control_url}/v1/{path}"
    async with caller.session.get(url, headers=headers, ssl=caller.tls) as response:
        return response.status, await response.text()


async def settlement(caller: Caller, day: str = DAY, form: str = "native") -> list[dict[str, str]]:
    """The lines of a settlement, its own totals checked."""
    status, text = await fetch(caller, f"settlements/{day}.csv?format={form}")
    assert status == 200
    rows = list(csv.DictReader(io.StringIO(text)))
    if form == "native":
        total = rows.pop()
        assert total["reference"] == "#total"
        assert total["type"] == str(len(rows))
        told = [minor(total[column]) for column in ("gross", "fee", "net")]
        assert told == [sum(minor(row[column]) for row in rows) for column in ("gross", "fee", "net")]
    for row in rows:
        assert minor(row["gross"]) - minor(row["fee"]) == minor(row["net"])
    return rows


async def deposits(caller: Caller, day: str = DAY) -> list[list[str]]:
    """The details of a statement, its control totals and counts checked at every level."""
    status, text = await fetch(caller, f"deposits/{day}.bai")
    assert status == 200
    records = [line.removesuffix("/").split(",") for line in text.splitlines()]
    assert [record[0] for record in records if record[0] != "16"] == ["01", "02", "03", "49", "98", "99"]
    details = [record for record in records if record[0] == "16"]
    account = records[2]
    total = int(account[4]) + int(account[8]) + sum(int(detail[2]) for detail in details)
    assert records[-3] == ["49", str(total), str(len(records) - 4)]
    assert records[-2] == ["98", str(total), "1", str(len(records) - 2)]
    assert records[-1] == ["99", str(total), "1", str(len(records))]
    return details


def minor(text: str) -> int:
    """Minor units of a decimal with two digits."""
    whole, _, part = text.partition(".")
    assert len(part) == 2, text
    return int(whole + part)


async def plant(caller: Caller, **what: Any) -> None:
    """Put differences in the files."""
    status, _ = await caller.ask("PUT", f"{caller.control_url}/v1/discrepancies", what)
    assert status == 200


@pytest.fixture
async def busy(caller: Caller, clock: Clock) -> Caller:
    """A day with two sales, a declined one, an authorization that is captured in part, and a refund."""
    clock.now = NOON
    await caller.sale("sale-1", amount=10_000)
    await caller.sale("sale-2", amount=1_250)
    await caller.sale("declined", card={**_card(), "number": "4000000000000002"})
    await caller.authorize("auth", amount=5_000)
    await caller.capture("cap", charge="auth", amount=4_000)
    await caller.authorize("open", amount=900)
    await caller.refund("re", charge="sale-1", amount=2_500)
    return caller


def _card() -> dict[str, Any]:
    return {"number": "4242424242424242", "exp_month": 12, "exp_year": 2031, "name": "R", "cvc": "737"}


async def test_a_settlement_has_what_moved_money_that_day(busy: Caller) -> None:
    """Sales, captures under their charge's reference, refunds: each with the fee of the contract; nothing else."""
    _, text = await fetch(busy, f"settlements/{DAY}.csv")

    assert text == (
        "reference,type,gross,fee,net,currency,created,settled,batch\n"
        "sale-1,charge,100.00,3.20,96.80,USD,2027-01-15T12:00:00Z,2027-01-15,B20270115\n"
        "sale-2,charge,12.50,0.66,11.84,USD,2027-01-15T12:00:00Z,2027-01-15,B20270115\n"
        "auth,charge,40.00,1.46,38.54,USD,2027-01-15T12:00:00Z,2027-01-15,B20270115\n"
        "re,refund,-25.00,0.00,-25.00,USD,2027-01-15T12:00:00Z,2027-01-15,B20270115\n"
        "#total,4,127.50,5.32,122.18\n"
    )


async def test_stripes_columns_say_the_same(busy: Caller) -> None:
    """Of every line the amounts, the batch as payout, the currency in lower case, our reference, and its charge."""
    for ours, theirs in zip(await settlement(busy), await settlement(busy, form="stripe"), strict=True):
        assert [theirs[column] for column in ("gross", "fee", "net")] == [ours[c] for c in ("gross", "fee", "net")]
        assert (theirs["source_id"], theirs["reporting_category"]) == (ours["reference"], ours["type"])
        assert theirs["automatic_payout_id"] == ours["batch"]
        assert theirs["currency"] == "usd"
        assert theirs["created_utc"] == "2027-01-15 12:00:00"
        assert theirs["automatic_payout_effective_at_utc"] == "2027-01-15 00:00:00"
        assert theirs["charge_id"] == ("sale-1" if ours["type"] == "refund" else ours["reference"])


def test_the_fee_is_what_the_gateway_expects() -> None:
    """Both sides, each by its own sum, take the same of every amount, half a cent rounded up."""
    expected = FeeSchedule(290, 30)

    assert fee_of(500) == 45
    assert all(fee_of(amount) == expected.fee(amount) for amount in range(1, 20_000))


async def test_the_bank_gets_the_net(busy: Caller) -> None:
    """One credit of the day's net that names the batch; on a day with refunds only it is a debit."""
    assert await deposits(busy) == [
        ["16", "142", "12218", "", "ACH202701151", "B20270115", "CARD SETTLEMENT BATCH B20270115"]
    ]


async def test_a_day_with_more_refunds_than_charges_takes_money(busy: Caller, clock: Clock) -> None:
    """The next day's only movement is a refund: the bank took its amount, under a debit's code."""
    clock.now += A_DAY_S
    await busy.refund("re-2", charge="sale-1", amount=700)

    ((_, code, amount, *_),) = await deposits(busy, "2027-01-16")
    assert (code, amount) == ("451", "700")


async def test_an_empty_day_has_a_header_and_a_total(caller: Caller, clock: Clock) -> None:
    """Nothing settled: no line, no deposit, and still whole files."""
    clock.now = NOON

    assert await fetch(caller, f"settlements/{DAY}.csv") == (200, EMPTY)
    assert await deposits(caller) == []


@pytest.mark.parametrize(
    ("text", "status"), [("2027-01-16", 404), ("2027-02-30", 400), ("20270115", 400), ("x", 400)]
)
async def test_a_date_that_is_none_is_refused(caller: Caller, clock: Clock, text: str, status: int) -> None:
    """A day that has not begun is not found, and what is no ISO date is invalid, in both files."""
    clock.now = NOON
    for path in (f"settlements/{text}.csv", f"deposits/{text}.bai"):
        assert (await fetch(caller, path))[0] == status
    assert (await fetch(caller, f"settlements/{DAY}.csv?format=other"))[0] == 400


async def test_money_that_moved_twice_has_two_lines(caller: Caller, stub: ProcessorStub, clock: Clock) -> None:
    """A sale that was delivered a second time stands in the file of each of its days."""
    clock.now = NOON
    await caller.faults(duplicate=1, capability="D")
    await caller.sale("twice")
    clock.now += A_DAY_S
    assert stub.hurry() == 1

    assert [row["reference"] for row in await settlement(caller)] == ["twice"]
    assert [row["reference"] for row in await settlement(caller, "2027-01-16")] == ["twice"]


async def test_lines_can_be_bent_and_left_out(busy: Caller) -> None:
    """Dropped, repeated, off in amount and fee, with the wrong sign: as planted, and the file still adds up."""
    await plant(
        busy, drop=["sale-2"], repeat=["re"], amount_off={"sale-1": 1}, fee_off={"sale-1": 5}, wrong_sign=["auth"]
    )

    told = [(row["reference"], row["gross"], row["fee"]) for row in await settlement(busy)]
    assert told == [
        ("sale-1", "100.01", "3.25"),
        ("auth", "-40.00", "1.46"),
        ("re", "-25.00", "0.00"),
        ("re", "-25.00", "0.00"),
    ]


async def test_lines_can_be_added(busy: Caller) -> None:
    """What nobody charged, what was taken back, and an adjustment; the bank pays what the file says."""
    await plant(busy, unknown=2, chargeback=["sale-1"], adjustment=-150)

    rows = await settlement(busy)
    assert [(row["reference"], row["type"], row["gross"]) for row in rows[4:]] == [
        ("unknown-20270115-1", "charge", "10.01"),
        ("unknown-20270115-2", "charge", "10.02"),
        ("sale-1", "chargeback", "-100.00"),
        ("adjustment-20270115", "adjustment", "-1.50"),
    ]
    net = sum(minor(row["net"]) for row in rows)
    assert [(code, int(amount)) for _, code, amount, *_ in await deposits(busy)] == [
        ("142" if net >= 0 else "451", abs(net))
    ]


async def test_the_bank_can_differ(busy: Caller) -> None:
    """A payment in two parts, and off by some: the settlement knows nothing of either."""
    await plant(busy, split_deposit=True, deposit_off=-3)

    assert [int(amount) for _, _, amount, *_ in await deposits(busy)] == [6107, 6108]
    assert len(await settlement(busy)) == 4


async def test_a_date_confines_what_is_planted(busy: Caller, clock: Clock) -> None:
    """With a date the files of other days are whole, and a chargeback may be of an earlier day's charge."""
    clock.now += 2 * A_DAY_S
    await plant(busy, date="2027-01-17", chargeback=["sale-2"], drop=["sale-1"])

    assert [row["reference"] for row in await settlement(busy)] == ["sale-1", "sale-2", "auth", "re"]
    assert [row["type"] for row in await settlement(busy, "2027-01-17")] == ["chargeback"]
    await plant(busy)
    assert await settlement(busy, "2027-01-17") == []


async def test_what_cannot_be_planted_is_refused(caller: Caller) -> None:
    """An unknown field, or a date that is none, is a 400 that names the place."""
    refused: list[dict[str, Any]] = [{"dropped": []}, {"date": "tomorrow"}, {"unknown": -1}]
    for body in refused:
        status, _ = await caller.ask("PUT", f"{caller.control_url}/v1/discrepancies", body)
        assert status == 400
