"""The commands of `gateway` that need no server: what they print, and with which code they end."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import main
from gateway.rules.lifecycle import diagram
from keys.cli.actors import command_names
from tests.gateway.test_config import MINIMAL
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
