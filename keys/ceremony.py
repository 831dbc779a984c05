"""The ceremonies around a root that nobody holds: dealing its shares to custodians, and collecting them again.

One custodian at a time sits at the terminal while everybody else looks away. Dealing shows the words, clears the
screen, and has them typed back from paper, unseen: what was not written down rightly is found here and not in an
emergency. Everything happens within a box of time. Whatever goes wrong, the root and its shares are let go, and
nothing has been changed, for nothing is written here: that is left to whoever calls.

The transcript is evidence (PCI DSS 3.7.6, 3.7.8): who did what and when, and of which root, with no word of a share.
"""

import hmac
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from traceback import clear_frames

from keys.errors import RootRefused
from keys.primitives import new_key
from keys.root_shares import TRIES, Collector, Descriptor, SharesRoot, describe, plain_words, split
from keys.secret import Secret
from keys.terminal import Terminal

CEREMONY_S = 900.0
SHOWINGS = 2
COLUMNS = 3
COLUMN_WIDTH = 16

ACCEPTING = """{name}, your share comes next. Everybody else looks away now.
With Enter you accept it: you keep it on paper, secret and alone, apart from all other shares, and you report at
once that it was lost or seen. """
DEALT = "Write these words down, with their numbers. Press Enter when you have: they are shown no more. "
TYPE_BACK = "{name}, type the whole share from your paper, in one line; it is not shown: "
TYPE_IN = "The next custodian types a share, in one line; it is not shown: "


class Transcript:
    """What happened, a line each: time, step, whom it concerns."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lines: list[str] = []

    def note(self, step: str, about: str = "") -> datetime:
        """Add a line; returns its time. Nothing secret is ever passed here."""
        now = self._now().astimezone(UTC)
        self._lines.append(f"{now:%Y-%m-%dT%H:%M:%SZ}  {step:<22}{about}".rstrip())
        return now

    def text(self) -> str:
        """All lines."""
        return "".join(f"{line}\n" for line in self._lines)


@dataclass(frozen=True, slots=True)
class Dealt:
    """A new root, and what everybody may know of its shares. The custodians have the shares themselves."""

    secret: Secret[bytes]
    descriptor: Descriptor


def deal(
    terminal: Terminal,
    threshold: int,
    custodians: Sequence[str],
    *,
    transcript: Transcript,
    deadline_s: float = CEREMONY_S,
) -> Dealt:
    """Make a new root and give each custodian a share, any `threshold` of which make it again.

    Raises `RootRefused` for people who cannot be custodians, a share that is not typed back, or want of time.
    """
    with _ceremony(terminal, transcript, deadline_s):
        return _deal(terminal, threshold, custodians, transcript)


def collect(
    terminal: Terminal, descriptor: Descriptor, *, transcript: Transcript, deadline_s: float = CEREMONY_S
) -> SharesRoot:
    """Take shares until the root can be made; it can wrap and unwrap, and is not given away.

    Raises `RootRefused` after too many wrong shares, for shares of another root, or for want of time.
    """
    return SharesRoot(collect_secret(terminal, descriptor, transcript=transcript, deadline_s=deadline_s))


def collect_secret(
    terminal: Terminal, descriptor: Descriptor, *, transcript: Transcript, deadline_s: float = CEREMONY_S
) -> Secret[bytes]:
    """The same, for the agent, which hands the root on (`keys.root_shares.serve_unlocked`)."""
    with _ceremony(terminal, transcript, deadline_s):
        return _collect(terminal, descriptor, transcript)


@contextmanager
def _ceremony(terminal: Terminal, transcript: Transcript, deadline_s: float) -> Iterator[None]:
    """A box of time; on failure, a line that says so, and nothing secret left in the exception's frames."""
    try:
        with terminal.within(deadline_s, "the ceremony"):
            yield
    except BaseException as error:
        _let_go(error)
        # Our own words only: what else may end a ceremony could quote anything.
        transcript.note("ended without result", str(error) if isinstance(error, RootRefused) else "interrupted")
        raise


