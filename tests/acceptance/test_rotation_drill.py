"""Rotation as security staff run it: on a working day, under traffic, interrupted; on each kind of root."""

from collections.abc import Iterator

import pytest

from tests.keys.softhsm import needs_softhsm
from tests.rotation_drill import KINDS, Roots, drill, prepared
from tests.system import System

pytestmark = pytest.mark.server

SIZES = {"file": (400, 4)}
"""How many tokens, and how often a rewrap is killed."""
SIZE = (100, 2)
"""The same for the other kinds of root: what differs is how the root is reached, not what a rotation does."""
SEED = 20261122


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, Roots]]:
    """One demo that moves from root to root."""
    folder = tmp_path_factory.mktemp("drill")
    for parent in (folder, folder.parent, folder.parent.parent):
        if parent.name.startswith(("pytest", "drill")):
            parent.chmod(0o711)
    with prepared(folder, folder / "home") as prepared_demo:
        yield prepared_demo


@needs_softhsm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
async def test_rotate_rewrap_destroy_under_load(demo: tuple[System, Roots], kind: str) -> None:
    """No request fails, every token charges, nothing is left on the old generation nor opens with the rest."""
    system, roots = demo
    if kind != "file":
        roots.move_to(kind)
    print(f"seed {SEED}")
    tokens, kills = SIZES.get(kind, SIZE)
    shown = await drill(system, kind, tokens, kills, SEED)
    print(shown)
    assert shown.failed == []
    assert shown.killed_at_work >= kills // 2
