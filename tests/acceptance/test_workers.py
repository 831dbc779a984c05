"""Several api processes on one port: replaced and killed under load, and never without their parent."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from keys import root_file
from keys.secret import Secret
from tests.acceptance.test_main_job import token_body
from tests.system import BIN, System, free_ports

pytestmark = pytest.mark.server

WORKERS = 3
PATIENCE_S = 60.0
PAUSE_S = 0.05
"""Between a page's requests, so that new workers have a processor to begin on."""


class Parent:
    """`gateway api --workers N` beside the demo's own api process, on ports and with settings of its own."""

    def __init__(self, system: System, folder: Path, **more: str) -> None:
        self._system = system
        self._log = folder / "log"
        self.settings = folder / "gateway.toml"
        self.settings.write_text((system.home / "gateway.toml").read_text())
        self.settings.chmod(0o600)
        self.port, self.metrics = free_ports()[0], _ports_in_a_row(WORKERS)
        ports = {"GATEWAY_API_PORT": str(self.port), "GATEWAY_METRICS_PORT": str(self.metrics)}
        self._environment = system.plain | ports | {"GATEWAY_CONFIG": str(self.settings)} | more
        self.process: subprocess.Popen[str] | None = None

    def start(self, workers: int = WORKERS) -> None:
        """Start it, with nobody at a terminal."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "gateway", "api", "--workers", str(workers)],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """To the parent alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Wait for its end; gives its exit status and what it said of it."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, said

    def told(self, event: str) -> list[dict[str, Any]]:
        """What it and its workers logged of one kind."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def workers(self) -> dict[int, int]:
        """The processes of now by their number; of two with one number, the newer."""
        assert self.process is not None
        found = {}
        for pid in sorted(_children(self.process.pid)):
            told = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "--berth" in told:
                found[int(told[told.index("--berth") + 1].partition("/")[0])] = pid
        return found


@contextmanager
def begun(system: System, folder: Path, workers: int = WORKERS) -> Iterator[Parent]:
    """A parent whose workers are ready."""
    parent = Parent(system, folder)
    parent.start(workers)
    try:
        until(lambda: len(parent.told("worker.ready")) == workers)
        yield parent
    finally:
        assert parent.process is not None
        parent.process.kill()


@pytest.fixture(scope="module")
def parent(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parent]:
    """One with three workers for the module. Asked to stop, it ends with 0 when they have."""
    with begun(system, tmp_path_factory.mktemp("parent")) as parent:
        yield parent
        assert status_after(parent, signal.SIGTERM) == 0


class Load:
    """Pages that tokenize without pause, and what was answered, or went wrong, to whom."""

    def __init__(self, system: System, parent: Parent) -> None:
        self._system, self._url = system, f"https://127.0.0.1:{parent.port}/v1/tokens"
        self.answers: list[int | str] = []
        self._done = asyncio.Event()

    @asynccontextmanager
    async def running(self, kept: int, fresh: int) -> AsyncIterator["Load"]:
        """So many pages that keep their connection, and so many that open one for each request."""
        pages = [asyncio.create_task(self._page(number >= kept)) for number in range(kept + fresh)]
        try:
            yield self
        finally:
            self._done.set()
            await asyncio.gather(*pages)

    async def more(self, count: int) -> None:
        """Wait for so many answers from now on."""
        enough, deadline = len(self.answers) + count, time.monotonic() + PATIENCE_S
        while len(self.answers) < enough:
            assert time.monotonic() < deadline, "no answers any more"
            await asyncio.sleep(0.02)

    async def _page(self, fresh: bool) -> None:
        key = self._system.demo["apps"]["parks"]["api_key"]
        connector = aiohttp.TCPConnector(ssl=self._system.tls, force_close=fresh)
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
            while not self._done.is_set():
                try:
                    async with session.post(self._url, json=token_body()) as response:
                        await response.read()
                        self.answers.append(response.status)
                except (aiohttp.ClientError, OSError) as error:
                    self.answers.append(repr(error))
                await asyncio.sleep(PAUSE_S)


async def test_workers_are_replaced_under_load_without_a_failed_request(system: System, parent: Parent) -> None:
    """SIGHUP twice: every worker is another one, twice, and no request noticed."""
    async with Load(system, parent).running(kept=4, fresh=2) as load:
        for times in (1, 2):
            before = parent.workers()
            assert sorted(before) == [1, 2, 3]
            await load.more(20)
            parent.signal(signal.SIGHUP)
            await _eventually(lambda times=times: len(parent.told("renewed")) == times)  # type: ignore[misc]
            after = parent.workers()
            assert sorted(after) == [1, 2, 3]
            assert not set(before.values()) & set(after.values())
            await load.more(20)

    assert set(load.answers) == {201}
    served = {line["worker"] for line in parent.told("request")}
    assert served == {1, 2, 3}


async def test_a_killed_worker_is_replaced_while_the_others_serve(system: System, parent: Parent) -> None:
    """`kill -9` of one costs the requests that it had, and no other; another one takes its place."""
    before = parent.workers()
    died, ready = len(parent.told("worker.died")), len(parent.told("worker.ready"))
    async with Load(system, parent).running(kept=0, fresh=3) as load:
        await load.more(10)
        os.kill(before[2], signal.SIGKILL)
        await load.more(10)
        await _eventually(lambda: len(parent.told("worker.ready")) > ready)
        await load.more(10)

    failed = [answer for answer in load.answers if answer != 201]
    assert len(failed) <= 3, failed
    (told,) = parent.told("worker.died")[died:]
    assert (told["worker"], told["status"]) == (2, -signal.SIGKILL)
    after = parent.workers()
    assert (sorted(after), after[1], after[3]) == ([1, 2, 3], before[1], before[3])
    assert after[2] != before[2]


async def test_who_cannot_begin_replaces_nobody(system: System, parent: Parent) -> None:
    """With a configuration that does not stand, SIGHUP changes nothing, and the log says so."""
    before, good = parent.workers(), parent.settings.read_text()
    parent.settings.write_text(good.replace("[api]", "[api]\nmisspelt = 1"))
    async with Load(system, parent).running(kept=2, fresh=1) as load:
        parent.signal(signal.SIGHUP)
        await _eventually(lambda: bool(parent.told("renewal.stopped")))
        await load.more(10)
    parent.settings.write_text(good)

    assert set(load.answers) == {201}
    assert parent.workers() == before


async def test_who_cannot_be_started_replaces_nobody(system: System, parent: Parent) -> None:
    """Without a free descriptor the parent starts nobody, says so, and goes on with those that it has."""
    assert parent.process is not None
    before, pid, failed = parent.workers(), parent.process.pid, len(parent.told("worker.failed"))
    bounds = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, bounds[1]))
    try:
        parent.signal(signal.SIGHUP)
        until(lambda: len(parent.told("worker.failed")) > failed)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, bounds)
    assert parent.workers() == before
    async with Load(system, parent).running(kept=1, fresh=1) as load:
        await load.more(4)
    assert set(load.answers) == {201}


async def test_each_worker_has_metrics_of_its_own(system: System, parent: Parent) -> None:
    """Worker 1 on `metrics.port`, worker 2 on the next one, and so on."""
    async with aiohttp.ClientSession() as session:
        for number in range(WORKERS):
            async with session.get(f"http://127.0.0.1:{parent.metrics + number}/metrics") as response:
                assert "gateway_pool_connections" in await response.text()


def test_ctrl_c_is_for_the_parent(parent: Parent) -> None:
    """A terminal's signals reach no worker but through its parent, which lets it end what it is doing."""
    for pid in parent.workers().values():
        assert os.getpgid(pid) == pid


