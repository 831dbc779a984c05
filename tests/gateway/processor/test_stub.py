"""The processor double, over real TLS on loopback: what it answers, what it remembers, how it fails on demand."""

import asyncio
import json
import logging
import os
import signal
import socket
import sqlite3
import ssl
import struct
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.processor.stub.book import Book
from gateway.processor.stub.faults import FaultPlan, Faults
from gateway.processor.stub.protocol import Card
from gateway.processor.stub.server import ProcessorStub
from gateway.processor.stub.wire import PACE
from tests.gateway.processor.caller import (
    GOOD,
    HASTE,
    HOLDER,
    KEY,
    Caller,
    Clock,
    Pki,
    card,
    config,
    follow_up,
    not_found,
    sale,
)

pytestmark = pytest.mark.server

FAULT_DEFAULTS = {
    "seed": 0,
    "lost_request": 0,
    "lost_reply": 0,
    "late_effect": 0,
    "duplicate": 0,
    "error_before": 0,
    "error_after": 0,
    "truncated": 0,
    "wrong_echo": 0,
    "slow": 0,
    "refused": 0,
    "capability": "A",
    "dedupe_window_s": 86400,
    "inquiry_lag_s": 0,
}


# --- answers -------------------------------------------------------------------------------------------------


async def test_an_unpublished_number_is_captured_and_moves_money_once(caller: Caller) -> None:
    """A sale of an ordinary card is answered as captured, and the truth shows one movement."""
    status, answer = await caller.sale()
    assert status == 200
    assert answer == {
        "reference": "ref-1",
        "amount": 1234,
        "currency": "USD",
        "status": "captured",
        "decline": None,
        "checks": {"cvc": "pass"},
    }
    row = (await caller.charges())["ref-1"]
    assert row == answer | {
        "kind": "sale",
        "last4": "4242",
        "authorized": 1234,
        "effects": 1,
        "refunded": 0,
        "created": "2027-01-15T08:00:00Z",
        "applied": "2027-01-15T08:00:00Z",
    }


TRIGGERS = [
    pytest.param("4000000000000002", "soft", "05", "pass", id="declined"),
    pytest.param("4000000000000069", "data", "54", "pass", id="expired"),
    pytest.param("4000000000000127", "data", "N7", "fail", id="wrong-cvc"),
    pytest.param("4000000000000119", "system", "96", "pass", id="processing-error"),
    pytest.param("4000000000009995", "soft", "51", "pass", id="insufficient-funds"),
]


@pytest.mark.parametrize(("number", "category", "code", "cvc"), TRIGGERS)
async def test_a_published_number_is_declined_and_moves_nothing(
    caller: Caller, number: str, category: str, code: str, cvc: str
) -> None:
    """Each published trigger declines a sale and a verification with its class and code, without effect."""
    expected = {"status": "declined", "decline": {"class": category, "code": code}, "checks": {"cvc": cvc}}
    _, sold = await caller.sale("s", card=card(number=number))
    _, verified = await caller.verify("v", number=number)
    assert sold == {"reference": "s", "amount": 1234, "currency": "USD"} | expected
    assert verified == {"reference": "v", "amount": 0, "currency": "USD"} | expected
    assert await caller.effects("s") == 0


@pytest.mark.parametrize("number", ["4242424242420002", "4111111111119995", "40000000000000020"])
async def test_an_ending_is_no_trigger(caller: Caller, number: str) -> None:
    """Only whole published numbers trigger: the same ending on another number is approved."""
    _, answer = await caller.sale(card=card(number=number))
    assert answer["status"] == "captured"


@pytest.mark.parametrize(("number", "expected"), [(GOOD, "unchecked"), ("4000000000000127", "fail")])
async def test_without_a_cvc_nothing_is_checked_but_the_trigger_holds(
    caller: Caller, number: str, expected: str
) -> None:
    """A card without CVC is `unchecked`; the wrong-CVC number fails either way."""
    for _, answer in (
        await caller.sale("s", card=card(number=number, cvc=None)),
        await caller.verify("v", number=number, cvc=None),
    ):
        assert answer["checks"] == {"cvc": expected}


async def test_a_verification_is_no_charge(caller: Caller) -> None:
    """A verification answers `verified` for no money, and stands in its own list only."""
    assert (await caller.verify("v"))[1]["status"] == "verified"
    assert await caller.charges() == {}
    status, _ = await caller.ask("GET", f"{caller.control_url}/v1/charges/v")
    assert status == 404
    _, listing = await caller.ask("GET", f"{caller.control_url}/v1/verifications")
    assert [(row["reference"], row["amount"], row["effects"]) for row in listing["data"]] == [("v", 0, 0)]


