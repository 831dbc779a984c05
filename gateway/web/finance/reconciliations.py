"""Reconciliations, for scripts and for people: make one, and look at what it says, item by item."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date
from typing import Any, ClassVar

import msgspec
from aiohttp import web

from gateway.errors import InvalidRequest, PeriodRefused
from gateway.rules.match import State
from gateway.rules.staff import Permission
from gateway.services.reconciliations import ReconciledItem, Reconciliation, Reconciliations
from gateway.web.answer import answer, first
from gateway.web.finance.asked import limit as asked_limit
from gateway.web.finance.asked import place
from gateway.web.gate import FORM, QUERY, STAFF, StaffRoute, see_other
from gateway.web.renderer import Renderer, may
from gateway.web.schema import Typed, convert, read_body
from gateway.web.server import REQUEST_ID

LISTED = 50
"""So many on a page."""
CALM = frozenset({State.MATCHED, State.TIMING})
"""About these nothing is to be done."""
PAGED = frozenset({"limit", "starting_after"})


WORDS: Mapping[State, str] = {
    State.MATCHED: "ledger and processor agree",
    State.TIMING: "no file has come yet",
    State.AMOUNT_DIFFERS: "same reference, other amount",
    State.FEE_DIFFERS: "another fee than agreed",
    State.MISSING_HERE: "not in the ledger",
    State.MISSING_THERE: "not in the file of that day",
    State.DUPLICATE: "there once more than it should be",
}
REASONS: Mapping[str, str] = {
    "not_settled": "A file of that day came, and this is not in it.",
    "not_settled_yet": "No file of that day came yet.",
    "currency_differs": "Another currency.",
    "sign_differs": "The amount has the wrong sign.",
    "amount_differs": "Another amount.",
    "fee_differs": "Another fee than agreed with the processor.",
    "repeated": "The same once more.",
    "unknown_reference": "Nobody here knows this reference.",
    "not_captured_here": "The charge was not captured here.",
    "refund_unknown": "There was no such refund here.",
    "chargeback": "The bank of the cardholder took it back.",
    "adjustment": "The processor adjusted it.",
    "deposit_differs": "The bank has another amount than the batch comes to.",
    "deposit_without_settlement": "No settlement file has a batch for this deposit.",
}
"""What the rules say, in words for people."""


class AskedBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /admin/v1/reconciliations`: business dates, both included; all departments of the grant, or one."""

    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")
    department: Typed | None = None


