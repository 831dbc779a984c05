"""Acts for two: one officer asks in writing, another approves, and then it is done once.

    request    a signed note: exactly what will be done, why, in which environment, at which version of the manifest
    approval   another officer's signed note over the SHA-256 of the request

Both end 15 minutes after the request. A change of the key store in between makes the request void, so what was
read is what is done. Files of done acts stay: request, approval and the mark are the evidence. Who can write the
folder can delete a mark, so what is done must also change the manifest's version.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from keys.errors import ActRefused, BrokenSeal, KeystoreRefused, OfficerRefused
from keys.files import make_private_directory, read_private, require_private_directory, write_private
from keys.officers import CLOCK_TOLERANCE, Moment, Officer, OfficerKey, OfficerName, find_officer, is_same_person
from keys.signing import open_note, text_of

ActName = Literal[
    "destroy", "compromise", "replace-root", "add-officer", "remove-officer", "forget-backup", "grant-staff"
]
"""What takes two. A new act is a new word here."""

LIFETIME = timedelta(minutes=15)
NOTE_CHARACTERS_MAX = 64 * 1024
LINE_MAX = 500
ID = r"^act_[0-9a-f]{32}\Z"

ActId = Annotated[str, msgspec.Meta(pattern=ID)]
Field = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
Line = Annotated[str, msgspec.Meta(min_length=1, max_length=LINE_MAX)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Payload = dict[Field, Line | Count]


class ActRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="act-request", tag_field="note"):
    """What one officer asks for."""

    format: Literal[1]
    id: ActId
    act: ActName
    payload: Payload
    """Exactly what will be done."""
    reason: Line
    environment: Line
    manifest_version: Count
    officer: OfficerName
    requested: Moment
    expires: Moment


class ActApproval(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="act-approval", tag_field="note"):
    """What another officer answers."""

    format: Literal[1]
    id: ActId
    request: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """SHA-256 of the request's note, signature included."""
    officer: OfficerName
    approved: Moment


@dataclass(frozen=True, slots=True)
class StoredAct:
    """The files of one act, as they lie there: nothing of them is checked."""

    id: str
    request: str
    approval: str | None
    is_done: bool


NoteText = TypeVar("NoteText", ActRequest, ActApproval)
TITLES: Mapping[type, str] = {ActRequest: "request", ActApproval: "approval"}


# --- asking and approving ---


def request(
    officer_key: OfficerKey,
    name: str,
    *,
    act: ActName,
    payload: Mapping[str, str | int],
    reason: str,
    environment: str,
    manifest_version: int,
    now: datetime,
) -> str:
    """An officer's request as a signed note; raises `ActRefused` for what could not be shown to the other officer."""
    act_id, ends = f"act_{secrets.token_hex(16)}", now + LIFETIME
    asked = ActRequest(1, act_id, act, dict(payload), reason, environment, manifest_version, name, now, ends)
    if not 1 <= len(reason) <= LINE_MAX:
        raise ActRefused(f"--reason has 1 to {LINE_MAX} characters")
    _require_printable(asked)
    _parse(_text(asked), ActRequest)  # what could not be read back is not signed
    return officer_key.sign(name, _text(asked))


def open_request(note: str, officers: Iterable[Officer], now: datetime) -> ActRequest:
    """The request in a note: signed by an officer, and not yet expired; else raises `ActRefused`."""
    return _opened_request(note, officers, now)[0]


def approve(note: str, officers: Iterable[Officer], officer_key: OfficerKey, name: str, now: datetime) -> str:
    """Another officer's approval of a request's note, as a signed note; raises `ActRefused` like `open_request`."""
    officers = tuple(officers)
    asked, first = _opened_request(note, officers, now)
    second = _officer(officers, name)
    _require_another(first, second)
    if officer_key.verify != second.verify:
        raise ActRefused(f"this key is not the one registered for {name}: open that officer's own key file")
    return officer_key.sign(name, _text(ActApproval(1, asked.id, _digest(note), name, now)))


