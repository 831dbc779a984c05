"""Who is calling: API keys, their digests, and certificates that must fit."""

import hashlib
import re
from collections.abc import Callable

import pytest

from gateway.errors import NotIdentified, WrongCertificate
from gateway.rules import access
from gateway.rules.access import Application, Credential, NewApiKey, Register, digest_of, new_api_key
from keys.secret import Secret

DIGEST_KEY = Secret(b"k" * 32)
DIGEST_KEYS = {1: DIGEST_KEY}
PARKS = Application("parks", "app_parks", 50_000, "urn:city:parks")
UTILITIES = Application("utilities", "app_utilities", 50_000, None)


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


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key_names_its_application(
    register: Register, parks: NewApiKey, utilities: NewApiKey, scheme: str
) -> None:
    """Each key leads to its own application; the scheme's case does not matter (RFC 9110 §11.1)."""
    assert register.identify(f"{scheme} {parks.secret.reveal()}", None) is PARKS
    assert register.identify(f"{scheme} {utilities.secret.reveal()}", None) is UTILITIES


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
        register.identify(spoil(parks.secret.reveal()), None)

    assert refused.value.args == (NotIdentified.default,)
    assert refused.value.pointers == ()


def test_the_id_of_one_key_and_the_secret_of_another_is_nobody(
    register: Register, parks: NewApiKey, utilities: NewApiKey
) -> None:
    """A key is its id and its secret together."""
    with pytest.raises(NotIdentified):
        register.identify(f"Bearer gwk_{parks.key_id}_{utilities.secret.reveal()[-43:]}", None)


def test_nobody_is_never_identified(parks: NewApiKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown id is refused, even if the digest of its key were the one that stands for nobody."""
    monkeypatch.setattr(access, "NOBODY", parks.digest)

    with pytest.raises(NotIdentified):
        Register({}, DIGEST_KEYS).identify(f"Bearer {parks.secret.reveal()}", None)


def test_a_certificate_must_be_that_of_the_application(register: Register, parks: NewApiKey) -> None:
    """With the application's own certificate the key passes, with any other it does not."""
    bearer = f"Bearer {parks.secret.reveal()}"

    assert register.identify(bearer, ("urn:city:parks",)) is PARKS
    assert register.identify(bearer, ("urn:city:other", "urn:city:parks")) is PARKS
    for sans in ((), ("urn:city:utilities",), ("urn:city:parks2",), ("URN:CITY:PARKS",)):
        with pytest.raises(WrongCertificate):
            register.identify(bearer, sans)


def test_an_application_without_a_certificate_may_show_none(register: Register, utilities: NewApiKey) -> None:
    """Where no certificate is registered, every certificate is a wrong one."""
    for sans in ((), ("urn:city:parks",), ("None",)):
        with pytest.raises(WrongCertificate):
            register.identify(f"Bearer {utilities.secret.reveal()}", sans)


def test_a_wrong_key_is_refused_before_its_certificate_is_looked_at(register: Register, parks: NewApiKey) -> None:
    """Who guesses keys learns nothing of certificates."""
    with pytest.raises(NotIdentified):
        register.identify(f"Bearer gwk_{parks.key_id}_{'A' * 43}", ("urn:city:other",))


def test_a_digest_is_of_no_use_without_its_key(register: Register, parks: NewApiKey) -> None:
    """The digest is keyed: another key gives another one, and no plain hash is it."""
    secret = parks.secret.reveal().encode()
    other = Secret(b"l" * 32)

    assert digest_of(DIGEST_KEY, parks.secret) == parks.digest
    assert digest_of(other, parks.secret) != parks.digest
    assert parks.digest not in {hashlib.sha256(secret).digest(), hashlib.sha256(b"k" * 32 + secret).digest()}
    with pytest.raises(NotIdentified):
        Register({parks.key_id: Credential(1, parks.digest, PARKS)}, {1: other}).identify(
            f"Bearer {secret.decode()}", None
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
