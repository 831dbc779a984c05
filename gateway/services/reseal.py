"""Resealing: what `keys compromise` and `keys rotate-fingerprint` leave to be done in the data itself.

    records   a data key that a compromised generation may have wrapped protects nothing: new key, new ciphertext
    cards     a new version of the card index: its row is made from one token of each card, under the same id
    claims    the card part of an idempotency row: made anew where the card lives, cleared elsewhere
    rows      of an index version that is destroyed: deleted

Each page is one commit with the audit rows of all that was opened in it, so that a run may be killed anywhere and
started again, and several may run at once. What is to be done is read from the ring before each page. What a page
could not have, for others held it, is found again in the next round; a record that does not open is counted, told in
the audit log, and left as it is. Nothing that is opened leaves `services.vault`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from gateway.errors import Unavailable
from gateway.services.keyring import Keyring
from gateway.services.ports import Clock, KeysMoved, SealedRecord
from gateway.services.resealing import (
    START,
    CardPart,
    Cursor,
    IndexedCard,
    NewIndex,
    NewPart,
    Resealed,
    ResealStore,
    Stretch,
)
from gateway.services.vault import CARD, DETAILS, UNREADABLE, Vault
from keys import envelope
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.primitives import new_key
from keys.secret import Secret
from keys.states import State

ACTOR = "reseal"
FIELD_SETS = {"tokens": CARD, "charges": DETAILS}
ROUND_PAUSE_S = 0.2
PATIENCE_S = 60.0
"""How long a run waits for rows that others hold, without moving a single one."""
PAGE_TRIES_MAX = 3

SAMPLE_RECORDS = 200
SAMPLE_BYTES = 512
DATABASE_SHARE = 8
"""How much longer the database takes for a record than its keys do, about."""

T = TypeVar("T")
Moved = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Tally:
    """What a run has done. `broken` are the departments and ids of what does not open, or is not what it must be."""

    tokens: int = 0
    charges: int = 0
    cards: int = 0
    claims: int = 0
    claims_cleared: int = 0
    rows_deleted: int = 0
    broken: set[tuple[str, str]] = field(default_factory=set)
    keys_without_record: int = 0

    @property
    def moved(self) -> int:
        """Everything."""
        return self.tokens + self.charges + self.cards + self.claims + self.claims_cleared + self.rows_deleted


@dataclass(frozen=True, slots=True)
class Left:
    """How much is to be done."""

    tokens: int
    charges: int
    cards: int
    claims: int
    rows: int

    @property
    def total(self) -> int:
        """Everything."""
        return self.tokens + self.charges + self.cards + self.claims + self.rows


@dataclass(slots=True)
class _Page:
    """What opening one page gave: audit rows, and the records that did not open."""

    department: str
    audit: list[AuditRow] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    cleared: int = 0
    made: int = 0


class Reseal:
    """One run. `moved` is told of every page, and may hold the run back."""

    def __init__(
        self, store: ResealStore, vault: Vault, keyring: Keyring, pen: AuditPen, clock: Clock, page_rows: int
    ) -> None:
        self._store = store
        self._vault = vault
        self._keyring = keyring
        self._pen = pen
        self._clock = clock
        self._page_rows = page_rows
        self.tally = Tally()

    async def left(self) -> Left:
        """What there is to do now; opens nothing and changes nothing."""
        departments = await self._store.departments()
        counts = [
            (
                await self._exposed("tokens", department),
                await self._exposed("charges", department),
                await self._cards_left(department),
                await self._claims_left(department),
                await self._store.destroyed_indexes(department),
            )
            for department in departments
        ]
        return Left(*(sum(column) for column in zip(*counts, strict=True))) if counts else Left(0, 0, 0, 0, 0)

    def estimated_s(self, rows: int) -> float:
        """About how many seconds so many rows take here; measured on records of nobody."""
        dek, kek, place = new_key(), new_key(), envelope.Place("estimate", "estimate", "estimate")
        sealed = envelope.seal(dek, place, CARD, Secret(bytes(SAMPLE_BYTES)))
        wrapped = envelope.wrap_dek(kek, place, 1, dek)
        started_s = self._clock.monotonic()
        for _ in range(SAMPLE_RECORDS):
            content = envelope.unseal(envelope.unwrap_dek(kek, place, 1, wrapped), place, CARD, sealed)
            envelope.seal(dek, place, CARD, content)
            envelope.wrap_dek(kek, place, 1, dek)
        return (self._clock.monotonic() - started_s) / SAMPLE_RECORDS * (1 + DATABASE_SHARE) * rows

    async def run(self, moved: Moved) -> Tally:
        """Until nothing is left but what does not open."""
        await self._store.await_writers()
        departments = await self._store.departments()
        for department in departments:
            await self._forget_strays(department, moved)
        for table in FIELD_SETS:
            await self._rounds(departments, partial(self._reseal, table), partial(self._exposed, table), moved)
        await self._rounds(departments, self._index, self._cards_left, moved)
        await self._rounds(departments, self._renew, self._claims_left, moved)
        await self._rounds(departments, self._forget, self._store.destroyed_indexes, moved)
        compromised = await self._compromised()
        for department in departments:
            self.tally.keys_without_record += await self._store.exposed_without_record(department, compromised)
        await self._tell_end()
        return self.tally

    # -- rounds and pages

    async def _rounds(
        self,
        departments: Sequence[str],
        page: Callable[[str, Cursor], Awaitable[Cursor | None]],
        left: Callable[[str], Awaitable[int]],
        moved: Moved,
    ) -> None:
        """Every page of every department, again until nothing is left, or what is left does not come free."""
        last_moved_s = self._clock.monotonic()
        while True:
            before = self.tally.moved
            for department in departments:
                after: Cursor | None = START
                while after is not None:
                    after = await self._page(page, department, after, moved)
            if sum([await left(department) for department in departments]) == 0:
                return
            if self.tally.moved > before:
                last_moved_s = self._clock.monotonic()
            if self._clock.monotonic() - last_moved_s > PATIENCE_S:
                raise Unavailable(
                    "Others have held the last rows for a minute: end what they do, then run this again."
                )
            await asyncio.sleep(ROUND_PAUSE_S)

    async def _page(
        self,
        page: Callable[[str, Cursor], Awaitable[Cursor | None]],
        department: str,
        after: Cursor,
        moved: Moved,
    ) -> Cursor | None:
        before = self.tally.moved
        for _ in range(PAGE_TRIES_MAX):
            try:
                ended = await page(department, after)
            except KeysMoved:  # nothing of the page was done
                await self._vault.look()
                continue
            await moved(self.tally.moved - before)
            return ended
        raise Unavailable("Keys are being rotated all the time: run this again when that is over.")

    def _stretch(self, department: str, after: Cursor) -> Stretch:
        broken = sorted(record for place, record in self.tally.broken if place == department)
        return Stretch(department, after, self._page_rows, broken)

    async def _opened(
        self, page: _Page, record_id: str, making: Awaitable[T], event: str, reason: str = ""
    ) -> T | None:
        """What is made of a record by opening it, with its audit row; None when it does not open."""
        try:
            made = await making
        except UNREADABLE:
            page.broken.append(record_id)
            page.audit.append(self._row(page.department, "decrypt.failed", Outcome.FAILED, record_id, reason))
            return None
        page.made += 1
        page.audit.append(self._row(page.department, event, Outcome.DONE, record_id, reason))
        return made

    # -- records

    async def _compromised(self) -> list[int]:
        generations = (await self._keyring.ring()).generations.values()
        return [key.number for key in generations if key.state is State.COMPROMISED]

    async def _exposed(self, table: str, department: str) -> int:
        broken = self._stretch(department, START).broken
        return await self._store.exposed(table, department, await self._compromised(), broken)

    async def _reseal(self, table: str, department: str, after: Cursor) -> Cursor | None:
        page = _Page(department)
        event = {"tokens": "card.resealed", "charges": "details.resealed"}[table]

        async def remake(records: Sequence[SealedRecord]) -> tuple[Sequence[Resealed], Sequence[AuditRow]]:
            made = []
            for record in records:
                making = self._vault.seal_anew(department, record, FIELD_SETS[table])
                if (becomes := await self._opened(page, record.record_id, making, event)) is not None:
                    made.append(Resealed(record, becomes))
            return made, page.audit

        compromised = await self._compromised()
        if not compromised:
            return None
        ended = await self._store.reseal(table, self._stretch(department, after), compromised, remake)
        if table == "tokens":
            self.tally.tokens += page.made
        else:
            self.tally.charges += page.made
        self._note(page)
        return ended

    # -- cards

    async def _versions(self) -> tuple[list[int], int]:
        """The older versions of the index that still stand, and the active one."""
        *older, newest = (await self._keyring.ring()).indexing
        return [key.number for key in older], newest.number

    async def _forget_strays(self, department: str, moved: Moved) -> None:
        older, _ = await self._versions()
        while older and (gone := await self._store.forget_strays(department, older, self._page_rows)):
            self.tally.rows_deleted += gone
            await moved(0)

    async def _cards_left(self, department: str) -> int:
        older, newest = await self._versions()
        return await self._store.not_indexed(department, older, newest, self._stretch(department, START).broken)

    async def _index(self, department: str, after: Cursor) -> Cursor | None:
        page = _Page(department)

        async def reindex(cards: Sequence[IndexedCard]) -> tuple[Sequence[NewIndex], Sequence[AuditRow]]:
            made = []
            for card in cards:
                making = self._vault.index_anew(department, card.record, card.known)
                index = await self._opened(page, card.record.record_id, making, "card.reindexed")
                if index is not None:
                    made.append(NewIndex(card.fingerprint_id, index))
            return made, page.audit

        older, newest = await self._versions()
        if not older:
            return None
        ended, others = await self._store.index(self._stretch(department, after), older, newest, reindex)
        for fingerprint_id in others:  # one card under two ids: somebody changed the index by hand
            await self._store.record(
                self._row(department, "index.refused", Outcome.FAILED, fingerprint_id, "two-ids")
            )
        page.broken.extend(others)
        self.tally.cards += page.made - len(others)
        self._note(page)
        return ended

    # -- claims

    async def _claims_left(self, department: str) -> int:
        older = await self._outdated()
        return await self._store.card_parts(department, older, self._stretch(department, START).broken)

    async def _outdated(self) -> list[int]:
        """Every version before the active one, those that are destroyed included."""
        return list(range(1, (await self._versions())[1]))

    async def _renew(self, department: str, after: Cursor) -> Cursor | None:
        page, (standing, _) = _Page(department), await self._versions()

        async def renew(parts: Sequence[CardPart]) -> tuple[Sequence[NewPart], Sequence[AuditRow]]:
            made = []
            for part in parts:
                if part.record is None or part.part.key_version not in standing:
                    made.append(NewPart(part, None))
                    page.cleared += 1
                    continue
                making = self._vault.part_anew(department, part.record, part.part)
                becomes = await self._opened(page, part.record.record_id, making, "card.reindexed", "card-part")
                if becomes is not None:
                    made.append(NewPart(part, becomes))
            return made, page.audit

        older = await self._outdated()
        if not older:
            return None
        ended = await self._store.renew_parts(self._stretch(department, after), older, renew)
        self.tally.claims += page.made
        self.tally.claims_cleared += page.cleared
        self._note(page)
        return ended

    # -- rows of versions that are destroyed

    async def _forget(self, department: str, after: Cursor) -> Cursor | None:
        gone = await self._store.forget_indexes(department, self._page_rows)
        self.tally.rows_deleted += gone
        return after if gone else None

    # -- what is told

    def _note(self, page: _Page) -> None:
        self.tally.broken |= {(page.department, record) for record in page.broken}

    async def _tell_end(self) -> None:
        failed = self.tally.broken or self.tally.keys_without_record
        outcome, version = Outcome.FAILED if failed else Outcome.DONE, (await self._keyring.ring()).version
        await self._store.record(self._row(CITY, "records.resealed", outcome, f"manifest-{version}"))

    def _row(self, department: str, event: str, outcome: Outcome, subject: str, reason: str = "") -> AuditRow:
        return self._pen.row(AuditEvent(department, event, outcome, ACTOR, subject, reason), self._clock.now())