def require_approved(
    request_note: str,
    approval_note: str,
    officers: Iterable[Officer],
    now: datetime,
    *,
    environment: str,
    act: ActName,
    payload: Mapping[str, str | int],
    manifest_version: int,
    done: Collection[str],
) -> ActRequest:
    """The request, when two officers stand behind exactly this act now; else raises `ActRefused`.

    `done` holds the ids of the acts that were carried out: none is carried out again.
    """
    officers = tuple(officers)
    asked, first = _opened_request(request_note, officers, now)
    if asked.id in done:
        raise ActRefused(f"{asked.id} was carried out already: an act is done once, ask anew")
    if asked.environment != environment:
        raise ActRefused(f"{asked.id} is for environment '{asked.environment}', this one is '{environment}'")
    _require_same_act(asked, act, payload)
    require_unchanged(asked, manifest_version)
    approval, second = _opened(approval_note, officers, ActApproval)
    _require_another(first, second)
    if approval.id != asked.id or approval.request != _digest(request_note):
        raise ActRefused(f"the approval is of another request than {asked.id}: have this one approved")
    _require_in_time(approval, asked, now)
    return asked


def require_unchanged(asked: ActRequest, manifest_version: int) -> None:
    """Raises `ActRefused` where the key store changed since this was asked for."""
    if asked.manifest_version != manifest_version:
        versions = f"(manifest {asked.manifest_version}, now {manifest_version})"
        raise ActRefused(f"the key store changed since {asked.id} was asked for {versions}: look again, and ask anew")


def approver_of(note: str) -> str:
    """Who signed an approval that `require_approved` has checked."""
    return _parse(text_of(note), ActApproval).officer


# --- the folder ---


@dataclass(frozen=True, slots=True)
class ActFolder:
    """Requests and approvals on their way, and the evidence of what was done; a directory of this user alone.

    <path>/act_….request   <path>/act_….approval   <path>/act_….done

    It keeps notes and checks no signature: `open_request` and `require_approved` do.
    """

    path: Path

    def put_request(self, note: str) -> str:
        """Keep a request; gives its id."""
        act_id = _parse(text_of(note), ActRequest).id
        self._put(act_id, "request", note, "was asked for already")
        return act_id

    def put_approval(self, note: str) -> str:
        """Keep the approval of a request that lies here; gives its id."""
        approval = _parse(text_of(note), ActApproval)
        if approval.request != _digest(self.find(approval.id).request):
            raise ActRefused(f"the approval is of another request than the {approval.id} that lies here")
        self._put(approval.id, "approval", note, "is approved already")
        return approval.id

    def mark_done(self, act_id: str, now: datetime) -> None:
        """Mark an approved act as carried out; of two processes that try, one is refused with `ActRefused`."""
        if self.find(act_id).approval is None:
            raise ActRefused(f"{act_id} is not approved: another officer runs `keys approve {act_id}`")
        self._put(act_id, "done", f"{now.isoformat()}\n", "was carried out already")

    def find(self, act_id: str) -> StoredAct:
        """One act's files; raises `ActRefused` where there is no such request."""
        if not re.search(ID, act_id):
            raise ActRefused("an act's id is `act_` and 32 of 0-9 and a-f")
        request_note = self._read(act_id, "request")
        if request_note is None:
            raise ActRefused(f"there is no request {act_id} in {self.path}: check the id")
        return StoredAct(act_id, request_note, self._read(act_id, "approval"), self._has(act_id, "done"))

    def pending(self, now: datetime) -> Sequence[str]:
        """The ids of the acts that are neither done nor expired, the oldest first; files that are no request last."""
        done = self.done()
        asked = {act_id: self._peek(act_id) for act_id in self._ids("request") if act_id not in done}
        open_requests = [one for one in asked.values() if one is not None and now < one.expires]
        known = [one.id for one in sorted(open_requests, key=lambda one: (one.requested, one.id))]
        return known + [act_id for act_id, one in asked.items() if one is None]

    def done(self) -> frozenset[str]:
        """The ids of all acts that were carried out."""
        return frozenset(self._ids("done"))

    def _peek(self, act_id: str) -> ActRequest | None:
        with suppress(ActRefused, KeystoreRefused):
            asked = _parse(text_of(self.find(act_id).request), ActRequest)
            return asked if asked.id == act_id else None
        return None

    def _ids(self, kind: str) -> list[str]:
        found = (path.name.removesuffix(f".{kind}") for path in self.path.glob(f"act_*.{kind}"))
        return sorted(name for name in found if re.search(ID, name))

    def _file(self, act_id: str, kind: str) -> Path:
        return self.path / f"{act_id}.{kind}"

    def _has(self, act_id: str, kind: str) -> bool:
        return os.path.lexists(self._file(act_id, kind))

    def _read(self, act_id: str, kind: str) -> str | None:
        if not self._has(act_id, kind):
            return None
        require_private_directory(self.path)
        return read_private(self._file(act_id, kind)).decode(errors="replace")  # so altered, it is signed by nobody

    def _put(self, act_id: str, kind: str, text: str, refusal: str) -> None:
        make_private_directory(self.path)
        require_private_directory(self.path)
        try:
            write_private(self._file(act_id, kind), text.encode(), replace=False)
        except KeystoreRefused:
            if not self._has(act_id, kind):
                raise
            raise ActRefused(f"{act_id} {refusal}") from None


