"""The native settlement file: what we write is read back, and what is not of the form is refused with its line."""

from collections.abc import Callable
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import FileRefused
from gateway.rules.settlement import LineKind, SettlementLine
from tests.cards import CANARY
from tests.gateway.formats.files import NATIVE, line, native, read_settlement, settlements

LINES = [line(2), line(3, LineKind.REFUND, -500, 0), line(4, LineKind.CHARGEBACK, -2_000, 1_500)]
FILE = native(LINES).decode()


def _refusal(text: str | bytes) -> FileRefused:
    with pytest.raises(FileRefused) as refused:
        read_settlement(text if isinstance(text, bytes) else text.encode())
    return refused.value


@settings(max_examples=60)
@given(settlements(), st.permutations([*NATIVE, "note", "customer"]), st.sampled_from(["\n", "\r\n"]))
def test_what_we_write_is_read_back(lines: list[SettlementLine], columns: list[str], end: str) -> None:
    """In any order of columns, beside others whose text goes over two lines; lines are numbered as an editor does."""
    numbered = [2 + 3 * (one.line - 2) for one in lines]  # two strange columns, a line more each
    read = read_settlement(native(lines, columns, end))

    assert [one.line for one in read] == numbered
    assert [_without_line(one) for one in read] == [_without_line(one) for one in lines]


def _without_line(one: SettlementLine) -> tuple[object, ...]:
    return (
        *(one.kind, one.reference, one.gross_minor, one.fee_minor, one.net_minor, one.currency),
        *(one.created_at, one.settled_on, one.batch),
    )


def test_a_mark_before_the_header_is_no_part_of_it() -> None:
    """Spreadsheets write a byte order mark and ends of two characters."""
    assert read_settlement(b"\xef\xbb\xbf" + native(LINES, end="\r\n")) == LINES


