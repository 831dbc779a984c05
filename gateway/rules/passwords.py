"""Passwords of staff: which are good enough, and what is kept of them.

Kept is an Argon2id string (RFC 9106) that carries its own cost; who signs in with an older cost gets a new string.
A password is long rather than ornate: nobody is told to use marks or capitals, but what lists of guessed passwords
hold is refused, and PCI DSS 8.3.6 wants a letter and a digit. Before anything else a password is brought to Unicode's
form NFKC (NIST SP 800-63B), so that it is the same from every keyboard; NFC, the form of RFC 8265, would keep a
full-width letter apart from its plain self.
"""

import hashlib
import secrets
import unicodedata
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from nacl.exceptions import InvalidkeyError
from nacl.pwhash import argon2id

from gateway.errors import PasswordRefused, SignInRefused
from gateway.rules.ids import ALPHABET
from keys.errors import SettingsRefused
from keys.secret import Secret

CHARACTERS_MIN = 15
"""NIST SP 800-63B-4; PCI DSS 8.3.6 asks for twelve."""
CHARACTERS_MAX = 200
DIFFERENT_MIN = 5
NEW_GROUPS, NEW_GROUP = 5, 5
"""A made password: 25 characters of five bits each."""

ENDINGS = "0123456789!?.,*#$ _-"
"""What people put behind a password that was refused; lists are asked without each of them too."""


class Cost(NamedTuple):
    """What one verification takes: passes over so much memory."""

    operations: int
    memory_kib: int


COST = Cost(2, 64 * 1024)
"""About 0.1 s of one core. OWASP's least, 2 passes over 19 MiB, is what a guesser with graphics cards likes."""


def hash_password(password: Secret[str], cost: Cost = COST) -> str:
    """The string to keep: `$argon2id$v=19$m=…,t=…,p=1$<salt>$<hash>`."""
    kept: bytes = argon2id.str(_bytes(password), opslimit=cost.operations, memlimit=cost.memory_kib * 1024)
    return kept.rstrip(b"\0").decode("ascii")


def require_password(kept: str, password: Secret[str]) -> None:
    """Raises `SignInRefused` unless it is the password of which the string was kept."""
    try:
        argon2id.verify(kept.encode("ascii"), _bytes(password))
    except InvalidkeyError:
        raise SignInRefused from None


def is_current(kept: str, cost: Cost = COST) -> bool:
    """Whether a kept string has today's cost."""
    return kept.startswith(f"$argon2id$v=19$m={cost.memory_kib},t={cost.operations},p=1$")


def new_password() -> Secret[str]:
    """A password for the first sign-in: 125 random bits, in groups that can be read out."""
    while True:
        groups = ("".join(secrets.choice(ALPHABET) for _ in range(NEW_GROUP)) for _ in range(NEW_GROUPS))
        made = "-".join(groups)
        if any(letter.isdigit() for letter in made):
            return Secret(made)


def require_good_password(password: Secret[str], username: str, breached: Path | None = None) -> None:
    """Refuse a password that would be guessed.

    `breached` names a file of passwords that are known to others, one a line, in clear or as SHA-1 in hex with or
    without `:count`; it is read through each time (about half a second for a million), beside the list that comes
    along.

    Raises:
        PasswordRefused: too short or long, of too few characters, with the username inside, or in a list.
        SettingsRefused: the file cannot be read.
    """
    text = _normal(password)
    if not CHARACTERS_MIN <= len(text) <= CHARACTERS_MAX:
        raise PasswordRefused(f"A password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters: take a few words.")
    if not (any(map(str.isalpha, text)) and any(map(str.isdigit, text))):
        raise PasswordRefused("A password has at least one letter and one digit.")
    if len(set(text)) < DIFFERENT_MIN:
        raise PasswordRefused(f"A password has at least {DIFFERENT_MIN} different characters.")
    if username.casefold() in text.casefold():
        raise PasswordRefused("The username must not be part of the password.")
    _require_unlisted(text, breached)


def require_readable(breached: Path | None) -> None:
    """Raises `SettingsRefused` for a file of passwords that cannot be read."""
    if breached is not None:
        next(_lines_of(breached), None)


def _require_unlisted(text: str, breached: Path | None) -> None:
    exact, folded = _encoded(text), text.casefold()
    digest = hashlib.sha1(exact, usedforsecurity=False).hexdigest().encode()
    guessed = {exact.lower()}
    for end in range(len(folded), len(folded.rstrip(ENDINGS)) - 1, -1):
        guessed.add(_encoded(folded[:end]))
    for line in _lines(breached):
        if line in guessed or line.partition(b":")[0] == digest:
            raise PasswordRefused("This password is in lists that guessers use: take another.")


def _lines(breached: Path | None) -> Iterator[bytes]:
    with files("gateway.rules").joinpath("guessed.txt").open("rb") as shipped:
        yield from (line.strip().lower() for line in shipped)
    if breached is not None:
        yield from _lines_of(breached)


def _lines_of(breached: Path) -> Iterator[bytes]:
    try:
        with breached.open("rb") as file:
            yield from (line.strip().lower() for line in file)
    except OSError as error:
        raise SettingsRefused(
            f"admin.breached_passwords: {breached} cannot be read ({error.strerror}): restore or unset it"
        ) from None


def _normal(password: Secret[str]) -> str:
    return unicodedata.normalize("NFKC", password.reveal())


def _bytes(password: Secret[str]) -> bytes:
    return _encoded(_normal(password))


def _encoded(text: str) -> bytes:
    # A lone surrogate is encoded like any other character: an error would quote the password.
    return text.encode("utf-8", "surrogatepass")
