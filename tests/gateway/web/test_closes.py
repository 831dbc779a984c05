"""Closes at the admin site: proposed, approved, opened again, and the pack that is downloaded and checked."""

import base64
import hashlib
import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from gateway.rules.pack import Seal
from tests.gateway.store.postgres import PARKS
from tests.gateway.store.till import Till, line
from tests.gateway.web.site import Site

pytestmark = pytest.mark.server

YEAR = 2016


async def propose(site: Site, token: str, till: Till, status: int = 201, **more: str) -> Any:
    """What is answered to a proposal of the till's day."""
    body = {"from": str(till.day), "to": str(till.day)} | more
    reply = await site.call("POST", "/admin/v1/closes", body, token)
    assert reply.status == status, reply.body
    return reply.json


async def act(site: Site, token: str, close: Any, verb: str, body: Any = None, status: int = 200) -> Any:
    """What is answered to an act."""
    reply = await site.call("POST", f"/admin/v1/closes/{close['id']}/{verb}", body, token)
    assert reply.status == status, reply.body
    return reply.json


async def test_scripts_close_and_open_again(
    site: Site, till: Callable[[], Till], finance: str, approver: str
) -> None:
    """Each object whole, from the proposal to the reopening."""
    here = till()
    await here.settle(line(await here.capture()))
    proposed = await propose(site, finance, here)
    assert {"city", "parks", "utilities"} <= set(proposed.pop("departments"))  # and whatever other tests made
    assert {name: proposed[name] for name in proposed if name not in {"id", "acts", "reconciliation", "totals"}} == {
        "object": "close",
        "from": str(here.day),
        "to": str(here.day),
        "status": "proposed",
        "counts": {"matched": 1}
        | dict.fromkeys(("timing", "amount_differs", "fee_differs", "missing_here", "missing_there", "duplicate"), 0),
        "pack": None,
    }
    assert proposed["totals"]["ledger"] == 4_321
    assert (await act(site, finance, proposed, "approve", {}, 403))["type"].endswith("/not-permitted")
    closed = await act(site, approver, proposed, "approve", {})
    assert (closed["status"], [each["what"] for each in closed["acts"]]) == ("closed", ["proposed", "approved"])
    assert closed == (await site.call("GET", f"/admin/v1/closes/{closed['id']}", token=finance)).json
    assert (await propose(site, finance, here, 409))["type"].endswith("/period-closed")
    await act(site, finance, closed, "reopen", {"reason": " "}, 400)
    asked = await act(site, finance, closed, "reopen", {"reason": "a late file"})
    assert (asked["status"], asked["acts"][-1]["reason"]) == ("reopening", "a late file")
    assert (await act(site, approver, asked, "reopen/refuse", {"reason": "no"}))["status"] == "closed"
    await act(site, finance, closed, "reopen", {"reason": "a late file, really"})
    assert (await act(site, approver, asked, "reopen/approve", {}))["status"] == "reopened"
    again = await propose(site, finance, here, department=PARKS)
    assert (await act(site, approver, again, "reject", {"reason": "later"}))["status"] == "rejected"
    listed = (await site.call("GET", "/admin/v1/closes?limit=1", token=finance)).json
    rest = await site.call("GET", f"/admin/v1/closes?starting_after={listed['data'][0]['id']}", token=finance)
    assert {closed["id"], again["id"]} <= {each["id"] for each in listed["data"] + rest.json["data"]}


async def test_what_stands_in_the_way(site: Site, till: Callable[[], Till], finance: str) -> None:
    """Unsettled exceptions, dates that have not ended or are none: each with its type and words for people."""
    here = till()
    await here.settle(line(await here.capture(), 1))
    refused = await propose(site, finance, here, 409)
    assert (refused["type"].rpartition("/")[2], "One exception" in refused["detail"]) == ("exceptions-open", True)
    ahead = Till(site.owner, PARKS, date(2095, 1, 1))
    assert (await propose(site, finance, ahead, 422))["type"].endswith("/period-refused")
    await propose(site, finance, here, 404, department="nowhere")
    for body in ({}, {"from": "x", "to": "y"}, {"from": "2026-11-01", "to": "2026-11-01", "z": 1}):
        assert (await site.call("POST", "/admin/v1/closes", body, finance)).status == 400


async def test_the_pack_is_downloaded_and_checked(
    site: Site, till: Callable[[], Till], finance: str, approver: str
) -> None:
    """By scripts and by people the same bytes, with hash (RFC 9530) and signature; the listed key checks them."""
    here = till()
    await here.settle(line(await here.capture()))
    close = await act(site, approver, await propose(site, finance, here), "approve", {})
    path = f"/admin/v1/closes/{close['id']}"
    pack = await site.call("GET", f"{path}/pack", token=finance)
    signature = await site.call("GET", f"{path}/signature", token=finance)
    digest = hashlib.sha256(pack.body).digest()

    assert pack.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert pack.headers["Pack-Signature"] == f"key=1, signature=:{close['pack']['signature']}:"
    assert pack.headers["Content-Disposition"] == f'attachment; filename="{close["id"]}.pack.json"'
    assert close["pack"]["sha256"] == digest.hex()
    assert json.loads(pack.body)["close"] == close["id"]
    keys = (await site.call("GET", "/admin/v1/closes/keys", token=finance)).json["data"]
    assert [(key["number"], key["algorithm"]) for key in keys] == [(1, "Ed25519")]
    Seal.read(signature.body).require(pack.body, base64.b64decode(keys[0]["public_key"]))
    for name, body in (("pack.json", pack.body), ("pack.sig", signature.body)):
        assert (await site.browse("GET", f"/closes/{close['id']}/{name}", token=finance)).body == body


