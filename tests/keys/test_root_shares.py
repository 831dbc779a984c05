"""A root that nobody holds: shares that make it, shares that do not, and the agent that hands it on."""

import itertools
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic import MnemonicError, Share, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.shamir import RawShare, _interpolate
from shamir_mnemonic.wordlist import WORDLIST

from keys.errors import KeystoreRefused, RootRefused, RootUnavailable
from keys.files import read_private, write_private
from keys.primitives import new_key
from keys.root_agent import fetch, is_unlocked, lock, serve_unlocked
from keys.root_file import FileRoot
from keys.root_shares import (
    Collector,
    SharesRoot,
    checked,
    create,
    describe,
    open_root,
    plain_words,
    read_descriptor,
    split,
    write_descriptor,
)
from keys.secret import Secret

PEOPLE = ("Ada", "Ben", "Cleo")
TODAY = date(2026, 3, 14)
BOUND = b"bound to"
CHECKSUM = r"^the checksum is wrong: a word was mistaken, or two exchanged; type the share again$"
LOCKED = r"^the root is locked: `keys ceremony unlock`$"
NOT_OURS = r"^this root key does not open the key store: `keys\.root` and `keys\.store` do not belong together"

AS_NOBODY = "os.setresuid(65534, 65534, 65534);"
SOCKET = "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


class Dealt:
    """A root in shares of two of three, and its description."""

    def __init__(self, threshold: int = 2, people: Sequence[str] = PEOPLE) -> None:
        self.secret = new_key()
        self.shares = split(self.secret, threshold, people)
        self.descriptor = describe(self.secret, self.shares, TODAY)


@pytest.fixture(scope="module")
def dealt() -> Dealt:
    """One set of shares for every test that only reads it."""
    return Dealt()


@pytest.fixture
def described(tmp_path: Path, dealt: Dealt) -> Path:
    """The description, where the URI finds it."""
    path = tmp_path / "root.shares"
    write_descriptor(path, dealt.descriptor)
    return path


