"""`keys` as a person runs it, within the process of the tests: arguments in; exit code and two streams out."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest

from keys import roots
from keys.cli import main
from keys.files import write_private
from keys.keystore import Keystore
from keys.secret import Secret
from tests.gateway.store.postgres import Postgres
from tests.keys.database import City


@dataclass(frozen=True)
class Ran:
    """What a person sees of a command."""

    code: int
    output: str
    errors: str


Run = Callable[..., Ran]
RunAsync = Callable[..., Awaitable[Ran]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `keys` with these arguments, in an empty home, with nobody at a terminal."""
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("an answer that nobody waits for\n"))

    def run_keys(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            main.main()
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, shown.out, shown.err)

    return run_keys


@pytest.fixture
def run_async(run: Run) -> RunAsync:
    """The same for a test that has an event loop of its own."""

    async def run_keys(*arguments: str) -> Ran:
        return await asyncio.to_thread(run, *arguments)

    return run_keys


@pytest.fixture
def root_uri(tmp_path: Path, cheap_passphrases: None) -> str:
    """Where the root key lies, and its passphrase."""
    write_private(tmp_path / "passphrase", b"correct horse battery staple", replace=False)
    return f"file:{tmp_path}/root.key?passphrase_file={tmp_path}/passphrase"


@pytest.fixture
def settings(tmp_path: Path, postgres: Postgres, owner: asyncpg.Connection, root_uri: str) -> str:
    """Settings of a city that has no keys yet, and an empty database."""
    return str(configure(tmp_path, postgres, root_uri))


@pytest.fixture
async def ready(
    settings: str,
    run_async: RunAsync,
    postgres: Postgres,
    tmp_path: Path,
    now: datetime,
    root_uri: str,
    owner: asyncpg.Connection,
) -> City:
    """A city that `keys init` has made, with six records."""
    ran = await run_async("init", "--config", settings)
    assert ran.code == 0

    def nobody(what: str) -> Secret[str]:
        raise AssertionError(what)

    root = roots.open_root(root_uri, nobody)
    store = Keystore(tmp_path / "keystore", "demo")
    city = City(postgres, owner, store, root, tmp_path / "secrets", now)  # type: ignore[arg-type] # a file's root
    await city.add_records(6)
    await owner.execute("DELETE FROM audit.events")
    return city


def configure(folder: Path, postgres: Postgres, root_uri: str) -> Path:
    """A configuration file for the city in this folder, and the password that `keys` signs in with."""
    password = folder / "secrets" / "keys" / "database.password"
    password.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    password.touch(mode=0o600)
    password.write_text(postgres.passwords["keys"].reveal())
    path, address = folder / "gateway.toml", postgres.address
    path.write_text(f"""
environment = "demo"
[keys]
root = "{root_uri}"
store = "file:{folder}/keystore"
secrets = "{folder}/secrets"
[database]
dsn = "postgresql://{address.host}:{address.port}/{address.database}"
directory = "{folder}/postgres"
""")
    return path
