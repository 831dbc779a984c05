"""What a run says: ratios beside their targets, rates, CPU time, latency, bytes a token."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from gateway.bench.course import LATENCY, Results, Window, percentile
from gateway.bench.layers import LAYERS, PRODUCT
from gateway.bench.profile import Part
from gateway.bench.soak import Soak


class Target(NamedTuple):
    """A ratio of two windows of one round, and what it is to be at least."""

    name: str
    ours: str
    theirs: str
    at_least: float


TARGETS = (
    Target("tokens ÷ bare handler", "tokens", "bare", 0.40),
    Target("tokens ÷ one commit a request", "tokens", "commit", 2.0),
    Target("tokens ÷ one commit a request, 1 in flight", "tokens-1", "commit-1", 0.7),
    Target("tokens ÷ OpenBao transit, which stores nothing", "tokens", "openbao", 1.0),
    Target("charges ÷ bare handler", "charges", "bare", 0.15),
    Target("bulk ÷ COPY of the same rows", "bulk", "copy", 0.5),
    Target("rewrap ÷ bare loop", "rewrap", "loop", 0.7),
)
GROWTH_AT_LEAST = 0.9
GROUPS = ("server", "postgres")
SLOPE_MIB_PER_H_MAX = 1.0


class Ratio(msgspec.Struct, frozen=True):
    """Of the rounds: median, lowest, highest."""

    name: str
    median: float
    lowest: float
    highest: float
    at_least: float
    met: bool


class Side(msgspec.Struct, frozen=True):
    """Medians of the windows with a layer, or of those without: a second, and µs of CPU a token."""

    rate: float
    server_us: float
    postgres_us: float


class Cost(msgspec.Struct, frozen=True):
    """What a layer costs. Ratios are of rates within a round, with it ÷ without it: median, lowest, highest.

    `cost_us` is what it adds to the CPU of a token, of server and PostgreSQL together, the rounds' median; `share`
    is that of all that a token takes of the product as it is.
    """

    name: str
    ratio: float
    lowest: float
    highest: float
    with_it: Side
    without: Side
    cost_us: float
    share: float


def windows_of(subjects: Iterable[str]) -> Sequence[str]:
    """The windows that these subjects take, yardsticks included, in the order of a round."""
    wanted = set(subjects)
    names = dict.fromkeys(name for target in TARGETS if target.ours in wanted for name in target[1:3])
    if LATENCY in wanted:
        names |= dict.fromkeys(("tokens", LATENCY))
    return list(names)


def ratios(rounds: Sequence[Mapping[str, Window]], targets: Sequence[Target] = TARGETS) -> list[Ratio]:
    """Those that at least one round can tell."""
    found = []
    for target in targets:
        values = [
            windows[target.ours].rate / windows[target.theirs].rate
            for windows in rounds
            if target.ours in windows and target.theirs in windows
        ]
        if values:
            median = statistics.median(values)
            met = median >= target.at_least
            found.append(Ratio(target.name, median, min(values), max(values), target.at_least, met))
    return found


def growth_targets(sizes: Sequence[int]) -> list[Target]:
    """Each size beside the smallest."""
    first = sizes[0]
    return [
        Target(f"rate at {size:,} tokens ÷ at {first:,}", f"{size}", f"{first}", GROWTH_AT_LEAST)
        for size in sizes[1:]
    ]


def costs(rounds: Sequence[Mapping[str, Window]]) -> list[Cost]:
    """Of the layers that at least one round can tell."""
    found = []
    for layer in LAYERS:
        pairs = [
            (one[layer.with_it], one[layer.without])
            for one in rounds
            if layer.with_it in one and layer.without in one
        ]
        if pairs:
            quotients = [on.rate / off.rate for on, off in pairs]
            spread = statistics.median(quotients), min(quotients), max(quotients)
            cost_us = statistics.median(_cpu_us(on) - _cpu_us(off) for on, off in pairs)
            with_it, without = (_side(windows) for windows in zip(*pairs, strict=True))
            product = with_it if layer.with_it == PRODUCT else without
            share = cost_us / max(1.0, product.server_us + product.postgres_us)
            found.append(Cost(layer.name, *spread, with_it, without, cost_us, share))
    return found


def _cpu_us(window: Window) -> float:
    """A request; milliseconds a thousand are just that."""
    return sum(window.cpu_ms.get(group, 0.0) for group in GROUPS)


def _side(windows: Sequence[Window]) -> Side:
    used = (statistics.median(one.cpu_ms.get(group, 0.0) for one in windows) for group in GROUPS)
    return Side(statistics.median(one.rate for one in windows), *used)


def as_json(results: Results) -> dict[str, Any]:
    """For a machine: all rounds, too."""
    return {
        "cores": os.cpu_count(),
        "ratios": msgspec.to_builtins(ratios(results.rounds)),
        "latency_ms": latency_ms(results),
        "bytes_per_token": bytes_per_token(results),
        "missing": results.missing,
        "rounds": msgspec.to_builtins(results.rounds),
    }


def costs_as_json(results: Results) -> dict[str, Any]:
    """The same of a run that compares layers."""
    return {
        "cores": os.cpu_count(),
        "layers": msgspec.to_builtins(costs(results.rounds)),
        "missing": results.missing,
        "rounds": msgspec.to_builtins(results.rounds),
    }


def latency_ms(results: Results) -> dict[str, float]:
    """Of the open loop, at how many requests per second; nothing where it was not asked for."""
    if not results.latency_s:
        return {}
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    told = {name: round(1e3 * percentile(results.latency_s, share), 3) for name, share in shares.items()}
    return {"rate": round(results.latency_rate, 1), "requests": len(results.latency_s)} | told


def bytes_per_token(results: Results) -> dict[str, float]:
    """What each table and its indexes grew by, a token; the largest first, what did not grow left out."""
    stored = max(1, results.tokens_stored)
    grown = sorted(results.grown_bytes.items(), key=lambda item: -item[1])
    return {name: round(size / stored, 1) for name, size in grown if size > 0}


def lines(results: Results) -> list[str]:
    """For people."""
    told = round_lines(results.rounds, ratios(results.rounds))
    if latency := latency_ms(results):
        told += ["", _latency_line(latency)]
    if sizes := bytes_per_token(results):
        told += ["", f"bytes stored per token: {sum(sizes.values()):,.0f}"]
        told += [f"  {name:<44}{size:8,.0f}" for name, size in sizes.items()]
    return told + missing_lines(results)


def round_lines(rounds: Sequence[Mapping[str, Window]], found: Sequence[Ratio]) -> list[str]:
    """Ratios, then what they were made of."""
    return [_heading(rounds), "", *ratio_lines(found), "", *rate_lines(rounds)]


def cost_lines(results: Results) -> list[str]:
    """A table of layers, each with it and without it: rates, CPU a token, and the difference."""
    head = f"{'medians of the rounds':<36}{'with ÷ without':>14}  {'spread':<11}{'per s: with, without':>22}"
    told = [
        f"{_heading(results.rounds)}; POST /v1/tokens, CPU in µs a token, with the layer and without it",
        "",
        f"{head}{'server':>14}{'PostgreSQL':>14}{'cost':>8}{'of CPU':>9}",
    ]
    for one in costs(results.rounds):
        on, off = one.with_it, one.without
        told.append(
            f"{one.name:<36}{one.ratio:14.2f}  {f'{one.lowest:.2f}-{one.highest:.2f}':<11}"
            f"{f'{on.rate:,.0f}, {off.rate:,.0f}':>22}{f'{on.server_us:.0f}, {off.server_us:.0f}':>14}"
            f"{f'{on.postgres_us:.0f}, {off.postgres_us:.0f}':>14}{one.cost_us:+8.0f}{one.share:+9.0%}"
        )
    return told + missing_lines(results)


def part_lines(parts: Sequence[Part]) -> list[str]:
    """A table of where a token's CPU time goes, the largest first."""
    told = [f"CPU time of POST /v1/tokens in the api: {sum(part.us for part in parts):.0f} µs", ""]
    return told + [f"{part.name:<36}{part.us:8.0f} µs{part.share:8.0%}" for part in parts]


