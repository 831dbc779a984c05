"""The root key: named by a URI, kept in a file under a passphrase, and never given away.

One test pays what Argon2id really costs; the others lower the price and run the same code.
"""

from pathlib import Path

import pytest

from keys import root_file
from keys.errors import KeystoreRefused, RootRefused
from keys.files import read_private, write_private
from keys.primitives import new_key
from keys.root import create_root, open_root, scheme
from keys.root_file import FileRoot
from keys.secret import Secret

PASSPHRASE = Secret("correct horse battery staple")
BOUND = b"bound to"
NOT_OURS = r"^this root key does not open the key store: `keys.root` and `keys.store` do not belong together"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its lowest cost, and no more than twice that, so that an altered header costs nothing either."""
    monkeypatch.setattr(root_file, "OPERATIONS", 1)
    monkeypatch.setattr(root_file, "OPERATIONS_MAX", 2)
    monkeypatch.setattr(root_file, "MEMORY_KIB", 8)
    monkeypatch.setattr(root_file, "MEMORY_KIB_MAX", 16)


@pytest.fixture
def path(tmp_path: Path, cheap: None) -> Path:
    """A root key file under PASSPHRASE."""
    path = tmp_path / "root.key"
    root_file.create(str(path), PASSPHRASE)
    return path


def nobody(what: str) -> Secret[str]:
    """Stands where no person can be asked."""
    raise RootRefused(f"the {what} is needed")


# --- in memory ---


def test_what_a_root_wraps_it_unwraps(root: FileRoot) -> None:
    """A key comes back; wrapped twice it is not the same bytes; version 1 leads."""
    key = new_key()
    first, second = root.wrap(key, BOUND), root.wrap(key, BOUND)

    assert root.unwrap(first, BOUND).reveal() == root.unwrap(second, BOUND).reveal() == key.reveal()
    assert first != second
    assert first[:1] == b"\x01"


def test_a_wrap_is_bound(root: FileRoot) -> None:
    """Bound to another purpose, or under another root, a wrap does not open."""
    wrapped = root.wrap(new_key(), BOUND)

    for opener, bound_to in ((root, b"elsewhere"), (FileRoot(new_key()), BOUND)):
        with pytest.raises(RootRefused, match=NOT_OURS):
            opener.unwrap(wrapped, bound_to)


def test_every_bit_and_length_of_a_wrap_counts(root: FileRoot) -> None:
    """Altered in one bit, cut short, extended, or without its version byte, a wrap does not open."""
    wrapped = root.wrap(new_key(), BOUND)
    altered = [
        wrapped[:index] + bytes([wrapped[index] ^ 1 << bit]) + wrapped[index + 1 :]
        for index in range(len(wrapped))
        for bit in range(8)
    ]
    altered += [wrapped[:length] for length in range(len(wrapped))]
    altered += [wrapped[1:], b"\x01" + wrapped, wrapped + b"\x00"]
    for one in altered:
        with pytest.raises(RootRefused, match=NOT_OURS):
            root.unwrap(one, BOUND)


def test_a_root_shows_nothing_and_does_not_wrap_with_itself() -> None:
    """The root is used through a key derived from it, and no attribute shows either."""
    secret = new_key()
    root = FileRoot(secret)

    assert vars(root)["_wrapping"].reveal() != secret.reveal()
    assert "Secret(…)" in str(vars(root))


# --- in a file ---


def test_the_real_cost(tmp_path: Path) -> None:
    """A root made and opened at the cost that ships, three passes over 256 MiB, written into the header."""
    path = tmp_path / "root.key"
    wrapped = root_file.create(str(path), PASSPHRASE).wrap(Secret(b"key"), BOUND)

    assert root_file.open_file(str(path), PASSPHRASE).unwrap(wrapped, BOUND).reveal() == b"key"
    raw = read_private(path)
    assert (raw[0], int.from_bytes(raw[1:5], "big"), int.from_bytes(raw[5:9], "big")) == (1, 3, 256 * 1024)
    assert len(raw) == 85


def test_two_roots_share_nothing(path: Path) -> None:
    """Two roots under one passphrase have different salts and do not open each other's wraps."""
    other = path.with_name("other.key")
    wrapped = root_file.create(str(other), PASSPHRASE).wrap(Secret(b"key"), BOUND)

    assert path.read_bytes()[9:25] != other.read_bytes()[9:25]
    with pytest.raises(RootRefused, match=NOT_OURS):
        root_file.open_file(str(path), PASSPHRASE).unwrap(wrapped, BOUND)


def test_another_passphrase(path: Path) -> None:
    """Another passphrase is refused with what to check, and is not quoted."""
    with pytest.raises(RootRefused, match=rf"^the passphrase does not open {path}: check the passphrase file$"):
        root_file.open_file(str(path), Secret("incorrect horse battery staple"))


def test_a_short_passphrase(tmp_path: Path, cheap: None) -> None:
    """Eleven characters are refused and nothing is written; twelve are enough."""
    with pytest.raises(RootRefused, match=r"^the passphrase needs at least 12 characters$"):
        root_file.create(str(tmp_path / "root.key"), Secret("x" * 11))
    assert list(tmp_path.iterdir()) == []

    root_file.create(str(tmp_path / "root.key"), Secret("x" * 12))


