"""Takes connections from a listening socket, of which other processes may take them, too.

Who shares a socket shares its queue: nothing that waits there is lost when one of them stops or dies, or waits in
vain where one is stuck. But the kernel wakes them all, the first one wins, and on a quiet machine that may always be
the same one. So they tell each other how many connections they have, and only the idlest is quick.
"""

import asyncio
import mmap
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger

_PATIENCE_S: Final = 0.005  # longer than the idlest needs to come round, shorter than a handshake over a network
_PAUSE_S: Final = 0.1  # out of descriptors: let connections end instead of spinning


class Loads:
    """How many connections each process has that shares a socket, in memory that they share.

    Args:
        descriptor: of a file in memory, see `shared_memory`.
        mine: which of them this process is, from 0.
    """

    def __init__(self, descriptor: int, mine: int) -> None:
        self._counts = memoryview(mmap.mmap(descriptor, 0)).cast("I")
        self._mine = mine

    def note(self, connections: int) -> None:
        """So many are mine now."""
        self._counts[self._mine] = connections

    def patience_s(self) -> float:
        """How long to leave a connection to others. Who died has a count, too: hence never for longer."""
        return 0 if self._counts[self._mine] == min(self._counts) else _PATIENCE_S


def shared_memory(processes: int) -> int:
    """The descriptor of memory for the `Loads` of so many processes; for the caller to close."""
    descriptor = os.memfd_create("loads")
    os.ftruncate(descriptor, processes * 4)
    return descriptor


@dataclass(eq=False)
class Acceptor:
    """Gives what it accepts to `take`."""

    sock: socket.socket
    take: Callable[[socket.socket], None]
    loads: Loads | None
    log: FilteringBoundLogger
    _pause: asyncio.TimerHandle | None = field(default=None, init=False)

    def start(self) -> None:
        """Accept from now on."""
        self.sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self.sock, self._knock)

    def stop(self) -> None:
        """Accept nothing more. What is not taken yet stays in the queue, for others who hold the socket."""
        asyncio.get_running_loop().remove_reader(self.sock)
        if self._pause is not None:
            self._pause.cancel()
        self.sock.close()

    def _knock(self) -> None:
        patience_s = self.loads.patience_s() if self.loads else 0
        if patience_s:
            self._later(patience_s)
        else:
            self._accept()

    def _later(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock)

        def resume() -> None:
            loop.add_reader(self.sock, self._knock)
            self._accept()

        self._pause = loop.call_later(delay_s, resume)

    def _accept(self) -> None:
        # Not `loop.sock_accept`: one that is cancelled in the moment of its success drops the connection.
        try:
            sock, _ = self.sock.accept()
        except BlockingIOError:  # somebody else was faster
            return
        except OSError as error:
            self.log.warning("accept.failed", error=type(error).__name__)
            self._later(_PAUSE_S)
            return
        self.take(sock)
