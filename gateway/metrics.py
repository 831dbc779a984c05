"""What operations watch: latency by route and outcome, unresolved charges, the pool. Loopback only, plain HTTP.

Labels are route templates, statuses and our own codes, never anything of a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest

from gateway.errors import Unavailable

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

ChargesByState = Callable[[], Awaitable[Mapping[str, int]]]


class Metrics:
    """The metrics of one process, and the listener that shows them."""

    def __init__(self, charges_by_state: ChargesByState, pool: Callable[[], tuple[int, int]]) -> None:
        self._registry = CollectorRegistry()
        self._charges_by_state = charges_by_state
        self._pool = pool
        self._latency = Histogram(
            "gateway_request_seconds",
            "Duration of requests.",
            ["route", "status"],
            buckets=BUCKETS_S,
            registry=self._registry,
        )
        self._charges = Gauge(
            "gateway_movements",
            "Movements of money whose outcome is not known yet.",
            ["state"],
            registry=self._registry,
        )
        self._connections = Gauge(
            "gateway_pool_connections", "Database connections.", ["state"], registry=self._registry
        )

        self._tasks = Gauge("gateway_tasks", "Tasks of the event loop.", registry=self._registry)

    def observe(self, route: str, status: int, duration_s: float) -> None:
        """Count one request."""
        self._latency.labels(route, str(status)).observe(duration_s)

    def application(self) -> web.Application:
        """`GET /metrics`, to be served on loopback."""
        application = web.Application()
        application.router.add_get("/metrics", self.show, allow_head=False)
        return application

    async def show(self, _request: web.Request) -> web.Response:
        """Everything as of now; what the database would have to tell is left out while it is away."""
        with suppress(Unavailable):
            for state, count in (await self._charges_by_state()).items():
                self._charges.labels(state).set(count)
        opened, idle = self._pool()
        self._connections.labels("used").set(opened - idle)
        self._connections.labels("idle").set(idle)
        self._tasks.set(len(asyncio.all_tasks()))
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
