"""The manifest: signed as a whole, of one environment, and only ever newer."""

from datetime import datetime, timedelta

import msgspec
import pytest

from keys.errors import ManifestRefused
from keys.manifest import SIGNER, KeyEntry, Manifest, Purpose, read_manifest, require_current, sign_manifest
from keys.primitives import new_key
from keys.ring import State
from keys.secret import Secret
from keys.signing import public_key, sign_note

SEED = Secret(bytes(range(32)))
PUBLIC = public_key(SEED)
NOT_SIGNED = "^the manifest is not signed by this key store's own key: restore the key store from its backup$"


def entry(purpose: Purpose, number: int, now: datetime) -> KeyEntry:
    """One key's entry."""
    return KeyEntry(
        id=f"{purpose}-{number}",
        purpose=purpose,
        number=number,
        state=State.ACTIVE,
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
    return Manifest(1, "demo", 5, now, "file", keys)


def test_what_is_signed_is_read_back(manifest: Manifest) -> None:
    """Every field survives, microseconds and time zone included."""
    assert read_manifest(sign_manifest(manifest, SEED), PUBLIC, "demo") == manifest


def test_one_manifest_has_one_form(manifest: Manifest) -> None:
    """Signed twice it is the same bytes, and ASCII JSON a person can read."""
    raw = sign_manifest(manifest, SEED)

    assert raw == sign_manifest(manifest, SEED)
    assert b'\n "environment": "demo",\n' in raw


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
            with pytest.raises(ManifestRefused, match=NOT_SIGNED):
                read_manifest(altered, PUBLIC, "demo")


def test_every_length_counts(manifest: Manifest) -> None:
    """A manifest cut short anywhere, or with more behind it, is refused."""
    raw = sign_manifest(manifest, SEED)
    for length in range(len(raw)):
        with pytest.raises(ManifestRefused, match=NOT_SIGNED):
            read_manifest(raw[:length], PUBLIC, "demo")
    with pytest.raises(ManifestRefused, match=NOT_SIGNED):
        read_manifest(raw + b"\n", PUBLIC, "demo")


def test_signed_by_another_key(manifest: Manifest) -> None:
    """A manifest under a key of the forger's own is refused."""
    with pytest.raises(ManifestRefused, match=NOT_SIGNED):
        read_manifest(sign_manifest(manifest, new_key()), PUBLIC, "demo")


def test_of_another_environment(manifest: Manifest) -> None:
    """A right manifest of another environment names both, and what to correct."""
    with pytest.raises(
        ManifestRefused, match="of environment 'demo', the configuration of 'live': correct"
    ) as caught:
        read_manifest(sign_manifest(manifest, SEED), PUBLIC, "live")

    assert "`environment` or `keys.store`" in str(caught.value)


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"format": 1', '"format": 2'),
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

    with pytest.raises(ManifestRefused, match=NOT_SIGNED):
        read_manifest(sign_note(SEED, "gateway-audit", text).encode(), PUBLIC, "demo")


def test_an_older_manifest(manifest: Manifest) -> None:
    """One that the database has seen, or a newer one, passes; an older one is refused with what to do."""
    for seen in (0, 4, 5):
        require_current(manifest, seen)

    with pytest.raises(ManifestRefused, match=r"^manifest 5 is older than 6.*: put the newest key store back$"):
        require_current(manifest, 6)
