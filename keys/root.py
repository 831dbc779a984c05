"""Where the root key lives: named by a URI, opened by one provider a scheme.

    file:/path/root.key?passphrase_file=/path     a file under an Argon2id passphrase (`root_file`)

A provider wraps and unwraps short secrets and never gives the root itself away, so that an HSM fits behind the
same two calls. Whatever else goes wrong inside one, callers see `RootRefused`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from keys import root_file
from keys.errors import RootRefused
from keys.files import read_private_line
from keys.secret import Secret

Ask = Callable[[str], Secret[str]]
"""Asks a person for a named secret; raises `RootRefused` where nobody can answer."""


class RootKey(Protocol):
    """What wraps the keys of the key store."""

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """Seal a key for one purpose and id."""

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """Open what `wrap` made; raises `RootRefused` when this root did not make it."""


def create_root(uri: str, ask: Ask) -> RootKey:
    """Make a new root key at this URI; refuses to replace one."""
    path, passphrase = _file_parts(uri, ask)
    return root_file.create(path, passphrase)


def open_root(uri: str, ask: Ask) -> RootKey:
    """Open the root key; raises `RootRefused` with what to do."""
    path, passphrase = _file_parts(uri, ask)
    return root_file.open_file(path, passphrase)


def scheme(uri: str) -> str:
    """`file`, or what else the URI starts with."""
    return urlsplit(uri).scheme


def _file_parts(uri: str, ask: Ask) -> tuple[str, Secret[str]]:
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc or parts.fragment or not parts.path.startswith("/"):
        raise RootRefused("keys.root must be `file:/absolute/path[?passphrase_file=/absolute/path]`")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    passphrase_file = options.pop("passphrase_file", None)
    if options:
        raise RootRefused(f"keys.root: unknown option {sorted(options)}; `passphrase_file` is the only one")
    if passphrase_file is None:
        return unquote(parts.path), ask("passphrase of the root key")
    if not passphrase_file.startswith("/"):
        raise RootRefused("keys.root: passphrase_file must be an absolute path")
    return unquote(parts.path), read_private_line(Path(passphrase_file))
