"""The dispatcher: reserve a replica, claim the best batch for it, send it, record what comes back.

    the queue says a model has work ──▶ choose_replica() ──▶ store.claim() ──▶ dispatch() ──▶ events ──▶ store

A batch is claimed only once a replica is certain, so priority, cancelling and batching act on what is still in the
queue. Of a model that is scaled to zero no replica is asked for: its work waits where the policy of scaling sees it.
Any number of dispatchers may run: claims skip each other's rows, results are fenced by the attempt. One that is to end
claims nothing any more, gives back what no replica has begun, and lets the rest run for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments.errors import StorageUnavailable, Unavailable
from deployments.models.messages import Attempt, ReplicaReport
from deployments.queue.batch import Batch, Events
from deployments.queue.recorder import Recorder
from deployments.queue.replicas import Replicas
from deployments.queue.store import BatchLimits, RequestStore
from deployments.queue.tariff import Tariff
from deployments.storage import FileStorage

logger = logging.getLogger(__name__)

RUN_SECONDS = 3600.0
"""How long a batch may have the device where the configuration says nothing."""

STORAGE_CHECK_SECONDS = 2.0
"""How often a storage that was away is tried again."""

NO_REPLICA_SECONDS = 1.0
"""How long a model is left alone of which Serve says that it has no replica at all."""

COUNT_SECONDS = 1.0
"""How often Serve is asked which models have no replica."""

SCALING_SECONDS = 30.0
"""How long the first replica of a model is left to the policy of scaling. After that one is asked for, and Serve starts
it where nobody else does: the policy may have no way to the database."""

STORE_AWAY_SECONDS = 1.0
"""How long a model is left alone of which nothing could be claimed, for the store was away."""

RESERVE_SECONDS = 5.0
"""A reservation takes this long where every place is taken; or where its replica is about to die and answers nothing.
Then another is asked for beside it."""

MOST_RESERVATIONS = 4
"""How many may be asked for beside each other. None is given up: Serve would go on with it all the same. Serve trusts
for ten seconds what it last knew of a replica: the first of them may all go to the one that does not answer."""

_TIDY_SECONDS = 5.0
"""How long the last lines and deletions may take on the way out."""

_CLAIM_SECONDS = 6.0
"""A claim takes a little longer than the database may at the most."""

_DRAIN_STEP_SECONDS = 0.1


FindEmpty = Callable[[], Awaitable[Collection[str]]]


class ReplicaHandle(Protocol):
    """What the dispatcher uses of a Serve ``DeploymentHandle`` with ``method_name="generate", stream=True``."""

    def choose_replica(self) -> AbstractAsyncContextManager[Any]:
        """Reserve a place on a replica for as long as the context is open."""

    def dispatch(self, selection: Any, attempts: list[Attempt]) -> Events:
        """Send a batch to the reserved replica."""


class DispatcherConfig(BaseModel):
    """``user_config`` of the dispatcher in serve_config.yaml; a change restarts nothing."""

    model_config = ConfigDict(extra="forbid")

    batching: dict[str, BatchLimits] = {}
    run_seconds: dict[str, PositiveFloat] = {}
    max_running_per_key: int | None = Field(None, ge=1)
    gpu_usd_per_hour: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}


class Dispatcher:
    """Takes requests from the queue to replicas."""

    def __init__(
        self,
        store: RequestStore,
        storage: FileStorage,
        replicas: Mapping[str, ReplicaHandle],
        owner: str,
        tariff: Tariff | None = None,
        *,
        find_empty: FindEmpty | None = None,
        lease_seconds: float = 10.0,
        poll_seconds: float = 0.05,
    ) -> None:
        """Make a dispatcher that does nothing yet.

        Args:
            store: The queue.
            storage: Where replicas put finished clips.
            replicas: For each model, the handle of its deployment.
            owner: This dispatcher's name in the queue, unlike any other's.
            tariff: Tells what attempts cost; None where nothing does.
            find_empty: Tells which deployments have no replica that runs; None where all have.
            lease_seconds: How long its attempts stay its own without a heartbeat.
            poll_seconds: How often it asks the queue for work while it has a place free.
        """
        self._store = store
        self._storage = storage
        self._replicas = replicas
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._config = DispatcherConfig()
        self._tariff = tariff or Tariff()
        self._known_replicas = Replicas(store.database)
        self._recorder = Recorder(store, storage, owner, lease_seconds / 10)
        self._find_empty = find_empty
        self._has_work = {model: asyncio.Event() for model in replicas}
        self._has_replica = {model: asyncio.Event() for model in replicas}
        self._storage_is_up = asyncio.Event()
        self._storage_is_up.set()
        self._loops: list[asyncio.Task[None]] = []
        self._feeders: list[asyncio.Task[None]] = []
        self._reserving: set[asyncio.Task[None]] = set()
        self._claiming: set[asyncio.Task[None]] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._batches: set[Batch] = set()
        self.draining = False
        self._drained_by = float("inf")

    async def start(self) -> None:
        """Take the lease, then begin to claim."""
        await self._store.heartbeat(self._owner, self._lease_seconds)
        self._loops = [
            asyncio.create_task(self._repeat(self._look_for_work, self._poll_seconds)),
            asyncio.create_task(self._repeat(self._keep_lease, self._lease_seconds / 5)),
            asyncio.create_task(self._repeat(self._recorder.write_logs, 4 * self._poll_seconds)),
            asyncio.create_task(self._repeat(self._recorder.delete_unwanted, 4 * self._poll_seconds)),
            asyncio.create_task(self._repeat(self._check_storage, STORAGE_CHECK_SECONDS)),
            asyncio.create_task(self._repeat(self._look_for_replicas, COUNT_SECONDS)),
        ]
        self._feeders = [asyncio.create_task(self._feed(model)) for model in self._replicas]

    async def drain(self, grace_seconds: float) -> None:
        """Claim nothing any more, and return when all that runs has ended, or after the grace time.

        What no replica has begun goes back at once. Called again, the shorter time counts.
        """
        loop = asyncio.get_running_loop()
        self._stop_claiming()
        self._drained_by = min(self._drained_by, loop.time() + grace_seconds)
        while self._serving and (left := self._drained_by - loop.time()) > 0:
            await asyncio.wait(self._serving, timeout=min(_DRAIN_STEP_SECONDS, left))

    async def stop(self) -> None:
        """Stop claiming, and give back at once what is held."""
        self._stop_claiming()
        if self._claiming:
            await asyncio.wait(self._claiming, timeout=_CLAIM_SECONDS)  # lest nobody knows what they have claimed
        unbegun = {request_id for batch in self._batches if not batch.begun for request_id in batch.request_ids}
        costs = {request_id: cost for batch in self._batches for request_id, cost in batch.costs().items()}
        tasks = [*self._loops, *self._serving]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._store.give_back(self._owner, unbegun, costs)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(_TIDY_SECONDS):
                await self._recorder.write_logs()
                await self._recorder.delete_unwanted()

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Take new limits (Serve's ``user_config``)."""
        self._config = DispatcherConfig.model_validate(config)
        self._tariff.set_rates(self._config.gpu_usd_per_hour)

    def check_health(self) -> None:
        """Fail when a loop has died, so that Serve replaces this dispatcher."""
        for task in [*self._loops, *self._feeders]:
            if task.done() and not (self.draining and task.cancelled()):
                task.result()

    async def abandoned(self, attempts: Mapping[str, int]) -> set[str]:
        """For replicas: which of these running attempts nobody wants any more."""
        return await self._store.abandoned(attempts)

    async def note_replica(self, report: ReplicaReport) -> None:
        """For replicas: that one is there, which costs us whether it works or not."""
        usd_per_hour = self._tariff.usd_per_hour(report.accelerator, report.gpu_fraction)
        await self._known_replicas.note(report, usd_per_hour)

    # ---------------------------------------------------------------- loops

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        is_away = False
        while True:
            try:
                await work()
                is_away = False
            except Unavailable as error:
                if not is_away:  # once, however long it lasts
                    logger.warning("%s: %s", error, error.__cause__)
                is_away = True
            await asyncio.sleep(seconds)

    async def _look_for_work(self) -> None:
        models = await self._store.models_with_work(self._has_work, self._config.max_running_per_key)
        for model, event in self._has_work.items():
            event.set() if model in models else event.clear()

    async def _look_for_replicas(self) -> None:
        empty = await self._find_empty() if self._find_empty else ()
        for model, event in self._has_replica.items():
            event.clear() if model in empty else event.set()

    async def _keep_lease(self) -> None:
        await self._store.heartbeat(self._owner, self._lease_seconds)
        held = {request_id for batch in self._batches for request_id in batch.request_ids}  # with what came meanwhile
        await self._store.sweep(self._owner, held, self._lease_seconds)

    async def _check_storage(self) -> None:
        """Claim nothing while a clip could not be stored when it is made."""
        if self._storage_is_up.is_set():
            return
        try:
            await self._storage.check()
        except StorageUnavailable as error:
            logger.warning("nothing is claimed: %s", error)
        else:
            self._storage_is_up.set()

    async def _feed(self, model: str) -> None:
        """Ask for one place at a time while there is work; each batch then goes its own way.

        A reservation that takes long does not stop the others: there may be a place on another replica.
        """
        asked: set[asyncio.Future[None]] = set()
        while True:
            await self._has_work[model].wait()
            await self._storage_is_up.wait()
            await self._first_replica(model)
            if not self._has_work[model].is_set():
                continue
            claimed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            asked.add(claimed)
            claimed.add_done_callback(asked.discard)
            serving = asyncio.create_task(self._serve_batch(model, claimed))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
            patience = RESERVE_SECONDS if len(asked) < MOST_RESERVATIONS else None
            await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)

    async def _first_replica(self, model: str) -> None:
        """Wait for one. Asked for a place where there is none, Serve would start one replica, however many it takes."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SCALING_SECONDS):
                await self._has_replica[model].wait()

    # ---------------------------------------------------------------- one batch

    async def _serve_batch(self, model: str, claimed: asyncio.Future[None]) -> None:
        """Reserve, claim and run; ``claimed`` is done when the reservation has been used."""
        try:
            await self._use_place(model, claimed)
        except Unavailable as error:
            logger.warning("%s: nothing can be claimed: %s", model, error)
            self._has_work[model].clear()
            await asyncio.sleep(STORE_AWAY_SECONDS)
        except (RayError, RayServeException) as error:
            what = "its place on a replica was not given back" if claimed.done() else "no replica can be had"
            logger.warning("%s: %s: %s", model, what, error)
            await asyncio.sleep(NO_REPLICA_SECONDS)
        except Exception:
            logger.exception("%s: a batch was not served", model)  # what was claimed is swept up after a lease
            await asyncio.sleep(self._poll_seconds)
        finally:
            if not claimed.done():
                claimed.set_result(None)

    async def _use_place(self, model: str, claimed: asyncio.Future[None]) -> None:
        async with self._place(model) as selection:
            batch = await self._claim(model)
            claimed.set_result(None)
            if batch:
                await self._run(batch, model, selection)

    @contextlib.asynccontextmanager
    async def _place(self, model: str) -> AsyncIterator[Any]:
        """A place on a replica."""
        async with contextlib.AsyncExitStack() as stack:
            with _noted(self._reserving):
                selection = await stack.enter_async_context(self._replicas[model].choose_replica())
            yield selection

    async def _claim(self, model: str) -> Batch | None:
        if self.draining or not self._storage_is_up.is_set():
            return None
        limits = self._config.batching.get(model, BatchLimits())
        with _noted(self._claiming):
            attempts = await self._store.claim(model, self._owner, limits, self._config.max_running_per_key)
            if attempts and self.draining:
                await self._recorder.put_back(attempts, "the dispatcher stops")
                return None
        if not attempts:
            self._has_work[model].clear()
            return None
        run_seconds = self._config.run_seconds.get(model, RUN_SECONDS)
        return Batch(model, attempts, self._recorder, self._tariff, run_seconds, self._storage_is_up.clear)

    async def _run(self, batch: Batch, model: str, selection: Any) -> None:
        self._batches.add(batch)
        try:
            await batch.run(self._replicas[model].dispatch(selection, batch.attempts))
        finally:
            self._batches.discard(batch)

    def _stop_claiming(self) -> None:
        self.draining = True
        for task in [*self._feeders, *self._reserving]:
            task.cancel()
        for batch in self._batches:
            batch.recall()


@contextlib.contextmanager
def _noted(tasks: set[asyncio.Task[Any]]) -> Iterator[None]:
    """Be found among these tasks meanwhile."""
    task = asyncio.current_task()
    assert task
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)
