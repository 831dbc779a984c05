"""Requests whose first run died between its two commits: nothing is asked or sent again behind anybody's back.

A run dies here by cancellation, which leaves of it exactly what a killed process leaves: what was committed.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.errors import FieldNotTaken, IdempotencyKeyReused, RequestInProgress, TokenInUse
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.recovery import Offers
from gateway.services.points import Point
from gateway.services.ports import Absent, Answer, Approved, Declined, Inquiry, NotFound, Outcome, Unknown
from tests.gateway.store.city import Page, caller, given
from tests.gateway.store.far import FarSide
from tests.gateway.store.quarter import Quarter

pytestmark = pytest.mark.server

CARD, OTHER_CARD = 63_001, 63_500
KEY = "key"
AUTHORIZE = {"capture": False}


@pytest.fixture
def page(quarter: Quarter) -> Page:
    """A payment page before a processor that takes everything and answers nothing."""
    return quarter.page(FarSide(held=True))


async def die(page: Page, run: Coroutine[Any, Any, object]) -> None:
    """Start this, and end it while it waits for the processor."""
    task = asyncio.ensure_future(run)
    await page.far.reached.wait()
    task.cancel()
    await asyncio.wait([task])
    page.far.reached.clear()


async def token(page: Page, card: int = CARD) -> Answer:
    """Ask for a token of a card with its code."""
    return await page.tokens.create(caller(page.department), given(card, cvc=True), "multi", KEY, "req_1")


async def charge(page: Page, card: int = CARD) -> Answer:
    """Charge a card with its code."""
    return await page.ask(KEY, card=given(card, cvc=True))


async def charge_id(quarter: Quarter) -> str:
    """The charge that is there."""
    (only,) = await quarter.rows("charges")
    return only


def body_id(answer: Answer) -> str:
    """The id of what an answer shows."""
    return str(msgspec.json.decode(answer.body)["id"])


async def test_a_died_verification_is_not_repeated(quarter: Quarter, page: Page) -> None:
    """Whoever repeats the request gets one token whose code was not checked; the processor is asked once."""
    await die(page, token(page))
    with pytest.raises(RequestInProgress):
        await token(page)
    await quarter.expire()
    with pytest.raises(IdempotencyKeyReused):
        await token(page, OTHER_CARD)

    both = await asyncio.gather(token(page), token(page), return_exceptions=True)
    (first,) = {answer for answer in both if isinstance(answer, Answer)}
    assert all(isinstance(answer, Answer | RequestInProgress) for answer in both)
    assert first.status == 201
    assert msgspec.json.decode(first.body)["checks"]["cvc"] == "unavailable"
    assert await token(page) == first
    assert len(page.far.verified) == 1
    assert body_id(first) == await quarter.owner.fetchval(
        "SELECT subject_id FROM gateway.idempotency WHERE department_id = $1", quarter.department
    )


async def test_who_takes_over_a_died_run_brings_nothing_past_the_contract(quarter: Quarter, page: Page) -> None:
    """The second run's details are judged as the first one's were: they are not what the key compares."""
    await die(page, token(page))
    await quarter.expire()
    who = replace(caller(page.department), personal_fields={})
    more = replace(given(CARD, cvc=True), details={"religion": "x"}, consent={"origin": "y"})
    with pytest.raises(FieldNotTaken) as refused:
        await page.tokens.create(who, more, "multi", KEY, "req_2")
    assert refused.value.pointers == ("/details/religion", "/consent")
    assert await quarter.rows("tokens") == {}
    assert (await token(page)).status == 201


@pytest.mark.parametrize("said", [Approved("pass"), Declined("fail", "data", "N7")], ids=["approved", "declined"])
async def test_a_run_that_outlives_its_hold_gives_the_answer_that_was_given(
    quarter: Quarter, page: Page, said: Outcome
) -> None:
    """When another run has answered under the key meanwhile, a slow one gives that answer, whatever it was told."""
    slow = asyncio.create_task(token(page))
    await page.far.reached.wait()
    await quarter.expire()
    first = await token(page)
    page.far.verifies = said
    page.far.release()

    assert await slow == first == await token(page)
    assert set(await quarter.rows("deks")) == {body_id(first)}


async def test_a_running_charge_is_left_alone(quarter: Quarter, page: Page) -> None:
    """While the first request is at work nobody asks the processor beside it, and no worker takes it from it."""
    running = asyncio.create_task(charge(page))
    await page.far.reached.wait()
    with pytest.raises(RequestInProgress):
        await charge(page)
    assert await quarter.recovery(page.far).turn() == 0
    assert (len(page.far.sent), page.far.inquired) == (1, [])
    page.far.release()
    assert (await running).status == 201
    assert await charge(page) == await running


async def test_a_died_charge_is_pending_until_somebody_knows(quarter: Quarter, page: Page) -> None:
    """Whoever repeats the request is told that nobody knows; the page neither sends nor asks again."""
    await die(page, charge(page))
    with pytest.raises(RequestInProgress):
        await charge(page)
    await quarter.expire()
    for _ in range(3):
        answer = await charge(page)
        assert (answer.status, answer.location) == (202, f"/v1/charges/{await charge_id(quarter)}")
        assert msgspec.json.decode(answer.body)["status"] == "pending"
    with pytest.raises(IdempotencyKeyReused):
        await charge(page, OTHER_CARD)
    assert (len(page.far.sent), page.far.inquired) == (1, [])


FOUND = [
    pytest.param(Approved("pass"), 201, "succeeded", id="captured"),
    pytest.param(Declined("fail", "soft", "05"), 402, "declined", id="declined"),
    pytest.param(Absent(), 502, "failed", id="void"),
    pytest.param(NotFound(Offers(cancel=True)), 502, "failed", id="cancelled"),
    pytest.param(NotFound(Offers()), 202, "pending", id="not-found"),
    pytest.param(Unknown("timeout"), 202, "pending", id="unknown"),
]


@pytest.mark.parametrize(("found", "status", "shown"), FOUND)
async def test_a_worker_finds_out_what_became_of_it(
    quarter: Quarter, page: Page, found: Inquiry, status: int, shown: str
) -> None:
    """What the processor knows of a died charge is what its key is answered from then on; it is never sent again."""
    await die(page, charge(page))
    await quarter.expire()
    page.far.finds = found
    assert await quarter.recovery(page.far).turn() == 1
    answer = await charge(page)
    body = msgspec.json.decode(answer.body)
    assert (answer.status, body.get("charge", body)["status"]) == (status, shown)
    assert (await page.charges.show(caller(page.department), await charge_id(quarter))).status == shown
    assert await charge(page) == answer
    await quarter.expire()
    assert await quarter.recovery(page.far).turn() == (1 if shown == "pending" else 0)
    assert len(page.far.sent) == 1
    assert len(page.far.inquired) == (2 if shown == "pending" else 1)


async def test_a_died_charge_keeps_its_card(quarter: Quarter, page: Page) -> None:
    """Until somebody knows what became of it, the card of a died charge cannot be erased."""
    await die(page, charge(page))
    await quarter.expire()
    (token_id,) = await quarter.rows("tokens")
    with pytest.raises(TokenInUse):
        await page.erase(token_id)
    page.far.finds = Approved("pass")
    await quarter.recovery(page.far).turn()
    await page.erase(token_id)
    assert (await quarter.rows("tokens"))[token_id]["status"] == "erased"


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.VOID, Kind.REFUND])
async def test_a_died_movement_is_found_out_too(quarter: Quarter, kind: Kind) -> None:
    """A capture, void or refund whose run died is pending under its key, and then what the processor knows of it."""
    page = quarter.page(FarSide())
    made = await page.charge("first", card=CARD, capture=kind is Kind.REFUND)
    page.far.held = True
    page.far.reached.clear()
    await die(page, page.move(kind, made["id"], KEY))
    with pytest.raises(RequestInProgress):
        await page.move(kind, made["id"], KEY)
    await quarter.expire()
    assert (await page.move(kind, made["id"], KEY)).status == 202
    page.far.finds = Approved("unchecked")
    await quarter.recovery(page.far).turn()
    answer = await page.move(kind, made["id"], KEY)
    assert answer.status == (201 if kind is Kind.REFUND else 200)
    assert await page.move(kind, made["id"], KEY) == answer
    assert [movement.kind for movement in page.far.sent[1:]] == [kind]


@pytest.mark.parametrize("point", [Point.RECEIVED, Point.COMMITTED, Point.OPENED, Point.SENT, Point.STORED])
async def test_a_run_that_dies_anywhere_loses_nothing(quarter: Quarter, point: Point) -> None:
    """Before its commit nothing is there, and the key is free; after it the worker ends what was begun, as it was."""

    class Died(Exception):
        pass

    async def dying(reached: Point) -> None:
        if reached is point:
            raise Died

    far = FarSide()
    made = await quarter.page(far).token(CARD, usage="single")
    with pytest.raises(Died):
        await quarter.page(far, dying).ask(KEY, token=made["id"])
    sent = len(far.sent)
    assert sent == (1 if point in {Point.SENT, Point.STORED} else 0)
    charges = list((await quarter.rows("charges")).values())
    assert len(charges) == (0 if point is Point.RECEIVED else 1)
    stands = {Point.STORED: Progress.DONE}.get(point, Progress.SENDING)
    assert all(row["progress"] == stands for row in charges)

    await quarter.expire()
    far.finds = Approved("unchecked") if sent else NotFound(Offers(cancel=True))
    await quarter.recovery(far).turn()
    answer = await quarter.page(far).ask(KEY, token=made["id"])
    assert answer.status == (502 if point in {Point.COMMITTED, Point.OPENED} else 201)
    assert len(far.sent) == (1 if answer.status == 201 else 0)
    assert (await quarter.rows("tokens"))[made["id"]]["status"] == ("spent" if answer.status == 201 else "active")
