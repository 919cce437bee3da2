"""What has been: usage, speed, billing and history, read from the rows of the requests.

    requests (which have ended) ──▶ Selection (whose, of what, when) ──▶ sums for each bucket of time, or pages of rows

A request counts at the moment it ended. Only a success is billed; whatever ended may have cost us. Sums are of whole
microseconds and whole nano dollars, so a sum is exactly what its rows add up to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Row,
    Select,
    and_,
    case,
    cast,
    column,
    delete,
    func,
    literal,
    or_,
    select,
    true,
    union_all,
    values,
)

from deployments.costs import MICRO
from deployments.errors import ClientCancelled
from deployments.queue.database import Database, uninterrupted
from deployments.queue.request import RequestStatus
from deployments.queue.tables import keys, now, request_io, requests
from deployments.queue.turns import in_progress, in_queue

PERCENTILES = (50, 75, 90)
LATENCY_SECONDS = (0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
"""Upper bounds of the buckets of ``Load.latencies``; the last one has none."""

RECENT_SECONDS = 60.0
EVER = (0.0, 1e11)
"""The edges of all time, in one bucket."""

_columns = requests.c
_duration = _columns.finished_at - _columns.started_at
_wait = _columns.started_at - _columns.created_at


def micros(seconds: ColumnElement[Any]) -> ColumnElement[int]:
    """Whole microseconds; 0 where there are none."""
    return cast(func.round(func.coalesce(seconds, 0.0) * MICRO), BigInteger)


_micros = micros(_columns.gpu_seconds)
_unpriced = _columns.price_nano_usd.is_(None)


class Ending(StrEnum):
    """How a request may have ended: in fal's words, but that to give one up is no error of anybody's."""

    SUCCESS = "success"
    USER_ERROR = "user_error"
    CANCELLED = "cancelled"
    ERROR = "error"


def endings(status_code: ColumnElement[int]) -> dict[Ending, ColumnElement[bool]]:
    """How the requests ended that have this status."""
    return {
        Ending.SUCCESS: status_code.between(200, 299),
        Ending.USER_ERROR: and_(status_code.between(400, 499), status_code != ClientCancelled.status),
        Ending.CANCELLED: status_code == ClientCancelled.status,
        Ending.ERROR: status_code >= 500,
    }


class Order(StrEnum):
    """What comes first in a list: the latest end, or the longest run."""

    ENDED_AT = "ended_at"
    DURATION = "duration"


_ORDERS = {Order.ENDED_AT: _columns.finished_at, Order.DURATION: func.coalesce(_duration, 0.0)}


@dataclass(frozen=True)
class Selection:
    """Requests that have ended.

    Attributes:
        key_id: Whose; None for everybody's.
        endpoints: Of which endpoints; none for all.
        start: Ended at this moment or later, in Unix seconds.
        end: Ended before this moment.
        request_ids: Which ones; none for all.
        ending: How they ended.
        text: What their input contains, as far as it was kept.
    """

    key_id: str | None
    endpoints: Sequence[str] = ()
    start: float | None = None
    end: float | None = None
    request_ids: Sequence[str] = ()
    ending: Ending | None = None
    text: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same in SQL."""
        found: list[ColumnElement[bool]] = [_columns.finished_at.is_not(None)]
        if self.key_id is not None:
            found.append(_columns.key_id == self.key_id)
        if self.endpoints:
            found.append(_columns.endpoint.in_(self.endpoints))
        if self.start is not None:
            found.append(_columns.finished_at >= self.start)
        if self.end is not None:
            found.append(_columns.finished_at < self.end)
        if self.request_ids:
            found.append(_columns.id.in_(self.request_ids))
        if self.ending:
            found.append(endings(_columns.status_code)[self.ending])
        if self.text:
            found += [_columns.store_io, request_io.c.input.icontains(self.text, autoescape=True)]
        return found


@dataclass(frozen=True)
class Place:
    """Where a page ended: the order's value in its last row, and that row's number."""

    value: float
    seq: int


@dataclass(frozen=True)
class Used:
    """What one key got from one endpoint in one bucket. ``alias`` names the key, where it has a name.

    ``price_nano_usd`` is the sum of the prices that the rows keep, ``unpriced_clips`` how many keep none, and
    ``unpriced_micros`` the time of those on the GPU; ``cost_nano_usd`` is what they cost us.
    """

    bucket: int
    endpoint: str
    key_id: str
    alias: str | None
    clips: int
    gpu_micros: int
    cost_nano_usd: int
    price_nano_usd: int
    unpriced_clips: int
    unpriced_micros: int


