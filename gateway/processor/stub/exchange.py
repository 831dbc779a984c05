"""One HTTP exchange of the processor double: who asks, what was asked, how it is answered.

Every answer is JSON, an error is `{"error": <code>}`, and nothing of a request is repeated or logged.
"""

import asyncio
import hmac
import logging
import re
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

BODY_BYTES_MAX: Final = 64 * 1024
BODY_TIMEOUT_S: Final = 5.0
STATUS_CODES: Final[Mapping[int, str]] = MappingProxyType(
    {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
)
# msgspec names the place by our own field names, never by the sender's.
FIELD: Final = re.compile(r"at `\$\.([a-z0-9_.]+)`$")

Model = TypeVar("Model", bound=msgspec.Struct)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is not 200."""

    error: str
    field: str | None = None


class RefusedError(Exception):
    """The request ends here, with this status and code."""

    def __init__(self, status: int, code: str, field: str | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.failure = Failure(code, field)


async def parse(request: web.Request, model: type[Model]) -> Model:
    """Read the whole body as `model`, strictly.

    Raises:
        RefusedError: 400 with the field at fault, or 408 when the body does not arrive in time.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await request.read()
        return msgspec.json.decode(body, type=model)
    except TimeoutError:
        raise RefusedError(408, "timeout") from None
    except msgspec.ValidationError as error:
        place = FIELD.search(str(error))
        raise RefusedError(400, "invalid_request", place and place[1]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, web.RequestPayloadError, ConnectionError):
        raise RefusedError(400, "invalid_request") from None


def reply(body: object, status: int = 200) -> web.Response:
    """Answer with JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def application(processor_key: str, routes: list[web.RouteDef]) -> web.Application:
    """Routes behind the processor key. `Server` is left out of what they answer."""
    app = web.Application(middlewares=[_answer_errors, _bearer(processor_key)], client_max_size=BODY_BYTES_MAX)
    app.add_routes(routes)
    app.on_response_prepare.append(_drop_banner)
    return app


def _bearer(processor_key: str) -> Middleware:
    """Let in who shows the key; unknown routes are no exception."""
    expected = processor_key.encode()

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        shown = key.encode(errors="surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown, expected):
            raise RefusedError(401, "unauthorized")
        return await handler(request)

    return authenticate


@web.middleware
async def _answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RefusedError as refused:
        return reply(refused.failure, refused.status)
    except web.HTTPException as error:
        response = reply(Failure(STATUS_CODES.get(error.status, "invalid_request")), error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:  # noqa: BLE001 - our own fault, whatever it is, is a 500 and one line of log
        log_place(error)
        return reply(Failure("internal"), 500)


def log_place(error: Exception) -> None:
    """Say what happened where: a message or a traceback could quote the request."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    log = logging.getLogger(__name__)
    log.log(logging.ERROR, "%s at %s:%s", type(error).__name__, place.filename, place.lineno)


async def _drop_banner(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.popall("Server", None)
