"""The client and the processor double, over real TLS: what the gateway comes to believe of the far side's truth."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.processor.client import ProcessorClient, open_session
from gateway.processor.stub.server import ProcessorStub
from gateway.rules.card import Brands, read_card
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.recovery import Offers
from gateway.services.ports import (
    Absent,
    Approved,
    Declined,
    Movement,
    NotFound,
    NotSent,
    Outcome,
    Payment,
    Unknown,
)
from keys.secret import Secret
from tests.cards import TRIGGERS
from tests.gateway.processor.caller import GOOD, HASTE, HOLDER, KEY, Caller, Clock, Pki, config

pytestmark = pytest.mark.server

AMOUNT = 1234
CARRYING = {Kind.SALE, Kind.AUTHORIZATION}
DAY_S = 86_400.0
OFFERS = {
    "A": Offers(DAY_S, cancel=True),
    "B": Offers(cancel=True),
    "C": Offers(expiry=True),
    "D": Offers(),
}


@pytest.fixture
async def stub(pki: Pki, tmp_path: Path, clock: Clock) -> AsyncIterator[ProcessorStub]:
    """Run a double that is slower than its client is patient."""
    server = ProcessorStub(config(pki, tmp_path / "memory.db"), pace=replace(HASTE, slow_s=30), clock=clock)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(pki: Pki, stub: ProcessorStub) -> AsyncIterator[ProcessorClient]:
    """The client as the gateway opens it, less patient."""
    async with open_session(pki.cert, Secret(KEY)) as session:
        yield ProcessorClient(session, f"https://127.0.0.1:{stub.wire_port}", call_s=1.0, inquire_s=1.0)


def movement(kind: Kind, clock: Clock, reference: str = "") -> Movement:
    """A movement of the one charge that these tests know, in time for a minute."""
    now = datetime.fromtimestamp(clock.now, UTC)
    own = reference or ("ref-1" if kind in CARRYING else f"{kind}-1")
    return Movement(
        department="parks",
        movement_id="mv_1",
        charge_id="ch_1",
        kind=kind,
        amount_minor=AMOUNT,
        currency="USD",
        reference=own,
        charge_reference=own if kind in CARRYING else "ref-1",
        application_id="app_1",
        route="/v1/charges",
        idempotency_key="key-1",
        progress=Progress.SENDING,
        with_cvc=True,
        not_after=now + timedelta(minutes=1),
        epoch=1,
        sends=1,
        decline_class=None,
        decline_code=None,
        created_at=now,
        running=True,
    )


def payment(number: str = GOOD) -> Payment:
    """A card with its code."""
    return Payment(read_card(Brands.load(), Secret(number), 12, 2031), Secret(HOLDER), Secret("737"))


async def send(client: ProcessorClient, moved: Movement, number: str = GOOD) -> Outcome:
    """One movement, with a card if it needs one."""
    return await client.send(moved, payment(number) if moved.kind in CARRYING else None)


async def test_a_charge_is_lived_through(caller: Caller, client: ProcessorClient, clock: Clock) -> None:
    """Authorized, captured and refunded, each is believed, found by inquiry, and true at the far side."""
    for kind in (Kind.AUTHORIZATION, Kind.CAPTURE, Kind.REFUND):
        moved = movement(kind, clock)
        assert await client.inquire(moved) == NotFound(OFFERS["A"])
        checked = Approved("pass" if kind in CARRYING else "unchecked")
        assert await send(client, moved) == checked
        assert await client.inquire(moved) == await client.cancel(moved) == checked
    row = await caller.charge()
    assert (row["status"], row["amount"], row["refunded"], row["effects"]) == ("captured", AMOUNT, AMOUNT, 1)
    assert await client.verify("vf_1", payment()) == Approved("pass")


async def test_sale_and_void_are_believed(caller: Caller, client: ProcessorClient, clock: Clock) -> None:
    """A sale captures at once; of an authorization a void leaves nothing; a declined card is declined."""
    assert await send(client, movement(Kind.SALE, clock, "sold")) == Approved("pass")
    assert await send(client, movement(Kind.AUTHORIZATION, clock)) == Approved("pass")
    assert await send(client, movement(Kind.VOID, clock)) == Approved("unchecked")
    assert await send(client, movement(Kind.REFUND, clock)) == Declined("unchecked", "system", "VOIDED")
    assert await send(client, movement(Kind.SALE, clock, "no"), TRIGGERS[0]) == Declined("pass", "soft", "05")
    statuses = {name: row["status"] for name, row in (await caller.charges()).items()}
    assert statuses == {"sold": "captured", "ref-1": "voided", "no": "declined"}


@pytest.mark.parametrize("capability", OFFERS)
async def test_offers_are_read_as_they_are_told(
    caller: Caller, client: ProcessorClient, clock: Clock, capability: str
) -> None:
    """What each capability offers comes through to the rules of recovery; a cancel works where it is offered."""
    await caller.faults(capability=capability)
    moved = movement(Kind.SALE, clock)
    assert await client.inquire(moved) == NotFound(OFFERS[capability])
    offered = OFFERS[capability].cancel
    assert await client.cancel(moved) == (Absent() if offered else Unknown("status"))
    assert await send(client, moved) == (Absent() if offered else Approved("pass"))
    assert await client.inquire(moved) == (Absent() if offered else Approved("pass"))


async def test_a_late_movement_is_expired_and_then_never_was(
    caller: Caller, client: ProcessorClient, clock: Clock
) -> None:
    """After its time a movement is unknown to who sent it, and not found by who asks."""
    await caller.faults(capability="C")
    moved = movement(Kind.SALE, clock)
    clock.now += 61
    assert await send(client, moved) == Unknown("expired")
    assert await client.inquire(moved) == NotFound(OFFERS["C"])
    assert await caller.charges() == {}


FAULTS = {
    "lost_request": Unknown("connection"),
    "lost_reply": Unknown("connection"),
    "late_effect": Unknown("connection"),
    "duplicate": Approved("pass"),
    "error_before": Unknown("status"),
    "error_after": Unknown("status"),
    "truncated": Unknown("malformed"),
    "wrong_echo": Unknown("wrong_echo"),
    "slow": Unknown("timeout"),
    "refused": NotSent(),
}
DONE_AT_ONCE = {"lost_reply", "duplicate", "error_after", "truncated", "wrong_echo", "slow"}


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_is_taken_for_an_answer(
    caller: Caller, client: ProcessorClient, stub: ProcessorStub, clock: Clock, fault: str
) -> None:
    """Each fault of the schedule is what it is to the client; healed, an inquiry tells the truth."""
    moved = movement(Kind.SALE, clock)
    await caller.faults(**{fault: 1})
    assert await send(client, moved) == FAULTS[fault]
    await caller.faults()
    assert await client.inquire(moved) == (Approved("pass") if fault in DONE_AT_ONCE else NotFound(OFFERS["A"]))
    assert stub.hurry() == int(fault in {"late_effect", "duplicate"})
    rows = await caller.charges()
    assert bool(rows) is (fault in DONE_AT_ONCE | {"late_effect"})
    assert all(row["effects"] == 1 for row in rows.values())


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_fault_is_taken_for_a_cancel(
    caller: Caller, client: ProcessorClient, stub: ProcessorStub, clock: Clock, fault: str
) -> None:
    """A cancel under each fault is unknown, or holds; asked again when healed, it holds."""
    moved = movement(Kind.SALE, clock)
    await caller.faults(**{fault: 1})
    told = await client.cancel(moved)
    assert told == Absent() if fault == "duplicate" else isinstance(told, Unknown)
    await caller.faults()
    assert await client.cancel(moved) == Absent()
    stub.hurry()
    assert await send(client, moved) == Absent()
    assert await caller.charges() == {}
