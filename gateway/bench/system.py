"""A whole gateway of the benchmark's own: certificates, PostgreSQL, keys, one application, the api, a processor.

All of it lies in one folder, listens on loopback ports that were free, and ends with who started it.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import msgspec

from gateway.bench.certificates import CLIENT, certify
from gateway.bench.load import FRAME_BYTES, Job, Target, Told, frame
from gateway.bench.processor import Wire
from gateway.bench.yardsticks import Yardstick
from gateway.embedded import EmbeddedPostgres
from gateway.errors import GatewayError
from gateway.store import roles
from keys.database import connect_arguments
from keys.files import read_private_line, write_private
from keys.queries import load_queries
from keys.settings import DatabaseSection

BIN = Path(sys.prefix) / "bin"
DEPARTMENT = "parks"
ENVIRONMENT = "bench"
AMOUNT_MINOR_MAX = 10**9
REQUESTS_PER_S_MAX = 10**6
READY_S = 60.0
STOP_S = 20.0
PASSWORD_BYTES = 24
POLL_S = 0.05
MEBIBYTE = 1 << 20


class BenchFailed(GatewayError):
    """Something did not start, or gave no figure; the message is one line for a person."""


class Child:
    """One process; the kernel sends it SIGTERM when we die."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, *, pipes: bool = False) -> None:
        self.name = name
        self._arguments = arguments
        self._folder = folder
        self._log = folder / "log" / f"{name}.log"
        self._pipes = pipes
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        """The process, once it was started."""
        assert self._process is not None, "internal error: it was started"
        return self._process

    async def start(self, port: int | None = None, **environment: str) -> None:
        """Start it, and return when somebody listens on its port; raises `BenchFailed`."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM", "--"),
                *self._arguments,
                stdin=PIPE if self._pipes else DEVNULL,
                stdout=PIPE if self._pipes else log,
                stderr=log,
                env=_environment(self._folder) | environment,
                start_new_session=True,
            )
        if port is not None:
            await self._listening(port)

    async def stop(self) -> None:
        """Ask it to end, then make it."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def last_words(self) -> str:
        """The last line of its log."""
        return (self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]

    async def _listening(self, port: int) -> None:
        for _ in range(round(READY_S / POLL_S)):
            if self.process.returncode is not None:
                break
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(POLL_S)
                continue
            writer.close()
            return
        raise BenchFailed(f"{self.name} did not start: {self.last_words()}")


