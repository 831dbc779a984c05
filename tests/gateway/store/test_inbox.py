"""The watched folder, on a real database: what is laid down is imported once, and put where it belongs."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import asyncpg
import pytest

from gateway.errors import Unavailable
from gateway.rules.ids import new_id
from gateway.services import inbox as module
from gateway.services.inbox import STILL_S, Inbox
from gateway.store.database import Database
from tests.gateway.formats.files import bai2, native
from tests.gateway.services.conftest import Clock
from tests.gateway.store.postgres import Postgres
from tests.gateway.store.test_imports import desk_on, of

pytestmark = pytest.mark.server


@dataclass
class Desk:
    """A folder, who watches it, and the clock by which it is still."""

    inbox: Inbox
    clock: Clock
    folder: Path
    owner: asyncpg.Connection

    def lay(self, raw: bytes, name: str = "day.csv", where: str = "settlements-native") -> Path:
        """A file as a processor lays it down."""
        path = self.folder / where / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        return path

    async def look(self) -> None:
        """Twice, so that what was seen first is still now."""
        for _ in range(2):
            await self.inbox.look()
            self.clock.seconds += STILL_S

    def there(self) -> set[str]:
        """Every file of the folder."""
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}

    async def imports(self) -> int:
        """How many the watched folder brought."""
        return int(await self.owner.fetchval("SELECT count(*) FROM gateway.imports WHERE staff_id = 'inbox'"))


@pytest.fixture
async def desk(postgres: Postgres, owner: asyncpg.Connection, tmp_path: Path) -> AsyncIterator[Desk]:
    database = await Database.open(postgres.arguments("admin"), 2)
    clock = Clock()
    yield Desk(Inbox(desk_on(database, owner).imports, tmp_path, clock), clock, tmp_path, owner)
    await database.close()


def settlement() -> bytes:
    """A file like no other."""
    return native([of(new_id("x"), 2)])


async def test_what_is_laid_down_is_imported(desk: Desk) -> None:
    """Each by the format of its folder, in the name of the folder, audited; then it lies under `done`."""
    before = await desk.imports()
    desk.lay(settlement())
    desk.lay(bai2([[f"16,142,5,0,{token_hex(6)},B2,/"]]), "day.bai", "deposits-bai2")
    await desk.look()
    assert desk.there() == {"settlements-native/done/day.csv", "deposits-bai2/done/day.bai"}
    assert await desk.imports() == before + 2
    told = "SELECT count(*) FROM audit.events WHERE actor = 'inbox' AND outcome = 'done'"
    assert await desk.owner.fetchval(told) == await desk.imports()


async def test_what_cannot_be_right_says_why(desk: Desk) -> None:
    """Beside the refused file lies the reason; one more of the same name takes no other's place."""
    before = await desk.imports()
    for _ in range(2):
        desk.lay(settlement()[:-4])
        await desk.look()
    refused = desk.folder / "settlements-native" / "refused"
    found = sorted(path.name for path in refused.iterdir())
    assert len(found) == 4
    assert {"day.csv", "day.csv.txt"} < set(found)
    assert all("Line 3" in path.read_text() for path in refused.glob("*.txt"))
    assert await desk.imports() == before


async def test_the_same_again_is_done_again(desk: Desk) -> None:
    """It was imported before: nothing changes, and both files are kept."""
    raw, before = settlement(), await desk.imports()
    for _ in range(2):
        desk.lay(raw)
        await desk.look()
    assert len(desk.there()) == 2
    assert await desk.imports() == before + 1


async def test_what_still_grows_is_left_alone(desk: Desk) -> None:
    """A file that is being written is taken once it is still, and whole."""
    raw, before = settlement(), await desk.imports()
    for end in (10, 20, len(raw)):
        desk.lay(raw[:end])
        await desk.inbox.look()
        desk.clock.seconds += STILL_S
    assert (desk.there(), await desk.imports()) == ({"settlements-native/day.csv"}, before)
    desk.clock.seconds -= STILL_S / 2
    await desk.inbox.look()
    assert await desk.imports() == before
    await desk.look()
    assert (desk.there(), await desk.imports()) == ({"settlements-native/done/day.csv"}, before + 1)


async def test_links_secrets_and_folders_are_no_files(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody makes the process read what lies elsewhere; a dotfile is somebody's who still writes."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "day.csv"
    elsewhere.write_bytes(settlement())
    before = await desk.imports()
    hidden = desk.lay(settlement(), ".day.csv")
    (hidden.parent / "link.csv").symlink_to(elsewhere)
    (hidden.parent / "folder.csv").mkdir()
    os.mkfifo(hidden.parent / "pipe.csv")
    await desk.look()
    assert await desk.imports() == before
    assert (hidden.parent / "link.csv").is_symlink()


async def test_one_that_is_too_large_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it is read."""
    monkeypatch.setattr(module, "BYTES_MAX", 10)
    desk.lay(settlement())
    await desk.look()
    assert "settlements-native/refused/day.csv.txt" in desk.there()


async def test_while_the_database_is_away_it_waits(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is, and is imported at a later look."""

    async def away(*_: object) -> None:
        raise Unavailable

    desk.lay(settlement())
    with monkeypatch.context() as patch:
        patch.setattr(desk.inbox._imports, "take", away)
        await desk.look()
    assert desk.there() == {"settlements-native/day.csv"}
    await desk.inbox.look()
    assert desk.there() == {"settlements-native/done/day.csv"}


async def test_one_that_cannot_be_moved_is_imported_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And left alone from then on, until it is another file."""
    looked = []

    def stuck(path: Path, _why: str | None) -> None:
        looked.append(path)
        raise PermissionError

    monkeypatch.setattr(module, "_put_away", stuck)
    before = await desk.imports()
    desk.lay(settlement())
    for _ in range(3):
        await desk.look()
    assert (len(looked), await desk.imports()) == (1, before + 1)
    desk.lay(settlement() + b"")
    await desk.look()
    assert (len(looked), await desk.imports()) == (2, before + 2)
