"""Bad requests about money over HTTP: each has its own problem type, and leaves everything as it was."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.rules.ids import new_id
from gateway.rules.lifecycle import Kind
from gateway.services.ports import Absent, Approved, Declined, Unknown
from tests.cards import canary
from tests.gateway.store.city import City, Page
from tests.gateway.store.door import Door, opened
from tests.gateway.store.far import FarSide
from tests.gateway.store.postgres import PARKS, UTILITIES
from tests.system import Reply

pytestmark = pytest.mark.server

CARD = 71_001
AMOUNT = 4_321
TABLES = ("charges", "movements", "journal", "idempotency", "tokens", "deks", "fingerprints")
ROUTES = {Kind.CAPTURE: "capture", Kind.VOID: "void", Kind.REFUND: "refunds"}
CHARGE = {"amount": AMOUNT, "currency": "USD", "reference": "invoice 7"}
STANDS = ("authorized", "captured", "refunded", "voided", "declined", "failed", "unclear", "in review", "refunding")


class Counter:
    """A city, one page of it with its API, and what stands in all of its tables."""

    def __init__(self, city: City, page: Page, door: Door) -> None:
        self.city, self.page, self.door, self.far = city, page, door, page.far

    async def everything(self) -> dict[str, list[str]]:
        """Every row of every table of money."""
        rows = {}
        for table in TABLES:
            found = await self.city.owner.fetch(f"SELECT t::text AS row FROM gateway.{table} t ORDER BY 1")
            rows[table] = [record["row"] for record in found]
        return rows

    def key(self) -> str:
        """A key that nobody has used."""
        return new_id("key")

    async def move(self, kind: Kind, charge_id: str, body: Any = None, key: str | None = None) -> Reply:
        """Capture, void or refund a charge."""
        return await self.door.call("POST", f"/v1/charges/{charge_id}/{ROUTES[kind]}", body, key or self.key())

    async def charged(self, *, capture: bool = True) -> str:
        """A new charge, as the processor will have it."""
        token = (await self.page.token(CARD))["id"]
        body = CHARGE | {"token": token, "capture": capture}
        reply = await self.door.call("POST", "/v1/charges", body, self.key())
        shown = reply.json if reply.status < 400 else reply.json["charge"]
        return str(shown["id"])

    async def standing(self, stands: str) -> str:
        """A charge that stands there."""
        first: dict[str, Any] = {
            "declined": Declined("fail", "soft", "05"),
            "failed": Absent(),
            "unclear": Unknown("timeout"),
            "in review": Unknown("timeout"),
        }
        self.far.sends = first.get(stands, Approved("pass"))
        charge_id = await self.charged(capture=stands not in {"authorized", "voided"})
        if stands == "in review":
            await self.city.expire()
            await self.city.owner.execute("UPDATE gateway.movements SET first_sent_at = now() - interval '1 minute'")
            await self.city.recovery(self.far).turn()
        if stands == "refunding":
            self.far.sends = Unknown("timeout")
        if stands in {"refunded", "refunding"}:
            await self.move(Kind.REFUND, charge_id)
        if stands == "voided":
            await self.move(Kind.VOID, charge_id)
        self.far.sends = Approved("pass")
        return charge_id


@pytest.fixture
async def counter(town: City) -> AsyncIterator[Counter]:
    """A processor that approves, and the API before it."""
    page = town.page(FarSide())
    async with opened(town, page) as door:
        yield Counter(town, page, door)


async def require_refused(counter: Counter, asking: Any, status: int, problem: str) -> Reply:
    """What is asked for is refused so; nothing is sent, and no row is another one."""
    before, sent = await counter.everything(), len(counter.far.sent)
    reply: Reply = await asking
    assert (reply.status, reply.problem) == (status, problem)
    assert await counter.everything() == before
    assert len(counter.far.sent) == sent
    return reply


NOT_ALLOWED = {
    "authorized": {Kind.REFUND: "charge-not-captured"},
    "captured": {Kind.CAPTURE: "charge-captured", Kind.VOID: "charge-captured"},
    "refunded": {
        Kind.CAPTURE: "charge-captured",
        Kind.VOID: "charge-captured",
        Kind.REFUND: "nothing-left-to-refund",
    },
    "refunding": {
        Kind.CAPTURE: "charge-captured",
        Kind.VOID: "charge-captured",
        Kind.REFUND: "nothing-left-to-refund",
    },
    "voided": dict.fromkeys(ROUTES, "charge-voided"),
    "declined": dict.fromkeys(ROUTES, "charge-not-made"),
    "failed": dict.fromkeys(ROUTES, "charge-not-made"),
    "unclear": dict.fromkeys(ROUTES, "charge-unresolved"),
    "in review": dict.fromkeys(ROUTES, "charge-unresolved"),
}


@pytest.mark.parametrize("stands", STANDS)
async def test_a_state_that_does_not_allow_it(counter: Counter, stands: str) -> None:
    """409, by what stands in the way: captured, not captured, voided, never made, unresolved, nothing left."""
    charge_id = await counter.standing(stands)
    for kind, problem in NOT_ALLOWED[stands].items():
        reply = await require_refused(counter, counter.move(kind, charge_id), 409, problem)
        assert "Retry-After" not in reply.headers
    shown = (await counter.door.call("GET", f"/v1/charges/{charge_id}")).json["status"]
    assert shown == {"unclear": "pending", "in review": "in_review", "refunded": "succeeded"}.get(
        stands, {"captured": "succeeded", "refunding": "succeeded"}.get(stands, stands)
    )


@pytest.mark.parametrize(
    ("amount", "problem"),
    [(0, "amount-refused"), (-1, "amount-refused"), (AMOUNT + 1, "amount-refused"), (2**70, "amount-refused")],
)
async def test_an_amount_that_cannot_be_captured(counter: Counter, amount: int, problem: str) -> None:
    """422 below one minor unit and above what was authorized; the whole of it still can be."""
    charge_id = await counter.standing("authorized")
    key = counter.key()
    await require_refused(counter, counter.move(Kind.CAPTURE, charge_id, {"amount": amount}, key), 422, problem)
    assert (await counter.move(Kind.CAPTURE, charge_id, {"amount": AMOUNT}, key)).json["captured"] == AMOUNT


@pytest.mark.parametrize(
    ("amount", "problem"),
    [
        (0, "amount-refused"),
        (-1, "amount-refused"),
        (AMOUNT - 1_000 + 1, "refund-too-large"),
        (AMOUNT, "refund-too-large"),
        (2**70, "refund-too-large"),
    ],
)
async def test_an_amount_that_cannot_be_refunded(counter: Counter, amount: int, problem: str) -> None:
    """422 below one minor unit and above what is left; what is left still can be, under the same key."""
    charge_id = await counter.standing("captured")
    await counter.move(Kind.REFUND, charge_id, {"amount": 1_000})
    key = counter.key()
    reply = await require_refused(
        counter, counter.move(Kind.REFUND, charge_id, {"amount": amount}, key), 422, problem
    )
    assert reply.json["errors"] == [{"pointer": "#/amount"}]
    assert (await counter.move(Kind.REFUND, charge_id, {"amount": AMOUNT - 1_000}, key)).status == 201


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"amount": 0}, "amount-refused"),
        ({"amount": -AMOUNT}, "amount-refused"),
        ({"amount": 1_000_001}, "amount-refused"),
        ({"amount": 2**70}, "amount-refused"),
        ({"convenience_fee": AMOUNT + 1}, "amount-refused"),
        ({"convenience_fee": -1}, "amount-refused"),
        ({"currency": "EUR"}, "currency-refused"),
        ({"currency": "usd"}, "currency-refused"),
        ({"currency": ""}, "currency-refused"),
        ({"service": "GOLF"}, "service-unknown"),
    ],
)
async def test_a_charge_that_cannot_be_made(counter: Counter, change: dict[str, Any], problem: str) -> None:
    """422: of no amount, beyond the application's bound, in another currency; the key and the token stay free."""
    token, key = (await counter.page.token(CARD, usage="single"))["id"], counter.key()
    body = CHARGE | {"token": token}
    await require_refused(counter, counter.door.call("POST", "/v1/charges", body | change, key), 422, problem)
    assert (await counter.door.call("POST", "/v1/charges", body, key)).status == 201


