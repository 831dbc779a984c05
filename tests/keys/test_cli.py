"""The command line: usage, refusals before anything is touched, and each command on a city of its own.

Acts for two, officers, ceremonies and backups have tests of their own.
"""

import asyncio
import io
import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from keys.cli import bench
from keys.cli.bench import Bench
from keys.cli.rotating import _root_for_init
from keys.errors import RootRefused
from keys.files import write_private
from keys.keystore import OpenKeystore
from keys.manifest import Purpose
from keys.primitives import new_key
from keys.process_keys import read_process_keys
from keys.rotation import Approval
from keys.states import State
from tests.keys.commands import Ran, Run, RunAsync
from tests.keys.database import City
from tests.keys.test_rotation import CHEAPLY, ROOT

CANARY = "Hunter2 Tr0ub4dor&3"
COMMANDS = ("init", "status", "inventory", "verify", "rotate", "rotate-fingerprint", "retire", "rewrap")
ARGUMENTS = {"retire": ("1",)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Right settings, whose root key asks a person for its passphrase; no database answers there."""
    path = tmp_path / "gateway.toml"
    path.write_text(f"""
environment = "demo"
[keys]
root = "file:{tmp_path}/root.key"
store = "file:{tmp_path}/keystore"
secrets = "{tmp_path}/secrets"
[database]
dsn = "postgresql://127.0.0.1:1/gateway"
directory = "{tmp_path}/postgres"
""")
    return path


# --- usage ---


def test_help_names_every_command(run: Run) -> None:
    """`keys --help` lists what there is and ends well."""
    ran = run("--help")

    assert ran.code == 0
    assert all(f" {command} " in ran.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Run, command: str) -> None:
    """Each command explains itself, with an example to copy."""
    ran = run(command, "--help")

    assert ran.code == 0
    assert f"keys {command}" in ran.output.partition("Example: ")[2].partition("\n")[0]
    assert "--config" in ran.output


def test_no_command_at_all(run: Run) -> None:
    """Without a command the help is shown; it is wrong usage all the same."""
    ran = run()

    assert ran.code == 2
    assert "Usage: keys" in ran.output + ran.errors


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("--frobnicate",), "No such option: --frobnicate"),
        (("status", "--jsn"), "No such option: --jsn"),
        (("init", "--json"), "No such option: --json"),
        (("verify", "extra"), "Got unexpected extra argument"),
        (("status", "--config"), "Option '--config' requires an argument"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...], told: str) -> None:
    """Wrong usage exits 2, says what is wrong on standard error, and prints nothing else."""
    ran = run(*arguments)

    assert ran.code == 2
    assert told in ran.errors
    assert ran.output == ""


# --- refusals ---


@pytest.mark.parametrize("command", COMMANDS)
def test_no_settings(run: Run, tmp_path: Path, command: str) -> None:
    """Without a settings file every command says where it looked and how to go on: one line, exit 1."""
    ran = run(command, *ARGUMENTS.get(command, ()))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == (
        f"keys: {tmp_path}/home/gateway.toml cannot be read: start the demo with ./deploy/run,"
        " or name a file with --config\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_doubtful_settings(run: Run, config: Path, command: str) -> None:
    """A doubtful value stops every command with the key and the file, and is not shown."""
    config.write_text(config.read_text().replace('environment = "demo"', f'environment = "{CANARY}"'))
    ran = run(command, *ARGUMENTS.get(command, ()), "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors.startswith("keys: environment: ")
    assert str(config) in ran.errors
    assert CANARY not in ran.errors


def test_settings_named_by_variable(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GATEWAY_CONFIG names the file, and a variable overrides a value of it."""
    monkeypatch.setenv("GATEWAY_CONFIG", str(config))
    monkeypatch.setenv("GATEWAY_KEYS_STORE", "keystore")

    assert run("status").errors == "keys: keys.store must be `file:/absolute/directory`\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_store_inside_the_database(run: Run, config: Path, tmp_path: Path, command: str) -> None:
    """A key store among the database's files stops every command."""
    config.write_text(config.read_text().replace(f"{tmp_path}/keystore", f"{tmp_path}/postgres/keystore"))
    ran = run(command, *ARGUMENTS.get(command, ()), "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors.endswith("must lie apart: move the key store\n")


def test_no_database_password(run: Run, config: Path, tmp_path: Path) -> None:
    """`keys init` looks at the database first, and says which file it misses; nothing is made before that."""
    ran = run("init", "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == f"keys: {tmp_path}/secrets/keys/database.password does not exist\n"
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.toml"]


def test_a_person_is_asked_without_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal the question is asked, and the answer is a secret at once."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(bench, "getpass", lambda prompt: CANARY if prompt == "passphrase: " else "")

    assert bench.ask("passphrase").reveal() == CANARY


def test_nobody_is_asked_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal nobody is waited for: the refusal names both ways on."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(CANARY))

    with pytest.raises(
        RootRefused, match=r"^the passphrase is needed: name a file for it in keys.root, or run this at"
    ):
        bench.ask("passphrase")


# --- a start ---


def test_the_root_of_an_interrupted_start_is_used_again(tmp_path: Path, root_uri: str) -> None:
    """A root key that an earlier `keys init` made is opened by the next one, and not made anew."""
    wrapped = _root_for_init(root_uri).wrap(new_key(), b"")
    before = (tmp_path / "root.key").read_bytes()
    _root_for_init(root_uri).unwrap(wrapped, b"")
    assert (tmp_path / "root.key").read_bytes() == before

    write_private(tmp_path / "passphrase", b"another passphrase", replace=True)
    with pytest.raises(RootRefused, match="the passphrase does not open"):
        _root_for_init(root_uri)


@pytest.mark.server
async def test_init(settings: str, tmp_path: Path, run_async: RunAsync, owner: asyncpg.Connection) -> None:
    """Root, key store, mirror and one audit row; a second run is refused and changes nothing."""
    ran = await run_async("init", "--config", settings)
    assert (ran.code, ran.errors) == (0, "")
    assert ran.output == f"The key store {tmp_path}/keystore is made. Back it up, and the root key apart from it.\n"
    assert await owner.fetchval("SELECT version FROM gateway.key_manifest") == 1
    assert await owner.fetchval("SELECT state FROM gateway.key_generations WHERE generation = 1") == "active"
    rows = await owner.fetch("SELECT event, outcome, actor FROM audit.events")
    assert [tuple(row) for row in rows] == [("keys.initialise", "done", "keys")]

    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    ran = await run_async("init", "--config", settings)
    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == "keys: this environment is initialised already (manifest 1); see `keys status`\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.server
async def test_init_where_the_database_knows_other_keys(
    settings: str, run_async: RunAsync, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """A database that has seen a key store is not given another one: its records would be lost."""
    await owner.execute("INSERT INTO gateway.key_manifest (version) VALUES (7)")
    ran = await run_async("init", "--config", settings)

    assert (ran.code, ran.output) == (1, "")
    assert "belongs to a key store that is not here (manifest 7): restore that key store" in ran.errors
    assert not (tmp_path / "root.key").exists()


@pytest.mark.server
async def test_init_with_another_root(settings: str, run_async: RunAsync, tmp_path: Path, root_uri: str) -> None:
    """A root named on the command line is used, and the person is told to write it into the configuration."""
    other = root_uri.replace("root.key", "other.key")
    ran = await run_async("init", "--root", other, "--config", settings)

    assert ran.code == 0
    assert f"Now set this in the configuration, or nothing opens it: keys.root = '{other}'" in ran.output
    assert (tmp_path / "other.key").exists()
    assert not (tmp_path / "root.key").exists()


# --- at work ---


@pytest.fixture
def now() -> datetime:
    """The real time: the command line looks at the clock."""
    return datetime.now(UTC)


async def told(run_async: RunAsync, *arguments: str) -> dict[str, object]:
    """The JSON object of a command that ends well."""
    ran = await run_async(*arguments, "--json")
    assert (ran.code, ran.errors) == (0, ""), ran
    (line,) = ran.output.splitlines()
    parsed: dict[str, object] = json.loads(line)
    return parsed


@pytest.mark.server
async def test_a_month(ready: City, settings: str, run_async: RunAsync) -> None:
    """Rotate, rewrap, look: what a person reads at each step, and the audit rows that are left."""
    at = ("--config", settings)
    steps = [
        await run_async(*step, *at) for step in (("rotate",), ("status",), ("rewrap",), ("status",), ("verify",))
    ]
    rotated, between, rewrapped, after, verified = (ran.output for ran in steps)

    assert {ran.code for ran in steps} == {0}
    assert {ran.errors for ran in steps} == {""}
    assert rotated == "Generation 2 is active. Now move what exists: `keys rewrap`.\n"
    assert "generation 1 is retired and still wraps 6 records: `keys rewrap`." in between
    assert rewrapped.startswith("6 data keys moved to generation 2 in ")
    assert "generation 1 is retired and wraps nothing: `keys destroy 1` once its backups are gone." in after
    assert verified == "6 records: 6 open, 0 do not.\n  generation 2: 6\n"
    assert await ready.audited() == ["keys.rewrap", "keys.rotate"]
    assert await ready.owner.fetchval("SELECT emptied_at FROM gateway.key_generations WHERE generation = 1")


@pytest.mark.server
async def test_a_month_for_programs(ready: City, settings: str, run_async: RunAsync) -> None:
    """The same as JSON, one object a command."""
    at = ("--config", settings)
    assert await told(run_async, "rotate", *at) == {"active": 2, "manifest": 2, "finished_interrupted": False}
    rewrapped = await told(run_async, "rewrap", *at)
    assert (rewrapped["rows"], rewrapped["to"], rewrapped["broken"]) == (6, 2, 0)
    status = await told(run_async, "status", *at)
    generations = status["generations"]
    assert isinstance(generations, list)
    assert (status["active"], [(each["id"], each["state"], each["records"]) for each in generations]) == (
        *(2, [(1, "retired", 0), (2, "active", 6)]),
    )
    verified = await told(run_async, "verify", *at)
    assert (verified["records"], verified["opened"], verified["failed"]) == (6, 6, 0)
    inventory = await told(run_async, "inventory", *at)
    assert inventory["manifest"] == 2
    assert await told(run_async, "rotate-fingerprint", *at) == {"active": 2, "manifest": "published"}


@pytest.mark.server
async def test_preparing_and_retiring(ready: City, settings: str, run_async: RunAsync) -> None:
    """A generation made beforehand takes over when the active one is retired."""
    at = ("--config", settings)
    prepared = await run_async("rotate", "--prepare", *at)
    assert prepared.output == "Generation 2 is pending: back it up, then `keys rotate` makes it active.\n"
    assert (await run_async("retire", "1", *at)).output == "Generation 1 is retired.\n"
    refused = await run_async("retire", "2", *at)
    assert refused == Ran(
        1, "", "keys: generation 2 is the active one: `keys rotate` makes its successor and retires it\n"
    )
    assert (await run_async("retire", "9", *at)).errors == "keys: there is no kek 9 (there is: 1, 2)\n"


@pytest.mark.server
@pytest.mark.parametrize("command", [("rotate",), ("rotate", "--purpose", "hpke"), ("rewrap",)])
async def test_a_dry_run_changes_nothing(
    ready: City, settings: str, run_async: RunAsync, command: tuple[str, ...]
) -> None:
    """It says what would happen, with counts; files, mirror, wraps and audit log stay as they are."""
    await run_async("rotate", "--config", settings)
    await ready.owner.execute("DELETE FROM audit.events")
    before = ready.files(), await ready.wraps(), await ready.generations()
    ran = await run_async(*command, "--dry-run", "--config", settings)

    assert (ran.code, ran.errors) == (0, "")
    assert "would" in ran.output
    assert (ready.files(), await ready.wraps(), await ready.generations()) == before
    assert await ready.audited() == []


@pytest.mark.server
async def test_a_dry_run_of_rewrap_counts_and_estimates(ready: City, settings: str, run_async: RunAsync) -> None:
    """How many, to which generation, and in about how long."""
    await run_async("rotate", "--config", settings)
    report = await told(run_async, "rewrap", "--dry-run", "--config", settings)

    assert (report["rows"], report["to"]) == (6, 2)
    assert isinstance(report["seconds"], float)
    assert 0 < report["seconds"] < 60
    slowly = await told(run_async, "rewrap", "--dry-run", "--rate", "0.01", "--config", settings)
    assert slowly["seconds"] == 600.0


@pytest.mark.server
async def test_a_rewrap_with_broken_wraps(ready: City, settings: str, run_async: RunAsync) -> None:
    """Exit 1 and one line, the rest moved, a failed audit row; `keys verify` counts what is broken."""
    at = ("--config", settings)
    await run_async("rotate", *at)
    await ready.owner.execute("UPDATE gateway.deks SET wrapped = 'x' WHERE record_id = 'tok_000000'")
    ran = await run_async("rewrap", *at)

    assert ran.code == 1
    assert ran.errors == "keys: 1 data keys do not open: `keys verify` counts them\n"
    assert ran.output.startswith("5 data keys moved")
    outcome = "SELECT outcome FROM audit.events WHERE event = 'keys.rewrap'"
    assert await ready.owner.fetchval(outcome) == "failed"
    verified = await run_async("verify", *at)
    assert (verified.code, verified.errors) == (1, "")
    assert "6 records: 5 open, 1 do not." in verified.output
    assert "1 data keys were altered or stand in the wrong place: restore them from a backup." in verified.output


@pytest.mark.server
async def test_verify_names_what_is_lost_and_what_was_put_back(
    ready: City, settings: str, run_async: RunAsync
) -> None:
    """Records without a data key, and data keys without a record, each with what it means."""
    await ready.owner.execute("DELETE FROM gateway.deks WHERE record_id = 'tok_000000'")
    await ready.owner.execute("DELETE FROM gateway.tokens WHERE token_id = 'tok_000001'")
    ran = await run_async("verify", "--config", settings)

    assert ran.code == 1
    assert "1 records have lost their data key: restore the DEK table from its backup." in ran.output
    assert "1 data keys belong to no record: somebody put back what was erased." in ran.output


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "renewed"),
    [
        (("hpke",), ["hpke key 2"]),
        (("manifest-signing",), ["manifest-signing key 2"]),
        (("api-digest",), ["api-digest key 2 of api"]),
        (("audit-head",), ["audit-head key 2 of worker"]),
        (("staff-sealing",), ["staff-sealing key 2 of admin"]),
        (("close-pack",), ["close-pack key 2 of admin"]),
        (("audit-mac", "--process", "reseal"), ["audit-mac key 2 of reseal"]),
        (("audit-mac",), [f"audit-mac key 2 of {p}" for p in ("api", "admin", "worker", "reseal", "keys", "owner")]),
    ],
)
async def test_other_keys_are_renewed(
    ready: City, settings: str, run_async: RunAsync, arguments: tuple[str, ...], renewed: list[str]
) -> None:
    """Each kind by its purpose, of one process or of all that have it; afterwards everything is in order."""
    ran = await run_async("rotate", "--purpose", *arguments, "--config", settings)

    assert (ran.code, ran.errors) == (0, "")
    assert ran.output.splitlines() == [f"The {name} is active." for name in renewed]
    assert (await run_async("verify", "--config", settings)).code == 0
    assert max(read_process_keys(ready.secrets, "keys", "audit-mac")) == (2 if arguments == ("audit-mac",) else 1)


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("fingerprint",), "the card index has `keys rotate-fingerprint`"),
        (
            ("root",),
            "--purpose is one of kek, hpke, manifest-signing, audit-mac, audit-head, api-digest, staff-sealing",
        ),
        (("audit-head", "--process", "api"), "api has no audit-head key; --process is one of worker"),
        (("hpke", "--prepare"), "--prepare makes a generation ahead: it goes with no other purpose"),
        (("kek", "--prepare", "--dry-run"), "--prepare makes a generation ahead: it goes with no other purpose, nor"),
        (("kek", "--process", "nobody"), "--process is for a key that several processes have"),
    ],
)
async def test_what_cannot_be_renewed_so(
    ready: City, settings: str, run_async: RunAsync, arguments: tuple[str, ...], line: str
) -> None:
    """One line that says what there is; nothing changed."""
    before = ready.files()
    ran = await run_async("rotate", "--purpose", *arguments, "--config", settings)

    assert (ran.code, ran.output, ran.errors.count("\n")) == (1, "", 1)
    assert line in ran.errors
    assert ready.files() == before


