"""What a new movement of a charge is, or why there is none: asked at the moment when nobody else can begin one."""

from gateway.rules.lifecycle import (
    Kind,
    Progress,
    amount_to_capture,
    amount_to_refund,
    require_may_begin,
    where_to_begin,
)
from gateway.rules.money import require_amount
from gateway.services.ports import Asked, Charge, Claim, Movement


def first_movement_id(charge_id: str) -> str:
    """The movement with which a charge begins: no second one can take its name."""
    return "mv_" + charge_id.removeprefix("ch_")


def movement_of(charge: Charge, asked: Asked, claim: Claim) -> Movement:
    """The movement that is asked for, of a charge that is held; raises what stands in its way."""
    asked.caller.require_service(charge.service)
    require_may_begin(asked.kind, charge.status)
    amount_minor = _amount(charge, asked)
    progress = where_to_begin(asked.kind, _given_back(charge) + amount_minor, asked.caller.refund_minor_max)
    sent = progress is Progress.SENDING
    return Movement(
        department=charge.department,
        movement_id=asked.movement_id,
        charge_id=charge.charge_id,
        kind=asked.kind,
        amount_minor=amount_minor,
        currency=charge.currency,
        reference=asked.reference,
        charge_reference=charge.processor_reference,
        application_id=asked.caller.application_id,
        route=claim.route,
        idempotency_key=claim.key,
        progress=progress,
        with_cvc=False,
        not_after=asked.created_at,
        epoch=0,
        sends=int(sent),
        decline_class=None,
        decline_code=None,
        created_at=asked.created_at,
        running=sent,
    )


def _given_back(charge: Charge) -> int:
    """By earlier refunds, or about to be: many small ones are one large one."""
    return charge.refunded_minor + charge.refunding_minor


def _amount(charge: Charge, asked: Asked) -> int:
    match asked.kind:
        case Kind.CAPTURE:
            amount_minor = amount_to_capture(asked.amount_minor, charge.amount_minor)
            require_amount(amount_minor, asked.caller.amount_minor_max)
            return amount_minor
        case Kind.REFUND:
            return amount_to_refund(asked.amount_minor, charge.left_minor)
        case _:
            return charge.amount_minor
