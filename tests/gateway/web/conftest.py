"""One admin site for the tests of a module."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from datetime import date
from pathlib import Path

import pytest

from tests.gateway.store.postgres import PARKS
from tests.gateway.store.till import Till
from tests.gateway.web.site import Site, running_site


@pytest.fixture(scope="session")
async def site() -> AsyncIterator[Site]:
    """The admin site, running; a test that needs somebody makes them."""
    home = Path(tempfile.mkdtemp(prefix="gateway-site-"))  # pytest's own folders are closed to the server's user
    home.chmod(0o711)
    try:
        async with running_site(home) as site:
            yield site
    finally:
        shutil.rmtree(home)


@pytest.fixture
async def finance(site: Site) -> str:
    """A session of somebody of finance."""
    return await site.token(await site.person("finance"))


@pytest.fixture
async def approver(site: Site) -> str:
    """A session of an approver."""
    return await site.token(await site.person("approver"))


@pytest.fixture
def till(site: Site, days: Callable[[], date]) -> Callable[[], Till]:
    """Tills of the parks, each on a date of its own."""
    return lambda: Till(site.owner, PARKS, days())
