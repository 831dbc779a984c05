"""Stripe's report: read by its columns, its categories and its signs; nothing of a cardholder is held."""

from collections.abc import Callable
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import FileRefused
from gateway.rules.settlement import LineKind, SettlementLine
from tests.gateway.formats.files import OWNER, STRIPE, line, read_settlement, settlements, stripe

LINES = [line(2), line(3, LineKind.REFUND, -500, 0), line(4, LineKind.CHARGEBACK, -2_000, 1_500)]
FILE = stripe(LINES).decode()


def _refusal(text: str) -> FileRefused:
    with pytest.raises(FileRefused) as refused:
        read_settlement(text.encode(), "stripe")
    return refused.value


@settings(max_examples=40)
@given(settlements(), st.permutations(STRIPE))
def test_what_we_write_is_read_back(lines: list[SettlementLine], columns: list[str]) -> None:
    """The same lines, in any order of columns, as from the native file."""
    assert read_settlement(stripe(lines, columns), "stripe") == lines


@pytest.mark.parametrize(
    ("category", "kind"),
    [
        ("charge", LineKind.CHARGE),
        ("payment", LineKind.CHARGE),
        ("refund", LineKind.REFUND),
        ("payment_refund", LineKind.REFUND),
        ("dispute", LineKind.CHARGEBACK),
        ("dispute_reversal", LineKind.CHARGEBACK),
        ("fee", LineKind.ADJUSTMENT),
        ("network_cost", LineKind.ADJUSTMENT),
        ("risk_reserved_funds", LineKind.ADJUSTMENT),
        ("other_adjustment", LineKind.ADJUSTMENT),
        ("refund_failure", LineKind.ADJUSTMENT),
    ],
)
@pytest.mark.parametrize("gross", [2_000, -2_000])
def test_categories_have_kinds(category: str, kind: LineKind, gross: int) -> None:
    """The category names the kind and never turns a sign."""
    text = stripe([line(gross=gross, fee=0)]).decode().replace(",charge,", f",{category},")

    assert [(one.kind, one.gross_minor) for one in read_settlement(text.encode(), "stripe")] == [(kind, gross)]


@pytest.mark.parametrize(
    ("category", "source", "charge", "reference"),
    [
        ("charge", "ch_a", "ch_b", "ch_a"),
        ("refund", "re_a", "ch_b", "re_a"),
        ("dispute", "dp_a", "ch_b", "ch_b"),
        ("dispute", "dp_a", "", "dp_a"),
        ("other_adjustment", "adj_a", "ch_b", "adj_a"),
        ("fee", "", "", "txn_2"),
    ],
)
def test_a_line_refers_to_what_it_is_about(category: str, source: str, charge: str, reference: str) -> None:
    """A charge or refund by its own id, a dispute by its charge's where it is told, a fee by its transaction's."""
    text = stripe([line()]).decode().replace("charge,ch_2,ch_2", f"{category},{source},{charge}")

    assert read_settlement(text.encode(), "stripe")[0].reference == reference


@pytest.mark.parametrize("gone", ["charge_id", "balance_transaction_id", "customer_name"])
def test_some_columns_may_be_left_out(gone: str) -> None:
    """The columns that are not needed may not be there."""
    assert read_settlement(stripe(LINES, [name for name in STRIPE if name != gone]), "stripe") == LINES


@pytest.mark.parametrize("text", ["2026-11-23 18:04:05", "2026-11-23T18:04:05Z", "2026-11-23T10:04:05-08:00"])
def test_times_are_utc(text: str) -> None:
    """Written as Stripe writes UTC, or by RFC 3339."""
    read = read_settlement(FILE.replace("2026-11-23 18:04:05", text).encode(), "stripe")

    assert (read[0].created_at, read[0].settled_on) == (
        datetime(2026, 11, 23, 18, 4, 5, tzinfo=UTC),
        date(2026, 11, 24),
    )


def test_nothing_of_a_cardholder_is_held_or_repeated() -> None:
    """Neither the lines nor a refusal say what stands in a cardholder's columns."""
    assert OWNER in FILE
    assert "Canary" not in repr(read_settlement(FILE.encode(), "stripe"))
    assert "Canary" not in repr(_refusal(FILE.replace("20.00", "20,00")))


BAD: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace("created_utc", "created", 1), "Line 1: the header lacks the column created_utc"),
    (lambda text: text.replace("card_brand", "gross", 1), "Line 1: a column stands twice"),
    (lambda text: text.replace(",charge,", ",payout,", 1), "Line 2, reporting_category: this category is not known"),
    (lambda text: text.replace(",charge,", ",,", 1), "Line 2, reporting_category: this category is not known"),
    (lambda text: text.replace("B20261124", "", 1), "Line 2, automatic_payout_id: this is not paid out yet"),
    (lambda text: text.replace(",usd,", ",eur,", 1), "Line 2, currency: only USD"),
    (lambda text: text.replace(",usd,", ",u\u017fd,", 1), "Line 2, currency: only USD"),
    (lambda text: text.replace(",19.12", ",19.13", 1), "Line 2, net: it must be gross less fee"),
    (lambda text: text.replace("refund,ch_3,", "refund,,", 1), "Line 3, source_id: write 1 to 64"),
    (lambda text: text.replace("2026-11-23 18:04:05", "2026-11-23 18:64:05", 1), "Line 2, created_utc: there is no"),
    (lambda text: text.replace("2026-11-23 18:04:05", "23/11/2026", 1), "Line 2, created_utc: write a time"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=[words for _, words in BAD])
def test_one_bad_line_is_named(spoil: Callable[[str], str], words: str) -> None:
    """The whole file is refused, with line and column."""
    spoilt = spoil(FILE)
    assert spoilt != FILE

    assert _refusal(spoilt).detail.startswith(words)


def test_the_net_is_checked_in_each_line() -> None:
    """The report has no total, and an amount that was changed alone is found all the same."""
    for amount in ("20.00", "0.88", "19.12"):
        assert _refusal(FILE.replace(f",{amount},", f",{amount[:-1]}9,", 1)).detail.startswith("Line 2, net:")


def test_numbers_of_lines_are_an_editors() -> None:
    """A description that goes over lines is counted as lines."""
    read = read_settlement(FILE.replace(OWNER, '"Ada\nCanary"', 1).encode(), "stripe")

    assert read == [LINES[0], LINES[1]._replace(line=4), LINES[2]._replace(line=5)]
