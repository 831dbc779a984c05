"""Role x route x department at the admin site, for scripts and for people: generated from the tables of routes.

What each role may do is written out here once more, by hand, so that a slip in the product's own table is seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web

from gateway.rules.staff import Permission, Role
from gateway.web.admin import Admin
from gateway.web.finance.audit import AuditFace
from gateway.web.finance.charges import ChargesFace
from gateway.web.finance.closes import ClosesFace
from gateway.web.finance.exceptions import ExceptionsFace
from gateway.web.finance.exports import ExportsFace
from gateway.web.finance.imports import ImportsFace
from gateway.web.finance.reconciliations import ReconciliationsFace
from gateway.web.finance.today import TodayFace
from gateway.web.gate import PUBLIC, STAFF, Gate, StaffRoute, UndeclaredRoute
from gateway.web.oidc import OidcPages
from gateway.web.pages import Pages
from tests.gateway.store.postgres import HOST, PARKS, UTILITIES
from tests.gateway.web.site import Person, Site, served
from tests.system import Reply

pytestmark = pytest.mark.server

EVERYBODY = frozenset(Role)
READERS = frozenset({Role.FINANCE, Role.APPROVER, Role.AUDITOR})
APPROVERS = frozenset({Role.APPROVER})
FINANCE = frozenset({Role.FINANCE})
AUDITORS = frozenset({Role.AUDITOR})
CLOSERS = FINANCE | APPROVERS
RECONCILERS = frozenset({Role.FINANCE, Role.APPROVER})


@dataclass(frozen=True)
class Expected:
    """Who may call a route, with what body, and what they are answered then."""

    status: int
    roles: frozenset[Role] = EVERYBODY
    body: Any = None
    file: bytes | None = None
    """What is sent as a file, as `text/csv` or in a form."""
    ends_session: bool = False
    is_public: bool = False


MATRIX: Mapping[str, Expected] = {
    "POST /admin/v1/sessions": Expected(400, body={}, is_public=True),
    "DELETE /admin/v1/sessions": Expected(204, ends_session=True),
    "GET /admin/v1/me": Expected(200),
    "POST /admin/v1/password": Expected(422, body={"old": "x", "new": "short"}),
    "GET /admin/v1/refunds": Expected(200, READERS),
    "POST /admin/v1/refunds/{id}/approve": Expected(200, APPROVERS),
    "POST /admin/v1/refunds/{id}/reject": Expected(200, APPROVERS),
    "GET /healthz": Expected(200, is_public=True),
    "GET /readyz": Expected(200, is_public=True),
    "GET /": Expected(200),
    "GET /sign-in": Expected(200, is_public=True),
    "POST /sign-in": Expected(400, body={}, is_public=True),
    "POST /sign-out": Expected(303, body={}, ends_session=True),
    "GET /password": Expected(200),
    "POST /password": Expected(422, body={"old": "x", "new": "short", "again": "short"}),
    "GET /refunds": Expected(200, READERS),
    "POST /refunds/{id}": Expected(303, APPROVERS, body={"verdict": "rejected"}),
    "GET /static/admin.css": Expected(200, is_public=True),
    "GET /static/admin.js": Expected(200, is_public=True),
    "GET /admin/v1/today": Expected(200, READERS),
    # The people of the matrix are of the parks, and a file is for who has all departments: 403 for each of them.
    "POST /admin/v1/settlements": Expected(403, FINANCE, file=b"x"),
    "POST /admin/v1/deposits": Expected(403, FINANCE, file=b"x"),
    "GET /admin/v1/settlements": Expected(200, READERS),
    "GET /admin/v1/deposits": Expected(200, READERS),
    "GET /admin/v1/settlements/{id}": Expected(404, READERS),
    "GET /admin/v1/deposits/{id}": Expected(404, READERS),
    "GET /admin/v1/settlements/{id}/lines": Expected(404, READERS),
    "GET /admin/v1/deposits/{id}/lines": Expected(404, READERS),
    "GET /settlements": Expected(200, READERS),
    "GET /deposits": Expected(200, READERS),
    "POST /settlements": Expected(403, FINANCE, file=b"x"),
    "POST /deposits": Expected(403, FINANCE, file=b"x"),
    "GET /settlements/{id}": Expected(404, READERS),
    "GET /deposits/{id}": Expected(404, READERS),
    "GET /imports/{id}": Expected(404, FINANCE),
    "POST /admin/v1/reconciliations": Expected(201, RECONCILERS, body={"from": "2020-02-02", "to": "2020-02-02"}),
    "GET /admin/v1/reconciliations": Expected(200, READERS),
    "GET /admin/v1/reconciliations/{id}": Expected(404, READERS),
    "GET /admin/v1/reconciliations/{id}/items": Expected(404, READERS),
    "GET /reconciliations": Expected(200, READERS),
    "POST /reconciliations": Expected(303, RECONCILERS, body={"from": "2020-02-02", "to": "2020-02-02"}),
    "GET /reconciliations/{id}": Expected(404, READERS),
    "GET /admin/v1/exceptions": Expected(200, READERS),
    "GET /admin/v1/exceptions/{id}": Expected(404, READERS),
    "POST /admin/v1/exceptions/{id}/take": Expected(404, FINANCE),
    "POST /admin/v1/exceptions/{id}/resolve": Expected(404, FINANCE, body={"reason": "timing"}),
    "POST /admin/v1/exceptions/{id}/approve": Expected(404, APPROVERS),
    "POST /admin/v1/exceptions/{id}/reject": Expected(404, APPROVERS),
    "POST /admin/v1/exceptions/{id}/reopen": Expected(404, FINANCE, body={"note": "late"}),
    "GET /exceptions": Expected(200, READERS),
    "GET /exceptions/{id}": Expected(404, READERS),
    "POST /exceptions/settle": Expected(400, FINANCE, body={"reason": "timing"}),
    "POST /exceptions/{id}/take": Expected(404, FINANCE, body={}),
    "POST /exceptions/{id}/resolve": Expected(404, FINANCE, body={"reason": "timing"}),
    "POST /exceptions/{id}/approve": Expected(404, APPROVERS, body={}),
    "POST /exceptions/{id}/reject": Expected(404, APPROVERS, body={}),
    "POST /exceptions/{id}/reopen": Expected(404, FINANCE, body={"note": "late"}),
    "POST /admin/v1/closes": Expected(422, FINANCE, body={"from": "2026-11-02", "to": "2026-11-01"}),
    "GET /admin/v1/closes": Expected(200, READERS),
    "GET /admin/v1/closes/keys": Expected(200, READERS),
    "GET /admin/v1/closes/{id}": Expected(404, READERS),
    "GET /admin/v1/closes/{id}/pack": Expected(404, READERS),
    "GET /admin/v1/closes/{id}/signature": Expected(404, READERS),
    "POST /admin/v1/closes/{id}/approve": Expected(404, APPROVERS),
    "POST /admin/v1/closes/{id}/reject": Expected(404, APPROVERS),
    "POST /admin/v1/closes/{id}/reopen": Expected(404, CLOSERS, body={"reason": "late"}),
    "POST /admin/v1/closes/{id}/reopen/approve": Expected(404, APPROVERS),
    "POST /admin/v1/closes/{id}/reopen/refuse": Expected(404, APPROVERS),
    "GET /closes": Expected(200, READERS),
    "POST /closes": Expected(422, FINANCE, body={"from": "2026-11-02", "to": "2026-11-01"}),
    "GET /closes/{id}": Expected(404, READERS),
    "GET /closes/{id}/pack.json": Expected(404, READERS),
    "GET /closes/{id}/pack.sig": Expected(404, READERS),
    "POST /closes/{id}/approve": Expected(404, APPROVERS, body={}),
    "POST /closes/{id}/reject": Expected(404, APPROVERS, body={}),
    "POST /closes/{id}/reopen": Expected(404, CLOSERS, body={"reason": "late"}),
    "POST /closes/{id}/reopen/approve": Expected(404, APPROVERS, body={}),
    "POST /closes/{id}/reopen/refuse": Expected(404, APPROVERS, body={}),
    "GET /admin/v1/charges": Expected(200, READERS),
    "GET /admin/v1/charges/{id}": Expected(404, READERS),
    "GET /charges": Expected(200, READERS),
    "GET /charges/{id}": Expected(404, READERS),
    "GET /admin/v1/exports": Expected(400, READERS),
    "GET /exports": Expected(200, READERS),
    "GET /exports/file": Expected(400, READERS),
    "GET /admin/v1/audit": Expected(200, AUDITORS),
    "GET /audit": Expected(200, AUDITORS),
}
FACES = (
    Admin,
    Pages,
    TodayFace,
    AuditFace,
    ChargesFace,
    ExportsFace,
    ImportsFace,
    ClosesFace,
    ExceptionsFace,
    ReconciliationsFace,
)
TABLE = {f"{route.method} {route.path}": route for face in FACES for route in face.routes}
BY_ID = sorted(name for name in MATRIX if "/refunds/{id}" in name)


@dataclass
class City:
    """The site, and one person of each role, who are of the parks."""

    site: Site
    people: Mapping[Role, Person]
    tokens: dict[Role, str]

    async def call(self, name: str, role: Role | None, refund: str = "re_none") -> Reply:
        """One request of somebody, or of nobody."""
        route, expected = TABLE[name], MATRIX[name]
        path, token = route.path.replace("{id}", refund), "" if role is None else self.tokens[role]
        if not route.is_page:
            media = {} if expected.file is None else {"Content-Type": "text/csv"}
            return await self.site.call(route.method, path, expected.file or expected.body, token, **media)
        if expected.file is not None:
            return await self.site.upload(path, expected.file, token=token)
        form = expected.body
        if form is not None and token:
            form = form | {"csrf": await self.site.csrf(token)}
        return await self.site.browse(route.method, path, form, token)

    async def sign_in_again(self, role: Role) -> None:
        """After a route that ends the session."""
        self.tokens[role] = await self.site.token(self.people[role])


@pytest.fixture(scope="module")
async def city(site: Site) -> City:
    people = {role: await site.person(role, departments=[PARKS]) for role in Role}
    return City(site, people, {role: await site.token(person) for role, person in people.items()})


def test_the_matrix_has_every_route(site: Site) -> None:
    """What the router serves, what the tables say and what is written here are the same routes."""
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in site.parts.application.router.routes()
        if route.resource is not None
    }

    assert served == set(TABLE) == set(MATRIX)


@pytest.mark.parametrize("name", sorted(MATRIX))
async def test_each_role_may_do_what_is_written_and_no_more(city: City, name: str) -> None:
    """Who may is answered so; another role gets 403, nobody 401 or the way to the sign-in page; nothing changes."""
    expected, route = MATRIX[name], TABLE[name]
    for role in (*Role, None):
        refund = await city.site.refund(PARKS) if name in BY_ID else "re_none"
        before = await city.site.verdicts()
        reply = await city.call(name, role, refund)

        may = expected.is_public or role in expected.roles
        stranger = 303 if route.is_page else 401
        assert reply.status == (expected.status if may else stranger if role is None else 403), (role, reply)
        if not may and role is None and route.is_page:
            assert reply.headers["Location"] == "/sign-in"
        assert (await city.site.verdicts() > before) == (may and name in BY_ID)
        if role is not None and expected.ends_session:
            await city.sign_in_again(role)


async def test_the_gate_refuses_by_itself(city: City) -> None:
    """A handler that checks nothing is reached by nobody whose role does not carry what its route declares."""
    reached: list[str] = []

    class Careless:
        routes = (StaffRoute("GET", "/admin/v1/careless", "answer", Permission.REFUNDS_DECIDE),)

        async def answer(self, request: web.Request) -> web.Response:
            reached.append(request[STAFF].username)
            return web.Response(status=204)

    async with served(city.site.parts.gate.application(Careless()), None) as port:
        for role in Role:
            headers = {"Authorization": f"Bearer {city.tokens[role]}", "Connection": "close"}
            async with city.site.session.get(f"http://{HOST}:{port}/admin/v1/careless", headers=headers) as reply:
                assert reply.status == (204 if role in APPROVERS else 403)

    assert reached == [city.people[Role.APPROVER].username]


@pytest.mark.parametrize("name", BY_ID)
async def test_another_departments_object_is_none(city: City, name: str) -> None:
    """Foreign and unknown ids get the same bytes, 404 where the role may and 403 where it may not."""
    for role in Role:
        foreign = await city.call(name, role, await city.site.refund(UTILITIES))
        unknown = await city.call(name, role, "re_aaaaaaaaaaaaaaaaaaaaaaaaaa")

        assert foreign.status == unknown.status == (404 if role in MATRIX[name].roles else 403)
        assert foreign.body == unknown.body
        assert _stable(foreign) == _stable(unknown)
    assert (
        await city.site.owner.fetchval(
            "SELECT count(*) FROM gateway.refund_approvals WHERE department_id = $1", UTILITIES
        )
        == 0
    )


async def test_a_list_holds_ones_own_departments_only(city: City) -> None:
    """A refund of another department is neither listed nor shown."""
    foreign, own = await city.site.refund(UTILITIES), await city.site.refund(PARKS)
    token = city.tokens[Role.AUDITOR]

    listed = {row["id"] for row in (await city.site.call("GET", "/admin/v1/refunds", token=token)).json["data"]}
    page = (await city.call("GET /refunds", Role.APPROVER)).body.decode()

    assert (own in listed, own in page) == (True, True)
    assert (foreign in listed, foreign in page) == (False, False)


@pytest.mark.parametrize(
    "route", [*TABLE.values(), *OidcPages.routes], ids=lambda route: f"{route.method} {route.path}"
)
def test_a_route_that_declares_nothing_stops_the_start(route: StaffRoute) -> None:
    """Take one declaration away, and there is no application."""

    class Face:
        routes = (replace(route, needs=None),)  # type: ignore[arg-type]

        async def _handler(self) -> None: ...

    setattr(Face, route.handler, Face._handler)
    gate = Gate(None, None, None)  # type: ignore[arg-type]  # it asks nobody before it has refused
    with pytest.raises(UndeclaredRoute, match="declares no permission"):
        gate.application(Face())


def test_only_these_routes_are_public() -> None:
    """What needs nobody to be signed in is signing in itself, how pages look, and the health of the process."""
    public = {route.path for route in (*TABLE.values(), *OidcPages.routes) if route.needs is PUBLIC}

    assert public == {
        *("/admin/v1/sessions", "/sign-in", "/oidc/start", "/oidc/return"),
        *("/static/admin.css", "/static/admin.js", "/healthz", "/readyz"),
    }


def _stable(reply: Reply) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name not in {"Request-Id", "Date"}}