@pytest.mark.server
async def test_an_interrupted_rotation_is_finished_not_repeated(
    ready: City, settings: str, run_async: RunAsync
) -> None:
    """The command says so; until then `keys status` says what to do and `keys rewrap` waits."""
    await run_async("rotate", "--config", settings)
    await ready.owner.execute("UPDATE gateway.key_manifest SET version = 1")

    status = await run_async("status", "--config", settings)
    assert "An interrupted `keys rotate` is not finished: run it again." in status.output
    refused = await run_async("rewrap", "--config", settings)
    assert refused.errors == "keys: an interrupted `keys rotate` is not finished: run it again first\n"
    ran = await run_async("rotate", "--config", settings)
    assert ran.output.splitlines() == [
        "An interrupted rotation was finished.",
        "Generation 2 is active. Now move what exists: `keys rewrap`.",
    ]
    assert list(await ready.generations()) == [1, 2]


@pytest.mark.server
@pytest.mark.parametrize(
    "command", [("rotate",), ("rotate-fingerprint",), ("rotate", "--purpose", "hpke"), ("retire", "1")]
)
async def test_two_commands_at_once(
    ready: City, settings: str, run_async: RunAsync, command: tuple[str, ...]
) -> None:
    """The second is refused with one line and exit 1; no attack is audited."""
    async with ready.changing():
        ran = await run_async(*command, "--config", settings)

    assert ran == Ran(1, "", "keys: another `keys` command is changing the key store: wait until it has ended\n")
    assert await ready.audited() == []


