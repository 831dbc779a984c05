"""The raw primitives: published vectors through our own functions, and contexts that are never ambiguous."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.errors import BrokenSeal, UnknownFormat
from keys.primitives import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    commitment,
    context,
    decrypt,
    derive,
    encrypt,
    mac,
    new_key,
    require_equal,
    subkey,
)
from keys.secret import Secret
from tests.vectors.published import gcm_cases, hkdf_cases, hmac_cases

KEY = Secret(bytes(range(32)))


@pytest.mark.parametrize(
    ("file", "opening", "failing"), [("gcmDecrypt256.rsp", 184, 191), ("gcmEncryptExtIV256.rsp", 375, 0)]
)
def test_nist_gcm_vectors(file: str, opening: int, failing: int) -> None:
    """Every NIST case opens to its plaintext, or is refused where NIST says that it must fail."""
    cases = gcm_cases(file)
    for case in cases:
        if case.plaintext is None:
            with pytest.raises(BrokenSeal):
                decrypt(Secret(case.key), case.sealed, case.associated)
        else:
            assert decrypt(Secret(case.key), case.sealed, case.associated) == case.plaintext

    assert sum(case.plaintext is not None for case in cases) == opening
    assert sum(case.plaintext is None for case in cases) == failing


def test_rfc_5869_hkdf_vectors() -> None:
    """The three SHA-256 cases of RFC 5869 come out, salt included."""
    cases = hkdf_cases()
    for case in cases:
        assert derive(Secret(case.key), case.info, case.length, case.salt) == case.output

    assert len(cases) == 3


def test_no_salt_is_an_empty_salt() -> None:
    """RFC 5869 §2.2: a salt that is left out and an empty one are the same."""
    unsalted = next(case for case in hkdf_cases() if not case.salt)

    assert derive(Secret(unsalted.key), unsalted.info, unsalted.length) == unsalted.output


def test_rfc_4231_hmac_vectors() -> None:
    """The six untruncated SHA-256 cases of RFC 4231 come out."""
    cases = hmac_cases()
    for case in cases:
        assert mac(Secret(case.key), case.message) == case.mac

    assert len(cases) == 6


def test_encrypt_chooses_a_fresh_nonce() -> None:
    """One plaintext, encrypted often, never has a nonce twice, and opens each time."""
    sealed = [encrypt(KEY, b"same", b"bound") for _ in range(200)]

    assert len({one[:NONCE_BYTES] for one in sealed}) == 200
    assert {decrypt(KEY, one, b"bound") for one in sealed} == {b"same"}


def test_sealed_bytes_are_nonce_ciphertext_tag() -> None:
    """Nothing but a nonce and a tag is added to the length."""
    assert len(encrypt(KEY, b"x" * 100, b"")) == NONCE_BYTES + 100 + TAG_BYTES


@pytest.mark.parametrize("length", range(NONCE_BYTES + TAG_BYTES))
def test_too_short_to_decrypt(length: int) -> None:
    """What cannot hold a nonce and a tag is of no format of ours."""
    with pytest.raises(UnknownFormat):
        decrypt(KEY, bytes(length), b"")


def test_associated_bytes_are_authenticated() -> None:
    """Sealed bytes do not open beside other associated bytes, and the message quotes neither."""
    sealed = encrypt(KEY, b"plaintext", b"here")

    with pytest.raises(BrokenSeal, match=r"^the sealed bytes are not authentic here$") as caught:
        decrypt(KEY, sealed, b"there")
    assert caught.value.__cause__ is None


def test_new_keys_differ() -> None:
    """Keys are 32 bytes and never the same."""
    keys = {new_key().reveal() for _ in range(200)}

    assert len(keys) == 200
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_subkeys_differ_by_key_and_label() -> None:
    """A label, each field of it and the key itself all matter; the same give the same."""
    labels: list[tuple[str | int, ...]] = [("a", "bc"), ("ab", "c"), ("abc",), ("a", "bc", ""), ("a", "bc", 1)]
    derived = {subkey(key, *label).reveal() for key in (KEY, Secret(bytes(32))) for label in labels}

    assert len(derived) == 2 * len(labels)
    assert subkey(KEY, "a", "bc").reveal() in derived


def test_commitment_is_of_one_key_under_one_id() -> None:
    """Another key or another id has another commitment, and none is the key or a subkey."""
    commitments = {commitment(key, key_id) for key in (KEY, Secret(bytes(32))) for key_id in ("kek-1", "kek-2")}

    assert len(commitments) == 4
    assert KEY.reveal() not in commitments


def test_require_equal_raises_the_given_error() -> None:
    """Equal bytes pass; any others raise what the caller gave."""
    require_equal(b"same", b"same", BrokenSeal("not raised"))

    for other in (b"sane", b"sam", b"same ", b""):
        with pytest.raises(BrokenSeal, match="raised"):
            require_equal(b"same", other, BrokenSeal("raised"))


def _fields_of(raw: bytes) -> list[bytes]:
    fields = []
    while raw:
        length = int.from_bytes(raw[:4], "big")
        fields.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return fields


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_context_can_be_read_back(fields: list[bytes]) -> None:
    """A context gives its fields back whatever they hold: so no two lists of fields share one."""
    assert _fields_of(context(*fields)) == fields


@settings(deadline=None)
@given(st.text(min_size=1, max_size=20), st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_context_depends_on_where_fields_end(text: str, one: set[int], other: set[int]) -> None:
    """One text, cut at different places, gives equal contexts only for equal cuts."""

    def cut(places: set[int]) -> list[str]:
        edges = [0, *sorted(place for place in places if place <= len(text)), len(text)]
        return [text[start:end] for start, end in pairwise(edges)]

    assert (context(*cut(one)) == context(*cut(other))) == (cut(one) == cut(other))


def test_context_of_numbers_and_text() -> None:
    """A number stands for its decimal text, text for its UTF-8."""
    assert context(1, "ü", b"\x00") == b"\x00\x00\x00\x011" + b"\x00\x00\x00\x02\xc3\xbc" + b"\x00\x00\x00\x01\x00"
