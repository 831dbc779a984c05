"""The keys of processes that cannot reach the root: a plain file each, mode 0600, readable by that process's user.

    <secrets>/<process>/<purpose>-<number>.key

Such a process signs with the newest and checks with them all; it looks at its folder every second, so a rotation
reaches it without a restart.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from keys.errors import KeystoreRefused
from keys.files import read_private, write_private
from keys.manifest import Purpose
from keys.primitives import KEY_BYTES, new_key
from keys.secret import Secret

HOLDERS: tuple[tuple[str, Purpose], ...] = (
    ("api", "audit-mac"),
    ("admin", "audit-mac"),
    ("worker", "audit-mac"),
    ("reseal", "audit-mac"),
    ("keys", "audit-mac"),
    ("owner", "audit-mac"),
    ("api", "api-digest"),
    ("admin", "staff-sealing"),
    ("admin", "close-pack"),
    ("worker", "audit-head"),
)
"""Who has which. MAC keys are one a process, so that none but the sealer could forge another's rows."""


def process_key_path(secrets: Path, process: str, purpose: Purpose, number: int) -> Path:
    """Where a process has one of its keys."""
    return secrets / process / f"{purpose}-{number}.key"


def read_process_keys(secrets: Path, process: str, purpose: Purpose) -> Mapping[int, Secret[bytes]]:
    """All its keys of one purpose, by number, oldest first; raises `KeystoreRefused`."""
    name = re.compile(rf"{purpose}-([1-9][0-9]*)\.key")
    try:
        found = [match for path in (secrets / process).iterdir() if (match := name.fullmatch(path.name))]
    except OSError:
        found = []
    if not found:
        raise KeystoreRefused(
            f"{secrets / process} holds no {purpose} key: `keys init` makes it; in a key store of an earlier"
            f" release, `keys rotate --purpose {purpose}` does"
        )
    numbers = sorted(int(match[1]) for match in found)
    return {number: _read(process_key_path(secrets, process, purpose, number)) for number in numbers}


def newest(keys: Mapping[int, Secret[bytes]]) -> tuple[int, Secret[bytes]]:
    """The one to sign with."""
    number = max(keys)
    return number, keys[number]


def make_process_key(secrets: Path, process: str, purpose: Purpose, number: int) -> Secret[bytes]:
    """Make one, or adopt what an interrupted run has left: its process may be using it already."""
    path = process_key_path(secrets, process, purpose, number)
    if not path.exists():
        write_private(path, new_key().reveal(), replace=False)
    return _read(path)


def _read(path: Path) -> Secret[bytes]:
    raw = read_private(path)
    if len(raw) != KEY_BYTES:
        raise KeystoreRefused(f"{path} is not a key of {KEY_BYTES} bytes: restore it from its backup")
    return Secret(raw)
