"""The quota: a second's worth at once, then as many a second as were granted, each application for itself."""

from dataclasses import replace

import pytest

from gateway.errors import TooManyRequests
from gateway.rules.access import Application
from gateway.rules.quota import Quota

CALLER = Application("parks", "app_1", 50_000, None, requests_per_s_max=10)


def _served(quota: Quota, caller: Application, now_s: float, asked: int) -> int:
    """How many of so many requests at one moment are served."""
    served = 0
    for _ in range(asked):
        try:
            quota.take(caller, now_s)
        except TooManyRequests:
            continue
        served += 1
    return served


@pytest.mark.parametrize("start_s", [0.0, 1e9])
def test_a_burst_is_one_second_s_worth(start_s: float) -> None:
    """Ten a second: ten at once, the eleventh not, and a tenth of a second later one more."""
    quota = Quota()

    assert _served(quota, CALLER, start_s, 11) == 10
    assert _served(quota, CALLER, start_s + 0.09, 1) == 0
    assert _served(quota, CALLER, start_s + 0.11, 2) == 1
    assert _served(quota, CALLER, start_s + 60, 100) == 10


def test_over_time_the_rate_holds() -> None:
    """Twenty tries a second for a minute: ten a second are served, and the first burst."""
    quota = Quota()
    served = sum(_served(quota, CALLER, moment / 20, 1) for moment in range(1_200))

    assert 600 <= served <= 611


def test_what_is_refused_costs_nothing() -> None:
    """Who hammers is served at the granted rate all the same."""
    quota = Quota()
    _served(quota, CALLER, 0.0, 1_000)

    assert _served(quota, CALLER, 1.0, 1_000) == 10


def test_each_application_has_a_bucket_of_its_own() -> None:
    """An application's noise is not another's, nor that of one with the same id in another department."""
    quota = Quota()
    _served(quota, CALLER, 0.0, 100)

    for other in (replace(CALLER, application_id="app_2"), replace(CALLER, department="utilities")):
        assert _served(quota, other, 0.0, 100) == 10


def test_a_changed_quota_holds_at_once() -> None:
    """A smaller one cuts what was saved up, a larger one fills at its own rate."""
    quota = Quota()
    quota.take(CALLER, 0.0)

    assert _served(quota, replace(CALLER, requests_per_s_max=2), 0.0, 10) == 2
    assert _served(quota, replace(CALLER, requests_per_s_max=100), 0.5, 1_000) == 50


def test_one_a_second_is_served() -> None:
    """The smallest quota is not none."""
    quota, slow = Quota(), replace(CALLER, requests_per_s_max=1)

    assert [_served(quota, slow, moment, 3) for moment in (0.0, 0.5, 1.0, 2.0)] == [1, 0, 1, 1]
