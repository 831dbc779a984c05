"""The processor double's captures, voids, refunds and cancels, and what it does late, twice, or never."""

import asyncio
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

import aiohttp
import pytest

from gateway.processor.stub.acquirer import Acquirer, NotOfferedError
from gateway.processor.stub.book import Book
from gateway.processor.stub.faults import DRAWN, FaultPlan, Faults
from gateway.processor.stub.judgement import DONE, Movement, Verdict
from gateway.processor.stub.later import Later
from gateway.processor.stub.protocol import Cancelled, CancelRequest, Checks, Decline, Found, Kind
from gateway.processor.stub.server import ProcessorStub
from gateway.processor.stub.wire import PACE, Pace
from tests.cards import TRIGGERS
from tests.gateway.processor.caller import Caller, Clock, Pki, card, config, not_found

pytestmark = pytest.mark.server

CUT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
AMOUNT = 1234
OFFERS: Mapping[str, dict[str, Any]] = {
    "A": {},
    "B": {"dedupe_window_s": None},
    "C": {"dedupe_window_s": None, "cancel": False, "expiry": True},
    "D": {"dedupe_window_s": None, "cancel": False},
}
"""By capability: in what its `not_found` differs from A's."""


async def carry_out(caller: Caller, kind: Kind, reference: str, **change: Any) -> dict[str, Any]:
    """One movement, on a charge that is ready for it, and its answer."""
    asked = {
        "sale": caller.sale,
        "authorization": caller.authorize,
        "capture": caller.capture,
        "void": caller.void,
        "refund": caller.refund,
    }
    status, answer = await asked[kind](reference, **change)
    assert status == 200
    assert isinstance(answer, dict)
    return answer


async def prepare(caller: Caller, kind: Kind) -> None:
    """Have `ref-1` stand where this movement can follow, under the default capability."""
    if kind == "refund":
        await caller.sale()
    elif kind in {"capture", "void"}:
        await caller.authorize()


KINDS: tuple[Kind, ...] = ("sale", "authorization", "capture", "void", "refund")


# --- the life of a charge -------------------------------------------------------------------------------------


async def test_an_authorization_moves_no_money(caller: Caller) -> None:
    """An authorization is answered as such, and the truth shows a charge that is held, not captured."""
    status, answer = await caller.authorize()
    assert status == 200
    assert answer == {
        "reference": "ref-1",
        "amount": AMOUNT,
        "currency": "USD",
        "status": "authorized",
        "decline": None,
        "checks": {"cvc": "pass"},
    }
    assert await caller.charge() == answer | {
        "kind": "authorization",
        "last4": "4242",
        "authorized": AMOUNT,
        "effects": 0,
        "refunded": 0,
        "created": "2027-01-15T08:00:00Z",
        "applied": "2027-01-15T08:00:00Z",
    }


@pytest.mark.parametrize("number", TRIGGERS)
async def test_a_trigger_declines_an_authorization_as_a_sale(caller: Caller, number: str) -> None:
    """The published triggers give an authorization the very answer that they give a sale."""
    _, sold = await caller.sale("s", card=card(number=number))
    _, held = await caller.authorize("a", card=card(number=number))
    assert held == sold | {"reference": "a"}
    row = await caller.charge("a")
    assert (row["status"], row["authorized"], row["effects"]) == ("declined", 0, 0)


@pytest.mark.parametrize("amount", [1, 600, AMOUNT])
async def test_a_capture_takes_what_it_asks_for(caller: Caller, amount: int) -> None:
    """Of what was authorized a capture takes all or less; the charge then shows what was captured."""
    await caller.authorize()
    _, answer = await caller.capture(amount=amount)
    assert answer == {
        "reference": "cap-1",
        "amount": amount,
        "currency": "USD",
        "status": "captured",
        "decline": None,
        "checks": {"cvc": "unchecked"},
    }
    row = await caller.charge()
    shown = {name: row[name] for name in ("amount", "authorized", "status", "effects", "refunded")}
    assert shown == {"amount": amount, "authorized": AMOUNT, "status": "captured", "effects": 1, "refunded": 0}


async def test_a_void_releases_what_was_held(caller: Caller) -> None:
    """A voided charge never moved money."""
    await caller.authorize()
    assert (await caller.void())[1]["status"] == "voided"
    row = await caller.charge()
    assert (row["status"], row["amount"], row["effects"]) == ("voided", AMOUNT, 0)


