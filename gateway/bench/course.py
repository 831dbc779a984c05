"""Rounds of windows: each contestant in turn, a few seconds each, again and again, so that all meet the same weather.

A window is one contestant at work. Ratios are made within a round, of windows that lie seconds apart.
"""

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import asyncpg
import msgspec

from gateway.bench import demand
from gateway.bench.load import Job, Target, Told
from gateway.bench.openbao import OpenBao
from gateway.bench.rewrap import Wraps
from gateway.bench.rows import Pattern
from gateway.bench.system import DEPARTMENT, BenchFailed, Generator, System, free_port, start
from gateway.clock import SystemClock

IN_FLIGHT = 64
CREATED = 201
FIRST_IN_FLIGHT, FIRST_TOKENS = 8, 16
"""Before anything counts; a token shows what its rows look like."""
POOL_OF_TOKENS = 1_000
"""So many tokens are charged, in no order: two charges of one token seldom meet."""
RATE_GUESS = 4_000.0
"""Requests per second that are rendered for a first window; later ones know better."""
SPARE = 1.5
YARDSTICKS = "yardsticks"


class Plan(msgspec.Struct, frozen=True):
    """What was asked for. `tokens` fill the table before the first round."""

    windows: Sequence[str]
    rounds: int
    seconds: float
    tokens: int = 0
    bulk_lines: int = 20_000
    wraps: int = 50_000
    workers: int = 1


