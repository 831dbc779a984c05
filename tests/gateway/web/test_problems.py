"""Errors to answers: one table, complete in both directions, and the same tree as its docstring draws."""

import inspect
import re

import msgspec
import pytest
from aiohttp import web

from gateway import errors
from gateway.errors import GatewayError
from gateway.rules.problems import BASE, SERVER_SLUGS, TYPES
from gateway.services.ports import CommitUnknown
from gateway.web.problems import SLUGS, response
from keys.errors import BrokenSeal, KeysError, KeysExhausted

ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GatewayError)]
REFUSALS = [kind for kind in ERRORS if kind not in {GatewayError, errors.GrantRefused}]
"""Grants are refused at the command line, never over HTTP."""
WITHOUT_ERROR = {
    *("card-declined", "capture-refused", "void-refused", "refund-refused"),
    *("charge-failed", "capture-failed", "void-failed", "refund-failed"),
}
"""Told by what the processor said (`services.answers`), not by an error."""


def _answer(error: Exception) -> web.Response:
    answer = response(error)
    assert answer is not None
    assert answer.content_type == "application/problem+json"
    return answer


def _document(error: Exception) -> dict[str, object]:
    body = _answer(error).body
    assert isinstance(body, bytes)
    document: dict[str, object] = msgspec.json.decode(body)
    return document


def test_every_error_has_a_type_and_every_type_an_origin() -> None:
    """No refusal is without its type, and no type without a refusal, the server, or the processor behind it."""
    assert set(SLUGS) == set(REFUSALS)
    assert len(set(SLUGS.values())) == len(SLUGS)
    assert {*SLUGS.values(), *SERVER_SLUGS, *WITHOUT_ERROR} == set(TYPES)


def test_the_tree_that_is_drawn_is_the_tree_that_is() -> None:
    """The docstring of `gateway.errors` shows every class, in order, below the one that it inherits from."""
    drawn = re.findall(r"^    (?:[|`]- )?(\w+)", str(errors.__doc__), re.MULTILINE)
    in_order = sorted(ERRORS, key=lambda kind: inspect.getsourcelines(kind)[1])

    assert drawn == [kind.__name__ for kind in in_order]
    assert all(kind.__bases__ == (GatewayError,) for kind in REFUSALS)


@pytest.mark.parametrize("kind", REFUSALS)
def test_an_error_is_told_by_its_type(kind: type[GatewayError]) -> None:
    """Type, status and title come from the table; detail and pointers from the error."""
    slug = SLUGS[kind]
    answer = _answer(kind("Because.", ["/amount"]))

    assert answer.status == TYPES[slug].status
    assert _document(kind("Because.", ["/amount"])) == {
        "type": BASE + slug,
        "title": TYPES[slug].title,
        "status": answer.status,
        "detail": "Because.",
        "errors": [{"pointer": "#/amount"}],
    }


@pytest.mark.parametrize("kind", REFUSALS)
def test_an_error_without_words_has_words_of_its_own(kind: type[GatewayError]) -> None:
    """The default detail is told, if there is one, and no list of fields that would be empty."""
    document = _document(kind())

    assert document.get("detail", "") == kind.default
    assert "errors" not in document


@pytest.mark.parametrize("kind", REFUSALS)
def test_headers_say_when_to_come_back_and_how_to_identify(kind: type[GatewayError]) -> None:
    """`Retry-After` where a later try may do (RFC 9110 §10.2.3), `WWW-Authenticate` with 401 (§11.6.1)."""
    headers = _answer(kind()).headers

    assert ("Retry-After" in headers) == (
        kind in {errors.Unavailable, errors.RequestInProgress, errors.TooManyRequests}
    )
    assert ("WWW-Authenticate" in headers) == (kind in {errors.NotIdentified, errors.SignInRefused})


@pytest.mark.parametrize(
    "error", [CommitUnknown("secret"), KeysError("secret"), BrokenSeal("secret"), KeysExhausted()]
)
def test_what_cannot_be_helped_now_is_unavailable(error: Exception) -> None:
    """A lost commit and any trouble with keys are 503, without a word of what it was."""
    document = _document(error)

    assert (document["type"], document["status"]) == (BASE + "unavailable", 503)
    assert "secret" not in str(document)
    assert ("Idempotency-Key" in str(document["detail"])) == isinstance(error, CommitUnknown)


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError(), KeyError("x"), TimeoutError()])
def test_bugs_are_left_to_the_server(error: Exception) -> None:
    """What is no refusal has no answer here: the server says 500 and nothing else."""
    assert response(error) is None
