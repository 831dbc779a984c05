"""AWS KMS for tests: moto's, and a thin fake for what moto does not do.

moto knows contexts, foreign keys and rotation, and lets anybody decrypt with a disabled key. The fake has one key
and no memory but its calls; it disables, denies, throttles, hangs and talks nonsense when a test says so. Both are
real servers on loopback.
"""

import base64
import json
import secrets
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keys.files import write_private

REGION = "us-west-2"
ACCOUNT = "111122223333"
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
ARN = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY_ID}"
CANARY = "said-by-the-service"
"""Stands in every message of the fake: no refusal of ours may quote it."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the fake says instead of the truth: after a while, a status and a body; None hangs up."""

    status: int = 400
    body: bytes | None = b""
    after: float = 0.0


def error(code: str, status: int = 400) -> Answer:
    """An error as KMS gives it."""
    return Answer(status, json.dumps({"__type": f"com.amazonaws.kms#{code}", "message": CANARY}).encode())


@dataclass
class FakeKms:
    """One symmetric key behind the JSON protocol of KMS."""

    url: str = ""
    about: Json = field(default_factory=dict)
    """What DescribeKey says otherwise than of a key that is as it must be."""
    instead: Callable[[str], Answer | None] = lambda _action: None
    """Asked before each action; None lets it happen."""
    calls: list[tuple[str, Json]] = field(default_factory=list)
    signed_by: list[str] = field(default_factory=list)
    material: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    going: threading.Event = field(default_factory=threading.Event)

    def well_again(self) -> None:
        """Forget the calls and what to say instead of the truth."""
        self.about, self.instead, self.calls, self.signed_by = {}, lambda _action: None, [], []

    def actions(self) -> list[str]:
        """The actions that were called, in order."""
        return [action for action, _ in self.calls]

    def handle(self, action: str, request: Json) -> Answer:
        """One call."""
        self.calls.append((action, request))
        instead = self.instead(action)
        if instead is not None:
            self.going.wait(instead.after)
            return instead
        return Answer(200, json.dumps({"KeyId": ARN} | getattr(self, f"_{action.lower()}")(request)).encode())

    def _describekey(self, _request: Json) -> Json:
        about = {"KeyId": KEY_ID, "Arn": ARN, "KeyState": "Enabled", "Enabled": True}
        return {"KeyMetadata": about | {"KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT"} | self.about}

    def _encrypt(self, request: Json) -> Json:
        nonce, plaintext = secrets.token_bytes(12), base64.b64decode(request["Plaintext"])
        sealed = AESGCM(self.material).encrypt(nonce, plaintext, _associated(request))
        return {"CiphertextBlob": base64.b64encode(nonce + sealed).decode()}

    def _decrypt(self, request: Json) -> Json:
        blob = base64.b64decode(request["CiphertextBlob"])
        opened = AESGCM(self.material).decrypt(blob[:12], blob[12:], _associated(request))
        return {"Plaintext": base64.b64encode(opened).decode()}


@contextmanager
def running_fake(tls: ssl.SSLContext | None = None) -> Iterator[FakeKms]:
    """The fake on a port of its own, over TLS if it is given a certificate."""
    fake = FakeKms()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one piece; in two, each waits 40 ms for the other side's acknowledgement

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fake.signed_by.append(self.headers["Authorization"].partition("Credential=")[2].partition("/")[0])
            action = self.headers.get("X-Amz-Target", "").partition(".")[2]
            try:
                answer = fake.handle(action, json.loads(body) if action else {})
            except (InvalidTag, ValueError):
                answer = error("InvalidCiphertextException")
            if answer.body is None:
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Nothing: the test run's output is not a log."""

    with _Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            fake.going.set()
            server.shutdown()
            thread.join()
            server.hang_up()


class _Server(ThreadingHTTPServer):
    def __init__(self, *arguments: Any) -> None:
        self._connections: list[socket.socket] = []
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.append(request)
        super().process_request(request, client_address)

    def hang_up(self) -> None:
        """End the connections that clients keep, so that the server is really gone."""
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """A client that gave up, or did not trust us, is what a test wanted."""


def _associated(request: Json) -> bytes:
    return json.dumps(request.get("EncryptionContext", {}), sort_keys=True).encode()


@contextmanager
def running_moto() -> Iterator[str]:
    """The address of moto's server. What it warns about is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield f"http://{host}:{port}"
        finally:
            server.stop()


def administrator(url: str) -> Any:
    """A botocore client of KMS for what the product does not do: to make keys, to rotate them."""
    return botocore.session.Session().create_client(
        "kms", region_name=REGION, endpoint_url=url, aws_access_key_id="admin", aws_secret_access_key="admin"
    )


def make_key(administrator: Any, **kind: str) -> str:
    """The ARN of a new key; symmetric unless told otherwise. moto leaves the usage out unless it is named."""
    arn: str = administrator.create_key(**{"KeyUsage": "ENCRYPT_DECRYPT"} | kind)["KeyMetadata"]["Arn"]
    return arn


def credentials_file(path: Path, access_key: str = "AKIDEXAMPLE") -> Path:
    """A private shared credentials file."""
    content = f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {'x' * 40}\n"
    write_private(path, content.encode(), replace=True)
    return path


def uri(url: str, credentials: Path, key: str = "alias/gateway-root") -> str:
    """A URI of the root at such a server."""
    return f"awskms:{key}?region={REGION}&endpoint={url}&credentials_file={credentials}"
