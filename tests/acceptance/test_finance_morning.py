"""A finance officer's whole morning in a real browser, on the real demo: from signing in to the evidence of a close.

Once with JavaScript and once without it. Two differences are planted in the processor's files: five cents, which the
officer settles alone, and a payment that the processor forgot, which takes a second person.
"""

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import aiohttp
import axe_playwright_python
import pytest
from playwright.async_api import Browser, FilePayload, Locator, Page, async_playwright, expect

from tests.acceptance.test_admin_site import ARGUMENTS, CHROMIUM, DESK, PATIENCE_MS, PHONE
from tests.system import Client, Staff, System, running

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="missing Chromium: apt-get install chromium"),
]

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
CITY_TIME = ZoneInfo("America/Los_Angeles")
CARD = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2031}
ABOVE_THE_LIMIT = 54_321
"""In cents; the demo lets one person settle ten dollars."""


@pytest.fixture(scope="module")
def demo() -> Iterator[System]:
    """A demo of its own, in whose files nothing of other tests stands."""
    home = Path(tempfile.mkdtemp(prefix="gateway-morning-"))
    home.chmod(0o711)
    with running(home / "home") as system:
        yield system
    shutil.rmtree(home)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@dataclass
class Desk:
    """A browser window in which somebody is signed in."""

    page: Page
    with_script: bool
    seen: set[str] = field(default_factory=set)
    """What was looked at by axe, without the ids."""

    async def go(self, name: str) -> None:
        """Follow an entry of the navigation, and look at the page."""
        await self.page.get_by_role("link", name=name, exact=True).first.click()
        await self.look()

    async def press(self, name: str) -> None:
        """Press a button, and look at the page that comes."""
        await self.page.get_by_role("button", name=name, exact=True).click()
        await self.look()

    async def look(self) -> None:
        """No page has anything that axe finds, which needs JavaScript itself; other buttons make another page."""
        await expect(self.page.get_by_role("heading", level=1)).to_be_visible()
        if not self.with_script:
            return
        buttons = await self.page.get_by_role("button").all_inner_texts()
        kind = re.sub(r"_[a-z2-7]{20,}", "", self.page.url) + " ".join(buttons)
        if kind not in self.seen:
            self.seen.add(kind)
            assert await found_by_axe(self.page) == [], self.page.url

    async def download(self, link: Locator) -> bytes:
        """What a link or a button gives to keep."""
        async with self.page.expect_download() as downloading:
            await link.click()
        return Path(await (await downloading.value).path()).read_bytes()


async def found_by_axe(page: Page) -> list[str]:
    """What is not accessible on a page: rule, and the first element that breaks it."""
    await page.evaluate(AXE)
    found = await page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]]


@asynccontextmanager
async def at_desk(demo: System, browser: Browser, who: str, *, with_script: bool) -> AsyncIterator[Desk]:
    """Somebody of the demo, signed in with password and one-time code; their pages complain about nothing."""
    context = await browser.new_context(
        base_url=demo.demo["admin"],
        ignore_https_errors=True,
        java_script_enabled=with_script,
        viewport={"width": DESK[0], "height": DESK[1]},
    )
    context.set_default_timeout(PATIENCE_MS)
    async with context:
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        desk = Desk(page, with_script)
        await page.goto("/")
        await desk.look()
        told = demo.demo["staff"][who]
        await page.get_by_label("Username").fill(told["username"])
        await page.get_by_label("Password").fill(told["password"])
        await page.get_by_label("One-time code").fill(await Staff(demo, who).code())
        await desk.press("Sign in")
        yield desk
        # What is refused by design is told as a failed load.
        assert [said for said in complaints if "Failed to load resource" not in said] == []


@dataclass(frozen=True)
class Files:
    """What processor and bank send, and the references of the charges in it."""

    settlement: bytes
    deposit: bytes
    off: str
    forgotten: str


