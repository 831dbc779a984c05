"""A processor that approves at once: just what `gateway.processor.client` sends, over TLS, with nothing behind it.

It remembers nothing, refuses nothing and deduplicates nothing; `gateway.processor.stub` is the one to test with.
"""

import asyncio
import re
import sys
from pathlib import Path
from typing import cast

import msgspec

from gateway.daemon import stop_signal
from gateway.processor.client import DONE, PATHS
from gateway.web.server import tls_context

HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
STATUS = {PATHS[kind]: done for kind, done in DONE.items()} | {"/wire/verify": "verified"}


class Wire(msgspec.Struct, frozen=True):
    """What it is started with; paths."""

    port: int
    cert: str
    key: str


class Movement(msgspec.Struct, frozen=True):
    """What an answer must repeat."""

    reference: str
    amount: int = 0
    currency: str = "USD"


class Connection(asyncio.Protocol):
    """One kept-alive connection of the gateway's."""

    def __init__(self) -> None:
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._heard += data
        while (head := self._heard.find(HEAD_END)) >= 0:
            length = LENGTH.search(self._heard, 0, head)
            begin = head + len(HEAD_END)
            end = begin + (int(length[1]) if length else 0)
            if len(self._heard) < end:
                return
            path = self._heard.split(b" ", 2)[1].decode()
            told = msgspec.json.encode(_answer(path, self._heard[begin:end]))
            self._heard = self._heard[end:]
            fields = b"content-type: application/json\r\ncontent-length: %d" % len(told)
            self._transport.write(b"HTTP/1.1 200 OK\r\n" + fields + HEAD_END + told)


def _answer(path: str, body: bytes) -> dict[str, object]:
    asked = msgspec.json.decode(body, type=Movement)
    if path not in STATUS:
        offers = {"dedupe_window_s": None, "cancel": False, "expiry": False}
        return {"status": "not_found", "reference": asked.reference, "offers": offers}
    return {
        "reference": asked.reference,
        "amount": asked.amount,
        "currency": asked.currency,
        "status": STATUS[path],
        "decline": None,
        "checks": {"cvc": "unchecked"},
    }


async def serve(asked: Wire) -> None:
    """Until it is told to stop."""
    tls = tls_context(Path(asked.cert), Path(asked.key), None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", asked.port, ssl=tls, backlog=512)
    await stop_signal()
    server.close()


def main() -> None:
    """`python -m gateway.bench.processor FILE`: the file holds a `Wire` in JSON."""
    asyncio.run(serve(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Wire)))


if __name__ == "__main__":
    main()
