"""The public API of one page, over HTTP: the real routes and server, before services on a real database."""

import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from gateway.errors import NotIdentified
from gateway.rules.access import Application
from gateway.rules.certificates import ClientCertificate
from gateway.rules.problems import of_status
from gateway.services.refusals import Refusals
from gateway.store.ledger import Ledger
from gateway.web.api import Api, Identify
from gateway.web.bulk import NDJSON, BulkTokens
from gateway.web.health import Health
from gateway.web.server import Limits, SafeServer, tls_context
from keys.audit import AuditPen
from keys.primitives import new_key
from tests.gateway.store.city import DEPARTMENTS, City, Page, brands, caller
from tests.gateway.store.postgres import HOST, PARKS
from tests.system import Reply


async def identify(authorization: str | None, _certificate: ClientCertificate | None) -> Application:
    """Here a department's name is its API key."""
    department = (authorization or "").removeprefix("Bearer ")
    if department not in DEPARTMENTS:
        raise NotIdentified
    return caller(department)


@dataclass
class Door:
    """Where requests are made."""

    url: str
    session: aiohttp.ClientSession

    async def call(
        self, method: str, path: str, body: Any = None, key: str | None = None, department: str = PARKS
    ) -> Reply:
        """One request; bytes are sent as they are, anything else as JSON."""
        headers = {"Authorization": f"Bearer {department}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = NDJSON if path == "/v1/tokens/bulk" else "application/json"
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            return Reply(response.status, await response.read(), dict(response.headers))


@asynccontextmanager
async def opened(
    city: City,
    page: Page,
    identify: Identify = identify,
    *,
    recognize: Identify | None = None,
    bulk: BulkTokens | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    pki: Path | None = None,
    buffer_bytes: int = 0,
) -> AsyncIterator[Door]:
    """The page's API on a port of its own; over TLS where `pki` has `ca.pem`, `server.pem` and its key.

    `buffer_bytes` is how much the system holds of a connection here, each way; else as it likes.
    """
    sock = socket.create_server((HOST, 0))
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffer_bytes else ():
        sock.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
    api = Api(
        tokens=page.tokens,
        bulk=bulk or BulkTokens(page.tokens, brands()),
        charges=page.charges,
        movements=page.movements,
        refusals=Refusals(Ledger(city.api), AuditPen("api", {1: new_key()}), city.clock),
        identify=identify,
        recognize=recognize or identify,
        brands=brands(),
        health=Health({}, {}, city.clock),
        openapi=b"{}",
    )
    server = SafeServer(
        api.application(),
        sock,
        tls=tls_context(pki / "server.pem", pki / "server.key", None) if pki else None,
        limits=limits,
        refusal=of_status,
        observe=lambda _request, _status, _duration_s: None,
        log=structlog.get_logger(),
    )
    await server.start()
    try:
        tls = ssl.create_default_context(cafile=pki / "ca.pem") if pki else False
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as session:
            yield Door(f"{'https' if pki else 'http'}://{HOST}:{server.port}", session)
    finally:
        await server.stop()
