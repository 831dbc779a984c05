"""Ceremonies at a real pseudo-terminal: what is shown, what is not, and how each of them can end.

A program that holds the ceremony runs at one end; the test sits at the other and types. `keys.terminal` is tested
here too, for it is nothing without a terminal.
"""

import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from shamir_mnemonic import Share
from shamir_mnemonic.wordlist import WORDLIST

from keys.ceremony import Transcript
from keys.primitives import new_key
from keys.root_shares import SharesRoot, describe, read_descriptor, split, write_descriptor
from keys.secret import Secret
from keys.terminal import CLEAR
from tests.keys.pty_driver import END_OF_FILE, INTERRUPT, Terminal

ROOT = Path(__file__).parents[2]
PEOPLE = ("Ada", "Ben", "Cleo")
SECRET_TYPED = "hunter2 Tr0ub4dor&3"

AT_TERMINAL = """
import asyncio, os, signal, sys, threading, time
from keys.errors import KeysError
from keys.terminal import Terminal

try:
    with Terminal(time.monotonic, answer_s={answer_s}) as terminal:
{body}
except KeysError as error:
    print(f"refused: {{error}}")
    sys.exit(1)
print("the end")
"""

CEREMONY = """
import gc, sys, time
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from keys.ceremony import Transcript, collect, deal
from keys.errors import KeysError
from keys.root_shares import read_descriptor, write_descriptor
from keys.secret import Secret
from keys.terminal import Terminal

act, folder, answer_s, deadline_s, threshold, *people = sys.argv[1:]
transcript = Transcript(lambda: datetime.now(UTC))
description = Path(folder, "root.shares")
times = {"transcript": transcript, "deadline_s": float(deadline_s)}
held = None
try:
    with Terminal(time.monotonic, answer_s=float(answer_s)) as terminal:
        if act == "deal":
            dealt = deal(terminal, int(threshold), people, **times)
            write_descriptor(description, dealt.descriptor)
            Path(folder, "root").write_bytes(dealt.secret.reveal())
        else:
            root = collect(terminal, read_descriptor(description), **times)
            Path(folder, "opened").write_bytes(root.unwrap(Path(folder, "wrapped").read_bytes(), b"bound").reveal())
except (KeysError, KeyboardInterrupt) as error:
    held = error
finally:
    Path(folder, "transcript").write_text(transcript.text())

def frames(error):
    while error is not None:
        yield from (frame for frame, _ in walk_tb(error.__traceback__))
        error = error.__context__

if held is not None:
    print("refused:", held)
    print("frames with locals:", sorted({frame.f_code.co_name for frame in frames(held) if frame.f_locals}))
    print("secrets held:", sum(type(thing) is Secret for thing in gc.get_objects()))
    sys.exit(1)
print("the end")
"""


def at_terminal(body: str, *, answer_s: float = 20) -> Terminal:
    """A program that does this with a `terminal`."""
    indented = "\n".join(f"        {line}" for line in body.strip().splitlines())
    return Terminal([sys.executable, "-c", AT_TERMINAL.format(answer_s=answer_s, body=indented)], cwd=ROOT)


@dataclass(frozen=True)
class Ceremony:
    """Where one set of custodians keeps its files."""

    folder: Path

    def start(
        self,
        act: str,
        *,
        answer_s: float = 20,
        deadline_s: float = 60,
        threshold: int = 2,
        people: tuple[str, ...] = PEOPLE,
    ) -> Terminal:
        """The program at a terminal; its arguments are numbers and names."""
        numbers = (str(answer_s), str(deadline_s), str(threshold))
        return Terminal([sys.executable, "-c", CEREMONY, act, str(self.folder), *numbers, *people], cwd=ROOT)

    @property
    def transcript(self) -> str:
        """What the program noted, whatever its end."""
        return (self.folder / "transcript").read_text()

    def steps(self) -> list[str]:
        """The same without times."""
        return [re.sub(" {2,}", " ", line[22:]) for line in self.transcript.splitlines()]


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    """A folder with nothing in it."""
    return Ceremony(tmp_path)


