"""Exports for people and for scripts: a file with its length and its hash, offered under a name that we have made."""

import asyncio
from base64 import b64encode
from typing import ClassVar, cast, get_args

from aiohttp import web

from gateway.errors import CardNumberInText, ExportTooLarge, GatewayError, InvalidRequest, NotFound, PeriodRefused
from gateway.rules.staff import Permission
from gateway.services.exports import Export, ExportKind, Exports, Order
from gateway.services.sheets import MEDIA_TYPES, SheetFormat
from gateway.web.finance.asked import day, shown_again, text
from gateway.web.gate import QUERY, STAFF, StaffRoute
from gateway.web.renderer import Renderer
from gateway.web.server import REQUEST_ID

KINDS = {"charges": "Charges", "journal": "Journal, with GL codes", "reconciliation": "A reconciliation"}
FORMATS = {"xlsx": "Spreadsheet (XLSX)", "csv": "Text (CSV)"}
NAMES = ("kind", "format", "from", "to", "department", "id")
CHUNK_BYTES = 65_536


class ExportsFace:
    """The handlers of exports. A form that is refused comes back with a sentence."""

    routes: ClassVar = (
        StaffRoute("GET", "/admin/v1/exports", "make", Permission.EXPORTS_MAKE, takes=frozenset(NAMES)),
        StaffRoute("GET", "/exports", "form", Permission.EXPORTS_MAKE, takes=frozenset(NAMES)),
        StaffRoute("GET", "/exports/file", "download", Permission.EXPORTS_MAKE, takes=frozenset(NAMES)),
    )

    def __init__(self, exports: Exports, renderer: Renderer) -> None:
        self._exports = exports
        self._page = renderer.page

    async def make(self, request: web.Request) -> web.StreamResponse:
        """`GET /admin/v1/exports`."""
        async with self._exports.make(request[STAFF], _order(request[QUERY]), request[REQUEST_ID]) as export:
            return await _send(request, export)

    async def form(self, request: web.Request) -> web.Response:
        """`GET /exports`."""
        return self._form(request)

    async def download(self, request: web.Request) -> web.StreamResponse:
        """`GET /exports/file`."""
        try:
            return await self.make(request)
        except (CardNumberInText, ExportTooLarge, InvalidRequest, PeriodRefused) as error:
            return self._form(request, error)
        except NotFound:
            return self._form(request, NotFound("There is no such department or reconciliation, or not for you."))

    def _form(self, request: web.Request, refused: GatewayError | None = None) -> web.Response:
        query = request[QUERY]
        asked = dict.fromkeys(NAMES, "") | dict(shown_again(query))
        kinds, formats = list(KINDS.items()), list(FORMATS.items())
        return self._page(request, "exports.html", refused, asked=asked, kinds=kinds, formats=formats)


def _order(asked: dict[str, str]) -> Order:
    """Raises `InvalidRequest`."""
    kind, file_format = asked.get("kind"), asked.get("format")
    if kind not in get_args(ExportKind):
        raise InvalidRequest(f"`kind` is one of {', '.join(KINDS)}.", ["/kind"])
    if file_format not in get_args(SheetFormat):
        raise InvalidRequest(f"`format` is one of {', '.join(FORMATS)}.", ["/format"])
    return Order(
        cast("ExportKind", kind),
        cast("SheetFormat", file_format),
        day(asked, "from"),
        day(asked, "to"),
        text(asked, "department"),
        text(asked, "id"),
    )


async def _send(request: web.Request, export: Export) -> web.StreamResponse:
    """The file; `Repr-Digest` (RFC 9530) is its hash. Whoever gets only a part of it can tell by its length."""
    answer = web.StreamResponse(
        headers={
            "Content-Type": MEDIA_TYPES[export.format],
            "Content-Disposition": f'attachment; filename="{export.name}"',
            "Repr-Digest": f"sha-256=:{b64encode(export.sha256).decode()}:",
        }
    )
    answer.content_length = export.size_bytes
    with export.path.open("rb") as file:
        await answer.prepare(request)
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                await answer.write(chunk)
            await answer.write_eof()
        except OSError:  # the client is gone, or the disk is
            if request.transport is not None:
                request.transport.abort()
    return answer
