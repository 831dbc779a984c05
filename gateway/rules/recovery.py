"""What to do about a movement that the processor says it does not know. Pure; every branch has its row in a table.

*Not found* is no proof of absence: the request may still be on its way, or be carried out and not visible yet. What
makes sure depends on what the processor offers:

    dedupes by reference        send the same bytes again, while not half of its window is over
    cancels by reference        make the reference void: a late original is refused from then on
    heeds `not_after`           wait until no clock could still be before it, and ask again
    none of these               nobody can tell: a person and the settlement file decide

A movement that came with a verification code, or whose card is gone, cannot be sent again. A processor that dedupes
may have forgotten the reference after its window: then its not knowing it means nothing at all, and nothing that was
sent before may arrive there any more. So whatever is done about it is done within half of the window.
"""

from dataclasses import dataclass

SENDS_MAX = 3
"""How often a movement is sent before it is rather cancelled."""
ACT_S_MIN = 1.0
"""Less time than this is too little to send anything."""
CLOCK_SKEW_S = 20.0
INQUIRY_LAG_S = 30.0
"""How far the processor's clock may be off ours, and how late a movement may become visible to inquiries."""
PATIENCE_S = 10.0
"""How old a movement is before nobody expects the processor to know it by itself."""

FIRST_LOOK_S = 0.5
LOOK_S_MAX = 15.0


@dataclass(frozen=True, slots=True)
class Offers:
    """What a processor offers, by its own word, to make sure of a reference that it does not know."""

    dedupe_window_s: float | None = None
    """For how long the same reference moves money once."""
    cancel: bool = False
    """Whether a reference can be made void before it is used."""
    expiry: bool = False
    """Whether a request is refused after its `not_after`."""


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Within so many seconds, the same bytes."""

    within_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Make the reference void."""


@dataclass(frozen=True, slots=True)
class Expired:
    """It never happened: nobody could carry it out any more, and nobody has."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again later."""


@dataclass(frozen=True, slots=True)
class Park:
    """For a person. It is still asked for."""

    reason: str


Step = SendAgain | Cancel | Expired | Wait | Park


def next_step(offers: Offers, *, age_s: float, overdue_s: float, sends: int, may_resend: bool) -> Step:
    """What to do about a movement of this age that the processor does not know.

    `overdue_s` counts from its `not_after`; `sends` is how often it was sent, or may have been.
    """
    window_s = offers.dedupe_window_s
    if window_s is not None:
        left_s = window_s / 2 - age_s
        if left_s < ACT_S_MIN:
            return Park("window_passed")
        if may_resend and sends < SENDS_MAX:
            return SendAgain(left_s)
    if offers.cancel:
        return Cancel()
    if offers.expiry:
        return Expired() if overdue_s >= CLOCK_SKEW_S + INQUIRY_LAG_S else Wait()
    return Park("undecidable") if age_s >= PATIENCE_S else Wait()


def delay_s(looks: int) -> float:
    """How long to wait after so many looks: soon at first, later every quarter of a minute."""
    return min(LOOK_S_MAX, FIRST_LOOK_S * 2.0 ** min(looks, 10))
