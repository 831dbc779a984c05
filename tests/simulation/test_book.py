"""The model processor does what its capability says, and remembers all that it did."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.rules.lifecycle import Kind
from gateway.services.ports import Absent, Approved, Declined, NotFound, Unknown
from tests.simulation.book import Book, Order

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=60)
SALE = Order(Kind.SALE, "pr_1", "pr_1", 500, "USD", NOW + timedelta(seconds=10), "4242")


def follow(kind: Kind, reference: str, amount_minor: int) -> Order:
    """A movement that belongs to the charge."""
    return replace(SALE, kind=kind, reference=reference, amount_minor=amount_minor, card=None)


@pytest.mark.parametrize(("capability", "effects"), [("A", 1), ("B", 2), ("C", 2), ("D", 2)])
def test_only_a_dedupes(capability: str, effects: int) -> None:
    """The same reference twice moves money once where it is deduped, and twice elsewhere."""
    book = Book(capability)
    assert [type(book.carry_out(SALE, NOW)) for _ in range(2)] == [Approved, Approved]
    assert book.deeds["pr_1"].effects == effects
    assert book.accounts["pr_1"].captured_minor == 500 * effects


def test_a_window_ends() -> None:
    """After its window a reference moves money again, and one that is forgotten is not found."""
    book = Book("A", window_s=30.0, forgets=True)
    book.carry_out(SALE, NOW)
    assert isinstance(book.inquire("pr_1", NOW), Approved)
    assert isinstance(book.inquire("pr_1", LATER), NotFound)
    book.carry_out(SALE, LATER)
    assert book.deeds["pr_1"].effects == 2


@pytest.mark.parametrize(("capability", "said"), [("A", Absent), ("B", Absent), ("C", Unknown), ("D", Unknown)])
def test_a_tombstone_holds(capability: str, said: type) -> None:
    """A reference that was cancelled before it was used is never carried out, where cancelling is offered."""
    book = Book(capability)
    assert isinstance(book.cancel("pr_1", NOW), said)
    book.carry_out(SALE, NOW)
    assert ("pr_1" in book.deeds) == (said is Unknown)


def test_what_is_decided_is_not_cancelled() -> None:
    """Who cancels too late hears what was decided."""
    book = Book("B", lag_s=30.0)
    book.carry_out(SALE, NOW)
    assert isinstance(book.inquire("pr_1", NOW), NotFound)
    assert isinstance(book.cancel("pr_1", NOW), Approved)
    assert isinstance(book.inquire("pr_1", LATER), Approved)


@pytest.mark.parametrize("skew_s", [-20.0, 0.0, 20.0])
def test_c_heeds_the_time_by_its_own_clock(skew_s: float) -> None:
    """A request that arrives after its `not_after`, as the processor's clock has it, is not carried out."""
    book = Book("C", skew_s=skew_s)
    arrival = SALE.not_after - timedelta(seconds=skew_s)
    assert isinstance(book.carry_out(SALE, arrival), Approved)
    assert book.carry_out(replace(SALE, reference="pr_2"), arrival + timedelta(seconds=1)) == Unknown("expired")


def test_money_keeps_its_bounds() -> None:
    """One capture, of no more than is held; refunds of no more than was captured; no void after a capture."""
    book = Book("D")
    book.carry_out(replace(SALE, kind=Kind.AUTHORIZATION), NOW)
    said = [
        book.carry_out(order, NOW)
        for order in (
            follow(Kind.REFUND, "pr_2", 1),
            follow(Kind.CAPTURE, "pr_3", 501),
            follow(Kind.CAPTURE, "pr_4", 400),
            follow(Kind.CAPTURE, "pr_5", 100),
            follow(Kind.VOID, "pr_6", 500),
            follow(Kind.REFUND, "pr_7", 300),
            follow(Kind.REFUND, "pr_8", 101),
            follow(Kind.REFUND, "pr_9", 100),
        )
    ]
    assert [isinstance(each, Approved) for each in said] == [False, False, True, False, False, True, False, True]


def test_a_trigger_declines() -> None:
    """A published number is declined by the issuer, and nothing is done."""
    book = Book("A")
    assert isinstance(book.carry_out(replace(SALE, card="0002"), NOW), Declined)
    assert book.deeds["pr_1"].effects == 0


def test_a_copy_is_counted_apart() -> None:
    """What the processor doubles by itself is told from what it was asked twice."""
    book = Book("B")
    book.carry_out(SALE, NOW)
    book.carry_out(SALE, NOW, copy=True)
    assert (book.deeds["pr_1"].effects, book.deeds["pr_1"].copies) == (2, 1)