def test_a_day_without_lines_is_a_file() -> None:
    """Header and a total of nothing."""
    assert read_settlement(native([])) == []


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("2026-11-23T18:04:05Z", datetime(2026, 11, 23, 18, 4, 5, tzinfo=UTC)),
        ("2026-11-23T18:04:05.123456789Z", datetime(2026, 11, 23, 18, 4, 5, 123456, tzinfo=UTC)),
        ("2026-11-01T01:30:00-07:00", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
        ("2026-11-01T01:30:00-08:00", datetime(2026, 11, 1, 9, 30, tzinfo=UTC)),
        ("2026-11-24T13:00:00+14:00", datetime(2026, 11, 23, 23, 0, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
    ],
)
def test_times_are_utc(written: str, means: datetime) -> None:
    """Offsets are honoured, a date is its midnight UTC, and settled is the date in UTC."""
    text = FILE.replace("2026-11-23T18:04:05Z,2026-11-24", f"{written},{written}", 1)
    first, *_ = read_settlement(text.encode())

    assert (first.created_at, first.settled_on) == (means, means.date())
    assert first.created_at.tzinfo is UTC


WHOLE = [
    "20",
    "20.0",
    "20.000",
    ".50",
    "020.00",
    "1,220.00",
    "20,00",
    "+20.00",
    " 20.00",
    "20.00 ",
    "-0.00",
    "--1.00",
]
STRANGE = ["", "2e1.00", "2_0.00", "$20.00", "(20.00)", "20.00-", "NaN", "12345678901.00"]
ALPHABETS = ["\u221220.00", "2\u0660.00", "20.0\uff10", "\uff12\uff10.00", "\u0662\u0660.00"]
"""A minus sign, and digits, that are not ASCII."""


@pytest.mark.parametrize("amount", [*WHOLE, *STRANGE, *ALPHABETS])
def test_another_amount_is_refused(amount: str) -> None:
    """Two digits after a point, ASCII digits, no sign but a minus, no group, no nothing below nothing."""
    refused = _refusal(FILE.replace(",20.00,", f',"{amount}",', 1))

    assert refused.detail == ("Line 2, gross: write an amount with two digits after the point, like 12.50 or -3.00.")
    assert refused.pointers == ("/lines/2",)


BAD: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace("reference,type", "reference"), "Line 1: the header lacks the column type"),
    (lambda text: text.replace("type", "Type", 1), "Line 1: the header lacks the column type"),
    (lambda text: text.replace("batch", "batch,batch", 1), "Line 1: a column stands twice"),
    (lambda text: text.replace("batch", "batch,note,note", 1), "Line 1: a column stands twice"),
    (lambda text: text.replace(",charge,", ",Charge,", 1), "Line 2, type: write one of charge, refund,"),
    (lambda text: text.replace(",charge,", ",payment,", 1), "Line 2, type: write one of charge, refund,"),
    (lambda text: text.replace(",USD,", ",usd,", 1), "Line 2, currency: only USD is taken"),
    (lambda text: text.replace(",USD,", ",EUR,", 1), "Line 2, currency: only USD is taken"),
    (lambda text: text.replace(",0.88,19.12", ",0.88,19.11", 1), "Line 2, net: it must be gross less fee"),
    (lambda text: text.replace("ch_3,", ",", 1), "Line 3, reference: write 1 to 64"),
    (lambda text: text.replace("ch_3,", "ch 3,", 1), "Line 3, reference: write 1 to 64"),
    (lambda text: text.replace("ch_3,", "ch\u20ac3,", 1), "Line 3, reference: write 1 to 64"),
    (lambda text: text.replace("ch_3,", "c" * 65 + ",", 1), "Line 3, reference: write 1 to 64"),
    (lambda text: text.replace(",B20261124", ",", 1), "Line 2, batch: write 1 to 64"),
    (lambda text: text.replace("T18:04:05Z", "T18:04:05", 1), "Line 2, created: write a time with its offset"),
    (lambda text: text.replace("T18:04:05Z", " 18:04:05", 1), "Line 2, created: write a time with its offset"),
    (lambda text: text.replace("T18:04:05Z", "T18:04:60Z", 1), "Line 2, created: there is no such date or time"),
    (lambda text: text.replace("T18:04:05Z", "T18:04:05+24:00", 1), "Line 2, created: there is no such date"),
    (lambda text: text.replace("2026-11-24", "2026-11-31", 1), "Line 2, settled: there is no such date or time"),
    (lambda text: text.replace("2026-11-24", "2026-W48", 1), "Line 2, settled: write a time with its offset"),
    (lambda text: text.replace("2026-11-24", "10000-01-01", 1), "Line 2, settled: write a time with its offset"),
    (lambda text: text.replace("ch_3", "ch_3,more", 1), "Line 3: this line has 10 columns, and the header has 9"),
    (lambda text: text.replace("ch_3,refund", "ch_3", 1), "Line 3: this line has 8 columns, and the header has 9"),
    (lambda text: text.replace("ch_3,", '"ch_3"x,', 1), "Line 3: the quotes do not pair"),
    (lambda text: text.replace("ch_3,", '"ch_3,', 1), "Line 3: the quotes do not pair"),
    (lambda text: text.replace("\nch_3", "\n\nch_3", 1), "Line 3: this line is empty"),
    (lambda text: text.replace("ch_3", "ch\x00_3", 1), "Line 3: a control character"),
    (lambda text: text.replace("ch_3", "ch_3\x1b[2J", 1), "Line 3: a control character"),
    (lambda text: text.replace("ch_3", "ch\r_3", 1), "Line 3: a control character"),
    (lambda text: text.replace("ch_3", "c" * 10_000, 1), "Line 3: this is longer than a line can be"),
    (lambda text: text.replace("ch_3", '"\n' + "x\n" * 200, 1), "Line 3: a quote is opened here, and not closed"),
    (
        lambda text: text.partition("#total")[0],
        "The last line is no total: the file is not whole. It ends after line 4",
    ),
    (lambda text: text.partition("\n")[0], "The last line is no total: the file is not whole. It ends after line 1"),
    (lambda text: text[:-2], "Line 5, total of net: write an amount"),
    (lambda text: text[:-9], "Line 5: write the total as #total,lines,gross,fee,net"),
    (lambda text: text.replace("#total,3", "#total,03"), "Line 5: write the total as"),
    (lambda text: text.replace("#total,3", "#total,4"), "Line 5: the file has 3 lines, and its total counts others"),
    (
        lambda text: text.replace("#total,3,-5.00", "#total,3,-5.01"),
        "Line 5, total of gross: the lines sum to another",
    ),
    (lambda text: text.replace("3,-5.00,15.88", "3,-5.00,15.87"), "Line 5, total of fee: the lines sum to another"),
    (lambda text: text.replace("5.88,-20.88", "5.88,-20.89"), "Line 5, total of net: the lines sum to another"),
    (lambda text: text + "\n", "Line 6: this line is empty"),
    (lambda text: text + "x\n", "Line 6: nothing may follow the total"),
    (lambda text: text + text.splitlines()[-1], "Line 6: nothing may follow the total"),
    (lambda _: "", "The file is empty"),
    (lambda _: "\n", "Line 1: this line is empty"),
    (lambda _: "\ufeff", "Line 1: this line is empty"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=[words for _, words in BAD])
