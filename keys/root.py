"""The root key as everyone else sees it: something that wraps and unwraps short secrets, and never gives itself away.

So an HSM fits behind the same two calls. Whatever else goes wrong inside one, callers see `RootRefused`, or
`RootUnavailable` where trying again may help. Calls come from several threads. `keys.roots` says which kinds exist.
"""

from collections.abc import Callable
from typing import Protocol

from keys.secret import Secret

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