class Generator:
    """The generator of load, one job at a time."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def run(self, job: Job) -> Told:
        """Raises `BenchFailed` when nothing can come of the job."""
        process = self._child.process
        assert process.stdin is not None, "internal error: it has pipes"
        assert process.stdout is not None, "internal error: it has pipes"
        try:
            process.stdin.write(frame(job))
            await process.stdin.drain()
            length = int.from_bytes(await process.stdout.readexactly(FRAME_BYTES), "big")
            told = msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Told)
        except (ConnectionError, asyncio.IncompleteReadError):
            raise BenchFailed(f"the generator of load died: {self._child.last_words()}") from None
        if told.failed:
            raise BenchFailed(told.failed)
        return told


class System:
    """The parts of one gateway, once `running` has started them."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.workers = workers
        self.secrets = folder / "secrets"
        self.tls = folder / "tls"
        self.postgres = EmbeddedPostgres(folder, server_settings())
        self.sql = load_queries("gateway.bench", "bench.sql")
        self.dsn = ""
        self.api_key = ""
        self.port = 0
        self.metrics_port = 0
        self.api: Child

    def database(self, name: str = "gateway") -> str:
        """The DSN of a database of this server, without a password."""
        return f"{self.dsn}/{name}"

    async def connect(self, process: str = "owner", name: str = "gateway") -> asyncpg.Connection:
        """A connection as the role of a process."""
        settings = DatabaseSection(dsn=self.database(name))
        return await asyncpg.connect(**connect_arguments(settings, process, self.secrets))

    async def new_database(self, name: str) -> None:
        """Another database on the same server, with the same roles."""
        superuser = await self.postgres.connect_superuser()
        try:
            await superuser.execute(self.sql.create_database % name)
            await superuser.execute(roles.statements(self._passwords(), name))
        finally:
            await superuser.close()

    async def settle(self) -> None:
        """What PostgreSQL does by itself within minutes: statistics for its plans, and pages written out.

        So no window pays for what the tables were filled with, or finds a table that is thought to be empty.
        """
        superuser = await self.postgres.connect_superuser()
        try:
            await superuser.execute(self.sql.analyze)
            await superuser.execute(self.sql.checkpoint)
        finally:
            await superuser.close()

    def target(self, port: int, **watched: int) -> Target:
        """Where the generator sends to, with whose processes to watch; PostgreSQL's are always among them."""
        told = {name: [pid] for name, pid in watched.items()} | {"postgres": [self.postmaster]}
        tls = self.tls
        return Target(port, str(tls / "ca.pem"), str(tls / "client.pem"), str(tls / "client.key"), told)

    @property
    def postmaster(self) -> int:
        """The pid of PostgreSQL's first process."""
        return int((self.folder / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def child(self, name: str, module: str, asked: msgspec.Struct) -> Child:
        """A yardstick or a far side, not yet started: a module of this package, told what it is asked in a file."""
        path = self.folder / f"{name}.json"
        write_private(path, msgspec.json.encode(asked), replace=True)
        return Child(name, [sys.executable, "-m", f"gateway.bench.{module}", str(path)], self.folder)

    def yardstick(self, port: int, answer: str, database: str = "") -> Yardstick:
        """What a yardstick over HTTP is asked: the gateway's certificates, and a database to commit to, if any."""
        tls, dsn = self.tls, self.database(database) if database else ""
        cert, key, ca = (str(tls / name) for name in ("server.pem", "server.key", "ca.pem"))
        return Yardstick(port, cert, key, ca, answer, dsn, str(self.secrets))

    async def lay_out(self) -> None:
        """Certificates, secrets, PostgreSQL with its roles, the configuration, the schema, keys, the application."""
        self.folder.chmod(0o711)  # PostgreSQL's user passes through, and sees nothing
        for name in ("tls", "secrets", "root"):
            (self.folder / name).mkdir(mode=0o700)
        certify(self.tls)
        for process in roles.PROCESSES:
            _new_secret(self.secrets / process / "database.password")
        for process in ("api", "worker"):
            _new_secret(self.secrets / process / "processor.credential")
        _new_secret(self.folder / "root" / "passphrase")
        address = await self.postgres.start()
        self.dsn = f"postgresql://{address.host}:{address.port}"
        superuser = await self.postgres.connect_superuser()
        try:
            await superuser.execute(roles.statements(self._passwords(), address.database))
        finally:
            await superuser.close()
        self.port, self.metrics_port, processor_port = free_port(), free_port(), free_port()
        self._configure(processor_port)
        await self.command("gateway", "migrate")
        await self.command("keys", "init")
        await self._register()
        self._processor_port = processor_port

    async def serve(self, stack: AsyncExitStack) -> None:
        """Start the far side and the api."""
        cert, key = str(self.tls / "server.pem"), str(self.tls / "server.key")
        far = self.child("processor", "processor", Wire(self._processor_port, cert, key))
        await start(stack, far, self._processor_port)
        self.api = Child("api", [str(BIN / "gateway"), "api"], self.folder)
        # One worker is what every release can.
        more = {"GATEWAY_API_WORKERS": str(self.workers)} if self.workers > 1 else {}
        await start(stack, self.api, self.port, **more)

    async def command(self, *arguments: str) -> str:
        """What a command printed; raises `BenchFailed` with its last line."""
        process = await asyncio.create_subprocess_exec(
            str(BIN / arguments[0]),
            *arguments[1:],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=_environment(self.folder),
        )
        output, errors = await process.communicate()
        if process.returncode:
            said = errors.decode(errors="replace").strip().splitlines()
            raise BenchFailed(f"{' '.join(arguments[:2])}: {said[-1] if said else 'it said nothing'}")
        return output.decode()

    async def _register(self) -> None:
        owner = await self.connect()
        try:
            sql = load_queries("gateway.store", "applications.sql")
            await owner.execute(sql.add_department, DEPARTMENT, DEPARTMENT.title())
        finally:
            await owner.close()
        limits = {"amount-max": AMOUNT_MINOR_MAX, "requests-per-second": REQUESTS_PER_S_MAX}
        options = [f"--{name}={value}" for name, value in limits.items()]
        added = await self.command("gateway", "app", "add", DEPARTMENT, "load", *options, "--certificate-san", CLIENT)
        self.api_key = json.loads(added)["api_key"]

    def _configure(self, processor_port: int) -> None:
        root, tls = self.folder / "root", self.tls
        passphrase = quote(str(root / "passphrase"))
        sections: dict[str, dict[str, str | int]] = {
            "keys": {
                "root": f"file:{quote(str(root / 'root.key'))}?passphrase_file={passphrase}",
                "store": f"file:{quote(str(self.folder / 'keystore'))}",
                "secrets": str(self.secrets),
            },
            "database": {"dsn": self.database(), "directory": str(self.folder / "postgres" / "data")},
            "api": {
                "port": self.port,
                "cert": str(tls / "server.pem"),
                "key": str(tls / "server.key"),
                "client_ca": str(tls / "ca.pem"),
            },
            "processor": {"url": f"https://127.0.0.1:{processor_port}", "ca": str(tls / "ca.pem")},
            "metrics": {"port": self.metrics_port},
        }
        lines = [f'environment = "{ENVIRONMENT}"', 'profile = "demo"']
        for section, values in sections.items():
            lines += ["", f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        write_private(self.folder / "gateway.toml", "\n".join(lines).encode(), replace=False)

    def _passwords(self) -> dict[str, Any]:
        return {name: read_private_line(self.secrets / name / "database.password") for name in roles.PROCESSES}


@asynccontextmanager
async def running(folder: Path, workers: int) -> AsyncIterator[System]:
    """A gateway that serves, in an empty folder; on leaving nothing of it runs."""
    system = System(folder, workers)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(system.postgres.stop)
        await system.lay_out()
        await system.serve(stack)
        yield system


@asynccontextmanager
async def generating(folder: Path, module: str = "load") -> AsyncIterator[Generator]:
    """A generator of load, started: `load`, or `pages`."""
    child = Child(module, [sys.executable, "-m", f"gateway.bench.{module}"], folder, pipes=True)
    await child.start()
    try:
        yield Generator(child)
    finally:
        await child.stop()


async def start(stack: AsyncExitStack, child: Child, port: int, **environment: str) -> None:
    """Start a process, to be stopped with the stack."""
    stack.push_async_callback(child.stop)
    await child.start(port, **environment)


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def server_settings() -> tuple[str, ...]:
    """PostgreSQL sized as for a city's vault, of which others may run beside it: an eighth of the memory.

    Ids are random, so pages are changed all over an index, and each is logged whole after a checkpoint: hence few
    checkpoints. Not compressed, which pglz does at three times the cost of all the rest of a token.
    """
    memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEBIBYTE
    buffers = f"shared_buffers={memory_mib // 8}MB"
    return buffers, "max_wal_size=16GB", "checkpoint_timeout=15min"


def _environment(folder: Path) -> dict[str, str]:
    """Nothing of the caller's: no setting of a gateway that serves gets in."""
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": path, "LC_ALL": "C.UTF-8", "GATEWAY_HOME": str(folder)}


def _new_secret(path: Path) -> None:
    write_private(path, secrets.token_urlsafe(PASSWORD_BYTES).encode(), replace=False)
