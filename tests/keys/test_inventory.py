"""The inventory: everything about every key but its bytes; and what is due, told in time and in plain words."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from keys.inventory import ALGORITHMS, Dependents, due, inventory
from keys.keystore import Keystore
from keys.manifest import KEYSTORE, Backup, Custodian, Manifest, Purpose, RootEntry
from keys.officers import Officer
from keys.process_keys import HOLDERS, read_process_keys
from keys.ring import WRAPS_MAX
from keys.root_file import FileRoot
from keys.states import State
from tests.keys.database import APPLICATION, City

DAY = timedelta(days=1)
NOTHING = Dependents({}, {}, {}, {})
ENDS = ("originate_until", "process_until")
RESEAL = "`gateway reseal` until it finds nothing, then"


@pytest.fixture
def manifest(store: Keystore, root: FileRoot) -> Manifest:
    """Of a new key store, and a backup of it."""
    manifest = store.open(root).manifest
    return msgspec.structs.replace(
        manifest, backups=(Backup("backup_1", manifest.written, ("ada",), (1,), None, (1,)),)
    )


def only(manifest: Manifest, purpose: Purpose, **change: object) -> Manifest:
    """A manifest that holds just the first key of one purpose, changed."""
    key = msgspec.structs.replace(manifest.of(purpose)[0], **change)
    return msgspec.structs.replace(manifest, keys=(key,))


# --- what there is ---


def test_it_equals_the_key_store(manifest: Manifest) -> None:
    """Every key of the manifest is listed once, with its dates, state and holder; nothing else is."""
    told = inventory(manifest, NOTHING)

    assert (told["environment"], told["manifest"]) == ("demo", 1)
    assert datetime.fromisoformat(told["written"]) == manifest.written
    assert [key["id"] for key in told["keys"]] == [key.id for key in manifest.keys]
    for shown, key in zip(told["keys"], manifest.keys, strict=True):
        assert (shown["purpose"], shown["number"], shown["state"], shown["holder"]) == (
            *(key.purpose, key.number, key.state),
            key.holder,
        )
        for name in ("since", "created", *ENDS):
            assert datetime.fromisoformat(shown[name]) == getattr(key, name)


def test_algorithm_strength_and_place(manifest: Manifest) -> None:
    """Each key has an algorithm of at least 128 bits, and says whether it lies in the key store or in a file."""
    told = inventory(manifest, NOTHING)["keys"]

    assert set(ALGORITHMS) == set(get_args(Purpose.__value__ if hasattr(Purpose, "__value__") else Purpose))
    assert {key["purpose"]: (key["algorithm"], key["strength_bits"]) for key in told} == {
        "kek": ("AES-256-GCM", 256),
        "fingerprint": ("HMAC-SHA-256", 256),
        "hpke": ("X25519 (HPKE)", 128),
        "manifest-signing": ("Ed25519", 128),
        "audit-mac": ("HMAC-SHA-256", 256),
        "audit-head": ("Ed25519", 128),
        "api-digest": ("HMAC-SHA-256", 256),
        "staff-sealing": ("AES-256-GCM", 256),
        "close-pack": ("Ed25519", 128),
    }
    for key in told:
        in_store = key["holder"] == KEYSTORE
        assert key["location"] == ("key store, wrapped by root 1" if in_store else "a file of its own")


def test_what_depends_on_a_key(manifest: Manifest) -> None:
    """Counted for generations, fingerprint keys and digest keys; for the others nobody counts, and none is told."""
    told = inventory(manifest, Dependents({1: 7, 2: 9}, {1: 5}, {}, {}))["keys"]

    counted = {"kek": 7, "fingerprint": 5, "api-digest": 0}
    assert {key["purpose"]: key["records"] for key in told} == {name: counted.get(name) for name in ALGORITHMS}


def test_no_secret_byte(store: Keystore, root: FileRoot, manifest: Manifest, secrets_directory: Path) -> None:
    """It is JSON, and holds neither a key's 32 bytes in any spelling, nor its commitment, nor anything as long."""
    shown = json.dumps(inventory(manifest, NOTHING))
    keys = store.open(root)
    secrets = [keys.secret(entry).reveal() for entry in manifest.keys if entry.holder == KEYSTORE]
    secrets += [read_process_keys(secrets_directory, holder, purpose)[1].reveal() for holder, purpose in HOLDERS]

    assert not any(secret.hex()[:16] in shown for secret in secrets)
    assert not any(entry.commitment[:16] in shown for entry in manifest.keys)
    assert not re.search(r"[0-9a-f]{32}|[A-Za-z0-9+/]{43}", shown)