@pytest.mark.server
async def test_looking_beside_a_change(ready: City, settings: str, run_async: RunAsync) -> None:
    """Who only looks is not held up by a command that changes keys."""
    async with ready.changing():
        for command in ("status", "inventory", "verify"):
            assert (await run_async(command, "--config", settings)).code == 0


@pytest.mark.server
async def test_verifying_beside_a_rotation(ready: City, settings: str, run_async: RunAsync) -> None:
    """A key that lies there but is not published yet, while its command still runs, is no alarm."""
    async with ready.changing() as rotation:
        rotation.keys.make_key("kek", State.ACTIVE, ready.now)
        ran = await run_async("verify", "--config", settings)

    assert (ran.code, await ready.audited()) == (0, [])


@pytest.mark.server
async def test_a_strangers_key_and_its_remedy(ready: City, settings: str, run_async: RunAsync) -> None:
    """With no command at work it is an alarm, until `keys rotate` sets it aside as the line says."""
    path = ready.store.path(1, "kek-9-0123456789abcdef")
    write_private(path, b"strange", replace=False)
    ran = await run_async("verify", "--config", settings)
    assert (ran.code, ran.output, ran.errors.count("\n")) == (1, "", 1)
    assert ran.errors.endswith("; the next `keys rotate` sets it aside\n")
    assert path.read_bytes() == b"strange"

    await run_async("rotate", "--config", settings)
    assert ready.aside() == {f"root-1-{path.name}": b"strange"}
    assert (await run_async("verify", "--config", settings)).code == 0
    assert await ready.audited() == ["key.foreign", "key.foreign", "keys.rotate"]


