"""The admin site for scripts: JSON under `/admin/v1`, the same things as the pages, and the health routes."""

from datetime import UTC, datetime
from typing import Literal

import msgspec
from aiohttp import web

from gateway.rules.lifecycle import Verdict
from gateway.rules.staff import Permission
from gateway.services.approvals import SHOWN_MAX, Approvals, WaitingRefund
from gateway.services.staff import StaffSessions
from gateway.web.answer import answer, listed
from gateway.web.gate import PUBLIC, SESSION, STAFF, StaffRoute
from gateway.web.health import Health
from gateway.web.schema import Typed, read_body
from gateway.web.server import REQUEST_ID
from keys.secret import Secret

EMPTY = b"{}"

ROUTES = (
    StaffRoute("POST", "/admin/v1/sessions", "sign_in", PUBLIC),
    StaffRoute("DELETE", "/admin/v1/sessions", "sign_out", Permission.HOME, for_change=True),
    StaffRoute("GET", "/admin/v1/me", "me", Permission.HOME),
    StaffRoute("POST", "/admin/v1/password", "change_password", Permission.HOME, for_change=True),
    StaffRoute("GET", "/admin/v1/refunds", "refunds", Permission.REFUNDS_READ),
    StaffRoute("POST", "/admin/v1/refunds/{id}/approve", "approve_refund", Permission.REFUNDS_DECIDE),
    StaffRoute("POST", "/admin/v1/refunds/{id}/reject", "reject_refund", Permission.REFUNDS_DECIDE),
    StaffRoute("GET", "/healthz", "healthz", PUBLIC),
    StaffRoute("GET", "/readyz", "readyz", PUBLIC),
)


class SignInBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /admin/v1/sessions`: both factors at once; `totp` is six digits."""

    username: Typed
    password: Typed
    totp: Typed

    def __repr__(self) -> str:
        return "SignInBody(…)"


class PasswordBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /admin/v1/password`."""

    old: Typed
    new: Typed

    def __repr__(self) -> str:
        return "PasswordBody(…)"


class NothingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the route says all."""


class SessionObject(msgspec.Struct, frozen=True):
    """A session of a script: what to send as Bearer, and when it ends at the latest, however busy it is."""

    token: str
    expires: datetime

    def __repr__(self) -> str:
        return "SessionObject(…)"


class StaffObject(msgspec.Struct, frozen=True):
    """Who is signed in. `departments` is `["*"]` for all of them, also those to come."""

    username: str
    roles: list[str]
    departments: list[str]


class WaitingRefundObject(msgspec.Struct, frozen=True):
    """A refund that an approver decides about. Amounts are minor units; `verdict` is null while it waits."""

    object: Literal["refund"]
    id: str
    charge: str
    department: str
    application: str
    amount: int
    currency: str
    reference: str
    card: dict[str, str | None]
    status: Literal["awaiting_approval"]
    suspended: bool
    verdict: str | None
    created: datetime


class Admin:
    """The handlers, and what they need."""

    routes = ROUTES

    def __init__(self, sessions: StaffSessions, approvals: Approvals, health: Health) -> None:
        self._sessions = sessions
        self._approvals = approvals
        self._health = health

    async def sign_in(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/sessions`."""
        body = read_body(await request.read(), SignInBody)
        signed_in = await self._sessions.sign_in(
            body.username, Secret(body.password), body.totp, "script", request[REQUEST_ID]
        )
        return answer(SessionObject(signed_in.session.reveal(), signed_in.expires.astimezone(UTC)), 201)

    async def sign_out(self, request: web.Request) -> web.Response:
        """`DELETE /admin/v1/sessions`."""
        await self._sessions.end(request[SESSION], request[REQUEST_ID])
        return web.Response(status=204)

    async def me(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/me`."""
        staff = request[STAFF]
        return answer(StaffObject(staff.username, sorted(staff.roles), sorted(staff.departments)))

    async def change_password(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/password`."""
        body = read_body(await request.read(), PasswordBody)
        await self._sessions.change_password(request[STAFF], Secret(body.old), Secret(body.new), request[REQUEST_ID])
        return web.Response(status=204)

    async def refunds(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/refunds`."""
        waiting = await self._approvals.waiting(request[STAFF])
        data = [_refund(refund) for refund in waiting[:SHOWN_MAX]]
        return listed(data, has_more=len(waiting) > SHOWN_MAX)

    async def approve_refund(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/refunds/{id}/approve`."""
        return await self._decide(request, "approved")

    async def reject_refund(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/refunds/{id}/reject`."""
        return await self._decide(request, "rejected")

    async def _decide(self, request: web.Request, verdict: Verdict) -> web.Response:
        read_body(await request.read() or EMPTY, NothingBody)
        refund = await self._approvals.decide(request[STAFF], request.match_info["id"], verdict, request[REQUEST_ID])
        return answer(_refund(refund, verdict))

    async def healthz(self, _request: web.Request) -> web.Response:
        """`GET /healthz`."""
        return answer({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """`GET /readyz`."""
        report = await self._health.report()
        return answer(report, 503 if report["status"] == "unavailable" else 200)


def _refund(refund: WaitingRefund, verdict: Verdict | None = None) -> WaitingRefundObject:
    return WaitingRefundObject(
        object="refund",
        id=refund.refund_id,
        charge=refund.charge_id,
        department=refund.department,
        application=refund.application,
        amount=refund.amount_minor,
        currency=refund.currency,
        reference=refund.reference,
        card={"brand": refund.brand, "last4": refund.last4},
        status="awaiting_approval",
        suspended=refund.suspended,
        verdict=verdict,
        created=refund.requested_at.astimezone(UTC),
    )
