"""Staff: signing in, being known from then on, changing a password, signing out.

All factors are judged, for a name that nobody has too, and whatever was wrong the answer is `SignInRefused`; the
audit log alone says which. A try is counted before anything is judged, so that many at once are no more tries than
few. The database's clock decides what is late, and its row of the account which of two uses of one code is the first.

The database holds no session, only a keyed digest of it: a copy of the database signs nobody in.

Strangers are kept small: so many wait for a hash, the next is told to come again; of their refusals a minute has so
many audit rows.
"""

import asyncio
import base64
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from gateway.errors import (
    NotIdentified,
    NotPermitted,
    PasswordMustChange,
    PasswordRefused,
    SignInRefused,
    Unavailable,
)
from gateway.rules.passwords import (
    COST,
    Cost,
    hash_password,
    is_current,
    new_password,
    require_good_password,
    require_password,
)
from gateway.rules.staff import (
    EARLIER_KEPT,
    TRIES_MAX,
    USERNAME,
    Account,
    Proof,
    Session,
    SessionKind,
    Staff,
    canonical_name,
    tries_digest,
)
from gateway.rules.totp import is_sealed_with_newest, new_seed, open_seed, require_code, seal_seed
from gateway.services.ports import Clock
from gateway.services.refusals import RowsAMinute
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.errors import BrokenSeal
from keys.primitives import mac, require_equal, subkey
from keys.process_keys import newest
from keys.secret import Secret

AuditOf = Callable[[str], AuditRow]
"""Renders the row once the database has said whose act it is."""
Judged = TypeVar("Judged")

SESSION_BYTES = 32
SESSION = re.compile(r"[A-Za-z0-9_-]{43}")
AT_ONCE = 2
"""So many passwords are hashed at a time: each takes 64 MiB and a core."""
WAITING_MAX = 16
"""So many sign-ins wait for that, about a second; more are refused before a try is counted."""
UNKNOWN = "unknown"
SIGN_IN_REFUSED = "staff.sign_in_refused"
PASSWORD_CHANGED = "staff.password_changed"  # noqa: S105 - an event

SIGN_IN_FIRST = "Sign in: there is no such session, or it has ended."
NOT_NAMED = "The city's provider did not name anybody who may sign in here."
BUSY = "Too many people sign in at this moment. Nothing was done; try again."
TOO_MANY_TRIES = "Too many tries: wait 30 minutes."
OLD_PASSWORD = "The old password is wrong. After six tries nothing is taken for 30 minutes."  # noqa: S105
PASSWORD_USED = "This is one of your last four passwords: take another."  # noqa: S105
NO_PASSWORD = "This account has no password: it signs in at the city's provider."  # noqa: S105


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session, which is shown once, and until when it lasts at most."""

    session: Secret[str]
    expires: datetime
    staff: Staff
    must_change: bool


class StaffStore(Protocol):
    """Accounts, sessions and tries. Each method is one commit."""

    async def account(self, username: str) -> tuple[Account | None, datetime]:
        """The account of a name, and the database's time."""

    async def reserve_try(self, name_digest: bytes) -> int | None:
        """Count a try: which one since the last success or lock. None while the name is locked."""

    async def refuse(self, name_digest: bytes, refused: AuditRow | None) -> None:
        """A try was in vain. Without a row, which was left out, it writes and takes as long as with one."""

    async def lock(self, name_digest: bytes, refused: AuditRow | None, locked: AuditRow | None) -> None:
        """The same for the last try: it locks, if nobody has succeeded meanwhile."""

    async def clear_tries(self, name_digest: bytes) -> None:
        """Whoever has the name has proved it."""

    async def sign_in(
        self, proof: Proof, kind: SessionKind, session: bytes, name_digest: bytes, audit: AuditRow
    ) -> Session | None:
        """Use the factors and open a session. None: the code's step is used, or the account is not as it was."""

    async def sign_in_by_subject(self, subject: str, session: bytes, audit: AuditOf) -> Session | None:
        """Open a session for who has this name at the provider; None when nobody who is usable has."""

    async def identify(self, sessions: list[bytes]) -> Session | None:
        """The live session under one of these digests, used now."""

    async def end(self, sessions: list[bytes], audit: AuditOf) -> None:
        """End a session, if it is live."""

    async def change_password(
        self, staff: Staff, was: str, becomes: str, earlier: tuple[str, ...], name_digest: bytes, audit: AuditRow
    ) -> bool:
        """Keep another password, and end all sessions of the account but this one; False: it is not as it was."""

    async def record(self, audit: AuditRow) -> None:
        """Write one audit row."""

    async def tidy(self) -> None:
        """Forget tries of more than a day ago, unless they lock."""


