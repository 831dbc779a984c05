"""The root key as everyone else sees it: something that wraps and unwraps short secrets, and never gives itself away.

So an HSM fits behind the same two calls. Whatever else goes wrong inside one, callers see `RootRefused`, or
`RootUnavailable` where trying again may help. Calls come from several threads. `keys.roots` says which kinds exist.
"""

from collections.abc import Callable
from typing import Protocol

from keys.errors import BrokenSeal, RootRefused
from keys.primitives import decrypt, encrypt, subkey
from keys.secret import Secret

VERSION = b"\x01"
NOT_THIS_ROOT = (
    "this root key does not open the key store: `keys.root` and `keys.store` do not belong together,"
    " or a key file was swapped or altered"
)
"""Of a root that did not make a wrap, whatever its kind."""

Ask = Callable[[str], Secret[str]]
"""Asks a person for a named secret; raises `RootRefused` where nobody can answer."""


class RootKey(Protocol):
    """What wraps the keys of the key store."""

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """Seal a key for one purpose and id."""

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """Open what `wrap` made; raises `RootRefused` when this root did not make it."""


class RootProvider(Protocol):
    """One kind of root: a module of its own."""

    def create(self, uri: str, ask: Ask) -> RootKey:
        """Make a new root at this URI, or adopt what only others can make; refuses to replace one."""

    def open_root(self, uri: str, ask: Ask) -> RootKey:
        """Open the root at this URI; raises `RootRefused` with what to do."""


class MemoryRoot:
    """A root key held in this process's memory: 0x01 ‖ what `keys.primitives.encrypt` gives.

    Args:
        root: 32 bytes.
        label: what kind of root it is. The same bytes under another label are another root.
    """

    def __init__(self, root: Secret[bytes], label: str) -> None:
        self._wrapping = subkey(root, label, "wrap")

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:
        """See `RootKey.wrap`."""
        return VERSION + encrypt(self._wrapping, secret.reveal(), bound_to)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """See `RootKey.unwrap`."""
        if wrapped[:1] != VERSION:
            raise RootRefused(NOT_THIS_ROOT)
        try:
            return Secret(decrypt(self._wrapping, wrapped[1:], bound_to))
        except BrokenSeal:
            raise RootRefused(NOT_THIS_ROOT) from None
