"""A TLS listener that can turn a connection away before the first byte of its handshake.

asyncio's own servers wrap a connection in TLS as they accept it. Here accepting is a step of its own, so that
a refusal is a reset of a bare TCP connection: the client provably sent no request. (To accept in plain and
upgrade by `loop.start_tls` would not do: a request can arrive before the HTTP protocol knows its transport.)
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from functools import partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.processor.stub.faults import Faults

BACKLOG: Final = 128
HANDSHAKE_TIMEOUT_S: Final = 5.0
TLS_SHUTDOWN_TIMEOUT_S: Final = 1.0
KEEPALIVE_TIMEOUT_S: Final = 75.0
STOP_TIMEOUT_S: Final = 1.0
# When the process is out of descriptors, accepting again at once would only spin.
ACCEPT_PAUSE_S: Final = 0.1
# SO_LINGER on, zero seconds: closing drops the connection with a reset instead of an orderly end.
LINGER_RESET: Final = struct.pack("ii", 1, 0)
UNPARSABLE: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 27\r\n"
    b'Connection: close\r\n\r\n{"error":"invalid_request"}'
)


class QuietHandler(web.RequestHandler):
    """aiohttp's HTTP protocol without its leak: it answers and logs the bytes that it cannot parse."""

    def handle_error(self, *_args: object, **_kw: object) -> web.StreamResponse:
        """Answer what is not HTTP by fixed bytes. All other errors end in the application."""
        if self.transport is not None:
            self.transport.write(UNPARSABLE)
            self.transport.close()
        return web.Response()  # finds the transport closed, and is dropped

    def log_exception(self, *_args: object, **_kw: object) -> None:
        """Say nothing: the text would be the request's."""


class Door:
    """One port, one application. Each new connection of it meets the schedule's `refused`.

    So that each *request* meets it too, no connection is kept alive while connections are refused.
    """

    def __init__(self, app: web.Application, faults: Faults) -> None:
        app.middlewares.insert(0, self._attend)
        self._runner = web.AppRunner(app, shutdown_timeout=STOP_TIMEOUT_S)
        self._faults = faults
        self._busy: set[object] = set()

    async def open(self, address: tuple[str, int], tls: ssl.SSLContext) -> None:
        """Listen on an IPv4 address and port, 0 meaning any.

        Raises:
            OSError: the address is taken, or not ours.
        """
        self._listener = socket.create_server(address, backlog=BACKLOG)
        self._listener.setblocking(False)
        await self._runner.setup()
        self._accepting = asyncio.create_task(self._accept(tls))

    async def close(self) -> None:
        """Stop listening, give what is running `STOP_TIMEOUT_S`, drop the rest."""
        self._accepting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._accepting
        self._listener.close()
        await self._runner.cleanup()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        port: int = self._listener.getsockname()[1]
        return port

    def close_idle(self) -> None:
        """Close connections on which no request is being answered; the others close after their answer."""
        for connection in self._server.connections:
            if connection not in self._busy:
                connection.force_close()

    @property
    def _server(self) -> web.Server:
        server = self._runner.server
        assert server is not None, "the door is not open"
        return server

    async def _accept(self, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as handshakes:
            while True:
                try:
                    connection, _ = await loop.sock_accept(self._listener)
                except OSError:
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                if self._faults.refuse_connection():
                    _reset(connection)
                else:
                    handshakes.create_task(self._welcome(connection, tls))

    async def _welcome(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        protocol = partial(
            QuietHandler,
            self._server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # aiohttp takes None for "no access log", its hints do not
            keepalive_timeout=KEEPALIVE_TIMEOUT_S,
        )
        with contextlib.suppress(OSError):  # a handshake that fails is the client's loss alone
            await loop.connect_accepted_socket(
                protocol,
                connection,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
            )

    @web.middleware
    async def _attend(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._busy.add(request.protocol)
        try:
            response = await handler(request)
        finally:
            self._busy.discard(request.protocol)
        if self._faults.plan.refused:
            response.force_close()
        return response


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    connection.close()
