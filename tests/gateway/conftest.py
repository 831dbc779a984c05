"""What tests of finance share: dates of their own."""

from collections.abc import Callable
from datetime import date, timedelta
from itertools import count

import pytest


@pytest.fixture(scope="module")
def days(request: pytest.FixtureRequest) -> Callable[[], date]:
    """A date of the test's own each, after the module's `YEAR` began: nobody meets what others left in the books."""
    first, taken = date(request.module.YEAR, 1, 1), count(1)
    return lambda: first + timedelta(next(taken) * 30)
