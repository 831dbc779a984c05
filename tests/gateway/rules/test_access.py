"""Who is calling: API keys, their digests, and certificates that must fit."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.errors import CertificateRefused, NotIdentified, NotPermitted, ServiceUnknown, WrongCertificate
from gateway.rules import access
from gateway.rules.access import Application, Credential, NewApiKey, Register, Scope, digest_of, new_api_key
from gateway.rules.certificates import ClientCertificate, Trust
from keys.secret import Secret

DIGEST_KEY = Secret(b"k" * 32)
DIGEST_KEYS = {1: DIGEST_KEY}
PARKS = Application("parks", "app_parks", 50_000, "urn:city:parks")
UTILITIES = Application("utilities", "app_utilities", 50_000, None)
NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)


@pytest.fixture(scope="module")
def parks() -> NewApiKey:
    return new_api_key(DIGEST_KEYS)


@pytest.fixture(scope="module")
def utilities() -> NewApiKey:
    return new_api_key(DIGEST_KEYS)


@pytest.fixture(scope="module")
def register(parks: NewApiKey, utilities: NewApiKey) -> Register:
    credentials = {
        parks.key_id: Credential(1, parks.digest, PARKS),
        utilities.key_id: Credential(1, utilities.digest, UTILITIES),
    }
    return Register(credentials, DIGEST_KEYS)


def _key_id(text: str) -> str:
    return text[4:30]


def _shown(*uris: str) -> ClientCertificate:
    """A certificate with these names, good today."""
    return ClientCertificate(uris, b"f" * 32, b"issuer", 7, NOW - timedelta(days=1), NOW + timedelta(days=1))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key_names_its_application(
    register: Register, parks: NewApiKey, utilities: NewApiKey, scheme: str
) -> None:
    """Each key leads to its own application; the scheme's case does not matter (RFC 9110 §11.1)."""
    assert register.identify(f"{scheme} {parks.secret.reveal()}", None, NOW) is PARKS
    assert register.identify(f"{scheme} {utilities.secret.reveal()}", None, NOW) is UTILITIES


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: None,
        lambda key: "",
        lambda key: " ",
        lambda key: key,
        lambda key: "Bearer",
        lambda key: "Bearer ",
        lambda key: f"Basic {key}",
        lambda key: f"Bearer  {key}",
        lambda key: f" Bearer {key}",
        lambda key: f"Bearer {key} ",
        lambda key: f"Bearer {key}\n",
        lambda key: f"Bearer {key}, Bearer {key}",
        lambda key: f"Bearer {key[:-1]}",
        lambda key: f"Bearer {key}A",
        lambda key: f"Bearer {key.upper()}",
        lambda key: f"Bearer {key[4:]}",
        lambda key: f"Bearer gwk_{'a' * 26}_{key[-43:]}",
        lambda key: f"Bearer gwk_{_key_id(key)}_{'A' * 43}",
        lambda key: f"Bearer {key[:-1]}{'A' if key[-1] != 'A' else 'B'}",
        lambda key: f"Bearer gwk_{_key_id(key)}_{key[-43:].swapcase()}",
    ],
)
def test_anything_else_is_not_identified(
    register: Register, parks: NewApiKey, spoil: Callable[[str], str | None]
) -> None:
    """Missing, malformed, unknown and wrong keys get one and the same refusal, which repeats nothing."""
    with pytest.raises(NotIdentified) as refused:
        register.identify(spoil(parks.secret.reveal()), None, NOW)

    assert refused.value.args == (NotIdentified.default,)
    assert refused.value.pointers == ()


def test_the_id_of_one_key_and_the_secret_of_another_is_nobody(
    register: Register, parks: NewApiKey, utilities: NewApiKey
) -> None:
    """A key is its id and its secret together."""
    with pytest.raises(NotIdentified):
        register.identify(f"Bearer gwk_{parks.key_id}_{utilities.secret.reveal()[-43:]}", None, NOW)


