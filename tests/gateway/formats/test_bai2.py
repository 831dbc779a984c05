"""The bank's statement: every total and count is verified, and of an entry only what the match needs is kept."""

import re
from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import FileRefused
from gateway.rules.settlement import DepositLine
from tests.cards import CANARY
from tests.gateway.formats.files import bai2, read_deposits

ENTRY = "16,142,12345,Z,BANKREF1,B20261124,CARD SETTLEMENT"
FILE = bai2([[ENTRY, "16,451,99,,BANKREF2,,"], ["16,301,5000,,,,OTHER"]], [[]]).decode()


def _refusal(text: str) -> FileRefused:
    with pytest.raises(FileRefused) as refused:
        read_deposits(text.encode())
    return refused.value


def test_entries_are_read_with_their_signs() -> None:
    """Credits above zero, debits below, of all groups and accounts; lines are the file's."""
    on = date(2026, 11, 24)

    assert read_deposits(FILE.encode()) == [
        DepositLine(4, "142", 12_345, "USD", on, "B20261124", "BANKREF1"),
        DepositLine(5, "451", -99, "USD", on, "", "BANKREF2"),
        DepositLine(8, "301", 5_000, "USD", on, "", ""),
    ]


AMOUNTS = st.lists(st.integers(0, 999_999_999_999), max_size=4)


@settings(max_examples=60)
@given(st.lists(st.lists(AMOUNTS, min_size=1, max_size=3), min_size=1, max_size=3), st.sampled_from(["142", "699"]))
def test_what_we_write_is_read_back(groups: list[list[list[int]]], code: str) -> None:
    """Any groups of accounts of entries; an entry of nothing is verified and moves no money."""
    raw = bai2(*([[f"16,{code},{amount},,,," for amount in account] for account in group] for group in groups))
    read = [entry.amount_minor for entry in read_deposits(raw)]

    sign = 1 if code == "142" else -1
    assert read == [sign * amount for group in groups for account in group for amount in account if amount]


@pytest.mark.parametrize(
    "funds",
    ["", "0", "1", "2", "Z", "V,261125,1200", "S,1,2,3", "S,,,", "D,0", "D,2,0,12000,1,345"],
)
def test_funds_types_take_their_fields(funds: str) -> None:
    """Whatever a funds type brings along, the references stand behind it."""
    (entry,) = read_deposits(bai2([[f"16,142,12345,{funds},BANKREF1,B20261124,TEXT"]]))

    assert (entry.bank_reference, entry.batch) == ("BANKREF1", "B20261124")


@pytest.mark.parametrize(
    ("records", "batch"),
    [
        (["16,142,1,,REF,po_1AbC,ANYTHING"], "po_1AbC"),
        (["16,142,1,,REF,,CARD BATCH B20261124 OF THE DAY"], "B20261124"),
        (["16,142,1,,REF,,CARD SETTLEMENT", "88,STILL IT, BATCH B20261124"], "B20261124"),
        (["16,142,1,,REF,B20261124,TEXT, WITH / AND COMMAS/"], "B20261124"),
        (["16,142,1,/", "88,REF,B20261124,TEXT"], "B20261124"),
        (["16,142,1,,REF,B20261124/"], "B20261124"),
        (["16,142,1,,REF,,BATCH NUMBER"], ""),
        (["16,142,1,,REF,,NO BATCH"], ""),
        (["16,142,1,,REF,TWO WORDS,TEXT"], ""),
        (["16,142,1,,REF,,"], ""),
        (["16,142,1"], ""),
        ([f"16,142,1,,REF,{CANARY},TEXT"], ""),
        ([f"16,142,1,,REF,,BATCH {CANARY}"], ""),
    ],
)
def test_the_batch_is_the_customers_reference_or_named_in_the_text(records: list[str], batch: str) -> None:
    """The customer's reference, else the word behind BATCH; what could be a card's number is left out."""
    (entry,) = read_deposits(bai2([records]))

    assert entry.batch == batch


def test_neither_words_nor_account_numbers_are_kept() -> None:
    """Only type, amount, day, currency, batch and the bank's reference; and that not, where it looks like a card."""
    raw = bai2([[f"16,142,1,,{CANARY},B20261124,SECRET OF ADA"]])

    kept = repr(read_deposits(raw))
    assert "SECRET" not in kept
    assert "4100200300" not in kept
    assert CANARY not in kept


def test_lines_may_be_filled_up_and_end_in_two_characters() -> None:
    """Physical records of one length, as from a mainframe."""
    filled = "".join(f"{record:<80}\r\n" for record in FILE.splitlines())

    assert read_deposits(filled.encode()) == read_deposits(FILE.encode())


def test_an_account_may_name_balances_over_several_records() -> None:
    """Balances count into the total with the signs they have, those of an 88 too."""
    text = FILE.replace(
        "03,4100200300,,010,,,,015,7,,/\n16,301", "03,1,USD,010,-500,,/\n88,015,507,2,V,261124,,/\n16,301"
    )
    text = text.replace("49,5007,3/", "49,5007,4/").replace("98,17458,2,9/", "98,17458,2,10/")
    text = text.replace("99,17465,2,15/", "99,17465,2,16/")

    assert len(read_deposits(text.encode())) == 3


