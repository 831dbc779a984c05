"""Charges: committed before they are sent, sent once, and never answered with a hope (`services.sending`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

from gateway.errors import GatewayError, Unavailable
from gateway.rules.access import Application
from gateway.rules.card import Card, require_valid
from gateway.rules.idempotency import request_digest
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.money import require_amount, require_currency, require_fee
from gateway.rules.personal import require_taken
from gateway.services.idempotency import answer_again, require_same_card, require_same_request
from gateway.services.intents import first_movement_id
from gateway.services.mint import CardGiven, Mint, Minting
from gateway.services.points import Point, Points
from gateway.services.ports import (
    Answer,
    Begun,
    Charge,
    ChargeStore,
    Claim,
    Claimed,
    Clock,
    Intent,
    KeysMoved,
    Movement,
    Payment,
)
from gateway.services.sending import HELD_S_MAX, Sender, audit_row
from gateway.services.vault import Sealing, Vault
from keys.audit import AuditPen, Outcome
from keys.errors import KeysError

ROUTE = "POST /v1/charges"
STORE_TRIES_MAX = 3


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """A well-formed request. Exactly one of `token_id` and `given` is there."""

    amount_minor: int
    currency: str
    reference: str
    service: str | None
    fee_minor: int
    capture: bool
    token_id: str | None
    given: CardGiven | None
    details: object = field(repr=False)
    request_id: str

    @property
    def digest(self) -> bytes:
        """What a repeated request must share, the card aside."""
        return request_digest(
            self.amount_minor,
            self.currency,
            self.reference,
            self.service,
            self.capture,
            self.fee_minor,
            self.token_id,
        )

    @property
    def payment(self) -> Payment | None:
        """The card that came with it."""
        return Payment(self.given.card, self.given.name, self.given.cvc) if self.given else None


@dataclass(slots=True)
class Prepared:
    """An intent's parts; sealed, not yet stored."""

    charge: Charge
    movement: Movement
    claim: Claim
    card: Card | None
    minting: Minting | None
    details: Sealing | None

    @property
    def intent(self) -> Intent:
        """The rows to commit."""
        new_token = self.minting.new if self.minting else None
        return Intent(
            self.charge, self.movement, self.claim, new_token, self.details.record if self.details else None
        )

    async def follow_rotation(self, vault: Vault) -> None:
        """Make everything anew that the keys of a moment ago have made."""
        await vault.look()
        if self.card is not None:
            part = await vault.card_part(self.charge.department, self.card)
            self.claim = replace(self.claim, card_part=part)
        for sealed in (self.minting, self.details):
            if sealed is not None:
                await sealed.follow_rotation()


