"""A small city on a database of its own: services, key store and officers as in life, every key rotated for real."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import msgspec

from gateway.clock import SystemClock
from gateway.rules.access import Application
from gateway.rules.card import Brands, read_card
from gateway.rules.lifecycle import Kind
from gateway.services.charges import ChargeRequest, Charges
from gateway.services.keyring import Keyring
from gateway.services.mint import CardGiven, Mint
from gateway.services.movements import MovementRequest, Movements
from gateway.services.points import Points, pass_by
from gateway.services.ports import Answer
from gateway.services.recovery import Recovery, Resender
from gateway.services.reseal import Reseal, Tally
from gateway.services.sending import Sender
from gateway.services.tokens import Tokens
from gateway.services.vault import Vault
from gateway.store.database import Database
from gateway.store.ledger import Ledger
from gateway.store.migrate import migrate
from gateway.store.reseal import ResealStore
from keys.audit import AuditPen
from keys.deks import DekTable
from keys.keystore import Keystore
from keys.manifest import RootEntry
from keys.primitives import new_key
from keys.rewrap import Rewrap
from keys.ring import Ring
from keys.root import RootKey
from keys.root_file import FileRoot
from keys.rotation import Approval, Rotation
from keys.secret import Secret
from keys.states import State
from tests.cards import canary
from tests.gateway.store.far import FarSide
from tests.gateway.store.postgres import APPLICATION, PARKS, UTILITIES, Postgres

DEPARTMENTS = (PARKS, UTILITIES)
APPROVED = Approval("ada", "request-1")
CITY_TIME = ZoneInfo("America/Los_Angeles")


class Watch(SystemClock):
    """A clock whose seconds a test can let pass at once; the time of day is left alone."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@dataclass
class City:
    """Everything of it. Each api process that is asked for has a ring of its own, as old as its last look."""

    postgres: Postgres
    database: str
    keystore: Keystore
    root: RootKey
    secrets: Path
    owner: asyncpg.Connection
    api: Database
    table: DekTable
    resealing: Database
    working: Database
    department: str = PARKS
    """Whose pages these are, where nothing else is said."""

    def __post_init__(self) -> None:
        self.clock = Watch()
        self.brands = brands()

    def ring(self) -> Ring:
        """All keys as they are now."""
        return self.keystore.open(self.root).ring()

    def store(self, database: Database) -> Ledger:
        """The store of one process."""
        return Ledger(database)

    def page(self, far: FarSide | None = None, at: Points = pass_by, api: Database | None = None) -> "Page":
        """An api process that has not looked yet."""
        return Page(self, far or FarSide(), at, api or self.api)

    def recovery(self, far: FarSide, at: Points = pass_by) -> Recovery:
        """A worker."""
        pen = AuditPen("worker", {1: new_key()})
        return Recovery(self.store(self.working), far, pen, self.clock, at)

    async def expire(self, older_s: float = 0.0) -> None:
        """Let the time pass for which anybody holds a movement or a key, and let movements be that much older."""
        await self.owner.execute(
            "UPDATE gateway.movements SET lease_until = now(), not_after = not_after - make_interval(secs => $1),"
            " first_sent_at = first_sent_at - make_interval(secs => $1)",
            older_s,
        )
        await self.owner.execute("UPDATE gateway.idempotency SET lease_until = now()")

    async def movements(self) -> dict[str, asyncpg.Record]:
        """Every movement, by its id."""
        found = await self.owner.fetch("SELECT * FROM gateway.movements")
        return {row["movement_id"]: row for row in found}

    async def rotation(self) -> Rotation:
        """What an officer changes keys with."""
        pen = AuditPen("keys", {1: new_key()})
        return await Rotation(self.keystore.open(self.root), self.table, pen, self.secrets).begin(self.clock.now())

    async def rotate(self) -> None:
        """A new generation."""
        await (await self.rotation()).rotate(self.clock.now())

    async def compromise(self, generation: int) -> None:
        """Two officers say that somebody has it."""
        await (await self.rotation()).compromise(generation, APPROVED, self.clock.now())

    async def rotate_fingerprint(self) -> None:
        """A new version of the card index."""
        await (await self.rotation()).rotate_fingerprint(self.clock.now())

    async def destroy_fingerprint(self, version: int) -> None:
        """An old version of it goes; refused while a card is known by it alone."""
        await (await self.rotation()).destroy("fingerprint", version, APPROVED, timedelta(), self.clock.now())

    async def rewrap(self) -> None:
        """Every wrap under a retired generation moves."""
        await Rewrap(self.ring, self.clock.now, _on, 3).run([self.table])

    async def exposed(self) -> int:
        """How many data keys `keys destroy` would refuse for."""
        generations = self.ring().generations.items()
        return await self.table.exposed([number for number, key in generations if key.state is State.COMPROMISED])

    def work(self, page_rows: int = 100) -> Reseal:
        """One run of `gateway reseal`, not begun."""
        store, pen = ResealStore(self.resealing), AuditPen("reseal", {1: new_key()})
        keyring = Keyring(self.keystore, self.root, store, self.clock, pen, "reseal")
        return Reseal(store, Vault(keyring, store, self.clock, self.brands), keyring, pen, self.clock, page_rows)

    async def reseal(self, page_rows: int = 100, moved: Callable[[int], Awaitable[None]] | None = None) -> Tally:
        """One run of `gateway reseal`."""
        return await self.work(page_rows).run(moved or _on)

    async def rows(self, table: str) -> dict[str, asyncpg.Record]:
        """A table by its records' ids."""
        key = {"deks": "record_id", "tokens": "token_id", "charges": "charge_id"}[table]
        return {row[key]: row for row in await self.owner.fetch(f"SELECT * FROM gateway.{table}")}

    async def events(self, event: str, process: str = "reseal") -> list[asyncpg.Record]:
        """The audit rows of one kind."""
        told = "SELECT * FROM audit.events WHERE event = $1 AND process = $2"
        return await self.owner.fetch(told, event, process)


