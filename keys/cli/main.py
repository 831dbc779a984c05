"""Entry point of `keys`: all commands, and the exit codes."""

import os
import sys
from contextlib import suppress
from typing import NoReturn

import typer

from keys.cli import acting, ceremonies, copies, looking, people, rotating
from keys.cli.actors import ACTORS, require_declared
from keys.errors import KeysError
from keys.memory import forbid_dumps

app = typer.Typer(
    help="Run the key hierarchy: root key, KEK generations, the data keys they wrap. Read deploy/RUNBOOK.md first.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (looking, rotating, acting, people, ceremonies, copies):
    app.registered_commands += group.commands.registered_commands
    app.registered_groups += group.commands.registered_groups


def main() -> None:
    """Exit codes: 0 done, 1 refused or failed, 2 wrong usage."""
    forbid_dumps()
    try:
        require_declared(app, ACTORS)
        app(prog_name="keys")
    except KeysError as error:
        _fail(str(error))
    except OSError as error:  # of a full disk behind our own output, say; the database's have a line of their own
        about = f"{error.filename}: " if error.filename else ""
        _fail(f"{about}{error.strerror or type(error).__name__}; `keys status` says what is done")


def _fail(line: str) -> NoReturn:
    typer.echo(f"keys: {line}", err=True)
    with suppress(OSError, ValueError):
        # What is left in the buffer goes nowhere either: Python 3.11.2 would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
