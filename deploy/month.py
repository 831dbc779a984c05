"""A busy month of a city: its ledger, the files of processor and bank, and the truth about all that differs in them.

Everything is drawn from a seed: the same seed gives the same rows and the same bytes. Charges follow the rhythm of
days and hours, in local time, and become rows that a migrated database takes by COPY. What was captured in the last
local evening is in no file yet. `month_far` writes the files, with differences in them of which each is known.

No card is in here: the tokens that charges are made of are given by the caller, or are rows of tokens that were
erased, of which nothing is left to know.
"""

import random
from base64 import b32encode
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import asyncpg
from month_far import FLAWS, Done, Far, File, Flaw, flaw

from gateway.processor.stub.settlement import FEE_BASIS_POINTS, FEE_FIXED_MINOR, Line, fee_of
from gateway.rules.ids import CHARACTERS
from gateway.rules.journal import entries
from gateway.rules.lifecycle import Kind
from gateway.services.charges import ROUTE
from gateway.services.movements import ROUTES

APPLICATION = "app_busy_month"
CITY = ZoneInfo("America/Los_Angeles")
DAY, HOUR, MINUTE, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
HOURS = (1, 1, 1, 1, 1, 2, 4, 9, 16, 22, 24, 24, 26, 22, 20, 20, 22, 26, 24, 20, 15, 10, 6, 3)
WEEKDAYS = (13, 11, 10, 10, 11, 7, 5)
DECLINED, REFUNDED = 0.04, 0.03
DECLINES = (("soft", "05"), ("soft", "51"), ("data", "54"), ("data", "N7"), ("system", "96"))
FORMULA = '=HYPERLINK("https://pay.example/","overdue")'
"""A reference that a spreadsheet would take for a link."""


IS_THERE = "SELECT true FROM gateway.applications WHERE application_id = $1 AND department_id = ANY ($2)"
ADD_DEPARTMENT = """
INSERT INTO gateway.departments (department_id, name, created_at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING
"""
ADD_APPLICATION = """
INSERT INTO gateway.applications (department_id, application_id, name, amount_minor_max, scopes, requests_per_s_max,
                                  created_at, revoked_at)
VALUES ($1, $2, 'busy month', 1, '{}', 1, now(), now())
"""
ADD_SERVICE = """
INSERT INTO gateway.services (department_id, service, name, gl_code, created_at) VALUES ($1, $2, $3, $4, now())
ON CONFLICT DO NOTHING
"""
ADD_ACCOUNT = """
INSERT INTO gateway.gl_codes (department_id, service, valid_from, gl_code, share)
VALUES ($1, $2, '2020-01-01', $3, $4) ON CONFLICT DO NOTHING
"""
ADD_COST = """
INSERT INTO gateway.fee_costs (department_id, valid_from, basis_points, fixed_minor)
VALUES ($1, '2020-01-01', $2, $3) ON CONFLICT DO NOTHING
"""
COLUMNS = {
    "tokens": "department_id token_id application_id kind usage status cvc_check created_at expires_at",
    "charges": "department_id charge_id application_id token_id amount_minor currency convenience_fee_minor service"
    " reference processor_reference captured_minor refunded_minor cvc_check decline_class decline_code created_at"
    " kind progress",
    "movements": "department_id movement_id charge_id kind amount_minor currency reference application_id route"
    " idempotency_key progress with_cvc decline_class decline_code created_at first_sent_at not_after lease_until",
    "journal": "department_id movement_id line debit credit amount_minor currency recorded_at",
}
"""In the order of the rows of a `Month`, and of their foreign keys."""


class Service(NamedTuple):
    """What a department charges for: from `lowest` to `highest` minor units, on these GL accounts by share.

    `with_fee` adds the cost of the card as a convenience fee; `held` is the part that is authorized first.
    """

    service: str
    name: str
    accounts: Mapping[str, int]
    weight: int
    lowest: int
    highest: int
    with_fee: bool = False
    held: float = 0.0


