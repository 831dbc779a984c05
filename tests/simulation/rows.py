"""What the tables of the in-memory store are made of."""

from dataclasses import dataclass
from datetime import datetime

from gateway.rules.lifecycle import OPEN, Progress
from gateway.services.ports import Answer, Claim, Movement, Token


@dataclass(slots=True)
class KeyRow:
    """What stands under an Idempotency-Key."""

    claim: Claim
    lease_until: datetime
    answer: Answer | None = None


@dataclass(slots=True)
class TokenRow:
    """A token and what it seals."""

    token: Token
    sealed: bytes | None


@dataclass(slots=True)
class MovementRow:
    """A movement and what only the database knows of it. `movement.running` is worked out when it is read."""

    movement: Movement
    first_sent_at: datetime
    lease_until: datetime
    looks: int = 0
    resend_until: datetime | None = None

    @property
    def id(self) -> tuple[str, str]:
        """Its department and its own id."""
        return self.movement.department, self.movement.movement_id

    @property
    def awaiting(self) -> bool:
        """Whether it waits for an approver."""
        return self.movement.progress is Progress.AWAITING

    @property
    def open(self) -> bool:
        """Whether nobody knows yet what became of it."""
        return self.movement.progress in OPEN
