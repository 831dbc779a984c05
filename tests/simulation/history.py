"""What happened, in order: what a run is judged by, and what tells one run from another."""

import hashlib
import json
from dataclasses import dataclass, field

from gateway.services.ports import Answer


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended: an answer, a refusal by its name, or no word at all (`lost`)."""

    kind: str
    name: str = ""
    answer: Answer | None = None


LOST = End("lost")


@dataclass(frozen=True, slots=True)
class Body:
    """What a resident asks for. Money in minor units; `amount_minor` None means all there is."""

    amount_minor: int | None
    reference: str = ""
    capture: bool = True
    token_id: str | None = None
    card: int | None = None
    """Which card of the city came with it."""
    with_cvc: bool = False
    fee_minor: int = 0
    details: bool = False


@dataclass(slots=True)
class Call:
    """One call of a resident, from the moment it was made until its answer, if it got one."""

    number: int
    department: str
    act: str
    key: str
    charge_id: str | None
    body: Body
    begun_s: float
    ended_s: float | None = None
    end: End | None = None

    @property
    def status(self) -> int:
        """The HTTP status of its answer, 0 without one."""
        return self.end.answer.status if self.end and self.end.answer else 0

    @property
    def shown(self) -> bytes:
        """The body of its answer."""
        return self.end.answer.body if self.end and self.end.answer else b""


@dataclass
class History:
    """Everything that was noted, and every call."""

    notes: list[tuple[float, tuple[object, ...]]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def note(self, at_s: float, *what: object) -> None:
        """Put something down."""
        self.notes.append((at_s, what))

    @property
    def digest(self) -> str:
        """The same for two runs only if the same happened at the same times."""
        digest = hashlib.sha256()
        for at_s, what in self.notes:
            digest.update(f"{at_s!r} {what!r}\n".encode())
        return digest.hexdigest()[:16]

    def lines(self) -> list[str]:
        """The history as JSON lines, for reading."""
        return [json.dumps([round(at_s, 6), *map(str, what)]) for at_s, what in self.notes]
