"""What the pages and files of finance must hold against: odd queries, card numbers, full disks, killed processes."""

import asyncio
import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gateway.services.scratch import PREFIX, clear_scratch, scratch
from tests.gateway.formats.files import line, native
from tests.gateway.web.site import Site

pytestmark = pytest.mark.server

CARD = "4242424242424242"
LISTS = ("exceptions", "closes", "settlements", "deposits", "reconciliations", "charges", "audit")
SETTLEMENTS = "/admin/v1/settlements"
CSV = {"Content-Type": "text/csv"}


@pytest.fixture
async def auditor(site: Site) -> str:
    """A session of an auditor."""
    return await site.token(await site.person("auditor"))


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("after", ["%00", "a%0Ab", "%C2%9F", CARD])
async def test_a_place_in_a_list_that_none_can_be(site: Site, auditor: str, name: str, after: str) -> None:
    """What no database takes, and a card number, is the caller's mistake, for scripts and for people."""
    for reply in (
        await site.call("GET", f"/admin/v1/{name}?starting_after={after}", token=auditor),
        await site.browse("GET", f"/{name}?starting_after={after}", token=auditor),
    ):
        assert reply.status in {400, 404, 422}
        assert CARD.encode() not in reply.body


@pytest.mark.parametrize(
    "path",
    [
        *(f"/exceptions?owner={CARD}", f"/exceptions?from={CARD}", f"/exceptions?owner={CARD}&from=x"),
        *(f"/exports?from={CARD}", f"/exports?kind=charges&department={CARD}", f"/exports?id={CARD}"),
        *(f"/exports/file?kind=reconciliation&format=csv&id={CARD}", f"/exports/file?kind={CARD}"),
        f"/charges?reference={CARD}&from=x",
    ],
)
async def test_no_form_shows_a_card_number_again(site: Site, auditor: str, path: str) -> None:
    """Whatever else is wrong with the question."""
    assert CARD.encode() not in (await site.browse("GET", path, token=auditor)).body


@pytest.mark.parametrize("day", ["0001-01-01", "1999-12-31", "2100-01-01", "9999-12-31"])
async def test_dates_that_no_close_has(site: Site, finance: str, day: str) -> None:
    """Of a year whose neighbours no calendar has, too."""
    reply = await site.call("POST", "/admin/v1/closes", {"from": day, "to": day}, finance)
    assert (reply.status, reply.json["type"].rpartition("/")[2]) == (422, "period-refused")


async def test_a_refused_form_of_a_close_has_no_card_number(site: Site, finance: str) -> None:
    """Neither among the dates nor as the department."""
    csrf = await site.csrf(finance)
    for typed in ({"from": CARD, "to": "y", "department": ""}, {"from": "x", "to": "y", "department": CARD}):
        reply = await site.browse("POST", "/closes", {"csrf": csrf} | typed, finance)
        assert reply.status == 400
        assert CARD.encode() not in reply.body


async def test_a_full_disk_takes_no_place_for_ever(site: Site, finance: str) -> None:
    """503, and once there is room again files are taken; as many times as it happens."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    room = 1024 * 1024
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
    try:
        for size in (room + 500, room + 500, 3 * room):
            reply = await site.send(
                "POST", SETTLEMENTS, io.BytesIO(b"x" * size), CSV | {"Authorization": f"Bearer {finance}"}
            )
            assert (reply.status, "no room" in reply.json["detail"]) == (503, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert (await site.call("POST", SETTLEMENTS, native([line()]), finance, **CSV)).status == 201


async def test_no_file_where_none_can_be_made(site: Site, finance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder that is gone: 503, and no place is lost."""
    with monkeypatch.context() as away:
        away.setattr(tempfile, "tempdir", "/nowhere/at/all")
        for _ in range(3):
            assert (await site.call("POST", SETTLEMENTS, b"x", finance, **CSV)).status == 503
    assert (await site.call("POST", SETTLEMENTS, b"x", finance, **CSV)).status == 422


async def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that nobody works in any more; one that is in use stays, and so does what is not ours."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = "import gateway.services.scratch as s, time\nwith s.scratch() as f: print(f, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", work], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = Path((await asyncio.to_thread(process.stdout.readline)).strip())
    (left / "export.csv").write_text("some")
    (tmp_path / f"{PREFIX}link").symlink_to(left)
    clear_scratch()
    assert (left / "export.csv").exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with scratch() as mine:
        clear_scratch()
        assert (mine.exists(), left.exists()) == (True, False)
    assert [each.name for each in tmp_path.iterdir()] == [f"{PREFIX}link"]


async def test_whoever_reconciles_leaves_connections_for_others(site: Site, finance: str) -> None:
    """A dozen runs at once, all of which have to wait: pages are served meanwhile, and in the end each was made."""
    days = {"from": "2024-02-29", "to": "2024-02-29"}
    lock = "hashtextextended('gateway.closes', 0)"
    await site.owner.execute(f"SELECT pg_advisory_lock({lock})")
    try:
        runs = [asyncio.create_task(site.call("POST", "/admin/v1/reconciliations", days, finance)) for _ in range(12)]
        await asyncio.sleep(0.5)
        assert (await site.browse("GET", "/reconciliations", token=finance)).status == 200
    finally:
        await site.owner.execute(f"SELECT pg_advisory_unlock({lock})")
    assert {run.status for run in await asyncio.gather(*runs)} == {201}