async def test_one_charge_can_be_looked_up_by_reference(caller: Caller) -> None:
    """`GET /v1/charges/{reference}` is the row of the list, or 404."""
    await caller.sale("ref-1")
    await caller.sale("ref-2")
    found = await caller.ask("GET", f"{caller.control_url}/v1/charges/ref-2")
    assert found == (200, (await caller.charges())["ref-2"])
    missing = await caller.ask("GET", f"{caller.control_url}/v1/charges/ref-3")
    assert missing == (404, {"error": "not_found"})


async def test_an_inquiry_repeats_the_original_answer(caller: Caller) -> None:
    """Inquiry by reference gives the kind and the whole first answer, or `not_found` and what helps then."""
    _, sold = await caller.sale("s", card=card(number="4000000000009995"))
    _, verified = await caller.verify("v")
    assert await caller.inquire("s") == {"status": "found", "kind": "sale", "answer": sold}
    assert await caller.inquire("v") == {"status": "found", "kind": "verify", "answer": verified}
    assert await caller.inquire("x") == not_found("x")


# --- the same reference again --------------------------------------------------------------------------------


async def test_a_repeated_reference_moves_no_money(caller: Caller) -> None:
    """Within the window the first answer is given again, even when many copies arrive at once."""
    first = await caller.sale()
    again = await asyncio.gather(*(caller.sale() for _ in range(10)))
    assert again == [first] * 10
    assert await caller.effects() == 1


async def test_a_reference_past_its_window_is_applied_again(caller: Caller, clock: Clock) -> None:
    """The window is a day unless a plan says otherwise; after it the processor has forgotten, and money moves."""
    await caller.sale()
    clock.now += 86_399
    await caller.sale()
    assert await caller.effects() == 1
    clock.now += 1
    await caller.sale()
    assert await caller.effects() == 2
    await caller.faults(dedupe_window_s=0)
    await caller.sale()
    assert await caller.effects() == 3


CONFLICTS = [pytest.param({"amount": 1235}, id="amount"), pytest.param(None, id="kind")]


@pytest.mark.parametrize("change", CONFLICTS)
@pytest.mark.parametrize("age_s", [0, 100_000])
async def test_a_reference_stands_for_one_movement_only(
    caller: Caller, clock: Clock, change: dict[str, Any] | None, age_s: int
) -> None:
    """Another amount or kind under a known reference is refused, in the window and after it, without effect."""
    await caller.sale()
    clock.now += age_s
    refused = await (caller.verify() if change is None else caller.sale(**change))
    assert refused == (409, {"error": "reference_conflict"})
    assert (await caller.charges())["ref-1"]["amount"] == 1234
    assert await caller.effects() == 1


# --- who may ask, and what ------------------------------------------------------------------------------------

ROUTES = [
    ("wire", "POST", "/wire/sale"),
    ("wire", "POST", "/wire/authorize"),
    ("wire", "POST", "/wire/capture"),
    ("wire", "POST", "/wire/void"),
    ("wire", "POST", "/wire/refund"),
    ("wire", "POST", "/wire/cancel"),
    ("wire", "POST", "/wire/verify"),
    ("wire", "POST", "/wire/inquire"),
    ("wire", "POST", "/wire/unknown"),
    ("control", "PUT", "/v1/faults"),
    ("control", "GET", "/v1/faults"),
    ("control", "GET", "/v1/charges"),
    ("control", "GET", "/v1/charges/ref-1"),
    ("control", "GET", "/v1/movements"),
    ("control", "GET", "/v1/verifications"),
]
KEYS = [None, "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \xe9", KEY]


@pytest.mark.parametrize(("listener", "method", "path"), ROUTES)
async def test_every_route_asks_for_the_key(caller: Caller, listener: str, method: str, path: str) -> None:
    """Without the exact processor key each route, known or not, is 401 and does nothing."""
    url = (caller.wire_url if listener == "wire" else caller.control_url) + path
    for shown in KEYS:
        headers = {} if shown is None else {"Authorization": shown}
        async with caller.session.request(
            method, url, headers=headers, json=sale() if method == "POST" else None, ssl=caller.tls
        ) as response:
            assert (response.status, await response.json()) == (401, {"error": "unauthorized"})
            assert "Server" not in response.headers
    assert await caller.charges() == {}


