"""The lines of an imported file: bounded, UTF-8, of visible text, and numbered as a text editor numbers them."""

import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from gateway.errors import FileRefused

LINE_BYTES_MAX = 10_000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Of the characters that show nothing only the tab may stand in a line, and the end of it at its end."""


def refused(line: int, words: str, column: str | None = None) -> FileRefused:
    """To be raised: where the file is wrong, and what to do. `words` never repeat what stands there."""
    place = f"Line {line}, {column}" if column else f"Line {line}"
    return FileRefused(f"{place}: {words}", [f"/lines/{line}"])


def lines(source: BinaryIO) -> Iterator[str]:
    """Each line with its end; a byte order mark before the first one is no part of it. Raises `FileRefused`."""
    encoding = "utf-8-sig"
    # Not `for raw in source`: that would hold a line of any length.
    for number, raw in enumerate(iter(partial(source.readline, LINE_BYTES_MAX + 1), b""), 1):
        if len(raw) > LINE_BYTES_MAX:
            raise refused(number, "this is longer than a line can be. Is it a text file, with an end to each line?")
        try:
            line = raw.decode(encoding)
        except UnicodeDecodeError:
            raise refused(number, "this is not UTF-8 text. Save the file as UTF-8.") from None
        text = line.rstrip("\r\n")
        if not text.isprintable() and CONTROL.search(text):
            raise refused(number, "a control character stands here. Ask for the file again, as plain text.")
        yield line
        encoding = "utf-8"
