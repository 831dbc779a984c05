"""Officers: one seed and two keys, who is one, and what each of them signs once a year."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from keys import passphrase
from keys.errors import BrokenSeal, OfficerRefused, PassphraseRefused
from keys.files import read_private
from keys.officers import (
    ACKNOWLEDGED_FOR,
    Officer,
    OfficerKey,
    acknowledge,
    check_acknowledgement,
    create_officer_key,
    find_officer,
    is_same_person,
    officer_of,
    open_officer_key,
    seal_for,
    with_acknowledgement,
)
from keys.primitives import new_key
from keys.secret import Secret
from keys.signing import open_note

PASSPHRASE = Secret("correct horse battery staple")
KEY = OfficerKey(Secret(bytes(range(32))))
YEAR = timedelta(days=365)
TICK = timedelta(microseconds=1)


@pytest.fixture
def ada(now: datetime) -> Officer:
    """An officer with KEY, not yet acknowledged."""
    return officer_of("ada", KEY, now)


# --- the key ---


def test_the_key_of_a_seed() -> None:
    """The public halves of a seed never change: registered officers and old backups depend on them."""
    assert KEY.verify == "d8e9b19ee84d8b14b42c55841c19482809ab7e7f1fdad4f48a1bb4715faa3339"
    assert KEY.receive == "2a6c48e6e4b67e1c95f3ca568c88b45a13a6a01fd5b1c8e3dccf9755e6c0af13"


def test_a_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made and opened with one passphrase it is the same key, with another none, and the seed is not in the file."""
    monkeypatch.setattr(passphrase, "OPERATIONS", 1)
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 8)
    path = tmp_path / "ada.key"
    key = create_officer_key(path, PASSPHRASE)
    opened = open_officer_key(path, PASSPHRASE)

    assert (opened.verify, opened.receive) == (key.verify, key.receive)
    assert len(read_private(path)) == 85
    with pytest.raises(PassphraseRefused, match="does not open"):
        open_officer_key(path, Secret("incorrect horse battery staple"))


def test_a_key_shows_nothing() -> None:
    """The two private keys are different ones, and no attribute shows either."""
    signing, receiving = vars(KEY)["_signing"], vars(KEY)["_receiving"]

    assert signing.reveal() != receiving.reveal()
    assert "Secret(…)" in str(vars(KEY))
    assert signing.reveal().hex() not in str(vars(KEY))


def test_what_an_officer_signs(ada: Officer) -> None:
    """A note opens with the public key and the name, and with no other officer's."""
    note = KEY.sign("ada", "a text\n")

    assert open_note(bytes.fromhex(ada.verify), "ada", note) == "a text\n"
    with pytest.raises(BrokenSeal):
        open_note(bytes.fromhex(OfficerKey(new_key()).verify), "ada", note)
    with pytest.raises(BrokenSeal):
        open_note(bytes.fromhex(ada.verify), "bob", note)


def test_what_is_sealed_for_an_officer(ada: Officer) -> None:
    """The officer opens it and nobody else does; sealed twice it is not the same bytes."""
    secret = new_key()
    sealed = seal_for(ada, secret)

    assert KEY.unseal(sealed).reveal() == secret.reveal()
    assert sealed != seal_for(ada, secret)
    assert len(sealed) == 32 + 48
    with pytest.raises(BrokenSeal):
        OfficerKey(new_key()).unseal(sealed)


def test_every_bit_and_length_of_a_sealed_secret_counts(ada: Officer) -> None:
    """Altered in one bit, cut short or extended, it does not open."""
    sealed = seal_for(ada, new_key())
    altered = [
        sealed[:index] + bytes([sealed[index] ^ 1 << bit]) + sealed[index + 1 :]
        for index in range(len(sealed))
        for bit in range(8)
    ]
    # X25519 ignores the highest bit of a public key (RFC 7748, section 5), but the nonce is derived from all of it.
    for one in [*altered, *(sealed[:length] for length in range(len(sealed))), sealed + b"\x00"]:
        with pytest.raises(BrokenSeal, match=r"^this is not sealed for the key of this officer$"):
            KEY.unseal(one)


@pytest.mark.parametrize("receive", ["00" * 32, "01" + "00" * 31, "00", "", "zz"])
def test_a_public_key_that_is_none(ada: Officer, receive: str) -> None:
    """A point that would make every sealed box open to all is refused when it is used."""
    with pytest.raises(OfficerRefused, match=r"^the public key of ada is none: remove and add"):
        seal_for(msgspec.structs.replace(ada, receive=receive), new_key())


# --- the entry ---


def test_an_officer_is_written_and_read(ada: Officer) -> None:
    """An entry comes back from JSON, and its names are all that is in it."""
    assert msgspec.json.decode(msgspec.json.encode(ada), type=Officer) == ada
    assert (ada.removed, ada.acknowledged, ada.acknowledgement) == (None, None, "")


@pytest.mark.parametrize(
    "name", ["", "a", "A1", "1a", "ada\n", "ada lovelace", "ada/", "../a", "-ada", "ädä", "a" * 32, "ada\u2014"]
)
def test_a_name_that_is_none(ada: Officer, now: datetime, name: str) -> None:
    """A name is what can stand in a note, a file's name and a command; here and in the manifest."""
    with pytest.raises(OfficerRefused, match="an officer's name has 2 to 31"):
        officer_of(name, KEY, now)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(ada, name=name)), type=Officer)


@pytest.mark.parametrize("name", ["ab", "ada", "ada.l-2_b", "a" * 31])
def test_a_name(now: datetime, name: str) -> None:
    """Both ends of what is allowed."""
    assert officer_of(name, KEY, now).name == name


