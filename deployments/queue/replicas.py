"""Which replicas there were, how long, and at what rate: what they cost, idle or not.

    ReplicaReport, every few seconds ──▶ one row a process and rate: [started_at, seen_at]
                                                └──▶ overlap with a window, times rate ──▶ loaded cost

A report only moves ``seen_at`` on, so it may be repeated or lost. The cost up to a moment is rounded, not that of a
window: the costs of windows that follow each other add up exactly to that of all of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.costs import MICRO, nano_usd
from deployments.models.messages import ReplicaReport
from deployments.queue.database import Database, serialise_by, uninterrupted
from deployments.queue.tables import now, replicas

_columns = replicas.c


@dataclass(frozen=True)
class Loaded:
    """The replicas of one deployment in one bucket of time.

    Attributes:
        bucket: Its number.
        deployment: The deployment.
        model: The id of the endpoint that it was made for.
        micros: How long they were there, in microseconds of replicas.
        nano_usd: What that cost.
    """

    bucket: int
    deployment: str
    model: str
    micros: int
    nano_usd: int


class Replicas:
    """The replicas of a database."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def note(self, report: ReplicaReport, usd_per_hour: float) -> None:
        """A replica is there, and its part of a device costs so much. At another rate than before it begins anew."""
        async with self._database.transaction() as connection:
            await serialise_by(connection, f"replica {report.replica_id}")
            known = await _latest(connection, report.replica_id)
            if known and known.gpu_usd_per_hour == usd_per_hour:
                this = and_(_columns.id == known.id, _columns.started_at == known.started_at)
                later = update(replicas).where(this, _columns.seen_at < now())  # a clock may be set back
                await connection.execute(later.values(seen_at=now()))
                return
            started_at = known.seen_at if known else now() - report.age_seconds
            await connection.execute(insert(replicas).values(_row_of(report, usd_per_hour, started_at)))

    @uninterrupted
    async def loaded(self, edges: Sequence[float]) -> list[Loaded]:
        """What the replicas of each deployment cost between each two edges (Unix seconds)."""
        async with self._database.read() as connection:
            return await read_loaded(connection, edges)


async def read_loaded(connection: AsyncConnection, edges: Sequence[float]) -> list[Loaded]:
    """The same by a connection, for who reads more by it."""
    query = select(replicas).where(_columns.started_at < edges[-1], _columns.seen_at > edges[0])
    rows = (await connection.execute(query)).all()
    micros, nanos = Counter[tuple[int, str, str]](), Counter[tuple[int, str, str]]()
    for bucket, row, spent, cost in _overlaps(rows, edges):
        micros[bucket, row.deployment, row.model] += spent
        nanos[bucket, row.deployment, row.model] += cost
    return [Loaded(*key, micros[key], nanos[key]) for key in sorted(micros)]


async def _latest(connection: AsyncConnection, replica_id: str) -> Row[Any] | None:
    query = select(replicas).where(_columns.id == replica_id).order_by(_columns.started_at.desc()).limit(1)
    return (await connection.execute(query)).one_or_none()


def _row_of(report: ReplicaReport, usd_per_hour: float, started_at: Any) -> dict[str, Any]:
    return {
        "id": report.replica_id,
        "model": report.model,
        "deployment": report.deployment,
        "accelerator": report.accelerator,
        "gpu_fraction": report.gpu_fraction,
        "gpu_usd_per_hour": usd_per_hour,
        "started_at": started_at,
        "seen_at": now(),
    }


def _overlaps(rows: Iterable[Row[Any]], edges: Sequence[float]) -> Iterator[tuple[int, Row[Any], int, int]]:
    """For each row and bucket that have time in common: the bucket, the row, microseconds, nano dollars."""
    for row in rows:
        bucket = max(0, bisect_right(edges, row.started_at) - 1)
        while bucket < len(edges) - 1 and edges[bucket] < row.seen_at:
            since, until = (_micros_until(row, edge) for edge in edges[bucket : bucket + 2])
            cost = nano_usd(until, row.gpu_usd_per_hour) - nano_usd(since, row.gpu_usd_per_hour)
            yield bucket, row, until - since, cost
            bucket += 1


def _micros_until(row: Row[Any], moment: float) -> int:
    """How long a replica had been there at a moment."""
    seconds: float = min(max(moment, row.started_at), row.seen_at) - row.started_at
    return round(seconds * MICRO)