@pytest.mark.parametrize("kind", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        *({"amount": amount} for amount in (1.0, 1.5, "1", None, True, [1])),
        {"currency": "USD"},
        {"amount": 1, "currency": "USD"},
        {"note": "please"},
        b'{"amount": 1, "amount": 2}',
        b'{"amount": 1e2}',
        b"[]",
        b"null",
        b"{",
    ],
)
async def test_what_is_not_the_schema(counter: Counter, kind: Kind, body: Any) -> None:
    """400: floats, texts, other fields, a currency, a name twice, and what is no JSON."""
    charge_id = await counter.standing("captured" if kind is Kind.REFUND else "authorized")
    await require_refused(counter, counter.move(kind, charge_id, body), 400, "invalid-request")


@pytest.mark.parametrize("kind", ROUTES)
async def test_a_charge_that_is_not_there(counter: Counter, kind: Kind) -> None:
    """404 for an unknown id, the same bytes for another department's, and for ids that are none."""
    charge_id = await counter.standing("captured" if kind is Kind.REFUND else "authorized")
    refund = (await counter.move(Kind.REFUND, charge_id, {"amount": 1})).json["id"] if kind is Kind.REFUND else "re_x"
    unknown = await require_refused(counter, counter.move(kind, "ch_" + "a" * 26), 404, "not-found")
    for path in (charge_id, refund, "-", "ch_" + "a" * 500):
        department = UTILITIES if path == charge_id else PARKS
        asked = counter.door.call(
            "POST", f"/v1/charges/{path}/{ROUTES[kind]}", None, counter.key(), department=department
        )
        reply = await require_refused(counter, asked, 404, "not-found")
        assert reply.body == unknown.body, path
    for no_id in ("ch_x%00", "%F0%9F%92%B3"):  # such paths the server itself does not know
        await require_refused(counter, counter.move(kind, no_id), 404, "not-found")


