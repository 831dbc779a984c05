"""What there is: every key with algorithm, strength, dates, state, place and what depends on it; and what is due.

No secret byte. PCI DSS 3.6.1.1 and 12.3.3 ask for it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from keys.deks import DekTable
from keys.manifest import KEYSTORE, KeyEntry, Manifest, Purpose
from keys.officers import ACKNOWLEDGED_FOR
from keys.ring import WRAPS_MAX
from keys.states import State

ALGORITHMS: Mapping[Purpose, str] = {
    "kek": "AES-256-GCM",
    "fingerprint": "HMAC-SHA-256",
    "hpke": "X25519 (HPKE)",
    "manifest-signing": "Ed25519",
    "audit-mac": "HMAC-SHA-256",
    "audit-head": "Ed25519",
    "api-digest": "HMAC-SHA-256",
    "staff-sealing": "AES-256-GCM",
    "close-pack": "Ed25519",
}
STRENGTH_BITS: Mapping[str, int] = {"AES-256-GCM": 256, "HMAC-SHA-256": 256}
CURVE25519_BITS = 128

WARN_DAYS = (30, 7, 1)
LIVING = frozenset({State.PENDING, State.ACTIVE, State.RETIRED, State.COMPROMISED})
REMEDY: Mapping[str, str] = {
    "kek": "`keys rotate`",
    "fingerprint": "`keys rotate-fingerprint`",
}


@dataclass(frozen=True, slots=True)
class Dependents:
    """How many things each key protects, as the database counts them."""

    generations: Mapping[int, int]
    fingerprints: Mapping[int, int]
    api_keys: Mapping[int, int]
    wraps_reserved: Mapping[int, int]

    @classmethod
    async def count(cls, table: DekTable) -> "Dependents":
        """Now."""
        return cls(await table.counts(), await table.indexed(), await table.api_keys(), await table.wraps_reserved())

    def of(self, key: KeyEntry) -> int | None:
        """How many depend on a key; None where nobody counts."""
        counted = {"kek": self.generations, "fingerprint": self.fingerprints, "api-digest": self.api_keys}
        return counted[key.purpose].get(key.number, 0) if key.purpose in counted else None


def inventory(manifest: Manifest, dependents: Dependents) -> dict[str, Any]:
    """The whole inventory, ready for JSON."""
    root = manifest.root
    return {
        "environment": manifest.environment,
        "manifest": manifest.version,
        "written": manifest.written.isoformat(),
        "roots": [_root(entry) for entry in manifest.roots],
        "keys": [
            {
                "title": key.title,
                **{name: value for name, value in _fields(key).items() if name != "commitment"},
                "algorithm": ALGORITHMS[key.purpose],
                "strength_bits": STRENGTH_BITS.get(ALGORITHMS[key.purpose], CURVE25519_BITS),
                "location": f"key store, wrapped by root {root.number}"
                if key.holder == KEYSTORE
                else "a file of its own",
                "records": dependents.of(key),
            }
            for key in manifest.keys
        ],
        "officers": [
            {"name": o.name, "added": _iso(o.added), "removed": _iso(o.removed), "acknowledged": _iso(o.acknowledged)}
            for o in manifest.officers
        ],
        "backups": [_fields(backup) for backup in manifest.backups],
    }


def due(manifest: Manifest, dependents: Dependents, now: datetime) -> Iterator[str]:
    """What somebody should do, in plain words, most urgent first."""
    yield from _urgent(manifest, dependents)
    for key in manifest.keys:
        if key.state is State.ACTIVE:
            remedy = REMEDY.get(key.purpose, f"`keys rotate --purpose {key.purpose}`")
            yield from _dated(f"{key.title} protects nothing new", key.originate_until, now, remedy)
        elif key.state in LIVING:
            yield from _dated(f"{key.title} opens nothing any more", key.process_until, now, "`keys rewrap`")
    for officer in manifest.officers:
        if officer.removed is None and officer.acknowledged is not None:
            ends = officer.acknowledged + ACKNOWLEDGED_FOR
            yield from _dated(f"{officer.name}'s acknowledgement ends", ends, now, "`keys officer acknowledge`")
    for number, reserved in dependents.wraps_reserved.items():
        if reserved > WRAPS_MAX // 2:
            yield f"generation {number} has wrapped {reserved:,} of {WRAPS_MAX:,} times: `keys rotate`"


def _urgent(manifest: Manifest, dependents: Dependents) -> Iterator[str]:
    yield from _roots_due(manifest)
    yield from _taken_along(manifest)
    yield from _not_backed_up(manifest)
    for key in manifest.of("kek"):
        count = dependents.of(key) or 0
        if key.state is State.COMPROMISED:
            yield (
                f"{key.title} is compromised and wraps {_records(count)}: `gateway reseal` until it finds nothing,"
                f" then `keys destroy {key.number}`."
            )
        elif key.state is State.RETIRED and count:
            yield f"{key.title} is retired and still wraps {_records(count)}: `keys rewrap`."
        elif key.state is State.RETIRED:
            yield f"{key.title} is retired and wraps nothing: `keys destroy {key.number}` once its backups are gone."
    for key in manifest.of("fingerprint"):
        if key.state is State.RETIRED:
            yield (
                f"{key.title} is retired: `gateway reseal`, then `keys destroy {key.number} --purpose fingerprint`"
                " once its backups are gone."
            )


def _not_backed_up(manifest: Manifest) -> Iterator[str]:
    """A copy under a root that was let go opens nothing, for that root is to be destroyed."""
    number = manifest.root.number
    copies = [backup for backup in manifest.backups if backup.forgotten is None and number in backup.roots]
    for key in manifest.of("kek"):
        if key.state is not State.DESTROYED and not any(copy.holds(key) for copy in copies):
            yield f"{key.title} is in no key backup that root {number} opens: `keys backup --to FILE --for OFFICER`."


def _taken_along(manifest: Manifest) -> Iterator[str]:
    """Whoever left with a share may have seen, with others, what that root wrapped: until the next rotation."""
    for root in manifest.roots:
        gone = [person.name for person in root.custodians if person.left is not None and person.left <= root.since]
        if gone and root.state is State.DESTROYED and (active := manifest.active("kek")).created < root.since:
            yield (
                f"{active.title} was wrapped by root {root.number}, of which {', '.join(gone)} took a share along:"
                " `keys rotate`, then `keys rewrap`."
            )


def _roots_due(manifest: Manifest) -> Iterator[str]:
    standing = [root for root in manifest.roots if root.state is not State.DESTROYED]
    if len(standing) > 1:
        yield (
            "The root is being replaced: restart every process with the new one, then"
            " `keys ceremony replace --finish`."
        )
    for root in standing:
        for custodian in root.custodians:
            if custodian.left is not None:
                yield (
                    f"{custodian.name} left on {custodian.left:%Y-%m-%d} with a share of root {root.number}, of which"
                    f" {root.threshold} open it: `keys ceremony replace`, then `keys rotate` and `keys rewrap`."
                )


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"


def _dated(what: str, date: datetime, now: datetime, remedy: str) -> Iterator[str]:
    if date <= now:
        yield f"{what} since {date:%Y-%m-%d}: {remedy} now."
    elif date <= now + timedelta(days=max(WARN_DAYS)):
        days = (date - now).days
        within = min((warn for warn in WARN_DAYS if days <= warn), default=max(WARN_DAYS))
        urgency = {30: "", 7: " this week", 1: " today"}[within]
        yield f"{what} after {date:%Y-%m-%d}, in {days} day{'' if days == 1 else 's'}: {remedy}{urgency}."


def _root(entry: Any) -> dict[str, Any]:
    return {**_fields(entry), "custodians": [_fields(custodian) for custodian in entry.custodians]}


def _fields(entry: Any) -> dict[str, Any]:
    return {name: _iso(getattr(entry, name)) for name in entry.__struct_fields__}


def _iso(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
