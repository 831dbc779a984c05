"""The card processor over HTTPS, as an adapter that never guesses.

POST only: aiohttp repeats other methods by itself on a connection that was closed under it. No redirects, no
cookies, no proxies of the environment, certificate and host checked, answers bounded in size and time. Only an
answer that is whole, well-formed, and about the very movement, reference, amount and currency that were sent counts;
only a connection that was never made counts as not sent. Everything else is unknown. The same movement makes the
same bytes, however often it is sent.

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

from gateway.errors import Unavailable
from gateway.rules.lifecycle import Kind
from gateway.rules.recovery import Offers
from gateway.services.ports import (
    Absent,
    Approved,
    Cancellation,
    Declined,
    Inquiry,
    Movement,
    NotFound,
    NotSent,
    Outcome,
    Payment,
    Unknown,
)
from keys.secret import Secret

ANSWER_BYTES_MAX = 16_384
CONNECT_S = 2.0
CALL_S = 7.0
"""Until when the processor must have answered, connecting included: an unclear charge is answered within 10 s."""
INQUIRE_S = 3.0
PROBE = "readiness-probe"
"""A reference that nothing was ever sent under."""

ALARMS = frozenset({"malformed", "wrong_echo"})
"""Why an answer that came is not believed."""

log = structlog.get_logger()

Heard = TypeVar("Heard", bound=Outcome | Inquiry | Cancellation)


class Decline(msgspec.Struct, frozen=True):
    """Why the issuer refused. Stored and shown to callers, so the alphabet is narrow, and no number fits in."""

    class_: Literal["soft", "hard", "data", "system"] = msgspec.field(name="class")
    code: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]{1,8}\Z")]


class Checks(msgspec.Struct, frozen=True):
    """What the issuer compared."""

    cvc: Literal["pass", "fail", "unavailable", "unchecked"]


class Reply(msgspec.Struct, frozen=True):
    """The answer to a movement or a verification."""

    reference: str
    amount: int
    currency: str
    status: Literal["captured", "authorized", "voided", "refunded", "verified", "declined", "cancelled", "expired"]
    decline: Decline | None
    checks: Checks


class OffersReply(msgspec.Struct, frozen=True):
    """What the processor offers to make sure of a reference. The window is finite: to Python `1e999` is a number."""

    dedupe_window_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None
    cancel: bool
    expiry: bool


class Found(msgspec.Struct, frozen=True, tag_field="status", tag="found"):
    """The answer about a movement that was decided."""

    kind: Literal["sale", "authorization", "capture", "void", "refund", "verify"]
    answer: Reply


class Cancelled(msgspec.Struct, frozen=True, tag_field="status", tag="cancelled"):
    """The answer about a reference that is void for ever."""

    reference: str


class Missing(msgspec.Struct, frozen=True, tag_field="status", tag="not_found"):
    """The answer about a reference that is not known, or not visible yet."""

    reference: str
    offers: OffersReply


Known = Found | Cancelled | Missing
"""The answer to an inquiry, and but for the last to a cancel."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What an answer must repeat to be believed, and how it says that it was done."""

    reference: str
    amount_minor: int
    currency: str
    done: str


DONE: Mapping[Kind, str] = {
    Kind.SALE: "captured",
    Kind.AUTHORIZATION: "authorized",
    Kind.CAPTURE: "captured",
    Kind.VOID: "voided",
    Kind.REFUND: "refunded",
}
PATHS: Mapping[Kind, str] = {
    Kind.SALE: "/wire/sale",
    Kind.AUTHORIZATION: "/wire/authorize",
    Kind.CAPTURE: "/wire/capture",
    Kind.VOID: "/wire/void",
    Kind.REFUND: "/wire/refund",
}