class ReconciliationsFace:
    """The handlers, and what they need."""

    routes: ClassVar = (
        StaffRoute("POST", "/admin/v1/reconciliations", "make", Permission.RECONCILIATIONS_MAKE),
        StaffRoute("GET", "/admin/v1/reconciliations", "latest", Permission.LEDGER_READ, takes=PAGED),
        StaffRoute("GET", "/admin/v1/reconciliations/{id}", "get", Permission.LEDGER_READ),
        StaffRoute(
            "GET", "/admin/v1/reconciliations/{id}/items", "items", Permission.LEDGER_READ, takes=PAGED | {"state"}
        ),
        StaffRoute(
            "GET", "/reconciliations", "list_page", Permission.LEDGER_READ, takes=frozenset({"starting_after"})
        ),
        StaffRoute("POST", "/reconciliations", "make_page", Permission.RECONCILIATIONS_MAKE),
        StaffRoute(
            *("GET", "/reconciliations/{id}", "page", Permission.LEDGER_READ),
            takes=frozenset({"state", "starting_after"}),
        ),
    )

    def __init__(self, reconciliations: Reconciliations, renderer: Renderer) -> None:
        self._reconciliations = reconciliations
        self._page = renderer.page

    # --- for scripts ---

    async def make(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/reconciliations`."""
        body = read_body(await request.read(), AskedBody)
        return answer(_object(await self._make(request, body)), 201)

    async def latest(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/reconciliations`."""
        query = request[QUERY]
        limit = asked_limit(query)
        made = await self._reconciliations.latest(request[STAFF], limit + 1, query.get("starting_after"))
        return first([_object(one) for one in made], limit)

    async def get(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/reconciliations/{id}`."""
        return answer(_object(await self._reconciliations.get(request[STAFF], request.match_info["id"])))

    async def items(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/reconciliations/{id}/items`."""
        query = request[QUERY]
        limit = asked_limit(query)
        found = await self._items(request, limit, State)
        return first([_item(one) for one in found], limit)

    # --- for people ---

    async def list_page(self, request: web.Request) -> web.Response:
        """`GET /reconciliations`."""
        return await self._list_page(request)

    async def make_page(self, request: web.Request) -> web.Response:
        """`POST /reconciliations`."""
        given = {name: text for name, text in request[FORM].items() if text}
        try:
            made = await self._make(request, convert(given, AskedBody))
        except PeriodRefused as error:
            return await self._list_page(request, error, given)
        return see_other(f"/reconciliations/{made.reconciliation_id}")

    async def page(self, request: web.Request) -> web.Response:
        """`GET /reconciliations/{id}`: all items about which something is to be done, or those of a state."""
        made = await self._reconciliations.get(request[STAFF], request.match_info["id"])
        state = _state(request[QUERY])
        found = await self._items(request, LISTED, [state for state in State if state not in CALM])
        return self._page(
            request,
            "reconciliation.html",
            made=made,
            state=state,
            states=list(State),
            words=WORDS,
            reasons=REASONS,
            exports=may(request[STAFF], Permission.EXPORTS_MAKE),
            items=found[:LISTED],
            last=str(found[LISTED - 1].item) if len(found) > LISTED else "",
            begun=bool(request[QUERY].get("starting_after")),
        )

    async def _list_page(
        self, request: web.Request, refused: PeriodRefused | None = None, given: Mapping[str, str] | None = None
    ) -> web.Response:
        after = request[QUERY].get("starting_after")
        made = await self._reconciliations.latest(request[STAFF], LISTED + 1, after)
        return self._page(
            request,
            "reconciliations.html",
            refused,
            made=made[:LISTED],
            last=made[LISTED - 1].reconciliation_id if len(made) > LISTED else "",
            begun=bool(after),
            given={"from": "", "to": "", "department": ""} | dict(given or {}),
            departments=await self._reconciliations.departments(request[STAFF]),
            makes=may(request[STAFF], Permission.RECONCILIATIONS_MAKE),
        )

    async def _make(self, request: web.Request, body: AskedBody) -> Reconciliation:
        asked = body.first, body.last, body.department or None
        return await self._reconciliations.make(request[STAFF], *asked, request[REQUEST_ID])

    async def _items(self, request: web.Request, limit: int, usual: Iterable[State]) -> list[ReconciledItem]:
        """One more than asked for, of the state that is asked for or of the usual ones."""
        query = request[QUERY]
        state, after = _state(query), place(query)
        asked = request.match_info["id"], [state] if state else list(usual), limit + 1, after
        return list(await self._reconciliations.items(request[STAFF], *asked))


def _state(query: dict[str, str]) -> State | None:
    """The state that is asked for; raises `InvalidRequest`."""
    try:
        return State(query["state"]) if "state" in query else None
    except ValueError:
        raise InvalidRequest(f"`state` is one of: {', '.join(State)}.") from None


def _object(made: Reconciliation) -> dict[str, Any]:
    """Totals are minor units; `inputs` are SHA-256 of files, in hex."""
    return {
        "object": "reconciliation",
        "id": made.reconciliation_id,
        "from": made.from_date,
        "to": made.to_date,
        "departments": made.departments,
        "counts": made.counts,
        "totals": made.totals,
        "inputs": made.inputs,
        "created": made.made_at.astimezone(UTC),
    }


def _item(item: ReconciledItem) -> dict[str, Any]:
    """Amounts are minor units, negative where money leaves; null is what there is nothing of."""
    return {
        "object": "reconciliation_item",
        "id": str(item.item),
        "state": item.state,
        "reason": item.reason,
        "department": item.department,
        "date": item.business_date,
        "kind": item.kind,
        "charge": item.charge_id,
        "reference": item.reference,
        "ledger": item.ledger_minor,
        "settled": item.settled_minor,
        "deposited": item.deposited_minor,
        "fee": item.fee_minor,
        "expected_fee": item.expected_fee_minor,
        "difference": item.difference_minor,
        "currency": item.currency,
        "batch": item.batch,
        "exception": item.exception_id,
    }
