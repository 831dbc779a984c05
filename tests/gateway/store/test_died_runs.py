"""Requests whose first run died between its two commits: the services on the real store, and no second question.

A run dies here by cancellation, which leaves of it exactly what a killed process leaves: what was committed.
"""

import asyncio
import secrets
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest

from gateway.clock import SystemClock
from gateway.errors import IdempotencyKeyReused, RequestInProgress, TokenInUse
from gateway.rules.access import Application
from gateway.rules.card import Brands, Card, read_card
from gateway.services.charges import ChargeRequest, Charges
from gateway.services.keyring import Keyring
from gateway.services.mint import CardGiven, Mint
from gateway.services.ports import Answer, Approved, Claim, Declined, Inquiry, NotFound, Outcome, Unknown
from gateway.services.tokens import Tokens
from gateway.services.vault import Vault
from gateway.store.postgres import Store
from keys.keystore import Keystore
from keys.manifest import RootEntry
from keys.primitives import new_key
from keys.root_file import FileRoot
from keys.secret import Secret
from keys.states import State
from tests.cards import canary
from tests.gateway.store.postgres import APPLICATION, PARKS, PEN

pytestmark = pytest.mark.server

CALLER = Application(PARKS, APPLICATION, 1_000_000, None)
OTHER_CARD = 63_500
EXPIRE = """
UPDATE gateway.idempotency SET lease_until = now() WHERE idempotency_key = $1;
UPDATE gateway.charges SET lease_until = now() WHERE idempotency_key = $1;
"""