# --- what is checked ---


def _opened_request(note: str, officers: Iterable[Officer], now: datetime) -> tuple[ActRequest, Officer]:
    asked, officer = _opened(note, officers, ActRequest)
    _require_printable(asked)
    _require_past(asked.id, asked.requested, now)
    if asked.expires - asked.requested != LIFETIME:
        raise ActRefused(f"{asked.id} does not end 15 minutes after it was asked for: ask anew with `keys`")
    if now >= asked.expires:
        raise ActRefused(f"{asked.id} expired, 15 minutes after it was asked for: ask anew")
    return asked, officer


def _opened(note: str, officers: Iterable[Officer], kind: type[NoteText]) -> tuple[NoteText, Officer]:
    what = TITLES[kind]
    if len(note) > NOTE_CHARACTERS_MAX:
        raise ActRefused(f"the {what} is longer than any that `keys` writes")
    officer = _officer(officers, note.rpartition("\n\n— ")[2].partition(" ")[0])
    try:
        text = open_note(bytes.fromhex(officer.verify), officer.name, note)
    except BrokenSeal:
        raise ActRefused(f"the {what} was altered, or signed by another key than that of {officer.name}") from None
    said = _parse(text, kind)
    if said.officer != officer.name:
        raise ActRefused(f"the {what} names {said.officer}, but {officer.name} signed it")
    return said, officer


def _officer(officers: Iterable[Officer], name: str) -> Officer:
    try:
        return find_officer(officers, name)
    except OfficerRefused as refused:
        raise ActRefused(str(refused)) from None


def _require_another(first: Officer, second: Officer) -> None:
    if first.name == second.name:
        raise ActRefused(f"{first.name} asked for this and cannot approve it: another officer has to")
    if is_same_person(first, second):
        raise ActRefused(f"{first.name} and {second.name} are registered with one key: a third one has to approve")


def _require_same_act(asked: ActRequest, act: ActName, payload: Mapping[str, str | int]) -> None:
    if asked.act != act:
        raise ActRefused(f"{asked.id} asks for `{asked.act}`, not for `{act}`")
    # With their types: the text "1" and the number 1 are written differently, and True is neither.
    wanted, given = ({name: (type(value), value) for name, value in p.items()} for p in (asked.payload, payload))
    different = sorted(name for name in {*wanted, *given} if wanted.get(name) != given.get(name))
    if different:
        raise ActRefused(f"{asked.id} asks for something else ({', '.join(different)} differ): ask anew")


def _require_in_time(approval: ActApproval, asked: ActRequest, now: datetime) -> None:
    _require_past(f"the approval of {asked.id}", approval.approved, now)
    if approval.approved < asked.requested - CLOCK_TOLERANCE:
        raise ActRefused(f"the approval of {asked.id} is older than the request: set the clocks right, and ask anew")
    if approval.approved >= asked.expires:
        raise ActRefused(f"{asked.id} was approved later than 15 minutes after it was asked: ask anew")


def _require_past(what: str, moment: datetime, now: datetime) -> None:
    if moment > now + CLOCK_TOLERANCE:
        raise ActRefused(f"{what} is dated in the future: set the clocks right, and ask anew")


def _require_printable(asked: ActRequest) -> None:
    """What is shown to the other officer must not move the cursor, hide or turn round what stands beside it."""
    texts = [asked.reason, asked.environment, *asked.payload, *map(str, asked.payload.values())]
    if not all(text.isprintable() for text in texts):
        raise ActRefused("reason and payload of a request are one line of printable characters each")


def _parse(text: str, kind: type[NoteText]) -> NoteText:
    """One kind of note, in the one spelling that `_text` has."""
    what = TITLES[kind]
    try:
        said = msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise ActRefused(f"this is no {what} that this release of `keys` reads or writes") from None
    if _text(said) != text:
        raise ActRefused(f"this {what} is not spelled as `keys` spells it: make it with `keys`")
    return said


def _text(said: ActRequest | ActApproval) -> str:
    return msgspec.json.format(msgspec.json.encode(said, order="sorted"), indent=1).decode() + "\n"


def _digest(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()
