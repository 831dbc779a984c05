"""The demo: everything on one machine, from an empty folder to one real payment, and nothing left behind.

`deploy/run` installs and then runs this. It lays out `$GATEWAY_HOME`, starts the embedded PostgreSQL, the
processor's double and the processes api, worker and admin, sends a payment through all of it, writes `demo.json`, and
serves until it is told to stop. A part that dies is started again; when this process dies, however it dies, all
parts do.

    gateway.toml  demo.json  tls/  secrets/<process>/  root/  keystore/  postgres/  stub/  finance/  log/
"""

import argparse
import asyncio
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import asyncpg
from certificates import Authority
from month_demo import INBOX, INBOXES, make_month, what_to_try
from people import Person, employ, people

from gateway.embedded import EmbeddedError, EmbeddedPostgres
from gateway.store import roles
from keys.errors import KeysError
from keys.files import read_private_line, write_private
from keys.queries import load_queries
from keys.secret import Secret
from keys.settings import home as gateway_home

BIN = Path(sys.prefix) / "bin"
ENVIRONMENT = "demo"
SERVICES = {"parks": ("pool", "Pool reservations", "101-2300"), "utilities": ("water", "Water bills", "515-4100")}
AMOUNT_MINOR_MAX = 1_000_000_000
REFUND_MINOR_MAX = 100_000_000
REQUESTS_PER_S_MAX = 100_000
ANY_FIELD = ("*", "demo: any field")
PORTS = {"api": 8443, "admin": 8444, "processor": 8445, "processor_wire": 8446, "metrics": 9464}
READY_S = 60.0
STOP_S = 25.0
RESTART_PAUSE_S = 0.5
PASSWORD_BYTES = 24
MARKER = ".lock"
OFFICERS = ("security", "security2")
HSM_SETTINGS = ("SOFTHSM2_CONF",)
LAID_OUT = (
    *("gateway.toml", "demo.json", "roles.sql", "tls", "secrets", "root", "keystore", "officers", "postgres", "stub"),
    *("finance", "log"),
)
TEST_CARD = {"number": "4242424242424242", "exp_month": 12, "exp_year": time.gmtime().tm_year + 2}


class StepFailed(Exception):
    """A step did not hold; the message is one line for a person."""


class Child:
    """One process of the demo; it gets SIGTERM from the kernel when its starter dies."""

    def __init__(self, name: str, arguments: Sequence[str], home: Path) -> None:
        self.name = name
        self._arguments = arguments
        self._home = home
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it; its log is appended to `log/<name>.log`."""
        with (self._home / "log" / f"{self.name}.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "TERM", "--"),
                *self._arguments,
                stdin=DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._home),
                start_new_session=True,
            )

    async def wait(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None, "internal error: it was started"
        return await self._process.wait()

    async def stop(self) -> None:
        """Ask it to end, then make it."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), STOP_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the demo lives and listens."""

    home: Path
    ports: dict[str, int]

    @property
    def tls(self) -> Path:
        """The demo's certificates."""
        return self.home / "tls"

    def secret(self, process: str, name: str) -> Path:
        """A secret file of one process."""
        return self.home / "secrets" / process / name

    def officer(self, name: str, kind: str) -> Path:
        """An officer's `key`, and the file with its `passphrase`."""
        return self.home / "officers" / f"{name}.{kind}"

    @property
    def api(self) -> str:
        """The public API."""
        return f"https://127.0.0.1:{self.ports['api']}"

    @property
    def admin(self) -> str:
        """The site of the staff."""
        return f"https://127.0.0.1:{self.ports['admin']}"

    @property
    def processor(self) -> str:
        """The double's side for people and checks."""
        return f"https://127.0.0.1:{self.ports['processor']}"


