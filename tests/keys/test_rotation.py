"""Changes of keys on a real PostgreSQL: what each does, what it refuses, and a power cut at every step of it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, product
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, cast

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys import deks, roots
from keys.audit import AuditEvent, AuditRow, Outcome
from keys.deks import DekTable
from keys.errors import (
    DatabaseRefused,
    KeyRefused,
    KeystoreRefused,
    ManifestRolledBack,
    UnknownKey,
)
from keys.files import write_private
from keys.keystore import RESTORING, SET_ASIDE
from keys.manifest import KEYSTORE, Act, Backup, Purpose
from keys.process_keys import HOLDERS, read_process_keys
from keys.ring import Ring
from keys.rotation import Approval, Rotation
from keys.secret import Secret
from keys.states import FOLLOWS, State, leads_to
from tests.keys.commands import RunAsync, configure
from tests.keys.database import City
from tests.keys.scissors import Cut, CutConnection, cutting, until

pytestmark = pytest.mark.server

DAY = timedelta(days=1)
RECOVERY = 35 * DAY
OFFICERS = Approval("ada", "act_1")
DESPITE = Approval("ada", "act_1", despite=True)
ROOT = Path(__file__).parent.parent.parent

Deed = Callable[[Rotation], Awaitable[object]]


@pytest.fixture
def now() -> datetime:
    """The real time: the database dates some things by its own clock."""
    return datetime.now(UTC)


async def do(city: City, *deeds: Deed) -> None:
    """Each as a command of its own."""
    for deed in deeds:
        async with city.changing() as rotation:
            await deed(rotation)


async def move_all(city: City) -> None:
    """Every wrap to the active generation, as `keys rewrap` does."""
    ring = city.ring
    for record, (department, wrapped) in (await city.wraps()).items():
        place = ring.place(department, record)
        new = ring.wrap(place, ring.unwrap(place, wrapped, city.now), city.now)
        await city.owner.execute(
            "UPDATE gateway.deks SET generation = $2, wrapped = $3 WHERE record_id = $1",
            record,
            new.generation,
            new.wrapped,
        )


async def require_in_step(city: City) -> None:
    """Manifest, mirror, files and audit log tell the same story."""
    manifest = city.keys.manifest
    assert await city.version_seen() == manifest.version
    assert await city.generations() == {key.number: key.state for key in manifest.of("kek")}
    assert await city.fingerprint_versions() == {key.number: key.state for key in manifest.of("fingerprint")}
    assert city.keys.foreign() == []
    await require_told(city)
    for purpose in ("kek", "fingerprint", "hpke", "manifest-signing"):
        assert [key.state for key in manifest.of(purpose)].count(State.ACTIVE) == 1
    for entry in manifest.keys:
        if entry.holder == KEYSTORE:
            assert city.store.path(1, entry.id).exists() == (entry.state is not State.DESTROYED)
        else:
            assert entry.number in read_process_keys(city.secrets, entry.holder, entry.purpose)
    await require_own_rows(city)


async def require_told(city: City) -> None:
    """What was set aside stands in the audit log, and is no key of the manifest: least of all a destroyed one."""
    rows = await city.owner.fetch("SELECT subject FROM audit.events WHERE event = 'key.foreign'")
    aside = {name.removeprefix("root-1-") for name in city.aside()}
    assert aside <= {row["subject"] for row in rows}
    assert not aside & {key.id for key in city.keys.manifest.keys}


async def require_own_rows(city: City) -> None:
    """Every audit row is one that `keys` wrote so."""
    for row in await city.owner.fetch("SELECT * FROM audit.events"):
        told = AuditEvent(
            row["department_id"],
            row["event"],
            Outcome(row["outcome"]),
            row["actor"],
            row["subject"],
            row["reason"],
            row["request_id"],
        )
        city.pen.verify(
            AuditRow(row["event_id"], row["occurred_at"], row["process"], told, row["mac_key"], row["mac"])
        )


def states(city: City, purpose: Purpose = "kek", holder: str = KEYSTORE) -> dict[int, str]:
    """The states of one kind of key, by number."""
    return {key.number: str(key.state) for key in city.keys.manifest.of(purpose, holder)}


# --- what each does ---


async def test_a_rotation(city: City) -> None:
    """A new generation is active and the old one retired, in manifest and mirror; no wrap changes; one audit row."""
    before = await city.add_records(6)
    wraps = await city.wraps()
    await do(city, lambda rotation: rotation.rotate(city.now))

    assert states(city) == await city.generations() == {1: "retired", 2: "active"}
    assert await city.opened() == before
    assert await city.wraps() == wraps
    (row,) = await city.owner.fetch("SELECT * FROM audit.events")
    new = city.keys.manifest.key("kek", 2)
    assert (row["event"], row["subject"], row["actor"], row["outcome"]) == ("keys.rotate", new.id, "keys", "done")
    assert city.keys.manifest.act == Act("rotate", new.id)
    await require_in_step(city)


async def test_a_prepared_generation_is_used_by_the_next_rotation(city: City) -> None:
    """It is pending, protects nothing and is prepared once; the rotation makes no other."""
    await do(city, lambda rotation: rotation.prepare(city.now))
    pending = city.keys.manifest.key("kek", 2)
    await do(city, lambda rotation: rotation.prepare(city.now))
    assert states(city) == await city.generations() == {1: "active", 2: "pending"}
    assert city.ring.active.number == 1

    await do(city, lambda rotation: rotation.rotate(city.now))
    assert states(city) == {1: "retired", 2: "active"}
    assert city.keys.manifest.key("kek", 2).id == pending.id
    assert await city.audited() == ["keys.prepare", "keys.rotate"]
    await require_in_step(city)


async def test_retiring(city: City) -> None:
    """A prepared generation takes over from the active one; where none is prepared, retiring is refused."""
    with pytest.raises(KeyRefused, match="`keys rotate` makes its successor and retires it"):
        await do(city, lambda rotation: rotation.retire(1, city.now))
    await do(city, lambda rotation: rotation.prepare(city.now), lambda rotation: rotation.retire(1, city.now))
    assert states(city) == {1: "retired", 2: "active"}

    version = city.keys.manifest.version
    await do(city, lambda rotation: rotation.retire(1, city.now))
    assert city.keys.manifest.version == version
    with pytest.raises(UnknownKey, match=r"there is no kek 3 \(there is: 1, 2\)"):
        await do(city, lambda rotation: rotation.retire(3, city.now))
    await do(city, lambda rotation: rotation.prepare(city.now))
    with pytest.raises(KeyRefused, match="generation 3 is pending: only the active generation can be retired"):
        await do(city, lambda rotation: rotation.retire(3, city.now))
    await require_in_step(city)


async def test_a_compromise_of_the_active_generation(city: City) -> None:
    """Another takes over, never a prepared one; the officers' request stands in manifest and audit row."""
    await city.add_records(3)
    await do(city, lambda rotation: rotation.prepare(city.now))
    await do(city, lambda rotation: rotation.compromise(1, OFFICERS, city.now))

    assert states(city) == {1: "compromised", 2: "pending", 3: "active"}
    assert city.keys.manifest.act == Act("compromise", city.keys.manifest.key("kek", 1).id, "ada", "act_1")
    (row,) = await city.owner.fetch("SELECT actor, reason FROM audit.events WHERE event = 'keys.compromise'")
    assert tuple(row) == ("ada", "act_1")
    assert len(await city.opened()) == 3
    await require_in_step(city)


