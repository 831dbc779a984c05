"""The commands of `gateway` that need no server: what they print, and with which code they end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import main
from gateway.rules.lifecycle import diagram
from keys.cli.actors import command_names
from tests.gateway.test_config import MINIMAL
from tests.gateway.web.test_server import _issue
from tests.system import BIN


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command, whose standard input is no terminal."""
    command = [str(BIN / "gateway"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30, check=False)


def test_states_draws_the_life_of_money() -> None:
    """The whole diagram on standard output, as Mermaid reads it."""
    done = run("states")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == diagram() + "\n"


@pytest.mark.parametrize(
    "listing",
    ["nonsense", "[]", '{"data": [{}]}', '{"data": [{"reference": "pr_1", "amount": 1.5, "effects": 1}]}'],
)
def test_a_list_that_is_none_is_not_compared(tmp_path: Path, listing: str) -> None:
    """One line that says what is wanted, and exit code 1; the line repeats nothing of the file."""
    (tmp_path / "gateway.toml").write_text(MINIMAL)
    (tmp_path / "list.json").write_text(listing)
    done = run("compare", str(tmp_path / "list.json"), "--config", str(tmp_path / "gateway.toml"))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "is no list of movements" in line
    assert "1.5" not in line


@pytest.mark.parametrize("command", [*command_names(main.app)])
def test_help_has_an_example(command: str) -> None:
    """Every command says how it is used."""
    done = CliRunner().invoke(main.app, [*command.split(), "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert done.exit_code == 0
    assert f"gateway {command}" in done.output.partition("Example: ")[2]


SIGNALLED = """
import os, signal, sys
sys.argv = ["gateway", "{}"]
import gateway.cli
assert "gateway.cli.main" not in sys.modules
os.kill(os.getpid(), signal.SIGHUP)
"""


@pytest.mark.parametrize(("command", "status"), [("api", 0), ("import", -signal.SIGHUP)])
def test_a_reload_that_comes_too_early_ends_no_api(command: str, status: int) -> None:
    """SIGHUP before the commands are imported: the api goes on, what belongs to a terminal ends with it."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED.format(command)], timeout=30, check=False)
    assert done.returncode == status


@pytest.mark.parametrize(("command", "missing"), [("api", "cert"), ("admin", "key")])
def test_a_file_for_tls_that_is_missing_is_named(tmp_path: Path, command: str, missing: str) -> None:
    """One line with the setting, the path and what to do; as it is for a key that is another certificate's."""
    for name in ("ca", "mine", "other"):
        _issue(tmp_path, name, None)
    (tmp_path / f"mine.{'pem' if missing == 'cert' else 'key'}").unlink()
    files = f'cert = "{tmp_path}/mine.pem"\nkey = "{tmp_path}/mine.key"\n'
    settings = tmp_path / "gateway.toml"
    text = MINIMAL if command == "api" else MINIMAL + f"[admin]\n{files}"
    settings.write_text(text.replace('cert = "/tls/api.pem"\nkey = "/tls/api.key"\n', files))
    settings.chmod(0o600)
    told = run(command, "--config", str(settings))
    suffix = "pem" if missing == "cert" else "key"
    (tmp_path / f"mine.{suffix}").write_bytes((tmp_path / f"other.{suffix}").read_bytes())
    mixed = run(command, "--config", str(settings))

    assert (told.returncode, mixed.returncode) == (1, 1)
    assert told.stderr == (
        f"gateway: {command}.{missing}: cannot read {tmp_path}/mine.{suffix} (No such file or directory);"
        " put the PEM file there, or name another\n"
    )
    assert f"{command}.cert and {command}.key must be PEM" in mixed.stderr
    assert mixed.stderr.count("\n") == 1
