"""A root that a parent holds: its workers unwrap through it, and none of them can hold up another."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from keys import root_relay
from keys.errors import RootRefused, RootUnavailable
from keys.primitives import new_key
from keys.root import NOT_THIS_ROOT, MemoryRoot, RootKey
from keys.root_relay import MAKES_NONE, SILENT, RelayedRoot, relay
from keys.secret import Secret

PLACE = b"city/kek/1"
KEY = bytes(range(32))
PATIENCE_S = 30
THREADS = ThreadPoolExecutor(8)

Hire = Callable[[RootKey], socket.socket]


class Slow(MemoryRoot):
    """A root that takes its time over a call, and says so."""

    def __init__(self) -> None:
        super().__init__(new_key(), "root/test/v1")
        self.begun, self.go_on = threading.Event(), threading.Event()

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return super().unwrap(wrapped, bound_to)


class Away(MemoryRoot):
    """A root whose HSM does not answer."""

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        raise RootUnavailable("the HSM is away")


def memory_root() -> MemoryRoot:
    return MemoryRoot(new_key(), "root/test/v1")


@pytest.fixture
async def hire() -> AsyncIterator[Hire]:
    """Begins to serve a worker; gives the worker's end of the socket."""
    relaying = []
    with ExitStack() as workers:

        def begin(root: RootKey) -> socket.socket:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            relaying.append(asyncio.create_task(relay(root, ours)))
            return workers.enter_context(theirs)

        yield begin
    await asyncio.gather(*relaying)  # each ends by itself when its worker is gone


async def unwrapped(worker: RelayedRoot, wrapped: bytes, bound_to: bytes = PLACE) -> bytes:
    """Ask in a thread of a worker's own: the parent's are for the root."""
    loop = asyncio.get_running_loop()
    return (await loop.run_in_executor(THREADS, worker.unwrap, wrapped, bound_to)).reveal()


async def test_workers_unwrap_what_the_parent_s_root_wrapped(hire: Hire) -> None:
    """Several workers, with several threads each, get the keys that they ask for."""
    root = memory_root()
    keys = [bytes([number]) * 32 for number in range(8)]
    wrapped = [root.wrap(Secret(key), PLACE + key) for key in keys]
    workers = [RelayedRoot(hire(root)) for _ in range(2)]

    for worker in workers:
        calls = [unwrapped(worker, sealed, PLACE + key) for sealed, key in zip(wrapped, keys, strict=True)]
        assert await asyncio.gather(*calls) == keys


async def test_refusals_come_through(hire: Hire) -> None:
    """What the root refuses is refused by the same line and class; so is nonsense; and no worker wraps."""
    worker = RelayedRoot(hire(memory_root()))
    strange = memory_root().wrap(Secret(KEY), PLACE)

    for wrapped in (strange, b"", strange[:5]):
        with pytest.raises(RootRefused, match=NOT_THIS_ROOT) as refused:
            await unwrapped(worker, wrapped)
        assert not isinstance(refused.value, RootUnavailable)
    with pytest.raises(RootUnavailable, match="the HSM is away"):
        await unwrapped(RelayedRoot(hire(Away(new_key(), "root/test/v1"))), strange)
    with pytest.raises(RootRefused, match=MAKES_NONE):
        worker.wrap(Secret(KEY), PLACE)


async def test_a_worker_that_is_silent_talks_nonsense_or_dies_holds_up_nobody(hire: Hire) -> None:
    """Others are answered while one says nothing, one asks in fragments, and one is gone in the middle of a call."""
    slow, root = Slow(), memory_root()
    hire(root)
    hire(root).send(b"\xff")
    dying = hire(slow)
    dying.send(b"\0\0\0\1\0\0" + slow.wrap(Secret(KEY), b""))
    assert await asyncio.to_thread(slow.begun.wait, PATIENCE_S)
    dying.close()
    slow.go_on.set()

    worker = RelayedRoot(hire(root))
    assert await unwrapped(worker, root.wrap(Secret(KEY), PLACE)) == KEY


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(
    hire: Hire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a call that was given up, the next one gets its own key."""
    monkeypatch.setattr(root_relay, "ANSWER_S", 0.2)
    slow, other = Slow(), bytes(32)
    theirs = hire(slow)
    worker = RelayedRoot(theirs)
    with pytest.raises(RootUnavailable, match=SILENT):
        await unwrapped(worker, slow.wrap(Secret(KEY), PLACE))
    slow.go_on.set()
    theirs.settimeout(PATIENCE_S)
    assert await unwrapped(worker, slow.wrap(Secret(other), PLACE)) == other


async def test_without_its_parent_a_worker_unwraps_nothing() -> None:
    """When the parent is gone, the root is not available; nobody waits for it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        worker = RelayedRoot(theirs)
        ours.close()
        with pytest.raises(RootUnavailable, match=SILENT):
            worker.unwrap(b"\1", PLACE)
