"""Each invariant notices what it is there for: evidence that was right, with one thing changed afterwards."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from gateway.rules.lifecycle import Kind, Progress
from gateway.services.ports import Answer
from tests.simulation.checker import CHECKS, judge
from tests.simulation.city import City
from tests.simulation.founding import number
from tests.simulation.history import Body, Call, End
from tests.simulation.rows import MovementRow
from tests.simulation.storm import live_through

Doctor = Callable[[City, list[Mapping[str, Any]]], object]


@cache
def eventful_seed() -> int:
    """The first seed in whose world charges and refunds were done, of a token for one use, too."""
    return next(seed for seed in range(100) if _is_eventful(live_through(seed)[0]))


def _is_eventful(city: City) -> bool:
    done = {row.movement.kind for row in city.memory.movements.values() if row.movement.progress is Progress.DONE}
    spent = any(row.token.status == "spent" for row in city.memory.tokens.values())
    opened = any(row.event.event == "card.opened" for row in city.memory.audit)
    return {Kind.SALE, Kind.CAPTURE, Kind.REFUND} <= done and spent and opened


def a_movement(city: City, *kinds: Kind, progress: Progress = Progress.DONE) -> MovementRow:
    """Some movement that ended so."""
    return next(
        row
        for row in city.memory.movements.values()
        if row.movement.progress is progress and (not kinds or row.movement.kind in kinds)
    )


def a_call(city: City, *statuses: int, act: str = "create") -> Call:
    """Some call that was answered so."""
    return next(call for call in city.history.calls if call.act == act and call.status in statuses)


def twice_done(city: City, _logs: object) -> None:
    """The processor carried out something twice that was asked for once."""
    city.book.deeds[a_movement(city).movement.reference].effects += 1


def other_amount(city: City, _logs: object) -> None:
    """Something was done for another amount than was asked for."""
    call = a_call(city, 201)
    call.body = replace(call.body, amount_minor=(call.body.amount_minor or 0) + 1)


def done_here_only(city: City, _logs: object) -> None:
    """The processor knows nothing of what the ledger calls done."""
    del city.book.deeds[a_movement(city, Kind.REFUND).movement.reference]


def told_failed(city: City, _logs: object) -> None:
    """Somebody was told that nothing happened to what was done."""
    call = a_call(city, 201)
    call.end = End("answer", answer=Answer(502, call.shown))


def left_open(city: City, _logs: object) -> None:
    """A movement is unknown in the end."""
    row = a_movement(city)
    row.movement = replace(row.movement, progress=Progress.UNKNOWN)


def two_answers(city: City, _logs: object) -> None:
    """One key has another final answer the second time."""
    call = a_call(city, 201)
    call.end = End("answer", answer=Answer(201, call.shown + b" "))


def lost_cents(city: City, _logs: object) -> None:
    """An entry is missing from the journal."""
    row = a_movement(city, Kind.SALE, Kind.CAPTURE)
    del city.memory.journal[row.movement.department, row.movement.movement_id]


def unclear_again(city: City, _logs: object) -> None:
    """What was answered finally is unclear later."""
    first = a_call(city, 201)
    later = replace(first, begun_s=1e6, ended_s=1e6, end=End("answer", answer=Answer(202, first.shown)))
    city.history.calls.append(later)


def gone(city: City, _logs: object) -> None:
    """A charge that was shown is not there any more."""
    refusal = End("refused", "NotFound")
    city.history.calls.append(Call(9999, "parks", "show", "", "ch_x", Body(None), 1e6, 1e6, refusal))


def not_audited(city: City, _logs: object) -> None:
    """The audit rows of what was opened are missing."""
    city.memory.audit = [row for row in city.memory.audit if row.event.event not in {"card.opened", "card.received"}]


def number_in_a_log(_city: object, logs: list[Mapping[str, Any]]) -> None:
    """A log line holds a card number."""
    logs.append({"event": f"sent {number(0)}"})


def other_body(city: City, _logs: object) -> None:
    """A call with another body under the same key was answered."""
    call = a_call(city, 201)
    call.body = replace(call.body, reference=call.body.reference + "X")


def token_as_good_as_new(city: City, _logs: object) -> None:
    """A token for one use was used and is not spent."""
    for row in city.memory.tokens.values():
        row.token = replace(row.token, status="active")


def sent_with_other_bytes(city: City, _logs: object) -> None:
    """The same movement left the house a second time, and not the same."""
    city.sent.append(replace(city.sent[0], content="other"))


def surprised(city: City, _logs: object) -> None:
    """Something failed with an error that nobody meant."""
    city.broken.append("AssertionError: internal error")


def not_approved(city: City, _logs: object) -> None:
    """A refund above the limit was carried out, and nobody had approved it."""
    city.refund_minor_max = a_movement(city, Kind.REFUND).movement.amount_minor - 1
    city.memory.verdicts.clear()


DOCTORED: Sequence[tuple[str, Doctor]] = (
    ("I1", twice_done),
    ("I2", other_amount),
    ("I3", done_here_only),
    ("I4", told_failed),
    ("I5", left_open),
    ("I6", two_answers),
    ("I7", lost_cents),
    ("I8", unclear_again),
    ("I9", gone),
    ("I10", not_audited),
    ("I12", number_in_a_log),
    ("I13", other_body),
    ("A", not_approved),
    ("T", token_as_good_as_new),
    ("W", sent_with_other_bytes),
    ("X", surprised),
)


@pytest.mark.parametrize(("invariant", "doctor"), DOCTORED, ids=[doctor.__name__ for _, doctor in DOCTORED])
def test_an_invariant_notices(invariant: str, doctor: Doctor) -> None:
    """Right evidence is found right; with one thing changed it is not, by the invariant that is meant."""
    city, caught, _ = live_through(eventful_seed())
    logs = list(caught)
    assert judge(city, logs) == []
    doctor(city, logs)
    assert invariant in {violation.partition(":")[0] for violation in judge(city, logs)}


def test_every_invariant_was_seen_to_notice() -> None:
    """None of the checks is left out above."""
    assert {name for name, _ in DOCTORED} == {name for name, _ in CHECKS}
