"""Settlements and deposits: files taken in, by scripts and by people, and what they held.

A script waits for its file's end. A person is led to a page that says how far it is, and on to the result, or back to
the form with the reason of a refusal; the import goes on whether they look or not.
"""

from collections.abc import Sequence
from datetime import date, datetime
from http import HTTPStatus
from typing import ClassVar

import msgspec
from aiohttp import web

from gateway.formats import Kind, formats
from gateway.rules.settlement import DepositLine
from gateway.rules.staff import Permission
from gateway.services.imports import SHOWN_MAX, Imported, Imports, ImportShown, LineShown
from gateway.web.answer import answer, first
from gateway.web.finance.asked import limit as limit_of
from gateway.web.finance.asked import place, text
from gateway.web.finance.jobs import Jobs
from gateway.web.gate import QUERY, STAFF, StaffRoute, see_other
from gateway.web.head import MULTIPART
from gateway.web.renderer import Renderer, may
from gateway.web.server import REQUEST_ID
from gateway.web.upload import UPLOAD

CSV = frozenset({"text/csv"})
STATEMENT = CSV | {"text/plain", "application/octet-stream"}
FORM = frozenset({MULTIPART})
PAGED = frozenset({"limit", "starting_after"})
SHOWN = frozenset({"starting_after", "now"})
USUAL: dict[Kind, str] = {"settlement": "native", "deposit": "bai2"}
"""How a file is read where nothing is said."""
NAMES = {"native": "Native CSV", "stripe": "Stripe: payout reconciliation, itemized", "bai2": "BAI2"}
"""What people call a format; another one is called by its own name."""

READ, MAKE = Permission.LEDGER_READ, Permission.IMPORTS_MAKE


class ImportedObject(msgspec.Struct, frozen=True):
    """What a file came to, in minor units. Of a statement `gross` and `net` are the sum, and `fee` is 0."""

    id: str
    lines: int
    gross: int
    fee: int
    net: int
    already_imported: bool


class PartObject(msgspec.Struct, frozen=True):
    """What of a settlement is of one department and batch; `city` has what belongs to none."""

    department: str
    batch: str
    lines: int
    gross: int
    fee: int
    net: int


class ImportObject(msgspec.Struct, frozen=True, omit_defaults=True):
    """An import, with lines and amounts of the departments of who asks."""

    object: Kind
    id: str
    format: str
    lines: int
    gross: int
    fee: int
    net: int
    currency: str
    settled: Sequence[date]
    imported_by: str
    imported: datetime
    parts: list[PartObject] | None = None


class SettlementLineObject(msgspec.Struct, frozen=True):
    """A line of a settlement; `charge` is null where nobody here knows its reference."""

    line: int
    department: str
    type: str
    charge: str | None
    reference: str
    gross: int
    fee: int
    net: int
    currency: str
    created: datetime
    settled: date
    batch: str
    date: date


class DepositLineObject(msgspec.Struct, frozen=True):
    """A line of a bank statement."""

    line: int
    type: str
    amount: int
    currency: str
    deposited: date
    batch: str
    reference: str


