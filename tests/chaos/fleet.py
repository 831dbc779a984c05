"""A fleet of real processes on one machine: PostgreSQL, the processor's double, several api processes and workers.

Its home is one that the demo's launcher has set up and left. What dies is started again; what is stopped goes on
after a while that is longer than a lease. Each death by schedule is in `hits`.
"""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.embedded import EmbeddedError, EmbeddedPostgres
from tests.system import BIN, System, free_ports

STOPPED_S = 17.0
"""Longer than a lease: whoever wakes up has lost everything that it held."""
ALIVE_POLL_S = 0.05
PAUSE_S = 0.2


class Member:
    """One process, started again whenever it ends."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command = command
        self.environment = environment
        self._log = log
        self._process: Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.starts = 0

    async def start(self) -> None:
        """Start it, and watch over it."""
        await self._spawn()
        self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """End it for good."""
        if self._watcher is not None:
            self._watcher.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), 20)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    def kill(self) -> None:
        """`kill -9`, now."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    async def _spawn(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, env=self.environment, stdin=DEVNULL, stdout=log, stderr=log
            )

    async def _watch(self) -> None:
        while True:
            assert self._process is not None
            await self._process.wait()
            await asyncio.sleep(PAUSE_S)
            await self._spawn()


class Fleet:
    """All of them. `apis` are the addresses of the api processes."""

    def __init__(self, home: Path, seed: int, apis: int = 2, workers: int = 2) -> None:
        self.home = home
        self.hits = home / "hits"
        self._random = random.Random(seed)  # noqa: S311 - a schedule that must be reproducible
        self._postgres = EmbeddedPostgres(home)
        self._counts = apis, workers
        self.members: dict[str, Member] = {}
        self.apis: list[str] = []
        self.crashes = 0
        self.kills = 0
        self.demo: dict[str, Any] = json.loads((home / "demo.json").read_text())

    async def start(self, kill: float, stop: float) -> None:
        """Start everything; each api process meets these probabilities at every point, a worker five times them."""
        address = await self._postgres.start()
        self._supervisor = asyncio.create_task(self._supervise())
        base = {"PATH": os.environ["PATH"], "GATEWAY_HOME": str(self.home)}
        base["GATEWAY_DATABASE_DSN"] = f"postgresql://{address.host}:{address.port}/{address.database}"
        self._add("stub", [str(BIN / "gateway"), "stub"], base)
        apis, workers = self._counts
        for number in range(apis):
            api, *_, metrics = free_ports()
            self.apis.append(f"https://127.0.0.1:{api}")
            ports = {"GATEWAY_API_PORT": str(api), "GATEWAY_METRICS_PORT": str(metrics)}
            self._add(f"api{number}", _chaotic("api"), base | ports | self._chaos(kill, stop))
        for number in range(workers):
            self._add(f"worker{number}", _chaotic("worker"), base | self._chaos(5 * kill, 5 * stop))
        for member in self.members.values():
            await member.start()
        self._waker = asyncio.create_task(self._wake())

    async def heal(self) -> None:
        """From now on nobody dies: every member is replaced by one whose schedule is empty."""
        for name, member in self.members.items():
            if "CHAOS" in member.environment:
                member.environment |= self._chaos(0, 0)
            if name != "stub":
                with suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGCONT)
                member.kill()

    async def stop(self) -> None:
        """End everything."""
        self._waker.cancel()
        for member in reversed(self.members.values()):
            await member.stop()
        self._supervisor.cancel()
        await self._postgres.stop()

    def crash_postgres(self) -> None:
        """`pg_ctl stop -m immediate`, in effect: the server ends as in a power cut, and is started again.

        One that is still on its way back is spared.
        """
        with suppress(ProcessLookupError, FileNotFoundError, ValueError):
            pid = int((self.home / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
            os.kill(pid, signal.SIGQUIT)
            self.crashes += 1

    def kill_one(self) -> None:
        """`kill -9` of any member, at any moment."""
        self.members[self._random.choice(sorted(self.members))].kill()
        self.kills += 1

    def counted(self) -> Counter[tuple[str, str]]:
        """How often what happened at which point."""
        if not self.hits.exists():
            return Counter()
        words = [line.split() for line in self.hits.read_text().splitlines()]
        return Counter((how, point) for how, point, _ in words)

    def system(self, number: int) -> System:
        """The demo as its test client sees it, at one of the api processes."""
        system = System(self.home)
        system.demo = self.demo | {"api": self.apis[number]}
        return system

    def _add(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.members[name] = Member(command, environment, self.home / "log" / f"{name}.log")

    def _chaos(self, kill: float, stop: float) -> dict[str, str]:
        told = {"seed": self._random.randrange(2**32), "kill": kill, "stop": stop, "hits": str(self.hits)}
        return {"CHAOS": json.dumps(told)}

    async def _supervise(self) -> None:
        while True:
            await self._postgres.wait()
            while not await self._started():
                await asyncio.sleep(PAUSE_S)

    async def _started(self) -> bool:
        try:
            await self._postgres.start()
        except EmbeddedError:  # killed again while it started
            return False
        return True

    async def _wake(self) -> None:
        """Let go on what was stopped, after longer than a lease."""
        stopped: dict[int, float] = {}
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(ALIVE_POLL_S)
            for member in self.members.values():
                pid = member.pid
                if not _is_stopped(pid):
                    stopped.pop(pid, None)
                elif loop.time() - stopped.setdefault(pid, loop.time()) > STOPPED_S:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)


def _chaotic(name: str) -> list[str]:
    return [sys.executable, "-m", "tests.chaos.process", name]


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
