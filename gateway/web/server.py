"""HTTP/1.1 over TLS for clients that may be hostile: aiohttp, with its measured weaknesses mended.

What aiohttp 3.14.5 leaves open, and where it is closed here:

- it echoes the bytes of a malformed request in its answer and in its log: `_Connection.handle_error`;
- it reads a body without a deadline, inflates it, accepts odd framing: `head.check_head`, `_whole_body`, and
  `upload` for the few routes that take a file (`STREAMS`);
- it waits for ever for a client that does not read: `_Connection.pause_writing`;
- it has no connection cap and cannot see half-open TLS handshakes: `SafeServer` accepts sockets itself;
- it drops what idle connections ask for while it stops: `SafeServer.stop`;
- it names itself and its version in each answer: `_Request._prepare_hook`.

A request passes three gates: the C parser, `head.check_head` before routing, `_whole_body` before the handler, which
leaves the body of a stream to whoever knows that its sender may send one. What a gate refuses gets a constant answer
and a closed connection, because it is in doubt where the next request begins. Nothing that a client sent is logged
here: errors are told by class and `file:line`.

The hooks overridden here are semi-private in aiohttp, so the tests check each of them over the wire.
"""

import asyncio
import secrets
import socket
import ssl
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader
from aiohttp.typedefs import Handler, Middleware
from structlog.typing import FilteringBoundLogger

from gateway.log import described, silence_libraries
from gateway.web.acceptor import Acceptor, Loads
from gateway.web.head import METHODS, SPOKEN, VERSIONS, RefusedError, check_head

REQUEST_ID: Final = web.RequestKey("request_id", str)
"""`req_` and 128 random bits in letters, on every request: never the client's choice, never a digit in it."""

ROUTE: Final = web.RequestKey("route", str)
"""Method and template ("GET /v1/charges/{id}"), never the path; missing when no route matched."""

STREAMS: Final = web.AppKey("streams", Mapping[tuple[str, str], frozenset[str]])
"""Of an application: methods and paths that read a body as it comes, up to `stream_bytes_max`, and of which types."""

_STARTED: Final = web.RequestKey("started", float)
_MORE_HEADERS: Final = web.RequestKey("more_headers", Mapping[str, str])

_ANSWER_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
}
_DIGITS_TO_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")
_WRITE_BUFFER_BYTES_MAX: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one listener grants its clients."""

    handshake_s: float = 5
    header_s: float = 8  # from the connection, or the first byte of a further request, to a whole head
    idle_s: float = 75  # between requests: longer than clients keep connections, so that they close first
    body_s: float = 8
    linger_s: float = 2  # to drain an unread body, lest a reset overtake its refusal; then to say goodbye
    write_s: float = 30  # for a client that does not read
    shutdown_s: float = 15  # for running requests, once stopped
    line_bytes_max: int = 4096  # the request line, and each header
    header_bytes_max: int = 8192  # all headers together
    headers_max: int = 48
    body_bytes_max: int = 65_536
    stream_bytes_max: int = 64 * 1024 * 1024
    connections_max: int = 512  # handshakes under way included


Refusal = Callable[[int], bytes]
"""The constant problem+json body for a status."""

Observer = Callable[[web.BaseRequest, int, float], None]
"""Told (request, status, duration_s) once for each request, when it is answered or its client is gone.

Bytes that never became a request come as aiohttp's placeholder, with a REQUEST_ID; a body cut short as 400.
"""


class UnsafeParserError(RuntimeError):
    """aiohttp runs on its pure-Python parser, which most of its request smuggling advisories are about."""


def assert_safe_parser() -> None:
    """Raise UnsafeParserError unless requests are parsed by aiohttp's C extension (llhttp)."""
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise UnsafeParserError("aiohttp's C parser is missing: install its wheel, unset AIOHTTP_NO_EXTENSIONS")


