"""The admin site in a real browser, Chromium, with and without JavaScript: what the city's people will do with it.

One browser and one site serve all tests; each test has people of its own.
"""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from gateway.web.gate import COOKIE
from tests.gateway.web.site import PASSWORD, Person, Site, running_site

CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 10_000
NEW_PASSWORD = "seven green kayaks at 2 docks"
PHONE, DESK = (390, 844), (1280, 800)
THUMB_PX = 44

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="missing Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
async def site() -> AsyncIterator[Site]:
    """The admin site, running."""
    home = Path(tempfile.mkdtemp(prefix="gateway-site-"))
    home.chmod(0o711)
    try:
        async with running_site(home) as site:
            yield site
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium, without a window."""
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module", params=["with JavaScript", "without"])
async def window(site: Site, browser: Browser, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A window that tests use one after the other; no page in it complains about anything."""
    async with await _opened(browser, site, with_script=request.param != "without") as context:
        page = await context.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page
    # What is refused by design is told as a failed load.
    assert [said for said in complaints if "Failed to load resource" not in said] == []


@pytest.fixture
async def page(window: Page) -> Page:
    """The window of somebody who has never been here."""
    await window.context.clear_cookies()
    await window.goto("/sign-in")
    return window


async def _opened(
    browser: Browser, site: Site, size: tuple[int, int] = DESK, *, with_script: bool = True
) -> BrowserContext:
    context = await browser.new_context(
        base_url=site.url,
        ignore_https_errors=True,  # the certificate is of the test's own authority
        java_script_enabled=with_script,
        viewport={"width": size[0], "height": size[1]},
    )
    context.set_default_timeout(PATIENCE_MS)
    return context


async def sign_in(page: Page, site: Site, person: Person, password: str = PASSWORD, code: str | None = None) -> None:
    """Fill the form in and send it."""
    if "/sign-in" not in page.url:
        await page.goto("/sign-in")
    await page.get_by_label("Username").fill(person.username)
    await page.get_by_label("Password").fill(password)
    await page.get_by_label("One-time code").fill(await site.code(person) if code is None else code)
    await page.get_by_role("button", name="Sign in").click()


async def test_signing_in_with_a_one_time_code_and_out(site: Site, page: Page) -> None:
    """From the start page to the form, home, and out again; the cookie is of this host, TLS and this site only."""
    person = await site.person("finance", departments=["parks"])
    await page.goto("/")
    await expect(page).to_have_url(f"{site.url}/sign-in")
    await sign_in(page, site, person)

    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Good to see you, {person.username}")
    await expect(page.get_by_text("Parks")).to_be_visible()
    (cookie,) = await page.context.cookies()
    assert (cookie.get("name"), cookie.get("path"), cookie.get("domain")) == (COOKIE, "/", "127.0.0.1")
    assert (cookie.get("secure"), cookie.get("httpOnly"), cookie.get("sameSite")) == (True, True, "Strict")
    assert cookie.get("expires") == -1
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("status")).to_have_text("You are signed out.")
    await page.goto("/refunds")
    await expect(page).to_have_url(f"{site.url}/sign-in")
    assert await page.context.cookies() == []


async def test_a_wrong_code_and_then_the_right_one(site: Site, page: Page) -> None:
    """The form comes back empty with a sentence, and works."""
    person = await site.person("records")
    await sign_in(page, site, person, code="12345")

    await expect(page.get_by_role("alert")).to_contain_text("Name, password or code is wrong")
    await expect(page.get_by_label("Username")).to_have_value("")
    await sign_in(page, site, person)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Good to see you")


async def test_six_tries_lock_the_account(site: Site, page: Page) -> None:
    """After the sixth the right password is refused with the same sentence as the wrong one."""
    person = await site.person("finance")
    for _ in range(6):
        await sign_in(page, site, person, password="wrong")
    said = await page.get_by_role("alert").text_content()
    await sign_in(page, site, person)

    await expect(page.get_by_role("alert")).to_have_text(said or "")
    assert "staff.locked" in await site.audited(person)


async def test_fifteen_idle_minutes_end_a_session(site: Site, page: Page) -> None:
    """The next click leads to the form, which says why."""
    person = await site.person("approver")
    await sign_in(page, site, person)
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await site.owner.execute(
        "UPDATE gateway.staff_sessions SET seen_at = now() - interval '15 min 1 s' WHERE staff_id = $1",
        person.staff_id,
    )
    await page.get_by_role("link", name="Refunds", exact=True).click()

    await expect(page.get_by_role("status")).to_have_text("Your session has ended. Sign in again.")
    await sign_in(page, site, person)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Good to see you")


