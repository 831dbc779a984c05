"""`gateway bench`: how fast this release is on this machine, beside yardsticks; ratios count, not times."""

import asyncio
import os
import signal
import tempfile
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import asyncpg
import msgspec
import typer

from gateway.bench import plot as drawing
from gateway.bench import report
from gateway.bench.course import Course, Moved, Plan
from gateway.bench.growth import compare_sizes
from gateway.bench.layers import WINDOWS, enter_layers
from gateway.bench.profile import where_it_goes
from gateway.bench.soak import SAMPLE_S, soak
from gateway.bench.system import BenchFailed, generating, running
from gateway.cli.options import AsJson
from gateway.embedded import EmbeddedError
from keys.cli.bench import tell
from keys.cli.pace import pace

SIZES_MIN = 2


class Client(StrEnum):
    """Who sends the load: our own generator, which costs next to nothing, or aiohttp's client."""

    LEAN = "lean"
    AIOHTTP = "aiohttp"

    @property
    def module(self) -> str:
        """The generator's."""
        return "load" if self is Client.LEAN else "pages"


class Subject(StrEnum):
    """What can be asked for by name: `report.windows_of` knows with which yardsticks."""

    TOKENS = "tokens"
    TOKENS_1 = "tokens-1"
    CHARGES = "charges"
    BULK = "bulk"
    REWRAP = "rewrap"
    LATENCY = "latency"