@dataclass(frozen=True)
class Spent:
    """Requests of a key to one endpoint: what those are billed that ended well, or how many are open.

    The prices are as in ``Used``.
    """

    endpoint: str
    price_nano_usd: int
    unpriced_clips: int
    unpriced_micros: int
    open: int


@dataclass(frozen=True)
class Costs:
    """What the requests of one endpoint took of one model in one bucket, however they ended. Prices are as in ``Used``.

    ``model`` is the deployment that they waited for.
    """

    bucket: int
    endpoint: str
    model: str
    requests: int
    successes: int
    gpu_micros: int
    cost_nano_usd: int
    price_nano_usd: int
    unpriced_clips: int
    unpriced_micros: int


@dataclass(frozen=True)
class Speed:
    """How the requests of one endpoint went in one bucket.

    The percentiles are in seconds and of the requests that ran: of the run, and of the wait before it.
    """

    bucket: int
    endpoint: str
    requests: int
    endings: Mapping[Ending, int]
    durations: Mapping[int, float]
    waits: Mapping[int, float]


@dataclass(frozen=True)
class Past:
    """A request that has ended. ``input`` and ``output`` are None unless asked for, and where they were not kept.

    ``price_nano_usd`` is None of a failure, and where the row keeps none; ``alias`` names the key, where it has a name.
    """

    place: Place
    id: str
    key_id: str
    alias: str | None
    endpoint: str
    created_at: float
    started_at: float | None
    finished_at: float
    status_code: int
    gpu_micros: int
    cost_nano_usd: int
    price_nano_usd: int | None
    input: Any = None
    output: Any = None

    @property
    def duration(self) -> float | None:
        """Seconds of its last attempt; None if it never ran."""
        return None if self.started_at is None else self.finished_at - self.started_at


@dataclass(frozen=True)
class Load:
    """What an endpoint does just now; ``completed`` (by HTTP status), ``received`` and ``latencies`` of a minute.

    ``latencies`` counts the requests that ended within each of ``LATENCY_SECONDS`` of their arrival, and at last all.
    """

    waiting: int
    running: int
    received: int
    completed: Mapping[int, int]
    latencies: Sequence[int]