async def test_a_first_password_is_changed_before_anything_else(site: Site, page: Page) -> None:
    """Every way leads to the form until it is done; then home, and the new password counts."""
    person = await site.person("approver", must_change=True)
    await sign_in(page, site, person)
    await expect(page.get_by_role("status")).to_contain_text("Choose a password of your own")
    await page.get_by_role("link", name="Refunds", exact=True).click()
    await expect(page).to_have_url(f"{site.url}/password?first")
    for label, typed in (("Current password", PASSWORD), ("New password", NEW_PASSWORD)):
        await page.get_by_label(label, exact=True).fill(typed)
    await page.get_by_label("New password, again").fill(NEW_PASSWORD + "!")
    await page.get_by_role("button", name="Change the password").click()
    await expect(page.get_by_role("alert")).to_have_text("The two new passwords differ.")
    for label, typed in (("Current password", PASSWORD), ("New password", NEW_PASSWORD)):
        await page.get_by_label(label, exact=True).fill(typed)
    await page.get_by_label("New password, again").fill(NEW_PASSWORD)
    await page.get_by_role("button", name="Change the password").click()

    await expect(page.get_by_role("status")).to_contain_text("Your password is changed.")
    await page.get_by_role("button", name="Sign out").click()
    await sign_in(page, site, person)
    await expect(page.get_by_role("alert")).to_be_visible()
    await sign_in(page, site, person, NEW_PASSWORD)
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Good to see you")


async def test_who_is_disabled_is_out_with_the_next_click(site: Site, page: Page) -> None:
    """An account that ends while its page stands open."""
    person = await site.person("approver")
    refund = await site.refund(reference="Pool closed")
    await sign_in(page, site, person)
    await page.get_by_role("link", name="Refunds", exact=True).click()
    await site.owner.execute("UPDATE gateway.staff SET disabled_at = now() WHERE staff_id = $1", person.staff_id)
    before = await site.verdicts()
    await page.locator(f'form[action="/refunds/{refund}"]').get_by_role("button", name="Approve").click()

    await expect(page).to_have_url(f"{site.url}/sign-in?ended")
    assert await site.verdicts() == before
    await sign_in(page, site, person)
    await expect(page.get_by_role("alert")).to_be_visible()


async def test_an_approver_decides_about_waiting_refunds(site: Site, page: Page) -> None:
    """One is approved, one rejected; both leave the list, and a third stays."""
    person = await site.person("approver", departments=["parks"])
    refunds = [await site.refund(reference=f"Booking {number}") for number in range(3)]
    await site.refund("utilities", reference="Water bill")
    await sign_in(page, site, person)
    await page.get_by_role("link", name="Refunds above the limit").click()
    await expect(page.get_by_text("Water bill")).to_have_count(0)
    for refund, button in zip(refunds, ("Approve", "Reject"), strict=False):
        await page.locator(f'form[action="/refunds/{refund}"]').get_by_role("button", name=button).click()
        await expect(page.get_by_role("status")).to_contain_text(button)

    left = [await page.locator(f'form[action="/refunds/{refund}"]').count() for refund in refunds]
    assert left == [0, 0, 1]
    rows = await site.owner.fetch(
        "SELECT verdict, staff_id FROM gateway.refund_approvals WHERE movement_id = ANY($1)", refunds
    )
    assert {tuple(row) for row in rows} == {("approved", person.staff_id), ("rejected", person.staff_id)}


async def test_who_does_not_decide_has_no_buttons(site: Site, page: Page) -> None:
    """Finance sees what waits and no button; records have no such page."""
    await site.refund()
    await sign_in(page, site, await site.person("finance"))
    await page.get_by_role("link", name="Refunds", exact=True).click()
    await expect(page.get_by_text("An approver decides")).to_be_visible()
    await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    await page.get_by_role("button", name="Sign out").click()
    await sign_in(page, site, await site.person("records"))

    await expect(page.get_by_role("link", name="Refunds", exact=True)).to_have_count(0)
    await page.goto("/refunds")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Not granted to you")


async def test_it_fits_thumbs_keyboards_and_narrow_screens(site: Site, browser: Browser) -> None:
    """Signing in by keyboard alone; no page is wider than the screen, nothing to press is smaller than 44 px."""
    person = await site.person("approver", name="a" + "x" * 30)
    await site.refund(amount_minor=1, reference="M" * 200)
    async with await _opened(browser, site, PHONE) as context:
        page = await context.new_page()
        await page.goto("/")
        await expect(page.get_by_label("Username")).to_be_focused()
        for typed in (person.username, PASSWORD, await site.code(person)):
            await page.keyboard.type(typed)
            outline = await page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
            assert outline == "3px"
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("Good to see you")
        for path in ("/", "/refunds", "/password", "/nowhere"):
            await page.goto(path)
            await _require_fit(page)


async def _require_fit(page: Page) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    fields = "input:not([type=hidden], [hidden])"
    small = await page.evaluate(
        f"limit => [...document.querySelectorAll('a:not(.skip), button, {fields}')]"
        ".filter(one => one.checkVisibility() && one.getBoundingClientRect().height < limit)"
        ".map(one => one.outerHTML)",
        THUMB_PX,
    )
    unnamed = await page.evaluate(
        f"[...document.querySelectorAll('{fields}')].filter(one => !one.labels.length).map(one => one.outerHTML)"
    )
    assert (small, unnamed) == ([], [])
