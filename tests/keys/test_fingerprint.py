"""Fingerprints: stable, keyed, and joined across nothing."""

import hashlib
import hmac
from itertools import product

import pytest

from keys.fingerprint import card_index, card_part
from keys.primitives import context, new_key
from keys.secret import Secret
from tests.cards import CANARY, PUBLISHED

NUMBER = next(iter(PUBLISHED))


@pytest.fixture
def key() -> Secret[bytes]:
    """A fingerprint key."""
    return new_key()


def test_equal_cards_have_equal_fingerprints(key: Secret[bytes]) -> None:
    """The same card in the same department gives the same 32 bytes, each time."""
    first, second = (card_index(key, "demo", "parks", Secret(NUMBER)) for _ in range(2))

    assert first == second
    assert len(first) == 32


def test_nothing_can_be_joined(key: Secret[bytes]) -> None:
    """Key, environment, department, purpose, number and expiry each change every value."""
    other = new_key()
    values = []
    for used, environment, department in product((key, other), ("demo", "live"), ("parks", "utilities")):
        for number in (NUMBER, CANARY):
            values.append(card_index(used, environment, department, Secret(number)))
            values += [card_part(used, environment, department, Secret(number), on) for on in ("2027-01", "2027-02")]

    assert len(set(values)) == len(values) == 48


def test_number_and_expiry_do_not_run_together(key: Secret[bytes]) -> None:
    """A digit cannot wander from the number into the expiry."""
    assert card_part(key, "demo", "parks", Secret("41"), "12027") != card_part(
        key, "demo", "parks", Secret("411"), "2027"
    )


def test_purposes_have_keys_of_their_own(key: Secret[bytes]) -> None:
    """Even a number that spells what the other purpose is made of gives another value."""
    spelled = Secret(context("41", "2027-01").decode())

    assert card_index(key, "demo", "parks", spelled) != card_part(key, "demo", "parks", Secret("41"), "2027-01")


def test_no_unkeyed_hash_of_the_number(key: Secret[bytes]) -> None:
    """The index is not a plain hash of the number, nor a MAC under the ring's key itself."""
    index = card_index(key, "demo", "parks", Secret(NUMBER))

    assert index != hashlib.sha256(NUMBER.encode()).digest()
    assert index != hmac.digest(key.reveal(), NUMBER.encode(), "sha256")
