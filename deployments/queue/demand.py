"""How much work there is for one deployment: what its number of replicas is decided by.

    rows that wait ──▶ requests that may start ─┐
    rows that run ───▶ batches ─────────────────┼──▶ Demand ──▶ the policy in deployments/scaling.py
    rows that ended ─▶ seconds a batch takes ───┘

The unit is a batch's time on the device, for that is what a replica does one of at a time. A text-to-image deployment
has rows of its own endpoint, which wait for another deployment: it paints before that animates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.errors import Unavailable
from deployments.queue.database import Database, open_engine
from deployments.queue.diagnosis import sqlite_file
from deployments.queue.tables import keys, requests
from deployments.queue.turns import in_progress, in_queue

LOOK_BACK = 500
"""How many of the requests that ended last are looked at, of all deployments."""


@dataclass(frozen=True)
class Demand:
    """The work for one deployment.

    Attributes:
        waiting: Requests that wait, without those that their keys' limits hold back.
        running: Batches that run; or where only their pictures are painted here, requests.
        batch_seconds: How long a batch has the device in the mean; None where none has ended lately.
        batch_size: Requests in a batch in the mean.
    """

    waiting: int
    running: int
    batch_seconds: float | None = None
    batch_size: float = 1.0


class DemandReader:
    """Reads the demand from a database, which it neither makes nor migrates."""

    def __init__(self, url: str) -> None:
        """Use the database of this URL; nothing is connected yet."""
        self._file = sqlite_file(url)
        self._engine = open_engine(url)
        self._database = Database(self._engine)

    async def read(self, deployment: str, max_running_per_key: int | None = None) -> Demand:
        """The demand on a deployment at the moment.

        Args:
            deployment: Its name in Serve.
            max_running_per_key: As the dispatcher is configured, for keys without a limit of their own.

        Raises:
            Unavailable: The database is not there, or cannot be read.
        """
        if self._file and not self._file.exists():
            raise Unavailable("There is no database yet")
        async with self._database.read() as connection:
            demand = await read_demand(connection, deployment, max_running_per_key)
        if self._file:  # the thread of a connection to SQLite that is kept open keeps its process from ending
            await self._engine.dispose()
        return demand

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()


async def read_demand(connection: AsyncConnection, deployment: str, max_running_per_key: int | None) -> Demand:
    """Three looks at indexes: of what waits, of what runs, of what ended last."""
    mine = _is_for(deployment)
    running = (await connection.execute(running_now(mine))).all()
    of_keys = Counter(row.key_id for row in running)
    waiting = (await connection.execute(waiting_now(mine))).all()
    taken, batches, ended = (await connection.execute(ended_lately(deployment))).one()
    return Demand(
        waiting=sum(_may_start(row, of_keys[row.key_id], max_running_per_key) for row in waiting),
        running=len(_units(deployment, running)),
        batch_seconds=taken / batches if batches else None,
        batch_size=ended / batches if batches else 1.0,
    )


def _is_for(deployment: str) -> ColumnElement[bool]:
    """It waits for this deployment, or its picture is painted there."""
    return or_(requests.c.model == deployment, func.replace(requests.c.endpoint, "/", "--") == deployment)


def waiting_now(mine: ColumnElement[bool]) -> Select[Any]:
    """How many of each key wait, and its limit."""
    of_keys = (
        select(requests.c.key_id, func.count().label("count"))
        .where(in_queue(), mine)
        .group_by(requests.c.key_id)
        .subquery()
    )
    return select(of_keys, keys.c.max_running).outerjoin(keys, keys.c.id == of_keys.c.key_id)


def running_now(mine: ColumnElement[bool]) -> Select[Any]:
    """All that runs, which is never much."""
    of = requests.c
    return select(of.key_id, of.id, of.model, of.owner, of.started_at, mine.label("mine")).where(in_progress())


def ended_lately(deployment: str) -> Select[Any, Any, Any]:
    """Seconds on the device, batches and requests: a request is its share of each."""
    last = (
        select(requests.c.model, requests.c.gpu_seconds, func.coalesce(requests.c.batch_size, 1).label("batch_size"))
        .where(requests.c.finished_at.is_not(None))
        .order_by(requests.c.finished_at.desc())
        .limit(LOOK_BACK)
        .subquery()
    )
    sums = select(func.sum(last.c.gpu_seconds), func.sum(1.0 / last.c.batch_size), func.count())
    return sums.where(last.c.model == deployment, last.c.gpu_seconds > 0)


def _may_start(row: Any, running: int, max_running_per_key: int | None) -> int:
    """How many of a key's requests; where its limit is reached, one, which keeps a replica for it."""
    most = row.max_running or max_running_per_key
    return int(row.count) if most is None else min(row.count, max(1, most - running))


def _units(deployment: str, running: Iterable[Any]) -> set[tuple[Any, ...]]:
    """What has been claimed together started together, and runs together. Pictures are painted one by one."""
    return {(row.owner, row.started_at) if row.model == deployment else (row.id,) for row in running if row.mine}
