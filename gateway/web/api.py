"""The public API: the table of its routes, and for each the few lines between HTTP and a service."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import CardNumberInText, InvalidRequest, NotFound, NotIdentified, WrongCertificate
from gateway.rules.access import Application
from gateway.rules.card import Brands
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
from gateway.web.bodies import AmountBody, ChargeBody, TokenBody, VoidBody, card_given, charge_request, read_body
from gateway.web.health import Health
from gateway.web.problems import response as problem_response
from gateway.web.server import REQUEST_ID

CALLER: Final = web.RequestKey("caller", Application)

EMPTY = b"{}"
"""What an empty body means where nothing has to be said."""

LIST_LIMIT = 10
LIST_LIMIT_MAX = 100
LIMIT = re.compile(r"[0-9]{1,3}")
LIST_QUERY = frozenset({"reference", "limit", "starting_after"})


@dataclass(frozen=True, slots=True)
class Route:
    """One route: what it takes and gives is here once, for the router and for the OpenAPI document."""

    method: str
    path: str
    handler: str
    summary: str
    answers: Mapping[int, type[Any] | None]
    body: type[msgspec.Struct] | None = None
    key: str = ""
    """`required` or `honoured`: whether an Idempotency-Key is."""
    open: bool = False
    """Answered without authentication."""


ROUTES = (
    Route(
        "POST",
        "/v1/tokens",
        "create_token",
        "Seal a card and get a token for it",
        {201: TokenObject, 402: None, 409: None, 422: None, 503: None},
        body=TokenBody,
        key="honoured",
    ),
    Route("GET", "/v1/tokens/{id}", "show_token", "Show a token", {200: TokenObject, 404: None}),
    Route(
        "DELETE",
        "/v1/tokens/{id}",
        "erase_token",
        "Destroy the card behind a token",
        {200: TokenObject, 404: None, 409: None},
    ),
    Route(
        "POST",
        "/v1/charges",
        "create_charge",
        "Charge a token or a card",
        {201: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=ChargeBody,
        key="required",
    ),
    Route("GET", "/v1/charges/{id}", "show_charge", "Show a charge", {200: ChargeObject, 404: None}),
    Route("GET", "/v1/charges", "list_charges", "List charges, newest first", {200: ListObject, 404: None}),
    Route(
        "POST",
        "/v1/charges/{id}/capture",
        "capture_charge",
        "Capture what was authorized, once, or a part of it; the rest is released",
        {200: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=AmountBody,
        key="required",
    ),
    Route(
        "POST",
        "/v1/charges/{id}/void",
        "void_charge",
        "Give an authorization up",
        {200: ChargeObject, 202: ChargeObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=VoidBody,
        key="required",
    ),
    Route(
        "POST",
        "/v1/charges/{id}/refunds",
        "refund_charge",
        "Give back what was captured, or a part of what is left of it",
        {201: RefundObject, 202: RefundObject, 402: None, 404: None, 409: None, 422: None, 502: None, 503: None},
        body=AmountBody,
        key="required",
    ),
    Route("GET", "/v1/refunds/{id}", "show_refund", "Show a refund", {200: RefundObject, 404: None}),
    Route("GET", "/healthz", "healthz", "Whether the process is alive", {200: None}, open=True),
    Route("GET", "/readyz", "readyz", "Whether it can serve", {200: None, 503: None}, open=True),
    Route("GET", "/openapi.json", "openapi", "This document", {200: None}, open=True),
)


class Api:
    """The handlers, and what they need."""

    def __init__(
        self,
        tokens: Tokens,
        charges: Charges,
        movements: Movements,
        refusals: Refusals,
        identify: Callable[[str | None, tuple[str, ...] | None], Awaitable[Application]],
        brands: Brands,
        health: Health,
        openapi: bytes,
    ) -> None:
        self._tokens = tokens
        self._charges = charges
        self._movements = movements
        self._refusals = refusals
        self._identify = identify
        self._brands = brands
        self._health = health
        self._openapi = openapi

    def application(self) -> web.Application:
        """The routes as an aiohttp application. Each is behind authentication unless the table says `open`."""
        application = web.Application(middlewares=[_problems])
        for route in ROUTES:
            handler = getattr(self, route.handler)
            application.router.add_route(route.method, route.path, handler if route.open else self._known(handler))
        return application

    async def create_token(self, request: web.Request) -> web.Response:
        """`POST /v1/tokens`."""
        key = self._key(request) if "Idempotency-Key" in request.headers else None
        body = read_body(await request.read(), TokenBody)
        given = card_given(body, self._brands)
        return _answer(
            await self._tokens.create(request[CALLER], given, body.usage, key, request_id=request[REQUEST_ID])
        )

    async def show_token(self, request: web.Request) -> web.Response:
        """`GET /v1/tokens/{id}`."""
        return _json(token_object(await self._tokens.show(request[CALLER], request.match_info["id"])))

    async def erase_token(self, request: web.Request) -> web.Response:
        """`DELETE /v1/tokens/{id}`."""
        token = await self._tokens.erase(request[CALLER], request.match_info["id"], request[REQUEST_ID])
        return _json(token_object(token))

    async def create_charge(self, request: web.Request) -> web.Response:
        """`POST /v1/charges`."""
        key = self._key(request)
        asked = charge_request(read_body(await request.read(), ChargeBody), self._brands, request[REQUEST_ID])
        return _answer(await self._charges.create(request[CALLER], asked, key))

    async def show_charge(self, request: web.Request) -> web.Response:
        """`GET /v1/charges/{id}`."""
        return _json(charge_object(await self._charges.show(request[CALLER], request.match_info["id"])))

    async def list_charges(self, request: web.Request) -> web.Response:
        """`GET /v1/charges`."""
        query = request.query
        if not LIST_QUERY.issuperset(query) or len(set(query)) != len(query):
            raise InvalidRequest("The query knows `reference`, `limit` and `starting_after`, once each.")
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
        return _json(ListObject("list", data, has_more=len(found) > limit))

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
        return _json(refund_object(await self._movements.show_refund(request[CALLER], request.match_info["id"])))

    async def healthz(self, _request: web.Request) -> web.Response:
        """`GET /healthz`."""
        return _json({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """`GET /readyz`."""
        report = await self._health.report()
        return _json(report, 503 if report["status"] == "unavailable" else 200)

    async def openapi(self, _request: web.Request) -> web.Response:
        """`GET /openapi.json`."""
        return web.Response(body=self._openapi, content_type="application/json")

    def _key(self, request: web.Request) -> str:
        key = read_key(request.headers.get("Idempotency-Key"))
        if self._brands.find(key):
            raise CardNumberInText
        return key

    def _known(self, handler: Handler) -> Handler:
        async def known(request: web.Request) -> web.StreamResponse:
            try:
                caller = await self._identify(request.headers.get("Authorization"), _certificate_sans(request))
            except (NotIdentified, WrongCertificate) as error:
                await self._refusals.identity(type(error).__name__, request[REQUEST_ID])
                raise
            request[CALLER] = caller
            try:
                return await handler(request)
            except NotFound as error:
                await self._refusals.unknown_id(caller, request[REQUEST_ID])
                raise NotFound(error.detail) from None

        return known


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Exception as error:
        answer = problem_response(error)
        if answer is None:
            raise
        return answer


def _certificate_sans(request: web.Request) -> tuple[str, ...] | None:
    """The URI names of the client certificate that TLS has verified, None without one."""
    tls = request.transport.get_extra_info("ssl_object") if request.transport else None
    certificate = tls.getpeercert() if tls else None
    if not certificate:
        return None
    return tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI")


def _asked(request: web.Request, amount_minor: int | None) -> MovementRequest:
    return MovementRequest(request.match_info["id"], amount_minor, request[REQUEST_ID])


def _answer(answer: Answer) -> web.Response:
    kind = "application/json" if answer.status < 400 else "application/problem+json"  # noqa: PLR2004 - errors
    headers = {"Location": answer.location} if answer.location else None
    return web.Response(status=answer.status, body=answer.body, content_type=kind, headers=headers)


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(content), content_type="application/json")
