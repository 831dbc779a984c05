"""What staff may do: roles, the permissions that they carry, which of them nobody may hold together, and where.

A permission is what a route of the admin site declares; a role is what people are granted. Whoever may do a thing may
do it in the departments of their grant only; `*`, all departments, is a grant of its own.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import combinations
from typing import Literal

from gateway.errors import GrantRefused, NotFound, NotPermitted
from keys.primitives import mac, subkey
from keys.secret import Secret

EVERYWHERE = "*"
USERNAME = re.compile(r"[a-z][a-z0-9.]{2,30}")

IDLE = timedelta(minutes=15)
"""A session that nobody uses for so long has ended (PCI DSS 8.2.8)."""
SESSION_MAX = timedelta(hours=8)
"""One working day: a session ends then, however busy."""
DORMANT = timedelta(days=90)
"""An account that nobody signed in to for so long is of no use until it is granted again (PCI DSS 8.2.6)."""
TRIES_MAX = 6
LOCKED = timedelta(minutes=30)
"""So many wrong tries, and the name is locked for so long; PCI DSS 8.3.4 allows ten."""
EARLIER_KEPT = 3
"""With the present one these are the four passwords that may not come again (PCI DSS 8.3.7)."""


class Role(StrEnum):
    """What people are granted."""

    FINANCE = "finance"
    APPROVER = "approver"
    RECORDS = "records"
    AUDITOR = "auditor"


class Permission(StrEnum):
    """What a route of the admin site asks for."""

    HOME = "home"
    """Being signed in, and one's own account."""
    REFUNDS_READ = "refunds:read"
    REFUNDS_DECIDE = "refunds:decide"
    LEDGER_READ = "ledger:read"
    """Charges, what was imported, reconciliations, exceptions and closes: all of finance, to look at."""
    IMPORTS_MAKE = "imports:make"
    RECONCILIATIONS_MAKE = "reconciliations:make"
    EXCEPTIONS_RESOLVE = "exceptions:resolve"
    EXCEPTIONS_APPROVE = "exceptions:approve"
    CLOSES_PROPOSE = "closes:propose"
    CLOSES_APPROVE = "closes:approve"
    EXPORTS_MAKE = "exports:make"
    AUDIT_READ = "audit:read"


_LOOK = frozenset({Permission.HOME, Permission.REFUNDS_READ, Permission.LEDGER_READ, Permission.EXPORTS_MAKE})

PERMISSIONS: Mapping[Role, frozenset[Permission]] = {
    Role.FINANCE: _LOOK
    | {
        Permission.IMPORTS_MAKE,
        Permission.RECONCILIATIONS_MAKE,
        Permission.EXCEPTIONS_RESOLVE,
        Permission.CLOSES_PROPOSE,
    },
    Role.APPROVER: _LOOK
    | {
        Permission.REFUNDS_DECIDE,
        Permission.RECONCILIATIONS_MAKE,
        Permission.EXCEPTIONS_APPROVE,
        Permission.CLOSES_APPROVE,
    },
    Role.RECORDS: frozenset({Permission.HOME}),
    Role.AUDITOR: _LOOK | {Permission.AUDIT_READ},
}

TOXIC: frozenset[frozenset[Role]] = frozenset(
    {
        frozenset({Role.FINANCE, Role.APPROVER}),
        *(frozenset({Role.AUDITOR, role}) for role in Role if role is not Role.AUDITOR),
    }
)
"""Who makes does not approve; who looks whether all was right had no part in it."""

SHARED_NAMES = frozenset(
    [
        "admin",
        "administrator",
        "approver",
        "auditor",
        "finance",
        "guest",
        "info",
        "office",
        "operator",
        "records",
        "root",
        "service",
        "staff",
        "support",
        "system",
        "team",
        "test",
        "user",
    ]
)
"""Names of nobody in particular (PCI DSS 8.2.2)."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Somebody who is signed in, with what they are granted at this moment."""

    staff_id: str
    username: str
    roles: frozenset[Role]
    departments: frozenset[str]
    session: bytes = field(default=b"", repr=False, compare=False)
    """The digest of the session."""

    def require(self, permission: Permission) -> None:
        """Raises `NotPermitted` unless one of the roles carries it."""
        if not any(permission in PERMISSIONS[role] for role in self.roles):
            raise NotPermitted

    def require_department(self, department: str) -> None:
        """Raises `NotFound`, as for a department that is none."""
        if EVERYWHERE not in self.departments and department not in self.departments:
            raise NotFound

    def among(self, departments: Collection[str]) -> frozenset[str]:
        """Those of them that this grant reaches."""
        return frozenset(departments) if EVERYWHERE in self.departments else self.departments & frozenset(departments)


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the database knows it."""

    staff: Staff
    must_change: bool
    """Whether the password was made by somebody else."""
    expires: datetime


SessionKind = Literal["browser", "script"]


@dataclass(frozen=True, slots=True)
class Account:
    """What the factors of somebody are judged by; None where they sign in at the city's provider only."""

    staff_id: str
    usable: bool
    """Neither disabled nor dormant."""
    password_hash: str | None = field(repr=False)
    earlier_hashes: tuple[str, ...] = field(repr=False)
    totp_sealed: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """That somebody has all factors: by which kept password, the code's step, and what to keep from now on."""

    staff_id: str
    judged: str = field(repr=False)
    step: int
    kept: str = field(repr=False)
    sealed: bytes = field(repr=False)


def canonical_name(given: str) -> str:
    """One spelling for all ways to type a username: tries are counted by it, whether anybody has the name or not."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", given).casefold()).strip()


Tries = Literal["tries", "changes"]
"""What is tried: to sign in, and old passwords by who is signed in. One locks not the other."""


def tries_digest(keys: Mapping[int, Secret[bytes]], tries: Tries, name: str) -> bytes:
    """By what the tries of a canonical name are counted: of the oldest of the admin's `staff-sealing` keys.

    The oldest, because it stays when a newer one comes: a rotation lifts no lock.
    """
    return mac(subkey(keys[min(keys)], "staff", tries, "v1"), name.encode("utf-8", "surrogatepass"))


def require_grantable(username: str, person: str, roles: Collection[Role], departments: Collection[str]) -> None:
    """Raises `GrantRefused` for an account that nobody may have."""
    if not USERNAME.fullmatch(username):
        raise GrantRefused("a username has 3 to 31 of a-z, 0-9 and `.`, and begins with a letter: try `a.chen`")
    if username in SHARED_NAMES:
        raise GrantRefused("an account is one person's: name it after the person, not after an office")
    if not person.strip() or not person.isprintable():
        raise GrantRefused("name the person: their personnel number, which no other account carries")
    if not roles:
        raise GrantRefused(f"grant at least one role: {', '.join(Role)}")
    if not departments:
        raise GrantRefused("name the departments; all of them, also those to come, is `--all-departments`")
    if EVERYWHERE in departments and len(departments) > 1:
        raise GrantRefused("either all departments or some by name")
    for pair in map(frozenset, combinations(roles, 2)):
        if pair in TOXIC:
            raise GrantRefused(f"nobody is {' and '.join(sorted(pair))} at once: grant one of them to somebody else")
