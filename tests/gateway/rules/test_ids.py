"""Ids: their shape, their randomness, and that none looks like a card number."""

import re
from types import SimpleNamespace

import pytest

from gateway.rules import ids
from gateway.rules.ids import ALPHABET, new_id


def test_an_id_is_a_prefix_and_130_random_bits() -> None:
    """A prefix, an underscore, and 26 characters out of 32."""
    assert re.fullmatch(r"tok_[a-z2-7]{26}", new_id("tok"))
    assert len(set(ALPHABET)) == 32


def test_ids_do_not_repeat() -> None:
    """Many ids are all different, and each place takes every character."""
    drawn = [new_id("ch").removeprefix("ch_") for _ in range(10_000)]

    assert len(set(drawn)) == len(drawn)
    for place in zip(*drawn, strict=True):
        assert set(place) == set(ALPHABET)


def test_ids_tell_neither_time_nor_order() -> None:
    """Ids that were drawn one after the other are not in order, and share no beginning."""
    drawn = [new_id("ch") for _ in range(100)]

    assert drawn != sorted(drawn)
    assert len({text[:9] for text in drawn}) > 90


@pytest.mark.parametrize("digits", [13, 26])
def test_an_id_with_a_run_of_thirteen_digits_is_drawn_again(monkeypatch: pytest.MonkeyPatch, digits: int) -> None:
    """What could be taken for a card number is thrown away; twelve digits in a row may stay."""
    seven, letter = b"\xff", b"\x00"  # 31 is the digit 7, 0 the letter a
    too_many = seven * digits + letter * (26 - digits)
    draws = iter([too_many, too_many[::-1], seven * 12 + letter * 14])
    monkeypatch.setattr(ids, "secrets", SimpleNamespace(token_bytes=lambda _: next(draws)))

    assert new_id("ch") == "ch_" + "7" * 12 + "a" * 14
    assert next(draws, None) is None
