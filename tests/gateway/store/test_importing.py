"""`gateway import` as a city runs it: a process of its own, over TLS, killed and cut off, before a real database."""

import asyncio
import csv
import json
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.main import app
from gateway.errors import NotIdentified
from gateway.rules.access import Application
from gateway.rules.certificates import ClientCertificate
from keys.errors import KeysError
from tests.cards import canary
from tests.gateway.store.city import caller
from tests.gateway.store.door import opened
from tests.gateway.store.postgres import HOST
from tests.gateway.store.quarter import Quarter
from tests.gateway.store.test_bulk import SOON
from tests.gateway.web.test_server import _issue
from tests.system import BIN

pytestmark = pytest.mark.server

CARD_LIKE = re.compile(rb"[0-9]{13}")
"""No id, time or size in what is looked through has so many digits in a row."""


@dataclass
class Vault:
    """An older vault's list of cards, and the gateway that it is brought to."""

    city: Quarter
    folder: Path
    url: str
    port: int
    quota: int = 1_000_000
    heard: list[bytes] = field(default_factory=list)
    """All that any run has printed."""

    def write(self, name: str, *lines: str) -> Path:
        """A file of lines."""
        path = self.folder / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    def arguments(self, cards: Path, *more: str, url: str = "", key: str = "") -> list[str]:
        """What the command is called with."""
        secret = self.folder / "api.key"
        secret.write_text(key or self.city.department)
        secret.chmod(0o600)
        to = ["--url", url or self.url, "--ca", str(self.folder / "ca.pem"), "--api-key-file", str(secret)]
        return ["import", str(cards), *to, *more]

    async def start(self, cards: Path, *more: str, **where: str) -> Process:
        """A run of the command, begun."""
        command = [str(BIN / "gateway"), *self.arguments(cards, *more, **where)]
        environment = {"PATH": os.environ["PATH"], "GATEWAY_HOME": str(self.folder)}
        return await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment
        )

    async def run(self, cards: Path, *more: str, code: int = 0, **where: str) -> str:
        """A run to its end, with this exit code; gives what it printed, or complained."""
        process = await self.start(cards, *more, **where)
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        self.heard += [out, err]
        assert process.returncode == code, (process.returncode, out, err)
        return (out or err).decode()

    async def run_here(self, cards: Path, *more: str, code: int = 0) -> str:
        """The same of a run that has nothing to send, without a process of its own."""
        done = await asyncio.to_thread(CliRunner().invoke, app, self.arguments(cards, *more))
        complaint = str(done.exception) if isinstance(done.exception, KeysError) else done.stderr
        self.heard += [done.stdout.encode(), complaint.encode()]
        assert done.exit_code == code, (done.exit_code, done.output, done.exception)
        return done.stdout or complaint

    def require_silence(self, *paths: Path) -> None:
        """No card number in what was printed or written."""
        for content in (*self.heard, *(path.read_bytes() for path in paths)):
            assert CARD_LIKE.search(content) is None

    async def tokens(self) -> list[str]:
        """All that the department has."""
        rows = await self.city.owner.fetch(
            "SELECT token_id FROM gateway.tokens WHERE department_id = $1", self.city.department
        )
        return sorted(row["token_id"] for row in rows)


@pytest.fixture
async def vault(quarter: Quarter, tmp_path: Path) -> AsyncIterator[Vault]:
    """A department, its API, and a folder with what a client of it needs."""
    _issue(tmp_path, "ca", None)
    _issue(tmp_path, "server", "ca")
    made: list[Vault] = []

    async def identify(authorization: str | None, _certificate: ClientCertificate | None) -> Application:
        if authorization != f"Bearer {quarter.department}":
            raise NotIdentified
        return replace(caller(quarter.department), requests_per_s_max=made[0].quota)

    async with opened(quarter, quarter.page(), identify, pki=tmp_path, limits=SOON) as door:
        made.append(Vault(quarter, tmp_path, door.url, int(door.url.rpartition(":")[2])))
        yield made[0]


def csv_lines(cards: Sequence[int]) -> list[str]:
    """A list with an id a card."""
    return ["id,number,expiry,name", *(f"res-{n},{canary(n)},12/31,Ramona Testholder" for n in cards)]