@pytest.mark.parametrize(
    "change",
    [{"verify": "00"}, {"receive": "A" * 64}, {"verify": "0" * 64 + "\n"}, {"added": datetime(2026, 1, 1)}],  # noqa: DTZ001 # without a time zone: that is refused
)
def test_a_manifest_with_a_malformed_officer(ada: Officer, change: dict[str, str]) -> None:
    """Keys are 64 hex digits in one spelling, and times have a time zone."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(msgspec.structs.replace(ada, **change)), type=Officer)


def test_who_is_an_officer(ada: Officer, now: datetime) -> None:
    """Found by name; a removed one is said to be removed, and may come back under a new key."""
    bob = officer_of("bob", OfficerKey(new_key()), now)
    gone = msgspec.structs.replace(bob, removed=now)

    assert find_officer([ada, bob], "bob") is bob
    assert find_officer([gone, bob, ada], "bob") is bob
    with pytest.raises(OfficerRefused, match=r"^bob was removed as an officer"):
        find_officer([ada, gone], "bob")
    with pytest.raises(OfficerRefused, match=r"^no officer is called eve: `keys officer list`"):
        find_officer([ada, bob], "eve")
    with pytest.raises(OfficerRefused, match=r"^bob is the name of two officers"):
        find_officer([bob, bob], "bob")


def test_a_name_out_of_a_file_is_not_shown_blindly(ada: Officer) -> None:
    """What is no name may be anything, an escape sequence too."""
    with pytest.raises(OfficerRefused, match=r"^no officer is called that"):
        find_officer([ada], "\x1b[2Jada")


def test_one_person_twice(ada: Officer, now: datetime) -> None:
    """The same name, or one of the two keys in common, is the same officer."""
    bob = officer_of("bob", OfficerKey(new_key()), now)

    assert not is_same_person(ada, bob)
    for change in ({"name": "ada"}, {"verify": ada.verify}, {"receive": ada.receive}):
        assert is_same_person(ada, msgspec.structs.replace(bob, **change))


# --- the acknowledgement ---


@pytest.fixture
def acknowledged(ada: Officer, now: datetime) -> Officer:
    """The same officer, who has acknowledged the duties now."""
    return with_acknowledgement(ada, acknowledge(KEY, "ada", now), now)


def test_an_acknowledgement_holds_for_a_year(acknowledged: Officer, now: datetime) -> None:
    """To the microsecond, and it can be read by a person."""
    assert acknowledged.acknowledged == now
    assert "I understand and accept my duties" in acknowledged.acknowledgement
    check_acknowledgement(acknowledged, now)
    check_acknowledgement(acknowledged, now + YEAR - TICK)
    with pytest.raises(OfficerRefused, match=r"^the acknowledgement of ada ended on 2027-03-14: `keys officer ack"):
        check_acknowledgement(acknowledged, now + YEAR)
    assert ACKNOWLEDGED_FOR == YEAR


def test_an_acknowledgement_is_renewed(acknowledged: Officer, now: datetime) -> None:
    """After it ended a new one takes its place, and an old note does not."""
    later = now + 2 * YEAR
    renewed = with_acknowledgement(acknowledged, acknowledge(KEY, "ada", later), later)

    check_acknowledgement(renewed, later)
    with pytest.raises(OfficerRefused, match="ended on"):
        with_acknowledgement(renewed, acknowledged.acknowledgement, later)


def test_none_yet(ada: Officer, now: datetime) -> None:
    """An officer who has not acknowledged anything is told how to."""
    with pytest.raises(
        OfficerRefused, match=r"^ada has not acknowledged the duties yet: `keys officer acknowledge`$"
    ):
        check_acknowledgement(ada, now)


def test_an_officer_who_was_removed(acknowledged: Officer, now: datetime) -> None:
    """A signature of this year does not help one who has left."""
    with pytest.raises(OfficerRefused, match="was removed"):
        check_acknowledgement(msgspec.structs.replace(acknowledged, removed=now), now)


def test_a_date_in_the_future(ada: Officer, now: datetime) -> None:
    """A minute of difference between two clocks is borne, and no more."""
    with_acknowledgement(ada, acknowledge(KEY, "ada", now + timedelta(seconds=60)), now)
    with pytest.raises(OfficerRefused, match="dated in the future: set the clocks right"):
        with_acknowledgement(ada, acknowledge(KEY, "ada", now + timedelta(seconds=60) + TICK), now)


def test_an_acknowledgement_of_another(ada: Officer, now: datetime) -> None:
    """Signed with another key, under another name, or by the key for a text of its own, it is not this officer's."""
    other = OfficerKey(new_key())
    own_words = KEY.sign("ada", acknowledge(KEY, "ada", now).rpartition("\n\n")[0].replace("alone", "often") + "\n")
    for note in (
        acknowledge(other, "ada", now),
        acknowledge(KEY, "bob", now),
        own_words,
        KEY.sign("ada", "I know.\n"),
        "",
        "\udcff",
    ):
        with pytest.raises(OfficerRefused, match=r"^the acknowledgement is not what ada signs"):
            with_acknowledgement(ada, note, now)


def test_a_date_changed_beside_the_note(acknowledged: Officer, now: datetime) -> None:
    """The entry counts only where the note says the same of it; a note altered or missing holds nothing."""
    for change in (
        {"acknowledged": now + TICK},
        {"acknowledged": now.replace(tzinfo=UTC) - YEAR},
        {"acknowledgement": ""},
        {"acknowledgement": acknowledged.acknowledgement.replace("2026", "2025")},
        {"receive": OfficerKey(new_key()).receive},
        {"verify": OfficerKey(new_key()).verify},
        {"name": "bob"},
    ):
        with pytest.raises(OfficerRefused, match=r"^the acknowledgement is not what"):
            check_acknowledgement(msgspec.structs.replace(acknowledged, **change), now)
