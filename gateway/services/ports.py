"""What the services need of the world, and the plain records that pass through.

A store method is one commit, durable when it returns. It takes what to write and the audit rows that go with
it; where an answer is stored in the same commit, it takes the function that renders it. Errors that a store
lets out: those of `gateway.errors`, `KeysMoved` and `CommitUnknown`.

A processor call has four kinds of outcome, and *unknown* is a type: `Approved` or `Declined` are what the
processor said about exactly this reference, amount and currency; `Absent` is its word that the reference never was
and never will be carried out; `NotSent` means that no byte can have left; everything else is `Unknown`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.rules.access import Application
from gateway.rules.card import Card
from gateway.rules.lifecycle import MEANINGS, Event, Kind, Progress, RefundStatus, Status
from gateway.rules.recovery import Offers
from keys.audit import AuditRow
from keys.ring import WrappedDek
from keys.secret import Secret
from keys.states import Seen


class KeysMoved(Exception):
    """A key that was used to seal or to index is not active any more: look again, and make all of it anew."""


class CommitUnknown(Exception):
    """The connection was lost while committing: the commit may have happened or not."""


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """What a record's row holds, and its data key's."""

    record_id: str
    sealed: bytes
    dek: WrappedDek


@dataclass(frozen=True, slots=True)
class CardIndex:
    """The keyed index of a card number under one version of the fingerprint key."""

    key_version: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's hold on its Idempotency-Key."""

    route: str
    key: str
    request_digest: bytes
    card_part: CardIndex | None
    subject_id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What stands under a key already. `running` while the first request may still be at work."""

    request_digest: bytes
    card_part: CardIndex | None
    subject_id: str
    status: int | None
    body: bytes | None
    running: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A token as stored, without what it seals. An erased one has no brand, last4 and fingerprint."""

    department: str
    token_id: str
    application_id: str
    kind: str
    usage: str
    status: str
    brand: str | None
    last4: str | None
    fingerprint_id: str | None
    cvc_check: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be stored. Its `fingerprint_id` is what the card gets if the department does not know it yet.

    `card_indexes` are of one card, oldest version first; the last is of the version that is active.
    """

    token: Token
    record: SealedRecord
    card_indexes: tuple[CardIndex, ...]


@dataclass(frozen=True, slots=True)
class Movement:
    """A movement of money as stored; of a refund, all that is stored. Amounts are minor units.

    `not_after` is until when a processor that heeds it may carry it out. `epoch` counts who has held it: whoever
    finds another number has lost it. With a verification code it can never be sent a second time.
    """

    department: str
    movement_id: str
    """`re_…` of a refund, which is shown by it; else `mv_…`."""
    charge_id: str
    kind: Kind
    amount_minor: int
    currency: str
    reference: str
    """The processor's name for it: one for ever, whoever sends it, however often."""
    charge_reference: str
    application_id: str
    route: str
    idempotency_key: str
    progress: Progress
    with_cvc: bool
    not_after: datetime
    epoch: int
    sends: int
    decline_class: str | None
    decline_code: str | None
    created_at: datetime
    running: bool
    """Whether its first request may still be at work."""

    @property
    def status(self) -> RefundStatus:
        """Its public status, if it is a refund."""
        return MEANINGS[self.kind, self.progress].status  # type: ignore[return-value] # of a refund there is no other


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge as stored, in minor units; `kind` and `progress` are of its latest movement, refunds aside."""

    department: str
    charge_id: str
    application_id: str
    token_id: str
    amount_minor: int
    currency: str
    convenience_fee_minor: int
    service: str | None
    reference: str
    processor_reference: str
    kind: Kind
    progress: Progress
    captured_minor: int
    refunded_minor: int
    refunding_minor: int
    cvc_check: str
    decline_class: str | None
    decline_code: str | None
    created_at: datetime

    @property
    def status(self) -> Status:
        """Its public status."""
        return MEANINGS[self.kind, self.progress].status  # type: ignore[return-value] # of a charge there is no other

    @property
    def left_minor(self) -> int:
        """What can still be refunded."""
        return self.captured_minor - self.refunded_minor - self.refunding_minor


@dataclass(frozen=True, slots=True)
class Intent:
    """All that is committed before anything is sent for a new charge."""

    charge: Charge
    movement: Movement
    claim: Claim
    new_token: NewToken | None
    details: SealedRecord | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A capture, void or refund that is asked for; `amount_minor` None means all that there is."""

    department: str
    charge_id: str
    kind: Kind
    amount_minor: int | None
    movement_id: str
    reference: str
    created_at: datetime
    caller: Application


@dataclass(frozen=True, slots=True)
class Begun:
    """A committed intent, as it stands. `record` is the sealed card, where one is to be opened."""

    charge: Charge
    movement: Movement
    record: SealedRecord | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What is true of a movement now, and the answer to who asked for it; `moved` if this very call made it so."""

    charge: Charge
    movement: Movement
    answer: "Answer"
    moved: bool


@dataclass(frozen=True, slots=True)
class Case:
    """An unresolved movement in the hands of a worker, who has taken it `looks` times.

    By the database's clock it was committed to be sent `age_s` seconds ago, and is `overdue_s` seconds beyond its
    `not_after` (before that, negative). `may_resend`: no code came with it, and its card is there.
    """

    movement: Movement
    age_s: float
    overdue_s: float
    looks: int
    may_resend: bool


@dataclass(frozen=True, slots=True)
class Resend:
    """A movement that was marked to be sent again, in the hands of who will; only within `left_s` seconds."""

    begun: Begun
    left_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What is sent back, and what a repeated request gets again."""

    status: int
    body: bytes
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Approved:
    """The processor did what was asked."""

    cvc_check: str


