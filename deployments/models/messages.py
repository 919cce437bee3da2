"""What a dispatcher and a replica say to each other. Plain values: they cross processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.errors import Failure


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
    """

    request_id: str
    number: int
    endpoint: str
    input: str
    previews: int = 0
    alone: bool = False


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
    """

    request_ids: tuple[str, ...]
    on_device: bool = False


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
        gpu_seconds: This request's share of its batch's time on the device.
        files: What the output names of the file storage.
    """

    request_id: str
    output: Mapping[str, Any]
    inference_seconds: float
    gpu_seconds: float
    files: tuple[StoredFile, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The attempt failed.

    Attributes:
        request_id: Whose.
        failure: Why; ``failure.retryable`` says whether another attempt may succeed.
        unstored: Whether there was a clip, for which the file storage had no room or was away.
    """

    request_id: str
    failure: Failure
    unstored: bool = False


@dataclass(frozen=True)
class Dropped:
    """The attempt was stopped because nobody wanted it any more."""

    request_id: str


Event = Begun | Progress | Finished | Failed | Dropped
