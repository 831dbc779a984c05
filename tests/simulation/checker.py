"""What right means: invariants over the residents' calls, the ledger, the audit log and the processor's own book.

The numbers are those of the reliability reference, §3.3; T, W and X are ours. Each is a function that yields what it
found wrong, so that a violation names its invariant.

    I1   at most one capture a charge, one effect a reference; what a processor doubles by itself, a comparison names
    I2   acknowledged as done: done exactly once, for the amount, of the card
    I3   done at the processor and done in the ledger are the same
    I4   acknowledged as declined, failed or void: nothing was done, and nothing ever is
    I5   in the end nothing is open but what nobody can know
    I6   one final answer a key, byte for byte
    I7   the journal, the charges and the processor agree on every cent
    I8   after a final answer, no later one says less
    I9   what was acknowledged never disappears
    I10  no card is opened without an audit row that was committed before
    I12  no card number in an answer, an audit row or a log line
    I13  a key that was used with one body never executes another
    A    above the limit nothing is sent without an approver's word, and what was rejected never is
    T    a token for one use pays for one charge, and is as good as new where that never happened
    W    what leaves the house: one reference a movement, the same bytes again only where the processor dedupes
    X    no error of ours but those that are meant
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gateway.rules.compare import Ours, Theirs, compare
from gateway.rules.journal import Account
from gateway.rules.lifecycle import ENDS, OPEN, REQUESTED, UNDECIDED, Kind, Progress
from gateway.services.ports import Charge, Movement, Payment
from tests.simulation.book import Deed
from tests.simulation.city import City
from tests.simulation.founding import CARDS, START, given, number
from tests.simulation.history import Body, Call
from tests.simulation.resident import FINAL, shown
from tests.simulation.wire import Sent, card_digest

Found = Iterator[str]
Key = tuple[str, str, str]
FIRST = (Kind.SALE, Kind.AUTHORIZATION)
CAPTURING = (Kind.SALE, Kind.CAPTURE)
BEGINNINGS = frozenset({"card.opened", "card.received", *REQUESTED.values()})
"""The audit events of what is begun."""
MEANT = frozenset({"Unavailable", "CommitUnknown"})
"""What a store may raise."""
FINAL_STATUS = frozenset({"succeeded", "declined", "failed", "voided"})


class Evidence:
    """The same facts, ordered for the checks."""

    def __init__(self, city: City, logs: Sequence[Mapping[str, Any]]) -> None:
        self.city = city
        self.logs = logs
        self.movements = [row.movement for row in city.memory.movements.values()]
        self.charges = city.memory.charges_
        self.deeds = city.book.deeds
        self.by_key = {(m.department, _act(m), m.idempotency_key): m for m in self.movements}
        self.calls: dict[Key, list[Call]] = defaultdict(list)
        for call in city.history.calls:
            if call.key:
                self.calls[call.department, call.act, call.key].append(call)
        self.sent: dict[str, list[Sent]] = defaultdict(list)
        for sent in city.sent:
            self.sent[sent.movement.movement_id].append(sent)

    def charge(self, movement: Movement) -> Charge:
        """The charge of a movement."""
        return self.charges[movement.department, movement.charge_id]

    def asked_for(self, deed: Deed | None) -> int:
        """How often something was done because we asked for it."""
        return deed.effects - deed.copies if deed else 0


def judge(city: City, logs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything that is wrong with a run, each with its invariant's name."""
    evidence = Evidence(city, logs)
    return [f"{name}: {found}" for name, check in CHECKS for found in check(evidence)]