@dataclass(frozen=True)
class Set:
    """A set of shares that somebody has on paper."""

    shares: dict[str, str]
    number: int


def on_paper(folder: Path, threshold: int = 2) -> Set:
    """A set dealt before, its description and a wrapped key in the folder."""
    secret = new_key()
    shares = split(secret, threshold, PEOPLE)
    descriptor = describe(secret, shares, datetime(2026, 3, 14, tzinfo=UTC).date())
    write_descriptor(folder / "root.shares", descriptor)
    (folder / "wrapped").write_bytes(SharesRoot(secret).wrap(Secret(b"a key of the store"), b"bound"))
    return Set({name: share.reveal() for name, share in shares.items()}, descriptor.identifier)


def see_share(t: Terminal, name: str) -> str:
    """Accept a share, and read it from the screen, in the order of its numbers."""
    t.expect(f"{name}, your share comes next")
    t.expect("lost or seen. ")
    t.send("\n")
    shown = dict(re.findall(r"(\d+)\. ([a-z]+)", t.expect("Press Enter when you have: they are shown no more. ")))
    assert list(map(int, sorted(shown, key=int))) == list(range(1, 34))
    return " ".join(shown[str(number)] for number in range(1, 34))


def take_share(t: Terminal, name: str) -> str:
    """See a share, write it down, and type it back."""
    share = see_share(t, name)
    t.send("\n")
    t.expect(f"{name}, type the whole share from your paper, in one line; it is not shown: ")
    t.send(f"{share}\n")
    return share


def give(t: Terminal, share: str) -> None:
    """Type a share when asked."""
    t.expect("types a share, in one line; it is not shown: ")
    t.send(f"{share}\n")


def visible(t: Terminal) -> str:
    """What stands on the screen and can be scrolled back to."""
    return t.output.rpartition(CLEAR)[2]


def runs_of_words(share: str) -> list[str]:
    """Pairs of neighbours: single words of the list stand in any prose."""
    words = share.split()
    return [f"{one} {two}" for one, two in pairwise(words)]


def shows(text: str, share: str) -> bool:
    """Whether a text holds any part of a share, typed in a line or shown in columns."""
    squeezed = re.sub(r"\s+", " ", text.lower())
    columns = re.search(r"\d\. [a-z]+ \d+\. ", squeezed)
    return bool(columns) or any(run in squeezed for run in runs_of_words(share))


# --- the terminal ---

ASKING = 'terminal.ask_secret("secret? ")'
AROUND_A_LOOP = f"async def main(): {ASKING}\nasyncio.run(main())"
IN_A_LOOP = f"async def main():\n    with Terminal(time.monotonic) as terminal: {ASKING}\nasyncio.run(main())"


def test_what_is_asked_and_what_is_shown() -> None:
    """An open answer is shown while it is typed; a secret one is not, not even its length, and both arrive."""
    body = f"""
name = terminal.ask("name? ")
secret = terminal.ask_secret("secret? ")
terminal.say(f"{{name}} {{secret.reveal() == {SECRET_TYPED!r}}}")
"""
    with at_terminal(body) as t:
        t.expect("name? ")
        assert t.echoes()
        t.send("  Ada \n")
        t.expect("secret? ")
        assert not t.echoes()
        t.send(f"{SECRET_TYPED}\n")
        assert t.expect("the end") == "\nAda True\nthe end"
        assert t.wait() == 0
        assert t.output == "name?   Ada \nsecret? \nAda True\nthe end\n"
        assert t.settings == t.settings_before


def test_nobody_answers() -> None:
    """An answer that does not come ends it in one line; what was typed of it is not shown."""
    with at_terminal(ASKING, answer_s=1) as t:
        t.expect("secret? ")
        t.send(SECRET_TYPED)
        t.expect("refused: nobody answered within 1 second; nothing was changed\n")
        assert t.wait() == 1
        assert SECRET_TYPED not in t.output
        assert t.settings == t.settings_before