async def files_of_the_day(demo: System, run: str) -> Files:
    """Three payments of today, and files in which one is five cents off and one is not; nothing else stands there."""
    references = []
    async with Client(demo, "parks") as client:
        for number, amount in enumerate((2_500 + len(run), 7_700, ABOVE_THE_LIMIT)):
            body = {
                "name": "Ada Resident",
                "card": CARD,
                "amount": amount,
                "currency": "USD",
                "reference": f"{run} {number}",
            }
            charge = await client.call("POST", "/v1/charges", body, key=f"morning-{run}-{number}")
            assert charge.status == 201, charge
            references.append(charge.json["processor_reference"])
    day = datetime.now(UTC).date()
    _, off, forgotten = references
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=demo.tls),
        headers={"Authorization": f"Bearer {demo.demo['processor_key']}"},
    ) as session:

        async def ask(method: str, path: str, body: object = None) -> bytes:
            async with session.request(method, demo.demo["processor"] + path, json=body) as response:
                assert response.status == 200, await response.text()
                return await response.read()

        truth = json.loads(await ask("GET", "/v1/charges"))["data"]
        others = [row["reference"] for row in truth if row["reference"] not in references]
        await ask("PUT", "/v1/discrepancies", {"drop": [forgotten, *others], "amount_off": {off: 5}})
        settlement = await ask("GET", f"/v1/settlements/{day}.csv?format=native")
        deposit = await ask("GET", f"/v1/deposits/{day}.bai")
        await ask("PUT", "/v1/discrepancies", {})
    return Files(settlement, deposit, off, forgotten)


@pytest.mark.parametrize("with_script", [True, False], ids=["with JavaScript", "without"])
async def test_the_whole_morning(demo: System, browser: Browser, with_script: bool) -> None:
    """Sign in, upload, reconcile, settle one alone and one by two, close, take pack and export home."""
    run = "with" if with_script else "without"
    files = await files_of_the_day(demo, run)
    today = datetime.now(CITY_TIME).date()
    closed = today - timedelta(days=1 if with_script else 2)  # ended, and of each run its own
    async with (
        at_desk(demo, browser, "finance", with_script=with_script) as finance,
        at_desk(demo, browser, "approver", with_script=with_script) as approver,
    ):
        await expect(finance.page.get_by_role("heading", level=1)).to_contain_text("Good to see you")
        await _upload(finance, "Settlements", f"{run}.csv", files.settlement)
        await _upload(finance, "Deposits", f"{run}.bai", files.deposit)
        await _reconcile(finance, today)
        await _settle(finance, files.off, "Settle it")
        await _settle(finance, files.forgotten, "Propose it")
        await expect(finance.page.get_by_role("button", name="Approve")).to_have_count(0)
        await _approve(approver, files.forgotten)
        close = await _close(finance, closed)
        await approver.page.goto(close)
        await approver.press("Approve and close")
        await _take_home(finance, close, today)


async def _upload(desk: Desk, page: str, name: str, content: bytes) -> None:
    """A file in the form, imported; the same again changes nothing."""
    for said in ("Imported.", "imported before"):
        await desk.go(page)
        await desk.page.get_by_label("The file").set_input_files(
            {"name": name, "mimeType": "text/csv", "buffer": content}
        )
        await desk.press("Import")
        await _until(desk, desk.page.get_by_role("status").filter(has_text=said))
        await desk.look()


async def _until(desk: Desk, said: Locator) -> None:
    """An import that takes longer than the answer shows its progress, and a link to look again."""
    for _ in range(20):
        if await said.is_visible():
            return
        await asyncio.sleep(0.2)
        await desk.page.reload()
    raise AssertionError(await desk.page.locator("main").inner_text())


async def _reconcile(desk: Desk, today: date) -> None:
    await desk.go("Reconciliation")
    await desk.page.get_by_label("From").fill((today - timedelta(days=1)).isoformat())
    await desk.page.get_by_label("To", exact=True).fill((today + timedelta(days=1)).isoformat())
    await desk.press("Reconcile")
    for state in ("Amount differs", "Missing there"):
        row = desk.page.get_by_role("row").filter(has_text=state)
        await expect(row.first).to_be_visible()


async def _settle(desk: Desk, reference: str, button: str) -> None:
    """From the list to the exception, and out of it again with a reason."""
    await desk.go("Exceptions")
    await desk.page.get_by_label("Status").select_option("open")
    await desk.press("Show")
    await desk.page.get_by_role("row").filter(has_text=reference).get_by_role("link").first.click()
    await desk.look()
    await desk.press("Take it")
    await desk.page.get_by_label("Reason").select_option(index=1)
    await desk.page.get_by_label("Note").fill("Asked the processor on the phone.")
    await desk.press(button)
    await expect(desk.page.get_by_role("status")).to_be_visible()


async def _approve(desk: Desk, reference: str) -> None:
    """From what waits, on the start page, to the approver's word."""
    await desk.go("Exceptions with a proposal")
    await desk.page.get_by_role("row").filter(has_text=reference).get_by_role("link").first.click()
    await desk.look()
    await desk.press("Approve")
    await expect(desk.page.get_by_role("status")).to_be_visible()


