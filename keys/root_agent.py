"""An unlocked root, held in memory for a while and handed to processes of the same user through a socket.

The custodians of `keys.root_shares` come together once; then the api and the `keys` commands can start without them,
until the time is up. The socket lies in a directory of this user alone, and the kernel says who is at the other end.
"""

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from keys.errors import RootRefused, RootUnavailable
from keys.files import make_private_directory, require_private_directory
from keys.primitives import KEY_BYTES
from keys.secret import Secret

Clock = Callable[[], float]
"""Seconds that only go forward, such as `time.monotonic`."""

LOCKED = "the root is locked: `keys ceremony unlock`"
FETCH, LOCK = b"F", b"L"
SLICE_S = 0.2
"""A signal that comes just before a wait is seen after so long."""
TALK_S = 5.0
ANSWER_S = 1.0
SOCKET_PATH_BYTES_MAX = 107


def serve_unlocked(
    root: Secret[bytes],
    path: Path,
    seconds: float,
    *,
    clock: Clock,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Hand the root to processes of this user until the time is up or `lock` is called; then remove the socket.

    Blocks for so many seconds by `clock`, which only goes forward; calls `ready` once the socket answers. The
    caller lets its own reference to the root go afterwards, and turns SIGTERM into an exception; what an agent
    that was killed leaves of its socket, the next one removes.

    Raises:
        RootRefused: another agent serves there, or no socket can be made there.
        KeystoreRefused: others could enter the directory.
    """
    with _alone(path), _listening(path) as listener:
        ready()
        caller = _serve(root, listener, clock() + seconds, clock)
    if caller is not None:
        caller.close()  # not before: whoever locks us learns by it that everything is gone


def fetch(path: Path) -> Secret[bytes]:
    """The root, from the agent; the caller checks it. Raises `RootUnavailable` when none answers."""
    with _talking(path, FETCH) as agent:
        raw = agent.recv(KEY_BYTES + 1)
    if len(raw) != KEY_BYTES:
        raise RootUnavailable(LOCKED)
    return Secret(raw)


def is_unlocked(path: Path) -> bool:
    """Whether an agent answers there."""
    with suppress(RootUnavailable):
        fetch(path)
        return True
    return False


def lock(path: Path) -> bool:
    """Stop the agent; returns, once its socket is gone, whether there was one."""
    with suppress(RootUnavailable), _talking(path, LOCK) as agent:
        agent.recv(1)  # ends when the agent does
        return True
    return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock that one agent may hold: the kernel takes it away when the process ends, however it ends."""
    make_private_directory(path.parent)
    require_private_directory(path.parent)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise RootRefused(f"{path} is too long for a socket: at most {SOCKET_PATH_BYTES_MAX} bytes")
    beside = path.with_name(f"{path.name}.lock")
    with ExitStack() as held:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            line = f"the root is unlocked at {path} already: `keys ceremony unlock --lock` first"
            raise RootRefused(line) from None
        except OSError as error:
            raise RootRefused(f"{beside} cannot be made ({error.strerror})") from None
        yield


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            if path.is_socket():
                path.unlink()  # of an agent that was killed, for we hold the lock
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen()
        except OSError as error:
            raise RootRefused(f"{path} cannot be made ({error.strerror})") from None
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _serve(root: Secret[bytes], listener: socket.socket, ends: float, clock: Clock) -> socket.socket | None:
    """Answer until the time is up; returns who locked the root before that."""
    while (left := ends - clock()) > 0:
        listener.settimeout(min(left, SLICE_S))
        try:
            caller, _ = listener.accept()
        except TimeoutError:
            continue
        if _answer(caller, root) == LOCK:
            return caller
        caller.close()
    return None


def _answer(caller: socket.socket, root: Secret[bytes]) -> bytes:
    caller.settimeout(ANSWER_S)
    with suppress(OSError):  # who goes away or is too slow costs nobody else anything
        if _user(caller) == os.geteuid():
            asked = caller.recv(1)
            if asked == FETCH:
                caller.sendall(root.reveal())
            return asked
    return b""


@contextmanager
def _talking(path: Path, request: bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
        agent.settimeout(TALK_S)
        try:
            agent.connect(str(path))
            if _user(agent) != os.geteuid():
                raise RootRefused(f"{path} is served by another user: name the agent of this one in keys.root")
            agent.sendall(request)
            yield agent
        except OSError:  # no socket, nobody behind it, or nobody who answers
            raise RootUnavailable(LOCKED) from None


def _user(other: socket.socket) -> int:
    # `struct ucred` of unix(7): process, user and group of whoever is at the other end.
    _process, user, _group = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)
