"""The envelope against its vector file: what opens for ever, and which error each alteration gives."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.envelope import (
    COMMITMENT_BYTES,
    SEALED_BYTES_MIN,
    VERSION,
    WRAPPED_BYTES,
    Place,
    seal,
    unseal,
    unwrap_dek,
    wrap_dek,
)
from keys.errors import BrokenSeal, KeysError, UnknownFormat, WrongKey
from keys.primitives import KEY_BYTES, NONCE_BYTES, TAG_BYTES, context, derive, new_key
from keys.secret import Secret
from tests.cards import CANARY
from tests.keys.salamander import one_ciphertext_for_two_keys
from tests.vectors import make_envelope_v1

Error = type[KeysError]
PLACE = Place("demo", "parks", "tok_1")
ELSEWHERE = [
    replace(PLACE, environment="live"),
    replace(PLACE, department="utilities"),
    replace(PLACE, record="tok_2"),
]


class Vector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One case of `envelope-v1.json`; bytes are in hexadecimal."""

    name: str
    environment: str
    department: str
    record: str
    field_set: str
    generation: int
    dek: str
    kek: str
    plaintext: str
    sealed: str
    wrapped: str

    @property
    def place(self) -> Place:
        return Place(self.environment, self.department, self.record)

    @property
    def dek_secret(self) -> Secret[bytes]:
        return Secret(bytes.fromhex(self.dek))

    @property
    def sealed_bytes(self) -> bytes:
        return bytes.fromhex(self.sealed)

    @property
    def wrapped_bytes(self) -> bytes:
        return bytes.fromhex(self.wrapped)

    def unseal(self, sealed: bytes) -> bytes:
        return unseal(self.dek_secret, self.place, self.field_set, sealed).reveal()

    def unwrap(self, wrapped: bytes) -> bytes:
        return unwrap_dek(Secret(bytes.fromhex(self.kek)), self.place, self.generation, wrapped).reveal()


@dataclass(frozen=True)
class Field:
    """One field of a format: how long it is (None: what is left), and what altering it must raise."""

    name: str
    length: int | None
    error: Error


SEALED = (
    Field("version", len(VERSION), UnknownFormat),
    Field("commitment", COMMITMENT_BYTES, WrongKey),
    Field("nonce", NONCE_BYTES, BrokenSeal),
    Field("ciphertext", None, BrokenSeal),
    Field("tag", TAG_BYTES, BrokenSeal),
)
WRAPPED = (
    Field("version", len(VERSION), UnknownFormat),
    Field("nonce", NONCE_BYTES, BrokenSeal),
    Field("ciphertext", None, BrokenSeal),
    Field("tag", TAG_BYTES, BrokenSeal),
)
VECTORS = msgspec.json.decode(make_envelope_v1.FILE.read_bytes(), type=list[Vector])
each_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def field_of_each_byte(fields: tuple[Field, ...], length: int) -> list[Field]:
    """The field that each byte of a string of this length belongs to."""
    open_bytes = length - sum(field.length or 0 for field in fields)
    return [field for field in fields for _ in range(open_bytes if field.length is None else field.length)]


