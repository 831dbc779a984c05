"""Every route of the public API declares who may use it: without that nothing starts."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from aiohttp import web

from gateway.rules.access import Scope
from gateway.web import api as module
from gateway.web.api import ROUTES, Api, Public, Route
from gateway.web.openapi import document

EXPECTED = {
    "create_token": "tokens:write",
    "create_tokens": "tokens:write",
    "show_token": "tokens:read",
    "erase_token": "tokens:erase",
    "create_charge": "charges:write",
    "show_charge": "charges:read",
    "list_charges": "charges:read",
    "capture_charge": "charges:write",
    "void_charge": "charges:write",
    "refund_charge": "charges:refund",
    "show_refund": "charges:read",
    "healthz": "",
    "readyz": "",
    "openapi": "",
}
"""The scope of each route; those without one answer anybody."""


def _application() -> web.Application:
    return Api.__new__(Api).application()  # routes are bound to methods; no service is asked for


async def _started(application: web.Application) -> None:
    runner = web.AppRunner(application)
    try:
        await runner.setup()
    finally:
        await runner.cleanup()


def test_every_route_asks_for_its_scope() -> None:
    """The table says just this: a changed permission is a decision, and changes it here too."""
    said = {route.handler: "" if isinstance(route.permission, Public) else str(route.permission) for route in ROUTES}

    assert said == EXPECTED
    assert set(filter(None, said.values())) == set(Scope)


def test_an_open_route_says_why() -> None:
    """Whoever makes a route public writes down the reason."""
    assert all(route.permission.why for route in ROUTES if isinstance(route.permission, Public))


def test_the_document_names_the_scope() -> None:
    """Whoever writes an application reads there what it needs."""
    paths: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document()))["paths"]
    told = {operation["operationId"]: operation["security"] for path in paths.values() for operation in path.values()}

    assert told == {name: [{"apiKey": [scope]}] if scope else [] for name, scope in EXPECTED.items()}


def test_a_route_without_a_permission_is_none() -> None:
    """There is no default that could let somebody in: leaving it out is an error where the table is read."""
    with pytest.raises(TypeError, match="permission"):
        Route("GET", "/v1/secrets", "show_token", summary="Forgotten", answers={200: None})  # type: ignore[call-arg]


@pytest.mark.parametrize("permission", [None, "", "tokens:read", True, Public])
def test_a_permission_is_a_scope_or_public(monkeypatch: pytest.MonkeyPatch, permission: Any) -> None:
    """Anything else in its place stops the start, also what would look true."""
    forgotten = Route("GET", "/v1/secrets", "show_token", permission, "Forgotten", {200: None})
    monkeypatch.setattr(module, "ROUTES", (*ROUTES, forgotten))
    with pytest.raises(TypeError, match="GET /v1/secrets declares no permission"):
        _application()


def _beside_a_path(application: web.Application, handler: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    application.router.add_get("/v1/secrets", handler)


def _beside_a_method(application: web.Application, handler: Callable[[web.Request], Awaitable[web.Response]]) -> None:
    application.router.add_put("/v1/tokens/{id}", handler)


def _beside_everything(
    application: web.Application, handler: Callable[[web.Request], Awaitable[web.Response]]
) -> None:
    application.router.add_route("*", "/{rest:.*}", handler)


@pytest.mark.parametrize("add", [_beside_a_path, _beside_a_method, _beside_everything])
async def test_a_route_beside_the_table_stops_the_start(add: Callable[..., None]) -> None:
    """A handler that somebody hangs on the router has no permission; with the table alone the start goes on."""

    async def handler(_request: web.Request) -> web.Response:
        return web.Response()

    application = _application()
    add(application, handler)
    with pytest.raises(TypeError, match="declares no permission"):
        await _started(application)
    await _started(_application())
