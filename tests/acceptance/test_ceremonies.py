"""Ceremonies of a running city at real terminals: everything that people do wrong, and what is left of it: nothing.

The tests of this file follow one root after the other, so they run in the order in which they stand here.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keys.backup import open_backup, read_header, seal_backup
from keys.files import read_private_line, write_private
from keys.officers import officer_of, open_officer_key
from tests.acceptance.test_key_acts import audited, files, manifest, open_folder, refusal, run, told
from tests.acceptance.test_main_job import charged, new_key, tokenized
from tests.keys.pty_driver import END_OF_FILE, INTERRUPT, Terminal
from tests.rotation_drill import CUSTODIANS, Roots
from tests.system import BIN, Client, System, owner, running

pytestmark = pytest.mark.server

KEYS = Path(__file__).parents[2] / "keys"
NOBODY = 65534
NOT_SHOWN = "it is not shown"
LOCKED = "the root is locked: `keys ceremony unlock`"
IN_A_SECOND = """
import keys.ceremony
for held in (keys.ceremony.deal, keys.ceremony.collect_secret):
    held.__kwdefaults__["deadline_s"] = 1.0
from keys.cli.main import main
main()
"""
"""`keys`, whose ceremonies have a second instead of a quarter of an hour."""


@dataclass
class City:
    """A running demo, and what its custodians have on paper."""

    system: System
    folder: Path
    roots: Roots
    words: dict[str, str] = field(default_factory=dict)
    before_finish: Path | None = None

    @property
    def store(self) -> Path:
        return self.system.home / "keystore"

    @property
    def shares_uri(self) -> str:
        return f"shares:{self.folder}/root.shares?agent={self.agent}"

    @property
    def agent(self) -> Path:
        return self.folder / "agent" / "unlock.sock"

    @property
    def transcripts(self) -> list[Path]:
        return sorted((self.store / "ceremonies").glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)

    def at_terminal(self, *arguments: str, hurried: bool = False) -> Terminal:
        """`keys …` with people in front of it."""
        command = [sys.executable, "-c", IN_A_SECOND] if hurried else [str(BIN / "keys")]
        return Terminal([*command, *arguments], env=self.system.plain)

    def request(self, *arguments: str) -> str:
        """Ask for a new root and have it approved; gives the request's id."""
        asked = told(self.system, "ceremony", *arguments, *self.system.officer("security"))["act"]
        approved = run(["approve", asked, *self.system.officer("security2")], self.system.plain)
        next_step = f"keys ceremony {arguments[0]} --request {asked}"
        assert (approved.code, approved.output) == (0, f"Approved. Now the ceremony: {next_step}\n")
        return str(asked)

    def backup(self, name: str) -> Path:
        """A copy of the key store for `security`."""
        told(self.system, "backup", "--to", str(self.folder / name), "--for", "security")
        return self.folder / name

    @property
    def not_backed_up(self) -> list[str]:
        """What `keys status` says of copies."""
        return [line for line in told(self.system, "status")["due"] if "is in no key backup" in line]

    def custodians(self, *names: str) -> list[str]:
        return [option for name in names for option in ("--custodian", name)]

    def third(self) -> None:
        """A third officer, who has acknowledged nothing yet."""
        key, words = self.folder / "third.key", self.folder / "third.passphrase"
        write_private(words, new_key().encode(), replace=False)
        self.system.by_two("keys", "officer", "add", "third", "--key", str(key), "--key-passphrase-file", str(words))

    @property
    def by_third(self) -> tuple[str, ...]:
        words = str(self.folder / "third.passphrase")
        return ("--officer", str(self.folder / "third.key"), "--passphrase-file", words)


@pytest.fixture(scope="module")
def city() -> Iterator[City]:
    """A demo with a third officer."""
    with open_folder() as folder, running(folder / "home") as system:
        city = City(system, folder, Roots(system, folder, None))
        city.third()
        yield city


# --- what is at stake ---


@contextmanager
def nothing_changes(city: City) -> Iterator[None]:
    """Whatever happens inside, no key, no request and not the manifest changes: a transcript may be added."""

    def keys_and_acts() -> dict[str, str]:
        return {name: digest for name, digest in files(city.store).items() if not name.startswith("ceremonies/")}

    before = keys_and_acts()
    yield
    assert keys_and_acts() == before