def test_what_was_half_typed_does_not_reach_the_shell() -> None:
    """What waits in the line when it ends is thrown away: the next program at this terminal does not read it."""
    code = AT_TERMINAL.format(answer_s=0.5, body='        terminal.ask_secret("secret? ")')
    with Terminal(
        ["sh", "-c", 'python="$1"; "$python" -c "$2"; read line; echo "read: $line"', "sh", sys.executable, code],
        cwd=ROOT,
    ) as t:
        t.expect("secret? ")
        t.send(SECRET_TYPED)
        t.expect("nothing was changed\n")
        t.send("what comes later\n")
        t.expect("read: what comes later\n")


def test_a_box_of_time_around_all_answers() -> None:
    """Answers that each come in time do not stretch the whole; the refusal names the whole."""
    body = """
with terminal.within(1, "the ceremony"):
    while True:
        terminal.ask("more? ")
"""
    with at_terminal(body) as t:
        for _ in range(3):
            t.expect("more? ")
            t.send("yes\n")
        t.expect("refused: the ceremony was not done within 1 second; nothing was changed\n")
        assert t.wait() == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(300, "5 minutes"), (60, "1 minute"), (900, "15 minutes"), (90, "90 seconds"), (0.5, "0.5 seconds")],
)
def test_spans_as_people_say_them(seconds: float, told: str) -> None:
    """Minutes where they are whole."""
    from keys.terminal import _span

    assert _span(seconds) == told


def test_without_a_terminal() -> None:
    """In a service or a pipeline nobody is waited for, whatever comes through standard input."""
    code = AT_TERMINAL.format(answer_s=20, body='        terminal.ask("name? ")')
    ran = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        input="Ada\n",
        capture_output=True,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )

    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout == "refused: this needs a person at a terminal, and there is none: run it in one\n"


def test_streams_that_lead_elsewhere(tmp_path: Path) -> None:
    """Questions and answers go to the terminal itself, past what is piped in or out."""
    code = AT_TERMINAL.format(answer_s=20, body='        terminal.say(terminal.ask("name? ").upper())')
    script = '"$1" -c "$2" < /dev/null > "$3" 2>&1'
    with Terminal(["sh", "-c", script, "sh", sys.executable, code, str(tmp_path / "out")], cwd=ROOT) as t:
        t.expect("name? ")
        t.send("ada\n")
        t.expect("ADA\n")
        assert t.wait() == 0
    assert (tmp_path / "out").read_text() == "the end\n"


@pytest.mark.parametrize("body", [ASKING, AROUND_A_LOOP, IN_A_LOOP], ids=["plain", "around a loop", "in a loop"])
def test_control_c(body: str) -> None:
    """Ctrl-C ends it at once, inside an event loop too, and the terminal is as it was."""
    with at_terminal(body) as t:
        t.expect("secret? ")
        t.send(f"{SECRET_TYPED}{INTERRUPT}")
        t.expect("KeyboardInterrupt")
        assert t.wait() in {130, -signal.SIGINT}
        assert t.settings == t.settings_before
        assert SECRET_TYPED not in t.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals(number: signal.Signals) -> None:
    """A signal that ends the process restores the terminal first."""
    with at_terminal(ASKING) as t:
        t.expect("secret? ")
        assert t.settings != t.settings_before
        t.signal(number)
        assert t.wait() == 128 + number
        assert t.settings == t.settings_before


def test_signal_handlers_are_given_back() -> None:
    """Afterwards signals do what they did before."""
    code = (
        "import signal, time; from keys.terminal import Terminal\n"
        "numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)\n"
        "before = [signal.getsignal(number) for number in numbers]\n"
        "with Terminal(time.monotonic): inside = [signal.getsignal(number) for number in numbers]\n"
        "print(before == [signal.getsignal(number) for number in numbers], before == inside)"
    )
    with Terminal([sys.executable, "-c", code], cwd=ROOT) as t:
        t.expect("True False")


