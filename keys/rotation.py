"""Changes of the key store, in an order that a power cut may interrupt anywhere and a fleet follows without a pause.

    1  the mirror in the database allows the new key        writers with the old ring still work
    2  the manifest is published                            writers take up the new ring within two seconds
    3  the mirror forbids the old key                       whoever still uses it is refused, looks again, and goes on
    4  every transaction older than that has ended          nothing can be written under the old key any more
    5  version and audit row are committed                  the act is complete

Steps 3 to 5 follow from the manifest alone, so whichever command comes next finishes an act that broke off after 2
(`begin`); one that broke off before it has changed nothing. None of this opens a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from keys.audit import CITY, AuditEvent, AuditPen, AuditRow, Outcome
from keys.deks import DekTable
from keys.errors import KeyRefused
from keys.files import remove_drafts, remove_tree
from keys.keystore import ACTS, CEREMONIES, RESTORING, OpenKeystore, new_entry
from keys.manifest import KEYSTORE, Act, KeyEntry, Manifest, Purpose, RootEntry, require_current
from keys.primitives import new_key
from keys.process_keys import HOLDERS, make_process_key
from keys.root import RootKey
from keys.states import Seen, State, leads_to, require_move

ALONE = "keys"
"""The actor of what one person may do."""
CATCH_UP = "catch-up"
"""The act of going on from a key store that is older than the database."""
NOTHING_SEEN = Seen()


@dataclass(frozen=True, slots=True)
class Approval:
    """Who stands behind an act for two: the officers' request that was approved, or nobody."""

    actor: str = ALONE
    request: str = ""
    despite: bool = False
    """Whether the officers said in writing that the recovery window and the backups do not matter."""


