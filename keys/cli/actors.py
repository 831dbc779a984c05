"""On whose behalf each command acts, declared: a program does not start while one of its commands says nothing.

What is declared is the process whose secrets a command reads and as whose database role it signs in; the first of
several is the one that its audit rows name.
"""

from collections.abc import Iterator, Mapping

import typer
from typer.main import get_command_name

from keys.errors import UndeclaredCommand

Actors = tuple[str, ...]

NOBODY: Actors = ()
"""Of a command that reads no secret and asks no database."""

KEYS: Actors = ("keys",)
"""Whoever runs these holds the key store; some write the process keys of all processes, or the root."""

ACTORS: Mapping[str, Actors] = {
    **dict.fromkeys(("init", "status", "inventory", "verify", "rotate", "rotate-fingerprint", "rewrap"), KEYS),
    **dict.fromkeys(("retire", "destroy", "compromise", "approve", "backup", "restore"), KEYS),
    **dict.fromkeys(("officer add", "officer list", "officer remove", "officer acknowledge"), KEYS),
    **dict.fromkeys(("ceremony split", "ceremony replace", "ceremony unlock"), KEYS),
}


def require_declared(program: typer.Typer, declared: Mapping[str, Actors]) -> None:
    """Raises `UndeclaredCommand` when a command of the program, groups included, is not declared."""
    for name in command_names(program):
        if name not in declared:
            raise UndeclaredCommand(f"`{name}` does not say on whose behalf it acts, so that nothing starts")


def command_names(program: typer.Typer) -> Iterator[str]:
    """Every command, its groups before it: `init`, `officer add`."""
    for command in program.registered_commands:
        assert command.callback is not None, "internal error: a command is a function"
        yield command.name or get_command_name(command.callback.__name__)
    for group in program.registered_groups:
        assert group.typer_instance is not None, "internal error: a group holds commands"
        yield from (f"{group.name} {name}" for name in command_names(group.typer_instance))
