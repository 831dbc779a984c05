"""Bugs planted in the product are found by the simulation, within the seeds that the test suite runs.

The suite hunts the sixteen of the reference and the latest eight; `python -m tests.simulation.mutants` hunts all.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.simulation.mutants import SEEDS, Hunt, Mutant, hunt_all, mutants
from tests.simulation.planting import Edit, plant

ROOT = Path(__file__).parents[2]
MASKED_SEEDS = 150
"""How long those are hunted that say why they cannot be found; the command hunts them as long as all others."""
OF_THE_REFERENCE = 16
LATEST = 8
HUNTED = [*mutants()[:OF_THE_REFERENCE], *mutants()[-LATEST:]]


@pytest.fixture(scope="module")
def hunts() -> Mapping[str, Hunt]:
    """These hunted, several at a time."""
    found = hunt_all(HUNTED, SEEDS, MASKED_SEEDS, min(4, os.cpu_count() or 1))
    return {hunted.mutant.name: hunted for hunted in found}


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: mutant.name)
def test_a_planted_bug_fits_the_source(mutant: Mutant) -> None:
    """What an edit gives way for stands in the source exactly once, so that the bug is really planted."""
    for module in {edit.module for edit in mutant.edits}:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        edited = source
        for edit in mutant.edits:
            edited = edit.applied_to(edited) if edit.module == module else edited
        assert edited != source


@pytest.mark.server
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", HUNTED, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: Mutant, hunts: Mapping[str, Hunt]) -> None:
    """A seed finds it by an invariant; one that is masked by another layer says so, and is not found."""
    hunted = hunts[mutant.name]
    print(hunted)
    assert hunted.as_told, hunted
    assert all(name == name.upper() for name in hunted.found), f"the run broke in place of being judged: {hunted}"


def test_the_references_bugs_are_all_there() -> None:
    """No name stands twice, and the reference's sixteen come first."""
    names = [mutant.name for mutant in mutants()]
    assert len(set(names)) == len(names) > OF_THE_REFERENCE
    assert "sent again after the window" in names[OF_THE_REFERENCE - 1 : OF_THE_REFERENCE]


def test_a_bug_is_planted_before_its_module_is_imported() -> None:
    """A module that is imported already is refused: an edit of it would change nothing."""
    with pytest.raises(ValueError, match="too early"):
        plant([Edit("tests.simulation.planting", "a", "b")])