def missing_lines(results: Results) -> list[str]:
    """What could not be measured, and why."""
    return [f"not measured: {name}: {why}" for name, why in results.missing.items()]


def _heading(rounds: Sequence[object]) -> str:
    return f"{os.cpu_count()} cores, {len(rounds)} round{'' if len(rounds) == 1 else 's'}"


def ratio_lines(found: Sequence[Ratio]) -> list[str]:
    """A table of ratios."""
    told = [f"{'ratio (median of the rounds)':<50}{'':>7}  {'spread':<13} target"]
    for one in found:
        spread = f"{one.lowest:.2f}-{one.highest:.2f}"
        verdict = "met" if one.met else f"missed by {one.at_least - one.median:.2f}"
        told.append(f"{one.name:<50}{one.median:7.2f}  {spread:<13} ≥ {one.at_least:.2f}  {verdict}")
    return told


def rate_lines(rounds: Sequence[Mapping[str, Window]]) -> list[str]:
    """A table of rates, with CPU seconds for a thousand: of the server, of PostgreSQL; and the generator's share."""
    head = f"{'medians':<12}{'per s':>9}  {'spread':<17}{'CPU s per 1,000: server':>24}{'PostgreSQL':>12}"
    told = [f"{head}{'generator':>12}"]
    for name in dict.fromkeys(name for windows in rounds for name in windows):
        windows = [one[name] for one in rounds if name in one]
        rates = [window.rate for window in windows]
        server, postgres = (statistics.median(one.cpu_ms.get(group, 0.0) for one in windows) for group in GROUPS)
        share = statistics.median(window.generator_share for window in windows)
        spread = f"{min(rates):,.0f}-{max(rates):,.0f}"
        cpu = f"{server / 1e3:24.3f}{postgres / 1e3:12.3f}{share:>12.0%}" if share else ""
        told.append(f"{name:<12}{statistics.median(rates):9,.0f}  {spread:<17}{cpu}".rstrip())
    return told


