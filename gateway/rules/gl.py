"""Places in the city's general ledger: which codes an amount of a department's service goes to, and how much to each.

A mapping holds from a business date on, until the next one does: what lies before that is never touched. Where a
service has none it goes to the code that the service was registered with. What belongs to no service and has no
mapping of its own goes to `unmapped`, and is shown so: an export leaves out no cent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

UNMAPPED = "unmapped"
NO_SERVICE = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A code, and its share of all the shares that stand beside it."""

    gl_code: str
    share: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A share of a department's service (empty: of what has none) from a business date on."""

    department: str
    service: str
    valid_from: date
    share: Share


class Chart:
    """Every mapping, ready to be asked. `registered` has the codes of services by department and service."""

    def __init__(self, mapped: Iterable[Mapped], registered: Mapping[tuple[str, str], str]) -> None:
        self._registered = registered
        dated: dict[tuple[str, str], dict[date, list[Share]]] = {}
        for row in mapped:
            days = dated.setdefault((row.department, row.service), {})
            days.setdefault(row.valid_from, []).append(row.share)
        self._dated = {key: sorted(days.items(), reverse=True) for key, days in dated.items()}

    def shares(self, department: str, service: str | None, day: date) -> Sequence[Share]:
        """Where an amount of that business date goes: at least one share."""
        key = department, service or NO_SERVICE
        for valid_from, shares in self._dated.get(key, ()):
            if valid_from <= day:
                return shares
        return [Share(self._registered.get(key, UNMAPPED), 1)]


def split(amount_minor: int, shares: Sequence[Share]) -> list[tuple[str, int]]:
    """The amount in parts, by code, that sum to it exactly: largest remainder, at a tie the first code.

    The parts of a negative amount are those of the positive one, negative: a refund takes what the charge gave.
    """
    whole = sum(share.share for share in shares)
    parts = {share.gl_code: divmod(abs(amount_minor) * share.share, whole) for share in shares}
    left = abs(amount_minor) - sum(part for part, _ in parts.values())
    first = set(sorted(parts, key=lambda code: (-parts[code][1], code))[:left])
    sign = -1 if amount_minor < 0 else 1
    return [(code, sign * (parts[code][0] + (code in first))) for code in sorted(parts)]
