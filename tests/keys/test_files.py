"""Private files: read only when nobody else could have read or replaced them, written whole or not at all."""

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keys.errors import KeystoreRefused
from keys.files import (
    FILE_BYTES_MAX,
    make_private_directory,
    read_private,
    read_private_line,
    remove_drafts,
    remove_private,
    remove_tree,
    require_private_directory,
    write_private,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that is as it must be."""
    path = tmp_path / "file"
    write_private(path, b"content", replace=False)
    return path


def test_what_is_written_is_read(file: Path) -> None:
    """Bytes come back; the file is of mode 0600, and no draft is left beside it."""
    assert read_private(file) == b"content"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_directories_are_made_private(tmp_path: Path) -> None:
    """Missing directories are made on the way, every one for this user alone."""
    write_private(tmp_path / "new" / "deep" / "file", b"", replace=False)

    for folder in (tmp_path / "new", tmp_path / "new" / "deep"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        require_private_directory(folder)


def test_nothing_is_replaced_unasked(file: Path) -> None:
    """Without leave a file stays as it is, and the message says what to do."""
    with pytest.raises(KeystoreRefused, match=r"exists already and is never replaced: move it away first$"):
        write_private(file, b"other", replace=False)

    assert read_private(file) == b"content"


def test_replaced_by_rename(file: Path) -> None:
    """With leave the name leads to a new file, whole; who holds the old one open still reads the old content."""
    with file.open("rb") as old:
        write_private(file, b"other", replace=True)
        assert old.read() == b"content"

    assert read_private(file) == b"other"


def test_a_wide_file_is_narrowed_when_replaced(file: Path) -> None:
    """The mode of what stood there before is not inherited."""
    file.chmod(0o644)
    write_private(file, b"other", replace=True)

    assert read_private(file) == b"other"


def test_an_interrupted_draft_is_no_file(file: Path) -> None:
    """What a crash left of a write is not read in the place of the file, and does not stop the next write."""
    file.with_name(f".{file.name}.{os.getpid()}").write_bytes(b"half")
    assert read_private(file) == b"content"
    write_private(file, b"whole", replace=True)

    assert read_private(file) == b"whole"


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_no_draft(file: Path) -> None:
    """What could not be written to its end is refused, and nothing of it stays beside the file."""
    with full_at(FILE_BYTES_MAX), pytest.raises(KeystoreRefused, match=r"file cannot be written \(File too large\)$"):
        write_private(file, bytes(FILE_BYTES_MAX + 1), replace=True)
    assert list(file.parent.iterdir()) == [file]
    assert read_private(file) == b"content"


BETWEEN = """
import os, signal, sys
from pathlib import Path
from keys.files import write_private

def end(event, arguments):
    if event == "os.remove" and os.path.exists(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(end)
write_private(Path(sys.argv[1]), b"secret", replace=False)
"""


@pytest.fixture
def twice_named(tmp_path: Path) -> Path:
    """A file whose writer was killed when it had linked its draft, and not unlinked it yet."""
    path = tmp_path / "folder" / "written"
    done = subprocess.run([sys.executable, "-c", BETWEEN, str(path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.stat().st_nlink == len(list(path.parent.iterdir())) == 2
    return path


def test_killed_between_two_names(twice_named: Path) -> None:
    """The draft goes, and what was written stays whole."""
    assert read_private(twice_named) == b"secret"
    remove_drafts(twice_named.parent, "*")
    assert list(twice_named.parent.iterdir()) == [twice_named]
    assert read_private(twice_named) == b"secret"


def test_removed_under_both_names(twice_named: Path) -> None:
    """A file that a killed writer left with two names is wiped like any other, alone or with its folder."""
    with twice_named.open("rb") as held:
        remove_private(twice_named)
        assert held.read() == bytes(6)
    assert not list(twice_named.parent.iterdir())


def test_a_tree_with_two_names(twice_named: Path) -> None:
    """A folder in which a writer was killed is wiped whole."""
    with twice_named.open("rb") as held:
        remove_tree(twice_named.parent)
        assert held.read() == bytes(6)
    assert not twice_named.parent.exists()


# --- removed ---


def test_what_is_removed_is_zeroed(file: Path) -> None:
    """Who holds it open reads zeros; removing it again is no error."""
    with file.open("rb") as held:
        remove_private(file)
        remove_private(file)
        assert held.read() == bytes(len(b"content"))


def test_what_is_not_removed(file: Path, tmp_path: Path) -> None:
    """Pipes, folders and links are refused at once, and a file with two names keeps its bytes under both."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(file)
    for name in ("pipe", "folder", "link"):
        with pytest.raises(KeystoreRefused, match=f"^{tmp_path / name} cannot be removed "):
            remove_private(tmp_path / name)
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "second").hardlink_to(file)
    for name in ("pipe", "second"):
        with pytest.raises(KeystoreRefused, match=r"is no plain file, or has another name \(a hard link\)"):
            remove_private(tmp_path / name)
    os.close(reading)
    assert read_private(file) == b"content"


def test_what_is_no_draft(tmp_path: Path) -> None:
    """A pipe or a folder by the name of a draft stays, and stops nobody."""
    os.mkfifo(tmp_path / ".a.7", 0o600)
    (tmp_path / ".b.7").mkdir()
    for name in (".c.7", "..7", "...7"):
        (tmp_path / name).touch(0o600)
    remove_drafts(tmp_path, "*")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.7", ".b.7"]


def test_a_tree_is_removed(tmp_path: Path) -> None:
    """Every file in it is zeroed first; a link goes, and not what it leads to; nothing at all is no error."""
    tree, precious = tmp_path / "tree", tmp_path / "precious"
    write_private(precious, b"precious", replace=False)
    for name in ("a", "deep/b", "deep/er/c"):
        write_private(tree / name, b"secret", replace=False)
    (tree / "deep" / "link").symlink_to(tmp_path)
    os.mkfifo(tree / "pipe")
    with (tree / "deep" / "er" / "c").open("rb") as held:
        remove_tree(tree)
        remove_tree(tree)
        assert held.read() == bytes(6)
    assert list(tmp_path.iterdir()) == [precious]
    assert read_private(precious) == b"precious"


def test_a_linked_tree_is_not_removed(file: Path, tmp_path: Path) -> None:
    """Where a link stands in its place, nothing is followed."""
    (tmp_path / "link").symlink_to(file.parent)
    with pytest.raises(KeystoreRefused, match="must be a directory and no symbolic link"):
        remove_tree(tmp_path / "link")
    assert read_private(file) == b"content"


# --- refused ---


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o602, 0o620, 0o610, 0o601, 0o666, 0o777])
def test_open_to_others(file: Path, mode: int) -> None:
    """Any permission of group or others is refused, with the command that takes it away."""
    file.chmod(mode)

    with pytest.raises(KeystoreRefused, match=f"^{file} is open to others: `chmod 0600 {file}`$"):
        read_private(file)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_open_to_its_owner(file: Path, mode: int) -> None:
    """What the owner may do is not our concern."""
    file.chmod(mode)

    assert read_private(file) == b"content"