def _one_effect(e: Evidence) -> Found:
    captures: dict[str, int] = defaultdict(int)
    for reference, deed in e.deeds.items():
        if e.asked_for(deed) > 1:
            yield f"{reference}, a {deed.order.kind}, was carried out {e.asked_for(deed)} times"
        if deed.order.kind in CAPTURING:
            captures[deed.order.charge_reference] += min(1, e.asked_for(deed))
    for charge_reference, count in captures.items():
        if count > 1:
            yield f"{charge_reference} was captured by {count} movements"
    ours = [Ours(m.reference, m.amount_minor, m.progress) for m in e.movements]
    theirs = [Theirs(reference, deed.order.amount_minor, deed.effects) for reference, deed in e.deeds.items()]
    named = {difference.reference for difference in compare(ours, theirs) if difference.what == "duplicate"}
    for reference, deed in e.deeds.items():
        if deed.copies and deed.effects > 1 and reference not in named:
            yield f"a comparison with the processor's list does not name {reference}, which it doubled"


def _done_as_acknowledged(e: Evidence) -> Found:
    for key, calls in e.calls.items():
        for call in calls:
            said = shown(call)
            if call.status not in {200, 201} or not said:
                continue
            movement = e.by_key.get(key)
            deed = e.deeds.get(movement.reference) if movement else None
            if movement is None or deed is None or e.asked_for(deed) != 1:
                yield f"call {call.number} was told {said['status']}, and it was not done once"
                continue
            amount = call.body.amount_minor
            if (deed.order.amount_minor, deed.order.kind) != (amount or deed.order.amount_minor, movement.kind):
                yield f"call {call.number} asked for {amount}, and {deed.order.amount_minor} was done"
            if call.act == "create":
                yield from _same_card(e, movement, call)


def _same_card(e: Evidence, movement: Movement, call: Call) -> Found:
    card = call.body.card if call.body.card is not None else e.city.cards[call.body.token_id or ""]
    typed = given(card)
    expected = card_digest(Payment(typed.card, typed.name, None))
    if any(sent.card != expected for sent in e.sent[movement.movement_id]):
        yield f"call {call.number} was charged to another card"


def _ledger_is_processor(e: Evidence) -> Found:
    known = {m.reference for m in e.movements}
    for reference in e.deeds:
        if reference not in known:
            yield f"the processor carried out {reference}, which the ledger never knew"
    for movement in e.movements:
        deed = e.deeds.get(movement.reference)
        done = e.asked_for(deed) > 0
        if movement.progress is Progress.DONE and (not done or deed is None):
            yield f"{movement.movement_id} is done in the ledger only"
        elif movement.progress is Progress.DONE and deed and deed.order.amount_minor != movement.amount_minor:
            yield f"{movement.movement_id} was done for another amount"
        elif movement.progress in ENDS.values() and movement.progress is not Progress.DONE and done:
            yield f"{movement.movement_id} is {movement.progress} in the ledger and done at the processor"
        elif movement.progress is Progress.REFUSED and deed is None:
            yield f"{movement.movement_id} is refused in the ledger, and the processor never saw it"
        elif movement.progress is Progress.FAILED and deed is not None:
            yield f"{movement.movement_id} never happened by the ledger, and the processor refused it"


def _nothing_done(e: Evidence) -> Found:
    for key, calls in e.calls.items():
        movement = e.by_key.get(key)
        for call in calls:
            if call.status in {402, 502} and (movement is None or e.asked_for(e.deeds.get(movement.reference))):
                yield f"call {call.number} was told that nothing happened, and it did"

    begun = {row.event.request_id for row in e.city.memory.audit if row.event.event in BEGINNINGS}
    for call in e.city.history.calls:
        if call.end and call.end.kind == "refused" and f"req_{call.number}" in begun:
            yield f"call {call.number} was refused with {call.end.name}, and something was begun"


def _nothing_open(e: Evidence) -> Found:
    for movement in e.movements:
        if e.city.could_be_known(movement):
            yield f"{movement.movement_id}, a {movement.kind}, is still {movement.progress}"
        elif movement.progress is Progress.IN_REVIEW and not _may_be_in_review(e, movement):
            yield f"{movement.movement_id} is in review, and could have been decided"
    for (department, act, key), calls in e.calls.items():
        begun, last = e.by_key.get((department, act, key)), calls[-1]
        if begun is None or begun.progress in UNDECIDED or not any(call.status for call in calls):
            continue
        if last.status not in FINAL and _same(e, begun, last):
            yield f"key {key} has no final answer in the end"


