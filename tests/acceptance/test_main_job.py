"""The main job over the wire: tokenize, charge, ask again, erase; and what is refused on the way."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest

from tests.cards import PUBLISHED, TRIGGERS, canary
from tests.system import Client, Stub, System

pytestmark = pytest.mark.server

VISA = "4242424242424242"


def card(number: str = VISA, **more: object) -> dict[str, Any]:
    return {"number": number, "exp_month": 12, "exp_year": 2031} | more


def token_body(number: str = VISA, usage: str = "multi", **more: object) -> dict[str, Any]:
    return {"name": "Ada Resident", "card": card(number), "usage": usage} | more


def charge_body(**more: object) -> dict[str, Any]:
    return {"amount": 1999, "currency": "USD", "reference": "invoice 7"} | more


def new_key() -> str:
    return secrets.token_hex(12)


async def tokenized(client: Client, number: str = VISA, usage: str = "multi") -> str:
    reply = await client.call("POST", "/v1/tokens", token_body(number, usage))
    assert reply.status == 201, reply.body
    return str(reply.json["id"])


async def charged(client: Client, token: str, key: str | None = None) -> Mapping[str, Any]:
    reply = await client.call("POST", "/v1/charges", charge_body(token=token), key=key or new_key())
    assert reply.status == 201, reply.body
    charge: Mapping[str, Any] = reply.json
    return charge


@pytest.mark.parametrize(("number", "brand"), PUBLISHED.items())
async def test_published_numbers_tokenize(parks: Client, number: str, brand: str) -> None:
    """Every published test number becomes a token that shows its brand and last four digits, and nothing more."""
    reply = await parks.call("POST", "/v1/tokens", token_body(number))

    assert reply.status == 201
    token = reply.json
    assert token["card"].items() >= {"brand": brand, "last4": number[-4:]}.items()
    assert token["card"]["fingerprint"].startswith("fp_")
    assert set(token) == {
        *("object", "id", "department", "kind", "usage", "status", "checks", "created", "expires", "card")
    }
    assert number.encode() not in reply.body


async def test_token_is_charged_once_at_the_processor(parks: Client, stub: Stub) -> None:
    """A charge of a token is captured, once, for its amount, and shows the reference that the processor knows."""
    charge = await charged(parks, await tokenized(parks))

    truth = (await stub.charges())[charge["processor_reference"]]
    assert (truth["amount"], truth["currency"], truth["effects"]) == (1999, "USD", 1)
    assert charge.items() >= {"status": "succeeded", "captured": 1999, "refunded": 0, "service": None}.items()
    shown = await parks.call("GET", f"/v1/charges/{charge['id']}")
    assert shown.json == charge


async def test_card_in_a_charge_makes_a_spent_token(parks: Client) -> None:
    """A charge that brings its card makes a single-use token on the way, which is spent."""
    body = charge_body(name="Ada Resident", card=card(cvc="123"), convenience_fee=50, details={"gate": "north"})
    reply = await parks.call("POST", "/v1/charges", body, key=new_key())

    assert reply.status == 201
    assert reply.json["checks"]["cvc"] == "pass"
    token = (await parks.call("GET", f"/v1/tokens/{reply.json['token']}")).json
    assert (token["usage"], token["status"]) == ("single", "spent")


@pytest.mark.parametrize("number", TRIGGERS)
async def test_triggers_decline(parks: Client, number: str) -> None:
    """Each published trigger is declined with 402, its class and code, and the charge as it stands."""
    token = await tokenized(parks, number)
    reply = await parks.call("POST", "/v1/charges", charge_body(token=token), key=new_key())

    assert (reply.status, reply.problem) == (402, "card-declined")
    assert reply.json["charge"]["status"] == "declined"
    assert set(reply.json["decline"]) == {"class", "code"}


async def test_single_use_token_is_spent_once(parks: Client, stub: Stub) -> None:
    """Of many charges of one single-use token at once, one succeeds; the others find the token unusable."""
    token = await tokenized(parks, usage="single")
    replies = await asyncio.gather(
        *(parks.call("POST", "/v1/charges", charge_body(token=token), key=new_key()) for _ in range(10))
    )

    assert sorted(reply.status for reply in replies) == [201] + [422] * 9
    assert {reply.problem for reply in replies if reply.status == 422} == {"token-unusable"}


async def test_same_key_gives_the_same_bytes_and_one_effect(parks: Client, stub: Stub) -> None:
    """A hundred equal requests at once under one key cause one effect; asked again, the bytes are the same."""
    token, key = await tokenized(parks), new_key()
    before = len(await stub.charges())
    replies = await asyncio.gather(
        *(parks.call("POST", "/v1/charges", charge_body(token=token), key=key) for _ in range(100))
    )

    assert {reply.status for reply in replies} <= {201, 409}
    assert {reply.problem for reply in replies if reply.status == 409} <= {"request-in-progress"}
    again = await parks.call("POST", "/v1/charges", charge_body(token=token), key=f'"{key}"')
    assert {reply.body for reply in replies if reply.status == 201} == {again.body}
    assert len(await stub.charges()) == before + 1


async def test_same_key_on_tokens_gives_the_same_token(parks: Client) -> None:
    """Concurrent equal tokenizations under one key make one token and give the same bytes."""
    key = new_key()
    replies = await asyncio.gather(*(parks.call("POST", "/v1/tokens", token_body(), key=key) for _ in range(20)))

    assert {reply.status for reply in replies} == {201}
    assert len({reply.body for reply in replies}) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"amount": 2000},
        {"reference": "invoice 8"},
        {"convenience_fee": 1},
        {"service": "pool"},
        {"token": None, "name": "Ada Resident", "card": card()},
    ],
)
async def test_key_with_another_payload_is_refused(parks: Client, other: dict[str, Any]) -> None:
    """A key that was used is refused for any other amount, reference, fee, service or source of the card."""
    token, key = await tokenized(parks), new_key()
    await charged(parks, token, key)
    body = {name: value for name, value in (charge_body(token=token) | other).items() if value is not None}
    reply = await parks.call("POST", "/v1/charges", body, key=key)

    assert (reply.status, reply.problem) == (422, "idempotency-key-reused")


async def test_key_with_another_card_is_refused(parks: Client) -> None:
    """The card is a part of the payload: under one key, another number or another expiry is refused."""
    key = new_key()
    first = charge_body(name="Ada Resident", card=card())
    assert (await parks.call("POST", "/v1/charges", first, key=key)).status == 201
    for other in (card("4012888888881881"), card() | {"exp_year": 2032}):
        reply = await parks.call("POST", "/v1/charges", first | {"card": other}, key=key)
        assert (reply.status, reply.problem) == (422, "idempotency-key-reused")
    assert (await parks.call("POST", "/v1/charges", first | {"card": card(cvc="999")}, key=key)).status == 201


async def test_keys_are_a_department_s_own(parks: Client, utilities: Client) -> None:
    """The same key in two departments and on two routes is four keys."""
    key = new_key()
    for client in (parks, utilities):
        token = (await client.call("POST", "/v1/tokens", token_body(), key=key)).json["id"]
        assert (await client.call("POST", "/v1/charges", charge_body(token=token), key=key)).status == 201


async def test_validation_failure_stores_nothing_under_the_key(parks: Client) -> None:
    """A refused request leaves its key free for a right one."""
    token, key = await tokenized(parks), new_key()
    for refused in ({"amount": 0}, {"amount": -5}, {"currency": "EUR"}, {"service": "no such"}):
        reply = await parks.call("POST", "/v1/charges", charge_body(token=token) | refused, key=key)
        assert reply.status == 422, reply.body
    assert (await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)).status == 201


async def test_lost_reply_is_pending_and_then_the_truth(parks: Client, stub: Stub) -> None:
    """An answer that is lost after the effect gives 202; the charge and the key then tell what is true."""
    token, key = await tokenized(parks), new_key()
    await stub.faults(lost_reply=1)
    unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)

    assert unclear.status == 202
    assert unclear.json["status"] == "pending"
    assert unclear.headers["Location"] == f"/v1/charges/{unclear.json['id']}"
    again = await parks.finally_("/v1/charges", charge_body(token=token), key)
    assert (again.status, again.json["status"]) == (201, "succeeded")
    shown = await parks.call("GET", unclear.headers["Location"])
    assert shown.json == again.json
    assert (await stub.charges())[shown.json["processor_reference"]]["effects"] == 1
    final = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    assert (final.status, final.body) == (again.status, again.body)


async def test_lost_decline_is_found_by_asking(parks: Client, stub: Stub) -> None:
    """A decline whose answer is lost becomes 402 under its key, and declined when the charge is shown."""
    token, key = await tokenized(parks, "4000000000000002"), new_key()
    await stub.faults(lost_reply=1)
    unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    again = await parks.finally_("/v1/charges", charge_body(token=token), key)
    shown = await parks.call("GET", unclear.headers["Location"])

    assert (unclear.status, shown.json["status"], again.status) == (202, "declined", 402)


async def test_lost_request_is_pending_and_sent_again(parks: Client, stub: Stub, sql: asyncpg.Connection) -> None:
    """That the processor does not know a reference proves nothing: pending, until it was sent again."""
    token, key = await tokenized(parks), new_key()
    await stub.faults(lost_request=1)
    unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    again = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    erased = await parks.call("DELETE", f"/v1/tokens/{token}")
    await stub.faults()
    final = await parks.finally_("/v1/charges", charge_body(token=token), key)

    assert (unclear.status, again.status) == (202, 202)
    assert (erased.status, erased.problem) == (409, "token-in-use")
    assert (final.status, final.json["status"]) == (201, "succeeded")
    assert (await stub.charges())[final.json["processor_reference"]]["effects"] == 1
    opened = "SELECT count(*) FROM audit.events WHERE event = 'card.opened' AND subject = $1"
    assert await sql.fetchval(opened, final.json["id"]) >= 2


@pytest.mark.parametrize("fault", ["error_before", "error_after", "truncated", "wrong_echo"])
async def test_unclear_answers_are_never_believed(parks: Client, stub: Stub, fault: str) -> None:
    """An error, a cut answer and an answer about something else are all unknown, never success or failure."""
    token, key = await tokenized(parks), new_key()
    await stub.faults(**{fault: 1})
    unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    await stub.faults()
    final = await parks.finally_("/v1/charges", charge_body(token=token), key)

    assert unclear.status == 202
    assert final.status == 201
    assert (await stub.charges())[final.json["processor_reference"]]["effects"] == 1


async def test_refused_connection_is_final_and_frees_the_token(parks: Client, stub: Stub) -> None:
    """When no byte can have left the answer is 502, for ever under that key, and the token is as good as new."""
    token, key = await tokenized(parks, usage="single"), new_key()
    await stub.faults(refused=1)
    failed = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    await stub.faults()
    again = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)

    assert (failed.status, failed.problem) == (502, "charge-failed")
    assert failed.json["charge"]["status"] == "failed"
    assert (again.status, again.body) == (failed.status, failed.body)
    assert (await charged(parks, token))["status"] == "succeeded"


async def test_slow_processor_is_answered_within_ten_seconds(parks: Client, stub: Stub) -> None:
    """A processor that takes too long gives 202 in time, and the truth later."""
    token, key = await tokenized(parks), new_key()
    await stub.faults(slow=1)
    started = asyncio.get_running_loop().time()
    unclear = await parks.call("POST", "/v1/charges", charge_body(token=token), key=key)
    took_s = asyncio.get_running_loop().time() - started
    await stub.faults()

    assert unclear.status == 202
    assert took_s < 10
    assert (await parks.finally_("/v1/charges", charge_body(token=token), key)).json["status"] == "succeeded"


async def test_verification_with_code(parks: Client, stub: Stub) -> None:
    """With a code the card is verified once: pass, refused with nothing stored, or unavailable."""
    passed = await parks.call("POST", "/v1/tokens", token_body(card=card(cvc="123")))
    assert (passed.status, passed.json["checks"]["cvc"]) == (201, "pass")

    key = new_key()
    wrong = token_body(card=card("4000000000000127", cvc="123"))
    for _ in range(2):
        refused = await parks.call("POST", "/v1/tokens", wrong, key=key)
        assert (refused.status, refused.problem) == (402, "card-declined")

    await stub.faults(lost_reply=1)
    unclear = await parks.call("POST", "/v1/tokens", token_body(card=card(cvc="123")))
    assert (unclear.status, unclear.json["checks"]["cvc"]) == (201, "unavailable")


async def test_fingerprint_lives_as_long_as_a_token_of_the_card(parks: Client, utilities: Client) -> None:
    """A card has one fingerprint in a department while a token of it lives, another elsewhere and afterwards."""
    number = canary(900_001)
    first, second = [(await parks.call("POST", "/v1/tokens", token_body(number))).json for _ in range(2)]
    other = (await utilities.call("POST", "/v1/tokens", token_body(number))).json
    assert first["id"] != second["id"]
    assert first["card"]["fingerprint"] == second["card"]["fingerprint"] != other["card"]["fingerprint"]

    await parks.call("DELETE", f"/v1/tokens/{first['id']}")
    third = (await parks.call("POST", "/v1/tokens", token_body(number))).json
    assert third["card"]["fingerprint"] == first["card"]["fingerprint"]
    for token in (second, third):
        await parks.call("DELETE", f"/v1/tokens/{token['id']}")
    fourth = (await parks.call("POST", "/v1/tokens", token_body(number))).json
    assert fourth["card"]["fingerprint"] != first["card"]["fingerprint"]


async def test_erased_token_is_gone(parks: Client) -> None:
    """An erased token shows no card, cannot be charged, and stands in the place of the answer that made it."""
    key = new_key()
    token = (await parks.call("POST", "/v1/tokens", token_body(), key=key)).json["id"]
    erased = await parks.call("DELETE", f"/v1/tokens/{token}")
    again = await parks.call("DELETE", f"/v1/tokens/{token}")
    shown = await parks.call("GET", f"/v1/tokens/{token}")
    repeated = await parks.call("POST", "/v1/tokens", token_body(), key=key)

    assert [reply.status for reply in (erased, again, shown, repeated)] == [200, 200, 200, 201]
    assert erased.json["status"] == "erased"
    assert "card" not in erased.json
    assert erased.json == again.json == shown.json == repeated.json
    refused = await parks.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
    assert (refused.status, refused.problem) == (422, "token-unusable")


async def test_list_pages_newest_first(utilities: Client) -> None:
    """Lists are newest first, page without losing or repeating a row, and filter by reference."""
    token, reference = await tokenized(utilities), f"list {new_key()}"
    body = charge_body(token=token) | {"reference": reference}
    made = [(await utilities.call("POST", "/v1/charges", body, key=new_key())).json["id"] for _ in range(5)]
    seen: list[str] = []
    after = ""
    while True:
        path = f"/v1/charges?reference={reference.replace(' ', '%20')}&limit=2{after}"
        page = (await utilities.call("GET", path)).json
        seen += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = f"&starting_after={seen[-1]}"

    assert seen == made[::-1]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=%D9%A3", "wrong=1", "limit=1&limit=2", "reference="]
)
async def test_doubtful_list_queries_are_refused(parks: Client, query: str) -> None:
    """A query that is not understood is refused, never guessed at."""
    assert (await parks.call("GET", f"/v1/charges?{query}")).status == 400


async def test_foreign_and_unknown_ids_look_the_same(parks: Client, utilities: Client) -> None:
    """Another department's id and one that nobody has get the same bytes on every route that takes one."""
    token = await tokenized(parks)
    charge = (await charged(parks, token))["id"]
    for method, path, foreign in (
        ("GET", "/v1/tokens/", token),
        ("DELETE", "/v1/tokens/", token),
        ("GET", "/v1/charges/", charge),
        ("GET", "/v1/charges?starting_after=", charge),
    ):
        unknown = foreign[:-1] + ("a" if foreign[-1] != "a" else "b")
        replies = [await utilities.call(method, path + name) for name in (foreign, unknown)]
        assert [reply.status for reply in replies] == [404, 404]
        assert replies[0].body == replies[1].body
    bodies = [charge_body(token=name) for name in (token, "tok_aaaaaaaaaaaaaaaaaaaaaaaaaa")]
    refused = [await utilities.call("POST", "/v1/charges", body, key=new_key()) for body in bodies]
    assert [reply.status for reply in refused] == [404, 404]
    assert refused[0].body == refused[1].body