@pytest.fixture
def agent_path() -> Iterator[Path]:
    """Where an agent may listen: short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        yield Path(folder) / "unlock.sock"


def nobody(what: str) -> Secret[str]:
    """No person can be asked here."""
    raise RootRefused(f"the {what} is needed")


class Person:
    """Gives prepared answers, and keeps what was asked."""

    def __init__(self, *answers: Secret[str]) -> None:
        self.asked: list[str] = []
        self._answers = iter(answers)

    def __call__(self, what: str) -> Secret[str]:
        self.asked.append(what)
        return next(self._answers)


def same(left: Secret[bytes], right: Secret[bytes]) -> bool:
    return left.reveal() == right.reveal()


def with_word(share: Secret[str], place: int, word: str) -> Secret[str]:
    words = share.reveal().split()
    return Secret(" ".join([*words[:place], word, *words[place + 1 :]]))


# --- wrapping ---


def test_what_is_wrapped_is_unwrapped(dealt: Dealt) -> None:
    """A root that is made again from shares opens what the first one wrapped, in its place only."""
    wrapped = SharesRoot(dealt.secret).wrap(Secret(b"key"), BOUND)
    collector = Collector(dealt.descriptor)
    collector.add(dealt.shares["Ada"])
    collector.add(dealt.shares["Cleo"])

    assert SharesRoot(collector.secret()).unwrap(wrapped, BOUND).reveal() == b"key"
    with pytest.raises(RootRefused, match=NOT_OURS):
        SharesRoot(collector.secret()).unwrap(wrapped, b"another place")


def test_other_roots_open_nothing(dealt: Dealt) -> None:
    """Neither another set, nor the same secret used as another kind of root, opens a wrap."""
    wrapped = SharesRoot(dealt.secret).wrap(Secret(b"key"), BOUND)

    for other in (SharesRoot(new_key()), FileRoot(dealt.secret)):
        with pytest.raises(RootRefused, match=NOT_OURS):
            other.unwrap(wrapped, BOUND)


def test_every_bit_of_a_wrap_counts(dealt: Dealt) -> None:
    """An altered or shortened wrap is refused in the words of every root, version byte included."""
    root = SharesRoot(dealt.secret)
    wrapped = root.wrap(Secret(b"key"), BOUND)
    assert wrapped[0] == 1

    altered = [wrapped[:i] + bytes([wrapped[i] ^ 1 << bit]) + wrapped[i + 1 :] for i in range(32) for bit in range(8)]
    for other in [*altered, *(wrapped[:length] for length in range(len(wrapped)))]:
        with pytest.raises(RootRefused, match=NOT_OURS):
            root.unwrap(other, BOUND)


def test_a_root_shows_nothing(dealt: Dealt) -> None:
    """The root is used through a key derived from it, and no attribute shows either."""
    root = SharesRoot(dealt.secret)

    assert vars(root)["_wrapping"].reveal() != dealt.secret.reveal()
    assert "Secret(…)" in str(vars(root))


# --- splitting ---


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_threshold_of_shares_makes_the_root(data: st.DataObject) -> None:
    """Whatever the numbers, any m of n shares in any order make the root; one fewer never does."""
    count = data.draw(st.integers(2, 16))
    threshold = data.draw(st.integers(2, count))
    set_ = Dealt(threshold, [f"custodian {number}" for number in range(count)])
    given_ = data.draw(st.permutations(list(set_.shares.items())))[:threshold]

    collector = Collector(set_.descriptor)
    for left, (name, share) in zip(reversed(range(threshold)), given_, strict=True):
        assert collector.add(share) == name
        assert collector.missing == left
        if left:
            with pytest.raises(RootRefused, match=rf"^{left} more of {threshold} shares are needed$"):
                collector.secret()
    assert same(collector.secret(), set_.secret)


def test_fewer_shares_than_needed_make_nothing() -> None:
    """The library itself refuses every set of k - 1 shares, and a forged threshold does not help."""
    set_ = Dealt(3, [*PEOPLE, "Dan"])
    for few in itertools.combinations(set_.shares.values(), 2):
        with pytest.raises(MnemonicError):
            combine_mnemonics(share.reveal() for share in few)
        lowered = [
            Share(**{**vars(Share.from_mnemonic(share.reveal())), "member_threshold": 2}).mnemonic() for share in few
        ]
        with pytest.raises(MnemonicError, match="digest"):
            combine_mnemonics(lowered)


def test_one_share_of_two_fits_every_root(dealt: Dealt) -> None:
    """For every value of every byte of the root there is a second share that would make it, so one tells nothing."""
    have = Share.from_mnemonic(dealt.shares["Ada"].reveal())
    for candidate in range(256):
        secret = RawShare(255, bytes([candidate]) * 32)
        fitting = RawShare(1, _interpolate([RawShare(have.index, have.value), secret], 1))
        assert _interpolate([RawShare(have.index, have.value), fitting], 255) == secret.data


def test_shares_are_random_and_not_the_root(dealt: Dealt) -> None:
    """Splitting one root twice gives other words and another set; no share holds the root's bytes."""
    again = split(dealt.secret, 2, PEOPLE)

    assert all(again[name].reveal() != share.reveal() for name, share in dealt.shares.items())
    assert all(dealt.secret.reveal() != Share.from_mnemonic(s.reveal()).value for s in dealt.shares.values())
    assert {len(share.reveal().split()) for share in again.values()} == {33}


