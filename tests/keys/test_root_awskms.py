"""A root key in AWS KMS: moto's where moto is AWS, a thin fake where it is not, real HTTP to both."""

import base64
import json
import logging
import os
import secrets
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from keys import root_awskms
from keys.errors import KeystoreRefused, RootRefused, RootUnavailable
from keys.primitives import new_key
from keys.root import RootKey
from keys.root_awskms import Place, create, open_root
from keys.secret import Secret
from tests.keys.kms import (
    ARN,
    CANARY,
    KEY_ID,
    REGION,
    Answer,
    FakeKms,
    administrator,
    credentials_file,
    error,
    make_key,
    running_fake,
    running_moto,
    uri,
)

ATTEMPTS_SHIPPED, READ_SHIPPED = root_awskms.ATTEMPTS_MAX, root_awskms.READ_SECONDS
BOUND = b"demo\x00kek\x00wrap\x00\x00\x00\x01"
NOT_OURS = r"^this root key does not open the key store: `keys.root` and `keys.store` do not belong together"
NOT_TOGETHER = r"`keys.root` and `keys.store` do not belong together"  # moto denies where AWS says "incorrect key"
GARBLED = r"^what answers at AWS KMS's address is not AWS KMS: check `endpoint`, and any proxy on the way$"
NO_ANSWER = r"^AWS KMS does not answer: check the network and `endpoint`, then try again$"


@pytest.fixture(autouse=True, scope="module")
def bare() -> Iterator[None]:
    """A machine without AWS settings, where one attempt, and a short one, has to do."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
        patch.setattr(root_awskms, "ATTEMPTS_MAX", 1)
        patch.setattr(root_awskms, "READ_SECONDS", 0.5)
        yield


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """Access keys that no server here checks."""
    return credentials_file(tmp_path / "aws")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The address of moto's KMS."""
    with running_moto() as url:
        yield url


@pytest.fixture(scope="module")
def admin(moto: str) -> Any:
    """Who makes keys there."""
    return administrator(moto)


@pytest.fixture
def key(admin: Any) -> str:
    """The ARN of a new symmetric key at moto's."""
    return make_key(admin)


@pytest.fixture(scope="module")
def opened(bare: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeKms, RootKey]]:
    """A fake KMS and its key, opened once: to open one costs botocore a tenth of a second."""
    with running_fake() as fake:
        yield fake, open_root(uri(fake.url, credentials_file(tmp_path_factory.mktemp("opened") / "aws")), nobody)


@pytest.fixture
def fake(opened: tuple[FakeKms, RootKey]) -> FakeKms:
    """The fake, well again, and without a call."""
    opened[0].well_again()
    return opened[0]


@pytest.fixture
def root(opened: tuple[FakeKms, RootKey]) -> RootKey:
    """Its key, opened."""
    return opened[1]


def nobody(what: str) -> Secret[str]:
    """Stands where no person can be asked."""
    raise AssertionError(f"nobody is asked for the {what}")


def always(answer: Answer, *actions: str) -> Callable[[str], Answer | None]:
    """The fake says this to these actions, or to all."""
    return lambda action: answer if action in actions or not actions else None


def refused(match: str, act: Callable[..., object], *arguments: object) -> RootRefused:
    """What an act is refused with; it quotes neither the service nor a traceback."""
    with pytest.raises(RootRefused, match=match) as caught:
        act(*arguments)
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


# --- at moto's ---


def test_what_a_root_wraps_it_unwraps(moto: str, admin: Any, key: str, credentials: Path) -> None:
    """A key comes back, whether its root was named by alias, by id or by ARN; version 1 leads."""
    admin.create_alias(AliasName="alias/gateway-root", TargetKeyId=key)
    names = [
        "alias/gateway-root",
        key.rpartition("/")[2],
        key,
        key.replace(key.rpartition(":")[2], "alias/gateway-root"),
    ]
    secret = new_key()
    wrapped = create(uri(moto, credentials), nobody).wrap(secret, BOUND)

    for name in names:
        opened: RootKey = open_root(uri(moto, credentials, name), nobody)
        assert opened.unwrap(wrapped, BOUND).reveal() == secret.reveal()
    assert wrapped[:1] == b"\x01"
    admin.delete_alias(AliasName="alias/gateway-root")