BAD: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace(",,2/", ",,3/", 1), "Line 1, version: only version 2"),
    (lambda text: text.replace("CITYBANK,1,", "CITYBANK,2,", 1), "Line 2, group status: it must be 1"),
    (
        lambda text: text.replace("CITYBANK,1,261124", "CITYBANK,1,20261124", 1),
        "Line 2, as-of date: it must be written",
    ),
    (
        lambda text: text.replace("CITYBANK,1,261124", "CITYBANK,1,261131", 1),
        "Line 2, as-of date: there is no such date",
    ),
    (lambda text: text.replace("2359,USD", "2359,CAD", 1), "Line 3, currency: only USD"),
    (lambda text: text.replace("015,7", "015,7.00", 1), "Line 3, amount: digits are missing"),
    (lambda text: text.replace("015,7,,", "015,7,,X", 1), "Line 3, funds type: it must be"),
    (lambda text: text.replace("16,142", "16,100", 1), "Line 4, type code: it must be a credit"),
    (lambda text: text.replace("16,142", "16,400", 1), "Line 4, type code: it must be a credit"),
    (lambda text: text.replace("16,142", "16,890", 1), "Line 4, type code: it must be a credit"),
    (lambda text: text.replace("16,142", "16,1x2", 1), "Line 4, type code: digits are missing"),
    (lambda text: text.replace(",12345,", ",-12345,", 1), "Line 4, amount: digits are missing"),
    (lambda text: text.replace(",12345,", ",123.45,", 1), "Line 4, amount: digits are missing"),
    (lambda text: text.replace(",12345,", ",,", 1), "Line 4, amount: digits are missing"),
    (lambda text: text.replace(",12345,Z", ",12345,Q", 1), "Line 4, funds type: it must be"),
    (lambda text: text.replace(",12345,Z", ",12345,D,x", 1), "Line 4, funds type: digits are missing"),
    (lambda text: text.replace(",12345,", ",12346,", 1), "Line 6, control total: what stands before does not add up"),
    (lambda text: text.replace("49,12451,4/", "49,12452,4/"), "Line 6, control total: "),
    (lambda text: text.replace("49,12451,4/", "49,12451,5/"), "Line 6, records: "),
    (lambda text: text.replace("98,17458,2,9/", "98,17459,2,9/"), "Line 10, control total: "),
    (lambda text: text.replace("98,17458,2,9/", "98,17458,1,9/"), "Line 10, accounts: "),
    (lambda text: text.replace("98,17458,2,9/", "98,17458,2,8/"), "Line 10, records: "),
    (lambda text: text.replace("99,17465,2,15/", "99,17465,3,15/"), "Line 15, groups: "),
    (lambda text: text.replace("99,17465,2,15/", "99,17465,2,14/"), "Line 15, records: "),
    (lambda text: text.replace("99,17465,2,15/", "99,17465,2/"), "Line 15, records: digits are missing"),
    (lambda text: text.replace("99,17465,2,15/\n", ""), "Line 14: the file ends here, before its record 99"),
    (lambda text: text.replace("15/", "15"), "Line 15: this record must end with a /"),
    (lambda text: text.replace("16,142", "17,142", 1), "Line 4: this record must end with a /"),
    (lambda text: text.replace("49,12451,4/", "50,12451,4/"), "Line 6, record: 16 or 49 must stand here"),
    (lambda text: text + "01,A,B,261124,2359,1,,,2/\n", "Line 16, record: nothing must stand here"),
    (lambda text: text + "\n", "Line 16: this record must end with a /"),
    (lambda text: "88,TEXT/\n" + text, "Line 1: a BAI2 statement begins with its record 01"),
    (lambda text: text.replace(ENTRY, ENTRY + "\n88,MORE" * 100), "Line 104: the record goes on over more than 100"),
    (lambda _: "reference,type,gross\n", "Line 1: a BAI2 statement begins with its record 01"),
    (lambda _: "", "The file is empty"),
]


@pytest.mark.parametrize(("spoil", "words"), BAD, ids=[words for _, words in BAD])
def test_one_wrong_record_refuses_the_file(spoil: Callable[[str], str], words: str) -> None:
    """With its line, and what is wrong with it; account numbers and amounts are not repeated."""
    spoilt = spoil(FILE)
    assert spoilt != FILE

    refused = _refusal(spoilt)
    assert refused.detail.startswith(words)
    assert "4100200300" not in refused.detail


def test_every_changed_digit_of_money_is_found() -> None:
    """Whatever digit of an amount, a total or a count becomes another one, the statement is refused."""
    amounts = [*re.finditer(r"(?m)^16,...,([0-9]+)|^(?:49|98|99)([0-9,]+)|015,([0-9]+)", FILE)]
    places = [at for found in amounts for at in range(*found.span(found.lastindex or 0)) if FILE[at].isdigit()]
    assert len(places) > 40
    for at in places:
        for digit in set("0123456789") - {FILE[at]}:
            assert _refusal(FILE[:at] + digit + FILE[at + 1 :]).pointers


def test_records_in_another_order_are_refused() -> None:
    """Two records that change places are refused, unless both are entries of one account."""
    records = FILE.splitlines(keepends=True)
    for one in range(len(records)):
        for other in range(one + 1, len(records)):
            swapped = list(records)
            swapped[one], swapped[other] = swapped[other], swapped[one]
            if swapped != records and (one, other) != (3, 4):
                assert _refusal("".join(swapped)).pointers
