"""The container of a key backup: for its recipients and nobody else, whole or not at all."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from keys import backup
from keys.backup import BYTES_MAX, BackupHeader, new_backup_id, open_backup, read_header, seal_backup
from keys.errors import BackupRefused, OfficerRefused
from keys.officers import Officer, OfficerKey, officer_of, seal_for
from keys.primitives import commitment, encrypt, subkey
from keys.secret import Secret

ADA, BOB, EVE = (OfficerKey(Secret(bytes([number]) * 32)) for number in (1, 2, 3))
FILES: Mapping[str, bytes] = {"manifest": b"signed", "root-1/kek-1-00ff": bytes(61), "empty": b""}
ID = "backup_" + "0f" * 16
ALTERED = r"^the backup was altered or cut short: take another copy of it$"


@pytest.fixture
def ada(now: datetime) -> Officer:
    """An officer."""
    return officer_of("ada", ADA, now)


@pytest.fixture
def bob(now: datetime) -> Officer:
    """Another one."""
    return officer_of("bob", BOB, now)


def seal(files: Mapping[str, bytes], *recipients: Officer, now: datetime, **changes: Any) -> bytes:
    """A backup of manifest 7 of the environment `demo`."""
    header: dict[str, Any] = {"backup_id": ID, "environment": "demo", "manifest_version": 7, "created": now}
    return seal_backup(files, recipients, **(header | changes))


@pytest.fixture
def sealed(ada: Officer, bob: Officer, now: datetime) -> bytes:
    """FILES for both officers."""
    return seal(FILES, ada, bob, now=now)


def test_each_recipient_opens_it(sealed: bytes) -> None:
    """Both see all files, empty ones too."""
    assert open_backup(sealed, ADA) == FILES
    assert open_backup(sealed, BOB) == FILES


def test_what_anyone_can_read(sealed: bytes, now: datetime) -> None:
    """Id, environment, version, date and recipients; neither contents nor names of the files."""
    header = read_header(sealed)

    assert (header.id, header.environment, header.manifest_version, header.created) == (ID, "demo", 7, now)
    assert header.names == ("ada", "bob")
    for hidden in (b"kek-1-00ff", b"signed", b"root-1"):
        assert hidden not in sealed


def test_nobody_else_opens_it(sealed: bytes) -> None:
    """Who is no recipient reads who is, every one of them."""
    line = f"^{ID} does not open with this key: take the key that ada or bob had when it was made$"
    with pytest.raises(BackupRefused, match=line):
        open_backup(sealed, EVE)


def test_two_backups_share_nothing(sealed: bytes, ada: Officer, bob: Officer, now: datetime) -> None:
    """The same files for the same recipients are other bytes under another key."""
    again = seal(FILES, ada, bob, now=now)

    assert read_header(again).commitment != read_header(sealed).commitment
    assert again[-80:] != sealed[-80:]


def test_the_format(sealed: bytes) -> None:
    """Read without our code: magic, version, length, header, nonce, ciphertext; HKDF as RFC 5869 has it."""
    length = int.from_bytes(sealed[11:15], "big")
    header = msgspec.json.decode(sealed[15 : 15 + length])
    boxes = msgspec.convert(header["recipients"], list[dict[str, str]])
    box = msgspec.convert(boxes[0]["sealed"], bytes)
    key = ADA.unseal(box).reveal()

    def derived(*fields: bytes) -> bytes:
        info = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
        return HKDF(SHA256(), 32, None, info).derive(key)

    assert sealed[:11] == b"KEYSBACKUP\x01"
    assert header["commitment"] == derived(b"keys/commitment/v1", ID.encode()).hex()
    body = sealed[15 + length :]
    plain = AESGCM(derived(b"backup/v1", b"files")).decrypt(body[:12], body[12:], sealed[: 15 + length])
    assert msgspec.msgpack.decode(plain) == FILES


# --- who may get one ---


def test_without_a_recipient_there_is_no_backup(now: datetime) -> None:
    """Keys leave the key store sealed to a name, or not at all."""
    with pytest.raises(BackupRefused, match=r"^a key backup needs a recipient: `--for` names an officer$"):
        seal(FILES, now=now)


def test_recipients_that_are_refused(ada: Officer, bob: Officer, now: datetime) -> None:
    """One twice, one who was removed, and one without a public key."""
    gone = msgspec.structs.replace(bob, removed=now)

    with pytest.raises(BackupRefused, match="names each of its recipients once"):
        seal(FILES, ada, bob, ada, now=now)
    with pytest.raises(BackupRefused, match=r"^bob was removed as an officer and gets no key backup$"):
        seal(FILES, ada, gone, now=now)
    with pytest.raises(OfficerRefused, match=r"^the public key of bob is none"):
        seal(FILES, ada, msgspec.structs.replace(bob, receive="00" * 32), now=now)


# --- altered ---


def test_every_bit_counts(ada: Officer, now: datetime) -> None:
    """Magic, version, length, header, sealed keys, nonce, files and tag: no bit can be flipped."""
    sealed = seal({"a": b"1"}, ada, now=now)
    for index in range(len(sealed)):
        for bit in range(8):
            altered = sealed[:index] + bytes([sealed[index] ^ 1 << bit]) + sealed[index + 1 :]
            with pytest.raises(BackupRefused):
                open_backup(altered, ADA)


def test_every_length_counts(ada: Officer, now: datetime) -> None:
    """Cut short anywhere, or with more behind it, it does not open."""
    sealed = seal({"a": b"1"}, ada, now=now)
    for length in range(len(sealed)):
        with pytest.raises(BackupRefused):
            open_backup(sealed[:length], ADA)
    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(sealed + b"\x00", ADA)


def test_what_is_no_backup(sealed: bytes) -> None:
    """Another file, a later version and a header of no sense are told apart."""
    for raw, words in (
        (b"", "is not a key backup"),
        (b"PK\x03\x04", "is not a key backup"),
        (sealed.replace(b"KEYSBACKUP\x01", b"KEYSBACKUP\x02"), "a version that this release does not read"),
        (sealed[:11] + b"\xff\xff\xff\xff" + sealed[15:], "was altered or cut short"),
        (sealed[:11] + (2).to_bytes(4, "big") + b"{}", "was altered or cut short"),
        (sealed[:11] + (2).to_bytes(4, "big") + b"\xff\xff", "was altered or cut short"),
    ):
        for read in (read_header, lambda one: open_backup(one, ADA)):
            with pytest.raises(BackupRefused, match=words):
                read(raw)


def test_parts_of_two_backups(sealed: bytes, ada: Officer, bob: Officer, now: datetime) -> None:
    """The header of one and the files of another, or a sealed key of another, do not go together."""
    other = seal({"manifest": b"forged"}, ada, bob, now=now)
    length = 15 + int.from_bytes(sealed[11:15], "big")
    theirs = read_header(other).recipients

    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(sealed[:length] + other[length:], ADA)
    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(with_header(sealed, recipients=theirs), ADA)


@pytest.mark.parametrize(
    "change",
    [{"environment": "production"}, {"manifest_version": 8}, {"id": new_backup_id()}, {"recipients": "ada only"}],
)
def test_a_header_that_says_something_else(sealed: bytes, change: dict[str, Any]) -> None:
    """A field of the header changed, or a recipient taken away, and the files do not open."""
    if "recipients" in change:
        change = {"recipients": read_header(sealed).recipients[:1]}

    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(with_header(sealed, **change), ADA)


def test_one_backup_does_not_show_two_people_different_files(
    sealed: bytes, bob: Officer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maker who gives one recipient another key is found by the commitment, before anything is decrypted."""
    monkeypatch.setattr(backup, "decrypt", lambda *_: pytest.fail("it was decrypted before the key was compared"))
    ours = read_header(sealed).recipients
    other = msgspec.structs.replace(ours[1], sealed=seal_for(bob, Secret(bytes(32))))

    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(with_header(sealed, recipients=(ours[0], other)), BOB)


