"""What processor and bank say of a busy month, and what is wrong with it: all of that is known.

The files are written by the processor's double, as it writes its own: one settlement a UTC date, whose batch is in
the bank on the next day that is no Saturday or Sunday. Flaws lie in lines and days of their own, so that none hides
another.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from itertools import islice
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from gateway.processor.stub.deposits import Deposit, bai2
from gateway.processor.stub.discrepancies import Discrepancies
from gateway.processor.stub.settlement import Line, native, stripe

DAY = timedelta(days=1)
SATURDAY = 5
LATE = 7 * DAY
"""A chargeback comes so long after its charge, or later."""
STRIPE_EVERY = 7
"""Each so many days the settlement comes in Stripe's columns."""
CITY_WIDE = "city"

TRUTH: Mapping[str, tuple[str, str] | None] = {
    "dropped_line": ("missing_there", "not_settled"),
    "dropped_refund": ("missing_there", "not_settled"),
    "duplicate_line": ("duplicate", "repeated"),
    "one_cent_drift": ("amount_differs", "amount_differs"),
    "wrong_sign": ("amount_differs", "sign_differs"),
    "fee_change": ("fee_differs", "fee_differs"),
    "unknown_reference": ("missing_here", "unknown_reference"),
    "declined_settled": ("missing_here", "not_captured_here"),
    "late_chargeback": ("missing_here", "chargeback"),
    "adjustment": ("missing_here", "adjustment"),
    "deposit_off": ("amount_differs", "deposit_differs"),
    "stray_deposit": ("missing_here", "deposit_without_settlement"),
    "last_evening": ("timing", "not_settled_yet"),
    "split_deposit": None,
    "nameless_deposit": None,
    "duplicate_file": None,
    "month_end_refund": None,
    "clock_change": None,
    "formula": None,
}
"""What has to be said of each flaw, as state and reason; None where all is well, though it looks odd."""

NO_LINE = frozenset({"dropped_line", "dropped_refund", "last_evening"})
"""Here the item has the movement's own reference: no line tells another."""

IN_LINES: Mapping[str, tuple[str, int]] = {
    "dropped_line": ("drop", 0),
    "dropped_refund": ("drop", 0),
    "duplicate_line": ("repeat", 0),
    "wrong_sign": ("wrong_sign", 0),
    "one_cent_drift": ("amount_off", 1),
    "fee_change": ("fee_off", 25),
}
"""Where a flaw of one line stands among the discrepancies of its day, with the minor units by which it is off."""

IN_DAYS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "unknown_reference": ({"unknown": 1}, "unknown-{:%Y%m%d}-1"),
    "adjustment": ({"adjustment": -1_250}, "adjustment-{:%Y%m%d}"),
    "deposit_off": ({"deposit_off": -700}, "B{:%Y%m%d}"),
    "split_deposit": ({"split_deposit": True}, "B{:%Y%m%d}"),
    "nameless_deposit": ({}, "B{:%Y%m%d}"),
}
"""What a flaw of a whole day puts among its discrepancies, and the reference that its item has."""

FLAWS: Mapping[str, int] = dict.fromkeys(TRUTH, 1) | {"dropped_line": 3, "fee_change": 8, "late_chargeback": 2}
"""How many of each: a month as finance meets it. Clocks, months and evenings have as many as there are."""


class Flaw(NamedTuple):
    """One thing that was planted. `reference` is what its item has; `truth` is state and reason, None for no item."""

    kind: str
    department: str
    charge_id: str | None
    reference: str
    business_date: date
    truth: tuple[str, str] | None


class File(NamedTuple):
    """A file of finance's inbox: `kind` is `settlements` or `deposits`, `format` what it is imported as."""

    kind: str
    format: str
    name: str
    content: bytes


class Done(NamedTuple):
    """A sale, a capture or a refund that was done, with its own reference.

    `line` is what the processor's file says of it, if all is well: of a capture under the reference of its charge.
    """

    department: str
    charge_id: str
    reference: str
    line: Line

    @property
    def refunded(self) -> bool:
        """Whether it gives money back."""
        return self.line.type == "refund"

    def local(self, zone: ZoneInfo) -> date:
        """Its business date, where dates end at midnight."""
        return self.line.created.astimezone(zone).date()


def flaw(kind: str, one: Done, business_date: date) -> Flaw:
    """A flaw of one movement."""
    reference = one.reference if kind in NO_LINE else one.line.reference
    return Flaw(kind, one.department, one.charge_id, reference, business_date, TRUTH[kind])