async def test_a_compromise_of_a_retired_generation(city: City) -> None:
    """Then the active one stays; twice is refused, and so is what the table has no way for."""
    await do(city, lambda rotation: rotation.rotate(city.now))
    await do(city, lambda rotation: rotation.compromise(1, OFFICERS, city.now))
    before = city.files()

    assert states(city) == {1: "compromised", 2: "active"}
    with pytest.raises(KeyRefused, match="generation 1 is compromised: it cannot become compromised"):
        await do(city, lambda rotation: rotation.compromise(1, OFFICERS, city.now))
    assert city.files() == before
    await require_in_step(city)


async def test_a_rotation_of_the_fingerprint_key(city: City) -> None:
    """Two versions stand, the older first in line; the next waits until the oldest is destroyed."""
    await do(city, lambda rotation: rotation.rotate_fingerprint(city.now))

    assert states(city, "fingerprint") == await city.fingerprint_versions() == {1: "retired", 2: "active"}
    assert [key.number for key in city.ring.indexing] == [1, 2]
    with pytest.raises(KeyRefused, match="an older fingerprint key still stands: run `gateway reseal`"):
        await do(city, lambda rotation: rotation.rotate_fingerprint(city.now))
    await do(city, lambda rotation: rotation.destroy("fingerprint", 1, DESPITE, RECOVERY, city.now))
    await do(city, lambda rotation: rotation.rotate_fingerprint(city.now))
    assert states(city, "fingerprint") == {1: "destroyed", 2: "retired", 3: "active"}
    await require_in_step(city)


RENEWED: Sequence[tuple[Purpose, str]] = (
    ("hpke", KEYSTORE),
    ("manifest-signing", KEYSTORE),
    *((purpose, holder) for holder, purpose in HOLDERS),
)


@pytest.mark.parametrize(("purpose", "holder"), RENEWED)
async def test_renewing(city: City, purpose: Purpose, holder: str) -> None:
    """A new key is active; the old one is kept to check with, but for the manifest's, which goes at once."""
    await do(city, lambda rotation: rotation.renew(purpose, [holder], city.now))

    gone = "destroyed" if purpose == "manifest-signing" else "retired"
    assert states(city, purpose, holder) == {1: gone, 2: "active"}
    if holder != KEYSTORE:
        assert list(read_process_keys(city.secrets, holder, purpose)) == [1, 2]
    assert await city.audited() == ["keys.renew"]
    await do(city, lambda rotation: rotation.rotate(city.now))
    await require_in_step(city)


async def test_a_purpose_of_a_later_release_gets_its_first_key(city: City) -> None:
    """A key store that was made before there were close packs has none of their keys; renewing makes number one."""

    async def age(rotation: Rotation) -> None:
        keys = tuple(key for key in rotation.manifest.keys if key.purpose != "close-pack")
        await rotation.change(
            msgspec.structs.replace(rotation.manifest, keys=keys), Act("age", "close-pack"), city.now
        )

    await do(city, age)
    (city.secrets / "admin" / "close-pack-1.key").unlink()
    with pytest.raises(KeystoreRefused, match="`keys rotate --purpose close-pack` does"):
        read_process_keys(city.secrets, "admin", "close-pack")
    await do(city, lambda rotation: rotation.renew("close-pack", ["admin"], city.now))

    assert states(city, "close-pack", "admin") == {1: "active"}
    assert list(read_process_keys(city.secrets, "admin", "close-pack")) == [1]
    await require_in_step(city)


async def test_only_one_process_key_is_renewed(city: City) -> None:
    """The keys of other processes of the same purpose are left alone."""
    await do(city, lambda rotation: rotation.renew("audit-mac", ["worker"], city.now))

    assert {
        holder: len(states(city, "audit-mac", holder)) for holder, purpose in HOLDERS if purpose == "audit-mac"
    } == {"api": 1, "admin": 1, "worker": 2, "reseal": 1, "keys": 1, "owner": 1}


async def test_renewing_those_of_several_processes_is_one_act(city: City) -> None:
    """One manifest and one audit row, by purpose; the new keys are given in the order that was asked for."""
    holders = [holder for holder, purpose in HOLDERS if purpose == "audit-mac"]
    async with city.changing() as rotation:
        renewed = await rotation.renew("audit-mac", holders, city.now)

    manifest = city.keys.manifest
    assert (manifest.version, manifest.act) == (
        2,
        Act("renew", "audit-mac of api, admin, worker, reseal, keys, owner"),
    )
    assert [(key.holder, key.number, key.state) for key in renewed] == [(h, 2, State.ACTIVE) for h in holders]
    assert [manifest.active("audit-mac", holder) for holder in holders] == renewed
    assert await city.audited() == ["keys.renew"]
    await require_in_step(city)


# --- destroying ---


async def test_destroying_a_generation(city: City) -> None:
    """Once nothing depends on it and no backup may need it: its blob is gone, its entry stays, twice is refused."""
    await do(city, lambda rotation: rotation.rotate(city.now))
    entry = city.keys.manifest.key("kek", 1)
    await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))

    assert not city.store.path(1, entry.id).exists()
    left = city.keys.manifest.key("kek", 1)
    assert left == msgspec.structs.replace(entry, state=State.DESTROYED, since=city.now)
    assert list(city.ring.generations) == [2]
    assert await city.audited() == ["keys.destroy", "keys.rotate"]
    with pytest.raises(KeyRefused, match="generation 1 is destroyed: it cannot become destroyed"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    await require_in_step(city)


async def test_the_active_generation_is_not_destroyed(city: City) -> None:
    """Not even by two officers, despite everything."""
    with pytest.raises(KeyRefused, match="generation 1 is active: it cannot become destroyed"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))


