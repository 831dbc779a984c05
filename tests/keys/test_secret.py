"""A secret's doors: one opens, and every other way out is shut."""

import copy
import io
import json
import pickle
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType

import msgspec
import pytest
from rich.console import Console
from rich.traceback import Traceback
from structlog.tracebacks import ExceptionDictTransformer

from keys.secret import Secret

CANARY = "correct horse battery staple"
SHOWN = "Secret(…)"
Raised = tuple[type[BaseException], BaseException, TracebackType]


@dataclass(frozen=True)
class Holder:
    """What a secret is often part of."""

    name: str
    secret: Secret[str]


@pytest.fixture
def secret() -> Secret[str]:
    """A secret whose value is easily found."""
    return Secret(CANARY)


def raised() -> Raised:
    """An exception whose frames hold secrets as a local, in a list, and in a dataclass."""

    def fail(secret: Secret[str], several: list[Secret[str]], holder: Holder) -> None:
        raise RuntimeError("failed")

    try:
        fail(Secret(CANARY), [Secret(CANARY)], Holder("holder", Secret(CANARY)))
    except RuntimeError:
        kind, error, trace = sys.exc_info()
    assert kind is not None
    assert error is not None
    assert trace is not None
    return kind, error, trace


def test_reveal_gives_the_value() -> None:
    """The one door gives back what was put in, text or bytes."""
    assert Secret(CANARY).reveal() == CANARY
    assert Secret(b"\x00\x01").reveal() == b"\x00\x01"


@pytest.mark.parametrize(
    "show",
    [repr, str, ascii, "%s".__mod__, "%r".__mod__, lambda secret: f"{[secret]}"],
)
def test_shown_without_its_value(secret: Secret[str], show: Callable[[object], str]) -> None:
    """What Python prints of a secret says only that it is one."""
    assert show(secret) in {SHOWN, f"[{SHOWN}]", ascii(SHOWN).strip("'")}


def test_a_holder_is_shown_without_the_value(secret: Secret[str]) -> None:
    """The repr of a dataclass around it shows no value either."""
    assert repr(Holder("name", secret)) == f"Holder(name='name', secret={SHOWN})"


@pytest.mark.parametrize(
    "act",
    [
        lambda secret: f"{secret}",
        lambda secret: f"{secret:>40}",
        format,
        "{}".format,
        len,
        bool,
        lambda secret: not secret,
        hash,
        lambda secret: {secret},
        lambda secret: {secret: 1},
        lambda secret: secret == secret,  # noqa: PLR0124 - even with itself
        lambda secret: secret == CANARY,
        lambda secret: secret != CANARY,
        lambda secret: CANARY == secret,  # noqa: SIM300 - the other side is asked too
        lambda secret: [secret].count(CANARY),
        lambda secret: CANARY in secret,
        lambda secret: secret < secret,  # noqa: PLR0124 - even with itself
        lambda secret: secret + "",
        lambda secret: "" + secret,
        "".join,
        list,
        bytes,
        vars,
        copy.copy,
        copy.deepcopy,
        asdict,
        json.dumps,
        msgspec.json.encode,
        msgspec.to_builtins,
        msgspec.msgpack.encode,
        lambda secret: asdict(Holder("name", secret)),
        lambda secret: json.dumps({"secret": secret}),
        lambda secret: msgspec.json.encode(Holder("name", secret)),
        lambda secret: msgspec.to_builtins({"secret": secret}),
    ],
)
def test_refused(secret: Secret[str], act: Callable[[object], object]) -> None:
    """Formatting, comparing, hashing, measuring, copying and serializing raise, and the message holds no value."""
    with pytest.raises(TypeError) as caught:
        act(secret)

    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_not_pickled(secret: Secret[str], protocol: int) -> None:
    """No protocol of pickle takes a secret, alone or inside something."""
    for thing in (secret, [secret], Holder("name", secret)):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            pickle.dumps(thing, protocol)


def test_dict_tracebacks_with_locals_show_no_value() -> None:
    """The tracebacks of structlog for JSON logs, told to show locals, name the secrets and none of their values."""
    shown = json.dumps(ExceptionDictTransformer(show_locals=True)(raised()), ensure_ascii=False)

    assert shown.count(SHOWN) >= 3
    assert CANARY not in shown


def test_rich_tracebacks_with_locals_show_no_value() -> None:
    """So do those for people."""
    output = io.StringIO()
    trace = Traceback.from_exception(*raised(), show_locals=True)
    Console(file=output, width=200).print(trace)

    assert output.getvalue().count(SHOWN) >= 3
    assert CANARY not in output.getvalue()
