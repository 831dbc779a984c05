"""Pages, workers and erasures at once on one database: nobody waits in a ring, and in the end all books agree.

The far side keeps its own truth and loses answers; the seed is printed first.
"""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.errors import GatewayError
from gateway.rules.compare import Ours, Theirs, compare
from gateway.rules.lifecycle import Kind, Progress
from gateway.rules.recovery import Offers
from gateway.services.ports import (
    Absent,
    Answer,
    Approved,
    Cancellation,
    Declined,
    Inquiry,
    Movement,
    NotFound,
    Outcome,
    Payment,
    Unknown,
)
from gateway.store.database import Database
from tests.gateway.store.city import Page, given
from tests.gateway.store.far import FarSide
from tests.gateway.store.quarter import Quarter

pytestmark = pytest.mark.server

SEED = 20_261_122
REPLICAS = 3
PAYERS = 12
TURNS = 12
CARD = 75_001
DEDUPES = NotFound(Offers(dedupe_window_s=86_400.0, cancel=True))


class Truthful(FarSide):
    """A processor that decides a reference once and remembers it; while it is `unwell` it loses what it can."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.unwell = True
        self.truth: dict[str, Outcome] = {}
        self.amounts: dict[str, int] = {}

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        self.sent.append(movement)
        lost = self.unwell and self.dice.random() < 0.3
        await asyncio.sleep(self.dice.random() / 100)
        if lost and self.dice.random() < 0.5:
            return Unknown("connection")
        told = self.truth.setdefault(movement.reference, self._decided())
        self.amounts[movement.reference] = movement.amount_minor
        return Unknown("timeout") if lost else told

    async def inquire(self, movement: Movement) -> Inquiry:
        told = self.truth.get(movement.reference)
        assert isinstance(told, Approved | Declined | Absent | None)
        return told or DEDUPES

    async def cancel(self, movement: Movement) -> Cancellation:
        told = self.truth.setdefault(movement.reference, Absent())
        assert isinstance(told, Approved | Declined | Absent)
        return told

    def _decided(self) -> Outcome:
        return Declined("pass", "soft", "05") if self.dice.random() < 0.15 else Approved("pass")

    def listed(self) -> list[Theirs]:
        """What it has carried out, by its own book."""
        done = {reference for reference, told in self.truth.items() if isinstance(told, Approved)}
        return [Theirs(reference, self.amounts[reference], 1) for reference in done]


class Payer:
    """A resident's page: pays, and then whatever comes to mind, over and over, with double clicks."""

    def __init__(self, pages: list[Page], dice: random.Random, number: int, tokens: list[str]) -> None:
        self.pages, self.dice, self.number, self.tokens = pages, dice, number, tokens
        self.asked: dict[tuple[str, str], Any] = {}
        self.answers: dict[tuple[str, str], Answer] = {}
        self.charges: list[str] = []
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        for turn in range(TURNS):
            key = f"{self.number}-{turn}"
            capture, token = self.dice.random() < 0.5, self.dice.choice(self.tokens)
            card = given(CARD + self.number) if self.dice.random() < 0.2 else None
            paid = {"token": None if card else token, "card": card, "capture": capture}
            answer = await self.twice("charge", key, lambda page, k=key, a=paid: page.ask(k, **a))
            if answer is not None:
                shown = msgspec.json.decode(answer.body)
                self.charges.append(shown.get("charge", shown)["id"])
            for move in range(2):
                if not self.charges:
                    break
                kind = self.dice.choice([Kind.CAPTURE, Kind.VOID, Kind.REFUND, Kind.REFUND])
                asked = kind, self.dice.choice(self.charges), f"{key}-{move}", self.amount(kind)
                await self.twice(kind, f"{key}-{move}", lambda page, a=asked: page.move(*a))
            if self.dice.random() < 0.1:
                await self.one(self.dice.choice(self.pages).erase(token))

    def amount(self, kind: Kind) -> int | None:
        """All, or a part."""
        return self.dice.randint(1, 3_000) if kind is not Kind.VOID and self.dice.random() < 0.7 else None

    async def twice(self, route: str, key: str, ask: Any) -> Answer | None:
        """The same request on two replicas at once."""
        self.asked[route, key] = ask
        one, other = self.dice.sample(self.pages, 2)
        answers = [each for each in await asyncio.gather(self.one(ask(one)), self.one(ask(other))) if each]
        for answer in answers:
            first = self.answers.setdefault((route, key), answer)
            assert first == answer or 202 in {first.status, answer.status}
            if answer.status != 202:
                self.answers[route, key] = answer
        return answers[0] if answers else None

    async def one(self, asked: Any) -> Answer | None:
        """One request; a refusal is counted."""
        try:
            answer: Answer | None = await asked
        except GatewayError as error:
            self.refused[type(error).__name__] += 1
            return None
        return answer


