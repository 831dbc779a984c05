"""Key officers: the people whose signatures move keys, and who alone can open a key backup.

An officer has one private seed of 32 bytes, in a file under a passphrase of their own. Two subkeys come from it:

    Ed25519   signs requests, approvals and acknowledgements (`keys.signing`)
    X25519    opens what is sealed for this officer (libsodium's sealed box)

The manifest holds the public halves. An officer acknowledges the duties of a key custodian once a year, with a
signature (PCI DSS 3.7.8).
"""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from keys.errors import BrokenSeal, OfficerRefused
from keys.passphrase import open_file, seal_file
from keys.primitives import new_key, subkey
from keys.secret import Secret
from keys.signing import open_note, public_key, sign_note, text_of

LABEL = b"keys/officer/v1"
ACKNOWLEDGED_FOR = timedelta(days=365)
CLOCK_TOLERANCE = timedelta(seconds=60)

STATEMENT = (
    "I understand and accept my duties as an officer of this key hierarchy: my key and its passphrase are mine"
    " alone, I approve only what I have checked, and I report at once a key that may be known to others."
)
"""Other words have to be acknowledged anew."""

REMOVED = "was removed as an officer: another one has to act"

NAME = r"^[a-z][a-z0-9._-]{1,30}\Z"  # `$` would also match before a last newline

OfficerName = Annotated[str, msgspec.Meta(pattern=NAME)]
PublicHex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Officer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What everyone may know of an officer."""

    name: OfficerName
    verify: PublicHex
    """Ed25519 public key."""
    receive: PublicHex
    """X25519 public key."""
    added: Moment
    removed: Moment | None = None
    acknowledged: Moment | None = None
    acknowledgement: str = ""
    """The signed note that says so."""


class Acknowledgement(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="acknowledgement", tag_field="note"
):
    """What an officer signs once a year."""

    format: Literal[1]
    officer: OfficerName
    verify: PublicHex
    receive: PublicHex
    acknowledged: Moment
    statement: str


class OfficerKey:
    """The private half of an officer, open in this process's memory."""

    def __init__(self, seed: Secret[bytes]) -> None:
        self._signing = subkey(seed, LABEL, "sign")
        self._receiving = subkey(seed, LABEL, "receive")
        self.verify = public_key(self._signing).hex()
        self.receive = bytes(PrivateKey(self._receiving.reveal()).public_key).hex()

    def sign(self, name: str, text: str) -> str:
        """`text`, which ends in a newline, as a note signed under this name."""
        return sign_note(self._signing, name, text)

    def unseal(self, sealed: bytes) -> Secret[bytes]:
        """What `seal_for` sealed for this officer; else raises `BrokenSeal`."""
        try:
            return Secret(bytes(SealedBox(PrivateKey(self._receiving.reveal())).decrypt(sealed)))
        except CryptoError:  # of a length that no sealed box has, too
            raise BrokenSeal("this is not sealed for the key of this officer") from None


def create_officer_key(path: Path, passphrase: Secret[str]) -> OfficerKey:
    """Write a new officer's key file; raises `PassphraseRefused` or `KeystoreRefused`."""
    seed = new_key()
    seal_file(path, seed, passphrase, LABEL)
    return OfficerKey(seed)


def open_officer_key(path: Path, passphrase: Secret[str]) -> OfficerKey:
    """Open an officer's key file; raises `PassphraseRefused` or `KeystoreRefused`."""
    return OfficerKey(open_file(path, passphrase, LABEL))


def officer_of(name: str, key: OfficerKey, now: datetime) -> Officer:
    """The public half, as the manifest holds it; raises `OfficerRefused` for a name that cannot be one."""
    require_name(name)
    return Officer(name=name, verify=key.verify, receive=key.receive, added=now)


def require_name(name: str) -> None:
    """Raises `OfficerRefused` for a name that cannot be an officer's."""
    if not re.search(NAME, name):
        raise OfficerRefused(
            "an officer's name has 2 to 31 of a-z, 0-9, `.`, `_` and `-`, and begins with a letter: try `ada.l`"
        )


def find_officer(officers: Iterable[Officer], name: str) -> Officer:
    """The officer of this name who was not removed; raises `OfficerRefused`."""
    named = [officer for officer in officers if officer.name == name]
    present = [officer for officer in named if officer.removed is None]
    if len(present) == 1:
        return present[0]
    if present:
        raise OfficerRefused(f"{name} is the name of two officers: remove one")
    if named:
        raise OfficerRefused(f"{name} {REMOVED}")
    shown = name if re.search(NAME, name) else "that"  # a name out of a file may be anything
    raise OfficerRefused(f"no officer is called {shown}: `keys officer list` shows who there is")


def is_same_person(one: Officer, other: Officer) -> bool:
    """Whether two entries are one officer: a name or a key in common."""
    return one.name == other.name or one.verify == other.verify or one.receive == other.receive


def seal_for(officer: Officer, secret: Secret[bytes]) -> bytes:
    """Seal a few bytes for one officer, 48 bytes longer; `OfficerRefused` where the public key is none."""
    try:
        return bytes(SealedBox(PublicKey(bytes.fromhex(officer.receive))).encrypt(secret.reveal()))
    except (CryptoError, ValueError):  # a point of small order is refused when it is used
        raise OfficerRefused(f"the public key of {officer.name} is none: remove and add this officer again") from None


def acknowledge(officer_key: OfficerKey, name: str, now: datetime) -> str:
    """The officer's acknowledgement as a signed note."""
    return officer_key.sign(name, _text(name, officer_key.verify, officer_key.receive, now))


def with_acknowledgement(officer: Officer, note: str, now: datetime) -> Officer:
    """The officer's next entry, with this note in it; raises `OfficerRefused` when it is not good now."""
    try:
        said = msgspec.json.decode(text_of(note), type=Acknowledgement)
    except (msgspec.MsgspecError, UnicodeError):
        raise _not_signed_by(officer) from None
    changed = msgspec.structs.replace(officer, acknowledged=said.acknowledged, acknowledgement=note)
    check_acknowledgement(changed, now)
    return changed


def check_acknowledgement(officer: Officer, now: datetime) -> None:
    """Raises `OfficerRefused` unless the officer has acknowledged the duties within the last 365 days."""
    name, when = officer.name, officer.acknowledged
    if officer.removed is not None:
        raise OfficerRefused(f"{name} {REMOVED}")
    if when is None:
        raise OfficerRefused(f"{name} has not acknowledged the duties yet: `keys officer acknowledge`")
    try:
        text = open_note(bytes.fromhex(officer.verify), name, officer.acknowledgement)
    except BrokenSeal:
        raise _not_signed_by(officer) from None
    if text != _text(name, officer.verify, officer.receive, when):
        raise _not_signed_by(officer)
    if when > now + CLOCK_TOLERANCE:
        raise OfficerRefused(f"the acknowledgement of {name} is dated in the future: set the clocks right")
    ends = when + ACKNOWLEDGED_FOR
    if now >= ends:
        raise OfficerRefused(f"the acknowledgement of {name} ended on {ends:%Y-%m-%d}: `keys officer acknowledge`")


def _not_signed_by(officer: Officer) -> OfficerRefused:
    line = "`keys officer acknowledge` makes a new one"
    return OfficerRefused(f"the acknowledgement is not what {officer.name} signs: {line}")


def _text(name: str, verify: str, receive: str, when: datetime) -> str:
    said = Acknowledgement(1, name, verify, receive, when, STATEMENT)
    return msgspec.json.format(msgspec.json.encode(said, order="sorted"), indent=1).decode() + "\n"
