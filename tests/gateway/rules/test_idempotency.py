"""Idempotency keys, and the digest of what two requests under one key must share."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import IdempotencyKeyInvalid
from gateway.rules.idempotency import read_key, request_digest

PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("k", "k"),
        ('"k"', "k"),
        ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ('"8e03978e-40d5-43e8-bc93-6894a57f9324"', "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        (" k\t", "k"),
        ('\t"k" ', "k"),
        (r'"a\"b"', 'a"b'),
        ('a"b', 'a"b'),
        (r'"a\\b"', r"a\b"),
        (r"a\b", r"a\b"),
        (r'"\\\""', r"\""),
        (r'"\\"', "\\"),
        ("'k'", "'k'"),
        (PRINTABLE.replace('"', ""), PRINTABLE.replace('"', "")),
        ("k" * 255, "k" * 255),
        (f'"{"k" * 255}"', "k" * 255),
        ('"' + r"\"" * 255 + '"', '"' * 255),
    ],
)
def test_quoted_and_bare_forms_are_one_key(header: str, key: str) -> None:
    """The quoted form (RFC 8941 string) is unquoted and its escapes undone; the bare form is taken as it is."""
    assert read_key(header) == key


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "\t",
        '"',
        '""',
        '"k',
        '"k"x',
        '"k"; a=1',
        '"k" "k"',
        '"k", "k"',
        '"a"b"',
        r'"a\b"',
        r'"a\"',
        "a b",
        "k" * 256,
        f'"{"k" * 256}"',
        "k" * 1024,
        *(f"a{chr(code)}b" for code in (0, 1, 9, 10, 13, 31, 127, 128, 0xA0, 0xE9, 0x2028)),
        *(f'"a{chr(code)}b"' for code in (0, 9, 10, 31, 127, 0xE9)),
        "e\u0301",
        "\u00e9",
        "k\n",
        "\uff4b",
    ],
)
def test_what_is_no_key_is_refused(header: str | None) -> None:
    """Missing, empty, too long, badly quoted, or outside printable ASCII: refused, and not repeated."""
    with pytest.raises(IdempotencyKeyInvalid) as refused:
        read_key(header)

    assert refused.value.args == (IdempotencyKeyInvalid.default,)
    assert refused.value.pointers == ()


@given(st.text(PRINTABLE, min_size=1, max_size=255))
def test_a_key_survives_its_quoting(key: str) -> None:
    """Whatever a key holds, its quoted form names the same key."""
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')

    assert read_key(f'"{escaped}"') == key
    if not key.startswith('"'):
        assert read_key(key) == key


def test_a_missing_field_is_like_no_text() -> None:
    """In one place, nothing, an empty text, a word and other words never share a digest."""
    fields = [None, "", "None", "null", "0", "00", 1, -1, True, False, " ", "\\0"]

    assert len({request_digest(field) for field in fields}) == len(fields)


def test_texts_do_not_flow_into_each_other() -> None:
    """Fields that join to one text are still different requests, and so are fields in other places."""
    requests: list[tuple[str | None, ...]] = [
        *[("ab", "c"), ("a", "bc"), ("abc", ""), ("", "abc"), ("abc",), ("abc", None), (None, "abc")],
        *[("c", "ab"), ("a", "b", "c"), ("a", "b", "c", None), (), (None,), (None, None)],
    ]

    for one, other in combinations(requests, 2):
        assert request_digest(*one) != request_digest(*other), (one, other)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
REQUESTS = st.tuples(st.integers(), TEXT, TEXT, st.none() | TEXT, st.booleans(), st.integers(0, 2), st.none() | TEXT)


@settings(max_examples=300)
@given(REQUESTS, REQUESTS)
def test_two_requests_share_a_digest_only_if_they_are_one(
    one: tuple[int, str, str, str | None, bool, int, str | None],
    other: tuple[int, str, str, str | None, bool, int, str | None],
) -> None:
    """Fields of the types that a charge has: equal digests mean equal fields, and the other way round."""
    assert (request_digest(*one) == request_digest(*other)) == (one == other)
    assert len(request_digest(*one)) == 32


def test_a_quoted_key_may_hold_a_space() -> None:
    """RFC 8941 strings hold spaces, and a key is one."""
    assert read_key('"two words"') == "two words"
