"""A root key in AWS KMS, reached through botocore.

    awskms:alias/gateway-root?region=us-west-2
    awskms:alias/gateway-root?region=us-west-2&credentials_file=/etc/gateway/aws&endpoint=https://vpce-….amazonaws.com

    0x01 ‖ what KMS Encrypt gave, in a format of its own

The root never leaves KMS: to wrap is its Encrypt, to unwrap its Decrypt, and both are answered for the one key only
that the URI named when it was opened. So an alias that is pointed elsewhere opens nothing, and no running process
follows it. What a wrap is bound to travels as the encryption context `{"gateway": base64}`. KMS authenticates it, and
CloudTrail logs it in clear: it holds ids, never a secret.

The key itself is made by whoever runs the account, with a policy that lets this identity call kms:DescribeKey,
kms:Encrypt and kms:Decrypt on it. Its rotation inside KMS needs nothing here: KMS keeps the old key material.

Who we are is said by `credentials_file` (an AWS shared credentials file, its `[default]` section, read anew for every
call, so that renewed keys need no restart), else by what botocore finds: an instance's or container's role, a
profile. Access keys in the URI or in environment variables are refused. The address is AWS's own for the region, or
`endpoint`; no environment variable or profile moves it.
"""

import base64
import configparser
import logging
import os
import re
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import botocore.session
from botocore import exceptions as refusals
from botocore import xform_name
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.parsers import ResponseParserError

from keys.errors import RootRefused, RootUnavailable
from keys.files import read_private
from keys.primitives import KEY_BYTES
from keys.root import NOT_THIS_ROOT, Ask
from keys.secret import Secret

VERSION = b"\x01"
CIPHERTEXT_BYTES_MAX = 6144  # of KMS Decrypt
CONNECT_SECONDS = 2.0
READ_SECONDS = 2.0
ATTEMPTS_MAX = 3
CONNECTIONS_MAX = 32

_ID = r"(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})"
_ALIAS = r"alias/[A-Za-z0-9/_-]{1,250}"
KEY = re.compile(rf"{_ID}|{_ALIAS}|arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{{12}}:(?:key/{_ID}|{_ALIAS})")
REGION = re.compile(r"[a-z]{2,5}(?:-[a-z]+)+-[0-9]{1,2}")
_HOST = r"https://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])"
ENDPOINT = re.compile(rf"(?:{_HOST}|http://(?:127\.0\.0\.1|\[::1\]))(?::[0-9]{{1,5}})?/?")
OPTIONS = {"region", "endpoint", "credentials_file"}
SECRET_WORDS = ("key", "secret", "token", "pass", "pin")
GARBLED = "what answers at AWS KMS's address is not AWS KMS: check `endpoint`, and any proxy on the way"
ENVIRONMENT = (
    "AWS access keys do not belong in environment variables: unset AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,"
    " put them in a private file, and name it in `keys.root` with `credentials_file`"
)


PASSING = {
    *("Creating", "Unavailable", "Updating", "LimitExceededException", "ThrottlingException"),
    *("DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException", "RequestTimeoutException"),
}
"""States of a key, and error codes of KMS and of AWS's front door, that pass by themselves."""
DISABLED = "the KMS key {key} is disabled: `aws kms enable-key` lets it work again"
LEAVING = "the KMS key {key} is to be deleted: `aws kms cancel-key-deletion`, then `aws kms enable-key`, keep it"
NOT_FOUND = "AWS KMS has no key {key} in {region}: check `keys.root`, the region, and whose account this is"
STRANGER = "AWS does not accept the credentials ({code}): renew them, and check this machine's clock"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("InvalidCiphertextException", "IncorrectKeyException"), NOT_THIS_ROOT),
    **dict.fromkeys(("NotFoundException", "InvalidArnException"), NOT_FOUND),
    **dict.fromkeys(("Disabled", "DisabledException"), DISABLED),
    **dict.fromkeys(("PendingDeletion", "PendingReplicaDeletion"), LEAVING),
    "PendingImport": "the KMS key {key} has no key material: import it first",
    "KMSInvalidStateException": "the KMS key {key} is to be deleted, or not ready yet: see `aws kms describe-key`",
    "InvalidKeyUsageException": "the KMS key {key} cannot be a root: that takes a symmetric key for ENCRYPT_DECRYPT",
    "AccessDeniedException": (
        "AWS denies kms:{action} on {key} to these credentials: its key policy, or IAM, must allow"
        " kms:DescribeKey, kms:Encrypt and kms:Decrypt"
    ),
    **dict.fromkeys(("ExpiredTokenException", "IncompleteSignature", "InvalidClientTokenId"), STRANGER),
    **dict.fromkeys(("InvalidSignatureException", "MissingAuthenticationToken", "NotAuthorized"), STRANGER),
    **dict.fromkeys(("MissingAuthenticationTokenException", "OptInRequired", "RequestExpired"), STRANGER),
    "UnrecognizedClientException": STRANGER,
}
"""Those that do not."""