def no_word_of_a_share(city: City, text: str) -> None:
    """No word that was dealt, but those that are also words of the program's own."""
    own = {word for path in KEYS.rglob("*.py") for word in re.findall("[a-z]+", path.read_text().lower())}
    dealt = {word for share in city.words.values() for word in share.split()} - own
    assert len(dealt) > 15 * len(city.words)
    assert not dealt & set(re.findall("[a-z]+", text.lower()))


def last_transcript(city: City, *steps: str) -> None:
    """The transcript that was kept last has these lines, its file is private, and no share is in it."""
    text = city.transcripts[-1].read_text()
    for step in steps:
        assert step in text, text
    assert city.transcripts[-1].stat().st_mode & 0o777 == 0o600
    if city.words:
        no_word_of_a_share(city, text)


# --- people at the terminal ---


def take(terminal: Terminal, name: str) -> str:
    """Accept a share, write it down; the program now waits for it to be typed back."""
    terminal.expect(f"{name}, your share comes next")
    terminal.send("\n")
    return write_down(terminal)


def write_down(terminal: Terminal) -> str:
    shown = terminal.expect("Press Enter when you have")
    words = re.findall(r"(\d+)\.\s+([a-z]+)", shown)
    terminal.send("\n")
    terminal.expect(NOT_SHOWN)
    return " ".join(word for _, word in sorted(words, key=lambda found: int(found[0])))


def give(terminal: Terminal, typed: str) -> None:
    """Type a share into the silence."""
    assert not terminal.echoes()
    terminal.send(f"{typed}\n")


def ends(terminal: Terminal, code: int, line: str = "") -> None:
    """The program ends so, with this as its last word and without a traceback."""
    assert terminal.wait() == code, terminal.output
    assert line in terminal.output
    assert "Traceback" not in terminal.output


def exchanged(share: str) -> str:
    """Its first words in the wrong order."""
    words = share.split()
    first = next(number for number in range(1, len(words)) if words[number] != words[0])
    words[0], words[first] = words[first], words[0]
    return " ".join(words)


# --- a root is split ---


def test_rehearsed(city: City) -> None:
    """A rehearsal deals and collects on a throw-away root, and changes nothing in the store."""
    store = files(city.store)
    words = {}
    with city.at_terminal("ceremony", "split", "--rehearse", *city.custodians("ada", "ben")) as terminal:
        for name in ("ada", "ben"):
            words[name] = take(terminal, name)
            give(terminal, words[name])
        for name in ("ben", "ada"):
            terminal.expect(NOT_SHOWN)
            give(terminal, words[name])
        ends(terminal, 0, "The shares open the root. It is forgotten now; burn the papers.")
    assert files(city.store) == store


def test_who_may_be_a_custodian(city: City) -> None:
    """Too few, one twice, nobody's name, an officer without an acknowledgement: refused when it is asked for."""
    split = ("ceremony", "split", "--root", city.shares_uri, *city.system.officer("security"))
    few = "name at least 2 different custodians: --custodian NAME, once for each"
    for names in ((), ("security",), ("security", "security")):
        assert refusal(city.system, *split, *city.custodians(*names)) == few
    line = refusal(city.system, *split, *city.custodians("security", "eve"))
    assert line == "no officer is called eve: `keys officer list` shows who there is"
    line = refusal(city.system, *split, *city.custodians("security", "third"))
    assert line == "third has not acknowledged the duties yet: `keys officer acknowledge`"
    other: tuple[str, ...] = ("ceremony", "split", "--root", "file:/nowhere/root.key")
    assert refusal(city.system, *other).startswith("a root that is split has a URI like `shares:")
    other = ("ceremony", "replace", "--root", "nfs:/nowhere", *city.system.officer("security"))
    assert refusal(city.system, *other).startswith("keys.root must be a URI that begins with one of: file:, ")
    assert told(city.system, "officer", "acknowledge", *city.by_third)["name"] == "third"


