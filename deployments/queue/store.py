"""The one truth about requests. A method is a statement or a transaction; nothing is answered before its commit.

What ends an attempt is fenced by (request, attempt, owner): when a dispatcher has been replaced, its late result
meets zero rows and is dropped. That is what makes "run twice" invisible.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Row, and_, delete, false, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from deployments.costs import NOTHING, Cost
from deployments.errors import (
    ClientCancelled,
    ConcurrentRequestsLimit,
    Failure,
    IdempotencyKeyReused,
    LimitReached,
    NotFound,
    QueueFull,
    RunnerDisconnected,
    RunnerServerError,
    StartTimeout,
)
from deployments.models.messages import Attempt, StoredFile
from deployments.queue import turns
from deployments.queue.database import Database, serialise, serialise_by, uninterrupted
from deployments.queue.files import Lifecycle, insert_file
from deployments.queue.keys import NO_LIMITS, Limits
from deployments.queue.outbox import add_webhook, make_due
from deployments.queue.request import (
    MAX_ATTEMPTS,
    MAX_CRASHES_ALONE,
    MAX_UNBEGUN,
    Cancelled,
    InferenceRequest,
    LogLine,
    NewRequest,
    RequestStatus,
    Version,
)
from deployments.queue.tables import dispatchers, files, now, request_io, request_logs, requests
from deployments.queue.turns import Lane, in_progress, in_queue

CLAIM_LOCK = 0x5BD5C1A1
"""Any number, as long as nobody else's lock has it."""

PAGE = 500
"""How many requests one transaction puts back or ends where there may be any number of them."""

_columns = requests.c
_in_queue = in_queue()
_in_progress = in_progress()
_OF_AN_ATTEMPT = (
    _columns.seq,
    _columns.id,
    _columns.key_id,
    _columns.attempt,
    _columns.endpoint,
    _columns.previews,
    _columns.crashes,
    _columns.traceparent,
    _columns.created_at,
    _columns.started_at,
)