def test_bound_at_kms(moto: str, key: str, credentials: Path) -> None:
    """Bound to another purpose, or altered in its IV, ciphertext or tag, a wrap does not open."""
    root = open_root(uri(moto, credentials, key), nobody)
    wrapped = root.wrap(new_key(), BOUND)

    for bound_to in (b"", BOUND[:-1], BOUND + b"\x00", bytes(len(BOUND))):
        refused(NOT_OURS, root.unwrap, wrapped, bound_to)
    for index in (-1, -20, -40, -60):
        altered = bytearray(wrapped)
        altered[index] ^= 1
        refused(NOT_OURS, root.unwrap, bytes(altered), BOUND)


def test_another_keys_wrap(moto: str, admin: Any, key: str, credentials: Path) -> None:
    """What another key of the account made does not open, though the credentials may use that key as well."""
    other = make_key(admin)
    wrapped = open_root(uri(moto, credentials, other), nobody).wrap(new_key(), BOUND)

    refused(NOT_TOGETHER, open_root(uri(moto, credentials, key), nobody).unwrap, wrapped, BOUND)


def test_an_alias_that_moves(moto: str, admin: Any, key: str, credentials: Path) -> None:
    """A running process stays with the key that it opened; one that starts later is told that it is another."""
    admin.create_alias(AliasName="alias/moving", TargetKeyId=key)
    running = open_root(uri(moto, credentials, "alias/moving"), nobody)
    wrapped = running.wrap(secret := new_key(), BOUND)
    admin.update_alias(AliasName="alias/moving", TargetKeyId=make_key(admin))

    assert running.unwrap(running.wrap(secret, BOUND), BOUND).reveal() == secret.reveal()
    refused(NOT_TOGETHER, open_root(uri(moto, credentials, "alias/moving"), nobody).unwrap, wrapped, BOUND)


def test_rotation_inside_kms(moto: str, admin: Any, key: str, credentials: Path) -> None:
    """After KMS has rotated the key's material, old wraps and new ones open."""
    root = open_root(uri(moto, credentials, key), nobody)
    old = root.wrap(secret := new_key(), BOUND)
    admin.rotate_key_on_demand(KeyId=key)
    new = root.wrap(secret, BOUND)

    assert admin.list_key_rotations(KeyId=key)["Rotations"]
    assert root.unwrap(old, BOUND).reveal() == root.unwrap(new, BOUND).reveal() == secret.reveal()


