"""What lies between one replica and PostgreSQL: a TCP proxy that breaks where it hurts.

It knows two things of the protocol, what a BEGIN looks like and what commits, and a commit can break in six ways.
Whatever it cuts it cuts by a reset, as a network does that lost its state.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import cast

from tests.gateway.store.postgres import HOST, RESET, Talk
from tests.simulation.swarm import Fault
from tests.waters.chance import Chance

BEGIN = b"BEGIN"
DELAY_S = (0.02, 0.4)
"""How late what is slow arrives."""
Strikes = Callable[[Fault, str], bool]


class Cut(StrEnum):
    """How a COMMIT breaks."""

    BEFORE = "commit cut before it arrived"
    LATE = "commit cut, and arrived all the same, late"
    AFTER = "commit cut after it, before the answer"
    ANSWERED = "commit answered, then cut"
    LOST = "commit lost in silence"
    UNHEARD = "commit carried out, the answer lost in silence"


DEAF = frozenset({Cut.LOST, Cut.UNHEARD})
NOT_MADE, MADE = "commit lost and not made", "commit made, and lost"


class Strait:
    """The way of one replica to the server. While it is `closed` nobody gets through."""

    def __init__(self, name: str, target: int, chance: Chance, strikes: Strikes, saw: Callable[[str], None]) -> None:
        self.name = name
        self._target = target
        self._strikes = strikes
        self.saw = saw
        self.cuts = chance.stream(f"cuts of {name}")
        self.closed = False
        self.lines: set[Near] = set()
        self._connecting: set[asyncio.Task[None]] = set()

    async def open(self) -> int:
        """Listen; gives the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Near(self), HOST, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Nobody listens any more, and nobody is connected."""
        self._server.close()
        self.reset()
        for task in self._connecting:
            task.cancel()

    def reset(self) -> None:
        """Cut every line."""
        for line in list(self.lines):
            line.cut()

    def connect(self, near: "Near") -> None:
        """A line to the server for who has come."""
        task = asyncio.create_task(self._connect(near))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def strikes(self, fault: Fault) -> bool:
        """Whether this fault strikes here and now."""
        return self._strikes(fault, self.name)

    async def _connect(self, near: "Near") -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: Far(near), HOST, self._target)
        except OSError:
            near.cut()


class Near(asyncio.Protocol):
    """The replica's end of a line."""

    def __init__(self, strait: Strait) -> None:
        self._strait = strait
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.far: asyncio.Transport | None = None
        self.fate: Cut | None = None
        self._talk = Talk()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._strait.closed:
            self.cut()
            return
        self._strait.lines.add(self)
        self._strait.connect(self)

    def data_received(self, data: bytes) -> None:
        commits = self._talk.commits(data)
        if self.fate in DEAF:
            return
        if self.fate is Cut.ANSWERED or (BEGIN in data and self._strait.strikes(Fault.DB_REFUSES)):
            self.cut()
        elif commits:
            self._commit(data)
        elif BEGIN in data and self._strait.strikes(Fault.DB_SLOW):
            self._later(data)
        else:
            self.forward(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._strait.lines.discard(self)
        if self.far is not None and self.fate is not Cut.LATE:
            self.far.close()

    def connected(self, far: asyncio.Transport) -> None:
        """The server is there."""
        self.far = far
        if self._transport is None or self._transport.is_closing():
            far.close()
        waiting, self._waiting = self._waiting, []
        for data in waiting:
            far.write(data)

    def forward(self, data: bytes) -> None:
        """To the server, as soon as it is there."""
        if self.far is None:
            self._waiting.append(data)
        elif not self.far.is_closing():
            self.far.write(data)

    def answer(self, data: bytes) -> None:
        """From the server."""
        if self.fate is Cut.AFTER:
            self.cut()
        elif self._transport is not None and not self._transport.is_closing() and self.fate not in DEAF:
            self._transport.write(data)

    def cut(self) -> None:
        """The line breaks."""
        if self._transport is None:
            return
        with suppress(OSError):
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def _commit(self, data: bytes) -> None:
        if self._strait.strikes(Fault.DB_LOSES_COMMIT):
            self.fate = self._strait.cuts.choice(list(Cut))
            self._strait.saw(self.fate)
            self._strait.saw(NOT_MADE if self.fate in {Cut.BEFORE, Cut.LOST} else MADE)
        elif self._strait.strikes(Fault.DB_SLOW):
            self._later(data)
            return
        if self.fate is Cut.LATE:
            self._later(data)
        elif self.fate not in {Cut.BEFORE, Cut.LOST}:
            self.forward(data)
        if self.fate in {Cut.BEFORE, Cut.LATE}:
            self.cut()

    def _later(self, data: bytes) -> None:
        # What follows on this line follows an answer to this, so nothing overtakes it.
        loop, delay_s = asyncio.get_running_loop(), self._strait.cuts.uniform(*DELAY_S)
        loop.call_later(delay_s, self.forward, data)
        if self.fate is Cut.LATE and self.far is not None:
            loop.call_later(delay_s + 0.01, self.far.close)


class Far(asyncio.Protocol):
    """The server's end of a line."""

    def __init__(self, near: Near) -> None:
        self._near = near

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._near.connected(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._near.answer(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._near.cut()