class BatchLimits(BaseModel):
    """How much of the queue one claim takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(1, ge=1, description="Requests at the most.")
    max_pixel_frames: int = Field(
        25 * 1024 * 576, ge=1, description="Pixels times frames at the most; a request above it still runs, alone."
    )

    def members(self, pixel_frames: int) -> int:
        """How many requests of this weight go into one batch."""
        return max(1, min(self.max_batch_size, self.max_pixel_frames // max(1, pixel_frames)))


@dataclass(frozen=True)
class Outcome:
    """How a request ended: the answer to its caller, and what its last attempt took, cost us and is billed."""

    status_code: int
    body: Mapping[str, Any]
    error: str | None = None
    error_type: str | None = None
    inference_seconds: float | None = None
    gpu_seconds: float | None = None
    gpu_usd_per_hour: float | None = None
    cost_nano_usd: int = 0
    price_nano_usd: int | None = None
    batch_size: int | None = None
    files: tuple[StoredFile, ...] = ()

    @classmethod
    def of(cls, failure: Failure) -> Outcome:
        """A failure as an outcome."""
        return cls(failure.status, failure.body, failure.message, failure.type)


class RequestStore:
    """Requests in a SQL database, by SQLAlchemy Core."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self.database = database

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open a database by its URL, migrated to the newest schema."""
        return cls(await Database.open(url))

    async def close(self) -> None:
        """Close every connection."""
        await self.database.close()

    # ---------------------------------------------------------------- the gateway's side

    @uninterrupted
    async def submit(
        self, new: NewRequest, ended: Failure | None = None, limits: Limits = NO_LIMITS, *, synchronous: bool = False
    ) -> InferenceRequest:
        """Accept a request.

        A second submit with a caller's idempotency key answers with the first one's request, whatever the limits.

        Args:
            new: The request.
            ended: Record it as one that has failed already (a bad input).
            limits: Of its key: how many may wait, and how many may run where its caller waits for this one.
            synchronous: Whether its caller does.

        Raises:
            IdempotencyKeyReused: The idempotency key's first request was another one.
            ConcurrentRequestsLimit: As many run as may.
            QueueFull: As many wait as may.
        """
        try:
            return await self._submit(new, ended, limits, synchronous)
        except (IntegrityError, LimitReached):  # somebody else was first with this key, if it has one
            earlier = await self.earlier(new.key_id, new.endpoint, new.idempotency_key, new.input_hash)
            if earlier is None:
                raise
            return earlier

    @uninterrupted
    async def earlier(
        self, key_id: str, endpoint: str, idempotency_key: str | None, input_hash: str | None = None
    ) -> InferenceRequest | None:
        """What a key has submitted to an endpoint with this idempotency key before.

        Args:
            key_id: Of the key.
            endpoint: The endpoint.
            idempotency_key: None where there is none; then nothing was.
            input_hash: Of the input that came with it; None where that has not been read.

        Raises:
            IdempotencyKeyReused: It was to another endpoint, or another input.
        """
        if not idempotency_key:
            return None
        mine = and_(_columns.key_id == key_id, _columns.idempotency_key == idempotency_key)
        async with self.database.read() as connection:
            row = (await connection.execute(select(requests).where(mine))).one_or_none()
        if row and row.endpoint != endpoint:
            raise IdempotencyKeyReused(f"This Idempotency-Key was used for {row.endpoint}")
        if row and input_hash and row.input_hash not in (None, input_hash):
            raise IdempotencyKeyReused("This Idempotency-Key was used with another input")
        return InferenceRequest.from_row(row) if row else None

    async def _submit(
        self, new: NewRequest, ended: Failure | None, limits: Limits, synchronous: bool
    ) -> InferenceRequest:
        async with self.database.transaction() as connection:
            await _check_room(connection, new.key_id, limits.max_waiting, limits.max_running if synchronous else None)
            row = await connection.execute(insert(requests).values(_row_of(new)).returning(requests))
            request = InferenceRequest.from_row(row.one())
            await connection.execute(insert(request_io).values(request_id=request.id, input=new.input))
            if new.webhook:
                await add_webhook(connection, request.id, new.webhook)
            if ended:
                await _end(connection, _columns.id == request.id, Outcome.of(ended))
        return request

    @uninterrupted
    async def get(self, request_id: str) -> InferenceRequest | None:
        """A request by its id."""
        async with self.database.read() as connection:
            row = (await connection.execute(select(requests).where(_columns.id == request_id))).one_or_none()
        return InferenceRequest.from_row(row) if row else None

    @uninterrupted
    async def output(self, request_id: str) -> Any:
        """The JSON body that ends a request: the model's output, or the error.

        Raises:
            NotFound: Its owner has had it deleted.
        """
        query = select(request_io.c.output).where(request_io.c.request_id == request_id)
        async with self.database.read() as connection:
            body = (await connection.execute(query)).scalar_one_or_none()
        if body is None:
            raise NotFound("The output of this request was deleted")
        return json.loads(body)

    @uninterrupted
    async def logs(self, request_id: str, skip: int = 0) -> list[LogLine]:
        """A request's log, oldest line first, without the first ``skip`` lines."""
        lines = request_logs.c
        query = (
            select(lines.request_id, lines.message, lines.at, lines.level, lines.progress, lines.preview)
            .where(lines.request_id == request_id)
            .order_by(lines.seq)
            .offset(skip)
        )
        async with self.database.read() as connection:
            return [LogLine(**row._mapping) for row in await connection.execute(query)]

    @uninterrupted
    async def lanes(self, model: str) -> list[Lane]:
        """All that waits for a model."""
        async with self.database.read() as connection:
            return await turns.lanes(connection, model)

    async def waiting(self, model: str) -> list[tuple[int, int]]:
        """(priority, seq) of every request that waits for a model, in the order in which they will go."""
        return turns.in_order(await self.lanes(model))

    @uninterrupted
    async def versions(self, request_ids: Iterable[str]) -> dict[str, Version]:
        """What has become of these requests, in one query."""
        lines = request_logs.c
        last_line = select(func.coalesce(func.max(lines.seq), 0)).where(lines.request_id == _columns.id)
        query = select(_columns.id, _columns.status, _columns.attempt, last_line.scalar_subquery().label("last_line"))
        query = query.where(_columns.id.in_(list(request_ids)))
        async with self.database.read() as connection:
            rows = await connection.execute(query)
            return {row.id: Version(RequestStatus(row.status), row.attempt, row.last_line) for row in rows}

    @uninterrupted
    async def cancel(self, request_id: str) -> Cancelled:
        """Cancel a request: at once where it still waits, by a flag for its replica where it runs."""
        mine = _columns.id == request_id
        async with self.database.transaction() as connection:
            status = (await connection.execute(select(_columns.status).where(mine).with_for_update())).scalar()
            if status == RequestStatus.IN_QUEUE:
                await _end(connection, mine, _cancelled())
            elif status == RequestStatus.IN_PROGRESS:
                await connection.execute(update(requests).where(mine).values(cancel_requested=True))
            else:
                return Cancelled.ALREADY_COMPLETED
        return Cancelled.REQUESTED

    @uninterrupted
    async def ping(self) -> None:
        """Do nothing, successfully.

        Raises:
            Unavailable: The database does not answer.
        """
        async with self.database.read() as connection:
            await connection.execute(select(now()))

    # ---------------------------------------------------------------- the dispatcher's side

    @uninterrupted
    async def models_with_work(self, models: Collection[str], max_running_per_key: int | None = None) -> set[str]:
        """For which of these models a request may start now.

        One look at an index for each, however long the queue is; with a limit, one for each key that waits.
        """
        query = turns.have_work(tuple(models), max_running_per_key)
        async with self.database.read() as connection:
            answers = (await connection.execute(query)).one()
        return {model for model, answer in zip(models, answers, strict=True) if answer}

    @uninterrupted
    async def claim(
        self, model: str, owner: str, limits: BatchLimits, max_running_per_key: int | None = None
    ) -> list[Attempt]:
        """Take the request whose turn it is, and those that may share its batch; ``queue.turns`` says which.

        Claims are made one at a time, so that no key gets more than its turn and none runs more than it may.
        """
        async with self.database.transaction() as connection:
            await serialise(connection, CLAIM_LOCK)
            batch = await turns.next_batch(connection, model, max_running_per_key, limits.members)
            if not batch:
                return []
            taken = await connection.execute(
                update(requests)
                .where(_columns.seq.in_(batch))
                .values(status=RequestStatus.IN_PROGRESS, attempt=_columns.attempt + 1, owner=owner, started_at=now())
                .returning(*_OF_AN_ATTEMPT)
            )
            rows = sorted(taken, key=lambda row: batch.index(row.seq))
            await turns.note_served(connection, {row.key_id for row in rows})
            inputs = await _inputs(connection, [row.id for row in rows])
        return [_attempt(row, inputs[row.id]) for row in rows]

    @uninterrupted
    async def complete(self, attempt: Attempt, owner: str, outcome: Outcome) -> bool:
        """Record how an attempt ended. False when the attempt is no longer this owner's: drop its result.

        May be called again where the answer was lost: True also where this very result has ended the request already.
        """
        async with self.database.transaction() as connection:
            if await _end(connection, _fence(attempt, owner), outcome):
                return True
            return bool((await connection.execute(select(_ended_so(attempt, outcome)))).scalar())

    @uninterrupted
    async def lose(
        self,
        attempt: Attempt,
        owner: str,
        reason: str,
        *,
        crashed: bool = False,
        retry_seconds: float = 0.0,
        cost: Cost = NOTHING,
    ) -> bool:
        """Record that an attempt was lost with its replica: the request goes back to its place in the queue.

        Args:
            attempt: The one that was lost.
            owner: Whose it was.
            reason: For the request's log.
            crashed: Whether the replica's process died by itself under it.
            retry_seconds: How long the next attempt waits.
            cost: What it has cost us.
        """
        async with self.database.transaction() as connection:
            mine = await _lock(connection, _fence(attempt, owner))
            if crashed and mine:
                died = update(requests).where(_columns.id.in_(mine)).values(crashes=_columns.crashes + 1)
                await connection.execute(died)
            await _add_costs(connection, dict.fromkeys(mine, cost))
            await _requeue(connection, mine, reason, retry_seconds)
        return bool(mine)

    @uninterrupted
    async def put_back(
        self, attempts: Collection[Attempt], owner: str, reason: str, retry_seconds: float = 0.0
    ) -> None:
        """Let these attempts, which no replica has begun, go back as if they had never been claimed.

        What has come back so MAX_UNBEGUN times comes back as a lost attempt from then on.

        Args:
            attempts: Those of them that are still this owner's go back.
            owner: Whose they were.
            reason: For the requests' logs.
            retry_seconds: How long the next attempts wait.
        """
        async with self.database.transaction() as connection:
            mine = await _lock(connection, or_(false(), *(_fence(attempt, owner) for attempt in attempts)))
            await _put_back(connection, mine, reason, retry_seconds)

    @uninterrupted
    async def abandoned(self, attempts: Mapping[str, int]) -> set[str]:
        """Which of these running attempts (request id → attempt) nobody wants any more."""
        query = select(_columns.id, _columns.attempt).where(
            _columns.id.in_(list(attempts)), _in_progress, _columns.cancel_requested.is_(False)
        )
        async with self.database.read() as connection:
            wanted = {row.id: row.attempt for row in await connection.execute(query)}
        return {request_id for request_id, attempt in attempts.items() if wanted.get(request_id) != attempt}

    @uninterrupted
    async def log(self, lines: Sequence[LogLine], previews: Sequence[tuple[str, StoredFile]] = ()) -> None:
        """Add lines to the logs of their requests, and register the pictures (request id, file) that they name.

        Lines of requests that are there no more go with them.
        """
        mine = select(_columns.id).where(_columns.id.in_({line.request_id for line in lines}))
        async with self.database.transaction() as connection:
            known = set((await connection.execute(mine)).scalars())
            await _log(connection, [line for line in lines if line.request_id in known])
            for request_id, preview in previews:
                await _register(connection, [request_id], [preview])

    @uninterrupted
    async def heartbeat(self, owner: str, lease_seconds: float) -> None:
        """Keep a dispatcher's lease, and with it every attempt it holds."""
        try:
            await self._renew(owner, lease_seconds)
        except IntegrityError:  # an earlier call, whose answer was lost, has reached the database only now
            await self._renew(owner, lease_seconds)

    async def _renew(self, owner: str, lease_seconds: float) -> None:
        until = now() + lease_seconds
        async with self.database.transaction() as connection:
            renewed = update(dispatchers).where(dispatchers.c.owner == owner).values(lease_until=until)
            if not (await connection.execute(renewed)).rowcount:
                await connection.execute(insert(dispatchers).values(owner=owner, lease_until=until))

    @uninterrupted
    async def give_back(
        self, owner: str, unbegun: Collection[str] = (), costs: Mapping[str, Cost] | None = None
    ) -> None:
        """End a dispatcher's lease now; what it still held goes back to the queue.

        Args:
            owner: The dispatcher.
            unbegun: Ids of what had not begun: it goes back as if it had never been claimed.
            costs: What the attempts that had begun have cost us, by the ids of their requests.
        """
        while await self._give_back_page(owner, unbegun, costs or {}):
            pass

    async def _give_back_page(self, owner: str, unbegun: Collection[str], costs: Mapping[str, Cost]) -> bool:
        """Give back some, or where nothing is held, the lease: others would blame it for what had not begun."""
        async with self.database.transaction() as connection:
            held = await _lock(connection, and_(_in_progress, _columns.owner == owner), limit=PAGE)
            await _put_back(connection, [id for id in held if id in unbegun], "the dispatcher stopped")
            await _add_costs(connection, {id: costs[id] for id in held if id in costs})
            await _requeue(connection, [id for id in held if id not in unbegun], "the dispatcher stopped")
            if not held:
                await connection.execute(delete(dispatchers).where(dispatchers.c.owner == owner))
        return bool(held)

    async def sweep(self, owner: str, held: Collection[str], lease_seconds: float) -> None:
        """Put back what nobody holds, and then end what did not start in its caller's time.

        Nobody holds what an expired dispatcher claimed, nor what the living ``owner`` does not know of after a lease:
        the answer to its claim was lost on the way, and so nothing has begun.

        A page is a transaction of its own. The next sweep goes on where there is more than a fifth of a lease's work.
        """
        give_up = time.monotonic() + lease_seconds / 5
        while await self._recover_page(owner, held, lease_seconds) and time.monotonic() < give_up:
            pass
        while await self._end_unstarted_page() and time.monotonic() < give_up:
            pass

    @uninterrupted
    async def _recover_page(self, owner: str, held: Collection[str], lease_seconds: float) -> bool:
        alive = select(dispatchers.c.owner).where(dispatchers.c.lease_until > now())
        others = and_(_in_progress, _columns.owner != owner)  # a lease may lapse between its renewal and this
        orphaned = and_(others, _columns.owner.not_in(alive))
        mine = and_(_in_progress, _columns.owner == owner, _columns.id.not_in(list(held)))
        forgotten = and_(mine, _columns.started_at < now() - lease_seconds)
        async with self.database.transaction() as connection:
            orphans = await _lock(connection, orphaned, limit=PAGE, skip_locked=True)
            await _requeue(connection, orphans, "the dispatcher lost hold of it")
            await connection.execute(delete(dispatchers).where(dispatchers.c.lease_until <= now()))
            unknown = await _lock(connection, forgotten, limit=PAGE, skip_locked=True)
            await _put_back(connection, unknown, "the dispatcher was not told of its claim")
        return bool(orphans or unknown)

    @uninterrupted
    async def _end_unstarted_page(self) -> bool:
        outcome = Outcome.of(StartTimeout("The request did not start in time").failure())
        unstarted = and_(_in_queue, _columns.start_deadline <= now())
        async with self.database.transaction() as connection:
            late = await _lock(connection, unstarted, limit=PAGE, skip_locked=True)
            if late:
                await _end(connection, _columns.id.in_(late), outcome)
        return bool(late)