class Reports:
    """Reads the rows of a database."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def usage(self, selection: Selection, edges: Sequence[float]) -> list[Used]:
        """The successes between each two edges, by endpoint and key."""
        buckets = _buckets(edges)
        group = (buckets.c.number.label("bucket"), _columns.endpoint, _columns.key_id)
        sums = (func.sum(_micros).label("gpu_micros"), func.sum(_columns.cost_nano_usd).label("cost_nano_usd"))
        query = (
            select(*group, func.max(keys.c.alias).label("alias"), func.count().label("clips"), *sums, *_prices())
            .join_from(buckets, requests, _within(buckets))
            .outerjoin(keys, keys.c.id == _columns.key_id)
            .where(*replace(selection, ending=Ending.SUCCESS).conditions())
            .group_by(*group)
            .order_by(*group)
        )
        async with self._database.read() as connection:
            return [Used(**_whole(row)) for row in await connection.execute(query)]

    @uninterrupted
    async def costs(self, edges: Sequence[float]) -> list[Costs]:
        """What everything cost that ended between each two edges, by endpoint and model."""
        buckets = _buckets(edges)
        group = (buckets.c.number.label("bucket"), _columns.endpoint, _columns.model)
        is_success = endings(_columns.status_code)[Ending.SUCCESS]
        sums = (
            func.count().label("requests"),
            func.sum(case((is_success, 1), else_=0)).label("successes"),
            func.sum(_micros).label("gpu_micros"),
            func.sum(_columns.cost_nano_usd).label("cost_nano_usd"),
        )
        query = select(*group, *sums, *_prices(is_success)).join_from(buckets, requests, _within(buckets))
        async with self._database.read() as connection:
            rows = await connection.execute(query.group_by(*group).order_by(*group))
            return [Costs(**_whole(row)) for row in rows]

    @uninterrupted
    async def spending(self, key_id: str, since: float) -> list[Spent]:
        """What a key's requests are billed that ended well since a moment, and how many wait or run now.

        It is one statement, so one that ends meanwhile counts once.
        """
        mine = Selection(key_id, start=since, ending=Ending.SUCCESS).conditions()
        ended = select(_columns.endpoint, *_prices(), literal(0).label("open"))
        ended = ended.where(*mine).group_by(_columns.endpoint)
        still = select(_columns.endpoint, *[literal(0)] * 3, func.count()).group_by(_columns.endpoint)
        still = still.where(_columns.key_id == key_id)
        query = union_all(ended, still.where(in_queue()), still.where(in_progress()))
        async with self._database.read() as connection:
            return [Spent(**_whole(row)) for row in await connection.execute(query)]

    @uninterrupted
    async def speed(self, selection: Selection, edges: Sequence[float], timed: bool = True) -> list[Speed]:
        """How everything went that ended between each two edges, by endpoint; with percentiles where ``timed``."""
        buckets = _buckets(edges)
        ended = (
            select(buckets.c.number.label("bucket"), _columns.endpoint, _columns.status_code)
            .add_columns(_columns.started_at, _duration.label("duration"), _wait.label("wait"))
            .join_from(buckets, requests, _within(buckets))
            .where(*selection.conditions())
        )
        async with self._database.read() as connection:
            counted = (await connection.execute(_counted(ended))).all()
            timings = (await connection.execute(_percentiles(ended))).all() if timed else []
        ranked = {(row.bucket, row.endpoint): row for row in timings}
        return [_speed(row, ranked.get((row.bucket, row.endpoint))) for row in counted]

    @uninterrupted
    async def history(
        self,
        selection: Selection,
        limit: int,
        order: Order = Order.ENDED_AT,
        after: Place | None = None,
        longest: int | None = None,
    ) -> list[Past]:
        """A page of what has ended, with the payloads that were kept; an empty one for each ``longest`` leaves out."""
        payloads = [_up_to(longest, each) for each in (request_io.c.input, request_io.c.output)]
        return await self._page(_past(*payloads), selection, limit, order, after)

    @uninterrupted
    async def outline(
        self, selection: Selection, limit: int, order: Order = Order.ENDED_AT, after: Place | None = None
    ) -> list[Past]:
        """The same without payloads."""
        return await self._page(_past(), selection, limit, order, after)

    async def _page(
        self, query: Select[Any], selection: Selection, limit: int, order: Order, after: Place | None
    ) -> list[Past]:
        value = _ORDERS[order]
        query = query.add_columns(value.label("value")).where(*selection.conditions())
        if after:
            query = query.where(or_(value < after.value, and_(value == after.value, _columns.seq < after.seq)))
        query = query.order_by(value.desc(), _columns.seq.desc()).limit(limit)
        async with self._database.read() as connection:
            return [_as_past(row._mapping) for row in await connection.execute(query)]

    @uninterrupted
    async def waiting(self, endpoints: Sequence[str]) -> int:
        """How many requests wait for these endpoints."""
        mine = and_(_columns.status == RequestStatus.IN_QUEUE, _columns.endpoint.in_(endpoints))
        async with self._database.read() as connection:
            return int((await connection.execute(select(func.count()).select_from(requests).where(mine))).scalar_one())

    @uninterrupted
    async def load(self) -> dict[str, Load]:
        """What every endpoint does just now, of those that do anything."""
        since = now() - RECENT_SECONDS
        open_now = _columns.status.in_([RequestStatus.IN_QUEUE, RequestStatus.IN_PROGRESS])
        latency = _columns.finished_at - _columns.created_at
        within = [
            func.sum(case((latency <= limit, 1), else_=0)).label(_latency_name(limit)) for limit in LATENCY_SECONDS
        ]
        received = func.sum(case((_columns.created_at > since, 1), else_=0)).label("received")
        group = (_columns.endpoint, _columns.status, _columns.status_code)
        query = select(*group, func.count().label("total"), received, *within).group_by(*group)
        async with self._database.read() as connection:
            found = await connection.execute(query.where(or_(open_now, _columns.finished_at > since)))
            rows = [dict(row._mapping) for row in found]
        return {
            endpoint: _load([row for row in rows if row["endpoint"] == endpoint])
            for endpoint in sorted({row["endpoint"] for row in rows})
        }

    @uninterrupted
    async def erase(self, request_id: str) -> None:
        """Forget the input and output of a request that has ended."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(request_io).where(request_io.c.request_id == request_id))


def _buckets(edges: Sequence[float]) -> CTE:
    """Numbered spans of time as a table, so that a database can sum by them whatever the calendar does."""
    rows = [(number, since, until) for number, (since, until) in enumerate(pairwise(edges))]
    table = values(column("number", Integer), column("since", Float), column("until", Float), name="buckets")
    return table.data(rows).cte("buckets")


def _prices(of: ColumnElement[bool] = true()) -> list[ColumnElement[Any]]:  # noqa: B008 - it never changes
    """Sums over requests that are billed: what their rows keep, how many keep nothing, and those' time on the GPU."""
    unpriced = and_(of, _unpriced)
    return [
        func.coalesce(func.sum(case((of, _columns.price_nano_usd))), 0).label("price_nano_usd"),
        func.sum(case((unpriced, 1), else_=0)).label("unpriced_clips"),
        func.sum(case((unpriced, _micros), else_=0)).label("unpriced_micros"),
    ]


