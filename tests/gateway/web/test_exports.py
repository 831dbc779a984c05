"""Exports over the wire, read back by other programs: the same rows, text that stays text, and nobody else's."""

import asyncio
import csv
import io
import shutil
import ssl
import subprocess
import tempfile
import zipfile
from base64 import b64decode
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from gateway.services import exports as exports_module
from gateway.services.sheets import neutral
from tests.gateway.store.postgres import HOST, SERVICE
from tests.gateway.web.office import NOON, Office, day, office_of
from tests.gateway.web.site import Site
from tests.system import Reply

pytestmark = pytest.mark.server

PATH = "/admin/v1/exports"
FORMULA = '=HYPERLINK("http://x","y")'
DATES = {"from_": day(NOON), "to": day(NOON + timedelta(9))}


@pytest.fixture(scope="module")
async def office(site: Site) -> Office:
    """Three charges: a plain one, one that is partly refunded, one with a formula for a reference."""
    office = await office_of(site, "finance")
    await office.paid(2_000)
    await office.paid(3_150, days=1, refunded=1_250, service=SERVICE)
    await office.paid(101, days=2, reference=FORMULA)
    return office


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are made, and nobody else's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


async def export(office: Office, **asked: str) -> Reply:
    """A file."""
    reply = await office.get(PATH, **({"kind": "charges", "format": "csv"} | asked))
    assert reply.status == 200, reply.body
    return reply


def of_csv(reply: Reply) -> list[list[str]]:
    """As another program reads it; a `'` that neutralizes is taken away again."""
    text = reply.body.decode()
    assert text.count("\r\n") == text.count("\n") > 0
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    return [[cell[1:] if cell[:1] == "'" and neutral(cell[1:]) == cell else cell for cell in row] for row in rows]


def of_xlsx(reply: Reply) -> list[list[str]]:
    """As another program reads it; amounts with two digits."""
    sheet = openpyxl.load_workbook(io.BytesIO(reply.body)).active
    assert sheet is not None
    rows = []
    for row in sheet.iter_rows():
        assert {cell.data_type for cell in row} <= {"s", "n"}
        rows.append(
            [f"{cell.value:.2f}" if isinstance(cell.value, int | float) else cell.value or "" for cell in row]
        )
    return rows


READERS: dict[str, Callable[[Reply], list[list[str]]]] = {"csv": of_csv, "xlsx": of_xlsx}


@pytest.mark.parametrize("form", READERS)
async def test_what_is_read_back_is_what_was_paid(office: Office, form: str) -> None:
    """Every charge once, in order, amounts as decimals, and below them the ledger's own sums."""
    header, *rows, last = READERS[form](await export(office, format=form, **DATES))

    at = {name: header.index(name) for name in header}
    assert header[:4] == ["date", "created", "charge", "department"]
    assert [row[at["date"]] for row in rows] == ["2026-10-05", "2026-10-06", "2026-10-07"]
    assert [row[at["reference"]] for row in rows] == ["R-1", "R-1", FORMULA]
    assert [row[at["gl_codes"]] for row in rows] == ["unmapped", "1", "unmapped"]
    assert [(row[at["amount"]], row[at["refunded"]]) for row in rows] == [
        *(("20.00", "0.00"), ("31.50", "12.50"), ("1.01", "0.00"))
    ]
    [ledger] = await office.site.owner.fetch(
        "SELECT sum(captured_minor), sum(refunded_minor) FROM gateway.charges WHERE department_id = $1",
        office.department,
    )
    assert last[0] == "Total of 3"
    assert [Decimal(last[at[name]]) * 100 for name in ("captured", "refunded")] == list(ledger)
    assert {len(row) for row in (header, *rows, last)} == {len(header)}


async def test_both_forms_hold_the_same(office: Office) -> None:
    """Cell by cell."""
    for kind in ("charges", "journal"):
        csv_file, xlsx_file = [await export(office, kind=kind, format=form, **DATES) for form in READERS]
        assert of_csv(csv_file) == of_xlsx(xlsx_file)


