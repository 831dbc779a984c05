"""What the house does not do, and what it does instead. Each rule is shown a bait that it must catch.

Python is judged by its syntax tree, not by its text. Exemptions are by file, and one that nobody needs any more
fails, so that the lists stay true.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cards import CANARY, PUBLISHED, TRIGGERS, canary, with_check_digit

ROOT = Path(__file__).parent.parent
PRODUCT = ("gateway", "keys")
EVERYWHERE = (*PRODUCT, "deploy", "tests")
LINES_MAX = 450

Catch = Callable[[ast.AST], bool]
"""Whether one node of a syntax tree breaks a rule."""


class Rule(NamedTuple):
    """What is not done, in which folders, and the files that may."""

    banned: str
    instead: str
    catches: Catch
    bait: str
    folders: tuple[str, ...] = PRODUCT
    exempt: frozenset[str] = frozenset()


# --- what a rule catches ---

MONEY = re.compile(r"(?:^|_)(?:amount|fee|minor|captured|refunded|gross|price)(?:_|$)")
SQL = re.compile(
    r"\s*(SELECT|INSERT(?= INTO)|UPDATE(?= \w+ SET)|DELETE(?= FROM)|CREATE|ALTER|DROP|GRANT|REVOKE|TRUNCATE|COPY"
    r"|WITH(?= \w+ AS)|LISTEN|NOTIFY|BEGIN|SET(?= (?:LOCAL|ROLE|SESSION))|COMMIT|ROLLBACK|SAVEPOINT)\b"
)
CLOCKS = (
    *("time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "date.today", "datetime.date.today"),
    *(f"{module}datetime.{call}" for module in ("", "datetime.") for call in ("now", "utcnow", "today")),
)
LEFT_OVER = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
CARD_LIKE = re.compile(r"(?<![0-9A-Za-z])[1-9](?:[ _-]?[0-9]){12,18}(?![0-9A-Za-z])")


def _mentions(*banned: str) -> Catch:
    """Dotted names, imported or used, that begin with one of these."""
    return lambda node: any(f"{dotted}.".startswith(f"{name}.") for dotted in _dotted(node) for name in banned)


def _calls(*builtins: str) -> Catch:
    return lambda node: isinstance(node, ast.Call) and _dotted(node.func)[:1] in [[name] for name in builtins]


def _float_money(node: ast.AST) -> bool:
    """Amounts that are annotated as floats, divided, calculated with a float, or made one."""
    match node:
        case ast.AnnAssign(target=named, annotation=kind):
            return _is_money(named) and _holds_float(kind)
        case ast.arg(annotation=ast.AST() as kind):
            return _is_money(node) and _holds_float(kind)
        case ast.FunctionDef(name=name, returns=ast.AST() as kind):
            return MONEY.search(name) is not None and _holds_float(kind)
        case ast.BinOp(op=operator):
            return _is_money(node) and (isinstance(operator, ast.Div) or _holds_float(node))
        case ast.Call(func=ast.Name(id="float")):
            return _is_money(node)
    return False


def _unexplained_test(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return node.name.startswith("test_") and not ast.get_docstring(node)


def _reveals(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "reveal"


def _dotted(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names):
            return [f"{module}.{alias.name}" for alias in names]
        case ast.Attribute(value=owner, attr=name):
            return [f"{dotted}.{name}" for dotted in _dotted(owner)]
        case ast.Name(id=name):
            return [name]
    return []


def _is_money(tree: ast.AST) -> bool:
    return any(MONEY.search(word) for node in ast.walk(tree) for word in _words(node))


def _words(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.Constant(value=str(word)):
            yield word


def _holds_float(tree: ast.AST) -> bool:
    return any(
        (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.Name) and node.id == "float")
        for node in ast.walk(tree)
    )


# --- the rules ---

RULES = (
    Rule(
        "reading the clock",
        "take a gateway.services.ports.Clock",
        _mentions(*CLOCKS),
        "from time import monotonic",
        exempt=frozenset(
            {
                "gateway/clock.py",
                "gateway/processor/stub/server.py",
                "keys/cli/bench.py",
                "keys/cli/ceremonies.py",
                "keys/cli/pace.py",
            }
        ),
    ),
    Rule(
        "random",
        "secrets",
        _mentions("random", "uuid.uuid1"),
        "from random import Random",
        exempt=frozenset({"gateway/processor/stub/faults.py"}),  # a schedule of faults that a seed repeats
    ),
    Rule("print", "the log, or typer.echo", _calls("print"), "print('x')"),
    Rule("eval", "a table of functions", _calls("eval", "exec", "compile", "__import__"), "eval('1')", EVERYWHERE),
    Rule("mocks", "real parts", _mentions("unittest.mock", "mock"), "from unittest import mock", EVERYWHERE),
    Rule("pickle", "msgspec", _mentions("pickle", "marshal", "shelve"), "import pickle", (*PRODUCT, "deploy")),
    Rule("yaml", "TOML", _mentions("yaml"), "import yaml", (*PRODUCT, "deploy")),
    Rule("float money, divided", "Decimal, to print it", _float_money, "x = row['amount_minor'] / 100"),
    Rule("float money, annotated", "int minor units", _float_money, "def charge(fee: float | None) -> None: ..."),
    Rule("float money, calculated", "int minor units", _float_money, "x = 1.029 * charge.amount"),
    Rule(
        "silent tests", "one sentence on the behaviour", _unexplained_test, "def test_it() -> None: ...", ("tests",)
    ),
)

REVEALING = {
    "gateway/cli/applications.py",
    "gateway/cli/importing.py",
    "gateway/cli/main.py",
    "gateway/cli/staff.py",
    "gateway/processor/client.py",
    "gateway/rules/access.py",
    "gateway/rules/card.py",
    "gateway/rules/passwords.py",
    "gateway/rules/totp.py",
    "gateway/services/vault.py",
    "gateway/services/visits.py",
    "gateway/store/roles.py",
    "gateway/web/admin.py",
    "gateway/web/gate.py",
    "gateway/web/oidc_client.py",
    "keys/ceremony.py",
    "keys/database.py",
    "keys/envelope.py",
    "keys/fingerprint.py",
    "keys/officers.py",
    "keys/passphrase.py",
    "keys/primitives.py",
    "keys/process_keys.py",
    "keys/root.py",
    "keys/root_agent.py",
    "keys/root_awskms.py",
    "keys/root_pkcs11.py",
    "keys/root_relay.py",
    "keys/root_shares.py",
    "keys/signing.py",
}
"""The files that may open a `Secret`. Another one is a decision: weigh it, then write it here."""

STATEMENTS: Mapping[str, set[str]] = {
    "gateway/embedded.py": {"CREATE"},  # the database itself, before anything can connect to it
    "gateway/processor/stub/book.py": {"CREATE", "INSERT", "SELECT"},  # the far side, on SQLite
    "gateway/store/database.py": {"BEGIN", "COMMIT", "ROLLBACK"},  # a literal SET LOCAL: its comment says why
    "gateway/store/migrate.py": {"SELECT"},  # the lock that is taken before there is a schema
    "gateway/store/roles.py": {"ALTER", "GRANT", "REVOKE"},  # no parameter can stand where a role's name does
    "keys/database.py": {"SELECT"},  # what the server is set to
}
"""The SQL in Python, by first words. All other statements stand in `.sql` files, each with a name."""

SHOWING_CARDS = frozenset(
    {"README.md", "deploy/demo.py", "gateway/processor/stub/protocol.py", "gateway/rules/brands.toml"}
)
"""Where published card numbers may stand, beside the tests."""


def _files(folders: tuple[str, ...], *suffixes: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes]
    assert found, "there is nothing to look at"
    return sorted(found)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _caught(catches: Catch, source: str) -> list[int]:
    """The lines of a source that break a rule."""
    return [getattr(node, "lineno", 0) for node in ast.walk(ast.parse(source)) if catches(node)]


def _statements(source: str) -> set[str]:
    """First words of the strings that are SQL, f-strings included; text that stands alone documents."""
    tree = ast.parse(source)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    matches = (SQL.match(str(node.value)) for node in strings if id(node) not in prose)
    return {match[1] for match in matches if match}


def _left_overs(name: str, text: str) -> list[str]:
    if not name.endswith(".py"):
        return LEFT_OVER.findall(text)
    comments = (token.string for token in tokenize.generate_tokens(io.StringIO(text).readline))
    return [word for comment in comments if comment.startswith("#") for word in LEFT_OVER.findall(comment)]


def _card_numbers(text: str) -> set[str]:
    """Runs and groups of 13 to 19 digits whose check digit is right."""
    digits = {re.sub("[ _-]", "", match[0]) for match in CARD_LIKE.finditer(text)}
    return {number for number in digits if with_check_digit(number[:-1]) == number}


def _allowed_numbers(name: str) -> set[str]:
    if name.startswith("tests/"):
        return {*PUBLISHED, *TRIGGERS, CANARY}
    return {*PUBLISHED, *TRIGGERS} if name in SHOWING_CARDS else set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.banned)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    """Nothing banned is used where it is banned, and every exemption is still needed."""
    found = {_name(path): _caught(rule.catches, path.read_text()) for path in _files(rule.folders, ".py")}

    breaking = {name: lines for name, lines in found.items() if lines}
    assert set(breaking) == rule.exempt, f"{rule.banned}: use {rule.instead}; exempt or found: {breaking}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.banned)
def test_each_rule_catches_its_bait(rule: Rule) -> None:
    """A rule that catches nothing would hold for ever."""
    assert _caught(rule.catches, rule.bait) == [1]


def test_secrets_are_opened_only_where_it_is_listed() -> None:
    """`Secret.reveal` is said by the listed files of the product, by each of them, and by no other."""
    revealing = {_name(path) for path in _files(PRODUCT, ".py") if _caught(_reveals, path.read_text())}

    assert revealing == REVEALING
    assert _caught(_reveals, "shown = list(map(Secret.reveal, secrets))") == [1]


def test_sql_lives_in_sql_files() -> None:
    """Python holds no statement but the listed ones."""
    found = {_name(path): _statements(path.read_text()) for path in _files(PRODUCT, ".py")}

    assert {name: words for name, words in found.items() if words} == STATEMENTS
    assert _statements("'''SELECT is not made here.'''\nrun(f'UPDATE charges SET state = {state}')") == {"UPDATE"}


def test_nothing_is_left_for_later() -> None:
    """No comment postpones anything."""
    paths = _files(EVERYWHERE, ".py", ".sql", ".toml", ".in", "")
    left = {_name(path) for path in paths if path.is_file() and _left_overs(_name(path), path.read_text())}

    assert left == set()
    assert _left_overs("x.py", "y = 1  # TODO: more\n") == _left_overs("x.sql", "-- TODO: more\n") == ["TODO"]


def test_files_stay_short() -> None:
    """No file of the product is longer than one reads in a sitting."""
    lengths = {_name(path): path.read_text().count("\n") for path in _files(PRODUCT, ".py", ".sql")}

    assert {name: lines for name, lines in lengths.items() if lines > LINES_MAX} == {}
    assert max(lengths.values()) > 100


def test_card_numbers_stand_only_where_they_may() -> None:
    """Tests spell out the numbers of `tests.cards` only, a few other files published ones, and the rest none."""
    paths = _files(EVERYWHERE, ".py", ".sql", ".toml", ".txt", ".in", ".json", ".md", "")
    paths += [*ROOT.glob("*.md"), *ROOT.glob("*.toml")]
    found = {_name(path): _card_numbers(path.read_text()) for path in paths if path.is_file()}

    strange = {name: numbers - _allowed_numbers(name) for name, numbers in found.items()}
    assert {name: numbers for name, numbers in strange.items() if numbers} == {}


def test_card_numbers_are_seen_in_every_dress() -> None:
    """The check above sees numbers in strings, as integers, and in printed groups, and not in hashes."""
    number = canary(1)
    groups = re.findall("....", number)

    for text in (f"x = '{number}'", f"x = {'_'.join(groups)}", f"# {' '.join(groups)}.", "-".join(groups)):
        assert _card_numbers(text) == {number}
    assert _card_numbers(f"--hash=sha256:ab{number}cd") == set()
