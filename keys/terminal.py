"""A person at a terminal: asked one thing at a time, without echo where it is secret, and not for ever.

It speaks to the terminal itself, never to standard input or output, so that nothing lands in a pipe or a log. While
a `Terminal` is open nothing that is typed is shown, unless `ask` shows it: what somebody types too early stays
hidden and is thrown away. However it ends (an answer, a refusal, Ctrl-C, a signal), the terminal is as it was before.
"""

import os
import select
import signal
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, Self

from keys.errors import RootRefused
from keys.secret import Secret

Clock = Callable[[], float]
"""Seconds that only go forward, such as `time.monotonic`."""

ANSWER_S = 300.0
SLICE_S = 0.2
ANSWER_BYTES_MAX = 4095  # the kernel's own limit for one line

CLEAR = "\x1b[H\x1b[2J\x1b[3J"
"""The screen first and the scrollback last, because some terminals move a cleared screen into the scrollback."""

_LFLAG, _CC = 3, 6  # places in what tcgetattr gives
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminal:
    """The terminal of this process, while it is held in a `with` statement.

    In the main thread SIGINT, SIGTERM and SIGHUP end the statement by an exception, so that every `finally` runs.

    Args:
        clock: what the time boxes are measured with.
        answer_s: seconds that one answer may take.
    """

    def __init__(self, clock: Clock, *, answer_s: float = ANSWER_S) -> None:
        self._clock = clock
        self._answer_s = answer_s
        self._ends: tuple[float, str] | None = None
        self._descriptor = -1
        self._before: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._descriptor = _open()
        self._before = termios.tcgetattr(self._descriptor)
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, _end) for number in _ENDING}
        self._set(echo=False)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(termios.error):  # the terminal went away, and its settings with it
                # Flushed: the rest of a pasted share must not reach the shell.
                termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, self._before)
        finally:
            os.close(self._descriptor)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @contextmanager
    def within(self, seconds: float, what: str) -> Iterator[None]:
        """A box of time around several answers, beside the one around each. `what` names it in the refusal."""
        self._ends = (self._clock() + seconds, f"{what} was not done within {_span(seconds)}")
        try:
            yield
        finally:
            self._ends = None

    def say(self, text: str) -> None:
        """Write some lines."""
        self._write(f"{text}\n")

    def clear(self) -> None:
        """Clear the screen and what can be scrolled back to."""
        self._write(CLEAR)

    def ask(self, prompt: str) -> str:
        """One line, shown while it is typed; without spaces around it. Raises `RootRefused` when nobody answers."""
        return self._answer(prompt, echo=True).strip()

    def ask_secret(self, prompt: str) -> Secret[str]:
        """One line that is not shown. Raises `RootRefused` when nobody answers."""
        return Secret(self._answer(prompt, echo=False))

    def _answer(self, prompt: str, *, echo: bool) -> str:
        self._set(echo=echo)
        try:
            self._write(prompt)
            return self._line()
        finally:
            self._set(echo=False)
            if not echo:
                self._write("\n")

    def _line(self) -> str:
        ends = (self._clock() + self._answer_s, f"nobody answered within {_span(self._answer_s)}")
        by, refusal = ends if self._ends is None else min(ends, self._ends)
        line = b""
        while not line.endswith(b"\n"):
            # In slices: a signal that comes just before `select` does not wake it, and is seen after the slice.
            while not select.select([self._descriptor], [], [], min(SLICE_S, max(0.0, by - self._clock())))[0]:
                if self._clock() >= by:
                    raise RootRefused(f"{refusal}; nothing was changed")
            read = b""
            with suppress(OSError):
                read = os.read(self._descriptor, ANSWER_BYTES_MAX + 1)
            if not read or len(line) > ANSWER_BYTES_MAX:
                raise RootRefused("the terminal gave no answer; nothing was changed")
            line += read
        return line.rstrip(b"\r\n").decode(errors="replace")

    def _write(self, text: str) -> None:
        raw = text.encode(errors="replace")
        with suppress(OSError):  # it was hung up: the next answer will not come
            while raw:
                raw = raw[os.write(self._descriptor, raw) :]

    def _set(self, *, echo: bool) -> None:
        mode = [*self._before]
        # A line at a time whatever was set before; Ctrl-S must not stop us with words on the screen.
        mode[0] = (mode[0] | termios.ICRNL) & ~termios.IXON
        mode[_LFLAG] = (mode[_LFLAG] | termios.ICANON | termios.ISIG) & ~(termios.ECHO | termios.ECHONL)
        mode[_LFLAG] |= termios.ECHO if echo else 0
        mode[_CC] = [*mode[_CC]]
        # Ctrl-Z would leave the words to the shell, Ctrl-\ to a core dump.
        mode[_CC][termios.VSUSP] = mode[_CC][termios.VQUIT] = b"\x00"
        with suppress(termios.error):
            termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, mode)


def _open() -> int:
    flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
    with suppress(OSError):
        return os.open("/dev/tty", flags)
    with suppress(OSError):
        return os.open(os.ttyname(0), flags)
    raise RootRefused("this needs a person at a terminal, and there is none: run it in one")


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    # Not Python's own handler: an event loop would replace that, and wait with Ctrl-C for the next answer.
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _span(seconds: float) -> str:
    for size, name in ((60, "minute"), (1, "second")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {name}{'' if seconds == size else 's'}"
    return f"{seconds:g} seconds"
