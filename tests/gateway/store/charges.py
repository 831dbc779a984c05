"""Charges that stand where a test needs them, brought there by the store's own methods."""

from dataclasses import replace
from typing import Any

from gateway.rules.lifecycle import Event, Kind
from gateway.services.ports import Approved, Begun, Charge, Declined, Finished, Movement, NewToken, Said
from gateway.store.ledger import Ledger
from tests.gateway.store.postgres import PARKS, asked, asking, audit, caller, intent, new_token, shown, told

APPROVED = Approved("pass")
DECLINED = Declined("fail", "soft", "05")
SAYS: dict[Event, Said] = {Event.DO: APPROVED, Event.REFUSE: DECLINED}
"""What the processor said where an event comes of its word."""


async def stored(
    store: Ledger, usage: str = "multi", card_index: bytes | None = None, department: str = PARKS
) -> NewToken:
    """A token that is there."""
    new = new_token(usage, card_index, department=department)
    await store.create_token(new, None, held=False, render=shown, audit=audit(department))
    return new


async def begun(store: Ledger, usage: str = "multi", *, with_cvc: bool = False, **change: Any) -> Begun:
    """A charge that was begun and not finished."""
    department = change.get("department", PARKS)
    new = await stored(store, usage, department=department)
    wanted = intent(new.token.token_id, with_cvc=with_cvc, **change)
    started = await store.begin_charge(wanted, audit(department))
    assert isinstance(started, Begun)
    return started


async def move(store: Ledger, movement: Movement, event: Event) -> Finished:
    """What happens to a movement, written down by who holds it."""
    return await store.finish(movement, event, SAYS.get(event), told, audit(movement.department))


async def captured(store: Ledger, **change: Any) -> Charge:
    """A charge by a sale that was done."""
    return (await move(store, (await begun(store, **change)).movement, Event.DO)).charge


async def authorized(store: Ledger, **change: Any) -> Charge:
    """A charge that is authorized and not captured."""
    started = await begun(store, kind=Kind.AUTHORIZATION, **change)
    return (await move(store, started.movement, Event.DO)).charge


async def following(
    store: Ledger,
    charge: Charge,
    kind: Kind,
    amount_minor: int | None = None,
    key: str | None = None,
    approval_above_minor: int | None = None,
) -> Begun:
    """A capture, void or refund of a charge that was begun and not finished; raises what forbids it."""
    what = replace(asked(charge, kind, amount_minor), caller=caller(charge.department, approval_above_minor))
    started = await store.begin_movement(what, asking(what, key), audit(charge.department))
    assert isinstance(started, Begun)
    return started


async def followed(
    store: Ledger, charge: Charge, kind: Kind, event: Event, amount_minor: int | None = None
) -> Charge:
    """A charge after a capture, void or refund that ended so."""
    return (await move(store, (await following(store, charge, kind, amount_minor)).movement, event)).charge
