"""The ring: each use asked of state and date at that moment, to the microsecond; and who wraps what is new."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from keys.envelope import Place
from keys.errors import BrokenSeal, KeyRefused, UnknownKey
from keys.primitives import new_key
from keys.ring import Key, Ring, WrappedDek
from keys.states import State, Use

MICROSECOND = timedelta(microseconds=1)
DAY = timedelta(days=1)
MAY = {
    (State.PENDING, Use.ORIGINATE): False,
    (State.PENDING, Use.PROCESS): False,
    (State.ACTIVE, Use.ORIGINATE): True,
    (State.ACTIVE, Use.PROCESS): True,
    (State.RETIRED, Use.ORIGINATE): False,
    (State.RETIRED, Use.PROCESS): True,
    (State.COMPROMISED, Use.ORIGINATE): False,
    (State.COMPROMISED, Use.PROCESS): True,
    (State.DESTROYED, Use.ORIGINATE): False,
    (State.DESTROYED, Use.PROCESS): False,
}
PLACE = Place("demo", "parks", "tok_1")
WRITTEN = datetime(2026, 3, 14, tzinfo=UTC)


def key(number: int, state: State, now: datetime) -> Key:
    """A key that may protect for a day from now, and be read for two."""
    return Key(number, state, now + DAY, now + 2 * DAY, new_key())


def ring(*keys: Key) -> Ring:
    """A ring of these generations, and of a fingerprint key for each."""
    numbered = {key.number: key for key in keys}
    return Ring("demo", 3, WRITTEN, numbered, numbered)


def in_state(given: Ring, number: int, state: State) -> Ring:
    """The ring after one generation moved to another state."""
    moved = replace(given.generations[number], state=state)
    return replace(given, generations={**given.generations, number: moved})


@pytest.mark.parametrize(("state", "use"), MAY)
def test_states_and_uses(state: State, use: Use, now: datetime) -> None:
    """A key is given out exactly where its state allows the use; a refusal names key, state and use."""
    one = key(7, state, now)
    if MAY[state, use]:
        assert one.require(use, now) is one.secret
        return

    with pytest.raises(KeyRefused, match=f"^key 7 is {state}: it may not {use}$"):
        one.require(use, now)


@pytest.mark.parametrize(("use", "until"), [(Use.ORIGINATE, DAY), (Use.PROCESS, 2 * DAY)])
def test_dates_end_to_the_microsecond(use: Use, until: timedelta, now: datetime) -> None:
    """A key may be used up to a microsecond before its date, and no more at the date itself or after it."""
    one = key(7, State.ACTIVE, now)

    assert one.require(use, now + until - MICROSECOND) is one.secret
    for late in (now + until, now + until + MICROSECOND):
        with pytest.raises(KeyRefused, match=rf"^key 7 may not {use} since 2026-03-1\d: rotate with `keys rotate`$"):
            one.require(use, late)


def test_a_key_past_its_first_date_is_still_read(now: datetime) -> None:
    """Between the two dates the key protects nothing new and opens what it protected."""
    given = ring(key(1, State.ACTIVE, now))
    dek, wrapped = given.new_dek(PLACE, now)

    with pytest.raises(KeyRefused, match="may not originate"):
        given.new_dek(PLACE, now + DAY)
    assert given.unwrap(PLACE, wrapped, now + DAY).reveal() == dek.reveal()
    with pytest.raises(KeyRefused, match="may not process"):
        given.unwrap(PLACE, wrapped, now + 2 * DAY)


def test_new_data_keys_differ_and_open_in_their_place(now: datetime) -> None:
    """Each record gets a data key of its own, which opens for this record alone."""
    given = ring(key(1, State.ACTIVE, now))
    dek, wrapped = given.new_dek(given.place("parks", "tok_1"), now)
    other, _ = given.new_dek(PLACE, now)

    assert given.unwrap(PLACE, wrapped, now).reveal() == dek.reveal() != other.reveal()
    assert wrapped.generation == 1
    with pytest.raises(BrokenSeal):
        given.unwrap(given.place("parks", "tok_2"), wrapped, now)


def test_a_rotation_wraps_anew_and_still_reads(now: datetime) -> None:
    """After a rotation the new generation wraps, and the retired one opens what it wrapped."""
    before = ring(key(1, State.ACTIVE, now), key(2, State.PENDING, now))
    dek, old = before.new_dek(PLACE, now)
    after = in_state(in_state(before, 1, State.RETIRED), 2, State.ACTIVE)
    new = after.wrap(PLACE, dek, now)

    assert (old.generation, new.generation) == (1, 2)
    assert {after.unwrap(PLACE, wrapped, now).reveal() for wrapped in (old, new)} == {dek.reveal()}
    assert before.active.number == 1


def test_a_wrap_says_whose_it_is(now: datetime) -> None:
    """A wrap under another generation's number does not open, though both generations may process."""
    given = ring(key(1, State.ACTIVE, now), key(2, State.RETIRED, now))
    _, wrapped = given.new_dek(PLACE, now)

    with pytest.raises(BrokenSeal):
        given.unwrap(PLACE, replace(wrapped, generation=2), now)


@pytest.mark.parametrize("state", [State.PENDING, State.DESTROYED])
def test_what_the_state_forbids_is_not_opened(state: State, now: datetime) -> None:
    """A generation that may not process opens nothing, even what it wrapped itself."""
    given = ring(key(1, State.ACTIVE, now))
    _, wrapped = given.new_dek(PLACE, now)

    with pytest.raises(KeyRefused, match=f"key 1 is {state}"):
        in_state(given, 1, state).unwrap(PLACE, wrapped, now)


def test_a_generation_that_is_not_there(now: datetime) -> None:
    """A wrap of a generation that the manifest does not hold names it, and the manifest."""
    with pytest.raises(UnknownKey, match=r"^generation 9 is not in manifest 3$"):
        ring(key(1, State.ACTIVE, now)).unwrap(PLACE, WrappedDek(9, bytes(61)), now)


@pytest.mark.parametrize("states", [[], [State.RETIRED, State.PENDING], [State.ACTIVE, State.ACTIVE, State.RETIRED]])
def test_exactly_one_active(states: list[State], now: datetime) -> None:
    """With no active generation, or two, nothing new is wrapped and nothing is indexed; the count is told."""
    given = ring(*(key(number, state, now) for number, state in enumerate(states)))
    told = f"holds {states.count(State.ACTIVE)} active versions"

    with pytest.raises(UnknownKey, match=told):
        given.new_dek(PLACE, now)
    with pytest.raises(UnknownKey, match=told):
        _ = given.fingerprint


def test_a_card_is_looked_for_under_every_key_that_may_know_it(now: datetime) -> None:
    """Older fingerprint keys come first, by number, and the one for what is new last; others index nothing."""
    states = [State.DESTROYED, State.COMPROMISED, State.ACTIVE, State.RETIRED, State.PENDING]
    given = ring(*(key(number, state, now) for number, state in enumerate(states, start=1)))

    assert [one.number for one in given.indexing] == [2, 4, 3]
    assert given.indexing[-1] is given.fingerprint


def test_a_ring_shows_no_key(now: datetime) -> None:
    """Printed whole, a ring shows no key byte."""
    given = ring(key(1, State.ACTIVE, now))

    assert "secret=Secret(…)" in repr(given)
    assert repr(given.active.secret.reveal()) not in repr(given)
