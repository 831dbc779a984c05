"""Tokens: a card comes in, is sealed, and a random id goes out; nothing here turns the id into a card again.

With a verification code the processor is asked, once, whether the card is good. The code is in memory only
while this runs: if the run dies, whoever repeats the request gets a token whose code was not checked.
"""

from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from gateway.errors import GatewayError, RequestInProgress, Unavailable
from gateway.rules.access import Application
from gateway.rules.card import require_valid
from gateway.rules.idempotency import request_digest
from gateway.rules.ids import new_id
from gateway.rules.personal import require_taken
from gateway.services.answers import token_answer, verification_declined
from gateway.services.idempotency import require_same_card, require_same_request, stored_answer
from gateway.services.mint import CardGiven, Mint, Minting
from gateway.services.ports import (
    Answer,
    Approved,
    CardIndex,
    Claim,
    Claimed,
    Clock,
    Declined,
    KeysMoved,
    Payment,
    Processor,
    Token,
    TokenStore,
)
from gateway.services.vault import Vault
from keys.audit import AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import KeysError
from keys.secret import Secret

ROUTE = "POST /v1/tokens"
WRONG_CODE = Declined("fail", "data", "N7")
"""What an issuer that approves in spite of a wrong code is taken to mean."""

STORE_TRIES_MAX = 3
"""How often a token or a claim is made anew because keys were rotated between making and storing it."""


@dataclass(slots=True)
class _Run:
    """One request on its way: what its steps share."""

    caller: Application
    given: CardGiven
    usage: str
    token_id: str
    request_id: str
    pen: AuditPen
    clock: Clock
    claim: Claim | None = None

    @property
    def department(self) -> str:
        return self.caller.department

    def require_allowed(self, city: ZoneInfo) -> None:
        """Raises `FieldNotTaken` or `CardRefused` before anything is stored, by whichever run."""
        require_taken(self.department, self.caller.personal_fields, self.given.details, self.given.consent)
        require_valid(self.given.card, city, self.clock.now())

    def row(self, event: str, outcome: Outcome, reason: str = "") -> AuditRow:
        """The audit row of a step."""
        actor = self.caller.application_id
        told = AuditEvent(self.department, event, outcome, actor, self.token_id, reason, self.request_id)
        return self.pen.row(told, self.clock.now())


class Tokens:
    """Create, show and erase the tokens of a department."""

    def __init__(
        self,
        store: TokenStore,
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

    async def create(
        self,
        caller: Application,
        given: CardGiven,
        usage: str,
        key: str | None,
        request_id: str,
        *,
        route: str = ROUTE,
    ) -> Answer:
        """Make a token; under a key that was used before on this route, the answer of then."""
        run = _Run(caller, given, usage, new_id("tok"), request_id, self._pen, self._clock)
        if key is not None:
            run.claim = Claim(route, key, request_digest(usage), await self._part(run), run.token_id)
        try:
            run.require_allowed(self._city)
            minting = await self._minted(run, "unchecked") if given.cvc is None else None
        except (GatewayError, KeysError):
            # What cannot be done now may have been answered before. What can learns that when it is stored.
            earlier = await self._store.claimed(caller.department, route, key) if key is not None else None
            if earlier is None:
                raise
            return await self._repeat(run, earlier)
        if minting is not None:
            return await self._store_token(run, minting, held=False)
        assert given.cvc is not None, "internal error: without a code it was minted"
        return await self._verify_first(run, given.cvc)

    async def show(self, caller: Application, token_id: str) -> Token:
        """A token of the caller's department; raises `NotFound`."""
        return await self._store.token(caller.department, token_id)

    async def erase(self, caller: Application, token_id: str, request_id: str) -> Token:
        """Destroy the card behind a token; raises `NotFound` or `TokenInUse`."""
        event = AuditEvent(
            caller.department, "token.erased", Outcome.DONE, caller.application_id, token_id, "", request_id
        )
        row = self._pen.row(event, self._clock.now())
        return await self._store.erase_token(caller.department, token_id, token_answer, row)

    async def _repeat(self, run: _Run, earlier: Claimed) -> Answer:
        assert run.claim is not None, "internal error: only a claim finds an earlier one"
        require_same_request(run.claim, earlier)
        await require_same_card(self._vault, run.department, run.given.card, earlier)
        answer = stored_answer(earlier)
        if answer is not None:
            return answer
        run.require_allowed(self._city)
        if earlier.running or not await self._store.take_over(run.department, run.claim):
            raise RequestInProgress
        # The first run died after it asked the processor, or just before: the code is never sent a second time.
        run.token_id = earlier.subject_id
        return await self._store_token(run, await self._minted(run, "unavailable"), held=True)

    async def _verify_first(self, run: _Run, cvc: Secret[str]) -> Answer:
        earlier = await self._claim(run, run.row("card.received", Outcome.DONE, "verification"))
        if earlier is not None:
            return await self._repeat(run, earlier)
        payment = Payment(run.given.card, run.given.name, cvc)
        outcome = await self._processor.verify(new_id("vf"), payment)
        del payment
        if isinstance(outcome, Approved) and outcome.cvc_check == "fail":
            outcome = WRONG_CODE
        if isinstance(outcome, Declined):
            answer = verification_declined(outcome)
            refused = run.row("verification.declined", Outcome.REFUSED)
            earlier = await self._store.answer_claim(run.department, run.claim, answer, refused)
            return answer if earlier is None else await self._repeat(run, earlier)
        check = outcome.cvc_check if isinstance(outcome, Approved) else "unavailable"
        return await self._store_token(run, await self._minted(run, check), held=True)

    async def _claim(self, run: _Run, received: AuditRow) -> Claimed | None:
        for _ in range(STORE_TRIES_MAX):
            try:
                return await self._store.claim(run.department, run.claim, received)
            except KeysMoved:
                await self._follow_rotation(run)
        raise Unavailable

    async def _minted(self, run: _Run, cvc_check: str) -> Minting:
        return await self._mint.token(run.caller, run.given, run.token_id, run.usage, cvc_check=cvc_check)

    async def _store_token(self, run: _Run, minting: Minting, *, held: bool) -> Answer:
        audit = run.row("token.created", Outcome.DONE)
        for _ in range(STORE_TRIES_MAX):
            try:
                stored = await self._store.create_token(minting.new, run.claim, held, token_answer, audit)
            except KeysMoved:
                await self._follow_rotation(run)
                await minting.follow_rotation()
                continue
            return token_answer(stored) if isinstance(stored, Token) else await self._repeat(run, stored)
        raise Unavailable

    async def _follow_rotation(self, run: _Run) -> None:
        await self._vault.look()
        if run.claim is not None:
            run.claim = replace(run.claim, card_part=await self._part(run))

    async def _part(self, run: _Run) -> CardIndex:
        return await self._vault.card_part(run.department, run.given.card)
