"""What an operator sees and does of requests, whosever they are.

    Filter ──▶ rows, newest first ──▶ one of them with all that belongs to it
       └─────▶ those that failed ──▶ each once more, as a new request

A final state is never left: to retry is to submit the same input again. A retry carries the id of what it repeats as
its idempotency key, so that nothing is repeated twice, however often the operator asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, String, and_, exists, literal, select

from deployments.errors import BadRequest, ClientCancelled, NotFound, StartTimeout
from deployments.queue.database import Database, uninterrupted
from deployments.queue.files import FileRecord, Files
from deployments.queue.outbox import Webhook, WebhookState
from deployments.queue.request import Cancelled, LogLine, NewRequest, Priority, RequestStatus
from deployments.queue.store import RequestStore
from deployments.queue.tables import now, request_io, requests, webhooks

RETRY_OF = "svd-serve retry of "
"""What the idempotency key of a retry begins with; the id of what it repeats follows."""

NOT_KEPT = "null"
"""What stands in place of an input that was sent with ``X-Fal-Store-IO: 0``, once its request has ended."""

_columns = requests.c
_again = requests.alias("again")
_was_retried = exists().where(
    _again.c.key_id == _columns.key_id, _again.c.idempotency_key == literal(RETRY_OF, String) + _columns.id
)
_failed = _columns.status_code >= 500


@dataclass(frozen=True)
class Filter:
    """Which requests.

    Attributes:
        endpoint: Of one endpoint.
        key_id: Of one key.
        status: In one status.
        error: That ended with this error type.
        failed: That ended by a failure of ours (5xx). What a caller did wrong or cancelled is none.
        since: Made no longer ago than so many seconds, or ended, where ``failed`` or ``error`` is asked for.
    """

    endpoint: str | None = None
    key_id: str | None = None
    status: RequestStatus | None = None
    error: str | None = None
    failed: bool = False
    since: float | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same in SQL."""
        found: list[ColumnElement[bool]] = []
        for column, wanted in (
            (_columns.endpoint, self.endpoint),
            (_columns.key_id, self.key_id),
            (_columns.error_type, self.error),
        ):
            if wanted is not None:
                found.append(column == wanted)
        if self.status:  # written into the statement, so that a planner can see that a partial index serves
            found.append(_columns.status == literal(self.status, String, literal_execute=True))
        if self.failed:
            found.append(_failed)
        if self.since is not None:
            moment = _columns.finished_at if self.failed or self.error else _columns.created_at
            found.append(moment >= select(now() - self.since).scalar_subquery())
        return found


@dataclass(frozen=True)
class Record:
    """A row with all its columns, and what the database's clock said when it was read."""

    columns: Mapping[str, Any]
    now: float

    @classmethod
    def from_row(cls, row: Row[Any]) -> Record:
        """The only way in from SQL."""
        columns = dict(row._mapping)
        return cls(columns, columns.pop("now"))


@dataclass(frozen=True)
class Dossier:
    """All that is known of one request. ``input`` and ``output`` are JSON; None where they are no longer kept."""

    record: Record
    input: str | None
    output: str | None
    lines: Sequence[LogLine]
    files: Sequence[FileRecord]
    webhook: Webhook | None


