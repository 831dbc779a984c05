"""What became of each line of an import: one line each, in their order, written as the answers come.

CSV or NDJSON, as the input is. A line says its number, the city's own id of the card if it has one, and the token, or
the type and detail of what was wrong; never anything of a card. In CSV an id that a spreadsheet would take for a
formula has a `'` before it (`services.sheets`): who joins by ids takes one `'` away there, or joins by line.

Beside it, in `<result>.import`, stands which import this is: a random id, from which the lines' idempotency keys are
made, and which file it reads, by size and time of change. Not by a digest: of a short file that would be an unkeyed
digest of card numbers, and a key for it would lie beside it. So a run that is killed goes on where the result ends: a
line whose answer did not get there is sent again under the same key, and is given the same token.
"""

import csv
import fcntl
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from gateway.cli.card_file import CardFile
from gateway.rules.ids import new_id
from gateway.rules.problems import BASE
from gateway.services.sheets import neutral
from keys.errors import SettingsRefused
from keys.files import read_private, write_private

COLUMNS = ("line", "id", "token", "type", "detail")


class Import(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which import a result belongs to."""

    import_id: str
    input_bytes: int
    input_changed: str
    """To the microsecond, as text: in digits alone it would look like a card number."""
    form: str
    usage: str
    url: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the result: a token, or the slug and detail of a problem."""

    line: int
    own_id: str
    token: str = ""
    slug: str = ""
    detail: str = ""


class ResultFile:
    """The result of one import, open to be gone on with; nobody else writes it meanwhile."""

    def __init__(self, path: Path, form: str, import_id: str) -> None:
        self.path = path
        self.import_id = import_id
        self.lines = 0
        self.tokens = 0
        self._form = form
        self._descriptor = _open_private(path)
        self._bytes = 0
        try:
            self._resume()
        except BaseException:
            os.close(self._descriptor)
            raise

    @classmethod
    def of(cls, path: Path, cards: CardFile, url: str) -> Self:
        """The result of importing these cards: a new one, or the one that was begun.

        Raises `SettingsRefused` when what lies there is of something else, or another run is writing it.
        """
        about = cards.path.stat()
        changed = datetime.fromtimestamp(about.st_mtime, UTC).isoformat()
        mine = Import(new_id("imp"), about.st_size, changed, cards.form, cards.usage, url)
        told = path.with_name(f"{path.name}.import")
        if not told.exists():
            if path.exists():
                raise SettingsRefused(f"{path} is there already, and not of an import: move it away, or name another")
            write_private(told, msgspec.json.encode(mine), replace=False)
        try:
            begun = msgspec.json.decode(read_private(told), type=Import)
        except msgspec.MsgspecError:
            raise SettingsRefused(f"{told} is not what an import writes: move it and {path.name} away") from None
        mine = msgspec.structs.replace(mine, import_id=begun.import_id)
        result = cls(path, cards.form, begun.import_id)
        moved = msgspec.structs.replace(begun, url=url)
        if mine != moved or (mine != begun and result.lines):
            # Even where the result is empty: what was sent may have been stored, and its lines would find that.
            result.close()
            raise SettingsRefused(
                f"{path} is of another import: the file has changed, or its format, --usage or --url differ."
                f" To begin anew name another --result, or remove {path.name} and {told.name}:"
                " cards that were sent already then get a second token"
            )
        if mine != begun:  # nothing came of it but a wrong address
            write_private(told, msgspec.json.encode(mine), replace=True)
        return result

    @property
    def failed(self) -> int:
        """How many lines have no token."""
        return self.lines - self.tokens

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Write down what became of the next lines."""
        self._append(b"".join(map(self._rendered, outcomes)))
        self.lines += len(outcomes)
        self.tokens += sum(1 for outcome in outcomes if outcome.token)

    def close(self) -> None:
        """Everything is on the disk when this returns."""
        os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _resume(self) -> None:
        """To the end of the last whole line; what a crash has left behind it is of a line that is sent again."""
        first = 2 if self._form == "csv" else 1
        with self.path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                if self._bytes or first == 1:
                    line, has_token = self._read(raw)
                    if line != first + self.lines:
                        raise SettingsRefused(f"{self.path} is not as an import left it: name another --result")
                    self.lines += 1
                    self.tokens += has_token
                self._bytes += len(raw)
        os.ftruncate(self._descriptor, self._bytes)
        if not self._bytes and self._form == "csv":
            self._append(_csv(COLUMNS))

    def _read(self, raw: bytes) -> tuple[int, bool]:
        """Number of a line, and whether it has a token; 0 for what is no line of a result."""
        try:
            if self._form == "ndjson":
                told = msgspec.json.decode(raw)
                return told["line"], "token" in told
            line, _, token, _, _ = next(csv.reader([raw.decode()], strict=True))
            return int(line), bool(token)
        except (ValueError, LookupError, TypeError, csv.Error, msgspec.MsgspecError):
            return 0, False

    def _append(self, content: bytes) -> None:
        # At a place of our own: what a full disk has cut short is written over, not behind it.
        written = 0
        try:
            while written < len(content):
                written += os.pwrite(self._descriptor, content[written:], self._bytes + written)
        except OSError as error:
            raise SettingsRefused(f"{self.path} cannot be written ({error.strerror}); then run this again") from None
        self._bytes += written

    def _rendered(self, outcome: Outcome) -> bytes:
        kind = BASE + outcome.slug if outcome.slug else ""
        own_id = neutral(outcome.own_id) if self._form == "csv" else outcome.own_id
        values = (outcome.line, own_id, outcome.token, kind, outcome.detail)
        if self._form == "csv":
            return _csv(values)
        return (
            msgspec.json.encode({name: value for name, value in zip(COLUMNS, values, strict=True) if value}) + b"\n"
        )


def _csv(values: Sequence[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _open_private(path: Path) -> int:
    """A descriptor of a plain file that only this user can read, and that no other run holds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        raise SettingsRefused(f"{path} is no plain file of this user")
    os.fchmod(descriptor, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SettingsRefused(f"{path} is being written by another run") from None
    return descriptor
