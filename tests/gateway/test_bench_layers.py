"""`gateway bench --layers`: what is said to be off is off, in that window alone; what cuts a layer out still fits."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from gateway.bench import layers, report, without
from gateway.bench.course import Course, Plan, Results, Window
from gateway.bench.layers import PRODUCT, WINDOWS, enter_layers
from gateway.bench.system import generating, running
from gateway.cli import main
from gateway.clock import SystemClock
from gateway.store import ledger, postgres
from keys import envelope
from keys.audit import AuditPen
from keys.envelope import Place, seal, unseal
from keys.primitives import new_key
from keys.secret import Secret
from tests.gateway.test_config import MINIMAL

CUT: Mapping[str, Sequence[tuple[Any, str]]] = {
    "audit-rows": [(postgres, "audit_values"), (postgres, "conclude"), (ledger, "conclude"), (AuditPen, "row")],
    "key-commitment": [(envelope, "COMMITMENT_BYTES")],
}
"""What each cut puts something else in the place of."""
NAMES = [(layer, owner, name) for layer, names in CUT.items() for owner, name in names]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Whatever a test cuts out is put back at its end."""
    for _, owner, name in NAMES:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    return monkeypatch


@pytest.mark.parametrize(("layer", "owner", "name"), NAMES)
def test_a_cut_that_does_not_fit_any_more_measures_nothing(
    layer: str, owner: Any, name: str, whole: pytest.MonkeyPatch
) -> None:
    """Where the product has a name no more, the process that was to go without it does not start."""
    whole.delattr(owner, name)
    with pytest.raises(AttributeError, match=name):
        without.CUTS[layer]()


@pytest.mark.parametrize("layer", CUT)
def test_no_other_gateway_goes_without_a_layer(layer: str, tmp_path: Path, whole: pytest.MonkeyPatch) -> None:
    """With the settings of any environment but the benchmark's the process ends at once, and has cut nothing."""
    before = [getattr(owner, name) for _, owner, name in NAMES]
    (tmp_path / "gateway.toml").write_text(MINIMAL)
    whole.setenv("GATEWAY_CONFIG", str(tmp_path / "gateway.toml"))
    whole.setattr(sys, "argv", ["without", layer])
    with pytest.raises(SystemExit, match="only `gateway bench`"):
        without.main()
    assert [getattr(owner, name) for _, owner, name in NAMES] == before


def test_without_the_commitment_a_record_is_shorter_and_opens(whole: pytest.MonkeyPatch) -> None:
    """What is left is AES-GCM under a derived key: 32 bytes less, and it opens as before."""
    dek, place, content = new_key(), Place("test", "parks", "tok_1"), Secret(bytes(128))
    with_it = seal(dek, place, "card/v1", content)
    without.key_commitment()
    sealed = seal(dek, place, "card/v1", content)

    assert len(with_it) - len(sealed) == 32
    assert unseal(dek, place, "card/v1", sealed).reveal() == content.reveal()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that PostgreSQL's user may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-layers-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.server
async def test_each_layer_is_off_in_its_own_window_and_nowhere_else(place: Path) -> None:
    """Every variant answers 201; one writes no audit row, one seals 32 bytes less, one meets no guard of rows."""
    unaudited, unguarded, shortest = set(), set(), {}
    async with AsyncExitStack() as stack:
        system = await stack.enter_async_context(running(place, 1))
        generator = await stack.enter_async_context(generating(place))
        course = Course(system, generator, Plan(WINDOWS, rounds=1, seconds=0.2))
        await course.prepare(stack, _nowhere)
        await enter_layers(course, stack)
        wiping = _wiping(place)
        owner, api = await system.connect(), await system.connect("api")
        before = await _stored(owner, SystemClock().now())
        for name in WINDOWS:
            async with _watching(api) as saw_rows:
                windows = await course.once(name)
            after = await _stored(owner, before["moment"])
            assert windows[name].rate > 0
            assert after["tokens"] > before["tokens"]
            if after["events"] == before["events"]:
                unaudited.add(name)
            else:
                assert after["events"] - before["events"] == after["tokens"] - before["tokens"]
            if saw_rows:
                unguarded.add(name)
            shortest[name], before = after["shortest"], after
        guards = await owner.fetch(system.sql.guarded)
        await owner.close()
        await api.close()

    assert course.results.missing == {}
    assert unaudited == {"no audit rows"}
    assert unguarded == {"no row-level security"}
    assert {name for name, size in shortest.items() if size == shortest[PRODUCT] - 32} == {"no key commitment"}
    assert len(set(shortest.values())) == 2
    assert "gateway.tokens" in {row["name"] for row in guards}
    assert wiping == (1 if os.geteuid() == 0 else 0)  # the kernel shows an api's environment to nobody but root