@pytest.mark.server
async def test_looking_clears_nothing_away(ready: City, settings: str, run_async: RunAsync) -> None:
    """A draft may be that of a command that still writes; it troubles nobody who looks."""
    write_private(ready.store.directory / ".manifest.1", b"half", replace=False)
    before = ready.files()
    for command in ("status", "inventory", "verify"):
        assert (await run_async(command, "--config", settings)).code == 0

    assert ready.files() == before


@pytest.mark.server
async def test_a_rotation_while_somebody_looks(ready: City, settings: str) -> None:
    """Who has opened the key store just before a rotation ends is not told that somebody put an older one back."""

    async def rotate() -> None:
        async with ready.changing() as rotation:
            await rotation.rotate(ready.now)

    class Overtaken(Bench):
        """Opens the key store, and is overtaken by a rotation."""

        def open(self) -> OpenKeystore:
            opened = Bench.open(self)
            other = threading.Thread(target=lambda: asyncio.run(rotate()))
            other.start()
            other.join()
            return opened

    async with Overtaken.of(settings).reading():
        pass


@pytest.mark.server
@pytest.mark.parametrize("purpose", ["hpke", "manifest-signing", "audit-mac", "api-digest"])
async def test_an_interrupted_renewal_is_finished_not_repeated(
    ready: City, settings: str, run_async: RunAsync, purpose: Purpose
) -> None:
    """As an interrupted rotation is; the command says which key is active, and there is one audit row."""
    await interrupted(ready, settings, run_async, purpose)
    before = ready.keys.manifest
    again = await run_async("rotate", "--purpose", purpose, "--config", settings)

    assert (again.code, again.errors) == (0, "")
    assert set(again.output.splitlines()) == {
        f"The {key.title} is active." for key in before.of(purpose) if key.state is State.ACTIVE
    }
    assert {key.number for key in before.of(purpose)} == {1, 2}
    assert ready.keys.manifest == before
    assert await ready.audited() == ["keys.renew"]


