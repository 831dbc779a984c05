"""What people and checks call: the fault schedule, and the processor's own truth. Faults never strike here.

    PUT /v1/faults               set the schedule; `{}` heals everything
    GET /v1/faults               the schedule in force
    GET /v1/charges              every sale, declined ones included (effects 0), oldest first
    GET /v1/charges/{reference}  one of them
    GET /v1/verifications        every verification: no charge, since no money is asked for

A row's `status` is `captured` or `declined`, a verification's `verified` or `declined`. A fault that
is not simulated yet is 422 `not_supported_yet` with its `field`, never silently off.
"""

from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web

from gateway.processor.stub.book import Book, Entry
from gateway.processor.stub.exchange import RefusedError, parse, reply
from gateway.processor.stub.faults import FaultPlan, Faults


class Listing(msgspec.Struct, frozen=True):
    """All rows at once."""

    data: Sequence[Entry]
    object: str = "list"
    has_more: bool = False


class Control:
    """The routes of the `control` listener. `close_idle` drops the wire's kept-alive connections."""

    def __init__(self, book: Book, faults: Faults, close_idle: Callable[[], None]) -> None:
        self._book = book
        self._faults = faults
        self._close_idle = close_idle

    def routes(self) -> list[web.RouteDef]:
        """The table of what can be asked."""
        return [
            web.put("/v1/faults", self._set_faults),
            web.get("/v1/faults", self._show_faults),
            web.get("/v1/charges", self._list_charges),
            web.get("/v1/charges/{reference}", self._show_charge),
            web.get("/v1/verifications", self._list_verifications),
        ]

    async def _set_faults(self, request: web.Request) -> web.Response:
        plan = await parse(request, FaultPlan)
        unsupported = plan.unsupported()
        if unsupported is not None:
            raise RefusedError(422, "not_supported_yet", unsupported)
        self._faults.set(plan)
        if plan.refused:
            # A request on an old connection would never meet the draw.
            self._close_idle()
        return reply(plan)

    async def _show_faults(self, _request: web.Request) -> web.Response:
        return reply(self._faults.plan)

    async def _list_charges(self, _request: web.Request) -> web.Response:
        return reply(Listing(self._book.rows("sale")))

    async def _show_charge(self, request: web.Request) -> web.Response:
        entry = self._book.find(request.match_info["reference"])
        if entry is None or entry.kind != "sale":
            raise RefusedError(404, "not_found")
        return reply(entry)

    async def _list_verifications(self, _request: web.Request) -> web.Response:
        return reply(Listing(self._book.rows("verify")))