class Window(msgspec.Struct, frozen=True):
    """What one contestant did in one round; `rate` is per second, CPU in milliseconds per thousand."""

    name: str
    rate: float
    sent: int = 0
    cpu_ms: Mapping[str, float] = {}
    generator_share: float = 0.0
    """Of one core."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0


@dataclass
class Results:
    """Rounds as they came, windows by name; why some names are missing; bytes by table for each token stored."""

    rounds: list[dict[str, Window]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    tokens_stored: int = 0
    grown_bytes: dict[str, int] = field(default_factory=dict)
    latency_s: list[float] = field(default_factory=list)
    latency_rate: float = 0.0

    def rates(self, name: str) -> list[float]:
        """One a round."""
        return [windows[name].rate for windows in self.rounds if name in windows]


Run = Callable[[], Awaitable[Window]]
Moved = Callable[[int], Awaitable[None]]


class Course:
    """The contestants on one system, and what they have done so far."""

    def __init__(self, system: System, generator: Generator, plan: Plan) -> None:
        self.results = Results()
        self.system = system
        self.generator = generator
        self._plan = plan
        self.contestants: dict[str, Run] = {}
        self._rates: dict[str, float] = {}
        self._owner: asyncpg.Connection
        self._pattern: Pattern
        self._bulk_commits = 1

    async def prepare(self, stack: AsyncExitStack, moved: Moved) -> None:
        """Tokens to charge and to copy, the table filled, every contestant started."""
        system, plan = self.system, self._plan
        self._owner = await system.connect()
        stack.push_async_callback(self._owner.close)
        render = demand.tokens(system.api_key)
        target = system.target(system.port, server=system.api.process.pid)
        made = POOL_OF_TOKENS if "charges" in plan.windows else FIRST_TOKENS
        first = await self.generator.run(Job(target, demand.many(render, made), FIRST_IN_FLIGHT, 60))
        require_status(first, CREATED)
        answer = first.sample.decode()
        token_ids = [row["token_id"] for row in await self._owner.fetch(system.sql.tokens, POOL_OF_TOKENS)]
        self._pattern = await Pattern.of(self._owner, msgspec.json.decode(answer)["id"])
        await self._pattern.fill(plan.tokens, moved)
        await system.settle()
        charge = demand.charges(system.api_key, token_ids)
        self.contestants = {
            "tokens": lambda: self._stored("tokens", IN_FLIGHT),
            "tokens-1": lambda: self._stored("tokens-1", 1),
            "charges": lambda: self.loaded("charges", target, charge, IN_FLIGHT),
            "bulk": self._bulk,
            "copy": self._copy,
        }
        for name, begin in (
            ("bare", lambda: self._begin_bare(stack, answer)),
            ("commit", lambda: self._begin_commit(stack, answer)),
            ("openbao", lambda: self._begin_openbao(stack)),
            ("rewrap", lambda: self._begin_rewrap(stack)),
        ):
            if any(window in plan.windows for window in FAMILIES[name]):
                await self.attempt(FAMILIES[name], begin)

    async def run(self, moved: Moved) -> Results:
        """A round to warm up, which counts nowhere, then the rounds, then the latency if it was asked for.

        Every second round goes backwards, so that nobody always comes late, or after the same one.
        """
        in_turn = [name for name in self._plan.windows if name != LATENCY]
        for number in range(self._plan.rounds + 1):
            windows: dict[str, Window] = {}
            for name in in_turn if number % 2 else reversed(in_turn):
                windows |= await self.once(name)
                await moved(1)
            if number:
                self.results.rounds.append(windows)
            else:
                self.results.tokens_stored, self.results.grown_bytes = 0, {}
                await self.system.settle()
        if LATENCY in self._plan.windows and "tokens" not in self.results.missing:
            for _ in range(self._plan.rounds):
                await self.attempt([LATENCY], self._open_loop)
                await moved(1)
        return self.results

    @property
    def half_of_peak(self) -> float:
        """Half of what the gateway gave in a closed loop, requests per second; the median of the rounds."""
        return statistics.median(self.results.rates("tokens")) / 2

    # -- how a window goes

    async def once(self, name: str) -> dict[str, Window]:
        """One window of a contestant; nothing, when it is none or has failed before."""
        if name not in self.contestants or name in self.results.missing:
            return {}
        try:
            return {name: await self.contestants[name]()}
        except (BenchFailed, OSError, asyncpg.PostgresError) as error:
            self.results.missing[name] = str(error) if isinstance(error, BenchFailed) else type(error).__name__
            return {}

    async def attempt(self, names: Sequence[str], act: Callable[[], Awaitable[None]]) -> None:
        """Do it; whoever cannot be had is missing, and the rest goes on."""
        try:
            await act()
        except BenchFailed as error:
            self.results.missing |= dict.fromkeys(names, str(error))

    async def loaded(
        self, name: str, target: Target, render: demand.Render, in_flight: int, status: int = CREATED
    ) -> Window:
        """A window of requests on so many connections; raises `BenchFailed` when one is not answered so."""
        rendered = round(self._rates.get(name, RATE_GUESS) * self._plan.seconds * SPARE) + 10 * in_flight
        requests = await asyncio.to_thread(demand.many, render, rendered)
        told = await self.generator.run(Job(target, requests, in_flight, self._plan.seconds))
        require_status(told, status)
        window = _window_of(name, told)
        self._rates[name] = max(window.rate, self._rates.get(name, 0.0))
        return window

    async def _stored(self, name: str, in_flight: int) -> Window:
        """A window of tokens, with what the tables grew by."""
        system, before = self.system, await self._sizes()
        target = system.target(system.port, server=system.api.process.pid)
        window = await self.loaded(name, target, demand.tokens(system.api_key), in_flight)
        for table, size in (await self._sizes()).items():
            grown = self.results.grown_bytes
            grown[table] = grown.get(table, 0) + size - before.get(table, 0)
        self.results.tokens_stored += window.sent
        return window

    async def _open_loop(self) -> None:
        system, rate = self.system, self.half_of_peak
        due_s = demand.arrivals_s(rate, self._plan.seconds)
        render = demand.tokens(system.api_key)
        target = system.target(system.port)
        told = await self.generator.run(
            Job(target, demand.many(render, len(due_s)), IN_FLIGHT, self._plan.seconds, due_s)
        )
        require_status(told, CREATED)
        self.results.latency_rate = rate
        self.results.latency_s += told.latency_s

    async def _bulk(self) -> Window:
        system, lines = self.system, self._plan.bulk_lines
        request = await asyncio.to_thread(demand.bulk, system.api_key, lines)
        begun = SystemClock().now()
        target = system.target(system.port, server=system.api.process.pid)
        told = await self.generator.run(Job(target, [request], 1, self._plan.seconds, stream=True))
        require_status(told, 200)
        made = told.sample.count(b'"object":"token"')
        if made != lines:
            raise BenchFailed(f"{made:,} tokens of {lines:,} lines")
        self._bulk_commits = await self._owner.fetchval(system.sql.commits, DEPARTMENT, begun)
        told.answers, told.sent = {CREATED: lines}, lines
        return _window_of("bulk", told)

    async def _copy(self) -> Window:
        """The same rows into the same tables, in as many commits as the stream took."""
        lines = self._plan.bulk_lines
        rows = await asyncio.to_thread(self._pattern.make, lines)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self._pattern.copy(rows, -(-lines // self._bulk_commits))
        return Window("copy", lines / (loop.time() - started))

    async def _sizes(self) -> dict[str, int]:
        rows = await self._owner.fetch(self.system.sql.sizes)
        sizes = {row["name"]: row["rows_bytes"] for row in rows}
        return sizes | {f"{row['name']}, indexes": row["index_bytes"] for row in rows}

    # -- who takes part

    async def _begin_bare(self, stack: AsyncExitStack, answer: str) -> None:
        await self._begin_yardstick(stack, "bare", answer)

    async def _begin_commit(self, stack: AsyncExitStack, answer: str) -> None:
        system = self.system
        await system.new_database(YARDSTICKS)
        owner = await system.connect("owner", YARDSTICKS)
        try:
            await owner.execute(system.sql.create_rows)
        finally:
            await owner.close()
        await self._begin_yardstick(stack, "commit", answer, YARDSTICKS)

    async def _begin_yardstick(self, stack: AsyncExitStack, name: str, answer: str, database: str = "") -> None:
        system, port = self.system, free_port()
        child = system.child(name, "yardsticks", system.yardstick(port, answer, database))
        await start(stack, child, port)
        target, render = system.target(port, server=child.process.pid), demand.tokens(system.api_key)
        self.contestants[name] = lambda: self.loaded(name, target, render, IN_FLIGHT)
        self.contestants[f"{name}-1"] = lambda: self.loaded(f"{name}-1", target, render, 1)

    async def _begin_openbao(self, stack: AsyncExitStack) -> None:
        bao = OpenBao()
        await bao.serve(stack, self.system)
        target = self.system.target(bao.port, server=bao.child.process.pid)
        render = demand.transit(bao.token)
        self.contestants["openbao"] = lambda: self.loaded("openbao", target, render, IN_FLIGHT, 200)

    async def _begin_rewrap(self, stack: AsyncExitStack) -> None:
        wraps = await Wraps.of(self.system, self._plan.wraps)
        stack.push_async_callback(wraps.close)
        for name, run in (("rewrap", wraps.rewrap), ("loop", wraps.loop)):
            self.contestants[name] = _rated(name, run)


LATENCY = "latency"
FAMILIES: Mapping[str, Sequence[str]] = {
    "bare": ("bare", "bare-1"),
    "commit": ("commit", "commit-1"),
    "openbao": ("openbao",),
    "rewrap": ("rewrap", "loop"),
}
"""Windows that one process, or one table, serves."""


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed (nearest rank); 0 of none."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)] if values else 0.0


def _rated(name: str, run: Callable[[], Awaitable[float]]) -> Run:
    async def window() -> Window:
        return Window(name, await run())

    return window


def _window_of(name: str, told: Told) -> Window:
    answers = sum(told.answers.values())
    p50, p99, p999 = (1e3 * percentile(told.latency_s, share) for share in (0.5, 0.99, 0.999))
    cpu_ms = {group: 1e6 * used / told.sent for group, used in told.cpu_s.items()}
    return Window(name, answers / told.seconds, told.sent, cpu_ms, told.own_cpu_s / told.seconds, p50, p99, p999)


def require_status(told: Told, status: int) -> None:
    """Raises `BenchFailed` unless all was answered so: a refusal is quick, and would flatter."""
    others = {code: count for code, count in told.answers.items() if code != status}
    if others or not told.answers:
        raise BenchFailed(f"answers were not all {status}, but {others or 'none'}")