def test_the_line_is_lost() -> None:
    """A terminal that goes away, or sends an end of file, ends the question; the process does not linger."""
    with at_terminal(ASKING) as t:
        t.expect("secret? ")
        t.send(END_OF_FILE)
        t.expect("refused: the terminal gave no answer; nothing was changed\n")
        assert t.wait() == 1
    with at_terminal(ASKING) as t:
        t.expect("secret? ")
        t.hang_up()
        assert t.wait() == 128 + signal.SIGHUP


def test_keys_that_would_stop_or_dump_it() -> None:
    r"""Ctrl-Z, Ctrl-\ and Ctrl-S neither stop the program, nor dump its memory, nor freeze the screen."""
    with at_terminal('terminal.say(str(len(terminal.ask("name? "))))') as t:
        t.expect("name? ")
        t.send("A\x1a\x1c\x13B\n")
        t.expect("\n5\n")
        assert t.wait() == 0


def test_what_is_typed_too_early() -> None:
    """Between two questions nothing is shown, and what was typed there answers nothing."""
    body = """
terminal.say("wait")
time.sleep(0.5)
terminal.say(terminal.ask_secret("secret? ").reveal().upper())
"""
    with at_terminal(body) as t:
        t.expect("wait\n")
        t.send("too early\n")
        t.expect("secret? ")
        t.send("in time\n")
        t.expect("IN TIME\n")
        assert "early" not in t.output.lower()


def test_a_terminal_in_a_strange_mode() -> None:
    """What an earlier program left behind (no lines, no carriage returns) does not matter, and is put back."""
    code = AT_TERMINAL.format(answer_s=20, body='        terminal.say(terminal.ask("name? ").upper())')
    script = 'stty -icanon -icrnl -isig -echo; "$1" -c "$2"; echo done'
    with Terminal(["sh", "-c", script, "sh", sys.executable, code], cwd=ROOT) as t:
        t.expect("name? ")
        t.send("adx\x7fa\r")
        t.expect("ADA\n")
        t.expect("done")
        assert not t.settings[3] & (termios.ICANON | termios.ISIG | termios.ECHO)


def test_in_another_thread() -> None:
    """Outside the main thread it works as well, without signals."""
    body = """
thread = threading.Thread(target=lambda: terminal.say(terminal.ask("name? ").upper()))
thread.start()
thread.join()
"""
    code = AT_TERMINAL.format(answer_s=20, body='        terminal.say(terminal.ask("name? ").upper())')
    threaded = "\n".join(f"    {line}" for line in code.splitlines())
    code = f"import threading\ndef run():\n{threaded}\nthread = threading.Thread(target=run)\nthread.start()"
    for program in (at_terminal(body), Terminal([sys.executable, "-c", code], cwd=ROOT)):
        with program as t:
            t.expect("name? ")
            t.send("ada\n")
            t.expect("ADA\nthe end")
            assert t.wait() == 0


# --- dealing ---


def test_dealt_and_collected(ceremony: Ceremony) -> None:
    """Three custodians get a share each, and any two of them open the root with what stands on their paper."""
    with ceremony.start("deal") as t:
        shares = {name: take_share(t, name) for name in PEOPLE}
        t.expect("All 3 custodians have their shares (set ")
        assert t.wait() == 0
        assert not any(shows(visible(t), share) for share in shares.values())
    descriptor = read_descriptor(ceremony.folder / "root.shares")
    assert {one.name: one.share for one in descriptor.custodians} == {
        name: Share.from_mnemonic(share).index + 1 for name, share in shares.items()
    }

    root = Secret((ceremony.folder / "root").read_bytes())
    (ceremony.folder / "wrapped").write_bytes(SharesRoot(root).wrap(Secret(b"a key of the store"), b"bound"))
    for pair in (("Ada", "Ben"), ("Cleo", "Ada"), ("Ben", "Cleo")):
        with ceremony.start("collect") as t:
            t.expect("2 more to come, of: Ada, Ben, Cleo.")
            give(t, shares[pair[0]])
            t.expect(f"Thank you, {pair[0]}.")
            t.expect("1 more to come, of: ")
            give(t, shares[pair[1]].upper().replace(" ", "   "))
            t.expect(f"Thank you, {pair[1]}.")
            assert t.wait() == 0
            assert not any(shows(t.output, share) for share in shares.values())
            assert t.settings == t.settings_before
        assert (ceremony.folder / "opened").read_bytes() == b"a key of the store"