DEPARTMENTS: Mapping[str, Sequence[Service]] = {
    "parks": (
        Service("pool", "Pool reservations", {"101-2300": 1}, 30, 400, 6_000),
        Service("camp", "Summer camps", {"101-2310": 60, "207-2310": 40}, 12, 9_500, 48_000, held=0.5),
        Service("picnic", "Picnic areas", {"101-2320": 1}, 8, 2_500, 18_000),
    ),
    "utilities": (
        Service("water", "Water bills", {"515-4100": 1}, 34, 2_800, 31_000, with_fee=True),
        Service("refuse", "Refuse collection", {"520-4300": 1}, 16, 1_900, 9_900, with_fee=True),
    ),
}


@dataclass
class Month:
    """What was drawn. The rows are in the order of the columns that `insert` names."""

    first_day: date
    last_day: date
    departments: Mapping[str, Sequence[Service]]
    tokens: list[tuple[Any, ...]] = field(default_factory=list)
    charges: list[tuple[Any, ...]] = field(default_factory=list)
    movements: list[tuple[Any, ...]] = field(default_factory=list)
    journal: list[tuple[Any, ...]] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    """Everything that a reconciliation compares, in the order of its moments."""
    files: list[File] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list)
    zone: ZoneInfo = CITY

    @property
    def days(self) -> list[date]:
        """All of them: local dates for the ledger, UTC dates for the files."""
        return [self.first_day + number * DAY for number in range((self.last_day - self.first_day).days + 1)]

    @property
    def start(self) -> datetime:
        """When it begins."""
        return _midnight(self.first_day, self.zone)

    @property
    def last_evening(self) -> list[Flaw]:
        """What no file has settled yet; nobody planted it, and still it is told."""
        late = [one for one in self.done if one.line.settled > self.last_day]
        return [flaw("last_evening", one, one.local(self.zone)) for one in late]

    @property
    def flagged(self) -> Counter[tuple[str, str, str, date]]:
        """All that has to be flagged, and nothing else: state, reason, reference, business date."""
        told = [*self.flaws, *self.last_evening]
        return Counter((*flaw.truth, flaw.reference, flaw.business_date) for flaw in told if flaw.truth)


def busy_month(
    seed: int,
    charges: int,
    first_day: date,
    *,
    days: int = 30,
    departments: Mapping[str, Sequence[Service]] = DEPARTMENTS,
    flaws: Mapping[str, int] = FLAWS,
    tokens: Mapping[str, Sequence[str]] | None = None,
    zone: ZoneInfo = CITY,
) -> Month:
    """Draw a month of so many charges and so many flaws of each kind, from a local date on.

    `tokens` are the ids that charges of each department are made of; without them, rows of erased ones.
    """
    drawn = Month(first_day, first_day + (days - 1) * DAY, departments, zone=zone)
    rng = random.Random(seed)  # noqa: S311 - it draws a play, not a key
    ledger = Ledger(drawn, rng, tokens)
    ledger.write(charges, flaws)
    drawn.done.sort(key=lambda one: (one.line.created, one.line.reference))
    far = Far(drawn.days, drawn.done, ledger.declined, drawn.flaws, zone, rng)
    far.write(flaws)
    drawn.files, drawn.flaws = far.files, drawn.flaws + far.flaws
    return drawn


class Charge(NamedTuple):
    """What the movements of a charge have in common."""

    department: str
    charge_id: str
    reference: str
    amount: int
    fee: int


class Fate(NamedTuple):
    """What becomes of a charge: declined; captured in part after a while; given back after a while. Or just paid."""

    decline: tuple[str, str] | None = None
    held: timedelta | None = None
    refunded: timedelta | None = None