async def test_95_a_formula_is_text(office: Office) -> None:
    """In CSV behind a `'`, in XLSX in a cell of text that stays one; no cell is a formula."""
    text = (await export(office, **DATES)).body.decode()
    book = await export(office, format="xlsx", **DATES)

    assert f'"\'{FORMULA.replace(chr(34), chr(34) * 2)}"' in text
    sheet = zipfile.ZipFile(io.BytesIO(book.body)).read("xl/worksheets/sheet1.xml")
    styles = zipfile.ZipFile(io.BytesIO(book.body)).read("xl/styles.xml")
    assert b"<f>" not in sheet
    assert b"hyperlink" not in sheet.lower().replace(b"=hyperlink(", b"")
    assert b'quotePrefix="1"' in styles


def test_95_an_office_program_opens_it_as_text(tmp_path: Path) -> None:
    """Where there is one here, it shows the formula's letters and not its result."""
    program = shutil.which("soffice")
    if program is None:
        return
    given = tmp_path / "given.csv"
    given.write_text(f"{neutral('=1+1')},=1+1\r\n", newline="")
    profile = f"-env:UserInstallation={(tmp_path / 'profile').as_uri()}"
    command = [program, profile, "--headless", "--convert-to", "xlsx", "--outdir", str(tmp_path), str(given)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    sheet = openpyxl.load_workbook(tmp_path / "given.xlsx").active
    assert sheet is not None
    (row,) = sheet.iter_rows()
    assert [cell.data_type for cell in row] == ["s", "f"]
    assert "=1+1" in str(row[0].value)


@pytest.mark.parametrize(
    "text",
    [
        *("=1", "+1", "-1", "@x", "\tx", "\rx", "\nx", " =1", '"=1', "''=1", "\u3000=1", "\ufeff=1"),
        *("\uff1d1", "\uff0b1", "\uff0d1", "\uff201", "\u22121", "\ufe631", "-", "=cmd|' /C calc'!A0"),
        *("\u2003=1", "\u200b=1", "\u2060=1", "\u202e=1", "\u2028=1", "\uff02=1", "\uff07=1", "\x0b=1", "\x85=1"),
    ],
)
def test_95_what_begins_like_a_formula_is_neutral(text: str) -> None:
    """Signs, tabs and line ends, also full-width and behind quotes and what shows nothing; it can be told back."""
    assert neutral(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "R-1", "a=b", "O'Neil", "'quoted'", "2026-10-05", "(1)", "é"])
def test_plain_text_stays_as_it_is(text: str) -> None:
    """A mark in the middle makes no formula."""
    assert neutral(text) == text


async def test_the_journal_is_the_ledger_with_its_codes(site: Site) -> None:
    """Each entry with its codes, split so that no cent is lost; postings beside them; the last row is the sum."""
    office = await office_of(site, "auditor")
    for code, share in (("101-1", 1), ("101-2", 2)):
        await site.owner.execute(
            "INSERT INTO gateway.gl_codes VALUES ($1, $2, '2026-10-06', $3, $4)",
            *(office.department, SERVICE, code, share),
        )
    for days in (0, 1):
        await office.paid(1_000, days=days, service=SERVICE)
    await site.owner.execute(
        "INSERT INTO gateway.postings VALUES ($1, 'po_1', 1, 'clearing', 'processor_due', 970, 'USD', '2026-10-06',"
        " 'settlement', 'im_1', now())",
        office.department,
    )
    header, *rows, last = of_csv(await export(office, kind="journal", **DATES))

    told = [(row[0], row[3], row[7], row[8], row[9], row[11]) for row in rows]
    assert told == [
        ("2026-10-05", "sale", "processor_due", "receivable", "1", "10.00"),
        ("2026-10-06", "sale", "processor_due", "receivable", "101-1", "3.33"),
        ("2026-10-06", "sale", "processor_due", "receivable", "101-2", "6.67"),
        ("2026-10-06", "settlement", "clearing", "processor_due", "unmapped", "9.70"),
    ]
    assert (header[-1], last[-1]) == ("amount", "29.70")


