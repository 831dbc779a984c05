"""Fixtures of the keys package's tests: a moment, a root key that costs nothing to open, a key store, a city."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from keys import passphrase
from keys.keystore import Keystore
from keys.manifest import RootEntry
from keys.primitives import new_key
from keys.root_file import FileRoot
from keys.states import State
from tests.keys.commands import ready, root_uri, run, run_async, settings
from tests.keys.database import city, owner, owner_of_all, postgres

__all__ = ["city", "owner", "owner_of_all", "postgres", "ready", "root_uri", "run", "run_async", "settings"]


@pytest.fixture
def now() -> datetime:
    """A moment with microseconds."""
    return datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)


@pytest.fixture
def root() -> FileRoot:
    """A real root key without its file, so that no test waits for Argon2."""
    return FileRoot(new_key())


@pytest.fixture
def cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its lowest cost, for root keys that do have a file."""
    monkeypatch.setattr(passphrase, "OPERATIONS", 1)
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 8)


@pytest.fixture
def root_entry(now: datetime) -> RootEntry:
    """What the manifest says of the root."""
    return RootEntry(1, "file", "file:/root.key", State.ACTIVE, now)


@pytest.fixture
def secrets_directory(tmp_path: Path) -> Path:
    """Where the processes' own keys come to lie."""
    return tmp_path / "secrets"


@pytest.fixture
def store(tmp_path: Path, root: FileRoot, root_entry: RootEntry, secrets_directory: Path, now: datetime) -> Keystore:
    """A key store of the environment `demo`, initialised."""
    keystore = Keystore(tmp_path / "keystore", "demo")
    keystore.initialise(root, root_entry, secrets_directory, now)
    return keystore
