"""One batch on its replica: what the replica says is written down, and what it leaves open goes back to the queue.

claimed ──▶ (waits for its turn) ── Begun ──▶ (pictures, the device) ── Finished | Failed | Dropped ──▶ ended
   └────────── put back ◀── recalled            └── lost with its replica, or too slow ──▶ again, or the end
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments.costs import MICRO, NOTHING, Cost, share
from deployments.errors import (
    ClientCancelled,
    Failure,
    GenerationTimeout,
    RunnerServerError,
    Unavailable,
)
from deployments.models.messages import Attempt, Begun, Dropped, Event, Failed, Finished, GpuTime, Progress
from deployments.queue.crashes import has_crashed
from deployments.queue.recorder import Recorder
from deployments.queue.runs import Runs
from deployments.queue.store import Outcome
from deployments.queue.tariff import Tariff

logger = logging.getLogger(__name__)

LONGEST_BACKOFF_SECONDS = 60.0
REPLACED_SECONDS = 1.0
"""A request whose replica was lost waits a random part of this, so that not all come back in one moment. One that no
replica had begun waits all of it, for the next replica may be as little."""

PREPARING_SECONDS = 360.0
"""How long the pictures of a batch may take. The replica gives up sooner, and says of which."""


class Events(Protocol):
    """What the dispatcher uses of Serve's ``DeploymentResponseGenerator``."""

    def __anext__(self) -> Awaitable[Event]:
        """The next of them."""

    def cancel(self) -> None:
        """Let the replica stop."""


@dataclass(frozen=True)
class OnDevice:
    """Requests that were given the device together.

    Attributes:
        request_ids: Whose.
        since: When we heard of it, on the event loop's clock.
        device: Which it is: the accelerator's name and how much of one. A replica of an older version does not say.
    """

    request_ids: tuple[str, ...]
    since: float
    device: tuple[str, float] | None