STORED = """
    SELECT (SELECT count(*) FROM gateway.tokens) AS tokens, (SELECT count(*) FROM audit.events) AS events,
           clock_timestamp() AS moment,
           (SELECT min(length(sealed)) FROM gateway.tokens WHERE created_at > $1) AS shortest
"""


async def _stored(owner: asyncpg.Connection, since: datetime) -> asyncpg.Record:
    (found,) = await owner.fetch(STORED, since)
    return found


async def _nowhere(_steps: int) -> None:
    """Nobody looks at how far it is."""


@asynccontextmanager
async def _watching(api: asyncpg.Connection) -> AsyncIterator[list[bool]]:
    """While it lasts, note whenever the api's role sees a token without having named a department."""
    seen: list[bool] = []

    async def look() -> None:
        while True:
            if await api.fetchval("SELECT EXISTS (SELECT FROM gateway.tokens)"):
                seen.append(True)
            await asyncio.sleep(0.02)

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


def _wiping(place: Path) -> int:
    """How many processes of a gateway in this folder have an allocator that wipes, as far as we may see."""
    wanted = {f"GATEWAY_HOME={place}", *(f"{name}={value}" for name, value in layers.WIPE.items())}
    found = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            found += entry.name.isdecimal() and wanted <= set((entry / "environ").read_text().split("\0"))
    return found


def test_a_cost_is_the_difference_within_a_round() -> None:
    """Rates and CPU of both sides, the product's own first or second; the share is that of the product's CPU."""
    weather = (1.0, 2.0, 10.0)
    rounds = [
        {
            PRODUCT: Window(PRODUCT, 900 / w, cpu_ms={"server": 80 * w, "postgres": 20 * w}),
            "no audit rows": Window("", 1000 / w, cpu_ms={"server": 70 * w, "postgres": 10 * w}),
            "wiped memory": Window("", 450 / w, cpu_ms={"server": 110 * w, "postgres": 20 * w}),
        }
        for w in weather
    ]
    audit, wiping = report.costs(rounds)

    assert (audit.lowest, audit.ratio, audit.highest) == pytest.approx((0.9, 0.9, 0.9))
    assert (audit.with_it.server_us, audit.without.server_us) == (160, 140)
    assert (audit.cost_us, audit.share) == pytest.approx((40, 0.2))
    assert (wiping.ratio, wiping.cost_us, wiping.share) == pytest.approx((0.5, 60, 0.3))
    told = report.cost_lines(Results(rounds=rounds, missing={"twin": "it said nothing"}))
    assert "450, 500" in told[3]
    assert told[-1] == "not measured: twin: it said nothing"
    assert ", 1 round;" in report.cost_lines(Results(rounds=rounds[:1]))[0]


@pytest.mark.parametrize(
    "options",
    ["--soak 1 --growth 10,20", "--soak 1", "--only tokens", "--plot x.svg", "--workers 2"],
)
def test_what_layers_cannot_be_asked_for_with_is_refused(options: str) -> None:
    """Before anything is started: wrong usage, with the option that does not go with it."""
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    done = CliRunner().invoke(main.app, ["bench", "--layers", *options.split()], env=wide)
    assert done.exit_code == 2
    assert options.split(maxsplit=1)[0] in done.output
    assert "--layers" in done.output