async def test_split_at_last(city: City) -> None:
    """Ctrl-C, time over, a share that is never typed back: nothing is half done. Then the root is split."""
    names = city.custodians(*CUSTODIANS)
    asked = city.request("split", "--root", city.shares_uri, "--threshold", "2", *names)
    split = ("ceremony", "split", "--request", asked)

    with nothing_changes(city), city.at_terminal(*split) as terminal:
        city.words["security"] = take(terminal, "security")
        give(terminal, city.words["security"])
        city.words["security2"] = take(terminal, "security2")
        terminal.send(INTERRUPT)
        assert terminal.wait() != 0
        assert "Traceback" not in terminal.output
    last_transcript(city, "share typed back      security", "ended without result  interrupted")

    with nothing_changes(city), city.at_terminal(*split, hurried=True) as terminal:
        terminal.expect("security, your share comes next")
        ends(terminal, 1, "the ceremony was not done within 1 second; nothing was changed")
    last_transcript(city, "ended without result  the ceremony was not done")

    with nothing_changes(city), city.at_terminal(*split) as terminal:
        share = take(terminal, "security")
        for showing in (1, 2):
            for wrong in (exchanged(share), share.replace(share.split()[4], "zzz"), "not it"):
                give(terminal, wrong)
                terminal.expect("Not what was shown" if len(wrong.split()) == len(share.split()) else "2 words were")
                if wrong != "not it":
                    terminal.expect(NOT_SHOWN)
            if showing == 1:
                assert write_down(terminal) == share
        ends(terminal, 1, "security did not type back the share that was shown; nothing was changed: begin again")
    assert not list(city.store.glob("root-2/*"))

    description = city.folder / "root.shares"
    with nothing_changes(city):
        description.write_text("of another store")
        line = f"{description} exists already and is never replaced: name another file"
        assert run(split, city.system.plain).errors.splitlines()[-1].startswith(f"keys: {line}")
        assert description.read_text() == "of another store"
        description.unlink()

    city.backup("before.backup")
    asked = city.request("split", "--root", city.shares_uri, "--threshold", "2", *names)
    split = ("ceremony", "split", "--request", asked)
    with city.at_terminal(*split) as terminal:
        for name in CUSTODIANS:
            city.words[name] = take(terminal, name)
            give(terminal, city.words[name])
        ends(terminal, 0, "keys ceremony replace --finish")
    last_transcript(city, f"request               {asked} by security", "keys wrapped          by root 2, manifest")
    assert await audited(city.system, asked) == [("keys.replace-root", "done", "security+security2", "root-2")]
    assert refusal(city.system, *split).startswith((f"{asked} was carried out already", "the key store changed"))


def test_while_two_roots_stand(city: City) -> None:
    """No key is made and no third root, and the old one is not let go before `keys.root` names the new one."""
    (line,) = city.not_backed_up  # though there is one, under the old root
    assert line == "generation 1 is in no key backup that root 2 opens: `keys backup --to FILE --for OFFICER`."
    standing = (
        "the root is being replaced (root 1 by root 2): finish that first with `keys ceremony replace --finish`"
    )
    assert refusal(city.system, "rotate") == standing
    assert refusal(city.system, "compromise", "1", *city.system.officer("security")) == standing
    another = ("ceremony", "replace", "--root", f"file:{city.folder}/other.key", *city.system.officer("security"))
    assert refusal(city.system, *another) == standing
    line = refusal(city.system, "ceremony", "replace", "--finish")
    assert line.startswith(f"keys.root still names the old root: set it to root 2 (shares:{city.folder}/root.shares)")
    assert any("The root is being replaced" in line for line in told(city.system, "status")["due"])


# --- it is unlocked ---


