"""The watched folder: files that processor and bank lay down are imported as if somebody had brought them.

    <inbox>/settlements-native/           one folder for each format, `<kind>s-<format>`; any may be missing
    <inbox>/settlements-native/done/      where a file goes that was imported, now or before
    <inbox>/settlements-native/refused/   where one goes that was not, and beside it `<name>.txt`, which says why

A file is taken once it did not change for `STILL_S`. What begins with a dot, a link, and all that is no plain file
stay where they are. A file is copied before it is read, so that nobody changes it meanwhile; if the database is away
it waits. One that cannot be moved away is left alone until it changes.
"""

import asyncio
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from gateway.errors import FileRefused, GatewayError, Unavailable
from gateway.formats import Kind, formats
from gateway.rules.ids import new_id
from gateway.rules.staff import EVERYWHERE, Role, Staff
from gateway.services.imports import Imports
from gateway.services.ports import Clock

STILL_S = 2.0
BYTES_MAX = 64 * 1024 * 1024
BLOCK_BYTES = 1024 * 1024
TOO_LARGE = f"The file is larger than {BYTES_MAX // (1024 * 1024)} MiB. Ask for one file for each day."

INBOX = Staff("inbox", "inbox", frozenset({Role.FINANCE}), frozenset({EVERYWHERE}))
"""On whose behalf files are imported that nobody brings."""

log = structlog.get_logger()


@dataclass(slots=True)
class _Seen:
    """A file as it was, since when it is so, and whether it was dealt with."""

    looks: tuple[int, int, int]
    since_s: float
    over: bool = False


class Inbox:
    """Looks whether there is something to import."""

    def __init__(self, imports: Imports, folder: Path, clock: Clock) -> None:
        self._imports = imports
        self._folder = folder
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}

    async def look(self) -> None:
        """Import what lies still, one file after the other."""
        there: set[Path] = set()
        kinds: tuple[Kind, ...] = ("settlement", "deposit")
        for kind in kinds:
            for name in formats(kind):
                for path in await asyncio.to_thread(_files, self._folder / f"{kind}s-{name}"):
                    there.add(path)
                    if self._is_still(path):
                        await self._take(kind, name, path)
        self._seen = {path: seen for path, seen in self._seen.items() if path in there}

    def _is_still(self, path: Path) -> bool:
        try:
            looks = _looks(path.lstat())
        except OSError:
            return False
        seen, now_s = self._seen.get(path), self._clock.monotonic()
        if seen is None or seen.looks != looks:
            self._seen[path] = _Seen(looks, now_s)
            return False
        return not seen.over and now_s - seen.since_s >= STILL_S

    async def _take(self, kind: Kind, name: str, path: Path) -> None:
        seen, why = self._seen[path], None
        with tempfile.TemporaryFile() as copy:
            try:
                source = cast("BinaryIO", copy)
                await asyncio.to_thread(_copy, path, seen.looks, source)
                await self._imports.take(INBOX, kind, name, source, new_id("req"), lambda _lines: None)
            except Unavailable:
                return
            except GatewayError as error:
                why = error.detail
            except Exception as error:
                seen.over = True
                log.warning("inbox.failed", error=type(error).__name__)
                raise
        seen.over = True
        try:
            await asyncio.to_thread(_put_away, path, why)
        except OSError as error:
            log.warning("inbox.not_moved", error=type(error).__name__)


def _files(folder: Path) -> list[Path]:
    """The plain files of a folder that are no one's secret, by name."""
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in found if not path.name.startswith(".") and _is_plain(path)]


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _looks(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _copy(path: Path, looks: tuple[int, int, int], target: BinaryIO) -> None:
    """The file's bytes, if it is still the one that was looked at; raises `FileRefused` and `Unavailable`."""
    if looks[1] > BYTES_MAX:
        raise FileRefused(TOO_LARGE)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as source:
            left = looks[1]
            while left and (block := source.read(min(left, BLOCK_BYTES))):
                left -= target.write(block)
            changed = left or source.read(1) or _looks(os.fstat(source.fileno())) != looks
    except OSError:
        raise Unavailable from None
    if changed:
        raise Unavailable


def _put_away(path: Path, why: str | None) -> None:
    """To where it belongs, over no other file; with the reason beside it if there is one."""
    folder = path.parent / ("done" if why is None else "refused")
    folder.mkdir(exist_ok=True)
    target = folder / path.name
    while target.exists() or target.is_symlink():
        target = folder / f"{new_id('again')}-{path.name}"
    path.rename(target)
    if why is not None:
        (folder / f"{target.name}.txt").write_text(f"{why}\n", encoding="utf-8")
