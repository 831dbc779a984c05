"""The table of states: every pair walked, and no history of moves, however long, that leads back."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keys.errors import KeyRefused
from keys.primitives import new_key
from keys.ring import Key
from keys.states import ALLOWED, FOLLOWS, State, Use, require_move

MAY_FOLLOW = {
    (State.PENDING, State.ACTIVE),
    (State.PENDING, State.COMPROMISED),
    (State.PENDING, State.DESTROYED),
    (State.ACTIVE, State.RETIRED),
    (State.ACTIVE, State.COMPROMISED),
    (State.RETIRED, State.COMPROMISED),
    (State.RETIRED, State.DESTROYED),
    (State.COMPROMISED, State.DESTROYED),
}
MAY_BE_USED = {
    (State.ACTIVE, Use.ORIGINATE),
    (State.ACTIVE, Use.PROCESS),
    (State.RETIRED, Use.PROCESS),
    (State.COMPROMISED, Use.PROCESS),
}
NOW = datetime(2026, 3, 14, tzinfo=UTC)


class Life(RuleBasedStateMachine):
    """One key, moved about by somebody who tries everything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.lived = [State.PENDING]

    @rule(wanted=st.sampled_from(State))
    def move(self, wanted: State) -> None:
        """A move happens just where the table has it; a refused one changes nothing."""
        present = self.lived[-1]
        try:
            require_move("generation 1", present, wanted)
        except KeyRefused:
            assert (present, wanted) not in MAY_FOLLOW
        else:
            assert (present, wanted) in MAY_FOLLOW
            self.lived.append(wanted)

    @invariant()
    def no_state_comes_twice(self) -> None:
        """So none is returned to, least of all the active one."""
        assert len(set(self.lived)) == len(self.lived)

    @invariant()
    def what_ended_stays_ended(self) -> None:
        """Nothing comes after destroyed, and only that after compromised."""
        if State.DESTROYED in self.lived:
            assert self.lived[-1] is State.DESTROYED
        if State.COMPROMISED in self.lived:
            assert set(self.lived[self.lived.index(State.COMPROMISED) + 1 :]) <= {State.DESTROYED}

    @invariant()
    def uses_are_never_given_back(self) -> None:
        """Once active, a key may only ever do less."""
        uses = [ALLOWED[state] for state in self.lived if state is not State.PENDING]
        assert all(later <= earlier for earlier, later in pairwise(uses))


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase
TestLife.__doc__ = "However a key is moved about, it never comes back to a state it has left."


@pytest.mark.parametrize(("present", "wanted"), [*product(State, State)])
def test_every_pair(present: State, wanted: State) -> None:
    """Each move is allowed or refused as this test says; a refusal names the key and both states."""
    if (present, wanted) in MAY_FOLLOW:
        require_move("generation 7", present, wanted)
        return

    with pytest.raises(KeyRefused, match=f"^generation 7 is {present}: it cannot become {wanted}$"):
        require_move("generation 7", present, wanted)


@pytest.mark.parametrize(("state", "use"), [*product(State, Use)])
def test_every_use(state: State, use: Use) -> None:
    """Each state allows the uses that this test says, when a key is asked for them."""
    key = Key(7, state, NOW + timedelta(days=1), NOW + timedelta(days=2), new_key())
    if (state, use) in MAY_BE_USED:
        assert key.require(use, NOW) is key.secret
        return

    with pytest.raises(KeyRefused, match=f"^key 7 is {state}: it may not {use}$"):
        key.require(use, NOW)


def test_the_tables_agree() -> None:
    """Both say something of every state; what ends allows nothing; every key can be destroyed by some way."""
    assert set(ALLOWED) == set(FOLLOWS) == set(State)
    assert {state for state in State if not FOLLOWS[state]} == {State.DESTROYED}
    assert ALLOWED[State.DESTROYED] == ALLOWED[State.PENDING] == frozenset()
    assert [state for state in State if Use.ORIGINATE in ALLOWED[state]] == [State.ACTIVE]
    assert {end for state in State for end in ends(state)} == {State.DESTROYED}


def test_a_key_in_use_is_not_destroyed_at_once() -> None:
    """Between protecting what is new and being destroyed lies a state in which its records are moved away."""
    assert State.DESTROYED not in FOLLOWS[State.ACTIVE]


@given(st.lists(st.sampled_from(State), max_size=12))
def test_a_walk_is_short(wanted: list[State]) -> None:
    """No history has more than four moves, whatever is asked for: it goes through each state at most once."""
    present, moves = State.PENDING, 0
    for state in wanted:
        if state in FOLLOWS[present]:
            present, moves = state, moves + 1

    assert moves <= 4


def ends(state: State) -> set[State]:
    """Where the ways from a state end."""
    return {end for following in FOLLOWS[state] for end in ends(following)} or {state}
