"""The model processor's truth: what was carried out, how often, and by which rules. It never forgets what it did.

Capabilities: A dedupes by reference and cancels, B cancels, C heeds `not_after`, D offers nothing. Where it does not
dedupe, a request that arrives twice is carried out twice, as far as the charge allows.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from gateway.rules.lifecycle import Kind
from gateway.rules.recovery import Offers
from gateway.services.ports import Absent, Approved, Declined, Movement, NotFound, Payment, Unknown

Verdict = Approved | Declined
Reply = Approved | Declined | Absent | Unknown

REFUSED_BY_RULE = Declined("unchecked", "system", "not_possible")
DECLINED_BY_ISSUER = Declined("unchecked", "issuer", "51")
DECLINED_LAST4 = frozenset({"0002", "9995"})
"""Ends of the published numbers of `tests.cards` that this processor declines."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request as it arrives."""

    kind: Kind
    reference: str
    charge_reference: str
    amount_minor: int
    currency: str
    not_after: datetime
    card: str | None
    """Its last four digits; the model needs no more."""

    @classmethod
    def of(cls, movement: Movement, payment: Payment | None) -> "Order":
        """What the wire says about a movement."""
        return cls(
            movement.kind,
            movement.reference,
            movement.charge_reference,
            movement.amount_minor,
            movement.currency,
            movement.not_after,
            payment.card.last4 if payment else None,
        )


@dataclass(slots=True)
class Deed:
    """What became of one reference. `effects` is how often what was asked was done."""

    order: Order
    verdict: Verdict
    decided_at: datetime
    effects: int = 0
    copies: int = 0
    """Effects of a request that the processor itself carried out a second time."""


@dataclass(slots=True)
class Account:
    """The money of one charge, in minor units."""

    held_minor: int = 0
    captured_minor: int = 0
    refunded_minor: int = 0
    voided: bool = False


@dataclass(slots=True)
class Book:
    """Everything that the processor knows."""

    capability: str
    window_s: float = 86_400.0
    forgets: bool = False
    lag_s: float = 0.0
    skew_s: float = 0.0
    deeds: dict[str, Deed] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    tombstones: dict[str, datetime] = field(default_factory=dict)

    @property
    def offers(self) -> Offers:
        """What it says of itself."""
        return Offers(
            dedupe_window_s=self.window_s if self.capability == "A" else None,
            cancel=self.capability in "AB",
            expiry=self.capability == "C",
        )

    def carry_out(self, order: Order, now: datetime, *, copy: bool = False) -> Reply:
        """A request arrives. `copy` says that it is the processor's own doubling of one."""
        if order.reference in self.tombstones:
            return Absent()
        if self.capability == "C" and now + timedelta(seconds=self.skew_s) > order.not_after:
            return Unknown("expired")
        deed = self.deeds.get(order.reference)
        if deed is not None and replace(deed.order, not_after=order.not_after) != order:
            return Unknown("reference_conflict")
        if deed is not None and self.capability == "A" and self._within_window(deed, now):
            return deed.verdict
        verdict = self._judge(order)
        if deed is None:
            deed = self.deeds[order.reference] = Deed(order, verdict, now)
        if isinstance(verdict, Approved):
            deed.verdict = verdict
            deed.effects += 1
            deed.copies += copy
        return verdict

    def inquire(self, reference: str, now: datetime) -> Verdict | Absent | NotFound:
        """What it says of a reference."""
        deed = self.deeds.get(reference)
        if reference in self.tombstones:
            return Absent()
        if deed is None or not self._remembers(deed, now) or now < deed.decided_at + timedelta(seconds=self.lag_s):
            return NotFound(self.offers)
        return deed.verdict

    def cancel(self, reference: str, now: datetime) -> Reply:
        """Make a reference void, unless it is decided."""
        if not self.offers.cancel:
            return Unknown("not_offered")
        deed = self.deeds.get(reference)
        if deed is not None and self._remembers(deed, now):
            return deed.verdict
        self.tombstones.setdefault(reference, now)
        return Absent()

    def _within_window(self, deed: Deed, now: datetime) -> bool:
        return now < deed.decided_at + timedelta(seconds=self.window_s)

    def _remembers(self, deed: Deed, now: datetime) -> bool:
        return not (self.forgets and self.capability == "A") or self._within_window(deed, now)

    def _judge(self, order: Order) -> Verdict:
        account = self.accounts.setdefault(order.charge_reference, Account())
        amount = order.amount_minor
        match order.kind:
            case Kind.SALE | Kind.AUTHORIZATION if order.card in DECLINED_LAST4:
                return DECLINED_BY_ISSUER
            case Kind.SALE:
                account.captured_minor += amount
            case Kind.AUTHORIZATION:
                account.held_minor += amount
            case Kind.CAPTURE if self._stands(account) and amount <= account.held_minor:
                account.captured_minor = amount
            case Kind.VOID if self._stands(account):
                account.voided = True
            case Kind.REFUND if account.refunded_minor + amount <= account.captured_minor:
                account.refunded_minor += amount
            case _:
                return REFUSED_BY_RULE
        return Approved("pass" if order.card else "unchecked")

    def _stands(self, account: Account) -> bool:
        return account.held_minor > 0 and account.captured_minor == 0 and not account.voided
