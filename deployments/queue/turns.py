"""Whose turn it is: keys take turns, and each key's requests go first come, first served.

    normal before low ──▶ the key served longest ago ──▶ its oldest request that may start ──▶ those that may join it

A *lane* is what waits of one key at one priority. The first request of every lane is found by one look at an index for
each lane, from lane to lane: what a claim costs does not depend on how many wait behind them.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    String,
    case,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.queue.request import Priority, RequestStatus
from deployments.queue.tables import keys, now, requests, turns

LOOKS = 256
"""How often a claim looks for a batch's members at the most: fewer of each key where many keys wait."""

SPARE = 8
"""How many requests more are looked at than are taken, in case that some are locked."""

_NEVER = 0.0


@dataclass(frozen=True)
class Lane:
    """What waits of one key at one priority.

    Attributes:
        priority: Lower goes first.
        key_id: Whose.
        served_at: When a request of this key was last claimed; 0 for never.
        seqs: Its requests, oldest first.
    """

    priority: int
    key_id: str
    served_at: float
    seqs: Sequence[int]


def ahead(lanes: Sequence[Lane], priority: int, key_id: str, seq: int) -> int:
    """How many of these requests go before one, which may be newer than they are."""
    mine = next((lane for lane in lanes if (lane.priority, lane.key_id) == (priority, key_id)), None)
    rank = bisect_left(mine.seqs, seq) if mine else 0
    turn = (mine.served_at, mine.seqs[0]) if mine else (_NEVER, seq)
    before = 0
    for lane in lanes:
        if lane.priority < priority:
            before += len(lane.seqs)
        elif lane.priority == priority:
            first = lane is mine or (lane.served_at, lane.seqs[0]) > turn
            before += min(len(lane.seqs), rank if first else rank + 1)
    return before


def in_order(lanes: Sequence[Lane]) -> list[tuple[int, int]]:
    """(priority, seq) of these requests in the order in which they will go."""
    places = (
        (lane.priority, rank, lane.served_at, lane.seqs[0], seq) for lane in lanes for rank, seq in enumerate(lane.seqs)
    )
    return [(priority, seq) for priority, *_, seq in sorted(places)]


def in_queue(table: FromClause = requests) -> ColumnElement[bool]:
    """Waiting. Written into the statement, not bound to it, so that a planner can see that a partial index serves."""
    return table.c.status == literal(RequestStatus.IN_QUEUE, String, literal_execute=True)


def in_progress(table: FromClause = requests) -> ColumnElement[bool]:
    """Running, as far as the queue knows."""
    return table.c.status == literal(RequestStatus.IN_PROGRESS, String, literal_execute=True)


async def lanes(connection: AsyncConnection, model: str) -> list[Lane]:
    """All that waits for a model. The database joins the numbers: a row for each request would cost ten times more."""
    of = requests.c
    seqs = func.aggregate_strings(cast(of.seq, String), ",")
    query = (
        select(of.priority, of.key_id, func.coalesce(func.max(turns.c.served_at), _NEVER), seqs)
        .select_from(requests.outerjoin(turns, turns.c.key_id == of.key_id))
        .where(of.model == model, in_queue())
        .group_by(of.priority, of.key_id)
    )
    rows = await connection.execute(query)
    return [Lane(priority, key, turn, sorted(map(int, seqs.split(",")))) for priority, key, turn, seqs in rows]


@functools.lru_cache(maxsize=64)
def have_work(models: tuple[str, ...], max_running_per_key: int | None) -> Select[Any]:
    """For each model, whether a request of it may start now. It is kept: writing it takes longer than asking it."""
    may_start: list[ColumnElement[Any]] = [has_work(model, max_running_per_key) for model in models]
    return select(*may_start)


def has_work(model: str, max_running_per_key: int | None) -> ColumnElement[bool]:
    """Whether a request of a model may start now: the first lane that may answers for all."""
    return or_(*(_in_turn(_firsts(model, priority), max_running_per_key).exists() for priority in Priority))


