"""`gateway bench`: what it counts, what it refuses to count, and the whole command once, with real processes."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gateway.bench import demand, load, machine, pages, plot, report
from gateway.bench.certificates import certify
from gateway.bench.course import Results, Window, percentile, require_status
from gateway.bench.load import Job, Target, Told
from gateway.bench.profile import Part
from gateway.bench.soak import Sample, slope_per_h
from gateway.bench.system import BenchFailed, free_port
from gateway.rules.card import Brands
from gateway.web.server import tls_context
from tests.cards import CANARY, PUBLISHED, TRIGGERS, with_check_digit

BIN = Path(sys.prefix) / "bin"
OK = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"

Answer = Callable[[ssl.SSLSocket, int], None]
"""Answers the n-th request on a connection, or does something else to it."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of a run."""
    folder = tmp_path_factory.mktemp("tls")
    certify(folder)
    return folder


def where(port: int, tls: Path) -> Target:
    """A port, and with which certificates it is spoken to."""
    return Target(port, str(tls / "ca.pem"), str(tls / "client.pem"), str(tls / "client.key"))


@contextmanager
def serving(tls: Path, answer: Answer, hear: Callable[[bytes], object] = len) -> Iterator[Target]:
    """A server that takes one connection and answers each of its requests so, and how to reach it."""
    context = tls_context(tls / "server.pem", tls / "server.key", tls / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            plain, _ = listener.accept()
            # Whoever hangs up, of the two, may be met in the middle of something.
            with suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as connection:
                number = 0
                while heard := connection.recv(65_536):
                    hear(heard)
                    answer(connection, number)
                    number += 1

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield where(port, tls)
        thread.join()


def job(target: Target, requests: int, due_s: Sequence[float] = ()) -> Job:
    """Requests on one connection."""
    return Job(target, [b"POST / HTTP/1.1\r\n\r\n"] * requests, 1, 60, list(due_s))


def test_a_closed_loop_counts_every_answer_by_its_status(tls: Path) -> None:
    """The generator sends what it was given, one after the other, and tells of each how it was answered."""

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        connection.send(OK if number % 3 else OK.replace(b"201 Created", b"503 Busy"))

    with serving(tls, answer) as target:
        told = load.run(job(target, 9))

    assert told.failed == ""
    assert told.answers == {201: 6, 503: 3}
    assert (len(told.latency_s), told.sample) == (9, b"ok")


def test_a_window_has_one_answer_at_least(tls: Path) -> None:
    """A server that is slower than the window is long gives a small rate, and not none."""

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        connection.send(OK)

    with serving(tls, answer) as target:
        told = load.run(msgspec.structs.replace(job(target, 5), seconds=0))

    assert (told.answers, told.sent) == ({201: 1}, 1)
    assert told.seconds > 0


def test_pages_of_aiohttps_client_count_just_as_well(tls: Path) -> None:
    """They send what they were given, whole; what makes the connections counts nowhere."""
    heard: list[bytes] = []

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        connection.send(OK if number % 3 else OK.replace(b"201 Created", b"503 Busy"))

    with serving(tls, answer, heard.append) as target:
        request = demand.post("/v1/tokens", b"{}", authorization="Bearer key")
        told = pages.run(Job(target, [request] * 10, 1, 60))

    assert told.failed == ""
    assert (told.answers, told.sent) == ({201: 6, 503: 3}, 9)
    assert (len(told.latency_s), told.sample) == (9, b"ok")
    assert len(heard) == 10
    assert all(b"Authorization: Bearer key".lower() in one.lower() and one.endswith(b"\r\n\r\n{}") for one in heard)


def test_a_server_that_is_gone_is_no_figure_of_pages_either(tls: Path) -> None:
    """What the client raises is told by its kind."""
    told = pages.run(Job(where(free_port(), tls), [demand.post("/", b"")], 1, 60))
    assert (told.failed, told.answers) == ("ClientConnectorError", {})


def test_time_counts_for_the_innermost_part(tmp_path: Path) -> None:
    """What runs in keys/ counts for the keys, whoever called it; what no part knows is `else`."""
    busy = "from keys.primitives import context\nfor _ in range(150_000): context('a', 1, b'b')"
    script = f"from pathlib import Path\nfrom gateway.bench.profile import watch\nwatch(Path('found'))\n{busy}"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=60)

    looks = msgspec.json.decode((tmp_path / "found").read_bytes(), type=dict[str, int])
    assert set(looks) <= {"keys: envelope, fingerprint, MACs", "else"}
    assert looks["keys: envelope, fingerprint, MACs"] > 10


