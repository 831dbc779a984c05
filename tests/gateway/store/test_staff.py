"""Staff on a real server: signing in, tries, sessions and their ends, passwords, what a copy of the tables tells."""

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.clock import SystemClock
from gateway.errors import (
    NotIdentified,
    NotPermitted,
    PasswordMustChange,
    PasswordRefused,
    SignInRefused,
    Unavailable,
)
from gateway.rules.ids import new_id
from gateway.rules.passwords import Cost, hash_password, is_current, require_password
from gateway.rules.staff import LOCKED, TRIES_MAX, Proof, Role, Staff, tries_digest
from gateway.rules.totp import STEP_S, code_at, new_seed, seal_seed
from gateway.services import staff as module
from gateway.services.refusals import ROWS_A_MINUTE
from gateway.services.staff import AT_ONCE, NOT_NAMED, TOO_MANY_TRIES, WAITING_MAX, SignedIn, StaffSessions
from gateway.store.database import Database
from gateway.store.staff import StaffStore
from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.primitives import new_key
from keys.secret import Secret
from tests.gateway.store.postgres import Postgres

pytestmark = pytest.mark.server

CHEAP = Cost(1, 8)
KEYS = {1: new_key()}
PEN = AuditPen("admin", {1: new_key()})
PASSWORD = "seven herons wade 7"
WRONG = "seven herons wade 8"
OTHERS = [f"otters {number} swim upstream" for number in range(10, 20)]


