"""What every simulated city begins with: keys made once a process, cards, and the tokens of its departments."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gateway.rules.ids
import keys.audit
from gateway.rules.card import Brands, read_card
from gateway.rules.ids import new_id
from gateway.services.mint import CardGiven
from keys.audit import AuditEvent, AuditPen, Outcome
from keys.keystore import Keystore
from keys.manifest import Act, Purpose, RootEntry
from keys.primitives import new_key
from keys.ring import Ring
from keys.root_file import FileRoot
from keys.secret import Secret
from keys.states import State
from tests.cards import TRIGGERS, canary

if TYPE_CHECKING:
    from tests.simulation.city import City

START = datetime(2026, 3, 14, 15, 9, 26, 535897, tzinfo=UTC)
MAC_KEYS = {1: Secret(bytes(range(32)))}
"""Fixed: what is random in a run comes from its seed."""
CARDS = 6
DECLINED_CARD = CARDS
"""The number of the card that the processor declines, behind those that it approves."""
MULTI_TOKENS = 2
SINGLE_TOKENS = 2
"""Of each department, for all of its residents: whoever comes too late finds them spent."""


@cache
def brands() -> Brands:
    """The table of issuers."""
    return Brands.load()


@cache
def rings() -> tuple[Ring, Ring]:
    """The ring before and after a rotation of both keys, from a real key store."""
    with TemporaryDirectory(prefix="gateway-simulation-") as folder:
        root, store = FileRoot(new_key()), Keystore(Path(folder) / "keystore", "simulation")
        entry = RootEntry(1, "file", "file:/root.key", State.ACTIVE, START)
        store.initialise(root, entry, Path(folder) / "secrets", START)
        before = store.open(root).ring()
        purposes: tuple[Purpose, ...] = ("kek", "fingerprint")
        for purpose in purposes:
            opened = store.open(root)
            made, old = opened.make_key(purpose, State.ACTIVE, START), opened.manifest.active(purpose)
            following = opened.manifest.with_key(made).moved(old, State.RETIRED, START)
            opened.publish(following, Act("test", "test"), START)
        return before, store.open(root).ring()


@cache
def number(card: int) -> str:
    """The number of a card of the city."""
    return TRIGGERS[0] if card == DECLINED_CARD else canary(card)


def given(card: int, *, with_cvc: bool = False) -> CardGiven:
    """What a resident types about a card."""
    read = read_card(brands(), Secret(number(card)), 12, 2031)
    return CardGiven(read, Secret(f"Resident {card}"), Secret("737") if with_cvc else None, None, None)


@contextmanager
def seeded_ids(seed: int) -> Iterator[None]:
    """Ids from the seed, so that two runs of it can be compared. What is sealed stays random: no history shows it."""
    rng = Random(seed ^ 0x1D5)  # noqa: S311 - chance that a seed repeats
    drawn = SimpleNamespace(token_bytes=rng.randbytes, token_hex=lambda size: rng.randbytes(size).hex())
    gateway.rules.ids.secrets = keys.audit.secrets = drawn  # type: ignore[attr-defined, assignment]
    try:
        yield
    finally:
        gateway.rules.ids.secrets = keys.audit.secrets = secrets  # type: ignore[attr-defined]


async def found(city: "City") -> None:
    """Tokens for every department, in good weather: some for many charges, and some for one."""
    for department in city.departments:
        multi = [await mint(city, department, card, "multi") for card in range(MULTI_TOKENS)]
        single = [await mint(city, department, card % CARDS, "single") for card in range(SINGLE_TOKENS)]
        city.tokens[department] = multi, single


async def mint(city: "City", department: str, card: int, usage: str) -> str:
    """A token of a card; gives its id."""
    caller = city.callers[department]
    minting = await city.apis()[0].mint.token(caller, given(card), new_id("tok"), usage, cvc_check="unchecked")
    row = AuditPen("api", MAC_KEYS).row(AuditEvent(department, "token.created", Outcome.DONE, "app"), city.now())
    token_id = city.memory.create_token(minting.new, row).token_id
    city.cards[token_id] = card
    return token_id