@pytest.mark.parametrize(
    ("threshold", "people", "told"),
    [
        (1, PEOPLE, r"^at least 2 custodians must be needed: else one person alone holds the root$"),
        (0, PEOPLE, "at least 2"),
        (-2, PEOPLE, "at least 2"),
        (4, PEOPLE, r"^4 custodians are needed, so there must be 4 to 16$"),
        (2, ("Ada",), "there must be 2 to 16"),
        (2, (), "there must be 2 to 16"),
        (2, [f"custodian {number}" for number in range(17)], "there must be 2 to 16"),
        (2, ("Ada", "Ben", "Ada"), "must be another person"),
        (2, ("Ada", "ada"), "must be another person"),
        (2, ("Ada", ""), "plain text"),
        (2, ("Ada", " Ben"), "plain text"),
        (2, ("Ada", "Ben\nCleo"), "plain text"),
        (2, ("Ada", "\x1b[2JBen"), "plain text"),
        (2, ("Ada", "B" * 65), "at most 64 characters"),
    ],
)
def test_a_split_that_cannot_be(threshold: int, people: Sequence[str], told: str) -> None:
    """Thresholds and names that would make the shares worthless or unclear are refused."""
    with pytest.raises(RootRefused, match=told):
        split(new_key(), threshold, people)


# --- the description ---


def test_a_description_is_public_and_whole(described: Path, dealt: Dealt) -> None:
    """It comes back as it was; it holds names and numbers, and neither the root nor a word of a share."""
    assert read_descriptor(described) == dealt.descriptor
    assert stat.S_IMODE(described.stat().st_mode) == 0o600
    raw = msgspec.json.decode(described.read_bytes())
    assert set(raw) == {"format", "identifier", "threshold", "custodians", "commitment", "created"}
    assert [(one["name"], one["share"]) for one in raw["custodians"]] == [("Ada", 1), ("Ben", 2), ("Cleo", 3)]
    assert dealt.secret.reveal().hex() not in described.read_text()
    assert raw["created"] == "2026-03-14"


def test_a_description_is_never_replaced(described: Path) -> None:
    """A second set at the same place is refused, and the first stays."""
    before = described.read_bytes()
    with pytest.raises(KeystoreRefused, match="never replaced"):
        write_descriptor(described, Dealt().descriptor)

    assert described.read_bytes() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shares/v1"', '"shares/v2"'),
        ('"threshold": 2', '"threshold": 1'),
        ('"threshold": 2', '"threshold": 4'),
        ('"share": 2', '"share": 1'),
        ('"share": 2', '"share": 17'),
        ('"Ben"', '"Ada"'),
        ('"Ben"', '"B\\u001b[2J"'),
        ('"identifier": ', '"identifier": 99999'),
        ('"commitment": "', '"commitment": "0'),
        ("{", '{"secret": "abandon",'),
        ("{", ""),
        ("", None),
    ],
)
def test_a_doubtful_description(described: Path, old: str, new: str | None) -> None:
    """A description that was altered into one that we do not write is refused, and not quoted."""
    text = described.read_text().replace(old, new, 1) if new is not None else "\xff"
    assert text != described.read_text()
    write_private(described, text.encode("latin-1"), replace=True)

    with pytest.raises(RootRefused, match=rf"^{described} does not describe a root of shares: restore it from its"):
        read_descriptor(described)


def test_a_missing_description(tmp_path: Path) -> None:
    """Who made it, and where it comes from when it is lost."""
    with pytest.raises(
        RootRefused, match=r"none does not exist: `keys ceremony split` makes it, `keys restore` puts it back"
    ):
        read_descriptor(tmp_path / "none")


def test_a_description_that_others_can_write(described: Path) -> None:
    """It is a private file like any other: who could replace it could ask custodians for other shares."""
    described.chmod(0o666)
    with pytest.raises(KeystoreRefused, match="chmod 0600"):
        read_descriptor(described)


# --- shares that are wrong ---