def rows(path: Path) -> list[dict[str, str]]:
    """A result of CSV."""
    with path.open() as file:
        return list(csv.DictReader(file))


async def test_killed_and_run_again_every_line_has_one_token(vault: Vault) -> None:
    """`kill -9` in the middle, a torn last line: the next run ends it, in order, and no card has two tokens."""
    cards = vault.write("cards.csv", *csv_lines(range(1_500)))
    result, told = vault.folder / "cards.csv.result.csv", vault.folder / "cards.csv.result.csv.import"
    vault.quota = 500
    process = await vault.start(cards)
    async with asyncio.timeout(30):
        while not result.exists() or result.read_bytes().count(b"\n") < 100:
            await asyncio.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    vault.heard += await process.communicate()
    done = result.read_bytes().count(b"\n") - 1
    with result.open("ab") as file:
        file.write(b"9,res-")
    vault.quota = 1_000_000
    report = json.loads(await vault.run(cards, "--json"))
    again = json.loads(await vault.run_here(cards, "--json"))

    assert 99 <= done < 1_500
    assert report == {"lines": 1_500, "tokens": 1_500, "failed": 0, "result": str(result)} | {
        "seconds": report["seconds"]
    }
    assert [(row["line"], row["id"]) for row in rows(result)] == [(str(n + 2), f"res-{n}") for n in range(1_500)]
    assert sorted(row["token"] for row in rows(result)) == await vault.tokens()
    assert again["tokens"] == 1_500
    assert {path.stat().st_mode & 0o777 for path in (result, told)} == {0o600}
    vault.require_silence(result, told)


async def test_a_line_that_is_wrong_is_told_by_its_number(vault: Vault) -> None:
    """Of CSV: what the gateway refuses, and what is no line; none of it is repeated, its neighbours are tokens.

    An id that a spreadsheet would take for a formula is none in the result.
    """
    number, good = canary(7), f"{canary(8)},12,2031,Ramona"
    lines = [
        f"1,{good}",
        f'2,"{number},12,2031,Ramona',
        f"3,{number},12,2031",
        f"4,{number},twelve,2031,Ramona",
        f"5,{number},12,2020,Ramona",
        f"{number},{number},12,2031,Ramona",
        f"7,{number},12,2031,{number}",
        "",
        f"=9,{good}",
    ]
    cards = vault.write("old.list", "id,number,exp_month,exp_year,name", *lines)
    report = json.loads(await vault.run(cards, "--format", "csv", "--usage", "single", "--json", code=1))
    result = Path(report["result"])
    told = [(row["line"], row["id"], row["type"].rpartition("/")[2]) for row in rows(result)]

    assert told == [
        ("2", "1", ""),
        ("3", "", "invalid-request"),
        ("4", "", "invalid-request"),
        ("5", "4", "invalid-request"),
        ("6", "5", "card-refused"),
        ("7", "", "card-number-in-text"),
        ("8", "7", "card-number-in-text"),
        ("9", "", "invalid-request"),
        ("10", "'=9", ""),
    ]
    assert (report["tokens"], report["failed"], len(await vault.tokens())) == (2, 7, 2)
    assert rows(result)[3]["detail"] == "The column `exp_month` must be 1 to 12."
    assert rows(result)[4]["detail"] == "The card has expired. (exp_month) (exp_year)"
    dry = json.loads(await vault.run_here(cards, "--format", "csv", "--dry-run", "--json", code=1))
    assert [each["line"] for each in dry["refused"]] == [3, 4, 5, 6, 7, 8, 9]
    assert "line 6: The card has expired." in await vault.run_here(cards, "--format", "csv", "--dry-run", code=1)
    assert len(await vault.tokens()) == 2
    vault.require_silence(result)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("aa/bb,R,", "The column `expiry` must be MM/YY or MM/YYYY."),
        ("13/2030,R,", "The column `expiry` must be MM/YY or MM/YYYY."),
        ("1230,R,", "The column `expiry` must be MM/YY or MM/YYYY."),
        ("12/2020,R,", "The card has expired. (expiry)"),
        ("12/31,,", "The column `name` must be 1 to 100 characters."),
        ("12/31,R,often", "The column `usage` must be single, multi or empty."),
    ],
)
def test_of_csv_it_is_told_by_columns(tmp_path: Path, fields: str, told: str) -> None:
    """What is expected of which column, and nothing of the JSON that a line becomes."""
    cards = tmp_path / "cards.csv"
    cards.write_text(f"number,expiry,name,usage\n{canary(1)},{fields}\n")
    done = CliRunner().invoke(app, ["import", str(cards), "--dry-run"])
    assert done.exit_code == 1
    assert done.stdout.startswith(f"line 2: {told}\n")


