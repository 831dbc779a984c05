"""Processes that are really killed, at any moment: what was answered stays true, and nothing is left behind."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.test_main_job import charge_body, new_key, token_body
from tests.system import LAUNCHER, Client, Stub, System, owner, running

pytestmark = pytest.mark.server

KILLS = 12
CREATED = "SELECT subject FROM audit.events WHERE event = 'token.created'"
ANSWERED = "SELECT subject_id FROM gateway.idempotency WHERE route = 'POST /v1/tokens' AND status = 201"
CLIENTS = 4


@pytest.fixture
def own_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A demo for one test, which may break it."""
    folder = tmp_path_factory.mktemp("crashes")
    for parent in (folder, folder.parent, folder.parent.parent):
        if parent.name.startswith(("pytest", "crashes")):
            parent.chmod(0o711)
    with running(folder / "home") as system:
        yield system


async def test_kill_any_process_at_any_moment(own_system: System) -> None:
    """While pages tokenize and charge, api, processor and PostgreSQL are killed: no answer turns out false."""
    random.seed(seed := 20261122)
    print(f"seed {seed}")
    done = asyncio.Event()
    answered: dict[str, tuple[str, bytes]] = {}
    tokens: list[str] = []
    async with Client(own_system, "parks") as client:

        async def page(number: int) -> None:
            turn = 0
            while not done.is_set():
                turn += 1
                key = f"page-{number}-{turn}"
                token = (await client.insist("POST", "/v1/tokens", token_body(), key=key)).json["id"]
                tokens.append(token)
                reply = await client.insist("POST", "/v1/charges", charge_body(token=token), key=key)
                assert reply.status in {201, 202, 502}, reply.body
                charge = reply.json if reply.status < 400 else reply.json["charge"]
                answered[key] = (charge["id"], reply.body if reply.status != 202 else b"")

        before = await tokens_kept(own_system)
        pages = [asyncio.create_task(page(number)) for number in range(CLIENTS)]
        for victim in ("api", "postgres", "stub", "worker") * (KILLS // 4):
            await asyncio.sleep(random.uniform(0.3, 1.0))  # noqa: S311 - a seeded schedule
            if victim in own_system.parts():
                own_system.kill(victim)
        await asyncio.sleep(1)
        done.set()
        await asyncio.gather(*pages)
        assert {table: ids - before[table] for table, ids in (await tokens_kept(own_system)).items()} == {
            table: set(tokens) for table in before
        }
        await check(own_system, client, tokens, answered)


async def tokens_kept(system: System) -> dict[str, set[str]]:
    """The ids of tokens, as each table that must have them has them."""
    connection = await owner(system)
    try:
        return {
            "tokens": {row[0] for row in await connection.fetch("SELECT token_id FROM gateway.tokens")},
            "deks": {row[0] for row in await connection.fetch("SELECT record_id FROM gateway.deks")},
            "audit": {row[0] for row in await connection.fetch(CREATED)},
            "answers": {row[0] for row in await connection.fetch(ANSWERED)},
        }
    finally:
        await connection.close()


async def check(system: System, client: Client, tokens: list[str], answered: dict[str, tuple[str, bytes]]) -> None:
    """Everything answered is there and true; the processor moved money once where we say so, and never otherwise."""
    assert len(answered) > CLIENTS
    settled = {}
    for key, (charge_id, _) in answered.items():
        charge = (await client.insist("GET", f"/v1/charges/{charge_id}")).json
        if charge["status"] == "pending":
            await client.finally_("/v1/charges", charge_body(token=charge["token"]), key)
            charge = (await client.insist("GET", f"/v1/charges/{charge_id}")).json
        settled[key] = charge
    truth = await Stub(system).charges()  # not before: what was pending may have moved money only just now
    assert all(row["effects"] <= 1 for row in truth.values())
    for key, (_, body) in answered.items():
        charge = settled[key]
        effects = truth.get(charge["processor_reference"], {"effects": 0})["effects"]
        assert effects == {"succeeded": 1, "failed": 0}[charge["status"]], charge
        if body:
            again = await client.insist("POST", "/v1/charges", charge_body(token=charge["token"]), key=key)
            assert again.body == body
    for token in tokens:
        reply = await client.insist("POST", "/v1/charges", charge_body(token=token), key=new_key())
        assert reply.status == 201
    system.command("keys", "verify")


async def test_killed_launcher_leaves_nothing_running(own_system: System) -> None:
    """After `kill -9` of the launcher no process of the demo is left, and a new start finds everything again."""
    async with Client(own_system, "parks") as client:
        token = (await client.call("POST", "/v1/tokens", token_body())).json["id"]
    parts = own_system.parts()
    assert set(parts) == {"api", "stub", "worker", "admin", "postgres"}
    people = own_system.demo["staff"]
    assert own_system.launcher is not None
    own_system.launcher.kill()
    own_system.launcher.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in parts.values()):
        assert time.monotonic() < deadline, "a part outlived the launcher"
        await asyncio.sleep(0.1)

    own_system.start()
    async with Client(own_system, "parks") as client:
        reply = await client.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
    assert reply.status == 201
    assert own_system.demo["staff"] == people


