"""`gateway staff`: an account takes two officers, is what both signed, and is taken away by one person at once."""

import asyncio
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from gateway.cli.main import app as gateway
from gateway.rules.grants import Grant
from gateway.rules.staff import TRIES_MAX, Role
from keys import acts
from keys.acts import ActFolder
from keys.cli.main import app as keys
from keys.files import read_private_line, write_private
from keys.manifest import Manifest
from keys.officers import OfficerKey, open_officer_key
from keys.signing import text_of
from tests.system import Staff, System, owner, running

pytestmark = pytest.mark.server

NUMBERS = itertools.count(5000)
OWN_PASSWORD = "seven quiet otters 7"
OWN_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


@dataclass(frozen=True)
class Office:
    """A demo, and its two officers with their keys open."""

    system: System
    key_of: Mapping[str, OfficerKey]

    @property
    def acts(self) -> ActFolder:
        """Where requests and approvals lie."""
        return ActFolder(self.system.home / "keystore" / "acts")

    @property
    def manifest(self) -> Manifest:
        """As it is now."""
        note = (self.system.home / "keystore" / "manifest").read_text()
        return msgspec.json.decode(text_of(note), type=Manifest)

    def asked(self, payload: Mapping[str, str | int], by: str = "security", moment: datetime | None = None) -> str:
        """The id of a request with this payload, whatever it says."""
        now, manifest = moment or datetime.now(UTC), self.manifest
        note = acts.request(
            self.key_of[by],
            by,
            act="grant-staff",
            payload=payload,
            reason="a test",
            environment=manifest.environment,
            manifest_version=manifest.version,
            now=now,
        )
        return self.acts.put_request(note)

    def approve(self, act_id: str, by: str = "security2") -> str:
        """The other officer's approval of it; gives the same id."""
        note, now = self.acts.find(act_id).request, datetime.now(UTC)
        self.acts.put_approval(acts.approve(note, self.manifest.officers, self.key_of[by], by, now))
        return act_id

    def agreed(self, payload: Mapping[str, str | int]) -> str:
        """The id of a request that both stand behind."""
        return self.approve(self.asked(payload))

    def run(self, *arguments: str) -> str:
        """A command within this process; gives what it prints, or the line with which it is refused."""
        program = {"gateway": gateway, "keys": keys}[arguments[0]]
        config = ("--config", str(self.system.home / "gateway.toml"))
        done = CliRunner().invoke(program, [*arguments[1:], *config])
        assert done.exit_code != 2, done.output
        return str(done.exception) if done.exception is not None else done.stdout

    async def refused(self, *arguments: str) -> str:
        """A command that leaves no trace among the accounts; gives its line."""
        before = await self.accounts()
        told = await asyncio.to_thread(self.run, *arguments)
        assert await self.accounts() == before, told
        return told

    async def granted(self, act_id: str, *arguments: str) -> dict[str, str]:
        """Carry it out; what is handed to the person."""
        told = await asyncio.to_thread(self.run, "gateway", "staff", "add", "--request", act_id, "--json", *arguments)
        given: dict[str, str] = json.loads(told)
        return given

    async def accounts(self) -> dict[str, dict[str, Any]]:
        """The rows, by username."""
        return {row["username"]: dict(row) for row in await self.fetch("SELECT * FROM gateway.staff")}

    async def audited(self, staff_id: str) -> list[tuple[str, str, str]]:
        """What the owner did to one account: event, actor and reason."""
        rows = await self.fetch(
            "SELECT event, actor, reason FROM audit.events WHERE process = 'owner' AND subject = $1"
            " ORDER BY occurred_at",
            staff_id,
        )
        return [tuple(row) for row in rows]

    async def fetch(self, query: str, *values: object) -> Sequence[Any]:
        """Rows, as the owner sees them."""
        connection = await owner(self.system)
        try:
            rows: Sequence[Any] = await connection.fetch(query, *values)
        finally:
            await connection.close()
        return rows


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    """One demo for all of these tests; each takes people of its own."""
    with running(Path(tempfile.mkdtemp(prefix="gateway-grants-"))) as system:
        told = system.demo["officers"].items()
        opened = {name: _opened(files) for name, files in told}
        yield Office(system, opened)


def _opened(files: Mapping[str, str]) -> OfficerKey:
    return open_officer_key(Path(files["key"]), read_private_line(Path(files["passphrase_file"])))