def test_a_symbolic_link(file: Path) -> None:
    """A link is refused even when it leads to a file that is as it must be."""
    link = file.with_name("link")
    link.symlink_to(file)

    with pytest.raises(KeystoreRefused, match=r"must be a plain file$"):
        read_private(link)


def test_a_missing_file(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(KeystoreRefused, match=r"none does not exist$"):
        read_private(tmp_path / "none")


def test_no_plain_file(tmp_path: Path) -> None:
    """Directories, named pipes, sockets and devices are refused at once: nobody waits for a pipe's writer."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket", Path(os.devnull)):
            with pytest.raises(KeystoreRefused, match=r"a plain file$"):
                read_private(path)


def test_the_largest_file(file: Path) -> None:
    """A file of the greatest size is read whole, one byte more is refused."""
    write_private(file, bytes(FILE_BYTES_MAX), replace=True)
    assert len(read_private(file)) == FILE_BYTES_MAX
    write_private(file, bytes(FILE_BYTES_MAX + 1), replace=True)

    with pytest.raises(KeystoreRefused, match=r"larger than any file of its kind$"):
        read_private(file)


@as_root
def test_someone_elses_file(file: Path) -> None:
    """A file that another user could change under us is refused."""
    os.chown(file, 65534, 65534)

    with pytest.raises(KeystoreRefused, match="belongs to another user: `chown` it"):
        read_private(file)


@pytest.mark.parametrize(
    ("content", "line"), [(b"word", "word"), (b"word\n", "word"), (b"two words\nmore\n", "two words"), (b"", "")]
)
def test_the_first_line_as_a_secret(file: Path, content: bytes, line: str) -> None:
    """A password file's first line is the password, with or without a newline, spaces kept."""
    write_private(file, content, replace=True)

    assert read_private_line(file).reveal() == line


def test_a_line_that_is_no_text(file: Path) -> None:
    """Bytes that are no UTF-8 are refused, and not quoted."""
    write_private(file, b"\xff\xfesecret", replace=True)

    with pytest.raises(KeystoreRefused, match=r"file is not a text file$"):
        read_private_line(file)


def test_where_nothing_can_be_written(file: Path) -> None:
    """A path through a file cannot be made or written: a refusal, not a traceback."""
    with pytest.raises(KeystoreRefused, match="cannot be made"):
        write_private(file / "below", b"", replace=True)
    with pytest.raises(KeystoreRefused, match="cannot be made"):
        make_private_directory(file)
    (file.parent / "directory").mkdir()
    with pytest.raises(KeystoreRefused, match="cannot be written"):
        write_private(file.parent / "directory", b"", replace=True)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o770, 0o777, 0o1777, 0o701])
def test_a_directory_open_to_others(tmp_path: Path, mode: int) -> None:
    """A directory that group or others may enter is refused, with the command that closes it."""
    tmp_path.chmod(mode)

    with pytest.raises(
        KeystoreRefused, match=f"^{tmp_path} must belong to this user alone: `chmod 0700 {tmp_path}`$"
    ):
        require_private_directory(tmp_path)


@as_root
def test_someone_elses_directory(tmp_path: Path) -> None:
    """So is one that belongs to another user."""
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 65534, 65534)

    with pytest.raises(KeystoreRefused, match="must belong to this user alone"):
        require_private_directory(tmp_path)


def test_no_directory(file: Path) -> None:
    """A file, a link to a directory and nothing at all are no private directory; the last names `keys init`."""
    (file.parent / "real").mkdir(mode=0o700)
    (file.parent / "link").symlink_to(file.parent / "real")

    for path in (file, file.parent / "link"):
        with pytest.raises(KeystoreRefused, match=r"must be a directory and no symbolic link$"):
            require_private_directory(path)
    with pytest.raises(KeystoreRefused, match=r"does not exist: `keys init` makes it$"):
        require_private_directory(file.parent / "none")
