"""Charges: committed before they are sent, sent once, and never answered with a hope.

    one commit: claim of the key, intent, token, audit row   ->   open the card   ->   send
    one commit: outcome, answer under the key, audit row     ->   answer

No transaction is open during the call. What the processor did not clearly say is *unknown*: answered 202, and
resolved by asking the processor when the same key or the charge is asked for again. That it does not know the
reference proves nothing, for the request may still be on its way.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from zoneinfo import ZoneInfo

import msgspec
import structlog

from gateway.errors import CaptureNotOffered, GatewayError, RequestInProgress, Unavailable
from gateway.rules.access import Application
from gateway.rules.card import Card, require_valid
from gateway.rules.idempotency import request_digest
from gateway.rules.ids import new_id
from gateway.rules.lifecycle import MEANINGS, Event, State
from gateway.rules.money import require_amount, require_currency, require_fee
from gateway.services.answers import charge_answer
from gateway.services.idempotency import earlier_answer
from gateway.services.mint import CardGiven, Mint, Minting
from gateway.services.ports import (
    CHARGES_ROUTE,
    Answer,
    Approved,
    Begun,
    Charge,
    ChargeStore,
    Claim,
    Claimed,
    Clock,
    Declined,
    Inquiry,
    Intent,
    KeysMoved,
    NotSent,
    Processor,
    SealedRecord,
)
from gateway.services.ports import Outcome as ProcessorOutcome
from gateway.services.vault import Sealing, Vault
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import KeysError
from keys.secret import Secret

STORE_TRIES_MAX = 3

log = structlog.get_logger()


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


@dataclass(slots=True)
class Prepared:
    """An intent's parts; sealed, not yet stored."""

    charge: Charge
    claim: Claim
    card: Card | None
    minting: Minting | None
    details: Sealing | None

    @property
    def intent(self) -> Intent:
        """The rows to commit."""
        return Intent(
            self.charge,
            self.claim,
            self.minting.new if self.minting else None,
            self.details.record if self.details else None,
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
    """Make, show and list the charges of a department."""

    def __init__(
        self,
        store: ChargeStore,
        vault: Vault,
        mint: Mint,
        processor: Processor,
        pen: AuditPen,
        clock: Clock,
        city: ZoneInfo,
    ) -> None:
        self._store = store
        self._vault = vault
        self._mint = mint
        self._processor = processor
        self._pen = pen
        self._clock = clock
        self._city = city

    async def create(self, caller: Application, request: ChargeRequest, key: str) -> Answer:
        """Charge a token or a card; under a key that was used before, the truth about that charge."""
        charge = _new_charge(caller, request, key, self._clock)
        card = request.given.card if request.given else None
        part = await self._vault.card_part(caller.department, card) if card else None
        claim = Claim(CHARGES_ROUTE, key, request.digest, part, charge.charge_id)
        earlier = await self._store.claimed(caller.department, CHARGES_ROUTE, key)
        if earlier is not None:
            return await self._repeat(caller, claim, earlier, card)
        self._require_allowed(caller, request)
        begun = await self._begin(caller, request, await self._prepare(caller, request, charge, claim))
        if isinstance(begun, Claimed):
            return await self._repeat(caller, claim, begun, card)
        return await self._send(request, begun)

    async def show(self, caller: Application, charge_id: str) -> Charge:
        """A charge of the caller's department; an unresolved one is asked for at the processor first."""
        charge = await self._store.charge(caller.department, charge_id)
        return (await self._resolve(charge))[0]

    async def list(
        self, caller: Application, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """Newest first; raises `NotFound` when `starting_after` is no charge of the department."""
        return await self._store.charges(caller.department, reference, limit, starting_after)

    def _require_allowed(self, caller: Application, request: ChargeRequest) -> None:
        require_currency(request.currency)
        require_amount(request.amount_minor, caller.amount_minor_max)
        require_fee(request.fee_minor, request.amount_minor)
        if not request.capture:
            raise CaptureNotOffered(pointers=["/capture"])
        if request.given is not None:
            require_valid(request.given.card, self._city, self._clock.now())

    async def _prepare(self, caller: Application, request: ChargeRequest, charge: Charge, claim: Claim) -> Prepared:
        minting = details = None
        if request.given is not None:
            minting = await self._mint.token(
                caller, request.given, charge.token_id, "single", spent=True, cvc_check="unchecked"
            )
        if request.details is not None:
            details = await self._vault.seal_details(caller.department, charge.charge_id, request.details)
        card = request.given.card if request.given else None
        return Prepared(charge, claim, card, minting, details)

    async def _begin(self, caller: Application, request: ChargeRequest, prepared: Prepared) -> Begun | Claimed:
        event = "card.opened" if request.given is None else "card.received"
        audit = self._row(prepared.charge, event, Outcome.DONE, request.request_id, actor=caller.application_id)
        for _ in range(STORE_TRIES_MAX):
            try:
                return await self._store.begin_charge(prepared.intent, audit)
            except KeysMoved:
                await prepared.follow_rotation(self._vault)
        raise Unavailable

    async def _send(self, request: ChargeRequest, begun: Begun) -> Answer:
        charge = begun.charge
        try:
            card, name = await self._card(charge, request, begun.record)
        except (KeysError, GatewayError, msgspec.MsgspecError):
            row = self._row(charge, "decrypt.failed", Outcome.FAILED, request.request_id)
            return (await self._store.finish_charge(charge, Event.REJECT, None, charge_answer, row))[1]
        outcome = await self._processor.sale(
            charge.processor_reference,
            charge.amount_minor,
            charge.currency,
            card,
            name,
            request.given.cvc if request.given else None,
        )
        del card, name
        return await self._finish(charge, outcome, request.request_id)

    async def _card(
        self, charge: Charge, request: ChargeRequest, record: SealedRecord | None
    ) -> tuple[Card, Secret[str]]:
        if request.given is not None:
            return request.given.card, request.given.name
        assert record is not None, "internal error: a charge of a token begins with its sealed record"
        return await self._vault.open_card(charge.department, record)

    async def _finish(self, charge: Charge, outcome: ProcessorOutcome, request_id: str) -> Answer:
        event = _event(outcome)
        said = outcome if isinstance(outcome, Approved | Declined) else None
        row = self._row(charge, event, _audit_outcome(event), request_id)
        try:
            return (await self._store.finish_charge(charge, event, said, charge_answer, row))[1]
        except Exception as error:  # noqa: BLE001 - whatever it is, the processor has answered
            # It has, and we cannot write it down: to the caller that is unknown, never lost and never failed.
            log.error("charge.outcome_not_stored", error=type(error).__name__, request_id=request_id)  # noqa: TRY400
            return charge_answer(replace(charge, state=State.UNKNOWN))

    async def _repeat(self, caller: Application, claim: Claim, earlier: Claimed, card: Card | None) -> Answer:
        answer = await earlier_answer(self._vault, caller.department, claim, earlier, card)
        if answer is not None:
            return answer
        charge = await self._store.charge(caller.department, earlier.subject_id)
        if charge.running:
            raise RequestInProgress
        return (await self._resolve(charge))[1]

    async def _resolve(self, charge: Charge) -> tuple[Charge, Answer]:
        """What is true of the charge now; the processor is asked when nobody else is at work on it."""
        if MEANINGS[charge.state].final or charge.running:
            return charge, charge_answer(charge)
        found = await self._processor.inquire(charge.processor_reference, charge.amount_minor, charge.currency)
        if not isinstance(found, Approved | Declined):
            return charge, charge_answer(charge)
        event = _event(found)
        row = self._row(charge, event, _audit_outcome(event), "", reason="inquiry")
        return await self._store.finish_charge(charge, event, found, charge_answer, row)

    def _row(
        self,
        charge: Charge,
        event: str,
        outcome: Outcome,
        request_id: str,
        *,
        actor: str | None = None,
        reason: str = "",
    ) -> AuditRow:
        told = AuditEvent(
            charge.department, event, outcome, actor or charge.application_id, charge.charge_id, reason, request_id
        )
        return self._pen.row(told, self._clock.now())


def _new_charge(caller: Application, request: ChargeRequest, key: str, clock: Clock) -> Charge:
    return Charge(
        department=caller.department,
        charge_id=new_id("ch"),
        application_id=caller.application_id,
        token_id=request.token_id or new_id("tok"),
        idempotency_key=key,
        amount_minor=request.amount_minor,
        currency=request.currency,
        convenience_fee_minor=request.fee_minor,
        service=request.service,
        reference=request.reference,
        processor_reference=new_id("pr"),
        state=State.SENDING,
        captured_minor=0,
        refunded_minor=0,
        cvc_check="unchecked",
        with_cvc=request.given is not None and request.given.cvc is not None,
        decline_class=None,
        decline_code=None,
        created_at=clock.now(),
        running=True,
    )


def _event(outcome: ProcessorOutcome | Inquiry) -> Event:
    match outcome:
        case Approved():
            return Event.CAPTURE
        case Declined():
            return Event.DECLINE
        case NotSent():
            return Event.REJECT
        case _:
            return Event.LOST


def _audit_outcome(event: Event) -> Outcome:
    return {Event.CAPTURE: Outcome.DONE, Event.DECLINE: Outcome.REFUSED}.get(event, Outcome.FAILED)
