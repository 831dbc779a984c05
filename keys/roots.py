"""Where the root key lives, by URI. One provider a scheme, each a file, loaded only when its URI is named.

file:/path/root.key?passphrase_file=/path              a file under an Argon2id passphrase
pkcs11:token=…;object=…?module-path=/…&pin-source=/…   an HSM (RFC 7512)
awskms:alias/name?region=…                             AWS KMS
shares:/path/root.shares?agent=/path/unlock.sock       m of n custodians, SLIP-39 words
"""

from collections.abc import Mapping
from importlib import import_module

from keys.errors import RootRefused
from keys.root import Ask, RootKey, RootProvider

PROVIDERS: Mapping[str, str] = {
    "file": "keys.root_file",
    "pkcs11": "keys.root_pkcs11",
    "awskms": "keys.root_awskms",
    "shares": "keys.root_shares",
}


def create_root(uri: str, ask: Ask) -> RootKey:
    """Make a new root key at this URI; refuses to replace one."""
    return provider(uri).create(uri, ask)


def open_root(uri: str, ask: Ask) -> RootKey:
    """Open the root key; raises `RootRefused` with what to do."""
    return provider(uri).open_root(uri, ask)


def scheme(uri: str) -> str:
    """`file`, or what else the URI starts with."""
    return uri.partition(":")[0]


def location(uri: str) -> str:
    """The URI without its options: what an inventory may show."""
    return uri.partition("?")[0]


def provider(uri: str) -> RootProvider:
    """The module for this kind of root; raises `RootRefused` where there is none, or its extra is missing."""
    kind = scheme(uri)
    if kind not in PROVIDERS:
        raise RootRefused(f"keys.root must be a URI that begins with one of: {', '.join(f'{k}:' for k in PROVIDERS)}")
    try:
        return import_module(PROVIDERS[kind])
    except ModuleNotFoundError:
        raise RootRefused(f"`{kind}:` needs an extra: pip install 'payment-tokenization-gateway[{kind}]'") from None
