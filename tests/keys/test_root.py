"""The root key: named by a URI, kept in a file under a passphrase, and never given away.

One test pays what Argon2id really costs; the others lower the price and run the same code. `test_passphrase` looks at
the file's bytes.
"""

from pathlib import Path

import pytest

from keys import passphrase, roots
from keys.errors import KeysError, KeystoreRefused, RootRefused
from keys.files import read_private, write_private
from keys.officers import create_officer_key, open_officer_key
from keys.primitives import new_key
from keys.root_file import FileRoot, create, open_root
from keys.secret import Secret

PASSPHRASE = Secret("correct horse battery staple")
BOUND = b"bound to"
NOT_OURS = r"^this root key does not open the key store: `keys.root` and `keys.store` do not belong together"

FIRST_RELEASE = bytes.fromhex(
    "0100000003000400002d526a2870173f4f5a0a543c802a39027e03c77bcfb668613f4150e4644582470a8f72faf16fb79e343f2e0fad2fab76"
    "828be82865ccd2f87897d21e711f74ebe523c65b85205270e4aea6e7"
)
"""A root key file as the first release wrote it, under PASSPHRASE."""

FIRST_WRAP = bytes.fromhex("01a75f8b13d0e6175f6e1e161b2085d38505987d969bdbe4212b3569481d0ccb")
"""What that root wrapped, bound to BOUND: `key`."""


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Argon2id at its lowest cost."""
    monkeypatch.setattr(passphrase, "OPERATIONS", 1)
    monkeypatch.setattr(passphrase, "MEMORY_KIB", 8)


@pytest.fixture
def path(tmp_path: Path, cheap: None) -> Path:
    """A root key file under PASSPHRASE."""
    path = tmp_path / "root.key"
    create(f"file:{path}", person)
    return path


def nobody(what: str) -> Secret[str]:
    """Stands where no person can be asked."""
    raise RootRefused(f"the {what} is needed")


def person(_what: str) -> Secret[str]:
    """Knows the passphrase."""
    return PASSPHRASE


def stranger(_what: str) -> Secret[str]:
    """Knows another one."""
    return Secret("incorrect horse battery staple")


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
    wrapped = create(f"file:{path}", person).wrap(Secret(b"key"), BOUND)

    assert open_root(f"file:{path}", person).unwrap(wrapped, BOUND).reveal() == b"key"
    raw = read_private(path)
    assert (raw[0], int.from_bytes(raw[1:5], "big"), int.from_bytes(raw[5:9], "big")) == (1, 3, 256 * 1024)
    assert len(raw) == 85


def test_a_root_of_the_first_release(tmp_path: Path) -> None:
    """Its file still opens, and what it wrapped with it."""
    path = tmp_path / "root.key"
    write_private(path, FIRST_RELEASE, replace=False)

    assert open_root(f"file:{path}", person).unwrap(FIRST_WRAP, BOUND).reveal() == b"key"


def test_two_roots_share_nothing(path: Path) -> None:
    """Two roots under one passphrase do not open each other's wraps."""
    wrapped = create(f"file:{path}2", person).wrap(Secret(b"key"), BOUND)

    with pytest.raises(RootRefused, match=NOT_OURS):
        open_root(f"file:{path}", person).unwrap(wrapped, BOUND)


def test_another_passphrase(path: Path) -> None:
    """Another passphrase is refused with what to check, and is not quoted."""
    with pytest.raises(RootRefused, match=rf"^the passphrase does not open {path}: check the passphrase") as caught:
        open_root(f"file:{path}", stranger)
    assert "horse" not in str(caught.value)


def test_a_short_passphrase(tmp_path: Path, cheap: None) -> None:
    """Eleven characters are refused, from a person and from a file, and nothing is written."""
    short = tmp_path / "short"
    write_private(short, b"x" * 11 + b"\n", replace=False)
    for options, ask in (("", lambda _: Secret("x" * 11)), (f"?passphrase_file={short}", nobody)):
        with pytest.raises(RootRefused, match=r"^the passphrase needs at least 12 characters$"):
            create(f"file:{tmp_path}/root.key{options}", ask)
    assert list(tmp_path.iterdir()) == [short]


def test_a_root_is_never_replaced(path: Path) -> None:
    """A second root at the same place is refused before anyone is asked, and the first stays as it was."""
    before = path.read_bytes()

    with pytest.raises(KeystoreRefused, match=r"^.* exists already and is never replaced: move it away first$"):
        create(f"file:{path}", nobody)
    assert path.read_bytes() == before


def test_a_damaged_file(path: Path) -> None:
    """Cut short, or asking for a cost that we never wrote, it is refused as a root, and its backup is named."""
    raw = path.read_bytes()
    for other, words in ((raw[:-1], "was cut short"), (raw[:1] + bytes(8) + raw[9:], "asks for a cost outside")):
        write_private(path, other, replace=True)
        with pytest.raises(RootRefused, match=f"{words}.*: restore it from its backup$"):
            open_root(f"file:{path}", person)