async def test_the_listeners_do_not_serve_each_other(caller: Caller) -> None:
    """The wire has no control routes, control no wire routes; methods are kept."""
    for method, url, status in (
        ("GET", f"{caller.wire_url}/v1/charges", 404),
        ("PUT", f"{caller.wire_url}/v1/faults", 404),
        ("POST", f"{caller.control_url}/wire/sale", 404),
        ("GET", f"{caller.wire_url}/v1/settlements/2027-01-15.csv", 404),
        ("PUT", f"{caller.wire_url}/wire/sale", 405),
    ):
        code = {404: "not_found", 405: "method_not_allowed"}[status]
        assert await caller.ask(method, url) == (status, {"error": code})


BAD_SALES = [
    pytest.param(sale(extra=1), None, id="unknown-field"),
    pytest.param(sale(card=card(extra="x")), "card", id="unknown-card-field"),
    pytest.param({"reference": "r", "amount": 1, "currency": "USD"}, None, id="no-card"),
    pytest.param(sale(card=card(name=None)), "card", id="no-name"),
    pytest.param(sale(""), "reference", id="empty-reference"),
    pytest.param(sale("r" * 65), "reference", id="long-reference"),
    pytest.param(sale("ref\n"), "reference", id="reference-line-feed"),
    pytest.param(sale("ref 1"), "reference", id="reference-space"),
    pytest.param(sale(amount=0), "amount", id="zero"),
    pytest.param(sale(amount=-1), "amount", id="negative"),
    pytest.param(sale(amount=1.0), "amount", id="float"),
    pytest.param(sale(amount="1"), "amount", id="string"),
    pytest.param(sale(amount=True), "amount", id="bool"),
    pytest.param(sale(amount=10**12), "amount", id="thirteen-digits"),
    pytest.param(sale(currency="EUR"), "currency", id="currency"),
    pytest.param(sale(card=card(number="4242 4242 4242 4242")), "card.number", id="number-spaces"),
    pytest.param(sale(card=card(number="4" * 11)), "card.number", id="number-short"),
    pytest.param(sale(card=card(number="4" * 20)), "card.number", id="number-long"),
    pytest.param(sale(card=card(exp_month=13)), "card.exp_month", id="month"),
    pytest.param(sale(card=card(exp_year=31)), "card.exp_year", id="year"),
    pytest.param(sale(card=card(cvc="12")), "card.cvc", id="cvc-short"),
    pytest.param(sale(card=card() | {"cvc": None}), "card.cvc", id="cvc-null"),
    pytest.param(sale(not_after=-1), "not_after", id="before-1970"),
    pytest.param(sale(not_after=1.5), "not_after", id="fraction"),
    pytest.param(sale(not_after=10**12), "not_after", id="milliseconds"),
    pytest.param(sale(not_after=None), "not_after", id="not-after-null"),
    pytest.param([sale()], None, id="list"),
]
BAD_FOLLOW_UPS = [
    pytest.param(follow_up("r", extra=1), None, id="unknown-field"),
    pytest.param(follow_up("r", card=card()), None, id="card"),
    pytest.param(sale("r"), None, id="sale"),
    pytest.param({"reference": "r", "amount": 1, "currency": "USD"}, None, id="no-charge"),
    pytest.param(follow_up("r", charge="ref 1"), "charge", id="charge-space"),
    pytest.param(follow_up("r", charge=None), "charge", id="charge-null"),
    pytest.param(follow_up(""), "reference", id="empty-reference"),
    pytest.param(follow_up("r", amount=0), "amount", id="zero"),
    pytest.param(follow_up("r", amount=-1), "amount", id="negative"),
    pytest.param(follow_up("r", amount=1.0), "amount", id="float"),
    pytest.param(follow_up("r", currency="usd"), "currency", id="lower-case"),
    pytest.param(follow_up("r", currency="USD\n"), "currency", id="currency-line-feed"),
    pytest.param(follow_up("r", not_after="1"), "not_after", id="text"),
]
BAD_CANCELS = [
    pytest.param({}, None, id="nothing"),
    pytest.param({"reference": "r", "amount": 1}, None, id="unknown-field"),
    pytest.param({"reference": "r" * 65}, "reference", id="long-reference"),
    pytest.param({"reference": "r", "charge": None}, "charge", id="charge-null"),
]


