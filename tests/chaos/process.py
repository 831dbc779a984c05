"""`python -m tests.chaos.process api|worker`: the product's process, with a schedule of deaths at its named points.

`CHAOS` in the environment is JSON: `{"seed", "kill", "stop", "hits"}`: the probability of `kill -9` and of SIGSTOP at
each point, and a file to which each of them is written before it happens.
"""

import asyncio
import json
import os
import random
import signal
import sys
from pathlib import Path

from gateway import log as logs
from gateway.config import Config
from gateway.services.points import Point
from gateway.wiring import serve_api, serve_worker
from keys.cli.bench import ask
from keys.settings import load, settings_path


class Schedule:
    """What happens at each point of one process."""

    def __init__(self, seed: int, kill: float, stop: float, hits: Path) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a schedule that must be reproducible, not a secret
        self._kill = kill
        self._stop = stop
        self._hits = hits

    async def __call__(self, point: Point) -> None:
        drawn = self._random.random()
        if drawn < self._kill:
            self._end("kill", point, signal.SIGKILL)
        elif drawn < self._kill + self._stop:
            self._end("stop", point, signal.SIGSTOP)

    def _end(self, how: str, point: Point, number: int) -> None:
        descriptor = os.open(self._hits, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{how} {point} {os.getpid()}\n".encode())
        os.close(descriptor)
        os.kill(os.getpid(), number)


def main() -> None:
    """Serve, until the schedule or a signal says otherwise."""
    name = sys.argv[1]
    settings = load(settings_path(None), Config, os.environ)
    told = json.loads(os.environ["CHAOS"])
    at = Schedule(told["seed"], told["kill"], told["stop"], Path(told["hits"]))
    log = logs.configure(name)
    asyncio.run(serve_api(settings, ask, log, at) if name == "api" else serve_worker(settings, log, at))


if __name__ == "__main__":
    main()