@pytest.mark.parametrize(
    "kind",
    [
        {"KeySpec": "RSA_2048"},
        {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"},
        {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
    ],
    ids=lambda kind: kind["KeySpec"],
)
def test_a_key_of_another_kind(moto: str, admin: Any, kind: dict[str, str], credentials: Path) -> None:
    """A key pair or a MAC key is refused before it wraps anything."""
    arn = make_key(admin, **kind)

    for act in (create, open_root):
        refused(
            rf"^the KMS key {arn} cannot be a root: that takes a symmetric key",
            act,
            uri(moto, credentials, arn),
            nobody,
        )


def test_keys_that_are_disabled_or_leaving(moto: str, admin: Any, key: str, credentials: Path) -> None:
    """A disabled key and one that is to be deleted are not opened, each with the command that helps."""
    place = uri(moto, credentials, key)
    admin.disable_key(KeyId=key.rpartition("/")[2])
    refused(rf"^the KMS key {key} is disabled: `aws kms enable-key`", open_root, place, nobody)
    admin.schedule_key_deletion(KeyId=key.rpartition("/")[2])
    refused(rf"^the KMS key {key} is to be deleted: `aws kms cancel-key-deletion`", create, place, nobody)


def test_a_key_that_is_not_there(moto: str, credentials: Path) -> None:
    """An alias, an id or an ARN of nothing is named, with the region it was looked for in."""
    for name in ("alias/none", KEY_ID, ARN):
        refused(
            rf"^AWS KMS has no key {name} in us-west-2: check",
            open_root,
            uri(moto, credentials, name),
            nobody,
        )


def test_many_threads(moto: str, key: str, credentials: Path) -> None:
    """Twelve threads that share one root get back each its own key."""
    root = open_root(uri(moto, credentials, key), nobody)

    def turn(number: int) -> bool:
        secret, bound_to = new_key(), BOUND + bytes([number])
        return root.unwrap(root.wrap(secret, bound_to), bound_to).reveal() == secret.reveal()

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(turn, range(36))) == [True] * 36


# --- what is sent ---


def test_what_kms_is_asked(fake: FakeKms, credentials: Path) -> None:
    """Each call names the key's ARN, and its context is what the wrap is bound to, in base64, and nothing else."""
    root = open_root(uri(fake.url, credentials), nobody)
    root.unwrap(root.wrap(new_key(), BOUND), BOUND)

    assert fake.actions() == ["DescribeKey", "Encrypt", "Decrypt"]
    assert fake.calls[0][1] == {"KeyId": "alias/gateway-root"}
    for _, request in fake.calls[1:]:
        assert request["KeyId"] == ARN
        assert request["EncryptionContext"] == {"gateway": base64.b64encode(BOUND).decode()}
        assert set(request) - {"Plaintext", "CiphertextBlob"} == {"KeyId", "EncryptionContext"}


def test_every_byte_and_length_of_a_wrap_counts(root: RootKey) -> None:
    """Altered in one byte, cut short, extended, or without its version byte, a wrap does not open."""
    wrapped = root.wrap(new_key(), BOUND)
    altered = [wrapped[:at] + bytes([wrapped[at] ^ 0x80]) + wrapped[at + 1 :] for at in range(len(wrapped))]
    altered += [wrapped[:length] for length in range(len(wrapped))]
    altered += [wrapped[1:], b"\x01" + wrapped, wrapped + b"\x00"]
    for one in altered:
        refused(NOT_OURS, root.unwrap, one, BOUND)


def test_what_cannot_be_a_wrap_is_not_sent(fake: FakeKms, root: RootKey) -> None:
    """Another version, an empty wrap and one longer than KMS takes are refused here."""
    for wrapped in (b"", b"\x01", b"\x02" + bytes(60), b"\x01" + bytes(6145)):
        refused(NOT_OURS, root.unwrap, wrapped, BOUND)

    assert fake.actions() == []


@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_only_keys_are_wrapped(fake: FakeKms, root: RootKey, secret: bytes) -> None:
    """What could never be unwrapped again, because it is no key of ours, is not wrapped."""
    with pytest.raises(ValueError, match=r"^a root key wraps keys of 32 bytes$"):
        root.wrap(Secret(secret), BOUND)

    assert fake.actions() == []


# --- what KMS says ---

SAID = [
    ("InvalidCiphertextException", RootRefused, NOT_OURS),
    ("IncorrectKeyException", RootRefused, NOT_OURS),
    ("NotFoundException", RootRefused, r"^AWS KMS has no key alias/gateway-root in us-west-2: check"),
    ("DisabledException", RootRefused, r"^the KMS key alias/gateway-root is disabled: `aws kms enable-key`"),
    ("KMSInvalidStateException", RootRefused, r"is to be deleted, or not ready yet: see `aws kms describe-key`"),
    ("InvalidKeyUsageException", RootRefused, r"cannot be a root: that takes a symmetric key"),
    (
        "AccessDeniedException",
        RootRefused,
        r"^AWS denies kms:Decrypt on alias/gateway-root to .*; or `keys.root` and",
    ),
    ("ThrottlingException", RootUnavailable, r"^AWS KMS refuses for now \(ThrottlingException\): try again$"),
    ("LimitExceededException", RootUnavailable, r"^AWS KMS refuses for now \(LimitExceededException\): try"),
    ("KeyUnavailableException", RootUnavailable, r"^AWS KMS refuses for now \(KeyUnavailableException\): try"),
    ("DependencyTimeoutException", RootUnavailable, r"^AWS KMS refuses for now \(DependencyTimeoutException\)"),
    ("UnrecognizedClientException", RootRefused, r"^AWS does not accept the credentials \(UnrecognizedClient"),
    ("ExpiredTokenException", RootRefused, r"^AWS does not accept the credentials \(ExpiredToken.*renew them"),
    ("InvalidSignatureException", RootRefused, r"InvalidSignatureException.*check this machine's clock$"),
    (f"{CANARY}Exception", RootRefused, r"^AWS KMS refuses Decrypt \(HTTP 400, an error that this release"),
]


@pytest.mark.parametrize(("code", "kind", "line"), SAID, ids=[code for code, _, _ in SAID])
def test_errors_of_kms(fake: FakeKms, root: RootKey, code: str, kind: type[RootRefused], line: str) -> None:
    """Each has a line of its own; those that may pass are told apart; a code that we do not know is not quoted."""
    wrapped = root.wrap(new_key(), BOUND)
    fake.instead = always(error(code))

    assert type(refused(line, root.unwrap, wrapped, BOUND)) is kind


def test_every_known_error_is_a_line(fake: FakeKms, root: RootKey) -> None:
    """Whatever KMS says, it is a refusal of one line without a placeholder left in it."""
    for code in {*root_awskms.REFUSED, *root_awskms.PASSING}:
        fake.instead = always(error(code))
        assert "{" not in str(refused(".", root.wrap, new_key(), BOUND))


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_front_door_in_trouble(fake: FakeKms, root: RootKey, status: int) -> None:
    """An error page of any proxy or balancer on the way may pass."""
    fake.instead = always(Answer(status, f"<html>{CANARY}</html>".encode()))
    said = refused(rf"^AWS KMS refuses for now \(HTTP {status}\): try", root.wrap, new_key(), BOUND)

    assert type(said) is RootUnavailable


STATES = [
    ("Disabled", RootRefused, "is disabled"),
    ("PendingDeletion", RootRefused, "is to be deleted"),
    ("PendingReplicaDeletion", RootRefused, "is to be deleted"),
    ("PendingImport", RootRefused, "has no key material: import it first"),
    ("Creating", RootUnavailable, "try again"),
    ("Unavailable", RootUnavailable, "try again"),
    ("Updating", RootUnavailable, "try again"),
    ("Sleeping", RootRefused, GARBLED),
    (None, RootRefused, GARBLED),
]


@pytest.mark.parametrize(("state", "kind", "line"), STATES)
def test_states_of_a_key(
    fake: FakeKms, credentials: Path, state: str | None, kind: type[RootRefused], line: str
) -> None:
    """A key is opened and taken as a root in one state only; nothing is wrapped to find out."""
    fake.about = {"KeyState": state}
    for act in (create, open_root):
        assert type(refused(line, act, uri(fake.url, credentials), nobody)) is kind

    assert fake.actions() == ["DescribeKey"] * 2


def test_a_key_that_is_disabled_later(fake: FakeKms, root: RootKey) -> None:
    """A key that is disabled under a running process opens nothing more, and everything again once it is enabled."""
    wrapped = root.wrap(secret := new_key(), BOUND)
    fake.instead = always(error("DisabledException"), "Encrypt", "Decrypt")
    refused("is disabled", root.unwrap, wrapped, BOUND)
    fake.instead = always(error("DisabledException"), "nothing")

    assert root.unwrap(wrapped, BOUND).reveal() == secret.reveal()


def test_denied_at_the_first_look(fake: FakeKms, credentials: Path) -> None:
    """Credentials that may not even look are told which permissions the root needs."""
    fake.instead = always(error("AccessDeniedException"))
    said = refused(r"^AWS denies kms:DescribeKey on", create, uri(fake.url, credentials), nobody)

    assert "must allow kms:DescribeKey, kms:Encrypt and kms:Decrypt" in str(said)


# --- when it does not answer, or not as KMS ---


def test_throttled_twice(fake: FakeKms, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts, as shipped: two refusals pass unnoticed, three are too many."""
    monkeypatch.setattr(root_awskms, "ATTEMPTS_MAX", ATTEMPTS_SHIPPED)
    patient = open_root(uri(fake.url, credentials), nobody)
    answers = iter([error("ThrottlingException")] * 2)
    fake.instead = lambda _action: next(answers, None)
    wrapped = patient.wrap(new_key(), BOUND)
    assert fake.actions().count("Encrypt") == 3

    fake.instead = always(error("KMSInternalException", 500))
    assert type(refused("refuses for now", patient.unwrap, wrapped, BOUND)) is RootUnavailable
    assert fake.actions().count("Decrypt") == 3


def test_the_times_that_ship(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds to connect, two to answer, three attempts: a start on a dead network ends."""
    monkeypatch.setattr(root_awskms, "ATTEMPTS_MAX", ATTEMPTS_SHIPPED)
    monkeypatch.setattr(root_awskms, "READ_SECONDS", READ_SHIPPED)
    config = root_awskms._client(Place("alias/x", REGION, None, credentials)).meta.config

    assert (config.connect_timeout, config.read_timeout) == (2, 2)
    assert config.retries == {"mode": "standard", "total_max_attempts": 3}


@pytest.mark.parametrize("answer", [Answer(body=None), Answer(200, b"{}", after=30)], ids=["hangs up", "hangs"])
@pytest.mark.timeout(20)
def test_no_answer(fake: FakeKms, root: RootKey, answer: Answer) -> None:
    """A server that hangs up, or takes the request and never answers, may be there later."""
    fake.instead = always(answer)

    assert type(refused(NO_ANSWER, root.wrap, new_key(), BOUND)) is RootUnavailable


def test_nobody_there(credentials: Path) -> None:
    """A server that is gone refuses the connection, under a running root and at the start; it may come back."""
    with running_fake() as fake:
        root = open_root(uri(fake.url, credentials), nobody)
        wrapped = root.wrap(new_key(), BOUND)

    for act in (lambda: root.unwrap(wrapped, BOUND), lambda: open_root(uri(fake.url, credentials), nobody)):
        assert type(refused(NO_ANSWER, act)) is RootUnavailable


NONSENSE = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'"text"',
    b"<html>sign in to this network</html>",
    b"\xff\xfe",
    b'{"KeyMetadata": null, "CiphertextBlob": null, "Plaintext": null}',
    b'{"KeyMetadata": [1], "CiphertextBlob": 1, "Plaintext": 1}',
    b'{"KeyMetadata": "x", "CiphertextBlob": "x", "Plaintext": "x"}',
    b'{"KeyMetadata": {"Arn": 5}, "CiphertextBlob": {}, "Plaintext": []}',
]


@pytest.mark.parametrize("body", NONSENSE)
def test_nonsense(fake: FakeKms, root: RootKey, credentials: Path, body: bytes) -> None:
    """An answer that is not one of KMS's is refused at every call, and never shown."""
    wrapped = root.wrap(new_key(), BOUND)
    fake.instead = always(Answer(200, body))

    for act in (
        lambda: open_root(uri(fake.url, credentials), nobody),
        lambda: root.wrap(new_key(), BOUND),
        lambda: root.unwrap(wrapped, BOUND),
    ):
        refused(GARBLED, act)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_plaintext_that_is_no_key(fake: FakeKms, root: RootKey, length: int) -> None:
    """What comes back is a key of 32 bytes or nothing."""
    wrapped = root.wrap(new_key(), BOUND)
    text = base64.b64encode(bytes(length)).decode()
    fake.instead = always(Answer(200, json.dumps({"KeyId": ARN, "Plaintext": text}).encode()), "Decrypt")

    refused(GARBLED, root.unwrap, wrapped, BOUND)


@pytest.mark.parametrize("arn", [None, "", ARN.replace("1234", "4321")])
def test_an_answer_for_another_key(fake: FakeKms, root: RootKey, arn: str | None) -> None:
    """An answer must say that it used the very key that was asked for."""
    wrapped = root.wrap(new_key(), BOUND)
    said = {"KeyId": arn, "Plaintext": base64.b64encode(bytes(32)).decode(), "CiphertextBlob": "AAAA"}
    fake.instead = always(Answer(200, json.dumps(said).encode()))

    refused(GARBLED, root.unwrap, wrapped, BOUND)
    refused(GARBLED, root.wrap, new_key(), BOUND)


# --- on the way ---


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate of 127.0.0.1 with its private key, in one file."""
    private, now = generate_private_key(SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake KMS")])
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(private, SHA256())
    )
    path = tmp_path / "certificate.pem"
    text = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(made.public_bytes(Encoding.PEM) + text)
    return path


def test_a_certificate_that_nobody_vouches_for(
    certificate: Path, credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS is verified: a stranger's certificate ends it before anything is asked; a named authority's does not."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with running_fake(tls) as fake:
        refused(
            "^the certificate at AWS KMS's address is not trusted",
            open_root,
            uri(fake.url, credentials),
            nobody,
        )
        assert fake.calls == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        root = open_root(uri(fake.url, credentials), nobody)
        assert root.unwrap(root.wrap(secret := new_key(), BOUND), BOUND).reveal() == secret.reveal()


def test_only_the_uri_moves_the_endpoint(
    fake: FakeKms, credentials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither environment variables nor a profile send the keys elsewhere, in clear or not."""
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {fake.url}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", fake.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", fake.url)
    client = root_awskms._client(Place("alias/x", REGION, None, credentials))

    assert client.meta.endpoint_url == "https://kms.us-west-2.amazonaws.com"