async def test_refunds_add_up_to_what_was_captured(caller: Caller) -> None:
    """Several refunds are given, of a sale and of a partial capture, never more than there is."""
    await caller.sale("s", amount=1000)
    await caller.authorize("a", amount=1000)
    await caller.capture("c", charge="a", amount=700)
    for charge, captured in (("s", 1000), ("a", 700)):
        assert (await caller.refund(f"{charge}-1", charge=charge, amount=300))[1]["status"] == "refunded"
        assert (await caller.refund(f"{charge}-2", charge=charge, amount=captured - 299))[1]["status"] == "declined"
        assert (await caller.refund(f"{charge}-3", charge=charge, amount=captured - 300))[1]["status"] == "refunded"
        assert (await caller.refund(f"{charge}-4", charge=charge, amount=1))[1]["decline"]["code"] == "OVERLEFT"
        row = await caller.charge(charge)
        assert (row["refunded"], row["amount"], row["effects"]) == (captured, captured, 1)


REFUSED = [
    *[pytest.param([], kind, {}, "NOCHARGE", id=f"{kind} of nothing") for kind in ("capture", "void", "refund")],
    *[
        pytest.param([("sale", {"card": card(number=TRIGGERS[0])})], kind, {}, "NOTAUTH", id=f"{kind} of declined")
        for kind in ("capture", "void", "refund")
    ],
    *[pytest.param([("sale", {})], kind, {}, "CAPTURED", id=f"{kind} of a sale") for kind in ("capture", "void")],
    *[
        pytest.param([("authorization", {}), ("capture", {})], kind, {}, "CAPTURED", id=f"{kind} of captured")
        for kind in ("capture", "void")
    ],
    *[
        pytest.param([("authorization", {}), ("void", {})], kind, {}, "VOIDED", id=f"{kind} of voided")
        for kind in ("capture", "void", "refund")
    ],
    pytest.param([("authorization", {})], "refund", {}, "NOTCAPT", id="refund of authorized"),
    *[
        pytest.param([("authorization", {})], kind, {"amount": AMOUNT + 1}, "OVERAUTH", id=f"{kind} of too much")
        for kind in ("capture", "void")
    ],
    pytest.param([("sale", {})], "refund", {"amount": AMOUNT + 1}, "OVERLEFT", id="refund of too much"),
    pytest.param(
        [("authorization", {})], "capture", {"currency": "CAD"}, "CURRENCY", id="capture in another currency"
    ),
    pytest.param([("authorization", {})], "void", {"currency": "CAD"}, "CURRENCY", id="void in another currency"),
    pytest.param([("sale", {})], "refund", {"currency": "CAD"}, "CURRENCY", id="refund in another currency"),
    pytest.param(
        [("authorization", {}), ("capture", {})], "refund", {"charge": "before-1"}, "NOCHARGE", id="of a capture"
    ),
]


@pytest.mark.parametrize(("before", "kind", "change", "code"), REFUSED)
async def test_what_cannot_follow_is_declined(
    caller: Caller, before: list[tuple[Kind, dict[str, Any]]], kind: Kind, change: dict[str, Any], code: str
) -> None:
    """What cannot follow is declined by a code of the processor's own, and the charge stays as it was."""
    for place, (earlier, how) in enumerate(before):
        await carry_out(caller, earlier, f"before-{place}" if place else "ref-1", **how)
    rows = await caller.charges()
    answer = await carry_out(caller, kind, "refused", **change)
    assert answer["status"] == "declined"
    assert answer["decline"] == {"class": "system", "code": code}
    assert await caller.charges() == rows
    row = (await caller.movements())["refused"]
    assert (row["status"], row["effects"]) == ("declined", 0)


async def test_every_movement_is_listed_under_its_own_reference(caller: Caller) -> None:
    """The list of movements has each one with its charge, oldest first; verifications stand elsewhere."""
    await caller.authorize(amount=1000)
    await caller.capture(amount=800)
    await caller.refund(amount=300)
    await caller.sale("sold", card=card(number=TRIGGERS[0]))
    await caller.verify("looked")
    await caller.cancel("never", charge="ref-1")
    rows = (await caller.movements()).values()
    assert [
        tuple(row[name] for name in ("reference", "kind", "charge", "amount", "status", "effects")) for row in rows
    ] == [
        ("ref-1", "authorization", "ref-1", 1000, "authorized", 1),
        ("cap-1", "capture", "ref-1", 800, "captured", 1),
        ("re-1", "refund", "ref-1", 300, "refunded", 1),
        ("sold", "sale", "sold", AMOUNT, "declined", 0),
    ]
    assert {row["created"] for row in rows} == {"2027-01-15T08:00:00Z"}
    assert await caller.tombstones() == [{"reference": "never", "charge": "ref-1", "created": "2027-01-15T08:00:00Z"}]


