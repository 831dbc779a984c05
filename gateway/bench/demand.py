"""What the generator sends: requests of payment pages, each with a card of its own that nobody holds.

Numbers are random on a range that we know, with the right check digit; none is a published one but by a chance of
one in ten billion.
"""

import base64
import secrets
from collections.abc import Callable, Sequence

import msgspec
from stdnum import luhn

from gateway.clock import SystemClock

FIRST_NAMES = ("Ana", "Björn", "Chidi", "Dolores", "Eun-ji", "Fatima", "Grace", "Hiroshi", "Ines", "José")
LAST_NAMES = ("Alvarez", "Brown", "Chen", "Dubois", "Eze", "Fischer", "García Márquez", "Haddad", "Ivanova", "O'Neil")
MEDIA = "application/json"
NDJSON = "application/x-ndjson"

RANDOM = secrets.SystemRandom()

Render = Callable[[], bytes]
"""Makes one whole request."""


def body() -> bytes:
    """The JSON of `POST /v1/tokens`: a card and a name, for a token of many uses."""
    number = f"4{RANDOM.randrange(10**14):014d}"
    card = {
        "number": number + luhn.calc_check_digit(number),
        "exp_month": RANDOM.randrange(1, 13),
        "exp_year": SystemClock().now().year + RANDOM.randrange(1, 5),
    }
    name = f"{RANDOM.choice(FIRST_NAMES)} {RANDOM.choice(LAST_NAMES)}"
    return msgspec.json.encode({"name": name, "card": card, "usage": "multi"})


def post(path: str, content: bytes, **headers: str) -> bytes:
    """One request, rendered; underscores in the names of headers stand for hyphens."""
    lines = {"host": "127.0.0.1", "content_type": MEDIA, "content_length": str(len(content))} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def tokens(api_key: str) -> Render:
    """`POST /v1/tokens`."""
    return lambda: post("/v1/tokens", body(), authorization=f"Bearer {api_key}")


def charges(api_key: str, token_ids: Sequence[str]) -> Render:
    """`POST /v1/charges` by token, each under a key of its own."""

    def render() -> bytes:
        told = {
            "amount": RANDOM.randrange(100, 100_000),
            "currency": "USD",
            "token": RANDOM.choice(token_ids),
            "reference": f"bill {RANDOM.randrange(10**6)}",
        }
        key = secrets.token_hex(16)
        return post("/v1/charges", msgspec.json.encode(told), authorization=f"Bearer {api_key}", idempotency_key=key)

    return render


def transit(token: str) -> Render:
    """OpenBao's `transit/encrypt` of the same JSON."""

    def render() -> bytes:
        plaintext = base64.b64encode(body()).decode()
        return post("/v1/transit/encrypt/cards", msgspec.json.encode({"plaintext": plaintext}), x_vault_token=token)

    return render


def bulk(api_key: str, lines: int) -> bytes:
    """`POST /v1/tokens/bulk`, a card a line."""
    content = b"".join(body() + b"\n" for _ in range(lines))
    return post("/v1/tokens/bulk", content, authorization=f"Bearer {api_key}", content_type=NDJSON)


def many(render: Render, requests: int) -> list[bytes]:
    """So many different ones."""
    return [render() for _ in range(requests)]


def arrivals_s(rate: float, seconds: float) -> list[float]:
    """Moments of independent arrivals (exponential gaps) within so many seconds, fixed before the first is sent."""
    moments, moment = [], RANDOM.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += RANDOM.expovariate(rate)
    return moments
