"""Several who accept on one socket: nothing that waits in its queue is lost, and the idlest takes it."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import structlog

from gateway.web.acceptor import Acceptor, Loads, shared_memory

PATIENCE_S = 30


class Door:
    """One who accepts, as each process has it, and what it took."""

    def __init__(self, listener: socket.socket, loads: Loads) -> None:
        self.taken: list[socket.socket] = []
        self.before = 0
        self.loads = loads
        self.acceptor = Acceptor(listener.dup(), self._take, loads, structlog.get_logger())

    def _take(self, sock: socket.socket) -> None:
        self.taken.append(sock)
        self.note()

    def note(self) -> None:
        self.loads.note(self.before + len(self.taken))


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """What they share."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def doors(listener: socket.socket) -> Iterator[list[Door]]:
    """Two of them, none of which accepts yet."""
    memory = shared_memory(2)
    doors = [Door(listener, Loads(memory, number)) for number in range(2)]
    os.close(memory)
    yield doors
    with ExitStack() as closing:
        for sock in [door.acceptor.sock for door in doors] + doors[0].taken + doors[1].taken:
            closing.enter_context(sock)


@pytest.fixture
def knock(listener: socket.socket) -> Iterator[Callable[[], None]]:
    """Opens a connection, which waits until somebody takes it."""
    with ExitStack() as open_ones:

        def knock() -> None:
            open_ones.enter_context(socket.create_connection(listener.getsockname()))

        yield knock


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():
            await asyncio.sleep(0.005)


async def test_the_idlest_takes_the_next_one(doors: list[Door], knock: Callable[[], None]) -> None:
    """Connections go to whoever is behind until both have as many, and then to both."""
    ahead, behind = doors
    ahead.before = 4
    for door in doors:
        door.note()
        door.acceptor.start()
    for _ in range(10):
        knock()
    await until(lambda: len(ahead.taken) + len(behind.taken) == 10)
    assert (len(ahead.taken), len(behind.taken)) == (3, 7)
    for door in doors:
        door.acceptor.stop()


async def test_who_is_idlest_and_stuck_holds_up_nobody(doors: list[Door], knock: Callable[[], None]) -> None:
    """Somebody who died or hangs with few connections leaves theirs to the others, a moment later."""
    alive, stuck = doors
    alive.before = 100
    for door in (alive, stuck):
        door.note()
    alive.acceptor.start()
    knock()
    await until(lambda: len(alive.taken) == 1)
    alive.acceptor.stop()


async def test_what_waits_when_one_stops_is_taken_by_another(doors: list[Door], knock: Callable[[], None]) -> None:
    """A connection that nobody has taken when somebody stops is still there for the next one."""
    old, new = doors
    old.acceptor.start()
    knock()
    old.acceptor.stop()
    new.acceptor.start()
    await until(lambda: len(new.taken) == 1)
    assert not old.taken
    new.acceptor.stop()