@dataclass(frozen=True)
class Person:
    """Somebody with an account, and what only they know."""

    staff_id: str
    username: str
    seed: Secret[bytes]

    def code(self, late: int = 0) -> str:
        """What their phone shows, so many steps from now."""
        return code_at(self.seed, int(datetime.now(UTC).timestamp()) // STEP_S + late)


@dataclass(frozen=True)
class Office:
    """The admin process' part of it, and the owner, who can move the past."""

    sessions: StaffSessions
    owner: asyncpg.Connection

    async def hire(self, *, cost: Cost = CHEAP, must_change: bool = False, subject: str | None = None) -> Person:
        """An account of the parks' finance, granted now."""
        person = Person(new_id("st"), "p." + secrets.token_hex(6), new_seed())
        await self.owner.execute(
            "INSERT INTO gateway.staff (staff_id, username, person, roles, departments, password_hash,"
            " password_must_change, totp_sealed, oidc_subject, grant_act, granted_by, approved_by, created_at,"
            " granted_at) VALUES ($1, $2, $1, '{finance}', '{parks}', $3, $4, $5, $6, $1, 'a', 'b', now(), now())",
            person.staff_id,
            person.username,
            hash_password(Secret(PASSWORD), cost),
            must_change,
            seal_seed(KEYS, person.staff_id, person.seed),
            subject,
        )
        return person

    async def sign_in(
        self, person: Person, password: str = PASSWORD, code: str | None = None, name: str | None = None
    ) -> SignedIn:
        """With all factors, unless others are given; a code that was used is good again."""
        if code is None:
            await self.change(person, "totp_step = 0")
        given = code if code is not None else person.code()
        return await self.sessions.sign_in(name or person.username, Secret(password), given, "browser", new_id("req"))

    async def entered(self) -> tuple[Person, str]:
        """Somebody new who has signed in, and their session."""
        person = await self.hire()
        return person, (await self.sign_in(person)).session.reveal()

    async def change(self, person: Person, to: str) -> None:
        """Alter the account behind everybody's back."""
        await self.owner.execute(f"UPDATE gateway.staff SET {to} WHERE staff_id = $1", person.staff_id)

    async def age(self, person: Person, **columns: timedelta) -> None:
        """Move times of the account's sessions so far into the past."""
        for column, by in columns.items():
            await self.owner.execute(
                f"UPDATE gateway.staff_sessions SET {column} = now() - $2::interval WHERE staff_id = $1",
                person.staff_id,
                by,
            )

    async def unlock_after(self, by: timedelta) -> None:
        """Let time pass for all locks."""
        await self.owner.execute("UPDATE gateway.sign_in_tries SET locked_until = locked_until - $1::interval", by)

    async def told(self, actor: str) -> list[tuple[str, str, str]]:
        """What the audit log tells of somebody: event, outcome, reason."""
        rows = await self.owner.fetch(
            "SELECT event, outcome, reason FROM audit.events WHERE actor = $1 AND process = 'admin'"
            " ORDER BY occurred_at",
            actor,
        )
        return [tuple(row) for row in rows]


@pytest.fixture(scope="module")
async def admin(postgres: Postgres) -> AsyncIterator[Database]:
    """The admin process' pool."""
    database = await Database.open(postgres.arguments("admin"), 10)
    yield database
    await database.close()


def sessions_of(admin: Database, cost: Cost = CHEAP, breached: Path | None = None) -> StaffSessions:
    """What an admin process has."""
    return StaffSessions(StaffStore(admin), KEYS, PEN, SystemClock(), cost=cost, breached=breached)


@pytest.fixture
def office(admin: Database, owner: asyncpg.Connection) -> Office:
    """An admin process."""
    return Office(sessions_of(admin), owner)


# --- signing in -------------------------------------------------------------------------------------------------


async def test_all_factors_give_a_session(office: Office) -> None:
    """It is known from then on, with roles and departments, lasts a working day, and is in the audit log."""
    person = await office.hire()
    signed_in = await office.sign_in(person)

    known = await office.sessions.identify(signed_in.session.reveal())
    assert known == signed_in.staff == replace(known)
    assert known == Staff(person.staff_id, person.username, frozenset({Role.FINANCE}), frozenset({"parks"}))
    assert abs(signed_in.expires - datetime.now(UTC) - timedelta(hours=8)) < timedelta(minutes=1)
    assert not signed_in.must_change
    assert len(signed_in.session.reveal()) == 43
    assert await office.told(person.staff_id) == [("staff.signed_in", "done", "")]


async def midstep() -> None:
    """Not so near the end of a step that the next begins before a code was judged."""
    left_s = STEP_S - datetime.now(UTC).timestamp() % STEP_S
    await asyncio.sleep(left_s + 0.1 if left_s < 1 else 0)


@pytest.mark.parametrize("late", [-1, 1])
async def test_a_neighbouring_code_is_taken(office: Office, late: int) -> None:
    """A phone's clock may be half a minute off."""
    person = await office.hire()
    await midstep()
    await office.sign_in(person, code=person.code(late))


async def test_two_factors_one_answer(office: Office) -> None:
    """Whatever is wrong, the error is one; the audit log alone says which factor it was, all of them judged."""
    person, gone = await office.hire(), await office.hire()
    stranger = Person("unknown", "n." + secrets.token_hex(6), new_seed())
    await office.change(gone, "disabled_at = now()")
    refusals = []
    for who, password, code, reason in [
        (person, WRONG, person.code(), "password"),
        (person, PASSWORD, person.code(20), "code"),
        (person, WRONG, person.code(20), "password"),
        (person, "", "", "password"),
        (gone, PASSWORD, gone.code(), "ended"),
        (stranger, PASSWORD, stranger.code(), "unknown"),
    ]:
        with pytest.raises(SignInRefused) as refused:
            await office.sign_in(who, password, code)
        refusals.append(str(refused.value))
        assert (await office.told(who.staff_id))[-1] == ("staff.sign_in_refused", "refused", reason)
    assert len(set(refusals)) == 1


async def test_every_factor_is_judged_for_a_name_that_nobody_has(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known or not, with a good password or not, the same work is done: one hash and one code."""
    person, judged = await office.hire(), Counter[str]()
    for name in ("require_password", "require_code"):
        real = getattr(module, name)

        def counting(*given: object, name: str = name, real: object = real) -> object:
            judged[name] += 1
            return real(*given)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counting)
    for who, password in [
        (person.username, WRONG),
        (person.username, PASSWORD),
        ("n." + secrets.token_hex(6), WRONG),
    ]:
        judged.clear()
        with pytest.raises(SignInRefused):
            await office.sign_in(person, password, person.code(20), who)
        assert judged == {"require_password": 1, "require_code": 1}


async def test_a_code_is_used_once(office: Office) -> None:
    """The same code again, and one of the step before, is refused like a wrong one."""
    person = await office.hire()
    await midstep()
    code, before = person.code(), person.code(-1)
    await office.sign_in(person, code=code)
    for used in (code, before):
        with pytest.raises(SignInRefused):
            await office.sign_in(person, code=used)
    assert [reason for _, _, reason in await office.told(person.staff_id)] == ["", "code_used", "code_used"]


async def test_one_code_at_once_gives_one_session(office: Office) -> None:
    """Of several parallel uses of one code the database lets one through."""
    person = await office.hire()
    code = person.code()
    ends = await asyncio.gather(
        *(office.sign_in(person, code=code) for _ in range(TRIES_MAX)), return_exceptions=True
    )
    assert Counter(type(end) for end in ends) == {SignedIn: 1, SignInRefused: TRIES_MAX - 1}
    assert await live_sessions(office, person) == 1


async def test_signing_in_ends_no_other_session(office: Office) -> None:
    """Somebody may sit at two desks."""
    person, session = await office.entered()
    await office.sign_in(person)
    await office.sessions.identify(session)


async def test_what_is_kept_of_a_password_keeps_up(office: Office, admin: Database) -> None:
    """Who signs in with an older cost gets today's, and the password stays good."""
    person = await office.hire(cost=CHEAP)
    dearer = Office(sessions_of(admin, Cost(2, 16)), office.owner)
    await dearer.sign_in(person)
    kept = await office.owner.fetchval("SELECT password_hash FROM gateway.staff WHERE staff_id = $1", person.staff_id)
    assert is_current(kept, Cost(2, 16))
    await dearer.sign_in(person)


async def test_a_seed_of_another_account_makes_no_code(office: Office) -> None:
    """Copied by somebody who writes to the database, it does not open, and the audit log says so."""
    person, other = await office.hire(), await office.hire()
    await office.change(
        person, f"totp_sealed = (SELECT totp_sealed FROM gateway.staff WHERE staff_id = '{other.staff_id}')"
    )
    with pytest.raises(SignInRefused):
        await office.sign_in(person, code=other.code())
    assert await office.told(person.staff_id) == [("staff.sign_in_refused", "refused", "seal")]


@pytest.mark.parametrize("name", ["", "\0", "\ud800", "a" * 10_000, "' OR ''='", "p.%", "a.chen\u200b"])
async def test_any_text_may_be_typed_as_a_name(office: Office, name: str) -> None:
    """What no account can be called is refused like any wrong name."""
    with pytest.raises(SignInRefused):
        await office.sessions.sign_in(name, Secret("\0\ud800"), "\0", "script", "req_1")


@pytest.mark.parametrize(
    "ends", ["disabled_at = now()", "granted_at = now() - interval '91 days'", "password_hash = 'another'"]
)
async def test_an_account_that_ends_while_it_is_judged(office: Office, admin: Database, ends: str) -> None:
    """Between the look at the factors and their use the account may end or change: then nobody is signed in."""
    person, store = await office.hire(), StaffStore(admin)
    account, _ = await store.account(person.username)
    assert account is not None
    assert account.password_hash is not None
    assert account.totp_sealed is not None
    proof = Proof(person.staff_id, account.password_hash, 1, account.password_hash, account.totp_sealed)
    await office.change(person, ends)
    assert await store.sign_in(proof, "browser", secrets.token_bytes(32), bytes(32), row("late")) is None
    assert await live_sessions(office, person) == 0
    assert await office.told("late") == []


# --- tries ------------------------------------------------------------------------------------------------------


async def miss(office: Office, person: Person, times: int, name: str | None = None) -> None:
    """So many wrong passwords."""
    for _ in range(times):
        with pytest.raises(SignInRefused):
            await office.sign_in(person, WRONG, name=name)


async def test_six_tries_lock_for_half_an_hour(office: Office) -> None:
    """Then the right password is refused too, until 30 minutes are over; the lock is in the audit log, once."""
    person = await office.hire()
    await miss(office, person, TRIES_MAX)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    await office.unlock_after(LOCKED - timedelta(seconds=30))
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    await office.unlock_after(timedelta(seconds=31))
    await office.sign_in(person)
    assert [reason or event for event, _, reason in await office.told(person.staff_id)] == [
        *["password"] * TRIES_MAX,
        f"tries_{TRIES_MAX}",
        "locked",
        "locked",
        "staff.signed_in",
    ]


async def test_after_a_lock_there_are_six_tries_again(office: Office) -> None:
    """Not one, and not endless ones."""
    person = await office.hire()
    await miss(office, person, TRIES_MAX)
    await office.unlock_after(LOCKED + timedelta(seconds=1))
    await miss(office, person, TRIES_MAX - 1)
    await office.sign_in(person)
    await miss(office, person, TRIES_MAX)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)


async def test_success_gives_the_tries_back(office: Office) -> None:
    """Five wrong ones, the right one, five wrong ones: nobody is locked out."""
    person = await office.hire()
    for _ in range(2):
        await miss(office, person, TRIES_MAX - 1)
        await office.sign_in(person)


async def test_wrong_codes_are_tries(office: Office) -> None:
    """Who has stolen a password cannot try all codes."""
    person = await office.hire()
    for _ in range(TRIES_MAX):
        with pytest.raises(SignInRefused):
            await office.sign_in(person, code=person.code(20))
    with pytest.raises(SignInRefused):
        await office.sign_in(person)


async def test_fifty_guesses_at_once_are_six(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are looked at six times, however many come at the same time; the one that is right comes too late."""
    person, judged = await office.hire(), []
    real = require_password

    def noted(kept: str, password: Secret[str]) -> None:
        judged.append(password)
        real(kept, password)

    monkeypatch.setattr(module, "require_password", noted)
    ends = await asyncio.gather(
        *(office.sign_in(person, WRONG, person.code()) for _ in range(50)), return_exceptions=True
    )
    taken = Counter(type(end) for end in ends)[SignInRefused]
    assert TRIES_MAX < taken <= AT_ONCE + WAITING_MAX
    assert {type(end) for end in ends} == {SignInRefused, Unavailable}
    assert len(judged) == TRIES_MAX
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    assert Counter(reason for _, _, reason in await office.told(person.staff_id)) == {
        "password": TRIES_MAX,
        "locked": taken - TRIES_MAX + 1,
        f"tries_{TRIES_MAX}": 1,
    }


async def test_so_many_wait_and_the_next_come_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers fill the queue, not the process; who is sent away has made no try, and may come again."""
    person, held = await office.hire(), threading.Event()
    real = require_password

    def slow(kept: str, password: Secret[str]) -> None:
        held.wait(10)
        real(kept, password)

    monkeypatch.setattr(module, "require_password", slow)

    async def stranger() -> str:
        with pytest.raises((SignInRefused, Unavailable)) as refused:
            await office.sign_in(person, WRONG, "000000", "n." + secrets.token_hex(6))
        return type(refused.value).__name__

    waiting = [asyncio.create_task(stranger()) for _ in range(AT_ONCE + WAITING_MAX)]
    await asyncio.sleep(0)
    for _ in range(TRIES_MAX):
        with pytest.raises(Unavailable):
            await office.sign_in(person)
    assert await tries_of(office, person) is None
    held.set()
    assert Counter(await asyncio.gather(*waiting)) == {"SignInRefused": AT_ONCE + WAITING_MAX}
    await office.sign_in(person)


async def test_a_change_of_password_waits_for_no_stranger(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """While both threads hash for the sign-in, who is signed in changes a password all the same."""
    (person, session), held, begun = await office.entered(), threading.Event(), []
    judge = office.sessions._judge

    def slow(*given: Any) -> Any:
        begun.append(given)
        held.wait(10)
        return judge(*given)

    monkeypatch.setattr(office.sessions, "_judge", slow)

    async def stranger() -> None:
        with pytest.raises(SignInRefused):
            await office.sign_in(person, WRONG, "000000", "n." + secrets.token_hex(6))

    waiting = [asyncio.create_task(stranger()) for _ in range(AT_ONCE)]
    try:
        async with asyncio.timeout(5):
            while len(begun) < AT_ONCE:
                await asyncio.sleep(0.01)
            await change_password(office, session, PASSWORD, OTHERS[0])
    finally:
        held.set()
        await asyncio.gather(*waiting)


async def tries_of(office: Office, person: Person, keys: Mapping[int, Secret[bytes]] = KEYS) -> int | None:
    """How many tries to sign in are counted of somebody."""
    digest = tries_digest(keys, "tries", person.username)
    tries: int | None = await office.owner.fetchval(
        "SELECT tries FROM gateway.sign_in_tries WHERE name_digest = $1", digest
    )
    return tries


async def test_a_rotation_lifts_no_lock(office: Office) -> None:
    """With a newer key beside the older one, a locked name stays locked."""
    person = await office.hire()
    await miss(office, person, TRIES_MAX)
    office.sessions.renew(KEYS | {2: new_key()})
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    assert (await office.told(person.staff_id))[-1][2] == "locked"


async def test_strangers_fill_no_audit_log(office: Office) -> None:
    """Of names that nobody has, and of a locked one, a minute has so many rows; somebody's other tries are told."""
    person, locked = await office.hire(), await office.hire()
    before = Counter(await office.told("unknown"))
    for number in range(ROWS_A_MINUTE + 5):
        await miss(office, person, 1, f"n.{number}." + secrets.token_hex(6))
    await miss(office, locked, TRIES_MAX + ROWS_A_MINUTE + 5)
    await miss(office, person, TRIES_MAX)
    assert Counter(await office.told("unknown")) - before == {
        ("staff.sign_in_refused", "refused", "unknown"): ROWS_A_MINUTE
    }
    assert Counter(reason for _, _, reason in await office.told(locked.staff_id)) == {
        "password": TRIES_MAX,
        f"tries_{TRIES_MAX}": 1,
        "locked": ROWS_A_MINUTE,
    }
    assert Counter(reason for _, _, reason in await office.told(person.staff_id))["password"] == TRIES_MAX


async def test_locks_of_names_that_nobody_has_fill_no_audit_log(office: Office) -> None:
    """Nor do the rows of their locks; the names lock all the same."""
    stranger = Person("unknown", "", new_seed())
    names = ["n." + secrets.token_hex(6) for _ in range(ROWS_A_MINUTE + 2)]
    for name in names:
        digest = tries_digest(KEYS, "tries", name)
        await office.owner.execute(
            "INSERT INTO gateway.sign_in_tries VALUES ($1, $2, NULL, now())", digest, TRIES_MAX - 1
        )
    before = Counter(await office.told("unknown"))
    for name in names:
        await miss(office, stranger, 1, name)
    assert (Counter(await office.told("unknown")) - before)[
        "staff.locked", "done", f"tries_{TRIES_MAX}"
    ] == ROWS_A_MINUTE
    held = await office.owner.fetchval(
        "SELECT count(*) FROM gateway.sign_in_tries WHERE locked_until > now() AND name_digest = ANY ($1)",
        [tries_digest(KEYS, "tries", name) for name in names],
    )
    assert held == len(names)


async def test_old_tries_are_forgotten(office: Office) -> None:
    """A day after the last one; a lock stays for as long as it holds, and so does what is younger."""
    old, locked, young = [await office.hire() for _ in range(3)]
    for person, times in ((old, 1), (locked, TRIES_MAX), (young, 1)):
        await miss(office, person, times)
    for person, hours in ((old, 25), (locked, 25), (young, 23)):
        await office.owner.execute(
            "UPDATE gateway.sign_in_tries SET tried_at = now() - make_interval(hours => $2) WHERE name_digest = $1",
            tries_digest(KEYS, "tries", person.username),
            hours,
        )
    await office.sessions.tidy()
    assert [await tries_of(office, person) for person in (old, locked, young)] == [None, TRIES_MAX, 1]
    await office.unlock_after(LOCKED + timedelta(seconds=1))
    await office.sessions.tidy()
    assert [await tries_of(office, person) for person in (locked, young)] == [None, 1]


async def test_all_spellings_of_a_name_share_its_tries(office: Office) -> None:
    """Case, spaces and other forms of the same letters are no further tries."""
    person = await office.hire()
    name = person.username
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in name)
    for spelling in (name, name.upper(), f"  {name}\t", wide, wide.upper(), f"\u3000{name.title()}"):
        await miss(office, person, 1, spelling)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    assert (await office.told(person.staff_id))[-1][2] == "locked"


async def test_a_name_that_nobody_has_locks_as_well(office: Office) -> None:
    """So a lock does not tell who has an account; and another name is not locked by it."""
    stranger = Person("unknown", "n." + secrets.token_hex(6), new_seed())
    before = Counter(await office.told("unknown"))
    await miss(office, stranger, TRIES_MAX + 1)
    assert Counter(await office.told("unknown")) - before == {
        ("staff.sign_in_refused", "refused", "unknown"): TRIES_MAX,
        ("staff.locked", "done", f"tries_{TRIES_MAX}"): 1,
        ("staff.sign_in_refused", "refused", "locked"): 1,
    }
    await office.entered()


# --- sessions ---------------------------------------------------------------------------------------------------


async def live_sessions(office: Office, person: Person) -> int:
    """How many the account has."""
    count: int = await office.owner.fetchval(
        "SELECT count(*) FROM gateway.staff_sessions WHERE staff_id = $1 AND ended_at IS NULL", person.staff_id
    )
    return count


@pytest.mark.parametrize(
    ("column", "within", "beyond"),
    [
        ("seen_at", timedelta(minutes=14, seconds=59), timedelta(minutes=15, seconds=1)),
        ("created_at", timedelta(hours=7, minutes=59), timedelta(hours=8, minutes=1)),
    ],
)
async def test_a_session_ends_by_itself(office: Office, column: str, within: timedelta, beyond: timedelta) -> None:
    """Unused for 15 minutes, or 8 hours old; a second before it is alive, and then use has moved the first only."""
    person, session = await office.entered()
    await office.age(person, **{column: within})
    await office.sessions.identify(session)
    await office.age(person, **{column: beyond})
    with pytest.raises(NotIdentified):
        await office.sessions.identify(session)


async def test_use_keeps_a_session_alive(office: Office) -> None:
    """Idle time counts from the last use; a day's end does not move."""
    person, session = await office.entered()
    for _ in range(2):
        await office.age(person, seen_at=timedelta(minutes=14))
        await office.sessions.identify(session)
    assert await office.owner.fetchval(
        "SELECT now() - seen_at < '1 minute' FROM gateway.staff_sessions WHERE staff_id = $1", person.staff_id
    )


@pytest.mark.parametrize("column", ["granted_at", "last_signed_in_at"])
async def test_an_account_that_nobody_uses_ends(office: Office, column: str) -> None:
    """After 90 days without a sign-in, or a grant; a new grant wakes it."""
    person, session = await office.entered()
    other = "granted_at" if column == "last_signed_in_at" else "last_signed_in_at"
    await office.change(person, f"{other} = now() - interval '200 days', {column} = now() - interval '89 days'")
    await office.sessions.identify(session)
    await office.change(person, f"{column} = now() - interval '91 days'")
    with pytest.raises(NotIdentified):
        await office.sessions.identify(session)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    assert (await office.told(person.staff_id))[-1] == ("staff.sign_in_refused", "refused", "ended")
    await office.change(person, "granted_at = now()")
    await office.sign_in(person)


async def test_disabled_at_the_next_request(office: Office) -> None:
    """An account that is disabled identifies nobody, and signs nobody in."""
    person, session = await office.entered()
    await office.change(person, "disabled_at = now()")
    with pytest.raises(NotIdentified):
        await office.sessions.identify(session)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)


async def test_another_grant_at_the_next_request(office: Office) -> None:
    """Roles and departments are those of now, not those of the sign-in."""
    person, session = await office.entered()
    await office.change(person, "roles = '{approver,records}', departments = '{utilities}'")
    known = await office.sessions.identify(session)
    assert (known.roles, known.departments) == (frozenset({Role.APPROVER, Role.RECORDS}), frozenset({"utilities"}))


async def test_signing_out(office: Office) -> None:
    """The session is nobody's any more, and no other is touched; a second time changes nothing."""
    person, session = await office.entered()
    other = (await office.sign_in(person)).session.reveal()
    for _ in range(2):
        await office.sessions.end(session, "req_out")
    with pytest.raises(NotIdentified):
        await office.sessions.identify(session)
    await office.sessions.identify(other)
    assert (await office.told(person.staff_id)).count(("staff.signed_out", "done", "")) == 1


@pytest.mark.parametrize("session", ["", "x" * 43, "\0" * 43, "\ud800", "a" * 100_000, "é" * 43])
async def test_what_is_no_session_is_nobodys(office: Office, session: str) -> None:
    """Whatever is sent in its place."""
    with pytest.raises(NotIdentified):
        await office.sessions.identify(session)


async def test_sessions_outlive_a_rotation(office: Office) -> None:
    """With a newer key beside the older one, sessions and codes of before are good, and new ones are made with it."""
    person, session = await office.entered()
    newer_key = {2: new_key()}
    office.sessions.renew(KEYS | newer_key)
    await office.sessions.identify(session)
    newer = (await office.sign_in(person)).session.reveal()
    await office.sessions.identify(newer)
    office.sessions.renew(KEYS)
    with pytest.raises(NotIdentified):
        await office.sessions.identify(newer)
    # The seed has followed: the older key is not needed any more.
    office.sessions.renew(newer_key)
    await office.sign_in(person)


async def test_a_form_belongs_to_its_session(office: Office) -> None:
    """The value of one session is refused in another, and nothing is not a value."""
    (_, one), (_, other) = await office.entered(), await office.entered()
    office.sessions.require_csrf(one, office.sessions.csrf(one))
    for given in (office.sessions.csrf(other), "", one, "\ud800", office.sessions.csrf(one)[:-1]):
        with pytest.raises(NotPermitted):
            office.sessions.require_csrf(one, given)


# --- the city's provider ----------------------------------------------------------------------------------------


async def test_who_the_provider_knows(office: Office) -> None:
    """A subject that an account carries gives a session; an unknown one, one of an ended account, and none do not."""
    subject = secrets.token_hex(8)
    person = await office.hire(subject=subject)
    await office.hire()
    signed_in = await office.sessions.sign_in_by_provider(subject, "req_1")
    assert (await office.sessions.identify(signed_in.session.reveal())).staff_id == person.staff_id
    assert await office.told(person.staff_id) == [("staff.signed_in", "done", "provider")]
    await office.change(person, "disabled_at = now()")
    for unknown in (subject, subject.upper(), "", "\0", "\ud800"):
        with pytest.raises(SignInRefused) as refused:
            await office.sessions.sign_in_by_provider(unknown, "req_2")
        assert str(refused.value) == NOT_NAMED
    assert (await office.told("unknown"))[-1] == ("staff.sign_in_refused", "refused", "provider")


async def test_an_account_without_a_password_has_no_other_way(office: Office) -> None:
    """Neither nothing nor anything is its password, and it cannot get one by itself."""
    person = await office.hire(subject=secrets.token_hex(8))
    await office.change(person, "password_hash = NULL, totp_sealed = NULL")
    for password in ("", PASSWORD):
        with pytest.raises(SignInRefused):
            await office.sign_in(person, password)
    staff = Staff(person.staff_id, person.username, frozenset(), frozenset())
    with pytest.raises(PasswordRefused):
        await office.sessions.change_password(staff, Secret(""), Secret(OTHERS[0]), "req_1")


# --- passwords --------------------------------------------------------------------------------------------------


async def change_password(office: Office, session: str, old: str, new: str) -> None:
    """As the page does it."""
    staff = await office.sessions.identify(session, for_change=True)
    await office.sessions.change_password(staff, Secret(old), Secret(new), "req_change")


async def test_a_password_made_by_others_must_be_changed(office: Office) -> None:
    """Until then the session is good for that alone."""
    person = await office.hire(must_change=True)
    signed_in = await office.sign_in(person)
    session = signed_in.session.reveal()
    assert signed_in.must_change
    with pytest.raises(PasswordMustChange):
        await office.sessions.identify(session)
    await change_password(office, session, PASSWORD, OTHERS[0])
    await office.sessions.identify(session)
    assert not (await office.sign_in(person, OTHERS[0])).must_change


async def test_a_changed_password_ends_all_other_sessions(office: Office) -> None:
    """The one in which it was changed goes on; the old password is good for nothing."""
    person, session = await office.entered()
    other = (await office.sign_in(person)).session.reveal()
    _, foreign = await office.entered()
    await change_password(office, session, PASSWORD, OTHERS[0])
    await office.sessions.identify(session)
    await office.sessions.identify(foreign)
    with pytest.raises(NotIdentified):
        await office.sessions.identify(other)
    with pytest.raises(SignInRefused):
        await office.sign_in(person)
    await office.sign_in(person, OTHERS[0])
    assert ("staff.password_changed", "done", "") in await office.told(person.staff_id)


async def test_none_of_the_last_four_comes_again(office: Office) -> None:
    """The present one and the three before it are refused; the one before those is taken."""
    _, session = await office.entered()
    history = [PASSWORD, *OTHERS[:4]]
    for old, new in pairwise(history):
        await change_password(office, session, old, new)
    for used in history[1:]:
        with pytest.raises(PasswordRefused):
            await change_password(office, session, history[-1], used)
    await change_password(office, session, history[-1], PASSWORD)


async def test_new_passwords_are_judged(office: Office, admin: Database, tmp_path: Path) -> None:
    """Bad ones are refused however often, without a try being counted; the city's own list is asked, too."""
    person, session = await office.entered()
    breached = tmp_path / "breached"
    breached.write_text(OTHERS[0])
    strict = Office(sessions_of(admin, breached=breached), office.owner)
    for bad in [*["short 1"] * TRIES_MAX, f"my name is {person.username} 1", OTHERS[0]]:
        with pytest.raises(PasswordRefused):
            await change_password(strict, session, PASSWORD, bad)
    for _ in range(TRIES_MAX):
        with pytest.raises(PasswordRefused):
            await change_password(strict, session, PASSWORD, PASSWORD)
    await change_password(strict, session, PASSWORD, OTHERS[1])


async def test_an_open_session_is_no_place_to_guess_from(office: Office) -> None:
    """A wrong old password is a try; after six the right one is refused as well, in words that say so."""
    person, session = await office.entered()
    for _ in range(TRIES_MAX):
        with pytest.raises(PasswordRefused, match="old password is wrong"):
            await change_password(office, session, WRONG, OTHERS[0])
    with pytest.raises(PasswordRefused, match=TOO_MANY_TRIES):
        await change_password(office, session, PASSWORD, OTHERS[0])
    told = Counter(await office.told(person.staff_id))
    assert told["staff.password_changed", "refused", "password"] == TRIES_MAX
    assert told["staff.password_changed", "refused", "locked"] == 1
    assert told["staff.locked", "done", f"tries_{TRIES_MAX}"] == 1
    await office.sign_in(person)
    await office.unlock_after(LOCKED + timedelta(seconds=1))
    await change_password(office, session, PASSWORD, OTHERS[0])


async def test_who_locks_a_name_keeps_nobody_from_changing_a_password(office: Office) -> None:
    """Who is signed in may do so while strangers try the name at the sign-in, which stays locked."""
    person, session = await office.entered()
    await miss(office, person, TRIES_MAX)
    await change_password(office, session, PASSWORD, OTHERS[0])
    with pytest.raises(SignInRefused):
        await office.sign_in(person, OTHERS[0])


async def test_two_changes_at_once_are_one(office: Office, admin: Database) -> None:
    """Who comes second finds another password than the one that was judged, and changes nothing."""
    person, session = await office.entered()
    staff, store = await office.sessions.identify(session), StaffStore(admin)
    account, _ = await store.account(person.username)
    assert account is not None
    assert account.password_hash is not None
    ends = await asyncio.gather(
        *(
            store.change_password(
                staff, account.password_hash, hash_password(Secret(new), CHEAP), (), bytes(32), row("twice")
            )
            for new in OTHERS[:4]
        )
    )
    assert Counter(ends) == {True: 1, False: 3}
    await office.sign_in(person, OTHERS[ends.index(True)])
    assert await office.told("twice") == [("test.event", "done", "")]


def row(actor: str) -> AuditRow:
    """Any audit row of this actor."""
    return PEN.row(AuditEvent(CITY, "test.event", Outcome.DONE, actor), datetime.now(UTC))


# --- a copy of the database -------------------------------------------------------------------------------------


async def test_the_tables_hold_no_secret(office: Office) -> None:
    """Password, seed, code, session, form value and the names that were tried stand nowhere, in no dress."""
    person, session = await office.entered()
    tried = "n." + secrets.token_hex(6)
    await miss(office, person, 1, tried)
    await change_password(office, session, PASSWORD, OTHERS[0])
    dump = ""
    for table in ("gateway.staff", "gateway.staff_sessions", "gateway.sign_in_tries", "audit.events"):
        for row in await office.owner.fetch(f"SELECT * FROM {table}"):
            dump += "".join(value.hex() if isinstance(value, bytes) else f" {value} " for value in row.values())
    assert person.staff_id in dump
    for secret in (PASSWORD, OTHERS[0], session, tried, office.sessions.csrf(session), person.seed.reveal()):
        raw = secret if isinstance(secret, bytes) else secret.encode()
        assert raw.hex() not in dump
        assert raw.decode("latin-1") not in dump
