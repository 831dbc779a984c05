"""What the services need of the world, and the plain records that pass through.

A store method is one commit, durable when it returns. It takes what to write and the audit rows that go with
it; where an answer is stored in the same commit, it takes the function that renders it. Errors that a store
lets out: those of `gateway.errors`, `KeysMoved` and `CommitUnknown`.

A processor call has three kinds of outcome, and *unknown* is a type: `Approved` or `Declined` are what the
processor said about exactly this reference, amount and currency; `NotSent` means that no byte can have left;
everything else is `Unknown`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.rules.card import Card
from gateway.rules.lifecycle import Event, State
from keys.audit import AuditRow
from keys.ring import WrappedDek
from keys.secret import Secret
from keys.states import Seen

CHARGES_ROUTE = "POST /v1/charges"
"""The scope of a charge's Idempotency-Key, by which its answer is found again."""


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
class Charge:
    """A charge as stored. Amounts are minor units."""

    department: str
    charge_id: str
    application_id: str
    token_id: str
    idempotency_key: str
    amount_minor: int
    currency: str
    convenience_fee_minor: int
    service: str | None
    reference: str
    processor_reference: str
    state: State
    captured_minor: int
    refunded_minor: int
    cvc_check: str
    with_cvc: bool
    decline_class: str | None
    decline_code: str | None
    created_at: datetime
    running: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """All that is committed before anything is sent."""

    charge: Charge
    claim: Claim
    new_token: NewToken | None
    details: SealedRecord | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A committed intent, and the sealed card when it came from a token."""

    charge: Charge
    record: SealedRecord | None


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
class NotSent:
    """Connecting failed: no byte of the request can have left."""


@dataclass(frozen=True, slots=True)
class NotFound:
    """The processor does not know the reference. Of a request in flight this proves nothing."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Anything else; `reason` is a code of ours."""

    reason: str


Outcome = Approved | Declined | NotSent | Unknown
Inquiry = Approved | Declined | NotFound | Unknown


class Clock(Protocol):
    """Time, the only way to it."""

    def now(self) -> datetime:
        """Wall time, UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class Processor(Protocol):
    """The card processor."""

    async def sale(
        self, reference: str, amount_minor: int, currency: str, card: Card, name: Secret[str], cvc: Secret[str] | None
    ) -> Outcome:
        """Authorize and capture in one step."""

    async def verify(self, reference: str, card: Card, name: Secret[str], cvc: Secret[str]) -> Outcome:
        """Verify a card for no amount."""

    async def inquire(self, reference: str, amount_minor: int, currency: str) -> Inquiry:
        """What became of a sale."""


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


class ChargeStore(Protocol):
    """Where charges are kept."""

    async def claimed(self, department: str, route: str, key: str) -> Claimed | None:
        """What stands under an Idempotency-Key."""

    async def begin_charge(self, intent: Intent, audit: AuditRow) -> Begun | Claimed:
        """Commit claim, intent, token and audit rows together; raises what forbids the charge."""

    async def finish_charge(
        self,
        charge: Charge,
        event: Event,
        outcome: Approved | Declined | None,
        render: Callable[[Charge], Answer],
        audit: AuditRow,
    ) -> tuple[Charge, Answer]:
        """Move the charge by compare-and-set and store its final answer; gives what is true, moved or not."""

    async def charge(self, department: str, charge_id: str) -> Charge:
        """Raises `gateway.errors.NotFound`."""

    async def charges(
        self, department: str, reference: str | None, limit: int, starting_after: str | None
    ) -> Sequence[Charge]:
        """Newest first."""


class KeyStore(Protocol):
    """What the database knows of keys."""

    async def manifest_seen(self) -> Seen:
        """The newest manifest that was mirrored."""

    async def reserve_wraps(self, generation: int, count: int) -> None:
        """Count wraps ahead; raises `keys.errors.KeysExhausted` or `KeysMoved`."""

    async def record(self, audit: AuditRow) -> None:
        """Write an audit row without another effect."""


# What `reseal` needs of the database.

Cursor = tuple[str, str]
"""Where a page ended, in the order of its table: the next one begins after it."""

START: Cursor = ("", "")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where a page of one department begins, how many rows it may have, and which ids it passes by."""

    department: str
    after: Cursor
    rows: int
    broken: Sequence[str]


