"""An event loop on which no time passes while nothing happens: it jumps to the next timer instead of waiting.

What is ready at the same moment runs in an order that the seed decides, so that no promise rests on the order in
which asyncio happens to run callbacks. There are no sockets, no threads and no signals.
"""

import asyncio
import heapq
from collections import deque
from random import Random

CALLBACKS_MAX = 2_000_000
"""More than any honest run needs: a loop that spins would otherwise never end."""


class Stuck(Exception):
    """Nothing is ready and no timer is set, or callbacks beget callbacks without end."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs coroutines in virtual time; `time()` is seconds since the loop was made."""

    # Of the base class, which type stubs do not show.
    _ready: "deque[asyncio.Handle]"
    _scheduled: "list[asyncio.TimerHandle]"

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._moment_s = 0.0
        self.callbacks = 0

    def time(self) -> float:
        """Virtual seconds."""
        return self._moment_s

    def _run_once(self) -> None:
        """The base class' heartbeat without a selector: the timers that are due, then all that is ready."""
        ready, timers = self._ready, self._scheduled
        if not ready:
            self._jump()
        while timers and timers[0].when() <= self._moment_s:
            timer = heapq.heappop(timers)
            if not timer.cancelled():
                ready.append(timer)
        batch = list(ready)
        ready.clear()
        if len(batch) > 1:
            self._rng.shuffle(batch)
        self.callbacks += len(batch)
        if self.callbacks > CALLBACKS_MAX:
            raise Stuck("callbacks without end")
        for handle in batch:
            if not handle.cancelled():
                handle._run()

    def _jump(self) -> None:
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if timers:
            self._moment_s = max(self._moment_s, timers[0].when())
        elif not self._stopping:
            raise Stuck("everybody waits for somebody else")

    _stopping: bool

    def _timer_handle_cancelled(self, _handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their moment comes."""

    def _process_events(self, _events: object) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """There is no other thread that could wake this one."""
