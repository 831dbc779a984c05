"""`gateway import`: stored cards of an older vault, through the public API, a token for each.

A client like any other, of `POST /v1/tokens/bulk`: it has an API key, and neither a card key nor the database. Each
line goes under an idempotency key that is made of the import's random id and the line's number (`import_result`), so
that it may be sent as often as need be and gets one token. What breaks is tried again from the first line without an
answer: a lost connection, a gateway that cannot serve now, a stream that ended early. Only where nobody listens from
the start there is nothing to wait for.
"""

import asyncio
import re
import signal
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import aiohttp
import msgspec
import typer

from gateway.cli.card_file import FORMS, CardFile, Line, Refusal
from gateway.cli.import_result import Outcome, ResultFile
from gateway.cli.options import AsJson, ConfigFile, config_of
from gateway.clock import SystemClock
from gateway.errors import GatewayError
from gateway.rules.card import require_valid
from gateway.rules.problems import TYPES
from gateway.web.bulk import NDJSON
from keys.cli.bench import DryRun, tell
from keys.cli.pace import Pace, pace
from keys.errors import KeysError, SettingsRefused
from keys.files import read_private_line

PATH = "/v1/tokens/bulk"
URL = re.compile(r"https://[^/?#@\s]+")
LINES_PER_S = 2_000
"""What one process of the gateway seals and stores on one core, roughly: for `--dry-run` alone."""

BATCH_LINES = 64
PAUSE_S = 0.5
PAUSE_S_MAX = 15.0
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)
SHOWN_MAX = 20
INTERRUPTED = 128 + signal.SIGINT

AGAIN = frozenset({"unavailable", "request-in-progress", "too-many-requests"})
"""What is said of a moment, not of a line."""
TURNED_AWAY = frozenset({"not-identified", "wrong-certificate", "certificate-refused", "not-permitted"})


class ImportStopped(KeysError):
    """It cannot go on, and sending again would change nothing."""


class _Interrupted(Exception):
    """This attempt has ended; another one goes on from where the result is."""


class _Shown(msgspec.Struct):
    """What a token shows of its card."""

    last4: str


class _Answer(msgspec.Struct):
    """One line that the gateway answered: a token's `id` and `card`, or a problem's type, detail and places."""

    id: str = ""
    card: _Shown | None = None
    type: str = ""
    detail: str = ""
    errors: list[dict[str, str]] = []

    def require_about_a_line(self) -> None:
        """Raises for what is said of the moment, or of the sender, and would be said of every line."""
        slug = self.type.rpartition("/")[2]
        if slug in AGAIN:
            raise _Interrupted(TYPES[slug].title.lower())
        if slug in TURNED_AWAY:
            raise ImportStopped(_turned_away(slug))

    def is_of(self, line: Line) -> bool:
        """Whether it can be about this line: a token shows the same last digits, unless it is erased."""
        return self.card is None or (line.card is not None and line.card.card.number.endswith(self.card.last4))

    def outcome(self, line: Line, cards: CardFile) -> Outcome:
        """What became of the line."""
        if self.id:
            return Outcome(line.number, line.own_id, self.id)
        detail = cards.detail(self.detail, (error.get("pointer", "").removeprefix("#") for error in self.errors))
        return Outcome(line.number, line.own_id, slug=self.type.rpartition("/")[2], detail=detail)


class Importer:
    """Sends the lines of a file until each has its outcome in the result."""

    def __init__(self, cards: CardFile, result: ResultFile, session: aiohttp.ClientSession, keeping: Pace) -> None:
        self._cards = cards
        self._result = result
        self._session = session
        self._keeping = keeping
        self._found = False
        """Whether somebody has answered before, and so may come back."""

    async def run(self, patience_s: float) -> None:
        """Raises `ImportStopped` when the gateway refuses, or nothing has moved for `patience_s`."""
        clock = asyncio.get_running_loop().time
        moved_s, pause_s, told = clock(), PAUSE_S, ""
        while (before := self._result.lines) < self._cards.lines:
            why = await self._attempt()
            if self._result.lines > before:
                moved_s, pause_s, told = clock(), PAUSE_S, ""
            elif clock() - moved_s >= patience_s:
                raise ImportStopped(f"{why}, nothing has moved for {patience_s:,.0f} s: run this again, it goes on")
            if self._result.lines < self._cards.lines:
                if why != told:
                    left_s = patience_s - (clock() - moved_s)
                    typer.echo(f"gateway: {why}; trying again, for {left_s:,.0f} s unless something moves", err=True)
                    told = why
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    async def _attempt(self) -> str:
        """One stream, from the first line without an outcome; why it has ended."""
        attempt = _Attempt(self._cards, self._result, self._keeping)
        headers = {"Content-Type": NDJSON}
        try:
            # Cards follow nobody to another place: a redirect is an answer like any other that is not 200.
            post = self._session.post(PATH, data=attempt.lines(), headers=headers, allow_redirects=False)
            async with post as response:
                self._found = True
                if response.status != 200:  # noqa: PLR2004 - every other one is of the whole stream
                    _require_again(response.status)
                held = b""
                async for chunk in response.content.iter_any():
                    *whole, held = (held + chunk).split(b"\n")
                    await attempt.settle(map(_read, whole))
        except _Interrupted as error:
            return str(error)
        except aiohttp.ClientConnectorCertificateError:
            told = "the gateway's certificate is not for this host, is out of date, or not one that --ca vouches for"
            raise ImportStopped(told) from None
        except aiohttp.ClientConnectorSSLError:
            raise ImportStopped("no TLS that this client takes is spoken there: is --url right?") from None
        except aiohttp.ConnectionTimeoutError:
            return "the gateway does not answer"
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                return self._nobody(f"{error.host}:{error.port}")
            unknown = isinstance(error.os_error, socket.gaierror)
            return "the gateway's host is not known by this name" if unknown else "no connection could be made"
        except (aiohttp.ClientError, OSError):
            return "the connection was lost"
        finally:
            attempt.over = True
        return "the gateway ended the stream"

    def _nobody(self, where: str) -> str:
        if not self._found:
            raise ImportStopped(f"nobody listens at {where}: start the gateway there, or correct --url")
        return f"nobody listens at {where} any more"


