"""Cuts a command off after its first, second, third … step, as a power cut would.

A step is one SQL statement, or one change of a file; a file may also be cut off in the midst of being written. What
stands in a transaction that is cut is rolled back, as the server does for a client that is gone.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from keys import files, keystore, process_keys
from keys.files import remove_private, write_private
from keys.keystore import OpenKeystore

STRANGER = 1
"""The process id in the names of drafts that are left: never our own, which would clear them away."""

SET_ASIDE = OpenKeystore.set_aside


class Cut(Exception):
    """The power went off."""


@dataclass
class Scissors:
    """Lets so many steps pass, then cuts."""

    steps: int

    def step(self) -> None:
        """Called before each step."""
        if self.steps == 0:
            raise Cut
        self.steps -= 1

    def write(self, path: Path, content: bytes, *, replace: bool) -> None:
        """`write_private`, which may be cut off before its draft, after it, while it has two names, or at its end."""
        draft = path.with_name(f".{path.name}.{STRANGER}")
        self.step()
        if self.steps == 0:
            write_private(draft, content, replace=True)
        self.step()
        write_private(path, content, replace=replace)
        if not replace:
            if self.steps == 0:
                draft.hardlink_to(path)
            self.step()

    def remove(self, path: Path) -> None:
        """`remove_private`, which may be cut off between overwriting and removing."""
        self.step()
        if self.steps == 0 and path.exists():
            path.write_bytes(bytes(path.stat().st_size))
        self.step()
        remove_private(path)

    def set_aside(self, keys: OpenKeystore, path: Path) -> None:
        """`OpenKeystore.set_aside`, which may be cut off before or after; a rename is never half done."""
        self.step()
        SET_ASIDE(keys, path)
        self.step()


class CutConnection:
    """A connection on which each statement is a step."""

    def __init__(self, connection: asyncpg.Connection, scissors: Scissors) -> None:
        self._connection = connection
        self._scissors = scissors

    def transaction(self, **options: Any) -> asyncpg.transaction.Transaction:
        return self._connection.transaction(**options)

    async def execute(self, *arguments: Any) -> Any:
        self._scissors.step()
        return await self._connection.execute(*arguments)

    async def fetch(self, *arguments: Any) -> Any:
        self._scissors.step()
        return await self._connection.fetch(*arguments)

    async def fetchrow(self, *arguments: Any) -> Any:
        self._scissors.step()
        return await self._connection.fetchrow(*arguments)

    async def fetchval(self, *arguments: Any) -> Any:
        self._scissors.step()
        return await self._connection.fetchval(*arguments)


@contextmanager
def cutting(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[Scissors]:
    """While inside, files are changed under the scissors."""
    scissors = Scissors(steps)

    def set_aside(keys: OpenKeystore, path: Path) -> None:
        scissors.set_aside(keys, path)

    with monkeypatch.context() as patched:
        for module in (keystore, process_keys):
            patched.setattr(module, "write_private", scissors.write)
        for module in (keystore, files):  # in `files` it is how drafts are removed
            patched.setattr(module, "remove_private", scissors.remove)
        patched.setattr(OpenKeystore, "set_aside", set_aside)
        yield scissors


async def until(found: Any) -> None:
    """Wait for a condition that is asked of the server."""
    async with asyncio.timeout(10):
        while not await found():
            await asyncio.sleep(0.005)
