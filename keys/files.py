"""Files that hold secrets: read only if nobody else could have read or replaced them, written whole or not at all."""

import os
import stat
from contextlib import suppress
from glob import escape
from pathlib import Path

from keys.errors import KeystoreRefused
from keys.secret import Secret

FILE_BYTES_MAX = 1 << 20


def read_private(path: Path, bytes_max: int = FILE_BYTES_MAX) -> bytes:
    """The bytes of a regular file that belongs to this user and that no one else can open.

    Raises:
        KeystoreRefused: missing, a symbolic link, someone else's, too wide permissions, or too large.
    """
    try:
        with open(path, "rb", opener=_open_plain) as file:
            _require_private(path, os.fstat(file.fileno()), bytes_max)
            return file.read()
    except FileNotFoundError:
        raise KeystoreRefused(f"{path} does not exist") from None
    except OSError:
        raise KeystoreRefused(f"{path} cannot be read, or is a symbolic link; it must be a plain file") from None


def read_private_line(path: Path) -> Secret[str]:
    """The first line of such a file, as a secret text: a password or a credential."""
    try:
        return Secret(read_private(path).decode().split("\n", 1)[0])
    except UnicodeDecodeError:
        raise KeystoreRefused(f"{path} is not a text file") from None


def write_private(path: Path, content: bytes, *, replace: bool) -> None:
    """Write a file of mode 0600 whole, durable when this returns; a crash leaves the old one or the new one.

    Raises:
        KeystoreRefused: it exists and is not to be replaced, or cannot be written.
    """
    make_private_directory(path.parent)
    try:
        _write(path, content, replace=replace)
    except FileExistsError:
        raise KeystoreRefused(f"{path} exists already and is never replaced: move it away first") from None
    except OSError as error:
        raise KeystoreRefused(f"{path} cannot be written ({error.strerror})") from None


def is_plain(path: Path) -> bool:
    """Whether a regular file lies there: no folder, link, pipe or device, and not nothing."""
    return path.is_file() and not path.is_symlink()


def remove_private(path: Path) -> None:
    """Overwrite a plain file with zeros and remove it, durable when this returns; nothing where there is none.

    A file system that copies on write, or a flash disk, keeps the old bytes for a while: what lies there must be
    worthless without another key. Raises `KeystoreRefused` for what is no plain file, and for one that has a second
    name, a hard link: its bytes would stay there, or be zeroed under the eyes of whom they belong to. The name that a
    killed writer left, its draft's, is ours and goes.
    """
    _drop_second_name(path)
    try:
        # Non-blocking, so that a named pipe is refused instead of waited for.
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise KeystoreRefused(f"{path} cannot be removed ({error.strerror})") from None
    with os.fdopen(descriptor, "wb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
            raise KeystoreRefused(f"{path} is no plain file, or has another name (a hard link): remove that first")
        file.write(bytes(about.st_size))
        file.flush()
        os.fsync(descriptor)
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def remove_drafts(directory: Path, name: str) -> None:
    """Remove what writers that were killed have left of files of such a name (a pattern of `fnmatch`)."""
    for draft in filter(is_plain, directory.glob(f".{name}.[0-9]*")):
        written = draft.name[1:].rpartition(".")[0]
        if written.strip("."):
            _drop_second_name(draft.with_name(written))
        remove_private(draft)


def remove_tree(directory: Path) -> None:
    """Overwrite and remove every file in a private directory, and the directory; nothing where there is none."""
    if not os.path.lexists(directory):
        return
    require_private_directory(directory)
    # What lies in a folder comes before the folder, and a file before its draft, whose name begins with a dot.
    for path in sorted(directory.rglob("*"), reverse=True):
        if is_plain(path):
            remove_private(path)
        elif path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    directory.rmdir()


def make_private_directory(path: Path) -> None:
    """Make a directory, and what it lies in, of mode 0700 where there is none; raises `KeystoreRefused`."""
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir(exist_ok=True, mode=0o700)  # `parents=True` would leave those open to others
    except OSError as error:
        raise KeystoreRefused(f"{path} cannot be made ({error.strerror})") from None


def _require_private(path: Path, about: os.stat_result, bytes_max: int) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise KeystoreRefused(f"{path} is not a plain file")
    if about.st_uid not in {os.geteuid(), 0}:
        raise KeystoreRefused(f"{path} belongs to another user: `chown` it to the user of this process")
    if about.st_mode & 0o077:
        raise KeystoreRefused(f"{path} is open to others: `chmod 0600 {path}`")
    if about.st_size > bytes_max:
        raise KeystoreRefused(f"{path} is larger than any file of its kind")


def _open_plain(path: str, _flags: int) -> int:
    # Non-blocking, so that a named pipe is refused instead of waited for.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _drop_second_name(path: Path) -> None:
    """Unlink the draft of a writer that was killed when its file had two names, `path` and the draft's."""
    for draft in path.parent.glob(f".{escape(path.name)}.[0-9]*"):
        with suppress(FileNotFoundError):  # its writer was not killed, and has done it meanwhile
            if is_plain(path) and is_plain(draft) and draft.samefile(path):
                draft.unlink()


def _write(path: Path, content: bytes, *, replace: bool) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)  # a crash may have left one
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        # A link is refused where a name exists, so of two writers one learns that it lost.
        draft.replace(path) if replace else path.hardlink_to(draft)
    finally:
        draft.unlink(missing_ok=True)
    _sync_directory(path.parent)


def require_private_directory(path: Path) -> None:
    """Refuse a directory in which somebody else could replace files."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        raise KeystoreRefused(f"{path} does not exist: `keys init` makes it") from None
    if not stat.S_ISDIR(about.st_mode):
        raise KeystoreRefused(f"{path} must be a directory and no symbolic link")
    if about.st_uid not in {os.geteuid(), 0} or about.st_mode & 0o077:
        raise KeystoreRefused(f"{path} must belong to this user alone: `chmod 0700 {path}`")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
