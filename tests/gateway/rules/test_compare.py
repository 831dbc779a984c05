"""Our list of movements beside the processor's: every difference has its name, and only differences have one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.compare import Difference, Ours, Theirs, What, compare
from gateway.rules.lifecycle import Progress


@pytest.mark.parametrize(
    ("progress", "effects", "amount", "told"),
    [
        (Progress.DONE, 1, 100, []),
        (Progress.FAILED, 0, 100, []),
        (Progress.REFUSED, None, 100, []),
        (Progress.UNKNOWN, None, 100, []),
        (None, 0, 100, []),
        (None, 1, 100, ["missing_here"]),
        (None, 2, 100, ["duplicate", "missing_here"]),
        (Progress.DONE, None, 100, ["missing_there"]),
        (Progress.DONE, 0, 100, ["missing_there"]),
        (Progress.DONE, 2, 100, ["duplicate"]),
        (Progress.DONE, 1, 99, ["amount_differs"]),
        (Progress.IN_REVIEW, 1, 100, ["not_decided_here"]),
        (Progress.SENDING, 3, 100, ["duplicate", "not_decided_here"]),
        (Progress.FAILED, 1, 100, ["not_done_here"]),
        (Progress.REFUSED, 2, 100, ["duplicate", "not_done_here"]),
    ],
)
def test_each_difference_has_its_name(
    progress: Progress | None, effects: int | None, amount: int, told: list[What]
) -> None:
    """By what each side has of one reference."""
    ours = [] if progress is None else [Ours("pr_1", 100, progress)]
    theirs = [] if effects is None else [Theirs("pr_1", amount, effects)]

    assert compare(ours, theirs) == [Difference("pr_1", what) for what in told]


@given(st.dictionaries(st.text("ab", min_size=1), st.integers(1, 4)))
def test_every_duplicate_is_named(carried_out: dict[str, int]) -> None:
    """Whatever was carried out more than once, and nothing else, where both sides know all of it."""
    ours = [Ours(reference, 5, Progress.DONE) for reference in carried_out]
    theirs = [Theirs(reference, 5, effects) for reference, effects in carried_out.items()]

    doubled = sorted(reference for reference, effects in carried_out.items() if effects > 1)
    assert compare(ours, theirs) == [Difference(reference, "duplicate") for reference in doubled]
