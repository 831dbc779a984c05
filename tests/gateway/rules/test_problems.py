"""Problem documents: the closed list, and that each is what RFC 9457 asks for."""

import re
from http import HTTPStatus
from pathlib import Path

import msgspec
import pytest

from gateway.rules.problems import BASE, SERVER_SLUGS, TYPES, of_status, problem
from gateway.web import head, server

CLOSED_LIST = {
    "invalid-request": 400,
    "malformed-request": 400,
    "idempotency-key-invalid": 400,
    "not-identified": 401,
    "sign-in-refused": 401,
    "card-declined": 402,
    "capture-refused": 402,
    "void-refused": 402,
    "refund-refused": 402,
    "wrong-certificate": 403,
    "certificate-refused": 403,
    "not-permitted": 403,
    "field-not-taken": 422,
    "too-many-requests": 429,
    "password-must-change": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "request-timeout": 408,
    "request-in-progress": 409,
    "token-in-use": 409,
    "charge-unresolved": 409,
    "charge-voided": 409,
    "charge-captured": 409,
    "charge-not-captured": 409,
    "charge-not-made": 409,
    "nothing-left-to-refund": 409,
    "already-decided": 409,
    "period-closed": 409,
    "exceptions-open": 409,
    "pack-differs": 409,
    "file-refused": 422,
    "period-refused": 422,
    "export-too-large": 422,
    "body-too-large": 413,
    "media-type-unsupported": 415,
    "expectation-failed": 417,
    "card-refused": 422,
    "card-number-in-text": 422,
    "amount-refused": 422,
    "currency-refused": 422,
    "service-unknown": 422,
    "refund-too-large": 422,
    "token-unusable": 422,
    "password-refused": 422,
    "idempotency-key-reused": 422,
    "headers-too-large": 431,
    "internal-error": 500,
    "charge-failed": 502,
    "capture-failed": 502,
    "void-failed": 502,
    "refund-failed": 502,
    "unavailable": 503,
    "version-unsupported": 505,
}
"""What programs branch on: entries may be added, none may change."""

SERVER_STATUSES = {
    HTTPStatus[name]
    for module in (head, server)
    for name in re.findall(r"HTTPStatus\.([A-Z_]+)", Path(str(module.__file__)).read_text())
} | {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
"""Every status that the server itself answers with, the router's included."""


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """The members of RFC 9457 §3.1 that we use, and our extension."""

    type: str
    title: str
    status: int
    detail: str | None = None
    errors: list[dict[str, str]] | None = None


def _read(document: bytes) -> Document:
    return msgspec.json.decode(document, type=Document)


def test_the_list_is_closed() -> None:
    """Types and their statuses are those that callers were told."""
    assert {slug: kind.status for slug, kind in TYPES.items()} == CLOSED_LIST


@pytest.mark.parametrize("slug", TYPES)
def test_every_type_makes_a_valid_document(slug: str) -> None:
    """An absolute URI, a title that never changes, the status as an integer, and nothing that is empty."""
    bare, full = problem(slug), problem(slug, "Because.", ["/card/number", ""])

    assert _read(bare) == Document(BASE + slug, TYPES[slug].title, TYPES[slug].status)
    assert _read(full).detail == "Because."
    assert _read(full).errors == [{"pointer": "#/card/number"}, {"pointer": "#"}]
    assert re.fullmatch(r"https://[a-z.]+/problems/[a-z-]+", BASE + slug)
    assert 400 <= TYPES[slug].status < 600


def test_titles_tell_types_apart() -> None:
    """No two types have one title, and none of them ends like a sentence."""
    titles = [kind.title for kind in TYPES.values()]

    assert len(set(titles)) == len(titles)
    assert not [title for title in titles if title.endswith(".")]


def test_extensions_stand_beside_the_members() -> None:
    """What a type adds is a member of its own."""
    document = msgspec.json.decode(problem("card-declined", "No.", decline={"class": "soft", "code": "51"}))

    assert document["decline"] == {"class": "soft", "code": "51"}
    assert document["type"] == BASE + "card-declined"


def test_the_server_was_read() -> None:
    """The statuses below are really those of the server."""
    assert {400, 404, 405, 408, 413, 415, 417, 431, 500, 505} <= SERVER_STATUSES


@pytest.mark.parametrize("status", sorted(SERVER_STATUSES))
def test_what_the_server_answers_has_a_document(status: HTTPStatus) -> None:
    """A refusal that has nothing but a status gets a type of this very status, without any detail."""
    document = _read(of_status(status))

    assert document == Document(document.type, document.title, int(status))
    assert document.type.removeprefix(BASE) in SERVER_SLUGS


@pytest.mark.parametrize(
    ("status", "slug"), [(418, "malformed-request"), (499, "malformed-request"), (501, "internal-error")]
)
def test_other_statuses_are_told_by_their_class(status: int, slug: str) -> None:
    """A status without a type of its own is the caller's mistake below 500, and ours from there on."""
    assert of_status(status) == problem(slug)
