"""A resident at a payment page: pays, clicks twice, goes away, wants money back, tries a key with another amount.

What a page must do it does: it repeats a request under its key until it has a final answer.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.services.answers import charge_object
from gateway.services.charges import ChargeRequest
from gateway.services.movements import MovementRequest
from gateway.services.ports import Answer
from tests.simulation.founding import CARDS, DECLINED_CARD, given
from tests.simulation.history import LOST, Body, Call, End
from tests.simulation.replica import Replica
from tests.simulation.swarm import Fault

if TYPE_CHECKING:
    from tests.simulation.city import City

FINAL = frozenset({200, 201, 402, 502})
PASSING = frozenset({"Unavailable", "RequestInProgress", "NotReached"})
"""Refusals after which a page tries again."""
PATIENCE_S = 20.0
HASTY_S = (0.02, 4.0)
AGAIN_S = (0.2, 4.0)
CLICKS_S = (0.0, 0.3)


class Resident:
    """One resident, who makes one charge and does with it what comes to mind."""

    def __init__(self, city: "City", number: int) -> None:
        self._city = city
        self._rng = city.rng
        self._name = f"r{number}"
        self._department = city.rng.choice(city.departments)
        self._keys = 0

    async def live(self) -> None:
        """From the first click to the last answer."""
        city = self._city
        await city.pause(0.0, city.swarm.storm_s * 0.8)
        body = self._wish()
        first = await self._until_final("create", body)
        charge = shown(first)
        if not charge:
            return
        if first.status == 202:
            await self._meddle(charge["id"])
        if charge["status"] == "authorized":
            charge = await self._decide(charge)
        if charge["status"] == "succeeded" and charge["captured"]:
            await self._want_back(charge)
        await self.call("show", "", Body(None), charge["id"])

    async def call(
        self,
        act: str,
        key: str,
        body: Body,
        charge_id: str | None = None,
        patience_s: float = PATIENCE_S,
        department: str | None = None,
    ) -> Call:
        """One call to some api process, and its end."""
        city, of = self._city, department or self._department
        call = Call(len(city.history.calls), of, act, key, charge_id, body, city.loop.time())
        city.history.calls.append(call)
        city.note("call", call.number, of, act, key, charge_id, body)
        call.end = await self._reach(call, patience_s)
        call.ended_s = city.loop.time()
        digest = hashlib.sha256(call.shown).hexdigest()[:16]
        city.note("end", call.number, call.end.kind, call.end.name, call.status, digest)
        return call

    async def _reach(self, call: Call, patience_s: float) -> End:
        city = self._city
        apis = city.apis()
        if not apis:
            await city.pause(*AGAIN_S)
            return End("refused", "NotReached")
        replica = self._rng.choice(apis)
        task = replica.spawn(replica.serve(lambda: self._work(replica, call)))
        await asyncio.wait([task], timeout=patience_s)
        end: End = task.result() if task.done() and not task.cancelled() else LOST
        return end

    def _work(self, replica: Replica, call: Call) -> Awaitable[Answer]:
        caller, request_id = self._city.callers[call.department], f"req_{call.number}"
        if call.act == "create":
            return replica.charges.create(caller, request_of(call.body, request_id), call.key)
        assert call.charge_id is not None, "what is done to a charge names it"
        if call.act == "show":
            return _show(replica, call)
        act = {"capture": replica.movements.capture, "void": replica.movements.void}.get(call.act)
        wish = MovementRequest(call.charge_id, call.body.amount_minor, request_id)
        return (act or replica.movements.refund)(caller, wish, call.key)

    def _wish(self) -> Body:
        """What to pay, and how."""
        rng = self._rng
        multi, single = self._city.tokens[self._department]
        amount = rng.randint(1, 90_000)
        body = Body(
            amount,
            reference=f"INV-{rng.randint(1, 99)}",
            capture=rng.random() < 0.55,
            fee_minor=rng.choice((0, 0, min(amount, 150))),
            details=rng.random() < 0.1,
        )
        how = rng.random()
        if how < 0.4:
            return replace(body, token_id=rng.choice(multi))
        if how < 0.6:
            return replace(body, token_id=rng.choice(single))
        declined = how > (0.8 if Fault.KILL in self._city.swarm else 0.93)  # deaths around a decline are rare enough
        card = DECLINED_CARD if declined else rng.randrange(CARDS)
        return replace(body, card=card, with_cvc=rng.random() < 0.5)

    async def _until_final(self, act: str, body: Body, charge_id: str | None = None) -> Call:
        """Click, and repeat under the same key until there is a final answer or a refusal that stays."""
        city, key = self._city, self._key(act)
        calls = await self._click(act, key, body, charge_id)
        while True:
            last = _best(calls)
            if last.status in FINAL or city.over:
                return last
            if last.end and last.end.kind == "refused" and last.end.name not in PASSING:
                return last
            if city.stormy and self._rng.random() < 0.03:
                return last  # gone for good; what was begun must be finished without this page
            await city.pause(*AGAIN_S)
            known = not city.stormy and city.settled()
            calls = [await self.call(act, key, body, charge_id, self._patience_s())]
            if known and calls[0].status == 202:
                return calls[0]  # in review, and only a person can tell

    async def _click(self, act: str, key: str, body: Body, charge_id: str | None) -> Sequence[Call]:
        """The first click: sometimes several, sometimes with another field changed in between."""
        city, bodies = self._city, [body]
        if city.strikes(Fault.DOUBLE_CLICK):
            bodies += [body] * self._rng.randint(1, 4)
        if act != "void" and city.strikes(Fault.MUTATION):  # a void has nothing that could be another
            bodies.insert(self._rng.randrange(len(bodies) + 1), self._mutated(act, body))
        if len(bodies) == 1:
            return [await self.call(act, key, body, charge_id, self._patience_s())]

        city.seen["same key at once"] += 1

        async def click(each: Body) -> Call:
            await city.pause(*CLICKS_S)
            return await self.call(act, key, each, charge_id, self._patience_s())

        calls = await asyncio.gather(*(click(each) for each in bodies))
        return [call for call in calls if call.body == body]

    def _mutated(self, act: str, body: Body) -> Body:
        rng = self._rng
        if act == "create" and body.card is not None and rng.random() < 0.5:
            return replace(body, card=(body.card + 1) % CARDS)
        if act == "create" and rng.random() < 0.3:
            return replace(body, reference=body.reference + "X")
        return replace(body, amount_minor=(body.amount_minor or 0) + rng.randint(1, 9))

    async def _meddle(self, charge_id: str) -> None:
        """Ask for something while nobody knows what became of the charge."""
        if self._rng.random() < 0.5:
            act = self._rng.choice(("capture", "void", "refund"))
            await self.call(act, self._key(act), Body(None), charge_id)

    async def _decide(self, charge: dict[str, Any]) -> dict[str, Any]:
        """Capture, void, both at once, or neither."""
        rng, charge_id, held = self._rng, charge["id"], charge["amount"]
        what = rng.random()
        if what < 0.1:
            await self.call("capture", self._key("capture"), Body(held + 1), charge_id)
        if what < 0.15:
            await self.call("refund", self._key("refund"), Body(None), charge_id)
        wishes = [("capture", Body(None))]
        if what > 0.35:
            wishes = [("capture", Body(rng.randint(1, held)))]
        if what > 0.6:
            wishes = [("void", Body(None))]
        if what > 0.8:
            wishes = [("capture", Body(rng.randint(1, held))), ("void", Body(None)), ("capture", Body(None))]
        if what > 0.97:
            wishes = []
        ends = await asyncio.gather(*(self._until_final(act, body, charge_id) for act, body in wishes))
        if any(end.status == 502 for end in ends) and rng.random() < 0.7:
            ends = [*ends, await self._until_final("capture", Body(None), charge_id)]
        return next((shown(end) for end in ends if end.status == 200), charge)

    async def _want_back(self, charge: dict[str, Any]) -> None:
        """Some refunds at once, which together may be too much."""
        rng, captured = self._rng, charge["captured"]
        amounts: list[int | None] = [
            rng.choice((None, rng.randint(1, captured))) for _ in range(rng.choice((0, 1, 1, 3)))
        ]
        if rng.random() < 0.1:
            amounts.append(captured + 1)
        if rng.random() < 0.1:
            await self.call("void", self._key("void"), Body(None), charge["id"])
        await asyncio.gather(*(self._until_final("refund", Body(amount), charge["id"]) for amount in amounts))

    def _patience_s(self) -> float:
        return self._rng.uniform(*HASTY_S) if self._city.strikes(Fault.IMPATIENCE) else PATIENCE_S

    def _key(self, act: str) -> str:
        self._keys += 1
        return f"{self._name}-{act}-{self._keys}"


def request_of(body: Body, request_id: str) -> ChargeRequest:
    """What the web layer makes of a body."""
    return ChargeRequest(
        amount_minor=body.amount_minor or 0,
        currency="USD",
        reference=body.reference,
        service=None,
        fee_minor=body.fee_minor,
        capture=body.capture,
        token_id=body.token_id,
        given=given(body.card, with_cvc=body.with_cvc) if body.card is not None else None,
        details={"street": "12 Main St"} if body.details else None,
        request_id=request_id,
    )


def shown(call: Call) -> dict[str, Any]:
    """The charge or refund that an answer shows, empty where it shows none."""
    if not call.status:
        return {}
    body: dict[str, Any] = msgspec.json.decode(call.shown)
    return next((body[name] for name in ("charge", "refund") if isinstance(body.get(name), dict)), body)


def _best(calls: Sequence[Call]) -> Call:
    """Of several clicks, the one whose answer says most."""
    return max(calls, key=lambda call: (call.status in FINAL, call.status == 202, call.end != LOST))


async def _show(replica: Replica, call: Call) -> Answer:
    charge = await replica.charges.show(replica.city.callers[call.department], call.charge_id or "")
    return Answer(200, msgspec.json.encode(charge_object(charge)))
