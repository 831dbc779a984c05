"""The processor double's memory: one SQLite file in which every answer is durable before it is given.

WAL with `synchronous=FULL` syncs each commit to disk, so an answer survives `kill -9` and a power cut. A call
is one short statement or two, on the event loop's own thread on purpose: a thread pool would only add a race
between looking a reference up and writing it. For the same reason the file is locked for this process alone.

No card number, name, expiry or verification code has a column here, nor a type that could carry one in.
"""

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.processor.stub.protocol import Answer, Checks, Decision, Decline, Kind

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (
    reference TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    amount INTEGER NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL,
    decline_class TEXT,
    decline_code TEXT,
    cvc TEXT NOT NULL,
    last4 TEXT NOT NULL,
    effects INTEGER NOT NULL,
    refunded INTEGER NOT NULL,
    created REAL NOT NULL,
    applied REAL NOT NULL
)
"""
FIND: Final = "SELECT * FROM entries WHERE reference = ?"
LIST: Final = "SELECT * FROM entries WHERE kind = ? ORDER BY rowid"
# A reference past its window is applied as if it were new; only its effects add up.
APPLY: Final = """
INSERT INTO entries VALUES (
    :reference, :kind, :amount, :currency, :status, :decline_class, :decline_code, :cvc, :last4,
    :effects, 0, :now, :now
)
ON CONFLICT (reference) DO UPDATE SET
    status = excluded.status, decline_class = excluded.decline_class, decline_code = excluded.decline_code,
    cvc = excluded.cvc, last4 = excluded.last4, effects = effects + excluded.effects,
    applied = excluded.applied
"""


class ReferenceConflictError(Exception):
    """The reference stands for another amount, currency or kind already."""


class Entry(msgspec.Struct, frozen=True):
    """One row of the truth, as `control` shows it: minor units, UTC; `effects` is how often money moved.

    `status` and what follows it are the last answer's. `applied` is when that was decided, `created` when the
    reference was first seen: they differ only when it came again after the dedupe window.
    """

    reference: str
    kind: Kind
    amount: int
    currency: str
    status: str
    decline: Decline | None
    checks: Checks
    last4: str
    effects: int
    refunded: int
    created: datetime
    applied: datetime

    def answer(self) -> Answer:
        """What the wire says of it."""
        return msgspec.convert(self, Answer, from_attributes=True)


class Book:
    """Decisions by reference. `clock` gives seconds since 1970, for the book outlives its process."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open or create the file, readable by its owner alone.

        Raises:
            sqlite3.OperationalError: it cannot be opened, or another process holds it.
        """
        path.touch(mode=0o600)
        self._clock = clock
        self._db = sqlite3.connect(path, isolation_level=None, timeout=0)
        self._db.row_factory = sqlite3.Row
        for statement in (
            "PRAGMA locking_mode = EXCLUSIVE",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            SCHEMA,
        ):
            self._db.execute(statement)

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        self._db.close()

    def apply(self, decision: Decision, dedupe_window_s: float) -> Entry:
        """Carry a decision out once, and have it on disk: within the window, the first one stands.

        Raises:
            ReferenceConflictError: the reference is another movement's.
        """
        known = self.find(decision.answer.reference)
        if known is not None:
            _refuse_another(known, decision)
            if self._age_s(known.applied) < dedupe_window_s:
                return known
        self._db.execute(APPLY, {**_columns(decision), "now": self._clock()})
        return _entry(self._db.execute(FIND, (decision.answer.reference,)).fetchone())

    def find(self, reference: str, age_s_min: float = 0) -> Entry | None:
        """Look a reference up that was first seen at least `age_s_min` ago."""
        row = self._db.execute(FIND, (reference,)).fetchone()
        if row is None:
            return None
        entry = _entry(row)
        return entry if self._age_s(entry.created) >= age_s_min else None

    def rows(self, kind: Kind) -> list[Entry]:
        """All rows of one kind, oldest first."""
        return [_entry(row) for row in self._db.execute(LIST, (kind,))]

    def _age_s(self, moment: datetime) -> float:
        # A clock that was set back makes nothing younger than new.
        return max(0.0, self._clock() - moment.timestamp())


def _refuse_another(known: Entry, decision: Decision) -> None:
    answer = decision.answer
    if (known.kind, known.amount, known.currency) != (decision.kind, answer.amount, answer.currency):
        raise ReferenceConflictError


def _columns(decision: Decision) -> dict[str, Any]:
    answer = decision.answer
    return {
        "reference": answer.reference,
        "kind": decision.kind,
        "amount": answer.amount,
        "currency": answer.currency,
        "status": answer.status,
        "decline_class": answer.decline.category if answer.decline else None,
        "decline_code": answer.decline.code if answer.decline else None,
        "cvc": answer.checks.cvc,
        "last4": decision.last4,
        "effects": decision.effects,
    }


def _entry(row: sqlite3.Row) -> Entry:
    declined = row["decline_code"] is not None
    return Entry(
        reference=row["reference"],
        kind=row["kind"],
        amount=row["amount"],
        currency=row["currency"],
        status=row["status"],
        decline=Decline(row["decline_class"], row["decline_code"]) if declined else None,
        checks=Checks(row["cvc"]),
        last4=row["last4"],
        effects=row["effects"],
        refunded=row["refunded"],
        created=datetime.fromtimestamp(row["created"], UTC),
        applied=datetime.fromtimestamp(row["applied"], UTC),
    )
