"""On whose behalf commands act: both programs declare it for each of theirs, or do not start."""

import sys
from collections.abc import MutableMapping
from types import ModuleType
from typing import cast

import pytest
import typer

from gateway.cli import actors as of_gateway
from gateway.cli import main as gateway
from gateway.store.roles import PROCESSES
from keys.cli import actors as of_keys
from keys.cli import main as keys
from keys.cli.actors import Actors, command_names, require_declared
from keys.errors import UndeclaredCommand

PROGRAMS = {"gateway": (gateway, of_gateway.ACTORS), "keys": (keys, of_keys.ACTORS)}
COMMANDS = [(program, name) for program, (module, _) in PROGRAMS.items() for name in command_names(module.app)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_is_declared_and_nothing_else(program: str) -> None:
    """Declared is what there is, groups included, and each actor is a process of ours."""
    module, declared = PROGRAMS[program]
    assert sorted(declared) == sorted(command_names(module.app))
    assert {actor for actors in declared.values() for actor in actors} <= {*PROCESSES, "stub"}
    require_declared(module.app, declared)


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_without_one_declaration_nothing_starts(
    program: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever is missing, the program ends with one line that names it, even when something else was asked for."""
    module, declared = PROGRAMS[program]
    monkeypatch.delitem(cast("MutableMapping[str, Actors]", declared), command)
    told = start(module, program, monkeypatch, capsys)
    assert told == f"{program}: `{command}` does not say on whose behalf it acts, so that nothing starts\n"


def test_commands_without_a_name_and_groups_in_groups_are_seen() -> None:
    """A command is known by its function, and a group within a group by both names."""
    inner, outer, program = typer.Typer(), typer.Typer(), typer.Typer()

    @inner.command()
    def does_it() -> None: ...

    outer.add_typer(inner, name="inner")
    program.add_typer(outer, name="outer")
    assert list(command_names(program)) == ["outer inner does-it"]
    with pytest.raises(UndeclaredCommand):
        require_declared(program, {"does-it": of_keys.NOBODY})


def start(
    module: ModuleType, program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 1
    return capsys.readouterr().err
