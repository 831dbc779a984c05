"""A list of cards from an older vault, as `gateway import` reads it: CSV with a header, or NDJSON; a card a line.

NDJSON is what `POST /v1/tokens` takes, a line each. CSV, in UTF-8 with commas, names its columns: `number`, `name`,
`exp_month` and `exp_year` or `expiry` (MM/YY or MM/YYYY); `usage`, `consent` and `id` may be there. A field may be
quoted, but ends on its line, so that one stray quote spoils one line. `id` is the city's own name for a card, in
either form: it is never sent, and stands in the result. Lines count from 1, as in an editor, a header included.

Nothing that is said of a line repeats it, and neither does what is said of a header: it may be a card, forgotten.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import CardNumberInText, GatewayError, InvalidRequest
from gateway.rules.card import Brands, Card
from gateway.web.bodies import TokenBody
from gateway.web.bulk import LINE_BYTES_MAX, TOO_LONG, BulkLine, judged
from gateway.web.problems import describe
from gateway.web.schema import convert, read_body
from keys.errors import SettingsRefused

FORMS = ("csv", "ndjson")
BOM = b"\xef\xbb\xbf"
NEEDED = frozenset({"number", "name"})
EXPIRY = (frozenset({"expiry"}), frozenset({"exp_month", "exp_year"}))
OPTIONAL = frozenset({"usage", "consent", "id"})
ID_CHARACTERS_MAX = 100


class ImportLine(TokenBody, frozen=True, forbid_unknown_fields=True):
    """A line of the input: what `POST /v1/tokens` takes, and the city's own id of the card."""

    id: str | int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a line is none: slug and detail of a problem."""

    slug: str
    detail: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input, read. What cannot be sent has a refusal instead of a card."""

    number: int
    own_id: str
    card: ImportLine | None
    refusal: Refusal | None = None

    def __repr__(self) -> str:
        return f"Line({self.number})"

    def sent(self, import_id: str) -> bytes:
        """The line as it goes to the gateway; the same line of the same import always goes under the same key."""
        if self.card is None:
            return b""
        bulk = _bulk(self.card, f"{import_id}-{self.number}")
        return msgspec.json.encode(bulk) + b"\n"


class CardFile:
    """The input. `form` is one of `FORMS`; `usage` is what a line of CSV means that has none of its own."""

    def __init__(self, path: Path, form: str, usage: str) -> None:
        self.path = path
        self.usage = usage
        self.form = form
        self._brands = Brands.load()
        with path.open("rb") as file:
            self._columns = _columns(_raw(file)) if form == "csv" else ()
            self.lines = sum(1 for _ in _raws(file))
            """How many there are, a header not counted."""

    def read(self, skip: int = 0) -> Iterator[Line]:
        """Every line but the first so many."""
        with self.path.open("rb") as file:
            if self._columns:
                _raw(file)
            first = 2 if self._columns else 1
            for number, raw in enumerate(_raws(file), first):
                if number - first >= skip:
                    yield self._line(number, raw)

    def card(self, line: Line) -> Card:
        """The card of a line, judged as the gateway will; raises `GatewayError`."""
        assert line.card is not None, "internal error: a line that was refused has no card"
        return judged(_bulk(line.card, None), self._brands)[0].card

    def _line(self, number: int, raw: bytes) -> Line:
        own_id = ""
        try:
            if len(raw) > LINE_BYTES_MAX:
                raise InvalidRequest(TOO_LONG)
            if self._columns:
                fields = _fields(raw, self._columns)
                own_id = self._own_id(fields.get("id"))
                card = convert(_document(fields, self.usage), ImportLine)
            else:
                card = read_body(raw, ImportLine)
                own_id = self._own_id(card.id)
        except GatewayError as error:
            return Line(number, own_id, None, refusal_of(error))
        return Line(number, own_id, card)

    def _own_id(self, own_id: str | int | None) -> str:
        text = "" if own_id is None else str(own_id)
        if self._brands.find(text):
            raise CardNumberInText(pointers=["/id"])
        if len(text) > ID_CHARACTERS_MAX or not text.isprintable():
            raise InvalidRequest("`id` must be at most 100 printable characters.", ["/id"])
        return text


def refusal_of(error: GatewayError) -> Refusal:
    """An error as a line's refusal, with the places that it speaks of."""
    told = describe(error)
    assert told is not None, "internal error: what the gateway refuses has a problem"
    slug, detail, pointers = told
    return Refusal(slug, " ".join([detail, *(f"({pointer})" for pointer in pointers)]))


def _bulk(card: ImportLine, key: str | None) -> BulkLine:
    fields = {name: getattr(card, name) for name in TokenBody.__struct_fields__}
    return BulkLine(**fields, idempotency_key=key)


def _raw(file: BufferedReader) -> bytes:
    """The next line without its end; of one that is too long, as much as shows that it is. Empty at the end, too."""
    raw = file.readline(LINE_BYTES_MAX + 2)
    rest = raw
    while rest and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES_MAX)
    return raw.removesuffix(b"\n").removesuffix(b"\r")


def _raws(file: BufferedReader) -> Iterator[bytes]:
    while file.peek(1):
        yield _raw(file)


def _columns(header: bytes) -> tuple[str, ...]:
    """The columns that a header names; raises `SettingsRefused`."""
    try:
        columns = tuple(name.strip().lower() for name in _split(header.removeprefix(BOM)))
    except InvalidRequest:
        columns = ()
    needed = [NEEDED | expiry for expiry in EXPIRY]
    if len(set(columns)) != len(columns) or frozenset(columns) - OPTIONAL not in needed:
        raise SettingsRefused(
            "the first line must name the columns: number, name, and either expiry or exp_month and exp_year;"
            " usage, consent and id may be there, and nothing else"
        )
    return columns


def _split(raw: bytes) -> Sequence[str]:
    try:
        return next(csv.reader([raw.decode()], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        raise InvalidRequest("The line must be CSV in UTF-8, each quote closed on the line where it opens.") from None


def _fields(raw: bytes, columns: Sequence[str]) -> dict[str, str]:
    values = _split(raw)
    if len(values) != len(columns):
        raise InvalidRequest(f"The line must have {len(columns)} fields, as the header has.")
    return {name: value.strip() for name, value in zip(columns, values, strict=True)}


def _document(fields: dict[str, str], usage: str) -> dict[str, Any]:
    """A line of CSV as the JSON that it stands for; an empty field is as good as none."""
    month, _, year = (
        fields["expiry"].partition("/") if "expiry" in fields else (fields["exp_month"], "", fields["exp_year"])
    )
    card = {"number": fields["number"], "exp_month": _number(month), "exp_year": _number(year)}
    document = {"name": fields["name"], "card": card, "usage": fields.get("usage") or usage}
    return document | {name: fields[name] for name in ("consent", "id") if fields.get(name)}


def _number(text: str) -> int | str:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 4 else text  # noqa: PLR2004 - a year