def test_no_echo_of_a_share(ceremony: Ceremony) -> None:
    """Between the question and the next line a whole share is typed and not a byte of it comes to the screen."""
    with ceremony.start("deal") as t:
        share = see_share(t, "Ada")
        t.send("\n")
        t.expect("it is not shown: ")
        before = len(t.output)
        t.send(f"{share}\n")
        t.expect("Ben, your share comes next")
        assert t.output[before:].startswith(f"\n{CLEAR}{CLEAR}Ben, your share comes next")


def test_a_share_is_on_the_screen_once(ceremony: Ceremony) -> None:
    """The screen is clear before a custodian is called, and again before the share is typed back."""
    with ceremony.start("deal") as t:
        share = see_share(t, "Ada")
        assert visible(t).startswith("The share of Ada:")
        assert shows(visible(t), share)
        assert not shows(t.output.rpartition(CLEAR)[0], share)
        t.send("\n")
        t.expect("it is not shown: ")
        assert visible(t) == "Ada, type the whole share from your paper, in one line; it is not shown: "


def test_written_down_wrongly(ceremony: Ceremony) -> None:
    """Three tries, each told where to look by number; then it is shown once more, and may still be right."""
    with ceremony.start("deal") as t:
        share = see_share(t, "Ada")
        t.send("\n")
        wrong = share.split()
        wrong[6], wrong[32] = wrong[32], "hunter2"
        for typed, told in (
            (" ".join(wrong), "Not what was shown: word 7, 33. Look at your paper.\n"),
            (share.rpartition(" ")[0], "32 words were typed, 33 were shown.\n"),
            ("", "0 words were typed, 33 were shown.\n"),
        ):
            t.expect("it is not shown: ")
            t.send(f"{typed}\n")
            t.expect(told)
        assert shows(t.expect("Press Enter when you have"), share)
        t.send("\n")
        t.expect("it is not shown: ")
        t.send(f"  {share.upper()} \n")
        t.expect("Ben, your share")
        assert "hunter2" not in t.output


def test_never_typed_back(ceremony: Ceremony) -> None:
    """Who cannot type the share back after two showings ends the ceremony: nobody's share counts."""
    with ceremony.start("deal") as t:
        ada = take_share(t, "Ada")
        ben = see_share(t, "Ben")
        for again in (False, True):
            t.send("\n")
            for _ in range(3):
                t.expect("it is not shown: ")
                t.send(f"{ada}\n")
                t.expect("Not what was shown: word 4, ")
            if not again:
                t.expect("they are shown no more. ")
        t.expect("refused: Ben did not type back the share that was shown; nothing was changed: begin again\n")
        t.expect("secrets held: 0\n")
        assert t.wait() == 1
        assert not shows(visible(t), ben)
    assert not (ceremony.folder / "root.shares").exists()
    assert ceremony.steps()[-1].startswith("ended without result Ben did not type back")


def by_waiting(t: Terminal) -> None:
    """Nobody does anything."""


def by_control_c(t: Terminal) -> None:
    t.send(INTERRUPT)


def by_sigterm(t: Terminal) -> None:
    t.signal(signal.SIGTERM)


def by_end_of_file(t: Terminal) -> None:
    t.send(END_OF_FILE)


