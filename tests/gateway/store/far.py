"""The far side as the services' tests have it: says what it is told to say, and keeps what it was asked."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.rules.recovery import Offers
from gateway.services.ports import (
    Absent,
    Approved,
    Cancellation,
    Declined,
    Inquiry,
    Movement,
    NotFound,
    Outcome,
    Payment,
)
from tests.cards import canary

DECLINED_CARD = 64_999
"""The card that it declines to verify."""


@dataclass
class FarSide:
    """Implements `ports.Processor`. What it says is a value, or is asked of a function of the movement.

    While it is `held` it takes what comes and answers nothing; `reached` says that something came.
    """

    sends: Outcome | Callable[[Movement], Outcome] = field(default_factory=lambda: Approved("unchecked"))
    verifies: Outcome | None = None
    finds: Inquiry | Callable[[Movement], Inquiry] = field(default_factory=lambda: NotFound(Offers()))
    cancels: Cancellation | Callable[[Movement], Cancellation] = field(default_factory=Absent)
    sent: list[Movement] = field(default_factory=list)
    payments: list[Payment | None] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)
    inquired: list[Movement] = field(default_factory=list)
    cancelled: list[Movement] = field(default_factory=list)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = False
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        self.sent.append(movement)
        self.payments.append(payment)
        await self._silence()
        return self.sends(movement) if callable(self.sends) else self.sends

    async def verify(self, reference: str, payment: Payment) -> Outcome:
        self.verified.append(reference)
        await self._silence()
        if payment.card.number.reveal() == canary(DECLINED_CARD):
            return Declined("fail", "data", "N7")
        return self.verifies or Approved("pass")

    async def inquire(self, movement: Movement) -> Inquiry:
        self.inquired.append(movement)
        return self.finds(movement) if callable(self.finds) else self.finds

    async def cancel(self, movement: Movement) -> Cancellation:
        self.cancelled.append(movement)
        return self.cancels(movement) if callable(self.cancels) else self.cancels

    def release(self) -> None:
        """Answer everything from now on."""
        self.held = False
        self._released.set()

    async def _silence(self) -> None:
        self.reached.set()
        if self.held:
            await self._released.wait()