# --- the same reference again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_repetition_in_the_window_does_nothing(caller: Caller, kind: Kind) -> None:
    """With dedupe, many copies of a movement get one answer and have one effect."""
    await prepare(caller, kind)
    first = await carry_out(caller, kind, "twice" if kind not in {"sale", "authorization"} else "ref-1")
    copies = await asyncio.gather(*(carry_out(caller, kind, first["reference"]) for _ in range(5)))
    assert copies == [first] * 5
    assert (await caller.movements())[first["reference"]]["effects"] == 1


@pytest.mark.parametrize("capability", "ABCD")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_repetition_without_dedupe_adds_up(caller: Caller, clock: Clock, kind: Kind, capability: str) -> None:
    """Where nothing dedupes, and past the window of A, a copy is carried out anew, and its own work stops none."""
    await prepare(caller, kind)
    reference = "ref-1" if kind in {"sale", "authorization"} else "twice"
    await caller.faults(capability=capability)
    amount = 100 if kind == "refund" else AMOUNT
    first = await carry_out(caller, kind, reference, amount=amount)
    clock.now += 86_400
    assert await carry_out(caller, kind, reference, amount=amount) == first
    assert (await caller.movements())[reference]["effects"] == 2
    row = await caller.charge()
    expected = {
        "sale": ("captured", 2, 0),
        "authorization": ("authorized", 0, 0),
        "capture": ("captured", 2, 0),
        "void": ("voided", 0, 0),
        "refund": ("captured", 1, 200),
    }
    assert (row["status"], row["effects"], row["refunded"]) == expected[kind]


async def test_a_repetition_that_cannot_be_done_again_tells_the_truth(caller: Caller) -> None:
    """A second full refund finds nothing left: it moves nothing, and what was refunded stays refunded."""
    await caller.faults(capability="D")
    await caller.sale()
    first = await caller.refund()
    assert await caller.refund() == first
    assert (await caller.inquire("re-1"))["answer"]["status"] == "refunded"
    assert (await caller.charge())["refunded"] == AMOUNT
    assert (await caller.movements())["re-1"]["effects"] == 1


async def test_a_declined_movement_is_decided_anew(caller: Caller) -> None:
    """Without dedupe what was declined may be done later; with it the decline stands."""
    await caller.authorize()
    for capability in "AB":
        await caller.faults(capability=capability)
        assert (await caller.refund(f"early-{capability}"))[1]["status"] == "declined"
    await caller.capture()
    for capability, refunded in (("A", 0), ("B", 1)):
        await caller.faults(capability=capability)
        await caller.refund(f"early-{capability}")
        assert (await caller.movements())[f"early-{capability}"]["effects"] == refunded


@pytest.mark.parametrize("capability", "AD")
@pytest.mark.parametrize("change", [{"amount": 1233}, {"charge": "ref-2"}, {"currency": "CAD"}])
async def test_a_reference_stands_for_one_follow_up_only(
    caller: Caller, capability: str, change: dict[str, Any]
) -> None:
    """Another amount, charge, currency or kind under a known reference is refused, and nothing happens."""
    await caller.faults(capability=capability)
    await caller.authorize("ref-1")
    await caller.authorize("ref-2")
    await caller.capture("cap-1")
    rows = await caller.charges()
    conflict = (409, {"error": "reference_conflict"})
    assert await caller.capture("cap-1", **change) == conflict
    assert await caller.void("cap-1") == conflict
    assert await caller.refund("ref-1") == conflict
    assert await caller.sale("ref-2") == conflict
    assert await caller.charges() == rows


# --- what makes sure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", OFFERS)
async def test_an_inquiry_tells_what_helps(caller: Caller, capability: str) -> None:
    """An unknown reference is told with what the capability in force offers."""
    await caller.faults(capability=capability)
    assert await caller.inquire() == not_found(**OFFERS[capability])