def _let_go(error: BaseException | None) -> None:
    """Empty the frames behind an error and the errors behind it: a handler, or a log of locals, holds no root."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__


# --- dealing ---


def _deal(terminal: Terminal, threshold: int, custodians: Sequence[str], transcript: Transcript) -> Dealt:
    secret = new_key()
    shares = split(secret, threshold, custodians)
    descriptor = describe(secret, shares, transcript.note("dealing begins").date())
    transcript.note("root made", descriptor.title)
    for name, share in shares.items():
        _hand_over(terminal, name, share, transcript)
    terminal.say(f"All {len(shares)} custodians have their shares ({descriptor.title}).")
    transcript.note("dealing ends", descriptor.title)
    return Dealt(secret, descriptor)


def _hand_over(terminal: Terminal, name: str, share: Secret[str], transcript: Transcript) -> None:
    terminal.clear()
    terminal.ask(ACCEPTING.format(name=name))
    transcript.note("share accepted", name)
    for _ in range(SHOWINGS):
        _show(terminal, name, share)
        transcript.note("share shown", name)
        if _typed_back(terminal, name, share):
            transcript.note("share typed back", name)
            return
    raise RootRefused(f"{name} did not type back the share that was shown; nothing was changed: begin again")


def _show(terminal: Terminal, name: str, share: Secret[str]) -> None:
    try:
        terminal.clear()
        terminal.say(f"The share of {name}:\n\n{_in_columns(share.reveal().split())}\n")
        terminal.ask(DEALT)
    finally:
        terminal.clear()


def _in_columns(words: list[str]) -> str:
    rows = -(-len(words) // COLUMNS)
    cells = [f"{number:>2}. {word}".ljust(COLUMN_WIDTH) for number, word in enumerate(words, 1)]
    return "\n".join("".join(cells[row::rows]).rstrip() for row in range(rows))


def _typed_back(terminal: Terminal, name: str, share: Secret[str]) -> bool:
    for _ in range(TRIES):
        typed = plain_words(terminal.ask_secret(TYPE_BACK.format(name=name)))
        terminal.clear()
        if hmac.compare_digest(typed.reveal().encode(), share.reveal().encode()):
            return True
        terminal.say(_difference(typed.reveal().split(), share.reveal().split()))
    return False


def _difference(typed: list[str], shown: list[str]) -> str:
    """Where to look, by number. This person was shown the words a moment ago, so it tells nobody anything new."""
    if len(typed) != len(shown):
        return f"{len(typed)} words were typed, {len(shown)} were shown."
    wrong = [str(number) for number, pair in enumerate(zip(typed, shown, strict=True), 1) if len(set(pair)) > 1]
    return f"Not what was shown: word {', '.join(wrong)}. Look at your paper."


# --- collecting ---


def _collect(terminal: Terminal, descriptor: Descriptor, transcript: Transcript) -> Secret[bytes]:
    collector = Collector(descriptor)
    terminal.clear()
    transcript.note("collecting begins", descriptor.title)
    while collector.missing:
        terminal.say(f"{collector.missing} more to come, of: {', '.join(collector.awaited)}.")
        name = _take_one(terminal, collector, transcript)
        transcript.note("share given", name)
        terminal.say(f"Thank you, {name}.")
    secret = collector.secret()
    transcript.note("root opened", descriptor.title)
    return secret


def _take_one(terminal: Terminal, collector: Collector, transcript: Transcript) -> str:
    for _ in range(TRIES):
        typed = terminal.ask_secret(TYPE_IN)
        terminal.clear()
        try:
            return collector.add(typed)
        except RootRefused as error:
            transcript.note("share refused", str(error))
            terminal.say(f"{error}.")
    raise RootRefused(f"{TRIES} wrong answers one after another; nothing was changed: begin again")
