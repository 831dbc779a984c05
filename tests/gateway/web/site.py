"""The admin site as the city's people meet it: the real process' parts over TLS, before a PostgreSQL of its own.

Accounts are written by the owner, as `gateway staff add` does behind two signatures.
"""

import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import aiohttp
import asyncpg
import msgspec
import structlog
from aiohttp import web

from gateway.config import Config
from gateway.embedded import EmbeddedPostgres
from gateway.rules.ids import new_id
from gateway.rules.passwords import Cost, hash_password
from gateway.rules.problems import of_status
from gateway.rules.totp import STEP_S, code_at, new_seed, seal_seed
from gateway.store.migrate import migrate
from gateway.web.gate import ANSWER_HEADERS, COOKIE, MEDIA_TYPES
from gateway.web.server import Limits, SafeServer, tls_context
from gateway.wiring_admin import AdminParts, admin_parts
from keys.files import write_private
from keys.process_keys import make_process_key, read_process_keys
from keys.secret import Secret
from tests.gateway.store.postgres import APPLICATION, HOST, PARKS, UTILITIES, Postgres, with_roles
from tests.gateway.web.test_server import _issue
from tests.system import Reply

CHEAP = Cost(1, 8 * 1024)
PASSWORD = "four blue herons on 1 pier"
DEPARTMENTS = (PARKS, UTILITIES)
EDGE = "----WebKitFormBoundary7MA4YWxkTrZu0gW"


@dataclass(frozen=True)
class Person:
    """An account, and what its owner knows and carries."""

    staff_id: str
    username: str
    seed: Secret[bytes]
    password: str = PASSWORD