async def test_a_reconciliation_is_exported_by_its_id(office: Office) -> None:
    """With its own dates in the name; without an id, or with a foreign one, there is none."""
    made = await office.reconciled("+1 unknown")
    reply = await export(office, kind="reconciliation", id=made)
    header, row, last = of_csv(reply)

    assert dict(zip(header, row, strict=True)) | {"reference": "+1 unknown", "settled": "-12.50"} == dict(
        zip(header, row, strict=True)
    )
    assert (last[header.index("settled")], last[header.index("fee")]) == ("-12.50", "0.30")
    assert "reconciliation_2026-10-05_2026-10-05.csv" in reply.headers["Content-Disposition"]
    assert (await office.get(PATH, kind="reconciliation", format="csv")).status == 400
    stranger = await office_of(office.site, "finance")
    assert (await stranger.get(PATH, kind="reconciliation", format="csv", id=made)).status == 404


async def test_96_other_departments_are_never_in_it(office: Office) -> None:
    """Not their rows, not by asking for them, in no kind of export."""
    neighbour = await office_of(office.site, "finance")
    theirs = await neighbour.paid(5_555, reference="THEIRS")

    for kind in ("charges", "journal"):
        text = (await export(office, kind=kind, **DATES)).body.decode()
        assert theirs.charge_id not in text
        assert neighbour.department not in text
        asked = {"kind": kind, "format": "csv", "department": neighbour.department}
        assert (await office.get(PATH, **asked, **DATES)).status == 404


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        *((422, {"from_": "2026-10-05", "to": to}) for to in ("2026-10-04", "2027-11-10", "2126-10-05")),
        (422, {"from_": "2026-10-05"}),
        *((400, {"from_": "2026-10-05", "to": to}) for to in ("10000-01-01", "2026-10-05T00:00:00+14:00", "../etc")),
        *((400, {"format": form} | DATES) for form in ("", "ods", "csv\r\nX: y")),
        (400, {"kind": "tokens"} | DATES),
        (404, {"department": 'x"\r\nSet-Cookie: a=b'} | DATES),
    ],
)
async def test_96_104_what_cannot_be_exported_is_refused(office: Office, status: int, asked: dict[str, str]) -> None:
    """A hundred years, no dates, a form that is none, a header smuggled in: refused, and nothing is written down."""
    before = await office.site.audited(office.person)
    reply = await office.get(PATH, **({"kind": "charges", "format": "csv"} | asked))

    assert reply.status in {status, 400}
    assert "Set-Cookie" not in reply.headers
    assert [event for event in await office.site.audited(office.person) if event == "export.made"] == [
        event for event in before if event == "export.made"
    ]


async def test_96_a_file_comes_whole_under_a_safe_name_and_is_written_down(office: Office) -> None:
    """Its length and hash are those of its bytes, it is no page, and the audit row says how much it was."""
    reply = await export(office, format="xlsx", department=office.department, **DATES)
    name, _, rest = reply.headers["Repr-Digest"].partition("=:")

    assert (name, b64decode(rest.rstrip(":"))) == ("sha-256", sha256(reply.body).digest())
    assert reply.headers["Content-Length"] == str(len(reply.body))
    assert reply.headers["Content-Disposition"] == 'attachment; filename="charges_2026-10-05_2026-10-14.xlsx"'
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    [row] = await office.site.owner.fetch(
        "SELECT department_id, reason, outcome FROM audit.events WHERE actor = $1 AND event = 'export.made'"
        " ORDER BY occurred_at DESC LIMIT 1",
        office.person.staff_id,
    )
    assert tuple(row) == (office.department, "charges.xlsx.3", "done")