def with_header(sealed: bytes, **changes: Any) -> bytes:
    """The container with another header, its length put right."""
    end = 15 + int.from_bytes(sealed[11:15], "big")
    header = msgspec.json.encode(msgspec.structs.replace(read_header(sealed), **changes))
    return sealed[:11] + len(header).to_bytes(4, "big") + header + sealed[end:]


# --- paths ---

ESCAPES = (
    "../manifest",
    "a/../../b",
    "a/..",
    "/etc/passwd",
    "//a",
    "a//b",
    "a/",
    "",
    ".",
    "./a",
    ".bashrc",
    "a/.ssh",
    "a\\b",
    "C:a",
    "a\x00b",
    "a\n",
    "ä",
    "a b",
    "~a",
    "x" * 256,
)


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_leads_elsewhere_is_not_sealed(ada: Officer, now: datetime, path: str) -> None:
    """Only plain relative paths get into a backup."""
    with pytest.raises(BackupRefused, match=r"^a path in this backup leads elsewhere, or is not plain and relative"):
        seal({"manifest": b"", path: b""}, ada, now=now)


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_leads_elsewhere_is_not_opened(ada: Officer, now: datetime, path: str) -> None:
    """Anyone can seal to a public key: what another program sealed is looked at just so."""
    with pytest.raises(BackupRefused, match=r"leads elsewhere, or is not plain and relative: do not trust it$"):
        open_backup(crafted(msgspec.msgpack.encode({"manifest": b"", path: b""}), ada, now), ADA)


