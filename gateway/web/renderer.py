"""What all pages of the staff's site have in common: how one is rendered, where it leads, how a refusal looks.

Whatever a page shows goes through the template's escaping. `templates/parts.html` has the parts that pages are built
from: tables, filters, states, pages to turn.
"""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

import jinja2
import structlog
from aiohttp import web

from gateway.errors import GatewayError
from gateway.log import described
from gateway.rules.money import ENABLED
from gateway.rules.problems import TYPES
from gateway.rules.staff import EVERYWHERE, PERMISSIONS, Permission, Staff
from gateway.services.staff import StaffSessions
from gateway.web.gate import SESSION, STAFF
from gateway.web.problems import RETRY_AFTER_S, describe, slug_of
from gateway.web.server import REQUEST_ID

NAVIGATION: Final = (
    ("/", "Today", Permission.HOME),
    ("/charges", "Charges", Permission.LEDGER_READ),
    ("/settlements", "Settlements", Permission.LEDGER_READ),
    ("/deposits", "Deposits", Permission.LEDGER_READ),
    ("/reconciliations", "Reconciliation", Permission.LEDGER_READ),
    ("/exceptions", "Exceptions", Permission.LEDGER_READ),
    ("/closes", "Closes", Permission.LEDGER_READ),
    ("/refunds", "Refunds", Permission.REFUNDS_READ),
    ("/exports", "Exports", Permission.EXPORTS_MAKE),
    ("/audit", "Audit", Permission.AUDIT_READ),
)
"""What the header leads to, and who is shown it."""

NOTICES: Final[Mapping[str, str]] = {
    "/sign-in?ended": "Your session has ended. Sign in again.",
    "/sign-in?out": "You are signed out.",
    "/password?first": "Choose a password of your own before anything else.",
    "/?changed": "Your password is changed. Wherever else you were signed in, you are not any more.",
    "/refunds?approved": "Approved: the refund is being sent.",
    "/refunds?rejected": "Rejected: nothing is given back.",
}
"""What a page says on top, by its address: ours are these words alone."""

REFUSALS: Final[Mapping[str, tuple[str, str]]] = {
    "not-found": ("There is nothing here", "It may be gone, or not yours to see. Go back to the start page."),
    "not-permitted": ("Not granted to you", "If your work needs it, ask whoever grants the accounts."),
    "method-not-allowed": ("That is not how it is done", "Go back to the start page and begin again."),
    "sign-in-refused": ("You are not signed in", "Go back to the start page and try again."),
    "already-decided": ("Somebody was faster", "It is decided, and stays so. Look at the list for what still waits."),
    "invalid-request": ("The form did not arrive whole", "Go back, load the page again, and send it once more."),
    "unavailable": ("Not possible at this moment", "Wait a moment, then look whether it is done."),
    "internal-error": ("Something went wrong here", "It has been noted. If it stays so, call the operators."),
}
"""Heading and advice, by the slug of the same refusal as a problem document."""


class Renderer:
    """Pages for who is signed in. `city` is in whose time zone moments are told."""

    def __init__(self, sessions: StaffSessions, city: ZoneInfo) -> None:
        self._sessions = sessions
        self._city = city
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("gateway.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "money": _money,
            "when": self._when,
            "day": _day,
            "place": _place,
            "rounded": _rounded,
        }

    def refusal(self, request: web.Request, error: Exception) -> web.Response:
        """The page of an error, of any: it says what to do, with the status of the same error as JSON."""
        match error:
            case web.HTTPNotFound():
                slug, detail = "not-found", ""
            case web.HTTPMethodNotAllowed():
                slug, detail = "method-not-allowed", ""
            case _ if told := describe(error):
                slug, detail, _ = told
            case _:
                slug, detail = "internal-error", ""
                structlog.get_logger().error("request.failed", **described(error), request_id=request[REQUEST_ID])
        heading, advice = REFUSALS.get(slug, (TYPES[slug].title, "Go back and try again."))
        answer = self.page(request, "refusal.html", heading=heading, detail=detail, advice=advice)
        answer.set_status(TYPES[slug].status)
        if slug == "unavailable":
            answer.headers["Retry-After"] = RETRY_AFTER_S
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = error.headers["Allow"]
        return answer

    def page(
        self, request: web.Request, template: str, refused: GatewayError | None = None, **shown: Any
    ) -> web.Response:
        """A page, or a form that comes back with why it was refused."""
        staff, session = request.get(STAFF), request.get(SESSION)
        html = self._templates.get_template(template).render(
            staff=staff,
            csrf=self._sessions.csrf(session) if session else "",
            navigation=[entry for entry in NAVIGATION if staff and may(staff, entry[2])],
            here=request.path,
            refused=refused.detail if refused else "",
            notice=NOTICES.get(request.raw_path, ""),
            everywhere=EVERYWHERE,
            **shown,
        )
        status = TYPES[slug_of(refused)].status if refused else 200
        return web.Response(text=html, status=status, content_type="text/html")

    def _when(self, moment: datetime) -> str:
        return f"{moment.astimezone(self._city):%-d %b %Y, %H:%M}"


def may(staff: Staff, permission: Permission) -> bool:
    """Whether to show what leads to a thing; whether it is done, the gate and the service judge."""
    return any(permission in PERMISSIONS[role] for role in staff.roles)


def _money(amount_minor: int, currency: str) -> str:
    digits = ENABLED[currency]
    return f"{currency} {Decimal(amount_minor).scaleb(-digits):,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _rounded(amount_minor: int, currency: str) -> str:
    """As a scale shows it, in whole units: 800, 4k, 1.2M."""
    units = Decimal(amount_minor).scaleb(-ENABLED[currency])
    for digits, unit in ((6, "M"), (3, "k")):
        if units >= 10**digits:
            return f"{units.scaleb(-digits).normalize():f}{unit}"
    return f"{units.normalize():f}"


def _day(day: date) -> str:
    return f"{day:%-d\N{NO-BREAK SPACE}%b\N{NO-BREAK SPACE}%Y}"


def _place(department: str) -> str:
    return department.replace("_", " ").capitalize()
