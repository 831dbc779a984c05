"""What the services' tests share: a clock moved by hand, a real key store, and a database that knows keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from gateway.errors import Unavailable
from gateway.rules.card import Brands
from gateway.services.keyring import Keyring
from gateway.services.ports import GenerationNotActive
from gateway.services.vault import Vault
from keys.files import write_private
from keys.keystore import MANIFEST, Keystore
from keys.manifest import KeyEntry, sign_manifest
from keys.primitives import commitment, new_key
from keys.ring import State
from keys.root_file import FileRoot

START = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)


@dataclass
class Clock:
    """Implements `ports.Clock`; stands still unless moved."""

    seconds: float = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class KnownKeys:
    """Implements `ports.KeyStore` in memory."""

    version: int = 1
    active: int = 1
    away: bool = False
    looks: int = 0
    reserved: dict[int, int] = field(default_factory=dict)

    async def version_seen(self) -> int:
        self.looks += 1
        self._require_here()
        return self.version

    async def reserve_wraps(self, generation: int, count: int) -> None:
        self._require_here()
        if generation != self.active:
            raise GenerationNotActive
        self.reserved[generation] = self.reserved.get(generation, 0) + count

    def _require_here(self) -> None:
        if self.away:
            raise Unavailable


class Keys:
    """A real key store with its root and the database beside it, and what an administrator does to them."""

    def __init__(self, folder: Path, known: KnownKeys) -> None:
        self.root = FileRoot(new_key())
        self.store = Keystore(folder / "keystore", "demo")
        self.store.initialise(self.root, "file", folder / "secrets", START)
        self.known = known

    @property
    def file(self) -> Path:
        """The manifest."""
        return self.store.directory / MANIFEST

    def rotate(self) -> None:
        """Make the next generation of the key-encryption key; the one before is retired, here and in the database."""
        old = self.store.manifest(self.root)
        last = old.of("kek")[-1]
        key, number = new_key(), last.number + 1
        key_id = f"kek-of-the-tests-{number}"
        wrapped = self.root.wrap(key, self.store._bound_to(key_id, "kek", number))
        write_private(self.store.directory / key_id, wrapped, replace=False)
        made = msgspec.structs.replace(
            last, id=key_id, number=number, state=State.ACTIVE, commitment=commitment(key, key_id).hex()
        )
        retired = msgspec.structs.replace(last, state=State.RETIRED)
        others = [each for each in old.keys if each.id != last.id]
        self._publish(old.version + 1, [*others, retired, made])
        self.known.version, self.known.active = old.version + 1, number

    def _publish(self, version: int, entries: Sequence[KeyEntry]) -> None:
        manifest = msgspec.structs.replace(self.store.manifest(self.root), version=version, keys=tuple(entries))
        signed = sign_manifest(manifest, self.store._signing_key(self.root))
        write_private(self.file, signed, replace=True)


@pytest.fixture
def clock() -> Clock:
    """A clock at its start."""
    return Clock()


@pytest.fixture
def known() -> KnownKeys:
    """What the database knows of keys."""
    return KnownKeys()


@pytest.fixture
def keys(tmp_path: Path, known: KnownKeys) -> Keys:
    """A key store of one generation."""
    return Keys(tmp_path, known)


@pytest.fixture
def keyring(keys: Keys, known: KnownKeys, clock: Clock) -> Keyring:
    """The ring of a process."""
    return Keyring(keys.store, keys.root, known, clock)


@pytest.fixture(scope="session")
def brands() -> Brands:
    """The table of issuers."""
    return Brands.load()


@pytest.fixture
def vault(keyring: Keyring, known: KnownKeys, clock: Clock, brands: Brands) -> Vault:
    """What seals with that ring."""
    return Vault(keyring, known, clock, brands)
