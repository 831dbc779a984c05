"""The processor double's memory: one SQLite file in which every answer is durable before it is given.

WAL with `synchronous=FULL` syncs each commit to disk, so an answer survives `kill -9` and a power cut. A call
is one short statement or two, on the event loop's own thread on purpose: a thread pool would only add a race
between looking a reference up and writing it. For the same reason the file is locked for this process alone.

There is a row for each reference, and none for a charge: where a charge stands is always worked out from its
movements, so that no two of our own figures can disagree.

No card number, name, expiry or verification code has a column here, nor a type that could carry one in.
"""

import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.processor.stub.judgement import Charge, Movement, Standing
from gateway.processor.stub.protocol import Answer, Checks, Decline, Kind, Status

SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS movements (
        reference TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        charge TEXT NOT NULL,
        amount INTEGER NOT NULL,
        currency TEXT NOT NULL,
        status TEXT NOT NULL,
        decline_class TEXT,
        decline_code TEXT,
        cvc TEXT NOT NULL,
        last4 TEXT NOT NULL,
        effects INTEGER NOT NULL,
        created REAL NOT NULL,
        applied REAL NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS movements_of_charge ON movements (charge)",
    """
    CREATE TABLE IF NOT EXISTS tombstones (
        reference TEXT PRIMARY KEY,
        charge TEXT,
        created REAL NOT NULL
    )
    """,
)
# A file of the time when there were sales and verifications only, each in one row of `entries`.
IS_OLD: Final = "SELECT 1 FROM sqlite_master WHERE name = 'entries'"
TAKE_OVER: Final = """
INSERT INTO movements
SELECT reference, kind, reference, amount, currency, status, decline_class, decline_code, cvc, last4, effects,
    created, applied
FROM entries WHERE true ORDER BY rowid
ON CONFLICT (reference) DO NOTHING
"""
FIND: Final = "SELECT * FROM movements WHERE reference = ?"
LIST: Final = "SELECT * FROM movements WHERE (kind = 'verify') = ? ORDER BY rowid"
WITHIN: Final = """
SELECT * FROM movements
WHERE kind <> 'verify' AND (created BETWEEN :start AND :end OR applied BETWEEN :start AND :end) ORDER BY rowid
"""
# A reference that comes again is carried out as if it were new; only its effects add up.
WRITE: Final = """
INSERT INTO movements VALUES (
    :reference, :kind, :charge, :amount, :currency, :status, :decline_class, :decline_code, :cvc, :last4,
    :effects, :now, :now
)
ON CONFLICT (reference) DO UPDATE SET
    status = excluded.status, decline_class = excluded.decline_class, decline_code = excluded.decline_code,
    cvc = excluded.cvc, last4 = excluded.last4, effects = effects + excluded.effects,
    applied = excluded.applied
"""
BURY: Final = "INSERT INTO tombstones VALUES (?, ?, ?) ON CONFLICT (reference) DO NOTHING"
IS_VOID: Final = "SELECT 1 FROM tombstones WHERE reference = ?"
TOMBSTONES: Final = "SELECT * FROM tombstones ORDER BY rowid"
CHARGES: Final = """
SELECT head.*,
    sum(tail.effects) FILTER (WHERE tail.kind = 'capture') AS captures,
    max(tail.amount) FILTER (WHERE tail.kind = 'capture' AND tail.effects > 0) AS captured,
    sum(tail.effects) FILTER (WHERE tail.kind = 'void') AS voids,
    sum(tail.amount * tail.effects) FILTER (WHERE tail.kind = 'refund') AS refunded
FROM movements AS head
LEFT JOIN movements AS tail ON tail.charge = head.reference AND tail.kind IN ('capture', 'void', 'refund')
WHERE head.kind IN ('sale', 'authorization'){} GROUP BY head.reference ORDER BY head.rowid
"""
ALL_CHARGES: Final = CHARGES.format("")
ONE_CHARGE: Final = CHARGES.format(" AND head.reference = ?")


class Entry(msgspec.Struct, frozen=True):
    """One movement as it stands: minor units, UTC; `effects` is how often it was carried out, with success.

    `status` and what follows it are the last answer's. `applied` is when that was decided, `created` when the
    reference was first seen: they differ only when it came again.
    """

    reference: str
    kind: Kind
    charge: str
    amount: int
    currency: str
    status: Status
    decline: Decline | None
    checks: Checks
    last4: str
    effects: int
    created: datetime
    applied: datetime

    def answer(self) -> Answer:
        """What the wire says of it."""
        return msgspec.convert(self, Answer, from_attributes=True)


