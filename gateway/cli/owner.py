"""The schema's owner at work: what administrators change, each change with its audit row in the same transaction.

The actor is the operating system's user, whom the machine knows; the pen is the owner's own.
"""

import os
import pwd
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncpg

from gateway.cli.options import OWNER
from gateway.clock import SystemClock
from gateway.config import Config
from gateway.errors import GrantRefused
from gateway.rules.card import Brands
from keys.audit import CITY, AuditEvent, AuditPen, Outcome, audit_values
from keys.database import connection, query_errors
from keys.process_keys import read_process_keys
from keys.queries import load_queries

LINE_MAX = 200


@dataclass(frozen=True, slots=True)
class Owner:
    """A transaction of the owner's, and the pen for its audit rows."""

    connection: asyncpg.Connection
    pen: AuditPen

    async def note(
        self,
        event: str,
        subject: str = "",
        *,
        department: str = CITY,
        reason: str = "",
        actor: str | None = None,
        request_id: str = "",
    ) -> None:
        """Write the audit row of what this transaction does."""
        told = AuditEvent(department, event, Outcome.DONE, actor or system_user(), subject, reason, request_id)
        row = self.pen.row(told, SystemClock().now())
        await self.connection.execute(load_queries("gateway.store", "mirror.sql").insert_audit, *audit_values(row))


@asynccontextmanager
async def as_owner(
    config: Config, isolation: Literal["read_committed", "repeatable_read"] = "read_committed"
) -> AsyncIterator[Owner]:
    """One transaction as the owner: all of it, audit rows included, or nothing."""
    secrets = Path(config.keys.secrets)
    pen = AuditPen(OWNER, read_process_keys(secrets, OWNER, "audit-mac"))
    async with (
        connection(config.database, OWNER, secrets) as connected,
        query_errors(),
        connected.transaction(isolation=isolation),
    ):
        yield Owner(connected, pen)


def system_user() -> str:
    """`os:<name>`, of the user whose process this is: no environment variable has a say."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, say
        name = str(os.getuid())
    return "os:" + re.sub(r"[^a-z0-9._-]", "_", name.lower())


def require_line(what: str, text: str) -> None:
    """Raises `GrantRefused` or `CardNumberInText` for what cannot be kept as one line of plain text."""
    if not text.strip() or not text.isprintable() or len(text) > LINE_MAX:
        raise GrantRefused(f"{what} is a line of at most {LINE_MAX} printable characters")
    Brands.load().require_none(f"/{what}", text)
