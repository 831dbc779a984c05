"""The public API: the table of its routes, and for each the few lines between HTTP and a service."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import (
    CardNumberInText,
    CertificateRefused,
    InvalidRequest,
    NotFound,
    NotIdentified,
    NotPermitted,
    Unavailable,
    WrongCertificate,
)
from gateway.rules.access import Application, Scope
from gateway.rules.card import Brands
from gateway.rules.certificates import ClientCertificate
from gateway.rules.idempotency import read_key
from gateway.services.answers import (
    ChargeObject,
    ListObject,
    RefundObject,
    TokenObject,
    charge_object,
    refund_object,
    token_object,
)
from gateway.services.charges import Charges
from gateway.services.movements import MovementRequest, Movements
from gateway.services.ports import Answer
from gateway.services.refusals import Refusals
from gateway.services.tokens import Tokens
from gateway.web.answer import answer
from gateway.web.bodies import AmountBody, ChargeBody, TokenBody, VoidBody, card_given, charge_request
from gateway.web.bulk import NDJSON, BulkLine, BulkTokens
from gateway.web.certificates import client_certificate
from gateway.web.health import Health
from gateway.web.problems import response as problem_response
from gateway.web.schema import read_body
from gateway.web.server import REQUEST_ID, STREAMS

CALLER: Final = web.RequestKey("caller", Application)

Identify = Callable[[str | None, ClientCertificate | None], Awaitable[Application]]
"""Who shows this `Authorization` and this certificate."""

EMPTY = b"{}"
"""What an empty body means where nothing has to be said."""

LIST_LIMIT = 10
LIST_LIMIT_MAX = 100
LIMIT = re.compile(r"[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Public:
    """The permission of a route that answers anybody, and why it may."""

    why: str


@dataclass(frozen=True, slots=True)
class Route:
    """One route: what it takes and gives is here once, for the router and for the OpenAPI document."""

    method: str
    path: str
    handler: str
    permission: Scope | Public
    summary: str
    answers: Mapping[int, type[Any] | None]
    body: type[msgspec.Struct] | None = None
    key: str = ""
    """`required` or `honoured`: whether an Idempotency-Key is."""
    query: frozenset[str] = frozenset()
    """What a query string may name; where nothing, there is none."""
    stream: str = ""
    """The media type of a body and an answer that are read and written as they come, a line each."""


ROUTES = (
    Route(
        "POST",
        "/v1/tokens",
        "create_token",
        Scope.TOKENS_WRITE,
        "Seal a card and get a token for it",
        {201: TokenObject, 402: None, 409: None, 422: None, 503: None},
        body=TokenBody,
        key="honoured",
    ),
    Route(
        "POST",
        "/v1/tokens/bulk",
        "create_tokens",
        Scope.TOKENS_WRITE,
        "Seal many cards, one a line, and get a token or a problem for each, in their order",
        {200: TokenObject},
        body=BulkLine,
        stream=NDJSON,
    ),
    Route("GET", "/v1/tokens/{id}", "show_token", Scope.TOKENS_READ, "Show a token", {200: TokenObject, 404: None}),
    Route(
        "DELETE",
        "/v1/tokens/{id}",
        "erase_token",
        Scope.TOKENS_ERASE,
        "Destroy the card behind a token",
        {200: TokenObject, 404: None, 409: None},
    ),
    Route(
        "POST",
        "/v1/charges",
        "create_charge",
        Scope.CHARGES_WRITE,
        "Charge a token or a card",
        {201: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=ChargeBody,
        key="required",
    ),
    Route(
        "GET", "/v1/charges/{id}", "show_charge", Scope.CHARGES_READ, "Show a charge", {200: ChargeObject, 404: None}
    ),
    Route(
        "GET",
        "/v1/charges",
        "list_charges",
        Scope.CHARGES_READ,
        "List charges, newest first",
        {200: ListObject, 404: None},
        query=frozenset({"reference", "limit", "starting_after"}),
    ),
    Route(
        "POST",
        "/v1/charges/{id}/capture",
        "capture_charge",
        Scope.CHARGES_WRITE,
        "Capture what was authorized, once, or a part of it; the rest is released",
        {200: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=AmountBody,
        key="required",
    ),
    Route(
        "POST",
        "/v1/charges/{id}/void",
        "void_charge",
        Scope.CHARGES_WRITE,
        "Give an authorization up",
        {200: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=VoidBody,
        key="required",
    ),
    Route(
        "POST",
        "/v1/charges/{id}/refunds",
        "refund_charge",
        Scope.CHARGES_REFUND,
        "Give back what was captured, or a part of what is left of it",
        {201: RefundObject, 202: RefundObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=AmountBody,
        key="required",
    ),
    Route(
        "GET", "/v1/refunds/{id}", "show_refund", Scope.CHARGES_READ, "Show a refund", {200: RefundObject, 404: None}
    ),
    Route(
        "GET",
        "/healthz",
        "healthz",
        Public("whoever watches the process has no key"),
        "Whether the process is alive",
        {200: None},
    ),
    Route(
        "GET",
        "/readyz",
        "readyz",
        Public("whoever sends requests here must know whether to"),
        "Whether it can serve",
        {200: None, 503: None},
    ),
    Route("GET", "/openapi.json", "openapi", Public("it is the manual"), "This document", {200: None}),
)


class Api:
    """The handlers, and what they need."""

    def __init__(
        self,
        tokens: Tokens,
        bulk: BulkTokens,
        charges: Charges,
        movements: Movements,
        refusals: Refusals,
        identify: Identify,
        recognize: Identify,
        brands: Brands,
        health: Health,
        openapi: bytes,
    ) -> None:
        self._tokens = tokens
        self._bulk = bulk
        self._charges = charges
        self._movements = movements
        self._refusals = refusals
        self._identify = identify
        self._recognize = recognize
        self._brands = brands
        self._health = health
        self._openapi = openapi

    def application(self) -> web.Application:
        """The routes as an aiohttp application, each behind its permission; it starts with no route beside them."""
        application = web.Application(middlewares=[_problems])
        for route in ROUTES:
            application.router.add_route(route.method, route.path, self._guarded(route))
        application[STREAMS] = {
            (route.method, route.path): frozenset({route.stream}) for route in ROUTES if route.stream
        }
        application.on_startup.append(_require_declared)
        return application

    async def create_token(self, request: web.Request) -> web.Response:
        """`POST /v1/tokens`."""
        key = self._key(request) if "Idempotency-Key" in request.headers else None
        body = read_body(await request.read(), TokenBody)
        given = card_given(body, self._brands)
        return _answer(
            await self._tokens.create(request[CALLER], given, body.usage, key, request_id=request[REQUEST_ID])
        )

    async def create_tokens(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/tokens/bulk`: who sends it may lose the right to while it lasts."""

        async def recognized() -> Application:
            if request.transport is None:  # the client is gone, and with it its certificate: that refuses nobody
                raise Unavailable
            caller = await self._identified(request, self._recognize)
            if Scope.TOKENS_WRITE not in caller.scopes:
                await self._refusals.permission(caller, Scope.TOKENS_WRITE, request[REQUEST_ID])
            caller.require(Scope.TOKENS_WRITE)
            return caller

        return await self._bulk.answer(request, request[CALLER], recognized)

    async def show_token(self, request: web.Request) -> web.Response:
        """`GET /v1/tokens/{id}`."""
        return answer(token_object(await self._tokens.show(request[CALLER], request.match_info["id"])))

    async def erase_token(self, request: web.Request) -> web.Response:
        """`DELETE /v1/tokens/{id}`."""
        token = await self._tokens.erase(request[CALLER], request.match_info["id"], request[REQUEST_ID])
        return answer(token_object(token))

    async def create_charge(self, request: web.Request) -> web.Response:
        """`POST /v1/charges`."""
        key = self._key(request)
        asked = charge_request(read_body(await request.read(), ChargeBody), self._brands, request[REQUEST_ID])
        return _answer(await self._charges.create(request[CALLER], asked, key))

    async def show_charge(self, request: web.Request) -> web.Response:
        """`GET /v1/charges/{id}`."""
        return answer(charge_object(await self._charges.show(request[CALLER], request.match_info["id"])))

    async def list_charges(self, request: web.Request) -> web.Response:
        """`GET /v1/charges`."""
        query = request.query
        if len(set(query)) != len(query):
            raise InvalidRequest("The query names a thing once.")
        limit_text = query.get("limit", str(LIST_LIMIT))
        if not LIMIT.fullmatch(limit_text) or not 1 <= int(limit_text) <= LIST_LIMIT_MAX:
            raise InvalidRequest("`limit` must be 1 to 100.")
        limit = int(limit_text)
        texts = [query[name] for name in ("reference", "starting_after") if name in query]
        if not all(text and text.isprintable() for text in texts):
            raise InvalidRequest("`reference` and `starting_after` must be printable text.")
        found = await self._charges.list(
            request[CALLER], query.get("reference"), limit + 1, query.get("starting_after")
        )
        data = [charge_object(charge) for charge in found[:limit]]
        return answer(ListObject("list", data, has_more=len(found) > limit))

    async def capture_charge(self, request: web.Request) -> web.Response:
        """`POST /v1/charges/{id}/capture`."""
        key, body = self._key(request), read_body(await request.read() or EMPTY, AmountBody)
        asked = _asked(request, body.amount_minor)
        return _answer(await self._movements.capture(request[CALLER], asked, key))

    async def void_charge(self, request: web.Request) -> web.Response:
        """`POST /v1/charges/{id}/void`."""
        key = self._key(request)
        read_body(await request.read() or EMPTY, VoidBody)
        return _answer(await self._movements.void(request[CALLER], _asked(request, None), key))

    async def refund_charge(self, request: web.Request) -> web.Response:
        """`POST /v1/charges/{id}/refunds`."""
        key, body = self._key(request), read_body(await request.read() or EMPTY, AmountBody)
        asked = _asked(request, body.amount_minor)
        return _answer(await self._movements.refund(request[CALLER], asked, key))

    async def show_refund(self, request: web.Request) -> web.Response:
        """`GET /v1/refunds/{id}`."""
        return answer(refund_object(await self._movements.show_refund(request[CALLER], request.match_info["id"])))

    async def healthz(self, _request: web.Request) -> web.Response:
        """`GET /healthz`."""
        return answer({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """`GET /readyz`."""
        report = await self._health.report()
        return answer(report, 503 if report["status"] == "unavailable" else 200)

    async def openapi(self, _request: web.Request) -> web.Response:
        """`GET /openapi.json`."""
        return web.Response(body=self._openapi, content_type="application/json")

    def _key(self, request: web.Request) -> str:
        key = read_key(request.headers.get("Idempotency-Key"))
        if self._brands.find(key):
            raise CardNumberInText
        return key

    def _guarded(self, route: Route) -> Handler:
        """The route's handler behind what the table says of it."""
        handler: Handler = getattr(self, route.handler)
        permission = route.permission
        if isinstance(permission, Public):
            return handler
        if not isinstance(permission, Scope):
            raise TypeError(f"{route.method} {route.path} declares no permission")

        async def guarded(request: web.Request) -> web.StreamResponse:
            # Before anything is looked up: an API key may stand there, as may a card number.
            if not route.query.issuperset(request.query):
                raise InvalidRequest("The query string names what this route does not know.")
            caller = request[CALLER] = await self._identified(request, self._identify)
            try:
                caller.require(permission)
                return await handler(request)
            except NotPermitted:
                await self._refusals.permission(caller, permission, request[REQUEST_ID])
                raise
            except NotFound as error:
                await self._refusals.unknown_id(caller, request[REQUEST_ID])
                raise NotFound(error.detail) from None

        return guarded

    async def _identified(self, request: web.Request, identify: Identify) -> Application:
        try:
            return await identify(request.headers.get("Authorization"), client_certificate(request))
        except (NotIdentified, WrongCertificate, CertificateRefused) as error:
            await self._refusals.identity(type(error).__name__, request[REQUEST_ID])
            raise


async def _require_declared(application: web.Application) -> None:
    """Raises `TypeError` when the router knows a route that the table does not: nobody said who may use it."""
    declared = {(route.method, route.path) for route in ROUTES}
    for route in application.router.routes():
        place = route.method, route.resource.canonical if route.resource else ""
        if place not in declared:
            raise TypeError(f"{' '.join(place)} declares no permission")


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:
        answer = problem_response(error)
        if answer is None:
            raise
        return answer


def _asked(request: web.Request, amount_minor: int | None) -> MovementRequest:
    return MovementRequest(request.match_info["id"], amount_minor, request[REQUEST_ID])


def _answer(answer: Answer) -> web.Response:
    kind = "application/json" if answer.status < 400 else "application/problem+json"  # noqa: PLR2004 - errors
    headers = {"Location": answer.location} if answer.location else None
    return web.Response(status=answer.status, body=answer.body, content_type=kind, headers=headers)
