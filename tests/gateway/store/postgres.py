"""A PostgreSQL of the tests' own with the real roles and schema, rows to put in, and a wire that can be cut.

`Wire` stands between the driver and the server. It knows one thing of the protocol: what a COMMIT looks like.
"""

import asyncio
import secrets
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from typing import Any

import asyncpg

from gateway.embedded import Address, EmbeddedPostgres
from gateway.rules.access import Application
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Kind, Progress
from gateway.services.intents import first_movement_id
from gateway.services.movements import ROUTES
from gateway.services.ports import (
    Answer,
    Asked,
    CardIndex,
    Charge,
    Claim,
    Intent,
    Movement,
    NewToken,
    SealedRecord,
    Token,
)
from gateway.store.roles import PROCESSES, statements
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from keys.primitives import new_key
from keys.ring import WrappedDek
from keys.secret import Secret

HOST = "127.0.0.1"
PARKS = "parks"
UTILITIES = "utilities"
APPLICATION = "app_of_the_tests"
SERVICE = "POOL"
ROUTE = "POST /v1/charges"
GENERATION = 1
RETIRED = 2
FINGERPRINTS = {1: "active", 2: "destroyed", 3: "compromised", 4: "retired", 5: "active"}
"""Versions of the card index by state; 4 is being replaced by 5, beside the others' 1."""
PEN = AuditPen("api", {1: new_key()})
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
NAMES_ITSELF = b"set_config('gateway.department'"
"""What a statement has that is a transaction of its own, unless it stands in one."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero seconds: closing sends a reset."""


@dataclass(frozen=True)
class Postgres:
    """A running server, and how each role signs in."""

    server: EmbeddedPostgres
    address: Address
    passwords: dict[str, Secret[str]]

    def arguments(self, process: str = "api", port: int | None = None) -> dict[str, Any]:
        """What the driver needs to sign in as the role of a process."""
        return {
            "host": self.address.host,
            "port": port or self.address.port,
            "database": self.address.database,
            "user": f"gateway_{process}",
            "password": self.passwords[process].reveal(),
            "ssl": False,
        }

    async def connect(self, process: str = "api", **change: Any) -> asyncpg.Connection:
        """A connection as the role of a process."""
        return await asyncpg.connect(**self.arguments(process) | change)


async def with_roles(server: EmbeddedPostgres, address: Address) -> Postgres:
    """Create the roles on a new server."""
    passwords = {process: Secret(secrets.token_urlsafe(16)) for process in PROCESSES}
    superuser = await server.connect_superuser()
    await superuser.execute(statements(passwords, address.database))
    await superuser.close()
    return Postgres(server, address, passwords)


# --- rows -----------------------------------------------------------------------------------------------------


def audit(department: str = PARKS, event: str = "test.event") -> AuditRow:
    """Any audit row."""
    told = AuditEvent(department, event, Outcome.DONE, APPLICATION)
    return PEN.row(told, datetime.now(UTC))


def sealed(record_id: str, generation: int = GENERATION) -> SealedRecord:
    """A record whose bytes mean nothing: the store does not look inside."""
    return SealedRecord(record_id, secrets.token_bytes(64), WrappedDek(generation, secrets.token_bytes(61)))


def new_token(
    usage: str = "multi",
    card_index: bytes | None = None,
    generation: int = GENERATION,
    department: str = PARKS,
) -> NewToken:
    """A token of a card that nobody has seen unless its index is given."""
    now = datetime.now(UTC)
    token = Token(
        department=department,
        token_id=new_id("tok"),
        application_id=APPLICATION,
        kind="card",
        usage=usage,
        status="active",
        brand="visa",
        last4="4242",
        fingerprint_id=new_id("fp"),
        cvc_check="unchecked",
        created_at=now,
        expires_at=now + timedelta(hours=1),
    )
    return NewToken(token, sealed(token.token_id, generation), (CardIndex(1, card_index or secrets.token_bytes(32)),))


