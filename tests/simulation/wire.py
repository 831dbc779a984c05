"""Between a replica and the processor: requests that get lost, arrive late or twice, and answers that say nothing.

Implements `ports.Processor`. A request that was sent arrives on its own: whether who sent it still lives is all the
same to it. What the client would call unclear (timeout, reset, 5xx, a wrong echo) is `Unknown` here.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from gateway.processor.client import CALL_S, INQUIRE_S
from gateway.services.ports import (
    Absent,
    Approved,
    Cancellation,
    Declined,
    Inquiry,
    Movement,
    NotSent,
    Outcome,
    Payment,
    Unknown,
)
from tests.simulation.book import Order
from tests.simulation.swarm import Fault

if TYPE_CHECKING:
    from tests.simulation.replica import Replica

QUICK_S = (0.005, 0.15)
SLOW_S = (2.0, 12.0)
AGAIN_S = (0.05, 2.0)
"""How soon a processor that doubles a request does so."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that left the house. `content` is a digest of all of its bytes, `card` of the card alone."""

    at_s: float
    replica: str
    movement: Movement
    content: str
    card: str
    with_cvc: bool


def card_digest(payment: Payment | None) -> str:
    """What tells one card and name from another; empty without one."""
    if payment is None:
        return ""
    card = payment.card
    return _digest(card.number.reveal(), card.expiry, payment.name.reveal())


class Wire:
    """The processor, as one replica reaches it."""

    def __init__(self, replica: "Replica") -> None:
        self._replica = replica
        self._city = replica.city

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        """See `ports.Processor`."""
        await self._replica.gate()
        if self._city.strikes(Fault.REFUSED) or (self._city.processor_down and self._city.rng.random() < 0.5):
            await self._city.pause(*QUICK_S)
            self._city.seen["not sent"] += 1
            return NotSent()
        order = Order.of(movement, payment)
        content = _digest(repr(order), card_digest(payment))
        with_cvc = payment is not None and payment.cvc is not None
        self._city.sent.append(
            Sent(self._city.loop.time(), self._replica.name, movement, content, card_digest(payment), with_cvc)
        )
        if movement.sends > 1:
            self._city.seen["sent again"] += 1
        return await self._ask(CALL_S, lambda: self._carry_out(order), Unknown("timeout"))

    async def verify(self, reference: str, payment: Payment) -> Outcome:
        """Nobody asks for it here."""
        raise NotImplementedError

    async def inquire(self, movement: Movement) -> Inquiry:
        """See `ports.Processor`."""
        await self._replica.gate()
        self._city.at_work_on(movement)
        if self._city.processor_down or self._city.strikes(Fault.INQUIRY_ERROR):
            await self._city.pause(*QUICK_S)
            return Unknown("status_500")
        slow = self._city.strikes(Fault.SLOW)
        await self._city.pause(*((0.0, INQUIRE_S) if slow else QUICK_S))
        found = self._city.book.inquire(movement.reference, self._city.now())
        await self._city.pause(*QUICK_S)
        await self._replica.gate()
        self._city.inquired(movement, found)
        return Unknown("timeout") if slow and self._city.rng.random() < 0.5 else found

    async def cancel(self, movement: Movement) -> Cancellation:
        """See `ports.Processor`."""
        await self._replica.gate()
        if self._city.strikes(Fault.REFUSED):
            return Unknown("connection_refused")

        def arrive() -> Cancellation:
            said = self._city.book.cancel(movement.reference, self._city.now())
            self._city.seen[f"cancel: {type(said).__name__}"] += 1
            return said

        return await self._ask(INQUIRE_S, arrive, Unknown("timeout"))

    def _carry_out(self, order: Order) -> Approved | Declined | Absent | Unknown:
        city = self._city
        if city.strikes(Fault.DUPLICATE):
            city.later(city.rng.uniform(*AGAIN_S), lambda: city.carry_out(order, copy=True))
        return city.carry_out(order)

    async def _ask(self, timeout_s: float, arrive: Callable[[], T], given_up: Unknown) -> T | Unknown:
        """Send it off, and wait for what comes back, if anything does."""
        city = self._city
        reply: asyncio.Future[T | Unknown] = city.loop.create_future()
        fate = next((fault for fault in FATES if city.strikes(fault)), None)
        if city.processor_down:
            fate = Fault.LOST_REQUEST

        def tell(said: T | Unknown) -> None:
            if not reply.done():
                reply.set_result(said)

        def delivered() -> None:
            said = Unknown("status_500") if fate is Fault.ERROR_BEFORE else arrive()
            heard = REPLIES.get(fate, said) if fate is not None else said
            if heard is not None:
                city.loop.call_later(city.rng.uniform(*(SLOW_S if fate is Fault.SLOW else QUICK_S)), tell, heard)

        if fate is not Fault.LOST_REQUEST:
            late = (0.5, city.swarm.late_s_max)
            city.later(city.rng.uniform(*(late if fate is Fault.LATE else QUICK_S)), delivered)
        if fate in {Fault.LOST_REQUEST, Fault.LATE, Fault.LOST_REPLY} and city.rng.random() < 0.5:
            city.loop.call_later(city.rng.uniform(*QUICK_S), tell, Unknown("reset"))
        timer = city.loop.call_later(timeout_s, tell, given_up)
        said = await reply
        timer.cancel()
        await self._replica.gate()
        return said


FATES = (
    Fault.LOST_REQUEST,
    Fault.LATE,
    Fault.ERROR_BEFORE,
    Fault.ERROR_AFTER,
    Fault.LOST_REPLY,
    Fault.WRONG_ECHO,
    Fault.SLOW,
)
"""What can happen to one request, the first that strikes."""

REPLIES: dict[Fault, Unknown | None] = {
    Fault.ERROR_AFTER: Unknown("status_500"),
    Fault.WRONG_ECHO: Unknown("wrong_echo"),
    Fault.LOST_REPLY: None,
}
"""What is heard instead of what was said."""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