class Batch:
    """Attempts that go to one replica together."""

    def __init__(
        self,
        model: str,
        attempts: Sequence[Attempt],
        recorder: Recorder,
        tariff: Tariff,
        run_seconds: float,
        on_storage_away: Callable[[], None],
    ) -> None:
        """Hold attempts that have been claimed.

        Args:
            model: What they waited for.
            attempts: The members.
            recorder: Writes down what becomes of them.
            tariff: Tells what they cost.
            run_seconds: How long they may take on the device, and how long another may have it before them.
            on_storage_away: Called when a clip could not be stored.
        """
        self._runs = Runs(model, attempts)
        self._open = {attempt.request_id: attempt for attempt in self.attempts}
        self._recorder = recorder
        self._tariff = tariff
        self._run_seconds = run_seconds
        self._on_storage_away = on_storage_away
        self._had_device: set[str] = set()
        self._groups: list[OnDevice] = []
        self._lost_at: float | None = None
        self._deadline: float | None = None
        self._reading: asyncio.Task[None] | None = None
        self._recalled = False
        self.begun = False

    @property
    def attempts(self) -> list[Attempt]:
        """All of them, as their replica is to have them."""
        return self._runs.attempts

    @property
    def request_ids(self) -> set[str]:
        """Those that have not ended."""
        return set(self._open)

    def costs(self) -> dict[str, Cost]:
        """What those have cost that have not ended, as far as can be told without their replica."""
        return {request_id: self._tariff.cost([time]) for request_id, time in self._on_devices().items()}

    def _on_devices(self) -> dict[str, GpuTime]:
        """What those have taken of a device that have not ended.

        That is the time from the device's first word until now, or until the replica was lost, in equal parts: what
        has the device together is of one size.
        """
        now = asyncio.get_running_loop().time() if self._lost_at is None else self._lost_at
        taken: dict[str, GpuTime] = {}
        for group in self._groups:
            micros = share(round(max(0.0, now - group.since) * MICRO), [1] * len(group.request_ids))
            for request_id, part in zip(group.request_ids, micros, strict=True):
                if request_id in self._open and group.device:
                    taken[request_id] = (*group.device, part)
        return taken

    def recall(self) -> None:
        """Give up at once what has not begun."""
        if not self.begun:
            self._recalled = True
            if self._reading:
                self._reading.cancel()

    async def run(self, events: Events) -> None:
        """Follow the replica to the batch's end."""
        self._reading = asyncio.create_task(self._read(events))
        if self._recalled:
            self._reading.cancel()
        try:
            await asyncio.wait([self._reading])
        finally:
            self._reading.cancel()
            if not _ended_by_the_replica(self._reading):
                events.cancel()
        try:
            await self._settle(self._reading)
        finally:
            self._runs.close()

    async def _read(self, events: Events) -> None:
        """Write down what the replica says, until it ends."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self._deadline):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            heard_at = loop.time()
            await self._on_event(event)
            if self._deadline:
                self._deadline += loop.time() - heard_at  # a store that is away is not the replica's fault

    async def _settle(self, reading: asyncio.Task[None]) -> None:
        """Decide about what is still open."""
        self._lost_at = asyncio.get_running_loop().time()
        error = None if reading.cancelled() else reading.exception()
        if self._recalled:
            await self._recorder.put_back(list(self._open.values()), "the dispatcher stops")
        elif reading.cancelled():  # by Serve: the replica gives up what it does
            await self._lose("the replica stopped")
        elif error is None:
            await self._lose("the replica ended without a word")
        elif isinstance(error, TimeoutError):
            await self._end_overdue()
        elif isinstance(error, RayTaskError):
            logger.error("a replica failed outside any request", exc_info=error)
            await self._end_all(RunnerServerError("The model failed").failure())
        elif isinstance(error, RayError | RayServeException):
            await self._lose(f"the replica was lost ({type(error).__name__})", crashed=await has_crashed(error))
        else:  # a fault of ours: each time counts, so that it cannot go on for ever
            logger.error("what a replica said was not understood", exc_info=error)
            await self._lose("what the replica said was not understood")

    # ---------------------------------------------------------------- events

    async def _on_event(self, event: Event) -> None:
        self._begin(event)
        match event:
            case Begun():
                pass
            case Progress():
                self._recorder.note(event, [each for each in event.request_ids if each in self._open])
            case Failed() if event.failure.retryable:
                await self._retry(self._open[event.request_id], event)
                self._close(event)
            case _:
                with contextlib.suppress(Unavailable):  # a log is not worth a result
                    await self._recorder.write_logs()
                attempt = self._open[event.request_id]
                await self._recorder.end(attempt, self._priced(attempt, _outcome(event), event))
                self._close(event)

    def _close(self, event: Finished | Failed | Dropped) -> None:
        del self._open[event.request_id]
        self._runs.end(event.request_id, _error_type(event))

    def _begin(self, event: Event) -> None:
        """Whoever says anything has begun: a replica of an older version does not say so by itself."""
        self.begun = True
        self._runs.begin()
        now = asyncio.get_running_loop().time()
        if isinstance(event, Progress) or (isinstance(event, Begun) and event.on_device):
            new = set(event.request_ids) - self._had_device
            self._had_device |= new
            if new:
                device = event.device if isinstance(event, Begun) else None
                self._groups.append(OnDevice(event.request_ids, now, device))
            self._deadline = now + self._run_seconds if new else self._deadline
        self._deadline = self._deadline or now + PREPARING_SECONDS + self._run_seconds

    async def _retry(self, attempt: Attempt, event: Failed) -> None:
        if event.unstored:
            self._on_storage_away()
        cost, seconds = self._tariff.cost(event.gpu_time), backoff_seconds(attempt.number)
        await self._recorder.lose(attempt, event.failure.message, retry_seconds=seconds, cost=cost)

    def _priced(self, attempt: Attempt, outcome: Outcome, event: Finished | Failed | Dropped) -> Outcome:
        """An outcome with what it cost us, and what it is billed if it is a success."""
        cost = self._tariff.cost(event.gpu_time)
        seconds = event.gpu_seconds if isinstance(event, Finished) else _seconds(event.gpu_time)
        return replace(
            outcome,
            gpu_seconds=seconds,
            gpu_usd_per_hour=cost.usd_per_hour,
            cost_nano_usd=cost.nano_usd,
            price_nano_usd=self._tariff.price(attempt.endpoint, seconds) if isinstance(event, Finished) else None,
            batch_size=event.batch_size,
        )

    # ---------------------------------------------------------------- what is left open

    async def _lose(self, reason: str, *, crashed: bool = False) -> None:
        """Give back what is open. What had not begun is not to blame, whatever happened."""
        left = list(self._open.values())
        if not self.begun:
            await self._recorder.put_back(left, reason, REPLACED_SECONDS)
            return
        retry_seconds = REPLACED_SECONDS * random.random()  # noqa: S311 - no secret
        costs = self.costs()
        for attempt in left:
            cost = costs.get(attempt.request_id, NOTHING)
            await self._recorder.lose(attempt, reason, crashed=crashed, retry_seconds=retry_seconds, cost=cost)

    async def _end_overdue(self) -> None:
        """End what had the device for too long; what still waited for it is not to blame."""
        failure = GenerationTimeout(f"The run took longer than {self._run_seconds:g} seconds").failure()
        waited = [attempt for attempt in self._open.values() if attempt.request_id not in self._had_device]
        await self._recorder.put_back(waited, "the device was not free in time", REPLACED_SECONDS)
        for attempt in self._open.values():
            if attempt.request_id in self._had_device:
                await self._recorder.end(attempt, self._lost(attempt, failure))

    async def _end_all(self, failure: Failure) -> None:
        for attempt in list(self._open.values()):
            await self._recorder.end(attempt, self._lost(attempt, failure))

    def _lost(self, attempt: Attempt, failure: Failure) -> Outcome:
        """The end of what its replica told no end of, with what it has cost as far as we can tell."""
        time = self._on_devices().get(attempt.request_id)
        gpu_time = [time] if time else []
        cost, seconds = self._tariff.cost(gpu_time), _seconds(gpu_time)
        ended = Outcome.of(failure)
        return replace(ended, gpu_seconds=seconds, gpu_usd_per_hour=cost.usd_per_hour, cost_nano_usd=cost.nano_usd)


def _ended_by_the_replica(reading: asyncio.Task[None]) -> bool:
    if not reading.done() or reading.cancelled():
        return False
    return isinstance(reading.exception(), RayError | RayServeException | None)


def backoff_seconds(attempt_number: int) -> float:
    """1, 2, 4, … seconds, a quarter more or less by chance."""
    jitter = random.uniform(0.75, 1.25)  # noqa: S311 - no secret
    return min(LONGEST_BACKOFF_SECONDS, jitter * 2.0 ** min(attempt_number - 1, 10))


def _seconds(gpu_time: Sequence[GpuTime]) -> float:
    return sum(micros for _, _, micros in gpu_time) / MICRO


def _error_type(event: Finished | Failed | Dropped) -> str | None:
    if isinstance(event, Failed):
        return event.failure.type
    return ClientCancelled.type if isinstance(event, Dropped) else None


def _outcome(event: Finished | Failed | Dropped) -> Outcome:
    match event:
        case Finished():
            return Outcome(
                200,
                event.output,
                inference_seconds=event.inference_seconds,
                files=event.files,
            )
        case Failed():
            return Outcome.of(event.failure)
        case Dropped():
            return Outcome.of(ClientCancelled("The request was cancelled by its caller").failure())
