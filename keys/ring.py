"""The ring: every key that a process may use, immutable, as one signed manifest gave it.

What a key may do is looked at when it is used, not when it is loaded: its state (`keys.states`) and its dates.
A rotation makes a new ring; nobody changes one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from keys.envelope import Place, unwrap_dek, wrap_dek
from keys.errors import KeyRefused, UnknownKey
from keys.primitives import new_key
from keys.secret import Secret
from keys.states import ALLOWED, Seen, State, Use

WRAPS_MAX = 2**31
"""Wraps under one generation: half of the 2^32 that SP 800-38D §8.3 allows for random 96-bit nonces."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the ring. `number` is the generation of a KEK, the version of a fingerprint key."""

    number: int
    state: State
    originate_until: datetime
    process_until: datetime
    secret: Secret[bytes]
    id: str = ""
    """How the manifest names it; the same id is the same key in every ring."""

    def require(self, use: Use, now: datetime) -> Secret[bytes]:
        """The key itself, if its state and its dates allow this use now; else raises `KeyRefused`."""
        if use not in ALLOWED[self.state]:
            raise KeyRefused(f"key {self.number} is {self.state}: it may not {use}")
        until = self.originate_until if use is Use.ORIGINATE else self.process_until
        if now >= until:
            raise KeyRefused(f"key {self.number} may not {use} since {until:%Y-%m-%d}: rotate with `keys rotate`")
        return self.secret


@dataclass(frozen=True, slots=True)
class WrappedDek:
    """What the DEK table holds beside (department, record)."""

    generation: int
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Ring:
    """The keys of one environment at one version of the manifest."""

    environment: str
    version: int
    written: datetime
    generations: Mapping[int, Key]
    fingerprints: Mapping[int, Key]
    signing_key: int = 1
    """The number of the key that signed its manifest."""

    @property
    def stands(self) -> Seen:
        """Its manifest, as the database remembers one."""
        return Seen(self.version, self.signing_key)

    @property
    def active(self) -> Key:
        """The generation that wraps what is new."""
        return _active(self.generations, "key-encryption key")

    @property
    def fingerprint(self) -> Key:
        """The fingerprint key that indexes what is new."""
        return _active(self.fingerprints, "fingerprint key")

    @property
    def indexing(self) -> tuple[Key, ...]:
        """The fingerprint keys under which a card is found, oldest first; the last is the one for what is new."""
        older = (key for key in self.fingerprints.values() if key.state in {State.RETIRED, State.COMPROMISED})
        return (*sorted(older, key=lambda key: key.number), self.fingerprint)

    def place(self, department: str, record: str) -> Place:
        """A place in this environment."""
        return Place(self.environment, department, record)

    def new_dek(self, place: Place, now: datetime) -> tuple[Secret[bytes], WrappedDek]:
        """A fresh data key for one record, and its wrap under the active generation."""
        dek = new_key()
        return dek, self.wrap(place, dek, now)

    def wrap(self, place: Place, dek: Secret[bytes], now: datetime) -> WrappedDek:
        """The wrap of an existing data key under the active generation."""
        active = self.active
        kek = active.require(Use.ORIGINATE, now)
        return WrappedDek(active.number, wrap_dek(kek, place, active.number, dek))

    def unwrap(self, place: Place, wrapped: WrappedDek, now: datetime) -> Secret[bytes]:
        """The data key of one record.

        Raises:
            UnknownKey: its generation is not in this ring.
            KeyRefused: its generation is destroyed, or past its date.
            BrokenSeal: it was altered or belongs elsewhere.
        """
        try:
            generation = self.generations[wrapped.generation]
        except KeyError:
            raise UnknownKey(f"generation {wrapped.generation} is not in manifest {self.version}") from None
        kek = generation.require(Use.PROCESS, now)
        return unwrap_dek(kek, place, wrapped.generation, wrapped.wrapped)


def _active(keys: Mapping[int, Key], kind: str) -> Key:
    active = [key for key in keys.values() if key.state is State.ACTIVE]
    if len(active) != 1:
        raise UnknownKey(f"the ring holds {len(active)} active versions of the {kind}; there must be one")
    return active[0]
