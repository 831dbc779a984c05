"""The card processor over HTTPS, as an adapter that never guesses.

POST only: aiohttp repeats other methods by itself on a connection that was closed under it. No redirects, no
cookies, no proxies of the environment, certificate and host checked, answers bounded in size and time. Only an
answer that is whole, well-formed, and about the very reference, amount and currency that were sent counts;
only a connection that was never made counts as not sent. Everything else is unknown.

The wire protocol is described in `gateway.processor.stub.protocol`, the far side's own module.
"""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import aiohttp
import msgspec
import structlog

from gateway.rules.card import Card
from gateway.services.ports import Approved, Declined, Inquiry, NotFound, NotSent, Outcome, Unknown
from keys.secret import Secret

ANSWER_BYTES_MAX = 16_384
CONNECT_S = 2.0
CALL_S = 7.0
"""Until when the processor must have answered, connecting included: an unclear charge is answered within 10 s."""
INQUIRE_S = 3.0

log = structlog.get_logger()

R = TypeVar("R", bound=msgspec.Struct)


class Decline(msgspec.Struct, frozen=True):
    """Why the issuer refused. Stored and shown to callers, so the alphabet is narrow, and no number fits in."""

    class_: Literal["soft", "hard", "data", "system"] = msgspec.field(name="class")
    code: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,8}\Z")]


class Checks(msgspec.Struct, frozen=True):
    """What the issuer compared."""

    cvc: Literal["pass", "fail", "unavailable", "unchecked"]


class Reply(msgspec.Struct, frozen=True):
    """The answer to a sale or a verification."""

    reference: str
    amount: int
    currency: str
    status: Literal["captured", "verified", "declined"]
    decline: Decline | None
    checks: Checks


class InquiryReply(msgspec.Struct, frozen=True):
    """The answer to an inquiry."""

    status: Literal["found", "not_found"]
    answer: Reply | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What an answer must repeat to be believed."""

    reference: str
    amount_minor: int
    currency: str


class ProcessorClient:
    """Implements `ports.Processor`."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, call_s: float = CALL_S, inquire_s: float = INQUIRE_S
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._call_s = call_s
        self._inquire_s = inquire_s

    async def sale(
        self, reference: str, amount_minor: int, currency: str, card: Card, name: Secret[str], cvc: Secret[str] | None
    ) -> Outcome:
        """See `ports.Processor`."""
        sent = Sent(reference, amount_minor, currency)
        body = {"reference": reference, "amount": amount_minor, "currency": currency, "card": _card(card, name, cvc)}
        return await self._move("/wire/sale", body, sent)

    async def verify(self, reference: str, card: Card, name: Secret[str], cvc: Secret[str]) -> Outcome:
        """See `ports.Processor`."""
        body = {"reference": reference, "card": _card(card, name, cvc)}
        return await self._move("/wire/verify", body, Sent(reference, 0, "USD"))

    async def inquire(self, reference: str, amount_minor: int, currency: str) -> Inquiry:
        """See `ports.Processor`."""
        raw = await self._post("/wire/inquire", {"reference": reference}, self._inquire_s)
        if isinstance(raw, NotSent):
            return Unknown("unreachable")
        if isinstance(raw, Unknown):
            return raw
        reply = _parse(raw, InquiryReply)
        if reply is None:
            return Unknown("malformed")
        if reply.status == "not_found":
            return NotFound()
        return _judge(reply.answer, Sent(reference, amount_minor, currency))

    async def _move(self, path: str, body: Mapping[str, Any], sent: Sent) -> Outcome:
        raw = await self._post(path, body, self._call_s)
        if isinstance(raw, NotSent | Unknown):
            log.warning("processor.unclear", reason=raw.reason if isinstance(raw, Unknown) else "not_sent")
            return raw
        outcome = _judge(_parse(raw, Reply), sent)
        if isinstance(outcome, Unknown):
            log.error("processor.answer_refused", reason=outcome.reason)
        return outcome

    async def _post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> bytes | NotSent | Unknown:
        """The body of a 200, or what the lack of one means."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.post(
                    self._url + path, data=msgspec.json.encode(body), allow_redirects=False
                ) as response,
            ):
                if response.status != 200:  # noqa: PLR2004 - OK
                    return Unknown("status")
                return await _read_bounded(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
            # Raised before a request is written: TCP or TLS was not established.
            return NotSent()
        except TimeoutError:
            return Unknown("timeout")
        except (aiohttp.ClientError, OSError):
            return Unknown("connection")


def open_session(ca: Path | None, credential: Secret[str], connect_s: float = CONNECT_S) -> aiohttp.ClientSession:
    """A session for one processor: its CA, its credential, and nothing else that could leave with a request."""
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=64, keepalive_timeout=30),
        headers={"Authorization": f"Bearer {credential.reveal()}", "Content-Type": "application/json"},
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_s),
    )


def _parse(raw: bytes, kind: type[R]) -> R | None:
    """The answer that this body is; None when it is none, or says two things at once."""
    try:
        return msgspec.convert(json.loads(raw.decode(), object_pairs_hook=_once), kind)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return members


def _judge(reply: Reply | None, sent: Sent) -> Approved | Declined | Unknown:
    if reply is None or (reply.decline is None) is (reply.status == "declined"):
        return Unknown("malformed")
    if Sent(reply.reference, reply.amount, reply.currency) != sent:
        return Unknown("wrong_echo")
    if reply.decline is not None:
        return Declined(reply.checks.cvc, reply.decline.class_, reply.decline.code)
    if (reply.status == "verified") is not (sent.amount_minor == 0):
        return Unknown("wrong_echo")
    return Approved(reply.checks.cvc)


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes | Unknown:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(ANSWER_BYTES_MAX):
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            return Unknown("too_large")
        parts.append(part)
    return b"".join(parts)


def _card(card: Card, name: Secret[str], cvc: Secret[str] | None) -> dict[str, Any]:
    shown = {
        "number": card.number.reveal(),
        "exp_month": card.exp_month,
        "exp_year": card.exp_year,
        "name": name.reveal(),
    }
    return shown if cvc is None else shown | {"cvc": cvc.reveal()}
