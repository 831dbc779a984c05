"""Acts for two: every way in which one person could do it alone, later, again, or otherwise than it was approved."""

import multiprocessing
import os
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from keys.acts import (
    ActApproval,
    ActFolder,
    ActName,
    ActRequest,
    _digest,
    _text,
    approve,
    open_request,
    request,
    require_approved,
)
from keys.errors import ActRefused, KeystoreRefused
from keys.officers import Officer, OfficerKey, officer_of
from keys.secret import Secret
from keys.signing import text_of

ADA, BOB, EVE = (OfficerKey(Secret(bytes([number]) * 32)) for number in (1, 2, 3))
LIFETIME = timedelta(minutes=15)
SKEW = timedelta(seconds=60)
TICK = timedelta(microseconds=1)
PAYLOAD: Mapping[str, str | int] = {"generation": 3, "key": "kek-3-00ff"}


@pytest.fixture
def officers(now: datetime) -> tuple[Officer, ...]:
    """Ada and Bob. Eve is none."""
    return officer_of("ada", ADA, now), officer_of("bob", BOB, now)


@pytest.fixture
def asked(now: datetime) -> str:
    """Ada's request to destroy generation 3."""
    return ask(now)


@pytest.fixture
def approved(asked: str, officers: tuple[Officer, ...], now: datetime) -> str:
    """Bob's approval of it."""
    return approve(asked, officers, BOB, "bob", now)


def ask(now: datetime, **changes: Any) -> str:
    """A request of Ada's."""
    key, name = changes.pop("key", ADA), changes.pop("name", "ada")
    wanted: dict[str, Any] = {
        "act": "destroy",
        "payload": PAYLOAD,
        "reason": "rotated away in May",
        "environment": "demo",
        "manifest_version": 7,
    }
    return request(key, name, **(wanted | changes), now=now)


def require(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, **changes: Any) -> ActRequest:
    """What a command does before it acts."""
    wanted: dict[str, Any] = {
        "environment": "demo",
        "act": "destroy",
        "payload": PAYLOAD,
        "manifest_version": 7,
        "done": frozenset(),
    }
    return require_approved(asked, approved, officers, now, **(wanted | changes))


def forged(note: str, kind: type[ActRequest | ActApproval], key: OfficerKey, signer: str, **changes: Any) -> str:
    """What an officer with a program of their own could sign."""
    said = msgspec.json.decode(text_of(note), type=kind)
    return key.sign(signer, _text(msgspec.structs.replace(said, **changes)))


# --- asked, approved, done ---


def test_what_two_officers_want_is_allowed(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime
) -> None:
    """The request comes back word for word, to the one who approves and to the one who acts."""
    shown = open_request(asked, officers, now)

    assert require(asked, approved, officers, now) == shown
    assert (shown.act, dict(shown.payload), shown.reason) == ("destroy", PAYLOAD, "rotated away in May")
    assert (shown.officer, shown.environment, shown.manifest_version) == ("ada", "demo", 7)
    assert (shown.requested, shown.expires) == (now, now + LIFETIME)


def test_a_request_can_be_read_by_a_person(asked: str) -> None:
    """It is JSON in lines, and says what it is."""
    assert '\n "act": "destroy",\n' in asked
    assert '"note": "act-request"' in asked


def test_no_two_requests_have_one_id(now: datetime) -> None:
    """Asked twice for the same, there are two requests, with 128 random bits each."""
    ids = {msgspec.json.decode(text_of(ask(now)))["id"] for _ in range(100)}

    assert len(ids) == 100
    assert all(len(one) == 36 for one in ids)


@pytest.mark.parametrize("act", get_args(ActName))
def test_every_act_goes_the_same_way(officers: tuple[Officer, ...], now: datetime, act: str) -> None:
    """Each act of the list can be asked for, and stands for no other."""
    asked = ask(now, act=act)
    approved = approve(asked, officers, BOB, "bob", now)

    assert require(asked, approved, officers, now, act=act).act == act
    for other in set(get_args(ActName)) - {act}:
        with pytest.raises(ActRefused, match=f"asks for `{act}`, not for `{other}`$"):
            require(asked, approved, officers, now, act=other)


# --- who ---