async def test_no_card_and_no_sealed_byte_is_in_it(office: Office) -> None:
    """The columns are these, and none of them is of a cardholder."""
    names = {column.name for columns in exports_module.COLUMNS.values() for column in columns}

    assert not {
        name for name in names for word in ("pan", "number", "email", "name", "sealed", "token") if word in name
    }
    assert of_csv(await export(office, **DATES))[0] == [column.name for column in exports_module.COLUMNS["charges"]]


async def test_too_many_rows_are_no_file(office: Office, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than may be: refused whole, in both forms, and no temporary file stays."""
    monkeypatch.setattr(exports_module, "ROWS_MAX", 2)
    for form in READERS:
        reply = await office.get(PATH, kind="charges", format=form, **DATES)
        assert (reply.status, reply.json["type"].rpartition("/")[2]) == (422, "export-too-large")
    assert list(place.iterdir()) == []


async def test_two_at_once_and_no_more(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third is asked to wait, and both others come whole."""
    waiting, go = asyncio.Event(), asyncio.Event()
    begun = 0
    write = exports_module._write

    async def slow(*given: Any) -> int:
        nonlocal begun
        begun += 1
        if begun == exports_module.AT_ONCE_MAX:
            waiting.set()
        await go.wait()
        return await write(*given)

    monkeypatch.setattr(exports_module, "_write", slow)
    async with asyncio.timeout(10), AsyncExitStack() as stack:
        stack.callback(go.set)
        first = [asyncio.create_task(export(office, **DATES)) for _ in range(2)]
        await waiting.wait()
        third = await office.get(PATH, kind="charges", format="csv", **DATES)
        go.set()
        replies = await asyncio.gather(*first)
    assert (third.status, third.headers["Retry-After"]) == (503, "1")
    assert replies[0].body == replies[1].body


async def test_96_a_download_that_is_cut_leaves_nothing(office: Office, place: Path) -> None:
    """The client goes after a few bytes of a file that is longer than what is under way; its place is free again."""
    neighbour = await office_of(office.site, "finance")
    await neighbour.paid(100)
    columns = (
        "application_id, token_id, amount_minor, currency, convenience_fee_minor, captured_minor, refunded_minor,"
        " cvc_check, created_at, kind, progress"
    )
    await office.site.owner.execute(
        f"INSERT INTO gateway.charges (department_id, charge_id, reference, processor_reference, {columns})"
        f" SELECT department_id, charge_id || n, repeat('r', 200), processor_reference || n, {columns}"
        " FROM gateway.charges CROSS JOIN generate_series(1, 12000) n WHERE department_id = $1",
        neighbour.department,
    )
    for _ in range(exports_module.AT_ONCE_MAX):
        await _cut(neighbour)
        assert list(place.iterdir()) != []
    async with asyncio.timeout(30):
        while list(place.iterdir()):
            await asyncio.sleep(0.02)
    assert (await neighbour.get(PATH, kind="charges", format="csv", **DATES)).status == 200


async def _cut(office: Office) -> None:
    port = int(office.site.url.rpartition(":")[2])
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(HOST, port, ssl=tls)
    target = f"{PATH}?kind=charges&format=csv&from={DATES['from_']}&to={DATES['to']}"
    head = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {office.token}\r\n\r\n"
    writer.write(head.encode())
    assert b" 200 " in await reader.readline()
    writer.transport.abort()


async def test_the_page_has_a_form_that_downloads(office: Office) -> None:
    """Without script: a GET form whose address is the file; refused, it comes back with a sentence."""
    page = (await office.page("/exports", kind="charges", **DATES)).body.decode()
    file = await office.page("/exports/file", kind="charges", format="csv", **DATES)
    refused = await office.page("/exports/file", kind="charges", format="csv")
    none = await office.page("/exports/file", kind="reconciliation", format="csv", id="rec_none")

    assert 'action="/exports/file"' in page
    assert 'value="2026-10-05"' in page
    assert (file.status, of_csv(file)[0][0]) == (200, "date")
    assert (refused.status, none.status) == (422, 404)
    assert b"Say from which business date to which." in refused.body
