"""The restore drill: one host is lost, and on another one a dump, a key backup and the root bring everything back."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from gateway.embedded import SUPERUSER, Address, EmbeddedPostgres, _binaries, _socket_dir
from gateway.store import roles
from keys.files import write_private
from keys.passphrase import seal_file
from keys.root_file import LABEL
from keys.secret import Secret
from tests.acceptance.test_key_acts import audited, open_folder, refusal, run, told
from tests.acceptance.test_main_job import charge_body, new_key, token_body
from tests.cards import canary
from tests.rotation_drill import _ready
from tests.system import BIN, Client, Stub, System, running

pytestmark = pytest.mark.server

RUNBOOK = Path(__file__).parents[2] / "deploy" / "RUNBOOK.md"
STEP = int(os.environ.get("GATEWAY_TEST_RESTORE_STEP", "37"))
"""So many changes of the file system lie between two kills."""
TWO_NAMES = 5
"""Where the first file that is tried has been linked, and its draft not yet unlinked."""
NUMBERS = [canary(7_000_000 + number) for number in range(6)]


@dataclass(frozen=True)
class Left:
    """What is left of a host, each on a medium of its own, and what its residents remember."""

    dump: Path
    backup: Path
    older_backup: Path
    root: Path
    officers: Path
    around: Path
    """Configuration, certificates, what the processor knows: no key of the hierarchy."""
    home: str
    """Where it was."""
    tokens: dict[str, tuple[str, str]]
    """By token: the department, and the card's fingerprint id."""
    charge: tuple[str, bytes]
    """The key of a charge, and what was answered."""


@dataclass(frozen=True)
class Server:
    """A database server on the new host, and its roles' new passwords."""

    address: Address
    passwords: dict[str, Secret[str]]


@pytest.fixture(scope="module")
async def left() -> AsyncIterator[Left]:
    """A demo that tokenized, charged, rotated and was backed up. Its host is gone."""
    with open_folder() as folder:
        media = folder / "media"
        media.mkdir(mode=0o700)
        with running(folder / "home") as system:
            tokens, charge = await a_working_day(system)
            told(system, "backup", "--to", str(media / "older.backup"), "--for", "security")
            told(system, "rotate")
            told(system, "backup", "--to", str(media / "keys.backup"), "--for", "security")
            dump(system.home, media / "database.dump")
            for name in ("root", "officers"):
                shutil.copytree(system.home / name, media / name)
            for name in ("tls", "stub"):
                shutil.copytree(system.home / name, media / "around" / name)
            for name in ("gateway.toml", "demo.json", "secrets/api/processor.credential"):
                shutil.copy(system.home / name, media / "around" / Path(name).name)
        yield Left(
            media / "database.dump",
            media / "keys.backup",
            media / "older.backup",
            media / "root",
            media / "officers",
            media / "around",
            str(system.home),
            tokens,
            charge,
        )


async def a_working_day(system: System) -> tuple[dict[str, tuple[str, str]], tuple[str, bytes]]:
    """Tokens of two departments, and a charge."""
    tokens = {}
    for department in ("parks", "utilities"):
        async with Client(system, department) as client:
            for number in NUMBERS:
                made = (await client.call("POST", "/v1/tokens", token_body(number))).json
                tokens[made["id"]] = department, made["card"]["fingerprint"]
            key, token = new_key(), made["id"]
            charge = await client.call("POST", "/v1/charges", charge_body(token=token), key=key)
            assert charge.status == 201
    return tokens, (key, charge.body)


def dump(home: Path, to: Path) -> None:
    """What the database's own people do: pg_dump, by its superuser on its own machine."""
    postgres_program(home, "pg_dump", "--format=custom", f"--file={to}", "gateway")


def postgres_program(home: Path, name: str, *arguments: str) -> None:
    port = (home / "postgres" / "port").read_text()
    reached = (f"--host={_socket_dir(home / 'postgres')}", f"--port={port}", f"--username={SUPERUSER}")
    done = subprocess.run(
        [str(_binaries() / name), *reached, *arguments], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="module")
async def server(left: Left) -> AsyncIterator[Server]:
    """On the other host: a new server with new passwords, the dump restored; beside it an empty database."""
    with open_folder() as folder:
        embedded = EmbeddedPostgres(folder)
        address = await embedded.start()
        passwords = {process: Secret(secrets.token_urlsafe(24)) for process in roles.PROCESSES}
        try:
            for database in ("gateway", "empty"):
                if database == "empty":
                    postgres_program(folder, "createdb", database)
                connection = await embedded.connect_superuser(database)
                await connection.execute(roles.statements(passwords, database))
                await connection.close()
            postgres_program(folder, "pg_restore", "--exit-on-error", "--dbname=gateway", str(left.dump))
            yield Server(address, passwords)
        finally:
            await embedded.stop()


@pytest.fixture
def host(tmp_path: Path, left: Left, server: Server) -> System:
    """Another host: an empty home with certificates and a configuration. No key, and no root yet."""
    return new_host(tmp_path / "home", left, server)


