"""What the gateway calls: sale, verify, inquire, under the fault schedule. `protocol` says what they mean.

The effect is durable before anything is said of it, so a fault after it is always a fault of the telling.
"""

import asyncio
from typing import Final, assert_never

import msgspec
from aiohttp import web

from gateway.processor.stub.book import Book, ReferenceConflictError
from gateway.processor.stub.exchange import RefusedError, parse, reply
from gateway.processor.stub.faults import Echo, Faults
from gateway.processor.stub.protocol import (
    Answer,
    Decision,
    Found,
    InquireRequest,
    NotFound,
    SaleRequest,
    VerifyRequest,
    decide_sale,
    decide_verification,
)

SLOW_S: Final = 12.0


class Wire:
    """The routes of the `wire` listener. `slow_s` is how long a slow answer is held back."""

    def __init__(self, book: Book, faults: Faults, slow_s: float) -> None:
        self._book = book
        self._faults = faults
        self._slow_s = slow_s

    def routes(self) -> list[web.RouteDef]:
        """The table of what can be asked. Each movement only decides; `_carry_out` does, and is struck."""
        return [
            web.post("/wire/sale", self._sale),
            web.post("/wire/verify", self._verify),
            web.post("/wire/inquire", self._inquire),
        ]

    async def _sale(self, request: web.Request) -> web.Response:
        return await self._carry_out(request, decide_sale(await parse(request, SaleRequest)))

    async def _verify(self, request: web.Request) -> web.Response:
        return await self._carry_out(request, decide_verification(await parse(request, VerifyRequest)))

    async def _inquire(self, request: web.Request) -> web.Response:
        asked = await parse(request, InquireRequest)
        entry = self._book.find(asked.reference, self._faults.plan.inquiry_lag_s)
        if self._faults.slow_inquiry():
            await asyncio.sleep(self._slow_s)
        return reply(NotFound() if entry is None else Found(entry.kind, entry.answer()))

    async def _carry_out(self, request: web.Request, decision: Decision) -> web.Response:
        strike = self._faults.strike_movement()
        if strike.fault == "lost_request":
            return _hang_up(request)
        if strike.fault == "error_before":
            raise RefusedError(500, "processor_error")
        answer = self._apply(decision)
        if strike.slow:
            await asyncio.sleep(self._slow_s)
        match strike.fault:
            case None:
                return reply(answer)
            case "lost_reply":
                return _hang_up(request)
            case "error_after":
                raise RefusedError(500, "processor_error")
            case "truncated":
                return _truncated(answer)
            case "wrong_echo":
                return reply(_misquoted(answer, strike.echo))
        assert_never(strike.fault)

    def _apply(self, decision: Decision) -> Answer:
        try:
            return self._book.apply(decision, self._faults.plan.dedupe_window_s).answer()
        except ReferenceConflictError:
            raise RefusedError(409, "reference_conflict") from None


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # finds the transport gone, and is dropped


def _truncated(answer: Answer) -> web.Response:
    """Half of the JSON, with a Content-Length that agrees: only parsing it can tell."""
    whole = reply(answer)
    assert isinstance(whole.body, bytes)
    return web.Response(body=whole.body[: len(whole.body) // 2], content_type=whole.content_type)


def _misquoted(answer: Answer, echo: Echo) -> Answer:
    match echo:
        case "amount":
            return msgspec.structs.replace(answer, amount=answer.amount + 1)
        case "currency":
            return msgspec.structs.replace(answer, currency="EUR")
        case "reference":
            other_end = "1" if answer.reference.endswith("0") else "0"
            return msgspec.structs.replace(answer, reference=answer.reference[:-1] + other_end)
    assert_never(echo)
