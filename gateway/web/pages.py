"""The admin site for people: pages rendered here, without a line of script.

Whatever a page shows goes through the template's escaping. A form that is refused comes back with a sentence and
without what was typed.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo

import jinja2
import msgspec
import structlog
from aiohttp import web

from gateway.errors import GatewayError, PasswordRefused, SignInRefused
from gateway.rules.lifecycle import Verdict
from gateway.rules.money import ENABLED
from gateway.rules.problems import TYPES
from gateway.rules.staff import EVERYWHERE, PERMISSIONS, Permission, Staff
from gateway.services.approvals import SHOWN_MAX, Approvals
from gateway.services.staff import StaffSessions
from gateway.web.gate import FORM, PUBLIC, SESSION, STAFF, StaffRoute, hand_over, see_other, take_back
from gateway.web.problems import RETRY_AFTER_S, SLUGS, describe
from gateway.web.schema import Typed, convert
from gateway.web.server import REQUEST_ID, described
from keys.secret import Secret

NAVIGATION: Final = (
    ("/", "Home", Permission.HOME),
    ("/refunds", "Refunds", Permission.REFUNDS_READ),
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


class SignInForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /sign-in`."""

    username: Typed
    password: Typed
    code: Typed

    def __repr__(self) -> str:
        return "SignInForm(…)"


class PasswordForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /password`."""

    old: Typed
    new: Typed
    again: Typed

    def __repr__(self) -> str:
        return "PasswordForm(…)"


class VerdictForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /refunds/{id}`: which button was pressed."""

    verdict: Verdict


class Pages:
    """The handlers, and what they need. `with_provider`: the city's own may be asked, too."""

    routes: ClassVar = (
        StaffRoute("GET", "/", "home", Permission.HOME),
        StaffRoute("GET", "/sign-in", "sign_in_page", PUBLIC),
        StaffRoute("POST", "/sign-in", "sign_in", PUBLIC),
        StaffRoute("POST", "/sign-out", "sign_out", Permission.HOME, for_change=True),
        StaffRoute("GET", "/password", "password_page", Permission.HOME, for_change=True),
        StaffRoute("POST", "/password", "change_password", Permission.HOME, for_change=True),
        StaffRoute("GET", "/refunds", "refunds", Permission.REFUNDS_READ),
        StaffRoute("POST", "/refunds/{id}", "decide_refund", Permission.REFUNDS_DECIDE),
        StaffRoute("GET", "/static/admin.css", "style", PUBLIC),
    )

    def __init__(
        self, sessions: StaffSessions, approvals: Approvals, city: ZoneInfo, *, with_provider: bool = False
    ) -> None:
        self._sessions = sessions
        self._approvals = approvals
        self._city = city
        self._with_provider = with_provider
        self._style = files("gateway.web").joinpath("static", "admin.css").read_bytes()
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("gateway.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {"money": _money, "when": self._when, "place": _place}

    async def home(self, request: web.Request) -> web.Response:
        """`GET /`."""
        reads = _may(request[STAFF], Permission.REFUNDS_READ)
        waiting = await self._approvals.waiting(request[STAFF]) if reads else None
        return self._page(request, "home.html", waiting=waiting, most=SHOWN_MAX)

    async def sign_in_page(self, request: web.Request) -> web.Response:
        """`GET /sign-in`."""
        return self._page(request, "sign_in.html", with_provider=self._with_provider)

    async def sign_in(self, request: web.Request) -> web.Response:
        """`POST /sign-in`."""
        form = convert(request[FORM], SignInForm)
        code = form.code.replace(" ", "")  # as authenticators print it
        try:
            signed_in = await self._sessions.sign_in(
                form.username, Secret(form.password), code, "browser", request[REQUEST_ID]
            )
        except SignInRefused as error:
            return self._page(request, "sign_in.html", error, with_provider=self._with_provider)
        return hand_over(see_other("/password?first" if signed_in.must_change else "/"), signed_in)

    async def sign_out(self, request: web.Request) -> web.Response:
        """`POST /sign-out`."""
        await self._sessions.end(request[SESSION], request[REQUEST_ID])
        return take_back(see_other("/sign-in?out"))

    async def password_page(self, request: web.Request) -> web.Response:
        """`GET /password`."""
        return self._page(request, "password.html")

    async def change_password(self, request: web.Request) -> web.Response:
        """`POST /password`."""
        form = convert(request[FORM], PasswordForm)
        if form.new != form.again:
            return self._page(request, "password.html", PasswordRefused("The two new passwords differ."))
        try:
            await self._sessions.change_password(
                request[STAFF], Secret(form.old), Secret(form.new), request[REQUEST_ID]
            )
        except PasswordRefused as error:
            return self._page(request, "password.html", error)
        return see_other("/?changed")

    async def refunds(self, request: web.Request) -> web.Response:
        """`GET /refunds`."""
        waiting = await self._approvals.waiting(request[STAFF])
        decides = _may(request[STAFF], Permission.REFUNDS_DECIDE)
        return self._page(request, "refunds.html", refunds=waiting, decides=decides, most=SHOWN_MAX)

    async def decide_refund(self, request: web.Request) -> web.Response:
        """`POST /refunds/{id}`."""
        verdict = convert(request[FORM], VerdictForm).verdict
        await self._approvals.decide(request[STAFF], request.match_info["id"], verdict, request[REQUEST_ID])
        return see_other(f"/refunds?{verdict}")

    async def style(self, _request: web.Request) -> web.Response:
        """`GET /static/admin.css`."""
        return web.Response(body=self._style, content_type="text/css", charset="utf-8")

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
        answer = self._page(request, "refusal.html", heading=heading, detail=detail, advice=advice)
        answer.set_status(TYPES[slug].status)
        if slug == "unavailable":
            answer.headers["Retry-After"] = RETRY_AFTER_S
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = error.headers["Allow"]
        return answer

    def _page(
        self, request: web.Request, template: str, refused: GatewayError | None = None, **shown: Any
    ) -> web.Response:
        """A page, or a form that comes back with why it was refused."""
        staff, session = request.get(STAFF), request.get(SESSION)
        html = self._templates.get_template(template).render(
            staff=staff,
            csrf=self._sessions.csrf(session) if session else "",
            navigation=[entry for entry in NAVIGATION if staff and _may(staff, entry[2])],
            here=request.path,
            refused=refused.detail if refused else "",
            notice=NOTICES.get(request.raw_path, ""),
            everywhere=EVERYWHERE,
            **shown,
        )
        status = TYPES[SLUGS[type(refused)]].status if refused else 200
        return web.Response(text=html, status=status, content_type="text/html")

    def _when(self, moment: datetime) -> str:
        return f"{moment.astimezone(self._city):%-d %b %Y, %H:%M}"


def _may(staff: Staff, permission: Permission) -> bool:
    """Whether to show what leads to a thing; whether it is done, the gate and the service judge."""
    return any(permission in PERMISSIONS[role] for role in staff.roles)


def _money(amount_minor: int, currency: str) -> str:
    digits = ENABLED[currency]
    return f"{currency} {Decimal(amount_minor).scaleb(-digits):,.{digits}f}"


def _place(department: str) -> str:
    return department.replace("_", " ").capitalize()