def flips(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Every string that differs in one bit, with the index of the byte."""
    for index, bit in product(range(len(raw)), range(8)):
        yield index, raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :]


def error_of(act: Callable[..., object], *given: object) -> Error:
    """The exact class that this call raises; a subclass is another answer."""
    with pytest.raises(KeysError) as caught:
        act(*given)
    return caught.type


def test_there_are_five_vectors() -> None:
    """The vector file holds all its cases: none of them can go unnoticed."""
    assert [vector.name for vector in VECTORS] == [case[0] for case in make_envelope_v1.CASES]
    assert len(VECTORS) == 5


def test_vector_file_follows_from_the_description() -> None:
    """The file is what its generator makes, which is written without our code."""
    assert make_envelope_v1.FILE.read_text(encoding="utf-8") == make_envelope_v1.document()


@each_vector
def test_vector_opens(vector: Vector) -> None:
    """What version 1 sealed and wrapped opens with this release."""
    assert vector.unseal(vector.sealed_bytes).hex() == vector.plaintext
    assert vector.unwrap(vector.wrapped_bytes).hex() == vector.dek


@each_vector
def test_seal_writes_version_1(vector: Vector) -> None:
    """What we seal now has the vector's version, commitment and length; only nonce and what follows it differ."""
    plaintext = Secret(bytes.fromhex(vector.plaintext))
    sealed = seal(vector.dek_secret, vector.place, vector.field_set, plaintext)
    fixed = len(VERSION) + COMMITMENT_BYTES

    assert sealed[:fixed] == vector.sealed_bytes[:fixed]
    assert len(sealed) == len(vector.sealed_bytes)
    assert vector.unseal(sealed).hex() == vector.plaintext


@each_vector
def test_every_bit_of_a_sealed_record_counts(vector: Vector) -> None:
    """Any flipped bit is refused, with the error of the field that it stands in."""
    expected = field_of_each_byte(SEALED, len(vector.sealed_bytes))
    for index, altered in flips(vector.sealed_bytes):
        assert error_of(vector.unseal, altered) is expected[index].error, expected[index].name


@each_vector
def test_every_bit_of_a_wrapped_key_counts(vector: Vector) -> None:
    """Any flipped bit is refused, with the error of the field that it stands in."""
    expected = field_of_each_byte(WRAPPED, len(vector.wrapped_bytes))
    assert len(expected) == WRAPPED_BYTES
    for index, altered in flips(vector.wrapped_bytes):
        assert error_of(vector.unwrap, altered) is expected[index].error, expected[index].name


@each_vector
def test_a_sealed_record_cut_short(vector: Vector) -> None:
    """Cut anywhere it is refused: as no format while a field is missing, as altered when only ciphertext is."""
    for length in range(len(vector.sealed_bytes)):
        expected = UnknownFormat if length < SEALED_BYTES_MIN else BrokenSeal
        assert error_of(vector.unseal, vector.sealed_bytes[:length]) is expected


@each_vector
def test_a_wrapped_key_cut_short_or_extended(vector: Vector) -> None:
    """A wrapped key has one length; any other is no format of ours."""
    for length in range(WRAPPED_BYTES):
        assert error_of(vector.unwrap, vector.wrapped_bytes[:length]) is UnknownFormat
    assert error_of(vector.unwrap, vector.wrapped_bytes + b"\x00") is UnknownFormat


@each_vector
@pytest.mark.parametrize("extra", [b"\x00", b"\x01", bytes(16)])
def test_a_sealed_record_extended(vector: Vector, extra: bytes) -> None:
    """Bytes behind the tag are refused; a byte before the version is no format of ours."""
    assert error_of(vector.unseal, vector.sealed_bytes + extra) is BrokenSeal
    assert error_of(vector.unseal, b"\x00" + vector.sealed_bytes) is UnknownFormat


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_record_opens_in_its_place_only(elsewhere: Place) -> None:
    """Another environment, department or record is refused before anything is decrypted."""
    dek = new_key()
    sealed = seal(dek, PLACE, "card", Secret(b"plaintext"))

    assert error_of(unseal, dek, elsewhere, "card", sealed) is WrongKey


def test_a_record_opens_as_its_field_set_only() -> None:
    """The sealed card does not open as details, nor with another data key."""
    dek = new_key()
    sealed = seal(dek, PLACE, "card", Secret(b"plaintext"))

    assert error_of(unseal, dek, PLACE, "details", sealed) is WrongKey
    assert error_of(unseal, new_key(), PLACE, "card", sealed) is WrongKey


def test_a_place_is_also_associated_data() -> None:
    """With the right derived key, but without the place as associated bytes, nothing opens: the binding is double."""
    dek = new_key()
    sealed = seal(dek, PLACE, "card", Secret(b"plaintext"))
    bound = context("envelope/record", VERSION, "demo", "parks", "tok_1", "card")
    key = AESGCM(derive(dek, bound, KEY_BYTES + COMMITMENT_BYTES)[:KEY_BYTES])
    body = sealed[len(VERSION) + COMMITMENT_BYTES :]

    assert key.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], bound) == b"plaintext"
    with pytest.raises(InvalidTag):
        key.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], b"")


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_wrap_opens_in_its_place_only(elsewhere: Place) -> None:
    """The wrap of another environment, department or record is refused."""
    kek, dek = new_key(), new_key()
    wrapped = wrap_dek(kek, PLACE, 1, dek)

    assert error_of(unwrap_dek, kek, elsewhere, 1, wrapped) is BrokenSeal


def test_a_wrap_opens_under_its_generation_only() -> None:
    """Another generation's number is refused even with the right key, and another key with the right number."""
    kek, dek = new_key(), new_key()
    wrapped = wrap_dek(kek, PLACE, 1, dek)

    assert unwrap_dek(kek, PLACE, 1, wrapped).reveal() == dek.reveal()
    assert error_of(unwrap_dek, kek, PLACE, 2, wrapped) is BrokenSeal
    assert error_of(unwrap_dek, new_key(), PLACE, 1, wrapped) is BrokenSeal


def test_places_do_not_run_together() -> None:
    """Departments and records whose names join to the same text are still different places."""
    dek = new_key()
    sealed = seal(dek, Place("demo", "parks", "x1"), "card", Secret(b"plaintext"))

    assert error_of(unseal, dek, Place("demo", "parksx", "1"), "card", sealed) is WrongKey


