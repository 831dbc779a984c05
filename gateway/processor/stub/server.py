"""The processor double as a process: two TLS listeners over one memory and one fault schedule."""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from gateway.processor.stub.acquirer import Acquirer
from gateway.processor.stub.book import Book
from gateway.processor.stub.control import Control
from gateway.processor.stub.door import Door
from gateway.processor.stub.exchange import application
from gateway.processor.stub.faults import Faults
from gateway.processor.stub.later import Later
from gateway.processor.stub.wire import PACE, Pace, Wire


@dataclass(frozen=True)
class StubConfig:
    """Where to listen (IPv4; port 0 is any), with which PEM files, for which key, and where to remember."""

    host: str
    control_port: int
    wire_port: int
    cert: Path
    key: Path
    processor_key: str = field(repr=False)
    memory: Path

    def __post_init__(self) -> None:
        if not self.processor_key:
            raise ValueError("processor_key is empty: anyone could ask")


class ProcessorStub:
    """The double, from `start` to `stop`. Tests turn `pace` and `clock` (seconds since 1970)."""

    def __init__(self, config: StubConfig, *, pace: Pace = PACE, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._pace = pace
        self._clock = clock
        self._opened = AsyncExitStack()

    async def start(self) -> None:
        """Open memory and listeners, all or none.

        Raises:
            OSError: a port is taken, or certificate or key cannot be read.
            sqlite3.OperationalError: the memory cannot be opened, or another process holds it.
        """
        config = self._config
        tls = _tls(config)
        async with AsyncExitStack() as opened:
            book = Book(config.memory, self._clock)
            opened.callback(book.close)
            faults = Faults()
            self._later = Later()
            opened.callback(self._later.close)
            wire = Wire(Acquirer(book, faults, self._clock), faults, self._later, self._pace)
            self._wire = Door(application(config.processor_key, wire.routes()), faults)
            control = Control(book, faults, self._wire.close_idle)
            # Faults never strike the control: its door has a schedule of its own, for ever empty.
            self._control = Door(application(config.processor_key, control.routes()), Faults())
            for door, port in ((self._wire, config.wire_port), (self._control, config.control_port)):
                await door.open((config.host, port), tls)
                opened.push_async_callback(door.close)
            self._opened = opened.pop_all()

    async def stop(self) -> None:
        """Close the listeners, forget what was to arrive later, then close the memory."""
        await self._opened.aclose()

    def hurry(self) -> int:
        """Let everything that is under way arrive now, for tests that do not wait; gives how much it was."""
        return self._later.hurry()

    @property
    def control_port(self) -> int:
        """The port that `control` listens on."""
        return self._control.port

    @property
    def wire_port(self) -> int:
        """The port that `wire` listens on."""
        return self._wire.port


async def run(config: StubConfig) -> None:
    """Serve until cancelled. Raises what `ProcessorStub.start` raises."""
    stub = ProcessorStub(config)
    await stub.start()
    try:
        await asyncio.Event().wait()
    finally:
        await stub.stop()


def _tls(config: StubConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(config.cert, config.key)
    return context