class Place(NamedTuple):
    """What a URI says."""

    key: str
    region: str
    endpoint: str | None
    credentials_file: Path | None


def create(uri: str, ask: Ask) -> "AwsKmsRoot":
    """Take the key at this URI as the root. It must exist already: making it is for those who run the account."""
    return open_root(uri, ask)


def open_root(uri: str, ask: Ask) -> "AwsKmsRoot":  # noqa: ARG001 # every provider has it; here nobody is asked
    """Look at the key at this URI, once; raises `RootRefused` or `KeystoreRefused` with what to do."""
    return AwsKmsRoot(_place(uri))


class AwsKmsRoot:
    """A KMS key, found usable. Threads may share it, for they may share botocore's client."""

    def __init__(self, place: Place) -> None:
        self._place = place
        _silence()
        try:
            self._client = _client(place)
        except refusals.BotoCoreError as error:
            raise _unanswered(error) from None
        self._arn = self._usable_key()

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """See `keys.root.RootKey.wrap`. Raises `RootRefused`, or `RootUnavailable` when trying again may help."""
        plaintext = secret.reveal()
        if len(plaintext) != KEY_BYTES:
            raise ValueError(f"a root key wraps keys of {KEY_BYTES} bytes")
        return VERSION + self._ask_key("Encrypt", "CiphertextBlob", bound_to, Plaintext=plaintext)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """See `keys.root.RootKey.unwrap`. Raises `RootUnavailable`, too, when trying again may help."""
        version, ciphertext = wrapped[:1], wrapped[1:]
        if version != VERSION or not 0 < len(ciphertext) <= CIPHERTEXT_BYTES_MAX:
            raise RootRefused(NOT_THIS_ROOT)
        plaintext = self._ask_key("Decrypt", "Plaintext", bound_to, CiphertextBlob=ciphertext)
        if len(plaintext) != KEY_BYTES:
            raise RootRefused(GARBLED)
        return Secret(plaintext)

    def _usable_key(self) -> str:
        """The ARN of the URI's key, if it is one that can be a root now."""
        about = self._ask("DescribeKey", KeyId=self._place.key).get("KeyMetadata", {})
        arn, state = about.get("Arn"), about.get("KeyState")
        if not isinstance(arn, str):
            raise RootRefused(GARBLED)
        # The state first: of a key that is being created the rest is not told.
        if state != "Enabled":
            raise self._meaning(state) or RootRefused(GARBLED)
        if (about.get("KeyUsage"), about.get("KeySpec")) != ("ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT"):
            raise RootRefused(REFUSED["InvalidKeyUsageException"].format(key=self._place.key))
        return arn

    def _ask_key(self, action: str, wanted: str, bound_to: bytes, **request: bytes) -> bytes:
        """One field of an answer. With the key named, KMS refuses what another one made, even if we may use that."""
        place = {"gateway": base64.b64encode(bound_to).decode()}
        answer = self._ask(action, KeyId=self._arn, EncryptionContext=place, **request)
        found = answer.get(wanted)
        if answer.get("KeyId") != self._arn or not isinstance(found, bytes) or not found:
            raise RootRefused(GARBLED)
        return found

    def _ask(self, action: str, **request: object) -> Mapping[str, Any]:
        """One call, tried again by botocore while it may help; its errors come out as ours, its texts not at all."""
        try:
            answer: Mapping[str, Any] = getattr(self._client, xform_name(action))(**request)
        except refusals.ClientError as error:
            raise self._answered(action, error) from None
        except refusals.BotoCoreError as error:
            raise _unanswered(error) from None
        except (ResponseParserError, AttributeError, KeyError, TypeError, ValueError):
            # What botocore's parsers raise at an answer that is no object of KMS's.
            raise RootRefused(GARBLED) from None
        return answer

    def _answered(self, action: str, error: refusals.ClientError) -> RootRefused:
        """The meaning of an error that came with an HTTP answer."""
        meaning = self._meaning(error.response.get("Error", {}).get("Code"), action)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if meaning is None and (status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR):
            meaning = _not_now(f"HTTP {status}")
        if error.operation_name != action and not isinstance(meaning, RootUnavailable):
            meaning = _no_credentials(f"HTTP {status}")  # it was STS, asked for the credentials of a role
        unknown = f"(HTTP {status}, an error that this release does not know): CloudTrail tells why"
        return meaning or RootRefused(f"AWS KMS refuses {action} {unknown}")

    def _meaning(self, code: str, action: str = "DescribeKey") -> RootRefused | None:
        """What a state of the key or an error code means; None for one that we do not know, and do not quote."""
        if code in PASSING:
            return _not_now(code)
        if code not in REFUSED:
            return None
        line = REFUSED[code].format(code=code, action=action, key=self._place.key, region=self._place.region)
        if (code, action) == ("AccessDeniedException", "Decrypt"):  # AWS does not say whether it knows such a key
            line += "; or `keys.root` and `keys.store` do not belong together"
        return RootRefused(line)