def test_the_parts_add_up() -> None:
    """The table of a profile says all of a token's time, the largest part first."""
    first, _, *parts = report.part_lines([Part("keys", 0.75, 150.0), Part("else", 0.25, 50.0)])
    assert first.endswith("200 µs")
    assert [line.split() for line in parts] == [["keys", "150", "µs", "75%"], ["else", "50", "µs", "25%"]]


def test_an_answer_may_come_in_pieces(tls: Path) -> None:
    """An answer is whole when its Content-Length is there, however it was cut."""

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        for place in range(len(OK)):
            connection.send(OK[place : place + 1])

    with serving(tls, answer) as target:
        assert load.run(job(target, 3)).answers == {201: 3}


def test_an_open_loop_charges_a_stall_to_all_who_came_meanwhile(tls: Path) -> None:
    """Latency counts from when a request was due, not from when the stalled server let it be sent."""
    due_s = [0.0, 0.001, 0.002, 0.003]
    stalled = threading.Event()

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        if number == 0:
            stalled.wait(0.2)
        connection.send(OK)

    with serving(tls, answer) as target:
        told = load.run(job(target, 4, due_s))

    assert told.answers == {201: 4}
    # They were answered one after the other, and had all been due by then: who began to count when it sent would
    # see one long wait and three short ones.
    first, *others = told.latency_s
    assert min(others) > first / 2


def test_a_connection_that_closes_is_no_figure(tls: Path) -> None:
    """A window whose connection was closed says so instead of giving a rate."""

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        if number:
            raise ConnectionAbortedError
        connection.send(OK)

    with serving(tls, answer) as target:
        told = load.run(job(target, 5))

    assert told.failed
    assert told.answers == {}


def test_a_server_that_nobody_vouches_for_is_refused(tls: Path, tmp_path: Path) -> None:
    """The generator checks certificates, as a page would: an authority of its own is not that of the server."""
    certify(tmp_path)

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        raise AssertionError("it was spoken to")

    context = tls_context(tls / "server.pem", tls / "server.key", tls / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with plain, pytest.raises(OSError, match=r"alert|reset|EOF"):
                context.wrap_socket(plain, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        told = load.run(job(where(listener.getsockname()[1], tmp_path), 1))
        thread.join()

    assert told.failed == "SSLCertVerificationError"


def test_a_stream_is_read_while_it_is_written_and_put_together(tls: Path) -> None:
    """The answer of a stream comes in chunks of any size; its body is their content."""
    sent = b"POST / HTTP/1.1\r\n\r\n" + b"x" * 3_000_000
    chunks = [b"line\n" * count for count in (1, 7, 4_000)]

    def answer(connection: ssl.SSLSocket, number: int) -> None:
        if number:
            return
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        left = len(sent) - 65_536
        while left > 0:
            left -= len(connection.recv(65_536))
        for chunk in chunks:
            connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        connection.sendall(b"0\r\n\r\n")

    with serving(tls, answer) as target:
        told = load.run(Job(target, [sent], 1, 60, stream=True))

    assert told.answers == {200: 1}
    assert told.sample == b"".join(chunks)


def test_cards_of_the_load_are_valid_and_nobodys() -> None:
    """Each request brings another card: one that the gateway takes, and that no processor publishes."""
    numbers = [json.loads(demand.body())["card"]["number"] for _ in range(50)]
    brands = Brands.load(refuse_published=True)

    assert all(brands.find(number) and with_check_digit(number[:-1]) == number for number in numbers)
    assert len(set(numbers)) == 50
    assert not set(numbers) & {*PUBLISHED, *TRIGGERS, CANARY}


def test_arrivals_are_fixed_beforehand() -> None:
    """As many as the rate says, in order, within the window; their number is that of independent arrivals."""
    moments = demand.arrivals_s(rate=1_000, seconds=10)

    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] < 10
    assert 9_000 < len(moments) < 11_000  # ten standard deviations


def test_only_the_expected_answer_makes_a_rate() -> None:
    """A window of refusals, or of none, gives no figure."""
    require_status(Told(answers={201: 5}), 201)
    for answers in ({201: 5, 503: 1}, {}):
        with pytest.raises(BenchFailed):
            require_status(Told(answers=answers), 201)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1_000)])
def test_percentiles_are_values_that_were_seen(share: float, expected: float) -> None:
    """Nearest rank: the smallest value that the share does not exceed."""
    assert percentile([float(value) for value in range(1_000, 0, -1)], share) == expected


