"""The outbox of webhooks. A row is made with its request, and becomes due in the transaction that ends it.

    submit ─▶ WAITING ── the request ends ─▶ DUE ── claim, send ─▶ DELIVERED
                                             ▲ │
                            not yet, later ──┘ └── never ────────▶ UNDELIVERED

While a delivery is on its way, its row is due in the future: a sender that dies has lost nothing, and two of them never
have the same one. What a sender records is fenced by the end of its lease: a delivery by hand counts attempts anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx
from sqlalchemy import ColumnElement, String, and_, insert, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.queue.database import Database, uninterrupted
from deployments.queue.request import InferenceRequest
from deployments.queue.tables import now, request_io, requests, webhooks

WEBHOOK_KEYS = "webhooks"
"""The purpose of the secrets that sign. The newest signs; receivers are shown the older ones too."""


class WebhookState(StrEnum):
    """Where a webhook is."""

    WAITING = "WAITING"
    DUE = "DUE"
    DELIVERED = "DELIVERED"
    UNDELIVERED = "UNDELIVERED"


_columns = webhooks.c
# Written into the statement rather than bound to it, so that a planner can see that a partial index serves.
_due = _columns.state == literal(WebhookState.DUE, String, literal_execute=True)


@dataclass(frozen=True)
class Delivery:
    """One POST to make.

    Attributes:
        request: What ended.
        url: Where its caller wants to hear of it.
        host: The host in that URL.
        number: 1 for the first attempt to tell it.
        leased_until: When it becomes due again, unless its verdict is recorded before.
        output: The JSON body that ended the request, as text; None where it has been deleted since.
    """

    request: InferenceRequest
    url: str
    host: str
    number: int
    leased_until: float
    output: str | None


@dataclass(frozen=True)
class Verdict:
    """What came of a delivery.

    Attributes:
        status_code: The receiver's answer, if there was one.
        error: What was wrong; None for a delivery that was taken.
        retry_seconds: When to try again; None for never.
    """

    status_code: int | None
    error: str | None = None
    retry_seconds: float | None = None


@dataclass(frozen=True)
class Webhook:
    """A row, for an operator. The URL is left out but for its host: it may carry the receiver's secrets."""

    request_id: str
    host: str
    state: WebhookState
    attempts: int
    due_at: float | None
    status_code: int | None
    error: str | None
    delivered_at: float | None


class Outbox:
    """The webhooks of a database."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database

    @uninterrupted
    async def claim(self, busy: Mapping[str, int], per_host: int, limit: int, lease_seconds: float) -> list[Delivery]:
        """Take deliveries that are due, the oldest first.

        Args:
            busy: How many deliveries to each host are on their way already.
            per_host: How many there may be.
            limit: How many are taken at the most.
            lease_seconds: When a delivery that was taken becomes due again, unless its verdict is recorded before.
        """
        full = [host for host, count in busy.items() if count >= per_host]
        due = select(_columns.request_id, _columns.host).where(_due, _columns.due_at <= now())
        due = due.where(_columns.host.not_in(full)).order_by(_columns.due_at).limit(limit)
        async with self._database.read() as connection:  # most looks find nothing: they need not wait for a writer
            if (await connection.execute(due)).first() is None:
                return []
        async with self._database.transaction() as connection:
            rows = await connection.execute(due.with_for_update(skip_locked=True))
            fitting = _that_fit(((row.request_id, row.host) for row in rows), busy, per_host)
            return await _take(connection, fitting, lease_seconds) if fitting else []

    @uninterrupted
    async def record(self, delivery: Delivery, verdict: Verdict) -> bool:
        """Write down what came of a delivery. False when the attempt does not count any more."""
        leased = and_(_columns.attempts == delivery.number, _columns.due_at == delivery.leased_until, _due)
        current = and_(_columns.request_id == delivery.request.id, leased)
        async with self._database.transaction() as connection:
            recorded = await connection.execute(update(webhooks).where(current).values(_values_of(verdict)))
            return bool(recorded.rowcount)

    @uninterrupted
    async def rows(self, state: WebhookState | None, limit: int) -> list[Webhook]:
        """The webhooks of the newest requests, in one state or any."""
        query = select(*(_columns[name] for name in Webhook.__dataclass_fields__)).join(requests)
        query = query.order_by(requests.c.seq.desc()).limit(limit)
        if state:
            query = query.where(_columns.state == state)
        async with self._database.read() as connection:
            found = [dict(row._mapping) for row in await connection.execute(query)]
        return [Webhook(**row | {"state": WebhookState(row["state"])}) for row in found]

    async def redeliver(self, request_id: str) -> bool:
        """Make the webhook of a request that has ended due now, with all its attempts before it. False without one."""
        return bool(
            await self._redeliver(and_(_columns.request_id == request_id, _columns.state != WebhookState.WAITING))
        )

    async def redeliver_undelivered(self) -> int:
        """The same for all that could not be delivered; answer how many."""
        return await self._redeliver(_columns.state == WebhookState.UNDELIVERED)

    @uninterrupted
    async def _redeliver(self, condition: ColumnElement[bool]) -> int:
        values = {"state": WebhookState.DUE, "attempts": 0, "due_at": now(), "delivered_at": None}
        async with self._database.transaction() as connection:
            return (await connection.execute(update(webhooks).where(condition).values(values))).rowcount


async def add_webhook(connection: AsyncConnection, request_id: str, url: str) -> None:
    """Keep where a new request's caller wants to hear of its end."""
    host = httpx.URL(url).host
    values = {"request_id": request_id, "url": url, "host": host, "state": WebhookState.WAITING, "attempts": 0}
    await connection.execute(insert(webhooks).values(values))


async def make_due(connection: AsyncConnection, request_ids: Sequence[str]) -> None:
    """The requests have ended: their webhooks, if they have any, are to be delivered."""
    ended = and_(_columns.request_id.in_(request_ids), _columns.state == WebhookState.WAITING)
    await connection.execute(update(webhooks).where(ended).values(state=WebhookState.DUE, due_at=now()))


def _that_fit(due: Iterable[tuple[str, str]], busy: Mapping[str, int], per_host: int) -> list[str]:
    """Of requests and their hosts: the requests whose hosts have room for them."""
    taken, fitting = Counter(busy), []
    for request_id, host in due:
        if taken[host] < per_host:
            taken[host] += 1
            fitting.append(request_id)
    return fitting


async def _take(connection: AsyncConnection, request_ids: Sequence[str], lease_seconds: float) -> list[Delivery]:
    taken = update(webhooks).where(_columns.request_id.in_(request_ids))
    taken = taken.values(attempts=_columns.attempts + 1, due_at=now() + lease_seconds)
    await connection.execute(taken)
    query = (
        select(requests, _columns.url, _columns.host, _columns.attempts, _columns.due_at, request_io.c.output)
        .join(webhooks)
        .outerjoin(request_io, request_io.c.request_id == requests.c.id)
        .where(requests.c.id.in_(request_ids))
    )
    rows = await connection.execute(query)
    return [
        Delivery(InferenceRequest.from_row(row), row.url, row.host, row.attempts, row.due_at, row.output)
        for row in rows
    ]


def _values_of(verdict: Verdict) -> dict[str, Any]:
    told = {"status_code": verdict.status_code, "error": verdict.error}
    if verdict.error is None:
        return {**told, "state": WebhookState.DELIVERED, "delivered_at": now(), "due_at": None}
    if verdict.retry_seconds is None:
        return {**told, "state": WebhookState.UNDELIVERED, "due_at": None}
    return {**told, "due_at": now() + verdict.retry_seconds}
