"""Scope x route x department, over the wire: generated from the route table, so that no route is left out."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from itertools import product

import asyncpg
import pytest

from gateway.rules.access import Scope
from gateway.rules.ids import new_id
from gateway.web.api import ROUTES, Public, Route
from tests.acceptance.test_main_job import charge_body, charged, new_key, token_body, tokenized
from tests.system import Client, Reply, System

pytestmark = pytest.mark.server

GUARDED = {route.handler: route for route in ROUTES if isinstance(route.permission, Scope)}
PREFIX = {"/v1/tokens": "tok", "/v1/charges": "ch", "/v1/refunds": "re"}
ROWS = ("tokens", "charges", "movements", "journal", "deks", "fingerprints", "idempotency")

Objects = Mapping[str, str]
"""What a department has, by the handler whose route names it."""


@pytest.fixture(scope="module")
async def narrow(system: System) -> AsyncIterator[Mapping[Scope, Client]]:
    """Applications of the parks, each with one scope."""
    known = dict(system.demo["apps"])
    async with AsyncExitStack() as stack:
        clients = {}
        for scope in Scope:
            added = json.loads(system.command("gateway", "app", "add", "parks", f"only {scope}", "--scope", scope))
            system.demo["apps"][scope] = {"api_key": added["api_key"]}
            clients[scope] = await stack.enter_async_context(Client(system, scope))
        for client in clients.values():
            while (await client.call("GET", "/v1/charges")).status == 401:
                await asyncio.sleep(0.1)
        yield clients
    system.demo["apps"] = known


async def objects(client: Client) -> Objects:
    """One of each that a route may name, ready for what the route does."""
    authorized = [
        await client.call(
            "POST", "/v1/charges", charge_body(token=await tokenized(client), capture=False), key=new_key()
        )
        for _ in range(2)
    ]
    captured = await charged(client, await tokenized(client))
    refund = await client.call("POST", f"/v1/charges/{captured['id']}/refunds", {"amount": 1}, key=new_key())
    return {
        "show_token": await tokenized(client),
        "erase_token": await tokenized(client),
        "show_charge": captured["id"],
        "capture_charge": authorized[0].json["id"],
        "void_charge": authorized[1].json["id"],
        "refund_charge": captured["id"],
        "show_refund": refund.json["id"],
    }


async def ask(client: Client, route: Route, object_id: str, token: str) -> Reply:
    """A request that is right in all but, perhaps, who asks and about what."""
    bodies = {"create_token": token_body(), "create_charge": charge_body(token=token)}
    key = new_key() if route.key == "required" else None
    return await client.call(route.method, route.path.replace("{id}", object_id), bodies.get(route.handler), key=key)


async def count(sql: asyncpg.Connection) -> list[int]:
    """How many rows there are."""
    return [await sql.fetchval(f"SELECT count(*) FROM gateway.{table}") for table in ROWS]


async def test_scope_by_route(parks: Client, narrow: Mapping[Scope, Client], sql: asyncpg.Connection) -> None:
    """Each scope opens its own routes and no other; who is turned away has changed nothing, and stands in the log."""
    own, token = await objects(parks), await tokenized(parks)
    began = await sql.fetchval("SELECT now()")
    refused = 0
    for scope, route in product(Scope, GUARDED.values()):
        if route.permission is scope:
            continue
        before = await count(sql)
        reply = await ask(narrow[scope], route, own.get(route.handler, ""), token)
        assert (reply.status, reply.problem) == (403, "not-permitted"), (scope, route.handler)
        assert await count(sql) == before
        refused += 1
    assert refused == len(GUARDED) * (len(Scope) - 1)
    told = "SELECT count(*) FROM audit.events WHERE event = 'permission.refused' AND occurred_at >= $1"
    assert await sql.fetchval(told, began) == refused
    for handler, route in GUARDED.items():
        assert isinstance(route.permission, Scope)
        reply = await ask(narrow[route.permission], route, own.get(handler, ""), token)
        assert reply.status in {200, 201}, (handler, reply.body)


@pytest.mark.parametrize("handler", [name for name, route in GUARDED.items() if "{id}" in route.path])
async def test_foreign_and_unknown_ids_are_one(
    parks: Client, utilities: Client, sql: asyncpg.Connection, handler: str
) -> None:
    """Whatever the route, another department's id is answered byte for byte as one that nobody has; nothing moves."""
    route, theirs = GUARDED[handler], (await objects(utilities))[handler]
    prefix = PREFIX["/".join(route.path.split("/")[:3])]
    unknown = [new_id(prefix), theirs[:-1], theirs.upper(), theirs + "a", prefix + "_", "0", new_id("zz")]
    before = await count(sql)
    foreign = await ask(parks, route, theirs, "")
    assert (foreign.status, foreign.problem) == (404, "not-found")
    for object_id in unknown:
        reply = await ask(parks, route, object_id, "")
        assert (reply.status, reply.body) == (foreign.status, foreign.body)
        same = {name: value for name, value in reply.headers.items() if name not in {"Request-Id", "Date"}}
        assert same == {name: foreign.headers[name] for name in same}
    assert await count(sql) == before


def test_open_routes_are_these_alone() -> None:
    """Nobody needs a key to see whether it lives, whether it can serve, and how to speak to it."""
    assert {route.handler for route in ROUTES if isinstance(route.permission, Public)} == {
        *("healthz", "readyz", "openapi")
    }


async def test_guesses_find_nothing(parks: Client) -> None:
    """Ids next to known ones, and short ones, name nothing; the application's quota bounds how many can be tried."""
    known = await tokenized(parks)
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    for letter in letters.replace(known[-1], ""):
        assert (await parks.call("GET", f"/v1/tokens/{known[:-1]}{letter}")).status == 404
