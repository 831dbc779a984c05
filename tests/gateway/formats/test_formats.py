"""Formats: found by themselves, refused by name, and never failing in another way than by refusing."""

import io
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import pytest

from gateway.errors import FileRefused, InvalidRequest
from gateway.formats import formats, open_format
from gateway.rules.settlement import DepositLine, LineKind, SettlementLine
from tests.gateway.formats.files import bai2, line, native, read_deposits, read_settlement, stripe

SETTLED = [
    line(2),
    line(3, gross=12_345, fee=388),
    line(4, LineKind.REFUND, -500, 0),
    line(5, LineKind.CHARGEBACK, -2_000, 1_500),
    line(6, LineKind.ADJUSTMENT, 7, 0),
]
STATEMENT = bai2(
    [["16,142,13000,,REF1,B20261124,CARD SETTLEMENT", "88,CARRIED ON"], ["16,698,250,Z,,,FEE/"]],
    [["16,451,99,V,261125,1200,REF2,,"]],
)


def test_formats_are_named_by_kind() -> None:
    """Both settlement formats, and the bank's."""
    assert formats("settlement") == ["native", "stripe"]
    assert formats("deposit") == ["bai2"]


@pytest.mark.parametrize("name", ["", "bai2", "Native", "table", "fields", "native\n"])
def test_an_unknown_format_is_refused_with_the_known_ones(name: str) -> None:
    """What is no format of that kind is answered with those that are, and is not repeated."""
    with pytest.raises(InvalidRequest) as refused:
        open_format("settlement", name)

    assert refused.value.detail == "format must be one of: native, stripe."


def _settled(name: str) -> Callable[[bytes], Counter[int]]:
    def amounts(raw: bytes) -> Counter[int]:
        found: Sequence[SettlementLine] = read_settlement(raw, name)
        return Counter(amount for one in found for amount in (one.gross_minor, one.fee_minor, one.net_minor))

    return amounts


def _deposited(raw: bytes) -> Counter[int]:
    found: Sequence[DepositLine] = read_deposits(raw)
    return Counter(abs(one.amount_minor) for one in found)  # the sign is the type's, which no total covers


FILES = [
    pytest.param(native(SETTLED), _settled("native"), True, id="native"),
    pytest.param(stripe(SETTLED), _settled("stripe"), False, id="stripe"),
    pytest.param(STATEMENT, _deposited, True, id="bai2"),
]
"""A file, what money it tells of, and whether it has totals."""


def _damaged(raw: bytes, chance: Random) -> bytes:
    """A byte replaced, taken out or put in; the file cut; a line lost, repeated, or changed with another."""
    at, byte = chance.randrange(len(raw)), bytes([chance.choice(b'0123456789-.,/"\n\r #A\x00\xff\xc3\xa9')])
    lines = raw.splitlines(keepends=True)
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    swapped = list(lines)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return chance.choice(
        [
            raw[:at] + byte + raw[at + 1 :],
            raw[:at] + raw[at + 1 :],
            raw[:at] + byte + raw[at:],
            raw[:at],
            b"".join(lines[:one] + lines[one + 1 :]),
            b"".join([*lines[:one], lines[one], *lines[one:]]),
            b"".join(swapped),
        ]
    )


@pytest.mark.parametrize(("raw", "amounts", "has_totals"), FILES)
def test_damage_is_refused_or_changes_no_money(
    raw: bytes, amounts: Callable[[bytes], Counter[int]], has_totals: bool
) -> None:
    """Of 2,000 damaged files each is refused with its line, or tells of the same money; nothing else is raised."""
    whole, chance = amounts(raw), Random(6)  # noqa: S311 - the same damage in each run
    refusals = []
    for _ in range(2_000):
        damaged = _damaged(raw, chance)
        try:
            told = amounts(damaged)
        except FileRefused as refused:
            refusals.append(refused)
        else:
            # A report without totals may have lost or gained whole lines; no amount in it is another one.
            assert told == whole if has_totals else set(told) <= set(whole), damaged
    assert len(refusals) > 500
    assert all(refused.pointers[0].startswith("/lines/") for refused in refusals)
    assert all(refused.detail.startswith(("Line ", "The ")) for refused in refusals)


@pytest.mark.parametrize(("raw", "amounts", "has_totals"), FILES)
def test_what_is_no_text_is_refused(raw: bytes, amounts: Callable[[bytes], Counter[int]], has_totals: bool) -> None:
    """Random bytes, another encoding, an archive and a line without end are refused at their first line."""
    noise = Random(6).randbytes(5_000)  # noqa: S311 - the same in each run
    for strange in (noise, b"PK\x03\x04" + raw, raw.decode().encode("utf-16"), b"x" * 20_000, b"", b"\xef\xbb\xbf"):
        with pytest.raises(FileRefused) as refused:
            amounts(strange)
        assert refused.value.pointers == ("/lines/1",)


class _Counting(io.BytesIO):
    """How many bytes were asked for at most at once."""

    most = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        self.most = max(self.most, size if size is not None and size >= 0 else 1 << 40)
        return super().readline(size)


@pytest.mark.parametrize(("kind", "name"), [("settlement", "native"), ("settlement", "stripe"), ("deposit", "bai2")])
def test_a_line_without_end_is_not_held(kind: str, name: str) -> None:
    """However long the line is, a reader asks for no more than a line may have."""
    source = _Counting(b"x" * 100_000)
    with pytest.raises(FileRefused, match=r"Line 1: this is longer"):
        list(open_format("deposit" if kind == "deposit" else "settlement", name).read(source))

    assert source.most == 10_001