def soak_lines(seen: Soak) -> list[str]:
    """What was at work how long, the slope, and whether anything else grew."""
    half = len(seen.samples) // 2
    slope = seen.slope_mib_per_h
    verdict = "too short to tell" if slope is None else "met" if slope <= SLOPE_MIB_PER_H_MAX else "missed"
    shown = "none" if slope is None else f"{slope:+.2f} MiB/h"
    told = [
        f"{seen.requests:,} requests, {seen.rate:,.0f} per second",
        f"slope of resident memory after warm-up: {shown}, target ≤ {SLOPE_MIB_PER_H_MAX:.0f}: {verdict}",
        f"{'medians':<16}{'first half':>12}{'second half':>13}",
    ]
    for name in ("resident_mib", "descriptors", "tasks"):
        values = [getattr(one, name) for one in seen.samples]
        halves = [[value for value in part if value is not None] for part in (values[:half], values[half:])]
        if all(halves):
            first, second = map(statistics.median, halves)
            told.append(f"{name.replace('_', ' '):<16}{first:12,.1f}{second:13,.1f}")
    return told


def _latency_line(latency: Mapping[str, float]) -> str:
    p50, p99, p999 = (latency[name] for name in ("p50", "p99", "p99.9"))
    return (
        f"latency of tokens at {latency['rate']:,.0f}/s, half of the peak, open loop: p50 {p50:.1f} ms,"
        f" p99 {p99:.1f} ms, p99.9 {p999:.1f} ms; p99 ÷ p50 {p99 / p50:.1f}"
    )
