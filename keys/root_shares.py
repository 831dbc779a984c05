"""A root key that nobody holds: n custodians have a share each, any m of them together make it (SLIP-39).

A share is 33 words for paper. It carries a checksum, the set that it belongs to, and the threshold. What lies on
disk is a description without a secret (`Descriptor`, as JSON), and the root itself is only ever in memory. `keys
ceremony unlock` collects the shares once and holds the root for a while, for processes of the same user
(`keys.root_agent`).

The arithmetic is that of `shamir-mnemonic`, the reference implementation, whose authors warn that it is not hardened
against side channels: hold ceremonies on a machine that nobody else uses.

Fewer shares than the threshold leave at least 2^224 roots possible: SLIP-39 spends 32 bits of the root's 256 on
knowing the right one when it is rebuilt. A share stays one of this root for ever, so when a custodian leaves, only
a new root takes away what they could take part in.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from shamir_mnemonic import MnemonicError, Share, combine_mnemonics, generate_mnemonics
from shamir_mnemonic.wordlist import WORD_INDEX_MAP

from keys.errors import KeystoreRefused, RootRefused, RootUnavailable
from keys.files import read_private, write_private
from keys.primitives import commitment, require_equal
from keys.root import Ask, MemoryRoot
from keys.root_agent import LOCKED, fetch
from keys.secret import Secret

LABEL = "root/shares/v1"
WORDS = 33
THRESHOLD_MIN = 2
CUSTODIANS_MAX = 16
NAME_MAX = 64
TRIES = 3


class SharesRoot(MemoryRoot):
    """A root key made of shares."""

    def __init__(self, root: Secret[bytes]) -> None:
        super().__init__(root, LABEL)


# --- by URI ---


def create(uri: str, ask: Ask) -> SharesRoot:  # noqa: ARG001 # every provider is called alike
    """Refuse: shares go to several people, one at a time, and that is a ceremony."""
    path = descriptor_path(uri)
    if path.exists():
        raise KeystoreRefused(f"{path} exists already and is never replaced: move it away first")
    raise RootRefused("a root of shares is made by `keys ceremony split`")


def open_root(uri: str, ask: Ask) -> SharesRoot:
    """Open the root through the agent, where the URI names one that answers; else ask the custodians.

    Raises `RootUnavailable` when nobody answers either, `RootRefused` for wrong shares and a wrong root.
    """
    path, agent = _parts(uri)
    descriptor = read_descriptor(path)
    if agent is not None:
        with suppress(RootUnavailable):
            return SharesRoot(checked(fetch(agent), descriptor))
    return SharesRoot(_asked_for(descriptor, ask))


def descriptor_path(uri: str) -> Path:
    """Where the description of the shares lies."""
    return _parts(uri)[0]


def agent_path(uri: str) -> Path | None:
    """The socket through which an unlocked root is fetched, where the URI names one."""
    return _parts(uri)[1]


def _parts(uri: str) -> tuple[Path, Path | None]:
    """The description's path and the agent's socket. What is wrong with a URI is said without quoting it."""
    try:
        parts = urlsplit(uri)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        parts, options = urlsplit(""), []
    if parts.scheme != "shares" or parts.netloc or parts.fragment or not parts.path.startswith("/"):
        raise RootRefused("keys.root must be `shares:/absolute/path[?agent=/absolute/path]`")
    if [name for name, _ in options] not in ([], ["agent"]):
        raise RootRefused("keys.root: `agent` is the only option of `shares:`; shares are typed, never configured")
    agent = Path(options[0][1]) if options else None
    if agent is not None and not agent.is_absolute():
        raise RootRefused("keys.root: agent must be the absolute path of a socket")
    return Path(unquote(parts.path)), agent


def _asked_for(descriptor: "Descriptor", ask: Ask) -> Secret[bytes]:
    collector, said, wrong = Collector(descriptor), "", 0
    while collector.missing:
        number = descriptor.threshold - collector.missing + 1
        try:
            typed = ask(f"share of custodian {number} of {descriptor.threshold}{said}")
        except RootRefused:  # nobody is there, as in every service: what helps is the agent
            raise RootUnavailable(LOCKED) from None
        try:
            collector.add(typed)
            said, wrong = "", 0
        except RootRefused as error:
            said, wrong = f" ({error})", wrong + 1
            if wrong == TRIES:
                raise
    return collector.secret()


# --- what everybody may know ---


class Custodian(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who holds which share, counted from 1."""

    name: str
    share: Annotated[int, msgspec.Meta(ge=1, le=CUSTODIANS_MAX)]


class Descriptor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A set of shares, described without a secret."""

    format: Literal["shares/v1"]
    identifier: Annotated[int, msgspec.Meta(ge=0, lt=1 << 15)]
    """SLIP-39's number of the set, which begins each of its shares."""
    threshold: int
    custodians: tuple[Custodian, ...]
    commitment: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """`keys.primitives.commitment` of the root, in hexadecimal digits."""
    created: date

    @property
    def title(self) -> str:
        """How people and transcripts call the set."""
        people = f"{self.threshold} of {len(self.custodians)} custodians"
        return f"set {self.identifier}, {people}, root {self.commitment[:16]}"


def split(secret: Secret[bytes], threshold: int, custodians: Sequence[str]) -> dict[str, Secret[str]]:
    """Divide a root among custodians: 33 words for each name, any `threshold` of which make the root again.

    Raises:
        RootRefused: a threshold below 2 or above their number, more than 16, or names that cannot be told apart.
    """
    _require_people(threshold, custodians)
    (mnemonics,) = generate_mnemonics(1, [(threshold, len(custodians))], secret.reveal(), b"")
    for first in range(len(mnemonics)):  # a share that does not work is found now, not in the emergency
        turned = [*mnemonics[first:], *mnemonics[:first]][:threshold]
        require_equal(secret.reveal(), combine_mnemonics(turned), RootRefused("the shares do not work: split again"))
    return {name: Secret(mnemonic) for name, mnemonic in zip(custodians, mnemonics, strict=True)}


