"""What people and checks call: the fault schedule, and the processor's own truth. Faults never strike here.

    PUT /v1/faults               set the schedule; `{}` heals everything
    GET /v1/faults               the schedule in force
    GET /v1/charges              every sale and authorization, declined ones included (effects 0), oldest first
    GET /v1/charges/{reference}  one of them
    GET /v1/movements            every movement under its own reference, oldest first, and all `tombstones`
    GET /v1/verifications        every verification: no charge, since no money is asked for
    GET /v1/settlements/{date}.csv?format=native|stripe   what was settled of a UTC date, see `settlement`
    GET /v1/deposits/{date}.bai  what the bank says of it, see `deposits`
    PUT /v1/discrepancies        plant differences in these two, see `discrepancies`; `{}` takes them out again

A charge's `status` is `authorized`, `captured`, `voided` or `declined`; its `effects` count captures. A movement's
`effects` count how often it was carried out, of which an authorization and a void move no money. A reference that
was made void before it was used is a tombstone, and no charge.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from types import MappingProxyType
from typing import Final

import msgspec
from aiohttp import web

from gateway.processor.stub.book import Book, Entry, Tombstone
from gateway.processor.stub.deposits import bai2
from gateway.processor.stub.discrepancies import NONE, Discrepancies
from gateway.processor.stub.exchange import RefusedError, parse, reply
from gateway.processor.stub.faults import FaultPlan, Faults
from gateway.processor.stub.judgement import Charge
from gateway.processor.stub.settlement import Line, native, settle, stripe

DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
FORMATS: Final[Mapping[str, Callable[[Sequence[Line]], str]]] = MappingProxyType({"native": native, "stripe": stripe})


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
        self._planted = NONE

    def routes(self) -> list[web.RouteDef]:
        """The table of what can be asked."""
        return [
            web.put("/v1/faults", self._set_faults),
            web.get("/v1/faults", self._show_faults),
            web.get("/v1/charges", self._list_charges),
            web.get("/v1/charges/{reference}", self._show_charge),
            web.get("/v1/movements", self._list_movements),
            web.get("/v1/verifications", self._list_verifications),
            web.get("/v1/settlements/{date}.csv", self._show_settlement),
            web.get("/v1/deposits/{date}.bai", self._show_deposits),
            web.put("/v1/discrepancies", self._plant),
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

    async def _plant(self, request: web.Request) -> web.Response:
        self._planted = await parse(request, Discrepancies)
        return reply(self._planted)

    async def _show_settlement(self, request: web.Request) -> web.Response:
        render = FORMATS.get(request.query.get("format", "native"))
        if render is None:
            raise RefusedError(400, "invalid_request", "format")
        return web.Response(text=render(self._settled(self._day(request))), content_type="text/csv")

    async def _show_deposits(self, request: web.Request) -> web.Response:
        day = self._day(request)
        return web.Response(text=bai2(self._planted.on(day).deposits(self._settled(day), day), day))

    def _settled(self, day: date) -> list[Line]:
        """The lines of a day, with what is planted in them."""
        planted = self._planted.on(day)
        start, end = (datetime.combine(day, moment, UTC) for moment in (time.min, time.max))
        lines = [line for line in settle(self._book.within(start, end)) if line.settled == day]
        return planted.plant(lines, day, self._taken_back(planted, day))

    def _taken_back(self, planted: Discrepancies, day: date) -> list[Line]:
        """The lines of charges that are taken back: of this day, and where a date was set, of every other."""
        wanted = set(planted.chargeback)
        charged = [line for line in settle(self._book.movements()) if line.type == "charge"] if wanted else []
        return [line for line in charged if line.reference in wanted and (planted.day or line.settled == day)]

    def _day(self, request: web.Request) -> date:
        """The date of the path; raises `RefusedError` for what is none, or has not begun."""
        text = request.match_info["date"]
        if not DATE.fullmatch(text):
            raise RefusedError(400, "invalid_request", "date")
        try:
            day = date.fromisoformat(text)
        except ValueError:
            raise RefusedError(400, "invalid_request", "date") from None
        if day > self._book.today():
            raise RefusedError(404, "not_found")
        return day
