"""One-time codes: the vectors of RFC 6238, which steps are taken, and seeds that open in one place only."""

from datetime import UTC, datetime
from urllib.parse import parse_qs, urlparse

import pytest

from gateway.errors import SignInRefused
from gateway.rules.totp import (
    SEED_BYTES,
    STEP_S,
    base32,
    code_at,
    new_seed,
    open_seed,
    otpauth_uri,
    require_code,
    seal_seed,
)
from keys.errors import BrokenSeal
from keys.primitives import new_key
from keys.secret import Secret

SEED = Secret(b"12345678901234567890")
VECTORS = {59: "287082", 1111111109: "081804", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130"}
"""RFC 6238 appendix B, the last six of its eight digits."""
NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)
STEP = int(NOW.timestamp()) // STEP_S


@pytest.mark.parametrize(("second", "code"), VECTORS.items())
def test_codes_are_those_of_the_standard(second: int, code: str) -> None:
    """Every vector of RFC 6238 gives its code, and the code its step."""
    assert code_at(SEED, second // STEP_S) == code
    assert require_code(SEED, code, datetime.fromtimestamp(second, UTC)) == second // STEP_S


@pytest.mark.parametrize("late", [-1, 0, 1])
def test_a_neighbouring_step_is_taken(late: int) -> None:
    """A clock may be one step off either way; the step that comes back is the code's own."""
    assert require_code(SEED, code_at(SEED, STEP + late), NOW) == STEP + late


@pytest.mark.parametrize("late", [-3, -2, 2, 3])
def test_no_further_step_is_taken(late: int) -> None:
    """Two steps off is too much."""
    with pytest.raises(SignInRefused):
        require_code(SEED, code_at(SEED, STEP + late), NOW)


def test_a_code_may_be_typed_as_it_is_shown() -> None:
    """Apps show a space in the middle."""
    code = code_at(SEED, STEP)
    assert require_code(SEED, f" {code[:3]} {code[3:]} ", NOW) == STEP


@pytest.mark.parametrize("code", ["", "12345", "1234567", "abcdef", "١٢٣٤٥٦", "\ud800", "-12345", "1e5+00"])
def test_what_is_no_code_is_refused_like_a_wrong_one(code: str) -> None:
    """Nothing that can be typed in place of a code is another error."""
    with pytest.raises(SignInRefused):
        require_code(SEED, code, NOW)


def test_a_seed_opens_for_its_account_only() -> None:
    """Moved to another account, altered, cut or without its key, a sealed seed does not open."""
    keys, seed = {1: new_key(), 2: new_key()}, new_seed()
    sealed = seal_seed(keys, "st_1", seed)

    assert sealed[0] == 2
    assert open_seed(keys, "st_1", sealed).reveal() == seed.reveal()
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for staff_id, raw in [("st_2", sealed), ("st_1", altered), ("st_1", b"\x01" + sealed[1:]), ("st_1", b"")]:
        with pytest.raises(BrokenSeal):
            open_seed(keys, staff_id, raw)
    with pytest.raises(BrokenSeal):
        open_seed({1: keys[1]}, "st_1", sealed)
    assert seed.reveal() not in sealed


def test_an_older_key_still_opens() -> None:
    """After a rotation what was sealed before opens as long as its key is there."""
    older = {1: new_key()}
    sealed = seal_seed(older, "st_1", SEED)
    assert open_seed(older | {2: new_key()}, "st_1", sealed).reveal() == SEED.reveal()


def test_an_app_learns_the_seed_from_text_or_picture() -> None:
    """Both forms carry the same 160 bits, and the account's name."""
    seed = new_seed()
    uri = urlparse(otpauth_uri("a.chen", seed).reveal())

    assert len(seed.reveal()) == SEED_BYTES
    assert parse_qs(uri.query)["secret"] == [base32(seed).reveal()]
    assert "a.chen" in uri.path
    assert "issuer=City%20payments" in uri.query
    assert "+" not in uri.geturl()
