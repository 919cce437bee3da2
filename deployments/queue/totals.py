"""What the metrics count: what waits and runs now, and all that has ended since 00:00 UTC.

    requests that ended today: settled minutes (kept in memory) + the last minute ─┐
    requests that wait or run ─────────────────────────────────────────────────────┼──▶ Totals ──▶ GET /metrics
    replicas, webhooks, files ─────────────────────────────────────────────────────┘

The rows are the only memory, so every gateway tells the same, one that has just started as well; and a day is short
enough to be counted at once. A row is written within seconds of the moment that it names: a minute that is over for
``SETTLED_SECONDS`` gets no more of them, and is not read again. A process that has just started reads the day an hour
at a time, each a short call, and keeps what it has read. What is younger is read with each scrape, in one statement
with what is open: a request that ends meanwhile is counted once, as the one or the other.

Sums are of whole microseconds and nano dollars: they are the same in whatever order they are added.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    and_,
    case,
    func,
    literal,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.metrics import LATENCY_SECONDS
from deployments.queue.database import Database, uninterrupted
from deployments.queue.outbox import WebhookState
from deployments.queue.replicas import Loaded, read_loaded
from deployments.queue.reports import EVER, Ending, endings, micros
from deployments.queue.request import Priority
from deployments.queue.tables import files, now, requests, webhooks
from deployments.queue.turns import in_progress, in_queue

DAY_SECONDS = 86400
HOUR_SECONDS = 3600
MINUTE_SECONDS = 60
SETTLED_SECONDS = 60
"""A transaction of ours takes a few seconds at the most (see ``database``): this is ten times as much."""

FILES_SECONDS = 60.0
"""How long a count of the files is good for: it reads all their records."""

_columns = requests.c


@dataclass(frozen=True)
class Distribution:
    """How often something took how long.

    Attributes:
        within: How often at most as long as each bound.
        count: How often at all.
        micros: Microseconds together.
    """

    within: tuple[int, ...]
    count: int
    micros: int


@dataclass(frozen=True)
class Done:
    """What an endpoint's requests came to that ended today.

    Attributes:
        received: How many arrived today, those that have not ended among them.
        endings: How many ended how.
        lost: Attempts that had begun and were followed by another.
        gpu_micros: Microseconds on the device.
        cost_nano_usd: What they cost us.
        price_nano_usd: What they are billed, as far as their rows say.
        unpriced_clips: Successes whose rows do not say: code from before wrote them.
        unpriced_micros: Microseconds of these on the device.
        waits: From arrival to the start, of those that ran.
        runs: From the start to the end, of those that ran.
        times: From arrival to the end, of all.
    """

    received: int
    endings: Mapping[Ending, int]
    lost: int
    gpu_micros: int
    cost_nano_usd: int
    price_nano_usd: int
    unpriced_clips: int
    unpriced_micros: int
    waits: Distribution
    runs: Distribution
    times: Distribution


@dataclass(frozen=True)
class Line:
    """What waits for an endpoint at one priority: how many, and the age of the oldest in seconds."""

    waiting: int = 0
    age: float = 0.0


@dataclass(frozen=True)
class Present:
    """How long replicas of a deployment were there today, and what that has cost."""

    micros: int
    cost_nano_usd: int


@dataclass(frozen=True)
class Totals:
    """All that the rows say at one moment.

    Attributes:
        at: The moment, in Unix seconds on the database's clock.
        done: For each endpoint.
        lines: For each endpoint and priority of which something waits.
        running: For each endpoint of which something runs.
        present: For each deployment of which there were replicas today.
        webhooks: How many webhooks are to be delivered.
        overdue: For how many seconds the first of them has been due.
        files: How many whole files have a record.
        file_bytes: Their bytes.
    """

    at: float
    done: Mapping[str, Done]
    lines: Mapping[tuple[str, Priority], Line]
    running: Mapping[str, int]
    present: Mapping[str, Present]
    webhooks: int
    overdue: float
    files: int
    file_bytes: int


@dataclass
class _Settled:
    """The minutes of a day that are over: up to which moment, and what they came to by endpoint."""

    day: float
    until: float
    sums: dict[str, Counter[str]] = field(default_factory=dict)


class Counts:
    """Counts the rows of a database."""

    def __init__(self, database: Database) -> None:
        """Nothing has been counted yet."""
        self._database = database
        self._settled = _Settled(0.0, 0.0)
        self._files: tuple[float, Row[int, int]] | None = None
        self._counting = asyncio.Lock()

    @uninterrupted
    async def now(self) -> Totals:
        """Count.

        Raises:
            Unavailable: The database cannot be read.
        """
        async with self._database.read() as connection:
            at = float((await connection.execute(select(now()))).scalar_one())
        return await self.at(at)

    @uninterrupted
    async def at(self, moment: float) -> Totals:
        """The same, on the day of a moment (Unix seconds): what ended since its 00:00 UTC, ages as they were then.

        Raises:
            Unavailable: The database cannot be read.
        """
        async with self._counting:
            await self._settle(moment)
            async with self._database.read() as connection:
                rows = (await connection.execute(_fresh(self._settled))).all()
                present = _present(await read_loaded(connection, (_day(moment), EVER[1])))
                due = (await connection.execute(_due())).one()
                stored = await self._stored(connection)
        overdue = max(0.0, moment - due.first) if due.first is not None else 0.0
        done, lines, running = self._requests_of(rows, moment)
        return Totals(moment, done, lines, running, present, due.webhooks, overdue, stored.files, int(stored.bytes))

    async def _settle(self, at: float) -> None:
        """Read the minutes that are over and not in memory yet."""
        settled = self._settled = self._settled if self._settled.day == _day(at) else _Settled(_day(at), _day(at))
        edge = (at - SETTLED_SECONDS) // MINUTE_SECONDS * MINUTE_SECONDS
        while settled.until < edge:
            until = min(edge, settled.until + HOUR_SECONDS)
            async with self._database.read() as connection:
                rows = (await connection.execute(_ended(settled).where(_columns.finished_at < until))).all()
            _add(settled.sums, rows)
            settled.until = until

    def _requests_of(
        self, rows: Sequence[Row[Any]], at: float
    ) -> tuple[dict[str, Done], dict[tuple[str, Priority], Line], dict[str, int]]:
        """What has ended by endpoint, what waits by endpoint and priority, what runs by endpoint."""
        sums = {endpoint: counted.copy() for endpoint, counted in self._settled.sums.items()}
        _add(sums, rows)
        lines = {
            (row.endpoint, Priority(row.priority)): Line(row.requests, max(0.0, at - row.oldest))
            for row in rows
            if row.part == _WAITS
        }
        running = {row.endpoint: row.requests for row in rows if row.part == _RUNS}
        return {endpoint: _done(counted) for endpoint, counted in sums.items()}, lines, running

    async def _stored(self, connection: AsyncConnection) -> Row[int, int]:
        if self._files is None or time.monotonic() - self._files[0] >= FILES_SECONDS:
            self._files = time.monotonic(), (await connection.execute(_stored())).one()
        return self._files[1]


def _day(at: float) -> float:
    """When the day of a moment began, on the clock of UTC."""
    return at // DAY_SECONDS * DAY_SECONDS


# ---------------------------------------------------------------- statements

_ENDED, _WAITS, _RUNS = range(3)
_SPANS = ("waits", "runs", "times")


def _fresh(settled: _Settled) -> CompoundSelect[Any]:
    """All that has ended since, and all that is open: one statement, and so one state of the rows.

    Each part has an index, and is summed by itself: where much waits, each of its rows costs little.
    """
    waits = _open(settled.day, _WAITS, _columns.priority).where(in_queue())
    runs = _open(settled.day, _RUNS, literal(0)).where(in_progress())
    return union_all(
        _ended(settled), waits.group_by(_columns.endpoint, _columns.priority), runs.group_by(_columns.endpoint)
    )


def _ended(settled: _Settled) -> Select[Any]:
    """What has ended since, by endpoint."""
    sums = [func.sum(value).label(name) for name, value in _values(settled.day).items()]
    query = select(*_lead(_ENDED, literal(0)), *sums).where(_columns.finished_at >= settled.until)
    return query.group_by(_columns.endpoint)


def _open(day: float, part: int, priority: ColumnElement[int]) -> Select[Any]:
    """What is open: all that it adds to the sums is that it has arrived."""
    received = func.sum(_values(day)["received"])
    return select(*_lead(part, priority), *(received if name == "received" else literal(0) for name in _NAMES))


def _lead(part: int, priority: ColumnElement[int]) -> tuple[ColumnElement[Any], ...]:
    """What a row says beside its sums."""
    counted = (func.count().label("requests"), func.min(_columns.created_at).label("oldest"))
    return _columns.endpoint, literal(part).label("part"), priority.label("priority"), *counted


def _values(day: float) -> dict[str, ColumnElement[int]]:
    """What each row that has ended adds to the sums, by their names."""
    of = _columns
    gpu_micros = micros(of.gpu_seconds)
    unpriced = and_(endings(of.status_code)[Ending.SUCCESS], of.price_nano_usd.is_(None))
    begun = of.attempt - of.unbegun
    values: dict[str, ColumnElement[int]] = {
        "received": _one_if(of.created_at >= day),
        **{ending.value: _one_if(condition) for ending, condition in endings(of.status_code).items()},
        "lost": case((begun > 1, begun - 1), else_=0),
        "gpu_micros": gpu_micros,
        "cost_nano_usd": of.cost_nano_usd,
        "price_nano_usd": func.coalesce(of.price_nano_usd, 0),
        "unpriced_clips": _one_if(unpriced),
        "unpriced_micros": case((unpriced, gpu_micros), else_=0),
    }
    spans = (of.started_at - of.created_at, of.finished_at - of.started_at, of.finished_at - of.created_at)
    for name, span in zip(_SPANS, spans, strict=True):
        values[f"{name}_count"] = _one_if(span.is_not(None))
        values[f"{name}_micros"] = micros(span)
        values |= {f"{name}_{at}": _one_if(span <= bound) for at, bound in enumerate(LATENCY_SECONDS)}
    return values


def _one_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return case((condition, 1), else_=0)


def _due() -> Select[int, float]:
    waiting = webhooks.c.state == literal(WebhookState.DUE, webhooks.c.state.type, literal_execute=True)
    return select(func.count().label("webhooks"), func.min(webhooks.c.due_at).label("first")).where(waiting)


def _stored() -> Select[int, int]:
    size = files.c.size
    return select(func.count(size).label("files"), func.coalesce(func.sum(size), 0).label("bytes"))


# ---------------------------------------------------------------- sums


def _add(sums: dict[str, Counter[str]], rows: Iterable[Row[Any]]) -> None:
    for row in rows:
        sums.setdefault(row.endpoint, Counter()).update({name: int(row._mapping[name]) for name in _NAMES})


def _done(sums: Counter[str]) -> Done:
    return Done(
        received=sums["received"],
        endings={ending: sums[ending.value] for ending in Ending},
        lost=sums["lost"],
        gpu_micros=sums["gpu_micros"],
        cost_nano_usd=sums["cost_nano_usd"],
        price_nano_usd=sums["price_nano_usd"],
        unpriced_clips=sums["unpriced_clips"],
        unpriced_micros=sums["unpriced_micros"],
        waits=_distribution(sums, "waits"),
        runs=_distribution(sums, "runs"),
        times=_distribution(sums, "times"),
    )


def _distribution(sums: Counter[str], name: str) -> Distribution:
    within = tuple(sums[f"{name}_{at}"] for at in range(len(LATENCY_SECONDS)))
    return Distribution(within, sums[f"{name}_count"], sums[f"{name}_micros"])


NOTHING_DONE = _done(Counter())
NEVER = Present(0, 0)


def _present(loaded: Iterable[Loaded]) -> dict[str, Present]:
    found: dict[str, Present] = {}
    for each in loaded:
        of = found.get(each.deployment, NEVER)
        found[each.deployment] = Present(of.micros + each.micros, of.cost_nano_usd + each.nano_usd)
    return found


_NAMES = tuple(_values(0.0))
