"""The one table between what goes wrong inside and what is answered: error class to problem type."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from aiohttp import web

from gateway import errors
from gateway.rules.problems import TYPES, problem
from gateway.services.ports import CommitUnknown
from keys.errors import KeysError

SLUGS: Mapping[type[Exception], str] = {
    errors.InvalidRequest: "invalid-request",
    errors.CardRefused: "card-refused",
    errors.CardNumberInText: "card-number-in-text",
    errors.AmountRefused: "amount-refused",
    errors.CurrencyRefused: "currency-refused",
    errors.ServiceUnknown: "service-unknown",
    errors.RefundTooLarge: "refund-too-large",
    errors.NotIdentified: "not-identified",
    errors.WrongCertificate: "wrong-certificate",
    errors.CertificateRefused: "certificate-refused",
    errors.NotPermitted: "not-permitted",
    errors.SignInRefused: "sign-in-refused",
    errors.PasswordRefused: "password-refused",
    errors.PasswordMustChange: "password-must-change",
    errors.TooManyRequests: "too-many-requests",
    errors.FieldNotTaken: "field-not-taken",
    errors.NotFound: "not-found",
    errors.TokenUnusable: "token-unusable",
    errors.TokenInUse: "token-in-use",
    errors.ChargeUnresolved: "charge-unresolved",
    errors.ChargeVoided: "charge-voided",
    errors.ChargeCaptured: "charge-captured",
    errors.ChargeNotCaptured: "charge-not-captured",
    errors.ChargeNotMade: "charge-not-made",
    errors.NothingLeftToRefund: "nothing-left-to-refund",
    errors.AlreadyDecided: "already-decided",
    errors.FileRefused: "file-refused",
    errors.PeriodRefused: "period-refused",
    errors.PeriodClosed: "period-closed",
    errors.ExceptionsOpen: "exceptions-open",
    errors.PackDiffers: "pack-differs",
    errors.ExportTooLarge: "export-too-large",
    errors.IdempotencyKeyInvalid: "idempotency-key-invalid",
    errors.IdempotencyKeyReused: "idempotency-key-reused",
    errors.RequestInProgress: "request-in-progress",
    errors.Unavailable: "unavailable",
}

RETRY_AFTER_S = "1"
RETRIED = frozenset({"unavailable", "request-in-progress", "too-many-requests"})

COMMIT_UNKNOWN = "It is not known whether this was done: repeat it, with the same Idempotency-Key if it had one."
KEYS_UNUSABLE = "The keys cannot be used now. Nothing was done; try again."


def describe(error: Exception) -> tuple[str, str, Sequence[str]] | None:
    """Slug, detail and pointers of an error that has an answer; None is left to the server, which answers 500."""
    if isinstance(error, errors.GatewayError):
        return slug_of(error), error.detail, error.pointers
    if isinstance(error, CommitUnknown):
        return "unavailable", COMMIT_UNKNOWN, ()
    if isinstance(error, KeysError):
        return "unavailable", KEYS_UNUSABLE, ()
    return None


def slug_of(error: errors.GatewayError) -> str:
    """Its own, or that of the class that it is a kind of."""
    return next(SLUGS[kind] for kind in type(error).__mro__ if kind in SLUGS)


def response(error: Exception) -> web.Response | None:
    """The answer to an error that has one, as a problem document."""
    described = describe(error)
    return described and document(described[0], problem(*described))


def document(slug: str, body: bytes) -> web.Response:
    """A problem document as a response."""
    headers = {"Retry-After": RETRY_AFTER_S} if slug in RETRIED else {}
    if TYPES[slug].status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return web.Response(
        status=TYPES[slug].status, body=body, content_type="application/problem+json", headers=headers
    )
