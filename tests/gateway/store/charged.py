"""Charges that were captured, written by the owner as they stand at the end: what settlements are about."""

from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from gateway.rules.ids import new_id
from tests.gateway.store.postgres import APPLICATION, PARKS

WHEN = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Charged:
    """A charge, and by which references the processor knows it and its refund."""

    department: str
    charge_id: str
    reference: str
    refund_reference: str


async def charged(
    owner: asyncpg.Connection,
    department: str = PARKS,
    amount: int = 2_000,
    *,
    fee: int = 0,
    refunded: int = 0,
    when: datetime = WHEN,
) -> Charged:
    """One that was captured, of `amount` minor units with a convenience fee in them, and perhaps given back."""
    ids = {kind: new_id(kind) for kind in ("tok", "ch", "mv", "re", "pr", "prr")}
    await owner.execute(
        "INSERT INTO gateway.tokens (department_id, token_id, application_id, kind, usage, status, brand, last4,"
        " fingerprint_id, cvc_check, created_at, expires_at, sealed)"
        " VALUES ($1, $2, $3, 'card', 'multi', 'active', 'visa', '4242', 'fp', 'pass', $4, $4, '\\x00')",
        *(department, ids["tok"], APPLICATION, when),
    )
    await owner.execute(
        "INSERT INTO gateway.charges (department_id, charge_id, application_id, token_id, amount_minor, currency,"
        " convenience_fee_minor, reference, processor_reference, kind, progress, captured_minor, refunded_minor,"
        " cvc_check, created_at)"
        " VALUES ($1, $2, $3, $4, $5, 'USD', $6, 'R-1', $7, 'sale', 'done', $5, $8, 'pass', $9)",
        *(department, ids["ch"], APPLICATION, ids["tok"], amount, fee, ids["pr"], refunded, when),
    )
    moved = [("sale", ids["mv"], ids["pr"], amount)]
    if refunded:
        moved.append(("refund", ids["re"], ids["prr"], refunded))
    for kind, movement_id, reference, minor in moved:
        await owner.execute(
            "INSERT INTO gateway.movements (department_id, movement_id, charge_id, kind, amount_minor, currency,"
            " reference, application_id, route, idempotency_key, progress, with_cvc, created_at, first_sent_at,"
            " not_after, lease_until) VALUES ($1, $2, $3, $4, $5, 'USD', $6, $7, 'r', $2, 'done', false, $8, $8,"
            " $8, $8)",
            *(department, movement_id, ids["ch"], kind, minor, reference, APPLICATION, when),
        )
        await owner.execute(
            "INSERT INTO gateway.journal VALUES ($1, $2, 1, $3, $4, $5, 'USD', $6)",
            *(department, movement_id),
            *(("processor_due", "receivable") if kind == "sale" else ("refunds", "processor_due")),
            *(minor, when),
        )
    return Charged(department, ids["ch"], ids["pr"], ids["prr"])
