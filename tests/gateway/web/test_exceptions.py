"""Exceptions at the admin site: the same things for scripts and for people, and what each is shown."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.gateway.store.postgres import PARKS, UTILITIES
from tests.gateway.store.till import Till, line
from tests.gateway.web.site import Site

pytestmark = pytest.mark.server

YEAR = 2021
LARGE = 1_001
SCRIPT = "<script>alert(1)</script>"


async def differing(site: Site, till: Till, token: str, *off: int) -> list[dict[str, Any]]:
    """Charges about which the processor says so much else, as exceptions, in order of the difference."""
    charges = [await till.capture() for _ in off]
    await till.settle(*(line(charge, by) for charge, by in zip(charges, off, strict=True)))
    day = str(till.day)
    made = await site.call("POST", "/admin/v1/reconciliations", {"from": day, "to": day}, token)
    assert made.status == 201, made.body
    listed = await site.call("GET", f"/admin/v1/exceptions?from={day}&to={day}&limit=200", token=token)
    return sorted(listed.json["data"], key=lambda each: each["difference"])


async def act(site: Site, token: str, one: dict[str, Any], verb: str, body: Any = None, status: int = 200) -> Any:
    """What is answered to an act."""
    reply = await site.call("POST", f"/admin/v1/exceptions/{one['id']}/{verb}", body, token)
    assert reply.status == status, reply.body
    return reply.json


async def test_a_script_settles_one(site: Site, till: Callable[[], Till], finance: str, approver: str) -> None:
    """Each object whole, from open over proposed to settled."""
    here = till()
    (one,) = await differing(site, here, finance, LARGE)
    assert {
        name: one[name] for name in one if name not in {"id", "charge", "reference", "reconciliation", "age_days"}
    } == {
        "object": "exception",
        "department": PARKS,
        "state": "amount_differs",
        "reason": "amount_differs",
        "kind": "charge",
        "difference": LARGE,
        "currency": "USD",
        "date": str(here.day),
        "status": "open",
        "owner": None,
        "resolution": None,
        "note": None,
        "acts": [],
    }
    assert one["age_days"] > 1_000
    taken = await act(site, finance, one, "take")
    assert (taken["status"], [each["what"] for each in taken["acts"]]) == ("open", ["taken"])
    said = await act(site, finance, one, "resolve", {"reason": "written_off", "note": "small change"})
    assert (said["status"], said["resolution"], said["note"]) == ("proposed", "written_off", "small change")
    assert said["owner"] == taken["owner"] == taken["acts"][0]["by"]
    done = await act(site, approver, one, "approve", {"note": "seen"})
    assert (done["status"], [each["act"] for each in done["acts"]]) == ("settled", [1, 2, 3])
    assert done == (await site.call("GET", f"/admin/v1/exceptions/{one['id']}", token=finance)).json
    assert (await act(site, finance, one, "reopen", {"note": "no"}))["status"] == "open"
    in_words = {"reason": "an error of the clerk, see the log of the desk"}
    again = await act(site, finance, one, "resolve", in_words)
    assert (again["resolution"], again["note"]) == ("other", in_words["reason"])
    await act(site, approver, again, "reject", {})
    again = await act(site, finance, one, "resolve", {"reason": "timing"})
    assert (await act(site, approver, again, "reject", {}))["status"] == "open"


async def test_refusals_have_their_types(site: Site, till: Callable[[], Till], finance: str, approver: str) -> None:
    """400 for what is no reason, 409 for what stands otherwise, 422 for a card number; nothing is written."""
    (one,) = await differing(site, till(), finance, 1)
    for body in (
        {},
        {"reason": " "},
        {"reason": "other"},
        {"reason": "timing", "x": 1},
        {"reason": ["timing"]},
    ):
        assert (await act(site, finance, one, "resolve", body, 400))["type"].endswith("/invalid-request")
    card = {"reason": "timing", "note": "4242 4242 4242 4242"}
    refused = await act(site, finance, one, "resolve", card, 422)
    assert (refused["type"].rpartition("/")[2], "4242" in str(refused)) == ("card-number-in-text", False)
    assert (await act(site, approver, one, "approve", {}, 409))["type"].endswith("/already-decided")
    assert (await site.call("GET", f"/admin/v1/exceptions/{one['id']}", token=finance)).json["acts"] == []


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "state=matched",
        "from=1",
        "from=2026-02-30",
        "from=2026-02-02&to=2026-02-01",
        "limit=0",
        "limit=201",
        "other=1",
        "owner=a%00",
    ],
)
async def test_what_the_list_does_not_know(site: Site, finance: str, query: str) -> None:
    """A script is told; a page shows everything and says why, or overlooks what it does not know."""
    assert (await site.call("GET", f"/admin/v1/exceptions?{query}", token=finance)).status == 400
    session = await site.token(await site.person("finance"))
    assert (await site.browse("GET", f"/exceptions?{query}", token=session)).status in {200, 400}


async def test_a_list_is_ones_own(site: Site, till: Callable[[], Till], finance: str) -> None:
    """Another department's is none, listed or by its id; pages of one go on where the last one ended."""
    here = till()
    found = await differing(site, here, finance, 1, 2, 3)
    stranger = await site.token(await site.person("finance", departments=[UTILITIES]))
    query = f"/admin/v1/exceptions?from={here.day}&to={here.day}"
    assert (await site.call("GET", query, token=stranger)).json["data"] == []
    for exception_id in (found[0]["id"], "ex_none"):
        assert (await site.call("GET", f"/admin/v1/exceptions/{exception_id}", token=stranger)).status == 404
    first = (await site.call("GET", f"{query}&limit=2", token=finance)).json
    rest = (await site.call("GET", f"{query}&limit=2&starting_after={first['data'][-1]['id']}", token=finance)).json
    assert (len(first["data"]), first["has_more"], len(rest["data"]), rest["has_more"]) == (2, True, 1, False)
    assert {each["id"] for each in first["data"] + rest["data"]} == {each["id"] for each in found}