def describe(secret: Secret[bytes], shares: Mapping[str, Secret[str]], created: date) -> Descriptor:
    """The description of what `split` made."""
    read = {name: Share.from_mnemonic(share.reveal()) for name, share in shares.items()}
    one = next(iter(read.values()))
    custodians = tuple(Custodian(name, share.index + 1) for name, share in read.items())
    digest = commitment(secret, LABEL).hex()
    return Descriptor("shares/v1", one.identifier, one.member_threshold, custodians, digest, created)


def write_descriptor(path: Path, descriptor: Descriptor) -> None:
    """Write the description; raises `KeystoreRefused` where there is one already."""
    write_private(path, msgspec.json.format(msgspec.json.encode(descriptor), indent=2) + b"\n", replace=False)


def read_descriptor(path: Path) -> Descriptor:
    """Read the description; raises `RootRefused` or `KeystoreRefused`."""
    if not path.exists():
        raise RootRefused(f"{path} does not exist: `keys ceremony split` makes it, `keys restore` puts it back")
    try:
        descriptor = msgspec.json.decode(read_private(path), type=Descriptor)
        _require_people(descriptor.threshold, [custodian.name for custodian in descriptor.custodians])
        _require_people(descriptor.threshold, [str(custodian.share) for custodian in descriptor.custodians])
    except (msgspec.MsgspecError, UnicodeDecodeError, RootRefused):
        raise RootRefused(f"{path} does not describe a root of shares: restore it from its backup") from None
    return descriptor


def checked(root: Secret[bytes], descriptor: Descriptor) -> Secret[bytes]:
    """This root, if it is the one described; raises `RootRefused` else."""
    other = RootRefused("the unlocked root is not the one of `keys.root`: `keys ceremony unlock --lock`, then unlock")
    require_equal(bytes.fromhex(descriptor.commitment), commitment(root, LABEL), other)
    return root


def _require_people(threshold: int, names: Sequence[str]) -> None:
    if threshold < THRESHOLD_MIN:
        raise RootRefused("at least 2 custodians must be needed: else one person alone holds the root")
    if not threshold <= len(names) <= CUSTODIANS_MAX:
        raise RootRefused(f"{threshold} custodians are needed, so there must be {threshold} to {CUSTODIANS_MAX}")
    # They stand on screens and in transcripts: no line breaks, no escape sequences.
    if not all(name.isprintable() and name == name.strip() and 0 < len(name) <= NAME_MAX for name in names):
        raise RootRefused(f"a custodian's name must be plain text of at most {NAME_MAX} characters")
    if len({name.casefold() for name in names}) < len(names):
        raise RootRefused("every custodian must be another person, with another name")


# --- shares coming back ---


def plain_words(typed: Secret[str]) -> Secret[str]:
    """A share as it was dealt: lower case, one space between words."""
    return Secret(" ".join(typed.reveal().lower().split()))


class Collector:
    """Takes shares one at a time until there are enough."""

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._shares: dict[str, Secret[str]] = {}

    @property
    def missing(self) -> int:
        """How many more shares are needed."""
        return self._descriptor.threshold - len(self._shares)

    @property
    def awaited(self) -> list[str]:
        """The custodians who have not given theirs."""
        return [custodian.name for custodian in self._descriptor.custodians if custodian.name not in self._shares]

    def add(self, mnemonic: Secret[str]) -> str:
        """Take one share; returns whose it is. Raises `RootRefused`, without a word of it, and stays as it was."""
        words = plain_words(mnemonic)
        name = self._owner(_read_share(words))
        if name in self._shares:
            raise RootRefused(f"the share of {name} was given already: now another custodian")
        if not self.missing:
            raise RootRefused("there are enough shares already")
        self._shares[name] = words
        return name

    def secret(self) -> Secret[bytes]:
        """The root itself; raises `RootRefused` when shares are missing or make another root."""
        if self.missing:
            raise RootRefused(f"{self.missing} more of {self._descriptor.threshold} shares are needed")
        other = RootRefused("these shares do not make this key store's root")
        try:
            root = Secret(combine_mnemonics(share.reveal() for share in self._shares.values()))
        except MnemonicError:
            raise other from None
        require_equal(bytes.fromhex(self._descriptor.commitment), commitment(root, LABEL), other)
        return root

    def _owner(self, share: Share) -> str:
        number, names = self._descriptor.identifier, {one.share: one.name for one in self._descriptor.custodians}
        given = (share.identifier, share.member_threshold, share.group_count)
        if given != (number, self._descriptor.threshold, 1) or share.index + 1 not in names:
            raise RootRefused(f"this share is of another set than number {number}, which is needed")
        return names[share.index + 1]


def _read_share(words: Secret[str]) -> Share:
    listed = words.reveal().split()
    if len(listed) != WORDS:
        raise RootRefused(f"a share has {WORDS} words, and {len(listed)} were typed: type it again")
    strange = [str(number) for number, word in enumerate(listed, 1) if word not in WORD_INDEX_MAP]
    if strange:  # their numbers only: to offer the word that was meant would help whoever guesses
        raise RootRefused(f"not in the list of words: word {', '.join(strange)}; type the share again")
    try:
        return Share.from_mnemonic(words.reveal())
    except MnemonicError:
        line = "the checksum is wrong: a word was mistaken, or two exchanged; type the share again"
        raise RootRefused(line) from None
