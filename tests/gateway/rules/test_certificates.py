"""What speaks against a certificate: each side of each moment, and whatever cannot be told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import CertificateRefused, NotIdentified
from gateway.rules.certificates import ClientCertificate, RevocationList, Revocations, Trust

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)
DAY = timedelta(days=1)
SHOWN = ClientCertificate(("urn:city:parks",), b"f" * 32, b"city", 7, NOW - DAY, NOW + DAY)
LIST = RevocationList(b"city", frozenset({8}), NOW - DAY, NOW + DAY)
AUTHORITIES = frozenset({b"city"})


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
        ((replace(LIST, issuer=b"county"),), False),
        ((LIST, replace(LIST, issuer=b"county", serials=frozenset({7}))), True),
        ((LIST, replace(LIST, issuer=b"county", expires=NOW)), True),
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
    both = frozenset({b"city", b"county"})

    assert not Revocations().complete(NOW)
    assert not Revocations((), AUTHORITIES).complete(NOW)
    assert not Revocations((LIST,), both).complete(NOW)
    assert Revocations((LIST, replace(LIST, issuer=b"county")), both).complete(NOW)
    assert Revocations((LIST, replace(LIST, issuer=b"county")), AUTHORITIES).complete(NOW)


def test_a_certificate_must_be_shown_where_it_is_required() -> None:
    """And nowhere else."""
    Trust().require_shown(None)
    Trust(required=True).require_shown(SHOWN)
    with pytest.raises(NotIdentified):
        Trust(required=True).require_shown(None)
