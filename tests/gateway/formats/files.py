"""Writes the files that the formats read, as a processor or a bank would. Amounts are minor units."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from hypothesis import strategies as st

from gateway.formats import open_format
from gateway.rules.settlement import DepositLine, LineKind, SettlementLine

NATIVE = ("reference", "type", "gross", "fee", "net", "currency", "created", "settled", "batch")
STRIPE = (
    *(
        "automatic_payout_id",
        "automatic_payout_effective_at_utc",
        "balance_transaction_id",
        "created_utc",
        "currency",
    ),
    *("gross", "fee", "net", "reporting_category", "source_id", "charge_id", "customer_name", "card_brand"),
)
CATEGORIES = {
    LineKind.CHARGE: "charge",
    LineKind.REFUND: "refund",
    LineKind.CHARGEBACK: "dispute",
    LineKind.ADJUSTMENT: "other_adjustment",
}
OWNER = "Ada Canary <ada@example.org>"
"""In a column of a cardholder's."""

CREATED = datetime(2026, 11, 23, 18, 4, 5, tzinfo=UTC)
SETTLED = date(2026, 11, 24)


def line(number: int = 2, kind: LineKind = LineKind.CHARGE, gross: int = 2_000, fee: int = 88) -> SettlementLine:
    """One that is right."""
    return SettlementLine(
        *(number, kind, f"ch_{number}", gross, fee, gross - fee, "USD", CREATED, SETTLED, "B20261124")
    )


def read_settlement(raw: bytes, name: str = "native") -> list[SettlementLine]:
    """All of a file, by the reader of that name."""
    read = list(open_format("settlement", name).read(io.BytesIO(raw)))
    return [settled for settled in read if isinstance(settled, SettlementLine)]


def read_deposits(raw: bytes) -> list[DepositLine]:
    """All of a bank's file."""
    read = list(open_format("deposit", "bai2").read(io.BytesIO(raw)))
    return [entry for entry in read if isinstance(entry, DepositLine)]


def decimal(minor: int) -> str:
    """`-12.34`."""
    return f"{'-' if minor < 0 else ''}{abs(minor) // 100}.{abs(minor) % 100:02d}"


def cells(settled: SettlementLine) -> dict[str, str]:
    """A line's cells by column."""
    return {
        "reference": settled.reference,
        "type": settled.kind,
        "gross": decimal(settled.gross_minor),
        "fee": decimal(settled.fee_minor),
        "net": decimal(settled.net_minor),
        "currency": settled.currency,
        "created": settled.created_at.isoformat().replace("+00:00", "Z"),
        "settled": settled.settled_on.isoformat(),
        "batch": settled.batch,
    }


def native(settled: Sequence[SettlementLine], columns: Sequence[str] = NATIVE, end: str = "\n") -> bytes:
    """The native file with its total; columns that it does not know are filled with something."""
    gross, fee = sum(one.gross_minor for one in settled), sum(one.fee_minor for one in settled)
    total = ["#total", str(len(settled)), decimal(gross), decimal(fee), decimal(gross - fee)]
    rows = ([cells(one).get(column, "whatever\nit says") for column in columns] for one in settled)
    return table([columns, *rows, total], end)


def stripe(settled: Sequence[SettlementLine], columns: Sequence[str] = STRIPE) -> bytes:
    """Stripe's report of the same lines."""
    rows = ([_stripe(one)[column] for column in columns] for one in settled)
    return table([columns, *rows])


def table(rows: Iterable[Sequence[str]], end: str = "\n") -> bytes:
    """As CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue().encode()


def _stripe(settled: SettlementLine) -> Mapping[str, str]:
    return cells(settled) | {
        "automatic_payout_id": settled.batch,
        "automatic_payout_effective_at_utc": f"{settled.settled_on} 00:00:00",
        "balance_transaction_id": f"txn_{settled.line}",
        "created_utc": f"{settled.created_at:%Y-%m-%d %H:%M:%S}",
        "currency": settled.currency.lower(),
        "reporting_category": CATEGORIES[settled.kind],
        "source_id": settled.reference,
        "charge_id": settled.reference,
        "customer_name": OWNER,
        "card_brand": "visa",
    }


def bai2(*groups: Sequence[Sequence[str]], day: str = "261124") -> bytes:
    """A statement: groups of accounts of 16 records (and 88s), with sums and counts that are right."""
    records, total = [f"01,CITYBANK,CITY,{day},2359,1,,,2/"], 0
    for accounts in groups:
        group, group_total = [f"02,CITY,CITYBANK,1,{day},2359,USD,2/"], 0
        for entries in accounts:
            amounts = [int(entry.split(",")[2]) for entry in entries if entry.startswith("16")]
            account_total = sum(amounts) + 7
            account = ["03,4100200300,,010,,,,015,7,,/", *entries]
            group += [*account, f"49,{account_total},{len(account) + 1}/"]
            group_total += account_total
        records += [*group, f"98,{group_total},{len(accounts)},{len(group) + 1}/"]
        total += group_total
    return "".join(f"{record}\n" for record in [*records, f"99,{total},{len(groups)},{len(records) + 1}/"]).encode()


# --- what Hypothesis makes of them ---

MINOR = st.integers(-(10**11), 10**11)  # so that a file's total is an amount too
CODES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_categories=["Nd"]), min_size=1, max_size=64
)
MOMENTS = st.integers(0, 3_155_760_000 - 1).map(
    lambda seconds: datetime(2000, 1, 1, tzinfo=UTC) + timedelta(0, seconds)
)


@st.composite
def settlements(draw: st.DrawFn) -> list[SettlementLine]:
    """Any lines at all, numbered as in a file of theirs."""
    found = []
    for number in range(2, 2 + draw(st.integers(0, 6))):
        gross, fee = draw(MINOR), draw(st.integers(0, 10**9))
        kind, created = draw(st.sampled_from(LineKind)), draw(MOMENTS)
        reference = draw(CODES.filter(lambda text: not text.startswith("#")))
        found.append(
            SettlementLine(
                *(number, kind, reference, gross, fee, gross - fee, "USD", created, created.date(), draw(CODES))
            )
        )
    return found