async def test_people_settle_one(site: Site, till: Callable[[], Till], finance: str) -> None:
    """With forms alone: taken, proposed with a note that is shown as text, approved by somebody else."""
    here = till()
    (one,) = await differing(site, here, finance, LARGE)
    path, csrf = f"/exceptions/{one['id']}", await site.csrf(finance)

    async def press(verb: str, then: str, token: str = finance, **fields: str) -> str:
        given = fields | {"csrf": await site.csrf(token)}
        reply = await site.browse("POST", f"{path}/{verb}", given, token)
        assert (reply.status, reply.headers["Location"].partition("?")[0]) == (303, then), reply.body
        return (await site.browse("GET", reply.headers["Location"], token=token)).body.decode()

    listed = (await site.browse("GET", f"/exceptions?from={here.day}&status=open", token=finance)).body.decode()
    assert f'href="{path}?from={here.day}&amp;status=open"' in listed
    assert "It is yours now." in await press("take", path)
    assert "an approver has to agree" in await press("resolve", "/exceptions", reason="other", note=SCRIPT)
    shown = (await site.browse("GET", path, token=finance)).body.decode()
    assert "waits for an approver" in shown
    assert SCRIPT not in shown
    assert "&lt;script&gt;" in shown
    assert "Somebody else, with the role of an approver" in shown
    other = await site.token(await site.person("approver"))
    assert f'action="{path}/approve"' in (await site.browse("GET", path, token=other)).body.decode()
    assert "it is settled" in await press("approve", "/exceptions", other)
    refused = await site.browse("POST", f"{path}/resolve", {"reason": "timing", "csrf": csrf}, finance)
    assert (refused.status, "this one is settled" in refused.body.decode()) == (409, True)
    assert "open again" in await press("reopen", path, note="was another")


