"""The parent of several api processes: opens the root once, watches over them, replaces them one by one.

    SIGHUP            each worker is replaced: a new one starts, reads the configuration anew and is ready, and only
                      then is the old one told to go, which first answers what it was asked
    SIGTERM, SIGINT   all end, each when it has answered
    a worker dies     another one takes its place; where that dies at once, too, after a pause that grows
    the parent dies   its workers notice, and end: nothing serves without it

One socket is listened on, and every worker inherits it. SO_REUSEPORT would give each a queue of its own: who waits
in the queue of a worker that ends is lost, and waits in vain where one is stuck. What a shared queue is blamed for,
that one process may take all, `gateway.web.acceptor` mends.

A worker is this very command once more, told its berth. It holds no root: `keys.root_relay`. What its parent holds,
ports, root and the number of workers, stays as it is until the parent itself is started anew.
"""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from structlog.typing import FilteringBoundLogger

from gateway.berth import READY, RETIRE, inheritance, listen_for_metrics
from gateway.config import Config
from gateway.daemon import end, forbid_dumps, listen, stop_asked
from gateway.web.acceptor import shared_memory
from keys.root import Ask, RootKey
from keys.root_relay import relay
from keys.roots import open_root

READY_S, READY_EACH_S = 60.0, 3.0
"""For one that is starting, and more for each that may be starting beside it: they share the machine."""
FAIL_S = 5.0
END_S = 40.0
"""Longer than a worker takes over its grace and its last requests."""
YOUNG_S = 10.0
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 30.0


async def supervise(config: Config, workers: int, ask: Ask, log: FilteringBoundLogger) -> bool:
    """Run so many workers until SIGTERM or SIGINT; False when the first one could not begin, which has said why.

    Raises `keys.errors.KeysError` where the parent itself must not start.
    """
    forbid_dumps()
    listener = listen(config.api.host, config.api.port, "api.port")
    metrics = [listen_for_metrics(config, number) for number in range(1, workers + 1)]
    root, asked, loads = open_root(config.keys.root, ask), stop_asked(), shared_memory(workers)
    posts = [Post(number, (loads, listener.fileno(), sock.fileno())) for number, sock in enumerate(metrics, 1)]
    crew = Crew(posts, root, log)
    serving, stopping = asyncio.create_task(crew.serve()), asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return not serving.done() or serving.result()
    finally:
        await end(serving, stopping)
        await crew.end()


@dataclass(eq=False)
class Worker:
    """One process, as its parent sees it."""

    process: Process
    line: socket.socket
    relaying: asyncio.Task[None]
    since_s: float

    async def is_ready(self, within_s: float) -> bool:
        """Wait until it serves; False when it ends instead, or takes longer."""
        try:
            async with asyncio.timeout(within_s):
                return await asyncio.get_running_loop().sock_recv(self.line, 1) == READY
        except (TimeoutError, OSError):
            return False

    def retire(self) -> None:
        """Let it go: another one serves in its place."""
        with suppress(OSError):  # it has gone by itself
            self.line.send(RETIRE)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; gives its exit status, or minus the signal."""
        status = await self.process.wait()
        self.relaying.cancel()
        self.line.close()
        return status

    async def end(self, within_s: float) -> int:
        """See that it ends: by itself, or by force."""
        try:
            async with asyncio.timeout(within_s):
                return await self.ended()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            return await self.ended()


@dataclass(eq=False)
class Post:
    """Where one worker after another serves. Who holds `filling` decides which one is next."""

    number: int
    descriptors: tuple[int, ...]
    """What stays: loads, listener, metrics."""
    worker: Worker | None = None
    filling: asyncio.Lock = field(default_factory=asyncio.Lock)


class Crew:
    """All posts, and whoever serves on them or has not ended yet."""

    def __init__(self, posts: list[Post], root: RootKey, log: FilteringBoundLogger) -> None:
        self._posts = posts
        self._root = root
        self._log = log
        self._alive: set[Worker] = set()
        self._ready_s = READY_S + READY_EACH_S * len(posts)

    async def serve(self) -> bool:
        """Fill the posts and keep them filled; returns, False, only when the first worker could not begin."""
        renew = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew.set)
        self._posts[0].worker = await self._begun(self._posts[0])  # alone: what is wrong for all is told once
        if self._posts[0].worker is None:
            return False
        async with asyncio.TaskGroup() as duties:
            for post in self._posts:
                duties.create_task(self._keep(post))
            duties.create_task(self._renew(renew))
        return True

    async def end(self) -> None:
        """End everybody, once `serve` does nothing any more."""
        for worker in self._alive:
            worker.signal(signal.SIGTERM)
        await asyncio.gather(*(worker.end(END_S) for worker in self._alive))

    async def _keep(self, post: Post) -> None:
        """Fill a post whenever it is empty."""
        pause_s = 0.0
        while True:
            worker = post.worker
            status = 0 if worker is None else await worker.ended()
            async with post.filling:
                if post.worker is not worker:  # it went because it was replaced
                    continue
                if worker is not None:
                    self._alive.discard(worker)
                    self._log.error("worker.died", worker=post.number, status=status)
                    if _now_s() - worker.since_s > YOUNG_S:
                        pause_s = 0.0
                await asyncio.sleep(pause_s)
                pause_s = min(max(2 * pause_s, PAUSE_FIRST_S), PAUSE_MAX_S)
                post.worker = await self._begun(post)

    async def _renew(self, asked: asyncio.Event) -> None:
        """Replace everybody, one after another, whenever that is asked for."""
        while True:
            await asked.wait()
            asked.clear()
            for post in self._posts:
                if not await self._replaced(post):
                    self._log.error("renewal.stopped", worker=post.number)
                    break
            else:
                self._log.info("renewed")

    async def _replaced(self, post: Post) -> bool:
        """Whether another worker serves now; else the old one goes on."""
        async with post.filling:
            if (successor := await self._begun(post)) is None:
                return False
            old, post.worker = post.worker, successor
        if old is not None:
            old.retire()
            await old.end(END_S)
            self._alive.discard(old)
        return True

    async def _begun(self, post: Post) -> Worker | None:
        """A new worker that is ready; None for one that failed, which has ended."""
        try:
            worker = await self._spawned(post)
        except OSError as error:  # no memory, no descriptor, no interpreter at this moment
            self._log.error("worker.failed", worker=post.number, error=type(error).__name__)
            return None
        self._alive.add(worker)
        if await worker.is_ready(self._ready_s):
            self._log.info("worker.ready", worker=post.number)
            return worker
        status = await worker.end(FAIL_S)
        self._alive.discard(worker)
        self._log.error("worker.failed", worker=post.number, status=status)
        return None

    async def _spawned(self, post: Post) -> Worker:
        (root, their_root), (line, their_line) = _pair(), _pair()
        with ExitStack() as ours, their_root, their_line:  # theirs closed here, so that its end is noticed
            ours.callback(root.close)
            ours.callback(line.close)
            inherited = [*post.descriptors, their_root.fileno(), their_line.fileno()]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *sys.orig_argv[1:]),
                *("--berth", inheritance(post.number, len(self._posts), inherited)),
                stdin=DEVNULL,
                pass_fds=inherited,
                process_group=0,  # Ctrl-C is for the parent
            )
            ours.pop_all()
        return Worker(process, line, asyncio.create_task(relay(self._root, root)), _now_s())


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def _now_s() -> float:
    return asyncio.get_running_loop().time()