async def test_the_offered_window_is_the_plan_s(caller: Caller) -> None:
    """The window of the plan is the window that is told."""
    await caller.faults(dedupe_window_s=90.5)
    assert await caller.inquire() == not_found(dedupe_window_s=90.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("later", "ABCD")
async def test_a_cancelled_reference_is_void_for_ever(caller: Caller, clock: Clock, kind: Kind, later: str) -> None:
    """Whatever is delivered under it is cancelled and does nothing, however late, whatever is offered by then."""
    await prepare(caller, kind)
    for _ in range(2):
        assert await caller.cancel("void") == (200, {"status": "cancelled", "reference": "void"})
    rows = await caller.charges(), await caller.movements()
    clock.now += 10**8
    await caller.faults(capability=later)
    for _ in range(2):
        answer = await carry_out(caller, kind, "void")
        assert (answer["reference"], answer["amount"], answer["status"]) == ("void", AMOUNT, "cancelled")
        assert answer["decline"] is None
    assert (await caller.charges(), await caller.movements()) == rows
    assert await caller.inquire("void") == {"status": "cancelled", "reference": "void"}
    assert [each["reference"] for each in await caller.tombstones()] == ["void"]
    assert (await caller.ask("GET", f"{caller.control_url}/v1/charges/void"))[0] == 404


async def test_a_cancelled_verification_is_not_asked(caller: Caller) -> None:
    """A verification's reference can be void, too."""
    await caller.cancel("v")
    assert (await caller.verify("v"))[1]["status"] == "cancelled"
    assert (await caller.ask("GET", f"{caller.control_url}/v1/verifications"))[1]["data"] == []


@pytest.mark.parametrize("capability", "AB")
async def test_what_is_decided_is_not_cancelled(caller: Caller, capability: str) -> None:
    """A cancel that comes too late is told the answer, even one that inquiries do not see yet."""
    await caller.faults(capability=capability, inquiry_lag_s=30)
    _, sold = await caller.sale("sold")
    _, declined = await caller.authorize("declined", card=card(number=TRIGGERS[0]))
    _, refunded = await caller.refund("refunded", charge="sold")
    assert (await caller.inquire("sold"))["status"] == "not_found"
    for kind, answer in (("sale", sold), ("authorization", declined), ("refund", refunded)):
        told = await caller.cancel(answer["reference"])
        assert told == (200, {"status": "found", "kind": kind, "answer": answer})
    assert await caller.tombstones() == []
    assert (await caller.charge("sold"))["effects"] == 1


async def test_a_cancel_of_another_charge_s_movement_is_refused(caller: Caller) -> None:
    """A cancel that names the wrong charge gets no answer about the reference."""
    await caller.sale()
    await caller.refund("re-1")
    assert (await caller.cancel("re-1", charge="ref-1"))[1]["status"] == "found"
    assert await caller.cancel("re-1", charge="ref-2") == (409, {"error": "reference_conflict"})


@pytest.mark.parametrize("capability", "CD")
async def test_a_cancel_that_is_not_offered_is_refused(caller: Caller, capability: str) -> None:
    """Without the capability nothing becomes void, and nothing is told of what was decided."""
    await caller.faults(capability=capability)
    await caller.sale("sold")
    for reference in ("sold", "unused"):
        assert await caller.cancel(reference) == (409, {"error": "not_offered"})
    assert await caller.tombstones() == []
    assert (await caller.sale("unused"))[1]["status"] == "captured"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_comes_too_late_expires(caller: Caller, clock: Clock, kind: Kind) -> None:
    """With capability C a movement is carried out until its `not_after`, and not a moment later."""
    await prepare(caller, kind)
    rows = await caller.charges(), await caller.movements()
    await caller.faults(capability="C")
    not_after = int(clock.now)
    clock.now += 0.001
    answer = await carry_out(caller, kind, "late", not_after=not_after)
    assert (answer["reference"], answer["amount"], answer["status"]) == ("late", AMOUNT, "expired")
    assert (await caller.charges(), await caller.movements()) == rows
    assert (await caller.inquire("late"))["status"] == "not_found"
    clock.now = not_after
    assert (await carry_out(caller, kind, "late", not_after=not_after))["status"] == DONE[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("capability", "ABD")
async def test_others_do_not_heed_the_time(caller: Caller, clock: Clock, kind: Kind, capability: str) -> None:
    """Without capability C a movement is carried out, however late."""
    await prepare(caller, kind)
    await caller.faults(capability=capability)
    assert (await carry_out(caller, kind, "late", not_after=0))["status"] == DONE[kind]


async def test_without_a_time_nothing_expires(caller: Caller, clock: Clock) -> None:
    """A movement that names no time is carried out under C, too."""
    await caller.faults(capability="C")
    clock.now += 10**8
    assert (await caller.sale())[1]["status"] == "captured"


async def test_a_late_copy_of_what_was_done_expires(caller: Caller, clock: Clock) -> None:
    """The second copy comes too late and does nothing; only the inquiry tells that the first did."""
    await caller.faults(capability="C")
    not_after = int(clock.now)
    await caller.sale(not_after=not_after)
    clock.now += 1
    assert (await caller.sale(not_after=not_after))[1]["status"] == "expired"
    assert await caller.effects() == 1
    assert (await caller.inquire())["answer"]["status"] == "captured"


# --- late, and twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_late_effect_comes_after_the_cut(caller: Caller, stub: ProcessorStub, kind: Kind) -> None:
    """The connection is cut and nothing is done; later it is, though the plan was healed in between."""
    await prepare(caller, kind)
    reference = "ref-1" if kind in {"sale", "authorization"} else "late"
    await caller.faults(late_effect=1)
    with pytest.raises(CUT):
        await carry_out(caller, kind, reference)
    await caller.faults()
    assert (await caller.inquire(reference))["status"] == "not_found"
    assert reference not in await caller.movements()
    assert stub.hurry() == 1
    assert (await caller.inquire(reference))["answer"]["status"] == DONE[kind]
    assert (await caller.movements())[reference]["effects"] == 1


async def test_a_late_verification_and_a_late_cancel(caller: Caller, stub: ProcessorStub) -> None:
    """Verifications and cancels come late as movements do."""
    await caller.faults(late_effect=1)
    for attempt in (caller.verify("v"), caller.cancel("c")):
        with pytest.raises(CUT):
            await attempt
    await caller.faults()
    assert (await caller.inquire("c"))["status"] == (await caller.inquire("v"))["status"] == "not_found"
    assert stub.hurry() == 2
    assert (await caller.inquire("c"))["status"] == "cancelled"
    assert (await caller.inquire("v"))["status"] == "found"


async def test_a_late_effect_finds_its_reference_void(caller: Caller, stub: ProcessorStub) -> None:
    """What is cancelled before it arrives is never carried out."""
    await caller.faults(late_effect=1)
    with pytest.raises(CUT):
        await caller.sale()
    await caller.faults()
    assert (await caller.cancel())[1]["status"] == "cancelled"
    assert stub.hurry() == 1
    assert await caller.charges() == {}


async def test_a_late_effect_finds_its_time_over(caller: Caller, stub: ProcessorStub, clock: Clock) -> None:
    """What arrives after its `not_after` is not carried out, by the terms that are in force when it arrives."""
    await caller.faults(late_effect=1)
    for reference, seconds in (("one", 0), ("other", 60)):
        with pytest.raises(CUT):
            await caller.sale(reference, not_after=int(clock.now) + seconds)
    await caller.faults(capability="C")
    clock.now += 1
    assert stub.hurry() == 2
    assert set(await caller.charges()) == {"other"}


@pytest.mark.parametrize(("capability", "effects"), [("A", 1), ("B", 2), ("C", 2), ("D", 2)])
async def test_a_late_effect_after_another_copy(
    caller: Caller, stub: ProcessorStub, capability: str, effects: int
) -> None:
    """The copy that was sent again is there first: only where references are deduped does the late one do nothing."""
    await caller.faults(late_effect=1)
    with pytest.raises(CUT):
        await caller.sale()
    await caller.faults(capability=capability)
    assert (await caller.sale())[1]["status"] == "captured"
    assert stub.hurry() == 1
    assert await caller.effects() == effects


@pytest.mark.parametrize(("capability", "effects"), [("A", 1), ("B", 2), ("C", 2), ("D", 2)])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_duplicate_arrives_twice(
    caller: Caller, stub: ProcessorStub, kind: Kind, capability: str, effects: int
) -> None:
    """It is done and answered, and done again soon after, unless references are deduped: the lists name it."""
    await prepare(caller, kind)
    reference = "ref-1" if kind in {"sale", "authorization"} else "twice"
    await caller.faults(duplicate=1, capability=capability)
    answer = await carry_out(caller, kind, reference, amount=100 if kind == "refund" else AMOUNT)
    assert answer["status"] == DONE[kind]
    assert (await caller.movements())[reference]["effects"] == 1
    await caller.faults(capability=capability)
    assert [stub.hurry(), stub.hurry()] == [1, 0]
    assert (await caller.movements())[reference]["effects"] == effects
    row = await caller.charge()
    assert row["effects"] == (effects if kind in {"sale", "capture"} else int(kind == "refund"))
    assert row["refunded"] == (100 * effects if kind == "refund" else 0)


async def test_a_duplicate_is_the_request_not_the_answer(caller: Caller, stub: ProcessorStub) -> None:
    """A duplicate of what a cancel made void does nothing, and one of a cancel changes nothing."""
    await caller.faults(duplicate=1, capability="B")
    assert (await caller.cancel())[1]["status"] == "cancelled"
    assert (await caller.sale())[1]["status"] == "cancelled"
    assert stub.hurry() == 2
    assert await caller.charges() == {}
    assert len(await caller.tombstones()) == 1


async def test_what_is_late_arrives_by_itself(pki: Pki, tmp_path: Path) -> None:
    """Nobody needs to hurry it: a late effect and a second copy come when their time has come."""
    pace = Pace(late_s=(0.1, 0.2), again_s=(0.1, 0.2))
    server = ProcessorStub(config(pki, tmp_path / "m.db"), pace=pace)
    await server.start()
    async with aiohttp.ClientSession() as session:
        caller = Caller(session, pki.client_context(), server.control_port, server.wire_port)
        await caller.faults(late_effect=1)
        with pytest.raises(CUT):
            await caller.sale("late")
        await caller.faults(duplicate=1, capability="B")
        await caller.sale("twice")
        async with asyncio.timeout(10):
            while [await caller.effects("late"), await caller.effects("twice")] != [1, 2]:
                await asyncio.sleep(0.02)
        assert server.hurry() == 0
    await server.stop()


def test_lateness_has_its_bounds() -> None:
    """In service a late effect takes 1 to 25 s, and a second copy at most 2 s."""
    assert PACE.late_s == (1.0, 25.0)
    assert 0 < PACE.again_s[0] < PACE.again_s[1] == 2.0


def _delays(seed: int, **plan: float) -> list[float]:
    faults = Faults()
    faults.set(FaultPlan(seed=seed, **plan))  # type: ignore[arg-type]
    return [faults.strike_movement().delay for _ in range(200)]


def test_a_seed_fixes_delays() -> None:
    """The same seed delays alike, whatever the probabilities are; over time delays fill their span."""
    assert _delays(7) == _delays(7, late_effect=0.5, slow=1) != _delays(8)
    assert 0 <= min(_delays(7)) < 0.05
    assert 0.95 < max(_delays(7)) < 1


def test_cancels_shift_no_movement() -> None:
    """How often somebody cancels, inquires or connects changes nothing about what strikes movements."""
    plan = FaultPlan(seed=3, lost_reply=0.3, late_effect=0.3, duplicate=0.5, slow=0.5)
    alone, busy = Faults(), Faults()
    alone.set(plan)
    busy.set(plan)
    expected = [alone.strike_movement() for _ in range(100)]
    seen = []
    for _ in range(100):
        busy.strike_cancel()
        busy.slow_inquiry()
        busy.refuse_connection()
        seen.append(busy.strike_movement())
    assert seen == expected
    assert {strike.fault for strike in seen} == {None, "lost_reply", "late_effect", "duplicate"}


def test_every_fault_of_the_plan_is_drawn() -> None:
    """Each fault that a plan names strikes alone when it alone is sure, and in the order of `DRAWN` among others."""
    for place, fault in enumerate(DRAWN):
        faults = Faults()
        faults.set(FaultPlan(**dict.fromkeys(DRAWN[place:], 1.0)))  # type: ignore[arg-type]
        assert faults.strike_movement().fault == faults.strike_cancel().fault == fault


async def test_what_waits_ends_with_the_process(pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A stop forgets what was to come, without a trace in the log; what was cancelled is void after it."""
    caplog.set_level(logging.INFO)
    for run in range(2):
        server = ProcessorStub(config(pki, tmp_path / "m.db"), pace=Pace(late_s=(1.5, 1.5)))
        await server.start()
        async with aiohttp.ClientSession() as session:
            caller = Caller(session, pki.client_context(), server.control_port, server.wire_port)
            if run == 0:
                await caller.cancel("void")
                await caller.faults(late_effect=1)
                with pytest.raises(CUT):
                    await caller.sale()
            else:
                assert await caller.charges() == {}
                assert (await caller.sale("void"))[1]["status"] == "cancelled"
        await server.stop()
        assert server.hurry() == 0
    await asyncio.sleep(1.5)
    assert caplog.text == ""


async def test_a_late_refusal_is_told_to_nobody(
    caller: Caller, stub: ProcessorStub, caplog: pytest.LogCaptureFixture
) -> None:
    """What conflicts, or is not offered any more, when it arrives late leaves no word and no effect."""
    caplog.set_level(logging.INFO)
    await caller.faults(late_effect=1)
    for attempt in (caller.sale(amount=1), caller.cancel("other")):
        with pytest.raises(CUT):
            await attempt
    await caller.faults(capability="D")
    await caller.sale(amount=2)
    assert stub.hurry() == 2
    assert ((await caller.charge())["amount"], await caller.effects(), await caller.tombstones()) == (2, 1, [])
    assert caplog.text == ""


async def test_a_late_failure_says_only_where(caplog: pytest.LogCaptureFixture) -> None:
    """What fails when nobody waits for it is one line that quotes nothing, and stops nothing else."""
    arrived = asyncio.Event()

    def fail() -> None:
        raise ValueError("4242-and-more")

    later = Later()
    later.deliver(0, fail)
    later.deliver(0.01, arrived.set)
    await asyncio.wait_for(arrived.wait(), 5)
    assert caplog.text.count("ValueError at ") == 1
    assert "4242" not in caplog.text


# --- memory ---------------------------------------------------------------------------------------------------

FORMER_SCHEMA = """
CREATE TABLE entries (
    reference TEXT PRIMARY KEY, kind TEXT NOT NULL, amount INTEGER NOT NULL, currency TEXT NOT NULL,
    status TEXT NOT NULL, decline_class TEXT, decline_code TEXT, cvc TEXT NOT NULL, last4 TEXT NOT NULL,
    effects INTEGER NOT NULL, refunded INTEGER NOT NULL, created REAL NOT NULL, applied REAL NOT NULL
)
"""


async def test_a_file_of_the_former_kind_is_taken_over(pki: Pki, tmp_path: Path) -> None:
    """Sales and verifications of an older file are there, deduped and refundable; a second start keeps what came."""
    memory = tmp_path / "m.db"
    now = time.time()
    with sqlite3.connect(memory) as old:
        old.execute(FORMER_SCHEMA)
        for row in (
            ("sold", "sale", 1234, "USD", "captured", None, None, "pass", "4242", 1, 0, now, now),
            ("refused", "sale", 99, "USD", "declined", "soft", "05", "pass", "0002", 0, 0, now, now),
            ("looked", "verify", 0, "USD", "verified", None, None, "pass", "4242", 0, 0, now, now),
        ):
            old.execute(f"INSERT INTO entries VALUES ({', '.join('?' * len(row))})", row)
    old.close()
    for run in range(2):
        server = ProcessorStub(config(pki, memory))
        await server.start()
        async with aiohttp.ClientSession() as session:
            caller = Caller(session, pki.client_context(), server.control_port, server.wire_port)
            rows = await caller.charges()
            assert list(rows) == ["sold", "refused"]
            assert rows["refused"]["decline"] == {"class": "soft", "code": "05"}
            assert (rows["sold"]["status"], rows["sold"]["refunded"]) == ("captured", 234 * run)
            assert (await caller.sale("sold"))[1]["status"] == "captured"
            assert (await caller.refund("re", charge="sold", amount=234))[1]["status"] == "refunded"
            assert ((await caller.charge("sold"))["effects"], (await caller.charge("sold"))["refunded"]) == (1, 234)
            listing = (await caller.ask("GET", f"{caller.control_url}/v1/verifications"))[1]
            assert [row["reference"] for row in listing["data"]] == ["looked"]
        await server.stop()


# --- in any order ---------------------------------------------------------------------------------------------

VERDICTS = (Verdict(None, Checks("pass"), "4242"), Verdict(Decline("soft", "05"), Checks("pass"), "0002"))
CAPABILITIES: tuple[Literal["A", "B", "C", "D"], ...] = ("A", "B", "C", "D")
WINDOW_S = 60.0


@dataclass
class Bank:
    """The same rules as the double's, worked out from nothing but a list of what was done."""

    done: list[Movement] = field(default_factory=list)
    said: dict[str, tuple[float, str]] = field(default_factory=dict)
    """By reference: when it was decided last, and how."""
    void: set[str] = field(default_factory=set)

    def expect(self, asked: Movement, capability: str, now: float) -> str:
        """The status of the answer to this movement."""
        reference = asked.reference
        if reference in self.void:
            return "cancelled"
        decided_at, status = self.said.get(reference, (-math.inf, ""))
        if capability == "A" and now - decided_at < WINDOW_S:
            return status
        if capability == "C" and asked.not_after is not None and now > asked.not_after:
            return "expired"
        if self._allows(asked):
            self.done.append(asked)
            self.said[reference] = now, DONE[asked.kind]
        elif all(each.reference != reference for each in self.done):
            self.said[reference] = now, "declined"
        return self.said[reference][1]

    def balance(self, charge: str) -> int:
        """What its resident paid, less what went back."""
        signs = {"sale": 1, "capture": 1, "refund": -1}
        return sum(signs.get(each.kind, 0) * each.amount for each in self.done if each.charge == charge)

    def _allows(self, asked: Movement) -> bool:
        if asked.verdict is not None:
            return asked.verdict.decline is None
        others = {
            each.kind for each in self.done if each.charge == asked.charge and each.reference != asked.reference
        }
        if asked.kind == "refund":
            return asked.amount <= self.balance(asked.charge)
        return "authorization" in others and others.isdisjoint({"capture", "void"}) and asked.amount <= AMOUNT


def _any_movement(random: Random, now: float) -> Movement:
    """A movement of one of a few charges. Its reference tells all of it, so that none conflicts."""
    head: Kind = random.choice(["sale", "authorization"])
    kind: Kind = random.choice([head, "capture", "void", "refund", "refund"])
    number = random.randrange(15)
    charge = f"{head}-{number}"
    not_after = random.choice([None, int(now) - 1, int(now) + 1])
    if kind == head:
        return Movement(kind, charge, charge, AMOUNT, "USD", not_after, VERDICTS[number < 3])
    amount = random.choice([300, AMOUNT, AMOUNT + 1])
    return Movement(kind, f"{kind}-{charge}-{amount}", charge, amount, "USD", not_after, None)


def _compare_cancel(acquirer: Acquirer, bank: Bank, reference: str, capability: str) -> None:
    if capability in {"C", "D"}:
        with pytest.raises(NotOfferedError):
            acquirer.cancel(CancelRequest(reference))
        return
    told = acquirer.cancel(CancelRequest(reference))
    if reference in bank.said:
        assert isinstance(told, Found)
        assert told.answer.status == bank.said[reference][1]
    else:
        assert told == Cancelled(reference)
        bank.void.add(reference)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_requests_adds_up(tmp_path: Path, seed: int) -> None:
    """Random requests under changing capabilities: every answer, inquiry and row is what a plain list works out."""
    random, clock, faults, bank = Random(seed), Clock(), Faults(), Bank()  # noqa: S311 - a seed must repeat it
    book = Book(tmp_path / "m.db", clock)
    acquirer = Acquirer(book, faults, clock)
    seen = set()
    for _ in range(800):
        clock.now += random.choice([0, 0.5, 10])
        if random.random() < 0.1:
            faults.set(FaultPlan(capability=random.choice(CAPABILITIES), dedupe_window_s=WINDOW_S))
        asked = _any_movement(random, clock.now)
        if random.random() < 0.05:
            _compare_cancel(acquirer, bank, asked.reference, faults.plan.capability)
            continue
        expected = bank.expect(asked, faults.plan.capability, clock.now)
        answer = acquirer.carry_out(asked)
        assert (answer.reference, answer.amount, answer.status) == (asked.reference, asked.amount, expected)
        seen.add(expected)
    for charge in book.charges():
        assert bank.balance(charge.reference) == (charge.left if charge.effects else 0) >= 0
    assert Counter({row.reference: row.effects for row in book.movements()}) == Counter(
        each.reference for each in bank.done
    )
    assert {row.reference: row.status for row in book.movements()} == {
        reference: status for reference, (_, status) in bank.said.items()
    }
    assert {each.reference for each in book.tombstones()} == bank.void
    assert {charge.status for charge in book.charges()} >= {"captured", "voided", "declined"}
    assert seen == {"captured", "authorized", "voided", "refunded", "declined", "cancelled", "expired"}
    book.close()