def claim(subject_id: str, key: str | None = None, route: str = ROUTE, version: int = 1) -> Claim:
    """A hold on a key of its own, unless one is given."""
    return Claim(route, key or new_id("key"), bytes(32), CardIndex(version, bytes(32)), subject_id)


def indexed(new: NewToken, **versions: bytes) -> NewToken:
    """The same token of a card that these versions index so: `v4=…, v5=…`."""
    indexes = tuple(CardIndex(int(name[1:]), value) for name, value in versions.items())
    return replace(new, card_indexes=indexes)


def intent(
    token_id: str, key: str | None = None, new: NewToken | None = None, *, with_cvc: bool = False, **change: Any
) -> Intent:
    """A charge of a token, to be begun: a sale of the parks unless it is changed."""
    charge = Charge(
        department=PARKS,
        charge_id=new_id("ch"),
        application_id=APPLICATION,
        token_id=token_id,
        amount_minor=4_321,
        currency="USD",
        convenience_fee_minor=0,
        service=SERVICE,
        reference="R-1",
        processor_reference=new_id("pr"),
        kind=Kind.SALE,
        progress=Progress.SENDING,
        captured_minor=0,
        refunded_minor=0,
        refunding_minor=0,
        cvc_check="unchecked",
        decline_class=None,
        decline_code=None,
        created_at=datetime.now(UTC),
    )
    charge = replace(charge, **change)
    held = claim(charge.charge_id, key)
    return Intent(charge, first_movement(charge, held, with_cvc=with_cvc), held, new, sealed(charge.charge_id))


def first_movement(charge: Charge, held: Claim, *, with_cvc: bool = False) -> Movement:
    """The sale or authorization of a charge, to be begun."""
    return Movement(
        department=charge.department,
        movement_id=first_movement_id(charge.charge_id),
        charge_id=charge.charge_id,
        kind=charge.kind,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        reference=charge.processor_reference,
        charge_reference=charge.processor_reference,
        application_id=charge.application_id,
        route=held.route,
        idempotency_key=held.key,
        progress=charge.progress,
        with_cvc=with_cvc,
        not_after=charge.created_at,
        epoch=0,
        sends=1,
        decline_class=None,
        decline_code=None,
        created_at=charge.created_at,
        running=True,
    )


def asked(charge: Charge, kind: Kind, amount_minor: int | None = None) -> Asked:
    """A capture, void or refund of a charge, to be begun."""
    return Asked(
        department=charge.department,
        charge_id=charge.charge_id,
        kind=kind,
        amount_minor=amount_minor,
        movement_id=new_id("re" if kind is Kind.REFUND else "mv"),
        reference=new_id("pr"),
        created_at=datetime.now(UTC),
        caller=caller(charge.department),
    )


def caller(department: str, refund_minor_max: int | None = None) -> Application:
    """The application of a department, which may do everything."""
    return Application(department, APPLICATION, 1_000_000, None, refund_minor_max=refund_minor_max)


def asking(what: Asked, key: str | None = None) -> Claim:
    """The hold on a key with which it is asked for."""
    return Claim(ROUTES[what.kind], key or new_id("key"), bytes(32), None, what.movement_id)


async def employ(owner: asyncpg.Connection, staff_id: str, *departments: str, role: str = "approver") -> None:
    """Somebody of the city with an account, of these departments or of all."""
    await owner.execute(
        "INSERT INTO gateway.staff (staff_id, username, person, roles, departments, password_must_change,"
        " oidc_subject, grant_act, granted_by, approved_by, created_at, granted_at)"
        " VALUES ($1, $2, $1, $3, $4, false, $1, $1, 'ada', 'bob', now(), now())",
        staff_id,
        staff_id.replace("_", "."),
        [role],
        list(departments) or ["*"],
    )


def shown(token: Token) -> Answer:
    """An answer that says whose token it is, and how that stands."""
    return Answer(201, f"{token.department} {token.status}".encode())


def told(charge: Charge, movement: Movement) -> Answer:
    """An answer that says how movement and charge stand: rendered at another time, it would be another one."""
    money = f"{charge.captured_minor} {charge.refunded_minor} {charge.refunding_minor}"
    return Answer(201, f"{movement.kind} {movement.progress} {charge.status} {money}".encode())


