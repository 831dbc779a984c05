"""Which departments somebody of the staff may look at, or act for, at this moment."""

from collections.abc import Awaitable, Callable, Sequence

from gateway.errors import NotFound
from gateway.rules.staff import EVERYWHERE, Staff
from keys.audit import CITY


class Reach:
    """Asks which departments there are, and leaves those that a grant reaches."""

    def __init__(self, departments: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._departments = departments

    async def of(self, staff: Staff, department: str | None = None) -> frozenset[str]:
        """The departments of a grant; with `department` that one alone, or `NotFound` where it is not among them.

        To a grant for all of them belongs `city`, too: what is no single department's.
        """
        reached = staff.among(await self._departments())
        if department is not None:
            if department not in reached:
                raise NotFound
            return frozenset({department})
        return reached | {CITY} if EVERYWHERE in staff.departments else reached