async def test_a_refund_that_is_not_there(counter: Counter) -> None:
    """404 for an unknown id, another department's refund, a charge, and a movement that is no refund."""
    charge_id = await counter.standing("captured")
    refund = (await counter.move(Kind.REFUND, charge_id, {"amount": 1})).json["id"]
    assert (await counter.door.call("GET", f"/v1/refunds/{refund}")).json["amount"] == 1
    unknown = await counter.door.call("GET", "/v1/refunds/re_" + "a" * 26)
    assert (unknown.status, unknown.problem) == (404, "not-found")
    others = [(refund, UTILITIES), (charge_id, PARKS), ("mv_" + charge_id[3:], PARKS)]
    for path, department in others:
        reply = await counter.door.call("GET", f"/v1/refunds/{path}", department=department)
        assert (reply.status, reply.body) == (404, unknown.body), path


@pytest.mark.parametrize("kind", ROUTES)
@pytest.mark.parametrize(
    ("key", "status", "problem"),
    [
        (None, 400, "idempotency-key-invalid"),
        ("", 400, "idempotency-key-invalid"),
        ("two words", 400, "idempotency-key-invalid"),
        ("k" * 256, 400, "idempotency-key-invalid"),
        (canary(7), 422, "card-number-in-text"),
    ],
)
async def test_a_key_that_is_none(counter: Counter, kind: Kind, key: str | None, status: int, problem: str) -> None:
    """400 where it is missing or malformed, 422 where it is a card number; nothing moves without one."""
    charge_id = await counter.standing("captured" if kind is Kind.REFUND else "authorized")
    asked = counter.door.call("POST", f"/v1/charges/{charge_id}/{ROUTES[kind]}", None, key)
    reply = await require_refused(counter, asked, status, problem)
    assert canary(7).encode() not in reply.body


