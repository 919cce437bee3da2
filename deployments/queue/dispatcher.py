"""The dispatcher: reserve a replica, claim the best batch for it, send it, record what comes back.

    the queue says a model has work ──▶ choose_replica() ──▶ store.claim() ──▶ dispatch() ──▶ events ──▶ store

A batch is claimed only once a replica is certain, so priority, cancelling and batching act on what is still in the
queue. Any number of dispatchers may run: claims skip each other's rows, results are fenced by the attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments import logs
from deployments.errors import ClientCancelled, RunnerServerError, Unavailable
from deployments.models.messages import Attempt, Begun, Dropped, Event, Failed, Finished, Progress, StoredFile
from deployments.queue.request import LogLine
from deployments.queue.store import BatchLimits, Outcome, RequestStore

logger = logging.getLogger(__name__)


class ReplicaHandle(Protocol):
    """What the dispatcher uses of a Serve ``DeploymentHandle`` with ``method_name="generate", stream=True``."""

    def choose_replica(self) -> AbstractAsyncContextManager[Any]:
        """Reserve a place on a replica for as long as the context is open."""

    def dispatch(self, selection: Any, attempts: list[Attempt]) -> AsyncIterable[Event]:
        """Send a batch to the reserved replica."""


class DispatcherConfig(BaseModel):
    """``user_config`` of the dispatcher in serve_config.yaml; a change restarts nothing."""

    model_config = ConfigDict(extra="forbid")

    batching: dict[str, BatchLimits] = {}


class Dispatcher:
    """Takes requests from the queue to replicas."""

    def __init__(
        self,
        store: RequestStore,
        replicas: Mapping[str, ReplicaHandle],
        owner: str,
        *,
        lease_seconds: float = 10.0,
        poll_seconds: float = 0.05,
    ) -> None:
        """Make a dispatcher that does nothing yet.

        Args:
            store: The queue.
            replicas: For each model, the handle of its deployment.
            owner: This dispatcher's name in the queue, unlike any other's.
            lease_seconds: How long its attempts stay its own without a heartbeat.
            poll_seconds: How often it asks the queue for work while it has a place free.
        """
        self._store = store
        self._replicas = replicas
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._limits: Mapping[str, BatchLimits] = {}
        self._has_work = {model: asyncio.Event() for model in replicas}
        self._held: set[str] = set()
        self._lines: list[LogLine] = []
        self._previews: list[tuple[str, StoredFile]] = []
        self._writing = asyncio.Lock()
        self._loops: list[asyncio.Task[None]] = []
        self._batches: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take the lease, then begin to claim."""
        await self._store.heartbeat(self._owner, self._lease_seconds)
        self._loops = [
            asyncio.create_task(self._repeat(self._look_for_work, self._poll_seconds)),
            asyncio.create_task(self._repeat(self._keep_lease, self._lease_seconds / 5)),
            asyncio.create_task(self._repeat(self._write_logs, 4 * self._poll_seconds)),
            *(asyncio.create_task(self._feed(model)) for model in self._replicas),
        ]

    async def stop(self) -> None:
        """Stop claiming, and give back at once what is held."""
        tasks = [*self._loops, *self._batches]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.give_back(self._owner)

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take new batching limits (Serve's ``user_config``)."""
        self._limits = DispatcherConfig.model_validate(config).batching

    def check_health(self) -> None:
        """Fail when a loop has died, so that Serve replaces this dispatcher."""
        for task in self._loops:
            if task.done():
                task.result()

    async def abandoned(self, attempts: Mapping[str, int]) -> set[str]:
        """For replicas: which of these running attempts nobody wants any more."""
        return await self._store.abandoned(attempts)

    # ---------------------------------------------------------------- loops

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                await work()
            except Unavailable as error:
                logger.warning("%s: %s", error, error.__cause__)
            await asyncio.sleep(seconds)

    async def _look_for_work(self) -> None:
        models = await self._store.models_with_work(self._has_work)
        for model, event in self._has_work.items():
            event.set() if model in models else event.clear()

    async def _keep_lease(self) -> None:
        await self._store.heartbeat(self._owner, self._lease_seconds)
        await self._store.sweep(self._owner, self._held, self._lease_seconds)

    async def _write_logs(self) -> None:
        async with self._writing:
            lines, self._lines = self._lines, []
            previews, self._previews = self._previews, []
            if lines:
                await self._store.log(lines, previews)

    async def _feed(self, model: str) -> None:
        """Keep one place reserved at a time while there is work; each batch then goes its own way."""
        while True:
            await self._has_work[model].wait()
            claimed = asyncio.Event()
            batch = asyncio.create_task(self._serve_batch(model, claimed))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
            await claimed.wait()

    # ---------------------------------------------------------------- one batch

    async def _serve_batch(self, model: str, claimed: asyncio.Event) -> None:
        handle = self._replicas[model]
        try:
            async with handle.choose_replica() as selection:
                attempts = await self._store.claim(model, self._owner, self._limits.get(model, BatchLimits()))
                if not attempts:
                    self._has_work[model].clear()
                    return
                claimed.set()
                self._held |= {attempt.request_id for attempt in attempts}
                try:
                    await self._record(attempts, handle.dispatch(selection, attempts))
                finally:
                    self._held -= {attempt.request_id for attempt in attempts}
        except Exception:
            logger.exception("%s: a batch was not served", model)  # what was claimed is swept up after a lease
            await asyncio.sleep(self._poll_seconds)
        finally:
            claimed.set()

    async def _record(self, attempts: list[Attempt], events: AsyncIterable[Event]) -> None:
        """Write down what a replica says of a batch; what it leaves open goes back to the queue."""
        running = {attempt.request_id: attempt for attempt in attempts}
        reason = "the replica ended without a word"
        try:
            async for event in events:
                await self._on_event(event, running)
        except RayTaskError:
            logger.exception("a replica failed outside any request")
            failure = RunnerServerError("The model failed").failure()
            for attempt in running.values():
                await self._persist(self._store.complete, attempt, Outcome.of(failure))
            return
        except (RayError, RayServeException) as error:
            reason = f"the replica was lost ({type(error).__name__})"
        for attempt in running.values():
            with logs.request_context(attempt.request_id):
                logger.warning("attempt %s was lost: %s", attempt.number, reason)
            await self._persist(self._store.lose, attempt, reason)

    async def _on_event(self, event: Event, running: dict[str, Attempt]) -> None:
        if isinstance(event, Begun):
            return
        if isinstance(event, Progress):
            ids = [request_id for request_id in event.request_ids if request_id in running]
            self._note(event, ids)
            return
        attempt = running[event.request_id]
        with contextlib.suppress(Unavailable):  # a log is not worth a result
            await self._write_logs()
        if isinstance(event, Failed) and event.failure.retryable:
            await self._persist(self._store.lose, attempt, event.failure.message)
        else:
            await self._persist(self._store.complete, attempt, _outcome(event))
        del running[event.request_id]

    def _note(self, event: Progress, ids: Sequence[str]) -> None:
        preview = event.preview.key if event.preview else None
        at = time.time()
        self._lines += [LogLine(each, event.message, at, "INFO", event.fraction, preview) for each in ids]
        if event.preview:
            self._previews += [(each, event.preview) for each in ids]

    async def _persist(
        self, write: Callable[[Attempt, str, Any], Awaitable[bool]], attempt: Attempt, what: Any
    ) -> None:
        """Write the end of an attempt, however long the store is away: the fence decides whether it still counts."""
        while True:
            try:
                if not await write(attempt, self._owner, what):
                    logger.warning("attempt %s of %s was not ours any more", attempt.number, attempt.request_id)
                return
            except Unavailable as error:
                logger.warning("%s: %s", error, error.__cause__)
            await asyncio.sleep(self._lease_seconds / 10)


def _outcome(event: Finished | Failed | Dropped) -> Outcome:
    match event:
        case Finished():
            return Outcome(
                200,
                event.output,
                inference_seconds=event.inference_seconds,
                gpu_seconds=event.gpu_seconds,
                files=event.files,
            )
        case Failed():
            return Outcome.of(event.failure)
        case Dropped():
            return Outcome.of(ClientCancelled("The request was cancelled by its caller").failure())
