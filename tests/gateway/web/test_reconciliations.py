"""Reconciliations over the wire: the contract's answers for scripts, and the pages of finance without JavaScript."""

from datetime import date, timedelta
from secrets import token_hex
from typing import Any

import pytest

from gateway.rules.match import State
from tests.gateway.store.postgres import PARKS, UTILITIES
from tests.gateway.store.till import Line, Till, line
from tests.gateway.web.site import Person, Site

pytestmark = pytest.mark.server

PATH = "/admin/v1/reconciliations"
ITEM = {
    *("object", "id", "state", "reason", "department", "date", "kind", "charge", "reference", "ledger", "settled"),
    *("deposited", "fee", "expected_fee", "difference", "currency", "batch", "exception"),
}


@pytest.fixture(scope="module")
async def finance(site: Site) -> Person:
    """Somebody of finance with all departments."""
    return await site.person("finance")


@pytest.fixture(scope="module")
async def token(site: Site, finance: Person) -> str:
    """Their session."""
    return await site.token(finance)


@pytest.fixture(scope="module")
async def day(site: Site) -> date:
    """A day with three charges that agree, and one of each of three differences; not in the bank yet."""
    till = Till(site.owner, PARKS, date(2026, 11, 2))
    charges = [await till.capture(1_000 + n) for n in range(5)]
    good = [line(charge) for charge in charges[:3]]
    await till.settle(*good, good[0], line(charges[3], 1), Line(f"=HYPERLINK(1)<b>{token_hex(2)}", 500))
    return till.day


def asked(day: date, **more: str) -> dict[str, str]:
    """Until tomorrow."""
    return {"from": day.isoformat(), "to": (day + timedelta(1)).isoformat()} | more


async def test_the_contract(site: Site, token: str, day: date) -> None:
    """Seven counts, totals, and items by state, page by page."""
    made = await site.call("POST", PATH, asked(day), token)
    body = made.json
    counts = {"matched": 3, "amount_differs": 1, "missing_there": 1, "missing_here": 1, "duplicate": 1}

    assert made.status == 201
    assert body["counts"] == dict.fromkeys(map(str, State), 0) | counts
    assert (body["from"], body["to"]) == ("2026-11-02", "2026-11-03")
    assert body["totals"]["awaiting_deposit"] == body["totals"]["net"] > 0
    assert (await site.call("GET", f"{PATH}/{body['id']}", token=token)).json == body
    items = await pages(site, f"{PATH}/{body['id']}/items?limit=2", token)
    assert sorted(item["state"] for item in items) == sorted(
        state for state, count in body["counts"].items() for _ in range(count)
    )
    assert all(set(item) == ITEM for item in items)
    (differs,) = (await site.call("GET", f"{PATH}/{body['id']}/items?state=amount_differs", token=token)).json["data"]
    told = {name: differs[name] for name in ("state", "ledger", "settled", "deposited", "reason", "difference")}
    assert told == {
        "state": "amount_differs",
        "reason": "amount_differs",
        "ledger": 1_003,
        "settled": 1_004,
        "deposited": None,
        "difference": 1,
    }
    assert differs["charge"].startswith("ch_")
    assert differs["exception"].startswith("ex_")
    listed = (await site.call("GET", f"{PATH}?limit=1", token=token)).json
    assert [one["id"] for one in listed["data"]] == [body["id"]]


async def test_one_department(site: Site, token: str, day: date) -> None:
    """What is asked for one of them is of that one; an unknown one is none."""
    made = await site.call("POST", PATH, asked(day, department=PARKS), token)
    assert made.json["departments"] == [PARKS]
    assert made.json["counts"]["missing_here"] == 0
    empty = await site.call("POST", PATH, asked(day, department=UTILITIES), token)
    assert set(empty.json["counts"].values()) == {0}
    assert (await site.call("POST", PATH, asked(day, department="nowhere"), token)).status == 404


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        ({"from": "2026-11-02"}, 400, "invalid-request"),
        ({"from": "2026-11-02", "to": "yesterday"}, 400, "invalid-request"),
        ({"from": "2026-11-02", "to": 5}, 400, "invalid-request"),
        ({"from": "2026-11-02", "to": "2026-11-02", "more": 1}, 400, "invalid-request"),
        ({"from": "2026-11-03", "to": "2026-11-02"}, 422, "period-refused"),
        ({"from": "2025-01-01", "to": "2026-11-02"}, 422, "period-refused"),
        ({"from": "9999-12-31", "to": "9999-12-31"}, 422, "period-refused"),
        ({"from": "0001-01-01", "to": "0001-01-01"}, 422, "period-refused"),
    ],
)
async def test_what_is_refused(site: Site, token: str, body: dict[str, Any], status: int, slug: str) -> None:
    """Dates that are none are not the schema; those that are no range are refused with words."""
    reply = await site.call("POST", PATH, body, token)
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (status, slug)
    assert reply.json["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "state=lost", "starting_after=-1", "page=2"])
async def test_a_query_that_is_wrong(site: Site, token: str, day: date, query: str) -> None:
    """It is refused, and not overlooked."""
    made = (await site.call("POST", PATH, asked(day), token)).json
    assert (await site.call("GET", f"{PATH}/{made['id']}/items?{query}", token=token)).status == 400


async def test_the_pages(site: Site, token: str, day: date) -> None:
    """A form without JavaScript, then what does not agree, what does, and three sides that tie."""
    form = {"csrf": await site.csrf(token), "department": ""} | asked(day)
    sent = await site.browse("POST", "/reconciliations", form, token)
    assert sent.status == 303
    path = sent.headers["Location"]
    differences = (await site.browse("GET", path, token=token)).body.decode()
    matched = (await site.browse("GET", f"{path}?state=matched", token=token)).body.decode()

    assert "=HYPERLINK(1)&lt;b&gt;" in differences
    assert "<b>" not in differences
    assert differences.count('href="/exceptions/ex_') == 4
    assert (matched.count('href="/exceptions/ex_'), matched.count('href="/charges/')) == (0, 3)
    assert "The bank: deposited" in differences
    listed = (await site.browse("GET", "/reconciliations", token=token)).body.decode()
    assert f'href="{path}"' in listed


async def test_a_form_that_is_refused_comes_back(site: Site, token: str, day: date) -> None:
    """With a sentence, and with the dates as they were typed."""
    form = {"csrf": await site.csrf(token), "from": "2026-11-05", "to": "2026-11-02", "department": PARKS}
    page = await site.browse("POST", "/reconciliations", form, token)

    assert page.status == 422
    text = page.body.decode()
    assert "The first date comes after the last one." in text
    assert 'value="2026-11-05"' in text


async def test_one_department_has_no_bank(site: Site, day: date) -> None:
    """Who sees one department reads why the bank's side is not there, and nothing of the city's."""
    person = await site.person("approver", departments=[PARKS])
    token = await site.token(person)
    made = (await site.call("POST", PATH, asked(day), token)).json

    assert made["totals"]["deposited"] is None
    page = (await site.browse("GET", f"/reconciliations/{made['id']}", token=token)).body.decode()
    assert "The bank: deposited" not in page
    assert "whole city" in page
    assert "HYPERLINK" not in page


async def pages(site: Site, path: str, token: str) -> list[dict[str, Any]]:
    """A whole list."""
    found: list[dict[str, Any]] = []
    while True:
        after = f"&starting_after={found[-1]['id']}" if found else ""
        page = (await site.call("GET", path + after, token=token)).json
        found += page["data"]
        if not page["has_more"]:
            return found