def test_a_ratio_is_made_within_a_round() -> None:
    """Of rounds in ever worse weather the ratios stay true; medians of the rates would mix rounds."""
    weather = [1.0, 0.5, 0.1]
    rounds = [{"tokens": Window("tokens", 50 * w), "bare": Window("bare", 100 * w)} for w in weather]
    (ratio,) = report.ratios(rounds)

    assert (ratio.lowest, ratio.median, ratio.highest) == (0.5, 0.5, 0.5)
    assert ratio.met
    assert "met" in report.lines(Results(rounds=rounds))[3]


def test_a_missed_target_says_by_how_much() -> None:
    """The verdict is the median's."""
    rounds = [{"tokens": Window("tokens", rate), "bare": Window("bare", 100)} for rate in (10, 30, 90)]
    (ratio,) = report.ratios(rounds)

    assert not ratio.met
    assert report.ratio_lines([ratio])[1].endswith("0.10-0.90     ≥ 0.40  missed by 0.10")


def test_a_subject_brings_its_yardsticks() -> None:
    """Whoever asks for one comparison gets its windows, and no other."""
    assert list(report.windows_of(["tokens"])) == ["tokens", "bare", "commit", "openbao"]
    assert list(report.windows_of(["charges"])) == ["charges", "bare"]
    assert "tokens" in report.windows_of(["latency"])


def test_the_drawing_shows_every_ratio_and_keeps_names_harmless() -> None:
    """It is well-formed XML with a bar for each ratio, whatever stands in a name."""
    shown = [
        report.Ratio("a < b & c", 0.5, 0.4, 0.6, 0.4, met=True),
        report.Ratio("d", 0.1, 0.1, 0.1, 0.7, met=False),
    ]
    drawn = ET.fromstring(plot.svg(shown))  # noqa: S314 - our own
    texts = [element.text or "" for element in drawn.iter("{http://www.w3.org/2000/svg}text")]

    assert any("a < b & c" in text for text in texts)
    assert {"0.50", "0.10"} <= set(texts)


def test_the_slope_is_that_after_the_warm_up() -> None:
    """Memory that fills in the beginning and then grows by one MiB an hour has that slope, and no other."""
    warm = [Sample(float(at), 50.0 + at, 10, None) for at in range(100)]
    steady = [Sample(float(at), 200 + at / 3600, 10, None) for at in range(100, 400)]

    assert slope_per_h(warm + steady) == pytest.approx(1.0)
    assert slope_per_h(steady[:1]) is None


def test_cpu_time_is_that_of_a_process_and_its_children() -> None:
    """Work of a child counts for its parent, also after the child has ended."""
    burn = "import os; os.fork() or (sum(range(10**7)), os._exit(0)); os.wait(); print('done', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        alone = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11])
        assert machine.cpu_s([process.pid]) > alone / machine.TICKS_PER_S
        assert machine._family([os.getpid()], machine._stats()) >= {os.getpid(), process.pid}
        assert machine.resident_bytes([process.pid]) > 1 << 20
        process.stdin.close()


@pytest.mark.server
async def test_the_whole_command() -> None:
    """Every contestant but OpenBao, which is not on the path, runs; rates are there, and nothing is left behind."""
    place = Path(tempfile.mkdtemp(prefix="gateway-test-"))
    place.chmod(0o711)
    try:
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(place), "GATEWAY_HOME": "/nonexistent"}
        options = ("--rounds", "1", "--seconds", "0.2", "--tokens", "300", "--bulk-lines", "300", "--wraps", "300")
        process = await asyncio.create_subprocess_exec(
            *(str(BIN / "gateway"), "bench", "--json", "--plot", str(place / "ratios.svg"), *options),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        left = {path.name for path in place.iterdir()}
    finally:
        shutil.rmtree(place)

    told = json.loads(output)
    bao = shutil.which("bao", path=str(BIN)) is not None
    assert process.returncode == (0 if bao else 1), output
    assert set(told["missing"]) == (set() if bao else {"openbao"}), told["missing"]
    (windows,) = told["rounds"]
    assert set(windows) >= {target.ours for target in report.TARGETS}
    assert all(window["rate"] > 0 for window in windows.values())
    assert windows["tokens"]["cpu_ms"]["server"] > 0
    assert {"gateway.tokens", "gateway.deks", "gateway.fingerprints", "audit.events"} <= set(told["bytes_per_token"])
    assert told["latency_ms"]["p50"] <= told["latency_ms"]["p99"] <= told["latency_ms"]["p99.9"]
    assert statistics.median(ratio["median"] for ratio in told["ratios"]) > 0
    assert left == {"ratios.svg"}
    assert str(place) not in _command_lines()


def _command_lines() -> str:
    """Of everything that runs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)
