"""What the processor double does later: requests that arrive late, or a second time, with nobody left to answer.

They wait in memory only. Neither a healed plan nor a client that left calls them back; the end of the process does.
"""

import asyncio
from collections.abc import Callable

from gateway.processor.stub.exchange import RefusedError, log_place


class Later:
    """Deliveries that are under way."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.TimerHandle, Callable[[], None]] = {}

    def close(self) -> None:
        """Forget what has not arrived."""
        for timer in self._waiting:
            timer.cancel()
        self._waiting.clear()

    def deliver(self, delay_s: float, act: Callable[[], object]) -> None:
        """Do this after so many seconds. What it answers, or refuses, is told to nobody."""

        def arrive() -> None:
            del self._waiting[timer]
            try:
                act()
            except RefusedError:
                pass
            except Exception as error:  # noqa: BLE001 - our own fault, whatever it is, is one line of log
                log_place(error)

        timer = asyncio.get_running_loop().call_later(delay_s, arrive)
        self._waiting[timer] = arrive

    def hurry(self) -> int:
        """Let everything arrive at once, in the order in which it was sent; gives how much it was."""
        waiting = list(self._waiting.items())
        for timer, arrive in waiting:
            timer.cancel()
            arrive()
        return len(waiting)
