"""The whole demo as tests see it: started by its own launcher, in a folder and on ports of its own."""

import asyncio
import base64
import hmac
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "deploy" / "demo.py"
BIN = Path(sys.prefix) / "bin"
START_S = 120
TOTP_STEP_S = 30
PORT_NAMES = ("API", "ADMIN", "PROCESSOR", "PROCESSOR_WIRE", "METRICS")


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read whole."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The slug of a problem document."""
        assert self.headers["Content-Type"] == "application/problem+json"
        return str(self.json["type"]).rpartition("/")[2]


class System:
    """A demo in `home`; `demo` is what its `demo.json` says."""

    def __init__(self, home: Path, **more: str) -> None:
        self.home = home
        self.plain = {"PATH": os.environ["PATH"], "GATEWAY_HOME": str(home)} | more
        self.environment = dict(self.plain)
        self.environment |= {
            f"GATEWAY_{name}_PORT": str(port) for name, port in zip(PORT_NAMES, free_ports(), strict=True)
        }
        self.launcher: subprocess.Popen[bytes] | None = None
        self.demo: dict[str, Any] = {}
        self.recorded: list[bytes] = []
        self.totp_steps: dict[str, int] = {}

    def start(self, *arguments: str) -> Self:
        """Run the launcher until `demo.json` is new."""
        self.home.mkdir(parents=True, exist_ok=True)
        told = self.home / "demo.json"
        before = told.stat().st_mtime_ns if told.exists() else 0
        self.launcher = subprocess.Popen([sys.executable, str(LAUNCHER), *arguments], env=self.environment)
        deadline = time.monotonic() + START_S
        while not told.exists() or told.stat().st_mtime_ns == before:
            assert self.launcher.poll() is None, "the launcher ended"
            assert time.monotonic() < deadline, "the demo did not start"
            time.sleep(0.05)
        self.demo = json.loads(told.read_text())
        return self

    def stop(self) -> None:
        """Ctrl-C, in effect."""
        if self.launcher is not None and self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGTERM)
            self.launcher.wait(60)

    def parts(self) -> dict[str, int]:
        """The launcher's children by name: api, stub, postgres."""
        assert self.launcher is not None
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                line = (folder / "cmdline").read_bytes().decode().split("\0")
            except (OSError, IndexError):
                continue
            if parent == self.launcher.pid and line[0]:
                found["postgres" if line[0].endswith("postgres") else line[-2]] = int(folder.name)
        return found

    def kill(self, name: str) -> None:
        """`kill -9` one part; its launcher starts it again."""
        os.kill(self.parts()[name], signal.SIGKILL)

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.demo["ca"])

    def command(self, *arguments: str, code: int | None = 0) -> str:
        """Run `gateway …` or `keys …` against this demo; gives what it printed. It ends with `code`, None is any."""
        done = subprocess.run(
            [str(BIN / arguments[0]), *arguments[1:]],
            env=self.plain,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )
        self.recorded += [done.stdout, done.stderr]
        assert code in {None, done.returncode}, done.stderr.decode()
        return (done.stderr if code else done.stdout).decode()

    def officer(self, name: str) -> tuple[str, ...]:
        """The options by which an officer of the demo signs."""
        told = self.demo["officers"][name]
        return ("--officer", told["key"], "--passphrase-file", told["passphrase_file"])

    def by_two(self, *arguments: str) -> str:
        """An act for two, from request to approval; gives what the approval printed."""
        asked = json.loads(self.command(*arguments, *self.officer("security"), "--json").splitlines()[-1])
        return self.command("keys", "approve", asked["act"], *self.officer("security2"))


