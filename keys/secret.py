"""A value that must not leave by accident.

A `Secret` cannot be printed, formatted, compared, hashed, copied, pickled or serialized. Its one door is
`reveal`, a word that `grep` finds; `tests/test_tidy.py` lists the files that may say it.

What it cannot do: CPython does not let us wipe `bytes` and `str`. A secret lives in memory until its last
reference goes, and its bytes until the allocator reuses them.
"""

from typing import Generic, NoReturn, TypeVar

T = TypeVar("T", bytes, str)


class Secret(Generic[T]):
    """Holds one secret `bytes` or `str` value."""

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: T = value

    def reveal(self) -> T:
        """The value itself. Keep it in a local variable, and only as long as it is used."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __len__(self) -> NoReturn:
        raise TypeError("the length of a secret is not told")

    def __bool__(self) -> NoReturn:
        raise TypeError("a secret has no truth value; test for None")

    def __format__(self, _spec: str) -> NoReturn:
        raise TypeError("a secret is not formatted")

    def __eq__(self, _other: object) -> NoReturn:
        raise TypeError("secrets are not compared; derive, or use hmac.compare_digest on what reveal() gives")

    def __hash__(self) -> NoReturn:
        raise TypeError("a secret is not a key of a dict or a member of a set")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is neither copied nor pickled")
