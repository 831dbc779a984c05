"""How long a refusal takes says nothing: of ids, of keys, of who is on the staff.

Two kinds of request go out in pairs, interleaved and in random order within each pair, over one connection. They are
told apart when the medians differ by 50 µs or more *and* a rank test (Mann-Whitney) says that this is no chance
(p < 0.01); a difference must show twice to count, because the machine is noisy. The suite measures fewer pairs than a
patient attacker would: `GATEWAY_TEST_PAIRS=20000 .venv/bin/python -m pytest tests/acceptance/test_timing.py -s`.
"""

import asyncio
import json
import math
import os
import random
import secrets
import socket
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

import asyncpg
import pytest

from gateway.rules.ids import new_id
from tests.acceptance.test_main_job import charge_body, new_key, tokenized
from tests.system import Client, System

pytestmark = pytest.mark.server

PAIRS = int(os.environ.get("GATEWAY_TEST_PAIRS", "1500"))
DIFFERENCE_S = 50e-6
CHANCE = 0.01
ROUNDS = 2
SIGN_INS = max(32, PAIRS // 50)
"""Each costs a tenth of a second of Argon2."""
TRIES_AND_LOCKED = 8
"""Six tries of a name, and two while it is locked."""
LETTERS = str.maketrans("0123456789", "ghijklmnop")
ORDER = random.Random(45)  # noqa: S311 - an order, no secret

Kinds = tuple[Callable[[], bytes], Callable[[], bytes]]
"""Two makers of whole requests."""


@dataclass(frozen=True)
class Wire:
    """One connection that is kept, read to the last byte of each answer before the next question."""

    sock: ssl.SSLSocket

    @classmethod
    def open(cls, url: str, tls: ssl.SSLContext) -> Self:
        place = urlsplit(url)
        plain = socket.create_connection((place.hostname or "", place.port or 0), timeout=30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(tls.wrap_socket(plain, server_hostname=place.hostname))

    def ask(self, request: bytes, status: int) -> float:
        """Seconds from the first byte sent to the last one received; the answer must have this status."""
        started = time.perf_counter()
        self.sock.sendall(request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        head, _, body = received.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        while len(body) < length:
            body += self._more()
        took = time.perf_counter() - started
        assert head.split(b" ")[1] == b"%d" % status, head
        return took

    def _more(self) -> bytes:
        more = self.sock.recv(65_536)
        assert more, "the connection ended"
        return more


def get(path: str, api_key: str) -> bytes:
    """A whole request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api_key}\r\n\r\n".encode()


def chance(one: list[float], other: list[float]) -> float:
    """The two-sided p of Mann and Whitney's test, by its normal approximation (ties are too rare to matter here)."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    rank_sum = sum(rank for rank, (_, side) in enumerate(ranked, 1) if side == 0)
    n, m = len(one), len(other)
    u = rank_sum - n * (n + 1) / 2
    deviation = math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(u - n * m / 2) / deviation / math.sqrt(2))


Took = tuple[list[float], list[float]]
"""Seconds of each kind."""


def measure(wire: Wire, kinds: Kinds, status: int, pairs: int, took: Took) -> None:
    """So many pairs more."""
    for _ in range(pairs):
        for side in ORDER.sample((0, 1), 2):
            took[side].append(wire.ask(kinds[side](), status))


async def require_alike(
    url: str,
    tls: ssl.SSLContext,
    status: int,
    kinds: Kinds,
    pairs: int = PAIRS,
    before: Callable[[], Awaitable[object]] | None = None,
    every: int = PAIRS,
) -> None:
    """Fails when both rounds tell the two kinds of request apart; `before` is done every so many pairs."""
    told = []
    for _ in range(ROUNDS):
        took: Took = [], []
        wire = await asyncio.to_thread(Wire.open, url, tls)
        for _ in range(0, pairs, every):
            if before is not None:
                await before()
            await asyncio.to_thread(measure, wire, kinds, status, min(every, pairs), took)
        wire.sock.close()
        difference_s, p = abs(statistics.median(took[0]) - statistics.median(took[1])), chance(*took)
        told.append(f"{difference_s * 1e6:.0f} µs, p = {p:.3f}")
        if difference_s < DIFFERENCE_S or p > CHANCE:
            print("they differ by", *told)
            return
    pytest.fail(f"they are told apart: {told}")


def test_the_rank_test_sees_what_is_there() -> None:
    """A shift of a third of a deviation is no chance; none is."""
    source = random.Random(1)  # noqa: S311 - numbers, no secret
    here = [source.gauss(0, 1) for _ in range(1_000)]
    assert chance(here, [source.gauss(0.33, 1) for _ in range(1_000)]) < CHANCE
    assert chance(here, [source.gauss(0, 1) for _ in range(1_000)]) > CHANCE


@pytest.mark.parametrize("kind", ["tokens", "charges"])
async def test_foreign_and_unknown_ids_take_the_same_time(
    system: System, parks: Client, utilities: Client, kind: str
) -> None:
    """Whether another department has an id is not to be learnt from the clock."""
    token = await tokenized(utilities)
    made = {"tokens": token}
    if kind == "charges":
        charged = await utilities.call("POST", "/v1/charges", charge_body(token=token), key=new_key())
        made["charges"] = charged.json["id"]
    key = system.demo["apps"]["parks"]["api_key"]
    prefix = made[kind].partition("_")[0]

    def path(named: str, _other: str) -> bytes:
        return get(f"/v1/{kind}/{named}", key)  # both kinds cost us the same to make

    await require_alike(
        system.demo["api"],
        system.tls,
        404,
        (lambda: path(made[kind], new_id(prefix)), lambda: path(new_id(prefix), made[kind])),
    )


async def test_known_and_unknown_keys_take_the_same_time(system: System) -> None:
    """A key whose first half somebody has is refused as slowly as one that nobody has."""
    own = system.demo["apps"]["parks"]["api_key"]
    _, known, secret = own.split("_", 2)
    wrong = secret[::-1]

    def ask(key_id: str, _other: str) -> bytes:
        return get("/v1/charges", f"gwk_{key_id}_{wrong}")

    await require_alike(
        system.demo["api"],
        system.tls,
        401,
        (
            lambda: ask(known, new_id("")[1:]),
            lambda: ask(new_id("")[1:], known),
        ),
    )


async def test_known_and_unknown_staff_take_the_same_time(system: System, sql: asyncpg.Connection) -> None:
    """Whether somebody is on the staff is not to be learnt at the sign-in, from the first try to the lock."""
    known = system.demo["staff"]["auditor"]["username"]
    unknown = ["x.nobody"]

    def sign_in(username: str) -> bytes:
        body = json.dumps({"username": username, "password": "not the password 1", "totp": "000000"}).encode()
        head = f"POST /admin/v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        return head.encode() + b"Content-Type: application/json\r\n\r\n" + body

    async def forget() -> None:
        await sql.execute("DELETE FROM gateway.sign_in_tries")
        unknown[0] = "x" + secrets.token_hex(4).translate(LETTERS)

    await require_alike(
        system.demo["admin"],
        system.tls,
        401,
        (lambda: sign_in(known), lambda: sign_in(unknown[0])),
        SIGN_INS,
        forget,
        TRIES_AND_LOCKED,
    )
    await forget()
