"""Ids: a prefix that says what it names, and 130 random bits that say nothing.

Never derived from a card, a time or a sequence, and never mistaken for a card number: an id with a run of
thirteen digits is drawn again.
"""

import re
import secrets

ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
CHARACTERS = 26
CHOSEN = (ALPHABET * (256 // len(ALPHABET))).encode()
"""A character for each byte; each character for as many bytes."""
CARD_LIKE = re.compile(r"[0-9]{13}")


def new_id(prefix: str) -> str:
    """`<prefix>_` and 26 base-32 characters."""
    while True:
        text = secrets.token_bytes(CHARACTERS).translate(CHOSEN).decode()
        if not CARD_LIKE.search(text):
            return f"{prefix}_{text}"