class Page:
    """One api process, and what a payment page asks of it."""

    def __init__(self, city: City, far: FarSide, at: Points, api: Database) -> None:
        store, pen = city.store(api), AuditPen("api", {1: new_key()})
        self.keyring = Keyring(city.keystore, city.root, store, city.clock, pen, "api")
        vault = Vault(self.keyring, store, city.clock, city.brands)
        mint, sender = Mint(vault, city.clock), Sender(store, vault, far, pen, city.clock, at)
        self.far, self.department = far, city.department
        self.tokens = Tokens(store, vault, mint, far, pen, city.clock, CITY_TIME)
        self.charges = Charges(store, vault, mint, sender, pen, city.clock, CITY_TIME, at)
        self.movements = Movements(store, sender, pen, city.clock, at)
        self.resender = Resender(store, sender, pen, city.clock, at)

    async def token(
        self, card: int, key: str | None = None, *, department: str = "", cvc: bool = False, usage: str = "multi"
    ) -> dict[str, Any]:
        """Tokenize a card; gives what the page is answered."""
        who = caller(department or self.department)
        return _shown(await self.tokens.create(who, given(card, cvc=cvc), usage, key, "req_1"))

    async def ask(
        self,
        key: str,
        *,
        department: str = "",
        token: str | None = None,
        card: CardGiven | None = None,
        **change: Any,
    ) -> Answer:
        """Charge a token or a card; gives the answer."""
        request = ChargeRequest(4_321, "USD", "R-1", None, 0, True, token, card, None, "req_1")
        return await self.charges.create(caller(department or self.department), replace(request, **change), key)

    async def charge(
        self, key: str, *, token: str | None = None, card: int | None = None, details: object = None, **change: Any
    ) -> dict[str, Any]:
        """Charge a token or a card; gives what the page is answered."""
        brought = given(card) if card is not None else None
        return _shown(await self.ask(key, token=token, card=brought, details=details, **change))

    async def move(
        self, kind: Kind, charge_id: str, key: str, amount: int | None = None, department: str = ""
    ) -> Answer:
        """Capture, void or refund a charge; gives the answer."""
        ways = {
            Kind.CAPTURE: self.movements.capture,
            Kind.VOID: self.movements.void,
            Kind.REFUND: self.movements.refund,
        }
        asked = MovementRequest(charge_id, amount, "req_1")
        return await ways[kind](caller(department or self.department), asked, key)

    async def erase(self, token: str) -> None:
        """Destroy a card."""
        await self.tokens.erase(caller(self.department), token, "req_1")


def caller(department: str) -> Application:
    """The one application of a department."""
    return Application(department, APPLICATION, 1_000_000, None)


def given(card: int, *, cvc: bool = False) -> CardGiven:
    """What a resident typed."""
    code = Secret("737") if cvc else None
    read = read_card(brands(), Secret(canary(card)), 12, 2031)
    return CardGiven(read, Secret("Ramona Testholder"), code, {"street": "12 Main St"}, None)


@cache
def brands() -> Brands:
    """The table of issuers."""
    return Brands.load()


@asynccontextmanager
async def founded(postgres: Postgres, name: str, folder: Path) -> AsyncIterator[City]:
    """A new database with its keys; gone at the end."""
    superuser = await postgres.server.connect_superuser()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(superuser.close)
        await superuser.execute(f"CREATE DATABASE {name} OWNER gateway_owner")
        stack.push_async_callback(superuser.execute, f"DROP DATABASE {name} WITH (FORCE)")
        owner, keys = [await postgres.connect(process, database=name) for process in ("owner", "keys")]
        await migrate(owner)
        for department in DEPARTMENTS:
            await owner.execute("INSERT INTO gateway.departments VALUES ($1, $1, now())", department)
            await owner.execute(
                "INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes,"
                " requests_per_s_max, created_at) VALUES ($1, $2, $2, 1000000, '{}', 100, now())",
                department,
                APPLICATION,
            )
        processes = ("api", "reseal", "worker")
        opened = [await Database.open(postgres.arguments(p) | {"database": name}, 10) for p in processes]
        for database in opened:
            stack.push_async_callback(database.close)
        api, resealing, working = opened
        keystore, root, now = Keystore(folder / "keystore", "demo"), FileRoot(new_key()), SystemClock().now()
        entry = RootEntry(1, "file", "file:/root.key", State.ACTIVE, now)
        keystore.initialise(root, entry, folder / "secrets", now)
        table = DekTable(keys)
        city = City(postgres, name, keystore, root, folder / "secrets", owner, api, table, resealing, working)
        await city.rotation()
        yield city
        await owner.close()
        await keys.close()


async def all_of(*work: Awaitable[Any]) -> Sequence[Any]:
    """All at once; the first that fails fails."""
    return await asyncio.gather(*work)


def _shown(answer: Answer) -> dict[str, Any]:
    assert answer.status in {201, 402}, answer
    shown: dict[str, Any] = msgspec.json.decode(answer.body)
    return shown


async def _on(_rows: int) -> None:
    """Nothing holds the run back."""
