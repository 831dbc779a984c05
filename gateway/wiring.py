"""The composition root: from settings to running parts. Nothing else constructs its own collaborators."""

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web
from structlog.typing import FilteringBoundLogger

from gateway.berth import Berth
from gateway.clock import SystemClock
from gateway.config import ApiSection, Config, city_of
from gateway.daemon import end, follow, forbid_dumps, open_database, settle, stop_signal
from gateway.metrics import Metrics
from gateway.processor.client import ProcessorClient, open_session
from gateway.profile import in_production, require_profile
from gateway.rules.card import Brands
from gateway.rules.problems import of_status
from gateway.services.callers import Callers
from gateway.services.charges import Charges
from gateway.services.keyring import Keyring
from gateway.services.mint import Mint
from gateway.services.movements import Movements
from gateway.services.points import Points, pass_by
from gateway.services.ports import Clock
from gateway.services.recovery import Recovery, Resender
from gateway.services.refusals import Refusals
from gateway.services.reseal import Reseal
from gateway.services.sending import Sender
from gateway.services.tokens import Tokens
from gateway.services.vault import Vault
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from gateway.store.reseal import ResealStore
from gateway.web import openapi
from gateway.web.api import CALLER, Api
from gateway.web.bulk import BulkTokens
from gateway.web.certificates import RevocationFile
from gateway.web.health import Check, Health
from gateway.web.server import REQUEST_ID, ROUTE, Limits, SafeServer, tls_context
from keys.audit import AuditPen
from keys.errors import KeyRefused
from keys.files import read_private_line
from keys.keystore import open_keystore
from keys.process_keys import read_process_keys
from keys.root import Ask, RootKey

METRICS_CONNECTIONS_MAX = 16
RESEAL_CONNECTIONS = 3
"""One for the page, and one for what its keys ask meanwhile."""
RESEAL_STATEMENT_TIMEOUT_S = 300.0
"""Its counts go over whole tables."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the api process is made of."""

    store: Ledger
    database: Database
    keyring: Keyring
    callers: Callers
    resender: Resender
    renew_own_keys: Callable[[], Awaitable[None]]
    application: web.Application


async def serve_api(
    config: Config, ask: Ask, log: FilteringBoundLogger, at: Points = pass_by, inherited: str | None = None
) -> None:
    """Run an api process until SIGTERM or SIGINT; raises `keys.errors.KeysError` when it must not start.

    One of several workers is told what it `inherited`, and ends when its parent says so or is gone, too.
    """
    forbid_dumps()
    require_profile(config, {"api.cert": config.api.cert, "api.client_ca": config.api.client_ca})
    berth = Berth.alone(config, ask) if inherited is None else Berth.inherited(inherited)
    async with AsyncExitStack() as stack:
        parts = await stack.enter_async_context(api_parts(config, berth.root, log, at))
        await parts.keyring.look()
        await parts.callers.look()
        metrics = Metrics(
            parts.store.unresolved, lambda: (parts.database.connections, parts.database.connections_idle)
        )
        await _start_metrics(stack, metrics, berth.metrics, log)
        callers, keyring = parts.callers, parts.keyring
        looks = keyring.look, parts.renew_own_keys, callers.look, callers.note_use
        following = asyncio.create_task(follow(log, *looks))
        resending = asyncio.create_task(parts.resender.run())
        stack.push_async_callback(end, following, resending)
        server = SafeServer(
            parts.application,
            berth.listener,
            tls=_tls(config.api),
            limits=Limits(
                connections_max=-(-config.api.connections_max // berth.workers),
                stream_bytes_max=sys.maxsize,  # bulk: what is in work is bounded, not how much comes
            ),
            refusal=of_status,
            observe=_observer(log, metrics),
            log=log,
            loads=berth.loads,
        )
        await server.start()
        settle()
        log.info("started", port=server.port)
        grace_s = await berth.serve()
        log.info("stopping")
        await server.stop(grace_s)


@asynccontextmanager
async def api_parts(
    config: Config, root: RootKey, log: FilteringBoundLogger, at: Points = pass_by
) -> AsyncIterator[Parts]:
    """The parts of the api process, wired; closed on leaving."""
    secrets, clock, city = Path(config.keys.secrets), SystemClock(), city_of(config)
    production = in_production(config)
    brands = Brands.load(refuse_published=production)
    keystore = open_keystore(config.keys, config.database, config.environment)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(config.database, "api", secrets))
        store, processor = Ledger(database), await stack.enter_async_context(_processor(config, "api"))
        pen = AuditPen("api", read_process_keys(secrets, "api", "audit-mac"))
        keyring = Keyring(keystore, root, store, clock, pen, "api")
        vault = Vault(keyring, store, clock, brands)
        mint = Mint(vault, clock)
        revocations = _revocations(config.api, clock, log)
        digest_keys = read_process_keys(secrets, "api", "api-digest")
        callers = Callers(store, digest_keys, clock, revocations, certificate_required=production)

        async def renew_own_keys() -> None:
            pen.renew(read_process_keys(secrets, "api", "audit-mac"))
            callers.renew(read_process_keys(secrets, "api", "api-digest"))

        needed: dict[str, Check] = {
            "database": store.manifest_seen,
            "ring": keyring.ring,
            "audit": store.require_audit,
        }
        wished: dict[str, Check] = {"processor": processor.require_reachable}
        if revocations is not None:  # without it no certificate is taken: in production, nobody is served
            (needed if production else wished)["revocation"] = revocations.require_usable
        health = Health(needed, wished, clock)
        sender = Sender(store, vault, processor, pen, clock, at)
        tokens = Tokens(store, vault, mint, processor, pen, clock, city)
        api = Api(
            tokens=tokens,
            bulk=BulkTokens(tokens, brands),
            charges=Charges(store, vault, mint, sender, pen, clock, city, at, documented_only=production),
            movements=Movements(store, sender, pen, clock, at),
            refusals=Refusals(store, pen, clock),
            identify=callers.identify,
            recognize=callers.recognize,
            brands=brands,
            health=health,
            openapi=msgspec.json.encode(openapi.document()),
        )
        resender = Resender(store, sender, pen, clock, at)
        yield Parts(store, database, keyring, callers, resender, renew_own_keys, api.application())


