"""Configuration: one TOML file, each value overridable by `GATEWAY_SECTION_NAME`, secrets only by file path.

A section is a struct whose types say what is allowed. A doubt stops the start with one line that names the key, where
its value came from, and what is allowed; it never shows the value.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from keys.errors import SettingsRefused

Department = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,30}\Z")]
AbsolutePath = Annotated[str, msgspec.Meta(pattern=r"^/")]
Environment = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,30}\Z")]


class KeysSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[keys]`: where the root, the key store and the processes' own secrets lie."""

    root: str
    store: str
    secrets: AbsolutePath
    recovery_days: Annotated[int, msgspec.Meta(ge=0, le=3650)] = 35
    """How long a backup of the database may still be restored: a generation is destroyed after that only."""


class DatabaseSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[database]`: which PostgreSQL. Each process signs in as a role of its own, its password in a file."""

    dsn: str
    ca: AbsolutePath | None = None
    directory: AbsolutePath | None = None
    """The server's data directory, when it lies on this machine: the key store must not be inside it."""
    pool_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


class Settings(msgspec.Struct, frozen=True):
    """What the `keys` commands read of the file."""

    environment: Environment
    keys: KeysSection
    database: DatabaseSection


NEAR_SECRETS = frozenset({"keys", "database", "oidc"})
"""Sections in whose environment variables somebody might put a secret."""

S = TypeVar("S", bound=msgspec.Struct)


def home() -> Path:
    """`$GATEWAY_HOME`, where the demo keeps everything; `.gateway` without it."""
    return Path(os.environ.get("GATEWAY_HOME") or ".gateway").absolute()


def settings_path(given: str | None) -> Path:
    """`--config`, else `GATEWAY_CONFIG`, else the demo's file."""
    return Path(given or os.environ.get("GATEWAY_CONFIG") or home() / "gateway.toml")


def load(path: Path, kind: type[S], environ: Mapping[str, str]) -> S:
    """Read and check the settings; raises `SettingsRefused`."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SettingsRefused(
            f"{path} cannot be read: start the demo with ./deploy/run, or name a file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        line = str(error).rpartition("(at ")[2].rstrip(")")
        raise SettingsRefused(f"{path} is not TOML ({line})") from None
    origin = {name: str(path) for name in raw}
    for field in msgspec.structs.fields(kind):
        _override(raw, field.name, field.type, environ, origin)
    _require_known(kind, environ)
    try:
        return msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError as error:
        # msgspec names the place and what is allowed; it quotes no value but the name of an unknown field.
        reason, _, place = str(error).partition(" - at `$")
        key = place.rstrip("`").lstrip(".")
        raise SettingsRefused(f"{key or 'the file'}: {reason} (from {origin.get(key, path)})") from None


def _require_known(kind: type[msgspec.Struct], environ: Mapping[str, str]) -> None:
    """Refuse what looks like a setting and is none: a misspelt name, or a secret in the environment."""
    for field in msgspec.structs.fields(kind):
        section = _section(field.type)
        if field.name not in NEAR_SECRETS or section is None:
            continue
        prefix = f"GATEWAY_{field.name}_".upper()
        known = {prefix + setting.upper() for setting in section.__struct_fields__}
        for name in sorted(environ):
            if name.startswith(prefix) and name not in known:
                raise SettingsRefused(
                    f"{name} is no setting; keys and passphrases are never taken from the environment"
                )


def _section(kind: object) -> type[msgspec.Struct] | None:
    """The struct of a section, also of one that may be missing."""
    kinds = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    return kinds[0] if kinds else None


def _override(
    raw: dict[str, Any], name: str, kind: object, environ: Mapping[str, str], origin: dict[str, str]
) -> None:
    section_kind = _section(kind)
    if section_kind is None:
        variable = f"GATEWAY_{name.upper()}"
        if variable in environ:
            raw[name], origin[name] = environ[variable], variable
        return
    for field in msgspec.structs.fields(section_kind):
        variable = f"GATEWAY_{name}_{field.name}".upper()
        # What is no section is left for the check to refuse.
        if variable in environ and isinstance(section := raw.setdefault(name, {}), dict):
            section[field.name], origin[f"{name}.{field.name}"] = environ[variable], variable