@pytest.mark.server
async def test_another_command_after_an_interrupted_renewal(ready: City, settings: str, run_async: RunAsync) -> None:
    """It finishes what was begun, and does its own work as well."""
    await interrupted(ready, settings, run_async, "hpke")
    for arguments in (("--purpose", "api-digest"), ()):
        assert (await run_async("rotate", *arguments, "--config", settings)).code == 0

    manifest = ready.keys.manifest
    assert [len(manifest.of(purpose)) for purpose in ("hpke", "api-digest", "kek")] == [2, 2, 2]
    assert await ready.audited() == ["keys.renew", "keys.renew", "keys.rotate"]


@pytest.mark.server
async def test_an_interrupted_renewal_of_another_process(ready: City, settings: str, run_async: RunAsync) -> None:
    """It is finished, and the process that was asked for now gets its own key, too."""
    await interrupted(ready, settings, run_async, "audit-mac", "--process", "api")
    await run_async("rotate", "--purpose", "audit-mac", "--process", "worker", "--config", settings)

    for process in ("api", "worker"):
        assert ready.keys.manifest.active("audit-mac", process).number == 2


async def interrupted(city: City, settings: str, run_async: RunAsync, *renewal: str) -> None:
    """A renewal that a power cut ended between its manifest and the database."""
    await run_async("rotate", "--purpose", *renewal, "--config", settings)
    await city.owner.execute("UPDATE gateway.key_manifest SET version = 1")
    await city.owner.execute("DELETE FROM audit.events")


