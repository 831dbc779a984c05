"""A JSON document or an HTML form against a schema: strict parsing first, then the schema's own types.

Refused as not parsable: duplicate keys, numbers that are not finite, lone surrogates, NUL, nesting without end.
Refused as not the schema: unknown fields, a float or a boolean where an integer belongs. Messages name our fields
and never repeat what was sent.
"""

import json
import math
import re
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

import msgspec

from gateway.errors import InvalidRequest

NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""NUL as JSON spells it; behind an odd number of backslashes the letters are only letters."""

SAFE_REASON = re.compile(
    r"Expected `[a-z |]+`(?:, got `[a-z]+`| of length [<>]= [0-9]+)?|Object missing required field `[a-z_]+`"
)
"""Reasons of msgspec that quote nothing of the request; those on unknown fields and enums do."""

Typed = Annotated[str, msgspec.Meta(max_length=1024)]
"""What a person typed to be known by; its own rules are the service's."""

B = TypeVar("B", bound=msgspec.Struct)


def read_body(raw: bytes, kind: type[B]) -> B:
    """Parse a body strictly; raises `InvalidRequest`."""
    try:
        text = raw.decode()
        document = json.loads(text, object_pairs_hook=_object, parse_float=_finite, parse_constant=_no_constant)
        msgspec.json.encode(document)  # refuses lone surrogates, which UTF-8 and PostgreSQL cannot hold
    except (ValueError, RecursionError):
        raise InvalidRequest("The body must be one JSON document, in UTF-8, without duplicate keys.") from None
    if NUL.search(text):
        raise InvalidRequest("The body must not contain NUL.")
    return convert(document, kind)


def form_fields(raw: bytes) -> dict[str, str]:
    """The fields of a form (application/x-www-form-urlencoded), each at most once; raises `InvalidRequest`."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict", max_num_fields=64
        )
        fields = _object(pairs)
    except ValueError:
        raise InvalidRequest("The form must be URL-encoded UTF-8, each field once.") from None
    if any("\0" in text for text in fields.values()):
        raise InvalidRequest("The form must not contain NUL.")
    return fields


def convert(document: object, kind: type[B]) -> B:
    """What was parsed as its schema has it; raises `InvalidRequest`."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise _schema_refusal(str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate key")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("too large a number")
    return number


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _schema_refusal(message: str) -> InvalidRequest:
    """Msgspec's message without what it quotes: names of unknown fields and values, which may look like a place."""
    if message.startswith("Object contains unknown field"):
        return InvalidRequest("There is a field that the schema does not know.")
    reason, *places = message.split(" - at `$")
    pointer = places[-1].rstrip("`").replace(".", "/") if places else ""
    if SAFE_REASON.fullmatch(reason):
        return InvalidRequest(f"{reason}.", [pointer])
    return InvalidRequest("The value is not one of those that the schema allows.", [pointer])
