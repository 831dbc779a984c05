"""What the services' tests share: a clock moved by hand, a real key store, and a database that knows keys."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.errors import Unavailable
from gateway.rules.card import Brands
from gateway.services.keyring import Keyring
from gateway.services.ports import KeysMoved
from gateway.services.vault import Vault
from keys.audit import AuditPen, AuditRow
from keys.keystore import MANIFEST, Keystore, OpenKeystore
from keys.manifest import Act, Manifest, Purpose, RootEntry
from keys.primitives import new_key
from keys.ring import Ring
from keys.root_file import FileRoot
from keys.states import Seen, State

PEN = AuditPen("api", {1: new_key()})
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
    signing_key: int = 1
    active: int = 1
    away: bool = False
    deaf: bool = False
    looks: int = 0
    reserved: dict[int, int] = field(default_factory=dict)
    audited: list[AuditRow] = field(default_factory=list)

    async def manifest_seen(self) -> Seen:
        self.looks += 1
        self._require_here()
        return Seen(self.version, self.signing_key)

    async def reserve_wraps(self, generation: int, count: int) -> None:
        self._require_here()
        if generation != self.active:
            raise KeysMoved
        self.reserved[generation] = self.reserved.get(generation, 0) + count

    async def record(self, audit: AuditRow) -> None:
        if self.deaf:
            raise Unavailable
        self._require_here()
        self.audited.append(audit)

    def _require_here(self) -> None:
        if self.away:
            raise Unavailable


class Keys:
    """A real key store with its root and the database beside it, and what an administrator does to them."""

    def __init__(self, folder: Path, known: KnownKeys) -> None:
        self.root = FileRoot(new_key())
        self.store = Keystore(folder / "keystore", "demo")
        entry = RootEntry(1, "file", "file:/root.key", State.ACTIVE, START)
        self.store.initialise(self.root, entry, folder / "secrets", START)
        self.known = known

    @property
    def file(self) -> Path:
        """The manifest."""
        return self.store.directory / MANIFEST

    def ring(self) -> Ring:
        """All keys as they are now."""
        return self.store.open(self.root).ring()

    def rotate(self) -> None:
        """The next generation of the key-encryption key; the one before is retired, here and in the database."""
        self.known.active = self._rotate("kek")

    def rotate_fingerprint(self) -> None:
        """The next version of the fingerprint key; the one before is retired."""
        self._rotate("fingerprint")

    def compromise(self) -> None:
        """The next generation of the key-encryption key; the one before is compromised, here and in the database."""
        self.known.active = self._rotate("kek", State.COMPROMISED)

    def destroy_fingerprint(self) -> None:
        """The version before the active one is gone."""
        keys = self.store.open(self.root)
        last = keys.manifest.of("fingerprint")[-2]
        self._publish(keys, keys.manifest.moved(last, State.DESTROYED, START))

    def _rotate(self, purpose: Purpose, old_is: State = State.RETIRED) -> int:
        keys = self.store.open(self.root)
        made = keys.make_key(purpose, State.ACTIVE, START)
        old = keys.manifest.active(purpose)
        self._publish(keys, keys.manifest.with_key(made).moved(old, old_is, START))
        return made.number

    def _publish(self, keys: OpenKeystore, following: Manifest) -> None:
        self.known.version = keys.publish(following, Act("test", "test"), START).manifest.version


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


def keyring_of(keys: Keys, known: KnownKeys, clock: Clock) -> Keyring:
    """A ring that follows these."""
    return Keyring(keys.store, keys.root, known, clock, PEN, "api")


@pytest.fixture
def keyring(keys: Keys, known: KnownKeys, clock: Clock) -> Keyring:
    """The ring of a process."""
    return keyring_of(keys, known, clock)


@pytest.fixture(scope="session")
def brands() -> Brands:
    """The table of issuers."""
    return Brands.load()


@pytest.fixture
def vault(keyring: Keyring, known: KnownKeys, clock: Clock, brands: Brands) -> Vault:
    """What seals with that ring."""
    return Vault(keyring, known, clock, brands)
