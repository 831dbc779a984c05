"""What every process does, whatever it serves: a socket, a pool, looks that repeat, an end."""

import asyncio
import ctypes
import gc
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from structlog.typing import FilteringBoundLogger

from gateway.store.database import STATEMENT_TIMEOUT_S, Database
from keys.database import connect_arguments, driver_errors
from keys.errors import SettingsRefused
from keys.settings import DatabaseSection

BACKLOG = 512
LOOK_EVERY_S = 1.0
PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """No core file of this process, and no other process of its user may read its memory; root still may."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def listen(host: str, port: int, setting: str) -> socket.socket:
    """A bound and listening socket; a busy port is one clear line (`SettingsRefused`)."""
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except (OSError, OverflowError) as error:  # the latter of a port above 65535
        reason = getattr(error, "strerror", None) or "there is no such port"
        raise SettingsRefused(f"{setting}: cannot listen on {host}:{port} ({reason}); choose another") from None


def settle() -> None:
    """What is there now will stay: the collector of cycles need not look at it again, nor look as often.

    Requests leave few cycles behind. A process that has just started holds half a million objects for ever, and going
    over them costs a tenth of what requests cost.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@asynccontextmanager
async def open_database(
    settings: DatabaseSection,
    process: str,
    secrets: Path,
    pool_max: int | None = None,
    statement_timeout_s: float = STATEMENT_TIMEOUT_S,
) -> AsyncIterator[Database]:
    """The pool of one process, as large as the settings say unless its work says otherwise."""
    connect = connect_arguments(settings, process, secrets)
    async with driver_errors():
        database = await Database.open(
            connect, pool_max or settings.pool_max, statement_timeout_s=statement_timeout_s
        )
    try:
        yield database
    finally:
        await database.close()


async def follow(log: FilteringBoundLogger, *looks: Callable[[], Awaitable[object]]) -> None:
    """Look again every second, so that no request has to."""
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        for look in looks:
            try:
                await look()
            except Exception as error:  # noqa: BLE001 - whatever it was, look again in a second
                log.warning("look.failed", error=type(error).__name__)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Stop what runs for ever; what it was in the middle of is found by whoever looks next."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def stop_asked() -> asyncio.Event:
    """Is set when the process is asked to stop."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


async def stop_signal() -> None:
    """Returns when the process is asked to stop."""
    await stop_asked().wait()
