"""A convenience fee over HTTP: bounded by the cost that the database documents (standards K8)."""

from datetime import date, timedelta
from typing import Any

import pytest

from gateway.services.callers import FRESH_S, Callers
from tests.gateway.store.door import opened
from tests.gateway.store.quarter import Quarter
from tests.gateway.store.test_who_may_call import CHARGE, DIGEST_KEYS, Desk

pytestmark = pytest.mark.server

COST = "INSERT INTO gateway.fee_costs VALUES ($1, $2, $3, $4)"
LONG_AGO = date(2020, 1, 1)


async def answers(quarter: Quarter, *fees: int, documented_only: bool = False) -> list[Any]:
    """What charges of 43.21 with these fees are answered: their status, and what problem with which field."""
    page = quarter.page()
    page.charges._documented_only = documented_only
    await page.keyring.look()
    callers = Callers(quarter.store(quarter.api), DIGEST_KEYS, quarter.clock)
    found: list[Any] = []
    async with opened(quarter, page, callers.identify) as door:
        desk = Desk(quarter, door, callers)
        caller = await desk.application()
        desk.later(FRESH_S)
        for fee in fees:
            before = await desk.rows()
            reply = await desk.call(caller, "POST", "/v1/charges", CHARGE | {"convenience_fee": fee}, f"fee-{fee}")
            if reply.status == 201:
                found.append(reply.json["convenience_fee"])
                continue
            assert await desk.rows() == before
            found.append((reply.status, reply.problem, reply.json["errors"]))
    return found


REFUSED = (422, "amount-refused", [{"pointer": "#/convenience_fee"}])


async def test_a_fee_above_its_cost_is_refused(quarter: Quarter) -> None:
    """Of 43.21 at 2.9 % and 0.30 the fee is 1.55 at most, whatever held before or will hold; nothing is stored."""
    ahead = (quarter.clock.now() + timedelta(days=2)).date()
    for since, basis_points, fixed in ((LONG_AGO, 0, 0), (date(2020, 1, 2), 290, 30), (ahead, 10_000, 0)):
        await quarter.owner.execute(COST, quarter.department, since, basis_points, fixed)

    assert await answers(quarter, 0, 155, 156) == [0, 155, REFUSED]


async def test_without_a_cost_it_is_the_profile_that_decides(quarter: Quarter) -> None:
    """Nobody documented a cost: a demo takes the fee, production takes none but no fee."""
    assert await answers(quarter, 4_000) == [4_000]
    assert await answers(quarter, 0, 1, documented_only=True) == [0, REFUSED]