class ImportsFace:
    """The handlers, and what they need."""

    routes: ClassVar = (
        StaffRoute("POST", "/admin/v1/settlements", "take_settlement", MAKE, takes=frozenset({"format"}), files=CSV),
        StaffRoute("POST", "/admin/v1/deposits", "take_deposit", MAKE, takes=frozenset({"format"}), files=STATEMENT),
        StaffRoute("GET", "/admin/v1/settlements", "list_settlements", READ, takes=PAGED),
        StaffRoute("GET", "/admin/v1/deposits", "list_deposits", READ, takes=PAGED),
        StaffRoute("GET", "/admin/v1/settlements/{id}", "show_settlement", READ),
        StaffRoute("GET", "/admin/v1/deposits/{id}", "show_deposit", READ),
        StaffRoute("GET", "/admin/v1/settlements/{id}/lines", "list_settlement_lines", READ, takes=PAGED),
        StaffRoute("GET", "/admin/v1/deposits/{id}/lines", "list_deposit_lines", READ, takes=PAGED),
        StaffRoute("GET", "/settlements", "settlements", READ, takes=SHOWN),
        StaffRoute("GET", "/deposits", "deposits", READ, takes=SHOWN),
        StaffRoute("POST", "/settlements", "begin_settlement", MAKE, files=FORM),
        StaffRoute("POST", "/deposits", "begin_deposit", MAKE, files=FORM),
        StaffRoute("GET", "/settlements/{id}", "settlement", READ, takes=SHOWN),
        StaffRoute("GET", "/deposits/{id}", "deposit", READ, takes=SHOWN),
        StaffRoute("GET", "/imports/{id}", "job", MAKE),
    )

    def __init__(self, imports: Imports, jobs: Jobs, renderer: Renderer) -> None:
        self._imports = imports
        self._jobs = jobs
        self._page = renderer.page

    # --- scripts ---

    async def take_settlement(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/settlements`."""
        return await self._take(request, "settlement")

    async def take_deposit(self, request: web.Request) -> web.Response:
        """`POST /admin/v1/deposits`."""
        return await self._take(request, "deposit")

    async def _take(self, request: web.Request, kind: Kind) -> web.Response:
        name = request[QUERY].get("format", USUAL[kind])
        imported = await self._imports.take(
            request[STAFF], kind, name, request[UPLOAD].file, request[REQUEST_ID], lambda _lines: None
        )
        return answer(_imported(imported), HTTPStatus.CREATED)

    async def list_settlements(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/settlements`."""
        return await self._list(request, "settlement")

    async def list_deposits(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/deposits`."""
        return await self._list(request, "deposit")

    async def _list(self, request: web.Request, kind: Kind) -> web.Response:
        query = request[QUERY]
        limit = limit_of(query)
        found = await self._imports.imports(request[STAFF], kind, limit, text(query, "starting_after"))
        return first([_import(each) for each in found], limit)

    async def show_settlement(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/settlements/{id}`."""
        shown, parts = await self._imports.one(request[STAFF], "settlement", request.match_info["id"])
        told = [
            PartObject(part.department, part.batch, part.lines, part.gross_minor, part.fee_minor, part.net_minor)
            for part in parts
        ]
        return answer(msgspec.structs.replace(_import(shown), parts=told))

    async def show_deposit(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/deposits/{id}`."""
        shown, _ = await self._imports.one(request[STAFF], "deposit", request.match_info["id"])
        return answer(_import(shown))

    async def list_settlement_lines(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/settlements/{id}/lines`."""
        query = request[QUERY]
        limit, after = limit_of(query), place(query)
        lines = await self._imports.settlement_lines(request[STAFF], request.match_info["id"], limit, after)
        return first([_settlement_line(each) for each in lines], limit)

    async def list_deposit_lines(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/deposits/{id}/lines`."""
        query = request[QUERY]
        limit, after = limit_of(query), place(query)
        lines = await self._imports.deposit_lines(request[STAFF], request.match_info["id"], limit, after)
        return first([_deposit_line(each) for each in lines], limit)

    # --- people ---

    async def settlements(self, request: web.Request) -> web.Response:
        """`GET /settlements`."""
        return await self._imports_page(request, "settlement")

    async def deposits(self, request: web.Request) -> web.Response:
        """`GET /deposits`."""
        return await self._imports_page(request, "deposit")

    async def _imports_page(self, request: web.Request, kind: Kind) -> web.Response:
        query, staff = request[QUERY], request[STAFF]
        found = await self._imports.imports(staff, kind, after=text(query, "starting_after"))
        return self._page(
            request,
            f"{kind}s.html",
            imports=found[:SHOWN_MAX],
            more=found[SHOWN_MAX - 1].import_id if len(found) > SHOWN_MAX else "",
            names=[(name, NAMES.get(name, name)) for name in formats(kind)],
            paged="starting_after" in query,
            usual=USUAL[kind],
            uploads=may(staff, MAKE) and "*" in staff.departments,
        )

    async def begin_settlement(self, request: web.Request) -> web.Response:
        """`POST /settlements`."""
        return await self._begin(request, "settlement")

    async def begin_deposit(self, request: web.Request) -> web.Response:
        """`POST /deposits`."""
        return await self._begin(request, "deposit")

    async def _begin(self, request: web.Request, kind: Kind) -> web.Response:
        upload = request[UPLOAD]
        job = self._jobs.begin(request[STAFF], kind, upload.fields["format"], upload, request[REQUEST_ID])
        return see_other(f"/imports/{job.job_id}")

    async def job(self, request: web.Request) -> web.Response:
        """`GET /imports/{id}`: how far it is; once it is done, on to what came of it."""
        job = self._jobs.find(request[STAFF], request.match_info["id"])
        if job.refused is not None:
            return self._page(
                request, "import_refused.html", job.refused, job=job, read_as=NAMES.get(job.format, job.format)
            )
        if job.imported is not None:
            now = "again" if job.imported.already_imported else "imported"
            return see_other(f"/{job.kind}s/{job.imported.id}?now={now}")
        answer = self._page(request, "import_running.html", job=job)
        answer.headers["Refresh"] = "1"
        return answer

    async def settlement(self, request: web.Request) -> web.Response:
        """`GET /settlements/{id}`."""
        staff, import_id, query = request[STAFF], request.match_info["id"], request[QUERY]
        after = place(query)
        shown, parts = await self._imports.one(staff, "settlement", import_id)
        lines = await self._imports.settlement_lines(staff, import_id, after=after)
        return self._page(
            request,
            "settlement.html",
            shown=shown,
            parts_of=parts,
            lines=lines[:SHOWN_MAX],
            paged=bool(after),
            more=lines[SHOWN_MAX - 1].line.line if len(lines) > SHOWN_MAX else 0,
            now=query.get("now", ""),
        )

    async def deposit(self, request: web.Request) -> web.Response:
        """`GET /deposits/{id}`."""
        staff, import_id, query = request[STAFF], request.match_info["id"], request[QUERY]
        after = place(query)
        shown, _ = await self._imports.one(staff, "deposit", import_id)
        lines = await self._imports.deposit_lines(staff, import_id, after=after)
        return self._page(
            request,
            "deposit.html",
            shown=shown,
            lines=lines[:SHOWN_MAX],
            paged=bool(after),
            more=lines[SHOWN_MAX - 1].line if len(lines) > SHOWN_MAX else 0,
            now=query.get("now", ""),
        )


def _imported(imported: Imported) -> ImportedObject:
    return ImportedObject(
        imported.id,
        imported.lines,
        imported.gross_minor,
        imported.fee_minor,
        imported.net_minor,
        imported.already_imported,
    )


def _import(shown: ImportShown) -> ImportObject:
    return ImportObject(
        object=shown.kind,
        id=shown.import_id,
        format=shown.format,
        lines=shown.lines,
        gross=shown.gross_minor,
        fee=shown.fee_minor,
        net=shown.net_minor,
        currency=shown.currency,
        settled=shown.settled_on,
        imported_by=shown.imported_by,
        imported=shown.imported_at,
    )


def _settlement_line(shown: LineShown) -> SettlementLineObject:
    line = shown.line
    return SettlementLineObject(
        line=line.line,
        department=shown.department,
        type=line.kind,
        charge=shown.charge_id,
        reference=line.reference,
        gross=line.gross_minor,
        fee=line.fee_minor,
        net=line.net_minor,
        currency=line.currency,
        created=line.created_at,
        settled=line.settled_on,
        batch=line.batch,
        date=shown.business_date,
    )


def _deposit_line(line: DepositLine) -> DepositLineObject:
    return DepositLineObject(
        line=line.line,
        type=line.type_code,
        amount=line.amount_minor,
        currency=line.currency,
        deposited=line.deposited_on,
        batch=line.batch,
        reference=line.bank_reference,
    )
