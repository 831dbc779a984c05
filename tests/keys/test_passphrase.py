"""A key in a file under a passphrase: what it costs to guess, and that no bit of the file can be another one.

The tests lower the price of Argon2id and run the same code; `test_root` pays it once.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from keys import passphrase
from keys.errors import KeystoreRefused, PassphraseRefused
from keys.files import write_private
from keys.passphrase import new_passphrase, open_file, require_long, seal_file
from keys.primitives import new_key
from keys.secret import Secret

PASSPHRASE = Secret("correct horse battery staple")
KEY = Secret(bytes(range(32)))
LABEL = b"keys/test/v1"
NOT_OPEN = "^the passphrase does not open {}: check the passphrase, and that this is the right file$"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its lowest cost, and no more than twice that, so that an altered header costs nothing either."""
    monkeypatch.setattr(passphrase, "OPERATIONS", 1)
    monkeypatch.setattr(passphrase, "OPERATIONS_MAX", 2)
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 8)
    monkeypatch.setattr(passphrase, "MEMORY_KIB_MAX", 16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with KEY under PASSPHRASE and LABEL."""
    path = tmp_path / "some.key"
    seal_file(path, KEY, PASSPHRASE, LABEL)
    return path


def test_what_is_sealed_opens(path: Path) -> None:
    """The key comes back; the file shows the cost that it was made with, and not the key."""
    raw = path.read_bytes()

    assert open_file(path, PASSPHRASE, LABEL).reveal() == KEY.reveal()
    assert (raw[0], int.from_bytes(raw[1:5], "big"), int.from_bytes(raw[5:9], "big"), len(raw)) == (1, 1, 8, 85)
    assert KEY.reveal()[:8] not in raw
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_files_share_nothing(path: Path) -> None:
    """One key under one passphrase, sealed twice, has different salts and different bytes behind them."""
    other = path.with_name("other.key")
    seal_file(other, KEY, PASSPHRASE, LABEL)

    assert path.read_bytes()[9:25] != other.read_bytes()[9:25]
    assert path.read_bytes()[25:] != other.read_bytes()[25:]


def test_another_passphrase(path: Path) -> None:
    """Another passphrase is refused with what to check, and neither it nor the file is quoted."""
    with pytest.raises(PassphraseRefused, match=NOT_OPEN.format(path)) as caught:
        open_file(path, Secret("incorrect horse battery staple"), LABEL)
    assert "horse" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("label", [b"", b"keys/test/v2", LABEL + b"\x00", LABEL[:-1]])
def test_another_label(path: Path, label: bytes) -> None:
    """A file made for one purpose does not open for another, whatever the passphrase."""
    with pytest.raises(PassphraseRefused, match=NOT_OPEN.format(path)):
        open_file(path, PASSPHRASE, label)


def test_every_bit_of_the_file_counts(path: Path) -> None:
    """Version, costs, salt, nonce, key and tag: no bit can be flipped, and no message quotes the file."""
    raw = path.read_bytes()
    for index in range(len(raw)):
        for bit in range(8):
            write_private(path, raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :], replace=True)
            with pytest.raises(PassphraseRefused, match=str(path)) as caught:
                open_file(path, PASSPHRASE, LABEL)
            assert raw[-48:-40].hex() not in str(caught.value)


def test_every_length_of_the_file_counts(path: Path) -> None:
    """Cut short or extended, it is no such file."""
    raw = path.read_bytes()
    for other in [*(raw[:length] for length in range(len(raw))), raw + b"\x00"]:
        write_private(path, other, replace=True)
        with pytest.raises(PassphraseRefused, match=r"is not a key under a passphrase, or was cut short: restore"):
            open_file(path, PASSPHRASE, LABEL)


@pytest.mark.parametrize(
    ("operations", "memory_kib"), [(0, 8), (3, 8), (2**32 - 1, 8), (1, 7), (1, 17), (1, 2**32 - 1)]
)
def test_a_cost_outside_its_bounds(path: Path, operations: int, memory_kib: int) -> None:
    """A header that asks for less than we write, or for more than a machine has, is refused before it is paid."""
    raw = path.read_bytes()
    cost = operations.to_bytes(4, "big") + memory_kib.to_bytes(4, "big")
    write_private(path, raw[:1] + cost + raw[9:], replace=True)

    with pytest.raises(PassphraseRefused, match="asks for a cost outside what is allowed: restore"):
        open_file(path, PASSPHRASE, LABEL)


def test_too_little_memory(tmp_path: Path) -> None:
    """A machine that cannot pay the price says how much it is, in one line and not in the library's words."""
    program = f"""
import resource
from pathlib import Path
from keys.errors import PassphraseRefused
from keys.passphrase import seal_file
from keys.secret import Secret

resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))
try:
    seal_file(Path({str(tmp_path / "key")!r}), Secret(bytes(32)), Secret("x" * 12), b"")
except PassphraseRefused as refused:
    print(refused)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert (ran.stdout, ran.stderr) == ("a passphrase takes 256 MiB to check: free that memory\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_short_passphrase(tmp_path: Path) -> None:
    """Eleven characters are refused and nothing is written; twelve are enough."""
    with pytest.raises(PassphraseRefused, match=r"^the passphrase needs at least 12 characters$"):
        seal_file(tmp_path / "key", KEY, Secret("x" * 11), LABEL)
    assert list(tmp_path.iterdir()) == []

    seal_file(tmp_path / "key", KEY, Secret("x" * 12), LABEL)
    require_long(Secret("x" * 12))


def test_a_passphrase_that_is_no_text(path: Path) -> None:
    """What a terminal of another character set hands out is refused, and the error in between does not show it."""
    for use in (lambda p: open_file(path, p, LABEL), lambda p: seal_file(path.with_name("new"), KEY, p, LABEL)):
        with pytest.raises(PassphraseRefused, match=r"^the passphrase is not UTF-8") as caught:
            use(Secret("correct horse b\udce4ttery"))
        assert caught.value.__suppress_context__


def test_a_file_is_never_replaced(path: Path) -> None:
    """A second key at the same place is refused, and the first stays as it was."""
    before = path.read_bytes()

    with pytest.raises(KeystoreRefused, match="never replaced"):
        seal_file(path, new_key(), PASSPHRASE, LABEL)
    assert path.read_bytes() == before


def test_a_file_that_is_not_private(path: Path) -> None:
    """Missing, open to others, or a symbolic link: it is looked at before the passphrase is stretched."""
    path.chmod(0o644)
    link = path.with_name("link")
    link.symlink_to(path)
    for wrong, words in ((path, "chmod 0600"), (link, "symbolic link"), (path.with_name("none"), "does not exist")):
        with pytest.raises(KeystoreRefused, match=words):
            open_file(wrong, PASSPHRASE, LABEL)


# --- asking for a new one ---


class Person:
    """Gives prepared answers, and remembers the questions."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, what: str) -> Secret[str]:
        self.asked.append(what)
        return Secret(self.answers.pop(0))


def test_a_new_passphrase_is_typed_twice() -> None:
    """The questions say what it is for; twice the same is taken."""
    person = Person("correct horse", "correct horse")

    assert new_passphrase(person, "the root key").reveal() == "correct horse"
    assert person.asked == ["new passphrase for the root key", "the same passphrase again"]


@pytest.mark.parametrize("again", ["correct horsf", "correct horse ", "", "Correct horse", "correct h\udcf6rse"])
def test_a_slip_of_the_finger(again: str) -> None:
    """Typed differently the second time, nothing is made, and neither is shown."""
    with pytest.raises(PassphraseRefused) as caught:
        new_passphrase(Person("correct horse", again), "the root key")
    assert "orse" not in str(caught.value)


def test_a_short_one_is_refused_before_it_is_typed_again() -> None:
    """Nobody types twice what is refused anyway."""
    person = Person("x" * 11)

    with pytest.raises(PassphraseRefused, match="at least 12"):
        new_passphrase(person, "the root key")
    assert len(person.asked) == 1
