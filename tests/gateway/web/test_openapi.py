"""The OpenAPI document: valid, the same as the router, and without a field that could return what is sealed."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped] # ships no types
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.rules.lifecycle import MEANINGS, UNDECIDED, Kind, Progress
from gateway.services.answers import ListObject, charge_object, movement_answer, refund_object, token_object
from gateway.services.ports import Charge, Movement, Token
from gateway.web.api import ROUTES, Api
from gateway.web.openapi import document

NEVER_RETURNED = {
    *("name", "number", "cvc", "exp_month", "exp_year", "expiry", "details", "consent", "sealed"),
    *("secret", "api_key", "idempotency_key", "request_id"),
}
NOW = datetime(2026, 11, 22, 16, 30, tzinfo=UTC)
TOKEN = Token(
    *("parks", "tok_x", "app_x", "card", "multi", "active", "visa", "4242", "fp_x", "unchecked"),
    created_at=NOW,
    expires_at=NOW,
)
CHARGE = Charge(
    department="parks",
    charge_id="ch_x",
    application_id="app_x",
    token_id="tok_x",
    amount_minor=1999,
    currency="USD",
    convenience_fee_minor=99,
    service=None,
    reference="invoice 7",
    processor_reference="pr_x",
    kind=Kind.SALE,
    progress=Progress.DONE,
    captured_minor=1999,
    refunded_minor=0,
    refunding_minor=0,
    cvc_check="pass",
    decline_class=None,
    decline_code=None,
    created_at=NOW,
)
MOVEMENT = Movement(
    department="parks",
    movement_id="re_x",
    charge_id="ch_x",
    kind=Kind.REFUND,
    amount_minor=500,
    currency="USD",
    reference="pr_y",
    charge_reference="pr_x",
    application_id="app_x",
    route="POST /v1/charges/{id}/refunds",
    idempotency_key="k",
    progress=Progress.DONE,
    with_cvc=False,
    not_after=NOW,
    epoch=0,
    sends=1,
    decline_class=None,
    decline_code=None,
    created_at=NOW,
    running=False,
)


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    """As programs get it: through JSON."""
    read: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document()))
    return read


def _operations(openapi: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            yield method.upper(), path, operation


def _properties(openapi: Mapping[str, Any], schema: Any, owner: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every (schema, property, its schema) that can be reached from a schema."""
    if isinstance(schema, list):
        for item in schema:
            yield from _properties(openapi, item, owner)
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        if name == "$ref":
            referred = str(value).removeprefix("#/components/schemas/")
            yield from _properties(openapi, openapi["components"]["schemas"][referred], referred)
        elif name == "properties":
            yield from ((owner, field, kind) for field, kind in value.items())
            yield from _properties(openapi, list(value.values()), owner)
        else:
            yield from _properties(openapi, value, owner)