@pytest.mark.parametrize("files", [{"a": b"", "a/b": b""}, {"a/b/c": b"", "a": b""}, {"a/b": b"", "a/b/c/d": b""}])
def test_a_file_that_is_a_folder_too(ada: Officer, now: datetime, files: dict[str, bytes]) -> None:
    """Such a set could not be written."""
    with pytest.raises(BackupRefused, match="is a file and a folder at once"):
        seal(files, ada, now=now)
    with pytest.raises(BackupRefused, match="is a file and a folder at once"):
        open_backup(crafted(msgspec.msgpack.encode(files), ada, now), ADA)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"\x81\xa1\xff\xc4\x00",
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode({"a": "text"}),
        b"\x80\x80",
    ],
)
def test_contents_that_are_no_files(ada: Officer, now: datetime, body: bytes) -> None:
    """A body that is no map from paths to bytes is refused, though it is well sealed."""
    with pytest.raises(BackupRefused, match=ALTERED):
        open_backup(crafted(body, ada, now), ADA)


def test_a_crafted_backup_opens(ada: Officer, now: datetime) -> None:
    """What the tests above craft is refused for its contents only."""
    assert open_backup(crafted(msgspec.msgpack.encode(dict(FILES)), ada, now), ADA) == FILES


def crafted(body: bytes, officer: Officer, now: datetime) -> bytes:
    """A well-formed container with any bytes inside."""
    key = Secret(bytes(range(32)))
    header = BackupHeader(
        format=1,
        id=ID,
        environment="demo",
        manifest_version=7,
        created=now,
        recipients=(backup.Recipient(officer.name, seal_for(officer, key)),),
        commitment=commitment(key, ID).hex(),
    )
    encoded = msgspec.json.encode(header)
    start = b"KEYSBACKUP\x01" + len(encoded).to_bytes(4, "big") + encoded
    return start + encrypt(subkey(key, "backup/v1", "files"), body, start)


# --- size ---


def test_the_largest_backup(ada: Officer, now: datetime) -> None:
    """64 MiB are sealed and opened; a byte more is neither."""
    overhead = len(seal({"a": bytes(70_000)}, ada, now=now)) - 70_000
    largest = {"a": bytes(BYTES_MAX - overhead)}
    sealed = seal(largest, ada, now=now)

    assert len(sealed) == BYTES_MAX
    assert open_backup(sealed, ADA) == largest
    with pytest.raises(BackupRefused, match="at most 64 MiB, and this is larger"):
        seal({"a": largest["a"] + b"\x00"}, ada, now=now)
    for read in (read_header, lambda one: open_backup(one, ADA)):
        with pytest.raises(BackupRefused, match="at most 64 MiB, and this is larger"):
            read(sealed + b"\x00")


@pytest.mark.parametrize("change", [{"backup_id": "../x"}, {"environment": "de\x1b[8mmo"}, {"environment": ""}])
def test_a_header_that_could_not_be_read_back(ada: Officer, now: datetime, change: dict[str, str]) -> None:
    """What our own reader refuses is not handed out."""
    with pytest.raises(BackupRefused):
        seal(FILES, ada, now=now, **change)