async def test_one_comes_back_to_the_list_that_one_left(site: Site, till: Callable[[], Till], finance: str) -> None:
    """Its filters stay in every link and form, the notice leads to what was settled; no card number stays."""
    here = till()
    one, _ = await differing(site, here, finance, 1, 2)
    listed = (await site.browse("GET", f"/exceptions?from={here.day}&to={here.day}", token=finance)).body.decode()
    asked = f"?from={here.day}&amp;to={here.day}"
    path = f"/exceptions/{one['id']}"
    assert f'href="{path}{asked}"' in listed
    assert "2 in this list" in listed
    page = (await site.browse("GET", f"{path}?from={here.day}&to={here.day}", token=finance)).body.decode()
    assert f'action="{path}/resolve{asked}"' in page
    given = {"reason": "timing", "csrf": await site.csrf(finance)}
    sent = await site.browse("POST", f"{path}/resolve?from={here.day}&to={here.day}", given, finance)
    back = sent.headers["Location"]
    assert back == f"/exceptions?from={here.day}&to={here.day}&now=resolved&done={one['id']}"
    listed = (await site.browse("GET", back, token=finance)).body.decode()
    assert ("1 in this list" in listed, f'<a href="{path}{asked}">Look at it</a>' in listed) == (True, True)
    typed = (await site.browse("GET", "/exceptions?owner=4242424242424242", token=finance)).body.decode()
    assert "4242424242424242" not in typed


async def test_the_list_is_what_is_to_be_settled(site: Site, till: Callable[[], Till], finance: str) -> None:
    """Who asks for nothing sees what hinders a close: nothing that is settled, and no matter of time."""
    here = till()
    done, left, proposed = await differing(site, here, finance, 1, 2, LARGE)
    last = here.day + timedelta(3)
    await here.capture(days=3)
    await site.call("POST", "/admin/v1/reconciliations", {"from": str(here.day), "to": str(last)}, token=finance)
    for one in (done, proposed):
        await act(site, finance, one, "resolve", {"reason": "timing"})

    async def listed(query: str = "") -> str:
        path = f"/exceptions?from={here.day}&to={last}{query}"
        return (await site.browse("GET", path, token=finance)).body.decode()

    waiting, everything = await listed(), await listed("&status=any")
    assert [each["id"] in waiting for each in (done, proposed, left)] == [False, True, True]
    assert [each["id"] in everything for each in (done, proposed, left)] == [True, True, True]
    assert (waiting.count("<tr>") - 1, everything.count("<tr>") - 1) == (2, 4)
    assert (await listed("&state=timing")).count("<tr>") - 1 == 1


async def test_ticked_ones_are_settled_together(site: Site, till: Callable[[], Till], finance: str) -> None:
    """Small ones at once, the others proposed; who was faster stays right; nothing ticked is nothing done."""
    here = till()
    small, taken, large = await differing(site, here, finance, 1, LARGE, 2)
    await act(site, finance, taken, "resolve", {"reason": "timing"})
    ticked = {each["id"]: "on" for each in (small, large, taken)}
    given = {"csrf": await site.csrf(finance), "reason": "bank_error", "note": "a list from the bank"}
    path = f"/exceptions/settle?from={here.day}&to={here.day}"
    sent = await site.browse("POST", path, given | ticked, finance)
    assert (sent.status, sent.headers["Location"]) == (303, f"/exceptions?from={here.day}&to={here.day}&now=together")
    stand = [(await site.call("GET", f"/admin/v1/exceptions/{name}", token=finance)).json for name in ticked]
    assert [(each["status"], each["resolution"]) for each in stand] == [
        ("settled", "bank_error"),
        ("proposed", "bank_error"),
        ("settled", "timing"),
    ]
    other = given | {small["id"]: "on", "reason": "other", "note": ""}
    for body, words in ((given, "Tick the exceptions"), (other, "takes a note")):
        refused = await site.browse("POST", path, body, finance)
        assert (refused.status, words in refused.body.decode()) == (400, True)


async def test_a_refused_form_comes_back(site: Site, till: Callable[[], Till], finance: str) -> None:
    """With the sentence that says why; what was typed is kept, but for a card number."""
    (one,) = await differing(site, till(), finance, 1)
    csrf, path = await site.csrf(finance), f"/exceptions/{one['id']}/resolve"
    other = await site.browse("POST", path, {"reason": "other", "note": "", "csrf": csrf}, finance)
    assert (other.status, "takes a note" in other.body.decode()) == (400, True)
    card = await site.browse("POST", path, {"reason": "timing", "note": "4242424242424242", "csrf": csrf}, finance)
    assert (card.status, "4242424242424242" in card.body.decode()) == (422, False)
    forged = await site.browse("POST", path, {"reason": "timing"}, finance)
    assert forged.status == 403