@pytest.mark.parametrize(("body", "field"), BAD_SALES)
async def test_a_sale_is_read_strictly(caller: Caller, body: object, field: str | None) -> None:
    """What is not exactly a sale is 400 naming our field, never the sender's words, and moves nothing."""
    expected = {"error": "invalid_request"} | ({"field": field} if field else {})
    for route in ("sale", "authorize"):
        assert await caller.wire(route, body) == (400, expected)
    assert await caller.charges() == {}


@pytest.mark.parametrize(("body", "field"), BAD_FOLLOW_UPS)
@pytest.mark.parametrize("route", ["capture", "void", "refund"])
async def test_what_follows_is_read_strictly(caller: Caller, route: str, body: object, field: str | None) -> None:
    """What is not exactly a capture, a void or a refund is 400 naming our field, and leaves no trace."""
    await caller.sale()
    expected = {"error": "invalid_request"} | ({"field": field} if field else {})
    assert await caller.wire(route, body) == (400, expected)
    assert set(await caller.movements()) == {"ref-1"}


@pytest.mark.parametrize(("body", "field"), BAD_CANCELS)
async def test_a_cancel_is_read_strictly(caller: Caller, body: object, field: str | None) -> None:
    """What is not exactly a cancel is 400 naming our field, and makes nothing void."""
    expected = {"error": "invalid_request"} | ({"field": field} if field else {})
    assert await caller.wire("cancel", body) == (400, expected)
    assert await caller.tombstones() == []


@pytest.mark.parametrize("amount", [1, 999_999_999_999])
@pytest.mark.parametrize("reference", ["r", "r" * 64, "A-z_9"])
async def test_the_edges_of_a_sale_are_taken(caller: Caller, amount: int, reference: str) -> None:
    """The smallest and largest amount and reference are served."""
    status, answer = await caller.sale(reference, amount=amount)
    assert (status, answer["amount"], answer["reference"]) == (200, amount, reference)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"reference": "a"} x'])
async def test_what_is_not_json_is_refused(caller: Caller, body: bytes) -> None:
    """Broken JSON is 400 on both listeners."""
    for method, url in (("POST", f"{caller.wire_url}/wire/inquire"), ("PUT", f"{caller.control_url}/v1/faults")):
        headers = {"Authorization": f"Bearer {KEY}"}
        async with caller.session.request(method, url, data=body, headers=headers, ssl=caller.tls) as response:
            assert (response.status, await response.json()) == (400, {"error": "invalid_request"})


async def test_a_body_too_large_is_refused(caller: Caller) -> None:
    """More than 64 KiB is 413 in JSON."""
    status, answer = await caller.sale(card=card(name="x" * 70_000))
    assert (status, answer) == (413, {"error": "too_large"})


async def test_nothing_of_a_request_is_logged_or_quoted(
    caller: Caller, stub: ProcessorStub, caplog: pytest.LogCaptureFixture
) -> None:
    """Good, bad and unparsable requests leave no log line, and unparsable bytes come back in no answer."""
    caplog.set_level(logging.DEBUG)
    await caller.sale()
    await caller.sale(card=card(number=f"{GOOD} "))
    reader, writer = await asyncio.open_connection("127.0.0.1", stub.wire_port, ssl=caller.tls)
    writer.write(f"POST /wire/sale HTTP/1.1\r\nHost: x\r\n {GOOD}\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body == b'{"error":"invalid_request"}'
    assert b"Server" not in head
    assert [record for record in caplog.records if record.name != "asyncio"] == []
    assert GOOD not in caplog.text


async def test_only_tls_1_3_is_spoken(caller: Caller, stub: ProcessorStub) -> None:
    """On either listener a client gets TLS 1.3, and one that stops at 1.2 gets no handshake."""
    for port in (stub.wire_port, stub.control_port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=caller.tls)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()
    caller.tls.maximum_version = ssl.TLSVersion.TLSv1_2
    for port in (stub.wire_port, stub.control_port):
        # The alert can be overtaken by the end of the connection.
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=caller.tls)


def test_secrets_do_not_print(pki: Pki, tmp_path: Path) -> None:
    """Neither a card nor the configuration shows its secret when printed; an empty key is no configuration."""
    assert GOOD not in repr(Card(GOOD, 12, 2031, HOLDER))
    assert KEY not in repr(config(pki, tmp_path / "m"))
    with pytest.raises(ValueError, match="processor_key"):
        config(pki, tmp_path / "m", processor_key="")


# --- faults ---------------------------------------------------------------------------------------------------

CUT = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


