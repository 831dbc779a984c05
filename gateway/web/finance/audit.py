"""The audit log, for auditors and their scripts."""

from datetime import UTC
from typing import Any, ClassVar
from urllib.parse import urlencode

from aiohttp import web

from gateway.errors import CardNumberInText, InvalidRequest, NotFound
from gateway.rules.staff import Permission
from gateway.services.audit_trail import AuditTrail, Told, Wanted
from gateway.web.answer import listed
from gateway.web.finance.asked import days, limit, text
from gateway.web.gate import QUERY, STAFF, StaffRoute
from gateway.web.renderer import Renderer
from gateway.web.server import REQUEST_ID

FILTERS = ("from", "to", "department", "event", "actor", "subject")
TAKES = frozenset({*FILTERS, "limit", "starting_after"})


class AuditFace:
    """The handlers of the audit log."""

    routes: ClassVar = (
        StaffRoute("GET", "/admin/v1/audit", "list_events", Permission.AUDIT_READ, takes=TAKES),
        StaffRoute("GET", "/audit", "events", Permission.AUDIT_READ, takes=TAKES),
    )

    def __init__(self, trail: AuditTrail, renderer: Renderer) -> None:
        self._trail = trail
        self._page = renderer.page

    async def list_events(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/audit`."""
        rows, has_more = await self._trail.search(request[STAFF], _wanted(request[QUERY]), request[REQUEST_ID])
        return listed([_event(row) for row in rows], has_more=has_more)

    async def events(self, request: web.Request) -> web.Response:
        """`GET /audit`. A question that was refused comes back empty."""
        asked = request[QUERY]
        try:
            rows, has_more = await self._trail.search(request[STAFF], _wanted(asked), request[REQUEST_ID])
        except (CardNumberInText, InvalidRequest) as error:
            return self._page(request, "audit.html", error, rows=[], asked=_filled({}), next_url=None, first_url=None)
        except NotFound:
            if "department" not in asked:
                raise
            rows, has_more = [], False
        filters = {name: asked[name] for name in FILTERS if name in asked}
        return self._page(
            request,
            "audit.html",
            rows=rows,
            asked=_filled(filters),
            next_url="/audit?" + urlencode(filters | {"starting_after": rows[-1].event_id}) if has_more else None,
            first_url="/audit?" + urlencode(filters) if "starting_after" in asked else None,
        )


def _filled(filters: dict[str, str]) -> dict[str, str]:
    return dict.fromkeys(FILTERS, "") | filters


def _wanted(asked: dict[str, str]) -> Wanted:
    """Raises `InvalidRequest`."""
    names = ("department", "event", "actor", "subject", "starting_after")
    return Wanted(limit(asked), *days(asked), *(text(asked, name) for name in names))


def _event(row: Told) -> dict[str, Any]:
    """`actor` is an id, `name` that of somebody of the staff."""
    return {
        "id": row.event_id,
        "department": row.department,
        "at": row.occurred_at.astimezone(UTC).isoformat(),
        "process": row.process,
        "event": row.event,
        "outcome": row.outcome,
        "actor": row.actor,
        "name": row.name,
        "subject": row.subject,
        "reason": row.reason,
        "request_id": row.request_id,
    }