@pytest.mark.parametrize("where", ["shown", "typed back", "accepted"])
@pytest.mark.parametrize("ended", [by_waiting, by_control_c, by_sigterm, by_end_of_file])
def test_ended_in_the_middle(ceremony: Ceremony, ended: Callable[[Terminal], None], where: str) -> None:
    """However it ends and wherever, no word stays on the screen, echo is back, and no secret is left in the error."""
    with ceremony.start("deal", answer_s=1 if ended is by_waiting else 20) as t:
        share = "abandon " * 33
        if where != "accepted":
            share = see_share(t, "Ada")
        if where == "typed back":
            t.send("\n")
            t.expect("it is not shown: ")
        if where == "accepted":
            t.expect("lost or seen. ")
        ended(t)
        code = t.wait()
        assert code == 128 + signal.SIGTERM if ended is by_sigterm else code == 1
        assert t.settings == t.settings_before
        assert not shows(visible(t), share)
        assert ended is by_sigterm or "secrets held: 0\n" in t.output
    assert not (ceremony.folder / "root.shares").exists()
    assert "ended without result" in ceremony.transcript


def test_a_ceremony_that_takes_too_long(ceremony: Ceremony) -> None:
    """Answers that come in time each do not keep a ceremony open for ever."""
    with ceremony.start("deal", deadline_s=1) as t:
        share = see_share(t, "Ada")
        t.expect("refused: the ceremony was not done within 1 second; nothing was changed\n")
        t.expect("secrets held: 0\n")
        assert not shows(visible(t), share)
    assert ceremony.steps()[-1].startswith("ended without result the ceremony was not done within 1 second")


@pytest.mark.parametrize(
    ("threshold", "people", "told"),
    [
        (1, PEOPLE, "one person alone"),
        (2, ("Ada", "ADA"), "must be another person"),
        (2, ("A\x1b[2J", "B"), "plain text"),
    ],
)
def test_people_who_cannot_be_custodians(
    ceremony: Ceremony, threshold: int, people: tuple[str, ...], told: str
) -> None:
    """They are refused before anything is shown."""
    with ceremony.start("deal", threshold=threshold, people=people) as t:
        t.expect("refused: ")
        t.expect(told)
        assert t.wait() == 1
        assert CLEAR not in t.output


# --- collecting ---