@dataclass
class Site:
    """Where requests are made, and the owner behind it."""

    url: str
    owner: asyncpg.Connection
    session: aiohttp.ClientSession
    secrets: Path
    parts: AdminParts

    async def person(
        self, *roles: str, departments: Sequence[str] = ("*",), name: str = "", must_change: bool = False
    ) -> Person:
        """Somebody new."""
        person = Person(new_id("st"), name or f"p{token_hex(6)}", new_seed())
        keys = read_process_keys(self.secrets, "admin", "staff-sealing")
        await self.owner.execute(
            "INSERT INTO gateway.staff (staff_id, username, person, roles, departments, password_hash,"
            " password_must_change, totp_sealed, grant_act, granted_by, approved_by, created_at, granted_at)"
            " VALUES ($1, $2, $1, $3, $4, $5, $6, $7, $1, 'security', 'security2', now(), now())",
            *(person.staff_id, person.username, list(roles), list(departments)),
            *(hash_password(Secret(PASSWORD), CHEAP), must_change),
            seal_seed(keys, person.staff_id, person.seed),
        )
        return person

    async def code(self, person: Person) -> str:
        """A code of now, as if the person had used none before."""
        await self.owner.execute("UPDATE gateway.staff SET totp_step = 0 WHERE staff_id = $1", person.staff_id)
        return code_at(person.seed, int(time.time()) // STEP_S)

    async def token(self, person: Person) -> str:
        """A session of a script."""
        given = {"username": person.username, "password": person.password, "totp": await self.code(person)}
        reply = await self.call("POST", "/admin/v1/sessions", given)
        assert reply.status == 201, reply.body
        return str(reply.json["token"])

    async def call(self, method: str, path: str, body: object = None, token: str = "", **headers: str) -> Reply:
        """One request of a script; bytes are sent as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers = {"Content-Type": "application/json"} | headers
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return await self.send(method, path, data, headers)

    async def browse(
        self, method: str, path: str, form: dict[str, str] | None = None, token: str = "", **headers: str
    ) -> Reply:
        """One request of a browser that says what browsers say; a header that is empty is left out."""
        data = None if form is None else aiohttp.FormData(form)
        headers = {"Sec-Fetch-Site": "same-origin", "Cookie": f"{COOKIE}={token}" if token else ""} | headers
        return await self.send(method, path, data, {name: value for name, value in headers.items() if value})

    async def upload(
        self, path: str, content: bytes, name: str = "native", token: str = "", csrf: str | None = None
    ) -> Reply:
        """A file from the form of a page."""
        if csrf is None:
            csrf = await self.csrf(token) if token else ""
        headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": f"multipart/form-data; boundary={EDGE}"}
        cookie = {"Cookie": f"{COOKIE}={token}"} if token else {}
        return await self.send("POST", path, with_file(csrf, name, content), headers | cookie)

    async def send(self, method: str, path: str, data: Any, headers: dict[str, str]) -> Reply:
        """One request as it is."""
        async with self.session.request(
            method, self.url + path, data=data, headers=headers, allow_redirects=False
        ) as response:
            return Reply(response.status, await response.read(), dict(response.headers))

    async def csrf(self, token: str) -> str:
        """What the forms of a session carry."""
        page = (await self.browse("GET", "/password", token=token)).body.decode()
        return page.partition('name="csrf" value="')[2].partition('"')[0]

    async def refund(self, department: str = PARKS, amount_minor: int = 1_250_000, reference: str = "R-1") -> str:
        """A refund that waits for an approver."""
        ids = {kind: new_id(kind) for kind in ("tok", "ch", "re", "pr")}
        await self.owner.execute(
            "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,"
            " fingerprint_id, cvc_check, created_at, expires_at, sealed)"
            " VALUES ($1, $2, $3, 'card', 'multi', 'active', 'visa', '4242', 'fp', 'pass', now(), now(), '\\x00')",
            *(department, ids["tok"], APPLICATION),
        )
        await self.owner.execute(
            "INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,"
            " convenience_fee_minor, reference, processor_reference, kind, progress, captured_minor, refunding_minor,"
            " cvc_check, created_at)"
            " VALUES ($1, $2, $3, $4, $5, 'USD', 0, $6, $7, 'sale', 'done', $5, $5, 'pass', now())",
            *(department, ids["ch"], APPLICATION, ids["tok"], amount_minor, reference, ids["pr"]),
        )
        await self.owner.execute(
            "INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency,"
            " reference, application_id, route, idempotency_key, progress, with_cvc, created_at, first_sent_at,"
            " not_after, lease_until, sends) VALUES ($1, $2, $3, 'refund', $4, 'USD', $2, $5, 'r', $2,"
            " 'awaiting_approval', false, now(), now(), now(), now(), 0)",
            *(department, ids["re"], ids["ch"], amount_minor, APPLICATION),
        )
        return ids["re"]

    async def audited(self, person: Person | None = None) -> list[str]:
        """What the audit log says of somebody, oldest first; of nobody in particular without a person."""
        actor = person.staff_id if person else "unknown"
        rows = await self.owner.fetch("SELECT event FROM audit.events WHERE actor = $1 ORDER BY occurred_at", actor)
        return [row["event"] for row in rows]

    async def verdicts(self) -> int:
        """How many refunds somebody has decided about."""
        return int(await self.owner.fetchval("SELECT count(*) FROM gateway.refund_approvals"))


def with_file(csrf: str, name: str, content: bytes) -> bytes:
    """The form of a page that takes a file, as Chromium sends it."""
    head = "".join(
        f'--{EDGE}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in (("csrf", csrf), ("format", name))
    )
    file = (
        f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="d.csv"\r\nContent-Type: text/csv\r\n\r\n'
    )
    return f"{head}{file}".encode() + content + f"\r\n--{EDGE}--\r\n".encode()


@asynccontextmanager
async def served(application: web.Application, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """An application on a port of its own, as the admin process serves it."""
    server = SafeServer(
        application,
        socket.create_server((HOST, 0)),
        tls=tls,
        limits=Limits(),
        refusal=of_status,
        observe=lambda _request, _status, _duration_s: None,
        log=structlog.get_logger(),
        media_types=MEDIA_TYPES,
        answer_headers=ANSWER_HEADERS,
    )
    await server.start()
    try:
        yield server.port
    finally:
        await server.stop()


@asynccontextmanager
async def running_site(home: Path) -> AsyncIterator[Site]:
    """The site on a port of its own, until it is left."""
    async with AsyncExitStack() as stack:
        server = EmbeddedPostgres(home)
        address = await server.start()
        stack.push_async_callback(server.stop)
        postgres = await with_roles(server, address)
        owner = await postgres.connect("owner")
        stack.push_async_callback(owner.close)
        await migrate(owner)
        await _settle(owner)
        for name, issuer in (("ca", None), ("admin", "ca")):
            _issue(home, name, issuer)
        config = _config(home, postgres)
        parts = await stack.enter_async_context(admin_parts(config))
        tls_here = tls_context(home / "admin.pem", home / "admin.key", None)
        port = await stack.enter_async_context(served(parts.application, tls_here))
        tls = ssl.create_default_context(cafile=str(home / "ca.pem"))
        connector = aiohttp.TCPConnector(ssl=tls)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        yield Site(f"https://{HOST}:{port}", owner, session, Path(config.keys.secrets), parts)


async def _settle(owner: asyncpg.Connection) -> None:
    for department in DEPARTMENTS:
        await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
        await owner.execute(
            "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
            " requests_per_s_max, created_at) VALUES ($1, $2, 'Pool reservations', 1000000, '{}', 100, now())",
            *(department, APPLICATION),
        )


def _config(home: Path, postgres: Postgres) -> Config:
    """Settings, and the secrets of the process where they say."""
    own = home / "secrets" / "admin"
    own.mkdir(parents=True, mode=0o700)
    write_private(own / "database.password", postgres.passwords["admin"].reveal().encode(), replace=False)
    make_process_key(home / "secrets", "admin", "audit-mac", 1)
    make_process_key(home / "secrets", "admin", "staff-sealing", 1)
    make_process_key(home / "secrets", "admin", "close-pack", 1)
    address = postgres.address
    listener = {"cert": str(home / "admin.pem"), "key": str(home / "admin.key")}
    settings = {
        "environment": "test",
        "keys": {"root": "file:/none", "store": "file:/none", "secrets": str(home / "secrets")},
        "database": {"dsn": f"postgresql://{address.host}:{address.port}/{address.database}"},
        "api": listener,
        "admin": listener,
        "processor": {"url": "https://processor.test"},
    }
    return msgspec.convert(settings, Config)
