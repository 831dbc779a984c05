"""The embedded PostgreSQL, driven as a launcher drives it: real programs, real users, real kills."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from gateway import embedded
from gateway.embedded import Address, EmbeddedError, EmbeddedPostgres

pytestmark = pytest.mark.server

CHECKOUT = Path(embedded.__file__).parents[1]
NOBODY = 65534
PASSWORD = "a password of the tests"
CANARY = "4000001234567899"
CAP_DAC_READ_SEARCH = 1 << 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone starts the server as another user")

LAUNCHER = """
import asyncio, sys
from pathlib import Path
from gateway.embedded import EmbeddedPostgres

async def main():
    database = EmbeddedPostgres(Path(sys.argv[1]))
    await database.start()
    connection = await database.connect_superuser()
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (n int)")
    await connection.execute("INSERT INTO kept VALUES (1)")
    print(await connection.fetchval("SELECT count(*) FROM kept"), flush=True)
    await connection.close()
    await asyncio.to_thread(sys.stdin.read)
    await database.stop()

asyncio.run(main())
"""
"""A launcher that adds one row, tells how many there are, and serves until its input ends."""


@pytest.fixture(scope="module")
def open_home() -> Iterator[Path]:
    """A home that every user may enter (pytest's own folders are closed to all but one)."""
    home = Path(tempfile.mkdtemp(prefix="gateway-test-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
async def database(open_home: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server in an open home, with a role `app` and a table `ledger`."""
    server = EmbeddedPostgres(open_home)
    await server.start()
    async with superuser(server) as connection:
        await connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        await connection.execute("CREATE TABLE ledger (n int PRIMARY KEY)")
    yield server
    await server.stop()


@asynccontextmanager
async def superuser(server: EmbeddedPostgres) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the superuser."""
    connection = await server.connect_superuser()
    try:
        yield connection
    finally:
        await connection.close()


async def sign_in(host: str, user: str, password: str, address: Address) -> str:
    """Signs in and returns what the server calls the one who did: the method and the name."""
    connection = await asyncpg.connect(
        host=host, port=address.port, user=user, password=password, database=address.database
    )
    try:
        name: str = await connection.fetchval("SELECT system_user")
    finally:
        await connection.close()
    return name


def address_of(server: EmbeddedPostgres) -> Address:
    """Where a running server listens."""
    assert server._address is not None
    return server._address


def postmaster_pid(home: Path) -> int:
    """The pid that the server of a home has written."""
    return int((home / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def servers(home: Path) -> list[str]:
    """The pids of all of PostgreSQL's processes that work in a home."""
    return embedded.DataDirectory(home / "postgres" / "data")._servers()


def capabilities(pid: int) -> int:
    """The effective capabilities of a process, as bits."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(dict(line.split(":\t", 1) for line in status.splitlines())["CapEff"], 16)


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Waits until a condition holds; TimeoutError when it does not."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def python_for(user: pwd.struct_passwd) -> Path:
    """A Python of our version that a user may run, with our packages within its reach; else the test is skipped."""
    for python in (Path(sys.executable).resolve(), Path(f"/usr/bin/python3.{sys.version_info.minor}")):
        reached = (python, CHECKOUT / "gateway", Path(asyncpg.__file__))
        if python.exists() and all(embedded._may_enter(user, top) for path in reached for top in path.parents):
            return python
    pytest.skip(f"{user.pw_name} may not enter the checkout, or has no such Python")


@asynccontextmanager
async def launcher(home: Path, uid: int) -> AsyncIterator[Process]:
    """A launcher in a process of its own, run by this user; it is killed, when it still runs, in the end."""
    prefix: list[str] = []
    python = Path(sys.executable)
    if uid != os.geteuid():
        python = python_for(pwd.getpwuid(uid))
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={pwd.getpwuid(uid).pw_gid}", "--clear-groups"]
    packages = os.pathsep.join((str(CHECKOUT), str(Path(asyncpg.__file__).parents[1])))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": packages, "PYTHONDONTWRITEBYTECODE": "1"}
    process = await asyncio.create_subprocess_exec(
        *prefix, str(python), "-c", LAUNCHER, str(home), stdin=PIPE, stdout=PIPE, env=environment, cwd="/"
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def told(process: Process) -> int:
    """How many rows the launcher counts, once its server runs."""
    assert process.stdout is not None
    return int(await process.stdout.readline())


async def test_the_kernel_vouches_for_the_superuser(database: EmbeddedPostgres) -> None:
    """The launching user is PostgreSQL's superuser over the Unix socket, by peer and without a password."""
    async with superuser(database) as connection:
        row = await connection.fetchrow("SELECT system_user, current_user, current_setting('is_superuser')")

    assert row is not None
    assert tuple(row) == (f"peer:{pwd.getpwuid(os.geteuid()).pw_name}", "postgres", "on")


async def test_superuser_is_refused_on_the_network(database: EmbeddedPostgres) -> None:
    """Nobody becomes the superuser over TCP, whatever the password."""
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="rejects connection"):
        await sign_in("127.0.0.1", "postgres", PASSWORD, address_of(database))


@pytest.mark.parametrize("network", [True, False], ids=["tcp", "socket"])
async def test_a_role_shows_its_password(database: EmbeddedPostgres, network: bool) -> None:
    """A role enters with its password by SCRAM, and not with another one, on either way in."""
    address = address_of(database)
    host = address.host if network else str(address.socket_dir)

    assert await sign_in(host, "app", PASSWORD, address) == "scram-sha-256:app"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await sign_in(host, "app", "wrong", address)


async def test_no_rule_trusts(database: EmbeddedPostgres) -> None:
    """The rules of entry are these four as PostgreSQL itself reads them, and two users at most are its superuser."""
    async with superuser(database) as connection:
        rules = await connection.fetch("SELECT type, user_name, address, auth_method FROM pg_hba_file_rules")
        peers = await connection.fetch("SELECT sys_name, pg_username FROM pg_ident_file_mappings")

    assert [tuple(rule) for rule in rules] == [
        ("local", ["postgres"], None, "peer"),
        ("local", ["all"], None, "scram-sha-256"),
        ("host", ["postgres"], "127.0.0.1", "reject"),
        ("host", ["all"], "127.0.0.1", "scram-sha-256"),
    ]
    server_user = "gateway-postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    own = pwd.getpwuid(os.geteuid()).pw_name
    assert {tuple(peer) for peer in peers} == {(own, "postgres"), (server_user, "postgres")}


async def test_data_are_durable_and_checked(database: EmbeddedPostgres) -> None:
    """Commits reach the disk and pages have checksums; even the superuser cannot switch that off in the server."""
    names = ("data_checksums", "fsync", "full_page_writes", "synchronous_commit")
    async with superuser(database) as connection:
        await connection.execute("ALTER SYSTEM SET fsync = off")
        await connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.1)
        shown = [await connection.fetchval(f"SHOW {name}") for name in names]
        await connection.execute("ALTER SYSTEM RESET ALL")
        locale = await connection.fetchrow(
            "SELECT pg_encoding_to_char(encoding), datlocprovider, datlocale "
            "FROM pg_database WHERE datname = current_database()"
        )

    assert shown == ["on"] * 4
    assert locale is not None
    assert tuple(locale) == ("UTF8", b"b", "C.UTF-8")


async def test_no_value_reaches_the_log(database: EmbeddedPostgres, open_home: Path) -> None:
    """Statements that fail leave their values in the client's error alone, however they fail."""
    before = open_home.joinpath("log", "postgresql.log").read_text()
    async with superuser(database) as connection:
        await connection.execute("CREATE TEMP TABLE card (number text PRIMARY KEY)")
        await connection.execute("INSERT INTO card VALUES ($1)", CANARY)
        for failing in ("INSERT INTO card VALUES ($1)", "SELECT ($1 || 'x')::int", "SELECT pg_sleep($1::text)"):
            with pytest.raises(asyncpg.PostgresError):
                await connection.execute(failing, CANARY)
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(f"SELECT '{CANARY}x'::int")

    after = open_home.joinpath("log", "postgresql.log").read_text()
    assert before != ""
    assert CANARY not in after


async def test_server_is_private(database: EmbeddedPostgres, open_home: Path) -> None:
    """Nobody but the server's user reads its data and its log; it may do nothing special where all ways are open."""
    pid = postmaster_pid(open_home)
    log = open_home / "log" / "postgresql.log"
    data = open_home / "postgres" / "data"
    owner = Path(f"/proc/{pid}").stat().st_uid

    assert owner != 0
    programs = embedded._binaries() / "postgres"
    is_open = all(embedded._may_enter(pwd.getpwuid(owner), folder) for folder in programs.parents)
    assert capabilities(pid) == (0 if is_open else CAP_DAC_READ_SEARCH)
    assert (log.stat().st_uid, log.stat().st_mode & 0o777) == (owner, 0o600)
    assert {path.lstat().st_mode & 0o077 for path in (data, *data.rglob("*"))} == {0}
    assert Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:2] == [
        b"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        b"LC_ALL=C",
    ]
    assert os.getsid(pid) != os.getsid(0)  # so that Ctrl-C in our terminal is none of its business


async def test_second_launcher_is_refused(database: EmbeddedPostgres, open_home: Path) -> None:
    """While one launcher lives, another one on its home is told so, and the server goes on undisturbed."""
    pid = postmaster_pid(open_home)

    with pytest.raises(EmbeddedError, match="already running"):
        await EmbeddedPostgres(open_home).start()
    with pytest.raises(EmbeddedError, match="already running"):
        await database.start()
    async with superuser(database) as connection:
        assert await connection.fetchval("SELECT 1") == 1
    assert postmaster_pid(open_home) == pid


async def test_acknowledged_rows_survive_a_kill(database: EmbeddedPostgres, open_home: Path) -> None:
    """After SIGKILL of the postmaster a start waits for a backend that still computes, and recovers every row."""
    port = address_of(database).port
    busy = await database.connect_superuser()
    computing = asyncio.create_task(busy.fetchval("SELECT count(*) FROM generate_series(1, 1000000000000)"))
    async with superuser(database) as connection:
        for n in range(50):
            await connection.execute("INSERT INTO ledger VALUES ($1)", n)

    os.kill(postmaster_pid(open_home), signal.SIGKILL)
    assert await database.wait() == -signal.SIGKILL
    assert servers(open_home) != []  # it computes on, attached to the shared memory
    address = await database.start()

    async with superuser(database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM ledger") == 50
    assert address.port == port
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await computing
    busy.terminate()


async def test_port_is_kept_while_it_is_free(database: EmbeddedPostgres) -> None:
    """A restart listens where it listened before, or elsewhere when somebody else does so by now."""
    first = address_of(database).port
    await database.stop()
    await database.stop()
    second = (await database.start()).port
    await database.stop()
    with socket.create_server(("127.0.0.1", second)):
        third = (await database.start()).port

    assert first == second != third
    async with superuser(database) as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_pid_of_a_stranger_is_no_server(database: EmbeddedPostgres, open_home: Path) -> None:
    """A lock file whose pid belongs to another program by now neither forbids a start nor costs that program."""
    lines = (open_home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()
    server = pwd.getpwuid(Path(f"/proc/{lines[0]}").stat().st_uid)
    address = address_of(database)
    await database.stop()
    become = ["setpriv", f"--reuid={server.pw_uid}", f"--regid={server.pw_gid}", "--clear-groups"]
    stranger = await asyncio.create_subprocess_exec(*(become if os.geteuid() == 0 else []), "sleep", "60")
    try:
        for lock in (
            open_home / "postgres" / "data" / "postmaster.pid",
            address.socket_dir / f".s.PGSQL.{address.port}.lock",
        ):
            lock.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
            os.chown(lock, server.pw_uid, server.pw_gid)
        await database.start()
        async with superuser(database) as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


@pytest.mark.parametrize("uid", [os.geteuid(), pytest.param(NOBODY, marks=needs_root)], ids=["own", "ordinary"])
async def test_server_ends_with_its_launcher(uid: int) -> None:
    """A launcher's SIGKILL ends the server at once; the next launcher finds all rows, and leaves nothing running."""
    home = Path(tempfile.mkdtemp(prefix="gateway-test-"))
    os.chown(home, uid, pwd.getpwuid(uid).pw_gid)
    try:
        async with launcher(home, uid) as process:
            assert await told(process) == 1
            assert len(servers(home)) > 1
            process.kill()
            await until(lambda: not servers(home), timeout_s=5)
        async with launcher(home, uid) as process:
            assert await told(process) == 2
            await process.communicate(b"")
        assert servers(home) == []
        assert process.returncode == 0
    finally:
        shutil.rmtree(home)


async def test_interrupted_initdb_is_repaired_behind_a_closed_door(tmp_path: Path) -> None:
    """A first start that was killed half way is made good by the next, also below a folder closed to the server.

    There alone the server may read everywhere; a role with a password gets nothing of that.
    """
    home = tmp_path / "closed" / "home"
    home.parent.mkdir(mode=0o700)
    async with launcher(home, os.geteuid()) as process:
        await until(lambda: list(home.glob("postgres/initdb-*/PG_VERSION")))
        process.kill()
    halves = list(home.glob("postgres/initdb-*"))
    assert halves != []
    assert not (home / "postgres" / "data").exists()

    server = EmbeddedPostgres(home)
    address = await server.start()
    try:
        assert list(home.glob("postgres/initdb-*")) == []
        assert capabilities(postmaster_pid(home)) == (CAP_DAC_READ_SEARCH if os.geteuid() == 0 else 0)
        assert home.parent.stat().st_mode & 0o777 == 0o700
        async with superuser(server) as connection:
            await connection.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
            if os.geteuid() == 0:
                assert await connection.fetchval("SELECT pg_read_file('/etc/shadow')") != ""
        app = await asyncpg.connect(
            host=address.host, port=address.port, user="app", password=PASSWORD, database=address.database
        )
        for reading in (
            "SELECT pg_read_file('/etc/shadow')",
            "CREATE TEMP TABLE t (x text); COPY t FROM '/etc/shadow'",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied"):
                await app.execute(reading)
        await app.close()
    finally:
        await server.stop()


async def test_long_path_and_a_frozen_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home too deep for a socket works, and so does a start on a server that neither ends nor answers."""
    home = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 4)
    async with launcher(home, os.geteuid()) as process:
        assert await told(process) == 1
        frozen = postmaster_pid(home)
        os.kill(frozen, signal.SIGSTOP)
        process.kill()
        await process.wait()
    assert str(frozen) in servers(home)
    ladder = ((signal.SIGINT, 0.1), (signal.SIGQUIT, 0.1), (signal.SIGKILL, 10))
    monkeypatch.setattr(embedded, "POSTMASTER_LADDER", ladder)
    server = EmbeddedPostgres(home)
    address = await server.start()

    async with superuser(server) as connection:
        assert await connection.fetchval("SELECT count(*) FROM kept") == 1
    assert address.socket_dir.parent == Path(tempfile.gettempdir()).resolve()
    assert address.socket_dir.stat().st_mode & 0o777 == 0o700
    assert postmaster_pid(home) != frozen
    await server.stop()
    assert not address.socket_dir.exists()


@needs_root
@pytest.mark.parametrize("planted", ["folder", "link"])
async def test_foreign_socket_folder_is_refused(tmp_path: Path, planted: str) -> None:
    """What another user put in the place of our socket folder is neither used nor touched, nor what it points to."""
    server = EmbeddedPostgres(tmp_path.joinpath(*["a-folder-with-a-long-name"] * 4))
    place, target = server._socket_dir, tmp_path / "target"
    target.mkdir()
    place.symlink_to(target) if planted == "link" else place.mkdir()
    os.chown(place, NOBODY, NOBODY, follow_symlinks=False)
    try:
        with pytest.raises(EmbeddedError, match=r"belongs to another user|make this possible first"):
            await server.start()
        assert (place.lstat().st_uid, target.stat().st_uid) == (NOBODY, 0)
    finally:
        place.unlink() if planted == "link" else place.rmdir()


@needs_root
async def test_data_of_another_user_are_refused(tmp_path: Path) -> None:
    """A data directory that some other user made is left alone, and the message says what to do."""
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    os.chown(data, NOBODY, NOBODY)

    with pytest.raises(EmbeddedError, match="belongs to another user: start as that user, or remove it"):
        await EmbeddedPostgres(tmp_path).start()
    assert data.stat().st_uid == NOBODY


async def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without setpriv, and without the wheel, the message says what to install."""
    monkeypatch.setitem(embedded.ENVIRONMENT, "PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match="install util-linux"):
        await EmbeddedPostgres(tmp_path).start()
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedError, match="install the extra"):
        await EmbeddedPostgres(tmp_path).start()


async def test_failed_start_leaves_nothing(tmp_path: Path) -> None:
    """A server that cannot start is reported with its log, and the home is free for the next try."""
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)  # empty: no PostgreSQL starts on it
    server = EmbeddedPostgres(tmp_path)

    for _ in range(2):
        with pytest.raises(EmbeddedError, match=r"instead of starting: read .*postgresql\.log"):
            await server.start()
    with pytest.raises(EmbeddedError, match="start it first"):
        await server.connect_superuser()
    assert servers(tmp_path) == []