def _attempt(row: Row[Any], input: str) -> Attempt:
    return Attempt(
        request_id=row.id,
        number=row.attempt,
        endpoint=row.endpoint,
        input=input,
        previews=row.previews,
        alone=row.crashes > 0,
        traceparent=row.traceparent,
        created_at=row.created_at,
        claimed_at=row.started_at,
    )


def _row_of(new: NewRequest) -> dict[str, Any]:
    values = asdict(new)
    start_timeout = values.pop("start_timeout")
    del values["input"], values["webhook"]
    return {
        **values,
        "status": RequestStatus.IN_QUEUE,
        "attempt": 0,
        "cancel_requested": False,
        "created_at": now(),
        "start_deadline": None if start_timeout is None else now() + start_timeout,
    }


async def _check_room(
    connection: AsyncConnection, key_id: str, max_waiting: int | None, max_running: int | None
) -> None:
    """See that there is room for one more request of a key. Nobody else adds one of it before our commit.

    What is never retried are synchronous runs, and what was queued with X-Fal-No-Retry, which looks the same here:
    where they wait, they count as about to run.
    """
    if max_waiting is None and max_running is None:
        return
    await serialise_by(connection, f"requests of {key_id}")
    waiting = and_(_columns.key_id == key_id, _in_queue)
    if max_waiting is not None and await _count(connection, waiting, max_waiting) >= max_waiting:
        raise QueueFull(f"{max_waiting} requests of this key are waiting, which is as many as may")
    if max_running is not None:
        running = await _count(connection, and_(_columns.key_id == key_id, _in_progress), max_running)
        if running + await _count(connection, and_(waiting, _columns.no_retry), max_running) >= max_running:
            raise ConcurrentRequestsLimit(f"As many requests of this key are running as may: {max_running}")