def new_host(home: Path, left: Left, server: Server, database: str = "gateway") -> System:
    home.mkdir(mode=0o700)
    shutil.copytree(left.around / "tls", home / "tls")
    for process, password in server.passwords.items():
        write_private(home / "secrets" / process / "database.password", password.reveal().encode(), replace=False)
    credential = (left.around / "processor.credential").read_bytes()
    for process in ("api", "stub"):
        write_private(home / "secrets" / process / "processor.credential", credential, replace=False)
    (home / "log").mkdir()
    lines = (left.around / "gateway.toml").read_text().replace(left.home, str(home)).splitlines()
    dsn = f"postgresql://{server.address.host}:{server.address.port}/{database}"
    lines = [f'dsn = "{dsn}"' if line.startswith("dsn = ") else line for line in lines]
    (home / "gateway.toml").write_text("\n".join(lines) + "\n")
    system = System(home)
    system.demo = json.loads((left.around / "demo.json").read_text().replace(left.home, str(home)))
    signed_in = dsn.replace("//", f"//gateway_owner:{server.passwords['owner'].reveal()}@")
    system.demo |= {"database": signed_in}
    return system


def put_root_back(system: System, left: Left) -> None:
    shutil.copytree(left.root, system.home / "root")


def restore(left: Left, officer: str = "security", backup: Path | None = None) -> tuple[str, ...]:
    """`keys restore …`."""
    key, words = left.officers / f"{officer}.key", left.officers / f"{officer}.passphrase"
    return ("restore", "--from", str(backup or left.backup), "--officer", str(key), "--passphrase-file", str(words))


def stands(system: System) -> bool:
    """Whether a key store stands there."""
    return (system.home / "keystore" / "manifest").exists()


def refused(system: System, *arguments: str) -> str:
    """The one line of a refusal where no key store stands, nor does afterwards."""
    ran = run(arguments, system.plain)
    assert (ran.code, ran.output) == (1, ""), ran
    assert ran.errors.startswith("keys: ")
    assert ran.errors.count("\n") == 1, ran.errors
    assert not stands(system)
    return ran.errors.removeprefix("keys: ").rstrip()


@contextmanager
def serving(system: System, left: Left) -> Iterator[None]:
    """The api at work, and the processor, who has forgotten nothing."""
    shutil.copytree(left.around / "stub", system.home / "stub", dirs_exist_ok=True)
    parts = []
    for name in ("stub", "api"):
        with (system.home / "log" / name).open("wb") as log:
            parts.append(subprocess.Popen([str(BIN / "gateway"), name], env=system.plain, stdout=log, stderr=log))
    try:
        deadline = time.monotonic() + 60
        while not _ready(system):
            assert all(part.poll() is None for part in parts), (system.home / "log" / "api").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        for part in parts:
            part.terminate()
            part.wait(30)


