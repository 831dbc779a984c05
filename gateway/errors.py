"""Everything that the gateway refuses, as one tree; it knows no HTTP (`web.problems` has that table).

    GatewayError
    |- InvalidRequest          not parsable, or not the schema
    |- CardRefused             check digit, unknown issuer, length, expiry, code
    |- CardNumberInText        a card number where text is expected
    |- AmountRefused           zero, negative, above the application's limit, fee above the amount
    |- CurrencyRefused         not one that is enabled
    |- ServiceUnknown          a service code that the department did not register
    |- NotIdentified           no key, or not a valid one
    |- WrongCertificate        a certificate of another application
    |- CertificateRefused      revoked, denied, or of no use for an application
    |- NotPermitted            known, and not allowed to do this
    |- TooManyRequests         over the quota
    |- FieldNotTaken           a personal field that the department has no reason to send
    |- GrantRefused            an account or a grant that nobody may have
    |- SignInRefused           name, password or code is wrong, or the account locked or ended
    |- PasswordRefused         too short, known to be guessed, used before
    |- PasswordMustChange      signed in with a password that somebody else has made
    |- NotFound                no such object in this department
    |- TokenUnusable           spent or expired
    |- TokenInUse              a charge of it is unresolved
    |- ChargeUnresolved        what the processor did with it is not known yet
    |- ChargeVoided            it was given up, nothing more happens to it
    |- ChargeCaptured          its money has moved: it can be refunded only
    |- ChargeNotCaptured       no money has moved that could be given back
    |- ChargeNotMade           declined or failed: there is nothing to act on
    |- NothingLeftToRefund     all of it is refunded, or about to be
    |- RefundTooLarge          more than is left of what was captured
    |- AlreadyDecided          somebody has said of this what there was to say
    |- FileRefused             an imported file with a line, or a total, that cannot be right
    |- PeriodRefused           a range of dates that is none, is too long or has not ended
    |- PeriodClosed            the range is closed, or partly, and nothing may change in it
    |- ExceptionsOpen          a range cannot be closed before its exceptions are settled
    |- PackDiffers             what was closed is not any more what was signed
    |- ExportTooLarge          more rows than one file may hold
    |- IdempotencyKeyInvalid   missing or malformed
    |- IdempotencyKeyReused    with another payload
    |- RequestInProgress       the first request with this key still runs
    `- Unavailable             database, key ring or processor cannot serve now

Messages never repeat input: they are written here and where they are raised, never from a request.
"""

from collections.abc import Sequence
from typing import ClassVar


class GatewayError(Exception):
    """Any refusal. `detail` may be shown to the caller; `pointers` say which fields it is about."""

    default: ClassVar[str] = ""

    def __init__(self, detail: str | None = None, pointers: Sequence[str] = ()) -> None:
        self.detail = detail or self.default
        self.pointers = tuple(pointers)
        super().__init__(self.detail)


class InvalidRequest(GatewayError):
    """The body is not JSON, or not of the schema."""

    default = "The body is not what the schema asks for."


class CardRefused(GatewayError):
    """Well-formed, and still no card that can be used."""


class CardNumberInText(GatewayError):
    """A card number stands where it would be stored as text."""

    default = "A card number stands in a field that is not for card numbers. Nothing was stored."


class AmountRefused(GatewayError):
    """The amount is not one that this application may charge."""


class CurrencyRefused(GatewayError):
    """The currency is not enabled."""

    default = "Only USD is enabled; codes are upper case (ISO 4217)."


class ServiceUnknown(GatewayError):
    """The department did not register this service code."""

    default = "The department has not registered this service code."


class NotIdentified(GatewayError):
    """No API key, or none that is valid."""

    default = "Send `Authorization: Bearer <api key>` with a valid key."


class WrongCertificate(GatewayError):
    """The client certificate is not that of the API key's application."""

    default = "The client certificate belongs to another application than the API key."


class CertificateRefused(GatewayError):
    """The client certificate is revoked or denied, or nobody can tell whether it is."""

    default = "The client certificate is revoked, or it cannot be told whether it is. Ask the gateway's operators."