@pytest.mark.parametrize("place", range(33))
def test_a_typo_in_any_word(dealt: Dealt, place: int) -> None:
    """Another word of the list at any place is found by the checksum; no message quotes or counts to it."""
    share = dealt.shares["Ada"]
    word = next(other for other in WORDLIST[secrets.randbelow(1000) :] if other not in share.reveal().split())
    collector = Collector(dealt.descriptor)

    with pytest.raises(RootRefused, match=CHECKSUM):
        collector.add(with_word(share, place, word))
    assert collector.missing == 2


@pytest.mark.parametrize("place", range(33))
def test_a_word_of_no_list(dealt: Dealt, place: int) -> None:
    """A word that is in no share is told by its number alone."""
    with pytest.raises(RootRefused, match=rf"^not in the list of words: word {place + 1}; type the share again$"):
        Collector(dealt.descriptor).add(with_word(dealt.shares["Ada"], place, "hunter2"))


def test_several_words_of_no_list(dealt: Dealt) -> None:
    """All their numbers are told at once."""
    share = with_word(with_word(dealt.shares["Ada"], 6, "zzzz"), 8, "")
    share = with_word(share, 8, "ähm äääh")

    with pytest.raises(RootRefused, match=r"^not in the list of words: word 7, 9, 10; type") as caught:
        Collector(dealt.descriptor).add(share)
    assert "zzzz" not in str(caught.value)


def test_exchanged_words(dealt: Dealt) -> None:
    """Two neighbours exchanged are found by the checksum."""
    words = dealt.shares["Ada"].reveal().split()
    place = next(number for number in range(4, 32) if words[number] != words[number + 1])
    words[place], words[place + 1] = words[place + 1], words[place]

    with pytest.raises(RootRefused, match=CHECKSUM):
        Collector(dealt.descriptor).add(Secret(" ".join(words)))


@pytest.mark.parametrize(("typed", "count"), [("", 0), ("academic " * 32, 32), ("academic " * 34, 34)])
def test_not_33_words(dealt: Dealt, typed: str, count: int) -> None:
    """Too few or too many words are counted."""
    with pytest.raises(RootRefused, match=rf"^a share has 33 words, and {count} were typed: type it again$"):
        Collector(dealt.descriptor).add(Secret(typed))


def test_spaces_and_capitals_do_not_matter(dealt: Dealt) -> None:
    """What people do to words while typing them does not count as a mistake."""
    typed = Secret("  " + dealt.shares["Ben"].reveal().upper().replace(" ", " \t  ") + " \n")

    assert plain_words(typed).reveal() == dealt.shares["Ben"].reveal()
    assert Collector(dealt.descriptor).add(typed) == "Ben"


def test_the_same_share_twice(dealt: Dealt) -> None:
    """Nobody is two custodians, however the share is written; the one given before still counts."""
    collector = Collector(dealt.descriptor)
    collector.add(dealt.shares["Ada"])
    for again in (dealt.shares["Ada"], Secret(dealt.shares["Ada"].reveal().title())):
        with pytest.raises(RootRefused, match=r"^the share of Ada was given already: now another custodian$"):
            collector.add(again)

    assert (collector.missing, collector.awaited) == (1, ["Ben", "Cleo"])
    assert collector.add(dealt.shares["Ben"]) == "Ben"
    with pytest.raises(RootRefused, match="enough shares already"):
        collector.add(dealt.shares["Cleo"])
    assert same(collector.secret(), dealt.secret)


def of_another_set(dealt: Dealt) -> dict[str, Secret[str]]:
    """Shares that are right in themselves, each foreign in another way."""
    identifier, share = dealt.descriptor.identifier, Share.from_mnemonic(dealt.shares["Ada"].reveal())
    (shorter,) = generate_mnemonics(1, [(2, 3)], secrets.token_bytes(16))
    other = {
        "identifier": identifier ^ 1,
        "member_threshold": 3,
        "index": 9,
        "group_count": 2,
        "value": bytes(30),
    }
    changed = {what: Secret(Share(**{**vars(share), what: value}).mnemonic()) for what, value in other.items()}
    return {**changed, "shorter": Secret(shorter[0]), "another root": Dealt().shares["Ada"]}