class ProcessorClient:
    """Implements `ports.Processor`."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, call_s: float = CALL_S, inquire_s: float = INQUIRE_S
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._call_s = call_s
        self._inquire_s = inquire_s

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        """See `ports.Processor`."""
        body = {
            "reference": movement.reference,
            "amount": movement.amount_minor,
            "currency": movement.currency,
            # Rounded down: nobody may carry it out later than we believe.
            "not_after": int(movement.not_after.timestamp()),
            **_subject(movement, payment),
        }
        return await self._move(PATHS[movement.kind], body, _sent(movement))

    async def verify(self, reference: str, payment: Payment) -> Outcome:
        """See `ports.Processor`."""
        body = {"reference": reference, "card": _card(payment)}
        return await self._move("/wire/verify", body, Sent(reference, 0, "USD", "verified"))

    async def inquire(self, movement: Movement) -> Inquiry:
        """See `ports.Processor`."""
        known = await self._ask("/wire/inquire", {"reference": movement.reference})
        if isinstance(known, Missing) and known.reference == movement.reference:
            return NotFound(Offers(known.offers.dedupe_window_s, known.offers.cancel, known.offers.expiry))
        return _watched(_judge_known(known, movement))

    async def cancel(self, movement: Movement) -> Cancellation:
        """See `ports.Processor`."""
        body = {"reference": movement.reference, "charge": movement.charge_reference}
        known = await self._ask("/wire/cancel", body)
        return _watched(Unknown("malformed") if isinstance(known, Missing) else _judge_known(known, movement))

    async def require_reachable(self) -> None:
        """Raises `gateway.errors.Unavailable` unless the processor answers."""
        if isinstance(await self._ask("/wire/inquire", {"reference": PROBE}), Unknown):
            raise Unavailable

    async def _move(self, path: str, body: Mapping[str, Any], sent: Sent) -> Outcome:
        raw = await self._post(path, body, self._call_s)
        if isinstance(raw, NotSent | Unknown):
            log.warning("processor.unclear", reason=raw.reason if isinstance(raw, Unknown) else "not_sent")
            return raw
        return _watched(_judge(_parse(raw, Reply), sent))

    async def _ask(self, path: str, body: Mapping[str, Any]) -> Known | Unknown:
        raw = await self._post(path, body, self._inquire_s)
        if isinstance(raw, NotSent):
            return Unknown("unreachable")
        if isinstance(raw, Unknown):
            return raw
        known: Known | None = _parse(raw, Known)
        return known or Unknown("malformed")

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


def _subject(movement: Movement, payment: Payment | None) -> dict[str, Any]:
    """The card of a sale or an authorization, the charge of what follows one."""
    if movement.kind in {Kind.SALE, Kind.AUTHORIZATION}:
        assert payment is not None, "internal error: a card is needed"
        return {"card": _card(payment)}
    assert payment is None, "internal error: no card is needed"
    return {"charge": movement.charge_reference}


def _parse(raw: bytes, kind: Any) -> Any:
    """The answer of this kind that this body is; None when it is none, or says two things at once."""
    try:
        return msgspec.convert(json.loads(raw.decode(), object_pairs_hook=_once), kind)
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return members


def _watched(outcome: Heard) -> Heard:
    """The same, with an alarm if it is an answer that is not believed."""
    if isinstance(outcome, Unknown) and outcome.reason in ALARMS:
        log.error("processor.answer_refused", reason=outcome.reason)
    return outcome


def _judge_known(known: Known | Unknown, movement: Movement) -> Approved | Declined | Absent | Unknown:
    """What is known of a movement, if it is about this one."""
    match known:
        case Unknown():
            return known
        case Found(kind=movement.kind, answer=answer) if answer.status not in {"cancelled", "expired"}:
            return _judge(answer, _sent(movement))
        case Cancelled(reference=movement.reference):
            return Absent()
        case _:
            return Unknown("wrong_echo")


def _judge(reply: Reply | None, sent: Sent) -> Approved | Declined | Absent | Unknown:
    if reply is None or (reply.decline is None) is (reply.status == "declined"):
        return Unknown("malformed")
    if (reply.reference, reply.amount, reply.currency) != (sent.reference, sent.amount_minor, sent.currency):
        return Unknown("wrong_echo")
    if reply.decline is not None:
        return Declined(reply.checks.cvc, reply.decline.class_, reply.decline.code)
    if reply.status == sent.done:
        return Approved(reply.checks.cvc)
    if reply.status == "cancelled":
        return Absent()
    # Expired is this copy, for it came too late: an earlier one may have been carried out.
    return Unknown("expired" if reply.status == "expired" else "wrong_echo")


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes | Unknown:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(ANSWER_BYTES_MAX):
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            return Unknown("too_large")
        parts.append(part)
    return b"".join(parts)


def _sent(movement: Movement) -> Sent:
    return Sent(movement.reference, movement.amount_minor, movement.currency, DONE[movement.kind])


def _card(payment: Payment) -> dict[str, Any]:
    card = payment.card
    shown = {
        "number": card.number.reveal(),
        "exp_month": card.exp_month,
        "exp_year": card.exp_year,
        "name": payment.name.reveal(),
    }
    return shown if payment.cvc is None else shown | {"cvc": payment.cvc.reveal()}