class Far:
    """Both of them. `done` is what they heard of, `declined` what only looks so; `known` are flaws of the ledger."""

    def __init__(
        self,
        days: Sequence[date],
        done: Sequence[Done],
        declined: Sequence[Done],
        known: Sequence[Flaw],
        zone: ZoneInfo,
        rng: random.Random,
    ) -> None:
        self.files: list[File] = []
        self.flaws: list[Flaw] = []
        self._days = days
        self._zone = zone
        self._rng = rng
        self._lines: dict[date, list[Line]] = {day: [] for day in days}
        for one in done:
            self._lines.get(one.line.settled, []).append(one.line)
        self._planted: dict[date, dict[str, Any]] = {day: {} for day in days}
        self._taken_back: dict[date, list[Line]] = defaultdict(list)
        self._nameless: set[date] = set()
        taken = {flaw.charge_id for flaw in known}
        self._free = self._settled(one for one in done if one.charge_id not in taken)
        self._declined = self._settled(declined)

    def write(self, flaws: Mapping[str, int]) -> None:
        """Plant the flaws, then write the files."""
        self._plant_in_lines(flaws)
        self._plant_in_days(flaws)
        banked: dict[date, list[Deposit]] = defaultdict(list)
        for number, day in enumerate(self._days, 1):
            planted = Discrepancies(**self._planted[day])
            lines = planted.plant(self._lines[day], day, self._taken_back[day])
            form, render = ("native", native) if number % STRIPE_EVERY else ("stripe", stripe)
            self._file("settlements", form, f"{day}-{form}.csv", render(lines))
            batch: dict[str, str] = {"batch": ""} if day in self._nameless else {}
            banked[_next_working_day(day)] += [
                msgspec.structs.replace(one, **batch) for one in planted.deposits(lines, day)
            ]
        open_days = [day for day in self._days if day in banked]
        for number, day in enumerate(self._rng.sample(open_days, flaws.get("stray_deposit", 0)), 1):
            banked[day].append(Deposit(self._rng.randrange(10_000, 90_000), "", f"STRAY{number}"))
            self._city_wide("stray_deposit", f"STRAY{number}", day)
        for day in open_days:
            self._file("deposits", "bai2", f"{day}-bank.bai", bai2(banked[day], day))
        for file in self._rng.sample(self.files, flaws.get("duplicate_file", 0)):
            self.files.append(file._replace(name=f"again-{file.name}"))
            self._city_wide("duplicate_file", file.name, self._days[0])

    def _plant_in_lines(self, flaws: Mapping[str, int]) -> None:
        """Each in a line of its own, of a charge that no other flaw is about."""
        often = Counter(one.charge_id for one in self._free)
        refunds = iter([one for one in self._free if one.refunded])
        charges = iter([one for one in self._free if not one.refunded and often[one.charge_id] == 1])
        for one in islice((one for one in charges if self._late(one)), flaws.get("late_chargeback", 0)):
            day = self._rng.choice(self._late(one))
            self._taken_back[day].append(one.line)
            self.flaws.append(flaw("late_chargeback", one, day))
        for kind, (field, off) in IN_LINES.items():
            for one in islice(refunds if kind == "dropped_refund" else charges, flaws.get(kind, 0)):
                self._planted[one.line.settled].setdefault(field, {})[one.line.reference] = off
                self.flaws.append(flaw(kind, one, one.local(self._zone)))
        for one in self._declined[: flaws.get("declined_settled", 0)]:
            self._lines[one.line.settled].append(one.line)
            self.flaws.append(flaw("declined_settled", one, one.local(self._zone)))

    def _plant_in_days(self, flaws: Mapping[str, int]) -> None:
        """What is about a day or its payment: a day has one such flaw at most, and its payment comes in the month."""
        free = self._rng.sample(self._days[:-4], len(self._days) - 4)
        for kind, (planted, reference) in IN_DAYS.items():
            for day in [free.pop() for _ in range(flaws.get(kind, 0))]:
                self._planted[day] |= planted
                if kind == "nameless_deposit":
                    self._nameless.add(day)
                self._city_wide(kind, reference.format(day), day)

    def _settled(self, done: Iterable[Done]) -> list[Done]:
        """Those that a file is about, in any order."""
        settled = [one for one in done if one.line.settled in self._lines]
        self._rng.shuffle(settled)
        return settled

    def _late(self, one: Done) -> list[date]:
        return [day for day in self._days if day >= one.line.settled + LATE]

    def _city_wide(self, kind: str, reference: str, day: date) -> None:
        self.flaws.append(Flaw(kind, CITY_WIDE, None, reference, day, TRUTH[kind]))

    def _file(self, kind: str, form: str, name: str, text: str) -> None:
        self.files.append(File(kind, form, name, text.encode()))


def _next_working_day(day: date) -> date:
    """When the bank has what was settled: banks rest on Saturdays and Sundays."""
    day += DAY
    while day.weekday() >= SATURDAY:
        day += DAY
    return day