def test_a_root_is_never_replaced(path: Path) -> None:
    """A second root at the same place is refused, and the first stays as it was."""
    before = path.read_bytes()

    with pytest.raises(KeystoreRefused, match="never replaced"):
        root_file.create(str(path), PASSPHRASE)
    assert path.read_bytes() == before


def test_every_bit_of_the_file_counts(path: Path) -> None:
    """Version, costs, salt, nonce, root and tag: no bit can be flipped, and no message quotes the file."""
    raw = path.read_bytes()
    for index in range(len(raw)):
        for bit in range(8):
            write_private(path, raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :], replace=True)
            with pytest.raises(RootRefused, match=str(path)) as caught:
                root_file.open_file(str(path), PASSPHRASE)
            assert raw[-48:-40].hex() not in str(caught.value)


def test_every_length_of_the_file_counts(path: Path) -> None:
    """Cut short or extended, it is no root key file."""
    raw = path.read_bytes()
    for other in [*(raw[:length] for length in range(len(raw))), raw + b"\x00"]:
        write_private(path, other, replace=True)
        with pytest.raises(
            RootRefused, match=r"is not a root key file, or was cut short: restore it from its backup$"
        ):
            root_file.open_file(str(path), PASSPHRASE)


@pytest.mark.parametrize(
    ("operations", "memory_kib"), [(0, 8), (3, 8), (2**32 - 1, 8), (1, 7), (1, 17), (1, 2**32 - 1)]
)
def test_a_cost_outside_its_bounds(path: Path, operations: int, memory_kib: int) -> None:
    """A header that asks for less than we write, or for more than a machine has, is refused before it is paid."""
    raw = path.read_bytes()
    cost = operations.to_bytes(4, "big") + memory_kib.to_bytes(4, "big")
    write_private(path, raw[:1] + cost + raw[9:], replace=True)

    with pytest.raises(RootRefused, match="asks for a cost outside what is allowed: restore"):
        root_file.open_file(str(path), PASSPHRASE)


def test_a_file_that_others_can_read(path: Path) -> None:
    """The file's own permissions are looked at before the passphrase is stretched."""
    path.chmod(0o644)

    with pytest.raises(KeystoreRefused, match="chmod 0600"):
        root_file.open_file(str(path), PASSPHRASE)


# --- by name ---


def test_create_and_open_by_name(tmp_path: Path, cheap: None) -> None:
    """A URI with a passphrase file needs nobody; spaces and such are percent-encoded."""
    write_private(tmp_path / "pass phrase", b"correct horse battery staple\n", replace=False)
    uri = f"file:{tmp_path}/root%20key?passphrase_file={tmp_path}/pass%20phrase"
    wrapped = create_root(uri, nobody).wrap(Secret(b"key"), BOUND)

    assert (tmp_path / "root key").exists()
    assert open_root(uri, nobody).unwrap(wrapped, BOUND).reveal() == b"key"
    assert scheme(uri) == "file"


def test_without_a_passphrase_file_a_person_is_asked(path: Path) -> None:
    """The question names what is wanted; where nobody answers, opening is refused."""
    asked: list[str] = []

    def person(what: str) -> Secret[str]:
        asked.append(what)
        return PASSPHRASE

    open_root(f"file:{path}", person)
    assert asked == ["passphrase of the root key"]
    with pytest.raises(RootRefused, match=r"^the passphrase of the root key is needed$"):
        open_root(f"file:{path}", nobody)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/root.key",
        "root.key",
        "file:root.key",
        "file://root.key",
        "file://host/root.key",
        "file:/root.key#part",
        "awskms:/key",
        "FILE",
        "https://host/root.key",
    ],
)
def test_a_uri_of_no_form_that_we_know(uri: str) -> None:
    """A relative path, a host, a fragment or an unknown scheme is refused with the form that is wanted."""
    for act in (create_root, open_root):
        with pytest.raises(RootRefused, match=r"^keys\.root must be `file:/absolute/path"):
            act(uri, nobody)


@pytest.mark.parametrize(
    "option", ["passphrase=hunter2", "passphrase_fil=/x", "passphrase_fil", "passphrase_file=/x&a=1"]
)
def test_an_unknown_option(tmp_path: Path, option: str) -> None:
    """An option that we do not know is refused by its name; its value, which may be the passphrase, is not shown."""
    with pytest.raises(RootRefused, match=r"unknown option .*`passphrase_file` is the only one") as caught:
        open_root(f"file:{tmp_path}/root.key?{option}", nobody)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("option", ["passphrase_file=", "passphrase_file", "passphrase_file=relative"])
def test_a_passphrase_file_that_is_no_absolute_path(tmp_path: Path, option: str) -> None:
    """An empty or relative path is a slip of the pen: nobody is asked instead."""
    with pytest.raises(RootRefused, match=r"passphrase_file must be an absolute path$"):
        open_root(f"file:{tmp_path}/root.key?{option}", nobody)


def test_a_passphrase_file_that_others_can_read(path: Path) -> None:
    """The passphrase file is a private file like any other."""
    passphrase_file = path.with_name("passphrase")
    passphrase_file.write_text("correct horse battery staple")
    passphrase_file.chmod(0o640)

    with pytest.raises(KeystoreRefused, match=f"`chmod 0600 {passphrase_file}`"):
        open_root(f"file:{path}?passphrase_file={passphrase_file}", nobody)
