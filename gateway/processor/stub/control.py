"""What people and checks call: the fault schedule, and the processor's own truth. Faults never strike here.

    PUT /v1/faults               set the schedule; `{}` heals everything
    GET /v1/faults               the schedule in force
    GET /v1/charges              every sale and authorization, declined ones included (effects 0), oldest first
    GET /v1/charges/{reference}  one of them
    GET /v1/movements            every movement under its own reference, oldest first, and all `tombstones`
    GET /v1/verifications        every verification: no charge, since no money is asked for

A charge's `status` is `authorized`, `captured`, `voided` or `declined`; its `effects` count captures. A movement's
`effects` count how often it was carried out, of which an authorization and a void move no money. A reference that
was made void before it was used is a tombstone, and no charge.
"""

from collections.abc import Callable, Sequence

import msgspec
from aiohttp import web

from gateway.processor.stub.book import Book, Entry, Tombstone
from gateway.processor.stub.exchange import RefusedError, parse, reply
from gateway.processor.stub.faults import FaultPlan, Faults
from gateway.processor.stub.judgement import Charge


class Listing(msgspec.Struct, frozen=True):
    """All rows at once."""

    data: Sequence[Charge] | Sequence[Entry]
    tombstones: Sequence[Tombstone] | msgspec.UnsetType = msgspec.UNSET
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
            web.get("/v1/movements", self._list_movements),
            web.get("/v1/verifications", self._list_verifications),
        ]

    async def _set_faults(self, request: web.Request) -> web.Response:
        plan = await parse(request, FaultPlan)
        self._faults.set(plan)
        if plan.refused:
            # A request on an old connection would never meet the draw.
            self._close_idle()
        return reply(plan)

    async def _show_faults(self, _request: web.Request) -> web.Response:
        return reply(self._faults.plan)

    async def _list_charges(self, _request: web.Request) -> web.Response:
        return reply(Listing(self._book.charges()))

    async def _show_charge(self, request: web.Request) -> web.Response:
        charge = self._book.charge(request.match_info["reference"])
        if charge is None:
            raise RefusedError(404, "not_found")
        return reply(charge)

    async def _list_movements(self, _request: web.Request) -> web.Response:
        return reply(Listing(self._book.movements(), self._book.tombstones()))

    async def _list_verifications(self, _request: web.Request) -> web.Response:
        return reply(Listing(self._book.verifications()))
