"""What a reconciliation says on one page: how many items of each state, and three sides that tie to the cent.

      ledger                       what the gateway captured, less what it gave back
    + unmatched                    what the items that are not matched are off; of it `timing` by no file as yet
    = settled                      = gross - refunds - chargebacks + adjustments
    - fees
    = net                          what the processor owes for these dates
    - awaiting_deposit             of it, in batches that are not in the bank yet
    + what the bank is off         follows from the others
    = deposited

Amounts are minor units of one currency; an item of another one is counted, and not summed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from gateway.rules.match import DEPOSIT, Item, State
from gateway.rules.settlement import LineKind

OUT = {LineKind.REFUND: "refunds", LineKind.CHARGEBACK: "chargebacks"}
"""Told by what leaves."""


class Statement:
    """Sums items up as they come. `knows_bank`: the deposits were looked at; else nobody can tell what is there."""

    def __init__(self, currency: str, *, knows_bank: bool) -> None:
        self._currency = currency
        self._knows_bank = knows_bank
        self._states: Counter[State] = Counter()
        self._sums: Counter[str] = Counter()

    def add(self, items: Iterable[Item]) -> None:
        """Items of the dates."""
        for item in items:
            self._states[item.state] += 1
            if item.currency == self._currency and item.kind != DEPOSIT:
                self._add(item)

    def _add(self, item: Item) -> None:
        sums, settled, net = self._sums, item.settled_minor, item.net_minor
        sums["ledger"] += item.ledger_minor or 0
        if settled is None or net is None:
            sums["timing"] -= (item.ledger_minor or 0) if item.state is State.TIMING else 0
            return
        sums["settled"] += settled
        sums["net"] += net
        if item.kind in OUT:
            sums[OUT[LineKind(item.kind)]] -= settled
        else:
            sums["gross" if item.kind == LineKind.CHARGE else "adjustments"] += settled
        sums["awaiting_deposit" if item.deposited_minor is None else "deposited"] += net

    def add_deposited(self, amount_minor: int) -> None:
        """What the bank has beside the net of the lines; may be negative."""
        self._sums["deposited"] += amount_minor

    def counts(self) -> dict[str, int]:
        """By state, each of them."""
        return {str(state): self._states[state] for state in State}

    def totals(self) -> Mapping[str, str | int | None]:
        """Each of them; None is what nobody who sees only some departments can know."""
        sums = self._sums
        lines = ("ledger", "settled", "gross", "fees", "refunds", "chargebacks", "adjustments", "net")
        names = (*lines, "unmatched", "timing")
        bank = {name: sums[name] if self._knows_bank else None for name in ("deposited", "awaiting_deposit")}
        told = {**sums, "fees": sums["settled"] - sums["net"], "unmatched": sums["settled"] - sums["ledger"]}
        return {"currency": self._currency} | {name: told.get(name, 0) for name in names} | bank
