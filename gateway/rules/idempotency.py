"""Idempotency keys: what one is, and what two requests under it must share.

Quoted (RFC 8941 string) and bare forms are one key. Compared are business fields only, so a retry may seal a
card again, repeat a code or reorder its JSON; the card itself is compared by a keyed value in a column of its
own (`keys.fingerprint.card_part`), which erasure clears.
"""

import hashlib
import re

from gateway.errors import IdempotencyKeyInvalid
from keys.primitives import context

BARE = re.compile(r"[\x21-\x7e]{1,255}")
UNQUOTED = re.compile(r"[\x20-\x7e]{1,255}")
QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')


def read_key(header: str | None) -> str:
    """The key that a header names; raises `IdempotencyKeyInvalid`."""
    text, form = (header or "").strip(" \t"), BARE
    if text.startswith('"'):
        quoted = QUOTED.fullmatch(text)
        if quoted is None:
            raise IdempotencyKeyInvalid
        text, form = re.sub(r"\\(.)", r"\1", quoted[1]), UNQUOTED
    if not form.fullmatch(text):
        raise IdempotencyKeyInvalid
    return text


def request_digest(*fields: str | int | bool | None) -> bytes:
    """32 bytes for the business fields of a request, in a fixed order; holds no card number."""
    return hashlib.sha256(context("idempotency/v1", *(_text(field) for field in fields))).digest()


def _text(field: str | int | bool | None) -> str:
    # A missing field differs from every text: no text starts with NUL, the parser refuses it.
    return "\0" if field is None else str(field)