def test_roots_officers_and_backups(manifest: Manifest, now: datetime) -> None:
    """Who holds shares, who may act, and which copies exist are part of it."""
    root = RootEntry(1, "shares", "shares:/r", State.ACTIVE, now, 2, (Custodian("ada"), Custodian("ben", now)))
    officer = Officer("ada", "00" * 32, "11" * 32, now, None, now, "a note")
    backup = Backup("backup_1", now, ("ada",), (1,))
    told = inventory(
        msgspec.structs.replace(manifest, roots=(root,), officers=(officer,), backups=(backup,)), NOTHING
    )

    assert told["roots"][0]["custodians"] == [{"name": "ada", "left": None}, {"name": "ben", "left": now.isoformat()}]
    assert (told["roots"][0]["threshold"], told["roots"][0]["location"]) == (2, "shares:/r")
    assert [each["name"] for each in told["officers"]] == ["ada"]
    assert told["backups"][0]["id"] == "backup_1"
    assert told["backups"][0]["recipients"] == ("ada",)
    json.dumps(told)


# --- what is due ---


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (31 * DAY, None),
        (30 * DAY + timedelta(microseconds=1), None),
        (30 * DAY, "after 2027-03-14, in 30 days: `keys rotate`."),
        (8 * DAY, "after 2027-03-14, in 8 days: `keys rotate`."),
        (7 * DAY, "after 2027-03-14, in 7 days: `keys rotate` this week."),
        (2 * DAY, "after 2027-03-14, in 2 days: `keys rotate` this week."),
        (1 * DAY, "after 2027-03-14, in 1 day: `keys rotate` today."),
        (timedelta(microseconds=1), "after 2027-03-14, in 0 days: `keys rotate` today."),
        (0 * DAY, "since 2027-03-14: `keys rotate` now."),
        (-DAY, "since 2027-03-14: `keys rotate` now."),
    ],
)
def test_thirty_seven_one(manifest: Manifest, before: timedelta, told: str | None) -> None:
    """A date is told of thirty days ahead, more urgently at seven and at one, and when it has passed."""
    kek = only(manifest, "kek")
    lines = list(due(kek, NOTHING, kek.keys[0].originate_until - before))

    assert lines == ([f"generation 1 protects nothing new {told}"] if told else [])


REMEDIES = {
    "kek": ("generation 1", "`keys rotate`"),
    "fingerprint": ("fingerprint key 1", "`keys rotate-fingerprint`"),
    "hpke": ("hpke key 1", "`keys rotate --purpose hpke`"),
    "manifest-signing": ("manifest-signing key 1", "`keys rotate --purpose manifest-signing`"),
    "audit-mac": ("audit-mac key 1 of admin", "`keys rotate --purpose audit-mac`"),
    "audit-head": ("audit-head key 1 of worker", "`keys rotate --purpose audit-head`"),
    "api-digest": ("api-digest key 1 of api", "`keys rotate --purpose api-digest`"),
    "staff-sealing": ("staff-sealing key 1 of admin", "`keys rotate --purpose staff-sealing`"),
    "close-pack": ("close-pack key 1 of admin", "`keys rotate --purpose close-pack`"),
}


@pytest.mark.parametrize("purpose", ALGORITHMS)
def test_every_kind_of_key_has_its_command(manifest: Manifest, purpose: Purpose) -> None:
    """The line names the key as people call it, and the command that renews this kind."""
    one = only(manifest, purpose)
    (line,) = due(one, NOTHING, one.keys[0].originate_until)

    title, remedy = REMEDIES[purpose]
    assert line == f"{title} protects nothing new since 2027-03-14: {remedy} now."


