"""One admin site for the tests of a module."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