def _may_be_in_review(e: Evidence, movement: Movement) -> bool:
    """Nobody can tell: nothing is offered, or the processor's memory is over."""
    book = e.city.book
    short = book.capability == "A" and book.window_s < 3600
    return book.capability == "D" or short


def _one_answer(e: Evidence) -> Found:
    for (_, _, key), calls in e.calls.items():
        finals = {(call.status, call.shown) for call in calls if call.status in FINAL}
        if len(finals) > 1:
            yield f"key {key} has {len(finals)} final answers"


def _cents(e: Evidence) -> Found:
    book = e.city.book
    for (department, charge_id), charge in e.charges.items():
        mine = [m for m in e.movements if (m.department, m.charge_id) == (department, charge_id)]
        posted = [entry for m in mine for entry in e.city.memory.journal.get((department, m.movement_id), ())]
        due = sum(
            p.amount_minor * ((p.debit is Account.PROCESSOR_DUE) - (p.credit is Account.PROCESSOR_DUE))
            for p in posted
        )
        fees = sum(p.amount_minor for p in posted if p.credit is Account.CONVENIENCE_FEES)
        if due != charge.captured_minor - charge.refunded_minor:
            yield f"{charge_id}: the journal says {due}"
        if charge.captured_minor and fees != min(charge.convenience_fee_minor, charge.captured_minor):
            yield f"{charge_id}: {fees} of fees"
        if charge.refunding_minor != sum(
            m.amount_minor for m in mine if m.kind is Kind.REFUND and m.progress in UNDECIDED
        ):
            yield f"{charge_id}: {charge.refunding_minor} is in refunds that nobody knows"
        deeds = [deed for m in mine if m.progress not in OPEN and (deed := e.deeds.get(m.reference))]
        captured = sum(d.order.amount_minor for d in deeds if d.order.kind in CAPTURING and e.asked_for(d))
        refunded = sum(d.order.amount_minor for d in deeds if d.order.kind is Kind.REFUND and e.asked_for(d))
        if (captured, refunded) != (charge.captured_minor, charge.refunded_minor):
            yield f"{charge_id}: the processor says {captured} captured and {refunded} refunded"
        account = book.accounts.get(charge.processor_reference)
        if account is not None and account.refunded_minor > account.captured_minor:
            yield f"{charge_id}: more was refunded than captured"


def _never_less(e: Evidence) -> Found:
    for (_, _, key), calls in e.calls.items():
        ended = [call for call in calls if call.status in FINAL and call.ended_s is not None]
        for first in ended:
            for later in calls:
                if first.ended_s is None or later.begun_s <= first.ended_s or later.body != first.body:
                    continue
                if later.end and later.end.kind == "refused" and later.end.name not in {"Unavailable", "NotReached"}:
                    yield f"key {key} was answered, and later refused with {later.end.name}"
                if later.status == 202:
                    yield f"key {key} was answered, and later it was unclear"
    yield from _final_status_stays(e)


def _final_status_stays(e: Evidence) -> Found:
    last: dict[str, tuple[float, str, int]] = {}
    seen = [(call, said) for call in e.city.history.calls if (said := shown(call)).get("object") == "charge"]
    for call, said in sorted(seen, key=lambda each: each[0].begun_s):
        ended_s, status, captured = last.get(said["id"], (0.0, "", 0))
        fresh = call.act == "show"
        stays = (said["status"], said["captured"]) == (status, captured)
        if fresh and status in FINAL_STATUS and call.begun_s > ended_s and not stays:
            yield f"{said['id']} was {status}, and later {said['status']}"
        if said["status"] in FINAL_STATUS and call.ended_s is not None and status not in FINAL_STATUS:
            last[said["id"]] = (call.ended_s, said["status"], said["captured"])


