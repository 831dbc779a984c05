"""Group commit: the steps of many requests in one transaction, durable before any of them is answered.

A commit waits for the disk, and costs the same for one request as for fifty. Requests that come while one is under
way wait together for the next: each department has a queue, and departments take turns. Who finds nothing in work
waits for nobody. After a batch of several the next one waits until as many have come again, but not for long; and
when many have come while one is in work, another one goes beside it.

What a request does inside a transaction is written as `Steps`: a generator that yields what it asks of the database
and is given the rows. A batch runs the steps of all its requests side by side, and asks the same question for all of
them in one statement:

    steps of A   claim ─┐           lock_token ─┐                insert_audit ─┐
    steps of B   claim ─┤  one      lock_token ─┤  one     …     insert_audit ─┤  one      COMMIT
    steps of C   claim ─┘ statement insert_dek …┘ statement      insert_audit ─┘ statement

Where all of a batch ask one question only, as tokens without a key do, that statement is the transaction.

Nobody pays for others. Requests that name the same thing (a key, a charge) are never in one batch. Whose steps raise
is told so, and the batch is rolled back and done again without it. When the database refuses a statement, or
somebody's lock lasts, the batch is halved until who caused it is alone: it fails, or tries on for a while. All that
goes on aside, while others have their turns; what it names stays its own. Everybody gets one result.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from asyncpg import Record

from gateway.errors import Unavailable
from gateway.services.ports import CommitUnknown
from gateway.store.database import ACQUIRE_TIMEOUT_S, LOCK_WAIT_MS, Database, Disturbed, StatementRefused
from keys.database import Connection

AT_ONCE_MAX = 5
"""Batches of one process, each with a connection and a department to itself."""
BATCH_MAX = 512
GATHERED_MAX = 16
"""A batch waits for no more than so many. When so many wait, they need not wait for another batch, either."""
BESIDE_MAX = 3
"""Batches of one department at a time."""
GATHERING_S = 0.002
"""And for no longer than this."""
WAITING_MAX = 4096
"""So many requests of a department may wait; one more is refused at once."""
LOCK_WAIT_MS_MIN = 20
ASIDE_MAX = 4
"""So many parts of batches that were halved are in work at a time."""

T = TypeVar("T")
Fetch = Callable[..., Awaitable[list[Record]]]
"""Of a statement and its values the records."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A named query and its rows of values; the answer has, in their order, the records that were found for them."""

    query: str
    rows: Sequence[tuple[object, ...]]


Steps = Generator[Ask, list[Record], T]
"""What a request does in a transaction."""


def ask(query: str, *values: object) -> Steps[Record | None]:
    """Ask with one row of values; at most one record is found."""
    found = yield Ask(query, [values])
    return found[0] if found else None


@dataclass(slots=True)
class _Failed:
    """What a request's steps raised."""

    error: Exception


@dataclass(slots=True, eq=False)
class _Request:
    """One that waits: how to make its steps, as often as needed, what it names, and whether it asks only once."""

    steps: Callable[[], Steps[Any]]
    names: Collection[str]
    asks_once: bool
    result: asyncio.Future[Any]
    since_s: float
    named: set[str] | None = None
    """Where its names are held while it is in work."""

    def end(self, outcome: object) -> None:
        """Let its names go, and wake who waits, if anybody still does."""
        if self.named is not None:
            self.named.difference_update(self.names)
            self.named = None
        if self.result.done():
            return
        if isinstance(outcome, _Failed):
            self.result.set_exception(copy(outcome.error))  # a copy: each is raised in a place of its own
        else:
            self.result.set_result(outcome)


@dataclass(slots=True)
class _Queue:
    """A department's."""

    waiting: deque[_Request] = field(default_factory=deque)
    working: int = 0
    """Batches in line, or in work."""
    named: set[str] = field(default_factory=set)
    """What is named by those in work, or aside."""
    last: int = 1
    """How many its last batch had."""
    ended_s: float = 0.0
    """When."""
    gathering: asyncio.TimerHandle | None = None


class _OthersFailed(Exception):
    """Some steps raised: this transaction must not be committed."""


