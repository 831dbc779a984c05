"""What to do about a movement that the processor does not know: every branch, its borders, and what never happens."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rules.recovery import (
    ACT_S_MIN,
    CLOCK_SKEW_S,
    FIRST_LOOK_S,
    INQUIRY_LAG_S,
    LOOK_S_MAX,
    PATIENCE_S,
    SENDS_MAX,
    Cancel,
    Expired,
    Offers,
    Park,
    SendAgain,
    Step,
    Wait,
    delay_s,
    next_step,
)

DAY_S = 86_400.0
A = Offers(dedupe_window_s=DAY_S, cancel=True)
ONLY_DEDUPES = Offers(dedupe_window_s=DAY_S)
B = Offers(cancel=True)
C = Offers(expiry=True)
D = Offers()
SHORT = Offers(dedupe_window_s=20.0, cancel=True)
EVERYTHING = Offers(dedupe_window_s=DAY_S, cancel=True, expiry=True)
LATE_S = CLOCK_SKEW_S + INQUIRY_LAG_S
FORGOTTEN, NOBODY_KNOWS = Park("window_passed"), Park("undecidable")


def decided(
    offers: Offers, age_s: float = 1.0, overdue_s: float = -9.0, sends: int = 1, *, may_resend: bool = True
) -> Step:
    """The step about a movement; a young one that was sent once unless said otherwise."""
    return next_step(offers, age_s=age_s, overdue_s=overdue_s, sends=sends, may_resend=may_resend)


@pytest.mark.parametrize(
    ("offers", "age_s", "sends", "may_resend", "step"),
    [
        # While half of the window is not over: the same bytes again, and for no longer than that half.
        (A, 0.0, 1, True, SendAgain(DAY_S / 2)),
        (A, 1.0, 1, True, SendAgain(DAY_S / 2 - 1)),
        (A, DAY_S / 2 - ACT_S_MIN, 1, True, SendAgain(ACT_S_MIN)),
        (A, DAY_S / 2 - ACT_S_MIN + 0.001, 1, True, FORGOTTEN),
        (A, DAY_S / 2, 1, True, FORGOTTEN),
        (ONLY_DEDUPES, 1.0, 1, True, SendAgain(DAY_S / 2 - 1)),
        (EVERYTHING, 1.0, 1, True, SendAgain(DAY_S / 2 - 1)),
        (SHORT, 9.0, 1, True, SendAgain(1.0)),
        (SHORT, 9.1, 1, True, FORGOTTEN),
        # So often, and no more.
        (A, 1.0, SENDS_MAX - 1, True, SendAgain(DAY_S / 2 - 1)),
        (A, 1.0, SENDS_MAX, True, Cancel()),
        (A, 1.0, SENDS_MAX + 1, True, Cancel()),
        # With a verification code, or without its card: never.
        (A, 1.0, 1, False, Cancel()),
        (ONLY_DEDUPES, 1.0, 1, False, Wait()),
        (ONLY_DEDUPES, PATIENCE_S, 1, False, NOBODY_KNOWS),
        # Later what is sent now may arrive when it has forgotten: neither cancelled nor expired nor sent.
        (A, DAY_S - 0.001, SENDS_MAX, False, FORGOTTEN),
        (A, DAY_S, 1, True, FORGOTTEN),
        (A, DAY_S, SENDS_MAX, False, FORGOTTEN),
        (EVERYTHING, DAY_S, 1, True, FORGOTTEN),
        (ONLY_DEDUPES, DAY_S, 1, True, FORGOTTEN),
        (Offers(dedupe_window_s=0.0, cancel=True), 0.0, 1, True, FORGOTTEN),
        # A window too short to send in is none to send in.
        (Offers(dedupe_window_s=2 * ACT_S_MIN, cancel=True), 0.0, 1, True, SendAgain(ACT_S_MIN)),
        (Offers(dedupe_window_s=1.9, cancel=True), 0.0, 1, True, FORGOTTEN),
        # By reference it is made void, at any age: a late original meets that.
        (B, 0.0, 1, True, Cancel()),
        (B, 10 * DAY_S, SENDS_MAX, False, Cancel()),
        # Nothing of it all: patience, then a person.
        (D, 0.0, 1, True, Wait()),
        (D, PATIENCE_S - 0.001, 1, True, Wait()),
        (D, PATIENCE_S, 1, True, NOBODY_KNOWS),
        (D, 10 * DAY_S, 1, False, NOBODY_KNOWS),
    ],
)
def test_what_comes_next(offers: Offers, age_s: float, sends: int, may_resend: bool, step: Step) -> None:
    """By what the processor offers, the movement's age, how often it was sent, and whether it can be sent again."""
    assert decided(offers, age_s, sends=sends, may_resend=may_resend) == step


@pytest.mark.parametrize(
    ("offers", "overdue_s", "step"),
    [
        (C, -10.0, Wait()),
        (C, 0.0, Wait()),
        (C, CLOCK_SKEW_S, Wait()),
        (C, LATE_S - 0.001, Wait()),
        (C, LATE_S, Expired()),
        (C, 10 * DAY_S, Expired()),
        # Who also cancels is asked to, and does not wait.
        (Offers(cancel=True, expiry=True), LATE_S, Cancel()),
        # Who heeds no expiry lets nothing expire.
        (B, LATE_S, Cancel()),
        (D, LATE_S, NOBODY_KNOWS),
    ],
)
def test_a_request_that_expires(offers: Offers, overdue_s: float, step: Step) -> None:
    """It never happened once no clock can be before its `not_after` and no inquiry lag behind; no moment sooner."""
    assert decided(offers, 10.0 + overdue_s, overdue_s) == step


ANY = st.builds(
    Offers, dedupe_window_s=st.none() | st.floats(0, 10 * DAY_S), cancel=st.booleans(), expiry=st.booleans()
)
SECONDS = st.floats(-60, 20 * DAY_S)


@given(ANY, SECONDS, SECONDS, st.integers(1, 6), st.booleans())
def test_no_step_is_a_hope(offers: Offers, age_s: float, overdue_s: float, sends: int, may_resend: bool) -> None:
    """Nothing is sent, cancelled or given up that the processor does not offer, or too late, whatever the numbers."""
    step = decided(offers, age_s, overdue_s, sends, may_resend=may_resend)
    window_s = math.inf if offers.dedupe_window_s is None else offers.dedupe_window_s

    match step:
        case SendAgain(within_s):
            assert offers.dedupe_window_s is not None
            assert may_resend
            assert sends < SENDS_MAX
            assert within_s >= ACT_S_MIN
            assert age_s + within_s <= window_s / 2 + 1e-6
        case Cancel():
            assert offers.cancel
            assert age_s + ACT_S_MIN <= window_s / 2 + 1e-6
        case Expired():
            assert offers.expiry
            assert overdue_s >= LATE_S
            assert age_s + ACT_S_MIN <= window_s / 2 + 1e-6
        case Park(reason):
            assert reason == ("window_passed" if window_s / 2 - age_s < ACT_S_MIN else "undecidable")
        case Wait():
            assert not offers.cancel


def test_looks_come_soon_and_then_every_quarter_of_a_minute() -> None:
    """Twice as long each time, from half a second to fifteen, and never more, however often."""
    assert [delay_s(looks) for looks in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert delay_s(0) == FIRST_LOOK_S
    assert delay_s(10**9) == LOOK_S_MAX
