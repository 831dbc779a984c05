"""`POST /v1/tokens/bulk`: many cards in one request, NDJSON both ways, one answer a line, in the order of the lines.

A line is what the body of `POST /v1/tokens` is, judged by the same code, and may carry an `idempotency_key` of its
own; its answer is the token of a 201, or the problem that this line would have been answered with. A line fails
alone: one that is empty, no JSON or longer than `LINE_BYTES_MAX` is an answer like any other, and the stream goes on.
Codes (`cvc`) are refused, because the processor is asked about them one at a time.

How long a stream is does not matter. At most `WINDOW` lines are read and not yet answered, so a client that does not
read is soon not read from either (and cut off by the server's write deadline); one that is silent for `GRACE_S`, or
falls so far behind `BYTES_A_SECOND_MIN` while it is waited for, is given up, however fast it was before. Lines keep
to the application's quota: they are held back, never refused. An application has one stream at a time in a process.

A stream ends early, but whole, when nobody could go on: a line was answered 401, 403 or 503, the client was given up,
the process stops. Then every line that was begun has its answer, and the rest was not looked at. When the connection
breaks instead, up to `WINDOW` lines behind the last answer may have been done: under their keys they are sent again
without harm, from the first line without an answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import structlog
from aiohttp import web
from aiohttp.streams import StreamReader

from gateway.errors import (
    CardNumberInText,
    CardRefused,
    GatewayError,
    IdempotencyKeyInvalid,
    InvalidRequest,
    Unavailable,
)
from gateway.log import described
from gateway.rules.access import Application
from gateway.rules.card import Brands
from gateway.rules.idempotency import read_key
from gateway.rules.problems import problem
from gateway.services.mint import CardGiven
from gateway.services.tokens import Tokens
from gateway.web.bodies import TokenBody, card_given
from gateway.web.problems import describe
from gateway.web.schema import read_body
from gateway.web.server import REQUEST_ID

NDJSON: Final = "application/x-ndjson"
ROUTE: Final = "POST /v1/tokens/bulk"
"""With the department the scope of the lines' idempotency keys."""

WINDOW: Final = 512
"""Lines of one stream that are in memory at once; with more of them, commits are larger and fewer."""
CHUNK: Final = 64
CHUNK_BYTES: Final = 65_536
"""Lines that are begun together, and about as long as they may be: so few that others wait for milliseconds only."""
LINE_BYTES_MAX: Final = 65_536
"""As long as a body of `POST /v1/tokens` may be."""
STREAMS_MAX: Final = 4
STREAMS_OF_A_DEPARTMENT_MAX: Final = 2
GRACE_S: Final = 15.0
BYTES_A_SECOND_MIN: Final = 1024

ENDING: Final = frozenset(
    {"not-identified", "wrong-certificate", "certificate-refused", "not-permitted", "unavailable"}
)
"""What would be said of every further line, too."""

BUSY: Final = "Other bulk streams run at this moment. Wait until one is done, then send this one again."
NO_CODES: Final = "A card with a code is verified one at a time: send it to POST /v1/tokens, or leave `cvc` out."
TOO_LONG: Final = "A line is at most 65,536 bytes long."
NO_KEY: Final = "`idempotency_key` must be 1 to 255 printable ASCII characters."
KEY_BY_LINE: Final = "Here each line carries an `idempotency_key` of its own; the header would be none of theirs."

log = structlog.get_logger()

Recognize = Callable[[], Awaitable[Application]]
"""Who sends a stream, by the register of now; raises `GatewayError` once it may not go on."""


class BulkLine(TokenBody, frozen=True, forbid_unknown_fields=True):
    """One line of `POST /v1/tokens/bulk`: a token's body without `cvc`; the key makes it safe to send again."""

    idempotency_key: str | None = None


def read_line(line: bytes, brands: Brands) -> tuple[CardGiven, str, str | None]:
    """Card, usage and idempotency key of a line; raises what `POST /v1/tokens` is refused with."""
    if len(line) > LINE_BYTES_MAX:
        raise InvalidRequest(TOO_LONG)
    return judged(read_body(line, BulkLine), brands)


def judged(body: BulkLine, brands: Brands) -> tuple[CardGiven, str, str | None]:
    """The same of a line that was parsed."""
    if body.card.cvc is not None:
        raise CardRefused(NO_CODES, ["/card/cvc"])
    return card_given(body, brands), body.usage, _key(body.idempotency_key, brands)


def _key(text: str | None, brands: Brands) -> str | None:
    if text is None:
        return None
    try:
        key = read_key(text)
    except IdempotencyKeyInvalid:
        raise IdempotencyKeyInvalid(NO_KEY, ["/idempotency_key"]) from None
    if brands.find(key):
        raise CardNumberInText(pointers=["/idempotency_key"])
    return key


