"""Charges over the wire: a processor that loses every third answer, doubles what it was asked, or is not sure."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_main_job import VISA, card, charge_body, new_key, tokenized
from tests.system import Client, Reply, Stub, System

pytestmark = pytest.mark.server

RESIDENTS = 60
AT_ONCE = 50
UNCLEAR_S = 10
"""An unclear charge is answered within this time (contract)."""


async def asked(client: Client, path: str, body: object, key: str) -> tuple[Reply, float]:
    """One request, and how long its answer took."""
    started = asyncio.get_running_loop().time()
    reply = await client.call("POST", path, body, key=key)
    return reply, asyncio.get_running_loop().time() - started


async def authorized(client: Client, **more: object) -> str:
    """The path of a charge that is authorized."""
    body = charge_body(token=await tokenized(client), capture=False, **more)
    reply = await client.call("POST", "/v1/charges", body, key=new_key())
    assert (reply.status, reply.json["status"], reply.json["captured"]) == (201, "authorized", 0)
    return f"/v1/charges/{reply.json['id']}"


async def test_every_third_answer_is_lost(parks: Client, stub: Stub) -> None:
    """Each resident is charged once, and every page ends with a true answer, in the times of the contract."""
    await stub.faults(seed=3, lost_reply=0.34)

    async def resident(number: int) -> tuple[Reply, Reply]:
        body = charge_body(name="Ada Resident", card=card(), reference=f"resident {number}")
        key = new_key()
        first, took_s = await asked(parks, "/v1/charges", body, key)
        assert took_s < UNCLEAR_S
        return first, await parks.finally_("/v1/charges", body, key)

    answers = await asyncio.gather(*(resident(number) for number in range(RESIDENTS)))
    statuses = Counter(first.status for first, _ in answers)
    assert statuses[202] > RESIDENTS / 10
    assert statuses[201] + statuses[202] == RESIDENTS
    truth = await stub.charges()
    for first, final in answers:
        assert (final.status, final.json["status"]) == (201, "succeeded")
        assert first.json["id"] == final.json["id"]
        assert truth[final.json["processor_reference"]]["effects"] == 1
        assert (await parks.call("GET", f"/v1/charges/{final.json['id']}")).body == final.body


async def test_capture_void_and_refunds(parks: Client, stub: Stub) -> None:
    """Authorize, capture a part, refund it in parts; authorize and void: each as the processor has it."""
    path = await authorized(parks, amount=5000)
    captured = await parks.call("POST", f"{path}/capture", {"amount": 3000}, key=new_key())
    assert (captured.status, captured.json["status"], captured.json["captured"]) == (200, "succeeded", 3000)
    part = await parks.call("POST", f"{path}/refunds", {"amount": 1000}, key=new_key())
    assert (part.status, part.json["status"], part.json["amount"]) == (201, "succeeded", 1000)
    assert (await parks.call("GET", f"/v1/refunds/{part.json['id']}")).body == part.body
    rest = await parks.call("POST", f"{path}/refunds", None, key=new_key())
    assert (rest.status, rest.json["amount"]) == (201, 2000)
    shown = (await parks.call("GET", path)).json
    assert (shown["captured"], shown["refunded"], shown["amount"]) == (3000, 3000, 5000)
    there = (await stub.charges())[shown["processor_reference"]]
    assert (there["amount"], there["refunded"], there["effects"]) == (3000, 3000, 1)

    path = await authorized(parks)
    voided = await parks.call("POST", f"{path}/void", {}, key=new_key())
    assert (voided.status, voided.json["status"]) == (200, "voided")
    assert (await stub.charges())[voided.json["processor_reference"]]["status"] == "voided"


@pytest.mark.parametrize("act", ["capture", "void", "refunds"])
@pytest.mark.parametrize("fault", ["lost_request", "lost_reply", "error_after", "wrong_echo"])
async def test_an_unclear_act_ends_in_the_truth(parks: Client, stub: Stub, act: str, fault: str) -> None:
    """202 within the time, the charge unresolved for everything else, then one final answer for ever."""
    path, key = await authorized(parks), new_key()
    if act == "refunds":
        assert (await parks.call("POST", f"{path}/capture", {}, key=new_key())).status == 200
    await stub.faults(**{fault: 1})
    unclear, took_s = await asked(parks, f"{path}/{act}", {}, key)
    blocked = await parks.call("POST", f"{path}/{act}", {}, key=new_key())
    await stub.faults()
    final = await parks.finally_(f"{path}/{act}", {}, key)

    assert (unclear.status, unclear.json["status"]) == (202, "pending")
    assert took_s < UNCLEAR_S
    refused = "nothing-left-to-refund" if act == "refunds" else "charge-unresolved"
    assert (blocked.status, blocked.problem) == (409, refused)
    assert final.status == (201 if act == "refunds" else 200)
    assert (await parks.call("POST", f"{path}/{act}", {}, key=key)).body == final.body
    charge = (await parks.call("GET", path)).json
    there = (await stub.charges())[charge["processor_reference"]]
    done = {"capture": (1, 0), "void": (0, 0), "refunds": (1, charge["amount"])}[act]
    assert (there["effects"], there["refunded"]) == done


async def test_full_refunds_at_once(parks: Client, stub: Stub) -> None:
    """Of fifty full refunds of one charge at once one succeeds, and the money goes back once."""
    path = await authorized(parks)
    await parks.call("POST", f"{path}/capture", {}, key=new_key())
    replies = await asyncio.gather(
        *(parks.call("POST", f"{path}/refunds", {}, key=new_key()) for _ in range(AT_ONCE))
    )
    assert Counter(reply.status for reply in replies) == {201: 1, 409: AT_ONCE - 1}
    charge = (await parks.call("GET", path)).json
    assert charge["refunded"] == charge["amount"]
    assert (await stub.charges())[charge["processor_reference"]]["refunded"] == charge["amount"]


async def test_what_nobody_can_decide_is_in_review(parks: Client, stub: Stub) -> None:
    """With a processor that offers nothing a lost request ends in review, is still asked for, and moves no money."""
    await stub.faults(lost_request=1, capability="D")
    key, body = new_key(), charge_body(token=await tokenized(parks))
    unclear = await parks.call("POST", "/v1/charges", body, key=key)
    path = unclear.headers["Location"]
    for _ in range(300):
        shown = (await parks.call("GET", path)).json
        if shown["status"] == "in_review":
            break
        await asyncio.sleep(0.1)
    assert shown["status"] == "in_review"
    again = await parks.call("POST", "/v1/charges", body, key=key)
    assert (again.status, again.json["status"]) == (202, "in_review")
    assert (await stub.charges()).get(shown["processor_reference"]) is None


async def test_what_the_processor_doubles_is_named(system: System, parks: Client, stub: Stub, tmp_path: Path) -> None:
    """A processor that carries one request out twice: our answer is true, and the comparison names each of them."""
    await stub.faults(seed=5, duplicate=0.5, capability="D")
    charges: list[dict[str, Any]] = []
    for number in range(12):
        body = charge_body(name="Ada Resident", card=card(VISA), reference=f"twice {number}")
        reply = await parks.call("POST", "/v1/charges", body, key=new_key())
        charges.append(reply.json)
    await asyncio.sleep(3)  # the second delivery comes within two seconds
    await stub.faults()
    truth = await stub.charges()
    doubled = {c["processor_reference"] for c in charges if truth[c["processor_reference"]]["effects"] > 1}
    assert doubled
    listing = tmp_path / "movements.json"
    listing.write_text(json.dumps(await stub.movements()))
    told = json.loads(system.command("gateway", "compare", str(listing), "--json", code=None))
    assert {each["reference"] for each in told["differences"] if each["what"] == "duplicate"} == doubled