async def next_batch(
    connection: AsyncConnection, model: str, max_running_per_key: int | None, members: Callable[[int], int]
) -> list[int]:
    """Lock and answer the request whose turn it is and those that go with it, in their order.

    They are of one priority and one ``batch_key``, and from as many keys as there are. What a replica has died under
    goes alone.

    Args:
        connection: In a transaction, and the only one that claims.
        model: What they wait for.
        max_running_per_key: How many requests of a key may run, of all models together, where the key itself has no
            such limit.
        members: How many requests of so many ``pixel_frames`` go into a batch.
    """
    for priority in Priority:
        head = await _lock_head(connection, model, priority, max_running_per_key)
        if head:
            size = 1 if head.crashes else members(head.pixel_frames)
            if size == 1:
                return [head.seq]
            each = max(1, min(size, LOOKS // head.lanes))
            batch = _in_turn(_firsts(model, priority, head.batch_key, each), max_running_per_key)
            return list((await connection.execute(_locked(batch, size))).scalars())
    return []


async def note_served(connection: AsyncConnection, key_ids: Collection[str]) -> None:
    """These keys have had their turn."""
    served = update(turns).where(turns.c.key_id.in_(list(key_ids))).values(served_at=now())
    known = (await connection.execute(served.returning(turns.c.key_id))).scalars()
    for key_id in set(key_ids).difference(known):
        await connection.execute(insert(turns).values(key_id=key_id, served_at=now()))


async def _lock_head(
    connection: AsyncConnection, model: str, priority: Priority, max_running_per_key: int | None
) -> Any:
    firsts = _firsts(model, priority)
    count = select(func.count()).select_from(firsts).scalar_subquery().label("lanes")
    of = requests.c
    heads = _in_turn(firsts, max_running_per_key)
    found = await connection.execute(_locked(heads, 1, of.batch_key, of.pixel_frames, of.crashes, count))
    return found.one_or_none()


def _locked(in_turn: Select[Any], size: int, *columns: ColumnElement[Any]) -> Select[Any]:
    """Lock the first ``size`` of them. A caller may be cancelling one just now: that one is passed over.

    A planner is to join by ``seq``, so the second look at the status is one that no index of what waits answers.
    """
    turn = in_turn.limit(size + SPARE).subquery("turn")
    still_waits = requests.c.status.not_in([RequestStatus.IN_PROGRESS, RequestStatus.COMPLETED])
    query = select(requests.c.seq, *columns).join(turn, turn.c.seq == requests.c.seq).where(still_waits)
    query = query.order_by(turn.c.rank, turn.c.served_at, turn.c.seq).limit(size)
    return query.with_for_update(of=requests, skip_locked=True)


def _in_turn(firsts: CTE, max_running_per_key: int | None) -> Select[Any]:
    """These requests by their turns, without those of keys that run as many as they may."""
    served_at = func.coalesce(turns.c.served_at, _NEVER).label("served_at")
    query = select(firsts.c.seq, firsts.c.rank, served_at).outerjoin(turns, turns.c.key_id == firsts.c.key_id)
    own = select(keys.c.max_running).where(keys.c.id == firsts.c.key_id).scalar_subquery()
    most = func.coalesce(own, literal(max_running_per_key, Integer))
    running = select(func.count()).where(in_progress(), requests.c.key_id == firsts.c.key_id).scalar_subquery()
    query = query.where(or_(most.is_(None), firsts.c.rank + running <= most))
    return query.order_by(firsts.c.rank, served_at, firsts.c.seq)


def _firsts(model: str, priority: Priority, batch_key: str | None = None, each: int = 1) -> CTE:
    """The first ``each`` requests of every lane that may start, and how far behind their lane's first they are.

    With a ``batch_key``, only those that have it. From one to the next by one look at an index: to the next of the
    same lane, or past it to the next lane.
    """
    table, first = requests.alias(), functools.partial(_first, model, priority, batch_key)
    found = select(table.c.seq, table.c.key_id, literal(1).label("rank")).where(table.c.seq == first())
    firsts = found.cte(recursive=True)
    following = func.coalesce(case((firsts.c.rank < each, first(behind=firsts))), first(beyond=firsts))
    rank = case((table.c.key_id == firsts.c.key_id, firsts.c.rank + 1), else_=1)
    return firsts.union_all(
        select(table.c.seq, table.c.key_id, rank).join_from(firsts, table, table.c.seq == following)
    )


def _first(
    model: str,
    priority: Priority,
    batch_key: str | None = None,
    *,
    behind: CTE | None = None,
    beyond: CTE | None = None,
) -> ScalarSelect[int]:
    """The first request that may start, by key and then by age. The order is an index's, so that a planner takes it.

    Either the first of all, or the next ``behind`` one in its lane, or the first ``beyond`` one's lane.
    """
    table = requests.alias()
    of = table.c
    may_start = [
        of.model == model,
        of.priority == priority,
        in_queue(table),
        or_(of.start_deadline.is_(None), of.start_deadline > now()),
        or_(of.not_before.is_(None), of.not_before <= now()),
    ]
    if batch_key is not None:  # what a replica has died under joins nobody
        may_start += [of.batch_key == batch_key, of.crashes == 0]
    if behind is not None:
        may_start += [of.key_id == behind.c.key_id, of.seq > behind.c.seq]
    if beyond is not None:
        may_start.append(of.key_id > beyond.c.key_id)
    return select(of.seq).where(*may_start).order_by(of.priority, of.key_id, of.seq).limit(1).scalar_subquery()
