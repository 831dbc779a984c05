"""Reads the published vectors out of the package `cryptography_vectors`; `SOURCES.md` says what each file is."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class GcmCase:
    """One case of AES-256-GCM with a 96-bit IV and a 128-bit tag. `plaintext` is None where it must not open."""

    key: bytes
    sealed: bytes
    associated: bytes
    plaintext: bytes | None


@dataclass(frozen=True, slots=True)
class HkdfCase:
    key: bytes
    salt: bytes
    info: bytes
    length: int
    output: bytes


@dataclass(frozen=True, slots=True)
class HmacCase:
    key: bytes
    message: bytes
    mac: bytes


def gcm_cases(name: str) -> list[GcmCase]:
    """The cases of one NIST response file that our format can express."""
    return [
        GcmCase(
            key=bytes.fromhex(case["Key"]),
            sealed=bytes.fromhex(case["IV"] + case["CT"] + case["Tag"]),
            associated=bytes.fromhex(case["AAD"]),
            plaintext=None if "FAIL" in case else bytes.fromhex(case["PT"]),
        )
        for case in _blocks(f"ciphers/AES/GCM/{name}", "Count")
        if (case["IVlen"], case["Taglen"]) == ("96", "128")
    ]


def hkdf_cases() -> list[HkdfCase]:
    """RFC 5869, appendix A, SHA-256."""
    return [
        HkdfCase(
            key=bytes.fromhex(case["IKM"]),
            salt=bytes.fromhex(case["salt"]),
            info=bytes.fromhex(case["info"]),
            length=int(case["L"]),
            output=bytes.fromhex(case["OKM"]),
        )
        for case in _blocks("KDF/rfc-5869-HKDF-SHA256.txt", "COUNT")
    ]


def hmac_cases() -> list[HmacCase]:
    """RFC 4231, SHA-256."""
    return [
        HmacCase(bytes.fromhex(case["Key"]), bytes.fromhex(case["Msg"]), bytes.fromhex(case["MD"]))
        for case in _blocks("HMAC/rfc-4231-sha256.txt", "Len")
    ]


def _blocks(path: str, first: str) -> Iterator[dict[str, str]]:
    # NIST's form: `[Name = value]` holds for all that follows, `name = value` for one case, which starts at `first`.
    section: dict[str, str] = {}
    case: dict[str, str] | None = None
    for raw in files("cryptography_vectors").joinpath(path).read_text(encoding="utf-8").splitlines():
        name, _, value = (part.strip() for part in raw.strip("[]").partition("="))
        if not name or name.startswith("#"):
            continue
        if raw.startswith("["):
            section[name] = value
            continue
        if name == first:
            if case is not None:
                yield case
            case = dict(section)
        assert case is not None, f"{path}: a value before the first {first}"
        case[name] = value
    if case is not None:
        yield case
