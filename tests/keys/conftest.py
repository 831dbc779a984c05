"""Fixtures of the keys package's tests: a moment, a root key that costs nothing to open, a key store."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from keys.keystore import Keystore
from keys.primitives import new_key
from keys.root_file import FileRoot


@pytest.fixture
def now() -> datetime:
    """A moment with microseconds."""
    return datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)


@pytest.fixture
def root() -> FileRoot:
    """A real root key without its file, so that no test waits for Argon2."""
    return FileRoot(new_key())


@pytest.fixture
def secrets_directory(tmp_path: Path) -> Path:
    """Where the processes' own keys come to lie."""
    return tmp_path / "secrets"


@pytest.fixture
def store(tmp_path: Path, root: FileRoot, secrets_directory: Path, now: datetime) -> Keystore:
    """A key store of the environment `demo`, initialised."""
    keystore = Keystore(tmp_path / "keystore", "demo")
    keystore.initialise(root, "file", secrets_directory, now)
    return keystore