def newcomer(username: str, role: str = "finance", department: str = "parks") -> dict[str, str]:
    """What a grant to somebody new says."""
    return Grant.of(username, str(next(NUMBERS)), [role], [department]).payload()


# --- from asking to signing in ---


async def test_by_the_commands_from_asking_to_the_first_sign_in(office: Office) -> None:
    """One asks, the other approves, the account is made once; its password is good for nothing but to be changed."""
    system = office.system
    told = await asyncio.to_thread(
        system.by_two,
        *("gateway", "staff", "add", "b.ito", "--person", "4711", "--role", "finance", "--role", "records"),
        *("--department", "utilities", "--department", "parks", "--reason", "joins the city"),
    )
    command = told.strip().partition("Now the account: ")[2]
    given = json.loads(await asyncio.to_thread(system.command, *command.split(), "--json"))

    assert set(given) == {"username", "password", "totp_secret", "otpauth"}
    assert given["otpauth"].startswith("otpauth://totp/")
    assert given["totp_secret"] in given["otpauth"]
    async with Staff(system, given) as staff:
        assert (await staff.sign_in()).status == 201
        assert (await staff.call("GET", "/admin/v1/me")).problem == "password-must-change"
        changed = await staff.call(
            "POST", "/admin/v1/password", {"old": given["password"], "new": "nine patient herons 9"}
        )
        assert changed.status == 204
        me = (await staff.call("GET", "/admin/v1/me")).json
    assert me == {"username": "b.ito", "roles": ["finance", "records"], "departments": ["parks", "utilities"]}

    act_id = command.split()[-1]
    row = (await office.accounts())["b.ito"]
    assert (row["granted_by"], row["approved_by"], row["grant_act"]) == ("security", "security2", act_id)
    granted = ("staff.granted", "security+security2", "finance+records@parks+utilities")
    assert await office.audited(row["staff_id"]) == [granted]
    signed = "SELECT request_id FROM audit.events WHERE event = 'staff.granted' AND subject = $1"
    assert [told["request_id"] for told in await office.fetch(signed, row["staff_id"])] == [act_id]
    assert not any(secret.encode() in repr(row).encode() for secret in (given["password"], given["totp_secret"]))


async def test_ones_own_password_and_secret(office: Office, tmp_path: Path) -> None:
    """From files they are not printed, and need no change; one that is refused has not spent the act."""
    password, secret = tmp_path / "password", tmp_path / "secret"
    files = ("--password-file", str(password), "--totp-file", str(secret))
    write_private(password, b"f.okoro f.okoro 1", replace=True)
    write_private(secret, OWN_SECRET.lower().encode(), replace=True)
    act_id = office.agreed(newcomer("f.okoro"))
    request = ("gateway", "staff", "add", "--request", act_id, *files)

    assert "username must not be part" in await office.refused(*request)
    write_private(password, OWN_PASSWORD.encode(), replace=True)
    write_private(secret, b"short", replace=True)
    assert "holds no TOTP secret" in await office.refused(*request)
    write_private(secret, OWN_SECRET.lower().encode(), replace=True)
    assert await office.granted(act_id, *files) == {"username": "f.okoro"}
    mine = {"username": "f.okoro", "password": OWN_PASSWORD, "totp_secret": OWN_SECRET}
    async with Staff(office.system, mine) as staff:
        assert (await staff.sign_in()).status == 201
        assert (await staff.call("GET", "/admin/v1/me")).status == 200

    again = office.agreed((await grant_of(office, "f.okoro")).payload())
    assert "was used lately" in await office.refused("gateway", "staff", "add", "--request", again, *files)


async def test_outside_a_demo_nobody_else_knows_a_password_for_long(office: Office, tmp_path: Path) -> None:
    """There a password from a file is one for the first sign-in, too."""
    password, config = tmp_path / "password", tmp_path / "gateway.toml"
    write_private(password, OWN_PASSWORD.encode(), replace=True)
    settings = (office.system.home / "gateway.toml").read_text()
    assert 'profile = "demo"' in settings
    config.write_text(settings.replace('profile = "demo"', 'profile = "production"'))
    act_id = office.agreed(newcomer("k.known"))
    arguments = ["staff", "add", "--request", act_id, "--password-file", str(password), "--config", str(config)]
    done = await asyncio.to_thread(CliRunner().invoke, gateway, arguments)

    assert done.exit_code == 0, done.exception
    assert (await office.accounts())["k.known"]["password_must_change"]
    assert "at the first sign-in it is changed" in done.stdout
    assert "to type into the app" in done.stdout
    assert "never on a web site" in done.stdout