class Charges:
    """Make, show and list the charges of a department.

    With `documented_only` a convenience fee needs a documented cost; without it, only a fee above one is refused.
    """

    def __init__(
        self,
        store: ChargeStore,
        vault: Vault,
        mint: Mint,
        sender: Sender,
        pen: AuditPen,
        clock: Clock,
        city: ZoneInfo,
        at: Points,
        *,
        documented_only: bool = False,
    ) -> None:
        self._store = store
        self._vault = vault
        self._mint = mint
        self._sender = sender
        self._pen = pen
        self._clock = clock
        self._city = city
        self._at = at
        self._documented_only = documented_only

    async def create(self, caller: Application, request: ChargeRequest, key: str) -> Answer:
        """Charge a token or a card; under a key that was used before, the truth about that charge."""
        charge = _new_charge(caller, request, self._clock)
        card = request.given.card if request.given else None
        part = await self._vault.card_part(caller.department, card) if card else None
        claim = Claim(ROUTE, key, request.digest, part, charge.charge_id)
        try:
            self._require_allowed(caller, request)
            prepared = await self._prepare(caller, request, charge, claim)
        except (GatewayError, KeysError):
            # What cannot be done now may have been answered before. What can learns that when it is stored.
            earlier = await self._store.claimed(caller.department, ROUTE, key)
            if earlier is None:
                raise
            return await self._repeat(caller, claim, earlier, card)
        await self._at(Point.RECEIVED)
        until_s = self._clock.monotonic() + HELD_S_MAX
        begun = await self._begin(request, prepared)
        if isinstance(begun, Claimed):
            return await self._repeat(caller, claim, begun, card)
        return await self._sender.send(begun, request.payment, request.request_id, until_s)

    async def show(self, caller: Application, charge_id: str) -> Charge:
        """A charge of the caller's department; raises `NotFound`."""
        return await self._store.charge(caller.department, charge_id)

    async def list(
        self, caller: Application, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """Newest first; raises `NotFound` when `starting_after` is no charge of the department."""
        return await self._store.charges(caller.department, reference, limit, starting_after)

    def _require_allowed(self, caller: Application, request: ChargeRequest) -> None:
        require_taken(caller.department, caller.personal_fields, request.details)
        caller.require_service(request.service)
        require_currency(request.currency)
        require_amount(request.amount_minor, caller.amount_minor_max)
        require_fee(request.fee_minor, request.amount_minor)
        now = self._clock.now()
        day = now.astimezone(self._city).date()
        caller.fee_costs.require_covers(
            request.fee_minor, request.amount_minor, day, documented_only=self._documented_only
        )
        if request.given is not None:
            require_valid(request.given.card, self._city, now)

    async def _prepare(self, caller: Application, request: ChargeRequest, charge: Charge, claim: Claim) -> Prepared:
        minting = details = None
        if request.given is not None:
            minting = await self._mint.token(
                caller, request.given, charge.token_id, "single", spent=True, cvc_check="unchecked"
            )
        if request.details is not None:
            details = await self._vault.seal_details(caller.department, charge.charge_id, request.details)
        card = request.given.card if request.given else None
        return Prepared(charge, _first_movement(charge, request, claim), claim, card, minting, details)

    async def _begin(self, request: ChargeRequest, prepared: Prepared) -> Begun | Claimed:
        event = "card.opened" if request.given is None else "card.received"
        audit = audit_row(self._pen, self._clock, prepared.movement, event, Outcome.DONE, request.request_id)
        for _ in range(STORE_TRIES_MAX):
            try:
                return await self._store.begin_charge(prepared.intent, audit)
            except KeysMoved:
                await prepared.follow_rotation(self._vault)
        raise Unavailable

    async def _repeat(self, caller: Application, claim: Claim, earlier: Claimed, card: Card | None) -> Answer:
        require_same_request(claim, earlier)
        if card is not None:
            await require_same_card(self._vault, caller.department, card, earlier)
        movement_id = first_movement_id(earlier.subject_id)
        return await answer_again(self._store, caller.department, claim, earlier, movement_id)


def _new_charge(caller: Application, request: ChargeRequest, clock: Clock) -> Charge:
    return Charge(
        department=caller.department,
        charge_id=new_id("ch"),
        application_id=caller.application_id,
        token_id=request.token_id or new_id("tok"),
        amount_minor=request.amount_minor,
        currency=request.currency,
        convenience_fee_minor=request.fee_minor,
        service=request.service,
        reference=request.reference,
        processor_reference=new_id("pr"),
        kind=Kind.SALE if request.capture else Kind.AUTHORIZATION,
        progress=Progress.SENDING,
        captured_minor=0,
        refunded_minor=0,
        refunding_minor=0,
        cvc_check="unchecked",
        decline_class=None,
        decline_code=None,
        created_at=clock.now(),
    )


def _first_movement(charge: Charge, request: ChargeRequest, claim: Claim) -> Movement:
    return Movement(
        department=charge.department,
        movement_id=first_movement_id(charge.charge_id),
        charge_id=charge.charge_id,
        kind=charge.kind,
        amount_minor=charge.amount_minor,
        currency=charge.currency,
        reference=charge.processor_reference,
        charge_reference=charge.processor_reference,
        application_id=charge.application_id,
        route=claim.route,
        idempotency_key=claim.key,
        progress=charge.progress,
        with_cvc=request.given is not None and request.given.cvc is not None,
        not_after=charge.created_at,
        epoch=0,
        sends=1,
        decline_class=None,
        decline_code=None,
        created_at=charge.created_at,
        running=True,
    )
