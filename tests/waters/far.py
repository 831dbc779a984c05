"""The processor's double of one seed, behind TLS, with its faults; and the gateway's own client, watched."""

import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec

from gateway.processor.client import PATHS, ProcessorClient, open_session
from gateway.processor.stub.server import ProcessorStub, StubConfig
from gateway.processor.stub.wire import Pace
from gateway.services.ports import Cancellation, Inquiry, Movement, NotSent, Outcome, Payment, Unknown
from keys.secret import Secret
from tests.gateway.store.postgres import HOST
from tests.simulation.founding import START
from tests.simulation.swarm import Fault, Swarm
from tests.simulation.wire import Sent, card_digest
from tests.waters.harbour import Harbour
from tests.waters.tempo import CALL_S, CONNECT_S, INQUIRE_S, SLOW_S

if TYPE_CHECKING:
    from tests.waters.city import City

KEY = "a-processor-key-for-tests"
LATE_S_MIN = 0.05
AGAIN_S = (0.01, 0.3)
PLANNED = {
    "lost_request": Fault.LOST_REQUEST,
    "lost_reply": Fault.LOST_REPLY,
    "late_effect": Fault.LATE,
    "duplicate": Fault.DUPLICATE,
    "error_before": Fault.ERROR_BEFORE,
    "error_after": Fault.ERROR_AFTER,
    "wrong_echo": Fault.WRONG_ECHO,
    "slow": Fault.SLOW,
    "refused": Fault.REFUSED,
}
"""The double's faults, by the swarm's."""


class Far:
    """A running double, and what can be asked of it."""

    def __init__(self, stub: ProcessorStub, session: aiohttp.ClientSession, terms: Mapping[str, Any]) -> None:
        self._stub = stub
        self._session = session
        self._terms = terms

    @property
    def url(self) -> str:
        """What the gateway calls."""
        return f"https://{HOST}:{self._stub.wire_port}"

    @property
    def under_way(self) -> int:
        """How many requests have not arrived yet."""
        return len(self._stub._later._waiting)

    async def plan(self, **faults: Any) -> None:
        """Put a schedule of faults in force; what the double offers stays."""
        await self._ask("PUT", "faults", json=dict(self._terms) | faults)

    async def movements(self) -> list[dict[str, Any]]:
        """Its own truth: every movement."""
        return list((await self._ask("GET", "movements"))["data"])

    async def charges(self) -> list[dict[str, Any]]:
        """And every charge."""
        return list((await self._ask("GET", "charges"))["data"])

    async def _ask(self, method: str, what: str, **more: Any) -> dict[str, Any]:
        url = f"https://{HOST}:{self._stub.control_port}/v1/{what}"
        async with self._session.request(method, url, **more) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = msgspec.json.decode(await response.read())
            return answer


@asynccontextmanager
async def processor(
    harbour: Harbour, memory: Path, terms: Mapping[str, Any], skew_s: float, late_s_max: float
) -> AsyncIterator[Far]:
    """A double with an empty memory. Its clock is off by `skew_s`."""
    config = StubConfig(HOST, 0, 0, harbour.cert, harbour.cert_key, KEY, memory)
    pace = Pace(SLOW_S, (LATE_S_MIN, late_s_max), AGAIN_S)
    stub = ProcessorStub(config, pace=pace, clock=lambda: time.time() + skew_s)
    await stub.start()
    try:
        async with open_session(harbour.cert, Secret(KEY), 5.0) as session:
            far = Far(stub, session, terms)
            await far.plan()
            yield far
    finally:
        await stub.stop()
        memory.unlink(missing_ok=True)


def storm_of(swarm: Swarm, seed: int) -> dict[str, Any]:
    """The double's schedule in a storm. Half of what the swarm garbles is cut in half instead."""
    plan: dict[str, Any] = {name: swarm.intensity.get(fault, 0.0) for name, fault in PLANNED.items()}
    plan["slow"] = max(plan["slow"], swarm.intensity.get(Fault.INQUIRY_ERROR, 0.0) / 2)
    plan["wrong_echo"] = plan["truncated"] = plan["wrong_echo"] / 2
    return plan | {"seed": seed}


class Client(ProcessorClient):
    """What a replica calls the double with. What leaves the house is noted, byte for byte as a digest."""

    def __init__(self, city: "City", name: str, session: aiohttp.ClientSession) -> None:
        super().__init__(session, city.far.url, CALL_S, INQUIRE_S)
        self._city = city
        self._name = name
        self._sending: dict[str, tuple[Movement, Payment | None]] = {}

    async def send(self, movement: Movement, payment: Payment | None) -> Outcome:
        self._sending[movement.reference] = movement, payment
        try:
            outcome = await super().send(movement, payment)
        finally:
            self._sending.pop(movement.reference, None)
        self._city.seen[f"send: {type(outcome).__name__}"] += 1
        if movement.sends > 1 and not isinstance(outcome, NotSent):
            self._city.seen["sent again"] += 1
        return outcome

    async def inquire(self, movement: Movement) -> Inquiry:
        found = await super().inquire(movement)
        self._city.seen[f"inquiry: {type(found).__name__}"] += 1
        return found

    async def cancel(self, movement: Movement) -> Cancellation:
        said = await super().cancel(movement)
        self._city.seen[f"cancel: {type(said).__name__}"] += 1
        return said

    async def _post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> bytes | NotSent | Unknown:
        if path not in PATHS.values() or body["reference"] not in self._sending:
            return await super()._post(path, body, timeout_s)
        movement, payment = self._sending[body["reference"]]
        content = hashlib.sha256(msgspec.json.encode([path, body])).hexdigest()
        with_cvc = payment is not None and payment.cvc is not None
        at_s = (self._city.now() - START).total_seconds()
        sent = Sent(at_s, self._name, movement, content, card_digest(payment), with_cvc)
        self._city.sent.append(sent)  # now: whoever dies meanwhile has sent it all the same
        raw = await super()._post(path, body, timeout_s)
        if isinstance(raw, NotSent):
            self._city.sent.remove(sent)
        return raw


def session_of(cert: Path) -> aiohttp.ClientSession:
    """A replica's own."""
    return open_session(cert, Secret(KEY), CONNECT_S)
