"""What is true at the end: the answers, the ledger, the journal and the processor's own book say the same.

Invariants of the reference's table: I1 to I6 and I9; a fault is one line that names them.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import asyncpg

from tests.chaos.pages import Pages

PAID = {201, 200}


async def faults(pages: Pages, owner: asyncpg.Connection, truth: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every contradiction, one line each."""
    rows = await owner.fetch("SELECT * FROM gateway.charges")
    charges = {row["charge_id"]: row for row in rows}
    found = [*_answers(pages, charges), *_ledger(charges, truth), *await _books(owner, charges)]
    for reference, row in truth.items():
        if row["effects"] > 1:
            found.append(f"I1 {reference}: {row['effects']} captures")
    return found


def _answers(pages: Pages, charges: Mapping[str, Any]) -> list[str]:
    found = []
    for told in pages.told:
        first = told.answers[0]
        if any((again.status, again.body) != (first.status, first.body) for again in told.answers[1:]):
            found.append(f"I6 {told.path}: answered {[answer.status for answer in told.answers]}")
        if told.path != "/v1/charges":
            continue
        shown = first.json if first.status < 400 else first.json.get("charge")
        if shown is None:
            continue  # refused before anything was stored
        row = charges.get(shown["id"])
        if row is None:
            found.append(f"I9 {shown['id']}: gone")
        elif first.status == 201 and shown["captured"] and not row["captured_minor"]:
            found.append(f"I2 {shown['id']}: answered captured, is not")
        elif first.status in {402, 502} and row["captured_minor"]:
            found.append(f"I4 {shown['id']}: answered {first.status}, is captured")
    return found


def _ledger(charges: Mapping[str, Any], truth: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    for charge_id, row in charges.items():
        there = truth.get(row["processor_reference"], {"effects": 0, "refunded": 0, "amount": 0})
        if row["progress"] not in {"done", "refused", "failed"} or row["refunding_minor"]:
            found.append(f"I5 {charge_id}: {row['kind']} {row['progress']}, refunding {row['refunding_minor']}")
        captured = there["amount"] if there["effects"] else 0
        if captured != row["captured_minor"]:
            found.append(f"I3 {charge_id}: captured {row['captured_minor']} here, {captured} there")
        if there["refunded"] != row["refunded_minor"]:
            found.append(f"I3 {charge_id}: refunded {row['refunded_minor']} here, {there['refunded']} there")
    known = {row["processor_reference"] for row in charges.values()}
    return found + [f"I3 {reference}: at the processor only" for reference in truth if reference not in known]


async def _books(owner: asyncpg.Connection, charges: Mapping[str, Any]) -> list[str]:
    """The journal adds up to the charges, and every opened card has its audit row."""
    posted: Counter[str] = Counter()
    rows = await owner.fetch(
        "SELECT m.charge_id, m.kind, j.amount_minor FROM gateway.journal j JOIN gateway.movements m"
        " USING (department_id, movement_id)"
    )
    for row in rows:
        posted[row["charge_id"]] += row["amount_minor"] * (-1 if row["kind"] == "refund" else 1)
    found = [
        f"I7 {charge_id}: journal {posted[charge_id]}, charge {row['captured_minor'] - row['refunded_minor']}"
        for charge_id, row in charges.items()
        if posted[charge_id] != row["captured_minor"] - row["refunded_minor"]
    ]
    sends = await owner.fetchval("SELECT sum(sends) FROM gateway.movements WHERE kind IN ('sale', 'authorization')")
    opened = await owner.fetchval(
        "SELECT count(*) FROM audit.events e JOIN gateway.charges c ON c.charge_id = e.subject"
        " WHERE e.event IN ('card.opened', 'card.received')"
    )
    if sends != opened:
        found.append(f"I10: {sends} openings, {opened} audit rows")
    return found