def test_not_unlocked(city: City) -> None:
    """A typo, words in the wrong order, one share twice, too few shares, time over, Ctrl-C: it stays locked."""
    city.roots._configure(city.shares_uri)
    unlock = ("ceremony", "unlock", "--minutes", "5")
    assert refusal(city.system, "status") == LOCKED
    typed_wrong: tuple[tuple[Callable[[str], str], str], ...] = (
        (
            lambda share: share.replace(share.split()[6], "zzz"),
            "not in the list of words: word 7; type the share again",
        ),
        (exchanged, "the checksum is wrong: a word was mistaken, or two exchanged"),
        (lambda share: " ".join(share.split()[1:]), "a share has 33 words, and 32 were typed: type it again"),
    )
    with city.at_terminal(*unlock) as terminal:
        for change, line in typed_wrong:
            terminal.expect(NOT_SHOWN)
            give(terminal, change(city.words["third"]))
            terminal.expect(line)
        ends(terminal, 1, "3 wrong answers one after another; nothing was changed: begin again")
    last_transcript(city, "share refused         not in the list of words: word 7", "ended without result")

    for last in (INTERRUPT, END_OF_FILE):
        with city.at_terminal(*unlock) as terminal:
            for line in ("Thank you, security2", "the share of security2 was given already: now another custodian"):
                terminal.expect(NOT_SHOWN)
                give(terminal, city.words["security2"])
                terminal.expect(line)
            terminal.expect(NOT_SHOWN)
            terminal.send(last)
            assert terminal.wait() != 0
            assert "Traceback" not in terminal.output
        last_transcript(city, "share given           security2", "ended without result")

    with city.at_terminal(*unlock, hurried=True) as terminal:
        terminal.expect(NOT_SHOWN)
        ends(terminal, 1, "the ceremony was not done within 1 second")
    assert not city.agent.exists()
    assert refusal(city.system, "status") == LOCKED


@contextmanager
def unlocked(city: City) -> Iterator[Terminal]:
    """Two custodians, in no order, have typed theirs."""
    with city.at_terminal("ceremony", "unlock", "--minutes", "5") as terminal:
        for name in ("third", "security"):
            terminal.expect(NOT_SHOWN)
            give(terminal, city.words[name])
        terminal.expect("Unlocked for 5 minutes")
        yield terminal


async def test_unlocked(city: City) -> None:
    """The api restarts with it, the old root is let go; nobody else can fetch it; killed or locked, it is gone."""
    with unlocked(city) as terminal:
        last_transcript(city, "share given           third", "root opened", "unlocked              for 5 minutes")
        second = run(["ceremony", "unlock"], city.system.plain)
        assert (second.code, second.output) == (1, "")
        assert "unlocked" in second.errors
        assert "keys ceremony unlock --lock" in second.errors
        require_for_this_user_only(city)
        city.roots._restart_api()
        city.before_finish = city.folder / "before-finish"
        shutil.copytree(city.store, city.before_finish)
        await finished_twice(city)
        assert told(city.system, "verify")["failed"] == 0
        assert not list(city.store.glob("root-1/*"))
        the_old_root_opens_nothing(city)
        terminal.signal(signal.SIGKILL)
        terminal.wait()
    assert refusal(city.system, "status") == LOCKED
    async with Client(city.system, "parks") as client:
        assert (await charged(client, await tokenized(client)))["status"] == "succeeded"
    with unlocked(city) as terminal:
        assert run(["ceremony", "unlock", "--lock"], city.system.plain).output == "Locked.\n"
        ends(terminal, 0, "Locked.")
    assert not city.agent.exists()
    assert run(["ceremony", "unlock", "--lock"], city.system.plain).output == "It was locked already.\n"


async def finished_twice(city: City) -> None:
    """The old root is let go, and once more as after a power cut: the same is said."""
    connection = await owner(city.system)
    for _ in range(2):
        assert told(city.system, "ceremony", "replace", "--finish") == {"dropped": [1]}
        await connection.execute("UPDATE gateway.key_manifest SET version = version - 1")
    await connection.execute("UPDATE gateway.key_manifest SET version = version + 1")
    await connection.close()


FETCH = """
import os, socket, sys
agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
try:
    agent.connect({path!r}); agent.sendall(b"F"); print(len(agent.recv(64)))
except PermissionError:
    print("no way in")
except ConnectionError:
    print(0)
"""


