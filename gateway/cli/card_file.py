"""A list of cards from an older vault, as `gateway import` reads it: CSV with a header, or NDJSON; a card a line.

NDJSON is what `POST /v1/tokens` takes, a line each. CSV, in UTF-8 with commas, names its columns: `number`, `name`,
`exp_month` and `exp_year` or `expiry` (MM/YY or MM/YYYY); `usage`, `consent` and `id` may be there. A field may be
quoted, but ends on its line, so that one stray quote spoils one line. `id` is the city's own name for a card, in
either form: it is never sent, and stands in the result. In either form, too, a line without `usage` means what
`--usage` says. Lines count from 1, as in an editor, a header included.

Nothing that is said of a line repeats it, and neither does what is said of a header: it may be a card, forgotten.
What is said of CSV names columns, not places in the JSON that they become.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

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
MONTH, YEAR = re.compile("0?[1-9]|1[0-2]"), re.compile("[0-9]{2}|[0-9]{4}")
EXPECTED = {
    "exp_month": "1 to 12",
    "exp_year": "two or four digits",
    "expiry": "MM/YY or MM/YYYY",
    "name": "1 to 100 characters",
    "usage": "single, multi or empty",
    "consent": "at most 200 characters",
}
"""What a column holds, in the words of who fills it."""


class ImportLine(TokenBody, frozen=True, forbid_unknown_fields=True):
    """A line of the input: what `POST /v1/tokens` takes, and the city's own id of the card."""

    id: str | int | None = None


class SingleLine(ImportLine, frozen=True, forbid_unknown_fields=True):
    """The same, for one use unless it says otherwise."""

    usage: Literal["single", "multi"] = "single"


class MultiLine(ImportLine, frozen=True, forbid_unknown_fields=True):
    """The same, for many uses unless it says otherwise."""

    usage: Literal["single", "multi"] = "multi"


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
    """The input. `form` is one of `FORMS`; `usage`, single or multi, is that of a line that has none of its own."""

    def __init__(self, path: Path, form: str, usage: str) -> None:
        self.path = path
        self.usage = usage
        self.form = form
        self._kind: type[ImportLine] = SingleLine if usage == "single" else MultiLine
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
            elif file.peek(len(BOM)).startswith(BOM):
                file.seek(len(BOM))
            first = 2 if self._columns else 1
            for number, raw in enumerate(_raws(file), first):
                if number - first >= skip:
                    yield self._line(number, raw)

    def card(self, line: Line) -> Card:
        """The card of a line, judged as the gateway will; raises `GatewayError`."""
        assert line.card is not None, "internal error: a line that was refused has no card"
        return judged(_bulk(line.card, None), self._brands)[0].card

    def refusal(self, error: GatewayError) -> Refusal:
        """An error as a line's refusal."""
        told = describe(error)
        assert told is not None, "internal error: what the gateway refuses has a problem"
        slug, detail, pointers = told
        return Refusal(slug, self.detail(detail, pointers))

    def detail(self, detail: str, pointers: Iterable[str]) -> str:
        """What is told of a line, with the places that it is about: columns, or pointers (RFC 6901) into its JSON."""
        places = [pointer.rpartition("/")[2] if self._columns else pointer for pointer in pointers]
        if "expiry" in self._columns:
            places = ["expiry" if place in {"exp_month", "exp_year"} else place for place in places]
        return " ".join([detail, *(f"({place})" for place in dict.fromkeys(places) if place)])

    def _line(self, number: int, raw: bytes) -> Line:
        own_id = ""
        try:
            if len(raw) > LINE_BYTES_MAX:
                raise InvalidRequest(TOO_LONG)
            if self._columns:
                fields = _fields(raw, self._columns)
                own_id = self._own_id(fields.get("id"))
                card = _card_of(fields, self._kind)
            else:
                card = read_body(raw, self._kind)
                own_id = self._own_id(card.id)
        except GatewayError as error:
            return Line(number, own_id, None, self.refusal(error))
        return Line(number, own_id, card)

    def _own_id(self, own_id: str | int | None) -> str:
        text = "" if own_id is None else str(own_id)
        if self._brands.find(text):
            raise CardNumberInText(pointers=["/id"])
        if len(text) > ID_CHARACTERS_MAX or not text.isprintable():
            raise InvalidRequest("`id` must be at most 100 printable characters.", ["/id"])
        return text


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
            "the first line must name the columns, in UTF-8 and separated by commas: number, name, and either expiry"
            " or exp_month and exp_year; usage, consent and id may be there, and nothing else"
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


def _card_of(fields: dict[str, str], kind: type[ImportLine]) -> ImportLine:
    """A line of CSV as the JSON that it stands for; an empty field is as good as none."""
    card = {"number": fields["number"], **_expiry(fields)}
    document = {"name": fields["name"], "card": card}
    document |= {name: fields[name] for name in OPTIONAL if fields.get(name)}
    try:
        return convert(document, kind)
    except InvalidRequest as error:
        raise _unexpected(error.pointers[0].removeprefix("/")) from None


def _expiry(fields: dict[str, str]) -> dict[str, int]:
    """Month and year, of one column or of two; raises `InvalidRequest`."""
    if "expiry" in fields:
        month, _, year = (part.strip() for part in fields["expiry"].partition("/"))
        columns = ("expiry", "expiry")
    else:
        month, year = fields["exp_month"], fields["exp_year"]
        columns = ("exp_month", "exp_year")
    for column, text, pattern in zip(columns, (month, year), (MONTH, YEAR), strict=True):
        if not pattern.fullmatch(text):
            raise _unexpected(column)
    return {"exp_month": int(month), "exp_year": int(year)}


def _unexpected(column: str) -> InvalidRequest:
    return InvalidRequest(f"The column `{column}` must be {EXPECTED[column]}.")