class Tombstone(msgspec.Struct, frozen=True):
    """A reference that was made void, and of which charge, if that was told."""

    reference: str
    charge: str | None
    created: datetime


class Book:
    """Movements by reference. `clock` gives seconds since 1970, for the book outlives its process."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Open or create the file, readable by its owner alone; an older one is taken over, and stays readable.

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
            *SCHEMA,
        ):
            self._db.execute(statement)
        if self._db.execute(IS_OLD).fetchone():
            self._db.execute(TAKE_OVER)

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        self._db.close()

    def write(self, movement: Movement, status: Status, decline: Decline | None, effects: int) -> Answer:
        """Have it on disk that a movement was carried out, or declined, now."""
        verdict = movement.verdict
        self._db.execute(
            WRITE,
            {
                "reference": movement.reference,
                "kind": movement.kind,
                "charge": movement.charge,
                "amount": movement.amount,
                "currency": movement.currency,
                "status": status,
                "decline_class": decline.category if decline else None,
                "decline_code": decline.code if decline else None,
                "cvc": verdict.checks.cvc if verdict else "unchecked",
                "last4": verdict.last4 if verdict else "",
                "effects": effects,
                "now": self._clock(),
            },
        )
        return _entry(self._db.execute(FIND, (movement.reference,)).fetchone()).answer()

    def bury(self, reference: str, charge: str | None) -> None:
        """Have it on disk that a reference is void."""
        self._db.execute(BURY, (reference, charge, self._clock()))

    def is_void(self, reference: str) -> bool:
        """Whether it was."""
        return self._db.execute(IS_VOID, (reference,)).fetchone() is not None

    def find(self, reference: str, age_s_min: float = 0) -> Entry | None:
        """Look a reference up that was first seen at least `age_s_min` ago."""
        row = self._db.execute(FIND, (reference,)).fetchone()
        if row is None:
            return None
        entry = _entry(row)
        return entry if self.age_s(entry.created) >= age_s_min else None

    def charge(self, reference: str) -> Charge | None:
        """A sale or an authorization, with what followed it."""
        row = self._db.execute(ONE_CHARGE, (reference,)).fetchone()
        return None if row is None else _charge(row)

    def charges(self) -> list[Charge]:
        """All of them, oldest first."""
        return [_charge(row) for row in self._db.execute(ALL_CHARGES)]

    def movements(self) -> list[Entry]:
        """Every movement, oldest first."""
        return [_entry(row) for row in self._db.execute(LIST, (False,))]

    def within(self, start: datetime, end: datetime) -> list[Entry]:
        """The movements that were first or last carried out, or declined, between two moments, both included."""
        span = {"start": start.timestamp(), "end": end.timestamp()}
        return [_entry(row) for row in self._db.execute(WITHIN, span)]

    def verifications(self) -> list[Entry]:
        """Every verification, oldest first."""
        return [_entry(row) for row in self._db.execute(LIST, (True,))]

    def tombstones(self) -> list[Tombstone]:
        """Every reference that is void, oldest first."""
        return [
            Tombstone(row["reference"], row["charge"], _utc(row["created"])) for row in self._db.execute(TOMBSTONES)
        ]

    def today(self) -> date:
        """The UTC date of now."""
        return _utc(self._clock()).date()

    def age_s(self, moment: datetime) -> float:
        """How long ago that was. A clock that was set back makes nothing younger than new."""
        return max(0.0, self._clock() - moment.timestamp())


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        **_told(row), charge=row["charge"], amount=row["amount"], status=row["status"], effects=row["effects"]
    )


def _charge(row: sqlite3.Row) -> Charge:
    authorized = row["amount"] if row["effects"] else 0
    refunded = row["refunded"] or 0
    effects = row["effects"] if row["kind"] == "sale" else row["captures"] or 0
    amount = row["captured"] or row["amount"]
    status: Standing = "captured" if effects else "voided" if row["voids"] else row["status"]
    return Charge(
        **_told(row), amount=amount, status=status, authorized=authorized, refunded=refunded, effects=effects
    )


def _told(row: sqlite3.Row) -> dict[str, Any]:
    """What a movement and a charge have in common."""
    declined = row["decline_code"] is not None
    return {
        "reference": row["reference"],
        "kind": row["kind"],
        "currency": row["currency"],
        "decline": Decline(row["decline_class"], row["decline_code"]) if declined else None,
        "checks": Checks(row["cvc"]),
        "last4": row["last4"],
        "created": _utc(row["created"]),
        "applied": _utc(row["applied"]),
    }


def _utc(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, UTC)