class Admin:
    """The requests of a database, for an operator."""

    def __init__(self, database: Database) -> None:
        """Use a database that is open."""
        self._database = database
        self._store = RequestStore(database)

    @uninterrupted
    async def rows(self, filter: Filter, limit: int) -> list[Record]:
        """The newest requests that pass a filter."""
        query = _records().where(*filter.conditions()).order_by(_columns.seq.desc()).limit(limit)
        async with self._database.read() as connection:
            return [Record.from_row(row) for row in await connection.execute(query)]

    async def show(self, request_id: str) -> Dossier:
        """One request, with what belongs to it.

        Raises:
            NotFound: There is none with this id.
        """
        record, input, output = await self._read(request_id)
        return Dossier(
            record,
            None if input == NOT_KEPT else input,
            output,
            await self._store.logs(request_id),
            await Files(self._database).of_request(request_id),
            await self._webhook(request_id),
        )

    async def retry(self, request_id: str) -> str:
        """Submit the input of a request that has ended once more; answer the new request's id.

        Raises:
            NotFound: There is no such request.
            BadRequest: It has not ended, its input is gone or was no good, or it has been retried already.
        """
        record, input, _ = await self._read(request_id)
        problem = _why_not(record.columns, input)
        if problem:
            raise BadRequest(f"Request {request_id} {problem}")
        new = _copy(record.columns, str(input), await self._webhook_url(request_id))
        accepted = await self._store.submit(new)
        if accepted.id != new.id:
            raise BadRequest(f"Request {request_id} was retried already, as {accepted.id}")
        return new.id

    @uninterrupted
    async def retryable(self, filter: Filter) -> list[Record]:
        """What passes a filter and can be retried, the oldest first; what has been retried already is left out."""
        kept = exists().where(request_io.c.request_id == _columns.id, request_io.c.input != NOT_KEPT)
        query = _records().where(*filter.conditions(), _columns.status == RequestStatus.COMPLETED)
        query = query.where(kept, ~_was_refused(), ~_was_retried).order_by(_columns.seq)
        async with self._database.read() as connection:
            return [Record.from_row(row) for row in await connection.execute(query)]

    async def cancel(self, request_id: str) -> RequestStatus:
        """Cancel a request, as its caller could; answer where it is now: one that runs ends when its replica hears it.

        Raises:
            NotFound: There is none with this id.
            BadRequest: It has ended already.
        """
        if (await self._store.cancel(request_id)) == Cancelled.ALREADY_COMPLETED:
            await self._read(request_id)
            raise BadRequest(f"Request {request_id} has ended already")
        record, _, _ = await self._read(request_id)
        return RequestStatus(record.columns["status"])

    @uninterrupted
    async def _read(self, request_id: str) -> tuple[Record, str | None, str | None]:
        query = _records().add_columns(request_io.c.input, request_io.c.output).where(_columns.id == request_id)
        query = query.outerjoin_from(requests, request_io, request_io.c.request_id == _columns.id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            raise NotFound(f"There is no request {request_id}")
        columns = dict(row._mapping)
        input, output, at = (columns.pop(name) for name in ("input", "output", "now"))
        return Record(columns, at), input, output

    @uninterrupted
    async def _webhook(self, request_id: str) -> Webhook | None:
        columns = (webhooks.c[name] for name in Webhook.__dataclass_fields__)
        async with self._database.read() as connection:
            query = select(*columns).where(webhooks.c.request_id == request_id)
            row = (await connection.execute(query)).one_or_none()
        return Webhook(**{**row._mapping, "state": WebhookState(row.state)}) if row else None

    @uninterrupted
    async def _webhook_url(self, request_id: str) -> str | None:
        async with self._database.read() as connection:
            query = select(webhooks.c.url).where(webhooks.c.request_id == request_id)
            return (await connection.execute(query)).scalar_one_or_none()


def _records() -> Select[Any]:
    return select(requests, now().label("now"))


def _was_refused() -> ColumnElement[bool]:
    """Whether an input was refused as it was submitted: it was never checked to the end, and would be refused again."""
    other = _columns.error_type.not_in([ClientCancelled.type, StartTimeout.type])
    return and_(_columns.attempt == 0, _columns.error_type.is_not(None), other)


def _why_not(columns: Mapping[str, Any], input: str | None) -> str | None:
    """Why a request cannot be retried, after its id; None where it can."""
    if columns["status"] != RequestStatus.COMPLETED:
        return f"has not ended: it is {columns['status']}"
    if columns["attempt"] == 0 and columns["error_type"] not in (None, ClientCancelled.type, StartTimeout.type):
        return f"was refused as it came in ({columns['error_type']}), and would be again"
    if input is None:
        return "cannot be retried: its input has been deleted"
    if input == NOT_KEPT:
        return "cannot be retried: its caller asked that its input be forgotten (X-Fal-Store-IO: 0)"
    return None


def _copy(columns: Mapping[str, Any], input: str, webhook: str | None) -> NewRequest:
    """The same request anew. Its caller's start deadline has passed, so it is not said again."""
    same = {name: columns[name] for name in NewRequest.__dataclass_fields__ if name in columns and name != "id"}
    mark = {"idempotency_key": RETRY_OF + columns["id"], "priority": Priority(columns["priority"])}
    return NewRequest(**same | mark, input=input, webhook=webhook)