class Ledger:
    """What the gateway wrote down. `declined` is what a processor that errs could settle."""

    def __init__(self, month: Month, rng: random.Random, tokens: Mapping[str, Sequence[str]] | None) -> None:
        self.declined: list[Done] = []
        self._month = month
        self._rng = rng
        self._tokens = tokens or {name: self._erased(name) for name in month.departments}
        self._services = [(name, service) for name, own in month.departments.items() for service in own]
        self._end = _midnight(month.last_day + DAY, month.zone)

    def write(self, charges: int, flaws: Mapping[str, int]) -> None:
        """Every charge with what became of it."""
        planted = list(self._planted(flaws))
        weights = [service.weight for _, service in self._services]
        chosen = self._rng.choices(self._services, weights, k=charges)
        rhythm = [WEEKDAYS[day.weekday()] for day in self._month.days]
        moments = sorted(map(self._moment, self._rng.choices(self._month.days, rhythm, k=charges)))
        for number, (moment, (department, service)) in enumerate(zip(moments, chosen, strict=True), 1):
            reference = f"{service.service.upper()}-{number:06}"
            self._charge(department, service, moment, reference, self._fate(service))
        for kind, moment, reference, fate in planted:
            self._charge(*self._services[0], moment, reference, fate)
            one = self._month.done[-1]
            self._month.flaws.append(flaw(kind, one, one.local(self._month.zone)))

    def _planted(self, flaws: Mapping[str, int]) -> Iterator[tuple[str, datetime, str, Fate]]:
        """What looks odd and is well, as often as the month has an occasion for it."""
        for number in range(flaws.get("formula", 0)):
            yield "formula", self._moment(self._month.days[number]), FORMULA, Fate()
        for day in self._month.days[:-1]:
            start, end = (_midnight(midnight, self._month.zone) for midnight in (day, day + DAY))
            if end - start != DAY and flaws.get("clock_change"):
                for place in (start, start + 1.5 * HOUR, start + 2.5 * HOUR, end - 2 * SECOND):
                    yield "clock_change", place, "CLOCKS", Fate()
            if (day + DAY).day == 1 and flaws.get("month_end_refund"):
                yield "month_end_refund", end - 12 * HOUR, "MONTH-END", Fate(refunded=DAY)

    def _moment(self, day: date) -> datetime:
        """One of a day, by its hours: elapsed ones, so that none is skipped or comes twice."""
        (hour,) = self._rng.choices(range(24), HOURS)
        return _midnight(day, self._month.zone) + (hour * 3600 + self._rng.randrange(3600)) * SECOND

    def _fate(self, service: Service) -> Fate:
        rng = self._rng
        if rng.random() < DECLINED:
            return Fate(decline=rng.choice(DECLINES))
        held = rng.randrange(60, 1_800) * MINUTE if rng.random() < service.held else None
        return Fate(held=held, refunded=rng.randrange(20, 7_000) * MINUTE if rng.random() < REFUNDED else None)

    def _charge(self, department: str, service: Service, moment: datetime, reference: str, fate: Fate) -> None:
        """One charge, with its movements."""
        rng = self._rng
        base = rng.randrange(service.lowest, service.highest)
        fee = fee_of(base) if service.with_fee else 0
        charge = Charge(department, _id(rng, "ch"), _id(rng, "pr"), base + fee, fee)
        kind, captured, refunded = (Kind.AUTHORIZATION if fate.held else Kind.SALE), 0, 0
        self._move(charge, kind, charge.amount, moment, fate.decline)
        if fate.held and moment + fate.held < self._end:
            moment, kind = moment + fate.held, Kind.CAPTURE
            captured = charge.amount * 3 // 4
            self._move(charge, kind, captured, moment)
        elif kind is Kind.SALE and fate.decline is None:
            captured = charge.amount
        if captured and fate.refunded and moment + fate.refunded < self._end:
            refunded = rng.choice((captured, captured // 3 + 1))
            self._move(charge, Kind.REFUND, refunded, moment + fate.refunded)
        token, decline = rng.choice(self._tokens[department]), fate.decline or (None, None)
        self._month.charges.append(
            (
                *(department, charge.charge_id, APPLICATION, token, charge.amount, "USD", fee, service.service),
                *(reference, charge.reference, captured, refunded, "unchecked", *decline, moment, kind),
                "refused" if fate.decline else "done",
            )
        )

    def _move(
        self, charge: Charge, kind: Kind, amount: int, moment: datetime, decline: tuple[str, str] | None = None
    ) -> None:
        """One movement, and what it means in money a moment later."""
        first, refund = kind in {Kind.SALE, Kind.AUTHORIZATION}, kind is Kind.REFUND
        movement_id = "mv_" + charge.charge_id[3:] if first else _id(self._rng, "re" if refund else "mv")
        reference = charge.reference if first else _id(self._rng, "pr")
        self._month.movements.append(
            (
                *(charge.department, movement_id, charge.charge_id, kind, amount, "USD", reference, APPLICATION),
                *(ROUTE if first else ROUTES[kind], movement_id, "refused" if decline else "done", False),
                *(*(decline or (None, None)), moment, moment),
                *(moment + 20 * SECOND, moment + 15 * SECOND),
            )
        )
        done = min(moment + self._rng.randrange(200, 1_900) * SECOND / 1000, self._end - SECOND / 1000)
        posted = () if decline else entries(kind, amount, charge.fee)
        self._month.journal += [
            (charge.department, movement_id, number, entry.debit, entry.credit, entry.amount_minor, "USD", done)
            for number, entry in enumerate(posted, 1)
        ]
        if not (posted or decline):
            return
        line = Line(charge.reference, "charge", charge.reference, amount, fee_of(amount), "USD", done, done.date())
        if refund:
            line = Line(reference, "refund", charge.reference, -amount, 0, "USD", done, done.date())
        (self.declined if decline else self._month.done).append(
            Done(charge.department, charge.charge_id, reference, line)
        )

    def _erased(self, department: str) -> list[str]:
        """Rows of tokens that nothing is left of."""
        ids = [_id(self._rng, "tok") for _ in range(40)]
        then = _midnight(self._month.first_day, self._month.zone) - DAY
        self._month.tokens += [
            (department, token, APPLICATION, "card", "multi", "erased", "unchecked", then, then + 365 * DAY)
            for token in ids
        ]
        return ids


async def is_there(connection: asyncpg.Connection, departments: Collection[str]) -> bool:
    """Whether one of these departments has a month already."""
    return bool(await connection.fetchval(IS_THERE, APPLICATION, list(departments)))


async def insert(connection: asyncpg.Connection, month: Month) -> bool:
    """Write a month as the owner, all or nothing; False where one is there already.

    Departments and services are added where they are missing; so is an application that nobody has a key of.
    """
    async with connection.transaction():
        if await is_there(connection, month.departments):
            return False
        for department, services in month.departments.items():
            await connection.execute(ADD_DEPARTMENT, department, department.title())
            await connection.execute(ADD_APPLICATION, department, APPLICATION)
            await connection.execute(ADD_COST, department, FEE_BASIS_POINTS, FEE_FIXED_MINOR)
            for service in services:
                gl_code = next(iter(service.accounts))
                await connection.execute(ADD_SERVICE, department, service.service, service.name, gl_code)
                for account, share in service.accounts.items():
                    await connection.execute(ADD_ACCOUNT, department, service.service, account, share)
        for table, columns in COLUMNS.items():
            await connection.copy_records_to_table(
                table, schema_name="gateway", columns=columns.split(), records=getattr(month, table)
            )
    return True


def _midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a local date begins, in UTC."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


def _id(rng: random.Random, prefix: str) -> str:
    """In the form of `rules.ids`."""
    return f"{prefix}_{b32encode(rng.randbytes(17)).decode().lower()[:CHARACTERS]}"
