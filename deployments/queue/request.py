"""The queued thing, as frozen values.

IN_QUEUE ──claim──▶ IN_PROGRESS ──────────────▶ COMPLETED (a result, or a failure)
    ▲                    │
    └── replica lost ────┘   at most MAX_ATTEMPTS times
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple, Self
from uuid import UUID, uuid4, uuid5

from sqlalchemy import Row

MAX_ATTEMPTS = 10
"""Runs of one request before it fails for good (fal's figure)."""

MAX_CRASHES_ALONE = 3
"""A request under which a replica's process died runs alone from then on; if it dies so often again, that was it."""

MAX_UNBEGUN = 1000
"""How often a request may come back without having begun. From then on it counts as an attempt: what never begins, for
whatever reason, ends some time, and the number of an attempt stays one that any column and any arithmetic can hold."""


class RequestStatus(StrEnum):
    """Where a request is. Failure and cancellation are outcomes of COMPLETED, as on fal."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"


class Priority(IntEnum):
    """All normal requests of a model go before all low ones."""

    NORMAL = 0
    LOW = 1


@dataclass(frozen=True)
class NewRequest:
    """A request as it is submitted.

    Attributes:
        endpoint: fal's endpoint id.
        model: The deployment it waits for.
        key_id: Whose it is.
        input: The checked input as JSON, with the seed filled in so that every attempt gives the same clip.
        batch_key: Requests with equal keys may share a batch.
        pixel_frames: What it weighs against a batch's budget.
        priority: Where it queues.
        no_retry: End it when its first attempt is lost.
        start_timeout: Seconds it may wait for its start.
        idempotency_key: Of its caller's choice; a second submit with the same one is the same request.
        input_hash: SHA-256 of what its caller sent, where it sent such a key: another input is another request.
        runner_hint: Which replica its caller would like.
        store_io: Whether its input and output are kept and shown in its caller's history.
        lifecycle: How long its files live and who may read them, as JSON; None for the default.
        previews: A picture of the clip so far each so many steps; 0 for none.
        webhook: The URL that is told how it ended.
        traceparent: The span that it is part of, as W3C's header says it.
        id: Its id, known before it is stored so that it can be cancelled whatever becomes of the answer.
    """

    endpoint: str
    model: str
    key_id: str
    input: str
    batch_key: str = ""
    pixel_frames: int = 0
    priority: Priority = Priority.NORMAL
    no_retry: bool = False
    start_timeout: float | None = None
    idempotency_key: str | None = None
    input_hash: str | None = None
    runner_hint: str | None = None
    store_io: bool = True
    lifecycle: str | None = None
    previews: int = 0
    webhook: str | None = None
    traceparent: str | None = None
    id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True)
class InferenceRequest:
    """A request as its row says. Times are Unix seconds on the database's clock."""

    seq: int
    id: str
    endpoint: str
    model: str
    key_id: str
    priority: int
    status: RequestStatus
    attempt: int
    no_retry: bool
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    status_code: int | None
    error: str | None
    error_type: str | None
    inference_seconds: float | None
    gpu_seconds: float | None
    store_io: bool

    @classmethod
    def from_row(cls, row: Row[Any]) -> Self:
        """The only way in from SQL."""
        values = dict(row._mapping)
        status = RequestStatus(values["status"])
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name != "status"}, status=status)

    @property
    def gateway_request_id(self) -> str:
        """The id of the last attempt, which is the request's own until it is retried."""
        return self.id if self.attempt <= 1 else str(uuid5(UUID(self.id), str(self.attempt)))


@dataclass(frozen=True)
class LogLine:
    """One line of a request's log.

    Attributes:
        request_id: Whose.
        message: The line.
        at: Unix seconds.
        level: One of fal's.
        progress: From 0 to 1, where the line tells of some.
        preview: The key of a picture of the clip so far.
    """

    request_id: str
    message: str
    at: float
    level: str = "INFO"
    progress: float | None = None
    preview: str | None = None


class Version(NamedTuple):
    """What changes about a request: a waiter compares two of them."""

    status: RequestStatus
    attempt: int
    last_line: int

    @classmethod
    def of(cls, request: InferenceRequest) -> Self:
        """A request's version as far as its row tells: as if its log were empty."""
        return cls(request.status, request.attempt, last_line=0)


class Cancelled(StrEnum):
    """What cancelling a request came to, in fal's words."""

    REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
