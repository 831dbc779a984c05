"""Rewrapping: every data key under a retired generation moves to the active one. No record is opened.

Page by page and department by department, one commit a page, so that it may be killed anywhere and started again,
and so that several may run at once: each takes rows that no other holds. A row moves only if it is still what was
read, and only to a generation that is active at that moment; whatever changes under the hands of a page is found
again in the next round.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from keys.deks import DekTable, Wrap
from keys.errors import KeyRefused, KeysError
from keys.ring import Ring, WrappedDek
from keys.states import State

WRAPS_AHEAD = 65_536
"""Wraps counted in the database at once, so that a crash can only overcount."""

ROUND_PAUSE_S = 0.2


@dataclass(slots=True)
class Tally:
    """What a rewrap has done so far: rows moved, and the places of wraps that do not open."""

    rows: int = 0
    broken: set[tuple[str, str]] = field(default_factory=set)


class Rewrap:
    """One run. `read_ring` reads the key store anew; `moved` is told of every page, and may hold the run back."""

    def __init__(
        self,
        read_ring: Callable[[], Ring],
        now: Callable[[], datetime],
        moved: Callable[[int], Awaitable[None]],
        page_rows: int,
    ) -> None:
        self._read_ring = read_ring
        self._now = now
        self._moved = moved
        self._page_rows = page_rows
        self._ring = read_ring()
        self._wraps_left = 0
        self.tally = Tally()

    @property
    def retired(self) -> Sequence[int]:
        """The generations to be emptied."""
        return [key.number for key in self._ring.generations.values() if key.state is State.RETIRED]

    @property
    def active(self) -> int:
        """The generation to which they move."""
        return self._ring.active.number

    async def run(self, tables: Sequence[DekTable]) -> Tally:
        """Until no wrap is left under a retired generation, or only broken ones; one page at a time on each table."""
        departments = await tables[0].departments()
        while True:
            self.tally.broken.clear()  # each round finds them anew: some may have been erased
            await asyncio.gather(*(self._round(table, departments) for table in tables))
            counts = await tables[0].counts()
            if sum(counts.get(generation, 0) for generation in self.retired) <= len(self.tally.broken):
                return self.tally
            await asyncio.sleep(ROUND_PAUSE_S)  # what is left is in the hands of others

    async def _round(self, table: DekTable, departments: Sequence[str]) -> None:
        for generation in self.retired:
            for department in departments:
                after: str | None = ""
                while after is not None:
                    after = await self._page(table, department, generation, after)

    async def _page(self, table: DekTable, department: str, generation: int, after: str) -> str | None:
        """Move one page; gives the last record of it, None when there was none."""
        ring = await self._reserve(table)
        async with table.page():
            page = await table.take_page(department, generation, after, self._page_rows)
            wraps = self._wrap_anew(ring, department, generation, page)
            moved = await table.move_page(department, generation, ring.active.number, wraps) if wraps else 0
        if wraps and moved == 0:
            self._look_again(ring)  # rotated meanwhile: take this page once more
            return after
        self.tally.rows += moved
        await self._moved(moved)
        return page[-1][0] if page else None

    def _wrap_anew(
        self, ring: Ring, department: str, generation: int, page: Sequence[tuple[str, bytes]]
    ) -> list[Wrap]:
        now, wraps = self._now(), []
        for record, was in page:
            place = ring.place(department, record)
            try:
                dek = ring.unwrap(place, WrappedDek(generation, was), now)
            except KeysError:
                self.tally.broken.add((department, record))
                continue
            wraps.append(Wrap(record, was, ring.wrap(place, dek, now).wrapped))
        return wraps

    async def _reserve(self, table: DekTable) -> Ring:
        """The ring for one page, whose wraps are counted under that ring's active generation."""
        while self._wraps_left < self._page_rows:
            ring = self._ring
            if not await table.reserve_wraps(ring.active.number, WRAPS_AHEAD):
                self._look_again(ring)
            elif ring is self._ring:
                self._wraps_left += WRAPS_AHEAD
        self._wraps_left -= self._page_rows
        return self._ring

    def _look_again(self, refused: Ring) -> None:
        """Read the key store anew, unless another page has; what was counted ahead belongs to the old generation."""
        if self._ring is not refused:
            return
        self._ring, self._wraps_left = self._read_ring(), 0
        if self._ring.version == refused.version:
            raise KeyRefused("the key store and the database differ: an act was interrupted; run `keys rotate`")
