"""What all seeds share: a PostgreSQL with the schema, one key store, a certificate, and who sees where work waits."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.embedded import EmbeddedPostgres
from tests.gateway.store.city import City as Keys
from tests.gateway.store.city import founded
from tests.gateway.store.postgres import Postgres, with_roles

LOOK_EVERY_S = 0.05
APPLICATION = "app"
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder in memory, where there is one
SETTLE = (
    "INSERT INTO gateway.departments VALUES ($1, $1, now())",
    (
        "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
        " requests_per_s_max, created_at) VALUES ($1, 'app', 'app', 1000000, '{}', 100, now())"
    ),
)
WAITS = """
SELECT department_id, bool_or(lease_until <= now()) AS waiting,
       coalesce(bool_or(resend_until > now()), false) AS marked
FROM gateway.movements WHERE department_id = ANY($1) AND progress IN ('sending', 'unknown', 'in_review')
GROUP BY department_id
"""
HANG_UP = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = $1 AND usename LIKE 'gateway%'"


@dataclass
class Harbour:
    """Everything that is there before the first seed, and after the last."""

    folder: Path
    postgres: Postgres
    keys: Keys
    owner: asyncpg.Pool
    superuser: asyncpg.Connection
    cert: Path
    cert_key: Path
    afloat: set[str] = field(default_factory=set)
    """The departments of the seeds that run now."""
    waiting: frozenset[str] = frozenset()
    marked: frozenset[str] = frozenset()
    """Those in which a worker, and those in which a resender, would find something."""
    _hanging_up: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def settle(self, departments: Sequence[str]) -> None:
        """Departments of a seed's own, each with an application."""
        async with self.owner.acquire() as connection:
            for department in departments:
                for statement in SETTLE:
                    await connection.execute(statement, department)
        self.afloat.update(departments)

    async def hang_up(self, port: int) -> bool:
        """End the server process that talks to this port; false when there is none."""
        async with self._hanging_up:
            return bool(await self.superuser.fetchval(HANG_UP, port))

    async def watch(self) -> None:
        """See again and again where something waits, so that an idle process need not ask the server all the time."""
        while True:
            rows = await self.owner.fetch(WAITS, list(self.afloat))
            self.waiting = frozenset(row["department_id"] for row in rows if row["waiting"])
            self.marked = frozenset(row["department_id"] for row in rows if row["marked"])
            await asyncio.sleep(LOOK_EVERY_S)


@asynccontextmanager
async def opened() -> AsyncIterator[Harbour]:
    """A harbour, gone at the end. Data lies in memory: what a power cut takes is not this tier's question."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-waters-", dir=MEMORY if MEMORY.is_dir() else None))
    folder.chmod(0o711)
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = EmbeddedPostgres(folder)
        address = await server.start()
        stack.push_async_callback(server.stop)
        postgres = await with_roles(server, address)
        keys = await stack.enter_async_context(founded(postgres, "waters", folder))
        arguments = postgres.arguments("owner") | {"database": keys.database}
        owner = await asyncpg.create_pool(**arguments, min_size=1, max_size=4)
        stack.push_async_callback(owner.close)
        superuser = await server.connect_superuser()
        stack.push_async_callback(superuser.close)
        harbour = Harbour(folder, postgres, keys, owner, superuser, *certificate(folder))
        watching = asyncio.create_task(harbour.watch())
        stack.push_async_callback(_end, watching)
        yield harbour


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "processor")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(pem))
    paths[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return paths


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
