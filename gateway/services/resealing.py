"""What `reseal` needs of the database, and the plain records that pass through (`services.ports` has the others)."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.services.ports import CardIndex, KeyStore, SealedRecord
from keys.audit import AuditRow

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