def _never_gone(e: Evidence) -> Found:
    for (department, act, key), calls in e.calls.items():
        for call in calls:
            said = shown(call)
            if not said:
                continue
            if (department, act, key) not in e.by_key:
                yield f"key {key} was answered, and stands for nothing"
            charge_id = said["id"] if said["object"] == "charge" else said["charge"]
            if (department, charge_id) not in e.charges:
                yield f"{charge_id} was shown, and is gone"
    for call in e.city.history.calls:
        if call.act == "show" and call.end and call.end.name == "NotFound":
            yield f"{call.charge_id} was not found"


def _audited(e: Evidence) -> Found:
    for opened in e.city.opens:
        if opened.opens > opened.rows:
            yield f"{opened.token_id} was opened {opened.opens} times with {opened.rows} audit rows"
    rows: dict[tuple[str, str], int] = defaultdict(int)
    for row in e.city.memory.audit:
        rows[row.event.subject, row.event.event] += 1
    for movement_id, sent in e.sent.items():
        movement = sent[0].movement
        told = rows[movement.charge_id, "card.opened"] + rows[movement.charge_id, "card.received"]
        if movement.kind in FIRST and told < len(sent):
            yield f"{movement_id} was sent {len(sent)} times with {told} audit rows"
    yield from _every_effect_audited(e, rows)


def _every_effect_audited(e: Evidence, rows: Mapping[tuple[str, str], int]) -> Found:
    words = {Progress.DONE: {"charge.captured", "charge.authorized", "capture.done", "void.done", "refund.done"}}
    for movement in e.movements:
        if movement.progress is not Progress.DONE:
            continue
        subject = movement.movement_id if movement.kind is Kind.REFUND else movement.charge_id
        if not any(rows[subject, word] for word in words[Progress.DONE]):
            yield f"{movement.movement_id} was done, and no audit row says so"


def _no_card_numbers(e: Evidence) -> Found:
    text = "\n".join(
        [
            repr([call.shown for call in e.city.history.calls]),
            repr([row.event for row in e.city.memory.audit]),
            repr(e.logs),
            repr(e.city.broken),
        ]
    )
    for card in range(CARDS + 1):
        if number(card) in text:
            yield "a card number stands where none may"


def _one_body(e: Evidence) -> Found:
    for (department, act, key), calls in e.calls.items():
        movement = e.by_key.get((department, act, key))
        if movement is None:
            continue
        bodies = [call.body for call in calls if _same(e, movement, call)]
        if not bodies:
            yield f"key {key} executed what nobody asked for"
        for call in calls:
            if call.status and not _same(e, movement, call):
                yield f"key {key}: call {call.number} was answered for another body"


def _same(e: Evidence, movement: Movement | None, call: Call) -> bool:
    """Whether a call asked for what was committed under its key."""
    if movement is None:
        return False
    body, charge = call.body, e.charge(movement)
    if call.act != "create":
        return _wished(e, movement, body)
    card = e.city.cards.get(charge.token_id)
    return (body.amount_minor, body.reference, body.capture, body.fee_minor) == (
        charge.amount_minor,
        charge.reference,
        movement.kind is Kind.SALE,
        charge.convenience_fee_minor,
    ) and (
        body.token_id == charge.token_id
        if body.token_id
        else card is None and _last4(e, charge) == number(body.card or 0)[-4:]
    )


def _wished(e: Evidence, movement: Movement, body: Body) -> bool:
    return body.amount_minor in {None, movement.amount_minor}


def _last4(e: Evidence, charge: Charge) -> str | None:
    return e.city.memory.tokens[charge.department, charge.token_id].token.last4