def test_wrong_shares_are_asked_again(ceremony: Ceremony, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A typo, a share given twice and one of another set each get their line, unseen; right ones still open it."""
    paper, other = on_paper(ceremony.folder), on_paper(tmp_path_factory.mktemp("other"))
    ada, ben = paper.shares["Ada"], paper.shares["Ben"]
    strange = " ".join(["hunter2", *ada.split()[1:]])
    with ceremony.start("collect") as t:
        give(t, strange)
        t.expect("not in the list of words: word 1; type the share again.")
        give(t, ada.rpartition(" ")[0])
        t.expect("a share has 33 words, and 32 were typed: type it again.")
        give(t, ada)
        t.expect("Thank you, Ada.")
        give(t, ada)
        t.expect("the share of Ada was given already: now another custodian.")
        give(t, other.shares["Ben"])
        t.expect(f"this share is of another set than number {paper.number}, which is needed.")
        give(t, ben)
        assert t.wait() == 0
        assert not any(shows(t.output, share) for share in (strange, ada, ben, other.shares["Ben"]))
    assert (ceremony.folder / "opened").read_bytes() == b"a key of the store"
    refused = [line for line in ceremony.steps() if line.startswith("share refused")]
    assert len(refused) == 4


@pytest.mark.parametrize("place", [0, 3, 4, 16, 29, 32])
def test_a_typo(ceremony: Ceremony, place: int) -> None:
    """A word mistaken for another of the list is found wherever it stands, and after three the ceremony ends."""
    words = on_paper(ceremony.folder).shares["Ada"].split()
    words[place] = next(word for word in WORDLIST if word not in words)
    with ceremony.start("collect") as t:
        for _ in range(3):
            give(t, " ".join(words))
            t.expect("the checksum is wrong")
        t.expect("refused: 3 wrong answers one after another; nothing was changed: begin again\n")
        t.expect("secrets held: 0\n")
        assert t.wait() == 1


def test_too_few_custodians(ceremony: Ceremony) -> None:
    """When the last one does not come the time runs out, what was given is let go, and nothing was opened."""
    paper = on_paper(ceremony.folder, threshold=3)
    with ceremony.start("collect", answer_s=2) as t:
        give(t, paper.shares["Ada"])
        give(t, paper.shares["Ben"])
        t.expect("1 more to come, of: Cleo.")
        t.expect("refused: nobody answered within 2 seconds; nothing was changed\n")
        t.expect("secrets held: 0\n")
        assert t.wait() == 1
    assert not (ceremony.folder / "opened").exists()


def test_shares_that_make_another_root(ceremony: Ceremony) -> None:
    """A forged share with a right checksum is found at the end, and no share stays in the error's frames."""
    paper = on_paper(ceremony.folder)
    forged = Share(**{**vars(Share.from_mnemonic(paper.shares["Ada"])), "value": bytes(range(32))}).mnemonic()
    with ceremony.start("collect") as t:
        give(t, forged)
        give(t, paper.shares["Ben"])
        t.expect("refused: these shares do not make this key store's root\n")
        t.expect("frames with locals: ['<module>', 'collect', 'collect_secret']\n")
        t.expect("secrets held: 0\n")
        assert t.wait() == 1


# --- the transcript ---


def test_a_transcript_of_dealing(ceremony: Ceremony) -> None:
    """Every step stands there with its time and custodian, the set and the root by name; no word, no control."""
    with ceremony.start("deal") as t:
        shares = [take_share(t, name) for name in PEOPLE]
        assert t.wait() == 0
    descriptor = read_descriptor(ceremony.folder / "root.shares")
    root = (ceremony.folder / "root").read_bytes()

    assert ceremony.steps() == [
        "dealing begins",
        f"root made {descriptor.title}",
        *(f"{step} {name}" for name in PEOPLE for step in ("share accepted", "share shown", "share typed back")),
        f"dealing ends {descriptor.title}",
    ]
    assert f"2 of 3 custodians, root {descriptor.commitment[:16]}" in ceremony.transcript
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  [a-z]", line) for line in ceremony.transcript.splitlines())
    assert not any(shows(ceremony.transcript, share) for share in shares)
    assert root.hex()[:8] not in ceremony.transcript
    assert ceremony.transcript.replace("\n", "").isprintable()


def test_a_transcript_of_collecting(ceremony: Ceremony) -> None:
    """Wrong shares stand there with their reason, and right ones with their custodian; no word of either."""
    paper = on_paper(ceremony.folder)
    with ceremony.start("collect") as t:
        give(t, "hunter2 " * 33)
        for name in ("Cleo", "Ada"):
            give(t, paper.shares[name])
        assert t.wait() == 0

    steps = ceremony.steps()
    assert steps[0].startswith(f"collecting begins set {paper.number}, 2 of 3")
    assert steps[1].startswith("share refused not in the list of words: word 1, 2,")
    assert steps[2:4] == ["share given Cleo", "share given Ada"]
    assert steps[4].startswith("root opened set ")
    assert "hunter2" not in ceremony.transcript
    assert not any(shows(ceremony.transcript, share) for share in paper.shares.values())


def test_times_are_in_utc(now: datetime) -> None:
    """Whatever the clock's zone, a transcript is in UTC; an empty one is empty."""
    transcript = Transcript(lambda: now)
    assert transcript.text() == ""
    assert transcript.note("dealing begins") == now
    transcript.note("share accepted", "Ada")

    assert transcript.text() == (
        "2026-03-14T15:09:26Z  dealing begins\n2026-03-14T15:09:26Z  share accepted        Ada\n"
    )
