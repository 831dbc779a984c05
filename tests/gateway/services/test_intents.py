"""What a new movement of a charge is: in which amount, under whose name, or why there is none."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from gateway import errors
from gateway.rules.access import Application
from gateway.rules.lifecycle import FOLLOWS, MEANINGS, Kind, Progress
from gateway.services.intents import first_movement_id, movement_of
from gateway.services.ports import Asked, Charge, Claim

NOW = datetime(2026, 11, 22, 16, 30, tzinfo=UTC)
CHARGE = Charge(
    department="parks",
    charge_id="ch_x",
    application_id="app_page",
    token_id="tok_x",
    amount_minor=1_000,
    currency="USD",
    convenience_fee_minor=30,
    service=None,
    reference="invoice 7",
    processor_reference="pr_x",
    kind=Kind.AUTHORIZATION,
    progress=Progress.DONE,
    captured_minor=0,
    refunded_minor=0,
    refunding_minor=0,
    cvc_check="unchecked",
    decline_class=None,
    decline_code=None,
    created_at=NOW - timedelta(days=3),
)
CALLER = Application("parks", "app_office", 1_000_000, None)
CAPTURED = replace(CHARGE, kind=Kind.CAPTURE, captured_minor=800, refunded_minor=100, refunding_minor=50)
CLAIM = Claim("POST /v1/charges/{id}/refunds", "key", bytes(32), None, "re_x")


def asked(kind: Kind, amount_minor: int | None = None) -> Asked:
    """A capture, void or refund that an office application asks for."""
    return Asked("parks", "ch_x", kind, amount_minor, "re_x", "pr_y", NOW, CALLER)


@pytest.mark.parametrize(
    ("charge", "kind", "amount", "moved"),
    [
        (CHARGE, Kind.CAPTURE, None, 1_000),
        (CHARGE, Kind.CAPTURE, 400, 400),
        (CHARGE, Kind.VOID, None, 1_000),
        (CAPTURED, Kind.REFUND, None, 650),
        (CAPTURED, Kind.REFUND, 650, 650),
        (CAPTURED, Kind.REFUND, 1, 1),
    ],
)
def test_the_amount_is_what_there_is_or_less(charge: Charge, kind: Kind, amount: int | None, moved: int) -> None:
    """A capture takes what was authorized, a void gives up all of it, a refund counts those not decided yet."""
    assert movement_of(charge, asked(kind, amount), CLAIM).amount_minor == moved


@pytest.mark.parametrize(
    ("charge", "kind", "amount", "refusal"),
    [
        (CHARGE, Kind.CAPTURE, 1_001, errors.AmountRefused),
        (CAPTURED, Kind.REFUND, 651, errors.RefundTooLarge),
        (replace(CAPTURED, refunding_minor=700), Kind.REFUND, None, errors.NothingLeftToRefund),
    ],
)
def test_an_amount_that_is_not_there_is_refused(
    charge: Charge, kind: Kind, amount: int, refusal: type[errors.GatewayError]
) -> None:
    """More than was authorized, and more than is left."""
    with pytest.raises(refusal):
        movement_of(charge, asked(kind, amount), CLAIM)


@pytest.mark.parametrize(
    ("stands", "kind"), list(product([pair for pair in MEANINGS if pair[0] != "refund"], FOLLOWS))
)
def test_a_movement_begins_where_the_table_lets_it(stands: tuple[Kind, Progress], kind: Kind) -> None:
    """In every state of a charge each movement begins or is refused, by the state's public status alone."""
    captured = 1_000 if MEANINGS[stands].status == "succeeded" else 0
    charge = replace(CHARGE, kind=stands[0], progress=stands[1], captured_minor=captured)
    if MEANINGS[stands].status == FOLLOWS[kind]:
        assert movement_of(charge, asked(kind), CLAIM).kind is kind
    else:
        with pytest.raises(errors.GatewayError):
            movement_of(charge, asked(kind), CLAIM)


def test_a_movement_has_names_of_its_own() -> None:
    """Its reference is new, its charge's is kept; who asked, and under which key, is who is answered."""
    movement = movement_of(CAPTURED, asked(Kind.REFUND), CLAIM)

    assert (movement.movement_id, movement.reference, movement.charge_reference) == ("re_x", "pr_y", "pr_x")
    assert (movement.department, movement.charge_id, movement.currency) == ("parks", "ch_x", "USD")
    assert (movement.application_id, movement.route, movement.idempotency_key) == ("app_office", CLAIM.route, "key")
    assert movement.created_at == NOW


def test_a_movement_begins_in_flight() -> None:
    """Sending, sent once as far as anybody knows, held by nobody but who asked."""
    movement = movement_of(CHARGE, asked(Kind.CAPTURE), CLAIM)

    assert (movement.progress, movement.sends, movement.epoch, movement.running) == (Progress.SENDING, 1, 0, True)
    assert (movement.with_cvc, movement.decline_class, movement.decline_code) == (False, None, None)


def test_a_charge_has_one_first_movement() -> None:
    """Its name follows from the charge's, so that a charge is never begun twice; no two charges share one."""
    assert first_movement_id("ch_abc") == "mv_abc"
    assert first_movement_id("ch_abd") != first_movement_id("ch_abc")


def test_what_an_application_may_charge_for_bounds_what_it_may_do_to_charges() -> None:
    """Another application's charge of a service that is not granted is not captured, voided or refunded."""
    pool = replace(asked(Kind.CAPTURE), caller=replace(CALLER, services=frozenset({"pool"})))
    assert movement_of(replace(CHARGE, service="pool"), pool, CLAIM).kind is Kind.CAPTURE
    for kind, charge in ((Kind.CAPTURE, CHARGE), (Kind.VOID, CHARGE), (Kind.REFUND, CAPTURED)):
        for service in (None, "permits"):
            with pytest.raises(errors.ServiceUnknown):
                movement_of(replace(charge, service=service), replace(pool, kind=kind), CLAIM)


@pytest.mark.parametrize(("limit", "amount", "allowed"), [(999, None, False), (999, 999, True), (1_000, None, True)])
def test_a_capture_is_within_the_application_s_limit(limit: int, amount: int | None, *, allowed: bool) -> None:
    """Whoever authorized it."""
    what = replace(asked(Kind.CAPTURE, amount), caller=replace(CALLER, amount_minor_max=limit))
    if allowed:
        assert movement_of(CHARGE, what, CLAIM).kind is Kind.CAPTURE
        return
    with pytest.raises(errors.AmountRefused):
        movement_of(CHARGE, what, CLAIM)


@pytest.mark.parametrize(("limit", "waits"), [(None, False), (151, False), (150, True)])
def test_many_small_refunds_are_one_large_one(limit: int | None, *, waits: bool) -> None:
    """What was given back before, or is about to be, counts against the limit: 100 and 50 of this charge."""
    what = replace(asked(Kind.REFUND, 1), caller=replace(CALLER, refund_minor_max=limit))
    assert (movement_of(CAPTURED, what, CLAIM).progress is Progress.AWAITING) is waits
