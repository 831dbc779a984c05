"""`gateway api` without one of its safety layers: a process that only `gateway bench --layers` starts.

The product has no switch for any of this, and gets none. This process puts something else in the place of a layer,
within itself, and then is the same command. What it puts there hangs on names of the product: where one of them is
gone, it ends with an error and measures nothing. It serves no environment but the benchmark's: what is sealed in
another one does not open under that name.
"""

import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any

from gateway.bench.system import ENVIRONMENT
from gateway.config import Config
from gateway.store import ledger, postgres
from gateway.store.batch import Steps
from keys import envelope
from keys.audit import AuditEvent, AuditPen, AuditRow
from keys.settings import load, settings_path


def audit_rows() -> None:
    """No row, no MAC of one, and no statement; of a statement that would write one besides, only its columns stay."""

    def conclude(_audit: AuditRow, key: object = None, _answer: object = None) -> Steps[None]:
        assert key is None, "internal error: an answer was to be kept under a key"
        yield from ()

    def row(_pen: AuditPen, event: AuditEvent, now: datetime) -> AuditRow:
        return AuditRow("", now, "", event, 0, b"")

    _replace(postgres, "audit_values", lambda _audit: (None, *postgres.NO_AUDIT_ROW))
    _replace(postgres, "conclude", conclude)
    _replace(ledger, "conclude", conclude)
    _replace(AuditPen, "row", row)


def key_commitment() -> None:
    """Half of the derivation, 32 bytes less a record, nothing to compare: what is left is AES-GCM."""
    _replace(envelope, "COMMITMENT_BYTES", 0)


CUTS: Mapping[str, Callable[[], None]] = {"audit-rows": audit_rows, "key-commitment": key_commitment}


def _replace(owner: Any, name: str, value: object) -> None:
    getattr(owner, name)  # an AttributeError where there is nothing to replace
    setattr(owner, name, value)


def main() -> None:
    """`python -m gateway.bench.without LAYER`: `gateway api`, without it."""
    if load(settings_path(None), Config, os.environ).environment != ENVIRONMENT:
        raise SystemExit("only `gateway bench` goes without a layer")
    CUTS[sys.argv[1]]()
    sys.argv[1:] = ["api"]
    (program,) = entry_points(group="console_scripts", name="gateway")
    program.load()()


if __name__ == "__main__":
    main()
