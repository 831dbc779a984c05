"""Rotate, rewrap and destroy under load, killing the rewrap again and again; on any kind of root.

The suite runs it small (tests/acceptance/test_rotation_drill.py). The long size, by one command:

    .venv/bin/python -m tests.rotation_drill --tokens 100000 --kills 50 [--root file|pkcs11|awskms|shares]
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.acceptance.test_main_job import charge_body, new_key, token_body
from tests.keys import kms
from tests.keys.pty_driver import Terminal
from tests.keys.softhsm import MODULE, UTIL, SoftHsm
from tests.system import BIN, Client, System, owner, running

KINDS = ("file", "pkcs11", "awskms", "shares")
PAGES = 4
ERASED = 25
MAKERS = 16
CUSTODIANS = ("security", "security2", "third")


@dataclass
class Load:
    """Payment pages at work all the while: what was answered, and what should not have been."""

    tokens: list[str] = field(default_factory=list)
    charged: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a drill has shown."""

    kind: str
    tokens: int
    kills: int
    killed_at_work: int
    requests: int
    failed: list[str]
    seconds: float


# --- the roots ---


class Roots:
    """Moves a running demo from one kind of root to another, as the runbook says."""

    def __init__(self, system: System, folder: Path, hsm: SoftHsm | None) -> None:
        self._system = system
        self._folder = folder
        self._hsm = hsm
        self._words: dict[str, str] = {}
        self._stack = ExitStack()
        self._moves = 0

    def close(self) -> None:
        """End what was started for them."""
        self._stack.close()

    def move_to(self, kind: str) -> None:
        """Ask, approve, hold the ceremony, restart, finish."""
        self._moves += 1
        uri = {"file": self._file, "pkcs11": self._pkcs11, "awskms": self._awskms, "shares": self._shares}[kind]()
        if kind == "shares":
            self._split(uri)
        else:
            by = self._system.officer("security")
            told = self._system.command("keys", "ceremony", "replace", "--root", uri, *by, "--json")
            request = json.loads(told)["act"]
            self._system.command("keys", "approve", request, *self._system.officer("security2"))
            self._system.command("keys", "ceremony", "replace", "--request", request)
        self._configure(uri)
        if kind == "shares":
            self._unlock()
        self._restart_api()
        self._system.command("keys", "ceremony", "replace", "--finish")
        self._system.command("keys", "verify")

    def _file(self) -> str:
        folder = self._folder / f"file-{self._moves}"
        folder.mkdir(mode=0o700)
        passphrase = folder / "passphrase"
        passphrase.write_text(new_key())
        passphrase.chmod(0o600)
        return f"file:{folder}/root.key?passphrase_file={passphrase}"

    def _pkcs11(self) -> str:
        assert self._hsm is not None
        self._hsm.initialise(f"token-{self._moves}")
        return self._hsm.uri(token=f"token-{self._moves}")

    def _awskms(self) -> str:
        url = self._stack.enter_context(kms.running_moto())
        key = kms.make_key(kms.administrator(url)).rpartition("/")[2]
        return kms.uri(url, kms.credentials_file(self._folder / f"aws-{self._moves}"), key)

    def _shares(self) -> str:
        return f"shares:{self._folder}/root-{self._moves}.shares?agent={self._folder}/agent-{self._moves}/unlock.sock"

    def _configure(self, uri: str) -> None:
        path = self._system.home / "gateway.toml"
        lines = path.read_text().splitlines()
        (at,) = (number for number, line in enumerate(lines) if line.startswith("root = "))
        lines[at] = f"root = {json.dumps(uri)}"
        path.write_text("\n".join(lines) + "\n")

    def _restart_api(self) -> None:
        before = self._system.parts()["api"]
        os.kill(before, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while self._system.parts().get("api", before) == before or not _ready(self._system):
            assert time.monotonic() < deadline, (self._system.home / "log" / "api.log").read_text()[-2000:]
            time.sleep(0.1)

    def _split(self, uri: str) -> None:
        """Three custodians at a real terminal, one after the other; each writes down and types back."""
        known = json.loads(self._system.command("keys", "officer", "list", "--json"))["officers"]
        if "third" not in {officer["name"] for officer in known}:
            key = ("--key", str(self._folder / "third.key"), "--key-passphrase-file", str(self._third_passphrase()))
            self._system.by_two("keys", "officer", "add", "third", *key)
            third = ("--officer", key[1], "--passphrase-file", key[3])
            self._system.command("keys", "officer", "acknowledge", *third)
        names = [option for name in CUSTODIANS for option in ("--custodian", name)]
        by = self._system.officer("security")
        told = self._system.command("keys", "ceremony", "split", "--root", uri, *names, *by, "--json")
        request = json.loads(told)["act"]
        self._system.command("keys", "approve", request, *self._system.officer("security2"))
        command = [str(BIN / "keys"), "ceremony", "split", "--request", request]
        with Terminal(command, env=self._system.plain) as terminal:
            for name in CUSTODIANS:
                terminal.expect(f"{name}, your share comes next")
                terminal.send("\n")
                shown = terminal.expect("Press Enter when you have")
                words = re.findall(r"(\d+)[.)]?\s+([a-z]+)", shown)
                self._words[name] = " ".join(word for _, word in sorted(words, key=lambda found: int(found[0])))
                terminal.send("\n")
                terminal.expect("it is not shown")
                terminal.send(self._words[name] + "\n")
            assert terminal.wait() == 0, terminal.output

    def _third_passphrase(self) -> Path:
        path = self._folder / "third.passphrase"
        path.write_text(new_key())
        path.chmod(0o600)
        return path

    def _unlock(self) -> None:
        """Two of them come back and type theirs; the root is then there for processes of this user."""
        command = [str(BIN / "keys"), "ceremony", "unlock", "--minutes", "60"]
        terminal = self._stack.enter_context(Terminal(command, env=self._system.plain))
        for name in CUSTODIANS[:2]:
            terminal.expect("it is not shown")
            terminal.send(self._words[name] + "\n")
        terminal.expect("Unlocked for 60 minutes")


def _ready(system: System) -> bool:
    try:
        context = ssl.create_default_context(cafile=system.demo["ca"])
        with urllib.request.urlopen(f"{system.demo['api']}/readyz", context=context, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


# --- the drill ---


@asynccontextmanager
async def pages_at_work(client: Client, load: Load) -> AsyncIterator[None]:
    """Pages that tokenize and charge until the block ends."""
    done = asyncio.Event()

    async def page() -> None:
        while not done.is_set():
            try:
                token = await client.call("POST", "/v1/tokens", token_body())
                charge = await client.call("POST", "/v1/charges", charge_body(token=token.json["id"]), key=new_key())
            except (aiohttp.ClientError, OSError, KeyError) as error:
                load.failed.append(type(error).__name__)
                continue
            load.tokens.append(token.json["id"])
            load.charged += 1
            load.failed += [
                f"{reply.status} {reply.body[:200]!r}" for reply in (token, charge) if reply.status != 201
            ]

    pages = [asyncio.create_task(page()) for _ in range(PAGES)]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*pages)


async def make_tokens(client: Client, count: int) -> list[str]:
    """So many tokens, as fast as they are made."""
    made: list[str] = []

    async def maker() -> None:
        while len(made) < count:
            made.append((await client.call("POST", "/v1/tokens", token_body())).json["id"])

    await asyncio.gather(*(maker() for _ in range(MAKERS)))
    return made


async def charge_all(client: Client, tokens: list[str]) -> list[str]:
    """Charge each once; gives what was not captured."""
    waiting, failed = list(tokens), []

    async def charger() -> None:
        while waiting:
            token = waiting.pop()
            reply = await client.insist("POST", "/v1/charges", charge_body(token=token), key=new_key())
            if reply.status != 201:
                failed.append(f"{token}: {reply.status} {reply.body!r}")

    await asyncio.gather(*(charger() for _ in range(MAKERS)))
    return failed


async def drill(system: System, kind: str, tokens: int, kills: int, seed: int) -> Outcome:
    """Under load: rotate, rewrap with kills, destroy; then everything is charged, counted and attacked."""
    started, schedule, load = time.monotonic(), random.Random(seed), Load()  # noqa: S311 - a seeded schedule
    async with Client(system, "parks") as client:
        made = await make_tokens(client, tokens + ERASED)
        erased, kept = made[:ERASED], made[ERASED:]
        # The destroyed generation's last database backup: it still holds what is erased next.
        backup = await rows_of(system, erased)
        for token in erased:
            assert (await client.call("DELETE", f"/v1/tokens/{token}")).status == 200
        async with pages_at_work(client, load):
            old = json.loads(await command(system, "keys", "status", "--json"))["active"]
            await command(system, "keys", "rotate")
            at_work = await rewrap_with_kills(system, kills, tokens, schedule)
            await command(system, "keys", "rewrap")
            await asyncio.to_thread(
                system.by_two, "keys", "destroy", str(old), "--despite-backups", "--reason", "drill"
            )
        not_charged = await charge_all(client, kept + load.tokens)
    assert not not_charged, not_charged[:5]
    connection = await owner(system)
    assert await connection.fetchval("SELECT count(*) FROM gateway.deks WHERE generation <= $1", old) == 0
    await connection.close()
    found = json.loads(await command(system, "keys", "verify", "--json"))
    assert found["failed"] == 0
    assert found["records"] == found["opened"] == sum(found["generations"].values())
    await asyncio.to_thread(attack, system, backup, old)
    requests = 2 * load.charged + len(load.failed)
    return Outcome(kind, len(kept), kills, at_work, requests, load.failed, time.monotonic() - started)


async def rewrap_with_kills(system: System, kills: int, tokens: int, schedule: random.Random) -> int:
    """`keys rewrap`, killed at random moments of its work; gives how often it had moved rows by then."""
    at_work = 0
    connection = await owner(system)
    left = (
        "SELECT count(*) FROM gateway.deks d JOIN gateway.key_generations USING (generation) WHERE state = 'retired'"
    )
    try:
        for _ in range(kills):
            before = await connection.fetchval(left)
            # So slowly that every kill finds work to do.
            rate = max(50, tokens // (2 * kills))
            rewrap = subprocess.Popen(
                [str(BIN / "keys"), "rewrap", "--rate", str(rate), "--page", "10"],
                env=system.plain,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
            )
            try:
                begun = time.monotonic()
                while await connection.fetchval(left) == before and time.monotonic() - begun < 30:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(schedule.uniform(0, 0.6))
            finally:
                rewrap.kill()
                rewrap.wait()
            at_work += 0 < await connection.fetchval(left) < before
    finally:
        await connection.close()
    return at_work


async def command(system: System, *arguments: str) -> str:
    """A command beside the load."""
    return await asyncio.to_thread(system.command, *arguments)


# --- the attacker ---


async def rows_of(system: System, tokens: list[str]) -> list[dict[str, Any]]:
    """What a backup of the database holds of these tokens."""
    connection = await owner(system)
    try:
        rows = await connection.fetch(
            "SELECT deks.department_id, record_id, generation, wrapped, sealed FROM gateway.deks"
            " JOIN gateway.tokens ON token_id = record_id AND tokens.department_id = deks.department_id"
            " WHERE record_id = ANY($1)",
            tokens,
        )
    finally:
        await connection.close()
    assert len(rows) == len(tokens)
    return [{k: v.hex() if isinstance(v, bytes) else v for k, v in dict(row).items()} for row in rows]


def attack(system: System, backup: list[dict[str, Any]], old: int) -> None:
    """With that backup, the present key store and its root: open what was erased. In a process of its own."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.rotation_drill",
            "--attack",
            str(system.home / "gateway.toml"),
            "--old",
            str(old),
        ],
        input=json.dumps(backup).encode(),
        env=system.plain,
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"tried": len(backup), "opened": 0}


def attacker(config: Path, old: int) -> None:
    """Tries every key that the store still has, rightly and wrongly, on every row."""
    from keys import envelope, roots
    from keys.cli.bench import ask
    from keys.errors import KeysError
    from keys.keystore import open_keystore
    from keys.secret import Secret
    from keys.settings import Settings, load

    settings = load(config, Settings, {})
    ring = (
        open_keystore(settings.keys, settings.database, settings.environment)
        .open(roots.open_root(settings.keys.root, ask))
        .ring()
    )
    assert old not in ring.generations
    rows, opened = json.load(sys.stdin), 0
    for row in rows:
        place = ring.place(row["department_id"], row["record_id"])
        for key in ring.generations.values():
            for claimed in (row["generation"], key.number):
                try:
                    dek = envelope.unwrap_dek(key.secret, place, claimed, bytes.fromhex(row["wrapped"]))
                    envelope.unseal(dek, place, "card", bytes.fromhex(row["sealed"]))
                except KeysError:
                    continue
                opened += 1
            try:
                envelope.unseal(Secret(key.secret.reveal()), place, "card", bytes.fromhex(row["sealed"]))
            except KeysError:
                continue
            opened += 1
    print(json.dumps({"tried": len(rows), "opened": opened}))


@contextmanager
def prepared(folder: Path, home: Path) -> Iterator[tuple[System, Roots]]:
    """A demo that can be moved to any root."""
    hsm = SoftHsm(folder / "hsm") if UTIL and MODULE else None
    with running(home, **(hsm.environment if hsm else {})) as system:
        roots = Roots(system, folder, hsm)
        try:
            yield system, roots
        finally:
            roots.close()


async def _main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="gateway-drill-") as folder:
        Path(folder).chmod(0o711)
        with prepared(Path(folder), Path(folder) / "home") as (system, roots):
            if arguments.root != "file":
                roots.move_to(arguments.root)
            print(f"seed {arguments.seed}", flush=True)
            print(await drill(system, arguments.root, arguments.tokens, arguments.kills, arguments.seed))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--root", choices=KINDS, default="file")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--attack", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--old", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        attacker(arguments.attack, arguments.old)
    else:
        asyncio.run(_main(arguments))


if __name__ == "__main__":
    main()