@dataclass(frozen=True, slots=True)
class Declined:
    """The issuer refused; class and code are the processor's."""

    cvc_check: str
    decline_class: str
    decline_code: str


@dataclass(frozen=True, slots=True)
class Absent:
    """The reference is void at the processor: nothing was done under it, and nothing ever will be."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Connecting failed: no byte of the request can have left."""


@dataclass(frozen=True, slots=True)
class NotFound:
    """The processor does not know the reference, which proves nothing by itself; it offers this to make sure."""

    offers: Offers


@dataclass(frozen=True, slots=True)
class Unknown:
    """Anything else; `reason` is a code of ours."""

    reason: str


@dataclass(frozen=True, slots=True)
class Payment:
    """What a sale or an authorization takes beside its movement. It lives for one call."""

    card: Card
    name: Secret[str]
    cvc: Secret[str] | None

    def __repr__(self) -> str:
        return "Payment(…)"


Outcome = Approved | Declined | Absent | NotSent | Unknown
Inquiry = Approved | Declined | Absent | NotFound | Unknown
Cancellation = Approved | Declined | Absent | Unknown
Render = Callable[[Charge, Movement], Answer]
Said = Approved | Declined | None


class Clock(Protocol):
    """Time, the only way to it."""

    def now(self) -> datetime:
        """Wall time, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class Processor(Protocol):
    """The card processor."""

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        """Ask for a movement; `payment` goes with a sale or an authorization. Twice the same, the same bytes."""

    async def verify(self, reference: str, payment: Payment) -> Outcome:
        """Verify a card for no amount."""

    async def inquire(self, movement: Movement) -> Inquiry:
        """What became of a movement."""

    async def cancel(self, movement: Movement) -> Cancellation:
        """Make a movement that is not decided void for ever: `Absent`. Else what was decided."""


class TokenStore(Protocol):
    """Where tokens are kept."""

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """What stands under an Idempotency-Key."""

    async def claim(self, department: str, claim: Claim | None, audit: AuditRow) -> Claimed | None:
        """Hold a key and write the audit row of what comes next; gives what stands there instead, if anything.

        Raises `KeysMoved` when the card part's key is not active any more, and nothing stands there.
        """

    async def take_over(self, department: str, claim: Claim) -> bool:
        """Hold a key whose first run ended without an answer; false when somebody else was faster."""

    async def create_token(
        self, new: NewToken, claim: Claim | None, held: bool, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token | Claimed:
        """Store a token, and the answer under its claim, which is `held` already or taken here."""

    async def answer_claim(
        self, department: str, claim: Claim | None, answer: Answer, audit: AuditRow
    ) -> Claimed | None:
        """Store a final answer under a held key that made no token; gives what another run answered first, if any."""

    async def token(self, department: str, token_id: str) -> Token:
        """Raises `gateway.errors.NotFound`."""

    async def erase_token(
        self, department: str, token_id: str, render: Callable[[Token], Answer], audit: AuditRow
    ) -> Token:
        """Destroy the data key and all that was derived from the card; raises `NotFound` or `TokenInUse`."""


class MovementStore(Protocol):
    """Where the outcome of a movement is written down."""

    async def finish(self, movement: Movement, event: Event, said: Said, render: Render, audit: AuditRow) -> Finished:
        """Move it by compare-and-set on its epoch and progress, with journal, charge, token, final answer and audit.

        Where that moves nothing, nothing is written, and what is true is given: the stored answer, if there is one.
        Raises `Unavailable`, also when the commit was lost: then it may have happened.
        """

    async def postpone(self, movement: Movement, delay_s: float, *, resend_within_s: float | None = None) -> None:
        """Give a movement back until then; marked, if it is to be sent again within so many seconds from now.

        Nothing happens where somebody else holds it.
        """

    async def record(self, audit: AuditRow) -> None:
        """Write an audit row without another effect."""


class ChargeStore(MovementStore, Protocol):
    """Where charges are kept."""

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """What stands under an Idempotency-Key."""

    async def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """Commit claim, intent, token and audit rows together; raises what forbids the charge."""

    async def begin_movement(self, asked: Asked, claim: Claim, audit: AuditRow) -> Begun | Claimed:
        """Commit claim, movement and audit row together; raises what forbids it at this moment."""

    async def charge(self, department: str, charge_id: str) -> Charge:
        """Raises `gateway.errors.NotFound`."""

    async def movement(self, department: str, movement_id: str) -> tuple[Charge, Movement]:
        """A movement and its charge; raises `gateway.errors.NotFound`."""

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """Newest first."""

    async def departments(self) -> Sequence[str]:
        """All of them."""

    async def take_marked(self, department: str, audit: Callable[[Movement], AuditRow]) -> Resend | None:
        """Take one movement that is marked to be sent again, under a new epoch, with the audit row of the opening."""

    async def take_decided(
        self, department: str, render: Render, audit: Callable[[Movement, Event], AuditRow]
    ) -> Begun | Finished | None:
        """Do what an approver said of one refund that waited: it has `Begun`, to be sent now, or has `Finished`."""


class RecoveryStore(MovementStore, Protocol):
    """What the worker needs of the database."""

    async def departments(self) -> Sequence[str]:
        """All of them."""

    async def take(self, department: str, limit: int) -> Sequence[Case]:
        """Take unresolved movements that nobody holds, each under a new epoch, those that wait longest first."""


class KeyStore(Protocol):
    """What the database knows of keys."""

    async def manifest_seen(self) -> Seen:
        """The newest manifest that was mirrored."""

    async def reserve_wraps(self, generation: int, count: int) -> None:
        """Count wraps ahead; raises `keys.errors.KeysExhausted` or `KeysMoved`."""

    async def record(self, audit: AuditRow) -> None:
        """Write an audit row without another effect."""