@pytest.mark.parametrize("key", [None, "", '"', "a" * 256, "two words", '"a\\b"'])
async def test_malformed_keys_are_refused(parks: Client, key: str | None) -> None:
    """A charge without a key, or with one that is none, is refused before anything is done."""
    reply = await parks.call("POST", "/v1/charges", charge_body(token="tok_x"), key=key)

    assert (reply.status, reply.problem) == (400, "idempotency-key-invalid")


async def test_card_number_is_refused_where_it_would_be_stored(parks: Client) -> None:
    """A card number in a text field or in the key is 422, and is not repeated in the answer."""
    printed = "4242 4242 4242 4242"
    token = await tokenized(parks)
    for reply in (
        await parks.call("POST", "/v1/charges", charge_body(token=token) | {"reference": printed}, key=new_key()),
        await parks.call("POST", "/v1/charges", charge_body(token=token, details={"memo": [VISA]}), key=new_key()),
        await parks.call("POST", "/v1/charges", charge_body(token=token), key=VISA),
        await parks.call("POST", "/v1/tokens", token_body() | {"name": printed}),
        await parks.call("POST", "/v1/tokens", token_body(details={"n": int(VISA)})),
    ):
        assert (reply.status, reply.problem) == (422, "card-number-in-text")
        assert b"4242" not in reply.body