def _require(openapi: Mapping[str, Any], name: str, instance: object) -> None:
    """Raises `ValidationError` unless the instance, as JSON, is of the named schema."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": openapi["components"]}
    sent = instance if isinstance(instance, bytes) else msgspec.json.encode(instance)
    Draft202012Validator(schema).validate(msgspec.json.decode(sent))


def test_the_document_is_valid(openapi: dict[str, Any]) -> None:
    """OpenAPI 3.1, every reference resolved."""
    assert openapi["openapi"].startswith("3.1.")
    assert list(OpenAPIV31SpecValidator(openapi).iter_errors()) == []


def test_an_invalid_document_would_be_noticed(openapi: dict[str, Any]) -> None:
    """The validator is awake."""
    broken = openapi | {"paths": {"/x": {"get": {"responses": {"200": {}}}}}}

    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


def test_every_route_is_documented_and_every_documented_route_is_there(openapi: dict[str, Any]) -> None:
    """The router and the document name the same methods of the same paths."""
    router = Api.__new__(Api).application().router  # routes are bound to methods; no service is asked for
    routed = {(route.method, route.resource.canonical) for route in router.routes() if route.resource}

    assert routed == {(method, path) for method, path, _ in _operations(openapi)}
    assert len(routed) == len(ROUTES)


def test_every_handler_is_there_once(openapi: dict[str, Any]) -> None:
    """Operation ids are unique, and each is a method of `Api`."""
    names = [operation["operationId"] for _, _, operation in _operations(openapi)]

    assert len(set(names)) == len(names)
    assert all(callable(getattr(Api, name)) for name in names)


def test_no_answer_can_return_what_is_sealed(openapi: dict[str, Any]) -> None:
    """No schema that is reachable from any answer has a field for a name, a number, a code or details."""
    answers = [operation["responses"] for _, _, operation in _operations(openapi)]
    found = [field for field in _properties(openapi, answers) if field[1] in NEVER_RETURNED]

    # `checks.cvc` is what the issuer said about the code: one of four words.
    verdict = {"enum": ["fail", "pass", "unavailable", "unchecked"]}
    assert {(owner, name) for owner, name, _ in found} == {("Checks", "cvc")}
    assert all(schema == verdict for _, _, schema in found)


def test_the_search_for_fields_finds_them(openapi: dict[str, Any]) -> None:
    """The same search in what is taken, and in what is given, sees the fields that are there."""
    bodies = [operation.get("requestBody") for _, _, operation in _operations(openapi)]
    answers = [operation["responses"] for _, _, operation in _operations(openapi)]

    taken = {name for _, name, _ in _properties(openapi, bodies)}
    given = {name for _, name, _ in _properties(openapi, answers)}
    assert {"name", "number", "cvc", "exp_month", "exp_year", "details", "consent"} <= taken
    assert {"last4", "fingerprint", "has_more", "data", "decline", "class", "pointer", "processor_reference"} <= given


def test_bodies_are_closed(openapi: dict[str, Any]) -> None:
    """Every schema of a body says that it knows no other fields."""
    schemas = openapi["components"]["schemas"]

    assert {name for name, schema in schemas.items() if schema.get("additionalProperties") is False} == {
        "TokenBody",
        "BulkLine",
        "ChargeBody",
        "CardBody",
        "AmountBody",
        "VoidBody",
    }


def test_a_body_is_required_where_something_must_be_said(openapi: dict[str, Any]) -> None:
    """To make tokens and to charge; a capture, void or refund of everything may say nothing."""
    required = {
        operation["operationId"]: operation["requestBody"]["required"]
        for _, _, operation in _operations(openapi)
        if "requestBody" in operation
    }

    silent = ("capture_charge", "void_charge", "refund_charge")
    speaking = ("create_token", "create_tokens", "create_charge")
    assert required == dict.fromkeys(speaking, True) | dict.fromkeys(silent, False)


def test_all_but_three_routes_ask_who_is_calling(openapi: dict[str, Any]) -> None:
    """Health and this document are open; every other route needs an API key, and says 401, 403, 429 and 503."""
    open_paths = {path for _, path, operation in _operations(openapi) if not operation["security"]}

    assert open_paths == {"/healthz", "/readyz", "/openapi.json"}
    for _, path, operation in _operations(openapi):
        assert path in open_paths or {"400", "401", "403", "429", "500", "503"} <= set(operation["responses"])


def test_idempotency_keys_are_where_the_contract_wants_them(openapi: dict[str, Any]) -> None:
    """Required where money moves, honoured to make a token, unknown elsewhere."""
    keys = {
        operation["operationId"]: parameter["required"]
        for _, _, operation in _operations(openapi)
        for parameter in operation["parameters"]
        if parameter["name"] == "Idempotency-Key"
    }

    moving = ("create_charge", "capture_charge", "void_charge", "refund_charge")
    assert keys == {"create_token": False} | dict.fromkeys(moving, True)


DONE = {Kind.SALE: 201, Kind.AUTHORIZATION: 201, Kind.CAPTURE: 200, Kind.VOID: 200, Kind.REFUND: 201}
OPERATIONS = {
    Kind.SALE: "create_charge",
    Kind.AUTHORIZATION: "create_charge",
    Kind.CAPTURE: "capture_charge",
    Kind.VOID: "void_charge",
    Kind.REFUND: "refund_charge",
}


def _expected(kind: Kind, progress: Progress) -> int:
    """The HTTP status of an answer about a movement, as the contract has it."""
    if progress in UNDECIDED:
        return 202
    if progress is Progress.DONE:
        return DONE[kind]
    return 402 if progress is Progress.REFUSED else 502


def test_answers_are_what_the_document_says(openapi: dict[str, Any]) -> None:
    """Tokens, erased ones too, refunds and lists of charges in every state validate against their schemas."""
    _require(openapi, "TokenObject", token_object(TOKEN))
    erased = replace(TOKEN, status="erased", brand=None, last4=None, fingerprint_id=None)
    _require(openapi, "TokenObject", token_object(erased))
    states = [state for state in MEANINGS if state[0] is not Kind.REFUND]
    charges = [charge_object(replace(CHARGE, kind=kind, progress=progress)) for kind, progress in states]
    _require(openapi, "ListObject", ListObject("list", charges, has_more=False))
    for progress in Progress:
        _require(openapi, "RefundObject", refund_object(replace(MOVEMENT, progress=progress)))


@pytest.mark.parametrize(("kind", "progress"), MEANINGS)
def test_every_answer_about_money_is_documented(openapi: dict[str, Any], kind: Kind, progress: Progress) -> None:
    """Its status is the contract's, its route's document has that status, and its body is of the schema there."""
    refused: dict[str, Any] = {"decline_class": "soft", "decline_code": "51"} if progress is Progress.REFUSED else {}
    declined = refused if kind in {Kind.SALE, Kind.AUTHORIZATION} else {}
    charge = replace(CHARGE, kind=kind, progress=progress, **declined)
    answer = movement_answer(charge, replace(MOVEMENT, kind=kind, progress=progress, **refused))

    assert answer.status == _expected(kind, progress)
    operations = {operation["operationId"]: operation for _, _, operation in _operations(openapi)}
    (content,) = operations[OPERATIONS[kind]]["responses"][str(answer.status)]["content"].values()
    _require(openapi, content["schema"]["$ref"].rpartition("/")[2], answer.body)
    shown = msgspec.json.decode(answer.body)
    if answer.status >= 400:
        assert shown.get("decline") == ({"class": "soft", "code": "51"} if answer.status == 402 else None)
        shown = shown["refund" if kind is Kind.REFUND else "charge"]
    assert shown["object"] == ("refund" if kind is Kind.REFUND else "charge")
    assert (answer.location is not None) is (answer.status == 202)
    assert answer.location in {None, "/v1/refunds/re_x" if kind is Kind.REFUND else "/v1/charges/ch_x"}


def test_other_answers_are_not(openapi: dict[str, Any]) -> None:
    """A token with an unknown status, and a problem of an unknown type, do not validate."""
    for name, instance in (
        ("TokenObject", token_object(replace(TOKEN, status="lost"))),
        ("Problem", {"type": "about:blank", "title": "x", "status": 400}),
    ):
        with pytest.raises(ValidationError):
            _require(openapi, name, instance)


def test_a_stream_is_told_by_the_line(openapi: dict[str, Any]) -> None:
    """What goes in is lines of a token's body, what comes out lines of tokens and problems; nothing of it is JSON."""
    operation = openapi["paths"]["/v1/tokens/bulk"]["post"]
    content = (operation["requestBody"]["content"], operation["responses"]["200"]["content"])

    assert [list(each) for each in content] == [["application/x-ndjson"]] * 2
    assert content[0]["application/x-ndjson"]["schema"] == {"$ref": "#/components/schemas/BulkLine"}
    told = content[1]["application/x-ndjson"]["schema"]["oneOf"]
    assert told == [{"$ref": f"#/components/schemas/{name}"} for name in ("TokenObject", "Problem")]