@pytest.mark.parametrize("kind", ["identifier", "member_threshold", "index", "group_count", "another root"])
def test_a_share_of_another_set(dealt: Dealt, kind: str) -> None:
    """A share with another number, threshold or place is refused by the set's number, and changes nothing."""
    collector = Collector(dealt.descriptor)
    collector.add(dealt.shares["Ben"])

    with pytest.raises(
        RootRefused,
        match=rf"^this share is of another set than number {dealt.descriptor.identifier}, which is needed$",
    ):
        collector.add(of_another_set(dealt)[kind])
    assert collector.missing == 1


@pytest.mark.parametrize("kind", ["value", "shorter"])
def test_a_share_of_another_length(dealt: Dealt, kind: str) -> None:
    """Shares of shorter secrets have fewer words."""
    with pytest.raises(RootRefused, match="a share has 33 words, and"):
        Collector(dealt.descriptor).add(of_another_set(dealt)[kind])


def test_a_forged_share_of_the_same_set(dealt: Dealt) -> None:
    """A share with the right head and checksum and other contents is taken, and found when the root is made."""
    share = Share.from_mnemonic(dealt.shares["Ada"].reveal())
    forged = Share(**{**vars(share), "value": secrets.token_bytes(32)})
    collector = Collector(dealt.descriptor)
    collector.add(Secret(forged.mnemonic()))
    collector.add(dealt.shares["Ben"])

    with pytest.raises(RootRefused, match=r"^these shares do not make this key store's root$"):
        collector.secret()


def test_shares_of_another_root_with_the_same_number(dealt: Dealt) -> None:
    """A set's number has 15 bits and proves nothing: shares that fit each other must make the described root."""
    other = new_key()
    shares = split(other, 2, PEOPLE)
    forged = msgspec.structs.replace(dealt.descriptor, identifier=describe(other, shares, TODAY).identifier)
    collector = Collector(forged)
    collector.add(shares["Ada"])
    collector.add(shares["Ben"])

    with pytest.raises(RootRefused, match=r"^these shares do not make this key store's root$"):
        collector.secret()


# --- by URI, without an agent ---


def test_opened_by_custodians(described: Path, dealt: Dealt) -> None:
    """The threshold's number of custodians is asked, one at a time."""
    person = Person(dealt.shares["Cleo"], dealt.shares["Ada"])
    wrapped = SharesRoot(dealt.secret).wrap(Secret(b"key"), BOUND)

    assert open_root(f"shares:{described}", person).unwrap(wrapped, BOUND).reveal() == b"key"
    assert person.asked == ["share of custodian 1 of 2", "share of custodian 2 of 2"]


def test_a_mistake_is_asked_again(described: Path, dealt: Dealt) -> None:
    """What was wrong stands in the next question; the third mistake in a row ends it."""
    wrong = Secret("hunter2 " * 33)
    ada = dealt.shares["Ada"]
    person = Person(wrong, wrong, ada, ada, dealt.shares["Ben"])
    open_root(f"shares:{described}", person)

    assert person.asked[1].startswith("share of custodian 1 of 2 (not in the list of words: word 1, 2, 3,")
    assert person.asked[3] == "share of custodian 2 of 2"
    assert person.asked[4] == "share of custodian 2 of 2 (the share of Ada was given already: now another custodian)"
    with pytest.raises(RootRefused, match="not in the list of words"):
        open_root(f"shares:{described}", Person(wrong, wrong, wrong, ada))


def test_nobody_to_ask(described: Path, agent_path: Path) -> None:
    """A service that starts while the root is locked learns what helps, and that it may try again."""
    for uri in (f"shares:{described}", f"shares:{described}?agent={agent_path}"):
        with pytest.raises(RootUnavailable, match=LOCKED):
            open_root(uri, nobody)