def test_nothing_is_due_of_new_keys(manifest: Manifest, now: datetime) -> None:
    """On the first day nobody has anything to do."""
    assert list(due(manifest, NOTHING, now)) == []


def test_old_keys_end_as_well(manifest: Manifest) -> None:
    """A key that only opens is told of before it does so no more; a destroyed one never is."""
    retired = only(manifest, "hpke", state=State.RETIRED)
    ends = retired.keys[0].process_until

    assert list(due(retired, NOTHING, ends - 3 * DAY)) == [
        "hpke key 1 opens nothing any more after 2030-03-13, in 3 days: `keys rewrap` this week."
    ]
    assert list(due(only(manifest, "hpke", state=State.DESTROYED), NOTHING, ends + DAY)) == []


@pytest.mark.parametrize(
    ("state", "records", "told"),
    [
        (State.RETIRED, 1200, "generation 1 is retired and still wraps 1,200 records: `keys rewrap`."),
        (State.RETIRED, 1, "generation 1 is retired and still wraps 1 record: `keys rewrap`."),
        (State.RETIRED, 0, "generation 1 is retired and wraps nothing: `keys destroy 1` once its backups are gone."),
        (State.COMPROMISED, 3, f"generation 1 is compromised and wraps 3 records: {RESEAL} `keys destroy 1`."),
        (State.PENDING, 0, None),
        (State.DESTROYED, 0, None),
    ],
)
def test_what_a_generation_waits_for(
    manifest: Manifest, now: datetime, state: State, records: int, told: str | None
) -> None:
    """Each state that is not the end says which command comes next."""
    lines = list(due(only(manifest, "kek", state=state), Dependents({1: records}, {}, {}, {}), now))

    assert lines == ([told] if told else [])


def test_an_index_that_is_not_complete(manifest: Manifest, now: datetime) -> None:
    """A retired fingerprint key waits to be replaced everywhere, and then to be destroyed."""
    (line,) = due(only(manifest, "fingerprint", state=State.RETIRED), NOTHING, now)
    destroy = "`keys destroy 1 --purpose fingerprint` once its backups are gone"
    assert line == f"fingerprint key 1 is retired: `gateway reseal`, then {destroy}."


def test_a_generation_that_has_wrapped_much(manifest: Manifest, now: datetime) -> None:
    """From half of its wraps on it is told."""
    half = WRAPS_MAX // 2

    assert list(due(manifest, Dependents({}, {}, {}, {1: half}), now)) == []
    assert list(due(manifest, Dependents({}, {}, {}, {1: half + 1}), now)) == [
        "generation 1 has wrapped 1,073,741,825 of 2,147,483,648 times: `keys rotate`"
    ]


def test_a_generation_without_a_backup(manifest: Manifest, now: datetime) -> None:
    """The generation in use is told of until a backup holds it that still exists."""
    (held,) = manifest.backups
    told = ["generation 1 is in no key backup that root 1 opens: `keys backup --to FILE --for OFFICER`."]
    for backups in (
        (),
        (msgspec.structs.replace(held, generations=(2,)),),
        (msgspec.structs.replace(held, roots=()),),
    ):
        assert list(due(msgspec.structs.replace(manifest, backups=backups), NOTHING, now)) == told
    gone = msgspec.structs.replace(held, forgotten=now)
    assert list(due(msgspec.structs.replace(manifest, backups=(gone,)), NOTHING, now)) == told
    assert list(due(msgspec.structs.replace(manifest, backups=(gone, held)), NOTHING, now)) == []


def test_a_backup_under_a_root_that_is_gone(manifest: Manifest, now: datetime) -> None:
    """A copy counts while the root in use opens it: one made while both stood, but none from before."""
    old = msgspec.structs.replace(manifest.root, state=State.DESTROYED)
    moved = msgspec.structs.replace(manifest, roots=(old, RootEntry(2, "file", "file:/r", State.ACTIVE, now)))
    (held,) = manifest.backups

    assert list(due(moved, NOTHING, now)) == [
        "generation 1 is in no key backup that root 2 opens: `keys backup --to FILE --for OFFICER`."
    ]
    both = msgspec.structs.replace(held, roots=(1, 2))
    assert list(due(msgspec.structs.replace(moved, backups=(held, both)), NOTHING, now)) == []


