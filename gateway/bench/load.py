"""The generator of load: a process of its own that must cost less than what it measures.

Requests come rendered; answers are read as far as HTTP/1.1 with a Content-Length asks for (RFC 9112 §6.2). One
thread, sockets that do not block, one look for all of them: asyncio's TLS alone would cost more. It speaks msgpack
with who started it, a frame a message: four bytes of length, then the message.

*Closed loop*: as many requests in flight as there are connections; it gives a rate. *Open loop*: each request has
its moment, fixed beforehand, and its latency counts from there, whether a connection was free then or not: a server
that stalls is charged for all who came meanwhile (no coordinated omission). *Stream*: one request with a long body,
written and read at once.
"""

import re
import selectors
import socket
import ssl
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import msgspec

from gateway.bench.machine import cpu_s

READ_BYTES = 65_536
PATIENCE_S = 30.0
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
FRAME_BYTES = 4


class LoadFailed(Exception):
    """No figure can come of this: a connection was not made, or was closed; a person may read why."""


class Target(msgspec.Struct, frozen=True):
    """Where to send, with which certificates (paths), and whose CPU time to read: groups of processes by name."""

    port: int
    ca: str
    cert: str
    key: str
    watched: dict[str, list[int]] = {}


class Job(msgspec.Struct, frozen=True):
    """One window. With `due_s`, seconds from its begin for each request, it is an open loop, else closed."""

    target: Target
    requests: list[bytes]
    connections: int
    seconds: float
    due_s: list[float] = []
    stream: bool = False


class Told(msgspec.Struct):
    """What a window gave: answers by status within it, how long each took, CPU seconds of those watched and our own.

    `sent` counts those that were answered after its end, too; `sample` is the body of one answer, of a stream
    all of it.
    """

    seconds: float = 0.0
    sent: int = 0
    answers: dict[int, int] = {}
    latency_s: list[float] = []
    cpu_s: dict[str, float] = {}
    own_cpu_s: float = 0.0
    sample: bytes = b""
    failed: str = ""


class Line:
    """One kept-alive connection with at most one request on its way."""

    __slots__ = ("body", "heard", "since_s", "sock")

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self.sock = sock
        self.heard = bytearray()
        self.since_s = 0.0
        self.body = b""

    def say(self, request: bytes, since_s: float) -> None:
        """Send a request whose time runs since then."""
        self.since_s = since_s
        if self.sock.send(request) != len(request):
            raise LoadFailed("a request did not fit into a socket's buffer")

    def hear(self) -> int | None:
        """The status of a whole answer, None while it is not there."""
        while True:
            try:
                part = self.sock.recv(READ_BYTES)
            except ssl.SSLWantReadError:
                return None
            if not part:
                raise LoadFailed("a connection was closed under a request")
            self.heard += part
            head = self.heard.find(HEAD_END)
            if head < 0:
                continue
            length = LENGTH.search(self.heard, 0, head)
            end = head + len(HEAD_END) + (int(length[1]) if length else 0)
            if len(self.heard) >= end:
                status = int(self.heard[9:12])
                self.body = bytes(self.heard[head + len(HEAD_END) :])
                self.heard.clear()
                return status


class Window:
    """One job at work."""

    def __init__(self, job: Job, lines: list[Line]) -> None:
        self._job = job
        self._lines = lines
        self._sent = 0
        self._answers: Counter[int] = Counter()
        self._latency_s: list[float] = []

    def run(self) -> Told:
        """Open or closed; the CPU times are those of this window, connections being made before it."""
        target = self._job.target
        watched, own = watched_cpu_s(target), time.process_time()
        begun = time.perf_counter()
        ended = self._open(begun) if self._job.due_s else self._closed(begun)
        own = time.process_time() - own
        used = {name: after - watched[name] for name, after in watched_cpu_s(target).items()}
        sample = self._lines[0].body
        return Told(ended - begun, self._sent, dict(self._answers), self._latency_s, used, own, sample)

    def _closed(self, begun: float) -> float:
        supply, until, last = iter(self._job.requests), begun + self._job.seconds, begun
        with _watching(selectors.DefaultSelector(), self._lines) as selector:
            for line, request in zip(self._lines, supply, strict=False):
                self._say(line, request, time.perf_counter())
            flying = self._sent
            while flying:
                for line, status in _heard(selector, PATIENCE_S):
                    now = time.perf_counter()
                    if now < until or not self._answers:  # one answer makes a figure, however late
                        last = now
                        self._note(status, now - line.since_s)
                    request = next(supply, b"") if now < until else b""
                    if request:
                        self._say(line, request, now)
                    else:
                        flying -= 1
        return last

    def _open(self, begun: float) -> float:
        due, idle = self._job.due_s, deque(self._lines)
        # Not epoll, whose waits are whole milliseconds.
        with _watching(selectors.SelectSelector(), self._lines) as selector:
            while sum(self._answers.values()) < len(due):
                now = time.perf_counter()
                while idle and self._sent < len(due) and begun + due[self._sent] <= now:
                    self._say(idle.popleft(), self._job.requests[self._sent], begun + due[self._sent])
                waits = idle and self._sent < len(due)
                wait_s = max(0.0, begun + due[self._sent] - now) if waits else PATIENCE_S
                for line, status in _heard(selector, wait_s):
                    self._note(status, time.perf_counter() - line.since_s)
                    idle.append(line)
        return time.perf_counter()

    def _say(self, line: Line, request: bytes, since_s: float) -> None:
        line.say(request, since_s)
        self._sent += 1

    def _note(self, status: int, latency_s: float) -> None:
        self._answers[status] += 1
        self._latency_s.append(latency_s)


