"""The schedule of a seed: does a fault strike at the nth occasion of its kind at a place; and the tape of what did.

Each kind at each place has a stream of its own, so that what happens at one place never shifts what strikes at
another: with the same seed, the 7th COMMIT of `api1` is cut in every run that gets so far.
"""

import time
from collections import Counter
from random import Random


class Chance:
    """The draws of one seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._began_s = time.monotonic()
        self._streams: dict[str, Random] = {}
        self._occasions: Counter[str] = Counter()
        self.tape: list[str] = []

    def stream(self, place: str) -> Random:
        """What is drawn at a place, from the first draw on."""
        if place not in self._streams:
            self._streams[place] = Random(f"{self._seed}/{place}")  # noqa: S311 - chance that a seed repeats
        return self._streams[place]

    def strikes(self, what: str, place: str, likely: float) -> bool:
        """Whether this strikes at the next occasion at this place."""
        where = f"{what} at {place}"
        self._occasions[where] += 1
        if self.stream(where).random() >= likely:
            return False
        self.note(f"{where} #{self._occasions[where]}")
        return True

    def note(self, what: str) -> None:
        """Put something on the tape, with the seconds since the seed began."""
        self.tape.append(f"{time.monotonic() - self._began_s:7.3f} {what}")