def _approved(e: Evidence) -> Found:
    limit = e.city.refund_minor_max
    unasked: Counter[str] = Counter()
    rows = {(row.event.subject, row.event.event) for row in e.city.memory.audit}
    for movement in e.movements:
        name, verdict = movement.movement_id, e.city.memory.verdicts.get((movement.department, movement.movement_id))
        above = movement.kind is Kind.REFUND and limit is not None and movement.amount_minor > limit
        together = sum(
            m.amount_minor for m in e.movements if m.kind is Kind.REFUND and m.charge_id == movement.charge_id
        )
        may_wait = movement.kind is Kind.REFUND and limit is not None and together > limit
        touched = name in e.sent or movement.reference in e.deeds
        if above and touched and (verdict != "approved" or (name, "refund.released") not in rows):
            yield f"{name}, above the limit, was sent, and an approver said: {verdict}"
        if above and verdict is None and movement.progress is not Progress.AWAITING:
            yield f"{name}, above the limit, is {movement.progress}, and no approver said anything"
        ended = movement.progress is Progress.FAILED and (name, "refund.rejected") in rows
        if verdict == "rejected" and (touched or not ended):
            yield f"{name} was rejected, and is {movement.progress}"
        if not may_wait and (verdict is not None or movement.progress is Progress.AWAITING):
            yield f"{name} waited, and did not have to"
        if movement.kind is Kind.REFUND and movement.progress is Progress.DONE and verdict is None:
            unasked[movement.charge_id] += movement.amount_minor
    for charge_id, given_back in unasked.items():
        if limit is not None and given_back > limit:
            yield f"{given_back} of {charge_id} was given back, above the limit, and nobody was asked"


def _tokens(e: Evidence) -> Found:
    paid: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for movement in e.movements:
        if movement.kind in FIRST:
            paid[movement.department, e.charge(movement).token_id].append(movement.progress is not Progress.FAILED)
    for (department, token_id), charges in paid.items():
        token = e.city.memory.tokens[department, token_id].token
        if token.usage == "single" and sum(charges) > 1:
            yield f"{token_id} paid for {sum(charges)} charges"
        if token.usage == "single" and token.status != ("spent" if any(charges) else "active"):
            yield f"{token_id} is {token.status} after {len(charges)} charges"


def _what_leaves(e: Evidence) -> Found:
    book = e.city.book
    for movement_id, sent in e.sent.items():
        if len({(each.movement.reference, each.content) for each in sent}) > 1:
            yield f"{movement_id} was sent with other bytes"
        if len(sent) > 1 and book.capability != "A":
            yield f"{movement_id} was sent {len(sent)} times to a processor that does not dedupe"
        if len(sent) > 1 and any(each.with_cvc for each in sent):
            yield f"{movement_id} came with a code and was sent again"
        row = e.city.memory.movements.get((sent[0].movement.department, movement_id))
        if row is None:
            yield f"{movement_id} was sent, and never committed"
            continue
        first_s = (row.first_sent_at - START).total_seconds()
        slack_s = e.city.swarm.pause_s[1]  # who fell asleep between the last look at the clock and the send
        if any(each.at_s - first_s > book.window_s / 2 + slack_s for each in sent[1:]):
            yield f"{movement_id} was sent again after half of the window"
    references = [m.reference for m in e.movements]
    if len(set(references)) < len(references):
        yield "two movements have one reference"


def _no_surprise(e: Evidence) -> Found:
    yield from e.city.broken
    for line in e.logs:
        if line["event"] == "recovery.case_failed":
            yield f"a worker failed with {line['error']}"
        if line["event"] == "movement.outcome_not_stored" and line["error"] not in MEANT:
            yield f"an outcome could not be stored: {line['error']}"


def _act(movement: Movement) -> str:
    return "create" if movement.kind in FIRST else str(movement.kind)


CHECKS: Sequence[tuple[str, Callable[[Evidence], Found]]] = (
    ("I1", _one_effect),
    ("I2", _done_as_acknowledged),
    ("I3", _ledger_is_processor),
    ("I4", _nothing_done),
    ("I5", _nothing_open),
    ("I6", _one_answer),
    ("I7", _cents),
    ("I8", _never_less),
    ("I9", _never_gone),
    ("I10", _audited),
    ("I12", _no_card_numbers),
    ("I13", _one_body),
    ("A", _approved),
    ("T", _tokens),
    ("W", _what_leaves),
    ("X", _no_surprise),
)