async def test_launcher_ends_cleanly(own_system: System) -> None:
    """Ctrl-C ends everything and exits 0; `demo.json` stays; a second start in a busy home or port is one line."""
    assert own_system.launcher is not None
    second = [sys.executable, str(LAUNCHER), "--check"]
    busy_home = subprocess.run(second, env=own_system.environment, capture_output=True, check=False, timeout=60)
    elsewhere = own_system.environment | {"GATEWAY_HOME": str(own_system.home.parent / "other")}
    busy_port = subprocess.run(second, env=elsewhere, capture_output=True, check=False, timeout=60)
    for refused, word in ((busy_home, b"another ./deploy/run"), (busy_port, b"GATEWAY_API_PORT")):
        assert refused.returncode == 1
        assert word in refused.stderr
        assert len(refused.stderr.splitlines()) == 1

    parts = own_system.parts()
    own_system.launcher.send_signal(signal.SIGINT)
    assert own_system.launcher.wait(60) == 0
    assert not [pid for pid in parts.values() if Path(f"/proc/{pid}").exists()]
    assert (own_system.home / "demo.json").stat().st_mode & 0o777 == 0o600


async def test_start_is_refused_without_the_right_keys(own_system: System) -> None:
    """No root, a wrong passphrase, wide permissions, a lost or misplaced key store: each refuses with one line."""
    home = own_system.home
    config = (home / "gateway.toml").read_text()

    def refusal(command: str, *arguments: str) -> str:
        told = own_system.command(command, *arguments, code=1)
        assert len(told.splitlines()) == 1
        return told

    passphrase = home / "root" / "passphrase"
    kept = passphrase.read_text()
    passphrase.write_text("not the passphrase at all")
    assert "passphrase does not open" in refusal("keys", "status")
    passphrase.write_text(kept)

    root = home / "root" / "root.key"
    root.chmod(0o644)
    assert "chmod 0600" in refusal("keys", "status")
    root.chmod(0o600)
    root.rename(root.with_suffix(".away"))
    root.symlink_to(root.with_suffix(".away"))
    assert "symbolic link" in refusal("keys", "status")
    root.unlink()
    assert "does not exist" in refusal("keys", "status")
    root.with_suffix(".away").rename(root)

    (home / "gateway.toml").write_text(config.replace('environment = "demo"', 'environment = "production"'))
    assert refusal("keys", "status")
    inside = config.replace("/keystore", "/postgres/data/keystore")
    (home / "gateway.toml").write_text(inside)
    assert "apart" in refusal("keys", "status")
    (home / "gateway.toml").write_text(config)

    assert "initialised already" in refusal("keys", "init")
    (home / "keystore").rename(home / "lost")
    assert "not here" in refusal("keys", "init")
    (home / "lost").rename(home / "keystore")
    assert os.environ.get("GATEWAY_HOME") != str(home)
    own_system.command("keys", "status")


async def test_rolled_back_manifest_is_refused(own_system: System) -> None:
    """A manifest older than one that the database has seen is refused by commands, and readiness fails."""
    from tests.system import owner

    connection = await owner(own_system)
    try:
        await connection.execute("UPDATE gateway.key_manifest SET version = 7")
        for command in ("status", "verify"):
            assert "older than 7" in own_system.command("keys", command, code=1)
        async with Client(own_system, "parks") as client:
            deadline = time.monotonic() + 10
            while (await client.call("GET", "/readyz")).status != 503:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
            reply = await client.call("POST", "/v1/tokens", token_body())
            assert (reply.status, reply.problem) == (503, "unavailable")
            assert reply.headers["Retry-After"]
    finally:
        await connection.execute("UPDATE gateway.key_manifest SET version = 1")
        await connection.close()


def test_launcher_spares_what_is_not_its_own(tmp_path: Path) -> None:
    """Other files in the folder, a file in its place, equal ports: one line each, and nothing is touched."""
    precious = tmp_path / "home" / "precious"
    precious.parent.mkdir(mode=0o750)
    precious.write_text("kept")
    (tmp_path / "file").touch()
    system = System(precious.parent)
    cases: tuple[tuple[Path, dict[str, str], str], ...] = (
        (precious.parent, {}, "not the demo's"),
        (tmp_path / "file", {}, "file"),
        (tmp_path / "new", {"GATEWAY_API_PORT": "21000", "GATEWAY_METRICS_PORT": "21000"}, "the same"),
        (tmp_path / "new", {"GATEWAY_API_PORT": "0"}, "GATEWAY_API_PORT"),
    )
    for home, changed, word in cases:
        for arguments in (["--check"], ["--check", "--reset"]):
            done = subprocess.run(
                [sys.executable, str(LAUNCHER), *arguments],
                env=system.environment | {"GATEWAY_HOME": str(home)} | changed,
                capture_output=True,
                check=False,
                timeout=60,
            )
            told = done.stderr.decode()
            assert (done.returncode, len(told.splitlines())) == (1, 1), told
            assert word in told
    assert precious.read_text() == "kept"
    assert precious.parent.stat().st_mode & 0o777 == 0o750


async def test_reset_begins_anew(own_system: System) -> None:
    """`--reset` forgets tokens and keys, keeps what the demo did not lay out, and everything works again."""
    foreign = own_system.home / "notes.txt"
    foreign.write_text("kept")
    before = own_system.demo["apps"]["parks"]["api_key"]
    own_system.stop()
    own_system.start("--reset")
    assert own_system.demo["apps"]["parks"]["api_key"] != before
    assert foreign.read_text() == "kept"
    async with Client(own_system, "parks") as client:
        assert (await client.call("GET", "/v1/charges", api_key=before)).status == 401
        assert len((await client.call("GET", "/v1/charges")).json["data"]) == 1
