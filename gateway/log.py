"""Logs: one JSON line an event, made of typed fields from an allow-list.

A field that is not on the list is left out, and so is a value that is not of its type; text is short, printable
ASCII. So nothing that came with a request can get into a log, whoever calls it, and no line can be forged. What
other libraries log is reduced to logger, level and class of error: their messages may quote.
"""

import asyncio
import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import msgspec
import structlog

TEXT_MAX = 120
FRAMES_MAX = 16

FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "event": str,
    "level": str,
    "time": str,
    "process": str,
    "worker": int,
    "route": str,
    "status": int,
    "duration_ms": (int, float),
    "request_id": str,
    "application": str,
    "department": str,
    "staff": str,
    "error": str,
    "frames": list,
    "about": list,
    "reason": str,
    "sqlstate": str,
    "port": int,
    "version": int,
    "logger": str,
}
"""Everything that a log line may hold; data_inventory.toml gives each its class."""


def configure(
    process: str, stream: TextIO = sys.stdout, worker: int | None = None
) -> structlog.typing.FilteringBoundLogger:
    """Set logging up for a process, or for one of several of a kind; gives its logger."""
    own: dict[str, Any] = {"process": process} | ({} if worker is None else {"worker": worker})
    structlog.configure(
        processors=[
            partial(_named, own),
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            allow_listed,
            _rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Reduced(stream, own)], level=logging.WARNING, force=True)
    structlog.contextvars.clear_contextvars()
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def _named(
    own: Mapping[str, Any], _logger: object, method: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    entry.update(own, level=method)
    return entry


def _rendered(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> str:
    return msgspec.json.encode(entry, order="sorted").decode()


def allow_listed(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> dict[str, Any]:
    """A structlog processor: keeps what is on the list and of its type."""
    return {name: value for name, value in entry.items() if name in FIELDS and _is_allowed(value, FIELDS[name])}


def _is_allowed(value: object, kind: type | tuple[type, ...]) -> bool:
    if isinstance(value, list):
        return kind is list and all(_is_allowed(item, str) for item in value)
    if isinstance(value, str):
        return kind is str and len(value) <= TEXT_MAX and value.isascii() and value.isprintable()
    return isinstance(value, kind)


class _Reduced(logging.StreamHandler[TextIO]):
    """The standard library's records, without their messages."""

    def __init__(self, stream: TextIO, own: Mapping[str, Any]) -> None:
        super().__init__(stream)
        self._own = own

    def format(self, record: logging.LogRecord) -> str:
        """Logger, level and class of error."""
        entry: dict[str, Any] = {
            "event": "library",
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._own,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "error": record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "",
        }
        return _rendered(None, "", allow_listed(None, "", entry))


def silence_libraries(log: structlog.typing.FilteringBoundLogger) -> None:
    """Keep request bytes out of what aiohttp (cookies) and asyncio (reprs of callbacks) log by themselves."""
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL + 1)

    def describe(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # What it speaks of, by the loop's own names: its texts quote what a callback was called with.
        log.error("loop.failed", about=sorted(context), **described(context.get("exception")))

    asyncio.get_running_loop().set_exception_handler(describe)


def described(error: BaseException | None) -> dict[str, Any]:
    """Class and places of an exception, never its message, which may quote the request."""
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    places = ["/".join(Path(frame.f_code.co_filename).parts[-3:]) + f":{line}" for frame, line in frames]
    return {"error": type(error).__name__, "frames": places[-FRAMES_MAX:]}
