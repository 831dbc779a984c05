"""The rate of `POST /v1/tokens` with few tokens in the table and with many: as many systems as sizes, in turn.

Each size has a PostgreSQL of its own, so that none lives in a cache that another has filled.
"""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from gateway.bench.course import Course, Moved, Plan, Window
from gateway.bench.system import BenchFailed, generating, running


async def compare_sizes(folder: Path, plan: Plan, sizes: Sequence[int], moved: Moved) -> list[dict[str, Window]]:
    """Windows by size, a dictionary a round; raises `BenchFailed` when one of them gives no figure."""
    async with AsyncExitStack() as stack:
        generator = await stack.enter_async_context(generating(folder))
        courses = []
        for size in sizes:
            home = folder / f"{size}"
            home.mkdir()
            system = await stack.enter_async_context(running(home, plan.workers))
            course = Course(system, generator, msgspec.structs.replace(plan, tokens=size, windows=("tokens",)))
            await course.prepare(stack, moved)
            courses.append(course)
        rounds = []
        for _ in range(plan.rounds + 1):
            windows = {}
            for size, course in zip(sizes, courses, strict=True):
                told = await course.once("tokens")
                if not told:
                    raise BenchFailed(f"at {size:,} tokens: {course.results.missing['tokens']}")
                windows[f"{size}"] = told["tokens"]
                await moved(1)
            rounds.append(windows)
        return rounds[1:]