def test_rotation_leaves_the_record_alone() -> None:
    """A data key wrapped again under another generation opens the record that was sealed before."""
    old, new, dek = new_key(), new_key(), new_key()
    sealed = seal(dek, PLACE, "card", Secret(b"plaintext"))
    wrapped = wrap_dek(new, PLACE, 2, unwrap_dek(old, PLACE, 1, wrap_dek(old, PLACE, 1, dek)))

    assert unseal(unwrap_dek(new, PLACE, 2, wrapped), PLACE, "card", sealed).reveal() == b"plaintext"


@settings(deadline=None)
@given(st.binary(max_size=300), st.text(), st.text(), st.text(), st.text())
def test_what_is_sealed_opens(plaintext: bytes, environment: str, department: str, record: str, fields: str) -> None:
    """Whatever the bytes and the names are, sealing and unsealing gives the bytes back."""
    dek, place = new_key(), Place(environment, department, record)

    assert unseal(dek, place, fields, seal(dek, place, fields, Secret(plaintext))).reveal() == plaintext


def test_messages_tell_nothing_of_key_or_plaintext() -> None:
    """No refusal quotes a byte of the key or of the record."""
    dek = new_key()
    sealed = seal(dek, PLACE, "card", Secret(CANARY.encode()))
    for _, altered in flips(sealed):
        with pytest.raises(KeysError) as caught:
            unseal(dek, PLACE, "card", altered)
        assert CANARY not in str(caught.value)
        assert dek.reveal().hex() not in str(caught.value)
        assert caught.value.__cause__ is None


# --- one ciphertext for two keys ---


@dataclass(frozen=True)
class Rivals:
    """Two data keys at one place, and all that somebody who knows both can derive."""

    deks: tuple[Secret[bytes], Secret[bytes]]
    bound: bytes
    derived: tuple[bytes, bytes]

    def keys(self) -> tuple[bytes, bytes]:
        return self.derived[0][:KEY_BYTES], self.derived[1][:KEY_BYTES]

    def commitments(self) -> tuple[bytes, bytes]:
        return self.derived[0][KEY_BYTES:], self.derived[1][KEY_BYTES:]

    def outcomes(self, commitment: bytes, body: bytes) -> list[Error | None]:
        """What each data key says to a record with this commitment and body; None where it opens."""
        return [self._outcome(dek, VERSION + commitment + body) for dek in self.deks]

    @staticmethod
    def _outcome(dek: Secret[bytes], sealed: bytes) -> Error | None:
        try:
            unseal(dek, PLACE, "card", sealed)
        except KeysError as error:
            return type(error)
        return None


@pytest.fixture
def rivals() -> Rivals:
    """Two data keys of one place."""
    deks = (new_key(), new_key())
    bound = context("envelope/record", VERSION, PLACE.environment, PLACE.department, PLACE.record, "card")
    first, second = (derive(dek, bound, KEY_BYTES + COMMITMENT_BYTES) for dek in deks)
    return Rivals(deks, bound, (first, second))


def opened_by_both(keys: tuple[bytes, bytes], body: bytes, associated: bytes) -> None:
    """Bare AES-GCM takes these bytes under either key; raises if not."""
    plaintexts = {AESGCM(key).decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], associated) for key in keys}
    assert len(plaintexts) == 2


def test_a_ciphertext_made_for_two_data_keys_opens_for_neither(rivals: Rivals) -> None:
    """What bare AES-GCM opens under both data keys is refused for both, whichever commitment is written before it."""
    keys = (rivals.deks[0].reveal(), rivals.deks[1].reveal())
    body = one_ciphertext_for_two_keys(*keys, bytes(range(NONCE_BYTES)), rivals.bound)
    opened_by_both(keys, body, rivals.bound)

    first, second = rivals.commitments()
    assert rivals.outcomes(first, body) == [BrokenSeal, WrongKey]
    assert rivals.outcomes(second, body) == [WrongKey, BrokenSeal]
    for neither in (bytes(COMMITMENT_BYTES), *keys, *rivals.keys()):
        assert rivals.outcomes(neither, body) == [WrongKey, WrongKey]


def test_a_ciphertext_made_for_two_derived_keys_opens_for_one_at_most(rivals: Rivals) -> None:
    """Who knows both data keys can aim at the derived keys, and still must choose which one the commitment names.

    The chosen one then opens: a holder of a data key can seal whatever he likes with it. Never do both.
    """
    body = one_ciphertext_for_two_keys(*rivals.keys(), bytes(range(NONCE_BYTES)), rivals.bound)
    opened_by_both(rivals.keys(), body, rivals.bound)

    first, second = rivals.commitments()
    assert rivals.outcomes(first, body) == [None, WrongKey]
    assert rivals.outcomes(second, body) == [WrongKey, None]
    blended = first[: COMMITMENT_BYTES // 2] + second[COMMITMENT_BYTES // 2 :]
    for neither in (blended, bytes(COMMITMENT_BYTES), *rivals.keys()):
        assert rivals.outcomes(neither, body) == [WrongKey, WrongKey]
