"""The city's OpenID provider, seen from here: the authorization code flow with PKCE, and nothing that is not in it.

OpenID Connect Core 3.1 and Discovery 4, RFC 6749, RFC 7636 (S256), RFC 9207, RFC 9700. No redirects, no cookies, no
proxies of the environment, certificates checked, answers bounded in size and time. What is not as it must be raises
`Doubt`, whose reason is one of our own words: nothing that the provider or a browser sent gets into a log.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote_plus, urlencode, urlsplit

import aiohttp
import msgspec
from joserfc.jwk import KeySet

from gateway.config import OidcSection
from gateway.rules.id_token import FRESH_S, Doubt, Expected, UnknownKey, key_set, parsed, require_subject
from gateway.services.ports import Clock
from gateway.services.visits import Visit
from keys.errors import SettingsRefused
from keys.secret import Secret

ANSWER_BYTES_MAX = 65_536
CONNECT_S = 2.0
CALLS_S = 6.0
"""For all that one request of a browser makes us ask of the provider."""
CACHED_S = 600.0
"""How long the provider's description and keys are believed: a key that it withdraws is of no use afterwards."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Description(msgspec.Struct, frozen=True):
    """What the provider publishes about itself (Discovery 3, RFC 9207 section 3)."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct, frozen=True):
    """The answer of the token endpoint: the ID token, and what we have no use for."""

    id_token: Annotated[str, msgspec.Meta(max_length=ANSWER_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class _Known:
    description: Description
    keys: KeySet
    read_at_s: float


class OidcClient:
    """Asks one provider who somebody is. `plain_loopback` is of the demo profile: http, if it is on this machine."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        section: OidcSection,
        secret: Secret[str],
        clock: Clock,
        *,
        plain_loopback: bool = False,
        calls_s: float = CALLS_S,
    ) -> None:
        self._session = session
        self._section = section
        self._secret = secret
        self._clock = clock
        self._plain_loopback = plain_loopback
        self._calls_s = calls_s
        self._known: _Known | None = None
        try:
            self._require_endpoint(section.issuer)
        except Doubt:
            raise SettingsRefused("oidc.issuer must be https; http://localhost is for the demo profile") from None

    async def address(self, visit: Visit) -> str:
        """Where a browser goes to be known; raises `Doubt`."""
        async with self._asking():
            endpoint = (await self._provider()).description.authorization_endpoint
        asked = {
            "response_type": "code",
            "scope": "openid",
            "client_id": self._section.client_id,
            "redirect_uri": self._section.redirect,
            "state": visit.state,
            "nonce": visit.nonce,
            "code_challenge": visit.challenge,
            "code_challenge_method": "S256",
            "max_age": FRESH_S,
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(asked)}"

    async def subject(self, visit: Visit, code: str | None, issuer: str | None) -> str:
        """Whom the provider knew at this visit, by its `sub`; `code` and `issuer` came back. Raises `Doubt`."""
        if code is None:
            raise Doubt("no_code")  # an `error` came instead, whose text is the provider's
        async with self._asking():
            known = await self._provider()
            self._require_answerer(known.description, issuer)
            token = await self._redeem(known.description, visit, code)
            try:
                return require_subject(token, known.keys, self._expected(visit))
            except UnknownKey:
                known = await self._read()
                return require_subject(token, known.keys, self._expected(visit))

    @asynccontextmanager
    async def _asking(self) -> AsyncIterator[None]:
        """Whatever fails on the way is a doubt."""
        try:
            async with asyncio.timeout(self._calls_s):
                yield
        except TimeoutError:
            raise Doubt("timeout") from None
        except (aiohttp.ClientError, OSError):
            raise Doubt("unreachable") from None

    async def _provider(self) -> _Known:
        known = self._known
        if known is None or self._clock.monotonic() - known.read_at_s >= CACHED_S:
            return await self._read()
        return known

    async def _read(self) -> _Known:
        """Description and keys, now."""
        read_at_s = self._clock.monotonic()
        location = self._section.issuer.rstrip("/") + "/.well-known/openid-configuration"
        description = parsed(await self._answer("GET", location), Description)
        if description.issuer != self._section.issuer:
            raise Doubt("wrong_issuer")
        for endpoint in (description.authorization_endpoint, description.token_endpoint, description.jwks_uri):
            self._require_endpoint(endpoint)
        keys = key_set(await self._answer("GET", description.jwks_uri))
        self._known = _Known(description, keys, read_at_s)
        return self._known

    async def _redeem(self, description: Description, visit: Visit, code: str) -> str:
        """The ID token for a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._section.redirect,
            "code_verifier": visit.verifier.reveal(),
        }
        # Both are form-encoded first (RFC 6749 section 2.3.1).
        client = aiohttp.encode_basic_auth(quote_plus(self._section.client_id), quote_plus(self._secret.reveal()))
        answer = await self._answer("POST", description.token_endpoint, data=form, headers={"Authorization": client})
        return parsed(answer, _Tokens).id_token

    async def _answer(self, method: str, url: str, **asked: Any) -> bytes:
        """The body of a 200."""
        async with self._session.request(method, url, allow_redirects=False, **asked) as response:
            if response.status != HTTPStatus.OK:
                raise Doubt("status")
            body = bytearray()
            async for part in response.content.iter_chunked(ANSWER_BYTES_MAX):
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise Doubt("too_large")
            return bytes(body)

    def _expected(self, visit: Visit) -> Expected:
        section, now_s = self._section, self._clock.now().timestamp()
        return Expected(section.issuer, section.client_id, visit.nonce, section.amr, now_s)

    def _require_answerer(self, description: Description, issuer: str | None) -> None:
        """That the code comes from this provider and no other that the browser was led to (RFC 9207)."""
        if issuer is None and not description.authorization_response_iss_parameter_supported:
            return
        if issuer != self._section.issuer:
            raise Doubt("wrong_answerer")

    def _require_endpoint(self, url: str) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise Doubt("endpoint") from None
        plain = self._plain_loopback and parts.scheme == "http" and parts.hostname in LOOPBACK
        if not (plain or parts.scheme == "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
            raise Doubt("endpoint")


def open_session(ca: Path | None) -> aiohttp.ClientSession:
    """A session for one provider, which keeps nothing between two calls but connections."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=8),
        headers={"Accept": "application/json"},
        skip_auto_headers=("User-Agent", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
    )
