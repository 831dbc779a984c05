"""The head of a request, looked at before it is routed: what the parser lets through and should not.

Whatever could mean different things to different readers of one request is refused here, with a status and no
word of the request; the server then closes the connection.
"""

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from aiohttp import web
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11

VERSIONS: Final = (HttpVersion10, HttpVersion11)
METHODS: Final = ("DELETE", "GET", "HEAD", "POST", "PUT")

SPOKEN: Final = web.RequestKey("spoken", HttpVersion)
"""The version that the client wrote, which the answer's is not taken from."""

_CANONICAL_PATH: Final = re.compile(r"/|(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)+")
# Headers that decide something: at most one of each, in printable ASCII.
_SINGLE: Final = frozenset(
    {b"authorization", b"content-type", b"expect", b"host", b"idempotency-key", b"transfer-encoding"}
)
_NOT_PRINTABLE: Final = re.compile(rb"[^ -~]")

MULTIPART: Final = "multipart/form-data"
BOUNDARY: Final = re.compile(r'boundary=("?)([0-9A-Za-z\'()+_,./:=?-]{1,70})\1')
"""The one parameter of a multipart body (RFC 2046 5.1.1); its second group is what parts are told apart by."""


class RefusedError(Exception):
    """A gate refuses the request: answer `status`, with these headers, and close."""

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers

    @classmethod
    def media_type(cls, taken: Collection[str]) -> "RefusedError":
        """415, and which types would be taken (RFC 9110 15.5.16)."""
        return cls(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"Accept": ", ".join(sorted(taken))})


def check_head(
    request: web.BaseRequest, header_bytes_max: int, body_bytes_max: int, media_types: frozenset[str]
) -> None:
    """Refuse what the parser lets through although it may mean different things to different readers."""
    _check_framing(request)
    _check_target(request)
    _check_headers(request, header_bytes_max)
    if request.body_exists or "Content-Encoding" in request.headers:
        _check_body(request, body_bytes_max, media_types)


def _check_framing(request: web.BaseRequest) -> None:
    if request[SPOKEN] not in VERSIONS:
        raise RefusedError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    codings = request.headers.getall("Transfer-Encoding", [])
    if codings and (codings != ["chunked"] or request.version == HttpVersion10):
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if "Upgrade" in request.headers:
        raise RefusedError(HTTPStatus.BAD_REQUEST)


def _check_target(request: web.BaseRequest) -> None:
    """Routes match the decoded path, so only a target that decodes to itself may reach them."""
    if request.method not in METHODS:
        raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED)
    target = request.raw_path
    if not target.startswith("/") or not _is_printable(target):
        raise RefusedError(HTTPStatus.BAD_REQUEST)
    if not _CANONICAL_PATH.fullmatch(target.partition("?")[0]):
        raise RefusedError(HTTPStatus.NOT_FOUND)


def _check_headers(request: web.BaseRequest, header_bytes_max: int) -> None:
    seen, length = set(), 0
    for name, value in request.raw_headers:
        length += len(name) + len(value) + 4
        deciding = name.lower()
        if deciding in _SINGLE:
            if deciding in seen or _NOT_PRINTABLE.search(value):
                raise RefusedError(HTTPStatus.BAD_REQUEST)
            seen.add(deciding)
    if length > header_bytes_max:
        raise RefusedError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if request.headers.get("Expect", "100-continue").lower() != "100-continue":
        raise RefusedError(HTTPStatus.EXPECTATION_FAILED)


def _check_body(request: web.BaseRequest, body_bytes_max: int, media_types: frozenset[str]) -> None:
    media_type, _, parameter = request.headers.get("Content-Type", "").lower().partition(";")
    plain = parameter.strip().replace('"', "") in {"", "charset=utf-8"}
    if media_type.strip() == MULTIPART:
        plain = BOUNDARY.fullmatch(parameter.strip()) is not None
    if "Content-Encoding" in request.headers:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"Accept-Encoding": "identity"})
    if media_type.strip() not in media_types or not plain:
        raise RefusedError.media_type(media_types)
    if (request.content_length or 0) > body_bytes_max:
        raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


def _is_printable(text: str) -> bool:
    return text.isascii() and text.isprintable()