class _Attempt:
    """One stream: which lines are on their way. Once it is `over`, what aiohttp still holds of it does nothing."""

    def __init__(self, cards: CardFile, result: ResultFile, keeping: Pace) -> None:
        self._cards = cards
        self._result = result
        self._keeping = keeping
        self._sent: deque[Line] = deque()
        self.over = False

    async def lines(self) -> AsyncIterator[bytes]:
        """What is sent, a batch at a time."""
        lines = self._cards.read(self._result.lines)
        while not self.over and (batch := list(islice(lines, BATCH_LINES))):
            self._sent.extend(batch)
            await self.settle(())
            if content := b"".join(line.sent(self._result.import_id) for line in batch):
                yield content

    async def settle(self, answers: Iterable[_Answer]) -> None:
        """Write down what has an outcome now, in order; raises for an answer that is not about its line."""
        settled: list[Outcome] = []
        try:
            self._refused_here(settled)
            for answer in answers:
                answer.require_about_a_line()
                if not self._sent or not answer.is_of(line := self._sent.popleft()):
                    raise ImportStopped("an answer is of no line that was sent: is --url the gateway's API?")
                settled.append(answer.outcome(line, self._cards))
                self._refused_here(settled)
        finally:
            self._result.write(settled)
        await self._keeping.moved(len(settled))

    def _refused_here(self, settled: list[Outcome]) -> None:
        while self._sent and (refusal := self._sent[0].refusal):
            line = self._sent.popleft()
            settled.append(Outcome(line.number, line.own_id, slug=refusal.slug, detail=refusal.detail))


