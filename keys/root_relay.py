"""A root key that a parent process holds and its workers use: each asks through a socket that it inherited.

No worker ever holds the root, whatever kind it is: a file's bytes, an HSM's session and the PIN in it, a client of
AWS KMS. The parent opened it once, with whoever had to be asked. Only unwrapping is relayed: a worker uses keys and
makes none.

    request   number (4 bytes) ‖ length of bound_to (2) ‖ bound_to ‖ wrapped     one packet (SOCK_SEQPACKET)
    answer    number ‖ kind (1) ‖ the key, or the line of a refusal
"""

import asyncio
import socket
from contextlib import suppress
from threading import Lock

from keys.errors import KeysError, RootRefused, RootUnavailable
from keys.root import RootKey
from keys.secret import Secret

ANSWER_S = 30.0
"""Longer than an HSM or a cloud service may take over one call."""
PACKET_BYTES_MAX = 16_384
NUMBER_BYTES, LENGTH_BYTES = 4, 2
KEY, REFUSED, UNAVAILABLE = b"K", b"R", b"U"
SILENT = "the parent process, which holds the root, does not answer"
MAKES_NONE = "a worker makes no keys: `keys` does"


class RelayedRoot:
    """The root as a worker sees it. Calls of several threads go one after another."""

    def __init__(self, parent: socket.socket) -> None:
        parent.settimeout(ANSWER_S)
        self._parent = parent
        self._one = Lock()
        self._number = 0

    def wrap(self, secret: Secret[bytes], bound_to: bytes) -> bytes:  # noqa: ARG002 # see keys.root.RootKey
        """Refuse: see `keys.root.RootKey.wrap`."""
        raise RootRefused(MAKES_NONE)

    def unwrap(self, wrapped: bytes, bound_to: bytes) -> Secret[bytes]:
        """See `keys.root.RootKey.unwrap`. Raises `RootUnavailable`, too, when the parent does not answer."""
        with self._one:
            answer = self._ask(len(bound_to).to_bytes(LENGTH_BYTES, "big") + bound_to + wrapped)
        kind, rest = answer[:1], answer[1:]
        if kind == KEY:
            return Secret(rest)
        raise (RootUnavailable if kind == UNAVAILABLE else RootRefused)(rest.decode())

    def _ask(self, question: bytes) -> bytes:
        self._number = (self._number + 1) % (1 << 8 * NUMBER_BYTES)
        number = self._number.to_bytes(NUMBER_BYTES, "big")
        try:
            self._parent.sendall(number + question)
            while answer := self._parent.recv(PACKET_BYTES_MAX):
                if answer.startswith(number):  # else it is a late one, to a question that was given up
                    return answer[NUMBER_BYTES:]
        except OSError:
            pass
        raise RootUnavailable(SILENT)


async def relay(root: RootKey, worker: socket.socket) -> None:
    """Answer one worker until it is gone. What it does, or fails to do, keeps nobody else waiting."""
    loop = asyncio.get_running_loop()
    with worker, suppress(ConnectionError):  # it may die in the middle of a call
        while question := await loop.sock_recv(worker, PACKET_BYTES_MAX):
            await loop.sock_sendall(worker, await asyncio.to_thread(_answer, root, question))


def _answer(root: RootKey, packet: bytes) -> bytes:
    number, question = packet[:NUMBER_BYTES], packet[NUMBER_BYTES:]
    ends = LENGTH_BYTES + int.from_bytes(question[:LENGTH_BYTES], "big")
    try:
        return number + KEY + root.unwrap(question[ends:], question[LENGTH_BYTES:ends]).reveal()
    except RootUnavailable as away:
        return number + UNAVAILABLE + str(away).encode()
    except KeysError as refused:
        return number + REFUSED + str(refused).encode()