async def test_ndjson_is_what_the_api_takes(vault: Vault) -> None:
    """Details and consent go along, the id stays here; a line with a code, or a key of its own, fails alone.

    One that does not say its usage has that of --usage.
    """
    body: dict[str, Any] = {
        "name": "Ramona",
        "card": {"number": canary(1), "exp_month": 12, "exp_year": 2031},
        "usage": "multi",
    }
    lines = [
        body | {"id": 7, "details": {"street": "12 Main St"}, "consent": "on file"},
        body | {"card": body["card"] | {"cvc": "737"}},
        body | {"idempotency_key": "mine"},
        {name: value for name, value in body.items() if name != "usage"} | {"id": "last"},
    ]
    cards = vault.write("cards.ndjson", *map(json.dumps, lines))
    report = json.loads(await vault.run(cards, "--usage", "single", "--json", code=1))
    told = [json.loads(line) for line in Path(report["result"]).read_text().splitlines()]

    assert [(row["line"], row.get("id"), "token" in row) for row in told] == [
        *((1, "7", True), (2, None, False), (3, None, False), (4, "last", True))
    ]
    assert "POST /v1/tokens" in told[1]["detail"]
    usages = "SELECT usage FROM gateway.tokens WHERE department_id = $1 ORDER BY usage"
    found = await vault.city.owner.fetch(usages, vault.city.department)
    assert [row["usage"] for row in found] == ["multi", "single"]
    assert sorted(row["token"] for row in told if "token" in row) == await vault.tokens()
    vault.require_silence(Path(report["result"]))


async def test_who_is_turned_away_is_told_in_one_line(vault: Vault) -> None:
    """A wrong key, a gateway that --ca does not vouch for, nobody there: exit 1, one line, and no line is judged."""
    cards = vault.write("cards.csv", *csv_lines(range(3)))
    wrong = await vault.run(cards, key="gwk_wrong", code=1)
    _issue(vault.folder, "other", None)
    other = await vault.run(cards, "--ca", str(vault.folder / "other.pem"), code=1)
    nowhere = ("--result", str(vault.folder / "x"))
    gone = await vault.run(cards, *nowhere, url=f"https://{HOST}:1", code=1)  # and no line is bound to that address

    assert [text.count("\n") for text in (wrong, gone, other)] == [1, 1, 1]
    assert "refuses this API key" in wrong
    assert "certificate" in other
    assert f"nobody listens at {HOST}:1: start the gateway" in gone
    assert rows(vault.folder / "cards.csv.result.csv") == []
    vault.require_silence()


async def test_ctrl_c_says_how_it_goes_on(vault: Vault) -> None:
    """Exit 130, one line: where the answers are, and that the same command ends the work."""
    cards, result = vault.write("cards.csv", *csv_lines(range(500))), vault.folder / "cards.csv.result.csv"
    vault.quota = 50
    process = await vault.start(cards)
    async with asyncio.timeout(30):
        while not result.exists() or result.read_bytes().count(b"\n") < 10:
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    (line,) = err.decode().splitlines()
    assert f"{len(rows(result))} of 500 lines are answered, in {result}. The same command goes on" in line
    vault.heard += [out, err]
    vault.require_silence(result)