def test_nobody_is_never_identified(parks: NewApiKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id is refused, even if the digest of its key were the one that stands for nobody."""
    monkeypatch.setattr(access, "NOBODY", parks.digest)

    with pytest.raises(NotIdentified):
        Register({}, DIGEST_KEYS).identify(f"Bearer {parks.secret.reveal()}", None, NOW)


def test_a_certificate_must_be_that_of_the_application(register: Register, parks: NewApiKey) -> None:
    """With the application's own certificate the key passes, with any other it does not."""
    bearer = f"Bearer {parks.secret.reveal()}"

    assert register.identify(bearer, _shown("urn:city:parks"), NOW) is PARKS
    assert register.identify(bearer, _shown("urn:city:nobody", "urn:city:parks"), NOW) is PARKS
    for uri in ("urn:city:utilities", "urn:city:parks2", "urn:city:park", "URN:CITY:PARKS", "urn:city:parks/", ""):
        with pytest.raises(WrongCertificate):
            register.identify(bearer, _shown(uri), NOW)


def test_an_application_without_a_certificate_may_show_none(register: Register, utilities: NewApiKey) -> None:
    """Where no certificate is registered, every certificate is a wrong one."""
    for uris in ((), ("urn:city:parks",), ("None",)):
        with pytest.raises(WrongCertificate):
            register.identify(f"Bearer {utilities.secret.reveal()}", _shown(*uris), NOW)


def test_a_wrong_key_is_refused_before_its_certificate_is_looked_at(register: Register, parks: NewApiKey) -> None:
    """Who guesses keys learns nothing of certificates."""
    with pytest.raises(NotIdentified):
        register.identify(f"Bearer gwk_{parks.key_id}_{'A' * 43}", _shown("urn:city:other"), NOW)


def test_a_digest_is_of_no_use_without_its_key(register: Register, parks: NewApiKey) -> None:
    """The digest is keyed: another key gives another one, and no plain hash is it."""
    secret = parks.secret.reveal().encode()
    other = Secret(b"l" * 32)

    assert digest_of(DIGEST_KEY, parks.secret) == parks.digest
    assert digest_of(other, parks.secret) != parks.digest
    assert parks.digest not in {hashlib.sha256(secret).digest(), hashlib.sha256(b"k" * 32 + secret).digest()}
    with pytest.raises(NotIdentified):
        Register({parks.key_id: Credential(1, parks.digest, PARKS)}, {1: other}).identify(
            f"Bearer {secret.decode()}", None, NOW
        )


def test_a_new_key_has_its_shape_and_is_new() -> None:
    """`gwk_`, the id, and 256 random bits in base64url; no two are alike."""
    made = [new_api_key(DIGEST_KEYS) for _ in range(100)]
    texts = [key.secret.reveal() for key in made]

    assert all(re.fullmatch(r"gwk_[a-z2-7]{26}_[A-Za-z0-9_-]{43}", text) for text in texts)
    assert [_key_id(text) for text in texts] == [key.key_id for key in made]
    assert len({text[-43:] for text in texts}) == len({key.key_id for key in made}) == len(made)


def test_a_new_key_does_not_print(parks: NewApiKey) -> None:
    """The secret is shown by `reveal` alone."""
    assert parks.secret.reveal()[-43:] not in f"{parks!r} {parks}"


def test_a_key_ends_at_its_time(parks: NewApiKey) -> None:
    """Until the moment at which it expires a key serves, from then on it is nobody's; without one it serves on."""
    bearer = f"Bearer {parks.secret.reveal()}"
    for ends, serves in ((NOW + TICK, True), (NOW, False), (NOW - TICK, False), (None, True)):
        register = Register({parks.key_id: Credential(1, parks.digest, PARKS, ends)}, DIGEST_KEYS)
        if serves:
            assert register.identify(bearer, None, NOW) is PARKS
        else:
            with pytest.raises(NotIdentified) as refused:
                register.identify(bearer, None, NOW)
            assert refused.value.detail == NotIdentified.default


def test_a_name_of_two_applications_identifies_neither(parks: NewApiKey, utilities: NewApiKey) -> None:
    """Two applications that claim one URI both lose it, even within one department; two keys of one do not."""
    bearer = f"Bearer {parks.secret.reveal()}"
    for other in (replace(UTILITIES, certificate_san="urn:city:parks"), replace(PARKS, application_id="app_2")):
        shared = {
            parks.key_id: Credential(1, parks.digest, PARKS),
            utilities.key_id: Credential(1, utilities.digest, other),
        }
        for key in (parks, utilities):
            with pytest.raises(WrongCertificate):
                Register(shared, DIGEST_KEYS).identify(f"Bearer {key.secret.reveal()}", _shown("urn:city:parks"), NOW)
    rotating = {key.key_id: Credential(1, key.digest, PARKS) for key in (parks, utilities)}
    assert Register(rotating, DIGEST_KEYS).identify(bearer, _shown("urn:city:parks"), NOW) is PARKS


def test_a_certificate_with_the_names_of_two_applications_is_of_neither(
    parks: NewApiKey, utilities: NewApiKey
) -> None:
    """Who holds one certificate for two applications would choose which one to be by the key."""
    credentials = {
        parks.key_id: Credential(1, parks.digest, PARKS),
        utilities.key_id: Credential(1, utilities.digest, replace(UTILITIES, certificate_san="urn:city:utilities")),
    }
    with pytest.raises(WrongCertificate):
        Register(credentials, DIGEST_KEYS).identify(
            f"Bearer {parks.secret.reveal()}", _shown("urn:city:parks", "urn:city:utilities"), NOW
        )


def test_where_a_certificate_is_required_a_key_alone_is_nobody(parks: NewApiKey) -> None:
    """Without a certificate every key gets the same 401, so that none can be tried; with it the key is looked at."""
    register = Register({parks.key_id: Credential(1, parks.digest, PARKS)}, DIGEST_KEYS, Trust(required=True))
    told = set()
    for authorization in (f"Bearer {parks.secret.reveal()}", f"Bearer gwk_{'a' * 26}_{'A' * 43}", None):
        with pytest.raises(NotIdentified) as refused:
            register.identify(authorization, None, NOW)
        told.add(refused.value.detail)
    assert len(told) == 1
    assert register.identify(f"Bearer {parks.secret.reveal()}", _shown("urn:city:parks"), NOW) is PARKS


def test_a_denied_certificate_is_refused_with_the_right_key_only(parks: NewApiKey) -> None:
    """What is known against a certificate is told to whoever has the application's key, and to nobody else."""
    credentials = {parks.key_id: Credential(1, parks.digest, PARKS)}
    register, shown = Register(credentials, DIGEST_KEYS, Trust(denied={b"f" * 32})), _shown("urn:city:parks")
    with pytest.raises(CertificateRefused):
        register.identify(f"Bearer {parks.secret.reveal()}", shown, NOW)
    with pytest.raises(NotIdentified):
        register.identify(f"Bearer gwk_{parks.key_id}_{'A' * 43}", shown, NOW)


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_is_granted_one_by_one(scope: Scope) -> None:
    """What was granted is permitted; everything else, granted or not to be, is not."""
    replace(PARKS, scopes=frozenset({scope})).require(scope)
    for without in (frozenset(Scope) - {scope}, frozenset[Scope]()):
        with pytest.raises(NotPermitted):
            replace(PARKS, scopes=without).require(scope)


@pytest.mark.parametrize(
    ("services", "service", "allowed"),
    [
        (None, "pool", True),
        (None, None, True),
        ({"pool"}, "pool", True),
        ({"pool", "camp"}, "camp", True),
        ({"pool"}, "camp", False),
        ({"pool"}, "Pool", False),
        ({"pool"}, None, False),
        (set(), "pool", False),
        (set(), None, False),
    ],
)
def test_an_application_charges_for_its_services(
    services: set[str] | None, service: str | None, allowed: bool
) -> None:
    """Unlimited, or limited to some: then one of them must be named, or the limit could be walked around."""
    application = replace(PARKS, services=None if services is None else frozenset(services))
    if allowed:
        application.require_service(service)
    else:
        with pytest.raises(ServiceUnknown) as refused:
            application.require_service(service)
        assert refused.value.pointers == ("/service",)
