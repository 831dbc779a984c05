"""The admin process, composed apart from the others: nothing that is imported here can open a card.

The contract `admin-holds-no-card-key` in pyproject.toml holds that, however far down the imports go.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from gateway.clock import SystemClock
from gateway.config import AdminSection, Config, OidcSection, city_of
from gateway.daemon import end, follow, forbid_dumps, listen, open_database, stop_signal
from gateway.profile import require_profile
from gateway.rules.passwords import require_readable
from gateway.rules.problems import of_status
from gateway.services.approvals import Approvals
from gateway.services.inbox import Inbox
from gateway.services.ports import Clock
from gateway.services.refusals import Refusals
from gateway.services.staff import StaffSessions
from gateway.services.visits import Visits
from gateway.store.approvals import ApprovalStore
from gateway.store.staff import StaffStore
from gateway.web.admin import Admin
from gateway.web.gate import ANSWER_HEADERS, MEDIA_TYPES, STAFF, Face, Gate
from gateway.web.health import Health
from gateway.web.oidc import OidcPages
from gateway.web.oidc_client import OidcClient, open_session
from gateway.web.pages import Pages
from gateway.web.renderer import Renderer
from gateway.web.server import REQUEST_ID, ROUTE, Limits, SafeServer, tls_context
from gateway.wiring_finance import finance_faces, imports_of
from keys.audit import AuditPen
from keys.errors import SettingsRefused
from keys.files import read_private_line
from keys.process_keys import read_process_keys

TIDY_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the admin process is made of."""

    renew_own_keys: Callable[[], Awaitable[None]]
    tidy: Callable[[], Awaitable[None]]
    gate: Gate
    application: web.Application
    inbox: Inbox | None
    """Where the settings name a folder to be watched."""


async def serve_admin(config: Config, log: FilteringBoundLogger) -> None:
    """Run the admin process until SIGTERM or SIGINT; raises `keys.errors.KeysError` when it must not start."""
    forbid_dumps()
    section = admin_section(config)
    require_profile(config, {"admin.cert": section.cert})
    sock = listen(section.host, section.port, "admin.port")
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(admin_parts(config))
        server = SafeServer(
            parts.application,
            sock,
            tls=tls_context(Path(section.cert), Path(section.key), None),
            limits=Limits(connections_max=section.connections_max),
            refusal=of_status,
            observe=_observer(log),
            log=log,
            media_types=MEDIA_TYPES,
            answer_headers=ANSWER_HEADERS,
        )
        await server.start()
        stack.push_async_callback(server.stop)
        following = [asyncio.create_task(follow(log, parts.renew_own_keys, parts.tidy))]
        if parts.inbox is not None:  # apart from the others: a long file must not hold up new keys
            following.append(asyncio.create_task(follow(log, parts.inbox.look)))
        stack.push_async_callback(end, *following)
        log.info("started", port=server.port)
        await stop_signal()
        log.info("stopping")


def admin_section(config: Config) -> AdminSection:
    """The section of the settings that the admin process needs; raises `SettingsRefused`."""
    if config.admin is None:
        raise SettingsRefused("the file has no [admin] section: give it `cert` and `key` of the staff's site")
    return config.admin


@asynccontextmanager
async def admin_parts(config: Config) -> AsyncIterator[AdminParts]:
    """The parts of the admin process, wired; closed on leaving."""
    secrets, clock, section = Path(config.keys.secrets), SystemClock(), admin_section(config)
    breached = Path(section.breached_passwords) if section.breached_passwords else None
    require_readable(breached)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(config.database, "admin", secrets))
        pen = AuditPen("admin", read_process_keys(secrets, "admin", "audit-mac"))
        sealing, ledger = read_process_keys(secrets, "admin", "staff-sealing"), ApprovalStore(database)
        sessions = StaffSessions(StaffStore(database), sealing, pen, clock, breached=breached)
        visits = Visits(sealing, clock)

        async def renew_own_keys() -> None:
            pen.renew(read_process_keys(secrets, "admin", "audit-mac"))
            keys = read_process_keys(secrets, "admin", "staff-sealing")
            sessions.renew(keys)
            visits.renew(keys)

        approvals = Approvals(ledger, pen, clock)
        needed = {"database": ledger.departments, "audit": ledger.require_audit}
        health = Health(needed, wished={}, clock=clock)
        refusals = Refusals(ledger, pen, clock)
        renderer = Renderer(sessions, city_of(config))
        pages = Pages(sessions, approvals, renderer, with_provider=config.oidc is not None)
        finance = finance_faces(config, database, pen, clock, renderer, stack)
        faces: list[Face] = [Admin(sessions, approvals, health), pages, *finance]
        if config.oidc is not None:
            client = await stack.enter_async_context(_provider(config, config.oidc, clock))
            faces.append(OidcPages(client, visits, sessions, refusals))
        gate = Gate(sessions, refusals, renderer.refusal)
        folder = config.finance.inbox
        inbox = Inbox(imports_of(config, database, pen, clock), Path(folder), clock) if folder else None
        yield AdminParts(renew_own_keys, hourly(sessions.tidy, clock), gate, gate.application(*faces), inbox)


def hourly(act: Callable[[], Awaitable[None]], clock: Clock) -> Callable[[], Awaitable[None]]:
    """A look that does this at most once in `TIDY_EVERY_S`, whether it succeeds or not."""
    due_s = clock.monotonic()

    async def look() -> None:
        nonlocal due_s
        if clock.monotonic() >= due_s:
            due_s = clock.monotonic() + TIDY_EVERY_S
            await act()

    return look


@asynccontextmanager
async def _provider(config: Config, section: OidcSection, clock: Clock) -> AsyncIterator[OidcClient]:
    """The city's own provider of sign-ins."""
    secret = read_private_line(Path(config.keys.secrets) / "admin" / "oidc.secret")
    async with open_session(Path(section.ca) if section.ca else None) as session:
        yield OidcClient(session, section, secret, clock, plain_loopback=config.profile == "demo")


def _observer(log: FilteringBoundLogger) -> Callable[[web.BaseRequest, int, float], None]:
    def observe(request: web.BaseRequest, status: int, duration_s: float) -> None:
        staff = request.get(STAFF)
        log.info(
            "request",
            route=request.get(ROUTE, "none"),
            status=status,
            duration_ms=round(duration_s * 1000, 1),
            request_id=request[REQUEST_ID],
            **({"staff": staff.staff_id} if staff else {}),
        )

    return observe
