"""Charges, as a list with filters and each with its whole story, for people and for scripts."""

from collections.abc import Mapping
from datetime import UTC
from typing import Any, ClassVar
from urllib.parse import urlencode

from aiohttp import web

from gateway.errors import CardNumberInText, InvalidRequest, NotFound
from gateway.rules.staff import Permission
from gateway.services.charge_search import STATES, ChargeSearch, Found, Page, Question, Step
from gateway.web.answer import answer, listed
from gateway.web.finance.asked import amount_minor, days, limit, text
from gateway.web.gate import QUERY, STAFF, StaffRoute
from gateway.web.renderer import Renderer

FILTERS = ("from", "to", "department", "service", "gl_code", "status", "amount", "last4", "reference")
TAKES = frozenset({*FILTERS, "limit", "starting_after"})
EXPORTED = ("from", "to", "department")
"""The filters that an export has, too."""


class ChargesFace:
    """The handlers of charges."""

    routes: ClassVar = (
        StaffRoute("GET", "/admin/v1/charges", "list_charges", Permission.LEDGER_READ, takes=TAKES),
        StaffRoute("GET", "/admin/v1/charges/{id}", "get_charge", Permission.LEDGER_READ),
        StaffRoute("GET", "/charges", "charges", Permission.LEDGER_READ, takes=TAKES),
        StaffRoute("GET", "/charges/{id}", "charge", Permission.LEDGER_READ),
    )

    def __init__(self, search: ChargeSearch, renderer: Renderer) -> None:
        self._search = search
        self._page = renderer.page

    async def list_charges(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/charges`."""
        asked = request[QUERY]
        page = await self._search.search(request[STAFF], _question(asked, typed=False))
        data = [_charge(found) for found in page.found]
        return listed(data, has_more=page.has_more)

    async def get_charge(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/charges/{id}`."""
        found, story = await self._search.story(request[STAFF], request.match_info["id"])
        return answer(_charge(found) | {"story": [_step(step) for step in story]})

    async def charges(self, request: web.Request) -> web.Response:
        """`GET /charges`."""
        asked = request[QUERY]
        try:
            page = await self._search.search(request[STAFF], _question(asked, typed=True))
        except (CardNumberInText, InvalidRequest) as error:
            return self._listed(request, {}, Page([], has_more=False), error)
        except NotFound:
            if "department" not in asked:
                raise
            return self._listed(request, asked, Page([], has_more=False))
        return self._listed(request, asked, page)

    async def charge(self, request: web.Request) -> web.Response:
        """`GET /charges/{id}`."""
        found, story = await self._search.story(request[STAFF], request.match_info["id"])
        return self._page(request, "charge.html", found=found, story=story)

    def _listed(
        self,
        request: web.Request,
        asked: Mapping[str, str],
        page: Page,
        refused: InvalidRequest | CardNumberInText | None = None,
    ) -> web.Response:
        """A page of the list. A question that was refused comes back empty."""
        filters = {name: asked[name] for name in FILTERS if name in asked}
        last = page.found[-1].charge.charge_id if page.has_more else None
        return self._page(
            request,
            "charges.html",
            refused,
            found=page.found,
            asked=dict.fromkeys(FILTERS, "") | filters,
            statuses=[(status, status.replace("_", " ").capitalize()) for status in STATES],
            next_url=last and "/charges?" + urlencode(filters | {"starting_after": last}),
            first_url="/charges?" + urlencode(filters) if "starting_after" in asked else None,
            export="/exports?" + urlencode({n: v for n, v in filters.items() if n in EXPORTED} | {"kind": "charges"}),
        )


def _question(asked: Mapping[str, str], *, typed: bool) -> Question:
    """Raises `InvalidRequest`."""
    last4 = text(asked, "last4")
    if last4 is not None and not (len(last4) == 4 and last4.isascii() and last4.isdigit()):  # noqa: PLR2004 - its name
        raise InvalidRequest("Of the card, write its last four digits.", ["/last4"])
    return Question(
        limit(asked),
        *days(asked),
        text(asked, "department"),
        text(asked, "service"),
        text(asked, "gl_code"),
        text(asked, "status"),
        amount_minor(asked, typed=typed),
        last4,
        text(asked, "reference"),
        text(asked, "starting_after"),
    )


def _charge(found: Found) -> dict[str, Any]:
    """Amounts in minor units; `date` is the business date. An erased card has neither brand nor last4."""
    charge = found.charge
    return {
        "object": "charge",
        "id": charge.charge_id,
        "department": charge.department,
        "amount": charge.amount_minor,
        "currency": charge.currency,
        "status": charge.status,
        "captured": charge.captured_minor,
        "refunded": charge.refunded_minor,
        "convenience_fee": charge.convenience_fee_minor,
        "reference": charge.reference,
        "processor_reference": charge.processor_reference,
        "service": charge.service,
        "gl_codes": list(found.gl_codes),
        "brand": charge.brand,
        "last4": charge.last4,
        "chargeback": charge.chargeback,
        "date": found.day.isoformat(),
        "created": charge.created_at.astimezone(UTC).isoformat(),
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "at": step.at.astimezone(UTC).isoformat(),
        "what": step.what,
        "name": step.name,
        "state": step.state,
        "amount": step.amount_minor,
        "fee": step.fee_minor,
        "currency": step.currency,
        "reference": step.reference,
        "by": step.who,
        "note": step.note,
        "date": step.day and step.day.isoformat(),
    }