class BulkTokens:
    """The places at which streams are served."""

    def __init__(self, tokens: Tokens, brands: Brands, grace_s: float = GRACE_S) -> None:
        self._tokens = tokens
        self._brands = brands
        self._grace_s = grace_s
        self._served: set[tuple[str, str]] = set()

    async def answer(self, request: web.Request, caller: Application, recognize: Recognize) -> web.StreamResponse:
        """Serve a stream to its end.

        Raises:
            InvalidRequest: one Idempotency-Key for all lines.
            Unavailable: every place is taken, or the application's own.
        """
        if "Idempotency-Key" in request.headers:
            raise InvalidRequest(KEY_BY_LINE)
        name = caller.department, caller.application_id
        beside = sum(department == caller.department for department, _ in self._served)
        if name in self._served or beside == STREAMS_OF_A_DEPARTMENT_MAX or len(self._served) == STREAMS_MAX:
            raise Unavailable(BUSY)
        self._served.add(name)
        try:
            response = web.StreamResponse(headers={"Content-Type": NDJSON})
            response.force_close()  # after an early end nobody knows where the next request would begin
            await response.prepare(request)
            lines = _Lines(request.content, self._grace_s)
            work = _Work(self._tokens, self._brands, recognize, request[REQUEST_ID])
            await _Stream(lines, work, response, caller.requests_per_s_max).run()
        finally:
            self._served.discard(name)
        return response


class _Lines:
    """The lines of a body as they come."""

    def __init__(self, content: StreamReader, grace_s: float) -> None:
        self._content = content
        self._grace_s = grace_s
        self._left_s = grace_s
        self._held = b""

    async def more(self) -> list[bytes] | None:
        """What has come since in whole lines, perhaps none yet; None at the end.

        Of one that is too long comes as much as shows that it is. Raises `OSError` (`TimeoutError` among them) or
        `web.RequestPayloadError` when nothing more will come; what was begun of a line then is none.
        """
        chunk = await self._chunk()
        if not chunk:
            last, self._held = self._held, b""
            return [last] if last else None
        first, *others = chunk.split(b"\n")
        first = (self._held + first)[: LINE_BYTES_MAX + 1]
        if not others:
            self._held = first
            return []
        self._held = others.pop()[: LINE_BYTES_MAX + 1]
        return [first, *others]

    async def _chunk(self) -> bytes:
        clock = asyncio.get_running_loop().time
        began_s = clock()  # only the time in which it is waited for the client counts against it
        async with asyncio.timeout(self._left_s):
            chunk = await self._content.readany()
        # Of a line that never ends no more counts for its sender than a line may have.
        room = len(chunk) if b"\n" in chunk else LINE_BYTES_MAX - len(self._held)
        earned_s = max(0, min(len(chunk), room)) / BYTES_A_SECOND_MIN
        self._left_s = min(self._grace_s, self._left_s - (clock() - began_s) + earned_s)
        return chunk


class _Work:
    """What is done with lines, on behalf of one request."""

    def __init__(self, tokens: Tokens, brands: Brands, recognize: Recognize, request_id: str) -> None:
        self._tokens = tokens
        self._brands = brands
        self._recognize = recognize
        self._request_id = request_id
        self.over: Callable[[], object] = lambda: None
        """Called when no further line could be served."""

    async def answers(self, lines: list[bytes]) -> bytes:
        """An answer to each line, in their order."""
        try:
            caller = await self._recognize()
        except GatewayError as error:
            return (self._refused(error) + b"\n") * len(lines)
        async with asyncio.TaskGroup() as group:  # which, unlike `gather`, is not left before all of it has ended
            answers = [group.create_task(self._answer(caller, line)) for line in lines]
        return b"".join(answer.result() + b"\n" for answer in answers)

    async def _answer(self, caller: Application, line: bytes) -> bytes:
        try:
            given, usage, key = read_line(line, self._brands)
            return (await self._tokens.create(caller, given, usage, key, self._request_id, route=ROUTE)).body
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one line is wrong with that line alone
            return self._refused(error)

    def _refused(self, error: Exception) -> bytes:
        told = describe(error)
        if told is None:
            log.error("request.failed", **described(error), request_id=self._request_id)
            return problem("internal-error")
        if told[0] in ENDING:
            self.over()
        return problem(*told)


class _Stream:
    """One request between its lines and its answers: reading, working and writing go on side by side."""

    def __init__(self, lines: _Lines, work: _Work, response: web.StreamResponse, lines_per_s_max: int) -> None:
        self._lines = lines
        self._work = work
        self._response = response
        self._lines_per_s_max = lines_per_s_max
        self._due_s = 0.0
        self._room = asyncio.Semaphore(WINDOW // CHUNK)
        self._answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until the end, or until the client is gone: then nothing more is begun, and no task is left."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(group))
                self._work.over = reading.cancel
                await self._write()
        except* OSError:  # it is gone: what was committed stays
            pass

    async def _read(self, group: asyncio.TaskGroup) -> None:
        try:
            while (lines := await self._lines.more()) is not None:
                for chunk in _chunks(lines, min(CHUNK, self._lines_per_s_max)):
                    await self._room.acquire()
                    await self._keep_pace(len(chunk))
                    self._answers.put_nowait(group.create_task(self._work.answers(chunk)))
        except (OSError, web.RequestPayloadError):
            pass
        finally:  # cancelled, too: by `over`, and by a server that stops and takes the body away
            self._answers.put_nowait(None)

    async def _keep_pace(self, lines: int) -> None:
        now_s = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, self._due_s - now_s))
        self._due_s = max(self._due_s, now_s) + lines / self._lines_per_s_max

    async def _write(self) -> None:
        while (answers := await self._answers.get()) is not None:
            await self._response.write(await answers)
            self._room.release()


def _chunks(lines: list[bytes], lines_max: int) -> Iterator[list[bytes]]:
    """The same lines in their order, so many together, and fewer of long ones."""
    chunk: list[bytes] = []
    size = 0
    for line in lines:
        if chunk and (len(chunk) == lines_max or size + len(line) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(line)
        size += len(line)
    if chunk:
        yield chunk