class Demo:
    """The steps, in order, and what runs because of them."""

    def __init__(self, place: Place, *, month: bool = False) -> None:
        self.place = place
        self._month = month
        self._home = place.home
        self._postgres: EmbeddedPostgres | None = None
        self._children: list[Child] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._dsn = os.environ.get("GATEWAY_DATABASE_DSN", "")

    async def start(self) -> None:
        """Every step; raises `StepFailed` at the first that does not hold."""
        self._require_free_ports()
        await self._step("certificates", self._certificates)
        await self._step("secrets of each process", self._secrets)
        await self._step("PostgreSQL", self._database)
        await self._step("schema", lambda: self._command("gateway", "migrate"))
        await self._step("keys", self._keys)
        await self._step("departments and applications", self._applications)
        await self._step("processor stub", lambda: self._serve("stub"))
        await self._step("api", lambda: self._serve("api"))
        await self._step("worker", lambda: self._serve("worker"))
        await self._step("admin", lambda: self._serve("admin"))
        # While those start.
        await self._step("key officers and staff", self._staff)
        await self._step("ready", self._ready)
        await self._step("a payment through all of it", self._payment)
        if self._month:
            await self._step("a busy month", self._busy_month)
        self._write_demo_json()

    async def stop(self) -> None:
        """End what was started, last first."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for child in reversed(self._children):
            await child.stop()
        if self._postgres is not None:
            await self._postgres.stop()

    async def _step(self, name: str, act: Callable[[], Awaitable[str | None]]) -> None:
        started = time.monotonic()
        try:
            told = await act()
        except (StepFailed, EmbeddedError, KeysError, OSError, asyncpg.PostgresError) as error:
            raise StepFailed(f"{name}: {error}") from None
        print(f"  ok   {name}{f': {told}' if told else ''}  ({time.monotonic() - started:.1f} s)", flush=True)

    def _require_free_ports(self) -> None:
        for name, port in self.place.ports.items():
            try:
                socket.create_server(("127.0.0.1", port)).close()
            except OSError as error:
                variable = f"GATEWAY_{name.upper()}_PORT"
                raise StepFailed(
                    f"port {port} cannot be used ({error.strerror}): set {variable} to another"
                ) from None

    async def _certificates(self) -> None:
        authority = Authority.open(self.place.tls)
        for name in ("api", "admin", "stub"):
            authority.listener(name)
        authority.revocations()
        for department in SERVICES:
            authority.application(department, application_uri(department))

    async def _secrets(self) -> None:
        for process in roles.PROCESSES:
            _keep(self.place.secret(process, "database.password"))
        for officer in OFFICERS:
            _keep(self.place.officer(officer, "passphrase"))
        credential = _keep(self.place.secret("stub", "processor.credential"))
        for process in ("api", "worker"):
            write_private(
                self.place.secret(process, "processor.credential"), credential.reveal().encode(), replace=True
            )
        _keep(self._home / "root" / "passphrase")

    async def _database(self) -> str:
        passwords = {
            process: read_private_line(self.place.secret(process, "database.password")) for process in roles.PROCESSES
        }
        if self._dsn:
            statements = roles.statements(passwords, urlsplit(self._dsn).path[1:])
            write_private(self._home / "roles.sql", statements.encode(), replace=True)
            self._write_settings()
            return f"that of GATEWAY_DATABASE_DSN; its superuser runs {self._home / 'roles.sql'} once"
        self._postgres = EmbeddedPostgres(self._home)
        address = await self._postgres.start()
        self._dsn = f"postgresql://{address.host}:{address.port}/{address.database}"
        connection = await self._postgres.connect_superuser()
        try:
            await connection.execute(roles.statements(passwords, address.database))
        finally:
            await connection.close()
        self._watch("PostgreSQL", self._postgres.wait, self._restart_postgres)
        self._write_settings()
        return f"port {address.port}"

    async def _restart_postgres(self) -> None:
        assert self._postgres is not None, "internal error: only a running server is watched"
        await self._postgres.start()

    def _write_settings(self) -> None:
        home, tls, ports = self._home, self.place.tls, self.place.ports
        root_file, passphrase = quote(str(home / "root" / "root.key")), quote(str(home / "root" / "passphrase"))
        sections: dict[str, dict[str, str | int]] = {
            "keys": {
                "root": f"file:{root_file}?passphrase_file={passphrase}",
                "store": f"file:{quote(str(home / 'keystore'))}",
                "secrets": str(home / "secrets"),
            },
            "database": {"dsn": self._dsn},
            "api": {
                "port": ports["api"],
                "cert": str(tls / "api.pem"),
                "key": str(tls / "api.key"),
                "client_ca": str(tls / "ca.pem"),
                "client_crl": str(tls / "ca.crl"),
            },
            "admin": {"port": ports["admin"], "cert": str(tls / "admin.pem"), "key": str(tls / "admin.key")},
            "processor": {"url": f"https://127.0.0.1:{ports['processor_wire']}", "ca": str(tls / "ca.pem")},
            "stub": {
                "port": ports["processor"],
                "wire_port": ports["processor_wire"],
                "cert": str(tls / "stub.pem"),
                "key": str(tls / "stub.key"),
                "memory": str(home / "stub" / "memory.sqlite"),
            },
            "metrics": {"port": ports["metrics"]},
            "finance": {"inbox": str(home / INBOX)},
        }
        if self._postgres is not None:
            sections["database"]["directory"] = str(home / "postgres" / "data")
        lines = ["# Written by deploy/run at each start.", f'environment = "{ENVIRONMENT}"', 'profile = "demo"']
        for section, values in sections.items():
            lines += [
                "",
                f"[{section}]",
                *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()),
            ]
        write_private(home / "gateway.toml", ("\n".join(lines) + "\n").encode(), replace=True)

    async def _keys(self) -> str | None:
        connection = await asyncpg.connect(self._owner_dsn())
        try:
            if await connection.fetchval(load_queries("keys", "deks.sql").seen):
                return await self._complete_keys()
        finally:
            await connection.close()
        await self._command("keys", "init")
        return "root, generation 1, fingerprint key"

    async def _complete_keys(self) -> str:
        # A home of an earlier release lacks the keys that came later: a rotation makes the first one.
        if any((self._home / "secrets" / "admin").glob("close-pack-*.key")):
            return "there already"
        await self._command("keys", "rotate", "--purpose", "close-pack")
        return "there already, but for the first key of close packs"

    async def _applications(self) -> None:
        connection = await asyncpg.connect(self._owner_dsn())
        sql = load_queries("gateway.store", "applications.sql")
        try:
            for department, service in SERVICES.items():
                await connection.execute(sql.add_department, department, department.title())
                await connection.execute(sql.add_service, department, *service)
                await connection.execute(sql.allow_field, department, *ANY_FIELD)
        finally:
            await connection.close()
        await asyncio.gather(*map(self._application, SERVICES))

    async def _application(self, department: str) -> None:
        kept = self._api_key(department)
        if kept.exists():
            return
        added = await self._command(
            *("gateway", "app", "add", department, f"{department} payment page"),
            *("--amount-max", str(AMOUNT_MINOR_MAX), "--refund-max", str(REFUND_MINOR_MAX)),
            *("--requests-per-second", str(REQUESTS_PER_S_MAX), "--certificate-san", application_uri(department)),
        )
        write_private(kept, json.loads(added)["api_key"].encode(), replace=False)

    async def _staff(self) -> str:
        files = {name: (self.place.officer(name, "key"), self.place.officer(name, "passphrase")) for name in OFFICERS}
        work = employ(self._home / "gateway.toml", self._people(), files)
        # In a thread: the officers' keys take their passphrases' time, and PostgreSQL is watched meanwhile.
        return await asyncio.to_thread(asyncio.run, work)

    def _people(self) -> list[Person]:
        return people(self.place.secret("demo", "staff"))

    async def _serve(self, name: str) -> None:
        child = Child(name, [str(BIN / "gateway"), name], self._home)
        self._children.append(child)
        await child.start()
        self._watch(name, child.wait, child.start)

    async def _ready(self) -> None:
        deadline = time.monotonic() + READY_S
        async with aiohttp.ClientSession(connector=self._connector()) as session:
            for name, address in (("api", self.place.api), ("admin", self.place.admin)):
                while not await _is_ready(session, address):
                    if time.monotonic() > deadline:
                        raise StepFailed(f"{name} is not ready; read {self._home / 'log' / f'{name}.log'}")
                    await asyncio.sleep(0.1)

    async def _payment(self) -> str:
        key = self._api_key("parks").read_text()
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": secrets.token_hex(16)}
        async with aiohttp.ClientSession(connector=self._connector(), headers=headers) as session:
            body: dict[str, Any] = {"name": "Demo Resident", "card": TEST_CARD, "usage": "single"}
            token = await _json(session.post(f"{self.place.api}/v1/tokens", json=body), 201)
            body = {"amount": 1250, "currency": "USD", "token": token["id"], "reference": "demo", "service": "pool"}
            charge = await _json(session.post(f"{self.place.api}/v1/charges", json=body), 201)
        credential = self.place.secret("stub", "processor.credential").read_text()
        async with aiohttp.ClientSession(
            connector=self._connector(), headers={"Authorization": f"Bearer {credential}"}
        ) as session:
            url = f"{self.place.processor}/v1/charges/{charge['processor_reference']}"
            truth = await _json(session.get(url), 200)
        if (truth["amount"], truth["effects"]) != (1250, 1):
            raise StepFailed("the processor does not hold exactly one effect of 12.50")
        return f"{token['id']} charged 12.50 USD as {charge['id']}, captured once at the processor"

    async def _busy_month(self) -> str:
        connection = await asyncpg.connect(self._owner_dsn())
        try:
            async with aiohttp.ClientSession(connector=self._connector()) as session:
                return await make_month(connection, self._home, partial(self._token, session))
        finally:
            await connection.close()

    async def _token(self, session: aiohttp.ClientSession, department: str, body: dict[str, Any]) -> str:
        headers = {"Authorization": f"Bearer {self._api_key(department).read_text()}"}
        token = await _json(session.post(f"{self.place.api}/v1/tokens", json=body, headers=headers), 201)
        return str(token["id"])

    def _write_demo_json(self) -> None:
        place, tls = self.place, self.place.tls
        apps = {
            department: {
                "api_key": self._api_key(department).read_text(),
                "cert": str(tls / f"{department}.pem"),
                "key": str(tls / f"{department}.key"),
            }
            for department in SERVICES
        }
        content = {
            "api": place.api,
            "admin": place.admin,
            "processor": place.processor,
            "metrics": f"http://127.0.0.1:{place.ports['metrics']}/metrics",
            "ca": str(tls / "ca.pem"),
            "database": self._owner_dsn(),
            "apps": apps,
            "staff": {person.role: person.told() for person in self._people()},
            "officers": {
                name: {
                    "key": str(place.officer(name, "key")),
                    "passphrase_file": str(place.officer(name, "passphrase")),
                }
                for name in OFFICERS
            },
            "processor_key": place.secret("stub", "processor.credential").read_text(),
        }
        write_private(self._home / "demo.json", (json.dumps(content, indent=2) + "\n").encode(), replace=True)

    async def _command(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "TERM", "--"),
            str(BIN / arguments[0]),
            *arguments[1:],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=environment(self._home),
        )
        output, errors = await process.communicate()
        if process.returncode:
            told = errors.decode(errors="replace").strip().splitlines()
            raise StepFailed(told[-1] if told else f"{' '.join(arguments[:2])} ended with {process.returncode}")
        return output.decode().strip()

    def _watch(self, name: str, wait: Callable[[], Awaitable[int]], start: Callable[[], Awaitable[None]]) -> None:
        async def watch() -> None:
            while True:
                print(f"  !!   {name} ended ({await wait()}); it is started again", flush=True)
                await _insist(name, start)

        self._watchers.append(asyncio.create_task(watch()))

    def _owner_dsn(self) -> str:
        parts = urlsplit(self._dsn)
        password = self.place.secret("owner", "database.password").read_text()
        return f"postgresql://gateway_owner:{quote(password)}@{parts.netloc}{parts.path}"

    def _api_key(self, department: str) -> Path:
        return self.place.secret("demo", f"{department}.api_key")

    def _connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(self.place.tls / "ca.pem")))


async def _is_ready(session: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with session.get(f"{address}/readyz") as response:
            return bool((await response.json()).get("status") == "ok")
    except (aiohttp.ClientError, OSError):
        return False


async def _insist(name: str, start: Callable[[], Awaitable[None]]) -> None:
    """Start a part that ended, until it starts: it may be killed again while it does."""
    while True:
        await asyncio.sleep(RESTART_PAUSE_S)
        try:
            return await start()
        except (EmbeddedError, OSError) as error:
            print(f"  !!   {name} does not start: {error}", flush=True)


def environment(home: Path) -> dict[str, str]:
    """What a part of the demo inherits: nothing of the caller's but where to find programs, and an HSM's settings."""
    passed_on = {name: os.environ[name] for name in HSM_SETTINGS if name in os.environ}
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "GATEWAY_HOME": str(home)} | passed_on


def application_uri(department: str) -> str:
    """The name in an application's certificate."""
    return f"urn:gateway:{ENVIRONMENT}:application:{department}"


