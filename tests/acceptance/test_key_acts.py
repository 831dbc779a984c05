"""Acts for two through the commands: what two officers can do, and every way in which it is refused."""

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer.main

from keys.acts import ActFolder, request
from keys.cli.main import app
from keys.files import read_private_line, write_private
from keys.officers import OfficerKey, create_officer_key, officer_of, open_officer_key
from keys.primitives import new_key
from keys.signing import text_of
from tests.acceptance.test_main_job import charged, tokenized
from tests.acceptance.test_main_job import new_key as new_text
from tests.system import BIN, Client, System, owner, running

pytestmark = pytest.mark.server

NO_WINDOW = {"GATEWAY_KEYS_RECOVERY_DAYS": "0"}
KILLS = 3
SEED = 20261122


@dataclass(frozen=True)
class Ran:
    """What a person sees of a command."""

    code: int
    output: str
    errors: str


def run(arguments: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> Ran:
    """`keys …` with nobody at a terminal, and an input on which whoever reads waits for ever."""
    silent, held_open = os.pipe()
    try:
        done = subprocess.run(
            [str(BIN / "keys"), *arguments],
            env=dict(environment),
            cwd=cwd,
            stdin=silent,
            start_new_session=True,
            capture_output=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(silent)
        os.close(held_open)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def told(system: System, *arguments: str, **more: str) -> Any:
    """What a command says to programs: one JSON object, and nothing else."""
    ran = run([*arguments, "--json"], system.plain | more)
    assert ran.code == 0, ran.errors
    said = json.loads(ran.output)
    assert isinstance(said, dict)
    return said


def refusal(system: System, *arguments: str, **more: str) -> str:
    """The one line with which a command is refused; the key store is as it was."""
    before = (system.home / "keystore" / "manifest").read_bytes()
    ran = run(arguments, system.plain | more)
    assert (ran.code, ran.output) == (1, ""), ran
    assert ran.errors.startswith("keys: ")
    assert ran.errors.count("\n") == 1, ran.errors
    assert (system.home / "keystore" / "manifest").read_bytes() == before
    return ran.errors.removeprefix("keys: ").rstrip()


def manifest(system: System) -> Any:
    """The manifest, as anybody reads it who may read the file."""
    return json.loads(text_of((system.home / "keystore" / "manifest").read_text()))


def files(folder: Path) -> dict[str, str]:
    """Every file there, by path, with a digest of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def audited(system: System, *wanted: str) -> list[tuple[str, str, str, str]]:
    """Event, outcome, actor and subject of the audit rows with one of these reasons, or of all."""
    connection = await owner(system)
    try:
        rows = await connection.fetch(
            "SELECT event, outcome, actor, subject FROM audit.events"
            " WHERE $1::text[] = '{}' OR reason = ANY($1) ORDER BY occurred_at",
            list(wanted),
        )
    finally:
        await connection.close()
    return [tuple(row) for row in rows]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder through which other users may pass, as the database's has to. Pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="gateway-keys-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture(scope="module")
def demo() -> Iterator[System]:
    """One demo whose key store these tests change."""
    with open_folder() as folder, running(folder / "home") as system:
        yield system


@pytest.fixture(scope="module")
def key_of(demo: System) -> Mapping[str, OfficerKey]:
    """The private halves of the demo's officers, opened once."""
    return {
        name: open_officer_key(Path(officer["key"]), read_private_line(Path(officer["passphrase_file"])))
        for name, officer in demo.demo["officers"].items()
    }


def ask_for_newcomer(system: System, key: OfficerKey, **changes: Any) -> str:
    """A request that would add an officer, signed by `security`, lying where requests lie; gives its id."""
    newcomer = officer_of(f"new.{new_text()}", OfficerKey(new_key()), datetime.now(UTC))
    wanted = {
        "act": "add-officer",
        "payload": {"name": newcomer.name, "verify": newcomer.verify, "receive": newcomer.receive},
        "reason": "a test",
        "environment": "demo",
        "manifest_version": manifest(system)["version"],
        "now": datetime.now(UTC),
    }
    note = request(key, "security", **(wanted | changes))
    return ActFolder(system.home / "keystore" / "acts").put_request(note)


@pytest.fixture
def waiting(demo: System, key_of: Mapping[str, OfficerKey]) -> str:
    """A good request, of `security`, that nobody has approved."""
    return ask_for_newcomer(demo, key_of["security"])


# --- every command ---


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """All commands by name, groups opened."""
    parts = getattr(command, "commands", None)
    if parts is None:
        yield " ".join(path), command
        return
    for name, part in parts.items():
        yield from leaves(part, (*path, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))
NEEDED = {"number": "1", "generation": "1", "name": "cy", "--key": "/nowhere/cy.key", "--from": "/nowhere/backup"}
NAMED_FIRST = {"ceremony split": ["--root", "shares:/nowhere/root.shares?agent=/nowhere/unlock.sock"]}


def needed(name: str) -> list[str]:
    """The least that a command has to be told."""
    given = list(NAMED_FIRST.get(name, []))
    for parameter in COMMANDS[name].params:
        if parameter.required and parameter.param_type_name == "option":
            given += [parameter.opts[0], NEEDED[parameter.opts[0]]]
        elif parameter.required:
            given.append(NEEDED[str(parameter.name)])
    return given


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_speaks_to_people(name: str, tmp_path: Path) -> None:
    """In an empty environment: help with an example, 2 for a wrong option, a line where no configuration is."""
    path = name.split()
    calls = ([*path, "--help"], [*path, "--no-such-option"], [*path, *needed(name), "--config", "/nowhere/g.toml"])
    with ThreadPoolExecutor() as pool:
        helped, mistyped, lost = pool.map(lambda arguments: run(arguments, {}, tmp_path), calls)
    assert helped.code == 0
    assert f"keys {name}" in " ".join(helped.output.partition("Example: ")[2].split())
    assert mistyped.code == 2
    assert "--no-such-option" in mistyped.errors
    assert (lost.code, lost.output) == (1, "")
    assert lost.errors == (
        "keys: /nowhere/g.toml cannot be read: start the demo with ./deploy/run, or name a file with --config\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_programs_get_one_json_object(demo: System) -> None:
    """With `--json` there is one object on standard output, and on standard error nothing that belongs to it."""
    asked = (
        *(("status",), ("inventory",), ("verify",), ("officer", "list"), ("approve",)),
        *(("rewrap", "--dry-run"), ("rotate", "--dry-run"), ("compromise", "1", "--dry-run")),
    )
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda arguments: told(demo, *arguments), asked))
    wanted = ("active", "keys", "failed", "officers", "waiting", "rows", "retires", "act")
    assert [name in one for name, one in zip(wanted, said, strict=True)] == [True] * len(asked)


# --- refused ---


def test_an_officer_alone(demo: System, waiting: str, tmp_path: Path) -> None:
    """Who asked does not approve, nor with the same key file under another name."""
    alone = "security asked for this and cannot approve it: another officer has to"
    assert refusal(demo, "approve", waiting, *demo.officer("security")) == alone
    copy = tmp_path / "ada.key"
    write_private(copy, Path(demo.demo["officers"]["security"]["key"]).read_bytes(), replace=False)
    by_copy = ("--officer", str(copy), *demo.officer("security")[2:])
    assert refusal(demo, "approve", waiting, *by_copy) == alone


def test_who_cannot_sign_in(demo: System, waiting: str, tmp_path: Path) -> None:
    """A third party's key, a wrong passphrase, no key, no way to ask for the passphrase: each says what is wrong."""
    words = tmp_path / "passphrase"
    write_private(words, b"a passphrase of nobody's", replace=False)
    stranger, (_, key, *_) = tmp_path / "eve.key", demo.officer("security2")
    create_officer_key(stranger, read_private_line(words))
    asking = "name a file for it with --passphrase-file, or run this at a terminal"
    by_stranger = ("--officer", str(stranger), "--passphrase-file", str(words))
    cases = (
        (by_stranger, f"{stranger} is no officer's key here: `keys officer list` shows who there is"),
        (
            ("--officer", key, "--passphrase-file", str(words)),
            f"the passphrase does not open {key}: check the passphrase, and that this is the right file",
        ),
        ((), "this takes an officer: name your key file with --officer"),
        (
            ("--officer", key),
            f"the passphrase of {key} is needed: {asking}",
        ),
    )
    for by, line in cases:
        assert refusal(demo, "approve", waiting, *by) == line
    rows = [event for event, *_ in asyncio.run(audited(demo))]
    assert "root.refused" not in rows


@pytest.mark.parametrize(
    ("late", "line"),
    [
        (timedelta(minutes=15), "expired, 15 minutes after it was asked for: ask anew"),
        (timedelta(minutes=-3), "is dated in the future: set the clocks right, and ask anew"),
    ],
)
def test_a_request_has_its_time(demo: System, key_of: Mapping[str, OfficerKey], late: timedelta, line: str) -> None:
    """After fifteen minutes nobody approves it any more, nor before it was asked."""
    asked = ask_for_newcomer(demo, key_of["security"], now=datetime.now(UTC) - late)
    assert refusal(demo, "approve", asked, *demo.officer("security2")) == f"{asked} {line}"


def test_a_request_of_another_place(demo: System, key_of: Mapping[str, OfficerKey]) -> None:
    """A request for another environment, however rightly signed, is not carried out here."""
    asked = ask_for_newcomer(demo, key_of["security"], environment="production")
    line = refusal(demo, "approve", asked, *demo.officer("security2"))
    assert line == f"{asked} is for environment 'production', this one is 'demo'"


def test_a_request_that_was_changed(demo: System, waiting: str) -> None:
    """Other words than those that were signed are refused; and it hides no good request from the list."""
    path = demo.home / "keystore" / "acts" / f"{waiting}.request"
    said = path.read_text()
    assert '"name": "new.' in said
    path.write_text(said.replace('"name": "new.', '"name": "old.'))
    altered = "the request was altered, or signed by another key than that of security"
    assert refusal(demo, "approve", waiting, *demo.officer("security2")) == altered
    ran = run(["approve", "--json"], demo.plain)
    assert waiting not in {asked["id"] for asked in json.loads(ran.output)["waiting"]}
    assert f"{waiting} is void: {altered}" in ran.errors.splitlines()
    path.write_text(said)
    assert waiting in {asked["id"] for asked in told(demo, "approve")["waiting"]}


def test_no_such_request(demo: System) -> None:
    """An id of nothing, and what is no id."""
    unknown = f"act_{'0' * 32}"
    assert refusal(demo, "approve", unknown).startswith(f"there is no request {unknown} in ")
    assert refusal(demo, "approve", "../../etc/passwd") == "an act's id is `act_` and 32 of 0-9 and a-f"


def test_the_key_store_changed_meanwhile(demo: System, waiting: str) -> None:
    """What was asked for before another change is void: who approves has read what is not so any more."""
    version = manifest(demo)["version"]
    assert told(demo, "officer", "acknowledge", *demo.officer("security2"))["name"] == "security2"
    assert refusal(demo, "approve", waiting, *demo.officer("security2")) == (
        f"the key store changed since {waiting} was asked for (manifest {version}, now {version + 1}):"
        " look again, and ask anew"
    )


def test_nobody_is_waited_for(demo: System, tmp_path: Path) -> None:
    """What would ask a person is refused where there is none, with the option that helps."""
    key = demo.officer("security")[:2]
    assert "with --passphrase-file, or run this at a terminal" in refusal(demo, "officer", "acknowledge", *key)
    new = ("officer", "add", "cy", "--key", str(tmp_path / "cy.key"))
    assert "with --key-passphrase-file, or run this at a terminal" in refusal(demo, *new, *demo.officer("security"))
    assert "needs a person at a terminal" in refusal(demo, "ceremony", "split", "--rehearse")
    assert not (tmp_path / "cy.key").exists()


def test_a_name_that_cannot_be_added(demo: System, tmp_path: Path) -> None:
    """It is refused before a key file is made, which would stay."""
    key = (
        "--key",
        str(tmp_path / "cy.key"),
        "--key-passphrase-file",
        demo.demo["officers"]["security"]["passphrase_file"],
    )
    by = demo.officer("security")
    assert refusal(demo, "officer", "add", "security2", *key, *by) == "security2 is an officer already"
    assert refusal(demo, "officer", "add", "CY", *key, *by).startswith("an officer's name has 2 to 31 of a-z")
    assert "this takes an officer" in refusal(demo, "officer", "add", "cy", *key)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_requests(demo: System, waiting: str) -> None:
    """An empty one and an unreadable one hide no good request; each is named, and so is what became void."""
    folder = demo.home / "keystore" / "acts"
    bad = [f"act_{digit * 32}" for digit in "01"]
    for name, mode in zip(bad, (0o600, 0o644), strict=True):
        (folder / f"{name}.request").touch(mode)
        (folder / f"{name}.request").chmod(mode)
    try:
        ran = run(["approve", "--json"], demo.plain)
        assert waiting in {asked["id"] for asked in json.loads(ran.output)["waiting"]}
        assert all(f"{name} is void: " in ran.errors for name in bad)
        told(demo, "officer", "acknowledge", *demo.officer("security2"))
        ran = run(["approve", "--json"], demo.plain)
        assert json.loads(ran.output)["waiting"] == []
        assert f"{waiting} is void: the key store changed since" in ran.errors
    finally:
        for name in bad:
            (folder / f"{name}.request").unlink()


# --- done ---


async def test_officers_come_and_go(demo: System, key_of: Mapping[str, OfficerKey], tmp_path: Path) -> None:
    """Two add a third, who then acts; two remove them, and nothing of theirs counts. Nothing is done twice."""
    words, key = tmp_path / "passphrase", tmp_path / "cy.key"
    write_private(words, new_text().encode(), replace=False)
    by_third = ("--officer", str(key), "--passphrase-file", str(words))
    add = ("officer", "add", "cy", "--key", str(key), "--key-passphrase-file", str(words))
    asked = told(demo, *add, *demo.officer("security"))["act"]
    assert told(demo, "approve", asked, *demo.officer("security2"))["done"] is True
    assert await audited(demo, asked) == [("keys.add-officer", "done", "security+security2", "cy")]
    again = refusal(demo, "approve", asked, *demo.officer("security2"))
    assert again.startswith((f"{asked} was carried out already", f"the key store changed since {asked}"))

    own = told(demo, "officer", "remove", "cy", *by_third)["act"]
    before = told(demo, "officer", "remove", "cy", *demo.officer("security"))["act"]
    assert told(demo, "approve", before, *demo.officer("security2"))["done"] is True
    assert await audited(demo, before) == [("keys.remove-officer", "done", "security+security2", "cy")]
    assert refusal(demo, "approve", own, *demo.officer("security")).startswith("cy was removed as an officer")
    waiting = ask_for_newcomer(demo, key_of["security"])
    assert "is no officer's key here" in refusal(demo, "approve", waiting, *by_third)
    assert "cy was removed" in refusal(demo, "officer", "remove", "cy", *demo.officer("security"))


def test_two_officers_stay(demo: System, tmp_path: Path) -> None:
    """Nobody is removed after whom one officer could add the next one alone, and sign for both."""
    words, key = tmp_path / "passphrase", tmp_path / "cy.key"
    write_private(words, new_text().encode(), replace=False)
    assert refusal(demo, "officer", "remove", "security2", *demo.officer("security")) == (
        "without security2 there are fewer than two officers: `keys officer add` another one first"
    )
    add = ("officer", "add", "cy", "--key", str(key), "--key-passphrase-file", str(words))
    assert refusal(demo, *add).startswith("this takes an officer: name your key file")
    assert len(told(demo, "officer", "list")["officers"]) == len(manifest(demo)["officers"])


@pytest.mark.parametrize(
    ("recipients", "place", "line"),
    [
        (("security", "security"), "keys.backup", "a key backup names each of its recipients once"),
        (("secruity",), "keys.backup", "no officer is called secruity: `keys officer list` shows who there is"),
        (("security",), "nowhere/keys.backup", "nowhere is no folder: is the medium there?"),
        (("security",), ".", "exists already and is never replaced: move it away first"),
    ],
)
def test_a_mistyped_backup(demo: System, tmp_path: Path, recipients: tuple[str, ...], place: str, line: str) -> None:
    """A copy that cannot be written is not registered: it would keep keys alive for nobody."""
    before = manifest(demo)["version"]
    names = [word for name in recipients for word in ("--for", name)]
    assert refusal(demo, "backup", "--to", str(tmp_path / place), *names).endswith(line)
    assert manifest(demo)["version"] == before


async def test_destroyed_by_two(demo: System, tmp_path: Path) -> None:
    """Not while it is active, wraps, may be restored or lies in a backup; then by two, or by two who say despite."""
    by = demo.officer("security")
    async with Client(demo, "parks") as client:
        token = await tokenized(client)
        first = told(demo, "status")["active"]
        destroy = ("destroy", str(first), *by)
        assert refusal(demo, *destroy) == f"generation {first} is active: it cannot become destroyed"
        backup = told(demo, "backup", "--to", str(tmp_path / "keys.backup"), "--for", "security")["id"]
        second = told(demo, "rotate")["active"]
        assert "records depend on it; run `keys rewrap`" in refusal(demo, *destroy)
        assert told(demo, "rewrap")["broken"] == 0
        assert "may be needed to restore a database backup until 20" in refusal(demo, *destroy)
        held = f"generation {first} lies in key backup {backup}: destroy that copy"
        assert refusal(demo, *destroy, **NO_WINDOW).startswith(held)

        await dry_run_changes_nothing(demo, "destroy", str(first), "--despite-backups")
        await forgotten_and_destroyed(demo, first, backup)
        third = told(demo, "rotate")["active"]
        assert told(demo, "rewrap")["to"] == third
        asked = told(demo, "destroy", str(second), "--despite-backups", *by)["act"]
        assert told(demo, "approve", asked, *demo.officer("security2"))["done"] is True
        assert await audited(demo, asked) == [("keys.destroy", "done", "security+security2", key_id(demo, second))]
        assert (await charged(client, token))["status"] == "succeeded"
    assert told(demo, "verify")["failed"] == 0


async def forgotten_and_destroyed(demo: System, generation: int, backup: str) -> None:
    """Two say that the copy is gone; then two destroy what was in it, and no byte of it is left."""
    by, key = demo.officer("security"), key_id(demo, generation)
    asked = told(demo, "backup", "--forget", backup, "--reason", "shredded", *by)["act"]
    assert told(demo, "approve", asked, *demo.officer("security2"))["done"] is True
    assert await audited(demo, asked) == [("keys.forget-backup", "done", "security+security2", backup)]
    assert backup in refusal(demo, "backup", "--forget", backup, *by)

    store = demo.home / "keystore"
    wrapped = (store / "root-1" / key).read_bytes()
    asked = told(demo, "destroy", str(generation), "--reason", "monthly", *by, **NO_WINDOW)["act"]
    (shown,) = (one for one in told(demo, "approve")["waiting"] if one["id"] == asked)
    assert shown["payload"]["recovery_days"] == 0
    late = run(["approve", asked, *demo.officer("security2")], demo.plain)
    assert (late.code, late.output) == (1, "")
    assert "may be needed to restore a database backup until 20" in late.errors.splitlines()[-1]
    assert told(demo, "approve", asked, *demo.officer("security2"), **NO_WINDOW)["done"] is True
    assert await audited(demo, asked) == [("keys.destroy", "done", "security+security2", key)]
    assert not list(store.rglob(key))
    assert not [path for path in store.rglob("*") if path.is_file() and wrapped[-32:] in path.read_bytes()]
    assert {path.suffix for path in store.glob(f"acts/{asked}.*")} == {".request", ".approval", ".done"}
    twice = refusal(demo, "destroy", str(generation), *by, **NO_WINDOW)
    assert twice == f"generation {generation} is destroyed: it cannot become destroyed"


def test_who_approves_does_not_shorten_the_window(demo: System, key_of: Mapping[str, OfficerKey]) -> None:
    """The days that the first officer signed hold, whatever the second one's configuration says."""
    number = told(demo, "status")["active"]
    told(demo, "rotate")
    told(demo, "rewrap")
    for days in (35, 0):
        payload = {"purpose": "kek", "number": number, "despite_backups": 0, "recovery_days": days}
        asked = ask_for_newcomer(demo, key_of["security"], act="destroy", payload=payload)
        ran = run(["approve", asked, *demo.officer("security2"), "--json"], demo.plain | NO_WINDOW)
        assert ("may be needed to restore a database backup" in ran.errors, ran.code) == (days == 35, int(days == 35))


async def dry_run_changes_nothing(demo: System, *arguments: str) -> None:
    """Neither a file of the key store nor a row changes, and an act that was interrupted stays so."""
    connection = await owner(demo)
    try:
        # As if the last command had been killed before its last step.
        await connection.execute("UPDATE gateway.key_manifest SET version = version - 1")
        store, rows = files(demo.home / "keystore"), await audited(demo)
        assert told(demo, *arguments, "--dry-run") == {"act": None}
        assert "retires" in told(demo, "rotate", "--dry-run")
        assert (files(demo.home / "keystore"), await audited(demo)) == (store, rows)
        seen = await connection.fetchval("SELECT version FROM gateway.key_manifest")
        assert seen == manifest(demo)["version"] - 1
    finally:
        await connection.execute("UPDATE gateway.key_manifest SET version = version + 1")
        await connection.close()


def key_id(system: System, generation: int) -> str:
    """The id of a generation's key."""
    (found,) = (k["id"] for k in manifest(system)["keys"] if (k["purpose"], k["number"]) == ("kek", generation))
    return str(found)


async def test_approval_killed_at_any_moment(demo: System, key_of: Mapping[str, OfficerKey]) -> None:
    """`kill -9` of an approval: a second run completes the act, once, under its own name."""
    schedule = random.Random(SEED)  # noqa: S311 - a seeded schedule
    print(f"seed {SEED}")
    for kill in range(KILLS):
        asked = ask_for_newcomer(demo, key_of["security"])
        command = ["approve", asked, *demo.officer("security2")]
        approval = subprocess.Popen(
            [str(BIN / "keys"), *command],
            env=demo.plain,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        note = demo.home / "keystore" / "acts" / f"{asked}.approval"
        deadline = time.monotonic() + 30
        while not note.exists():  # from here on it is carried out
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(schedule.uniform(0, 0.02) * kill)
        approval.send_signal(signal.SIGKILL)
        approval.wait()
        was_done = note.with_suffix(".done").exists()
        again = run(command, demo.plain)
        assert again.code == (1 if was_done else 0), again.errors
        assert await audited(demo, asked) == [
            ("keys.add-officer", "done", "security+security2", newcomer(demo, asked))
        ]
        assert note.with_suffix(".done").exists()
    assert told(demo, "verify")["failed"] == 0


def newcomer(system: System, asked: str) -> str:
    """Whom a request would add."""
    note = (system.home / "keystore" / "acts" / f"{asked}.request").read_text()
    return str(json.loads(text_of(note))["payload"]["name"])


async def test_compromised_by_two(demo: System) -> None:
    """From the approval on another generation protects what is new, and the status says what is to be done."""
    active = told(demo, "status")["active"]
    asked = told(demo, "compromise", str(active), "--reason", "tape lost", *demo.officer("security"))["act"]
    assert told(demo, "approve", asked, *demo.officer("security2"))["done"] is True
    assert await audited(demo, asked) == [("keys.compromise", "done", "security+security2", key_id(demo, active))]
    status = told(demo, "status")
    assert status["active"] > active
    assert any("is compromised" in line and "`gateway reseal`" in line for line in status["due"])
    twice = refusal(demo, "compromise", str(active), *demo.officer("security"))
    assert twice == f"generation {active} is compromised: it cannot become compromised"
    async with Client(demo, "parks") as client:
        assert (await charged(client, await tokenized(client)))["status"] == "succeeded"