class NotPermitted(GatewayError):
    """Known, and not allowed to do this."""

    default = "This is not granted to you. Nothing was done."


class TooManyRequests(GatewayError):
    """More than this application may ask in a second."""

    default = "More requests than this application may send; slow down and try again."


class FieldNotTaken(GatewayError):
    """A personal field that is not in the department's contract."""


class GrantRefused(GatewayError):
    """An account or a grant that nobody may have."""


class SignInRefused(GatewayError):
    """One answer for whatever was wrong: name, password, code, a lock, an account that ended."""

    default = "Name, password or code is wrong, or the account is locked. After six tries it locks for 30 minutes."


class PasswordRefused(GatewayError):
    """A new password that will not do."""


class PasswordMustChange(GatewayError):
    """Signed in with a password that somebody else has made: nothing else may be done with it."""

    default = "Choose a password of your own first."


class NotFound(GatewayError):
    """No such object in this department: unknown and foreign look the same."""

    default = "There is no such object."


class TokenUnusable(GatewayError):
    """The token is spent or expired."""

    default = "The token is spent or expired; make a new one."


class TokenInUse(GatewayError):
    """A charge of the token is unresolved."""

    default = "A charge of this token is unresolved; try again once it is."


class ChargeUnresolved(GatewayError):
    """What the processor did with the charge is not known yet."""

    default = "It is not known yet what the processor did with this charge; ask for it again in a moment."


class ChargeVoided(GatewayError):
    """The charge was voided."""

    default = "The charge was voided; nothing more can happen to it. Make a new charge."


class ChargeCaptured(GatewayError):
    """The charge was captured, and captured money goes back by refunds only."""

    default = "The charge was captured, and what is captured counts as settled: refund it instead."


class ChargeNotCaptured(GatewayError):
    """The charge is authorized only."""

    default = "The charge is authorized and not captured: there is nothing to refund. Void it instead."


class ChargeNotMade(GatewayError):
    """The charge was declined or failed."""

    default = "The charge was declined or failed; no money was held or moved."


class NothingLeftToRefund(GatewayError):
    """All that was captured is refunded, or in a refund that is not decided yet."""

    default = "Nothing is left to refund: all of it is refunded, or in a refund that is not decided yet."


class RefundTooLarge(GatewayError):
    """More than what is left of what was captured."""

    default = "The refund is larger than what was captured, less refunds made or not decided yet."


class AlreadyDecided(GatewayError):
    """Nothing waits for a decision here, or not any more."""

    default = "This refund waits for no approval: it was decided about, or never had to be."


class FileRefused(GatewayError):
    """A file of finance's that is not taken, none of it. `detail` names the line and what is wrong with it."""


class PeriodRefused(GatewayError):
    """The dates are not a range that this can be done for."""


class PeriodClosed(GatewayError):
    """The range, or a part of it, is closed."""

    default = "These dates are closed, or some of them are. What came later belongs to the next open date."


class ExceptionsOpen(GatewayError):
    """Exceptions of the range are neither resolved nor approved."""

    default = "Exceptions of these dates are not settled yet. Resolve them first, or have them approved."


class PackDiffers(GatewayError):
    """The pack of a close, made again, is not the one that was signed."""

    default = (
        "What is stored is not any more what was signed when these dates were closed: something was changed, past"
        " this site, since then. It is in the audit log. Tell whoever looks after the database, and the auditor."
    )


class ExportTooLarge(GatewayError):
    """More rows than one file may hold."""

    default = "This is more than one file may hold. Ask for fewer days, or for one department."


class IdempotencyKeyInvalid(GatewayError):
    """The Idempotency-Key header is missing or malformed."""

    default = "Send one Idempotency-Key header of 1 to 255 printable ASCII characters."


class IdempotencyKeyReused(GatewayError):
    """The key was used with another payload."""

    default = "This Idempotency-Key was used with another payload; a new request takes a new key."


class RequestInProgress(GatewayError):
    """The first request with this key still runs."""

    default = "The first request with this Idempotency-Key still runs; ask again in a moment."


class Unavailable(GatewayError):
    """Something that this needs cannot serve now. Nothing was done."""

    default = "The service cannot do this now. Nothing was done; try again."