async def test_not_while_records_depend_on_it(city: City) -> None:
    """The refusal counts them and names the command that moves them; no officer can overrule it."""
    await city.add_records(7)
    await do(city, lambda rotation: rotation.rotate(city.now))
    before = city.files()

    with pytest.raises(
        KeyRefused, match="generation 1 cannot be destroyed: 7 records depend on it; run `keys rewrap`"
    ):
        await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    assert city.files() == before
    await move_all(city)
    await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    assert len(await city.opened()) == 7


async def test_not_while_it_could_tell_data_keys(city: City) -> None:
    """A compromised generation may have wrapped what others wrap by now: only resealing frees it."""
    await city.add_records(3)
    await do(city, lambda rotation: rotation.rotate(city.now))
    await do(city, lambda rotation: rotation.compromise(1, OFFICERS, city.now))
    await move_all(city)
    assert await city.owner.fetchval("SELECT count(*) FROM gateway.deks WHERE generation = 1") == 0

    with pytest.raises(KeyRefused, match="3 records still have a data key that it could tell; run `gateway reseal`"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    await city.owner.execute("UPDATE gateway.deks SET first_generation = 2")
    await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    assert states(city)[1] == "destroyed"


async def test_not_within_the_recovery_window(city: City) -> None:
    """The window runs from when the last wrap left; two officers may say that it does not matter."""
    await city.add_records(2)
    await do(city, lambda rotation: rotation.rotate(city.now))
    await move_all(city)

    with pytest.raises(
        KeyRefused, match=r"to restore a database backup until 20\d\d-\d\d-\d\d: wait, or .*--despite"
    ):
        await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    await city.owner.execute("UPDATE gateway.key_generations SET emptied_at = emptied_at - interval '34 days'")
    with pytest.raises(KeyRefused, match="may be needed to restore a database backup"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    await city.owner.execute("UPDATE gateway.key_generations SET emptied_at = emptied_at - interval '1 day 1 minute'")
    await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    assert states(city)[1] == "destroyed"


async def test_the_window_of_a_generation_that_was_once_prepared(city: City) -> None:
    """While it was pending it was empty, too; its window runs from when it was emptied after its use."""
    await do(city, lambda rotation: rotation.prepare(city.now))
    async with city.changing() as rotation:
        await rotation.require_unrecoverable(rotation.manifest.key("kek", 2), RECOVERY, city.now)
    await do(city, lambda rotation: rotation.rotate(city.now))
    await city.owner.execute("UPDATE gateway.key_generations SET emptied_at = emptied_at - interval '40 days'")
    await city.add_records(2)
    await do(city, lambda rotation: rotation.rotate(city.now))
    await move_all(city)

    with pytest.raises(KeyRefused, match="generation 2 may be needed to restore a database backup"):
        await do(city, lambda rotation: rotation.destroy("kek", 2, OFFICERS, RECOVERY, city.now))


async def test_a_pending_generation_is_destroyed_at_once(city: City) -> None:
    """It never wrapped anything, so no backup of the database can need it."""
    await do(city, lambda rotation: rotation.prepare(city.now))
    await do(city, lambda rotation: rotation.destroy("kek", 2, OFFICERS, RECOVERY, city.now))

    assert states(city) == await city.generations() == {1: "active", 2: "destroyed"}
    await require_in_step(city)


async def test_not_while_a_key_backup_holds_it(city: City) -> None:
    """The refusal names the backup, until it is said to be destroyed; two officers may overrule it."""
    await do(city, lambda rotation: rotation.rotate(city.now))
    await city.owner.execute("UPDATE gateway.key_generations SET emptied_at = now() - interval '40 days'")
    backups = tuple(Backup(f"backup_{n}", city.now, ("ada",), (1, 2)) for n in (1, 2))
    await do(city, lambda rotation: register(rotation, *backups))
    with pytest.raises(KeyRefused, match="lies in key backup backup_1: destroy that copy"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    forgotten = tuple(msgspec.structs.replace(backup, forgotten=city.now) for backup in backups)
    await do(city, lambda rotation: register(rotation, forgotten[0], backups[1]))
    with pytest.raises(KeyRefused, match="lies in key backup backup_2"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    await do(city, lambda rotation: register(rotation, *forgotten))
    await do(city, lambda rotation: rotation.destroy("kek", 1, OFFICERS, RECOVERY, city.now))
    assert states(city)[1] == "destroyed"


async def test_two_officers_may_destroy_despite_a_backup(city: City) -> None:
    """In writing; what is erased is then gone from every backup of the database as well."""
    await do(city, lambda rotation: rotation.rotate(city.now))
    kept = Backup("backup_1", city.now, ("ada",), (1,))
    await do(city, lambda rotation: register(rotation, kept))
    await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    assert states(city)[1] == "destroyed"


async def test_a_fingerprint_key_that_cards_are_known_by(city: City) -> None:
    """It is not destroyed before every card and every idempotency row is known under the newer one, too."""
    await do(city, lambda rotation: rotation.rotate_fingerprint(city.now))
    add = "INSERT INTO gateway.fingerprints VALUES ('parks', $1, $2, 'fp_1', now())"
    await city.owner.execute(add, 1, bytes(32))
    await city.owner.execute(
        """INSERT INTO gateway.idempotency VALUES
           ('parks', 'r', 'k', $1, $1, 1, 'tok', NULL, NULL, now(), now())""",
        bytes(32),
    )

    for left in (2, 1):
        with pytest.raises(
            KeyRefused, match=f"fingerprint key 1 cannot be destroyed: {left} cards are known by it alone"
        ):
            await do(city, lambda rotation: rotation.destroy("fingerprint", 1, DESPITE, RECOVERY, city.now))
        await city.owner.execute(add, 2, bytes([left]) * 32) if left == 2 else None
    await city.owner.execute("UPDATE gateway.idempotency SET card_key_version = 2")
    await do(city, lambda rotation: rotation.destroy("fingerprint", 1, DESPITE, RECOVERY, city.now))
    assert await city.fingerprint_versions() == {1: "destroyed", 2: "active"}


async def test_a_fingerprint_key_that_a_backup_may_need(city: City) -> None:
    """A restored database knows its cards by the old version, so that one stays as long, and while a copy has it."""
    await do(city, lambda rotation: rotation.rotate_fingerprint(city.now))
    retired, kept = city.now, Backup("backup_1", city.now, ("ada",), (1,), roots=(1,))

    def destroy(rotation: Rotation) -> Awaitable[object]:
        return rotation.destroy("fingerprint", 1, OFFICERS, RECOVERY, city.now)

    city.now = retired + RECOVERY - timedelta(seconds=1)
    with pytest.raises(KeyRefused, match=r"^fingerprint key 1 may be needed to restore a database backup until 20"):
        await do(city, destroy)
    city.now = retired + RECOVERY
    await do(city, lambda rotation: register(rotation, kept))
    with pytest.raises(KeyRefused, match=r"^fingerprint key 1 lies in key backup backup_1: destroy that copy"):
        await do(city, destroy)
    await do(city, lambda rotation: register(rotation, msgspec.structs.replace(kept, forgotten=city.now)))
    await do(city, destroy)
    assert states(city, "fingerprint")[1] == "destroyed"


async def register(rotation: Rotation, *backups: Backup) -> None:
    """These are the copies that there are."""
    following = msgspec.structs.replace(rotation.manifest, backups=backups)
    await rotation.change(following, Act("backup", "b"), rotation.manifest.written)


@pytest.mark.parametrize("purpose", ["audit-mac", "api-digest", "audit-head", "staff-sealing", "close-pack"])
async def test_what_must_stay_checkable_is_not_destroyed(city: City, purpose: Purpose) -> None:
    """Keys that only sign or check are never destroyed by hand."""
    holder = next(holder for holder, wanted in HOLDERS if wanted == purpose)
    await do(city, lambda rotation: rotation.renew(purpose, [holder], city.now))
    key = city.keys.manifest.key(purpose, 1, holder)

    async with city.changing() as rotation:
        with pytest.raises(KeyRefused, match=f"^{key.title} is not destroyed by hand: what it signed must stay"):
            await rotation.require_unused(key)


async def test_an_hpke_key_can_go(city: City) -> None:
    """Nothing at rest depends on it: only its time has to be over."""
    await do(city, lambda rotation: rotation.renew("hpke", [KEYSTORE], city.now))
    city.now += RECOVERY
    await do(city, lambda rotation: rotation.destroy("hpke", 1, OFFICERS, RECOVERY, city.now))

    assert states(city, "hpke") == {1: "destroyed", 2: "active"}
    await require_in_step(city)


# --- a power cut at every step ---


@dataclass(frozen=True)
class Command:
    """A deed, its name, and what has to be done before it."""

    name: str
    deed: Callable[[Rotation, datetime], Awaitable[object]]
    before: Sequence[Callable[[Rotation, datetime], Awaitable[object]]] = ()

    def __str__(self) -> str:
        return self.name


def rotate(rotation: Rotation, now: datetime) -> Awaitable[object]:
    return rotation.rotate(now)


def prepare(rotation: Rotation, now: datetime) -> Awaitable[object]:
    return rotation.prepare(now)


def rotate_fingerprint(rotation: Rotation, now: datetime) -> Awaitable[object]:
    return rotation.rotate_fingerprint(now)


async def lay_aside(rotation: Rotation, now: datetime) -> None:
    """A copy of generation 1 that somebody put among the keys, and that a command has taken away."""
    path = rotation.keys.store.path(1, rotation.manifest.key("kek", 1).id)
    aside = rotation.keys.store.directory / SET_ASIDE / f"root-1-{path.name}"
    write_private(aside, path.read_bytes(), replace=False)


async def nothing(rotation: Rotation, now: datetime) -> None:
    """What every command does before its own work."""


def renew(purpose: Purpose, *holders: str) -> Callable[[Rotation, datetime], Awaitable[object]]:
    return lambda rotation, now: rotation.renew(purpose, holders or [KEYSTORE], now)


def compromise(number: int) -> Callable[[Rotation, datetime], Awaitable[object]]:
    return lambda rotation, now: rotation.compromise(number, OFFICERS, now)


def destroy(purpose: Purpose) -> Callable[[Rotation, datetime], Awaitable[object]]:
    return lambda rotation, now: rotation.destroy(purpose, 1, DESPITE, RECOVERY, now)


ASIDE = "destroy what lies aside as well"
COMMANDS = {
    "rotate": Command("rotate", rotate),
    "rotate to a prepared one": Command("rotate", rotate, (prepare,)),
    "prepare": Command("prepare", prepare),
    "rotate-fingerprint": Command("rotate-fingerprint", rotate_fingerprint),
    "compromise the active one": Command("compromise", compromise(1)),
    "compromise a retired one": Command("compromise", compromise(1), (rotate,)),
    "destroy a generation": Command("destroy", destroy("kek"), (rotate,)),
    "destroy a fingerprint key": Command("destroy", destroy("fingerprint"), (rotate_fingerprint,)),
    ASIDE: Command("destroy", destroy("kek"), (rotate, lay_aside)),
    "destroy an hpke key": Command("destroy", destroy("hpke"), (renew("hpke"),)),
    "renew hpke": Command("renew", renew("hpke")),
    "renew manifest-signing": Command("renew", renew("manifest-signing")),
    "renew audit-mac of two": Command("renew", renew("audit-mac", "worker", "keys")),
}
TABLES = (
    *("audit.events", "gateway.deks"),
    *("gateway.fingerprint_versions", "gateway.key_generations", "gateway.key_manifest"),
)
"""In the order in which they can be emptied."""


class Kept:
    """A city to which one can come back."""

    def __init__(self, city: City, folder: Path) -> None:
        self._city = city
        self._parts = [(part, folder / part.name) for part in (city.store.directory, city.secrets)]

    async def keep(self) -> None:
        """Remember it as it is now."""
        for part, copy in self._parts:
            copytree(part, copy)
        for table in TABLES:
            await self._city.owner.execute(f"CREATE TEMP TABLE {self._copy(table)} AS TABLE {table}")

    async def come_back(self) -> None:
        """As it was, but for the records themselves."""
        for part, copy in self._parts:
            rmtree(part)
            copytree(copy, part)
        statements = [f"DELETE FROM {table}" for table in TABLES]
        statements += [f"INSERT INTO {table} TABLE {self._copy(table)}" for table in reversed(TABLES)]
        await self._city.owner.execute("; ".join(statements))

    async def forget(self) -> None:
        """The next test keeps another."""
        for table in TABLES:
            await self._city.owner.execute(f"DROP TABLE IF EXISTS {self._copy(table)}")

    @staticmethod
    def _copy(table: str) -> str:
        return "kept_" + table.partition(".")[2]


@asynccontextmanager
async def kept(city: City, folder: Path) -> AsyncIterator[Kept]:
    """A city to come back to."""
    found = Kept(city, folder)
    await found.keep()
    try:
        yield found
    finally:
        await found.forget()


async def summary(city: City) -> tuple[object, ...]:
    """What an act has done, but for the bytes and ids of new keys, and for the traces of what was cleared away."""
    manifest = city.keys.manifest
    keys = sorted((key.purpose, key.holder, key.number, str(key.state)) for key in manifest.keys)
    files = sorted(path.parent.name for path in city.store.directory.glob("root-*/*"))
    audited = [event for event in await city.audited() if event != "key.foreign"]
    return manifest.version, manifest.act.name, keys, files, audited


async def cut_off(city: City, command: Command, monkeypatch: pytest.MonkeyPatch, steps: int) -> bool:
    """Run a command that is cut off after so many steps; false when it had no more than that."""
    connection = await city.postgres.connect("keys")
    try:
        with cutting(monkeypatch, steps) as scissors:
            table = DekTable(cast("Any", CutConnection(connection, scissors)))
            try:
                rotation = await Rotation(city.keys, table, city.pen, city.secrets).begin(city.now)
                await command.deed(rotation, city.now)
            except Cut:
                return True
        return False
    finally:
        await connection.close()


async def finish(city: City, command: Command) -> None:
    """The same command once more, as its person would run it."""
    async with city.changing() as rotation:
        if rotation.finished is None or rotation.finished.name != command.name:
            await command.deed(rotation, city.now)


def drafts(city: City) -> list[Path]:
    """What is left of files that were not written to their end."""
    return [Path(path) for path in city.files() if Path(path).name.startswith(".")]


async def require_usable(city: City, deks: dict[str, bytes]) -> None:
    """Whatever is half done: the store opens, what it makes active may be used, and every data key opens."""
    ring = city.ring
    assert (await city.generations())[ring.active.number] == "active"
    assert (await city.fingerprint_versions())[ring.fingerprint.number] == "active"
    assert await city.opened() == deks


@pytest.mark.parametrize("name", COMMANDS)
async def test_cut_off_at_every_step(city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After each cut everything still works, and the same command ends where it would have without the cut."""
    command = COMMANDS[name]
    for deed in command.before:
        async with city.changing() as rotation:
            await deed(rotation, city.now)
    deks = await city.add_records(3)
    async with kept(city, tmp_path / "kept") as before:
        await finish(city, command)
        expected = await summary(city)
        for steps in count():
            await before.come_back()
            if not await cut_off(city, command, monkeypatch, steps):
                break
            await require_usable(city, deks)
            published = city.keys.manifest.act.name == command.name and city.keys.manifest.version == expected[0]
            keys_published = city.keys.manifest.keys

            seen = await city.version_seen()
            if published and seen == city.keys.manifest.version:
                async with city.changing():
                    pass
            else:
                await finish(city, command)
            assert await summary(city) == expected, f"cut off after {steps} steps"
            assert not published or city.keys.manifest.keys == keys_published, "the act was done twice"
            assert drafts(city) == []
            await require_in_step(city)
            await require_usable(city, deks)
        assert steps > 8


@pytest.mark.parametrize(
    "place",
    [
        "keystore/.manifest.1",
        "keystore/root-1/.kek-2-0123456789abcdef.4194304",
        "keystore/root-2/.hpke-1-0123456789abcdef.23",
        "keystore/acts/.act_0.request.7",
        "keystore/ceremonies/.20260314T150926-root.txt.7",
        "secrets/keys/.audit-mac-2.key.77",
        "secrets/api/.api-digest-2.key.77",
        "secrets/worker/.audit-head-13.key.77",
    ],
)
async def test_a_draft_is_cleared_away(city: City, place: str) -> None:
    """What a killed writer has left is overwritten and gone after the next command, and is no stranger's key."""
    draft = city.store.directory.parent / place
    write_private(draft, b"half a secret", replace=False)
    with draft.open("rb") as held:
        async with city.changing():
            pass
        assert held.read() == bytes(len(b"half a secret"))

    assert drafts(city) == []
    assert city.aside() == {}
    assert await city.audited() == []


async def test_a_copy_under_trial_is_wiped(city: City) -> None:
    """What a restore that was killed has left lies under no root for long: the next command overwrites all of it."""
    folder = city.store.directory / RESTORING
    keys = [folder / "store" / "root-1" / "kek-1-0123456789abcdef", folder / "secrets" / "api" / "audit-mac-1.key"]
    for path in keys:
        write_private(path, b"a key", replace=False)
    with keys[0].open("rb") as one, keys[1].open("rb") as other:
        async with city.changing():
            pass
        assert [one.read(), other.read()] == [bytes(5), bytes(5)]
    assert not folder.exists()


async def test_what_is_no_key_among_the_keys(city: City, tmp_path: Path) -> None:
    """A pipe, a folder or a link, by the name of a destroyed key, stops no command: it is set aside."""
    await do(city, DEEDS["rotate"], lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    path, precious = city.store.path(1, city.keys.manifest.key("kek", 1).id), tmp_path / "precious"
    precious.write_bytes(b"precious")
    aside = city.store.directory / SET_ASIDE / f"root-1-{path.name}"
    for make in (os.mkfifo, os.mkdir, lambda at: at.symlink_to(precious)):
        make(path)
        for _ in range(2):  # it is there when the second begins
            await do(city, DEEDS["prepare"])
        assert not os.path.lexists(path)
        assert os.path.lexists(aside)
        aside.rmdir() if aside.is_dir() else aside.unlink()
    assert precious.read_bytes() == b"precious"


async def test_a_destroyed_key_with_a_second_name(city: City, tmp_path: Path) -> None:
    """A hard link elsewhere keeps it alive: the command says so, and empties no file that may be somebody else's."""
    await do(city, DEEDS["rotate"])
    path = city.store.path(1, city.keys.manifest.key("kek", 1).id)
    (tmp_path / "other").hardlink_to(path)
    wrapped = path.read_bytes()
    with pytest.raises(KeystoreRefused, match=r"has another name \(a hard link\): remove that first$"):
        await do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    assert (tmp_path / "other").read_bytes() == wrapped
    (tmp_path / "other").unlink()
    await do(city, DEEDS["prepare"])
    assert not path.exists()


async def test_what_is_no_draft_stays(city: City) -> None:
    """Neither a file without a writer's number nor what others write beside the processes' keys is touched."""
    kept = [city.store.directory / ".manifest", city.store.directory / "acts" / "act_1.5"]
    kept += [city.secrets / "keys" / name for name in (".database.password.5", ".audit-mac-1.key", "audit-mac-7.key")]
    for path in kept:
        write_private(path, bytes(32), replace=False)
    before = city.files()
    async with city.changing():
        pass

    assert city.files() == before


async def test_drafts_stay_while_another_command_writes(city: City) -> None:
    """They may be its own: who does not get the lock clears nothing away."""
    async with city.changing():
        write_private(city.store.directory / ".manifest.1", b"half", replace=False)
        with pytest.raises(KeystoreRefused, match=ANOTHER):
            await do(city, DEEDS["rotate"])
        assert [path.name for path in drafts(city)] == [".manifest.1"]


async def test_what_was_left_is_told_before_it_goes(city: City) -> None:
    """A key that no manifest names is set aside by the next command, with an audit row that names it."""
    path = city.store.path(1, "kek-2-0123456789abcdef")
    write_private(path, b"left", replace=False)
    async with city.changing() as rotation:
        assert rotation.finished is None

    assert not path.exists()
    assert city.aside() == {f"root-1-{path.name}": b"left"}
    (row,) = await city.owner.fetch("SELECT event, outcome, subject FROM audit.events")
    assert tuple(row) == ("key.foreign", "refused", path.name)
    await require_in_step(city)


async def test_nothing_goes_without_a_trace(city: City, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at any step, a file that no manifest names lies where it lay, or stands in the audit log."""
    path = city.store.path(1, "kek-2-0123456789abcdef")
    write_private(path, b"left", replace=False)
    async with kept(city, tmp_path / "kept") as before:
        for steps in count():
            await before.come_back()
            if not await cut_off(city, Command("", nothing), monkeypatch, steps):
                break
            assert path.exists() or await city.audited() == ["key.foreign"]
            assert path.exists() != bool(city.aside())
        assert steps > 3
        assert city.aside() == {f"root-1-{path.name}": b"left"}


async def put_older_back(city: City) -> tuple[Path, bytes, bytes]:
    """Manifest 1 while generation 2 wraps records. Gives generation 2's file, what is in it, and manifest 2."""
    manifest = city.store.directory / "manifest"
    older = manifest.read_bytes()
    await do(city, DEEDS["rotate"])
    path, newer = city.store.path(1, city.keys.manifest.key("kek", 2).id), manifest.read_bytes()
    wrapped = path.read_bytes()
    await city.add_records(3)
    manifest.write_bytes(older)
    await city.owner.execute("UPDATE gateway.key_manifest SET version = 1")
    return path, wrapped, newer


async def test_what_an_older_manifest_does_not_name_is_kept(city: City) -> None:
    """Database and manifest of yesterday restored, today's key is set aside byte for byte: put back, it opens."""
    path, wrapped, newer = await put_older_back(city)
    async with city.changing():
        pass

    aside = city.store.directory / "set-aside" / f"root-1-{path.name}"
    assert not path.exists()
    assert city.aside() == {aside.name: wrapped}
    assert (aside.parent.stat().st_mode & 0o777, aside.stat().st_mode & 0o777) == (0o700, 0o600)
    assert await city.audited() == ["key.foreign", "keys.rotate"]

    aside.rename(path)
    (city.store.directory / "manifest").write_bytes(newer)
    assert len(await city.opened()) == 3
    async with city.changing() as rotation:
        assert rotation.finished == rotation.manifest.act
    await require_in_step(city)


async def test_no_copy_of_a_destroyed_key_stays_aside(city: City) -> None:
    """A key that was set aside once, and put back from a backup, is gone from both places when it is destroyed."""
    path, wrapped, newer = await put_older_back(city)
    async with city.changing():
        pass
    write_private(path, wrapped, replace=False)
    (city.store.directory / "manifest").write_bytes(newer)
    await do(city, DEEDS["rotate"])
    await move_all(city)
    await do(city, lambda rotation: rotation.destroy("kek", 2, DESPITE, RECOVERY, city.now))

    assert not path.exists()
    assert [name for name, content in city.files().items() if content == wrapped] == []


async def test_a_commands_own_key_is_used_for_the_next_row(city: City) -> None:
    """After the MAC key of `keys` was renewed its rows name the new one; the older rows still verify."""
    await do(
        city,
        lambda rotation: rotation.renew("audit-mac", ["keys"], city.now),
        lambda rotation: rotation.rotate(city.now),
    )

    rows = await city.owner.fetch("SELECT event, mac_key FROM audit.events ORDER BY mac_key")
    assert [tuple(row) for row in rows] == [("keys.renew", 1), ("keys.rotate", 2)]
    await require_own_rows(city)


# --- beside writers ---


WRITE = """
INSERT INTO gateway.deks (department_id, record_id, generation, first_generation, wrapped)
SELECT 'parks', $1, $2, $2, $3 WHERE EXISTS
  (SELECT FROM gateway.key_generations WHERE generation = $2 AND state = 'active')"""
"""As the api process inserts a data key: nothing unless its generation is active at that moment."""


@asynccontextmanager
async def writer(city: City) -> AsyncIterator[asyncpg.Connection]:
    """An api process in a transaction that it does not end yet."""
    connection = await city.postgres.connect("api")
    try:
        await connection.execute("BEGIN; SET LOCAL gateway.department = 'parks'")
        yield connection
    finally:
        connection.terminate()


async def write(connection: asyncpg.Connection, ring: Ring, record: str, now: datetime) -> bool:
    """Insert one data key under the ring's active generation; false when the mirror refuses."""
    _, wrapped = ring.new_dek(ring.place("parks", record), now)
    return bool(await connection.execute(WRITE, record, wrapped.generation, wrapped.wrapped) == "INSERT 0 1")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for writers in vain asks again at once."""
    monkeypatch.setattr(deks, "LOCK_PAUSE_S", 0.02)


DEEDS: dict[str, Deed] = {
    "rotate": lambda rotation: rotation.rotate(datetime.now(UTC)),
    "compromise": lambda rotation: rotation.compromise(1, OFFICERS, datetime.now(UTC)),
    "prepare": lambda rotation: rotation.prepare(datetime.now(UTC)),
}
STOPPING = ("rotate", "compromise")
"""Those after which the old generation protects nothing new."""


@pytest.mark.parametrize("name", STOPPING)
async def test_who_wrote_before_is_waited_for(city: City, impatient: None, name: str) -> None:
    """The command returns when the last transaction has ended that wrote under the old generation, and not before."""
    ring = city.ring
    async with writer(city) as slow:
        assert await write(slow, ring, "tok_slow", city.now)
        command = asyncio.create_task(do(city, DEEDS[name]))
        await until(lambda: refused(city, 1))
        await asyncio.sleep(0.3)
        assert not command.done()
        assert await city.version_seen() == 1

        await slow.execute("COMMIT")
        await command
    assert await city.owner.fetchval("SELECT generation FROM gateway.deks WHERE record_id = 'tok_slow'") == 1
    assert await city.version_seen() == 2
    await require_in_step(city)


@pytest.mark.parametrize("name", STOPPING)
async def test_who_writes_later_is_refused(city: City, impatient: None, name: str) -> None:
    """An api process with the old ring writes nothing once the mirror has changed, however old its transaction."""
    old = city.ring
    async with writer(city) as slow, writer(city) as late:
        assert await write(slow, old, "tok_slow", city.now)
        command = asyncio.create_task(do(city, DEEDS[name]))
        await until(lambda: refused(city, 1))

        assert not await write(late, old, "tok_late", city.now)
        assert await write(late, city.ring, "tok_late", city.now)
        await late.execute("COMMIT")
        await slow.execute("COMMIT")
        await command
    assert {record: wrapped.generation for record, (_, wrapped) in (await city.wraps()).items()} == {
        "tok_slow": 1,
        "tok_late": 2,
    }


async def refused(city: City, generation: int) -> bool:
    """Whether the mirror refuses what is new under a generation."""
    return (await city.generations())[generation] != "active"


async def test_writers_go_on_while_it_waits(city: City, impatient: None) -> None:
    """Waiting locks nothing, so that a long transaction holds nobody else up."""
    async with writer(city) as slow:
        assert await write(slow, city.ring, "tok_slow", city.now)
        command = asyncio.create_task(do(city, DEEDS["rotate"]))
        await until(lambda: refused(city, 1))
        for index in range(10):
            async with writer(city) as other, asyncio.timeout(1):
                assert await write(other, city.ring, f"tok_{index}", city.now)
                await other.execute("COMMIT")
        assert not command.done()
        await slow.execute("ROLLBACK")
        await command
    assert len(await city.wraps()) == 10


async def test_a_transaction_that_does_not_end(city: City, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gives up and says what to do; the old generation is refused already; the next command finishes."""
    monkeypatch.setattr(deks, "LOCK_TRIES_MAX", 2)
    async with writer(city) as stuck:
        assert await write(stuck, city.ring, "tok_stuck", city.now)
        with pytest.raises(
            DatabaseRefused, match="a transaction has been writing for a minute: end it, then run this"
        ):
            await do(city, DEEDS["rotate"])
        assert await city.generations() == {1: "retired", 2: "active"}
        assert await city.version_seen() == 1
        monkeypatch.setattr(deks, "LOCK_TRIES_MAX", 1)
        with pytest.raises(DatabaseRefused):
            await do(city, DEEDS["rotate"])

    async with city.changing() as rotation:
        assert rotation.finished == rotation.manifest.act
        assert rotation.manifest.act.name == "rotate"
    assert await city.audited() == ["keys.rotate"]
    await require_in_step(city)


async def test_dependents_are_counted_after_the_last_writer(city: City, impatient: None) -> None:
    """A data key that is written while `destroy` begins is waited for, and counts."""
    old = city.ring
    await do(city, DEEDS["rotate"])
    await city.owner.execute("UPDATE gateway.key_generations SET state = 'active' WHERE generation = 1")
    async with writer(city) as slow:
        assert await write(slow, old, "tok_slow", city.now)
        command = asyncio.create_task(
            do(city, lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
        )
        await asyncio.sleep(0.2)
        assert not command.done()
        await slow.execute("COMMIT")
        with pytest.raises(KeyRefused, match="1 records depend on it"):
            await command


# --- two at once ---


ANOTHER = "another `keys` command is changing the key store: wait until it has ended"


async def test_two_at_once(city: City) -> None:
    """The second is refused while the first lives, however that ends; then it may."""
    async with city.changing() as first:
        with pytest.raises(KeystoreRefused, match=f"^{ANOTHER}$"):
            await do(city, DEEDS["rotate"])
        await first.rotate(city.now)
    await do(city, DEEDS["rotate"])
    assert states(city) == {1: "retired", 2: "retired", 3: "active"}
    await require_in_step(city)


async def test_one_that_has_just_ended(city: City) -> None:
    """Who comes while the other one ends waits for it, and is not refused."""
    async with city.changing():
        second = asyncio.create_task(do(city, DEEDS["rotate"]))
        await asyncio.sleep(0.3)
        assert not second.done()
    await second
    assert states(city) == {1: "retired", 2: "active"}


async def test_many_at_once(city: City) -> None:
    """Of several that start together each makes a generation or is refused; nobody's work is lost or cleared away."""
    ended = await asyncio.gather(*(do(city, DEEDS["rotate"]) for _ in range(6)), return_exceptions=True)

    done = [each for each in ended if each is None]
    assert {str(each) for each in ended if each is not None} <= {ANOTHER}
    assert len(states(city)) == 1 + len(done) > 1
    assert await city.audited() == ["keys.rotate"] * len(done)
    await require_in_step(city)


@pytest.mark.parametrize("killed", [False, True])
async def test_another_command_between_opening_and_lock(city: City, killed: bool) -> None:
    """What it published stands: its key is not cleared away as a stranger's, nor is the manifest taken for old."""
    async with city.table() as table:
        waiting = Rotation(city.keys, table, city.pen, city.secrets)
        if killed:
            async with city.table() as other:
                dying = await Rotation(city.keys, other, city.pen, city.secrets).begin(city.now)
                made = dying.keys.make_key("kek", State.ACTIVE, city.now)
                following = dying.manifest.with_key(made).moved(dying.manifest.active("kek"), State.RETIRED, city.now)
                await other.announce(following)
                dying.keys.publish(following, Act("rotate", made.id), city.now)
        else:
            await do(city, DEEDS["rotate"])
        await until(lambda: free(city))
        deks = await city.add_records(3)
        await waiting.begin(city.now)
        assert (waiting.finished is not None) == killed

    assert states(city) == {1: "retired", 2: "active"}
    assert await city.opened() == deks
    assert await city.audited() == ["keys.rotate"]
    await require_in_step(city)


async def free(city: City) -> bool:
    """Whether nobody holds the lock of commands that change keys."""
    return not await city.owner.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")


async def test_an_older_key_store_is_refused_before_anything(city: City, tmp_path: Path) -> None:
    """Nothing is cleared away as foreign, though newer keys lie beside the older manifest."""
    older = (city.store.directory / "manifest").read_bytes()
    await do(city, DEEDS["rotate"])
    (city.store.directory / "manifest").write_bytes(older)
    before = city.files()

    with pytest.raises(ManifestRolledBack):
        await do(city, DEEDS["rotate"])
    assert city.files() == before


# --- going on from an older key store ---


async def catch_up(city: City) -> None:
    """As `keys restore --older` does."""
    async with city.table() as table:
        await Rotation(city.keys, table, city.pen, city.secrets).catch_up("ada", city.now)
    await until(lambda: free(city))


async def mirror(city: City, generation: int, state: State) -> None:
    """Let the database say this of a generation."""
    await city.owner.execute(
        "UPDATE gateway.key_generations SET state = $2 WHERE generation = $1", generation, str(state)
    )


LED = {State.PENDING: "prepare", State.RETIRED: "rotate", State.COMPROMISED: "rotate compromise"}
"""How generation 1, or the prepared one, comes to a state."""


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        (State.PENDING, State.RETIRED),
        (State.PENDING, State.DESTROYED),
        (State.RETIRED, State.COMPROMISED),
        (State.RETIRED, State.DESTROYED),
        (State.COMPROMISED, State.DESTROYED),
    ],
)
async def test_catching_up_goes_on(city: City, present: State, wanted: State) -> None:
    """What the database heard of later holds, however many moves away; only what is destroyed loses its file."""
    await do(city, *(DEEDS[name] for name in LED[present].split()))
    key = next(key for key in city.keys.manifest.of("kek") if key.state is present)
    await mirror(city, key.number, wanted)
    await city.owner.execute("UPDATE gateway.key_manifest SET version = 40")
    city.now += DAY
    await catch_up(city)

    manifest = city.keys.manifest
    assert manifest.key("kek", key.number) == msgspec.structs.replace(key, state=wanted, since=city.now)
    assert manifest.version == 41
    assert manifest.act.actor == "ada"
    assert {k.number for k in manifest.of("kek") if k.since == city.now} == {key.number}
    await require_in_step(city)


async def test_catching_up_past_a_signing_key(city: City) -> None:
    """Where the database knows of a newer signing key, the manifest gets a newer one still: else it is refused."""
    await city.owner.execute("UPDATE gateway.key_manifest SET version = 40, signing_key = 3")
    await catch_up(city)

    assert city.keys.manifest.stands == (41, 4)
    assert states(city, "manifest-signing") == {1: "destroyed", 4: "active"}
    await do(city, DEEDS["rotate"])
    await require_in_step(city)


@pytest.mark.parametrize("wanted", [State.PENDING, State.ACTIVE, State.RETIRED])
async def test_catching_up_never_leads_back(city: City, wanted: State) -> None:
    """Whoever can write to the database cannot make a compromised generation active again; nothing is changed."""
    await do(city, DEEDS["rotate"], DEEDS["compromise"])
    await mirror(city, 1, wanted)
    before = city.files()

    told = f"^generation 1 is compromised here and {wanted} in the database: one of them is false$"
    with pytest.raises(KeyRefused, match=told):
        await catch_up(city)
    assert city.files() == before
    assert await city.generations() == {1: wanted, 2: "active"}


async def test_catching_up_brings_nothing_back(city: City) -> None:
    """What is destroyed here stays so, whatever the database says."""
    await do(city, DEEDS["rotate"], lambda rotation: rotation.destroy("kek", 1, DESPITE, RECOVERY, city.now))
    await mirror(city, 1, State.RETIRED)

    with pytest.raises(KeyRefused, match=r"^generation 1 is destroyed here and retired in the database"):
        await catch_up(city)


def reached(present: State) -> set[State]:
    """Every state that some number of single moves comes to."""
    found: set[State] = set()
    while further := {after for state in {present, *found} for after in FOLLOWS[state]} - found:
        found |= further
    return found


@given(present=st.sampled_from(State), wanted=st.sampled_from(State))
def test_what_leads_where(present: State, wanted: State) -> None:
    """A state leads to just those that moves of the table reach from it, so never to itself."""
    assert leads_to(present, wanted) == (wanted in reached(present))
    assert not (leads_to(present, wanted) and leads_to(wanted, present))


@given(data=st.data(), present=st.sampled_from(State))
def test_every_walk_leads_on(data: st.DataObject, present: State) -> None:
    """On any walk along the table each state leads to all that came after it, and to none that came before."""
    walk = [present]
    while after := sorted(FOLLOWS[walk[-1]]):
        walk.append(data.draw(st.sampled_from(after)))

    for one, other in product(range(len(walk)), repeat=2):
        assert leads_to(walk[one], walk[other]) == (one < other)


# --- killed ---


KILLS = 20
CHEAPLY = (
    "from keys import passphrase as p; p.OPERATIONS, p.MEMORY_KIB = 1, 8; from keys.cli.main import main; main()"
)
"""The command line, but for the price of Argon2id."""


@pytest.fixture
def root_uri(tmp_path: Path, cheap_passphrases: None) -> str:
    """Where the root key lies, for processes of their own."""
    write_private(tmp_path / "passphrase", b"correct horse battery staple", replace=False)
    return f"file:{tmp_path}/root.key?passphrase_file={tmp_path}/passphrase"


def keys_process(*arguments: str) -> subprocess.Popen[bytes]:
    """A real `keys` process."""
    return subprocess.Popen(
        [sys.executable, "-c", CHEAPLY, *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def kill_at_random(city: City, process: subprocess.Popen[bytes], longest_s: float) -> None:
    """`kill -9`, some time after the process has begun to change keys."""
    async with asyncio.timeout(60):
        while await free(city) and process.poll() is None:
            await asyncio.sleep(0.001)
        await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311 - a moment, not a secret
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.communicate)
        await until(lambda: free(city))


async def test_killed_at_random_moments(city: City, root_uri: str, tmp_path: Path, run_async: RunAsync) -> None:
    """After twenty kills the next `keys rotate` finishes, everything is in step, and `keys verify` adds up."""

    def nobody(what: str) -> Secret[str]:
        raise AssertionError(what)

    city = await with_root(city, roots.create_root(root_uri, nobody), tmp_path)
    config = str(configure(tmp_path, city.postgres, root_uri))
    deks = await city.add_records(60)
    for _ in range(KILLS):
        await kill_at_random(city, keys_process("rotate", "--config", config), 0.06)
        await require_usable(city, deks)

    ran = await run_async("rotate", "--config", config)
    assert (ran.code, ran.errors) == (0, "")
    await require_in_step(city)
    assert (await city.audited()).count("keys.rotate") == len(states(city)) - 1
    ran = await run_async("verify", "--config", config)
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output.startswith("60 records: 60 open, 0 do not.\n")
    await require_usable(city, deks)


async def with_root(city: City, root: Any, folder: Path) -> City:
    """The same city, its key store made anew under this root."""
    entry = city.keys.manifest.root
    rmtree(city.store.directory)
    rmtree(city.secrets)
    city.root = root
    city.store.initialise(root, entry, city.secrets, city.now)
    return city
