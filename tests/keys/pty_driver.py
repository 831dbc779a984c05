r"""A program at a real pseudo-terminal, driven as a person would: wait for a question, then type.

with Terminal(["keys", "ceremony", "split"], env=…) as t:
    t.expect("Press Enter")
    t.send("\n")
    assert t.wait() == 0
"""

import codecs
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

WAIT_S = 20.0

# Runs in the child before the program: a session's own terminal is what Ctrl-C, /dev/tty and a hang-up need.
_TAKE = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"

INTERRUPT = "\x03"
END_OF_FILE = "\x04"


class Terminal:
    """A program whose standard streams and controlling terminal are one pseudo-terminal.

    `output` is everything that came to the screen so far, echo included, without carriage returns.
    """

    def __init__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | str | None = None
    ) -> None:
        self._argv = argv
        self._env = env
        self._cwd = cwd
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_to = 0
        self.output = ""

    def __enter__(self) -> Self:
        self._screen, program = pty.openpty()
        self.settings_before = termios.tcgetattr(program)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _TAKE, *self._argv],
                stdin=program,
                stdout=program,
                stderr=program,
                env=None if self._env is None else dict(self._env),
                cwd=self._cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._screen)
            raise
        finally:
            os.close(program)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self.hang_up()

    def expect(self, text: str | re.Pattern[str], timeout_s: float = WAIT_S) -> str:
        """Wait for a text; gives what came since the last one, the text included."""
        pattern = text if isinstance(text, re.Pattern) else re.compile(re.escape(text))
        ends = time.monotonic() + timeout_s
        while True:
            if found := pattern.search(self.output, self._read_to):
                new, self._read_to = self.output[self._read_to : found.end()], found.end()
                return new
            if not self._more(ends):
                raise AssertionError(f"{pattern.pattern!r} did not come; this did: {self.output[self._read_to :]!r}")

    def send(self, text: str) -> None:
        """Type."""
        raw = text.encode()
        while raw:
            raw = raw[os.write(self._screen, raw) :]

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """Read on until the program ends; its exit code, or the signal that ended it, below zero."""
        ends = time.monotonic() + timeout_s
        while self._screen >= 0 and self._more(ends):
            pass
        return self._process.wait(max(0.1, ends - time.monotonic()))

    def signal(self, number: int) -> None:
        """Send the program a signal."""
        self._process.send_signal(number)

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does."""
        if self._screen >= 0:
            os.close(self._screen)
            self._screen = -1

    @property
    def settings(self) -> list[Any]:
        """What `tcgetattr` gives now."""
        return termios.tcgetattr(self._screen)

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(self.settings[3] & termios.ECHO)

    def _more(self, ends: float) -> bool:
        if not select.select([self._screen], [], [], max(0.0, ends - time.monotonic()))[0]:
            return False
        try:
            raw = os.read(self._screen, 65536)
        except OSError:  # Linux, when the last program has closed its side
            return False
        self.output += self._decoder.decode(raw).replace("\r", "")
        return bool(raw)
