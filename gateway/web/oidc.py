"""Signing in at the city's own provider: the way there, and the way back.

    GET /oidc/start   303 to the provider, with a cookie that carries the visit, sealed
    GET /oidc/return  what the provider sent the browser back with; 200, signed in, and on to the home page

A return counts for the browser that began it only, else somebody could sign others in as themselves (RFC 6749
section 10.12). Whatever is wrong with the provider's word is told in the log and the audit; the browser is told what
it is told about a wrong password.
"""

from collections.abc import Sequence
from typing import Final

import structlog
from aiohttp import web

from gateway.errors import InvalidRequest, SignInRefused, Unavailable
from gateway.rules.id_token import Doubt
from gateway.services.refusals import Refusals
from gateway.services.staff import NOT_NAMED, StaffSessions
from gateway.services.visits import BEGIN_AGAIN, GOOD_S, Visits
from gateway.web.gate import PUBLIC, StaffRoute, hand_over
from gateway.web.oidc_client import OidcClient
from gateway.web.server import REQUEST_ID

COOKIE: Final = "__Host-oidc"
AWAY = "The city's sign-in provider cannot be used now: try again, or sign in with your password."

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="0; url=/">
<title>Signed in</title>
</head>
<body><main><p>You are signed in. <a href="/">Continue</a></p></main></body>
</html>
"""
"""Between the provider's page and ours: a request that another site has led to brings no `Strict` cookie, and the one
that this page makes does."""

log = structlog.get_logger()


class OidcPages:
    """The two routes; a face of the admin site (`gate.Face`)."""

    routes: Sequence[StaffRoute] = (
        StaffRoute("GET", "/oidc/start", "start", PUBLIC),
        StaffRoute("GET", "/oidc/return", "finish", PUBLIC),
    )

    def __init__(self, client: OidcClient, visits: Visits, sessions: StaffSessions, refusals: Refusals) -> None:
        self._client = client
        self._visits = visits
        self._sessions = sessions
        self._refusals = refusals

    async def start(self, _: web.Request) -> web.Response:
        """To the provider; raises `Unavailable` when it cannot be asked where that is."""
        visit, sealed = self._visits.begin()
        try:
            address = await self._client.address(visit)
        except Doubt as doubt:
            log.warning("oidc.away", reason=doubt.reason)
            raise Unavailable(AWAY) from None
        # `Lax`, because the request that must bring it back comes from the provider's page.
        return web.Response(status=303, headers={"Location": address, "Set-Cookie": _cookie(sealed, GOOD_S)})

    async def finish(self, request: web.Request) -> web.Response:
        """Signed in; raises `InvalidRequest` for a return that is none of ours, `SignInRefused` for the rest."""
        visit = self._visits.finish(request.cookies.get(COOKIE, ""), _only(request, "state") or "")
        code, issuer = _only(request, "code"), _only(request, "iss")
        try:
            subject = await self._client.subject(visit, code, issuer)
        except Doubt as doubt:
            log.warning("oidc.refused", reason=doubt.reason)
            await self._refusals.identity(f"oidc_{doubt.reason}", request[REQUEST_ID])
            raise SignInRefused(NOT_NAMED) from None
        signed_in = await self._sessions.sign_in_by_provider(subject, request[REQUEST_ID])
        answer = hand_over(web.Response(text=PAGE, content_type="text/html"), signed_in)
        answer.headers.add("Set-Cookie", _cookie("", 0))
        return answer


def _cookie(value: str, age_s: int) -> str:
    return f"{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={age_s}"


def _only(request: web.Request, name: str) -> str | None:
    """A parameter that stands once or not at all (RFC 6749 section 3.1 and appendix A); raises `InvalidRequest`."""
    values = request.query.getall(name, [])
    if len(values) > 1 or not all(value.isascii() and value.isprintable() for value in values):
        raise InvalidRequest(BEGIN_AGAIN)
    return values[0] if values else None