async def test_who_signs_in_at_the_provider_gets_no_factors(office: Office) -> None:
    """There is no second way in beside the city's own."""
    payload = newcomer("o.berg") | {"oidc_subject": "00u-berg"}
    assert await office.granted(office.agreed(payload)) == {"username": "o.berg"}

    row = (await office.accounts())["o.berg"]
    assert (row["oidc_subject"], row["password_hash"], row["totp_sealed"]) == ("00u-berg", None, None)
    twice = office.agreed(newcomer("o.burg") | {"oidc_subject": "00u-berg"})
    assert "is o.berg's" in await office.refused("gateway", "staff", "add", "--request", twice)


# --- what two officers are for ---


async def test_nobody_approves_their_own(office: Office) -> None:
    """Neither by the command, nor by carrying it out without anybody."""
    act_id = office.asked(newcomer("a.alone"))

    own = ("keys", "approve", act_id, *office.system.officer("security"))
    assert "cannot approve it" in await office.refused(*own)
    assert "is not approved yet" in await office.refused("gateway", "staff", "add", "--request", act_id)


async def test_what_was_signed_is_what_is_done(office: Office) -> None:
    """A request that is changed, or exchanged after it was approved, is refused; and so is what is no grant."""
    act_id = office.agreed(newcomer("c.chang"))
    request = office.acts.path / f"{act_id}.request"
    signed = request.read_text()
    request.write_text(signed.replace('"finance"', '"approver"'))
    carry_out = ("gateway", "staff", "add", "--request", act_id)

    assert "was altered" in await office.refused(*carry_out)
    other = office.asked(newcomer("c.chong", "approver"))
    request.write_text(office.acts.find(other).request)
    assert "is of another request" in await office.refused(*carry_out)
    request.write_text(signed)
    assert (await office.granted(act_id))["username"] == "c.chang"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"roles": "approver,finance"}, "nobody is approver and finance at once"),
        ({"username": "finance"}, "name it after the person"),
        ({"person": "1001"}, "this person has the account f.alvarez"),
        ({"departments": "parks,water"}, "no department is called water"),
        ({"roles": "finance,finance"}, "not spelled as"),
        ({"limit": 7}, "not spelled as"),
    ],
)
async def test_two_signatures_do_not_make_it_grantable(
    office: Office, changed: dict[str, str | int], told: str
) -> None:
    """What asking would have refused is refused once more when it is carried out."""
    act_id = office.agreed(newcomer("t.toxic") | changed)

    assert told in await office.refused("gateway", "staff", "add", "--request", act_id)


async def test_an_act_is_carried_out_once(office: Office) -> None:
    """Of two at once one is refused; afterwards all are, even where somebody took the mark away."""
    act_id = office.agreed(newcomer("d.once"))
    command = ("gateway", "staff", "add", "--request", act_id, "--json")
    with ThreadPoolExecutor(2) as two:
        told = list(two.map(lambda _: office.system.command(*command, code=None), range(2)))
    mark = office.acts.path / f"{act_id}.done"

    assert sum("password" in each for each in told) == 1, told
    row = (await office.accounts())["d.once"]
    assert "was carried out already" in await office.refused(*command)
    mark.unlink()
    assert f"was granted or disabled since {act_id} was asked for" in await office.refused(*command)
    assert [event for event, _, _ in await office.audited(row["staff_id"])] == ["staff.granted"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("admin", "--person", "1", "--role", "finance", "--department", "parks"), "name it after the person"),
        (("e.new", "--role", "finance", "--department", "parks"), "name the person"),
        (("e.new", "--person", "1", "--department", "parks"), "grant at least one role"),
        (("e.new", "--person", "1", "--role", "finance"), "name the departments"),
        (("e.new", "--person", "1", "--role", "finance", "--department", "*"), "--all-departments"),
        (
            ("e.new", "--person", "1", "--role", "finance", "--department", "parks", "--all-departments"),
            "and no name beside it",
        ),
        (
            ("e.new", "--person", "1", "--role", "finance", "--role", "approver", "--all-departments"),
            "nobody is approver and finance at once",
        ),
        ((), "name the account to ask for"),
        (("--request", "act_" + "0" * 32), "there is no request"),
        (("e.new", "--person", "1", "--role", "finance", "--all-departments"), "this takes an officer"),
    ],
)
async def test_what_is_refused_before_anybody_signs(office: Office, arguments: tuple[str, ...], told: str) -> None:
    """Each in a line that says what to do, and no request is kept."""
    before = office.acts.pending(datetime.now(UTC))

    assert told in await office.refused("gateway", "staff", "add", *arguments)
    assert office.acts.pending(datetime.now(UTC)) == before