def does_not_start(system: System) -> str:
    """What the api says as it refuses to start."""
    done = subprocess.run(
        [str(BIN / "gateway"), "api"], env=system.plain, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 1
    return done.stderr.decode() + done.stdout.decode()


async def test_everything_comes_back(host: System, left: Left) -> None:
    """Dump, key backup and root: every token charges, with its fingerprint; API keys and answers are as they were."""
    put_root_back(host, left)
    restored = told(host, *restore(left))
    assert restored["manifest"] == told(host, "inventory")["manifest"]
    assert told(host, "verify")["failed"] == 0
    assert ("keys.restore", "done", "keys", f"manifest-{restored['manifest']}") in await audited(host)
    assert (host.home / "keystore" / "manifest").stat().st_mode & 0o777 == 0o600
    assert not (host.home / "keystore" / "restoring").exists()
    with serving(host, left):
        for department in ("parks", "utilities"):
            async with Client(host, department) as client:
                await all_charge(client, department, left)
        async with Client(host, "utilities") as client:
            key, answer = left.charge
            token = json.loads(answer)["token"]
            again = await client.call("POST", "/v1/charges", charge_body(token=token), key=key)
            assert (again.status, again.body) == (201, answer)
        truth = await Stub(host).charges()
        assert all(row["effects"] == 1 for row in truth.values())
        assert "holds a key store: it is never overwritten" in refusal(host, *restore(left, backup=left.older_backup))


async def all_charge(client: Client, department: str, left: Left) -> None:
    """Every token of a department; and a card that is known keeps its fingerprint."""
    fingerprints = []
    for token, (owned_by, fingerprint) in left.tokens.items():
        shown = await client.call("GET", f"/v1/tokens/{token}")
        if owned_by != department:
            assert shown.status == 404
            continue
        assert shown.json["card"]["fingerprint"] == fingerprint
        fingerprints.append(fingerprint)
        charge = await client.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
        assert charge.json["status"] == "succeeded"
    for number, fingerprint in zip(NUMBERS, fingerprints, strict=True):
        made = await client.call("POST", "/v1/tokens", token_body(number))
        assert made.json["card"]["fingerprint"] == fingerprint


def test_without_the_database(tmp_path: Path, left: Left, server: Server) -> None:
    """Where the dump was not restored, keys are not put back either; what is missing is said."""
    host = new_host(tmp_path / "home", left, server, database="empty")
    put_root_back(host, left)
    assert refused(host, *restore(left)) == "the database's schema is not of this release: run `gateway migrate`"
    migrated = subprocess.run(
        [str(BIN / "gateway"), "migrate"], env=host.plain, capture_output=True, check=False, timeout=60
    )
    assert migrated.returncode == 0, migrated.stderr.decode()
    line = refused(host, *restore(left))
    assert line == "this database knows of no key store: restore the database from its backup first"
    assert does_not_start(host)


def test_without_the_root(host: System, left: Left) -> None:
    """A key backup opens nothing without the root: nothing is put in place, and the line names the file."""
    root = host.home / "root"
    assert refused(host, *restore(left)).startswith(f"{root}/root.key does not exist")
    words = Secret(new_key())
    write_private(root / "passphrase", words.reveal().encode(), replace=False)
    seal_file(root / "root.key", Secret(secrets.token_bytes(32)), words, LABEL)
    assert refused(host, *restore(left)).startswith("this root key does not open the key store")
    assert does_not_start(host)
    shutil.rmtree(root)
    put_root_back(host, left)
    told(host, *restore(left))


def test_without_the_key_backup(host: System, left: Left) -> None:
    """Database and root alone open nothing: neither the commands nor the api start."""
    put_root_back(host, left)
    gone = restore(left, backup=left.backup.with_name("gone"))
    assert refused(host, *gone) == f"{left.backup.with_name('gone')} does not exist"
    assert "keystore" in refused(host, "status")
    assert "restore" in refused(host, "init")
    assert "holds no audit-mac key" in does_not_start(host)


def test_who_cannot_open_the_backup(host: System, left: Left, tmp_path: Path) -> None:
    """Not a recipient, a wrong passphrase, no officer, a byte altered: one line each, and nothing is written."""
    put_root_back(host, left)
    assert "does not open with this key: take the key that security had" in refused(host, *restore(left, "security2"))
    words = ("--passphrase-file", str(left.officers / "security2.passphrase"))
    assert "the passphrase does not open" in refused(host, *restore(left)[:-2], *words)
    assert "name the key file with --officer" in refused(host, *restore(left)[:3])
    raw = left.backup.read_bytes()
    for place in (40, len(raw) - 1):
        altered = tmp_path / "altered.backup"
        write_private(altered, raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], replace=True)
        assert refused(host, *restore(left, backup=altered))
    write_private(altered, raw[: len(raw) // 2], replace=True)
    assert "altered or cut short" in refused(host, *restore(left, backup=altered))
    assert not (host.home / "keystore").exists()


def test_an_older_backup(host: System, left: Left) -> None:
    """Keys older than the database are refused in the runbook's words; then the newest are put back."""
    put_root_back(host, left)
    line = refused(host, *restore(left, backup=left.older_backup))
    assert "which this database has seen" in line
    assert "which this database has seen" in RUNBOOK.read_text()
    told(host, *restore(left))
    assert told(host, "verify")["failed"] == 0


KILLED = """
import os, signal, sys
from keys.cli.main import main

left, home = int(sys.argv[1]), sys.argv[2]

def step(event, arguments):
    global left
    if event in ("os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir") and str(arguments[0]).startswith(home):
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

sys.addaudithook(step)
sys.argv[:3] = ["keys"]
main()
"""
"""`keys`, killed before its so many-th change of the file system under a folder."""


def killed(host: System, left: Left, steps: int) -> bool:
    """Whether a restore was killed before it had made so many changes and one more; else it ended well."""
    command = [str(BIN / "python"), "-c", KILLED, str(steps), str(host.home), *restore(left)]
    done = subprocess.run(command, env=host.plain, capture_output=True, check=False, timeout=60)
    assert done.returncode in {0, -signal.SIGKILL}, (steps, done.stderr.decode())
    return done.returncode != 0


def test_killed_while_it_restores(host: System, left: Left) -> None:
    """`kill -9` of one restore after the other, each a little further on: the last one finishes it."""
    put_root_back(host, left)
    assert killed(host, left, TWO_NAMES)
    assert any(path.stat().st_nlink == 2 for path in (host.home / "keystore" / "restoring").rglob("manifest"))
    steps = next(steps for steps in count(TWO_NAMES + STEP, STEP) if not killed(host, left, steps))
    assert steps > 100, "the copy was tried, and put in its place"
    assert told(host, "verify")["failed"] == 0
    assert not (host.home / "keystore" / "restoring").exists()
    assert json.loads(run(["status", "--json"], host.plain).output)["active"] == 2
