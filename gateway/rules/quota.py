"""How many requests an application may send: a token bucket each, as deep as one second's worth.

Per process; with several of them an application may send as many times its quota.
"""

from gateway.errors import TooManyRequests
from gateway.rules.access import Application


class Quota:
    """The buckets of one process, by department and application."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, caller: Application, now_s: float) -> None:
        """Take one request out of the caller's bucket at a monotonic time; raises `TooManyRequests` when it is empty.

        What is refused costs nothing: who keeps to the quota from now on is served from now on.
        """
        name, depth = (caller.department, caller.application_id), caller.requests_per_s_max
        left, since_s = self._buckets.get(name, (depth, now_s))
        left = min(depth, left + (now_s - since_s) * depth)
        if left < 1:
            raise TooManyRequests
        self._buckets[name] = left - 1, now_s
