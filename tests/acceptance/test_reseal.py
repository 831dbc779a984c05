"""`gateway reseal` on the running demo: under traffic, killed, twice at once, beside a rewrap; and its manners."""

import asyncio
import json
import os
import random
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.services.vault import CARD, DETAILS
from keys.cli.bench import Bench
from keys.envelope import Place, unseal
from keys.errors import KeysError
from keys.ring import Ring, WrappedDek
from keys.rotation import Approval
from tests.acceptance.test_main_job import charge_body, token_body
from tests.cards import canary
from tests.rotation_drill import charge_all
from tests.system import BIN, Client, System, owner, running

pytestmark = pytest.mark.server

TOKENS = 1000
KILLS = 6
AT_ONCE = 16
CARDS = range(69_000, 69_006)
APPROVED = Approval("ada", "request-1")
RESEAL_SLOWLY = ("gateway", "reseal", "--page", "5", "--rate", "60")


@pytest.fixture
def own_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A demo for one test, which may rotate its keys."""
    folder = tmp_path_factory.mktemp("reseal")
    for parent in (folder, folder.parent, folder.parent.parent):
        if parent.name.startswith(("pytest", "reseal")):
            parent.chmod(0o711)
    with running(folder / "home") as system:
        yield system


@pytest.fixture
async def sql(own_system: System) -> AsyncIterator[asyncpg.Connection]:
    """The schema's owner."""
    connection = await owner(own_system)
    yield connection
    await connection.close()


def bench(system: System) -> Bench:
    """What officers' commands work with."""
    return Bench.of(str(system.home / "gateway.toml"))


def ring_of(system: System) -> Ring:
    """All keys as they are now."""
    return bench(system).open().ring()


async def compromise(system: System, generation: int) -> None:
    """Two officers say that somebody has a generation."""
    async with bench(system).changing() as rotation:
        await rotation.compromise(generation, APPROVED, datetime.now(UTC))


async def destroy_fingerprint(system: System, version: int) -> None:
    """Two officers destroy an old version of the card index."""
    async with bench(system).changing() as rotation:
        await rotation.destroy("fingerprint", version, APPROVED, timedelta(), datetime.now(UTC))


async def start(system: System, *arguments: str) -> Process:
    """Run a command beside others."""
    return await asyncio.create_subprocess_exec(
        str(BIN / arguments[0]),
        *arguments[1:],
        env={"PATH": os.environ["PATH"], "GATEWAY_HOME": str(system.home)},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )


async def run(system: System, *arguments: str) -> str:
    """What a command printed that ran beside others; it must have succeeded, and told nothing else."""
    process = await start(system, *arguments)
    printed, told = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert told == b""
    return printed.decode()


@asynccontextmanager
async def traffic(client: Client, pages: int = 3) -> AsyncIterator[list[tuple[str, str, str]]]:
    """Pages that tokenize and charge; every request must succeed. Gives (card, token, fingerprint) of each token."""
    made: list[tuple[str, str, str]] = []
    done = asyncio.Event()

    async def page(number: int) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            key, card = f"page-{number}-{turn}", canary(CARDS[turn % len(CARDS)])
            token = await client.call("POST", "/v1/tokens", token_body(card), key=key)
            assert token.status == 201, token.body
            made.append((card, token.json["id"], token.json["card"]["fingerprint"]))
            body = charge_body(token=token.json["id"], details={"turn": turn})
            if turn % 3 == 0:
                body = charge_body(name="Ada Resident", card=token_body(card)["card"], details={"turn": turn})
            charge = await client.call("POST", "/v1/charges", body, key=key)
            assert charge.status == 201, charge.body

    tasks = [asyncio.create_task(page(number)) for number in range(pages)]
    try:
        yield made
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def sealed(sql: asyncpg.Connection) -> dict[str, tuple[str, bytes]]:
    """Department and sealed bytes of every record."""
    rows = await sql.fetch(
        "SELECT token_id AS id, department_id, sealed FROM gateway.tokens WHERE sealed IS NOT NULL UNION ALL"
        " SELECT charge_id, department_id, sealed FROM gateway.charges WHERE sealed IS NOT NULL"
    )
    return {row["id"]: (row["department_id"], row["sealed"]) for row in rows}


async def wraps(sql: asyncpg.Connection) -> dict[str, WrappedDek]:
    """Every wrapped data key."""
    rows = await sql.fetch("SELECT record_id, generation, wrapped FROM gateway.deks")
    return {row["record_id"]: WrappedDek(row["generation"], row["wrapped"]) for row in rows}


def opened(ring: Ring, held: dict[str, WrappedDek], records: dict[str, tuple[str, bytes]]) -> set[str]:
    """What somebody opens who has a ring, wraps and records."""
    found = set()
    for record_id, (department, content) in records.items():
        place = Place(ring.environment, department, record_id)
        for field_set in (CARD, DETAILS) if record_id in held else ():
            try:
                unseal(ring.unwrap(place, held[record_id], datetime.now(UTC)), place, field_set, content)
                found.add(record_id)
            except KeysError:
                continue
    return found


