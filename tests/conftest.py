"""Fixtures that several folders share."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.system import Client, Stub, System, owner, running


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The whole demo, running; one for all tests that change no part of it."""
    with tempfile.TemporaryDirectory(prefix="gateway-tests-") as folder:
        Path(folder).chmod(0o711)
        with running(Path(folder) / "home") as started:
            yield started


@pytest.fixture
async def parks(system: System) -> AsyncIterator[Client]:
    """The payment page of one department."""
    async with Client(system, "parks") as client:
        yield client


@pytest.fixture
async def utilities(system: System) -> AsyncIterator[Client]:
    """The payment page of another."""
    async with Client(system, "utilities") as client:
        yield client


@pytest.fixture
async def stub(system: System) -> AsyncIterator[Stub]:
    """The processor, healthy before and after."""
    stub = Stub(system)
    await stub.faults()
    yield stub
    await stub.faults()


@pytest.fixture
async def sql(system: System) -> AsyncIterator[asyncpg.Connection]:
    """The schema's owner."""
    connection = await owner(system)
    yield connection
    await connection.close()


LONGEST = ("tests/waters/", "tests/simulation/", "tests/chaos/")
"""What takes longest begins first: two processes share the files, and none shall end with a long one alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the folders; within one, tests keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In continuous integration a test that was skipped because the machine lacks something is a failure.

    Such a skip gives a reason that begins with "missing".
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter is not None else []
    if os.environ.get("CI") and any("Skipped: missing" in str(report.longrepr) for report in skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