@pytest.fixture
async def pages(quarter: Quarter) -> AsyncIterator[list[Page]]:
    """Api processes with pools of their own, before one processor."""
    far = Truthful(random.Random(SEED))  # noqa: S311 - a schedule that its seed repeats
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(REPLICAS):
            database = await Database.open(quarter.postgres.arguments() | {"database": quarter.database}, 10)
            stack.push_async_callback(database.close)
            opened.append(quarter.page(far, api=database))
        yield opened


async def hurry(quarter: Quarter, pages: list[Page]) -> None:
    """Workers and resenders, turn after turn; the time that they would wait passes at once."""
    workers = [quarter.recovery(pages[0].far) for _ in range(2)]
    while True:
        await quarter.owner.execute(
            "UPDATE gateway.movements SET lease_until = now()"
            " WHERE department_id = $1 AND progress <> 'sending' AND lease_until < now() + interval '10 s'",
            quarter.department,
        )
        await asyncio.gather(*(each.turn() for each in workers), *(page.resender.turn() for page in pages))
        await asyncio.sleep(0.01)


async def test_everything_at_once(quarter: Quarter, pages: list[Page]) -> None:
    """After a storm and its end: nothing is open, we and the processor agree, and every answer is the first one."""
    print(f"seed {SEED}")
    far = pages[0].far
    assert isinstance(far, Truthful)
    tokens = [(await pages[0].token(CARD + number % 3))["id"] for number in range(8)]
    dice = random.Random(SEED + 1)  # noqa: S311 - the same
    payers = [Payer(pages, dice, number, tokens) for number in range(PAYERS)]
    gc.collect()  # the loop tells us of nothing that other tests have left behind
    with capture_logs() as logs:
        hurrying = asyncio.create_task(hurry(quarter, pages))
        await asyncio.gather(*(payer.run() for payer in payers))
        hurrying.cancel()
        await asyncio.wait([hurrying])
        far.unwell = False
        for _ in range(10):
            await quarter.expire()
            await quarter.recovery(far).turn()
            await pages[0].resender.turn()
    trouble = [entry for entry in logs if entry["log_level"] in {"warning", "error"}]
    print(trouble, sum((payer.refused for payer in payers), Counter()))
    assert not trouble
    await require_agreement(quarter, far)
    await require_same_answers(payers)


async def require_agreement(quarter: Quarter, far: Truthful) -> None:
    """Movements, charges, journal and the processor's own list say the same."""
    movements = (await quarter.movements()).values()
    assert not [row for row in movements if row["progress"] in {"sending", "unknown", "in_review"}]
    ours = [Ours(row["reference"], row["amount_minor"], Progress(row["progress"])) for row in movements]
    assert compare(ours, far.listed()) == []
    assert len([row for row in movements if row["sends"] > 1]) > 5
    posted = await quarter.owner.fetch("SELECT * FROM gateway.journal WHERE department_id = $1", quarter.department)
    due: Counter[str] = Counter()
    for row in posted:
        due[row["movement_id"]] += row["amount_minor"] if row["debit"] == "processor_due" else -row["amount_minor"]
    for charge_id, charge in (await quarter.rows("charges")).items():
        own = [row for row in movements if row["charge_id"] == charge_id and row["progress"] == "done"]
        captured = sum(row["amount_minor"] for row in own if row["kind"] in {"sale", "capture"})
        refunded = sum(row["amount_minor"] for row in own if row["kind"] == "refund")
        assert (charge["captured_minor"], charge["refunded_minor"]) == (captured, refunded)
        assert charge["refunding_minor"] == 0
        assert refunded <= captured <= charge["amount_minor"]
        assert sum(due[row["movement_id"]] for row in own) == captured - refunded


async def require_same_answers(payers: list[Payer]) -> None:
    """Whoever repeats any request is given its final answer: that of then, byte for byte, if there was one."""
    statuses: Counter[int] = Counter()
    for payer in payers:
        for where, told in payer.answers.items():
            again = await payer.asked[where](payer.pages[0])
            assert again.status in {200, 201, 402, 502}
            assert again == told or told.status == 202
            statuses[told.status] += 1
    assert min(statuses[status] for status in (200, 201, 202, 402)) > 0
