"""The staff's site: signing in and out, the password, and refunds that wait for an approver.

A form that is refused comes back with a sentence and without what was typed.
"""

from importlib.resources import files
from typing import ClassVar

import msgspec
from aiohttp import web

from gateway.errors import PasswordRefused, SignInRefused
from gateway.rules.lifecycle import Verdict
from gateway.rules.staff import Permission
from gateway.services.approvals import SHOWN_MAX, Approvals
from gateway.services.staff import StaffSessions
from gateway.web.gate import FORM, PUBLIC, SESSION, STAFF, StaffRoute, hand_over, see_other, take_back
from gateway.web.renderer import Renderer, may
from gateway.web.schema import Typed, convert
from gateway.web.server import REQUEST_ID
from keys.secret import Secret


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
        StaffRoute("GET", "/sign-in", "sign_in_page", PUBLIC),
        StaffRoute("POST", "/sign-in", "sign_in", PUBLIC),
        StaffRoute("POST", "/sign-out", "sign_out", Permission.HOME, for_change=True),
        StaffRoute("GET", "/password", "password_page", Permission.HOME, for_change=True),
        StaffRoute("POST", "/password", "change_password", Permission.HOME, for_change=True),
        StaffRoute("GET", "/refunds", "refunds", Permission.REFUNDS_READ),
        StaffRoute("POST", "/refunds/{id}", "decide_refund", Permission.REFUNDS_DECIDE),
        StaffRoute("GET", "/static/admin.css", "style", PUBLIC),
        StaffRoute("GET", "/static/admin.js", "script", PUBLIC),
    )

    def __init__(
        self, sessions: StaffSessions, approvals: Approvals, renderer: Renderer, *, with_provider: bool = False
    ) -> None:
        self._sessions = sessions
        self._approvals = approvals
        self._page = renderer.page
        self._with_provider = with_provider
        static = files("gateway.web").joinpath("static")
        self._style, self._script = (static.joinpath(f"admin.{kind}").read_bytes() for kind in ("css", "js"))

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
        decides = may(request[STAFF], Permission.REFUNDS_DECIDE)
        return self._page(request, "refunds.html", refunds=waiting, decides=decides, most=SHOWN_MAX)

    async def decide_refund(self, request: web.Request) -> web.Response:
        """`POST /refunds/{id}`."""
        verdict = convert(request[FORM], VerdictForm).verdict
        await self._approvals.decide(request[STAFF], request.match_info["id"], verdict, request[REQUEST_ID])
        return see_other(f"/refunds?{verdict}")

    async def style(self, _request: web.Request) -> web.Response:
        """`GET /static/admin.css`."""
        return web.Response(body=self._style, content_type="text/css", charset="utf-8")

    async def script(self, _request: web.Request) -> web.Response:
        """`GET /static/admin.js`."""
        return web.Response(body=self._script, content_type="text/javascript", charset="utf-8")