async def _count(connection: AsyncConnection, condition: ColumnElement[bool], most: int) -> int:
    """How many requests meet a condition, as far as it matters."""
    some = select(_columns.seq).where(condition).limit(most).subquery()
    return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())


def _fence(attempt: Attempt, owner: str) -> ColumnElement[bool]:
    return and_(
        _columns.id == attempt.request_id, _columns.attempt == attempt.number, _columns.owner == owner, _in_progress
    )


def _ended_so(attempt: Attempt, outcome: Outcome) -> ColumnElement[bool]:
    """Whether it is this result that has ended the request: its files are the request's, or its answer the caller's.

    The row cannot say whose result that was: what has ended has no owner. No two attempts make files of one name; by
    its answer alone a result without files is known, of which nothing is left to drop.
    """
    mine = and_(_columns.id == attempt.request_id, _columns.attempt == attempt.number)
    ended = and_(mine, _columns.status == RequestStatus.COMPLETED, _columns.status_code == outcome.status_code)
    of_request = and_(files.c.request_id == _columns.id, files.c.key.in_([file.key for file in outcome.files]))
    same_answer = and_(request_io.c.request_id == _columns.id, request_io.c.output == json.dumps(outcome.body))
    result = select(files.c.key).where(of_request) if outcome.files else select(request_io.c.output).where(same_answer)
    return select(_columns.id).where(ended, result.exists()).exists()


