"""The product's times, about twenty times as fast, so that a lease can end many times in a run.

What makes the product right stays so: who may still send is done before its lease ends, by the same margin and
more. A process that the machine holds up for longer than a lease is one more fault, and no wrong one.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType
from typing import Any

from gateway.rules import recovery as rules
from gateway.services import recovery, sending
from gateway.store import database, ledger, postgres, roles
from tests.simulation import resident

SCALE = 1 / 20
CALL_S = 0.5
INQUIRE_S = 0.4
CONNECT_S = 0.4
STATEMENT_S = 0.8
"""How long a statement, and a connection of the pool, is waited for."""
TURN_S = (0.04, 0.08)
SLOW_S = 0.7
"""How long the double holds an answer back: longer than anybody waits."""

LATE_S_MAX = 2.9
"""How late a request arrives at a double that heeds when it ends: later than that, whatever its clock says."""

FASTER: Mapping[tuple[ModuleType, str], Any] = {
    (postgres, "LEASE"): timedelta(seconds=1.2),
    (ledger, "REQUEST_LIFE"): timedelta(seconds=2.4),  # the wire takes whole seconds, so one may be lost of them
    (sending, "HELD_S_MAX"): 0.55,
    (recovery, "HOLD_S_MAX"): 0.65,
    (rules, "FIRST_LOOK_S"): 0.05,
    (rules, "LOOK_S_MAX"): 0.5,
    (rules, "PATIENCE_S"): 0.5,
    (rules, "ACT_S_MIN"): 0.05,
    (rules, "CLOCK_SKEW_S"): 0.3,
    (rules, "INQUIRY_LAG_S"): 0.4,
    (database, "ROLLBACK_TIMEOUT_S"): 0.2,
    (resident, "PATIENCE_S"): 4.0,
    (resident, "HASTY_S"): (0.005, 0.2),
    (roles, "ITERATIONS"): 1,  # of a password's hash: replicas sign in a thousand times
}


@contextmanager
def faster() -> Iterator[None]:
    """Put the fast times in force, wherever a module has imported one of them."""
    before: list[tuple[ModuleType, str, Any]] = []
    for (origin, name), fast in FASTER.items():
        was = getattr(origin, name)
        for module in [each for each in sys.modules.values() if vars(each).get(name) is was]:
            before.append((module, name, was))
            setattr(module, name, fast)
    try:
        _require_right()
        yield
    finally:
        for module, name, was in before:
            setattr(module, name, was)


def _require_right() -> None:
    """The inequalities that the product stands on."""
    lease_s = postgres.LEASE.total_seconds()
    assert lease_s > sending.HELD_S_MAX + CALL_S
    assert lease_s > recovery.HOLD_S_MAX + INQUIRE_S
    assert lease_s < ledger.REQUEST_LIFE.total_seconds()
