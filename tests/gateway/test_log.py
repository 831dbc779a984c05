"""Logs: what is not on the list, or not of its type, is not written; one line of JSON each."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
import structlog

from gateway import log as logs
from gateway.log import FIELDS, allow_listed

SECRET = "zqsecret"
EXAMPLES: dict[Any, Any] = {str: "ordinary text", int: 7, (int, float): 1.5, list: ["server.py:12"]}


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the log goes; the state of both logging libraries is put back afterwards."""
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**before)


@pytest.fixture
def log(stream: io.StringIO) -> structlog.typing.FilteringBoundLogger:
    return logs.configure("api", stream)


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """What was written: each line must be JSON by itself."""
    assert stream.getvalue().endswith("\n") or not stream.getvalue()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(stream: io.StringIO, log: structlog.typing.FilteringBoundLogger) -> None:
    """Process, level and UTC time come by themselves; listed fields of the right type are kept."""
    log.info("request", route="GET /v1/tokens/{id}", status=200, duration_ms=1.5, request_id="req_abc")
    log.warning("look.failed", error="Unavailable")

    first, second = _lines(stream)
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "event": "request",
        "level": "info",
        "process": "api",
        "route": "GET /v1/tokens/{id}",
        "status": 200,
        "duration_ms": 1.5,
        "request_id": "req_abc",
    }
    assert (second["event"], second["level"], second["error"]) == ("look.failed", "warning", "Unavailable")


def test_quiet_levels_are_not_written(stream: io.StringIO, log: structlog.typing.FilteringBoundLogger) -> None:
    """Debugging is for tests."""
    log.debug("noise")

    assert _lines(stream) == []


@pytest.mark.parametrize("name", FIELDS)
def test_each_listed_field_takes_its_own_type_only(name: str) -> None:
    """A field keeps a value of its type and loses every other one."""
    kind = FIELDS[name]

    for example_kind, value in EXAMPLES.items():
        fits = example_kind == kind or (kind == (int, float) and example_kind is int)
        assert allow_listed(None, "", {name: value}) == ({name: value} if fits else {})
    for wrong in (None, b"bytes", {"a": 1}, ("x",), {"x"}, object(), ValueError(SECRET)):
        assert allow_listed(None, "", {name: wrong}) == {}


@pytest.mark.parametrize(
    "name", ["card", "number", "body", "exception", "exc_info", "stack", "detail", "Event", "event "]
)
def test_unlisted_fields_are_left_out(
    stream: io.StringIO, log: structlog.typing.FilteringBoundLogger, name: str
) -> None:
    """What nobody listed is not written, whoever passes it."""
    log.info("request", **{name: SECRET, "status": 200})

    assert _lines(stream)[0]["status"] == 200
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        *(f"{SECRET}{control}x" for control in "\n\r\t\0\x1b\x7f\u0085\u2028\u00e9"),
        f'{SECRET}\n{{"event": "forged"}}',
        f"{SECRET}\n",
        SECRET + "x" * 113,
        SECRET.translate(str.maketrans("z", "\uff5a")),
    ],
    ids=ascii,
)
def test_text_is_short_printable_ascii(
    stream: io.StringIO, log: structlog.typing.FilteringBoundLogger, text: str
) -> None:
    """Control characters, other alphabets and long texts are left out whole: no line can be forged."""
    log.info("request", route=text, frames=[text], status=200)
    log.bind(application=text).info("request")
    log.info(text)

    assert len(_lines(stream)) == 3
    assert "secret" not in stream.getvalue()
    assert [set(line) & {"route", "frames", "application"} for line in _lines(stream)] == [set(), set(), set()]


def test_the_longest_text_is_kept() -> None:
    """One hundred and twenty characters, from the space to the tilde."""
    text = ("".join(map(chr, range(0x20, 0x7F))) * 2)[:120]

    assert allow_listed(None, "", {"route": text}) == {"route": text}
    assert allow_listed(None, "", {"route": text + "x"}) == {}


def test_quotes_and_backslashes_stay_inside_their_field(
    stream: io.StringIO, log: structlog.typing.FilteringBoundLogger
) -> None:
    """Text that looks like JSON is text."""
    text = '", "event": "forged", "x": "\\'
    log.info("request", reason=text)

    assert (_lines(stream)[0]["event"], _lines(stream)[0]["reason"]) == ("request", text)


@pytest.mark.parametrize("value", [[["nested"]], [1], [None], ["good", "b\nad"], [b"x"]])
def test_a_list_is_of_texts_only(value: object) -> None:
    """One wrong item and the whole list is left out."""
    assert allow_listed(None, "", {"frames": value}) == {}


def test_exceptions_are_told_by_what_the_caller_lists(
    stream: io.StringIO, log: structlog.typing.FilteringBoundLogger
) -> None:
    """`log.exception` writes no traceback: its words may quote."""
    try:
        int(SECRET)
    except ValueError as error:
        log.exception("request.failed", error=type(error).__name__)

    assert _lines(stream)[0]["error"] == "ValueError"
    assert SECRET not in stream.getvalue()


@pytest.mark.usefixtures("log")
def test_libraries_lose_their_words(stream: io.StringIO) -> None:
    """Of what other libraries log there stays logger, level and class of error: no message and no trace."""
    library = logging.getLogger("some.library")
    try:
        int(SECRET)
    except ValueError:
        library.exception("failed on %s", SECRET, extra={"route": SECRET})
    library.warning("%s\n%s", SECRET, SECRET, stack_info=True)
    library.info("below the level: %s", SECRET)

    first, second = _lines(stream)
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "event": "library",
        "level": "error",
        "logger": "some.library",
        "process": "api",
        "error": "ValueError",
    }
    assert (second["level"], second["error"]) == ("warning", "")
    assert "secret" not in stream.getvalue()


@pytest.mark.usefixtures("log")
def test_a_library_cannot_forge_a_line(stream: io.StringIO) -> None:
    """The name of a logger is a field like any other."""
    logging.getLogger(f'{SECRET}\n{{"event": "forged"}}').error("x")

    (line,) = _lines(stream)
    assert line.keys() == {"event", "level", "process", "time", "error"}
    assert "secret" not in stream.getvalue()