def _cancelled() -> Outcome:
    return Outcome.of(ClientCancelled("The request was cancelled by its caller").failure())


async def _end(connection: AsyncConnection, condition: ColumnElement[bool], outcome: Outcome) -> list[str]:
    """Complete every request that meets the condition; answer their ids."""
    columns = {column.name for column in _columns}
    values = {name: value for name, value in vars(outcome).items() if name in columns and value is not None}
    values |= {"status": RequestStatus.COMPLETED, "owner": None, "finished_at": now()}
    values["cost_nano_usd"] = _columns.cost_nano_usd + outcome.cost_nano_usd  # other attempts cost something, too
    ended = update(requests).where(condition).values(values)
    rows = (await connection.execute(ended.returning(_columns.id, _columns.store_io))).all()
    ids = [row.id for row in rows]
    if ids:
        io = request_io.c.request_id
        await connection.execute(update(request_io).where(io.in_(ids)).values(output=json.dumps(outcome.body)))
        if unkept := [row.id for row in rows if not row.store_io]:
            await connection.execute(update(request_io).where(io.in_(unkept)).values(input="null"))
        await _register(connection, ids, outcome.files)
        await make_due(connection, ids)
    return ids


async def _register(connection: AsyncConnection, request_ids: Sequence[str], made: Sequence[StoredFile]) -> None:
    """Note whose the files are that requests have made, until when they live and who may read them."""
    if not made:
        return
    query = select(_columns.id, _columns.key_id, _columns.lifecycle).where(_columns.id.in_(request_ids))
    for row in (await connection.execute(query)).all():
        lifecycle = Lifecycle.parse(row.lifecycle or "{}")
        for file in made:
            await insert_file(connection, file, row.key_id, lifecycle, row.id)


