"""Settings: what is right is read, and every doubt stops with the key, its origin and what is allowed."""

import re
from pathlib import Path

import pytest

from keys.errors import SettingsRefused
from keys.settings import Settings, home, load, settings_path

CANARY = "Hunter2 Tr0ub4dor&3"
GOOD = {
    "": {"environment": '"demo"'},
    "keys": {"root": '"file:/root.key"', "store": '"file:/keys"', "secrets": '"/secrets"'},
    "database": {"dsn": '"postgresql://localhost/gateway"'},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the settings lie."""
    return tmp_path / "gateway.toml"


def write(file: Path, section: str = "", key: str = "", value: str | None = None) -> None:
    """Right settings but for one value, which is TOML; None leaves the key out."""
    text = ""
    for name, pairs in GOOD.items():
        changed = pairs | ({key: value} if key and name == section else {})
        text += f"[{name}]\n" * bool(name) + "".join(f"{k} = {v}\n" for k, v in changed.items() if v is not None)
    file.write_text(text, encoding="utf-8")


def refusal(file: Path, environ: dict[str, str] | None = None) -> str:
    """The one line that stops the start; it never shows a value."""
    with pytest.raises(SettingsRefused) as caught:
        load(file, Settings, environ or {})
    message = str(caught.value)
    assert "\n" not in message
    assert not re.search("hunter2|tr0ub4dor", message, re.IGNORECASE)
    assert caught.value.__suppress_context__
    return message


def test_right_settings(file: Path) -> None:
    """A right file gives its values, and defaults for what it leaves out."""
    write(file)
    settings = load(file, Settings, {})

    assert settings.environment == "demo"
    assert (settings.keys.root, settings.keys.store, settings.keys.secrets) == (
        "file:/root.key",
        "file:/keys",
        "/secrets",
    )
    assert (settings.database.ca, settings.database.directory, settings.database.pool_max) == (None, None, 10)


def test_other_programs_sections_are_left_alone(file: Path) -> None:
    """The gateway's sections stand in the same file; `keys` does not look at them."""
    write(file)
    file.write_text(file.read_text() + "[api]\nport = 0\n")

    assert load(file, Settings, {}).environment == "demo"


@pytest.mark.parametrize(
    ("section", "key", "value", "allowed"),
    [
        ("", "environment", f'"{CANARY}"', "matching regex '^[a-z][a-z0-9-]{0,30}"),
        ("", "environment", '"Demo"', "matching regex"),
        ("", "environment", '"demo\\n"', "matching regex"),
        ("", "environment", '""', "matching regex"),
        ("", "environment", "3", "Expected `str`, got `int`"),
        ("keys", "secrets", f'"{CANARY}"', "Expected `str` matching regex '^/'"),
        ("keys", "secrets", "[]", "Expected `str`, got `array`"),
        ("keys", "store", "true", "Expected `str`, got `bool`"),
        ("database", "pool_max", f'"{CANARY}"', "Expected `int`, got `str`"),
        ("database", "pool_max", "0", "Expected `int` >= 1"),
        ("database", "pool_max", "101", "Expected `int` <= 100"),
        ("database", "pool_max", "2.5", "Expected `int`, got `float`"),
        ("database", "pool_max", "true", "Expected `int`, got `bool`"),
        ("database", "ca", f'"{CANARY}"', "Expected `str` matching regex '^/'"),
        ("database", "directory", '"relative"', "Expected `str` matching regex '^/'"),
    ],
)
def test_a_doubtful_value(file: Path, section: str, key: str, value: str, allowed: str) -> None:
    """The message names the key with its section, what is allowed there, and the file."""
    write(file, section, key, value)
    message = refusal(file)

    assert message.startswith(f"{section}.{key}: ".lstrip("."))
    assert allowed in message
    assert message.endswith(f"(from {file})")


@pytest.mark.parametrize("pool_max", ["1", "100", '"50"'])
def test_values_at_the_bounds(file: Path, pool_max: str) -> None:
    """The bounds themselves are allowed, and a number may come as text, as variables do."""
    write(file, "database", "pool_max", pool_max)

    assert load(file, Settings, {}).database.pool_max == int(pool_max.strip('"'))


@pytest.mark.parametrize(
    ("section", "key", "place"),
    [("", "environment", "the file"), ("keys", "store", "keys"), ("database", "dsn", "database")],
)
def test_a_missing_value(file: Path, section: str, key: str, place: str) -> None:
    """A missing key is named, with the section that it belongs to."""
    write(file, section, key, None)

    assert refusal(file) == f"{place}: Object missing required field `{key}` (from {file})"


@pytest.mark.parametrize("section", ["keys", "database"])
def test_an_unknown_field(file: Path, section: str) -> None:
    """A key that no release knows, most likely a slip of the pen, is named; its value is not."""
    write(file, section, "pool_mx", f'"{CANARY}"')

    assert refusal(file) == f"{section}: Object contains unknown field `pool_mx` (from {file})"


@pytest.mark.parametrize("value", ['"file:/keys"', "3", "[1]"])
@pytest.mark.parametrize("environ", [{}, {"GATEWAY_KEYS_STORE": "file:/x"}])
def test_a_section_that_is_none(file: Path, value: str, environ: dict[str, str]) -> None:
    """A value where a section should be is refused, whether or not a variable overrides part of it."""
    file.write_text(f'environment = "demo"\nkeys = {value}\n[database]\ndsn = "x"\n')

    assert refusal(file, environ).startswith("keys: Expected `object`, got ")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"environment = {CANARY}\n", "line 1, column "),
        ('environment = "demo"\n[keys\n', "line 2, column "),
        (f'environment = "{CANARY}', "end of document"),
        (f'a = "{CANARY}"\na = "{CANARY}"\n', "line 2, column "),
        ("environment = ", "end of document"),
        (f'password = "{CANARY}\x00"', "line 1, column "),
    ],
)
def test_a_file_that_is_not_toml(file: Path, text: str, place: str) -> None:
    """The message gives line and column, and nothing of the line."""
    file.write_text(text)

    assert refusal(file).startswith(f"{file} is not TOML ({place}")


