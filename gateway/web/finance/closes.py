"""Closes, for scripts and for people: propose, approve, open again, and take the evidence along."""

import base64
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any, ClassVar, Literal
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from gateway.errors import (
    AlreadyDecided,
    CardNumberInText,
    ExceptionsOpen,
    GatewayError,
    InvalidRequest,
    PeriodClosed,
    PeriodRefused,
)
from gateway.rules.pack import Seal
from gateway.rules.staff import Permission
from gateway.services.closes import Close, CloseAct, Closes, Status
from gateway.web.answer import answer, listed
from gateway.web.finance import asked
from gateway.web.gate import FORM, QUERY, STAFF, StaffRoute, see_other
from gateway.web.renderer import Renderer, may
from gateway.web.schema import Typed, convert, read_body
from gateway.web.server import REQUEST_ID

EMPTY = b"{}"
PAGED = frozenset({"limit", "starting_after"})
READ, PROPOSE, APPROVE = Permission.LEDGER_READ, Permission.CLOSES_PROPOSE, Permission.CLOSES_APPROVE

ACTS = {"approve": APPROVE, "reject": APPROVE, "reopen": READ, "reopen/approve": APPROVE, "reopen/refuse": APPROVE}
"""What can be done with one, and what it takes. Who may ask for a reopening, one of two roles, the service knows."""

NOTICES = {
    "proposed": "Proposed: an approver looks at it now.",
    "approve": "Closed. The pack is signed.",
    "reject": "Rejected: nothing is closed.",
    "reopen": "Asked: an approver decides. Until then the dates stay closed.",
    "reopen/approve": "Open again. These dates need a new close.",
    "reopen/refuse": "They stay closed.",
}
REFUSED_HERE = (InvalidRequest, CardNumberInText, AlreadyDecided, PeriodClosed, PeriodRefused, ExceptionsOpen)
"""What the form itself says; other refusals have a page of their own."""


class CloseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /admin/v1/closes`: business dates, both included; all departments of the grant, or one."""

    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")
    department: Typed | None = None


class ReasonBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of what is done with a close."""

    reason: Typed = ""


class CloseActObject(msgspec.Struct, frozen=True):
    """What somebody did about a close."""

    act: int
    what: str
    reason: str
    by: str
    at: datetime


class PackObject(msgspec.Struct, frozen=True):
    """What is kept of a pack: its hash in hex, its signature in base64, and by which key that is."""

    sha256: str
    signature: str
    key: int


class CloseObject(msgspec.Struct, frozen=True):
    """A close. Counts and totals are null for who does not see all departments that it covers."""

    object: Literal["close"]
    id: str
    first: date = msgspec.field(name="from")
    last: date = msgspec.field(name="to")
    departments: list[str]
    status: Status
    reconciliation: str
    counts: dict[str, int] | None
    totals: dict[str, Any] | None
    acts: list[CloseActObject]
    pack: PackObject | None


class ClosesFace:
    """The handlers, and what they need."""

    routes: ClassVar = (
        StaffRoute("POST", "/admin/v1/closes", "propose", PROPOSE),
        StaffRoute("GET", "/admin/v1/closes", "list", READ, takes=PAGED),
        StaffRoute("GET", "/admin/v1/closes/keys", "keys", READ),
        StaffRoute("GET", "/admin/v1/closes/{id}", "get", READ),
        StaffRoute("GET", "/admin/v1/closes/{id}/pack", "pack", READ),
        StaffRoute("GET", "/admin/v1/closes/{id}/signature", "signature", READ),
        *(StaffRoute("POST", f"/admin/v1/closes/{{id}}/{act}", "act", needs) for act, needs in ACTS.items()),
        StaffRoute("GET", "/closes", "list_page", READ, takes=PAGED),
        StaffRoute("POST", "/closes", "propose_page", PROPOSE),
        StaffRoute("GET", "/closes/{id}", "page", READ, takes=frozenset({"now"})),
        StaffRoute("GET", "/closes/{id}/pack.json", "pack", READ),
        StaffRoute("GET", "/closes/{id}/pack.sig", "signature", READ),
        *(StaffRoute("POST", f"/closes/{{id}}/{act}", "act_page", needs) for act, needs in ACTS.items()),
    )

    def __init__(self, closes: Closes, renderer: Renderer) -> None:
        self._closes = closes
        self._page = renderer.page

    # --- scripts ---

    async def propose(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/closes`."""
        close = await self._propose(request, read_body(await request.read(), CloseBody))
        return answer(_object(close), 201)

    async def list(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/closes`: the latest dates first."""
        query = request[QUERY]
        after = asked.text(query, "starting_after")
        found, more = await self._closes.page(request[STAFF], asked.limit(query), after)
        return listed([_object(each) for each in found], has_more=more)

    async def get(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/closes/{id}`."""
        return answer(_object(await self._closes.get(request[STAFF], request.match_info["id"])))

    async def act(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/closes/{id}/approve`, and the other acts."""
        body = read_body(await request.read() or EMPTY, ReasonBody)
        return answer(_object(await self._done(request, body.reason)))

    async def keys(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/closes/keys`: public keys, in base64, to check signatures with."""
        data = [
            {"number": number, "algorithm": "Ed25519", "public_key": base64.b64encode(key).decode()}
            for number, key in self._closes.keys(request[STAFF]).items()
        ]
        return listed(data, has_more=False)

    # --- both ---

    async def pack(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/closes/{id}/pack`: the pack, its hash (RFC 9530) and its signature."""
        pack, seal = await self._closes.pack(request[STAFF], request.match_info["id"], request[REQUEST_ID])
        answer = _download(pack, f"{request.match_info['id']}.pack.json")
        answer.headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(seal.sha256).decode()}:"
        answer.headers["Pack-Signature"] = f"key={seal.key}, signature=:{base64.b64encode(seal.signature).decode()}:"
        return answer

    async def signature(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/closes/{id}/signature`: the file that `gateway close verify` takes beside the pack."""
        _, seal = await self._closes.pack(request[STAFF], request.match_info["id"], request[REQUEST_ID])
        return _download(seal.file(), f"{request.match_info['id']}.pack.sig")

    # --- people ---

    async def list_page(self, request: web.Request) -> web.Response:
        """`GET /closes`."""
        return await self._listed(request)

    async def propose_page(self, request: web.Request) -> web.Response:
        """`POST /closes`."""
        given = {name: text for name, text in request[FORM].items() if text}
        try:
            close = await self._propose(request, convert(given, CloseBody))
        except REFUSED_HERE as error:
            return await self._listed(request, error)
        return see_other(f"/closes/{close.close_id}?now=proposed")

    async def page(self, request: web.Request) -> web.Response:
        """`GET /closes/{id}`."""
        return await self._shown(request)

    async def act_page(self, request: web.Request) -> web.Response:
        """`POST /closes/{id}/approve`, and the other acts."""
        try:
            await self._done(request, convert(request[FORM], ReasonBody).reason)
        except REFUSED_HERE as error:
            return await self._shown(request, error)
        return see_other(f"/closes/{request.match_info['id']}?now={_act(request)}")

    async def _listed(self, request: web.Request, refused: GatewayError | None = None) -> web.Response:
        query, staff = request[QUERY], request[STAFF]
        found, more = await self._closes.page(staff, asked.LIMIT_USUAL, asked.text(query, "starting_after"))
        return self._page(
            request,
            "closes.html",
            refused,
            found=found,
            next_url=f"/closes?starting_after={found[-1].close_id}" if more else None,
            paged="starting_after" in query,
            proposes=may(staff, PROPOSE),
            departments=sorted(await self._closes.departments(staff)),
            blocking=_blocking(refused, request.get(FORM, {})),
            typed=asked.shown_again(request.get(FORM, {})) if refused else {},
        )

    async def _shown(self, request: web.Request, refused: GatewayError | None = None) -> web.Response:
        staff = request[STAFF]
        close = await self._closes.get(staff, request.match_info["id"])
        return self._page(
            request,
            "close.html",
            refused,
            one=close,
            blocking=_blocking(refused, {"from": close.first.isoformat(), "to": close.last.isoformat()}),
            approves=may(staff, APPROVE) and close.whole and close.acts[-1].staff_id != staff.staff_id,
            asks=(may(staff, PROPOSE) or may(staff, APPROVE)) and close.whole,
            said=NOTICES.get(request[QUERY].get("now", ""), "") if refused is None else "",
            typed=asked.shown_again(request.get(FORM, {})) if refused else {},
        )

    async def _propose(self, request: web.Request, body: CloseBody) -> Close:
        dates = body.first, body.last, body.department or None
        return await self._closes.propose(request[STAFF], *dates, request[REQUEST_ID])

    async def _done(self, request: web.Request, reason: str) -> Close:
        who = request[STAFF], request.match_info["id"]
        match _act(request):
            case "approve":
                return await self._closes.approve(*who, request[REQUEST_ID])
            case "reject":
                return await self._closes.reject(*who, reason, request[REQUEST_ID])
            case "reopen":
                return await self._closes.ask_to_reopen(*who, reason, request[REQUEST_ID])
            case "reopen/approve":
                return await self._closes.reopen(*who, request[REQUEST_ID])
        return await self._closes.keep(*who, reason, request[REQUEST_ID])


def _blocking(refused: GatewayError | None, asked_for: Mapping[str, str]) -> str:
    """Where the exceptions are listed that are in the way of a close, if they are why it was refused."""
    dates = {name: asked_for[name] for name in ("from", "to", "department") if asked_for.get(name)}
    return "/exceptions?" + urlencode(dates) if isinstance(refused, ExceptionsOpen) else ""


def _act(request: web.Request) -> str:
    """What the route does, as its path ends."""
    resource = request.match_info.route.resource
    assert resource is not None, "internal error: an act has a route"
    return resource.canonical.partition("{id}/")[2]


def _object(close: Close) -> CloseObject:
    approval = close.approval
    return CloseObject(
        object="close",
        id=close.close_id,
        first=close.first,
        last=close.last,
        departments=list(close.departments),
        status=close.status,
        reconciliation=close.reconciliation_id,
        counts=dict(close.counts) if close.whole else None,
        totals=dict(close.totals) if close.whole else None,
        acts=[_act_object(act) for act in close.acts],
        pack=_pack(approval.seal) if approval and approval.seal else None,
    )


def _act_object(act: CloseAct) -> CloseActObject:
    return CloseActObject(act.number, act.what, act.reason, act.by, act.at.astimezone(UTC))


def _pack(seal: Seal) -> PackObject:
    return PackObject(seal.sha256.hex(), base64.b64encode(seal.signature).decode(), seal.key)


def _download(content: bytes, name: str) -> web.Response:
    """A file; `name` is of ids that we made and found."""
    answer = web.Response(body=content, content_type="application/json")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer
