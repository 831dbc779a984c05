"""What speaks against a certificate: each side of each moment, and whatever cannot be told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import CertificateRefused, NotIdentified
from gateway.rules.certificates import Authority, ClientCertificate, RevocationList, Revocations, Trust

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SHOWN = ClientCertificate(("urn:city:parks",), b"f" * 32, b"city", 7, NOW - DAY, NOW + DAY)
LIST = RevocationList(b"city's key", frozenset({8}), NOW - DAY, NOW + DAY)
CITY = Authority(b"city's key", b"city", None, b"city", 1)
COUNTY = Authority(b"county's key", b"county", None, b"county", 1)
AUTHORITIES = (CITY,)


def _taken(trust: Trust, shown: ClientCertificate = SHOWN, now: datetime = NOW) -> bool:
    try:
        trust.require_good(shown, now)
    except CertificateRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("now", "taken"),
    [
        (SHOWN.valid_from - TICK, False),
        (SHOWN.valid_from, True),
        (SHOWN.valid_until, True),
        (SHOWN.valid_until + TICK, False),
    ],
)
def test_a_certificate_serves_within_its_time(now: datetime, taken: bool) -> None:
    """Both ends included (RFC 5280 §4.1.2.5): it may end while its connection is open."""
    assert _taken(Trust(), now=now) is taken


def test_a_denied_certificate_is_refused() -> None:
    """By its fingerprint, the whole of it, whether lists are kept or not."""
    for revocations in (None, Revocations((LIST,), AUTHORITIES)):
        assert not _taken(Trust(denied={b"f" * 32}, revocations=revocations))
        assert _taken(Trust(denied={b"f" * 31 + b"g", b"f" * 31}, revocations=revocations))


@pytest.mark.parametrize(
    ("lists", "taken"),
    [
        ((LIST,), True),
        ((replace(LIST, serials=frozenset()),), True),
        ((replace(LIST, serials=frozenset({7})),), False),
        ((), False),
        ((replace(LIST, authority=b"county's key"),), False),
        ((LIST, replace(LIST, authority=b"county's key", serials=frozenset({7}))), True),
        ((LIST, replace(LIST, authority=b"county's key", expires=NOW)), True),
        ((LIST, replace(LIST, serials=frozenset({7}))), False),
        ((LIST, replace(LIST, expires=NOW)), False),
    ],
    ids=["other", "none", "own", "no list", "other's list", "other's serial", "other's expired", "second", "old"],
)
def test_a_list_speaks_for_its_own_authority(lists: tuple[RevocationList, ...], taken: bool) -> None:
    """A certificate is good when every list of its issuer is in force and names it not; without a list it is not."""
    assert _taken(Trust(revocations=Revocations(lists, AUTHORITIES))) is taken


@pytest.mark.parametrize(
    ("now", "in_force"),
    [
        (LIST.issued - TICK, False),
        (LIST.issued, True),
        (LIST.expires - TICK, True),
        (LIST.expires, False),
    ],
)
def test_a_list_speaks_within_its_time(now: datetime, in_force: bool) -> None:
    """Before it was issued and once the next one is due it vouches for nobody, and is reported."""
    lists, always = (
        Revocations((LIST,), AUTHORITIES),
        replace(SHOWN, valid_from=NOW - 9 * DAY, valid_until=NOW + 9 * DAY),
    )

    assert _taken(Trust(revocations=lists), always, now) is in_force
    assert lists.complete(now) is in_force


def test_lists_are_complete_with_one_of_every_authority() -> None:
    """An authority without a list, and no list at all, are incomplete; a list too many is not."""
    both, county = (CITY, COUNTY), replace(LIST, authority=COUNTY.key)

    assert not Revocations().complete(NOW)
    assert not Revocations((), AUTHORITIES).complete(NOW)
    assert not Revocations((LIST,), both).complete(NOW)
    assert not Revocations((LIST, replace(county, expires=NOW)), both).complete(NOW)
    assert Revocations((LIST, county), both).complete(NOW)
    assert Revocations((LIST, county), AUTHORITIES).complete(NOW)


KEYS = ((1, b"old"), (2, b"new"))
ROOT = Authority(b"root's key", b"root", None, b"root", 1)
STATE = Authority(b"state's key", b"state", None, b"root", 2)
BELOW = replace(CITY, issuer=b"state", serial=3)


@pytest.mark.parametrize(
    ("revoked", "taken"),
    [
        ({}, True),
        ({ROOT: {4}, STATE: {4}, BELOW: {4}}, True),
        ({BELOW: {7}}, False),
        ({STATE: {BELOW.serial}}, False),
        ({ROOT: {STATE.serial}}, False),
        ({ROOT: {ROOT.serial}}, False),
        ({ROOT: None}, False),
        ({STATE: None}, False),
    ],
    ids=["none", "others", "leaf", "its issuer", "above", "root", "root without list", "issuer's without list"],
)
def test_a_revoked_authority_vouches_for_nobody(revoked: dict[Authority, set[int] | None], taken: bool) -> None:
    """Nor does one below it, whose own list is in force: what holds up a certificate goes up to the root."""
    chain = (BELOW, STATE, ROOT)
    told = {one: revoked.get(one, set()) for one in chain}
    lists = tuple(
        replace(LIST, authority=one.key, serials=frozenset(gone)) for one, gone in told.items() if gone is not None
    )
    assert _taken(Trust(revocations=Revocations(lists, chain))) is taken
    assert _taken(Trust(revocations=Revocations(lists, chain[::-1]))) is taken


def test_an_authority_that_is_revoked_needs_no_list() -> None:
    """Nobody is waiting for one; where no authority is left, the lists are not complete."""
    root = replace(LIST, authority=ROOT.key, serials=frozenset({STATE.serial}))
    assert Revocations((root,), (ROOT, STATE)).complete(NOW)
    assert not Revocations((replace(root, serials=frozenset()),), (ROOT, STATE)).complete(NOW)
    assert not Revocations((replace(root, serials=frozenset({ROOT.serial})),), (ROOT,)).complete(NOW)


@pytest.mark.parametrize(
    ("says", "lists", "taken"),
    [
        (b"old", {b"old"}, True),
        (b"old", {b"new"}, False),
        (b"new", {b"old"}, False),
        (b"new", {b"new"}, True),
        (b"third", {b"old", b"new"}, False),
        (None, {b"old"}, False),
        (None, {b"old", b"new"}, True),
    ],
)
def test_two_keys_of_one_name_have_a_list_each(says: bytes | None, lists: set[bytes], taken: bool) -> None:
    """A certificate is judged by the lists of the key that it says signed it; when it says none, by all."""
    both = tuple(replace(CITY, key=key, key_name=key, serial=serial, issuer_key=key) for serial, key in KEYS)
    known = Revocations(tuple(replace(LIST, authority=key) for key in lists), both)

    assert _taken(Trust(revocations=known), replace(SHOWN, issuer_key=says)) is taken
    assert known.complete(NOW) is (len(lists) == len(both))


def test_a_certificate_must_be_shown_where_it_is_required() -> None:
    """And nowhere else."""
    Trust().require_shown(None)
    Trust(required=True).require_shown(SHOWN)
    with pytest.raises(NotIdentified):
        Trust(required=True).require_shown(None)
