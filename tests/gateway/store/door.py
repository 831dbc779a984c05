"""The public API of one page, over HTTP: the real routes and server, before services on a real database."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog

from gateway.errors import NotIdentified
from gateway.rules.access import Application
from gateway.rules.certificates import ClientCertificate
from gateway.rules.problems import of_status
from gateway.services.refusals import Refusals
from gateway.store.ledger import Ledger
from gateway.web.api import Api
from gateway.web.health import Health
from gateway.web.server import Limits, SafeServer
from keys.audit import AuditPen
from keys.primitives import new_key
from tests.gateway.store.city import DEPARTMENTS, City, Page, brands, caller
from tests.gateway.store.postgres import HOST, PARKS
from tests.system import Reply

Identify = Callable[[str | None, ClientCertificate | None], Awaitable[Application]]


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
            headers["Content-Type"] = "application/json"
        async with self.session.request(method, self.url + path, data=data, headers=headers) as response:
            return Reply(response.status, await response.read(), dict(response.headers))


@asynccontextmanager
async def opened(city: City, page: Page, identify: Identify = identify) -> AsyncIterator[Door]:
    """The page's API on a port of its own."""
    sock = socket.create_server((HOST, 0))
    api = Api(
        tokens=page.tokens,
        charges=page.charges,
        movements=page.movements,
        refusals=Refusals(Ledger(city.api), AuditPen("api", {1: new_key()}), city.clock),
        identify=identify,
        brands=brands(),
        health=Health({}, {}, city.clock),
        openapi=b"{}",
    )
    server = SafeServer(
        api.application(),
        sock,
        tls=None,
        limits=Limits(),
        refusal=of_status,
        observe=lambda _request, _status, _duration_s: None,
        log=structlog.get_logger(),
    )
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Door(f"http://{HOST}:{server.port}", session)
    finally:
        await server.stop()