class SilentProcessor:
    """Implements `ports.Processor`: takes what moves money or checks a code, and answers once `released`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reached = asyncio.Event()
        self.found: Inquiry = NotFound()
        self.released = asyncio.Event()
        self.later: Outcome = Unknown("timeout")

    async def sale(
        self, reference: str, amount_minor: int, currency: str, card: Card, name: Secret[str], cvc: Secret[str] | None
    ) -> Outcome:
        return await self._silence("sale")

    async def verify(self, reference: str, card: Card, name: Secret[str], cvc: Secret[str]) -> Outcome:
        return await self._silence("verify")

    async def inquire(self, reference: str, amount_minor: int, currency: str) -> Inquiry:
        self.asked.append("inquire")
        return self.found

    async def _silence(self, what: str) -> Outcome:
        self.asked.append(what)
        self.reached.set()
        await self.released.wait()
        return self.later


class Service:
    """Tokens and charges, wired on one processor."""

    def __init__(self, store: Store, vault: Vault) -> None:
        clock, city = SystemClock(), ZoneInfo("America/Los_Angeles")
        mint = Mint(vault, clock)
        self.processor = SilentProcessor()
        self.tokens = Tokens(store, vault, mint, self.processor, PEN, clock, city)
        self.charges = Charges(store, vault, mint, self.processor, PEN, clock, city)

    async def token(self, key: str, card: int) -> Answer:
        """Ask for a token of the card of this number, with its code."""
        return await self.tokens.create(CALLER, given(card), "multi", key, "req_1")

    async def charge(self, key: str, card: int) -> Answer:
        """Charge the card of this number."""
        request = ChargeRequest(4_321, "USD", "R-1", None, 0, True, None, given(card), None, "req_1")
        return await self.charges.create(CALLER, request, key)

    async def die(self, run: Any) -> None:
        """Start this, and end it while it waits for the processor."""
        task = asyncio.create_task(run)
        await self.processor.reached.wait()
        task.cancel()
        await asyncio.wait([task])
        self.processor.reached.clear()


def given(card: int) -> CardGiven:
    """What a resident typed."""
    number = Secret(canary(card))
    return CardGiven(read_card(brands(), number, 12, 2031), Secret("Ramona Testholder"), Secret("737"), None, None)


@cache
def brands() -> Brands:
    """The table of issuers."""
    return Brands.load()


@pytest.fixture
def service(store: Store, tmp_path: Path) -> Service:
    """The services with keys of their own."""
    root, clock = FileRoot(new_key()), SystemClock()
    keystore = Keystore(tmp_path / "keystore", "demo")
    entry = RootEntry(1, "file", "file:/root.key", State.ACTIVE, clock.now())
    keystore.initialise(root, entry, tmp_path / "secrets", clock.now())
    return Service(store, Vault(Keyring(keystore, root, store, clock, PEN, "api"), store, clock, brands()))


@pytest.fixture
def key() -> str:
    """An Idempotency-Key that nobody has used."""
    return secrets.token_hex(8)


async def expire(owner: asyncpg.Connection, key: str) -> None:
    """Let the time pass that a run may hold a key."""
    for statement in EXPIRE.strip().splitlines():
        await owner.execute(statement, key)


async def test_a_died_verification_is_not_repeated(service: Service, owner: asyncpg.Connection, key: str) -> None:
    """Whoever repeats the request gets one token whose code was not checked; the processor is asked once."""
    await service.die(service.token(key, 63_001))
    with pytest.raises(RequestInProgress):
        await service.token(key, 63_001)
    await expire(owner, key)
    with pytest.raises(IdempotencyKeyReused):
        await service.token(key, OTHER_CARD)

    both = await asyncio.gather(service.token(key, 63_001), service.token(key, 63_001), return_exceptions=True)
    (first,) = {answer for answer in both if isinstance(answer, Answer)}
    assert all(isinstance(answer, Answer | RequestInProgress) for answer in both)
    assert first.status == 201
    assert msgspec.json.decode(first.body)["checks"]["cvc"] == "unavailable"
    assert await service.token(key, 63_001) == first
    assert service.processor.asked == ["verify"]
    subject = await owner.fetchval("SELECT subject_id FROM gateway.idempotency WHERE idempotency_key = $1", key)
    assert msgspec.json.decode(first.body)["id"] == subject


@pytest.mark.parametrize("said", [Approved("pass"), Declined("fail", "data", "N7")], ids=["approved", "declined"])
async def test_a_run_that_outlives_its_hold_gives_the_answer_that_was_given(
    service: Service, owner: asyncpg.Connection, key: str, said: Outcome
) -> None:
    """When another run has answered under the key meanwhile, a slow one gives that answer, whatever it was told."""
    slow = asyncio.create_task(service.token(key, 63_005))
    await service.processor.reached.wait()
    await expire(owner, key)
    first = await service.token(key, 63_005)
    service.processor.later = said
    service.processor.released.set()

    assert await slow == first == await service.token(key, 63_005)
    assert await owner.fetchval("SELECT count(*) FROM gateway.deks WHERE record_id = $1", body_id(first)) == 1


def body_id(answer: Answer) -> str:
    """The id of the token that an answer shows."""
    return str(msgspec.json.decode(answer.body)["id"])


async def test_a_running_charge_is_left_alone(
    service: Service, store: Store, owner: asyncpg.Connection, key: str
) -> None:
    """While the first request is at work nobody asks the processor beside it, and nobody can take its key."""
    running = asyncio.create_task(service.charge(key, 63_006))
    await service.processor.reached.wait()
    charge_id = await owner.fetchval("SELECT charge_id FROM gateway.charges WHERE idempotency_key = $1", key)

    assert (await service.charges.show(CALLER, charge_id)).running
    with pytest.raises(RequestInProgress):
        await service.charge(key, 63_006)
    assert not await store.take_over(PARKS, Claim("POST /v1/charges", key, bytes(32), None, charge_id))
    assert service.processor.asked == ["sale"]
    running.cancel()
    await asyncio.wait([running])


FOUND = [
    pytest.param(Approved("pass"), 201, "succeeded", id="captured"),
    pytest.param(Declined("fail", "soft", "05"), 402, "declined", id="declined"),
    pytest.param(NotFound(), 202, "pending", id="not-found"),
    pytest.param(Unknown("timeout"), 202, "pending", id="unknown"),
]


@pytest.mark.parametrize(("found", "status", "shown"), FOUND)
async def test_a_died_charge_is_asked_for(
    service: Service, owner: asyncpg.Connection, key: str, found: Inquiry, status: int, shown: str
) -> None:
    """Whoever repeats the request is told what the processor knows of it; nothing is sent again, whatever that is."""
    await service.die(service.charge(key, 63_002))
    with pytest.raises(RequestInProgress):
        await service.charge(key, 63_002)
    assert service.processor.asked == ["sale"]
    await expire(owner, key)

    service.processor.found = found
    answer = await service.charge(key, 63_002)
    body = msgspec.json.decode(answer.body)
    assert (answer.status, body.get("charge", body)["status"]) == (status, shown)
    assert service.processor.asked == ["sale", "inquire"]
    again = await service.charge(key, 63_002)
    assert again.status == status
    assert service.processor.asked.count("sale") == 1
    assert service.processor.asked.count("inquire") == (2 if shown == "pending" else 1)


async def test_a_died_charge_keeps_its_card(service: Service, owner: asyncpg.Connection, key: str) -> None:
    """Until somebody knows what became of it, the card of a died charge cannot be erased."""
    await service.die(service.charge(key, 63_003))
    await expire(owner, key)
    token_id = await owner.fetchval("SELECT token_id FROM gateway.charges WHERE idempotency_key = $1", key)
    with pytest.raises(TokenInUse):
        await service.tokens.erase(CALLER, token_id, "req_2")
    service.processor.found = Approved("pass")
    await service.charge(key, 63_003)
    assert (await service.tokens.erase(CALLER, token_id, "req_2")).status == "erased"
