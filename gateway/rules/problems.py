"""Problem documents (RFC 9457): a closed list of types, and the bytes of each.

The type is what programs branch on; the title never changes; the detail is for people and is written by us,
never taken from a request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

BASE = "https://gateway.example/problems/"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One entry of the closed list."""

    status: int
    title: str


TYPES: Mapping[str, ProblemType] = {
    "invalid-request": ProblemType(400, "The request is not what the schema asks for"),
    "malformed-request": ProblemType(400, "The request is not valid HTTP for this service"),
    "idempotency-key-invalid": ProblemType(400, "The Idempotency-Key is missing or malformed"),
    "not-identified": ProblemType(401, "The caller is not identified"),
    "sign-in-refused": ProblemType(401, "The sign-in was refused"),
    "card-declined": ProblemType(402, "The card was declined"),
    "capture-refused": ProblemType(402, "The capture was refused; the charge is authorized"),
    "void-refused": ProblemType(402, "The void was refused; the charge is authorized"),
    "refund-refused": ProblemType(402, "The refund was refused; nothing was given back"),
    "wrong-certificate": ProblemType(403, "The client certificate belongs to another application"),
    "certificate-refused": ProblemType(403, "The client certificate is revoked or of no use here"),
    "not-permitted": ProblemType(403, "This is not granted to the caller"),
    "password-must-change": ProblemType(403, "The password must be changed first"),
    "not-found": ProblemType(404, "There is no such object"),
    "method-not-allowed": ProblemType(405, "This route does not know the method"),
    "request-timeout": ProblemType(408, "The request did not arrive in time"),
    "request-in-progress": ProblemType(409, "The first request with this Idempotency-Key still runs"),
    "token-in-use": ProblemType(409, "A charge of this token is unresolved"),
    "charge-unresolved": ProblemType(409, "What the processor did with the charge is not known yet"),
    "charge-voided": ProblemType(409, "The charge was voided"),
    "charge-captured": ProblemType(409, "The charge was captured"),
    "charge-not-captured": ProblemType(409, "The charge was not captured"),
    "charge-not-made": ProblemType(409, "The charge was declined or failed"),
    "nothing-left-to-refund": ProblemType(409, "Nothing is left to refund"),
    "already-decided": ProblemType(409, "Nothing waits for this decision"),
    "period-closed": ProblemType(409, "These dates are closed"),
    "exceptions-open": ProblemType(409, "Exceptions of these dates are not settled"),
    "pack-differs": ProblemType(409, "What was closed is not what was signed"),
    "body-too-large": ProblemType(413, "The body is too large"),
    "media-type-unsupported": ProblemType(415, "The body is compressed, or not of a type that this route takes"),
    "expectation-failed": ProblemType(417, "The expectation cannot be met"),
    "card-refused": ProblemType(422, "The card cannot be used as it was given"),
    "card-number-in-text": ProblemType(422, "A card number stands where none may be"),
    "amount-refused": ProblemType(422, "The amount cannot be charged"),
    "currency-refused": ProblemType(422, "The currency is not enabled"),
    "service-unknown": ProblemType(422, "The service code is not registered"),
    "refund-too-large": ProblemType(422, "The refund is larger than what is left of the charge"),
    "file-refused": ProblemType(422, "The file was not imported, none of it"),
    "period-refused": ProblemType(422, "This cannot be done for these dates"),
    "export-too-large": ProblemType(422, "More rows than one file may hold"),
    "token-unusable": ProblemType(422, "The token is spent or expired"),
    "password-refused": ProblemType(422, "The password was not changed"),
    "field-not-taken": ProblemType(422, "The department does not collect this personal field"),
    "idempotency-key-reused": ProblemType(422, "The Idempotency-Key was used with another payload"),
    "headers-too-large": ProblemType(431, "The header fields are too large"),
    "too-many-requests": ProblemType(429, "More requests than the application may send"),
    "internal-error": ProblemType(500, "Something went wrong here"),
    "charge-failed": ProblemType(502, "The charge never happened; nothing was charged"),
    "capture-failed": ProblemType(502, "The capture never happened; the charge is authorized"),
    "void-failed": ProblemType(502, "The void never happened; the charge is authorized"),
    "refund-failed": ProblemType(502, "The refund never happened; nothing was given back"),
    "unavailable": ProblemType(503, "The service cannot do this now"),
    "version-unsupported": ProblemType(505, "HTTP/1.0 and HTTP/1.1 are spoken here"),
}


def problem(slug: str, detail: str = "", pointers: Sequence[str] = (), **extra: Any) -> bytes:
    """The document of one type. `pointers` (RFC 6901) name the fields that it is about."""
    kind = TYPES[slug]
    document: dict[str, Any] = {"type": BASE + slug, "title": kind.title, "status": kind.status}
    if detail:
        document["detail"] = detail
    if pointers:
        document["errors"] = [{"pointer": f"#{pointer}"} for pointer in pointers]
    return msgspec.json.encode(document | extra)


def of_status(status: int) -> bytes:
    """The document for a refusal that has nothing but a status: what the server itself answers."""
    for slug, kind in TYPES.items():
        if kind.status == status and slug in SERVER_SLUGS:
            return problem(slug)
    return problem("internal-error" if status >= 500 else "malformed-request")  # noqa: PLR2004 - 5xx


SERVER_SLUGS = frozenset(
    {
        "malformed-request",
        "not-found",
        "method-not-allowed",
        "request-timeout",
        "body-too-large",
        "media-type-unsupported",
        "expectation-failed",
        "headers-too-large",
        "internal-error",
        "unavailable",
        "version-unsupported",
    }
)