async def many_tokens(client: Client, count: int) -> list[str]:
    """Tokens of as many different cards."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> str:
        async with turn:
            reply = await client.call("POST", "/v1/tokens", token_body(canary(69_100 + number)))
            return str(reply.json["id"])

    return await asyncio.gather(*(one(number) for number in range(count)))


async def every_token_charges(client: Client, tokens: Iterable[str]) -> None:
    """None was lost."""
    assert await charge_all(client, list(tokens)) == []


async def test_compromise_under_traffic_with_kills(own_system: System, sql: asyncpg.Connection) -> None:
    """With pages at work and the run killed again and again, in the end who held every old key opens nothing."""
    random.seed(seed := 20261122)
    print(f"seed {seed}")
    async with Client(own_system, "parks") as client:
        tokens = await many_tokens(client, TOKENS)
        async with traffic(client) as made:
            await asyncio.sleep(1)
            stolen = ring_of(own_system)
            await compromise(own_system, 1)
            held, before = await wraps(sql), await sealed(sql)
            exposed = {record for record, wrap in held.items() if wrap.generation == 1}
            assert opened(stolen, held, before) == exposed & set(before)
            assert len(exposed) > TOKENS
            left = len(exposed)
            for _ in range(KILLS):
                process = await start(own_system, *RESEAL_SLOWLY)
                before_it = left
                while left == before_it:
                    await asyncio.sleep(0.01)
                    left = await sql.fetchval("SELECT count(*) FROM gateway.deks WHERE generation = 1")
                await asyncio.sleep(random.uniform(0.0, 0.3))  # noqa: S311 - a seeded schedule
                process.send_signal(signal.SIGKILL)
                assert await process.wait() == -signal.SIGKILL
            left = await sql.fetchval("SELECT count(*) FROM gateway.deks WHERE generation = 1")
            assert left > 0
            runs = (run(own_system, "gateway", "reseal", "--json", "--page", "10") for _ in "12")
            reports = [json.loads(printed) for printed in await asyncio.gather(*runs)]
            assert sum(report["tokens"] + report["charges"] for report in reports) >= left
        after = await sealed(sql)
        assert set(before) <= set(after)
        assert opened(stolen, held, after) & exposed == set()
        assert opened(stolen, await wraps(sql), after) == set()
        assert opened(ring_of(own_system), await wraps(sql), after) == set(after)
        assert await sql.fetchval("SELECT min(first_generation) FROM gateway.deks") == 2
        assert json.loads(own_system.command("keys", "verify", "--json"))["failed"] == 0
        told = await sql.fetch(
            "SELECT subject FROM audit.events WHERE event IN ('card.resealed', 'details.resealed')"
        )
        assert sorted(row["subject"] for row in told) == sorted(exposed & set(after))
        await every_token_charges(client, [*tokens, *(token for _, token, _ in made)])


async def test_a_card_keeps_its_fingerprint_throughout(own_system: System, sql: asyncpg.Connection) -> None:
    """Before, while and after the key is rotated, the index built and the old one destroyed: one id a card."""
    async with Client(own_system, "parks") as client:
        async with traffic(client) as made:
            await asyncio.sleep(1)
            await run(own_system, "keys", "rotate-fingerprint")
            await asyncio.sleep(0.5)
            first = await start(own_system, "gateway", "reseal", "--page", "2", "--rate", "20")
            await asyncio.sleep(1.2)
            first.send_signal(signal.SIGKILL)
            await first.wait()
            await asyncio.gather(*(run(own_system, "gateway", "reseal", "--page", "3") for _ in "12"))
            await destroy_fingerprint(own_system, 1)
            report = json.loads(await run(own_system, "gateway", "reseal", "--json"))
            assert report["rows_deleted"] >= len(CARDS)
            await asyncio.sleep(0.5)
        ids = {card: {fingerprint for other, _, fingerprint in made if other == card} for card, _, _ in made}
        assert {card: len(found) for card, found in ids.items()} == {canary(card): 1 for card in CARDS}
        assert len(set.union(*ids.values())) == len(CARDS)
        indexed = await sql.fetch("SELECT DISTINCT key_version FROM gateway.fingerprints")
        assert [row["key_version"] for row in indexed] == [2]
        parts = await sql.fetch(
            "SELECT DISTINCT card_key_version FROM gateway.idempotency WHERE card_part IS NOT NULL"
        )
        assert [row["card_key_version"] for row in parts] == [2]
        for number in (0, 1):
            again = await client.call("POST", "/v1/tokens", token_body(made[0][0]), key=f"page-{number}-1")
            assert again.status == 201
            other = await client.call("POST", "/v1/tokens", token_body(canary(69_090)), key=f"page-{number}-1")
            assert (other.status, other.problem) == (422, "idempotency-key-reused")


async def test_beside_rewrap_and_erasures(own_system: System, sql: asyncpg.Connection) -> None:
    """A rewrap, two reseals, erasures and pages at once: all end well, and nothing of what was erased is left."""
    async with Client(own_system, "parks") as client, traffic(client, pages=1) as made:
        tokens = [
            (await client.call("POST", "/v1/tokens", token_body(canary(69_100 + n)))).json["id"] for n in range(60)
        ]
        for act in ("rotate", "rewrap", "rotate", "rotate-fingerprint"):
            await run(own_system, "keys", act)
        await compromise(own_system, 1)
        works = [
            asyncio.create_task(run(own_system, *work))
            for work in (RESEAL_SLOWLY, RESEAL_SLOWLY, ("keys", "rewrap", "--page", "5", "--rate", "60"))
        ]
        await asyncio.sleep(0.8)
        for token in tokens[::2]:
            assert (await client.call("DELETE", f"/v1/tokens/{token}")).status == 200
        await asyncio.gather(*works)
        await run(own_system, "gateway", "reseal")
        await every_token_charges(client, tokens[1::2])
        erased = tokens[::2]
        left = "SELECT (SELECT count(*) FROM gateway.deks WHERE record_id = ANY($1)) + (SELECT count(*) FROM"
        left += " gateway.tokens WHERE token_id = ANY($1) AND (sealed IS NOT NULL OR fingerprint_id IS NOT NULL))"
        assert await sql.fetchval(left, erased) == 0
        known = await sql.fetchval("SELECT count(DISTINCT fingerprint_id) FROM gateway.fingerprints")
        assert known <= len(CARDS) + len(tokens) // 2 + 1
        assert made
    exposed = "SELECT count(*) FROM gateway.deks WHERE 1 BETWEEN first_generation AND generation"
    assert await sql.fetchval(exposed) == 0
    own_system.command("keys", "verify")


async def test_the_command_and_its_manners(own_system: System, sql: asyncpg.Connection) -> None:
    """Help with an example, a dry run that changes nothing, JSON, a quiet pipe, and one line for each refusal."""
    assert "Example: keys rotate-fingerprint && gateway reseal" in own_system.command("gateway", "reseal", "--help")
    idle = json.loads(own_system.command("gateway", "reseal", "--json"))
    assert (idle["tokens"], idle["charges"], idle["cards"], idle["claims"], idle["broken"]) == (0, 0, 0, 0, 0)
    async with Client(own_system, "parks") as client:
        tokens = [
            (await client.call("POST", "/v1/tokens", token_body(canary(69_200 + n)), key=f"k-{n}")).json["id"]
            for n in range(10)
        ]
    await compromise(own_system, 1)
    own_system.command("keys", "rotate-fingerprint")
    events = await sql.fetchval("SELECT count(*) FROM audit.events")
    wrapped = await wraps(sql)
    shown = json.loads(own_system.command("gateway", "reseal", "--dry-run", "--json"))
    assert shown["tokens"] >= 10
    assert shown["cards"] >= 10
    assert shown["claims"] >= 10
    assert shown["seconds"] > 0
    assert "would be done, in about 0:00:0" in own_system.command("gateway", "reseal", "--dry-run")
    assert await wraps(sql) == wrapped
    assert await sql.fetchval("SELECT count(*) FROM audit.events") == events

    version = await sql.fetchval("UPDATE gateway.key_manifest SET version = version - 1 RETURNING version")
    refused = own_system.command("gateway", "reseal", code=1)
    assert "an interrupted `keys rotate-fingerprint` is not finished: run it again first" in refused
    await sql.execute("UPDATE gateway.key_manifest SET version = 99")
    refused = own_system.command("gateway", "reseal", code=1)
    assert "is older than 99" in refused
    assert len(refused.splitlines()) == 1
    incident = "SELECT count(*) FROM audit.events WHERE event = 'manifest.rolled_back' AND process = $1"
    assert await sql.fetchval(incident, "reseal") == 1
    async with asyncio.timeout(10):  # the api process tells it, too, and tells it once
        while not await sql.fetchval(incident, "api"):
            await asyncio.sleep(0.1)
    await asyncio.sleep(2.5)
    assert await sql.fetchval(incident, "api") == 1
    await sql.execute("UPDATE gateway.key_manifest SET version = $1", version + 1)

    await sql.execute("UPDATE gateway.tokens SET sealed = sealed || '\\x00'::bytea WHERE token_id = $1", tokens[0])
    failed = own_system.command("gateway", "reseal", code=1)
    assert "1 records do not open" in failed
    assert len(failed.splitlines()) == 1
    done = "SELECT count(*) FROM audit.events WHERE event = 'records.resealed' AND outcome = 'failed'"
    assert await sql.fetchval(done) == 1
    async with Client(own_system, "parks") as client:
        await every_token_charges(client, tokens[1:])
