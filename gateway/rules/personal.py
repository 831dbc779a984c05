"""What a department may send of a person beside name and card. Anything else is refused, and stored nowhere.

A contract is a table, field to reason. `email` is a name at the top of `details`; `address.zip` one below another;
`address` takes in all below it; `*` everything. Lists are looked through: `children.name` is that of each child.
A consent is a text, or an object of fields below `consent`.
(Data minimisation: the reason is what California Civil Code 1798.17 makes an agency state to the person.)
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import FieldNotTaken

EVERY_FIELD = "*"
NAME = re.compile(r"[a-z][a-z_]{0,39}")
"""What a field's name may be, in a contract and in an answer: it cannot hold a number."""

Path = tuple[str, ...]


def require_taken(department: str, contract: Mapping[str, str], details: Any, consent: Any = None) -> None:
    """Raises `FieldNotTaken` for anything outside the contract; says what the department takes, and why.

    Of what was sent only names of the form of a field are repeated; at any other name the pointer ends above it.
    """
    if EVERY_FIELD in contract:
        return
    terms = _Contract.of(contract)
    refused: list[str] = []
    if details is not None:
        refused += terms.refused(details, (), "/details")
    if isinstance(consent, dict):
        refused += terms.refused({"consent": consent}, (), "")
    if refused:
        raise FieldNotTaken(_told(department, contract), list(dict.fromkeys(refused)))


@dataclass(frozen=True, slots=True)
class _Contract:
    """The fields as paths, and the paths that lead to one."""

    taken: frozenset[Path]
    towards: frozenset[Path]

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> "_Contract":
        taken = frozenset(tuple(field.split(".")) for field in fields)
        return cls(taken, frozenset(path[:length] for path in taken for length in range(1, len(path))))

    def refused(self, value: Any, path: Path, pointer: str) -> Iterator[str]:
        """Pointers to what is not taken, in a place that leads to a field. A name alone may tell of a person too."""
        if isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.refused(item, path, f"{pointer}/{index}")
        elif isinstance(value, dict):
            for name, item in value.items():
                inner, place = (*path, name), f"{pointer}/{name}" if NAME.fullmatch(name) else pointer
                if inner in self.towards and inner not in self.taken:
                    yield from self.refused(item, inner, place)
                elif inner not in self.taken:
                    yield place
        else:
            yield pointer


def _told(department: str, contract: Mapping[str, str]) -> str:
    if not contract:
        return f"{department} takes nothing of a person beside name and card."
    fields = ", ".join(f"{field} ({contract[field]})" for field in sorted(contract))
    return f"{department} takes {fields}, and nothing else of a person beside name and card."