def bench(
    only: Annotated[list[Subject] | None, typer.Option(help="A subject; repeat it. Without it, all.")] = None,
    rounds: Annotated[int, typer.Option(help="So many that count, after one that does not.", min=1, max=1_000)] = 5,
    seconds: Annotated[float, typer.Option(help="How long a window is.", min=0.2, max=3_600)] = 4,
    tokens: Annotated[int, typer.Option(help="Fill the table with so many first.", min=0)] = 0,
    growth: Annotated[str | None, typer.Option(help="Instead: the rate at these sizes, `10000,1000000`.")] = None,
    soak_minutes: Annotated[
        float | None, typer.Option("--soak", help="Instead: so many minutes at half of the peak.", min=0.1)
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Instead: what each safety layer costs.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Instead: where a token's CPU time goes.")] = False,
    client: Annotated[Client, typer.Option(help="Who sends the load.")] = Client.LEAN,
    workers: Annotated[int, typer.Option(help="Workers of the gateway.", min=1, max=64)] = 1,
    bulk_lines: Annotated[int, typer.Option(help="Cards in a stream.", min=1, max=1_000_000)] = 20_000,
    wraps: Annotated[int, typer.Option(help="Data keys that a rewrap moves.", min=2, max=10_000_000)] = 50_000,
    plot: Annotated[Path | None, typer.Option(help="Draw the ratios into this SVG file, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure this release beside its yardsticks: a bare handler, one commit a request, OpenBao, COPY, a bare loop.

    It starts all of them by itself in a temporary folder, on free ports, and removes them; it never meets a gateway
    that serves. Exit 0 when all was measured, whatever came out; 1 when something could not be.

    Example: gateway bench --only tokens --rounds 5 --plot ratios.svg
    """
    asked = {
        "--growth": growth is not None,
        "--soak": soak_minutes is not None,
        "--layers": layers,
        "--profile": profile,
        "--only": bool(only),
    }
    _require_one_run([name for name, is_asked in asked.items() if is_asked], workers, plot, client)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: all ends, and the folder is removed
    plan = Plan(report.windows_of(only or Subject), rounds, seconds, tokens, bulk_lines, wraps, workers)
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL's user passes through
        try:
            if growth is not None:
                told, lines, found = asyncio.run(_growth(folder, plan, _sizes(growth)))
            elif soak_minutes is not None:
                told, lines, found = asyncio.run(_soak(folder, plan, soak_minutes * 60))
            elif layers:
                told, lines, found = asyncio.run(_layers(folder, plan))
            elif profile:
                told, lines, found = asyncio.run(_profile(folder, plan))
            else:
                told, lines, found = asyncio.run(_rounds(folder, plan, client))
        except (EmbeddedError, asyncpg.PostgresError) as error:
            raise BenchFailed(str(error) if isinstance(error, EmbeddedError) else type(error).__name__) from None
    tell(as_json, told, *lines)
    if plot is not None:
        plot.write_text(drawing.svg(found), encoding="utf-8")
    if told.get("missing"):
        raise typer.Exit(1)


Told = tuple[dict[str, Any], list[str], list[report.Ratio]]
"""For a machine, for people, for a drawing."""


async def _rounds(folder: Path, plan: Plan, client: Client) -> Told:
    steps = len(plan.windows) * (plan.rounds + 1) + plan.tokens
    with pace("Measuring", steps) as keeping:
        async with AsyncExitStack() as stack:
            course = await _course(stack, folder, plan, keeping.moved, client)
            results = await course.run(keeping.moved)
    return report.as_json(results), report.lines(results), report.ratios(results.rounds)


async def _growth(folder: Path, plan: Plan, sizes: list[int]) -> Told:
    with pace("Measuring", sum(sizes) + len(sizes) * (plan.rounds + 1)) as keeping:
        rounds = await compare_sizes(folder, plan, sizes, keeping.moved)
    found = report.ratios(rounds, report.growth_targets(sizes))
    told = {"cores": os.cpu_count(), "ratios": msgspec.to_builtins(found), "rounds": msgspec.to_builtins(rounds)}
    return told, report.round_lines(rounds, found), found


async def _soak(folder: Path, plan: Plan, seconds: float) -> Told:
    plan = msgspec.structs.replace(plan, windows=("tokens",))
    with pace("Soaking", round(seconds / SAMPLE_S)) as keeping:
        async with AsyncExitStack() as stack:
            seen = await soak(await _course(stack, folder, plan, keeping.moved), seconds, keeping.moved)
    return msgspec.to_builtins(seen), report.soak_lines(seen), []


async def _layers(folder: Path, plan: Plan) -> Told:
    plan = msgspec.structs.replace(plan, windows=WINDOWS)
    with pace("Measuring", len(WINDOWS) * (plan.rounds + 1) + plan.tokens) as keeping:
        async with AsyncExitStack() as stack:
            course = await _course(stack, folder, plan, keeping.moved)
            await enter_layers(course, stack)
            results = await course.run(keeping.moved)
    return report.costs_as_json(results), report.cost_lines(results), []


async def _profile(folder: Path, plan: Plan) -> Told:
    async with running(folder, plan.workers) as system, generating(folder) as generator:
        parts = await where_it_goes(system, generator, plan.seconds)
    return {"parts": [part._asdict() for part in parts]}, report.part_lines(parts), []


async def _course(
    stack: AsyncExitStack, folder: Path, plan: Plan, moved: Moved, client: Client = Client.LEAN
) -> Course:
    system = await stack.enter_async_context(running(folder, plan.workers))
    course = Course(system, await stack.enter_async_context(generating(folder, client.module)), plan)
    await course.prepare(stack, moved)
    return course


def _require_one_run(asked: list[str], workers: int, plot: Path | None, client: Client) -> None:
    """Refuse what cannot be asked for together; raises `typer.BadParameter`."""
    if len(asked) > 1:
        raise typer.BadParameter(f"{' and '.join(asked)} are runs of their own: ask for one of them")
    if plot is not None and {"--soak", "--layers", "--profile"} & set(asked):
        raise typer.BadParameter(f"{asked[0]} has no ratios with targets to draw", param_hint="--plot")
    if plot is not None and not plot.parent.is_dir():
        raise typer.BadParameter("its folder is not there", param_hint="--plot")
    if client is not Client.LEAN and asked and asked != ["--only"]:
        raise typer.BadParameter(f"{asked[0]} sends its load by itself", param_hint="--client")
    if workers > 1 and {"--layers", "--profile"} & set(asked):
        raise typer.BadParameter(f"{asked[0]} looks at one worker", param_hint="--workers")


def _sizes(text: str) -> list[int]:
    parts = text.replace("_", "").split(",")
    sizes = sorted({int(part) for part in parts if part.isdecimal()})
    if len(sizes) != len(parts) or len(sizes) < SIZES_MIN:
        raise typer.BadParameter("two or more different numbers of tokens, `10000,1000000`", param_hint="--growth")
    return sizes
