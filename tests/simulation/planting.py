"""Planting a bug: a module is imported from an edited copy of its source, while the file stays as it is."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, slots=True)
class Edit:
    """In the source of a module one text gives way to another. It must stand there once."""

    module: str
    was: str
    becomes: str

    def applied_to(self, source: str) -> str:
        """The edited source; raises `ValueError` where the text does not stand there exactly once."""
        if source.count(self.was) != 1:
            raise ValueError(f"{self.module} has {source.count(self.was)} times: {self.was}")
        return source.replace(self.was, self.becomes)


class _Loader(SourceLoader):
    """Loads the edited source. It gives no modification time, so nothing of it is cached."""

    def __init__(self, path: str, edits: Sequence[Edit]) -> None:
        self._path = path
        self._edits = edits

    def get_filename(self, _fullname: str) -> str:
        """Where the original lies."""
        return self._path

    def get_data(self, path: "str | bytes") -> bytes:
        """The source, edited."""
        source = Path(str(path)).read_text()
        for edit in self._edits:
            source = edit.applied_to(source)
        return source.encode()


class _Finder(MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an edited module; of others, nothing."""
        mine = [edit for edit in self._edits if edit.module == fullname]
        spec = PathFinder.find_spec(fullname, path) if mine else None
        if spec is None or spec.origin is None:
            return None
        return importlib.util.spec_from_loader(fullname, _Loader(spec.origin, mine), origin=spec.origin)


def plant(edits: Sequence[Edit]) -> None:
    """From now on these modules are imported with their edits; raises `ValueError` where one is imported already."""
    early = [edit.module for edit in edits if edit.module in sys.modules]
    if early:
        raise ValueError(f"imported too early: {early}")
    sys.meta_path.insert(0, _Finder(edits))