class StaffSessions:
    """Who is signed in.

    `keys` are the admin's `staff-sealing` keys by number; `cost` is what new passwords take; `breached` is the file
    of `gateway.rules.passwords.require_good_password`.
    """

    def __init__(
        self,
        store: StaffStore,
        keys: Mapping[int, Secret[bytes]],
        pen: AuditPen,
        clock: Clock,
        *,
        cost: Cost = COST,
        breached: Path | None = None,
    ) -> None:
        self._store, self._pen, self._clock = store, pen, clock
        self._cost, self._breached = cost, breached
        self._threads, self._places = ThreadPoolExecutor(AT_ONCE, "factors"), AT_ONCE + WAITING_MAX
        # Theirs alone: who is signed in does not wait behind strangers, nor they behind a look through a long list.
        self._changes = ThreadPoolExecutor(1, "changes")
        self._rows = RowsAMinute(clock)
        self._nobodys_hash = hash_password(new_password(), cost)
        self.renew(keys)

    def renew(self, keys: Mapping[int, Secret[bytes]]) -> None:
        """Go on with these keys: they were rotated."""
        self._keys = keys
        self._nobodys_seed = seal_seed(keys, UNKNOWN, new_seed())

    # -- signing in

    async def sign_in(
        self, username: str, password: Secret[str], code: str, kind: SessionKind, request_id: str
    ) -> SignedIn:
        """A new session for who has name, password and code.

        Raises:
            SignInRefused: whatever is wrong.
            Unavailable: too many wait; no try was counted.
        """
        name = canonical_name(username)
        digest = tries_digest(self._keys, "tries", name)
        with self._place():
            account, now = await self._store.account(name if USERNAME.fullmatch(name) else "")
            actor = account.staff_id if account else UNKNOWN
            number = await self._store.reserve_try(digest)
            if number is None:
                faults = ["locked"]
            else:
                faults, proof = await self._in(self._threads, lambda: self._judge(account, password, code, now))
        if not faults:
            session, session_digest = self._new_session()
            done = self._row("staff.signed_in", Outcome.DONE, actor, request_id)
            opened = await self._store.sign_in(proof, kind, session_digest, digest, done)
            if opened is not None:
                return SignedIn(session, opened.expires, opened.staff, opened.must_change)
            faults = ["code_used"]
        await self._refuse(digest, number, _refusal(SIGN_IN_REFUSED, actor, request_id, faults[0]))
        raise SignInRefused

    async def sign_in_by_provider(self, subject: str, request_id: str) -> SignedIn:
        """A new session for whom the city's provider knows by this name; raises `SignInRefused`, `NOT_NAMED`."""
        session, digest = self._new_session()

        def done(staff_id: str) -> AuditRow:
            return self._row("staff.signed_in", Outcome.DONE, staff_id, request_id, "provider")

        # What a database cannot store as text is nobody's name, either.
        known = subject if subject.isprintable() else ""
        opened = await self._store.sign_in_by_subject(known, digest, done)
        if opened is None:
            await self._store.record(self._row(SIGN_IN_REFUSED, Outcome.REFUSED, UNKNOWN, request_id, "provider"))
            raise SignInRefused(NOT_NAMED)
        return SignedIn(session, opened.expires, opened.staff, opened.must_change)

    def _judge(
        self, account: Account | None, password: Secret[str], code: str, now: datetime
    ) -> tuple[list[str], Proof]:
        """All factors, of an account or of nobody's in its place; the faults that were found, worst first.

        What is kept of them follows cost and key of today: a sign-in is when password and seed are at hand.
        """
        faults = [] if account is not None and account.usable else ["ended" if account else "unknown"]
        staff_id, kept, sealed = UNKNOWN, self._nobodys_hash, self._nobodys_seed
        if account is not None and account.password_hash is not None and account.totp_sealed is not None:
            staff_id, kept, sealed = account.staff_id, account.password_hash, account.totp_sealed
        elif account is not None:
            faults.append("no_password")
        proof = Proof(staff_id, kept, 0, kept, sealed)
        with _noting(faults, "password"):
            require_password(kept, password)
        with _noting(faults, "code"):
            seed = open_seed(self._keys, staff_id, sealed)
            proof = replace(proof, step=require_code(seed, code, now))
        if faults:
            return faults, proof
        if not is_current(kept, self._cost):
            proof = replace(proof, kept=hash_password(password, self._cost))
        if not is_sealed_with_newest(self._keys, sealed):
            proof = replace(proof, sealed=seal_seed(self._keys, staff_id, seed))
        return faults, proof

    async def _refuse(self, digest: bytes, number: int | None, refused: AuditEvent) -> None:
        """Write down a try, of this number unless the name was locked, that was in vain."""
        with self._room(refused) as row:
            if number is None or number < TRIES_MAX:
                await self._store.refuse(digest, row)
                return
            locks = replace(refused, event="staff.locked", outcome=Outcome.DONE, reason=f"tries_{TRIES_MAX}")
            with self._room(locks) as locked:
                await self._store.lock(digest, row, locked)

    @contextmanager
    def _room(self, event: AuditEvent) -> Iterator[AuditRow | None]:
        """The row of an event; None where a minute has had its rows.

        There is no end of names that nobody has, nor of tries while a name is locked. Of somebody's other tries the
        lock lets six through, and all are told.
        """
        if event.actor != UNKNOWN and event.reason != "locked":
            yield self._pen.row(event, self._clock.now())
            return
        with self._rows.room(event) as told:
            yield None if told is None else self._pen.row(told, self._clock.now())

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among those who are judged or wait for it; raises `Unavailable`."""
        if not self._places:
            raise Unavailable(BUSY)
        self._places -= 1
        try:
            yield
        finally:
            self._places += 1

    async def tidy(self) -> None:
        """Forget tries of long ago: names are typed by strangers, and there is no end of them."""
        await self._store.tidy()

    # -- being signed in

    async def identify(self, session: str, *, for_change: bool = False) -> Staff:
        """Who has this session, with what they are granted now; counts as use.

        Raises:
            NotIdentified: never made, ended, unused for 15 minutes, 8 hours old, or its account has ended.
            PasswordMustChange: the password must be changed first, and it is not asked `for_change`.
        """
        known = await self._store.identify(self._session_digests(session))
        if known is None:
            raise NotIdentified(SIGN_IN_FIRST)
        if known.must_change and not for_change:
            raise PasswordMustChange
        return known.staff

    async def end(self, session: str, request_id: str) -> None:
        """Sign out. A session that has ended stays so."""

        def done(staff_id: str) -> AuditRow:
            return self._row("staff.signed_out", Outcome.DONE, staff_id, request_id)

        await self._store.end(self._session_digests(session), done)

    def csrf(self, session: str) -> str:
        """What the forms of a session carry, and nobody knows who has not the session."""
        return base64.urlsafe_b64encode(mac(self._subkey("csrf"), _bytes(session))).decode()

    def require_csrf(self, session: str, given: str) -> None:
        """Raises `NotPermitted` for a form that is not of this session."""
        require_equal(self.csrf(session).encode(), _bytes(given), NotPermitted())

    # -- passwords

    async def change_password(self, staff: Staff, old: Secret[str], new: Secret[str], request_id: str) -> None:
        """Another password from now on; every other session of the account ends.

        Raises:
            PasswordRefused: the old one is wrong, tried too often, or the new one will not do.
        """
        await self._in(self._changes, lambda: require_good_password(new, staff.username, self._breached))
        digest = tries_digest(self._keys, "changes", staff.username)
        account, _ = await self._store.account(staff.username)
        if account is None or account.staff_id != staff.staff_id or account.password_hash is None:
            raise PasswordRefused(NO_PASSWORD)
        await self._require_old(staff, account.password_hash, old, digest, request_id)
        before = (account.password_hash, *account.earlier_hashes[:EARLIER_KEPT])
        if await self._in(self._changes, lambda: any(_fits(kept, new) for kept in before)):
            await self._store.clear_tries(digest)
            raise PasswordRefused(PASSWORD_USED)
        becomes = await self._in(self._changes, lambda: hash_password(new, self._cost))
        done = self._row(PASSWORD_CHANGED, Outcome.DONE, staff.staff_id, request_id)
        if not await self._store.change_password(
            staff, account.password_hash, becomes, before[:EARLIER_KEPT], digest, done
        ):
            raise PasswordRefused(OLD_PASSWORD)

    async def _require_old(self, staff: Staff, kept: str, old: Secret[str], digest: bytes, request_id: str) -> None:
        """Counted, for a session that was left open is no place to guess from.

        Apart from tries to sign in: a stranger who locks the name keeps nobody from changing a password.
        """
        number = await self._store.reserve_try(digest)
        if number is not None and await self._in(self._changes, lambda: _fits(kept, old)):
            return
        reason = "locked" if number is None else "password"
        await self._refuse(digest, number, _refusal(PASSWORD_CHANGED, staff.staff_id, request_id, reason))
        raise PasswordRefused(TOO_MANY_TRIES if number is None else OLD_PASSWORD)

    # -- what these are made of

    async def _in(self, threads: ThreadPoolExecutor, judge: Callable[[], Judged]) -> Judged:
        return await asyncio.get_running_loop().run_in_executor(threads, judge)

    def _row(self, event: str, outcome: Outcome, actor: str, request_id: str, reason: str = "") -> AuditRow:
        told = AuditEvent(CITY, event, outcome, actor, "", reason, request_id)
        return self._pen.row(told, self._clock.now())

    def _subkey(self, purpose: str, number: int | None = None) -> Secret[bytes]:
        key = newest(self._keys)[1] if number is None else self._keys[number]
        return subkey(key, "staff", purpose, "v1")

    def _new_session(self) -> tuple[Secret[str], bytes]:
        session = secrets.token_urlsafe(SESSION_BYTES)
        return Secret(session), mac(self._subkey("session"), session.encode())

    def _session_digests(self, session: str) -> list[bytes]:
        """Under every key, so that a rotation signs nobody out."""
        if not SESSION.fullmatch(session):
            raise NotIdentified(SIGN_IN_FIRST)
        return [mac(self._subkey("session", number), session.encode()) for number in self._keys]


def _refusal(event: str, actor: str, request_id: str, reason: str) -> AuditEvent:
    return AuditEvent(CITY, event, Outcome.REFUSED, actor, "", reason, request_id)


@contextmanager
def _noting(faults: list[str], fault: str) -> Iterator[None]:
    """Go on after a factor that is wrong: the others are judged as well."""
    try:
        yield
    except SignInRefused:
        faults.append(fault)
    except BrokenSeal:  # altered, or sealed with a key that is not here
        faults.append("seal")


def _fits(kept: str, password: Secret[str]) -> bool:
    try:
        require_password(kept, password)
    except SignInRefused:
        return False
    return True


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