def test_a_stranger_asks(officers: tuple[Officer, ...], now: datetime) -> None:
    """Whoever is no officer asks for nothing, whether under an own name or under another's."""
    with pytest.raises(ActRefused, match=r"^no officer is called eve: `keys officer list`"):
        open_request(ask(now, key=EVE, name="eve"), officers, now)
    with pytest.raises(ActRefused, match=r"^the request was altered, or signed by another key than that of ada$"):
        open_request(ask(now, key=EVE), officers, now)


def test_a_stranger_approves(asked: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """Whoever is no officer approves nothing, neither with our program nor with another one."""
    with pytest.raises(ActRefused, match=r"^no officer is called eve"):
        approve(asked, officers, EVE, "eve", now)
    with pytest.raises(ActRefused, match=r"^this key is not the one registered for bob"):
        approve(asked, officers, EVE, "bob", now)
    as_officer = (*officers, officer_of("eve", EVE, now))
    note = approve(asked, as_officer, EVE, "eve", now)
    with pytest.raises(ActRefused, match=r"^no officer is called eve"):
        require(asked, note, officers, now)
    as_bob = forged(note, ActApproval, EVE, "bob", officer="bob")
    with pytest.raises(ActRefused, match=r"^the approval was altered, or signed by another key than that of bob$"):
        require(asked, as_bob, officers, now)


@pytest.mark.parametrize("who", [0, 1])
def test_an_officer_who_was_removed(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, who: int
) -> None:
    """Removed after signing, neither a request nor an approval counts any more."""
    gone = msgspec.structs.replace(officers[who], removed=now)
    left = tuple(gone if officer.name == gone.name else officer for officer in officers)

    with pytest.raises(ActRefused, match=f"^{gone.name} was removed as an officer"):
        require(asked, approved, left, now)
    with pytest.raises(ActRefused, match=f"^{gone.name} was removed as an officer"):
        approve(asked, left, BOB, "bob", now)


def test_one_officer_alone(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """Nobody approves an own request, neither with our program nor with another one."""
    with pytest.raises(ActRefused, match=r"^ada asked for this and cannot approve it: another officer has to$"):
        approve(asked, officers, ADA, "ada", now)
    own = forged(approved, ActApproval, ADA, "ada", officer="ada")
    with pytest.raises(ActRefused, match=r"^ada asked for this and cannot approve it: another officer has to$"):
        require(asked, own, officers, now)


@pytest.mark.parametrize("shared", [("verify", "receive"), ("verify",), ("receive",)])
def test_one_key_under_two_names(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, shared: tuple[str, ...]
) -> None:
    """An officer who got an own key registered under a second name is still one officer."""
    double = msgspec.structs.replace(officers[1], **{half: getattr(officers[0], half) for half in shared})
    key = ADA if "verify" in shared else BOB
    note = forged(approved, ActApproval, key, "bob")

    with pytest.raises(ActRefused, match=r"^ada and bob are registered with one key"):
        approve(asked, (officers[0], double), key, "bob", now)
    with pytest.raises(ActRefused, match=r"^ada and bob are registered with one key"):
        require(asked, note, (officers[0], double), now)


def test_a_note_signed_for_somebody_else(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime
) -> None:
    """Who signs is who asks or approves: a note that names another is refused."""
    with pytest.raises(ActRefused, match=r"^the request names bob, but ada signed it$"):
        open_request(forged(asked, ActRequest, ADA, "ada", officer="bob"), officers, now)
    with pytest.raises(ActRefused, match=r"^the approval names ada, but bob signed it$"):
        require(asked, forged(approved, ActApproval, BOB, "bob", officer="ada"), officers, now)


# --- when ---


@pytest.mark.parametrize("late", [LIFETIME, LIFETIME + TICK, timedelta(days=1)])
def test_too_late(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, late: timedelta) -> None:
    """Fifteen minutes after the request nobody approves it, and nobody acts on it."""
    for act in (
        lambda: open_request(asked, officers, now + late),
        lambda: approve(asked, officers, BOB, "bob", now + late),
        lambda: require(asked, approved, officers, now + late),
    ):
        with pytest.raises(
            ActRefused, match=r"^act_[0-9a-f]{32} expired, 15 minutes after it was asked for: ask anew$"
        ):
            act()


def test_just_in_time(asked: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """The last microsecond counts."""
    last = now + LIFETIME - TICK

    require(asked, approve(asked, officers, BOB, "bob", last), officers, last)


def test_an_approval_from_after_the_end(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime
) -> None:
    """An approval dated after the end is refused even by a machine whose clock is late."""
    note = forged(approved, ActApproval, BOB, "bob", approved=now + LIFETIME)

    with pytest.raises(ActRefused, match=r"was approved later than 15 minutes after it was asked: ask anew$"):
        require(asked, note, officers, now + LIFETIME - TICK)


def test_clocks_that_differ(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """A minute is borne in either direction, and no more."""
    open_request(asked, officers, now - SKEW)
    early = forged(approved, ActApproval, BOB, "bob", approved=now - SKEW)
    require(asked, early, officers, now)
    ahead = forged(approved, ActApproval, BOB, "bob", approved=now + SKEW)
    require(asked, ahead, officers, now)

    with pytest.raises(ActRefused, match=r"^act_[0-9a-f]{32} is dated in the future: set the clocks right"):
        open_request(asked, officers, now - SKEW - TICK)
    with pytest.raises(ActRefused, match=r"^the approval of act_[0-9a-f]{32} is older than the request"):
        require(asked, forged(early, ActApproval, BOB, "bob", approved=now - SKEW - TICK), officers, now)
    with pytest.raises(ActRefused, match=r"^the approval of act_[0-9a-f]{32} is dated in the future"):
        require(asked, forged(ahead, ActApproval, BOB, "bob", approved=now + SKEW + TICK), officers, now)


@pytest.mark.parametrize("longer", [-TICK, TICK, timedelta(days=365)])
def test_another_lifetime(asked: str, officers: tuple[Officer, ...], now: datetime, longer: timedelta) -> None:
    """An officer who signs a longer time with a program of their own gets no more time."""
    note = forged(asked, ActRequest, ADA, "ada", expires=now + LIFETIME + longer)

    with pytest.raises(ActRefused, match="does not end 15 minutes after it was asked for"):
        open_request(note, officers, now)


def test_another_time_zone(asked: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """A moment written in another time zone is the same moment."""
    west = timezone(timedelta(hours=-7))
    note = forged(
        asked, ActRequest, ADA, "ada", requested=now.astimezone(west), expires=(now + LIFETIME).astimezone(west)
    )

    assert open_request(note, officers, now).expires == now + LIFETIME
    with pytest.raises(ActRefused, match="expired"):
        open_request(note, officers, now + LIFETIME)


@pytest.mark.parametrize("year", [1, 9999])
def test_a_date_at_the_end_of_time(asked: str, officers: tuple[Officer, ...], now: datetime, year: int) -> None:
    """The first and the last dates there are lead to a refusal like any other."""
    moment = datetime(year, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    note = forged(asked, ActRequest, ADA, "ada", requested=moment, expires=moment + LIFETIME)

    with pytest.raises(ActRefused):
        open_request(note, officers, now)


# --- what ---


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({**PAYLOAD, "generation": 4}, "generation"),
        ({**PAYLOAD, "generation": "3"}, "generation"),
        ({**PAYLOAD, "key": "kek-3-00fe"}, "key"),
        ({**PAYLOAD, "force": 1}, "force"),
        ({"generation": 3}, "key"),
        ({}, "generation, key"),
    ],
)
def test_another_payload(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, payload: dict[str, str | int], named: str
) -> None:
    """What is done is what was approved, field by field and with its type; the line names what differs."""
    with pytest.raises(ActRefused, match=rf"asks for something else \({named} differ\): ask anew$"):
        require(asked, approved, officers, now, payload=payload)


def test_true_is_not_one(officers: tuple[Officer, ...], now: datetime) -> None:
    """Python holds True and 1 for equal; an act does not."""
    asked = ask(now, payload={"generation": 1})
    approved = approve(asked, officers, BOB, "bob", now)

    with pytest.raises(ActRefused, match="generation differ"):
        require(asked, approved, officers, now, payload={"generation": True})
    with pytest.raises(ActRefused):
        ask(now, payload={"generation": True})


def test_another_environment(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """What was approved for the demo is not done in production."""
    with pytest.raises(ActRefused, match=r"is for environment 'demo', this one is 'production'$"):
        require(asked, approved, officers, now, environment="production")


@pytest.mark.parametrize("version", [6, 8])
def test_a_key_store_that_changed(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime, version: int
) -> None:
    """A manifest newer or older than the one that was looked at makes the request void."""
    with pytest.raises(ActRefused, match=rf"\(manifest 7, now {version}\): look again, and ask anew$"):
        require(asked, approved, officers, now, manifest_version=version)


def test_done_once(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """An act that was carried out is not carried out again within its fifteen minutes."""
    done = require(asked, approved, officers, now)

    require(asked, approved, officers, now, done={"act_" + "0" * 32})
    with pytest.raises(ActRefused, match=f"^{done.id} was carried out already: an act is done once, ask anew$"):
        require(asked, approved, officers, now, done={done.id})


def test_an_approval_of_another_request(
    asked: str, approved: str, officers: tuple[Officer, ...], now: datetime
) -> None:
    """An approval belongs to one request: not to one just like it, and not to one that was given its id."""
    other = forged(asked, ActRequest, ADA, "ada", reason="another reason")
    for one in (ask(now), other):
        with pytest.raises(ActRefused, match=r"^the approval is of another request than act_[0-9a-f]{32}: have this"):
            require(one, approved, officers, now)
    renamed = forged(approved, ActApproval, BOB, "bob", id="act_" + "0" * 32)
    with pytest.raises(ActRefused, match=r"^the approval is of another request"):
        require(asked, renamed, officers, now)


def test_a_request_is_no_approval(asked: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """Two officers who both ask have approved nothing, and one note does not stand for another."""
    approved = approve(asked, officers, BOB, "bob", now)
    with pytest.raises(ActRefused, match=r"^this is no approval that this release"):
        require(asked, ask(now, key=BOB, name="bob"), officers, now)
    with pytest.raises(ActRefused, match=r"^this is no request that this release"):
        require(approved, approved, officers, now)


# --- every byte ---


def test_every_bit_of_a_note_counts(asked: str, approved: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """No bit of a request or of an approval can be another one."""
    for index in range(len(asked.encode())):
        for bit in range(8):
            with pytest.raises(ActRefused):
                require(flip(asked, index, bit), approved, officers, now)
    for index in range(len(approved.encode())):
        for bit in range(8):
            with pytest.raises(ActRefused):
                require(asked, flip(approved, index, bit), officers, now)


def flip(note: str, index: int, bit: int) -> str:
    """The note with one bit changed, as a file would be read."""
    raw = bytearray(note.encode())
    raw[index] ^= 1 << bit
    return raw.decode(errors="surrogateescape")


@pytest.mark.parametrize("note", ["", "\n", "{}", "\n\n\u2014 ada ", "\n\n\u2014 ada AAAA\n"])
def test_what_is_no_note(asked: str, officers: tuple[Officer, ...], now: datetime, note: str) -> None:
    """Rubbish in the place of either note is refused."""
    with pytest.raises(ActRefused):
        open_request(note, officers, now)
    with pytest.raises(ActRefused):
        require(asked, note, officers, now)


def test_a_note_longer_than_any(asked: str, officers: tuple[Officer, ...], now: datetime) -> None:
    """Its length is looked at first."""
    with pytest.raises(ActRefused, match=r"^the request is longer than any that `keys` writes$"):
        open_request(ADA.sign("ada", "x" * 64 * 1024 + "\n"), officers, now)


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: text.replace('"demo"', '"\\u0064emo"'),
        lambda text: text.replace(" ", "  "),
        lambda text: text.replace('"act": "destroy"', '"act": "compromise",\n "act": "destroy"'),
        lambda text: text.replace('{\n "act"', '{\n "zoo": 1,\n "act"'),
        lambda text: text.replace('"format": 1', '"format": 2'),
        lambda text: text.replace('"note": "act-request",\n', ""),
        lambda text: text.replace('"destroy"', '"reveal"'),
        lambda text: text.replace('"act_', '"../act_'),
        lambda text: text.replace('"generation": 3', '"generation": 3.0'),
        lambda text: text.replace('"generation": 3', '"generation": -3'),
        lambda text: text.replace("Z", ""),
    ],
)
def test_a_request_in_other_words(
    asked: str, officers: tuple[Officer, ...], now: datetime, respell: Callable[[str], str]
) -> None:
    """A request has one spelling: what a person reads in the file is what is done, even if an officer signed it."""
    text = text_of(asked)
    assert respell(text) != text

    with pytest.raises(ActRefused, match=r"this release of `keys` reads|not spelled as `keys` spells it"):
        open_request(ADA.sign("ada", respell(text)), officers, now)


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": ""},
        {"reason": "x" * 501},
        {"reason": "two\nlines"},
        {"reason": "hidden \x1b[8m"},
        {"reason": "turned \u202e round"},
        {"reason": "half \ud800"},
        {"payload": {"generation": "\x1b[2K"}},
        {"payload": {"Generation": 3}},
        {"payload": {"a b": 3}},
        {"payload": {"\ud800": 3}},
        {"payload": {"generation": -1}},
        {"payload": {"generation": 2**64}},
        {"payload": {"generation": 1.5}},
        {"payload": {"generation": None}},
        {"environment": ""},
        {"environment": "de\rmo"},
        {"manifest_version": -1},
        {"act": "reveal"},
        {"name": "Ada"},
    ],
)
def test_what_cannot_be_shown_is_not_asked(
    asked: str, officers: tuple[Officer, ...], now: datetime, changes: dict[str, Any]
) -> None:
    """Text that moves a cursor or hides beside what is read, and values that no act has, are not signed."""
    with pytest.raises(ActRefused):
        ask(now, **changes)


@pytest.mark.parametrize("reason", ["hidden \x1b[8m", "turned \u202e round"])
def test_what_cannot_be_shown_is_not_opened(
    asked: str, officers: tuple[Officer, ...], now: datetime, reason: str
) -> None:
    """Nor is it shown to the second officer if the first one signed it with another program."""
    with pytest.raises(ActRefused, match="one line of printable characters"):
        open_request(forged(asked, ActRequest, ADA, "ada", reason=reason), officers, now)


def test_other_languages_are_welcome(officers: tuple[Officer, ...], now: datetime) -> None:
    """A reason may be written in any script."""
    assert open_request(ask(now, reason="Schlüssel 3, 鍵"), officers, now).reason == "Schlüssel 3, 鍵"


# --- the folder ---


@pytest.fixture
def folder(tmp_path: Path) -> ActFolder:
    """A folder that does not exist yet."""
    return ActFolder(tmp_path / "acts")


def test_an_act_from_beginning_to_end(folder: ActFolder, asked: str, approved: str, now: datetime) -> None:
    """Its files come one after the other, for this user alone, and all of them stay."""
    assert folder.pending(now) == []
    act_id = folder.put_request(asked)
    assert folder.pending(now) == [act_id]
    waiting = folder.find(act_id)
    assert (waiting.id, waiting.request, waiting.approval, waiting.is_done) == (act_id, asked, None, False)

    assert folder.put_approval(approved) == act_id
    assert folder.find(act_id).approval == approved
    assert folder.done() == frozenset()

    folder.mark_done(act_id, now)
    assert folder.done() == {act_id}
    assert folder.pending(now) == []
    done = folder.find(act_id)
    assert (done.request, done.approval, done.is_done) == (asked, approved, True)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert files == {f"{act_id}.{kind}": 0o600 for kind in ("request", "approval", "done")}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert (folder.path / f"{act_id}.done").read_text() == "2026-03-14T15:09:26.535897+00:00\n"


def test_what_is_pending(folder: ActFolder, now: datetime) -> None:
    """The oldest first, none that expired, and nothing of other files in the folder."""
    later, first, past = ask(now + TICK), ask(now), ask(now - LIFETIME)
    ids = [folder.put_request(note) for note in (later, first, past)]
    (folder.path / ".act_draft.request.12").touch()
    (folder.path / "act_0.request").touch()
    (folder.path / "notes.txt").touch()

    assert folder.pending(now) == [ids[1], ids[0]]
    assert folder.pending(now + timedelta(days=1)) == []


def test_nothing_is_put_twice(folder: ActFolder, asked: str, approved: str, now: datetime) -> None:
    """A request, an approval or a mark that lies there is not replaced."""
    act_id = folder.put_request(asked)
    folder.put_approval(approved)
    folder.mark_done(act_id, now)

    with pytest.raises(ActRefused, match=f"^{act_id} was asked for already$"):
        folder.put_request(asked)
    with pytest.raises(ActRefused, match=f"^{act_id} is approved already$"):
        folder.put_approval(approved)
    with pytest.raises(ActRefused, match=f"^{act_id} was carried out already$"):
        folder.mark_done(act_id, now)


def _mark(path: Path, act_id: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        ActFolder(path).mark_done(act_id, datetime(2026, 3, 14, tzinfo=UTC))
    except ActRefused:
        results.put("refused")
    else:
        results.put("done")


def test_of_many_processes_one_acts(folder: ActFolder, asked: str, approved: str) -> None:
    """Four processes that carry out one act at one moment: one of them does."""
    act_id = folder.put_request(asked)
    folder.put_approval(approved)
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(4), spawn.Queue()
    processes = [spawn.Process(target=_mark, args=(folder.path, act_id, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()

    assert outcomes == ["done", *["refused"] * 3]


@pytest.mark.parametrize("reason", ["", "x" * 501])
def test_a_reason_of_no_or_many_words(now: datetime, reason: str) -> None:
    """The refusal names the option and what it takes."""
    with pytest.raises(ActRefused, match=r"^--reason has 1 to 500 characters$"):
        ask(now, reason=reason)
    assert ask(now, reason="x" * 500)


def test_order_is_kept(folder: ActFolder, asked: str, approved: str, now: datetime) -> None:
    """No approval without its request, and no mark without an approval."""
    with pytest.raises(ActRefused, match=r"^there is no request act_"):
        folder.put_approval(approved)
    act_id = folder.put_request(asked)
    with pytest.raises(ActRefused, match=f"is not approved: another officer runs `keys approve {act_id}`$"):
        folder.mark_done(act_id, now)
    with pytest.raises(ActRefused, match="is of another request than the"):
        folder.put_approval(forged(approved, ActApproval, BOB, "bob", request=_digest("another")))


@pytest.mark.parametrize(
    "act_id", ["", "act_", "../act_" + "0" * 32, "act_" + "0" * 31, "act_" + "A" * 32, "act_" + "0" * 32 + "\n", "/"]
)
def test_an_id_is_looked_at_before_it_is_a_file(folder: ActFolder, now: datetime, act_id: str) -> None:
    """What is no id names no file, not even to look whether it exists."""
    for act in (folder.find, lambda one: folder.mark_done(one, now)):
        with pytest.raises(ActRefused, match=r"^an act's id is `act_` and 32 of"):
            act(act_id)


def test_notes_that_name_a_path(folder: ActFolder, asked: str, approved: str) -> None:
    """A note whose id would lead elsewhere is not kept, nor one that is none."""
    for note in (asked.replace("act_", "../act_"), approved, "", "\udcff"):
        with pytest.raises(ActRefused):
            folder.put_request(note)
    for note in (approved.replace("act_", "../act_"), asked, "", "\udcff"):
        with pytest.raises(ActRefused):
            folder.put_approval(note)
    assert not folder.path.exists()


def test_a_request_that_is_not_found(folder: ActFolder) -> None:
    """The line names the id and the place."""
    act_id = "act_" + "0" * 32
    with pytest.raises(ActRefused, match=f"^there is no request {act_id} in {folder.path}: check the id$"):
        folder.find(act_id)


def test_a_folder_that_others_can_write(folder: ActFolder, asked: str, now: datetime) -> None:
    """Requests are neither put nor found where somebody else could swap them."""
    act_id = folder.put_request(asked)
    folder.path.chmod(0o770)

    for act in (lambda: folder.find(act_id), lambda: folder.put_request(ask(now))):
        with pytest.raises(KeystoreRefused, match="chmod 0700"):
            act()


def test_a_swapped_or_broken_file(folder: ActFolder, asked: str, now: datetime) -> None:
    """A file that is not the request of its name, or cannot be read, hides no other one; it is listed to the end."""
    first, second = folder.put_request(asked), folder.put_request(ask(now))
    path = folder.path / f"{first}.request"
    for content in ((folder.path / f"{second}.request").read_bytes(), b"rubbish", b"", b"\xff"):
        path.write_bytes(content)
        assert folder.pending(now) == [second, first]
    path.write_text(asked)
    path.chmod(0o644)
    assert folder.pending(now + LIFETIME) == [first]


def test_a_folder_that_is_none(folder: ActFolder, asked: str) -> None:
    """A place that cannot be written is not taken for a request that lies there already."""
    folder.path.write_text("a file")
    with pytest.raises(KeystoreRefused, match="cannot be made"):
        folder.put_request(asked)

    act_id = msgspec.json.decode(text_of(asked))["id"]
    in_the_way = ActFolder(folder.path.with_name("other"))
    (in_the_way.path / f".{act_id}.request.{os.getpid()}" / "x").mkdir(parents=True)
    in_the_way.path.chmod(0o700)
    with pytest.raises(KeystoreRefused, match="cannot be written"):
        in_the_way.put_request(asked)
