"""Someone who calls the processor double over real TLS on loopback, and what is said to it."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gateway.processor.stub.server import StubConfig
from gateway.processor.stub.wire import Pace

KEY = "a-processor-key-for-tests"
GOOD = "4242424242424242"
HOLDER = "Ramona Testholder"
NEVER_S = 3600.0
HASTE = Pace(slow_s=0.3, late_s=(NEVER_S, NEVER_S), again_s=(NEVER_S, NEVER_S))
"""A far side for tests that do not wait long, and say themselves when something late arrives (`hurry`)."""


@dataclass(frozen=True)
class Pki:
    """A self-signed certificate for 127.0.0.1."""

    cert: Path
    key: Path

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.cert))


@dataclass
class Clock:
    """Seconds since 1970, moved by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Caller:
    """Someone with the processor key, on one pool of kept-alive connections as the gateway has."""

    def __init__(self, session: aiohttp.ClientSession, tls: ssl.SSLContext, control: int, wire: int) -> None:
        self.session = session
        self.tls = tls
        self.control_url = f"https://127.0.0.1:{control}"
        self.wire_url = f"https://127.0.0.1:{wire}"

    async def ask(self, method: str, url: str, body: object = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with self.session.request(method, url, json=body, headers=headers, ssl=self.tls) as response:
            return response.status, await response.json()

    async def wire(self, name: str, body: object) -> tuple[int, Any]:
        return await self.ask("POST", f"{self.wire_url}/wire/{name}", body)

    async def sale(self, reference: str = "ref-1", **change: Any) -> tuple[int, Any]:
        return await self.wire("sale", sale(reference, **change))

    async def verify(self, reference: str = "ref-1", **card_change: Any) -> tuple[int, Any]:
        body = {"reference": reference, "card": card(**card_change)}
        return await self.wire("verify", body)

    async def inquire(self, reference: str = "ref-1") -> Any:
        return (await self.wire("inquire", {"reference": reference}))[1]

    async def authorize(self, reference: str = "ref-1", **change: Any) -> tuple[int, Any]:
        return await self.wire("authorize", sale(reference, **change))

    async def capture(self, reference: str = "cap-1", **change: Any) -> tuple[int, Any]:
        return await self.wire("capture", follow_up(reference, **change))

    async def void(self, reference: str = "void-1", **change: Any) -> tuple[int, Any]:
        return await self.wire("void", follow_up(reference, **change))

    async def refund(self, reference: str = "re-1", **change: Any) -> tuple[int, Any]:
        return await self.wire("refund", follow_up(reference, **change))

    async def cancel(self, reference: str = "ref-1", **more: Any) -> tuple[int, Any]:
        return await self.wire("cancel", {"reference": reference} | more)

    async def faults(self, **plan: Any) -> tuple[int, Any]:
        return await self.ask("PUT", f"{self.control_url}/v1/faults", plan)

    async def charges(self) -> dict[str, Any]:
        _, listing = await self.ask("GET", f"{self.control_url}/v1/charges")
        assert (listing["object"], listing["has_more"]) == ("list", False)
        return {row["reference"]: row for row in listing["data"]}

    async def charge(self, reference: str = "ref-1") -> Any:
        return (await self.charges())[reference]

    async def movements(self) -> dict[str, Any]:
        _, listing = await self.ask("GET", f"{self.control_url}/v1/movements")
        return {row["reference"]: row for row in listing["data"]}

    async def tombstones(self) -> list[Any]:
        _, listing = await self.ask("GET", f"{self.control_url}/v1/movements")
        return list(listing["tombstones"])

    async def effects(self, reference: str = "ref-1") -> int | None:
        rows = await self.charges()
        return rows[reference]["effects"] if reference in rows else None


def card(**change: Any) -> dict[str, Any]:
    """Give a valid card unless told otherwise; None leaves a field out."""
    whole = {"number": GOOD, "exp_month": 12, "exp_year": 2031, "name": HOLDER, "cvc": "737"} | change
    return {name: value for name, value in whole.items() if value is not None}


def sale(reference: str = "ref-1", **change: Any) -> dict[str, Any]:
    """Give a valid sale unless told otherwise."""
    return {"reference": reference, "amount": 1234, "currency": "USD", "card": card()} | change


def follow_up(reference: str, **change: Any) -> dict[str, Any]:
    """Give a movement that follows the valid sale unless told otherwise."""
    return {"reference": reference, "charge": "ref-1", "amount": 1234, "currency": "USD"} | change


def not_found(reference: str = "ref-1", **offers: Any) -> dict[str, Any]:
    """Give the answer of a processor that dedupes and cancels unless told otherwise."""
    told = {"dedupe_window_s": 86_400, "cancel": True, "expiry": False} | offers
    return {"status": "not_found", "reference": reference, "offers": told}


def config(pki: Pki, memory: Path, **change: Any) -> StubConfig:
    """Listen on any free ports unless told otherwise."""
    whole: dict[str, Any] = {
        "host": "127.0.0.1",
        "control_port": 0,
        "wire_port": 0,
        "cert": pki.cert,
        "key": pki.key,
        "processor_key": KEY,
        "memory": memory,
    }
    return StubConfig(**whole | change)
