"""Passwords: each rule on both sides of its edge, and what is kept of one."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from gateway.errors import PasswordRefused, SignInRefused
from gateway.rules.passwords import (
    CHARACTERS_MAX,
    COST,
    Cost,
    hash_password,
    is_current,
    new_password,
    require_good_password,
    require_password,
    require_readable,
)
from keys.errors import SettingsRefused
from keys.secret import Secret

CHEAP = Cost(1, 8)
GOOD = "seven herons wade 7"

GUESSED = [
    "passwordpassword1",
    "PasswordPassword1",
    "1q2w3e4r5t6y7u8i9o0p",
    "correcthorsebatterystaple1",
    "correct horse battery staple!!2026",
    "\uff50asswordpassword1",
]
"""As they stand in the list, in another case, with an ending, in another form of the same letters."""


@pytest.mark.parametrize(
    "password",
    [
        GOOD,
        "a1bcdefghxyzqrs",
        "7" + "пять цапель на реке",
        "long " * 39 + "tail1",
        "9 " + "\u00e9t\u00e9 \u00e0 Gen\u00e8ve 42",
    ],
)
def test_long_passwords_with_a_letter_and_a_digit_are_taken(password: str) -> None:
    """Fifteen characters to two hundred, in any script, with a letter and a digit."""
    require_good_password(Secret(password), "a.chen")


@pytest.mark.parametrize(
    "password",
    [
        "a1bcdefghxyzqr",
        "a1" + "bcdef" * 40,
        "seven herons wade",
        "98 76 54 32 10 !?",
        "aaaabbbbccccddd1"[:16].replace("d", "c"),
        "by A.Chen in the year 7",
        "",
        *GUESSED,
    ],
)
def test_passwords_that_would_be_guessed_are_refused(password: str) -> None:
    """Short, endless, without letter or digit, of few characters, with the username, or in a list."""
    with pytest.raises(PasswordRefused) as refused:
        require_good_password(Secret(password), "a.chen")
    assert not password or password not in str(refused.value)


def test_characters_are_counted_after_they_were_brought_to_one_form() -> None:
    """A letter with its mark behind it is one character, so fourteen of them are too few."""
    with pytest.raises(PasswordRefused):
        require_good_password(Secret("a1" + "e\u0301u\u0308" * 6), "a.chen")
    require_good_password(Secret("a1z" + "e\u0301u\u0308" * 6), "a.chen")


@pytest.mark.parametrize("suffix", ["", ":3861493"])
@pytest.mark.parametrize("letters", [str.lower, str.upper])
def test_a_list_of_digests_is_asked(tmp_path: Path, suffix: str, letters: "type[str]") -> None:
    """A file may hold SHA-1 in hex, in either case, with how often it was seen behind it."""
    breached = tmp_path / "breached"
    digest = hashlib.sha1(GOOD.encode(), usedforsecurity=False).hexdigest()
    breached.write_text(f"{'0' * 40}\n{letters(digest) + suffix}\r\n")
    with pytest.raises(PasswordRefused):
        require_good_password(Secret(GOOD), "a.chen", breached)
    require_good_password(Secret(GOOD + "!"), "a.chen", breached)


def test_a_list_in_clear_is_asked(tmp_path: Path) -> None:
    """A line is a password, in whatever case; lines that are no text do not matter."""
    breached = tmp_path / "breached"
    breached.write_bytes(b"\xff\xfe\x00\n\n" + GOOD.upper().encode() + b"\n")
    with pytest.raises(PasswordRefused):
        require_good_password(Secret(GOOD), "a.chen", breached)


def test_a_list_that_is_not_there_is_no_empty_list(tmp_path: Path) -> None:
    """Without the file that the settings name no password is taken, and the message says which file."""
    with pytest.raises(SettingsRefused, match="breached_passwords"):
        require_good_password(Secret(GOOD), "a.chen", tmp_path / "none")


def test_a_list_is_known_to_be_readable_before_it_is_needed(tmp_path: Path) -> None:
    """A process that starts asks once: a folder, or nothing at all, is refused in one line."""
    require_readable(None)
    (tmp_path / "breached").write_bytes(b"")
    require_readable(tmp_path / "breached")
    for none in (tmp_path, tmp_path / "none"):
        with pytest.raises(SettingsRefused, match=r"^admin\.breached_passwords: .* cannot be read [^\n]*$"):
            require_readable(none)


def test_the_list_that_comes_along_is_of_use() -> None:
    """Hundreds of entries, each long enough to matter, each once, all of them found."""
    entries = files("gateway.rules").joinpath("guessed.txt").read_text(encoding="utf-8").splitlines()
    assert len(entries) == len(set(entries)) > 300
    assert min(map(len, entries)) >= 15
    for entry in entries[::20]:
        for grown in (f"{entry.title()}1", f"{entry}2026!"):
            with pytest.raises(PasswordRefused):
                require_good_password(Secret(grown), "a.chen")


def test_a_hash_knows_its_password_only() -> None:
    """The same password in another Unicode form fits; another one, or another case, does not."""
    kept = hash_password(Secret("G\u00e9n\u00e9ve lies by the lake 7"), CHEAP)
    require_password(kept, Secret("Ge\u0301ne\u0301ve lies by the lake 7"))
    for other in ("g\u00e9n\u00e9ve lies by the lake 7", "", "\ud800", "G\u00e9n\u00e9ve lies by the lake 7\0"):
        with pytest.raises(SignInRefused):
            require_password(kept, Secret(other))
    with pytest.raises(SignInRefused):
        require_password("$argon2id$rubbish", Secret(GOOD))


def test_a_hash_carries_its_cost() -> None:
    """Salted, Argon2id, at least OWASP's 19 MiB and two passes, and known for what it took."""
    kept = hash_password(Secret(GOOD))
    assert kept.startswith("$argon2id$v=19$m=65536,t=2,p=1$")
    assert (COST.operations, COST.memory_kib) >= (2, 19 * 1024)
    assert kept != hash_password(Secret(GOOD))
    require_password(kept, Secret(GOOD))
    assert is_current(kept)
    assert not is_current(hash_password(Secret(GOOD), CHEAP))


def test_made_passwords_are_good_ones() -> None:
    """Each is another, and passes the rules."""
    made = {new_password().reveal() for _ in range(50)}
    assert len(made) == 50
    for password in made:
        assert len(password) <= CHARACTERS_MAX
        require_good_password(Secret(password), "a.chen")