def test_nothing_serves_without_its_parent(system: System, tmp_path: Path) -> None:
    """A parent that is killed takes its workers with it."""
    with begun(system, tmp_path, workers=2) as parent:
        assert status_after(parent, signal.SIGKILL) == -signal.SIGKILL


def test_a_wrong_root_is_one_line(system: System, tmp_path: Path) -> None:
    """Another root opens nothing: the first worker says so, and nobody tries again."""
    passphrase, key = tmp_path / "passphrase", tmp_path / "root.key"
    passphrase.write_text("another root's passphrase, long enough")
    passphrase.chmod(0o600)
    uri = f"file:{key}?passphrase_file={passphrase}"
    root_file.create(uri, _nobody)
    parent = Parent(system, tmp_path, GATEWAY_KEYS_ROOT=uri)
    parent.start()

    status, said = parent.ended()
    assert (status, len(said.splitlines())) == (1, 1), said
    assert "this root key does not open the key store" in said
    assert len(parent.told("worker.failed")) == 1


def status_after(parent: Parent, number: signal.Signals) -> int:
    """Send a signal and wait until nothing is left; gives the parent's exit status."""
    pids = parent.workers().values()
    assert pids
    parent.signal(number)
    status, _ = parent.ended()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", parent.port))
    return status


def until(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


async def _eventually(what: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, what)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ports_in_a_row(count: int) -> int:
    while True:
        first = free_ports()[0]
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def _nobody(_what: str) -> Secret[str]:
    raise AssertionError("nobody is to be asked")