def test_one_bad_line_is_named(spoil: Callable[[str], str], words: str) -> None:
    """The whole file is refused, with the line, the column and what to do, in words."""
    spoilt = spoil(FILE)
    assert spoilt != FILE

    refused = _refusal(spoilt)
    assert refused.detail.startswith(words)
    assert refused.detail.endswith((".", "?"))


def test_another_encoding_is_refused() -> None:
    """A file of a spreadsheet's own encoding is refused at the line that shows it."""
    raw = FILE.replace("ch_3", "Mu\u00f1oz").encode("latin-1")

    assert _refusal(raw).detail == "Line 3: this is not UTF-8 text. Save the file as UTF-8."


@pytest.mark.parametrize("column", ["ch_3", "B20261124"])
@pytest.mark.parametrize("dress", ["{0}", "r:{0}", "{0[0]}-{0[1]}-{0[2]}-{0[3]}"])
def test_a_card_number_is_refused_and_not_repeated(column: str, dress: str) -> None:
    """Where a reference or a batch is or holds one, in a run or in groups."""
    groups = [CANARY[at : at + 4] for at in range(0, 16, 4)]
    number = dress.format(groups if "[" in dress else CANARY)
    refused = _refusal(FILE.replace(column, number, 1))

    assert "a card number stands here" in str(refused.detail)
    assert CANARY[:4] not in refused.detail


def test_a_long_number_that_is_no_card_passes() -> None:
    """A processor's numeric reference is one, unless its check digit and its range are a card's."""
    assert read_settlement(FILE.replace("ch_3", CANARY[:-1] + "8").encode())[1].reference == CANARY[:-1] + "8"


def test_every_changed_digit_of_money_is_found() -> None:
    """Whatever digit of an amount or of the total becomes another one, the file is refused."""
    places = [at for at, sign in enumerate(FILE) if sign.isdigit() and _in_amount(FILE, at)]
    assert len(places) > 30
    for at in places:
        for digit in set("0123456789") - {FILE[at]}:
            assert _refusal(FILE[:at] + digit + FILE[at + 1 :]).pointers


def _in_amount(text: str, at: int) -> bool:
    before, after = text.rfind(",", 0, at), min(text.find(",", at) % 10**6, text.find("\n", at))
    return text[before + 1 : after].lstrip("-").replace(".", "").isdigit()


def test_dates_are_dates() -> None:
    """Settled is a date without a time."""
    assert type(read_settlement(FILE.encode())[0].settled_on) is date