def import_cards(
    cards: Annotated[
        Path, typer.Argument(help="The cards: CSV with a header, or NDJSON.", exists=True, dir_okay=False)
    ],
    url: Annotated[str | None, typer.Option(help="The API, https://host:port; else the configuration's.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A private file with the API key.")] = None,
    ca: Annotated[Path | None, typer.Option(help="Who vouches for the API's certificate; else the system's.")] = None,
    cert: Annotated[
        Path | None, typer.Option(help="The application's client certificate, where one is asked.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    form: Annotated[str | None, typer.Option("--format", help="csv or ndjson; else by the file's name.")] = None,
    usage: Annotated[str, typer.Option(help="single or multi, for lines that do not say.")] = "multi",
    result: Annotated[
        Path | None, typer.Option(help="Where the outcomes go; else FILE.result.csv or .ndjson.")
    ] = None,
    patience: Annotated[float, typer.Option(help="Give up when nothing moves for so many seconds.", min=0)] = 300,
    config: ConfigFile = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Bring stored cards into the gateway: one token each, or one reason why not, by line.

    CSV names its columns in the first line. It needs number, name, and either expiry (MM/YY or MM/YYYY) or exp_month
    and exp_year. It may have usage (single or multi), consent and id.

    NDJSON has on each line what POST /v1/tokens takes, without cvc, and perhaps an id:
    {"id": "r-17", "name": "Ramona", "card": {"number": "…", "exp_month": 12, "exp_year": 2031}}

    The id is yours: it is never sent, and stands in the result beside the token. In a CSV result an id that a
    spreadsheet would take for a formula (it begins with =, +, - or @) has a ' before it.

    May be killed and started again with the same arguments: it goes on, and no card gets a second token. The file of
    cards is neither copied nor changed. Exit 1 when a line failed, or when it broke off; 130 after Ctrl-C.

    Example: gateway import cards.csv --api-key-file parks.key --ca city-ca.pem
    """
    form = form or cards.suffix.removeprefix(".").lower()
    if form not in FORMS:
        raise typer.BadParameter(
            "csv or ndjson is known, and the file's name does not say which", param_hint="--format"
        )
    if usage not in {"single", "multi"}:
        raise typer.BadParameter("single or multi", param_hint="--usage")
    if not cards.is_file():
        raise typer.BadParameter("a file, not a pipe: it is read more than once", param_hint="FILE")
    source = CardFile(cards, form, usage)
    if dry_run:
        _tell_dry(as_json, source)
        return
    if api_key_file is None:
        raise typer.BadParameter("name the file with the API key", param_hint="--api-key-file")
    url = url or _configured(config)
    if not _is_address(url):
        raise typer.BadParameter("https://host:port, and nothing behind it", param_hint="--url")
    with closing(ResultFile.of(result or cards.with_name(f"{cards.name}.result.{form}"), source, url)) as written:
        work = _import(source, written, url, api_key_file, _tls(ca, cert, key), patience)
        try:
            seconds = asyncio.run(work)
        except KeyboardInterrupt:
            done = f"{written.lines:,} of {source.lines:,} lines are answered, in {written.path}"
            typer.echo(f"gateway: interrupted; {done}. The same command goes on from there.", err=True)
            raise typer.Exit(INTERRUPTED) from None
    told = {"lines": written.lines, "tokens": written.tokens, "failed": written.failed, "seconds": round(seconds, 3)}
    words = f"{written.tokens:,} of {source.lines:,} cards have their token, {written.failed:,} lines failed"
    tell(as_json, told | {"result": str(written.path)}, f"{words}: {written.path}")
    if written.failed:
        raise typer.Exit(1)


async def _import(
    cards: CardFile, result: ResultFile, url: str, api_key_file: Path, tls: ssl.SSLContext, patience_s: float
) -> float:
    headers = {"Authorization": f"Bearer {_printable(api_key_file)}"}
    connector = aiohttp.TCPConnector(ssl=tls)
    session = aiohttp.ClientSession(url, connector=connector, headers=headers, timeout=TIMEOUT)
    async with session:
        with pace("Importing", cards.lines) as keeping:
            await keeping.moved(result.lines)
            await Importer(cards, result, session, keeping).run(patience_s)
            return keeping.seconds


def _tell_dry(as_json: bool, cards: CardFile) -> None:
    """How many lines there are, and which do not look right; the department's own rules are the gateway's to know."""
    refused = [(line, refusal) for line in cards.read() if (refusal := _doubt(cards, line))]
    about = timedelta(seconds=round(cards.lines / LINES_PER_S))
    lines = [f"line {line.number}: {refusal.detail}" for line, refusal in refused[:SHOWN_MAX]]
    if len(refused) > SHOWN_MAX:
        lines.append(f"and {len(refused) - SHOWN_MAX:,} more")
    told = [
        {"line": line.number, "id": line.own_id, "type": refusal.slug, "detail": refusal.detail}
        for line, refusal in refused
    ]
    words = f"{cards.lines:,} lines, {len(refused):,} of them do not look right; it would take about {about}."
    tell(as_json, {"lines": cards.lines, "refused": told, "seconds": about.total_seconds()}, *lines, words)
    if refused:
        raise typer.Exit(1)


def _doubt(cards: CardFile, line: Line) -> Refusal | None:
    if line.refusal is not None:
        return line.refusal
    try:
        require_valid(cards.card(line), ZoneInfo("UTC"), SystemClock().now())
    except GatewayError as error:
        return cards.refusal(error)
    return None


def _read(raw: bytes) -> _Answer:
    try:
        return msgspec.json.decode(raw, type=_Answer)
    except msgspec.MsgspecError:
        raise ImportStopped("an answer is none of this gateway's: is --url its API?") from None


def _require_again(status: int) -> None:
    """Raises `_Interrupted` for a refusal that passes, else `ImportStopped`."""
    if status in {408, 429} or status >= 500:  # noqa: PLR2004 - RFC 9110 section 15.6
        raise _Interrupted(f"the gateway answers {status}")
    slugs = {401: "not-identified", 403: "not-permitted"}
    if status in slugs:
        raise ImportStopped(_turned_away(slugs[status]))
    raise ImportStopped(f"the gateway answers {status}: is --url its API, and of this release?")


def _turned_away(slug: str) -> str:
    return f"the gateway refuses this API key or certificate ({TYPES[slug].title}): run this again with one that may"


def _configured(config: str | None) -> str:
    api = config_of(config).api
    return f"https://{api.host}:{api.port}"


def _printable(api_key_file: Path) -> str:
    key = read_private_line(api_key_file).reveal()
    if not (key.isascii() and key.isprintable()):
        raise SettingsRefused(f"--api-key-file: {api_key_file} must hold the key, on one line, and nothing else")
    return key


def _is_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        name = (address.hostname or "").encode("idna")
        return URL.fullmatch(url) is not None and address.port != 0 and bool(name.strip(b"."))
    except ValueError:  # a port, or a name, that cannot be
        return False


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    if key is not None and cert is None:
        raise typer.BadParameter("a key is of a certificate: name that, too", param_hint="--cert")
    try:
        tls = ssl.create_default_context(cafile=ca)
        if cert is not None:
            tls.load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        raise SettingsRefused(
            "--ca, --cert and --key must be PEM files that belong together, without passphrase"
        ) from None
    return tls