@pytest.mark.parametrize("api_key", ["", "nonsense", "gwk_" + "a" * 26 + "_" + "b" * 43])
async def test_unknown_keys_are_not_identified(parks: Client, api_key: str) -> None:
    """Whoever has no valid API key gets the same 401."""
    reply = await parks.call("GET", "/v1/charges", api_key=api_key or "x")

    assert (reply.status, reply.problem) == (401, "not-identified")


async def test_certificate_must_be_the_application_s(system: System) -> None:
    """A key alone serves here, a key with its certificate serves, a key with another's certificate is 403."""
    async with Client(system, "parks", certificate="parks") as client:
        assert (await client.call("GET", "/v1/charges")).status == 200
    async with Client(system, "parks", certificate="utilities") as client:
        refused = await client.call("GET", "/v1/charges")
    assert (refused.status, refused.problem) == (403, "wrong-certificate")


async def test_health_and_description_need_no_key(system: System, parks: Client) -> None:
    """Health and the OpenAPI document are open; every answer carries a fresh request id and no banner."""
    seen = set()
    for path in ("/healthz", "/readyz", "/openapi.json", "/v1/none"):
        reply = await parks.call("GET", path, api_key="none")
        assert "Server" not in reply.headers
        assert reply.headers["Cache-Control"] == "no-store"
        seen.add(reply.headers["Request-Id"])
    assert len(seen) == 4
    assert json.loads((await parks.call("GET", "/readyz")).body) == {"status": "ok", "reasons": []}


