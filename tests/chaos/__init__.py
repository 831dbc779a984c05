"""Tier 2: the real processes, really killed.

`python -m tests.chaos.process api` is `gateway api` with something at its named points: there it kills or stops
itself, as its schedule says. `fleet` runs several of them against one PostgreSQL and one processor's double, and
starts again whatever dies; `pages` are the payment pages that never give up; `verdict` says what is true at the end.
"""
