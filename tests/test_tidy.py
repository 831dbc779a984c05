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

from tests.cards import PUBLISHED, TRIGGERS, canary, with_check_digit

ROOT = Path(__file__).parent.parent
PRODUCT = ("gateway", "keys")
EVERYWHERE = (*PRODUCT, "deploy", "tests")
LINES_MAX = 450

Finder = Callable[[ast.AST], Iterator[ast.AST]]


class Rule(NamedTuple):
    """What is not done, in which folders, and which files may."""

    banned: str
    instead: str
    finds: Finder
    bait: str
    folders: tuple[str, ...] = PRODUCT
    exempt: frozenset[str] = frozenset()


# --- finders: each yields the nodes of a syntax tree that break a rule ---


def mentions(*banned: str) -> Finder:
    """Dotted names, imported or used, that hold one of these."""

    def find(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.walk(tree):
            if any(f".{name}." in f".{dotted}." for dotted in _dotted(node) for name in banned):
                yield node

    return find


def calls(*builtins: str) -> Finder:
    """Calls of built-in functions."""

    def find(tree: ast.AST) -> Iterator[ast.AST]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in builtins:
                yield node

    return find


def float_money(tree: ast.AST) -> Iterator[ast.AST]:
    """Amounts that are annotated as floats, divided, multiplied by a float, or made one."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=named, annotation=kind) if _is_money(named) and _says(kind, "float"):
                yield node
            case ast.arg(annotation=ast.AST() as kind) if _is_money(node) and _says(kind, "float"):
                yield node
            case ast.FunctionDef(name=name, returns=ast.AST() as kind) if MONEY.search(name) and _says(kind, "float"):
                yield node
            case ast.BinOp(op=ast.Div()) if _is_money(node):
                yield node
            case ast.BinOp() if _is_money(node) and any(_is_float(part) for part in ast.walk(node)):
                yield node
            case ast.Call(func=ast.Name(id="float")) if _is_money(node):
                yield node


def sql(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings that are statements, whole or as the beginning of an f-string; docstrings are not."""
    spoken = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            if SQL.match(node.value):
                yield node


def reveals(tree: ast.AST) -> Iterator[ast.AST]:
    """Uses of the door of `keys.secret.Secret`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "reveal":
            yield node


def unexplained_tests(tree: ast.AST) -> Iterator[ast.AST]:
    """Test functions without a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            if not ast.get_docstring(node):
                yield node


MONEY = re.compile(r"(?:^|_)(?:amount|fee|minor|captured|refunded|gross|price)(?:_|$)")
SQL = re.compile(
    r"\s*(?:SELECT|INSERT INTO|UPDATE \w|DELETE FROM|CREATE|ALTER|DROP|GRANT|REVOKE|TRUNCATE|COPY|WITH \w+ AS|LISTEN"
    r"|NOTIFY|BEGIN|SET LOCAL|SET ROLE|COMMIT|ROLLBACK|SAVEPOINT)\b"
)


def _dotted(node: ast.AST) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            return [f"{node.module}.{alias.name}" for alias in node.names]
        case ast.Attribute(value=ast.Name() | ast.Attribute()):
            return [f"{_dotted(node.value)[0]}.{node.attr}"] if _dotted(node.value) else []
        case ast.Name():
            return [node.id]
    return []


def _is_money(tree: ast.AST) -> bool:
    return any(MONEY.search(word) for node in ast.walk(tree) for word in _words(node))


def _words(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.Constant(value=str(word)):
            yield word


def _says(tree: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))


def _is_float(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, float)


# --- the rules ---

RULES = (
    Rule(
        "reading the clock",
        "take a gateway.services.ports.Clock",
        mentions("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.monotonic"),
        "from time import monotonic",
        exempt=frozenset({"gateway/clock.py", "gateway/processor/stub/server.py", "keys/cli.py"}),
    ),
    Rule(
        "random",
        "secrets",
        mentions("random", "uuid.uuid1"),
        "from random import Random",
        exempt=frozenset({"gateway/processor/stub/faults.py"}),  # a seeded schedule of faults
    ),
    Rule("print", "the log, or typer.echo", calls("print"), "print('x')"),
    Rule("eval", "a table of functions", calls("eval", "exec", "compile", "__import__"), "eval('1')", EVERYWHERE),
    Rule("mocks", "real parts", mentions("unittest.mock", "mock"), "from unittest import mock", EVERYWHERE),
    Rule("pickle", "msgspec", mentions("pickle", "marshal", "shelve"), "import pickle", (*PRODUCT, "deploy")),
    Rule("yaml", "TOML", mentions("yaml"), "import yaml", (*PRODUCT, "deploy")),
    Rule("floats for money", "int minor units, Decimal to print them", float_money, "x = amount_minor / 100"),
    Rule("floats for money", "int minor units", float_money, "def charge(fee: float | None) -> None: ..."),
    Rule("floats for money", "int minor units", float_money, "x = row['amount'] * 1.15"),
    Rule("unexplained tests", "a sentence on the behaviour", unexplained_tests, "def test_it() -> None: ...", ("tests",)),
)

REVEALING = {
    "gateway/cli.py",
    "gateway/processor/client.py",
    "gateway/rules/access.py",
    "gateway/rules/card.py",
    "gateway/services/vault.py",
    "gateway/store/roles.py",
    "keys/database.py",
    "keys/envelope.py",
    "keys/fingerprint.py",
    "keys/keystore.py",
    "keys/primitives.py",
    "keys/root_file.py",
    "keys/signing.py",
}
"""The files that may open a secret. A new one is a decision: weigh it, then write it here."""

STATEMENTS: Mapping[str, set[str]] = {
    "gateway/embedded.py": {"CREATE"},  # the database itself, before anything can connect
    "gateway/processor/stub/book.py": {"SELECT", "INSERT", "CREATE", "UPDATE"},  # the far side, on SQLite
    "gateway/store/database.py": {"BEGIN", "COMMIT", "ROLLBACK"},  # a literal SET LOCAL; its docstring says why
    "gateway/store/migrate.py": {"SELECT"},  # the advisory lock, before there is a schema
    "gateway/store/roles.py": {"ALTER", "GRANT", "REVOKE"},  # roles take no parameter
    "keys/database.py": {"SELECT"},  # what the server is set to
}
"""The statements in Python, by their first word. All others stand in `.sql` files, each with a name."""

SHOWING_CARDS = {
    "README.md": "published",
    "deploy/demo.py": "published",
    "gateway/processor/stub/protocol.py": "published",
    "tests/cards.py": "any",
}
"""The files in which a card number may stand, and which ones."""


def _files(folders: tuple[str, ...], suffix: str = ".py") -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(f"*{suffix}") if path.is_file())


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.banned)
def test_the_house_keeps_its_rules(rule: Rule) -> None:
    """Nothing banned is used where it is banned, and every exemption is still needed."""
    found = {_name(path): [node.lineno for node in rule.finds(_tree(path))] for path in _files(rule.folders)}  # type: ignore[attr-defined] # finders yield nodes that have a line
    breaking = {name for name, lines in found.items() if lines}

    assert breaking == rule.exempt, f"{rule.banned}: use {rule.instead} ({found})"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.banned)
def test_each_rule_catches_its_bait(rule: Rule) -> None:
    """A rule that catches nothing would hold for ever."""
    assert list(rule.finds(ast.parse(rule.bait)))