def test_a_root_is_no_officer_and_an_officer_no_root(path: Path) -> None:
    """Files of both kinds look alike, and under one passphrase neither opens as the other."""
    other = path.with_name("officer.key")
    create_officer_key(other, PASSPHRASE)

    with pytest.raises(RootRefused, match="check the passphrase, and that this is the right file"):
        open_root(f"file:{other}", person)
    with pytest.raises(KeysError, match="check the passphrase, and that this is the right file"):
        open_officer_key(path, PASSPHRASE)


def test_a_missing_file(tmp_path: Path) -> None:
    """It is said where it comes from, and nobody is asked for a passphrase."""
    for place in ("root.key", "no/root.key"):
        with pytest.raises(RootRefused, match=r"does not exist: `keys init` makes it, once"):
            open_root(f"file:{tmp_path}/{place}", nobody)


def test_a_place_that_cannot_be_looked_at(tmp_path: Path, cheap: None) -> None:
    """A name that the file system refuses is a refusal like any other, and no traceback."""
    uri = f"file:{tmp_path}/{'x' * 300}"
    for act in (create, open_root):
        with pytest.raises(KeystoreRefused, match="cannot be"):
            act(uri, person)


def test_a_file_that_others_can_read(path: Path) -> None:
    """The file's own permissions are looked at before the passphrase is stretched."""
    path.chmod(0o644)

    with pytest.raises(KeystoreRefused, match="chmod 0600"):
        open_root(f"file:{path}", person)


# --- by name ---


def test_create_and_open_by_name(tmp_path: Path, cheap: None) -> None:
    """A URI with a passphrase file needs nobody; spaces and such are percent-encoded."""
    write_private(tmp_path / "pass phrase", b"correct horse battery staple\n", replace=False)
    uri = f"file:{tmp_path}/root%20key?passphrase_file={tmp_path}/pass%20phrase"
    wrapped = roots.create_root(uri, nobody).wrap(Secret(b"key"), BOUND)

    assert (tmp_path / "root key").exists()
    assert roots.open_root(uri, nobody).unwrap(wrapped, BOUND).reveal() == b"key"


def test_without_a_passphrase_file_a_person_is_asked(tmp_path: Path, cheap: None) -> None:
    """The questions name what is wanted, twice for a new one; where nobody answers, both acts are refused."""
    asked: list[str] = []

    def answer(what: str) -> Secret[str]:
        asked.append(what)
        return PASSPHRASE

    uri = f"file:{tmp_path}/root.key"
    with pytest.raises(RootRefused, match=r"^the new passphrase for the root key is needed$"):
        create(uri, nobody)
    create(uri, answer)
    open_root(uri, answer)
    assert asked == ["new passphrase for the root key", "the same passphrase again", "passphrase of the root key"]
    with pytest.raises(RootRefused, match=r"^the passphrase of the root key is needed$"):
        open_root(uri, nobody)


def test_a_slip_of_the_finger(tmp_path: Path) -> None:
    """Two different answers to the two questions make no root."""
    answers = [Secret("correct horse battery staple"), Secret("correct horse battery stable")]

    with pytest.raises(RootRefused, match=r"^the two passphrases differ, and nothing was made: try again$"):
        create(f"file:{tmp_path}/root.key", lambda _: answers.pop(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/root.key",
        "root.key",
        "file:root.key",
        "file://root.key",
        "file://host/root.key",
        "file://[",
        "file:/root.key#part",
        "file:/root%00.key",
        "awskms:/key",
        "FILE",
        "https://host/root.key",
    ],
)
def test_a_uri_of_no_form_that_we_know(uri: str) -> None:
    """A relative path, a host, a fragment or another scheme is refused with the form that is wanted."""
    for act in (create, open_root):
        with pytest.raises(RootRefused, match=r"^keys\.root must be `file:/absolute/path"):
            act(uri, nobody)


@pytest.mark.parametrize("name", ["passphrase", "Passphrase", "password", "pin", "pin-value"])
def test_a_passphrase_in_the_uri(tmp_path: Path, name: str) -> None:
    """A secret does not stand in a URI, even beside a good option; it is not quoted."""
    for act in (create, open_root):
        for options in (f"{name}=hunter2", f"passphrase_file=/x&{name}=hunter2"):
            with pytest.raises(RootRefused, match=r"a passphrase does not stand in a URI: name a pass") as caught:
                act(f"file:{tmp_path}/root.key?{options}", nobody)
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    ["hunter2", "passphrase_fil=/x", "passphrase_fil", "PASSPHRASE_FILE=/x", "a=hunter2&passphrase_file=/x"],
)
def test_an_unknown_option(tmp_path: Path, options: str) -> None:
    """An option that we do not know is refused with the one that there is; it may be a secret, so it is not shown."""
    with pytest.raises(RootRefused, match=r"has one option, once: `passphrase_file`$") as caught:
        open_root(f"file:{tmp_path}/root.key?{options}", nobody)
    assert "hunter2" not in str(caught.value)


def test_an_option_twice(tmp_path: Path) -> None:
    """Of two passphrase files none is chosen."""
    with pytest.raises(RootRefused, match=r"has one option, once"):
        open_root(f"file:{tmp_path}/root.key?passphrase_file=/x&passphrase_file=/y", nobody)


@pytest.mark.parametrize(
    "option", ["passphrase_file=", "passphrase_file", "passphrase_file=x", "passphrase_file=/%00"]
)
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
