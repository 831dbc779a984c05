"""What the gateway calls, under the fault schedule. `protocol` says what the messages mean.

The effect is durable before anything is said of it, so a fault after it is always a fault of the telling.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final, Literal, assert_never

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.processor.stub.acquirer import Acquirer, NotOfferedError, ReferenceConflictError
from gateway.processor.stub.exchange import RefusedError, parse, reply
from gateway.processor.stub.faults import Echo, Faults, Strike
from gateway.processor.stub.judgement import Movement, read_card_movement, read_follow_up, read_verification
from gateway.processor.stub.later import Later
from gateway.processor.stub.protocol import (
    Answer,
    Cancelled,
    CancelRequest,
    CardRequest,
    FollowUpKind,
    FollowUpRequest,
    Found,
    InquireRequest,
    VerifyRequest,
)

Span = tuple[float, float]
Said = Answer | Found | Cancelled
"""What can be struck."""


class Pace(msgspec.Struct, frozen=True):
    """How long faults take, in seconds: an answer held back, a late delivery, a second one."""

    slow_s: float = 12.0
    late_s: Span = (1.0, 25.0)
    again_s: Span = (0.1, 2.0)


PACE: Final = Pace()


class Wire:
    """The routes of the `wire` listener."""

    def __init__(self, acquirer: Acquirer, faults: Faults, later: Later, pace: Pace) -> None:
        self._acquirer = acquirer
        self._faults = faults
        self._later = later
        self._pace = pace

    def routes(self) -> list[web.RouteDef]:
        """The table of what can be asked."""
        return [
            web.post("/wire/sale", self._card_movement("sale")),
            web.post("/wire/authorize", self._card_movement("authorization")),
            web.post("/wire/capture", self._follow_up("capture")),
            web.post("/wire/void", self._follow_up("void")),
            web.post("/wire/refund", self._follow_up("refund")),
            web.post("/wire/verify", self._verify),
            web.post("/wire/cancel", self._cancel),
            web.post("/wire/inquire", self._inquire),
        ]

    def _card_movement(self, kind: Literal["sale", "authorization"]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return await self._move(request, read_card_movement(kind, await parse(request, CardRequest)))

        return handle

    def _follow_up(self, kind: FollowUpKind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return await self._move(request, read_follow_up(kind, await parse(request, FollowUpRequest)))

        return handle

    async def _verify(self, request: web.Request) -> web.Response:
        return await self._move(request, read_verification(await parse(request, VerifyRequest)))

    async def _cancel(self, request: web.Request) -> web.Response:
        asked = await parse(request, CancelRequest)
        act = partial(_or_refuse, partial(self._acquirer.cancel, asked))
        return await self._deliver(request, self._faults.strike_cancel(), act)

    async def _inquire(self, request: web.Request) -> web.Response:
        known = self._acquirer.inquire(await parse(request, InquireRequest))
        if self._faults.slow_inquiry():
            await asyncio.sleep(self._pace.slow_s)
        return reply(known)

    async def _move(self, request: web.Request, movement: Movement) -> web.Response:
        act = partial(_or_refuse, partial(self._acquirer.carry_out, movement))
        return await self._deliver(request, self._faults.strike_movement(), act)

    async def _deliver(self, request: web.Request, strike: Strike, act: Callable[[], Said]) -> web.Response:
        """Act, or not, or later, or twice."""
        match strike.fault:
            case "lost_request":
                return _hang_up(request)
            case "error_before":
                raise RefusedError(500, "processor_error")
            case "late_effect":
                self._later.deliver(_within(self._pace.late_s, strike.delay), act)
                return _hang_up(request)
        said = act()
        if strike.fault == "duplicate":
            self._later.deliver(_within(self._pace.again_s, strike.delay), act)
        if strike.slow:
            await asyncio.sleep(self._pace.slow_s)
        return _tell(request, strike, said)


def _tell(request: web.Request, strike: Strike, said: Said) -> web.Response:
    match strike.fault:
        case "lost_reply":
            return _hang_up(request)
        case "error_after":
            raise RefusedError(500, "processor_error")
        case "truncated":
            return _truncated(said)
        case "wrong_echo":
            return reply(_misquoted(said, strike.echo))
        case _:
            return reply(said)


def _or_refuse(act: Callable[[], Said]) -> Said:
    try:
        return act()
    except ReferenceConflictError:
        raise RefusedError(409, "reference_conflict") from None
    except NotOfferedError:
        raise RefusedError(409, "not_offered") from None


def _within(span_s: Span, delay: float) -> float:
    earliest, latest = span_s
    return earliest + delay * (latest - earliest)


def _hang_up(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()  # finds the transport gone, and is dropped


def _truncated(said: Said) -> web.Response:
    """Half of the JSON, with a Content-Length that agrees: only parsing it can tell."""
    whole = reply(said)
    assert isinstance(whole.body, bytes)
    return web.Response(body=whole.body[: len(whole.body) // 2], content_type=whole.content_type)


def _misquoted(said: Said, echo: Echo) -> Said:
    """The same about something else; where there is no amount and no currency, about another reference."""
    match said:
        case Found(answer=answer):
            return msgspec.structs.replace(said, answer=_misquoted_answer(answer, echo))
        case Cancelled(reference=reference):
            return Cancelled(_other(reference))
        case Answer():
            return _misquoted_answer(said, echo)
    assert_never(said)


def _misquoted_answer(answer: Answer, echo: Echo) -> Answer:
    match echo:
        case "amount":
            return msgspec.structs.replace(answer, amount=answer.amount + 1)
        case "currency":
            return msgspec.structs.replace(answer, currency="EUR")
        case "reference":
            return msgspec.structs.replace(answer, reference=_other(answer.reference))
    assert_never(echo)


def _other(reference: str) -> str:
    return reference[:-1] + ("1" if reference.endswith("0") else "0")