@dataclass(slots=True)
class Rotation:
    """One command's hold on the key store. Made by `begin`."""

    keys: OpenKeystore
    table: DekTable
    pen: AuditPen
    secrets: Path
    finished: Act | None = None
    """The interrupted act that `begin` completed."""

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is now."""
        return self.keys.manifest

    async def begin(self, now: datetime) -> "Rotation":
        """Take the lock, refuse an older manifest, finish what an interrupted command left."""
        await self.table.lock()
        # Anew: between the opening and the lock another command may have published, and ended or died.
        self.keys = self.keys.store.open(self.keys.root)
        seen = await self.table.seen()
        require_current(self.manifest.stands, self.manifest.written, seen, now)
        self._tidy_up()
        for path in self.keys.foreign():
            # In this order, so that none goes without a trace.
            await self.table.record(self._row("key.foreign", Outcome.REFUSED, path.name, now))
            self.keys.set_aside(path)
        if self.manifest.version > seen.version:
            await self._complete(now)
            self.finished = self.manifest.act
        return self

    async def prepare(self, now: datetime) -> KeyEntry:
        """A pending generation: it exists, can be backed up, and protects nothing yet."""
        for key in self.manifest.of("kek"):
            if key.state is State.PENDING:
                return key
        made = self.keys.make_key("kek", State.PENDING, now)
        await self._change(self.manifest.with_key(made), Act("prepare", made.id), now)
        return made

    async def rotate(self, now: datetime) -> KeyEntry:
        """A new generation protects what is new; the old one is retired."""
        old = self.manifest.active("kek")
        new, following = self._successor(now)
        await self._change(following.moved(old, State.RETIRED, now), Act("rotate", new.id), now)
        return new

    async def retire(self, number: int, now: datetime) -> KeyEntry:
        """Take a generation out of use for what is new; the active one only where a prepared one takes over."""
        key = self.manifest.key("kek", number)
        if key.state is State.RETIRED:
            return key
        if key.state is State.ACTIVE and any(k.state is State.PENDING for k in self.manifest.of("kek")):
            await self.rotate(now)
            return self.manifest.key("kek", number)
        if key.state is State.ACTIVE:
            raise KeyRefused(f"{key.title} is the active one: `keys rotate` makes its successor and retires it")
        raise KeyRefused(f"{key.title} is {key.state}: only the active generation can be retired")

    async def rotate_fingerprint(self, now: datetime) -> KeyEntry:
        """A new version of the card index; `gateway reseal` builds it beside the old one."""
        versions = self.manifest.of("fingerprint")
        if any(key.state is State.RETIRED for key in versions):
            raise KeyRefused(
                "an older fingerprint key still stands: run `gateway reseal`, then `keys destroy` it, before the next"
            )
        old, new = self.manifest.active("fingerprint"), self.keys.make_key("fingerprint", State.ACTIVE, now)
        following = self.manifest.with_key(new).moved(old, State.RETIRED, now)
        await self._change(following, Act("rotate-fingerprint", new.id), now)
        return new

    async def renew(self, purpose: Purpose, holders: Sequence[str], now: datetime) -> Sequence[KeyEntry]:
        """New keys of another purpose; the old ones are kept as long as something may still need them.

        A key store of an earlier release may lack a purpose of this one: then these are its first keys.
        """
        act = Act("renew", f"{purpose} of {', '.join(holders)}")
        if purpose == "manifest-signing":
            self.keys.require_one_root()
            return [await self._sign_anew(self.manifest, act, now)]
        following, made = self.manifest, []
        for holder in holders:
            old = following.of(purpose, holder)
            if holder == KEYSTORE:
                new = self.keys.make_key(purpose, State.ACTIVE, now)
            else:
                number = following.next_number(purpose, holder)
                key = make_process_key(self.secrets, holder, purpose, number)
                new = new_entry(key, purpose, number, now, holder=holder)
            following = following.with_key(new)
            for entry in old:
                if entry.state is State.ACTIVE:
                    following = following.moved(entry, State.RETIRED, now)
            made.append(new)
        await self._change(following, act, now)
        return made

    async def compromise(self, number: int, approval: Approval, now: datetime) -> KeyEntry:
        """Stop a generation's use for what is new, at once; where it was the active one, another takes over."""
        key, following = self.manifest.key("kek", number), self.manifest
        if key.state is State.ACTIVE:
            # Never a prepared one: who could take this key may have taken that.
            following = following.with_key(self.keys.make_key("kek", State.ACTIVE, now))
        following = following.moved(key, State.COMPROMISED, now)
        await self._change(following, Act("compromise", key.id, approval.actor, approval.request), now)
        return self.manifest.key("kek", number)

    async def destroy(
        self, purpose: Purpose, number: int, approval: Approval, recovery: timedelta, now: datetime
    ) -> KeyEntry:
        """Destroy a key on which nothing depends any more. Its entry stays, as evidence."""
        key = self.manifest.key(purpose, number)
        following = self.manifest.moved(key, State.DESTROYED, now)
        await self.require_unused(key)
        if not approval.despite:
            await self.require_unrecoverable(key, recovery, now)
        await self._change(following, Act("destroy", key.id, approval.actor, approval.request), now)
        self.keys.discard(key.id)
        return self.manifest.key(purpose, number)

    async def add_root(self, root: RootKey, entry: RootEntry, approval: Approval, now: datetime) -> None:
        """Wrap every key under another root as well; processes with either root follow. No record is touched."""
        self.keys.copy_under(root, entry.number)
        old = self.manifest.root
        require_move(f"root {old.number}", old.state, State.RETIRED)
        retired = msgspec.structs.replace(old, state=State.RETIRED, since=now)
        roots = (*(retired if r.number == old.number else r for r in self.manifest.roots), entry)
        following = msgspec.structs.replace(self.manifest, roots=roots)
        await self._change(
            following, Act("replace-root", f"root-{entry.number}", approval.actor, approval.request), now
        )

    async def drop_old_roots(self, now: datetime) -> Sequence[int]:
        """The second half: keys are wrapped under the new root alone, and the manifest has a new signing key."""
        active = self.manifest.root
        old = [r.number for r in self.manifest.roots if r.state is State.RETIRED]
        if not old:
            raise KeyRefused("no root is being replaced: nothing to finish")
        if self.keys.root_number != active.number:
            raise KeyRefused(
                f"keys.root still names the old root: set it to root {active.number} ({active.location}), restart"
                " every process, and run this again"
            )
        roots = tuple(
            msgspec.structs.replace(r, state=State.DESTROYED, since=now) if r.number in old else r
            for r in self.manifest.roots
        )
        following = msgspec.structs.replace(self.manifest, roots=roots)
        await self._sign_anew(following, Act("drop-root", f"root-{active.number}"), now)
        for path in self.keys.foreign():
            self.keys.set_aside(path)
        return old

    async def settle(self, now: datetime) -> None:
        """Bring the database's mirror up to the manifest: after a restore it may know of less."""
        await self.table.mirror(self.manifest)
        row = self._row("keys.restore", Outcome.DONE, f"manifest-{self.manifest.version}", now)
        await self.table.settle(self.manifest.stands, row)

    async def catch_up(self, officer: str, now: datetime) -> None:
        """Go on from a key store that is older than the database, where it lacks no key that the database needs.

        The manifest gets a version above any that was seen, and a new signing key where the database knows of one.
        """
        await self.table.lock()
        seen, following = await self.table.seen(), caught_up(self.manifest, await self.table.mirrored(), now)
        act = Act(CATCH_UP, f"manifest-{self.manifest.version}", officer)
        if self.manifest.stands.signing_key < seen.signing_key:
            self.keys.require_one_root()
            await self._sign_anew(following, act, now, above=seen)
        else:
            self.keys = self.keys.publish(following, act, now, above=seen.version)
            await self._complete(now)
        self._tidy_up()

    async def change(self, following: Manifest, act: Act, now: datetime) -> None:
        """Any other change of the manifest: officers, roots, backups."""
        await self._change(following, act, now)

    async def require_unused(self, key: KeyEntry) -> None:
        """Refuse while something depends on a key."""
        await self.table.await_writers()
        for count, what, remedy in await self._dependents(key):
            if count:
                raise KeyRefused(f"{key.title} cannot be destroyed: {count:,} {what}; {remedy}")

    async def require_unrecoverable(self, key: KeyEntry, recovery: timedelta, now: datetime) -> None:
        """Refuse while a backup of the database could still need a key, or one of the key store still holds it.

        The wraps of a generation are counted, so its time runs from when the last one left; that of another key runs
        from when it was retired.
        """
        left = await self.table.emptied_at(key.number) if key.purpose == "kek" else key.since
        if left is not None and now < left + recovery:
            raise KeyRefused(
                f"{key.title} may be needed to restore a database backup until {left + recovery:%Y-%m-%d}:"
                " wait, or let two officers say with --despite-backups that it may go"
            )
        for backup in self.manifest.backups:
            if backup.forgotten is None and backup.holds(key):
                raise KeyRefused(
                    f"{key.title} lies in key backup {backup.id}: destroy that copy and say so with"
                    f" `keys backup --forget {backup.id}`, or let two officers say --despite-backups"
                )

    async def _dependents(self, key: KeyEntry) -> Sequence[tuple[int, str, str]]:
        if key.purpose == "kek":
            wrapped = (await self.table.counts()).get(key.number, 0)
            exposed = await self.table.exposed([key.number]) if key.state is State.COMPROMISED else 0
            return (
                (exposed, "records still have a data key that it could tell", "run `gateway reseal`"),
                (wrapped, "records depend on it", "run `keys rewrap`"),
            )
        if key.purpose == "fingerprint":
            newer = self.manifest.active("fingerprint").number
            parts = (await self.table.card_parts()).get(key.number, 0)
            missing = await self.table.not_indexed_anew(key.number, newer)
            return ((missing + parts, "cards are known by it alone", "run `gateway reseal`"),)
        if key.purpose != "hpke":
            raise KeyRefused(f"{key.title} is not destroyed by hand: what it signed must stay checkable")
        return ()

    def _tidy_up(self) -> None:
        """Wipe what commands that were killed have left: drafts, a copy under trial, destroyed keys.

        Nobody else writes now, but for a ceremony's transcript.
        """
        store = self.keys.store.directory
        remove_tree(store / RESTORING)
        for key in self.manifest.keys:
            if key.state is State.DESTROYED:
                self.keys.discard(key.id)
        for directory in (store, store / ACTS, store / CEREMONIES, *store.glob("root-*")):
            remove_drafts(directory, "*")
        for process, purpose in HOLDERS:
            remove_drafts(self.secrets / process, f"{purpose}-*.key")

    def _successor(self, now: datetime) -> tuple[KeyEntry, Manifest]:
        """The generation that becomes active: the prepared one where there is one."""
        for key in self.manifest.of("kek"):
            if key.state is State.PENDING:
                return key, self.manifest.moved(key, State.ACTIVE, now)
        made = self.keys.make_key("kek", State.ACTIVE, now)
        return made, self.manifest.with_key(made)

    async def _sign_anew(self, following: Manifest, act: Act, now: datetime, above: Seen = NOTHING_SEEN) -> KeyEntry:
        # The old signing key goes at once: with it, yesterday's manifest could be signed anew.
        old, seed = self.manifest.active("manifest-signing"), new_key()
        number = max(self.manifest.next_number("manifest-signing"), above.signing_key + 1)
        new = new_entry(seed, "manifest-signing", number, now)
        self.keys.store.add_key(self.keys.root, self.keys.root_number, seed, new)
        following = following.with_key(new).moved(old, State.RETIRED, now)
        following = following.moved(following.key("manifest-signing", old.number), State.DESTROYED, now)
        self.keys = self.keys.publish(following, act, now, signing=seed, above=above.version)
        self.keys.discard(old.id)
        await self._complete(now)
        return new

    async def _change(self, following: Manifest, act: Act, now: datetime) -> None:
        await self.table.announce(following)
        self.keys = self.keys.publish(following, act, now)
        await self._complete(now)

    async def _complete(self, now: datetime) -> None:
        await self.table.mirror(self.manifest)
        await self.table.await_writers()
        act = self.manifest.act
        row = self._row(f"keys.{act.name}", Outcome.DONE, act.subject, now, act.actor, act.request)
        await self.table.settle(self.manifest.stands, row)

    def _row(
        self, event: str, outcome: Outcome, subject: str, now: datetime, actor: str = ALONE, reason: str = ""
    ) -> AuditRow:
        return self.pen.row(AuditEvent(CITY, event, outcome, actor, subject, reason), now)


def caught_up(manifest: Manifest, mirrored: Mapping[tuple[str, int], State], now: datetime) -> Manifest:
    """The next manifest, with each key in the state that the database has heard of later.

    Raises `KeyRefused` where it lacks a key that the database needs, or no way of the table leads to a key's state.
    """
    for (purpose, number), state in mirrored.items():
        known = [key for key in manifest.of(purpose) if key.number == number]  # type: ignore[arg-type] # a CHECK
        if not known and state is not State.DESTROYED:
            raise KeyRefused(f"this key store lacks {purpose} {number}, which is {state}: find a newer backup")
        for key in known:
            if key.state is state:
                continue
            if not leads_to(key.state, state):
                raise KeyRefused(f"{key.title} is {key.state} here and {state} in the database: one of them is false")
            manifest = manifest.replaced(msgspec.structs.replace(key, state=state, since=now))
    return manifest