def prepare(home: Path, *, reset: bool) -> None:
    """Lay out the folder and lock it: raises `StepFailed` when another demo is at work in it.

    The lock goes with this process, however it ends.
    """
    if home.exists() and any(home.iterdir()) and not (home / MARKER).exists():
        raise StepFailed(f"{home} holds files that are not the demo's: name another folder in GATEWAY_HOME")
    # Others may pass through, so that PostgreSQL needs no privilege to reach its own folder; they see nothing.
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)
    _lock(home)
    if reset:
        _forget(home)
    for name in ("tls", "secrets", "root", "stub", "finance", "log"):
        (home / name).mkdir(exist_ok=True, mode=0o700)
    for name in INBOXES:
        (home / INBOX / name).mkdir(parents=True, exist_ok=True)


def read_ports() -> dict[str, int]:
    """The ports, `GATEWAY_API_PORT` and its like put in."""
    ports = dict(PORTS)
    for name, usual in PORTS.items():
        variable = f"GATEWAY_{name.upper()}_PORT"
        text = os.environ.get(variable, str(usual))
        if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):  # noqa: PLR2004 - ports
            raise StepFailed(f"{variable} must be a port number, 1 to 65535")
        ports[name] = int(text)
    if len(set(ports.values())) < len(ports):
        raise StepFailed("two of the ports are the same: " + ", ".join(f"{name} {ports[name]}" for name in ports))
    return ports


