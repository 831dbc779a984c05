"""Who may call: a register that is never older than two seconds, with the quota and the last use of each key."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.errors import CertificateRefused, NotIdentified, TooManyRequests, Unavailable
from gateway.rules.access import Application, Credential, NewApiKey, new_api_key
from gateway.rules.certificates import Authority, ClientCertificate, RevocationList, Revocations
from gateway.services import callers as module
from gateway.services.callers import FRESH_S, NOTE_EVERY_S, Callers
from keys.primitives import new_key
from tests.gateway.services.conftest import START, Clock

PARKS = Application("parks", "app_1", 50_000, "urn:city:parks")
DIGEST_KEYS = {1: new_key()}
YEAR = timedelta(days=365)
SHOWN = ClientCertificate(("urn:city:parks",), b"f" * 32, b"city", 7, START - YEAR, START + YEAR)
CITY = Authority(b"city's key", b"city", None, b"city", 1)
LIST = RevocationList(CITY.key, frozenset(), START - YEAR, START + YEAR)


class Credentials:
    """Implements `callers.CredentialStore` in memory."""

    def __init__(self) -> None:
        self.valid: dict[str, Credential] = {}
        self.denied: set[bytes] = set()
        self.noted: list[Mapping[str, Collection[str]]] = []
        self.away = self.hangs = False
        self.looks = 0

    async def credentials(self) -> Mapping[str, Credential]:
        self.looks += 1
        await asyncio.sleep(0)  # as a database does
        if self.away:
            raise Unavailable
        if self.hangs:
            await asyncio.Event().wait()
        return dict(self.valid)

    async def denied_certificates(self) -> Collection[bytes]:
        return frozenset(self.denied)

    async def note_use(self, key_ids: Mapping[str, Collection[str]]) -> None:
        if self.away:
            raise Unavailable
        self.noted.append(key_ids)

    def add(self, application: Application = PARKS) -> NewApiKey:
        """Register a key of an application."""
        key = new_api_key(DIGEST_KEYS)
        self.valid[key.key_id] = Credential(key.digest_key, key.digest, application)
        return key


class Lists:
    """Implements `callers.RevocationSource` in memory."""

    def __init__(self) -> None:
        self.lists: tuple[RevocationList, ...] = (LIST,)

    async def look(self) -> Revocations:
        return Revocations(self.lists, (CITY,))


@pytest.fixture
def store() -> Credentials:
    """Nobody, yet."""
    return Credentials()


@pytest.fixture
def callers(store: Credentials, clock: Clock) -> Callers:
    """The register of a process."""
    return Callers(store, DIGEST_KEYS, clock)


async def identify(callers: Callers, key: NewApiKey, certificate: ClientCertificate | None = None) -> Application:
    """Who sent this key."""
    return await callers.identify(f"Bearer {key.secret.reveal()}", certificate)


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


async def test_all_who_wait_share_one_look(callers: Callers, store: Credentials) -> None:
    """A hundred requests at the moment when the register has grown old ask the database once."""
    registers = await asyncio.gather(*(callers.register() for _ in range(100)))
    assert store.looks == 1
    assert len(set(map(id, registers))) == 1


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


async def test_a_key_ends_between_two_looks(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Its time is compared by the process's clock at every request, not when the register was read."""
    key = store.add()
    store.valid[key.key_id] = replace(store.valid[key.key_id], expires_at=clock.now() + timedelta(seconds=1))
    assert await identify(callers, key) is PARKS
    clock.seconds += 1
    with pytest.raises(NotIdentified):
        await identify(callers, key)
    assert store.looks == 1


@pytest.mark.parametrize("how", ["denied", "revoked", "no list"])
async def test_what_speaks_against_a_certificate_is_known_in_two_seconds(
    store: Credentials, clock: Clock, how: str
) -> None:
    """A certificate that served is refused once it is denied or revoked, or its list gone; its key alone is not."""
    lists, key = Lists(), store.add()
    callers = Callers(store, DIGEST_KEYS, clock, lists)
    assert await identify(callers, key, SHOWN) is PARKS
    if how == "denied":
        store.denied.add(SHOWN.fingerprint)
    else:
        lists.lists = (replace(LIST, serials=frozenset({SHOWN.serial})),) if how == "revoked" else ()
    clock.seconds += FRESH_S
    with pytest.raises(CertificateRefused):
        await identify(callers, key, SHOWN)
    assert await identify(callers, key) is PARKS


async def test_a_process_may_require_certificates(store: Credentials, clock: Clock) -> None:
    """Then a key alone is nobody's."""
    key, callers = store.add(), Callers(store, DIGEST_KEYS, clock, certificate_required=True)

    with pytest.raises(NotIdentified):
        await identify(callers, key)
    assert await identify(callers, key, SHOWN) is PARKS


async def test_the_quota_is_the_application_s(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Two keys of one application share its bucket; who is not identified empties none."""
    thrifty = replace(PARKS, requests_per_s_max=2)
    first, second, stranger = store.add(thrifty), store.add(thrifty), new_api_key(DIGEST_KEYS)
    for _ in range(5):
        with pytest.raises(NotIdentified):
            await identify(callers, stranger)
    await identify(callers, first)
    await identify(callers, second)
    with pytest.raises(TooManyRequests):
        await identify(callers, first)
    clock.seconds += 0.5
    assert await identify(callers, second) is thrifty


async def test_who_goes_on_is_judged_again_and_charged_once(
    callers: Callers, store: Credentials, clock: Clock
) -> None:
    """A request that lasts costs one of the quota, however often it is asked whose it is; a revoked key ends it."""
    key = store.add(replace(PARKS, requests_per_s_max=1))
    authorization = f"Bearer {key.secret.reveal()}"
    await identify(callers, key)
    for _ in range(3):
        assert (await callers.recognize(authorization, None)).application_id == PARKS.application_id
    with pytest.raises(TooManyRequests):
        await identify(callers, key)
    store.valid.clear()
    clock.seconds += FRESH_S
    with pytest.raises(NotIdentified):
        await callers.recognize(authorization, None)


async def test_use_is_noted_once_a_minute(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Keys that identified somebody are written, by department, together; nothing is when nobody called."""
    parks, utilities = store.add(), store.add(replace(PARKS, department="utilities", certificate_san=None))
    for key in (parks, parks, utilities):
        await identify(callers, key)
    with pytest.raises(NotIdentified):
        await identify(callers, new_api_key(DIGEST_KEYS))
    await callers.note_use()
    assert store.noted == []
    clock.seconds += NOTE_EVERY_S
    for _ in range(2):
        await callers.note_use()
    assert store.noted == [{"parks": [parks.key_id], "utilities": [utilities.key_id]}]
    clock.seconds += NOTE_EVERY_S
    await callers.note_use()
    assert len(store.noted) == 1


async def test_use_that_cannot_be_noted_waits(callers: Callers, store: Credentials, clock: Clock) -> None:
    """Nobody is served worse for it, and it is written the next time."""
    key = store.add()
    await identify(callers, key)
    store.away = True
    clock.seconds += NOTE_EVERY_S
    with pytest.raises(Unavailable):
        await callers.note_use()
    store.away = False
    await callers.note_use()
    assert store.noted == []
    clock.seconds += NOTE_EVERY_S
    await callers.note_use()
    assert store.noted == [{"parks": [key.key_id]}]