def test_a_custodian_who_left(manifest: Manifest, now: datetime) -> None:
    """With the share that they know, and how many open the root, until the root is replaced."""
    custodians = (Custodian("ada"), Custodian("ben", now))
    root = RootEntry(1, "shares", "shares:/r", State.ACTIVE, now, 2, custodians)

    (line,) = due(msgspec.structs.replace(manifest, roots=(root,)), NOTHING, now)
    assert line == (
        "ben left on 2026-03-14 with a share of root 1, of which 2 open it: `keys ceremony replace`,"
        " then `keys rotate` and `keys rewrap`."
    )
    gone = msgspec.structs.replace(root, state=State.DESTROYED, since=now + DAY)
    new, backup = (
        RootEntry(2, "file", "file:/r", State.ACTIVE, now),
        msgspec.structs.replace(manifest.backups[0], roots=(2,)),
    )
    moved = msgspec.structs.replace(manifest, roots=(gone, new), backups=(backup,))
    assert list(due(moved, NOTHING, now)) == [
        "generation 1 was wrapped by root 1, of which ben took a share along: `keys rotate`, then `keys rewrap`."
    ]
    rotated = only(moved, "kek", created=now + DAY)
    kept = msgspec.structs.replace(backup, generations=(1,))
    assert list(due(msgspec.structs.replace(rotated, backups=(kept,)), NOTHING, now)) == []


def test_a_root_that_is_being_replaced(manifest: Manifest, now: datetime) -> None:
    """Two roots stand for a while only; the line says how it ends."""
    old = msgspec.structs.replace(manifest.root, state=State.RETIRED)
    both = (old, RootEntry(2, "file", "file:/r", State.ACTIVE, now))

    assert list(due(msgspec.structs.replace(manifest, roots=both), NOTHING, now)) == [
        "The root is being replaced: restart every process with the new one, then `keys ceremony replace --finish`.",
        "generation 1 is in no key backup that root 2 opens: `keys backup --to FILE --for OFFICER`.",
    ]


def test_an_acknowledgement_that_ends(manifest: Manifest, now: datetime) -> None:
    """A year after an officer acknowledged; one who was removed, or never did, is not reminded."""
    officers = (
        Officer("ada", "00" * 32, "11" * 32, now, None, now, ""),
        Officer("ben", "00" * 32, "11" * 32, now, now, now, ""),
        Officer("cyd", "00" * 32, "11" * 32, now, None, None, ""),
    )
    found = msgspec.structs.replace(manifest, officers=officers, keys=())

    assert list(due(found, NOTHING, now + 360 * DAY)) == [
        "ada's acknowledgement ends after 2027-03-14, in 5 days: `keys officer acknowledge` this week."
    ]


# --- counted ---


@pytest.mark.server
async def test_what_the_database_counts(city: City) -> None:
    """Wraps by generation, cards by version of the index, API keys that still hold, wraps made ahead."""
    await city.add_records(4)
    owner = city.owner
    await owner.execute("UPDATE gateway.key_generations SET wraps_reserved = 99")
    for index in range(3):
        await owner.execute(
            "INSERT INTO gateway.fingerprints VALUES ('parks', 1, $1, $2, now())", bytes([index]) * 32, f"fp_{index}"
        )
        await owner.execute(
            """INSERT INTO gateway.api_keys
               (department_id, key_id, application_id, digest, created_at, revoked_at, digest_key)
               VALUES ('parks', $1, $2, $3, now(), $4, 1)""",
            *(f"key_{index}", APPLICATION, bytes(32), city.now if index == 0 else None),
        )
    async with city.table() as table:
        counted = await Dependents.count(table)

    assert counted == Dependents({1: 4}, {1: 3}, {1: 2}, {1: 99})