async def run(arguments: argparse.Namespace) -> int:
    """The demo's exit code: 0 if every step held."""
    os.umask(0o077)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    home = gateway_home().resolve()
    demo = None
    try:
        prepare(home, reset=arguments.reset)
        demo = Demo(Place(home, read_ports()), month=arguments.month)
        starting = asyncio.create_task(demo.start())
        stopping = asyncio.create_task(asked.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 1
        starting.result()
        print(
            f"\nThe gateway serves at {demo.place.api}, its staff at {demo.place.admin};"
            f" keys, names and passwords stand in {home / 'demo.json'}.",
            flush=True,
        )
        if arguments.month:
            print(f"\n{what_to_try(demo.place.admin, home)}", flush=True)
        if not arguments.check:
            print("Ctrl-C ends it.", flush=True)
            await stopping
        stopping.cancel()
    except (StepFailed, OSError) as error:
        print(f"  FAILED  {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        if demo is not None:
            await demo.stop()
    return 0


def main() -> int:
    """Entry point of `deploy/run`."""
    parser = argparse.ArgumentParser(prog="./deploy/run", description="Install, set up and run the whole demo.")
    parser.add_argument("--check", action="store_true", help="do the same, say what held, and exit (0 or 1)")
    parser.add_argument("--month", action="store_true", help="add a busy month for finance to reconcile, once")
    parser.add_argument("--reset", action="store_true", help="forget everything that an earlier run left")
    return asyncio.run(run(parser.parse_args()))


def _forget(home: Path) -> None:
    """Remove what the demo lays out, and nothing else."""
    for name in LAID_OUT:
        path = home / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lock(home: Path) -> None:
    descriptor = os.open(home / MARKER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StepFailed(f"another ./deploy/run is at work in {home}: stop it first") from None


def _keep(path: Path) -> Secret[str]:
    """A secret of our own making: made once, kept."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(PASSWORD_BYTES).encode(), replace=False)
    return read_private_line(path)


async def _json(answer: Any, status: int) -> Any:
    try:
        async with answer as response:
            content = await response.json(content_type=None)
            if response.status != status:
                raise StepFailed(f"{response.method} {response.url.path} answered {response.status}: {content}")
            return content
    except (aiohttp.ClientError, OSError) as error:
        raise StepFailed(f"{type(error).__name__}") from None


if __name__ == "__main__":
    sys.exit(main())
