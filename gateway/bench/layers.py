"""What each safety layer costs: `POST /v1/tokens` with it and without it, in turn, on one database.

audit rows, key commitment   the api once more, a process that has cut the layer out of itself (`without`)
row-level security           the api as it is, while its tables are not guarded
wiped memory                 the api once more, whose allocator overwrites what is freed, which the product leaves
                             as it is: here the layer is what is added
nothing                      the api once more, as it is: so much do two alike differ
"""

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from gateway.bench import demand
from gateway.bench.course import IN_FLIGHT, Course, Window
from gateway.bench.system import BIN, Child, System, free_port, start

PRODUCT = "tokens"
"""The window of the product as it is."""


class Layer(NamedTuple):
    """A layer, and the windows with it and without it; one of them is the product's."""

    name: str
    with_it: str
    without: str

    @property
    def variant(self) -> str:
        """The window that is not the product's."""
        return self.without if self.with_it == PRODUCT else self.with_it


AUDIT = Layer("audit rows", PRODUCT, "no audit rows")
GUARD = Layer("row-level security", PRODUCT, "no row-level security")
COMMITMENT = Layer("key commitment", PRODUCT, "no key commitment")
WIPING = Layer("wiped memory (not in the product)", "wiped memory", PRODUCT)
NOTHING = Layer("nothing: the same api once more", PRODUCT, "twin")
LAYERS = (AUDIT, GUARD, COMMITMENT, WIPING, NOTHING)
WINDOWS = (PRODUCT, *(layer.variant for layer in LAYERS))

WIPE = {"PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""glibc writes over what is freed (mallopt(3), M_PERTURB), which reaches all only without CPython's own arenas and
without glibc's cache of each thread."""


async def enter_layers(course: Course, stack: AsyncExitStack) -> None:
    """Every variant takes part in a course that was prepared for `WINDOWS`; one that cannot be had is missing."""
    api, without = [str(BIN / "gateway"), "api"], [sys.executable, "-m", "gateway.bench.without"]
    processes: Mapping[Layer, tuple[list[str], Mapping[str, str]]] = {
        AUDIT: ([*without, "audit-rows"], {}),
        COMMITMENT: ([*without, "key-commitment"], {}),
        WIPING: (api, WIPE),
        NOTHING: (api, {}),
    }
    for layer, (command, environment) in processes.items():
        name = layer.variant
        await course.attempt([name], partial(_begin, course, stack, name, command, environment))
    course.contestants[GUARD.variant] = partial(_unguarded, course, GUARD.variant)


@asynccontextmanager
async def unguarded(system: System) -> AsyncIterator[None]:
    """No row-level security on any table meanwhile. Each is changed by itself: what waits for one holds no other."""
    owner = await system.connect()
    try:
        tables = [row["name"] for row in await owner.fetch(system.sql.guarded)]
        try:
            for table in tables:
                await owner.execute(system.sql.unguard % table)
            yield
        finally:
            for table in tables:
                await owner.execute(system.sql.guard % table)
    finally:
        await owner.close()


async def _begin(
    course: Course, stack: AsyncExitStack, name: str, command: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Start another api process on the same database, with ports of its own."""
    port = free_port()
    child = Child(name.replace(" ", "-"), command, course.system.folder)
    ports = {"GATEWAY_API_PORT": f"{port}", "GATEWAY_METRICS_PORT": f"{free_port()}"}
    await start(stack, child, port, **ports, **environment)
    course.contestants[name] = partial(_window, course, name, port, child)


async def _unguarded(course: Course, name: str) -> Window:
    async with unguarded(course.system):
        return await _window(course, name, course.system.port, course.system.api)


async def _window(course: Course, name: str, port: int, child: Child) -> Window:
    target = course.system.target(port, server=child.process.pid)
    return await course.loaded(name, target, demand.tokens(course.system.api_key), IN_FLIGHT)
