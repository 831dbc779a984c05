"""Signed notes: the shape that C2SP describes, and no second spelling of it."""

import base64
import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from keys.errors import BrokenSeal
from keys.primitives import new_key
from keys.secret import Secret
from keys.signing import open_note, public_key, sign_note

SEED = Secret(bytes(range(32)))
NAME = "example.city/log"
TEXT = "first line\nsecond line\n"
NOTE = sign_note(SEED, NAME, TEXT)


def test_rfc_8032_public_key() -> None:
    """RFC 8032, section 7.1, test 1: the public key of this seed."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")

    assert public_key(Secret(seed)).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_the_shape_of_a_signed_note() -> None:
    """Text, an empty line, an em dash, the name, and base64 of key hash and signature: checked without our code."""
    text, line = NOTE.split("\n\n")
    dash, name, encoded = line.removesuffix("\n").split(" ")
    raw = base64.b64decode(encoded)
    public = public_key(SEED)

    assert (text + "\n", dash, name) == (TEXT, "\u2014", NAME)
    assert raw[:4] == hashlib.sha256(NAME.encode() + b"\n\x01" + public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public).verify(raw[4:], TEXT.encode())


@pytest.mark.parametrize(
    "text", ["\n", "one\n", "a\n\nb\n", "über\n", "ends in an empty line\n\n", f"quotes\n\n{NOTE}"]
)
def test_what_is_signed_opens(text: str) -> None:
    """Any text that ends in a newline comes back, even one that looks like a signature itself."""
    assert open_note(public_key(SEED), NAME, sign_note(SEED, NAME, text)) == text


def test_a_text_without_a_last_newline_is_our_own_mistake() -> None:
    """Such a text is a fault of the program, not of the caller's data."""
    with pytest.raises(AssertionError, match="internal error"):
        sign_note(SEED, NAME, "no newline")


def test_another_key() -> None:
    """A note of one key does not open with another."""
    with pytest.raises(BrokenSeal, match=r"^the note is not signed by example"):
        open_note(public_key(new_key()), NAME, NOTE)


def test_another_key_with_our_key_hash() -> None:
    """A forged key hash leads to the signature, and that does not hold."""
    forged = sign_note(new_key(), NAME, TEXT)
    theirs = base64.b64decode(forged.rpartition(" ")[2])
    ours = base64.b64decode(NOTE.rpartition(" ")[2])
    encoded = base64.b64encode(ours[:4] + theirs[4:]).decode()

    with pytest.raises(BrokenSeal, match=r"does not hold$"):
        open_note(public_key(SEED), NAME, f"{TEXT}\n\u2014 {NAME} {encoded}\n")


def test_another_name() -> None:
    """The name is signed through the key hash: neither asking for another nor writing another helps."""
    with pytest.raises(BrokenSeal):
        open_note(public_key(SEED), "example.city/other", NOTE)
    with pytest.raises(BrokenSeal):
        open_note(public_key(SEED), "example.city/other", NOTE.replace(NAME, "example.city/other"))


def cut(note: str) -> str:
    """The note with its signature one byte short."""
    head, _, encoded = note.rpartition(" ")
    return f"{head} {base64.b64encode(base64.b64decode(encoded)[:-1]).decode()}\n"


@pytest.mark.parametrize(
    "alter",
    [
        lambda note: note.replace("first", "fir5t"),
        lambda note: note.replace("second line\n", "second line\n\n", 1),
        lambda note: note.replace("first line\n", ""),
        lambda note: "\n" + note,
        lambda note: TEXT,
        lambda note: TEXT + "\n",
        lambda note: "",
        lambda note: note.replace("\u2014", "-"),
        lambda note: note.replace("\u2014 ", "\u2014  "),
        lambda note: note.removesuffix("\n"),
        lambda note: note + "\n",
        lambda note: note + note.rpartition("\n\n")[2],
        lambda note: note.replace("=\n", "\n"),
        lambda note: note.replace("=\n", "==\n"),
        lambda note: note[:-4] + "é=\n",
        lambda note: note[:-4] + "%=\n",
        lambda note: note.replace("\n", "\r\n"),
        cut,
    ],
)
def test_an_altered_note(alter: Callable[[str], str]) -> None:
    """A text edited, a signature line missing, doubled or spelled in another way: all are refused alike."""
    altered = alter(NOTE)
    assert altered != NOTE

    with pytest.raises(BrokenSeal):
        open_note(public_key(SEED), NAME, altered)


def test_every_byte_of_a_note_counts() -> None:
    """No character of a note can be another one; base64's own spare bits included."""
    for index, character in enumerate(NOTE):
        altered = NOTE[:index] + chr(ord(character) ^ 1) + NOTE[index + 1 :]
        with pytest.raises(BrokenSeal):
            open_note(public_key(SEED), NAME, altered)
