"""The arrows between packages, as `[tool.importlinter]` in pyproject.toml draws them: they hold, and are watched."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.prefix) / "bin" / "lint-imports"
CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}

BREACHES = (
    ("keys-know-no-gateway", "keys.ring", "gateway.errors"),
    ("keys-centre-is-pure", "keys.envelope", "asyncio"),
    ("keys-centre-is-pure", "keys.audit", "keys.database"),
    ("keys-layers", "keys.manifest", "keys.rotation"),
    ("keys-layers", "keys.deks", "keys.cli.bench"),
    ("layers", "gateway.rules.money", "gateway.services.ports"),
    ("layers", "gateway.services.mint", "gateway.store.database"),
    ("layers", "gateway.rules.lifecycle", "gateway.services.points"),
    ("layers", "gateway.services.recovery", "gateway.store.ledger"),
    ("layers", "gateway.store.migrate", "gateway.web.api"),
    ("layers", "gateway.web.health", "gateway.store.postgres"),
    ("layers", "gateway.web.api", "gateway.processor.client"),
    ("rules-are-pure", "gateway.rules.card", "aiohttp"),
    ("rules-are-pure", "gateway.rules.recovery", "asyncio"),
    ("services-know-ports", "gateway.services.vault", "asyncpg"),
    ("services-know-ports", "gateway.services.sending", "aiohttp"),
    ("store-opens-nothing", "gateway.store.postgres", "keys.envelope"),
    ("store-opens-nothing", "gateway.store.database", "gateway.services.charges"),
    ("store-opens-nothing", "gateway.store.ledger", "gateway.services.sending"),
    ("web-holds-no-key", "gateway.web.bodies", "keys.keystore"),
    ("layers", "gateway.wiring_admin", "gateway.wiring"),
    ("admin-holds-no-card-key", "gateway.wiring_admin", "keys.keystore"),
    ("admin-holds-no-card-key", "gateway.web.pages", "keys.ring"),
    ("admin-holds-no-card-key", "gateway.services.approvals", "gateway.services.vault"),
    ("stub-is-the-far-side", "gateway.processor.stub.wire", "gateway.rules.card"),
    ("stub-is-the-far-side", "gateway.processor.stub.book", "keys.secret"),
)
"""(contract that is broken, importer, imported)"""


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
    command = [str(LINTER), "--no-cache", "--no-logo"]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """What the linter says, by contract, of a copy of the house with every breach in it, each inside a function."""
    copy = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in ("gateway", "keys"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for _, importer, imported in BREACHES:
        with (copy / importer.replace(".", "/")).with_suffix(".py").open("a") as module:
            module.write(f"\n\ndef _planted() -> None:\n    import {imported}\n")
    (copy / "gateway" / "homeless.py").touch()
    linted = _lint(copy)
    assert linted.returncode == 1, linted.stderr
    sections = re.split(r"^(.+)\n-{5,}\n", linted.stdout.partition("Broken contracts\n")[2], flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def test_arrows_go_inward_only() -> None:
    """Every contract on who may import whom is kept."""
    linted = _lint(ROOT)

    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize(("contract", "importer", "imported"), BREACHES)
def test_a_forbidden_import_is_noticed(
    broken: Mapping[str, str], contract: str, importer: str, imported: str
) -> None:
    """A forbidden import breaks the contract that forbids it, even inside a function."""
    assert f"{importer} -> {imported} " in broken[CONTRACTS[contract]]


def test_every_contract_was_seen_broken() -> None:
    """Each contract has a planted breach above, so that none holds by saying nothing."""
    assert {contract for contract, _, _ in BREACHES} == set(CONTRACTS)


def test_a_module_without_a_place_is_noticed(broken: Mapping[str, str]) -> None:
    """A new module of the gateway must be given its layer."""
    assert "- gateway.homeless" in broken[CONTRACTS["layers"]]