class Batches:
    """The way to write for all requests of a process."""

    def __init__(self, database: Database, queries: SimpleNamespace) -> None:
        self._database = database
        self._queries = queries
        self._queues: dict[str, _Queue] = {}
        self._turns: deque[str] = deque()
        self._working: set[asyncio.Task[None]] = set()
        self._aside: set[asyncio.Task[None]] = set()
        self._aside_max = asyncio.Semaphore(ASIDE_MAX)
        self._watching: asyncio.TimerHandle | None = None

    async def do(self, department: str, steps: Callable[[], Steps[T]], *names: str, asks_once: bool = False) -> T:
        """Run the steps in the next batch of a department, and return what they do, once it is committed.

        Steps that ask once ask for what names its department itself, and finds nothing for whom it writes nothing.

        Raises:
            What the steps raise: then nothing was written for them.
            Unavailable: too many wait, the database cannot be reached, or refused what no caller can mend.
            CommitUnknown: the connection was lost while committing.
        """
        queue = self._queues.setdefault(department, _Queue())
        if len(queue.waiting) >= WAITING_MAX:
            raise Unavailable
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        queue.waiting.append(_Request(steps, names, asks_once, result, loop.time()))
        if self._watching is None:
            self._watching = loop.call_later(ACQUIRE_TIMEOUT_S / 5, self._watch)
        self._go_on(department, queue)
        return await result

    async def alone(self, connection: Connection, department: str, steps: Steps[T]) -> T:
        """Run the steps in a transaction of the caller's."""
        (outcome,) = await self._drive(connection.fetch, department, [steps])
        if isinstance(outcome, _Failed):
            raise outcome.error
        return cast("T", outcome)

    # -- turns

    def _go_on(self, department: str, queue: _Queue) -> None:
        """Put a batch of a department in line, unless others are to come to it first; and begin what may begin."""
        if queue.waiting and queue.working == 0:
            loop = asyncio.get_running_loop()
            quiet = loop.time() - queue.ended_s > GATHERING_S
            if quiet or len(queue.waiting) >= min(queue.last, GATHERED_MAX):
                self._put_in_line(department, queue)
            elif queue.gathering is None:
                queue.gathering = loop.call_later(GATHERING_S, self._put_in_line, department, queue)
        elif len(queue.waiting) >= GATHERED_MAX and queue.working < BESIDE_MAX:
            self._put_in_line(department, queue)
        self._begin()

    def _put_in_line(self, department: str, queue: _Queue) -> None:
        if queue.gathering is not None:
            queue.gathering.cancel()
            queue.gathering = None
        queue.working += 1
        self._turns.append(department)
        self._begin()

    def _begin(self) -> None:
        while self._turns and len(self._working) < AT_ONCE_MAX:
            self._working.add(asyncio.create_task(self._turn(self._turns.popleft())))

    async def _turn(self, department: str) -> None:
        queue = self._queues[department]
        batch = self._take(queue)
        try:
            if batch:
                queue.last = len(batch)
                await self._commit(department, batch)
        finally:
            task = asyncio.current_task()
            assert task is not None, "internal error: a turn is a task"
            self._working.discard(task)
            queue.working, queue.ended_s = queue.working - 1, asyncio.get_running_loop().time()
            if batch:  # else all who wait name what is in work or aside: its end is their turn
                self._go_on(department, queue)
            self._begin()

    def _take(self, queue: _Queue) -> list[_Request]:
        """Who comes next, in order; who names what another one names that is in work waits for a later turn."""
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        while queue.waiting and len(batch) < BATCH_MAX:
            request = queue.waiting.popleft()
            if request.result.done():  # expired, or its caller went away
                continue
            if queue.named.isdisjoint(request.names):
                queue.named.update(request.names)
                request.named = queue.named
                batch.append(request)
            else:
                left.append(request)
        queue.waiting.extendleft(reversed(left))
        return batch

    def _watch(self) -> None:
        """Tell those who have waited for too long; they are left out when their turn comes."""
        for queue in self._queues.values():
            for request in queue.waiting:
                if not _has_waited_enough(request):
                    break
                request.end(_Failed(Unavailable()))
        self._watching = None
        if any(queue.waiting for queue in self._queues.values()):
            self._watching = asyncio.get_running_loop().call_later(ACQUIRE_TIMEOUT_S / 5, self._watch)

    # -- a batch

    async def _commit(self, department: str, batch: Sequence[_Request], lock_wait_ms: int = LOCK_WAIT_MS) -> None:
        """Commit all that can be, and tell everybody but those with whom it goes on aside."""
        try:
            while batch:
                batch = await self._together(department, batch, lock_wait_ms)
        except (StatementRefused, Disturbed) as error:
            self._part(department, batch, lock_wait_ms, error)
        except Exception as error:  # noqa: BLE001 - it was nobody's alone
            for request in batch:
                request.end(_Failed(error))
        except BaseException:  # this process ends: perhaps in the middle of a COMMIT
            for request in batch:
                request.end(_Failed(CommitUnknown()))
            raise

    def _part(self, department: str, batch: Sequence[_Request], lock_wait_ms: int, error: Exception) -> None:
        """Go on with each half aside; who is alone tries on, if it was a lock, until it has waited for too long."""
        half, less_ms = len(batch) // 2, max(lock_wait_ms // 2, LOCK_WAIT_MS_MIN)
        if half:
            self._put_aside(department, batch[:half], less_ms, 0.0)
            self._put_aside(department, batch[half:], less_ms, 0.0)
        elif isinstance(error, Disturbed) and not _has_waited_enough(batch[0]):
            self._put_aside(department, batch, LOCK_WAIT_MS_MIN, LOCK_WAIT_MS / 1000)
        else:
            batch[0].end(_Failed(error))

    def _put_aside(self, department: str, batch: Sequence[_Request], lock_wait_ms: int, pause_s: float) -> None:
        self._aside.add(task := asyncio.create_task(self._again(department, batch, lock_wait_ms, pause_s)))
        task.add_done_callback(self._aside.discard)

    async def _again(self, department: str, batch: Sequence[_Request], lock_wait_ms: int, pause_s: float) -> None:
        try:
            await asyncio.sleep(pause_s)
            async with self._aside_max:
                late = [request for request in batch if _has_waited_enough(request)]
                for request in late:
                    request.end(_Failed(Unavailable()))
                await self._commit(department, [each for each in batch if each not in late], lock_wait_ms)
        except BaseException:
            for request in batch:
                request.end(_Failed(Unavailable()))
            raise
        self._go_on(department, self._queues[department])

    async def _together(self, department: str, batch: Sequence[_Request], lock_wait_ms: int) -> Sequence[_Request]:
        """One transaction; gives who is to be done again, because others failed in it and it was rolled back."""
        steps = [request.steps() for request in batch]
        outcomes: list[object] = []
        committed = False
        if lock_wait_ms == LOCK_WAIT_MS and all(request.asks_once for request in batch):
            # The statement is the transaction, in one round trip; who fails in it wrote nothing, so the rest stays.
            outcomes = await self._drive(self._database.commit_one, department, steps)
            committed = True
        else:
            with suppress(_OthersFailed):
                async with self._database.transaction(department, lock_wait_ms) as connection:
                    outcomes = await self._drive(connection.fetch, department, steps)
                    _require_all_done(outcomes)
                committed = True
        again = []
        for request, outcome in zip(batch, outcomes, strict=True):
            if committed or isinstance(outcome, _Failed):
                request.end(outcome)
            else:
                again.append(request)
        return again

    async def _drive(self, fetch: Fetch, department: str, steps: Sequence[Steps[Any]]) -> list[Any]:
        """Run steps side by side, one question of all at a time; gives what each returned or, `_Failed`, raised."""
        outcomes: list[Any] = [None] * len(steps)
        asked: dict[str, list[tuple[int, Ask]]] = {}
        order = list(vars(self._queries))

        def go_on(number: int, found: list[Record] | None) -> None:
            try:
                # The first `send` of a generator takes None.
                question = steps[number].send(found)  # type: ignore[arg-type]
            except StopIteration as end:
                outcomes[number] = end.value
            except Exception as error:  # noqa: BLE001 - whatever it is, it is that request's alone
                outcomes[number] = _Failed(error)
            else:
                asked.setdefault(question.query, []).append((number, question))

        for number in range(len(steps)):
            go_on(number, None)
        while asked:
            query = min(asked, key=order.index)
            askers = asked.pop(query)
            answers = await self._fetch(fetch, department, query, [each for _, each in askers])
            for (number, _), found in zip(askers, answers, strict=True):
                go_on(number, found)
        return outcomes

    async def _fetch(self, fetch: Fetch, department: str, query: str, questions: Sequence[Ask]) -> list[list[Record]]:
        """One statement for all who ask; gives each the records found for its rows."""
        rows = [(row, place) for place, question in enumerate(questions) for row in question.rows]
        rows.sort(key=lambda each: cast("Any", each[0][0]))  # by the first column: as locks are taken
        columns = zip(*map(itemgetter(0), rows), strict=True)
        answers: list[list[Record]] = [[] for _ in questions]
        for record in await fetch(getattr(self._queries, query), department, *map(list, columns)):
            answers[rows[record["n"] - 1][1]].append(record)
        return answers


def _require_all_done(outcomes: Sequence[object]) -> None:
    if any(isinstance(outcome, _Failed) for outcome in outcomes):
        raise _OthersFailed


def _has_waited_enough(request: _Request) -> bool:
    return asyncio.get_running_loop().time() - request.since_s >= ACQUIRE_TIMEOUT_S
