"""The busy month in the demo: made once, up to yesterday, of tokens that the demo's own API has made.

Cards are published test numbers. Nothing of the month was ever sent to the processor: its double knows nothing of it.
"""

import csv
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
from month import CITY, DAY, DEPARTMENTS, Month, busy_month, insert, is_there
from month_far import FLAWS

from gateway.processor.stub.protocol import DECLINES
from keys.files import write_private

SEED = 2026
CHARGES = 6_000
FOLDER = "finance"
INBOX = f"{FOLDER}/inbox"
INBOXES = ("settlements-native", "settlements-stripe", "deposits-bai2")
PLANTED = "planted.csv"
BACKDATE = "UPDATE gateway.tokens SET created_at = $2 WHERE token_id = ANY ($1)"

Tokenize = Callable[[str, dict[str, Any]], Awaitable[str]]
"""Department and body of a token to its id."""


async def make_month(connection: asyncpg.Connection, home: Path, tokenize: Tokenize) -> str:
    """Draw it, write it as the owner, and put its files under `home`; says what there is, or was there already."""
    if await is_there(connection, DEPARTMENTS):
        return f"there already; its files lie in {home / FOLDER}"
    tokens = {department: [await tokenize(department, body) for body in _bodies()] for department in DEPARTMENTS}
    yesterday = datetime.now(CITY).date() - DAY
    month = busy_month(SEED, CHARGES, yesterday - 29 * DAY, flaws=FLAWS, tokens=tokens)
    write_files(month, home / FOLDER)
    async with connection.transaction():
        await connection.execute(BACKDATE, [token for own in tokens.values() for token in own], month.start)
        await insert(connection, month)
    return f"{len(month.charges)} charges of {month.first_day} to {month.last_day}; files in {home / FOLDER}"


def write_files(month: Month, folder: Path) -> None:
    """Settlements, statements, and a list of what is wrong in them."""
    for file in month.files:
        path = folder / file.kind / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, file.content, replace=True)
    with (folder / PLANTED).open("w", newline="") as listed:
        rows = csv.writer(listed)
        rows.writerow(("kind", "state", "reason", "department", "reference", "business_date"))
        for flaw in [*month.flaws, *month.last_evening]:
            rows.writerow((flaw.kind, *(flaw.truth or ("", "")), flaw.department, flaw.reference, flaw.business_date))


def what_to_try(admin: str, home: Path) -> str:
    """Lines for a person."""
    folder, inbox = home / FOLDER, home / INBOX
    return "\n".join(
        (
            "A busy month is in the books. As a finance officer would:",
            f"  sign in at {admin} as `finance` of {home / 'demo.json'};",
            f"  upload a file of {folder / 'settlements'} and one of {folder / 'deposits'},",
            f"  or let all of them be brought: cp {folder}/settlements/*native.csv {inbox}/settlements-native/",
            f"                                 cp {folder}/settlements/*stripe.csv {inbox}/settlements-stripe/",
            f"                                 cp {folder}/deposits/*.bai {inbox}/deposits-bai2/",
            f"  then reconcile the month. What is wrong in it stands in {folder / PLANTED}.",
        )
    )


def _bodies() -> Sequence[dict[str, Any]]:
    """A token for each published number that is not there to be declined."""
    table = tomllib.loads(files("gateway.rules").joinpath("brands.toml").read_text())
    year = datetime.now(UTC).year + 2
    return [
        {
            "name": "Demo Resident",
            "card": {"number": number, "exp_month": 12, "exp_year": year},
            "usage": "multi",
        }
        for number in table["published"]
        if number not in DECLINES
    ]