async def serve_worker(config: Config, log: FilteringBoundLogger, at: Points = pass_by) -> None:
    """Run a worker until SIGTERM or SIGINT; raises `keys.errors.KeysError` when it must not start."""
    forbid_dumps()
    require_profile(config, {})
    secrets = Path(config.keys.secrets)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(config.database, "worker", secrets))
        processor = await stack.enter_async_context(_processor(config, "worker"))
        pen = AuditPen("worker", read_process_keys(secrets, "worker", "audit-mac"))

        async def renew_own_keys() -> None:
            pen.renew(read_process_keys(secrets, "worker", "audit-mac"))

        recovery = Recovery(Ledger(database), processor, pen, SystemClock(), at)
        work = asyncio.create_task(follow(log, renew_own_keys)), asyncio.create_task(recovery.run())
        stack.push_async_callback(end, *work)
        log.info("started")
        await stop_signal()
        log.info("stopping")


@asynccontextmanager
async def reseal_parts(config: Config, root: RootKey, page_rows: int) -> AsyncIterator[Reseal]:
    """The work of `gateway reseal`, wired; raises `KeysError` where the key store is not as the database knows it."""
    secrets, clock = Path(config.keys.secrets), SystemClock()
    keystore = open_keystore(config.keys, config.database, config.environment)
    pool = open_database(config.database, "reseal", secrets, RESEAL_CONNECTIONS, RESEAL_STATEMENT_TIMEOUT_S)
    async with pool as database:
        store, pen = ResealStore(database), AuditPen("reseal", read_process_keys(secrets, "reseal", "audit-mac"))
        keyring = Keyring(keystore, root, store, clock, pen, "reseal")
        await keyring.look()
        manifest = keystore.open(root).manifest
        if manifest.version > (await store.manifest_seen()).version:
            raise KeyRefused(f"an interrupted `keys {manifest.act.name}` is not finished: run it again first")
        vault = Vault(keyring, store, clock, Brands.load())
        yield Reseal(store, vault, keyring, pen, clock, page_rows)


@asynccontextmanager
async def _processor(config: Config, process: str) -> AsyncIterator[ProcessorClient]:
    """The far side, with this process's own credential."""
    credential = read_private_line(Path(config.keys.secrets) / process / "processor.credential")
    ca = Path(config.processor.ca) if config.processor.ca else None
    async with open_session(ca, credential) as session:
        yield ProcessorClient(session, config.processor.url)


def _revocations(api: ApiSection, clock: Clock, log: FilteringBoundLogger) -> RevocationFile | None:
    if api.client_ca is None or api.client_crl is None:
        return None
    return RevocationFile(Path(api.client_crl), Path(api.client_ca), clock, log)


def _tls(api: ApiSection) -> ssl.SSLContext:
    return tls_context(Path(api.cert), Path(api.key), Path(api.client_ca) if api.client_ca else None)


async def _start_metrics(
    stack: AsyncExitStack, metrics: Metrics, sock: socket.socket, log: FilteringBoundLogger
) -> None:
    server = SafeServer(
        metrics.application(),
        sock,
        tls=None,
        limits=Limits(connections_max=METRICS_CONNECTIONS_MAX),
        refusal=of_status,
        observe=lambda _request, _status, _duration_s: None,
        log=log,
    )
    await server.start()
    stack.push_async_callback(server.stop)


def _observer(log: FilteringBoundLogger, metrics: Metrics) -> Callable[[web.BaseRequest, int, float], None]:
    def observe(request: web.BaseRequest, status: int, duration_s: float) -> None:
        route = request.get(ROUTE, "none")
        caller = request.get(CALLER)
        fields = {"application": caller.application_id, "department": caller.department} if caller else {}
        duration_ms = round(duration_s * 1000, 1)
        log.info(
            "request", route=route, status=status, duration_ms=duration_ms, request_id=request[REQUEST_ID], **fields
        )
        metrics.observe(route, status, duration_s)

    return observe