def test_making_one_is_a_ceremony(tmp_path: Path, described: Path) -> None:
    """`keys init` cannot make shares; what exists is said to exist, so that it is opened instead."""
    with pytest.raises(RootRefused, match=r"^a root of shares is made by `keys ceremony split`$"):
        create(f"shares:{tmp_path}/none", nobody)
    with pytest.raises(KeystoreRefused, match="exists already and is never replaced"):
        create(f"shares:{described}", nobody)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "shares:",
        "shares:root.shares",
        "shares:///root.shares#part",
        "shares://host/root.shares",
        "shares://[/root.shares",
        "file:/root.shares",
        "shares:/root.shares?agent",
    ],
)
def test_a_uri_of_no_form_that_we_know(uri: str) -> None:
    """A relative path, a host, a fragment or another scheme is refused with the form that is wanted."""
    for act in (create, open_root):
        with pytest.raises(
            RootRefused, match=r"^keys\.root must be `shares:/absolute/path\[\?agent=/absolute/path\]`$"
        ):
            act(uri, nobody)


@pytest.mark.parametrize(
    "option", ["share=hunter2", "passphrase=hunter2", "hunter2=1", "agent=/a&agent=/b", "agent=/a&pin-value=hunter2"]
)
def test_an_unknown_option(described: Path, option: str) -> None:
    """No option takes a share; what was given is not shown, for it may be one."""
    with pytest.raises(RootRefused, match=r"^keys\.root: `agent` is the only option.*never configured$") as caught:
        open_root(f"shares:{described}?{option}", nobody)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("agent", ["", "unlock.sock", "./unlock.sock"])
def test_a_relative_agent(described: Path, agent: str) -> None:
    """An agent's path that depends on where one stands is refused."""
    with pytest.raises(RootRefused, match="agent must be the absolute path of a socket"):
        open_root(f"shares:{described}?agent={agent}", nobody)


# --- the agent ---


@contextmanager
def agent(secret: Secret[bytes], path: Path, seconds: float = 60) -> Iterator[threading.Thread]:
    """An agent in a thread, stopped at the end."""
    ready = threading.Event()
    clock = time.monotonic
    serving = threading.Thread(
        target=lambda: serve_unlocked(secret, path, seconds, clock=clock, ready=ready.set), daemon=True
    )
    serving.start()
    try:
        assert ready.wait(10)
        yield serving
    finally:
        lock(path)
        serving.join(10)
        assert not serving.is_alive()