async def _lock(
    connection: AsyncConnection, condition: ColumnElement[bool], *, limit: int | None = None, skip_locked: bool = False
) -> list[str]:
    """The ids of requests that meet a condition, and that nobody else changes before our commit.

    Where several statements decide about the same requests, each would else see another state of them.
    """
    query = select(_columns.id).where(condition).limit(limit)
    found = await connection.execute(query.with_for_update(key_share=True, skip_locked=skip_locked))
    return list(found.scalars())


async def _requeue(
    connection: AsyncConnection, request_ids: Sequence[str], reason: str, retry_seconds: float = 0.0
) -> None:
    """Put lost attempts, which are locked, back in the queue, but for those that must end."""
    if not request_ids:
        return
    left = and_(_columns.id.in_(request_ids), _in_progress)
    killer = RunnerServerError("The model's process died each time that it ran this request").failure()
    lost = RunnerDisconnected(f"The attempt was lost: {reason}").failure()
    spent = or_(_columns.no_retry, _columns.attempt - _columns.unbegun >= MAX_ATTEMPTS)
    await _end(connection, and_(left, _columns.cancel_requested), _cancelled())
    await _end(connection, and_(left, _columns.crashes > MAX_CRASHES_ALONE), Outcome.of(killer))
    await _end(connection, and_(left, spent), Outcome.of(lost))
    back = await _wait_again(connection, left, retry_seconds)
    message = f"{RunnerDisconnected.type}: {reason}; retrying"
    await _log(connection, [LogLine(request_id, message, time.time(), "WARN") for request_id in back])