async def test_a_plan_is_shown_as_set_and_healed_by_nothing(caller: Caller) -> None:
    """What is left out is off; `{}` turns all of it off again."""
    shown = {**FAULT_DEFAULTS, "seed": 7, "lost_reply": 0.4, "inquiry_lag_s": 2.5}
    assert await caller.faults(seed=7, lost_reply=0.4, inquiry_lag_s=2.5) == (200, shown)
    assert await caller.ask("GET", f"{caller.control_url}/v1/faults") == (200, shown)
    assert await caller.faults() == (200, FAULT_DEFAULTS)


BAD_PLANS = [
    *[
        pytest.param({name: value}, name, id=f"{name}-{value}")
        for name in FAULT_DEFAULTS
        if name not in {"seed", "capability", "dedupe_window_s", "inquiry_lag_s"}
        for value in (-0.1, 1.1, "1", True)
    ],
    pytest.param({"seed": 0.5}, "seed", id="seed"),
    pytest.param({"capability": "E"}, "capability", id="capability-unknown"),
    pytest.param({"dedupe_window_s": -1}, "dedupe_window_s", id="window"),
    pytest.param({"inquiry_lag_s": -1}, "inquiry_lag_s", id="lag"),
    pytest.param({"typo": 1}, None, id="unknown"),
]


@pytest.mark.parametrize(("plan", "field"), BAD_PLANS)
async def test_a_bad_plan_is_refused_whole(caller: Caller, plan: dict[str, Any], field: str | None) -> None:
    """A plan out of range is 400 naming the field, and the old plan stays."""
    await caller.faults(seed=3)
    expected = {"error": "invalid_request"} | ({"field": field} if field else {})
    assert await caller.faults(**plan) == (400, expected)
    assert (await caller.ask("GET", f"{caller.control_url}/v1/faults"))[1] == {**FAULT_DEFAULTS, "seed": 3}


async def test_a_lost_request_has_no_effect(caller: Caller) -> None:
    """The connection breaks without an answer and nothing happened; healed, the same reference goes through."""
    await caller.faults(lost_request=1)
    with pytest.raises(CUT):
        await caller.sale()
    assert await caller.inquire() == not_found()
    assert await caller.effects() is None
    await caller.faults()
    assert (await caller.sale())[1]["status"] == "captured"
    assert await caller.effects() == 1


async def test_a_lost_reply_has_its_effect(caller: Caller) -> None:
    """The connection breaks without an answer, yet the sale is captured; sending again changes nothing."""
    await caller.faults(lost_reply=1)
    for _ in range(2):
        with pytest.raises(CUT):
            await caller.sale()
    assert (await caller.inquire())["answer"]["status"] == "captured"
    assert await caller.effects() == 1


@pytest.mark.parametrize(("fault", "effects"), [("error_before", None), ("error_after", 1)])
async def test_an_error_says_nothing_about_the_effect(caller: Caller, fault: str, effects: int | None) -> None:
    """Both errors look the same to the client; only the truth knows which one had an effect."""
    await caller.faults(**{fault: 1})
    assert await caller.sale() == (500, {"error": "processor_error"})
    assert await caller.effects() == effects


async def test_a_truncated_answer_is_whole_to_http_only(caller: Caller) -> None:
    """The body agrees with its Content-Length and is no JSON; the sale is captured."""
    await caller.faults(truncated=1)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with caller.session.post(
        f"{caller.wire_url}/wire/sale", json=sale(), headers=headers, ssl=caller.tls
    ) as response:
        body = await response.read()
        assert (response.status, response.content_length) == (200, len(body))
    assert body.startswith(b'{"reference":"ref-1"')
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert await caller.effects() == 1


async def test_a_wrong_echo_gets_one_thing_wrong(caller: Caller) -> None:
    """Amount, reference or currency differs from what was asked, each of them sometimes; the truth is right."""
    await caller.faults(seed=1, wrong_echo=1)
    wrong = set()
    for number in range(12):
        _, answer = await caller.sale(f"ref-{number}0")
        asked = {"reference": f"ref-{number}0", "amount": 1234, "currency": "USD"}
        differing = {name for name, value in asked.items() if answer[name] != value}
        assert len(differing) == 1
        wrong |= differing
    assert wrong == {"amount", "reference", "currency"}
    assert {(row["amount"], row["effects"]) for row in (await caller.charges()).values()} == {(1234, 1)}