async def test_what_is_cut_goes_on(vault: Vault) -> None:
    """A line that breaks again and again, and once nobody listens: each attempt goes on where the last came to."""
    cards = vault.write("cards.csv", *csv_lines(range(400)))
    cuts = 0

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_max: int) -> None:
        with suppress(OSError):
            while bytes_max > 0 and (chunk := await reader.read(4_096)):
                writer.write(chunk)
                bytes_max -= len(chunk)
                await writer.drain()
        writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        cuts += 1
        far_reader, far_writer = await asyncio.open_connection(HOST, vault.port)
        bytes_max = 20_000 if cuts < 4 else 10_000_000
        await asyncio.gather(pump(reader, far_writer, 10_000_000), pump(far_reader, writer, bytes_max))

    proxy = await asyncio.start_server(serve, HOST, 0)
    port = proxy.sockets[0].getsockname()[1]
    process = await vault.start(cards, url=f"https://{HOST}:{port}")
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while cuts == 0:
            await asyncio.sleep(0.01)
        proxy.close()
        told = [await process.stderr.readline() for _ in range(2)]
        async with await asyncio.start_server(serve, HOST, port):
            out, err = await process.communicate()
    vault.heard += [out, *told, err]
    assert process.returncode == 0
    assert b"the connection was lost; trying again, for " in told[0]
    assert f"nobody listens at {HOST}:{port} any more; trying again, for ".encode() in told[1]
    assert cuts == 4
    assert sorted(row["token"] for row in rows(vault.folder / "cards.csv.result.csv")) == await vault.tokens()
    assert len(await vault.tokens()) == 400


async def test_a_corrected_file_is_another_import(vault: Vault) -> None:
    """Who removes the result alone and imports a changed file is told what to remove, not given the old tokens."""
    cards = vault.write("cards.csv", *csv_lines(range(2)))
    await vault.run(cards)
    (vault.folder / "cards.csv.result.csv").unlink()
    vault.write("cards.csv", *csv_lines(range(3)))
    told = await vault.run_here(cards, code=1)
    assert "cards.csv.result.csv and cards.csv.result.csv.import" in " ".join(told.split())
    (vault.folder / "cards.csv.result.csv").unlink()
    (vault.folder / "cards.csv.result.csv.import").unlink()
    await vault.run(cards)
    assert len(await vault.tokens()) == 2 + 3


async def test_what_is_no_file_and_what_is_no_key_are_refused(vault: Vault) -> None:
    """A pipe is read once only, a key with more behind it fits into no header, some names cannot be."""
    pipe, cards = vault.folder / "pipe.csv", vault.write("cards.csv", *csv_lines(range(2)))
    os.mkfifo(pipe)
    key = vault.folder / "windows.apikey"
    key.write_bytes(b"gwk_x\r\n")
    key.chmod(0o600)

    assert "not a pipe" in await vault.run_here(pipe, "--dry-run", code=2)
    assert "must hold the key" in await vault.run_here(cards, "--api-key-file", str(key), code=1)
    for url in ("https://:8443", "https://..:1", f"https://{'a' * 64}.city:1"):
        assert "--url" in await vault.run_here(cards, "--url", url, code=2)
    assert "--cert" in await vault.run_here(cards, "--key", str(key), code=2)
    vault.require_silence()


async def test_what_does_not_belong_together_is_refused(vault: Vault) -> None:
    """Another input for a result, a result of something else or edited, a header that is a card, a nameless form."""
    cards = vault.write("cards.csv", *csv_lines([]))
    assert "0 of 0 cards" in await vault.run_here(cards)
    vault.write("cards.csv.result.csv", "line,id,token,type,detail", "7,res-0,tok_x,,")
    assert "not as an import left it" in await vault.run_here(cards, code=1)
    vault.write("cards.csv.result.csv", "line,id,token,type,detail", "2,res-0,tok_x,,")
    vault.write("cards.csv", *csv_lines(range(3)))
    other = vault.write("notes.txt", "mine")
    bare = vault.write("bare.csv", *csv_lines(range(2))[1:])

    assert "is of another import" in await vault.run_here(cards, code=1)
    assert "not of an import" in await vault.run_here(cards, "--result", str(other), code=1)
    assert "must name the columns" in await vault.run_here(bare, code=1)
    assert "--format" in await vault.run_here(other, code=2)
    assert other.read_text() == "mine\n"
    vault.require_silence()
