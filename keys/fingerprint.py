"""Keyed fingerprints of a card number: equal for equal cards, useless without the key.

A card number has so few unknown digits that an unkeyed hash of it is as good as the number (10^6 guesses take
a second). So each is HMAC-SHA-256 under a key that no database holds, and that key is derived a department
and a purpose: two departments, or an index and an idempotency row, cannot be joined.
"""

from keys.primitives import context, mac, subkey
from keys.secret import Secret


def card_index(key: Secret[bytes], environment: str, department: str, number: Secret[str]) -> bytes:
    """The value by which a department finds the same card again; 32 bytes."""
    return mac(_for(key, "index", environment, department), number.reveal().encode())


def card_part(key: Secret[bytes], environment: str, department: str, number: Secret[str], expiry: str) -> bytes:
    """The card's part in comparing two requests of one idempotency key; 32 bytes."""
    return mac(_for(key, "idempotency", environment, department), context(number.reveal(), expiry))


def _for(key: Secret[bytes], purpose: str, environment: str, department: str) -> Secret[bytes]:
    return subkey(key, "fingerprint/v1", purpose, environment, department)
