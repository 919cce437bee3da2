"""How long what has ended is kept: first its payloads go, much later its row.

    ended ── payload_seconds ──▶ input, output and log lines go; the row still counts in every report
       └──── request_seconds ──▶ the row goes, and its webhook with it; and the replicas of that time

A request that has not ended keeps everything, and so does one whose webhook is still to be delivered. A row stays for
the rest of its day (UTC) at least, for what is counted and limited by the day counts rows. Each rule walks
along the index of ends, a page at a time, and remembers how far it has come: rows without payloads stay there for a
year, and are not looked at again by this process. Several processes may sweep at once: they lock rows in one order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, Table, and_, delete, exists, or_, select, true

from deployments.queue.database import Database, uninterrupted
from deployments.queue.outbox import WebhookState
from deployments.queue.tables import now, replicas, request_io, request_logs, requests, webhooks

SWEEP_BATCH = 200
"""Requests in one transaction: short enough that nobody who submits meanwhile notices."""

LEAST_SECONDS = 24 * 3600.0
"""How long a row is kept at least: a day, so that it outlives the one on which it ended."""

_columns = requests.c
_to_be_delivered = exists().where(
    webhooks.c.request_id == _columns.id, webhooks.c.state.in_([WebhookState.WAITING, WebhookState.DUE])
)
_has_payloads = or_(*(exists().where(table.c.request_id == _columns.id) for table in (request_io, request_logs)))


@dataclass(frozen=True, order=True)
class _Place:
    """How far a walk has come: when a request ended, and its number among those that ended at that moment."""

    finished_at: float = 0.0
    seq: int = 0


@dataclass
class _Walk:
    """One rule, and how far this process has come with it.

    Attributes:
        seconds: How long ago a request must have ended.
        concerns: Whether there is anything of it to delete.
        tables: Where it is deleted, and by which column.
        reached: Everything up to here has been dealt with.
        held: The first request on this walk that must wait for its webhook: the next walk begins before it.
        ended: Whether this walk has come to its end.
    """

    seconds: float
    concerns: ColumnElement[bool]
    tables: Iterable[tuple[Table, ColumnElement[str]]]
    reached: _Place = _Place()
    held: _Place | None = None
    ended: bool = False

    def page(self, limit: int) -> Select[tuple[str, float, int, bool, bool]]:
        """The requests that come next, and for each whether it concerns this rule and whether it must wait."""
        ended, after = _columns.finished_at, self.reached
        query = select(
            _columns.id, ended, _columns.seq, self.concerns.label("concerns"), _to_be_delivered.label("held")
        )
        query = query.where(ended >= after.finished_at, ended <= now() - self.seconds)
        query = query.where(or_(ended > after.finished_at, _columns.seq > after.seq))
        return query.order_by(ended, _columns.seq).limit(limit)

    def step(self, place: _Place, held: bool) -> None:
        """A request has been looked at."""
        self.reached = place
        if held and self.held is None:
            self.held = _Place(place.finished_at, place.seq - 1)

    def end(self) -> None:
        """All have been looked at: the next walk begins with the first that had to wait."""
        self.reached, self.held, self.ended = self.held or self.reached, None, True


class Retention:
    """Deletes from a database what is older than it is kept."""

    def __init__(self, database: Database, payload_seconds: float = 0.0, request_seconds: float = 0.0) -> None:
        """Delete nothing yet.

        Args:
            database: One that is open.
            payload_seconds: After how long input, output and log lines go; 0 for never.
            request_seconds: After how long the rows go, which is not before ``LEAST_SECONDS``; 0 for never.
        """
        self._database = database
        payloads = [(table, table.c.request_id) for table in (request_io, request_logs)]
        rows = [(requests, _columns.id)]  # what refers to them goes with them
        kept_seconds = max(request_seconds, LEAST_SECONDS) if request_seconds else 0.0
        self._kept_seconds = kept_seconds
        self._walks = [
            walk
            for walk in (_Walk(kept_seconds, true(), rows), _Walk(payload_seconds, _has_payloads, payloads))
            if walk.seconds
        ]

    async def sweep(self, limit: int = SWEEP_BATCH) -> bool:
        """Go one page further; whether there is more to do at once. When there is not, the next call begins anew."""
        for walk in self._walks:
            if not walk.ended:
                await self._go_on(walk, limit)
                break
        more = not all(walk.ended for walk in self._walks)
        if self._kept_seconds and not more:
            await self._forget_replicas()
        for walk in self._walks:
            walk.ended = walk.ended and more
        return more

    @uninterrupted
    async def _forget_replicas(self) -> None:
        """Of the time whose requests are gone nobody asks what it cost."""
        async with self._database.transaction() as connection:
            await connection.execute(delete(replicas).where(replicas.c.seen_at <= now() - self._kept_seconds))

    @uninterrupted
    async def _go_on(self, walk: _Walk, limit: int) -> None:
        async with self._database.read() as connection:
            page = (await connection.execute(walk.page(limit))).all()
        gone = await self._delete(walk, [row.id for row in page if row.concerns and not row.held])
        for row in page:
            walk.step(_Place(row.finished_at, row.seq), bool(row.concerns and row.id not in gone))
        if len(page) < limit:
            walk.end()

    async def _delete(self, walk: _Walk, request_ids: list[str]) -> set[str]:
        """Delete what a rule concerns of these requests; answer for which of them it was done.

        A webhook may have been made due again since they were looked at.
        """
        if not request_ids:
            return set()
        still = and_(_columns.id.in_(request_ids), ~_to_be_delivered)
        locked = select(_columns.id).where(still).order_by(_columns.finished_at, _columns.seq).with_for_update()
        async with self._database.transaction() as connection:
            ids = list((await connection.execute(locked)).scalars())
            for table, column in walk.tables:
                await connection.execute(delete(table).where(column.in_(ids)))
        return set(ids)
