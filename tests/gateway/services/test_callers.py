"""Who may call: a register that is never older than two seconds."""

import asyncio
from collections.abc import Mapping

import pytest

from gateway.errors import NotIdentified, Unavailable
from gateway.rules.access import Application, Credential, NewApiKey, new_api_key
from gateway.services import callers as module
from gateway.services.callers import FRESH_S, Callers
from keys.primitives import new_key
from tests.gateway.services.conftest import Clock

PARKS = Application("parks", "app_1", 50_000, None)
DIGEST_KEYS = {1: new_key()}


class Credentials:
    """Implements `callers.CredentialStore` in memory."""

    def __init__(self) -> None:
        self.valid: dict[str, Credential] = {}
        self.away = self.hangs = False
        self.looks = 0

    async def credentials(self) -> Mapping[str, Credential]:
        self.looks += 1
        if self.away:
            raise Unavailable
        if self.hangs:
            await asyncio.Event().wait()
        return dict(self.valid)

    def add(self) -> NewApiKey:
        """Register a key of the parks."""
        key = new_api_key(DIGEST_KEYS)
        self.valid[key.key_id] = Credential(key.digest_key, key.digest, PARKS)
        return key


@pytest.fixture
def store() -> Credentials:
    """Nobody, yet."""
    return Credentials()


@pytest.fixture
def callers(store: Credentials, clock: Clock) -> Callers:
    """The register of a process."""
    return Callers(store, DIGEST_KEYS, clock)


async def identify(callers: Callers, key: NewApiKey) -> Application:
    """Who sent this key."""
    return (await callers.register()).identify(f"Bearer {key.secret.reveal()}", None)


async def test_a_revoked_key_is_gone(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Two seconds after it was revoked a key is nobody's, and a new one has become somebody's."""
    key = store.add()
    assert await identify(callers, key) is PARKS
    store.valid.clear()
    new = store.add()
    clock.seconds += FRESH_S
    with pytest.raises(NotIdentified):
        await identify(callers, key)
    assert await identify(callers, new) is PARKS


async def test_a_fresh_register_costs_nothing(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Within two seconds the database is not asked, and need not be there."""
    key = store.add()
    await identify(callers, key)
    store.away = True
    clock.seconds += FRESH_S - 0.001
    assert await identify(callers, key) is PARKS
    assert store.looks == 1


async def test_an_old_register_identifies_nobody(callers: Callers, store: Credentials, clock: Clock) -> None:
    """When it cannot be read again, callers are told to come back, and are known again once it can."""
    key = store.add()
    await identify(callers, key)
    store.away = True
    clock.seconds += FRESH_S
    with pytest.raises(Unavailable):
        await identify(callers, key)
    store.away = False
    assert await identify(callers, key) is PARKS


async def test_nobody_queues_behind_a_look_that_hangs(
    callers: Callers, store: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All callers wait for a look a bounded time together, not one after the other."""
    monkeypatch.setattr(module, "LOOK_TIMEOUT_S", 0.1)
    store.hangs = True
    async with asyncio.timeout(0.5):
        ends = await asyncio.gather(*(callers.register() for _ in range(20)), return_exceptions=True)
    assert [type(end) for end in ends] == [Unavailable] * 20
