"""A constant load at half of the peak for a long time: what grows in the gateway meanwhile, is a leak.

The slope of resident memory is that of the least squares through the samples after the warm-up.
"""

import asyncio
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress

import aiohttp
import msgspec

from gateway.bench import demand
from gateway.bench.course import CREATED, IN_FLIGHT, Course, Moved
from gateway.bench.load import Job
from gateway.bench.machine import descriptors, resident_bytes
from gateway.bench.system import MEBIBYTE, BenchFailed, Generator, System

SAMPLE_S = 5.0
STRETCH_S = 30.0
"""So long a piece of the load is rendered at once."""
WARM_UP = 0.25
"""So much of the samples is left out of the slope: pools, caches and the allocator's arenas fill first."""
TASKS = re.compile(r"^gateway_tasks(?:\{\})? ([0-9.e+]+)$", re.MULTILINE)


class Sample(msgspec.Struct, frozen=True):
    """The gateway at one moment; None is what it does not tell."""

    at_s: float
    resident_mib: float
    descriptors: int | None
    tasks: int | None


class Soak(msgspec.Struct, frozen=True):
    """What was seen. The slope is in MiB an hour, None with too few samples."""

    rate: float
    requests: int
    samples: list[Sample]
    slope_mib_per_h: float | None


async def soak(course: Course, seconds: float, moved: Moved) -> Soak:
    """Find the peak, then load for so long; raises `BenchFailed` at the first answer that is not a token."""
    if not await course.once("tokens") or not (peak := await course.once("tokens")):
        raise BenchFailed(course.results.missing["tokens"])
    rate = peak["tokens"].rate / 2
    samples: list[Sample] = []
    sampling = asyncio.create_task(_sample(course.system, samples, moved))
    try:
        requests = await _load(course.system, course.generator, rate, seconds)
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
    return Soak(rate, requests, samples, slope_per_h(samples))


def slope_per_h(samples: Sequence[Sample]) -> float | None:
    """MiB an hour by least squares, the warm-up left out."""
    kept = samples[round(len(samples) * WARM_UP) :]
    if len(kept) < 2:  # noqa: PLR2004 - a line has two points
        return None
    fit = statistics.linear_regression([one.at_s for one in kept], [one.resident_mib for one in kept])
    return fit.slope * 3600


async def _load(system: System, generator: Generator, rate: float, seconds: float) -> int:
    target, render, sent, left_s = system.target(system.port), demand.tokens(system.api_key), 0, seconds
    while left_s > 0:
        stretch_s = min(STRETCH_S, left_s)
        due_s = demand.arrivals_s(rate, stretch_s)
        requests = await asyncio.to_thread(demand.many, render, len(due_s))
        told = await generator.run(Job(target, requests, IN_FLIGHT, stretch_s, due_s))
        if set(told.answers) - {CREATED}:
            raise BenchFailed(f"after {sent:,} requests not every answer was {CREATED}")
        sent, left_s = sent + len(due_s), left_s - stretch_s
    return sent


async def _sample(system: System, samples: list[Sample], moved: Moved) -> None:
    loop, pid = asyncio.get_running_loop(), system.api.process.pid
    begun = loop.time()
    async with aiohttp.ClientSession() as session:
        while True:
            await asyncio.sleep(SAMPLE_S)
            tasks = None
            with suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{system.metrics_port}/metrics") as answer:
                    told = TASKS.search(await answer.text())
                    tasks = round(float(told[1])) if told else None
            resident = resident_bytes([pid]) / MEBIBYTE
            samples.append(Sample(round(loop.time() - begun, 1), round(resident, 2), descriptors(pid), tasks))
            await moved(1)
