"""Where one api process serves: its sockets, its root, and who tells it to end.

A process alone makes all of it. A worker of several inherits it, open already, from its parent:

    loads      memory where each worker notes how much it has to do (`gateway.web.acceptor`)
    listener   the one socket on which all of them listen
    metrics    another one for each
    root       where the parent answers for the root that it holds (`keys.root_relay`)
    line       where a worker says that it is ready, and hears that it is to go; it breaks when the parent dies
"""

import asyncio
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from gateway.config import Config
from gateway.daemon import listen, stop_asked
from gateway.web.acceptor import Loads
from keys.errors import SettingsRefused
from keys.root import Ask, RootKey
from keys.root_relay import RelayedRoot
from keys.roots import open_root

READY, RETIRE = b"+", b"-"
GRACE_S = 10.0
"""How long who is replaced lets clients keep a connection, so that they hear of its end with an answer."""
TOLD = re.compile(r"([0-9]{1,3})/([0-9]{1,3}):" + ",".join([r"([0-9]{1,9})"] * 5))


@dataclass(frozen=True, slots=True)
class Berth:
    """Of one of so many workers. One without a `line` is alone."""

    listener: socket.socket
    metrics: socket.socket
    root: RootKey
    line: socket.socket | None = None
    loads: Loads | None = None
    workers: int = 1

    @classmethod
    def alone(cls, config: Config, ask: Ask) -> Self:
        """For a process without a parent. Raises `SettingsRefused` for a busy port, `RootRefused`."""
        listener = listen(config.api.host, config.api.port, "api.port")
        return cls(listener, listen_for_metrics(config, 1), open_root(config.keys.root, ask))

    @classmethod
    def inherited(cls, told: str) -> Self:
        """Out of what `inheritance` told this worker. Raises `SettingsRefused`."""
        number, workers, loads, *sockets = _read(told)
        listener, metrics, root, line = (socket.socket(fileno=descriptor) for descriptor in sockets)
        line.setblocking(False)
        return cls(listener, metrics, RelayedRoot(root), line, Loads(loads, number - 1), workers)

    async def serve(self) -> float:
        """Say that requests are answered, and wait until that is to end.

        Gives for how long (s) clients may still use a connection that they keep: none, but where somebody else
        serves on already.
        """
        loop, asked, grace_s = asyncio.get_running_loop(), stop_asked(), 0.0

        def hear(line: socket.socket) -> None:
            nonlocal grace_s
            loop.remove_reader(line)
            grace_s = GRACE_S if _word(line) == RETIRE else 0.0
            asked.set()

        if self.line is not None:
            loop.add_reader(self.line, hear, self.line)
            self.line.send(READY)
        await asked.wait()
        return grace_s


def inheritance(number: int, workers: int, descriptors: Iterable[int]) -> str:
    """What a worker is told: who it is, and the descriptors of loads, listener, metrics, root and line."""
    return f"{number}/{workers}:{','.join(map(str, descriptors))}"


def number_of(told: str) -> int:
    """Which worker is told this. Raises `SettingsRefused`."""
    return _read(told)[0]


def listen_for_metrics(config: Config, number: int) -> socket.socket:
    """The metrics of worker 1 are on `metrics.port`, those of worker 2 on the port after it, and so on."""
    return listen("127.0.0.1", config.metrics.port + number - 1, "metrics.port")


def _read(told: str) -> list[int]:
    if (match := TOLD.fullmatch(told)) is None:
        raise SettingsRefused("--berth is what a parent tells its workers: leave it out")
    return [int(number) for number in match.groups()]


def _word(line: socket.socket) -> bytes:
    try:
        return line.recv(1)
    except OSError:  # the parent died before it had read all that we said
        return b""