@pytest.mark.parametrize(
    "option",
    [
        ("a.chen",),
        ("--person", "4711"),
        ("--role", "finance"),
        ("--department", "parks"),
        ("--all-departments",),
        ("--oidc-subject", "00u"),
        ("--reason", "a reason"),
        ("--officer", "ada.key"),
        ("--passphrase-file", "none"),
    ],
)
def test_what_goes_not_with_a_request(office: Office, option: tuple[str, ...]) -> None:
    """An option that would do nothing is wrong usage, and nobody thinks that it did something."""
    config = ("--config", str(office.system.home / "gateway.toml"))
    done = CliRunner().invoke(gateway, ["staff", "add", "--request", "act_" + "0" * 32, *option, *config])
    assert done.exit_code == 2
    assert "does what was" in done.output


@pytest.mark.parametrize("option", ["--password-file", "--totp-file"])
def test_what_goes_not_without_a_request(office: Office, option: str) -> None:
    """Factors are given when the account is made, and are no part of what is signed."""
    config = ("--config", str(office.system.home / "gateway.toml"))
    asked = ("e.new", "--person", "1", "--role", "finance", "--department", "parks")
    done = CliRunner().invoke(gateway, ["staff", "add", *asked, option, "none", *config])
    assert done.exit_code == 2
    assert "go with" in done.output


@pytest.mark.parametrize(
    ("username", "person", "department", "told"),
    [
        ("e.new", "1001", "parks", "this person has the account f.alvarez"),
        ("f.alvarez", "77", "parks", "f.alvarez is or was another person's account"),
        ("e.new", "77", "water", "no department is called water"),
        ("e.new", "01001", "parks", "this person has the account f.alvarez"),
        ("e.new", "4242-4242-4242-4242", "parks", "card number"),
    ],
)
async def test_what_an_officer_asks_for_in_vain(
    office: Office, username: str, person: str, department: str, told: str
) -> None:
    """One person, one account, one name for ever; and a card number is nobody's personnel number."""
    asked = ("--person", person, "--role", "finance", "--department", department)

    refusal = await office.refused("gateway", "staff", "add", username, *asked, *office.system.officer("security"))
    assert told in refusal
    assert "4242" not in refusal


# --- what becomes of an account ---


async def grant_of(office: Office, username: str) -> Grant:
    """What somebody is granted now."""
    row = (await office.accounts())[username]
    return Grant.of(username, row["person"], row["roles"], row["departments"], row["oidc_subject"])


async def test_another_grant_replaces_the_first(office: Office, tmp_path: Path) -> None:
    """Roles, departments and factors are the new ones, sessions of the old one have ended, the id stays."""
    first = await office.granted(office.agreed(newcomer("g.gupta")))
    before = (await office.accounts())["g.gupta"]
    async with Staff(office.system, first) as staff:
        assert (await staff.sign_in()).status == 201
        later = (await grant_of(office, "g.gupta")).payload() | {"roles": "approver", "departments": "*"}
        second = await office.granted(office.agreed(later))
        assert (await staff.call("GET", "/admin/v1/me")).status == 401
        staff.token = ""
        assert (await staff.sign_in()).problem == "sign-in-refused"

    after = (await office.accounts())["g.gupta"]
    assert (after["staff_id"], after["roles"], after["departments"]) == (before["staff_id"], ["approver"], ["*"])
    assert after["earlier_hashes"] == [before["password_hash"]]
    async with Staff(office.system, second) as staff:
        assert (await staff.sign_in()).status == 201


