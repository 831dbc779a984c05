"""Keys of processes that cannot reach the root: a file each, numbered, and nothing else in their folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from keys.errors import KeystoreRefused
from keys.files import write_private
from keys.manifest import Purpose
from keys.primitives import KEY_BYTES
from keys.process_keys import HOLDERS, make_process_key, newest, process_key_path, read_process_keys

BASE: tuple[str, Purpose] = ("api", "audit-mac")


def test_made_once(tmp_path: Path) -> None:
    """A key is 32 bytes in a file of mode 0600; made again it is the same key, for its process may use it already."""
    first = make_process_key(tmp_path, "api", "audit-mac", 1)
    path = tmp_path / "api" / "audit-mac-1.key"

    assert make_process_key(tmp_path, "api", "audit-mac", 1).reveal() == first.reveal() == path.read_bytes()
    assert len(first.reveal()) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_read_by_number(tmp_path: Path) -> None:
    """All keys of one purpose come in the order of their numbers, and the newest is the one to sign with."""
    made = {number: make_process_key(tmp_path, "api", "audit-mac", number).reveal() for number in (1, 2, 10)}
    make_process_key(tmp_path, "api", "api-digest", 11)
    read = read_process_keys(tmp_path, "api", "audit-mac")

    assert [(number, key.reveal()) for number, key in read.items()] == list(made.items())
    number, key = newest(read)
    assert (number, key.reveal()) == (10, made[10])


@pytest.mark.parametrize(
    "name",
    [
        *("audit-mac.key", "audit-mac-0.key", "audit-mac-02.key", "audit-mac--2.key", "audit-mac-2.key.bak"),
        *("xaudit-mac-2.key", "audit-mac-2key", ".audit-mac-2.key.4711", "audit-mac-2.key\n", "audit-mac-².key"),
    ],
)
def test_other_files_are_no_keys(tmp_path: Path, name: str) -> None:
    """Files of another name, and drafts that a crash left, are passed by."""
    make_process_key(tmp_path, *BASE, 1)
    write_private(tmp_path / "api" / name, bytes(KEY_BYTES), replace=False)

    assert list(read_process_keys(tmp_path, *BASE)) == [1]


@pytest.mark.parametrize("there", [False, True])
def test_a_process_without_its_key(tmp_path: Path, there: bool) -> None:
    """Without a folder, or with an empty one, the refusal names it and the command that makes keys."""
    if there:
        (tmp_path / "api").mkdir()

    with pytest.raises(KeystoreRefused, match=rf"^{tmp_path}/api holds no audit-mac key: `keys init` makes it;"):
        read_process_keys(tmp_path, *BASE)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("tamper", "told"),
    [
        (lambda path: path.write_bytes(bytes(31)), "is not a key of 32 bytes: restore it from its backup"),
        (lambda path: path.write_bytes(bytes(33)), "is not a key of 32 bytes"),
        (lambda path: path.write_bytes(b""), "is not a key of 32 bytes"),
        (lambda path: path.chmod(0o640), "is open to others: `chmod 0600 "),
        (link, "it must be a plain file"),
        (put_pipe, "is not a plain file"),
    ],
)
def test_a_file_that_is_not_as_it_must_be(tmp_path: Path, tamper: Callable[[Path], object], told: str) -> None:
    """One doubtful key among several refuses them all, by its path; no byte of it is shown."""
    for number in (1, 2):
        make_process_key(tmp_path, *BASE, number)
    path = process_key_path(tmp_path, *BASE, 2)
    tamper(path)

    with pytest.raises(KeystoreRefused) as caught:
        read_process_keys(tmp_path, *BASE)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_who_holds_what() -> None:
    """Whoever writes audit rows has a MAC key of its own, the owner too; nobody has one thing twice."""
    assert {holder for holder, purpose in HOLDERS if purpose == "audit-mac"} == {
        *("api", "admin", "worker", "reseal", "keys", "owner")
    }
    assert len(set(HOLDERS)) == len(HOLDERS)
