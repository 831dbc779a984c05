"""A SoftHSM of one's own: its tokens are folders, so it can be unplugged, stopped in the middle, and looked into.

It is found where Linux distributions put it (`apt-get install softhsm2`). The library reads `SOFTHSM2_CONF` whenever
it is started.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from keys.files import write_private

UTIL = shutil.which("softhsm2-util")
MODULE = next(
    (
        path
        for folder in ("/usr/lib", "/usr/lib64", "/usr/local/lib")
        for pattern in ("softhsm/libsofthsm2.so", "*/softhsm/libsofthsm2.so", "pkcs11/libsofthsm2.so")
        for path in Path(folder).glob(pattern)
    ),
    None,
)

needs_softhsm = pytest.mark.skipif(UTIL is None or MODULE is None, reason="missing SoftHSM: apt-get install softhsm2")

HOLDS_THE_LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


class SoftHsm:
    """Tokens in a folder, and the PIN of each in a file."""

    PIN = "s3cret-pin"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens = folder / "tokens"
        self.tokens.mkdir(mode=0o700, parents=True)
        self.configuration = folder / "softhsm2.conf"
        self.configuration.write_text(f"directories.tokendir = {self.tokens}\nlog.level = ERROR\n")
        self.pin_file = folder / "pin"
        write_private(self.pin_file, f"{self.PIN}\n".encode(), replace=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find these tokens."""
        return {"SOFTHSM2_CONF": str(self.configuration)}

    def initialise(self, token: str = "gateway") -> Path:
        """Make a token under `PIN`, and return its folder."""
        before = set(self.tokens.iterdir())
        command = [str(UTIL), "--init-token", "--free", "--label", token, "--so-pin", "12345678", "--pin", self.PIN]
        subprocess.run(command, env=self.environment, check=True, capture_output=True)
        (made,) = set(self.tokens.iterdir()) - before
        return made

    def uri(self, token: str = "gateway", object_: str = "root", more: str = "", pin_file: Path | None = None) -> str:
        """The URI of a key; `more` are further attributes of its path."""
        options = f"module-path={quote(str(MODULE))}&pin-source=file:{quote(str(pin_file or self.pin_file))}"
        return f"pkcs11:token={quote(token)};object={quote(object_)}{more}?{options}"

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """All tokens are gone; then they are back."""
        away = self.tokens.rename(self.folder / "away")
        try:
            yield
        finally:
            away.rename(self.tokens)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Every call that touches a key waits, for another process holds the file lock that the library takes."""
        (lock,) = self.tokens.glob("*/generation")
        command = [sys.executable, "-c", HOLDS_THE_LOCK, str(lock)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin is not None
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            try:
                yield
            finally:
                holder.stdin.close()


def logins(token: Path) -> int:
    """How often a PIN was tried, right or wrong: the library notes each try in the token's first eight bytes."""
    return int.from_bytes((token / "token.object").read_bytes()[:8], "big")
