"""Payment pages that never give up: each repeats its request, under its key, until the answer is final.

What they were told is kept: every final answer, and that it was given before which other.
"""

import asyncio
import random
import secrets
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.system import Client, Reply

PATIENCE_S = 150.0
OPEN = {202, 409, 429, 500, 503}
"""Statuses after which one asks again; of 409 only that the first request still runs, or that it is unresolved."""
AGAIN = {"request-in-progress", "charge-unresolved", "unavailable", "internal-error"}


@dataclass
class Told:
    """What was answered under one key, finally: the same to everybody, for ever."""

    path: str
    key: str
    body: object
    answers: list[Reply] = field(default_factory=list)


@dataclass
class Pages:
    """Several pages of one department, each at an api process of its own choice."""

    clients: list[Client]
    told: list[Told] = field(default_factory=list)
    answered_after_final: list[str] = field(default_factory=list)

    async def page(self, number: int, seed: int, done: asyncio.Event) -> None:
        """One page after the other: a token, a charge, and what may follow."""
        drawn = random.Random(seed * 1_000 + number)  # noqa: S311 - a schedule that must be reproducible
        while not done.is_set():
            await self._visit(drawn)

    async def _visit(self, drawn: random.Random) -> None:
        amount = drawn.randrange(100, 100_000)
        body: dict[str, Any] = {"amount": amount, "currency": "USD", "reference": f"visit {drawn.randrange(10**6)}"}
        card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2031}
        if drawn.random() < 0.5:
            if drawn.random() < 0.5:
                card["cvc"] = "737"
            body |= {"name": "Ada Resident", "card": card}
        else:
            usage = drawn.choice(["single", "multi"])
            token = await self._insist(drawn, "/v1/tokens", {"name": "Ada Resident", "card": card, "usage": usage})
            body["token"] = token.json["id"]
        body["capture"] = capture = drawn.random() < 0.6
        reply = await self._insist(drawn, "/v1/charges", body)
        if reply.status != 201:
            return
        path = f"/v1/charges/{reply.json['id']}"
        if not capture:
            if drawn.random() < 0.3:
                await self._insist(drawn, f"{path}/void", {})
                return
            part = drawn.randrange(1, amount + 1)
            if (await self._insist(drawn, f"{path}/capture", {"amount": part})).status != 200:
                return
            amount = part
        if drawn.random() < 0.5:
            parts = [drawn.randrange(1, amount + 1) for _ in range(drawn.randrange(1, 4))]
            await asyncio.gather(*(self._insist(drawn, f"{path}/refunds", {"amount": part}) for part in parts))

    async def _insist(self, drawn: random.Random, path: str, body: object) -> Reply:
        """Ask until the answer is final, of another process each time; then once more, as a double click does."""
        told = Told(path, secrets.token_hex(12), body)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        while True:
            reply = await self._ask(drawn, told)
            if reply is not None and is_final(reply):
                break
            assert loop.time() < deadline, f"no final answer to {path} in {PATIENCE_S} s: {reply and reply.body!r}"
            await asyncio.sleep(drawn.uniform(0.05, 0.5))
        told.answers.append(reply)
        self.told.append(told)
        return reply

    async def repeat_all(self) -> None:
        """Every key once more: what was final must be the same, byte for byte."""
        for told in self.told:
            again = await self.clients[0].insist("POST", told.path, told.body, key=told.key)
            told.answers.append(again)

    async def _ask(self, drawn: random.Random, told: Told) -> Reply | None:
        try:
            async with asyncio.timeout(25):
                return await drawn.choice(self.clients).call("POST", told.path, told.body, key=told.key)
        except (aiohttp.ClientError, OSError):  # a time-out is an OSError
            return None


def is_final(reply: Reply) -> bool:
    """Whether nothing else will ever be answered under the key."""
    if reply.status not in OPEN:
        return True
    return reply.status == 409 and reply.problem not in AGAIN
