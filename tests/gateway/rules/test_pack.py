"""Close packs: one spelling, a signature that holds for that and nothing else, and the command that checks both."""

import base64
import json
import os
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.main import main
from gateway.rules.pack import Seal, canonical, public_keys, sha256, told
from keys.errors import BrokenSeal
from keys.primitives import new_key

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcß\U0001f600", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = {1: new_key(), 2: new_key()}


@given(st.dictionaries(st.text("abcde", max_size=4), PLAIN, max_size=5), st.randoms())
def test_there_is_one_spelling(content: dict[str, Any], random: Any) -> None:
    """The order in which it was put together does not matter; it reads back as what it was, on one line."""
    names = list(content)
    random.shuffle(names)
    pack = canonical({name: content[name] for name in names})

    assert pack == canonical(content)
    assert json.loads(pack) == content
    assert pack.endswith(b"\n")
    assert pack.count(b"\n") == 1


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), b"x", {1: 2}, {"a": [0.5]}, {None: 1}, datetime.now(UTC), {1, 2}]
)
def test_what_has_several_spellings_is_none(value: Any) -> None:
    """No float, no bytes, no key that is no text, however deep: a bug, not a file."""
    with pytest.raises(TypeError, match="internal error"):
        canonical({"a": value})


def test_a_moment_has_one_spelling() -> None:
    """UTC, to the microsecond, wherever it was told."""
    moment = datetime(2026, 11, 1, 1, 30, tzinfo=timezone(timedelta(hours=-7)))
    assert told(moment) == "2026-11-01T08:30:00.000000Z"


def test_the_seal_is_of_the_newest_key() -> None:
    """It holds for these bytes and the public key of that number; its file reads back."""
    pack = canonical({"a": 1})
    seal = Seal.of(pack, KEYS)
    public = public_keys(KEYS)

    assert (seal.key, seal.sha256) == (2, sha256(pack))
    assert Seal.read(seal.file()) == seal
    seal.require(pack, public[2])
    for other, key in ((pack + b" ", public[2]), (pack, public[1]), (pack, b""), (canonical({"a": 2}), public[2])):
        with pytest.raises(BrokenSeal):
            seal.require(other, key)


@pytest.mark.parametrize("place", range(0, 64, 7))
def test_a_signature_is_whole_or_none(place: int) -> None:
    """Any byte of it."""
    pack = canonical({"a": 1})
    seal = Seal.of(pack, KEYS)
    wrong = bytearray(seal.signature)
    wrong[place] ^= 1
    with pytest.raises(BrokenSeal):
        Seal(seal.sha256, bytes(wrong), seal.key).require(pack, public_keys(KEYS)[2])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"format":"x","key":1,"sha256":"","signature":""}',
        b'{"format":"gateway/close-pack/v1","key":1,"sha256":"zz","signature":""}',
        b'{"format":"gateway/close-pack/v1","key":1,"sha256":"00","signature":""}',
        b'{"format":"gateway/close-pack/v1","key":1,"sha256":"00","signature":"*"}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_signature_file(raw: bytes) -> None:
    """Nothing else escapes but the refusal."""
    with pytest.raises(BrokenSeal):
        Seal.read(raw)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("", ""),
        ("pack", "gateway: the pack is not the one that was signed: its SHA-256 differs"),
        ("key", "gateway: the signature is not of this key and this content"),
        ("no key", "gateway: --key is a public key of 32 bytes in base64: `/admin/v1/closes/keys` lists them"),
        ("signature", "gateway: this is no signature file of a close pack"),
    ],
)
def test_an_auditor_checks_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str, line: str
) -> None:
    """With three files and no configuration; exit code 1 and one line where something is not right."""
    content = canonical({"from": "2026-11-01"})
    seal, public = Seal.of(content, KEYS), public_keys(KEYS)
    pack, signature = tmp_path / "pack.json", tmp_path / "pack.sig"
    pack.write_bytes(content + (b"\n" if change == "pack" else b""))
    signature.write_bytes(b"{}" if change == "signature" else seal.file())
    key = base64.b64encode(public[1 if change == "key" else 2]).decode()
    given_key = "AAAA" if change == "no key" else key
    arguments = ["close", "verify", str(pack), "--signature", str(signature), "--key", given_key, "--json"]
    monkeypatch.setattr(sys, "argv", ["gateway", *arguments])
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # which a refusal does to an output that is of no use any more
    with pytest.raises(SystemExit) as ended:
        main()
    written = capsys.readouterr()
    assert (ended.value.code, written.err.rstrip("\n")) == (1 if change else 0, line)
    if not change:
        assert json.loads(written.out)["sha256"] == seal.sha256.hex()
