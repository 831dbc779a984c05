"""Who gets in at the admin site: each route declares what it needs, and one that declares nothing stops the start.

Scripts send `Authorization: Bearer` and get problem documents; people have a cookie and get pages. A route under
`/admin/v1/` takes no cookie, so that no other site can use one; a form of a page carries a value that only its
session knows, and comes from a page of ours.

    identified (401, a page leads to /sign-in) -> permitted (403) -> found (404, foreign as unknown)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.errors import InvalidRequest, NotFound, NotIdentified, NotPermitted, PasswordMustChange
from gateway.rules.staff import Permission, Staff
from gateway.services.refusals import Refusals
from gateway.services.staff import SIGN_IN_FIRST, SignedIn, StaffSessions
from gateway.web.head import RefusedError
from gateway.web.problems import response as problem_response
from gateway.web.schema import form_fields
from gateway.web.server import REQUEST_ID, STREAMS
from gateway.web.upload import UPLOAD, Uploads

STAFF: Final = web.RequestKey("staff", Staff)
SESSION: Final = web.RequestKey("session", str)
FORM: Final = web.RequestKey("form", dict[str, str])
"""The fields of a page's form, without what protects it."""
QUERY: Final = web.RequestKey("query", dict[str, str])
"""What the address asks for, by the names that the route takes; what is empty was not asked."""

COOKIE = "__Host-session"
SAFE_METHODS = frozenset({"GET", "HEAD"})
JSON = "application/json"
URLENCODED = "application/x-www-form-urlencoded"
MEDIA_TYPES = frozenset({JSON, URLENCODED})
API = "/admin/v1/"
SCRIPTS = (API, "/healthz", "/readyz")
"""What begins so is for programs."""

ANSWER_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
"""Of every answer of the admin site: no script but our own, no frame, nothing of others, no word of where one was."""


class Public(Enum):
    """What a route declares that needs nobody to be signed in."""

    PUBLIC = "public"


PUBLIC: Final = Public.PUBLIC


class UndeclaredRoute(RuntimeError):
    """A route says neither which permission it needs nor that it is public: the process must not start."""


@dataclass(frozen=True, slots=True)
class StaffRoute:
    """One route of the admin site. `for_change`: also while the password must be changed before anything else.

    `takes` are the names that may stand in the query; `media` is the type of the body, where it is not the usual one.
    `files` are the types in which a file may be sent to it, of any size that `upload` takes: its handler finds it at
    `request[UPLOAD]`, received after the caller was found to be one who may.
    """

    method: str
    path: str
    handler: str
    needs: Permission | Literal[Public.PUBLIC]
    for_change: bool = False
    takes: frozenset[str] = frozenset()
    media: str | None = None
    files: frozenset[str] = frozenset()

    @property
    def media_type(self) -> str:
        """Of the body, where there is one."""
        return self.media or (URLENCODED if self.is_page else JSON)

    @property
    def is_page(self) -> bool:
        """Whether people see it, not programs."""
        return is_page(self.path)


class Face(Protocol):
    """A part of the site: a table of routes, and the handlers that it names."""

    @property
    def routes(self) -> Sequence[StaffRoute]:
        """The table."""