def test_opened_through_the_agent(described: Path, dealt: Dealt, agent_path: Path) -> None:
    """While the root is unlocked nobody is asked, however often and from however many threads it is opened."""
    uri = f"shares:{described}?agent={agent_path}"
    wrapped = SharesRoot(dealt.secret).wrap(Secret(b"key"), BOUND)
    opened: list[bytes] = []

    def opening() -> None:
        opened.extend(open_root(uri, nobody).unwrap(wrapped, BOUND).reveal() for _ in range(10))

    with agent(dealt.secret, agent_path):
        threads = [threading.Thread(target=opening) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert opened == [b"key"] * 80


def test_locked_again(described: Path, dealt: Dealt, agent_path: Path) -> None:
    """Once told to lock, the agent is gone before `lock` returns, its socket too, and another may follow at once."""
    for _ in range(20):
        with agent(dealt.secret, agent_path):
            assert is_unlocked(agent_path)
            assert lock(agent_path)
            assert not agent_path.exists()
            assert not is_unlocked(agent_path)
            assert not lock(agent_path)
    with pytest.raises(RootUnavailable, match=LOCKED):
        fetch(agent_path)
    with pytest.raises(RootUnavailable, match=LOCKED):
        open_root(f"shares:{described}?agent={agent_path}", nobody)


def test_custodians_are_asked_while_locked(described: Path, dealt: Dealt, agent_path: Path) -> None:
    """At a terminal a locked root is opened by its custodians, for this process alone."""
    person = Person(dealt.shares["Ada"], dealt.shares["Ben"])
    open_root(f"shares:{described}?agent={agent_path}", person)

    assert len(person.asked) == 2
    assert not is_unlocked(agent_path)


@pytest.mark.parametrize("called", [False, True])
def test_time_is_up(dealt: Dealt, agent_path: Path, called: bool) -> None:
    """After its time the agent ends by itself and leaves no socket, even with a caller in mid-sentence."""
    with agent(dealt.secret, agent_path, 0.3) as serving:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            if called:
                silent.connect(str(agent_path))
            serving.join(5)
        assert not serving.is_alive()
        assert not agent_path.exists()


def test_only_for_this_user(dealt: Dealt, agent_path: Path) -> None:
    """Socket and directory are closed to others, whatever the umask."""
    before = os.umask(0)
    try:
        with agent(dealt.secret, agent_path):
            modes = [stat.S_IMODE(path.stat().st_mode) for path in (agent_path, agent_path.parent)]
            beside = stat.S_IMODE(agent_path.with_name("unlock.sock.lock").stat().st_mode)
    finally:
        os.umask(before)
    assert (*modes, beside) == (0o600, 0o700, 0o600)


def test_a_directory_open_to_others(dealt: Dealt, agent_path: Path) -> None:
    """A directory in which others could put a socket is refused."""
    agent_path.parent.chmod(0o755)
    with pytest.raises(KeystoreRefused, match="chmod 0700"):
        serve_unlocked(dealt.secret, agent_path, 1, clock=time.monotonic)


@as_root
def test_another_user_gets_nothing(dealt: Dealt, agent_path: Path) -> None:
    """Even where the file system would let another user in, the kernel's word on who calls does not."""
    with agent(dealt.secret, agent_path):
        agent_path.parent.chmod(0o711)
        agent_path.chmod(0o666)
        assert said_to(agent_path, b"F") == dealt.secret.reveal()
        assert said_to(agent_path, b"F", AS_NOBODY) == b""
        assert said_to(agent_path, b"L", AS_NOBODY) == b""
        agent_path.parent.chmod(0o700)
        assert is_unlocked(agent_path)


@as_root
def test_another_users_agent(agent_path: Path) -> None:
    """An agent that another user put in place is not even asked."""
    agent_path.parent.chmod(0o777)
    serve = f"s.bind({str(agent_path)!r}); os.chmod({str(agent_path)!r}, 0o666); s.listen(); print(flush=True);"
    code = f"import os, socket; {AS_NOBODY} {SOCKET} {serve} c = s.accept()[0]; c.send(c.recv(1) * 32)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as impostor:
        assert impostor.stdout is not None
        impostor.stdout.readline()
        with pytest.raises(RootRefused, match="is served by another user"):
            fetch(agent_path)
        impostor.kill()


def test_two_agents_at_once(dealt: Dealt, agent_path: Path) -> None:
    """The second is refused and leaves the first alone."""
    with agent(dealt.secret, agent_path):
        with pytest.raises(
            RootRefused, match=r"^the root is unlocked at .* already: `keys ceremony unlock --lock` first$"
        ):
            serve_unlocked(new_key(), agent_path, 1, clock=time.monotonic)
        assert same(fetch(agent_path), dealt.secret)


def test_many_agents_at_once(agent_path: Path) -> None:
    """Of eight that start together over a stale socket, exactly one serves."""
    stale(agent_path)
    refused: list[str] = []
    served: list[None] = []
    together = threading.Barrier(8)

    def starting() -> None:
        together.wait()
        try:
            serve_unlocked(new_key(), agent_path, 1.5, clock=time.monotonic, ready=lambda: served.append(None))
        except RootRefused as error:
            refused.append(str(error))

    threads = [threading.Thread(target=starting) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(served) + len(refused) < 8:
        time.sleep(0.01)
    lock(agent_path)
    for thread in threads:
        thread.join()
    assert (len(served), len(refused)) == (1, 7)


def test_an_agent_that_was_killed(described: Path, dealt: Dealt, agent_path: Path) -> None:
    """What `kill -9` leaves is a locked root, and no obstacle for the next unlock."""
    code = (
        "import sys, time; from pathlib import Path; from keys.root_agent import serve_unlocked;"
        "from keys.primitives import new_key;"
        "serve_unlocked(new_key(), Path(sys.argv[1]), 60, clock=time.monotonic, ready=lambda: print(flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(agent_path)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        with pytest.raises(RootRefused, match="`keys ceremony unlock --lock`, then unlock"):
            open_root(f"shares:{described}?agent={agent_path}", nobody)
        killed.send_signal(signal.SIGKILL)
    assert agent_path.is_socket()
    assert not is_unlocked(agent_path)
    with agent(dealt.secret, agent_path):
        assert same(checked(fetch(agent_path), dealt.descriptor), dealt.secret)


def test_interrupted_by_an_exception(dealt: Dealt, agent_path: Path) -> None:
    """However the agent ends inside its process, the socket is removed."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_unlocked(dealt.secret, agent_path, 60, clock=time.monotonic, ready=interrupted)
    assert not agent_path.exists()


def test_callers_who_misbehave(dealt: Dealt, agent_path: Path) -> None:
    """Silence, nonsense and hanging up get nothing, and cost the others a second at most."""
    with agent(dealt.secret, agent_path):
        for said in (b"X", b"f", bytes(1000)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.settimeout(5)
                caller.connect(str(agent_path))
                caller.send(said)
                assert caller.recv(64) == b""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
            silent.connect(str(agent_path))
            assert same(fetch(agent_path), dealt.secret)


@pytest.mark.parametrize("sent", [b"", b"x" * 31, b"x" * 33])
def test_an_agent_that_answers_nonsense(agent_path: Path, sent: bytes) -> None:
    """An answer of another length is no root."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(agent_path))
        listener.listen()

        def answering() -> None:
            caller, _ = listener.accept()
            with caller:
                caller.recv(1)
                if sent:
                    caller.send(sent)

        thread = threading.Thread(target=answering)
        thread.start()
        with pytest.raises(RootUnavailable, match=LOCKED):
            fetch(agent_path)
        thread.join()


def test_an_agent_that_never_answers(agent_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stopped in the middle is not waited for."""
    monkeypatch.setattr("keys.root_agent.TALK_S", 0.2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(agent_path))
        listener.listen()
        with pytest.raises(RootUnavailable, match=LOCKED):
            fetch(agent_path)


def test_where_no_socket_can_be(dealt: Dealt, agent_path: Path) -> None:
    """A path that is too long, or taken by a file, is refused; the file stays."""
    with pytest.raises(RootRefused, match="is too long for a socket: at most 107 bytes"):
        serve_unlocked(dealt.secret, agent_path.with_name("x" * 120), 1, clock=time.monotonic)
    write_private(agent_path, b"precious", replace=False)
    with pytest.raises(RootRefused, match="cannot be made"):
        serve_unlocked(dealt.secret, agent_path, 1, clock=time.monotonic)
    assert read_private(agent_path) == b"precious"


def said_to(path: Path, request: bytes, user: str = "") -> bytes:
    """What an agent answers another process; nothing where it hangs up at once."""
    talk = f"""
import os, socket
{user}
{SOCKET}
s.connect({str(path)!r})
try:
    s.send({request!r})
    print(s.recv(64).hex())
except OSError:
    print()
"""
    ran = subprocess.run([sys.executable, "-c", talk], check=True, capture_output=True, text=True, timeout=30)
    return bytes.fromhex(ran.stdout)


def stale(path: Path) -> None:
    """A socket without a listener."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