def _whole(row: Row[Any]) -> dict[str, Any]:
    """A row with its sums as whole numbers: PostgreSQL's are decimals."""
    return {name: int(value) if isinstance(value, Decimal) else value for name, value in row._mapping.items()}


def _within(buckets: CTE) -> ColumnElement[bool]:
    return and_(_columns.finished_at >= buckets.c.since, _columns.finished_at < buckets.c.until)


def _counted(ended: Select[Any]) -> Select[Any]:
    rows = ended.subquery()
    sums = [
        func.sum(case((condition, 1), else_=0)).label(ending.value)
        for ending, condition in endings(rows.c.status_code).items()
    ]
    group = (rows.c.bucket, rows.c.endpoint)
    return select(*group, func.count().label("requests"), *sums).group_by(*group).order_by(*group)


def _percentiles(ended: Select[Any]) -> Select[Any]:
    """For each bucket and endpoint, the smallest time that so many percent of the requests did not exceed."""
    ran = ended.where(_columns.started_at.is_not(None)).subquery()
    group = (ran.c.bucket, ran.c.endpoint)
    ranks = select(
        *group,
        ran.c.duration,
        ran.c.wait,
        func.row_number().over(partition_by=group, order_by=ran.c.duration).label("duration_rank"),
        func.row_number().over(partition_by=group, order_by=ran.c.wait).label("wait_rank"),
        func.count().over(partition_by=group).label("of"),
    ).subquery()
    points = [
        func.min(case((ranks.c[f"{name}_rank"] * 100 >= percent * ranks.c.of, ranks.c[name]))).label(
            f"{name}_{percent}"
        )
        for name in ("duration", "wait")
        for percent in PERCENTILES
    ]
    return select(ranks.c.bucket, ranks.c.endpoint, *points).group_by(ranks.c.bucket, ranks.c.endpoint)


def _speed(counts: Any, percentiles: Any) -> Speed:
    values = percentiles._mapping if percentiles else {}
    durations, waits = (
        {percent: values[f"{name}_{percent}"] for percent in PERCENTILES if values} for name in ("duration", "wait")
    )
    counted = {ending: int(counts._mapping[ending.value]) for ending in Ending}
    return Speed(counts.bucket, counts.endpoint, counts.requests, counted, durations, waits)


def _up_to(longest: int | None, payload: ColumnElement[str]) -> ColumnElement[str]:
    """A payload, or the JSON of nothing in place of one that is too long to be read for a list."""
    if longest is None:
        return payload
    return case((func.length(payload) > longest, literal("{}")), else_=payload).label(payload.key)


def _past(*payloads: ColumnElement[Any]) -> Select[Any]:
    columns = (_columns.seq, _columns.id, _columns.key_id, keys.c.alias, _columns.endpoint)
    more = (_columns.created_at, _columns.started_at, _columns.finished_at, _columns.status_code)
    sums = (_micros.label("gpu_micros"), _columns.cost_nano_usd, _columns.price_nano_usd)
    kept = [case((_columns.store_io, payload)).label(payload.key) for payload in payloads]
    return (
        select(*columns, *more, *sums, *kept)
        .join_from(requests, request_io, request_io.c.request_id == _columns.id, isouter=True)
        .outerjoin(keys, keys.c.id == _columns.key_id)
    )


def _as_past(row: Mapping[str, Any]) -> Past:
    fields = dict(row)
    place = Place(fields.pop("value"), fields.pop("seq"))
    for payload in fields.keys() & {"input", "output"}:
        fields[payload] = json.loads(fields[payload] or "null")
    return Past(place, **fields)


def _latency_name(seconds: float) -> str:
    return f"within_{seconds:g}"


def _load(rows: Sequence[Mapping[str, Any]]) -> Load:
    totals = {status: sum(row["total"] for row in rows if row["status"] == status) for status in RequestStatus}
    done = [row for row in rows if row["status"] == RequestStatus.COMPLETED]
    within = [sum(int(row[_latency_name(limit)]) for row in done) for limit in LATENCY_SECONDS]
    return Load(
        waiting=totals[RequestStatus.IN_QUEUE],
        running=totals[RequestStatus.IN_PROGRESS],
        received=sum(int(row["received"]) for row in rows),
        completed={row["status_code"]: row["total"] for row in done},
        latencies=[*within, totals[RequestStatus.COMPLETED]],
    )