async def test_a_key_that_was_used_for_another_body(counter: Counter) -> None:
    """422 for another amount, another charge, or no amount where there was one; the first answer stands."""
    charge_id, other = [await counter.standing("captured") for _ in range(2)]
    key = counter.key()
    first = await counter.move(Kind.REFUND, charge_id, {"amount": 100}, key)
    for wrong, body in (
        (charge_id, {"amount": 101}),
        (charge_id, None),
        (charge_id, {}),
        (other, {"amount": 100}),
        ("ch_none", {"amount": 100}),
    ):
        await require_refused(counter, counter.move(Kind.REFUND, wrong, body, key), 422, "idempotency-key-reused")
    again = await counter.move(Kind.REFUND, charge_id, {"amount": 100}, f'"{key}"')
    assert (again.status, again.body) == (first.status, first.body)
    for kind in (Kind.CAPTURE, Kind.VOID):
        held, free = [await counter.standing("authorized") for _ in range(2)]
        assert (await counter.move(kind, held, None, key)).status == 200
        asked = counter.move(kind, free, None, key)
        await require_refused(counter, asked, 422, "idempotency-key-reused")


@pytest.mark.parametrize(
    "change", [{"amount": AMOUNT + 1}, {"reference": "other"}, {"capture": False}, {"convenience_fee": 1}]
)
async def test_a_key_that_was_used_for_another_charge(counter: Counter, change: dict[str, Any]) -> None:
    """422, and the first answer stands."""
    body, key = CHARGE | {"token": (await counter.page.token(CARD))["id"]}, counter.key()
    first = await counter.door.call("POST", "/v1/charges", body, key)
    asked = counter.door.call("POST", "/v1/charges", body | change, key)
    await require_refused(counter, asked, 422, "idempotency-key-reused")
    assert (await counter.door.call("POST", "/v1/charges", body, key)).body == first.body


async def test_a_key_of_another_route_is_another_key(counter: Counter) -> None:
    """A key is its department's and its route's: the same word elsewhere is free, and answers for itself."""
    charge_id, key = await counter.charged(capture=False), counter.key()
    captured = await counter.move(Kind.CAPTURE, charge_id, None, key)
    refunded = await counter.move(Kind.REFUND, charge_id, None, key)
    assert (captured.json["object"], refunded.json["object"]) == ("charge", "refund")
    assert (await counter.move(Kind.CAPTURE, charge_id, None, key)).body == captured.body
    assert (await counter.move(Kind.REFUND, charge_id, None, key)).body == refunded.body


@pytest.mark.parametrize("kind", ROUTES)
async def test_the_same_key_at_once_on_two_replicas(counter: Counter, kind: Kind) -> None:
    """One is sent; the other is told that it runs, with when to come back, or is given the same answer."""
    charge_id = await counter.standing("captured" if kind is Kind.REFUND else "authorized")
    sent, key = len(counter.far.sent), counter.key()
    counter.far.held = True
    async with opened(counter.city, counter.city.page(counter.far)) as other:
        path = f"/v1/charges/{charge_id}/{ROUTES[kind]}"
        doors = (counter.door, other, counter.door, other)
        running = [asyncio.create_task(door.call("POST", path, None, key)) for door in doors]
        done, pending = set[asyncio.Task[Reply]](), set(running)
        async with asyncio.timeout(5):
            while len(pending) > 1:
                ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                done |= ended
        assert [(task.result().status, task.result().problem) for task in done] == [(409, "request-in-progress")] * 3
        assert all(task.result().headers["Retry-After"] for task in done)
        counter.far.release()
        (winner,) = pending
        answer = await winner
        for door in (counter.door, other):
            again = await door.call("POST", path, None, key)
            assert (again.status, again.body) == (answer.status, answer.body)
    assert answer.status == (201 if kind is Kind.REFUND else 200)
    assert len(counter.far.sent) == sent + 1


async def test_answers_name_no_secret(counter: Counter) -> None:
    """No answer to anything above holds a key, a request's number, or what a resident typed."""
    charge_id = await counter.standing("captured")
    reply = await counter.move(Kind.REFUND, charge_id, None, "my-own-key")
    for body in (reply.body, (await counter.door.call("GET", f"/v1/refunds/{reply.json['id']}")).body):
        for secret in (b"my-own-key", b"Ramona", canary(CARD).encode(), reply.headers["Request-Id"].encode()):
            assert secret not in body