class Gate:
    """Turns faces into an application, with itself before every route."""

    def __init__(
        self,
        sessions: StaffSessions,
        refusals: Refusals,
        refusal_page: Callable[[web.Request, Exception], web.Response | None],
    ) -> None:
        self._sessions = sessions
        self._refusals = refusals
        self._refusal_page = refusal_page
        self._uploads = Uploads()

    def application(self, *faces: Face) -> web.Application:
        """All routes of the faces; raises `UndeclaredRoute`."""
        application = web.Application(middlewares=[self._answer_errors])
        application[STREAMS] = {
            (route.method, route.path): route.files for face in faces for route in face.routes if route.files
        }
        for face in faces:
            for route in face.routes:
                guarded = self._guarded(route, getattr(face, route.handler))
                application.router.add_route(route.method, route.path, guarded)
        return application

    def _guarded(self, route: StaffRoute, handler: Handler) -> Handler:
        if not isinstance(route.needs, Permission | Public):
            raise UndeclaredRoute(f"{route.method} {route.path} declares no permission, and not that it is public")
        inner = handler if route.needs is PUBLIC else self._known(route, route.needs, handler)

        async def guarded(request: web.Request) -> web.StreamResponse:
            if request.body_exists and request.content_type not in (route.files or {route.media_type}):
                raise RefusedError.media_type(route.files or {route.media_type})
            request[QUERY] = _asked(request, route)
            if route.is_page and route.method not in SAFE_METHODS:
                _require_own_page(request)
                if route.media_type == URLENCODED and not route.files:
                    request[FORM] = form_fields(await request.read())
            return await inner(request)

        return guarded

    def _known(self, route: StaffRoute, needs: Permission, handler: Handler) -> Handler:
        async def known(request: web.Request) -> web.StreamResponse:
            session = _session_of(request, route)
            try:
                staff = await self._sessions.identify(session, for_change=route.for_change)
            except NotIdentified:
                await self._refusals.staff("identity", None, request[REQUEST_ID])
                raise
            request[STAFF], request[SESSION] = staff, session
            try:
                if FORM in request:
                    self._sessions.require_csrf(session, request[FORM].pop("csrf", ""))
                staff.require(needs)
                return await (self._with_file(request, handler) if route.files else handler(request))
            except NotPermitted:
                await self._refusals.staff("permission", staff, request[REQUEST_ID], needs)
                raise
            except NotFound:
                await self._refusals.staff("id", staff, request[REQUEST_ID])
                raise NotFound from None

        return known

    async def _with_file(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        def require_csrf(given: str) -> None:
            self._sessions.require_csrf(request[SESSION], given)

        upload = request[UPLOAD] = await self._uploads.receive(request, require_csrf)
        try:
            return await handler(request)
        finally:
            if not upload.kept:
                upload.close()

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RefusedError:  # the server's own to answer
            raise
        except Exception as error:
            answer = self._page_of(request, error) if is_page(request.path) else problem_response(error)
            if answer is None:
                raise
            return answer

    def _page_of(self, request: web.Request, error: Exception) -> web.Response | None:
        match error:
            case NotIdentified():
                # Without the cookie it may be good still: a link from elsewhere does not bring one that is `Strict`.
                ended = COOKIE in request.cookies
                return take_back(see_other("/sign-in?ended")) if ended else see_other("/sign-in")
            case PasswordMustChange():
                return see_other("/password?first")
        return self._refusal_page(request, error)


def is_page(path: str) -> bool:
    """Whether people see what is under this path, not programs."""
    return not path.startswith(SCRIPTS)


def see_other(place: str) -> web.Response:
    """On to one of our own pages, with GET (RFC 9110 15.4.4). `place` is never taken from a request."""
    assert place.startswith("/"), "internal error: not a page of ours"
    return web.Response(status=303, headers={"Location": place})


def hand_over(answer: web.Response, signed_in: SignedIn) -> web.Response:
    """The answer with the cookie of a new session: of this host and TLS only, not for scripts, not across sites."""
    answer.headers["Set-Cookie"] = _cookie(signed_in.session.reveal())
    return answer


def take_back(answer: web.Response) -> web.Response:
    """The answer with which the browser forgets its session."""
    answer.headers["Set-Cookie"] = _cookie("", "Max-Age=0")
    return answer


def _cookie(value: str, *more: str) -> str:
    return "; ".join([f"{COOKIE}={value}", "Path=/", "Secure", "HttpOnly", "SameSite=Strict", *more])


def _asked(request: web.Request, route: StaffRoute) -> dict[str, str]:
    """The query; raises `InvalidRequest`. A page overlooks what it does not know: old links still lead to it."""
    if route.path.startswith(API):
        if request.query_string and not route.takes:
            raise InvalidRequest("This route takes no query; secrets never stand in an address.")
        if len(set(request.query)) < len(request.query) or not route.takes.issuperset(request.query):
            raise InvalidRequest(
                "The query takes each of these at most once: " + ", ".join(sorted(route.takes)) + "."
            )
    return {name: value for name, value in request.query.items() if name in route.takes and value}


def _session_of(request: web.Request, route: StaffRoute) -> str:
    """What a request brings as its session; raises `NotIdentified` without one."""
    if route.is_page:
        given = request.cookies.get(COOKIE, "")
    else:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        given = given if scheme.lower() == "bearer" else ""
    if not given:
        raise NotIdentified(SIGN_IN_FIRST)
    return given


def _require_own_page(request: web.Request) -> None:
    """A form comes from a page of ours: the browser says so (Fetch Metadata), an old one by its Origin (RFC 6454)."""
    site = request.headers.get("Sec-Fetch-Site")
    own = f"https://{request.host}"
    if site != "same-origin" and (site is not None or request.headers.get("Origin") != own):
        raise NotPermitted("This form was not sent from a page of this site. Nothing was done.")
