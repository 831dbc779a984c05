"""What all commands share: where the settings are, and how answers are printed."""

import os
from typing import Annotated

import typer

from gateway.config import Config
from keys.errors import SettingsRefused
from keys.settings import load, settings_path

OWNER = "owner"
"""The role that owns the schema: administrators' commands connect as it."""

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="The TOML file; else $GATEWAY_CONFIG, else the demo's.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def config_of(given: str | None) -> Config:
    """The settings; raises `SettingsRefused`."""
    if not __debug__:
        raise SettingsRefused("assertions guard this program: do not run it with python -O")
    return load(settings_path(given), Config, os.environ)
