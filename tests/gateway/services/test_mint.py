"""Minting: what a card becomes, and what of it is in clear."""

from dataclasses import asdict
from datetime import timedelta

import msgspec
import pytest

from gateway.rules.access import Application
from gateway.rules.card import Brands, read_card
from gateway.services.mint import CardGiven, Mint
from gateway.services.vault import CARD, Vault
from keys import envelope
from keys.secret import Secret
from tests.cards import canary
from tests.gateway.services.conftest import Clock, Keys

NUMBER = canary(65_001)
HOLDER = "Ramona Testholder"
CALLER = Application("parks", "app_1", 50_000, None)


@pytest.fixture
def mint(vault: Vault, clock: Clock) -> Mint:
    """The mint of a process."""
    return Mint(vault, clock)


def given(brands: Brands, year: int = 2031) -> CardGiven:
    """What a resident typed."""
    card = read_card(brands, Secret(NUMBER), 12, year)
    return CardGiven(card, Secret(HOLDER), Secret("737"), {"street": "12 Main St"}, "I agree")


@pytest.mark.parametrize(("usage", "life"), [("single", timedelta(hours=24)), ("multi", timedelta(days=400))])
async def test_a_token_shows_no_more_than_it_may(
    mint: Mint, brands: Brands, clock: Clock, usage: str, life: timedelta
) -> None:
    """A token has the brand, the last four digits and dates of its own; its expiry is that of every such token."""
    new = (await mint.token(CALLER, given(brands), "tok_1", usage, cvc_check="pass")).new
    token = new.token
    assert (token.department, token.application_id, token.token_id) == ("parks", "app_1", "tok_1")
    assert (token.kind, token.usage, token.status, token.cvc_check) == ("card", usage, "active", "pass")
    assert (token.brand, token.last4) == ("visa", NUMBER[-4:])
    assert (token.created_at, token.expires_at) == (clock.now(), clock.now() + life)
    later = (await mint.token(CALLER, given(brands, 2040), "tok_2", usage, cvc_check="pass")).new
    assert later.token.expires_at == token.expires_at
    shown = repr(asdict(new))
    assert NUMBER not in shown
    assert HOLDER not in shown


async def test_a_spent_token_begins_spent(mint: Mint, brands: Brands) -> None:
    """The token of a charge that brings its card is spent from the start."""
    minting = await mint.token(CALLER, given(brands), "tok_1", "single", spent=True, cvc_check="unchecked")
    assert minting.new.token.status == "spent"


async def test_the_code_is_not_sealed(mint: Mint, brands: Brands, keys: Keys, clock: Clock) -> None:
    """The seal holds number, expiry, name, details and consent, and no verification code."""
    record = (await mint.token(CALLER, given(brands), "tok_1", "multi", cvc_check="pass")).new.record
    ring = keys.ring()
    place = ring.place("parks", "tok_1")
    plain = envelope.unseal(ring.unwrap(place, record.dek, clock.now()), place, CARD, record.sealed).reveal()
    assert msgspec.json.decode(plain) == {
        "number": NUMBER,
        "exp_month": 12,
        "exp_year": 2031,
        "name": HOLDER,
        "details": {"street": "12 Main St"},
        "consent": "I agree",
    }
    assert b"737" not in plain.replace(NUMBER.encode(), b"")


async def test_one_card_has_one_index(mint: Mint, brands: Brands) -> None:
    """Two tokens of one card have one index, and ids of the fingerprint that do not come from it."""
    one, other = [(await mint.token(CALLER, given(brands), "tok_1", "multi", cvc_check="pass")).new for _ in "12"]
    assert one.card_indexes == other.card_indexes
    assert one.token.fingerprint_id != other.token.fingerprint_id


async def test_minting_follows_a_rotation(mint: Mint, vault: Vault, brands: Brands, keys: Keys) -> None:
    """After a rotation the rows are the same but for the wrap."""
    minting = await mint.token(CALLER, given(brands), "tok_1", "multi", cvc_check="pass")
    before = minting.new
    keys.rotate()
    await vault.look()
    await minting.follow_rotation()
    after = minting.new
    assert (after.token, after.record.sealed, after.card_indexes) == (
        before.token,
        before.record.sealed,
        before.card_indexes,
    )
    assert (before.record.dek.generation, after.record.dek.generation) == (1, 2)


def test_what_was_typed_is_not_shown(brands: Brands) -> None:
    """A card given has no way into a log by its name."""
    assert repr(given(brands)) == "CardGiven(…)"