async def test_another_grant_frees_a_locked_name(office: Office) -> None:
    """Whoever comes with the new factors need not wait for half an hour: nobody knows them yet."""
    first = await office.granted(office.agreed(newcomer("l.lock")))
    async with Staff(office.system, first) as staff:
        for _ in range(TRIES_MAX):
            wrong = await staff.sign_in(password="not the password 1", totp="000000")
            assert wrong.problem == "sign-in-refused"
        assert (await staff.sign_in()).problem == "sign-in-refused"
    second = await office.granted(office.agreed((await grant_of(office, "l.lock")).payload()))
    async with Staff(office.system, second) as staff:
        assert (await staff.sign_in()).status == 201


async def test_disabled_at_once_by_one_person(office: Office) -> None:
    """The next request of an open session is refused, and so is signing in; two officers enable it again."""
    given = await office.granted(office.agreed(newcomer("h.hahn")))
    late = office.agreed((await grant_of(office, "h.hahn")).payload())
    async with Staff(office.system, given) as staff:
        assert (await staff.sign_in()).status == 201
        assert (await staff.call("GET", "/admin/v1/me")).problem == "password-must-change"
        told = await asyncio.to_thread(office.run, "gateway", "staff", "disable", "h.hahn", "--reason", "left")
        assert told.startswith("h.hahn is disabled")
        assert (await staff.call("GET", "/admin/v1/me")).status == 401
        staff.token = ""
        assert (await staff.sign_in()).problem == "sign-in-refused"

    row = (await office.accounts())["h.hahn"]
    event, actor, reason = (await office.audited(row["staff_id"]))[-1]
    assert (event, actor.partition(":")[0], reason) == ("staff.disabled", "os", "left")
    assert "disabled since" in await office.refused("gateway", "staff", "add", "--request", late)
    again = await office.granted(office.agreed((await grant_of(office, "h.hahn")).payload()))
    async with Staff(office.system, again) as staff:
        assert (await staff.sign_in()).status == 201


async def test_whom_there_is_nobody_disables(office: Office) -> None:
    """A name that nobody has is refused, and a reason is one of a few words."""
    assert "no account has this name" in await office.refused(
        "gateway", "staff", "disable", "nobody", "--reason", "left"
    )
    done = CliRunner().invoke(gateway, ["staff", "disable", "f.alvarez", "--reason", "prose of any kind"])
    assert done.exit_code == 2


async def test_the_list_shows_who_may_do_what(office: Office) -> None:
    """Roles, departments, officers, last sign-in and state; of ninety days without a sign-in, too."""
    connection = await owner(office.system)
    for name, days in (("u.novak", 89), ("r.okafor", 91)):
        ago = timedelta(days=days)
        await connection.execute(
            "UPDATE gateway.staff SET granted_at = now() - $2::interval WHERE username = $1", name, ago
        )
    try:
        told = json.loads(await asyncio.to_thread(office.run, "gateway", "staff", "list", "--json"))["staff"]
    finally:
        await connection.execute(
            "UPDATE gateway.staff SET granted_at = now() WHERE username = ANY ($1)", ["u.novak", "r.okafor"]
        )
        await connection.close()
    listed = {row["username"]: row for row in told}

    assert listed["f.alvarez"]["roles"] == ["finance"]
    assert listed["a.chen"]["departments"] == ["*"]
    assert {listed[name]["state"] for name in ("f.alvarez", "a.chen", "u.novak")} == {"active"}
    assert listed["r.okafor"]["state"] == "idle"
    assert {(row["granted_by"], row["approved_by"]) for row in told} == {("security", "security2")}
    assert listed["a.chen"]["last_signed_in_at"] is None
    assert "hash" not in json.dumps(told)
    assert "a.chen" in await asyncio.to_thread(office.run, "gateway", "staff", "list")


async def test_the_demos_staff(office: Office) -> None:
    """Each of the four signs in with what `demo.json` says, and nobody did before."""
    assert set(office.system.demo["staff"]) == set(Role)
    rows = await office.accounts()
    for role, told in office.system.demo["staff"].items():
        assert (rows[told["username"]]["roles"], rows[told["username"]]["departments"]) == ([role], ["*"])
        async with Staff(office.system, role) as staff:
            assert (await staff.sign_in()).status == 201
            assert (await staff.call("GET", "/admin/v1/me")).json["username"] == told["username"]
