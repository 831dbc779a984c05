"""Minting: a checked card becomes the rows of a new token, sealed under a data key of its own."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gateway.rules.access import Application
from gateway.rules.card import Card
from gateway.rules.ids import new_id
from gateway.services.ports import CardIndex, Clock, NewToken, Token
from gateway.services.vault import Sealing, Vault
from keys.secret import Secret

LIFE = {"single": timedelta(hours=24), "multi": timedelta(days=400)}
"""Until when a token may be charged: constants, so that the date tells nothing of the card's expiry."""


@dataclass(frozen=True, slots=True)
class CardGiven:
    """All that a person typed about a card. `details` and `consent` are JSON, checked and never shown again."""

    card: Card
    name: Secret[str]
    cvc: Secret[str] | None
    details: Any
    consent: Any

    def __repr__(self) -> str:
        return "CardGiven(…)"


class Minting:
    """A new token, sealed and not yet stored."""

    def __init__(
        self, vault: Vault, card: Card, token: Token, sealing: Sealing, card_indexes: tuple[CardIndex, ...]
    ) -> None:
        self._vault = vault
        self._card = card
        self._token = token
        self._sealing = sealing
        self._card_indexes = card_indexes

    @property
    def new(self) -> NewToken:
        """The rows to store."""
        return NewToken(self._token, self._sealing.record, self._card_indexes)

    async def follow_rotation(self) -> None:
        """Wrap the data key and index the card anew, after `Vault.look`."""
        await self._sealing.follow_rotation()
        self._card_indexes = await self._vault.card_indexes(self._token.department, self._card)


class Mint:
    """Makes tokens of cards."""

    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    async def token(
        self, caller: Application, given: CardGiven, token_id: str, usage: str, *, spent: bool = False, cvc_check: str
    ) -> Minting:
        """Seal a card. The fingerprint id is what the card gets if the department does not know it yet."""
        now = self._clock.now()
        token = Token(
            department=caller.department,
            token_id=token_id,
            application_id=caller.application_id,
            kind="card",
            usage=usage,
            status="spent" if spent else "active",
            brand=given.card.brand.name,
            last4=given.card.last4,
            fingerprint_id=new_id("fp"),
            cvc_check=cvc_check,
            created_at=now,
            expires_at=now + LIFE[usage],
        )
        sealing = await self._vault.seal_card(
            caller.department, token_id, given.card, given.name, given.details, given.consent
        )
        indexes = await self._vault.card_indexes(caller.department, given.card)
        return Minting(self._vault, given.card, token, sealing, indexes)