class Client:
    """One application, speaking to the API; keeps every answer, for the search for canaries."""

    def __init__(self, system: System, app: str, certificate: str | None = None) -> None:
        self._system = system
        self._certificate = certificate
        self._key = system.demo["apps"][app]["api_key"]
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        tls = self._system.tls
        if self._certificate is not None:
            told = self._system.demo["apps"][self._certificate]
            tls.load_cert_chain(told["cert"], told["key"])
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        api_key: str | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        """One request; raises what aiohttp raises."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {api_key or self._key}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        async with self._session.request(
            method, self._system.demo["api"] + path, data=data, headers=headers, allow_redirects=False
        ) as response:
            reply = Reply(response.status, await response.read(), dict(response.headers))
        self._system.recorded += [reply.body, repr(reply.headers).encode()]
        return reply

    async def insist(self, method: str, path: str, body: object = None, *, key: str | None = None) -> Reply:
        """As a patient client does: again while the service is away or at work on the same key."""
        deadline = time.monotonic() + 60
        while True:
            try:
                reply = await self.call(method, path, body, key=key)
                if reply.status not in {409, 503} or reply.problem == "token-in-use":
                    return reply
            except (aiohttp.ClientError, OSError):
                pass
            assert time.monotonic() < deadline, "the service did not come back"
            await asyncio.sleep(0.1)

    async def finally_(self, path: str, body: object, key: str, within_s: float = 30) -> Reply:
        """The final answer under a key: asked for again while it is not known what the processor did."""
        deadline = time.monotonic() + within_s
        while True:
            reply = await self.insist("POST", path, body, key=key)
            if reply.status != 202:
                return reply
            assert time.monotonic() < deadline, "nobody found out what the processor did"
            await asyncio.sleep(0.1)


class Staff:
    """One of the staff, speaking to the admin site as a script does. `who` is a role of the demo's, or factors."""

    def __init__(self, system: System, who: str | dict[str, str]) -> None:
        self._system = system
        self._who = system.demo["staff"][who] if isinstance(who, str) else who
        self._session: aiohttp.ClientSession | None = None
        self.token = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._system.tls, limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def sign_in(self, **other: str) -> Reply:
        """With name, password and the next unused code, or what is given instead; a session that it opens is kept."""
        body = {"username": self._who["username"], "password": self._who["password"]} | other
        if "totp" not in other:
            body["totp"] = await self.code()
        reply = await self.call("POST", "/admin/v1/sessions", body)
        if reply.status == 201:
            self.token = reply.json["token"]
        return reply

    async def code(self) -> str:
        """A code of a step that was not used yet; half a minute's wait where all that are good now have been."""
        secret = self._who["totp_secret"]
        now = int(time.time()) // TOTP_STEP_S
        step = max(now - 1, self._system.totp_steps.get(secret, 0) + 1)
        self._system.totp_steps[secret] = step
        await asyncio.sleep(max(0.0, (step - 1) * TOTP_STEP_S - time.time()))
        return totp(secret, step)

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        media: str = "application/json",
    ) -> Reply:
        """One request in this session; raises what aiohttp raises."""
        assert self._session is not None
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = media
        async with self._session.request(
            method, self._system.demo["admin"] + path, data=data, headers=headers, allow_redirects=False
        ) as response:
            reply = Reply(response.status, await response.read(), dict(response.headers))
        self._system.recorded += [reply.body, repr(reply.headers).encode()]
        return reply


def totp(secret: str, step: int) -> str:
    """The code of one step (RFC 6238 over RFC 4226), worked out apart from the product's own."""
    digest = hmac.digest(base64.b32decode(secret), step.to_bytes(8, "big"), "sha1")
    place = digest[-1] & 15
    return f"{(int.from_bytes(digest[place : place + 4], 'big') & 0x7FFFFFFF) % 1_000_000:06}"


class Stub:
    """The processor's side for checks."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Bearer {self._system.demo['processor_key']}"}
        deadline = time.monotonic() + 30
        while True:
            connector = aiohttp.TCPConnector(ssl=self._system.tls)
            try:
                async with (
                    aiohttp.ClientSession(connector=connector, headers=headers) as session,
                    session.request(method, self._system.demo["processor"] + path, json=body) as response,
                ):
                    assert response.status == 200, await response.text()
                    return await response.json()
            except aiohttp.ClientConnectorError:  # killed a moment ago, and on its way back
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    async def faults(self, **plan: object) -> None:
        """Set the fault plan; nothing heals."""
        await self._call("PUT", "/v1/faults", plan)

    async def charges(self) -> dict[str, dict[str, Any]]:
        """Its truth, by reference."""
        listed = await self._call("GET", "/v1/charges")
        return {row["reference"]: row for row in listed["data"]}

    async def movements(self) -> Any:
        """Its own list of all that it was ever asked for."""
        return await self._call("GET", "/v1/movements")


@contextmanager
def running(home: Path, **more: str) -> Iterator[System]:
    """A demo that is stopped and removed at the end; `more` is added to its environment."""
    system = System(home, **more).start()
    try:
        yield system
    finally:
        system.stop()
        shutil.rmtree(home, ignore_errors=True)


async def owner(system: System) -> asyncpg.Connection:
    """A connection as the schema's owner."""
    return await asyncpg.connect(system.demo["database"])


async def connect_as(system: System, process: str) -> asyncpg.Connection:
    """A connection as the role of one process."""
    password = (system.home / "secrets" / process / "database.password").read_text()
    return await asyncpg.connect(
        system.demo["database"].split("@")[0].split("//")[0]
        + "//"
        + f"gateway_{process}:{password}@"
        + system.demo["database"].split("@")[1]
    )


def free_ports() -> list[int]:
    """Ports that nobody listens on now, below the range that outgoing connections take theirs from."""
    ports: list[int] = []
    while len(ports) < len(PORT_NAMES):
        port = random.SystemRandom().randrange(20_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        ports.append(port)
    return ports