def test_a_file_that_is_not_text(file: Path) -> None:
    """Bytes that are no UTF-8 are no TOML either."""
    file.write_bytes(b'environment = "\xff' + CANARY.encode() + b'"')

    assert refusal(file).startswith(f"{file} is not TOML (")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file, or a directory, is named with the two ways on."""
    for path in (tmp_path / "none.toml", tmp_path):
        assert (
            refusal(path) == f"{path} cannot be read: start the demo with ./deploy/run, or name a file with --config"
        )


def test_variables_override(file: Path) -> None:
    """Each value has a variable `GATEWAY_SECTION_NAME`, which wins over the file and stands in for what it lacks."""
    write(file, "keys", "store", None)
    environ = {
        "GATEWAY_ENVIRONMENT": "live",
        "GATEWAY_KEYS_STORE": "file:/elsewhere",
        "GATEWAY_DATABASE_POOL_MAX": "7",
        "GATEWAY_DATABASE_CA": "/ca.pem",
    }
    settings = load(file, Settings, environ)

    assert (settings.environment, settings.keys.store, settings.keys.secrets) == (
        "live",
        "file:/elsewhere",
        "/secrets",
    )
    assert (settings.database.pool_max, settings.database.ca) == (7, "/ca.pem")


def test_variables_alone_are_enough(file: Path) -> None:
    """An empty file and a variable for each value are settings too."""
    file.write_text("")
    environ = {
        "GATEWAY_ENVIRONMENT": "demo",
        "GATEWAY_KEYS_ROOT": "file:/r",
        "GATEWAY_KEYS_STORE": "file:/s",
        "GATEWAY_KEYS_SECRETS": "/x",
        "GATEWAY_DATABASE_DSN": "postgresql://localhost/x",
    }

    assert load(file, Settings, environ).keys.root == "file:/r"


@pytest.mark.parametrize(
    ("variable", "key"),
    [
        ("GATEWAY_ENVIRONMENT", "environment"),
        ("GATEWAY_KEYS_SECRETS", "keys.secrets"),
        ("GATEWAY_DATABASE_POOL_MAX", "database.pool_max"),
        ("GATEWAY_DATABASE_CA", "database.ca"),
    ],
)
def test_a_doubtful_variable(file: Path, variable: str, key: str) -> None:
    """A doubtful value is traced to the variable that it came from, not to the file."""
    write(file)
    message = refusal(file, {variable: CANARY})

    assert message.startswith(f"{key}: ")
    assert message.endswith(f"(from {variable})")


def test_where_the_settings_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--config` goes before GATEWAY_CONFIG, and that before the demo's home, which is `.gateway` here by default."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_CONFIG", raising=False)
    monkeypatch.delenv("GATEWAY_HOME", raising=False)
    assert settings_path(None) == tmp_path / ".gateway" / "gateway.toml"

    monkeypatch.setenv("GATEWAY_HOME", "/home/demo")
    assert (home(), settings_path(None)) == (Path("/home/demo"), Path("/home/demo/gateway.toml"))
    monkeypatch.setenv("GATEWAY_CONFIG", "/etc/gateway.toml")
    assert settings_path(None) == Path("/etc/gateway.toml")
    assert settings_path("/given.toml") == Path("/given.toml")
