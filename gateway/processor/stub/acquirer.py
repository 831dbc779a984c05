"""What the processor double does about a request, whenever it arrives: at once, late, or a second time.

Every delivery of a movement meets the same questions in the same order, under the terms that are in force by then:
is its reference void, does it stand for something else, was it answered within the dedupe window, is it too late for
it, and only then what the card or the charge allows.
"""

from collections.abc import Callable

import msgspec

from gateway.processor.stub.book import Book, Entry
from gateway.processor.stub.faults import FaultPlan, Faults
from gateway.processor.stub.judgement import DONE, Movement, judge
from gateway.processor.stub.protocol import Answer, Cancelled, CancelRequest, Found, InquireRequest, NotFound


class ReferenceConflictError(Exception):
    """The reference stands for another amount, currency, kind or charge already."""


class NotOfferedError(Exception):
    """The capability in force does not include this."""


class Acquirer:
    """Movements, cancels and inquiries over one book. `clock` gives seconds since 1970."""

    def __init__(self, book: Book, faults: Faults, clock: Callable[[], float]) -> None:
        self._book = book
        self._faults = faults
        self._clock = clock

    def carry_out(self, movement: Movement) -> Answer:
        """Do it, or say why not; what is done is on disk.

        Raises:
            ReferenceConflictError: the reference is another movement's.
        """
        terms = self._faults.plan
        if self._book.is_void(movement.reference):
            return movement.answer("cancelled")
        known = self._book.find(movement.reference)
        if known is not None:
            _refuse_another(known, movement)
            if terms.dedupes and self._book.age_s(known.applied) < terms.dedupe_window_s:
                return known.answer()
        if self._is_late(movement, terms):
            return movement.answer("expired")
        return self._decide(movement, known)

    def cancel(self, request: CancelRequest) -> Cancelled | Found:
        """Make void what is not decided; what is decided is told, however young it is.

        Raises:
            NotOfferedError: the processor does not cancel by reference.
            ReferenceConflictError: the reference is another charge's.
        """
        if not self._faults.plan.cancels:
            raise NotOfferedError
        charge = None if request.charge is msgspec.UNSET else request.charge
        known = self._book.find(request.reference)
        if known is None:
            self._book.bury(request.reference, charge)
            return Cancelled(request.reference)
        if charge not in {None, known.charge}:
            raise ReferenceConflictError
        return Found(known.kind, known.answer())

    def inquire(self, request: InquireRequest) -> Found | Cancelled | NotFound:
        """What became of a reference, as far as it is visible yet."""
        terms = self._faults.plan
        entry = self._book.find(request.reference, terms.inquiry_lag_s)
        if entry is not None:
            return Found(entry.kind, entry.answer())
        if self._book.is_void(request.reference):
            return Cancelled(request.reference)
        return NotFound(request.reference, terms.offers())

    def _is_late(self, movement: Movement, terms: FaultPlan) -> bool:
        return terms.expires and movement.not_after is not None and self._clock() > movement.not_after

    def _decide(self, movement: Movement, known: Entry | None) -> Answer:
        done = known is not None and known.effects > 0
        charge = None if movement.verdict else self._book.charge(movement.charge)
        decline = judge(movement, charge, done=done)
        if decline is None:
            # A verification is no movement of money, and has no effect, however often it is asked for.
            return self._book.write(movement, DONE[movement.kind], None, int(movement.kind != "verify"))
        if known is not None and done:
            # Forgetting what was done would make an inquiry lie.
            return known.answer()
        return self._book.write(movement, "declined", decline, 0)


def _refuse_another(known: Entry, movement: Movement) -> None:
    asked = (movement.kind, movement.charge, movement.amount, movement.currency)
    if (known.kind, known.charge, known.amount, known.currency) != asked:
        raise ReferenceConflictError
