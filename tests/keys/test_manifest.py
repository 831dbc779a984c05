"""The manifest: signed as a whole, of one environment, and only ever newer."""

from datetime import datetime, timedelta

import msgspec
import pytest

from keys.errors import (
    ClockBehind,
    KeyRefused,
    KeystoreRefused,
    ManifestForeign,
    ManifestForged,
    ManifestRefused,
    ManifestRolledBack,
    UnknownKey,
)
from keys.files import FILE_BYTES_MAX
from keys.manifest import (
    SIGNER,
    Act,
    KeyEntry,
    Manifest,
    Purpose,
    RootEntry,
    claim_of,
    read_manifest,
    require_current,
    sign_manifest,
)
from keys.officers import Officer
from keys.primitives import new_key
from keys.secret import Secret
from keys.signing import public_key, sign_note
from keys.states import Seen, State

SEED = Secret(bytes(range(32)))
PUBLIC = public_key(SEED)
NOT_SIGNED = "^the manifest is not signed by this key store's own key: restore the key store from its backup$"


def entry(purpose: Purpose, number: int, now: datetime, state: State = State.ACTIVE) -> KeyEntry:
    """One key's entry."""
    return KeyEntry(
        id=f"{purpose}-{number}",
        purpose=purpose,
        number=number,
        state=state,
        since=now,
        created=now,
        originate_until=now + timedelta(days=365),
        process_until=now + timedelta(days=1460),
        commitment="00" * 32,
        holder="keystore",
    )


@pytest.fixture
def manifest(now: datetime) -> Manifest:
    """Version 5 of the environment `demo`, its keys in no order."""
    keys = (entry("kek", 10, now), entry("fingerprint", 1, now), entry("kek", 9, now))
    root = RootEntry(1, "file", "file:/root.key", State.ACTIVE, now)
    return Manifest(environment="demo", version=5, written=now, act=Act("rotate", "kek-10"), roots=(root,), keys=keys)


def test_what_is_signed_is_read_back(manifest: Manifest) -> None:
    """Every field survives, microseconds and time zone included."""
    assert read_manifest(sign_manifest(manifest, SEED), PUBLIC, "demo") == manifest


def test_one_manifest_has_one_form(manifest: Manifest) -> None:
    """Signed twice it is the same bytes, and ASCII JSON a person can read."""
    raw = sign_manifest(manifest, SEED)

    assert raw == sign_manifest(manifest, SEED)
    assert b'\n "environment": "demo",\n' in raw


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("\udcff", "the key store could not be read again with this in it; use plain names"),
        ("x" * FILE_BYTES_MAX, "the manifest would have more than 1 MiB; .* say so with `keys backup --forget`"),
    ],
)
def test_what_could_not_be_read_back_is_not_signed(manifest: Manifest, subject: str, line: str) -> None:
    """A manifest that no process could read again would be the end of every key in the store."""
    with pytest.raises(KeystoreRefused, match=f"^nothing was changed: {line}$"):
        sign_manifest(msgspec.structs.replace(manifest, act=Act("backup", subject)), SEED)


def test_an_entry_that_cannot_be_read_back_is_not_signed(manifest: Manifest, now: datetime) -> None:
    """What msgspec writes without a look it refuses to read: an officer whose name is none."""
    nobody = Officer(name="NOT A NAME", verify="0" * 64, receive="0" * 64, added=now)
    with pytest.raises(KeystoreRefused, match=r"^nothing was changed: the key store could not be read again"):
        sign_manifest(msgspec.structs.replace(manifest, officers=(nobody,)), SEED)


def test_keys_of_a_purpose_by_number(manifest: Manifest) -> None:
    """Keys come by purpose, and in the order of their numbers rather than of their names."""
    assert [key.number for key in manifest.of("kek")] == [9, 10]
    assert manifest.of("audit-mac") == ()


def test_every_bit_counts(manifest: Manifest) -> None:
    """No bit of the file can be flipped: text, names, key hash, signature and line ends."""
    raw = sign_manifest(msgspec.structs.replace(manifest, keys=manifest.keys[:1]), SEED)
    for index in range(len(raw)):
        for bit in range(8):
            altered = raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :]
            with pytest.raises(ManifestForged, match=NOT_SIGNED):
                read_manifest(altered, PUBLIC, "demo")


def test_every_length_counts(manifest: Manifest) -> None:
    """A manifest cut short anywhere, or with more behind it, is refused."""
    raw = sign_manifest(manifest, SEED)
    for length in range(len(raw)):
        with pytest.raises(ManifestForged, match=NOT_SIGNED):
            read_manifest(raw[:length], PUBLIC, "demo")
    with pytest.raises(ManifestForged, match=NOT_SIGNED):
        read_manifest(raw + b"\n", PUBLIC, "demo")


def test_signed_by_another_key(manifest: Manifest) -> None:
    """A manifest under a key of the forger's own is refused."""
    with pytest.raises(ManifestForged, match=NOT_SIGNED):
        read_manifest(sign_manifest(manifest, new_key()), PUBLIC, "demo")


def test_of_another_environment(manifest: Manifest) -> None:
    """A right manifest of another environment names both, and what to correct."""
    with pytest.raises(
        ManifestForeign, match="of environment 'demo', the configuration of 'live': correct"
    ) as caught:
        read_manifest(sign_manifest(manifest, SEED), PUBLIC, "live")

    assert "`environment` or `keys.store`" in str(caught.value)


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"format": 2', '"format": 3'),
        ('"version": 5', '"version": 5,\n "extra": 1'),
        ('"version": 5,', ""),
        ('"state": "active"', '"state": "asleep"'),
        ('"purpose": "kek"', '"purpose": "pet"'),
        ("{", ""),
    ],
)
def test_signed_but_of_another_form(manifest: Manifest, find: str, put: str) -> None:
    """Rightly signed but unknown in form, as a later release might write it, it is refused rather than guessed at."""
    text = sign_manifest(manifest, SEED).decode().rpartition("\n\n")[0] + "\n"
    assert find in text

    with pytest.raises(ManifestRefused):
        read_manifest(sign_note(SEED, SIGNER, text.replace(find, put)).encode(), PUBLIC, "demo")


