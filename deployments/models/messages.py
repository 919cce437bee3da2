"""What a dispatcher and a replica say to each other. Plain values: they cross processes, and versions.

What was added to an event later has a default, which stands in where a replica of an older version does not say it; and
it is made of Python's own types, so that a dispatcher of an older version can read past it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.errors import Failure

GpuTime = tuple[str, float, int]
"""Time on a device: the accelerator's name, how much of one it was, and microseconds."""

CPU = "CPU"
"""The name of the accelerator of a process that has none."""


@dataclass(frozen=True)
class Hardware:
    """What a process computes on: an accelerator by its name, and how much of it. Several are more than 1."""

    accelerator: str = CPU
    fraction: float = 1.0


@dataclass(frozen=True)
class ReplicaReport:
    """A replica's process is there, and costs us.

    Attributes:
        replica_id: Of the process, unlike any other's.
        model: The id of the endpoint that it was started for.
        deployment: Of which it is a replica.
        accelerator: What it computes on.
        gpu_fraction: How much of one it has.
        age_seconds: How long ago it began to start.
    """

    replica_id: str
    model: str
    deployment: str
    accelerator: str
    gpu_fraction: float
    age_seconds: float


@dataclass(frozen=True)
class Attempt:
    """One run of a request: what the replica is asked to do.

    Attributes:
        request_id: Whose.
        number: Which run, from 1.
        endpoint: fal's endpoint id.
        input: The checked input as JSON.
        previews: A picture of the clip so far each so many steps; 0 for none.
        alone: Whether nothing else may run on its replica meanwhile: a replica has died under this request.
        traceparent: The span that it is part of, as W3C's header says it; None for none.
        created_at: When the request arrived, in Unix seconds on the database's clock.
        claimed_at: When it was claimed for this run, likewise.
    """

    request_id: str
    number: int
    endpoint: str
    input: str
    previews: int = 0
    alone: bool = False
    traceparent: str | None = None
    created_at: float = field(default=0.0, compare=False)
    claimed_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class StoredFile:
    """A file that a replica has put into the file storage; ``size`` in bytes, ``sha256`` in hex."""

    key: str
    content_type: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Begun:
    """The replica has begun to work on these requests of a batch: if it dies now, they may be why.

    Attributes:
        request_ids: Whose.
        on_device: Whether the device has them now; they do not wait for their pictures or their turn any more.
        device: Then, which it is: the accelerator's name and how much of one.
    """

    request_ids: tuple[str, ...]
    on_device: bool = False
    device: tuple[str, float] | None = None


@dataclass(frozen=True)
class Progress:
    """A line for the logs of these requests.

    Attributes:
        request_ids: Whose.
        message: The line.
        fraction: How far they are, from 0 to 1.
        preview: A picture of the clip so far.
    """

    request_ids: tuple[str, ...]
    message: str
    fraction: float
    preview: StoredFile | None = None


@dataclass(frozen=True)
class Finished:
    """A clip is stored.

    Attributes:
        request_id: Whose.
        output: The body of the result, as fal's clients read it.
        inference_seconds: From the attempt's arrival at the replica to the stored file.
        gpu_seconds: This request's share of its batch's time on the device, and the time of its painting.
        files: What the output names of the file storage.
        gpu_time: The same by devices, the model's own first.
        batch_size: How many requests had the device together.
    """

    request_id: str
    output: Mapping[str, Any]
    inference_seconds: float
    gpu_seconds: float
    files: tuple[StoredFile, ...] = ()
    gpu_time: tuple[GpuTime, ...] = ()
    batch_size: int | None = None


@dataclass(frozen=True)
class Failed:
    """The attempt failed.

    Attributes:
        request_id: Whose.
        failure: Why; ``failure.retryable`` says whether another attempt may succeed.
        unstored: Whether there was a clip, for which the file storage had no room or was away.
        gpu_time: What it took of devices all the same, the model's own first.
        batch_size: How many requests had the device together.
    """

    request_id: str
    failure: Failure
    unstored: bool = False
    gpu_time: tuple[GpuTime, ...] = ()
    batch_size: int | None = None


@dataclass(frozen=True)
class Dropped:
    """The attempt was stopped because nobody wanted it any more.

    Attributes:
        request_id: Whose.
        gpu_time: What it took of devices all the same, the model's own first.
        batch_size: How many requests had the device together.
    """

    request_id: str
    gpu_time: tuple[GpuTime, ...] = ()
    batch_size: int | None = None


Event = Begun | Progress | Finished | Failed | Dropped
