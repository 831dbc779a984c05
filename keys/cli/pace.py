"""How long work shows itself and is held back: a bar at a terminal, nothing in a pipe, a rate where one is set."""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Speed(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        """See `rich.progress.ProgressColumn.render`."""
        return Text(f"{task.speed or 0:,.0f} rows/s")


class Pace:
    """Counts rows; called after each page."""

    def __init__(self, progress: Progress, what: str, rows: int, rows_per_s: float) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=rows)
        self._rows_per_s = rows_per_s
        self._rows = 0
        self._started_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started_s

    async def moved(self, rows: int) -> None:
        """So many more are done; waits as long as the rate demands."""
        self._rows += rows
        self._progress.advance(self._task, rows)
        if self._rows_per_s:
            await asyncio.sleep(max(0.0, self._rows / self._rows_per_s - self.seconds))


@contextmanager
def pace(what: str, rows: int, rows_per_s: float = 0) -> Iterator[Pace]:
    """A bar with rows per second and the time left, on standard error when that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        yield Pace(progress, what, rows, rows_per_s)
