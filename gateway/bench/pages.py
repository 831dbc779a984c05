"""The generator of load once more, as a payment page in Python is: aiohttp's own client sends the requests.

It costs more CPU than a bare handler that it measures, and shares its cores, so its ratios are nearer to 1 than those
of `load`, which costs next to nothing. Both can be asked for, to compare with figures that were found in either way.
Open loops and streams are sent as `load` sends them.
"""

import asyncio
import time
from collections import Counter

import aiohttp

from gateway.bench import load
from gateway.bench.load import HEAD_END, Job, Told, tls_of, watched_cpu_s

SET_BY_THE_CLIENT = {"host", "content-length"}


def run(job: Job) -> Told:
    """As `load.run` does."""
    if job.stream or job.due_s:
        return load.run(job)
    try:
        return asyncio.run(_closed(job))
    except (OSError, aiohttp.ClientError) as error:
        return Told(failed=type(error).__name__)


async def _closed(job: Job) -> Told:
    """A closed loop: each connection is made by a request that counts nowhere, then the time runs."""
    url, supply = f"https://127.0.0.1:{job.target.port}", map(_read, job.requests)
    answers: Counter[int] = Counter()
    latency_s: list[float] = []
    sample = b""

    async def send(session: aiohttp.ClientSession, path: str, headers: dict[str, str], body: bytes) -> int:
        nonlocal sample
        async with session.post(url + path, headers=headers, data=body) as answer:
            sample = await answer.read()
            return answer.status

    async def page(session: aiohttp.ClientSession, until: float) -> None:
        for request in supply:  # which all pages share
            begun = time.perf_counter()
            if begun >= until:
                break
            answers[await send(session, *request)] += 1
            latency_s.append(time.perf_counter() - begun)

    connections = range(job.connections)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, ssl=tls_of(job.target))) as session:
        await asyncio.gather(*(send(session, *next(supply)) for _ in connections))
        watched, own, begun = watched_cpu_s(job.target), time.process_time(), time.perf_counter()
        await asyncio.gather(*(page(session, begun + job.seconds) for _ in connections))
        seconds, own = time.perf_counter() - begun, time.process_time() - own
        used = {name: after - watched[name] for name, after in watched_cpu_s(job.target).items()}
    return Told(seconds, answers.total(), dict(answers), latency_s, used, own, sample)


def _read(request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Path, headers and body of a rendered request."""
    head, _, body = request.partition(HEAD_END)
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return first.split(" ")[1], {name: headers[name] for name in headers.keys() - SET_BY_THE_CLIENT}, body


if __name__ == "__main__":
    load.serve(run)