async def _put_back(
    connection: AsyncConnection, request_ids: Sequence[str], reason: str, retry_seconds: float = 0.0
) -> None:
    """Put attempts, which are locked, back in the queue that have not begun: no blame, and none of the ten is spent."""
    if not request_ids:
        return
    left = and_(_columns.id.in_(request_ids), _in_progress)
    await _end(connection, and_(left, _columns.cancel_requested), _cancelled())
    too_often = await _lock(connection, and_(left, _columns.unbegun >= MAX_UNBEGUN))
    await _requeue(connection, too_often, reason, retry_seconds)
    back = await _wait_again(connection, left, retry_seconds, unbegun=_columns.unbegun + 1)
    await _log(connection, [LogLine(id, f"{reason}; waiting again", time.time()) for id in back])


async def _add_costs(connection: AsyncConnection, costs: Mapping[str, Cost]) -> None:
    """Add to requests, which are locked, what attempts that are over have cost us."""
    for request_id, cost in costs.items():
        values: dict[str, Any] = {"cost_nano_usd": _columns.cost_nano_usd + cost.nano_usd}
        values |= {} if cost.usd_per_hour is None else {"gpu_usd_per_hour": cost.usd_per_hour}
        if cost != NOTHING:
            await connection.execute(update(requests).where(_columns.id == request_id).values(values))


async def _wait_again(
    connection: AsyncConnection, condition: ColumnElement[bool], retry_seconds: float, **values: Any
) -> list[str]:
    not_before = now() + retry_seconds if retry_seconds else None
    values |= {"status": RequestStatus.IN_QUEUE, "owner": None, "not_before": not_before}
    back = update(requests).where(condition).values(values)
    return list((await connection.execute(back.returning(_columns.id))).scalars())


async def _log(connection: AsyncConnection, lines: Sequence[LogLine]) -> None:
    if lines:
        await connection.execute(insert(request_logs), [asdict(line) for line in lines])


async def _inputs(connection: AsyncConnection, request_ids: Sequence[str]) -> dict[str, str]:
    query = select(request_io.c.request_id, request_io.c.input).where(request_io.c.request_id.in_(request_ids))
    return {row.request_id: row.input for row in await connection.execute(query)}
