"""How this product connects to PostgreSQL, and on which terms.

A role of its own a process, its password in a file of its own; TLS with verification unless the server is on
this machine (asyncpg's own default would fall back to plain text); settings that lose data are refused. A
driver's message may quote values, so none is ever passed on: only the SQLSTATE is.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from keys.errors import DatabaseRefused, SettingsRefused
from keys.files import read_private_line
from keys.settings import DatabaseSection

Connection = asyncpg.Connection | PoolConnectionProxy
"""Opened for a command, or borrowed from a pool."""

CONNECT_TIMEOUT_S = 10.0
PORT = 5432
DSN_FORM = "database.dsn must be `postgresql://host[:port]/database`"

MUST_BE_ON = ("fsync", "full_page_writes")
DURABLE_COMMIT = frozenset({"on", "local", "remote_write", "remote_apply"})


def connect_arguments(settings: DatabaseSection, process: str, secrets_directory: Path) -> dict[str, Any]:
    """What `asyncpg.connect` and `asyncpg.create_pool` need to sign in as `gateway_<process>`."""
    host, port, name = _dsn(settings.dsn)
    password = read_private_line(secrets_directory / process / "database.password")
    return {
        "host": host,
        "port": port,
        "database": name,
        "user": f"gateway_{process}",
        "password": password.reveal(),
        "ssl": _tls(host, settings.ca),
        "timeout": CONNECT_TIMEOUT_S,
        "server_settings": {"application_name": f"gateway {process}"},
    }


@asynccontextmanager
async def driver_errors() -> AsyncIterator[None]:
    """Turn the driver's errors into `DatabaseRefused` without their text, which may quote values.

    Around the making of a connection; where there is one, `query_errors` leaves errors of our own files alone.
    """
    try:
        async with query_errors():
            yield
    except OSError as error:
        raise _unreachable(error) from None


@asynccontextmanager
async def query_errors() -> AsyncIterator[None]:
    """The same around work with a connection that stands: other errors of the system than its loss pass."""
    try:
        yield
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError):
        raise DatabaseRefused("the database's schema is not of this release: run `gateway migrate`") from None
    except asyncpg.PostgresError as error:
        raise DatabaseRefused(f"the database refused (SQLSTATE {error.sqlstate})") from None
    except (TimeoutError, ConnectionResetError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise _unreachable(error) from None


def _unreachable(error: Exception) -> DatabaseRefused:
    return DatabaseRefused(
        f"the database cannot be reached ({type(error).__name__}): is it up, and is database.dsn right?"
    )


@asynccontextmanager
async def connection(
    settings: DatabaseSection, process: str, secrets_directory: Path
) -> AsyncIterator[asyncpg.Connection]:
    """One connection, for a command that runs and ends."""
    async with driver_errors():
        connected = await asyncpg.connect(**connect_arguments(settings, process, secrets_directory))
    try:
        yield connected
    finally:
        await connected.close(timeout=CONNECT_TIMEOUT_S)


async def require_durable(connected: Connection) -> None:
    """Refuse a server that may lose what it acknowledged; raises `DatabaseRefused`."""
    for name in MUST_BE_ON:
        if await connected.fetchval("SELECT current_setting($1)", name) != "on":
            raise DatabaseRefused(f"the server runs with {name}=off and may lose data: set {name}=on")
    commit = await connected.fetchval("SELECT current_setting('synchronous_commit')")
    if commit not in DURABLE_COMMIT:
        raise DatabaseRefused("the server runs with synchronous_commit=off and may lose data: set it to on")
    if await connected.fetchval("SELECT pg_is_in_recovery()"):
        raise DatabaseRefused("the server is a standby: name the primary in database.dsn")


def _dsn(dsn: str) -> tuple[str, int, str]:
    try:
        parts = urlsplit(dsn)
        port = parts.port or PORT
    except ValueError:  # its text quotes what stands in the place of the port, which may be half a password
        raise SettingsRefused(DSN_FORM) from None
    if parts.scheme not in {"postgresql", "postgres"} or not parts.hostname or parts.path in {"", "/"}:
        raise SettingsRefused(DSN_FORM)
    if parts.username is not None or parts.query or parts.fragment or "@" in parts.path:
        raise SettingsRefused(
            "database.dsn must not carry a user, a password or options: roles and password files are fixed"
        )
    return parts.hostname, port, parts.path[1:]


def _tls(host: str, ca: str | None) -> ssl.SSLContext | bool:
    if ca is None:
        return False if _is_local(host) else ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError:
        raise SettingsRefused(f"database.ca: {ca} must be a readable file of PEM certificates") from None


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