async def _close(desk: Desk, day: date) -> str:
    """Propose; gives where it stands."""
    await desk.go("Closes")
    for label in ("From", "To"):
        await desk.page.get_by_label(label, exact=True).fill(day.isoformat())
    await desk.press("Propose to close")
    await expect(desk.page.get_by_text("It waits for an approver")).to_be_visible()
    assert await desk.page.get_by_role("button", name="Approve and close").count() == 0
    return desk.page.url.partition("?")[0]


async def _take_home(desk: Desk, close: str, today: date) -> None:
    """The pack has the hash that its page shows, and a signature; the export is a spreadsheet."""
    await desk.page.goto(close)
    await desk.look()
    pack = await desk.download(desk.page.get_by_role("link", name="Download the pack"))
    await expect(desk.page.get_by_text(hashlib.sha256(pack).hexdigest())).to_be_visible()
    assert await desk.download(desk.page.get_by_role("link", name="Its signature"))
    await desk.go("Exports")
    for label in ("From", "To"):
        await desk.page.get_by_label(label, exact=True).fill(today.isoformat())
    exported = await desk.download(desk.page.get_by_role("button", name="Download"))
    assert exported.startswith(b"PK")


async def test_several_files_at_once(demo: System, browser: Browser) -> None:
    """Each is brought by itself, and the form says of each by its name what came of it."""
    files = await files_of_the_day(demo, "several")
    async with at_desk(demo, browser, "finance", with_script=True) as desk:
        await desk.go("Settlements")
        brought = [("good.csv", files.settlement), ("odd.csv", b"nothing,of,ours\n"), ("again.csv", files.settlement)]
        await desk.page.get_by_label("The file").set_input_files(
            [FilePayload(name=name, mimeType="text/csv", buffer=content) for name, content in brought]
        )
        await desk.page.get_by_role("button", name="Import").click()
        told = desk.page.locator(".brought li")
        await expect(told).to_contain_text(["good.csv: Imported.", "odd.csv: Line 1", "again.csv: This very file"])
        await desk.look()
        assert await found_by_axe(desk.page) == []
        address = await told.first.get_by_role("link").get_attribute("href")
        assert address
        row = desk.page.locator(f'main tbody a[href="{address.partition("?")[0].removeprefix(demo.demo["admin"])}"]')
        await expect(row).to_be_visible()
        await told.first.get_by_role("link").click()
        await expect(desk.page.get_by_role("heading", level=1)).to_have_text("Settlement file")


async def test_every_page_is_accessible_and_fits(demo: System, browser: Browser) -> None:
    """As the auditor, after the morning: axe finds nothing, light and dark, and on a phone no page is too wide."""
    async with at_desk(demo, browser, "auditor", with_script=True) as desk:
        paths = ["/", "/refunds", "/exports", "/audit", "/password", "/nowhere"]
        for noun in ("charges", "settlements", "deposits", "reconciliations", "exceptions", "closes"):
            await desk.page.goto(f"/{noun}")
            below = await desk.page.locator(f'main tbody a[href^="/{noun}/"]').first.get_attribute("href")
            paths += [f"/{noun}", below or ""]
        for path in paths:
            await desk.page.emulate_media(color_scheme="dark")
            await desk.page.set_viewport_size({"width": 360, "height": PHONE[1]})
            await desk.page.goto(path)
            await desk.look()
            assert await desk.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path


async def test_the_keyboard_is_enough(demo: System, browser: Browser) -> None:
    """`/` leads to the filter, `j` and `k` through the rows, `?` tells so; typing in a field stays typing."""
    await files_of_the_day(demo, "keys")
    async with at_desk(demo, browser, "auditor", with_script=True) as desk:
        page = desk.page
        await desk.go("Charges")
        await page.keyboard.press("j")
        first = await page.evaluate("document.activeElement.href")
        await page.keyboard.press("j")
        assert await page.evaluate("document.activeElement.href") != first
        await page.keyboard.press("k")
        assert await page.evaluate("document.activeElement.href") == first
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_be_visible()
        assert await found_by_axe(page) == []
        await page.keyboard.press("Escape")
        await page.get_by_label("Reference").press_sequentially("j?/k")
        await expect(page.get_by_label("Reference")).to_have_value("j?/k")
        await page.get_by_label("Reference").fill("")
        await page.get_by_role("heading", level=1).click()
        await page.keyboard.press("/")
        await expect(page.get_by_label("From")).to_be_focused()
