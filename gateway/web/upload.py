"""A file as the body of a request: read as it comes, into a file without a name, only from somebody who may send it.

Few are received at once, none is larger than `BYTES_MAX`, and a line may be slow but not without end. A script sends
the file alone. A browser sends a form (multipart/form-data, RFC 7578) of exactly three parts, in this order:

    csrf     what the session's forms carry; it is looked at before anything else is read
    format   how the file is to be read
    file     the file; what its owner calls it is not kept

Anything else is refused with 400, and so is a body that ends too early. The file lies in the system's temporary
folder and has no name there: it is gone when it is closed, whatever happens to the process.
"""

import asyncio
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import BinaryIO, Final, cast

from aiohttp import web

from gateway.errors import InvalidRequest, Unavailable
from gateway.web.head import BOUNDARY, MULTIPART, RefusedError

BYTES_MAX: Final = 64 * 1024 * 1024
PLACES: Final = 2
WAIT_S: Final = 5.0
"""How long a request waits for a place before it is told to come again."""
GRACE_S: Final = 15.0
BYTES_A_SECOND_MIN: Final = 16 * 1024
"""After the first `GRACE_S` a line slower than this, on average, is given up; and one that is silent for so long."""

VALUE_BYTES_MAX: Final = 256
HEAD_BYTES_MAX: Final = 2048
PART: Final = re.compile(
    rb'\r\nContent-Disposition: form-data; name="(csrf|format|file)"(?:; filename="[^"\r\n]*")?'
    rb"(?:\r\n[A-Za-z-]{1,40}: [^\r\n]{0,200}){0,3}",
    re.IGNORECASE,
)

BUSY = "Other files are being read at this moment. Wait until they are done, then send this one again."
NO_ROOM = "There is no room for the file here at this moment. Tell the operators, then send it again."
ODD_FORM = "The form did not arrive as the page sends it: csrf, format, file. Nothing was done."


@dataclass(slots=True)
class Upload:
    """A file that arrived whole, at its beginning. Who keeps it closes it; else it is closed after the handler."""

    size: int
    file: BinaryIO
    fields: dict[str, str]
    _leave: Callable[[], None] = field(repr=False)
    kept: bool = False

    def keep(self) -> None:
        """It is needed for longer than its request."""
        self.kept = True

    def close(self) -> None:
        """The file is gone, and its place is free."""
        if not self.file.closed:
            try:
                self.file.close()
            finally:  # it may still have had something to write, where there is no room for it
                self._leave()


UPLOAD: Final = web.RequestKey("upload", Upload)


class Uploads:
    """The places at which files are received, and held until they are closed."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self._places = asyncio.Semaphore(PLACES)
        self._grace_s = grace_s

    async def receive(self, request: web.Request, require_csrf: Callable[[str], None]) -> Upload:
        """The file that a request brings.

        Raises:
            Unavailable: every place is taken, or the disk has no room.
            InvalidRequest: not the form that is asked for; also what `require_csrf` raises.
            RefusedError: too large, too slow, or cut.
        """
        try:
            await asyncio.wait_for(self._places.acquire(), WAIT_S)
        except TimeoutError:
            raise Unavailable(BUSY) from None
        try:
            file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - outlives this
        except OSError:
            self._places.release()
            raise Unavailable(NO_ROOM) from None
        upload = Upload(0, file, {}, self._places.release)
        try:
            wire = _Wire(request, self._grace_s)
            if request.content_type == MULTIPART:
                await _read_form(wire, upload, require_csrf)
            else:
                await _read_alone(wire, upload)
            upload.file.seek(0)
        except BaseException as error:
            with suppress(OSError):
                upload.close()
            if isinstance(error, OSError):
                raise Unavailable(NO_ROOM) from None
            raise
        return upload


class _Wire:
    """The body of a request, bounded in size and time."""

    def __init__(self, request: web.Request, grace_s: float) -> None:
        self._content = request.content
        self._grace_s = grace_s
        self._began_s = asyncio.get_running_loop().time()
        self._received = 0
        self.boundary = BOUNDARY.search(request.headers.get("Content-Type", ""))

    async def more(self) -> bytes:
        """What has come since; empty at the end."""
        now_s = asyncio.get_running_loop().time()
        slowest_s = self._began_s + self._grace_s + self._received / BYTES_A_SECOND_MIN
        try:
            async with asyncio.timeout_at(min(slowest_s, now_s + self._grace_s)):
                chunk = await self._content.readany()
        except TimeoutError:
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT) from None
        except (OSError, web.RequestPayloadError):  # gone, or broken half-way
            raise RefusedError(HTTPStatus.BAD_REQUEST) from None
        self._received += len(chunk)
        if self._received > BYTES_MAX:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return chunk


async def _read_alone(wire: _Wire, upload: Upload) -> None:
    while chunk := await wire.more():
        upload.size += upload.file.write(chunk)


async def _read_form(wire: _Wire, upload: Upload, require_csrf: Callable[[str], None]) -> None:
    if wire.boundary is None:
        raise InvalidRequest(ODD_FORM)
    form = _Form(wire, b"\r\n--" + wire.boundary[2].encode("ascii"))
    await form.begin()
    require_csrf(await form.value("csrf"))
    upload.fields["format"] = await form.value("format")
    await form.head("file")
    await form.copy(upload)
    await form.end()


class _Form:
    """The parts of a multipart body, one after the other. `mark` is what stands between them."""

    def __init__(self, wire: _Wire, mark: bytes) -> None:
        self._wire = wire
        self._mark = mark
        self._held = b"\r\n"  # so that the first mark looks like every other

    async def begin(self) -> None:
        """Up to behind the first mark."""
        if await self._until(self._mark, 0):
            raise InvalidRequest(ODD_FORM)

    async def head(self, name: str) -> None:
        """Up to behind the head of a part, which must be the one of this name."""
        found = PART.fullmatch(await self._until(b"\r\n\r\n", HEAD_BYTES_MAX))
        if found is None or found[1].decode() != name:
            raise InvalidRequest(ODD_FORM)

    async def value(self, name: str) -> str:
        """A part that is short text."""
        await self.head(name)
        value = await self._until(self._mark, VALUE_BYTES_MAX)
        if not value.isascii():
            raise InvalidRequest(ODD_FORM)
        return value.decode("ascii")

    async def copy(self, upload: Upload) -> None:
        """The rest of a part, however long it is."""
        keep = len(self._mark) - 1  # the mark may have begun to arrive
        while (place := self._held.find(self._mark)) < 0:
            sure = max(len(self._held) - keep, 0)
            upload.size += upload.file.write(self._held[:sure])
            self._held = self._held[sure:] + await self._more()
        upload.size += upload.file.write(self._held[:place])
        self._held = self._held[place + len(self._mark) :]

    async def end(self) -> None:
        """The last mark was the last: nothing but a line's end may follow."""
        while len(self._held) <= len(b"--\r\n") and (chunk := await self._wire.more()):
            self._held += chunk
        if self._held not in {b"--", b"--\r\n"}:
            raise InvalidRequest(ODD_FORM)

    async def _until(self, mark: bytes, bytes_max: int) -> bytes:
        while (place := self._held.find(mark)) < 0:
            if len(self._held) > bytes_max + len(mark):
                raise InvalidRequest(ODD_FORM)
            self._held += await self._more()
        if place > bytes_max:
            raise InvalidRequest(ODD_FORM)
        found, self._held = self._held[:place], self._held[place + len(mark) :]
        return found

    async def _more(self) -> bytes:
        chunk = await self._wire.more()
        if not chunk:
            raise InvalidRequest(ODD_FORM)
        return chunk