def test_plain_http_passes_no_proxy(fake: FakeKms, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not encrypted does not leave the machine, whatever the environment says about proxies."""
    with running_fake() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        open_root(uri(fake.url, credentials), nobody).wrap(new_key(), BOUND)

        assert (proxy.calls, fake.actions()) == ([], ["DescribeKey", "Encrypt"])


# --- who we are ---


def test_renewed_credentials_need_no_restart(fake: FakeKms, credentials: Path) -> None:
    """The file is read for every call: keys that were renewed in it are used by the next one."""
    root = open_root(uri(fake.url, credentials), nobody)
    root.wrap(new_key(), BOUND)
    credentials_file(credentials, "AKIDRENEWED")
    root.wrap(new_key(), BOUND)

    assert fake.signed_by == ["AKIDEXAMPLE", "AKIDEXAMPLE", "AKIDRENEWED"]


def test_a_credentials_file_that_others_can_read(fake: FakeKms, credentials: Path) -> None:
    """A file that is open to others is refused at the start, and under a running root too; nothing is sent."""
    root = open_root(uri(fake.url, credentials), nobody)
    credentials.chmod(0o640)

    for act in (lambda: open_root(uri(fake.url, credentials), nobody), lambda: root.wrap(new_key(), BOUND)):
        with pytest.raises(KeystoreRefused, match=f"`chmod 0600 {credentials}`"):
            act()
    assert fake.actions() == ["DescribeKey"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"AKIDEXAMPLE:secret-of-a-kind",
        b"[other]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret-of-a-kind\n",
        b"[default]\naws_access_key_id = AKIDEXAMPLE\n",
        b"[default]\naws_access_key_id =\naws_secret_access_key = secret-of-a-kind\n",
        b"[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret-of-a-kind\n  and more\n",
        b"[default]\naws_access_key_id = AKIDEXAMPLE\naws_access_key_id = AKIDEXAMPLE\n",
        b"[default\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = secret-of-a-kind\n",
        b"[default]\naws_access_key_id = AKID\xff\naws_secret_access_key = secret-of-a-kind\n",
        b"[default]\naws_access_key_id = AKID\naws_secret_access_key = secret-of-a-kind\naws_session_token =\n",
    ],
)
def test_no_credentials_file(fake: FakeKms, credentials: Path, content: bytes) -> None:
    """What is no credentials file is refused by its name, with what must be in it, and not quoted."""
    credentials.write_bytes(content)
    said = refused(
        rf"^{credentials} must be an AWS credentials file: \[default\]",
        open_root,
        uri(fake.url, credentials),
        nobody,
    )

    assert "AKIDEXAMPLE" not in str(said)
    assert "secret-of-a-kind" not in str(said)


def test_a_missing_credentials_file(fake: FakeKms, tmp_path: Path) -> None:
    """Nothing else is tried in its place."""
    with pytest.raises(KeystoreRefused, match=r"none does not exist$"):
        open_root(uri(fake.url, tmp_path / "none"), nobody)


def without_file(fake: FakeKms) -> str:
    """A URI that leaves the credentials to botocore."""
    return f"awskms:alias/gateway-root?region={REGION}&endpoint={fake.url}"


def test_credentials_that_botocore_finds(fake: FakeKms, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `credentials_file` botocore's own chain is used; where it finds nothing, the line says what to do."""
    refused("^there are no AWS credentials that work", open_root, without_file(fake), nobody)
    assert fake.calls == []
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    open_root(without_file(fake), nobody)

    assert fake.signed_by == ["AKIDEXAMPLE"]


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_access_keys_in_the_environment(
    fake: FakeKms, credentials: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They are refused, not quoted, and never used; a file that is named in the URI goes before them."""
    monkeypatch.setenv(name, CANARY)
    refused("^AWS access keys do not belong in environment variables", open_root, without_file(fake), nobody)
    open_root(uri(fake.url, credentials), nobody)

    assert fake.signed_by == ["AKIDEXAMPLE"]


@pytest.fixture
def assumed(tmp_path: Path, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A profile that assumes a role, at this address of STS."""

    def at(url: str) -> None:
        role = "[profile gateway]\nrole_arn = arn:aws:iam::111122223333:role/gateway\nsource_profile = default\n"
        (tmp_path / "config").write_text(role)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        monkeypatch.setenv("AWS_PROFILE", "gateway")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)

    return at


def test_a_role(fake: FakeKms, moto: str, assumed: Callable[[str], None]) -> None:
    """The temporary keys of a role sign, not those that asked for it."""
    assumed(moto)
    open_root(without_file(fake), nobody)

    assert [name[:4] for name in fake.signed_by] == ["ASIA"]


def test_a_role_that_is_not_given(
    fake: FakeKms, assumed: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When STS denies the role, or no profile has that name, it is the credentials that are amiss."""
    with running_fake() as sts:
        sts.instead = always(Answer(403, b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"))
        assumed(sts.url)
        refused("^there are no AWS credentials that work", open_root, without_file(fake), nobody)
        sts.instead = always(Answer(200, b"<html>sign in to this network"))
        refused(GARBLED, open_root, without_file(fake), nobody)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refused("^there are no AWS credentials that work", open_root, without_file(fake), nobody)

    assert fake.calls == []


def test_settings_in_the_way(
    fake: FakeKms, credentials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration that botocore cannot read is named as what it is, and not quoted."""
    (tmp_path / "config").write_text(f"[{CANARY}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    refused(
        r"^there are no AWS credentials that work \(ConfigParseError\): .*correct ~/\.aws/config",
        open_root,
        uri(fake.url, credentials),
        nobody,
    )


# --- logs ---


class Everything(logging.Handler):
    """Keeps what it is given, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name} {record.getMessage()} {record.args!r}")


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What reaches any log while everybody listens at the lowest level, turned on in the last moment."""
    handler, before = Everything(), {}
    for name in [
        None,
        *(name for name in logging.root.manager.loggerDict if name.startswith(("botocore", "urllib3"))),
    ]:
        logger = logging.getLogger(name)
        before[logger] = logger.level
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield handler.lines
    for logger, level in before.items():
        logger.setLevel(level)
        logger.removeHandler(handler)


def test_no_log_holds_a_key(fake: FakeKms, root: RootKey, credentials: Path, logged: list[str]) -> None:
    """With every logger at DEBUG, botocore's own included, neither bodies nor headers nor errors are logged."""
    secret = secrets.token_bytes(32)
    wrapped = root.wrap(Secret(secret), BOUND)
    assert root.unwrap(wrapped, BOUND).reveal() == secret
    open_root(uri(fake.url, credentials), nobody)
    fake.instead = always(error("DisabledException"))
    refused("is disabled", root.unwrap, wrapped, BOUND)
    logging.getLogger("botocore.endpoint").debug("Making request with %s", secret)

    text = "\n".join(logged)
    for shown in (
        repr(secret)[2:-1],
        secret.hex(),
        base64.b64encode(secret).decode(),
        "x" * 40,
        "AKIDEXAMPLE",
        CANARY,
    ):
        assert shown not in text
    assert "botocore" not in text
    assert "urllib3" in text  # the handler does listen


# --- by name ---


@pytest.mark.parametrize(
    "named",
    [
        "awskms:",
        "awskms:?region=us-west-2",
        "awskms:gateway-root?region=us-west-2",
        "awskms:alias/?region=us-west-2",
        "awskms:alias/a b?region=us-west-2",
        "awskms:alias/x#part?region=us-west-2",
        "awskms:alias/x?region=us-west-2#part",
        "awskms:alias/x\n?region=us-west-2",
        "awskms://[secret",
        "awskms:/alias/x?region=us-west-2",
        "awskms://alias/x?region=us-west-2",
        "awskms://AKIDEXAMPLE:secret@alias/x?region=us-west-2",
        f"awskms:{KEY_ID}0?region=us-west-2",
        f"awskms:{KEY_ID.upper()}?region=us-west-2",
        "awskms:arn:aws:s3:us-west-2:111122223333:key/x?region=us-west-2",
        "file:/alias/x?region=us-west-2",
        "",
    ],
)
def test_a_uri_of_no_form_that_we_know(named: str) -> None:
    """What is no alias, key id or ARN is refused with the form that is wanted; what stands there is not quoted."""
    for act in (create, open_root):
        said = refused(r"^keys\.root must be `awskms:KEY\?region=REGION`, KEY being", act, named, nobody)
        assert "secret" not in str(said)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", "`region` is needed"),
        ("region=", "`region` is needed"),
        ("region=evil.example/", "`region` is needed"),
        ("region=US-WEST-2", "`region` is needed"),
        ("region=us-west-2&region=us-east-1", "unknown or given twice"),
        ("region=us-west-2&profile=x", "unknown or given twice"),
        ("region=us-west-2&Region=x", "unknown or given twice"),
        ("region=us-west-2&hunter2", "unknown or given twice"),
        ("region=us-west-2&credentials_file=", "credentials_file must be an absolute path$"),
        ("region=us-west-2&credentials_file=aws", "credentials_file must be an absolute path$"),
        ("region=us-west-2&aws_secret_access_key=hunter2", "no secret belongs in a URI"),
        ("region=us-west-2&access_key_id=hunter2", "no secret belongs in a URI"),
        ("region=us-west-2&SESSION_TOKEN=hunter2", "no secret belongs in a URI"),
        ("region=us-west-2&pass%77ord=hunter2", "no secret belongs in a URI"),
        ("region=us-west-2&pin-value=hunter2", "no secret belongs in a URI"),
    ],
)
def test_options_that_are_not_taken(options: str, line: str) -> None:
    """Missing, doubled, unknown and secret options are refused; no value is quoted, and no name either."""
    said = refused(rf"^keys\.root: .*{line}", open_root, f"awskms:alias/x?{options}", nobody)

    assert "hunter2" not in str(said)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://kms.us-west-2.amazonaws.com",
        "http://localhost:4566",
        "http://10.0.0.1",
        "http://127.0.0.2",
        "http://127.0.0.1.example.org",
        "http://127.1",
        "http://0.0.0.0:80",
        "http://[::]:80",
        "http://[::ffff:10.0.0.1]",
        "http://127.0.0.1@example.org",
        "http://127.0.0.1%5C@example.org",
        "https://hunter2:hunter2@example.org",
        "https://example.org/path",
        "https://example.org?hunter2",
        "https://",
        "ftp://127.0.0.1",
        "127.0.0.1",
        "https://example.org:123456",
        "https://example.org%0Ahunter2",
    ],
)
def test_endpoints_that_are_not_taken(endpoint: str) -> None:
    """Plain HTTP goes to this machine's own addresses only, and an endpoint is a host and a port, no more."""
    said = refused(
        r"^keys\.root: endpoint must be `https://host\[:port\]`; plain http is for 127\.0\.0\.1 and \[::1\] alone$",
        open_root,
        f"awskms:alias/x?region=us-west-2&endpoint={endpoint}",
        nobody,
    )

    assert "hunter2" not in str(said)


def test_an_arn_of_another_region() -> None:
    """An ARN and a region that contradict each other are a slip of the pen."""
    refused(
        r"^keys\.root: the ARN is of another region than `region` says$",
        open_root,
        f"awskms:{ARN}?region=us-east-1",
        nobody,
    )
