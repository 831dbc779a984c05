"""The command line as far as it goes without a database: usage, configuration, and who is asked for a passphrase."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from keys import cli, root_file
from keys.errors import RootRefused
from keys.files import write_private
from keys.keystore import Keystore
from keys.manifest import Manifest
from keys.primitives import new_key
from keys.ring import State
from keys.root_file import FileRoot

CANARY = "Hunter2 Tr0ub4dor&3"
COMMANDS = ("init", "status", "verify")


@dataclass(frozen=True)
class Ran:
    """What a person sees of a command."""

    code: int
    output: str
    errors: str


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `keys` with these arguments, in an empty home, with nobody at a terminal."""
    monkeypatch.setenv("GATEWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("an answer that nobody waits for\n"))

    def run_keys(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["keys", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, shown.out, shown.err)

    return run_keys


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
    assert f"Example: keys {command}" in ran.output
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
    ran = run(command)

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == (
        f"keys: {tmp_path}/home/gateway.toml cannot be read: start the demo with ./deploy/run,"
        " or name a file with --config\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_doubtful_settings(run: Run, config: Path, command: str) -> None:
    """A doubtful value stops every command with the key and the file, and is not shown."""
    config.write_text(config.read_text().replace('environment = "demo"', f'environment = "{CANARY}"'))
    ran = run(command, "--config", str(config))

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
    ran = run(command, "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors.endswith("must lie apart: move the key store\n")


@pytest.mark.parametrize("command", ["status", "verify"])
def test_nobody_to_ask(run: Run, config: Path, command: str) -> None:
    """Without a passphrase file and without a terminal nobody is waited for: the refusal names both ways on."""
    ran = run(command, "--config", str(config))

    assert (ran.code, ran.output) == (1, "")
    assert ran.errors == (
        "keys: the passphrase of the root key is needed: name a passphrase_file in keys.root,"
        " or run this at a terminal\n"
    )


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
    monkeypatch.setattr(cli, "getpass", lambda prompt: CANARY if prompt == "passphrase: " else "")

    assert cli.ask("passphrase").reveal() == CANARY


# --- what the commands are made of ---


def test_the_root_of_an_interrupted_start_is_used_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root key that an earlier `keys init` made is opened by the next one, and not made anew."""
    monkeypatch.setattr(root_file, "OPERATIONS", 1)
    monkeypatch.setattr(root_file, "MEMORY_KIB", 8)
    write_private(tmp_path / "passphrase", b"correct horse battery staple", replace=False)
    key = f"file:{tmp_path}/root.key"
    config.write_text(config.read_text().replace(key, f"{key}?passphrase_file={tmp_path}/passphrase"))
    bench = cli._bench(str(config))

    wrapped = cli._root_for_init(bench).wrap(new_key(), b"")
    before = (tmp_path / "root.key").read_bytes()
    cli._root_for_init(bench).unwrap(wrapped, b"")
    assert (tmp_path / "root.key").read_bytes() == before

    write_private(tmp_path / "passphrase", b"another passphrase", replace=True)
    with pytest.raises(RootRefused, match="the passphrase does not open"):
        cli._root_for_init(bench)


@pytest.mark.parametrize(("days", "due"), [(31, 0), (30, 1), (0, 1), (-1, 1)])
def test_what_is_due(store: Keystore, root: FileRoot, now: datetime, days: int, due: int) -> None:
    """A key that may protect nothing new within thirty days, or any more, is named with its date."""
    manifest = store.manifest(root)
    (kek,) = manifest.of("kek")
    told = cli._due(manifest, kek.originate_until - timedelta(days=days))

    assert len(told) == due * len(manifest.keys)
    if due:
        assert f"{kek.id} (kek 1) protects nothing new after {kek.originate_until:%Y-%m-%d}." in told


def test_only_active_keys_are_due(store: Keystore, root: FileRoot) -> None:
    """A key that protects nothing new anyway is not due."""
    manifest: Manifest = store.manifest(root)
    retired = tuple(msgspec.structs.replace(key, state=State.RETIRED) for key in manifest.keys)

    assert cli._due(msgspec.structs.replace(manifest, keys=retired), manifest.keys[0].originate_until) == []