def _unanswered(error: refusals.BotoCoreError) -> RootRefused:
    """The meaning of an error without an HTTP answer."""
    match error:
        case refusals.SSLError():
            return RootRefused(
                "the certificate at AWS KMS's address is not trusted: check `endpoint`, or name its authority in"
                " AWS_CA_BUNDLE"
            )
        case refusals.ConnectionError() | refusals.HTTPClientError():
            return RootUnavailable("AWS KMS does not answer: check the network and `endpoint`, then try again")
    return _no_credentials(type(error).__name__)


def _not_now(code: str) -> RootUnavailable:
    return RootUnavailable(f"AWS KMS refuses for now ({code}): try again")


def _no_credentials(code: str) -> RootRefused:
    return RootRefused(
        f"there are no AWS credentials that work ({code}): name a file with `credentials_file`, give this machine a"
        " role, or correct ~/.aws/config and the AWS_ variables"
    )


# --- who we are, and where KMS is ---


class _FileCredentials(Credentials):  # type: ignore[misc] # shipped without type information
    """The access keys of a private file, looked at again for every signature; as a provider it gives itself."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(*_access_keys(path), method="shared-credentials-file")

    def load_credentials(self) -> "_FileCredentials":
        return self

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(*_access_keys(self._path))


def _access_keys(path: Path) -> tuple[str, str, str | None]:
    """Access key, secret key and, of a role, the session token."""
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(read_private(path).decode("ascii"))
        section = parser["default"]
        found = (section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token"))
    except (configparser.Error, KeyError, UnicodeDecodeError):
        found = ("", "", None)
    if not all(re.fullmatch(r"[!-~]+", value) for value in found if value is not None):
        wanted = "[default], aws_access_key_id, aws_secret_access_key"
        raise RootRefused(f"{path} must be an AWS credentials file: {wanted}")
    return found


def _client(place: Place) -> Any:
    session = botocore.session.Session()
    if place.credentials_file is not None:
        session.register_component("credential_provider", _FileCredentials(place.credentials_file))
    elif {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & os.environ.keys():
        raise RootRefused(ENVIRONMENT)
    plain = place.endpoint is not None and place.endpoint.startswith("http:")
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
        max_pool_connections=CONNECTIONS_MAX,
        ignore_configured_endpoint_urls=True,
        proxies={} if plain else None,  # what is not encrypted does not leave this machine through a proxy
    )
    return session.create_client("kms", region_name=place.region, endpoint_url=place.endpoint, config=config)


def _silence() -> None:
    """Keep botocore out of every log.

    At DEBUG it logs the bodies of requests and answers, and they hold the keys in base64. A level can be set again
    by whoever turns debugging on, and a filter on a parent does not see its children's records, hence a filter on
    each of its loggers; all of them exist once `botocore.session` is imported.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "botocore":
            logging.getLogger(name).addFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False


def _place(uri: str) -> Place:
    # By hand: urlsplit raises at some of what is no URI, and drops newlines.
    scheme, _, rest = uri.partition(":")
    name, _, query = rest.partition("?")
    key = KEY.fullmatch(name)
    if scheme != "awskms" or "#" in query or not key:
        raise RootRefused("keys.root must be `awskms:KEY?region=REGION`, KEY being alias/NAME, a key's id or its ARN")
    options = _options(query)
    region, endpoint, file = options.get("region", ""), options.get("endpoint"), options.get("credentials_file")
    if not REGION.fullmatch(region):
        raise RootRefused("keys.root: `region` is needed, and must be an AWS region like us-west-2")
    if key["region"] not in {None, region}:
        raise RootRefused("keys.root: the ARN is of another region than `region` says")
    if file is not None and not file.startswith("/"):
        raise RootRefused("keys.root: credentials_file must be an absolute path")
    if endpoint is not None and not ENDPOINT.fullmatch(endpoint):
        form = "`https://host[:port]`; plain http is for 127.0.0.1 and [::1] alone"
        raise RootRefused(f"keys.root: endpoint must be {form}")
    return Place(name, region, endpoint, Path(file) if file is not None else None)


def _options(query: str) -> dict[str, str]:
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    # No name is quoted: it may be a slip of the pen, and half of a secret.
    if any(word in name.lower() for name in options.keys() - OPTIONS for word in SECRET_WORDS):
        line = "no secret belongs in a URI: put access keys in a file, named by `credentials_file`"
        raise RootRefused(f"keys.root: {line}")
    if len(options) != len(given) or not options.keys() <= OPTIONS:
        raise RootRefused(f"keys.root: an option is unknown or given twice; there are {', '.join(sorted(OPTIONS))}")
    return options
