"""Stripe's report `payout_reconciliation.itemized.5`: one line for each balance transaction of a payout.

It may hold names, e-mail addresses and card details; no column of these is asked for, so none is held. What money a
line moves is said by its signs, never by the name of its category. The report has no total: that it is whole shows
once its payouts meet their deposits.
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from gateway.formats.fields import Unfit, code, currency, day, minor, utc_moment
from gateway.formats.lines import refused
from gateway.formats.table import Header, rows
from gateway.rules.money import ENABLED
from gateway.rules.settlement import LineKind, SettlementLine

KIND = "settlement"
NAME = "stripe"
NEEDED = (
    "automatic_payout_id",
    "automatic_payout_effective_at_utc",
    "created_utc",
    "currency",
    "gross",
    "fee",
    "net",
    "reporting_category",
    "source_id",
)
WELCOME = ("charge_id", "balance_transaction_id")
CURRENCIES = {spelling: code for code in ENABLED for spelling in (code, code.lower())}

CATEGORIES: Mapping[str, LineKind] = {
    "charge": LineKind.CHARGE,
    "payment": LineKind.CHARGE,
    "refund": LineKind.REFUND,
    "payment_refund": LineKind.REFUND,
    "dispute": LineKind.CHARGEBACK,
    "dispute_reversal": LineKind.CHARGEBACK,
    # These are of no payment, or take back what another line said: a person must look at them.
    "charge_failure": LineKind.ADJUSTMENT,
    "fee": LineKind.ADJUSTMENT,
    "network_cost": LineKind.ADJUSTMENT,
    "other_adjustment": LineKind.ADJUSTMENT,
    "partial_capture_reversal": LineKind.ADJUSTMENT,
    "refund_failure": LineKind.ADJUSTMENT,
    "risk_reserved_funds": LineKind.ADJUSTMENT,
    "tax": LineKind.ADJUSTMENT,
}
REFERENCES: Mapping[LineKind, tuple[str, ...]] = {
    LineKind.CHARGE: ("source_id",),
    LineKind.REFUND: ("source_id",),
    LineKind.CHARGEBACK: ("charge_id", "source_id"),
    LineKind.ADJUSTMENT: ("source_id", "balance_transaction_id"),
}
"""Where a line says what it is about: the first of these columns that is not empty."""


def read(source: BinaryIO) -> Iterator[SettlementLine]:
    """The lines after the header; raises `FileRefused`."""
    table = rows(source)
    header = Header(next(table)[1], NEEDED, WELCOME)
    for line, row in table:
        try:
            yield _line(line, header.cells(line, row))
        except Unfit as unfit:
            raise refused(line, unfit.words, unfit.column) from None


def _line(line: int, cells: Mapping[str, str]) -> SettlementLine:
    kind = CATEGORIES.get(cells["reporting_category"])
    if kind is None:
        raise Unfit("reporting_category", "this category is not known here. Ask for it to be added.")
    gross, fee, net = (minor(column, cells[column]) for column in ("gross", "fee", "net"))
    if net != gross - fee:
        raise Unfit("net", "it must be gross less fee.")
    if not cells["automatic_payout_id"]:
        raise Unfit("automatic_payout_id", "this is not paid out yet. Ask for the report of one payout.")
    return SettlementLine(
        line,
        kind,
        _reference(kind, cells),
        gross,
        fee,
        net,
        currency("currency", CURRENCIES.get(cells["currency"], "")),
        utc_moment("created_utc", cells["created_utc"]),
        day("automatic_payout_effective_at_utc", cells["automatic_payout_effective_at_utc"]),
        code("automatic_payout_id", cells["automatic_payout_id"]),
    )


def _reference(kind: LineKind, cells: Mapping[str, str]) -> str:
    filled = (column for column in REFERENCES[kind] if cells.get(column))
    column = next(filled, "source_id")
    return code(column, cells[column])
