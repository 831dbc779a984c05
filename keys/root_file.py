"""A root key in a file, under a passphrase.

    file:/path/root.key?passphrase_file=/path     without the file a person is asked

For a machine without an HSM. The file's format is that of `keys.passphrase`.
"""

import os
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from keys.errors import KeystoreRefused, PassphraseRefused, RootRefused
from keys.files import read_private_line
from keys.passphrase import new_passphrase, open_file, seal_file
from keys.primitives import new_key
from keys.root import Ask, MemoryRoot
from keys.secret import Secret

LABEL = b""
"""Root key files are older than labels."""

FORM = "keys.root must be `file:/absolute/path[?passphrase_file=/absolute/path]`"


class FileRoot(MemoryRoot):
    """A root key out of a file."""

    def __init__(self, root: Secret[bytes]) -> None:
        super().__init__(root, "root/file/v1")


def create(uri: str, ask: Ask) -> FileRoot:
    """See `keys.root.RootProvider.create`. A new passphrase is asked for twice."""
    path, passphrase_file = _parts(uri)
    if os.path.lexists(path):  # before anybody thinks of a passphrase, or waits for one to be stretched
        raise KeystoreRefused(f"{path} exists already and is never replaced: move it away first")
    root = new_key()
    try:
        passphrase = read_private_line(passphrase_file) if passphrase_file else new_passphrase(ask, "the root key")
        seal_file(path, root, passphrase, LABEL)
    except PassphraseRefused as refused:
        raise RootRefused(str(refused)) from None
    return FileRoot(root)


def open_root(uri: str, ask: Ask) -> FileRoot:
    """See `keys.root.RootProvider.open_root`."""
    path, passphrase_file = _parts(uri)
    if _is_missing(path):
        raise RootRefused(f"{path} does not exist: `keys init` makes it, once; later it comes from its backup")
    passphrase = read_private_line(passphrase_file) if passphrase_file else ask("passphrase of the root key")
    try:
        return FileRoot(open_file(path, passphrase, LABEL))
    except PassphraseRefused as refused:
        raise RootRefused(str(refused)) from None


def _parts(uri: str) -> tuple[Path, Path | None]:
    """The key file, and the file with its passphrase. What the options say is never shown: it may be a secret."""
    try:
        parts = urlsplit(uri)
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise RootRefused(FORM) from None
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc or parts.fragment or not path.startswith("/") or "\0" in path:
        raise RootRefused(FORM)
    names = [name for name, _ in options]
    if {"passphrase", "password", "pin", "pin-value"} & {name.lower() for name in names}:
        raise RootRefused("keys.root: a passphrase does not stand in a URI: name a passphrase_file")
    if names not in ([], ["passphrase_file"]):
        raise RootRefused("keys.root: a `file:` URI has one option, once: `passphrase_file`")
    if not options:
        return Path(path), None
    if not options[0][1].startswith("/") or "\0" in options[0][1]:
        raise RootRefused("keys.root: passphrase_file must be an absolute path")
    return Path(path), Path(options[0][1])


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False  # something is in the way; who reads the file says what
    return False
