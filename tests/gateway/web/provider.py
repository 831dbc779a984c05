"""An OpenID provider that is honest until a test changes one thing: what it says of itself, its keys, its tokens.

joserfc signs for it, and would rather not sign some of this.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey, Key, KeySet, OKPKey, RSAKey

from gateway.rules.id_token import ALGORITHMS
from gateway.web.oidc_client import ANSWER_BYTES_MAX

CLIENT, SECRET = "gateway of the city", "a/secret: with+signs"
SUBJECT = "ada|city"
REDIRECT = "https://payments.city.example/oidc/return"
PATIENCE_S = 0.3
"""How long the gateway waits for a slow one, in these tests."""
RSA, OTHER_RSA = (RSAKey.generate_key(2048, {"kid": kid}) for kid in ("first", "second"))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it should not be used, and is not
    SHORT_RSA = RSAKey.generate_key(1024, {"kid": "short"})
EC, OTHER_EC = (ECKey.generate_key("P-256", {"kid": "ec"}) for _ in range(2))
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def b64(raw: bytes | Mapping[str, Any]) -> str:
    if not isinstance(raw, bytes):
        raw = json.dumps(raw).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Provider:
    """Honest, until a test changes one thing: `described`, `keys`, how a route answers, or which token it gives."""

    def __init__(self) -> None:
        self.described: dict[str, Any] = {}
        self.keys: list[Key] = [RSA, EC, ED, SHORT_RSA]
        self.answers: dict[str, Answer] = {}
        self.token: Callable[[Provider], str] = signed
        self.given: list[str] = []
        self.asked: list[str] = []
        self.code, self.nonce, self.challenge = secrets.token_urlsafe(24), "", ""
        self.now_s = 0.0
        self.url = ""

    async def start(self) -> web.AppRunner:
        application = web.Application()
        for method, path, handler in (
            ("GET", "/.well-known/openid-configuration", self._describe),
            ("GET", "/jwks", self._show_keys),
            ("POST", "/token", self._redeem),
        ):
            application.router.add_route(method, path, self._or_as_told(path, handler))
            application.router.add_route(method, f"/elsewhere{path}", handler)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://localhost:{runner.addresses[0][1]}"
        return runner

    def claims(self, **changed: Any) -> dict[str, Any]:
        """What an honest ID token says, but for these; `...` leaves one out."""
        now = int(self.now_s)
        said = {
            "iss": self.url,
            "sub": SUBJECT,
            "aud": CLIENT,
            "exp": now + 300,
            "iat": now,
            "auth_time": now,
            "nonce": self.nonce,
            "amr": ["pwd", "mfa"],
        } | changed
        return {name: value for name, value in said.items() if value is not ...}

    def _or_as_told(self, path: str, handler: Answer) -> Answer:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked.append(path)
            return await self.answers.get(path, handler)(request)

        return answer

    async def _describe(self, _: web.Request) -> web.Response:
        honest = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize?tenant=city",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
        }
        return web.json_response(honest | self.described)

    async def _show_keys(self, _: web.Request) -> web.Response:
        return web.json_response(KeySet(self.keys).as_dict())

    async def _redeem(self, request: web.Request) -> web.Response:
        form = await request.post()
        # RFC 6749 section 2.3.1 and RFC 7636 section 4.6, by the book.
        credentials = "gateway+of+the+city:a%2Fsecret%3A+with%2Bsigns"
        assert request.headers["Authorization"] == "Basic " + base64.b64encode(credentials.encode()).decode()
        assert self.challenge == b64(hashlib.sha256(str(form["code_verifier"]).encode()).digest())
        assert (form["grant_type"], form["redirect_uri"]) == ("authorization_code", REDIRECT)
        assert form["code"] == self.code
        self.given.append(self.token(self))
        return web.json_response({"access_token": "x", "token_type": "Bearer", "id_token": self.given[-1]})


def signed(
    provider: Provider, key: Key = RSA, header: Mapping[str, Any] | None = None, claims: Any = None, **changed: Any
) -> str:
    """A token by joserfc, which would rather not sign some of these."""
    head = {"alg": "RS256", "kid": key.kid} | dict(header or {})
    payload = json.dumps(provider.claims(**changed) if claims is None else claims)
    registry = jws.JWSRegistry(algorithms=[*ALGORITHMS, "RS512"], strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jws.serialize_compact(
            {name: value for name, value in head.items() if value is not ...}, payload, key, registry=registry
        )


def mac_with_public_key(provider: Provider) -> str:
    """The oldest trick: a MAC whose key is the public key (RFC 8725 section 2.1)."""
    head = b64({"alg": "HS256", "kid": RSA.kid})
    message = f"{head}.{b64(provider.claims())}"
    return f"{message}.{b64(hmac.digest(RSA.as_pem(private=False), message.encode(), 'sha256'))}"


def altered(provider: Provider) -> str:
    """Signed for somebody else."""
    head, _, signature = signed(provider, sub="grace|city").split(".")
    return f"{head}.{b64(provider.claims())}.{signature}"


def says(**changed: Any) -> Callable[[Provider], str]:
    return lambda provider: signed(provider, **{n: v(provider) if callable(v) else v for n, v in changed.items()})


def heads(**changed: Any) -> Callable[[Provider], str]:
    return lambda provider: signed(provider, header=changed)


EMBEDDED = {"alg": "ES256", "jwk": OTHER_EC.as_dict(private=False)}
FORGED: Mapping[str, tuple[Callable[[Provider], str], str]] = {
    "alg-none": (lambda p: f"{b64({'alg': 'none'})}.{b64(p.claims())}.", "malformed"),
    "alg-none-signed": (lambda p: f"{b64({'alg': 'none'})}.{b64(p.claims())}.AAAA", "forged"),
    "alg-hs256-with-the-public-key": (mac_with_public_key, "forged"),
    "alg-not-listed": (heads(alg="RS512"), "forged"),
    "alg-missing": (lambda p: f"{b64({'kid': 'first'})}.{b64(p.claims())}.AAAA", "forged"),
    "key-foreign": (lambda p: signed(p, OTHER_RSA), "unknown_key"),
    "key-foreign-known-name": (lambda p: signed(p, OTHER_RSA, {"kid": "first"}), "forged"),
    "key-not-named": (heads(kid=...), "unknown_key"),
    "key-short": (lambda p: signed(p, SHORT_RSA), "unknown_key"),
    "key-of-another-kind": (lambda p: signed(p, RSA, {"kid": "ec"}), "forged"),
    "key-embedded": (lambda p: signed(p, OTHER_EC, EMBEDDED), "forged"),
    "key-embedded-not-named": (lambda p: signed(p, OTHER_EC, EMBEDDED | {"kid": ...}), "unknown_key"),
    "header-long": (heads(x="a" * 600), "forged"),
    "key-elsewhere": (
        lambda p: signed(p, OTHER_RSA, {"jku": f"{p.url}/evil", "x5u": f"{p.url}/evil"}),
        "unknown_key",
    ),
    "critical": (
        lambda p: f"{b64({'alg': 'RS256', 'kid': 'first', 'crit': ['x'], 'x': 1})}.e30.AA",
        "critical_header",
    ),
    "critical-null": (
        lambda p: f"{b64({'alg': 'RS256', 'kid': 'first', 'crit': None})}.e30.AA",
        "critical_header",
    ),
    "unencoded": (lambda p: f"{b64({'alg': 'RS256', 'kid': 'first', 'b64': False})}.e30.AA", "critical_header"),
    "header-no-object": (lambda p: f"{b64(b'[1]')}.{b64(p.claims())}.AA", "malformed"),
    "header-no-base64": (lambda p: f"AAAAA.{b64(p.claims())}.AA", "forged"),
    "altered": (altered, "forged"),
    "cut": (lambda p: signed(p)[:-8], "forged"),
    "two-parts": (lambda p: signed(p).rpartition(".")[0], "malformed"),
    "five-parts": (lambda p: signed(p) + ".AA.AA", "malformed"),
    "padded": (lambda p: signed(p) + "==", "malformed"),
    "wrong-issuer": (says(iss="https://evil.example"), "wrong_issuer"),
    "wrong-issuer-slash": (says(iss=lambda p: p.url + "/"), "wrong_issuer"),
    "wrong-audience": (says(aud="another client"), "wrong_audience"),
    "audience-without-us": (says(aud=["another client", "a third"]), "wrong_audience"),
    "of-another-client": (says(azp="another client"), "wrong_party"),
    "of-another-client-also-for-us": (says(aud=[CLIENT, "another client"], azp="another client"), "wrong_party"),
    "for-several-of-nobody": (says(aud=[CLIENT, "another client"]), "wrong_party"),
    "audience-empty": (says(aud=[]), "wrong_audience"),
    "wrong-nonce": (says(nonce="a" * 43), "wrong_nonce"),
    "no-nonce": (says(nonce=...), "malformed"),
    "expired": (says(exp=lambda p: int(p.now_s) - 61), "expired"),
    "no-end": (says(exp=...), "malformed"),
    "end-not-a-number": (says(exp="9999999999"), "malformed"),
    "end-infinite": (lambda p: signed(p, exp=float("inf")), "malformed"),
    "not-yet": (says(nbf=lambda p: int(p.now_s) + 62), "not_yet"),
    "made-in-the-future": (says(iat=lambda p: int(p.now_s) + 62), "not_yet"),
    "no-beginning": (says(iat=...), "malformed"),
    "proved-long-ago": (says(auth_time=lambda p: int(p.now_s) - 961), "proved_long_ago"),
    "proved-at-no-time": (says(auth_time=...), "malformed"),
    "no-methods": (says(amr=...), "one_factor"),
    "one-factor": (says(amr=["pwd"]), "one_factor"),
    "methods-as-text": (says(amr="mfa"), "malformed"),
    "no-subject": (says(sub=...), "malformed"),
    "subject-empty": (says(sub=""), "malformed"),
    "subject-a-number": (says(sub=7), "malformed"),
    "subject-long": (says(sub="a" * 256), "malformed"),
    "claims-no-object": (lambda p: signed(p, claims=["a"]), "malformed"),
    "claims-deep": (lambda p: signed(p, claims=json.loads("[" * 400 + "]" * 400)), "malformed"),
}
"""What a provider, or who stands in its place, may send as an ID token; and what the log says of it."""


async def slow(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(PATIENCE_S * 5)
    return web.json_response({})


async def elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect(f"/elsewhere{request.path}")  # where all would be well


async def dropped(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def told(body: str, status: int = 200) -> Answer:
    async def tell(_: web.Request) -> web.StreamResponse:
        return web.Response(text=body, status=status, content_type="application/json")

    return tell


MISBEHAVED: Mapping[str, tuple[Answer, str]] = {
    "oversized": (told(json.dumps({"x": "a" * ANSWER_BYTES_MAX})), "too_large"),
    "redirecting": (elsewhere, "status"),
    "slow": (slow, "timeout"),
    "dropped": (dropped, "unreachable"),
    "failing": (told('{"error": "server_error"}', 500), "status"),
    "created": (told("{}", 201), "status"),
    "no-json": (told("<html>"), "malformed"),
    "empty": (told(""), "malformed"),
    "no-object": (told("[]"), "malformed"),
    "nothing-in-it": (told("{}"), "malformed"),
    "deep": (told('{"id_token":' + "[" * 30_000 + "]" * 30_000 + "}"), "malformed"),
}