async def test_a_changed_row_is_told_loudly(
    site: Site, till: Callable[[], Till], finance: str, approver: str
) -> None:
    """409 with its own type, a page that says whom to tell, and a line in the audit log."""
    here = till()
    await here.settle(line(await here.capture()))
    close = await act(site, approver, await propose(site, finance, here), "approve", {})
    await site.owner.execute(
        "UPDATE gateway.settlement_lines SET batch = 'other' WHERE department_id = $1 AND business_date = $2",
        *(PARKS, here.day),
    )
    told = await site.call("GET", f"/admin/v1/closes/{close['id']}/pack", token=finance)
    assert (told.status, told.json["type"].rpartition("/")[2]) == (409, "pack-differs")
    page = await site.browse("GET", f"/closes/{close['id']}/pack.json", token=finance)
    assert (page.status, "Tell whoever looks after the database" in page.body.decode()) == (409, True)
    events = await site.owner.fetch("SELECT event, outcome FROM audit.events WHERE subject = $1", close["id"])
    # Each look writes a line for each department.
    told_of = [tuple(row) for row in events].count(("close.pack_differs", "failed"))
    assert told_of == 2 * len(close["departments"])


async def test_people_are_led_to_what_is_in_the_way(site: Site, till: Callable[[], Till], finance: str) -> None:
    """A close that exceptions hinder is refused with a link to them, and with the dates that were typed."""
    here = till()
    await here.settle(line(await here.capture(), 5))
    day = str(here.day)
    given = {"from": day, "to": day, "department": PARKS, "csrf": await site.csrf(finance)}
    refused = await site.browse("POST", "/closes", given, finance)
    page = refused.body.decode()
    link = f"/exceptions?from={day}&amp;to={day}&amp;department={PARKS}"
    assert (refused.status, f'href="{link}"' in page, f'value="{day}"' in page) == (409, True, True)
    listed = await site.browse("GET", link.replace("&amp;", "&"), token=finance)
    assert "1 in this list" in listed.body.decode()


async def test_people_close(site: Site, till: Callable[[], Till], finance: str, approver: str) -> None:
    """With forms alone; what is refused comes back with the reason, and what was typed."""
    here = till()
    await here.settle(line(await here.capture()))
    dates = {"from": str(here.day), "to": str(here.day), "department": ""}

    async def press(path: str, token: str, **fields: str) -> tuple[int, str, str]:
        reply = await site.browse("POST", path, fields | {"csrf": await site.csrf(token)}, token)
        return reply.status, reply.headers.get("Location", ""), reply.body.decode()

    status, place, _ = await press("/closes", finance, **dates)
    assert (status, place.endswith("?now=proposed")) == (303, True)
    path = place.partition("?")[0]
    shown = (await site.browse("GET", place, token=finance)).body.decode()
    assert "Proposed: an approver looks at it now." in shown
    assert f'action="{path}/approve"' not in shown
    assert f'action="{path}/approve"' in (await site.browse("GET", path, token=approver)).body.decode()
    status, _, body = await press("/closes", finance, **dates)
    assert (status, "somebody has proposed to close them" in body, str(here.day) in body) == (409, True, True)
    for verb, token, fields, said in (
        ("approve", approver, {}, "The pack is signed."),
        ("reopen", finance, {"reason": "<b>late</b>"}, "an approver decides"),
        ("reopen/refuse", approver, {"reason": "no"}, "They stay closed."),
        ("reopen", finance, {"reason": "late"}, "an approver decides"),
        ("reopen/approve", approver, {}, "Open again."),
    ):
        status, place, body = await press(f"{path}/{verb}", token, **fields)
        assert (status, place) == (303, f"{path}?now={verb}"), body
        page = (await site.browse("GET", place, token=token)).body.decode()
        assert said in page
        assert "<b>late" not in page
    listed = (await site.browse("GET", "/closes", token=finance)).body.decode()
    assert f'href="{path}"' in listed
    status, _, body = await press("/closes", finance, **(dates | {"to": "2001-01-01"}))
    assert (status, "first date comes after" in body) == (422, True)


async def test_who_sees_a_part_of_it(site: Site, till: Callable[[], Till], finance: str, approver: str) -> None:
    """Somebody of one department sees that its dates are closed, and not what the city's close came to."""
    here = till()
    close = await act(site, approver, await propose(site, finance, here), "approve", {})
    part = await site.token(await site.person("approver", departments=[PARKS]))
    seen = (await site.call("GET", f"/admin/v1/closes/{close['id']}", token=part)).json
    assert (seen["departments"], seen["counts"], seen["totals"], seen["status"]) == ([PARKS], None, None, "closed")
    await act(site, part, close, "reopen", {"reason": "late"}, 403)
    assert (await site.call("GET", f"/admin/v1/closes/{close['id']}/pack", token=part)).status == 403
    page = await site.browse("GET", f"/closes/{close['id']}", token=part)
    assert (page.status, "not in your grant" in page.body.decode()) == (200, True)