async def test_a_slow_answer_comes_after_its_effect(caller: Caller) -> None:
    """While the answer is held back the truth shows the effect already; the answer itself is right."""
    assert PACE.slow_s == 12
    await caller.faults(slow=1)
    started = time.monotonic()
    pending = asyncio.create_task(caller.sale())
    while await caller.effects() is None:
        await asyncio.sleep(0.01)
    assert not pending.done()
    assert (await pending)[1]["status"] == "captured"
    assert time.monotonic() - started >= HASTE.slow_s


async def test_a_slow_client_that_leaves_is_charged_all_the_same(caller: Caller) -> None:
    """A client that gives up waiting changes nothing about the effect."""
    await caller.faults(slow=1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(caller.sale(), 0.1)
    assert await caller.effects() == 1


async def test_a_refused_connection_never_starts_a_handshake(caller: Caller, stub: ProcessorStub) -> None:
    """The client fails while connecting, hence sent nothing; control is served; healed, the wire is too."""
    await caller.faults(refused=1)
    for _ in range(3):
        with pytest.raises(aiohttp.ClientConnectorError):
            await caller.sale()
        with pytest.raises(aiohttp.ClientConnectorError):
            await caller.inquire()
    assert await caller.charges() == {}
    with socket.create_connection(("127.0.0.1", stub.wire_port)) as bare, pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().run_in_executor(None, bare.recv, 1)
    await caller.faults()
    assert (await caller.sale())[0] == 200


async def test_a_kept_alive_connection_meets_the_refusal_too(caller: Caller) -> None:
    """A plan with refusals closes idle connections, so that the very next request is drawn for."""
    await caller.sale("before")
    await caller.faults(refused=1)
    with pytest.raises(aiohttp.ClientConnectorError):
        await caller.sale("after")
    assert set(await caller.charges()) == {"before"}


async def test_a_busy_connection_is_answered_and_then_closed(caller: Caller) -> None:
    """A request under way when refusals begin is answered in full, on a connection that ends with it."""
    await caller.faults(slow=1)
    pending = asyncio.create_task(caller.sale("under-way"))
    while await caller.effects("under-way") is None:
        await asyncio.sleep(0.01)
    await caller.faults(refused=1)
    assert (await pending)[1]["status"] == "captured"
    with pytest.raises(aiohttp.ClientConnectorError):
        await caller.sale("next")


async def test_every_request_meets_the_refusal_draw(caller: Caller) -> None:
    """At one half, some of forty requests in a row are refused and some served: none rides an old connection."""
    await caller.faults(seed=5, refused=0.5)
    expected = Faults()
    expected.set(FaultPlan(seed=5, refused=0.5))
    schedule = [expected.refuse_connection() for _ in range(40)]
    seen = []
    for number in range(40):
        try:
            await caller.sale(f"ref-{number}")
            seen.append(False)
        except aiohttp.ClientConnectorError:
            seen.append(True)
    assert seen == schedule
    assert {True, False} == set(seen)


async def test_an_inquiry_lags_behind_the_effect(caller: Caller, clock: Clock) -> None:
    """Inquiry answers `not_found` until the effect is as old as the lag; the truth shows it at once."""
    await caller.faults(inquiry_lag_s=30)
    await caller.sale()
    clock.now += 29.9
    assert await caller.inquire() == not_found()
    assert await caller.effects() == 1
    clock.now += 0.1
    assert (await caller.inquire())["status"] == "found"


async def test_a_clock_set_back_hides_nothing(caller: Caller, clock: Clock) -> None:
    """A row from the future is still a row, and still deduped."""
    await caller.sale()
    clock.now -= 3600
    assert (await caller.inquire())["status"] == "found"
    await caller.sale()
    assert await caller.effects() == 1


async def test_inquiry_is_struck_by_its_own_faults_only(caller: Caller) -> None:
    """What strikes movements leaves inquiries alone, but for `slow`."""
    await caller.sale()
    movements = ("lost_request", "lost_reply", "error_before", "error_after", "truncated", "wrong_echo")
    await caller.faults(**dict.fromkeys(movements, 1))
    assert (await caller.inquire())["status"] == "found"
    await caller.faults(slow=1)
    started = time.monotonic()
    await caller.inquire()
    assert time.monotonic() - started >= HASTE.slow_s


@pytest.mark.parametrize("fault", ["lost_request", "lost_reply"])
@pytest.mark.parametrize("route", ["authorize", "capture", "void", "refund", "verify"])
async def test_every_movement_is_struck_like_a_sale(caller: Caller, route: str, fault: str) -> None:
    """Whatever moves money, and a verification, meets the same schedule."""
    await (caller.sale() if route == "refund" else caller.authorize())
    bodies = {"authorize": sale("struck"), "verify": {"reference": "struck", "card": card()}}
    await caller.faults(**{fault: 1})
    with pytest.raises(CUT):
        await caller.wire(route, bodies.get(route, follow_up("struck")))
    assert (await caller.inquire("struck"))["status"] == ("not_found" if fault == "lost_request" else "found")


@pytest.mark.parametrize("fault", ["lost_request", "error_before"])
async def test_a_cancel_that_is_lost_cancels_nothing(caller: Caller, fault: str) -> None:
    """A cancel that never arrived, or failed before it acted, leaves the reference usable."""
    await caller.faults(**{fault: 1})
    await _outcome(caller.cancel())
    await caller.faults()
    assert await caller.tombstones() == []
    assert (await caller.sale())[1]["status"] == "captured"


@pytest.mark.parametrize("fault", ["lost_reply", "error_after", "truncated", "wrong_echo"])
async def test_a_cancel_that_is_told_badly_holds(caller: Caller, fault: str) -> None:
    """A cancel that was done is done, whatever becomes of its answer."""
    await caller.faults(**{fault: 1})
    await _outcome(caller.cancel())
    await caller.faults()
    assert [each["reference"] for each in await caller.tombstones()] == ["ref-1"]
    assert (await caller.sale())[1]["status"] == "cancelled"


async def test_a_wrong_echo_of_a_cancel_is_about_something_else(caller: Caller) -> None:
    """Void is said of another reference; of what was decided, one thing is said wrong."""
    _, sold = await caller.sale("sold")
    await caller.faults(seed=1, wrong_echo=1)
    assert (await caller.cancel("r-10"))[1] == {"status": "cancelled", "reference": "r-11"}
    wrong = set()
    for _ in range(12):
        _, found = await caller.cancel("sold")
        assert (found["status"], found["kind"]) == ("found", "sale")
        differing = {name for name, value in sold.items() if found["answer"][name] != value}
        assert len(differing) == 1
        wrong |= differing
    assert wrong == {"amount", "reference", "currency"}


async def _outcome(attempt: Awaitable[tuple[int, Any]]) -> str:
    try:
        status, answer = await attempt
    except CUT:
        return "cut"
    except json.JSONDecodeError:
        return "truncated"
    return f"{status} {answer.get('status', answer.get('error'))}"


async def _history(
    caller: Caller, prefix: str, *, inquiring: bool = False, **plan: Any
) -> list[tuple[str, int | None]]:
    await caller.faults(**plan)
    outcomes = []
    for number in range(30):
        outcomes.append(await _outcome(caller.sale(f"{prefix}-{number}")))
        if inquiring:
            await caller.inquire(f"{prefix}-{number}")
            await _outcome(caller.cancel(f"{prefix}-{number}-other"))
    rows = await caller.charges()
    effects = [rows.get(f"{prefix}-{number}", {}).get("effects") for number in range(30)]
    return list(zip(outcomes, effects, strict=True))


async def test_a_seed_is_a_schedule(caller: Caller) -> None:
    """The same seed strikes the same movements, whatever inquiries and cancels come between; another seed others."""
    plan: dict[str, Any] = {"lost_request": 0.2, "lost_reply": 0.3, "error_after": 0.2}
    first = await _history(caller, "a", seed=7, **plan)
    assert {"cut", "500 processor_error", "200 captured"} == {outcome for outcome, _ in first}
    assert first == await _history(caller, "b", seed=7, inquiring=True, **plan)
    assert first != await _history(caller, "c", seed=8, **plan)


def _struck(plan: FaultPlan) -> list[str | None]:
    faults = Faults()
    faults.set(plan)
    return [faults.strike_movement().fault for _ in range(400)]


def test_a_probability_shifts_no_other_draw() -> None:
    """Adding a fault takes requests from those untouched; the requests that another fault struck stay struck."""
    alone = _struck(FaultPlan(seed=11, lost_reply=0.3))
    together = _struck(FaultPlan(seed=11, lost_reply=0.3, wrong_echo=0.5, slow=0.5, refused=0.5))
    assert [each == "lost_reply" for each in alone] == [each == "lost_reply" for each in together]
    assert 80 < alone.count("lost_reply") < 160
    assert "wrong_echo" in together


# --- memory ---------------------------------------------------------------------------------------------------


async def _restarted(pki: Pki, memory: Path, session: aiohttp.ClientSession) -> tuple[ProcessorStub, Caller]:
    server = ProcessorStub(config(pki, memory))
    await server.start()
    return server, Caller(session, pki.client_context(), server.control_port, server.wire_port)


async def test_memory_survives_a_restart_and_faults_do_not(pki: Pki, tmp_path: Path) -> None:
    """Rows and dedupe outlive the process; a restart heals."""
    async with aiohttp.ClientSession() as session:
        server, caller = await _restarted(pki, tmp_path / "m.db", session)
        await caller.sale()
        before = await caller.charges()
        await caller.faults(lost_request=1)
        await server.stop()
        server, caller = await _restarted(pki, tmp_path / "m.db", session)
        assert await caller.charges() == before
        await caller.sale()
        assert await caller.effects() == 1
        await server.stop()


CHILD = """
import asyncio, sys
from pathlib import Path
from gateway.processor.stub.server import StubConfig, run
cert, key, memory, control, wire, secret = sys.argv[1:]
asyncio.run(run(StubConfig("127.0.0.1", int(control), int(wire), Path(cert), Path(key), secret, Path(memory))))
"""


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


async def _until_listening(caller: Caller) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await caller.charges()
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_an_answered_sale_survives_kill_9(pki: Pki, tmp_path: Path) -> None:
    """What was answered before `kill -9` is there after it, and is deduped still."""
    control, wire = _free_ports()
    memory = tmp_path / "m.db"
    arguments = [str(each) for each in (pki.cert, pki.key, memory, control, wire, KEY)]
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *arguments)
    try:
        async with aiohttp.ClientSession() as session:
            caller = Caller(session, pki.client_context(), control, wire)
            await _until_listening(caller)
            answers = await asyncio.gather(*(caller.sale(f"ref-{n}") for n in range(20)))
            os.kill(child.pid, signal.SIGKILL)
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
    async with aiohttp.ClientSession() as session:
        server, caller = await _restarted(pki, memory, session)
        rows = await caller.charges()
        assert {name: row["effects"] for name, row in rows.items()} == {f"ref-{n}": 1 for n in range(20)}
        assert await asyncio.gather(*(caller.sale(f"ref-{n}") for n in range(20))) == answers
        assert {row["effects"] for row in (await caller.charges()).values()} == {1}
        await server.stop()