async def test_amount_is_bounded_by_the_application(parks: Client) -> None:
    """An amount above what the application may charge is refused, and one at its limit is not."""
    token = await tokenized(parks)
    for amount, status in ((1_000_000_001, 422), (1_000_000_000, 201)):
        reply = await parks.call("POST", "/v1/charges", charge_body(token=token) | {"amount": amount}, key=new_key())
        assert reply.status == status


@pytest.mark.parametrize(
    "name", ["José Núñez-O\u2019Neil", "\u0645\u06cc\u200c\u0631\u0648\u0645", "Ada\u00a0B", "李小龍"]
)
async def test_names_that_people_have(parks: Client, name: str) -> None:
    """Names with joiners, odd spaces and any script are taken; what turns a text around is not."""
    assert (await parks.call("POST", "/v1/tokens", token_body() | {"name": name})).status == 201
    assert (await parks.call("POST", "/v1/tokens", token_body() | {"name": name + "\u202e"})).status == 400


async def test_metrics_listener_is_as_silent_as_the_api(system: System) -> None:
    """A malformed request to the metrics port gets a constant answer without its bytes and without a banner."""
    port = int(system.demo["metrics"].rpartition(":")[2].partition("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {VISA}\x00\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.split(b"\r\n")[0].endswith(b" 400 Bad Request")
    assert VISA.encode() not in answer
    assert b"Server:" not in answer


async def test_metrics_tell_of_routes_and_charges(system: System, parks: Client) -> None:
    """Prometheus finds latency by route and outcome, unresolved charges and the pool, on loopback."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(system.demo["metrics"]) as response:
        text = await response.text()

    for line in (
        'route="POST /v1/tokens",status="201"',
        'gateway_movements{state="unknown"}',
        "gateway_pool_connections",
    ):
        assert line in text
