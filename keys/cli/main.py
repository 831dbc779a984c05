"""Entry point of `keys`: all commands, and the exit codes."""

import sys

import typer

from keys.cli import acting, ceremonies, copies, looking, people, rotating
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
        app(prog_name="keys")
    except KeysError as error:
        typer.echo(f"keys: {error}", err=True)
        sys.exit(1)