def test_every_commit_is_synced(tmp_path: Path) -> None:
    """SQLite runs with a write-ahead log and `synchronous=FULL` (2): only a power cut could tell."""
    book = Book(tmp_path / "m.db", time.time)
    assert book._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert book._db.execute("PRAGMA synchronous").fetchone()[0] == 2
    book.close()


async def test_the_files_hold_nothing_of_a_card(caller: Caller, stub: ProcessorStub, tmp_path: Path) -> None:
    """Number, name, expiry and CVC are in no byte of the memory, running or closed; the reference is."""
    odd = card(number="4012888888881881", exp_month=11, exp_year=2093, cvc="9173")
    await caller.sale("reference-to-find", card=odd)
    await caller.verify("v", **odd)
    running = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    await stub.stop()
    closed = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    for content in (running, closed):
        assert b"reference-to-find" in content
        for secret in (b"401288", b"8888881881", HOLDER.encode(), b"Ramona", b"2093", b"9173"):
            assert secret not in content
    assert (tmp_path / "memory.db").stat().st_mode & 0o077 == 0


async def test_one_memory_has_one_process(pki: Pki, stub: ProcessorStub, tmp_path: Path) -> None:
    """A second double over the same file is refused at start, and leaves no listener behind."""
    second = ProcessorStub(config(pki, tmp_path / "memory.db"))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        await second.start()


async def test_a_busy_port_is_an_error_that_leaves_nothing_behind(
    pki: Pki, stub: ProcessorStub, tmp_path: Path
) -> None:
    """A taken control port fails the start, closes the wire again and frees the memory for another try."""
    wire = _free_ports()[0]
    memory = tmp_path / "other.db"
    second = ProcessorStub(config(pki, memory, wire_port=wire, control_port=stub.control_port))
    with pytest.raises(OSError, match="in use"):
        await second.start()
    third = ProcessorStub(config(pki, memory, wire_port=wire))
    await third.start()
    await third.stop()


async def test_a_failed_handshake_harms_nobody_else(caller: Caller, stub: ProcessorStub) -> None:
    """Plain text, a reset and silence on the wire port leave the next client served."""
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", stub.wire_port)) as bare:
            bare.sendall(sent)
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.create_connection(("127.0.0.1", stub.wire_port)):
        assert (await caller.sale())[0] == 200