def require_for_this_user_only(city: City) -> None:
    """Another user does not get to the socket, and with the way laid open gets no byte out of it."""
    if os.geteuid() != 0:
        return  # only root can be somebody else

    def fetched() -> str:
        code = FETCH.format(nobody=NOBODY, path=str(city.agent))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert fetched() == "no way in"
    city.agent.parent.chmod(0o711)
    city.agent.chmod(0o666)
    assert fetched() == "0"
    city.agent.chmod(0o600)
    city.agent.parent.chmod(0o700)


def the_old_root_opens_nothing(city: City) -> None:
    """Neither with the store as it is, nor does a manifest of before count any more, its key put back or not."""
    assert city.before_finish is not None
    root = city.system.home / "root"
    old = {"GATEWAY_KEYS_ROOT": f"file:{root}/root.key?passphrase_file={root}/passphrase"}
    assert refusal(city.system, "status", **old).startswith("this root key does not open the key store")
    now = (city.store / "manifest").read_bytes()
    (city.store / "manifest").write_bytes((city.before_finish / "manifest").read_bytes())
    assert refusal(city.system, "status")
    assert refusal(city.system, "status", **old)
    (signing,) = city.before_finish.glob("root-2/manifest-signing-1-*")
    write_private(city.store / "root-2" / signing.name, signing.read_bytes(), replace=False)
    assert "which this database has seen" in refusal(city.system, "status")
    (city.store / "root-2" / signing.name).unlink()
    (city.store / "manifest").write_bytes(now)


# --- what describes the shares ---


def test_a_description_is_never_replaced(city: City) -> None:
    """Not that of the root in use, however its path is spelled, nor any other file that stands there."""
    description = city.folder / "root.shares"
    before = description.read_bytes()
    (city.folder / "alias.shares").symlink_to(description)
    own = "describes a root of this key store: name another file for the new one"
    with unlocked(city):
        for name in ("root.shares", "./root.shares", "agent/../root.shares", "alias.shares"):
            split = ("split", "--root", f"shares:{city.folder}/{name}?agent={city.agent}")
            asking = ("ceremony", *split, *city.custodians(*CUSTODIANS), *city.system.officer("security"))
            assert refusal(city.system, *asking) == f"{city.folder / name} {own}".replace("/./", "/")
    assert description.read_bytes() == before


@dataclass(frozen=True)
class OtherHost:
    """An empty home that shares the database with the city; its root is to be of the same shares."""

    city: City
    home: Path

    @property
    def description(self) -> Path:
        return self.home / "root.shares"

    @property
    def store(self) -> Path:
        return self.home / "keystore"

    def prepare(self) -> None:
        """What the runbook says to write before: a configuration and a password."""
        self.home.mkdir(mode=0o700)
        system = self.city.system
        password = (system.home / "secrets" / "keys" / "database.password").read_bytes()
        write_private(self.home / "secrets" / "keys" / "database.password", password, replace=False)
        lines = (system.home / "gateway.toml").read_text().splitlines()
        own = {
            "root": f"shares:{self.description}?agent={self.home}/agent/unlock.sock",
            "store": f"file:{self.store}",
            "secrets": f"{self.home}/secrets",
        }
        lines = [
            f'{line.split()[0]} = "{own[line.split()[0]]}"' if line.split(" = ")[0] in own else line for line in lines
        ]
        (self.home / "gateway.toml").write_text("\n".join(lines) + "\n")

    def restoring(self, source: Path) -> tuple[str, ...]:
        options = ("--from", str(source), "--config", str(self.home / "gateway.toml"))
        return ("restore", *options, *self.city.system.officer("security"))


def test_restored_with_shares(city: City) -> None:
    """A copy holds what describes the shares: custodians give theirs to `restore`, or unlock the root before it."""
    with unlocked(city):
        source = city.backup("shares.backup")
        assert city.not_backed_up == []
    asked, before = OtherHost(city, city.folder / "asked"), OtherHost(city, city.folder / "before")
    for host in (asked, before):
        host.prepare()
        locked = run(host.restoring(source), city.system.plain)
        assert (locked.code, locked.errors) == (1, f"keys: {LOCKED}\n")
        assert host.description.read_bytes() == (city.folder / "root.shares").read_bytes()
        assert not host.store.exists()
    with city.at_terminal(*asked.restoring(source)) as terminal:
        for name in ("third", "security"):
            terminal.expect("share of custodian")
            give(terminal, city.words[name])
        ends(terminal, 0, "The key store is back")
    with city.at_terminal("ceremony", "unlock", "--config", str(before.home / "gateway.toml")) as terminal:
        for name in ("third", "security"):
            terminal.expect(NOT_SHOWN)
            give(terminal, city.words[name])
        terminal.expect("Unlocked for 15 minutes")
        assert run(before.restoring(source), city.system.plain).output.startswith("The key store is back")
        verified = run(["verify", "--config", str(before.home / "gateway.toml")], city.system.plain)
        assert (verified.code, verified.errors) == (0, "")
    for host in (asked, before):
        assert (host.store / "manifest").read_bytes() == (city.store / "manifest").read_bytes()


