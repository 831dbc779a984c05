"""The admin process, composed: what it looks at before it starts, and what it does now and then."""

from pathlib import Path

import msgspec
import pytest

from gateway.config import Config
from gateway.wiring_admin import TIDY_EVERY_S, admin_parts, hourly
from keys.errors import SettingsRefused
from tests.gateway.services.conftest import Clock


async def test_a_list_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    """Before the database is asked, in one line: not at the first change of a password."""
    listener = {"cert": "/none", "key": "/none"}
    settings = {
        "environment": "test",
        "keys": {"root": "file:/none", "store": "file:/none", "secrets": "/none"},
        "database": {"dsn": "postgresql://127.0.0.1:1/none"},
        "api": listener,
        "admin": listener | {"breached_passwords": str(tmp_path / "none")},
        "processor": {"url": "https://processor.test"},
    }
    with pytest.raises(SettingsRefused, match=r"^admin\.breached_passwords: [^\n]*$"):
        async with admin_parts(msgspec.convert(settings, Config)):
            raise AssertionError("internal error: started")


async def test_once_an_hour_at_most() -> None:
    """At the first look, then an hour later; one that failed is not repeated earlier."""
    clock, done = Clock(), []

    async def act() -> None:
        done.append(clock.seconds)
        if len(done) == 1:
            raise OSError

    look = hourly(act, clock)
    with pytest.raises(OSError):  # noqa: PT011 - the one above
        await look()
    for seconds in (1, TIDY_EVERY_S - 1, TIDY_EVERY_S, TIDY_EVERY_S + 1, 2 * TIDY_EVERY_S):
        clock.seconds = seconds
        await look()
    assert done == [0, TIDY_EVERY_S, 2 * TIDY_EVERY_S]