def tls_context(cert: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """TLS 1.3, or 1.2 with ECDHE and an AEAD cipher (RFC 9325); `client_ca` makes it ask for a certificate.

    No tickets. (Python cannot turn off TLS 1.2 session ids: a session resumed by one keeps its certificate.)
    A client certificate that `client_ca` did not sign, or that breaks RFC 5280, ends the connection; whether
    none at all will do is for the caller to judge.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.load_cert_chain(cert, key, password="")  # an encrypted key must fail, not ask the terminal
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@dataclass(eq=False)
class SafeServer:
    """One listener: `app` on `sock`, which is bound and listening, from `start` until `stop`.

    Without `tls` it speaks in clear: for loopback alone, and nothing that matters.

    Bodies are taken in `media_types` only. `answer_headers` go with every answer, refusals included.
    `connections_refused` counts those beyond the cap. With `loads` other processes accept on `sock`, too.
    """

    app: web.Application
    sock: socket.socket
    _: KW_ONLY
    tls: ssl.SSLContext | None
    limits: Limits
    refusal: Refusal
    observe: Observer
    log: FilteringBoundLogger
    media_types: frozenset[str] = frozenset({"application/json"})
    answer_headers: Mapping[str, str] = field(default_factory=dict)
    loads: Loads | None = None
    connections_refused: int = field(default=0, init=False)
    _conversations: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _stopping: bool = field(default=False, init=False)

    @property
    def port(self) -> int:
        """The TCP port that is listened on."""
        port: int = self.sock.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many connections are open, TLS handshakes under way included."""
        return len(self._conversations)

    async def start(self) -> None:
        """Start the application and accept connections. Raises UnsafeParserError."""
        assert_safe_parser()
        silence_libraries(self.log)
        self._streams = self.app.get(STREAMS, {})
        self._all_headers = {**_ANSWER_HEADERS, **self.answer_headers}
        self.app.middlewares.insert(0, _whole_body(self.limits, self._streams))
        self._runner = web.AppRunner(self.app)
        await self._runner.setup()
        assert self._runner.server is not None
        self._route = self._runner.server.request_handler
        self.manager = web.Server(self._gate, request_factory=self._make_request)
        self._acceptor = Acceptor(self.sock, self._take, self.loads, self.log)
        self._acceptor.start()

    async def stop(self, grace_s: float = 0) -> None:
        """Accept nothing more, let running requests end within `shutdown_s`, close what is left.

        From now on every answer ends its connection (RFC 9112 section 9.6). A client that keeps an idle one hears of
        it with the answer to its next request, if that comes within `grace_s`; else the connection closes under it.
        """
        self._acceptor.stop()
        self._stopping = True
        await self._ended(grace_s)
        # A timer comes after what lies in the sockets: a request that is there is read first.
        asyncio.get_running_loop().call_later(0, self._close_idle)
        await self._ended(self.limits.shutdown_s)
        await self.manager.shutdown(self.limits.linger_s / 2)  # aiohttp waits twice
        for conversation in self._conversations:
            conversation.cancel()
        await asyncio.gather(*self._conversations, return_exceptions=True)
        await self._runner.cleanup()

    async def _ended(self, timeout_s: float) -> None:
        """Wait until every connection has, or for so long."""
        if self._conversations:
            await asyncio.wait(self._conversations, timeout=timeout_s)

    def _close_idle(self) -> None:
        for connection in self.manager.connections:
            if cast("_Connection", connection).idle:
                connection.force_close()

    def _take(self, sock: socket.socket) -> None:
        if self.connections >= self.limits.connections_max:
            self.connections_refused += 1
            sock.close()
            return
        conversation = asyncio.create_task(self._converse(sock))
        self._conversations.add(conversation)
        conversation.add_done_callback(self._gone)
        self._note()

    def _gone(self, conversation: asyncio.Task[None]) -> None:
        self._conversations.discard(conversation)
        self._note()

    def _note(self) -> None:
        if self.loads is not None and not self._stopping:  # else the count is its successor's
            self.loads.note(self.connections)

    async def _converse(self, sock: socket.socket) -> None:
        """One connection, from the first byte of its handshake to its end: what the cap counts."""
        connection = _Connection(self)
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self.tls,
                ssl_handshake_timeout=self.limits.handshake_s if self.tls else None,
                ssl_shutdown_timeout=self.limits.linger_s if self.tls else None,
            )
        except (OSError, UnicodeDecodeError) as error:  # no TLS, bad TLS, too slow, gone; no name that can be read
            self.log.debug("handshake.failed", error=type(error).__name__)
            return
        try:
            await connection.closed
        except asyncio.CancelledError:
            transport.abort()
            raise

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        spoken = message.version
        if spoken not in VERSIONS:  # else aiohttp answers in the version it was asked in, whatever that is
            message = message._replace(version=HttpVersion11)
        loop, size_max = asyncio.get_running_loop(), self.limits.body_bytes_max
        request = _Request(message, payload, protocol, writer, task, loop, client_max_size=size_max)
        request[REQUEST_ID] = "req_" + secrets.token_hex(16).translate(_DIGITS_TO_LETTERS)
        request[_STARTED] = loop.time()
        request[_MORE_HEADERS] = self._all_headers
        request[SPOKEN] = spoken
        return request

    async def _gate(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every answer leaves through here, and says so where it is the last of its connection."""
        answer = await self._answer(request)
        if self._stopping:
            answer.force_close()
        return answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The application behind the checks of the head, and every refusal."""
        try:
            limits, types = self.limits, self._streams.get((request.method, request.path))
            bytes_max = limits.body_bytes_max if types is None else limits.stream_bytes_max
            check_head(request, limits.header_bytes_max, bytes_max, self.media_types if types is None else types)
            return await self._route(request)
        except RefusedError as refused:
            answer = self.refuse(refused.status)
            answer.headers.update(refused.headers)
            return answer
        except web.HTTPError as error:  # the router's 404 and 405, of a request that was read whole
            return self._constant(error.status, error.headers.get("Allow"))

    def refuse(self, status: HTTPStatus) -> web.Response:
        """The constant answer for `status`, after which the connection closes."""
        answer = self._constant(status, ", ".join(METHODS) if status is HTTPStatus.METHOD_NOT_ALLOWED else None)
        answer.headers["Connection"] = "close"
        answer.force_close()
        return answer

    def _constant(self, status: int, allow: str | None) -> web.Response:
        headers = {} if allow is None else {"Allow": allow}
        body = self.refusal(status)
        return web.Response(status=status, body=body, content_type="application/problem+json", headers=headers)


class _Request(web.Request):
    """Every answer, errors and streams included, passes its request's hook before its head is written."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await super()._prepare_hook(response)
        response.headers.popall("Server", None)
        response.headers.update(self[_MORE_HEADERS])
        response.headers["Request-Id"] = self[REQUEST_ID]


class _Connection(web.RequestHandler):
    """aiohttp's side of a connection, silent about what it receives and impatient with slow readers."""

    __slots__ = ("_head_deadline", "_safe", "_silent", "_wire", "_write_deadline", "closed")

    def __init__(self, server: SafeServer) -> None:
        limits, loop = server.limits, asyncio.get_running_loop()
        super().__init__(  # not by Server.__call__, which drops every limit when one keyword is misspelt
            server.manager,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            max_line_size=limits.line_bytes_max,
            max_field_size=limits.line_bytes_max,
            max_headers=limits.headers_max,
            lingering_time=limits.linger_s,
            auto_decompress=False,
        )
        self._safe = server
        self._silent = True
        self._head_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = loop.create_future()

    @property
    def idle(self) -> bool:
        """Whether nothing of a request is here: neither being answered, nor waiting, nor half of its head."""
        waits = self._waiter is not None and not self._waiter.done()
        return waits and not self._messages and (self._silent or self._head_deadline is None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES_MAX)
        super().connection_made(transport)
        self._start_head_deadline()

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._stop_head_deadline()
        self._stop_write_deadline()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Wake the reader of a body that breaks half-way: aiohttp queues the error behind it."""
        self._silent = False
        super().data_received(data)
        if self._current_request is not None or self._messages:
            self._stop_head_deadline()
        elif self._head_deadline is None:
            self._start_head_deadline()
        if self._current_request is None or not self._messages:
            return
        body = self._current_request.content
        if not body.is_eof() and not isinstance(self._messages[-1][0], RawRequestMessage):
            body.set_exception(web.RequestPayloadError())
            body.feed_eof()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline = self._loop.call_later(self._safe.limits.write_s, self._wire.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_deadline()

    def _start_head_deadline(self) -> None:
        # aiohttp has one timer for a slow head and for an idle connection; they deserve different ones.
        self._head_deadline = self._loop.call_later(self._safe.limits.header_s, self._wire.close)

    def _stop_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _stop_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,  # noqa: ARG002  aiohttp's signature; a handler's TimeoutError comes as 504
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  aiohttp's signature; it quotes the request
    ) -> web.StreamResponse:
        """Answer what the parser refused (400) or a handler raised (500) without a word of either."""
        exc = exc or sys.exc_info()[1]
        if isinstance(exc, HttpProcessingError):
            answer = self._safe.refuse(HTTPStatus.BAD_REQUEST)
            self._safe.log.info("request.malformed", error=type(exc).__name__, request_id=request[REQUEST_ID])
        else:
            answer = self._safe.refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
            self._safe.log.error("request.failed", **described(exc), request_id=request[REQUEST_ID])
        if request.writer.output_size > 0:  # the handler had begun to answer: cut it off
            self.log_access(request, answer, None)
            raise ConnectionError
        return answer

    def log_exception(self, *_: Any, **kw: Any) -> None:
        """Log what escaped from answering a request; aiohttp's words for it may quote the request."""
        self._safe.log.error("connection.failed", **described(kw.get("exc_info")))

    def log_access(self, request: web.BaseRequest, response: web.StreamResponse, _: float | None) -> None:
        """Tell the observer: aiohttp calls this once an answer is written or its client is gone."""
        self._safe.observe(request, response.status, self._loop.time() - request[_STARTED])


def _whole_body(limits: Limits, streams: Collection[tuple[str, str]]) -> Middleware:
    """The outermost middleware: after `100 Continue`, and before any handler but a stream's sees half a body."""

    @web.middleware
    async def read_body(request: web.Request, handler: Handler) -> web.StreamResponse:
        if (resource := request.match_info.route.resource) is not None:
            request[ROUTE] = f"{request.method} {resource.canonical}"
        if (request.method, request.path) in streams:
            return await handler(request)
        try:
            if request.content.is_eof():
                await request.read()
            else:
                async with asyncio.timeout(limits.body_s):
                    await request.read()
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT) from None
        except web.HTTPRequestEntityTooLarge:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE) from None
        except (OSError, web.RequestPayloadError):  # gone, or broken half-way
            raise RefusedError(HTTPStatus.BAD_REQUEST) from None
        return await handler(request)

    return read_body
