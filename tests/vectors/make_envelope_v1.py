"""Makes `envelope-v1.json`: the format of `keys.envelope`, written a second time from its description.

Nothing of `keys` is imported, so the file is evidence of the format and no echo of our own code. Keys and nonces are
SHA-256 of a label: fixed, and good for nothing else. `SOURCES.md` says why the file is never made anew.

    python -m tests.vectors.make_envelope_v1
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = Path(__file__).with_name("envelope-v1.json")
VERSION = b"\x01"

CASES = (
    ("card", "demo", "parks", "tok_0123456789abcdef0123456789abcdef", "card", 1, b'{"number":"4111111111111111"}'),
    ("details", "demo", "parks", "tok_0123456789abcdef0123456789abcdef", "details", 1, b'{"name":"J. Doe"}' * 9),
    ("empty plaintext", "demo", "utilities", "ch_1", "details", 2, b""),
    ("one block", "city-2", "utilities", "ch_1", "details", 2**31, bytes(range(16))),
    ("not ASCII", "demo", "parks", "tok_ß", "détails", 7, "Zoë Müller, 東京".encode()),
)


def document() -> str:
    """The text of the file."""
    return json.dumps([_case(*case) for case in CASES], indent=1) + "\n"


def _case(
    name: str, environment: str, department: str, record: str, field_set: str, generation: int, plaintext: bytes
) -> dict[str, str | int]:
    dek, kek = _bytes("dek", name, 32), _bytes("kek", name, 32)
    place = [environment.encode(), department.encode(), record.encode()]
    bound = _fields(b"envelope/record", VERSION, *place, field_set.encode())
    derived = _hkdf(dek, bound, 64)
    nonce = _bytes("nonce of the record", name, 12)
    sealed = VERSION + derived[32:] + nonce + AESGCM(derived[:32]).encrypt(nonce, plaintext, bound)
    nonce = _bytes("nonce of the wrap", name, 12)
    bound = _fields(b"envelope/dek", VERSION, *place, str(generation).encode())
    wrapped = VERSION + nonce + AESGCM(kek).encrypt(nonce, dek, bound)
    return {
        "name": name,
        "environment": environment,
        "department": department,
        "record": record,
        "field_set": field_set,
        "generation": generation,
        "dek": dek.hex(),
        "kek": kek.hex(),
        "plaintext": plaintext.hex(),
        "sealed": sealed.hex(),
        "wrapped": wrapped.hex(),
    }


def _bytes(label: str, name: str, length: int) -> bytes:
    return hashlib.sha256(f"envelope-v1 test vectors, {label}, {name}".encode()).digest()[:length]


def _fields(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _hkdf(key: bytes, info: bytes, length: int) -> bytes:
    # RFC 5869 section 2; no salt means a salt of zeros as long as the hash.
    extracted = hmac.digest(bytes(32), key, "sha256")
    output = block = b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
