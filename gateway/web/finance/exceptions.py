"""Exceptions, for scripts and for people: what differs, how long already, and everything that was done about it."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import ClassVar, Literal, cast, get_args
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from gateway.errors import AlreadyDecided, CardNumberInText, GatewayError, InvalidRequest, PeriodClosed
from gateway.rules.match import State
from gateway.rules.staff import Permission
from gateway.services.exceptions import WRITES_OFF, Act, Difference, Exceptions, Resolution, Sought, Status
from gateway.web.answer import answer, listed
from gateway.web.finance import asked
from gateway.web.finance.reconciliations import REASONS
from gateway.web.gate import FORM, QUERY, STAFF, StaffRoute, see_other
from gateway.web.renderer import Renderer, may
from gateway.web.schema import Typed, convert, read_body
from gateway.web.server import REQUEST_ID

EMPTY = b"{}"
STATUSES: tuple[str, ...] = get_args(Status)
STATES = tuple(state for state in State if state is not State.MATCHED)
SOUGHT = frozenset({"status", "state", "department", "owner", "from", "to", "limit", "starting_after"})
READ, RESOLVE, APPROVE = Permission.LEDGER_READ, Permission.EXCEPTIONS_RESOLVE, Permission.EXCEPTIONS_APPROVE

ACTS = {"take": RESOLVE, "resolve": RESOLVE, "approve": APPROVE, "reject": APPROVE, "reopen": RESOLVE}
"""What can be done with one, and what it takes."""

NOTICES = {
    "taken": "It is yours now.",
    "proposed": "Proposed: an approver has to agree.",
    "resolved": "Settled.",
    "approved": "Approved: it is settled.",
    "rejected": "Rejected: it is open again.",
    "reopened": "It is open again, and what was posted is taken back.",
    "together": "Written down. What is above the limit waits for an approver.",
}
"""What is said once it is done."""
STAYS = frozenset({"taken", "reopened"})
"""After these one goes on with the same exception; after others, with the list that one came from."""
TO_SETTLE, ANY = "to_settle", "any"
"""What people see in the list, besides one status: what they have to do, unless they ask for more."""
TICKED_MAX = asked.LIMIT_USUAL
EXCEPTION = re.compile(r"ex_[a-z2-7]{1,40}")
REFUSED_HERE = (InvalidRequest, CardNumberInText, AlreadyDecided, PeriodClosed)
"""What the form itself says; other refusals have a page of their own."""


class ResolveBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST …/resolve`: a reason of the list, or one in words, which is `other` with these as its note."""

    reason: Typed
    note: Typed = ""

    def meant(self) -> tuple[Resolution, str]:
        """Reason and note; raises `InvalidRequest`."""
        if self.reason in set(Resolution):
            return Resolution(self.reason), self.note
        if not self.reason.strip():
            raise InvalidRequest(f"`reason` is one of {', '.join(Resolution)}, or says it in words.", ["/reason"])
        return Resolution.OTHER, f"{self.reason.strip()} {self.note}".strip()


class NoteBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of the other acts."""

    note: Typed = ""


class ActObject(msgspec.Struct, frozen=True):
    """What somebody did about an exception."""

    act: int
    what: str
    resolution: str
    note: str
    by: str
    at: datetime


class ExceptionObject(msgspec.Struct, frozen=True):
    """An exception. `difference` is what processor or bank has more than the ledger, in minor units.

    `owner`, `resolution` and `note` are null while there is none; `age_days` counts from its business date.
    """

    object: Literal["exception"]
    id: str
    department: str
    state: str
    reason: str
    kind: str
    charge: str | None
    reference: str
    difference: int
    currency: str
    date: date
    age_days: int
    status: Status
    owner: str | None
    resolution: str | None
    note: str | None
    reconciliation: str
    acts: list[ActObject]


class ExceptionsFace:
    """The handlers, and what they need."""

    routes: ClassVar = (
        StaffRoute("GET", "/admin/v1/exceptions", "list", READ, takes=SOUGHT),
        StaffRoute("GET", "/admin/v1/exceptions/{id}", "get", READ),
        *(StaffRoute("POST", f"/admin/v1/exceptions/{{id}}/{act}", "act", needs) for act, needs in ACTS.items()),
        StaffRoute("GET", "/exceptions", "list_page", READ, takes=SOUGHT | {"now", "done"}),
        StaffRoute("POST", "/exceptions/settle", "settle_page", RESOLVE, takes=SOUGHT),
        StaffRoute("GET", "/exceptions/{id}", "page", READ, takes=SOUGHT | {"now"}),
        *(
            StaffRoute("POST", f"/exceptions/{{id}}/{act}", "act_page", needs, takes=SOUGHT)
            for act, needs in ACTS.items()
        ),
    )

    def __init__(self, exceptions: Exceptions, renderer: Renderer) -> None:
        self._exceptions = exceptions
        self._page = renderer.page

    # --- scripts ---

    async def list(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/exceptions`: those that are longest open first."""
        query = request[QUERY]
        sought, limit = _sought(query), asked.limit(query)
        after = asked.text(query, "starting_after")
        found, more = await self._exceptions.page(request[STAFF], sought, limit, after)
        return listed([self._object(each) for each in found], has_more=more)

    async def get(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/exceptions/{id}`."""
        return answer(self._object(await self._exceptions.get(request[STAFF], request.match_info["id"])))

    async def act(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/exceptions/{id}/take`, and the other acts."""
        act, raw = _act(request), await request.read() or EMPTY
        body = read_body(raw, ResolveBody) if act == "resolve" else read_body(raw, NoteBody)
        return answer(self._object(await self._done(request, act, body)))

    # --- people ---

    async def list_page(self, request: web.Request) -> web.Response:
        """`GET /exceptions`: what is to be settled, or what is asked for."""
        return await self._listed(request)

    async def settle_page(self, request: web.Request) -> web.Response:
        """`POST /exceptions/settle`: the ticked ones, each by itself; who was faster with one stays right."""
        form = request[FORM]
        ticked = [name for name in form if EXCEPTION.fullmatch(name)]
        try:
            if not ticked:
                raise InvalidRequest("Tick the exceptions that you mean.")
            body = convert({name: form[name] for name in form if name not in ticked}, ResolveBody)
            reason, note = body.meant()
            for exception_id in ticked:
                await self._exceptions.get(request[STAFF], exception_id)  # all of them, before anything is settled
            for exception_id in ticked:
                with suppress(AlreadyDecided):
                    await self._exceptions.resolve(request[STAFF], exception_id, reason, note, request[REQUEST_ID])
        except REFUSED_HERE as error:
            return await self._listed(request, error)
        return see_other("/exceptions" + _query(request[QUERY], now="together"))

    async def _listed(self, request: web.Request, refused: GatewayError | None = None) -> web.Response:
        query = request[QUERY]
        try:
            sought, limit, after = _sought_by_people(query), asked.limit(query), asked.text(query, "starting_after")
        except (CardNumberInText, InvalidRequest) as error:
            sought, limit, after, refused = Sought(to_settle=True), asked.LIMIT_USUAL, None, error
        found, more = await self._exceptions.page(request[STAFF], sought, limit, after)
        return self._page(
            request,
            "exceptions.html",
            refused,
            found=found,
            age=self._exceptions.age_days,
            next_url="/exceptions" + _query(query, starting_after=found[-1].exception_id) if more else None,
            first_url="/exceptions" + _query(query, starting_after="") if "starting_after" in query else None,
            asked={"status": TO_SETTLE} | dict(asked.shown_again(query)),
            query=_query(query),
            statuses=(TO_SETTLE, *STATUSES, ANY),
            states=STATES,
            ticks=TICKED_MAX if may(request[STAFF], RESOLVE) else 0,
            resolutions=_resolutions(),
            said="" if refused else NOTICES.get(query.get("now", ""), ""),
            done=query.get("done", "") if EXCEPTION.fullmatch(query.get("done", "")) else "",
            typed=asked.shown_again(request.get(FORM, {})) if refused else {},
            departments=sorted(await self._exceptions.departments(request[STAFF])),
        )

    async def page(self, request: web.Request) -> web.Response:
        """`GET /exceptions/{id}`."""
        return await self._shown(request)

    async def act_page(self, request: web.Request) -> web.Response:
        """`POST /exceptions/{id}/take`, and the other acts."""
        act = _act(request)
        try:
            form = request[FORM]
            body = convert(form, ResolveBody) if act == "resolve" else convert(form, NoteBody)
            exception = await self._done(request, act, body)
        except REFUSED_HERE as error:
            return await self._shown(request, error)
        now, query = exception.acts[-1].what, request[QUERY]
        if now in STAYS:
            return see_other(f"/exceptions/{exception.exception_id}{_query(query, now=now)}")
        return see_other("/exceptions" + _query(query, now=now, done=exception.exception_id))

    async def _shown(self, request: web.Request, refused: GatewayError | None = None) -> web.Response:
        staff, exception_id = request[STAFF], request.match_info["id"]
        exception = await self._exceptions.get(staff, exception_id)
        proposer = exception.acts[-1].staff_id if exception.status == "proposed" else ""
        return self._page(
            request,
            "exception.html",
            refused,
            one=exception,
            query=_query(request[QUERY]),
            reasons=REASONS,
            audits=may(staff, Permission.AUDIT_READ),
            items=await self._exceptions.items(staff, exception_id),
            age=self._exceptions.age_days(exception),
            resolves=may(staff, RESOLVE),
            approves=may(staff, APPROVE) and proposer != staff.staff_id,
            is_mine=exception.owner is not None and exception.owner.staff_id == staff.staff_id,
            resolutions=_resolutions(),
            alone=self._exceptions.settles_alone(exception),
            said=NOTICES.get(request[QUERY].get("now", ""), "") if refused is None else "",
            typed=asked.shown_again(request.get(FORM, {})) if refused else {},
        )

    async def _done(self, request: web.Request, act: str, body: ResolveBody | NoteBody) -> Difference:
        who = request[STAFF], request.match_info["id"]
        match act, body:
            case "take", _:
                return await self._exceptions.take(*who, request[REQUEST_ID])
            case "resolve", ResolveBody():
                return await self._exceptions.resolve(*who, *body.meant(), request[REQUEST_ID])
            case "approve", _:
                return await self._exceptions.approve(*who, body.note, request[REQUEST_ID])
            case "reject", _:
                return await self._exceptions.reject(*who, body.note, request[REQUEST_ID])
        return await self._exceptions.reopen(*who, body.note, request[REQUEST_ID])

    def _object(self, exception: Difference) -> ExceptionObject:
        owner, settlement = exception.owner, exception.settlement
        return ExceptionObject(
            object="exception",
            id=exception.exception_id,
            department=exception.department,
            state=exception.state,
            reason=exception.reason,
            kind=exception.kind,
            charge=exception.charge_id,
            reference=exception.reference,
            difference=exception.difference_minor,
            currency=exception.currency,
            date=exception.business_date,
            age_days=self._exceptions.age_days(exception),
            status=exception.status,
            owner=owner.by if owner else None,
            resolution=settlement.resolution if settlement else None,
            note=settlement.note if settlement else None,
            reconciliation=exception.reconciliation_id,
            acts=[_act_object(act) for act in exception.acts],
        )


def _act(request: web.Request) -> str:
    """What the route does, as its path ends."""
    resource = request.match_info.route.resource
    assert resource is not None, "internal error: an act has a route"
    return resource.canonical.rpartition("/")[2]


def _act_object(act: Act) -> ActObject:
    return ActObject(act.number, act.what, act.resolution, act.note, act.by, act.at.astimezone(UTC))


def _sought(query: dict[str, str]) -> Sought:
    """What the query asks for; raises `InvalidRequest`."""
    for name, known in (("status", STATUSES), ("state", STATES)):
        if name in query and query[name] not in known:
            raise InvalidRequest(f"`{name}` is one of: {', '.join(known)}.", [f"/{name}"])
    return Sought(
        cast("Status | None", query.get("status")),
        query.get("state"),
        asked.text(query, "department"),
        asked.text(query, "owner"),
        *asked.days(query),
    )


def _sought_by_people(query: dict[str, str]) -> Sought:
    """As `_sought`, but that not all is shown to who asks for nothing."""
    status = query.get("status", TO_SETTLE)
    if status not in {TO_SETTLE, ANY}:
        return _sought(query)
    rest = {name: text for name, text in query.items() if name != "status"}
    return replace(_sought(rest), to_settle=status == TO_SETTLE)


def _query(query: dict[str, str], **more: str) -> str:
    """The list that somebody looks at, with `more`, as the end of an address: so that they come back to it."""
    told = {name: text for name, text in asked.shown_again(query).items() if name in SOUGHT} | more
    return "?" + urlencode({name: text for name, text in told.items() if text}) if any(told.values()) else ""


def _resolutions() -> Sequence[tuple[str, str]]:
    """What can be chosen, in words."""
    return [
        (each, each.replace("_", " ").capitalize() + (" (posted to over/short)" if each in WRITES_OFF else ""))
        for each in Resolution
    ]
