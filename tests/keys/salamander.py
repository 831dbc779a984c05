"""One ciphertext that AES-GCM opens under two keys ("invisible salamander", Dodis et al. 2018, section 3).

GCM's tag is E(nonce) + GHASH, and GHASH is a polynomial in a point H that each key has for itself. For two known keys
the tags of a one-block ciphertext C are linear in C, so that C can be solved for: both keys then have one tag. The
field is GF(2^128) as SP 800-38D section 6.3 writes it, the first bit of a block being its lowest power.
"""

from functools import reduce

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

BLOCK_BYTES = 16
ONE = 1 << 127
REDUCTION = 0xE1 << 120


def one_ciphertext_for_two_keys(first: bytes, second: bytes, nonce: bytes, associated: bytes) -> bytes:
    """Nonce ‖ one block ‖ tag, authentic under both keys with the same associated bytes."""
    points = [_block_of(key, bytes(BLOCK_BYTES)) for key in (first, second)]
    # What each tag would be if the ciphertext were zeros; a ciphertext C then adds C times the square of the point.
    tags = [
        _block_of(key, nonce + b"\x00\x00\x00\x01") ^ _ghash(point, associated, bytes(BLOCK_BYTES))
        for key, point in zip((first, second), points, strict=True)
    ]
    squares = [_times(point, point) for point in points]
    ciphertext = _times(tags[0] ^ tags[1], _inverse(squares[0] ^ squares[1]))
    tag = tags[0] ^ _times(ciphertext, squares[0])
    return nonce + ciphertext.to_bytes(BLOCK_BYTES, "big") + tag.to_bytes(BLOCK_BYTES, "big")


def _block_of(key: bytes, counter: bytes) -> int:
    encryptor = Cipher(AES(key), CTR(counter)).encryptor()
    return int.from_bytes(encryptor.update(bytes(BLOCK_BYTES)), "big")


def _ghash(point: int, associated: bytes, ciphertext: bytes) -> int:
    lengths = (len(associated) * 8).to_bytes(8, "big") + (len(ciphertext) * 8).to_bytes(8, "big")
    blocks = [*_blocks(associated), *_blocks(ciphertext), *_blocks(lengths)]
    return reduce(lambda total, block: _times(total ^ block, point), blocks, 0)


def _blocks(raw: bytes) -> list[int]:
    return [
        int.from_bytes(raw[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\x00"), "big")
        for start in range(0, len(raw), BLOCK_BYTES)
    ]


def _times(one: int, other: int) -> int:
    product = 0
    for bit in range(127, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = (other >> 1) ^ (REDUCTION if other & 1 else 0)
    return product


def _inverse(element: int) -> int:
    # Fermat: the power 2^128 - 2, which is every bit but the lowest.
    result = ONE
    for _ in range(127):
        element = _times(element, element)
        result = _times(result, element)
    return result