SLOW_COMMIT = """
CREATE FUNCTION gateway.linger() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON gateway.idempotency DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION gateway.linger();
"""
NORMAL_COMMIT = "DROP TRIGGER linger ON gateway.idempotency; DROP FUNCTION gateway.linger"


@asynccontextmanager
async def slow_commits(owner: asyncpg.Connection) -> AsyncIterator[None]:
    """While inside, the COMMIT of a new key takes the server a moment."""
    await owner.execute(SLOW_COMMIT)
    try:
        yield
    finally:
        await owner.execute(NORMAL_COMMIT)  # waits for those under way


# --- a wire that can be cut -----------------------------------------------------------------------------------


class Cut(Enum):
    """Where the wire breaks, once."""

    BEFORE_COMMIT = auto()
    """The COMMIT never arrives; the client is reset."""
    DURING_COMMIT = auto()
    """The COMMIT arrives; the client is reset while the server is at it."""
    BEFORE_ANSWER = auto()
    """The COMMIT is carried out; its answer is swallowed and the client reset."""
    AFTER_ANSWER = auto()
    """The COMMIT is carried out and answered; what the client says next meets a reset."""


class Talk:
    """What a client says on one connection, as far as it ends a transaction."""

    def __init__(self) -> None:
        self._within = False
        self._lone: set[bytes] = set()
        """The names of prepared statements that need no COMMIT."""

    def commits(self, data: bytes) -> bool:
        """Whether this is a COMMIT, or carries out a statement that is a transaction of its own."""
        if data[:1] == b"Q":
            self._within = b"BEGIN" in data
            return COMMIT in data
        if data[:1] == b"P" and NAMES_ITSELF in data:
            self._lone.add(data[5 : data.index(0, 5)])
        # A Bind names its portal, which has no name here, and then its statement.
        return data[:1] == b"B" and not self._within and data[6 : data.index(0, 6)] in self._lone


@dataclass
class Wire:
    """A TCP proxy in front of the server. `silent` makes it deaf and dumb without closing anything."""

    target: int
    port: int = 0
    cut: Cut | None = None
    silent: bool = False
    commits: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def cut_at(self, where: Cut) -> None:
        """Break at the next COMMIT."""
        self.cut = where

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
        line = _Line(self, reader, writer, far_reader, far_writer)
        for pump in (line.ask(), line.answer()):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class _Line:
    """One connection through the wire."""

    def __init__(
        self,
        wire: Wire,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        far_reader: asyncio.StreamReader,
        far_writer: asyncio.StreamWriter,
    ) -> None:
        self._wire = wire
        self._reader, self._writer = reader, writer
        self._far_reader, self._far_writer = far_reader, far_writer
        self._cut: Cut | None = None
        self._talk = Talk()

    async def ask(self) -> None:
        """From the client to the server."""
        try:
            while (chunk := await self._reader.read(65_536)) and self._cut is not Cut.AFTER_ANSWER:
                if self._wire.silent:
                    continue
                self._look_for_commit(chunk)
                if self._cut is Cut.BEFORE_COMMIT:
                    break
                self._far_writer.write(chunk)
                await self._far_writer.drain()
                if self._cut is Cut.DURING_COMMIT:
                    break
        except OSError:
            pass
        finally:
            _reset(self._writer)
            self._far_writer.close()

    async def answer(self) -> None:
        """From the server to the client."""
        try:
            while (chunk := await self._far_reader.read(65_536)) and self._cut is not Cut.BEFORE_ANSWER:
                if not self._wire.silent:
                    self._writer.write(chunk)
                    await self._writer.drain()
        except OSError:
            pass
        finally:
            _reset(self._writer)
            self._far_writer.close()

    def _look_for_commit(self, chunk: bytes) -> None:
        if self._talk.commits(chunk):
            self._wire.commits += 1
            self._cut, self._wire.cut = self._wire.cut, None


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()