def test_a_description_of_other_shares(city: City) -> None:
    """Laid down by a copy that proves wrong, it does not stay in the way of the right one."""
    host = OtherHost(city, city.folder / "wrong")
    host.prepare()
    source, key = city.folder / "shares.backup", city.system.demo["officers"]["security"]
    opened = open_officer_key(Path(key["key"]), read_private_line(Path(key["passphrase_file"])))
    header, held = read_header(source.read_bytes()), dict(open_backup(source.read_bytes(), opened))
    description = json.loads(held["root.shares"])
    held["root.shares"] = json.dumps(description | {"identifier": description["identifier"] ^ 1}).encode()
    people = [officer_of("security", opened, header.created)]
    known = {"backup_id": header.id, "environment": header.environment, "manifest_version": header.manifest_version}
    wrong = seal_backup(held, people, created=header.created, **known)  # type: ignore[arg-type] # one of them a number
    write_private(city.folder / "wrong.backup", wrong, replace=False)
    with city.at_terminal(*host.restoring(city.folder / "wrong.backup")) as terminal:
        for _ in range(3):
            terminal.expect("share of custodian")
            give(terminal, city.words["third"])
        ends(terminal, 1)
    assert not host.description.exists()
    assert not host.store.exists()


# --- a custodian leaves ---


async def test_a_custodian_leaves(city: City) -> None:
    """The root says so until it is replaced; a replacement that is killed at any step is finished by the next run."""
    with unlocked(city):
        city.system.by_two("keys", "officer", "remove", "third", "--reason", "left")
        marked = "third left on "
        assert any(
            marked in line and "`keys ceremony replace`" in line for line in told(city.system, "status")["due"]
        )
        folder = city.folder / "new"
        folder.mkdir(mode=0o700)
        write_private(folder / "passphrase", new_key().encode(), replace=False)
        uri = f"file:{folder}/root.key?passphrase_file={folder}/passphrase"
        asked = city.request("replace", "--root", uri)
        version = manifest(city.system)["version"]
        replace = ("ceremony", "replace", "--request", asked)
        for reached in (
            (folder / "root.key").exists,
            (city.store / "root-3").exists,
            lambda: manifest(city.system)["version"] > version,
        ):
            killed_when(city, reached, *replace)
        assert told(city.system, *replace)["root"] == 3
        assert await audited(city.system, asked) == [("keys.replace-root", "done", "security+security2", "root-3")]
        assert any(marked in line for line in told(city.system, "status")["due"])
        city.roots._configure(uri)
        city.roots._restart_api()
        assert told(city.system, "ceremony", "replace", "--finish", "--json") == {"dropped": [2]}
    due = told(city.system, "status")["due"]
    assert not any(marked in line for line in due)
    assert any("was wrapped by root 2, of which third took a share along: `keys rotate`" in line for line in due)
    told(city.system, "rotate")
    assert not any("took a share along" in line for line in told(city.system, "status")["due"])
    assert told(city.system, "verify")["failed"] == 0
    async with Client(city.system, "parks") as client:
        assert (await charged(client, await tokenized(client)))["status"] == "succeeded"


def killed_when(city: City, reached: Callable[[], bool], *arguments: str) -> None:
    """A command, killed a moment after it got so far."""
    command = subprocess.Popen(
        [str(BIN / "keys"), *arguments],
        env=city.system.plain,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    command.kill()
    command.wait()