@pytest.mark.server
async def test_a_compromise_is_urgent(ready: City, settings: str, run_async: RunAsync) -> None:
    """`keys status` says first what has to be done about it."""
    async with ready.changing() as rotation:
        await rotation.compromise(1, Approval("ada", "act_1"), ready.now)
    ran = await run_async("status", "--config", settings)

    assert "generation 1 is compromised and wraps 6 records: `gateway reseal` until it finds nothing" in ran.output


@pytest.mark.server
async def test_the_inventory_as_people_read_it(ready: City, settings: str, run_async: RunAsync) -> None:
    """Every key on one line, the root beneath; no passphrase file is named."""
    ran = await run_async("inventory", "--config", settings)

    assert (ran.code, ran.errors) == (0, "")
    assert all(f"{key.purpose.replace('kek', 'generation')}" in ran.output for key in ready.keys.manifest.keys)
    assert f"Root 1, active: file:{ready.store.directory.parent}/root.key\n" in ran.output
    assert "passphrase" not in ran.output


@pytest.mark.server
async def test_no_database(ready: City, settings: str, run_async: RunAsync, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that does not answer is one line, not a traceback; nothing was changed."""
    monkeypatch.setenv("GATEWAY_DATABASE_DSN", "postgresql://127.0.0.1:1/gateway")
    before = ready.files()
    for command in COMMANDS:
        ran = await run_async(command, *ARGUMENTS.get(command, ()), "--config", settings)
        assert (ran.code, ran.output, ran.errors.count("\n")) == (1, "", 1)
        assert "is it up, and is database.dsn right?" in ran.errors
    assert ready.files() == before


@pytest.mark.server
@pytest.mark.parametrize(("command", "generations"), [(("status",), 1), (("status", "--json"), 1), (("rotate",), 2)])
async def test_output_that_goes_nowhere(
    ready: City, settings: str, command: tuple[str, ...], generations: int
) -> None:
    """A full disk behind the output is named, not the database; what was done before is done."""

    def run() -> subprocess.CompletedProcess[bytes]:
        with Path("/dev/full").open("wb") as full:
            arguments = [sys.executable, "-c", CHEAPLY, *command, "--config", settings]
            return subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, cwd=ROOT, check=False, timeout=60)

    ran = await asyncio.to_thread(run)
    assert ran.stderr == b"keys: No space left on device; `keys status` says what is done\n"
    assert ran.returncode == 1
    assert len(ready.keys.manifest.of("kek")) == generations


@pytest.mark.server
async def test_an_officer_who_was_added_by_a_run_that_was_cut_off(
    ready: City, settings: str, run_async: RunAsync, tmp_path: Path
) -> None:
    """The second run finishes it; a third is refused, and makes no key file; nor does a name that is none."""
    words, key = ("--key-passphrase-file", f"{tmp_path}/passphrase"), ("--key", f"{tmp_path}/ada.key")
    add = ("officer", "add", "ada", *words, "--config", settings)
    assert (await run_async(*add, *key)).code == 0
    await ready.owner.execute("UPDATE gateway.key_manifest SET version = 1")
    again = await run_async(*add, *key)
    assert (again.code, again.output[:18]) == (0, "ada is an officer;")
    assert await ready.version_seen() == 2

    other = ("--key", f"{tmp_path}/other.key")
    assert (await run_async(*add, *other)).errors == "keys: ada is an officer already\n"
    assert "an officer's name has 2 to 31 of" in (await run_async("officer", "add", "ADA", *add[3:], *other)).errors
    assert not (tmp_path / "other.key").exists()


def test_a_bench_needs_no_root_to_be_made(config: Path) -> None:
    """Settings are read and the key store is placed before anybody is asked for anything."""
    made = Bench.of(str(config))

    assert made.settings.environment == "demo"
    assert made.keystore.exists() is False
    assert made.settings.keys.recovery_days == timedelta(days=35).days