def stream(job: Job, sock: ssl.SSLSocket) -> Told:
    """Write the one request and read its answer, both as fast as they go, until the answer is whole."""
    watched = watched_cpu_s(job.target)
    left, heard, own, begun = memoryview(job.requests[0]), bytearray(), time.process_time(), time.perf_counter()
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    while not _is_whole(heard):
        if not selector.select(PATIENCE_S):
            raise LoadFailed("a stream stood still")
        try:
            while left:
                left = left[sock.send(left[:READ_BYTES]) :]
            selector.modify(sock, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            pass
        try:
            while part := sock.recv(READ_BYTES):
                heard += part
            break  # closed: what came is all
        except ssl.SSLWantReadError:
            pass
    seconds = time.perf_counter() - begun
    used = {name: after - watched[name] for name, after in watched_cpu_s(job.target).items()}
    return Told(seconds, 1, {int(heard[9:12] or 0): 1}, [], used, time.process_time() - own, _body(bytes(heard)))


def run(job: Job) -> Told:
    """A window of its own connections."""
    lines: list[Line] = []
    try:
        lines += (Line(_connected(job.target)) for _ in range(job.connections))
        return stream(job, lines[0].sock) if job.stream else Window(job, lines).run()
    except (OSError, LoadFailed) as error:
        return Told(failed=str(error) if isinstance(error, LoadFailed) else type(error).__name__)
    finally:
        for line in lines:
            line.sock.close()


def watched_cpu_s(target: Target) -> dict[str, float]:
    """The CPU time so far of those whom the window watches, by group."""
    return {name: cpu_s(pids) for name, pids in target.watched.items()}


def tls_of(target: Target) -> ssl.SSLContext:
    """TLS 1.3 with the client's certificate."""
    context = ssl.create_default_context(cafile=target.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(target.cert, target.key)
    return context


def read_frame(source: BinaryIO) -> bytes:
    """The next message; empty at the end."""
    return source.read(int.from_bytes(source.read(FRAME_BYTES), "big"))


def frame(message: object) -> bytes:
    """A message as it is sent."""
    packed = msgspec.msgpack.encode(message)
    return len(packed).to_bytes(FRAME_BYTES, "big") + packed


def serve(run: Callable[[Job], Told]) -> None:
    """Jobs on standard input, one after the other, what they told on standard output."""
    while raw := read_frame(sys.stdin.buffer):
        told = run(msgspec.msgpack.decode(raw, type=Job))
        sys.stdout.buffer.write(frame(told))
        sys.stdout.buffer.flush()


def _connected(target: Target) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock = tls_of(target).wrap_socket(plain, server_hostname="127.0.0.1")
    sock.setblocking(False)
    return sock


@contextmanager
def _watching(selector: selectors.BaseSelector, lines: list[Line]) -> Iterator[selectors.BaseSelector]:
    with selector:
        for line in lines:
            selector.register(line.sock, selectors.EVENT_READ, line)
        yield selector


def _heard(selector: selectors.BaseSelector, wait_s: float) -> Iterator[tuple[Line, int]]:
    ready = selector.select(wait_s)
    if not ready and wait_s == PATIENCE_S:
        raise LoadFailed("nothing was answered any more")
    for key, _ in ready:
        status = key.data.hear()
        if status is not None:
            yield key.data, status


def _is_whole(heard: bytearray) -> bool:
    head = heard.find(HEAD_END)
    if head < 0:
        return False
    length = LENGTH.search(heard, 0, head)
    if length:
        return len(heard) >= head + len(HEAD_END) + int(length[1])
    return heard.endswith(b"\r\n0\r\n\r\n")


def _body(answer: bytes) -> bytes:
    """What follows the head, put together again where it came in chunks (RFC 9112 §7.1)."""
    place = answer.find(HEAD_END) + len(HEAD_END)
    if LENGTH.search(answer, 0, place):
        return answer[place:]
    parts = []
    while (end := answer.find(b"\r\n", place)) > place:
        length = int(answer[place:end].partition(b";")[0], 16)
        parts.append(answer[end + 2 : end + 2 + length])
        place = end + 2 + length + 2
    return b"".join(parts)


if __name__ == "__main__":
    serve(run)