@dataclass(frozen=True, slots=True)
class Resealed:
    """A record as it stands, and what is to stand there."""

    was: SealedRecord
    becomes: SealedRecord


@dataclass(frozen=True, slots=True)
class IndexedCard:
    """A card that only an older version of the index knows, and the record of one of its tokens."""

    fingerprint_id: str
    known: CardIndex
    record: SealedRecord


@dataclass(frozen=True, slots=True)
class NewIndex:
    """A card's row in the active version of the index."""

    fingerprint_id: str
    index: CardIndex


@dataclass(frozen=True, slots=True)
class CardPart:
    """The card part of an idempotency row under an older key. `record` is its token's, None where that is gone."""

    route: str
    key: str
    part: CardIndex
    record: SealedRecord | None


@dataclass(frozen=True, slots=True)
class NewPart:
    """What is to stand in the place of a card part: another one, or none."""

    was: CardPart
    becomes: CardIndex | None


Remake = Callable[[Sequence[SealedRecord]], Awaitable[tuple[Sequence[Resealed], Sequence[AuditRow]]]]
Reindex = Callable[[Sequence[IndexedCard]], Awaitable[tuple[Sequence[NewIndex], Sequence[AuditRow]]]]
Renew = Callable[[Sequence[CardPart]], Awaitable[tuple[Sequence[NewPart], Sequence[AuditRow]]]]
"""What a page becomes, and the audit rows of the same commit."""


class ResealStore(KeyStore, Protocol):
    """Where `reseal` works: page by page, each one commit, of rows that nobody else holds.

    A page gives where it ended, None when there was nothing more; what others hold is passed by. Each raises
    `KeysMoved` when a key that the page was made with is not active any more, and then nothing of it was done.
    """

    async def await_writers(self) -> None:
        """Wait until every transaction has ended that may have used what the mirror allowed before."""

    async def departments(self) -> Sequence[str]:
        """All of them."""

    async def exposed(self, table: str, department: str, generations: Sequence[int], broken: Sequence[str]) -> int:
        """How many `tokens` or `charges` have a data key that one of these generations may ever have wrapped."""

    async def exposed_without_record(self, department: str, generations: Sequence[int]) -> int:
        """How many such data keys belong to no record."""

    async def reseal(self, table: str, stretch: Stretch, generations: Sequence[int], remake: Remake) -> Cursor | None:
        """One page of them, locked, remade and put back with their data keys."""

    async def not_indexed(self, department: str, older: Sequence[int], newest: int, broken: Sequence[str]) -> int:
        """How many cards with a living token an older version of the index knows and the newest does not."""

    async def index(
        self, stretch: Stretch, older: Sequence[int], newest: int, reindex: Reindex
    ) -> tuple[Cursor | None, Sequence[str]]:
        """One page of them; gives also the ids of those that the newest knows by another id."""

    async def card_parts(self, department: str, older: Sequence[int], broken: Sequence[str]) -> int:
        """How many idempotency rows hold a card part under an older key."""

    async def renew_parts(self, stretch: Stretch, older: Sequence[int], renew: Renew) -> Cursor | None:
        """One page of them; those whose token somebody else holds are passed by."""

    async def forget_strays(self, department: str, older: Sequence[int], rows: int) -> int:
        """Delete rows of older versions whose card has no living token; gives of how many cards."""

    async def destroyed_indexes(self, department: str) -> int:
        """How many rows of the index are of a version that is destroyed."""

    async def forget_indexes(self, department: str, rows: int) -> int:
        """Delete a page of them; gives how many."""
