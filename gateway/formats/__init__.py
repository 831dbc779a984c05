"""Files of processors and banks, read line by line.

A format is one module here, and adding one is adding a file: it says its `KIND` and `NAME`, and `read` makes lines
of a file, or raises `FileRefused` with the line and the reason in words for finance. A reader holds one line at a
time, so what it has yielded is true only once it has come to the end: then every total was right.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import BinaryIO, Literal, Protocol, cast

from gateway.errors import InvalidRequest
from gateway.rules.settlement import DepositLine, SettlementLine

Kind = Literal["settlement", "deposit"]


class Format(Protocol):
    """What a module must have to be a format."""

    KIND: Kind
    NAME: str

    def read(self, source: BinaryIO) -> Iterator[SettlementLine | DepositLine]:
        """The lines of a file, in its order; raises `FileRefused`, and nothing else."""


def formats(kind: Kind) -> Sequence[str]:
    """The names of the formats that files of this kind may have, in order."""
    return sorted(name for of, name in _formats() if of == kind)


def open_format(kind: Kind, name: str) -> Format:
    """Raises `InvalidRequest`, with the names that there are, for any other one."""
    try:
        return _formats()[kind, name]
    except KeyError:
        raise InvalidRequest(f"format must be one of: {', '.join(formats(kind))}.", ["/format"]) from None


@cache
def _formats() -> Mapping[tuple[Kind, str], Format]:
    modules = (import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__))
    readers = [cast("Format", module) for module in modules if hasattr(module, "NAME")]
    return {(reader.KIND, reader.NAME): reader for reader in readers}
