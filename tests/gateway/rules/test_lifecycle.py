"""The life of a charge: every state with every event, and what each state means outside."""

from itertools import product

import pytest

from gateway.rules.lifecycle import EDGES, MEANINGS, Event, IllegalEvent, Meaning, State, after, sources

LEADS = {
    ("sending", "charge.unclear"): "unknown",
    ("sending", "charge.captured"): "captured",
    ("sending", "charge.declined"): "declined",
    ("sending", "charge.failed"): "rejected",
    ("unknown", "charge.captured"): "captured",
    ("unknown", "charge.declined"): "declined",
}
"""Written out a second time, on purpose: an edge more is money moved twice."""


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_pair_leads_where_it_should_or_nowhere(state: State, event: Event) -> None:
    """A legal event leads to its state; every other one raises, and says which it was."""
    expected = LEADS.get((state.value, event.value))

    if expected is not None:
        assert after(state, event) is State(expected)
    else:
        with pytest.raises(IllegalEvent, match=f"{event.value} .* {state.value}"):
            after(state, event)


def test_nothing_leaves_a_final_state() -> None:
    """A final state has no edge out, and a state that is not final has one."""
    leaving = {state for state, _ in EDGES}

    assert leaving == {state for state in State if not MEANINGS[state].final}


def test_every_state_can_be_reached() -> None:
    """From `sending`, where every charge begins, and nothing leads back to it."""
    reached, before = {State.SENDING}, set[State]()
    while reached != before:
        before = set(reached)
        reached |= {target for (source, _), target in EDGES.items() if source in before}

    assert reached == set(State)
    assert State.SENDING not in EDGES.values()


def test_an_unclear_charge_can_only_be_resolved_by_what_the_processor_says() -> None:
    """Not known is not failed: no event rejects a charge whose request may have left."""
    assert {target for (source, _), target in EDGES.items() if source is State.UNKNOWN} == {
        State.CAPTURED,
        State.DECLINED,
    }


def test_every_state_has_a_meaning_outside() -> None:
    """Public status, HTTP status and finality of each state are those of the contract."""
    assert dict(MEANINGS) == {
        State.SENDING: Meaning("pending", 202, final=False),
        State.UNKNOWN: Meaning("pending", 202, final=False),
        State.CAPTURED: Meaning("succeeded", 201, final=True),
        State.DECLINED: Meaning("declined", 402, final=True),
        State.REJECTED: Meaning("failed", 502, final=True),
    }


@pytest.mark.parametrize("event", Event)
def test_sources_are_the_states_in_which_an_event_may_happen(event: Event) -> None:
    """The WHERE of a compare-and-set names exactly the states that have this edge."""
    assert {state.value for state in sources(event)} == {state for state, name in LEADS if name == event.value}
    assert len(sources(event)) == len(set(sources(event)))