def test_the_signature_is_for_manifests(manifest: Manifest) -> None:
    """The same text signed by the same key under another name is no manifest."""
    text = sign_manifest(manifest, SEED).decode().rpartition("\n\n")[0] + "\n"

    with pytest.raises(ManifestForged, match=NOT_SIGNED):
        read_manifest(sign_note(SEED, "gateway-audit", text).encode(), PUBLIC, "demo")


def test_an_older_manifest(now: datetime) -> None:
    """One that the database has seen, or a newer one, passes; an older one is refused with what to do."""
    for seen in (Seen(), Seen(4, 2), Seen(5, 2)):
        require_current(Seen(5, 2), now, seen, now)

    with pytest.raises(ManifestRolledBack, match=r"^manifest 5 is older than 6.*: put the newest key store back$"):
        require_current(Seen(5, 2), now, Seen(6, 2), now)


def test_an_older_signing_key(now: datetime) -> None:
    """A manifest of any version that is signed with a key from before the newest is refused."""
    with pytest.raises(ManifestRolledBack, match=r"^manifest 99 is signed with key 1, which was replaced by key 2"):
        require_current(Seen(99, 1), now, Seen(5, 2), now)


def test_a_clock_behind_the_manifest(now: datetime) -> None:
    """A clock may be five minutes behind; at more no date could be enforced, and the refusal names both times."""
    require_current(Seen(5, 1), now, Seen(5, 1), now - timedelta(minutes=5))

    with pytest.raises(ClockBehind) as caught:
        require_current(Seen(5, 1), now, Seen(5, 1), now - timedelta(minutes=5, microseconds=1))
    assert str(caught.value) == (
        "this machine's clock says 2026-03-14 15:04 UTC, the manifest is of 2026-03-14 15:09: set the clock right"
    )


# --- what it says ---


def test_an_unverified_manifest_says_how_to_verify_it(manifest: Manifest, now: datetime) -> None:
    """The claim names the active signing key, and the roots that stand, the newest first."""
    signing = entry("manifest-signing", 1, now, State.DESTROYED), entry("manifest-signing", 2, now)
    states = (State.DESTROYED, State.RETIRED, State.ACTIVE)
    roots = tuple(RootEntry(n, "file", "file:/r", state, now) for n, state in enumerate(states, start=1))
    claim = claim_of(sign_manifest(msgspec.structs.replace(manifest, keys=signing, roots=roots), SEED))

    assert claim.signing_key.number == 2
    assert claim.root_numbers == (3, 2)


@pytest.mark.parametrize("raw", [b"", b"no note", b"\xff\n\n\xe2\x80\x94 x y\n", b"{}\n\n\xe2\x80\x94 x y\n"])
def test_what_claims_nothing(raw: bytes) -> None:
    """Bytes that are no manifest at all are refused as a forgery is."""
    with pytest.raises(ManifestForged, match=NOT_SIGNED):
        claim_of(raw)


def test_a_claim_without_a_signing_key(manifest: Manifest) -> None:
    """A manifest that names no key to check it with is a forgery."""
    with pytest.raises(ManifestForged, match=NOT_SIGNED):
        _ = claim_of(sign_manifest(manifest, SEED)).signing_key


def test_one_key_by_number(manifest: Manifest) -> None:
    """A key is found by purpose, holder and number; one that is not there is answered with those that are."""
    assert manifest.key("kek", 9).title == "generation 9"
    assert manifest.key("fingerprint", 1).title == "fingerprint key 1"
    with pytest.raises(UnknownKey, match=r"^there is no kek 11 \(there is: 9, 10\)$"):
        manifest.key("kek", 11)
    with pytest.raises(UnknownKey, match=r"^there is no kek 9 \(there is: none\)$"):
        manifest.key("kek", 9, "api")
    with pytest.raises(UnknownKey, match=r"^no hpke key of keystore is active$"):
        manifest.active("hpke")


def test_numbers_are_never_used_twice(manifest: Manifest, now: datetime) -> None:
    """The next number is above all that ever were, destroyed ones included, for each purpose and holder."""
    gone = manifest.with_key(entry("kek", 12, now, State.DESTROYED))

    assert (gone.next_number("kek"), gone.next_number("fingerprint"), gone.next_number("hpke")) == (13, 2, 1)
    assert gone.next_number("audit-mac", "api") == 1


def test_a_process_key_is_called_by_its_holder(now: datetime) -> None:
    """People are told whose key it is."""
    assert msgspec.structs.replace(entry("audit-mac", 2, now), holder="worker").title == "audit-mac key 2 of worker"


def test_a_move_makes_another_manifest(manifest: Manifest, now: datetime) -> None:
    """One key enters a new state, dated; nothing else changes, and the manifest at hand stays as it was."""
    later = now + timedelta(days=30)
    moved = manifest.moved(manifest.key("kek", 9), State.RETIRED, later)

    assert (moved.key("kek", 9).state, moved.key("kek", 9).since) == (State.RETIRED, later)
    assert manifest.key("kek", 9).state is State.ACTIVE
    assert [key for key in moved.keys if key.number != 9] == [key for key in manifest.keys if key.number != 9]
    with pytest.raises(KeyRefused, match=r"^generation 9 is retired: it cannot become active$"):
        moved.moved(moved.key("kek", 9), State.ACTIVE, later)
