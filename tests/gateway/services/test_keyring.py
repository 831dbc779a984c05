"""The ring follows the key store within two seconds, goes only forward, and is refused only when it is too old."""

import asyncio
import shutil

import pytest
from structlog.testing import capture_logs

from gateway.errors import Unavailable
from gateway.services import keyring as module
from gateway.services.keyring import FRESH_S, Keyring
from keys.errors import (
    ClockBehind,
    KeystoreRefused,
    KeySwapped,
    ManifestForged,
    ManifestRefused,
    ManifestRolledBack,
)
from keys.states import Seen
from tests.gateway.services.conftest import PEN, Clock, Keys, KnownKeys, keyring_of

JUST_BEFORE_S = FRESH_S - 0.001


async def test_a_rotation_is_followed(keyring: Keyring, keys: Keys, clock: Clock) -> None:
    """Within two seconds of a rotation the new generation is the active one, and the old one still opens."""
    assert (await keyring.ring()).active.number == 1
    keys.rotate()
    clock.seconds += FRESH_S
    ring = await keyring.ring()
    assert (ring.version, ring.active.number, sorted(ring.generations)) == (2, 2, [1, 2])


async def test_a_fresh_look_serves(keyring: Keyring, known: KnownKeys, clock: Clock) -> None:
    """Requests within two seconds of a look cost nothing; the first after them looks, once."""
    first = await keyring.ring()
    clock.seconds += JUST_BEFORE_S
    assert await keyring.ring() is first
    assert known.looks == 1
    clock.seconds += 0.001
    await keyring.ring()
    assert known.looks == 2


async def test_unchanged_files_are_not_read_again(keyring: Keyring, keys: Keys) -> None:
    """A look at a manifest that was not replaced opens no key; one at a replaced manifest opens them anew."""
    first = await keyring.look()
    assert await keyring.look() is first
    keys.rotate()
    assert await keyring.look() is not first


async def test_an_older_manifest_is_refused(keyring: Keyring, keys: Keys, clock: Clock) -> None:
    """An older manifest put back is refused by what the database has seen, even by a process that just started."""
    before = keys.file.read_bytes()
    keys.rotate()
    assert (await keyring.ring()).version == 2
    keys.file.write_bytes(before)
    for late in (keyring, keyring_of(keys, keys.known, clock)):
        with pytest.raises(ManifestRefused, match="manifest 1 is older than 2"):
            await late.look()
    assert (await keyring.ring()).version == 2
    clock.seconds += FRESH_S
    with pytest.raises(Unavailable, match="key store"):
        await keyring.ring()


async def test_an_incident_is_audited_once(keyring: Keyring, keys: Keys, known: KnownKeys) -> None:
    """However often a forged manifest is looked at there is one row; after a good look the next one is told again."""
    good = keys.file.read_bytes()
    for incident in (1, 2):
        keys.file.write_bytes(good.replace(b'"version": 1', b'"version": 3'))
        for _ in range(3):
            with pytest.raises(ManifestForged):
                await keyring.look()
        assert len(known.audited) == incident
        keys.file.write_bytes(good)
        await keyring.look()
    row = known.audited[0]
    told = row.event
    assert (told.department, told.event, told.outcome, told.actor) == ("city", "manifest.forged", "refused", "api")
    PEN.verify(row)


async def test_each_kind_of_incident_has_its_row(
    keyring: Keyring, keys: Keys, known: KnownKeys, clock: Clock
) -> None:
    """Rolled back, swapped, clock behind: each is told by its own event, even while another lasts."""
    await keyring.look()
    clock.seconds = -3600.0
    with pytest.raises(ClockBehind):
        await keyring.look()
    clock.seconds = 0.0
    known.version = 9
    with pytest.raises(ManifestRolledBack):
        await keyring.look()
    known.version = 1
    fresh = keyring_of(keys, known, clock)
    wrapped = next((keys.store.directory / "root-1").glob("kek-*"))
    wrapped.write_bytes(b"\0" + wrapped.read_bytes()[1:])
    for _ in range(2):
        with pytest.raises(KeySwapped):
            await fresh.look()
    assert [row.event.event for row in known.audited] == ["clock.behind", "manifest.rolled_back", "key.swapped"]


async def test_an_incident_that_cannot_be_written_is_tried_again(
    keyring: Keyring, keys: Keys, known: KnownKeys
) -> None:
    """Without the database's help the refusal stands all the same, and the row is written as soon as it can be."""
    keys.file.write_bytes(keys.file.read_bytes().replace(b'"version": 1', b'"version": 3'))
    known.deaf = True
    with capture_logs() as logged, pytest.raises(ManifestForged):
        await keyring.look()
    assert [line["event"] for line in logged] == ["incident.not_audited"]
    known.deaf = False
    with pytest.raises(ManifestForged):
        await keyring.look()
    assert len(known.audited) == 1


async def test_what_is_no_incident_is_not_audited(keyring: Keyring, keys: Keys, known: KnownKeys) -> None:
    """A key store that is not mounted is no attack."""
    keys.file.rename(keys.file.with_name("away"))
    with pytest.raises(KeystoreRefused):
        await keyring.look()
    assert known.audited == []


async def test_a_forged_manifest_is_refused(keyring: Keyring, keys: Keys, clock: Clock) -> None:
    """A manifest that somebody edited is not followed."""
    await keyring.ring()
    keys.file.write_bytes(keys.file.read_bytes().replace(b'"version": 1', b'"version": 3'))
    with pytest.raises(ManifestRefused):
        await keyring.look()
    clock.seconds += FRESH_S
    with pytest.raises(Unavailable):
        await keyring.ring()


@pytest.mark.parametrize("lost", ["database", "key store"])
async def test_failed_looks_are_forgiven_for_two_seconds(
    keyring: Keyring, keys: Keys, known: KnownKeys, clock: Clock, lost: str
) -> None:
    """While the last good look is fresh a failed one changes nothing; then it is 503, and good again by itself."""
    away = keys.store.directory.with_name("away")

    def lose() -> None:
        known.away = lost == "database"
        if lost == "key store":
            shutil.move(keys.store.directory, away)

    ring = await keyring.ring()
    lose()
    clock.seconds += JUST_BEFORE_S
    assert await keyring.ring() is ring
    clock.seconds += 0.001
    for _ in range(2):
        with pytest.raises(Unavailable):
            await keyring.ring()
    known.away = False
    if lost == "key store":
        shutil.move(away, keys.store.directory)
    assert await keyring.ring() is ring


async def test_nobody_queues_behind_a_look_that_hangs(
    keyring: Keyring, keys: Keys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that need a look wait for it a bounded time, all of them together, not one after the other."""

    class Hanging(KnownKeys):
        async def manifest_seen(self) -> Seen:
            await asyncio.Event().wait()
            return Seen()

    monkeypatch.setattr(module, "LOOK_TIMEOUT_S", 0.1)
    hanging = keyring_of(keys, Hanging(), clock)
    async with asyncio.timeout(0.5):
        ends = await asyncio.gather(*(hanging.ring() for _ in range(20)), return_exceptions=True)
    assert [type(end) for end in ends] == [Unavailable] * 20


async def test_a_look_is_as_old_as_its_beginning(keys: Keys, clock: Clock) -> None:
    """What a slow look saw is dated by when it began."""

    class Slow(KnownKeys):
        async def manifest_seen(self) -> Seen:
            clock.seconds += JUST_BEFORE_S
            return await super().manifest_seen()

    slow = Slow()
    keyring = keyring_of(keys, slow, clock)
    await keyring.ring()
    clock.seconds += 0.001
    await keyring.ring()
    assert slow.looks == 2
