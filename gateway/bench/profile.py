"""Where the CPU time of `POST /v1/tokens` goes: `gateway api` while a timer looks every millisecond what runs.

The timer counts CPU time (setitimer(2), ITIMER_PROF), and its signal is handled between two instructions of Python:
time in C counts for who called it. Each look belongs to the innermost part of `PARTS` on the stack. The looking
itself costs some percent, of every part alike.
"""

import atexit
import signal
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec

from gateway.bench import demand
from gateway.bench.course import CREATED, IN_FLIGHT, require_status
from gateway.bench.load import Job
from gateway.bench.system import BenchFailed, Child, Generator, System

TICK_S = 0.001
RATE_MAX = 8_000
"""More requests a second than are answered."""
WATCHED = "gateway.bench.profile"
PARTS = {
    "TLS": ("/asyncio/sslproto.py", "/ssl.py"),
    "log and metrics": ("/structlog/", "/gateway/log.py", "/prometheus_client/", "/gateway/metrics.py"),
    "checks of head and body": ("/gateway/web/head.py", "/gateway/web/schema.py", "/gateway/web/bodies.py"),
    "rules: card, caller, ids": ("/gateway/rules/",),
    "keys: envelope, fingerprint, MACs": ("/keys/",),
    "services": ("/gateway/services/",),
    "store and driver": ("/gateway/store/", "/asyncpg/"),
    "HTTP: aiohttp": ("/aiohttp/", "/yarl/", "/multidict/"),
    "HTTP: our server": ("/gateway/web/", "/gateway/wiring.py"),
    "event loop": ("/asyncio/", "/selectors.py"),
}
"""What a file belongs to, by a piece of its path; the first that fits."""


class Part(NamedTuple):
    """How much of a token's CPU time it takes."""

    name: str
    share: float
    us: float


async def where_it_goes(system: System, generator: Generator, seconds: float) -> list[Part]:
    """Load the api for so long, twice: the first time warms up. Raises `BenchFailed`."""
    found = system.folder / "profile.json"
    await system.api.stop()
    system.api = Child("profile", [sys.executable, "-m", WATCHED, str(found)], system.folder)
    try:
        await system.api.start(system.port)
        target = system.target(system.port, server=system.api.process.pid)
        for _ in range(2):
            requests = demand.many(demand.tokens(system.api_key), round(RATE_MAX * seconds))
            told = await generator.run(Job(target, requests, IN_FLIGHT, seconds))
            require_status(told, CREATED)
    finally:
        await system.api.stop()
    us = 1e6 * told.cpu_s["server"] / told.sent
    looks = Counter(msgspec.json.decode(found.read_bytes(), type=dict[str, int]))
    if not looks:
        raise BenchFailed("nothing was seen at work")
    return [Part(name, count / looks.total(), us * count / looks.total()) for name, count in looks.most_common()]


def watch(found: Path) -> None:
    """Look from now on, and write down what was seen when this process ends."""
    looks: Counter[str] = Counter()

    def look(_signal: int, frame: FrameType | None) -> None:
        while frame is not None:
            path = frame.f_code.co_filename
            for name, pieces in PARTS.items():
                if any(piece in path for piece in pieces):
                    looks[name] += 1
                    return
            frame = frame.f_back
        looks["else"] += 1

    def end() -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        found.write_bytes(msgspec.json.encode(looks))

    signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, TICK_S, TICK_S)
    atexit.register(end)


def main() -> None:
    """`python -m gateway.bench.profile FILE`: `gateway api`, watched."""
    (program,) = entry_points(group="console_scripts", name="gateway")
    command = program.load()
    watch(Path(sys.argv[1]))
    sys.argv[:] = ["gateway", "api"]
    command()


if __name__ == "__main__":
    main()
